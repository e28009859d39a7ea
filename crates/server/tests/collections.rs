//! Lists, pages, tables and watches.

mod harness;

use bytes::Bytes;
use harness::Harness;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::Duration;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn make(h: &Harness, name: &str, labels: Value) -> Value {
    let body = json!({ "metadata": { "name": name, "labels": labels }, "data": { "n": name } });
    let (code, made) = h.call("POST", CONFIG_MAPS, Some(body)).await;
    assert_eq!(code, 201, "{made}");
    made
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

/// Reads the events of a watch.
struct Events {
    body: gantry_server::request::ResponseBody,
    rest: Vec<u8>,
}

impl Events {
    async fn start(h: &Harness, uri: &str) -> Self {
        let response = h.raw("GET", uri, &[], Bytes::new()).await;
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), rest: Vec::new() }
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(5), self.body.frame()).await.expect("an event")?;
            self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// (type, name) of the next event.
    async fn brief(&mut self) -> (String, String) {
        let e = self.next().await.expect("an event");
        (
            e["type"].as_str().unwrap().to_owned(),
            e["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        )
    }
}

fn brief(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let h = Harness::start().await;
    for i in 0..5 {
        make(&h, &format!("c{i}"), json!({})).await;
    }
    let (_, first) = h.call("GET", &format!("{CONFIG_MAPS}?limit=2"), None).await;
    assert_eq!(names(&first), ["c0", "c1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What happens between the pages is not seen by the later ones.
    make(&h, "c2a", json!({})).await;
    h.call("DELETE", &format!("{CONFIG_MAPS}/c3"), None).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = h.call("GET", &format!("{CONFIG_MAPS}?limit=10&continue={token}"), None).await;
    assert_eq!(names(&second), ["c2", "c3", "c4"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(second["metadata"].get("continue").is_none());
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let (_, exact) =
        h.call("GET", &format!("{CONFIG_MAPS}?resourceVersion={version}&resourceVersionMatch=Exact"), None).await;
    assert_eq!(names(&exact), ["c0", "c1", "c2", "c3", "c4"]);
    let (_, now) = h.call("GET", CONFIG_MAPS, None).await;
    assert_eq!(names(&now), ["c0", "c1", "c2", "c2a", "c4"]);
    let (code, future) = h.call("GET", &format!("{CONFIG_MAPS}?resourceVersion=999999"), None).await;
    assert_eq!((code, future["reason"].as_str()), (504, Some("Timeout")));
}

#[tokio::test]
async fn selectors_choose() {
    let h = Harness::start().await;
    make(&h, "a", json!({ "app": "web", "tier": "1" })).await;
    make(&h, "b", json!({ "app": "db" })).await;
    make(&h, "c", json!({})).await;
    let cases = [
        ("labelSelector=app", vec!["a", "b"]),
        ("labelSelector=app%3Dweb", vec!["a"]),
        ("labelSelector=app%20in%20(web,db),tier!%3D1", vec!["b"]),
        ("labelSelector=!app", vec!["c"]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.name!%3Db", vec!["a", "c"]),
        ("fieldSelector=metadata.namespace%3Dother", vec![]),
        ("limit=1&labelSelector=app%3Ddb", vec!["b"]),
    ];
    for (query, want) in cases {
        let (code, list) = h.call("GET", &format!("{CONFIG_MAPS}?{query}"), None).await;
        assert_eq!((code, names(&list)), (200, want), "{query}");
    }
}

#[tokio::test]
async fn shapes_of_answers() {
    let h = Harness::start().await;
    make(&h, "a", json!({})).await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let (_, t) = h.call_with("GET", CONFIG_MAPS, &table, "").await;
    assert_eq!((&t["kind"], &t["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(t["columnDefinitions"][0]["name"], "Name");
    assert_eq!(t["rows"][0]["cells"][0], "a");
    assert_eq!(t["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let (_, t) = h.call_with("GET", &format!("{CONFIG_MAPS}/a?includeObject=Object"), &table, "").await;
    assert_eq!(t["rows"][0]["object"]["data"]["n"], "a");
    let partial = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let (_, p) = h.call_with("GET", CONFIG_MAPS, &partial, "").await;
    assert_eq!((&p["kind"], &p["items"][0]["metadata"]["name"]), (&json!("PartialObjectMetadataList"), &json!("a")));
    assert!(p["items"][0].get("data").is_none());
    let (_, yaml) = h.call_with("GET", &format!("{CONFIG_MAPS}/a"), &[("accept", "application/yaml")], "").await;
    assert!(yaml.as_str().unwrap().contains("kind: ConfigMap"), "{yaml}");
    let body = "metadata:\n  name: from-yaml\ndata:\n  k: v\n";
    let (code, made) = h.call_with("POST", CONFIG_MAPS, &[("content-type", "application/yaml")], body).await;
    assert_eq!((code, made["data"]["k"].as_str()), (201, Some("v")));
    let (code, e) = h.call_with("GET", CONFIG_MAPS, &[("accept", "image/png")], "").await;
    assert_eq!((code, e["reason"].as_str()), (406, Some("NotAcceptable")));
}

#[tokio::test]
async fn a_large_list_is_whole_and_compressed_on_request() {
    let h = Harness::start().await;
    let filler = "x".repeat(20_000);
    for i in 0..30 {
        let body = json!({ "metadata": { "name": format!("c{i:02}") }, "data": { "f": filler } });
        h.call("POST", CONFIG_MAPS, Some(body)).await;
    }
    let (_, list) = h.call("GET", CONFIG_MAPS, None).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 30);
    let response = h.raw("GET", CONFIG_MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.len() < 30_000);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), list);
}

#[tokio::test]
async fn watches_show_changes_from_a_version_on() {
    let h = Harness::start().await;
    let first = make(&h, "a", json!({})).await;
    make(&h, "b", json!({ "app": "web" })).await;
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let mut all = Events::start(&h, &format!("{CONFIG_MAPS}?watch=true&resourceVersion={version}")).await;
    assert_eq!(all.brief().await, brief("ADDED", "b"));
    let mut web = Events::start(&h, "/api/v1/configmaps?watch=true&labelSelector=app%3Dweb").await;
    assert_eq!(web.brief().await, brief("ADDED", "b"));
    let mut one = Events::start(&h, &format!("{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3Da")).await;
    assert_eq!(one.brief().await, brief("ADDED", "a"));

    let merge = [("content-type", "application/merge-patch+json")];
    h.call_with("PATCH", &format!("{CONFIG_MAPS}/b"), &merge, r#"{"metadata":{"labels":{"app":"db"}}}"#).await;
    assert_eq!(all.brief().await, brief("MODIFIED", "b"));
    let left = web.next().await.unwrap();
    assert_eq!(
        (&left["type"], &left["object"]["metadata"]["labels"]["app"]),
        (&json!("DELETED"), &json!("web")),
        "its state before it left"
    );
    let (_, now) = h.call("GET", &format!("{CONFIG_MAPS}/b"), None).await;
    assert_eq!(left["object"]["metadata"]["resourceVersion"], now["metadata"]["resourceVersion"]);
    h.call_with("PATCH", &format!("{CONFIG_MAPS}/b"), &merge, r#"{"metadata":{"labels":{"app":"web"}}}"#).await;
    assert_eq!(web.brief().await, brief("ADDED", "b"));
    h.call("DELETE", &format!("{CONFIG_MAPS}/b"), None).await;
    assert_eq!(web.brief().await, brief("DELETED", "b"));
    h.call("DELETE", &format!("{CONFIG_MAPS}/a"), None).await;
    assert_eq!(one.brief().await, brief("DELETED", "a"));
    for want in [brief("MODIFIED", "b"), brief("DELETED", "b"), brief("DELETED", "a")] {
        assert_eq!(all.brief().await, want);
    }
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let h = Harness::start().await;
    make(&h, "a", json!({})).await;
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut events = Events::start(&h, &format!("{CONFIG_MAPS}?{query}")).await;
    assert_eq!(events.brief().await, brief("ADDED", "a"));
    let mark = events.next().await.unwrap();
    assert_eq!((&mark["type"], &mark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    make(&h, "b", json!({})).await;
    assert_eq!(events.brief().await, brief("ADDED", "b"));
    let last = events.next().await.unwrap();
    assert_eq!(last["type"], "BOOKMARK", "before the watch ends at its timeout");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_version_no_longer_held_is_expired() {
    let h = Harness::start().await;
    let mut events = Events::start(&h, &format!("{CONFIG_MAPS}?watch=true&resourceVersion=1")).await;
    for _ in 0..3 {
        make(&h, &format!("c{}", h.server.registry.revision()), json!({})).await;
    }
    let first = events.next().await.unwrap();
    // The history of a fresh server reaches back to its start.
    assert_eq!(first["type"], "ADDED", "{first}");
    // Push everything old out of the ring.
    let merge = [("content-type", "application/merge-patch+json")];
    let name = first["object"]["metadata"]["name"].as_str().unwrap();
    let filler = "x".repeat(64 << 10);
    for i in 0..150 {
        let body = format!(r#"{{"data":{{"n":"{i}{filler}"}}}}"#);
        let (code, answer) = h.call_with("PATCH", &format!("{CONFIG_MAPS}/{name}"), &merge, body).await;
        assert_eq!(code, 200, "{answer}");
    }
    // A read waits until the cache has seen all of it.
    h.call("GET", CONFIG_MAPS, None).await;
    let mut events = Events::start(&h, &format!("{CONFIG_MAPS}?watch=true&resourceVersion=1")).await;
    let error = events.next().await.unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"], &error["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert!(events.next().await.is_none());
    let (code, expired) =
        h.call("GET", &format!("{CONFIG_MAPS}?resourceVersion=2&resourceVersionMatch=Exact"), None).await;
    assert_eq!((code, expired["reason"].as_str()), (410, Some("Expired")));
}

#[tokio::test]
async fn stopping_ends_watches() {
    let h = Harness::start().await;
    let mut events = Events::start(&h, &format!("{CONFIG_MAPS}?watch=true")).await;
    h.shutdown.cancel();
    assert!(events.next().await.is_none());
}
