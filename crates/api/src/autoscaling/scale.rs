//! Scale: the body of the `scale` subresource, one number of any kind that has replicas. Never stored.

use crate::apps::workload::nonnegative;
use crate::kind::{Kind, Object, ResourceInfo, Verb, downcast, downcast_mut};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{format_label_selector, format_labels};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec, ScaleStatus};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

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

fn scale(meta: &ObjectMeta, desired: Option<i32>, present: i32, selector: String) -> Scale {
    Scale {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            creation_timestamp: meta.creation_timestamp.clone(),
            ..Default::default()
        },
        spec: Some(ScaleSpec { replicas: desired }),
        status: Some(ScaleStatus { replicas: present, selector: (!selector.is_empty()).then_some(selector) }),
    }
}

/// The scale of a workload; None where its kind has none.
#[must_use]
pub fn of(object: &dyn Object) -> Option<Scale> {
    if let Some(d) = downcast::<Deployment>(object) {
        let present = d.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        return Some(scale(&d.metadata, d.spec.replicas, present, format_label_selector(Some(&d.spec.selector))));
    }
    if let Some(r) = downcast::<ReplicaSet>(object) {
        let present = r.status.as_ref().map_or(0, |s| s.replicas);
        return Some(scale(&r.metadata, r.spec.replicas, present, format_label_selector(Some(&r.spec.selector))));
    }
    if let Some(s) = downcast::<StatefulSet>(object) {
        let present = s.status.as_ref().map_or(0, |s| s.replicas);
        return Some(scale(&s.metadata, s.spec.replicas, present, format_label_selector(Some(&s.spec.selector))));
    }
    let r = downcast::<ReplicationController>(object)?;
    let spec = r.spec.as_ref();
    let present = r.status.as_ref().map_or(0, |s| s.replicas);
    let selector = format_labels(spec.and_then(|s| s.selector.as_ref()));
    Some(scale(&r.metadata, spec.and_then(|s| s.replicas), present, selector))
}

/// Asks a workload for `replicas`; false where its kind has none.
pub fn set_replicas(object: &mut dyn Object, replicas: i32) -> bool {
    if let Some(d) = downcast_mut::<Deployment>(object) {
        d.spec.replicas = Some(replicas);
    } else if let Some(r) = downcast_mut::<ReplicaSet>(object) {
        r.spec.replicas = Some(replicas);
    } else if let Some(s) = downcast_mut::<StatefulSet>(object) {
        s.spec.replicas = Some(replicas);
    } else if let Some(r) = downcast_mut::<ReplicationController>(object) {
        r.spec.get_or_insert_default().replicas = Some(replicas);
    } else {
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deployments_scale_reads_and_writes() {
        let mut d = Deployment::from_value(json!({
            "metadata": {"name": "w", "namespace": "n", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {}},
            "status": {"replicas": 2},
        }))
        .unwrap();
        let s = of(&d).unwrap();
        assert_eq!(s.spec.unwrap().replicas, Some(3));
        assert_eq!(s.status, Some(ScaleStatus { replicas: 2, selector: Some("a=b".into()) }));
        assert!(s.metadata.labels.is_none());
        assert!(set_replicas(&mut d, 5));
        assert_eq!(d.spec.replicas, Some(5));
        let mut pod = k8s_openapi::api::core::v1::Pod::default();
        assert!(of(&pod).is_none() && !set_replicas(&mut pod, 1));
    }

    #[test]
    fn fewer_than_no_replicas_are_refused() {
        let s = Scale { spec: Some(ScaleSpec { replicas: Some(-1) }), ..Default::default() };
        assert_eq!(
            s.validate().0[0].to_string(),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
