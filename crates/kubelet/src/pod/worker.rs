//! One pod's worker: a task that brings what runs in line with what is wanted, and reports.

use super::backoff::Backoffs;
use super::images::{Failure, Wanted};
use super::plan::{self, Observed, Plan};
use super::resize::Pending;
use super::sandbox::Sandbox;
use super::start::Progress;
use super::state::State;
use super::status::{self, Verdict, Waiting};
use super::{message, names, security, sysctl};
use crate::agent::Agent;
use crate::probe::{Probers, Subject};
use crate::volumes::{Volumes, payload};
use gantry_client::{Api, DeleteParams, Patch, PatchParams};
use gantry_container::image_service::Image;
use gantry_container::runtime::{ContainerFilter, ContainerState, Resources, SandboxStatus};
use gantry_reconcile::EventType;
use gantry_reconcile::backoff::Backoff;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceRequirements};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What the worker is told.
#[derive(Debug, Clone)]
pub(crate) struct Desired {
    pub pod: Arc<Pod>,
    /// The object is gone from the API.
    pub removed: bool,
    /// The node wants it gone.
    pub evict: Option<(Verdict, Duration)>,
    /// The API's image of a static pod, as it was when it came into being.
    pub mirror: Option<Arc<Pod>>,
}

/// Steps taken in one go before the status is written again.
const MAX_STEPS: usize = 64;

/// One pod's worker.
pub(crate) struct Worker {
    pub(crate) agent: Arc<Agent>,
    pub(crate) desired: watch::Receiver<Desired>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) sandboxes: Vec<String>,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) volumes: Volumes,
    pub(crate) waiting: BTreeMap<String, Waiting>,
    pub(crate) not_before: HashMap<String, Instant>,
    pub(crate) backoffs: Backoffs,
    pub(crate) image_backoffs: Backoffs,
    pub(crate) pulling: HashMap<Wanted, JoinHandle<Result<Image, Failure>>>,
    pub(crate) failed_pulls: HashMap<Wanted, (Instant, Failure)>,
    /// Images that are here for containers whose others are still to come.
    pub(crate) images_ready: HashMap<Wanted, Image>,
    pub(crate) hook_failed: HashMap<String, String>,
    pub(crate) grace_override: Option<Duration>,
    /// Resources set on running containers after they were made, by id.
    pub(crate) applied: HashMap<String, Resources>,
    pub(crate) resize_pending: Option<Pending>,
    /// What the node has given the pod's containers, by name: the spec's resources, once a change of them is taken.
    pub(crate) allocated: HashMap<String, ResourceRequirements>,
    /// The limits of the pod as a whole, where they were changed since it was made.
    pub(crate) pod_resources: Option<Resources>,
    /// Tells when other pods have left room.
    pub(crate) room: watch::Receiver<()>,
    state: State,
    probers: Probers,
    messages: HashMap<String, String>,
    verdict: Option<Verdict>,
    /// The addresses of the sandbox that was given back.
    last_ips: Vec<IpAddr>,
    removed: bool,
    /// UID of the mirror pod that shows this static pod's status as it was last written.
    shown_by: Option<String>,
    retry: Backoff,
    held_for: Option<String>,
    crash_told: HashSet<String>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        for task in self.pulling.values() {
            task.abort();
        }
    }
}

fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

pub(crate) fn is_final(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

enum Next {
    Look(Option<Instant>),
    Gone,
}

impl Worker {
    pub(crate) fn new(agent: Arc<Agent>, desired: watch::Receiver<Desired>, wake: Arc<Notify>) -> Self {
        let pod = desired.borrow().pod.clone();
        let directory = agent.pod_directory(names::uid(&pod));
        let room = agent.admissions.room();
        Worker {
            agent,
            desired,
            wake,
            pod,
            sandboxes: Vec::new(),
            sandbox: None,
            volumes: Volumes::new(directory),
            waiting: BTreeMap::new(),
            not_before: HashMap::new(),
            backoffs: Backoffs::default(),
            image_backoffs: Backoffs::default(),
            pulling: HashMap::new(),
            failed_pulls: HashMap::new(),
            images_ready: HashMap::new(),
            hook_failed: HashMap::new(),
            grace_override: None,
            applied: HashMap::new(),
            resize_pending: None,
            allocated: HashMap::new(),
            pod_resources: None,
            room,
            state: State::New,
            probers: Probers::default(),
            messages: HashMap::new(),
            verdict: None,
            last_ips: Vec::new(),
            removed: false,
            shown_by: None,
            retry: Backoff::new(Duration::from_millis(500), Duration::from_secs(120)),
            held_for: None,
            crash_told: HashSet::new(),
        }
    }

    /// Runs until the pod is gone. `found` are its sandboxes from before.
    pub(crate) async fn run(mut self, found: Vec<SandboxStatus>) {
        let adopted = !found.is_empty();
        if adopted {
            self.adopt(found).await;
        }
        loop {
            self.take_desired();
            match self.step(adopted).await {
                Next::Gone => return,
                Next::Look(at) => {
                    let timer = async {
                        match at {
                            Some(at) => tokio::time::sleep_until(at).await,
                            None => std::future::pending().await,
                        }
                    };
                    let waits_for_room = self.resize_pending.as_ref().is_some_and(|p| p.reason == "Deferred");
                    tokio::select! {
                        changed = self.desired.changed() => if changed.is_err() { return },
                        () = self.wake.notified() => {}
                        _ = self.room.changed(), if waits_for_room => {}
                        () = timer => {}
                    }
                }
            }
        }
    }

    /// Takes over what the worker was told last.
    pub(crate) fn take_desired(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        // An answer to our own write may be newer than what the watch has brought so far.
        if names::is_static(&self.pod) {
            // Its manifest never changes under one UID, and its status is known here only.
        } else if version(&desired.pod) >= version(&self.pod) {
            self.pod = desired.pod;
        }
        self.removed |= desired.removed;
        if let Some((verdict, grace)) = desired.evict
            && self.verdict.is_none()
        {
            self.verdict = Some(verdict);
            self.grace_override = Some(grace);
        }
    }

    fn wants_end(desired: &Desired) -> bool {
        desired.removed
            || desired.evict.is_some()
            || desired.pod.metadata.deletion_timestamp.is_some()
            || is_final(&desired.pod)
    }

    /// Resolves once the pod is to end.
    pub(crate) async fn to_terminate(&self) {
        let mut desired = self.desired.clone();
        // The manager that sends has ended: so will this task.
        if desired.wait_for(Self::wants_end).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn become_state(&mut self, next: State) {
        if self.state != next {
            debug_assert!(self.state.may_become(next), "{:?} -> {next:?}", self.state);
            tracing::debug!(pod = %names::pod_description(&self.pod), from = ?self.state, to = ?next, "pod state");
            self.state = next;
        }
    }

    /// All containers the runtime has for this pod.
    pub(crate) async fn observe(&self) -> Observed {
        let mut all = Vec::new();
        for id in &self.sandboxes {
            let filter = ContainerFilter { sandbox_id: Some(id.clone()), state: None };
            match self.agent.runtime.list_containers(filter).await {
                Ok(list) => all.extend(list),
                Err(error) if error.is_not_found() => {}
                Err(error) => tracing::warn!(sandbox = id, %error, "cannot list containers"),
            }
        }
        Observed::new(all)
    }

    async fn step(&mut self, adopted: bool) -> Next {
        let ending = Self::wants_end(&self.desired.borrow()) || self.verdict.is_some() || is_final(&self.pod);
        match self.state {
            State::New if ending => self.become_state(State::Terminating),
            State::New => {
                if adopted || self.pod.status.as_ref().is_some_and(|s| s.container_statuses.is_some()) {
                    self.agent.admissions.readmit(&self.pod);
                    self.become_state(State::Active);
                } else {
                    self.admit().await;
                }
            }
            State::Active if ending => self.become_state(State::Terminating),
            _ => {}
        }
        match self.state {
            State::New | State::Active => self.active().await,
            State::Terminating => self.terminate().await,
            State::Terminated => self.terminated().await,
            State::Gone => Next::Gone,
        }
    }

    async fn admit(&mut self) {
        let node = self.agent.node.get("", &self.agent.cfg.node_name);
        let mut allocatable = self.agent.machine.allocatable();
        let extended = crate::node::object::extended(node.as_ref().and_then(|n| n.status.as_ref()));
        allocatable.extend(gantry_api::core::pod::resources::amounts(Some(&extended)));
        self.agent.devices.classic.limit(&mut allocatable);
        let pressure = *self.agent.pressure.borrow();
        let admitted = crate::eviction::admit(&self.pod, pressure)
            .and_then(|()| self.agent.admissions.admit(&self.pod, node.as_deref(), &allocatable))
            .and_then(|()| security::admit_apparmor(&self.pod))
            .and_then(|()| sysctl::admit(&self.pod));
        let admitted = match admitted {
            Ok(()) => self.agent.devices.classic.admit(&self.pod).await,
            refused => refused,
        };
        match admitted {
            Ok(()) => self.become_state(State::Active),
            Err(refusal) => {
                self.agent.recorder.warning(&*self.pod, &refusal.reason, &refusal.message);
                let message = format!("Pod was rejected: {}", refusal.message);
                self.verdict = Some(Verdict { reason: refusal.reason, message, disruption: false });
                self.become_state(State::Terminating);
            }
        }
    }

    /// Tries again later; the delay grows from failure to failure.
    fn later(&mut self) -> Option<Instant> {
        Some(Instant::now() + self.retry.next_delay())
    }

    /// Keeps the pod as its spec wants it.
    async fn active(&mut self) -> Next {
        let deadline = match plan::until_deadline(&self.pod, SystemTime::now()) {
            Some(Duration::ZERO) => {
                let message = "Pod was active on the node longer than the specified deadline".to_owned();
                self.agent.recorder.normal(&*self.pod, "DeadlineExceeded", &message);
                self.verdict = Some(Verdict { reason: "DeadlineExceeded".into(), message, disruption: false });
                self.become_state(State::Terminating);
                return Box::pin(self.terminate()).await;
            }
            other => other.map(|d| Instant::now() + d),
        };
        if self.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).is_none() {
            let observed = self.observe().await;
            self.report(&observed, false).await;
        }
        if let Err(at) = self.prepare_volumes().await {
            let observed = self.observe().await;
            self.look_after_running(&observed).await;
            self.report(&observed, false).await;
            return Next::Look(earliest([at, deadline]));
        }
        self.check_sandbox().await;
        let mut wake = deadline;
        for _ in 0..MAX_STEPS {
            let observed = self.observe().await;
            self.look_after_running(&observed).await;
            let plan = self.plan(&observed);
            if plan.finished {
                self.become_state(State::Terminating);
                return Box::pin(self.terminate()).await;
            }
            self.tell_crash_loops(&plan);
            wake = earliest([plan.wake, deadline, self.volumes.refresh_at()]);
            if plan.create_sandbox {
                if let Err(error) = self.agent.devices.prepare(&self.pod).await {
                    let message = format!("Failed to prepare dynamic resources: {error}");
                    self.agent.recorder.warning(&*self.pod, "FailedPrepareDynamicResources", &message);
                    let at = self.later();
                    wake = earliest([at, wake]);
                    break;
                }
                if let Err(error) = self.create_sandbox().await {
                    let message = format!("Failed to create pod sandbox: {error}");
                    self.agent.recorder.warning(&*self.pod, "FailedCreatePodSandBox", &message);
                    let at = self.later();
                    wake = earliest([at, wake]);
                    break;
                }
                self.retry.reset();
                continue;
            }
            if !plan.kill.is_empty() {
                self.kill(&plan.kill).await;
                self.hook_failed.retain(|id, _| !plan.kill.iter().any(|k| k.id == *id));
                continue;
            }
            let restarts = self.resize(&observed).await;
            if !restarts.is_empty() {
                self.kill(&restarts).await;
                continue;
            }
            let mut made = false;
            for start in &plan.start {
                made |= self.start(start).await == Progress::Made;
                if Self::wants_end(&self.desired.borrow()) {
                    break;
                }
            }
            if !made {
                let due = plan.start.iter().filter_map(|s| self.not_before.get(&s.name)).min().copied();
                wake = earliest([wake, due]);
                break;
            }
            if Self::wants_end(&self.desired.borrow()) {
                break;
            }
        }
        let observed = self.observe().await;
        self.look_after_running(&observed).await;
        let again = self.report(&observed, false).await;
        Next::Look(earliest([wake, again]))
    }

    fn plan(&self, observed: &Observed) -> Plan {
        let results = self.probers.results();
        plan::plan(&plan::Inputs {
            pod: &self.pod,
            sandbox: self.sandbox.as_ref().map(|s| s.id.as_str()),
            observed,
            health: &results.health,
            backoffs: &self.backoffs,
            not_before: &self.not_before,
            hook_failed: &self.hook_failed,
            now: Instant::now(),
            wall: SystemTime::now(),
        })
    }

    fn tell_crash_loops(&mut self, plan: &Plan) {
        for (name, message) in &plan.crash_looping {
            let waiting = Waiting { reason: "CrashLoopBackOff".into(), message: Some(message.clone()) };
            self.waiting.insert(name.clone(), waiting);
            if self.crash_told.insert(name.clone()) {
                let text =
                    format!("Back-off restarting failed container {name} in pod {}", names::pod_description(&self.pod));
                self.container_event(name, EventType::Warning, "BackOff", &text);
            }
        }
        self.crash_told.retain(|name| plan.crash_looping.contains_key(name));
        self.waiting.retain(|name, w| w.reason != "CrashLoopBackOff" || plan.crash_looping.contains_key(name));
    }

    async fn prepare_volumes(&mut self) -> Result<(), Option<Instant>> {
        let agent = self.agent.clone();
        let generation = format!("{:?}", self.pod.metadata.generation);
        if self.held_for.as_ref() != Some(&generation) {
            self.volumes.hold(&self.pod, &agent.config_maps, &agent.secrets, &self.wake);
            self.held_for = Some(generation);
        }
        let directory = agent.pod_directory(names::uid(&self.pod));
        if let Err(error) = tokio::fs::create_dir_all(&directory).await {
            let message = format!("create {}: {error}", directory.display());
            self.agent.recorder.warning(&*self.pod, "FailedMount", &message);
            return Err(self.later());
        }
        let ips = self.sandbox.as_ref().map(|s| s.ips.clone()).unwrap_or_default();
        let fields = agent.field_context(&ips);
        let sources = payload::Sources {
            config_maps: &agent.config_maps,
            secrets: &agent.secrets,
            tokens: &agent.tokens,
            trust_bundles: &agent.trust_bundles,
            pod_certificates: &agent.pod_certificates,
            wake: &self.wake,
            claims: &agent.claims,
            fields: &fields,
        };
        match self.volumes.prepare(&self.pod, &sources).await {
            Ok(()) => Ok(()),
            // What is mounted stays as it is until the object is back.
            Err(error) if self.sandbox.is_some() => {
                tracing::warn!(pod = %names::pod_description(&self.pod), error = error.event(), "cannot update a volume");
                Ok(())
            }
            Err(error) => {
                self.agent.recorder.warning(&*self.pod, error.reason(), &error.event());
                Err(self.later())
            }
        }
    }

    /// Starts probes for a container that runs.
    pub(crate) fn look_after(
        &mut self,
        container: &Container,
        id: &str,
        started: SystemTime,
        known: Option<(bool, bool)>,
    ) {
        let Some(sandbox) = &self.sandbox else { return };
        let fallback = std::net::IpAddr::from([127, 0, 0, 1]);
        let subject = Subject {
            pod: self.pod.clone(),
            container: container.clone(),
            id: id.to_owned(),
            address: sandbox.ips.first().copied().unwrap_or(fallback),
            started,
            runtime: self.agent.runtime.clone(),
            recorder: self.agent.recorder.clone(),
            wake: self.wake.clone(),
        };
        self.probers.watch(subject, known);
    }

    /// Probes exactly the running containers and collects the last words of those that ended.
    pub(crate) async fn look_after_running(&mut self, observed: &Observed) {
        let running: HashSet<String> =
            observed.alive().filter(|c| c.state == ContainerState::Running).map(|c| c.id.clone()).collect();
        self.probers.keep(&running);
        for c in observed.alive().filter(|c| c.state == ContainerState::Running) {
            if self.probers.knows(&c.id) {
                continue;
            }
            let pod = self.pod.clone();
            let Some(container) = pod.spec.as_ref().and_then(|s| names::container(s, &c.name)) else { continue };
            let recorded = plan::recorded_status(&pod, &c.name);
            let same = recorded.filter(|r| r.container_id.as_deref() == Some(&format!("{}{}", names::ID_SCHEME, c.id)));
            let known = same.map(|r| (r.started == Some(true), r.ready));
            self.look_after(&container, &c.id, c.started_at.unwrap_or(c.created_at), known);
        }
        for c in observed.all().filter(|c| c.state == ContainerState::Exited) {
            if !self.messages.contains_key(&c.id) {
                self.messages.insert(c.id.clone(), message::of(c).await);
            }
        }
        self.messages.retain(|id, _| observed.all().any(|c| c.id == *id));
        self.applied.retain(|id, _| running.contains(id));
    }

    fn status(&self, observed: &Observed, ended: bool) -> PodStatus {
        let results = self.probers.results();
        let recorded_ips: Vec<_> = self
            .pod
            .status
            .iter()
            .flat_map(|s| s.pod_ips.iter().flatten())
            .filter_map(|ip| ip.ip.parse().ok())
            .collect();
        // A pod that ended keeps the address it had.
        let ips = match &self.sandbox {
            Some(sandbox) => sandbox.ips.clone(),
            None if self.last_ips.is_empty() => recorded_ips,
            None => self.last_ips.clone(),
        };
        let mut status = status::compute(&status::Inputs {
            pod: &self.pod,
            observed,
            health: &results.health,
            ready: &results.ready,
            waiting: &self.waiting,
            messages: &self.messages,
            pod_ips: &ips,
            host_ips: &self.agent.cfg.node_ips,
            sandbox_ready: self.sandbox.is_some(),
            verdict: self.verdict.as_ref(),
            resize_pending: self.resize_pending.as_ref(),
            allocated: &self.allocated,
            ended,
            now: self.agent.clock.now(),
        });
        self.show_devices(&mut status);
        status
    }

    /// Shows how the devices of claims are; of those that were given back, how they were.
    fn show_devices(&self, status: &mut PodStatus) {
        let Some(spec) = &self.pod.spec else { return };
        for shown in status.container_statuses.iter_mut().flatten() {
            let container = spec.containers.iter().find(|c| c.name == shown.name);
            let asks = |r: &ResourceRequirements| r.claims.is_some() || r.limits.is_some();
            let Some(container) = container.filter(|c| c.resources.as_ref().is_some_and(asks)) else { continue };
            let devices = self.agent.devices.health_of(&self.pod, container);
            shown.allocated_resources_status = match devices.is_empty() {
                true => {
                    plan::recorded_status(&self.pod, &shown.name).and_then(|r| r.allocated_resources_status.clone())
                }
                false => Some(devices),
            };
        }
    }

    /// Writes what changed of the status. Returns when to try again, where that failed.
    pub(crate) async fn report(&mut self, observed: &Observed, ended: bool) -> Option<Instant> {
        let new = self.status(observed, ended);
        if names::is_static(&self.pod) {
            return self.report_static(new).await;
        }
        let old = self.pod.status.clone().unwrap_or_default();
        let body = status::patch(names::uid(&self.pod), &old, &new)?;
        let api = Api::<Pod>::namespaced(self.agent.client.clone(), names::namespace(&self.pod));
        let patch = Patch::Strategic(body);
        match api.patch_status(names::name(&self.pod), &PatchParams::default(), &patch).await {
            Ok(pod) => {
                if pod.metadata.uid == self.pod.metadata.uid {
                    self.pod = Arc::new(pod);
                }
                None
            }
            // Gone or replaced by another of the same name: the watch will tell.
            Err(error) if error.is("NotFound") || error.is("Conflict") => None,
            Err(error) => {
                tracing::warn!(pod = %names::pod_description(&self.pod), %error, "cannot write the pod's status");
                self.later()
            }
        }
    }

    /// Keeps the status of a static pod, and writes what changed of it to the mirror.
    async fn report_static(&mut self, new: PodStatus) -> Option<Instant> {
        let mirror = self.desired.borrow().mirror.clone();
        let same = mirror.as_ref().map(|m| names::uid(m)) == self.shown_by.as_deref();
        let shown = if same { self.pod.status.clone() } else { mirror.as_ref().and_then(|m| m.status.clone()) };
        Arc::make_mut(&mut self.pod).status = Some(new.clone());
        let mirror = mirror?;
        let uid = names::uid(&mirror);
        if let Some(body) = status::patch(uid, &shown.unwrap_or_default(), &new) {
            let api = Api::<Pod>::namespaced(self.agent.client.clone(), names::namespace(&mirror));
            let (params, patch) = (PatchParams::default(), Patch::Strategic(body));
            if let Err(error) = api.patch_status(names::name(&mirror), &params, &patch).await {
                // Whole again next time.
                self.shown_by = None;
                // Gone or replaced: the next mirror will be told.
                if error.is("NotFound") || error.is("Conflict") {
                    return None;
                }
                tracing::warn!(pod = %names::pod_description(&self.pod), %error, "cannot write the mirror pod's status");
                return self.later();
            }
        }
        self.shown_by = Some(uid.to_owned());
        None
    }

    /// Stops everything, for good.
    async fn terminate(&mut self) -> Next {
        for (_, task) in self.pulling.drain() {
            task.abort();
        }
        self.probers.pod_ends();
        self.stop_all().await;
        self.probers.stop();
        let observed = self.observe().await;
        if let Some(left) = observed.alive().find(|c| c.state == ContainerState::Running) {
            tracing::warn!(pod = %names::pod_description(&self.pod), container = left.name, "a container could not be stopped");
            return Next::Look(self.later());
        }
        self.look_after_running(&observed).await;
        if let Err(error) = self.agent.devices.unprepare(names::uid(&self.pod)).await {
            tracing::warn!(pod = %names::pod_description(&self.pod), error, "cannot give back a pod's devices");
            return Next::Look(self.later());
        }
        self.agent.devices.classic.release(names::uid(&self.pod));
        if let Err(error) = self.release().await {
            tracing::warn!(pod = %names::pod_description(&self.pod), error, "cannot release what a pod held");
            self.agent.recorder.warning(&*self.pod, "FailedKillPod", &format!("error killing pod: {error}"));
            return Next::Look(self.later());
        }
        self.agent.admissions.release(names::uid(&self.pod));
        self.retry.reset();
        let again = if self.removed { None } else { self.report(&observed, true).await };
        if again.is_some() {
            return Next::Look(again);
        }
        self.become_state(State::Terminated);
        Box::pin(self.terminated()).await
    }

    /// Gives back network, namespaces and volumes; containers and logs stay readable.
    async fn release(&mut self) -> Result<(), String> {
        if let Some(sandbox) = self.sandbox.take() {
            self.last_ips = sandbox.ips;
        }
        self.agent.network.detach(&names::network_key(&self.pod)).await.map_err(|e| e.to_string())?;
        for id in &self.sandboxes {
            self.agent.runtime.stop_sandbox(id).await.map_err(|e| e.to_string())?;
        }
        self.volumes.teardown().await?;
        self.agent.tokens.forget(names::uid(&self.pod));
        self.agent.pod_certificates.forget(names::uid(&self.pod));
        Ok(())
    }

    /// Waits for the deletion of a pod that ended, then removes the rest.
    async fn terminated(&mut self) -> Next {
        let deleting = self.pod.metadata.deletion_timestamp.is_some();
        if !deleting && !self.removed {
            let observed = self.observe().await;
            let again = self.report(&observed, true).await;
            return Next::Look(again);
        }
        for id in self.sandboxes.clone() {
            if let Err(error) = self.agent.runtime.remove_sandbox(&id).await {
                tracing::warn!(sandbox = id, %error, "cannot remove a sandbox");
                return Next::Look(self.later());
            }
            self.sandboxes.retain(|s| *s != id);
        }
        let logs = names::log_directory(
            &self.agent.cfg.log_dir,
            names::namespace(&self.pod),
            names::name(&self.pod),
            names::uid(&self.pod),
        );
        if let Err(error) = tokio::fs::remove_dir_all(&logs).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %logs.display(), %error, "cannot remove a pod's logs");
        }
        if !self.removed {
            let api = Api::<Pod>::namespaced(self.agent.client.clone(), names::namespace(&self.pod));
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                precondition_uid: self.pod.metadata.uid.clone(),
                ..DeleteParams::default()
            };
            match api.delete(names::name(&self.pod), &params).await {
                Ok(_) => {}
                Err(error) if error.is("NotFound") || error.is("Conflict") => {}
                Err(error) => {
                    tracing::warn!(pod = %names::pod_description(&self.pod), %error, "cannot delete a pod that ended");
                    return Next::Look(self.later());
                }
            }
        }
        self.become_state(State::Gone);
        Next::Gone
    }
}

fn earliest<const N: usize>(times: [Option<Instant>; N]) -> Option<Instant> {
    times.into_iter().flatten().min()
}
