//! What calls cost when they are evaluated.

use super::{AUTHORIZER_CHECK, REGEX_CHAR, SizeRange, TRAVERSAL, scale, selector};
use crate::library::Format;
use crate::ops;
use crate::value::Value;

const CALL: u64 = 1;
const MAKE_LIST: u64 = 10;

/// Code points, octets, elements or entries; 1 for what has no size.
pub(crate) fn size(value: &Value) -> u64 {
    match ops::size(std::slice::from_ref(value)) {
        Ok(Value::Int(size)) => u64::try_from(size).unwrap_or(0),
        _ => 1,
    }
}

/// As `size`, but of what is in an optional.
fn inner_size(value: &Value) -> u64 {
    match value {
        Value::Optional(Some(inner)) => inner_size(inner),
        other => size(other),
    }
}

/// Types that compare in one step although their text may be long.
const SIMPLE: [&str; 11] = [
    "kubernetes.Quantity",
    "net.IP",
    "net.CIDR",
    "kubernetes.NamedFormat",
    "kubernetes.URL",
    "kubernetes.Semver",
    "kubernetes.authorization.Authorizer",
    "kubernetes.authorization.PathCheck",
    "kubernetes.authorization.GroupCheck",
    "kubernetes.authorization.ResourceCheck",
    "kubernetes.authorization.Decision",
];

/// The cost of `==`, or of `!=`, for which no type is special.
pub(crate) fn equality(a: &Value, b: &Value, equal: bool) -> u64 {
    if equal && matches!(a, Value::Object(object) if SIMPLE.contains(&object.type_name())) {
        return 1;
    }
    scale(inner_size(a).min(inner_size(b)), TRAVERSAL)
}

/// The cost of going over all of a value.
fn traversal(value: &Value) -> u64 {
    // Rounded down, unlike everything else.
    let part = |length: usize| u64::try_from(length).unwrap_or(u64::MAX) / 10;
    match value {
        Value::String(s) => part(s.len()),
        Value::Bytes(b) => part(b.len()),
        Value::List(list) => list.iter().map(|item| item.map_or(1, |item| traversal(&item))).sum(),
        Value::Map(map) => map
            .keys()
            .into_iter()
            .map(|key| {
                let value = map.get(&key).ok().flatten().map_or(1, |value| traversal(&value));
                traversal(&key.to_value()) + value
            })
            .sum(),
        _ => 1,
    }
}

/// The cost of a call. `overload` is known when only one fits; `result` when there is one.
pub(crate) fn call(function: &str, overload: Option<&str>, args: &[Value], result: Option<&Value>) -> u64 {
    let overload = overload.unwrap_or_default();
    extension(overload, args, result)
        .or_else(|| kubernetes(function, overload, args, result))
        .unwrap_or_else(|| standard(overload, args))
}

/// Costs of the extended lists and sets.
fn extension(overload: &str, args: &[Value], result: Option<&Value>) -> Option<u64> {
    let allocated = |size: u64, factor: u64| size.saturating_mul(factor).saturating_add(CALL + MAKE_LIST);
    let compared = |list: &Value| {
        let length = size(list);
        let text = match list {
            Value::List(items) => matches!(items.first(), Some(Value::String(_) | Value::Bytes(_))),
            _ => false,
        };
        let square = length.saturating_mul(length);
        let extra = if text { square / 10 } else { 0 };
        square.saturating_mul(2).saturating_add(extra).saturating_add(CALL + MAKE_LIST)
    };
    let pairs = || size(&args[0]).saturating_mul(size(&args[1]));
    Some(match overload {
        "list_sets_contains_list" | "list_sets_intersects_list" => pairs().saturating_add(CALL),
        "list_sets_equivalent_list" => pairs().saturating_mul(2).saturating_add(CALL),
        "list_slice" | "lists_range" | "list_reverse" => allocated(result.map_or(1, size), 1),
        "list_flatten" => allocated(size(&args[0]), 1),
        "list_flatten_int" => match &args[1] {
            Value::Int(depth) => allocated(size(&args[0]), u64::try_from(*depth).unwrap_or(0)),
            _ => return None,
        },
        "list_distinct" => compared(&args[0]),
        _ if overload.starts_with("list_") && overload.ends_with("_sort") => compared(&args[0]),
        _ if overload.ends_with("_sortByAssociatedKeys") => compared(&args[1]),
        _ => return None,
    })
}

/// Costs of Kubernetes' libraries, which go by the name of the function whatever it is applied to.
fn kubernetes(function: &str, overload: &str, args: &[Value], result: Option<&Value>) -> Option<u64> {
    let text = |value: &Value, factor: f64| scale(size(value), factor * TRAVERSAL);
    let first = args.first();
    Some(match function {
        "check" => AUTHORIZER_CHECK,
        "serviceAccount"
        | "path"
        | "group"
        | "resource"
        | "subresource"
        | "namespace"
        | "name"
        | "allowed"
        | "reason"
        | "error"
        | "errored"
        | "masked"
        | "prefixLength"
        | "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast"
        | "format.named"
        | "sign"
        | "asInteger"
        | "isInteger"
        | "asApproximateFloat"
        | "isGreaterThan"
        | "isLessThan"
        | "compareTo"
        | "add"
        | "sub"
        | "major"
        | "minor"
        | "patch"
        | "getScheme"
        | "getHostname"
        | "getHost"
        | "getPort"
        | "getEscapedPath"
        | "getQuery" => 1,
        "fieldSelector" | "labelSelector" => selector(SizeRange::exactly(size(args.get(1)?))).max,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => first.map_or(0, traversal),
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => text(first?, 1.0),
        "ip" if overload == "cidr_ip" => 1,
        "ip" => text(first?, 1.0),
        "ip.isCanonical" | "replace" | "split" => text(first?, 2.0),
        "join" => {
            first?;
            result.map_or(1, |result| text(result, 2.0))
        }
        "find" | "findAll" => regex(first?, size(args.get(1)?)),
        "validate" => regex(args.get(1)?, first?.downcast::<Format>()?.regex_size),
        "containsIP" | "containsCIDR" => {
            let cidr = size(first?);
            let mut cost = scale(cidr.saturating_mul(2), TRAVERSAL);
            if function == "containsCIDR" {
                cost += scale(cidr, TRAVERSAL) + 1;
            }
            if matches!(overload, "cidr_contains_ip_string" | "cidr_contains_cidr_string") {
                cost += text(args.get(1)?, 1.0);
            }
            cost
        }
        _ => return None,
    })
}

/// The cost of trying a regular expression of a size on a text.
fn regex(text: &Value, pattern_size: u64) -> u64 {
    scale(size(text).saturating_add(1), TRAVERSAL).saturating_mul(scale(pattern_size, REGEX_CHAR))
}

fn standard(overload: &str, args: &[Value]) -> u64 {
    let length = |index: usize| args.get(index).map_or(1, inner_size);
    let text = |index: usize| scale(length(index), TRAVERSAL);
    match overload {
        "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string" | "strings_quote"
        | "string_format" => text(0),
        "in_list" => length(1),
        "less_string"
        | "greater_string"
        | "less_equals_string"
        | "greater_equals_string"
        | "less_bytes"
        | "greater_bytes"
        | "less_equals_bytes"
        | "greater_equals_bytes" => scale(length(0).min(length(1)), TRAVERSAL),
        "add_string" | "add_bytes" => scale(length(0).saturating_add(length(1)), TRAVERSAL),
        "matches_string" => regex(args.first().unwrap_or(&Value::Null), length(1)),
        "contains_string" => text(0).saturating_mul(text(1)),
        _ => CALL,
    }
}
