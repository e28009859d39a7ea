//! What a Job's pods say about it: how many have ended and how, and whether it is to end.

use super::backoff::{Record, finished_at};
use super::condition::{self, FAILED, FAILURE_TARGET, SUCCESS_CRITERIA_MET, condition, holds};
use super::indexed::{all_failures_before, failures_before, index, indexes};
use super::intervals::Intervals;
use super::policy::{Verdict, judge, success};
use super::{FINALIZER, is_indexed, is_suspended};
use crate::pod_state;
use gantry_api::Time;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A Job and its pods at one moment.
#[derive(Clone, Debug)]
pub struct Survey {
    /// All its pods; those of an indexed Job in the order of their indexes.
    pub pods: Vec<Arc<Pod>>,
    /// Those that neither have ended nor are being deleted.
    pub active: Vec<Arc<Pod>>,
    /// Uids of pods whose finalizer was removed, though the cache does not show it yet.
    pub leaving: BTreeSet<String>,
    /// Active pods that are ready.
    pub ready: i32,
    /// Pods that are being deleted and have not ended.
    pub terminating: i32,
    /// Pods (or indexes) that succeeded, also those the status does not count yet.
    pub succeeded: i32,
    /// Pods that failed and count, also those the status does not count yet.
    pub failed: i32,
    /// Indexes that the status has as succeeded.
    pub known_indexes: Intervals,
    /// Indexes that succeeded.
    pub succeeded_indexes: Intervals,
    /// Indexes that failed, where each index has a back-off limit.
    pub failed_indexes: Option<Intervals>,
    /// The failed pod of each index that waits for its replacement, where each index has a back-off limit: its
    /// annotations carry the count of failures.
    pub replaced: BTreeMap<i32, Arc<Pod>>,
    /// Failures since the last success.
    pub record: Record,
    /// By which condition the Job is to end.
    pub finish: Option<JobCondition>,
    /// When its active deadline passes.
    pub deadline: Option<Duration>,
}

/// Whether the finalizer holds the pod, so that it is not counted yet.
#[must_use]
pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

/// Whether a pod is replaced only when it has ended, and not already when it is being deleted.
#[must_use]
pub fn replaces_only_ended(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Whether the pod counts as failed.
#[must_use]
pub fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    match pod_state::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        // A pod whose node is lost never gets to say that it failed.
        _ => !replaces_only_ended(spec) && pod.metadata.deletion_timestamp.is_some(),
    }
}

/// The pod's index, where it has one that the Job has.
#[must_use]
pub fn valid_index(pod: &Pod, spec: &JobSpec) -> Option<i32> {
    index(pod).filter(|i| *i < spec.completions.unwrap_or(0))
}

/// Looks at a Job. `leaving` are uids of pods that are counted already, `record` its failures so far. The status has
/// its start time where the Job is not suspended.
#[must_use]
pub fn survey(job: &Job, mut pods: Vec<Arc<Pod>>, leaving: BTreeSet<String>, record: Record, now: Timestamp) -> Survey {
    let (spec, status) = (job.spec.clone().unwrap_or_default(), job.status.clone().unwrap_or_default());
    let indexed = is_indexed(&spec);
    pods.sort_by_key(|p| (indexed.then(|| index(p)), p.metadata.creation_timestamp.clone(), p.metadata.key()));
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let (known_good, known_bad) = (uncounted.succeeded.unwrap_or_default(), uncounted.failed.unwrap_or_default());
    let is_new = |p: &Arc<Pod>, known: &[String]| {
        let uid = p.metadata.uid();
        let valid = !indexed || valid_index(p, &spec).is_some();
        valid && is_tracked(p) && !leaving.contains(uid) && !known.iter().any(|k| k == uid)
    };
    let good: Vec<Arc<Pod>> =
        pods.iter().filter(|p| pod_state::phase(p) == "Succeeded" && is_new(p, &known_good)).cloned().collect();
    let bad: Vec<Arc<Pod>> = pods.iter().filter(|p| is_failed(p, &spec) && is_new(p, &known_bad)).cloned().collect();
    let counting = bad.iter().filter(|p| judge(spec.pod_failure_policy.as_ref(), p).counts()).count();
    let active: Vec<Arc<Pod>> = pods.iter().filter(|p| pod_state::is_active(p)).cloned().collect();
    let mut s = Survey {
        ready: count(active.iter().filter(|p| pod_state::is_ready(p)).count()),
        terminating: count(pods.iter().filter(|p| pod_state::is_terminating(p)).count()),
        succeeded: status.succeeded.unwrap_or(0) + count(good.len() + known_good.len()),
        failed: status.failed.unwrap_or(0) + count(counting + known_bad.len()),
        known_indexes: Intervals::default(),
        succeeded_indexes: Intervals::default(),
        failed_indexes: None,
        replaced: BTreeMap::new(),
        record: record.after(&good, &bad),
        finish: None,
        deadline: None,
        pods,
        active,
        leaving,
    };
    let time = condition::whole_seconds(now);
    s.finish = holds(&status, SUCCESS_CRITERIA_MET).cloned().or_else(|| failure(&spec, &status, &s.pods, &time));
    if s.finish.is_none() {
        s.limits(&spec, &status, now, &time);
    }
    if indexed {
        s.indexes(&spec, &status, &time);
    }
    s
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// The failure that was decided before, or that a pod brings about by the failure policy.
fn failure(spec: &JobSpec, status: &JobStatus, pods: &[Arc<Pod>], now: &Time) -> Option<JobCondition> {
    if let Some(target) = holds(status, FAILURE_TARGET) {
        return Some(failed_like(target, now));
    }
    let policy = spec.pod_failure_policy.as_ref()?;
    pods.iter().filter(|p| is_failed(p, spec)).find_map(|p| match judge(Some(policy), p) {
        Verdict::FailJob(message) => Some(condition(FAILURE_TARGET, true, "PodFailurePolicy", &message, now)),
        _ => None,
    })
}

/// The final condition to a failure's interim one.
#[must_use]
pub fn failed_like(target: &JobCondition, now: &Time) -> JobCondition {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    condition(FAILED, true, &text(&target.reason), &text(&target.message), now)
}

impl Survey {
    fn limits(&mut self, spec: &JobSpec, status: &JobStatus, now: Timestamp, time: &Time) {
        let limit = spec.backoff_limit.unwrap_or(i32::MAX);
        if self.failed > limit || restarted_too_often(spec, &self.pods, limit) {
            let message = "Job has reached the specified backoff limit";
            self.finish = Some(condition(FAILURE_TARGET, true, "BackoffLimitExceeded", message, time));
            return;
        }
        let (Some(seconds), Some(start)) = (spec.active_deadline_seconds, &status.start_time) else { return };
        if is_suspended(spec) {
            return;
        }
        let left = pod_state::time_left(start.0, seconds, now);
        if left.is_zero() {
            let message = "Job was active longer than specified deadline";
            self.finish = Some(condition(FAILURE_TARGET, true, "DeadlineExceeded", message, time));
        } else {
            self.deadline = Some(left);
        }
    }

    fn indexes(&mut self, spec: &JobSpec, status: &JobStatus, time: &Time) {
        let completions = spec.completions.unwrap_or(0);
        let read = |list: &Option<String>| Intervals::parse(list.as_deref().unwrap_or_default(), completions);
        // Counted pods do no harm here: their index is in the list already.
        let mut new = BTreeSet::new();
        new.extend(
            self.pods
                .iter()
                .filter(|p| pod_state::phase(p) == "Succeeded" && is_tracked(p))
                .filter_map(|p| valid_index(p, spec)),
        );
        self.known_indexes = read(&status.completed_indexes);
        self.succeeded_indexes = self.known_indexes.union(&Intervals::of(&new));
        self.succeeded = self.succeeded_indexes.total();
        if let Some(limit) = spec.backoff_limit_per_index {
            let mut new = BTreeSet::new();
            let tracked = self.pods.iter().filter(|p| is_tracked(p) && index_failed(p, spec, limit));
            new.extend(tracked.filter_map(|p| valid_index(p, spec)));
            let failed = read(&status.failed_indexes).union(&Intervals::of(&new));
            if self.finish.is_none() {
                let (bad, good) = (failed.total(), self.succeeded);
                let fail = |reason, message| Some(condition(FAILURE_TARGET, true, reason, message, time));
                if spec.max_failed_indexes.is_some_and(|most| bad > most) {
                    let message = "Job has exceeded the specified maximal number of failed indexes";
                    self.finish = fail("MaxFailedIndexesExceeded", message);
                } else if bad > 0 && bad + good >= completions {
                    self.finish = fail("FailedIndexes", "Job has failed indexes");
                }
            }
            self.replaced = self.waiting_for_replacement(spec, &failed);
            self.failed_indexes = Some(failed);
        }
        if self.finish.is_none()
            && let Some(message) = success(spec.success_policy.as_ref(), completions, &self.succeeded_indexes)
        {
            self.finish = Some(condition(SUCCESS_CRITERIA_MET, true, "SuccessPolicy", &message, time));
        }
    }

    /// Failed pods of indexes that go on and have no active pod: of each index the one with the most failures.
    fn waiting_for_replacement(&self, spec: &JobSpec, failed: &Intervals) -> BTreeMap<i32, Arc<Pod>> {
        let active = indexes(&self.active);
        let mut out: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        for pod in &self.pods {
            let Some(i) = valid_index(pod, spec) else { continue };
            let open = !self.succeeded_indexes.has(i) && !failed.has(i) && !active.contains(&i);
            let counted = !is_tracked(pod) || self.leaving.contains(pod.metadata.uid());
            if !open || counted || !is_failed(pod, spec) {
                continue;
            }
            let later = out.get(&i).is_none_or(|last| {
                all_failures_before(last) <= all_failures_before(pod) && finished_at(pod) >= finished_at(last)
            });
            if later {
                out.insert(i, pod.clone());
            }
        }
        out
    }
}

fn index_failed(pod: &Pod, spec: &JobSpec, limit: i32) -> bool {
    if !is_failed(pod, spec) {
        return false;
    }
    match judge(spec.pod_failure_policy.as_ref(), pod) {
        Verdict::FailIndex => true,
        verdict => verdict.counts() && failures_before(pod) >= limit,
    }
}

/// Whether containers that are restarted in place have been so more often than the Job's back-off limit.
fn restarted_too_often(spec: &JobSpec, pods: &[Arc<Pod>], limit: i32) -> bool {
    if spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let alive = pods.iter().filter(|p| matches!(pod_state::phase(p), "Running" | "Pending"));
    let statuses = alive
        .flat_map(|p| &p.status)
        .flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()));
    let restarts: i64 = statuses.map(|c| i64::from(c.restart_count)).sum();
    restarts >= i64::from(limit.max(1))
}
