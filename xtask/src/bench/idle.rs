//! Memory and CPU of a cluster in which nothing happens.

use super::budgets::MB;
use super::gantry::Gantry;
use super::{Bench, Measurement, process};
use anyhow::Result;
use serde_json::json;
use std::time::{Duration, Instant};

/// One start; memory first, then CPU over a window.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::up(bench).await?;
    let settled = Duration::from_secs(bench.scaled(60, 15));
    tokio::time::sleep(settled).await;
    let memory = gantry.memory()? as f64 / MB;
    let parts = json!({
        "after_s": settled.as_secs(),
        "anonymous_mb": process::size(gantry.pid(), "smaps_rollup", "Anonymous")? as f64 / MB,
        "pss_mb": process::proportional(gantry.pid())? as f64 / MB,
    });
    let (before, began) = (gantry.cpu()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(bench.scaled(60, 20))).await;
    let (used, window) = (gantry.cpu()? - before, began.elapsed());
    let share = 100.0 * used.as_secs_f64() / window.as_secs_f64();
    Ok(vec![
        Measurement { id: "idle_memory", value: memory, detail: parts },
        Measurement { id: "idle_cpu", value: share, detail: json!({ "window_s": window.as_secs_f64() }) },
    ])
}
