//! What the scheduler's decision alone costs: no API, no store, no queue; a snapshot and pods.

use super::{Bench, Measurement, process};
use crate::placing::{Found, Placing};
use anyhow::{Context, Result};
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod};
use gantry_scheduler::pod::PodInfo;
use gantry_scheduler::profile::Profile;
use gantry_scheduler::snapshot::Snapshot;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Controllers whose pods come in turns; each makes a class of equal pods.
pub const CONTROLLERS: usize = 20;

/// Sizes of clusters for the curve of what a decision costs.
const SIZES: [u64; 7] = [100, 500, 1_000, 5_000, 10_000, 20_000, 50_000];
/// The size the figures are of.
const SIZE: u64 = 5_000;
/// Decisions of one size.
const DECISIONS: usize = 20_000;
/// How long the decisions of one size may take; the mean is then of fewer.
const LONG: Duration = Duration::from_secs(20);

/// All shapes, each on clusters of all sizes.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let mut found = Vec::new();
    for (id, shape) in [
        ("decide_plain", Shape::Plain),
        ("decide_constrained", Shape::Constrained),
        ("decide_anti_affine", Shape::AntiAffine),
        ("decide_preempting", Shape::Preempting),
    ] {
        let quick = bench.quick;
        let decided = tokio::task::spawn_blocking(move || curve(id, shape, quick));
        found.push(decided.await.context("the scheduler panicked")??);
    }
    Ok(found)
}

fn curve(id: &'static str, shape: Shape, quick: bool) -> Result<Measurement> {
    let (mut costs, mut first, mut decisions) = (Map::new(), Map::new(), Map::new());
    let mut value = 0.0;
    for nodes in SIZES.into_iter().filter(|n| *n <= SIZE || !quick) {
        // Enough for the first pod of a class to weigh little, and no more than fit.
        let most = usize::try_from(nodes).unwrap_or(0) * if shape == Shape::Preempting { 3 } else { 20 };
        let cost = cost(nodes, shape, most.min(DECISIONS))?;
        let us = cost.mean.as_secs_f64() * 1e6;
        eprintln!("  {}: {nodes} nodes: {us:.1} µs a decision, {} decisions", shape.name(), cost.decisions);
        costs.insert(nodes.to_string(), json!(us));
        first.insert(nodes.to_string(), json!(cost.first.as_secs_f64() * 1e6));
        decisions.insert(nodes.to_string(), json!(cost.decisions));
        if nodes == SIZE {
            value = us;
        }
    }
    let detail = json!({
        "shape": shape.name(), "us_by_nodes": costs, "first_of_class_us_by_nodes": first, "decisions": decisions,
        "per_second": 1e6 / value,
    });
    Ok(Measurement { id, value, detail })
}

/// What pods ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing but cpu and memory.
    Plain,
    /// To be spread over zones (hard) and hosts (soft), a preferred and a required node affinity, on tainted nodes.
    Constrained,
    /// Not to be on a node with others of their controller.
    AntiAffine,
    /// Room that only pods of lower priority can give.
    Preempting,
}

impl Shape {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Plain => "plain",
            Shape::Constrained => "constrained",
            Shape::AntiAffine => "anti_affine",
            Shape::Preempting => "preempting",
        }
    }

    /// The parts of a pod's spec that make the shape; `app` is the pod's label.
    pub fn spec(self, app: &str) -> Value {
        let selector = json!({ "matchLabels": { "app": app } });
        match self {
            Shape::Plain => json!({}),
            Shape::Constrained => json!({
                "topologySpreadConstraints": [
                    { "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
                      "labelSelector": selector },
                    { "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                      "labelSelector": selector },
                ],
                "affinity": { "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                        { "matchExpressions": [{ "key": "kubernetes.io/os", "operator": "In", "values": ["linux"] }] },
                    ] },
                    "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 10, "preference": {
                        "matchExpressions": [{ "key": "disk", "operator": "In", "values": ["ssd"] }],
                    } }],
                } },
                "tolerations": [{ "key": "dedicated", "operator": "Equal", "value": "batch", "effect": "NoSchedule" }],
            }),
            Shape::AntiAffine => json!({ "affinity": { "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    { "labelSelector": selector, "topologyKey": "kubernetes.io/hostname" },
                ],
            } } }),
            Shape::Preempting => json!({ "priority": 1000 }),
        }
    }
}

/// The labels and taints of a node.
pub fn traits(number: u64, shape: Shape) -> (Value, Value) {
    let labels = json!({
        "kubernetes.io/hostname": format!("hollow-{number:05}"),
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
        "disk": if number.is_multiple_of(4) { "ssd" } else { "hdd" },
    });
    let taints = match (shape, number % 10) {
        (Shape::Constrained, 0) => json!([{ "key": "dedicated", "value": "batch", "effect": "NoSchedule" }]),
        (Shape::Constrained, 1) => json!([{ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" }]),
        (Shape::Constrained, 2) => json!([{ "key": "slow", "effect": "PreferNoSchedule" }]),
        _ => json!([]),
    };
    (labels, taints)
}

fn node(number: u64, shape: Shape) -> Node {
    let (labels, taints) = traits(number, shape);
    let capacity = json!({ "cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "100Gi" });
    let value = json!({
        "metadata": { "name": format!("hollow-{number:05}"), "labels": labels },
        "spec": { "taints": taints },
        "status": { "allocatable": capacity },
    });
    serde_json::from_value(value).expect("a node")
}

fn pod(kind: &str, number: usize, cpu: &str, spec: &Value) -> Arc<PodInfo> {
    let app = format!("app-{}", number % CONTROLLERS);
    let mut whole = json!({ "containers": [{
        "name": "c", "image": "registry.example/app:1",
        "resources": { "requests": { "cpu": cpu, "memory": "64Mi" } },
    }] });
    if let (Some(whole), Some(spec)) = (whole.as_object_mut(), spec.as_object()) {
        whole.extend(spec.clone());
    }
    let metadata = json!({
        "name": format!("{app}-{number}"), "namespace": "default", "uid": format!("{kind}-{number}"),
        "labels": { "app": app },
    });
    let pod: Pod = serde_json::from_value(json!({ "metadata": metadata, "spec": whole })).expect("a pod");
    Arc::new(PodInfo::new(Arc::new(pod)))
}

/// What decisions cost, in CPU time of their thread: what else the machine does counts little.
struct Cost {
    /// On average, from a pod to its node, the pod then counted there. With preemption: to the node and its victims.
    mean: Duration,
    /// The first pods of their classes, on average: nothing is known for them.
    first: Duration,
    decisions: usize,
}

fn cost(nodes: u64, shape: Shape, decisions: usize) -> Result<Cost> {
    let mut snapshot = Snapshot::default();
    for number in 0..nodes {
        snapshot.set_node(&node(number, shape));
    }
    if shape == Shape::Preempting {
        for number in 0..nodes {
            for part in 0..4 {
                let filler =
                    pod("filler", usize::try_from(number * 4 + part).unwrap_or(0), "8", &json!({ "priority": 0 }));
                snapshot.place(filler.occupant.clone(), &format!("hollow-{number:05}"));
            }
        }
    }
    let pods: Vec<Arc<PodInfo>> =
        (0..decisions).map(|n| pod("new", n, "100m", &shape.spec(&format!("app-{}", n % CONTROLLERS)))).collect();
    let mut placing = Placing::new(snapshot, Profile::new("default-scheduler"), 7);
    let (mut first, mut made) = (Duration::ZERO, 0);
    let (began, before) = (Instant::now(), process::own_thread()?);
    for pod in &pods {
        decide(&mut placing, pod);
        made += 1;
        if made == CONTROLLERS {
            first = process::own_thread()? - before;
        }
        if made.is_multiple_of(64) && began.elapsed() > LONG {
            break;
        }
    }
    let per = |time: Duration, n: usize| time / u32::try_from(n).unwrap_or(u32::MAX).max(1);
    let mean = per(process::own_thread()? - before, made);
    Ok(Cost { mean, first: per(first, CONTROLLERS), decisions: made })
}

fn decide(placing: &mut Placing, pod: &Arc<PodInfo>) {
    let (pod, node) = match placing.find(pod, true) {
        Found::Free(node) => (pod.clone(), node),
        // What the next pods take is room that the next victims must make.
        Found::Instead(node, victims) => (pod_of_rest(pod, victims.len()), node),
        Found::Nothing => return,
    };
    placing.snapshot.place(pod.occupant.clone(), &node);
}

/// The preempting pod, grown to all that its victims left, so that the next one has to preempt as well.
fn pod_of_rest(taker: &PodInfo, victims: usize) -> Arc<PodInfo> {
    let number = taker.name().rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    pod("taker", number, &(8 * victims).to_string(), &json!({ "priority": 1000 }))
}
