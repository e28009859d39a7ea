//! Memory of a server that holds fifty thousand nodes and half a million pods.

use super::binding;
use super::budgets::MB;
use super::deciding::Shape;
use super::gantry::Gantry;
use super::workload::{self, PODS};
use super::{Bench, Measurement, process};
use anyhow::{Result, ensure};
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_scheduler::pod::{PodInfo, Shapes};
use gantry_scheduler::snapshot::Snapshot;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

const NODES: u64 = 50_000;
const PODS_PER_NODE: u64 = 10;

/// One server. The pods have their nodes from the beginning: it is about what is held, by the watch caches and by the
/// scheduler, and half a million bindings would only take longer.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.clients(workload::fillers()).await?;
    workload::namespace(&clients[0]).await?;
    let empty = gantry.memory()? as f64 / MB;
    let nodes = NODES;
    workload::fill(&clients, binding::NODES, nodes, move |n| binding::node(n, Shape::Plain)).await?;
    gantry.settle().await?;
    let with_nodes = gantry.memory()? as f64 / MB;
    let pods = nodes * PODS_PER_NODE;
    let created = workload::fill(&clients, PODS, pods, move |n| {
        let mut pod = workload::pod(&format!("held-{n:06}"), "100m");
        pod["spec"]["nodeName"] = json!(binding::name(n % nodes));
        pod
    })
    .await?;
    let at_once = gantry.memory()? as f64 / MB;
    gantry.settle().await?;
    let value = gantry.memory()? as f64 / MB;
    let first = workload::get(&clients[0], &format!("{PODS}?limit=1")).await?;
    let held = first["metadata"]["remainingItemCount"].as_u64().unwrap_or(0) + 1;
    ensure!(held == pods, "{held} of {pods} pods are left");
    let detail = json!({
        "nodes": nodes, "pods": pods, "empty_mb": empty, "with_nodes_mb": with_nodes, "when_created_mb": at_once,
        "peak_mb": process::peak(gantry.pid())? as f64 / MB,
        "anonymous_mb": process::size(gantry.pid(), "smaps_rollup", "Anonymous")? as f64 / MB,
        "pod_json_bytes": first["items"][0].to_string().len(),
        "created_per_second": created.rate(),
    });
    drop(gantry);
    let mut sample = first["items"][0].clone();
    if let Some(metadata) = sample["metadata"].as_object_mut() {
        // Clients in the server's process are not given them.
        metadata.remove("managedFields");
    }
    let whole = Measurement { id: "cell_memory", value, detail };
    let snapshot = tokio::task::spawn_blocking(move || snapshot(nodes, pods, sample)).await??;
    Ok(vec![whole, snapshot])
}

/// What of it the scheduler's own snapshot takes: the same nodes and pods, in this process.
fn snapshot(nodes: u64, pods: u64, mut sample: Value) -> Result<Measurement> {
    let own = std::process::id();
    let before = process::resident(own)?;
    let (mut snapshot, mut shapes) = (Snapshot::default(), Shapes::default());
    for number in 0..nodes {
        snapshot.set_node(&serde_json::from_value(binding::node(number, Shape::Plain))?);
    }
    let with_nodes = process::resident(own)?;
    for number in 0..pods {
        let node = binding::name(number % nodes);
        sample["metadata"]["name"] = json!(format!("held-{number:06}"));
        sample["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{number:012}"));
        sample["spec"]["nodeName"] = json!(node);
        let pod: Pod = Pod::deserialize(&sample)?;
        snapshot.place(Arc::new(shapes.of(&PodInfo::new(Arc::new(pod)))), &node);
    }
    let value = process::resident(own)?.saturating_sub(before) as f64 / MB;
    let detail = json!({
        "nodes": nodes, "pods": pods, "nodes_mb": with_nodes.saturating_sub(before) as f64 / MB,
        "bytes_per_pod": process::resident(own)?.saturating_sub(with_nodes) / pods,
    });
    Ok(Measurement { id: "snapshot_memory", value, detail })
}
