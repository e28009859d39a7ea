//! Rules for a device of a slice.

use super::capacity::validate_capacity;
use super::parts::{each, unique, validate_binding, validate_label, validate_qualified_name, validate_taint};
use crate::core::pod::validate::placement::validate_node_selector;
use crate::core::pod::validate::resources::is_native;
use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use crate::meta::object::semantically_equal;
use crate::meta::quantity::Amount;
use k8s_openapi::api::resource::v1::{
    Counter, Device, DeviceAttribute, DeviceCounterConsumption, NodeAllocatableMapping, NodeAllocatableResource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use regex::Regex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

const ATTRIBUTES_AND_CAPACITIES_MAX: usize = 32;
const ATTRIBUTE_VALUES_MAX: usize = 48;
const ATTRIBUTE_VALUE_MAX: usize = 64;
const TAINTS_MAX: usize = 16;
const CONSUMPTIONS_MAX: usize = 2;
const COUNTERS_MAX: usize = 32;
/// Longest key shown whole: domain, slash and name.
const KEY_SHOWN: usize = 63 + 1 + 32;

static SEMVER: LazyLock<Regex> = LazyLock::new(|| {
    let number = r"(0|[1-9]\d*)";
    let pre = r"(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)";
    let build = "[0-9a-zA-Z-]+";
    Regex::new(&format!(r"^{number}\.{number}\.{number}(-{pre}(\.{pre})*)?(\+{build}(\.{build})*)?$"))
        .expect("the expression is constant")
});

/// The key with its middle left out where it is too long to show.
fn shown_key(key: &str, max: usize) -> String {
    if key.len() <= max || !key.is_ascii() {
        return key.to_owned();
    }
    let rest = max - 3;
    format!("{}...{}", &key[..rest.div_ceil(2)], &key[key.len() - rest / 2..])
}

fn sign(q: &Quantity) -> i32 {
    Amount::parse(&q.0).map_or(0, |a| a.sign())
}

fn list_lengths(a: &DeviceAttribute) -> [Option<usize>; 4] {
    [
        a.bools.as_ref().map(Vec::len),
        a.ints.as_ref().map(Vec::len),
        a.strings.as_ref().map(Vec::len),
        a.versions.as_ref().map(Vec::len),
    ]
}

/// Whether the device has an attribute with several values.
pub(super) fn has_list_attribute(d: &Device) -> bool {
    d.attributes.iter().flat_map(|m| m.values()).any(|a| list_lengths(a).iter().any(Option::is_some))
}

fn validate_attribute(a: &DeviceAttribute, path: &Path, errors: &mut ErrorList) {
    let text = |s: &str, path: &Path, version: bool, errors: &mut ErrorList| {
        if version && !SEMVER.is_match(s) {
            errors.invalid(path, s, "must be a string compatible with semver.org spec 2.0.0");
        }
        if s.len() > ATTRIBUTE_VALUE_MAX {
            errors.too_long(path, ATTRIBUTE_VALUE_MAX);
        }
    };
    if let Some(s) = &a.string {
        text(s, &path.child("string"), false, errors);
    }
    if let Some(v) = &a.version {
        text(v, &path.child("version"), true, errors);
    }
    for (field, length) in ["bools", "ints", "strings", "versions"].iter().zip(list_lengths(a)) {
        if length == Some(0) {
            errors.invalid(&path.child(field), json!([]), "must not be empty if specified");
        }
    }
    for (i, s) in a.strings.iter().flatten().enumerate() {
        text(s, &path.child("strings").index(i), false, errors);
    }
    for (i, v) in a.versions.iter().flatten().enumerate() {
        text(v, &path.child("versions").index(i), true, errors);
    }
    let scalars = [a.bool.is_some(), a.int.is_some(), a.string.is_some(), a.version.is_some()];
    let set = scalars.iter().filter(|s| **s).count() + list_lengths(a).iter().flatten().count();
    match set {
        0 => errors.invalid(path, "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid(path, json!(a), "exactly one value must be specified"),
    }
}

/// Adds the errors of counters, of which there must be some.
pub(super) fn validate_counters(counters: &BTreeMap<String, Counter>, path: &Path, errors: &mut ErrorList) {
    if counters.is_empty() {
        return errors.required(path, "");
    }
    if counters.len() > COUNTERS_MAX {
        return errors.too_many(path, counters.len(), COUNTERS_MAX);
    }
    for name in counters.keys() {
        validate_label(name, path, errors);
    }
}

fn validate_consumption(c: &DeviceCounterConsumption, path: &Path, errors: &mut ErrorList) {
    let at = path.child("counterSet");
    if c.counter_set.is_empty() {
        errors.required(&at, "");
    } else {
        validate_label(&c.counter_set, &at, errors);
    }
    validate_counters(&c.counters, &path.child("counters"), errors);
}

/// Adds the errors of the nodes that have the device.
fn validate_nodes(d: &Device, per_device: bool, path: &Path, errors: &mut ErrorList) {
    let any = d.node_name.is_some() || d.node_selector.is_some() || d.all_nodes.is_some();
    if !per_device {
        if any {
            let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is \
                set to \
                          true in the ResourceSlice spec";
            errors.invalid(path, "null", detail);
        }
        return;
    }
    let mut set = Vec::new();
    match d.node_name.as_deref() {
        None => {}
        Some("") => errors.invalid(&path.child("nodeName"), "", "must not be empty"),
        Some(name) => {
            set.push("`nodeName`");
            names::push_invalid(errors, &path.child("nodeName"), name, &names::dns1123_subdomain(name, false));
        }
    }
    if let Some(selector) = &d.node_selector {
        set.push("`nodeSelector`");
        validate_node_selector(selector, &path.child("nodeSelector"), errors);
    }
    match d.all_nodes {
        None => {}
        Some(true) => set.push("`allNodes`"),
        Some(false) => errors.invalid(&path.child("allNodes"), false, "must be either unset or set to true"),
    }
    let detail = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` \
        is set \
                  to true in the ResourceSlice spec";
    match set.len() {
        0 => errors.required(path, detail),
        1 => {}
        _ => errors.invalid(path, format!("{{{}}}", set.join(", ")), detail),
    }
}

fn validate_mapping(m: &NodeAllocatableMapping, d: &Device, path: &Path, errors: &mut ErrorList) {
    let (at_key, at_multiplier) = (path.child("capacityKey"), path.child("capacityMultiplier"));
    match m.capacity_key.as_deref() {
        Some("") => errors.invalid(&at_key, "", "capacityKey must not be an empty string"),
        Some(key) if !d.capacity.as_ref().is_some_and(|c| c.contains_key(key)) => errors.not_found(&at_key, key),
        _ => {}
    }
    match (&m.capacity_key, &m.capacity_multiplier) {
        (Some(_), None) => errors.required(&at_multiplier, "capacityMultiplier is required when capacityKey is set"),
        (Some(_), Some(q)) if sign(q) <= 0 => errors.invalid(&at_multiplier, q.0.as_str(), "must be positive"),
        _ => {}
    }
    if let Some(q) = m.device_multiplier.as_ref().filter(|q| sign(q) <= 0) {
        errors.invalid(&path.child("deviceMultiplier"), q.0.as_str(), "must be positive");
    }
    if m.capacity_multiplier.is_some() && m.capacity_key.is_none() {
        errors.required(&at_key, "capacityKey is required when capacityMultiplier is set");
    }
}

fn validate_allocatable(name: &str, r: &NodeAllocatableResource, d: &Device, path: &Path, errors: &mut ErrorList) {
    // What a node has of its own: no extended resource, no volumes of a cloud.
    if !is_native(name) || name.contains('/') || name.starts_with("attachable-volumes-") {
        errors.invalid(path, name, "must be a node allocatable resource name");
    }
    if r.mapping.is_none() && r.overhead.is_none() {
        errors.required(path, "at least one of mapping or overhead must be set");
    }
    if let Some(m) = &r.mapping {
        validate_mapping(m, d, &path.child("mapping"), errors);
    }
    if let Some(o) = &r.overhead {
        let path = path.child("overhead");
        if o.per_pod.is_none() && o.per_container.is_none() {
            errors.invalid(&path, "", "at least one of perPod or perContainer must be set");
        }
        for (field, q) in [("perPod", &o.per_pod), ("perContainer", &o.per_container)] {
            if let Some(q) = q.as_ref().filter(|q| sign(q) < 0) {
                errors.invalid(&path.child(field), q.0.as_str(), "must be non-negative");
            }
        }
    }
}

/// Adds the errors of a device; what the stored one had alike is not looked at again.
pub(super) fn validate_device(d: &Device, old: Option<&Device>, per_device: bool, path: &Path, errors: &mut ErrorList) {
    validate_label(&d.name, &path.child("name"), errors);
    let count = d.attributes.as_ref().map_or(0, BTreeMap::len) + d.capacity.as_ref().map_or(0, BTreeMap::len);
    if count > ATTRIBUTES_AND_CAPACITIES_MAX {
        let detail =
            format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_AND_CAPACITIES_MAX}");
        errors.invalid(path, count, &detail);
    }
    let values = |a: &DeviceAttribute| list_lengths(a).iter().flatten().sum::<usize>().max(1);
    let count: usize = d.attributes.iter().flat_map(|m| m.values()).map(values).sum();
    if count > ATTRIBUTE_VALUES_MAX {
        let detail = format!("the total number of attribute values must not exceed {ATTRIBUTE_VALUES_MAX}");
        errors.invalid(path, count, &detail);
    }
    let at = path.child("attributes");
    for (key, a) in d.attributes.iter().flatten() {
        validate_qualified_name(key, &at, errors);
        validate_attribute(a, &at.key(&shown_key(key, KEY_SHOWN)), errors);
    }
    if !old.is_some_and(|o| o.capacity == d.capacity) {
        let at = path.child("capacity");
        for (key, c) in d.capacity.iter().flatten() {
            validate_qualified_name(key, &at, errors);
            let shared = d.allow_multiple_allocations == Some(true);
            validate_capacity(c, shared, &at.key(&shown_key(key, KEY_SHOWN)), errors);
        }
    }
    if !old.is_some_and(|o| semantically_equal(&o.taints, &d.taints)) {
        each(d.taints.as_ref(), TAINTS_MAX, &path.child("taints"), errors, |t, path, errors| {
            validate_taint(t, true, path, errors);
        });
    }
    let at = path.child("consumesCounters");
    each(d.consumes_counters.as_ref(), CONSUMPTIONS_MAX, &at, errors, validate_consumption);
    unique(d.consumes_counters.as_ref(), |c| Value::from(c.counter_set.as_str()), &at, errors);
    validate_nodes(d, per_device, path, errors);
    validate_binding(d.binding_conditions.as_ref(), d.binding_failure_conditions.as_ref(), path, errors);
    for (name, r) in d.node_allocatable_resources.iter().flatten() {
        validate_allocatable(name, r, d, &path.child("nodeAllocatableResources").key(name), errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(value: Value, per_device: bool) -> Vec<String> {
        let d: Device = serde_json::from_value(value).unwrap();
        let mut e = ErrorList::default();
        validate_device(&d, None, per_device, &Path::new("d"), &mut e);
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn devices() {
        assert!(
            found(
                json!({"name": "a", "attributes": {"m": {"string": "x"}, "a.b/v": {"version": "1.2.3-rc.1"}},
            "capacity": {"memory": {"value": "1Gi"}}}),
                false
            )
            .is_empty()
        );
        assert_eq!(
            found(
                json!({"name": "a", "attributes": {"/x": {}, "a/b/c": {"bool": true, "int": 1}, "v": {"version": "1"}},
                    "capacity": {"memory": {"value": "1", "requestPolicy": {}}},
                    "taints": [{"key": "k", "effect": ""}], "consumesCounters": [{"counterSet": "", "counters": {}}],
                    "bindingConditions": ["c"], "allNodes": true}),
                false
            ),
            [
                "d.attributes: Invalid value: \"\": the domain must not be empty",
                "d.attributes[/x]: Invalid value: \"\": exactly one value must be specified",
                "d.attributes: Invalid value: \"a/b/c\": must not contain more than one slash",
                "d.attributes[a/b/c]: Invalid value: {\"bool\":true,\"int\":1}: exactly one value must be specified",
                "d.attributes[v].version: Invalid value: \"1\": must be a string compatible with semver.org spec 2.0.0",
                "d.capacity[memory].requestPolicy: Forbidden: allowMultipleAllocations must be true",
                "d.taints[0].effect: Required value",
                "d.consumesCounters[0].counterSet: Required value",
                "d.consumesCounters[0].counters: Required value",
                "d: Invalid value: \"null\": `nodeName`, `nodeSelector` and `allNodes` can only be set if \
                 `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
                "d.bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use \
                 bindingConditions",
            ]
        );
        assert_eq!(
            found(json!({"name": "a", "allNodes": true, "nodeName": "n"}), true),
            ["d: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, or \
                 `allNodes` is \
              required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec"]
        );
    }
}
