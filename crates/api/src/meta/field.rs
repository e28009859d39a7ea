//! Field paths and field errors with the wording of upstream's `field` package, which clients match.

use std::fmt;

/// A path to a field, e.g. `spec.containers[0].image`. Cheap to extend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(String);

const DIGITS: &str = "0123456789";

impl Path {
    /// A path of one field.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }
    /// `self.name`.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self([&self.0, ".", name].concat()) }
    }
    /// `self[index]`.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        // Without the machinery of `format!`: validation makes dozens of paths, nearly always for nothing.
        match index {
            0..10 => self.key(&DIGITS[index..=index]),
            _ => self.key(&index.to_string()),
        }
    }
    /// `self[key]`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self([&self.0, "[", key, "]"].concat())
    }
    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kind of a field error; its text is the `reason` of a status cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// A required value is missing (`FieldValueRequired`).
    Required,
    /// A malformed value (`FieldValueInvalid`).
    Invalid,
    /// Not one of the known values (`FieldValueNotSupported`).
    NotSupported,
    /// A value that may not be given here (`FieldValueForbidden`).
    Forbidden,
    /// A value that must be unique (`FieldValueDuplicate`).
    Duplicate,
    /// A value that refers to nothing (`FieldValueNotFound`).
    NotFound,
    /// Too long a string (`FieldValueTooLong`).
    TooLong,
    /// Too many items (`FieldValueTooMany`).
    TooMany,
    /// A value of the wrong type (`FieldValueTypeInvalid`).
    TypeInvalid,
    /// Something went wrong inside (`InternalError`).
    Internal,
}

impl ErrorType {
    /// The machine-readable reason in a status cause.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Invalid => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::TypeInvalid => "FieldValueTypeInvalid",
            ErrorType::Internal => "InternalError",
        }
    }
}

/// One field error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// What is wrong.
    pub r#type: ErrorType,
    /// Where.
    pub field: String,
    /// The text after the field, e.g. `Required value: must be set`.
    pub body: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body)
    }
}

/// Field errors in the order they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorList(pub Vec<FieldError>);

fn with_detail(head: String, detail: &str) -> String {
    if detail.is_empty() { head } else { format!("{head}: {detail}") }
}

impl ErrorList {
    fn add(&mut self, r#type: ErrorType, path: &Path, body: String) {
        self.0.push(FieldError { r#type, field: path.0.clone(), body });
    }
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Appends the errors of `other`.
    pub fn extend(&mut self, other: ErrorList) {
        self.0.extend(other.0);
    }
    /// `Required value: detail`.
    pub fn required(&mut self, path: &Path, detail: &str) {
        self.add(ErrorType::Required, path, with_detail("Required value".into(), detail));
    }
    /// `Invalid value: value: detail`; strings are quoted, other values print as JSON.
    pub fn invalid(&mut self, path: &Path, value: impl Into<serde_json::Value>, detail: &str) {
        let value = value.into();
        self.add(ErrorType::Invalid, path, with_detail(format!("Invalid value: {}", show(&value)), detail));
    }
    /// `Invalid value: detail`, where the value would tell nothing.
    pub fn invalid_unshown(&mut self, path: &Path, detail: &str) {
        self.add(ErrorType::Invalid, path, with_detail("Invalid value".into(), detail));
    }
    /// `Unsupported value: "v": supported values: "a", "b"`.
    pub fn not_supported(&mut self, path: &Path, value: &str, supported: &[&str]) {
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        let detail = if supported.is_empty() { String::new() } else { format!("supported values: {list}") };
        self.add(ErrorType::NotSupported, path, with_detail(format!("Unsupported value: {value:?}"), &detail));
    }
    /// `Forbidden: detail`.
    pub fn forbidden(&mut self, path: &Path, detail: &str) {
        self.add(ErrorType::Forbidden, path, with_detail("Forbidden".into(), detail));
    }
    /// `Duplicate value: value`.
    pub fn duplicate(&mut self, path: &Path, value: impl Into<serde_json::Value>) {
        let value = value.into();
        self.add(ErrorType::Duplicate, path, format!("Duplicate value: {}", show(&value)));
    }
    /// `Not found: value`.
    pub fn not_found(&mut self, path: &Path, value: impl Into<serde_json::Value>) {
        let value = value.into();
        self.add(ErrorType::NotFound, path, format!("Not found: {}", show(&value)));
    }
    /// `Too long: may not be more than n bytes`.
    pub fn too_long(&mut self, path: &Path, max: usize) {
        self.add(ErrorType::TooLong, path, format!("Too long: may not be more than {max} bytes"));
    }
    /// `Too many: n: must have at most m items`.
    pub fn too_many(&mut self, path: &Path, actual: usize, max: usize) {
        self.add(ErrorType::TooMany, path, format!("Too many: {actual}: must have at most {max} items"));
    }
    /// `Internal error: detail`.
    pub fn internal(&mut self, path: &Path, detail: &str) {
        self.add(ErrorType::Internal, path, with_detail("Internal error".into(), detail));
    }
}

fn show(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(s) => format!("{s:?}"),
        // A label selector, the one usual type whose fields are not in the order of their names.
        serde_json::Value::Object(fields) if fields.len() == 2 => {
            match (fields.get("matchLabels"), fields.get("matchExpressions")) {
                (Some(labels), Some(terms)) => format!("{{\"matchLabels\":{labels},\"matchExpressions\":{terms}}}"),
                _ => value.to_string(),
            }
        }
        other => other.to_string(),
    }
}
