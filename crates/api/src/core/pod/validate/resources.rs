//! Resource names and amounts of containers, pods and nodes.

use crate::core::pod::resources::{aggregate_container_requests, is_pod_level_resource};
use crate::meta::field::{ErrorList, ErrorType, FieldError, Path};
use crate::meta::names;
use crate::meta::quantity::{Amount, amount_of};
use k8s_openapi::api::core::v1::{PodSpec, ResourceClaim, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeSet;

const HUGEPAGES: &str = "hugepages-";

fn is_hugepages(name: &str) -> bool {
    name.starts_with(HUGEPAGES)
}

/// Whether Kubernetes itself defines the resource.
#[must_use]
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether the resource is one that devices or administrators add, such as `example.com/gpu`.
#[must_use]
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether requests may be below limits.
#[must_use]
pub fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_hugepages(name)
}

/// Counted resources, whose amounts are whole numbers.
const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

/// Adds the errors of a resource's name, and answers whether there are none.
pub(crate) fn validate_name(name: &str, path: &Path, errors: &mut ErrorList) -> bool {
    let bad = names::qualified_name(name);
    names::push_invalid(errors, path, name, &bad);
    if !bad.is_empty() {
        return false;
    }
    let standard = STANDARD.contains(&name)
        || COUNTED.contains(&name)
        || is_hugepages(name)
        || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !standard {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

/// Adds the errors of the name of a resource that a container can have.
pub(crate) fn validate_container_resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    validate_name(name, path, errors);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_hugepages(name) {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

fn validate_pod_resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if validate_name(name, path, errors) && !is_pod_level_resource(name) {
        errors.not_supported(path, name, &["cpu", "hugepages-", "memory"]);
    }
}

/// Adds the errors of an amount: not negative, and whole where the resource is counted.
pub fn validate_quantity(name: &str, quantity: &Quantity, path: &Path, errors: &mut ErrorList) {
    let Ok(amount) = Amount::parse(&quantity.0) else {
        errors.invalid(path, quantity.0.as_str(), crate::meta::quantity::FORMAT_ERROR);
        return;
    };
    if amount.sign() < 0 {
        errors.invalid(path, quantity.0.as_str(), "must be greater than or equal to 0");
    }
    if (COUNTED.contains(&name) || is_extended(name)) && amount.milli_value() % 1000 != 0 {
        errors.invalid(path, quantity.0.as_str(), "must be an integer");
    }
}

fn validate_hugepages(name: &str, quantity: &Quantity, path: &Path, errors: &mut ErrorList) {
    let size = Amount::parse(name.strip_prefix(HUGEPAGES).unwrap_or_default()).ok();
    let amount = Amount::parse(&quantity.0).map(|a| a.value()).unwrap_or(0);
    let divisible = size.is_some_and(|s| s.sign() > 0 && s.is_integer() && amount % s.value() == 0);
    if !divisible {
        errors.invalid(
            path,
            quantity.0.as_str(),
            &format!("{} is not positive integer multiple of {name}", quantity.0),
        );
    }
}

/// Adds the errors of a container's requests and limits.
pub(crate) fn validate_container(
    r: &ResourceRequirements,
    claims: &BTreeSet<&str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    validate(r, validate_container_resource_name, claims, path, errors);
}

fn validate(
    r: &ResourceRequirements,
    name_rule: fn(&str, &Path, &mut ErrorList),
    claims: &BTreeSet<&str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let (mut computed, mut huge) = (false, false);
    for (name, quantity) in r.limits.iter().flatten() {
        let path = limits_path.key(name);
        name_rule(name, &path, errors);
        validate_quantity(name, quantity, &path, errors);
        if is_hugepages(name) {
            huge = true;
            validate_hugepages(name, quantity, &path, errors);
        }
        computed |= matches!(name.as_str(), "cpu" | "memory");
    }
    for (name, quantity) in r.requests.iter().flatten() {
        let path = requests_path.key(name);
        name_rule(name, &path, errors);
        validate_quantity(name, quantity, &path, errors);
        match r.limits.as_ref().and_then(|l| l.get(name)) {
            Some(limit) => {
                let (wanted, most) = (amount_of(r.requests.as_ref(), name), amount_of(r.limits.as_ref(), name));
                if wanted != most && !is_overcommit_allowed(name) {
                    let detail = format!("must be equal to {name} limit of {}", limit.0);
                    errors.invalid(&requests_path, quantity.0.as_str(), &detail);
                } else if wanted > most {
                    let detail = format!("must be less than or equal to {name} limit of {}", limit.0);
                    errors.invalid(&requests_path, quantity.0.as_str(), &detail);
                }
            }
            None if !is_overcommit_allowed(name) => {
                errors.required(&limits_path, "Limit must be set for non overcommitable resources");
            }
            None => {}
        }
        if is_hugepages(name) {
            huge = true;
            validate_hugepages(name, quantity, &path, errors);
        }
        computed |= matches!(name.as_str(), "cpu" | "memory");
    }
    if huge && !computed {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    validate_claims(r.claims.as_deref().unwrap_or_default(), claims, &path.child("claims"), errors);
}

fn validate_claims(used: &[ResourceClaim], known: &BTreeSet<&str>, path: &Path, errors: &mut ErrorList) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (i, claim) in used.iter().enumerate() {
        let path = path.index(i);
        let (name, request) = (claim.name.as_str(), crate::meta::text(&claim.request));
        if name.is_empty() {
            errors.required(&path, "");
            continue;
        }
        if seen.contains(name) {
            errors.duplicate(&path, name);
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                names::push_invalid(errors, &path.child("request"), request, &names::dns1123_label(request, false));
                key = format!("{name}/{request}");
            }
            if seen.contains(&key) {
                errors.duplicate(&path, key.as_str());
            } else if request.is_empty() && seen.iter().any(|k| k.split_once('/').is_some_and(|(n, _)| n == name)) {
                errors.duplicate(&path, name);
            }
            seen.insert(key);
        }
        if !known.contains(name) {
            let among = if known.is_empty() {
                " which is empty".to_owned()
            } else {
                format!(": {}", known.iter().copied().collect::<Vec<_>>().join(", "))
            };
            let body = format!("Not found: {name:?}: must be one of the names in pod.spec.resourceClaims{among}");
            errors.0.push(FieldError { r#type: ErrorType::NotFound, field: path.to_string(), body });
        }
    }
}

/// Adds the errors of the resources of the pod as a whole.
pub(super) fn validate_pod_level(spec: &PodSpec, claims: &BTreeSet<&str>, path: &Path, errors: &mut ErrorList) {
    let Some(r) = &spec.resources else { return };
    if r.claims.is_some() {
        errors.forbidden(&path.child("claims"), "claims cannot be set for Resources at pod-level");
    }
    validate(r, validate_pod_resource_name, claims, path, errors);
    for (name, sum) in aggregate_container_requests(spec) {
        let own = amount_of(r.requests.as_ref(), &name);
        // Only what the pod level can hold is compared; the rest stays with the containers.
        if is_pod_level_resource(&name) && r.requests.is_some() && sum > own {
            let detail = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&path.child("requests").key(&name), own.to_string(), &detail);
        }
    }
    for (i, c) in spec.containers.iter().enumerate() {
        for (name, limit) in c.resources.iter().flat_map(|r| r.limits.iter().flatten()) {
            let Some(most) = r.limits.as_ref().and_then(|l| l.get(name)) else { continue };
            if amount_of(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name)
                > amount_of(r.limits.as_ref(), name)
            {
                let path = path.child("containers").index(i).key(name).child("limits");
                errors.invalid(
                    &path,
                    limit.0.as_str(),
                    &format!("must be less than or equal to pod limits of {}", most.0),
                );
            }
        }
    }
}

/// Adds the errors of a pod's overhead.
pub(super) fn validate_overhead(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    if let Some(overhead) = &spec.overhead {
        let r = ResourceRequirements { limits: Some(overhead.clone()), ..Default::default() };
        validate(&r, validate_container_resource_name, &BTreeSet::new(), path, errors);
    }
}
