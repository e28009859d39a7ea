//! Deletes pods that use devices with a `NoExecute` taint that their claims do not tolerate, or no longer (KEP-5055).
//! The taints stand in ResourceSlices or come from DeviceTaintRules, whose conditions tell how far it has got.

mod evictions;
mod status;

use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use evictions::{Devices, Eviction, NO_EXECUTE, devices, driving_taints, pool_key, results};
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_api::resource::pod_claim::{is_pod, rule_matches};
use gantry_client::{Api, DeleteParams, Patch, PatchParams};
use gantry_reconcile::store::{key, key_of};
use gantry_reconcile::{
    Change, Controller, Error, EventRecorder, Index, Informer, Outcome, Queue, runner, wait_synced,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceTaintRule, ResourceClaim, ResourceSlice};
use parking_lot::Mutex;
use serde_json::json;
use status::{Counts, condition, differs, present};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 8;
const OF_POD: &str = "pod:";
const OF_RULE: &str = "rule:";
const GROUP: &[&str] = &["resource.k8s.io"];
/// A rule's condition changes no more often than this.
const STATUS_PERIOD: Duration = Duration::from_secs(10);

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["pods"], &["delete", "get", "list", "watch"]),
    Rule::new(&[""], &["pods/status"], &["patch", "update"]),
    Rule::new(GROUP, &["resourceclaims"], &["get", "list", "watch"]),
    Rule::new(GROUP, &["resourceslices"], &["get", "list", "watch"]),
    Rule::new(GROUP, &["deviceclasses"], &["get", "list", "watch"]),
    Rule::new(GROUP, &["devicetaintrules/status"], &["patch", "update"]),
    Rule::new(GROUP, &["devicetaintrules"], &["get", "list", "watch"]),
    EVENTS,
];

struct Evictions {
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    rules: Informer<DeviceTaintRule>,
    slices_by_pool: Index<ResourceSlice>,
    queue: Queue,
    recorder: EventRecorder,
    setup: Setup,
    /// Pods that will go at a time, unless something changes.
    pending: Mutex<BTreeSet<String>>,
    /// Pods driven away, by the rule's UID.
    evicted: Mutex<BTreeMap<String, u64>>,
}

/// Queues the pods that use a claim.
fn queue_users(queue: &Queue, claim: &ResourceClaim) {
    let users = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
    for user in users.filter(|u| is_pod(u)) {
        queue.add(format!("{OF_POD}{}", key(claim.metadata.namespace(), &user.name)));
    }
}

fn pools_of(claim: &ResourceClaim) -> Vec<String> {
    let pools: BTreeSet<String> = results(claim).iter().map(|r| pool_key(&r.driver, &r.pool)).collect();
    pools.into_iter().collect()
}

fn has_claims(pod: &Pod) -> bool {
    let listed = pod.spec.as_ref().and_then(|s| s.resource_claims.as_ref()).is_some_and(|c| !c.is_empty());
    listed || pod.status.as_ref().is_some_and(|s| s.extended_resource_claim_status.is_some())
}

/// Whether a pod's change can change when it must go.
fn concerns(change: &Change<Pod>) -> bool {
    let names = |p: &Pod| {
        p.status.as_ref().map(|s| (s.resource_claim_statuses.clone(), s.extended_resource_claim_status.clone()))
    };
    match change {
        Change::Added(pod) | Change::Deleted(pod) => has_claims(pod),
        Change::Modified { old, new } => {
            has_claims(new) && (pod_state::node_name(old) != pod_state::node_name(new) || names(old) != names(new))
        }
    }
}

/// Whether a rule's change can change when pods must go.
fn is_driving(rule: &DeviceTaintRule) -> bool {
    rule.spec.taint.effect == NO_EXECUTE
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let pods = setup.informers.get::<Pod>();
    let claims = setup.informers.get::<ResourceClaim>();
    let slices = setup.informers.get::<ResourceSlice>();
    let rules = setup.informers.get::<DeviceTaintRule>();
    let slices_by_pool = slices.index("pool", |s| vec![pool_key(&s.spec.driver, &s.spec.pool.name)]);
    let claims_by_pool = claims.index("pool", pools_of);
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    pods.on_change(move |change| {
        if concerns(change) {
            q.add(format!("{OF_POD}{}", key_of(change.object().as_ref())));
        }
    });
    let q = queue.clone();
    claims.on_change(move |change| {
        for claim in change.old().into_iter().chain([change.object()]) {
            queue_users(&q, claim);
        }
    });
    let q = queue.clone();
    slices.on_change(move |change| {
        let slice = change.object();
        // Also a slice without taints counts: with a new generation it outdates others.
        let unchanged = change.old().is_some_and(|old| {
            driving_taints(old) == driving_taints(slice) && old.spec.pool.generation == slice.spec.pool.generation
        });
        if !unchanged {
            for claim in claims_by_pool.get(&pool_key(&slice.spec.driver, &slice.spec.pool.name)) {
                queue_users(&q, &claim);
            }
        }
    });
    let (q, all) = (queue.clone(), claims.clone());
    rules.on_change(move |change| {
        let rule = change.object();
        if change.old().is_some_and(|old| old.spec == rule.spec) {
            return;
        }
        q.add(format!("{OF_RULE}{}", rule.metadata.name()));
        let driving: Vec<&Arc<DeviceTaintRule>> =
            change.old().into_iter().chain([rule]).filter(|r| is_driving(r)).collect();
        let selects = |claim: &ResourceClaim| {
            let mut given = results(claim).iter();
            given.any(|d| driving.iter().any(|r| rule_matches(r, &d.driver, &d.pool, &d.device)))
        };
        if !driving.is_empty() {
            all.list().iter().filter(|c| selects(c)).for_each(|c| queue_users(&q, c));
        }
    });
    if !wait_synced(&[&pods, &claims, &slices, &rules], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder(setup.name), setup.cancel.clone());
    let controller = Evictions {
        pods,
        claims,
        rules,
        slices_by_pool,
        queue: queue.clone(),
        recorder,
        setup,
        pending: Mutex::default(),
        evicted: Mutex::default(),
    };
    runner::run(Arc::new(controller), queue, WORKERS, cancel).await;
}

#[async_trait]
impl Controller for Evictions {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        if let Some(pod) = key.strip_prefix(OF_POD) {
            return self.sync_pod(pod).await;
        }
        match key.strip_prefix(OF_RULE) {
            Some(rule) => self.sync_rule(rule).await,
            None => Ok(Outcome::done()),
        }
    }
}

impl Evictions {
    fn eviction(&self, pod: &Pod, rules: &[Arc<DeviceTaintRule>]) -> Option<Eviction> {
        let slices = |pool: &str| self.slices_by_pool.get(pool);
        let devices = Devices { slices: &slices, rules, now: self.setup.config.clock.now() };
        devices.pod_eviction(pod, |name| self.claims.get(pod.metadata.namespace(), name))
    }

    /// The pod need not go after all, or has gone by itself: told only where its end was planned.
    fn call_off(&self, key: &str, pod: Option<&Pod>) -> Outcome {
        if self.pending.lock().remove(key)
            && let Some(pod) = pod
        {
            self.recorder.normal(pod, "DeviceTaintManagerEviction", "Cancelling deletion");
        }
        Outcome::done()
    }

    async fn sync_pod(&self, key: &str) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.store().by_key(key) else { return Ok(self.call_off(key, None)) };
        let Some(eviction) = self.eviction(&pod, &self.rules.list()) else { return Ok(self.call_off(key, Some(&pod))) };
        if pod.metadata.is_deleting() || pod_state::is_finished(&pod) {
            self.pending.lock().remove(key);
            return Ok(Outcome::done());
        }
        let named = self.rules.list().into_iter().filter(|r| eviction.rules.contains(r.metadata.uid()));
        let named: Vec<String> = named.map(|r| format!("{OF_RULE}{}", r.metadata.name())).collect();
        let left = eviction.when.duration_since(self.setup.config.clock.now());
        let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
        if !left.is_zero() {
            if self.pending.lock().insert(key.to_owned()) {
                named.into_iter().for_each(|rule| self.queue.add(rule));
            }
            return Ok(Outcome::after(left));
        }
        if self.evict(&pod).await? {
            let mut evicted = self.evicted.lock();
            for uid in eviction.rules {
                *evicted.entry(uid).or_default() += 1;
            }
        }
        self.pending.lock().remove(key);
        // Not at once: the cache would still have the pod.
        named.into_iter().for_each(|rule| self.queue.add_after(rule, STATUS_PERIOD));
        Ok(Outcome::done())
    }

    /// Deletes the pod; false where it was going already.
    async fn evict(&self, pod: &Pod) -> Result<bool, Error> {
        let (name, key) = (pod.metadata.name(), pod.metadata.key());
        let api = Api::<Pod>::namespaced(self.setup.client.clone(), pod.metadata.namespace());
        let live = api.get_opt(name).await.map_err(|e| Error::api(format!("get pod {key}"), e))?;
        let Some(live) = live.filter(|l| l.metadata.uid == pod.metadata.uid && !l.metadata.is_deleting()) else {
            return Ok(false);
        };
        self.recorder.normal(&live, "DeviceTaintManagerEviction", "Marking for deletion");
        let mark = json!({
            "metadata": {"uid": live.metadata.uid()},
            "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByDeviceTaintManager",
                "message": "Device Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": self.setup.config.clock.time().0.to_string(),
            }]},
        });
        match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(mark)).await {
            Ok(_) => {}
            Err(e) if e.is("NotFound") || e.is("Conflict") => return Ok(false),
            Err(e) => return Err(Error::api(format!("mark pod {key} for eviction"), e)),
        }
        let params = DeleteParams { precondition_uid: live.metadata.uid.clone(), ..Default::default() };
        match api.delete(name, &params).await {
            Ok(_) => Ok(true),
            Err(e) if e.is("NotFound") || e.is("Conflict") => Ok(false),
            Err(e) => Err(Error::api(format!("evict pod {key}"), e)),
        }
    }

    /// The rule as it is, or, where it has no effect, as it would be with one.
    fn counts(&self, rule: &Arc<DeviceTaintRule>) -> Counts {
        let evicted = self.evicted.lock().get(rule.metadata.uid()).copied().unwrap_or_default();
        let tried = match rule.spec.taint.effect.as_str() {
            NO_EXECUTE => rule.clone(),
            "None" => {
                let mut tried = (**rule).clone();
                NO_EXECUTE.clone_into(&mut tried.spec.taint.effect);
                Arc::new(tried)
            }
            _ => return Counts { evicted, ..Counts::default() },
        };
        let rules = [tried];
        let pods = self.pods.list();
        let concerned = pods.iter().filter(|p| !p.metadata.is_deleting() && has_claims(p));
        let namespaces: Vec<&str> = concerned
            .filter(|p| self.eviction(p, &rules).is_some_and(|e| e.rules.contains(rule.metadata.uid())))
            .map(|p| p.metadata.namespace())
            .collect();
        let mut counts = Counts { evicted, ..Counts::of_pods(&namespaces) };
        if rule.spec.taint.effect == NO_EXECUTE {
            return counts;
        }
        for pool in self.slices_by_pool.values() {
            let slices = self.slices_by_pool.get(&pool);
            let Some(spec) = slices.first().map(|s| &s.spec) else { continue };
            let selected = devices(&slices).filter(|d| rule_matches(rule, &spec.driver, &spec.pool.name, &d.name));
            counts.published += selected.count();
        }
        for claim in self.claims.list() {
            let selected = results(&claim).iter().filter(|r| rule_matches(rule, &r.driver, &r.pool, &r.device));
            counts.allocated += selected.count();
        }
        counts
    }

    async fn sync_rule(&self, name: &str) -> Result<Outcome, Error> {
        let Some(rule) = self.rules.get("", name) else {
            let known = self.rules.list();
            self.evicted.lock().retain(|uid, _| known.iter().any(|r| r.metadata.uid() == uid));
            return Ok(Outcome::done());
        };
        let now = self.setup.config.clock.time();
        let old = present(&rule);
        if let Some(old) = old.filter(|c| c.observed_generation == rule.metadata.generation) {
            let since = Duration::try_from(now.0.duration_since(old.last_transition_time.0)).unwrap_or_default();
            if since < STATUS_PERIOD {
                return Ok(Outcome::after(STATUS_PERIOD.saturating_sub(since)));
            }
        }
        let new = condition(&rule, &self.counts(&rule), now);
        if !differs(&new, old) {
            return Ok(Outcome::done());
        }
        let patch = json!({"apiVersion": DeviceTaintRule::INFO.api_version(), "kind": DeviceTaintRule::INFO.kind,
            "metadata": {"name": name, "uid": rule.metadata.uid},
            "status": {"conditions": [new]}});
        let params = PatchParams { field_manager: Some(self.setup.name.to_owned()), force: true, ..Default::default() };
        let api = Api::<DeviceTaintRule>::all(self.setup.client.clone());
        match api.patch_status(name, &params, &Patch::Apply(patch)).await {
            Ok(_) => Ok(Outcome::done()),
            Err(e) if e.is("NotFound") || e.is("Conflict") => Ok(Outcome::done()),
            Err(e) => Err(Error::api(format!("add condition to DeviceTaintRule {name}"), e)),
        }
    }
}
