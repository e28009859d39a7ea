//! Quality of service classes.

use crate::meta::quantity::{Amount, ResourceList, amount_of};
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

/// The QoS class of a pod with this spec: `Guaranteed`, `Burstable` or `BestEffort` (`ComputePodQOS`).
///
/// Only CPU and memory count. Where the pod itself has resources, they decide instead of the containers'.
#[must_use]
pub fn qos_class(spec: &PodSpec) -> &'static str {
    if let Some(pod) = spec.resources.as_ref().filter(|r| has_any(r.requests.as_ref()) || has_any(r.limits.as_ref())) {
        return class_of(&[Some(pod)]);
    }
    let containers: Vec<Option<&ResourceRequirements>> = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c: &Container| c.resources.as_ref())
        .collect();
    class_of(&containers)
}

fn has_any(list: Option<&ResourceList>) -> bool {
    ["cpu", "memory"].iter().any(|r| !amount_of(list, r).is_zero())
}

fn class_of(requirements: &[Option<&ResourceRequirements>]) -> &'static str {
    let (mut requests, mut limits) = ([Amount::ZERO; 2], [Amount::ZERO; 2]);
    let mut guaranteed = true;
    for r in requirements {
        let mut limited = 0;
        for (i, name) in ["cpu", "memory"].iter().enumerate() {
            let request = amount_of(r.and_then(|r| r.requests.as_ref()), name);
            let limit = amount_of(r.and_then(|r| r.limits.as_ref()), name);
            requests[i] = requests[i].plus(&request);
            limits[i] = limits[i].plus(&limit);
            limited += usize::from(limit.sign() > 0);
        }
        guaranteed &= limited == 2;
    }
    let none = |a: &[Amount; 2]| a.iter().all(Amount::is_zero);
    if none(&requests) && none(&limits) {
        return "BestEffort";
    }
    // A request that was not given was defaulted to the limit; a differing one is burstable.
    if guaranteed && requests == limits { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    /// Resource names and amounts.
    type List<'a> = &'a [(&'a str, &'a str)];

    fn spec(containers: &[(List<'_>, List<'_>)]) -> PodSpec {
        let list = |l: List<'_>| Some(l.iter().map(|(k, v)| ((*k).into(), Quantity((*v).into()))).collect());
        PodSpec {
            containers: containers
                .iter()
                .map(|(requests, limits)| Container {
                    resources: Some(ResourceRequirements {
                        requests: list(requests),
                        limits: list(limits),
                        claims: None,
                    }),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn classes() {
        let both: List<'_> = &[("cpu", "1"), ("memory", "1Gi")];
        let cases = [
            (spec(&[(&[], &[])]), "BestEffort"),
            (spec(&[(both, both)]), "Guaranteed"),
            (spec(&[(&[("cpu", "1000m"), ("memory", "1024Mi")], both)]), "Guaranteed"),
            (spec(&[(both, both), (&[], &[])]), "Burstable"),
            (spec(&[(&[("cpu", "1")], &[])]), "Burstable"),
            (spec(&[(&[("cpu", "500m"), ("memory", "1Gi")], both)]), "Burstable"),
            (spec(&[(&[("example.com/gpu", "1")], &[("example.com/gpu", "1")])]), "BestEffort"),
        ];
        for (spec, want) in cases {
            assert_eq!(qos_class(&spec), want, "{spec:?}");
        }
        let mut whole = spec(&[(&[], &[])]);
        whole.resources = spec(&[(both, both)]).containers[0].resources.clone();
        assert_eq!(qos_class(&whole), "Guaranteed");
    }
}
