//! What becomes of an object, given what is known of its owners.

use super::graph::Node;
use gantry_api::meta::object::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN, Meta};
use gantry_api::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

/// What an owner turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// There, and staying.
    Solid,
    /// Gone.
    Dangling,
    /// Waiting for its dependents to be deleted before it is.
    Waiting,
}

/// What to do with an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Take references to owners that are gone or going out of it.
    DropOwners(Vec<OwnerReference>),
    /// Delete it, with this propagation policy; first stop its references from blocking, where it is part of a circle.
    Delete {
        /// `Background`, `Foreground` or `Orphan`.
        policy: &'static str,
        /// Its references block its owners in a circle.
        unblock: bool,
    },
}

/// Decides. `owners` are the object's references with what became of each; `circular` whether a dependent of it waits for
/// its own dependents too.
#[must_use]
pub fn verdict(meta: &ObjectMeta, owners: &[(OwnerReference, Owner)], node: &Node, circular: bool) -> Verdict {
    let of = |kind: Owner| owners.iter().filter(move |(_, o)| *o == kind);
    let any_waiting = of(Owner::Waiting).next().is_some();
    if of(Owner::Solid).next().is_some() {
        let dropped: Vec<OwnerReference> =
            owners.iter().filter(|(_, o)| *o != Owner::Solid).map(|(r, _)| r.clone()).collect();
        return if dropped.is_empty() {
            Verdict::Keep
        } else {
            Verdict::DropOwners(owners.iter().filter(|(_, o)| *o == Owner::Solid).map(|(r, _)| r.clone()).collect())
        };
    }
    if any_waiting && !node.dependents.is_empty() {
        return Verdict::Delete { policy: "Foreground", unblock: circular };
    }
    let has = |f: &str| meta.finalizers_or_empty().iter().any(|have| have == f);
    let policy = if has(FINALIZER_ORPHAN) {
        "Orphan"
    } else if has(FINALIZER_FOREGROUND) {
        "Foreground"
    } else {
        "Background"
    };
    Verdict::Delete { policy, unblock: false }
}

/// A merge patch of metadata that applies only to the version it was made from.
fn patch(meta: &ObjectMeta, field: &str, value: Value) -> Value {
    json!({"metadata": {"uid": meta.uid(), "resourceVersion": meta.resource_version(), field: value}})
}

/// The patch that leaves only these owners.
#[must_use]
pub fn keep_owners(meta: &ObjectMeta, owners: &[OwnerReference]) -> Value {
    let value = if owners.is_empty() { Value::Null } else { owners.iter().map(reference).collect() };
    patch(meta, "ownerReferences", value)
}

/// The patch that removes one finalizer; None where it is not there.
#[must_use]
pub fn drop_finalizer(meta: &ObjectMeta, finalizer: &str) -> Option<Value> {
    let have = meta.finalizers_or_empty();
    if !have.iter().any(|f| f == finalizer) {
        return None;
    }
    let rest: Vec<&String> = have.iter().filter(|f| *f != finalizer).collect();
    let value = if rest.is_empty() { Value::Null } else { json!(rest) };
    Some(patch(meta, "finalizers", value))
}

/// The owners with none of them blocked by this object.
#[must_use]
pub fn unblocked(owners: &[OwnerReference]) -> Vec<OwnerReference> {
    let free = |o: &OwnerReference| OwnerReference {
        block_owner_deletion: o.block_owner_deletion.map(|_| false),
        ..o.clone()
    };
    owners.iter().map(free).collect()
}

fn reference(o: &OwnerReference) -> Value {
    let mut v = json!({"apiVersion": o.api_version, "kind": o.kind, "name": o.name, "uid": o.uid});
    if let Some(c) = o.controller {
        v["controller"] = c.into();
    }
    if let Some(b) = o.block_owner_deletion {
        v["blockOwnerDeletion"] = b.into();
    }
    v
}
