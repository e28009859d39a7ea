//! The decision: which node takes a pod, or why none does. Pure: a snapshot and a pod go in, a row comes out; what is
//! kept between decisions only makes the next one quicker.
//!
//! What depends on a node and its pods alone is kept per class of equal pods and node ([`Local`]); what depends on pods
//! elsewhere is counted per class and topology domain ([`Cycle`]) and stepped as pods come and go. A decision is then a
//! walk over a sample of the nodes that reads a few numbers of each.

use crate::class::{Kept, Local, cross_key, local_key};
use crate::cycle::Cycle;
use crate::devices::PodDevices;
use crate::diagnosis::Diagnosis;
use crate::extender::Asked;
use crate::filter::volumes::PodVolumes;
use crate::filter::{self, Rejection, Usage};
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::score::{Greatest, Parts};
use crate::snapshot::{KeyId, Row, Snapshot, ValueId};
use crate::spread::DefaultConstraints;
use std::collections::HashMap;
use std::sync::Arc;

/// Nodes with the same value of a label, to which a group is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    /// The label; None where no node ever had it.
    pub key: Option<KeyId>,
    /// The value; 0 where a node lacks the label, which makes no domain.
    pub value: ValueId,
}

impl Domain {
    /// No node is in it.
    pub const NOWHERE: Self = Self { key: None, value: 0 };

    /// Whether a node is in it.
    #[must_use]
    pub fn holds(&self, snapshot: &Snapshot, row: Row) -> bool {
        self.value != 0 && self.key.is_some_and(|key| snapshot.value(key, row) == self.value)
    }
}

/// A pod to place, and what its placement depends on besides the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The pod.
    pub pod: &'a Arc<PodInfo>,
    /// Spreading it has by default.
    pub defaults: &'a DefaultConstraints,
    /// Its claims.
    pub volumes: Option<&'a Arc<PodVolumes>>,
    /// Its devices.
    pub devices: Option<&'a Arc<PodDevices>>,
    /// Waiting pods that were promised a node, with its name.
    pub nominated: &'a [(String, Arc<PodInfo>)],
    /// Where its group is confined to.
    pub domain: Option<Domain>,
    /// What extenders said, where they were asked.
    pub asked: Option<&'a Asked>,
}

/// No node takes the pod.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub diagnosis: Diagnosis,
    /// What was counted, for preemption.
    pub cycle: Cycle,
}

/// A feasible node and its scores.
#[derive(Clone, Copy, Debug)]
pub struct Ranked {
    /// The node.
    pub row: Row,
    /// Its scores.
    pub parts: Parts,
}

/// Decides for one profile.
#[derive(Debug)]
pub struct Decider {
    profile: Arc<Profile>,
    locals: Kept<Local>,
    crosses: Kept<Cycle>,
    /// Where the next sample begins.
    next_start: usize,
    feasible: Vec<Row>,
    ranked: Vec<Ranked>,
}

impl Decider {
    /// For a profile; nothing is known yet.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self {
            profile: Arc::new(profile),
            locals: Kept::default(),
            crosses: Kept::default(),
            next_start: 0,
            feasible: Vec::new(),
            ranked: Vec::new(),
        }
    }

    /// The profile.
    #[must_use]
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// The feasible nodes of the last decision with their scores; empty where it was made without scores, because only
    /// one was feasible or one had been promised.
    #[must_use]
    pub fn ranked(&self) -> &[Ranked] {
        &self.ranked
    }

    /// The feasible nodes that the last decision found.
    #[must_use]
    pub fn feasible(&self) -> &[Row] {
        &self.feasible
    }

    /// Chooses the node for a pod. `draw` gives a number below its argument; it decides between equals.
    ///
    /// # Errors
    /// Where no node takes it.
    pub fn decide(
        &mut self,
        snapshot: &Snapshot,
        request: &Request<'_>,
        draw: &mut dyn FnMut(u64) -> u64,
    ) -> Result<Row, Box<Rejected>> {
        let Request { pod, defaults, volumes, devices, nominated, domain, asked } = *request;
        self.feasible.clear();
        self.ranked.clear();
        let profile = self.profile.clone();
        let rows = snapshot.row_count();
        let key = pod.class_key(local_key);
        let local =
            self.locals.get(key, rows, |kept| kept.catch_up(snapshot, pod), || Local::new(snapshot, pod, &profile));
        let own;
        let cross: Option<&mut Cycle> = if looks_across(snapshot, pod, defaults) {
            let make = || Cycle::new(snapshot, pod.clone(), defaults, &profile);
            Some(self.crosses.get(&cross_key(key, pod, defaults), rows, |kept| kept.catch_up(snapshot), make))
        } else {
            None
        };
        // Claims and promised nodes are the pod's own: nothing of them is kept.
        let whole: Option<&Cycle> = if volumes.is_some() || devices.is_some() || !nominated.is_empty() {
            let kept = cross.as_deref().cloned();
            let cycle = kept.unwrap_or_else(|| Cycle::new(snapshot, pod.clone(), defaults, &profile));
            own = cycle.with(snapshot, pod.clone(), volumes.cloned(), devices.cloned());
            Some(&own)
        } else {
            None
        };
        let rivals = rivals_by_row(snapshot, pod, nominated);
        let mut known: Vec<Arc<Rejection>> = Vec::new();
        let elsewhere = domain.map(|domain| {
            let reason = "node(s) didn't match the pod group's topology domain";
            (domain, Arc::new(Rejection::one("TopologyPlacement", reason, true)))
        });
        let mut check = |local: &mut Local, row: Row| -> Result<(), Arc<Rejection>> {
            if let Some(asked) = asked {
                asked.check(&snapshot.names[row])?;
            }
            if let Some((domain, elsewhere)) = &elsewhere
                && !domain.holds(snapshot, row)
            {
                return Err(elsewhere.clone());
            }
            local.check(snapshot, row, pod, &profile)?;
            let rest = match (whole, cross.as_deref()) {
                (Some(cycle), _) => {
                    let by_volumes = cycle.volumes.as_ref().map_or(Ok(()), |claims| {
                        filter::volumes::filter(snapshot, row, claims, cycle.exclusive_conflicts, &profile)
                    });
                    by_volumes.and_then(|()| filter::across(snapshot, row, cycle)).and_then(|()| {
                        match rivals.get(&row) {
                            Some(rivals) => with_rivals(snapshot, row, cycle, rivals),
                            None => Ok(()),
                        }
                    })
                }
                (None, Some(cycle)) => filter::across(snapshot, row, cycle),
                (None, None) => Ok(()),
            };
            rest.map_err(|rejection| match known.iter().find(|r| ***r == rejection) {
                Some(same) => same.clone(),
                None => {
                    known.push(Arc::new(rejection));
                    known[known.len() - 1].clone()
                }
            })
        };
        // The node promised by an earlier preemption comes first.
        if let Some(row) = pod.nominated_node().and_then(|n| snapshot.row(n))
            && check(local, row).is_ok()
        {
            self.feasible.push(row);
            return Ok(row);
        }
        // Whom extenders were asked of is a sample already.
        let enough = if asked.is_some() { usize::MAX } else { profile.sample(snapshot.node_count()) };
        let mut rejections = Vec::new();
        let mut looked_at = 0;
        let start = if rows == 0 { 0 } else { self.next_start % rows };
        for row in (start..rows).chain(0..start) {
            looked_at += 1;
            if !snapshot.live[row] {
                continue;
            }
            match check(local, row) {
                Ok(()) => self.feasible.push(row),
                Err(rejection) => rejections.push((row, rejection)),
            }
            if self.feasible.len() >= enough {
                break;
            }
        }
        self.next_start = if rows == 0 { 0 } else { (start + looked_at) % rows };
        match self.feasible.as_slice() {
            [] => {
                let diagnosis = Diagnosis { nodes: snapshot.node_count(), rejections, ..Default::default() };
                let cycle = match (whole, cross.as_deref()) {
                    (Some(cycle), _) => cycle.clone(),
                    (None, Some(cycle)) => cycle.clone().with(snapshot, pod.clone(), None, None),
                    (None, None) => Cycle::new(snapshot, pod.clone(), defaults, &profile),
                };
                Err(Box::new(Rejected { diagnosis, cycle }))
            }
            [only] => Ok(*only),
            many => {
                rank(snapshot, local, cross.as_deref(), &profile, many, &mut self.ranked);
                if let Some(devices) = devices.filter(|d| profile.weights.devices > 0 && d.scores()) {
                    rank_devices(devices, profile.weights.devices, &mut self.ranked);
                }
                if let Some(asked) = asked {
                    let score = |r: &Ranked| asked.kept.get(&snapshot.names[r.row]).copied().unwrap_or(0);
                    self.ranked.iter_mut().for_each(|r| r.parts.extenders = score(r));
                }
                Ok(best(&self.ranked, draw))
            }
        }
    }
}

/// Whether anything of the pod's placement depends on pods elsewhere.
fn looks_across(snapshot: &Snapshot, pod: &PodInfo, defaults: &DefaultConstraints) -> bool {
    snapshot.affine_pods() > 0
        || defaults.selector.is_some()
        || pod.spec().topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty())
        || !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred.is_empty())
}

type Rivals<'a> = Vec<&'a Arc<PodInfo>>;

/// Pods of at least the same priority that were promised a node.
fn rivals_by_row<'a>(
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominated: &'a [(String, Arc<PodInfo>)],
) -> HashMap<Row, Rivals<'a>> {
    let mut out: HashMap<Row, Rivals<'a>> = HashMap::new();
    for (node, other) in nominated.iter().filter(|(_, p)| p.uid != pod.uid && p.priority >= pod.priority) {
        if let Some(row) = snapshot.row(node) {
            out.entry(row).or_default().push(other);
        }
    }
    out
}

/// Whether the pod fits besides those that were promised the node. It must fit with and without them, since they may
/// never come.
fn with_rivals(snapshot: &Snapshot, row: Row, cycle: &Cycle, rivals: &Rivals<'_>) -> Result<(), Rejection> {
    let (mut with, mut usage) = (cycle.clone(), Usage::of(snapshot, row));
    for rival in rivals {
        with.add(snapshot, row, rival);
        usage.add(rival);
    }
    filter::run(snapshot, row, &with, Some(&usage))
}

fn rank(
    snapshot: &Snapshot,
    local: &Local,
    cross: Option<&Cycle>,
    profile: &Profile,
    feasible: &[Row],
    out: &mut Vec<Ranked>,
) {
    let weights = &profile.weights;
    let mut greatest = Greatest::default();
    feasible.iter().for_each(|row| greatest.note(local.raw(*row)));
    let of = |row: &Row| Ranked { row: *row, parts: Parts::of(local.raw(*row), greatest, weights) };
    out.extend(feasible.iter().map(of));
    let Some(cycle) = cross else { return };
    if weights.spread > 0
        && let Some(scores) = cycle.spread.score(snapshot, feasible)
    {
        out.iter_mut().zip(scores).for_each(|(r, s)| r.parts.spread = s * weights.spread);
    }
    if weights.pod_affinity > 0
        && let Some(scores) = cycle.affinity.score(snapshot, feasible)
    {
        out.iter_mut().zip(scores).for_each(|(r, s)| r.parts.pod_affinity = s * weights.pod_affinity);
    }
}

/// Brings what the devices score to 0–100 among the feasible nodes.
fn rank_devices(devices: &PodDevices, weight: i64, ranked: &mut [Ranked]) {
    let raw: Vec<i64> = ranked.iter().map(|r| devices.score(r.row)).collect();
    let most = raw.iter().copied().max().unwrap_or(0).max(1);
    ranked.iter_mut().zip(raw).for_each(|(r, score)| r.parts.devices = score * 100 / most * weight);
}

fn best(ranked: &[Ranked], draw: &mut dyn FnMut(u64) -> u64) -> Row {
    let (mut top, mut equals) = (i64::MIN, 0u64);
    for r in ranked {
        let total = r.parts.total();
        if total > top {
            (top, equals) = (total, 1);
        } else if total == top {
            equals += 1;
        }
    }
    let pick = usize::try_from(draw(equals)).unwrap_or(0);
    ranked.iter().filter(|r| r.parts.total() == top).nth(pick).map_or(0, |r| r.row)
}
