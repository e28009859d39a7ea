//! One update that ten thousand watchers wait for.

use super::gantry::{Gantry, PATIENCE};
use super::statistics::median;
use super::watch::sequence;
use super::workload::{self, CONFIG_MAPS, Events};
use super::{Bench, Measurement};
use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const CONNECTIONS: usize = 100;
const WATCHERS_EACH: usize = 100;
const WATCHERS: usize = CONNECTIONS * WATCHERS_EACH;

/// How many watchers have the update under way, and a call for who waits for the last.
#[derive(Default)]
struct Seen {
    count: AtomicUsize,
    all: Notify,
}

/// Updates of one ConfigMap, one after the other; each runs from before it is sent to when the last watcher has its event.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let writer = gantry.client()?;
    workload::namespace(&writer).await?;
    workload::create(&writer, CONFIG_MAPS, &workload::config_map("watched", 0)).await?;
    let version = workload::version(&writer, CONFIG_MAPS).await?;
    let updates = bench.scaled(20, 5);
    let seen = Arc::new(Seen::default());
    let without = gantry.memory()?;
    let mut watchers = tokio::task::JoinSet::new();
    for client in gantry.clients(CONNECTIONS).await? {
        for _ in 0..WATCHERS_EACH {
            let mut events = Events::watch(&client, CONFIG_MAPS, &version).await?;
            let seen = seen.clone();
            watchers.spawn(async move {
                let each = |line: &[u8]| {
                    let number = sequence(line).context("an event without its number")?;
                    if seen.count.fetch_add(1, Ordering::AcqRel) + 1 == WATCHERS {
                        seen.all.notify_one();
                    }
                    Ok(number == updates)
                };
                events.each(each).await
            });
        }
    }
    gantry.settle().await?;
    let grown = gantry.memory()?.saturating_sub(without);
    let before = gantry.cpu()?;
    let mut last = Vec::new();
    for number in 1..=updates {
        seen.count.store(0, Ordering::Release);
        let body = Bytes::from(workload::config_map("watched", number as u64).to_string());
        let sent = Instant::now();
        let path = format!("{CONFIG_MAPS}/watched");
        let update = writer.call(Method::PUT, &path, Some("application/json"), body);
        let all = tokio::time::timeout(PATIENCE, seen.all.notified());
        let (updated, told) = tokio::join!(update, all);
        updated.context("the update failed")?;
        told.context("not every watcher got the update")?;
        last.push(sent.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    while let Some(outcome) = watchers.join_next().await {
        outcome.context("a watcher panicked")??;
    }
    let detail = json!({
        "runs_ms": last,
        "server_cpu_per_event_us": (gantry.cpu()? - before).as_secs_f64() * 1e6 / (WATCHERS * updates) as f64,
        "server_memory_per_watcher_bytes": grown / WATCHERS as u64,
    });
    Ok(vec![Measurement { id: "watchers_last", value: median(&last), detail }])
}
