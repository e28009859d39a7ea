//! Pods bound per second, from the first create to the last binding seen by a watch, on hollow nodes.

use super::deciding::{self, Shape};
use super::gantry::Gantry;
use super::workload::{self, Events, PODS, pod_event};
use super::{Bench, Measurement};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use gantry_client::Client;
use http::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Path of nodes.
pub const NODES: &str = "/api/v1/nodes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// Below the node controller's grace of fifty seconds; real kubelets renew every ten.
const RENEW_EVERY: Duration = Duration::from_secs(20);
/// Renewals a second, at most: of more nodes each renews its lease less often. The machine is to do other things.
const RENEWALS: u64 = 250;
/// Leases that are renewed at the same time.
const TOGETHER: u64 = 50;
/// How long all bindings may take before the run counts as broken.
const BOUND_WITHIN: Duration = Duration::from_secs(600);

/// One server for each size of cluster.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let mut found = vec![bound(bench, "bound_1000", 1_000, Shape::Plain).await?];
    if !bench.quick {
        found.push(bound(bench, "bound_5000", 5_000, Shape::Plain).await?);
    }
    Ok(found)
}

/// The name of the priority class of pods that preempt.
const URGENT: &str = "bench-urgent";

/// Gives every node one pod of low priority that takes all of it and goes at once when told to.
async fn occupy(fillers: &[Client], nodes: u64) -> Result<()> {
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": URGENT }, "value": 1000,
    });
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    fillers[0].call(Method::POST, path, Some("application/json"), Bytes::from(class.to_string())).await?;
    workload::fill(fillers, PODS, nodes, |n| {
        let mut filler = workload::pod(&format!("filler-{n:05}"), "32");
        filler["spec"]["terminationGracePeriodSeconds"] = json!(0);
        filler["spec"]["nodeName"] = json!(name(n));
        filler
    })
    .await?;
    Ok(())
}

/// A pod of a shape. Those that preempt take so much of a node that it has room for one.
pub fn pod(number: u64, shape: Shape) -> Value {
    let cpu = if shape == Shape::Preempting { "17" } else { "100m" };
    let mut pod = workload::pod(&format!("bound-{number:05}"), cpu);
    if shape == Shape::Plain {
        return pod;
    }
    let app = format!("app-{}", number % deciding::CONTROLLERS as u64);
    pod["metadata"]["labels"]["app"] = json!(app);
    if shape == Shape::Preempting {
        pod["spec"]["priorityClassName"] = json!(URGENT);
    } else if let (Some(whole), Some(spec)) = (pod["spec"].as_object_mut(), shape.spec(&app).as_object()) {
        whole.extend(spec.clone());
    }
    pod
}

/// Nodes without agents, whose objects and leases are kept up as long as the value lives.
pub struct Hollow {
    /// One that may ask for everything.
    pub client: Client,
    /// Who filled the server, to fill it further.
    pub fillers: Vec<Client>,
    _heartbeats: tokio::task::JoinSet<()>,
}

impl Hollow {
    /// Makes them, and the namespace to work in.
    ///
    /// # Errors
    /// Where they cannot be made or do not become ready.
    pub async fn new(gantry: &Gantry, nodes: u64, shape: Shape) -> Result<Self> {
        let fillers = gantry.load_clients(workload::fillers()).await?;
        let client = gantry.client()?;
        workload::namespace(&client).await?;
        workload::fill(&fillers, NODES, nodes, move |n| node(n, shape)).await?;
        workload::fill(&fillers, LEASES, nodes, lease).await?;
        let mut beating = tokio::task::JoinSet::new();
        beating.spawn(heartbeats(gantry.client()?, nodes));
        untainted(&client, nodes).await?;
        Ok(Self { client, fillers, _heartbeats: beating })
    }
}

/// Waits until as many of the pods that [`pod`] makes are bound, and tells how long after `began` the first was and the
/// last. Their number so far is kept in `seen`.
///
/// # Errors
/// Where the watch breaks, or it takes longer than `within`.
pub async fn all_bound(
    mut events: Events,
    count: u64,
    began: Instant,
    within: Duration,
    seen: Arc<AtomicU64>,
) -> Result<(Duration, Duration)> {
    let mut names = HashSet::new();
    let (mut first, mut last) = (Duration::ZERO, Duration::ZERO);
    let all = events.each(|line| {
        let event = pod_event(line)?;
        let ours = event.object.metadata.name.starts_with("bound-");
        if ours && !event.object.spec.node_name.is_empty() && names.insert(event.object.metadata.name) {
            last = began.elapsed();
            if names.len() == 1 {
                first = last;
            }
            seen.store(names.len() as u64, Ordering::Relaxed);
        }
        Ok(names.len() as u64 == count)
    });
    match tokio::time::timeout(within, all).await {
        Ok(outcome) => outcome.map(|()| (first, last)),
        Err(_) => bail!("only {} of {count} pods were bound within {} s", names.len(), within.as_secs()),
    }
}

/// Measures one shape of pods on so many nodes.
pub async fn bound(bench: &Bench, id: &'static str, nodes: u64, shape: Shape) -> Result<Measurement> {
    let gantry = Gantry::server(bench).await?;
    let cell = Hollow::new(&gantry, nodes, shape).await?;
    if shape == Shape::Preempting {
        occupy(&cell.fillers, nodes).await?;
    }
    gantry.settle().await?;

    let mut count = bench.scaled(10_000, 2_000);
    if matches!(shape, Shape::Preempting) {
        count = count.min(nodes);
    }
    let version = workload::version(&cell.client, PODS).await?;
    let events = Events::watch(&gantry.client()?, PODS, &version).await?;
    let before = gantry.cpu()?;
    let began = Instant::now();
    let watching = tokio::spawn(all_bound(events, count, began, BOUND_WITHIN, Arc::default()));
    let created = workload::fill(&cell.fillers, PODS, count, move |n| pod(n, shape)).await?;
    let (first, last) = watching.await.context("the watcher panicked")??;
    let used = gantry.cpu()? - before;
    let detail = json!({
        "nodes": nodes,
        "pods": count,
        "created_per_second": created.rate(),
        "first_bound_after_s": first.as_secs_f64(),
        "last_bound_after_s": last.as_secs_f64(),
        "server_cpu_per_pod_us": used.as_secs_f64() * 1e6 / count as f64,
        "memory_mb": gantry.memory()? as f64 / 1e6,
    });
    Ok(Measurement { id, value: count as f64 / last.as_secs_f64(), detail })
}

/// The name of a node.
pub fn name(number: u64) -> String {
    format!("hollow-{number:05}")
}

/// A node as its agent would register it.
pub fn node(number: u64, shape: Shape) -> Value {
    let (labels, taints) = deciding::traits(number, shape);
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": "hollow",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    let capacity = json!({ "cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "100Gi" });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name(number),
            "labels": labels,
        },
        "spec": { "taints": taints },
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady"),
            ],
        },
    })
}

fn lease(number: u64) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": name(number), "namespace": "kube-node-lease" },
        "spec": { "holderIdentity": name(number), "leaseDurationSeconds": 40, "renewTime": micro_time() },
    })
}

fn micro_time() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// How often each of so many nodes renews its lease.
fn renewal(nodes: u64) -> Duration {
    RENEW_EVERY.max(Duration::from_secs(nodes / RENEWALS))
}

/// What the server must be told for so many nodes, that those whose leases are renewed this seldom are not thought dead.
pub fn patience(nodes: u64) -> Option<String> {
    let every = renewal(nodes);
    (every > RENEW_EVERY).then(|| format!("--node-monitor-grace-period={}s", every.as_secs() * 3))
}

/// Renews every lease, so that no node is thought dead while a slow run lasts. Ends by being aborted.
async fn heartbeats(client: Client, nodes: u64) {
    let mut next = tokio::time::interval(renewal(nodes).mul_f64(TOGETHER as f64 / nodes as f64));
    let renew = |number: u64| {
        let client = &client;
        async move {
            let body = Bytes::from(json!({ "spec": { "renewTime": micro_time() } }).to_string());
            let path = format!("{LEASES}/{}", name(number));
            if let Err(error) = client.call(Method::PATCH, &path, Some("application/merge-patch+json"), body).await {
                eprintln!("  cannot renew the lease of {}: {error}", name(number));
            }
        }
    };
    loop {
        for first in (0..nodes).step_by(TOGETHER as usize) {
            next.tick().await;
            futures::future::join_all((first..nodes.min(first + TOGETHER)).map(renew)).await;
        }
    }
}

/// Waits until the node controller has taken the taint of new nodes from all. Those of the benchmark stay.
async fn untainted(client: &Client, nodes: u64) -> Result<()> {
    let deadline = Instant::now() + super::gantry::PATIENCE.mul_f64(1.0 + nodes as f64 / 5_000.0);
    loop {
        // As text: decoding fifty thousand nodes takes longer than taking their taints away.
        let list = client.call(Method::GET, NODES, None, Bytes::new()).await?;
        let tainted = std::str::from_utf8(&list)?.matches(r#""key":"node.kubernetes.io/"#).count();
        if tainted == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{nodes} nodes still have {tainted} taints");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
