//! InterPodAffinity: required and preferred (anti-)affinity between pods, both ways.

use crate::filter::Rejection;
use crate::pod::{AffinityTerm, Occupant};
use crate::profile::Profile;
use crate::snapshot::{KeyId, Row, Snapshot};

/// Numbers per topology domain, for as many topology keys as are asked about.
#[derive(Clone, Debug, Default)]
struct Tally {
    keys: Vec<(KeyId, Vec<i64>)>,
    sum: i64,
}

impl Tally {
    fn add(&mut self, snapshot: &Snapshot, row: Row, key: Option<KeyId>, n: i64) {
        let Some(key) = key else { return };
        let value = snapshot.value(key, row) as usize;
        if value == 0 {
            return;
        }
        let slot = self.keys.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
            self.keys.push((key, Vec::new()));
            self.keys.len() - 1
        });
        let counts = &mut self.keys[slot].1;
        if counts.len() <= value {
            counts.resize(value + 1, 0);
        }
        counts[value] += n;
        self.sum += n;
    }

    fn at(&self, snapshot: &Snapshot, row: Row, key: Option<KeyId>) -> i64 {
        let Some(key) = key else { return 0 };
        let counts = self.keys.iter().find(|(k, _)| *k == key).map(|(_, counts)| counts);
        counts.and_then(|c| c.get(snapshot.value(key, row) as usize)).copied().unwrap_or(0)
    }

    /// The numbers of all domains the node is in.
    fn all_at<'a>(&'a self, snapshot: &'a Snapshot, row: Row) -> impl Iterator<Item = i64> + 'a {
        self.keys.iter().map(move |(key, counts)| counts.get(snapshot.value(*key, row) as usize).copied().unwrap_or(0))
    }
}

/// Counts per topology domain for one incoming pod.
#[derive(Clone, Debug, Default)]
pub struct AffinityState {
    /// Placed pods whose anti-affinity the incoming pod matches, per domain of their term.
    existing_anti: Tally,
    /// Placed pods that match all of the incoming pod's affinity terms, per domain.
    affinity: Tally,
    /// Placed pods that match one of its anti-affinity terms, per domain.
    anti: Tally,
    /// Weights of preferred terms, the pod's and the placed ones', per domain.
    preferences: Tally,
    /// The topology keys of the pod's own affinity terms, and of its anti-affinity terms.
    affinity_keys: Vec<Option<KeyId>>,
    anti_keys: Vec<Option<KeyId>>,
    hard_weight: i64,
    /// Whether nothing is preferred, because the pod itself prefers nothing and the profile asks no others.
    indifferent: bool,
}

fn matches(term: &AffinityTerm, pod: &Occupant, snapshot: &Snapshot) -> bool {
    term.matches(pod, snapshot.namespace_labels(pod.namespace()))
}

fn matches_all(terms: &[AffinityTerm], pod: &Occupant, snapshot: &Snapshot) -> bool {
    !terms.is_empty() && terms.iter().all(|t| matches(t, pod, snapshot))
}

/// A required term that keeps a pod off a node.
#[derive(Clone, Debug)]
pub enum Conflict<'a> {
    /// One of its own affinity terms is not met there.
    Affinity(&'a AffinityTerm),
    /// Pods that one of its anti-affinity terms selects are there.
    AntiAffinity(&'a AffinityTerm),
    /// Pods are there whose anti-affinity selects it.
    Existing,
}

impl AffinityState {
    /// Looks at all placed pods; at those with affinity only, where the incoming pod has none of its own.
    #[must_use]
    pub fn new(snapshot: &Snapshot, pod: &Occupant, profile: &Profile) -> Self {
        let keys = |terms: &[AffinityTerm]| terms.iter().map(|t| snapshot.key(&t.topology_key)).collect();
        let mut state = Self {
            affinity_keys: keys(&pod.affinity),
            anti_keys: keys(&pod.anti_affinity),
            hard_weight: profile.hard_affinity_weight,
            indifferent: profile.ignore_preferred_of_placed && pod.preferred.is_empty(),
            ..Self::default()
        };
        let own = !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred.is_empty());
        if own || snapshot.affine_pods() > 0 {
            for row in snapshot.node_rows().filter(|row| own || snapshot.affine[*row] > 0) {
                for other in &snapshot.pods[row] {
                    state.adjust(snapshot, row, other, pod, 1);
                }
            }
        }
        state
    }

    /// Counts `other` in or out at a node.
    pub fn adjust(&mut self, snapshot: &Snapshot, row: Row, other: &Occupant, pod: &Occupant, sign: i64) {
        for term in &other.anti_affinity {
            if matches(term, pod, snapshot) {
                self.existing_anti.add(snapshot, row, snapshot.key(&term.topology_key), sign);
            }
        }
        if matches_all(&pod.affinity, other, snapshot) {
            for key in &self.affinity_keys {
                self.affinity.add(snapshot, row, *key, sign);
            }
        }
        for (term, key) in pod.anti_affinity.iter().zip(&self.anti_keys) {
            if matches(term, other, snapshot) {
                self.anti.add(snapshot, row, *key, sign);
            }
        }
        if self.indifferent {
            return;
        }
        let mut prefer = |term: &AffinityTerm, subject: &Occupant, weight: i64| {
            if weight != 0 && matches(term, subject, snapshot) {
                self.preferences.add(snapshot, row, snapshot.key(&term.topology_key), sign * weight);
            }
        };
        pod.preferred.iter().for_each(|t| prefer(t, other, t.weight));
        other.affinity.iter().for_each(|t| prefer(t, pod, self.hard_weight));
        other.preferred.iter().for_each(|t| prefer(t, pod, t.weight));
    }

    fn affinity_met(&self, snapshot: &Snapshot, row: Row, pod: &Occupant) -> bool {
        if pod.affinity.is_empty() {
            return true;
        }
        let has_key = |key: &Option<KeyId>| key.is_some_and(|k| snapshot.value(k, row) != 0);
        self.affinity_keys.iter().all(has_key)
            && (self.affinity_keys.iter().all(|key| self.affinity.at(snapshot, row, *key) > 0)
                // The first pod of a group that wants to be near itself may go anywhere.
                || self.affinity.sum == 0 && matches_all(&pod.affinity, pod, snapshot))
    }

    /// The required terms of both sides.
    ///
    /// # Errors
    /// Where one is violated.
    pub fn filter(&self, snapshot: &Snapshot, row: Row, pod: &Occupant) -> Result<(), Rejection> {
        let reject = |reason: &'static str, unresolvable| Err(Rejection::one("InterPodAffinity", reason, unresolvable));
        if !self.affinity_met(snapshot, row, pod) {
            return reject("node(s) didn't match pod affinity rules", true);
        }
        if self.anti_keys.iter().any(|key| self.anti.at(snapshot, row, *key) > 0) {
            return reject("node(s) didn't match pod anti-affinity rules", false);
        }
        if self.existing_anti.all_at(snapshot, row).any(|n| n > 0) {
            return reject("node(s) didn't satisfy existing pods anti-affinity rules", false);
        }
        Ok(())
    }

    /// Every required term that keeps the pod off the node.
    #[must_use]
    pub fn conflicts<'a>(&self, snapshot: &Snapshot, row: Row, pod: &'a Occupant) -> Vec<Conflict<'a>> {
        let mut out = Vec::new();
        if !self.affinity_met(snapshot, row, pod) {
            let terms = pod.affinity.iter().zip(&self.affinity_keys);
            let unmet = terms.filter(|(_, key)| self.affinity.at(snapshot, row, **key) == 0);
            out.extend(unmet.map(|(term, _)| Conflict::Affinity(term)));
        }
        let terms = pod.anti_affinity.iter().zip(&self.anti_keys);
        let violated = terms.filter(|(_, key)| self.anti.at(snapshot, row, **key) > 0);
        out.extend(violated.map(|(term, _)| Conflict::AntiAffinity(term)));
        if self.existing_anti.all_at(snapshot, row).any(|n| n > 0) {
            out.push(Conflict::Existing);
        }
        out
    }

    /// Whether [`AffinityState::score`] has anything to say.
    #[must_use]
    pub fn scores(&self) -> bool {
        !self.preferences.keys.is_empty()
    }

    /// Scores the feasible nodes 0–100 by preferred terms of the pod and of the pods already placed. `None` where
    /// nobody prefers anything.
    #[must_use]
    pub fn score(&self, snapshot: &Snapshot, feasible: &[Row]) -> Option<Vec<i64>> {
        if !self.scores() {
            return None;
        }
        let raw: Vec<i64> = feasible.iter().map(|row| self.preferences.all_at(snapshot, *row).sum()).collect();
        let (min, max) = raw.iter().fold((i64::MAX, i64::MIN), |(min, max), s| (min.min(*s), max.max(*s)));
        // In floating point, truncated: so are upstream's.
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
        let scale = |s: &i64| if max > min { (100.0 * ((s - min) as f64 / (max - min) as f64)) as i64 } else { 0 };
        Some(raw.iter().map(scale).collect())
    }
}
