//! Counts pods that have ended, each once: its uid is written into the status first, then its finalizer goes, and only
//! then the counter grows. Whatever happens between these steps, the next look finds where to go on.

use super::condition::{COMPLETE, FAILURE_TARGET, SUCCESS_CRITERIA_MET, condition, holds, set};
use super::is_indexed;
use super::policy::judge;
use super::survey::{Survey, failed_like, is_failed, is_tracked, valid_index};
use crate::pod_state;
use gantry_api::Time;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;
use std::sync::Arc;

/// No more uids than this are written into a status at once.
const MOST_UNCOUNTED: usize = 500;

/// What is to be done about pods that have ended.
#[derive(Clone, Debug, Default)]
pub struct Tracking {
    /// Pods whose finalizer goes once the status is written.
    pub release: Vec<Arc<Pod>>,
    /// Uids of all pods that their finalizer holds.
    pub held: BTreeSet<String>,
    /// Whether the status changed and must be written first.
    pub changed: bool,
    /// Whether there are more pods to look at than may be counted at once.
    pub full: bool,
    /// By which final condition the Job is to end.
    pub finish: Option<JobCondition>,
}

/// Enters into the status of `job` which pods have ended, and the interim condition of the Job's end.
#[must_use]
pub fn track(job: &mut Job, survey: &Survey, now: &Time) -> Tracking {
    let spec = job.spec.clone().unwrap_or_default();
    let deleting = job.metadata.is_deleting();
    let status = job.status.get_or_insert_default();
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let known_good: BTreeSet<String> = uncounted.succeeded.iter().flatten().cloned().collect();
    let known_bad: BTreeSet<String> = uncounted.failed.iter().flatten().cloned().collect();
    let counted = |p: &Pod| !is_tracked(p) || survey.leaving.contains(p.metadata.uid());
    let mut t = Tracking {
        held: survey.pods.iter().filter(|p| !counted(p)).map(|p| p.metadata.uid().to_owned()).collect(),
        ..Default::default()
    };
    t.changed = settle(status, &t.held);
    let indexed = is_indexed(&spec);
    let (mut good, mut bad, mut new_indexes) = (Vec::new(), Vec::new(), BTreeSet::new());
    let left = status
        .uncounted_terminated_pods
        .as_ref()
        .map_or(0, |u| u.succeeded.as_ref().map_or(0, Vec::len) + u.failed.as_ref().map_or(0, Vec::len));
    let given_up = survey.finish.as_ref().is_some_and(|f| f.type_ != SUCCESS_CRITERIA_MET);
    for pod in &survey.pods {
        let failed = is_failed(pod, &spec);
        if counted(pod) || !may_release(pod, &spec, survey, failed, deleting) {
            continue;
        }
        t.release.push(pod.clone());
        let uid = pod.metadata.uid();
        let index = valid_index(pod, &spec);
        if pod_state::phase(pod) == "Succeeded" && !known_bad.contains(uid) {
            if indexed {
                // The index is enough to count it once.
                new_indexes.extend(index.filter(|i| !survey.known_indexes.has(*i)));
            } else if !known_good.contains(uid) {
                good.push(uid.to_owned());
            }
        } else if (failed || given_up) && !known_bad.contains(uid) && (!indexed || index.is_some()) {
            // When the Job is to fail, whatever has not ended yet counts as failed.
            if judge(spec.pod_failure_policy.as_ref(), pod).counts() {
                bad.push(uid.to_owned());
            }
        }
        if left + good.len() + bad.len() + new_indexes.len() >= MOST_UNCOUNTED {
            t.full = true;
            break;
        }
    }
    t.changed |= !good.is_empty() || !bad.is_empty() || !new_indexes.is_empty();
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    if !good.is_empty() {
        uncounted.succeeded.get_or_insert_default().extend(good);
    }
    if !bad.is_empty() {
        uncounted.failed.get_or_insert_default().extend(bad);
    }
    if indexed {
        t.changed |= tell_indexes(status, survey);
    }
    t.finish = survey.finish.clone();
    t.changed |= tell_end(status, &mut t.finish, now);
    t
}

/// Moves pods that are no longer held from the list of those not counted to the counters.
pub fn settle(status: &mut JobStatus, held: &BTreeSet<String>) -> bool {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let mut changed = false;
    for (list, counter) in
        [(&mut uncounted.succeeded, &mut status.succeeded), (&mut uncounted.failed, &mut status.failed)]
    {
        let Some(uids) = list else { continue };
        let before = uids.len();
        uids.retain(|u| held.contains(u));
        let settled = i32::try_from(before - uids.len()).unwrap_or(i32::MAX);
        if uids.is_empty() {
            *list = None;
        }
        if settled > 0 {
            *counter = Some(counter.unwrap_or(0).saturating_add(settled));
            changed = true;
        }
    }
    changed
}

/// Whether a pod need not be held any longer. A failed one waits for its replacement where each index has a back-off
/// limit, because the replacement takes over its count.
fn may_release(pod: &Pod, spec: &JobSpec, survey: &Survey, failed: bool, deleting: bool) -> bool {
    if deleting || survey.finish.is_some() || pod_state::phase(pod) == "Succeeded" {
        return true;
    }
    let waits = valid_index(pod, spec)
        .and_then(|i| survey.replaced.get(&i))
        .is_some_and(|replaced| replaced.metadata.uid == pod.metadata.uid);
    failed && !waits
}

fn tell_indexes(status: &mut JobStatus, survey: &Survey) -> bool {
    let before = (status.completed_indexes.clone(), status.failed_indexes.clone(), status.succeeded);
    let total = survey.succeeded_indexes.total();
    status.succeeded = (total != 0).then_some(total);
    status.completed_indexes = (total != 0).then(|| survey.succeeded_indexes.to_string());
    status.failed_indexes = survey.failed_indexes.as_ref().map(ToString::to_string);
    before != (status.completed_indexes.clone(), status.failed_indexes.clone(), status.succeeded)
}

/// Enters the interim condition of the Job's end and makes `finish` the final one.
fn tell_end(status: &mut JobStatus, finish: &mut Option<JobCondition>, now: &Time) -> bool {
    let Some(interim) = finish.take() else { return false };
    match interim.type_.as_str() {
        FAILURE_TARGET => {
            *finish = Some(failed_like(&interim, now));
            status.conditions.get_or_insert_default().push(interim);
            true
        }
        SUCCESS_CRITERIA_MET => {
            let text = |s: &Option<String>| s.clone().unwrap_or_default();
            *finish = Some(condition(COMPLETE, true, &text(&interim.reason), &text(&interim.message), now));
            if holds(status, SUCCESS_CRITERIA_MET).is_some() {
                return false;
            }
            status.conditions.get_or_insert_default().push(interim);
            true
        }
        _ => {
            *finish = Some(interim);
            false
        }
    }
}

/// Enters the final condition, unless pods are still to be counted or to end. Whether the Job has ended by it.
pub fn end(status: &mut JobStatus, finish: Option<&JobCondition>) -> bool {
    let Some(finish) = finish else { return false };
    let waiting = status
        .uncounted_terminated_pods
        .as_ref()
        .is_some_and(|u| u.succeeded.iter().flatten().chain(u.failed.iter().flatten()).next().is_some());
    if waiting || status.terminating.unwrap_or(0) > 0 {
        return false;
    }
    set(status, finish.clone());
    if finish.type_ == COMPLETE {
        status.completion_time.clone_from(&finish.last_transition_time);
    }
    true
}
