//! Deletes pods that nothing else would: those of nodes that no longer exist, those deleted before they got a node, those
//! on nodes that are out of service, and the oldest of too many finished ones.
//!
//! Each change is looked at by itself, under the key of what it may concern: a pod, a node, or the finished pods, of which
//! there is a pass every so often, as upstream's. A pod of which only finalizers are left has been dealt with.

use crate::config::Setup;
use crate::node_lifecycle::node_is_ready;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::Time;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, Patch, PatchParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Controller, Error, Index, Informer, Outcome, Queue, Store, runner, wait_synced};
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;

/// A node must be missing for this long before its pods go: it may be coming back, or the cache may lag.
const QUARANTINE: Duration = Duration::from_secs(40);
/// How often the finished pods are looked at, while there are more than are kept and some finish.
const PERIOD: Duration = Duration::from_secs(20);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["pods"], &["delete", "list", "watch"]),
    Rule::new(&[""], &["nodes"], &["get", "list"]),
    Rule::new(&[""], &["pods/status"], &["patch"]),
    EVENTS,
];

/// Where the index has the pods that have ended, and the key of all of them; no node or pod is called so. Each pod is under
/// its node's name, too.
const FINISHED: &str = "/finished";
/// What comes before a node's name in its key. Those of pods have their slash elsewhere.
const NODE: &str = "/node/";

/// Nodes that pods are on and that do not exist, by the caches, and since when.
type Missing = Arc<Mutex<BTreeMap<String, Instant>>>;

struct PodGc {
    all_pods: Informer<Pod>,
    pods: Index<Pod>,
    nodes: Informer<Node>,
    /// Finds nodes that are out of service, by their names.
    down: Index<Node>,
    missing: Missing,
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
    let index = pods.index("collected", places);
    let queue = Queue::new(setup.name);
    let missing = Missing::default();
    let down = nodes
        .index("out of service", |node| is_down(node).then(|| node.metadata.name().to_owned()).into_iter().collect());
    watch_pods(&pods, index.clone(), nodes.store().clone(), down.clone(), queue.clone(), missing.clone());
    watch_nodes(&nodes, index.clone(), queue.clone(), missing.clone());
    if !wait_synced(&[&pods, &nodes], &setup.cancel).await {
        return;
    }
    queue.add(FINISHED.to_owned());
    let cancel = setup.cancel.clone();
    let controller = Arc::new(PodGc { all_pods: pods, pods: index, nodes, down, missing, setup });
    runner::run(controller, queue, 1, cancel).await;
}

/// Queues what a change of a pod gives reason to look at: itself, its node where that is not there, the finished pods.
fn watch_pods(
    all: &Informer<Pod>,
    pods: Index<Pod>,
    nodes: Store<Node>,
    down: Index<Node>,
    queue: Queue,
    missing: Missing,
) {
    all.on_change(move |change| {
        let (pod, old) = (change.object(), change.old());
        let node = pod_state::node_name(pod);
        if matches!(change, Change::Deleted(_)) {
            let mut missing = missing.lock();
            if !missing.is_empty() && pods.count(node) == 0 {
                missing.remove(node);
            }
            return;
        }
        if !node.is_empty() && old.is_none_or(|o| pod_state::node_name(o) != node) && !nodes.contains(node) {
            missing.lock().entry(node.to_owned()).or_insert_with(Instant::now);
            queue.add(format!("{NODE}{node}"));
        }
        let began_to_go = pod.metadata.is_deleting() && old.is_none_or(|o| !o.metadata.is_deleting());
        if began_to_go && (node.is_empty() || down.count(node) > 0) {
            queue.add(key_of(&**pod));
        }
        if pod_state::is_finished(pod) && old.is_none_or(|o| !pod_state::is_finished(o)) {
            // Where it waits already, the earlier time holds.
            queue.add_after(FINISHED.to_owned(), PERIOD);
        }
    });
}

/// Queues nodes that went away while there are pods on them, or went out of service.
fn watch_nodes(nodes: &Informer<Node>, pods: Index<Pod>, queue: Queue, missing: Missing) {
    nodes.on_change(move |change| {
        let node = change.object();
        let name = node.metadata.name();
        let concerned = match change {
            Change::Added(_) => {
                missing.lock().remove(name);
                is_down(node) && pods.count(name) > 0
            }
            Change::Modified { old, .. } => is_down(node) && !is_down(old) && pods.count(name) > 0,
            Change::Deleted(_) => {
                // Under the lock: who puts a pod there from now on finds the node missing by itself.
                let mut missing = missing.lock();
                let has_pods = pods.count(name) > 0;
                if has_pods {
                    missing.insert(name.to_owned(), Instant::now());
                }
                has_pods
            }
        };
        if concerned {
            queue.add(format!("{NODE}{name}"));
        }
    });
}

/// Under what the index has a pod.
fn places(pod: &Pod) -> Vec<String> {
    let node = pod_state::node_name(pod);
    let finished = pod_state::is_finished(pod).then_some(FINISHED);
    let node = (!node.is_empty()).then_some(node);
    [finished, node].into_iter().flatten().map(str::to_owned).collect()
}

fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

/// Out of service, and really down: pods that are to go wait in vain for its agent.
fn is_down(node: &Node) -> bool {
    is_out_of_service(node) && !node_is_ready(node)
}

/// Whether only finalizers hold the pod, which others take away: it has ended and was deleted without any grace.
fn is_dealt_with(pod: &Pod) -> bool {
    pod.metadata.is_deleting() && pod.metadata.deletion_grace_period_seconds == Some(0) && pod_state::is_finished(pod)
}

/// The finished pods beyond so many, what is worth least first; all are kept where it is 0.
#[must_use]
pub fn too_many(mut finished: Vec<Arc<Pod>>, threshold: usize) -> Vec<Arc<Pod>> {
    if threshold == 0 || finished.len() <= threshold {
        return Vec::new();
    }
    let age = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
    // What was evicted holds no results worth keeping: it goes first.
    let evicted = |p: &Pod| p.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
    finished.sort_by_cached_key(|p| (!evicted(p), age(p), p.metadata.key()));
    finished.truncate(finished.len() - threshold);
    finished
}

/// Why a pod is to be deleted that is on this node, or on none; None where it is not. `gone`: the node does not exist.
#[must_use]
pub fn reason(pod: &Pod, node: Option<&Node>, gone: bool) -> Option<Why> {
    let going = pod.metadata.is_deleting();
    if is_dealt_with(pod) {
        None
    } else if pod_state::node_name(pod).is_empty() {
        going.then_some(Why::NeverScheduled)
    } else if gone {
        Some(Why::Orphaned)
    } else {
        (going && node.is_some_and(is_down)).then_some(Why::OutOfService)
    }
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

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        if key == FINISHED {
            self.keep_few().await?;
        } else if let Some(name) = key.strip_prefix(NODE) {
            let gone = match self.absence(name).await? {
                Absence::Since(left) => return Ok(Outcome::after(left)),
                // Most were missing only until the nodes were listed.
                Absence::None if self.down.count(name) == 0 => return Ok(Outcome::done()),
                Absence::None => false,
                Absence::Certain => true,
            };
            let node = self.nodes.get("", name);
            let pods = self.pods.get(name);
            self.delete_all(pods.iter().filter_map(|pod| Some((pod, reason(pod, node.as_deref(), gone)?)))).await?;
        } else if let Some(pod) = self.all_pods.store().by_key(key) {
            let node = self.nodes.get("", pod_state::node_name(&pod));
            self.delete_all(reason(&pod, node.as_deref(), false).map(|why| (&pod, why)).into_iter()).await?;
        }
        Ok(Outcome::done())
    }
}

/// Whether a node that pods are on does not exist.
enum Absence {
    /// It exists, or no pod is on it.
    None,
    /// It seems so, and is to be looked at again after this long.
    Since(Duration),
    /// It has been missing for long enough, and the server says so, too.
    Certain,
}

impl PodGc {
    async fn absence(&self, node: &str) -> Result<Absence, Error> {
        {
            let mut missing = self.missing.lock();
            let Some(since) = missing.get(node).copied() else { return Ok(Absence::None) };
            if self.nodes.store().contains(node) || self.pods.count(node) == 0 {
                missing.remove(node);
                return Ok(Absence::None);
            }
            let left = QUARANTINE.saturating_sub(since.elapsed());
            if !left.is_zero() {
                return Ok(Absence::Since(left));
            }
        }
        let found = Api::<Node>::all(self.setup.client.clone()).get_opt(node).await;
        let found = found.map_err(|e| Error::api(format!("get node {node}"), e))?;
        // Where it exists after all, the cache is about to say so.
        Ok(if found.is_some() { Absence::Since(QUARANTINE) } else { Absence::Certain })
    }

    /// Deletes the oldest finished pods where there are more than are kept.
    async fn keep_few(&self) -> Result<(), Error> {
        let threshold = self.setup.config.terminated_pod_threshold;
        if threshold == 0 || self.pods.count(FINISHED) <= threshold {
            return Ok(());
        }
        let pods = too_many(self.pods.get(FINISHED), threshold);
        self.delete_all(pods.iter().filter(|pod| !is_dealt_with(pod)).map(|pod| (pod, Why::Finished))).await
    }

    async fn delete_all(&self, pods: impl Iterator<Item = (&Arc<Pod>, Why)> + Send) -> Result<(), Error> {
        let mut errors = Vec::new();
        for (pod, why) in pods {
            info!(pod = %pod.metadata.key(), reason = ?why, "deleting pod");
            let deleted = self.delete(pod, why).await;
            self.setup.config.measured.pod_collected(pod.metadata.namespace(), why.name(), deleted.is_ok());
            errors.extend(deleted.err());
        }
        Error::collect(errors)
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

    fn down(ready: &str) -> Node {
        Node::from_value(json!({
            "metadata": {"name": "down"}, "spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn each_reason_finds_its_pods() {
        let node = down("Unknown");
        let cases = [
            (pod("lost", "gone", "Running", false, 3), None, true, Some(Why::Orphaned)),
            (pod("lost-and-going", "gone", "Running", true, 3), None, true, Some(Why::Orphaned)),
            (pod("fine", "down", "Running", false, 3), Some(&node), false, None),
            (pod("stuck", "down", "Running", true, 3), Some(&node), false, Some(Why::OutOfService)),
            (pod("stopping", "down", "Running", true, 3), Some(&down("True")), false, None),
            (pod("unknown", "late", "Running", true, 3), None, false, None),
            (pod("never", "", "Pending", true, 3), None, false, Some(Why::NeverScheduled)),
            (pod("waiting", "", "Pending", false, 3), None, false, None),
        ];
        for (pod, node, gone, want) in cases {
            assert_eq!(reason(&pod, node, gone), want, "{}", pod.metadata.name());
        }
    }

    #[test]
    fn a_pod_that_only_finalizers_hold_is_left_to_them() {
        let held = |phase: &str, grace: i64| {
            let mut held = (*pod("p", "gone", phase, true, 1)).clone();
            held.metadata.deletion_grace_period_seconds = Some(grace);
            held.metadata.finalizers = Some(vec!["example.com/held".into()]);
            held
        };
        for (phase, grace, want) in [
            ("Running", 0, Some(Why::Orphaned)),
            ("Failed", 30, Some(Why::Orphaned)),
            ("Failed", 0, None),
            ("Succeeded", 0, None),
        ] {
            assert_eq!(reason(&held(phase, grace), None, true), want, "{phase} {grace}");
        }
    }

    #[test]
    fn the_oldest_of_too_many_finished_pods_go() {
        let evicted = {
            let mut evicted = (*pod("evicted", "a", "Failed", false, 9)).clone();
            evicted.status.as_mut().unwrap().reason = Some("Evicted".into());
            Arc::new(evicted)
        };
        let all = vec![pod("new", "a", "Failed", false, 2), pod("old", "a", "Succeeded", false, 1), evicted];
        let names = |pods: Vec<Arc<Pod>>| pods.iter().map(|p| p.metadata.name().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(too_many(all.clone(), 1)), ["evicted", "old"]);
        assert!(too_many(all.clone(), 3).is_empty());
        assert!(too_many(all, 0).is_empty(), "0 keeps all");
    }

    #[test]
    fn a_pod_that_did_not_end_is_marked_failed() {
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let patch = failure(&pod("p", "gone", "Running", false, 1), Why::Orphaned, &now).unwrap();
        assert_eq!(patch["status"]["conditions"][0]["reason"], "DeletionByPodGC");
        assert!(failure(&pod("p", "gone", "Failed", false, 1), Why::Orphaned, &now).is_none());
    }
}
