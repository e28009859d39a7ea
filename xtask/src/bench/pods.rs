//! Durable creates of pods with every admission plugin on.

use super::gantry::Gantry;
use super::load::{self, Until};
use super::statistics::{median, percentile};
use super::workload::{self, PODS};
use super::{Bench, Measurement};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Those that are off by default and ask nobody else. `AlwaysDeny` lets nothing pass, `ImagePolicyWebhook` and
/// `EventRateLimit` need files.
const PLUGINS: &str = "AlwaysAdmit,NamespaceAutoProvision,NamespaceExists,LimitPodHardAntiAffinityTopology,AlwaysPullImages,\
    PodNodeSelector,PodTolerationRestriction,ExtendedResourceToleration,OwnerReferencesPermissionEnforcement,\
    DenyServiceExternalIPs";

/// Every client has a connection of its own and one request in flight. The scheduler leaves the pods alone.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server_with(bench, &["--enable-admission-plugins", PLUGINS]).await?;
    let clients = gantry.load_clients(64).await?;
    workload::namespace(&clients[0]).await?;
    let mut detail = Map::new();
    let mut rate = 0.0;
    for count in [16, 64] {
        let (mut rates, mut latencies, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..bench.scaled(3, 1) {
            let time = Until::Elapsed(Duration::from_secs(bench.scaled(5, 2)));
            let before = gantry.cpu()?;
            let load = load::drive(&clients[..count], time, move |client, number| async move {
                let pod = workload::unscheduled_pod(&format!("p{count}-{round}-{number}"));
                workload::create(&client, PODS, &pod).await.map(drop)
            })
            .await?;
            cpu.push((gantry.cpu()? - before).as_secs_f64() * 1e6 / load.requests as f64);
            rates.push(load.rate());
            latencies.extend(load.latencies);
        }
        rate = median(&rates);
        let of_these: Value = json!({
            "runs": rates,
            "p50_ms": percentile(&latencies, 0.5),
            "p99_ms": percentile(&latencies, 0.99),
            "server_cpu_per_request_us": median(&cpu),
        });
        detail.insert(format!("clients_{count}"), of_these);
    }
    Ok(vec![Measurement { id: "pods_64", value: rate, detail: detail.into() }])
}
