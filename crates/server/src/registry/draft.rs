//! From a request body to the object it asks for: decoding with strict field checks, the four patches, defaults, and the
//! record of who manages which fields.

use super::Registry;
use super::custom_body;
use super::options::FieldValidation;
use super::versions::BuiltIn;
use super::write::Target;
use crate::crd::Recalled;
use bytes::Bytes;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, StatusCause};
use gantry_api::kind::{Object, Resource, ResourceInfo};
use gantry_api::meta::object::{Meta, split_api_version};
use gantry_api::meta::status::ApiError;
use gantry_schema::apply::{self, ApplyError, FieldManager, FieldSet};
use gantry_schema::patch::{self, PatchError};
use gantry_schema::strict::{self, DecodeError, Decoded};
use gantry_schema::{Definitions, Schema};
use serde_json::Value;
use std::sync::Arc;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// A request body and how it is written.
#[derive(Clone, Debug)]
pub struct Body {
    /// The text.
    pub bytes: Bytes,
    /// How it is written.
    pub encoding: Encoding,
}

/// The sort of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Strategic merge.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// From a content type without parameters.
    #[must_use]
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// Makes the new object, with the record of who manages its fields, from the present one and the time (RFC 3339).
pub type Edit = Arc<dyn Fn(&Value, &str) -> Result<Value, ApiError> + Send + Sync>;

/// What a write asks for.
pub enum Change {
    /// A new object.
    Create(Body),
    /// This object in place of the present one.
    Update(Body),
    /// The present object, patched.
    Patch(PatchType, Bytes),
    /// The present object, changed by the server on behalf of the client (scale).
    Edit(Edit),
}

impl Registry {
    /// Makes the object that `change` asks for, with defaults and managed fields, given the present one. What there is to
    /// warn of is added to `warnings`, whether it can be made or not.
    pub(super) async fn draft(
        &self,
        target: &Target<'_>,
        change: &Change,
        old: Option<&dyn Object>,
        warnings: &mut Vec<String>,
    ) -> Result<Box<dyn Object>, ApiError> {
        let Some(custom) = crate::crd::custom(target.resource) else {
            return self.draft_of_built_in(target, change, old, warnings);
        };
        let mut versions = Recalled::new(custom.state());
        loop {
            warnings.clear();
            let draft = self.draft_of_custom(target, change, old, &versions, warnings);
            // Fields may have owners that know other versions of the object only.
            if !versions.ask(&self.cluster()).await? {
                return draft;
            }
        }
    }

    fn draft_of_built_in(
        &self,
        target: &Target<'_>,
        change: &Change,
        old: Option<&dyn Object>,
        warnings: &mut Vec<String>,
    ) -> Result<Box<dyn Object>, ApiError> {
        let info = target.resource.info();
        let schema = Definitions::builtin().schema_for(info.group, info.version, info.kind);
        let live = || old.map(Object::to_value).ok_or_else(|| target.not_found(target.name));
        let now = self.clock.time().0.to_string();
        if let Change::Patch(PatchType::Apply, body) = change {
            return self.draft_of_apply(target, body, old, schema, None, &now, warnings);
        }
        let (mut value, live) = match change {
            Change::Create(body) => (decode(target, body, schema, warnings)?, None),
            Change::Update(body) => {
                let value = decode(target, body, schema, warnings)?;
                (value, old.map(Object::to_value))
            }
            Change::Patch(kind, body) => {
                let live = live()?;
                (patched(target, *kind, &live, body, schema, None, warnings)?, Some(live))
            }
            Change::Edit(edit) => {
                let live = live()?;
                (edit(&live, &now)?, Some(live))
            }
        };
        if let Some(schema) = schema {
            schema.drop_empty(&mut value);
        }
        let mut object = into_object(target.resource, value)?;
        check_identity(target, object.as_mut(), matches!(change, Change::Create(_)))?;
        let may_create = info.create_on_update && target.subresource.is_empty();
        if old.is_none() && matches!(change, Change::Update(_)) && !may_create {
            return Err(target.not_found(target.name));
        }
        target.resource.set_defaults(object.as_mut());
        let new = object.to_value();
        let managed = match change {
            // The edit has recorded what it did itself.
            Change::Edit(_) => None,
            _ => with_manager(target, schema, None, |manager| {
                manager.map(|m| m.update(live.as_ref(), new, &target.options.field_manager, &now))
            }),
        };
        if let Some(mut managed) = managed {
            set_managed_fields(object.as_mut(), take_entries(&mut managed))?;
        }
        Ok(object)
    }

    #[allow(clippy::too_many_arguments, reason = "what an apply goes by")]
    fn draft_of_apply(
        &self,
        target: &Target<'_>,
        body: &Bytes,
        old: Option<&dyn Object>,
        schema: Option<Schema<'_>>,
        custom: Option<&Recalled>,
        now: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Box<dyn Object>, ApiError> {
        if old.is_none() && !target.subresource.is_empty() {
            return Err(target.not_found(target.name));
        }
        // Types are the field manager's to check.
        let decoded = strict::decode_yaml(body, None).map_err(|e| {
            ApiError::bad_request(format!("error encoding patch: {}", strict::yaml_cause(&e.to_string())))
        })?;
        let config = decoded.value;
        if !config.is_object() && !config.is_null() {
            return Err(ApiError::bad_request(format!(
                "error decoding patch: error unmarshaling JSON: while decoding JSON: {}",
                patch::no_map(&config)
            )));
        }
        let live = old.map(Object::to_value);
        let options = target.options;
        let applied = with_manager(target, schema, custom, |manager| {
            manager.map(|m| m.apply(live, &config, &options.field_manager, options.force, now))
        });
        let merged = applied
            .ok_or_else(|| {
                ApiError::new(415, "UnsupportedMediaType", "server-side apply is not supported for this resource")
            })?
            .map_err(apply_error)?;
        // Unknown fields are the field manager's to refuse; that a key stands there twice only the text tells.
        repeated_keys(target, &decoded.strict_errors, warnings)?;
        let mut object = match (merged, old) {
            (Some(mut merged), _) => {
                let entries = take_entries(&mut merged);
                if let (Some(schema), None) = (schema, custom) {
                    schema.drop_empty(&mut merged);
                }
                let mut object = into_object(target.resource, merged)?;
                set_managed_fields(object.as_mut(), entries)?;
                object
            }
            (None, Some(old)) => old.boxed_clone(),
            (None, None) => return Err(ApiError::internal("an apply led to nothing")),
        };
        check_identity(target, object.as_mut(), false)?;
        target.resource.set_defaults(object.as_mut());
        Ok(object)
    }

    /// As [`Registry::draft`] for a custom resource, whose schema prunes but does not type.
    fn draft_of_custom(
        &self,
        target: &Target<'_>,
        change: &Change,
        old: Option<&dyn Object>,
        versions: &Recalled,
        warnings: &mut Vec<String>,
    ) -> Result<Box<dyn Object>, ApiError> {
        let custom = versions.state();
        let live = || old.map(Object::to_value).ok_or_else(|| target.not_found(target.name));
        let now = self.clock.time().0.to_string();
        let schema = custom.own.schema();
        let (value, live) = match change {
            Change::Patch(PatchType::Apply, body) => {
                return self.draft_of_apply(target, body, old, schema, Some(versions), &now, warnings);
            }
            Change::Create(body) => (custom_body::read(target, &custom.own, body, warnings)?, None),
            Change::Update(body) => {
                (custom_body::read(target, &custom.own, body, warnings)?, old.map(Object::to_value))
            }
            Change::Patch(PatchType::Strategic, _) => return Err(no_strategic_merge()),
            Change::Patch(kind, body) => {
                let live = live()?;
                (patched(target, *kind, &live, body, None, Some(versions), warnings)?, Some(live))
            }
            Change::Edit(edit) => {
                let live = live()?;
                (edit(&live, &now)?, Some(live))
            }
        };
        let mut object = into_object(target.resource, value)?;
        check_identity(target, object.as_mut(), matches!(change, Change::Create(_)))?;
        if old.is_none() && matches!(change, Change::Update(_)) {
            return Err(target.not_found(target.name));
        }
        target.resource.set_defaults(object.as_mut());
        let new = object.to_value();
        let managed = match change {
            // The edit has recorded what it did itself.
            Change::Edit(_) => None,
            _ => with_manager(target, schema, Some(versions), |manager| {
                manager.map(|m| m.update(live.as_ref(), new, &target.options.field_manager, &now))
            }),
        };
        if let Some(mut managed) = managed {
            set_managed_fields(object.as_mut(), take_entries(&mut managed))?;
        }
        Ok(object)
    }
}

fn no_strategic_merge() -> ApiError {
    ApiError::new(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: \
         application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
    )
}

fn with_manager<R>(
    target: &Target<'_>,
    schema: Option<Schema<'_>>,
    custom: Option<&Recalled>,
    use_it: impl FnOnce(Option<&FieldManager<'_>>) -> R,
) -> R {
    let Some(schema) = schema else { return use_it(None) };
    let info = target.resource.info();
    let (main, status) = target.resource.reset_fields();
    let reset = match target.subresource {
        "" => main,
        "status" => status,
        _ => &[],
    };
    let reset = (!reset.is_empty()).then(|| FieldSet::from_paths(reset));
    let api_version = info.api_version();
    let built_in = BuiltIn(target.resource);
    let manager = FieldManager {
        schema,
        api_version: &api_version,
        kind: info.kind,
        subresource: target.subresource,
        reset_fields: reset.as_ref(),
        versions: match custom {
            Some(custom) => custom,
            None => &built_in,
        },
    };
    use_it(Some(&manager))
}

/// Takes the record of who manages its fields off an object.
fn take_entries(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

fn set_managed_fields(object: &mut dyn Object, entries: Option<Value>) -> Result<(), ApiError> {
    let decode = |mut entry: Value| -> Result<ManagedFieldsEntry, serde_json::Error> {
        // Not read once more: this is most of it.
        let fields = entry.as_object_mut().and_then(|entry| entry.remove("fieldsV1"));
        Ok(ManagedFieldsEntry { fields_v1: fields.map(FieldsV1), ..serde_json::from_value(entry)? })
    };
    object.meta_mut().managed_fields = match entries {
        Some(Value::Array(entries)) => {
            Some(entries.into_iter().map(decode).collect::<Result<_, _>>().map_err(ApiError::internal)?)
        }
        _ => None,
    };
    Ok(())
}

fn decode(
    target: &Target<'_>,
    body: &Body,
    schema: Option<Schema<'_>>,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let decoded = decode_body(target.resource.info(), body, schema)?;
    unknown_fields(target, decoded.strict_errors, warnings)?;
    Ok(decoded.value)
}

/// Decodes a body that is to be an object of this kind, checking its apiVersion and kind.
///
/// # Errors
/// 400 with upstream's sentence.
pub fn decode_body(info: &ResourceInfo, body: &Body, schema: Option<Schema<'_>>) -> Result<Decoded, ApiError> {
    let mut decoded = decode_text(info, body, schema)?;
    match &decoded.value {
        // Nothing, which is no mistake: an object without fields.
        Value::Null => decoded.value = Value::Object(serde_json::Map::new()),
        Value::Object(_) => {}
        _ => {
            let cause = "json: cannot unmarshal non-object value into Go value of type map[string]interface {}";
            return Err(ApiError::bad_request(strict::unrecognized(info.kind, cause, &body.bytes)));
        }
    }
    check_type(info, &decoded.value, &body.bytes)?;
    Ok(decoded)
}

/// Decodes a body that should be an object of this kind.
///
/// # Errors
/// 400 with upstream's sentence.
pub(crate) fn decode_text(info: &ResourceInfo, body: &Body, schema: Option<Schema<'_>>) -> Result<Decoded, ApiError> {
    let yaml = body.encoding == Encoding::Yaml;
    let result = match body.encoding {
        Encoding::Json => strict::decode_json(&body.bytes, schema),
        Encoding::Yaml => strict::decode_yaml(&body.bytes, schema),
    };
    let unrecognized = |cause: &str| ApiError::bad_request(strict::unrecognized(info.kind, cause, &body.bytes));
    result.map_err(|error| match error {
        DecodeError::Syntax(cause) => unrecognized(&strict::no_type_meta(&cause, yaml)),
        DecodeError::Type(cause) => {
            // The wrong type may be that of the apiVersion or the kind, or come from reading another kind with this
            // kind's schema; say that first.
            if let Err(error) = strict::type_meta(&body.bytes, yaml) {
                return unrecognized(&error.to_string());
            }
            let other = strict::decode_yaml(&body.bytes, None)
                .ok()
                .and_then(|untyped| check_type(info, &untyped.value, &body.bytes).err());
            let own = || strict::cannot_be_handled(info.kind, info.version, info.kind, &cause);
            other.unwrap_or_else(|| ApiError::bad_request(own()))
        }
    })
}

/// Refuses a body of another apiVersion or kind. Absent ones mean the resource's own.
fn check_type(info: &ResourceInfo, value: &Value, body: &[u8]) -> Result<(), ApiError> {
    match OtherType::of(info, value) {
        None => Ok(()),
        Some(OtherType::Unheard(cause)) => Err(ApiError::bad_request(strict::unrecognized(info.kind, &cause, body))),
        Some(OtherType::Unfit { kind, version, cause }) => {
            Err(ApiError::bad_request(strict::cannot_be_handled(kind, version, info.kind, &cause)))
        }
        Some(OtherType::Version(given)) => Err(ApiError::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({})",
            info.api_version()
        ))),
    }
}

/// Why a value is no object of a kind, by its apiVersion and kind alone.
enum OtherType<'v> {
    /// The apiVersion is none: the cause.
    Unheard(String),
    /// There is no such kind, or it is none that becomes this one.
    Unfit { kind: &'v str, version: &'v str, cause: String },
    /// Another version of the same kind.
    Version(&'v str),
}

impl<'v> OtherType<'v> {
    fn of(info: &ResourceInfo, value: &'v Value) -> Option<OtherType<'v>> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let (given, kind) = (text("apiVersion"), text("kind"));
        let own = info.api_version();
        if (given.is_empty() || given == own) && (kind.is_empty() || kind == info.kind) {
            return None;
        }
        if given.matches('/').count() > 1 {
            return Some(OtherType::Unheard(format!("unexpected GroupVersion string: {given}")));
        }
        let (group, version) = if given.is_empty() { (info.group, info.version) } else { split_api_version(given) };
        let kind = if kind.is_empty() { info.kind } else { kind };
        let known = Definitions::builtin().schema_for(group, version, kind).is_some();
        if kind == info.kind && (known || version.contains("alpha") || version.contains("beta")) {
            return Some(OtherType::Version(given));
        }
        let cause = if known {
            // Packages of internal types are named for the first part of the group.
            let package = match info.group {
                "" | "events.k8s.io" => "core",
                group => group.split('.').next().unwrap_or_default(),
            };
            format!("converting ({version}.{kind}) to ({package}.{}): unknown conversion", info.kind)
        } else {
            let given = if given.is_empty() { own.as_str() } else { given };
            format!(
                "no kind {kind:?} is registered for version {given:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
            )
        };
        Some(OtherType::Unfit { kind, version, cause })
    }
}

/// How the reader of YAML begins to say that a key stands there twice.
const TWICE: &str = "yaml: unmarshal errors:";

/// What an applied configuration says twice.
fn repeated_keys(target: &Target<'_>, errors: &[String], warnings: &mut Vec<String>) -> Result<(), ApiError> {
    let lines: Vec<&str> = errors.iter().filter_map(|e| e.strip_prefix(TWICE)).map(str::trim).collect();
    match target.options.validation {
        FieldValidation::Strict if !lines.is_empty() => {
            let all = lines.join("\n  ");
            Err(ApiError::bad_request(format!(
                "error strict decoding patch: error converting YAML to JSON: {TWICE}\n  {all}"
            )))
        }
        FieldValidation::Warn => {
            warnings.extend(lines.into_iter().map(str::to_owned));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Refuses unknown and duplicate fields, warns of them, or lets them be, as the client asked.
pub(super) fn unknown_fields(
    target: &Target<'_>,
    errors: Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    match target.options.validation {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warnings.extend(errors);
            Ok(())
        }
        FieldValidation::Strict => {
            let i = target.resource.info();
            let cause = strict::strict_error_message(&errors);
            Err(ApiError::bad_request(strict::cannot_be_handled(i.kind, i.version, i.kind, &cause)))
        }
    }
}

fn patched(
    target: &Target<'_>,
    kind: PatchType,
    live: &Value,
    body: &[u8],
    schema: Option<Schema<'_>>,
    custom: Option<&Recalled>,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let result = match (kind, schema) {
        (PatchType::Json, _) => patch::json_patch(live, body),
        (PatchType::Strategic, Some(schema)) => patch::strategic_merge_patch(live, body, schema),
        (PatchType::Strategic, None) => return Err(no_strategic_merge()),
        (PatchType::Merge | PatchType::Apply, _) => patch::merge_patch(live, body),
    };
    let patch::Patched { mut value, strict_errors: mut errors } = result.map_err(patch_error)?;
    let strategic = kind == PatchType::Strategic;
    let refused = |value: &Value, why: &str| {
        patch_unprocessable(if strategic { patch::shown(body) } else { value.to_string() }, why)
    };
    let info = target.resource.info();
    if strategic {
        // The object is made anew from the result, and of this kind whatever that says.
        value["apiVersion"] = info.api_version().into();
        value["kind"] = info.kind.into();
    } else if custom.is_none() {
        match OtherType::of(info, &value) {
            Some(OtherType::Unheard(cause) | OtherType::Unfit { cause, .. }) => return Err(refused(&value, &cause)),
            _ => check_type(info, &value, body)?,
        }
    }
    if let Some(schema) = schema {
        if let Some(why) = strict::restore_error(&value, schema).filter(|_| strategic) {
            return Err(refused(&value, &why));
        }
        let found = strict::check(&value, schema).map_err(|e| refused(&value, &e.to_string()))?;
        // The present object was clean, so whatever is unknown came with the patch.
        errors.extend(found.into_iter().filter(|f| !errors.contains(f)).collect::<Vec<_>>());
    }
    if let Some(custom) = custom {
        errors.extend(custom_body::patched(target, &custom.state().own, &mut value)?);
    }
    if target.options.validation == FieldValidation::Strict && !errors.is_empty() {
        return Err(refused(&value, &strict::strict_error_message(&errors)));
    }
    unknown_fields(target, errors, warnings)?;
    Ok(value)
}

/// What the client is told of a patch that cannot be applied.
pub(super) fn patch_error(error: PatchError) -> ApiError {
    let message = error.to_string();
    match error {
        PatchError::BadRequest(_) => ApiError::bad_request(message),
        PatchError::TooLarge(_) => ApiError::new(413, "RequestEntityTooLarge", message),
        PatchError::Rejected { why } => {
            tracing::debug!(why, "patch does not fit");
            let mut refused = ApiError::new(422, "Invalid", message);
            refused.details = Some(Box::default());
            refused
        }
        PatchError::Internal(_) => ApiError::new(500, "", message),
    }
}

/// 422 for a patch whose result, as `shown`, is no such object.
pub(super) fn patch_unprocessable(shown: String, why: &str) -> ApiError {
    let mut errors = gantry_api::meta::field::ErrorList::default();
    errors.invalid(&gantry_api::meta::field::Path::new("patch"), shown, why);
    ApiError::invalid("", "", "", &errors)
}

fn into_object(resource: &dyn Resource, value: Value) -> Result<Box<dyn Object>, ApiError> {
    let i = resource.info();
    resource
        .decode_value(value)
        .map_err(|e| ApiError::bad_request(strict::cannot_be_handled(i.kind, i.version, i.kind, &e.to_string())))
}

/// Name and namespace of the body against those of the path.
fn check_identity(target: &Target<'_>, object: &mut dyn Object, creating: bool) -> Result<(), ApiError> {
    let namespaced = target.resource.info().namespaced;
    let meta = object.meta_mut();
    if !namespaced {
        meta.namespace = None;
    } else if meta.namespace().is_empty() {
        meta.namespace = Some(target.namespace.to_owned());
    } else if meta.namespace() != target.namespace {
        return Err(ApiError::bad_request(if creating {
            "the namespace of the provided object does not match the namespace sent on the request".to_owned()
        } else {
            format!(
                "the namespace of the object ({}) does not match the namespace on the request ({})",
                meta.namespace(),
                target.namespace
            )
        }));
    }
    if creating {
        return Ok(());
    }
    match meta.name() {
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            target.name
        ))),
        name if name != target.name => Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        ))),
        _ => Ok(()),
    }
}

pub(super) fn apply_error(error: ApplyError) -> ApiError {
    match error {
        ApplyError::BadRequest(m) => ApiError::bad_request(m),
        ApplyError::Unfit(m) => ApiError::new(500, "", m),
        ApplyError::Conflict(conflicts) => {
            let mut e = ApiError::new(409, "Conflict", apply::conflict_message(&conflicts));
            let causes = conflicts
                .iter()
                .map(|c| StatusCause {
                    reason: Some("FieldManagerConflict".into()),
                    message: Some(c.message()),
                    field: Some(c.field.clone()),
                })
                .collect();
            e.details = Some(Box::new(gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails {
                causes: Some(causes),
                ..Default::default()
            }));
            e
        }
    }
}
