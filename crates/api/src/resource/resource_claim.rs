//! ResourceClaim: asks for devices, and says which it got.

use super::claim::{
    canonicalize_spec, expressions, set_defaults, validate_request_ref, validate_request_refs, validate_spec,
};
use super::gates::{drop_from_allocation, drop_from_claim};
use super::parts::{
    each, unique, validate_binding, validate_config, validate_driver, validate_label, validate_object,
    validate_pool_name, validate_skipped, validate_toleration, validate_uid,
};
use super::pod_claim::RESERVED_MAX;
use crate::core::pod::validate::placement::validate_node_selector;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::conditions::validate_conditions;
use crate::meta::expression::Expression;
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, reset_for_status, semantically_equal};
use crate::meta::quantity::canonicalize;
use crate::meta::{names, table, text};
use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceClaim, NetworkDeviceData, ResourceClaim, ResourceClaimStatus,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const RESULTS_MAX: usize = 32;
/// Configurations of class and claim together.
const CONFIGS_MAX: usize = 64;
const CONDITIONS_MAX: usize = 8;
const DATA_MAX: usize = 10 << 10;
const SOURCES: &[&str] = &["FromClaim", "FromClass"];

/// What tells one allocated device from another.
fn device_id(driver: &str, pool: &str, device: &str, share: Option<&String>) -> String {
    let share = share.map(|s| format!("/{s}")).unwrap_or_default();
    format!("{driver}/{pool}/{device}{share}")
}

fn allocated_ids(a: Option<&AllocationResult>) -> impl Iterator<Item = String> {
    let results = a.into_iter().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()));
    results.map(|r| device_id(&r.driver, &r.pool, &r.device, r.share_id.as_ref()))
}

/// Drops what drivers told of devices that the claim had and no longer has.
fn drop_deallocated(status: &mut ResourceClaimStatus, before: Option<&AllocationResult>) {
    let kept: Vec<String> = allocated_ids(status.allocation.as_ref()).collect();
    let gone: Vec<String> = allocated_ids(before).filter(|id| !kept.contains(id)).collect();
    let Some(devices) = &mut status.devices else { return };
    devices.retain(|d| !gone.contains(&device_id(&d.driver, &d.pool, &d.device, d.share_id.as_ref())));
    if devices.is_empty() {
        status.devices = None;
    }
}

fn validate_network(n: &NetworkDeviceData, path: &Path, errors: &mut ErrorList) {
    for (field, value, max) in
        [("interfaceName", &n.interface_name, 256), ("hardwareAddress", &n.hardware_address, 128)]
    {
        if text(value).len() > max {
            errors.too_long(&path.child(field), max);
        }
    }
    each(n.ips.as_ref(), 16, &path.child("ips"), errors, |ip, path, errors| {
        let canonical = names::parse_cidr(ip).map(|(address, bits)| format!("{address}/{bits}"));
        match canonical {
            None => {
                let detail = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
                errors.invalid(path, ip.as_str(), detail);
            }
            Some(c) if c != *ip => errors.invalid(path, ip.as_str(), &format!("must be in canonical form ({c:?})")),
            Some(_) => {}
        }
    });
    unique(n.ips.as_ref(), |ip| Value::from(ip.as_str()), &path.child("ips"), errors);
}

fn validate_device(d: &AllocatedDeviceStatus, allocated: &[String], path: &Path, errors: &mut ErrorList) {
    validate_driver(&d.driver, &path.child("driver"), errors);
    validate_pool_name(&d.pool, &path.child("pool"), errors);
    validate_label(&d.device, &path.child("device"), errors);
    if let Some(share) = &d.share_id {
        validate_uid(share, &path.child("shareID"), errors);
    }
    let id = device_id(&d.driver, &d.pool, &d.device, d.share_id.as_ref());
    if !allocated.contains(&id) {
        errors.invalid(path, id, "must be an allocated device in the claim");
    }
    let conditions = d.conditions.as_deref().unwrap_or_default();
    if conditions.len() > CONDITIONS_MAX {
        errors.too_many(&path.child("conditions"), conditions.len(), CONDITIONS_MAX);
    }
    errors.extend(validate_conditions(conditions, &path.child("conditions")));
    if let Some(data) = &d.data {
        validate_object(&data.0, Some(DATA_MAX), &path.child("data"), errors);
    }
    if let Some(n) = &d.network_data {
        validate_network(n, &path.child("networkData"), errors);
    }
}

fn validate_allocation(a: &AllocationResult, claim: &DeviceClaim, path: &Path, errors: &mut ErrorList) {
    let devices = a.devices.clone().unwrap_or_default();
    let at = path.child("devices");
    each(devices.results.as_ref(), RESULTS_MAX, &at.child("results"), errors, |r, path, errors| {
        validate_request_ref(claim, &r.request, &path.child("request"), errors);
        validate_driver(&r.driver, &path.child("driver"), errors);
        validate_pool_name(&r.pool, &path.child("pool"), errors);
        validate_label(&r.device, &path.child("device"), errors);
        validate_binding(r.binding_conditions.as_ref(), r.binding_failure_conditions.as_ref(), path, errors);
        for (i, t) in r.tolerations.iter().flatten().enumerate() {
            validate_toleration(t, &path.child("tolerations").index(i), errors);
        }
        if let Some(share) = &r.share_id {
            validate_uid(share, &path.child("shareID"), errors);
        }
        validate_skipped(r.skip_node_operations.as_ref(), &path.child("skipNodeOperations"), errors);
    });
    each(devices.config.as_ref(), CONFIGS_MAX, &at.child("config"), errors, |c, path, errors| {
        if c.source.is_empty() {
            errors.required(&path.child("source"), "");
        } else if !SOURCES.contains(&c.source.as_str()) {
            errors.not_supported(&path.child("source"), &c.source, &["FromClaim", "FromClass"]);
        }
        validate_request_refs(claim, c.requests.as_ref(), &path.child("requests"), errors);
        validate_config(c.opaque.as_ref(), false, path, errors);
    });
    if let Some(selector) = &a.node_selector {
        validate_node_selector(selector, &path.child("nodeSelector"), errors);
    }
}

fn validate_status(c: &ResourceClaim, old: &ResourceClaimStatus) -> ErrorList {
    let mut e = ErrorList::default();
    let status = c.status.clone().unwrap_or_default();
    let claim = c.spec.as_ref().and_then(|s| s.devices.clone()).unwrap_or_default();
    let path = Path::new("status");
    let at_reserved = path.child("reservedFor");
    let reserved = status.reserved_for.as_ref();
    each(reserved, RESERVED_MAX, &at_reserved, &mut e, |r, path, e| {
        for (field, value) in [("resource", &r.resource), ("name", &r.name), ("uid", &r.uid)] {
            if value.is_empty() {
                e.required(&path.child(field), "");
            }
        }
    });
    unique(reserved, |r| Value::from(r.uid.as_str()), &at_reserved, &mut e);
    let allocated: Vec<String> = allocated_ids(status.allocation.as_ref()).collect();
    let at = path.child("devices");
    each(status.devices.as_ref(), usize::MAX, &at, &mut e, |d, path, e| validate_device(d, &allocated, path, e));
    let id = |d: &AllocatedDeviceStatus| device_id(&d.driver, &d.pool, &d.device, d.share_id.as_ref()).into();
    unique(status.devices.as_ref(), id, &at, &mut e);
    let entries = reserved.map(Vec::as_slice).unwrap_or_default();
    if !entries.is_empty() && status.allocation.is_none() {
        e.forbidden(&at_reserved, "may not be specified when `allocated` is not set");
    } else if c.metadata.is_deleting() {
        let before = old.reserved_for.as_deref().unwrap_or_default();
        if entries.iter().any(|r| !before.contains(r)) {
            let detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            e.forbidden(&at_reserved, detail);
        }
    }
    let at = path.child("allocation");
    match (&status.allocation, &old.allocation) {
        (Some(new), Some(old)) => {
            if !semantically_equal(new, old) {
                e.invalid(&at, json!(new), "field is immutable");
            }
        }
        (Some(new), None) => validate_allocation(new, &claim, &at, &mut e),
        (None, _) => {}
    }
    e
}

impl Kind for ResourceClaim {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        ..ResourceInfo::new("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", "resourceclaim", true)
    };
    const COLUMNS: &'static [Column] =
        &[table::NAME, table::text_column("State", "What became of the claim.", 0), table::AGE];
    crate::kind_codec!(canonical: |c: &mut Self| {
        c.spec.iter_mut().try_for_each(canonicalize_spec)?;
        let results = c.status.iter_mut().filter_map(|s| s.allocation.as_mut()?.devices.as_mut()?.results.as_mut());
        let consumed = results.flatten().filter_map(|r| r.consumed_capacity.as_mut());
        consumed.flat_map(|m| m.values_mut()).try_for_each(canonicalize)
    });

    fn set_defaults(&mut self) {
        set_defaults(self.spec.get_or_insert_default());
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.spec.iter_mut().for_each(drop_from_claim);
    }

    fn validate(&self) -> ErrorList {
        validate_spec(&self.spec.clone().unwrap_or_default(), &Path::new("spec"))
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        if !semantically_equal(&self.spec, &old.spec) {
            e.invalid(&Path::new("spec"), json!(self.spec), "field is immutable");
        }
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
        let Some(status) = &mut self.status else { return };
        let before = old.status.as_ref().and_then(|s| s.allocation.as_ref());
        if let Some(allocation) = &mut status.allocation {
            drop_from_allocation(allocation, before);
        }
        drop_deallocated(status, before);
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        validate_status(self, &old.status.clone().unwrap_or_default())
    }

    fn expressions(&self, old: Option<&Self>) -> Vec<Expression> {
        let spec = self.spec.as_ref().filter(|_| old.is_none());
        spec.map(|s| expressions(s, &Path::new("spec"))).unwrap_or_default()
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let status = self.status.clone().unwrap_or_default();
        let deleting = self.metadata.is_deleting();
        let mut states = Vec::new();
        if deleting {
            states.push("deleted");
        }
        if status.allocation.is_some() {
            states.push("allocated");
            if status.reserved_for.is_some_and(|r| !r.is_empty()) {
                states.push("reserved");
            }
        } else if !deleting {
            states.push("pending");
        }
        vec![self.metadata.name().into(), states.join(",").into(), table::age(&self.metadata, now).into()]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["metadata"], &["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(status: Value) -> ResourceClaim {
        let mut c = ResourceClaim::from_value(json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [
            {"name": "gpu", "exactly": {"deviceClassName": "c"}}]}}, "status": status}))
        .unwrap();
        c.set_defaults();
        c
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn status_rules() {
        let pending = claim(json!({}));
        let allocation =
            json!({"devices": {"results": [{"request": "gpu", "driver": "d", "pool": "p", "device": "x"}]}});
        let user = json!({"resource": "pods", "name": "p", "uid": "u"});
        let good = claim(json!({"allocation": allocation, "reservedFor": [user]}));
        assert!(good.validate_status_update(&pending).is_empty(), "{:?}", good.validate_status_update(&pending));
        assert_eq!(
            texts(&claim(json!({"reservedFor": [user, {}, user]})).validate_status_update(&pending)),
            [
                "status.reservedFor[1].resource: Required value",
                "status.reservedFor[1].name: Required value",
                "status.reservedFor[1].uid: Required value",
                "status.reservedFor[2]: Duplicate value: \"u\"",
                "status.reservedFor: Forbidden: may not be specified when `allocated` is not set",
            ]
        );
        let mut other = good.clone();
        let devices = other.status.as_mut().unwrap().allocation.as_mut().unwrap().devices.as_mut().unwrap();
        devices.results.as_mut().unwrap()[0].device = "y".into();
        assert!(texts(&other.validate_status_update(&good))[0].starts_with("status.allocation: Invalid value: "));
        let told = claim(json!({"allocation": allocation, "devices": [{"driver": "d", "pool": "p", "device": "z",
            "networkData": {"ips": ["10.0.0.1"]}}]}));
        assert_eq!(
            texts(&told.validate_status_update(&pending)),
            [
                "status.devices[0]: Invalid value: \"d/p/z\": must be an allocated device in the claim",
                "status.devices[0].networkData.ips[0]: Invalid value: \"10.0.0.1\": must be a valid address in CIDR \
                 form, \
                 (e.g. 10.9.8.7/24 or 2001:db8::1/64)",
            ]
        );
        assert_eq!(good.cells(Timestamp::UNIX_EPOCH)[1], "allocated,reserved");
        assert_eq!(pending.cells(Timestamp::UNIX_EPOCH)[1], "pending");
    }

    #[test]
    fn what_was_told_of_a_device_goes_with_it() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let result = json!({"request": "gpu", "driver": "d", "pool": "p", "device": "x", "skipNodeOperations": ["*"]});
        let told = json!([{"driver": "d", "pool": "p", "device": "x"}]);
        let mut old = claim(json!({"allocation": {"devices": {"results": [result]}}, "devices": told}));
        let mut new = old.clone();
        new.status.as_mut().unwrap().allocation = None;
        new.prepare_for_status_update(&old, &cx);
        assert_eq!(new.status, Some(Default::default()));
        new.clone_from(&old);
        old.status = None;
        new.prepare_for_status_update(&old, &cx);
        let status = json!(new.status);
        assert_eq!(status["allocation"]["devices"]["results"][0]["skipNodeOperations"], Value::Null);
        assert_eq!(status["devices"], told);
    }

    #[test]
    fn the_spec_is_immutable() {
        let old = claim(json!({}));
        let mut new = old.clone();
        new.spec = None;
        assert!(texts(&new.validate_update(&old))[0].ends_with("field is immutable"));
        assert!(old.validate_update(&old).is_empty());
    }
}
