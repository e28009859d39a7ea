//! ClusterRoleBinding: grants a ClusterRole to subjects in the whole cluster.

use super::subjects;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::ErrorList;
use crate::meta::{names, table};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

impl Kind for ClusterRoleBinding {
    const INFO: ResourceInfo = ResourceInfo {
        create_on_update: true,
        ..ResourceInfo::new(
            super::GROUP,
            "v1",
            "ClusterRoleBinding",
            "clusterrolebindings",
            "clusterrolebinding",
            false,
        )
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
        subjects::validate(&self.role_ref, self.subjects.as_ref(), false)
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
