//! Scores: how good each feasible node is, 0–100 per plugin times its weight in the profile.
//!
//! Those that depend on the node and its pods alone are [`Raw`] and can be kept per node; they are brought to 0–100
//! among the feasible nodes of one decision.

use crate::pod::{Amounts, PodInfo};
use crate::profile::{Profile, Strategy, Weights};
use crate::reach::Reach;
use crate::snapshot::{Row, Snapshot};

const MAX: i64 = 100;

/// What one node scores by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw {
    /// PreferNoSchedule taints that are not tolerated.
    pub disliked: u16,
    /// Weights of the preferred node affinity terms that select it.
    pub preference: i32,
    /// NodeResourcesFit.
    pub fit: u8,
    /// NodeResourcesBalancedAllocation.
    pub balanced: u8,
    /// ImageLocality.
    pub images: u8,
}

/// The greatest raw values among the feasible nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Greatest {
    disliked: i64,
    preference: i64,
}

impl Greatest {
    /// These.
    #[must_use]
    pub fn of(disliked: u16, preference: i32) -> Self {
        Self { disliked: i64::from(disliked), preference: i64::from(preference).max(0) }
    }

    /// Looks at one more node.
    pub fn note(&mut self, raw: &Raw) {
        self.disliked = self.disliked.max(i64::from(raw.disliked));
        self.preference = self.preference.max(i64::from(raw.preference));
    }
}

/// A node's scores, weighted, by plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// TaintToleration.
    pub taints: i64,
    /// NodeAffinity.
    pub node_affinity: i64,
    /// PodTopologySpread.
    pub spread: i64,
    /// InterPodAffinity.
    pub pod_affinity: i64,
    /// NodeResourcesFit.
    pub fit: i64,
    /// NodeResourcesBalancedAllocation.
    pub balanced: i64,
    /// ImageLocality.
    pub images: i64,
    /// DynamicResources.
    pub devices: i64,
    /// What extenders gave.
    pub extenders: i64,
}

impl Parts {
    /// Weighs what a node scores by itself.
    #[must_use]
    pub fn of(raw: &Raw, greatest: Greatest, weights: &Weights) -> Self {
        let share = |n: i64, max: i64| if max == 0 { 0 } else { n * MAX / max };
        Self {
            taints: (MAX - share(i64::from(raw.disliked), greatest.disliked)) * weights.taints,
            node_affinity: share(i64::from(raw.preference), greatest.preference) * weights.node_affinity,
            fit: i64::from(raw.fit) * weights.fit,
            balanced: i64::from(raw.balanced) * weights.balanced,
            images: i64::from(raw.images) * weights.images,
            ..Self::default()
        }
    }

    /// The node's score.
    #[must_use]
    pub fn total(&self) -> i64 {
        let local = self.taints + self.node_affinity + self.fit + self.balanced + self.images;
        local + self.spread + self.pod_affinity + self.devices + self.extenders
    }
}

/// What a pod's images weigh in the cluster as it is; changes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    containers: i64,
    nodes: i64,
    /// Image names, each with the number of nodes that have it.
    spread: Vec<(String, i64)>,
}

impl Images {
    /// Looks the pod's images up. Empty where no node has any of them.
    #[must_use]
    pub fn of(snapshot: &Snapshot, pod: &PodInfo) -> Self {
        let spec = pod.spec();
        let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let mut out = Self::default();
        if snapshot.has_images() {
            for container in containers() {
                let image = normalized_image(container.image.as_deref().unwrap_or_default());
                let nodes = snapshot.nodes_with_image(&image);
                if nodes > 0 {
                    out.spread.push((image, i64::try_from(nodes).unwrap_or(i64::MAX)));
                }
            }
        }
        if !out.spread.is_empty() {
            out.containers = i64::try_from(containers().count()).unwrap_or(i64::MAX);
            out.nodes = i64::try_from(snapshot.node_count().max(1)).unwrap_or(i64::MAX);
        }
        out
    }

    /// ImageLocality: nodes that have the images, weighted by size and by how widespread each image is.
    fn score(&self, snapshot: &Snapshot, row: Row) -> i64 {
        const MIN: i64 = 23 << 20;
        const PER_CONTAINER: i64 = 1000 << 20;
        if self.spread.is_empty() {
            return 0;
        }
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
        let scaled = |size: i64, having: i64| (size as f64 * (having as f64 / self.nodes as f64)) as i64;
        let found = self.spread.iter().filter_map(|(image, n)| Some(scaled(*snapshot.images[row].get(image)?, *n)));
        let max = PER_CONTAINER * self.containers;
        MAX * (found.sum::<i64>().clamp(MIN, max) - MIN) / (max - MIN)
    }
}

/// Everything a node scores by itself.
#[must_use]
pub fn raw(snapshot: &Snapshot, row: Row, pod: &PodInfo, reach: &Reach, images: &Images, profile: &Profile) -> Raw {
    let percent = |score: i64| u8::try_from(score).unwrap_or(0);
    Raw {
        disliked: u16::try_from(reach.disliked(snapshot, row)).unwrap_or(u16::MAX),
        preference: i32::try_from(reach.preference(snapshot, row)).unwrap_or(i32::MAX),
        fit: percent(fit(snapshot, row, pod, profile)),
        balanced: percent(balanced(snapshot, row, pod, profile)),
        images: percent(images.score(snapshot, row)),
    }
}

/// What of a resource would be taken with the pod on the node, and what there is of it. Of an extended resource that the
/// pod does not ask for nothing counts. `guessed`: where containers request no cpu or memory, defaults are counted.
fn taken(snapshot: &Snapshot, row: Row, pod: &PodInfo, resource: &str, guessed: bool) -> (i64, i64) {
    let (node, used, pod_asks) = (&snapshot.allocatable[row], &snapshot.requested[row], &pod.requests);
    match resource {
        "cpu" if guessed => (snapshot.score_cpu_milli[row] + pod.score_cpu_milli, node.cpu_milli),
        "memory" if guessed => (snapshot.score_memory[row] + pod.score_memory, node.memory),
        "cpu" => (used.cpu_milli + pod_asks.cpu_milli, node.cpu_milli),
        "memory" => (used.memory + pod_asks.memory, node.memory),
        "ephemeral-storage" => (used.ephemeral + pod_asks.ephemeral, node.ephemeral),
        other => {
            let of = |amounts: &Amounts| amounts.scalars.get(other).copied().unwrap_or(0);
            if of(pod_asks) == 0 { (0, 0) } else { (of(used) + of(pod_asks), of(node)) }
        }
    }
}

/// NodeResourcesFit: the share that stays free, or that is taken, or what the profile makes of that.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn fit(snapshot: &Snapshot, row: Row, pod: &PodInfo, profile: &Profile) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (resource, weight) in &profile.resources {
        let (taken, have) = taken(snapshot, row, pod, resource, true);
        if have == 0 {
            continue;
        }
        let score = match &profile.strategy {
            Strategy::LeastAllocated if taken > have => 0,
            Strategy::LeastAllocated => (have - taken) * MAX / have,
            // More than there is counts as all of it.
            Strategy::MostAllocated => taken.min(have) * MAX / have,
            Strategy::Ratio(shape) => interpolated(shape, if taken > have { MAX } else { taken * MAX / have }),
        };
        // What scores nothing does not count, as upstream has it for shapes only.
        if score > 0 || !matches!(profile.strategy, Strategy::Ratio(_)) {
            sum += score * weight;
            weights += weight;
        }
    }
    match profile.strategy {
        _ if weights == 0 => 0,
        Strategy::Ratio(_) => (sum as f64 / weights as f64).round() as i64,
        _ => sum / weights,
    }
}

/// The value of a broken line at `x`.
fn interpolated(points: &[(i64, i64)], x: i64) -> i64 {
    let after = points.iter().position(|(at, _)| x <= *at);
    match after {
        Some(0) => points[0].1,
        Some(i) => {
            let ((x0, y0), (x1, y1)) = (points[i - 1], points[i]);
            y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        }
        None => points.last().map_or(0, |(_, score)| *score),
    }
}

/// NodeResourcesBalancedAllocation: how evenly the resources would be used. Pods that request none of them get nothing.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn balanced(snapshot: &Snapshot, row: Row, pod: &PodInfo, profile: &Profile) -> i64 {
    let asks = |resource: &String| match resource.as_str() {
        "cpu" => pod.requests.cpu_milli > 0,
        "memory" => pod.requests.memory > 0,
        "ephemeral-storage" => pod.requests.ephemeral > 0,
        other => pod.requests.scalars.get(other).is_some_and(|n| *n > 0),
    };
    if !profile.balanced_resources.iter().any(asks) {
        return 0;
    }
    let share = |resource: &String| {
        let (taken, have) = taken(snapshot, row, pod, resource, false);
        (have != 0).then(|| (taken as f64 / have as f64).min(1.0))
    };
    let mut shares = [0.0; 2];
    let mut more: Vec<f64> = Vec::new();
    let mut count = 0;
    for s in profile.balanced_resources.iter().filter_map(share) {
        // Two are the rule, and need no list.
        if count < 2 {
            shares[count] = s;
        } else {
            more.push(s);
        }
        count += 1;
    }
    let deviation = match count {
        0 | 1 => 0.0,
        2 => ((shares[0] - shares[1]) / 2.0).abs(),
        n => {
            let all = || shares.iter().chain(&more);
            let mean = all().sum::<f64>() / n as f64;
            (all().map(|s| (s - mean).powi(2)).sum::<f64>() / n as f64).sqrt()
        }
    };
    ((1.0 - deviation) * MAX as f64) as i64
}

/// An image name with `:latest` where it has neither tag nor digest.
fn normalized_image(name: &str) -> String {
    let tagged = name.rfind(':').is_some_and(|c| name.rfind('/').is_none_or(|s| c > s));
    if tagged { name.to_owned() } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_interpolated() {
        let shape = [(0, 0), (40, 80), (100, 20)];
        for (taken, want) in [(0, 0), (20, 40), (40, 80), (70, 50), (100, 20)] {
            assert_eq!(interpolated(&shape, taken), want);
        }
        // Beyond its ends a line goes on level.
        assert_eq!([5, 50].map(|taken| interpolated(&[(10, 30)], taken)), [30, 30]);
    }
}
