//! Fields of features that are off by default: they are dropped from what is written, unless what is stored has some of
//! the same feature already.

use k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceAttribute, DeviceDerivedAttribute, ResourceClaimSpec, ResourceSliceSpec,
};

fn derived(spec: &mut ResourceClaimSpec) -> impl Iterator<Item = &mut Option<Vec<DeviceDerivedAttribute>>> {
    spec.devices.iter_mut().flat_map(|d| d.requests.iter_mut().flatten()).flat_map(|r| {
        let exactly = r.exactly.iter_mut().map(|x| &mut x.derived_attributes);
        exactly.chain(r.first_available.iter_mut().flatten().map(|s| &mut s.derived_attributes))
    })
}

/// Drops from a new claim what is off (`DRADerivedAttributes`). A stored claim's spec does not change.
pub(super) fn drop_from_claim(spec: &mut ResourceClaimSpec) {
    derived(spec).for_each(|d| *d = None);
}

fn skips_operations(a: &AllocationResult) -> bool {
    a.devices.iter().flat_map(|d| d.results.iter().flatten()).any(|r| r.skip_node_operations.is_some())
}

/// Drops from a new allocation what is off (`DRAOptionalNodeOperations`).
pub(super) fn drop_from_allocation(new: &mut AllocationResult, old: Option<&AllocationResult>) {
    if old.is_some_and(skips_operations) {
        return;
    }
    for result in new.devices.iter_mut().flat_map(|d| d.results.iter_mut().flatten()) {
        result.skip_node_operations = None;
    }
}

fn has_list(a: &DeviceAttribute) -> bool {
    a.bools.is_some() || a.ints.is_some() || a.strings.is_some() || a.versions.is_some()
}

fn groups(d: &Device) -> bool {
    d.consumes_counters.iter().flatten().any(|c| c.compatibility_groups.is_some())
}

/// Drops from a slice what is off (`DRAListTypeAttributes`, `DRANodeAllocatableResources`, `DRAOptionalNodeOperations`,
/// `DRADeviceCompatibilityGroups`).
pub(super) fn drop_from_slice(new: &mut ResourceSliceSpec, old: Option<&ResourceSliceSpec>) {
    let stored = |uses: fn(&Device) -> bool| old.is_some_and(|o| o.devices.iter().flatten().any(uses));
    let keep_lists = stored(|d| d.attributes.iter().flat_map(|a| a.values()).any(has_list));
    let keep_allocatable = stored(|d| d.node_allocatable_resources.is_some());
    let keep_groups = stored(groups);
    if old.is_none_or(|o| o.skip_node_operations.is_none()) {
        new.skip_node_operations = None;
    }
    for device in new.devices.iter_mut().flatten() {
        if !keep_allocatable {
            device.node_allocatable_resources = None;
        }
        for consumed in device.consumes_counters.iter_mut().flatten().filter(|_| !keep_groups) {
            consumed.compatibility_groups = None;
        }
        for a in device.attributes.iter_mut().flat_map(|a| a.values_mut()).filter(|_| !keep_lists) {
            (a.bools, a.ints, a.strings, a.versions) = (None, None, None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_is_off_goes_unless_it_is_stored() {
        let slice = || -> ResourceSliceSpec {
            serde_json::from_value(
                json!({"driver": "d", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
                "skipNodeOperations": ["*"], "devices": [{"name": "a", "nodeAllocatableResources": {"cpu": {}},
                "attributes": {"x": {"ints": [1]}, "y": {"int": 1}},
                "consumesCounters": [{"counterSet": "s", "counters": {}, "compatibilityGroups": ["g"]}]}]}),
            )
            .unwrap()
        };
        let (mut new, mut kept) = (slice(), slice());
        drop_from_slice(&mut new, None);
        let want = json!({"name": "a", "attributes": {"x": {}, "y": {"int": 1}},
            "consumesCounters": [{"counterSet": "s", "counters": {}}]});
        assert_eq!((json!(new.devices.unwrap()[0]), new.skip_node_operations), (want, None));
        drop_from_slice(&mut kept, Some(&slice()));
        assert_eq!(json!(kept), json!(slice()));
    }

    #[test]
    fn derived_attributes_go() {
        let attribute = json!([{"name": "a/b", "expression": "1"}]);
        let spec = json!({"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "c", "derivedAttributes": attribute}},
            {"name": "b", "firstAvailable": [
                {"name": "x", "deviceClassName": "c", "derivedAttributes": attribute}]}]}});
        let mut spec: ResourceClaimSpec = serde_json::from_value(spec).unwrap();
        drop_from_claim(&mut spec);
        let requests = json!(spec.devices.unwrap().requests);
        assert_eq!(requests[0]["exactly"]["derivedAttributes"], Value::Null);
        assert_eq!(requests[1]["firstAvailable"][0]["derivedAttributes"], Value::Null);
    }
}
