//! `/stats/summary`: what node, pods and containers use.

use super::{Body, Failure, Server, answer};
use crate::node::machine::{file_system, meminfo, running_tasks};
use crate::pod::names;
use gantry_container::runtime::{ContainerFilter, ContainerState, ContainerStatus, SandboxState, SandboxStatus, Stats};
use http::{Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// Two samples closer than this give no usable rate.
const MIN_WINDOW: Duration = Duration::from_millis(500);
/// A sample older than this says nothing about now.
const MAX_WINDOW: Duration = Duration::from_secs(120);

/// CPU counters seen last, by sandbox or container id (`""` = the node), for rates.
#[derive(Default)]
pub(crate) struct Samples(Mutex<HashMap<String, (SystemTime, u64, u64)>>);

impl Samples {
    /// Cores in use (billionths) since the sample before; `None` without one.
    fn rate(&self, id: &str, at: SystemTime, cpu_ns: u64) -> Option<u64> {
        let mut samples = self.0.lock();
        let last = samples.get(id).copied();
        let (rate, keep) = match last {
            Some((then, used, known)) => {
                let window = at.duration_since(then).unwrap_or_default();
                if window < MIN_WINDOW {
                    (Some(known), false)
                } else if window > MAX_WINDOW || cpu_ns < used {
                    (None, true)
                } else {
                    let cores = (cpu_ns - used) as f64 / window.as_secs_f64();
                    (Some(cores as u64), true)
                }
            }
            None => (None, true),
        };
        if keep {
            samples.insert(id.to_owned(), (at, cpu_ns, rate.unwrap_or(0)));
        }
        rate
    }

    fn knows(&self, id: &str) -> bool {
        let now = SystemTime::now();
        let samples = self.0.lock();
        samples.get(id).is_some_and(|(at, ..)| now.duration_since(*at).unwrap_or_default() <= MAX_WINDOW)
    }

    fn keep(&self, ids: impl Fn(&str) -> bool) {
        self.0.lock().retain(|id, _| id.is_empty() || ids(id));
    }
}

/// CPU time the machine has used, nanoseconds.
pub(crate) fn node_cpu_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    parse_cpu(&text)
}

fn parse_cpu(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|t| t.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal: everything but idle and iowait.
    let used = ticks.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4) && *i < 8).map(|(_, t)| t).sum::<u64>();
    // The unit is 1/100 s on every architecture Linux has.
    Some(used * 10_000_000)
}

/// Memory available and in use on the machine, bytes.
pub(crate) fn node_memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let (total, available) = (meminfo(&text, "MemTotal")?, meminfo(&text, "MemAvailable")?);
    Some((available, total.saturating_sub(available)))
}

pub(crate) fn stamp(at: SystemTime) -> String {
    let at = Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH);
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

/// What was read of one pod.
pub(crate) struct PodUsage {
    pub sandbox: SandboxStatus,
    pub total: Option<Stats>,
    pub containers: Vec<(ContainerStatus, Stats)>,
}

/// Reads the usage of everything that runs.
pub(crate) async fn read(server: &Server) -> Result<Vec<PodUsage>, gantry_container::Error> {
    let runtime = &server.agent.runtime;
    let mut out = Vec::new();
    let running = ContainerFilter { sandbox_id: None, state: Some(ContainerState::Running) };
    let mut containers = runtime.list_containers(running).await?;
    for sandbox in runtime.list_sandboxes().await?.into_iter().filter(|s| s.state == SandboxState::Ready) {
        let (own, rest): (Vec<_>, Vec<_>) = containers.into_iter().partition(|c| c.sandbox_id == sandbox.id);
        containers = rest;
        let mut usages = Vec::new();
        for c in own {
            // It may have ended meanwhile.
            if let Ok(stats) = runtime.container_stats(&c.id).await {
                usages.push((c, stats));
            }
        }
        let total = runtime.sandbox_stats(&sandbox.id).await.ok();
        out.push(PodUsage { sandbox, total, containers: usages });
    }
    Ok(out)
}

fn cpu(samples: &Samples, id: &str, stats: &Stats) -> Value {
    let mut out = json!({"time": stamp(stats.at), "usageCoreNanoSeconds": stats.cpu_ns});
    if let Some(rate) = samples.rate(id, stats.at, stats.cpu_ns) {
        out["usageNanoCores"] = rate.into();
    }
    out
}

fn memory(stats: &Stats) -> Value {
    let mut out = json!({
        "time": stamp(stats.at),
        "usageBytes": stats.memory_usage,
        "workingSetBytes": stats.memory_working_set,
        "rssBytes": stats.memory_rss,
        "pageFaults": stats.page_faults,
        "majorPageFaults": stats.major_page_faults,
    });
    if let Some(limit) = stats.memory_limit {
        out["availableBytes"] = limit.saturating_sub(stats.memory_working_set).into();
    }
    out
}

fn pod(samples: &Samples, usage: &PodUsage) -> Value {
    let label = |name: &str| usage.sandbox.labels.get(name).cloned().unwrap_or_default();
    let containers: Vec<Value> = usage
        .containers
        .iter()
        .map(|(c, s)| {
            json!({
                "name": c.name,
                "startTime": stamp(c.started_at.unwrap_or(c.created_at)),
                "cpu": cpu(samples, &c.id, s),
                "memory": memory(s),
                "rootfs": {"time": stamp(s.at), "usedBytes": s.writable_layer_bytes, "inodesUsed": s.writable_layer_inodes},
            })
        })
        .collect();
    let mut out = json!({
        "podRef": {"name": label(names::POD_NAME), "namespace": label(names::POD_NAMESPACE), "uid": label(names::POD_UID)},
        "startTime": stamp(usage.sandbox.created_at),
        "containers": containers,
    });
    if let Some(total) = &usage.total {
        out["cpu"] = cpu(samples, &usage.sandbox.id, total);
        out["memory"] = memory(total);
        out["process_stats"] = json!({"process_count": total.pids});
    }
    out
}

fn fs(server: &Server, now: &str) -> Option<Value> {
    let fs = file_system(&server.agent.cfg.data_dir).ok()?;
    Some(json!({"time": now, "availableBytes": fs.available, "capacityBytes": fs.capacity,
        "usedBytes": fs.capacity.saturating_sub(fs.available), "inodes": fs.inodes, "inodesFree": fs.inodes_free,
        "inodesUsed": fs.inodes.saturating_sub(fs.inodes_free)}))
}

async fn image_fs(server: &Server, now: &str) -> Option<Value> {
    let fs = server.agent.images.fs_usage().await.ok()?;
    Some(json!({"time": now, "availableBytes": fs.available_bytes, "capacityBytes": fs.capacity_bytes,
        "usedBytes": fs.used_bytes, "inodes": fs.capacity_inodes, "inodesFree": fs.available_inodes,
        "inodesUsed": fs.used_inodes}))
}

pub(crate) async fn summary(server: &Server) -> Result<Response<Body>, Failure> {
    let failed = |e: gantry_container::Error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
    let mut usages = read(server).await.map_err(failed)?;
    let fresh = !server.samples.knows("")
        || usages.iter().flat_map(|u| &u.containers).any(|(c, _)| !server.samples.knows(&c.id));
    if fresh {
        // Without an earlier sample there is no rate: a second one follows shortly.
        for usage in &usages {
            pod(&server.samples, usage);
        }
        if let Some(ns) = node_cpu_ns() {
            server.samples.rate("", SystemTime::now(), ns);
        }
        tokio::time::sleep(MIN_WINDOW * 2).await;
        usages = read(server).await.map_err(failed)?;
    }
    let now = SystemTime::now();
    let at = stamp(now);
    let mut node = json!({"nodeName": server.agent.cfg.node_name});
    if let Some(ns) = node_cpu_ns() {
        node["cpu"] = json!({"time": at, "usageCoreNanoSeconds": ns});
        if let Some(rate) = server.samples.rate("", now, ns) {
            node["cpu"]["usageNanoCores"] = rate.into();
        }
    }
    if let Some((available, used)) = node_memory() {
        node["memory"] = json!({"time": at, "availableBytes": available, "usageBytes": used, "workingSetBytes": used});
    }
    if let Some(fs) = fs(server, &at) {
        node["fs"] = fs;
    }
    if let Some(fs) = image_fs(server, &at).await {
        node["runtime"] = json!({"imageFs": fs.clone(), "containerFs": fs});
    }
    if let Some(running) = running_tasks() {
        node["rlimit"] = json!({"time": at, "maxpid": server.agent.machine.pids, "curproc": running});
    }
    let pods: Vec<Value> = usages.iter().map(|u| pod(&server.samples, u)).collect();
    server.samples.keep(|id| usages.iter().any(|u| u.sandbox.id == id || u.containers.iter().any(|(c, _)| c.id == id)));
    let body = json!({"node": node, "pods": pods});
    Ok(answer(StatusCode::OK, "application/json", body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_two_samples_apart() {
        let s = Samples::default();
        let t0 = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(s.rate("a", t0, 0), None);
        assert_eq!(s.rate("a", t0 + Duration::from_secs(10), 5_000_000_000), Some(500_000_000));
        // Too soon: the last rate is repeated.
        assert_eq!(s.rate("a", t0 + Duration::from_millis(10_100), 9_000_000_000), Some(500_000_000));
        assert_eq!(s.rate("a", t0 + Duration::from_secs(12), 5_000_000_000), Some(0));
        // The counter began anew, or too long ago.
        assert_eq!(s.rate("a", t0 + Duration::from_secs(14), 1), None);
        assert_eq!(s.rate("a", t0 + Duration::from_secs(1000), 2), None);
    }

    #[test]
    fn proc_stat() {
        assert_eq!(parse_cpu("cpu  1 2 3 100 50 4 5 6 7 8\ncpu0 1\n"), Some(21 * 10_000_000));
        assert_eq!(parse_cpu("intr 1"), None);
    }
}
