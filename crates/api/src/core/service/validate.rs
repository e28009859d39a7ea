//! Field errors of Services.

use crate::apps::workload;
use crate::core::pod::validate::probe::validate_port;
use crate::core::service::{
    HEADLESS, is_externally_accessible, is_headless, needs_cluster_ip, needs_health_check_port,
};
use crate::meta::field::{ErrorList, ErrorType, FieldError, Path};
use crate::meta::object::Meta;
use crate::meta::{labels, names, text};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;

const LOAD_BALANCER_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const SET_ONCE: &str = "may not change once set";

fn spec_path() -> Path {
    Path::new("spec")
}

fn cluster_ips(spec: &ServiceSpec) -> &[String] {
    spec.cluster_ips.as_deref().unwrap_or_default()
}

fn families(spec: &ServiceSpec) -> &[String] {
    spec.ip_families.as_deref().unwrap_or_default()
}

fn ports(spec: &ServiceSpec) -> &[ServicePort] {
    spec.ports.as_deref().unwrap_or_default()
}

/// Field errors of a service.
pub(super) fn validate(service: &Service) -> ErrorList {
    let mut errors = ErrorList::default();
    let e = &mut errors;
    let empty = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let path = spec_path();
    validate_topology_annotations(service, e);
    if ports(spec).is_empty() && !is_headless(spec) && text(&spec.type_) != "ExternalName" {
        e.required(&path.child("ports"), "");
    }
    validate_type_needs(spec, &path, e);
    let mut names_seen = BTreeSet::new();
    for (i, port) in ports(spec).iter().enumerate() {
        validate_service_port(port, ports(spec).len() > 1, &mut names_seen, &path.child("ports").index(i), e);
    }
    e.extend(labels::validate_labels(spec.selector.as_ref(), &path.child("selector")));
    validate_affinity(spec, &path, e);
    validate_cluster_ips(spec, &path, e);
    for (i, ip) in spec.external_ips.iter().flatten().enumerate() {
        let path = path.child("externalIPs").index(i);
        let bad = names::ip_address(ip);
        names::push_invalid(e, &path, ip, &bad);
        if bad.is_empty() {
            validate_non_special_ip(ip, &path, e);
        }
    }
    match text(&spec.type_) {
        "" => e.required(&path.child("type"), ""),
        "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName" => {}
        other => {
            let known = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
            e.not_supported(&path.child("type"), other, &known);
        }
    }
    validate_port_conflicts(spec, &path.child("ports"), e);
    validate_source_ranges(service, spec, &path, e);
    let balanced = text(&spec.type_) == "LoadBalancer";
    if spec.allocate_load_balancer_node_ports.is_some() && !balanced {
        e.forbidden(&path.child("allocateLoadBalancerNodePorts"), LOAD_BALANCER_ONLY);
    }
    if balanced && spec.allocate_load_balancer_node_ports.is_none() {
        e.required(&Path::new("allocateLoadBalancerNodePorts"), "");
    }
    validate_load_balancer_class(spec, &path, e);
    validate_traffic(spec, &path, e);
    errors
}

fn validate_topology_annotations(service: &Service, errors: &mut ErrorList) {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    const MODE: &str = "service.kubernetes.io/topology-mode";
    if let (Some(hints), Some(mode)) = (service.metadata.annotation(HINTS), service.metadata.annotation(MODE))
        && hints != mode
    {
        let path = Path::new("metadata").child("annotations").key(MODE);
        errors.invalid(&path, mode, &format!("must match annotations[{HINTS}] when both are specified"));
    }
}

fn validate_type_needs(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    match text(&spec.type_) {
        kind @ ("LoadBalancer" | "NodePort") if is_headless(spec) => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.invalid(&path.child("clusterIPs").index(0), HEADLESS, &detail);
        }
        "ExternalName" => {
            const DETAIL: &str = "may not be set for ExternalName services";
            if !cluster_ips(spec).is_empty() {
                errors.forbidden(&path.child("clusterIPs"), DETAIL);
            }
            if !families(spec).is_empty() {
                errors.forbidden(&path.child("ipFamilies"), DETAIL);
            }
            if spec.ip_family_policy.is_some() {
                errors.forbidden(&path.child("ipFamilyPolicy"), DETAIL);
            }
            let name = text(&spec.external_name);
            let name = name.strip_suffix('.').unwrap_or(name);
            let path = path.child("externalName");
            if name.is_empty() {
                errors.required(&path, "");
            } else {
                names::push_invalid(errors, &path, name, &names::dns1123_subdomain(name, false));
            }
        }
        _ => {}
    }
}

fn validate_service_port<'a>(
    port: &'a ServicePort,
    name_required: bool,
    seen: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let name = text(&port.name);
    if !name.is_empty() {
        names::push_invalid(errors, &path.child("name"), name, &names::dns1123_label(name, false));
        if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
    } else if name_required {
        errors.required(&path.child("name"), "");
    }
    for message in names::port_number(port.port) {
        errors.invalid(&path.child("port"), port.port, &message);
    }
    validate_protocol(text(&port.protocol), &path.child("protocol"), errors);
    validate_port(port.target_port.as_ref().unwrap_or(&IntOrString::Int(0)), &path.child("targetPort"), errors);
    if let Some(app) = &port.app_protocol {
        names::push_invalid(errors, &path.child("appProtocol"), app, &names::qualified_name(app));
    }
}

/// Adds the errors of a transport protocol.
pub(crate) fn validate_protocol(protocol: &str, path: &Path, errors: &mut ErrorList) {
    match protocol {
        "TCP" | "UDP" | "SCTP" => {}
        "" => errors.required(path, ""),
        other => errors.not_supported(path, other, &["SCTP", "TCP", "UDP"]),
    }
}

fn validate_affinity(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    const MOST: i32 = 86_400;
    const WHEN: &str = "when session affinity type is ClientIP";
    let config_path = path.child("sessionAffinityConfig");
    match text(&spec.session_affinity) {
        "" => errors.required(&path.child("sessionAffinity"), ""),
        "None" if spec.session_affinity_config.is_some() => {
            errors.forbidden(&config_path, "must not be set when session affinity is None");
        }
        "None" => {}
        "ClientIP" => {
            let Some(config) = &spec.session_affinity_config else { return errors.required(&config_path, WHEN) };
            let client_path = config_path.child("clientIP");
            let Some(client) = &config.client_ip else { return errors.required(&client_path, WHEN) };
            let path = client_path.child("timeoutSeconds");
            match client.timeout_seconds {
                None => errors.required(&path, WHEN),
                Some(s) if !(1..=MOST).contains(&s) => {
                    errors.invalid(&path, s, &format!("must be greater than 0 and less than {MOST}"));
                }
                Some(_) => {}
            }
        }
        other => errors.not_supported(&path.child("sessionAffinity"), other, &["ClientIP", "None"]),
    }
}

/// The errors of clusterIP, clusterIPs, ipFamilies and ipFamilyPolicy taken together, which the allocator of addresses
/// must know before it can complete them.
#[must_use]
pub fn cluster_ip_errors(spec: &ServiceSpec) -> ErrorList {
    let mut errors = ErrorList::default();
    validate_cluster_ips(spec, &spec_path(), &mut errors);
    errors
}

fn validate_cluster_ips(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    if text(&spec.type_) == "ExternalName" {
        return;
    }
    let (ips, ips_path) = (cluster_ips(spec), path.child("clusterIPs"));
    match (text(&spec.cluster_ip), ips.first()) {
        ("", None) => {}
        ("", Some(_)) => errors.invalid(&ips_path, json!(ips), "must be empty when `clusterIP` is not specified"),
        (_, None) => errors.required(&ips_path, ""),
        (one, Some(first)) if one != first => {
            errors.invalid(&ips_path, json!(ips), "first value must match `clusterIP`")
        }
        _ => {}
    }
    for (i, family) in families(spec).iter().enumerate() {
        let path = path.child("ipFamilies").index(i);
        if !matches!(family.as_str(), "IPv4" | "IPv6") {
            errors.not_supported(&path, family, &["IPv4", "IPv6"]);
        }
        if families(spec)[..i].contains(family) {
            errors.duplicate(&path, family.as_str());
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if let Some(policy) = spec.ip_family_policy.as_deref().filter(|p| !policies.contains(p)) {
        errors.not_supported(&path.child("ipFamilyPolicy"), policy, &policies);
    }
    let mut malformed = false;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && ip == HEADLESS {
            if ips.len() > 1 {
                malformed = true;
                errors.invalid(&ips_path, json!(ips), "'None' must be the first and only value");
            }
            continue;
        }
        let bad = names::ip_address(ip);
        malformed |= !bad.is_empty();
        names::push_invalid(errors, &ips_path.index(i), ip, &bad);
    }
    if ips.len() > 2 {
        errors.invalid(&ips_path, json!(ips), "may only hold up to 2 values");
    }
    if malformed {
        return;
    }
    let v6 = |ip: &String| names::parse_ip(ip).is_some_and(|ip| ip.is_ipv6());
    if ips.len() > 1 && !(ips.iter().any(v6) && ips.iter().any(|ip| !v6(ip))) {
        errors.invalid(&ips_path, json!(ips), "may specify no more than one IP for each IP family");
    }
    if is_headless(spec) {
        return;
    }
    for (i, (ip, family)) in ips.iter().zip(families(spec)).enumerate() {
        let other = if v6(ip) { "IPv6" } else { "IPv4" };
        if family != other && matches!(family.as_str(), "IPv4" | "IPv6") {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.invalid(&ips_path.index(i), ip.as_str(), &detail);
        }
    }
}

/// Adds the errors of an address that means something only on one machine or one link.
pub(crate) fn validate_non_special_ip(address: &str, path: &Path, errors: &mut ErrorList) {
    let Some(ip) = names::parse_ip(address) else {
        return errors.invalid(path, address, "must be a valid IP address");
    };
    let (link_local, link_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.is_unspecified() {
        errors.invalid(path, address, &format!("may not be unspecified ({address})"));
    }
    if ip.is_loopback() {
        errors.invalid(path, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errors.invalid(path, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_multicast {
        errors.invalid(path, address, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

fn validate_port_conflicts(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let node_port = |p: &ServicePort| p.node_port.unwrap_or(0);
    if text(&spec.type_) == "ClusterIP" {
        for (i, _) in ports(spec).iter().enumerate().filter(|(_, p)| node_port(p) != 0) {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.forbidden(&path.index(i).child("nodePort"), detail);
        }
    }
    let mut seen = BTreeSet::new();
    for (i, p) in ports(spec).iter().enumerate().filter(|(_, p)| node_port(p) != 0) {
        if !seen.insert((text(&p.protocol), node_port(p))) {
            errors.duplicate(&path.index(i).child("nodePort"), node_port(p));
        }
    }
    seen.clear();
    for (i, p) in ports(spec).iter().enumerate() {
        if !seen.insert((text(&p.protocol), p.port)) {
            // Upstream shows a port of its own type, in which nothing else is set.
            let shown = workload::shown_as(&[
                ("Name", json!("")),
                ("Protocol", json!(p.protocol)),
                ("AppProtocol", json!(null)),
                ("Port", json!(p.port)),
                ("TargetPort", json!(0)),
                ("NodePort", json!(0)),
            ]);
            let body = format!("Duplicate value: {shown}");
            errors.0.push(FieldError { r#type: ErrorType::Duplicate, field: path.index(i).to_string(), body });
        }
    }
}

fn validate_source_ranges(service: &Service, spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let balanced = text(&spec.type_) == "LoadBalancer";
    if !ranges.is_empty() {
        let path = path.child("LoadBalancerSourceRanges");
        if !balanced {
            errors.forbidden(&path, LOAD_BALANCER_ONLY);
        }
        for (i, range) in ranges.iter().enumerate() {
            names::push_invalid(errors, &path.index(i), range.trim(), &names::cidr(range.trim()));
        }
    } else if let Some(value) = service.metadata.annotation(SOURCE_RANGES) {
        let path = Path::new("metadata").child("annotations").key(SOURCE_RANGES);
        if !balanced {
            errors.forbidden(&path, LOAD_BALANCER_ONLY);
        }
        for range in value.trim().split(',').map(str::trim).filter(|_| !value.trim().is_empty()) {
            names::push_invalid(errors, &path, range, &names::cidr(range));
        }
    }
}

fn validate_load_balancer_class(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let Some(class) = &spec.load_balancer_class else { return };
    let path = path.child("loadBalancerClass");
    if text(&spec.type_) == "LoadBalancer" {
        names::push_invalid(errors, &path, class, &names::qualified_name(class));
    } else {
        errors.forbidden(&path, LOAD_BALANCER_ONLY);
    }
}

fn validate_traffic(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let policy = text(&spec.external_traffic_policy);
    let policy_path = path.child("externalTrafficPolicy");
    match (is_externally_accessible(spec), policy) {
        (false, "") | (true, "Cluster" | "Local") => {}
        (false, p) => errors.invalid(&policy_path, p, "may only be set for externally-accessible services"),
        (true, "") => errors.required(&policy_path, ""),
        (true, p) => errors.not_supported(&policy_path, p, &["Cluster", "Local"]),
    }
    let (check, check_path) = (spec.health_check_node_port.unwrap_or(0), path.child("healthCheckNodePort"));
    match (needs_health_check_port(spec), check) {
        (false, 0) => {}
        (false, port) => {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid(&check_path, port, detail);
        }
        // The registry allocates the port after validation.
        (true, 0) => {}
        (true, port) => {
            for message in names::port_number(port) {
                errors.invalid(&check_path, port, &message);
            }
        }
    }
    let internal_path = path.child("internalTrafficPolicy");
    match spec.internal_traffic_policy.as_deref() {
        None if needs_cluster_ip(spec) => errors.required(&internal_path, ""),
        Some(p) if !matches!(p, "Cluster" | "Local") => errors.not_supported(&internal_path, p, &["Cluster", "Local"]),
        _ => {}
    }
    let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    if let Some(d) = spec.traffic_distribution.as_deref().filter(|d| !known.contains(d)) {
        errors.not_supported(&path.child("trafficDistribution"), d, &known);
    }
}

/// Field errors of a changed service.
pub(super) fn validate_update(service: &Service, old: &Service) -> ErrorList {
    let mut errors = ErrorList::default();
    let e = &mut errors;
    let (new_spec, old_spec) = (service.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let (new, old) = (&new_spec, &old_spec);
    let external = text(&new.type_) == "ExternalName" || text(&old.type_) == "ExternalName";
    if !external {
        validate_address_change(new, old, e);
        validate_family_change(new, old, e);
    }
    let balanced = text(&new.type_) == "LoadBalancer";
    if balanced && text(&old.type_) == "LoadBalancer" && new.load_balancer_class != old.load_balancer_class {
        e.invalid(&spec_path().child("loadBalancerClass"), json!(new.load_balancer_class), SET_ONCE);
    }
    validate_load_balancer_class(new, &spec_path(), e);
    if needs_health_check_port(old)
        && needs_health_check_port(new)
        && new.health_check_node_port != old.health_check_node_port
    {
        e.forbidden(&spec_path().child("healthCheckNodePort"), "field is immutable");
    }
    e.extend(validate(service));
    errors
}

fn validate_address_change(new: &ServiceSpec, old: &ServiceSpec, errors: &mut ErrorList) {
    if is_headless(new) && is_headless(old) {
        return;
    }
    let path = spec_path().child("clusterIPs");
    let (ips, old_ips) = (cluster_ips(new), cluster_ips(old));
    if ips.len() == old_ips.len() {
        for i in (0..ips.len()).filter(|i| ips[*i] != old_ips[*i]) {
            errors.invalid(&path.index(i), json!(ips), SET_ONCE);
        }
        return;
    }
    if ips.is_empty() {
        errors.invalid(&path.index(0), json!(ips), "primary clusterIP can not be unset");
    } else if !old_ips.is_empty() && ips[0] != old_ips[0] {
        errors.invalid(&path.index(0), json!(ips), SET_ONCE);
    }
    if ips.len() < old_ips.len() && ips.len() == 1 && text(&new.ip_family_policy) != "SingleStack" {
        let detail = "must be set to 'SingleStack' when releasing the secondary clusterIP";
        errors.invalid(&spec_path().child("ipFamilyPolicy"), json!(new.ip_family_policy), detail);
    }
}

fn validate_family_change(new: &ServiceSpec, old: &ServiceSpec, errors: &mut ErrorList) {
    if is_headless(new) || is_headless(old) {
        return;
    }
    let path = spec_path().child("ipFamilies").index(0);
    let (now, before) = (families(new), families(old));
    if now.len() == before.len() {
        for _ in (0..now.len()).filter(|i| now[*i] != before[*i]) {
            errors.invalid(&path, json!(now), SET_ONCE);
        }
        return;
    }
    if now.len() < before.len() && cluster_ips(new).is_empty() {
        errors.invalid(&path, json!(now), "primary ipFamily can not be unset");
    }
    if !now.is_empty() && !before.is_empty() && now[0] != before[0] {
        errors.invalid(&path, json!(cluster_ips(new)), SET_ONCE);
    }
    if now.len() < before.len() && now.len() == 1 && text(&new.ip_family_policy) != "SingleStack" {
        let detail = "must be set to 'SingleStack' when releasing the secondary ipFamily";
        errors.invalid(&spec_path().child("ipFamilyPolicy"), json!(new.ip_family_policy), detail);
    }
}

/// Field errors of a changed service status.
pub(super) fn validate_status(service: &Service) -> ErrorList {
    let mut errors = ErrorList::default();
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let kind = service.spec.as_ref().map(|s| text(&s.type_)).unwrap_or_default();
    let ingress: Vec<_> =
        service.status.iter().flat_map(|s| s.load_balancer.iter().flat_map(|l| l.ingress.iter().flatten())).collect();
    if kind != "LoadBalancer" && !ingress.is_empty() {
        errors.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
        return errors;
    }
    for (i, point) in ingress.into_iter().enumerate() {
        let path = path.index(i);
        let ip = text(&point.ip);
        if !ip.is_empty() {
            names::push_invalid(&mut errors, &path.child("ip"), ip, &names::ip_address(ip));
        }
        match (point.ip_mode.as_deref(), ip.is_empty()) {
            (None, false) => errors.required(&path.child("ipMode"), "must be specified when `ip` is set"),
            (Some(_), true) => errors.forbidden(&path.child("ipMode"), "may not be specified when `ip` is not set"),
            (Some(m), false) if !matches!(m, "Proxy" | "VIP") => {
                errors.not_supported(&path.child("ipMode"), m, &["Proxy", "VIP"]);
            }
            _ => {}
        }
        let hostname = text(&point.hostname);
        if !hostname.is_empty() {
            let path = path.child("hostname");
            names::push_invalid(&mut errors, &path, hostname, &names::dns1123_subdomain(hostname, false));
            if names::parse_ip(hostname).is_some() {
                errors.invalid(&path, hostname, "must be a DNS name, not an IP address");
            }
        }
    }
    errors
}
