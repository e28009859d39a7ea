//! From requests and limits to cgroup values.

use gantry_api::core::pod::{qos, resources as sums};
use gantry_api::meta::quantity::{Amount, ResourceList, amount_of};
use gantry_container::runtime::Resources;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

const PERIOD: u64 = 100_000;
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const MIN_QUOTA: i64 = 1000;

/// CPU weight of a request in thousandths of a core.
pub(crate) fn shares(milli: i64) -> u64 {
    let shares = u64::try_from(milli).unwrap_or(0) * 1024 / 1000;
    shares.clamp(MIN_SHARES, MAX_SHARES)
}

/// CPU quota per 100 ms of a limit in thousandths of a core; `None` without a limit.
pub(crate) fn quota(milli: i64) -> Option<i64> {
    (milli > 0).then(|| (milli * PERIOD as i64 / 1000).max(MIN_QUOTA))
}

fn list(c: &Container, limits: bool) -> Option<&ResourceList> {
    let r = c.resources.as_ref()?;
    if limits { r.limits.as_ref() } else { r.requests.as_ref() }
}

/// A container's cgroup values. Where only a limit is given it is the request too.
pub(crate) fn of_container(c: &Container) -> Resources {
    let (requests, limits) = (list(c, false), list(c, true));
    let cpu_limit = amount_of(limits, "cpu").milli_value();
    let cpu_request = match requests.and_then(|r| r.get("cpu")) {
        Some(_) => amount_of(requests, "cpu").milli_value(),
        None => cpu_limit,
    };
    let memory = amount_of(limits, "memory").value();
    let hugepages = limits.into_iter().flatten().filter_map(|(name, q)| {
        let size = Amount::parse(name.strip_prefix("hugepages-")?).ok()?.value();
        let value = Amount::parse(&q.0).ok()?.value();
        Some((page_size(size), u64::try_from(value).ok()?))
    });
    Resources {
        cpu_shares: Some(shares(cpu_request)),
        cpu_quota: quota(cpu_limit),
        cpu_period: quota(cpu_limit).map(|_| PERIOD),
        memory_limit: (memory > 0).then_some(memory),
        pids_limit: None,
        hugepages: hugepages.collect(),
        cpuset_cpus: None,
    }
}

fn page_size(bytes: i64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

/// The cgroup values of the whole pod: limits hold only where every container has one.
pub(crate) fn of_pod(spec: &PodSpec, pids_limit: Option<i64>) -> Resources {
    let (requests, limits) = (sums::pod_requests(spec), sums::pod_limits(spec));
    let all = |name: &str| {
        let pod_level = spec.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key(name));
        let mut every = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        pod_level || every.all(|c| list(c, true).is_some_and(|l| l.contains_key(name)))
    };
    let amount = |from: &sums::Amounts, name: &str| from.get(name).copied().unwrap_or_default();
    let cpu = amount(&limits, "cpu").milli_value();
    let memory = amount(&limits, "memory").value();
    let cpu_quota = if all("cpu") { quota(cpu) } else { None };
    Resources {
        cpu_shares: Some(shares(amount(&requests, "cpu").milli_value())),
        cpu_quota,
        cpu_period: cpu_quota.map(|_| PERIOD),
        memory_limit: (all("memory") && memory > 0).then_some(memory),
        pids_limit,
        ..Resources::default()
    }
}

/// The QoS class, as the status has it or as the spec gives it.
pub(crate) fn qos_class(pod: &Pod) -> &str {
    if let Some(class) = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        return class;
    }
    pod.spec.as_ref().map_or("BestEffort", qos::qos_class)
}

/// The pod's cgroup below the hierarchy root.
pub(crate) fn cgroup_parent(root: &str, pod: &Pod, uid: &str) -> String {
    let root = root.trim_end_matches('/');
    match qos_class(pod) {
        "Guaranteed" => format!("{root}/kubepods/pod{uid}"),
        "Burstable" => format!("{root}/kubepods/burstable/pod{uid}"),
        _ => format!("{root}/kubepods/besteffort/pod{uid}"),
    }
}

/// Priority from which a pod counts as critical to the node (`system-node-critical` and above).
const NODE_CRITICAL: i32 = 2_000_001_000;

/// `oom_score_adj` of a container: the less of the node's memory it asked for, the sooner it dies.
pub(crate) fn oom_score_adj(pod: &Pod, c: &Container, node_memory: i64) -> i32 {
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.priority).is_some_and(|p| p >= NODE_CRITICAL) {
        return -997;
    }
    match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let requested = |c: &Container| match amount_of(list(c, false), "memory").value() {
                0 => amount_of(list(c, true), "memory").value(),
                n => n,
            };
            let share = if node_memory > 0 { 1000 * i128::from(requested(c)) / i128::from(node_memory) } else { 0 };
            let score = 1000 - i32::try_from(share).unwrap_or(1000);
            // 2 and below are the guaranteed pods', 1000 the best-effort ones'.
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        use gantry_api::kind::Kind;
        Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn requests_become_shares_and_limits_quotas() {
        let p = pod(json!([{"name": "a", "resources": {
            "requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "5m", "memory": "128Mi", "hugepages-2Mi": "4Mi"}}}]));
        let r = of_container(&p.spec.as_ref().unwrap().containers[0]);
        assert_eq!(r.cpu_shares, Some(256));
        assert_eq!((r.cpu_quota, r.cpu_period), (Some(1000), Some(100_000)));
        assert_eq!(r.memory_limit, Some(128 << 20));
        assert_eq!(r.hugepages.get("2MB"), Some(&(4 << 20)));
        let none = pod(json!([{"name": "a"}]));
        let r = of_container(&none.spec.as_ref().unwrap().containers[0]);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.memory_limit), (Some(2), None, None));
    }

    #[test]
    fn pod_limits_need_every_container() {
        let one = json!({"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}});
        let limited = pod(json!([one, one]));
        let r = of_pod(limited.spec.as_ref().unwrap(), None);
        assert_eq!((r.cpu_quota, r.memory_limit), (Some(200_000), Some(2 << 30)));
        let open = pod(json!([one, {"name": "b"}]));
        let r = of_pod(open.spec.as_ref().unwrap(), None);
        assert_eq!((r.cpu_quota, r.memory_limit), (None, None));
    }

    #[test]
    fn classes_choose_cgroup_and_oom_score() {
        let node = 4 << 30;
        for (containers, parent, score) in [
            (json!([{"name": "a"}]), "/g/kubepods/besteffort/podu", 1000),
            (json!([{"name": "a", "resources": {"requests": {"memory": "1Gi"}}}]), "/g/kubepods/burstable/podu", 750),
            (json!([{"name": "a", "resources": {"requests": {"memory": "1Ki"}}}]), "/g/kubepods/burstable/podu", 999),
            (
                json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"},
                        "requests": {"cpu": "1", "memory": "1Gi"}}}]),
                "/g/kubepods/podu",
                -997,
            ),
        ] {
            let p = pod(containers);
            assert_eq!(cgroup_parent("/g/", &p, "u"), parent);
            assert_eq!(oom_score_adj(&p, &p.spec.as_ref().unwrap().containers[0], node), score);
        }
    }
}
