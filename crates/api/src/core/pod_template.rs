//! PodTemplate: a pod template on its own.

use crate::apps::workload;
use crate::core::pod::{default_pod_template, pod_template_warnings, validate_pod_template_spec};
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::format_labels;
use crate::meta::object::{Meta, semantically_equal};
use k8s_openapi::api::core::v1::PodTemplate;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

impl Kind for PodTemplate {
    const INFO: ResourceInfo = ResourceInfo::new("", "v1", "PodTemplate", "podtemplates", "podtemplate", true);
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Containers", "string", "Names of each container in the template."),
        workload::column("Images", "string", "Images referenced by each container in the template."),
        workload::column("Pod Labels", "string", "The labels for the pod template."),
    ];
    crate::kind_codec!(canonical: |t: &mut Self| workload::canonicalize_template(t.template.as_mut()));

    fn set_defaults(&mut self) {
        default_pod_template(self.template.get_or_insert_default());
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        validate_pod_template_spec(&self.template.clone().unwrap_or_default(), &Path::new("template"))
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let Some(template) = &self.template else { return Vec::new() };
        pod_template_warnings(template, old.and_then(|o| o.template.as_ref()), &Path::new("template"))
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        let changed = !semantically_equal(&self.template, &old.template);
        workload::bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn cells(&self, _now: Timestamp) -> Vec<Value> {
        let [containers, images] = workload::container_cells(self.template.as_ref());
        let labels = self.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
        vec![self.metadata.name().into(), containers, images, format_labels(labels).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_template_gets_defaults_and_is_checked() {
        let mut t = <PodTemplate as Kind>::from_value(json!({"metadata": {"name": "t"}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}))
        .unwrap();
        t.set_defaults();
        assert!(t.validate().is_empty(), "{:?}", t.validate());
        assert_eq!(t.cells(Timestamp::UNIX_EPOCH), [json!("t"), json!("c"), json!("i"), json!("a=b")]);
        let old = t.clone();
        t.template.as_mut().unwrap().spec.as_mut().unwrap().containers.clear();
        let texts: Vec<String> = t.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["template.spec.containers: Required value"]);
        t.prepare_for_update(&old, &Context { now: Timestamp::UNIX_EPOCH, username: "u" });
        assert_eq!(t.metadata.generation, Some(1));
    }
}
