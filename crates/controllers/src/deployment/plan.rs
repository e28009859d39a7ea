//! The next step of a rollout, decided from a Deployment and its ReplicaSets alone.

use super::progress;
use super::revision::{
    POD_TEMPLATE_HASH, REVISION, annotate_new, annotate_replicas, number, same_template, template_hash,
};
use super::scale::{
    actual, available, created, desired, grown, is_rolling, is_saturated, lasting, max_surge, max_unavailable,
    proportional, size, was_scaled,
};
use gantry_api::meta::object::Meta;
use gantry_api::{ObjectMeta, Time};
use gantry_reconcile::owner::controller_reference;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use std::collections::BTreeSet;
use std::time::Duration;

/// What is decided from.
pub struct Inputs<'a> {
    /// The Deployment.
    pub deployment: &'a Deployment,
    /// Its ReplicaSets.
    pub sets: Vec<ReplicaSet>,
    /// UIDs of those that have pods which have not ended.
    pub with_pods: BTreeSet<String>,
    /// The present moment.
    pub now: Time,
}

/// What to do.
#[derive(Debug, Default)]
pub struct RolloutPlan {
    /// The ReplicaSet of a new template.
    pub create: Option<ReplicaSet>,
    /// ReplicaSets that change.
    pub updates: Vec<ReplicaSet>,
    /// ReplicaSets that the history no longer keeps.
    pub deletes: Vec<ReplicaSet>,
    /// Names of ReplicaSets that are scaled, with the message of the event.
    pub scaled: Vec<(String, String)>,
    /// The Deployment with changed status and revision.
    pub status: Option<Deployment>,
    /// When to look again.
    pub requeue_after: Option<Duration>,
}

impl RolloutPlan {
    /// Whether one of these ReplicaSets becomes smaller.
    pub(super) fn shrinks(&self, sets: &[ReplicaSet]) -> bool {
        let before = |set: &ReplicaSet| sets.iter().find(|s| s.metadata.uid == set.metadata.uid).map(size);
        self.updates.iter().any(|set| before(set).is_some_and(|before| size(set) < before))
    }
}

/// Whether the Deployment ends all old pods before it starts new ones.
pub(super) fn recreates(d: &Deployment) -> bool {
    d.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

struct Rollout {
    deployment: Deployment,
    new: Option<ReplicaSet>,
    old: Vec<ReplicaSet>,
    with_pods: BTreeSet<String>,
    now: Time,
    created: bool,
    changed: BTreeSet<String>,
    plan: RolloutPlan,
}

/// Decides the next step.
#[must_use]
pub fn plan(inputs: Inputs<'_>) -> RolloutPlan {
    let Inputs { deployment, mut sets, with_pods, now } = inputs;
    sets.sort_by_key(created);
    let position = sets.iter().position(|s| same_template(s, &deployment.spec.template));
    let new = position.map(|i| sets.remove(i));
    let mut rollout = Rollout {
        deployment: deployment.clone(),
        new,
        old: sets,
        with_pods,
        now,
        created: false,
        changed: BTreeSet::new(),
        plan: RolloutPlan::default(),
    };
    let status = rollout.advance();
    rollout.finish(deployment, status)
}

impl Rollout {
    fn advance(&mut self) -> DeploymentStatus {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return progress::counts(&self.deployment, &self.old, self.new.as_ref(), &self.now);
        }
        let now = self.now.clone();
        progress::note_paused(&mut self.deployment, &now);
        let paused = self.deployment.spec.paused == Some(true);
        if paused || was_scaled(&self.deployment, self.old.iter().chain(&self.new)) {
            self.sync_revision(false);
            self.scale();
            if paused {
                self.clean_up();
            }
            return progress::counts(&self.deployment, &self.old, self.new.as_ref(), &self.now);
        }
        if is_rolling(&self.deployment) {
            self.roll()
        } else {
            self.recreate()
        }
        progress::rollout(&self.deployment, &self.old, self.new.as_ref(), &self.now)
    }

    fn finish(mut self, before: &Deployment, status: DeploymentStatus) -> RolloutPlan {
        let changed = std::mem::take(&mut self.changed);
        for set in self.old.iter().chain(&self.new) {
            if self.created && Some(set) == self.new.as_ref() {
                self.plan.create = Some(set.clone());
            } else if changed.contains(set.metadata.name()) {
                self.plan.updates.push(set.clone());
            }
        }
        self.plan.requeue_after = progress::check_again(&self.deployment, &status, &self.now);
        self.deployment.status = Some(status);
        let same = self.deployment.status == before.status
            && self.deployment.metadata.annotations == before.metadata.annotations;
        self.plan.status = (!same).then_some(self.deployment);
        self.plan
    }

    fn total(&self) -> i32 {
        self.old.iter().chain(&self.new).map(size).sum()
    }

    /// Finds or makes the ReplicaSet of the present template and gives it the highest revision.
    fn sync_revision(&mut self, create: bool) {
        let revision = self.old.iter().map(number).max().unwrap_or(0) + 1;
        let min_ready = self.deployment.spec.min_ready_seconds;
        if let Some(set) = &mut self.new {
            let mut changed = annotate_new(&self.deployment, set, revision);
            if set.spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0) {
                set.spec.min_ready_seconds = min_ready;
                changed = true;
            }
            if changed {
                self.changed.insert(set.metadata.name().to_owned());
            }
            let (revision, name) = (number(set), set.metadata.name().to_owned());
            self.note_revision(revision);
            progress::note_new_set(&mut self.deployment, &name, false, &self.now);
            return;
        }
        if !create {
            return;
        }
        let mut set = self.new_set();
        let size = grown(&self.deployment, 0, self.total());
        set.spec.replicas = Some(size);
        annotate_new(&self.deployment, &mut set, revision);
        annotate_replicas(&mut set, desired(&self.deployment), desired(&self.deployment) + max_surge(&self.deployment));
        let name = set.metadata.name().to_owned();
        if size > 0 {
            self.plan.scaled.push((name.clone(), format!("Scaled up replica set {name} from 0 to {size}")));
        }
        self.new = Some(set);
        self.created = true;
        self.note_revision(revision);
        progress::note_new_set(&mut self.deployment, &name, true, &self.now);
    }

    fn note_revision(&mut self, revision: i64) {
        let annotations = self.deployment.metadata.annotations.get_or_insert_default();
        annotations.insert(REVISION.to_owned(), revision.to_string());
    }

    fn new_set(&self) -> ReplicaSet {
        let d = &self.deployment;
        let hash = template_hash(d);
        let mut template = d.spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = d.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", d.metadata.name())),
                namespace: d.metadata.namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![controller_reference(d)]),
                ..Default::default()
            },
            spec: ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: d.spec.min_ready_seconds,
                selector,
                template: Some(template),
            },
            status: None,
        }
    }

    /// Asks a ReplicaSet for `to` replicas; whether that is another number than before.
    fn resize(&mut self, name: &str, to: i32) -> bool {
        let (want, most) = (desired(&self.deployment), desired(&self.deployment) + max_surge(&self.deployment));
        let Some(set) = self.old.iter_mut().chain(&mut self.new).find(|s| s.metadata.name() == name) else {
            return false;
        };
        let from = size(set);
        let noted = annotate_replicas(set, want, most);
        if from == to && !noted {
            return false;
        }
        set.spec.replicas = Some(to);
        self.changed.insert(name.to_owned());
        if from == to {
            return false;
        }
        let way = if from < to { "up" } else { "down" };
        self.plan.scaled.push((name.to_owned(), format!("Scaled {way} replica set {name} from {from} to {to}")));
        true
    }

    /// Carries a changed number of replicas over to the ReplicaSets.
    fn scale(&mut self) {
        let want = desired(&self.deployment);
        let active: Vec<&ReplicaSet> = self.old.iter().chain(&self.new).filter(|s| size(s) > 0).collect();
        let only = match active.as_slice() {
            [] => self.new.as_ref().or(self.old.last()),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(set) = only {
            // Where the size fits already only the note of what it was scaled for changes.
            let name = set.metadata.name().to_owned();
            self.resize(&name, want);
            return;
        }
        if is_saturated(&self.deployment, self.new.as_ref()) {
            let names: Vec<String> =
                self.old.iter().filter(|s| size(s) > 0).map(|s| s.metadata.name().to_owned()).collect();
            for name in names {
                self.resize(&name, 0);
            }
            return;
        }
        if is_rolling(&self.deployment) {
            for (name, to) in proportional(&self.deployment, &active) {
                self.resize(&name, to);
            }
        }
    }

    fn roll(&mut self) {
        self.sync_revision(true);
        if self.created || self.grow_new() || self.shrink_old() {
            return;
        }
        self.clean_up_if_complete();
    }

    fn grow_new(&mut self) -> bool {
        let Some(new) = &self.new else { return false };
        let (name, from, want) = (new.metadata.name().to_owned(), size(new), desired(&self.deployment));
        if from == want {
            return false;
        }
        let to = if from > want { want } else { grown(&self.deployment, from, self.total()) };
        self.resize(&name, to)
    }

    fn shrink_old(&mut self) -> bool {
        if self.old.iter().all(|s| size(s) == 0) {
            return false;
        }
        let least = desired(&self.deployment) - max_unavailable(&self.deployment);
        let new_unavailable = self.new.as_ref().map_or(0, |s| size(s) - lasting(s));
        let spare = self.total() - least - new_unavailable;
        if spare <= 0 {
            return false;
        }
        // First what is not available anyway: ending it costs nothing.
        let mut left = spare;
        let mut changed = false;
        let sick: Vec<(String, i32, i32)> = self
            .old
            .iter()
            .filter(|s| size(s) > available(s))
            .map(|s| (s.metadata.name().to_owned(), size(s), available(s)))
            .collect();
        for (name, from, up) in sick {
            let down = left.min(from - up);
            if down <= 0 {
                break;
            }
            left -= down;
            changed |= self.resize(&name, from - down);
        }
        // Then available pods, down to the least number that must be.
        let up: i32 = self.old.iter().chain(&self.new).map(lasting).sum();
        let mut left = up - least;
        let old: Vec<(String, i32)> =
            self.old.iter().filter(|s| size(s) > 0).map(|s| (s.metadata.name().to_owned(), size(s))).collect();
        for (name, from) in old {
            let down = left.min(from);
            if down <= 0 {
                break;
            }
            left -= down;
            changed |= self.resize(&name, from - down);
        }
        changed
    }

    fn recreate(&mut self) {
        self.sync_revision(false);
        let active: Vec<String> =
            self.old.iter().filter(|s| size(s) > 0).map(|s| s.metadata.name().to_owned()).collect();
        let mut shrunk = false;
        for name in active {
            shrunk |= self.resize(&name, 0);
        }
        if shrunk || self.old_pods_run() {
            return;
        }
        if self.new.is_none() {
            self.sync_revision(true);
        }
        if let Some(name) = self.new.as_ref().filter(|_| !self.created).map(|s| s.metadata.name().to_owned()) {
            self.resize(&name, desired(&self.deployment));
        }
        self.clean_up_if_complete();
    }

    fn old_pods_run(&self) -> bool {
        self.old.iter().any(|s| actual(s) > 0 || self.with_pods.contains(s.metadata.uid()))
    }

    fn clean_up_if_complete(&mut self) {
        let status = self.deployment.status.clone().unwrap_or_default();
        if progress::is_complete(&self.deployment, &status) {
            self.clean_up();
        }
    }

    /// Deletes the oldest revisions beyond the history limit, unless they still have or want pods.
    fn clean_up(&mut self) {
        let Some(limit) = self.deployment.spec.revision_history_limit else { return };
        let mut old: Vec<&ReplicaSet> = self.old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
        old.sort_by_key(|s| (number(s), created(s)));
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        let idle = |s: &ReplicaSet| {
            actual(s) == 0
                && size(s) == 0
                && s.metadata.generation.unwrap_or(0)
                    <= s.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0)
        };
        self.plan.deletes = old.into_iter().take(surplus).filter(|s| idle(s)).cloned().collect();
    }
}
