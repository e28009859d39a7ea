//! The loop: take the most urgent pod, decide on the snapshot, assume the decision, bind in the background.

use crate::bind::{Failure, Preemption};
use crate::config::Configuration;
use crate::cycle::Cycle;
use crate::decide::{Decider, Domain, Rejected, Request};
use crate::decided::Decided;
use crate::defaults::Owners;
use crate::devices::{self, Devices, News};
use crate::diagnosis::{Diagnosis, Rejections};
use crate::extender::{self, Asked, Extender};
use crate::filter::Rejection;
use crate::filter::volumes::{self, Assignment};
use crate::gang::Groups;
use crate::measured::{Attempt, Measured, Outcome, Point};
use crate::pod::{Occupant, PodInfo, Shapes};
use crate::preempt::{self, Budget, Candidate};
use crate::profile::Filter;
use crate::queue::{ClusterChange, Queue, Waiting};
use crate::snapshot::Snapshot;
use crate::volumes::{Refusal, Volumes};
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use gantry_api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use gantry_api::k8s_openapi::api::resource::v1::ResourceClaim;
use gantry_api::k8s_openapi::api::scheduling::v1beta1::PodGroup;
use gantry_client::Client;
use gantry_reconcile::{Change, EventRecorder, Informer, Informers};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Bindings under way at once. Each is one small request; more only queue up in the server.
const BINDINGS_MAX: usize = 128;
/// Decisions made before other tasks get a turn.
const DECISIONS_PER_TURN: usize = 16;

/// Configuration of one scheduler.
#[derive(Clone)]
pub struct SchedulerConfig {
    /// Who places which pods, and how. Pods whose `spec.schedulerName` is that of no profile are not ours.
    pub configuration: Configuration,
    /// Time.
    pub clock: Clock,
    /// Chance, for ties.
    pub entropy: Entropy,
    /// Whether PodGroups are served.
    pub pod_groups: bool,
    /// Through which this scheduler is asked why.
    pub explainer: Explainer,
}

pub(crate) struct State {
    pub(crate) snapshot: Snapshot,
    pub(crate) queue: Queue,
    /// Pods placed by decision whose binding the informer has not shown yet.
    pub(crate) assumed: HashMap<Arc<str>, Arc<PodInfo>>,
    /// What placed pods have in common.
    shapes: Shapes,
    /// Pods that are placed together.
    pub(crate) groups: Groups,
    /// What bindings tell of their decisions.
    pub(crate) decided: Decided,
    /// By the name of their profile.
    pub(crate) deciders: HashMap<String, Decider>,
}

pub(crate) struct Scheduler {
    pub(crate) clock: Clock,
    entropy: Entropy,
    pub(crate) client: Client,
    pub(crate) recorder: EventRecorder,
    pub(crate) state: Mutex<State>,
    pub(crate) wake: Notify,
    bindings: Arc<Semaphore>,
    pub(crate) budgets: Informer<PodDisruptionBudget>,
    pub(crate) owners: Owners,
    pub(crate) volumes: Volumes,
    pub(crate) devices: Devices,
    pub(crate) pods: Informer<Pod>,
    nodes: Informer<Node>,
    pub(crate) extenders: Vec<Extender>,
    pub(crate) pod_groups: Option<Informer<PodGroup>>,
    pub(crate) measured: Measured,
}

/// Asks a running scheduler why; cheap to clone. Knows nothing until one runs.
#[derive(Clone, Default)]
pub struct Explainer(Arc<OnceLock<Arc<Scheduler>>>);

impl Explainer {
    /// Why the pod is where it is, or nowhere, as JSON; `None` where there is no such pod, or no scheduler yet.
    #[must_use]
    pub fn explain(&self, namespace: &str, name: &str) -> Option<serde_json::Value> {
        self.0.get()?.explain(namespace, name)
    }

    pub(crate) fn scheduler(&self) -> Option<&Scheduler> {
        self.0.get().map(AsRef::as_ref)
    }
}

/// Runs until `cancel`. The informers must be started by the caller after this was first polled, or before; both work.
pub async fn run(client: Client, informers: &Informers, config: SchedulerConfig, cancel: CancellationToken) {
    let pods = informers.get::<Pod>();
    let nodes = informers.get::<Node>();
    let namespaces = informers.get::<Namespace>();
    let SchedulerConfig { configuration, clock, entropy, pod_groups, explainer } = config;
    let Configuration { profiles, backoff_initial, backoff_max, extenders } = configuration;
    let mut reached = Vec::new();
    for extender in extenders {
        let url = extender.url_prefix.clone();
        match Extender::new(extender) {
            Ok(extender) => reached.push(extender),
            Err(error) => {
                // The configuration was read with the same result checked; without it nothing may be placed.
                tracing::error!(extender = url, error, "the scheduler does not run without its extender");
                return;
            }
        }
    }
    let extenders = reached;
    let component = profiles.first().map_or("default-scheduler", |p| p.name.as_str());
    let recorder = EventRecorder::new(client.clone(), clock, component, "");
    // Extenders are asked about all nodes of a sample.
    let samples = extenders.iter().any(Extender::decides);
    let decider = |profile| {
        let decider = Decider::new(profile);
        if samples { decider.sampling_up_to(usize::MAX) } else { decider }
    };
    let measured = Measured::new(profiles.iter().map(|p| p.name.as_str()));
    let scheduler = Arc::new(Scheduler {
        measured,
        devices: Devices::new(client.clone(), informers, clock, recorder.clone(), entropy.clone()),
        recorder,
        volumes: Volumes::new(client.clone(), informers),
        client,
        state: Mutex::new(State {
            snapshot: Snapshot::default(),
            queue: Queue::new(backoff_initial, backoff_max).finding({
                let pods = pods.store().clone();
                move |key| pods.by_key(key).map(|pod| Arc::new(PodInfo::new(pod)))
            }),
            assumed: HashMap::new(),
            shapes: Shapes::default(),
            groups: Groups::default(),
            decided: Decided::new(entropy.uuid()),
            deciders: profiles.into_iter().map(|p| (p.name.clone(), decider(p))).collect(),
        }),
        wake: Notify::new(),
        bindings: Arc::new(Semaphore::new(BINDINGS_MAX)),
        budgets: informers.get(),
        owners: Owners::new(informers),
        pods: pods.clone(),
        nodes: nodes.clone(),
        extenders,
        pod_groups: pod_groups.then(|| informers.get()),
        clock,
        entropy,
    });
    // A second scheduler on one explainer would be a slip of the wiring; the first stays.
    let _ = explainer.0.set(scheduler.clone());
    let s = scheduler.clone();
    nodes.on_change(move |c| s.node_changed(c));
    let s = scheduler.clone();
    namespaces.on_change(move |c| s.namespace_changed(c));
    // Before the pods, so that their groups are known.
    if let Some(groups) = &scheduler.pod_groups {
        let s = scheduler.clone();
        groups.on_change(move |c| s.group_changed(c));
    }
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
    let s = scheduler.clone();
    scheduler.devices.classes.on_change(move |_| s.device_classes_changed());
    let s = scheduler.clone();
    scheduler.devices.slices.on_change(move |_| s.devices_changed());
    let s = scheduler.clone();
    scheduler.devices.rules.on_change(move |_| s.devices_changed());
    let s = scheduler.clone();
    scheduler.devices.claims.on_change(move |c| s.device_claim_changed(c));
    informers.start(&cancel);
    if !informers.wait_synced(&cancel).await {
        return;
    }
    scheduler.work(&cancel).await;
}

impl State {
    /// There is more room on a node; the snapshot shows it already.
    pub(crate) fn freed(&mut self, node: &str, now: Instant) {
        let Self { snapshot, queue, deciders, .. } = self;
        queue.freed(node, snapshot, &|name| deciders.get(name).map(|decider| &**decider.profile()), now);
    }

    /// A waiting pod is not promised `node` any more. Others may have the room; it must look elsewhere, unless it was
    /// promised another.
    fn released(&mut self, uid: &str, node: &str, now: Instant) {
        self.freed(node, now);
        if self.queue.promises().of(uid).is_none() {
            self.queue.again(uid, now);
        }
    }

    /// Promises a node to a waiting pod, before its status says so; None where what that says holds again.
    pub(crate) fn promise(&mut self, pod: &Arc<PodInfo>, node: Option<&str>, now: Instant) {
        if let Some(before) = self.queue.promise(pod, node) {
            self.released(&pod.uid, &before, now);
        }
    }

    /// A pod is bound to a node.
    pub(crate) fn bound(&mut self, uid: &str, node: &str, now: Instant) {
        if let Some(promised) = self.queue.bound(uid, node) {
            self.freed(&promised, now);
        }
    }
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
            Change::Modified { new, .. } => {
                if !state.snapshot.set_node(new) {
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
            Change::Deleted(_) => state.snapshot.remove_namespace(&name),
            Change::Added(ns) | Change::Modified { new: ns, .. } => {
                if state.snapshot.set_namespace(&name, ns.metadata.labels.clone().unwrap_or_default()) {
                    state.queue.changed(ClusterChange::NamespaceUpdated, Instant::now());
                    self.wake.notify_one();
                }
            }
        }
    }

    fn group_changed(&self, change: &Change<PodGroup>) {
        let mut state = self.state.lock();
        let id = match change {
            Change::Deleted(group) => state.groups.withdraw(group),
            Change::Added(group) | Change::Modified { new: group, .. } => state.groups.declare(group),
        };
        // Our own reports in its status are no reason to try again.
        let changed = change.old().is_none_or(|old| old.spec != change.object().spec);
        state.sync_group(&id, changed);
        drop(state);
        self.wake.notify_one();
    }

    fn storage_changed(&self) {
        self.state.lock().queue.changed(ClusterChange::Storage, Instant::now());
        self.wake.notify_one();
    }

    fn devices_changed(&self) {
        self.devices.offers_changed();
        self.state.lock().queue.changed(ClusterChange::Devices, Instant::now());
        self.wake.notify_one();
    }

    fn device_classes_changed(&self) {
        let backed = self.devices.classes_changed();
        let mut state = self.state.lock();
        state.snapshot.set_backed(backed);
        state.queue.changed(ClusterChange::DeviceClass, Instant::now());
        drop(state);
        self.wake.notify_one();
    }

    fn device_claim_changed(&self, change: &Change<ResourceClaim>) {
        let news = self.devices.claim_changed(change);
        let mut state = self.state.lock();
        for pod in state.queue.held() {
            if self.devices.hold(&pod).is_none() {
                state.queue.hold(&pod.uid, false);
                state.queue.put(pod, false);
            }
        }
        match news {
            News::None => {}
            News::Freed => state.queue.changed(ClusterChange::Devices, Instant::now()),
            News::Claim(key) => {
                state.queue.wake(devices::PLUGIN, |pod| devices::uses(pod, &key), Instant::now());
            }
        }
        drop(state);
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
            state.decided.forget(&info.uid);
            let promised = state.queue.promises().of(&info.uid).map(str::to_owned);
            state.queue.remove(&info.uid);
            state.left_group(&info);
            let left = state.snapshot.row_of_pod(&info.uid).map(|row| state.snapshot.names[row].clone());
            state.snapshot.displace(&info.uid);
            for node in left.iter().chain(promised.as_ref().filter(|node| left.as_ref() != Some(*node))) {
                state.freed(node, now);
                self.wake.notify_one();
            }
            return;
        }
        if let Some(node) = info.node() {
            let node = node.to_owned();
            let was_assumed = state.assumed.remove(&info.uid).is_some();
            state.decided.forget(&info.uid);
            state.bound(&info.uid, &node, now);
            let before = state.snapshot.placed(&info.uid);
            let new_here = before.is_none();
            let shrank = before.is_some_and(|before| before.requests != info.requests);
            let goes = before.is_some_and(|before| info.is_terminating() && !before.is_terminating());
            let relabelled = before.is_some_and(|before| before.labels() != info.labels());
            let occupant = Arc::new(state.shapes.of(&info));
            state.snapshot.place(occupant.clone(), &node);
            if let Some(group) = &info.group {
                state.groups.place(group, occupant);
                // One that somebody else placed is one less to find room for.
                state.sync_group(&group.id, new_here && !was_assumed);
            }
            if shrank {
                state.freed(&node, now);
            }
            if goes {
                state.queue.changed(ClusterChange::PodTerminating, now);
            }
            if new_here || was_assumed || relabelled {
                state.queue.changed(ClusterChange::PodPlaced, now);
            }
            self.wake.notify_one();
            return;
        }
        if !state.deciders.contains_key(info.scheduler()) {
            return;
        }
        if state.assumed.contains_key(&info.uid) {
            return;
        }
        if info.is_terminating() {
            let promised = state.queue.promises().of(&info.uid).map(str::to_owned);
            state.queue.remove(&info.uid);
            state.left_group(&info);
            if let Some(node) = promised {
                state.freed(&node, now);
                self.wake.notify_one();
            }
            return;
        }
        // Our own status patches come back as changes; only what a person or controller changed is a reason to retry.
        let changed = change
            .old()
            .is_some_and(|old| old.spec != info.pod.spec || old.metadata.labels != info.pod.metadata.labels);
        if let Some(group) = info.group.clone() {
            state.groups.wait(&group, info);
            state.sync_group(&group.id, changed);
        } else {
            let uid = info.uid.clone();
            state.queue.hold(&uid, self.devices.hold(&info).is_some());
            let promised = state.queue.promises().of(&uid).map(str::to_owned);
            state.queue.put(info, changed);
            let promises = state.queue.promises().of(&uid);
            if let Some(before) = promised.filter(|before| promises != Some(before)) {
                state.released(&uid, &before, now);
            }
        }
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

    /// Decides on one pod, or on a group, and sets what follows in motion.
    async fn attempt(self: &Arc<Self>, waiting: Waiting) {
        let Ok(permit) = self.bindings.clone().acquire_owned().await else { return };
        let scheduler = self.clone();
        let began = Instant::now();
        let attempt = Attempt { began, first: waiting.tried.unwrap_or(began), number: waiting.attempts + 1 };
        if waiting.together {
            let outcome = {
                let mut state = self.state.lock();
                state.queue.deciding();
                self.decide_group(&mut state, &waiting)
            };
            tokio::spawn(async move {
                scheduler.bind_group(outcome, attempt).await;
                drop(permit);
            });
            return;
        }
        let Some(pod) = waiting.pods.into_iter().next() else { return };
        let asked = self.ask(&pod).await;
        let decision = {
            let mut state = self.state.lock();
            // While others were asked the pod may have gone.
            if !state.queue.holds(&pod.uid) {
                return;
            }
            if matches!(asked, Ok(None)) {
                state.queue.deciding();
            }
            let decision = match asked {
                Ok(asked) => self.decide(&mut state, &pod, asked.as_ref()),
                Err(error) => {
                    let nodes = state.snapshot.node_count();
                    let diagnosis = Diagnosis { nodes, error: Some(error), ..Diagnosis::default() };
                    let (preemption, alternatives) = (None, Vec::new());
                    Err(Box::new(Failure { diagnosis, preemption, alternatives, gives_up: false }))
                }
            };
            match &decision {
                Ok((node, assignment)) => {
                    let reserving = Instant::now();
                    self.measured.decided(reserving - began);
                    state.snapshot.place(pod.occupant.clone(), node);
                    state.assumed.insert(pod.uid.clone(), pod.clone());
                    state.decided.on(&pod.uid, self.pods.version());
                    if let Some(group) = &pod.group {
                        state.groups.place(group, pod.occupant.clone());
                    }
                    self.promise(assignment);
                    self.measured.passed(Point::Reserve, pod.scheduler(), reserving.elapsed());
                }
                Err(failure) if failure.diagnosis.error.is_some() => state.queue.failed(&pod.uid, Instant::now()),
                Err(failure) => {
                    let now = Instant::now();
                    state.queue.unschedulable(&pod.uid, failure.diagnosis.plugins(), now);
                    if let Some(preemption) = &failure.preemption {
                        state.promise(&pod, Some(&preemption.node), now);
                        state.queue.evicting(&pod.uid);
                    }
                }
            }
            decision
        };
        tokio::spawn(async move {
            match decision {
                Ok((node, assignment)) => {
                    let bound = scheduler.bind_all(&pod, &node, &assignment).await;
                    scheduler.tried(&pod, if bound { Outcome::Scheduled } else { Outcome::Error }, attempt);
                }
                Err(failure) => {
                    scheduler.tried(&pod, failure.outcome(), attempt);
                    scheduler.report(&pod, *failure).await;
                }
            }
            drop(permit);
        });
    }

    /// Counts how an attempt at a pod ended.
    pub(crate) fn tried(&self, pod: &PodInfo, outcome: Outcome, attempt: Attempt) {
        match outcome {
            Outcome::Scheduled => self.measured.scheduled(pod.scheduler(), attempt),
            _ => self.measured.failed(pod.scheduler(), outcome, attempt),
        }
    }

    /// What extenders say of the nodes that a pod fits on; None where none is to be asked, or there is no such node.
    ///
    /// # Errors
    /// Why one did not answer.
    async fn ask(&self, pod: &Arc<PodInfo>) -> Result<Option<Asked>, String> {
        if !self.extenders.iter().any(|e| e.decides() && e.is_interested(&pod.pod)) {
            return Ok(None);
        }
        let names: Vec<String> = {
            let mut state = self.state.lock();
            if self.choose(&mut state, pod, None, &[], None).is_err() {
                return Ok(None);
            }
            let State { snapshot, deciders, .. } = &*state;
            let feasible = deciders.get(pod.scheduler()).map(Decider::feasible).unwrap_or_default();
            feasible.iter().map(|row| snapshot.names[*row].clone()).collect()
        };
        let nodes = names.iter().filter_map(|name| self.nodes.get("", name)).collect();
        extender::ask(&self.extenders, &pod.pod, nodes).await.map(Some)
    }

    /// The node for a pod, and how its claims are met there.
    fn decide(
        &self,
        state: &mut State,
        pod: &Arc<PodInfo>,
        asked: Option<&Asked>,
    ) -> Result<(String, Assignment), Box<Failure>> {
        let outcome = self.choose(state, pod, None, &[], asked);
        let State { snapshot, queue, groups, deciders, .. } = state;
        outcome.map_err(|rejected| {
            let decider = deciders.get_mut(pod.scheduler()).expect("only pods of a profile are queued");
            Box::new(self.failure(snapshot, queue, groups, decider, *rejected))
        })
    }

    /// The node for a pod within a domain, and how its claims are met there. What was promised to `fellows` does not
    /// stand in its way.
    pub(crate) fn choose(
        &self,
        state: &mut State,
        pod: &Arc<PodInfo>,
        domain: Option<Domain>,
        fellows: &[Arc<PodInfo>],
        asked: Option<&Asked>,
    ) -> Result<(String, Assignment), Box<Rejected>> {
        let State { snapshot, queue, deciders, .. } = state;
        let decider = deciders.get_mut(pod.scheduler()).expect("only pods of a profile are queued");
        let began = Instant::now();
        let defaults = self.owners.constraints(pod, decider.profile());
        let profile = decider.profile().clone();
        let claims = self.volumes.of_pod(pod).and_then(|volumes| {
            let asks = profile.filters(Filter::DynamicResources);
            let devices = if asks { self.devices.of_pod(pod, profile.devices)? } else { None };
            Ok((volumes.map(Arc::new), devices.map(Arc::new)))
        });
        let filtering = Instant::now();
        match claims {
            Ok((volumes, devices)) => {
                self.measured.passed(Point::PreFilter, pod.scheduler(), filtering - began);
                let request = Request {
                    pod,
                    defaults: &defaults,
                    volumes: volumes.as_ref(),
                    devices: devices.as_ref(),
                    promises: queue.promises(),
                    fellows,
                    domain,
                    asked,
                };
                let chosen = decider.decide(snapshot, &request, &mut |equals| self.entropy.below(equals));
                let scoring = decider.scoring();
                let filtered = filtering.elapsed().saturating_sub(scoring.unwrap_or_default());
                self.measured.passed(Point::Filter, pod.scheduler(), filtered);
                if let Some(took) = scoring {
                    self.measured.passed(Point::Score, pod.scheduler(), took);
                }
                if let Some(error) = devices.as_ref().and_then(|d| d.error()) {
                    let error = format!("running {:?} filter plugin: {error}", devices::PLUGIN);
                    let nodes = snapshot.node_count();
                    let diagnosis = Diagnosis { nodes, error: Some(error), ..Diagnosis::default() };
                    let cycle = Cycle::new(snapshot, pod.clone(), &defaults, &profile);
                    return Err(Box::new(Rejected::new(diagnosis, cycle)));
                }
                let chosen = chosen.map(|row| {
                    let assigned = volumes.as_ref().and_then(|v| volumes::assign(snapshot, row, v));
                    let mut assigned = assigned.unwrap_or_default();
                    assigned.devices = devices.as_ref().and_then(|d| d.reserve(row));
                    (snapshot.names[row].clone(), assigned)
                });
                chosen.map_err(|mut rejected| {
                    rejected.diagnosis.devices = devices;
                    rejected
                })
            }
            Err(refusal) => {
                let status = "UnschedulableAndUnresolvable";
                self.measured.ended(Point::PreFilter, status, pod.scheduler(), filtering - began);
                let cycle = Cycle::new(snapshot, pod.clone(), &defaults, &profile);
                Err(Box::new(Rejected::new(refused(snapshot, refusal), cycle)))
            }
        }
    }

    /// What follows from there being no node: pods to evict, or why that does not help.
    pub(crate) fn failure(
        &self,
        snapshot: &Snapshot,
        queue: &Queue,
        groups: &Groups,
        decider: &mut Decider,
        mut rejected: Rejected,
    ) -> Failure {
        let pod = rejected.cycle.pod.clone();
        let profile = rejected.cycle.profile.clone();
        let diagnosis = &mut rejected.diagnosis;
        let frees = profile.filters(Filter::DynamicResources);
        // What refuses a pod before DynamicResources has looked at it leaves that without a state. Upstream's PostFilter
        // fails on this, and preemption is not asked.
        let unseen = frees && diagnosis.refusal.is_some() && !diagnosis.plugins().contains(devices::PLUGIN);
        if unseen {
            diagnosis.deallocation = Some("not found".to_owned());
        }
        let hopeful = diagnosis.nodes > 0 && diagnosis.error.is_none() && !unseen;
        let began = Instant::now();
        let offer = |candidate: Candidate| {
            let mut victims: Vec<Arc<Occupant>> = Vec::new();
            for victim in &candidate.victims {
                victims.extend(groups.disrupted_with(victim));
            }
            victims.sort_by(|a, b| a.uid.cmp(&b.uid));
            victims.dedup_by(|a, b| a.uid == b.uid);
            victims.sort_by_key(|v| std::cmp::Reverse(v.priority));
            // A group that is evicted as a whole stays where one of its pods is no less important.
            if victims.first().is_some_and(|v| v.priority >= pod.priority) {
                return None;
            }
            let node = snapshot.names[candidate.row].clone();
            let losers = queue.promises().on(&node).filter(|p| p.priority < pod.priority).cloned().collect();
            Some(Preemption { victims, node, losers, budget_violations: candidate.budget_violations })
        };
        let (mut preemption, mut alternatives, mut gives_up) = (None, Vec::new(), false);
        if hopeful && profile.preempts {
            self.measured.preemption();
            match preempt::eligible(snapshot, &pod, queue.promises().of(&pod.uid), diagnosis) {
                Ok(()) => {
                    let budgets: Vec<Budget> = self.budgets.list().iter().filter_map(|b| Budget::new(b)).collect();
                    let promises = queue.promises();
                    // Only extenders ask for more than the best.
                    let choosy = self.extenders.iter().any(|e| e.preempts() && e.is_interested(&pod.pod));
                    let found = decider.evictions(snapshot, &mut rejected, &budgets, promises, choosy);
                    gives_up = found.is_empty() && pod.nominated_node().is_some();
                    let any = !found.is_empty();
                    let mut offers = found.into_iter().filter_map(&offer);
                    preemption = offers.next();
                    if choosy {
                        alternatives = offers.collect();
                    } else if any && preemption.is_none() {
                        // The best was a group that stays.
                        let found = decider.evictions(snapshot, &mut rejected, &budgets, promises, true);
                        preemption = found.into_iter().find_map(&offer);
                    }
                }
                Err(reason) => {
                    diagnosis.preemption.insert(reason.trim_end_matches('.').to_owned(), diagnosis.nodes);
                }
            }
        }
        if hopeful {
            match &preemption {
                Some(_) => self.measured.passed(Point::PostFilter, pod.scheduler(), began.elapsed()),
                None => self.measured.ended(Point::PostFilter, "Unschedulable", pod.scheduler(), began.elapsed()),
            }
        }
        let mut diagnosis = rejected.diagnosis;
        if hopeful && preemption.is_none() && frees {
            let said =
                if diagnosis.devices.is_some() { "still not schedulable" } else { "no new claims to deallocate" };
            diagnosis.deallocation = Some(said.to_owned());
        }
        Failure { diagnosis, preemption, alternatives, gives_up }
    }
}

/// All nodes alike are ruled out, before any is looked at.
fn refused(snapshot: &Snapshot, (plugin, refusal): Refusal) -> Diagnosis {
    let rejection = Rejection::one(plugin, refusal.clone(), true);
    Diagnosis {
        nodes: snapshot.node_count(),
        rejections: Rejections::alike(snapshot.node_rows(), rejection),
        refusal: Some(refusal),
        ..Default::default()
    }
}
