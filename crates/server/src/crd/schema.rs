//! The schema of one version of a custom resource, read once: what pruning, defaulting and validation walk along.

use gantry_api::meta::regex;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, OnceLock};

/// How the elements of a list are told apart.
#[derive(Debug, Default, PartialEq)]
pub enum ListType {
    /// The list is one value.
    #[default]
    Atomic,
    /// Elements occur once.
    Set,
    /// Objects with these keys.
    Map(Vec<String>),
}

/// What fields besides the declared ones are.
#[derive(Debug, Default)]
pub enum Additional {
    /// Nothing is said of them.
    #[default]
    Unsaid,
    /// `true`.
    Any,
    /// `false`.
    None,
    /// Values of this schema.
    Values(Arc<Node>),
}

/// A regular expression, compiled when it is first needed: compiled ones are large, and most are never asked.
#[derive(Debug)]
pub struct Pattern {
    /// The text.
    pub text: String,
    compiled: OnceLock<Result<Arc<::regex::Regex>, String>>,
}

impl Pattern {
    /// What it compiles to; the error where it is none.
    pub fn regex(&self) -> &Result<Arc<::regex::Regex>, String> {
        self.compiled.get_or_init(|| regex::compile(&self.text))
    }
}

/// What restricts values further than to a type. Few schemas have any.
#[derive(Debug, Default)]
pub struct Limits {
    /// Bounds of numbers, and whether each bound itself is outside.
    pub maximum: Option<f64>,
    /// See `maximum`.
    pub exclusive_maximum: bool,
    /// See `maximum`.
    pub minimum: Option<f64>,
    /// See `maximum`.
    pub exclusive_minimum: bool,
    /// What a number divides by.
    pub multiple_of: Option<f64>,
    /// Most code points.
    pub max_length: Option<i64>,
    /// Fewest code points.
    pub min_length: Option<i64>,
    /// What a string matches.
    pub pattern: Option<Pattern>,
    /// Most elements.
    pub max_items: Option<i64>,
    /// Fewest elements.
    pub min_items: Option<i64>,
    /// Whether elements occur once.
    pub unique_items: bool,
    /// Most fields.
    pub max_properties: Option<i64>,
    /// Fewest fields.
    pub min_properties: Option<i64>,
    /// The values there are.
    pub enumeration: Vec<Value>,
    /// All must hold.
    pub all_of: Vec<Node>,
    /// One must hold.
    pub any_of: Vec<Node>,
    /// Exactly one must hold.
    pub one_of: Vec<Node>,
    /// Must not hold.
    pub not: Option<Box<Node>>,
}

static UNLIMITED: LazyLock<Arc<Limits>> = LazyLock::new(Arc::default);

/// One schema. There are tens of thousands of them in a large cluster.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent markers of the schema")]
pub struct Node {
    /// Types a value may have; empty for any.
    pub types: &'static [&'static str],
    /// The format, empty where none is known.
    pub format: &'static str,
    /// Whether null is a value.
    pub nullable: bool,
    /// Further restrictions.
    pub limits: Arc<Limits>,
    /// Fields there must be.
    pub required: Box<[String]>,
    /// Declared fields.
    pub properties: BTreeMap<String, Arc<Node>>,
    /// Other fields.
    pub additional: Additional,
    /// Elements of a list.
    pub items: Option<Arc<Node>>,
    /// The value of an absent field.
    pub default: Option<Box<Value>>,
    /// Whether unknown fields are kept.
    pub preserve: bool,
    /// Whether the value is an object with apiVersion, kind and metadata.
    pub embedded: bool,
    /// How elements of a list are told apart.
    pub list_type: ListType,
    /// Whether an object is one value.
    pub atomic_map: bool,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            types: &[],
            format: "",
            nullable: false,
            limits: UNLIMITED.clone(),
            required: Box::default(),
            properties: BTreeMap::new(),
            additional: Additional::default(),
            items: None,
            default: None,
            preserve: false,
            embedded: false,
            list_type: ListType::default(),
            atomic_map: false,
        }
    }
}

/// What restricts values besides their type.
const LIMITING: [&str; 16] = [
    "maximum",
    "minimum",
    "multipleOf",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "maxProperties",
    "minProperties",
    "enum",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
];

impl Limits {
    fn read(s: &Map<String, Value>) -> Arc<Limits> {
        if !LIMITING.iter().any(|key| s.contains_key(*key)) {
            return UNLIMITED.clone();
        }
        let number = |key: &str| s.get(key).and_then(Value::as_f64);
        let count = |key: &str| s.get(key).and_then(Value::as_i64);
        let pattern = text(s, "pattern");
        Arc::new(Limits {
            maximum: number("maximum"),
            exclusive_maximum: flag(s, "exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: flag(s, "exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            max_length: count("maxLength"),
            min_length: count("minLength"),
            pattern: (!pattern.is_empty()).then(|| Pattern { text: pattern.to_owned(), compiled: OnceLock::new() }),
            max_items: count("maxItems"),
            min_items: count("minItems"),
            unique_items: flag(s, "uniqueItems"),
            max_properties: count("maxProperties"),
            min_properties: count("minProperties"),
            enumeration: s.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            all_of: nodes(s, "allOf"),
            any_of: nodes(s, "anyOf"),
            one_of: nodes(s, "oneOf"),
            not: s.get("not").map(|n| Box::new(Node::read(n))),
        })
    }
}

/// The types of a value that a schema says to have this one. Others than OpenAPI's restrict nothing.
fn types_of(kind: &str) -> &'static [&'static str] {
    match kind {
        "array" => &["array"],
        "boolean" => &["boolean"],
        "integer" => &["integer"],
        "number" => &["number"],
        "object" => &["object"],
        "string" => &["string"],
        _ => &[],
    }
}

fn flag(s: &Map<String, Value>, key: &str) -> bool {
    s.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn text<'a>(s: &'a Map<String, Value>, key: &str) -> &'a str {
    s.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn strings(s: &Map<String, Value>, key: &str) -> Vec<String> {
    let list = s.get(key).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn nodes(s: &Map<String, Value>, key: &str) -> Vec<Node> {
    s.get(key).and_then(Value::as_array).into_iter().flatten().map(Node::read).collect()
}

/// The format of a kind of value; empty for those that mean nothing.
fn known_format(kind: &str, format: &str) -> &'static str {
    let numeric = |known: [&'static str; 2]| known.into_iter().find(|k| *k == format).unwrap_or_default();
    match kind {
        "integer" => numeric(["int32", "int64"]),
        "number" => numeric(["float", "double"]),
        "" | "string" => super::format::known(format).unwrap_or_default(),
        _ => "",
    }
}

impl Node {
    /// Reads a schema given as JSON. What is no schema restricts nothing.
    #[must_use]
    pub fn read(schema: &Value) -> Node {
        let Some(s) = schema.as_object() else { return Node::default() };
        let kind = text(s, "type");
        let int_or_string = flag(s, "x-kubernetes-int-or-string");
        let types: &'static [&'static str] = if int_or_string { &["integer", "string"] } else { types_of(kind) };
        let single = if types.len() == 1 { kind } else { "" };
        let properties = s.get("properties").and_then(Value::as_object).into_iter().flatten();
        Node {
            types,
            format: known_format(single, text(s, "format")),
            nullable: flag(s, "nullable"),
            limits: Limits::read(s),
            required: strings(s, "required").into_boxed_slice(),
            properties: properties.map(|(k, v)| (k.clone(), Arc::new(Node::read(v)))).collect(),
            additional: match s.get("additionalProperties") {
                None | Some(Value::Null) => Additional::Unsaid,
                Some(Value::Bool(false)) => Additional::None,
                Some(values @ Value::Object(_)) => Additional::Values(Arc::new(Node::read(values))),
                Some(_) => Additional::Any,
            },
            items: s.get("items").filter(|i| i.is_object()).map(|i| Arc::new(Node::read(i))),
            default: s.get("default").filter(|d| !d.is_null()).cloned().map(Box::new),
            preserve: flag(s, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(s, "x-kubernetes-embedded-resource"),
            list_type: match text(s, "x-kubernetes-list-type") {
                "set" => ListType::Set,
                "map" => ListType::Map(strings(s, "x-kubernetes-list-map-keys")),
                _ => ListType::Atomic,
            },
            atomic_map: text(s, "x-kubernetes-map-type") == "atomic",
        }
    }

    /// The schema of a field, declared or not.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Node> {
        match (self.properties.get(name), &self.additional) {
            (Some(node), _) | (None, Additional::Values(node)) => Some(node.as_ref()),
            _ => None,
        }
    }

    /// The element of `old` that is the same as `element` of a new list, where elements have an identity.
    #[must_use]
    pub fn same_element<'v>(&self, element: &Value, old: &'v Value) -> Option<&'v Value> {
        let ListType::Map(keys) = &self.list_type else { return None };
        let items = self.items.as_deref();
        let key = |v: &Value| -> Vec<Option<Value>> {
            let default = |k: &str| items.and_then(|i| i.properties.get(k)).and_then(|p| p.default.as_deref().cloned());
            keys.iter().map(|k| v.get(k).cloned().or_else(|| default(k))).collect()
        };
        let wanted = key(element);
        old.as_array()?.iter().find(|o| key(o) == wanted)
    }
}
