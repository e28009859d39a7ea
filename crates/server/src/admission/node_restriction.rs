//! NodeRestriction: a node writes only its own Node, Lease and pods, and takes only tokens for pods bound to it.

use super::mirror_pod::{MIRROR, is_mirror};
use super::{Attributes, MutatingPlugin, Operation};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::core::pod::referenced_kind;
use gantry_api::k8s_openapi::api::authentication::v1::TokenRequest;
use gantry_api::k8s_openapi::api::certificates::v1::PodCertificateRequest;
use gantry_api::k8s_openapi::api::coordination::v1::Lease;
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use gantry_api::k8s_openapi::api::resource::v1::ResourceSlice;
use gantry_api::k8s_openapi::api::storage::v1::CSINode;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use std::collections::BTreeMap;

const LEASE_NAMESPACE: &str = "kube-node-lease";
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io";
/// Labels of Kubernetes' own domains that a kubelet may set on its node.
const KUBELET_LABELS: [&str; 14] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "node.kubernetes.io/windows-build",
];
/// Label domains a kubelet may set freely, with their subdomains.
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub(super) struct NodeRestriction;

fn in_domain(key: &str, domain: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return false };
    prefix == domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// The labels among those that differ which a node may not change on itself.
fn forbidden_labels(new: &BTreeMap<String, String>, old: &BTreeMap<String, String>) -> Vec<String> {
    let mut changed: Vec<&String> = new.iter().filter(|(k, v)| old.get(*k) != Some(*v)).map(|(k, _)| k).collect();
    changed.extend(old.keys().filter(|k| !new.contains_key(*k)));
    let forbidden = |key: &str| {
        let of_kubernetes = in_domain(key, "kubernetes.io") || in_domain(key, "k8s.io");
        let of_kubelet = KUBELET_LABELS.contains(&key) || KUBELET_DOMAINS.iter().any(|d| in_domain(key, d));
        in_domain(key, RESTRICTED_LABELS) || (of_kubernetes && !of_kubelet)
    };
    let mut out: Vec<String> = changed.into_iter().filter(|k| forbidden(k)).cloned().collect();
    out.sort();
    out
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// Why a node may not create this pod.
fn refused_mirror(pod: &Pod, node: &str) -> Option<String> {
    if !is_mirror(pod) {
        return Some(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if node_of(pod) != node {
        return Some(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let [owner] = owners else {
        let what = if owners.is_empty() { "an owner reference" } else { "a single owner reference" };
        return Some(format!("node {node:?} can only create pods with {what} set to itself"));
    };
    if owner.api_version != "v1" || owner.kind != "Node" || owner.name != node {
        return Some(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner.controller != Some(true) {
        return Some(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
    }
    if owner.block_owner_deletion == Some(true) {
        return Some(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let spec = pod.spec.as_ref()?;
    let what = referenced_kind(spec)?;
    Some(format!("node {node:?} can not create pods that reference {what:?}"))
}

async fn pod(a: &Attributes<'_>, name: &str, cluster: &Cluster) -> Result<Pod, ApiError> {
    let mut found = cluster.get::<Pod>(a.namespace, name).await?;
    if found.as_ref().is_none_or(|p| node_of(p).is_empty()) {
        found = cluster.get_latest::<Pod>(a.namespace, name).await?;
    }
    found.ok_or_else(|| ApiError::not_found("", "pods", name))
}

async fn admit_pod(a: &Attributes<'_>, node: &str, cluster: &Cluster) -> Result<(), ApiError> {
    match (a.subresource, a.operation) {
        ("", Operation::Create) => {
            let Some(new) = a.object_as::<Pod>() else { return Ok(()) };
            if let Some(why) = refused_mirror(new, node) {
                return Err(a.forbidden(&why));
            }
            let found = cluster.get_latest::<Node>("", node).await?;
            let found = found.ok_or_else(|| ApiError::not_found("", "nodes", node))?;
            let claimed = new.metadata.owner_references.iter().flatten().next().map_or("", |o| o.uid.as_str());
            if claimed != found.metadata.uid() {
                let real = found.metadata.uid();
                return Err(a.forbidden(&format!("node {node} UID mismatch: expected {claimed} got {real}")));
            }
            Ok(())
        }
        ("", Operation::Delete) => {
            if node_of(&pod(a, a.name, cluster).await?) != node {
                return Err(
                    a.forbidden(&format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
                );
            }
            Ok(())
        }
        ("", operation) => Err(a.forbidden(&format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            operation.as_str()
        ))),
        ("status", Operation::Update) => {
            let (Some(old), Some(new)) = (a.old_as::<Pod>(), a.object_as::<Pod>()) else { return Ok(()) };
            if node_of(old) != node {
                let why = format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself");
                return Err(a.forbidden(&why));
            }
            if old.metadata.labels_or_empty() != new.metadata.labels_or_empty() {
                return Err(a.forbidden(&format!("node {node:?} cannot update labels through pod status")));
            }
            let claims = |p: &Pod| p.status.as_ref().and_then(|s| s.resource_claim_statuses.clone());
            if claims(old) != claims(new) {
                return Err(a.forbidden(&format!("node {node:?} cannot update resource claim statues")));
            }
            Ok(())
        }
        ("eviction", Operation::Create) => {
            if node_of(&pod(a, a.name, cluster).await?) != node {
                return Err(a.forbidden(&format!("node {node} can only evict pods with spec.nodeName set to itself")));
            }
            Ok(())
        }
        ("status" | "eviction", operation) => {
            Err(a.forbidden(&format!("unexpected operation {:?}", operation.as_str())))
        }
        (other, _) => {
            Err(a.forbidden(&format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed")))
        }
    }
}

fn admit_node(a: &Attributes<'_>, node: &str) -> Result<(), ApiError> {
    let of_object = a.object_as::<Node>().map(|n| n.metadata.name()).unwrap_or_default();
    let name = if a.name.is_empty() { of_object } else { a.name };
    if name != node {
        return Err(a.forbidden(&format!("node {node:?} is not allowed to modify node {name:?}")));
    }
    let Some(new) = a.object_as::<Node>() else { return Ok(()) };
    let labels = |n: &Node| n.metadata.labels_or_empty().clone();
    match a.operation {
        Operation::Create => {
            if new.spec.as_ref().is_some_and(|s| s.config_source.is_some()) {
                let why = format!("node {node:?} is not allowed to create pods with a non-nil configSource");
                return Err(a.forbidden(&why));
            }
            let bad = forbidden_labels(&labels(new), &BTreeMap::new());
            if !bad.is_empty() {
                let bad = bad.join(", ");
                return Err(a.forbidden(&format!("node {node:?} is not allowed to set the following labels: {bad}")));
            }
        }
        Operation::Update => {
            let Some(old) = a.old_as::<Node>() else { return Ok(()) };
            let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone()).filter(|t| !t.is_empty());
            if taints(new) != taints(old) {
                return Err(a.forbidden(&format!("node {node:?} is not allowed to modify taints")));
            }
            let source = |n: &Node| n.spec.as_ref().and_then(|s| s.config_source.clone());
            if source(new).is_some() && source(new) != source(old) {
                let why = format!("node {node:?} is not allowed to update configSource to a new non-nil configSource");
                return Err(a.forbidden(&why));
            }
            let bad = forbidden_labels(&labels(new), &labels(old));
            if !bad.is_empty() {
                return Err(a.forbidden(&format!("is not allowed to modify labels: {}", bad.join(", "))));
            }
        }
        _ => {}
    }
    Ok(())
}

async fn admit_token(a: &Attributes<'_>, node: &str, cluster: &Cluster) -> Result<(), ApiError> {
    let Some(request) = a.object_as::<TokenRequest>() else { return Ok(()) };
    let bound = request.spec.as_ref().and_then(|s| s.bound_object_ref.as_ref());
    let text = |f: &Option<String>| f.clone().unwrap_or_default();
    let Some(bound) =
        bound.filter(|b| text(&b.api_version) == "v1" && text(&b.kind) == "Pod" && !text(&b.name).is_empty())
    else {
        return Err(a.forbidden("node requested token not bound to a pod"));
    };
    let uid = text(&bound.uid);
    if uid.is_empty() {
        return Err(a.forbidden("node requested token with a pod binding without a uid"));
    }
    let pod = pod(a, &text(&bound.name), cluster).await?;
    if uid != pod.metadata.uid() {
        return Err(a.forbidden(&format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        )));
    }
    if node_of(&pod) != node {
        return Err(a.forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    Ok(())
}

fn admit_lease(a: &Attributes<'_>, node: &str) -> Result<(), ApiError> {
    if a.namespace != LEASE_NAMESPACE {
        return Err(a.forbidden(&format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace")));
    }
    let name = match a.operation {
        Operation::Create => a.object_as::<Lease>().map(|l| l.metadata.name()).unwrap_or_default(),
        _ => a.name,
    };
    if name != node {
        return Err(a.forbidden("can only access node lease with the same name as the requesting node"));
    }
    Ok(())
}

fn admit_csi_node(a: &Attributes<'_>, node: &str) -> Result<(), ApiError> {
    let name = match a.operation {
        Operation::Create => a.object_as::<CSINode>().map(|n| n.metadata.name()).unwrap_or_default(),
        _ => a.name,
    };
    if name != node {
        return Err(a.forbidden("can only access CSINode with the same name as the requesting node"));
    }
    Ok(())
}

/// What the authorizer of nodes cannot see: the slice in a create, and each one of a collection that is deleted.
fn admit_slice(a: &Attributes<'_>, node: &str) -> Result<(), ApiError> {
    let (verb, slice) = match a.operation {
        Operation::Create => ("create", a.object_as::<ResourceSlice>()),
        Operation::Delete => ("delete", a.old_as::<ResourceSlice>()),
        _ => return Ok(()),
    };
    if slice.is_some_and(|s| s.spec.node_name.as_deref() == Some(node)) {
        return Ok(());
    }
    Err(a.forbidden(&format!("can only {verb} ResourceSlice with the same NodeName as the requesting node")))
}

/// A node asks for certificates for pods that run on it, as they are, from signers that they name.
async fn admit_certificate_request(a: &Attributes<'_>, node: &str, cluster: &Cluster) -> Result<(), ApiError> {
    if a.operation != Operation::Create {
        return Err(a.forbidden(&format!("unexpected operation {}", a.operation.as_str())));
    }
    if !a.subresource.is_empty() {
        return Err(a.forbidden(&format!("unexpected subresource {}", a.subresource)));
    }
    let Some(spec) = a.object_as::<PodCertificateRequest>().map(|r| &r.spec) else { return Ok(()) };
    if spec.node_name != node {
        return Err(a.forbidden(&format!(
            "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
            spec.node_name
        )));
    }
    // What upstream's caches may not have seen yet it does not forbid, so that the node tries again.
    let again = |why: String| ApiError::internal(why);
    let pod_key = format!("{}/{}", a.namespace, spec.pod_name);
    let found = cluster.get_latest::<Node>("", node).await?;
    let found = found.ok_or_else(|| {
        again(format!("while retrieving node {node:?} named in the PodCertificateRequest: node {node:?} not found"))
    })?;
    if found.metadata.uid() != spec.node_uid {
        return Err(again(format!(
            "PodCertificateRequest for pod {pod_key:?} names node UID {:?}, inconsistent with the running node ({:?})",
            spec.node_uid,
            found.metadata.uid()
        )));
    }
    let pod = cluster.get_latest::<Pod>(a.namespace, &spec.pod_name).await?;
    let pod = pod.ok_or_else(|| {
        let name = &spec.pod_name;
        again(format!("while retrieving pod {pod_key:?} named in the PodCertificateRequest: pod {name:?} not found"))
    })?;
    if pod.metadata.uid() != spec.pod_uid {
        return Err(again(format!(
            "PodCertificateRequest for pod {pod_key:?} contains pod UID ({:?}) which differs from running pod {:?}",
            spec.pod_uid,
            pod.metadata.uid()
        )));
    }
    if node_of(&pod) != node {
        let why = format!("pod {pod_key:?} is not running on node {node:?} named in the PodCertificateRequest");
        return Err(a.forbidden(&why));
    }
    if is_mirror(&pod) {
        return Err(a.forbidden(&format!("pod {pod_key:?} is a mirror pod")));
    }
    let running = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or_default();
    if running != spec.service_account_name {
        return Err(a.forbidden(&format!(
            "PodCertificateRequest for pod {pod_key:?} contains serviceAccountName ({:?}) that differs from running pod \
             ({running:?})",
            spec.service_account_name
        )));
    }
    let account = cluster.get_latest::<ServiceAccount>(a.namespace, running).await?;
    let account = account.ok_or_else(|| {
        let key = format!("{}/{running}", a.namespace);
        again(format!(
            "while retrieving service account {key:?} named in the PodCertificateRequest: serviceaccount {running:?} not \
             found"
        ))
    })?;
    if account.metadata.uid() != spec.service_account_uid {
        return Err(again(format!(
            "PodCertificateRequest for pod {pod_key:?} names service account UID {:?}, which differs from the running \
             service account ({:?})",
            spec.service_account_uid,
            account.metadata.uid()
        )));
    }
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let mut sources = volumes.flat_map(|v| v.projected.iter().flat_map(|p| p.sources.iter().flatten()));
    if !sources.any(|s| s.pod_certificate.as_ref().is_some_and(|c| c.signer_name == spec.signer_name)) {
        let signer = &spec.signer_name;
        return Err(a.forbidden(&format!("signer {signer:?} not found in pod spec volume")));
    }
    Ok(())
}

#[async_trait]
impl MutatingPlugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation == Operation::Connect || !a.user.in_group("system:nodes") {
            return Ok(());
        }
        let Some(node) = a.user.node_name() else {
            if a.user.username.starts_with("system:node:") {
                return Err(a.forbidden(&format!("could not determine node from user {:?}", a.user.username)));
            }
            return Ok(());
        };
        let info = a.resource.info();
        match (info.group, info.plural) {
            ("", "pods") => admit_pod(a, node, cluster).await,
            ("", "nodes") => admit_node(a, node),
            ("", "serviceaccounts") if a.subresource == "token" && a.operation == Operation::Create => {
                admit_token(a, node, cluster).await
            }
            ("coordination.k8s.io", "leases") => admit_lease(a, node),
            ("storage.k8s.io", "csinodes") => admit_csi_node(a, node),
            ("resource.k8s.io", "resourceslices") => admit_slice(a, node),
            ("certificates.k8s.io", "podcertificaterequests") => admit_certificate_request(a, node, cluster).await,
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_others_are_forbidden() {
        let map = |keys: &[&str]| keys.iter().map(|k| ((*k).to_owned(), "v".to_owned())).collect::<BTreeMap<_, _>>();
        let cases: &[(&[&str], &[&str])] = &[
            (
                &["a", "example.com/b", "kubernetes.io/hostname", "node.kubernetes.io/x", "a.kubelet.kubernetes.io/y"],
                &[],
            ),
            (&["kubernetes.io/role"], &["kubernetes.io/role"]),
            (&["node-role.kubernetes.io/control-plane"], &["node-role.kubernetes.io/control-plane"]),
            (&["node-restriction.kubernetes.io/a"], &["node-restriction.kubernetes.io/a"]),
            (&["x.node-restriction.kubernetes.io/a"], &["x.node-restriction.kubernetes.io/a"]),
        ];
        for (set, bad) in cases {
            assert_eq!(forbidden_labels(&map(set), &BTreeMap::new()), *bad);
            assert_eq!(forbidden_labels(&BTreeMap::new(), &map(set)), *bad, "removing is changing");
            assert!(forbidden_labels(&map(set), &map(set)).is_empty());
        }
    }
}
