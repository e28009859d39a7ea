//! Fan-out of updates to a thousand watchers.

use super::gantry::{Gantry, PATIENCE};
use super::statistics::percentile;
use super::workload::{self, CONFIG_MAPS, Events};
use super::{Bench, Measurement};
use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use serde_json::json;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 10;
const WATCHERS_EACH: usize = 100;
const UPDATES_PER_SECOND: usize = 10;
const MARK: &[u8] = b"\"seq\":\"";

/// Ten updates a second of one ConfigMap; the delay runs from the sending of an update to a watcher's having the event.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let gantry = Gantry::server(bench).await?;
    let writer = gantry.client()?;
    workload::namespace(&writer).await?;
    workload::create(&writer, CONFIG_MAPS, &workload::config_map("watched", 0)).await?;
    let version = workload::version(&writer, CONFIG_MAPS).await?;
    let updates = UPDATES_PER_SECOND * bench.scaled(10, 5);
    let sent: Arc<Vec<OnceLock<Instant>>> = Arc::new((0..=updates).map(|_| OnceLock::new()).collect());

    let mut watchers = tokio::task::JoinSet::new();
    for client in gantry.clients(CONNECTIONS).await? {
        for _ in 0..WATCHERS_EACH {
            let mut events = Events::watch(&client, CONFIG_MAPS, &version).await?;
            let sent = sent.clone();
            watchers.spawn(async move {
                let mut delays = Vec::with_capacity(updates);
                events
                    .each(|line| {
                        let now = Instant::now();
                        let number = sequence(line).context("an event without its number")?;
                        let at = sent.get(number).and_then(OnceLock::get).context("an event of no update")?;
                        delays.push((now - *at).as_secs_f64() * 1e3);
                        Ok(number == updates)
                    })
                    .await?;
                anyhow::Ok(delays)
            });
        }
    }
    gantry.settle().await?;

    let memory = gantry.memory()?;
    let before = gantry.cpu()?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / UPDATES_PER_SECOND as u32);
    for (number, sent) in sent.iter().enumerate().skip(1) {
        ticks.tick().await;
        let body = Bytes::from(workload::config_map("watched", number as u64).to_string());
        // Set by nobody else, so that it cannot be there already.
        sent.get_or_init(Instant::now);
        writer.call(Method::PUT, &format!("{CONFIG_MAPS}/watched"), Some("application/json"), body).await?;
    }
    let mut delays = Vec::new();
    let collect = async {
        while let Some(outcome) = watchers.join_next().await {
            delays.extend(outcome.context("a watcher panicked")??);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, collect).await.context("not every watcher got the last update")??;
    let used = gantry.cpu()? - before;
    let expected = CONNECTIONS * WATCHERS_EACH * updates;
    anyhow::ensure!(delays.len() == expected, "{} of {expected} events were delivered", delays.len());
    let detail = json!({
        "delivered": delays.len(),
        "p50_ms": percentile(&delays, 0.5),
        "max_ms": percentile(&delays, 1.0),
        "server_memory_mb": memory as f64 / 1e6,
    });
    let per_event = used.as_secs_f64() * 1e6 / delays.len() as f64;
    Ok(vec![
        Measurement { id: "watch_cpu", value: per_event, detail: json!({ "updates": updates }) },
        Measurement { id: "watch_p99", value: percentile(&delays, 0.99), detail },
    ])
}

/// The number of the update that an event tells of. Found, not parsed: the clients share the cores with the server.
pub fn sequence(line: &[u8]) -> Option<usize> {
    let at = line.windows(MARK.len()).position(|w| w == MARK)? + MARK.len();
    let digits = line[at..].iter().take_while(|b| b.is_ascii_digit());
    std::str::from_utf8(&line[at..at + digits.count()]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found() {
        let line = br#"{"type":"MODIFIED","object":{"data":{"seq":"42","text":"x"}}}"#;
        assert_eq!(sequence(line), Some(42));
        assert_eq!(sequence(br#"{"f:seq":{}}"#), None);
    }
}
