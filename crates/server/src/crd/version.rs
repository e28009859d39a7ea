//! One version of a definition: its schemas, and what they say of objects.

use super::conversion::Converter;
use super::resource::CustomObject;
use super::rules::Rules;
use super::schema::Node;
use super::{shape, validation};
use gantry_api::apiextensions::shorten_bounds;
use gantry_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use gantry_api::meta::field::{ErrorList, ErrorType, FieldError, Path};
use gantry_schema::apply::Versions;
use gantry_schema::{Definitions, Schema};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What one version of a definition says of its objects.
pub struct VersionSchema {
    /// `group/version`.
    pub api_version: String,
    /// The schema as it is published, as JSON text; `null` where there is none.
    pub open_api: Arc<str>,
    node: Arc<Node>,
    /// Types for merging and field ownership.
    definitions: Definitions,
    rules: Option<Rules>,
    kind: String,
}

/// What may change while the facts stay.
pub struct State {
    /// This version.
    pub own: Arc<VersionSchema>,
    /// The version objects are stored in, `group/version`.
    pub storage: String,
    /// All versions by `group/version`, served or not.
    pub versions: HashMap<String, Arc<VersionSchema>>,
    /// Versions that clients may use.
    pub served: HashSet<String>,
    /// The webhook that converts between versions; None where nothing but the apiVersion changes.
    pub converter: Option<Arc<Converter>>,
    /// Whether the definition is going: no objects come any more.
    pub terminating: bool,
}

/// The schema of anything.
fn anything() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// The schemas of a definition's versions.
#[must_use]
pub fn version_schemas(crd: &CustomResourceDefinition) -> HashMap<String, Arc<VersionSchema>> {
    let (group, kind) = (&crd.spec.group, &crd.spec.names.kind);
    let read = |v: &CustomResourceDefinitionVersion| {
        let schema = v.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
        let mut open_api = schema.map_or(Value::Null, |s| serde_json::to_value(s).unwrap_or_default());
        if crd.spec.preserve_unknown_fields == Some(true) && open_api.is_object() {
            open_api["x-kubernetes-preserve-unknown-fields"] = true.into();
        }
        let free = anything();
        let shape = if open_api.is_object() { &open_api } else { &free };
        let definitions = |s: &Value| Definitions::for_custom_resource(group, &v.name, kind, s);
        let typed = definitions(shape).unwrap_or_else(|e| {
            tracing::warn!(name = crd.metadata.name, version = v.name, error = %e, "schema is not structural");
            definitions(&free).expect("the schema of anything is one")
        });
        let node = Arc::new(Node::read(shape));
        let rules = Rules::build(shape, &node, true);
        let fields: Vec<Value> = v
            .selectable_fields
            .iter()
            .flatten()
            .map(|f| json!({"fieldPath": f.json_path.trim_start_matches('.')}))
            .collect();
        if open_api.is_object() && !fields.is_empty() {
            open_api["x-kubernetes-selectable-fields"] = fields.into();
        }
        // What is published.
        shorten_bounds(&mut open_api);
        let version = VersionSchema {
            api_version: format!("{group}/{}", v.name),
            rules,
            node,
            definitions: typed,
            kind: kind.clone(),
            open_api: open_api.to_string().into(),
        };
        (version.api_version.clone(), Arc::new(version))
    };
    crd.spec.versions.iter().map(read).collect()
}

impl VersionSchema {
    /// Types for merging and field ownership.
    #[must_use]
    pub fn schema(&self) -> Option<Schema<'_>> {
        let (group, version) = self.api_version.split_once('/')?;
        self.definitions.schema_for(group, version, &self.kind)
    }

    /// Drops unknown fields. Returns `unknown field "x"` for each.
    pub fn prune(&self, value: &mut Value) -> Vec<String> {
        let unknown = shape::prune(value, &self.node, true);
        unknown.into_iter().map(|path| format!("unknown field {path:?}")).collect()
    }

    /// What is wrong with an object embedded in this one so that the whole cannot be decoded.
    #[must_use]
    pub fn malformed(&self, value: &Value) -> Option<String> {
        shape::malformed(value, &self.node)
    }

    /// Fills in defaults.
    pub fn default(&self, value: &mut Value) {
        shape::default(value, &self.node);
    }

    /// Prunes and defaults.
    pub fn complete(&self, value: &mut Value) {
        shape::prune(value, &self.node, true);
        shape::default(value, &self.node);
    }

    /// Field errors of an object, or of its status.
    pub fn check(&self, object: &CustomObject, old: Option<&CustomObject>, part: Part) -> ErrorList {
        let new = Arc::new(object.content());
        let old = old.map(|o| Arc::new(o.content()));
        let before = old.as_deref();
        let mut errors = ErrorList::default();
        match part {
            Part::Whole => {
                errors.extend(validation::validate("", &new, before, &self.node));
                errors.extend(validation::validate_embedded(&Path::new(""), &new, &self.node));
            }
            Part::Status => {
                if let (Some(value), Some(schema)) = (new.get("status"), self.node.properties.get("status")) {
                    let before = before.and_then(|o| o.get("status"));
                    errors.extend(validation::validate("status", value, before, schema));
                }
            }
        }
        let lists = validation::validate_lists(&new, &self.node);
        if !lists.is_empty() && before.is_none_or(|o| validation::validate_lists(o, &self.node).is_empty()) {
            errors.extend(lists);
        }
        let Some(rules) = &self.rules else { return errors };
        let blocks = |t: ErrorType| {
            matches!(
                t,
                ErrorType::NotSupported
                    | ErrorType::Required
                    | ErrorType::TooLong
                    | ErrorType::TooMany
                    | ErrorType::TypeInvalid
            )
        };
        if errors.0.iter().any(|e| blocks(e.r#type)) {
            errors.0.push(FieldError {
                r#type: ErrorType::Invalid,
                field: "<nil>".into(),
                body:
                    "Invalid value: \"null\": some validation rules were not checked because the object was invalid; \
                       correct the existing errors to complete validation"
                        .into(),
            });
        } else {
            errors.extend(rules.check("", &new, old.as_ref()));
        }
        errors
    }
}

/// Which part of an object a write is about.
#[derive(Clone, Copy, PartialEq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Its status.
    Status,
}

impl Versions for State {
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        if !self.served.contains(api_version) {
            return None;
        }
        let mut value = object.clone();
        value["apiVersion"] = api_version.into();
        self.versions.get(api_version)?.prune(&mut value);
        Some(value)
    }

    fn schema(&self, api_version: &str) -> Option<Schema<'_>> {
        self.versions.get(api_version).filter(|v| self.served.contains(&v.api_version))?.schema()
    }
}

/// By what versions of a group are sorted, the preferred one first: `v2`, `v1`, `v1beta1`, then others by name.
#[must_use]
pub fn version_order(version: &str) -> (u8, std::cmp::Reverse<u64>, std::cmp::Reverse<u64>, String) {
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..digits].parse().ok()?;
        let (stage, minor) = match &rest[digits..] {
            "" => (0, 0),
            tail => {
                let (stage, minor) = match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                    (Some(minor), _) => (1, minor),
                    (_, Some(minor)) => (2, minor),
                    _ => return None,
                };
                (stage, if minor.is_empty() { 0 } else { minor.parse().ok()? })
            }
        };
        Some((stage, std::cmp::Reverse(major), std::cmp::Reverse(minor), String::new()))
    });
    parsed.unwrap_or_else(|| (3, std::cmp::Reverse(0), std::cmp::Reverse(0), version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_clients_prefer_them() {
        let mut versions =
            ["foo10", "v1", "v11alpha2", "v3beta1", "v10", "v12alpha1", "v2", "foo1", "v11beta2", "v10beta3"];
        versions.sort_by_key(|v| version_order(v));
        assert_eq!(
            versions,
            ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"]
        );
    }
}
