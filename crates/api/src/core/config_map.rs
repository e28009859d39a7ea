//! ConfigMap: configuration data for pods.

use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::Meta;
use crate::meta::{names, table};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// Most bytes the values of a ConfigMap or Secret may have together.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;
/// What a change of immutable data is told.
pub(crate) const FROZEN: &str = "field is immutable when `immutable` is set";

impl Kind for ConfigMap {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["cm"],
        ..ResourceInfo::new("", "v1", "ConfigMap", "configmaps", "configmap", true)
    };
    const COLUMNS: &'static [Column] =
        &[table::NAME, table::text_column("Data", "How many keys the map has.", 0), table::AGE];
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        let mut total = 0;
        for (key, value) in self.data.iter().flatten() {
            let path = Path::new("data").key(key);
            names::push_invalid(&mut errors, &path, key, &names::config_map_key(key));
            if self.binary_data.as_ref().is_some_and(|b| b.contains_key(key)) {
                errors.invalid(&path, key.as_str(), "duplicate of key present in binaryData");
            }
            total += value.len();
        }
        for (key, value) in self.binary_data.iter().flatten() {
            names::push_invalid(&mut errors, &Path::new("binaryData").key(key), key, &names::config_map_key(key));
            total += value.0.len();
        }
        if total > MAX_BYTES {
            errors.too_long(&Path::new("[]"), MAX_BYTES);
        }
        errors
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut errors = ErrorList::default();
        if old.immutable == Some(true) {
            if self.immutable != Some(true) {
                errors.forbidden(&Path::new("immutable"), FROZEN);
            }
            if self.data.clone().unwrap_or_default() != old.data.clone().unwrap_or_default() {
                errors.forbidden(&Path::new("data"), FROZEN);
            }
            if self.binary_data.clone().unwrap_or_default() != old.binary_data.clone().unwrap_or_default() {
                errors.forbidden(&Path::new("binaryData"), FROZEN);
            }
        }
        errors.extend(self.validate());
        errors
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let keys = self.data.as_ref().map_or(0, |d| d.len()) + self.binary_data.as_ref().map_or(0, |d| d.len());
        vec![self.metadata.name().into(), keys.into(), table::age(&self.metadata, now).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> ConfigMap {
        <ConfigMap as Kind>::from_value(value).unwrap()
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_and_sizes() {
        let bad = map(json!({"data": {"a b": "", "k": "x"}, "binaryData": {"k": "eA=="}}));
        assert_eq!(
            texts(&bad.validate()),
            [
                "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
             'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                "data[k]: Invalid value: \"k\": duplicate of key present in binaryData",
            ]
        );
        let big = map(json!({"data": {"k": "x".repeat(MAX_BYTES + 1)}}));
        assert_eq!(texts(&big.validate()), ["[]: Too long: may not be more than 1048576 bytes"]);
    }

    #[test]
    fn immutable_data_stays() {
        let old = map(json!({"immutable": true, "data": {"k": "1"}}));
        let new = map(json!({"data": {"k": "2"}}));
        assert_eq!(
            texts(&new.validate_update(&old)),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
        assert_eq!(old.cells(Timestamp::UNIX_EPOCH)[1], 1);
    }
}
