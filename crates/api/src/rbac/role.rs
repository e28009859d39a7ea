//! Role: what may be done to which resources of one namespace.

use super::rules;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use k8s_openapi::api::rbac::v1::Role;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

impl Kind for Role {
    const INFO: ResourceInfo = ResourceInfo::new(super::GROUP, "v1", "Role", "roles", "role", true);
    const COLUMNS: &'static [Column] = &[
        Column { name: "Name", r#type: "string", format: "name", description: "Name of the role.", priority: 0 },
        Column {
            name: "Created At",
            r#type: "date",
            format: "",
            description: "When the role was created.",
            priority: 0,
        },
    ];
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        for (i, rule) in self.rules.iter().flatten().enumerate() {
            e.extend(rules::validate(rule, true, &Path::new("rules").index(i)));
        }
        e
    }

    fn validate_name(name: &str, prefix: bool) -> Vec<String> {
        names::path_segment(name, prefix)
    }

    fn cells(&self, _now: Timestamp) -> Vec<Value> {
        let created = self.metadata.creation_timestamp.as_ref().map(|t| t.0.to_string()).unwrap_or_default();
        vec![self.metadata.name.clone().unwrap_or_default().into(), created.into()]
    }
}
