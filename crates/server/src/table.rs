//! Other shapes of an object: table rows and bare metadata.

use crate::http::negotiate::{Form, IncludeObject};
use crate::watch_cache::Entry;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Resource;
use gantry_api::meta::status::ApiError;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct OnlyMetadata<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// `PartialObjectMetadata` of an object given as JSON.
///
/// # Errors
/// Where the JSON is no object with metadata.
pub fn partial(json: &[u8], version: &str) -> Result<Vec<u8>, ApiError> {
    let only: OnlyMetadata<'_> = serde_json::from_slice(json).map_err(ApiError::internal)?;
    Ok(format!(
        r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/{version}","metadata":{}}}"#,
        only.metadata.get()
    )
    .into_bytes())
}

/// The column definitions of a resource.
#[must_use]
pub fn column_definitions(resource: &dyn Resource) -> Value {
    let columns = resource.columns().iter().map(|c| {
        json!({ "name": c.name, "type": c.r#type, "format": c.format, "description": c.description, "priority": c.priority })
    });
    Value::Array(columns.collect())
}

/// One row.
///
/// # Errors
/// Where the object cannot be decoded.
pub fn row(
    resource: &dyn Resource,
    json: &[u8],
    version: &str,
    include: IncludeObject,
    now: Timestamp,
) -> Result<Vec<u8>, ApiError> {
    let object = resource.decode(json).map_err(ApiError::internal)?;
    let mut out = br#"{"cells":"#.to_vec();
    serde_json::to_writer(&mut out, &resource.cells(object.as_ref(), now)).map_err(ApiError::internal)?;
    match include {
        IncludeObject::None => out.extend_from_slice(br#","object":null"#),
        IncludeObject::Metadata => {
            out.extend_from_slice(br#","object":"#);
            out.extend_from_slice(&partial(json, version)?);
        }
        IncludeObject::Object => {
            out.extend_from_slice(br#","object":"#);
            out.extend_from_slice(json);
        }
    }
    out.push(b'}');
    Ok(out)
}

/// A whole table of one object.
///
/// # Errors
/// Where the object cannot be decoded.
pub fn of_one(
    resource: &dyn Resource,
    json: &[u8],
    resource_version: &str,
    version: &str,
    include: IncludeObject,
    with_columns: bool,
    now: Timestamp,
) -> Result<Vec<u8>, ApiError> {
    let columns = if with_columns { column_definitions(resource) } else { Value::Array(Vec::new()) };
    let mut out = format!(
        r#"{{"kind":"Table","apiVersion":"meta.k8s.io/{version}","metadata":{{"resourceVersion":"{resource_version}"}},"columnDefinitions":{columns},"rows":["#
    )
    .into_bytes();
    out.extend_from_slice(&row(resource, json, version, include, now)?);
    out.extend_from_slice(b"]}");
    Ok(out)
}

/// An object in the shape asked for, as JSON.
///
/// # Errors
/// Where the object cannot be decoded.
pub fn shaped(
    resource: &dyn Resource,
    json: &[u8],
    resource_version: &str,
    form: Form,
    now: Timestamp,
) -> Result<Option<Vec<u8>>, ApiError> {
    match form {
        Form::Object => Ok(None),
        Form::Metadata(version) => partial(json, version).map(Some),
        Form::Table(version, include) => {
            of_one(resource, json, resource_version, version, include, true, now).map(Some)
        }
    }
}

/// Appends one item of a list in its shape.
///
/// # Errors
/// Where the object cannot be decoded.
pub fn append_item(
    out: &mut Vec<u8>,
    resource: &dyn Resource,
    entry: &Entry,
    form: Form,
    now: Timestamp,
) -> Result<(), ApiError> {
    match form {
        Form::Object => {
            out.push(b'{');
            out.extend_from_slice(&entry.item_tail());
        }
        Form::Metadata(version) => out.extend_from_slice(&partial(&entry.json(), version)?),
        Form::Table(version, include) => out.extend_from_slice(&row(resource, &entry.json(), version, include, now)?),
    }
    Ok(())
}
