//! How pods and the claims of devices they use find each other.

use crate::kind::Kind;
use crate::meta::object::Meta;
use crate::meta::text;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceTaintRule, DeviceToleration, ResourceClaim};

/// Holds an allocated claim until its devices are free again.
pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Annotation of a claim made for a pod: which entry of `spec.resourceClaims` it was made for.
pub const POD_CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";
/// The most pods that may use a claim.
pub const RESERVED_MAX: usize = 256;

/// What a pod's entry of `spec.resourceClaims` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference<'a> {
    /// The claim that the pod names.
    Named(&'a str),
    /// A claim made for the pod from a template; [`check_owner`] tells whether the one found is it.
    Generated(&'a str),
    /// No claim is needed.
    Unneeded,
}

impl<'a> Reference<'a> {
    /// The claim's name, where there is one.
    #[must_use]
    pub fn name(self) -> Option<&'a str> {
        match self {
            Reference::Named(name) | Reference::Generated(name) => Some(name),
            Reference::Unneeded => None,
        }
    }
}

/// Why it cannot be told which claim a pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The claim from the template is not made yet.
    NotCreated(String),
    /// The entry names neither a claim nor a template that is known.
    Unsupported(String),
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unknown::NotCreated(pod) => write!(f, "pod {pod:?}: ResourceClaim not created yet"),
            Unknown::Unsupported(entry) => write!(f, "{entry}: none of the supported fields are set"),
        }
    }
}

impl std::error::Error for Unknown {}

/// The claim that an entry of the pod's `spec.resourceClaims` stands for.
///
/// # Errors
/// Where the claim is not made yet, or the entry is of no known sort.
pub fn reference<'a>(pod: &'a Pod, entry: &'a PodResourceClaim) -> Result<Reference<'a>, Unknown> {
    if let Some(name) = &entry.resource_claim_name {
        return Ok(Reference::Named(name));
    }
    if entry.resource_claim_template_name.is_none() {
        let what = format!("pod {:?}, spec.resourceClaim {:?}", pod.metadata.key(), entry.name);
        return Err(Unknown::Unsupported(what));
    }
    let mut statuses = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    let status = statuses.find(|s| s.name == entry.name).ok_or_else(|| Unknown::NotCreated(pod.metadata.key()))?;
    Ok(status.resource_claim_name.as_deref().map_or(Reference::Unneeded, Reference::Generated))
}

/// The names of all claims that the pod uses and that are known, with that of its extended resources.
pub fn claim_names(pod: &Pod) -> impl Iterator<Item = &str> {
    let entries = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten());
    let listed = entries.filter_map(|e| reference(pod, e).ok()?.name());
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    listed.chain(extended.map(|e| e.resource_claim_name.as_str()))
}

/// Whether the claim was made for the pod.
///
/// # Errors
/// That it was not, as upstream words it.
pub fn check_owner(pod: &Pod, claim: &ResourceClaim) -> Result<(), String> {
    let owned = claim
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|o| o.controller == Some(true) && Some(&o.uid) == pod.metadata.uid.as_ref());
    if owned && claim.metadata.namespace() == pod.metadata.namespace() {
        return Ok(());
    }
    let (claim, pod) = (claim.metadata.key(), pod.metadata.key());
    Err(format!("ResourceClaim {claim} was not created for pod {pod} (pod is not owner)"))
}

/// Whether the pod may use the claim already.
#[must_use]
pub fn is_reserved_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    let users = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
    users.into_iter().any(|u| u.uid == pod.metadata.uid())
}

/// Whether one more pod may use the claim.
#[must_use]
pub fn can_be_reserved(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.reserved_for.as_ref()).map_or(0, Vec::len) < RESERVED_MAX
}

/// Whether the claim has its devices.
#[must_use]
pub fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|s| s.allocation.is_some())
}

/// Whether a request tolerates a device's taint; an empty key, operator or effect matches as with nodes.
#[must_use]
pub fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let same = |wanted: &Option<String>, is: &str| text(wanted).is_empty() || text(wanted) == is;
    same(&toleration.effect, &taint.effect)
        && same(&toleration.key, &taint.key)
        && match text(&toleration.operator) {
            "" | "Equal" => text(&toleration.value) == text(&taint.value),
            "Exists" => true,
            _ => false,
        }
}

/// Whether a rule taints this device. Without a selector it taints none, with an empty one all.
#[must_use]
pub fn rule_matches(rule: &DeviceTaintRule, driver: &str, pool: &str, device: &str) -> bool {
    let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
    let selector = rule.spec.device_selector.as_ref();
    selector.is_some_and(|s| same(&s.driver, driver) && same(&s.pool, pool) && same(&s.device, device))
}

/// Whether a user of a claim is a pod.
#[must_use]
pub fn is_pod(user: &k8s_openapi::api::resource::v1::ResourceClaimConsumerReference) -> bool {
    text(&user.api_group).is_empty() && user.resource == Pod::INFO.plural
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [],
            "resourceClaims": [{"name": "a", "resourceClaimName": "shared"},
                {"name": "b", "resourceClaimTemplateName": "t"}, {"name": "c", "resourceClaimTemplateName": "t"},
                {"name": "d", "resourceClaimTemplateName": "t"}, {"name": "e"}]},
            "status": {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b-x"}, {"name": "c"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "p-extended", "requestMappings": []}}}))
        .unwrap()
    }

    #[test]
    fn entries_stand_for_claims() {
        let pod = pod();
        let entries = pod.spec.as_ref().unwrap().resource_claims.as_ref().unwrap();
        let found: Vec<String> = entries
            .iter()
            .map(|e| match reference(&pod, e) {
                Ok(r) => format!("{r:?}"),
                Err(e) => e.to_string(),
            })
            .collect();
        assert_eq!(
            found,
            [
                "Named(\"shared\")",
                "Generated(\"p-b-x\")",
                "Unneeded",
                "pod \"n/p\": ResourceClaim not created yet",
                "pod \"n/p\", spec.resourceClaim \"e\": none of the supported fields are set",
            ]
        );
        assert_eq!(claim_names(&pod).collect::<Vec<_>>(), ["shared", "p-b-x", "p-extended"]);
    }

    #[test]
    fn claims_know_their_pods() {
        let claim = |owner: &str, user: &str| {
            ResourceClaim::from_value(json!({"metadata": {"name": "p-b-x", "namespace": "n", "ownerReferences":
                [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true}]},
                "status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": user}]}}))
            .unwrap()
        };
        assert_eq!(check_owner(&pod(), &claim("u", "u")), Ok(()));
        let why = "ResourceClaim n/p-b-x was not created for pod n/p (pod is not owner)";
        assert_eq!(check_owner(&pod(), &claim("v", "u")), Err(why.to_owned()));
        assert!(is_reserved_for(&claim("u", "u"), &pod()) && !is_reserved_for(&claim("u", "v"), &pod()));
    }

    #[test]
    fn taints() {
        let taint: DeviceTaint =
            serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoExecute"})).unwrap();
        let bears = |t: serde_json::Value| tolerates(&serde_json::from_value(t).unwrap(), &taint);
        assert!(bears(json!({"operator": "Exists"})) && bears(json!({"key": "k", "value": "v"})));
        assert!(!bears(json!({"key": "k"})) && !bears(json!({"operator": "Exists", "effect": "NoSchedule"})));
        let rule = |selector: serde_json::Value| {
            let spec = json!({"deviceSelector": selector, "taint": {"key": "k", "effect": "None"}});
            let rule = DeviceTaintRule::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).unwrap();
            rule_matches(&rule, "d", "p", "x")
        };
        assert!(rule(json!({})) && rule(json!({"driver": "d", "device": "x"})));
        assert!(!rule(json!(null)) && !rule(json!({"pool": "q"})));
    }
}
