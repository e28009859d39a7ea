//! Nodes that run pods in name only: they register, renew their lease and status, watch the pods bound to them and walk
//! them through their lives after delays drawn from the seed, as a kubelet would, under a kubelet's identity and rights.
//! They may be told to be slow, to fail what they start, and to die. A pod's annotations say whether its containers end.

use async_trait::async_trait;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::kind::Kind;
use gantry_api::storage::binding::LOCAL_PATH_ROOT;
use gantry_client::{Api, Client, DeleteParams, Patch, PatchParams, PostParams};
use gantry_reconcile::{Controller, Error, Informer, Informers, Outcome, Queue};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How often a kubelet renews its lease.
const LEASE_EVERY: Duration = Duration::from_secs(10);
/// How often a kubelet reports a status that has not changed.
const STATUS_EVERY: Duration = Duration::from_secs(300);
/// First pause before a failed container is started again; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
const LEASES: &str = "kube-node-lease";
/// Annotation of a pod: its containers end after so many milliseconds. Without it they run for ever.
pub const ENDS_AFTER: &str = "hollow.gantry.io/ends-after-milliseconds";
/// Annotation of a pod: how many of a hundred such ends are failures.
pub const FAILS: &str = "hollow.gantry.io/fails-percent";
/// Annotation of a pod: the exit code of a failure; 1 where there is none.
pub const EXIT_CODE: &str = "hollow.gantry.io/exit-code";
/// Exit code of a container that ended with SIGTERM.
const TERMINATED: u64 = 143;

/// What a node is.
#[derive(Clone, Debug)]
pub struct HollowSpec {
    /// Its name.
    pub name: String,
    /// Distinguishes its addresses from those of other nodes.
    pub number: u8,
    /// CPU, as a quantity of cores.
    pub cpu: String,
    /// Memory, as a quantity of bytes.
    pub memory: String,
    /// Most pods.
    pub pods: u32,
    /// Labels besides the hostname.
    pub labels: BTreeMap<String, String>,
    /// Taints it registers with.
    pub taints: Vec<Taint>,
}

impl HollowSpec {
    /// A node of four cores and 8 GiB that takes thirty pods.
    #[must_use]
    pub fn new(name: impl Into<String>, number: u8) -> Self {
        let (cpu, memory) = ("4".into(), "8Gi".into());
        Self { name: name.into(), number, cpu, memory, pods: 30, labels: BTreeMap::new(), taints: Vec::new() }
    }

    /// `node-<number>`, see [`HollowSpec::new`].
    #[must_use]
    pub fn numbered(number: u8) -> Self {
        Self::new(format!("node-{number}"), number)
    }

    /// The same node in this zone.
    #[must_use]
    pub fn in_zone(mut self, number: u8) -> Self {
        self.labels.insert("topology.kubernetes.io/zone".into(), format!("zone-{number}"));
        self
    }
}

/// How long a node takes for things: each time a duration is drawn between the two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From being bound to running.
    pub start: (Duration, Duration),
    /// From running to ready.
    pub ready: (Duration, Duration),
    /// From SIGTERM to the end, where the grace period is not shorter.
    pub stop: (Duration, Duration),
}

impl Pace {
    /// What a node does at once takes it about a second.
    pub const BRISK: Self = Self::millis((100, 900), (200, 2500), (50, 3000));

    /// Delays of this many milliseconds at least and at most, for each step.
    #[must_use]
    pub const fn millis(start: (u64, u64), ready: (u64, u64), stop: (u64, u64)) -> Self {
        const fn of(range: (u64, u64)) -> (Duration, Duration) {
            (Duration::from_millis(range.0), Duration::from_millis(range.1))
        }
        Self { start: of(start), ready: of(ready), stop: of(stop) }
    }
}

/// What the node remembers of a pod.
#[derive(Debug, Default)]
struct Memory {
    start_at: Option<Instant>,
    ready_at: Option<Instant>,
    stop_at: Option<Instant>,
    retry_at: Option<Instant>,
    end_at: Option<Instant>,
    removed: bool,
    restarts: u32,
    /// Version of our last write; the cache is behind where it holds an older one.
    written: u64,
}

/// What to do about a pod next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Wait(Instant),
    Run,
    Crash,
    Ready,
    /// The containers end, with this exit code.
    End(u64),
    Remove,
}

struct Habits {
    pace: Pace,
    failing: bool,
}

struct Kubelet {
    spec: HollowSpec,
    client: Client,
    clock: Clock,
    entropy: Entropy,
    pods: Informer<Pod>,
    queue: Queue,
    habits: Mutex<Habits>,
    memories: Mutex<BTreeMap<String, Memory>>,
    addresses: AtomicU32,
}

/// A running hollow node. It runs on until its token is cancelled or it [dies](HollowNode::die).
pub struct HollowNode {
    kubelet: Arc<Kubelet>,
    cancel: CancellationToken,
}

impl HollowNode {
    /// Starts a node, or one that died anew. `client` should act as `system:node:<name>` in `system:nodes`.
    #[must_use]
    pub fn start(
        spec: HollowSpec,
        pace: Pace,
        client: Client,
        clock: Clock,
        entropy: Entropy,
        cancel: CancellationToken,
    ) -> Self {
        let informers = Informers::new(client.clone());
        let pods = informers.get_filtered::<Pod>(Some(&format!("spec.nodeName={}", spec.name)), None);
        let queue = Queue::new("hollow-pods");
        let keys = queue.clone();
        pods.on_change(move |change| keys.add(gantry_reconcile::store::key_of(&**change.object())));
        let kubelet = Arc::new(Kubelet {
            spec,
            client,
            clock,
            entropy,
            pods,
            queue,
            habits: Mutex::new(Habits { pace, failing: false }),
            memories: Mutex::default(),
            addresses: AtomicU32::new(0),
        });
        let (running, token) = (kubelet.clone(), cancel.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = running.register() => {}
            }
            informers.start(&token);
            let pods = gantry_reconcile::runner::run(running.clone(), running.queue.clone(), 1, token.clone());
            let beats = async {
                tokio::join!(biased; running.renew_lease(), running.renew_status());
            };
            tokio::select! {
                biased;
                () = pods => {}
                () = beats => {}
            }
        });
        Self { kubelet, cancel }
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.kubelet.spec.name
    }

    /// From now on takes this long for things.
    pub fn set_pace(&self, pace: Pace) {
        self.kubelet.habits.lock().pace = pace;
    }

    /// Whether containers that are started from now on fail at once. They are started again with back-off.
    pub fn set_failing(&self, failing: bool) {
        self.kubelet.habits.lock().failing = failing;
    }

    /// Falls silent in the middle of whatever it is doing. Its objects stay as they are.
    pub fn die(self) {
        self.cancel.cancel();
    }
}

fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn is_crashed(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.into_iter().any(|c| c.state.as_ref().is_some_and(|s| s.waiting.is_some()))
}

/// The number that an annotation of a pod holds.
fn annotated(pod: &Pod, name: &str) -> Option<u64> {
    pod.metadata.annotations.as_ref()?.get(name)?.parse().ok()
}

fn restarts_always(pod: &Pod) -> bool {
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    policy.is_none_or(|p| p == "Always")
}

/// The next step in a pod's life; draws delays where one begins.
fn next(
    pod: &Pod,
    memory: &mut Memory,
    now: Instant,
    habits: &Habits,
    mut draw: impl FnMut((Duration, Duration)) -> Duration,
) -> Step {
    if version(pod) < memory.written {
        return Step::Nothing;
    }
    let due = |at: Instant, step: Step| if at <= now { step } else { Step::Wait(at) };
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    if pod.metadata.deletion_timestamp.is_some() {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0).unsigned_abs();
        let started = phase == "Running";
        let at = *memory.stop_at.get_or_insert_with(|| {
            let takes = if started { draw(habits.pace.stop) } else { Duration::ZERO };
            now + takes.min(Duration::from_secs(grace))
        });
        // Whoever counts ends has to see it before the pod is gone.
        let ended = restarts_always(pod) || phase == "Succeeded" || phase == "Failed";
        if ended && pod.metadata.deletion_grace_period_seconds == Some(0) && memory.removed {
            // Only finalizers hold it.
            return Step::Nothing;
        }
        return due(at, if ended { Step::Remove } else { Step::End(TERMINATED) });
    }
    if phase == "Succeeded" || phase == "Failed" {
        return Step::Nothing;
    }
    let run = if habits.failing { Step::Crash } else { Step::Run };
    if phase != "Running" {
        return due(*memory.start_at.get_or_insert_with(|| now + draw(habits.pace.start)), run);
    }
    if is_crashed(pod) {
        let pause = BACKOFF_MIN.saturating_mul(1 << memory.restarts.saturating_sub(1).min(8)).min(BACKOFF_MAX);
        return due(*memory.retry_at.get_or_insert(now + pause), run);
    }
    if let Some(milliseconds) = annotated(pod, ENDS_AFTER) {
        let end = *memory.end_at.get_or_insert_with(|| now + Duration::from_millis(milliseconds));
        let ready = *memory.ready_at.get_or_insert_with(|| now + draw(habits.pace.ready));
        return if is_ready(pod) || end <= ready || end <= now {
            due(end, Step::End(0))
        } else {
            due(ready, Step::Ready)
        };
    }
    if is_ready(pod) {
        memory.ready_at = None;
        return Step::Nothing;
    }
    due(*memory.ready_at.get_or_insert_with(|| now + draw(habits.pace.ready)), Step::Ready)
}

impl Kubelet {
    fn pods_api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn status(&self) -> Value {
        let now = json!(self.clock.time());
        let resources = json!({
            "cpu": self.spec.cpu, "memory": self.spec.memory, "pods": self.spec.pods.to_string(),
            "ephemeral-storage": "64Gi",
        });
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            })
        };
        json!({
            "capacity": resources, "allocatable": resources,
            "addresses": [
                {"type": "InternalIP", "address": format!("192.168.1.{}", self.spec.number)},
                {"type": "Hostname", "address": self.spec.name},
            ],
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            ],
        })
    }

    async fn register(&self) {
        let mut labels = self.spec.labels.clone();
        labels.insert("kubernetes.io/hostname".into(), self.spec.name.clone());
        let nodes = Api::<Node>::all(self.client.clone());
        loop {
            let annotations = json!({LOCAL_PATH_ROOT: "/volumes"});
            let metadata = json!({"name": self.spec.name, "labels": labels, "annotations": annotations});
            let spec = json!({"taints": self.spec.taints});
            let object = json!({"metadata": metadata, "spec": spec, "status": self.status()});
            let created = match Node::from_value(object) {
                Ok(node) => nodes.create(&PostParams::default(), &node).await,
                Err(error) => return warn!(node = self.spec.name, %error, "not a node"),
            };
            match created {
                Ok(_) => return,
                Err(e) if e.is("AlreadyExists") => return self.report().await,
                Err(error) => warn!(node = self.spec.name, %error, "cannot register, trying again"),
            }
            tokio::time::sleep(LEASE_EVERY).await;
        }
    }

    async fn report(&self) {
        let patch = Patch::Strategic(json!({"status": self.status()}));
        let nodes = Api::<Node>::all(self.client.clone());
        if let Err(error) = nodes.patch_status(&self.spec.name, &PatchParams::default(), &patch).await {
            warn!(node = self.spec.name, %error, "cannot report the node's status");
        }
    }

    async fn renew_status(&self) {
        loop {
            tokio::time::sleep(STATUS_EVERY).await;
            self.report().await;
        }
    }

    async fn renew_lease(&self) {
        let leases = Api::<Lease>::namespaced(self.client.clone(), LEASES);
        loop {
            let spec = json!({
                "holderIdentity": self.spec.name, "leaseDurationSeconds": 40, "renewTime": self.clock.micro_time(),
            });
            let patch = Patch::Merge(json!({"spec": spec}));
            let mut renewed = leases.patch(&self.spec.name, &PatchParams::default(), &patch).await.map(drop);
            if renewed.as_ref().is_err_and(|e| e.is("NotFound")) {
                let object = json!({"metadata": {"name": self.spec.name}, "spec": spec});
                if let Ok(lease) = Lease::from_value(object) {
                    renewed = leases.create(&PostParams::default(), &lease).await.map(drop);
                }
            }
            if let Err(error) = renewed {
                warn!(node = self.spec.name, %error, "cannot renew the lease");
            }
            tokio::time::sleep(LEASE_EVERY).await;
        }
    }

    fn draw(&self, (least, most): (Duration, Duration)) -> Duration {
        let span = u64::try_from(most.saturating_sub(least).as_millis()).unwrap_or(u64::MAX);
        least + Duration::from_millis(self.entropy.below(span.saturating_add(1)))
    }

    /// The pod's status once its containers run, are ready, or have failed.
    fn pod_status(&self, pod: &Pod, step: Step, restarts: u32) -> Value {
        let now = json!(self.clock.time());
        let ready = step == Step::Ready;
        let condition = |kind: &str, status: bool| {
            let mut c =
                json!({"type": kind, "status": if status { "True" } else { "False" }, "lastTransitionTime": now});
            if !status {
                c["reason"] = json!("ContainersNotReady");
            }
            c
        };
        let containers = pod.spec.iter().flat_map(|s| s.containers.iter());
        let statuses: Vec<Value> = containers
            .map(|c| {
                let state = match step {
                    Step::Crash => json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                    Step::End(code) => {
                        let reason = if code == 0 { "Completed" } else { "Error" };
                        let began = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
                        json!({"terminated": {
                            "exitCode": code, "reason": reason, "startedAt": began, "finishedAt": now,
                        }})
                    }
                    _ => json!({"running": {"startedAt": now}}),
                };
                json!({
                    "name": c.name, "image": c.image, "imageID": c.image, "ready": ready,
                    "started": !matches!(step, Step::Crash | Step::End(_)), "restartCount": restarts, "state": state,
                })
            })
            .collect();
        let phase = match step {
            Step::End(0) => "Succeeded",
            Step::End(_) => "Failed",
            _ => "Running",
        };
        let mut status = json!({
            "phase": phase,
            "conditions": [condition("Ready", ready), condition("ContainersReady", ready), condition("Initialized", true)],
            "containerStatuses": statuses,
        });
        let known = pod.status.as_ref();
        if known.is_none_or(|s| s.pod_ip.is_none()) {
            let n = self.addresses.fetch_add(1, Ordering::Relaxed);
            let ip = format!("10.{}.{}.{}", self.spec.number, n / 250, n % 250 + 1);
            let host = format!("192.168.1.{}", self.spec.number);
            status["podIP"] = json!(ip);
            status["podIPs"] = json!([{"ip": ip}]);
            status["hostIP"] = json!(host);
            status["hostIPs"] = json!([{"ip": host}]);
        }
        if known.is_none_or(|s| s.start_time.is_none()) {
            status["startTime"] = now;
        }
        json!({"metadata": {"uid": pod.metadata.uid}, "status": status})
    }

    async fn write_status(&self, pod: &Pod, step: Step) -> Result<(), Error> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let restarts = {
            let mut memories = self.memories.lock();
            let memory = memories.entry(uid.clone()).or_default();
            memory.restarts += u32::from(step == Step::Crash);
            memory.retry_at = None;
            if step != Step::Ready {
                (memory.ready_at, memory.end_at) = (None, None);
            }
            memory.restarts
        };
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api = self.pods_api(pod.metadata.namespace.as_deref().unwrap_or_default());
        let patch = Patch::Strategic(self.pod_status(pod, step, restarts));
        match api.patch_status(name, &PatchParams::default(), &patch).await {
            Ok(written) => {
                self.memories.lock().entry(uid).or_default().written = version(&written);
                Ok(())
            }
            // Gone: the cache will tell. In conflict with another pod of the same name or with another writer: the next
            // attempt will tell.
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => Err(Error::api(format!("patch the status of pod {name}"), e)),
        }
    }

    async fn remove(&self, pod: &Pod) -> Result<(), Error> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            precondition_uid: pod.metadata.uid.clone(),
            ..Default::default()
        };
        let api = self.pods_api(pod.metadata.namespace.as_deref().unwrap_or_default());
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match api.delete(name, &params).await {
            Ok(_) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                self.memories.lock().entry(uid).or_default().removed = true;
                Ok(())
            }
            Err(e) if e.is("NotFound") || e.is("Conflict") => Ok(()),
            Err(e) => Err(Error::api(format!("remove pod {name}"), e)),
        }
    }
}

#[async_trait]
impl Controller for Kubelet {
    fn name(&self) -> &'static str {
        "hollow-kubelet"
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.store().by_key(key) else {
            let held: Vec<_> = self.pods.list().iter().filter_map(|p| p.metadata.uid.clone()).collect();
            self.memories.lock().retain(|uid, _| held.contains(uid));
            return Ok(Outcome::done());
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let now = Instant::now();
        let step = {
            let (mut memories, habits) = (self.memories.lock(), self.habits.lock());
            next(&pod, memories.entry(uid).or_default(), now, &habits, |range| self.draw(range))
        };
        match step {
            Step::Nothing => {}
            Step::Wait(at) => return Ok(Outcome::after(at - now)),
            Step::End(0) => {
                let failed = self.entropy.below(100) < annotated(&pod, FAILS).unwrap_or(0);
                let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
                let step = match (policy, failed) {
                    ("Always", _) | ("OnFailure", true) => Step::Crash,
                    (_, true) => Step::End(annotated(&pod, EXIT_CODE).unwrap_or(1)),
                    (_, false) => Step::End(0),
                };
                self.write_status(&pod, step).await?;
            }
            Step::Run | Step::Crash | Step::Ready | Step::End(_) => self.write_status(&pod, step).await?,
            Step::Remove => self.remove(&pod).await?,
        }
        Ok(Outcome::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(version: u64, metadata: Value, status: Value) -> Pod {
        let mut pod = Pod::from_value(json!({"metadata": metadata, "status": status})).unwrap();
        pod.metadata.resource_version = Some(version.to_string());
        pod
    }

    #[tokio::test(start_paused = true)]
    async fn a_pods_life_step_by_step() {
        let secs = Duration::from_secs;
        let habits = |failing| Habits { pace: Pace::millis((1000, 1000), (2000, 2000), (9000, 9000)), failing };
        let (mut memory, begin) = (Memory::default(), Instant::now());
        let at = |pod: &Pod, s: u64, failing: bool, memory: &mut Memory| {
            next(pod, memory, begin + secs(s), &habits(failing), |(least, _)| least)
        };
        let new = pod(5, json!({}), json!({"phase": "Pending"}));
        assert_eq!(at(&new, 0, false, &mut memory), Step::Wait(begin + secs(1)));
        assert_eq!(at(&new, 1, true, &mut memory), Step::Crash);
        assert_eq!(at(&new, 1, false, &mut memory), Step::Run);
        memory.written = 6;
        assert_eq!(at(&new, 1, false, &mut memory), Step::Nothing, "the cache is behind");
        let running = pod(6, json!({}), json!({"phase": "Running"}));
        assert_eq!(at(&running, 1, false, &mut memory), Step::Wait(begin + secs(3)));
        assert_eq!(at(&running, 3, false, &mut memory), Step::Ready);
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(at(&pod(7, json!({}), ready.clone()), 4, false, &mut memory), Step::Nothing);
        let going = json!({"deletionTimestamp": "2027-01-15T08:00:00Z", "deletionGracePeriodSeconds": 3});
        let going = pod(8, going, ready);
        assert_eq!(at(&going, 5, false, &mut memory), Step::Wait(begin + secs(8)), "grace is shorter than the stop");
        assert_eq!(at(&going, 8, false, &mut memory), Step::Remove);

        let crashed = json!({"phase": "Running", "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        }]});
        let crashed = pod(9, json!({}), crashed);
        let mut memory = Memory { restarts: 2, ..Memory::default() };
        assert_eq!(at(&crashed, 0, false, &mut memory), Step::Wait(begin + secs(20)), "back-off doubles");
        assert_eq!(at(&crashed, 20, false, &mut memory), Step::Run);
    }

    #[tokio::test(start_paused = true)]
    async fn containers_end_where_the_pod_says_so_and_where_it_is_deleted() {
        let secs = Duration::from_secs;
        let habits = Habits { pace: Pace::millis((1000, 1000), (2000, 2000), (9000, 9000)), failing: false };
        let (mut memory, begin) = (Memory::default(), Instant::now());
        let at =
            |pod: &Pod, s: u64, memory: &mut Memory| next(pod, memory, begin + secs(s), &habits, |(least, _)| least);
        let pod = |metadata: Value, status: Value| {
            let value =
                json!({"metadata": metadata, "spec": {"restartPolicy": "Never", "containers": []}, "status": status});
            Pod::from_value(value).unwrap()
        };
        let ends = json!({"annotations": {ENDS_AFTER: "5000"}});
        let running = pod(ends.clone(), json!({"phase": "Running"}));
        assert_eq!(at(&running, 0, &mut memory), Step::Wait(begin + secs(2)), "ready comes first");
        assert_eq!(at(&running, 2, &mut memory), Step::Ready);
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(at(&pod(ends, ready.clone()), 2, &mut memory), Step::Wait(begin + secs(5)));
        assert_eq!(at(&running, 5, &mut memory), Step::End(0));
        let going = json!({"deletionTimestamp": "2027-01-15T08:00:00Z", "deletionGracePeriodSeconds": 3});
        assert_eq!(at(&pod(going.clone(), ready), 6, &mut memory), Step::Wait(begin + secs(9)));
        let running = pod(going.clone(), json!({"phase": "Running"}));
        assert_eq!(at(&running, 9, &mut memory), Step::End(TERMINATED), "its end is seen before it is gone");
        let ended = pod(going, json!({"phase": "Failed"}));
        assert_eq!(at(&ended, 9, &mut memory), Step::Remove);
    }
}
