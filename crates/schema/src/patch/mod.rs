//! The three patches that are computed from the patch and the current object alone (server-side apply is
//! [`crate::apply`]): JSON patch (RFC 6902), JSON merge patch (RFC 7386) and strategic merge patch.
//!
//! All leave the document as it is and return the patched one; checking the result against its type
//! ([`crate::strict::check`]) is the caller's part.
//!
//! ```
//! use gantry_schema::{Definitions, patch};
//! use serde_json::json;
//!
//! let pod = Definitions::builtin().schema_for("", "v1", "Pod").unwrap();
//! let live = json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}});
//! let change = br#"{"spec": {"containers": [{"name": "b", "image": "z"}, {"name": "a", "$patch": "delete"}]}}"#;
//! let patched = patch::strategic_merge_patch(&live, change, pod).unwrap();
//! assert_eq!(patched.value, json!({"spec": {"containers": [{"name": "b", "image": "z"}]}}));
//! ```

mod json;
mod list;
mod strategic;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

pub use json::{COPY_BYTES_MAX, OPERATIONS_MAX, json_patch};
pub use strategic::{merge as strategic_merge, strategic_merge_patch};

use crate::{go_text, strict};

/// A patched document.
#[derive(Debug, Clone, PartialEq)]
pub struct Patched {
    /// The document after the patch.
    pub value: Value,
    /// Duplicate and unknown fields of the patch body itself, for `fieldValidation` `Warn` and `Strict`.
    pub strict_errors: Vec<String>,
}

/// Why a patch cannot be applied. The display text is the message the client gets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is malformed: 400.
    #[error("{0}")]
    BadRequest(String),
    /// The patch does not fit the document: 422 with reason `Invalid`. Upstream does not tell the client why; `why` is
    /// for logs.
    #[error("the server rejected our request due to an error in our request")]
    Rejected {
        /// What did not fit: `testing value /spec/replicas failed: test failed`.
        why: String,
    },
    /// The patch asks for too much: 413.
    #[error("{0}")]
    TooLarge(String),
    /// An error upstream reports as 500 with this text, such as a list item without its merge key.
    #[error("{0}")]
    Internal(String),
}

/// Applies a JSON merge patch: objects merge, null removes, all else replaces.
///
/// # Errors
/// [`PatchError::BadRequest`] for a patch that is not a JSON object.
pub fn merge_patch(document: &Value, patch: &[u8]) -> Result<Patched, PatchError> {
    let decoded = strict::decode_json(patch, None).map_err(|_| no_json())?;
    let changes = match decoded.value {
        Value::Object(changes) => changes,
        Value::Null => return Err(PatchError::BadRequest("Invalid JSON Patch".to_owned())),
        other => return Err(PatchError::BadRequest(format!("error decoding patch: {}", no_map(&other)))),
    };
    let mut value = document.clone();
    merge_object(&mut value, changes);
    Ok(Patched { value, strict_errors: decoded.strict_errors })
}

/// A patch that is no JSON at all is refused before anything is done with it, so that audit events hold JSON.
fn no_json() -> PatchError {
    PatchError::BadRequest("invalid JSON patch".to_owned())
}

/// What is said of a patch that is another value than a map.
#[must_use]
pub fn no_map(found: &Value) -> String {
    format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", strict::kind_of(found))
}

/// A strategic merge patch as errors show it: a tree as Go prints it. Other patches are shown by what came of them.
#[must_use]
pub fn shown(patch: &[u8]) -> String {
    strict::decode_json(patch, None).map_or_else(|_| String::new(), |decoded| go_text::format(&decoded.value))
}

fn merge_object(target: &mut Value, changes: Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, change) in changes {
        match change {
            Value::Null => {
                target.remove(&name);
            }
            Value::Object(changes) => merge_object(target.entry(name).or_insert(Value::Null), changes),
            other => {
                target.insert(name, other);
            }
        }
    }
}
