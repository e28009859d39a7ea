//! What becomes of a claim when those who used it end.

use super::{Claims, is_done, owning_pod};
use gantry_api::meta::object::Meta;
use gantry_api::resource::pod_claim::{FINALIZER, is_pod};
use gantry_client::{Api, DeleteParams, PostParams};
use gantry_reconcile::Error;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};

fn reserved_for(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default()
}

fn is_held(claim: &ResourceClaim) -> bool {
    claim.metadata.finalizers_or_empty().iter().any(|f| f == FINALIZER)
}

/// What is written of a claim, in this order.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    /// The claim with its new status.
    status: Option<ResourceClaim>,
    /// Whether nothing needs to hold it any more.
    release: bool,
}

/// What has to change where these users are left. With the last user the claim gives its devices back, so that the next
/// one may get others, on another node; a claim that had none is left as it is, for it may be about to get one.
fn settle(claim: &ResourceClaim, valid: &[ResourceClaimConsumerReference]) -> Changes {
    let held = is_held(claim);
    let mut changed = claim.clone();
    let status = changed.status.get_or_insert_default();
    if valid.len() < reserved_for(claim).len() {
        status.reserved_for = (!valid.is_empty()).then(|| valid.to_vec());
        if valid.is_empty() && held {
            status.allocation = None;
        }
        let release = held && status.allocation.is_none();
        return Changes { status: Some(changed), release };
    }
    if held && claim.metadata.is_deleting() && valid.is_empty() {
        let allocated = status.allocation.take().is_some();
        return Changes { status: allocated.then_some(changed), release: true };
    }
    Changes::default()
}

impl Claims {
    pub(super) async fn sync_claim(&self, key: &str) -> Result<(), Error> {
        let Some(claim) = self.claims.store().by_key(key) else { return Ok(()) };
        let mut valid = Vec::new();
        for user in reserved_for(&claim) {
            if !is_pod(user) {
                return Err(Error::Other(format!("unsupported ReservedFor entry: {user:?}")));
            }
            if self.still_uses(claim.metadata.namespace(), user).await? {
                valid.push(user.clone());
            }
        }
        let api = Api::<ResourceClaim>::namespaced(self.setup.client.clone(), claim.metadata.namespace());
        let failed = |what: &str, e| Error::api(format!("{what} of claim {key}"), e);
        let changes = settle(&claim, &valid);
        let mut latest = (*claim).clone();
        // Whole objects, not patches: what changed meanwhile must not be lost.
        if let Some(changed) = &changes.status {
            let stored = api.update_status(&PostParams::default(), changed).await;
            latest = match stored {
                Ok(stored) => stored,
                Err(e) if e.is("NotFound") => return Ok(()),
                Err(e) => return Err(failed("update status", e)),
            };
        }
        if changes.release {
            latest.metadata.finalizers.get_or_insert_default().retain(|f| f != FINALIZER);
            match api.update(&PostParams::default(), &latest).await {
                Ok(_) => {}
                Err(e) if e.is("NotFound") => return Ok(()),
                Err(e) => return Err(failed("update finalizers", e)),
            }
        }
        if valid.is_empty() && !claim.metadata.is_deleting() && self.has_outlived_its_pod(&claim) {
            let params = DeleteParams { precondition_uid: claim.metadata.uid.clone(), ..Default::default() };
            match api.delete(claim.metadata.name(), &params).await {
                Ok(_) => {}
                Err(e) if e.is("NotFound") || e.is("Conflict") => {}
                Err(e) => return Err(Error::api(format!("delete claim {key}"), e)),
            }
        }
        Ok(())
    }

    /// Whether a pod may still use what it reserved.
    async fn still_uses(&self, namespace: &str, user: &ResourceClaimConsumerReference) -> Result<bool, Error> {
        if let Some(pod) = self.pods.get(namespace, &user.name) {
            return Ok(pod.metadata.uid() == user.uid && !is_done(&pod));
        }
        // The cache may not have heard of a pod yet that the scheduler is placing: the server's word counts.
        let api = Api::<Pod>::namespaced(self.setup.client.clone(), namespace);
        let found = api.get_opt(&user.name).await;
        let found = found.map_err(|e| Error::api(format!("get pod {namespace}/{}", user.name), e))?;
        Ok(found.is_some_and(|p| p.metadata.uid() == user.uid))
    }

    /// Whether the claim was made for a pod that will not need it. Where the pod is not there, the garbage collector
    /// knows.
    fn has_outlived_its_pod(&self, claim: &ResourceClaim) -> bool {
        let Some((name, uid)) = owning_pod(claim) else { return false };
        let pod = self.pods.get(claim.metadata.namespace(), name);
        pod.is_some_and(|p| p.metadata.uid() != uid || is_done(&p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::{Value, json};

    fn claim(meta: Value, users: &[&str], allocated: bool) -> ResourceClaim {
        let users: Vec<Value> = users.iter().map(|u| json!({"resource": "pods", "name": u, "uid": u})).collect();
        let mut metadata = json!({"name": "c", "namespace": "n"});
        metadata.as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
        let mut status = json!({"reservedFor": users});
        if allocated {
            status["allocation"] = json!({});
        }
        ResourceClaim::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    #[test]
    fn the_last_user_gives_the_devices_back() {
        let held = || json!({"finalizers": [FINALIZER]});
        let both = claim(held(), &["a", "b"], true);
        let users = reserved_for(&both).to_vec();
        assert_eq!(settle(&both, &users), Changes::default());
        let one = settle(&both, &users[..1]);
        assert_eq!((one.status.unwrap(), one.release), (claim(held(), &["a"], true), false));
        let none = settle(&both, &[]);
        let status = none.status.unwrap().status.unwrap();
        assert_eq!((status, none.release), (Default::default(), true));
        let of_another = settle(&claim(json!({}), &["a"], true), &[]);
        assert!(of_another.status.unwrap().status.unwrap().allocation.is_some() && !of_another.release);
        assert_eq!(settle(&claim(held(), &[], true), &[]), Changes::default(), "it may be about to get a user");
        let going = || json!({"finalizers": [FINALIZER], "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let gone = settle(&claim(going(), &[], true), &[]);
        assert!(gone.status.unwrap().status.unwrap().allocation.is_none() && gone.release);
        assert_eq!(settle(&claim(going(), &[], false), &[]), Changes { status: None, release: true });
    }
}
