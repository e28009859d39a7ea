//! The one visible list of kinds that are served. Adding a kind means one file and one line here.

use crate::kind::{Erased, Resource};
use k8s_openapi::api::admissionregistration::v1 as admissionregistration;
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::authorization::v1 as authorization;
use k8s_openapi::api::autoscaling::{v1 as autoscaling_v1, v2 as autoscaling};
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::certificates::v1 as certificates;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::api::flowcontrol::v1 as flowcontrol;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::api::node::v1 as node;
use k8s_openapi::api::policy::v1 as policy;
use k8s_openapi::api::rbac::v1 as rbac;
use k8s_openapi::api::resource::v1 as resource;
use k8s_openapi::api::scheduling::{v1 as scheduling, v1beta1 as scheduling_beta};
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::api::storagemigration::v1 as storagemigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Every built-in resource, in discovery's order within its group.
pub static ALL: &[&dyn Resource] = &[
    &Erased::<core::Binding>::new(),
    &Erased::<core::ComponentStatus>::new(),
    &Erased::<core::ConfigMap>::new(),
    &Erased::<core::Endpoints>::new(),
    &Erased::<core::Event>::new(),
    &Erased::<core::LimitRange>::new(),
    &Erased::<core::Namespace>::new(),
    &Erased::<core::Node>::new(),
    &Erased::<core::PersistentVolume>::new(),
    &Erased::<core::PersistentVolumeClaim>::new(),
    &Erased::<core::Pod>::new(),
    &Erased::<core::PodTemplate>::new(),
    &Erased::<core::ReplicationController>::new(),
    &Erased::<core::ResourceQuota>::new(),
    &Erased::<core::Secret>::new(),
    &Erased::<core::Service>::new(),
    &Erased::<core::ServiceAccount>::new(),
    &Erased::<admissionregistration::MutatingAdmissionPolicy>::new(),
    &Erased::<admissionregistration::MutatingAdmissionPolicyBinding>::new(),
    &Erased::<admissionregistration::MutatingWebhookConfiguration>::new(),
    &Erased::<admissionregistration::ValidatingAdmissionPolicy>::new(),
    &Erased::<admissionregistration::ValidatingAdmissionPolicyBinding>::new(),
    &Erased::<admissionregistration::ValidatingWebhookConfiguration>::new(),
    &Erased::<apiextensions::CustomResourceDefinition>::new(),
    &Erased::<apiregistration::APIService>::new(),
    &Erased::<apps::ControllerRevision>::new(),
    &Erased::<apps::DaemonSet>::new(),
    &Erased::<apps::Deployment>::new(),
    &Erased::<apps::ReplicaSet>::new(),
    &Erased::<apps::StatefulSet>::new(),
    &Erased::<authentication::SelfSubjectReview>::new(),
    &Erased::<authentication::TokenReview>::new(),
    &Erased::<authorization::LocalSubjectAccessReview>::new(),
    &Erased::<authorization::SelfSubjectAccessReview>::new(),
    &Erased::<authorization::SelfSubjectRulesReview>::new(),
    &Erased::<authorization::SubjectAccessReview>::new(),
    // The first version of a group is the preferred one.
    &Erased::<autoscaling::HorizontalPodAutoscaler>::new(),
    &Erased::<autoscaling_v1::HorizontalPodAutoscaler>::new(),
    &Erased::<batch::CronJob>::new(),
    &Erased::<batch::Job>::new(),
    &Erased::<certificates::CertificateSigningRequest>::new(),
    &Erased::<certificates::ClusterTrustBundle>::new(),
    &Erased::<certificates::PodCertificateRequest>::new(),
    &Erased::<coordination::Lease>::new(),
    &Erased::<discovery::EndpointSlice>::new(),
    &Erased::<events::Event>::new(),
    &Erased::<flowcontrol::FlowSchema>::new(),
    &Erased::<flowcontrol::PriorityLevelConfiguration>::new(),
    &Erased::<networking::Ingress>::new(),
    &Erased::<networking::IngressClass>::new(),
    &Erased::<networking::IPAddress>::new(),
    &Erased::<networking::NetworkPolicy>::new(),
    &Erased::<networking::ServiceCIDR>::new(),
    &Erased::<node::RuntimeClass>::new(),
    &Erased::<policy::PodDisruptionBudget>::new(),
    &Erased::<rbac::ClusterRole>::new(),
    &Erased::<rbac::ClusterRoleBinding>::new(),
    &Erased::<rbac::Role>::new(),
    &Erased::<rbac::RoleBinding>::new(),
    &Erased::<resource::DeviceClass>::new(),
    &Erased::<resource::DeviceTaintRule>::new(),
    &Erased::<resource::ResourceClaim>::new(),
    &Erased::<resource::ResourceClaimTemplate>::new(),
    &Erased::<resource::ResourceSlice>::new(),
    &Erased::<scheduling::PriorityClass>::new(),
    &Erased::<storage::CSIDriver>::new(),
    &Erased::<storage::CSINode>::new(),
    &Erased::<storage::CSIStorageCapacity>::new(),
    &Erased::<storage::StorageClass>::new(),
    &Erased::<storage::VolumeAttachment>::new(),
    &Erased::<storage::VolumeAttributesClass>::new(),
    &Erased::<storagemigration::StorageVersionMigration>::new(),
];

/// Kinds of versions that are off by default; [`crate::versions::Versions`] says which are on.
pub static OPTIONAL: &[&dyn Resource] =
    &[&Erased::<scheduling_beta::PodGroup>::new(), &Erased::<scheduling_beta::Workload>::new()];

/// The built-in resource with this group, version and plural name, whether its version is on or not.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static dyn Resource> {
    // Asked several times for each request.
    static BY_PLURAL: LazyLock<HashMap<&str, Vec<&dyn Resource>>> = LazyLock::new(|| {
        let mut by_plural: HashMap<&str, Vec<&dyn Resource>> = HashMap::new();
        for r in ALL.iter().chain(OPTIONAL) {
            by_plural.entry(r.info().plural).or_default().push(*r);
        }
        by_plural
    });
    let found = BY_PLURAL.get(plural)?.iter().find(|r| r.info().group == group && r.info().version == version);
    found.copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Context;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_is_listed_once_with_its_subresources_in_order() {
        let mut seen = BTreeSet::new();
        for r in ALL.iter().chain(OPTIONAL) {
            let i = r.info();
            assert!(seen.insert((i.group, i.version, i.plural)), "{} is listed twice", i.qualified());
            let subresources: Vec<&str> = i.subresources.iter().map(|s| s.name).collect();
            assert!(subresources.is_sorted(), "{}: {subresources:?}", i.plural);
            let verbs: Vec<&str> = i.verbs.iter().map(|v| v.as_str()).collect();
            assert!(verbs.is_sorted(), "{}: {verbs:?}", i.plural);
            let found = find(i.group, i.version, i.plural).map(|r| r.info().qualified());
            assert_eq!(found, Some(i.qualified()));
        }
    }

    #[test]
    fn the_emptiest_object_of_every_kind_survives_its_life() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "someone" };
        for r in ALL.iter().chain(OPTIONAL) {
            let i = r.info();
            let value = json!({"apiVersion": i.api_version(), "kind": i.kind, "metadata": {"name": "n"}});
            let mut o = r.decode_value(value).unwrap_or_else(|e| panic!("{}: {e}", i.kind));
            r.set_defaults(o.as_mut());
            r.prepare_for_create(o.as_mut(), &cx);
            let _ = r.validate(o.as_ref());
            assert_eq!(r.cells(o.as_ref(), cx.now).len(), r.columns().len(), "{}", i.kind);
            let old = o.boxed_clone();
            r.prepare_for_update(o.as_mut(), old.as_ref(), &cx);
            assert_eq!(o.to_value(), old.to_value(), "an update that changes nothing changed a {}", i.kind);
            let _ = (r.validate_update(o.as_ref(), old.as_ref()), r.warnings(o.as_ref(), Some(old.as_ref())));
            let again = r.decode(&o.to_json()).unwrap_or_else(|e| panic!("{}: {e}", i.kind));
            assert_eq!(again.to_value(), o.to_value(), "{} reads back as written", i.kind);
            let names: Vec<&str> = r.selectable_fields(o.as_ref()).iter().map(|f| f.0).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{}: {names:?}", i.kind);
        }
    }
}
