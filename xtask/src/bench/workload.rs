//! The objects that measures work with.

use super::gantry::PATIENCE;
use super::load::{self, Load, Until};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::StreamExt;
use gantry_client::{Body, Client};
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The namespace that measures work in.
pub const NAMESPACE: &str = "bench";
/// Path of its pods.
pub const PODS: &str = "/api/v1/namespaces/bench/pods";
/// Path of its ConfigMaps.
pub const CONFIG_MAPS: &str = "/api/v1/namespaces/bench/configmaps";
/// Clients that fill the store.
const FILLERS: usize = 32;

const JSON: Option<&str> = Some("application/json");

/// Sends an object to a collection.
///
/// # Errors
/// Where the server refuses it.
pub async fn create(client: &Client, path: &str, object: &Value) -> Result<Bytes> {
    let body = Bytes::from(object.to_string());
    client.call(Method::POST, path, JSON, body).await.with_context(|| format!("cannot create in {path}"))
}

/// Reads an object or a collection.
///
/// # Errors
/// Where it cannot be read or is not JSON.
pub async fn get(client: &Client, path: &str) -> Result<Value> {
    let body =
        client.call(Method::GET, path, None, Bytes::new()).await.with_context(|| format!("cannot read {path}"))?;
    serde_json::from_slice(&body).with_context(|| format!("{path} is not JSON"))
}

/// Makes the namespace and waits until pods can be created in it.
///
/// # Errors
/// Where its service account does not come.
pub async fn namespace(client: &Client) -> Result<()> {
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    create(client, "/api/v1/namespaces", &object).await?;
    service_account(client, NAMESPACE).await
}

/// Waits until a namespace has its default service account, without which no pod is admitted.
///
/// # Errors
/// Where it does not come.
pub async fn service_account(client: &Client, namespace: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.call(Method::GET, &path, None, Bytes::new()).await {
            Ok(_) => return Ok(()),
            Err(error) if !error.is("NotFound") || Instant::now() > deadline => {
                return Err(error).with_context(|| format!("no {path}"));
            }
            // The clients of a measure that counts this wait care about single milliseconds.
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// Creates `count` objects by many clients at once.
///
/// # Errors
/// Where one is refused.
pub async fn fill(
    clients: &[Client],
    path: &'static str,
    count: u64,
    object: impl Fn(u64) -> Value + Send + Sync + 'static,
) -> Result<Load> {
    load::drive(clients, Until::Requests(count), move |client, number| {
        let object = object(number);
        async move { create(&client, path, &object).await.map(drop) }
    })
    .await
}

/// How many clients [`fill`] is to be given.
pub const fn fillers() -> usize {
    FILLERS
}

/// A ConfigMap whose JSON is 1 KB (1024 bytes) long.
pub fn config_map(name: &str, sequence: u64) -> Value {
    // Not one letter over and over, which compresses unlike real data.
    config_map_of(name, sequence, |i| b'a' + (i * 7 + i / 11) as u8 % 26)
}

/// The same with a text that has nothing in common with those of others and cannot be told shorter, as a key or a
/// certificate.
pub fn unlike_config_map(name: &str, sequence: u64) -> Value {
    config_map_of(name, sequence, |i| {
        let seed = ((sequence << 10) | i as u64).wrapping_add(1);
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[(mixed >> 58) as usize]
    })
}

fn config_map_of(name: &str, sequence: u64, letter: impl Fn(usize) -> u8) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": name },
        "data": { "seq": sequence.to_string(), "text": "" },
    });
    let missing = 1024usize.saturating_sub(object.to_string().len());
    let text: String = (0..missing).map(|i| char::from(letter(i))).collect();
    object["data"]["text"] = text.into();
    object
}

/// A pod as Deployments make them, about 2.7 KB as the server lists it. `cpu` is its request.
pub fn pod(name: &str, cpu: &str) -> Value {
    let environment: Vec<Value> = (0..4)
        .map(|i| json!({ "name": format!("SETTING_{i}"), "value": format!("value-{i}.service.example.internal") }))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": { "app": "bench", "tier": "backend", "pod-template-hash": "7d4b9c6f5d" },
            "annotations": { "example.com/owner": "team-bench" },
        },
        "spec": {
            "containers": [{
                "name": "main",
                "image": "gantry.local/self",
                "imagePullPolicy": "IfNotPresent",
                "args": ["sleep", "inf"],
                "env": environment,
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "resources": { "requests": { "cpu": cpu, "memory": "16Mi" } },
            }],
            "terminationGracePeriodSeconds": 1,
        },
    })
}

/// The same pod, left alone by the scheduler.
pub fn unscheduled_pod(name: &str) -> Value {
    let mut pod = pod(name, "10m");
    pod["spec"]["schedulerName"] = "none".into();
    pod
}

/// Reads a body to its end without keeping it; returns its length.
///
/// # Errors
/// Where the connection breaks.
pub async fn drain(mut body: Body) -> Result<u64> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            length += data.len() as u64;
        }
    }
    Ok(length)
}

/// Reads a whole collection without keeping it; returns its length in bytes.
///
/// # Errors
/// Where the server refuses or the connection breaks.
pub async fn list_length(client: &Client, path: &str) -> Result<u64> {
    let body = client.stream(Method::GET, path, None, Bytes::new()).await?;
    drain(body).await.with_context(|| format!("cannot read {path}"))
}

/// The resourceVersion of a collection now, without reading all of it.
///
/// # Errors
/// Where it cannot be read.
pub async fn version(client: &Client, path: &str) -> Result<String> {
    let list = get(client, &format!("{path}?limit=1")).await?;
    match list["metadata"]["resourceVersion"].as_str() {
        Some(version) => Ok(version.to_owned()),
        None => bail!("the list of {path} has no resourceVersion"),
    }
}

/// A watch's events, one JSON text each.
pub struct Events {
    body: Body,
    pending: Vec<u8>,
}

impl Events {
    /// Watches a collection from a version on.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn watch(client: &Client, path: &str, version: &str) -> Result<Self> {
        let path = format!("{path}?watch=true&resourceVersion={version}&timeoutSeconds=3600");
        let body = client.stream(Method::GET, &path, None, Bytes::new()).await?;
        Ok(Self { body, pending: Vec::new() })
    }

    /// Gives each event that has come to `seen`, until that says it has seen enough.
    ///
    /// # Errors
    /// Where the watch ends first, or `seen` fails.
    pub async fn each(&mut self, mut seen: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
        let mut frames = (&mut self.body).into_data_stream();
        while let Some(data) = frames.next().await {
            self.pending.extend_from_slice(&data?);
            let mut from = 0;
            while let Some(length) = self.pending[from..].iter().position(|b| *b == b'\n') {
                let enough = seen(&self.pending[from..from + length])?;
                from += length + 1;
                if enough {
                    self.pending.drain(..from);
                    return Ok(());
                }
            }
            self.pending.drain(..from);
        }
        bail!("the server ended the watch")
    }
}

/// What measures read of an event about a pod.
#[derive(serde::Deserialize)]
pub struct PodEvent {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The pod.
    pub object: SeenPod,
}

/// Parts of a pod.
#[derive(serde::Deserialize)]
pub struct SeenPod {
    /// Its metadata.
    #[serde(default)]
    pub metadata: SeenMetadata,
    /// Its specification.
    #[serde(default)]
    pub spec: SeenSpec,
    /// Its status.
    #[serde(default)]
    pub status: SeenStatus,
}

/// Parts of its metadata.
#[derive(Default, serde::Deserialize)]
pub struct SeenMetadata {
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// Parts of its specification.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenSpec {
    /// Where it is bound to.
    #[serde(default)]
    pub node_name: String,
}

/// Parts of its status.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenStatus {
    /// Its phase.
    #[serde(default)]
    pub phase: String,
    /// Its address.
    #[serde(default, rename = "podIP")]
    pub pod_ip: String,
}

/// Reads an event about a pod.
///
/// # Errors
/// Where it is none, or an error.
pub fn pod_event(line: &[u8]) -> Result<PodEvent> {
    let event: PodEvent =
        serde_json::from_slice(line).with_context(|| format!("no event: {}", String::from_utf8_lossy(line)))?;
    if event.kind == "ERROR" {
        bail!("the watch failed: {}", String::from_utf8_lossy(line));
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_maps_have_their_size() {
        for (name, sequence) in [("a", 0), ("cm-000123", 99)] {
            assert_eq!(config_map(name, sequence).to_string().len(), 1024);
            assert_eq!(unlike_config_map(name, sequence).to_string().len(), 1024);
        }
    }

    #[test]
    fn pod_events() {
        let event = pod_event(br#"{"type":"MODIFIED","object":{"metadata":{"name":"a"},"spec":{"nodeName":"n"},"status":{"phase":"Running","podIP":"10.0.0.1"}}}"#).unwrap();
        assert_eq!((event.object.metadata.name.as_str(), event.object.spec.node_name.as_str()), ("a", "n"));
        assert_eq!((event.object.status.phase.as_str(), event.object.status.pod_ip.as_str()), ("Running", "10.0.0.1"));
        assert!(pod_event(br#"{"type":"ERROR","object":{"kind":"Status","code":410}}"#).is_err());
    }
}
