//! CronJobs: make a Job whenever their schedule is due, and delete the oldest ones that have ended.

pub mod timing;

use crate::config::Setup;
use crate::job::condition::{COMPLETE, FAILED, finished};
use crate::replicas::is_namespace_terminating;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::batch::schedule::time_zone;
use gantry_api::meta::object::Meta;
use gantry_api::{ObjectMeta, Time};
use gantry_client::{Api, DeleteParams, PostParams};
use gantry_reconcile::owner::{controller_of, controller_reference, is_controlled_by};
use gantry_reconcile::store::{key, key_of};
use gantry_reconcile::{
    Controller, Error, EventRecorder, Index, Informer, Outcome, Queue, reference, runner, wait_synced,
};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use timing::{Timing, job_name, stamp};

const WORKERS: usize = 5;
/// Annotation of a Job: the time it was made for.
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["batch"], &["cronjobs"], &["get", "list", "update", "watch"]),
    Rule::new(&["batch"], &["jobs"], &["create", "delete", "get", "list", "patch", "update", "watch"]),
    Rule::new(&["batch"], &["cronjobs/status"], &["update"]),
    Rule::new(&["batch"], &["cronjobs/finalizers"], &["update"]),
    Rule::new(&[""], &["pods"], &["delete", "list"]),
    EVENTS,
];

struct CronJobs {
    cron_jobs: Informer<CronJob>,
    jobs_by_owner: Index<Job>,
    setup: Setup,
    recorder: EventRecorder,
}

/// The index value of a Job: the key of the CronJob it names as its controller.
fn by_owner(job: &Job) -> Vec<String> {
    let owner = controller_of(&job.metadata).filter(|r| r.kind == "CronJob");
    owner.map(|r| vec![key(job.metadata.namespace(), &r.name)]).unwrap_or_default()
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let cron_jobs = setup.informers.get::<CronJob>();
    let jobs = setup.informers.get::<Job>();
    let jobs_by_owner = jobs.index("cronjob", by_owner);
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    cron_jobs.on_change(move |change| q.add(key_of(&**change.object())));
    let q = queue.clone();
    jobs.on_change(move |change| {
        for owner in change.old().into_iter().chain([change.object()]).flat_map(|j| by_owner(j)) {
            q.add(owner);
        }
    });
    if !wait_synced(&[&cron_jobs, &jobs], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("cronjob-controller"), setup.cancel.clone());
    let controller = Arc::new(CronJobs { cron_jobs, jobs_by_owner, setup, recorder });
    runner::run(controller, queue, WORKERS, cancel).await;
}

#[async_trait]
impl Controller for CronJobs {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(cached) = self.cron_jobs.store().by_key(key) else { return Ok(Outcome::done()) };
        let jobs: Vec<Arc<Job>> = self
            .jobs_by_owner
            .get(key)
            .into_iter()
            .filter(|j| is_controlled_by(&j.metadata, cached.metadata.uid()))
            .collect();
        let mut cron_job = (*cached).clone();
        self.clean_up(&mut cron_job, &jobs).await;
        let result = self.sync(&mut cron_job, &jobs).await;
        if cron_job.status != cached.status {
            let api = Api::<CronJob>::namespaced(self.setup.client.clone(), cached.metadata.namespace());
            match api.update_status(&PostParams::default(), &cron_job).await {
                Ok(_) => {}
                Err(e) if e.is("NotFound") => return Ok(Outcome::done()),
                Err(e) => return Err(Error::api(format!("update status of cronjob {key}"), e)),
            }
        }
        Ok(Outcome { requeue_after: result? })
    }
}

fn status(cron_job: &mut CronJob) -> &mut CronJobStatus {
    cron_job.status.get_or_insert_default()
}

fn is_listed(cron_job: &CronJob, job: &Job) -> bool {
    cron_job.status.iter().flat_map(|s| s.active.iter().flatten()).any(|a| a.uid == job.metadata.uid)
}

fn unlist(cron_job: &mut CronJob, uid: Option<&str>) {
    let status = status(cron_job);
    if let Some(active) = &mut status.active {
        active.retain(|a| a.uid.as_deref() != uid);
        if active.is_empty() {
            status.active = None;
        }
    }
}

/// The Jobs to delete so that no more than `keep` of these are left: those that began first.
#[must_use]
pub fn oldest(mut jobs: Vec<Arc<Job>>, keep: i32) -> Vec<Arc<Job>> {
    let began = |j: &Job| j.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(Timestamp::MAX, |t| t.0);
    jobs.sort_by_key(|j| (began(j), j.metadata.name().to_owned()));
    jobs.truncate(jobs.len().saturating_sub(usize::try_from(keep).unwrap_or(0)));
    jobs
}

impl CronJobs {
    fn jobs_api(&self, cron_job: &CronJob) -> Api<Job> {
        Api::namespaced(self.setup.client.clone(), cron_job.metadata.namespace())
    }

    /// Deletes Jobs that ended beyond those that history keeps.
    async fn clean_up(&self, cron_job: &mut CronJob, jobs: &[Arc<Job>]) {
        let spec = &cron_job.spec;
        let limits = [(COMPLETE, spec.successful_jobs_history_limit), (FAILED, spec.failed_jobs_history_limit)];
        for (end, limit) in limits {
            let Some(limit) = limit else { continue };
            let ended = jobs.iter().filter(|j| finished(j).is_some_and(|c| c.type_ == end)).cloned().collect();
            for job in oldest(ended, limit) {
                self.delete(cron_job, &job).await;
            }
        }
    }

    /// Deletes a Job. Whether that was taken up; an event tells where not.
    async fn delete(&self, cron_job: &mut CronJob, job: &Job) -> bool {
        let params = DeleteParams { propagation_policy: Some("Background".to_owned()), ..Default::default() };
        if let Err(e) = self.jobs_api(cron_job).delete(job.metadata.name(), &params).await {
            self.recorder.warning(cron_job, "FailedDelete", &format!("Deleted job: {e}"));
            return false;
        }
        unlist(cron_job, job.metadata.uid.as_deref());
        self.recorder.normal(cron_job, "SuccessfulDelete", &format!("Deleted job {}", job.metadata.name()));
        true
    }

    /// Brings the status up to date and makes the Job that is due. When to come back.
    async fn sync(&self, cron_job: &mut CronJob, jobs: &[Arc<Job>]) -> Result<Option<Duration>, Error> {
        self.observe(cron_job, jobs).await?;
        self.drop_missing(cron_job, jobs).await?;
        if cron_job.metadata.is_deleting() {
            return Ok(None);
        }
        if let Some(zone) = &cron_job.spec.time_zone
            && let Err(e) = time_zone(zone)
        {
            self.recorder.warning(cron_job, "UnknownTimeZone", &format!("invalid timeZone: {zone:?}: {e}"));
            return Ok(None);
        }
        if cron_job.spec.suspend == Some(true) {
            return Ok(None);
        }
        let schedule = cron_job.spec.schedule.clone();
        if schedule.contains("TZ") {
            let message = format!(
                "CRON_TZ or TZ used in schedule {schedule:?} is not officially supported, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
            );
            self.recorder.warning(cron_job, "UnsupportedSchedule", &message);
        }
        let timing = match Timing::of(cron_job) {
            Ok(timing) => timing,
            Err(e) => {
                let message = format!("unparseable schedule: {schedule:?} : {e}");
                self.recorder.warning(cron_job, "UnparseableSchedule", &message);
                return Ok(None);
            }
        };
        let now = self.setup.config.clock.now();
        let due = match timing.due(cron_job, now) {
            Ok(due) => due,
            Err(e) => {
                let message = format!("invalid schedule: {schedule} : {e}");
                self.recorder.warning(cron_job, "InvalidSchedule", &message);
                return Ok(None);
            }
        };
        if let Some((at, many)) = due {
            if many {
                let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check \
                               clock skew";
                self.recorder.warning(cron_job, "TooManyMissedTimes", message);
            }
            if self.is_timely(cron_job, at, now) && !self.start(cron_job, at).await? {
                return Ok(None);
            }
        }
        Ok(timing.wait(cron_job, now))
    }

    /// Enters which Jobs run and when the last one succeeded.
    async fn observe(&self, cron_job: &mut CronJob, jobs: &[Arc<Job>]) -> Result<(), Error> {
        for job in jobs {
            let listed = is_listed(cron_job, job);
            let name = job.metadata.name();
            let Some(end) = finished(job) else {
                if !listed {
                    self.unexpected(cron_job, job).await?;
                }
                continue;
            };
            if listed {
                unlist(cron_job, job.metadata.uid.as_deref());
                let message = format!("Saw completed job: {name}, condition: {}", end.type_);
                self.recorder.normal(cron_job, "SawCompletedJob", &message);
            }
            let completed = job.status.as_ref().and_then(|s| s.completion_time.clone());
            let status = status(cron_job);
            if end.type_ == COMPLETE
                && let Some(time) = completed
                && status.last_successful_time.as_ref().is_none_or(|last| last.0 < time.0)
            {
                status.last_successful_time = Some(time);
            }
        }
        Ok(())
    }

    /// A running Job that is not in the list: the cache lags, or it was made and writing that down failed, or somebody
    /// else made it.
    async fn unexpected(&self, cron_job: &mut CronJob, job: &Job) -> Result<(), Error> {
        let api = Api::<CronJob>::namespaced(self.setup.client.clone(), cron_job.metadata.namespace());
        let fresh = api
            .get(cron_job.metadata.name())
            .await
            .map_err(|e| Error::api(format!("get cronjob {}", cron_job.metadata.key()), e))?;
        if is_listed(&fresh, job) {
            *cron_job = fresh;
            return Ok(());
        }
        let message = format!("Saw a job that the controller did not create or forgot: {}", job.metadata.name());
        self.recorder.warning(cron_job, "UnexpectedJob", &message);
        Ok(())
    }

    /// Takes Jobs that no longer exist from the list of those that run.
    async fn drop_missing(&self, cron_job: &mut CronJob, jobs: &[Arc<Job>]) -> Result<(), Error> {
        let listed = cron_job.status.iter().flat_map(|s| s.active.clone().unwrap_or_default());
        for active in listed.collect::<Vec<_>>() {
            if jobs.iter().any(|j| j.metadata.uid == active.uid) {
                continue;
            }
            // The cache may not have it yet.
            let name = active.name.as_deref().unwrap_or_default();
            let found = self.jobs_api(cron_job).get_opt(name).await;
            if found.map_err(|e| Error::api(format!("get job {name}"), e))?.is_none() {
                self.recorder.normal(cron_job, "MissingJob", &format!("Active job went missing: {name}"));
                unlist(cron_job, active.uid.as_deref());
            }
        }
        Ok(())
    }

    /// Whether the Job for a time is to be made: it is not too late, was not made already, and may run beside others.
    fn is_timely(&self, cron_job: &CronJob, at: Timestamp, now: Timestamp) -> bool {
        let late = cron_job
            .spec
            .starting_deadline_seconds
            .and_then(|s| at.checked_add(SignedDuration::from_secs(s)).ok())
            .is_some_and(|deadline| deadline < now);
        if late {
            let time = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
            let message = format!("Missed scheduled time to start a job: {time}");
            self.recorder.warning(cron_job, "MissSchedule", &message);
            return false;
        }
        let name = job_name(cron_job, at);
        let status = cron_job.status.clone().unwrap_or_default();
        let active = status.active.unwrap_or_default();
        let known = active.iter().any(|a| a.name.as_deref() == Some(&name));
        if known || status.last_schedule_time.is_some_and(|t| t.0 == at) {
            return false;
        }
        if cron_job.spec.concurrency_policy.as_deref() == Some("Forbid") && !active.is_empty() {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            self.recorder.normal(cron_job, "JobAlreadyActive", message);
            return false;
        }
        true
    }

    /// Whether the Job for a time has been made, as the server knows. A cache that is behind may show it no more, and not
    /// yet that it was.
    async fn was_started(&self, cron_job: &CronJob, at: Timestamp) -> Result<bool, Error> {
        let api = Api::<CronJob>::namespaced(self.setup.client.clone(), cron_job.metadata.namespace());
        match api.get(cron_job.metadata.name()).await {
            Ok(fresh) => Ok(fresh.status.and_then(|s| s.last_schedule_time).is_some_and(|last| last.0 >= at)),
            Err(e) if e.is("NotFound") => Ok(true),
            Err(e) => Err(Error::api(format!("get cronjob {}", cron_job.metadata.key()), e)),
        }
    }

    /// Makes the Job for a time, in place of those that run where the policy says so. Whether it is in the list now; it
    /// is not where somebody else made one of its name.
    async fn start(&self, cron_job: &mut CronJob, at: Timestamp) -> Result<bool, Error> {
        if self.was_started(cron_job, at).await? {
            return Ok(false);
        }
        let api = self.jobs_api(cron_job);
        if cron_job.spec.concurrency_policy.as_deref() == Some("Replace") {
            let active = cron_job.status.as_ref().and_then(|s| s.active.clone()).unwrap_or_default();
            for name in active.into_iter().filter_map(|a| a.name) {
                let job = match api.get(&name).await {
                    Ok(job) => job,
                    Err(e) => {
                        self.recorder.warning(cron_job, "FailedGet", &format!("Get job: {e}"));
                        return Err(Error::api(format!("get job {name}"), e));
                    }
                };
                if !self.delete(cron_job, &job).await {
                    return Err(Error::Other(format!("could not replace job {}", job.metadata.key())));
                }
            }
        }
        let wanted = new_job(cron_job, at).map_err(Error::Other)?;
        let made = match api.create(&PostParams::default(), &wanted).await {
            Ok(job) => {
                let message = format!("Created job {}", job.metadata.name());
                self.recorder.normal(cron_job, "SuccessfulCreate", &message);
                if let Some(created) = &job.metadata.creation_timestamp {
                    self.setup.config.measured.cron_job_started(created.0.duration_since(at).as_secs_f64());
                }
                job
            }
            Err(e) if e.is("AlreadyExists") => {
                let name = wanted.metadata.name();
                let job = api.get(name).await.map_err(|e| Error::api(format!("get job {name}"), e))?;
                // Ours where it was made and then writing that down failed.
                if !is_controlled_by(&job.metadata, cron_job.metadata.uid()) || is_listed(cron_job, &job) {
                    return Ok(false);
                }
                job
            }
            Err(e) => {
                if !is_namespace_terminating(&e) {
                    self.recorder.warning(cron_job, "FailedCreate", &format!("Error creating job: {e}"));
                }
                return Err(Error::api(format!("create job {}", wanted.metadata.key()), e));
            }
        };
        let status = status(cron_job);
        status.active.get_or_insert_default().push(reference(&made));
        status.last_schedule_time = Some(Time(at));
        Ok(true)
    }
}

/// The Job for a time.
///
/// # Errors
/// Where the time zone is not known.
pub fn new_job(cron_job: &CronJob, at: Timestamp) -> Result<Job, String> {
    let template = &cron_job.spec.job_template;
    let meta = template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.to_owned(), stamp(cron_job, at)?);
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron_job, at)),
            namespace: cron_job.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron_job)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn history_keeps_the_latest() {
        let job = |name: &str, start: Option<i64>| {
            let start = start.map(|s| Timestamp::from_second(s).unwrap());
            let value = json!({"metadata": {"name": name}, "status": {"startTime": start}});
            Arc::new(serde_json::from_value::<Job>(value).unwrap())
        };
        let all = vec![job("never", None), job("b", Some(5)), job("a", Some(5)), job("late", Some(9))];
        let names =
            |keep| -> Vec<String> { oldest(all.clone(), keep).iter().map(|j| j.metadata.name().to_owned()).collect() };
        assert_eq!(names(2), ["a", "b"]);
        assert_eq!(names(0), ["a", "b", "late", "never"]);
        assert!(names(9).is_empty());
    }

    #[test]
    fn a_job_is_made_as_its_template_says() {
        let c: CronJob = serde_json::from_value(json!({
            "metadata": {"name": "tick", "namespace": "n", "uid": "u"},
            "spec": {"schedule": "* * * * *", "timeZone": "Asia/Kolkata", "jobTemplate": {
                "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
                "spec": {"template": {}, "backoffLimit": 2}}},
        }))
        .unwrap();
        let job = new_job(&c, Timestamp::from_second(1_800_000_000).unwrap()).unwrap();
        let value = serde_json::to_value(&job).unwrap();
        assert_eq!(value["metadata"]["name"], "tick-30000000");
        assert_eq!(value["metadata"]["labels"], json!({"a": "b"}));
        let annotations = json!({"c": "d", SCHEDULED_AT: "2027-01-15T13:30:00+05:30"});
        assert_eq!(value["metadata"]["annotations"], annotations);
        assert_eq!(value["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(value["spec"]["backoffLimit"], 2);
    }
}
