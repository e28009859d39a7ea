//! What keeps a node usable: log rotation, removal of unused images, eviction when memory or disk run short.

use super::machine::disk;
use super::object::Pressure;
use crate::agent::Agent;
use crate::logs;
use crate::pod::manager::Manager;
use crate::pod::names;
use crate::pod::resources::qos_class;
use crate::pod::status::Verdict;
use crate::server::stats::node_memory;
use gantry_api::core::pod::resources::pod_requests;
use gantry_api::meta::quantity::Amount;
use gantry_container::runtime::{ContainerFilter, ContainerState, SandboxState};
use gantry_reconcile::EventType;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often logs and pressure are looked at: the kernel reports neither a file's size nor a file system's fullness.
const PERIOD: Duration = Duration::from_secs(10);
/// How often unused images are looked for.
const IMAGE_PERIOD: Duration = Duration::from_secs(300);
/// How long pressure is reported after it was seen last.
const PRESSURE_HOLD: Duration = Duration::from_secs(300);
/// Time between two evictions for the same shortage: the first must show its effect.
const EVICTION_PAUSE: Duration = Duration::from_secs(20);

/// Looks after the node for as long as it is polled.
pub(crate) async fn run(agent: Arc<Agent>, manager: Arc<Manager>, pressure: watch::Sender<Pressure>) {
    let mut images_at = Instant::now() + IMAGE_PERIOD;
    let mut seen: [Option<Instant>; 3] = [None; 3];
    let mut evicted = Instant::now() - EVICTION_PAUSE;
    loop {
        tokio::time::sleep(PERIOD).await;
        rotate_logs(&agent).await;
        super::storage::enforce(&agent, &manager).await;
        if Instant::now() >= images_at {
            images_at = Instant::now() + IMAGE_PERIOD;
            collect_images(&agent, None).await;
        }
        let shortage = look(&agent).await;
        let now = Instant::now();
        for (at, short) in seen.iter_mut().zip([shortage.memory.is_some(), shortage.disk.is_some(), shortage.pids]) {
            if short {
                *at = Some(now);
            }
        }
        let held = |at: Option<Instant>| at.is_some_and(|at| now < at + PRESSURE_HOLD);
        let news = Pressure { memory: held(seen[0]), disk: held(seen[1]), pids: held(seen[2]) };
        pressure.send_if_modified(|p| std::mem::replace(p, news) != news);
        if let Some(free) = shortage.disk {
            // Images first: pods are evicted only for what that does not give back.
            if collect_images(&agent, Some(free)).await {
                continue;
            }
        }
        if (shortage.memory.is_some() || shortage.disk.is_some()) && now >= evicted + EVICTION_PAUSE {
            evict_one(&agent, &manager, &shortage).await;
            evicted = now;
        }
    }
}

/// What is short, with what is left of it in bytes.
#[derive(Debug, Default, Clone, Copy)]
struct Shortage {
    memory: Option<u64>,
    disk: Option<u64>,
    pids: bool,
}

async fn look(agent: &Agent) -> Shortage {
    let cfg = &agent.cfg;
    let memory = node_memory().map(|(available, _)| available).filter(|a| *a < cfg.eviction_memory_available);
    let free = match disk(&cfg.data_dir) {
        Ok((size, available)) => Some(available).filter(|a| a * 100 < size * cfg.eviction_disk_percent),
        Err(error) => {
            tracing::warn!(path = %cfg.data_dir.display(), %error, "cannot read the file system's fullness");
            None
        }
    };
    let running = std::fs::read_to_string("/proc/loadavg").ok();
    let tasks = running.as_deref().and_then(|t| t.split(' ').nth(3)?.split('/').nth(1)?.parse::<i64>().ok());
    Shortage { memory, disk: free, pids: tasks.is_some_and(|t| t * 10 > agent.machine.pids * 9) }
}

async fn rotate_logs(agent: &Agent) {
    let filter = ContainerFilter { sandbox_id: None, state: Some(ContainerState::Running) };
    let running = match agent.runtime.list_containers(filter).await {
        Ok(running) => running,
        Err(error) => return tracing::warn!(%error, "cannot list containers to rotate their logs"),
    };
    for c in running {
        let Some(path) = &c.log_path else { continue };
        let (size, files) = (agent.cfg.log_max_size, agent.cfg.log_max_files);
        let runtime = agent.runtime.as_ref();
        if let Err(error) = logs::rotate(path, &c.id, runtime, size, files, agent.clock.now()).await {
            tracing::warn!(path = %path.display(), %error, "cannot rotate a log");
        }
    }
}

/// Bytes to free: down to the low mark once usage is above the high one.
fn to_free(used: u64, capacity: u64, high: u64, low: u64) -> Option<u64> {
    let percent = |p: u64| capacity / 100 * p;
    (used > percent(high)).then(|| used.saturating_sub(percent(low)))
}

/// Removes images nobody uses, least recently used first, while the disk is too full; all of them where it is short
/// already. True where that removed the shortage.
async fn collect_images(agent: &Agent, short: Option<u64>) -> bool {
    let usage = match agent.images.fs_usage().await {
        Ok(usage) => usage,
        Err(error) => {
            tracing::warn!(%error, "cannot read the image store's usage");
            return false;
        }
    };
    let used = usage.capacity_bytes.saturating_sub(usage.available_bytes);
    let cfg = &agent.cfg;
    let wanted = match short {
        Some(_) => Some(u64::MAX),
        None => to_free(used, usage.capacity_bytes, cfg.image_gc_high_percent, cfg.image_gc_low_percent),
    };
    let Some(wanted) = wanted else { return false };
    let candidates = match agent.images.garbage_candidates().await {
        Ok(candidates) => candidates,
        Err(error) => {
            tracing::warn!(%error, "cannot list unused images");
            return false;
        }
    };
    let mut freed = 0u64;
    for image in candidates {
        if freed >= wanted {
            break;
        }
        match agent.images.remove(&image.id).await {
            Ok(()) => {
                tracing::info!(image = image.id, bytes = image.size, "removed an unused image");
                freed += image.size;
            }
            Err(error) => tracing::debug!(image = image.id, %error, "cannot remove an unused image"),
        }
    }
    if freed < wanted
        && short.is_none()
        && let Some(node) = agent.node.get("", &cfg.node_name)
    {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
        );
        agent.recorder.event(&*node, EventType::Warning, "FreeDiskSpaceFailed", &message);
    }
    short.is_some() && freed > 0 && look(agent).await.disk.is_none()
}

/// What ranks pods for eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rank {
    exceeds: bool,
    priority: i32,
    excess: i128,
}

impl Rank {
    fn new(used: u64, requested: Amount, priority: i32) -> Self {
        let excess = i128::from(used) - i128::from(requested.value());
        Rank { exceeds: excess > 0, priority, excess }
    }

    /// Those over their request go first, then lower priority, then those furthest over.
    fn key(&self) -> (bool, i32, i128) {
        (!self.exceeds, self.priority, -self.excess)
    }
}

fn is_critical(pod: &Pod) -> bool {
    let static_pod = pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/config.source"));
    static_pod || pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= 2_000_000_000)
}

async fn usage(agent: &Agent, disk: bool) -> HashMap<String, u64> {
    let mut out = HashMap::new();
    if disk {
        let all = agent.runtime.list_containers(ContainerFilter::default()).await.unwrap_or_default();
        for c in all {
            let layer = agent.runtime.container_stats(&c.id).await.map_or(0, |s| s.writable_layer_bytes);
            let log = c.log_path.as_ref().and_then(|p| logs::files(p).ok()).unwrap_or_default();
            let log: u64 = log.iter().filter_map(|p| std::fs::metadata(p).ok()).map(|m| m.len()).sum();
            if let Some(uid) = c.labels.get(names::POD_UID) {
                *out.entry(uid.clone()).or_default() += layer + log;
            }
        }
        return out;
    }
    let sandboxes = agent.runtime.list_sandboxes().await.unwrap_or_default();
    for s in sandboxes.into_iter().filter(|s| s.state == SandboxState::Ready) {
        if let (Some(uid), Ok(stats)) = (s.labels.get(names::POD_UID), agent.runtime.sandbox_stats(&s.id).await) {
            *out.entry(uid.clone()).or_default() += stats.memory_working_set;
        }
    }
    out
}

async fn evict_one(agent: &Agent, manager: &Manager, shortage: &Shortage) {
    let (resource, threshold, left) = match (shortage.memory, shortage.disk) {
        (Some(left), _) => {
            ("memory", Amount::from_bytes(i64::try_from(agent.cfg.eviction_memory_available).unwrap_or(i64::MAX)), left)
        }
        (None, Some(left)) => {
            let bytes = agent.machine.storage / 100 * i64::try_from(agent.cfg.eviction_disk_percent).unwrap_or(0);
            ("ephemeral-storage", Amount::from_bytes(bytes), left)
        }
        (None, None) => return,
    };
    let used = usage(agent, resource != "memory").await;
    let candidates = manager.list().into_iter().filter(|p| !is_critical(p));
    let ranked = candidates.filter_map(|p| {
        let mine = *used.get(names::uid(&p))?;
        let requested =
            p.spec.as_ref().map(pod_requests).unwrap_or_default().get(resource).copied().unwrap_or_default();
        let priority = p.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        Some((Rank::new(mine, requested, priority), mine, p))
    });
    let Some((_, mine, pod)) = ranked.min_by_key(|(rank, ..)| rank.key()) else {
        return tracing::warn!(resource, "the node is short of a resource, but no pod can be evicted");
    };
    let left = Amount::from_bytes(i64::try_from(left).unwrap_or(i64::MAX));
    let message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {left}. Pod was using {}, class {}. ",
        Amount::from_bytes(i64::try_from(mine).unwrap_or(i64::MAX)),
        qos_class(&pod)
    );
    tracing::warn!(pod = %names::pod_description(&pod), resource, "evicting a pod");
    agent.recorder.warning(&*pod, "Evicted", &message);
    let verdict = Verdict { reason: "Evicted".into(), message, disruption: true };
    // A hard threshold leaves no time for graceful endings.
    manager.evict(names::uid(&pod), verdict, Duration::ZERO);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_between_the_marks() {
        assert_eq!(to_free(80, 100, 85, 80), None);
        assert_eq!(to_free(9_000, 10_000, 85, 80), Some(1_000));
    }

    #[test]
    fn those_over_their_request_go_first_then_by_priority() {
        let mib = |n: i64| Amount::from_bytes(n << 20);
        let within = Rank::new(10 << 20, mib(20), -5);
        let important = Rank::new(300 << 20, mib(20), 100);
        let little = Rank::new(30 << 20, mib(20), 0);
        let much = Rank::new(90 << 20, mib(20), 0);
        let mut all = [within, important, little, much];
        all.sort_by_key(Rank::key);
        assert_eq!(all, [much, little, important, within]);
    }
}
