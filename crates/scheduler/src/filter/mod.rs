//! Filters: whether a pod may run on a node, and if not, why. In upstream's order; the first that rejects ends the node.

pub mod resources;
pub mod volumes;

use crate::cycle::Cycle;
use crate::pod::{Amounts, Occupant, PodInfo};
use crate::profile::{Filter, Profile};
use crate::reach::Reach;
use crate::snapshot::{Row, Snapshot};
use gantry_api::core::placement::HostPort;
use std::borrow::Cow;
use std::ops::Deref;

/// Reasons, as events word them. Nearly always it is one that is the same for all nodes; that takes no memory.
#[derive(Clone, Debug)]
pub enum Reasons {
    /// The only one.
    One(Cow<'static, str>),
    /// Any number of them.
    Several(Vec<Cow<'static, str>>),
}

impl Deref for Reasons {
    type Target = [Cow<'static, str>];

    fn deref(&self) -> &Self::Target {
        match self {
            Reasons::One(reason) => std::slice::from_ref(reason),
            Reasons::Several(reasons) => reasons,
        }
    }
}

impl PartialEq for Reasons {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Reasons {}

/// Why a node was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The plugin, as upstream names it.
    pub plugin: &'static str,
    /// One or more reasons.
    pub reasons: Reasons,
    /// Whether evicting pods from the node cannot help.
    pub unresolvable: bool,
}

impl Rejection {
    pub(crate) fn one(plugin: &'static str, reason: impl Into<Cow<'static, str>>, unresolvable: bool) -> Self {
        Self { plugin, reasons: Reasons::One(reason.into()), unresolvable }
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
    pub fn add(&mut self, pod: &Occupant) {
        self.requested.add(&pod.requests, 1);
        self.ports.extend(pod.host_ports.iter().cloned());
    }

    /// With a pod less.
    pub fn remove(&mut self, pod: &Occupant) {
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
    local(snapshot, row, &cycle.pod, &cycle.reach, &cycle.profile, changed)?;
    if let Some(claims) = &cycle.volumes {
        volumes::filter(snapshot, row, claims, cycle.exclusive_conflicts, &cycle.profile)?;
    }
    across(snapshot, row, cycle)
}

/// Those filters whose verdict depends on the node and the pods on it alone.
///
/// # Errors
/// The first rejection.
pub fn local(
    snapshot: &Snapshot,
    row: Row,
    pod: &PodInfo,
    reach: &Reach,
    profile: &Profile,
    changed: Option<&Usage>,
) -> Result<(), Rejection> {
    if profile.filters(Filter::NodeUnschedulable) && !reach.accepts_cordon(snapshot, row) {
        return Err(Rejection::one("NodeUnschedulable", "node(s) were unschedulable", true));
    }
    if profile.filters(Filter::NodeName) && pod.node().is_some_and(|n| n != snapshot.names[row]) {
        return Err(Rejection::one("NodeName", "node(s) didn't match the requested node name", true));
    }
    if profile.filters(Filter::TaintToleration) && !reach.tolerates(snapshot, row) {
        return Err(Rejection::one("TaintToleration", "node(s) had untolerated taint(s)", true));
    }
    if profile.filters(Filter::NodeAffinity) && !reach.is_allowed(snapshot, row) {
        return Err(Rejection::one("NodeAffinity", "node(s) didn't match scheduler-enforced node affinity", true));
    }
    if profile.filters(Filter::NodeAffinity) && !reach.admits(snapshot, row) {
        return Err(Rejection::one("NodeAffinity", "node(s) didn't match Pod's node affinity/selector", true));
    }
    if profile.filters(Filter::NodePorts) && !pod.host_ports.is_empty() {
        let taken = |p: &HostPort| match changed {
            Some(usage) => usage.ports.iter().any(|q| p.conflicts(q)),
            None => snapshot.pods[row].iter().any(|o| o.host_ports.iter().any(|q| p.conflicts(q))),
        };
        if pod.host_ports.iter().any(taken) {
            let reason = "node(s) didn't have free ports for the requested pod ports";
            return Err(Rejection::one("NodePorts", reason, false));
        }
    }
    if profile.filters(Filter::NodeResourcesFit) {
        let requested = changed.map_or(&snapshot.requested[row], |u| &u.requested);
        resources::fits(&snapshot.allocatable[row], requested, &pod.requests, snapshot.backed(), profile)?;
    }
    Ok(())
}

/// Those filters that look at pods on other nodes, and at devices.
///
/// # Errors
/// The first rejection.
pub fn across(snapshot: &Snapshot, row: Row, cycle: &Cycle) -> Result<(), Rejection> {
    if cycle.profile.filters(Filter::PodTopologySpread) {
        cycle.spread.filter(snapshot, row)?;
    }
    if cycle.profile.filters(Filter::InterPodAffinity) {
        cycle.affinity.filter(snapshot, row, &cycle.pod)?;
    }
    if let Some(devices) = cycle.devices.as_ref().filter(|_| cycle.profile.filters(Filter::DynamicResources)) {
        devices.filter(snapshot, row)?;
    }
    Ok(())
}
