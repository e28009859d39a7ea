//! A Deployment's status: counts, and the conditions Available, Progressing and ReplicaFailure.

use super::scale::{actual, available, desired, max_unavailable, size};
use crate::pod_state;
use gantry_api::Time;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use std::time::Duration;

/// Reason of the event and the condition when a ReplicaSet cannot be created.
pub(super) const CREATE_ERROR: &str = "ReplicaSetCreateError";
const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// A deadline above this is none: what `kubectl` and older API groups meant by "no deadline".
const NO_DEADLINE: i32 = i32::MAX;

pub(super) fn has_deadline(d: &Deployment) -> bool {
    d.spec.progress_deadline_seconds.is_some_and(|s| s != NO_DEADLINE)
}

pub(super) fn condition<'a>(s: &'a DeploymentStatus, r#type: &str) -> Option<&'a DeploymentCondition> {
    s.conditions.iter().flatten().find(|c| c.type_.as_deref() == Some(r#type))
}

fn new_condition(r#type: &str, status: &str, reason: &str, message: &str, now: &Time) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(r#type.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

/// Sets a condition; one of the same status and reason stays as it is.
fn set(s: &mut DeploymentStatus, mut c: DeploymentCondition) {
    let conditions = s.conditions.get_or_insert_default();
    if let Some(known) = conditions.iter().find(|k| k.type_ == c.type_) {
        if known.status == c.status && known.reason == c.reason {
            return;
        }
        if known.status == c.status {
            c.last_transition_time.clone_from(&known.last_transition_time);
        }
    }
    conditions.retain(|k| k.type_ != c.type_);
    conditions.push(c);
}

fn remove(s: &mut DeploymentStatus, r#type: &str) {
    if let Some(conditions) = &mut s.conditions {
        conditions.retain(|k| k.type_.as_deref() != Some(r#type));
        if conditions.is_empty() {
            s.conditions = None;
        }
    }
}

/// Notes that a ReplicaSet for the present template was found or created. `None` where there is no deadline to keep.
pub(super) fn note_new_set(d: &mut Deployment, set_name: &str, created: bool, now: &Time) {
    if !has_deadline(d) {
        return;
    }
    let status = d.status.get_or_insert_default();
    if created {
        let message = format!("Created new replica set \"{set_name}\"");
        set(status, new_condition(PROGRESSING, "True", "NewReplicaSetCreated", &message, now));
    } else if condition(status, PROGRESSING).is_none() {
        let message = format!("Found new replica set \"{set_name}\"");
        set(status, new_condition(PROGRESSING, "True", "FoundNewReplicaSet", &message, now));
    }
}

/// The Deployment with the condition that its ReplicaSet could not be created; None where nothing changes.
pub(super) fn creation_failed(d: &Deployment, message: &str, now: Time) -> Option<Deployment> {
    if !has_deadline(d) {
        return None;
    }
    let mut changed = d.clone();
    let status = changed.status.get_or_insert_default();
    set(status, new_condition(PROGRESSING, "False", CREATE_ERROR, message, &now));
    (changed.status != d.status).then_some(changed)
}

/// Notes that a rollout was paused or resumed, so that the deadline does not run meanwhile.
pub(super) fn note_paused(d: &mut Deployment, now: &Time) {
    if !has_deadline(d) {
        return;
    }
    let paused = d.spec.paused == Some(true);
    let status = d.status.get_or_insert_default();
    let known = condition(status, PROGRESSING).and_then(|c| c.reason.as_deref()).unwrap_or_default();
    match (paused, known) {
        // A rollout that has run out of time stays so.
        (_, TIMED_OUT) => {}
        (true, reason) if reason != "DeploymentPaused" => {
            set(status, new_condition(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused", now));
        }
        (false, "DeploymentPaused") => {
            set(status, new_condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed", now));
        }
        _ => {}
    }
}

/// Whether all replicas are of the present template and available.
pub(super) fn is_complete(d: &Deployment, s: &DeploymentStatus) -> bool {
    let n = Some(desired(d)).filter(|n| *n != 0);
    let same = |v: Option<i32>| v.filter(|v| *v != 0) == n;
    same(s.updated_replicas)
        && same(s.replicas)
        && same(s.available_replicas)
        && s.observed_generation.unwrap_or(0) >= d.metadata.generation.unwrap_or(0)
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn is_timed_out(d: &Deployment, s: &DeploymentStatus, now: &Time) -> bool {
    let (true, Some(c)) = (has_deadline(d), condition(s, PROGRESSING)) else { return false };
    match c.reason.as_deref() {
        Some(NEW_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => {
            let deadline = i64::from(d.spec.progress_deadline_seconds.unwrap_or(0));
            c.last_update_time.as_ref().is_some_and(|t| pod_state::seconds_between(t.0, now.0) > deadline)
        }
    }
}

/// The status that the ReplicaSets amount to, with its Available condition.
pub(super) fn counts(d: &Deployment, old: &[ReplicaSet], new: Option<&ReplicaSet>, now: &Time) -> DeploymentStatus {
    let all = || old.iter().chain(new);
    let sum = |f: &dyn Fn(&ReplicaSet) -> i32| -> i32 { all().map(f).sum() };
    let on_wire = |n: i32| (n != 0).then_some(n);
    let before = d.status.clone().unwrap_or_default();
    let up = sum(&available);
    let going: Vec<i32> = all().filter_map(|s| s.status.as_ref().and_then(|s| s.terminating_replicas)).collect();
    let mut status = DeploymentStatus {
        observed_generation: d.metadata.generation,
        replicas: on_wire(sum(&actual)),
        updated_replicas: on_wire(new.map_or(0, actual)),
        ready_replicas: on_wire(sum(&|s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
        available_replicas: on_wire(up),
        unavailable_replicas: on_wire((sum(&size) - up).max(0)),
        // Unknown as long as a ReplicaSet has not reported it.
        terminating_replicas: (going.len() == all().count()).then(|| going.iter().sum()),
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let c = if up >= desired(d) - max_unavailable(d) {
        new_condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", now)
    } else {
        let message = "Deployment does not have minimum availability.";
        new_condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message, now)
    };
    set(&mut status, c);
    status
}

/// [`counts`] with the conditions that tell how the rollout goes.
pub(super) fn rollout(d: &Deployment, old: &[ReplicaSet], new: Option<&ReplicaSet>, now: &Time) -> DeploymentStatus {
    let before = d.status.clone().unwrap_or_default();
    let mut status = counts(d, old, new, now);
    if !has_deadline(d) {
        remove(&mut status, PROGRESSING);
    }
    let current = condition(&before, PROGRESSING).cloned();
    let finished = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some(NEW_AVAILABLE));
    if has_deadline(d) && !finished {
        let subject = match new {
            Some(set) => format!("ReplicaSet \"{}\"", set.metadata.name()),
            None => format!("Deployment \"{}\"", d.metadata.name()),
        };
        if is_complete(d, &status) {
            let message = format!("{subject} has successfully progressed.");
            set(&mut status, new_condition(PROGRESSING, "True", NEW_AVAILABLE, &message, now));
        } else if is_progressing(&before, &status) {
            let message = format!("{subject} is progressing.");
            let mut c = new_condition(PROGRESSING, "True", "ReplicaSetUpdated", &message, now);
            if let Some(current) = current.filter(|c| c.status.as_deref() == Some("True")) {
                c.last_transition_time = current.last_transition_time;
            }
            // Replaced even where status and reason are the same: its update time starts the deadline anew.
            remove(&mut status, PROGRESSING);
            set(&mut status, c);
        } else if is_timed_out(d, &status, now) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut status, new_condition(PROGRESSING, "False", TIMED_OUT, &message, now));
        }
    }
    match failure(old, new) {
        Some(c) => set(&mut status, c),
        None => remove(&mut status, REPLICA_FAILURE),
    }
    status
}

/// The failure a ReplicaSet reports, the new one's before the others'.
fn failure(old: &[ReplicaSet], new: Option<&ReplicaSet>) -> Option<DeploymentCondition> {
    let of = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let c = conditions.iter().find(|c| c.type_.as_deref() == Some(REPLICA_FAILURE))?;
        Some(DeploymentCondition {
            type_: c.type_.clone(),
            status: c.status.clone(),
            reason: c.reason.clone(),
            message: c.message.clone(),
            last_transition_time: c.last_transition_time.clone(),
            last_update_time: c.last_transition_time.clone(),
        })
    };
    new.and_then(of).or_else(|| old.iter().find_map(of))
}

/// When to look again whether the rollout has run out of time.
pub(super) fn check_again(d: &Deployment, status: &DeploymentStatus, now: &Time) -> Option<Duration> {
    let c = condition(status, PROGRESSING).filter(|_| has_deadline(d))?;
    if is_complete(d, status) || matches!(c.reason.as_deref(), Some(TIMED_OUT | NEW_AVAILABLE)) {
        return None;
    }
    let deadline = i64::from(d.spec.progress_deadline_seconds.unwrap_or(0));
    let left = pod_state::time_left(c.last_update_time.as_ref()?.0, deadline, now.0);
    // Times are whole seconds: a second later the deadline has certainly passed.
    Some(left + Duration::from_secs(1))
}
