//! Jobs: pods that run until so many of them have succeeded.
//!
//! A pod that ends must be counted once, whatever is restarted or deleted meanwhile (KEP-2307). A finalizer holds every
//! pod until [`track`] has counted it; [`survey`] reads the pods, [`plan`] decides which to make or delete, and this
//! module does what they say.

pub mod backoff;
pub mod condition;
pub mod indexed;
pub mod intervals;
mod orphan;
pub mod plan;
mod pods;
pub mod policy;
pub mod survey;
pub mod track;
mod watch;

use crate::claiming::ensure_alive_after_loss;
use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use backoff::Record;
use condition::{COMPLETE, SUCCESS_CRITERIA_MET, condition};
use gantry_api::batch::job::is_ours;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, PostParams};
use gantry_reconcile::{
    Controller, Error, EventRecorder, Expectations, Index, Informer, Outcome, Queue, runner, wait_synced,
};
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use plan::Work;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use survey::Survey;
use tokio::time::Instant;
use track::Tracking;

/// Holds a Job's pod until it is counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";

const WORKERS: usize = 5;
/// Back-off of Jobs that cannot be reconciled: from, to.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// What is counted of a Job whose pods are not managed this time.
const RECONCILING: &str = "reconciling";
/// Changes of pods are gathered for this long.
const GATHER: Duration = Duration::from_secs(1);

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["batch"], &["jobs"], &["get", "list", "patch", "update", "watch"]),
    Rule::new(&["batch"], &["jobs/status"], &["update"]),
    Rule::new(&["batch"], &["jobs/finalizers"], &["update"]),
    Rule::new(&[""], &["pods"], &["create", "delete", "list", "patch", "watch"]),
    EVENTS,
];

/// Whether the Job's pods have completion indexes.
#[must_use]
pub fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether the Job shall have no pods for now.
#[must_use]
pub fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

/// Pods whose finalizer was removed while the cache still shows it, by Job.
#[derive(Debug, Default)]
struct Removals(Mutex<BTreeMap<String, BTreeSet<String>>>);

impl Removals {
    fn expect(&self, key: &str, uid: &str) {
        self.0.lock().entry(key.to_owned()).or_default().insert(uid.to_owned());
    }

    fn observed(&self, key: &str, uid: &str) {
        let mut all = self.0.lock();
        if let Some(uids) = all.get_mut(key) {
            uids.remove(uid);
            if uids.is_empty() {
                all.remove(key);
            }
        }
    }

    fn of(&self, key: &str) -> BTreeSet<String> {
        self.0.lock().get(key).cloned().unwrap_or_default()
    }

    fn forget(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

/// Versions of our own last writes, by Job. A cached Job that is older lacks what we have counted, and whoever acts on it
/// makes pods for what is done already.
#[derive(Debug, Default)]
struct Written(Mutex<BTreeMap<String, u64>>);

impl Written {
    fn note(&self, job: &Job) {
        if let Some(version) = version(job) {
            self.0.lock().insert(job.metadata.key(), version);
        }
    }

    /// Whether a cached Job is older than our last write of it.
    fn is_newer_than(&self, cached: &Job) -> bool {
        let written = self.0.lock().get(&cached.metadata.key()).copied();
        written.zip(version(cached)).is_some_and(|(ours, cached)| cached < ours)
    }

    fn forget(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

fn version(job: &Job) -> Option<u64> {
    job.metadata.resource_version.as_deref()?.parse().ok()
}

struct Jobs {
    jobs: Informer<Job>,
    pods_by_controller: Index<Pod>,
    expectations: Arc<Expectations>,
    removals: Arc<Removals>,
    written: Written,
    /// Failures since the last success, by Job.
    records: Mutex<BTreeMap<String, Record>>,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let jobs = setup.informers.get::<Job>();
    let pods = setup.informers.get::<Pod>();
    let pods_by_controller = pods.index("controller", pod_state::by_controller);
    let queue = Queue::with_backoff(setup.name, RETRY.0, RETRY.1);
    let orphans = Queue::with_backoff("job-orphan-pods", RETRY.0, RETRY.1);
    let (expectations, removals) = (Arc::new(Expectations::default()), Arc::new(Removals::default()));
    let watch = watch::Watch {
        jobs: jobs.store().clone(),
        pods_by_controller: pods_by_controller.clone(),
        queue: queue.clone(),
        orphans: orphans.clone(),
        expectations: expectations.clone(),
        removals: removals.clone(),
    };
    watch::register(Arc::new(watch), &jobs, &pods);
    if !wait_synced(&[&jobs, &pods], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("job-controller"), setup.cancel.clone());
    let orphaned = Arc::new(orphan::Orphans { jobs: jobs.store().clone(), pods, setup: setup.clone() });
    let records = Mutex::default();
    let written = Written::default();
    let controller =
        Arc::new(Jobs { jobs, pods_by_controller, expectations, removals, written, records, setup, recorder });
    tokio::join!(
        runner::run(controller, queue, WORKERS, cancel.clone()),
        runner::run(orphaned, orphans, 1, cancel.clone())
    );
}

#[async_trait]
impl Controller for Jobs {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(cached) = self.jobs.store().by_key(key) else {
            self.expectations.forget(key);
            self.removals.forget(key);
            self.written.forget(key);
            self.records.lock().remove(key);
            return Ok(Outcome::done());
        };
        if !is_ours(&cached) {
            return Ok(Outcome::done());
        }
        if condition::finished(&cached).is_some() {
            self.records.lock().remove(key);
            self.removals.forget(key);
            return Ok(Outcome::done());
        }
        if self.written.is_newer_than(&cached) {
            // The watch that shows what we wrote brings the Job here again.
            return Ok(Outcome::done());
        }
        let Some(spec) = &cached.spec else { return Ok(Outcome::done()) };
        if !matches!(spec.completion_mode.as_deref(), None | Some("NonIndexed" | "Indexed")) {
            let message = "Skipped Job sync because completion mode is unknown";
            self.recorder.warning(&*cached, "UnknownCompletionMode", message);
            return Ok(Outcome::done());
        }
        let began = Instant::now();
        let mut action = RECONCILING;
        let outcome = self.sync(key, &cached, spec, &mut action).await;
        self.setup.config.measured.job_synced(is_indexed(spec), outcome.is_ok(), action, began.elapsed());
        outcome
    }
}

impl Jobs {
    /// Does what a Job asks for; `action` is what that was.
    async fn sync(&self, key: &str, cached: &Job, spec: &JobSpec, action: &mut &'static str) -> Result<Outcome, Error> {
        let satisfied = self.expectations.satisfied(key);
        // Read before the pods: one that the cache has meanwhile seen released is no longer tracked there either.
        let leaving = self.removals.of(key);
        let pods = self.claim(cached, spec).await?;
        let mut job = cached.clone();
        let before = job.status.clone().unwrap_or_default();
        let (now, time) = (self.setup.config.clock.now(), self.setup.config.clock.time());
        let status = job.status.get_or_insert_default();
        status.uncounted_terminated_pods.get_or_insert_default();
        if status.start_time.is_none() && !is_suspended(spec) {
            status.start_time = Some(time.clone());
        }
        let record = self.records.lock().get(key).copied().unwrap_or_default();
        let survey = survey::survey(&job, pods, leaving, record, now);
        let mut turn = Turn { key, spec, job, survey, satisfied, again: None };
        turn.again = turn.survey.deadline;
        let managed = self.manage(&mut turn).await;
        *action = managed.action;
        let (active, ready, terminating) = managed.counts;
        let status = turn.job.status.get_or_insert_default();
        status.active = (active != 0).then_some(active);
        status.ready = Some(ready);
        status.terminating = Some(terminating);
        let changed = managed.changed
            || (&status.active, status.ready, status.terminating) != (&before.active, before.ready, before.terminating);
        let tracking = track::track(&mut turn.job, &turn.survey, &time);
        let counted = (before.succeeded, before.failed);
        self.settle(key, turn.job, &turn.survey, tracking, (counted, changed)).await?;
        managed.result?;
        Ok(Outcome { requeue_after: turn.again.into_iter().chain(self.expectations.left(key)).min() })
    }
}

/// One look at a Job.
struct Turn<'a> {
    key: &'a str,
    spec: &'a JobSpec,
    job: Job,
    survey: Survey,
    /// Whether the cache shows all pods that were made and deleted.
    satisfied: bool,
    again: Option<Duration>,
}

/// What became of a Job's pods.
struct Managed {
    /// Active, ready and terminating pods now.
    counts: (i32, i32, i32),
    /// Whether the status must be written.
    changed: bool,
    /// What is counted of it.
    action: &'static str,
    result: Result<(), Error>,
}

impl Jobs {
    /// Makes and deletes pods, and decides whether the Job is complete.
    async fn manage(&self, turn: &mut Turn<'_>) -> Managed {
        let s = &turn.survey;
        let mut m = Managed {
            counts: (i32::try_from(s.active.len()).unwrap_or(i32::MAX), s.ready, s.terminating),
            changed: false,
            action: RECONCILING,
            result: Ok(()),
        };
        if s.finish.is_some() {
            let all = s.active.clone();
            let gone = self.delete_to_end(&turn.job, &all).await;
            if gone.count != all.len() || !turn.satisfied {
                // What is left, or not in the cache yet, may still hold the end up.
                turn.survey.finish = None;
            }
            m.take(gone);
            return m;
        }
        let manages = turn.satisfied && !turn.job.metadata.is_deleting();
        if manages {
            m.action = "tracking";
            match plan::plan(turn.spec, s, self.setup.config.clock.now()) {
                Work::None => {}
                Work::Wait(delay) => {
                    let delay = delay.max(GATHER);
                    turn.again = Some(turn.again.map_or(delay, |a| a.min(delay)));
                }
                Work::Delete(pods) => {
                    m.action = "pods_deleted";
                    m.take(self.delete_surplus(turn.key, &turn.job, &pods).await);
                }
                Work::Create(indexes) => {
                    m.action = "pods_created";
                    // The finalizer keeps in sight whatever went, until it is counted.
                    let fewer = s.pods.iter().any(|p| p.metadata.is_deleting());
                    let alive = ensure_alive_after_loss(&self.setup.client, &turn.job, &self.expectations, fewer);
                    m.result = alive.await;
                    if m.result.is_ok() {
                        let (made, result) = self.create(turn.key, &turn.job, turn.spec, s, &indexes).await;
                        m.counts.0 += i32::try_from(made).unwrap_or(i32::MAX);
                        m.result = result;
                    }
                }
            }
        }
        let enough = turn.spec.completions.map_or(s.succeeded > 0, |n| s.succeeded >= n);
        let time = self.setup.config.clock.time();
        if enough && m.counts.0 == 0 {
            let message = "Reached expected number of succeeded pods";
            turn.survey.finish = Some(condition(SUCCESS_CRITERIA_MET, true, "CompletionsReached", message, &time));
        } else if manages {
            m.changed = self.suspension(&mut turn.job, turn.spec);
        }
        m
    }

    /// Tells whether the Job is suspended. Whether the status changed.
    fn suspension(&self, job: &mut Job, spec: &JobSpec) -> bool {
        let now = self.setup.config.clock.time();
        let suspended = is_suspended(spec);
        let (reason, event, message) = if suspended {
            ("JobSuspended", "Suspended", "Job suspended")
        } else {
            ("JobResumed", "Resumed", "Job resumed")
        };
        let status = job.status.get_or_insert_default();
        let mut changed = condition::set(status, condition("Suspended", suspended, reason, message, &now));
        let told = changed;
        if suspended {
            // The active deadline begins anew with each resumption, and until then the template may be changed.
            changed |= status.start_time.take().is_some();
        } else if changed {
            status.start_time = Some(now);
        }
        if told {
            self.recorder.normal(job, event, message);
        }
        changed
    }

    /// Counts pods that have ended: writes the status, lets the pods go, writes the counters, and ends the Job where
    /// that is all.
    async fn settle(
        &self,
        key: &str,
        mut job: Job,
        survey: &Survey,
        mut t: Tracking,
        (mut counted, changed): ((Option<i32>, Option<i32>), bool),
    ) -> Result<(), Error> {
        let measured = &self.setup.config.measured;
        let indexed = job.spec.as_ref().is_some_and(is_indexed);
        let mut count = |job: &Job| {
            let status = job.status.clone().unwrap_or_default();
            let more = |now: Option<i32>, before: Option<i32>| now.unwrap_or(0) - before.unwrap_or(0);
            let (succeeded, failed) = (more(status.succeeded, counted.0), more(status.failed, counted.1));
            measured.job_pods_finished(indexed, succeeded, failed);
            counted = (status.succeeded, status.failed);
        };
        if t.changed || changed {
            job = self.write(&job).await?;
            count(&job);
            self.records.lock().insert(key.to_owned(), survey.record);
        }
        let (released, failure) = self.release(key, &t.release).await;
        t.held.retain(|uid| !released.contains(uid));
        let status = job.status.get_or_insert_default();
        let settled = track::settle(status, &t.held);
        if let Err(e) = failure {
            if settled {
                count(&self.write(&job).await?);
            }
            return Err(e);
        }
        let ended = !t.full && track::end(status, t.finish.as_ref());
        if settled || ended {
            job = self.write(&job).await?;
            count(&job);
        }
        if let Some(finish) = t.finish.filter(|_| ended) {
            measured.job_finished(indexed, finish.type_ == COMPLETE, finish.reason.as_deref().unwrap_or_default());
            if finish.type_ == COMPLETE {
                let succeeded = job.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
                if job.spec.as_ref().and_then(|s| s.completions).is_some_and(|n| succeeded > n) {
                    let message = "Too many succeeded pods running after completion count reached";
                    self.recorder.warning(&job, "TooManySucceededPods", message);
                }
                self.recorder.normal(&job, "Completed", "Job completed");
            } else {
                let text = |s: &Option<String>| s.clone().unwrap_or_default();
                self.recorder.warning(&job, &text(&finish.reason), &text(&finish.message));
            }
        }
        Ok(())
    }

    async fn write(&self, job: &Job) -> Result<Job, Error> {
        let api = Api::<Job>::namespaced(self.setup.client.clone(), job.metadata.namespace());
        let mut written = api
            .update_status(&PostParams::default(), job)
            .await
            .map_err(|e| Error::api(format!("update status of job {}", job.metadata.key()), e))?;
        self.written.note(&written);
        written.status.get_or_insert_with(JobStatus::default).uncounted_terminated_pods.get_or_insert_default();
        Ok(written)
    }
}

impl Managed {
    fn take(&mut self, gone: pods::Gone) {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        self.counts.0 -= number(gone.count);
        self.counts.1 -= number(gone.ready);
        self.counts.2 += number(gone.count);
        self.result = gone.result;
    }
}

#[cfg(test)]
mod tests;
