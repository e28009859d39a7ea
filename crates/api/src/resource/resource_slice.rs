//! ResourceSlice: some of the devices of a pool, as their driver tells them.

use super::capacity::canonicalize_capacity;
use super::device::{has_list_attribute, validate_counters, validate_device};
use super::device_taint_rule::stamp;
use super::gates::drop_from_slice;
use super::parts::{
    each, unique, validate_driver, validate_full_name, validate_label, validate_pool_name, validate_skipped,
};
use crate::apps::workload::bump_generation;
use crate::core::pod::validate::placement::validate_node_selector;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, immutable, semantically_equal};
use crate::meta::quantity::canonicalize;
use crate::meta::{names, table, text};
use k8s_openapi::api::resource::v1::{Device, ResourceSlice, ResourceSliceSpec};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const DEVICES_MAX: usize = 128;
/// The limit where devices have taints, consume counters or have attributes with several values.
const RICH_DEVICES_MAX: usize = 64;
const COUNTER_SETS_MAX: usize = 8;

fn consumes(d: &Device) -> bool {
    d.consumes_counters.as_ref().is_some_and(|c| !c.is_empty())
}

/// Adds the errors of the nodes that have the slice's devices.
fn validate_nodes(spec: &ResourceSliceSpec, path: &Path, errors: &mut ErrorList) {
    let mut set = Vec::new();
    match spec.node_name.as_deref() {
        None => {}
        Some("") => {
            errors.invalid(&path.child("nodeName"), "", "must be either unset or set to a non-empty string");
        }
        Some(name) => {
            set.push("`nodeName`");
            names::push_invalid(errors, &path.child("nodeName"), name, &names::dns1123_subdomain(name, false));
        }
    }
    if let Some(selector) = &spec.node_selector {
        set.push("`nodeSelector`");
        let at = path.child("nodeSelector");
        validate_node_selector(selector, &at, errors);
        if selector.node_selector_terms.len() != 1 {
            let detail = "must have exactly one node selector term";
            errors.invalid(&at.child("nodeSelectorTerms"), json!(selector.node_selector_terms), detail);
        }
    }
    let flags = [
        ("allNodes", "`allNodes`", spec.all_nodes),
        ("perDeviceNodeSelection", "`perDeviceNodeSelection`", spec.per_device_node_selection),
    ];
    for (field, shown, value) in flags {
        match value {
            None => {}
            Some(true) => set.push(shown),
            Some(false) => errors.invalid(&path.child(field), false, "must be either unset or set to true"),
        }
    }
    let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set.len() {
        0 => errors.required(path, one),
        1 => {}
        _ => {
            let detail = format!("{one}, but multiple fields are set");
            errors.invalid(path, format!("{{{}}}", set.join(", ")), &detail);
        }
    }
}

fn validate_partition_attribute(spec: &ResourceSliceSpec, name: &str, path: &Path, errors: &mut ErrorList) {
    let devices = spec.devices.as_deref().unwrap_or_default();
    let at = path.child("partitionTypeAttribute");
    let before = errors.0.len();
    validate_full_name(name, &at, errors);
    if !devices.iter().any(consumes) {
        let detail = "may only be set on a slice which declares devices that consume counters";
        return errors.invalid(&at, name, detail);
    }
    if errors.0.len() > before {
        return;
    }
    let bare = name.strip_prefix(&format!("{}/", spec.driver)).unwrap_or(name);
    for (i, d) in devices.iter().enumerate().filter(|(_, d)| consumes(d)) {
        let at = path.child("devices").index(i).child("attributes").key(name);
        match d.attributes.as_ref().and_then(|a| a.get(name).or_else(|| a.get(bare))) {
            None => {
                let detail =
                    "device consumes counters and `partitionTypeAttribute` names this attribute, so it must be set";
                errors.required(&at, detail);
            }
            Some(a) if a.string.is_none() => {
                let detail = "must be a string value because `partitionTypeAttribute` names this attribute";
                errors.invalid(&at, json!(a), detail);
            }
            Some(_) => {}
        }
    }
}

fn validate_spec(spec: &ResourceSliceSpec, old: Option<&ResourceSliceSpec>) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    validate_driver(&spec.driver, &path.child("driver"), &mut e);
    let at = path.child("pool");
    validate_pool_name(&spec.pool.name, &at.child("name"), &mut e);
    if spec.pool.resource_slice_count <= 0 {
        let detail = "must be greater than zero";
        e.invalid(&at.child("resourceSliceCount"), spec.pool.resource_slice_count, detail);
    }
    if spec.pool.generation < 0 {
        e.invalid(&at.child("generation"), spec.pool.generation, "must be greater than or equal to zero");
    }
    if let Some(old) = old {
        immutable(&mut e, &at.child("name"), &json!(spec.pool.name), &json!(old.pool.name));
        immutable(&mut e, &path.child("driver"), &json!(spec.driver), &json!(old.driver));
        immutable(&mut e, &path.child("nodeName"), &json!(spec.node_name), &json!(old.node_name));
    }
    validate_nodes(spec, &path, &mut e);
    if spec.shared_counters.is_some() && spec.devices.is_some() {
        e.invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let devices = spec.devices.as_deref().unwrap_or_default();
    let rich = |d: &Device| d.taints.as_ref().is_some_and(|t| !t.is_empty()) || consumes(d) || has_list_attribute(d);
    let max = if devices.iter().any(rich) { RICH_DEVICES_MAX } else { DEVICES_MAX };
    let at = path.child("devices");
    each(spec.devices.as_ref(), max, &at, &mut e, |d, path, e| {
        let before = old.and_then(|o| o.devices.as_ref()?.iter().find(|o| o.name == d.name));
        validate_device(d, before, spec.per_device_node_selection == Some(true), path, e);
    });
    if devices.len() <= max {
        unique(spec.devices.as_ref(), |d| Value::from(d.name.as_str()), &at, &mut e);
    }
    let at = path.child("sharedCounters");
    each(spec.shared_counters.as_ref(), COUNTER_SETS_MAX, &at, &mut e, |s, path, e| {
        if s.name.is_empty() {
            e.required(&path.child("name"), "");
        } else {
            validate_label(&s.name, &path.child("name"), e);
        }
        validate_counters(&s.counters, &path.child("counters"), e);
    });
    unique(spec.shared_counters.as_ref(), |s| Value::from(s.name.as_str()), &at, &mut e);
    if let Some(name) = &spec.partition_type_attribute {
        validate_partition_attribute(spec, name, &path, &mut e);
    }
    validate_skipped(spec.skip_node_operations.as_ref(), &path.child("skipNodeOperations"), &mut e);
    e
}

fn canonicalize_slice(s: &mut ResourceSlice) -> Result<(), String> {
    for set in s.spec.shared_counters.iter_mut().flatten() {
        set.counters.values_mut().try_for_each(|c| canonicalize(&mut c.value))?;
    }
    for d in s.spec.devices.iter_mut().flatten() {
        d.capacity.iter_mut().flat_map(|c| c.values_mut()).try_for_each(canonicalize_capacity)?;
        let consumed = d.consumes_counters.iter_mut().flatten().flat_map(|c| c.counters.values_mut());
        consumed.into_iter().try_for_each(|c| canonicalize(&mut c.value))?;
        for r in d.node_allocatable_resources.iter_mut().flat_map(|r| r.values_mut()) {
            let mapping = r.mapping.iter_mut().flat_map(|m| [&mut m.capacity_multiplier, &mut m.device_multiplier]);
            let overhead = r.overhead.iter_mut().flat_map(|o| [&mut o.per_pod, &mut o.per_container]);
            mapping.chain(overhead).flatten().try_for_each(canonicalize)?;
        }
    }
    Ok(())
}

fn stamp_taints(s: &mut ResourceSlice, now: Timestamp) {
    for taint in s.spec.devices.iter_mut().flatten().flat_map(|d| d.taints.iter_mut().flatten()) {
        stamp(taint, now);
    }
}

impl Kind for ResourceSlice {
    const INFO: ResourceInfo =
        ResourceInfo::new("resource.k8s.io", "v1", "ResourceSlice", "resourceslices", "resourceslice", false);
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Node", "The node that has the devices.", 0),
        table::text_column("Driver", "The driver of the devices.", 0),
        table::text_column("Pool", "The pool the slice is part of.", 0),
        table::AGE,
    ];
    crate::kind_codec!(canonical: canonicalize_slice);

    fn prepare_for_create(&mut self, cx: &Context<'_>) {
        self.metadata.generation = Some(1);
        drop_from_slice(&mut self.spec, None);
        stamp_taints(self, cx.now);
    }

    fn validate(&self) -> ErrorList {
        validate_spec(&self.spec, None)
    }

    fn prepare_for_update(&mut self, old: &Self, cx: &Context<'_>) {
        drop_from_slice(&mut self.spec, Some(&old.spec));
        stamp_taints(self, cx.now);
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        validate_spec(&self.spec, Some(&old.spec))
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let driver = &self.spec.driver;
        if *driver == driver.to_lowercase() {
            return Vec::new();
        }
        vec![format!("spec.driver: driver names should be lowercase; {driver:?} contains uppercase characters")]
    }

    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        vec![("spec.nodeName", text(&self.spec.node_name).to_owned()), ("spec.driver", self.spec.driver.clone())]
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name().into(),
            text(&self.spec.node_name).into(),
            self.spec.driver.as_str().into(),
            self.spec.pool.name.as_str().into(),
            table::age(&self.metadata, now).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(spec: Value) -> ResourceSlice {
        ResourceSlice::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap()
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors() {
        let s = slice(json!({"driver": "d", "pool": {"name": "", "generation": -1, "resourceSliceCount": 0},
            "nodeName": "n", "allNodes": true, "perDeviceNodeSelection": false,
            "devices": [{"name": "a"}, {"name": "a"}], "sharedCounters": [],
            "skipNodeOperations": ["NodePrepareResources"]}));
        assert_eq!(
            texts(&s.validate()),
            [
                "spec.pool.name: Required value",
                "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
                "spec.pool.generation: Invalid value: -1: must be greater than or equal to zero",
                "spec.perDeviceNodeSelection: Invalid value: false: must be either unset or set to true",
                "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, \
                 `allNodes`, \
                 `perDeviceNodeSelection` is required, but multiple fields are set",
                "spec: Invalid value: \"\": only one of `sharedCounters` or `devices` is allowed",
                "spec.devices[1]: Duplicate value: \"a\"",
                "spec.skipNodeOperations: Invalid value: [\"NodePrepareResources\"]: NodePrepareResources cannot be \
                 skipped \
                 unless NodeUnprepareResources is also skipped",
            ]
        );
    }

    #[test]
    fn update_rules_row_and_quantities() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let good = |driver: &str| {
            slice(json!({"driver": driver, "nodeName": "n", "pool": {"name": "p", "generation": 1,
                "resourceSliceCount": 1}, "devices": [{"name": "a", "capacity": {"memory": {"value": "1024Mi"}},
                "taints": [{"key": "k", "effect": "None"}]}]}))
        };
        let mut old = good("d");
        old.prepare_for_create(&cx);
        assert!(old.validate().is_empty(), "{:?}", texts(&old.validate()));
        let device = json!(old.spec.devices.as_ref().unwrap()[0]);
        assert_eq!(device["capacity"]["memory"]["value"], "1Gi");
        assert_eq!(device["taints"][0]["timeAdded"], "1970-01-01T00:00:00Z");
        let mut new = good("e");
        new.prepare_for_update(&old, &cx);
        assert_eq!(new.metadata.generation, Some(2));
        assert_eq!(texts(&new.validate_update(&old)), ["spec.driver: Invalid value: \"e\": field is immutable"]);
        assert_eq!(json!(old.cells(cx.now)), json!(["s", "n", "d", "p", "<unknown>"]));
        assert_eq!(old.selectable_fields()[1].1, "d");
    }
}
