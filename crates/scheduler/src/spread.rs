//! PodTopologySpread: skew between topology domains, as a filter (`DoNotSchedule`) and as a score (`ScheduleAnyway`).

use crate::filter::Rejection;
use crate::pod::{Occupant, PodInfo};
use crate::reach::Reach;
use crate::snapshot::{KeyId, Row, Snapshot, ValueId};
use gantry_api::k8s_openapi::api::core::v1::TopologySpreadConstraint;
use gantry_api::meta::labels::Selector;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// The constraints a pod without its own gets from the profile, among the pods of the same Service or controller. Empty
/// where nothing owns the pod.
#[derive(Clone, Debug, Default)]
pub struct DefaultConstraints {
    /// The constraints, without selectors.
    pub constraints: Vec<TopologySpreadConstraint>,
    /// Their selector.
    pub selector: Option<Selector>,
    /// Whether they are the system's own, which count nodes that lack a key too.
    pub system: bool,
}

/// A domain in which no eligible node is.
const NO_DOMAIN: i64 = -1;

#[derive(Clone, Debug)]
struct Constraint {
    name: String,
    /// None where no node has the key.
    key: Option<KeyId>,
    max_skew: i64,
    min_domains: i64,
    selector: Selector,
    honor_affinity: bool,
    honor_taints: bool,
    /// Whether the incoming pod itself matches.
    matches_self: bool,
    /// Matching pods per domain, or that there is no such domain.
    counts: Vec<i64>,
    domains: i64,
    /// The smallest count, and how many domains have it.
    least: (i64, usize),
    /// Matching pods per row, where each node is a domain of its own and the constraint only scores.
    per_row: Vec<i64>,
}

impl Constraint {
    fn new(c: &TopologySpreadConstraint, selector: Selector, pod: &PodInfo, snapshot: &Snapshot) -> Self {
        Self {
            key: snapshot.key(&c.topology_key),
            name: c.topology_key.clone(),
            max_skew: i64::from(c.max_skew),
            min_domains: i64::from(c.min_domains.unwrap_or(1)),
            matches_self: selector.matches(pod.labels()),
            selector,
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
            counts: Vec::new(),
            domains: 0,
            least: (0, 0),
            per_row: Vec::new(),
        }
    }

    fn value(&self, snapshot: &Snapshot, row: Row) -> ValueId {
        self.key.map_or(0, |k| snapshot.value(k, row))
    }

    /// Whether pods on the node count (`nodeAffinityPolicy`, `nodeTaintsPolicy`).
    fn includes(&self, snapshot: &Snapshot, row: Row, reach: &Reach) -> bool {
        (!self.honor_affinity || reach.admits(snapshot, row)) && (!self.honor_taints || reach.tolerates(snapshot, row))
    }

    fn counts_pod(&self, other: &Occupant, namespace: &str) -> bool {
        !other.is_terminating() && other.namespace() == namespace && self.selector.matches(other.labels())
    }

    fn matching_on(&self, snapshot: &Snapshot, row: Row, namespace: &str) -> i64 {
        let n = snapshot.pods[row].iter().filter(|p| self.counts_pod(p, namespace)).count();
        i64::try_from(n).unwrap_or(i64::MAX)
    }

    fn count(&self, domain: ValueId) -> i64 {
        self.counts.get(domain as usize).copied().unwrap_or(NO_DOMAIN)
    }

    /// Adds a node with so many matching pods.
    fn include(&mut self, domain: ValueId, pods: i64) {
        let at = domain as usize;
        if self.counts.len() <= at {
            self.counts.resize(at + 1, NO_DOMAIN);
        }
        if self.counts[at] == NO_DOMAIN {
            self.counts[at] = 0;
            self.domains += 1;
        }
        self.counts[at] += pods;
    }

    fn find_least(&mut self) {
        let present = || self.counts.iter().copied().filter(|n| *n != NO_DOMAIN);
        let least = present().min().unwrap_or(0);
        self.least = (least, present().filter(|n| *n == least).count());
    }

    /// One matching pod more or less in a domain.
    fn step(&mut self, domain: ValueId, sign: i64) {
        let Some(n) = self.counts.get_mut(domain as usize).filter(|n| **n != NO_DOMAIN) else { return };
        let old = *n;
        *n += sign;
        let (least, having) = &mut self.least;
        if old + sign < *least {
            self.least = (old + sign, 1);
        } else if old + sign == *least {
            *having += 1;
        } else if old == *least {
            *having -= 1;
            if *having == 0 {
                self.find_least();
            }
        }
    }

    /// How many domains the rows are in; rows without the label are one together.
    fn domains_among(&self, snapshot: &Snapshot, rows: impl Iterator<Item = Row>) -> usize {
        let mut seen = vec![false; self.key.map_or(1, |k| snapshot.values(k).len())];
        rows.filter(|row| !std::mem::replace(&mut seen[self.value(snapshot, *row) as usize], true)).count()
    }

    fn minimum(&self) -> i64 {
        if self.domains < self.min_domains { 0 } else { self.least.0 }
    }
}

/// A constraint that a node would violate.
#[derive(Clone, Debug)]
pub struct Excess {
    /// The topology key.
    pub key: String,
    /// The skew there would be.
    pub skew: i64,
    /// The greatest allowed.
    pub max_skew: i64,
}

/// Counts of all constraints of one pod.
#[derive(Clone, Debug, Default)]
pub struct SpreadState {
    namespace: String,
    hard: Vec<Constraint>,
    soft: Vec<Constraint>,
    /// Whether nodes lacking one of the soft keys are left out of the score (not for the system's defaults).
    require_all_keys: bool,
}

impl SpreadState {
    /// Counts matching pods per domain, where there are constraints.
    #[must_use]
    pub fn new(snapshot: &Snapshot, pod: &PodInfo, defaults: &DefaultConstraints, reach: &Reach) -> Self {
        let own = pod.spec().topology_spread_constraints.as_deref().unwrap_or_default();
        let mut state = Self { namespace: pod.namespace().to_owned(), require_all_keys: true, ..Self::default() };
        let mut add = |c: &TopologySpreadConstraint, selector: Selector| {
            let kind = if c.when_unsatisfiable == "DoNotSchedule" { &mut state.hard } else { &mut state.soft };
            kind.push(Constraint::new(c, selector, pod, snapshot));
        };
        for c in own {
            // matchLabelKeys were merged into the selector when the pod was created; validation refused what cannot
            // compile.
            let selector = Selector::from_label_selector(c.label_selector.as_ref());
            add(c, selector.unwrap_or_else(|_| Selector::nothing()));
        }
        if own.is_empty()
            && let Some(selector) = &defaults.selector
        {
            defaults.constraints.iter().for_each(|c| add(c, selector.clone()));
            state.require_all_keys = !defaults.system;
        }
        if !state.is_empty() {
            snapshot.node_rows().for_each(|row| state.include(snapshot, row, reach));
            state.hard.iter_mut().for_each(Constraint::find_least);
        }
        state
    }

    /// Whether the pod has no constraints.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hard.is_empty() && self.soft.is_empty()
    }

    fn include(&mut self, snapshot: &Snapshot, row: Row, reach: &Reach) {
        if self.hard.iter().all(|c| c.value(snapshot, row) != 0) {
            for c in &mut self.hard {
                if c.includes(snapshot, row, reach) {
                    let n = c.matching_on(snapshot, row, &self.namespace);
                    c.include(c.value(snapshot, row), n);
                }
            }
        }
        let has_all = self.soft.iter().all(|c| c.value(snapshot, row) != 0);
        for c in &mut self.soft {
            let per_node = c.name == HOSTNAME;
            let counted = per_node || (has_all || !self.require_all_keys) && c.includes(snapshot, row, reach);
            if !counted {
                continue;
            }
            let n = c.matching_on(snapshot, row, &self.namespace);
            if per_node {
                if c.per_row.len() <= row {
                    c.per_row.resize(row + 1, 0);
                }
                c.per_row[row] = n;
            } else if c.value(snapshot, row) != 0 {
                c.include(c.value(snapshot, row), n);
            }
        }
    }

    /// Counts `other` in or out at a node.
    pub fn adjust(&mut self, snapshot: &Snapshot, row: Row, other: &Occupant, sign: i64, reach: &Reach) {
        let has_all = |constraints: &[Constraint]| constraints.iter().all(|c| c.value(snapshot, row) != 0);
        if has_all(&self.hard) {
            for c in &mut self.hard {
                if c.counts_pod(other, &self.namespace) && c.includes(snapshot, row, reach) {
                    c.step(c.value(snapshot, row), sign);
                }
            }
        }
        let has_all = !self.require_all_keys || has_all(&self.soft);
        for c in &mut self.soft {
            if !c.counts_pod(other, &self.namespace) {
                continue;
            }
            if c.name == HOSTNAME {
                if let Some(n) = c.per_row.get_mut(row) {
                    *n += sign;
                }
            } else if has_all && c.includes(snapshot, row, reach) {
                let domain = c.value(snapshot, row) as usize;
                if let Some(n) = c.counts.get_mut(domain).filter(|n| **n != NO_DOMAIN) {
                    *n += sign;
                }
            }
        }
    }

    /// The hard constraints.
    ///
    /// # Errors
    /// Where placing the pod here would exceed a maximum skew, or the node lacks the key.
    pub fn filter(&self, snapshot: &Snapshot, row: Row) -> Result<(), Rejection> {
        for c in &self.hard {
            let domain = c.value(snapshot, row);
            if domain == 0 {
                return Err(Rejection::one(
                    "PodTopologySpread",
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                    true,
                ));
            }
            if c.count(domain).max(0) + i64::from(c.matches_self) - c.minimum() > c.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Rejection::one("PodTopologySpread", reason, false));
            }
        }
        Ok(())
    }

    /// The hard constraints that the node would violate, by how much.
    #[must_use]
    pub fn excesses(&self, snapshot: &Snapshot, row: Row) -> Vec<Excess> {
        let of = |c: &Constraint| {
            let skew = c.count(c.value(snapshot, row)).max(0) + i64::from(c.matches_self) - c.minimum();
            (skew > c.max_skew).then(|| Excess { key: c.name.clone(), skew, max_skew: c.max_skew })
        };
        self.hard.iter().filter(|c| c.value(snapshot, row) != 0).filter_map(of).collect()
    }

    /// The topology keys of hard constraints that the node lacks.
    #[must_use]
    pub fn missing_keys(&self, snapshot: &Snapshot, row: Row) -> Vec<String> {
        self.hard.iter().filter(|c| c.value(snapshot, row) == 0).map(|c| c.name.clone()).collect()
    }

    /// Whether [`SpreadState::score`] has anything to say.
    #[must_use]
    pub fn scores(&self) -> bool {
        !self.soft.is_empty()
    }

    /// Scores the feasible nodes 0–100: fewer matching pods in the node's domains is better. `None` where there are no
    /// soft constraints.
    #[must_use]
    pub fn score(&self, snapshot: &Snapshot, feasible: &[Row]) -> Option<Vec<i64>> {
        if !self.scores() {
            return None;
        }
        let ignored: Vec<bool> = feasible
            .iter()
            .map(|row| self.require_all_keys && self.soft.iter().any(|c| c.value(snapshot, *row) == 0))
            .collect();
        let scored = ignored.iter().filter(|i| !**i).count();
        let kept =
            || feasible.iter().zip(&ignored).enumerate().filter(|(_, (_, i))| !**i).map(|(n, (row, _))| (n, *row));
        let mut raw = vec![0.0f64; feasible.len()];
        for c in &self.soft {
            let per_node = c.name == HOSTNAME;
            let size = if per_node { scored } else { c.domains_among(snapshot, kept().map(|(_, row)| row)) };
            // More domains weigh more, so that a constraint over many small domains is not drowned by one over few.
            #[allow(clippy::cast_precision_loss)]
            let weight = ((size + 2) as f64).ln();
            for (n, row) in kept() {
                let value = c.value(snapshot, row);
                if value == 0 {
                    continue;
                }
                let count = if per_node { c.per_row.get(row).copied().unwrap_or(0) } else { c.count(value).max(0) };
                #[allow(clippy::cast_precision_loss)]
                {
                    raw[n] += count as f64 * weight + (c.max_skew - 1) as f64;
                }
            }
        }
        #[allow(clippy::cast_possible_truncation)]
        let raw: Vec<i64> = raw.into_iter().map(|s| s.round() as i64).collect();
        let (min, max) = kept().fold((i64::MAX, 0), |(min, max), (n, _)| (raw[n].min(min), raw[n].max(max)));
        let scale = |(s, ignored): (&i64, &bool)| match (ignored, max) {
            (true, _) => 0,
            (false, 0) => 100,
            (false, _) => 100 * (max + min - s) / max,
        };
        Some(raw.iter().zip(&ignored).map(scale).collect())
    }
}
