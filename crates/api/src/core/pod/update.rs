//! Field errors of pods as they are created and changed, through the pod itself and through its status.

use crate::core::pod::validate::container::validate_image_trimmed;
use crate::core::pod::validate::placement::validate_tolerations;
use crate::core::pod::validate::security::APPARMOR_CONTAINER;
use crate::core::pod::validate::{Options, validate_pod_annotations, validate_pod_spec, validate_profiles_agree};
use crate::core::pod::{MIRROR_ANNOTATION, spec_path};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{differences, immutable, semantically_equal};
use crate::meta::{names, text};
use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerStatus, NodeAffinity, NodeSelectorTerm, Pod, PodExtendedResourceClaimStatus,
    PodResourceClaim, PodSchedulingGate, PodSpec, PodStatus, Toleration,
};
use serde_json::{Value, json};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
    `spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn metadata_path() -> Path {
    Path::new("metadata")
}

/// Field errors of a pod's annotations and spec, on create and on every update.
pub(super) fn validate_metadata_and_spec(pod: &Pod) -> ErrorList {
    let mut errors = ErrorList::default();
    let nothing = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&nothing);
    let path = spec_path();
    validate_pod_annotations(&pod.metadata, spec, &metadata_path().child("annotations"), &mut errors);
    errors.extend(validate_pod_spec(spec, Some(&pod.metadata), &path, Options { is_pod: true }));
    if text(&spec.service_account_name).is_empty() {
        for (i, v) in spec.volumes.iter().flatten().enumerate() {
            let sources = v.projected.iter().flat_map(|p| p.sources.iter().flatten()).enumerate();
            for (j, _) in sources.filter(|(_, s)| s.service_account_token.is_some()) {
                let path = path.child("volumes").index(i).child("projected").child("sources").index(j);
                let detail = "must not be specified when serviceAccountName is not set";
                errors.forbidden(&path.child("serviceAccountToken"), detail);
            }
        }
    }
    for (i, c) in spec.containers.iter().enumerate() {
        validate_image_trimmed(c, &path.child("containers").index(i), &mut errors);
    }
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        validate_image_trimmed(c, &path.child("initContainers").index(i), &mut errors);
    }
    errors
}

/// Field errors of a new pod.
pub(super) fn validate_create(pod: &Pod) -> ErrorList {
    let mut errors = validate_metadata_and_spec(pod);
    let Some(spec) = &pod.spec else { return errors };
    let path = spec_path();
    if spec.ephemeral_containers.as_ref().is_some_and(|e| !e.is_empty()) {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
    let gated = spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
    if gated && !text(&spec.node_name).is_empty() {
        errors.forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    validate_profiles_agree(&pod.metadata, spec, &path, &mut errors);
    errors
}

/// Adds the errors of annotations that stay as the pod was created with them.
pub(super) fn validate_annotation_updates(new: &Pod, old: &Pod, errors: &mut ErrorList) {
    let path = metadata_path().child("annotations");
    let (now, before) =
        (new.metadata.annotations.clone().unwrap_or_default(), old.metadata.annotations.clone().unwrap_or_default());
    let mut report = |key: &str, verb: &str| {
        if key.starts_with(APPARMOR_CONTAINER) {
            errors.forbidden(&path.key(key), &format!("may not {verb} AppArmor annotations"));
        }
        if key == MIRROR_ANNOTATION {
            errors.forbidden(&path.key(key), &format!("may not {verb} mirror pod annotation"));
        }
    };
    for key in before.keys().filter(|k| now.get(*k) != before.get(*k)) {
        report(key, "remove or update");
    }
    for key in now.keys().filter(|k| !before.contains_key(*k)) {
        report(key, "add");
    }
}

/// Field errors of a changed pod.
pub(super) fn validate_update(pod: &Pod, old: &Pod) -> ErrorList {
    let mut errors = validate_metadata_and_spec(pod);
    let e = &mut errors;
    validate_annotation_updates(pod, old, e);
    let (new, old) = (pod.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let path = spec_path();
    let init = (new.init_containers.as_deref().unwrap_or_default(), old.init_containers.as_deref().unwrap_or_default());
    if !validate_container_updates(&new.containers, &old.containers, &path.child("containers"), e)
        || !validate_container_updates(init.0, init.1, &path.child("initContainers"), e)
        || !validate_deadline(
            new.active_deadline_seconds,
            old.active_deadline_seconds,
            &path.child("activeDeadlineSeconds"),
            e,
        )
    {
        return errors;
    }
    let (tolerations, old_tolerations) =
        (new.tolerations.as_deref().unwrap_or_default(), old.tolerations.as_deref().unwrap_or_default());
    validate_added_tolerations(tolerations, old_tolerations, &path.child("tolerations"), e);
    let (gates, old_gates) =
        (new.scheduling_gates.as_deref().unwrap_or_default(), old.scheduling_gates.as_deref().unwrap_or_default());
    validate_deleted_gates(gates, old_gates, &path.child("schedulingGates"), e);
    if semantically_equal(&new, &old) {
        return errors;
    }
    let expected = with_updatable_fields_of(&new, &old, &path, e);
    if !semantically_equal(&expected, &old) {
        let detail = format!(
            "pod updates may not change fields other than {UPDATABLE}\n{}",
            differences(&json!(old), &json!(expected), "spec")
        );
        e.forbidden(&path, &detail);
    }
    errors
}

/// Adds the errors of a changed list of containers; false where the lists cannot be compared further.
fn validate_container_updates(new: &[Container], old: &[Container], path: &Path, errors: &mut ErrorList) -> bool {
    if new.len() != old.len() {
        errors.forbidden(path, "pod updates may not add or remove containers");
        return false;
    }
    for (i, c) in new.iter().enumerate() {
        if text(&c.image).is_empty() {
            errors.required(&path.index(i).child("image"), "");
        }
        validate_image_trimmed(c, &path.index(i), errors);
    }
    true
}

fn validate_deadline(new: Option<i64>, old: Option<i64>, path: &Path, errors: &mut ErrorList) -> bool {
    match (new, old) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            errors.invalid(path, n, &names::inclusive_range_error(0, i64::from(i32::MAX)));
            false
        }
        (Some(n), Some(o)) if o < n => {
            errors.invalid(path, n, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            errors.invalid(path, Value::Null, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

fn validate_added_tolerations(new: &[Toleration], old: &[Toleration], path: &Path, errors: &mut ErrorList) {
    let kept =
        |o: &Toleration| new.iter().any(|n| *n == Toleration { toleration_seconds: n.toleration_seconds, ..o.clone() });
    if !old.iter().all(kept) {
        return errors.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
    }
    validate_tolerations(new, path, errors);
}

fn validate_deleted_gates(new: &[PodSchedulingGate], old: &[PodSchedulingGate], path: &Path, errors: &mut ErrorList) {
    for (i, gate) in new.iter().enumerate().filter(|(_, g)| !old.contains(g)) {
        let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
        errors.forbidden(&path.index(i).child("name"), &detail);
    }
}

/// The new spec with everything that may change put back to what it was.
fn with_updatable_fields_of(new: &PodSpec, old: &PodSpec, path: &Path, errors: &mut ErrorList) -> PodSpec {
    let mut spec = new.clone();
    for (c, o) in spec.containers.iter_mut().zip(&old.containers) {
        c.image = o.image.clone();
    }
    for (c, o) in spec.init_containers.iter_mut().flatten().zip(old.init_containers.iter().flatten()) {
        c.image = o.image.clone();
    }
    spec.active_deadline_seconds = old.active_deadline_seconds;
    spec.scheduling_gates = old.scheduling_gates.clone();
    spec.tolerations = old.tolerations.clone();
    if old.termination_grace_period_seconds.is_some_and(|s| s < 0) && spec.termination_grace_period_seconds == Some(1) {
        spec.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if old.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()) {
        allow_narrowing(&mut spec, old, path, errors);
    }
    spec
}

/// A gated pod may still be told more about where it should not go.
fn allow_narrowing(spec: &mut PodSpec, old: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let (new_selector, old_selector) =
        (spec.node_selector.clone().unwrap_or_default(), old.node_selector.clone().unwrap_or_default());
    if old_selector.iter().any(|(k, v)| new_selector.get(k) != Some(v)) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid(&path.child("nodeSelector"), json!(new_selector), detail);
    }
    spec.node_selector = old.node_selector.clone();
    let old_affinity = old.affinity.as_ref().and_then(|a| a.node_affinity.clone());
    let new_affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.clone());
    if old_affinity == new_affinity {
        return;
    }
    validate_affinity_narrowed(
        new_affinity.as_ref(),
        old_affinity.as_ref(),
        &path.child("affinity").child("nodeAffinity"),
        errors,
    );
    let mut affinity = spec.affinity.take().unwrap_or_default();
    affinity.node_affinity = old_affinity;
    spec.affinity = (affinity != Affinity::default() || old.affinity.is_some()).then_some(affinity);
}

fn required_terms(affinity: Option<&NodeAffinity>) -> &[NodeSelectorTerm] {
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.map(|s| s.node_selector_terms.as_slice()).unwrap_or_default()
}

fn validate_affinity_narrowed(
    new: Option<&NodeAffinity>,
    old: Option<&NodeAffinity>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let (terms, old_terms) = (required_terms(new), required_terms(old));
    let path = path.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
    if old_terms.is_empty() {
        return;
    }
    if old_terms.len() != terms.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return errors.invalid(&path, json!(terms), detail);
    }
    for (i, (term, old)) in terms.iter().zip(old_terms).enumerate() {
        let lists = [(&term.match_expressions, &old.match_expressions), (&term.match_fields, &old.match_fields)];
        let slices = lists.map(|(n, o)| (n.as_deref().unwrap_or_default(), o.as_deref().unwrap_or_default()));
        let was_empty = slices.iter().all(|(_, o)| o.is_empty());
        let grew = slices.iter().any(|(n, _)| !n.is_empty());
        if (was_empty && grew) || slices.iter().any(|(n, o)| !n.starts_with(o)) {
            errors.invalid(&path.index(i), json!(term), "only additions are allowed (no mutations or deletions)");
        }
    }
}

/// Field errors of a changed pod status.
pub(super) fn validate_status_update(pod: &Pod, old: &Pod) -> ErrorList {
    let mut errors = ErrorList::default();
    let e = &mut errors;
    validate_annotation_updates(pod, old, e);
    let (status, before) = (pod.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    let spec = old.spec.clone().unwrap_or_default();
    let conditions = metadata_path().child("conditions");
    for (i, c) in status.conditions.iter().flatten().enumerate() {
        if !matches!(c.type_.as_str(), "PodScheduled" | "Ready" | "Initialized") {
            names::push_invalid(e, &conditions.index(i).child("Type"), &c.type_, &names::qualified_name(&c.type_));
        }
    }
    let path = Path::new("status");
    let nominated = text(&status.nominated_node_name);
    if nominated != text(&before.nominated_node_name) && !nominated.is_empty() {
        let path = path.child("nominatedNodeName");
        names::push_invalid(e, &path, nominated, &names::dns1123_subdomain(nominated, false));
    }
    immutable(e, &path.child("qosClass"), &json!(text(&status.qos_class)), &json!(text(&before.qos_class)));
    let sidecar = |name: &str| {
        let found = spec.init_containers.iter().flatten().find(|c| c.name == name);
        found.is_some_and(super::resources::is_sidecar)
    };
    let policy = text(&spec.restart_policy);
    let groups: [(&str, &Statuses, &Statuses, &str); 3] = [
        ("containerStatuses", &status.container_statuses, &before.container_statuses, policy),
        ("initContainerStatuses", &status.init_container_statuses, &before.init_container_statuses, policy),
        (
            "ephemeralContainerStatuses",
            &status.ephemeral_container_statuses,
            &before.ephemeral_container_statuses,
            "Never",
        ),
    ];
    for (field, new, old, policy) in groups {
        let exempt = |name: &str| field == "initContainerStatuses" && sidecar(name);
        let restarts = |name: &str| may_restart_by_own_rule(&spec, name);
        validate_transitions(new, old, policy, &|n| exempt(n) || restarts(n), &path.child(field), e);
    }
    let claims = spec.resource_claims.as_deref().unwrap_or_default();
    validate_claims(&status, claims, &path.child("resourceClaimStatuses"), e);
    if let Some(noted) = &status.extended_resource_claim_status {
        validate_extended_claim(noted, &spec, &path.child("extendedResourceClaimStatus"), e);
    }
    validate_addresses(&status, &path, e);
    errors
}

/// What is noted of claims is about claims of the pod.
fn validate_claims(status: &PodStatus, claims: &[PodResourceClaim], path: &Path, errors: &mut ErrorList) {
    let noted = status.resource_claim_statuses.as_deref().unwrap_or_default();
    for (i, s) in noted.iter().enumerate() {
        let path = path.index(i).child("name");
        if claims.iter().all(|c| c.name != s.name) {
            errors.invalid(&path, s.name.as_str(), "must match the name of an entry in `spec.resourceClaims`");
        }
        if noted[..i].iter().any(|before| before.name == s.name) {
            errors.duplicate(&path, s.name.as_str());
        }
        if let Some(claim) = &s.resource_claim_name {
            names::push_invalid(errors, &path, claim, &names::dns1123_subdomain(claim, false));
        }
    }
}

/// What is noted of the claim made for extended resources is about containers of the pod and what they ask for.
fn validate_extended_claim(
    noted: &PodExtendedResourceClaimStatus,
    spec: &PodSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mappings = path.child("requestMappings");
    if noted.request_mappings.is_empty() {
        errors.required(&mappings, "at least one request mapping is required");
    }
    for (i, m) in noted.request_mappings.iter().enumerate() {
        let at = mappings.index(i);
        let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        match containers.find(|c| c.name == m.container_name) {
            None => errors.invalid(
                &at.child("containerName"),
                m.container_name.as_str(),
                "must match the name of an entry in spec.initContainers.name or spec.containers.name",
            ),
            Some(c) => {
                let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
                if !requests.is_some_and(|r| r.contains_key(&m.resource_name)) {
                    errors.invalid(
                        &at.child("resourceName"),
                        m.resource_name.as_str(),
                        "must match the extended resource name of an entry in spec.initContainers.resources.requests or \
                         spec.containers.resources.requests",
                    );
                }
            }
        }
        // Upstream names the field without its place in the list.
        let (request, field) = (m.request_name.as_str(), path.child("requestName"));
        names::push_invalid(errors, &field, request, &names::dns1123_label(request, false));
        if noted.request_mappings[..i].contains(m) {
            errors.duplicate(&at.child("containerName"), m.container_name.as_str());
            errors.duplicate(&at.child("resourceName"), m.resource_name.as_str());
            errors.duplicate(&at.child("requestName"), m.request_name.as_str());
        }
    }
    let (claim, field) = (noted.resource_claim_name.as_str(), path.child("resourceClaimName"));
    if claim.is_empty() {
        errors.required(&field, "");
    } else {
        names::push_invalid(errors, &field, claim, &names::dns1123_subdomain(claim, false));
    }
}

type Statuses = Option<Vec<ContainerStatus>>;

/// Whether the container has a restart policy or rules of its own.
fn may_restart_by_own_rule(spec: &PodSpec, name: &str) -> bool {
    let own = |c: &&Container| c.name == name;
    let found = spec.containers.iter().find(own).or_else(|| spec.init_containers.iter().flatten().find(own));
    found.is_some_and(|c| c.restart_policy.is_some() || c.restart_policy_rules.as_ref().is_some_and(|r| !r.is_empty()))
}

/// A container that ended and is not to be restarted stays ended.
fn validate_transitions(
    new: &Statuses,
    old: &Statuses,
    policy: &str,
    exempt: &dyn Fn(&str) -> bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    if policy == "Always" {
        return;
    }
    for (i, before) in old.iter().flatten().enumerate() {
        let Some(ended) = before.state.as_ref().and_then(|s| s.terminated.as_ref()) else { continue };
        if (ended.exit_code != 0 && policy == "OnFailure") || exempt(&before.name) {
            continue;
        }
        let now = new.iter().flatten().filter(|s| s.name == before.name);
        for _ in now.filter(|s| s.state.as_ref().is_none_or(|s| s.terminated.is_none())) {
            errors.forbidden(&path.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

fn validate_addresses(status: &PodStatus, path: &Path, errors: &mut ErrorList) {
    let pod: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    let host: Vec<&str> = status.host_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if let Some(first) = host.first().filter(|ip| **ip != text(&status.host_ip)) {
        errors.invalid(&path.child("hostIPs").index(0).child("ip"), *first, "must be equal to `hostIP`");
    }
    for (field, ips) in [("podIPs", pod), ("hostIPs", host)] {
        let path = path.child(field);
        for (i, ip) in ips.iter().enumerate() {
            names::push_invalid(errors, &path.index(i), ip, &names::ip_address(ip));
        }
        if ips.len() < 2 {
            continue;
        }
        let v6 = |ip: &&str| names::parse_ip(ip).is_some_and(|ip| ip.is_ipv6());
        let dual = ips.iter().any(v6) && ips.iter().any(|ip| !v6(ip));
        let shown: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        if !dual || ips.len() > 2 {
            errors.invalid(&path, json!(shown), "may specify no more than one IP for each IP family");
        }
        for (i, _) in ips.iter().enumerate().filter(|(i, ip)| ips[..*i].contains(ip)) {
            errors.duplicate(&path.index(i), shown[i].clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pod::default_pod;
    use crate::kind::Kind;

    fn pod(spec: Value) -> Pod {
        let mut full = json!({"containers": [{"name": "c", "image": "i:1"}]});
        for (k, v) in spec.as_object().unwrap() {
            full[k] = v.clone();
        }
        let mut p = <Pod as Kind>::from_value(json!({"metadata": {"name": "p"}, "spec": full})).unwrap();
        default_pod(&mut p);
        p
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn claims_noted_in_the_status() {
        let old = pod(json!({"resourceClaims": [{"name": "a", "resourceClaimTemplateName": "t"}]}));
        let mut new = old.clone();
        let noted = json!([{"name": "a", "resourceClaimName": "p-a-x"}, {"name": "a", "resourceClaimName": "p_a"},
            {"name": "b"}]);
        new.status.get_or_insert_default().resource_claim_statuses = serde_json::from_value(noted).unwrap();
        let found = texts(&validate_status_update(&new, &old));
        assert_eq!(found[0], "status.resourceClaimStatuses[1].name: Duplicate value: \"a\"");
        assert!(found[1].starts_with("status.resourceClaimStatuses[1].name: Invalid value: \"p_a\": a lowercase RFC"));
        assert_eq!(
            found[2],
            "status.resourceClaimStatuses[2].name: Invalid value: \"b\": must match the name of an entry in \
             `spec.resourceClaims`"
        );
    }

    #[test]
    fn the_claim_for_extended_resources_noted_in_the_status() {
        let requests = json!({"example.com/gpu": "1"});
        let old = pod(json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}]}));
        let told = |noted: Value| {
            let mut new = old.clone();
            new.status.get_or_insert_default().extended_resource_claim_status = serde_json::from_value(noted).unwrap();
            texts(&validate_status_update(&new, &old))
        };
        let mapping = |container: &str, resource: &str, request: &str| json!({"containerName": container, "resourceName": resource, "requestName": request});
        let right = mapping("c", "example.com/gpu", "container-0-request-0");
        let noted = |name: &str, mappings: &[Value]| json!({"resourceClaimName": name, "requestMappings": mappings});
        assert_eq!(told(noted("p-x", std::slice::from_ref(&right))), Vec::<String>::new());
        let path = "status.extendedResourceClaimStatus";
        assert_eq!(
            told(noted("", &[])),
            [
                format!("{path}.requestMappings: Required value: at least one request mapping is required"),
                format!("{path}.resourceClaimName: Required value"),
            ]
        );
        let found = told(noted("p-x", &[right.clone(), right, mapping("c", "cpu", "r"), mapping("d", "cpu", "r")]));
        assert_eq!(found[0], format!("{path}.requestMappings[1].containerName: Duplicate value: \"c\""));
        assert!(found[3].starts_with(&format!(
            "{path}.requestMappings[2].resourceName: Invalid value: \"cpu\": must match the extended resource name"
        )));
        assert!(found[4].starts_with(&format!(
            "{path}.requestMappings[3].containerName: Invalid value: \"d\": must match the name of an entry"
        )));
        assert_eq!(found.len(), 5);
    }

    #[test]
    fn what_may_change() {
        let t = |key: &str| json!({"key": key, "operator": "Exists"});
        let cases: Vec<(Value, Value, Vec<&str>)> = vec![
            (
                json!({}),
                json!({"containers": [{"name": "c", "image": "i:2", "imagePullPolicy": "IfNotPresent"}]}),
                vec![],
            ),
            (json!({}), json!({"activeDeadlineSeconds": 5}), vec![]),
            (
                json!({"activeDeadlineSeconds": 5}),
                json!({"activeDeadlineSeconds": 6}),
                vec!["spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value"],
            ),
            (
                json!({"activeDeadlineSeconds": 5}),
                json!({}),
                vec![
                    "spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive integer to nil value",
                ],
            ),
            (json!({"tolerations": [t("a")]}), json!({"tolerations": [t("a"), t("b")]}), vec![]),
            (
                json!({"tolerations": [t("a")]}),
                json!({"tolerations": [t("b")]}),
                vec![
                    "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
                ],
            ),
            (json!({"schedulingGates": [{"name": "a"}]}), json!({}), vec![]),
            (
                json!({}),
                json!({"schedulingGates": [{"name": "a"}]}),
                vec![
                    "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'a'",
                ],
            ),
            (
                json!({}),
                json!({"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]}),
                vec!["spec.containers: Forbidden: pod updates may not add or remove containers"],
            ),
            (
                json!({"schedulingGates": [{"name": "a"}]}),
                json!({"schedulingGates": [{"name": "a"}], "nodeSelector": {"k": "v"}}),
                vec![],
            ),
            (
                json!({"schedulingGates": [{"name": "a"}], "nodeSelector": {"k": "v"}}),
                json!({"schedulingGates": [{"name": "a"}], "nodeSelector": {"k": "w"}}),
                vec![
                    "spec.nodeSelector: Invalid value: {\"k\":\"w\"}: only additions to spec.nodeSelector are allowed (no mutations or \
                 deletions)",
                ],
            ),
            (json!({"terminationGracePeriodSeconds": -1}), json!({"terminationGracePeriodSeconds": 1}), vec![]),
            (json!({}), json!({"tolerations": []}), vec![]),
        ];
        for (old, new, want) in cases {
            assert_eq!(texts(&validate_update(&pod(new.clone()), &pod(old.clone()))), want, "{old} to {new}");
        }
    }

    #[test]
    fn other_fields_stay() {
        let errors = validate_update(&pod(json!({"hostname": "b"})), &pod(json!({"hostname": "a"})));
        assert_eq!(
            texts(&errors),
            [
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n\
             - spec.hostname: \"a\"\n+ spec.hostname: \"b\""
            ]
        );
    }

    #[test]
    fn creation() {
        let cases = [
            (
                json!({"ephemeralContainers": [{"name": "e", "image": "i"}]}),
                "spec.ephemeralContainers: Forbidden: cannot be set on create",
            ),
            (
                json!({"nodeName": "n", "schedulingGates": [{"name": "a"}]}),
                "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
            ),
            (
                json!({"containers": [{"name": "c", "image": " i"}]}),
                "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
            ),
            (
                json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
                "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is \
                 not set",
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(texts(&validate_create(&pod(spec))), [want]);
        }
    }

    #[test]
    fn status() {
        let with = |policy: &str, status: Value| {
            let mut p = pod(json!({"restartPolicy": policy}));
            p.status = serde_json::from_value(status).unwrap();
            p
        };
        let ended =
            |code: i32| json!({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": code}}}]});
        let running = json!({"containerStatuses": [{"name": "c", "state": {"running": {}}}]});
        let error = "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
        let cases =
            [("Always", 0, vec![]), ("OnFailure", 1, vec![]), ("OnFailure", 0, vec![error]), ("Never", 1, vec![error])];
        for (policy, code, want) in cases {
            let errors = validate_status_update(&with(policy, running.clone()), &with(policy, ended(code)));
            assert_eq!(texts(&errors), want, "{policy} {code}");
        }
        let addresses =
            with("Always", json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "qosClass": "Burstable"}));
        assert_eq!(
            texts(&validate_status_update(&addresses, &with("Always", json!({"qosClass": "BestEffort"})))),
            [
                "status.qosClass: Invalid value: \"Burstable\": field is immutable",
                "status.podIPs: Invalid value: [{\"ip\":\"10.0.0.1\"},{\"ip\":\"10.0.0.2\"}]: may specify no more than one IP for each IP \
             family",
            ]
        );
    }
}
