//! IP families of a Service in a cluster of one family: defaults, and what such a cluster cannot give.

use gantry_api::core::service::HEADLESS;
use gantry_api::k8s_openapi::api::core::v1::ServiceSpec;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::names::parse_ip;
use serde_json::json;

fn family_of(ip: &str) -> Option<&'static str> {
    parse_ip(ip).map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" })
}

/// Completes `ipFamilyPolicy` and `ipFamilies`. `family` is the cluster's.
pub(super) fn complete(spec: &mut ServiceSpec, family: &'static str) -> Result<(), ErrorList> {
    let mut e = ErrorList::default();
    let at = Path::new("spec");
    let headless = spec.cluster_ip.as_deref() == Some(HEADLESS);
    let bare_headless = headless && spec.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty);
    let default_policy = if bare_headless { "RequireDualStack" } else { "SingleStack" };
    let policy = spec.ip_family_policy.get_or_insert_with(|| default_policy.into()).clone();
    let families = spec.ip_families.get_or_insert_default();
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    if policy == "SingleStack" {
        if ips.len() == 2 {
            let detail = "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified";
            e.invalid(&at.child("ipFamilyPolicy"), policy.as_str(), detail);
        }
        if families.len() == 2 {
            let detail = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
            e.invalid(&at.child("ipFamilyPolicy"), policy.as_str(), detail);
        }
    }
    for (i, ip) in ips.iter().enumerate().take_while(|(_, ip)| *ip != HEADLESS) {
        // A malformed address is for validation to refuse.
        let Some(of_ip) = family_of(ip) else { continue };
        if i < families.len() {
            continue;
        }
        if of_ip == family {
            families.push(of_ip.to_owned());
        } else {
            let detail = format!("{of_ip} is not configured on this cluster");
            e.invalid(&at.child("clusterIPs").index(i), json!(ips), &detail);
        }
    }
    if !e.is_empty() {
        return Err(e);
    }
    if bare_headless {
        // Such a Service only names endpoints that somebody else writes; they may be of both families.
        if families.is_empty() {
            families.push(family.to_owned());
        }
        if families.len() < 2 && policy != "SingleStack" {
            families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
        }
        return Ok(());
    }
    if policy == "RequireDualStack" {
        let detail = "this cluster is not configured for dual-stack services";
        e.invalid(&at.child("ipFamilyPolicy"), policy.as_str(), detail);
    }
    for (i, f) in families.iter().enumerate().filter(|(_, f)| *f != family) {
        e.invalid(&at.child("ipFamilies").index(i), f.as_str(), "not configured on this cluster");
    }
    if !e.is_empty() {
        return Err(e);
    }
    if families.is_empty() {
        families.push(family.to_owned());
    }
    Ok(())
}
