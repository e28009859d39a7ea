//! Flow control: a bound on requests in flight, separately for reads and writes, with a short fair queue before refusal.
//!
//! In-process components are not bounded here: they bound themselves, and refusing them would stall the cluster's repair.

use crate::request::RequestInfo;
use gantry_api::meta::status::ApiError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Upstream's `--max-requests-inflight`.
const READS_MAX: usize = 400;
/// Upstream's `--max-mutating-requests-inflight`.
const WRITES_MAX: usize = 200;
/// How long a request may wait for its turn; the semaphore is first come, first served.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// What a client that found no room is asked to wait.
const RETRY_AFTER_SECONDS: i32 = 1;

/// The two pools.
pub struct Flow {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    wait: Duration,
}

impl Default for Flow {
    fn default() -> Self {
        Self::new(READS_MAX, WRITES_MAX, QUEUE_WAIT)
    }
}

/// Whether a request may last as long as its client likes.
#[must_use]
pub fn is_long_running(info: &RequestInfo) -> bool {
    const LONG: &[&str] = &["attach", "exec", "proxy", "log", "portforward"];
    info.verb == "watch" || info.verb == "proxy" || (info.is_resource && LONG.contains(&info.subresource.as_str()))
}

/// Whether a request only reads.
#[must_use]
pub fn is_read_only(info: &RequestInfo) -> bool {
    matches!(info.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
}

impl Flow {
    /// Room for so many reads and writes at a time, and how long to wait for it.
    #[must_use]
    pub fn new(reads: usize, writes: usize, wait: Duration) -> Self {
        Self { reads: Arc::new(Semaphore::new(reads)), writes: Arc::new(Semaphore::new(writes)), wait }
    }

    /// Waits for a place; None where the request needs none.
    ///
    /// # Errors
    /// 429 where no place became free in time.
    pub async fn admit(&self, info: &RequestInfo) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        // Health checks must answer under any load.
        if is_long_running(info)
            || (!info.is_resource
                && (info.path.starts_with("/livez")
                    || info.path.starts_with("/readyz")
                    || info.path.starts_with("/healthz")))
        {
            return Ok(None);
        }
        let pool = if is_read_only(info) { &self.reads } else { &self.writes };
        if let Ok(permit) = pool.clone().try_acquire_owned() {
            return Ok(Some(permit));
        }
        match tokio::time::timeout(self.wait, pool.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            _ => Err(ApiError::too_many_requests("Too many requests, please try again later.", RETRY_AFTER_SECONDS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(verb: &str, subresource: &str) -> RequestInfo {
        RequestInfo { is_resource: true, verb: verb.into(), subresource: subresource.into(), ..Default::default() }
    }

    #[tokio::test]
    async fn the_full_pool_refuses_and_others_do_not_notice() {
        let flow = Flow::new(1, 1, Duration::ZERO);
        let held = flow.admit(&info("create", "")).await.unwrap();
        assert!(held.is_some());
        let refused = flow.admit(&info("update", "")).await.unwrap_err();
        assert_eq!((refused.code, refused.details.unwrap().retry_after_seconds), (429, Some(1)));
        assert!(flow.admit(&info("list", "")).await.unwrap().is_some(), "reads have room of their own");
        assert!(flow.admit(&info("watch", "")).await.unwrap().is_none(), "watches take none");
        assert!(flow.admit(&info("create", "exec")).await.unwrap().is_none());
        drop(held);
        assert!(flow.admit(&info("update", "")).await.unwrap().is_some());
    }
}
