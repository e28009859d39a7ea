//! Memory the server needs per object, relative to the object's JSON.

use super::budgets::MB;
use super::gantry::Gantry;
use super::workload::{self, CONFIG_MAPS};
use super::{Bench, Measurement};
use anyhow::{Context, Result};
use gantry_client::Client;
use serde_json::{Value, json};

/// Growth of the whole server by 1 KB ConfigMaps once nothing happens any more: store, controllers' caches and allocator
/// count too. With objects that resemble each other, as those of most kinds do, and with some that have nothing in common.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let alike = growth(bench, workload::config_map).await?;
    let unlike = growth(bench, workload::unlike_config_map).await?;
    let part = unlike.cache / unlike.json;
    let detail = json!({ "alike": alike.cache / alike.json, "unlike": part });
    let measured = |id, growth: Growth| Measurement { id, value: growth.grown / growth.json, detail: growth.detail };
    let whole = [measured("cache_memory", alike), measured("cache_memory_unlike", unlike)];
    Ok(whole.into_iter().chain([Measurement { id: "cache_part", value: part, detail }]).collect())
}

/// In bytes.
struct Growth {
    /// Of the process.
    grown: f64,
    /// Of the watch cache, as it says itself.
    cache: f64,
    /// Of the JSON of all.
    json: f64,
    detail: Value,
}

async fn growth(bench: &Bench, object: fn(&str, u64) -> Value) -> Result<Growth> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.clients(workload::fillers()).await?;
    workload::namespace(&clients[0]).await?;
    // What the load itself leaves behind (connections, buffers, threads) is there before the count begins.
    workload::fill(&clients, CONFIG_MAPS, 1_000, move |n| object(&format!("warm-{n:06}"), n)).await?;
    gantry.settle().await?;
    bench.rest().await;
    let json_before = workload::list_length(&clients[0], CONFIG_MAPS).await?;
    let (empty, cache_before) = (gantry.memory()?, cached(&clients[0]).await?);
    let objects = bench.scaled(50_000, 10_000);
    workload::fill(&clients, CONFIG_MAPS, objects, move |n| object(&format!("cache-{n:06}"), n)).await?;
    let at_once = gantry.memory()?.saturating_sub(empty) as f64;
    gantry.settle().await?;
    bench.rest().await;
    let (grown, cache) = (gantry.memory()?.saturating_sub(empty) as f64, cached(&clients[0]).await? - cache_before);
    let json = (workload::list_length(&clients[0], CONFIG_MAPS).await? - json_before) as f64;
    let detail = json!({
        "objects": objects,
        "grown_mb": grown / MB,
        "grown_when_created_mb": at_once / MB,
        "watch_cache_mb": cache / MB,
        "json_mb": json / MB,
        "bytes_per_object": grown / objects as f64,
    });
    Ok(Growth { grown, cache, json, detail })
}

/// What the watch cache of ConfigMaps takes, in bytes.
async fn cached(client: &Client) -> Result<f64> {
    const SERIES: &str = "gantry_watch_cache_bytes{resource=\"configmaps\"}";
    let text = client.call(http::Method::GET, "/metrics", None, bytes::Bytes::new()).await?;
    let text = String::from_utf8_lossy(&text);
    let value = text.lines().find_map(|line| line.strip_prefix(SERIES)).context("the server does not tell")?;
    value.trim().parse().with_context(|| format!("{SERIES} is {value:?}"))
}
