//! The `scale` subresource: an autoscaling/v1 Scale in front of `spec.replicas`.

use super::Registry;
use super::draft::{Body, Change, Encoding, PatchType, apply_error, patch_error};
use super::options::FieldValidation;
use super::write::{Target, Written};
use crate::crd::ScalePaths;
use crate::http::negotiate::IncludeObject;
use crate::watch_cache::Entry;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::ResourceInfo;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::labels::{Selector, format_label_selector};
use gantry_api::meta::status::ApiError;
use gantry_api::meta::table::human_duration;
use gantry_schema::apply::{
    FieldManager, PathElement, SCALE_API_VERSION, SingleVersion, owners_from_scale, owners_to_scale,
};
use gantry_schema::patch;
use gantry_schema::{Definitions, Schema, strict};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Where the built-in scalable kinds have what a Scale sets.
const REPLICAS: [&str; 2] = ["spec", "replicas"];

fn at<'v>(object: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(object, |v, name| v.get(name))
}

/// Puts the replicas where they belong, making the objects on the way.
fn set_replicas(object: &mut Value, path: &[String], replicas: i64) {
    let mut place = object;
    for name in path {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[name.as_str()];
    }
    *place = replicas.into();
}

/// The Scale of an object given as JSON.
#[must_use]
pub fn scale_of(object: &Value, paths: Option<&ScalePaths>) -> Value {
    let meta = &object["metadata"];
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(v) = meta.get(field) {
            metadata.insert(field.to_owned(), v.clone());
        }
    }
    let (wanted, present) = match paths {
        None => (Some(&object["spec"]["replicas"]), Some(&object["status"]["replicas"])),
        Some(paths) => (at(object, &paths.spec), at(object, &paths.status)),
    };
    let mut status = json!({ "replicas": present.and_then(Value::as_i64).unwrap_or(0) });
    let own = paths.map(|p| p.selector.as_ref().and_then(|s| at(object, s)).and_then(Value::as_str));
    let selector = match &object["spec"]["selector"] {
        _ if own.is_some() => own.flatten().map(str::to_owned),
        Value::Object(s) if s.contains_key("matchLabels") || s.contains_key("matchExpressions") => {
            serde_json::from_value(Value::Object(s.clone())).ok().map(|s| format_label_selector(Some(&s)))
        }
        Value::Object(s) => {
            let set = s.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
            Some(Selector::from_set(&set).to_string())
        }
        _ => None,
    };
    if let Some(selector) = selector.filter(|s| !s.is_empty()) {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        // A scale to zero reads as an absent field, as Go leaves it out.
        "spec": match wanted.and_then(Value::as_i64).unwrap_or(0) { 0 => json!({}), n => json!({ "replicas": n }) },
        "status": status,
    })
}

/// The Scale of a cached object.
///
/// # Errors
/// Where the cached JSON cannot be read, or has no replicas where a definition says that they are.
pub fn scale_of_entry(entry: &Entry, paths: Option<&ScalePaths>) -> Result<Value, ApiError> {
    let object: Value = serde_json::from_slice(&entry.json()).map_err(ApiError::internal)?;
    if let Some(paths) = paths.filter(|p| at(&object, &p.spec).is_none()) {
        return Err(ApiError::internal(format!("the spec replicas field {:?} does not exist", paths.spec_text)));
    }
    Ok(scale_of(&object, paths))
}

/// A table of one Scale.
#[must_use]
pub fn table_of(scale: &Value, version: &str, include: IncludeObject, now: Timestamp) -> Value {
    let column = |name: &str, kind: &str, format: &str, description: &str| {
        json!({
            "name": name, "type": kind, "format": format, "description": description, "priority": 0,
        })
    };
    let meta = &scale["metadata"];
    let created = meta["creationTimestamp"].as_str().and_then(|t| t.parse().ok());
    let age = created.map_or_else(|| "<unknown>".to_owned(), |t| human_duration(t, now));
    let object = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => {
            json!({ "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": meta })
        }
        IncludeObject::Object => scale.clone(),
    };
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": { "resourceVersion": meta["resourceVersion"] },
        "columnDefinitions": [
            column("Name", "string", "name", "Name of the scaled object."),
            column("Desired", "integer", "", "Number of replicas asked for."),
            column("Available", "integer", "", "Number of replicas there are."),
            column("Age", "date", "", "Time since the scaled object was created."),
        ],
        "rows": [{
            "cells": [meta["name"], scale["spec"]["replicas"].as_i64().unwrap_or(0), scale["status"]["replicas"], age],
            "object": object,
        }],
    })
}

/// How the client changes the Scale.
pub enum ScaleChange {
    /// PUT.
    Replace(Body),
    /// PATCH.
    Patch(PatchType, bytes::Bytes),
}

impl Registry {
    /// Changes the replicas of the target through its Scale. Answers with the new Scale.
    ///
    /// # Errors
    /// 400, 404, 409, 422 as for any update.
    pub async fn scale(&self, target: &Target<'_>, change: ScaleChange) -> Result<(Value, Written), ApiError> {
        let change = Arc::new(change);
        let (namespace, name) = (target.namespace.to_owned(), target.name.to_owned());
        let info = *target.resource.info();
        let api_version = info.api_version();
        let (manager, force) = (target.options.field_manager.clone(), target.options.force);
        let validation = target.options.validation;
        // Of the last try, where others came in between.
        let unknown = Arc::<Mutex<Vec<String>>>::default();
        let found = unknown.clone();
        let paths = crate::crd::custom(target.resource).and_then(|c| c.scale().cloned());
        let place = paths.as_ref().map_or_else(|| REPLICAS.map(str::to_owned).to_vec(), |p| p.spec.clone());
        let own = paths.clone();
        let edit = move |live: &Value, now: &str| -> Result<Value, ApiError> {
            let mut present = scale_of(live, own.as_ref());
            let replicas_path: Vec<PathElement> = place.iter().map(|name| PathElement::field(name)).collect();
            owners_to_scale(live, &mut present, &replicas_path).map_err(apply_error)?;
            let (wanted, strict) = wanted_scale(&present, &change, &manager, force, now)?;
            if validation == FieldValidation::Strict && !strict.is_empty() {
                return Err(refused(&change, &wanted, &strict));
            }
            *found.lock() = strict;
            let unsaid = wanted["spec"].get("replicas").is_none() && at(live, &place).is_none();
            if let Some(paths) = own.as_ref().filter(|_| unsaid) {
                let why = format!("the spec replicas field {:?} cannot be empty", paths.spec_text);
                return Err(ApiError::bad_request(why));
            }
            let replicas = check(&wanted, &namespace, &name)?;
            check_uid(&wanted, live, &info)?;
            let mut object = live.clone();
            set_replicas(&mut object, &place, replicas);
            // An absent version leaves the update unconditional.
            match wanted["metadata"].get("resourceVersion") {
                Some(v) if v != "" => object["metadata"]["resourceVersion"] = v.clone(),
                _ => {
                    if let Some(m) = object["metadata"].as_object_mut() {
                        m.remove("resourceVersion");
                    }
                }
            }
            owners_from_scale(&wanted, &mut object, &api_version, &replicas_path).map_err(apply_error)?;
            Ok(object)
        };
        let mut written = self.write(target, &Change::Edit(Arc::new(edit))).await?;
        if validation == FieldValidation::Warn {
            written.warnings.append(&mut unknown.lock());
        }
        let json: Value = serde_json::from_slice(&written.json).map_err(ApiError::internal)?;
        Ok((scale_of(&json, paths.as_ref()), written))
    }
}

/// What a client is told that wants unknown fields refused.
fn refused(change: &ScaleChange, wanted: &Value, strict: &[String]) -> ApiError {
    let cause = strict::strict_error_message(strict);
    if let ScaleChange::Replace(_) | ScaleChange::Patch(PatchType::Apply, _) = change {
        return ApiError::bad_request(strict::cannot_be_handled("Scale", "v1", "Scale", &cause));
    }
    let mut errors = ErrorList::default();
    errors.invalid(&Path::new("patch"), wanted.to_string(), &cause);
    ApiError::invalid("", "", "", &errors)
}

/// The Scale a client asks for, with the record of who manages its replicas, and the fields in the request that a Scale does
/// not have.
fn wanted_scale(
    present: &Value,
    change: &ScaleChange,
    manager: &str,
    force: bool,
    now: &str,
) -> Result<(Value, Vec<String>), ApiError> {
    let schema = Definitions::builtin()
        .schema_for("autoscaling", "v1", "Scale")
        .ok_or_else(|| ApiError::internal("no definition of Scale"))?;
    let owners = FieldManager {
        schema,
        api_version: SCALE_API_VERSION,
        kind: "Scale",
        subresource: "scale",
        reset_fields: None,
        versions: &SingleVersion,
    };
    let (value, strict) = match change {
        ScaleChange::Replace(body) => {
            let decoded = match body.encoding {
                Encoding::Json => strict::decode_json(&body.bytes, Some(schema)),
                Encoding::Yaml => strict::decode_yaml(&body.bytes, Some(schema)),
            };
            let decoded = decoded.map_err(|e| {
                ApiError::bad_request(strict::cannot_be_handled("Scale", "v1", "Scale", &e.to_string()))
            })?;
            (decoded.value, decoded.strict_errors)
        }
        ScaleChange::Patch(PatchType::Json, body) => patched(patch::json_patch(present, body), schema)?,
        ScaleChange::Patch(PatchType::Apply, body) => {
            let config = strict::decode_yaml(body, Some(schema))
                .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
            let merged =
                owners.apply(Some(present.clone()), &config.value, manager, force, now).map_err(apply_error)?;
            return Ok((merged.unwrap_or_else(|| present.clone()), config.strict_errors));
        }
        ScaleChange::Patch(_, body) => patched(patch::merge_patch(present, body), schema)?,
    };
    if value["kind"] != "Scale" && !value["kind"].is_null() {
        let kind = value["kind"].as_str().unwrap_or_default();
        return Err(ApiError::bad_request(strict::cannot_be_handled(
            kind,
            "v1",
            "Scale",
            &format!("no kind {kind:?} is registered"),
        )));
    }
    Ok((owners.update(Some(present), value, manager, now), strict))
}

/// A patched Scale and what is unknown in it. A field of the wrong type is for [`check`] to name.
fn patched(
    result: Result<patch::Patched, patch::PatchError>,
    schema: Schema<'_>,
) -> Result<(Value, Vec<String>), ApiError> {
    let patch::Patched { value, strict_errors: mut unknown } = result.map_err(patch_error)?;
    for field in strict::check(&value, schema).unwrap_or_default() {
        if !unknown.contains(&field) {
            unknown.push(field);
        }
    }
    Ok((value, unknown))
}

/// A Scale with another object's uid is not this one's.
fn check_uid(scale: &Value, live: &Value, info: &ResourceInfo) -> Result<(), ApiError> {
    let text = |of: &Value, field: &str| of["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (given, own) = (text(scale, "uid"), text(live, "uid"));
    if given.is_empty() || given == own {
        return Ok(());
    }
    let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {own}");
    Err(ApiError::conflict(info.group, &format!("{}/scale", info.plural), &text(live, "name"), &why))
}

fn check(scale: &Value, namespace: &str, name: &str) -> Result<i64, ApiError> {
    let meta = &scale["metadata"];
    let given = meta["name"].as_str().unwrap_or_default();
    if given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let given = meta["namespace"].as_str().unwrap_or_default();
    if !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the object ({given}) does not match the namespace on the request ({namespace})"
        )));
    }
    let mut errors = ErrorList::default();
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        v => match v.as_i64().filter(|n| i32::try_from(*n).is_ok()) {
            Some(n) => n,
            None => {
                let cause =
                    format!("json: cannot unmarshal {v} into Go struct field ScaleSpec.spec.replicas of type int32");
                return Err(ApiError::bad_request(strict::cannot_be_handled("Scale", "v1", "Scale", &cause)));
            }
        },
    };
    if replicas < 0 {
        errors.invalid(&Path::new("spec").child("replicas"), replicas, "must be greater than or equal to 0");
    }
    if errors.is_empty() { Ok(replicas) } else { Err(ApiError::invalid("autoscaling", "Scale", name, &errors)) }
}
