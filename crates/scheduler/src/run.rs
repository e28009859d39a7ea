//! The loop: take the most urgent pod, decide on the snapshot, assume the decision, bind in the background.

use crate::cycle::Cycle;
use crate::diagnosis::Diagnosis;
use crate::filter::volumes::Assignment;
use crate::filter::{self, Rejection, Usage};
use crate::pod::PodInfo;
use crate::preempt::{self, Budget, Candidate};
use crate::queue::{ClusterChange, Queue, Waiting};
use crate::score;
use crate::snapshot::{Row, Snapshot};
use crate::spread::DefaultConstraints;
use crate::volumes::Volumes;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::api::apps::v1::ReplicaSet;
use gantry_api::k8s_openapi::api::core::v1::{
    Binding, Namespace, Node, ObjectReference, Pod, PodCondition, ReplicationController, Service,
};
use gantry_api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use gantry_api::meta::labels::Selector;
use gantry_client::{Api, Client, DeleteParams, Patch, PatchParams, PostParams};
use gantry_reconcile::{Change, EventRecorder, Index, Informer, Informers};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Bindings under way at once. Each is one small request; more only queue up in the server.
const BINDINGS_MAX: usize = 128;
/// Decisions made before other tasks get a turn.
const DECISIONS_PER_TURN: usize = 16;
/// Below this many nodes all are looked at; above, enough of them (`minFeasibleNodesToFind`).
const SAMPLE_MIN: usize = 100;

/// Configuration of one scheduler.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Pods with this `spec.schedulerName` are ours.
    pub name: String,
    /// Time.
    pub clock: Clock,
    /// Chance, for ties.
    pub entropy: Entropy,
}

struct State {
    snapshot: Snapshot,
    queue: Queue,
    /// Pods placed by decision whose binding the informer has not shown yet.
    assumed: HashMap<String, Arc<PodInfo>>,
    next_start: usize,
}

struct Scheduler {
    config: SchedulerConfig,
    client: Client,
    recorder: EventRecorder,
    state: Mutex<State>,
    wake: Notify,
    bindings: Arc<Semaphore>,
    budgets: Informer<PodDisruptionBudget>,
    services: Index<Service>,
    replica_sets: Informer<ReplicaSet>,
    controllers: Informer<ReplicationController>,
    volumes: Volumes,
}

/// Runs until `cancel`. The informers must be started by the caller after this was first polled, or before; both work.
pub async fn run(client: Client, informers: &Informers, config: SchedulerConfig, cancel: CancellationToken) {
    let pods = informers.get::<Pod>();
    let nodes = informers.get::<Node>();
    let namespaces = informers.get::<Namespace>();
    let by_namespace = |s: &Service| vec![s.metadata.namespace.clone().unwrap_or_default()];
    let scheduler = Arc::new(Scheduler {
        recorder: EventRecorder::new(client.clone(), config.clock, &config.name, ""),
        volumes: Volumes::new(client.clone(), informers),
        client,
        state: Mutex::new(State {
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            assumed: HashMap::new(),
            next_start: 0,
        }),
        wake: Notify::new(),
        bindings: Arc::new(Semaphore::new(BINDINGS_MAX)),
        budgets: informers.get(),
        services: informers.get::<Service>().index("scheduler-namespace", by_namespace),
        replica_sets: informers.get(),
        controllers: informers.get(),
        config,
    });
    let s = scheduler.clone();
    nodes.on_change(move |c| s.node_changed(c));
    let s = scheduler.clone();
    namespaces.on_change(move |c| s.namespace_changed(c));
    let s = scheduler.clone();
    pods.on_change(move |c| s.pod_changed(c));
    // In this order, so that what makes a claim bound is known when the claim is.
    let s = scheduler.clone();
    scheduler.volumes.volumes.on_change(move |_| s.storage_changed());
    let s = scheduler.clone();
    scheduler.volumes.classes.on_change(move |_| s.storage_changed());
    let s = scheduler.clone();
    scheduler.volumes.drivers.on_change(move |_| s.storage_changed());
    let s = scheduler.clone();
    scheduler.volumes.claims.on_change(move |_| s.storage_changed());
    informers.start(&cancel);
    if !informers.wait_synced(&cancel).await {
        return;
    }
    scheduler.work(&cancel).await;
}

impl Scheduler {
    fn node_changed(&self, change: &Change<Node>) {
        let mut state = self.state.lock();
        let now = Instant::now();
        match change {
            Change::Added(node) => {
                state.snapshot.set_node(node);
                state.queue.changed(ClusterChange::NodeAdded, now);
            }
            Change::Modified { old, new } => {
                state.snapshot.set_node(new);
                let relevant = |n: &Node| {
                    (
                        n.metadata.labels.clone(),
                        n.spec.as_ref().map(|s| (s.taints.clone(), s.unschedulable)),
                        n.status.as_ref().map(|s| s.allocatable.clone()),
                    )
                };
                // Heartbeats change conditions only, and help nobody.
                if relevant(old) == relevant(new) {
                    return;
                }
                state.queue.changed(ClusterChange::NodeUpdated, now);
            }
            Change::Deleted(node) => {
                state.snapshot.remove_node(node.metadata.name.as_deref().unwrap_or_default());
                return;
            }
        }
        self.wake.notify_one();
    }

    fn namespace_changed(&self, change: &Change<Namespace>) {
        let mut state = self.state.lock();
        let name = change.object().metadata.name.clone().unwrap_or_default();
        match change {
            Change::Deleted(_) => {
                state.snapshot.namespaces.remove(&name);
            }
            Change::Added(ns) | Change::Modified { new: ns, .. } => {
                let labels = ns.metadata.labels.clone().unwrap_or_default();
                if state.snapshot.namespaces.insert(name, labels.clone()).is_some_and(|old| old != labels) {
                    state.queue.changed(ClusterChange::NamespaceUpdated, Instant::now());
                    self.wake.notify_one();
                }
            }
        }
    }

    fn storage_changed(&self) {
        self.state.lock().queue.changed(ClusterChange::Storage, Instant::now());
        self.wake.notify_one();
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let info = Arc::new(PodInfo::new(change.object().clone()));
        let mut state = self.state.lock();
        let state = &mut *state;
        let now = Instant::now();
        let gone = matches!(change, Change::Deleted(_)) || info.is_finished();
        if gone {
            state.assumed.remove(&info.uid);
            state.queue.remove(&info.uid);
            if state.snapshot.displace(&info.uid).is_some() {
                state.queue.changed(ClusterChange::PodGone, now);
                self.wake.notify_one();
            }
            return;
        }
        if let Some(node) = info.node() {
            let node = node.to_owned();
            let was_assumed = state.assumed.remove(&info.uid).is_some();
            state.queue.remove(&info.uid);
            let new_here = state.snapshot.row_of_pod(&info.uid).is_none();
            let shrank = change.old().is_some_and(|old| {
                let old = PodInfo::new(old.clone());
                old.requests != info.requests || (info.is_terminating() && !old.is_terminating())
            });
            let relabelled = change.old().is_some_and(|old| old.metadata.labels != info.pod.metadata.labels);
            state.snapshot.place(info, &node);
            if shrank {
                state.queue.changed(ClusterChange::PodGone, now);
            }
            if new_here || was_assumed || relabelled {
                state.queue.changed(ClusterChange::PodPlaced, now);
            }
            self.wake.notify_one();
            return;
        }
        let ours = info.spec().scheduler_name.as_deref().unwrap_or("default-scheduler") == self.config.name;
        if !ours || state.assumed.contains_key(&info.uid) {
            return;
        }
        if info.is_terminating() {
            state.queue.remove(&info.uid);
            return;
        }
        // Our own status patches come back as changes; only what a person or controller changed is a reason to retry.
        let changed = change
            .old()
            .is_some_and(|old| old.spec != info.pod.spec || old.metadata.labels != info.pod.metadata.labels);
        state.queue.put(info, changed);
        self.wake.notify_one();
    }

    async fn work(self: &Arc<Self>, cancel: &CancellationToken) {
        let mut turn = 0;
        while !cancel.is_cancelled() {
            let (waiting, timer) = {
                let mut state = self.state.lock();
                let waiting = state.queue.pop(Instant::now());
                (waiting, state.queue.next_timer())
            };
            if let Some(waiting) = waiting {
                self.attempt(waiting).await;
                turn += 1;
                if turn % DECISIONS_PER_TURN == 0 {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            let timer = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // In order: where several are ready at once, chance must not decide, or two runs from one seed would differ.
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = self.wake.notified() => {}
                () = timer => {}
            }
        }
    }

    /// Decides on one pod and sets what follows in motion.
    async fn attempt(self: &Arc<Self>, waiting: Waiting) {
        let pod = waiting.pod;
        let permit = self.bindings.clone().acquire_owned().await;
        let decision = {
            let mut state = self.state.lock();
            let decision = self.decide(&mut state, &pod);
            match &decision {
                Ok((node, assignment)) => {
                    state.snapshot.place(pod.clone(), node);
                    state.assumed.insert(pod.uid.clone(), pod.clone());
                    self.volumes.promise(assignment);
                }
                Err(failure) => {
                    state.queue.unschedulable(&pod.uid, failure.diagnosis.plugins(), Instant::now());
                }
            }
            decision
        };
        let scheduler = self.clone();
        tokio::spawn(async move {
            match decision {
                Ok((node, assignment)) => scheduler.bind_all(&pod, &node, &assignment).await,
                Err(failure) => scheduler.report(&pod, *failure).await,
            }
            drop(permit);
        });
    }

    /// The node for a pod, and how its claims are met there.
    fn decide(&self, state: &mut State, pod: &Arc<PodInfo>) -> Result<(String, Assignment), Box<Failure>> {
        let defaults = self.default_constraints(pod);
        let nominations = state.queue.nominations();
        let snapshot = &state.snapshot;
        let volumes = match self.volumes.of_pod(pod) {
            Ok(volumes) => volumes,
            Err((plugin, refusal)) => {
                let rejection = Rejection { plugin, reasons: vec![refusal.clone()], unresolvable: true };
                let rejections = snapshot.node_rows().map(|row| (row, rejection.clone())).collect();
                let nodes = snapshot.node_count();
                let diagnosis = Diagnosis { nodes, rejections, refusal: Some(refusal), ..Default::default() };
                let cycle = Cycle::new(snapshot, pod.clone(), &defaults, None);
                return Err(self.failure(state, &cycle, diagnosis));
            }
        };
        let cycle = Cycle::new(snapshot, pod.clone(), &defaults, volumes);
        let chosen = |row: Row| {
            let assigned = cycle.volumes.as_ref().and_then(|v| filter::volumes::assign(snapshot, row, v));
            (snapshot.names[row].clone(), assigned.unwrap_or_default())
        };
        let check = |row: Row| -> Result<(), filter::Rejection> {
            // Pods of at least the same priority that were promised the node count as if they were there; the pod must
            // fit with and without them, since they may never come.
            let rivals: Vec<&Arc<PodInfo>> = nominations
                .iter()
                .filter(|(n, p)| *n == snapshot.names[row] && p.uid != pod.uid && p.priority >= pod.priority)
                .map(|(_, p)| p)
                .collect();
            if !rivals.is_empty() {
                let (mut with, mut usage) = (cycle.clone(), Usage::of(snapshot, row));
                for rival in rivals {
                    with.add(snapshot, row, rival);
                    usage.add(rival);
                }
                filter::run(snapshot, row, &with, Some(&usage))?;
            }
            filter::run(snapshot, row, &cycle, None)
        };
        // The node promised by an earlier preemption comes first.
        if let Some(row) = pod.nominated_node().and_then(|n| snapshot.row(n))
            && check(row).is_ok()
        {
            return Ok(chosen(row));
        }
        let enough = sample_size(snapshot.node_count());
        let rows = snapshot.row_count();
        let mut feasible = Vec::new();
        let mut diagnosis = Diagnosis { nodes: snapshot.node_count(), ..Default::default() };
        let mut looked_at = 0;
        for i in 0..rows {
            let row = (state.next_start + i) % rows;
            looked_at += 1;
            if !snapshot.live[row] {
                continue;
            }
            match check(row) {
                Ok(()) => feasible.push(row),
                Err(rejection) => diagnosis.rejections.push((row, rejection)),
            }
            if feasible.len() >= enough {
                break;
            }
        }
        if rows > 0 {
            state.next_start = (state.next_start + looked_at) % rows;
        }
        match feasible.as_slice() {
            [] => Err(self.failure(state, &cycle, diagnosis)),
            [only] => Ok(chosen(*only)),
            many => {
                let scores = score::total(snapshot, &cycle, many);
                let best = scores.iter().copied().max().unwrap_or(0);
                let top: Vec<Row> = many.iter().zip(&scores).filter(|(_, s)| **s == best).map(|(r, _)| *r).collect();
                let pick = self.config.entropy.below(top.len() as u64);
                Ok(chosen(top[usize::try_from(pick).unwrap_or(0)]))
            }
        }
    }

    fn failure(&self, state: &State, cycle: &Cycle, mut diagnosis: Diagnosis) -> Box<Failure> {
        let pod = &cycle.pod;
        let mut preemption = None;
        if diagnosis.nodes > 0 {
            match preempt::eligible(&state.snapshot, pod) {
                Ok(()) => {
                    let budgets: Vec<Budget> = self.budgets.list().iter().filter_map(|b| Budget::new(b)).collect();
                    let nominated = |node: &str| state.queue.nominated_for(node, &pod.uid);
                    preemption = preempt::find(&state.snapshot, cycle, &mut diagnosis, &budgets, &nominated);
                }
                Err(reason) => {
                    diagnosis.preemption.insert(reason.trim_end_matches('.').to_owned(), diagnosis.nodes);
                }
            }
        }
        let preemption = preemption.map(|c| {
            let node = state.snapshot.names[c.row].clone();
            let losers =
                state.queue.nominated_for(&node, &pod.uid).into_iter().filter(|p| p.priority < pod.priority).collect();
            Preemption { candidate: c, node, losers }
        });
        Box::new(Failure { diagnosis, preemption })
    }

    /// Soft spreading for pods of one Service or controller.
    fn default_constraints(&self, pod: &PodInfo) -> DefaultConstraints {
        if pod.spec().topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty()) {
            return DefaultConstraints(None);
        }
        let mut set: BTreeMap<String, String> = BTreeMap::new();
        for service in self.services.get(&pod.namespace) {
            if let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty())
                && selector.iter().all(|(k, v)| pod.labels().get(k) == Some(v))
            {
                set.extend(selector.clone());
            }
        }
        let mut selector = Selector::from_set(&set);
        if let Some(owner) = gantry_reconcile::owner::controller_of(&pod.pod.metadata) {
            match owner.kind.as_str() {
                "ReplicaSet" => {
                    if let Some(rs) = self.replica_sets.get(&pod.namespace, &owner.name)
                        && let Ok(own) = Selector::from_label_selector(Some(&rs.spec.selector))
                    {
                        own.requirements().iter().cloned().for_each(|r| selector.add(r));
                    }
                }
                "ReplicationController" => {
                    if let Some(rc) = self.controllers.get(&pod.namespace, &owner.name)
                        && let Some(own) = rc.spec.as_ref().and_then(|s| s.selector.as_ref())
                    {
                        Selector::from_set(own).requirements().iter().cloned().for_each(|r| selector.add(r));
                    }
                }
                _ => {}
            }
        }
        DefaultConstraints((!selector.is_empty()).then_some(selector))
    }

    /// Binds the pod's claims, then the pod.
    async fn bind_all(&self, pod: &Arc<PodInfo>, node: &str, assignment: &Assignment) {
        if !assignment.awaited.is_empty() {
            let bound = self.volumes.bind(assignment, node).await;
            self.volumes.forget(assignment);
            if let Err(error) = bound {
                let message = format!("running PreBind plugin \"VolumeBinding\": {error}");
                self.recorder.warning(pod.pod.as_ref(), "FailedScheduling", &message);
                self.take_back(pod, |queue| queue.failed(&pod.uid, Instant::now()));
                return;
            }
        }
        self.bind(pod, node).await;
    }

    /// Undoes a placement that was assumed.
    fn take_back(&self, pod: &PodInfo, then: impl FnOnce(&mut Queue)) {
        let mut state = self.state.lock();
        if state.assumed.remove(&pod.uid).is_some() {
            state.snapshot.displace(&pod.uid);
            state.queue.changed(ClusterChange::PodGone, Instant::now());
        }
        then(&mut state.queue);
        drop(state);
        self.wake.notify_one();
    }

    async fn bind(&self, pod: &Arc<PodInfo>, node: &str) {
        let mut binding = Binding::default();
        binding.metadata.name = Some(pod.name.clone());
        binding.metadata.namespace = Some(pod.namespace.clone());
        binding.metadata.uid = Some(pod.uid.clone());
        binding.target =
            ObjectReference { kind: Some("Node".into()), name: Some(node.to_owned()), ..Default::default() };
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        match api.post_subresource(&pod.name, "binding", &PostParams::default(), &binding).await {
            Ok(()) => {
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.recorder.normal(pod.pod.as_ref(), "Scheduled", &message);
                // Where the informer showed the pod already, it is out of the queue; where not, nothing may take it again.
                self.state.lock().queue.remove(&pod.uid);
            }
            Err(error) => {
                if error.is("NotFound") {
                    debug!(pod = pod.key, "pod went away before it was bound");
                    self.take_back(pod, |queue| queue.remove(&pod.uid));
                } else {
                    warn!(pod = pod.key, node, %error, "binding failed; will retry");
                    self.take_back(pod, |queue| queue.failed(&pod.uid, Instant::now()));
                }
            }
        }
    }

    /// Tells why a pod was not placed, and makes room where preemption can.
    async fn report(&self, pod: &Arc<PodInfo>, failure: Failure) {
        let message = failure.diagnosis.message();
        self.recorder.warning(pod.pod.as_ref(), "FailedScheduling", &message);
        let nominated = failure.preemption.as_ref().map(|p| p.node.as_str());
        self.patch_unscheduled(pod, &message, nominated).await;
        if let Some(preemption) = failure.preemption {
            self.evict(pod, preemption).await;
        }
    }

    async fn patch_unscheduled(&self, pod: &PodInfo, message: &str, nominated: Option<&str>) {
        let current = |pod: &Pod| -> Option<PodCondition> {
            let conditions = pod.status.as_ref()?.conditions.as_ref()?;
            conditions.iter().find(|c| c.type_ == "PodScheduled").cloned()
        };
        let same = current(&pod.pod).is_some_and(|c| {
            c.status == "False" && c.reason.as_deref() == Some("Unschedulable") && c.message.as_deref() == Some(message)
        });
        if same && nominated.is_none_or(|n| pod.nominated_node() == Some(n)) {
            return;
        }
        let since = current(&pod.pod).filter(|c| c.status == "False").and_then(|c| c.last_transition_time);
        let mut status = json!({
            "conditions": [{
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
                "lastProbeTime": null,
                "lastTransitionTime": since.unwrap_or_else(|| self.config.clock.time()),
            }],
        });
        if let Some(node) = nominated {
            status["nominatedNodeName"] = json!(node);
        }
        self.patch_status(pod, json!({ "metadata": { "uid": pod.uid }, "status": status })).await;
    }

    async fn patch_status(&self, pod: &PodInfo, patch: serde_json::Value) {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let result = api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = result
            && !error.is("NotFound")
            && !error.is("Conflict")
        {
            warn!(pod = pod.key, %error, "cannot patch pod status");
        }
    }

    async fn evict(&self, pod: &PodInfo, preemption: Preemption) {
        // Pods of lower priority that were promised this node must look elsewhere.
        for loser in &preemption.losers {
            let patch = json!({ "metadata": { "uid": loser.uid }, "status": { "nominatedNodeName": null } });
            self.patch_status(loser, patch).await;
        }
        for victim in &preemption.candidate.victims {
            if victim.is_terminating() {
                continue;
            }
            let condition = json!({ "metadata": { "uid": victim.uid }, "status": { "conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "PreemptionByScheduler",
                "message": format!("{}: preempting to accommodate a higher priority pod", self.config.name),
                "lastProbeTime": null,
                "lastTransitionTime": self.config.clock.time(),
            }]}});
            self.patch_status(victim, condition).await;
            let params = DeleteParams { precondition_uid: Some(victim.uid.clone()), ..Default::default() };
            let api = Api::<Pod>::namespaced(self.client.clone(), &victim.namespace);
            match api.delete(&victim.name, &params).await {
                Ok(_) => {
                    let message = format!("Preempted by pod {} on node {}", pod.uid, preemption.node);
                    self.recorder.normal(victim.pod.as_ref(), "Preempted", &message);
                }
                Err(error) if error.is("NotFound") || error.is("Conflict") => {}
                Err(error) => warn!(victim = victim.key, %error, "cannot preempt"),
            }
        }
    }
}

struct Preemption {
    candidate: Candidate,
    node: String,
    losers: Vec<Arc<PodInfo>>,
}

struct Failure {
    diagnosis: Diagnosis,
    preemption: Option<Preemption>,
}

/// How many feasible nodes are enough: all of up to 100; of more, a share that shrinks from 50 % to 5 % as the cluster
/// grows (`percentageOfNodesToScore` 0).
fn sample_size(nodes: usize) -> usize {
    if nodes <= SAMPLE_MIN {
        return nodes.max(1);
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(SAMPLE_MIN)
}
