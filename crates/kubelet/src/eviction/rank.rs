//! In which order pods are evicted, and what they are told.

use super::threshold::{EvictionConfig, Resource};
use super::usage::PodUsage;
use super::watch::{Met, Observations};
use gantry_api::core::pod::resources::{pod_limits, pod_requests};
use gantry_api::meta::quantity::{Amount, amount_of};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::sync::Arc;

/// Priority from which a pod is critical to the cluster.
const CRITICAL: i32 = 2_000_000_000;

/// Whether a pod is never evicted nor refused for want of resources.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    let static_pod = pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/config.source"));
    static_pod || pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= CRITICAL)
}

/// A pod with what it uses, where that is known.
pub(crate) type Candidate = (Arc<Pod>, Option<PodUsage>);

fn requested(pod: &Pod, resource: &str) -> i128 {
    let all = pod.spec.as_ref().map(pod_requests).unwrap_or_default();
    all.get(resource).map_or(0, |a| i128::from(a.value()))
}

/// Sorts the pods to be evicted first to the front.
///
/// For memory and disk: those over their request, then lower priority, then those furthest over it. For processes: lower
/// priority, then more processes. Pods of which nothing is known come first.
pub(crate) fn rank(candidates: &mut [Candidate], resource: Resource) {
    candidates.sort_by_cached_key(|(pod, usage)| {
        let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        let Some(usage) = usage else { return (false, false, priority, 0) };
        let (used, request) = match resource {
            Resource::Memory => (usage.memory, requested(pod, "memory")),
            Resource::EphemeralStorage => (usage.disk.bytes, requested(pod, "ephemeral-storage")),
            // Nobody requests inodes, yet upstream compares their number with the request for space.
            Resource::Inodes => (usage.disk.inodes, requested(pod, "ephemeral-storage")),
            Resource::Pids => return (true, false, priority, -i128::from(usage.processes)),
        };
        let used = i128::from(used);
        let exceeds = if resource == Resource::Inodes { used > 0 } else { used > request };
        (true, !exceeds, priority, request - used)
    });
}

fn every_container(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
}

/// An amount as messages show it.
fn text(amount: Amount) -> String {
    amount.to_string()
}

fn bytes(n: u64) -> Amount {
    Amount::from_bytes(i64::try_from(n).unwrap_or(i64::MAX))
}

/// Message and event annotations of an eviction for want of a resource.
pub(crate) fn message(
    cfg: &EvictionConfig,
    due: &Met,
    seen: &Observations,
    resource: Resource,
    (pod, usage): &Candidate,
) -> (String, Vec<(String, String)>) {
    let name = resource.name();
    let mut out = format!("The node was low on resource: {name}. ");
    let cause = due.iter().map(|i| &cfg.thresholds[*i]).find(|t| t.signal.resource() == resource);
    if let Some((threshold, now)) = cause.and_then(|t| Some((t, seen.get(&t.signal)?))) {
        let (wanted, left) = (text(threshold.value.of(now.capacity)), text(now.available));
        out += &format!("Threshold quantity: {wanted}, available: {left}. ");
    }
    let Some(usage) = usage else { return (out, Vec::new()) };
    let mut annotations = Vec::new();
    let pod_level = pod.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    if let (Resource::Memory, Some(request)) = (resource, pod_level.and_then(|r| r.get("memory"))) {
        let pod_name = pod.metadata.name.clone().unwrap_or_default();
        let used = text(bytes(usage.memory));
        out +=
            &format!("Pod {pod_name} was using {used}, request is {}, has larger consumption of {name}. ", request.0);
        annotations.push(("offending_pod".to_owned(), pod_name));
        annotations.push(("offending_pod_usage".to_owned(), used));
    }
    let (mut offenders, mut amounts) = (Vec::new(), Vec::new());
    for c in &usage.containers {
        let Some(spec) = every_container(pod).find(|s| s.name == c.name) else { continue };
        let used = match resource {
            Resource::Memory => bytes(c.memory),
            Resource::EphemeralStorage => bytes(c.disk.bytes),
            Resource::Inodes | Resource::Pids => continue,
        };
        let request = amount_of(spec.resources.as_ref().and_then(|r| r.requests.as_ref()), name);
        if used > request {
            let (used, request) = (text(used), text(request));
            out += &format!(
                "Container {} was using {used}, request is {request}, has larger consumption of {name}. ",
                c.name
            );
            offenders.push(c.name.clone());
            amounts.push(used);
        }
    }
    annotations.push(("offending_containers".to_owned(), offenders.join(",")));
    annotations.push(("offending_containers_usage".to_owned(), amounts.join(",")));
    annotations.push(("starved_resource".to_owned(), name.to_owned()));
    (out, annotations)
}

/// Whether a pod has any limit on local storage, and so must be measured.
pub(crate) fn has_storage_limit(pod: &Pod) -> bool {
    let sized = |v: &k8s_openapi::api::core::v1::Volume| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some());
    let spec = pod.spec.as_ref();
    spec.is_some_and(|s| s.volumes.iter().flatten().any(sized))
        || spec.map(pod_limits).unwrap_or_default().contains_key("ephemeral-storage")
}

/// What a pod is told that uses more local storage than it may: of a volume, in all, or in a container.
pub(crate) fn exceeded_storage(pod: &Pod, usage: &PodUsage) -> Option<String> {
    for v in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let Some(limit) = v.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()) else { continue };
        let Some(limit) = Amount::parse(&limit.0).ok().filter(|l| l.sign() > 0) else { continue };
        if usage.volumes.get(&v.name).is_some_and(|used| bytes(*used) > limit) {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", v.name, text(limit)));
        }
    }
    let limits = pod.spec.as_ref().map(pod_limits).unwrap_or_default();
    if let Some(limit) = limits.get("ephemeral-storage")
        && bytes(usage.disk.bytes) > *limit
    {
        let limit = text(*limit);
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
    }
    for c in &usage.containers {
        let spec = pod.spec.iter().flat_map(|s| &s.containers).find(|s| s.name == c.name);
        let limits = spec.and_then(|s| s.resources.as_ref()).and_then(|r| r.limits.as_ref());
        let limit = amount_of(limits, "ephemeral-storage");
        if !limit.is_zero() && bytes(c.disk.bytes) > limit {
            let limit = text(limit);
            return Some(format!("Container {} exceeded its local ephemeral storage limit {limit:?}. ", c.name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::threshold::Signal;
    use super::super::usage::{ContainerUsage, Disk};
    use super::super::watch::Observation;
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    fn pod(name: &str, priority: i32, memory: &str) -> Arc<Pod> {
        let spec = json!({"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": {"memory": memory}}}]});
        Arc::new(Pod::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    fn uses(mib: u64, processes: u64) -> Option<PodUsage> {
        let memory = mib << 20;
        let containers = vec![ContainerUsage { name: "c".into(), memory, disk: Disk::default() }];
        Some(PodUsage { memory, processes, containers, ..PodUsage::default() })
    }

    fn order(mut all: Vec<Candidate>, resource: Resource) -> Vec<String> {
        rank(&mut all, resource);
        all.into_iter().map(|(p, _)| p.metadata.name.clone().unwrap()).collect()
    }

    #[test]
    fn excess_then_priority_then_amount() {
        let all = vec![
            (pod("within", -5, "20Mi"), uses(10, 90)),
            (pod("important", 100, "20Mi"), uses(300, 5)),
            (pod("little", 0, "20Mi"), uses(30, 6)),
            (pod("much", 0, "20Mi"), uses(90, 7)),
            (pod("unknown", 1000, "0"), None),
        ];
        assert_eq!(order(all.clone(), Resource::Memory), ["unknown", "much", "little", "important", "within"]);
        assert_eq!(order(all, Resource::Pids), ["unknown", "within", "much", "little", "important"]);
    }

    #[test]
    fn messages_name_threshold_and_offenders() {
        let cfg = EvictionConfig::default();
        let memory = cfg.thresholds.iter().position(|t| t.signal == Signal::MemoryAvailable).unwrap();
        let left = Observation { available: Amount::from_bytes(50 << 20), capacity: Amount::from_bytes(1 << 30) };
        let seen = Observations::from([(Signal::MemoryAvailable, left)]);
        let (text, annotations) =
            message(&cfg, &vec![memory], &seen, Resource::Memory, &(pod("p", 0, "20Mi"), uses(30, 1)));
        assert_eq!(
            text,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using \
             30Mi, request is 20Mi, has larger consumption of memory. "
        );
        let pairs: Vec<_> = annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            pairs,
            [("offending_containers", "c"), ("offending_containers_usage", "30Mi"), ("starved_resource", "memory")]
        );
    }

    #[test]
    fn storage_limits_of_volume_pod_and_container() {
        let with = |limits: [&str; 2]| {
            let containers: Vec<_> = ["x", "y"]
                .iter()
                .zip(limits)
                .map(|(n, l)| json!({"name": n, "resources": {"limits": {"ephemeral-storage": l}}}))
                .collect();
            Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": containers,
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]}}))
            .unwrap()
        };
        let usage = |volume: u64, x: u64| PodUsage {
            disk: Disk { bytes: volume + x, inodes: 0 },
            volumes: [("v".to_owned(), volume)].into(),
            containers: vec![ContainerUsage { name: "x".into(), memory: 0, disk: Disk { bytes: x, inodes: 0 } }],
            ..PodUsage::default()
        };
        let p = with(["2Mi", "2Mi"]);
        assert!(has_storage_limit(&p));
        assert_eq!(exceeded_storage(&p, &usage(1 << 20, 1 << 20)), None);
        for (u, want) in [
            (usage((1 << 20) + 1, 0), "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "),
            (usage(1 << 20, 4 << 20), "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
            (usage(0, 3 << 20), "Container x exceeded its local ephemeral storage limit \"2Mi\". "),
        ] {
            assert_eq!(exceeded_storage(&p, &u).as_deref(), Some(want));
        }
    }
}
