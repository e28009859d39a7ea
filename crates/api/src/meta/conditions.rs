//! Rules for `metav1.Condition` lists.

use crate::meta::field::{ErrorList, Path};
use crate::meta::{labels, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Values of a condition's status, in the order messages list them.
pub const STATUSES: &[&str] = &["False", "True", "Unknown"];

/// Field errors of a list of conditions (`ValidateConditions`).
#[must_use]
pub fn validate_conditions(conditions: &[Condition], path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    for (i, c) in conditions.iter().enumerate() {
        let path = path.index(i);
        if conditions[..i].iter().any(|o| o.type_ == c.type_) {
            errors.duplicate(&path.child("type"), c.type_.as_str());
        }
        labels::validate_label_key(&c.type_, &path.child("type"), &mut errors);
        if !STATUSES.contains(&c.status.as_str()) {
            errors.not_supported(&path.child("status"), &c.status, STATUSES);
        }
        if let Some(g) = c.observed_generation.filter(|g| *g < 0) {
            errors.invalid(&path.child("observedGeneration"), g, "must be greater than or equal to zero");
        }
        validate_reason(&c.reason, &path.child("reason"), &mut errors);
        if c.message.len() > 32 * 1024 {
            errors.too_long(&path.child("message"), 32 * 1024);
        }
    }
    errors
}

fn validate_reason(reason: &str, path: &Path, errors: &mut ErrorList) {
    if reason.is_empty() {
        errors.required(path, "must be set");
        return;
    }
    let inner = |c: u8| c.is_ascii_alphanumeric() || b"_,:".contains(&c);
    let last = reason.as_bytes()[reason.len() - 1];
    let ok = reason.as_bytes()[0].is_ascii_alphabetic()
        && (last.is_ascii_alphanumeric() || last == b'_')
        && reason.bytes().all(inner);
    if !ok {
        let message = names::regex_error(
            "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric \
             characters or '_,:', and must end with an alphanumeric character or '_'",
            "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
            &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
        );
        errors.invalid(path, reason, &message);
    }
    if reason.len() > 1024 {
        errors.too_long(path, 1024);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_each_fault() {
        let good = Condition {
            type_: "Ready".into(),
            status: "True".into(),
            reason: "Up".into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: crate::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
        };
        assert!(validate_conditions(std::slice::from_ref(&good), &Path::new("c")).is_empty());
        let bad = Condition { status: "yes".into(), reason: String::new(), ..good.clone() };
        let texts: Vec<String> =
            validate_conditions(&[good, bad], &Path::new("c")).0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "c[1].type: Duplicate value: \"Ready\"",
                "c[1].status: Unsupported value: \"yes\": supported values: \"False\", \"True\", \"Unknown\"",
                "c[1].reason: Required value: must be set",
            ]
        );
    }
}
