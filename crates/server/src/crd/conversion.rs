//! Conversion between the versions of a definition by its webhook (`ConversionReview`).
//!
//! Source: `k8s.io/apiextensions-apiserver/pkg/apiserver/conversion`, whose sentences clients are shown.

use super::version::State;
use crate::cluster::Cluster;
use crate::webhook_client::{Destination, WebhookClient};
use futures::future::BoxFuture;
use gantry_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, WebhookConversion,
};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::labels::validate_labels;
use gantry_api::meta::object::{split_api_version, validate_annotations};
use gantry_api::meta::status::ApiError;
use gantry_schema::Schema;
use gantry_schema::apply::Versions;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Time a webhook has for one call, as upstream.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most objects in one call: a list of many is converted in parts.
const OBJECTS_MAX: usize = 500;
const REVIEW: &str = "ConversionReview";

static CLIENT: LazyLock<WebhookClient> = LazyLock::new(WebhookClient::default);

/// The webhook of a definition.
#[derive(Debug)]
pub struct Converter {
    webhook: WebhookConversion,
}

impl Converter {
    /// The webhook that converts the objects of a definition, where there is one.
    #[must_use]
    pub fn of(crd: &CustomResourceDefinition) -> Option<Converter> {
        let conversion = crd.spec.conversion.as_ref().filter(|c| c.strategy == "Webhook")?;
        Some(Converter { webhook: conversion.webhook.clone()? })
    }

    /// The objects in another version. Those that are in it already come back as they are.
    ///
    /// # Errors
    /// 500 with upstream's sentence where the webhook cannot be asked or answers what it may not.
    // Boxed, for every read and write may have to convert, and each would carry a copy of the call.
    pub fn convert<'a>(
        &'a self,
        cluster: &'a Cluster,
        objects: Vec<Value>,
        to: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Value>, ApiError>> {
        Box::pin(async move {
            let mut out = Vec::with_capacity(objects.len());
            let mut left = objects.into_iter().peekable();
            while left.peek().is_some() {
                let part: Vec<Value> = left.by_ref().take(OBJECTS_MAX).collect();
                out.extend(self.convert_part(cluster, part, to).await.map_err(|why| ApiError::new(500, "", why))?);
            }
            Ok(out)
        })
    }

    async fn convert_part(&self, cluster: &Cluster, mut all: Vec<Value>, to: &str) -> Result<Vec<Value>, String> {
        let foreign: Vec<usize> = (0..all.len()).filter(|i| all[*i]["apiVersion"] != to).collect();
        let mut asked = Vec::with_capacity(foreign.len());
        for i in foreign {
            // What has nothing but its type has nothing to convert.
            if all[i].as_object().is_some_and(|o| o.keys().all(|k| k == "apiVersion" || k == "kind")) {
                all[i]["apiVersion"] = to.into();
            } else {
                asked.push(i);
            }
        }
        let Some(first) = asked.first() else { return Ok(all) };
        let what = group_version_kind(&all[*first]);
        let version = self.review_version().ok_or("no supported conversion review versions")?;
        let uid = cluster.entropy.uuid();
        let originals: Vec<&Value> = asked.iter().map(|i| &all[*i]).collect();
        let api_version = format!("apiextensions.k8s.io/{version}");
        let review = json!({"kind": REVIEW, "apiVersion": api_version,
            "request": {"uid": uid, "desiredAPIVersion": to, "objects": originals}, "response": {"uid": "", "convertedObjects": null, "result": {"metadata": {}}}});
        let failed = |why: String| format!("conversion webhook for {what} failed: {why}");
        let answer = self.ask(cluster, &review).await.map_err(failed)?;
        let converted = read_answer(&answer, version, &uid).map_err(failed)?;
        if converted.len() != asked.len() {
            return Err(format!(
                "conversion webhook for {what} returned {} objects, expected {}",
                converted.len(),
                asked.len()
            ));
        }
        for (i, new) in asked.into_iter().zip(converted) {
            all[i] = accepted(&all[i], new, to)?;
        }
        Ok(all)
    }

    /// The first version of the review that both sides know.
    fn review_version(&self) -> Option<&'static str> {
        let known = |v: &String| ["v1", "v1beta1"].into_iter().find(|known| known == v);
        self.webhook.conversion_review_versions.iter().find_map(known)
    }

    async fn ask(&self, cluster: &Cluster, review: &Value) -> Result<Value, String> {
        let client = self.webhook.client_config.as_ref();
        let service = client.and_then(|c| c.service.as_ref()).map(|s| Destination::Service {
            namespace: &s.namespace,
            name: &s.name,
            path: s.path.as_deref().unwrap_or_default(),
            port: s.port.unwrap_or(443),
        });
        let url = client.and_then(|c| c.url.as_deref()).map(Destination::Url);
        let to = service.or(url).ok_or("webhook configuration must have either service or URL")?;
        let ca = client.and_then(|c| c.ca_bundle.as_ref()).map(|b| b.0.as_slice()).unwrap_or_default();
        let body = review.to_string().into();
        let answer = CLIENT.post(cluster, to, ca, body, TIMEOUT).await.map_err(|e| e.to_string())?;
        serde_json::from_slice(&answer).map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))
    }
}

/// The versions of a definition as one request sees them. Who merges cannot wait for a webhook: it is told what is known,
/// what it asked for besides is noted, and the request starts over once the webhook has answered.
pub struct Recalled {
    state: Arc<State>,
    /// What the webhook made, by version and object.
    made: HashMap<(String, String), Value>,
    wanted: Mutex<Vec<(String, Value)>>,
}

impl Recalled {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(state: Arc<State>) -> Self {
        Self { state, made: HashMap::new(), wanted: Mutex::default() }
    }

    /// The definition as it was when the request came.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Has the webhook convert what was asked for and is not known. False where nothing was.
    ///
    /// # Errors
    /// Where the webhook fails.
    pub async fn ask(&mut self, cluster: &Cluster) -> Result<bool, ApiError> {
        let wanted = std::mem::take(self.wanted.get_mut());
        let Some(converter) = self.state.converter.clone().filter(|_| !wanted.is_empty()) else { return Ok(false) };
        for (to, object) in wanted {
            let key = (to, object.to_string());
            if !self.made.contains_key(&key) {
                let made = converter.convert(cluster, vec![object], &key.0).await?;
                let mut made = made.into_iter().next().unwrap_or_default();
                if let Some(version) = self.state.versions.get(&key.0) {
                    version.prune(&mut made);
                }
                self.made.insert(key, made);
            }
        }
        Ok(true)
    }
}

impl Versions for Recalled {
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        if self.state.converter.is_none() || !self.state.served.contains(api_version) {
            return self.state.convert(object, api_version);
        }
        let made = self.made.get(&(api_version.to_owned(), object.to_string()));
        if made.is_none() {
            self.wanted.lock().push((api_version.to_owned(), object.clone()));
        }
        made.cloned()
    }

    fn schema(&self, api_version: &str) -> Option<Schema<'_>> {
        self.state.schema(api_version)
    }
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// As Go prints a `GroupVersionKind`: `example.com/v1, Kind=Thing`.
fn group_version_kind(object: &Value) -> String {
    let (group, version) = split_api_version(text(object, "/apiVersion"));
    format!("{group}/{version}, Kind={}", text(object, "/kind"))
}

/// The objects of an answer to the review `uid`.
fn read_answer(answer: &Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let response = &answer["response"];
    if version == "v1" {
        let wanted = format!("apiextensions.k8s.io/{version}, Kind={REVIEW}");
        let found = group_version_kind(answer);
        if found != wanted {
            return Err(format!("expected webhook response of {wanted}, got {found}"));
        }
    }
    if !response.is_object() {
        return Err("no response provided".into());
    }
    if version == "v1" && text(response, "/uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(response, "/uid")));
    }
    let status = text(response, "/result/status");
    if status != "Success" {
        return Err(match text(response, "/result/message") {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            message => message.to_owned(),
        });
    }
    Ok(response["convertedObjects"].as_array().cloned().unwrap_or_default())
}

/// What a webhook made of an object, with the metadata it may not change as it was.
fn accepted(original: &Value, mut converted: Value, to: &str) -> Result<Value, String> {
    let what = format!("conversion webhook for {}", group_version_kind(original));
    let found = text(&converted, "/apiVersion");
    if found != to {
        let invalid = "returned invalid object at index 0: invalid groupVersion";
        return Err(format!("{what} {invalid} (expected {to}, received {found})"));
    }
    let (expected, found) = (text(original, "/kind"), text(&converted, "/kind"));
    if expected != found {
        let invalid = "returned invalid object at index 0: invalid kind";
        return Err(format!("{what} {invalid} (expected {expected}, received {found})"));
    }
    for (field, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let pointer = format!("/metadata/{field}");
        let (old, new) = (text(original, &pointer), text(&converted, &pointer));
        if old != new {
            return Err(format!("{what} returned invalid object: must have the same {name}: {old} != {new}"));
        }
    }
    restore_metadata(original, &mut converted).map_err(|why| format!("{what} returned invalid metadata: {why}"))?;
    Ok(converted)
}

/// The type of a value as Go prints it.
pub(super) fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// Labels and annotations are the webhook's, all other metadata the original's.
fn restore_metadata(original: &Value, converted: &mut Value) -> Result<(), String> {
    let given = match converted.get("metadata") {
        None => return Err("missing metadata in converted object".into()),
        Some(Value::Object(map)) => map.clone(),
        Some(other) => return Err(format!("invalid metadata of type {} in converted object", go_type(other))),
    };
    let mut metadata: Map<String, Value> = original["metadata"].as_object().cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        let new = match given.get(field) {
            None | Some(Value::Null) => {
                metadata.remove(field);
                continue;
            }
            Some(Value::Object(map)) => map,
            Some(other) => {
                return Err(format!("invalid metadata.{field} of type {} in converted object", go_type(other)));
            }
        };
        let mut texts = BTreeMap::new();
        for (key, value) in new {
            let Value::String(value) = value else {
                let found = go_type(value);
                return Err(format!("metadata.{field}[{key}] must be a string, but is {found} in converted object"));
            };
            texts.insert(key.clone(), value.clone());
        }
        if metadata.get(field) != Some(&Value::Object(new.clone())) {
            let path = Path::new("metadata");
            let errors: ErrorList = match field {
                "labels" => validate_labels(Some(&texts), &path.child("labels")),
                _ => validate_annotations(Some(&texts), &path.child("annotation")),
            };
            if !errors.is_empty() {
                return Err(aggregate(&errors));
            }
        }
        metadata.insert(field.to_owned(), Value::Object(new.clone()));
    }
    converted["metadata"] = Value::Object(metadata);
    Ok(())
}

fn aggregate(errors: &ErrorList) -> String {
    let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    if let [one] = texts.as_slice() { one.clone() } else { format!("[{}]", texts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str) -> Value {
        json!({"apiVersion": format!("example.com/{version}"), "kind": "Thing",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "generation": 2, "labels": {"a": "b"}}})
    }

    #[test]
    fn metadata_stays_but_for_labels_and_annotations() {
        let mut new = object("v2");
        new["metadata"] =
            json!({"name": "a", "namespace": "n", "uid": "u", "generation": 7, "annotations": {"x": "y"}});
        let made = accepted(&object("v1"), new, "example.com/v2").unwrap();
        let wanted = json!({"name": "a", "namespace": "n", "uid": "u", "generation": 2, "annotations": {"x": "y"}});
        assert_eq!(made["metadata"], wanted);
    }

    #[test]
    fn what_a_webhook_may_not_do() {
        let why = |new: Value| accepted(&object("v1"), new, "example.com/v2").unwrap_err();
        let head = "conversion webhook for example.com/v1, Kind=Thing returned invalid";
        assert_eq!(
            why(object("v1")),
            format!(
                "{head} object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v1)"
            )
        );
        let with = |pointer: &str, value: Value| {
            let mut new = object("v2");
            *new.pointer_mut(pointer).unwrap() = value;
            why(new)
        };
        assert_eq!(
            with("/kind", "Other".into()),
            format!("{head} object at index 0: invalid kind (expected Thing, received Other)")
        );
        assert_eq!(with("/metadata/name", "b".into()), format!("{head} object: must have the same name: a != b"));
        assert_eq!(with("/metadata/uid", "v".into()), format!("{head} object: must have the same UID: u != v"));
        assert_eq!(
            with("/metadata/labels", json!({"a": 1})),
            format!("{head} metadata: metadata.labels[a] must be a string, but is int64 in converted object")
        );
        assert!(
            with("/metadata/labels", json!({"a b": "c"})).starts_with(&format!("{head} metadata: metadata.labels: "))
        );
    }

    #[test]
    fn answers_are_looked_at_closely() {
        let answer = |response: Value| json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response});
        let fine = answer(json!({"uid": "1", "result": {"status": "Success"}, "convertedObjects": [{}]}));
        assert_eq!(read_answer(&fine, "v1", "1").unwrap().len(), 1);
        assert_eq!(read_answer(&fine, "v1", "2").unwrap_err(), "expected response.uid=\"2\", got \"1\"");
        let refused = answer(json!({"uid": "1", "result": {"status": "Failure", "message": "cannot"}}));
        assert_eq!(read_answer(&refused, "v1", "1").unwrap_err(), "cannot");
        let mute = answer(json!({"uid": "1", "result": {"status": "Failure"}}));
        assert_eq!(read_answer(&mute, "v1", "1").unwrap_err(), "response.result.status was 'Failure', not 'Success'");
        assert_eq!(read_answer(&answer(Value::Null), "v1", "1").unwrap_err(), "no response provided");
        assert_eq!(
            read_answer(&json!({}), "v1", "1").unwrap_err(),
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got /, Kind="
        );
    }
}
