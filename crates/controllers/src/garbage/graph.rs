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
    /// How many of them hold up its deletion.
    pub blocking: usize,
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
            blocking: before.blocking,
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

        // Each owner once, however often it is named.
        let former: BTreeSet<&str> = before.owners.iter().map(|o| o.uid.as_str()).collect();
        for old in former {
            let (blocked, blocks) = (blocks(&before.owners, old), blocks(&owners, old));
            let kept = owners.iter().any(|o| o.uid == old);
            if blocked && !blocks {
                self.unblock(old);
            } else if blocks && !blocked {
                self.block(old);
            }
            if !kept {
                self.unlink(old, &uid);
            }
            // Nobody need look before the last one that blocks is out of the way.
            if (!kept || (blocked && !blocks)) && self.is_free_to_go(old) {
                look.insert(old.to_owned());
            }
        }
        for owner in &owners {
            if before.observed && before.owners.iter().any(|o| o.uid == owner.uid) {
                continue;
            }
            if self.is_absent(&owner.uid) {
                look.insert(uid.clone());
            }
            let blocks = usize::from(blocks(&owners, &owner.uid));
            match self.nodes.get_mut(&owner.uid) {
                Some(n) => {
                    if n.dependents.insert(uid.clone()) {
                        n.blocking += blocks;
                    }
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
                    let node = Node { identity, dependents, blocking: blocks, ..Default::default() };
                    self.nodes.insert(owner.uid.clone(), node);
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
        let owners: BTreeSet<&str> = node.owners.iter().map(|o| o.uid.as_str()).collect();
        for owner in owners {
            if blocks(&node.owners, owner) {
                self.unblock(owner);
            }
            self.unlink(owner, uid);
            if self.is_free_to_go(owner) {
                look.insert(owner.to_owned());
            }
        }
        look
    }

    fn block(&mut self, owner: &str) {
        if let Some(n) = self.nodes.get_mut(owner) {
            n.blocking += 1;
        }
    }

    fn unblock(&mut self, owner: &str) {
        if let Some(n) = self.nodes.get_mut(owner) {
            n.blocking = n.blocking.saturating_sub(1);
        }
    }

    /// Whether the object waits for its dependents and none of them holds it up any more.
    fn is_free_to_go(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|n| n.foreground && n.blocking == 0)
    }

    /// Whether dependents hold up the deletion of `uid`.
    #[must_use]
    pub fn is_blocked(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|n| n.blocking > 0)
    }
}

/// Whether an object with these owners holds up the deletion of the one with this UID.
fn blocks(owners: &[OwnerReference], uid: &str) -> bool {
    owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
}
