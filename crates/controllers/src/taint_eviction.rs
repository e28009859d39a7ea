//! Deletes pods from nodes whose `NoExecute` taints they do not tolerate, or no longer.

use crate::config::Setup;
use crate::node_lifecycle::by_node;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::core::placement::tolerates;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, Patch, PatchParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 8;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["nodes"], &["get", "list", "watch"]),
    Rule::new(&[""], &["pods"], &["delete", "get", "list", "watch"]),
    Rule::new(&[""], &["pods/status"], &["patch"]),
    EVENTS,
];

struct Evictions {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    setup: Setup,
    recorder: EventRecorder,
    /// Pods that will go at the end of a toleration, unless something changes, and since when: a taint need not say when
    /// it was added.
    pending: Mutex<BTreeMap<String, Timestamp>>,
}

fn no_execute(node: &Node) -> Vec<&Taint> {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).filter(|t| t.effect == "NoExecute").collect()
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let pods = setup.informers.get::<Pod>();
    let nodes = setup.informers.get::<Node>();
    let pods_by_node = pods.index("node", by_node);
    let queue = Queue::new(setup.name);
    // Nearly no node has such taints: pods on the others cost nothing.
    let tainted = nodes.index("evicts", |node| {
        let evicts = !no_execute(node).is_empty();
        evicts.then(|| node.metadata.name().to_owned()).into_iter().collect()
    });
    let (q, evicting) = (queue.clone(), tainted.clone());
    pods.on_change(move |change| {
        let relevant = match change {
            Change::Added(_) | Change::Deleted(_) => true,
            Change::Modified { old, new } => {
                pod_state::node_name(old) != pod_state::node_name(new) || tolerations(old) != tolerations(new)
            }
        };
        let node = pod_state::node_name(change.object());
        if relevant && !node.is_empty() && evicting.count(node) > 0 {
            q.add(key_of(&**change.object()));
        }
    });
    let (q, on_node) = (queue.clone(), pods_by_node.clone());
    nodes.on_change(move |change| {
        let now = no_execute(change.object());
        let before = change.old().map(|o| no_execute(o)).unwrap_or_default();
        if now == before || matches!(change, Change::Deleted(_)) {
            return;
        }
        for pod in on_node.get(change.object().metadata.name()) {
            q.add(key_of(&*pod));
        }
    });
    if !wait_synced(&[&pods, &nodes], &setup.cancel).await {
        return;
    }
    // Pods that arrived before their tainted node did.
    for pod in tainted.values().iter().flat_map(|node| pods_by_node.get(node)) {
        queue.add(key_of(&*pod));
    }
    let (recorder, cancel) = (setup.recorder("taint-eviction-controller"), setup.cancel.clone());
    let evictions = Evictions { pods, nodes, setup, recorder, pending: Mutex::default() };
    runner::run(Arc::new(evictions), queue, WORKERS, cancel).await;
}

impl Evictions {
    /// The pod need not go after all, or has gone by itself: told only where its end was planned.
    fn call_off(&self, key: &str) -> Outcome {
        if self.pending.lock().remove(key).is_some() {
            let (namespace, name) = key.split_once('/').unwrap_or_default();
            let metadata =
                ObjectMeta { namespace: Some(namespace.into()), name: Some(name.into()), ..Default::default() };
            let pod = Pod { metadata, ..Default::default() };
            self.recorder.normal(&pod, "TaintManagerEviction", &format!("Cancelling deletion of Pod {key}"));
        }
        Outcome::done()
    }
}

/// When a pod must go because of these taints: None for never, a time in the past or present for now. A pod begins to
/// bear a taint when that was added, or when the pod was `bound` to the node that had it; `since` stands for what is
/// not known of these.
#[must_use]
pub fn deadline(
    tolerations: &[Toleration],
    taints: &[&Taint],
    bound: Option<Timestamp>,
    since: Timestamp,
) -> Option<Timestamp> {
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if matching.is_empty() {
            return Some(since);
        }
        let seconds = matching.iter().filter_map(|t| t.toleration_seconds).min();
        if let Some(seconds) = seconds {
            let begin = taint.time_added.as_ref().zip(bound).map_or(since, |(added, bound)| added.0.max(bound));
            let bearable = k8s_openapi::jiff::SignedDuration::from_secs(seconds.max(0));
            let end = begin.saturating_add(bearable).unwrap_or(Timestamp::MAX);
            earliest = Some(earliest.map_or(end, |e| e.min(end)));
        }
    }
    earliest
}

/// When the pod was bound to its node.
fn bound_at(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "True")?;
    scheduled.last_transition_time.as_ref().map(|t| t.0)
}

#[async_trait]
impl Controller for Evictions {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.store().by_key(key) else { return Ok(self.call_off(key)) };
        let Some(node) = self.nodes.get("", pod_state::node_name(&pod)) else { return Ok(self.call_off(key)) };
        let taints = no_execute(&node);
        if taints.is_empty() {
            return Ok(self.call_off(key));
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::done());
        }
        let clock = &self.setup.config.clock;
        let tolerations = tolerations(&pod);
        let since = self.pending.lock().get(key).copied().unwrap_or_else(|| clock.now());
        let Some(end) = deadline(tolerations, &taints, bound_at(&pod), since) else { return Ok(self.call_off(key)) };
        let left = Duration::try_from(end.duration_since(clock.now())).unwrap_or(Duration::ZERO);
        if !left.is_zero() {
            self.pending.lock().insert(key.to_owned(), since);
            return Ok(Outcome::after(left));
        }
        self.recorder.normal(&*pod, "TaintManagerEviction", &format!("Marking for deletion Pod {key}"));
        let api = Api::<Pod>::namespaced(self.setup.client.clone(), pod.metadata.namespace());
        let mark = json!({
            "metadata": {"uid": pod.metadata.uid()},
            "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": clock.time().0.to_string(),
            }]},
        });
        let name = pod.metadata.name();
        let evicted = match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(mark)).await {
            Ok(_) => {
                let params = DeleteParams { precondition_uid: pod.metadata.uid.clone(), ..Default::default() };
                api.delete(name, &params).await.map(drop)
            }
            Err(e) => Err(e),
        };
        match evicted {
            Err(e) if !e.is("NotFound") && !e.is("Conflict") => Err(Error::api(format!("evict pod {key}"), e)),
            // Not before: what failed is tried again without bearing the taint anew.
            evicted => {
                if evicted.is_ok() {
                    let late = clock.now().duration_since(end).as_secs_f64();
                    self.setup.config.measured.taint_deleted(late);
                }
                self.pending.lock().remove(key);
                Ok(Outcome::done())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
            value: None,
        }
    }

    #[test]
    fn deadlines() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let taint = |key: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some(gantry_api::Time(at(100))),
            value: None,
        };
        let (a, b) = (taint("a"), taint("b"));
        let (bound, now) = (Some(at(90)), at(150));
        type Case<'a> = (Vec<Toleration>, Vec<&'a Taint>, Option<i64>);
        let cases: Vec<Case<'_>> = vec![
            (vec![], vec![&a], Some(150)),
            (vec![toleration("a", None)], vec![&a], None),
            (vec![toleration("a", Some(300))], vec![&a], Some(400)),
            (vec![toleration("a", Some(300)), toleration("b", Some(200))], vec![&a, &b], Some(300)),
            (vec![toleration("a", Some(300)), toleration("b", None)], vec![&a, &b], Some(400)),
            (vec![toleration("a", Some(300))], vec![&a, &b], Some(150)),
            (vec![toleration("", Some(-1))], vec![&a], Some(100)),
            (vec![], vec![], None),
        ];
        for (tolerations, taints, want) in cases {
            assert_eq!(deadline(&tolerations, &taints, bound, now).map(|t| t.as_second()), want, "{tolerations:?}");
        }
        let bears = [toleration("a", Some(60))];
        assert_eq!(deadline(&bears, &[&a], Some(at(130)), now), Some(at(190)), "it came after the taint");
        assert_eq!(deadline(&bears, &[&a], None, now), Some(at(210)), "nothing is known but that it is there now");
    }
}
