//! Which Jobs a change concerns, and which pods lost theirs.

use super::condition::finished;
use super::survey::is_tracked;
use super::{GATHER, Removals};
use crate::pod_state;
use gantry_api::OwnerReference;
use gantry_api::kind::Kind;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Expectations, Index, Informer, Queue, Store};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

pub(super) struct Watch {
    pub(super) jobs: Store<Job>,
    pub(super) pods_by_controller: Index<Pod>,
    pub(super) queue: Queue,
    /// Pods whose finalizer no Job will remove.
    pub(super) orphans: Queue,
    pub(super) expectations: Arc<Expectations>,
    pub(super) removals: Arc<Removals>,
}

/// Puts the keys of Jobs and orphaned pods into their queues as they change.
pub(super) fn register(watch: Arc<Watch>, jobs: &Informer<Job>, pods: &Informer<Pod>) {
    let of_jobs = watch.clone();
    jobs.on_change(move |change| of_jobs.job_changed(change));
    pods.on_change(move |change| watch.pod_changed(change));
}

impl Watch {
    fn job_changed(&self, change: &Change<Job>) {
        let key = key_of(&**change.object());
        match change {
            Change::Added(_) => self.queue.add(key),
            Change::Modified { old, new } if old.metadata.uid != new.metadata.uid => {
                self.forget(&key, old);
                self.queue.add(key);
            }
            Change::Modified { old, new } => {
                if old.metadata.generation == new.metadata.generation {
                    self.queue.add_after(key, GATHER);
                } else {
                    self.queue.add(key);
                }
                // All pods are counted before a Job ends. Should one be left, it must not stay for ever.
                if finished(new).is_some() {
                    self.free_pods(new);
                }
            }
            Change::Deleted(job) => {
                self.forget(&key, job);
                self.queue.add(key);
            }
        }
    }

    fn forget(&self, key: &str, job: &Job) {
        self.expectations.forget(key);
        self.removals.forget(key);
        self.free_pods(job);
    }

    fn free_pods(&self, job: &Job) {
        for pod in self.pods_by_controller.get(job.metadata.uid()) {
            if is_tracked(&pod) {
                self.orphans.add(key_of(&*pod));
            }
        }
    }

    /// The Job a reference means, if it is still the same object.
    fn resolve(&self, namespace: &str, r: &OwnerReference) -> Option<Arc<Job>> {
        if r.kind != Job::INFO.kind {
            return None;
        }
        self.jobs.get(namespace, &r.name).filter(|j| j.metadata.uid() == r.uid)
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        match change {
            Change::Added(pod) if pod.metadata.deletion_timestamp.is_some() => self.going(pod, false),
            Change::Added(pod) => match pod_state::controller(pod) {
                Some(r) => {
                    if let Some(job) = self.resolve(pod.metadata.namespace(), r) {
                        let key = key_of(&*job);
                        self.expectations.creation_observed(&key);
                        self.queue.add_after(key, GATHER);
                    }
                }
                None => self.orphaned(pod, true),
            },
            Change::Modified { new, .. } if new.metadata.deletion_timestamp.is_some() => self.going(new, false),
            Change::Modified { old, new } => self.modified(old, new),
            Change::Deleted(pod) => self.going(pod, true),
        }
    }

    fn modified(&self, old: &Pod, new: &Pod) {
        let moved = pod_state::controller(old) != pod_state::controller(new);
        let namespace = new.metadata.namespace();
        let before = pod_state::controller(old).filter(|_| moved).and_then(|r| self.resolve(namespace, r));
        let now = pod_state::controller(new).and_then(|r| self.resolve(namespace, r));
        for job in before.into_iter().chain(now) {
            let key = key_of(&*job);
            if !is_tracked(new) {
                self.removals.observed(&key, new.metadata.uid());
            }
            self.queue.add_after(key, GATHER);
        }
        if pod_state::controller(new).is_none() {
            self.orphaned(new, moved || old.metadata.labels != new.metadata.labels);
        }
    }

    /// A pod is being deleted, or is gone (`last`).
    fn going(&self, pod: &Pod, last: bool) {
        let tracked = is_tracked(pod);
        let job = pod_state::controller(pod).and_then(|r| self.resolve(pod.metadata.namespace(), r));
        let Some(job) = job.filter(|j| finished(j).is_none()) else {
            if tracked && !last {
                self.orphans.add(key_of(pod));
            }
            return;
        };
        let key = key_of(&*job);
        self.expectations.went(&key, &key_of(pod));
        if last || !tracked {
            self.removals.observed(&key, pod.metadata.uid());
        }
        self.queue.add_after(key, GATHER);
    }

    /// A pod without a controller: its finalizer goes, and any Job that selects it may adopt it.
    fn orphaned(&self, pod: &Pod, adoptable: bool) {
        if is_tracked(pod) {
            self.orphans.add(key_of(pod));
        }
        if !adoptable {
            return;
        }
        for job in self.jobs.list_in(pod.metadata.namespace()) {
            let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
            let selects = Selector::from_label_selector(selector)
                .is_ok_and(|s| !s.is_empty() && s.matches_optional(pod.metadata.labels.as_ref()));
            if selects {
                self.queue.add_after(key_of(&*job), GATHER);
            }
        }
    }
}
