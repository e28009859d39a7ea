//! Groups of pods that are placed together or not at all.
//!
//! A pod belongs to a group by `spec.schedulingGroup`, where PodGroups are served, or by the annotations
//! [`ANNOTATION`] and [`MIN_COUNT`], which need no kind of their own. A group is one entry of the queue and one decision:
//! under one lock its pods are put into the snapshot one after the other, and all are taken out again where fewer than
//! its minimum fit. So no group ever holds a part of what it needs while it waits for the rest, and two groups cannot
//! wait for each other.

mod attempt;
mod preempt;
#[cfg(test)]
mod tests;

use crate::pod::{Occupant, PodInfo};
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::k8s_openapi::api::scheduling::v1beta1::PodGroup;
use gantry_api::meta::object::Meta;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Annotation of a pod: the name of its group within its namespace.
pub const ANNOTATION: &str = "gantry.io/pod-group";
/// Annotation of the pods of such a group: how many must be placed at once. Where they disagree the greatest counts.
pub const MIN_COUNT: &str = "gantry.io/pod-group-min-count";
/// The plugin that keeps pods of groups waiting, as upstream names it.
pub const PLUGIN: &str = "GangScheduling";

/// That a pod belongs to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group's entry in the queue; unlike any UID.
    pub id: String,
    /// The group's name.
    pub name: String,
    /// The minimum, where the pod itself states it: what is wrong where it does so badly.
    pub min_count: Option<Result<usize, String>>,
}

impl Membership {
    /// The pod's group, if it has one.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let namespace = pod.metadata.namespace();
        let declared = pod.spec.as_ref().and_then(|s| s.scheduling_group.as_ref()?.pod_group_name.as_deref());
        if let Some(name) = declared {
            return Some(Self { id: declared_id(namespace, name), name: name.to_owned(), min_count: None });
        }
        let name = pod.metadata.annotation(ANNOTATION).filter(|n| !n.is_empty())?;
        let min_count = match pod.metadata.annotation(MIN_COUNT) {
            None => Err(format!("annotation {MIN_COUNT} must be set with {ANNOTATION}")),
            Some(text) => match text.parse::<usize>() {
                Ok(n) if n > 0 => Ok(n),
                _ => Err(format!("annotation {MIN_COUNT}: {text:?} is not a positive number")),
            },
        };
        Some(Self { id: format!("annotated:{namespace}/{name}"), name: name.to_owned(), min_count: Some(min_count) })
    }
}

fn declared_id(namespace: &str, name: &str) -> String {
    format!("podgroup:{namespace}/{name}")
}

/// How the pods of a group are placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How many must be placed at once.
    pub min_count: usize,
    /// The node label of which all must have the same value.
    pub topology_key: Option<String>,
    /// Whether preemption takes all or none of them.
    pub disrupted_together: bool,
    /// The group's priority; the lowest of its pods where it has none.
    pub priority: Option<i32>,
    /// Whether there is nothing that its pods have to be placed together for.
    pub apart: bool,
}

impl Policy {
    /// What a PodGroup asks for.
    #[must_use]
    pub fn of(group: &PodGroup) -> Self {
        let spec = &group.spec;
        let topology = spec.scheduling_constraints.as_ref().and_then(|c| c.topology.as_ref()?.first());
        let gang = spec.scheduling_policy.gang.as_ref();
        Self {
            min_count: gang.and_then(|g| usize::try_from(g.min_count).ok()).unwrap_or(1),
            topology_key: topology.map(|t| t.key.clone()),
            disrupted_together: spec.disruption_mode.as_ref().is_some_and(|m| m.all.is_some()),
            priority: spec.priority,
            apart: gang.is_none() && topology.is_none(),
        }
    }
}

/// Pods of one group.
#[derive(Debug, Default)]
struct Group {
    name: String,
    waiting: BTreeMap<Arc<str>, Arc<PodInfo>>,
    placed: BTreeMap<Arc<str>, Arc<Occupant>>,
    /// What the last attempt said.
    last: Option<String>,
}

/// What is to be done with the waiting pods of a group.
#[derive(Debug)]
pub(crate) enum Call {
    /// There are none.
    Nothing,
    /// They wait for something besides room in the cluster.
    Hold(Vec<Arc<PodInfo>>),
    /// They are placed one by one.
    Apart(Vec<Arc<PodInfo>>),
    /// They are placed in one decision.
    Together(Vec<Arc<PodInfo>>),
}

/// All groups that pods refer to, and the policies that were declared.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    declared: HashMap<String, Policy>,
    groups: HashMap<String, Group>,
}

fn is_gated(pod: &PodInfo) -> bool {
    pod.spec().scheduling_gates.as_ref().is_some_and(|g| !g.is_empty())
}

impl Groups {
    /// Takes note of a PodGroup; returns the entry it is of.
    pub(crate) fn declare(&mut self, group: &PodGroup) -> String {
        let id = declared_id(group.metadata.namespace(), group.metadata.name());
        self.declared.insert(id.clone(), Policy::of(group));
        id
    }

    /// Forgets a PodGroup; returns the entry it was of.
    pub(crate) fn withdraw(&mut self, group: &PodGroup) -> String {
        let id = declared_id(group.metadata.namespace(), group.metadata.name());
        self.declared.remove(&id);
        id
    }

    /// Notes a pod that waits for a node.
    pub(crate) fn wait(&mut self, membership: &Membership, pod: Arc<PodInfo>) {
        let group = self.groups.entry(membership.id.clone()).or_default();
        group.name.clone_from(&membership.name);
        group.placed.remove(&pod.uid);
        group.waiting.insert(pod.uid.clone(), pod);
    }

    /// Notes a pod that has a node.
    pub(crate) fn place(&mut self, membership: &Membership, pod: Arc<Occupant>) {
        let group = self.groups.entry(membership.id.clone()).or_default();
        group.name.clone_from(&membership.name);
        group.waiting.remove(&pod.uid);
        group.placed.insert(pod.uid.clone(), pod);
    }

    /// Forgets a pod.
    pub(crate) fn forget(&mut self, membership: &Membership, uid: &str) {
        let Some(group) = self.groups.get_mut(&membership.id) else { return };
        group.waiting.remove(uid);
        group.placed.remove(uid);
        if group.waiting.is_empty() && group.placed.is_empty() {
            self.groups.remove(&membership.id);
        }
    }

    /// Keeps what an attempt said.
    pub(crate) fn said(&mut self, id: &str, sentence: Option<String>) {
        if let Some(group) = self.groups.get_mut(id) {
            group.last = sentence;
        }
    }

    /// How the group is to be placed.
    ///
    /// # Errors
    /// What keeps that from being known.
    pub(crate) fn policy(&self, id: &str) -> Result<Policy, String> {
        if let Some(policy) = self.declared.get(id) {
            return Ok(policy.clone());
        }
        let group = self.groups.get(id);
        let members = group.into_iter().flat_map(|g| {
            let waiting = g.waiting.values().map(|pod| &pod.occupant);
            waiting.chain(g.placed.values())
        });
        let counts: Vec<&Result<usize, String>> =
            members.filter_map(|p| p.group.as_ref()?.min_count.as_ref()).collect();
        if counts.is_empty() {
            let name = group.map(|g| g.name.as_str()).unwrap_or_default();
            return Err(format!("waiting for pods's pod group {name:?} to appear in scheduling queue"));
        }
        if let Some(Err(wrong)) = counts.iter().find(|c| c.is_err()) {
            return Err(wrong.clone());
        }
        let min_count = counts.iter().filter_map(|c| c.as_ref().ok()).max().copied().unwrap_or(1);
        Ok(Policy { min_count, topology_key: None, disrupted_together: false, priority: None, apart: false })
    }

    /// What is to be done with the waiting pods now.
    pub(crate) fn call(&self, id: &str) -> Call {
        let Some(group) = self.groups.get(id).filter(|g| !g.waiting.is_empty()) else { return Call::Nothing };
        let waiting: Vec<Arc<PodInfo>> = group.waiting.values().cloned().collect();
        let Ok(policy) = self.policy(id) else {
            // What is wrong with the pods themselves is told by an attempt; a group that is not there yet is waited for.
            let stated = waiting.iter().any(|p| p.group.as_ref().is_some_and(|m| m.min_count.is_some()));
            return if stated { Call::Together(waiting) } else { Call::Hold(waiting) };
        };
        if policy.apart {
            return Call::Apart(waiting);
        }
        let ready: Vec<Arc<PodInfo>> = waiting.iter().filter(|p| !is_gated(p)).cloned().collect();
        if ready.is_empty() || ready.len() + group.placed.len() < policy.min_count {
            return Call::Hold(waiting);
        }
        Call::Together(ready)
    }

    /// Pods of the group that have a node.
    pub(crate) fn placed(&self, id: &str) -> Vec<Arc<Occupant>> {
        self.groups.get(id).map(|g| g.placed.values().cloned().collect()).unwrap_or_default()
    }

    /// The pods that are evicted when this one is: itself, or its whole group.
    pub(crate) fn disrupted_with(&self, pod: &Arc<Occupant>) -> Vec<Arc<Occupant>> {
        let id = pod.group.as_ref().map(|m| m.id.as_str()).unwrap_or_default();
        match self.declared.get(id) {
            Some(policy) if policy.disrupted_together => self.placed(id),
            _ => vec![pod.clone()],
        }
    }

    /// What the group waits for, for explanations.
    pub(crate) fn explain(&self, id: &str) -> Option<serde_json::Value> {
        let group = self.groups.get(id)?;
        let policy = self.policy(id);
        let gated = group.waiting.values().filter(|p| is_gated(p)).count();
        let mut out = serde_json::json!({
            "name": group.name, "placed": group.placed.len(), "waiting": group.waiting.len(), "gated": gated,
        });
        match &policy {
            Ok(policy) => {
                out["minCount"] = policy.min_count.into();
                if let Some(key) = &policy.topology_key {
                    out["topologyKey"] = key.as_str().into();
                }
                let there = group.placed.len() + group.waiting.len() - gated;
                if there < policy.min_count {
                    out["message"] = format!(
                        "waiting for minCount pods from a gang to appear in scheduling queue: {there} of {} are there",
                        policy.min_count
                    )
                    .into();
                } else if let Some(last) = &group.last {
                    out["message"] = last.as_str().into();
                }
            }
            Err(why) => out["message"] = why.as_str().into(),
        }
        Some(out)
    }
}
