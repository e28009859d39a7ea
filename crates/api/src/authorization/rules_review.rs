//! SelfSubjectRulesReview: asks for all that the caller may do in a namespace.

use crate::kind::{Kind, ResourceInfo, Verb};
use k8s_openapi::api::authorization::v1::SelfSubjectRulesReview;

impl Kind for SelfSubjectRulesReview {
    const INFO: ResourceInfo = ResourceInfo {
        verbs: &[Verb::Create],
        virtual_only: true,
        ..ResourceInfo::new(
            "authorization.k8s.io",
            "v1",
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            "selfsubjectrulesreview",
            false,
        )
    };
    crate::kind_codec!();
}
