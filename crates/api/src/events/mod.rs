//! `events.k8s.io`: the newer view of [core events](crate::core::event). Both views share one stored object.
//!
//! An object is stored in the form of the view it was last written through; each view decodes both forms and encodes its
//! own, so that the registry needs no special case beyond their one
//! [`storage_group`](crate::kind::ResourceInfo::storage_group).

use crate::core::event;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::immutable;
use crate::meta::text;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// The core/v1 form of an event.
#[must_use]
pub fn to_core(event: &Event) -> core::Event {
    let e = event.clone();
    core::Event {
        action: e.action,
        count: e.deprecated_count,
        event_time: e.event_time,
        first_timestamp: e.deprecated_first_timestamp,
        involved_object: e.regarding.unwrap_or_default(),
        last_timestamp: e.deprecated_last_timestamp,
        message: e.note,
        metadata: e.metadata,
        reason: e.reason,
        related: e.related,
        reporting_component: e.reporting_controller,
        reporting_instance: e.reporting_instance,
        series: e
            .series
            .map(|s| core::EventSeries { count: Some(s.count), last_observed_time: Some(s.last_observed_time) }),
        source: e.deprecated_source,
        type_: e.type_,
    }
}

/// The events.k8s.io/v1 form of an event.
#[must_use]
pub fn from_core(event: &core::Event) -> Event {
    let e = event.clone();
    let series = e
        .series
        .and_then(|s| Some(EventSeries { count: s.count.unwrap_or(0), last_observed_time: s.last_observed_time? }));
    Event {
        action: e.action,
        deprecated_count: e.count,
        deprecated_first_timestamp: e.first_timestamp,
        deprecated_last_timestamp: e.last_timestamp,
        deprecated_source: e.source,
        event_time: e.event_time,
        metadata: e.metadata,
        note: e.message,
        reason: e.reason,
        regarding: Some(e.involved_object),
        related: e.related,
        reporting_controller: e.reporting_component,
        reporting_instance: e.reporting_instance,
        series,
        type_: e.type_,
    }
}

/// `apiVersion` of this view.
const API_VERSION: &str = "events.k8s.io/v1";

/// Whether the tree is in this view's form.
pub(crate) fn is_own_form(value: &Value) -> bool {
    value.get("apiVersion").and_then(Value::as_str) == Some(API_VERSION)
}

/// Whether encoded bytes are in this view's form. Encoded objects start with their apiVersion.
pub(crate) fn is_own_encoding(bytes: &[u8]) -> bool {
    bytes.starts_with(br#"{"apiVersion":"events.k8s.io/v1""#)
}

impl Kind for Event {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["ev"],
        storage_group: "",
        create_on_update: true,
        ..ResourceInfo::new("events.k8s.io", "v1", "Event", "events", "event", true)
    };

    const COLUMNS: &'static [Column] = event::COLUMNS;

    fn meta(&self) -> &crate::ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut crate::ObjectMeta {
        &mut self.metadata
    }
    fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        if is_own_encoding(bytes) {
            return serde_json::from_slice(bytes);
        }
        Self::from_value(serde_json::from_slice(bytes)?)
    }
    fn from_value(value: Value) -> Result<Self, serde_json::Error> {
        if value.get("apiVersion").and_then(Value::as_str) == Some("v1") {
            return Ok(from_core(&serde_json::from_value(value)?));
        }
        serde_json::from_value(value)
    }
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("API types have string keys only")
    }
    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("API types have string keys only")
    }

    fn validate(&self) -> ErrorList {
        let mut errors = event::validate(&to_core(self), "reportingController");
        validate_series(self, &mut errors);
        if self.event_time.is_none() {
            errors.required(&Path::new("eventTime"), "");
        }
        let kind = text(&self.type_);
        if !matches!(kind, "Normal" | "Warning") {
            errors.invalid(&Path::new("type"), "", &format!("has invalid value: {kind}"));
        }
        let source = self.deprecated_source.as_ref();
        let sourced = source.is_some_and(|s| !text(&s.component).is_empty() || !text(&s.host).is_empty());
        let unset = [
            ("firstTimestamp", self.deprecated_first_timestamp.is_some()),
            ("lastTimestamp", self.deprecated_last_timestamp.is_some()),
            ("count", self.deprecated_count.unwrap_or(0) != 0),
            ("source", sourced),
        ];
        for (field, _) in unset.iter().filter(|(_, set)| *set) {
            errors.invalid(&Path::new(field), "", "needs to be unset");
        }
        errors
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut errors = event::validate(&to_core(self), "reportingController");
        if self.series != old.series {
            validate_series(self, &mut errors);
        }
        // Of an event written through this view only the series changes.
        let fields = [
            ("involvedObject", json!(self.regarding), json!(old.regarding)),
            ("reason", json!(self.reason), json!(old.reason)),
            ("message", json!(self.note), json!(old.note)),
            ("source", json!(self.deprecated_source), json!(old.deprecated_source)),
            ("firstTimestamp", json!(self.deprecated_first_timestamp), json!(old.deprecated_first_timestamp)),
            ("lastTimestamp", json!(self.deprecated_last_timestamp), json!(old.deprecated_last_timestamp)),
            ("count", json!(self.deprecated_count), json!(old.deprecated_count)),
            ("type", json!(self.type_), json!(old.type_)),
            ("eventTime", json!(self.event_time), json!(old.event_time)),
            ("action", json!(self.action), json!(old.action)),
            ("related", json!(self.related), json!(old.related)),
            ("reportingController", json!(self.reporting_controller), json!(old.reporting_controller)),
            ("reportingInstance", json!(self.reporting_instance), json!(old.reporting_instance)),
        ];
        for (field, new, old) in fields {
            immutable(&mut errors, &Path::new(field), &new, &old);
        }
        errors
    }

    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        let about = self.regarding.clone().unwrap_or_default();
        let [kind, namespace, name, uid, api_version, resource_version, field_path] = event::object_fields(&about);
        vec![
            ("regarding.kind", kind),
            ("regarding.namespace", namespace),
            ("regarding.name", name),
            ("regarding.uid", uid),
            ("regarding.apiVersion", api_version),
            ("regarding.resourceVersion", resource_version),
            ("regarding.fieldPath", field_path),
            ("reason", text(&self.reason).to_owned()),
            ("reportingController", text(&self.reporting_controller).to_owned()),
            ("type", text(&self.type_).to_owned()),
        ]
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        event::cells(&to_core(self), now)
    }
}

fn validate_series(event: &Event, errors: &mut ErrorList) {
    if event.series.as_ref().is_some_and(|s| s.count < 2) {
        errors.invalid(&Path::new("series.count"), "", "should be at least 2");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    fn modern() -> Event {
        <Event as Kind>::from_value(json!({"metadata": {"name": "e", "namespace": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "c", "reportingInstance": "i", "action": "act", "reason": "r", "type": "Normal", "note": "n",
            "regarding": {"kind": "Pod", "name": "p", "namespace": "a"}}))
        .unwrap()
    }

    #[test]
    fn each_view_decodes_both_forms() {
        let e = modern();
        let old = to_core(&e);
        let (new_bytes, old_bytes) = (Kind::to_json(&e), Kind::to_json(&old));
        assert!(is_own_encoding(&new_bytes) && !is_own_encoding(&old_bytes));
        for bytes in [&new_bytes, &old_bytes] {
            assert_eq!(<Event as Kind>::from_json(bytes).unwrap(), e);
            assert_eq!(<core::Event as Kind>::from_json(bytes).unwrap(), old);
            let tree: Value = serde_json::from_slice(bytes).unwrap();
            assert_eq!(<Event as Kind>::from_value(tree.clone()).unwrap(), e);
            assert_eq!(<core::Event as Kind>::from_value(tree).unwrap(), old);
        }
        let tree = Kind::to_value(&old);
        assert_eq!((&tree["message"], &tree["involvedObject"]["name"]), (&json!("n"), &json!("p")));
    }

    #[test]
    fn this_view_is_strict() {
        assert!(modern().validate().is_empty());
        let mut bad = modern();
        bad.type_ = Some("Odd".into());
        bad.deprecated_count = Some(2);
        assert_eq!(
            texts(&bad.validate()),
            ["type: Invalid value: \"\": has invalid value: Odd", "count: Invalid value: \"\": needs to be unset",]
        );
        let mut changed = modern();
        changed.note = Some("other".into());
        assert_eq!(
            texts(&changed.validate_update(&modern())),
            ["message: Invalid value: \"other\": field is immutable"]
        );
    }
}
