//! How many replicas each ReplicaSet of a Deployment gets.

use super::revision::{DESIRED, MAXIMUM, noted};
use gantry_api::apps::int_or_percent::scaled;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use std::cmp::Reverse;

/// Replicas a ReplicaSet is asked for.
pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// Pods of a ReplicaSet that are available.
pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// Pods of a ReplicaSet that are available and stay so. Of what it told before it saw its present size nothing is sure:
/// where it was smaller in between, some of them are on their way out.
pub(super) fn lasting(set: &ReplicaSet) -> i32 {
    let seen = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
    if seen < set.metadata.generation.unwrap_or(0) { 0 } else { available(set).min(size(set)) }
}

/// Pods a ReplicaSet has.
pub(super) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

/// Replicas a Deployment is asked for.
pub(super) fn desired(d: &Deployment) -> i32 {
    d.spec.replicas.unwrap_or(1)
}

pub(super) fn created(set: &ReplicaSet) -> (Option<Timestamp>, String) {
    (set.metadata.creation_timestamp.as_ref().map(|t| t.0), set.metadata.name().to_owned())
}

pub(super) fn is_rolling(d: &Deployment) -> bool {
    d.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()).is_none_or(|t| t.is_empty() || t == "RollingUpdate")
}

/// Surge and unavailability in pods; at least one of them is above 0, so that a rollout can move.
fn fences(d: &Deployment) -> (i32, i32) {
    let rolling = d.spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
    let surge = scaled(surge, desired(d), true).unwrap_or(0);
    let unavailable = scaled(unavailable, desired(d), false).unwrap_or(0);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// Most pods above the desired number during a rollout.
pub(super) fn max_surge(d: &Deployment) -> i32 {
    if is_rolling(d) { fences(d).0 } else { 0 }
}

/// Most pods below the desired number during a rollout.
pub(super) fn max_unavailable(d: &Deployment) -> i32 {
    if !is_rolling(d) || desired(d) == 0 {
        return 0;
    }
    fences(d).1.min(desired(d))
}

/// The size of the new ReplicaSet, which grows as far as the surge lets it. `total` is the size of all ReplicaSets.
pub(super) fn grown(d: &Deployment, new_size: i32, total: i32) -> i32 {
    if !is_rolling(d) {
        return desired(d);
    }
    let most = desired(d) + max_surge(d);
    if total >= most {
        return new_size;
    }
    new_size + (most - total).min(desired(d) - new_size)
}

/// Whether the Deployment has been scaled since its ReplicaSets were.
pub(super) fn was_scaled<'a>(d: &Deployment, sets: impl Iterator<Item = &'a ReplicaSet>) -> bool {
    sets.filter(|s| size(s) > 0).any(|s| noted(s, DESIRED).is_some_and(|n| n != desired(d)))
}

/// Whether the new ReplicaSet has all replicas, and they are available.
pub(super) fn is_saturated(d: &Deployment, new: Option<&ReplicaSet>) -> bool {
    new.is_some_and(|s| size(s) == desired(d) && noted(s, DESIRED) == Some(desired(d)) && lasting(s) == desired(d))
}

/// Sizes that spread a change of the Deployment's replicas over its active ReplicaSets in proportion, so that scaling in
/// the middle of a rollout does not bet on one side. Names and sizes, in the order in which they were dealt out.
pub(super) fn proportional(d: &Deployment, active: &[&ReplicaSet]) -> Vec<(String, i32)> {
    let total: i32 = active.iter().map(|s| size(s)).sum();
    let allowed = if desired(d) > 0 { desired(d) + max_surge(d) } else { 0 };
    let to_add = allowed - total;
    let mut order: Vec<&ReplicaSet> = active.to_vec();
    if to_add > 0 {
        order.sort_by_key(|s| (Reverse(size(s)), Reverse(created(s))));
    } else {
        order.sort_by_key(|s| (Reverse(size(s)), created(s)));
    }
    let mut added = 0;
    let mut sizes: Vec<(String, i32)> = Vec::new();
    for set in &order {
        let part = if size(set) == 0 || to_add == 0 || to_add == added {
            0
        } else {
            let (fraction, left) = (fraction(d, set), to_add - added);
            if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
        };
        added += part;
        sizes.push((set.metadata.name().to_owned(), size(set) + part));
    }
    if let Some(first) = sizes.first_mut()
        && to_add != 0
    {
        // What rounding left over goes to the largest.
        first.1 = (first.1 + to_add - added).max(0);
    }
    sizes
}

fn fraction(d: &Deployment, set: &ReplicaSet) -> i32 {
    if desired(d) == 0 {
        return -size(set);
    }
    let before = match noted(set, MAXIMUM) {
        Some(n) if n != 0 => n,
        _ => d.status.as_ref().and_then(|s| s.replicas).unwrap_or(0),
    };
    if before == 0 {
        return 0;
    }
    let most = f64::from(desired(d) + max_surge(d));
    #[allow(clippy::cast_possible_truncation)]
    let new_size = (f64::from(size(set)) * most / f64::from(before)).round() as i32;
    new_size - size(set)
}
