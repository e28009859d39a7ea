//! Durable creates of 1 KB ConfigMaps over TLS, by 1, 16 and 64 clients.

use super::gantry::Gantry;
use super::load::{self, Until};
use super::statistics::{median, percentile};
use super::workload::{self, CONFIG_MAPS};
use super::{Bench, Measurement};
use anyhow::Result;
use serde_json::json;
use std::time::Duration;

const CLIENTS: [(usize, &str); 3] = [(1, "creates_1"), (16, "creates_16"), (64, "creates_64")];

/// Every client has a connection of its own and one request in flight.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let clients = gantry.load_clients(64).await?;
    workload::namespace(&clients[0]).await?;
    let mut found = Vec::new();
    for (count, id) in CLIENTS {
        let (mut rates, mut latencies, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..bench.scaled(3, 1) {
            let time = Until::Elapsed(Duration::from_secs(bench.scaled(5, 2)));
            let before = gantry.cpu()?;
            let load = load::drive(&clients[..count], time, move |client, number| async move {
                let object = workload::config_map(&format!("c{count}-{round}-{number}"), number);
                workload::create(&client, CONFIG_MAPS, &object).await.map(drop)
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
        found.push(Measurement { id, value: median(&rates), detail });
    }
    Ok(found)
}
