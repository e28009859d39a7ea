//! From the create of a pod to its being Running, as a watch sees it, the image being there.

use super::gantry::{Gantry, PATIENCE};
use super::statistics::{median, percentile};
use super::workload::{self, Events, PODS, pod_event};
use super::{Bench, Measurement};
use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use serde_json::json;
use std::time::Instant;

/// One pod after another, each deleted before the next.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::up(bench).await?;
    let client = gantry.client()?;
    workload::namespace(&client).await?;
    let version = workload::version(&client, PODS).await?;
    let mut events = Events::watch(&client, PODS, &version).await?;
    let (mut running, mut bound, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    // The first pod finds nothing warm and is not counted.
    for number in 0..=bench.scaled(20, 5) {
        let name = format!("start-{number}");
        let pod = workload::pod(&name, "10m");
        let (began, before) = (Instant::now(), gantry.cpu()?);
        workload::create(&client, PODS, &pod).await?;
        let mut bound_after = None;
        let seen = events.each(|line| {
            let event = pod_event(line)?;
            if event.object.metadata.name != name {
                return Ok(false);
            }
            if !event.object.spec.node_name.is_empty() && bound_after.is_none() {
                bound_after = Some(began.elapsed());
            }
            Ok(event.object.status.phase == "Running")
        });
        tokio::time::timeout(PATIENCE, seen).await.with_context(|| format!("pod {name} does not run"))??;
        if number > 0 {
            running.push(began.elapsed().as_secs_f64() * 1e3);
            bound.push(bound_after.unwrap_or_default().as_secs_f64() * 1e3);
            cpu.push((gantry.cpu()? - before).as_secs_f64() * 1e3);
        }
        let options = Bytes::from(json!({ "gracePeriodSeconds": 0 }).to_string());
        let path = format!("{PODS}/{name}");
        client.call(Method::DELETE, &path, Some("application/json"), options).await?;
        gantry.settle().await?;
    }
    let detail = json!({
        "runs_ms": running,
        "p90_ms": percentile(&running, 0.9),
        "bound_median_ms": median(&bound),
        "bound_to_running_median_ms": median(&running.iter().zip(&bound).map(|(r, b)| r - b).collect::<Vec<_>>()),
        "cpu_of_main_process_median_ms": median(&cpu),
    });
    Ok(vec![Measurement { id: "pod_start", value: median(&running), detail }])
}
