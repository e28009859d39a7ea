//! Which owners of pods a change concerns.

use crate::pod_state;
use gantry_api::OwnerReference;
use gantry_api::kind::Kind;
use gantry_api::meta::labels::Selector;
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Expectations, Informer, Queue, Store};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// How an owner selects its pods.
pub(crate) type SelectorOf<O> = fn(&O) -> Result<Selector, String>;

/// Puts the keys of owners into `queue` when they or their pods change, and tells `expectations` of pods that came or go.
pub(crate) fn register<O: Kind>(
    owners: &Informer<O>,
    pods: &Informer<Pod>,
    queue: &Queue,
    expectations: &Arc<Expectations>,
    selector: SelectorOf<O>,
) {
    let q = queue.clone();
    let known = expectations.clone();
    owners.on_change(move |change| {
        let replaced = change.old().is_some_and(|old| old.meta().uid != change.object().meta().uid);
        if replaced || matches!(change, Change::Deleted(_)) {
            known.forget(&key_of(&**change.object()));
        }
        q.add(key_of(&**change.object()));
    });
    let (owners, queue, expectations) = (owners.store().clone(), queue.clone(), expectations.clone());
    let watch = PodWatch { owners, queue, expectations, selector };
    pods.on_change(move |change| watch.changed(change));
}

struct PodWatch<O> {
    owners: Store<O>,
    queue: Queue,
    expectations: Arc<Expectations>,
    selector: SelectorOf<O>,
}

impl<O: Kind> PodWatch<O> {
    /// The owner a reference means, if it is of this kind and still the same object.
    fn resolve(&self, namespace: &str, r: &OwnerReference) -> Option<Arc<O>> {
        if r.kind != O::INFO.kind {
            return None;
        }
        self.owners.get(namespace, &r.name).filter(|o| o.meta().uid.as_deref() == Some(&r.uid))
    }

    fn owner_of(&self, pod: &Pod) -> Option<Arc<O>> {
        self.resolve(pod.metadata.namespace.as_deref().unwrap_or_default(), pod_state::controller(pod)?)
    }

    fn changed(&self, change: &Change<Pod>) {
        match change {
            Change::Added(pod) if pod.metadata.deletion_timestamp.is_some() => self.going(pod),
            Change::Added(pod) => match pod_state::controller(pod) {
                Some(_) => {
                    if let Some(owner) = self.owner_of(pod) {
                        let key = key_of(&*owner);
                        self.expectations.creation_observed(&key);
                        self.queue.add(key);
                    }
                }
                None => self.matching(pod),
            },
            Change::Modified { old, new } if new.metadata.deletion_timestamp.is_some() => {
                self.going(new);
                if old.metadata.labels != new.metadata.labels {
                    self.going(old);
                }
            }
            Change::Modified { old, new } => self.modified(old, new),
            Change::Deleted(pod) => self.going(pod),
        }
    }

    fn modified(&self, old: &Pod, new: &Pod) {
        let moved = pod_state::controller(old) != pod_state::controller(new);
        if moved && let Some(owner) = self.owner_of(old) {
            self.queue.add(key_of(&*owner));
        }
        if pod_state::controller(new).is_some() {
            if let Some(owner) = self.owner_of(new) {
                self.queue.add(key_of(&*owner));
            }
        } else if moved || old.metadata.labels != new.metadata.labels {
            self.matching(new);
        }
    }

    fn going(&self, pod: &Pod) {
        if let Some(owner) = self.owner_of(pod) {
            let key = key_of(&*owner);
            self.expectations.went(&key, &key_of(pod));
            self.queue.add(key);
        }
    }

    /// An orphan may be adopted by any owner that selects it.
    fn matching(&self, pod: &Pod) {
        for owner in self.owners.list_in(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if (self.selector)(&owner).is_ok_and(|s| !s.is_empty() && s.matches_optional(pod.metadata.labels.as_ref()))
            {
                self.queue.add(key_of(&*owner));
            }
        }
    }
}
