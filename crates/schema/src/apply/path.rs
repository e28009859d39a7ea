//! Steps from a value to a value inside it, as field ownership names them.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

use crate::schema::{List, ListKind, Shape};

/// One step of a path. The order is the order of entries in `fieldsV1`.
#[derive(Debug, Clone)]
pub enum PathElement {
    /// A field of an object or a key of a map: `f:name`.
    Field(String),
    /// An item of a map list, by its keys sorted by name: `k:{"name":"a"}`.
    Key(Vec<(String, Value)>),
    /// An item of a set, by its value: `v:"a"`.
    Value(Value),
    /// An item by its place: `i:0`. Only read, never made: lists without keys are owned whole.
    Index(i64),
}

impl PathElement {
    /// Shorthand for a field step.
    pub fn field(name: &str) -> PathElement {
        PathElement::Field(name.to_owned())
    }

    /// The key of a `fieldsV1` member.
    pub(super) fn encode(&self) -> String {
        match self {
            // Without the machinery of `format!`: nearly all steps are fields, and every write has dozens.
            PathElement::Field(name) => ["f:", name].concat(),
            PathElement::Key(keys) => {
                let names = keys.iter().map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())));
                format!("k:{{{}}}", names.collect::<Vec<_>>().join(","))
            }
            PathElement::Value(value) => format!("v:{value}"),
            PathElement::Index(index) => format!("i:{index}"),
        }
    }

    /// Reads the key of a `fieldsV1` member; nothing for a kind of step this version does not know, which is skipped.
    pub(super) fn decode(text: &str) -> Result<Option<PathElement>, String> {
        if text.len() < 2 {
            return Err("key must be 2 characters long:".to_owned());
        }
        if text.as_bytes()[1] != b':' {
            return Err(format!("missing colon: {text}"));
        }
        let rest = &text[2..];
        match text.as_bytes()[0] {
            b'f' => Ok(Some(PathElement::Field(rest.to_owned()))),
            b'k' => match serde_json::from_str(rest) {
                Ok(Value::Object(map)) => Ok(Some(PathElement::Key(map.into_iter().collect()))),
                Ok(_) => Err(format!("expected an object of keys: {text}")),
                Err(error) => Err(error.to_string()),
            },
            b'v' => serde_json::from_str(rest).map(|value| Some(PathElement::Value(value))).map_err(|e| e.to_string()),
            b'i' => rest
                .parse()
                .map(|index| Some(PathElement::Index(index)))
                .map_err(|_| format!("strconv.Atoi: parsing {rest:?}: invalid syntax")),
            _ => Ok(None),
        }
    }

    /// The step to an item of a list.
    pub(super) fn of_item(list: List<'_>, item: &Value) -> Result<PathElement, String> {
        match list.kind {
            ListKind::Atomic => Err("invalid indexing of non-associative list".to_owned()),
            ListKind::Set => match item {
                Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
                Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
                scalar => Ok(PathElement::Value(scalar.clone())),
            },
            ListKind::Map(keys) => {
                let map = match item {
                    Value::Object(map) => map,
                    Value::Null => {
                        return Err("associative list with keys may not have a null element".to_owned());
                    }
                    _ => {
                        return Err("associative list with keys may not have non-map elements".to_owned());
                    }
                };
                let default = |key: &str| match list.items.shape() {
                    Shape::Object(object) => object.field(key).and_then(|field| field.default).cloned(),
                    _ => None,
                };
                let mut found: Vec<(String, Value)> = Vec::with_capacity(keys.len());
                for key in keys {
                    // A key that is absent and has no default is left out: that is an item of its own.
                    if let Some(value) = map.get(&**key).cloned().or_else(|| default(key)) {
                        found.push((key.to_string(), value));
                    }
                }
                if found.is_empty() {
                    let names: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                    return Err(format!(
                        "associative list with keys has an element that omits all key fields [{}] \
                         (and doesn't have default values for any key fields)",
                        names.join(" ")
                    ));
                }
                found.sort_by(|a, b| a.0.cmp(&b.0));
                Ok(PathElement::Key(found))
            }
        }
    }

    fn rank(&self) -> u8 {
        match self {
            PathElement::Field(_) => 0,
            PathElement::Key(_) => 1,
            PathElement::Value(_) => 2,
            PathElement::Index(_) => 3,
        }
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &PathElement) -> Ordering {
        match (self, other) {
            (PathElement::Field(a), PathElement::Field(b)) => a.cmp(b),
            (PathElement::Key(a), PathElement::Key(b)) => {
                for ((a_name, a_value), (b_name, b_value)) in a.iter().zip(b) {
                    let order = a_name.cmp(b_name).then_with(|| compare_values(a_value, b_value));
                    if order != Ordering::Equal {
                        return order;
                    }
                }
                a.len().cmp(&b.len())
            }
            (PathElement::Value(a), PathElement::Value(b)) => compare_values(a, b),
            (PathElement::Index(a), PathElement::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &PathElement) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &PathElement) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for PathElement {}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathElement::Field(name) => write!(f, ".{name}"),
            PathElement::Key(keys) => {
                let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "[{}]", keys.join(","))
            }
            PathElement::Value(value) => write!(f, "[={value}]"),
            PathElement::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A path as conflicts name it: `.spec.template.spec.containers[name="a"].image`.
pub(super) fn display(path: &[PathElement]) -> String {
    path.iter().map(PathElement::to_string).collect()
}

/// A total order of values: numbers (integers and floats alike), strings, booleans, lists, maps, null.
pub(super) fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().unwrap_or(f64::MAX).total_cmp(&b.as_f64().unwrap_or(f64::MAX)),
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let differing = a.iter().zip(b).map(|(a, b)| compare_values(a, b)).find(|order| order.is_ne());
            differing.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let differing = a
                .iter()
                .zip(b)
                .map(|((a_name, a), (b_name, b))| a_name.cmp(b_name).then_with(|| compare_values(a, b)))
                .find(|order| order.is_ne());
            differing.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Equality of values where `1` equals `1.0`.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    compare_values(a, b).is_eq()
}
