//! Decoding of request bodies: JSON or YAML to a [`Value`], with every complaint Kubernetes has about one.
//!
//! Three grades of complaint, as the API server knows them: a body that is no JSON ([`DecodeError::Syntax`]); a value of
//! the wrong type for the kind ([`DecodeError::Type`]); and, for `fieldValidation` `Warn` and `Strict`, unknown and
//! duplicate fields ([`Decoded::strict_errors`], one text each). Names are case-sensitive. A later duplicate wins.
//!
//! ```
//! use gantry_schema::{Definitions, strict};
//!
//! let schema = Definitions::builtin().schema_for("apps", "v1", "Deployment");
//! let body = br#"{"kind": "Deployment", "spec": {"replicas": 1, "replicas": 2, "foo": true}}"#;
//! let decoded = strict::decode_json(body, schema).unwrap();
//! assert_eq!(decoded.value["spec"]["replicas"], 2);
//! assert_eq!(
//!     strict::strict_error_message(&decoded.strict_errors),
//!     r#"strict decoding error: duplicate field "spec.replicas", unknown field "spec.foo""#,
//! );
//! let error = strict::decode_json(br#"{"spec": {"replicas": "3"}}"#, schema).unwrap_err();
//! assert_eq!(
//!     strict::cannot_be_handled("Deployment", "v1", "Deployment", &error.to_string()),
//!     "Deployment in version \"v1\" cannot be handled as a Deployment: \
//!      json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
//! );
//! ```

mod check;
mod json;
mod literal;
mod restore;
#[cfg(test)]
mod tests;
mod yaml;

use serde_json::Value;

use crate::schema::{Rest, Schema, Shape};
use check::Checker;

pub(crate) use check::kind_of;
pub use restore::restore_error;

/// Deepest nesting of objects and lists a body may have. The JSON readers of stored objects stop at 128 levels, and
/// the recursive walks over a value stay well inside a worker thread's stack.
pub const DEPTH_MAX: usize = 120;

/// Most unknown and duplicate fields that are reported for one body, as upstream.
pub const STRICT_ERRORS_MAX: usize = 100;

/// A decoded body.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The value as sent, unknown fields included.
    pub value: Value,
    /// Unknown and duplicate fields in order of appearance: `unknown field "spec.foo"`, `duplicate field "spec.bar"`.
    pub strict_errors: Vec<String>,
}

/// Why a body cannot be decoded. All are the client's fault (400).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or not YAML: `invalid character '}' looking for beginning of value`.
    #[error("{0}")]
    Syntax(String),
    /// A value of the wrong type: `json: cannot unmarshal string into Go struct field … of type int32`.
    #[error("{0}")]
    Type(String),
}

/// Decodes a JSON body. Without a schema (a custom resource decoded untyped) only syntax and duplicates are checked.
///
/// # Errors
/// A syntax error, or the first value of the wrong type.
pub fn decode_json(body: &[u8], schema: Option<Schema<'_>>) -> Result<Decoded, DecodeError> {
    let mut checker = Checker::new();
    let value = json::parse(body, schema, &mut checker)?;
    checker.finish(value)
}

/// Decodes a YAML body as the API server does: YAML 1.1 booleans and octal numbers, and the first document only.
///
/// # Errors
/// A syntax error, or the first value of the wrong type.
pub fn decode_yaml(body: &[u8], schema: Option<Schema<'_>>) -> Result<Decoded, DecodeError> {
    // What programs send as YAML is nearly always JSON.
    let mut checker = Checker::new();
    if let Some(value) = json::parse_as_yaml(body, schema, &mut checker) {
        return checker.finish(value);
    }
    let mut checker = Checker::new();
    let value = yaml::parse(body, schema, &mut checker)?;
    checker.finish(value)
}

/// Checks a value that was not decoded from one body, such as the result of a patch: its unknown fields.
///
/// # Errors
/// The first value of the wrong type, in the wording of decoding.
pub fn check(value: &Value, schema: Schema<'_>) -> Result<Vec<String>, DecodeError> {
    let mut checker = Checker::new();
    check::walk(value, Some(schema), &mut checker);
    checker.finish(Value::Null).map(|decoded| decoded.strict_errors)
}

/// Drops the fields the schema does not have, as decoding into a typed object (or the pruning of a custom resource)
/// does.
pub fn prune(value: &mut Value, schema: Schema<'_>) {
    match (value, schema.shape()) {
        (Value::Array(items), Shape::List(list)) => items.iter_mut().for_each(|item| prune(item, list.items)),
        (Value::Object(map), Shape::Object(object)) => {
            if matches!(object.rest(), Rest::Unknown) {
                map.retain(|name, _| object.field(name).is_some());
            }
            for (name, child) in map.iter_mut() {
                if let Some(schema) = object.child(name) {
                    prune(child, schema);
                }
            }
        }
        _ => {}
    }
}

/// The text of a `fieldValidation=Strict` failure.
pub fn strict_error_message(strict_errors: &[String]) -> String {
    format!("strict decoding error: {}", strict_errors.join(", "))
}

/// The text of the 400 for a body whose kind is known. `cause` is the text of a [`DecodeError`] or of
/// [`strict_error_message`].
pub fn cannot_be_handled(kind: &str, version: &str, into_kind: &str, cause: &str) -> String {
    format!("{kind} in version {version:?} cannot be handled as a {into_kind}: {cause}")
}

/// The text of the 400 for a body that does not say its kind, with the beginning of the body.
pub fn unrecognized(into_kind: &str, cause: &str, body: &[u8]) -> String {
    const SHOWN_BYTES: usize = 30;
    let shown = &body[..body.len().min(SHOWN_BYTES)];
    let text: String = match body.first() {
        None => "<empty>".to_owned(),
        // What may be JSON is shown as it is.
        Some(b'{') => String::from_utf8_lossy(shown).into_owned(),
        Some(_) => shown.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let more = if body.len() > SHOWN_BYTES { " ..." } else { "" };
    format!("the object provided is unrecognized (must be of type {into_kind}): {cause} ({text}{more})")
}

/// Why a body whose syntax is wrong (`error`, of [`decode_json`] or [`decode_yaml`]) does not say what it is.
#[must_use]
pub fn no_type_meta(error: &str, yaml: bool) -> String {
    if yaml { yaml_cause(error).to_owned() } else { format!("couldn't get version/kind; json parse error: {error}") }
}

/// The YAML reader's own words in an error of [`decode_yaml`].
#[must_use]
pub fn yaml_cause(error: &str) -> &str {
    error.strip_prefix(NOT_YAML).unwrap_or(error)
}

/// How an error begins where text that is no YAML was to be read.
const NOT_YAML: &str = "error converting YAML to JSON: ";

/// The value of a decoded `apiVersion` and `kind`, for choosing the schema before the whole body is decoded.
///
/// # Errors
/// A syntax error, or a body that is not an object, in the API server's words.
pub fn type_meta(body: &[u8], yaml: bool) -> Result<(String, String), DecodeError> {
    let decoded = if yaml { decode_yaml(body, None)? } else { decode_json(body, None)? };
    let part = |name: &str| match decoded.value.get(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(DecodeError::Type(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go struct field .{name} of type string",
            check::kind_of(other)
        ))),
    };
    if !decoded.value.is_object() && !decoded.value.is_null() {
        return Err(DecodeError::Type(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type \
             struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            check::kind_of(&decoded.value)
        )));
    }
    Ok((part("apiVersion")?, part("kind")?))
}
