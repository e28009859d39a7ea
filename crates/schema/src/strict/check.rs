//! The checks made while a body is read: declared fields, duplicates, types. A reader tells the checker where it is and
//! what it found; the checker holds the path and collects the complaints.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::Value;

use super::{DecodeError, Decoded, STRICT_ERRORS_MAX, literal};
use crate::schema::{Object, Rest, Scalar, Schema, Shape};

/// What a reader found where a value stands.
pub(super) enum Found<'v> {
    Null,
    Boolean,
    /// The number as written.
    Number(Cow<'v, str>),
    String(&'v str),
    Array,
    Object,
}

impl Found<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Found::Null => "null",
            Found::Boolean => "bool",
            Found::Number(_) => "number",
            Found::String(_) => "string",
            Found::Array => "array",
            Found::Object => "object",
        }
    }
}

/// Name of a value's type in error texts.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

enum Segment<'a> {
    /// A declared field, and the definition it belongs to.
    Field {
        name: &'a str,
        owner: &'a str,
    },
    /// A key of a map, or a field of something untyped.
    Key(String),
    Index(usize),
}

/// How the inside of a value is checked.
#[derive(Clone, Copy)]
pub(super) enum Inside<'a> {
    /// Fields and types by this object type.
    Object(Object<'a>),
    /// Items by this type.
    Items(Schema<'a>),
    /// Only duplicates: nothing is known of the type.
    Untyped,
    /// Nothing: the value is kept raw, or was already complained about.
    Skipped,
}

pub(super) struct Checker<'a> {
    path: Vec<Segment<'a>>,
    strict_errors: Vec<String>,
    seen: HashSet<String>,
    /// The first wins.
    type_error: Option<String>,
}

impl<'a> Checker<'a> {
    pub(super) fn new() -> Checker<'a> {
        Checker { path: Vec::new(), strict_errors: Vec::new(), seen: HashSet::new(), type_error: None }
    }

    pub(super) fn finish(self, value: Value) -> Result<Decoded, DecodeError> {
        match self.type_error {
            Some(error) => Err(DecodeError::Type(error)),
            None => Ok(Decoded { value, strict_errors: self.strict_errors }),
        }
    }

    /// Checks what was found against its type and says how to check what is in it.
    pub(super) fn found(&mut self, found: &Found<'_>, schema: Expected<'a>) -> Inside<'a> {
        let schema = match schema {
            Expected::Untyped => return Inside::Untyped,
            Expected::Skipped => return Inside::Skipped,
            Expected::Schema(schema) => schema,
        };
        match (schema.shape(), found) {
            (_, Found::Null) | (Shape::Any, _) => Inside::Skipped,
            (Shape::Object(object), Found::Object) => Inside::Object(object),
            (Shape::List(list), Found::Array) => Inside::Items(list.items),
            (Shape::Scalar(scalar), found) => {
                self.scalar(scalar, found);
                Inside::Skipped
            }
            _ => {
                self.mismatch(found.kind(), &go_type(schema));
                Inside::Skipped
            }
        }
    }

    /// Enters a field; `duplicate` when its object already has it. Every call is paired with [`Checker::leave`].
    pub(super) fn enter(&mut self, name: &str, inside: Inside<'a>, duplicate: bool) -> Expected<'a> {
        let (segment, expected) = match inside {
            Inside::Object(object) => match object.field(name) {
                Some(field) => {
                    let segment = Segment::Field { name: field.name, owner: object.name() };
                    (segment, Expected::Schema(field.schema))
                }
                None => {
                    let expected = match object.rest() {
                        Rest::Values(schema) => Expected::Schema(schema),
                        Rest::Any => Expected::Untyped,
                        Rest::Unknown => {
                            self.path.push(Segment::Key(name.to_owned()));
                            self.strict_error("unknown");
                            self.path.pop();
                            Expected::Skipped
                        }
                    };
                    (Segment::Key(name.to_owned()), expected)
                }
            },
            Inside::Untyped => (Segment::Key(name.to_owned()), Expected::Untyped),
            Inside::Items(_) | Inside::Skipped => (Segment::Key(String::new()), Expected::Skipped),
        };
        self.path.push(segment);
        if duplicate && !matches!(expected, Expected::Skipped) {
            self.strict_error("duplicate");
        }
        expected
    }

    /// Enters an item of a list. Every call is paired with [`Checker::leave`].
    pub(super) fn enter_item(&mut self, index: usize, inside: Inside<'a>) -> Expected<'a> {
        self.path.push(Segment::Index(index));
        match inside {
            Inside::Items(schema) => Expected::Schema(schema),
            Inside::Untyped => Expected::Untyped,
            Inside::Object(_) | Inside::Skipped => Expected::Skipped,
        }
    }

    pub(super) fn leave(&mut self) {
        self.path.pop();
    }

    /// Adds a complaint that has no field path (a duplicate key found by the YAML reader).
    pub(super) fn strict_text(&mut self, text: String) {
        if self.strict_errors.len() < STRICT_ERRORS_MAX && self.seen.insert(text.clone()) {
            self.strict_errors.push(text);
        }
    }

    fn strict_error(&mut self, kind: &str) {
        let mut path = String::new();
        for segment in &self.path {
            let name = match segment {
                Segment::Field { name, .. } => name,
                Segment::Key(name) => name.as_str(),
                Segment::Index(index) => {
                    path.push_str(&format!("[{index}]"));
                    continue;
                }
            };
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        }
        self.strict_text(format!("{kind} field \"{path}\""));
    }

    fn mismatch(&mut self, found: &str, expected: &str) {
        let owner = self.path.iter().rev().find_map(|segment| match segment {
            Segment::Field { owner, .. } => Some(*owner),
            _ => None,
        });
        let text = match owner {
            None => format!("json: cannot unmarshal {found} into Go value of type {expected}"),
            Some(owner) => {
                let fields: Vec<&str> = self
                    .path
                    .iter()
                    .filter_map(|segment| match segment {
                        Segment::Field { name, .. } => Some(*name),
                        _ => None,
                    })
                    .collect();
                let owner = owner.rsplit('.').next().unwrap_or_default();
                let fields = fields.join(".");
                format!("json: cannot unmarshal {found} into Go struct field {owner}.{fields} of type {expected}")
            }
        };
        self.type_error(text);
    }

    fn type_error(&mut self, text: String) {
        self.type_error.get_or_insert(text);
    }

    fn scalar(&mut self, scalar: Scalar, found: &Found<'_>) {
        match (scalar, found) {
            (Scalar::Int32, Found::Number(text)) if text.parse::<i32>().is_err() => {
                self.mismatch(&format!("number {text}"), "int32");
            }
            (Scalar::Int64, Found::Number(text)) if text.parse::<i64>().is_err() => {
                self.mismatch(&format!("number {text}"), "int64");
            }
            (Scalar::IntOrString, Found::Number(text)) if text.parse::<i32>().is_err() => {
                self.mismatch(&format!("number {text}"), "int32");
            }
            (Scalar::Bytes, Found::String(text)) => {
                if let Some(offset) = literal::base64_error(text) {
                    self.type_error(format!("illegal base64 data at input byte {offset}"));
                }
            }
            (Scalar::Time | Scalar::MicroTime, Found::String(text)) => {
                if let Err(error) = literal::check_time(text, scalar == Scalar::MicroTime) {
                    self.type_error(error);
                }
            }
            (Scalar::Quantity, Found::String(text)) => {
                if let Err(error) = literal::check_quantity(text) {
                    self.type_error(error.to_owned());
                }
            }
            (Scalar::Quantity, Found::Number(text)) => {
                if let Err(error) = literal::check_quantity(text) {
                    self.type_error(error.to_owned());
                }
            }
            (Scalar::Quantity, _) => self.type_error(literal::QUANTITY_FORMAT.to_owned()),
            (Scalar::String | Scalar::IntOrString, Found::String(_))
            | (Scalar::Int32 | Scalar::Int64 | Scalar::Number | Scalar::IntOrString, Found::Number(_))
            | (Scalar::Boolean, Found::Boolean) => {}
            (_, found) => self.mismatch(found.kind(), scalar_type(scalar)),
        }
    }
}

/// The type expected where a value stands.
#[derive(Clone, Copy)]
pub(super) enum Expected<'a> {
    Schema(Schema<'a>),
    Untyped,
    Skipped,
}

impl<'a> From<Option<Schema<'a>>> for Expected<'a> {
    fn from(schema: Option<Schema<'a>>) -> Expected<'a> {
        schema.map_or(Expected::Untyped, Expected::Schema)
    }
}

/// Runs the checks over a value already decoded.
pub(super) fn walk<'a>(value: &Value, schema: Option<Schema<'a>>, checker: &mut Checker<'a>) {
    walk_expected(value, schema.into(), checker);
}

fn walk_expected<'a>(value: &Value, expected: Expected<'a>, checker: &mut Checker<'a>) {
    if matches!(expected, Expected::Skipped | Expected::Untyped) {
        return;
    }
    let found = match value {
        Value::Null => Found::Null,
        Value::Bool(_) => Found::Boolean,
        Value::Number(number) => Found::Number(Cow::Owned(number.to_string())),
        Value::String(text) => Found::String(text),
        Value::Array(_) => Found::Array,
        Value::Object(_) => Found::Object,
    };
    let inside = checker.found(&found, expected);
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                let expected = checker.enter(name, inside, false);
                walk_expected(child, expected, checker);
                checker.leave();
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let expected = checker.enter_item(index, inside);
                walk_expected(item, expected, checker);
                checker.leave();
            }
        }
        _ => {}
    }
}

/// The name a type has in upstream's error texts.
fn go_type(schema: Schema<'_>) -> String {
    match schema.shape() {
        Shape::Any => "interface {}".to_owned(),
        Shape::Scalar(scalar) => match scalar {
            Scalar::Quantity => "resource.Quantity",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::IntOrString => "intstr.IntOrString",
            other => scalar_type(other),
        }
        .to_owned(),
        Shape::List(list) => format!("[]{}", go_type(list.items)),
        Shape::Object(object) => match (object.name(), object.rest()) {
            ("", Rest::Values(values)) => format!("map[string]{}", go_type(values)),
            (name, _) => {
                let mut parts = name.rsplit('.');
                let kind = parts.next().unwrap_or_default();
                format!("{}.{kind}", parts.next().unwrap_or_default())
            }
        },
    }
}

fn scalar_type(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::String | Scalar::Quantity | Scalar::Time | Scalar::MicroTime => "string",
        Scalar::Bytes => "[]uint8",
        Scalar::Int32 | Scalar::IntOrString => "int32",
        Scalar::Int64 => "int64",
        Scalar::Number => "float64",
        Scalar::Boolean => "bool",
    }
}
