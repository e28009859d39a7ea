//! InterPodAffinity: required and preferred (anti-)affinity between pods, both ways.

use crate::filter::Rejection;
use crate::pod::{AffinityTerm, PodInfo};
use crate::snapshot::{Row, Snapshot, ValueId};
use std::collections::HashMap;

/// Hard affinity of pods already placed counts this much in scores (`hardPodAffinityWeight`).
const HARD_AFFINITY_WEIGHT: i64 = 1;

type Domain = (String, ValueId);

/// Counts per topology domain for one incoming pod.
#[derive(Clone, Debug, Default)]
pub struct AffinityState {
    /// Placed pods whose anti-affinity the incoming pod matches, per domain of their term.
    existing_anti: HashMap<Domain, i64>,
    /// Placed pods that match all of the incoming pod's affinity terms, per domain.
    affinity: HashMap<Domain, i64>,
    /// Placed pods that match one of its anti-affinity terms, per domain.
    anti: HashMap<Domain, i64>,
}

fn matches(term: &AffinityTerm, pod: &PodInfo, snapshot: &Snapshot) -> bool {
    term.matches(pod, snapshot.namespaces.get(&pod.namespace))
}

fn matches_all(terms: &[AffinityTerm], pod: &PodInfo, snapshot: &Snapshot) -> bool {
    !terms.is_empty() && terms.iter().all(|t| matches(t, pod, snapshot))
}

fn count(map: &mut HashMap<Domain, i64>, snapshot: &Snapshot, row: Row, key: &str, sign: i64) {
    let value = snapshot.label_value(key, row);
    if value != 0 {
        let n = map.entry((key.to_owned(), value)).or_default();
        *n += sign;
        if *n == 0 {
            map.remove(&(key.to_owned(), value));
        }
    }
}

fn of(map: &HashMap<Domain, i64>, snapshot: &Snapshot, row: Row, key: &str) -> i64 {
    let value = snapshot.label_value(key, row);
    if value == 0 { 0 } else { map.get(&(key.to_owned(), value)).copied().unwrap_or(0) }
}

impl AffinityState {
    /// Looks at all placed pods; at those with anti-affinity only, where the incoming pod has none of its own.
    #[must_use]
    pub fn new(snapshot: &Snapshot, pod: &PodInfo) -> Self {
        let mut state = Self::default();
        let own = !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        for row in snapshot.node_rows() {
            if own || snapshot.anti_affine[row] > 0 {
                for other in &snapshot.pods[row] {
                    state.adjust(snapshot, row, other, pod, 1);
                }
            }
        }
        state
    }

    /// Counts `other` in or out at a node.
    pub fn adjust(&mut self, snapshot: &Snapshot, row: Row, other: &PodInfo, pod: &PodInfo, sign: i64) {
        for term in &other.anti_affinity {
            if matches(term, pod, snapshot) {
                count(&mut self.existing_anti, snapshot, row, &term.topology_key, sign);
            }
        }
        if matches_all(&pod.affinity, other, snapshot) {
            for term in &pod.affinity {
                count(&mut self.affinity, snapshot, row, &term.topology_key, sign);
            }
        }
        for term in &pod.anti_affinity {
            if matches(term, other, snapshot) {
                count(&mut self.anti, snapshot, row, &term.topology_key, sign);
            }
        }
    }

    /// The required terms of both sides.
    ///
    /// # Errors
    /// Where one is violated.
    pub fn filter(&self, snapshot: &Snapshot, row: Row, pod: &PodInfo) -> Result<(), Rejection> {
        let reject = |reason: &str, unresolvable| {
            Err(Rejection { plugin: "InterPodAffinity", reasons: vec![reason.to_owned()], unresolvable })
        };
        let has_all_keys = pod.affinity.iter().all(|t| snapshot.label_value(&t.topology_key, row) != 0);
        let satisfied = pod.affinity.iter().all(|t| of(&self.affinity, snapshot, row, &t.topology_key) > 0);
        // The first pod of a group that wants to be near itself may go anywhere.
        let first_of_its_group = self.affinity.is_empty() && matches_all(&pod.affinity, pod, snapshot);
        if !pod.affinity.is_empty() && !(has_all_keys && (satisfied || first_of_its_group)) {
            return reject("node(s) didn't match pod affinity rules", true);
        }
        if pod.anti_affinity.iter().any(|t| of(&self.anti, snapshot, row, &t.topology_key) > 0) {
            return reject("node(s) didn't match pod anti-affinity rules", false);
        }
        if self.existing_anti.keys().any(|(key, value)| snapshot.label_value(key, row) == *value) {
            return reject("node(s) didn't satisfy existing pods anti-affinity rules", false);
        }
        Ok(())
    }
}

/// Scores the feasible nodes 0–100 by preferred terms of the pod and of the pods already placed. `None` where nobody
/// prefers anything.
#[must_use]
pub fn score(snapshot: &Snapshot, pod: &PodInfo, feasible: &[Row]) -> Option<Vec<i64>> {
    let mut sums: HashMap<Domain, i64> = HashMap::new();
    let mut any = false;
    for row in snapshot.node_rows() {
        if pod.preferred.is_empty() && snapshot.affine[row] == 0 {
            continue;
        }
        let mut add = |term: &AffinityTerm, subject: &PodInfo, weight: i64| {
            if matches(term, subject, snapshot) {
                any = true;
                let value = snapshot.label_value(&term.topology_key, row);
                if value != 0 {
                    *sums.entry((term.topology_key.clone(), value)).or_default() += weight;
                }
            }
        };
        for other in &snapshot.pods[row] {
            for term in &pod.preferred {
                add(term, other, term.weight);
            }
            for term in &other.affinity {
                add(term, pod, HARD_AFFINITY_WEIGHT);
            }
            for term in &other.preferred {
                add(term, pod, term.weight);
            }
        }
    }
    if !any {
        return None;
    }
    let raw: Vec<i64> = feasible
        .iter()
        .map(|row| {
            sums.iter().filter(|((key, value), _)| snapshot.label_value(key, *row) == *value).map(|(_, w)| w).sum()
        })
        .collect();
    let (min, max) = (raw.iter().min().copied().unwrap_or(0), raw.iter().max().copied().unwrap_or(0));
    Some(raw.iter().map(|s| if max == min { 0 } else { 100 * (s - min) / (max - min) }).collect())
}
