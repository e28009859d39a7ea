//! What a Service leaves out, and what an update of it keeps.

use crate::core::service::{HEADLESS, is_externally_accessible};
use crate::meta::text;
use k8s_openapi::api::core::v1::{ClientIPConfig, Service, ServiceSpec, SessionAffinityConfig};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::{BTreeMap, BTreeSet};

/// Seconds a client sticks to its endpoint unless said otherwise: three hours.
const AFFINITY_SECONDS: i32 = 10_800;

/// Whether the service gets an address from the service range (or is headless).
#[must_use]
pub fn needs_cluster_ip(spec: &ServiceSpec) -> bool {
    matches!(text(&spec.type_), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether the service's ports get node ports.
#[must_use]
pub fn needs_node_port(spec: &ServiceSpec) -> bool {
    match text(&spec.type_) {
        "NodePort" => true,
        "LoadBalancer" => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    }
}

/// Whether the service gets a health check node port.
#[must_use]
pub fn needs_health_check_port(spec: &ServiceSpec) -> bool {
    text(&spec.type_) == "LoadBalancer" && text(&spec.external_traffic_policy) == "Local"
}

fn fill(field: &mut Option<String>, value: &str) {
    if text(field).is_empty() {
        *field = Some(value.to_owned());
    }
}

/// Fills in what upstream's defaulting fills in.
pub(super) fn set_defaults(service: &mut Service) {
    let spec = service.spec.get_or_insert_default();
    // An empty selector is none: it selects no pods, not all.
    spec.selector = spec.selector.take().filter(|s| !s.is_empty());
    fill(&mut spec.session_affinity, "None");
    match text(&spec.session_affinity) {
        "None" => spec.session_affinity_config = None,
        "ClientIP" => {
            let given = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
            if given.is_none() {
                let client_ip = Some(ClientIPConfig { timeout_seconds: Some(AFFINITY_SECONDS) });
                spec.session_affinity_config = Some(SessionAffinityConfig { client_ip });
            }
        }
        _ => {}
    }
    fill(&mut spec.type_, "ClusterIP");
    for port in spec.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
        let unset = match &port.target_port {
            None => true,
            Some(IntOrString::Int(n)) => *n == 0,
            Some(IntOrString::String(s)) => s.is_empty(),
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    if is_externally_accessible(spec) {
        fill(&mut spec.external_traffic_policy, "Cluster");
    }
    if needs_cluster_ip(spec) && spec.internal_traffic_policy.is_none() {
        spec.internal_traffic_policy = Some("Cluster".to_owned());
    }
    if text(&spec.type_) == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
        let ingress = service.status.iter_mut().flat_map(|s| s.load_balancer.iter_mut());
        for i in ingress.flat_map(|l| l.ingress.iter_mut().flatten()).filter(|i| !text(&i.ip).is_empty()) {
            i.ip_mode.get_or_insert_with(|| "VIP".to_owned());
        }
    }
}

/// A new service that names one cluster IP has it as the first of its cluster IPs.
pub(super) fn normalize_new(spec: &mut ServiceSpec) {
    let one = text(&spec.cluster_ip).to_owned();
    if !one.is_empty() && spec.cluster_ips.as_ref().is_none_or(Vec::is_empty) {
        spec.cluster_ips = Some(vec![one]);
    }
}

fn list(ips: &Option<Vec<String>>) -> &[String] {
    ips.as_deref().unwrap_or_default()
}

/// Keeps in a changed service what was allocated, follows whichever of clusterIP and clusterIPs its author changed, and
/// drops what its new type does not have and its author did not touch.
pub(super) fn carry_over(new: &mut ServiceSpec, old: &ServiceSpec) {
    keep_allocated(new, old);
    normalize_changed(new, old);
    drop_dependents(new, old);
}

fn keep_allocated(new: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if text(&new.cluster_ip).is_empty() {
            new.cluster_ip = old.cluster_ip.clone();
        }
        if list(&new.cluster_ips).is_empty() && text(&new.cluster_ip) == text(&old.cluster_ip) {
            new.cluster_ips = old.cluster_ips.clone();
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        keep_node_ports(new, old);
    }
    if needs_health_check_port(old) && needs_health_check_port(new) && new.health_check_node_port.unwrap_or(0) == 0 {
        new.health_check_node_port = old.health_check_node_port;
    }
}

fn node_ports(spec: &ServiceSpec) -> BTreeSet<i32> {
    spec.ports.iter().flatten().filter_map(|p| p.node_port).filter(|p| *p != 0).collect()
}

fn keep_node_ports(new: &mut ServiceSpec, old: &ServiceSpec) {
    let mut taken: BTreeSet<i32> = node_ports(old).intersection(&node_ports(new)).copied().collect();
    let by_name: BTreeMap<&str, i32> =
        old.ports.iter().flatten().map(|p| (text(&p.name), p.node_port.unwrap_or(0))).collect();
    for port in new.ports.iter_mut().flatten().filter(|p| p.node_port.unwrap_or(0) == 0) {
        let before = by_name.get(text(&port.name)).copied().unwrap_or(0);
        if before != 0 && taken.insert(before) {
            port.node_port = Some(before);
        }
    }
}

fn normalize_changed(new: &mut ServiceSpec, old: &ServiceSpec) {
    let same_one = text(&new.cluster_ip) == text(&old.cluster_ip);
    if !list(&old.cluster_ips).is_empty() && list(&new.cluster_ips).is_empty() && same_one {
        new.cluster_ips = old.cluster_ips.clone();
    }
    if same_one || list(&new.cluster_ips) != list(&old.cluster_ips) {
        return;
    }
    new.cluster_ips = match text(&new.cluster_ip) {
        "" => None,
        one => Some(vec![one.to_owned()]),
    };
}

fn drop_dependents(new: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if text(&new.cluster_ip) == text(&old.cluster_ip) && list(&new.cluster_ips) == list(&old.cluster_ips) {
            new.cluster_ip = None;
            new.cluster_ips = None;
        }
        if list(&new.ip_families) == list(&old.ip_families) {
            new.ip_families = None;
        }
        if new.ip_family_policy == old.ip_family_policy {
            new.ip_family_policy = None;
        }
        if new.internal_traffic_policy == old.internal_traffic_policy {
            new.internal_traffic_policy = None;
        }
    }
    // Not asking for node ports any more gives none back; a type without them does, where the author wrote no new ones.
    let may_have = |s: &ServiceSpec| matches!(text(&s.type_), "NodePort" | "LoadBalancer");
    if may_have(old) && !may_have(new) && node_ports(new).is_subset(&node_ports(old)) {
        new.ports.iter_mut().flatten().for_each(|p| p.node_port = None);
    }
    let dropped_check = needs_health_check_port(old) && !needs_health_check_port(new);
    if dropped_check && new.health_check_node_port == old.health_check_node_port {
        new.health_check_node_port = None;
    }
    let balanced = |s: &ServiceSpec| text(&s.type_) == "LoadBalancer";
    if balanced(old) && !balanced(new) {
        if new.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
            new.allocate_load_balancer_node_ports = None;
        }
        if new.load_balancer_class == old.load_balancer_class {
            new.load_balancer_class = None;
        }
    }
    let outside = is_externally_accessible(old) && !is_externally_accessible(new);
    if outside && new.external_traffic_policy == old.external_traffic_policy {
        new.external_traffic_policy = None;
    }
    // A service that leaves ExternalName behind keeps no family of a range it never had.
    if text(&new.cluster_ip) == HEADLESS && list(&new.cluster_ips).is_empty() {
        new.cluster_ips = Some(vec![HEADLESS.to_owned()]);
    }
}
