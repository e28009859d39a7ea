//! The garbage collector and a hundred thousand objects that own one another, of built-in and custom kinds: the right
//! ones go and the right ones stay, and what it costs grows with their number and not with its square.
//!
//! What it talks to is a made-up API server that knows metadata, finalizers and propagation policies, so that what is
//! measured is the collector. `GANTRY_GC_OBJECTS` chooses the number of objects (20,000 where it is not given).

#![allow(clippy::disallowed_methods, reason = "what the collector costs is told in real time")]

use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_client::{Body, Client, Transport, TransportError};
use gantry_controllers::config::Setup;
use gantry_controllers::{ALL, ControllersConfig};
use gantry_reconcile::Informers;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// The three kinds there are: path before the namespace, plural, kind, API version.
const CONFIG_MAP: usize = 0;
const WIDGET: usize = 1;
const GADGET: usize = 2;
const KINDS: [(&str, &str, &str, &str); 3] = [
    ("/api/v1", "configmaps", "ConfigMap", "v1"),
    ("/apis/example.com/v1", "widgets", "Widget", "example.com/v1"),
    ("/apis/example.com/v1", "gadgets", "Gadget", "example.com/v1"),
];

/// Kind, namespace, name.
type Key = (usize, String, String);

#[derive(Default)]
struct Heap {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// What happened to each kind, by version, as lines of a watch.
    events: [Vec<(u64, Bytes)>; 3],
    watchers: Vec<(usize, mpsc::UnboundedSender<Bytes>)>,
    /// Requests for single objects.
    requests: usize,
    /// Versions at which objects went.
    gone: BTreeMap<Key, u64>,
}

impl Heap {
    fn tell(&mut self, what: &str, key: &Key, metadata: &mut Value) {
        self.version += 1;
        metadata["resourceVersion"] = json!(self.version.to_string());
        let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
        let line = Bytes::from(format!("{}\n", json!({"type": what, "object": object})));
        self.events[key.0].push((self.version, line.clone()));
        self.watchers.retain(|(kind, to)| *kind != key.0 || to.send(line.clone()).is_ok());
    }

    fn put(&mut self, key: Key, mut metadata: Value) {
        let what = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        let finalizers = metadata["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if !metadata["deletionTimestamp"].is_null() && !finalizers {
            self.objects.remove(&key);
            self.tell("DELETED", &key, &mut metadata);
            self.gone.insert(key, self.version);
            return;
        }
        self.tell(what, &key, &mut metadata);
        self.objects.insert(key, metadata);
    }

    /// An object that these own (kind, name, whether it blocks). Its UID is its name unless told otherwise.
    fn make(&mut self, kind: usize, name: &str, owners: &[(usize, &str, &str, bool)]) {
        let references: Vec<Value> = owners
            .iter()
            .map(|(kind, name, uid, blocks)| {
                let (_, _, kind, version) = KINDS[*kind];
                json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "blockOwnerDeletion": blocks})
            })
            .collect();
        let namespace = if kind == GADGET { "" } else { "n" };
        let mut metadata = json!({"name": name, "uid": name, "creationTimestamp": "2027-01-15T08:00:00Z"});
        if !namespace.is_empty() {
            metadata["namespace"] = json!(namespace);
        }
        if !references.is_empty() {
            metadata["ownerReferences"] = json!(references);
        }
        self.put((kind, namespace.into(), name.into()), metadata);
    }

    fn delete(&mut self, key: &Key, options: &Value) -> Result<Value, (u16, &'static str)> {
        let Some(mut metadata) = self.objects.get(key).cloned() else { return Err((404, "NotFound")) };
        for (field, wanted) in options["preconditions"].as_object().into_iter().flatten() {
            if metadata[field.as_str()] != *wanted {
                return Err((409, "Conflict"));
            }
        }
        let mut finalizers: Vec<Value> = metadata["finalizers"].as_array().cloned().unwrap_or_default();
        finalizers.retain(|f| f != FOREGROUND && f != ORPHAN);
        match options["propagationPolicy"].as_str() {
            Some("Foreground") => finalizers.push(FOREGROUND.into()),
            Some("Orphan") => finalizers.push(ORPHAN.into()),
            _ => {}
        }
        metadata["finalizers"] = json!(finalizers);
        if metadata["deletionTimestamp"].is_null() {
            metadata["deletionTimestamp"] = json!("2027-01-15T08:00:01Z");
        }
        self.put(key.clone(), metadata.clone());
        Ok(metadata)
    }

    fn patch(&mut self, key: &Key, patch: &Value) -> Result<Value, (u16, &'static str)> {
        let Some(mut metadata) = self.objects.get(key).cloned() else { return Err((404, "NotFound")) };
        for (field, value) in patch["metadata"].as_object().into_iter().flatten() {
            if field == "uid" || field == "resourceVersion" {
                if metadata[field.as_str()] != *value {
                    return Err((409, "Conflict"));
                }
            } else if value.is_null() {
                metadata.as_object_mut().expect("metadata is an object").remove(field);
            } else {
                metadata[field.as_str()] = value.clone();
            }
        }
        self.put(key.clone(), metadata.clone());
        Ok(metadata)
    }
}

#[derive(Default)]
struct Fake {
    heap: Mutex<Heap>,
}

fn answer(code: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = http::StatusCode::from_u16(code).expect("a status code");
    response
}

fn failure(code: u16, reason: &str) -> Response<Body> {
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code,
            "message": reason}),
    )
}

fn partial(metadata: &Value) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata})
}

/// The kind, namespace and name that a path leads to.
fn parse(path: &str) -> Option<Key> {
    let kind = KINDS.iter().position(|(prefix, plural, _, _)| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.split('/').any(|part| part == *plural))
    })?;
    let parts: Vec<&str> = path.strip_prefix(KINDS[kind].0)?.split('/').filter(|p| !p.is_empty()).collect();
    let text = |n: usize| parts.get(n).copied().unwrap_or_default().to_owned();
    match parts.first() {
        Some(&"namespaces") => Some((kind, text(1), text(3))),
        _ => Some((kind, String::new(), text(1))),
    }
}

impl Fake {
    fn discovery(path: &str) -> Option<Value> {
        let verbs = json!(["create", "delete", "get", "list", "patch", "update", "watch"]);
        let of = |n: usize| json!({"name": KINDS[n].1, "kind": KINDS[n].2, "namespaced": n != GADGET, "verbs": verbs});
        match path {
            "/apis" => {
                let version = json!({"groupVersion": "example.com/v1", "version": "v1"});
                Some(json!({"groups": [{"name": "example.com", "versions": [version], "preferredVersion": version}]}))
            }
            "/api/v1" => Some(json!({"resources": [of(CONFIG_MAP)]})),
            "/apis/example.com/v1" => Some(json!({"resources": [of(WIDGET), of(GADGET)]})),
            _ => None,
        }
    }

    fn list(&self, kind: usize, query: &BTreeMap<&str, &str>) -> Response<Body> {
        let heap = self.heap.lock();
        let limit: usize = query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
        let from = query.get("continue").map(|name| (*name).to_owned()).unwrap_or_default();
        let namespace = if kind == GADGET { "" } else { "n" };
        let start = Bound::Excluded((kind, namespace.to_owned(), from));
        let mut items: Vec<(&Key, &Value)> = heap
            .objects
            .range((start, Bound::Unbounded))
            .take_while(|((k, _, _), _)| *k == kind)
            .take(limit.saturating_add(1))
            .collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let token =
            if more { items.last().map(|((_, _, name), _)| name.clone()).unwrap_or_default() } else { String::new() };
        let items: Vec<Value> = items.into_iter().map(|(_, m)| partial(m)).collect();
        answer(
            200,
            &json!({"metadata": {"resourceVersion": heap.version.to_string(), "continue": token}, "items": items}),
        )
    }

    fn watch(&self, kind: usize, query: &BTreeMap<&str, &str>) -> Response<Body> {
        let from: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let (to, mut events) = mpsc::unbounded_channel();
        let mut heap = self.heap.lock();
        let at = heap.events[kind].partition_point(|(version, _)| *version <= from);
        for (_, line) in &heap.events[kind][at..] {
            to.send(line.clone()).expect("the receiver is here");
        }
        heap.watchers.push((kind, to));
        let frames = futures::stream::poll_fn(move |context| {
            events.poll_recv(context).map(|line| line.map(|l| Ok(http_body::Frame::data(l))))
        });
        Response::new(StreamBody::new(frames).boxed())
    }
}

#[async_trait]
impl Transport for Fake {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let path = request.uri().path();
        if let Some(found) = Self::discovery(path) {
            return Ok(answer(200, &found));
        }
        let Some(key) = parse(path) else { return Ok(failure(404, "NotFound")) };
        let query = request.uri().query().unwrap_or_default();
        let query: BTreeMap<&str, &str> = query.split('&').filter_map(|p| p.split_once('=')).collect();
        if key.2.is_empty() {
            let watches = query.contains_key("watch");
            return Ok(if watches { self.watch(key.0, &query) } else { self.list(key.0, &query) });
        }
        // As a network would, so that requests overlap.
        tokio::task::yield_now().await;
        let mut heap = self.heap.lock();
        heap.requests += 1;
        let body = || serde_json::from_slice::<Value>(request.body()).expect("a body of JSON");
        let done = match *request.method() {
            Method::GET => heap.objects.get(&key).cloned().ok_or((404, "NotFound")),
            Method::DELETE => heap.delete(&key, &body()),
            _ => heap.patch(&key, &body()),
        };
        drop(heap);
        Ok(match done {
            Ok(metadata) => answer(200, &partial(&metadata)),
            Err((code, reason)) => failure(code, reason),
        })
    }
}

/// Resident memory of this process, MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

struct Collected {
    fake: Arc<Fake>,
}

impl Collected {
    fn start() -> Self {
        let fake = Arc::new(Fake::default());
        let client = Client::new(fake.clone(), "generic-garbage-collector");
        let informers = Informers::new(client.clone());
        let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap());
        let own = client.clone();
        let config =
            ControllersConfig::new(clock, Entropy::seeded(1), Arc::new(move |_: &str| own.clone()), "CA".into());
        let entry = ALL.iter().find(|e| e.name == "generic-garbage-collector").expect("there is a garbage collector");
        let cancel = CancellationToken::new();
        informers.start(&cancel);
        tokio::spawn((entry.start)(Setup { name: entry.name, client, informers, config: Arc::new(config), cancel }));
        Self { fake }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Heap) -> bool) {
        // Paused time moves on only when nobody has anything to do, so this looks seldom.
        for _ in 0..3600 {
            if holds(&self.fake.heap.lock()) {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let heap = self.fake.heap.lock();
        let some: Vec<&Value> = heap.objects.values().take(5).collect();
        panic!("never came true: {what}; {} objects are left, as {some:?}", heap.objects.len());
    }

    fn delete(&self, kind: usize, name: &str, policy: &str) {
        let namespace = if kind == GADGET { "" } else { "n" };
        let options = json!({"propagationPolicy": policy});
        self.fake.heap.lock().delete(&(kind, namespace.into(), name.into()), &options).expect("it is there");
    }
}

fn count(heap: &Heap, kind: usize, prefix: &str) -> usize {
    heap.objects.keys().filter(|(k, _, name)| *k == kind && name.starts_with(prefix)).count()
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_objects_cost_what_their_number_says() {
    let objects: usize = std::env::var("GANTRY_GC_OBJECTS").map_or(20_000, |n| n.parse().expect("a number"));
    let each = objects / 5;
    let before = resident();
    let c = Collected::start();
    let begin = Instant::now();
    {
        let mut heap = c.fake.heap.lock();
        // One owner of many, which waits for all of them.
        heap.make(WIDGET, "wide", &[]);
        (0..each).for_each(|n| heap.make(CONFIG_MAP, &format!("wide-{n:06}"), &[(WIDGET, "wide", "wide", true)]));
        // Chains across kinds: a gadget of the whole cluster owns a widget, which owns config maps in a row.
        for n in 0..each / 5 {
            let name = |at: usize| format!("chain-{n:06}-{at}");
            heap.make(GADGET, &name(0), &[]);
            heap.make(WIDGET, &name(1), &[(GADGET, &name(0), &name(0), false)]);
            heap.make(CONFIG_MAP, &name(2), &[(WIDGET, &name(1), &name(1), true)]);
            heap.make(CONFIG_MAP, &name(3), &[(CONFIG_MAP, &name(2), &name(2), false)]);
            heap.make(WIDGET, &name(4), &[(CONFIG_MAP, &name(3), &name(3), true)]);
        }
        // One owner of many, which lets go of them.
        heap.make(WIDGET, "free", &[]);
        (0..each).for_each(|n| heap.make(CONFIG_MAP, &format!("free-{n:06}"), &[(WIDGET, "free", "free", true)]));
        // An owner that was made anew under its old name is another; who has one that is left stays.
        heap.make(WIDGET, "anew", &[]);
        for n in 0..each {
            let former = (WIDGET, "anew", "former", true);
            let name = format!("anew-{n:06}");
            if n % 2 == 0 {
                heap.make(CONFIG_MAP, &name, &[former]);
            } else {
                heap.make(CONFIG_MAP, &name, &[former, (WIDGET, "anew", "anew", false)]);
            }
        }
        // Two that own each other.
        for n in 0..each / 2 {
            let (a, b) = (format!("ring-{n:06}-a"), format!("ring-{n:06}-b"));
            heap.make(CONFIG_MAP, &a, &[(WIDGET, &b, &b, true)]);
            heap.make(WIDGET, &b, &[(CONFIG_MAP, &a, &a, true)]);
        }
        // A cluster-scoped object cannot be owned by a namespaced one: it is left alone.
        heap.make(GADGET, "odd", &[(WIDGET, "nowhere", "nowhere", true)]);
    }
    let total = c.fake.heap.lock().objects.len();
    let mut last = (0, begin);
    let mut step = |what: &str| {
        let requests = c.fake.heap.lock().requests;
        println!(
            "{what}: {} requests, {:.1} s, {} MiB",
            requests - last.0,
            last.1.elapsed().as_secs_f64(),
            resident() - before
        );
        last = (requests, Instant::now());
    };
    // All that is to go without anybody asking goes.
    let half = each / 2;
    c.until("those whose owner is another go", |h| count(h, CONFIG_MAP, "anew-") == half).await;
    c.until("the others forget it", |h| {
        let of = h.objects.iter().filter(|((_, _, name), _)| name.starts_with("anew-"));
        of.map(|(_, m)| m["ownerReferences"].as_array().map_or(0, Vec::len)).all(|n| n == 1)
    })
    .await;
    step("absent and recreated owners");
    c.delete(WIDGET, "wide", "Foreground");
    c.until("the one goes with its many", |h| !h.objects.contains_key(&(WIDGET, "n".into(), "wide".into()))).await;
    {
        let heap = c.fake.heap.lock();
        assert_eq!(count(&heap, CONFIG_MAP, "wide-"), 0, "they went before it");
        let own = heap.gone[&(WIDGET, "n".to_owned(), "wide".to_owned())];
        assert!(heap.gone.iter().filter(|((_, _, n), _)| n.starts_with("wide-")).all(|(_, at)| *at < own));
    }
    step("foreground, all blocking");
    c.delete(WIDGET, "free", "Orphan");
    c.until("the one goes alone", |h| !h.objects.contains_key(&(WIDGET, "n".into(), "free".into()))).await;
    {
        let heap = c.fake.heap.lock();
        assert_eq!(count(&heap, CONFIG_MAP, "free-"), each, "they stay");
        let mut free = heap.objects.iter().filter(|((_, _, n), _)| n.starts_with("free-"));
        assert!(free.all(|(_, m)| m["ownerReferences"].is_null()), "and forget it");
    }
    step("orphans");
    (0..each / 5).for_each(|n| c.delete(GADGET, &format!("chain-{n:06}-0"), "Background"));
    c.until("the chains go", |h| (0..3).all(|kind| count(h, kind, "chain-") == 0)).await;
    step("chains across kinds, background");
    (0..each / 2).for_each(|n| c.delete(CONFIG_MAP, &format!("ring-{n:06}-a"), "Foreground"));
    c.until("the rings go", |h| (0..3).all(|kind| count(h, kind, "ring-") == 0)).await;
    step("cycles, foreground");
    let heap = c.fake.heap.lock();
    let left = each + half + 2;
    assert_eq!(heap.objects.len(), left, "only what was to stay is left");
    assert!(heap.objects.contains_key(&(GADGET, String::new(), "odd".into())), "what cannot be judged stays");
    println!(
        "{total} objects: {} requests, {:.2} for each, {:.1} s",
        heap.requests,
        heap.requests as f64 / total as f64,
        begin.elapsed().as_secs_f64()
    );
    assert!(heap.requests < 6 * total, "{} requests for {total} objects", heap.requests);
}
