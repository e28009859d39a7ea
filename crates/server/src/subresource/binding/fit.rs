//! A binding that holds only where the node still has room. Schedulers decide on what they have seen; where several share
//! the nodes, one may not have seen what another was just granted. Upstream leaves that to the kubelet, which fails the pod
//! (`OutOfcpu`). A scheduler that says what it has seen (`?ifFits=VERSION&decidedBy=NAME`, which are not upstream's) has its
//! binding refused instead, and decides again: the commit compares, as with any other write.

use crate::cluster::{Cluster, resource_of};
use gantry_api::core::pod::resources::pod_requests;
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod};
use gantry_api::kind::downcast;
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::{Amount, amount_of};
use gantry_api::meta::status::ApiError;
use std::collections::BTreeMap;

fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// The first resource there is not enough of for `pod` beside the `others`.
fn lacking(node: &Node, pod: &Pod, others: &[&Pod]) -> Option<String> {
    let status = node.status.as_ref();
    let allocatable = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
    let have = |name: &str| amount_of(allocatable, name).nano_value();
    let asks = |pod: &Pod| -> BTreeMap<String, Amount> {
        pod.spec.as_ref().map(|s| pod_requests(s).into_iter().collect()).unwrap_or_default()
    };
    let taken: Vec<BTreeMap<String, Amount>> = others.iter().map(|p| asks(p)).collect();
    for (name, want) in asks(pod) {
        let sum: i128 = taken.iter().filter_map(|t| t.get(&name)).map(Amount::nano_value).sum();
        if want.nano_value() > 0 && sum + want.nano_value() > have(&name) {
            return Some(name);
        }
    }
    let pods = i128::try_from(others.len() + 1).unwrap_or(i128::MAX) * 1_000_000_000;
    (pods > have("pods")).then(|| "pods".to_owned())
}

/// Whether the node has room for the pod now, after everything that was acknowledged.
///
/// # Errors
/// 409 where it has not, or there is no such node or pod.
pub(super) async fn check(cluster: &Cluster, namespace: &str, name: &str, node: &str) -> Result<(), ApiError> {
    let conflict = |why: &str| Err(ApiError::conflict("", "pods/binding", name, why));
    let (nodes, pods) = (resource_of::<Node>(), resource_of::<Pod>());
    // Both from caches that have seen every acknowledged write.
    let Some(found) = cluster.objects.get(nodes, "", node, true).await? else {
        return conflict(&format!("node {node:?} is not there"));
    };
    let Some(pod) = cluster.objects.get(pods, namespace, name, true).await? else {
        return conflict(&format!("pod {name:?} is not there"));
    };
    let there = cluster.objects.list_by_field(pods, "", "spec.nodeName", node).await?;
    let (Some(found), Some(pod)) = (downcast::<Node>(found.as_ref()), downcast::<Pod>(pod.as_ref())) else {
        return Err(ApiError::internal("the caches of nodes and pods hold something else"));
    };
    let others = there.iter().filter_map(|o| downcast::<Pod>(o.as_ref()));
    let others: Vec<&Pod> = others.filter(|o| !is_finished(o) && o.metadata.uid() != pod.metadata.uid()).collect();
    match lacking(found, pod, &others) {
        Some(resource) => conflict(&format!("node {node:?} has not enough {resource} left")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_taken_counts() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}},
        }))
        .unwrap();
        let pod = |cpu: &str| -> Pod {
            let resources = json!({"requests": {"cpu": cpu}});
            serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": resources}]}}),
            )
            .unwrap()
        };
        let (one, half, more) = (pod("1"), pod("500m"), pod("501m"));
        assert_eq!(lacking(&node, &half, &[&one, &half]), None);
        assert_eq!(lacking(&node, &more, &[&one, &half]).as_deref(), Some("cpu"));
        let none = pod("0");
        assert_eq!(lacking(&node, &none, &[&none, &none, &none]).as_deref(), Some("pods"));
    }
}
