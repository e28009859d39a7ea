//! Field errors of pods (`ValidatePodSpec` and what it calls), in upstream's order and words.

use crate::core::pod::validate::container::Scope;
use crate::meta::field::{ErrorList, Path};
use crate::meta::{labels, names, text};
use k8s_openapi::api::core::v1::{Container, PodResourceClaim, PodSpec, SecurityContext};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use std::collections::BTreeSet;

pub(crate) mod container;
mod dns;
mod env;
pub(crate) mod placement;
pub mod probe;
pub mod resources;
pub(crate) mod security;
#[cfg(test)]
mod tests;
mod volume;
pub(crate) mod volume_sources;

pub(crate) use volume::{Sources, validate_no_backsteps};

/// What depends on where a pod spec stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The spec is a pod's own, not a template's.
    pub is_pod: bool,
}

/// What rules about all containers look at.
pub(crate) struct AnyContainer<'a> {
    pub(crate) name: &'a str,
    pub(crate) security_context: Option<&'a SecurityContext>,
}

/// Visits init, regular and ephemeral containers with their paths.
pub(crate) fn each_container(spec: &PodSpec, path: &Path, mut visit: impl FnMut(AnyContainer<'_>, &Path)) {
    let mut of = |c: &Container, path: Path| {
        visit(AnyContainer { name: &c.name, security_context: c.security_context.as_ref() }, &path);
    };
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        of(c, path.child("initContainers").index(i));
    }
    for (i, c) in spec.containers.iter().enumerate() {
        of(c, path.child("containers").index(i));
    }
    for (i, c) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let seen = AnyContainer { name: &c.name, security_context: c.security_context.as_ref() };
        visit(seen, &path.child("ephemeralContainers").index(i));
    }
}

/// Adds the errors of annotations that mean something for pods.
pub fn validate_pod_annotations(meta: &ObjectMeta, spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    security::validate_annotations(meta, spec, path, errors);
}

/// Adds the errors of profiles that former annotations and fields state differently; only for new pods and templates.
pub fn validate_profiles_agree(meta: &ObjectMeta, spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    security::validate_profiles_agree(meta, spec, path, errors);
}

fn validate_choice(value: &str, supported: &[&str], path: &Path, errors: &mut ErrorList) {
    match value {
        "" => errors.required(path, ""),
        v if !supported.contains(&v) => errors.not_supported(path, v, supported),
        _ => {}
    }
}

fn validate_subdomain(value: &str, path: &Path, errors: &mut ErrorList) {
    if !value.is_empty() {
        names::push_invalid(errors, path, value, &names::dns1123_subdomain(value, false));
    }
}

/// Field errors of a pod spec. `meta` is the pod's, absent in templates.
#[must_use]
pub fn validate_pod_spec(spec: &PodSpec, meta: Option<&ObjectMeta>, path: &Path, options: Options) -> ErrorList {
    let mut errors = ErrorList::default();
    let e = &mut errors;
    if spec.termination_grace_period_seconds.is_none() {
        e.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let volumes = volume::validate_volumes(volumes, meta, &path.child("volumes"), options, e);
    let claims: BTreeSet<&str> =
        spec.resource_claims.iter().flatten().map(|c| c.name.as_str()).filter(|n| !n.is_empty()).collect();
    validate_resource_claims(spec.resource_claims.as_deref().unwrap_or_default(), &path.child("resourceClaims"), e);
    let scope = Scope { spec, volumes: &volumes, claims: &claims, is_pod: options.is_pod };
    container::validate_containers(&scope, &path.child("containers"), e);
    container::validate_init_containers(&scope, &path.child("initContainers"), e);
    container::validate_ephemeral_containers(&scope, &path.child("ephemeralContainers"), e);
    env::validate_file_volumes(spec, path, e);
    resources::validate_pod_level(spec, &claims, &path.child("resources"), e);
    container::validate_host_network_ports(&scope, path, e);
    let restart = ["Always", "OnFailure", "Never"];
    validate_choice(text(&spec.restart_policy), &restart, &path.child("restartPolicy"), e);
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    validate_choice(text(&spec.dns_policy), &dns, &path.child("dnsPolicy"), e);
    e.extend(labels::validate_labels(spec.node_selector.as_ref(), &path.child("nodeSelector")));
    security::validate_pod_context(spec, &path.child("securityContext"), e);
    if let Some(a) = &spec.affinity {
        placement::validate_affinity(a, &path.child("affinity"), e);
    }
    dns::validate_dns_config(spec, &path.child("dnsConfig"), e);
    placement::validate_gates(spec, path, e);
    let constraints = spec.topology_spread_constraints.as_deref().unwrap_or_default();
    placement::validate_topology_spread(constraints, &path.child("topologySpreadConstraints"), e);
    security::validate_host_process(spec, path, e);
    security::validate_host_users(spec, path, e);
    validate_subdomain(text(&spec.service_account_name), &path.child("serviceAccountName"), e);
    validate_subdomain(text(&spec.node_name), &path.child("nodeName"), e);
    if let Some(seconds) = spec.active_deadline_seconds.filter(|s| !(1..=i64::from(i32::MAX)).contains(s)) {
        let detail = names::inclusive_range_error(1, i64::from(i32::MAX));
        e.invalid(&path.child("activeDeadlineSeconds"), seconds, &detail);
    }
    dns::validate_hostname(spec, path, e);
    placement::validate_tolerations(spec.tolerations.as_deref().unwrap_or_default(), &path.child("tolerations"), e);
    dns::validate_host_aliases(spec.host_aliases.as_deref().unwrap_or_default(), &path.child("hostAliases"), e);
    validate_subdomain(text(&spec.priority_class_name), &path.child("priorityClassName"), e);
    if let Some(class) = &spec.runtime_class_name {
        names::push_invalid(e, &path.child("runtimeClassName"), class, &names::dns1123_subdomain(class, false));
    }
    if let Some(policy) = &spec.preemption_policy {
        validate_choice(policy, &["PreemptLowerPriority", "Never"], &path.child("preemptionPolicy"), e);
    }
    if let Some(group) = &spec.scheduling_group {
        let path = path.child("schedulingGroup");
        match &group.pod_group_name {
            None => e.invalid(&path, "", "must specify one of: `podGroupName`"),
            Some(name) => {
                let wrong = names::dns1123_subdomain(name, false);
                names::push_invalid(e, &path.child("podGroupName"), name, &wrong);
            }
        }
    }
    resources::validate_overhead(spec, &path.child("overhead"), e);
    security::validate_os(spec, path, e);
    errors
}

fn validate_resource_claims(claims: &[PodResourceClaim], path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let path = path.index(i);
        let name_path = path.child("name");
        if claim.name.is_empty() {
            errors.required(&name_path, "");
        } else if !seen.insert(claim.name.as_str()) {
            errors.duplicate(&name_path, claim.name.as_str());
        } else {
            names::push_invalid(errors, &name_path, &claim.name, &names::dns1123_label(&claim.name, false));
        }
        match (&claim.resource_claim_name, &claim.resource_claim_template_name) {
            (Some(_), Some(_)) => {
                let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.invalid(&path, json!(claim), detail);
            }
            (None, None) => {
                let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.invalid(&path, json!(claim), detail);
            }
            _ => {}
        }
        let references = [
            ("resourceClaimName", &claim.resource_claim_name),
            ("resourceClaimTemplateName", &claim.resource_claim_template_name),
        ];
        for (field, name) in references {
            if let Some(name) = name {
                names::push_invalid(errors, &path.child(field), name, &names::dns1123_subdomain(name, false));
            }
        }
    }
}
