//! Removes PodCertificateRequests some time after they were made: by then they are answered, or nobody waits any more.

use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Controller, Error, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// Seconds a request is kept.
const KEPT: i64 = 15 * 60;

/// What the controller may do.
pub const RULES: &[Rule] =
    &[Rule::new(&["certificates.k8s.io"], &["podcertificaterequests"], &["delete", "get", "list", "watch"]), EVENTS];

struct Cleaner {
    requests: Informer<PodCertificateRequest>,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let requests = setup.informers.get::<PodCertificateRequest>();
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    requests.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            q.add(key_of(&**change.object()));
        }
    });
    if !wait_synced(&[&requests], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(Cleaner { requests, setup }), queue, 1, cancel).await;
}

/// How long a request is kept yet.
#[must_use]
pub fn left(request: &PodCertificateRequest, now: Timestamp) -> Duration {
    let made = request.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    pod_state::time_left(made, KEPT, now)
}

#[async_trait]
impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(request) = self.requests.store().by_key(key) else { return Ok(Outcome::done()) };
        let left = left(&request, self.setup.config.clock.now());
        if !left.is_zero() {
            return Ok(Outcome::after(left));
        }
        let api = Api::<PodCertificateRequest>::namespaced(self.setup.client.clone(), request.metadata.namespace());
        let params = DeleteParams { precondition_uid: request.metadata.uid.clone(), ..Default::default() };
        match api.delete(request.metadata.name(), &params).await {
            Ok(_) => Ok(Outcome::done()),
            Err(e) if e.is("NotFound") => Ok(Outcome::done()),
            Err(e) => Err(Error::api(format!("delete pod certificate request {key}"), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_quarter_of_an_hour() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let made = PodCertificateRequest {
            metadata: serde_json::from_value(json!({"creationTimestamp": at(1000)})).unwrap(),
            ..Default::default()
        };
        assert_eq!(left(&made, at(1000)), Duration::from_secs(900));
        assert_eq!(left(&made, at(1899)), Duration::from_secs(1));
        assert_eq!(left(&made, at(1901)), Duration::ZERO);
    }
}
