//! GET of single 1 KB ConfigMaps by 64 clients.

use super::gantry::Gantry;
use super::load::{self, Until};
use super::statistics::{median, percentile};
use super::workload::{self, CONFIG_MAPS};
use super::{Bench, Measurement};
use anyhow::Result;
use bytes::Bytes;
use http::Method;
use serde_json::json;
use std::time::Duration;

const OBJECTS: u64 = 1_000;

/// Every client has a connection of its own and one request in flight.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.load_clients(64).await?;
    workload::namespace(&clients[0]).await?;
    workload::fill(&clients, CONFIG_MAPS, OBJECTS, |n| workload::config_map(&format!("cm-{n}"), n)).await?;
    let (mut rates, mut latencies, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.scaled(3, 1) {
        let time = Until::Elapsed(Duration::from_secs(bench.scaled(5, 2)));
        let before = gantry.cpu()?;
        let load = load::drive(&clients, time, |client, number| async move {
            let path = format!("{CONFIG_MAPS}/cm-{}", number % OBJECTS);
            client.call(Method::GET, &path, None, Bytes::new()).await?;
            Ok(())
        })
        .await?;
        cpu.push((gantry.cpu()? - before).as_secs_f64() * 1e6 / load.requests as f64);
        rates.push(load.rate());
        latencies.extend(load.latencies);
    }
    let detail = json!({
        "runs": rates,
        "p50_ms": percentile(&latencies, 0.5),
        "p99_ms": percentile(&latencies, 0.99),
        "server_cpu_per_request_us": median(&cpu),
    });
    Ok(vec![Measurement { id: "gets_64", value: median(&rates), detail }])
}
