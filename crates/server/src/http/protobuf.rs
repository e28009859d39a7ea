//! Request bodies in Kubernetes' protobuf encoding, which newer clients send for the built-in kinds: turned into JSON before
//! anything else looks at them. Answers are JSON, which every such client accepts as well.
//!
//! The table of messages (name, field, number, type) is a fact of the wire and kept in `facts/protobuf.tsv`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::meta::object::split_api_version;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::LazyLock;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every such body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting of messages, as for JSON bodies.
const DEPTH_MAX: usize = 120;

const META: &str = "apimachinery.pkg.apis.meta.v1";

/// Fields that are messages on this wire but whose content stands beside them in JSON.
const INLINE: &[&str] = &[
    "localObjectReference",
    "volumeSource",
    "persistentVolumeSource",
    "handler",
    "ephemeralContainerCommon",
    "ruleWithOperations",
    "rule",
];

/// Numbers that the encoder writes even where they were never set: zero means absent for these.
const ZERO_IS_ABSENT: &[&str] = &[
    "containerPort",
    "hostPort",
    "port",
    "nodePort",
    "generation",
    "observedGeneration",
    "count",
    "minReadySeconds",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "value",
    "seconds",
    "updatedReplicas",
    "readyReplicas",
    "availableReplicas",
    "unavailableReplicas",
    "fullyLabeledReplicas",
    "terminatingReplicas",
    "currentReplicas",
    "signal",
    "limit",
    "retryAfterSeconds",
    "code",
];

/// The same for booleans.
const FALSE_IS_ABSENT: &[&str] = &[
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "stdin",
    "stdinOnce",
    "tty",
    "readOnly",
    "paused",
    "unschedulable",
    "publishNotReadyAddresses",
    "globalDefault",
];

/// Strings for which empty and absent differ.
const EMPTY_IS_A_VALUE: &[&str] = &["storageClassName"];

#[derive(Clone, Copy)]
struct Field {
    name: &'static str,
    /// Without `repeated`.
    r#type: &'static str,
    repeated: bool,
}

type Message = HashMap<u64, Field>;

static MESSAGES: LazyLock<HashMap<&'static str, Message>> = LazyLock::new(|| {
    let table = include_str!("../../facts/protobuf.tsv");
    let message = |line: &'static str| {
        let mut columns = line.split('\t');
        let name = columns.next()?;
        let field = |column: &'static str| {
            let (name, rest) = column.split_once('=')?;
            let (number, r#type) = rest.split_once(':')?;
            let bare = r#type.strip_prefix("repeated");
            Some((number.parse().ok()?, Field { name, r#type: bare.unwrap_or(r#type), repeated: bare.is_some() }))
        };
        Some((name, columns.filter_map(field).collect::<Message>()))
    };
    table.lines().filter_map(message).collect()
});

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// It does not begin as such bodies do.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    /// It ends inside a field.
    #[error("unexpected EOF")]
    Truncated,
    /// A field has another wire type than its declaration.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// The field.
        field: String,
        /// The wire type found.
        wire: u64,
    },
    /// The kind has no protobuf encoding that is known here.
    #[error(
        "no kind {kind:?} is registered for version {api_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
    )]
    Unknown {
        /// The kind.
        kind: String,
        /// Its version.
        api_version: String,
    },
    /// Nested too deeply.
    #[error("exceeded max depth")]
    TooDeep,
}

/// Turns a body into the JSON it stands for.
///
/// # Errors
/// What is wrong with the body.
pub fn to_json(body: &[u8]) -> Result<Value, ProtobufError> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::Prefix)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in fields(body) {
        match field? {
            (1, Wire::Bytes(type_meta)) => {
                for field in fields(type_meta) {
                    match field? {
                        (1, Wire::Bytes(b)) => api_version = text(b),
                        (2, Wire::Bytes(b)) => kind = text(b),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = b,
            _ => {}
        }
    }
    let (group, version) = split_api_version(&api_version);
    let package = match (group, kind.as_str()) {
        (_, "DeleteOptions") | ("meta.k8s.io", _) => META.to_owned(),
        ("", _) => format!("api.core.{version}"),
        (group, _) => format!("api.{}.{version}", group.split('.').next().unwrap_or_default()),
    };
    let Some((name, message)) = MESSAGES.get_key_value(format!("{package}.{kind}").as_str()) else {
        return Err(ProtobufError::Unknown { kind, api_version });
    };
    let mut out = object(name, message, raw, 0)?;
    out.insert("apiVersion".into(), api_version.into());
    out.insert("kind".into(), kind.into());
    Ok(Value::Object(out))
}

enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn varint(bytes: &mut &[u8]) -> Result<u64, ProtobufError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(ProtobufError::Truncated)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ProtobufError::Truncated)
}

/// The fields of a message in the order they stand; ends after the first error.
fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Wire<'_>), ProtobufError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let item = next_field(&mut rest);
        if item.is_err() {
            rest = &[];
        }
        Some(item)
    })
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Wire<'a>), ProtobufError> {
    fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], ProtobufError> {
        let (head, tail) = rest.split_at_checked(n).ok_or(ProtobufError::Truncated)?;
        *rest = tail;
        Ok(head)
    }
    let little_endian = |b: &[u8]| b.iter().rev().fold(0u64, |v, x| v << 8 | u64::from(*x));
    let tag = varint(rest)?;
    let wire = match tag & 7 {
        0 => Wire::Varint(varint(rest)?),
        1 => Wire::Fixed(little_endian(take(rest, 8)?)),
        2 => {
            let n = usize::try_from(varint(rest)?).map_err(|_| ProtobufError::Truncated)?;
            Wire::Bytes(take(rest, n)?)
        }
        5 => Wire::Fixed(little_endian(take(rest, 4)?)),
        wire => return Err(ProtobufError::WireType { field: (tag >> 3).to_string(), wire }),
    };
    Ok((tag >> 3, wire))
}

/// The full name of a type named in message `within`.
fn resolve(r#type: &str, within: &str) -> String {
    match r#type.strip_prefix('.') {
        Some(absolute) => absolute.to_owned(),
        None => {
            let package = within.rsplit_once('.').map_or("", |(p, _)| p);
            format!("{package}.{type}")
        }
    }
}

fn object(name: &str, message: &Message, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::TooDeep);
    }
    let mut out = Map::new();
    for item in fields(bytes) {
        let (number, wire) = item?;
        // Fields of newer versions are dropped, as every protobuf reader does.
        let Some(field) = message.get(&number) else { continue };
        if let Some(types) = field.r#type.strip_prefix("map<").and_then(|t| t.strip_suffix('>')) {
            let (_, value_type) = types.split_once(',').unwrap_or(("string", types));
            let Wire::Bytes(entry) = wire else { return Err(wrong(field, &wire)) };
            let (key, value) = map_entry(name, field, value_type, entry, depth)?;
            if let Value::Object(map) = out.entry(field.name).or_insert_with(|| Value::Object(Map::new())) {
                map.insert(key, value);
            }
            continue;
        }
        if field.repeated {
            if let Value::Array(list) = out.entry(field.name).or_insert_with(|| Value::Array(Vec::new())) {
                match wire {
                    // Numbers may be packed into one field.
                    Wire::Bytes(mut packed) if matches!(field.r#type, "int32" | "int64") => {
                        while !packed.is_empty() {
                            list.push(varint(&mut packed)?.cast_signed().into());
                        }
                    }
                    wire => list.extend(value(name, *field, wire, depth)?),
                }
            }
            continue;
        }
        let Some(value) = value(name, *field, wire, depth)? else { continue };
        match value {
            Value::Object(inner) if is_inline(name, field.name) => {
                out.extend(inner);
            }
            Value::String(s) if s.is_empty() && !EMPTY_IS_A_VALUE.contains(&field.name) => {}
            Value::Number(n) if n.as_i64() == Some(0) && ZERO_IS_ABSENT.contains(&field.name) => {}
            Value::Bool(false) if FALSE_IS_ABSENT.contains(&field.name) => {}
            value => {
                out.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(out)
}

fn is_inline(message: &str, field: &str) -> bool {
    INLINE.contains(&field) && (field != "rule" || message.ends_with("RuleWithOperations"))
}

fn map_entry(
    name: &str,
    field: &Field,
    value_type: &'static str,
    entry: &[u8],
    depth: usize,
) -> Result<(String, Value), ProtobufError> {
    let as_field = Field { name: field.name, r#type: value_type, repeated: false };
    let (mut key, mut found) = (String::new(), None);
    for item in fields(entry) {
        match item? {
            (1, Wire::Bytes(b)) => key = text(b),
            (2, wire) => found = value(name, as_field, wire, depth)?,
            _ => {}
        }
    }
    let empty = || {
        if value_type == "string" || value_type == "bytes" {
            Value::String(String::new())
        } else {
            Value::Object(Map::new())
        }
    };
    Ok((key, found.unwrap_or_else(empty)))
}

fn wrong(field: &Field, wire: &Wire<'_>) -> ProtobufError {
    let wire = match wire {
        Wire::Varint(_) => 0,
        Wire::Fixed(_) => 1,
        Wire::Bytes(_) => 2,
    };
    ProtobufError::WireType { field: field.name.to_owned(), wire }
}

/// One value as JSON; None where it stands for an absent one.
fn value(within: &str, field: Field, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, ProtobufError> {
    Ok(Some(match (field.r#type, wire) {
        ("string", Wire::Bytes(b)) => text(b).into(),
        ("bytes", Wire::Bytes(b)) => STANDARD.encode(b).into(),
        ("bool", Wire::Varint(v)) => (v != 0).into(),
        ("int32" | "int64" | "uint32" | "uint64", Wire::Varint(v)) => v.cast_signed().into(),
        ("double", Wire::Fixed(v)) => f64::from_bits(v).into(),
        ("string" | "bytes" | "bool" | "int32" | "int64" | "uint32" | "uint64" | "double", wire) => {
            return Err(wrong(&field, &wire));
        }
        (message, Wire::Bytes(b)) => return special_or_message(&resolve(message, within), b, depth),
        (_, wire) => return Err(wrong(&field, &wire)),
    }))
}

/// Messages with a JSON form of their own, and all others.
fn special_or_message(name: &str, bytes: &[u8], depth: usize) -> Result<Option<Value>, ProtobufError> {
    let Some((known, message)) = MESSAGES.get_key_value(name) else { return Ok(None) };
    let plain = || object(known, message, bytes, depth + 1);
    let short = name.rsplit('.').next().unwrap_or_default();
    Ok(match (name.starts_with("apimachinery."), short) {
        (true, "Time" | "MicroTime") => time(&plain()?, short == "MicroTime"),
        (true, "Quantity") => Some(plain()?.remove("string").unwrap_or_else(|| "0".into())),
        (true, "IntOrString") => {
            let mut parts = plain()?;
            let is_text = parts.get("type").and_then(Value::as_i64) == Some(1);
            Some(if is_text {
                parts.remove("strVal").unwrap_or_else(|| "".into())
            } else {
                parts.remove("intVal").unwrap_or_else(|| 0.into())
            })
        }
        (true, "Duration") => Some(plain()?.remove("duration").unwrap_or_else(|| 0.into())),
        (true, "RawExtension" | "FieldsV1" | "JSON") => {
            let raw = fields(bytes).find_map(|f| match f {
                Ok((1, Wire::Bytes(b))) => Some(b),
                _ => None,
            });
            raw.and_then(|r| serde_json::from_slice(r).ok())
        }
        (_, "ExtraValue") | (true, "Verbs") => {
            Some(plain()?.remove("items").unwrap_or_else(|| Value::Array(Vec::new())))
        }
        _ => Some(Value::Object(plain()?)),
    })
}

fn time(parts: &Map<String, Value>, micro: bool) -> Option<Value> {
    let number = |name: &str| parts.get(name).and_then(Value::as_i64).unwrap_or_default();
    let (seconds, nanos) = (number("seconds"), number("nanos"));
    // Go's zero time, and a message without content, stand for no time at all.
    if (seconds, nanos) == (0, 0) || seconds == -62_135_596_800 {
        return None;
    }
    let nanos = if micro { i32::try_from(nanos).ok()? } else { 0 };
    let at = Timestamp::new(seconds, nanos).ok()?;
    Some(if micro { at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string() } else { at.to_string() }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes_field(number: u64, content: &[u8]) -> Vec<u8> {
        let mut out = vec![u8::try_from(number << 3 | 2).unwrap(), u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn unknown(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [bytes_field(1, api_version.as_bytes()), bytes_field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes_field(1, &type_meta), bytes_field(2, raw)].concat()
    }

    #[test]
    fn reads_what_kubectl_sends() {
        // The body of `kubectl create configmap a --from-literal=x=y`, version 1.32.
        let body = [
            &b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01a\x12\0\x1a\0\x22\0*\x002\x008\0B\0\x12\x06\x0a\x01x\x12\x01y"[..],
            b"\x1a\0\x22\0",
        ]
        .concat();
        let want =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "x": "y" } });
        assert_eq!(to_json(&body).unwrap(), want);
    }

    #[test]
    fn keeps_zero_where_it_means_something() {
        let spec = [1u8 << 3, 0];
        let deployment = bytes_field(2, &spec);
        let got = to_json(&unknown("apps/v1", "Deployment", &deployment)).unwrap();
        assert_eq!(got["spec"], json!({ "replicas": 0 }));
        let options = [1u8 << 3, 0, 4 << 3 | 2, 6, b'O', b'r', b'p', b'h', b'a', b'n'];
        let got = to_json(&unknown("v1", "DeleteOptions", &options)).unwrap();
        assert_eq!(got["gracePeriodSeconds"], 0);
        assert_eq!(got["propagationPolicy"], "Orphan");
    }

    #[test]
    fn refuses_what_is_broken() {
        assert_eq!(to_json(b"{}"), Err(ProtobufError::Prefix));
        assert_eq!(to_json(b"k8s\0\x0a\x40"), Err(ProtobufError::Truncated));
        assert!(matches!(to_json(&unknown("v1", "Nothing", b"")), Err(ProtobufError::Unknown { .. })));
        assert!(matches!(to_json(&unknown("v1", "ConfigMap", &[1 << 3, 1])), Err(ProtobufError::WireType { .. })));
        for cut in 0..40 {
            let body = unknown("v1", "Pod", &bytes_field(1, &bytes_field(1, b"some-name")));
            let _ = to_json(&body[..body.len().saturating_sub(cut)]);
        }
    }
}
