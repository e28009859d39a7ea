//! Claims of devices that pods get from templates, and what becomes of claims when the pods that use them end.
//!
//! A claim is made for each entry of a pod's `spec.resourceClaims` that names a template, owned by the pod, and its name
//! is noted in the pod's status. Who uses a claim stands in its `status.reservedFor`; users that have ended are taken
//! out, and with the last one the claim gives its devices back. A claim made for a pod that has ended goes at once.

mod claim;
mod pod;

use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_api::resource::pod_claim::claim_names;
use gantry_reconcile::store::{key, key_of};
use gantry_reconcile::{
    Change, Controller, Error, EventRecorder, Index, Informer, Outcome, Queue, runner, wait_synced,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

const WORKERS: usize = 10;
const OF_POD: &str = "pod:";
const OF_CLAIM: &str = "claim:";
const GROUP: &[&str] = &["resource.k8s.io"];

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["pods"], &["get", "list", "watch"]),
    Rule::new(&[""], &["pods/finalizers"], &["update"]),
    Rule::new(GROUP, &["resourceclaims"], &["create", "delete", "get", "list", "watch"]),
    Rule::new(GROUP, &["resourceclaimtemplates"], &["get", "list", "watch"]),
    Rule::new(GROUP, &["resourceclaims", "resourceclaims/status"], &["patch", "update"]),
    Rule::new(GROUP, &["resourceclaims/binding"], &["patch", "update"]),
    // What drivers told of devices goes with the allocation.
    Rule::new(GROUP, &["resourceclaims/driver"], &["arbitrary-node:patch", "arbitrary-node:update"]),
    Rule::new(&[""], &["pods/status"], &["patch", "update"]),
    EVENTS,
];

struct Claims {
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    /// Claims by the UID of the pod they were made for.
    by_owner: Index<ResourceClaim>,
    /// Names of claims made for a pod's entries, by the pod's UID and the entry's name: until the cache has them,
    /// another one must not be made.
    made: Mutex<BTreeMap<(String, String), String>>,
    recorder: EventRecorder,
    setup: Setup,
}

/// The pod that a claim was made for: its name and UID.
fn owning_pod(claim: &ResourceClaim) -> Option<(&str, &str)> {
    let owner = gantry_reconcile::owner::controller_of(&claim.metadata)?;
    (owner.api_version == "v1" && owner.kind == "Pod").then_some((owner.name.as_str(), owner.uid.as_str()))
}

/// Whether it is certain that no container of the pod runs or will run.
fn is_done(pod: &Pod) -> bool {
    pod_state::is_finished(pod) || (pod.metadata.is_deleting() && pod_state::node_name(pod).is_empty())
}

fn uses_claims(pod: &Pod) -> bool {
    let listed = pod.spec.as_ref().and_then(|s| s.resource_claims.as_ref()).is_some_and(|c| !c.is_empty());
    listed || pod.status.as_ref().is_some_and(|s| s.extended_resource_claim_status.is_some())
}

/// `namespace/name` of the claims a pod uses.
fn claims_of(pod: &Pod) -> Vec<String> {
    claim_names(pod).map(|name| key(pod.metadata.namespace(), name)).collect()
}

/// `namespace/name` of the templates a pod's claims are made from.
fn templates_of(pod: &Pod) -> Vec<String> {
    let entries = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten());
    let names = entries.filter_map(|e| e.resource_claim_template_name.as_deref());
    names.map(|name| key(pod.metadata.namespace(), name)).collect()
}

/// Queues what a pod's state asks for.
fn queue_pod(queue: &Queue, claims: &Informer<ResourceClaim>, pod: &Pod, gone: bool) {
    if !uses_claims(pod) {
        return;
    }
    if gone || is_done(pod) {
        for name in claims_of(pod) {
            queue.add(format!("{OF_CLAIM}{name}"));
        }
    }
    if !gone && pod::needs_work(pod, |name| claims.get(pod.metadata.namespace(), name)) {
        queue.add(format!("{OF_POD}{}", key_of(pod)));
    }
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let pods = setup.informers.get::<Pod>();
    let claims = setup.informers.get::<ResourceClaim>();
    let templates = setup.informers.get::<ResourceClaimTemplate>();
    let by_owner = claims.index("owning-pod", |c| owning_pod(c).map(|(_, uid)| uid.to_owned()).into_iter().collect());
    let (by_claim, by_template) = (pods.index("device-claim", claims_of), pods.index("device-template", templates_of));
    let queue = Queue::new(setup.name);
    let (recorder, cancel) = (setup.recorder("resource_claim"), setup.cancel.clone());
    let controller = Arc::new(Claims {
        pods: pods.clone(),
        claims: claims.clone(),
        templates: templates.clone(),
        by_owner,
        made: Mutex::default(),
        recorder,
        setup,
    });
    let (q, known, me) = (queue.clone(), claims.clone(), controller.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        let gone = matches!(change, Change::Deleted(_));
        queue_pod(&q, &known, pod, gone);
        if gone && uses_claims(pod) {
            me.made.lock().retain(|(uid, _), _| uid != pod.metadata.uid());
        }
    });
    let (q, known) = (queue.clone(), claims.clone());
    claims.on_change(move |change| {
        let claim = key_of(change.object().as_ref());
        for pod in by_claim.get(&claim) {
            queue_pod(&q, &known, &pod, false);
        }
        if !matches!(change, Change::Deleted(_)) {
            q.add(format!("{OF_CLAIM}{claim}"));
        }
    });
    let (q, known) = (queue.clone(), claims.clone());
    templates.on_change(move |change| {
        // Pods that came before their template need not wait for the next try.
        if let Change::Added(template) = change {
            for pod in by_template.get(&key_of(template.as_ref())) {
                queue_pod(&q, &known, &pod, false);
            }
        }
    });
    if !wait_synced(&[&pods, &claims, &templates], &cancel).await {
        return;
    }
    runner::run(controller, queue, WORKERS, cancel).await;
}

#[async_trait]
impl Controller for Claims {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        if let Some(pod) = key.strip_prefix(OF_POD) {
            self.sync_pod(pod).await?;
        } else if let Some(claim) = key.strip_prefix(OF_CLAIM) {
            self.sync_claim(claim).await?;
        }
        Ok(Outcome::done())
    }
}
