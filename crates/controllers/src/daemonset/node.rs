//! Which nodes a DaemonSet's pods are for, and what puts a pod on its node.

use gantry_api::core::placement::{self, NODE_NAME_FIELD, tolerates};
use gantry_api::meta::object::Meta;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};

/// What a node is to a DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// A pod should run there.
    pub should_run: bool,
    /// One that runs there may stay.
    pub may_stay: bool,
}

/// Taints that all DaemonSet pods tolerate, with the effect.
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// And this one those on the host's network.
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a DaemonSet's pods ask of nodes: made once, for as many nodes as there are.
pub struct Demands(PodSpec);

impl Demands {
    /// Of this DaemonSet.
    #[must_use]
    pub fn of(ds: &DaemonSet) -> Self {
        let mut spec = ds.spec.template.spec.clone().unwrap_or_default();
        add_tolerations(&mut spec);
        Self(spec)
    }

    /// What the node is to the DaemonSet.
    #[must_use]
    pub fn fit(&self, node: &Node) -> Fit {
        const NO: Fit = Fit { should_run: false, may_stay: false };
        let (spec, name) = (&self.0, node.metadata.name());
        let elsewhere = spec.node_name.as_deref().is_some_and(|n| !n.is_empty() && n != name);
        if elsewhere || !placement::admits(spec, node.metadata.labels_or_empty(), name) {
            return NO;
        }
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        let taints = taints(node);
        let repels = |effects: &[&str]| {
            taints.iter().any(|t| effects.contains(&t.effect.as_str()) && !tolerations.iter().any(|o| tolerates(o, t)))
        };
        Fit { should_run: !repels(&["NoSchedule", "NoExecute"]), may_stay: !repels(&["NoExecute"]) }
    }
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Whether a change of a node can make it something else to a DaemonSet; what its agent tells of it cannot.
#[must_use]
pub fn concerns(old: &Node, new: &Node) -> bool {
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

/// Adds the tolerations of all DaemonSet pods.
pub fn add_tolerations(spec: &mut PodSpec) {
    let network = (spec.host_network == Some(true)).then_some(&NETWORK_UNAVAILABLE);
    for (key, effect) in TOLERATED.iter().chain(network) {
        let toleration = Toleration {
            key: Some((*key).to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some((*effect).to_owned()),
            ..Default::default()
        };
        let all = spec.tolerations.get_or_insert_default();
        let same = |t: &&mut Toleration| {
            t.key == toleration.key
                && t.operator == toleration.operator
                && t.effect == toleration.effect
                && t.value.as_deref().unwrap_or_default().is_empty()
        };
        match all.iter_mut().find(same) {
            Some(there) => *there = toleration,
            None => all.push(toleration),
        }
    }
}

/// Ties a pod to a node; what the required node affinity said before has been looked at by [`fit`].
pub fn tie(spec: &mut PodSpec, node: &str) {
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    affinity.node_affinity.get_or_insert_default().required_during_scheduling_ignored_during_execution =
        Some(NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm {
                match_expressions: None,
                match_fields: Some(vec![NodeSelectorRequirement {
                    key: NODE_NAME_FIELD.to_owned(),
                    operator: "In".to_owned(),
                    values: Some(vec![node.to_owned()]),
                }]),
            }],
        });
}

/// The node a pod is on or tied to.
#[must_use]
pub fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(name);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let by_name = fields.into_iter().find(|r| r.key == NODE_NAME_FIELD && r.operator == "In")?;
    match by_name.values.as_deref() {
        Some([one]) => Some(one),
        _ => None,
    }
}
