//! What calls can cost.

use super::estimate::Estimator;
use super::{AUTHORIZER_CHECK, CostRange, REGEX_CHAR, SizeRange, TRAVERSAL, scale, selector};
use crate::ast::{Expr, Kind};
use crate::types::Type;
use crate::value::Value;

/// The longest regular expression of a named format.
const MAX_FORMAT_REGEX: f64 = 128.0;
/// The longest name of a format.
const MAX_FORMAT: u64 = 64;

/// The cost of a call without its operands', and the size of its result where that follows from theirs.
type Estimate = (CostRange, Option<SizeRange>);

const CALL: CostRange = CostRange { min: 1, max: 1 };

fn fixed(cost: u64) -> Option<Estimate> {
    Some((CostRange::exactly(cost), None))
}

impl<'a> Estimator<'a> {
    /// What one overload can cost with its arguments.
    pub(super) fn overload(
        &mut self,
        e: &'a Expr,
        function: &str,
        overload: &str,
        target: Option<&'a Expr>,
        args: &'a [Expr],
        costs: &[CostRange],
    ) -> Estimate {
        let sum = costs.iter().copied().fold(CostRange::exactly(0), CostRange::plus);
        let library = self
            .extension(overload, target, args)
            .or_else(|| self.kubernetes(function, overload, target, args))
            .or_else(|| self.addresses(function, overload, args));
        if let Some((cost, size)) = library {
            return (cost.plus(sum), size);
        }
        match (overload, args) {
            ("logical_or" | "logical_and", [_, _]) => {
                // The second operand may not be evaluated.
                (CostRange { min: costs[0].min, max: costs[0].plus(costs[1]).max }, None)
            }
            ("conditional", [_, yes, no]) => {
                let size = self.size_or_unknown(yes).union(self.size_or_unknown(no));
                let entries = self.entries_of(yes).zip(self.entries_of(no)).map(|(a, b)| a.union(b));
                self.set_entries(e, entries);
                (costs[0].plus(costs[1].union(costs[2])), Some(size))
            }
            _ => {
                let (cost, size) = self.standard(e, overload, target, args).unwrap_or((CALL, None));
                (cost.plus(sum), size)
            }
        }
    }

    fn standard(&mut self, e: &Expr, overload: &str, target: Option<&Expr>, args: &[Expr]) -> Option<Estimate> {
        Some(match (overload, target, args) {
            ("string_format", Some(format), _) => (self.size_or_unknown(format).scaled(TRAVERSAL), None),
            ("string_to_bytes", _, [text]) => {
                let size = self.size_or_unknown(text);
                let bytes = SizeRange { min: size.min, max: size.max.saturating_mul(4) };
                (size.scaled(TRAVERSAL), Some(bytes))
            }
            ("bytes_to_string", _, [bytes]) => {
                let size = self.size_or_unknown(bytes);
                (size.scaled(TRAVERSAL), Some(SizeRange { min: size.min / 4, max: size.max }))
            }
            ("strings_quote", _, [text]) => {
                let size = self.size_or_unknown(text);
                let quoted =
                    SizeRange { min: size.min.saturating_add(2), max: size.max.saturating_mul(2).saturating_add(2) };
                (size.scaled(TRAVERSAL), Some(quoted))
            }
            ("starts_with_string" | "ends_with_string", _, [part]) => {
                (self.size_or_unknown(part).scaled(TRAVERSAL), None)
            }
            ("in_list", _, [_, list]) => (self.size_or_unknown(list).scaled(1.0), None),
            ("matches_string", Some(text), [pattern]) => (self.regex(text, pattern), None),
            ("contains_string", Some(text), [part]) => {
                let text = self.size_or_unknown(text).scaled(TRAVERSAL);
                (text.times(self.size_or_unknown(part).scaled(TRAVERSAL)), None)
            }
            ("add_string" | "add_bytes" | "add_list", _, [a, b]) => {
                let size = self.size_or_unknown(a).plus(self.size_or_unknown(b));
                let entries = self.entries_of(a).zip(self.entries_of(b)).map(|(a, b)| a.union(b));
                self.set_entries(e, entries);
                (if overload == "add_list" { CALL } else { size.scaled(TRAVERSAL) }, Some(size))
            }
            (
                "less_string"
                | "greater_string"
                | "less_equals_string"
                | "greater_equals_string"
                | "less_bytes"
                | "greater_bytes"
                | "less_equals_bytes"
                | "greater_equals_bytes"
                | "equals"
                | "not_equals",
                _,
                [a, b],
            ) => {
                let max = self.size_or_unknown(a).max.min(self.size_or_unknown(b).max);
                (CostRange { min: u64::from(max > 0), max }.scaled(TRAVERSAL), None)
            }
            _ => return None,
        })
    }

    fn regex(&mut self, text: &Expr, pattern: &Expr) -> CostRange {
        let text = self.size_or_unknown(text).plus(SizeRange::exactly(1)).scaled(TRAVERSAL);
        text.times(self.size_or_unknown(pattern).scaled(REGEX_CHAR))
    }

    /// Costs of the extended lists and sets.
    fn extension(&mut self, overload: &str, target: Option<&Expr>, args: &[Expr]) -> Option<Estimate> {
        let allocated = |size: SizeRange, factor: f64| {
            Some((size.scaled(factor).plus(CALL).plus(CostRange::exactly(10)), Some(size)))
        };
        let number = |e: &Expr, otherwise: u64| match &e.kind {
            Kind::Literal(Value::Int(i)) => u64::try_from(*i).unwrap_or(otherwise),
            _ => otherwise,
        };
        let sorted = |size: SizeRange| {
            let text = ["list_string_sort", "list_bytes_sort", "list_string_sortBy", "list_bytes_sortBy"];
            let factor = if text.iter().any(|prefix| overload.starts_with(prefix)) { 2.1 } else { 2.0 };
            allocated(size.times(size), factor)
        };
        match (overload, target, args) {
            ("list_sets_contains_list" | "list_sets_intersects_list" | "list_sets_equivalent_list", _, [a, b]) => {
                let factor = if overload == "list_sets_equivalent_list" { 2.0 } else { 1.0 };
                let pairs = self.size_or_unknown(a).times(self.size_or_unknown(b));
                Some((pairs.scaled(factor).plus(CALL), None))
            }
            ("list_slice", Some(list), [start, end]) => {
                let size = self.size_or_unknown(list);
                allocated(SizeRange::exactly(number(end, size.max).wrapping_sub(number(start, 0))), 1.0)
            }
            ("lists_range", _, [count]) => allocated(SizeRange::exactly(number(count, u64::MAX)), 1.0),
            ("list_reverse", Some(list), []) => allocated(self.size_or_unknown(list), 1.0),
            ("list_flatten" | "list_flatten_int", Some(list), _) => {
                let depth = args.first().map_or(1, |depth| number(depth, u64::MAX));
                #[allow(clippy::cast_precision_loss, reason = "a factor")]
                allocated(self.size_or_unknown(list), depth as f64)
            }
            ("list_distinct", Some(list), []) => {
                let size = self.size_or_unknown(list);
                allocated(size.times(size), 2.0)
            }
            (_, Some(list), []) if overload.starts_with("list_") && overload.ends_with("_sort") => {
                sorted(self.size_or_unknown(list))
            }
            (_, Some(_), [keys]) if overload.ends_with("_sortByAssociatedKeys") => sorted(self.size_or_unknown(keys)),
            _ => None,
        }
    }

    /// Costs of Kubernetes' libraries, which go by the name of the function whatever it is applied to.
    fn kubernetes(
        &mut self,
        function: &str,
        _overload: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Option<Estimate> {
        match (function, target, args) {
            ("check", ..) => fixed(AUTHORIZER_CHECK),
            (
                "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name" | "allowed"
                | "reason" | "error" | "errored" | "format.named" | "sign" | "asInteger" | "isInteger"
                | "asApproximateFloat" | "isGreaterThan" | "isLessThan" | "compareTo" | "add" | "sub" | "major"
                | "minor" | "patch" | "getScheme" | "getHostname" | "getHost" | "getPort" | "getEscapedPath"
                | "getQuery",
                ..,
            ) => fixed(1),
            ("fieldSelector" | "labelSelector", _, [text]) => Some((selector(self.size_or_unknown(text)), None)),
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes", Some(list), _) => {
                let size = self.size_or_unknown(list);
                Some(match self.element(list) {
                    Some((element, path)) => {
                        let mut each = CALL;
                        if matches!(element, Type::String | Type::Bytes) {
                            let size = self.hint(&path, &element).unwrap_or(SizeRange::UNKNOWN);
                            each = each.plus(size.scaled(TRAVERSAL));
                        }
                        (size.each(each), None)
                    }
                    None if function == "includes" => (size.each(CALL), None),
                    None => (size.scaled(TRAVERSAL), None),
                })
            }
            ("url" | "jsonpatch.escapeKey", _, [text]) => {
                let size = self.size_or_unknown(text);
                Some((size.scaled(TRAVERSAL), Some(size)))
            }
            ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(text), _) => {
                let size = self.size_or_unknown(text);
                Some((size.scaled(TRAVERSAL), Some(size)))
            }
            ("replace", Some(text), [old, new, ..]) => Some(self.replace(text, old, new)),
            ("split", Some(text), _) => {
                let size = self.size_or_unknown(text);
                let limit = match args.get(1).map(|limit| &limit.kind) {
                    Some(Kind::Literal(Value::Int(limit))) => limit.cast_unsigned(),
                    _ => size.max,
                };
                Some((size.scaled(2.0 * TRAVERSAL), Some(SizeRange { min: 0, max: limit })))
            }
            ("join", Some(list), _) => Some(self.join(list, args.first())),
            ("find" | "findAll", Some(text), [pattern, ..]) => {
                let max = self.size_or_unknown(text).max;
                Some((self.regex(text, pattern), Some(SizeRange { min: 0, max })))
            }
            ("quantity" | "isQuantity" | "semver" | "isSemver", _, [text, ..]) => {
                Some((self.size_or_unknown(text).scaled(TRAVERSAL), None))
            }
            ("validate", _, [text, ..]) => {
                let cost = self.size_or_unknown(text).scaled(TRAVERSAL).scaled(MAX_FORMAT_REGEX * REGEX_CHAR);
                Some((cost, None))
            }
            ("_==_", _, [a, b]) => self.equality(a, b),
            _ => None,
        }
    }

    /// Costs of functions on IP addresses and networks.
    fn addresses(&mut self, function: &str, overload: &str, args: &[Expr]) -> Option<Estimate> {
        // Addresses have four or sixteen octets.
        let octets = SizeRange { min: 4, max: 16 };
        let comparison = octets.plus(octets).scaled(TRAVERSAL);
        match (function, args) {
            (
                "masked"
                | "prefixLength"
                | "family"
                | "isUnspecified"
                | "isLoopback"
                | "isLinkLocalMulticast"
                | "isLinkLocalUnicast"
                | "isGlobalUnicast",
                _,
            ) => fixed(1),
            ("ip", _) if overload == "cidr_ip" => fixed(1),
            ("cidr" | "isIP" | "isCIDR" | "ip", [text, ..]) => {
                Some((self.size_or_unknown(text).scaled(TRAVERSAL), None))
            }
            ("ip.isCanonical", [text, ..]) => Some((self.size_or_unknown(text).scaled(2.0 * TRAVERSAL), None)),
            ("containsIP", [other, ..]) => {
                let mut cost = comparison;
                if overload == "cidr_contains_ip_string" {
                    cost = cost.plus(self.size_or_unknown(other).scaled(TRAVERSAL));
                }
                Some((cost, None))
            }
            ("containsCIDR", [other, ..]) => {
                let mut cost = comparison.plus(octets.scaled(TRAVERSAL)).plus(CALL);
                if overload == "cidr_contains_cidr_string" {
                    cost = cost.plus(self.size_or_unknown(other).scaled(TRAVERSAL));
                }
                Some((cost, None))
            }
            _ => None,
        }
    }

    /// The type and the path of the elements of an aggregate; of a map its keys.
    fn element(&self, list: &Expr) -> Option<(Type, Vec<String>)> {
        let element = self.type_of(list).parameters().into_iter().next()?;
        let mut path = self.operand_path(list);
        if !path.is_empty() {
            path.push("@items".to_owned());
        }
        Some((element, path))
    }

    fn replace(&mut self, text: &Expr, old: &Expr, new: &Expr) -> Estimate {
        let (size, old, new) = (self.size_or_unknown(text), self.size_or_unknown(old), self.size_or_unknown(new));
        let often = |size: u64, part: u64| size.div_ceil(part.max(1));
        // The result is longest with as many replacements as possible, unless they make it shorter.
        let (most, kept_most) = if old.min == 0 {
            (size.max.saturating_add(1), size.max)
        } else if new.max <= old.min {
            (0, size.max)
        } else {
            (often(size.max, old.min), 0)
        };
        let (least, kept_least) = if old.max == 0 {
            (size.min.saturating_add(1), size.min)
        } else if old.max <= new.min {
            (0, size.min)
        } else {
            (often(size.min, old.max), 0)
        };
        let result = SizeRange { min: least, max: most }.times(new).plus(SizeRange { min: kept_least, max: kept_most });
        (size.scaled(2.0 * TRAVERSAL), Some(result))
    }

    fn join(&mut self, list: &Expr, separator: Option<&Expr>) -> Estimate {
        let count = self.size_or_unknown(list);
        let mut size = SizeRange { min: 0, max: 0 };
        if let Some((element, path)) = self.element(list) {
            let each = self.hint(&path, &element).unwrap_or(SizeRange::UNKNOWN);
            size = count.times(each);
        }
        if let Some(separator) = separator {
            let between = SizeRange { min: count.min.saturating_sub(1), max: count.max.saturating_sub(1) };
            size = size.plus(self.size_or_unknown(separator).times(between));
        }
        (size.scaled(TRAVERSAL), Some(size))
    }

    /// The cost of comparing values of Kubernetes' own types.
    fn equality(&mut self, a: &Expr, b: &Expr) -> Option<Estimate> {
        let of = self.type_of(a);
        if of != self.type_of(b) {
            return None;
        }
        let name = match of {
            Type::Object(name) | Type::Opaque(name, _) => &**name,
            _ => return None,
        };
        match name {
            "kubernetes.NamedFormat" => Some((CostRange { min: 1, max: scale(MAX_FORMAT, TRAVERSAL) }, None)),
            "kubernetes.URL" => {
                // Upstream looks at the right side only.
                let max = self.size(b).map_or(1, |size| size.max);
                Some((CostRange { min: 1, max }.scaled(TRAVERSAL), None))
            }
            "net.IP" | "net.CIDR" | "kubernetes.Quantity" | "kubernetes.Semver" => fixed(1),
            _ if name.starts_with("kubernetes.authorization.") => fixed(1),
            _ => None,
        }
    }
}
