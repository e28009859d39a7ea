use super::*;
use gantry_api::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

fn owner(uid: &str, block: bool) -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".into(),
        kind: "ReplicaSet".into(),
        name: uid.into(),
        uid: uid.into(),
        controller: None,
        block_owner_deletion: Some(block),
    }
}

fn meta(uid: &str, owners: &[OwnerReference], finalizers: &[&str], deleting: bool) -> ObjectMeta {
    ObjectMeta {
        uid: Some(uid.into()),
        name: Some(uid.into()),
        namespace: Some("n".into()),
        resource_version: Some("7".into()),
        owner_references: (!owners.is_empty()).then(|| owners.to_vec()),
        finalizers: (!finalizers.is_empty()).then(|| finalizers.iter().map(|f| (*f).to_owned()).collect()),
        deletion_timestamp: deleting.then_some(Time(Timestamp::UNIX_EPOCH)),
        ..Default::default()
    }
}

fn see(g: &mut Graph, m: &ObjectMeta) -> Vec<String> {
    g.observe("v1", "Pod", m).into_iter().collect()
}

#[test]
fn an_owner_nobody_has_seen_is_looked_up_and_its_end_reaches_its_dependents() {
    let mut g = Graph::default();
    assert_eq!(see(&mut g, &meta("pod", &[owner("rs", true)], &[], false)), ["rs"]);
    assert!(!g.get("rs").unwrap().observed);
    assert!(see(&mut g, &meta("rs", &[], &[], false)).is_empty());
    let gone: Vec<String> = g.remove("rs").into_iter().collect();
    assert_eq!(gone, ["pod"]);
    assert!(g.is_absent("rs"));
    assert_eq!(see(&mut g, &meta("late", &[owner("rs", true)], &[], false)), ["late", "rs"]);
}

#[test]
fn foreground_deletion_waits_for_those_that_block() {
    let mut g = Graph::default();
    see(&mut g, &meta("rs", &[], &[], false));
    see(&mut g, &meta("a", &[owner("rs", true)], &[], false));
    see(&mut g, &meta("b", &[owner("rs", false)], &[], false));
    let look = see(&mut g, &meta("rs", &[], &["foregroundDeletion"], true));
    assert_eq!(look, ["a", "b", "rs"]);
    assert!(g.is_blocked("rs"));
    assert_eq!(see(&mut g, &meta("a", &[owner("rs", false)], &[], false)), ["rs"], "unblocked");
    assert!(!g.is_blocked("rs"));
    assert_eq!(g.remove("b").into_iter().collect::<Vec<_>>(), ["rs"]);
}

#[test]
fn only_the_last_that_blocks_brings_its_owner_back() {
    let mut g = Graph::default();
    for dependent in ["a", "b", "c"] {
        // Named twice, it counts once.
        see(&mut g, &meta(dependent, &[owner("rs", true), owner("rs", false)], &[], false));
    }
    see(&mut g, &meta("rs", &[], &["foregroundDeletion"], true));
    assert_eq!(g.get("rs").unwrap().blocking, 3);
    assert!(g.remove("a").is_empty());
    assert!(see(&mut g, &meta("b", &[], &[], false)).is_empty());
    assert!(see(&mut g, &meta("b", &[owner("rs", true)], &[], false)).contains(&"b".to_owned()));
    assert!(g.remove("b").is_empty());
    assert_eq!(g.remove("c").into_iter().collect::<Vec<_>>(), ["rs"]);
    assert!(!g.is_blocked("rs"));
}

#[test]
fn orphaning_is_noticed_once_and_owners_without_dependents_are_forgotten() {
    let mut g = Graph::default();
    assert_eq!(see(&mut g, &meta("rs", &[], &["orphan"], true)), ["rs"]);
    assert!(see(&mut g, &meta("rs", &[], &["orphan"], true)).is_empty());
    see(&mut g, &meta("pod", &[owner("virtual", true)], &[], false));
    see(&mut g, &meta("pod", &[], &[], false));
    assert!(g.get("virtual").is_none());
}

#[test]
fn verdicts() {
    let plain = meta("x", &[], &[], false);
    let leaf = Node::default();
    let parent = Node { dependents: ["d".to_owned()].into(), ..Default::default() };
    let o = |uid: &str, state| (owner(uid, true), state);
    let delete = |policy, unblock| Verdict::Delete { policy, unblock };
    assert_eq!(verdict(&plain, &[o("a", Owner::Solid)], &leaf, false), Verdict::Keep);
    assert_eq!(
        verdict(&plain, &[o("a", Owner::Solid), o("b", Owner::Dangling), o("c", Owner::Waiting)], &leaf, false),
        Verdict::DropOwners(vec![owner("a", true)])
    );
    assert_eq!(verdict(&plain, &[o("a", Owner::Dangling)], &leaf, false), delete("Background", false));
    assert_eq!(verdict(&plain, &[o("a", Owner::Waiting)], &leaf, false), delete("Background", false));
    assert_eq!(verdict(&plain, &[o("a", Owner::Waiting)], &parent, true), delete("Foreground", true));
    let orphan = meta("x", &[], &["orphan"], false);
    assert_eq!(verdict(&orphan, &[o("a", Owner::Dangling)], &parent, false), delete("Orphan", false));
}

#[test]
fn patches_hold_for_one_version_only() {
    let m = meta("x", &[owner("a", true)], &["orphan", "keep"], true);
    assert_eq!(
        drop_finalizer(&m, "orphan").unwrap(),
        json!({"metadata": {"uid": "x", "resourceVersion": "7", "finalizers": ["keep"]}})
    );
    assert!(drop_finalizer(&m, "foregroundDeletion").is_none());
    assert_eq!(keep_owners(&m, &[])["metadata"]["ownerReferences"], serde_json::Value::Null);
    let free = keep_owners(&m, &unblocked(&[owner("a", true)]));
    assert_eq!(free["metadata"]["ownerReferences"][0]["blockOwnerDeletion"], false);
}
