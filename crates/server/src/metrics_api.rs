//! metrics.k8s.io/v1beta1: what nodes and pods use now, asked of the kubelets that run them when a client asks. Nothing is
//! kept and nothing is polled.

use crate::http::negotiate::accept;
use crate::http::respond;
use crate::registry::options::ListOptions;
use crate::request::{RequestContext, Response};
use crate::server::Server;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod};
use gantry_api::kind::{ResourceInfo, Verb};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use serde_json::{Value, json};
use std::collections::HashMap;

const GROUP: &str = "metrics.k8s.io";
const API_VERSION: &str = "metrics.k8s.io/v1beta1";
/// The span the kubelet computes rates over.
const WINDOW: &str = "10s";
/// Kubelets asked at a time.
const PARALLEL: usize = 16;

const fn resource(kind: &'static str, plural: &'static str, namespaced: bool) -> ResourceInfo {
    ResourceInfo {
        verbs: &[Verb::Get, Verb::List],
        virtual_only: true,
        ..ResourceInfo::new(GROUP, "v1beta1", kind, plural, "", namespaced)
    }
}

/// What discovery lists.
pub const RESOURCES: &[ResourceInfo] = &[resource("NodeMetrics", "nodes", false), resource("PodMetrics", "pods", true)];

/// Answers a request.
///
/// # Errors
/// 404 for what is not served or whose numbers cannot be had, 405 for writes.
pub async fn answer(server: &Server, cx: &RequestContext) -> Result<Response, ApiError> {
    let info = &cx.info;
    let served = RESOURCES.iter().find(|r| r.plural == info.resource && info.subresource.is_empty());
    let served = served.ok_or_else(ApiError::no_such_path)?;
    if !matches!(info.verb.as_str(), "get" | "list") {
        return Err(ApiError::method_not_allowed());
    }
    let accepted = accept(&cx.parts.headers, &cx.query, false)?;
    let options = ListOptions::parse(&cx.query)?;
    let wanted = |meta: &ObjectMeta| {
        let fields = [("metadata.name", meta.name()), ("metadata.namespace", meta.namespace())];
        (info.verb == "list" || meta.name() == info.name)
            && options.labels.matches_optional(meta.labels.as_ref())
            && options.fields.matches(&fields)
    };
    server.registry.caught_up().await?;
    let mut items = if served.namespaced {
        let pods = server.services.cluster.list::<Pod>(&info.namespace).await?;
        pod_metrics(server, pods.into_iter().filter(|p| wanted(&p.metadata)).collect()).await
    } else {
        let nodes = server.services.cluster.list::<Node>("").await?;
        node_metrics(server, nodes.into_iter().filter(|n| wanted(&n.metadata)).collect()).await
    };
    let document = if info.verb == "get" {
        items.pop().ok_or_else(|| ApiError::not_found(GROUP, served.plural, &info.name))?
    } else {
        json!({ "kind": served.list_kind(), "apiVersion": API_VERSION, "metadata": {}, "items": items })
    };
    respond::document(200, document.to_string().into(), &accepted, &cx.parts.headers)
}

/// The summaries of these nodes; those that cannot be had are left out, as metrics-server does.
async fn summaries(server: &Server, nodes: impl IntoIterator<Item = String>) -> HashMap<String, Value> {
    // Owned, because a future that borrows across the stream's closure is not `Send` for every lifetime.
    let (client, cluster) = (server.kubelet.clone(), server.services.cluster.clone());
    let ask = move |node: String| -> BoxFuture<'static, Option<(String, Value)>> {
        let (client, cluster) = (client.clone(), cluster.clone());
        Box::pin(async move {
            match client.fetch_node_stats(&cluster, &node).await {
                Ok(summary) => Some((node, summary)),
                Err(e) => {
                    tracing::debug!(error = %e, "no metrics");
                    None
                }
            }
        })
    };
    let nodes: Vec<String> = nodes.into_iter().collect();
    stream::iter(nodes).map(ask).buffer_unordered(PARALLEL).filter_map(std::future::ready).collect().await
}

/// `usage` and `timestamp` of a part of a summary; None where it has not been measured yet.
fn usage(part: &Value) -> Option<(Value, String)> {
    let cpu = part["cpu"]["usageNanoCores"].as_u64()?;
    let memory = part["memory"]["workingSetBytes"].as_u64()?;
    let time = part["cpu"]["time"].as_str().unwrap_or_default().to_owned();
    Some((json!({ "cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024) }), time))
}

fn metadata(of: &ObjectMeta, now: &str) -> Value {
    let mut out = json!({ "name": of.name(), "creationTimestamp": now });
    if !of.namespace().is_empty() {
        out["namespace"] = of.namespace().into();
    }
    if let Some(labels) = of.labels.as_ref().filter(|l| !l.is_empty()) {
        out["labels"] = json!(labels);
    }
    out
}

async fn node_metrics(server: &Server, nodes: Vec<Node>) -> Vec<Value> {
    let now = server.registry.clock.time().0.to_string();
    let summaries = summaries(server, nodes.iter().map(|n| n.metadata.name().to_owned())).await;
    let one = |node: &Node| {
        let (usage, time) = usage(&summaries.get(node.metadata.name())?["node"])?;
        Some(json!({
            "kind": "NodeMetrics", "apiVersion": API_VERSION, "metadata": metadata(&node.metadata, &now),
            "timestamp": if time.is_empty() { now.clone() } else { time }, "window": WINDOW, "usage": usage,
        }))
    };
    nodes.iter().filter_map(one).collect()
}

async fn pod_metrics(server: &Server, pods: Vec<Pod>) -> Vec<Value> {
    let now = server.registry.clock.time().0.to_string();
    let node_of = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
    let mut nodes: Vec<String> = pods.iter().filter_map(node_of).collect();
    nodes.sort();
    nodes.dedup();
    let summaries = summaries(server, nodes).await;
    let one = |pod: &Pod| {
        let stats = summaries.get(&node_of(pod)?)?["pods"].as_array()?.iter().find(|s| {
            s["podRef"]["name"] == pod.metadata.name() && s["podRef"]["namespace"] == pod.metadata.namespace()
        })?;
        let mut time = String::new();
        let mut containers = Vec::new();
        for container in stats["containers"].as_array()? {
            let Some((usage, measured)) = usage(container) else { continue };
            containers.push(json!({ "name": container["name"], "usage": usage }));
            // The oldest measurement dates the whole.
            if time.is_empty() || measured < time {
                time = measured;
            }
        }
        (!containers.is_empty()).then(|| {
            json!({
                "kind": "PodMetrics", "apiVersion": API_VERSION, "metadata": metadata(&pod.metadata, &now),
                "timestamp": if time.is_empty() { now.clone() } else { time }, "window": WINDOW, "containers": containers,
            })
        })
    };
    pods.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_in_the_units_clients_expect() {
        let part = json!({ "cpu": { "time": "2026-01-01T00:00:00Z", "usageNanoCores": 1500 }, "memory": { "workingSetBytes": 2_097_152 } });
        let (usage, time) = usage(&part).unwrap();
        assert_eq!(usage, json!({ "cpu": "1500n", "memory": "2048Ki" }));
        assert_eq!(time, "2026-01-01T00:00:00Z");
        assert!(super::usage(&json!({ "cpu": {}, "memory": { "workingSetBytes": 1 } })).is_none());
    }
}
