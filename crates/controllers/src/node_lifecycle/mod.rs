//! Watches over nodes: one that falls silent becomes Unknown, its conditions become taints, its pods are marked not ready.
//!
//! A node's silence is measured on our own clock, from the last time its Lease or its status changed; each node is looked
//! at again when its grace period ends, and not before.

mod health;
mod taints;
mod zones;

pub(crate) use health::is_ready as node_is_ready;
pub use health::{MONITORED, silenced};
pub use taints::{NO_EXECUTE_KEYS, desired_no_execute, desired_no_schedule, with_taints};
pub use zones::{ZoneState, zone_of, zone_state};

use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, Patch, PatchParams, PostParams};
use gantry_reconcile::{
    Change, Controller, Error, EventRecorder, Index, Informer, Outcome, Queue, runner, wait_synced,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;
use zones::{Limits, Tally, Turn};

const WORKERS: usize = 4;
/// Namespace of the Leases by which nodes show that they live.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["nodes"], &["get", "list", "patch", "update", "watch"]),
    Rule::new(&[""], &["nodes/status"], &["patch", "update"]),
    Rule::new(&[""], &["pods/status"], &["patch", "update"]),
    Rule::new(&[""], &["pods"], &["get", "list", "watch"]),
    Rule::new(&["coordination.k8s.io"], &["leases"], &["get", "list", "watch"]),
    EVENTS,
];

/// What is remembered of a node.
struct Health {
    /// When it last gave a sign of life.
    seen: Instant,
    /// Whether it was ready when last looked at.
    ready: bool,
    /// Its pods must still be marked not ready.
    pods_pending: bool,
}

type Records = Arc<Mutex<BTreeMap<String, Health>>>;

struct Nodes {
    nodes: Informer<Node>,
    pods_by_node: Index<Pod>,
    records: Records,
    tally: Tally,
    limits: Mutex<Limits>,
    queue: Queue,
    setup: Setup,
    recorder: EventRecorder,
}

/// Finds pods by their node.
pub(crate) fn by_node(pod: &Pod) -> Vec<String> {
    vec![pod_state::node_name(pod).to_owned()]
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let nodes = setup.informers.get::<Node>();
    let pods = setup.informers.get::<Pod>();
    let leases = setup.informers.get::<Lease>();
    let pods_by_node = pods.index("node", by_node);
    let queue = Queue::new(setup.name);
    let records = Records::default();
    let recorder = setup.recorder("node-controller");
    watch(&nodes, &leases, &queue, &records, &recorder);
    if !wait_synced(&[&nodes, &pods, &leases], &setup.cancel).await {
        return;
    }
    let (cancel, q) = (setup.cancel.clone(), queue.clone());
    let (tally, limits) = (Tally::new(nodes.store()), Mutex::new(Limits::new(queue.clone())));
    let controller = Arc::new(Nodes { nodes, pods_by_node, records, tally, limits, queue, setup, recorder });
    runner::run(controller, q, WORKERS, cancel).await;
}

fn watch(nodes: &Informer<Node>, leases: &Informer<Lease>, queue: &Queue, records: &Records, recorder: &EventRecorder) {
    let (q, seen, events) = (queue.clone(), records.clone(), recorder.clone());
    nodes.on_change(move |change| {
        let node = change.object();
        let name = node.metadata.name().to_owned();
        match change {
            Change::Added(_) => {
                let message = format!("Node {name} event: Registered Node {name} in Controller");
                events.normal(&**node, "RegisteredNode", &message);
            }
            Change::Deleted(_) => {
                let message = format!("Node {name} event: Removing Node {name} from Controller");
                events.normal(&**node, "RemovingNode", &message);
            }
            Change::Modified { old, new } => {
                if old.status != new.status
                    && let Some(h) = seen.lock().get_mut(&name)
                {
                    h.seen = Instant::now();
                }
                if !health::concerns(old, new) {
                    return;
                }
            }
        }
        q.add(name);
    });
    let seen = records.clone();
    leases.on_change(move |change| {
        let lease = change.object();
        if lease.metadata.namespace() == LEASE_NAMESPACE
            && !matches!(change, Change::Deleted(_))
            && change.old().is_none_or(|o| o.spec != lease.spec)
            && let Some(h) = seen.lock().get_mut(lease.metadata.name())
        {
            h.seen = Instant::now();
        }
    });
}

#[async_trait]
impl Controller for Nodes {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(mut node) = self.nodes.get("", key) else {
            self.records.lock().remove(key);
            self.limits.lock().leave(key);
            self.check_zones(None);
            return Ok(Outcome::done());
        };
        let config = &self.setup.config;
        let reported = health::ready(&node).is_some();
        let grace = if reported { config.node_grace_period } else { config.node_startup_grace_period };
        let silent = {
            let mut records = self.records.lock();
            let ready = health::is_ready(&node);
            let h = records.entry(key.to_owned()).or_insert_with(|| Health {
                seen: Instant::now(),
                ready,
                pods_pending: false,
            });
            h.seen.elapsed()
        };
        let mut wait = grace.saturating_sub(silent);
        if wait.is_zero() {
            if let Some(changed) = silenced(&node, &config.clock.time()) {
                info!(node = key, ?silent, "node has fallen silent");
                let api = Api::<Node>::all(self.setup.client.clone());
                node = match api.update_status(&PostParams::default(), &changed).await {
                    Ok(n) => Arc::new(n),
                    Err(e) if e.is("NotFound") => return Ok(Outcome::done()),
                    Err(e) => return Err(Error::api(format!("update status of node {key}"), e)),
                };
            }
            // It stays Unknown until it reports itself.
            wait = Duration::ZERO;
        }
        self.note_readiness(&node);
        self.mark_pods(&node).await?;
        self.check_zones(Some(&node));
        let delayed = self.taint(&node).await?;
        let next = [(!wait.is_zero()).then_some(wait), delayed].into_iter().flatten().min();
        Ok(Outcome { requeue_after: next })
    }
}

impl Nodes {
    /// Records that a node ceased to be ready.
    fn note_readiness(&self, node: &Node) {
        let name = node.metadata.name();
        let ready = health::is_ready(node);
        let fell = {
            let mut records = self.records.lock();
            let Some(h) = records.get_mut(name) else { return };
            let fell = h.ready && !ready;
            h.ready = ready;
            h.pods_pending = (h.pods_pending || fell) && !ready;
            fell
        };
        if fell {
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder.normal(node, "NodeNotReady", &message);
        }
    }

    /// Marks the pods of a node that ceased to be ready as not ready, so that they leave their Services.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        let name = node.metadata.name();
        if !self.records.lock().get(name).is_some_and(|h| h.pods_pending) {
            return Ok(());
        }
        let now = self.setup.config.clock.time();
        let mut errors = Vec::new();
        for pod in self.pods_by_node.get(name) {
            if !pod_state::is_ready(&pod) || pod_state::is_finished(&pod) {
                continue;
            }
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid()},
                "status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now.0.to_string()}]},
            });
            let api = Api::<Pod>::namespaced(self.setup.client.clone(), pod.metadata.namespace());
            match api.patch_status(pod.metadata.name(), &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => self.recorder.warning(&*pod, "NodeNotReady", "Node is not ready"),
                Err(e) if e.is("NotFound") || e.is("Conflict") => {}
                Err(e) => errors.push(Error::api(format!("mark pod {} not ready", pod.metadata.key()), e)),
            }
        }
        Error::collect(errors)?;
        if let Some(h) = self.records.lock().get_mut(name) {
            h.pods_pending = false;
        }
        Ok(())
    }

    /// Looks at all nodes again where the whole cluster begins or ceases to be without a ready node: then the fault is more
    /// likely on this side, and nobody is evicted. `seen` is a node that was just looked at; where it is ready, the others
    /// need not be.
    fn check_zones(&self, seen: Option<&Node>) {
        let one_is_ready = seen.is_some_and(health::is_ready);
        let disrupted = !one_is_ready && self.tally.all_disrupted();
        let turned = self.limits.lock().set_disrupted(disrupted);
        if turned {
            info!(disrupted, "no node is ready, or one is again: evictions stop or go on");
            for name in self.nodes.store().keys() {
                self.queue.add(name);
            }
        }
    }

    /// Brings the taints in line with the conditions; how long an eviction must wait its turn.
    async fn taint(&self, node: &Node) -> Result<Option<Duration>, Error> {
        let now = self.setup.config.clock.time();
        let no_schedule = desired_no_schedule(node);
        let mut no_execute = desired_no_execute(node);
        let mut delayed = None;
        {
            let mut limits = self.limits.lock();
            if limits.is_disrupted() {
                no_execute = None;
            }
            if no_execute.is_some_and(|key| !taints::has(node, key, "NoExecute")) {
                let zone = zone_of(node);
                let turn = limits.turn(node.metadata.name(), &zone, self.tally.counts(&zone));
                if turn != Turn::Now {
                    // What stands stays until it is this node's turn.
                    no_execute = NO_EXECUTE_KEYS.iter().copied().find(|k| taints::has(node, k, "NoExecute"));
                }
                if let Turn::After(wait) = turn {
                    delayed = Some(wait);
                }
            } else {
                limits.leave(node.metadata.name());
            }
        }
        let begins = no_execute.is_some_and(|key| !taints::has(node, key, "NoExecute"));
        let Some(taints) = with_taints(node, &no_schedule, no_execute, &now) else { return Ok(delayed) };
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version()},
            "spec": {"taints": taints::to_json(&taints)},
        });
        let api = Api::<Node>::all(self.setup.client.clone());
        match api.patch(node.metadata.name(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                if begins {
                    self.setup.config.measured.node_evicted(zone_of(node));
                }
                Ok(delayed)
            }
            Err(e) if e.is("NotFound") => Ok(None),
            Err(e) => Err(Error::api(format!("change taints of node {}", node.metadata.name()), e)),
        }
    }
}

#[cfg(test)]
mod tests;
