//! ClusterRole: what may be done to which resources, in the cluster or wherever it is bound.

use super::rules;
use crate::kind::{Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use k8s_openapi::api::rbac::v1::ClusterRole;

impl Kind for ClusterRole {
    const INFO: ResourceInfo = ResourceInfo {
        create_on_update: true,
        ..ResourceInfo::new(super::GROUP, "v1", "ClusterRole", "clusterroles", "clusterrole", false)
    };
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        for (i, rule) in self.rules.iter().flatten().enumerate() {
            e.extend(rules::validate(rule, false, &Path::new("rules").index(i)));
        }
        if let Some(aggregation) = &self.aggregation_rule {
            let at = Path::new("aggregationRule").child("clusterRoleSelectors");
            let selectors = aggregation.cluster_role_selectors.as_deref().unwrap_or_default();
            if selectors.is_empty() {
                e.required(&at, "at least one clusterRoleSelector required if aggregationRule is non-nil");
            }
        }
        e
    }

    fn validate_name(name: &str, prefix: bool) -> Vec<String> {
        names::path_segment(name, prefix)
    }
}
