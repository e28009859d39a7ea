//! What claims of devices use under the names of extended resources (KEP-5004): a device is counted once, whether a pod asks for
//! it as an extended resource or by a claim.

use crate::core::pod::resources::Amounts;
use crate::core::pod::validate::resources::is_native;
use crate::core::quota::{DEVICES, IMPLICIT, REQUESTS, usage};
use crate::meta::object::Meta;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;

/// Marks the claim that the scheduler makes for a pod's extended resources.
const MADE_FOR_POD: &str = "resource.kubernetes.io/extended-resource-claim";

/// The classes of devices there are, with the names of the extended resources they stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes(BTreeMap<String, Option<String>>);

impl Classes {
    /// From the classes of the cluster.
    #[must_use]
    pub fn of<'a>(classes: impl IntoIterator<Item = &'a DeviceClass>) -> Self {
        let resource = |c: &DeviceClass| c.spec.as_ref().and_then(|s| s.extended_resource_name.clone());
        let one = |c: &DeviceClass| (c.metadata.name().to_owned(), resource(c));
        Self(classes.into_iter().map(one).collect())
    }

    /// Whether claims of devices count for a bounded resource of this name, as those of an extended resource.
    #[must_use]
    pub fn concerns(&self, name: &str) -> bool {
        let Some(resource) = name.strip_prefix(REQUESTS) else { return false };
        let named = || self.0.values().flatten().any(|n| n == resource);
        resource.strip_prefix(IMPLICIT).is_some_and(|class| self.0.contains_key(class)) || named()
    }

    /// Adds to what a claim uses of classes the same under the names of extended resources, but for what its pod (`pod`) is
    /// charged for already.
    pub fn add(&self, used: &mut Amounts, pod: &Amounts) {
        let mut extended = Amounts::new();
        for (name, amount) in used.iter() {
            let Some(class) = name.strip_suffix(DEVICES).filter(|c| !c.is_empty()) else { continue };
            extended.insert(format!("{REQUESTS}{IMPLICIT}{class}"), *amount);
            if let Some(resource) = self.0.get(class).and_then(Option::as_ref).filter(|r| !r.is_empty()) {
                extended.insert(format!("{REQUESTS}{resource}"), *amount);
            }
        }
        for (name, amount) in extended {
            let left = pod.get(&name).map_or(amount, |of_pod| amount.minus(of_pod));
            if left.sign() > 0 {
                used.insert(name, left);
            }
        }
    }
}

/// Whether a bounded resource of this name is an extended resource, which claims of devices may count for.
#[must_use]
pub fn is_extended_name(name: &str) -> bool {
    name.strip_prefix(REQUESTS).is_some_and(|n| !is_native(n) || n.starts_with(IMPLICIT))
}

/// The name and UID of the pod whose extended resources the claim is for.
#[must_use]
pub fn pod_of(claim: &ResourceClaim) -> Option<(&str, &str)> {
    let owner = claim.metadata.controller_of()?;
    let made = claim.metadata.annotation(MADE_FOR_POD) == Some("true");
    (made && owner.kind == "Pod" && owner.api_version == "v1").then_some((owner.name.as_str(), owner.uid.as_str()))
}

/// What the pod that a claim was made for is charged for already. Nothing where the claim only says so: the pod must be the
/// claim's owner and name the claim, or the claim (of all, `claims`) be the first that was made for it.
#[must_use]
pub fn charged_with_pod<'a>(
    claim: &ResourceClaim,
    pod: Option<&Pod>,
    claims: impl IntoIterator<Item = &'a ResourceClaim>,
    now: Timestamp,
) -> Amounts {
    let owner = pod_of(claim);
    let Some(pod) = pod.filter(|p| owner == Some((p.metadata.name(), p.metadata.uid()))) else { return Amounts::new() };
    let told = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    let age = |c: &ResourceClaim| (c.metadata.creation_timestamp.clone().map(|t| t.0), c.metadata.name().to_owned());
    let is_its = match told {
        Some(status) => status.resource_claim_name == claim.metadata.name(),
        None => !claims.into_iter().any(|c| pod_of(c) == owner && age(c) < age(claim)),
    };
    if is_its { usage("", "pods", pod, now) } else { Amounts::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use serde_json::{Value, json};

    fn claim(name: &str, made_for: Option<&str>) -> ResourceClaim {
        let owner =
            made_for.map(|uid| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}));
        let meta = json!({"name": name, "annotations": {MADE_FOR_POD: "true"}, "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": owner.into_iter().collect::<Vec<_>>()});
        let exactly =
            |class: &str, count: i64| json!({"deviceClassName": class, "allocationMode": "ExactCount", "count": count});
        let requests =
            json!([{"name": "a", "exactly": exactly("gpu", 2)}, {"name": "b", "exactly": exactly("nic", 1)}]);
        ResourceClaim::from_value(json!({"metadata": meta, "spec": {"devices": {"requests": requests}}})).unwrap()
    }

    fn pod(requests: &Value, claim: Option<&str>) -> Pod {
        let told =
            claim.map(|c| json!({"extendedResourceClaimStatus": {"resourceClaimName": c, "requestMappings": []}}));
        Pod::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "status": told.unwrap_or_default(),
            "spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}))
        .unwrap()
    }

    fn classes() -> Classes {
        let class = |name: &str, resource: Option<&str>| {
            DeviceClass::from_value(json!({"metadata": {"name": name}, "spec": {"extendedResourceName": resource}}))
                .unwrap()
        };
        Classes::of(&[class("gpu", Some("example.com/gpu")), class("nic", None)])
    }

    fn charged(claim: &ResourceClaim, pod: &Amounts) -> Vec<String> {
        let mut used = usage("resource.k8s.io", "resourceclaims", claim, Timestamp::UNIX_EPOCH);
        classes().add(&mut used, pod);
        used.iter().filter(|(n, _)| n.starts_with(REQUESTS)).map(|(n, a)| format!("{n}={a}")).collect()
    }

    #[test]
    fn a_claim_counts_for_the_extended_resources_of_its_classes() {
        let all = [
            "requests.deviceclass.resource.kubernetes.io/gpu=2",
            "requests.deviceclass.resource.kubernetes.io/nic=1",
            "requests.example.com/gpu=2",
        ];
        assert_eq!(charged(&claim("c", None), &Amounts::new()), all);
        let cases = [
            ("requests.example.com/gpu", true),
            ("requests.example.com/other", false),
            ("requests.deviceclass.resource.kubernetes.io/nic", true),
            ("requests.deviceclass.resource.kubernetes.io/other", false),
            ("requests.cpu", false),
        ];
        for (name, want) in cases {
            assert_eq!(classes().concerns(name), want, "{name}");
        }
    }

    #[test]
    fn what_the_pod_is_charged_for_is_not_counted_twice() {
        let (made, now) = (claim("c", Some("u")), Timestamp::UNIX_EPOCH);
        let requests = json!({"example.com/gpu": "2", "deviceclass.resource.kubernetes.io/nic": "1"});
        let with =
            |pod: &Pod, others: &[ResourceClaim]| charged(&made, &charged_with_pod(&made, Some(pod), others, now));
        assert_eq!(with(&pod(&requests, Some("c")), &[]), ["requests.deviceclass.resource.kubernetes.io/gpu=2"]);
        assert_eq!(with(&pod(&requests, None), &[]).len(), 1, "the first that was made for it");
        assert_eq!(with(&pod(&requests, Some("other")), &[]).len(), 3, "the pod has another");
        assert_eq!(with(&pod(&requests, None), &[claim("b", Some("u"))]).len(), 3, "another was first");
        assert_eq!(with(&pod(&requests, None), &[claim("b", Some("v"))]).len(), 1, "of another pod");
        let strange = claim("c", Some("v"));
        assert_eq!(charged_with_pod(&strange, Some(&pod(&requests, Some("c"))), &[], now), Amounts::new());
    }
}
