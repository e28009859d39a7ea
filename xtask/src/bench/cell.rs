//! A whole cell: fifty thousand nodes, and half a million pods that are created and bound through the API.

use super::binding::{self, Hollow};
use super::budgets::MB;
use super::deciding::Shape;
use super::gantry::Gantry;
use super::workload::{self, Events, PODS};
use super::{Bench, Measurement, process};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PODS_PER_NODE: u64 = 10;
/// How long all bindings may take before the run counts as broken.
const BOUND_WITHIN: Duration = Duration::from_secs(3600);
/// How often it is noted how far the server is.
const NOTED_EVERY: Duration = Duration::from_secs(10);

/// One server.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let nodes = bench.nodes;
    let count = nodes * PODS_PER_NODE;
    let options = binding::patience(nodes);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let gantry = Gantry::server_with(bench, &options).await?;
    let began = Instant::now();
    let cell = Hollow::new(&gantry, nodes, Shape::Plain).await?;
    gantry.settle().await?;
    let (registered, with_nodes) = (began.elapsed(), gantry.memory()?);
    eprintln!("  {nodes} nodes after {:.0} s: {:.0} MB", registered.as_secs_f64(), with_nodes as f64 / MB);

    let version = workload::version(&cell.client, PODS).await?;
    let events = Events::watch(&gantry.client()?, PODS, &version).await?;
    let before = gantry.cpu()?;
    let began = Instant::now();
    let seen = Arc::new(AtomicU64::new(0));
    let mut watching = tokio::spawn(binding::all_bound(events, count, began, BOUND_WITHIN, seen.clone()));
    let fillers = cell.fillers.clone();
    let mut filling = tokio::spawn(async move {
        workload::fill(&fillers, PODS, count, |n| binding::pod(n, Shape::Plain)).await.map(|load| load.rate())
    });
    let (mut course, mut next, mut created) = (Vec::new(), tokio::time::interval(NOTED_EVERY), None);
    let (first, last) = loop {
        tokio::select! {
            outcome = &mut watching => break outcome.context("the watcher panicked")??,
            outcome = &mut filling, if created.is_none() => {
                created = Some(outcome.context("a client panicked")??);
            }
            _ = next.tick() => course.push(note(&gantry, began, before, seen.load(Ordering::Relaxed))?),
        }
    };
    let used = gantry.cpu()? - before;
    let at_once = gantry.memory()?;
    course.push(note(&gantry, began, before, count)?);
    let waiting = workload::get(&cell.client, &format!("{PODS}?fieldSelector=spec.nodeName%3D&limit=1")).await?;
    ensure!(waiting["items"].as_array().is_some_and(Vec::is_empty), "a pod is not bound: {waiting}");
    gantry.settle().await?;
    bench.rest().await;
    let held = workload::get(&cell.client, &format!("{PODS}?limit=1")).await?;
    let held = held["metadata"]["remainingItemCount"].as_u64().unwrap_or(0) + 1;
    ensure!(held == count, "{held} of {count} pods are left");
    let megabytes = |name: &str| process::size(gantry.pid(), "smaps_rollup", name).map(|bytes| bytes as f64 / MB);
    let detail = json!({
        "nodes": nodes,
        "pods": count,
        "nodes_registered_after_s": registered.as_secs_f64(),
        "with_nodes_mb": with_nodes as f64 / MB,
        "created_per_second": created,
        "first_bound_after_s": first.as_secs_f64(),
        "last_bound_after_s": last.as_secs_f64(),
        "server_cpu_per_pod_us": used.as_secs_f64() * 1e6 / count as f64,
        "when_bound_mb": at_once as f64 / MB,
        "at_rest_rss_mb": megabytes("Rss")?,
        "at_rest_pss_mb": megabytes("Pss")?,
        "at_rest_anonymous_mb": megabytes("Anonymous")?,
        "disk_mb": gantry.disk()? as f64 / MB,
        "course": course,
    });
    let bound = count as f64 / last.as_secs_f64();
    Ok(vec![
        Measurement { id: "cell_peak", value: process::peak(gantry.pid())? as f64 / MB, detail },
        Measurement { id: "cell_bound", value: bound, detail: json!({ "nodes": nodes, "pods": count }) },
    ])
}

/// How far it is: seconds, pods bound, memory, CPU of the server, disk.
fn note(gantry: &Gantry, began: Instant, before: Duration, bound: u64) -> Result<Value> {
    let (time, cpu) = (began.elapsed().as_secs_f64(), (gantry.cpu()? - before).as_secs_f64());
    let (memory, disk) = (gantry.memory()? as f64 / MB, gantry.disk()? as f64 / MB);
    eprintln!("  {time:.0} s: {bound} bound, {memory:.0} MB, {cpu:.0} s of CPU, {disk:.0} MB of disk");
    Ok(
        json!({ "s": time.round(), "bound": bound, "mb": memory.round(), "cpu_s": cpu.round(), "disk_mb": disk.round() }),
    )
}
