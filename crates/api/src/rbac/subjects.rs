//! What RoleBinding and ClusterRoleBinding share: subjects and the reference to a role.

use crate::apps::workload;
use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use k8s_openapi::api::rbac::v1::{RoleRef, Subject};
use serde_json::json;

/// The API group of all RBAC kinds.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// The user name of a ServiceAccount.
#[must_use]
pub fn service_account_username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Empty API groups become the ones the kinds have.
pub(super) fn set_defaults(role_ref: &mut RoleRef, subjects: &mut Option<Vec<Subject>>) {
    if role_ref.api_group.as_deref().unwrap_or_default().is_empty() {
        role_ref.api_group = Some(GROUP.into());
    }
    for s in subjects.iter_mut().flatten() {
        if s.api_group.as_deref().unwrap_or_default().is_empty() && matches!(s.kind.as_str(), "User" | "Group") {
            s.api_group = Some(GROUP.into());
        }
    }
}

pub(super) fn validate(role_ref: &RoleRef, subjects: Option<&Vec<Subject>>, namespaced: bool) -> ErrorList {
    let mut e = ErrorList::default();
    let at = Path::new("roleRef");
    let group = role_ref.api_group.as_deref().unwrap_or_default();
    if group != GROUP {
        e.not_supported(&at.child("apiGroup"), group, &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&role_ref.kind.as_str()) {
        e.not_supported(&at.child("kind"), &role_ref.kind, kinds);
    }
    if role_ref.name.is_empty() {
        e.required(&at.child("name"), "");
    } else {
        names::push_invalid(&mut e, &at.child("name"), &role_ref.name, &names::path_segment(&role_ref.name, false));
    }
    for (i, s) in subjects.into_iter().flatten().enumerate() {
        validate_subject(s, namespaced, &Path::new("subjects").index(i), &mut e);
    }
    e
}

fn validate_subject(s: &Subject, namespaced: bool, at: &Path, e: &mut ErrorList) {
    if s.name.is_empty() {
        e.required(&at.child("name"), "");
    }
    let group = s.api_group.as_deref().unwrap_or_default();
    match s.kind.as_str() {
        "ServiceAccount" => {
            if !s.name.is_empty() {
                names::push_invalid(e, &at.child("name"), &s.name, &names::dns1123_subdomain(&s.name, false));
            }
            if !group.is_empty() {
                e.not_supported(&at.child("apiGroup"), group, &[""]);
            }
            if !namespaced && s.namespace.as_deref().unwrap_or_default().is_empty() {
                e.required(&at.child("namespace"), "");
            }
        }
        kind @ ("User" | "Group") => {
            if s.name.is_empty() {
                e.invalid(&at.child("name"), "", &format!("{} name cannot be empty", kind.to_lowercase()));
            }
            if group != GROUP {
                e.not_supported(&at.child("apiGroup"), group, &[GROUP]);
            }
        }
        other => e.not_supported(&at.child("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}

pub(super) fn validate_immutable(new: &RoleRef, old: &RoleRef, e: &mut ErrorList) {
    if new != old {
        let parts = [("APIGroup", json!(new.api_group)), ("Kind", json!(new.kind)), ("Name", json!(new.name))];
        workload::invalid_shown(e, &Path::new("roleRef"), &workload::shown_as(&parts), "cannot change roleRef");
    }
}

/// Comma-separated users, groups and ServiceAccounts, for the wide table.
pub(super) fn texts(subjects: Option<&Vec<Subject>>) -> [String; 3] {
    let of = |kind: &str| {
        subjects
            .into_iter()
            .flatten()
            .filter(|s| s.kind == kind)
            .map(|s| match kind {
                "ServiceAccount" => format!("{}/{}", s.namespace.as_deref().unwrap_or_default(), s.name),
                _ => s.name.clone(),
            })
            .collect::<Vec<_>>()
            .join(", ")
    };
    [of("User"), of("Group"), of("ServiceAccount")]
}
