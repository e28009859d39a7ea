//! Who owns whom, by UID, as far as watches have told.

use gantry_api::meta::object::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN, Meta};
use gantry_api::{ObjectMeta, OwnerReference};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// So many UIDs known to be gone are remembered.
const ABSENT: usize = 500;

/// How to find an object: by its type as owner references spell it, and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} {}/{}", self.api_version, self.kind, self.namespace, self.name)
    }
}

/// One object.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// How to find it.
    pub identity: Identity,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// UIDs of what it owns.
    pub dependents: BTreeSet<String>,
    /// Whether a watch has shown it; otherwise it is only known as someone's owner.
    pub observed: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it waits for its dependents to be deleted first.
    pub foreground: bool,
    /// Whether its dependents are to be orphaned first.
    pub orphaning: bool,
}

/// The graph. Every change answers the UIDs that have to be looked at because of it.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: BTreeMap<String, Node>,
    absent: BTreeSet<String>,
    absent_order: VecDeque<String>,
}

impl Graph {
    /// The object with this UID.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// How many objects are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether the object with this UID is known to be gone.
    #[must_use]
    pub fn is_absent(&self, uid: &str) -> bool {
        self.absent.contains(uid)
    }

    /// Remembers that the object with this UID is gone.
    pub fn note_absent(&mut self, uid: &str) {
        if self.absent.insert(uid.to_owned()) {
            self.absent_order.push_back(uid.to_owned());
            if self.absent_order.len() > ABSENT
                && let Some(oldest) = self.absent_order.pop_front()
            {
                self.absent.remove(&oldest);
            }
        }
    }

    /// A watch showed an object.
    pub fn observe(&mut self, api_version: &str, kind: &str, meta: &ObjectMeta) -> BTreeSet<String> {
        let mut look = BTreeSet::new();
        let uid = meta.uid().to_owned();
        let owners = meta.owner_references.clone().unwrap_or_default();
        let waits_for = |f: &str| meta.is_deleting() && meta.finalizers_or_empty().iter().any(|have| have == f);
        let before = self.nodes.remove(&uid).unwrap_or_default();
        let node = Node {
            identity: Identity {
                api_version: api_version.to_owned(),
                kind: kind.to_owned(),
                namespace: meta.namespace().to_owned(),
                name: meta.name().to_owned(),
            },
            owners: owners.clone(),
            dependents: before.dependents,
            observed: true,
            deleting: meta.is_deleting(),
            foreground: waits_for(FINALIZER_FOREGROUND),
            orphaning: waits_for(FINALIZER_ORPHAN),
        };
        if node.foreground && !before.foreground {
            look.extend(node.dependents.iter().cloned());
        }
        if (node.foreground && !before.foreground) || (node.orphaning && !before.orphaning) {
            look.insert(uid.clone());
        }
        self.nodes.insert(uid.clone(), node);

        for old in &before.owners {
            let kept = owners.iter().find(|o| o.uid == old.uid);
            let blocked = old.block_owner_deletion == Some(true);
            let unblocked = blocked && kept.is_none_or(|k| k.block_owner_deletion != Some(true));
            if kept.is_none() {
                self.unlink(&old.uid, &uid);
            }
            if (kept.is_none() || unblocked) && self.nodes.get(&old.uid).is_some_and(|n| n.foreground) {
                look.insert(old.uid.clone());
            }
        }
        for owner in &owners {
            if before.observed && before.owners.iter().any(|o| o.uid == owner.uid) {
                continue;
            }
            if self.is_absent(&owner.uid) {
                look.insert(uid.clone());
            }
            match self.nodes.get_mut(&owner.uid) {
                Some(n) => {
                    n.dependents.insert(uid.clone());
                    if n.foreground {
                        look.insert(uid.clone());
                    }
                }
                None => {
                    let identity = Identity {
                        api_version: owner.api_version.clone(),
                        kind: owner.kind.clone(),
                        namespace: meta.namespace().to_owned(),
                        name: owner.name.clone(),
                    };
                    let dependents = [uid.clone()].into();
                    self.nodes.insert(owner.uid.clone(), Node { identity, dependents, ..Default::default() });
                    look.insert(owner.uid.clone());
                }
            }
        }
        look
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        let Some(n) = self.nodes.get_mut(owner) else { return };
        n.dependents.remove(dependent);
        if !n.observed && n.dependents.is_empty() {
            self.nodes.remove(owner);
        }
    }

    /// An object is gone.
    pub fn remove(&mut self, uid: &str) -> BTreeSet<String> {
        let Some(node) = self.nodes.remove(uid) else { return BTreeSet::new() };
        let mut look: BTreeSet<String> = node.dependents.clone();
        if !node.dependents.is_empty() {
            self.note_absent(uid);
        }
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(|n| n.foreground) {
                look.insert(owner.uid.clone());
            }
        }
        look
    }

    /// Dependents that hold up the deletion of `uid`.
    #[must_use]
    pub fn blocking(&self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.get(uid) else { return Vec::new() };
        let blocks = |d: &&String| {
            self.nodes
                .get(*d)
                .is_some_and(|n| n.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true)))
        };
        node.dependents.iter().filter(blocks).cloned().collect()
    }
}
