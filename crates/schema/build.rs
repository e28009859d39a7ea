//! Builds the three tables the crate embeds, from the schemas of k8s-openapi (fields, types, descriptions) and from
//! `facts/markers*.tsv` (what those lack: list types, map keys, patch strategies, group-version-kinds, defaults),
//! and from `facts/metrics.json` (the types of metrics.k8s.io, which are no part of k8s-openapi):
//!
//! * `structure.tsv.zst`: one line per definition and field, without descriptions; loaded on the first decode or patch.
//!   The format is described in `src/schema/load.rs`.
//! * `definitions.json.zst`: an object from definition name to its OpenAPI v2 schema with descriptions and
//!   `x-kubernetes-*` markers; read only while an OpenAPI document is being made.
//! * `protobuf.rs`: the messages of the protobuf encoding as static tables, from `facts/protobuf.tsv`.

#[path = "build/protobuf.rs"]
mod protobuf;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// A kind and the definition it has.
struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    list_kind: &'static str,
    definition: String,
}

macro_rules! gather {
    ({ kinds: [$($kind:path => $list:literal,)*], others: [$($other:path,)*], }, $generator:ident) => {{
        let mut kinds = Vec::new();
        $(
            $generator.subschema_for::<$kind>();
            kinds.push(Kind {
                group: <$kind as k8s_openapi::Resource>::GROUP,
                version: <$kind as k8s_openapi::Resource>::VERSION,
                kind: <$kind as k8s_openapi::Resource>::KIND,
                list_kind: $list,
                definition: <$kind as schemars::JsonSchema>::schema_name().into_owned(),
            });
        )*
        $( $generator.subschema_for::<$other>(); )*
        kinds
    }};
}

/// Markers of one definition (key `.`) and of its fields: list of (marker, value).
type Markers = BTreeMap<String, BTreeMap<String, Vec<(String, String)>>>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=facts");
    // The published document, then by hand what the version served has on top of it.
    let mut markers = Markers::new();
    for file in ["facts/markers.tsv", "facts/markers-1.37.tsv"] {
        read_markers(&std::fs::read_to_string(file).expect(file), &mut markers);
    }

    let mut generator = SchemaSettings::draft2019_09()
        .with(|settings| settings.definitions_path = "/definitions".into())
        .into_generator();
    let kinds = gather_kinds(&mut generator);
    let mut definitions: BTreeMap<String, Value> = generator.take_definitions(true).into_iter().collect();
    add_lists(&mut definitions, &kinds);
    let metrics = std::fs::read_to_string("facts/metrics.json").expect("facts/metrics.json");
    definitions.extend(serde_json::from_str::<BTreeMap<String, Value>>(&metrics).expect("metrics.json is JSON"));
    for (name, definition) in &mut definitions {
        mark(name, definition, &markers, &kinds);
    }

    let structure = structure(&definitions);
    let out = std::env::var("OUT_DIR").expect("OUT_DIR");
    let text = serde_json::to_vec(&definitions).expect("definitions are JSON");
    // The lengths let the crate allocate exactly what it decompresses into.
    println!("cargo::rustc-env=GANTRY_STRUCTURE_BYTES={}", structure.len());
    println!("cargo::rustc-env=GANTRY_DEFINITIONS_BYTES={}", text.len());
    write_compressed(&Path::new(&out).join("structure.tsv.zst"), structure.as_bytes());
    write_compressed(&Path::new(&out).join("definitions.json.zst"), &text);
    let facts = std::fs::read_to_string("facts/protobuf.tsv").expect("facts/protobuf.tsv");
    std::fs::write(Path::new(&out).join("protobuf.rs"), protobuf::source(&facts)).expect("OUT_DIR is writable");
}

fn gather_kinds(generator: &mut schemars::SchemaGenerator) -> Vec<Kind> {
    include!("facts/gather.rs.in")
}

fn write_compressed(path: &Path, bytes: &[u8]) {
    let compressed = zstd::bulk::compress(bytes, 19).expect("zstd");
    std::fs::write(path, compressed).expect("OUT_DIR is writable");
}

fn read_markers(text: &str, markers: &mut Markers) {
    for line in text.lines() {
        let mut columns = line.split('\t');
        let (Some(name), Some(field)) = (columns.next(), columns.next()) else {
            panic!("markers.tsv: line without a field: {line}");
        };
        let list = columns
            .map(|column| {
                let (key, value) = column.split_once('=').expect("marker=value");
                (key.to_owned(), value.to_owned())
            })
            .collect();
        markers.entry(name.to_owned()).or_default().insert(field.to_owned(), list);
    }
}

/// k8s-openapi has one generic list type; the API has one list kind per kind.
fn add_lists(definitions: &mut BTreeMap<String, Value>, kinds: &[Kind]) {
    for kind in kinds.iter().filter(|kind| !kind.list_kind.is_empty()) {
        let package = kind.definition.rsplit_once('.').expect("qualified").0;
        let definition = json!({
            "description": format!("{} is a list of {}.", kind.list_kind, kind.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": definitions[&kind.definition]["properties"]["apiVersion"],
                "kind": definitions[&kind.definition]["properties"]["kind"],
                "metadata": {
                    "description": "Standard list metadata.",
                    "$ref": format!("#/definitions/{LIST_META}"),
                },
                "items": {
                    "description": format!("The {} objects.", kind.kind),
                    "type": "array",
                    "items": {"$ref": format!("#/definitions/{}", kind.definition)},
                },
            },
            "x-kubernetes-group-version-kind": [
                {"group": kind.group, "version": kind.version, "kind": kind.list_kind},
            ],
        });
        definitions.insert(format!("{package}.{}", kind.list_kind), definition);
    }
}

/// Brings a schema into the form of Kubernetes' published document and adds its markers.
fn mark(name: &str, definition: &mut Value, markers: &Markers, kinds: &[Kind]) {
    let object = definition.as_object_mut().expect("a definition is an object");
    match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => {
            object.remove("x-kubernetes-int-or-string");
            object.insert("type".into(), "string".into());
        }
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => {
            object.remove("x-kubernetes-int-or-string");
            object.insert("type".into(), "string".into());
            object.insert("format".into(), "int-or-string".into());
        }
        _ => {}
    }
    // The Rust types always have `metadata`; on the wire it may be absent.
    if let Some(required) = object.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|field| field != "metadata");
        if required.is_empty() {
            object.remove("required");
        }
    }
    let of_definition = markers.get(name);
    let own = of_definition.and_then(|fields| fields.get("."));
    let mut gvks = Vec::new();
    for (marker, value) in own.into_iter().flatten() {
        match marker.as_str() {
            "gvk" => {
                let parts: Vec<&str> = value.split('/').collect();
                let [group, version, kind] = parts[..] else { panic!("gvk {value}") };
                gvks.push(json!({"group": group, "version": version, "kind": kind}));
            }
            "map" => {
                object.insert("x-kubernetes-map-type".into(), value.as_str().into());
            }
            "unions" => {
                object.insert("x-kubernetes-unions".into(), serde_json::from_str(value).expect("unions"));
            }
            other => panic!("marker {other} on definition {name}"),
        }
    }
    if gvks.is_empty() {
        gvks.extend(
            kinds
                .iter()
                .filter(|kind| kind.definition == name)
                .map(|kind| json!({"group": kind.group, "version": kind.version, "kind": kind.kind})),
        );
    }
    if !gvks.is_empty() {
        object.insert("x-kubernetes-group-version-kind".into(), gvks.into());
    }
    let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for (field, list) in of_definition.into_iter().flatten() {
        // A sibling version may have had a field that this one has not.
        let Some(property) = properties.get_mut(field).and_then(Value::as_object_mut) else {
            continue;
        };
        for (marker, value) in list {
            let (key, value) = match marker.as_str() {
                "list" => ("x-kubernetes-list-type", Value::from(value.as_str())),
                "keys" => ("x-kubernetes-list-map-keys", value.split(',').collect()),
                "map" => ("x-kubernetes-map-type", value.as_str().into()),
                "patch" => ("x-kubernetes-patch-strategy", value.as_str().into()),
                "merge" => ("x-kubernetes-patch-merge-key", value.as_str().into()),
                "default" => ("default", serde_json::from_str(value).expect("default")),
                other => panic!("marker {other} on {name}.{field}"),
            };
            property.insert(key.into(), value);
        }
    }
}

/// The table without descriptions; see `src/schema/load.rs` for the format.
fn structure(definitions: &BTreeMap<String, Value>) -> String {
    let index: BTreeMap<&str, usize> = definitions.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut out = String::new();
    for (name, definition) in definitions {
        let object = definition.as_object().expect("object");
        let flags = match object.get("x-kubernetes-map-type").and_then(Value::as_str) {
            Some("atomic") => "a",
            _ => "",
        };
        let shape = if object.contains_key("properties") { "o".to_owned() } else { shape(name, object, &index) };
        let mut gvks: Vec<String> = Vec::new();
        for gvk in object.get("x-kubernetes-group-version-kind").and_then(Value::as_array).into_iter().flatten() {
            let part = |key: &str| gvk[key].as_str().expect("gvk part").to_owned();
            gvks.push(format!("{}/{}/{}", part("group"), part("version"), part("kind")));
        }
        writeln!(out, "D\t{name}\t{shape}\t{flags}\t{}", gvks.join(" ")).expect("String");
        let required: BTreeSet<&str> =
            object.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        for (field, property) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let property = property.as_object().expect("object");
            field_line(&mut out, field, property, required.contains(field.as_str()), &index);
        }
    }
    out
}

fn field_line(
    out: &mut String,
    field: &str,
    property: &Map<String, Value>,
    required: bool,
    index: &BTreeMap<&str, usize>,
) {
    let text = |key: &str| property.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut flags = String::new();
    if required {
        flags.push('r');
    }
    for strategy in text("x-kubernetes-patch-strategy").split(',') {
        match strategy {
            "merge" => flags.push('m'),
            "retainKeys" => flags.push('k'),
            "replace" => flags.push('p'),
            "" => {}
            other => panic!("patch strategy {other} of {field}"),
        }
    }
    if property.contains_key("$ref") {
        match text("x-kubernetes-map-type") {
            "atomic" => flags.push('a'),
            "granular" => flags.push('g'),
            _ => {}
        }
    }
    let default = property.get("default").map(Value::to_string).unwrap_or_default();
    let merge_key = text("x-kubernetes-patch-merge-key");
    writeln!(out, "F\t{field}\t{}\t{flags}\t{merge_key}\t{default}", shape("", property, index)).expect("String");
}

/// A type as a prefix code; see `src/schema/load.rs`.
fn shape(name: &str, schema: &Map<String, Value>, index: &BTreeMap<&str, usize>) -> String {
    let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = reference.strip_prefix("#/definitions/").expect("local reference");
        return format!("@{} ", index[target]);
    }
    if name == "io.k8s.apimachinery.pkg.api.resource.Quantity" {
        return "q".into();
    }
    let inner = |key: &str| shape("", schema[key].as_object().expect("schema"), index);
    match (text("type"), text("format")) {
        ("string", "int-or-string") => "p".into(),
        ("string", "byte") => "y".into(),
        // MicroTime and Time have the same schema and different syntax.
        ("string", "date-time") if name.ends_with("MicroTime") => "u".into(),
        ("string", "date-time") => "t".into(),
        ("string", _) => "s".into(),
        ("integer", "int32") => "i".into(),
        ("integer", _) => "l".into(),
        ("number", _) => "n".into(),
        ("boolean", _) => "b".into(),
        ("array", _) => match text("x-kubernetes-list-type") {
            "set" => format!("[s{}", inner("items")),
            "map" => {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().expect("keys");
                let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
                format!("[m{} {}", keys.join(","), inner("items"))
            }
            _ => format!("[a{}", inner("items")),
        },
        ("object", _) if schema.contains_key("additionalProperties") => {
            let granularity = if text("x-kubernetes-map-type") == "atomic" { 'a' } else { 'g' };
            format!("{{{granularity}{}", inner("additionalProperties"))
        }
        ("object", _) if matches!(name.rsplit('.').next(), Some("JSON" | "RawExtension" | "FieldsV1" | "Patch")) => {
            "x".into()
        }
        ("object" | "", _) if name.contains("JSONSchemaPropsOr") => "x".into(),
        // An object type without fields, such as an empty source; unknown fields in it are errors.
        ("object", _) => "e".into(),
        ("", _) => "x".into(),
        (other, format) => panic!("type {other} format {format} of {name}"),
    }
}
