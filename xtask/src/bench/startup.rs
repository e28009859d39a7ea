//! From `gantry up` on an empty data directory to a Ready node.

use super::gantry::Gantry;
use super::statistics::median;
use super::{Bench, Measurement, workload};
use anyhow::{Result, ensure};
use serde_json::json;

/// Times the line that says so, and checks with the API that it is true.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let (mut ready, mut serving) = (Vec::new(), Vec::new());
    for _ in 0..bench.scaled(5, 3) {
        let mut gantry = Gantry::spawn_up(bench)?;
        serving.push(gantry.said("API server").await?.as_secs_f64());
        ready.push(gantry.said("is Ready").await?.as_secs_f64());
        let node = workload::get(&gantry.client()?, "/api/v1/nodes/node-1").await?;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        ensure!(
            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"),
            "gantry said that the node is Ready, the API says: {conditions:?}"
        );
    }
    let detail = json!({ "runs_s": ready, "api_server_median_s": median(&serving) });
    Ok(vec![Measurement { id: "start_to_ready", value: median(&ready), detail }])
}
