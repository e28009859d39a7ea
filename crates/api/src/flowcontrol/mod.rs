//! The `flowcontrol.apiserver.k8s.io` API group: who waits when the server is busy.

pub mod defaults;
mod flow_schema;
mod priority_level;

use crate::meta::field::{ErrorList, ErrorType, FieldError, Path};
use serde_json::Value;

/// Adds an error for a value that is no text and none of the known.
fn not_supported(errors: &mut ErrorList, path: &Path, value: &Value, known: &[&str]) {
    let list = known.iter().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
    errors.0.push(FieldError {
        r#type: ErrorType::NotSupported,
        field: path.to_string(),
        body: format!("Unsupported value: {value}: supported values: {list}"),
    });
}

/// Adds the errors of conditions, given their types.
fn validate_conditions<'a>(types: impl Iterator<Item = &'a str>, errors: &mut ErrorList) {
    let mut seen = std::collections::BTreeSet::new();
    for (i, t) in types.enumerate() {
        let path = Path::new("status").child("conditions").index(i).child("type");
        if !seen.insert(t) {
            errors.duplicate(&path, t);
        }
        if t.is_empty() {
            errors.required(&path, "must not be empty");
        }
    }
}
