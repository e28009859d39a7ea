//! Eviction: what the node does when memory, disk or process ids run short, and when a pod exceeds its local storage.
//!
//! Observed every ten seconds, as the kernel reports neither a file system's fullness nor the machine's free memory.
//! Thresholds met make conditions of the node; under pressure, the node refuses pods, gives back images and containers
//! nobody needs, and then ends one pod at a time.

mod rank;
mod threshold;
mod usage;
mod watch;

pub use threshold::{DEFAULT_HARD, EvictionConfig, Signal, Threshold, duration, thresholds};

use crate::agent::Agent;
use crate::node::object::Pressure;
use crate::node::{images, machine};
use crate::pod::admission::Refusal;
use crate::pod::manager::Manager;
use crate::pod::names;
use crate::pod::resources::qos_class;
use crate::pod::status::Verdict;
use crate::server::stats::node_memory;
use gantry_container::runtime::{ContainerFilter, ContainerState};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use rank::Candidate;
use std::sync::Arc;
use std::time::Duration;
use threshold::Resource;
use tokio::time::Instant;
use watch::{Met, Observation, Observations, Watch};

/// How often the node is looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// How long an evicted pod may take to be cleaned up before the node is looked at again…
const CLEANUP: Duration = Duration::from_secs(30);
/// …and how often that is asked meanwhile.
const CLEANUP_POLL: Duration = Duration::from_secs(1);
/// Grace period of a pod that is evicted at once.
const IMMEDIATE: Duration = Duration::from_secs(1);
/// The reason of an evicted or refused pod.
const REASON: &str = "Evicted";

/// Looks after the node for as long as it is polled.
pub(crate) async fn run(agent: Arc<Agent>, manager: Arc<Manager>) {
    let mut watch = Watch::default();
    loop {
        let evicted = synchronize(&agent, &manager, &mut watch).await;
        if evicted.is_empty() {
            tokio::time::sleep(PERIOD).await;
            continue;
        }
        // What the first frees must be seen before another is chosen.
        let deadline = Instant::now() + CLEANUP;
        while Instant::now() < deadline && evicted.iter().any(|p| agent.pod_directory(names::uid(p)).exists()) {
            tokio::time::sleep(CLEANUP_POLL).await;
        }
    }
}

async fn observe(agent: &Agent) -> Observations {
    let mut seen = Observations::new();
    let mut note = |signal: Signal, available: u64, capacity: u64| {
        let resource = signal.resource();
        let seen_now = Observation { available: resource.amount(available), capacity: resource.amount(capacity) };
        seen.insert(signal, seen_now);
    };
    if let Some((available, used)) = node_memory() {
        note(Signal::MemoryAvailable, available, available + used);
    }
    match machine::file_system(&agent.cfg.data_dir) {
        Ok(fs) => {
            note(Signal::NodeFsAvailable, fs.available, fs.capacity);
            // Some file systems make inodes as they need them, and count none.
            if fs.inodes > 0 {
                note(Signal::NodeFsInodesFree, fs.inodes_free, fs.inodes);
            }
        }
        Err(error) => {
            tracing::warn!(path = %agent.cfg.data_dir.display(), %error, "cannot read the file system's fullness");
        }
    }
    match agent.images.fs_usage().await {
        Ok(fs) => {
            note(Signal::ImageFsAvailable, fs.available_bytes, fs.capacity_bytes);
            if fs.capacity_inodes > 0 {
                note(Signal::ImageFsInodesFree, fs.available_inodes, fs.capacity_inodes);
            }
        }
        Err(error) => tracing::warn!(%error, "cannot read the image store's usage"),
    }
    if let Some(running) = machine::running_tasks() {
        let most = u64::try_from(agent.machine.pids).unwrap_or(0);
        note(Signal::PidAvailable, most.saturating_sub(running), most);
    }
    seen
}

/// One round. Returns the pods that were evicted.
async fn synchronize(agent: &Arc<Agent>, manager: &Manager, watch: &mut Watch) -> Vec<Arc<Pod>> {
    let cfg = &agent.cfg.eviction;
    let seen = observe(agent).await;
    let (pressure, due) = watch.observe(cfg, &seen, Instant::now());
    agent.pressure.send_if_modified(|p| std::mem::replace(p, pressure) != pressure);
    let evicted = enforce_storage_limits(agent, manager).await;
    if !evicted.is_empty() {
        return evicted;
    }
    let Some(first) = due.first() else { return Vec::new() };
    let threshold = cfg.thresholds[*first];
    let resource = threshold.signal.resource();
    if let Some(node) = agent.node.get("", &agent.cfg.node_name) {
        let text = format!("Attempting to reclaim {}", resource.name());
        agent.recorder.warning(&*node, "EvictionThresholdMet", &text);
    }
    if resource.is_disk() {
        reclaim(agent, manager).await;
        if watch::met(cfg, &observe(agent).await, true).is_empty() {
            tracing::info!(resource = resource.name(), "the shortage is over without ending a pod");
            return Vec::new();
        }
    }
    let grace = if threshold.grace.is_zero() { IMMEDIATE } else { cfg.max_pod_grace };
    evict_first(agent, manager, resource, &due, &seen, grace).await.into_iter().collect()
}

/// Gives back what nobody needs: containers of pods that ended, then images.
async fn reclaim(agent: &Arc<Agent>, manager: &Manager) {
    let filter = ContainerFilter { sandbox_id: None, state: Some(ContainerState::Exited) };
    let active = manager.active();
    for c in agent.runtime.list_containers(filter).await.unwrap_or_default() {
        if active.iter().any(|p| c.labels.get(names::POD_UID).is_some_and(|u| u == names::uid(p))) {
            continue;
        }
        match agent.runtime.remove_container(&c.id).await {
            Ok(()) => {
                if let Some(path) = &c.log_path {
                    crate::logs::remove(path).await;
                }
            }
            Err(error) => tracing::warn!(container = c.id, %error, "cannot remove a container that ended"),
        }
    }
    images::free(agent, u64::MAX, Duration::ZERO).await;
}

/// Evicts the pod that ranks first.
async fn evict_first(
    agent: &Arc<Agent>,
    manager: &Manager,
    resource: Resource,
    due: &Met,
    seen: &Observations,
    grace: Duration,
) -> Option<Arc<Pod>> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for pod in manager.active() {
        if !rank::is_critical(&pod) {
            let usage = usage::of_pod(agent, &pod).await;
            candidates.push((pod, usage));
        }
    }
    rank::rank(&mut candidates, resource);
    let Some(first) = candidates.first() else {
        tracing::error!(resource = resource.name(), "the node is short of a resource, but no pod can be evicted");
        return None;
    };
    let (message, annotations) = rank::message(&agent.cfg.eviction, due, seen, resource, first);
    evict(agent, manager, &first.0, message, annotations, true, grace);
    Some(first.0.clone())
}

/// Evicts the pods that use more local storage than they may.
async fn enforce_storage_limits(agent: &Arc<Agent>, manager: &Manager) -> Vec<Arc<Pod>> {
    let mut evicted = Vec::new();
    for pod in manager.active() {
        if !rank::has_storage_limit(&pod) || rank::is_critical(&pod) {
            continue;
        }
        let Some(usage) = usage::of_pod(agent, &pod).await else { continue };
        if let Some(message) = rank::exceeded_storage(&pod, &usage) {
            evict(agent, manager, &pod, message, Vec::new(), false, IMMEDIATE);
            evicted.push(pod);
        }
    }
    evicted
}

fn evict(
    agent: &Agent,
    manager: &Manager,
    pod: &Pod,
    message: String,
    annotations: Vec<(String, String)>,
    disruption: bool,
    grace: Duration,
) {
    tracing::warn!(pod = %names::pod_description(pod), message, "evicting a pod");
    let about = gantry_reconcile::events::reference(pod);
    agent.recorder.record_annotated(&about, gantry_reconcile::EventType::Warning, REASON, &message, annotations);
    manager.evict(names::uid(pod), Verdict { reason: REASON.into(), message, disruption }, grace);
}

fn tolerates_memory_pressure(t: &Toleration) -> bool {
    let is = |field: &Option<String>, want: &str| field.as_deref().is_none_or(|f| f.is_empty() || f == want);
    let key = is(&t.key, "node.kubernetes.io/memory-pressure");
    let value = match t.operator.as_deref() {
        None | Some("" | "Equal") => t.value.as_deref().unwrap_or_default().is_empty(),
        Some("Exists") => true,
        Some(_) => false,
    };
    key && is(&t.effect, "NoSchedule") && value
}

/// Whether a node under pressure takes a pod.
pub(crate) fn admit(pod: &Pod, pressure: Pressure) -> Result<(), Refusal> {
    if pressure == Pressure::default() || rank::is_critical(pod) {
        return Ok(());
    }
    if pressure == (Pressure { memory: true, ..Pressure::default() }) {
        let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
        if qos_class(pod) != "BestEffort" || tolerations.into_iter().any(tolerates_memory_pressure) {
            return Ok(());
        }
    }
    let all = [(pressure.memory, "MemoryPressure"), (pressure.disk, "DiskPressure"), (pressure.pids, "PIDPressure")];
    let names: Vec<&str> = all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
    Err(Refusal { reason: REASON.into(), message: format!("The node had condition: [{}]. ", names.join(" ")) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::{Value, json};

    #[test]
    fn pressure_refuses_what_it_must() {
        let pod = |spec: Value| Pod::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let plain = json!({"containers": [{"name": "c"}]});
        let burstable = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1m"}}}]});
        let critical = json!({"priority": 2_000_000_000, "containers": [{"name": "c"}]});
        let tolerant = json!({"containers": [{"name": "c"}],
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists",
                "effect": "NoSchedule"}]});
        let memory = Pressure { memory: true, ..Pressure::default() };
        let disk = Pressure { disk: true, ..Pressure::default() };
        for (spec, under_memory, under_disk) in [
            (plain, "The node had condition: [MemoryPressure]. ", "The node had condition: [DiskPressure]. "),
            (burstable, "", "The node had condition: [DiskPressure]. "),
            (tolerant, "", "The node had condition: [DiskPressure]. "),
            (critical, "", ""),
        ] {
            let p = pod(spec);
            assert_eq!(admit(&p, Pressure::default()), Ok(()));
            for (pressure, want) in [(memory, under_memory), (disk, under_disk)] {
                let told = admit(&p, pressure).err().map(|r| r.message).unwrap_or_default();
                assert_eq!(told, want);
            }
        }
    }
}
