//! PodTopologySpread: skew between topology domains, as a filter (`DoNotSchedule`) and as a score (`ScheduleAnyway`).

use crate::filter::Rejection;
use crate::pod::PodInfo;
use crate::snapshot::{Row, Snapshot, ValueId};
use gantry_api::core::placement;
use gantry_api::k8s_openapi::api::core::v1::TopologySpreadConstraint;
use gantry_api::meta::labels::Selector;
use std::collections::{HashMap, HashSet};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The constraints a pod without its own gets from the system: soft, over zones and hosts, among the pods of the same
/// Service or controller. `None` where nothing owns the pod.
#[derive(Clone, Debug, Default)]
pub struct DefaultConstraints(pub Option<Selector>);

#[derive(Clone, Debug)]
struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: i64,
    selector: Selector,
    honor_affinity: bool,
    honor_taints: bool,
    /// Matching pods per domain.
    counts: HashMap<ValueId, i64>,
    /// Whether the incoming pod itself matches.
    matches_self: bool,
}

impl Constraint {
    fn new(c: &TopologySpreadConstraint, pod: &PodInfo) -> Self {
        // matchLabelKeys were merged into the selector when the pod was created; validation refused what cannot compile.
        let selector = Selector::from_label_selector(c.label_selector.as_ref()).unwrap_or_else(|_| Selector::nothing());
        Self {
            key: c.topology_key.clone(),
            max_skew: i64::from(c.max_skew),
            min_domains: i64::from(c.min_domains.unwrap_or(1)),
            matches_self: selector.matches(pod.labels()),
            selector,
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
            counts: HashMap::new(),
        }
    }

    fn soft(key: &str, max_skew: i64, selector: &Selector, pod: &PodInfo) -> Self {
        Self {
            key: key.into(),
            max_skew,
            min_domains: 1,
            matches_self: selector.matches(pod.labels()),
            selector: selector.clone(),
            honor_affinity: true,
            honor_taints: false,
            counts: HashMap::new(),
        }
    }

    fn admits(&self, snapshot: &Snapshot, row: Row, pod: &PodInfo) -> bool {
        let spec = pod.spec();
        if self.honor_affinity && !placement::admits(spec, &snapshot.labels[row], &snapshot.names[row]) {
            return false;
        }
        !self.honor_taints
            || snapshot.taints[row]
                .iter()
                .filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute")
                .all(|taint| spec.tolerations.iter().flatten().any(|t| placement::tolerates(t, taint)))
    }

    fn counts_pod(&self, other: &PodInfo, namespace: &str) -> bool {
        !other.is_terminating() && other.namespace == namespace && self.selector.matches(other.labels())
    }

    fn matching_on(&self, snapshot: &Snapshot, row: Row, namespace: &str) -> i64 {
        let n = snapshot.pods[row].iter().filter(|p| self.counts_pod(p, namespace)).count();
        i64::try_from(n).unwrap_or(i64::MAX)
    }

    fn minimum(&self) -> i64 {
        if i64::try_from(self.counts.len()).unwrap_or(i64::MAX) < self.min_domains {
            return 0;
        }
        self.counts.values().copied().min().unwrap_or(0)
    }
}

/// Counts of all constraints of one pod.
#[derive(Clone, Debug, Default)]
pub struct SpreadState {
    namespace: String,
    hard: Vec<Constraint>,
    soft: Vec<Constraint>,
    /// Whether nodes lacking one of the soft keys are left out of the score (not for system defaults).
    require_all_keys: bool,
}

impl SpreadState {
    /// Counts matching pods per domain for the hard constraints.
    #[must_use]
    pub fn new(snapshot: &Snapshot, pod: &PodInfo, defaults: &DefaultConstraints) -> Self {
        let own = pod.spec().topology_spread_constraints.as_deref().unwrap_or_default();
        let of = |when: &str| -> Vec<Constraint> {
            own.iter().filter(|c| c.when_unsatisfiable == when).map(|c| Constraint::new(c, pod)).collect()
        };
        let mut state = Self {
            namespace: pod.namespace.clone(),
            hard: of("DoNotSchedule"),
            soft: of("ScheduleAnyway"),
            require_all_keys: true,
        };
        if own.is_empty()
            && let Some(selector) = &defaults.0
        {
            state.soft = vec![Constraint::soft(HOSTNAME, 3, selector, pod), Constraint::soft(ZONE, 5, selector, pod)];
            state.require_all_keys = false;
        }
        if !state.hard.is_empty() {
            for row in snapshot.node_rows() {
                if state.hard.iter().any(|c| snapshot.label_value(&c.key, row) == 0) {
                    continue;
                }
                for constraint in &mut state.hard {
                    if constraint.admits(snapshot, row, pod) {
                        let n = constraint.matching_on(snapshot, row, &state.namespace);
                        *constraint.counts.entry(snapshot.label_value(&constraint.key, row)).or_default() += n;
                    }
                }
            }
        }
        state
    }

    /// Counts `other` in or out at a node.
    pub fn adjust(&mut self, snapshot: &Snapshot, row: Row, other: &PodInfo, sign: i64) {
        for constraint in &mut self.hard {
            if constraint.counts_pod(other, &self.namespace)
                && let Some(n) = constraint.counts.get_mut(&snapshot.label_value(&constraint.key, row))
            {
                *n += sign;
            }
        }
    }

    /// The hard constraints.
    ///
    /// # Errors
    /// Where placing the pod here would exceed a maximum skew, or the node lacks the key.
    pub fn filter(&self, snapshot: &Snapshot, row: Row) -> Result<(), Rejection> {
        for constraint in &self.hard {
            let domain = snapshot.label_value(&constraint.key, row);
            if domain == 0 {
                return Err(Rejection {
                    plugin: "PodTopologySpread",
                    reasons: vec![
                        "node(s) didn't match pod topology spread constraints (missing required label)".into(),
                    ],
                    unresolvable: true,
                });
            }
            let here = constraint.counts.get(&domain).copied().unwrap_or(0);
            let skew = here + i64::from(constraint.matches_self) - constraint.minimum();
            if skew > constraint.max_skew {
                return Err(Rejection {
                    plugin: "PodTopologySpread",
                    reasons: vec!["node(s) didn't match pod topology spread constraints".into()],
                    unresolvable: false,
                });
            }
        }
        Ok(())
    }

    /// Scores the feasible nodes 0–100: fewer matching pods in the node's domains is better. `None` where there are no
    /// soft constraints.
    #[must_use]
    pub fn score(&self, snapshot: &Snapshot, pod: &PodInfo, feasible: &[Row]) -> Option<Vec<i64>> {
        if self.soft.is_empty() {
            return None;
        }
        let lacks_key = |row: Row| self.soft.iter().any(|c| snapshot.label_value(&c.key, row) == 0);
        let ignored: HashSet<Row> =
            feasible.iter().copied().filter(|r| self.require_all_keys && lacks_key(*r)).collect();
        let scored = feasible.len() - ignored.len();
        let mut raw = vec![0.0f64; feasible.len()];
        for constraint in &self.soft {
            let per_node = constraint.key == HOSTNAME;
            let mut domains: HashMap<ValueId, i64> = HashMap::new();
            if !per_node {
                for row in feasible.iter().filter(|r| !ignored.contains(r)) {
                    domains.insert(snapshot.label_value(&constraint.key, *row), 0);
                }
                for row in snapshot.node_rows() {
                    if (self.require_all_keys && lacks_key(row)) || !constraint.admits(snapshot, row, pod) {
                        continue;
                    }
                    if let Some(n) = domains.get_mut(&snapshot.label_value(&constraint.key, row)) {
                        *n += constraint.matching_on(snapshot, row, &self.namespace);
                    }
                }
            }
            let size = if per_node { scored } else { domains.len() };
            // More domains weigh more, so that a constraint over many small domains is not drowned by one over few.
            #[allow(clippy::cast_precision_loss)]
            let weight = ((size + 2) as f64).ln();
            for (i, row) in feasible.iter().enumerate().filter(|(_, r)| !ignored.contains(r)) {
                let value = snapshot.label_value(&constraint.key, *row);
                if value == 0 {
                    continue;
                }
                let count = if per_node {
                    constraint.matching_on(snapshot, *row, &self.namespace)
                } else {
                    domains.get(&value).copied().unwrap_or(0)
                };
                #[allow(clippy::cast_precision_loss)]
                {
                    raw[i] += count as f64 * weight + (constraint.max_skew - 1) as f64;
                }
            }
        }
        #[allow(clippy::cast_possible_truncation)]
        let raw: Vec<i64> = raw.into_iter().map(|s| s.round() as i64).collect();
        let kept = || feasible.iter().zip(&raw).filter(|(r, _)| !ignored.contains(r)).map(|(_, s)| *s);
        let (min, max) = (kept().min().unwrap_or(0), kept().max().unwrap_or(0));
        Some(
            feasible
                .iter()
                .zip(&raw)
                .map(|(row, s)| {
                    if ignored.contains(row) {
                        0
                    } else if max == 0 {
                        100
                    } else {
                        100 * (max + min - s) / max
                    }
                })
                .collect(),
        )
    }
}
