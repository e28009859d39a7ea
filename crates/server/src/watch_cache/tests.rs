//! The cache by itself, fed by hand.

use super::*;
use crate::encryption::Encryption;
use gantry_api::entropy::Entropy;
use gantry_api::meta::fields::FieldSelector;
use gantry_api::meta::labels::Selector;
use serde_json::{Value, json};

pub(super) fn pods() -> Arc<WatchCache> {
    let resource = gantry_api::kinds::find("", "v1", "pods").unwrap();
    let plain = Encryption::none(Entropy::seeded(1)).of(resource);
    Arc::new(WatchCache::new(resource, "/registry/core/pods/".into(), Arc::new(Applied::default()), plain))
}

pub(super) fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "ns", "labels": { "app": "web" } },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "registry.example.com/image:v1" }] },
    })
}

pub(super) fn put(cache: &WatchCache, revision: u64, event: EventType, value: Value) {
    let object = cache.resource.decode_value(value).unwrap();
    let path = format!("ns/{}", object.meta().name.as_deref().unwrap());
    let selectable = Selectable::of(cache.resource, object.as_ref());
    let entry = Entry::new(&path, event, &object.to_json(), revision, cache.resource, selectable);
    cache.apply(revision, std::iter::once(Applying { path, entry: Some(entry), fresh: None }));
}

fn delete(cache: &WatchCache, revision: u64, name: &str) {
    cache.apply(revision, std::iter::once(Applying { path: format!("ns/{name}"), entry: None, fresh: None }));
}

fn selection(cache: &WatchCache, fields: &str) -> Selection {
    let fields = FieldSelector::parse(fields).unwrap();
    Selection::new("", Selector::everything(), &fields, &cache.field_names).unwrap()
}

fn seen(subscription: &Subscription) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(Next::Event(event, shown)) = subscription.try_next() {
        let frame: Value = serde_json::from_slice(&event.frame(shown)).unwrap();
        out.push(format!(
            "{} {}",
            frame["type"].as_str().unwrap(),
            frame["object"]["metadata"]["name"].as_str().unwrap()
        ));
    }
    out
}

#[test]
fn watchers_by_node_see_what_comes_and_goes() {
    let cache = pods();
    let (_, n1) = cache.subscribe(selection(&cache, "spec.nodeName=n1"), None).unwrap();
    let (_, n2) = cache.subscribe(selection(&cache, "spec.nodeName=n2"), None).unwrap();
    let (_, unbound) = cache.subscribe(selection(&cache, "spec.nodeName="), None).unwrap();
    put(&cache, 1, EventType::Added, pod("a", ""));
    put(&cache, 2, EventType::Modified, pod("a", "n1"));
    put(&cache, 3, EventType::Modified, pod("a", "n2"));
    delete(&cache, 4, "a");
    assert_eq!(seen(&n1), ["ADDED a", "DELETED a"]);
    assert_eq!(seen(&n2), ["ADDED a", "DELETED a"]);
    assert_eq!(seen(&unbound), ["ADDED a", "DELETED a"]);
    drop((n1, n2, unbound));
    assert_eq!(cache.counts(), (0, 0));
}

#[test]
fn events_of_all_watchers_are_the_same_bytes() {
    let cache = pods();
    let watchers: Vec<_> = (0..3).map(|_| cache.subscribe(selection(&cache, ""), None).unwrap().1).collect();
    put(&cache, 1, EventType::Added, pod("a", ""));
    let frames: Vec<_> = watchers
        .iter()
        .map(|w| match w.try_next() {
            Some(Next::Event(event, shown)) => event.frame(shown).as_ptr(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(frames.iter().all(|f| *f == frames[0]));
    assert_eq!(
        cache.get("ns/a").unwrap().json().as_ptr().addr(),
        frames[0].addr() + r#"{"type":"ADDED","object":"#.len()
    );
}

#[test]
fn other_forms_of_an_event_are_made_once() {
    let cache = pods();
    let watchers: Vec<_> = (0..3).map(|_| cache.subscribe(selection(&cache, ""), None).unwrap().1).collect();
    let made = std::cell::Cell::new(0);
    let bytes = |watcher: &Subscription, encoding: Encoding| match watcher.try_next() {
        Some(Next::Event(event, shown)) => cache.encoded(&event, shown, encoding, || {
            made.set(made.get() + 1);
            Ok::<_, ()>(Bytes::from(event.revision().to_string()))
        }),
        other => panic!("{other:?}"),
    };
    let protobuf = Encoding { protobuf: true, metadata: None };
    let metadata = Encoding { protobuf: true, metadata: Some("v1") };
    for revision in 1..=100 {
        put(&cache, revision, EventType::Modified, pod("a", ""));
        for (watcher, encoding) in watchers.iter().zip([protobuf, metadata, protobuf]) {
            assert_eq!(bytes(watcher, encoding).unwrap(), revision.to_string());
        }
    }
    assert_eq!(made.get(), 200, "each in two forms, for three watchers");

    let large = Bytes::from(vec![0; 1 << 20]);
    put(&cache, 101, EventType::Modified, pod("a", ""));
    for watcher in &watchers {
        let Some(Next::Event(event, shown)) = watcher.try_next() else { panic!("no event") };
        let got = cache.encoded(&event, shown, metadata, || Ok::<_, ()>(large.clone())).unwrap();
        assert_eq!(got.as_ptr(), large.as_ptr());
    }
    // The first watcher's is all that is kept, large as it is, and it goes with the next.
    put(&cache, 102, EventType::Modified, pod("a", ""));
    watchers.iter().for_each(|w| assert_eq!(bytes(w, protobuf).unwrap(), "102"));
    assert!(large.is_unique());
}

#[test]
fn a_watcher_that_does_not_read_is_closed() {
    let cache = pods();
    let (_, slow) = cache.subscribe(selection(&cache, ""), None).unwrap();
    put(&cache, 1, EventType::Added, pod("a", ""));
    for revision in 2..6000 {
        put(&cache, revision, EventType::Modified, pod("a", &format!("n{revision}")));
    }
    assert!(matches!(slow.try_next(), Some(Next::Closed(Closed::TooSlow))));
}

#[test]
fn a_watcher_of_large_objects_is_closed_earlier() {
    let cache = pods();
    let (_, slow) = cache.subscribe(selection(&cache, ""), None).unwrap();
    let large = "x".repeat(1 << 20);
    let events = |s: &Subscription| std::iter::from_fn(|| s.try_next()).take(1000).collect::<Vec<_>>();
    for revision in 1..=64 {
        put(&cache, revision, EventType::Modified, pod("a", &large));
    }
    assert_eq!(events(&slow).len(), 64, "so many are kept in any case");
    for revision in 65..=129 {
        put(&cache, revision, EventType::Modified, pod("a", &large));
    }
    assert!(matches!(slow.try_next(), Some(Next::Closed(Closed::TooSlow))));
}

#[test]
fn the_past_is_rebuilt_from_the_ring() {
    let cache = pods();
    put(&cache, 1, EventType::Added, pod("a", ""));
    put(&cache, 2, EventType::Added, pod("b", ""));
    put(&cache, 3, EventType::Modified, pod("a", "n1"));
    delete(&cache, 4, "b");
    let at = |revision: u64| -> Vec<(String, u64)> {
        let snapshot = cache.snapshot_at(revision).unwrap();
        snapshot.iter_after("", "").map(|e| (e.name().to_owned(), e.revision)).collect()
    };
    let entry = |name: &str, revision| (name.to_owned(), revision);
    assert_eq!(at(1), [entry("a", 1)]);
    assert_eq!(at(2), [entry("a", 1), entry("b", 2)]);
    assert_eq!(at(3), [entry("a", 3), entry("b", 2)]);
    assert_eq!(at(4), [entry("a", 3)]);
    assert!(cache.subscribe(selection(&cache, ""), Some(0)).is_ok());
}

#[test]
fn namespaces_do_not_run_into_each_other() {
    let cache = pods();
    let make = |path: &str, revision| {
        let (namespace, name) = path.split_once('/').unwrap();
        let value = json!({ "metadata": { "name": name, "namespace": namespace }, "spec": { "containers": [] } });
        let object = cache.resource.decode_value(value).unwrap();
        let selectable = Selectable::of(cache.resource, object.as_ref());
        let entry = Entry::new(path, EventType::Added, &object.to_json(), revision, cache.resource, selectable);
        cache.apply(revision, std::iter::once(Applying { path: path.to_owned(), entry: Some(entry), fresh: None }));
    };
    for (i, path) in ["a/x", "a/y", "a-b/x", "a0/x", "b/x"].into_iter().enumerate() {
        make(path, i as u64 + 1);
    }
    let snapshot = cache.snapshot();
    let of = |namespace: &str, after: &str| -> Vec<String> {
        snapshot.iter_after(namespace, after).map(|e| e.path().to_owned()).collect()
    };
    assert_eq!(of("a", ""), ["a/x", "a/y"]);
    assert_eq!(of("a", "a/x"), ["a/y"]);
    assert_eq!(of("a-b", ""), ["a-b/x"]);
    assert_eq!(of("", "a/x"), ["a/y", "a0/x", "b/x"]);
    assert_eq!(of("", "").len(), 5);
}

#[test]
fn an_entry_takes_at_most_half_again_its_json() {
    let cache = pods();
    let mut value = pod("some-deployment-5d8f7c9b4-x2x7k", "node-17.example.com");
    value["metadata"]["uid"] = "0b7c62a2-5f0e-4a53-9a53-6f1f6a4b2a11".into();
    value["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    value["status"] = json!({ "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }], "qosClass": "BestEffort",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }] });
    let mut filled = cache.resource.decode_value(value).unwrap();
    cache.resource.set_defaults(filled.as_mut());
    let json = filled.to_json();
    put(&cache, 1, EventType::Added, filled.to_value());
    let size = cache.get("ns/some-deployment-5d8f7c9b4-x2x7k").unwrap().size();
    assert!(size * 2 <= json.len() * 3, "{size} bytes for {} of JSON", json.len());
}

#[test]
fn the_version_goes_into_the_metadata_of_the_object_itself() {
    let resource = gantry_api::kinds::find("apps", "v1", "controllerrevisions").unwrap();
    let data = json!({"note": "\"metadata\":{", "spec": {"template": {"metadata": {"name": "x"}}}});
    let value = json!({"metadata": {"name": "r", "namespace": "ns"}, "data": data, "revision": 1});
    let object = resource.decode_value(value).unwrap();
    let selectable = Selectable::of(resource, object.as_ref());
    let entry = Entry::new("ns/r", EventType::Added, &object.to_json(), 7, resource, selectable);
    let shown = |json: &[u8]| -> Value { serde_json::from_slice(json).unwrap() };
    assert_eq!(shown(&entry.json())["metadata"]["resourceVersion"], "7");
    assert_eq!(shown(&entry.json())["data"], data);
    let gone = shown(&entry.reframed(EventType::Deleted, 9));
    assert_eq!((&gone["object"]["metadata"]["resourceVersion"], &gone["object"]["data"]), (&json!("9"), &data));
}
