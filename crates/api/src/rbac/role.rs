//! Role: what may be done to which resources of one namespace.

use super::rules;
use crate::kind::{Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use k8s_openapi::api::rbac::v1::Role;

impl Kind for Role {
    const INFO: ResourceInfo =
        ResourceInfo { create_on_update: true, ..ResourceInfo::new(super::GROUP, "v1", "Role", "roles", "role", true) };
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
}
