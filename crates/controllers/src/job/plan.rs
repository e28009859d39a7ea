//! Which pods to make or to delete.

use super::backoff::{finished_at, remaining};
use super::indexed::{all_failures_before, indexes, surplus};
use super::intervals::Intervals;
use super::survey::{Survey, replaces_only_ended};
use super::{is_indexed, is_suspended};
use crate::pod_state;
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// No more pods than this are made or deleted in one go.
const BURST: usize = 500;

/// What to do about the number of pods.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Nothing.
    None,
    /// Nothing until the back-off is over.
    Wait(Duration),
    /// Delete these.
    Delete(Vec<Arc<Pod>>),
    /// Make pods, each with its index where the Job has indexes.
    Create(Vec<Option<i32>>),
}

/// Compares the pods of a Job that goes on with what it asks for.
#[must_use]
pub fn plan(spec: &JobSpec, survey: &Survey, now: Timestamp) -> Work {
    let active = survey.active.len();
    if is_suspended(spec) {
        let all = surplus(spec, &survey.active, active);
        return if all.is_empty() { Work::None } else { Work::Delete(all) };
    }
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(0)).unwrap_or(0);
    let wanted = match spec.completions {
        // One success is enough: then what runs is left running, and nothing is added.
        None if survey.succeeded > 0 => active,
        None => parallelism,
        Some(n) => usize::try_from(n - survey.succeeded).unwrap_or(0).min(parallelism),
    };
    let mut delete = surplus(spec, &survey.active, active.saturating_sub(wanted));
    delete.truncate(BURST);
    if !delete.is_empty() {
        return Work::Delete(delete);
    }
    let going = if replaces_only_ended(spec) { usize::try_from(survey.terminating).unwrap_or(0) } else { 0 };
    let missing = wanted.saturating_sub(active + going).min(BURST);
    if missing == 0 {
        return Work::None;
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    let left = survey.record.remaining(now);
    if !per_index && !left.is_zero() {
        return Work::Wait(left);
    }
    if !is_indexed(spec) {
        return Work::Create(vec![None; missing]);
    }
    let pending = pending(spec, survey, missing);
    let left = |i: i32| {
        survey
            .replaced
            .get(&i)
            .filter(|_| per_index)
            .map_or(Duration::ZERO, |p| remaining(all_failures_before(p).saturating_add(1), finished_at(p), now))
    };
    let due: Vec<Option<i32>> = pending.iter().filter(|i| left(**i).is_zero()).map(|i| Some(*i)).collect();
    match pending.iter().map(|i| left(*i)).min() {
        _ if !due.is_empty() => Work::Create(due),
        Some(soonest) => Work::Wait(soonest),
        None => Work::None,
    }
}

/// The first indexes that have neither ended nor a pod.
fn pending(spec: &JobSpec, survey: &Survey, count: usize) -> Vec<i32> {
    let mut taken = indexes(&survey.active);
    if replaces_only_ended(spec) {
        taken.extend(indexes(survey.pods.iter().filter(|p| pod_state::is_terminating(p))));
    }
    let mut closed = survey.succeeded_indexes.union(&Intervals::of(&taken));
    if let Some(failed) = &survey.failed_indexes {
        closed = closed.union(failed);
    }
    closed.missing(spec.completions.unwrap_or(0), count)
}
