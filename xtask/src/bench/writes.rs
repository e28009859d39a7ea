//! Single writes at a fixed rate, whether or not those before have been answered.

use super::gantry::{Gantry, PATIENCE};
use super::statistics::percentile;
use super::workload::{self, CONFIG_MAPS};
use super::{Bench, Measurement};
use anyhow::{Context, Result};
use bytes::Bytes;
use gantry_client::Client;
use http::Method;
use serde_json::json;
use std::time::Duration;

const PER_SECOND: u64 = 1_000;
const CONNECTIONS: usize = 16;
const MERGE_PATCH: &str = "application/merge-patch+json";

/// A create, an update, a patch and a delete in turn, each of another object. The time of each runs from when it was due, so
/// that one that has to wait for its turn is not better off.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.clients(CONNECTIONS).await?;
    workload::namespace(&clients[0]).await?;
    let writes = PER_SECOND * bench.scaled(20, 5);
    let fillers = gantry.clients(workload::fillers()).await?;
    workload::fill(&fillers, CONFIG_MAPS, writes, |n| workload::config_map(&format!("there-{n}"), n)).await?;
    gantry.settle().await?;

    let before = gantry.cpu()?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(PER_SECOND)?);
    let mut under_way = tokio::task::JoinSet::new();
    for number in 0..writes {
        let due = ticks.tick().await;
        let client = clients[usize::try_from(number)? % clients.len()].clone();
        under_way.spawn(async move {
            write(&client, number).await?;
            anyhow::Ok(due.elapsed().as_secs_f64() * 1e3)
        });
    }
    let mut delays = Vec::new();
    let collect = async {
        while let Some(outcome) = under_way.join_next().await {
            delays.push(outcome.context("a client panicked")??);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, collect).await.context("not every write was answered")??;
    let detail = json!({
        "writes": writes,
        "per_second": PER_SECOND,
        "p50_ms": percentile(&delays, 0.5),
        "max_ms": percentile(&delays, 1.0),
        "server_cpu_per_request_us": (gantry.cpu()? - before).as_secs_f64() * 1e6 / writes as f64,
    });
    Ok(vec![Measurement { id: "writes_p99", value: percentile(&delays, 0.99), detail }])
}

async fn write(client: &Client, number: u64) -> Result<()> {
    let path = format!("{CONFIG_MAPS}/there-{number}");
    match number % 4 {
        0 => {
            workload::create(client, CONFIG_MAPS, &workload::config_map(&format!("new-{number}"), number)).await?;
        }
        1 => {
            let object = workload::config_map(&format!("there-{number}"), number + 1);
            client.call(Method::PUT, &path, Some("application/json"), object.to_string().into()).await?;
        }
        2 => {
            let patch = Bytes::from_static(br#"{"data":{"patched":"yes"}}"#);
            client.call(Method::PATCH, &path, Some(MERGE_PATCH), patch).await?;
        }
        _ => {
            client.call(Method::DELETE, &path, None, Bytes::new()).await?;
        }
    }
    Ok(())
}
