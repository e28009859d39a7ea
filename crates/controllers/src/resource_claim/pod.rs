//! What a pod needs: its claims from templates, and a place among the users of claims where no scheduler gave it one.

use super::Claims;
use crate::pod_state;
use gantry_api::meta::object::Meta;
use gantry_api::resource::pod_claim::{
    POD_CLAIM_NAME, Reference, can_be_reserved, check_owner, is_allocated, is_reserved_for, reference,
};
use gantry_client::{Api, Patch, PatchParams, PostParams};
use gantry_reconcile::Error;
use gantry_reconcile::owner::controller_reference;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};
use serde_json::{Value, json};
use std::sync::Arc;

/// Field manager of what is noted in pods.
const MANAGER: &str = "ResourceClaimController";
/// The longest start of a generated name, which leaves room for a hyphen and five characters in 63.
const BASE_MAX: usize = 57;

fn entries(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|s| s.resource_claims.as_deref()).unwrap_or_default()
}

/// Whether something is to be done for the pod itself.
pub(super) fn needs_work(pod: &Pod, find: impl Fn(&str) -> Option<Arc<ResourceClaim>>) -> bool {
    // A pod that has ended was taken out of the users, and must not get in again.
    if !pod_state::is_active(pod) {
        return false;
    }
    for entry in entries(pod) {
        let name = match reference(pod, entry) {
            Err(_) => return true,
            Ok(found) => match found.name() {
                Some(name) => name,
                None => return false,
            },
        };
        let Some(claim) = find(name) else { return entry.resource_claim_template_name.is_some() };
        if entry.resource_claim_template_name.is_some() && check_owner(pod, &claim).is_err() {
            return false;
        }
        if !pod_state::node_name(pod).is_empty() && may_reserve(pod, &claim) {
            return true;
        }
    }
    false
}

fn may_reserve(pod: &Pod, claim: &ResourceClaim) -> bool {
    is_allocated(claim) && !is_reserved_for(claim, pod) && can_be_reserved(claim)
}

/// Cut at a character's end.
fn cut(text: &str, length: usize) -> &str {
    let end = (0..=length.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    &text[..end]
}

/// What the generated name starts with: where both names are too long together, each is cut in proportion.
fn base(pod: &str, entry: &str) -> String {
    let whole = format!("{pod}-{entry}-");
    if whole.len() <= BASE_MAX {
        return whole;
    }
    let share = |name: &str| name.len() * BASE_MAX / whole.len();
    format!("{}-{}", cut(pod, share(pod)), cut(entry, share(entry)))
}

/// The claim to make for an entry.
fn made_from(pod: &Pod, entry: &PodResourceClaim, template: &Value) -> Value {
    let mut annotations = template["spec"]["metadata"]["annotations"].clone();
    annotations[POD_CLAIM_NAME] = entry.name.as_str().into();
    json!({
        "metadata": {
            "generateName": base(pod.metadata.name(), &entry.name),
            "namespace": pod.metadata.namespace(),
            "annotations": annotations,
            "labels": template["spec"]["metadata"]["labels"],
            "ownerReferences": [controller_reference(pod)],
        },
        "spec": template["spec"]["spec"],
    })
}

impl Claims {
    pub(super) async fn sync_pod(&self, key: &str) -> Result<(), Error> {
        let Some(pod) = self.pods.store().by_key(key).filter(|p| pod_state::is_active(p)) else { return Ok(()) };
        let mut new = Vec::new();
        for entry in entries(&pod) {
            match self.ensure(&pod, entry).await {
                Ok(name) => new.extend(name.map(|name| (entry.name.clone(), name))),
                Err(why) => {
                    let message = format!("PodResourceClaim {}: {why}", entry.name);
                    self.recorder.warning(pod.as_ref(), "FailedResourceClaimCreation", &message);
                    return Err(Error::Other(format!("pod {key}, {message}")));
                }
            }
        }
        if !new.is_empty() {
            self.note(&pod, &new).await?;
        }
        // The scheduler reserves the claims of the pods it places.
        if pod_state::node_name(&pod).is_empty() {
            return Ok(());
        }
        for entry in entries(&pod) {
            let Some(name) = reference(&pod, entry).ok().and_then(Reference::name) else { continue };
            let Some(claim) = self.claims.get(pod.metadata.namespace(), name) else { return Ok(()) };
            if entry.resource_claim_template_name.is_some() {
                check_owner(&pod, &claim).map_err(Error::Other)?;
            }
            if may_reserve(&pod, &claim) {
                self.reserve(&pod, &claim).await?;
            }
        }
        Ok(())
    }

    /// Makes the claim of an entry where there is none; the name where the pod's status does not have it.
    async fn ensure(&self, pod: &Pod, entry: &PodResourceClaim) -> Result<Option<String>, String> {
        match reference(pod, entry) {
            Ok(Reference::Unneeded) => return Ok(None),
            Ok(found) => {
                let claim = found.name().and_then(|name| self.claims.get(pod.metadata.namespace(), name));
                let is_its = |c: &ResourceClaim| matches!(found, Reference::Named(_)) || check_owner(pod, c).is_ok();
                if claim.is_some_and(|c| is_its(&c)) {
                    return Ok(None);
                }
            }
            Err(gantry_api::resource::pod_claim::Unknown::NotCreated(_)) => {}
            Err(e) => return Err(format!("checking for claim before creating it: {e}")),
        }
        let Some(template_name) = &entry.resource_claim_template_name else { return Ok(None) };
        if let Some(name) = self.orphan(pod, entry).await? {
            return Ok(Some(name));
        }
        let template = self.templates.get(pod.metadata.namespace(), template_name).ok_or_else(|| {
            let why = format!("resourceclaimtemplate.resource.k8s.io {template_name:?} not found");
            format!("resource claim template {template_name:?}: {why}")
        })?;
        let claim: ResourceClaim =
            serde_json::from_value(made_from(pod, entry, &json!(*template))).map_err(|e| e.to_string())?;
        let api = Api::<ResourceClaim>::namespaced(self.setup.client.clone(), pod.metadata.namespace());
        let made = api.create(&PostParams::default(), &claim).await;
        // The claim has no name yet that could be told.
        let made = made.map_err(|e| format!("create ResourceClaim : {e}"))?;
        let name = made.metadata.name().to_owned();
        self.made.lock().insert((pod.metadata.uid().to_owned(), entry.name.clone()), name.clone());
        Ok(Some(name))
    }

    /// A claim that was made for the entry before, but is not noted in the pod.
    async fn orphan(&self, pod: &Pod, entry: &PodResourceClaim) -> Result<Option<String>, String> {
        let found = self.by_owner.get(pod.metadata.uid());
        let is_its = |c: &&Arc<ResourceClaim>| c.metadata.annotation(POD_CLAIM_NAME) == Some(entry.name.as_str());
        if let Some(claim) = found.iter().find(is_its) {
            return Ok(Some(claim.metadata.name().to_owned()));
        }
        let id = (pod.metadata.uid().to_owned(), entry.name.clone());
        let Some(name) = self.made.lock().get(&id).cloned() else { return Ok(None) };
        // The cache may not have heard of it yet, or of its end.
        let api = Api::<ResourceClaim>::namespaced(self.setup.client.clone(), pod.metadata.namespace());
        let live = api.get_opt(&name).await;
        if live.map_err(|e| format!("finding ResourceClaim for claim {}: {e}", entry.name))?.is_some() {
            return Ok(Some(name));
        }
        self.made.lock().remove(&id);
        Ok(None)
    }

    /// Notes the names of claims in the pod's status, with those noted already.
    async fn note(&self, pod: &Pod, new: &[(String, String)]) -> Result<(), Error> {
        let noted = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
        let mut statuses: Vec<Value> =
            noted.filter(|s| new.iter().all(|(name, _)| *name != s.name)).map(|s| json!(s)).collect();
        statuses.extend(new.iter().map(|(entry, claim)| json!({"name": entry, "resourceClaimName": claim})));
        let (namespace, name) = (pod.metadata.namespace(), pod.metadata.name());
        let patch = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace,
            "uid": pod.metadata.uid()}, "status": {"resourceClaimStatuses": statuses}});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), force: true, ..Default::default() };
        let api = Api::<Pod>::namespaced(self.setup.client.clone(), namespace);
        match api.patch_status(name, &params, &Patch::Apply(patch)).await {
            // Another pod has the name by now, or none.
            Err(e) if e.is("NotFound") || e.is("Conflict") => Ok(()),
            other => other
                .map(drop)
                .map_err(|e| Error::api(format!("update pod {} ResourceClaimStatuses", pod.metadata.key()), e)),
        }
    }

    async fn reserve(&self, pod: &Pod, claim: &ResourceClaim) -> Result<(), Error> {
        let mut claim = claim.clone();
        claim.status.get_or_insert_default().reserved_for.get_or_insert_default().push(
            ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".to_owned(),
                name: pod.metadata.name().to_owned(),
                uid: pod.metadata.uid().to_owned(),
            },
        );
        let api = Api::<ResourceClaim>::namespaced(self.setup.client.clone(), claim.metadata.namespace());
        let stored = api.update_status(&PostParams::default(), &claim).await;
        stored.map(drop).map_err(|e| Error::api(format!("reserve claim {} for pod", claim.metadata.key()), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;

    fn pod(node: &str, statuses: Value) -> Pod {
        Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"nodeName": node, "containers": [], "resourceClaims": [
                {"name": "a", "resourceClaimName": "shared"}, {"name": "b", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": statuses}}))
        .unwrap()
    }

    fn claim(name: &str, owner: &str, status: Value) -> Arc<ResourceClaim> {
        let value = json!({"metadata": {"name": name, "namespace": "n", "ownerReferences": [{"apiVersion": "v1",
            "kind": "Pod", "name": "p", "uid": owner, "controller": true}]}, "status": status});
        Arc::new(ResourceClaim::from_value(value).unwrap())
    }

    #[test]
    fn work_is_seen() {
        let noted = json!([{"name": "b", "resourceClaimName": "p-b-x"}]);
        let needs = |pod: &Pod, shared: Value, owner: Option<&str>| {
            needs_work(pod, |name| match name {
                "shared" if shared.is_null() => None,
                "shared" => Some(claim("shared", "", shared.clone())),
                _ => owner.map(|o| claim(name, o, json!({}))),
            })
        };
        assert!(needs(&pod("", json!([])), json!({}), None), "its claim is to be made");
        assert!(!needs(&pod("", json!([])), Value::Null, None), "the user has to make the other first");
        assert!(!needs(&pod("", noted.clone()), json!({}), Some("u")));
        assert!(needs(&pod("", noted.clone()), json!({}), None), "it was deleted");
        assert!(!needs(&pod("", noted.clone()), json!({}), Some("v")), "another's claim is in the way");
        let allocated = json!({"allocation": {}});
        assert!(!needs(&pod("", noted.clone()), allocated.clone(), Some("u")), "the scheduler will");
        assert!(needs(&pod("node", noted.clone()), allocated, Some("u")), "nobody else reserves it");
        let mut ended = pod("node", noted.clone());
        ended.status.get_or_insert_default().phase = Some("Failed".into());
        assert!(!needs(&ended, json!({"allocation": {}}), Some("u")), "it has ended");
        let reserved = json!({"allocation": {}, "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]});
        assert!(!needs(&pod("node", noted), reserved, Some("u")));
    }

    #[test]
    fn names_of_claims_keep_something_of_both() {
        assert_eq!(base("web-0", "gpu"), "web-0-gpu-");
        let (pod, entry) = ("p".repeat(60), "e".repeat(20));
        let name = base(&pod, &entry);
        assert_eq!(name, format!("{}-{}", "p".repeat(60 * 57 / 82), "e".repeat(20 * 57 / 82)));
        assert!(name.len() <= BASE_MAX);
    }

    #[test]
    fn claims_take_after_their_template() {
        let template = json!({"spec": {"metadata": {"labels": {"l": "v"}}, "spec": {"devices": {}}}});
        let pod = pod("", json!([]));
        let made = made_from(&pod, &entries(&pod)[1], &template);
        assert_eq!(made["metadata"]["annotations"], json!({POD_CLAIM_NAME: "b"}));
        assert_eq!(made["metadata"]["labels"], json!({"l": "v"}));
        assert_eq!(made["metadata"]["ownerReferences"][0]["blockOwnerDeletion"], true);
        assert_eq!(made["metadata"]["generateName"], "p-b-");
    }
}
