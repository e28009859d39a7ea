//! RoleBinding: grants a role to subjects within one namespace.

use super::subjects;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::ErrorList;
use crate::meta::{names, table};
use k8s_openapi::api::rbac::v1::RoleBinding;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

impl Kind for RoleBinding {
    const INFO: ResourceInfo = ResourceInfo {
        create_on_update: true,
        ..ResourceInfo::new(super::GROUP, "v1", "RoleBinding", "rolebindings", "rolebinding", true)
    };
    const COLUMNS: &'static [Column] = &[
        Column { name: "Name", r#type: "string", format: "name", description: "Name of the binding.", priority: 0 },
        Column { name: "Role", r#type: "string", format: "", description: "The role that is granted.", priority: 0 },
        Column {
            name: "Age",
            r#type: "string",
            format: "",
            description: "Time since the binding was created.",
            priority: 0,
        },
        Column { name: "Users", r#type: "string", format: "", description: "Users among the subjects.", priority: 1 },
        Column { name: "Groups", r#type: "string", format: "", description: "Groups among the subjects.", priority: 1 },
        Column {
            name: "ServiceAccounts",
            r#type: "string",
            format: "",
            description: "ServiceAccounts among the subjects.",
            priority: 1,
        },
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        subjects::set_defaults(&mut self.role_ref, &mut self.subjects);
    }

    fn validate(&self) -> ErrorList {
        subjects::validate(&self.role_ref, self.subjects.as_ref(), true)
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        subjects::validate_immutable(&self.role_ref, &old.role_ref, &mut e);
        e
    }

    fn validate_name(name: &str, prefix: bool) -> Vec<String> {
        names::path_segment(name, prefix)
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let [users, groups, accounts] = subjects::texts(self.subjects.as_ref());
        vec![
            self.metadata.name.clone().unwrap_or_default().into(),
            format!("{}/{}", self.role_ref.kind, self.role_ref.name).into(),
            table::age(&self.metadata, now).into(),
            users.into(),
            groups.into(),
            accounts.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn subjects_and_role_are_checked() {
        let cases = [
            (json!({"kind": "Role", "name": "r"}), json!([{"kind": "User", "name": "u"}]), ""),
            (json!({"kind": "Role", "name": "r"}), json!([{"kind": "ServiceAccount", "name": "s"}]), ""),
            (
                json!({"kind": "X", "name": "r"}),
                json!([]),
                r#"roleRef.kind: Unsupported value: "X": supported values: "Role", "ClusterRole""#,
            ),
            (json!({"kind": "Role", "name": ""}), json!([]), "roleRef.name: Required value"),
            (
                json!({"kind": "Role", "name": "r"}),
                json!([{"kind": "User", "name": "u", "apiGroup": "x"}]),
                r#"subjects[0].apiGroup: Unsupported value: "x": supported values: "rbac.authorization.k8s.io""#,
            ),
        ];
        for (role, subjects, want) in cases {
            let mut b =
                RoleBinding::from_value(json!({"metadata": {"name": "b"}, "roleRef": role, "subjects": subjects}))
                    .unwrap();
            b.set_defaults();
            let got = b.validate().0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            assert_eq!(got, want);
        }
    }

    #[test]
    fn the_role_cannot_change() {
        let of = |name: &str| {
            let mut b =
                RoleBinding::from_value(json!({"metadata": {}, "roleRef": {"kind": "Role", "name": name}})).unwrap();
            b.set_defaults();
            b
        };
        assert!(of("a").validate_update(&of("a")).is_empty());
        assert!(of("b").validate_update(&of("a")).0[0].to_string().ends_with("cannot change roleRef"));
    }
}
