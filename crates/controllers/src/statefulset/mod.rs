//! StatefulSets: pods that keep their names and their storage, started, updated and ended in order.

mod act;
mod claims;
mod identity;
mod plan;

pub use identity::{POD_INDEX, POD_NAME, parent_and_ordinal};
pub use plan::{Inputs, Revision, SetPlan, Step, plan};

use crate::claiming::{claim_all, ensure_alive, ensure_alive_after_loss};
use crate::config::Setup;
use crate::history::{self, DATA_HASH, History};
use crate::pod_state;
use crate::replicas::watch;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, PostParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{
    Change, Controller, Error, EventRecorder, Expectations, Index, Informer, Outcome, Queue, Store, runner, wait_synced,
};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use std::collections::BTreeSet;
use std::sync::Arc;
use tracing::debug;

const WORKERS: usize = 5;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["apps"], &["statefulsets"], &["get", "list", "watch"]),
    Rule::new(&["apps"], &["statefulsets/status"], &["update"]),
    Rule::new(&["apps"], &["statefulsets/finalizers"], &["update"]),
    Rule::new(&[""], &["pods"], &["create", "delete", "get", "list", "patch", "update", "watch"]),
    // Claims may be owned by pods, with deletion blocked.
    Rule::new(&[""], &["pods/finalizers"], &["update"]),
    Rule::new(&["apps"], &["controllerrevisions"], &["create", "delete", "get", "list", "patch", "update", "watch"]),
    Rule::new(&[""], &["persistentvolumeclaims"], &["create", "get", "list", "update", "watch"]),
    EVENTS,
];

struct StatefulSets {
    sets: Informer<StatefulSet>,
    pods_by_controller: Index<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    history: History,
    expectations: Arc<Expectations>,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let sets = setup.informers.get::<StatefulSet>();
    let pods = setup.informers.get::<Pod>();
    let claims = setup.informers.get::<PersistentVolumeClaim>();
    let history = History::new(&setup);
    let pods_by_controller = pods.index("controller", pod_state::by_controller);
    let queue = Queue::new(setup.name);
    let expectations = Arc::new(Expectations::default());
    watch::register(&sets, &pods, &queue, &expectations, selector_of);
    watch_claims(&claims, sets.store().clone(), queue.clone());
    if !wait_synced(&[&sets, &pods, &claims, history.informer()], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("statefulset-controller"), setup.cancel.clone());
    let controller =
        Arc::new(StatefulSets { sets, pods_by_controller, claims, history, expectations, setup, recorder });
    runner::run(controller, queue, WORKERS, cancel).await;
}

fn selector_of(set: &StatefulSet) -> Result<Selector, String> {
    Selector::from_label_selector(Some(&set.spec.selector))
}

/// A pod may wait for an old claim of its name to be gone.
fn watch_claims(claims: &Informer<PersistentVolumeClaim>, sets: Store<StatefulSet>, queue: Queue) {
    claims.on_change(move |change| {
        let Change::Deleted(claim) = change else { return };
        let Some((front, _)) = parent_and_ordinal(claim.metadata.name()) else { return };
        for set in sets.list_in(claim.metadata.namespace()) {
            let mut templates = set.spec.volume_claim_templates.iter().flatten();
            if templates.any(|t| format!("{}-{}", t.metadata.name(), set.metadata.name()) == front) {
                queue.add(key_of(&*set));
            }
        }
    });
}

#[async_trait]
impl Controller for StatefulSets {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(set) = self.sets.store().by_key(key) else {
            self.expectations.forget(key);
            return Ok(Outcome::done());
        };
        if let Some(left) = self.expectations.left(key) {
            // What is awaited brings the set here again, or the time after which it is awaited no longer.
            return Ok(Outcome::after(left));
        }
        let Ok(selector) = selector_of(&set) else {
            debug!(%key, "selector cannot be read");
            return Ok(Outcome::done());
        };
        let revisions = self.history.claim(&*set, &selector).await?;
        let pods = self.claim(&set, &selector).await?;
        let mut collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let update = self.update_revision(&set, &revisions, &mut collisions).await?;
        let known = set.status.as_ref().and_then(|s| s.current_revision.as_deref());
        let current = revisions.iter().find(|r| Some(r.metadata.name()) == known).map_or(&update, |r| r);
        let claims = |name: &str| self.claims.get(set.metadata.namespace(), name);
        let plan = plan(&Inputs {
            set: &set,
            pods: &pods,
            claims: &claims,
            current: revision(current)?,
            update: revision(&update)?,
            collisions,
            now: self.setup.config.clock.now(),
        });
        if plan.steps.iter().any(|s| matches!(s, Step::Create(_))) {
            let told = set.status.as_ref().and_then(|s| usize::try_from(s.replicas).ok()).unwrap_or(0);
            let fewer = told > pods.len() || pods.iter().any(|p| p.metadata.is_deleting());
            ensure_alive_after_loss(&self.setup.client, &*set, &self.expectations, fewer).await?;
        }
        let done = self.execute(&set, key, &plan.steps).await;
        // The status tells how far it came, and a refused step must not hide that.
        let told = self.write_status(&set, plan.status).await;
        let mut live: BTreeSet<&str> = pods.iter().map(|p| identity::revision(p)).collect();
        live.extend([current.metadata.name(), update.metadata.name()]);
        let surplus = history::surplus(&revisions, &live, set.spec.revision_history_limit.unwrap_or(10));
        done?;
        told?;
        self.history.delete(&surplus).await?;
        Ok(Outcome { requeue_after: plan.requeue_after.into_iter().chain(self.expectations.left(key)).min() })
    }
}

fn revision(of: &ControllerRevision) -> Result<Revision, Error> {
    let template = history::template_of(of).map_err(Error::Other)?;
    Ok(Revision { name: of.metadata.name().to_owned(), template })
}

impl StatefulSets {
    async fn claim(&self, set: &Arc<StatefulSet>, selector: &Selector) -> Result<Vec<Arc<Pod>>, Error> {
        let mut candidates = self.pods_by_controller.get(set.metadata.uid());
        candidates.extend(self.pods_by_controller.get(&pod_state::orphans_of(set.metadata.namespace())));
        let ours = |p: &Pod| selector.matches_optional(p.metadata.labels.as_ref()) && identity::is_member(set, p);
        claim_all(&self.setup.client, &**set, candidates, ours).await
    }

    /// The revision of the present template: one there is, renumbered where it is not the last, or a new one.
    async fn update_revision(
        &self,
        set: &StatefulSet,
        revisions: &[Arc<ControllerRevision>],
        collisions: &mut i32,
    ) -> Result<Arc<ControllerRevision>, Error> {
        let number = history::next_number(revisions);
        let data = history::data_of(set);
        if let Some(same) = revisions.iter().rev().find(|r| r.data.0 == data) {
            if revisions.last().is_some_and(|last| Arc::ptr_eq(last, same)) {
                return Ok(same.clone());
            }
            let mut last = (**same).clone();
            last.revision = Some(number);
            return self.history.update(&last).await.map(Arc::new);
        }
        let seen = set.status.as_ref().and_then(|s| s.observed_generation);
        if seen.is_some() && seen == set.metadata.generation {
            // There was one, which may have gone with its set.
            ensure_alive(&self.setup.client, set).await?;
        }
        loop {
            let new = history::revision_of(set, &set.spec.template, number, Some(*collisions), DATA_HASH);
            match self.history.create(&new).await? {
                Some(created) => return Ok(Arc::new(created)),
                None => *collisions += 1,
            }
        }
    }

    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<(), Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut changed = set.clone();
        changed.status = Some(status);
        let api = Api::<StatefulSet>::namespaced(self.setup.client.clone(), set.metadata.namespace());
        match api.update_status(&PostParams::default(), &changed).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => Err(Error::api(format!("update status of statefulset {}", set.metadata.key()), e)),
        }
    }
}

#[cfg(test)]
mod tests;
