//! A pod's status, computed purely from its spec, what the runtime shows and what the worker knows.

use super::names;
use super::plan::{Class, Health, Observed, recorded_status, restarts};
use super::resize::Pending;
use super::resources::qos_class;
use gantry_api::core::pod::resources::is_sidecar;
use gantry_container::runtime::{ContainerState as Life, ContainerStatus as Runtime};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::SystemTime;

/// Why a container waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub reason: String,
    pub message: Option<String>,
}

/// Why the node ended a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub reason: String,
    pub message: String,
    /// With the reason, a `DisruptionTarget` condition is set.
    pub disruption: bool,
}

/// What a status is made from.
pub(crate) struct Inputs<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub health: &'a HashMap<String, Health>,
    /// Ids of containers whose readiness probe succeeds (or that have none and are started).
    pub ready: &'a HashSet<String>,
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// Termination messages by container id.
    pub messages: &'a HashMap<String, String>,
    pub pod_ips: &'a [IpAddr],
    pub host_ips: &'a [IpAddr],
    /// The sandbox is up and its network attached.
    pub sandbox_ready: bool,
    pub verdict: Option<&'a Verdict>,
    /// A change of resources that waits.
    pub resize_pending: Option<&'a Pending>,
    /// What containers were given, by name, where that may differ from the spec.
    pub allocated: &'a HashMap<String, ResourceRequirements>,
    /// All containers are stopped and stay so.
    pub ended: bool,
    pub now: Timestamp,
}

fn time(at: SystemTime) -> Option<Time> {
    let stamp = Timestamp::try_from(at).ok()?;
    // The wire carries whole seconds.
    Some(Time(Timestamp::from_second(stamp.as_second()).unwrap_or(stamp)))
}

fn whole_seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn terminated(c: &Runtime, messages: &HashMap<String, String>) -> ContainerStateTerminated {
    let exit = c.exit.as_ref();
    let reported = messages.get(&c.id).filter(|m| !m.is_empty());
    let message = reported.cloned().or_else(|| exit.map(|e| e.message.clone()).filter(|m| !m.is_empty()));
    ContainerStateTerminated {
        container_id: Some(format!("{}{}", names::ID_SCHEME, c.id)),
        exit_code: exit.map_or(137, |e| e.code),
        signal: None,
        reason: exit.map(|e| e.reason.clone()).filter(|r| !r.is_empty()),
        message,
        started_at: c.started_at.and_then(time).or_else(|| time(SystemTime::UNIX_EPOCH)),
        finished_at: exit.and_then(|e| time(e.finished_at)),
    }
}

impl Inputs<'_> {
    fn policy(&self) -> &str {
        self.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
    }

    fn default_waiting(&self, class: Class) -> Waiting {
        let has_init = self.pod.spec.as_ref().is_some_and(|s| s.init_containers.iter().flatten().next().is_some());
        let reason = if has_init && class != Class::Ephemeral { "PodInitializing" } else { "ContainerCreating" };
        Waiting { reason: reason.into(), message: None }
    }

    fn container(&self, c: &Container, class: Class) -> ContainerStatus {
        let mut out = ContainerStatus {
            name: c.name.clone(),
            image: c.image.clone().unwrap_or_default(),
            ready: false,
            started: Some(false),
            last_state: Some(ContainerState::default()),
            ..ContainerStatus::default()
        };
        let recorded = recorded_status(self.pod, &c.name);
        let waiting = |w: Waiting| ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(w.reason), message: w.message }),
            ..ContainerState::default()
        };
        let Some(latest) = self.observed.latest(&c.name) else {
            return self.without_container(out, class, recorded, waiting);
        };
        out.container_id = Some(format!("{}{}", names::ID_SCHEME, latest.id));
        out.image_id = latest.image_id.clone();
        out.restart_count = i32::try_from(latest.attempt).unwrap_or(i32::MAX);
        out.user = Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: latest.uid.into(),
                gid: latest.gid.into(),
                supplemental_groups: Some(latest.supplementary_groups.iter().map(|g| i64::from(*g)).collect()),
            }),
        });
        out.volume_mounts = c.volume_mounts.as_ref().map(|mounts| mounts.iter().map(mount_status).collect());
        let given = self.allocated.get(&c.name).or(c.resources.as_ref());
        out.resources = given.filter(|r| **r != Default::default()).cloned();
        out.allocated_resources = given.and_then(|r| r.requests.clone());
        match latest.state {
            Life::Running => {
                let health = self.health.get(&latest.id).copied().unwrap_or_default();
                out.started = Some(health.started);
                out.ready = match class {
                    Class::Init | Class::Ephemeral => false,
                    Class::Main | Class::Sidecar => self.ready.contains(&latest.id),
                };
                out.state = Some(ContainerState {
                    running: Some(ContainerStateRunning { started_at: latest.started_at.and_then(time) }),
                    ..ContainerState::default()
                });
            }
            Life::Created => out.state = Some(waiting(self.default_waiting(class))),
            Life::Exited => {
                let ended = terminated(latest, self.messages);
                let again = restarts(c, class, self.policy(), ended.exit_code) && !self.ended;
                match self.waiting.get(&c.name).filter(|_| again) {
                    Some(w) => {
                        out.state = Some(waiting(w.clone()));
                        out.last_state = Some(ContainerState { terminated: Some(ended), ..ContainerState::default() });
                        return out;
                    }
                    None => {
                        // An init container is "ready" once it has done its work.
                        out.ready = class == Class::Init && ended.exit_code == 0;
                        out.state = Some(ContainerState { terminated: Some(ended), ..ContainerState::default() });
                    }
                }
            }
        }
        out.last_state = Some(match self.observed.previous(&c.name) {
            Some(p) => ContainerState { terminated: Some(terminated(p, self.messages)), ..ContainerState::default() },
            None => {
                let same = recorded.filter(|r| r.restart_count == out.restart_count);
                same.and_then(|r| r.last_state.clone()).unwrap_or_default()
            }
        });
        out
    }

    /// The runtime has none: the status keeps what it knew.
    fn without_container(
        &self,
        mut out: ContainerStatus,
        class: Class,
        recorded: Option<&ContainerStatus>,
        waiting: impl Fn(Waiting) -> ContainerState,
    ) -> ContainerStatus {
        let old = recorded.and_then(|r| r.state.as_ref());
        if let Some(r) = recorded {
            out.restart_count = r.restart_count;
            out.last_state = r.last_state.clone().or_else(|| Some(ContainerState::default()));
            out.image_id.clone_from(&r.image_id);
            if let Some(t) = old.and_then(|s| s.terminated.clone()) {
                out.container_id.clone_from(&r.container_id);
                out.ready = class == Class::Init && t.exit_code == 0;
                out.state = Some(ContainerState { terminated: Some(t), ..ContainerState::default() });
                return out;
            }
        }
        if let Some(running) = old.and_then(|s| s.running.as_ref()) {
            let lost = ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                container_id: recorded.and_then(|r| r.container_id.clone()),
                started_at: running.started_at.clone(),
                finished_at: Some(whole_seconds(self.now)),
                signal: None,
            };
            let lost = ContainerState { terminated: Some(lost), ..ContainerState::default() };
            if self.ended {
                out.state = Some(lost);
                return out;
            }
            out.last_state = Some(lost);
        }
        let reason = self.waiting.get(&out.name).cloned().unwrap_or_else(|| self.default_waiting(class));
        out.state = Some(waiting(reason));
        out
    }

    fn condition(&self, kind: &str, ok: bool, reason: Option<String>, message: Option<String>) -> PodCondition {
        let status = if ok { "True" } else { "False" };
        let old = self.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let old = old.into_iter().flatten().find(|c| c.type_ == kind);
        let since = old.filter(|o| o.status == status).and_then(|o| o.last_transition_time.clone());
        PodCondition {
            type_: kind.into(),
            status: status.into(),
            reason,
            message,
            last_transition_time: Some(since.unwrap_or_else(|| whole_seconds(self.now))),
            last_probe_time: None,
            observed_generation: self.pod.metadata.generation,
        }
    }
}

fn mount_status(m: &k8s_openapi::api::core::v1::VolumeMount) -> VolumeMountStatus {
    let read_only = m.read_only == Some(true);
    let recursive = match m.recursive_read_only.as_deref() {
        Some("Enabled" | "IfPossible") if read_only => "Enabled",
        _ => "Disabled",
    };
    VolumeMountStatus {
        name: m.name.clone(),
        mount_path: m.mount_path.clone(),
        read_only: Some(read_only).filter(|r| *r),
        recursive_read_only: read_only.then(|| recursive.to_owned()),
        ..VolumeMountStatus::default()
    }
}

fn ended(s: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    s.state.as_ref().and_then(|s| s.terminated.as_ref())
}

fn ended_before(s: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    s.last_state.as_ref().and_then(|s| s.terminated.as_ref())
}

fn is_waiting(s: &ContainerStatus) -> bool {
    s.state.as_ref().is_none_or(|s| s.waiting.is_some())
}

/// The phase that these container statuses amount to.
pub(crate) fn phase(pod: &Pod, inits: &[ContainerStatus], mains: &[ContainerStatus], all_ended: bool) -> &'static str {
    let Some(spec) = pod.spec.as_ref() else { return "Pending" };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let (mut pending_init, mut failed_init) = (0, 0);
    for (c, s) in spec.init_containers.iter().flatten().zip(inits) {
        if is_sidecar(c) {
            continue;
        }
        match (ended(s), ended_before(s)) {
            (Some(t), _) if t.exit_code == 0 => {}
            (Some(t), _) if !restarts(c, Class::Init, policy, t.exit_code) => failed_init += 1,
            _ => pending_init += 1,
        }
    }
    let started = mains.iter().any(|s| !is_waiting(s) || ended_before(s).is_some());
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for s in mains {
        if let Some(t) = ended(s) {
            stopped += 1;
            succeeded += usize::from(t.exit_code == 0);
        } else if is_waiting(s) {
            match ended_before(s) {
                Some(_) => stopped += 1,
                None => waiting += 1,
            }
        } else {
            running += 1;
        }
    }
    if failed_init > 0 && policy == "Never" && running == 0 {
        return "Failed";
    }
    if pending_init > 0 && !started {
        return "Pending";
    }
    if waiting > 0 {
        return if all_ended && stopped > 0 { "Failed" } else { "Pending" };
    }
    if running > 0 {
        return "Running";
    }
    if stopped == 0 {
        return "Pending";
    }
    let restarting = spec
        .containers
        .iter()
        .zip(mains)
        .any(|(c, s)| ended(s).is_none_or(|t| restarts(c, Class::Main, policy, t.exit_code)));
    match (all_ended || !restarting, stopped == succeeded) {
        (false, _) => "Running",
        (true, true) => "Succeeded",
        (true, false) => "Failed",
    }
}

/// The whole status. Conditions of other writers are kept as they are.
pub(crate) fn compute(inputs: &Inputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let old = pod.status.clone().unwrap_or_default();
    let Some(spec) = pod.spec.as_ref() else { return old };
    let inits: Vec<ContainerStatus> = spec
        .init_containers
        .iter()
        .flatten()
        .map(|c| inputs.container(c, if is_sidecar(c) { Class::Sidecar } else { Class::Init }))
        .collect();
    let mains: Vec<ContainerStatus> = spec.containers.iter().map(|c| inputs.container(c, Class::Main)).collect();
    let ephemeral: Vec<ContainerStatus> = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|e| inputs.container(&names::as_container(e), Class::Ephemeral))
        .collect();

    let mut phase = phase(pod, &inits, &mains, inputs.ended);
    let (mut reason, mut message) = (None, None);
    if let Some(v) = inputs.verdict {
        phase = "Failed";
        reason = Some(v.reason.clone());
        message = Some(v.message.clone());
    }
    // A phase that is final never changes again.
    if let Some(done @ ("Succeeded" | "Failed")) = old.phase.as_deref() {
        phase = if done == "Failed" { "Failed" } else { "Succeeded" };
        reason = reason.or_else(|| old.reason.clone());
        message = message.or_else(|| old.message.clone());
    }

    let mut conditions = own_conditions(inputs, phase, &inits, &mains);
    if inputs.verdict.is_some_and(|v| v.disruption) {
        let (r, m) = (Some("TerminationByKubelet".to_owned()), message.clone());
        conditions.push(inputs.condition("DisruptionTarget", true, r, m));
    }
    if let Some(pending) = inputs.resize_pending {
        let kind = if pending.reason == "Error" { "PodResizeInProgress" } else { "PodResizePending" };
        let (r, m) = (Some(pending.reason.to_owned()), Some(pending.message.clone()));
        conditions.push(inputs.condition(kind, true, r, m));
    }
    let passing = |c: &&PodCondition| !matches!(c.type_.as_str(), "PodResizePending" | "PodResizeInProgress");
    let foreign =
        old.conditions.iter().flatten().filter(passing).filter(|c| !conditions.iter().any(|o| o.type_ == c.type_));
    let mut all: Vec<PodCondition> = foreign.cloned().collect();
    all.extend(conditions);

    // Refused before anything was started: there is nothing to say about containers.
    let refused = inputs.verdict.is_some_and(|v| !v.disruption)
        && old.container_statuses.is_none()
        && spec.containers.iter().all(|c| inputs.observed.latest(&c.name).is_none());
    let optional = |list: Vec<ContainerStatus>| (!list.is_empty() && !refused).then_some(list);
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(all),
        container_statuses: optional(mains),
        init_container_statuses: optional(inits),
        ephemeral_container_statuses: optional(ephemeral),
        host_ip: inputs.host_ips.first().map(ToString::to_string),
        host_ips: Some(inputs.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: inputs.pod_ips.first().map(ToString::to_string),
        pod_ips: (!inputs.pod_ips.is_empty())
            .then(|| inputs.pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        qos_class: Some(qos_class(pod).to_owned()),
        start_time: old.start_time.clone().or_else(|| Some(whole_seconds(inputs.now))),
        observed_generation: pod.metadata.generation,
        ..old
    }
}

fn own_conditions(
    inputs: &Inputs<'_>,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Vec<PodCondition> {
    let Some(spec) = inputs.pod.spec.as_ref() else { return Vec::new() };
    let done = matches!(phase, "Succeeded" | "Failed");
    let sandbox = inputs.condition("PodReadyToStartContainers", inputs.sandbox_ready && !done, None, None);

    let incomplete: Vec<&str> = spec
        .init_containers
        .iter()
        .flatten()
        .zip(inits)
        .filter(|(c, s)| match is_sidecar(c) {
            true => s.started != Some(true) && ended(s).is_none(),
            false => ended(s).is_none_or(|t| t.exit_code != 0),
        })
        .map(|(c, _)| c.name.as_str())
        .collect();
    let begun = mains.iter().any(|s| !is_waiting(s) || ended_before(s).is_some());
    let initialized = if phase == "Succeeded" {
        inputs.condition("Initialized", true, Some("PodCompleted".into()), None)
    } else if incomplete.is_empty() || begun {
        inputs.condition("Initialized", true, None, None)
    } else {
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        inputs.condition("Initialized", false, Some("ContainersNotInitialized".into()), Some(message))
    };

    let sidecars = spec.init_containers.iter().flatten().zip(inits).filter(|(c, _)| is_sidecar(c)).map(|(_, s)| s);
    let unready: Vec<&str> = sidecars.chain(mains).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let (containers_ready, reason, message) = match phase {
        "Succeeded" => (false, Some("PodCompleted".to_owned()), None),
        "Failed" => (false, Some("PodFailed".to_owned()), None),
        _ if unready.is_empty() => (true, None, None),
        _ => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            (false, Some("ContainersNotReady".to_owned()), Some(message))
        }
    };
    let containers = inputs.condition("ContainersReady", containers_ready, reason.clone(), message.clone());
    let ready = if containers_ready {
        let conditions = inputs.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let unmet: Vec<String> = spec
            .readiness_gates
            .iter()
            .flatten()
            .filter_map(|gate| {
                let kind = &gate.condition_type;
                match conditions.into_iter().flatten().find(|c| c.type_ == *kind) {
                    None => Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
                    Some(c) if c.status != "True" => {
                        Some(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", c.status))
                    }
                    Some(_) => None,
                }
            })
            .collect();
        match unmet.is_empty() {
            true => inputs.condition("Ready", true, None, None),
            false => {
                let message = unmet.join(", ");
                inputs.condition("Ready", false, Some("ReadinessGatesNotReady".into()), Some(message))
            }
        }
    } else {
        inputs.condition("Ready", false, reason, message)
    };
    let scheduled = inputs.condition("PodScheduled", true, None, None);
    vec![sandbox, initialized, ready, containers, scheduled]
}

/// The strategic merge patch that turns `old` into `new`; `None` where they are the same.
pub(crate) fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let object = |s: &PodStatus| match serde_json::to_value(s) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (before, after) = (object(old), object(new));
    let mut changed = Map::new();
    for (key, value) in &after {
        let same = before.get(key) == Some(value);
        match key.as_str() {
            _ if same => {}
            // Merged by type: only what changed is sent, so that conditions of other writers stay theirs.
            "conditions" => {
                let known = before.get(key).and_then(Value::as_array);
                let news = value.as_array().into_iter().flatten();
                let mut list: Vec<Value> =
                    news.filter(|c| !known.is_some_and(|k| k.contains(c))).map(explicit_condition).collect();
                let kept = |kind: &Value| value.as_array().into_iter().flatten().any(|c| c["type"] == *kind);
                let gone = known.into_iter().flatten().map(|c| &c["type"]).filter(|kind| !kept(kind));
                list.extend(gone.map(|kind| json!({"$patch": "delete", "type": kind})));
                if !list.is_empty() {
                    changed.insert(key.clone(), list.into());
                }
            }
            // Merged by address, but an address that is gone must go.
            "podIPs" | "hostIPs" => {
                let mut list = vec![json!({"$patch": "replace"})];
                list.extend(value.as_array().into_iter().flatten().cloned());
                changed.insert(key.clone(), list.into());
            }
            _ => {
                changed.insert(key.clone(), value.clone());
            }
        }
    }
    for key in before.keys().filter(|k| !after.contains_key(*k)) {
        changed.insert(key.clone(), Value::Null);
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changed}))
}

/// A reason or message that is gone must be cleared in the merged condition.
fn explicit_condition(c: &Value) -> Value {
    let mut c = c.clone();
    if let Some(map) = c.as_object_mut() {
        for field in ["reason", "message"] {
            map.entry(field).or_insert(Value::Null);
        }
    }
    c
}

#[cfg(test)]
mod tests;
