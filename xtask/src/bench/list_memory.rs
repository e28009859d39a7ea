//! Extra memory of the server while it serves a LIST of 100,000 pods.

use super::budgets::MB;
use super::gantry::Gantry;
use super::statistics::median;
use super::workload::{self, PODS};
use super::{Bench, Measurement, process};
use anyhow::Result;
use serde_json::json;

const PODS_LISTED: u64 = 100_000;

/// The highest resident size during a list, less that before it.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.clients(workload::fillers()).await?;
    let client = &clients[0];
    workload::namespace(client).await?;
    workload::fill(&clients, PODS, PODS_LISTED, |n| workload::unscheduled_pod(&format!("listed-{n:06}"))).await?;
    gantry.settle().await?;
    let mut extra = Vec::new();
    let (mut length, mut resident) = (0, 0.0);
    for _ in 0..3 {
        process::reset_peak(gantry.pid())?;
        let before = process::resident(gantry.pid())?;
        length = workload::list_length(client, PODS).await?;
        extra.push(process::peak(gantry.pid())?.saturating_sub(before) as f64 / MB);
        resident = before as f64 / MB;
    }
    let detail = json!({ "runs_mb": extra, "bytes": length, "resident_before_mb": resident });
    Ok(vec![Measurement { id: "list_memory", value: median(&extra), detail }])
}
