//! One decision for a whole group.

use super::{Call, Groups, PLUGIN, Policy, preempt};
use crate::bind::{Failure, Preemption};
use crate::decide::{Domain, Rejected};
use crate::diagnosis::Diagnosis;
use crate::filter::volumes::Assignment;
use crate::measured::{Attempt, Outcome};
use crate::pod::{Occupant, PodInfo};
use crate::queue::Waiting;
use crate::run::{Scheduler, State};
use crate::snapshot::Snapshot;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::time::Instant;

/// A pod with the node it gets.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) node: String,
    pub(crate) assignment: Assignment,
}

/// What became of a group.
#[derive(Default)]
pub(crate) struct GroupOutcome {
    /// Pods to bind; assumed already.
    pub(crate) placed: Vec<Placement>,
    /// Pods that go on waiting, with what is told and done about each.
    pub(crate) failed: Vec<(Arc<PodInfo>, Failure)>,
    /// What is written in the status of the PodGroup.
    pub(crate) sentence: Option<String>,
}

/// One try to place all pods, in one domain or in the whole cluster. Nothing of it stays in the snapshot.
struct Trial {
    domain: Option<Domain>,
    placed: Vec<Placement>,
    rejected: Vec<(Arc<PodInfo>, Rejected)>,
}

/// The most urgent and the greatest first: what is left over for the small is more than the other way round.
fn ordered(pods: &[Arc<PodInfo>]) -> Vec<Arc<PodInfo>> {
    let mut pods = pods.to_vec();
    let age = |p: &PodInfo| p.pod.metadata.creation_timestamp.clone();
    pods.sort_by_cached_key(|p| {
        let r = &p.requests;
        (Reverse(p.priority), Reverse((r.cpu_milli, r.memory)), age(p), p.name().to_owned())
    });
    pods
}

/// The domains the group may be placed in; only the one it is in already, where some of its pods have nodes.
fn domains(snapshot: &Snapshot, policy: &Policy, placed: &[Arc<Occupant>]) -> Vec<Option<Domain>> {
    let Some(name) = &policy.topology_key else { return vec![None] };
    let Some(key) = snapshot.key(name) else { return vec![Some(Domain::NOWHERE)] };
    if let Some(row) = placed.iter().find_map(|p| snapshot.row_of_pod(&p.uid)) {
        return vec![Some(Domain { key: Some(key), value: snapshot.value(key, row) })];
    }
    let values: BTreeMap<&str, u32> = snapshot
        .node_rows()
        .map(|row| snapshot.value(key, row))
        .filter(|value| *value != 0)
        .filter_map(|value| Some((snapshot.values(key).get(value as usize)?.as_str(), value)))
        .collect();
    if values.is_empty() {
        return vec![Some(Domain::NOWHERE)];
    }
    values.into_values().map(|value| Some(Domain { key: Some(key), value })).collect()
}

impl Scheduler {
    /// Decides on a group: pods that fit are assumed where at least its minimum does, and none are otherwise.
    pub(crate) fn decide_group(&self, state: &mut State, waiting: &Waiting) -> GroupOutcome {
        let id = &*waiting.id;
        // Since the entry was taken from the queue pods may have come and gone.
        let Call::Together(pods) = state.groups.call(id) else {
            state.queue.remove(id);
            state.sync_group(id, false);
            return GroupOutcome::default();
        };
        let pods = ordered(&pods);
        let already = state.groups.placed(id);
        let policy = match state.groups.policy(id) {
            Ok(policy) => policy,
            Err(wrong) => return state.refuse(id, pods, &wrong),
        };
        if self.extenders.iter().any(|e| e.decides() && pods.iter().any(|p| e.is_interested(&p.pod))) {
            return state.refuse(id, pods, "pods that extenders are interested in are not placed as a group");
        }
        let needed = policy.min_count.saturating_sub(already.len()).max(1);
        let mut best: Option<Trial> = None;
        for domain in domains(&state.snapshot, &policy, &already) {
            let trial = self.try_all(state, &pods, domain);
            if best.as_ref().is_none_or(|b| trial.placed.len() > b.placed.len()) {
                best = Some(trial);
            }
            if best.as_ref().is_some_and(|b| b.rejected.is_empty()) {
                break;
            }
        }
        let Some(Trial { domain, placed, rejected }) = best else { return GroupOutcome::default() };
        if placed.len() >= needed || already.len() >= policy.min_count {
            return self.commit(state, id, placed, rejected);
        }
        let counts = Counts { min: policy.min_count, already: already.len(), fit: placed.len(), of: pods.len() };
        let plan = preempt::plan(self, state, &pods, domain, needed);
        state.reject(id, (placed, rejected), counts, plan)
    }

    /// Puts the pods into the snapshot one by one and takes them out again.
    fn try_all(&self, state: &mut State, pods: &[Arc<PodInfo>], domain: Option<Domain>) -> Trial {
        let mut trial = Trial { domain, placed: Vec::new(), rejected: Vec::new() };
        for pod in pods {
            match self.choose(state, pod, domain, pods, None) {
                Ok((node, assignment)) => {
                    state.snapshot.place(pod.occupant.clone(), &node);
                    self.promise(&assignment);
                    trial.placed.push(Placement { pod: pod.clone(), node, assignment });
                }
                Err(rejected) => trial.rejected.push((pod.clone(), *rejected)),
            }
        }
        for placement in &trial.placed {
            state.snapshot.displace(&placement.pod.uid);
            self.forget(&placement.assignment);
        }
        trial
    }

    fn commit(
        &self,
        state: &mut State,
        id: &str,
        placed: Vec<Placement>,
        rejected: Vec<(Arc<PodInfo>, Rejected)>,
    ) -> GroupOutcome {
        for placement in &placed {
            state.snapshot.place(placement.pod.occupant.clone(), &placement.node);
            state.assumed.insert(placement.pod.uid.clone(), placement.pod.clone());
            state.decided.on(&placement.pod.uid, self.pods.version());
            self.promise(&placement.assignment);
            if let Some(membership) = &placement.pod.group {
                state.groups.place(membership, placement.pod.occupant.clone());
            }
        }
        // The minimum is there, so the rest is placed as pods are that belong to no group.
        let mut failed = Vec::new();
        let mut plugins = BTreeSet::new();
        for (pod, rejected) in rejected {
            let State { snapshot, queue, groups, deciders, .. } = &mut *state;
            let decider = deciders.get_mut(pod.scheduler()).expect("only pods of a profile are queued");
            let failure = self.failure(snapshot, queue, groups, decider, rejected);
            plugins.extend(failure.diagnosis.plugins());
            failed.push((pod, failure));
        }
        state.groups.said(id, failed.first().map(|(_, f)| f.diagnosis.message()));
        if failed.is_empty() {
            state.queue.remove(id);
        } else {
            state.sync_group(id, false);
            state.queue.unschedulable(id, plugins, Instant::now());
            state.hold_for_evictions(id, &failed);
        }
        GroupOutcome { placed, failed, sentence: None }
    }

    /// Binds what was placed, claims of all pods first: a group whose claims cannot all be had is not begun.
    pub(crate) async fn bind_group(self: &Arc<Self>, outcome: GroupOutcome, attempt: Attempt) {
        let GroupOutcome { placed, failed, sentence } = outcome;
        let id = placed.first().map(|p| &p.pod).or(failed.first().map(|(p, _)| p)).and_then(|p| p.group.clone());
        let mut begun = true;
        for placement in &placed {
            if let Err(message) = self.bind_claims(&placement.pod, &placement.assignment, &placement.node).await {
                self.recorder.warning(placement.pod.pod.as_ref(), "FailedScheduling", &message);
                begun = false;
                break;
            }
        }
        if begun {
            let mut bindings = tokio::task::JoinSet::new();
            for placement in placed.iter().cloned() {
                let scheduler = self.clone();
                bindings.spawn(async move {
                    let bound = scheduler.bind(&placement.pod, &placement.node).await;
                    if !bound {
                        scheduler.release(&placement.assignment).await;
                    }
                    let outcome = if bound { Outcome::Scheduled } else { Outcome::Error };
                    scheduler.tried(&placement.pod, outcome, attempt);
                    bound
                });
            }
            let mut all = !placed.is_empty();
            while let Some(bound) = bindings.join_next().await {
                all &= bound.unwrap_or(false);
            }
            if all && let Some(group) = &id {
                self.tell_group(group, placed[0].pod.namespace(), None).await;
            }
        } else {
            for placement in &placed {
                self.forget(&placement.assignment);
                self.release(&placement.assignment).await;
                self.take_back(&placement.pod, true);
                self.tried(&placement.pod, Outcome::Error, attempt);
            }
        }
        if let (Some(group), Some(sentence), Some((pod, _))) = (&id, &sentence, failed.first()) {
            self.tell_group(group, pod.namespace(), Some(sentence)).await;
        }
        for (pod, failure) in failed {
            self.tried(&pod, failure.outcome(), attempt);
            self.report(&pod, failure).await;
        }
        if let Some(group) = &id {
            self.state.lock().queue.evicted(&group.id, Instant::now());
            self.wake.notify_one();
        }
    }
}

/// How much of a group fits.
#[derive(Clone, Copy)]
struct Counts {
    min: usize,
    already: usize,
    fit: usize,
    of: usize,
}

impl Counts {
    fn sentence(self) -> String {
        let Self { min, already, fit, of } = self;
        let scheduled = already + fit;
        let mut text =
            format!("minCount ({min}) cannot be satisfied: {scheduled} of {} pods of the group fit", of + already);
        if already > 0 {
            text.push_str(&format!(", {already} are placed"));
        }
        text
    }
}

impl State {
    /// None is placed; evictions that make room for at least the minimum are set in motion.
    fn reject(
        &mut self,
        id: &str,
        (placed, rejected): (Vec<Placement>, Vec<(Arc<PodInfo>, Rejected)>),
        counts: Counts,
        plan: Result<Vec<preempt::Step>, preempt::Nothing>,
    ) -> GroupOutcome {
        let mut plugins: BTreeSet<&'static str> = BTreeSet::new();
        let mut why = String::new();
        for (_, r) in &rejected {
            plugins.extend(r.diagnosis.plugins());
            if why.is_empty() {
                why = r.diagnosis.message();
            }
        }
        let mut steps: BTreeMap<Arc<str>, preempt::Step> = BTreeMap::new();
        let (mut after, mut promises_stay) = (String::new(), false);
        match plan {
            Ok(plan) => steps.extend(plan.into_iter().map(|s| (s.pod.uid.clone(), s))),
            Err(nothing) => {
                after = format!(" preemption: {}.", nothing.reason);
                promises_stay = nothing.under_way;
            }
        }
        let sentence = format!("{}: {why}{after}", counts.sentence());
        let nodes = self.snapshot.node_count();
        let rejected = rejected.into_iter().map(|(pod, r)| {
            let group = Some((counts.sentence(), after.clone()));
            (pod, Diagnosis { group, ..r.diagnosis })
        });
        let fitting = placed.into_iter().map(|p| {
            let group = Some((sentence.clone(), String::new()));
            (p.pod, Diagnosis { nodes, group, ..Diagnosis::default() })
        });
        let failed = rejected.chain(fitting).map(|(pod, diagnosis)| {
            let step = steps.remove(&pod.uid);
            let gives_up = step.is_none() && !promises_stay && pod.nominated_node().is_some();
            let preemption = step.map(|s| {
                let losers = self.queue.promises().on(&s.node).filter(|p| p.priority < pod.priority);
                let losers = losers.cloned().collect();
                Preemption { victims: s.victims, node: s.node, losers, budget_violations: 0 }
            });
            (pod, Failure { diagnosis, preemption, alternatives: Vec::new(), gives_up })
        });
        let failed: Vec<(Arc<PodInfo>, Failure)> = failed.collect();
        self.groups.said(id, Some(sentence.clone()));
        self.queue.unschedulable(id, plugins, Instant::now());
        self.hold_for_evictions(id, &failed);
        GroupOutcome { placed: Vec::new(), failed, sentence: Some(sentence) }
    }

    /// Where others are to be evicted for a group it is not tried before that is done.
    fn hold_for_evictions(&mut self, id: &str, failed: &[(Arc<PodInfo>, Failure)]) {
        if failed.iter().any(|(_, failure)| failure.preemption.is_some()) {
            self.queue.evicting(id);
        }
    }

    /// Nothing can be decided on the group as its pods are.
    fn refuse(&mut self, id: &str, pods: Vec<Arc<PodInfo>>, wrong: &str) -> GroupOutcome {
        self.groups.said(id, Some(wrong.to_owned()));
        self.queue.unschedulable(id, [PLUGIN].into(), Instant::now());
        let nodes = self.snapshot.node_count();
        let group = Some((wrong.to_owned(), String::new()));
        let diagnosis = Diagnosis { nodes, group, ..Diagnosis::default() };
        let failure =
            || Failure { diagnosis: diagnosis.clone(), preemption: None, alternatives: Vec::new(), gives_up: false };
        let failed = pods.into_iter().map(|p| (p, failure())).collect();
        GroupOutcome { placed: Vec::new(), failed, sentence: None }
    }

    /// The pod does not wait any more, nor does it have a node.
    pub(crate) fn left_group(&mut self, pod: &PodInfo) {
        if let Some(group) = &pod.group {
            self.groups.forget(group, &pod.uid);
            self.sync_group(&group.id, false);
        }
    }

    /// Brings the queue to what the group's pods call for; `changed` where they are to be tried at once.
    pub(crate) fn sync_group(&mut self, id: &str, changed: bool) {
        let Self { groups, queue, .. } = self;
        let priority = |groups: &Groups| groups.policy(id).ok().and_then(|p| p.priority);
        match groups.call(id) {
            Call::Nothing => queue.remove(id),
            Call::Apart(pods) => {
                queue.remove(id);
                pods.into_iter().for_each(|pod| queue.put(pod, changed));
            }
            Call::Hold(pods) => {
                pods.iter().for_each(|p| queue.remove(&p.uid));
                queue.put_group(id, pods, priority(groups), true, changed);
            }
            Call::Together(pods) => {
                pods.iter().for_each(|p| queue.remove(&p.uid));
                queue.put_group(id, pods, priority(groups), false, changed);
            }
        }
    }
}
