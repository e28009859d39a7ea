use super::Rbac;
use crate::admission::memory_objects::MemoryObjects;
use crate::authn::UserInfo;
use crate::authz::{Attributes, Authorizer, Decision};
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde_json::json;

fn ask(user: &str, verb: &str, namespace: &str, resource: &str) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Attributes {
        user: UserInfo::new(user, &["devs"]),
        verb: verb.into(),
        namespace: namespace.into(),
        resource: resource.into(),
        subresource: subresource.into(),
        is_resource: true,
        ..Default::default()
    }
}

fn fill(objects: &MemoryObjects) {
    objects.put::<ClusterRole>(json!({"metadata": {"name": "reader", "labels": {"sum": "yes"}},
        "rules": [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}]}));
    objects.put::<ClusterRole>(json!({"metadata": {"name": "sum"},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"sum": "yes"}}]}}));
    objects.put::<Role>(json!({"metadata": {"name": "one", "namespace": "a"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s"], "verbs": ["*"]}]}));
    objects.put::<ClusterRoleBinding>(json!({"metadata": {"name": "everywhere"},
        "roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": [{"kind": "User", "name": "bob"}]}));
    objects.put::<RoleBinding>(json!({"metadata": {"name": "devs", "namespace": "a"},
        "roleRef": {"kind": "ClusterRole", "name": "sum"}, "subjects": [{"kind": "Group", "name": "devs"}]}));
    objects.put::<RoleBinding>(json!({"metadata": {"name": "account", "namespace": "a"},
        "roleRef": {"kind": "Role", "name": "one"}, "subjects": [{"kind": "ServiceAccount", "name": "app"}]}));
    objects.put::<ClusterRoleBinding>(json!({"metadata": {"name": "dangling"},
        "roleRef": {"kind": "ClusterRole", "name": "gone"}, "subjects": [{"kind": "User", "name": "eve"}]}));
}

#[tokio::test]
async fn bindings_decide() {
    let (cluster, objects) = MemoryObjects::cluster();
    fill(&objects);
    let rbac = Rbac::new(cluster);
    let account = "system:serviceaccount:a:app";
    let cases = [
        ("bob", "get", "", "pods", true),
        ("bob", "get", "b", "pods/log", true),
        ("bob", "delete", "b", "pods", false),
        ("carol", "list", "a", "pods", true),
        ("carol", "list", "b", "pods", false),
        ("carol", "list", "", "pods", false),
        (account, "get", "a", "secrets", false),
    ];
    for (user, verb, namespace, resource, want) in cases {
        let got = rbac.authorize(&ask(user, verb, namespace, resource)).await;
        assert_eq!(matches!(got, Decision::Allow(_)), want, "{user} {verb} {namespace}/{resource}: {got:?}");
    }
    let named = Attributes { name: "s".into(), ..ask(account, "delete", "a", "secrets") };
    let reason = r#"RBAC: allowed by RoleBinding "account/a" of Role "one" to ServiceAccount "app/""#;
    assert_eq!(rbac.authorize(&named).await, Decision::Allow(reason.into()));
}

#[tokio::test]
async fn a_missing_role_is_named() {
    let (cluster, objects) = MemoryObjects::cluster();
    fill(&objects);
    let got = Rbac::new(cluster).authorize(&ask("eve", "get", "", "nodes")).await;
    assert_eq!(got, Decision::NoOpinion(r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#.into()));
}

#[tokio::test]
async fn changes_are_seen_at_once() {
    let (cluster, objects) = MemoryObjects::cluster();
    let rbac = Rbac::new(cluster);
    assert_eq!(rbac.authorize(&ask("bob", "get", "", "pods")).await, Decision::NoOpinion(String::new()));
    fill(&objects);
    assert!(matches!(rbac.authorize(&ask("bob", "get", "", "pods")).await, Decision::Allow(_)));
}

#[tokio::test]
async fn nodes_read_what_their_pods_need() {
    let (cluster, objects) = MemoryObjects::cluster();
    let spec = json!({"nodeName": "n1", "serviceAccountName": "app", "containers": [{"name": "c", "image": "i",
            "envFrom": [{"secretRef": {"name": "env"}}]}],
        "volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "ca"}}]}}]});
    objects.put::<Pod>(json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec}));
    let node = crate::authz::NodeAuthorizer::new(cluster);
    let cases = [
        ("n1", "get", "a", "secrets", "env", true),
        ("n1", "watch", "a", "configmaps", "ca", true),
        ("n1", "get", "a", "secrets", "other", false),
        ("n1", "list", "a", "secrets", "", false),
        ("n1", "update", "a", "secrets", "env", false),
        ("n2", "get", "a", "secrets", "env", false),
        ("n1", "create", "a", "serviceaccounts/token", "app", true),
        ("n1", "create", "a", "serviceaccounts/token", "default", false),
        ("n1", "get", "a", "pods", "p", true),
        ("n2", "get", "a", "pods", "p", false),
        ("n1", "get", "", "nodes", "n1", true),
        ("n1", "get", "", "nodes", "n2", false),
        ("n1", "list", "", "services", "", true),
        ("n1", "delete", "", "services", "x", false),
    ];
    for (name, verb, namespace, resource, object, want) in cases {
        let user = UserInfo::new(&format!("system:node:{name}"), &["system:nodes"]);
        let asked = Attributes { user, name: object.into(), ..ask("", verb, namespace, resource) };
        let got = node.authorize(&asked).await;
        assert_eq!(matches!(got, Decision::Allow(_)), want, "{name} {verb} {resource} {object}: {got:?}");
    }
    let user = UserInfo::new("system:node:n1", &["system:nodes"]);
    for (selector, want) in [("spec.nodeName=n1", true), ("spec.nodeName=n2", false), ("spec.nodeName!=n1", false)] {
        let asked =
            Attributes { user: user.clone(), field_selector: Some(selector.into()), ..ask("", "list", "", "pods") };
        assert_eq!(matches!(node.authorize(&asked).await, Decision::Allow(_)), want, "{selector}");
    }
    let lease = |name: &str| Attributes {
        user: user.clone(),
        group: "coordination.k8s.io".into(),
        name: name.into(),
        ..ask("", "update", "kube-node-lease", "leases")
    };
    assert!(matches!(node.authorize(&lease("n1")).await, Decision::Allow(_)));
    assert!(!matches!(node.authorize(&lease("n2")).await, Decision::Allow(_)));
}
