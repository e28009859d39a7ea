//! Every field of every kind goes there and back; what clients send is understood; what is broken is refused.

use super::*;
use crate::Definitions;
use crate::schema::{Rest, Scalar, Schema, Shape};
use serde_json::{Map, Value, json};

/// Fields of the types served that are younger than the sources the table was made of. Their numbers are not known here,
/// so they are left out in protobuf.
const UNNUMBERED: &[&str] = &["compatibilityGroups", "derivedAttributes", "runningInUserNamespace"];

/// Kinds served, as group, version and kind: all that have a definition and a message.
fn kinds() -> Vec<(&'static str, &'static str, &'static str)> {
    let both = |p: &'static table::Package| {
        let messages = table::MESSAGES[p.first..p.end].iter();
        messages
            .filter(|m| Definitions::builtin().schema_for(p.group, p.version, m.name).is_some())
            .map(|m| (p.group, p.version, m.name))
    };
    table::PACKAGES.iter().flat_map(both).collect()
}

/// An object with every field its type has, nested schemas and own types up to a depth.
fn full(schema: Schema<'_>, name: &str, depth: usize) -> Value {
    match schema.shape() {
        Shape::Any => json!({ "any": [1, null, "x"] }),
        Shape::Scalar(scalar) => match scalar {
            Scalar::String if name == "window" => "10s".into(),
            Scalar::String => format!("{name} \"ü\"").into(),
            Scalar::Bytes => "AAEC/w==".into(),
            Scalar::Time => "2026-01-02T03:04:05Z".into(),
            Scalar::MicroTime => "2026-01-02T03:04:05.678901Z".into(),
            Scalar::Quantity => "1500m".into(),
            Scalar::IntOrString => "50%".into(),
            Scalar::Int32 => i32::MIN.into(),
            Scalar::Int64 => i64::MAX.into(),
            Scalar::Number => 1.5.into(),
            Scalar::Boolean => true.into(),
        },
        Shape::List(list) => json!([full(list.items, name, depth), full(list.items, name, depth)]),
        Shape::Object(object) => {
            let mut out = Map::new();
            // An object inside another (of a list, a template, options) does not say its kind on the wire.
            let is_kind = object.field("metadata").is_some() || object.name().ends_with("DeleteOptions");
            let unsaid = |name: &str| is_kind && matches!(name, "apiVersion" | "kind");
            for field in object.fields().filter(|f| !UNNUMBERED.contains(&f.name) && !unsaid(f.name)) {
                if depth > 0 || !matches!(field.schema.shape(), Shape::Object(_) | Shape::List(_)) {
                    out.insert(field.name.to_owned(), full(field.schema, field.name, depth.saturating_sub(1)));
                }
            }
            if let Rest::Values(values) = object.rest() {
                out.insert("key".into(), full(values, name, depth));
            }
            Value::Object(out)
        }
    }
}

fn document(group: &str, version: &str, kind: &str, depth: usize) -> Value {
    let schema = Definitions::builtin().schema_for(group, version, kind).unwrap();
    let mut value = full(schema, "", depth);
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    value
}

/// Types of the schema language take any JSON by their schema and have a form of their own.
fn fix_schema_properties(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map.iter_mut() {
                match name.as_str() {
                    "additionalItems" | "additionalProperties" => *inner = json!(true),
                    "items" if inner.is_object() => *inner = json!([{ "type": "x" }, { "format": "y" }]),
                    "dependencies" => *inner = json!({ "a": ["b"], "c": { "type": "d" } }),
                    _ => fix_schema_properties(inner),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(fix_schema_properties),
        _ => {}
    }
}

#[test]
fn every_field_of_every_kind_comes_back() {
    let kinds = kinds();
    assert!(kinds.len() > 140, "{kinds:?}");
    for (group, version, kind) in kinds {
        // Schemas hold schemas: deeper ones are too many.
        let deepest = if kind.starts_with("CustomResourceDefinition") { 6 } else { 12 };
        for depth in [0, 3, deepest] {
            let mut document = document(group, version, kind, depth);
            if kind.starts_with("CustomResourceDefinition") {
                fix_schema_properties(&mut document);
            }
            let bytes = encode(document.to_string().as_bytes()).unwrap_or_else(|e| panic!("{kind}: {e}"));
            let back: Value = serde_json::from_slice(&decode(&bytes).unwrap()).unwrap();
            assert_same(&back, &document, &format!("{group}/{version} {kind}"));
        }
    }
}

/// Like `assert_eq`, saying where the difference is.
fn assert_same(got: &Value, want: &Value, at: &str) {
    match (got, want) {
        (Value::Object(got), Value::Object(want)) => {
            for (name, value) in want {
                let Some(other) = got.get(name) else { panic!("{at}.{name} is lost") };
                assert_same(other, value, &format!("{at}.{name}"));
            }
            for name in got.keys() {
                assert!(want.contains_key(name), "{at}.{name} came up");
            }
        }
        (Value::Array(got), Value::Array(want)) => {
            assert_eq!(got.len(), want.len(), "{at}");
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                assert_same(got, want, &format!("{at}[{i}]"));
            }
        }
        _ => assert_eq!(got, want, "{at}"),
    }
}

fn bytes_field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::try_from(number << 3 | 2).unwrap(), u8::try_from(content.len()).unwrap()];
    out.extend_from_slice(content);
    out
}

fn unknown(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = [bytes_field(1, api_version.as_bytes()), bytes_field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes_field(1, &type_meta), bytes_field(2, raw)].concat()
}

fn decoded(body: &[u8]) -> Value {
    serde_json::from_slice(&decode(body).unwrap()).unwrap()
}

#[test]
fn reads_what_kubectl_sends() {
    // The body of `kubectl create configmap a --from-literal=x=y`, version 1.32.
    let body = [
        &b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01a\x12\0\x1a\0\x22\0*\x002\x008\0B\0\x12\x06\x0a\x01x\x12\x01y"[..],
        b"\x1a\0\x22\0",
    ]
    .concat();
    let want = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "x": "y" } });
    assert_eq!(decoded(&body), want);
}

#[test]
fn writes_what_clients_read() {
    let json =
        br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","creationTimestamp":null},"data":{"x":"y"}}"#;
    let want =
        b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01x\x12\x01y\x1a\0\x22\0";
    assert_eq!(encode(json).unwrap(), want);
}

#[test]
fn zero_is_kept_where_it_means_something() {
    let deployment = bytes_field(2, &[1u8 << 3, 0]);
    assert_eq!(decoded(&unknown("apps/v1", "Deployment", &deployment))["spec"], json!({ "replicas": 0 }));
    // minReadySeconds is no pointer.
    let deployment = bytes_field(2, &[5u8 << 3, 0]);
    assert_eq!(decoded(&unknown("apps/v1", "Deployment", &deployment))["spec"], json!({}));
    let options = [1u8 << 3, 0, 4 << 3 | 2, 6, b'O', b'r', b'p', b'h', b'a', b'n'];
    // Options belong to every group.
    for api_version in ["v1", "apps/v1", "meta.k8s.io/v1"] {
        let got = decoded(&unknown(api_version, "DeleteOptions", &options));
        assert_eq!((&got["gracePeriodSeconds"], &got["propagationPolicy"]), (&json!(0), &json!("Orphan")));
    }
}

#[test]
fn occurrences_of_a_message_add_up_and_fields_come_in_any_order() {
    let name = bytes_field(1, &bytes_field(1, b"n"));
    let namespace = bytes_field(1, &bytes_field(3, b"ns"));
    let data = bytes_field(2, &[bytes_field(1, b"k"), bytes_field(2, b"v")].concat());
    let body = unknown("v1", "ConfigMap", &[name, data, namespace].concat());
    let got = decoded(&body);
    assert_eq!(got["metadata"], json!({ "name": "n", "namespace": "ns" }));
    assert_eq!(got["data"], json!({ "k": "v" }));
}

#[test]
fn numbers_in_a_row_are_read_packed_as_well() {
    // spec.securityContext.supplementalGroups = [1, 300]
    let packed = bytes_field(4, &[1, 0xac, 2]);
    let pod = bytes_field(2, &bytes_field(14, &packed));
    let got = decoded(&unknown("v1", "Pod", &pod));
    assert_eq!(got["spec"]["securityContext"], json!({ "supplementalGroups": [1, 300] }));
}

#[test]
fn refuses_what_is_broken() {
    assert_eq!(decode(b"{}"), Err(ProtobufError::Prefix));
    assert_eq!(decode(b"k8s\0"), Err(ProtobufError::Empty));
    assert_eq!(decode(b"k8s\0\x0a\x40"), Err(ProtobufError::Truncated));
    assert!(matches!(decode(&unknown("v1", "Nothing", b"")), Err(ProtobufError::Unknown { .. })));
    assert!(matches!(decode(&unknown("v1", "ConfigMap", &[1 << 3, 1])), Err(ProtobufError::WireType { .. })));
    assert!(matches!(
        decode(&unknown("apps/v1", "ControllerRevision", &bytes_field(2, &bytes_field(1, b"{")))),
        Err(ProtobufError::Json(_))
    ));
    let body = encode(document("", "v1", "Pod", 4).to_string().as_bytes()).unwrap();
    for cut in 0..body.len().min(2000) {
        let _ = decode(&body[..cut]);
    }
    assert!(matches!(
        encode(br#"{"kind":"Table","apiVersion":"meta.k8s.io/v1"}"#),
        Err(ProtobufError::NotMarshalable(_))
    ));
    assert!(matches!(encode(br#"{"kind":"Pod","apiVersion":"v1","spec":[]}"#), Err(ProtobufError::Json(_))));
}

#[test]
fn nesting_has_an_end() {
    let mut schema = Vec::new();
    for _ in 0..2000 {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, 28, &schema);
        schema = outer;
    }
    let mut levels = schema;
    // spec.versions[].schema.openAPIV3Schema
    for number in [1, 4, 7, 2] {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, number, &levels);
        levels = outer;
    }
    let mut body = envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", levels.len());
    body.extend_from_slice(&levels);
    assert_eq!(decode(&body), Err(ProtobufError::TooDeep));
}

#[test]
fn watch_events_are_framed_by_their_length() {
    let object = encode(br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}"#).unwrap();
    let frame = watch_frame("ADDED", &object);
    let (length, event) = frame.split_at(4);
    assert_eq!(u32::from_be_bytes(length.try_into().unwrap()) as usize, event.len());
    let raw = bytes_field(2, &bytes_field(1, &object));
    assert_eq!(event, [bytes_field(1, b"ADDED"), raw].concat());
}
