//! Audit events as they are written (`audit.k8s.io/v1` `Event`).

use crate::authn::UserInfo;
use gantry_api::k8s_openapi::api::authentication::v1 as authentication;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What every event begins with where it stands alone; in a list it is left out.
const TYPE: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;

/// What a request addresses.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

/// An event. The stage and its time change as the request proceeds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub level: &'static str,
    #[serde(rename = "auditID")]
    pub audit_id: String,
    pub stage: &'static str,
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    pub verb: String,
    pub user: authentication::UserInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<authentication::UserInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_metadata: Option<Value>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectReference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<Value>,
    pub request_received_timestamp: MicroTime,
    pub stage_timestamp: MicroTime,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Event {
    /// As JSON without its type, for a list of events.
    ///
    /// # Errors
    /// None that such values have.
    pub fn item(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// As JSON on a line of its own, given the JSON of [`Event::item`].
    #[must_use]
    pub fn line(item: &str) -> String {
        format!("{TYPE}{}\n", item.strip_prefix('{').unwrap_or(item))
    }

    /// On a line of upstream's `legacy` format.
    #[must_use]
    pub fn legacy(&self) -> String {
        let joined = |list: Option<&Vec<String>>| {
            let quoted: Option<Vec<String>> = list.map(|l| l.iter().map(|s| format!("{s:?}")).collect());
            quoted.map(|l| l.join(",")).filter(|l| !l.is_empty())
        };
        let or = |text: Option<String>, otherwise: &str| text.unwrap_or_else(|| otherwise.to_owned());
        let username = self.user.username.clone().filter(|n| !n.is_empty());
        let groups = username.as_ref().and_then(|_| joined(self.user.groups.as_ref()));
        let acting = self.impersonated_user.as_ref();
        let namespace = self.object_ref.as_ref().map(|r| r.namespace.clone()).filter(|n| !n.is_empty());
        let code = self.response_status.as_ref().map(|s| s["code"].to_string());
        format!(
            "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={:?} groups={:?} as={:?} asgroups={:?} \
             user-agent={:?} namespace={:?} uri={:?} response=\"{}\"\n",
            self.request_received_timestamp.0,
            self.audit_id,
            self.stage,
            or(self.source_ips.first().cloned(), "<unknown>"),
            self.verb,
            or(username, "<none>"),
            or(groups, "<none>"),
            or(acting.and_then(|u| u.username.clone()), "<self>"),
            or(acting.and_then(|u| joined(u.groups.as_ref())), "<lookup>"),
            self.user_agent,
            or(namespace, "<none>"),
            self.request_uri,
            or(code, "<deferred>"),
        )
    }

    /// Takes over what a `Status` that is answered says of how the request ended.
    pub fn end_with(&mut self, status: &Value) {
        let mut out = json!({ "metadata": {} });
        for field in ["status", "message", "reason", "details", "code"] {
            if let Some(value) = status.get(field).filter(|v| !v.is_null() && *v != "") {
                out[field] = value.clone();
            }
        }
        self.response_status = Some(out);
    }

    /// Sets the code of how the request ended.
    pub fn end_with_code(&mut self, code: u16) {
        self.response_status.get_or_insert_with(|| json!({ "metadata": {} }))["code"] = code.into();
    }

    /// Completes what the request addresses by what was sent.
    pub fn refer_to(&mut self, object: &Value) {
        let Some(reference) = &mut self.object_ref else { return };
        let meta = &object["metadata"];
        for (present, name) in [
            (&mut reference.namespace, "namespace"),
            (&mut reference.name, "name"),
            (&mut reference.uid, "uid"),
            (&mut reference.resource_version, "resourceVersion"),
        ] {
            if let Some(value) = meta[name].as_str().filter(|_| present.is_empty()) {
                value.clone_into(present);
            }
        }
    }
}

/// A user as events show one.
#[must_use]
pub fn shown(user: &UserInfo) -> authentication::UserInfo {
    let mut shown = user.to_review();
    // Nobody has no name.
    shown.username = shown.username.filter(|name| !name.is_empty());
    shown
}

/// Takes the managed fields out of an object, the items of a list and the rows of a table.
pub fn drop_managed_fields(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        drop_managed_fields(item);
    }
    for row in object.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(object) = row.get_mut("object") {
            drop_managed_fields(object);
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use gantry_api::k8s_openapi::jiff::Timestamp;

    pub fn event() -> Event {
        let time = MicroTime("2026-01-02T03:04:05.678901Z".parse::<Timestamp>().unwrap());
        Event {
            level: "Metadata",
            audit_id: "a-1".into(),
            stage: "RequestReceived",
            request_uri: "/api/v1/namespaces/n/pods?limit=1".into(),
            verb: "list".into(),
            user: shown(&UserInfo::new("jane", &["devs"])),
            impersonated_user: None,
            authentication_metadata: None,
            source_ips: vec!["10.0.0.1".into()],
            user_agent: "curl".into(),
            object_ref: Some(ObjectReference {
                resource: "pods".into(),
                namespace: "n".into(),
                api_version: "v1".into(),
                ..ObjectReference::default()
            }),
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: time.clone(),
            stage_timestamp: time,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn lines() {
        let event = event();
        assert_eq!(
            Event::line(&event.item().unwrap()),
            "{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"level\":\"Metadata\",\"auditID\":\"a-1\",\
             \"stage\":\"RequestReceived\",\"requestURI\":\"/api/v1/namespaces/n/pods?limit=1\",\"verb\":\"list\",\
             \"user\":{\"groups\":[\"devs\",\"system:authenticated\"],\"username\":\"jane\"},\
             \"sourceIPs\":[\"10.0.0.1\"],\"userAgent\":\"curl\",\
             \"objectRef\":{\"resource\":\"pods\",\"namespace\":\"n\",\"apiVersion\":\"v1\"},\
             \"requestReceivedTimestamp\":\"2026-01-02T03:04:05.678901Z\",\
             \"stageTimestamp\":\"2026-01-02T03:04:05.678901Z\"}\n"
        );
        assert_eq!(
            event.legacy(),
            "2026-01-02T03:04:05.678901Z AUDIT: id=\"a-1\" stage=\"RequestReceived\" ip=\"10.0.0.1\" method=\"list\" \
             user=\"jane\" groups=\"\\\"devs\\\",\\\"system:authenticated\\\"\" as=\"<self>\" asgroups=\"<lookup>\" \
             user-agent=\"curl\" namespace=\"n\" uri=\"/api/v1/namespaces/n/pods?limit=1\" response=\"<deferred>\"\n"
        );
    }

    #[test]
    fn the_end_and_what_it_was_about() {
        let mut event = event();
        event.end_with_code(200);
        assert_eq!(event.response_status, Some(json!({"metadata": {}, "code": 200})));
        event.end_with(&json!({"kind": "Status", "metadata": {"x": 1}, "status": "Failure", "message": "m",
            "reason": "NotFound", "details": {"name": "p"}, "code": 404}));
        event.end_with_code(404);
        assert_eq!(
            event.response_status,
            Some(json!({"metadata": {}, "status": "Failure", "message": "m", "reason": "NotFound",
                "details": {"name": "p"}, "code": 404}))
        );
        event.refer_to(&json!({"metadata": {"name": "p", "namespace": "other", "resourceVersion": "7"}}));
        let reference = event.object_ref.unwrap();
        let parts = (&*reference.name, &*reference.namespace, &*reference.resource_version);
        assert_eq!(parts, ("p", "n", "7"));
    }

    #[test]
    fn managed_fields_go_everywhere() {
        let meta = json!({"name": "a", "managedFields": []});
        let mut all =
            json!({"metadata": meta, "items": [{"metadata": meta}], "rows": [{"object": {"metadata": meta}}]});
        drop_managed_fields(&mut all);
        let meta = json!({"name": "a"});
        let wanted = json!({"metadata": meta, "items": [{"metadata": meta}], "rows": [{"object": {"metadata": meta}}]});
        assert_eq!(all, wanted);
    }
}
