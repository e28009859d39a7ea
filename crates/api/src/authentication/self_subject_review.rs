//! SelfSubjectReview: asks who the server takes the caller for.

use crate::kind::{Column, Kind, ResourceInfo, Verb};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

impl Kind for SelfSubjectReview {
    const INFO: ResourceInfo = ResourceInfo {
        verbs: &[Verb::Create],
        virtual_only: true,
        ..ResourceInfo::new(
            "authentication.k8s.io",
            "v1",
            "SelfSubjectReview",
            "selfsubjectreviews",
            "selfsubjectreview",
            false,
        )
    };
    const COLUMNS: &'static [Column] = &[
        Column { name: "Name", r#type: "string", format: "name", description: "Always empty.", priority: 0 },
        Column { name: "Username", r#type: "string", format: "", description: "Name of the caller.", priority: 0 },
    ];
    crate::kind_codec!();

    fn cells(&self, _now: Timestamp) -> Vec<Value> {
        let user = self.status.as_ref().and_then(|s| s.user_info.as_ref()).and_then(|u| u.username.clone());
        vec![self.metadata.name.clone().unwrap_or_default().into(), user.unwrap_or_default().into()]
    }
}
