//! A custom resource as the generic registry sees it.
//!
//! The registry works with `&'static dyn Resource`. Facts that are part of that view (names, columns, …) make one value
//! that lives as long as the process and is found again by its facts ([`intern`]); what may change without changing the
//! facts (schemas, conversion) is [`State`], swapped whole.

use super::conversion::{Converter, go_type};
use super::json_path::JsonPath;
use super::rules::Rules;
use super::schema::Node;
use super::version::{Part, State, version_order};
use super::{shape, validation};
use crate::cluster::Cluster;
use arc_swap::ArcSwap;
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::{ALL_VERBS, Column, Context, Object, Resource, ResourceInfo, SCALE, STATUS, Subresource};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::status::ApiError;
use gantry_api::meta::table;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

/// An object of a custom resource.
#[derive(Clone, Debug)]
pub struct CustomObject {
    api_version: &'static str,
    kind: &'static str,
    meta: ObjectMeta,
    /// All but apiVersion, kind and metadata.
    body: Map<String, Value>,
}

impl CustomObject {
    /// As JSON.
    #[must_use]
    pub fn content(&self) -> Value {
        let mut map = self.body.clone();
        map.insert("apiVersion".into(), self.api_version.into());
        map.insert("kind".into(), self.kind.into());
        map.insert("metadata".into(), serde_json::to_value(&self.meta).expect("metadata has string keys only"));
        Value::Object(map)
    }

    /// As JSON under another apiVersion, with apiVersion, kind and metadata first.
    fn text(&self, api_version: &str, body: &Map<String, Value>) -> Vec<u8> {
        let mut out =
            format!("{{\"apiVersion\":\"{api_version}\",\"kind\":\"{}\",\"metadata\":", self.kind).into_bytes();
        serde_json::to_writer(&mut out, &self.meta).expect("metadata has string keys only");
        for (name, value) in body {
            out.push(b',');
            serde_json::to_writer(&mut out, name).expect("a string can be written");
            out.push(b':');
            serde_json::to_writer(&mut out, value).expect("a value can be written");
        }
        out.push(b'}');
        out
    }
}

impl Object for CustomObject {
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
    fn to_json(&self) -> Vec<u8> {
        self.text(self.api_version, &self.body)
    }
    fn to_value(&self) -> Value {
        self.content()
    }
    fn boxed_clone(&self) -> Box<dyn Object> {
        Box::new(self.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

fn of(object: &dyn Object) -> &CustomObject {
    object.as_any().downcast_ref().unwrap_or_else(|| panic!("no custom object: {object:?}"))
}

fn of_mut(object: &mut dyn Object) -> &mut CustomObject {
    object.as_any_mut().downcast_mut().expect("a custom object")
}

/// Where the scale subresource finds its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalePaths {
    /// The wanted replicas, as the definition writes it.
    pub spec_text: String,
    /// The wanted replicas.
    pub spec: Vec<String>,
    /// The replicas there are.
    pub status: Vec<String>,
    /// The selector of their pods, as text.
    pub selector: Option<Vec<String>>,
}

/// A version of a custom resource.
pub struct CustomResource {
    info: ResourceInfo,
    api_version: &'static str,
    columns: &'static [Column],
    paths: Vec<JsonPath>,
    selectable: Vec<(&'static str, JsonPath)>,
    scale: Option<ScalePaths>,
    state: ArcSwap<State>,
}

static TEXTS: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
static RESOURCES: LazyLock<Mutex<HashMap<String, &'static CustomResource>>> = LazyLock::new(Mutex::default);

/// The same text for as long as the process lives; each text once.
fn text(of: &str) -> &'static str {
    let mut texts = TEXTS.lock();
    if let Some(known) = texts.get(of) {
        return known;
    }
    let leaked: &'static str = Box::leak(of.to_owned().into_boxed_str());
    texts.insert(leaked);
    leaked
}

fn texts(of: Option<&Vec<String>>) -> &'static [&'static str] {
    let list: Vec<&'static str> = of.into_iter().flatten().map(|t| text(t)).collect();
    Box::leak(list.into_boxed_slice())
}

fn split(path: &str) -> Vec<String> {
    path.trim_start_matches('.').split('.').map(str::to_owned).collect()
}

/// The resource of a version of a definition: the one there has been for the same facts, or a new one. Its state is
/// replaced.
#[must_use]
pub fn intern(
    crd: &CustomResourceDefinition,
    v: &CustomResourceDefinitionVersion,
    state: State,
) -> &'static CustomResource {
    let accepted = crd.status.as_ref().and_then(|s| s.accepted_names.as_ref()).unwrap_or(&crd.spec.names);
    let facts = json!([
        crd.spec.group,
        v.name,
        accepted,
        crd.spec.scope,
        v.subresources,
        v.additional_printer_columns,
        v.selectable_fields,
        deprecation(crd, v)
    ])
    .to_string();
    let mut resources = RESOURCES.lock();
    if let Some(known) = resources.get(&facts) {
        known.state.store(Arc::new(state));
        return known;
    }
    let made: &'static CustomResource = Box::leak(Box::new(CustomResource::new(crd, v, state)));
    resources.insert(facts, made);
    made
}

/// The custom resource behind a resource, where it is one.
#[must_use]
pub fn custom(resource: &dyn Resource) -> Option<&CustomResource> {
    resource.learned()?.downcast_ref()
}

impl CustomResource {
    fn new(crd: &CustomResourceDefinition, v: &CustomResourceDefinitionVersion, state: State) -> Self {
        let names = crd.status.as_ref().and_then(|s| s.accepted_names.as_ref()).unwrap_or(&crd.spec.names);
        let group = text(&crd.spec.group);
        let subresources = v.subresources.as_ref();
        let scale = subresources.and_then(|s| s.scale.as_ref());
        let mut served: Vec<Subresource> = Vec::new();
        served.extend(scale.map(|_| SCALE));
        served.extend(subresources.and_then(|s| s.status.as_ref()).map(|_| STATUS));
        let singular = names.singular.as_deref().unwrap_or_default();
        let info = ResourceInfo {
            short_names: texts(names.short_names.as_ref()),
            categories: texts(names.categories.as_ref()),
            verbs: ALL_VERBS,
            subresources: Box::leak(served.into_boxed_slice()),
            unconditional_update: false,
            deprecation: text(&deprecation(crd, v)),
            own_list_kind: text(names.list_kind.as_deref().unwrap_or_default()),
            ..ResourceInfo::new(
                group,
                text(&v.name),
                text(&names.kind),
                text(&names.plural),
                text(singular),
                crd.spec.scope == "Namespaced",
            )
        };
        let (columns, paths) = columns_of(v);
        let fields = v.selectable_fields.iter().flatten();
        Self {
            api_version: text(&info.api_version()),
            info,
            columns,
            paths,
            selectable: fields
                .filter_map(|f| Some((text(f.json_path.trim_start_matches('.')), JsonPath::parse(&f.json_path)?)))
                .collect(),
            scale: scale.map(|s| ScalePaths {
                spec_text: s.spec_replicas_path.clone(),
                spec: split(&s.spec_replicas_path),
                status: split(&s.status_replicas_path),
                selector: s.label_selector_path.as_deref().filter(|p| !p.is_empty()).map(split),
            }),
            state: ArcSwap::from_pointee(state),
        }
    }

    /// What the definition says now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Whether clients may use this version.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.state.load().served.contains(self.api_version)
    }

    /// Where the scale subresource finds its numbers, if there is one.
    #[must_use]
    pub fn scale(&self) -> Option<&ScalePaths> {
        self.scale.as_ref()
    }

    /// Admission may have added what the schema does not know.
    fn prune_again(&self, object: &mut CustomObject) {
        let mut body = Value::Object(std::mem::take(&mut object.body));
        self.state.load().own.prune(&mut body);
        if let Value::Object(body) = body {
            object.body = body;
        }
    }

    fn has_status(&self) -> bool {
        self.info.subresources.iter().any(|s| s.name == "status")
    }

    /// An object of this version.
    fn object(&self, value: Value) -> Result<CustomObject, serde_json::Error> {
        self.object_in(self.api_version, value)
    }

    fn object_in(&self, api_version: &'static str, mut value: Value) -> Result<CustomObject, serde_json::Error> {
        let Some(map) = value.as_object_mut() else {
            return Err(<serde_json::Error as serde::de::Error>::custom("an object is expected"));
        };
        let mut body = std::mem::take(map);
        body.remove("apiVersion");
        body.remove("kind");
        let meta = match body.remove("metadata") {
            None | Some(Value::Null) => ObjectMeta::default(),
            Some(meta) => serde_json::from_value(meta)?,
        };
        Ok(CustomObject { api_version, kind: self.info.kind, meta, body })
    }

    /// An object as it is stored: in whatever version it was written last. It stays in that version where a webhook has to
    /// be asked for this one.
    fn stored(&self, mut value: Value) -> Result<CustomObject, serde_json::Error> {
        let state = self.state.load();
        let written_in = value["apiVersion"].as_str().and_then(|v| state.versions.get(v)).unwrap_or(&state.own);
        written_in.complete(&mut value);
        if written_in.api_version == self.api_version {
            return self.object(value);
        }
        if state.converter.is_some() {
            return self.object_in(text(&written_in.api_version), value);
        }
        state.own.prune(&mut value);
        self.object(value)
    }

    /// The webhook that makes objects of one version those of another, where there is one.
    #[must_use]
    pub fn converter(&self) -> Option<Arc<Converter>> {
        self.state.load().converter.clone()
    }

    /// Objects of any version of the definition in this one.
    ///
    /// # Errors
    /// Where the webhook that has to be asked fails, or makes something that is no object.
    pub async fn convert(&self, objects: Vec<Value>, cluster: &Cluster) -> Result<Vec<Box<dyn Object>>, ApiError> {
        let objects = match self.converter() {
            Some(converter) => converter.convert(cluster, objects, self.api_version).await?,
            None => objects,
        };
        let own = self.state().own.clone();
        let adopt = |mut value: Value| -> Result<Box<dyn Object>, ApiError> {
            own.prune(&mut value);
            Ok(Box::new(self.object(value).map_err(ApiError::internal)?))
        };
        objects.into_iter().map(adopt).collect()
    }

    /// An object as it is to be stored.
    ///
    /// # Errors
    /// Where the webhook that has to be asked fails, or makes something that is no object.
    pub async fn encode(&self, object: &dyn Object, cluster: &Cluster) -> Result<Vec<u8>, ApiError> {
        let state = self.state();
        let storage = state.versions.get(&state.storage).filter(|s| s.api_version != self.api_version);
        let (Some(converter), Some(storage)) = (&state.converter, storage) else { return Ok(self.to_stored(object)) };
        let converted = converter.convert(cluster, vec![object.to_value()], &storage.api_version).await?;
        let mut value = converted.into_iter().next().unwrap_or_default();
        storage.prune(&mut value);
        let object = self.object(value).map_err(ApiError::internal)?;
        Ok(object.text(&storage.api_version, &object.body))
    }
}

/// What clients of a deprecated version are told; empty where it is not deprecated.
fn deprecation(crd: &CustomResourceDefinition, v: &CustomResourceDefinitionVersion) -> String {
    if v.deprecated != Some(true) {
        return String::new();
    }
    if let Some(warning) = &v.deprecation_warning {
        return warning.clone();
    }
    let (group, kind) = (&crd.spec.group, &crd.spec.names.kind);
    let fine = crd.spec.versions.iter().filter(|o| o.served && o.deprecated != Some(true)).map(|o| o.name.as_str());
    let better =
        fine.filter(|name| version_order(name) < version_order(&v.name)).min_by_key(|name| version_order(name));
    let instead = better.map(|name| format!("; use {group}/{name} {kind}")).unwrap_or_default();
    format!("{group}/{} {kind} is deprecated{instead}", v.name)
}

fn columns_of(v: &CustomResourceDefinitionVersion) -> (&'static [Column], Vec<JsonPath>) {
    let mut columns = vec![table::NAME];
    let mut paths = Vec::new();
    for c in v.additional_printer_columns.iter().flatten() {
        let Some(path) = JsonPath::parse(&c.json_path) else { continue };
        paths.push(path);
        let description = match c.description.as_deref() {
            None | Some("") => format!("Custom resource definition column (in JSONPath format): {}", c.json_path),
            Some(description) => description.to_owned(),
        };
        columns.push(Column {
            name: text(&c.name),
            r#type: text(&c.type_),
            format: text(c.format.as_deref().unwrap_or_default()),
            description: text(&description),
            priority: c.priority.unwrap_or(0),
        });
    }
    if v.additional_printer_columns.as_ref().is_none_or(Vec::is_empty) {
        paths.extend(JsonPath::parse(".metadata.creationTimestamp"));
        columns.push(Column { r#type: "date", ..table::AGE });
    }
    (Box::leak(columns.into_boxed_slice()), paths)
}

/// Field errors of the numbers a Scale shows.
fn validate_scale(paths: &ScalePaths, value: &Value, with_spec: bool) -> ErrorList {
    let mut errors = ErrorList::default();
    let status = (format!(".{}", paths.status.join(".")), &paths.status);
    let spec = with_spec.then(|| (paths.spec_text.clone(), &paths.spec));
    for (text, path) in spec.into_iter().chain([status]) {
        let at = Path::new(&text);
        match path.iter().try_fold(value, |v, name| v.get(name)) {
            None => {}
            Some(v) => match v.as_i64() {
                Some(n) if n < 0 => errors.invalid(&at, n, "should be a non-negative integer"),
                Some(n) if n > i64::from(i32::MAX) => {
                    errors.invalid(&at, n, &format!("should be less than or equal to {}", i32::MAX));
                }
                Some(_) => {}
                None => {
                    let detail = format!(
                        ".{} accessor error: {} is of the type {}, expected int64",
                        path.join("."),
                        shown(v),
                        go_type(v)
                    );
                    errors.invalid(&at, 0, &detail);
                }
            },
        }
    }
    if let Some(path) = &paths.selector
        && let Some(v) = path.iter().try_fold(value, |v, name| v.get(name))
        && !v.is_string()
    {
        let text = format!(".{}", path.join("."));
        let detail = format!("{text} accessor error: {} is of the type {}, expected string", shown(v), go_type(v));
        errors.invalid(&Path::new(&text), "", &detail);
    }
    errors
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn cell(kind: &str, value: &Value, now: Timestamp) -> Value {
    match (kind, value) {
        (_, Value::Null) => Value::Null,
        ("string", value) => shown(value).into(),
        #[allow(clippy::cast_possible_truncation, reason = "as upstream, whose conversion saturates")]
        ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).into(),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(s)) => match s.parse::<Timestamp>() {
            Ok(then) => table::human_duration(then, now).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

impl Resource for CustomResource {
    fn info(&self) -> &ResourceInfo {
        &self.info
    }
    fn columns(&self) -> &'static [Column] {
        self.columns
    }
    fn decode(&self, bytes: &[u8]) -> Result<Box<dyn Object>, serde_json::Error> {
        Ok(Box::new(self.stored(serde_json::from_slice(bytes)?)?))
    }
    fn decode_value(&self, value: Value) -> Result<Box<dyn Object>, serde_json::Error> {
        Ok(Box::new(self.object(value)?))
    }
    fn assign(&self, object: &mut dyn Object, from: &dyn Object) {
        of_mut(object).clone_from(of(from));
    }
    fn set_defaults(&self, object: &mut dyn Object) {
        let object = of_mut(object);
        let mut body = Value::Object(std::mem::take(&mut object.body));
        self.state.load().own.default(&mut body);
        if let Value::Object(mut map) = body {
            // Defaults of what every object has are not for a schema to give.
            for name in ["apiVersion", "kind", "metadata"] {
                map.remove(name);
            }
            object.body = map;
        }
    }
    fn prepare_for_create(&self, object: &mut dyn Object, _: &Context<'_>) {
        let object = of_mut(object);
        self.prune_again(object);
        if self.has_status() {
            object.body.remove("status");
        }
        object.meta.generation = Some(1);
    }
    fn validate(&self, object: &dyn Object) -> ErrorList {
        let object = of(object);
        let mut errors = self.state.load().own.check(object, None, Part::Whole);
        if let Some(scale) = &self.scale {
            errors.extend(validate_scale(scale, &object.content(), true));
        }
        errors
    }
    fn warnings(&self, object: &dyn Object, old: Option<&dyn Object>) -> Vec<String> {
        let known = |f: &String| old.is_some_and(|o| o.meta().finalizers.iter().flatten().any(|k| k == f));
        let added: std::collections::BTreeSet<&String> =
            object.meta().finalizers.iter().flatten().filter(|f| !known(f)).collect();
        added.into_iter().flat_map(|f| finalizer_warnings(f)).collect()
    }
    fn prepare_for_update(&self, object: &mut dyn Object, old: &dyn Object, _: &Context<'_>) {
        let (object, old) = (of_mut(object), of(old));
        self.prune_again(object);
        if self.has_status() {
            match old.body.get("status") {
                Some(status) => object.body.insert("status".into(), status.clone()),
                None => object.body.remove("status"),
            };
        }
        let generation = old.meta.generation.unwrap_or(0);
        object.meta.generation = Some(if object.body == old.body { generation } else { generation + 1 });
    }
    fn validate_update(&self, object: &dyn Object, old: &dyn Object) -> ErrorList {
        let object = of(object);
        let mut errors = self.state.load().own.check(object, Some(of(old)), Part::Whole);
        if let Some(scale) = &self.scale {
            errors.extend(validate_scale(scale, &object.content(), true));
        }
        errors
    }
    fn prepare_for_status_update(&self, object: &mut dyn Object, old: &dyn Object, _: &Context<'_>) {
        let (object, old) = (of_mut(object), of(old));
        self.prune_again(object);
        let managed = object.meta.managed_fields.take();
        let version = object.meta.resource_version.take();
        let status = object.body.remove("status");
        object.clone_from(old);
        object.meta.managed_fields = managed;
        object.meta.resource_version = version;
        match status {
            Some(status) => object.body.insert("status".into(), status),
            None => object.body.remove("status"),
        };
    }
    fn validate_status_update(&self, object: &dyn Object, old: &dyn Object) -> ErrorList {
        let object = of(object);
        let mut errors = self.state.load().own.check(object, Some(of(old)), Part::Status);
        if let Some(scale) = &self.scale {
            errors.extend(validate_scale(scale, &object.content(), false));
        }
        errors
    }
    fn prepare_for_subresource_update(&self, _: &str, object: &mut dyn Object, old: &dyn Object, cx: &Context<'_>) {
        self.prepare_for_status_update(object, old, cx);
    }
    fn validate_subresource_update(&self, _: &str, object: &dyn Object, old: &dyn Object) -> ErrorList {
        self.validate_status_update(object, old)
    }
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        gantry_api::meta::names::dns1123_subdomain(name, prefix)
    }
    fn selectable_fields(&self, object: &dyn Object) -> Vec<(&'static str, String)> {
        if self.selectable.is_empty() {
            return Vec::new();
        }
        let content = of(object).content();
        let value = |path: &JsonPath| path.find(&content).first().filter(|v| !v.is_null()).map(|v| shown(v));
        self.selectable.iter().map(|(name, path)| (*name, value(path).unwrap_or_default())).collect()
    }
    fn cells(&self, object: &dyn Object, now: Timestamp) -> Vec<Value> {
        let object = of(object);
        let content = object.content();
        let mut cells = vec![object.meta.name.clone().unwrap_or_default().into()];
        for (column, path) in self.columns.iter().skip(1).zip(&self.paths) {
            cells.push(path.find(&content).first().map_or(Value::Null, |v| cell(column.r#type, v, now)));
        }
        cells
    }
    fn graceful_delete_seconds(&self, _: &dyn Object, _: &DeleteOptions) -> Option<i64> {
        None
    }
    fn reset_fields(&self) -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        if self.has_status() { (&[&["status"]], &[&["metadata"], &["spec"]]) } else { (&[], &[]) }
    }
    fn desired_replicas(&self, _: &dyn Object) -> Option<i32> {
        None
    }
    fn learned(&self) -> Option<&dyn Any> {
        Some(self)
    }
    fn to_stored(&self, object: &dyn Object) -> Vec<u8> {
        let object = of(object);
        let state = self.state.load();
        let Some(storage) = state.versions.get(&state.storage).filter(|s| s.api_version != self.api_version) else {
            return object.to_json();
        };
        let mut body = Value::Object(object.body.clone());
        storage.prune(&mut body);
        object.text(&storage.api_version, body.as_object().unwrap_or(&object.body))
    }
}

/// Finalizers that every kind may have without saying whose they are.
const STANDARD_FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

fn finalizer_warnings(name: &str) -> Vec<String> {
    let field = "metadata.finalizers";
    let wrong = gantry_api::meta::names::qualified_name(name);
    let mut out: Vec<String> = wrong.into_iter().map(|why| format!("{field}: {name:?}: {why}")).collect();
    if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
        let path = if name.contains('.') { " including a path (/)" } else { "" };
        out.push(format!(
            "{field}: {name:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other \
             finalizer writers"
        ));
    }
    out
}

/// Field errors of the defaults in a definition's schemas: a default is what its schema allows.
#[must_use]
pub fn validate_defaults(crd: &CustomResourceDefinition) -> ErrorList {
    let mut errors = ErrorList::default();
    for (path, schema, value) in gantry_api::apiextensions::default_values(crd) {
        let schema = serde_json::to_value(schema).unwrap_or_default();
        let node = Arc::new(Node::read(&schema));
        let mut pruned = value.clone();
        shape::prune(&mut pruned, &node, node.embedded);
        if pruned != *value {
            errors.invalid(&path, value.clone(), "must not have unknown fields");
        }
        let found = validation::validate(path.as_str(), value, None, &node);
        let unfit = !found.is_empty();
        errors.extend(found);
        errors.extend(validation::validate_embedded(&path, value, &node));
        if let Some(rules) = Rules::build(&schema, &node, node.embedded).filter(|_| !unfit) {
            let value = Arc::new(value.clone());
            errors.extend(rules.check(path.as_str(), &value, None));
        }
    }
    errors
}
