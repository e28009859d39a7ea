//! The Node object: registered once, its status kept true.

use super::machine::{KUBELET_VERSION, Machine, architecture};
use crate::config::KubeletConfig;
use crate::pod::sandbox::HANDLERS;
use gantry_api::clock::Clock;
use gantry_api::core::pod::resources::Amounts;
use gantry_api::core::pod::validate::resources::is_extended;
use gantry_api::meta::quantity::ResourceList;
use gantry_api::storage::binding::LOCAL_PATH_ROOT;
use gantry_client::{Api, Client, Error, Patch, PatchParams, PostParams};
use gantry_container::image_service::ImageService;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Images listed in the status.
const MAX_IMAGES: usize = 50;

/// What presses on the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

fn list(amounts: &Amounts, extended: &ResourceList) -> ResourceList {
    let own = amounts.iter().map(|(k, a)| (k.clone(), a.to_quantity()));
    own.chain(extended.iter().map(|(k, q)| (k.clone(), q.clone()))).collect()
}

/// Resources that an administrator has written into the capacity of the node: they are kept, and pods may have all of
/// them.
pub(crate) fn extended(status: Option<&NodeStatus>) -> ResourceList {
    let capacity = status.and_then(|s| s.capacity.as_ref()).into_iter().flatten();
    capacity.filter(|(name, _)| is_extended(name)).map(|(name, q)| (name.clone(), q.clone())).collect()
}

fn labels(cfg: &KubeletConfig) -> BTreeMap<String, String> {
    let mut labels = cfg.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", cfg.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        labels.insert(key.into(), value.into());
    }
    labels
}

/// Tells the provisioner where the node keeps volumes.
fn annotations(cfg: &KubeletConfig) -> BTreeMap<String, String> {
    let root = cfg.local_volumes_directory().display().to_string();
    BTreeMap::from([(LOCAL_PATH_ROOT.to_owned(), root)])
}

/// The conditions, with transitions dated against `old`.
pub(crate) fn conditions(old: &[NodeCondition], pressure: Pressure, clock: &Clock) -> Vec<NodeCondition> {
    let condition = |kind: &str, bad: bool, reasons: (&str, &str), messages: (&str, &str)| {
        let status = if bad { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == kind);
        let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(if bad { reasons.0 } else { reasons.1 }.into()),
            message: Some(if bad { messages.0 } else { messages.1 }.into()),
            last_heartbeat_time: Some(clock.time()),
            last_transition_time: Some(since.unwrap_or_else(|| clock.time())),
        }
    };
    vec![
        condition(
            "MemoryPressure",
            pressure.memory,
            ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
            ("kubelet has insufficient memory available", "kubelet has sufficient memory available"),
        ),
        condition(
            "DiskPressure",
            pressure.disk,
            ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
            ("kubelet has disk pressure", "kubelet has no disk pressure"),
        ),
        condition(
            "PIDPressure",
            pressure.pids,
            ("KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
            ("kubelet has insufficient PID available", "kubelet has sufficient PID available"),
        ),
        condition("Ready", true, ("KubeletReady", ""), ("kubelet is posting ready status", "")),
    ]
}

async fn images(service: &dyn ImageService) -> Vec<ContainerImage> {
    let mut all = match service.list().await {
        Ok(all) => all,
        Err(error) => {
            tracing::warn!(%error, "cannot list images for the node's status");
            return Vec::new();
        }
    };
    all.sort_by_key(|i| std::cmp::Reverse(i.size));
    all.truncate(MAX_IMAGES);
    let image = |i: gantry_container::image_service::Image| ContainerImage {
        names: Some(i.digests.into_iter().chain(i.tags).take(5).collect()),
        size_bytes: i64::try_from(i.size).ok(),
    };
    all.into_iter().map(image).collect()
}

/// The status as it is now.
pub(crate) async fn status(
    cfg: &KubeletConfig,
    machine: &Machine,
    service: &dyn ImageService,
    old: Option<&NodeStatus>,
    pressure: Pressure,
    clock: &Clock,
) -> NodeStatus {
    let address = |kind: &str, address: String| NodeAddress { type_: kind.into(), address };
    let mut addresses: Vec<NodeAddress> = cfg.node_ips.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", cfg.node_name.clone()));
    let known = old.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let extended = extended(old);
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(list(&machine.capacity(), &extended)),
        allocatable: Some(list(&machine.allocatable(), &extended)),
        conditions: Some(conditions(known, pressure, clock)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: cfg.port.into() }),
        }),
        images: Some(images(service).await),
        node_info: Some(machine.info.clone()),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        runtime_handlers: Some(runtime_handlers()),
        ..NodeStatus::default()
    }
}

/// The one runtime, by the names that a RuntimeClass may ask for it by; the empty one is for pods that name no class.
fn runtime_handlers() -> Vec<NodeRuntimeHandler> {
    let handler = |name: &str| NodeRuntimeHandler {
        name: Some(name.to_owned()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(true),
            user_namespaces: Some(false),
        }),
    };
    [""].iter().chain(&HANDLERS).map(|name| handler(name)).collect()
}

/// Registers the node, or brings an existing object's labels up to date, and its pod ranges where it has none yet.
pub(crate) async fn register(client: &Client, cfg: &KubeletConfig, status: NodeStatus) -> Result<Node, Error> {
    let api = Api::<Node>::all(client.clone());
    let node = Node {
        metadata: ObjectMeta {
            name: Some(cfg.node_name.clone()),
            labels: Some(labels(cfg)),
            annotations: Some(annotations(cfg)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!cfg.taints.is_empty()).then(|| cfg.taints.clone()),
            pod_cidr: cfg.pod_cidrs.first().cloned(),
            pod_cidrs: (!cfg.pod_cidrs.is_empty()).then(|| cfg.pod_cidrs.clone()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    };
    match api.create(&PostParams::default(), &node).await {
        Ok(made) => {
            tracing::info!(node = cfg.node_name, version = KUBELET_VERSION, "registered the node");
            Ok(made)
        }
        Err(error) if error.is("AlreadyExists") => {
            let mut patch = json!({"metadata": {"labels": labels(cfg), "annotations": annotations(cfg)}});
            // The ranges of a node never change: with others than these the server refuses, and says so.
            if let Some(first) = cfg.pod_cidrs.first() {
                let all: Vec<Value> = cfg.pod_cidrs.iter().map(|c| json!(c)).collect();
                patch["spec"] = json!({"podCIDR": first, "podCIDRs": all});
            }
            let patch = Patch::Merge(patch);
            api.patch(&cfg.node_name, &PatchParams::default(), &patch).await
        }
        Err(error) => Err(error),
    }
}

/// The strategic merge patch from `old` to `new`; heartbeats alone count only where `heartbeat` is set.
pub(crate) fn patch(old: &NodeStatus, new: &NodeStatus, heartbeat: bool) -> Option<Value> {
    let object = |s: &NodeStatus| match serde_json::to_value(s) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (before, after) = (object(old), object(new));
    let mut changed = Map::new();
    for (key, value) in &after {
        match key.as_str() {
            "conditions" => {
                let plain = |v: &Value| {
                    let mut v = v.clone();
                    if let Some(map) = v.as_object_mut() {
                        map.remove("lastHeartbeatTime");
                    }
                    v
                };
                let known: Vec<Value> =
                    before.get(key).and_then(Value::as_array).into_iter().flatten().map(plain).collect();
                let news: Vec<Value> = value.as_array().cloned().unwrap_or_default();
                let list: Vec<Value> = news.into_iter().filter(|c| heartbeat || !known.contains(&plain(c))).collect();
                if !list.is_empty() {
                    changed.insert(key.clone(), list.into());
                }
            }
            // Merged by type, and the type InternalIP may occur twice: the whole list is replaced.
            "addresses" if before.get(key) != Some(value) => {
                let mut list = vec![json!({"$patch": "replace"})];
                list.extend(value.as_array().into_iter().flatten().cloned());
                changed.insert(key.clone(), list.into());
            }
            _ if before.get(key) == Some(value) => {}
            _ => {
                changed.insert(key.clone(), value.clone());
            }
        }
    }
    (!changed.is_empty()).then(|| json!({"status": changed}))
}

/// Writes the status where it changed. Returns the node as it is now.
pub(crate) async fn report(
    client: &Client,
    node: &Node,
    new: &NodeStatus,
    heartbeat: bool,
) -> Result<Option<Node>, Error> {
    let old = node.status.clone().unwrap_or_default();
    let Some(body) = patch(&old, new, heartbeat) else { return Ok(None) };
    let api = Api::<Node>::all(client.clone());
    let name = node.metadata.name.clone().unwrap_or_default();
    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    #[tokio::test(start_paused = true)]
    async fn transitions_are_dated_and_heartbeats_are_no_change() {
        let clock = Clock::starting_at(Timestamp::from_second(1_000_000).unwrap());
        let first = conditions(&[], Pressure::default(), &clock);
        assert_eq!(first.iter().map(|c| c.status.as_str()).collect::<Vec<_>>(), ["False", "False", "False", "True"]);
        assert_eq!(first[3].message.as_deref(), Some("kubelet is posting ready status"));
        tokio::time::advance(std::time::Duration::from_secs(60)).await;
        let second = conditions(&first, Pressure { memory: true, ..Pressure::default() }, &clock);
        assert_eq!(second[0].reason.as_deref(), Some("KubeletHasInsufficientMemory"));
        assert_ne!(second[0].last_transition_time, first[0].last_transition_time);
        assert_eq!(second[1].last_transition_time, first[1].last_transition_time);
        let with = |c: &[NodeCondition]| NodeStatus { conditions: Some(c.to_vec()), ..NodeStatus::default() };
        let same = conditions(&first, Pressure::default(), &clock);
        assert_eq!(patch(&with(&first), &with(&same), false), None);
        assert_eq!(
            patch(&with(&first), &with(&same), true).unwrap()["status"]["conditions"].as_array().unwrap().len(),
            4
        );
        assert_eq!(
            patch(&with(&first), &with(&second), false).unwrap()["status"]["conditions"].as_array().unwrap().len(),
            1
        );
    }
}
