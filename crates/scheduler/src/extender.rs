//! Extenders: servers beside the scheduler that are asked over HTTP which nodes they would rather not have a pod on, how
//! good the others are, whom to evict, and to bind (`extender/v1`).

use crate::filter::Rejection;
use crate::pod::PodInfo;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::core::v1::{Container, Node, Pod};
use gantry_client::{Client, Credentials, Https, HttpsConfig};
use http::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// What rejections by extenders are told under.
pub const PLUGIN: &str = "Extender";
/// What a point of an extender's score is worth: its scale ends at 10, the scheduler's at 100.
const POINT: i64 = 10;

/// How an extender is reached over TLS. Certificates and keys are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whether any certificate will do.
    pub insecure: bool,
    /// The name the certificate must be for, where it is not the host of the URL.
    pub server_name: Option<String>,
    /// Authorities of the server's certificate; any certificate will do where there are none.
    pub ca_pem: Vec<u8>,
    /// Client certificate and key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

/// An entry of `extenders` in the scheduler's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtenderConfig {
    /// What stands before the verbs.
    pub url_prefix: String,
    /// Path of the verb that filters; empty where it does not. So are the other verbs.
    pub filter_verb: String,
    /// Path of the verb that looks through evictions.
    pub preempt_verb: String,
    /// Path of the verb that scores.
    pub prioritize_verb: String,
    /// What its scores weigh.
    pub weight: i64,
    /// Path of the verb that binds.
    pub bind_verb: String,
    /// How it is reached over TLS.
    pub tls: Tls,
    /// How long a request may take.
    pub timeout: Duration,
    /// Whether it knows the nodes itself, so that their names suffice.
    pub node_cache_capable: bool,
    /// It is asked of pods that use one of these resources; of all where there are none.
    pub managed_resources: BTreeSet<String>,
    /// Whether pods are placed without it where it does not answer.
    pub ignorable: bool,
}

/// What extenders said of the nodes that a pod fits on.
#[derive(Debug, Default)]
pub struct Asked {
    /// Nodes that are left, with what they score beyond the scheduler's own.
    pub kept: HashMap<String, i64>,
    /// Why others are not.
    pub refused: HashMap<String, Arc<Rejection>>,
}

impl Asked {
    /// Whether a node is left.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, node: &str) -> Result<(), Arc<Rejection>> {
        if self.kept.contains_key(node) {
            return Ok(());
        }
        let unasked = || Arc::new(Rejection::one(PLUGIN, "node(s) were not offered to extenders", false));
        Err(self.refused.get(node).cloned().unwrap_or_else(unasked))
    }
}

/// Pods to evict from a node.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) node: String,
    pub(crate) victims: Vec<Arc<Pod>>,
    pub(crate) budget_violations: usize,
}

/// A configured extender.
pub(crate) struct Extender {
    config: ExtenderConfig,
    client: Client,
}

impl Extender {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// Where the URL, a certificate or a key cannot be used.
    pub(crate) fn new(config: ExtenderConfig) -> Result<Self, String> {
        let tls = config.tls.clone();
        let https = HttpsConfig {
            server: config.url_prefix.trim_end_matches('/').to_owned(),
            // As upstream: who gives no authority is content with any certificate.
            insecure_skip_tls_verify: tls.insecure || tls.ca_pem.is_empty(),
            ca_pem: tls.ca_pem,
            tls_server_name: tls.server_name,
            credentials: match tls.client {
                Some((certificate_pem, key_pem)) => Credentials::Certificate { certificate_pem, key_pem },
                None => Credentials::Anonymous,
            },
        };
        let transport = Https::new(&https).map_err(|e| e.to_string())?;
        Ok(Self { client: Client::new(Arc::new(transport), "kube-scheduler"), config })
    }

    /// Whether it is asked about the pod.
    pub(crate) fn is_interested(&self, pod: &Pod) -> bool {
        let managed = &self.config.managed_resources;
        let uses = |c: &Container| {
            let lists = c.resources.iter().flat_map(|r| [&r.requests, &r.limits]);
            lists.flatten().any(|list| list.keys().any(|name| managed.contains(name)))
        };
        let spec = pod.spec.iter();
        let mut containers = spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        managed.is_empty() || containers.any(uses)
    }

    /// Whether it filters or scores nodes.
    pub(crate) fn decides(&self) -> bool {
        !self.config.filter_verb.is_empty() || !self.config.prioritize_verb.is_empty()
    }

    /// Whether it binds.
    pub(crate) fn binds(&self) -> bool {
        !self.config.bind_verb.is_empty()
    }

    /// Whether it looks through evictions.
    pub(crate) fn preempts(&self) -> bool {
        !self.config.preempt_verb.is_empty()
    }

    async fn post(&self, verb: &str, body: &Value) -> Result<Value, String> {
        let url = format!("{}/{verb}", self.config.url_prefix.trim_end_matches('/'));
        let body = Bytes::from(body.to_string());
        let path = format!("/{verb}");
        let call = self.client.call(Method::POST, &path, Some("application/json"), body);
        let answer = match tokio::time::timeout(self.config.timeout, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(gantry_client::Error::Api(e))) => {
                return Err(format!("failed {verb} with extender at URL {url}, code {}", e.code));
            }
            Ok(Err(gantry_client::Error::Transport(e))) => return Err(format!("Post {url:?}: {}", e.message)),
            Ok(Err(e)) => return Err(format!("Post {url:?}: {e}")),
            Err(_) => {
                let why = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
                return Err(format!("Post {url:?}: {why}"));
            }
        };
        serde_json::from_slice(&answer).map_err(|e| format!("extender {url:?}: {e}"))
    }

    fn arguments(&self, pod: &Pod, nodes: &[Arc<Node>]) -> Value {
        if self.config.node_cache_capable {
            let names: Vec<&str> = nodes.iter().filter_map(|n| n.metadata.name.as_deref()).collect();
            json!({ "Pod": pod, "Nodes": null, "NodeNames": names })
        } else {
            let items: Vec<&Node> = nodes.iter().map(|n| &**n).collect();
            json!({ "Pod": pod, "Nodes": { "metadata": {}, "items": items }, "NodeNames": null })
        }
    }

    /// Takes from `nodes` those it does not want; notes why. Returns an error where the answer is none.
    async fn filter(
        &self,
        pod: &Pod,
        nodes: &mut Vec<Arc<Node>>,
        refused: &mut HashMap<String, Arc<Rejection>>,
    ) -> Result<(), String> {
        let answer = self.post(&self.config.filter_verb, &self.arguments(pod, nodes)).await?;
        if let Some(error) = field(&answer, "Error").as_str().filter(|e| !e.is_empty()) {
            return Err(error.to_owned());
        }
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let names = field(&answer, "NodeNames").as_array().filter(|_| self.config.node_cache_capable);
        let kept: BTreeSet<String> = match names {
            Some(names) => names.iter().filter_map(text).collect(),
            None => {
                let items = field(field(&answer, "Nodes"), "items").as_array();
                items.into_iter().flatten().filter_map(|n| text(&n["metadata"]["name"])).collect()
            }
        };
        let known = |name: &String| nodes.iter().any(|n| n.metadata.name.as_ref() == Some(name));
        if let Some(stranger) = kept.iter().find(|name| !known(name)) {
            let url = &self.config.url_prefix;
            return Err(format!(
                "extender {url:?} claims a filtered node {stranger:?} which is not found in the input node list"
            ));
        }
        // What is told of last is what cannot be helped.
        for (map, unresolvable) in [("FailedNodes", false), ("FailedAndUnresolvableNodes", true)] {
            for (node, why) in field(&answer, map).as_object().into_iter().flatten() {
                let reason = why.as_str().unwrap_or_default();
                refused.insert(node.clone(), Arc::new(Rejection::one(PLUGIN, reason.to_owned(), unresolvable)));
            }
        }
        nodes.retain(|n| n.metadata.name.as_ref().is_some_and(|name| kept.contains(name)));
        Ok(())
    }

    async fn prioritize(&self, pod: &Pod, nodes: &[Arc<Node>]) -> Result<Vec<(String, i64)>, String> {
        let answer = self.post(&self.config.prioritize_verb, &self.arguments(pod, nodes)).await?;
        let each = answer.as_array().into_iter().flatten();
        Ok(each
            .filter_map(|p| {
                let score = field(p, "Score").as_i64()?;
                Some((field(p, "Host").as_str()?.to_owned(), score * self.config.weight * POINT))
            })
            .collect())
    }

    /// Binds a pod.
    pub(crate) async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        let binding = json!({
            "PodName": pod.name(), "PodNamespace": pod.namespace(), "PodUID": &*pod.uid, "Node": node,
        });
        let answer = self.post(&self.config.bind_verb, &binding).await?;
        match field(&answer, "Error").as_str() {
            Some(error) if !error.is_empty() => Err(error.to_owned()),
            _ => Ok(()),
        }
    }

    /// The offers it leaves, with the victims it wants.
    async fn look_through(&self, pod: &Pod, offers: Vec<Offer>) -> Result<Vec<Offer>, String> {
        let mut map = BTreeMap::new();
        for offer in &offers {
            let violations = offer.budget_violations;
            let entry = if self.config.node_cache_capable {
                let pods: Vec<Value> = offer.victims.iter().map(|v| json!({ "UID": v.metadata.uid })).collect();
                json!({ "Pods": pods, "NumPDBViolations": violations })
            } else {
                let pods: Vec<&Pod> = offer.victims.iter().map(|v| &**v).collect();
                json!({ "Pods": pods, "NumPDBViolations": violations })
            };
            map.insert(offer.node.as_str(), entry);
        }
        let (full, meta) =
            if self.config.node_cache_capable { (json!(null), json!(map)) } else { (json!(map), json!(null)) };
        let arguments = json!({ "Pod": pod, "NodeNameToVictims": full, "NodeNameToMetaVictims": meta });
        let answer = self.post(&self.config.preempt_verb, &arguments).await?;
        let left = field(&answer, "NodeNameToMetaVictims");
        let mut out = Vec::new();
        for mut offer in offers {
            let Some(entry) = left.get(&offer.node) else { continue };
            let wanted: Vec<&str> = field(entry, "Pods")
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|p| field(p, "UID").as_str())
                .collect();
            if let Some(stranger) =
                wanted.iter().find(|uid| !offer.victims.iter().any(|v| v.metadata.uid.as_deref() == Some(**uid)))
            {
                let (url, node) = (&self.config.url_prefix, &offer.node);
                return Err(format!(
                    "extender: {url} claims to preempt pod (UID: {stranger}) on node: {node}, but the pod is not found \
                     on that node"
                ));
            }
            offer.victims.retain(|v| v.metadata.uid.as_deref().is_some_and(|uid| wanted.contains(&uid)));
            out.push(offer);
        }
        Ok(out)
    }
}

/// A field of an answer. Go's decoder does not mind the case of names, so extenders write what they like.
fn field<'v>(value: &'v Value, name: &str) -> &'v Value {
    let found = value.as_object().and_then(|o| o.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
    found.map_or(&Value::Null, |(_, v)| v)
}

/// Asks all extenders that are interested about the nodes that the pod fits on.
///
/// # Errors
/// Why one that may not be passed over did not answer.
pub(crate) async fn ask(extenders: &[Extender], pod: &Pod, mut nodes: Vec<Arc<Node>>) -> Result<Asked, String> {
    let mut out = Asked::default();
    let interested = || extenders.iter().filter(|e| e.is_interested(pod));
    for extender in interested().filter(|e| !e.config.filter_verb.is_empty()) {
        if nodes.is_empty() {
            break;
        }
        if let Err(error) = extender.filter(pod, &mut nodes, &mut out.refused).await {
            if !extender.config.ignorable {
                return Err(error);
            }
            tracing::warn!(extender = extender.config.url_prefix, %error, "passing over an extender");
        }
    }
    out.kept = nodes.iter().filter_map(|n| Some((n.metadata.name.clone()?, 0))).collect();
    if nodes.len() > 1 {
        for extender in interested().filter(|e| !e.config.prioritize_verb.is_empty()) {
            match extender.prioritize(pod, &nodes).await {
                Ok(scores) => {
                    for (node, score) in scores {
                        if let Some(sum) = out.kept.get_mut(&node) {
                            *sum += score;
                        }
                    }
                }
                // As upstream: nobody waits for scores.
                Err(error) => {
                    tracing::warn!(extender = extender.config.url_prefix, %error, "an extender gave no scores");
                }
            }
        }
    }
    Ok(out)
}

/// The offers that all interested extenders leave, in the order given.
///
/// # Errors
/// Why one that may not be passed over did not answer.
pub(crate) async fn look_through(
    extenders: &[Extender],
    pod: &Pod,
    mut offers: Vec<Offer>,
) -> Result<Vec<Offer>, String> {
    for extender in extenders.iter().filter(|e| e.preempts() && e.is_interested(pod)) {
        if offers.is_empty() {
            break;
        }
        match extender.look_through(pod, offers.clone()).await {
            Ok(left) => offers = left,
            Err(error) if extender.config.ignorable => {
                tracing::warn!(extender = extender.config.url_prefix, %error, "passing over an extender");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(offers)
}

#[cfg(test)]
mod tests;
