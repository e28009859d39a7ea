//! TokenReview: asks whose token this is.

use crate::kind::{Kind, ResourceInfo, Verb};
use k8s_openapi::api::authentication::v1::TokenReview;

impl Kind for TokenReview {
    const INFO: ResourceInfo = ResourceInfo {
        verbs: &[Verb::Create],
        virtual_only: true,
        ..ResourceInfo::new("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", "tokenreview", false)
    };
    crate::kind_codec!();
}
