//! Warnings about Services.

use crate::core::service::is_headless;
use crate::meta::field::Path;
use crate::meta::object::Meta;
use crate::meta::{names, text};
use k8s_openapi::api::core::v1::Service;

/// Warnings for a new or changed service.
pub(super) fn warnings(service: &Service) -> Vec<String> {
    let mut found = Vec::new();
    let Some(spec) = &service.spec else { return found };
    let path = Path::new("spec");
    if service.metadata.annotation("service.kubernetes.io/topology-aware-hints").is_some() {
        found.push(
            "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use \
             service.kubernetes.io/topology-mode instead"
                .to_owned(),
        );
    }
    let headless = is_headless(spec) && text(&spec.type_) == "ClusterIP";
    let external_name = text(&spec.type_) == "ExternalName";
    let external_ips = spec.external_ips.as_deref().unwrap_or_default();
    if !headless && !external_name {
        for (i, ip) in spec.cluster_ips.iter().flatten().enumerate() {
            found.extend(names::ip_warnings(&path.child("clusterIPs").index(i), ip));
        }
    }
    if headless {
        if !text(&spec.load_balancer_ip).is_empty() {
            found.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if !external_ips.is_empty() {
            found.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if text(&spec.session_affinity) != "None" {
            found.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    for (i, ip) in external_ips.iter().enumerate() {
        found.extend(names::ip_warnings(&path.child("externalIPs").index(i), ip));
    }
    if !external_ips.is_empty() && !headless && !external_name {
        found.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
    }
    if !text(&spec.load_balancer_ip).is_empty() {
        found.extend(names::ip_warnings(&path.child("loadBalancerIP"), text(&spec.load_balancer_ip)));
    }
    if external_name && !external_ips.is_empty() {
        found.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !external_name && !text(&spec.external_name).is_empty() {
        found.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if text(&spec.traffic_distribution) == "PreferClose" {
        found.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned());
    }
    found
}
