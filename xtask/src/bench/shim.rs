//! Memory of the shim that every pod has.

use super::budgets::MB;
use super::gantry::{Gantry, PATIENCE};
use super::statistics::median;
use super::workload::{self, Events, PODS, pod_event};
use super::{Bench, Measurement, process};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

const PODS_RUNNING: usize = 10;

/// Ten idle pods; the median of their shims.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::up(bench).await?;
    let client = gantry.client()?;
    workload::namespace(&client).await?;
    let version = workload::version(&client, PODS).await?;
    let mut events = Events::watch(&client, PODS, &version).await?;
    for number in 0..PODS_RUNNING {
        workload::create(&client, PODS, &workload::pod(&format!("shim-{number}"), "10m")).await?;
    }
    let mut running = BTreeSet::new();
    let seen = events.each(|line| {
        let event = pod_event(line)?;
        if event.object.status.phase == "Running" {
            running.insert(event.object.metadata.name);
        }
        Ok(running.len() == PODS_RUNNING)
    });
    tokio::time::timeout(PATIENCE, seen).await.context("not all pods run")??;
    tokio::time::sleep(Duration::from_secs(bench.scaled(15, 5))).await;
    let shims = gantry.shims()?;
    ensure!(shims.len() >= PODS_RUNNING, "{} shims for {PODS_RUNNING} pods", shims.len());
    let mut sizes = Vec::new();
    let mut resident = Vec::new();
    for shim in shims {
        sizes.push(process::proportional(shim)? as f64 / MB);
        resident.push(process::resident(shim)? as f64 / MB);
    }
    let detail = json!({ "pss_mb": sizes, "rss_median_mb": median(&resident) });
    Ok(vec![Measurement { id: "shim_memory", value: median(&sizes), detail }])
}
