//! DefaultPreemption: find the node where evicting pods of lower priority hurts least.

use crate::cycle::Cycle;
use crate::diagnosis::Diagnosis;
use crate::filter::{self, Usage};
use crate::pod::{Occupant, PodInfo};
use crate::snapshot::{Row, Snapshot};
use gantry_api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use gantry_api::meta::labels::Selector;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A node and the pods to evict from it.
#[derive(Debug)]
pub struct Candidate {
    /// The node.
    pub row: Row,
    /// Victims, by falling priority.
    pub victims: Vec<Arc<Occupant>>,
    /// Victims whose disruption budget would be violated.
    pub budget_violations: usize,
}

/// A disruption budget, compiled.
pub struct Budget {
    namespace: String,
    selector: Selector,
    allowed: i32,
    disrupted: Vec<String>,
}

impl Budget {
    /// From the object; `None` where it selects nothing.
    #[must_use]
    pub fn new(pdb: &PodDisruptionBudget) -> Option<Self> {
        let selector = Selector::from_label_selector(pdb.spec.as_ref()?.selector.as_ref()).ok()?;
        let status = pdb.status.as_ref();
        Some(Self {
            namespace: pdb.metadata.namespace.clone().unwrap_or_default(),
            selector,
            allowed: status.and_then(|s| s.disruptions_allowed).unwrap_or(0),
            disrupted: status
                .and_then(|s| s.disrupted_pods.as_ref())
                .map(|d| d.keys().cloned().collect())
                .unwrap_or_default(),
        })
    }
}

impl Budget {
    fn covers(&self, pod: &Occupant) -> bool {
        self.namespace == pod.namespace()
            && !self.selector.is_empty()
            && self.selector.matches(pod.labels())
            && !self.disrupted.iter().any(|name| name == pod.name())
    }

    /// Counts evictions that are planned already.
    pub fn spend(&mut self, victims: &[Arc<Occupant>]) {
        let spent = victims.iter().filter(|v| self.covers(v)).count();
        self.allowed = self.allowed.saturating_sub(i32::try_from(spent).unwrap_or(i32::MAX));
    }
}

/// Whether a pod may preempt at all that was promised this node, if any; the reason where not. `diagnosis` is of the attempt
/// that just failed.
///
/// # Errors
/// The reason, as events word it.
pub fn eligible(
    snapshot: &Snapshot,
    pod: &PodInfo,
    promised: Option<&str>,
    diagnosis: &Diagnosis,
) -> Result<(), &'static str> {
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    let Some(row) = promised.and_then(|n| snapshot.row(n)) else { return Ok(()) };
    // A node that cannot take it any more, whoever leaves, is not waited for.
    let hopeless = diagnosis.rejections.of(row).is_some_and(|rejection| rejection.unresolvable);
    if !hopeless && snapshot.pods[row].iter().any(|p| p.priority < pod.priority && p.is_giving_way()) {
        return Err("not eligible due to a terminating pod on the nominated node.");
    }
    Ok(())
}

/// The best of enough candidates among the nodes that rejected the pod; fills in why there is none.
#[must_use]
pub fn find(
    snapshot: &Snapshot,
    cycle: &mut Cycle,
    diagnosis: &mut Diagnosis,
    budgets: &[Budget],
    nominated: &dyn Fn(&str) -> Vec<Arc<PodInfo>>,
) -> Option<Candidate> {
    find_all(snapshot, cycle, diagnosis, budgets, nominated).into_iter().next()
}

/// Enough candidates among the nodes that rejected the pod, the best first; fills in why there is none.
#[must_use]
pub fn find_all(
    snapshot: &Snapshot,
    cycle: &mut Cycle,
    diagnosis: &mut Diagnosis,
    budgets: &[Budget],
    nominated: &dyn Fn(&str) -> Vec<Arc<PodInfo>>,
) -> Vec<Candidate> {
    let enough = (diagnosis.nodes * cycle.profile.candidates_percentage / 100).max(cycle.profile.candidates_min);
    let mut found: Vec<Candidate> = Vec::new();
    for (row, rejection) in diagnosis.rejections.iter() {
        if rejection.unresolvable {
            continue;
        }
        if let Some(candidate) = victims_on(snapshot, row, cycle, budgets, &nominated(&snapshot.names[row])) {
            found.push(candidate);
            if found.len() >= enough {
                break;
            }
        }
    }
    diagnosis.preemption = if found.is_empty() { hopeless(diagnosis) } else { BTreeMap::new() };
    found.sort_by_cached_key(badness);
    found
}

/// Why evictions do not help anywhere, with the number of nodes of each reason.
pub(crate) fn hopeless(diagnosis: &Diagnosis) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for (rejection, nodes) in diagnosis.rejections.kinds() {
        let reason = if rejection.unresolvable {
            "Preemption is not helpful for scheduling"
        } else {
            "No preemption victims found for incoming pod"
        };
        *reasons.entry(reason.to_owned()).or_default() += nodes;
    }
    reasons
}

/// How bad it is to make room somewhere; see [`badness`].
pub(crate) type Badness = (usize, i32, i64, usize, Reverse<i64>);

/// Smaller is better: budget violations, then the highest priority hurt, the sum of priorities, the number of victims,
/// and last the node whose most important victims started latest.
pub(crate) fn badness(c: &Candidate) -> Badness {
    let highest = c.victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    // Shifted so that many pods of low negative priority do not look better than few.
    let sum = c.victims.iter().map(|v| i64::from(v.priority) + (1 << 31)).sum();
    let earliest = c.victims.iter().filter(|v| v.priority == highest).map(|v| v.started()).min().unwrap_or(0);
    (c.budget_violations, highest, sum, c.victims.len(), Reverse(earliest))
}

/// The pods to evict from one node, where that helps. The cycle is as it was when this returns.
pub fn victims_on(
    snapshot: &Snapshot,
    row: Row,
    cycle: &mut Cycle,
    budgets: &[Budget],
    nominated: &[Arc<PodInfo>],
) -> Option<Candidate> {
    let pod = cycle.pod.clone();
    let potential: Vec<Arc<Occupant>> =
        snapshot.pods[row].iter().filter(|p| p.priority < pod.priority).cloned().collect();
    if potential.is_empty() {
        return None;
    }
    let usage = Usage::of(snapshot, row);
    let mut what_if = WhatIf { snapshot, row, usage, cycle, added: Vec::new(), removed: Vec::new() };
    nominated.iter().filter(|n| n.priority >= pod.priority).for_each(|rival| what_if.add(&rival.occupant));
    potential.iter().for_each(|victim| what_if.remove(victim));
    let found = if what_if.fits() { Some(spare(&mut what_if, potential, budgets)) } else { None };
    what_if.undo();
    let (mut victims, budget_violations) = found?;
    if victims.is_empty() {
        return None;
    }
    victims.sort_by_key(|p| (Reverse(p.priority), p.started()));
    Some(Candidate { row, victims, budget_violations })
}

/// A node with other pods on it than there are.
struct WhatIf<'a> {
    snapshot: &'a Snapshot,
    row: Row,
    usage: Usage,
    cycle: &'a mut Cycle,
    added: Vec<Arc<Occupant>>,
    removed: Vec<Arc<Occupant>>,
}

impl WhatIf<'_> {
    fn add(&mut self, pod: &Arc<Occupant>) {
        self.cycle.add(self.snapshot, self.row, pod);
        self.usage.add(pod);
        match self.removed.iter().position(|p| p.uid == pod.uid) {
            Some(at) => drop(self.removed.swap_remove(at)),
            None => self.added.push(pod.clone()),
        }
    }

    fn remove(&mut self, pod: &Arc<Occupant>) {
        self.cycle.remove(self.snapshot, self.row, pod);
        self.usage.remove(pod);
        match self.added.iter().position(|p| p.uid == pod.uid) {
            Some(at) => drop(self.added.swap_remove(at)),
            None => self.removed.push(pod.clone()),
        }
    }

    fn fits(&self) -> bool {
        filter::run(self.snapshot, self.row, self.cycle, Some(&self.usage)).is_ok()
    }

    fn undo(self) {
        self.added.iter().for_each(|p| self.cycle.remove(self.snapshot, self.row, p));
        self.removed.iter().for_each(|p| self.cycle.add(self.snapshot, self.row, p));
    }
}

/// Takes back as many evictions as possible: first of those whose budget would be violated, the most important first.
/// Returns who is left, and how many of them violate a budget.
fn spare(
    what_if: &mut WhatIf<'_>,
    mut potential: Vec<Arc<Occupant>>,
    budgets: &[Budget],
) -> (Vec<Arc<Occupant>>, usize) {
    potential.sort_by_key(|p| (Reverse(p.priority), p.started()));
    let mut allowed: Vec<i32> = budgets.iter().map(|b| b.allowed).collect();
    let (violating, other): (Vec<_>, Vec<_>) = potential.into_iter().partition(|p| {
        let mut violates = false;
        for (budget, left) in budgets.iter().zip(&mut allowed) {
            if budget.covers(p) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    });
    let mut victims = Vec::new();
    let mut budget_violations = 0;
    for (candidates, violates) in [(violating, true), (other, false)] {
        for candidate in candidates {
            what_if.add(&candidate);
            if !what_if.fits() {
                what_if.remove(&candidate);
                budget_violations += usize::from(violates);
                victims.push(candidate);
            }
        }
    }
    (victims, budget_violations)
}
