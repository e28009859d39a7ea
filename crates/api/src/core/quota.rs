//! What objects use of their namespace's quotas: the arithmetic that admission, which charges, and the controller, which
//! counts anew, must agree on.

use crate::core::pod::qos::qos_class;
use crate::core::pod::resources::{Amounts, amounts, pod_limits, pod_requests};
use crate::core::pod::validate::resources::is_extended;
use crate::core::quota_of_devices::is_extended_name;
use crate::kind::{Object, downcast};
use crate::meta::object::Meta;
use crate::meta::quantity::{Amount, Format, ResourceList, amount_of};
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, PodAffinityTerm, ResourceQuota, ScopedResourceSelectorRequirement, Service,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

const POD: &[&str] = &[
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
const SERVICE: &[&str] = &["count/services", "services", "services.nodeports", "services.loadbalancers"];
const CLAIM: &[&str] = &["count/persistentvolumeclaims", "persistentvolumeclaims", "requests.storage"];
/// A claim counts for its class under `CLASS.storageclass.storage.k8s.io/RESOURCE`.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";
/// A claim of devices counts for the classes it asks for under `CLASS.deviceclass.resource.k8s.io/devices`.
pub(super) const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// What a pod asks for is bounded under this prefix.
pub(super) const REQUESTS: &str = "requests.";
/// The extended resource that a class of devices stands for without saying so.
pub(super) const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// The most devices that a request for all there are can get.
const DEVICES_MAX: i64 = 32;
/// Core kinds whose number has a name older than `count/`.
const ALIASES: &[&str] = &["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];
/// Where a quota bounds one of these, every container must say how much it wants of it.
const MUST_BE_SAID: &[&str] = &["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
/// Older form of a claim's class.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// The name under which a quota bounds the number of objects of a resource: `count/pods`, `count/deployments.apps`.
#[must_use]
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// Whether a bounded resource of this name is used by objects of the resource.
#[must_use]
pub fn concerns(group: &str, plural: &str, name: &str) -> bool {
    match (group, plural) {
        ("", "pods") => {
            let extended = is_extended_name(name);
            let pages = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
            POD.contains(&name) || pages || extended
        }
        ("", "services") => SERVICE.contains(&name),
        ("", "persistentvolumeclaims") => {
            let of_class = |r: &str| name.strip_suffix(r).is_some_and(|n| n.ends_with(OF_CLASS));
            CLAIM.contains(&name) || CLAIM[1..].iter().any(|r| of_class(r))
        }
        ("resource.k8s.io", "resourceclaims") => name == count_name(group, plural) || name.ends_with(DEVICES),
        ("", alias) if ALIASES.contains(&alias) && name == alias => true,
        _ => name == count_name(group, plural),
    }
}

/// The selectors of a quota: its scopes, and its scope selector.
#[must_use]
pub fn selectors(quota: &ResourceQuota) -> Vec<ScopedResourceSelectorRequirement> {
    let Some(spec) = &quota.spec else { return Vec::new() };
    let exists = |scope: &String| ScopedResourceSelectorRequirement {
        scope_name: scope.clone(),
        operator: "Exists".into(),
        values: None,
    };
    let mut all: Vec<_> = spec.scopes.iter().flatten().map(exists).collect();
    all.extend(spec.scope_selector.iter().flat_map(|s| s.match_expressions.clone().unwrap_or_default()));
    all
}

/// Whether the object is among those that the quota's scopes are about.
#[must_use]
pub fn in_scope(quota: &ResourceQuota, object: &dyn Object) -> bool {
    selectors(quota).iter().all(|selector| selects(selector, object))
}

/// Whether a scope is about the object.
#[must_use]
pub fn selects(selector: &ScopedResourceSelectorRequirement, object: &dyn Object) -> bool {
    if let Some(pod) = downcast::<Pod>(object) {
        pod_in_scope(pod, selector)
    } else if let Some(claim) = downcast::<PersistentVolumeClaim>(object) {
        selector.scope_name == "VolumeAttributesClass" && holds(selector, &attribute_classes(claim))
    } else {
        false
    }
}

/// Whether one of the values, of which there may be none, is what the selector asks for.
fn holds(selector: &ScopedResourceSelectorRequirement, have: &BTreeSet<&str>) -> bool {
    let wanted = selector.values.as_deref().unwrap_or_default();
    match selector.operator.as_str() {
        "Exists" => !have.is_empty(),
        "DoesNotExist" => have.is_empty(),
        "In" => have.iter().any(|v| wanted.iter().any(|w| w == v)),
        "NotIn" => have.is_empty() || have.iter().any(|v| !wanted.iter().any(|w| w == v)),
        _ => false,
    }
}

/// VolumeAttributesClasses that the claim has, had or is being given.
#[must_use]
pub fn attribute_classes(claim: &PersistentVolumeClaim) -> BTreeSet<&str> {
    let status = claim.status.as_ref();
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    let current = status.and_then(|s| s.current_volume_attributes_class_name.as_deref());
    let target = status
        .and_then(|s| s.modify_volume_status.as_ref())
        .and_then(|m| m.target_volume_attributes_class_name.as_deref());
    [wanted, current, target].into_iter().flatten().filter(|c| !c.is_empty()).collect()
}

fn pod_in_scope(pod: &Pod, selector: &ScopedResourceSelectorRequirement) -> bool {
    let best_effort = || pod.spec.as_ref().is_none_or(|s| qos_class(s) == "BestEffort");
    match selector.scope_name.as_str() {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref());
            holds(selector, &class.into_iter().filter(|c| !c.is_empty()).collect())
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

/// Whether the pod ends by itself: it has a deadline.
#[must_use]
pub fn is_terminating(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.active_deadline_seconds).is_some_and(|s| s >= 0)
}

fn crosses_namespaces(pod: &Pod) -> bool {
    let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else { return false };
    let crosses =
        |t: &PodAffinityTerm| t.namespaces.iter().flatten().next().is_some() || t.namespace_selector.is_some();
    let with = affinity.pod_affinity.iter().any(|a| {
        a.required_during_scheduling_ignored_during_execution.iter().flatten().any(crosses)
            || a.preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
                .any(|w| crosses(&w.pod_affinity_term))
    });
    let without = || {
        affinity.pod_anti_affinity.iter().any(|a| {
            a.required_during_scheduling_ignored_during_execution.iter().flatten().any(crosses)
                || a.preferred_during_scheduling_ignored_during_execution
                    .iter()
                    .flatten()
                    .any(|w| crosses(&w.pod_affinity_term))
        })
    };
    with || without()
}

/// Whether the pod still counts beyond its mere existence: it has not ended, and is not long past its deletion.
#[must_use]
pub fn pod_counts(pod: &Pod, now: Timestamp) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return false;
    }
    let meta = &pod.metadata;
    let (Some(deletion), Some(grace)) = (&meta.deletion_timestamp, meta.deletion_grace_period_seconds) else {
        return true;
    };
    deletion.0.saturating_add(SignedDuration::from_secs(grace)).is_ok_and(|end| now <= end)
}

fn one() -> Amount {
    Amount::from_units(1, Format::DecimalSI)
}

/// What an object of the resource uses.
#[must_use]
pub fn usage(group: &str, plural: &str, object: &dyn Object, now: Timestamp) -> Amounts {
    let mut used = Amounts::from([(count_name(group, plural), one())]);
    if let Some(pod) = downcast::<Pod>(object) {
        if pod_counts(pod, now)
            && let Some(spec) = &pod.spec
        {
            used.extend(compute(&pod_requests(spec), &pod_limits(spec)));
        }
    } else if let Some(service) = downcast::<Service>(object) {
        service_usage(service, &mut used);
    } else if let Some(claim) = downcast::<PersistentVolumeClaim>(object) {
        claim_usage(claim, &mut used);
    } else if let Some(claim) = downcast::<ResourceClaim>(object) {
        device_usage(claim, &mut used);
    } else if group.is_empty() && ALIASES.contains(&plural) {
        used.insert(plural.to_owned(), one());
    }
    used
}

/// Requests and limits under the names that quotas bound them by.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), one())]);
    for (name, amount) in requests {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            used.insert(name.clone(), *amount);
            used.insert(format!("requests.{name}"), *amount);
        } else if is_extended(name) || name.starts_with(IMPLICIT) {
            used.insert(format!("{REQUESTS}{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

fn service_usage(service: &Service, used: &mut Amounts) {
    let spec = service.spec.as_ref();
    let kind = spec.and_then(|s| s.type_.as_deref()).unwrap_or_default();
    let ports = spec.and_then(|s| s.ports.as_ref()).map_or(0, Vec::len);
    let ports = Amount::from_units(i64::try_from(ports).unwrap_or(i64::MAX), Format::DecimalSI);
    let balanced = kind == "LoadBalancer";
    // A balancer that needs no node ports still is counted with them.
    let node_ports = if balanced || kind == "NodePort" { ports } else { Amount::ZERO };
    used.insert("services".into(), one());
    used.insert("services.nodeports".into(), node_ports);
    used.insert("services.loadbalancers".into(), if balanced { one() } else { Amount::ZERO });
}

fn claim_usage(claim: &PersistentVolumeClaim, used: &mut Amounts) {
    let spec = claim.spec.as_ref();
    let class = claim.metadata.annotation(CLASS_ANNOTATION).or(spec.and_then(|s| s.storage_class_name.as_deref()));
    let class = class.filter(|c| !c.is_empty());
    let mut put = |name: &str, amount: Amount| {
        used.insert(name.to_owned(), amount);
        if let Some(class) = class {
            used.insert(format!("{class}{OF_CLASS}{name}"), amount);
        }
    };
    put("persistentvolumeclaims", one());
    let requests = spec.and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    if requests.is_some_and(|r| r.contains_key("storage")) {
        let allocated = claim.status.as_ref().and_then(|s| s.allocated_resources.as_ref());
        let amount = amount_of(requests, "storage").max(amount_of(allocated, "storage"));
        // Bytes are whole.
        put("requests.storage", Amount::from_units(amount.value(), amount.format()));
    }
}

/// The devices a claim may take of each class; of alternatives those that take the most.
fn device_usage(claim: &ResourceClaim, used: &mut Amounts) {
    let devices = |mode: &Option<String>, count: Option<i64>| match mode.as_deref() {
        Some("ExactCount") => count.unwrap_or_default(),
        Some("All") => DEVICES_MAX,
        _ => 0,
    };
    let requests = claim.spec.as_ref().and_then(|s| s.devices.as_ref()?.requests.as_deref()).unwrap_or_default();
    for request in requests {
        let mut most: BTreeMap<&str, i64> = BTreeMap::new();
        if let Some(x) = &request.exactly {
            most.insert(&x.device_class_name, devices(&x.allocation_mode, x.count));
        }
        for s in request.first_available.iter().flatten() {
            let most = most.entry(&s.device_class_name).or_default();
            *most = devices(&s.allocation_mode, s.count).max(*most);
        }
        for (class, count) in most {
            let sum = used.entry(format!("{class}{DEVICES}")).or_insert(Amount::ZERO);
            *sum = sum.plus(&Amount::from_units(count, Format::DecimalSI));
        }
    }
}

/// Refuses a pod that does not say for each container how much it wants of what the quota bounds.
///
/// # Errors
/// What is missing where, as the client is to read it.
pub fn constraints<'a>(bounded: impl Iterator<Item = &'a String>, object: &dyn Object) -> Result<(), String> {
    let Some(spec) = downcast::<Pod>(object).and_then(|p| p.spec.as_ref()) else { return Ok(()) };
    let said = |l: Option<&ResourceList>| l.is_some_and(|l| !l.is_empty());
    if spec.resources.as_ref().is_some_and(|r| said(r.requests.as_ref()) || said(r.limits.as_ref())) {
        return Ok(());
    }
    let required: BTreeSet<&String> = bounded.filter(|n| MUST_BE_SAID.contains(&n.as_str())).collect();
    let mut missing: BTreeMap<&String, BTreeSet<&str>> = BTreeMap::new();
    for c in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let said = said_by(c);
        for name in required.iter().filter(|n| !said.contains_key(**n)) {
            missing.entry(name).or_default().insert(&c.name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(",");
    let texts: Vec<String> = missing.iter().map(|(name, of)| format!("{name} for: {}", list(of))).collect();
    Err(format!("must specify {}", texts.join("; ")))
}

fn said_by(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    compute(&amounts(resources.and_then(|r| r.requests.as_ref())), &amounts(resources.and_then(|r| r.limits.as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        <Pod as Kind>::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn shown(used: &Amounts) -> Vec<String> {
        used.iter().map(|(k, a)| format!("{k}={a}")).collect()
    }

    #[test]
    fn a_pod_uses_what_it_asks_for() {
        let resources = json!({"requests": {"cpu": "100m", "memory": "1Mi", "x.y/gpu": "2"}, "limits": {"cpu": "1"}});
        let mut p = pod(json!({"containers": [{"name": "c", "resources": resources}]}));
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(
            shown(&usage("", "pods", &p, now)),
            [
                "count/pods=1",
                "cpu=100m",
                "limits.cpu=1",
                "memory=1Mi",
                "pods=1",
                "requests.cpu=100m",
                "requests.memory=1Mi",
                "requests.x.y/gpu=2"
            ]
        );
        p.status.get_or_insert_default().phase = Some("Succeeded".into());
        assert_eq!(shown(&usage("", "pods", &p, now)), ["count/pods=1"]);
    }

    #[test]
    fn services_and_claims() {
        let service = <Service as Kind>::from_value(
            json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}),
        )
        .unwrap();
        assert_eq!(
            shown(&usage("", "services", &service, Timestamp::UNIX_EPOCH)),
            ["count/services=1", "services=1", "services.loadbalancers=1", "services.nodeports=2"]
        );
        let claim = <PersistentVolumeClaim as Kind>::from_value(json!({"metadata": {"name": "c"}, "spec": {
            "storageClassName": "gold", "resources": {"requests": {"storage": "1.5Gi"}}}}))
        .unwrap();
        assert_eq!(
            shown(&usage("", "persistentvolumeclaims", &claim, Timestamp::UNIX_EPOCH)),
            [
                "count/persistentvolumeclaims=1",
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                "gold.storageclass.storage.k8s.io/requests.storage=1536Mi",
                "persistentvolumeclaims=1",
                "requests.storage=1536Mi"
            ]
        );
        let gold = "gold.storageclass.storage.k8s.io/requests.storage";
        assert!(concerns("", "persistentvolumeclaims", gold) && !concerns("", "pods", gold));
    }

    #[test]
    fn claims_of_devices() {
        let claim =
            <ResourceClaim as Kind>::from_value(json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
            {"name": "b", "exactly": {"deviceClassName": "nic", "allocationMode": "All"}},
            {"name": "c", "firstAvailable": [
                {"name": "x", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1},
                {"name": "y", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 4}]}]}}}))
            .unwrap();
        assert_eq!(
            shown(&usage("resource.k8s.io", "resourceclaims", &claim, Timestamp::UNIX_EPOCH)),
            [
                "count/resourceclaims.resource.k8s.io=1",
                "gpu.deviceclass.resource.k8s.io/devices=6",
                "nic.deviceclass.resource.k8s.io/devices=32"
            ]
        );
    }

    #[test]
    fn names_find_their_resources() {
        let cases = [
            ("", "pods", "requests.cpu", true),
            ("", "pods", "requests.storage", false),
            ("", "pods", "requests.example.com/gpu", true),
            ("", "pods", "requests.deviceclass.resource.kubernetes.io/gpu", true),
            ("", "pods", "count/pods", true),
            ("", "secrets", "secrets", true),
            ("", "secrets", "count/secrets", true),
            ("apps", "deployments", "count/deployments.apps", true),
            ("apps", "deployments", "deployments", false),
            ("resource.k8s.io", "resourceclaims", "count/resourceclaims.resource.k8s.io", true),
            ("resource.k8s.io", "resourceclaims", "gpu.deviceclass.resource.k8s.io/devices", true),
            ("resource.k8s.io", "resourceclaimtemplates", "gpu.deviceclass.resource.k8s.io/devices", false),
        ];
        for (group, plural, name, want) in cases {
            assert_eq!(concerns(group, plural, name), want, "{plural} {name}");
        }
    }

    #[test]
    fn scopes_select_pods() {
        let quota = |spec: Value| {
            <ResourceQuota as Kind>::from_value(json!({"metadata": {"name": "q"}, "spec": spec})).unwrap()
        };
        let plain = pod(json!({"containers": [{"name": "c"}]}));
        let ending =
            pod(json!({"containers": [{"name": "c"}], "activeDeadlineSeconds": 5, "priorityClassName": "high"}));
        let class = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}})
        };
        let cases = [
            (json!({}), true, true),
            (json!({"scopes": ["Terminating"]}), false, true),
            (json!({"scopes": ["NotTerminating", "BestEffort"]}), true, false),
            (json!({"scopes": ["NotBestEffort"]}), false, false),
            (class("In", json!(["high"])), false, true),
            (class("NotIn", json!(["high"])), true, false),
            (class("Exists", json!([])), false, true),
            (json!({"scopes": ["CrossNamespacePodAffinity"]}), false, false),
        ];
        for (spec, first, second) in cases {
            let q = quota(spec);
            assert_eq!((in_scope(&q, &plain), in_scope(&q, &ending)), (first, second), "{:?}", q.spec);
        }
    }

    #[test]
    fn every_container_says_what_it_wants() {
        let p = pod(json!({"containers": [{"name": "b"}, {"name": "a"}, {"name": "c", "resources":
            {"requests": {"cpu": "1"}, "limits": {"memory": "1"}}}]}));
        let names = ["cpu".to_owned(), "limits.memory".to_owned(), "pods".to_owned()];
        assert_eq!(constraints(names.iter(), &p).unwrap_err(), "must specify cpu for: a,b; limits.memory for: a,b");
        let whole = pod(json!({"containers": [{"name": "a"}], "resources": {"requests": {"cpu": "1"}}}));
        assert_eq!(constraints(names.iter(), &whole), Ok(()));
    }
}
