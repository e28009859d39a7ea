//! How long a pod waits for its node where a thousand come each second. Pods are sent when their time has come, however
//! far the server is behind, and their wait begins then: a stall counts for all that come during it.

use super::binding::Hollow;
use super::deciding::Shape;
use super::gantry::Gantry;
use super::statistics::percentile;
use super::workload::{self, Events, PODS, pod_event};
use super::{Bench, Measurement};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::collections::HashMap;
use std::time::{Duration, Instant};

const NODES: u64 = 1_000;
const PER_SECOND: u64 = 1_000;
/// How long all may take, beyond the time in which they are sent.
const BOUND_WITHIN: Duration = Duration::from_secs(120);

fn name(number: u64) -> String {
    format!("wait-{number:06}")
}

/// When a pod is due, from the beginning.
fn due(number: u64) -> Duration {
    Duration::from_secs_f64(number as f64 / PER_SECOND as f64)
}

/// One cluster.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let cell = Hollow::new(&gantry, NODES, Shape::Plain).await?;
    gantry.settle().await?;
    let seconds = bench.scaled(20, 5);
    // The first second is not counted: connections, caches and the classes of pods are new then.
    let (ignored, count) = (PER_SECOND, PER_SECOND * (seconds + 1));
    // Several requests at once on each connection, so that none waits in the client.
    let senders = gantry.clients(workload::fillers()).await?;
    let version = workload::version(&cell.client, PODS).await?;
    let mut events = Events::watch(&gantry.client()?, PODS, &version).await?;
    let before = gantry.cpu()?;
    let began = Instant::now();
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(async move {
        let mut bound: HashMap<String, Duration> = HashMap::new();
        let seen = events.each(|line| {
            let event = pod_event(line)?;
            if !event.object.spec.node_name.is_empty() {
                bound.entry(event.object.metadata.name).or_insert_with(|| began.elapsed());
            }
            Ok(bound.len() as u64 == count)
        });
        match tokio::time::timeout(due(count) + BOUND_WITHIN, seen).await {
            Ok(outcome) => outcome.map(|()| bound),
            Err(_) => bail!("only {} of {count} pods were bound", bound.len()),
        }
    });
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..count {
        tokio::time::sleep_until((began + due(number)).into()).await;
        let client = senders[usize::try_from(number).unwrap_or(0) % senders.len()].clone();
        sending.spawn(async move {
            let late = began.elapsed().saturating_sub(due(number));
            workload::create(&client, PODS, &workload::pod(&name(number), "1m")).await?;
            anyhow::Ok((late, began.elapsed().saturating_sub(due(number))))
        });
    }
    let (mut late, mut created) = (Vec::new(), Vec::new());
    while let Some(sent) = sending.join_next().await {
        let (by, after) = sent.context("a client panicked")??;
        late.push(by.as_secs_f64() * 1e3);
        created.push(after.as_secs_f64() * 1e3);
    }
    let bound = watching.join_next().await.context("nobody watches")?.context("the watcher panicked")??;
    let used = gantry.cpu()? - before;
    let wait = |number: u64| bound.get(&name(number)).map(|at| at.saturating_sub(due(number)).as_secs_f64() * 1e3);
    let waits: Vec<f64> = (ignored..count).filter_map(wait).collect();
    let detail = json!({
        "nodes": NODES, "pods": waits.len(), "per_second": PER_SECOND,
        "p50_ms": percentile(&waits, 0.5), "p90_ms": percentile(&waits, 0.9), "p999_ms": percentile(&waits, 0.999),
        "max_ms": percentile(&waits, 1.0),
        "sent_late_p99_ms": percentile(&late, 0.99), "created_p99_ms": percentile(&created, 0.99),
        "server_cpu_per_pod_us": used.as_secs_f64() * 1e6 / count as f64,
    });
    Ok(vec![Measurement { id: "bind_p99", value: percentile(&waits, 0.99), detail }])
}
