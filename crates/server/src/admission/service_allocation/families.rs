//! IP families of a Service: defaults, and what the cluster cannot give.
//!
//! Source: KEP-563 and `pkg/registry/core/service/storage/alloc.go`.

use gantry_api::core::service::{HEADLESS, cluster_ip_errors, needs_cluster_ip};
use gantry_api::k8s_openapi::api::core::v1::ServiceSpec;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::names::parse_ip;
use gantry_api::networking::ip_address;
use serde_json::json;

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

fn ips(spec: &ServiceSpec) -> &[String] {
    spec.cluster_ips.as_deref().unwrap_or_default()
}

fn families(spec: &ServiceSpec) -> &[String] {
    spec.ip_families.as_deref().unwrap_or_default()
}

fn other(family: &str) -> String {
    if family == "IPv4" { "IPv6" } else { "IPv4" }.to_owned()
}

/// Whether an update leaves a `PreferDualStack` Service's addresses as they are: such a Service does not follow the cluster
/// from one family to two by itself.
pub(super) fn is_settled(new: &ServiceSpec, old: &ServiceSpec) -> bool {
    let prefers = |s: &ServiceSpec| s.ip_family_policy.as_deref() == Some(PREFER);
    prefers(new)
        && (prefers(old) || old.ip_family_policy.is_none())
        && new.type_ == old.type_
        && needs_cluster_ip(new)
        && ips(new) == ips(old)
        && families(new) == families(old)
}

/// What an update may do to the second address and family, before they are completed.
fn follow_policy(spec: &mut ServiceSpec, old: &ServiceSpec, e: &mut ErrorList) {
    if spec.ip_family_policy.as_deref() == Some(SINGLE) {
        // Left as they were, the second ones go with the policy; the first never change.
        if ips(spec) == ips(old) {
            spec.cluster_ips.iter_mut().for_each(|list| list.truncate(1));
        }
        if families(spec) == families(old) {
            spec.ip_families.iter_mut().for_each(|list| list.truncate(1));
        }
        return;
    }
    let reduced = |new: &[String], old: &[String]| !new.is_empty() && new.len() < old.len();
    let at = Path::new("spec").child("ipFamilyPolicy");
    if reduced(ips(spec), ips(old)) {
        e.invalid(&at, json!(spec.ip_family_policy), "must be 'SingleStack' to release the secondary cluster IP");
    }
    if reduced(families(spec), families(old)) {
        e.invalid(&at, json!(spec.ip_family_policy), "must be 'SingleStack' to release the secondary IP family");
    }
}

/// Completes `ipFamilyPolicy` and `ipFamilies`. `configured` are the cluster's families, the default first.
///
/// # Errors
/// What is malformed, contradicts itself, or what the cluster does not have.
pub(super) fn complete(
    spec: &mut ServiceSpec,
    old: Option<&ServiceSpec>,
    configured: &[&'static str],
) -> Result<(), ErrorList> {
    if !needs_cluster_ip(spec) || old.is_some_and(|old| is_settled(spec, old)) {
        return Ok(());
    }
    let at = Path::new("spec");
    let headless = spec.cluster_ip.as_deref() == Some(HEADLESS);
    let bare_headless = headless && spec.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty);
    if spec.ip_family_policy.is_none() {
        let before = old.and_then(|old| old.ip_family_policy.clone());
        let default = if bare_headless { REQUIRE } else { SINGLE };
        spec.ip_family_policy = Some(before.unwrap_or_else(|| default.to_owned()));
    }
    let refused = |e: ErrorList| if e.is_empty() { Ok(()) } else { Err(e) };
    refused(cluster_ip_errors(spec))?;
    let mut e = ErrorList::default();
    if let Some(old) = old {
        follow_policy(spec, old, &mut e);
    }
    let policy = spec.ip_family_policy.clone().unwrap_or_default();
    let single = policy == SINGLE;
    for (list, what) in [(ips(spec), "cluster IPs"), (families(spec), "IP families")] {
        if single && list.len() == 2 {
            let detail = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            e.invalid(&at.child("ipFamilyPolicy"), policy.as_str(), &detail);
        }
    }
    for (i, ip) in ips(spec).to_vec().iter().enumerate().take_while(|(_, ip)| *ip != HEADLESS) {
        let Some(family) = parse_ip(ip).map(ip_address::family).filter(|_| i >= families(spec).len()) else { continue };
        if configured.contains(&family) {
            spec.ip_families.get_or_insert_default().push(family.to_owned());
        } else {
            let detail = format!("{family} is not configured on this cluster");
            e.invalid(&at.child("clusterIPs").index(i), json!(ips(spec)), &detail);
        }
    }
    refused(e)?;
    if bare_headless {
        // Such a Service only names endpoints that somebody else writes; they may be of both families.
        let list = spec.ip_families.get_or_insert_default();
        if list.is_empty() {
            list.extend(configured.first().map(|f| (*f).to_owned()));
        }
        if let ([one], false) = (list.as_slice(), single) {
            let second = other(one);
            list.push(second);
        }
        return Ok(());
    }
    let mut e = ErrorList::default();
    if policy == REQUIRE && configured.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        e.invalid(&at.child("ipFamilyPolicy"), policy.as_str(), detail);
    }
    for (i, f) in families(spec).iter().enumerate().filter(|(_, f)| !configured.contains(&f.as_str())) {
        e.invalid(&at.child("ipFamilies").index(i), f.as_str(), "not configured on this cluster");
    }
    refused(e)?;
    let list = spec.ip_families.get_or_insert_default();
    if list.is_empty() {
        list.extend(configured.first().map(|f| (*f).to_owned()));
    }
    if let ([one], false, 2) = (list.as_slice(), single, configured.len()) {
        let second = other(one);
        list.push(second);
    }
    Ok(())
}
