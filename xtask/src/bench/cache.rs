//! Memory the server needs per object, relative to the object's JSON.

use super::budgets::MB;
use super::gantry::Gantry;
use super::workload::{self, CONFIG_MAPS};
use super::{Bench, Measurement};
use anyhow::Result;
use serde_json::json;

/// Growth of the whole server by 1 KB ConfigMaps, which is an upper bound of the watch cache's: store and allocator count too.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.clients(workload::fillers()).await?;
    workload::namespace(&clients[0]).await?;
    // What the load itself leaves behind (connections, buffers, threads) is there before the count begins.
    workload::fill(&clients, CONFIG_MAPS, 1_000, |n| workload::config_map(&format!("warm-{n:06}"), n)).await?;
    gantry.settle().await?;
    let (empty, json_before) = (gantry.memory()?, workload::list_length(&clients[0], CONFIG_MAPS).await?);
    let objects = bench.scaled(50_000, 10_000);
    workload::fill(&clients, CONFIG_MAPS, objects, |n| workload::config_map(&format!("cache-{n:06}"), n)).await?;
    gantry.settle().await?;
    let grown = gantry.memory()?.saturating_sub(empty) as f64;
    let json_bytes = (workload::list_length(&clients[0], CONFIG_MAPS).await? - json_before) as f64;
    let detail = json!({
        "objects": objects,
        "grown_mb": grown / MB,
        "json_mb": json_bytes / MB,
        "bytes_per_object": grown / objects as f64,
    });
    Ok(vec![Measurement { id: "cache_memory", value: grown / json_bytes, detail }])
}
