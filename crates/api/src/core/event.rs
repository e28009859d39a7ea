//! Event: what a component reports about an object.

use crate::events;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::Meta;
use crate::meta::{names, table, text};
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

const MAX_NAME: usize = 128;
const MAX_MESSAGE: usize = 1024;

/// Columns of an event, in both of its views.
pub(crate) const COLUMNS: &[Column] = &[
    table::text_column("Last Seen", "When the event was last seen.", 0),
    table::text_column("Type", "Normal or Warning.", 0),
    table::text_column("Reason", "Why, in one word.", 0),
    table::text_column("Object", "What the event is about.", 0),
    table::text_column("Subobject", "Which part of the object.", 1),
    table::text_column("Source", "Who reports the event.", 1),
    table::text_column("Message", "What happened, for people.", 0),
    table::text_column("First Seen", "When the event was first seen.", 1),
    table::text_column("Count", "How often the event occurred.", 1),
    Column { priority: 1, ..table::NAME },
];

/// When the event was last seen, by which events are ordered.
#[must_use]
pub fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
    series.or_else(|| event.last_timestamp.as_ref().map(|t| t.0)).or_else(|| first_seen(event))
}

fn first_seen(event: &Event) -> Option<Timestamp> {
    event.first_timestamp.as_ref().map(|t| t.0).or_else(|| event.event_time.as_ref().map(|t| t.0))
}

fn source(event: &Event) -> String {
    let empty = Default::default();
    let given = event.source.as_ref().unwrap_or(&empty);
    let or = |a: &Option<String>, b: &Option<String>| if text(a).is_empty() { text(b) } else { text(a) }.to_owned();
    let component = or(&given.component, &event.reporting_component);
    let host = or(&given.host, &event.reporting_instance);
    if host.is_empty() { component } else { format!("{component}, {host}") }
}

/// Cells of an event.
pub(crate) fn cells(event: &Event, now: Timestamp) -> Vec<Value> {
    let count = match (&event.series, event.count.unwrap_or(0)) {
        (Some(s), _) => s.count.unwrap_or(0),
        (None, 0) => 1,
        (None, n) => n,
    };
    let about = &event.involved_object;
    let kind = text(&about.kind).to_lowercase();
    let object = if text(&about.name).is_empty() { kind } else { format!("{kind}/{}", text(&about.name)) };
    vec![
        table::since(last_seen(event), now).into(),
        text(&event.type_).into(),
        text(&event.reason).into(),
        object.into(),
        text(&about.field_path).into(),
        source(event).into(),
        text(&event.message).trim().into(),
        table::since(first_seen(event), now).into(),
        count.into(),
        event.metadata.name().into(),
    ]
}

/// Field errors every event must be free of, whichever view it is written through. `controller_field` is what the view
/// calls who reports.
pub(crate) fn validate(event: &Event, controller_field: &str) -> ErrorList {
    let mut errors = ErrorList::default();
    let namespace = event.metadata.namespace();
    let about = text(&event.involved_object.namespace);
    let agrees = match (event.event_time.is_some(), about.is_empty()) {
        (false, true) => matches!(namespace, "" | "default"),
        (false, false) => namespace == about,
        (true, true) => matches!(namespace, "default" | "kube-system"),
        (true, false) => true,
    };
    if !agrees {
        let path = Path::new("involvedObject").child("namespace");
        errors.invalid(&path, about, "does not match event.namespace");
    }
    if event.event_time.is_some() {
        let controller = text(&event.reporting_component);
        let path = Path::new(controller_field);
        if controller.is_empty() {
            errors.required(&path, "");
        }
        names::push_invalid(&mut errors, &path, controller, &names::qualified_name(controller));
        for (field, value) in
            [("reportingInstance", &event.reporting_instance), ("action", &event.action), ("reason", &event.reason)]
        {
            if text(value).is_empty() {
                errors.required(&Path::new(field), "");
            }
            if text(value).len() > MAX_NAME {
                errors.invalid(&Path::new(field), "", &format!("can have at most {MAX_NAME} characters"));
            }
        }
        if text(&event.message).len() > MAX_MESSAGE {
            errors.invalid(&Path::new("message"), "", &format!("can have at most {MAX_MESSAGE} characters"));
        }
    }
    names::push_invalid(&mut errors, &Path::new("namespace"), namespace, &names::dns1123_subdomain(namespace, false));
    errors
}

/// Fields of the object an event is about, under `prefix` (`involvedObject` or `regarding`).
pub(crate) fn object_fields(about: &ObjectReference) -> [String; 7] {
    [
        &about.kind,
        &about.namespace,
        &about.name,
        &about.uid,
        &about.api_version,
        &about.resource_version,
        &about.field_path,
    ]
    .map(|f| text(f).to_owned())
}

impl Kind for Event {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["ev"],
        create_on_update: true,
        ..ResourceInfo::new("", "v1", "Event", "events", "event", true)
    };
    const COLUMNS: &'static [Column] = COLUMNS;

    fn meta(&self) -> &crate::ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut crate::ObjectMeta {
        &mut self.metadata
    }
    // Also reads events stored in the events.k8s.io form.
    fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        if events::is_own_encoding(bytes) {
            return Ok(events::to_core(&serde_json::from_slice(bytes)?));
        }
        serde_json::from_slice(bytes)
    }
    fn from_value(value: Value) -> Result<Self, serde_json::Error> {
        if events::is_own_form(&value) {
            return Ok(events::to_core(&serde_json::from_value(value)?));
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
        validate(self, "reportingComponent")
    }
    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        let [kind, namespace, name, uid, api_version, resource_version, field_path] =
            object_fields(&self.involved_object);
        let component = self.source.as_ref().map(|s| text(&s.component)).unwrap_or_default();
        let source = if component.is_empty() { text(&self.reporting_component) } else { component };
        vec![
            ("involvedObject.kind", kind),
            ("involvedObject.namespace", namespace),
            ("involvedObject.name", name),
            ("involvedObject.uid", uid),
            ("involvedObject.apiVersion", api_version),
            ("involvedObject.resourceVersion", resource_version),
            ("involvedObject.fieldPath", field_path),
            ("reason", text(&self.reason).to_owned()),
            ("reportingComponent", text(&self.reporting_component).to_owned()),
            ("source", source.to_owned()),
            ("type", text(&self.type_).to_owned()),
        ]
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        cells(self, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(value: Value) -> Event {
        <Event as Kind>::from_value(value).unwrap()
    }

    #[test]
    fn rows() {
        let old = event(
            json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "Started", "count": 3, "message": " hi\n",
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"},
            "source": {"component": "kubelet", "host": "n1"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:05:00Z"}),
        );
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        assert_eq!(
            json!(cells(&old, now)),
            json!(["5m", "Normal", "Started", "pod/p", "spec.containers{c}", "kubelet, n1", "hi", "10m", 3, "e"])
        );
        let new = event(json!({"involvedObject": {"kind": "Node"}, "eventTime": "2026-01-01T00:09:30.000000Z",
            "reportingComponent": "c", "series": {"count": 7, "lastObservedTime": "2026-01-01T00:09:50.000000Z"}}));
        let row = json!(cells(&new, now));
        assert_eq!(
            (&row[0], &row[3], &row[5], &row[7], &row[8]),
            (&json!("10s"), &json!("node"), &json!("c"), &json!("30s"), &json!(7))
        );
        assert_eq!(cells(&old, now).len(), COLUMNS.len());
    }

    #[test]
    fn namespaces_agree() {
        let texts =
            |v: Value| validate(&event(v), "reportingComponent").0.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mismatch = "involvedObject.namespace: Invalid value: \"b\": does not match event.namespace";
        assert_eq!(texts(json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}})), [mismatch]);
        assert!(texts(json!({"metadata": {"namespace": "default"}, "involvedObject": {}})).is_empty());
        let modern = json!({"metadata": {"namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reportingComponent": "c",
            "action": "a", "involvedObject": {}});
        assert_eq!(texts(modern), ["reportingInstance: Required value", "reason: Required value"]);
    }
}
