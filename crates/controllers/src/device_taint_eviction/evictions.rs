//! Which taints of devices drive which pods away, and when.

use crate::pod_state;
use gantry_api::meta::object::Meta;
use gantry_api::resource::pod_claim::{self, Reference, check_owner, is_reserved_for, reference, rule_matches};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    Device, DeviceRequestAllocationResult, DeviceTaint, DeviceTaintRule, DeviceToleration, ResourceClaim, ResourceSlice,
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The effect that drives pods away.
pub(super) const NO_EXECUTE: &str = "NoExecute";

/// When a pod must go, and which rules are among the reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Eviction {
    pub(super) when: Timestamp,
    /// UIDs of rules; taints in slices have none.
    pub(super) rules: BTreeSet<String>,
}

/// Index value of a pool.
pub(super) fn pool_key(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

/// The devices a claim has.
pub(super) fn results(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref());
    allocation.and_then(|a| a.devices.as_ref()?.results.as_deref()).unwrap_or_default()
}

/// The devices of a pool; slices of an older generation are out of date.
pub(super) fn devices(slices: &[Arc<ResourceSlice>]) -> impl Iterator<Item = &Device> {
    let newest = slices.iter().map(|s| s.spec.pool.generation).max();
    let current = slices.iter().filter(move |s| Some(s.spec.pool.generation) == newest);
    current.flat_map(|s| s.spec.devices.iter().flatten())
}

/// Until when a taint is borne; None for always.
fn deadline(tolerations: Option<&Vec<DeviceToleration>>, taint: &DeviceTaint, now: Timestamp) -> Option<Timestamp> {
    let since = taint.time_added.as_ref().map_or(now, |t| t.0);
    let matching = tolerations.into_iter().flatten().filter(|t| pod_claim::tolerates(t, taint));
    let mut seconds: Option<i64> = None;
    for toleration in matching {
        let borne = toleration.toleration_seconds?.max(0);
        seconds = Some(seconds.map_or(borne, |s| s.min(borne)));
    }
    let borne = SignedDuration::from_secs(seconds.unwrap_or(0));
    Some(since.saturating_add(borne).unwrap_or(Timestamp::MAX))
}

/// What is known of devices.
pub(super) struct Devices<'a> {
    /// The slices of a pool, by [`pool_key`].
    pub(super) slices: &'a dyn Fn(&str) -> Vec<Arc<ResourceSlice>>,
    pub(super) rules: &'a [Arc<DeviceTaintRule>],
    pub(super) now: Timestamp,
}

impl Devices<'_> {
    /// When those who use the claim must go; None for never.
    pub(super) fn claim_eviction(&self, claim: &ResourceClaim) -> Option<Eviction> {
        let mut found: Option<Eviction> = None;
        let mut add = |when: Option<Timestamp>, rule: Option<&DeviceTaintRule>| {
            let Some(when) = when else { return };
            let eviction = found.get_or_insert(Eviction { when, rules: BTreeSet::new() });
            eviction.when = eviction.when.min(when);
            eviction.rules.extend(rule.map(|r| r.metadata.uid().to_owned()));
        };
        for result in results(claim) {
            let tolerations = result.tolerations.as_ref();
            let slices = (self.slices)(&pool_key(&result.driver, &result.pool));
            let device = devices(&slices).find(|d| d.name == result.device);
            let taints = device.into_iter().flat_map(|d| d.taints.iter().flatten());
            for taint in taints.filter(|t| t.effect == NO_EXECUTE) {
                add(deadline(tolerations, taint, self.now), None);
            }
            for rule in self.rules.iter().filter(|r| r.spec.taint.effect == NO_EXECUTE) {
                if rule_matches(rule, &result.driver, &result.pool, &result.device) {
                    add(deadline(tolerations, &rule.spec.taint, self.now), Some(rule));
                }
            }
        }
        found
    }

    /// When the pod must go; None for never. Only the claims that are its own count.
    pub(super) fn pod_eviction(
        &self,
        pod: &Pod,
        find: impl Fn(&str) -> Option<Arc<ResourceClaim>>,
    ) -> Option<Eviction> {
        if pod_state::node_name(pod).is_empty() {
            return None;
        }
        let mut found: Option<Eviction> = None;
        for name in own_claims(pod) {
            let claim = find(name.0).filter(|c| is_reserved_for(c, pod) && (!name.1 || check_owner(pod, c).is_ok()));
            let Some(eviction) = claim.and_then(|c| self.claim_eviction(&c)) else { continue };
            match &mut found {
                None => found = Some(eviction),
                Some(all) => {
                    all.when = all.when.min(eviction.when);
                    all.rules.extend(eviction.rules);
                }
            }
        }
        found
    }
}

/// The names of the pod's claims, and whether each must have been made for it.
fn own_claims(pod: &Pod) -> Vec<(&str, bool)> {
    let entries = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten());
    let listed = entries.filter_map(|e| match reference(pod, e) {
        Ok(Reference::Named(name)) => Some((name, false)),
        Ok(Reference::Generated(name)) => Some((name, true)),
        Ok(Reference::Unneeded) | Err(_) => None,
    });
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    listed.chain(extended.map(|e| (e.resource_claim_name.as_str(), true))).collect()
}

/// What of a slice can drive pods away: the device and the taint, as text.
pub(super) fn driving_taints(slice: &ResourceSlice) -> BTreeSet<(String, String)> {
    let mut out = BTreeSet::new();
    for device in slice.spec.devices.iter().flatten() {
        for t in device.taints.iter().flatten().filter(|t| t.effect == NO_EXECUTE) {
            let since = t.time_added.as_ref().map(|t| t.0.to_string()).unwrap_or_default();
            out.insert((device.name.clone(), format!("{}={}@{since}", t.key, t.value.as_deref().unwrap_or_default())));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::{Value, json};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn slice(generation: i64, taints: Value) -> Arc<ResourceSlice> {
        let value = json!({"metadata": {"name": "s"}, "spec": {"driver": "d", "nodeName": "n",
            "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
            "devices": [{"name": "x", "taints": taints}]}});
        Arc::new(ResourceSlice::from_value(value).unwrap())
    }

    fn rule(uid: &str, effect: &str, selector: Value) -> Arc<DeviceTaintRule> {
        let value = json!({"metadata": {"name": uid, "uid": uid}, "spec": {"deviceSelector": selector,
            "taint": {"key": "k", "effect": effect, "timeAdded": at(100).to_string()}}});
        Arc::new(DeviceTaintRule::from_value(value).unwrap())
    }

    fn claim(tolerations: Value) -> Arc<ResourceClaim> {
        let value = json!({"metadata": {"name": "c", "namespace": "n"}, "status": {
            "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}],
            "allocation": {"devices": {"results": [{"request": "r", "driver": "d", "pool": "p", "device": "x",
                "tolerations": tolerations}]}}}});
        Arc::new(ResourceClaim::from_value(value).unwrap())
    }

    fn evicted(slices: &[Arc<ResourceSlice>], rules: &[Arc<DeviceTaintRule>], c: &ResourceClaim) -> Option<Eviction> {
        let of_pool = |pool: &str| if pool == "d/p" { slices.to_vec() } else { Vec::new() };
        Devices { slices: &of_pool, rules, now: at(500) }.claim_eviction(c)
    }

    #[test]
    fn taints_of_slices_and_rules() {
        let execute = json!([{"key": "k", "effect": "NoExecute", "timeAdded": at(200).to_string()}]);
        let when = |slices: &[_], rules: &[_], c: &_| evicted(slices, rules, c).map(|e| e.when.as_second());
        let plain = claim(json!(null));
        assert_eq!(when(&[slice(1, execute.clone())], &[], &plain), Some(200));
        assert_eq!(when(&[slice(1, execute.clone()), slice(2, json!(null))], &[], &plain), None, "out of date");
        assert_eq!(when(&[slice(1, json!([{"key": "k", "effect": "NoSchedule"}]))], &[], &plain), None);
        let rules = [rule("a", "NoExecute", json!({"driver": "d"})), rule("b", "None", json!({}))];
        let both = evicted(&[slice(1, execute.clone())], &rules, &plain).unwrap();
        assert_eq!(both, Eviction { when: at(100), rules: ["a".to_owned()].into() });
        assert_eq!(when(&[], &[rule("c", "NoExecute", json!({"pool": "q"}))], &plain), None);
        let bears = |seconds: Value| claim(json!([{"operator": "Exists", "tolerationSeconds": seconds}]));
        assert_eq!(when(&[], &rules, &bears(json!(null))), None);
        assert_eq!(when(&[], &rules, &bears(json!(30))), Some(130));
        assert_eq!(when(&[], &rules, &bears(json!(-5))), Some(100));
        assert_eq!(driving_taints(&slice(1, execute)).len(), 1);
    }

    #[test]
    fn only_a_pods_own_claims_count() {
        let pod = |uid: &str, node: &str| {
            Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": uid}, "spec": {"nodeName": node,
                "containers": [], "resourceClaims": [{"name": "a", "resourceClaimName": "c"},
                    {"name": "b", "resourceClaimTemplateName": "t"}]},
                "status": {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "c"}]}}))
            .unwrap()
        };
        let rules = [rule("a", "NoExecute", json!({}))];
        let none = |_: &str| Vec::new();
        let devices = Devices { slices: &none, rules: &rules, now: at(500) };
        let found = |pod: &Pod| devices.pod_eviction(pod, |_| Some(claim(json!(null)))).map(|e| e.when.as_second());
        assert_eq!(found(&pod("u", "node")), Some(100));
        assert_eq!(found(&pod("u", "")), None, "it does not run yet");
        assert_eq!(found(&pod("v", "node")), None, "another pod has the claim");
    }
}
