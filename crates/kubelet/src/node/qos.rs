//! What the quality-of-service classes weigh against each other when processors are short: guaranteed pods beside a
//! cgroup for burstable ones, which weighs what they request, and one for best-effort ones, which weighs nothing.

use crate::agent::Agent;
use crate::pod::resources::{qos_class, shares};
use crate::pod::worker::is_final;
use gantry_api::core::pod::resources::pod_requests;
use gantry_container::cgroup::Cgroup;
use gantry_container::runtime::Resources;
use gantry_reconcile::Informer;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;
use tokio::sync::Notify;

/// CPU shares by cgroup below the root.
type Weights = [(&'static str, u64); 3];

fn weights(pods: &[Arc<Pod>], allocatable_milli: i64) -> Weights {
    let burstable = pods.iter().filter(|p| !is_final(p) && qos_class(p) == "Burstable");
    let requested = burstable.filter_map(|p| {
        let requests = p.spec.as_ref().map(pod_requests)?;
        requests.get("cpu").map(|a| a.milli_value())
    });
    [
        ("kubepods", shares(allocatable_milli)),
        ("kubepods/burstable", shares(requested.sum())),
        ("kubepods/besteffort", shares(0)),
    ]
}

fn apply(root: &str, weights: Weights) -> Result<(), gantry_container::Error> {
    for (name, shares) in weights {
        let cgroup = Cgroup::at(&format!("{}/{name}", root.trim_end_matches('/')))?;
        cgroup.create()?;
        cgroup.apply(&Resources { cpu_shares: Some(shares), ..Resources::default() })?;
    }
    Ok(())
}

/// Keeps the weights true for as long as it is polled.
pub(crate) async fn run(agent: Arc<Agent>, pods: Informer<Pod>) {
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    pods.on_change(move |_| wake.notify_one());
    let mut known = None;
    loop {
        let wanted = weights(&pods.list(), agent.machine.allocatable_cpu_milli());
        if known != Some(wanted) {
            let root = agent.cfg.cgroup_root.clone();
            match tokio::task::spawn_blocking(move || apply(&root, wanted)).await {
                Ok(Ok(())) => known = Some(wanted),
                Ok(Err(error)) => tracing::warn!(%error, "cannot weigh the classes of pods"),
                Err(error) => tracing::error!(%error, "weighing the classes of pods ended abnormally"),
            }
        }
        changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn burstable_pods_weigh_what_they_request() {
        let pod = |resources: serde_json::Value, phase: &str| {
            let pod = json!({"metadata": {"name": "p"}, "status": {"phase": phase},
                "spec": {"containers": [{"name": "c", "resources": resources}]}});
            Arc::new(Pod::from_value(pod).unwrap())
        };
        let whole = json!({"cpu": "1", "memory": "1Gi"});
        let pods = [
            pod(json!({"requests": {"cpu": "500m"}}), "Running"),
            pod(json!({"requests": {"cpu": "250m"}}), "Pending"),
            pod(json!({"requests": {"cpu": "4"}}), "Succeeded"),
            pod(json!({"requests": whole, "limits": whole}), "Running"),
            pod(json!({}), "Running"),
        ];
        assert_eq!(weights(&pods, 2000), [("kubepods", 2048), ("kubepods/burstable", 768), ("kubepods/besteffort", 2)]);
        assert_eq!(weights(&[], 2000)[1].1, 2);
    }
}
