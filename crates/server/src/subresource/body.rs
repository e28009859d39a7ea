//! Bodies of subresource requests and their answers.

use crate::http::{negotiate, respond};
use crate::registry::draft::{self, Body, Encoding};
use crate::request::{RequestContext, Response};
use bytes::Bytes;
use gantry_api::kind::Kind;
use gantry_api::meta::status::ApiError;
use gantry_schema::{Definitions, strict};
use serde_json::json;

/// The decoded body, and texts for `Warning` headers about unknown fields.
///
/// # Errors
/// 400 for what is no such object, or has unknown fields where the client asked to be strict; 415 for other encodings.
pub(super) fn decode<K: Kind>(cx: &RequestContext, body: &Bytes) -> Result<(K, Vec<String>), ApiError> {
    let info = &K::INFO;
    let schema = Definitions::builtin().schema_for(info.group, info.version, info.kind);
    let refused = |why: &str| ApiError::bad_request(strict::cannot_be_handled(info.kind, info.version, info.kind, why));
    let body = Body { bytes: body.clone(), encoding: negotiate::body_encoding(&cx.parts.headers)? };
    let decoded = match draft::decode_body(info, &body, schema) {
        Err(_) if is_former_eviction::<K>(&body) => Ok(draft::decode_text(info, &body, schema)?),
        decoded => decoded,
    }?;
    let mut value = decoded.value;
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".into(), info.api_version().into());
        object.insert("kind".into(), info.kind.into());
        object.entry("metadata").or_insert_with(|| json!({}));
    }
    let mut object = K::from_value(value).map_err(|e| refused(&e.to_string()))?;
    object.set_defaults();
    let complaints = decoded.strict_errors;
    match cx.param("fieldValidation").unwrap_or("Warn") {
        "Strict" if !complaints.is_empty() => Err(refused(&strict::strict_error_message(&complaints))),
        "Ignore" => Ok((object, Vec::new())),
        _ => Ok((object, complaints)),
    }
}

/// Evictions of `policy/v1beta1` are read as those of `v1`, which they equal, as upstream accepts them.
fn is_former_eviction<K: Kind>(body: &Body) -> bool {
    let former = ("policy/v1beta1".to_owned(), "Eviction".to_owned());
    K::INFO.kind == "Eviction" && strict::type_meta(&body.bytes, body.encoding == Encoding::Yaml) == Ok(former)
}

/// Whether `dryRun=All` was asked for.
///
/// # Errors
/// 422 for any other value, as for every write.
pub(super) fn dry_run(cx: &RequestContext) -> Result<bool, ApiError> {
    match cx.param("dryRun") {
        None | Some("") => Ok(false),
        Some("All") => Ok(true),
        Some(other) => {
            let mut e = gantry_api::meta::field::ErrorList::default();
            e.not_supported(&gantry_api::meta::field::Path::new("dryRun"), other, &["All"]);
            Err(ApiError::invalid("meta.k8s.io", "CreateOptions", "", &e))
        }
    }
}

/// 201 with the object.
///
/// # Errors
/// Where the client accepts nothing that is served.
pub(super) fn created<K: Kind>(cx: &RequestContext, object: &K, warnings: &[String]) -> Result<Response, ApiError> {
    json_answer(cx, 201, Bytes::from(object.to_json()), warnings)
}

/// `Success` with this code.
///
/// # Errors
/// Where the client accepts nothing that is served.
pub(super) fn success(cx: &RequestContext, code: u16, warnings: &[String]) -> Result<Response, ApiError> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code});
    json_answer(cx, code, status.to_string().into(), warnings)
}

/// JSON with this code.
///
/// # Errors
/// Where the client accepts nothing that is served.
pub(super) fn json_answer(
    cx: &RequestContext,
    code: u16,
    json: Bytes,
    warnings: &[String],
) -> Result<Response, ApiError> {
    let accepted = negotiate::accept(&cx.parts.headers, &cx.query, false)?;
    let mut response = respond::document(code, json, &accepted, &cx.parts.headers)?;
    respond::add_warnings(&mut response, warnings);
    Ok(response)
}

/// 405 for a verb that a create-only resource does not have.
///
/// # Errors
/// Where the verb is not `create`.
pub(super) fn only_create(cx: &RequestContext) -> Result<(), ApiError> {
    if cx.info.verb == "create" && cx.info.tail.is_empty() {
        return Ok(());
    }
    Err(ApiError::method_not_allowed())
}
