//! Pod templates inside workloads.

use crate::core::pod::validate::{Options, validate_pod_annotations, validate_pod_spec, validate_profiles_agree};
use crate::meta::field::{ErrorList, Path};
use crate::meta::{labels, object};
use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Field errors of a pod template at `path` (`ValidatePodTemplateSpec`).
#[must_use]
pub fn validate_pod_template_spec(template: &PodTemplateSpec, path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    let empty = k8s_openapi::api::core::v1::PodSpec::default();
    let spec = template.spec.as_ref().unwrap_or(&empty);
    let none = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta::default();
    let meta = template.metadata.as_ref().unwrap_or(&none);
    errors.extend(labels::validate_labels(meta.labels.as_ref(), &path.child("labels")));
    errors.extend(object::validate_annotations(meta.annotations.as_ref(), &path.child("annotations")));
    validate_pod_annotations(meta, spec, &path.child("annotations"), &mut errors);
    errors.extend(validate_pod_spec(spec, None, &path.child("spec"), Options::default()));
    validate_profiles_agree(meta, spec, &path.child("spec"), &mut errors);
    if spec.ephemeral_containers.as_ref().is_some_and(|e| !e.is_empty()) {
        errors.forbidden(
            &path.child("spec").child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
    errors
}
