//! Preemption for a group: evictions count only where at least its minimum fits after all of them.

use crate::decide::Domain;
use crate::pod::{Occupant, PodInfo};
use crate::preempt::{self, Budget};
use crate::run::{Scheduler, State};
use std::sync::Arc;

/// Where a pod of the group goes once its victims are gone.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) node: String,
    /// None where there is room for it already.
    pub(crate) victims: Vec<Arc<Occupant>>,
}

/// That no evictions help.
#[derive(Debug)]
pub(crate) struct Nothing {
    /// Why.
    pub(crate) reason: String,
    /// Whether those decided on before are still under way.
    pub(crate) under_way: bool,
}

impl From<String> for Nothing {
    fn from(reason: String) -> Self {
        Self { reason, under_way: false }
    }
}

/// Finds evictions after which `needed` of the pods fit. The snapshot is as it was when this returns.
///
/// # Errors
/// Why there are none.
pub(crate) fn plan(
    scheduler: &Scheduler,
    state: &mut State,
    pods: &[Arc<PodInfo>],
    domain: Option<Domain>,
    needed: usize,
) -> Result<Vec<Step>, Nothing> {
    let mut steps: Vec<Step> = Vec::new();
    let mut gone: Vec<(Arc<Occupant>, String)> = Vec::new();
    let found = attempt(scheduler, state, pods, domain, &mut steps, &mut gone);
    for step in &steps {
        state.snapshot.displace(&step.pod.uid);
    }
    for (victim, node) in gone {
        state.snapshot.place(victim, &node);
    }
    found?;
    if steps.len() < needed {
        let (fit, of) = (steps.len(), pods.len());
        return Err(format!("{fit} of {of} pods of the group fit after all evictions that are allowed").into());
    }
    if steps.iter().all(|s| s.victims.is_empty()) {
        return Err("no victims found".to_owned().into());
    }
    Ok(steps)
}

fn attempt(
    scheduler: &Scheduler,
    state: &mut State,
    pods: &[Arc<PodInfo>],
    domain: Option<Domain>,
    steps: &mut Vec<Step>,
    gone: &mut Vec<(Arc<Occupant>, String)>,
) -> Result<(), Nothing> {
    let mut budgets: Vec<Budget> = scheduler.budgets.list().iter().filter_map(|b| Budget::new(b)).collect();
    for pod in pods {
        let rejected = match scheduler.choose(state, pod, domain, pods, None) {
            Ok((node, _)) => {
                state.snapshot.place(pod.occupant.clone(), &node);
                steps.push(Step { pod: pod.clone(), node, victims: Vec::new() });
                continue;
            }
            Err(rejected) => rejected,
        };
        let (mut diagnosis, mut cycle) = (rejected.diagnosis, rejected.cycle);
        if !cycle.profile.preempts {
            return Err("not eligible as the profile does not preempt".to_owned().into());
        }
        if let Err(reason) = preempt::eligible(&state.snapshot, pod, pod.nominated_node(), &diagnosis) {
            let under_way = pod.nominated_node().is_some();
            return Err(Nothing { reason: reason.trim_end_matches('.').to_owned(), under_way });
        }
        let own = |uid: &str| pods.iter().any(|p| &*p.uid == uid);
        let rivals = |node: &str| state.queue.promises().rivals(node, pod, pods);
        let candidate = preempt::find(&state.snapshot, &mut cycle, &mut diagnosis, &budgets, &rivals);
        let Some(candidate) = candidate else { continue };
        let node = state.snapshot.names[candidate.row].clone();
        let mut victims: Vec<Arc<Occupant>> = Vec::new();
        for victim in &candidate.victims {
            for other in state.groups.disrupted_with(victim) {
                if !victims.iter().any(|v| v.uid == other.uid) {
                    victims.push(other);
                }
            }
        }
        // Neither a part of the group itself, nor all of a group of which some are no less important.
        if victims.iter().any(|v| own(&v.uid) || v.priority >= pod.priority) {
            continue;
        }
        budgets.iter_mut().for_each(|b| b.spend(&victims));
        for victim in &victims {
            let Some(row) = state.snapshot.row_of_pod(&victim.uid) else { continue };
            let on = state.snapshot.names[row].clone();
            state.snapshot.displace(&victim.uid);
            gone.push((victim.clone(), on));
        }
        state.snapshot.place(pod.occupant.clone(), &node);
        steps.push(Step { pod: pod.clone(), node, victims });
    }
    Ok(())
}
