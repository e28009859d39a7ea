//! VolumeAttributesClass: mutable attributes of volumes of a driver.

use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::Meta;
use crate::meta::table;
use crate::storage::{same_map, validate_parameters, validate_provisioner};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// Marks the default class in the table.
const IS_DEFAULT: &str = "volumeattributesclass.alpha.kubernetes.io/is-default-class";

impl Kind for VolumeAttributesClass {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["vac"],
        ..ResourceInfo::new(
            "storage.k8s.io",
            "v1",
            "VolumeAttributesClass",
            "volumeattributesclasses",
            "volumeattributesclass",
            false,
        )
    };
    const COLUMNS: &'static [Column] =
        &[table::NAME, table::text_column("DriverName", "The driver the attributes are for.", 0), table::AGE];
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        validate_provisioner(&self.driver_name, &Path::new("driverName"), &mut e);
        validate_parameters(self.parameters.as_ref(), false, &Path::new("parameters"), &mut e);
        e
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        if self.driver_name != old.driver_name {
            e.forbidden(&Path::new("driverName"), "updates to driverName are forbidden.");
        }
        if !same_map(self.parameters.as_ref(), old.parameters.as_ref()) {
            e.forbidden(&Path::new("parameters"), "updates to parameters are forbidden.");
        }
        e.extend(self.validate());
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let mark = if self.metadata.annotation(IS_DEFAULT) == Some("true") { " (default)" } else { "" };
        vec![
            format!("{}{mark}", self.metadata.name()).into(),
            self.driver_name.as_str().into(),
            table::age(&self.metadata, now).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn needs_a_driver_and_parameters_and_keeps_both() {
        let empty = VolumeAttributesClass::default();
        let texts = |e: ErrorList| e.0.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            texts(empty.validate()),
            ["driverName: Required value", "parameters: Required value: must contain at least one key/value pair"]
        );
        let old = VolumeAttributesClass::from_value(json!({"driverName": "d", "parameters": {"a": "1"}})).unwrap();
        let new = VolumeAttributesClass::from_value(json!({"driverName": "e", "parameters": {"a": "2"}})).unwrap();
        assert_eq!(
            texts(new.validate_update(&old)),
            [
                "driverName: Forbidden: updates to driverName are forbidden.",
                "parameters: Forbidden: updates to parameters are forbidden.",
            ]
        );
        assert_eq!(json!(old.cells(Timestamp::UNIX_EPOCH)), json!(["", "d", "<unknown>"]));
    }
}
