//! The decision: which node takes a pod, or why none does. Pure: a snapshot and a pod go in, a row comes out; what is
//! kept between decisions only makes the next one quicker.
//!
//! What depends on a node and its pods alone is kept per class of equal pods and node ([`Local`]); what depends on pods
//! elsewhere is counted per class and topology domain ([`Cycle`]) and stepped as pods come and go. Where scores depend
//! on nodes alone, those of a class are kept in their order, and a decision takes the first that everything else allows:
//! what it costs does not grow with the cluster. Otherwise it is a walk over a sample of the nodes that reads a few
//! numbers of each.

use crate::class::{Kept, Local, cross_key, local_key};
use crate::cycle::Cycle;
use crate::devices::PodDevices;
use crate::diagnosis::{Diagnosis, Rejections};
use crate::evictions::Evictions;
use crate::extender::Asked;
use crate::filter::volumes::PodVolumes;
use crate::filter::{self, Rejection, Usage};
use crate::pod::PodInfo;
use crate::preempt::{self, Budget, Candidate};
use crate::profile::Profile;
use crate::promises::Promises;
use crate::reach::Reach;
use crate::score::{Greatest, Parts};
use crate::snapshot::{KeyId, Row, Snapshot, ValueId};
use crate::spread::DefaultConstraints;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

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
    /// Waiting pods that were promised a node…
    pub promises: &'a Promises,
    /// …of which these, those of its group, are not in its way.
    pub fellows: &'a [Arc<PodInfo>],
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
    /// Whether each node's verdict came of the node and its pods alone, and of those that were promised it.
    pub(crate) alone: bool,
}

impl Rejected {
    /// With what preemption needs; evictions are then looked for on all nodes.
    #[must_use]
    pub fn new(diagnosis: Diagnosis, cycle: Cycle) -> Self {
        Self { diagnosis, cycle, alone: false }
    }
}

/// A feasible node and its scores.
#[derive(Clone, Copy, Debug)]
pub struct Ranked {
    /// The node.
    pub row: Row,
    /// Its scores.
    pub parts: Parts,
}

/// Nodes up to which all are looked at each time: that is as quick, and tells more.
const FEW: usize = 100;

/// Decides for one profile.
#[derive(Debug)]
pub struct Decider {
    profile: Arc<Profile>,
    locals: Kept<Local>,
    crosses: Kept<Cycle>,
    evictions: Kept<Evictions>,
    /// More nodes than this are kept in order.
    few: usize,
    /// Where the next sample begins.
    next_start: usize,
    feasible: Vec<Row>,
    ranked: Vec<Ranked>,
    /// How long the last decision took to rank nodes; None where it did not.
    scoring: Option<Duration>,
}

impl Decider {
    /// For a profile; nothing is known yet.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self {
            profile: Arc::new(profile),
            locals: Kept::default(),
            crosses: Kept::default(),
            evictions: Kept::default(),
            few: FEW,
            next_start: 0,
            feasible: Vec::new(),
            ranked: Vec::new(),
            scoring: None,
        }
    }

    /// With up to so many nodes every decision looks at a sample of them, so that [`Decider::feasible`] and
    /// [`Decider::ranked`] tell of all of it. Of more, nodes are kept in order where that can be done.
    #[must_use]
    pub fn sampling_up_to(mut self, nodes: usize) -> Self {
        self.few = nodes;
        self
    }

    /// The profile.
    #[must_use]
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// The feasible nodes of the last decision with their scores; empty where it was made without scores, because only
    /// one was feasible, one had been promised or nodes were in order.
    #[must_use]
    pub fn ranked(&self) -> &[Ranked] {
        &self.ranked
    }

    /// The feasible nodes that the last decision found; only the chosen one where nodes were in order.
    #[must_use]
    pub fn feasible(&self) -> &[Row] {
        &self.feasible
    }

    /// How long the last decision took to rank nodes; None where there was nothing to rank.
    #[must_use]
    pub fn scoring(&self) -> Option<Duration> {
        self.scoring
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
        let Request { pod, defaults, volumes, devices, domain, asked, .. } = *request;
        self.feasible.clear();
        self.ranked.clear();
        self.scoring = None;
        let profile = &self.profile;
        let rows = snapshot.row_count();
        let key = pod.class_key(local_key);
        let local =
            self.locals.get(key, rows, |kept| kept.catch_up(snapshot, pod), || Local::new(snapshot, pod, profile));
        let cross: Option<&Cycle> = if looks_across(snapshot, pod, defaults) {
            let make = || Cycle::new(snapshot, pod.clone(), defaults, profile);
            Some(self.crosses.get(&cross_key(key, pod, defaults), rows, |kept| kept.catch_up(snapshot), make))
        } else {
            None
        };
        // Claims are the pod's own: nothing of them is kept.
        let own = (volumes.is_some() || devices.is_some()).then(|| {
            let cycle = cross.cloned().unwrap_or_else(|| Cycle::new(snapshot, pod.clone(), defaults, profile));
            cycle.with(snapshot, pod.clone(), volumes.cloned(), devices.cloned())
        });
        let reach = local.reach().clone();
        let beyond = Beyond { snapshot, request, profile, reach, cycle: own.as_ref().or(cross) };
        // The node promised by an earlier preemption comes first.
        let promised = request.promises.of(&pod.uid).or_else(|| pod.nominated_node());
        if let Some(row) = promised.and_then(|n| snapshot.row(n))
            && check(local, &beyond, row).is_ok()
        {
            self.feasible.push(row);
            return Ok(row);
        }
        // Whom extenders were asked of is a sample already.
        let enough = if asked.is_some() { usize::MAX } else { profile.sample(snapshot.node_count()) };
        let alone = own.is_none() && asked.is_none() && domain.is_none();
        let scored_alone = alone && cross.is_none_or(|c| !c.spread.scores() && !c.affinity.scores());
        if scored_alone
            && snapshot.node_count() > self.few
            && let Some(order) = local.ordered(snapshot, pod, profile, enough)
            && let Some(row) = order.best(draw, |row| beyond.check(row).is_ok())
        {
            self.feasible.push(row);
            return Ok(row);
        }
        if !(alone && cross.is_none() && local.is_hopeless()) {
            let start = if rows == 0 { 0 } else { self.next_start % rows };
            let mut looked_at = 0;
            for row in (start..rows).chain(0..start) {
                looked_at += 1;
                if snapshot.live[row] && check(local, &beyond, row).is_ok() {
                    self.feasible.push(row);
                }
                if self.feasible.len() >= enough {
                    break;
                }
            }
            self.next_start = if rows == 0 { 0 } else { (start + looked_at) % rows };
        }
        match self.feasible.as_slice() {
            [] => {
                let rejections = if alone && cross.is_none() { local.all_rejected() } else { None };
                let rejections = rejections.unwrap_or_else(|| {
                    let mut all = Rejections::default();
                    for row in snapshot.node_rows() {
                        match check(local, &beyond, row) {
                            Ok(()) => {}
                            Err(No::Known(rejection)) => all.note(row, &rejection),
                            Err(No::New(rejection)) => all.note(row, &rejection),
                        }
                    }
                    all
                });
                let diagnosis = Diagnosis { nodes: snapshot.node_count(), rejections, ..Default::default() };
                let alone = alone && cross.is_none();
                let cycle = match (own, cross) {
                    (Some(cycle), _) => cycle,
                    (None, Some(cycle)) => cycle.clone().with(snapshot, pod.clone(), None, None),
                    (None, None) => Cycle::new(snapshot, pod.clone(), defaults, profile),
                };
                Err(Box::new(Rejected { diagnosis, cycle, alone }))
            }
            [only] => Ok(*only),
            many => {
                let began = Instant::now();
                rank(snapshot, local, cross, profile, many, &mut self.ranked);
                if let Some(devices) = devices.filter(|d| profile.weights.devices > 0 && d.scores()) {
                    rank_devices(devices, profile.weights.devices, &mut self.ranked);
                }
                if let Some(asked) = asked {
                    let score = |r: &Ranked| asked.kept.get(&snapshot.names[r.row]).copied().unwrap_or(0);
                    self.ranked.iter_mut().for_each(|r| r.parts.extenders = score(r));
                }
                self.scoring = Some(began.elapsed());
                Ok(best(&self.ranked, draw))
            }
        }
    }

    /// The best evictions that would let a rejected pod in, as [`preempt::find_all`] finds them; fills in why there are
    /// none. Where `all` is not asked for and what the verdict depends on is kept per class, it is only the very best.
    #[must_use]
    pub fn evictions(
        &mut self,
        snapshot: &Snapshot,
        rejected: &mut Rejected,
        budgets: &[Budget],
        promises: &Promises,
        all: bool,
    ) -> Vec<Candidate> {
        let (diagnosis, cycle) = (&mut rejected.diagnosis, &mut rejected.cycle);
        if all || !rejected.alone || !budgets.is_empty() || snapshot.node_count() <= self.few {
            let pod = cycle.pod.clone();
            let rivals = |node: &str| promises.rivals(node, &pod, &[]);
            return preempt::find_all(snapshot, cycle, diagnosis, budgets, &rivals);
        }
        let pod = cycle.pod.clone();
        let key = format!("{}|{}", pod.priority, pod.class_key(local_key));
        let known = self.evictions.get(
            &key,
            snapshot.row_count(),
            |kept| kept.catch_up(snapshot, promises),
            Evictions::default,
        );
        known.best(snapshot, cycle, diagnosis, promises).into_iter().collect()
    }
}

/// Why a node is not feasible: known to the class, or found out anew.
enum No {
    Known(Arc<Rejection>),
    New(Rejection),
}

/// All that a node's verdict depends on besides what is kept of its class.
struct Beyond<'a> {
    snapshot: &'a Snapshot,
    request: &'a Request<'a>,
    profile: &'a Arc<Profile>,
    reach: Arc<Reach>,
    cycle: Option<&'a Cycle>,
}

impl Beyond<'_> {
    fn check(&self, row: Row) -> Result<(), Rejection> {
        if let Some(cycle) = self.cycle {
            if let Some(claims) = &cycle.volumes {
                let conflicts = cycle.exclusive_conflicts;
                filter::volumes::filter(self.snapshot, row, claims, conflicts, self.profile)?;
            }
            filter::across(self.snapshot, row, cycle)?;
        }
        let Request { pod, promises, fellows, .. } = *self.request;
        if promises.is_empty() {
            return Ok(());
        }
        let rivals = promises.rivals(&self.snapshot.names[row], pod, fellows);
        if rivals.is_empty() { Ok(()) } else { self.beside(row, &rivals) }
    }

    /// Whether the pod fits besides those that were promised the node. It must fit with and without them, since they may
    /// never come.
    fn beside(&self, row: Row, rivals: &[Arc<PodInfo>]) -> Result<(), Rejection> {
        let Request { pod, defaults, .. } = *self.request;
        let mut usage = Usage::of(self.snapshot, row);
        rivals.iter().for_each(|rival| usage.add(rival));
        filter::local(self.snapshot, row, pod, &self.reach, self.profile, Some(&usage))?;
        if self.cycle.is_none() && rivals.iter().all(|rival| rival.anti_affinity.is_empty()) {
            // Nothing depends on who the others are.
            return Ok(());
        }
        let new = || Cycle::new(self.snapshot, pod.clone(), defaults, self.profile);
        let mut with = self.cycle.cloned().unwrap_or_else(new);
        rivals.iter().for_each(|rival| with.add(self.snapshot, row, rival));
        filter::run(self.snapshot, row, &with, Some(&usage))
    }
}

/// Whether a node takes the pod.
fn check(local: &mut Local, beyond: &Beyond<'_>, row: Row) -> Result<(), No> {
    let Beyond { snapshot, request: Request { pod, domain, asked, .. }, profile, .. } = beyond;
    if let Some(asked) = asked {
        asked.check(&snapshot.names[row]).map_err(No::Known)?;
    }
    if domain.is_some_and(|domain| !domain.holds(snapshot, row)) {
        let reason = "node(s) didn't match the pod group's topology domain";
        return Err(No::New(Rejection::one("TopologyPlacement", reason, true)));
    }
    local.check(snapshot, row, pod, profile).map_err(|known| No::Known(known.clone()))?;
    beyond.check(row).map_err(No::New)
}

/// Whether anything of the pod's placement depends on pods elsewhere.
fn looks_across(snapshot: &Snapshot, pod: &PodInfo, defaults: &DefaultConstraints) -> bool {
    snapshot.affine_pods() > 0
        || defaults.selector.is_some()
        || pod.spec().topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty())
        || !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred.is_empty())
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
