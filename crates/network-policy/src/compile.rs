//! What policies and pods say, without what they need not say here.

use crate::ranges::{Range, ranges};
use gantry_api::meta::labels::Selector;
use gantry_network::{IpNet, Protocol};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tracing::warn;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Which way connections go, as seen by the pods that a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// The name of the chain, and of the map of the node's pods.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// Namespaces that peers are in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One.
    One(Arc<str>),
    /// Those with such labels.
    Selected(Selector),
}

/// A set that rules look addresses up in. Rules that say the same share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SetKey {
    /// The addresses of pods.
    Pods {
        /// Where they are.
        scope: Scope,
        /// Which of them.
        pods: Selector,
    },
    /// Addresses, whoever has them.
    Ranges(Vec<Range>),
    /// Address and number of every port of this name.
    Named {
        /// The port's name.
        name: Arc<str>,
        /// Its protocol.
        protocol: Protocol,
    },
}

/// Which destination ports are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// All of a protocol.
    Protocol(Protocol),
    /// These, both ends included.
    Range(Protocol, u16, u16),
    /// Those the destination pod has by this name.
    Named(Protocol, Arc<str>),
}

/// Connections that are let through: with one of the peers, and to one of the ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// The peers; `None` is everybody.
    pub peers: Option<Vec<SetKey>>,
    /// The ports; `None` is all of all protocols.
    pub ports: Option<Vec<Ports>>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The namespace it and the pods it is for are in.
    pub namespace: Arc<str>,
    /// The pods it is for.
    pub selector: Selector,
    /// What it lets in; `None` where it does not speak about that.
    pub ingress: Option<Vec<Allow>>,
    /// What it lets out; `None` where it does not speak about that.
    pub egress: Option<Vec<Allow>>,
}

impl Policy {
    /// What it lets through in a direction; `None` where it does not speak about that.
    #[must_use]
    pub fn allows(&self, direction: Direction) -> Option<&[Allow]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// A pod, as a peer of others and as somebody who has named ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its named ports.
    pub ports: Vec<(Arc<str>, Protocol, u16)>,
}

/// Reads a policy.
#[must_use]
pub fn policy(object: &NetworkPolicy) -> Policy {
    let namespace: Arc<str> = object.metadata.namespace.as_deref().unwrap_or_default().into();
    let spec = object.spec.clone().unwrap_or_default();
    let ingress: Vec<Allow> = spec
        .ingress
        .iter()
        .flatten()
        .map(|rule| allow(&namespace, rule.from.as_deref(), rule.ports.as_deref()))
        .collect();
    let egress: Vec<Allow> =
        spec.egress.iter().flatten().map(|rule| allow(&namespace, rule.to.as_deref(), rule.ports.as_deref())).collect();
    let types = spec.policy_types.unwrap_or_default();
    let speaks = |direction: &str| types.iter().any(|t| t == direction);
    Policy {
        selector: selector(&spec.pod_selector.unwrap_or_default()),
        ingress: speaks("Ingress").then_some(ingress),
        egress: speaks("Egress").then_some(egress),
        namespace,
    }
}

fn selector(from: &LabelSelector) -> Selector {
    Selector::from_label_selector(Some(from)).unwrap_or_else(|error| {
        // The API server refuses such a thing; stored before it did, it names nobody.
        warn!(error, "a network policy has a selector that cannot be read");
        Selector::nothing()
    })
}

fn allow(namespace: &Arc<str>, peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>) -> Allow {
    let peers = peers.filter(|p| !p.is_empty()).map(|peers| {
        let mut sets: Vec<SetKey> = Vec::new();
        for peer in peers.iter().filter(|p| p.ip_block.is_none()) {
            let scope = match &peer.namespace_selector {
                Some(from) => Scope::Selected(selector(from)),
                None => Scope::One(namespace.clone()),
            };
            let set =
                SetKey::Pods { scope, pods: peer.pod_selector.as_ref().map_or_else(Selector::everything, selector) };
            if !sets.contains(&set) {
                sets.push(set);
            }
        }
        let blocks: Vec<_> = peers.iter().filter_map(|p| p.ip_block.as_ref()).filter_map(block).collect();
        let ranges = ranges(&blocks);
        if !ranges.is_empty() {
            sets.push(SetKey::Ranges(ranges));
        }
        sets
    });
    let ports = ports.filter(|p| !p.is_empty()).map(|p| p.iter().filter_map(port).collect());
    Allow { peers, ports }
}

fn block(block: &IPBlock) -> Option<(IpNet, Vec<IpNet>)> {
    // What is set beyond the prefix does not count, and an exception that cannot be read closes the whole block.
    let network = |text: &String| text.trim().parse::<IpNet>().ok().map(|n| n.trunc());
    let except: Option<Vec<IpNet>> = block.except.iter().flatten().map(network).collect();
    Some((network(&block.cidr)?, except?))
}

fn port(port: &NetworkPolicyPort) -> Option<Ports> {
    let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?;
    let number = |n: i32| u16::try_from(n).ok();
    Some(match &port.port {
        None => Ports::Protocol(protocol),
        Some(IntOrString::Int(first)) => {
            let first = number(*first)?;
            let last = port.end_port.map_or(Some(first), number)?;
            (last >= first).then_some(Ports::Range(protocol, first, last))?
        }
        Some(IntOrString::String(name)) => Ports::Named(protocol, name.as_str().into()),
    })
}

/// Reads a pod; `None` for one that has no addresses of its own (any more).
#[must_use]
pub fn endpoint(pod: &Pod) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let mut addresses: Vec<IpAddr> = listed.chain(&status.pod_ip).filter_map(|ip| ip.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    endpoint_at(pod, addresses)
}

/// Reads a pod that has these addresses; `None` where it has the node's.
#[must_use]
pub fn endpoint_at(pod: &Pod, addresses: Vec<IpAddr>) -> Option<Endpoint> {
    let spec = pod.spec.as_ref()?;
    if addresses.is_empty() || spec.host_network == Some(true) {
        return None;
    }
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar));
    let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|p| {
        let protocol = Protocol::parse(p.protocol.as_deref().unwrap_or("TCP"))?;
        Some((p.name.as_deref()?.into(), protocol, u16::try_from(p.container_port).ok()?))
    });
    Some(Endpoint {
        namespace: pod.metadata.namespace.as_deref().unwrap_or_default().into(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        ports: ports.collect(),
        addresses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(spec: Value) -> Policy {
        let object = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec});
        policy(&serde_json::from_value(object).expect("policy"))
    }

    #[test]
    fn directions_follow_from_the_types() {
        let nothing_in = read(json!({"policyTypes": ["Ingress"], "podSelector": {}}));
        assert_eq!((nothing_in.ingress, nothing_in.egress), (Some(vec![]), None));
        let all_out = read(json!({"policyTypes": ["Egress"], "egress": [{}], "ingress": [{}]}));
        assert_eq!((all_out.ingress, all_out.egress), (None, Some(vec![Allow { peers: None, ports: None }])));
        assert!(all_out.selector.is_empty());
    }

    #[test]
    fn peers_and_ports() {
        let p = read(json!({"policyTypes": ["Ingress"], "ingress": [{
            "from": [
                {"podSelector": {"matchLabels": {"a": "b"}}},
                {"namespaceSelector": {}},
                {"namespaceSelector": {"matchLabels": {"n": "m"}}, "podSelector": {}},
                {"ipBlock": {"cidr": "10.0.0.7/24", "except": ["10.0.0.0/25"]}},
                {"ipBlock": {"cidr": "10.0.0.0/26"}},
            ],
            "ports": [{"port": 80}, {"port": 90, "endPort": 99, "protocol": "UDP"}, {"protocol": "SCTP"},
                {"port": "web"}],
        }]}));
        let [allow] = p.ingress.as_deref().expect("ingress") else { panic!("{p:?}") };
        let peers = allow.peers.as_deref().expect("peers");
        assert_eq!(peers.len(), 4, "blocks are one set: {peers:?}");
        assert!(matches!(&peers[0], SetKey::Pods { scope: Scope::One(ns), .. } if &**ns == "ns"));
        assert!(
            matches!(&peers[1], SetKey::Pods { scope: Scope::Selected(s), pods } if s.is_empty() && pods.is_empty())
        );
        let SetKey::Ranges(ranges) = &peers[3] else { panic!("{peers:?}") };
        assert_eq!(ranges.len(), 2);
        assert_eq!(
            allow.ports.as_deref().expect("ports"),
            [
                Ports::Range(Protocol::Tcp, 80, 80),
                Ports::Range(Protocol::Udp, 90, 99),
                Ports::Protocol(Protocol::Sctp),
                Ports::Named(Protocol::Tcp, "web".into()),
            ]
        );
        // Nothing that can be read is nobody, not everybody.
        let odd = read(json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": "x"}}]}]}));
        assert_eq!(odd.ingress.expect("ingress")[0].peers, Some(vec![]));
    }

    #[test]
    fn pods_with_addresses_of_their_own() {
        let pod = |spec: Value, status: Value| -> Pod {
            let meta = json!({"name": "p", "namespace": "ns", "labels": {"a": "b"}});
            serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).expect("pod")
        };
        let containers = json!([{"name": "c", "ports": [
            {"name": "web", "containerPort": 80}, {"containerPort": 81},
            {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]);
        let up = json!({"phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]});
        let found = endpoint(&pod(json!({"containers": containers}), up.clone())).expect("endpoint");
        assert_eq!(found.addresses.len(), 2);
        assert_eq!(found.ports, [("web".into(), Protocol::Tcp, 80), ("dns".into(), Protocol::Udp, 53)]);
        assert_eq!(endpoint(&pod(json!({"containers": containers, "hostNetwork": true}), up.clone())), None);
        assert_eq!(endpoint(&pod(json!({"containers": containers}), json!({"phase": "Pending"}))), None);
        let over = json!({"phase": "Succeeded", "podIP": "10.0.0.2"});
        assert_eq!(endpoint(&pod(json!({"containers": containers}), over)), None);
    }
}
