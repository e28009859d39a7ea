//! CPU of the server for a LIST of 10,000 pods.

use super::gantry::Gantry;
use super::statistics::median;
use super::workload::{self, PODS};
use super::{Bench, Measurement};
use anyhow::Result;
use serde_json::json;
use std::time::Instant;

const PODS_LISTED: u64 = 10_000;
/// Enough that the ten-millisecond steps of the kernel's accounting do not matter.
const LISTS: u32 = 20;

/// Whole lists over one connection, one after another.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.clients(workload::fillers()).await?;
    let client = &clients[0];
    workload::namespace(client).await?;
    workload::fill(&clients, PODS, PODS_LISTED, |n| workload::unscheduled_pod(&format!("listed-{n:05}"))).await?;
    gantry.settle().await?;
    let length = workload::list_length(client, PODS).await?;
    let before = gantry.cpu()?;
    let mut latencies = Vec::new();
    for _ in 0..LISTS {
        let began = Instant::now();
        workload::list_length(client, PODS).await?;
        latencies.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let used = (gantry.cpu()? - before) / LISTS;
    let detail = json!({
        "bytes": length,
        "bytes_per_pod": length / PODS_LISTED,
        "latency_median_ms": median(&latencies),
    });
    Ok(vec![Measurement { id: "list_cpu", value: used.as_secs_f64() * 1e3, detail }])
}
