//! Field errors of a Job's status. Most rules hold only for what a write changes, so that writers who do not care about a
//! fault may still write; they keep controllers other than the built-in one honest (`managedBy`).

use super::indexes;
use super::job_spec::is_indexed;
use crate::apps::workload::nonnegative;
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::semantically_equal;
use crate::meta::text;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use serde_json::json;
use std::collections::BTreeSet;

/// Whether the condition is there and true.
pub(super) fn is_true(status: &JobStatus, condition: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == condition && c.status == "True")
}

/// The status of the condition `Suspended`.
fn suspension(status: &JobStatus) -> Option<&str> {
    status.conditions.iter().flatten().find(|c| c.type_ == "Suspended").map(|c| c.status.as_str())
}

fn is_finished(status: &JobStatus) -> bool {
    is_true(status, "Complete") || is_true(status, "Failed")
}

/// A status with the answers the rules ask for.
struct View<'a> {
    s: &'a JobStatus,
    finished: bool,
    complete: bool,
    failed: bool,
    failure_target: bool,
    success_criteria: bool,
}

impl<'a> View<'a> {
    fn new(s: &'a JobStatus) -> Self {
        Self {
            s,
            finished: is_finished(s),
            complete: is_true(s, "Complete"),
            failed: is_true(s, "Failed"),
            failure_target: is_true(s, "FailureTarget"),
            success_criteria: is_true(s, "SuccessCriteriaMet"),
        }
    }
}

/// Field errors of the status of `job`, which was that of `old`.
pub(super) fn validate(job: &Job, old: &Job) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("status");
    let (status, before) = (job.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    let (new, old) = (View::new(&status), View::new(&before));
    validate_counts(&status, &path, &mut e);
    validate_conditions(&new, &old, &path, &mut e);
    validate_indexes(job, &new, &old, &path, &mut e);
    validate_late_pods(&new, &old, &path, &mut e);
    validate_criteria(job, &new, &path, &mut e);
    validate_steps(job, &new, &old, &path, &mut e);
    e
}

fn validate_counts(s: &JobStatus, path: &Path, e: &mut ErrorList) {
    for (name, value) in [
        ("active", s.active),
        ("succeeded", s.succeeded),
        ("failed", s.failed),
        ("ready", s.ready),
        ("terminating", s.terminating),
    ] {
        nonnegative(e, &path.child(name), i64::from(value.unwrap_or(0)));
    }
    let Some(uncounted) = &s.uncounted_terminated_pods else { return };
    let mut seen = BTreeSet::new();
    for (name, list) in [("succeeded", &uncounted.succeeded), ("failed", &uncounted.failed)] {
        for (i, uid) in list.iter().flatten().enumerate() {
            let at = path.child("uncountedTerminatedPods").child(name).index(i);
            if uid.is_empty() {
                e.invalid(&at, "", "must not be empty");
            } else if !seen.insert(uid) {
                e.duplicate(&at, uid.as_str());
            }
        }
    }
}

fn validate_conditions(new: &View<'_>, old: &View<'_>, path: &Path, e: &mut ErrorList) {
    let s = new.s;
    let (conditions, completion, start) =
        (path.child("conditions"), path.child("completionTime"), path.child("startTime"));
    let finished_changed = new.finished != old.finished;
    let complete_changed = new.complete != old.complete;
    let failed_changed = new.failed != old.failed;
    let target_changed = new.failure_target != old.failure_target;
    let criteria_changed = new.success_criteria != old.success_criteria;
    let completion_changed = s.completion_time != old.s.completion_time;
    let start_changed = s.start_time != old.s.start_time;
    if (complete_changed || failed_changed) && new.complete && new.failed {
        e.invalid_unshown(&conditions, "cannot set Complete=True and Failed=true conditions");
    }
    if (complete_changed || target_changed) && new.complete && new.failure_target {
        e.invalid_unshown(&conditions, "cannot set Complete=True and FailureTarget=true conditions");
    }
    if complete_changed || completion_changed {
        match &s.completion_time {
            Some(time) if !new.complete => {
                e.invalid(
                    &completion,
                    json!(time),
                    "cannot set completionTime when there is no Complete=True condition",
                );
            }
            None if new.complete => e.required(&completion, "completionTime is required for Complete jobs"),
            _ => {}
        }
    }
    if let (Some(start), Some(end)) = (&s.start_time, &s.completion_time)
        && (start_changed || completion_changed)
        && end.0 < start.0
    {
        e.invalid(&completion, json!(end), "completionTime cannot be set before startTime");
    }
    if (failed_changed || target_changed) && new.failed && !new.failure_target {
        e.invalid_unshown(&conditions, "cannot set Failed=True condition without the FailureTarget=true condition");
    }
    if (complete_changed || criteria_changed) && new.complete && !new.success_criteria {
        e.invalid_unshown(
            &conditions,
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        );
    }
    let active = s.active.unwrap_or(0);
    if (finished_changed || active != old.s.active.unwrap_or(0)) && active > 0 && new.finished {
        e.invalid(&path.child("active"), active, "active>0 is invalid for finished job");
    }
    if (finished_changed || start_changed) && s.start_time.is_none() && new.finished {
        e.required(&start, "startTime is required for finished job");
    }
    let uncounted = &s.uncounted_terminated_pods;
    if (finished_changed || !semantically_equal(uncounted, &old.s.uncounted_terminated_pods))
        && new.finished
        && let Some(pods) = uncounted
        && pods.failed.iter().flatten().chain(pods.succeeded.iter().flatten()).next().is_some()
    {
        let detail = "uncountedTerminatedPods needs to be empty for finished job";
        e.invalid(&path.child("uncountedTerminatedPods"), json!(pods), detail);
    }
}

fn validate_indexes(job: &Job, new: &View<'_>, old: &View<'_>, path: &Path, e: &mut ErrorList) {
    let spec = job.spec.clone().unwrap_or_default();
    let (completed, failed) = (text(&new.s.completed_indexes), new.s.failed_indexes.as_deref());
    let completed_changed = completed != text(&old.s.completed_indexes);
    let failed_changed = failed != old.s.failed_indexes.as_deref();
    let (completed_path, failed_path) = (path.child("completedIndexes"), path.child("failedIndexes"));
    if let Some(completions) = spec.completions {
        if completed_changed && let Err(why) = indexes::parse(completed, completions) {
            e.invalid(&completed_path, completed, &format!("error parsing completedIndexes: {why}"));
        }
        if let (true, Some(_), Some(list)) = (failed_changed, spec.backoff_limit_per_index, failed)
            && let Err(why) = indexes::parse(list, completions)
        {
            e.invalid(&failed_path, list, &format!("error parsing failedIndexes: {why}"));
        }
    }
    if completed_changed && !completed.is_empty() && !is_indexed(&spec) {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        e.invalid(&completed_path, completed, detail);
    }
    let Some(list) = failed else { return };
    if failed_changed && spec.backoff_limit_per_index.is_none() {
        e.invalid(&failed_path, list, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    if let Some(completions) = spec.completions
        && (failed_changed || completed_changed)
        && let Some(both) = indexes::overlap(completed, list, completions)
    {
        let detail = format!("failedIndexes and completedIndexes overlap at index: {both}");
        e.invalid(&failed_path, list, &detail);
    }
}

fn validate_late_pods(new: &View<'_>, old: &View<'_>, path: &Path, e: &mut ErrorList) {
    let count = |n: Option<i32>| n.unwrap_or(0);
    let (terminating, ready, active) = (count(new.s.terminating), count(new.s.ready), count(new.s.active));
    let changed = new.finished != old.finished || new.s.terminating != old.s.terminating;
    if changed && terminating > 0 && new.finished {
        e.invalid(&path.child("terminating"), terminating, "terminating>0 is invalid for finished job");
    }
    if (new.s.ready != old.s.ready || active != count(old.s.active)) && ready > active {
        e.invalid(&path.child("ready"), ready, "cannot set more ready pods than active");
    }
}

fn validate_criteria(job: &Job, new: &View<'_>, path: &Path, e: &mut ErrorList) {
    let conditions = path.child("conditions");
    if new.success_criteria && new.failed {
        e.invalid_unshown(&conditions, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    }
    if new.success_criteria && new.failure_target {
        e.invalid_unshown(&conditions, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    }
    let has_policy = job.spec.as_ref().is_some_and(|s| s.success_policy.is_some());
    if has_policy && !new.success_criteria && new.complete {
        let detail = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        e.invalid_unshown(&conditions, detail);
    }
}

/// What may not be taken back.
fn validate_steps(job: &Job, new: &View<'_>, old: &View<'_>, path: &Path, e: &mut ErrorList) {
    let conditions = path.child("conditions");
    for (name, was, is) in [
        ("Failed", old.failed, new.failed),
        ("Complete", old.complete, new.complete),
        ("FailureTarget", old.failure_target, new.failure_target),
    ] {
        if was && !is {
            e.invalid_unshown(&conditions, &format!("cannot disable the terminal {name}=True condition"));
        }
    }
    let (failed, succeeded) = (new.s.failed.unwrap_or(0), new.s.succeeded.unwrap_or(0));
    if failed < old.s.failed.unwrap_or(0) {
        e.invalid(&path.child("failed"), failed, "cannot decrease the failed counter");
    }
    let spec = job.spec.clone().unwrap_or_default();
    // An elastic indexed Job may shrink, and what it has done with it.
    let elastic = is_indexed(&spec) && spec.completions == spec.parallelism;
    if !elastic && succeeded < old.s.succeeded.unwrap_or(0) {
        e.invalid(&path.child("succeeded"), succeeded, "cannot decrease the succeeded counter");
    }
    if let (Some(now), Some(before)) = (&new.s.completion_time, &old.s.completion_time)
        && now != before
    {
        e.invalid(&path.child("completionTime"), json!(now), "completionTime cannot be mutated");
    }
    let suspended = spec.suspend == Some(true);
    // The active deadline of a Job that goes on begins anew.
    let resumes = suspension(old.s) == Some("True") && suspension(new.s) == Some("False");
    if old.s.start_time.is_some() && old.s.start_time != new.s.start_time && !suspended && !resumes {
        let given = new.s.start_time.as_ref().map_or_else(|| json!("null"), |time| json!(time));
        e.invalid(&path.child("startTime"), given, "field is immutable for unsuspended job once set");
    }
    if old.success_criteria && !new.success_criteria {
        e.invalid_unshown(&conditions, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if old.complete && !old.success_criteria && new.success_criteria {
        let detail = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        e.invalid_unshown(&conditions, detail);
    }
}
