//! Eviction: the body of `pods/eviction`, a deletion that disruption budgets may refuse. Never stored.

use crate::kind::{Kind, ResourceInfo, Verb};
use k8s_openapi::api::policy::v1::Eviction;

impl Kind for Eviction {
    const INFO: ResourceInfo = ResourceInfo {
        verbs: &[Verb::Create],
        virtual_only: true,
        ..ResourceInfo::new("policy", "v1", "Eviction", "evictions", "eviction", true)
    };
    crate::kind_codec!();
}
