//! A request as those outside the tree see it: the `AdmissionRequest` of webhooks and the `request` of expressions.

use super::{Attributes, Operation};
use crate::authn::UserInfo;
use crate::cluster::Cluster;
use crate::crd;
use crate::registry::scale::scale_of;
use gantry_api::k8s_openapi::api::authentication::v1::TokenRequest;
use gantry_api::k8s_openapi::api::core::v1::Binding;
use gantry_api::k8s_openapi::api::policy::v1::Eviction;
use gantry_api::kind::{Kind, Object, Resource, downcast_mut};
use gantry_api::meta::object::split_api_version;
use gantry_api::meta::status::ApiError;
use serde_json::{Map, Value, json};

/// A request with its objects in one version.
pub struct Request {
    /// `AdmissionRequest` without `uid`, `object` and `oldObject`.
    pub head: Value,
    /// The new object, or the options of a connection; null on delete.
    pub object: Value,
    /// The stored object; null on create and connect.
    pub old_object: Value,
}

/// The kinds of the options of connections, which are the objects reviewed.
const CONNECT_OPTIONS: &[(&str, &str, &str)] = &[
    ("pods", "exec", "PodExecOptions"),
    ("pods", "attach", "PodAttachOptions"),
    ("pods", "portforward", "PodPortForwardOptions"),
    ("pods", "proxy", "PodProxyOptions"),
    ("services", "proxy", "ServiceProxyOptions"),
    ("nodes", "proxy", "NodeProxyOptions"),
];

impl Request {
    /// The request of `a`, its objects as `equivalent` shows them where that is not what was addressed.
    ///
    /// # Errors
    /// Where the objects cannot be shown so.
    pub async fn of(
        a: &Attributes<'_>,
        equivalent: Option<&'static dyn Resource>,
        cluster: &Cluster,
    ) -> Result<Self, ApiError> {
        let mut object = show(a, a.object.as_deref(), equivalent, cluster).await?;
        let old_object = show(a, a.old_object, equivalent, cluster).await?;
        if a.operation == Operation::Connect {
            object = connect_options(a);
        }
        let own = a.resource.info();
        let shown_as = equivalent.map_or(own, |e| e.info());
        let some = if object.is_null() { &old_object } else { &object };
        let kind = |otherwise: &str, version: String| match (some["apiVersion"].as_str(), some["kind"].as_str()) {
            (Some(version), Some(kind)) => group_version_kind(version, kind),
            _ => group_version_kind(&version, otherwise),
        };
        let shown_kind = kind(shown_as.kind, shown_as.api_version());
        let request_kind = match equivalent {
            None => shown_kind.clone(),
            Some(_) => group_version_kind(&own.api_version(), own.kind),
        };
        let resource =
            |i: &gantry_api::kind::ResourceInfo| json!({"group": i.group, "version": i.version, "resource": i.plural});
        let mut head = json!({
            "kind": shown_kind,
            "resource": resource(shown_as),
            "requestKind": request_kind,
            "requestResource": resource(own),
            "operation": a.operation.as_str(),
            "userInfo": user_info(a.user),
            "dryRun": a.dry_run,
            "options": options(a),
        });
        let fields = [
            ("subResource", a.subresource),
            ("requestSubResource", a.subresource),
            ("name", a.name),
            ("namespace", namespace_of(a)),
        ];
        for (field, value) in fields.into_iter().filter(|(_, v)| !v.is_empty()) {
            head[field] = value.into();
        }
        Ok(Self { head, object, old_object })
    }
}

/// An object of the request as it is reviewed.
async fn show(
    a: &Attributes<'_>,
    object: Option<&dyn Object>,
    equivalent: Option<&'static dyn Resource>,
    cluster: &Cluster,
) -> Result<Value, ApiError> {
    let Some(object) = object else { return Ok(Value::Null) };
    let value = object.to_value();
    match equivalent {
        _ if a.subresource == "scale" => {
            Ok(scale_of(&value, crd::custom(a.resource).and_then(crd::CustomResource::scale)))
        }
        None => Ok(value),
        Some(view) => Ok(in_version_of(view, value, cluster).await?.to_value()),
    }
}

/// An object given in one version as `view` has it.
async fn in_version_of(view: &dyn Resource, object: Value, cluster: &Cluster) -> Result<Box<dyn Object>, ApiError> {
    match crd::custom(view) {
        Some(custom) => {
            let made = custom.convert(vec![object], cluster).await?;
            made.into_iter().next().ok_or_else(|| ApiError::internal("the conversion made nothing"))
        }
        None => view.decode(object.to_string().as_bytes()).map_err(|e| ApiError::internal(e.to_string())),
    }
}

/// The namespace as reviews say it; a Namespace is in itself.
#[must_use]
pub fn namespace_of<'a>(a: &Attributes<'a>) -> &'a str {
    let info = a.resource.info();
    if info.group.is_empty() && info.plural == "namespaces" { a.name } else { a.namespace }
}

fn group_version_kind(api_version: &str, kind: &str) -> Value {
    let (group, version) = split_api_version(api_version);
    json!({"group": group, "version": version, "kind": kind})
}

fn user_info(user: &UserInfo) -> Value {
    let mut out = json!({"username": user.username});
    if !user.uid.is_empty() {
        out["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        out["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        out["extra"] = json!(user.extra);
    }
    out
}

/// The options of the operation, with their kind.
fn options(a: &Attributes<'_>) -> Value {
    let kind = match a.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut out = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if let (Some(out), Some(given)) = (out.as_object_mut(), a.options.as_object()) {
        out.extend(
            given
                .iter()
                .filter(|(k, v)| *k != "kind" && *k != "apiVersion" && !v.is_null())
                .map(|(k, v)| (k.clone(), v.clone())),
        );
    }
    out
}

/// The options of a connection as the object they are to reviewers.
fn connect_options(a: &Attributes<'_>) -> Value {
    let plural = a.resource.info().plural;
    let found = CONNECT_OPTIONS.iter().find(|(r, s, _)| *r == plural && *s == a.subresource);
    let Some((_, _, kind)) = found else { return Value::Null };
    let mut out = Map::new();
    out.insert("kind".into(), (*kind).into());
    out.insert("apiVersion".into(), "v1".into());
    for (name, values) in a.options.as_object().into_iter().flatten() {
        let first = values.get(0).and_then(Value::as_str).unwrap_or_default();
        let value = match name.as_str() {
            "stdin" | "stdout" | "stderr" | "tty" => (!matches!(first, "false" | "0" | "False" | "F" | "f")).into(),
            "command" => values.clone(),
            "ports" => {
                let all = values.as_array().into_iter().flatten().filter_map(Value::as_str).flat_map(|v| v.split(','));
                json!(all.filter_map(|p| p.parse::<i32>().ok()).collect::<Vec<_>>())
            }
            "container" | "path" => first.into(),
            _ => continue,
        };
        out.insert(name.clone(), value);
    }
    Value::Object(out)
}

/// Takes a changed object back, with defaults. Returns whether it differs.
///
/// # Errors
/// Where it is no object of its kind any more.
pub async fn take_back(
    a: &mut Attributes<'_>,
    equivalent: Option<&'static dyn Resource>,
    changed: Value,
    cluster: &Cluster,
) -> Result<bool, ApiError> {
    let resource = a.resource;
    let scale = a.subresource == "scale";
    let Some(object) = a.object.as_deref_mut() else { return Ok(false) };
    let before = object.to_value();
    let failed = |e: serde_json::Error| ApiError::internal(e.to_string());
    if scale {
        let mut whole = before.clone();
        whole["spec"]["replicas"] = changed["spec"]["replicas"].as_i64().unwrap_or(0).into();
        resource.assign(object, resource.decode_value(whole).map_err(failed)?.as_ref());
    } else if let Some(view) = equivalent {
        let shown = view.decode_value(changed).map_err(failed)?;
        let mut own = in_version_of(resource, shown.to_value(), cluster).await?;
        resource.set_defaults(own.as_mut());
        resource.assign(object, own.as_ref());
    } else if !(replace_body::<Binding>(object, &changed)?
        || replace_body::<Eviction>(object, &changed)?
        || replace_body::<TokenRequest>(object, &changed)?)
    {
        let mut own = resource.decode_value(changed).map_err(failed)?;
        resource.set_defaults(own.as_mut());
        resource.assign(object, own.as_ref());
    }
    Ok(object.to_value() != before)
}

/// Replaces the body of a subresource that is of another kind than the resource. Whether it is of kind `K`.
fn replace_body<K: Kind>(object: &mut dyn Object, changed: &Value) -> Result<bool, ApiError> {
    let Some(body) = downcast_mut::<K>(object) else { return Ok(false) };
    let mut own = K::from_value(changed.clone()).map_err(|e| ApiError::internal(e.to_string()))?;
    own.set_defaults();
    *body = own;
    Ok(true)
}
