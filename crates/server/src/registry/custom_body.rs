//! Bodies and patches of custom objects: they say what they are, their metadata is metadata, and what the schema does
//! not know goes. Upstream reads them as trees, so that other sentences answer to mistakes than for built-in kinds.

use super::draft::{Body, Encoding, decode_text, patch_unprocessable, unknown_fields};
use super::write::Target;
use crate::crd::VersionSchema;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::object::split_api_version;
use gantry_api::meta::status::ApiError;
use gantry_schema::{Definitions, strict};
use serde_json::Value;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The object that a body holds, without what the schema does not know.
///
/// # Errors
/// 400 for what cannot be read as an object of this version, 422 for another kind.
pub(super) fn read(
    target: &Target<'_>,
    version: &VersionSchema,
    body: &Body,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let info = target.resource.info();
    let decoded = decode_text(info, body, None)?;
    let (mut value, mut errors) = (decoded.value, decoded.strict_errors);
    if value.is_null() {
        value = Value::Object(serde_json::Map::new());
    }
    let no_text = |name: &str| value.get(name).is_some_and(|given| !given.is_string() && !given.is_null());
    if (!value.is_object() || no_text("apiVersion") || no_text("kind"))
        && let Err(cause) = strict::type_meta(&body.bytes, body.encoding == Encoding::Yaml)
    {
        return Err(ApiError::bad_request(strict::unrecognized(info.kind, &cause.to_string(), &body.bytes)));
    }
    // Absent ones mean those of the path, as for built-in kinds. Upstream refuses a custom object without them.
    if let Some(map) = value.as_object_mut() {
        for (name, own) in [("apiVersion", info.api_version()), ("kind", info.kind.to_owned())] {
            if map.get(name).is_none_or(|given| given.is_null() || given == "") {
                map.insert(name.to_owned(), own.into());
            }
        }
    }
    let (given, kind) = type_of(&value);
    let (given, kind) = (given.to_owned(), kind.to_owned());
    let complaints = complete(version, &mut value, kind == info.kind).map_err(|cause| {
        ApiError::bad_request(strict::cannot_be_handled(&kind, split_api_version(&given).1, info.kind, &cause))
    })?;
    errors.extend(complaints);
    unknown_fields(target, errors, warnings)?;
    if given != info.api_version() {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({})",
            info.api_version()
        )));
    }
    check_type(target, &value)?;
    Ok(value)
}

/// The same for the result of a patch. Returns what is said of its unknown fields.
///
/// # Errors
/// 422 for a result that is no object of this version.
pub(super) fn patched(
    target: &Target<'_>,
    version: &VersionSchema,
    value: &mut Value,
) -> Result<Vec<String>, ApiError> {
    if type_of(value).1.is_empty() {
        let text = value.to_string();
        let cause = format!("Object 'Kind' is missing in '{text}'");
        return Err(patch_unprocessable(text, &cause));
    }
    check_type(target, value)?;
    complete(version, value, true).map_err(|cause| patch_unprocessable(value.to_string(), &cause))
}

/// Looks through the metadata and prunes. Returns `unknown field "x"` for each unknown field.
fn complete(version: &VersionSchema, value: &mut Value, own_kind: bool) -> Result<Vec<String>, String> {
    let mut errors = Vec::new();
    if let (Some(metadata), Some(schema)) = (value.get("metadata"), Definitions::builtin().definition(OBJECT_META)) {
        let found = strict::check(metadata, schema).map_err(|error| error.to_string())?;
        errors.extend(found.iter().map(|error| error.replacen("field \"", "field \"metadata.", 1)));
    }
    // Of an object of another kind nothing is known.
    if own_kind {
        if let Some(malformed) = version.malformed(value) {
            return Err(malformed);
        }
        errors.extend(version.prune(value));
    }
    Ok(errors)
}

fn type_of(value: &Value) -> (&str, &str) {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    (text("apiVersion"), text("kind"))
}

/// An object says the type it is stored as.
fn check_type(target: &Target<'_>, value: &Value) -> Result<(), ApiError> {
    let info = target.resource.info();
    let (given, kind) = type_of(value);
    let mut errors = ErrorList::default();
    for (name, given, own) in [("kind", kind, info.kind), ("apiVersion", given, info.api_version().as_str())] {
        if given != own {
            errors.invalid(&Path::new(name), given, &format!("must be {own}"));
        }
    }
    if errors.0.is_empty() {
        return Ok(());
    }
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    Err(ApiError::invalid(split_api_version(given).0, kind, name, &errors))
}
