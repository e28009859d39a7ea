//! The whole proxy, from an API server of the tests' own to connections between pods.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, channel::mpsc};
use gantry_client::{Body, Transport, TransportError};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};

use super::*;
use crate::apply::tests::{Pod, ask, isolated, node};

/// Answers lists from a table, by resource; watches give what is sent for them.
#[derive(Default)]
struct Api {
    lists: BTreeMap<&'static str, Vec<Value>>,
    watches: Mutex<BTreeMap<String, mpsc::UnboundedSender<Bytes>>>,
}

impl Api {
    async fn tell(&self, resource: &str, kind: &str, object: Value) {
        let event = json!({"type": kind, "object": object}).to_string() + "\n";
        loop {
            if let Some(watch) = self.watches.lock().get(resource) {
                watch.unbounded_send(event.into()).expect("watch");
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[async_trait]
impl Transport for Api {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if request.uri().query().unwrap_or_default().contains("watch=true") {
            let (tell, events) = mpsc::unbounded();
            self.watches.lock().insert(resource, tell);
            let frames = events.map(|bytes| Ok(http_body::Frame::data(bytes)));
            return Ok(Response::new(BodyExt::boxed(StreamBody::new(frames))));
        }
        let items = self.lists.get(resource.as_str()).cloned().unwrap_or_default();
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": items}).to_string();
        Ok(Response::new(BodyExt::boxed(Full::new(Bytes::from(list)).map_err(|never| match never {}))))
    }
}

fn slice(version: u32, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1", "namespace": "ns", "resourceVersion": version.to_string(),
            "labels": {SERVICE_NAME_LABEL: "web"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    })
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..400 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not in time: {what}");
}

#[test]
fn rules_follow_the_api() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (network, _) = node(dir.path()).await;
        let (a, b) = (Pod::new(&network, "a").await, Pod::new(&network, "b").await);
        a.serve("a");
        b.serve("b");
        let service = json!({
            "metadata": {"name": "web", "namespace": "ns", "resourceVersion": "1"},
            "spec": {
                "clusterIP": "10.202.0.80", "clusterIPs": ["10.202.0.80"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            },
        });
        let api = Arc::new(Api {
            lists: BTreeMap::from([
                ("services", vec![service.clone()]),
                ("endpointslices", vec![slice(1, &["10.201.0.2"])]),
            ]),
            ..Api::default()
        });
        let shutdown = CancellationToken::new();
        let config = ProxyConfig {
            node_name: "n".into(),
            instance: "t1".into(),
            node_ips: vec![],
            cluster_cidrs: vec!["10.201.0.0/16".parse().expect("cidr")],
        };
        let client = Client::new(api.clone(), "test");
        let proxy = tokio::spawn(run(client, config, shutdown.clone()));
        let reached = || ask("10.202.0.80:80").map(|s| s.0).unwrap_or_default();
        until("the first endpoint", || reached() == "a").await;
        api.tell("endpointslices", "MODIFIED", slice(2, &["10.201.0.3"])).await;
        until("the next endpoint", || reached() == "b").await;

        shutdown.cancel();
        proxy.await.expect("task").expect("proxy");
        assert_eq!(reached(), "b", "services outlive the proxy");
        remove("t1").await.expect("remove");
        assert_ne!(reached(), "b");
    });
}

#[test]
fn a_deleted_service_is_gone() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (network, _) = node(dir.path()).await;
        let a = Pod::new(&network, "a").await;
        a.serve("a");
        let service = json!({
            "metadata": {"name": "web", "namespace": "ns", "resourceVersion": "1"},
            "spec": {"clusterIP": "10.202.0.80", "ports": [{"name": "http", "port": 80}]},
        });
        let api = Arc::new(Api {
            lists: BTreeMap::from([("endpointslices", vec![slice(1, &["10.201.0.2"])])]),
            ..Api::default()
        });
        let config = ProxyConfig {
            node_name: "n".into(),
            instance: "t1".into(),
            node_ips: vec![],
            cluster_cidrs: vec!["10.201.0.0/16".parse().expect("cidr")],
        };
        let shutdown = CancellationToken::new();
        tokio::spawn(run(Client::new(api.clone(), "test"), config, shutdown.clone()));
        let reached = || ask("10.202.0.80:80").is_ok();
        api.tell("services", "ADDED", service.clone()).await;
        until("the service", reached).await;
        api.tell("services", "DELETED", service).await;
        until("its end", || !reached()).await;
    });
}
