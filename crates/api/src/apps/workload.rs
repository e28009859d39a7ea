//! Rules and table cells that all kinds with a pod template share.

use crate::core::pod::{canonicalize_pod_spec, validate_pod_template_spec};
use crate::kind::Column;
use crate::meta::field::{ErrorList, ErrorType, FieldError, Path};
use crate::meta::labels::Selector;
use crate::meta::names;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::{Value, json};

/// The name column.
pub const NAME: Column = Column {
    name: "Name",
    r#type: "string",
    format: "name",
    description: "Name must be unique within a namespace. Is required when creating resources.",
    priority: 0,
};
/// The age column.
pub const AGE: Column = column("Age", "string", "Time since the object was created.");
/// The columns of `-o wide`.
pub const CONTAINERS: Column = wide("Containers", "Names of each container in the template.");
/// See [`CONTAINERS`].
pub const IMAGES: Column = wide("Images", "Images referenced by each container in the template.");
/// See [`CONTAINERS`].
pub const SELECTOR: Column = wide("Selector", "Which pods belong to it.");

/// A column that is always shown.
#[must_use]
pub const fn column(name: &'static str, r#type: &'static str, description: &'static str) -> Column {
    Column { name, r#type, format: "", description, priority: 0 }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, r#type: "string", format: "", description, priority: 1 }
}

/// Cells of the container and image columns.
#[must_use]
pub fn container_cells(template: Option<&PodTemplateSpec>) -> [Value; 2] {
    let containers = template.and_then(|t| t.spec.as_ref()).map(|s| s.containers.as_slice()).unwrap_or_default();
    let join = |parts: Vec<&str>| Value::from(parts.join(","));
    [
        join(containers.iter().map(|c| c.name.as_str()).collect()),
        join(containers.iter().map(|c| c.image.as_deref().unwrap_or_default()).collect()),
    ]
}

/// Puts the quantities of a template in canonical form.
///
/// # Errors
/// The sentence for the first value that is no quantity.
pub fn canonicalize_template(template: Option<&mut PodTemplateSpec>) -> Result<(), String> {
    template.and_then(|t| t.spec.as_mut()).map_or(Ok(()), canonicalize_pod_spec)
}

/// Adds an error where `value` is below 0.
pub fn nonnegative(errors: &mut ErrorList, path: &Path, value: i64) {
    if value < 0 {
        errors.invalid(path, value, "must be greater than or equal to 0");
    }
}

/// Field errors of the template of a workload whose pods run for good. `kind` names it in messages.
pub fn validate_template(
    errors: &mut ErrorList,
    template: Option<&PodTemplateSpec>,
    selector: Option<&Selector>,
    kind: &str,
    path: &Path,
) {
    let Some(template) = template else {
        errors.required(path, "");
        return;
    };
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    if let Some(selector) = selector
        && !selector.is_empty()
        && !selector.matches_optional(labels)
    {
        let shown = labels.map_or(Value::Null, |l| json!(l));
        errors.invalid(&path.child("metadata").child("labels"), shown, "`selector` does not match template `labels`");
    }
    errors.extend(validate_pod_template_spec(template, path));
    validate_lasting(errors, template, kind, &path.child("spec"));
}

/// Adds the errors of a pod template, at `path` its spec, whose pods could end by themselves. `kind` names the workload.
pub fn validate_lasting(errors: &mut ErrorList, template: &PodTemplateSpec, kind: &str, path: &Path) {
    let Some(pod) = &template.spec else { return };
    let policy = pod.restart_policy.as_deref().unwrap_or_default();
    if policy != "Always" {
        errors.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if pod.active_deadline_seconds.is_some() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&path.child("activeDeadlineSeconds"), &detail);
    }
}

/// Whether the selector has no term.
#[must_use]
pub fn is_blank(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(|m| m.is_empty())
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// A struct as field errors show those that only the server knows: upstream prints its own names of the fields.
#[must_use]
pub fn shown_as(fields: &[(&str, Value)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// An update strategy as field errors show it.
#[must_use]
pub fn shown_strategy(strategy: &Value) -> String {
    let names = [("Partition", "partition"), ("MaxUnavailable", "maxUnavailable"), ("MaxSurge", "maxSurge")];
    let rolling = strategy.get("rollingUpdate").filter(|r| !r.is_null()).map_or_else(
        || "null".to_owned(),
        |r| {
            shown_as(&names.iter().filter_map(|(shown, name)| Some((*shown, r.get(name)?.clone()))).collect::<Vec<_>>())
        },
    );
    format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", strategy.get("type").unwrap_or(&Value::Null))
}

/// Adds `Invalid value: shown: detail` for a value that [`shown_as`] formatted.
pub fn invalid_shown(errors: &mut ErrorList, path: &Path, shown: &str, detail: &str) {
    errors.0.push(FieldError {
        r#type: ErrorType::Invalid,
        field: path.as_str().to_owned(),
        body: format!("Invalid value: {shown}: {detail}"),
    });
}

/// Adds the error of an update strategy whose type does not exist.
pub fn unknown_strategy(errors: &mut ErrorList, path: &Path, strategy: &Value, supported: &[&str]) {
    let known = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
    errors.0.push(FieldError {
        r#type: ErrorType::NotSupported,
        field: path.as_str().to_owned(),
        body: format!("Unsupported value: {}: supported values: {known}", shown_strategy(strategy)),
    });
}

/// Errors of a status whose counts must not be below 0 nor above one another.
pub fn validate_counts(errors: &mut ErrorList, counts: &[(&str, Option<i32>)], limits: &[(&str, &str, &str)]) {
    let status = Path::new("status");
    let of = |name: &str| counts.iter().find(|c| c.0 == name).and_then(|c| c.1).unwrap_or(0);
    for (name, value) in counts {
        nonnegative(errors, &status.child(name), i64::from(value.unwrap_or(0)));
    }
    for (name, limit, shown) in limits {
        if of(name) > of(limit) {
            errors.invalid(&status.child(name), of(name), &format!("cannot be greater than {shown}"));
        }
    }
}

/// Adds an error where a status lowers its collision count, or sets it below 0.
pub fn validate_collisions(errors: &mut ErrorList, new: Option<i32>, old: Option<i32>) {
    let path = Path::new("status").child("collisionCount");
    if let Some(old) = old
        && new.is_none_or(|n| n < old)
    {
        errors.invalid(&path, new.unwrap_or(0), "cannot be decremented");
    }
}

/// Warns where pods would get names that are no DNS labels.
#[must_use]
pub fn name_warnings(meta: &ObjectMeta) -> Vec<String> {
    let faults = names::dns1123_label(meta.name.as_deref().unwrap_or_default(), false);
    if faults.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is \
         recommended: [{}]",
        faults.join(" ")
    )]
}

/// Sets the generation of a changed object: one more than `old`'s where `changed`.
pub fn bump_generation(meta: &mut ObjectMeta, old: &ObjectMeta, changed: bool) {
    meta.generation = old.generation;
    if changed {
        meta.generation = Some(old.generation.unwrap_or(0) + 1);
    }
}
