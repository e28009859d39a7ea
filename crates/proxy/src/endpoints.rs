//! Which endpoints of a Service port traffic on this node goes to.

use std::{collections::BTreeMap, net::IpAddr};

use gantry_network::nft::Family;
use k8s_openapi::api::{
    core::v1::ServicePort,
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::compile::{NodeView, Target};

/// An endpoint of one Service port, as far as choosing between them needs it.
#[derive(Debug, Clone)]
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
}

/// The endpoints chosen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// For traffic that may go anywhere.
    pub near: Vec<Target>,
    /// For traffic that must stay on this node.
    pub local: Vec<Target>,
    /// Whether there is any usable endpoint in the cluster at all.
    pub any: bool,
}

/// Chooses for one port. `slices` are those of the Service; those of another family are passed over.
pub(crate) fn choose(port: &ServicePort, slices: &[&EndpointSlice], family: Family, node: &NodeView) -> Chosen {
    // One endpoint may stand in two slices while it moves between them.
    let mut candidates: BTreeMap<Target, Candidate<'_>> = BTreeMap::new();
    let wanted = match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    };
    for slice in slices.iter().filter(|slice| slice.address_type == wanted) {
        let Some(number) = port_of(slice, port) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            // All addresses of an endpoint are the same pod; the first is the one to use.
            let Some(address) = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else {
                continue;
            };
            let candidate = Candidate::new(endpoint, node);
            let known = candidates.entry(Target { address, port: number }).or_insert_with(|| candidate.clone());
            if candidate.ready && !known.ready {
                *known = candidate;
            }
        }
    }

    let pick = |wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<Target> {
        candidates.iter().filter(|(_, c)| wanted(c)).map(|(t, _)| *t).collect()
    };
    // Where nothing is ready, what is on its way out but still serves is better than nothing.
    let last_resort = |c: &Candidate<'_>| c.serving && c.terminating;
    let preference = Preference::of(candidates.values(), node);
    let mut near = pick(&|c| c.ready && preference.allows(c.endpoint, node));
    if near.is_empty() {
        near = pick(&last_resort);
    }
    let mut local = pick(&|c| c.ready && c.local);
    if local.is_empty() {
        local = pick(&|c| c.local && last_resort(c));
    }
    let any = candidates.values().any(|c| c.ready || last_resort(c));
    Chosen { near, local, any }
}

/// How many endpoints on this node are ready, over all ports (each pod once), for health check node ports.
pub(crate) fn local_ready(slices: &[&EndpointSlice], node: &NodeView) -> usize {
    let mut addresses: Vec<&String> = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(|endpoint| {
            let candidate = Candidate::new(endpoint, node);
            candidate.local && candidate.ready
        })
        .filter_map(|endpoint| endpoint.addresses.first())
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses.len()
}

fn port_of(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let name = port.name.as_deref().unwrap_or("");
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    slice
        .ports
        .iter()
        .flatten()
        .find(|p| p.name.as_deref().unwrap_or("") == name && p.protocol.as_deref().unwrap_or("TCP") == protocol)
        .and_then(|p| p.port)
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p != 0)
}

impl<'a> Candidate<'a> {
    fn new(endpoint: &'a Endpoint, node: &NodeView) -> Candidate<'a> {
        let conditions = endpoint.conditions.as_ref();
        Candidate {
            endpoint,
            // What is not said is taken for good: an endpoint listed without conditions is ready.
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            local: endpoint.node_name.as_deref() == Some(node.name.as_str()),
        }
    }
}

/// Which endpoints the hints in EndpointSlices reserve for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preference {
    Anywhere,
    SameNode,
    SameZone,
}

impl Preference {
    /// Hints count only when every ready endpoint has them and at least one is for us: anything else would leave
    /// endpoints without traffic, or us without endpoints. What the Service prefers is not asked: the hints say it, whoever
    /// wrote them.
    fn of<'a>(candidates: impl Iterator<Item = &'a Candidate<'a>> + Clone, node: &NodeView) -> Preference {
        let ready = || candidates.clone().filter(|c| c.ready);
        if ready().all(|c| hinted_nodes(c.endpoint).next().is_some())
            && ready().any(|c| Preference::SameNode.allows(c.endpoint, node))
        {
            return Preference::SameNode;
        }
        if ready().all(|c| hinted_zones(c.endpoint).next().is_some())
            && ready().any(|c| Preference::SameZone.allows(c.endpoint, node))
        {
            return Preference::SameZone;
        }
        Preference::Anywhere
    }

    fn allows(self, endpoint: &Endpoint, node: &NodeView) -> bool {
        match self {
            Preference::Anywhere => true,
            Preference::SameNode => hinted_nodes(endpoint).any(|n| n == node.name),
            Preference::SameZone => node.zone.as_deref().is_some_and(|zone| hinted_zones(endpoint).any(|z| z == zone)),
        }
    }
}

fn hinted_nodes(endpoint: &Endpoint) -> impl Iterator<Item = &str> {
    endpoint.hints.iter().flat_map(|h| h.for_nodes.iter().flatten()).map(|n| n.name.as_str())
}

fn hinted_zones(endpoint: &Endpoint) -> impl Iterator<Item = &str> {
    endpoint.hints.iter().flat_map(|h| h.for_zones.iter().flatten()).map(|z| z.name.as_str())
}
