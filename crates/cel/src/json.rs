//! A part of a JSON document that keeps the whole document alive.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::value::{EvalError, Key, List, ListView, Map, MapView, Value};

/// A part of a JSON document. Cheap to clone; parts of it are views of the same document.
#[derive(Clone)]
pub struct JsonView {
    root: Arc<Json>,
    part: *const Json,
}

// SAFETY: the pointer leads into the immutable document that `root` shares, and JSON has no interior mutability.
unsafe impl Send for JsonView {}
// SAFETY: as for `Send`.
unsafe impl Sync for JsonView {}

impl JsonView {
    /// The whole document.
    #[must_use]
    pub fn new(root: Arc<Json>) -> JsonView {
        let part = Arc::as_ptr(&root);
        JsonView { root, part }
    }

    /// The part of this part that `find` selects.
    ///
    /// ```
    /// # use gantry_cel::JsonView;
    /// let view = JsonView::new(std::sync::Arc::new(serde_json::json!({"spec": {"replicas": 3}})));
    /// assert_eq!(*view.part(|json| json.pointer("/spec/replicas")).unwrap(), 3);
    /// ```
    #[must_use]
    pub fn part(&self, find: impl for<'a> FnOnce(&'a Json) -> Option<&'a Json>) -> Option<JsonView> {
        let part: *const Json = find(self)?;
        Some(JsonView { root: self.root.clone(), part })
    }

    /// The field of an object.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<JsonView> {
        let part: *const Json = Json::get(self, name)?;
        Some(JsonView { root: self.root.clone(), part })
    }

    /// The element of an array.
    #[must_use]
    pub fn element(&self, index: usize) -> Option<JsonView> {
        let part: *const Json = Json::get(self, index)?;
        Some(JsonView { root: self.root.clone(), part })
    }

    /// The part as a value without a schema: objects are maps, whole numbers are integers.
    #[must_use]
    pub fn to_value(&self) -> Value {
        match &**self {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(i), _) => Value::Int(i),
                (None, Some(d)) => Value::Double(d),
                (None, None) => Value::Null,
            },
            Json::String(s) => Value::from(s.as_str()),
            Json::Array(_) => Value::List(List::View(Arc::new(self.clone()))),
            Json::Object(_) => Value::Map(Map::View(Arc::new(self.clone()))),
        }
    }
}

impl Deref for JsonView {
    type Target = Json;

    fn deref(&self) -> &Json {
        // SAFETY: `part` was borrowed from `root` or from a part of it, and `root` lives as long as this view.
        unsafe { &*self.part }
    }
}

impl ListView for JsonView {
    fn len(&self) -> usize {
        self.as_array().map_or(0, Vec::len)
    }

    fn get(&self, index: usize) -> Result<Value, EvalError> {
        self.element(index)
            .map(|element| element.to_value())
            .ok_or_else(|| EvalError::new(format!("index out of bounds: {index}")))
    }
}

impl MapView for JsonView {
    fn len(&self) -> usize {
        self.as_object().map_or(0, serde_json::Map::len)
    }

    fn get(&self, key: &Key) -> Result<Option<Value>, EvalError> {
        Ok(key.as_str().and_then(|name| self.field(name)).map(|field| field.to_value()))
    }

    fn keys(&self) -> Vec<Key> {
        self.as_object().into_iter().flat_map(|object| object.keys()).map(|k| Key::String(k.as_str().into())).collect()
    }
}

impl Value {
    /// The value of a JSON document, viewed lazily and without a schema.
    #[must_use]
    pub fn from_json(document: Arc<Json>) -> Value {
        JsonView::new(document).to_value()
    }

    /// The value as JSON.
    ///
    /// # Errors
    /// When the value has no form in JSON, such as a type or a map with keys that are no strings.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        let unsupported = || EvalError::new(format!("type conversion error from '{}' to JSON", self.type_name()));
        Ok(match self {
            Value::Null | Value::Optional(None) => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(i) => Json::from(*i),
            Value::Uint(u) => Json::from(*u),
            Value::Double(d) => serde_json::Number::from_f64(*d).map(Json::Number).ok_or_else(unsupported)?,
            Value::String(s) => Json::String(s.to_string()),
            Value::Bytes(b) => {
                use base64::Engine;
                Json::String(base64::engine::general_purpose::STANDARD.encode(b))
            }
            Value::Timestamp(t) => Json::String(t.to_string()),
            Value::Duration(d) => Json::String(d.to_string()),
            Value::List(list) => {
                let items: Result<Vec<Json>, EvalError> = list.iter().map(|item| item?.to_json()).collect();
                Json::Array(items?)
            }
            Value::Map(map) => {
                let mut object = serde_json::Map::new();
                for key in map.keys() {
                    let Key::String(name) = &key else { return Err(unsupported()) };
                    if let Some(value) = map.get(&key)? {
                        object.insert(name.to_string(), value.to_json()?);
                    }
                }
                Json::Object(object)
            }
            Value::Optional(Some(inner)) => inner.to_json()?,
            Value::Object(_) => match self.downcast::<crate::library::jsonpatch::Constructed>() {
                Some(object) => object.to_json()?,
                None => return Err(unsupported()),
            },
            Value::Type(_) => return Err(unsupported()),
        })
    }
}

/// Entries with string keys.
impl FromIterator<(String, Value)> for Value {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(entries: I) -> Value {
        let entries: BTreeMap<Key, Value> =
            entries.into_iter().map(|(name, value)| (Key::String(name.into()), value)).collect();
        Value::map(entries)
    }
}
