//! ResourceClaimTemplate: how the claim of a pod is made.

use super::claim::{canonicalize_spec, expressions, set_defaults, validate_spec};
use super::gates::drop_from_claim;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::expression::Expression;
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::validate_labels;
use crate::meta::object::{Meta, semantically_equal, validate_annotations};
use crate::meta::table;
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

impl Kind for ResourceClaimTemplate {
    const INFO: ResourceInfo = ResourceInfo::new(
        "resource.k8s.io",
        "v1",
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        "resourceclaimtemplate",
        true,
    );
    const COLUMNS: &'static [Column] = &[table::NAME, table::AGE];
    crate::kind_codec!(canonical: |t: &mut Self| {
        t.spec.iter_mut().filter_map(|s| s.spec.as_mut()).try_for_each(canonicalize_spec)
    });

    fn set_defaults(&mut self) {
        set_defaults(self.spec.get_or_insert_default().spec.get_or_insert_default());
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.spec.iter_mut().filter_map(|s| s.spec.as_mut()).for_each(drop_from_claim);
    }

    fn validate(&self) -> ErrorList {
        let spec = self.spec.clone().unwrap_or_default();
        let (meta, path) = (spec.metadata.unwrap_or_default(), Path::new("spec"));
        let mut e = validate_annotations(meta.annotations.as_ref(), &path.child("metadata").child("annotations"));
        e.extend(validate_labels(meta.labels.as_ref(), &path.child("metadata").child("labels")));
        e.extend(validate_spec(&spec.spec.unwrap_or_default(), &path.child("spec")));
        e
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        if !semantically_equal(&self.spec, &old.spec) {
            e.invalid(&Path::new("spec"), json!(self.spec), "field is immutable");
        }
        e
    }

    fn expressions(&self, old: Option<&Self>) -> Vec<Expression> {
        let spec = self.spec.as_ref().and_then(|s| s.spec.as_ref()).filter(|_| old.is_none());
        spec.map(|s| expressions(s, &Path::new("spec").child("spec"))).unwrap_or_default()
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![self.metadata.name().into(), table::age(&self.metadata, now).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_inner_spec() {
        let mut t = ResourceClaimTemplate::from_value(json!({"metadata": {"name": "t"}, "spec": {"metadata":
            {"labels": {"k": "a b"}}, "spec": {"devices": {"requests": [{"name": "a"}]}}}}))
        .unwrap();
        t.set_defaults();
        let texts: Vec<String> = t.validate().0.iter().map(ToString::to_string).collect();
        assert!(texts[0].starts_with("spec.metadata.labels: Invalid value: \"a b\""), "{texts:?}");
        assert!(texts[1].starts_with("spec.spec.devices.requests[0]: Required value"), "{texts:?}");
        let mut changed = t.clone();
        changed.spec.as_mut().unwrap().metadata = None;
        assert!(changed.validate_update(&t).0[0].to_string().ends_with("field is immutable"));
    }
}
