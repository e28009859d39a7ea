//! The bootstrap policy: the roles and bindings every cluster starts with, put right at every start.

mod cluster_roles;
mod namespaced;
mod user_roles;

use super::aggregation;
use crate::config::{ComponentRole, ServerConfig};
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::api::rbac::v1::{
    AggregationRule, ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject,
};
use gantry_api::k8s_openapi::api::scheduling::v1beta1::PodGroup;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use gantry_api::kind::{Kind, Object};
use gantry_api::rbac::GROUP;
use std::collections::BTreeMap;

/// Annotation of objects that a start may change back to what this policy says; `false` keeps an operator's changes.
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Label of all objects of this policy.
pub const BOOTSTRAPPING: &str = "kubernetes.io/bootstrapping";

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const READ_WRITE: &str = "create delete deletecollection get list patch update watch";

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(ToOwned::to_owned).collect()
}

/// A rule on resources of some groups; resources and verbs are separated by spaces.
fn on(groups: &[&str], resources: &str, verbs: &str) -> PolicyRule {
    PolicyRule {
        api_groups: Some(groups.iter().map(|g| (*g).to_owned()).collect()),
        resources: Some(words(resources)),
        verbs: words(verbs),
        ..Default::default()
    }
}

/// A rule on one named object.
fn named(group: &str, resource: &str, name: &str, verbs: &str) -> PolicyRule {
    PolicyRule { resource_names: Some(vec![name.to_owned()]), ..on(&[group], resource, verbs) }
}

/// A rule on paths that are no resources.
fn paths(urls: &str, verbs: &str) -> PolicyRule {
    PolicyRule { non_resource_urls: Some(words(urls)), verbs: words(verbs), ..Default::default() }
}

/// Writing events of both groups.
fn events() -> PolicyRule {
    on(&["", "events.k8s.io"], "events", "create patch update")
}

fn meta(name: &str, namespace: Option<&str>, aggregate_to: &[&str]) -> ObjectMeta {
    let mut labels: BTreeMap<String, String> = [(BOOTSTRAPPING.to_owned(), "rbac-defaults".to_owned())].into();
    for to in aggregate_to {
        labels.insert(format!("rbac.authorization.k8s.io/aggregate-to-{to}"), "true".into());
    }
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(ToOwned::to_owned),
        labels: Some(labels),
        annotations: Some([(AUTOUPDATE.to_owned(), "true".to_owned())].into()),
        ..Default::default()
    }
}

fn role(name: &str, rules: Vec<PolicyRule>) -> ClusterRole {
    ClusterRole { metadata: meta(name, None, &[]), rules: Some(rules), aggregation_rule: None }
}

fn part_of(name: &str, aggregate_to: &str, rules: Vec<PolicyRule>) -> ClusterRole {
    ClusterRole { metadata: meta(name, None, &[aggregate_to]), ..role(name, rules) }
}

fn aggregate(name: &str, aggregate_to: &[&str]) -> ClusterRole {
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
    let selector = LabelSelector { match_labels: Some([(label, "true".to_owned())].into()), ..Default::default() };
    ClusterRole {
        metadata: meta(name, None, aggregate_to),
        rules: None,
        aggregation_rule: Some(AggregationRule { cluster_role_selectors: Some(vec![selector]) }),
    }
}

fn reference(kind: &str, name: &str) -> RoleRef {
    RoleRef { api_group: Some(GROUP.into()), kind: kind.into(), name: name.into() }
}

fn user(name: &str) -> Subject {
    Subject { kind: "User".into(), name: name.into(), api_group: Some(GROUP.into()), namespace: None }
}

fn group(name: &str) -> Subject {
    Subject { kind: "Group".into(), ..user(name) }
}

fn account(namespace: &str, name: &str) -> Subject {
    Subject { kind: "ServiceAccount".into(), name: name.into(), api_group: None, namespace: Some(namespace.into()) }
}

fn bind(name: &str, role: &str, subjects: Vec<Subject>) -> ClusterRoleBinding {
    ClusterRoleBinding {
        metadata: meta(name, None, &[]),
        role_ref: reference("ClusterRole", role),
        subjects: Some(subjects),
    }
}

fn bindings() -> Vec<ClusterRoleBinding> {
    let everybody = || vec![group("system:authenticated"), group("system:unauthenticated")];
    let authenticated = || vec![group("system:authenticated")];
    let same = |name: &str, subjects| bind(name, name, subjects);
    let joining = || vec![group("system:bootstrappers:kubeadm:default-node-token")];
    let csr = |what: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{what}");
    vec![
        same("cluster-admin", vec![group("system:masters")]),
        same("system:monitoring", vec![group("system:monitoring")]),
        same("system:discovery", authenticated()),
        same("system:basic-user", authenticated()),
        same("system:public-info-viewer", everybody()),
        same("system:node-proxier", vec![user("system:kube-proxy")]),
        same("system:kube-controller-manager", vec![user("system:kube-controller-manager")]),
        same("system:kube-dns", vec![account("kube-system", "kube-dns")]),
        same("system:kube-scheduler", vec![user("system:kube-scheduler")]),
        same("system:volume-scheduler", vec![user("system:kube-scheduler")]),
        // The Node authorizer decides for nodes; the role is kept for clusters that bound it themselves.
        same("system:node", Vec::new()),
        same("system:service-account-issuer-discovery", vec![group("system:serviceaccounts")]),
        // Every pod may read what its volumes may show it anyhow.
        same("system:cluster-trust-bundle-discovery", vec![group("system:serviceaccounts")]),
        // One agent per node is kubelet, service proxy and DNS server under the node's identity.
        same("gantry:node-agent", vec![group("system:nodes")]),
        // A machine that joins asks for its certificate with the join token's identity; a node renews its own.
        bind("gantry:node-bootstrap", "system:node-bootstrapper", joining()),
        // It looks first whether its name is taken.
        bind("kubeadm:get-nodes", "kubeadm:get-nodes", joining()),
        bind("gantry:node-autoapprove-bootstrap", &csr("nodeclient"), joining()),
        bind("gantry:node-autoapprove-certificate-rotation", &csr("selfnodeclient"), vec![group("system:nodes")]),
        // The server's own client certificate towards kubelets.
        bind("gantry:kubelet-api-admin", "system:kubelet-api-admin", vec![user("kube-apiserver-kubelet-client")]),
    ]
}

fn component(c: &ComponentRole) -> (ClusterRole, ClusterRoleBinding) {
    let name = format!("system:controller:{}", c.name);
    (role(&name, c.rules.clone()), bind(&name, &name, vec![account("kube-system", &c.name)]))
}

/// All ClusterRoles, aggregated ones with their sums.
fn cluster_roles(config: &ServerConfig) -> Vec<ClusterRole> {
    let mut roles = cluster_roles::roles();
    roles.extend(user_roles::roles());
    roles.extend(config.component_roles.iter().map(|c| component(c).0));
    if config.versions.includes(&PodGroup::INFO) {
        let name = Some("system:kube-scheduler");
        let scheduler = roles.iter_mut().find(|r| r.metadata.name.as_deref() == name).and_then(|r| r.rules.as_mut());
        scheduler.into_iter().for_each(|rules| {
            rules.push(on(&["scheduling.k8s.io"], "podgroups workloads", READ));
            rules.push(on(&["scheduling.k8s.io"], "podgroups/status", "patch update"));
        });
    }
    for sum in aggregation::outdated(&roles) {
        if let Some(r) = roles.iter_mut().find(|r| r.metadata.name == sum.metadata.name) {
            *r = sum;
        }
    }
    // A role is written after those it is summed from.
    roles.sort_by_key(|r| match (&r.aggregation_rule, r.metadata.name.as_deref()) {
        (None, _) => 0,
        (_, Some("view")) => 1,
        (_, Some("edit")) => 2,
        _ => 3,
    });
    roles
}

/// The rules of `system:node`, which the Node authorizer applies where it has none of its own.
pub(super) fn node_rules() -> Vec<PolicyRule> {
    cluster_roles::node_rules()
}

/// The whole policy. The caller creates what is missing; what exists it leaves alone where [`AUTOUPDATE`] is `false`, and
/// otherwise adds missing rules and subjects, as upstream does.
#[must_use]
pub fn objects(config: &ServerConfig) -> Vec<Box<dyn Object>> {
    let mut out: Vec<Box<dyn Object>> = Vec::new();
    out.extend(cluster_roles(config).into_iter().map(|r| Box::new(r) as Box<dyn Object>));
    out.extend(bindings().into_iter().map(|b| Box::new(b) as Box<dyn Object>));
    out.extend(config.component_roles.iter().map(|c| Box::new(component(c).1) as Box<dyn Object>));
    let (roles, bindings) = namespaced::policy();
    out.extend(roles.into_iter().map(|r| Box::new(r) as Box<dyn Object>));
    out.extend(bindings.into_iter().map(|b| Box::new(b) as Box<dyn Object>));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_valid_and_aggregated() {
        let mut roles = cluster_roles::roles();
        roles.extend(user_roles::roles());
        for r in &roles {
            let errors = Kind::validate(r);
            assert!(errors.is_empty() || r.aggregation_rule.is_some(), "{:?}: {errors:?}", r.metadata.name);
        }
        let sums = aggregation::outdated(&roles);
        let rules = |name: &str| {
            let found = sums.iter().find(|r| r.metadata.name.as_deref() == Some(name)).unwrap();
            found.rules.clone().unwrap()
        };
        let (view, edit, admin) = (rules("view"), rules("edit"), rules("admin"));
        assert!(view.iter().all(|r| edit.contains(r)) && edit.iter().all(|r| admin.contains(r)));
        assert!(view.len() < edit.len() && edit.len() < admin.len());
    }

    #[test]
    fn every_binding_has_its_role() {
        let mut names: Vec<String> = cluster_roles::roles().into_iter().filter_map(|r| r.metadata.name).collect();
        names.extend(user_roles::roles().into_iter().filter_map(|r| r.metadata.name));
        for b in bindings() {
            assert!(names.contains(&b.role_ref.name), "{}", b.role_ref.name);
        }
    }
}
