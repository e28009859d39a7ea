//! Who is granted what, by user and by group.

use crate::authn::UserInfo;
use crate::authz::aggregation;
use gantry_api::k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use gantry_api::rbac::service_account_username;
use std::collections::HashMap;
use std::sync::Arc;

/// What one binding gives to one of its subjects.
#[derive(Clone, Debug)]
pub struct Grant {
    /// `ClusterRoleBinding "b" of ClusterRole "r" to User "u"`.
    pub description: String,
    /// The role's rules, or that the role does not exist.
    pub rules: Result<Arc<Vec<PolicyRule>>, String>,
}

#[derive(Debug, Default)]
struct Scope {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

impl Scope {
    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a Grant> {
        let by_group = user.groups.iter().filter_map(|g| self.groups.get(g)).flatten();
        self.users.get(&user.username).into_iter().flatten().chain(by_group)
    }

    fn add(&mut self, subject: &Subject, binding_namespace: &str, grant: impl Fn(String) -> Grant) {
        let grant = grant(describe_subject(subject));
        match subject.kind.as_str() {
            "User" => self.users.entry(subject.name.clone()).or_default().push(grant),
            "Group" => self.groups.entry(subject.name.clone()).or_default().push(grant),
            "ServiceAccount" => {
                // In a RoleBinding the namespace may be left out and is the binding's then.
                let namespace = subject.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(binding_namespace);
                if !namespace.is_empty() {
                    self.users.entry(service_account_username(namespace, &subject.name)).or_default().push(grant);
                }
            }
            _ => {}
        }
    }
}

fn describe_subject(s: &Subject) -> String {
    match s.kind.as_str() {
        "ServiceAccount" => {
            format!("ServiceAccount {:?}", format!("{}/{}", s.name, s.namespace.as_deref().unwrap_or_default()))
        }
        kind => format!("{kind} {:?}", s.name),
    }
}

/// All grants.
#[derive(Debug, Default)]
pub struct Index {
    cluster: Scope,
    namespaces: HashMap<String, Scope>,
}

type Rules = Arc<Vec<PolicyRule>>;

impl Index {
    /// Resolves every binding's role.
    #[must_use]
    pub fn build(
        cluster_roles: &[ClusterRole],
        cluster_bindings: &[ClusterRoleBinding],
        roles: &[Role],
        bindings: &[RoleBinding],
    ) -> Self {
        let name = |m: &gantry_api::ObjectMeta| m.name.clone().unwrap_or_default();
        let namespace = |m: &gantry_api::ObjectMeta| m.namespace.clone().unwrap_or_default();
        let of_cluster: HashMap<String, Rules> = cluster_roles
            .iter()
            .map(|r| (name(&r.metadata), Arc::new(aggregation::effective_rules(r, cluster_roles))))
            .collect();
        let of_namespace: HashMap<(String, String), Rules> = roles
            .iter()
            .map(|r| ((namespace(&r.metadata), name(&r.metadata)), Arc::new(r.rules.clone().unwrap_or_default())))
            .collect();
        let resolve = |reference: &RoleRef, ns: &str| -> Result<Rules, String> {
            let (found, resource) = match reference.kind.as_str() {
                "Role" => (of_namespace.get(&(ns.to_owned(), reference.name.clone())), "role"),
                _ => (of_cluster.get(&reference.name), "clusterrole"),
            };
            found.cloned().ok_or_else(|| format!("{resource}.rbac.authorization.k8s.io {:?} not found", reference.name))
        };
        let mut index = Self::default();
        for b in cluster_bindings {
            let rules = resolve(&b.role_ref, "");
            for subject in b.subjects.iter().flatten() {
                index.cluster.add(subject, "", |to| Grant {
                    description: format!(
                        "ClusterRoleBinding {:?} of {} {:?} to {to}",
                        name(&b.metadata),
                        b.role_ref.kind,
                        b.role_ref.name
                    ),
                    rules: rules.clone(),
                });
            }
        }
        for b in bindings {
            let ns = namespace(&b.metadata);
            let rules = resolve(&b.role_ref, &ns);
            let scope = index.namespaces.entry(ns.clone()).or_default();
            for subject in b.subjects.iter().flatten() {
                scope.add(subject, &ns, |to| Grant {
                    description: format!(
                        "RoleBinding {:?} of {} {:?} to {to}",
                        format!("{}/{ns}", name(&b.metadata)),
                        b.role_ref.kind,
                        b.role_ref.name
                    ),
                    rules: rules.clone(),
                });
            }
        }
        index
    }

    /// The grants of a user in the cluster and, where `namespace` is not empty, in that namespace.
    pub fn grants<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Grant> {
        let scope = if namespace.is_empty() { None } else { self.namespaces.get(namespace) };
        self.cluster.of(user).chain(scope.into_iter().flat_map(move |s| s.of(user)))
    }
}
