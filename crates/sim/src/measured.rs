//! What pods use, made up: a metrics API that knows a load for each application and shares it among the pods that
//! serve it.
//!
//! The load of the pods labelled `app=<name>` is what the ConfigMap [`LOADS`] of their namespace holds under that
//! name, in thousandths of a core. It stands in for the kubelets that the server would ask, which here are nodes in
//! name only.

use crate::check::object::{serves, text, within};
use crate::log::{EventLog, World};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::meta::labels::Selector;
use gantry_client::transport::{Body, Transport, TransportError};
use gantry_server::http::route::parse_query;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The ConfigMap of a namespace that holds the load of its applications.
pub const LOADS: &str = "loads";
const PREFIX: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/";

/// The load of an application in thousandths of a core.
pub(crate) fn load(world: &World, namespace: &str, app: &str) -> i64 {
    let loads = world.get("core/configmaps", &format!("{namespace}/{LOADS}"));
    loads.and_then(|l| l["data"][app].as_str()?.parse().ok()).unwrap_or(0)
}

/// What each of so many pods has of a load.
pub(crate) fn share(load: i64, pods: usize) -> i64 {
    load / i64::try_from(pods.max(1)).unwrap_or(1)
}

/// A transport that answers for the metrics API, and hands on everything else.
pub(crate) struct Measured {
    inner: Arc<dyn Transport>,
    log: EventLog,
    clock: Clock,
}

impl Measured {
    pub(crate) fn new(inner: Arc<dyn Transport>, log: EventLog, clock: Clock) -> Self {
        Self { inner, log, clock }
    }

    fn measure(&self, namespace: &str, selector: &Selector) -> Value {
        let now = self.clock.time();
        let items: Vec<Value> = self.log.look(|w| {
            let mut serving: BTreeMap<&str, usize> = BTreeMap::new();
            let pods = || within(w, "core/pods", namespace).filter(|(_, p)| serves(p));
            for (_, pod) in pods() {
                *serving.entry(text(pod, "/metadata/labels/app")).or_default() += 1;
            }
            let selected = pods().filter(|(_, pod)| {
                let labels = serde_json::from_value(pod["metadata"]["labels"].clone()).ok();
                selector.matches_optional(labels.as_ref())
            });
            selected
                .map(|(_, pod)| {
                    let app = text(pod, "/metadata/labels/app");
                    let used = share(load(w, namespace, app), serving.get(app).copied().unwrap_or(1));
                    let metadata = json!({"name": pod["metadata"]["name"], "namespace": namespace});
                    let usage = json!({"cpu": format!("{used}m"), "memory": "1Mi"});
                    let container = json!({"name": text(pod, "/spec/containers/0/name"), "usage": usage});
                    json!({"metadata": metadata, "timestamp": now, "window": "10s", "containers": [container]})
                })
                .collect()
        });
        json!({"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items})
    }
}

/// The label selector of a query.
fn selector(query: Option<&str>) -> Option<Selector> {
    let given = parse_query(query).into_iter().find(|(key, _)| key == "labelSelector");
    Selector::parse(&given.unwrap_or_default().1).ok()
}

#[async_trait]
impl Transport for Measured {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let namespace = request.uri().path().strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix("/pods"));
        let selector = selector(request.uri().query());
        let (Some(namespace), Some(selector), &Method::GET) = (namespace, selector, request.method()) else {
            return self.inner.send(request).await;
        };
        let document = Bytes::from(self.measure(namespace, &selector).to_string());
        Ok(Response::new(Full::new(document).map_err(|never| match never {}).boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_store::{MemoryStore, Store, Txn, Write};
    use std::time::Duration;

    struct Nobody;

    #[async_trait]
    impl Transport for Nobody {
        async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
            Err(TransportError { context: request.uri().to_string(), message: "nobody is there".into() })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_serve_share_the_load() {
        let store = MemoryStore::new();
        let log = EventLog::follow(&store).await.unwrap();
        let pod = |app: &str, ready: &str| {
            json!({"metadata": {"name": "p", "labels": {"app": app}}, "spec": {"containers": [{"name": "c"}]},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
        };
        let objects = [
            ("configmaps/n/loads", json!({"data": {"w": "90"}})),
            ("pods/n/a", pod("w", "True")),
            ("pods/n/b", pod("w", "True")),
            ("pods/n/c", pod("w", "False")),
            ("pods/n/d", pod("other", "True")),
        ];
        for (path, object) in objects {
            let write = Write::Put(format!("/registry/core/{path}").into(), object.to_string().into());
            store.txn(Txn { compares: vec![], writes: vec![write] }).await.unwrap();
        }
        let seen = log.until("all is there", Duration::from_secs(1), |w| w.all("core/pods").count() == 4).await;
        seen.unwrap();
        let clock = Clock::starting_at(crate::control_plane::BEGIN);
        let measured = Measured::new(Arc::new(Nobody), log, clock);
        let ask = |path: String| measured.send(Request::get(path).body(Bytes::new()).unwrap());
        let answer = ask(format!("{PREFIX}n/pods?labelSelector=app%3Dw")).await.unwrap();
        let body: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
        let used: Vec<&str> =
            body["items"].as_array().unwrap().iter().map(|i| text(i, "/containers/0/usage/cpu")).collect();
        assert_eq!(used, ["45m", "45m"]);
        assert!(ask("/api/v1/pods".into()).await.is_err(), "all else is another's");
    }
}
