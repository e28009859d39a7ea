//! Scale: the body of the `scale` subresource, one number of any kind that has replicas. Never stored.

use crate::apps::workload::nonnegative;
use crate::kind::{Kind, ResourceInfo, Verb};
use crate::meta::field::{ErrorList, Path};
use k8s_openapi::api::autoscaling::v1::Scale;

impl Kind for Scale {
    const INFO: ResourceInfo = ResourceInfo {
        verbs: &[Verb::Get, Verb::Patch, Verb::Update],
        virtual_only: true,
        ..ResourceInfo::new("autoscaling", "v1", "Scale", "scales", "scale", true)
    };
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let replicas = self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        nonnegative(&mut e, &Path::new("spec").child("replicas"), i64::from(replicas));
        e
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::autoscaling::v1::ScaleSpec;

    #[test]
    fn fewer_than_no_replicas_are_refused() {
        let s = Scale { spec: Some(ScaleSpec { replicas: Some(-1) }), ..Default::default() };
        assert_eq!(
            s.validate().0[0].to_string(),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
