//! SubjectAccessReview, SelfSubjectAccessReview and LocalSubjectAccessReview: may somebody do this?

use crate::ObjectMeta;
use crate::kind::{Kind, ResourceInfo, Verb};
use crate::meta::field::{ErrorList, Path};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use serde_json::json;

const fn info(kind: &'static str, plural: &'static str, singular: &'static str, namespaced: bool) -> ResourceInfo {
    ResourceInfo {
        verbs: &[Verb::Create],
        virtual_only: true,
        ..ResourceInfo::new("authorization.k8s.io", "v1", kind, plural, singular, namespaced)
    }
}

fn attributes(
    resource: Option<&ResourceAttributes>,
    path: Option<&NonResourceAttributes>,
    at: &Path,
    e: &mut ErrorList,
) {
    match (resource, path) {
        (Some(_), Some(p)) => {
            let shown = json!({"path": p.path, "verb": p.verb});
            let detail = "cannot be specified in combination with resourceAttributes";
            e.invalid(&at.child("nonResourceAttributes"), shown, detail);
        }
        (None, None) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            e.invalid(&at.child("resourceAttributes"), serde_json::Value::Null, detail);
        }
        _ => {}
    }
}

fn spec(s: &SubjectAccessReviewSpec, e: &mut ErrorList) {
    let at = Path::new("spec");
    attributes(s.resource_attributes.as_ref(), s.non_resource_attributes.as_ref(), &at, e);
    let nobody = s.user.as_deref().unwrap_or_default().is_empty() && s.groups.as_deref().unwrap_or_default().is_empty();
    if nobody {
        e.invalid(&at.child("user"), "", "at least one of user or group must be specified");
    }
}

/// Everything but the namespace (of a local review) and managed fields must be absent.
fn empty_meta(meta: &ObjectMeta, e: &mut ErrorList) {
    let bare = ObjectMeta {
        namespace: meta.namespace.clone(),
        managed_fields: meta.managed_fields.clone(),
        ..Default::default()
    };
    if *meta != bare {
        let shown = json!({"name": meta.name, "labels": meta.labels, "annotations": meta.annotations});
        e.invalid(&Path::new("metadata"), shown, "must be empty");
    }
}

impl Kind for SubjectAccessReview {
    const INFO: ResourceInfo = info("SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview", false);
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        spec(&self.spec, &mut e);
        empty_meta(&self.metadata, &mut e);
        e
    }
}

impl Kind for LocalSubjectAccessReview {
    const INFO: ResourceInfo =
        info("LocalSubjectAccessReview", "localsubjectaccessreviews", "localsubjectaccessreview", true);
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        spec(&self.spec, &mut e);
        empty_meta(&self.metadata, &mut e);
        let at = Path::new("spec").child("resourceAttributes");
        if let Some(r) = &self.spec.resource_attributes {
            let namespace = r.namespace.as_deref().unwrap_or_default();
            if namespace != self.metadata.namespace.as_deref().unwrap_or_default() {
                e.invalid(&at.child("namespace"), namespace, "must match metadata.namespace");
            }
        }
        if let Some(p) = &self.spec.non_resource_attributes {
            let shown = json!({"path": p.path, "verb": p.verb});
            let at = Path::new("spec").child("nonResourceAttributes");
            e.invalid(&at, shown, "disallowed on this kind of request");
        }
        e
    }
}

impl Kind for SelfSubjectAccessReview {
    const INFO: ResourceInfo =
        info("SelfSubjectAccessReview", "selfsubjectaccessreviews", "selfsubjectaccessreview", false);
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let s = &self.spec;
        attributes(s.resource_attributes.as_ref(), s.non_resource_attributes.as_ref(), &Path::new("spec"), &mut e);
        empty_meta(&self.metadata, &mut e);
        e
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_names_one_question_and_somebody() {
        let cases = [
            (json!({"user": "u", "resourceAttributes": {"verb": "get"}}), vec![]),
            (json!({"groups": ["g"], "nonResourceAttributes": {"verb": "get", "path": "/"}}), vec![]),
            (json!({"user": "u"}), vec!["spec.resourceAttributes"]),
            (json!({"resourceAttributes": {}}), vec!["spec.user"]),
            (
                json!({"user": "u", "resourceAttributes": {}, "nonResourceAttributes": {}}),
                vec!["spec.nonResourceAttributes"],
            ),
        ];
        for (spec, want) in cases {
            let r = SubjectAccessReview::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let fields: Vec<String> = r.validate().0.into_iter().map(|e| e.field).collect();
            assert_eq!(fields, want, "{spec}");
        }
    }

    #[test]
    fn a_local_review_stays_in_its_namespace() {
        let r = LocalSubjectAccessReview::from_value(json!({
            "metadata": {"namespace": "a"}, "spec": {"user": "u", "resourceAttributes": {"namespace": "b"}}
        }));
        let errors = r.unwrap().validate();
        assert_eq!(
            errors.0[0].to_string(),
            r#"spec.resourceAttributes.namespace: Invalid value: "b": must match metadata.namespace"#
        );
    }
}
