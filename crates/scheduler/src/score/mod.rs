//! Scores: how good each feasible node is, 0–100 per plugin times its weight in the default profile.

use crate::affinity;
use crate::cycle::Cycle;
use crate::filter::taints::soft_count;
use crate::pod::PodInfo;
use crate::snapshot::{Row, Snapshot};
use gantry_api::core::placement::term_selects;
use gantry_api::k8s_openapi::api::core::v1::NodeSelectorTerm;

const MAX: i64 = 100;

/// Weights of the default profile.
const TAINTS: i64 = 3;
const NODE_AFFINITY: i64 = 2;
const SPREAD: i64 = 2;
const POD_AFFINITY: i64 = 2;
const LEAST_ALLOCATED: i64 = 1;
const BALANCED: i64 = 1;
const IMAGES: i64 = 1;

/// Total score of each feasible node.
#[must_use]
pub fn total(snapshot: &Snapshot, cycle: &Cycle, feasible: &[Row]) -> Vec<i64> {
    let pod = &cycle.pod;
    let mut sum = vec![0i64; feasible.len()];
    let mut add = |scores: Vec<i64>, weight: i64| {
        for (s, x) in sum.iter_mut().zip(scores) {
            *s += x * weight;
        }
    };
    let each = |f: &dyn Fn(Row) -> i64| -> Vec<i64> { feasible.iter().map(|r| f(*r)).collect() };
    add(normalized(each(&|r| soft_count(snapshot, r, pod.spec())), true), TAINTS);
    if let Some(scores) = node_affinity(snapshot, pod, feasible) {
        add(scores, NODE_AFFINITY);
    }
    if let Some(scores) = cycle.spread.score(snapshot, pod, feasible) {
        add(scores, SPREAD);
    }
    if let Some(scores) = affinity::score(snapshot, pod, feasible) {
        add(scores, POD_AFFINITY);
    }
    add(each(&|r| least_allocated(snapshot, r, pod)), LEAST_ALLOCATED);
    add(each(&|r| balanced(snapshot, r, pod)), BALANCED);
    add(each(&|r| image_locality(snapshot, r, pod)), IMAGES);
    sum
}

/// Scales to 0–100 by the maximum; `reverse` makes fewer better.
fn normalized(mut scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let max = scores.iter().copied().max().unwrap_or(0);
    for s in &mut scores {
        let scaled = if max == 0 { 0 } else { *s * MAX / max };
        *s = if reverse { MAX - scaled } else { scaled };
    }
    scores
}

fn node_affinity(snapshot: &Snapshot, pod: &PodInfo, feasible: &[Row]) -> Option<Vec<i64>> {
    let terms = pod
        .spec()
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .preferred_during_scheduling_ignored_during_execution
        .as_ref()
        .filter(|t| !t.is_empty())?;
    let one = |row: Row| -> i64 {
        let selects = |t: &NodeSelectorTerm| term_selects(t, &snapshot.labels[row], &snapshot.names[row]);
        terms.iter().filter(|t| selects(&t.preference)).map(|t| i64::from(t.weight)).sum()
    };
    Some(normalized(feasible.iter().map(|r| one(*r)).collect(), false))
}

/// NodeResourcesFit, LeastAllocated over cpu and memory: the share that stays free.
fn least_allocated(snapshot: &Snapshot, row: Row, pod: &PodInfo) -> i64 {
    let free = |have: i64, taken: i64| {
        if have == 0 || taken > have { 0 } else { (have - taken) * MAX / have }
    };
    let node = &snapshot.allocatable[row];
    let mut parts = Vec::with_capacity(2);
    if node.cpu_milli > 0 {
        parts.push(free(node.cpu_milli, snapshot.score_cpu_milli[row] + pod.score_cpu_milli));
    }
    if node.memory > 0 {
        parts.push(free(node.memory, snapshot.score_memory[row] + pod.score_memory));
    }
    if parts.is_empty() { 0 } else { parts.iter().sum::<i64>() / i64::try_from(parts.len()).unwrap_or(1) }
}

/// NodeResourcesBalancedAllocation: how evenly cpu and memory would be used. Pods that request nothing get none.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn balanced(snapshot: &Snapshot, row: Row, pod: &PodInfo) -> i64 {
    if pod.requests.cpu_milli == 0 && pod.requests.memory == 0 {
        return 0;
    }
    let (node, used) = (&snapshot.allocatable[row], &snapshot.requested[row]);
    if node.cpu_milli == 0 || node.memory == 0 {
        return MAX;
    }
    let share = |taken: i64, have: i64| (taken as f64 / have as f64).min(1.0);
    let cpu = share(used.cpu_milli + pod.requests.cpu_milli, node.cpu_milli);
    let memory = share(used.memory + pod.requests.memory, node.memory);
    ((1.0 - ((cpu - memory) / 2.0).abs()) * MAX as f64) as i64
}

/// ImageLocality: nodes that have the pod's images, weighted by size and by how widespread each image is.
fn image_locality(snapshot: &Snapshot, row: Row, pod: &PodInfo) -> i64 {
    const MIN: i64 = 23 << 20;
    const PER_CONTAINER: i64 = 1000 << 20;
    let spec = pod.spec();
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let nodes = i64::try_from(snapshot.node_count().max(1)).unwrap_or(1);
    let (mut sum, mut n) = (0i64, 0i64);
    for container in containers {
        n += 1;
        let image = normalized_image(container.image.as_deref().unwrap_or_default());
        if let Some(size) = snapshot.images[row].get(&image) {
            sum += size * i64::try_from(snapshot.nodes_with_image(&image)).unwrap_or(0) / nodes;
        }
    }
    let max = PER_CONTAINER * n.max(1);
    MAX * (sum.clamp(MIN, max) - MIN) / (max - MIN)
}

/// An image name with `:latest` where it has neither tag nor digest.
fn normalized_image(name: &str) -> String {
    let tagged = name.rfind(':').is_some_and(|c| name.rfind('/').is_none_or(|s| c > s));
    if tagged { name.to_owned() } else { format!("{name}:latest") }
}
