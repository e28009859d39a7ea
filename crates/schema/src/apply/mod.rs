//! Server-side apply: who owns which field, and merging of applied configurations.
//!
//! Every write leaves its trace in `metadata.managedFields`: one entry per manager, operation, version and subresource,
//! with the set of fields that manager set. [`FieldManager::update`] does this for creates, updates and patches;
//! [`FieldManager::apply`] merges an applied configuration: what it names is set, what it named last time and no longer
//! does goes when nobody else owns it, and what others own with another value is a conflict.
//!
//! ```
//! use gantry_schema::Definitions;
//! use gantry_schema::apply::{FieldManager, SingleVersion};
//! use serde_json::json;
//!
//! let manager = FieldManager {
//!     schema: Definitions::builtin().schema_for("", "v1", "ConfigMap").unwrap(),
//!     api_version: "v1",
//!     kind: "ConfigMap",
//!     subresource: "",
//!     reset_fields: None,
//!     versions: &SingleVersion,
//! };
//! let config = |data| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data});
//! let now = "2026-01-02T03:04:05Z";
//! let live = manager.apply(None, &config(json!({"a": "1", "b": "2"})), "one", false, now).unwrap().unwrap();
//! // Another manager may add, but not change.
//! let live = manager.apply(Some(live.clone()), &config(json!({"c": "3"})), "two", false, now).unwrap().unwrap();
//! let conflict = manager.apply(Some(live.clone()), &config(json!({"a": "9"})), "two", false, now).unwrap_err();
//! assert_eq!(conflict.to_string(), r#"Apply failed with 1 conflict: conflict with "one": .data.a"#);
//! // What the first no longer applies goes.
//! let live = manager.apply(Some(live.clone()), &config(json!({"a": "1"})), "one", false, now).unwrap().unwrap();
//! assert_eq!(live["data"], json!({"a": "1", "c": "3"}));
//! // Nothing comes of what is there already.
//! assert!(manager.apply(Some(live), &config(json!({"a": "1"})), "one", false, now).unwrap().is_none());
//! ```

mod covers;
mod managed;
mod manager;
mod path;
mod scale;
mod set;
#[cfg(test)]
mod tests;
mod typed;

use serde_json::Value;

use crate::schema::Schema;

pub use managed::UPDATE_MANAGERS_MAX;
pub use manager::{
    ApplyError, Conflict, FieldManager, LAST_APPLIED_ANNOTATION, SingleVersion, Versions, conflict_message,
};
pub use path::PathElement;
pub use scale::{SCALE_API_VERSION, owners_from_scale, owners_to_scale};
pub use set::FieldSet;
pub use typed::Comparison;

/// The paths a value has, as ownership counts them: leaves, items of keyed lists, map entries.
pub fn field_set(value: &Value, schema: Schema<'_>) -> FieldSet {
    typed::field_set(value, Some(schema))
}

/// How two values of a type differ.
pub fn compare(old: &Value, new: &Value, schema: Schema<'_>) -> Comparison {
    typed::compare(old, new, Some(schema))
}
