//! The loop that works off a queue's keys.

use crate::error::Error;
use crate::queue::Queue;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// What a reconciliation asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Come back after this long, whether or not anything changes.
    pub requeue_after: Option<Duration>,
}

impl Outcome {
    /// Nothing more until something changes.
    #[must_use]
    pub const fn done() -> Self {
        Self { requeue_after: None }
    }

    /// Come back after `delay`.
    #[must_use]
    pub const fn after(delay: Duration) -> Self {
        Self { requeue_after: Some(delay) }
    }
}

/// Brings the world nearer to what one object asks for.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// Name for logs and metrics.
    fn name(&self) -> &'static str;
    /// Handles one key, which may name an object that no longer exists. Never called for one key in two places at once.
    ///
    /// # Errors
    /// The key comes back with back-off.
    async fn reconcile(&self, key: &str) -> Result<Outcome, Error>;
}

/// Works off `queue` with `workers` tasks until `cancel`. Errors are logged here.
pub async fn run(controller: Arc<dyn Controller>, queue: Queue, workers: usize, cancel: CancellationToken) {
    let mut tasks = JoinSet::new();
    for _ in 0..workers.max(1) {
        let (controller, queue, cancel) = (controller.clone(), queue.clone(), cancel.clone());
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                biased;
                        () = cancel.cancelled() => return,
                        k = queue.get() => match k {
                            Some(k) => k,
                            None => return,
                        },
                    };
                let result = tokio::select! {
                biased;
                        () = cancel.cancelled() => return,
                        r = controller.reconcile(&key) => r,
                    };
                match result {
                    Ok(outcome) => {
                        queue.forget(&key);
                        if let Some(d) = outcome.requeue_after {
                            queue.add_after(key.clone(), d);
                        }
                    }
                    Err(e) => {
                        if e.is_routine() {
                            debug!(controller = controller.name(), %key, error = %e, "trying again");
                        } else {
                            warn!(controller = controller.name(), %key, error = %e, "cannot reconcile, trying again");
                        }
                        queue.add_rate_limited(key.clone());
                    }
                }
                queue.done(&key);
            }
        });
    }
    cancel.cancelled().await;
    queue.close();
    while tasks.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    struct Flaky(Mutex<Vec<String>>);

    #[async_trait]
    impl Controller for Flaky {
        fn name(&self) -> &'static str {
            "flaky"
        }
        async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
            let mut log = self.0.lock();
            log.push(key.to_owned());
            match log.len() {
                1 => Err(Error::Other("first".into())),
                2 => Ok(Outcome::after(Duration::from_secs(5))),
                _ => Ok(Outcome::done()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_requests_bring_a_key_back() {
        let (q, cancel) = (Queue::new("t"), CancellationToken::new());
        let c = Arc::new(Flaky(Mutex::default()));
        let running = tokio::spawn(run(c.clone(), q.clone(), 2, cancel.clone()));
        q.add("k".into());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(c.0.lock().len(), 2);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(c.0.lock().len(), 3);
        assert_eq!(q.failures(&"k".to_owned()), 0);
        cancel.cancel();
        running.await.unwrap();
    }
}
