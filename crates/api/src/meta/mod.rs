//! What all kinds share: metadata rules, field errors, statuses, selectors, names, quantities, table cells.

pub mod conditions;
pub mod expression;
pub mod field;
pub mod fields;
pub(crate) mod json_fault;
pub mod labels;
pub mod names;
pub mod object;
pub mod quantity;
pub mod regex;
pub mod status;
pub mod table;
pub(crate) mod webhook;

/// The text of an optional string, empty where absent; the wire does not tell the two apart.
pub(crate) fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}
