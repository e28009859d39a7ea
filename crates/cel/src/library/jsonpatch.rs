//! What mutating policies make: `JSONPatch{}` operations, and `Object{}` configurations to apply.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use super::{fail, mismatch};
use crate::decls::{Function, Overload, TypeProvider};
use crate::types::Type;
use crate::value::{EvalError, List, Map, Object, Value};

const PATCH: &str = "JSONPatch";
const OBJECT: &str = "Object";

/// An operation of RFC 6902.
#[derive(Clone, Debug)]
pub struct JsonPatch {
    /// `add`, `remove` and so on; not checked here.
    pub op: String,
    /// Where, as a JSON pointer.
    pub path: String,
    /// From where, for `move` and `copy`.
    pub from: String,
    /// What, where the operation has a value.
    pub value: Option<Value>,
}

impl Object for JsonPatch {
    fn type_name(&self) -> &str {
        PATCH
    }

    fn get(&self, field: &str) -> Result<Option<Value>, EvalError> {
        let set = |text: &str| (!text.is_empty()).then(|| Value::from(text));
        match field {
            "op" => Ok(set(&self.op)),
            "path" => Ok(set(&self.path)),
            "from" => Ok(set(&self.from)),
            "value" => Ok(self.value.clone()),
            _ => fail(format!("unsupported field: {field}")),
        }
    }

    fn equals(&self, other: &dyn Object) -> bool {
        let Some(other) = other.as_any().downcast_ref::<JsonPatch>() else { return false };
        let values = match (&self.value, &other.value) {
            (Some(a), Some(b)) => a.equals(b).unwrap_or(false),
            (None, None) => true,
            _ => false,
        };
        self.op == other.op && self.path == other.path && self.from == other.from && values
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An `Object{}`, or an `Object.spec{}` within one.
#[derive(Clone, Debug)]
pub struct Constructed {
    type_name: String,
    fields: BTreeMap<Arc<str>, Value>,
}

impl Object for Constructed {
    fn type_name(&self) -> &str {
        &self.type_name
    }

    fn get(&self, field: &str) -> Result<Option<Value>, EvalError> {
        Ok(self.fields.get(field).cloned())
    }

    fn equals(&self, other: &dyn Object) -> bool {
        let Some(other) = other.as_any().downcast_ref::<Constructed>() else { return false };
        self.type_name == other.type_name
            && self.fields.len() == other.fields.len()
            && self.fields.iter().zip(&other.fields).all(|((a, x), (b, y))| a == b && x.equals(y).unwrap_or(false))
    }

    fn is_zero(&self) -> bool {
        self.fields.is_empty()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Constructed {
    /// The object as JSON.
    ///
    /// # Errors
    /// When a value in it has no form in JSON.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        let mut object = serde_json::Map::new();
        for (name, value) in &self.fields {
            object.insert(name.to_string(), value.to_json()?);
        }
        Ok(Json::Object(object))
    }

    /// Checks that each object within is of the type that its place says: `Object.spec` in the field `spec` of
    /// `Object`.
    ///
    /// # Errors
    /// A line for each object that is of another type.
    pub fn check_type_names(&self) -> Result<(), EvalError> {
        let mut errors = Vec::new();
        check(self, &mut vec![self.type_name.clone()], &mut errors);
        if errors.is_empty() { Ok(()) } else { fail(errors.join("\n")) }
    }
}

fn check(object: &Constructed, path: &mut Vec<String>, errors: &mut Vec<String>) {
    let expected = path.join(".");
    if object.type_name != expected {
        errors.push(format!(
            "unexpected type name {:?}, expected {expected:?}, which matches field name path from root Object type",
            object.type_name
        ));
    }
    for (name, value) in &object.fields {
        path.push(name.to_string());
        check_value(value, path, errors);
        path.pop();
    }
}

fn check_value(value: &Value, path: &mut Vec<String>, errors: &mut Vec<String>) {
    match value {
        Value::Object(_) => {
            if let Some(inner) = value.downcast::<Constructed>() {
                check(inner, path, errors);
            }
        }
        Value::List(List::Items(items)) => items.iter().for_each(|item| check_value(item, path, errors)),
        Value::Map(Map::Entries(entries)) => entries.values().for_each(|item| check_value(item, path, errors)),
        _ => {}
    }
}

/// Knows `JSONPatch`, and `Object` with any fields under any name that starts with it.
pub(super) struct Provider;

fn is_object(name: &str) -> bool {
    name == OBJECT || name.starts_with("Object.")
}

impl TypeProvider for Provider {
    fn find_type(&self, name: &str) -> Option<Type> {
        (name == PATCH || is_object(name)).then(|| Type::object(name))
    }

    fn find_field(&self, type_name: &str, field: &str) -> Option<Type> {
        match field {
            _ if is_object(type_name) => Some(Type::Dyn),
            "op" | "from" | "path" => Some(Type::String),
            "value" => Some(Type::Dyn),
            _ => None,
        }
    }

    fn new_value(&self, type_name: &str, fields: Vec<(Arc<str>, Value)>) -> Result<Value, EvalError> {
        if is_object(type_name) {
            let fields = fields.into_iter().collect();
            return Ok(Value::object(Constructed { type_name: type_name.to_owned(), fields }));
        }
        let mut patch = JsonPatch { op: String::new(), path: String::new(), from: String::new(), value: None };
        for (name, value) in fields {
            let slot = match &*name {
                "op" => &mut patch.op,
                "path" => &mut patch.path,
                "from" => &mut patch.from,
                "value" => {
                    patch.value = Some(value);
                    continue;
                }
                _ => return fail(format!("unexpected JSONPatchType field: {name}")),
            };
            let Value::String(text) = &value else {
                let given = value.type_name();
                return fail(format!("unexpected type {given} for JSONPatchType '{name}' field"));
            };
            *slot = text.to_string();
        }
        Ok(Value::object(patch))
    }
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    let id = "string_jsonpatch_escapeKey_string";
    vec![Function::new(
        "jsonpatch.escapeKey",
        vec![Overload::global(id, vec![Type::String], Type::String, |args| match args {
            [Value::String(key)] => Ok(Value::from(key.replace('~', "~0").replace('/', "~1"))),
            _ => mismatch(),
        })],
    )]
}
