//! Rules for the parts that claims, classes and slices share.

use crate::meta::expression::{Expression, Role};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::validate_label_key;
use crate::meta::{names, text};
use crate::storage::validate_driver_name;
use k8s_openapi::api::resource::v1::{DeviceSelector, DeviceTaint, DeviceToleration, OpaqueDeviceConfiguration};
use serde_json::Value;

const POOL_NAME_MAX: usize = 253;
/// Longest name of an attribute or capacity without its domain.
const ID_MAX: usize = 32;
const SELECTORS_MAX: usize = 32;
/// Longest CEL expression, and most bytes of a driver's parameters.
const TEXT_MAX: usize = 10 << 10;
const BINDING_CONDITIONS_MAX: usize = 4;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];
const OPERATORS: &[&str] = &["Equal", "Exists"];

/// Adds an error where there are too many items, else those of each item.
pub(super) fn each<T>(
    items: Option<&Vec<T>>,
    max: usize,
    path: &Path,
    errors: &mut ErrorList,
    mut check: impl FnMut(&T, &Path, &mut ErrorList),
) {
    let items = items.map(Vec::as_slice).unwrap_or_default();
    if items.len() > max {
        return errors.too_many(path, items.len(), max);
    }
    for (i, item) in items.iter().enumerate() {
        check(item, &path.index(i), errors);
    }
}

/// Adds an error for each item whose key is that of an item before it.
pub(super) fn unique<T>(items: Option<&Vec<T>>, key: impl Fn(&T) -> Value, path: &Path, errors: &mut ErrorList) {
    let mut seen: Vec<Value> = Vec::new();
    for (i, item) in items.into_iter().flatten().enumerate() {
        let key = key(item);
        if seen.contains(&key) {
            errors.duplicate(&path.index(i), key);
        } else {
            seen.push(key);
        }
    }
}

/// Adds the errors of a DNS label.
pub(super) fn validate_label(name: &str, path: &Path, errors: &mut ErrorList) {
    names::push_invalid(errors, path, name, &names::dns1123_label(name, false));
}

/// Adds the errors of a required name of a class.
pub(super) fn validate_class(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    names::push_invalid(errors, path, name, &names::dns1123_subdomain(name, false));
}

/// Adds the errors of a required name of a driver.
pub(super) fn validate_driver(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    validate_driver_name(name, path, errors);
}

/// Adds the errors of a pool's name: DNS subdomains with slashes between.
pub(super) fn validate_pool_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    if name.len() > POOL_NAME_MAX {
        errors.too_long(path, POOL_NAME_MAX);
    }
    for part in name.split('/') {
        names::push_invalid(errors, path, part, &names::dns1123_subdomain(part, false));
    }
}

fn validate_identifier(id: &str, path: &Path, errors: &mut ErrorList) {
    if id.len() > ID_MAX {
        errors.too_long(path, ID_MAX);
    }
    names::push_invalid(errors, path, id, &names::c_identifier(id));
}

/// Adds the errors of an attribute's or capacity's name, which may have a domain.
pub(super) fn validate_qualified_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [id] => validate_identifier(id, path, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid(path, "", "the domain must not be empty");
            } else {
                validate_driver(domain, path, errors);
            }
            if id.is_empty() {
                errors.invalid(path, "", "the name must not be empty");
            } else {
                validate_identifier(id, path, errors);
            }
        }
        _ => errors.invalid(path, name, "must not contain more than one slash"),
    }
}

/// Adds the errors of an attribute's name, which must have a domain.
pub(super) fn validate_full_name(name: &str, path: &Path, errors: &mut ErrorList) {
    validate_qualified_name(name, path, errors);
    if !name.contains('/') {
        errors.invalid(path, name, "a fully qualified name must be a domain and a name separated by a slash");
    }
}

/// Adds the errors of a raw JSON object; `max` bounds its bytes.
pub(super) fn validate_object(value: &Value, max: Option<usize>, path: &Path, errors: &mut ErrorList) {
    if value.is_null() {
        return errors.required(path, "");
    }
    if let Some(max) = max.filter(|max| value.to_string().len() > *max) {
        return errors.too_long(path, max);
    }
    if !value.is_object() {
        errors.invalid(path, "<value omitted>", "must be a valid JSON object");
    }
}

/// Adds the errors of a configuration for a driver; what is stored already may be longer.
pub(super) fn validate_config(
    opaque: Option<&OpaqueDeviceConfiguration>,
    stored: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let path = path.child("opaque");
    let Some(opaque) = opaque else { return errors.required(&path, "") };
    validate_driver(&opaque.driver, &path.child("driver"), errors);
    validate_object(&opaque.parameters.0, (!stored).then_some(TEXT_MAX), &path.child("parameters"), errors);
}

/// Adds the errors of selectors except of what is in their expressions.
pub(super) fn validate_selectors(
    list: Option<&Vec<DeviceSelector>>,
    stored: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    each(list, SELECTORS_MAX, path, errors, |s, path, errors| match &s.cel {
        None => errors.required(&path.child("cel"), ""),
        Some(cel) if !stored && cel.expression.len() > TEXT_MAX => {
            errors.too_long(&path.child("cel").child("expression"), TEXT_MAX);
        }
        Some(_) => {}
    });
}

/// The expressions of selectors.
pub(super) fn selector_expressions(list: Option<&Vec<DeviceSelector>>, path: &Path, out: &mut Vec<Expression>) {
    for (i, s) in list.into_iter().flatten().enumerate() {
        let Some(cel) = s.cel.as_ref().filter(|c| c.expression.len() <= TEXT_MAX) else { continue };
        out.push(Expression {
            path: path.index(i).child("cel").child("expression"),
            text: cel.expression.clone(),
            role: Role::DeviceSelector,
            params: false,
            authorizer: false,
            stored: false,
        });
    }
}

/// Adds the errors of a taint; `checked` is false where its effect was stored before.
pub(super) fn validate_taint(t: &DeviceTaint, checked: bool, path: &Path, errors: &mut ErrorList) {
    validate_label_key(&t.key, &path.child("key"), errors);
    let value = text(&t.value);
    names::push_invalid(errors, &path.child("value"), value, &names::label_value(value));
    let at = path.child("effect");
    if checked && t.effect.is_empty() {
        errors.required(&at, "");
    } else if checked && !EFFECTS.contains(&t.effect.as_str()) {
        errors.not_supported(&at, &t.effect, EFFECTS);
    }
}

/// Adds the errors of a toleration.
pub(super) fn validate_toleration(t: &DeviceToleration, path: &Path, errors: &mut ErrorList) {
    let (key, value, effect) = (text(&t.key), text(&t.value), text(&t.effect));
    if !key.is_empty() {
        validate_label_key(key, &path.child("key"), errors);
    }
    let at = path.child("value");
    match text(&t.operator) {
        "Exists" if !value.is_empty() => errors.invalid(&at, value, "must be empty for operator `Exists`"),
        "Exists" => {}
        "Equal" => names::push_invalid(errors, &at, value, &names::label_value(value)),
        "" => errors.required(&path.child("operator"), ""),
        other => errors.not_supported(&path.child("operator"), other, OPERATORS),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errors.not_supported(&path.child("effect"), effect, EFFECTS);
    }
}

/// Adds the errors of the conditions that hold back the binding of a pod.
pub(super) fn validate_binding(
    ready: Option<&Vec<String>>,
    failed: Option<&Vec<String>>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let (at_ready, at_failed) = (path.child("bindingConditions"), path.child("bindingFailureConditions"));
    for (list, at) in [(ready, &at_ready), (failed, &at_failed)] {
        each(list, BINDING_CONDITIONS_MAX, at, errors, |c, path, errors| validate_label_key(c, path, errors));
    }
    let string = |s: &String| Value::from(s.as_str());
    unique(ready, string, &at_ready, errors);
    unique(failed, string, &at_failed, errors);
    let (ready, failed) = (ready.map(Vec::as_slice).unwrap_or_default(), failed.map(Vec::as_slice).unwrap_or_default());
    for (i, c) in failed.iter().enumerate().filter(|(_, c)| ready.contains(c)) {
        let detail = "bindingFailureConditions must not overlap with bindingConditions";
        errors.invalid(&at_failed.index(i), c.as_str(), detail);
    }
    if ready.is_empty() && !failed.is_empty() {
        let detail = "bindingConditions are required to use bindingFailureConditions";
        errors.invalid(&at_ready, Value::Null, detail);
    }
    if failed.is_empty() && !ready.is_empty() {
        let detail = "bindingFailureConditions are required to use bindingConditions";
        errors.invalid(&at_failed, Value::Null, detail);
    }
}

/// Adds an error where preparation is skipped and its undoing is not.
pub(super) fn validate_skipped(operations: Option<&Vec<String>>, path: &Path, errors: &mut ErrorList) {
    let has = |name: &str| operations.is_some_and(|o| o.iter().any(|o| o == name));
    if has("NodePrepareResources") && !has("NodeUnprepareResources") && !has("*") {
        let detail = "NodePrepareResources cannot be skipped unless NodeUnprepareResources is also skipped";
        errors.invalid(path, serde_json::json!(operations), detail);
    }
}

/// Adds the errors of a unique id in its usual form.
pub(super) fn validate_uid(uid: &str, path: &Path, errors: &mut ErrorList) {
    let bytes = uid.as_bytes();
    let shaped = bytes.len() == 36
        && bytes.iter().enumerate().all(
            |(i, c)| {
                if matches!(i, 8 | 13 | 18 | 23) { *c == b'-' } else { c.is_ascii_hexdigit() }
            },
        );
    if !shaped {
        let detail = format!("error validating uid: invalid UUID length: {}", uid.len());
        let detail = if bytes.len() == 36 { "error validating uid: invalid UUID format" } else { &detail };
        errors.invalid(path, uid, detail);
    } else if uid.bytes().any(|c| c.is_ascii_uppercase()) {
        let detail = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase \
                      hexadecimal characters";
        errors.invalid(path, uid, detail);
    }
}
