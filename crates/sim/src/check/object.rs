//! Reading objects without their types.

use crate::log::World;
use gantry_api::meta::quantity::Amount;
use serde_json::Value;

pub(crate) fn text<'v>(object: &'v Value, path: &str) -> &'v str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn number(object: &Value, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or(0)
}

pub(crate) fn list<'v>(object: &'v Value, path: &str) -> impl Iterator<Item = &'v Value> + use<'v> {
    object.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

pub(crate) fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub(crate) fn annotation<'v>(object: &'v Value, name: &str) -> &'v str {
    object["metadata"]["annotations"][name].as_str().unwrap_or_default()
}

pub(crate) fn is_finished(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

pub(crate) fn is_going(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Neither finished nor on its way out.
pub(crate) fn is_active(pod: &Value) -> bool {
    !is_finished(pod) && !is_going(pod)
}

pub(crate) fn condition<'v>(object: &'v Value, kind: &str) -> Option<&'v Value> {
    list(object, "/status/conditions").find(|c| c["type"] == kind)
}

pub(crate) fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| c["status"] == "True")
}

pub(crate) fn is_ready(object: &Value) -> bool {
    is_true(object, "Ready")
}

/// Ready and not on its way out.
pub(crate) fn serves(pod: &Value) -> bool {
    is_ready(pod) && is_active(pod)
}

/// Whether a Job has come to its end.
pub(crate) fn is_over(job: &Value) -> bool {
    is_true(job, "Complete") || is_true(job, "Failed")
}

/// UID of the owner that controls the object, empty where there is none.
pub(crate) fn controller(object: &Value) -> &str {
    list(object, "/metadata/ownerReferences").find(|o| o["controller"] == true).map_or("", |o| text(o, "/uid"))
}

pub(crate) fn amount(of: &Value) -> Amount {
    of.as_str().and_then(|q| Amount::parse(q).ok()).unwrap_or(Amount::ZERO)
}

/// A number, or a percentage of `of`, rounded up or down.
pub(crate) fn scaled(value: &Value, of: i64, up: bool) -> i64 {
    match value.as_str().and_then(|s| s.strip_suffix('%')).and_then(|s| s.parse::<i64>().ok()) {
        Some(percent) if up => (percent * of + 99).div_euclid(100),
        Some(percent) => (percent * of).div_euclid(100),
        None => value.as_i64().unwrap_or(0),
    }
}

/// Whether the labels of `object` are what `selector` (of `matchLabels` alone) asks for.
pub(crate) fn selects(selector: &Value, object: &Value) -> bool {
    let labels = selector["matchLabels"].as_object();
    labels.is_some_and(|l| l.iter().all(|(k, v)| object["metadata"]["labels"][k.as_str()] == *v))
}

/// The objects of a resource in one namespace.
pub(crate) fn within<'w>(
    world: &'w World,
    resource: &str,
    namespace: &str,
) -> impl Iterator<Item = (&'w str, &'w Value)> + use<'w> {
    world.all(&format!("{resource}/{namespace}")).map(|(name, object)| (name, &**object))
}

/// The objects of a resource in one namespace that `owner` (a UID) controls.
pub(crate) fn controlled<'w>(
    world: &'w World,
    resource: &str,
    namespace: &str,
    owner: &'w str,
) -> impl Iterator<Item = &'w Value> + use<'w> {
    within(world, resource, namespace).map(|(_, o)| o).filter(move |o| controller(o) == owner)
}
