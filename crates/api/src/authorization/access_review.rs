//! SubjectAccessReview, SelfSubjectAccessReview and LocalSubjectAccessReview: may somebody do this?

use crate::ObjectMeta;
use crate::kind::{Kind, ResourceInfo, Verb};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::validate_label_key;
use crate::meta::names;
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
            let shown = shown(p);
            let detail = "cannot be specified in combination with resourceAttributes";
            e.invalid(&at.child("nonResourceAttributes"), shown, detail);
        }
        (None, None) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            e.invalid(&at.child("resourceAttributes"), serde_json::Value::Null, detail);
        }
        _ => {}
    }
    let Some(resource) = resource else { return };
    let at = at.child("resourceAttributes");
    if let Some(selector) = &resource.field_selector {
        let (at, terms) = (at.child("fieldSelector"), selector.requirements.as_deref().unwrap_or_default());
        raw_or_not(selector.raw_selector.as_deref(), terms.is_empty(), &at, e);
        for (i, term) in terms.iter().enumerate() {
            let at = at.child("requirements").index(i);
            if term.key.is_empty() {
                e.required(&at.child("key"), "must be specified");
            }
            operands(&term.operator, term.values.as_deref().unwrap_or_default(), &at, e);
        }
    }
    if let Some(selector) = &resource.label_selector {
        let (at, terms) = (at.child("labelSelector"), selector.requirements.as_deref().unwrap_or_default());
        raw_or_not(selector.raw_selector.as_deref(), terms.is_empty(), &at, e);
        for (i, term) in terms.iter().enumerate() {
            let at = at.child("requirements").index(i);
            let values = term.values.as_deref().unwrap_or_default();
            operands(&term.operator, values, &at, e);
            validate_label_key(&term.key, &at.child("key"), e);
            for (i, value) in values.iter().enumerate() {
                names::push_invalid(e, &at.child("values").index(i), value, &names::label_value(value));
            }
        }
    }
}

/// A selector is said in one way, and not left out.
fn raw_or_not(raw: Option<&str>, no_terms: bool, at: &Path, e: &mut ErrorList) {
    match (raw.unwrap_or_default(), no_terms) {
        ("", true) => {
            let detail = format!("when {} is specified, requirements or rawSelector is required", at.as_str());
            e.required(&at.child("requirements"), &detail);
        }
        (raw, false) if !raw.is_empty() => {
            e.invalid(&at.child("rawSelector"), raw, "may not specified at the same time as requirements");
        }
        _ => {}
    }
}

/// What an operator takes. Those that nobody here knows may come from a newer client, and only narrow what is asked.
fn operands(operator: &str, values: &[String], at: &Path, e: &mut ErrorList) {
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            e.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            e.forbidden(&at.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        _ => {}
    }
}

/// As upstream's internal type is shown, whose fields have no other names.
fn shown(path: &NonResourceAttributes) -> serde_json::Value {
    json!({"Path": path.path.as_deref().unwrap_or_default(), "Verb": path.verb.as_deref().unwrap_or_default()})
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
            let at = Path::new("spec").child("nonResourceAttributes");
            e.invalid(&at, shown(p), "disallowed on this kind of request");
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
    fn selectors_are_said_once_and_whole() {
        for (selectors, want) in [
            (json!({"fieldSelector": {"rawSelector": "a=b"}, "labelSelector": {"rawSelector": "a"}}), vec![]),
            (
                json!({"fieldSelector": {"rawSelector": "a=b", "requirements": [{"key": "", "operator": "X"}]}}),
                vec![
                    "spec.resourceAttributes.fieldSelector.rawSelector: Invalid value: \"a=b\": may not specified at the \
                     same time as requirements",
                    "spec.resourceAttributes.fieldSelector.requirements[0].key: Required value: must be specified",
                ],
            ),
            (
                json!({"labelSelector": {}}),
                vec![
                    "spec.resourceAttributes.labelSelector.requirements: Required value: when \
                     spec.resourceAttributes.labelSelector is specified, requirements or rawSelector is required",
                ],
            ),
            (
                json!({"labelSelector": {"requirements": [{"key": "a", "operator": "In"}]}}),
                vec![
                    "spec.resourceAttributes.labelSelector.requirements[0].values: Required value: must be specified \
                     when `operator` is 'In' or 'NotIn'",
                ],
            ),
        ] {
            let spec = json!({"resourceAttributes": selectors});
            let review = SelfSubjectAccessReview::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let texts: Vec<String> = review.validate().0.iter().map(ToString::to_string).collect();
            assert_eq!(texts, want, "{spec}");
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
