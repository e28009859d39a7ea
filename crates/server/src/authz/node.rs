//! The Node authorizer: a node reads only what the pods bound to it need, and writes only what is its own.

use super::bootstrap::node_rules;
use super::{Attributes, Authorizer, Decision, Rules, rbac};
use crate::authn::UserInfo;
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::core::pod::references;
use gantry_api::k8s_openapi::api::certificates::v1::PodCertificateRequest;
use gantry_api::k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use gantry_api::k8s_openapi::api::rbac::v1::PolicyRule;
use gantry_api::k8s_openapi::api::resource::v1::ResourceSlice;
use gantry_api::meta::fields::FieldSelector;
use gantry_api::meta::labels::{Operator, Selector};
use gantry_api::meta::object::Meta;
use gantry_api::resource::pod_claim::claim_names;
use gantry_api::storage::binding;

const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Decides for users `system:node:NAME` in `system:nodes`; has no opinion on others.
pub struct NodeAuthorizer {
    cluster: Cluster,
    rules: Vec<PolicyRule>,
}

impl NodeAuthorizer {
    /// Decides from the pods of `cluster`.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, rules: node_rules() }
    }

    /// Whether a pod of `namespace` that is bound to `node` satisfies `wanted`.
    async fn any_pod(&self, namespace: &str, node: &str, wanted: impl Fn(&Pod) -> bool + Send) -> bool {
        let resource = crate::cluster::resource_of::<Pod>();
        let pods = match self.cluster.objects.list_by_field(resource, namespace, "spec.nodeName", node).await {
            Ok(pods) => pods,
            Err(e) => {
                tracing::warn!(namespace, error = %e, "the node authorizer cannot list pods");
                return false;
            }
        };
        pods.iter()
            .filter_map(|o| gantry_api::kind::downcast::<Pod>(o.as_ref()))
            .any(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node) && wanted(p))
    }

    async fn decide(&self, a: &Attributes, node: &str) -> Result<(), String> {
        let unrelated = || format!("no relationship found between node '{node}' and this object");
        let reads = matches!(a.verb.as_str(), "get" | "list" | "watch");
        match (a.group.as_str(), a.resource.as_str()) {
            ("", resource @ ("secrets" | "configmaps" | "persistentvolumeclaims")) => {
                let of_claims = resource == "persistentvolumeclaims";
                if of_claims && a.subresource == "status" {
                    return Err("can only update PersistentVolumeClaim status of expanded volumes".into());
                }
                if !reads || (of_claims && a.verb != "get") {
                    return Err("can only read resources of this type".into());
                }
                if !a.subresource.is_empty() {
                    return Err("cannot read subresource".into());
                }
                if a.namespace.is_empty() {
                    return Err("can only read namespaced object of this type".into());
                }
                let name = single_name(a).ok_or("No Object name found")?;
                let found = self
                    .any_pod(&a.namespace, node, |p| {
                        p.spec.as_ref().is_some_and(|s| references(s, p.metadata.name.as_deref(), resource, &name))
                    })
                    .await;
                found.then_some(()).ok_or_else(unrelated)
            }
            ("", "persistentvolumes") if a.subresource.is_empty() => self.decide_volume(a, node).await,
            ("", "serviceaccounts") => {
                let account = |p: &Pod| {
                    let named = p.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
                    named.filter(|n| !n.is_empty()).unwrap_or("default") == a.name
                };
                let reads = a.verb == "get" && a.subresource.is_empty();
                if !reads && a.subresource != "token" {
                    return Err("can only create token subresource of service account".into());
                }
                if !reads && (a.verb != "create" || a.name.is_empty()) {
                    return Err("can only create tokens for individual service accounts".into());
                }
                self.any_pod(&a.namespace, node, account).await.then_some(()).ok_or_else(unrelated)
            }
            ("certificates.k8s.io", "podcertificaterequests") => self.decide_certificate_request(a, node).await,
            ("coordination.k8s.io", "leases") => {
                if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
                    return Err("can only get, create, update, patch, or delete a node lease".into());
                }
                if a.namespace != LEASE_NAMESPACE {
                    return Err(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
                }
                // The name in a create is only in the body; NodeRestriction sees it.
                if a.verb != "create" && a.name != node {
                    return Err("can only access node lease with the same name as the requesting node".into());
                }
                Ok(())
            }
            ("storage.k8s.io", "csinodes") => {
                if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
                    return Err("can only get, create, update, patch, or delete a CSINode".into());
                }
                if !a.subresource.is_empty() {
                    return Err("cannot authorize CSINode subresources".into());
                }
                // As above.
                if a.verb != "create" && a.name != node {
                    return Err("can only access CSINode with the same name as the requesting node".into());
                }
                Ok(())
            }
            ("resource.k8s.io", "resourceclaims") => {
                if a.verb != "get" {
                    return Err("can only get individual resources of this type".into());
                }
                if !a.subresource.is_empty() {
                    return Err("cannot get subresource".into());
                }
                let uses = |p: &Pod| claim_names(p).any(|name| name == a.name);
                let found = !a.name.is_empty() && self.any_pod(&a.namespace, node, uses).await;
                found.then_some(()).ok_or_else(unrelated)
            }
            ("resource.k8s.io", "resourceslices") => self.decide_slice(a, node).await,
            ("", "nodes") => match (a.subresource.as_str(), a.verb.as_str()) {
                ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
                ("", _) if reads => match single_name(a) {
                    Some(name) if name == node => Ok(()),
                    Some(name) => Err(format!("node '{node}' cannot read '{name}', only its own Node object")),
                    None => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
                },
                _ => self.by_rules(a),
            },
            ("", "pods") => match (a.subresource.as_str(), a.verb.as_str()) {
                ("", "get") => {
                    let same = |p: &Pod| p.metadata.name.as_deref() == Some(a.name.as_str());
                    self.any_pod(&a.namespace, node, same).await.then_some(()).ok_or_else(unrelated)
                }
                ("", "list" | "watch") => {
                    let selector = a.field_selector.as_deref().and_then(|s| FieldSelector::parse(s).ok());
                    match selector.as_ref().and_then(|s| s.requires_exact_match("spec.nodeName")) {
                        Some(n) if n == node => Ok(()),
                        _ => Err("can only list/watch pods with spec.nodeName field selector".into()),
                    }
                }
                ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
                _ => self.by_rules(a),
            },
            _ => self.by_rules(a),
        }
    }

    /// A node reads the volumes its pods use; those whose directories it keeps it also watches and, once their claim is
    /// gone, deletes.
    async fn decide_volume(&self, a: &Attributes, node: &str) -> Result<(), String> {
        let unrelated = || format!("no relationship found between node '{node}' and this object");
        match a.verb.as_str() {
            "list" | "watch" => {
                let selector = a.label_selector.as_deref().and_then(|s| Selector::parse(s).ok());
                let own = selector.is_some_and(|s| {
                    s.requirements().iter().any(|r| {
                        r.key == binding::LOCAL_PATH_NODE
                            && matches!(r.operator, Operator::In | Operator::Equals | Operator::DoubleEquals)
                            && r.values == [node]
                    })
                });
                own.then_some(())
                    .ok_or_else(|| format!("can only list/watch volumes with label {}", binding::LOCAL_PATH_NODE))
            }
            "get" | "delete" if !a.name.is_empty() => {
                let volume = self.cluster.get::<PersistentVolume>("", &a.name).await;
                let volume = volume.map_err(|e| e.message)?.ok_or_else(unrelated)?;
                let released = volume.status.as_ref().and_then(|s| s.phase.as_deref());
                if a.verb == "delete" {
                    let own = volume.metadata.label(binding::LOCAL_PATH_NODE) == Some(node)
                        && volume.metadata.annotation(binding::PROVISIONED_BY) == Some(binding::LOCAL_PATH)
                        && matches!(released, Some("Released" | "Failed"));
                    return own.then_some(()).ok_or_else(unrelated);
                }
                let reference = binding::claim_ref(&volume).ok_or_else(unrelated)?;
                let text = |t: &Option<String>| t.clone().unwrap_or_default();
                let (namespace, claim) = (text(&reference.namespace), text(&reference.name));
                let uses = |p: &Pod| {
                    let name = p.metadata.name.as_deref();
                    p.spec.as_ref().is_some_and(|s| references(s, name, "persistentvolumeclaims", &claim))
                };
                self.any_pod(&namespace, node, uses).await.then_some(()).ok_or_else(unrelated)
            }
            _ => self.by_rules(a),
        }
    }

    /// A node asks for certificates and sees what became of that. For which pods is only in the body of a create;
    /// NodeRestriction sees it.
    async fn decide_certificate_request(&self, a: &Attributes, node: &str) -> Result<(), String> {
        if !a.subresource.is_empty() {
            return Err("nodes may not access subresources of PodCertificateRequest".into());
        }
        match a.verb.as_str() {
            "create" => Ok(()),
            "get" => {
                let found = self.cluster.get::<PodCertificateRequest>(&a.namespace, &a.name).await;
                let own = found.map_err(|e| e.message)?.is_some_and(|r| r.spec.node_name == node);
                own.then_some(()).ok_or_else(|| format!("no relationship found between node '{node}' and this object"))
            }
            "list" | "watch" => {
                let selector = a.field_selector.as_deref().and_then(|s| FieldSelector::parse(s).ok());
                match selector.as_ref().and_then(|s| s.requires_exact_match("spec.nodeName")) {
                    Some(n) if n == node => Ok(()),
                    _ => Err("can only list/watch podcertificaterequests with nodeName field selector".into()),
                }
            }
            _ => {
                Err("only the following verbs are allowed for a PodCertificateRequest: create, get, list, watch".into())
            }
        }
    }

    /// A node writes the slices that are its own. Whose a new one is, is only in its body; NodeRestriction sees it.
    async fn decide_slice(&self, a: &Attributes, node: &str) -> Result<(), String> {
        if !a.subresource.is_empty() {
            return Err("cannot authorize ResourceSlice subresources".into());
        }
        match a.verb.as_str() {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => {
                let found = self.cluster.get::<ResourceSlice>("", &a.name).await.map_err(|e| e.message)?;
                let own = found.is_some_and(|s| s.spec.node_name.as_deref() == Some(node));
                own.then_some(()).ok_or_else(|| format!("no relationship found between node '{node}' and this object"))
            }
            "watch" | "list" | "deletecollection" => {
                let selector = a.field_selector.as_deref().and_then(|s| FieldSelector::parse(s).ok());
                match selector.as_ref().and_then(|s| s.requires_exact_match("spec.nodeName")) {
                    Some(n) if n == node => Ok(()),
                    _ => Err("can only list/watch/deletecollection resourceslices with nodeName field selector".into()),
                }
            }
            _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, \
                      patch, delete, deletecollection"
                .into()),
        }
    }

    fn by_rules(&self, a: &Attributes) -> Result<(), String> {
        self.rules.iter().any(|r| rbac::rule_allows(r, a)).then_some(()).ok_or_else(String::new)
    }
}

/// The one name asked for, by path or by a field selector.
fn single_name(a: &Attributes) -> Option<String> {
    if !a.name.is_empty() {
        return Some(a.name.clone());
    }
    let selector = FieldSelector::parse(a.field_selector.as_deref()?).ok()?;
    selector.requires_exact_match("metadata.name").map(ToOwned::to_owned)
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        let Some(node) = attributes.user.node_name() else {
            return Decision::NoOpinion(String::new());
        };
        let decided = match attributes.is_resource {
            true => self.decide(attributes, node).await,
            false => self.by_rules(attributes),
        };
        match decided {
            Ok(()) => Decision::Allow(String::new()),
            Err(reason) => Decision::NoOpinion(reason),
        }
    }

    async fn rules_for(&self, user: &UserInfo, _namespace: &str) -> Rules {
        // What a node may read depends on its pods and cannot be told as rules.
        Rules { incomplete: user.node_name().is_some(), ..Rules::default() }
    }
}
