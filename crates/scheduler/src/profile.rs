//! What one scheduler profile does: which filters run, what each score weighs, and the arguments of its plugins.

use gantry_api::k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use std::collections::BTreeSet;
use std::time::Duration;

/// A plugin that filters nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Filter {
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    VolumeRestrictions,
    NodeVolumeLimits,
    VolumeBinding,
    VolumeZone,
    PodTopologySpread,
    InterPodAffinity,
    DynamicResources,
}

/// Weights of the scores; a plugin that does not score weighs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
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
}

/// How long DynamicResources may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// To look for devices on one node; for ever where it is 0.
    pub filter: Duration,
    /// Until the devices of a pod are ready to be used.
    pub binding: Duration,
}

/// What NodeResourcesFit favours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Nodes of which the greater share stays free.
    LeastAllocated,
    /// Nodes of which the greater share is taken.
    MostAllocated,
    /// As these points say: the share taken in hundredths, rising, and what it scores; in between it is interpolated.
    Ratio(Vec<(i64, i64)>),
}

/// The constraints of pods that have none of their own.
#[derive(Clone, Debug, PartialEq)]
pub enum SpreadDefaults {
    /// Soft, over hosts and zones.
    System,
    /// These.
    List(Vec<TopologySpreadConstraint>),
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Pods with this `spec.schedulerName` are placed by it.
    pub name: String,
    /// Filters that do not run.
    pub disabled: Vec<Filter>,
    /// Whether pods of lower priority may be evicted.
    pub preempts: bool,
    /// What scores weigh.
    pub weights: Weights,
    /// Of how many nodes in a hundred feasible ones are looked for; 0 for a share that shrinks as the cluster grows.
    pub percentage: u8,
    /// What required affinity of a placed pod weighs in scores (`hardPodAffinityWeight`).
    pub hard_affinity_weight: i64,
    /// Whether the terms of placed pods score only for pods that prefer or shun pods themselves.
    pub ignore_preferred_of_placed: bool,
    /// Node affinity that every pod has besides its own.
    pub added_affinity: Option<NodeAffinity>,
    /// Constraints of pods that have none.
    pub spread_defaults: SpreadDefaults,
    /// What NodeResourcesFit favours.
    pub strategy: Strategy,
    /// How long DynamicResources may take.
    pub devices: DeviceLimits,
    /// Resources in NodeResourcesFit's score, with their weights.
    pub resources: Vec<(String, i64)>,
    /// Resources in NodeResourcesBalancedAllocation's score.
    pub balanced_resources: Vec<String>,
    /// Extended resources that NodeResourcesFit does not look at…
    pub ignored_resources: BTreeSet<String>,
    /// …and those before whose slash one of these stands.
    pub ignored_groups: BTreeSet<String>,
    /// How long the claims of a pod may take to be bound.
    pub bind_timeout: Duration,
    /// Preemption is tried until so many candidates were found, in hundredths of the nodes…
    pub candidates_percentage: usize,
    /// …but at least so many.
    pub candidates_min: usize,
}

impl Profile {
    /// kube-scheduler's default profile.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            disabled: Vec::new(),
            preempts: true,
            weights: Weights {
                taints: 3,
                node_affinity: 2,
                spread: 2,
                pod_affinity: 2,
                fit: 1,
                balanced: 1,
                images: 1,
                devices: 1,
            },
            percentage: 0,
            hard_affinity_weight: 1,
            ignore_preferred_of_placed: false,
            added_affinity: None,
            spread_defaults: SpreadDefaults::System,
            strategy: Strategy::LeastAllocated,
            devices: DeviceLimits { filter: Duration::from_secs(10), binding: Duration::from_secs(600) },
            resources: vec![("cpu".to_owned(), 1), ("memory".to_owned(), 1)],
            balanced_resources: vec!["cpu".to_owned(), "memory".to_owned()],
            ignored_resources: BTreeSet::new(),
            ignored_groups: BTreeSet::new(),
            bind_timeout: Duration::from_secs(600),
            candidates_percentage: 10,
            candidates_min: 100,
        }
    }

    /// Whether NodeResourcesFit leaves an extended resource to others.
    #[must_use]
    pub fn ignores(&self, resource: &str) -> bool {
        (resource.contains('/') && self.ignored_resources.contains(resource))
            || resource.split_once('/').is_some_and(|(group, _)| self.ignored_groups.contains(group))
    }

    /// Whether a filter runs.
    #[must_use]
    pub fn filters(&self, filter: Filter) -> bool {
        !self.disabled.contains(&filter)
    }

    /// How many feasible nodes are enough: all of up to 100; of more, `percentage`, or without one a share that shrinks
    /// from 50 % to 5 % as the cluster grows, but never fewer than 100.
    #[must_use]
    pub fn sample(&self, nodes: usize) -> usize {
        const MIN: usize = 100;
        if nodes <= MIN || self.percentage >= 100 {
            return nodes.max(1);
        }
        let percent = match self.percentage {
            0 => 50usize.saturating_sub(nodes / 125).max(5),
            fixed => usize::from(fixed),
        };
        (nodes * percent / 100).max(MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_shrink_as_clusters_grow() {
        let mut profile = Profile::new("default-scheduler");
        let sizes = [10, 100, 101, 1_000, 5_000, 6_000, 50_000].map(|n| profile.sample(n));
        assert_eq!(sizes, [10, 100, 100, 420, 500, 300, 2_500]);
        profile.percentage = 40;
        assert_eq!([90, 200, 1_000].map(|n| profile.sample(n)), [90, 100, 400]);
        profile.percentage = 100;
        assert_eq!(profile.sample(1_000), 1_000);
    }
}
