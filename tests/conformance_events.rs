//! What upstream's conformance suite asks of Events in both of their groups. Each behaviour stands above its scenario by
//! upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, MERGE, STRATEGIC, name, names};
use serde_json::{Value, json};

#[test]
fn events() {
    let cluster = Cluster::start();
    let all =
        scenarios![the_life_of_a_core_event, a_collection_of_core_events, the_life_of_an_event, a_collection_of_events];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// An event of the core group.
fn core(namespace: &str, name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"testevent-constant": "true", "testevent-set": "true"}},
        "message": "This is a test event", "reason": "Test", "type": "Normal", "count": 1,
        "involvedObject": {"namespace": namespace, "kind": "Pod", "name": "p"}})
}

/// An event of events.k8s.io.
fn event(namespace: &str, name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"testevent-set": "true"}}, "eventTime": "2017-09-19T13:49:16.000000Z",
        "regarding": {"kind": "Pod", "namespace": namespace, "name": "p"}, "note": "This is a test", "action": "Do",
        "type": "Normal", "reason": "Test", "reportingController": "test-controller", "reportingInstance": "test-node"})
}

// Conformance: Event, manage lifecycle of an Event
fn the_life_of_a_core_event(api: &Api<'_>) {
    let namespace = api.namespace("core-event");
    let all = format!("/api/v1/namespaces/{namespace}/events");
    let one = format!("{all}/event-test");
    api.create(&all, &core(&namespace, "event-test"));
    let everywhere = api.list("/api/v1/events?labelSelector=testevent-constant%3Dtrue");
    assert!(everywhere.iter().any(|e| name(e) == "event-test" && e["metadata"]["namespace"] == namespace.as_str()));
    let patched = api.patch(&one, STRATEGIC, &json!({"message": "This is a test event - patched"}));
    assert_eq!(patched["message"], "This is a test event - patched");
    assert_eq!(api.get(&one)["message"], "This is a test event - patched");
    api.edit(&one, |e| e["series"] = json!({"count": 100, "lastObservedTime": "2014-01-01T12:30:00.000000Z"}));
    assert_eq!(api.get(&one)["series"], json!({"count": 100, "lastObservedTime": "2014-01-01T12:30:00.000000Z"}));
    // The same object is in the other group.
    assert_eq!(
        api.get(&format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events/event-test"))["note"],
        "This is a test event - patched"
    );
    api.delete(&one);
    let everywhere = api.list("/api/v1/events?labelSelector=testevent-constant%3Dtrue");
    assert!(everywhere.iter().all(|e| name(e) != "event-test"));
}

// Conformance: Event, delete a collection
fn a_collection_of_core_events(api: &Api<'_>) {
    let namespace = api.namespace("core-events");
    let all = format!("/api/v1/namespaces/{namespace}/events");
    let chosen = format!("{all}?labelSelector=testevent-set%3Dtrue");
    for name in ["test-event-1", "test-event-2", "test-event-3"] {
        api.create(&all, &core(&namespace, name));
    }
    assert_eq!(names(&api.list(&chosen)), ["test-event-1", "test-event-2", "test-event-3"]);
    assert_eq!(api.list(&format!("{all}?fieldSelector=involvedObject.name%3Dp,reason%3DTest")).len(), 3);
    api.delete(&chosen);
    assert!(api.list(&chosen).is_empty());
}

// Conformance: New Event resource lifecycle, testing a single event
fn the_life_of_an_event(api: &Api<'_>) {
    let namespace = api.namespace("new-event");
    let (all, elsewhere) = (
        format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"),
        "/apis/events.k8s.io/v1/namespaces/default/events",
    );
    let one = format!("{all}/event-test");
    api.create(&all, &event(&namespace, "event-test"));
    let listed = |path: &str| api.list(path).iter().any(|e| name(e) == "event-test");
    assert!(listed(&all) && listed("/apis/events.k8s.io/v1/events"));
    assert!(listed("/apis/events.k8s.io/v1/events?fieldSelector=reportingController%3Dtest-controller"));
    assert!(!listed(elsewhere) && !listed("/apis/events.k8s.io/v1/events?fieldSelector=reportingController%3Danother"));

    let patched =
        api.patch(&one, MERGE, &json!({"series": {"count": 2, "lastObservedTime": "2005-03-01T00:00:00.000000Z"}}));
    assert_eq!(patched["series"]["count"], 2);
    let updated =
        api.edit(&one, |e| e["series"] = json!({"count": 100, "lastObservedTime": "2014-01-01T12:30:00.000000Z"}));
    assert_eq!(api.get(&one)["series"], updated["series"]);
    assert_eq!(updated["series"]["count"], 100);
    // What says what happened never changes.
    let mut other = api.get(&one);
    other["note"] = json!("Something else");
    let status = api.send("PUT", &one, &other).expect(422);
    assert_eq!(status["reason"], "Invalid");
    assert!(status["message"].as_str().unwrap().ends_with("field is immutable"), "{status}");
    api.delete(&one);
    assert!(!listed(&all) && !listed("/apis/events.k8s.io/v1/events"));
}

// Conformance: New Event resource lifecycle, testing a list of events
fn a_collection_of_events(api: &Api<'_>) {
    let namespace = api.namespace("new-events");
    let all = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let chosen = format!("{all}?labelSelector=testevent-set%3Dtrue");
    for name in ["test-event-1", "test-event-2", "test-event-3"] {
        api.create(&all, &event(&namespace, name));
    }
    assert_eq!(names(&api.list(&chosen)), ["test-event-1", "test-event-2", "test-event-3"]);
    api.delete(&chosen);
    assert!(api.list(&chosen).is_empty());
}
