//! Sums of what a pod's containers ask for, as scheduling, quota and defaulting see them.

use crate::meta::quantity::{Amount, ResourceList};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use std::collections::BTreeMap;

/// Resources by name.
pub type Amounts = BTreeMap<String, Amount>;

/// Whether an init container keeps running beside the containers (a sidecar).
#[must_use]
pub fn is_sidecar(init_container: &Container) -> bool {
    init_container.restart_policy.as_deref() == Some("Always")
}

/// The amounts of a resource list. Malformed quantities, which no stored object has, are left out.
#[must_use]
pub fn amounts(list: Option<&ResourceList>) -> Amounts {
    list.into_iter().flatten().filter_map(|(k, q)| Some((k.clone(), Amount::parse(&q.0).ok()?))).collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (k, a) in more {
        let total = sum.get(k).map_or(*a, |s| s.plus(a));
        sum.insert(k.clone(), total);
    }
}

fn raise(most: &mut Amounts, other: &Amounts) {
    for (k, a) in other {
        if most.get(k).is_none_or(|m| m < a) {
            most.insert(k.clone(), *a);
        }
    }
}

/// Adds up the containers' requests or limits: containers and sidecars run together, other init containers run alone
/// (beside the sidecars started before them), so that the larger of the two counts per resource.
fn aggregate(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut together = Amounts::new();
    for c in &spec.containers {
        add(&mut together, &of(c));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for c in spec.init_containers.iter().flatten() {
        let mut own = of(c);
        if is_sidecar(c) {
            add(&mut together, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        raise(&mut starting, &own);
    }
    raise(&mut together, &starting);
    together
}

/// What the containers together request (`AggregateContainerRequests`).
#[must_use]
pub fn aggregate_container_requests(spec: &PodSpec) -> Amounts {
    aggregate(spec, |c| amounts(c.resources.as_ref().and_then(|r| r.requests.as_ref())))
}

/// What the containers together are limited to (`AggregateContainerLimits`).
#[must_use]
pub fn aggregate_container_limits(spec: &PodSpec) -> Amounts {
    aggregate(spec, |c| amounts(c.resources.as_ref().and_then(|r| r.limits.as_ref())))
}

/// Whether a resource may be set for a whole pod.
#[must_use]
pub fn is_pod_level_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// What the pod occupies on a node: its own requests where given, else its containers', and its overhead (`PodRequests`).
#[must_use]
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    let mut sum = aggregate_container_requests(spec);
    for (k, a) in amounts(spec.resources.as_ref().and_then(|r| r.requests.as_ref())) {
        if is_pod_level_resource(&k) {
            sum.insert(k, a);
        }
    }
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum
}

/// What the pod is limited to; overhead counts only for resources that are limited (`PodLimits`).
#[must_use]
pub fn pod_limits(spec: &PodSpec) -> Amounts {
    let mut sum = aggregate_container_limits(spec);
    for (k, a) in amounts(spec.resources.as_ref().and_then(|r| r.limits.as_ref())) {
        if is_pod_level_resource(&k) {
            sum.insert(k, a);
        }
    }
    for (k, a) in amounts(spec.overhead.as_ref()) {
        if let Some(limit) = sum.get_mut(&k).filter(|l| !l.is_zero()) {
            *limit = limit.plus(&a);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ResourceRequirements;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn container(cpu: &str, sidecar: bool) -> Container {
        Container {
            resources: Some(ResourceRequirements {
                requests: Some(BTreeMap::from([("cpu".to_owned(), Quantity(cpu.to_owned()))])),
                ..Default::default()
            }),
            restart_policy: sidecar.then(|| "Always".to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn init_containers_count_when_larger() {
        let cases = [
            (vec!["1", "2"], vec![("5", false), ("1", false)], "5"),
            (vec!["1", "2"], vec![("2", false)], "3"),
            (vec!["1"], vec![("1", true), ("4", false)], "5"),
            (vec!["1"], vec![("4", false), ("1", true)], "4"),
            (vec!["1"], vec![("1", true), ("1", true)], "3"),
        ];
        for (containers, init, want) in cases {
            let spec = PodSpec {
                containers: containers.iter().map(|c| container(c, false)).collect(),
                init_containers: Some(init.iter().map(|(c, s)| container(c, *s)).collect()),
                overhead: Some(BTreeMap::from([("cpu".to_owned(), Quantity("500m".to_owned()))])),
                ..Default::default()
            };
            assert_eq!(aggregate_container_requests(&spec)["cpu"].to_string(), want);
            let total = Amount::parse(want).unwrap().plus(&Amount::from_milli(500));
            assert_eq!(pod_requests(&spec)["cpu"], total);
        }
    }
}
