//! What a Service means on this node: a pure function of the Service, its EndpointSlices and the node.

use std::{net::IpAddr, time::Duration};

use gantry_network::{IpNet, Protocol, nft::Family};
use k8s_openapi::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::EndpointSlice,
};

use crate::endpoints::{choose, local_ready};

/// Services with this label are some other proxy's.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label by which an EndpointSlice names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// How long a client sticks to an endpoint, where the Service does not say: three hours.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

/// What must be known about the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Option<String>,
}

/// Where a packet is sent in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The endpoint's address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// What happens to traffic for a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// To one of the endpoints anywhere ([`PortRules::near`]).
    Near,
    /// To one of the endpoints on this node ([`PortRules::local`]).
    Local,
    /// Refused: there are no endpoints.
    Refuse,
    /// Thrown away: there are endpoints, but none here, and it has to be here. The client's next try may go elsewhere.
    Drop,
}

/// An address and port clients use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The address; `None` is every address of the node (a node port).
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Whether it is the cluster IP.
    pub is_cluster_ip: bool,
    /// What happens to its traffic.
    pub route: Route,
    /// What happens to traffic from pods and the node itself, where that differs.
    pub route_inside: Option<Route>,
    /// Whether the client's address is hidden behind the node's, so that answers come back this way.
    pub masquerade: bool,
    /// The only sources allowed; empty allows all.
    pub allowed: Vec<IpNet>,
}

/// One port of a Service on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRules {
    /// The transport protocol.
    pub protocol: Protocol,
    /// How long a client sticks to an endpoint, if it does.
    pub affinity: Option<Duration>,
    /// Endpoints for traffic that may go anywhere.
    pub near: Vec<Target>,
    /// Endpoints on this node.
    pub local: Vec<Target>,
    /// Where clients find it.
    pub frontends: Vec<Frontend>,
}

/// The health check a load balancer may ask this node for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port it asks on.
    pub port: u16,
    /// How many ready endpoints are on this node.
    pub local_endpoints: usize,
}

/// A Service on this node, in one address family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceRules {
    /// Its ports; none when it is not to be proxied.
    pub ports: Vec<PortRules>,
}

/// Compiles a Service for one family; `slices` are all its EndpointSlices.
pub fn compile(service: &Service, slices: &[&EndpointSlice], family: Family, node: &NodeView) -> ServiceRules {
    let mut rules = ServiceRules::default();
    let Some(spec) = service.spec.as_ref().filter(|_| is_proxied(service)) else {
        return rules;
    };
    let of_family = |text: &String| text.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == (family == Family::Ipv4));
    let mut cluster_ips: Vec<IpAddr> = spec.cluster_ips.iter().flatten().filter_map(of_family).collect();
    if cluster_ips.is_empty() {
        cluster_ips.extend(spec.cluster_ip.iter().filter_map(of_family));
    }
    let Some(cluster_ip) = cluster_ips.first().copied() else {
        return rules;
    };
    let is_load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let external_ips: Vec<IpAddr> = spec.external_ips.iter().flatten().filter_map(of_family).collect();
    let balancer_ips: Vec<IpAddr> = service
        .status
        .iter()
        .filter(|_| is_load_balancer)
        .filter_map(|s| s.load_balancer.as_ref())
        .flat_map(|lb| lb.ingress.iter().flatten())
        // "Proxy" means that the balancer's address must not be short-cut.
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref())
        .filter_map(of_family)
        .collect();
    let allowed: Vec<IpNet> = spec
        .load_balancer_source_ranges
        .iter()
        .filter(|_| is_load_balancer)
        .flatten()
        .filter_map(|text| text.trim().parse().ok())
        .collect();
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        spec.session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref())
            .and_then(|c| c.timeout_seconds)
            .and_then(|s| u64::try_from(s).ok())
            .filter(|s| *s > 0)
            .map_or(DEFAULT_AFFINITY, Duration::from_secs)
    });

    for port in spec.ports.iter().flatten() {
        let Some((protocol, number)) = protocol_and_port(port) else {
            continue;
        };
        let chosen = choose(port, slices, family, node);
        let route = |must_be_local: bool| match (chosen.any, must_be_local) {
            (false, _) => Route::Refuse,
            (true, true) if chosen.local.is_empty() => Route::Drop,
            (true, true) => Route::Local,
            // Endpoints exist, yet hints or readiness leave none to choose.
            (true, false) if chosen.near.is_empty() => Route::Refuse,
            (true, false) => Route::Near,
        };
        let mut frontends = vec![Frontend {
            address: Some(cluster_ip),
            port: number,
            is_cluster_ip: true,
            route: route(internal_local),
            route_inside: None,
            masquerade: false,
            allowed: Vec::new(),
        }];
        let external = |address: Option<IpAddr>, port: u16, allowed: &[IpNet]| Frontend {
            address,
            port,
            is_cluster_ip: false,
            route: route(external_local),
            // Clients inside the cluster are not what "Local" is about: they may go anywhere, as for the cluster IP.
            route_inside: (external_local && chosen.any).then(|| route(false)),
            masquerade: !external_local,
            allowed: allowed.to_vec(),
        };
        frontends.extend(external_ips.iter().map(|ip| external(Some(*ip), number, &[])));
        frontends.extend(
            balancer_ips.iter().filter(|ip| !external_ips.contains(ip)).map(|ip| external(Some(*ip), number, &allowed)),
        );
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        frontends.extend(node_port.map(|p| external(None, p, &[])));
        rules.ports.push(PortRules { protocol, affinity, near: chosen.near, local: chosen.local, frontends });
    }
    rules
}

/// The health check of a Service on this node, if it has one.
pub fn health_check(service: &Service, slices: &[&EndpointSlice], node: &NodeView) -> Option<HealthCheck> {
    let spec = service.spec.as_ref().filter(|_| is_proxied(service))?;
    if spec.type_.as_deref() != Some("LoadBalancer") || spec.external_traffic_policy.as_deref() != Some("Local") {
        return None;
    }
    let port = spec.health_check_node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)?;
    // A pod of both families is one endpoint: the Service's first family counts.
    let family = spec.ip_families.as_ref().and_then(|f| f.first());
    let counted: Vec<&EndpointSlice> =
        slices.iter().copied().filter(|s| family.is_none_or(|f| *f == s.address_type)).collect();
    Some(HealthCheck { port, local_endpoints: local_ready(&counted, node) })
}

/// Whether a Service is for this proxy at all.
fn is_proxied(service: &Service) -> bool {
    let Some(spec) = &service.spec else {
        return false;
    };
    let headless = spec.cluster_ip.as_deref().is_none_or(|ip| ip.is_empty() || ip == "None");
    let elsewhere = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
    !headless && !elsewhere && spec.type_.as_deref() != Some("ExternalName")
}

fn protocol_and_port(port: &ServicePort) -> Option<(Protocol, u16)> {
    let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?;
    let number = u16::try_from(port.port).ok().filter(|p| *p != 0)?;
    Some((protocol, number))
}

#[cfg(test)]
mod tests;
