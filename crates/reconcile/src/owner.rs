//! Owner references and how a controller claims its objects.

use gantry_api::kind::Kind;
use gantry_api::{ObjectMeta, OwnerReference};
use gantry_client::Patch;
use serde_json::json;

/// The reference that names `owner` as the managing controller.
#[must_use]
pub fn controller_reference<K: Kind>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::INFO.api_version(),
        kind: K::INFO.kind.to_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The reference to the managing controller, if any.
#[must_use]
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|r| r.controller == Some(true))
}

/// Whether `meta` is managed by the object with this UID.
#[must_use]
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|r| r.uid == uid)
}

/// What to do with an object that a controller's selector or owner reference touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours and matches.
    Keep,
    /// It matches and has no controller: take it.
    Adopt,
    /// It is ours and no longer matches: let go.
    Release,
    /// Not ours to touch.
    Ignore,
}

/// Decides a claim. `owner` is the controller's metadata, `matches` whether its selector matches `object`.
#[must_use]
pub fn claim(owner: &ObjectMeta, object: &ObjectMeta, matches: bool) -> Claim {
    let uid = owner.uid.as_deref().unwrap_or_default();
    match controller_of(object) {
        Some(r) if r.uid != uid => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner.deletion_timestamp.is_some() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner.deletion_timestamp.is_some() || !matches => Claim::Ignore,
        None if object.deletion_timestamp.is_some() => Claim::Ignore,
        None if object.namespace != owner.namespace => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// The patch that makes `owner` the controller of the object with `uid`.
#[must_use]
pub fn adoption<K: Kind>(owner: &K, uid: &str) -> Patch {
    let r = controller_reference(owner);
    Patch::Strategic(json!({
        "metadata": {
            "uid": uid,
            "ownerReferences": [{
                "apiVersion": r.api_version, "kind": r.kind, "name": r.name, "uid": r.uid,
                "controller": true, "blockOwnerDeletion": true,
            }],
        }
    }))
}

/// The patch that removes the owner with `owner_uid` from the object with `uid`.
#[must_use]
pub fn release(owner_uid: &str, uid: &str) -> Patch {
    Patch::Strategic(json!({
        "metadata": { "uid": uid, "ownerReferences": [{ "$patch": "delete", "uid": owner_uid }] }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(uid: &str, controller: Option<&str>, deleting: bool) -> ObjectMeta {
        let reference = |u: &str| OwnerReference { uid: u.into(), controller: Some(true), ..Default::default() };
        ObjectMeta {
            uid: Some(uid.into()),
            namespace: Some("n".into()),
            owner_references: controller.map(|u| vec![reference(u)]),
            deletion_timestamp: deleting.then_some(gantry_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH)),
            ..Default::default()
        }
    }

    #[test]
    fn claims() {
        let me = meta("me", None, false);
        let dying = meta("me", None, true);
        let cases = [
            (&me, meta("x", Some("me"), false), true, Claim::Keep),
            (&me, meta("x", Some("me"), false), false, Claim::Release),
            (&me, meta("x", Some("other"), false), true, Claim::Ignore),
            (&me, meta("x", None, false), true, Claim::Adopt),
            (&me, meta("x", None, true), true, Claim::Ignore),
            (&me, meta("x", None, false), false, Claim::Ignore),
            (&dying, meta("x", None, false), true, Claim::Ignore),
            (&dying, meta("x", Some("me"), false), false, Claim::Ignore),
        ];
        for (owner, object, matches, want) in cases {
            assert_eq!(claim(owner, &object, matches), want, "{object:?} {matches}");
        }
    }
}
