//! Deletes Jobs some time after they have ended (`spec.ttlSecondsAfterFinished`).

use crate::config::Setup;
use crate::job::condition::finished;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Controller, Error, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;

/// What the controller may do.
pub const RULES: &[Rule] = &[Rule::new(&["batch"], &["jobs"], &["delete", "get", "list", "watch"]), EVENTS];

struct TtlAfterFinished {
    jobs: Informer<Job>,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let jobs = setup.informers.get::<Job>();
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    let clock = setup.config.clock;
    jobs.on_change(move |change| {
        let job = change.object();
        if !matches!(change, Change::Deleted(_)) && left(job, clock.now()).is_some() {
            q.add(key_of(&**job));
        }
    });
    if !wait_synced(&[&jobs], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(TtlAfterFinished { jobs, setup }), queue, WORKERS, cancel).await;
}

/// How long a Job has yet; None where it stays, or goes already.
#[must_use]
pub fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let end = finished(job).filter(|_| !job.metadata.is_deleting())?.last_transition_time.as_ref()?;
    Some(pod_state::time_left(end.0, i64::from(ttl), now))
}

#[async_trait]
impl Controller for TtlAfterFinished {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let now = self.setup.config.clock.now();
        let Some(job) = self.jobs.store().by_key(key) else { return Ok(Outcome::done()) };
        match left(&job, now) {
            None => return Ok(Outcome::done()),
            Some(wait) if !wait.is_zero() => return Ok(Outcome::after(wait)),
            Some(_) => {}
        }
        // The time may have been prolonged meanwhile: the server's word counts.
        let api = Api::<Job>::namespaced(self.setup.client.clone(), job.metadata.namespace());
        let fresh = api.get_opt(job.metadata.name()).await.map_err(|e| Error::api(format!("get job {key}"), e))?;
        let Some(fresh) = fresh else { return Ok(Outcome::done()) };
        match left(&fresh, now) {
            None => return Ok(Outcome::done()),
            Some(wait) if !wait.is_zero() => return Ok(Outcome::after(wait)),
            Some(_) => {}
        }
        let params = DeleteParams {
            propagation_policy: Some("Foreground".to_owned()),
            precondition_uid: fresh.metadata.uid.clone(),
            ..Default::default()
        };
        match api.delete(fresh.metadata.name(), &params).await {
            Ok(_) => {
                let ttl = fresh.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished).unwrap_or(0);
                if let Some(end) = finished(&fresh).and_then(|c| c.last_transition_time.as_ref()) {
                    let since = self.setup.config.clock.now().duration_since(end.0).as_secs_f64();
                    self.setup.config.measured.job_expired(since - f64::from(ttl));
                }
                Ok(Outcome::done())
            }
            Err(e) if e.is("NotFound") => Ok(Outcome::done()),
            Err(e) => Err(Error::api(format!("delete job {key}"), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn only_jobs_that_ended_and_have_a_ttl_go() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let told = |ttl: Option<i32>, kind: &str, meta: Value| {
            let conditions = json!([{"type": kind, "status": "True", "lastTransitionTime": at(100)}]);
            let value = json!({"metadata": meta, "spec": {"template": {}, "ttlSecondsAfterFinished": ttl},
                "status": {"conditions": conditions}});
            left(&serde_json::from_value(value).unwrap(), at(103))
        };
        assert_eq!(told(Some(10), "Complete", json!({})), Some(Duration::from_secs(7)));
        assert_eq!(told(Some(0), "Failed", json!({})), Some(Duration::ZERO));
        assert_eq!(told(None, "Complete", json!({})), None);
        assert_eq!(told(Some(0), "Suspended", json!({})), None);
        assert_eq!(told(Some(0), "Complete", json!({"deletionTimestamp": at(101)})), None);
    }
}
