//! Many clients at once.

use anyhow::{Context, Result};
use gantry_client::Client;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a run did.
pub struct Load {
    /// Requests that succeeded (others end the run with their error).
    pub requests: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Each request's time, in milliseconds.
    pub latencies: Vec<f64>,
}

impl Load {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }
}

/// When to stop.
#[derive(Clone, Copy)]
pub enum Until {
    /// After this long.
    Elapsed(Duration),
    /// After this many requests.
    Requests(u64),
}

/// Runs `request` on all clients, each one after the other, with ascending numbers from 0.
///
/// # Errors
/// That of the first request that fails.
pub async fn drive<F, R>(clients: &[Client], until: Until, request: F) -> Result<Load>
where
    F: Fn(Client, u64) -> R + Send + Sync + 'static,
    R: Future<Output = Result<()>> + Send,
{
    let request = Arc::new(request);
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in clients {
        let (client, request, next) = (client.clone(), request.clone(), next.clone());
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let over = match until {
                    Until::Elapsed(time) => started.elapsed() >= time,
                    Until::Requests(count) => number >= count,
                };
                if over {
                    return anyhow::Ok(latencies);
                }
                let asked = Instant::now();
                request(client.clone(), number).await?;
                latencies.push(asked.elapsed().as_secs_f64() * 1e3);
            }
        });
    }
    let mut latencies = Vec::new();
    while let Some(outcome) = tasks.join_next().await {
        latencies.extend(outcome.context("a client panicked")??);
    }
    Ok(Load { requests: latencies.len() as u64, elapsed: started.elapsed(), latencies })
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use gantry_client::{Body, Transport, TransportError};

    struct Nowhere;

    #[async_trait]
    impl Transport for Nowhere {
        async fn send(&self, _: http::Request<bytes::Bytes>) -> Result<http::Response<Body>, TransportError> {
            Err(TransportError { context: "test".into(), message: "nowhere".into() })
        }
    }

    #[tokio::test]
    async fn each_number_is_asked_once_and_a_failure_ends_the_run() {
        let clients = vec![Client::new(Arc::new(Nowhere), "test"); 4];
        let sum = Arc::new(AtomicU64::new(0));
        let counted = sum.clone();
        let load = drive(&clients, Until::Requests(100), move |_, n| {
            counted.fetch_add(n, Ordering::Relaxed);
            async { Ok(()) }
        })
        .await
        .unwrap();
        assert_eq!((load.requests, sum.load(Ordering::Relaxed)), (100, 4950));
        let failing = drive(&clients, Until::Requests(100), |client, _| async move {
            client.call(http::Method::GET, "/", None, bytes::Bytes::new()).await?;
            Ok(())
        });
        assert_eq!(failing.await.err().unwrap().to_string(), "test: nowhere");
    }
}
