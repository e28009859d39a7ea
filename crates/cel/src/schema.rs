//! Types and values from OpenAPI schemas: how Kubernetes shows JSON to expressions.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine;
use gantry_api::meta::expression::is_reserved;
use serde_json::Value as Json;

use crate::cost::{Node, SizeHints, SizeRange};
use crate::decls::TypeProvider;
use crate::json::JsonView;
use crate::time::{Duration, Timestamp};
use crate::types::Type;
use crate::value::{EvalError, Key, List, ListKind, ListView, Map, MapView, Value};

/// The largest request, in octets; bounds everything that has no bound of its own.
const MAX_REQUEST: u64 = 3 * 1024 * 1024;
/// The most octets of a duration's text, and of a point in time's.
const MAX_DURATION: u64 = 32;
/// The octets of a date's text.
const DATE: u64 = 12;

/// The name by which expressions refer to a field, `None` when they cannot.
#[must_use]
pub fn escape(name: &str) -> Option<Cow<'_, str>> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if is_reserved(name) {
        return Some(Cow::Owned(format!("__{name}__")));
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b)) {
        return None;
    }
    if !name.contains("__") && !name.contains(['-', '.', '/']) {
        return Some(Cow::Borrowed(name));
    }
    let escaped = name
        .replace("__", "\0")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
        .replace('\0', "__underscores__");
    Some(Cow::Owned(escaped))
}

/// The field that an expression's name means, `None` when it means none.
#[must_use]
pub fn unescape(name: &str) -> Option<Cow<'_, str>> {
    if !name.contains("__") {
        return Some(Cow::Borrowed(name));
    }
    let mut out = String::new();
    let mut rest = name;
    while let Some(start) = rest.find("__") {
        let after = &rest[start + 2..];
        let Some(end) = after.find('_').filter(|end| *end > 0 && after[*end..].starts_with("__")) else {
            // Underscores that open nothing stay.
            let keep = start + 1;
            out.push_str(&rest[..keep]);
            rest = &rest[keep..];
            continue;
        };
        let word = &after[..end];
        out.push_str(&rest[..start]);
        match word {
            "underscores" => out.push_str("__"),
            "dot" => out.push('.'),
            "dash" => out.push('-'),
            "slash" => out.push('/'),
            // Reserved words are escaped only as a whole.
            _ if is_reserved(word) && word.len() + 4 == name.len() => out.push_str(word),
            _ => return None,
        }
        rest = &after[end + 2..];
    }
    out.push_str(rest);
    Some(Cow::Owned(out))
}

/// The schema of a value, as far as expressions see it.
#[derive(Clone, Debug)]
pub struct Schema {
    shape: Shape,
    nullable: bool,
    /// The most code points, octets, elements or entries.
    max_size: u64,
    /// The fewest octets that a value takes in a request.
    min_octets: u64,
}

#[derive(Clone, Debug)]
enum Shape {
    Bool,
    Int,
    Double,
    String,
    Bytes,
    Duration,
    Date,
    DateTime,
    IntOrString,
    List {
        items: Arc<Schema>,
        kind: ListKind,
    },
    Map {
        values: Arc<Schema>,
    },
    Object {
        name: Arc<str>,
        fields: BTreeMap<String, Arc<Schema>>,
    },
    /// Something that is kept, but that expressions can only compare.
    Preserved,
}

fn flag(schema: &Json, name: &str) -> bool {
    schema.get(name).and_then(Json::as_bool).unwrap_or(false)
}

fn number(schema: &Json, name: &str) -> Option<u64> {
    let value = schema.get(name)?;
    value.as_u64().or_else(|| value.as_i64().map(|_| 0))
}

impl Schema {
    /// Reads a structural OpenAPI v3 schema. `name` is the name of its type; types within are named after their path.
    /// The schema of a `resource` has `kind`, `apiVersion` and the name even if they are not declared. `None` when
    /// expressions cannot see such values.
    #[must_use]
    pub fn from_openapi(schema: &Json, name: &str, resource: bool) -> Option<Schema> {
        let nullable = flag(schema, "nullable");
        let new = |shape, max_size, min_octets| Some(Schema { shape, nullable, max_size, min_octets });
        let max_length = number(schema, "maxLength");
        if flag(schema, "x-kubernetes-int-or-string") {
            let max = max_length.map_or(MAX_REQUEST - 2, |max| max.saturating_mul(4));
            return new(Shape::IntOrString, max, 1);
        }
        let text = |otherwise: u64| max_length.map_or(otherwise, |max| max.saturating_mul(4));
        match schema.get("type").and_then(Json::as_str) {
            Some("array") => {
                let items = schema.get("items")?;
                let resource = flag(items, "x-kubernetes-embedded-resource");
                let items = Schema::from_openapi(items, &format!("{name}.@idx"), resource)?;
                let max = number(schema, "maxItems").unwrap_or((MAX_REQUEST - 2) / (items.min_octets + 1));
                new(Shape::List { items: Arc::new(items), kind: list_kind(schema) }, max, 2)
            }
            Some("object") => Schema::object(schema, name, resource, nullable),
            Some("string") => match schema.get("format").and_then(Json::as_str) {
                Some("byte") => new(Shape::Bytes, max_length.unwrap_or(MAX_REQUEST - 2), 2),
                Some("duration") => new(Shape::Duration, MAX_DURATION, 3),
                Some("date") => new(Shape::Date, DATE, DATE),
                Some("date-time") => new(Shape::DateTime, MAX_DURATION, 21),
                _ => {
                    let longest = schema.get("enum").and_then(Json::as_array).filter(|values| !values.is_empty());
                    let longest =
                        longest.map(|values| values.iter().filter_map(Json::as_str).map(str::len).max().unwrap_or(0));
                    let otherwise = longest.and_then(|max| u64::try_from(max).ok()).unwrap_or(MAX_REQUEST - 2);
                    new(Shape::String, text(otherwise), 2)
                }
            },
            // Numbers and truth values have no size; upstream counts a bound of zero.
            Some("boolean") => new(Shape::Bool, 0, 4),
            Some("number") => new(Shape::Double, 0, 1),
            Some("integer") => new(Shape::Int, 0, 1),
            _ => None,
        }
    }

    fn object(schema: &Json, name: &str, resource: bool, nullable: bool) -> Option<Schema> {
        if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
            let resource = flag(values, "x-kubernetes-embedded-resource");
            let values = Schema::from_openapi(values, &format!("{name}.@elem"), resource)?;
            let max = number(schema, "maxProperties").unwrap_or((MAX_REQUEST - 2) / (values.min_octets + 6));
            return Some(Schema {
                shape: Shape::Map { values: Arc::new(values) },
                nullable,
                max_size: max,
                min_octets: 2,
            });
        }
        let mut properties: BTreeMap<String, Json> = schema
            .get("properties")
            .and_then(Json::as_object)
            .map(|object| object.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
            .unwrap_or_default();
        if resource {
            add_resource_fields(&mut properties);
        }
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Json::as_array)
            .map(|names| names.iter().filter_map(Json::as_str).collect())
            .unwrap_or_default();
        let mut fields = BTreeMap::new();
        let mut min_octets = 2;
        for (field, property) in properties {
            let path = format!("{name}.{}", escape(&field).unwrap_or(Cow::Borrowed(&field)));
            let embedded = flag(&property, "x-kubernetes-embedded-resource");
            let Some(inner) = Schema::from_openapi(&property, &path, embedded) else {
                if flag(&property, "x-kubernetes-preserve-unknown-fields") {
                    fields.insert(field, Arc::new(Schema::preserved(flag(&property, "nullable"))));
                }
                continue;
            };
            if required.contains(&field.as_str()) && property.get("default").is_none() {
                min_octets += u64::try_from(field.len()).unwrap_or(0) + inner.min_octets + 4;
            }
            fields.insert(field, Arc::new(inner));
        }
        Some(Schema { shape: Shape::Object { name: name.into(), fields }, nullable, max_size: 0, min_octets })
    }

    /// The fewest octets that a value takes in a request.
    #[must_use]
    pub fn min_octets(&self) -> u64 {
        self.min_octets
    }

    fn preserved(nullable: bool) -> Schema {
        Schema { shape: Shape::Preserved, nullable, max_size: 0, min_octets: 0 }
    }

    /// The type that expressions see.
    #[must_use]
    pub fn cel_type(&self) -> Type {
        match &self.shape {
            Shape::Bool => Type::Bool,
            Shape::Int => Type::Int,
            Shape::Double => Type::Double,
            Shape::String => Type::String,
            Shape::Bytes => Type::Bytes,
            Shape::Duration => Type::Duration,
            Shape::Date | Shape::DateTime => Type::Timestamp,
            Shape::IntOrString | Shape::Preserved => Type::Dyn,
            Shape::List { items, .. } => Type::list(items.cel_type()),
            Shape::Map { values } => Type::map(Type::String, values.cel_type()),
            Shape::Object { name, .. } => Type::Object(name.clone()),
        }
    }

    /// The data as a value of this schema. Parts are looked at only when expressions get to them.
    ///
    /// # Errors
    /// When the data do not fit the schema.
    pub fn value(self: &Arc<Self>, data: JsonView) -> Result<Value, EvalError> {
        let wrong = |expected: &str| Err(EvalError::new(format!("invalid data, expected {expected}")));
        if data.is_null() {
            if self.nullable {
                return Ok(Value::Null);
            }
            return Err(EvalError::new("invalid data, got null for schema with nullable=false"));
        }
        let text = || data.as_str().ok_or_else(|| EvalError::new("invalid data, expected string"));
        Ok(match &self.shape {
            Shape::Bool => match data.as_bool() {
                Some(b) => Value::Bool(b),
                None => return wrong("bool"),
            },
            Shape::Int => match data.as_i64() {
                Some(i) => Value::Int(i),
                None => return wrong("int"),
            },
            Shape::Double => match data.as_f64() {
                Some(d) => Value::Double(d),
                None => return wrong("float"),
            },
            Shape::IntOrString => match (data.as_i64(), data.as_str()) {
                (Some(i), _) => Value::Int(i),
                (None, Some(s)) => Value::from(s),
                (None, None) => return wrong("XIntOrString value to be either a string or integer"),
            },
            Shape::String => Value::from(text()?),
            Shape::Bytes => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(text()?);
                let invalid =
                    |_| EvalError::new(format!("Invalid byte formatted string {}", text().unwrap_or_default()));
                Value::Bytes(decoded.map_err(invalid)?.into())
            }
            Shape::Duration => {
                let text = text()?;
                let parsed = Duration::parse(text);
                Value::Duration(parsed.ok_or_else(|| EvalError::new(format!("Invalid duration {text}")))?)
            }
            Shape::Date => {
                let text = text()?;
                let invalid = || EvalError::new(format!("Invalid date formatted string {text}"));
                Value::Timestamp(Timestamp::parse_date(text).ok_or_else(invalid)?)
            }
            Shape::DateTime => {
                let text = text()?;
                let invalid = || EvalError::new(format!("Invalid date-time formatted string {text}"));
                Value::Timestamp(Timestamp::parse(text).ok_or_else(invalid)?)
            }
            Shape::List { .. } if data.is_array() => {
                Value::List(List::View(Arc::new(Typed { data, schema: self.clone() })))
            }
            Shape::List { .. } => return wrong("an array for the provided schema with type=array"),
            Shape::Map { .. } | Shape::Object { .. } if data.is_object() => {
                Value::Map(Map::View(Arc::new(Typed { data, schema: self.clone() })))
            }
            Shape::Map { .. } | Shape::Object { .. } => {
                return wrong("a map for the provided schema with type=object");
            }
            Shape::Preserved => data.to_value(),
        })
    }

    fn collect(self: &Arc<Self>, into: &mut HashMap<Arc<str>, Arc<Schema>>) {
        match &self.shape {
            Shape::List { items, .. } => items.collect(into),
            Shape::Map { values } => values.collect(into),
            Shape::Object { name, fields } => {
                into.insert(name.clone(), self.clone());
                fields.values().for_each(|field| field.collect(into));
            }
            _ => {}
        }
    }

    fn field(&self, escaped: &str) -> Option<&Arc<Schema>> {
        let Shape::Object { fields, .. } = &self.shape else { return None };
        fields.get(&*unescape(escaped)?)
    }
}

fn add_resource_fields(properties: &mut BTreeMap<String, Json>) {
    let is = |schema: Option<&Json>, t: &str| schema.and_then(|s| s.get("type")).and_then(Json::as_str) == Some(t);
    let metadata = properties.get("metadata");
    let inner = |name: &str| metadata.and_then(|m| m.get("properties")).and_then(|p| p.get(name));
    let complete = is(properties.get("kind"), "string")
        && is(properties.get("apiVersion"), "string")
        && is(metadata, "object")
        && is(inner("name"), "string")
        && is(inner("generateName"), "string");
    if complete {
        return;
    }
    let text = serde_json::json!({"type": "string"});
    properties.insert("kind".into(), text.clone());
    properties.insert("apiVersion".into(), text.clone());
    properties.insert(
        "metadata".into(),
        serde_json::json!({"type": "object", "properties": {"name": text, "generateName": text}}),
    );
}

fn list_kind(schema: &Json) -> ListKind {
    match schema.get("x-kubernetes-list-type").and_then(Json::as_str) {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
            let names = keys.into_iter().flatten().filter_map(Json::as_str);
            ListKind::Map(names.map(|name| escape(name).map_or_else(|| name.to_owned(), Cow::into_owned)).collect())
        }
        _ => ListKind::Atomic,
    }
}

/// Data with their schema.
struct Typed {
    data: JsonView,
    schema: Arc<Schema>,
}

impl ListView for Typed {
    fn len(&self) -> usize {
        self.data.as_array().map_or(0, Vec::len)
    }

    fn get(&self, index: usize) -> Result<Value, EvalError> {
        let Shape::List { items, .. } = &self.schema.shape else { return Err(EvalError::no_such_overload()) };
        let element =
            self.data.element(index).ok_or_else(|| EvalError::new(format!("index out of bounds: {index}")))?;
        items.value(element)
    }

    fn kind(&self) -> ListKind {
        match &self.schema.shape {
            Shape::List { kind, .. } => kind.clone(),
            _ => ListKind::Atomic,
        }
    }
}

impl Typed {
    /// The data and the schema of an entry.
    fn entry(&self, name: &str) -> Option<(JsonView, &Arc<Schema>)> {
        match &self.schema.shape {
            Shape::Map { values } => Some((self.data.field(name)?, values)),
            Shape::Object { fields, .. } => {
                let name = unescape(name)?;
                let data = self.data.field(&name)?;
                // A field that is null is as good as absent.
                if data.is_null() { None } else { Some((data, fields.get(&*name)?)) }
            }
            _ => None,
        }
    }
}

impl MapView for Typed {
    fn len(&self) -> usize {
        self.data.as_object().map_or(0, serde_json::Map::len)
    }

    fn get(&self, key: &Key) -> Result<Option<Value>, EvalError> {
        let Some(name) = key.as_str() else { return Err(EvalError::no_such_overload()) };
        self.entry(name).map(|(data, schema)| schema.value(data)).transpose()
    }

    fn keys(&self) -> Vec<Key> {
        let names = self.data.as_object().into_iter().flat_map(|object| object.keys());
        match &self.schema.shape {
            Shape::Object { fields, .. } => names
                .filter(|name| fields.contains_key(*name))
                .map(|name| Key::String(escape(name).unwrap_or(Cow::Borrowed(name)).into()))
                .collect(),
            _ => names.map(|name| Key::String(name.as_str().into())).collect(),
        }
    }

    fn contains(&self, key: &Key) -> Result<bool, EvalError> {
        let Some(name) = key.as_str() else { return Err(EvalError::no_such_overload()) };
        Ok(self.entry(name).is_some())
    }
}

/// The message types of schemas, and the sizes that they allow for variables.
#[derive(Default)]
pub struct SchemaProvider {
    types: HashMap<Arc<str>, Arc<Schema>>,
    variables: HashMap<String, Arc<Schema>>,
}

impl SchemaProvider {
    /// No types.
    #[must_use]
    pub fn new() -> SchemaProvider {
        SchemaProvider::default()
    }

    /// With the types of a variable's schema.
    #[must_use]
    pub fn with(mut self, variable: &str, schema: &Arc<Schema>) -> SchemaProvider {
        schema.collect(&mut self.types);
        self.variables.insert(variable.to_owned(), schema.clone());
        self
    }
}

impl TypeProvider for SchemaProvider {
    fn find_type(&self, name: &str) -> Option<Type> {
        self.types.get(name).map(|schema| schema.cel_type())
    }

    fn find_field(&self, type_name: &str, field: &str) -> Option<Type> {
        let field = self.types.get(type_name)?.field(field)?;
        // What is only preserved has no name in expressions.
        (!matches!(field.shape, Shape::Preserved)).then(|| field.cel_type())
    }
}

impl SizeHints for SchemaProvider {
    fn size(&self, node: &Node<'_>) -> Option<SizeRange> {
        let (variable, path) = node.path.split_first()?;
        let mut schema = self.variables.get(variable)?;
        for (i, step) in path.iter().enumerate() {
            schema = match (step.as_str(), &schema.shape) {
                ("@items", Shape::List { items, .. }) => items,
                ("@values" | "@items", Shape::Map { values }) => values,
                // Keys have no bound of their own; upstream counts zero.
                ("@keys", Shape::Map { .. }) if i + 1 == path.len() => return Some(SizeRange { min: 0, max: 0 }),
                (field, Shape::Object { .. }) => schema.field(field)?,
                _ => return None,
            };
        }
        Some(SizeRange { min: 0, max: schema.max_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_back() {
        for (name, escaped) in [
            ("a", Some("a")),
            ("namespace", Some("__namespace__")),
            ("a.b", Some("a__dot__b")),
            ("a-b/c", Some("a__dash__b__slash__c")),
            ("a__b", Some("a__underscores__b")),
            ("a_b", Some("a_b")),
            ("1a", None),
            ("", None),
            ("a b", None),
        ] {
            assert_eq!(escape(name).as_deref(), escaped, "{name}");
            if let Some(escaped) = escaped {
                assert_eq!(unescape(escaped).as_deref(), Some(name));
            }
        }
        assert_eq!(unescape("a__nothing__b"), None);
    }
}
