//! DeviceTaintRule: taints devices without a word of their driver.

use super::parts::{validate_driver, validate_label, validate_pool_name, validate_taint};
use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::conditions::validate_conditions;
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, reset_for_status, semantically_equal};
use crate::meta::table;
use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceTaintRule};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

const CONDITIONS_MAX: usize = 8;

/// Notes when a taint was added where nobody says.
pub(super) fn stamp(taint: &mut DeviceTaint, now: Timestamp) {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    taint.time_added.get_or_insert(Time(now));
}

fn validate_rule(r: &DeviceTaintRule, old: Option<&DeviceTaintRule>) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    if let Some(s) = &r.spec.device_selector {
        let path = path.child("deviceSelector");
        if let Some(driver) = &s.driver {
            validate_driver(driver, &path.child("driver"), &mut e);
        }
        if let Some(pool) = &s.pool {
            validate_pool_name(pool, &path.child("pool"), &mut e);
        }
        if let Some(device) = &s.device {
            validate_label(device, &path.child("device"), &mut e);
        }
    }
    let changed = old.is_none_or(|o| o.spec.taint.effect != r.spec.taint.effect);
    validate_taint(&r.spec.taint, changed, &path.child("taint"), &mut e);
    e
}

impl Kind for DeviceTaintRule {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        ..ResourceInfo::new("resource.k8s.io", "v1", "DeviceTaintRule", "devicetaintrules", "devicetaintrule", false)
    };
    const COLUMNS: &'static [Column] = &[table::NAME, table::AGE];
    crate::kind_codec!();

    fn prepare_for_create(&mut self, cx: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
        stamp(&mut self.spec.taint, cx.now);
    }

    fn validate(&self) -> ErrorList {
        validate_rule(self, None)
    }

    fn prepare_for_update(&mut self, old: &Self, cx: &Context<'_>) {
        self.status.clone_from(&old.status);
        stamp(&mut self.spec.taint, cx.now);
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        validate_rule(self, Some(old))
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let conditions = self.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let path = Path::new("status").child("conditions");
        let mut e = validate_conditions(conditions, &path);
        if conditions.len() > CONDITIONS_MAX {
            e.too_many(&path, conditions.len(), CONDITIONS_MAX);
        }
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![self.metadata.name().into(), table::age(&self.metadata, now).into()]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["metadata"], &["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn field_errors_and_time() {
        let mut r = DeviceTaintRule::from_value(json!({"metadata": {"name": "r"}, "spec": {"deviceSelector":
            {"pool": ""}, "taint": {"key": "k", "effect": "Never"}}}))
        .unwrap();
        let texts: Vec<String> = r.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.deviceSelector.pool: Required value",
                "spec.taint.effect: Unsupported value: \"Never\": supported values: \"NoExecute\", \"NoSchedule\", \
                 \"None\"",
            ]
        );
        r.prepare_for_create(&Context { now: Timestamp::UNIX_EPOCH, username: "" });
        assert_eq!(json!(r.spec.taint.time_added), json!("1970-01-01T00:00:00Z"));
    }
}
