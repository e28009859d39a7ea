//! DeviceClass: a sort of devices, with configuration for their drivers.

use super::parts::{each, selector_expressions, validate_config, validate_selectors};
use crate::apps::workload::bump_generation;
use crate::core::pod::validate::resources::is_extended;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::expression::Expression;
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, semantically_equal};
use crate::meta::table;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceClassSpec};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

const CONFIGS_MAX: usize = 32;

fn validate_spec(spec: &DeviceClassSpec, old: Option<&DeviceClassSpec>) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    let same_selectors = old.is_some_and(|o| semantically_equal(&o.selectors, &spec.selectors));
    validate_selectors(spec.selectors.as_ref(), same_selectors, &path.child("selectors"), &mut e);
    let same_config = old.is_some_and(|o| semantically_equal(&o.config, &spec.config));
    each(spec.config.as_ref(), CONFIGS_MAX, &path.child("config"), &mut e, |c, path, e| {
        validate_config(c.opaque.as_ref(), same_config, path, e);
    });
    if let Some(name) = spec.extended_resource_name.as_deref().filter(|n| !is_extended(n)) {
        e.invalid(&path.child("extendedResourceName"), name, "must be a valid extended resource name");
    }
    e
}

impl Kind for DeviceClass {
    const INFO: ResourceInfo =
        ResourceInfo::new("resource.k8s.io", "v1", "DeviceClass", "deviceclasses", "deviceclass", false);
    const COLUMNS: &'static [Column] = &[table::NAME, table::AGE];
    crate::kind_codec!();

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        validate_spec(&self.spec.clone().unwrap_or_default(), None)
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        validate_spec(&self.spec.clone().unwrap_or_default(), old.spec.as_ref())
    }

    fn expressions(&self, old: Option<&Self>) -> Vec<Expression> {
        let selectors = |c: &Self| c.spec.as_ref().and_then(|s| s.selectors.clone());
        let mut out = Vec::new();
        if !old.is_some_and(|o| semantically_equal(&selectors(o), &selectors(self))) {
            selector_expressions(selectors(self).as_ref(), &Path::new("spec").child("selectors"), &mut out);
        }
        out
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![self.metadata.name().into(), table::age(&self.metadata, now).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class(spec: Value) -> DeviceClass {
        DeviceClass::from_value(json!({"metadata": {"name": "c"}, "spec": spec})).unwrap()
    }

    #[test]
    fn field_errors_generation_and_expressions() {
        let bad = class(json!({"selectors": [{}], "config": [{"opaque": {"driver": "D_", "parameters": {}}}],
            "extendedResourceName": "cpu"}));
        let texts: Vec<String> = bad.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(texts[0], "spec.selectors[0].cel: Required value");
        assert!(texts[1].starts_with("spec.config[0].opaque.driver: Invalid value: \"D_\""), "{texts:?}");
        assert_eq!(
            texts[2],
            "spec.extendedResourceName: Invalid value: \"cpu\": must be a valid extended resource name"
        );
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut old = class(json!({"selectors": [{"cel": {"expression": "true"}}]}));
        old.prepare_for_create(&cx);
        assert_eq!((old.expressions(None).len(), old.expressions(Some(&old)).len()), (1, 0));
        let mut new = class(json!({}));
        new.prepare_for_update(&old, &cx);
        assert_eq!(new.metadata.generation, Some(2));
    }
}
