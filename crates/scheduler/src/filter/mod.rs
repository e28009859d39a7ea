//! Filters: whether a pod may run on a node, and if not, why. In upstream's order; the first that rejects ends the node.

pub mod resources;
pub mod taints;
pub mod volumes;

use crate::cycle::Cycle;
use crate::pod::{Amounts, HostPort, PodInfo};
use crate::snapshot::{Row, Snapshot};
use gantry_api::core::placement;

/// Why a node was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The plugin, as upstream names it.
    pub plugin: &'static str,
    /// One or more reasons, as events word them.
    pub reasons: Vec<String>,
    /// Whether evicting pods from the node cannot help.
    pub unresolvable: bool,
}

impl Rejection {
    fn one(plugin: &'static str, reason: &str, unresolvable: bool) -> Self {
        Self { plugin, reasons: vec![reason.to_owned()], unresolvable }
    }
}

/// What is taken on a node: the snapshot's columns, possibly with pods added (nominated) or removed (victims).
#[derive(Clone, Debug)]
pub struct Usage {
    /// Requested.
    pub requested: Amounts,
    /// Ports taken.
    pub ports: Vec<HostPort>,
}

impl Usage {
    /// As the snapshot has it.
    #[must_use]
    pub fn of(snapshot: &Snapshot, row: Row) -> Self {
        Self {
            requested: snapshot.requested[row].clone(),
            ports: snapshot.pods[row].iter().flat_map(|p| p.host_ports.iter().cloned()).collect(),
        }
    }

    /// With a pod more.
    pub fn add(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.requests, 1);
        self.ports.extend(pod.host_ports.iter().cloned());
    }

    /// With a pod less.
    pub fn remove(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.requests, -1);
        for port in &pod.host_ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
    }
}

/// Runs all filters for one node.
///
/// # Errors
/// The first rejection.
pub fn run(snapshot: &Snapshot, row: Row, cycle: &Cycle, changed: Option<&Usage>) -> Result<(), Rejection> {
    let pod = &cycle.pod;
    let spec = pod.spec();
    taints::unschedulable(snapshot, row, spec)?;
    if spec.node_name.as_ref().is_some_and(|n| !n.is_empty() && *n != snapshot.names[row]) {
        return Err(Rejection::one("NodeName", "node(s) didn't match the requested node name", true));
    }
    taints::tolerated(snapshot, row, spec)?;
    if !placement::admits(spec, &snapshot.labels[row], &snapshot.names[row]) {
        return Err(Rejection::one("NodeAffinity", "node(s) didn't match Pod's node affinity/selector", true));
    }
    if !pod.host_ports.is_empty() {
        let taken = |p: &HostPort| match changed {
            Some(usage) => usage.ports.iter().any(|q| p.conflicts(q)),
            None => snapshot.pods[row].iter().any(|o| o.host_ports.iter().any(|q| p.conflicts(q))),
        };
        if pod.host_ports.iter().any(taken) {
            return Err(Rejection::one(
                "NodePorts",
                "node(s) didn't have free ports for the requested pod ports",
                false,
            ));
        }
    }
    let requested = changed.map_or(&snapshot.requested[row], |u| &u.requested);
    resources::fits(&snapshot.allocatable[row], requested, &pod.requests)?;
    if let Some(claims) = &cycle.volumes {
        volumes::filter(snapshot, row, claims, cycle.exclusive_conflicts)?;
    }
    cycle.spread.filter(snapshot, row)?;
    cycle.affinity.filter(snapshot, row, pod)
}
