//! Conditions of a Job.

use gantry_api::Time;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};

/// The Job will complete, and what still runs is being ended.
pub const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";
/// The Job will fail, and what still runs is being ended.
pub const FAILURE_TARGET: &str = "FailureTarget";
/// The Job has completed.
pub const COMPLETE: &str = "Complete";
/// The Job has failed.
pub const FAILED: &str = "Failed";

/// The condition of this type where it is true.
#[must_use]
pub fn holds<'a>(status: &'a JobStatus, r#type: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == r#type && c.status == "True")
}

/// The condition by which the Job has ended.
#[must_use]
pub fn finished(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    status.conditions.iter().flatten().find(|c| matches!(c.type_.as_str(), COMPLETE | FAILED) && c.status == "True")
}

/// A new condition.
#[must_use]
pub fn condition(r#type: &str, status: bool, reason: &str, message: &str, now: &Time) -> JobCondition {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    JobCondition {
        type_: r#type.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: text(reason),
        message: text(message),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

/// Puts a condition in place of that of its type; one that is false is not added where there was none. Whether anything
/// changed.
pub fn set(status: &mut JobStatus, new: JobCondition) -> bool {
    let all = status.conditions.get_or_insert_default();
    match all.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) if old.status == new.status && old.reason == new.reason && old.message == new.message => false,
        Some(old) => {
            *old = new;
            true
        }
        None if new.status == "False" => {
            if all.is_empty() {
                status.conditions = None;
            }
            false
        }
        None => {
            all.push(new);
            true
        }
    }
}

/// A moment as conditions tell it.
#[must_use]
pub fn whole_seconds(now: k8s_openapi::jiff::Timestamp) -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}
