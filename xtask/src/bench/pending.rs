//! Memory with many pods that fit no node.

use super::budgets::MB;
use super::gantry::Gantry;
use super::workload::{self, PODS};
use super::{Bench, Measurement, process};
use anyhow::Result;
use serde_json::json;

const PODS_PENDING: u64 = 10_000;

/// Creates them, waits until the scheduler has said of all that they do not fit, and until it is quiet.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::up(bench).await?;
    let empty = gantry.memory()? as f64 / MB;
    let clients = gantry.clients(workload::fillers()).await?;
    workload::namespace(&clients[0]).await?;
    workload::fill(&clients, PODS, PODS_PENDING, |n| workload::pod(&format!("pending-{n:05}"), "10000")).await?;
    gantry.settle().await?;
    bench.rest().await;
    let list = workload::get(&clients[0], PODS).await?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let told = |pod: &serde_json::Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "Unschedulable")
    };
    let detail = json!({
        "pods": pods.len(),
        "unschedulable": pods.iter().filter(|p| told(p)).count(),
        "before_mb": empty,
        "anonymous_mb": process::size(gantry.pid(), "smaps_rollup", "Anonymous")? as f64 / MB,
        "json_mb": list.to_string().len() as f64 / MB,
        "peak_mb": process::peak(gantry.pid())? as f64 / MB,
    });
    // After the list above, so that what serving it left behind counts.
    Ok(vec![Measurement { id: "pending_memory", value: gantry.memory()? as f64 / MB, detail }])
}
