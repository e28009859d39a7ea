//! Deletes pods that nothing else would: those of nodes that no longer exist, those deleted before they got a node, those
//! on nodes that are out of service, and the oldest of too many finished ones.

use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::Time;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, Patch, PatchParams};
use gantry_reconcile::{Change, Controller, Error, Index, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;

/// A node must be missing for this long before its pods go: it may be coming back, or the cache may lag.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Everything is looked at under one key.
const KEY: &str = "pods";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["pods"], &["delete", "list", "watch"]),
    Rule::new(&[""], &["nodes"], &["get", "list"]),
    Rule::new(&[""], &["pods/status"], &["patch"]),
    EVENTS,
];

/// Where the index has the pods that are being deleted, and those that have ended; else each is under its node's name.
const GOING: &str = "/going";
const FINISHED: &str = "/finished";

struct PodGc {
    pods: Index<Pod>,
    nodes: Informer<Node>,
    missing: Mutex<BTreeMap<String, Instant>>,
    setup: Setup,
}

/// Why a pod is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// One of too many finished pods.
    Finished,
    /// Its node no longer exists.
    Orphaned,
    /// Deleted before it got a node.
    NeverScheduled,
    /// Its node is marked out of service.
    OutOfService,
}

impl Why {
    /// The reason, as upstream's measurements call it.
    const fn name(self) -> &'static str {
        match self {
            Why::Finished => "terminated",
            Why::Orphaned => "orphaned",
            Why::NeverScheduled => "unscheduled",
            Why::OutOfService => "out-of-service",
        }
    }
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let pods = setup.informers.get::<Pod>();
    let nodes = setup.informers.get::<Node>();
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        let unassigned_and_going = pod_state::node_name(pod).is_empty() && pod.metadata.deletion_timestamp.is_some();
        let began_to_go = change.old().is_some_and(|o| o.metadata.deletion_timestamp.is_none())
            && pod.metadata.deletion_timestamp.is_some();
        let finished = pod_state::is_finished(pod) && change.old().is_none_or(|o| !pod_state::is_finished(o));
        if !matches!(change, Change::Deleted(_)) && (unassigned_and_going || began_to_go || finished) {
            q.add(KEY.to_owned());
        }
    });
    let q = queue.clone();
    nodes.on_change(move |change| match change {
        Change::Deleted(_) => q.add(KEY.to_owned()),
        Change::Modified { old, new } if is_out_of_service(old) != is_out_of_service(new) => q.add(KEY.to_owned()),
        _ => {}
    });
    if !wait_synced(&[&pods, &nodes], &setup.cancel).await {
        return;
    }
    queue.add(KEY.to_owned());
    let cancel = setup.cancel.clone();
    let pods = pods.index("collected", places);
    let controller = Arc::new(PodGc { pods, nodes, missing: Mutex::default(), setup });
    runner::run(controller, queue, 1, cancel).await;
}

/// Under what the index has a pod: reasons to look at it, so that the others need not be.
fn places(pod: &Pod) -> Vec<String> {
    let node = pod_state::node_name(pod);
    let going = pod.metadata.deletion_timestamp.is_some().then_some(GOING);
    let finished = pod_state::is_finished(pod).then_some(FINISHED);
    let node = (!node.is_empty()).then_some(node);
    [going, finished, node].into_iter().flatten().map(str::to_owned).collect()
}

fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Which pods to delete. `gone` names nodes known not to exist; no more than `threshold` finished pods are kept (all where
/// it is 0).
#[must_use]
pub fn decide(
    pods: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    gone: &BTreeSet<String>,
    threshold: usize,
) -> Vec<(Arc<Pod>, Why)> {
    let mut out = Vec::new();
    let mut chosen = BTreeSet::new();
    let mut choose = |pod: &Arc<Pod>, why: Why| {
        if chosen.insert(pod.metadata.key()) {
            out.push((pod.clone(), why));
        }
    };
    if threshold > 0 {
        let mut finished: Vec<&Arc<Pod>> = pods.iter().filter(|p| pod_state::is_finished(p)).collect();
        if finished.len() > threshold {
            let age = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            // What was evicted holds no results worth keeping: it goes first.
            let evicted = |p: &Pod| p.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
            finished.sort_by_key(|p| (!evicted(p), age(p), p.metadata.key()));
            for pod in &finished[..finished.len() - threshold] {
                choose(pod, Why::Finished);
            }
        }
    }
    let down: BTreeSet<&str> =
        nodes.iter().filter(|n| is_out_of_service(n) && !is_ready(n)).map(|n| n.metadata.name()).collect();
    for pod in pods {
        let node = pod_state::node_name(pod);
        let going = pod.metadata.deletion_timestamp.is_some();
        if going && !node.is_empty() && down.contains(node) {
            choose(pod, Why::OutOfService);
        } else if !node.is_empty() && gone.contains(node) {
            choose(pod, Why::Orphaned);
        } else if going && node.is_empty() {
            choose(pod, Why::NeverScheduled);
        }
    }
    out
}

/// The patch that marks a pod failed before it is deleted without its node's help; None where it has ended already.
#[must_use]
pub fn failure(pod: &Pod, why: Why, now: &Time) -> Option<Value> {
    if pod_state::is_finished(pod) {
        return None;
    }
    let mut status = json!({"phase": "Failed"});
    if why == Why::Orphaned {
        status["conditions"] = json!([{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists", "lastTransitionTime": now.0.to_string(),
        }]);
    }
    Some(json!({"metadata": {"uid": pod.metadata.uid()}, "status": status}))
}

#[async_trait]
impl Controller for PodGc {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, _: &str) -> Result<Outcome, Error> {
        let (gone, wait) = self.gone().await?;
        let threshold = self.setup.config.terminated_pod_threshold;
        let mut pods = self.pods.get(GOING);
        if threshold > 0 && self.pods.count(FINISHED) > threshold {
            pods.extend(self.pods.get(FINISHED));
        }
        pods.extend(gone.iter().flat_map(|node| self.pods.get(node)));
        pods.sort_by_key(|pod| pod.metadata.key());
        pods.dedup_by_key(|pod| pod.metadata.key());
        let mut errors = Vec::new();
        for (pod, why) in decide(&pods, &self.nodes.list(), &gone, threshold) {
            info!(pod = %pod.metadata.key(), reason = ?why, "deleting pod");
            let deleted = self.delete(&pod, why).await;
            self.setup.config.measured.pod_collected(pod.metadata.namespace(), why.name(), deleted.is_ok());
            if let Err(e) = deleted {
                errors.push(e);
            }
        }
        Error::collect(errors)?;
        Ok(Outcome { requeue_after: wait })
    }
}

impl PodGc {
    /// Nodes of pods that have been missing for long enough, by the server's word; and when to look at the others.
    async fn gone(&self) -> Result<(BTreeSet<String>, Option<Duration>), Error> {
        let named = self.pods.values().into_iter().filter(|n| !n.starts_with('/'));
        let absent: BTreeSet<String> = named.filter(|n| self.nodes.get("", n).is_none()).collect();
        let (mut due, mut wait) = (Vec::new(), None);
        {
            let mut missing = self.missing.lock();
            missing.retain(|n, _| absent.contains(n));
            for node in absent {
                let since = *missing.entry(node.clone()).or_insert_with(Instant::now);
                let left = QUARANTINE.saturating_sub(since.elapsed());
                if left.is_zero() {
                    due.push(node);
                } else {
                    wait = Some(wait.map_or(left, |w: Duration| w.min(left)));
                }
            }
        }
        let api = Api::<Node>::all(self.setup.client.clone());
        let mut gone = BTreeSet::new();
        for node in due {
            let found = api.get_opt(&node).await.map_err(|e| Error::api(format!("get node {node}"), e))?;
            if found.is_none() {
                gone.insert(node);
            }
        }
        Ok((gone, wait))
    }

    async fn delete(&self, pod: &Pod, why: Why) -> Result<(), Error> {
        let (name, key) = (pod.metadata.name(), pod.metadata.key());
        let api = Api::<Pod>::namespaced(self.setup.client.clone(), pod.metadata.namespace());
        if let Some(patch) = failure(pod, why, &self.setup.config.clock.time()) {
            match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {}
                Err(e) if e.is("NotFound") || e.is("Conflict") => return Ok(()),
                Err(e) => return Err(Error::api(format!("mark pod {key} failed"), e)),
            }
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            precondition_uid: pod.metadata.uid.clone(),
            ..Default::default()
        };
        match api.delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") || e.is("Conflict") => Ok(()),
            Err(e) => Err(Error::api(format!("delete pod {key}"), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;

    fn pod(name: &str, node: &str, phase: &str, going: bool, created: i64) -> Arc<Pod> {
        let time = |s: i64| k8s_openapi::jiff::Timestamp::from_second(s).unwrap().to_string();
        let mut v = json!({
            "metadata": {"name": name, "namespace": "n", "creationTimestamp": time(created)},
            "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase},
        });
        if going {
            v["metadata"]["deletionTimestamp"] = time(100).into();
        }
        Arc::new(Pod::from_value(v).unwrap())
    }

    #[test]
    fn each_reason_finds_its_pods() {
        let out =
            json!({"metadata": {"name": "down"}, "spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]}});
        let nodes = vec![Arc::new(Node::from_value(out).unwrap())];
        let pods = [
            pod("old", "down", "Succeeded", false, 1),
            pod("new", "down", "Failed", false, 2),
            pod("lost", "gone", "Running", false, 3),
            pod("fine", "down", "Running", false, 3),
            pod("stuck", "down", "Running", true, 3),
            pod("never", "", "Pending", true, 3),
            pod("waiting", "", "Pending", false, 3),
        ];
        let gone = ["gone".to_owned()].into();
        let got: Vec<_> =
            decide(&pods, &nodes, &gone, 1).into_iter().map(|(p, w)| (p.metadata.name().to_owned(), w)).collect();
        let want = [
            ("old", Why::Finished),
            ("lost", Why::Orphaned),
            ("stuck", Why::OutOfService),
            ("never", Why::NeverScheduled),
        ];
        assert_eq!(got, want.map(|(n, w)| (n.to_owned(), w)));
        assert!(decide(&pods[..2], &nodes, &BTreeSet::new(), 0).is_empty(), "0 keeps all");
    }

    #[test]
    fn a_pod_that_did_not_end_is_marked_failed() {
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let patch = failure(&pod("p", "gone", "Running", false, 1), Why::Orphaned, &now).unwrap();
        assert_eq!(patch["status"]["conditions"][0]["reason"], "DeletionByPodGC");
        assert!(failure(&pod("p", "gone", "Failed", false, 1), Why::Orphaned, &now).is_none());
    }
}
