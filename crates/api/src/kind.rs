//! What it takes to be a kind: the typed [`Kind`] hooks that one file per kind implements, and the object-safe
//! [`Resource`]/[`Object`] view of them that the generic registry works with.

use crate::meta::expression::Expression;
use crate::meta::field::ErrorList;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use std::any::Any;
use std::fmt::Debug;

/// A request verb that a resource or subresource answers, as RBAC and discovery name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The verb as discovery and RBAC spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }
}

/// All eight verbs, what an ordinary stored kind answers.
pub const ALL_VERBS: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

/// A subresource as discovery lists it. Its behaviour lives in the server.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// Path segment after the object's name, e.g. `status`, `scale`, `log`.
    pub name: &'static str,
    /// Group, version and kind of its body, where they differ from the parent's; e.g. `("autoscaling", "v1", "Scale")`.
    pub gvk: Option<(&'static str, &'static str, &'static str)>,
    /// Verbs answered, in discovery's order.
    pub verbs: &'static [Verb],
}

/// The `status` subresource every kind with observed state has.
pub const STATUS: Subresource =
    Subresource { name: "status", gvk: None, verbs: &[Verb::Get, Verb::Patch, Verb::Update] };

/// The `scale` subresource (autoscaling/v1 Scale).
pub const SCALE: Subresource = Subresource {
    name: "scale",
    gvk: Some(("autoscaling", "v1", "Scale")),
    verbs: &[Verb::Get, Verb::Patch, Verb::Update],
};

/// A column of `kubectl get`.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading, e.g. `Ready`.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `number`, `boolean` or `date`.
    pub r#type: &'static str,
    /// OpenAPI format, `name` for the name column.
    pub format: &'static str,
    /// What the column means.
    pub description: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
}

/// Static facts of a served resource.
#[derive(Clone, Copy, Debug)]
pub struct ResourceInfo {
    /// API group, empty for core.
    pub group: &'static str,
    /// API version, e.g. `v1`.
    pub version: &'static str,
    /// Kind, e.g. `Pod`.
    pub kind: &'static str,
    /// Plural path segment, e.g. `pods`.
    pub plural: &'static str,
    /// Singular name, e.g. `pod`.
    pub singular: &'static str,
    /// Short names, e.g. `po`.
    pub short_names: &'static [&'static str],
    /// Categories, e.g. `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs answered by the resource itself.
    pub verbs: &'static [Verb],
    /// Subresources, in discovery's order.
    pub subresources: &'static [Subresource],
    /// The group under which objects are stored, so that two versions or groups share one object
    /// (`events` and `events.k8s.io/events`); equal to `group` otherwise.
    pub storage_group: &'static str,
    /// A review or other kind that is answered but never stored (`tokenreviews`, `subjectaccessreviews`).
    pub virtual_only: bool,
    /// PUT to a name that does not exist creates it (as upstream allows for a few kinds).
    pub create_on_update: bool,
    /// PUT without resourceVersion is accepted.
    pub unconditional_update: bool,
    /// What every answer warns of; empty where the version is not deprecated.
    pub deprecation: &'static str,
    /// The kind of lists where it is not the kind's name with `List`; else empty.
    pub own_list_kind: &'static str,
}

impl ResourceInfo {
    /// Facts of an ordinary stored kind; override fields with struct update syntax.
    #[must_use]
    pub const fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
        namespaced: bool,
    ) -> Self {
        Self {
            group,
            version,
            kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced,
            verbs: ALL_VERBS,
            subresources: &[],
            storage_group: group,
            virtual_only: false,
            create_on_update: false,
            unconditional_update: true,
            deprecation: "",
            own_list_kind: "",
        }
    }

    /// `v1` or `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`: how messages name the resource.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `PodList`.
    #[must_use]
    pub fn list_kind(&self) -> String {
        if self.own_list_kind.is_empty() { format!("{}List", self.kind) } else { self.own_list_kind.to_owned() }
    }
}

/// What pure hooks may know of the request around them.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Time of the request.
    pub now: Timestamp,
    /// Name of the user who asks (CSR's `spec.username`).
    pub username: &'a str,
}

/// A served kind: one type, its facts and its rules. All hooks are pure.
///
/// Order on create: `set_defaults`, (mutating admission), `prepare_for_create`, `validate`. On update: decode,
/// `set_defaults`, admission, `prepare_for_update(old)`, `validate_update(old)`. On the status subresource:
/// `prepare_for_status_update(old)` resets everything that is not status to `old`, then `validate_status_update(old)`.
/// Object metadata (names, labels, annotations, owners, finalizers, immutable metadata) is checked by the registry through
/// [`crate::meta::object`] with [`Kind::validate_name`], not by each kind.
pub trait Kind: Clone + Debug + Default + PartialEq + Send + Sync + 'static {
    /// Facts of the resource.
    const INFO: ResourceInfo;
    /// Columns of `kubectl get` without the leading Name where the kind has own columns; the first column must be Name.
    const COLUMNS: &'static [Column] = NAME_AND_CREATED;

    /// Object metadata.
    fn meta(&self) -> &ObjectMeta;
    /// Object metadata, mutable.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// Decodes JSON text. Unknown fields are dropped.
    ///
    /// # Errors
    /// Where the text is not JSON or a field has the wrong type; serde's message names the place.
    fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error>;
    /// Decodes a JSON tree. Unknown fields are dropped.
    ///
    /// # Errors
    /// Where a field has the wrong type.
    fn from_value(value: Value) -> Result<Self, serde_json::Error>;
    /// Encodes as JSON text, with `apiVersion` and `kind` where the type carries them.
    fn to_json(&self) -> Vec<u8>;
    /// Encodes as a JSON tree.
    fn to_value(&self) -> Value;
    /// Gives back the room that decoding took and a cached object does not need; for kinds of which there are many.
    fn shrink(&mut self) {}

    /// Fills in what upstream's defaulting fills in.
    fn set_defaults(&mut self) {}
    /// Resets what a creator may not set (status), sets generation.
    fn prepare_for_create(&mut self, _cx: &Context<'_>) {}
    /// All field errors of a new object except those of its metadata.
    fn validate(&self) -> ErrorList {
        ErrorList::default()
    }
    /// Messages for `Warning` headers on create (`old` is None) and update.
    fn warnings(&self, _old: Option<&Self>) -> Vec<String> {
        Vec::new()
    }
    /// Carries over what an updater may not set (status of `old`), bumps generation where the spec changed.
    fn prepare_for_update(&mut self, _old: &Self, _cx: &Context<'_>) {}
    /// All field errors of a changed object except those of its metadata; usually `validate` plus immutability.
    fn validate_update(&self, _old: &Self) -> ErrorList {
        self.validate()
    }
    /// Resets everything but status to `old`.
    fn prepare_for_status_update(&mut self, _old: &Self, _cx: &Context<'_>) {}
    /// Field errors of a changed status.
    fn validate_status_update(&self, _old: &Self) -> ErrorList {
        ErrorList::default()
    }
    /// Resets everything but what the named subresource may change to `old` (`status`; pods: `resize`, `ephemeralcontainers`;
    /// namespaces: `finalize`; certificate signing requests: `approval`).
    fn prepare_for_subresource_update(&mut self, _subresource: &str, old: &Self, cx: &Context<'_>) {
        self.prepare_for_status_update(old, cx);
    }
    /// Field errors of a change through the named subresource.
    fn validate_subresource_update(&self, _subresource: &str, old: &Self) -> ErrorList {
        self.validate_status_update(old)
    }
    /// Errors of the object's name (or generateName prefix, if `prefix`), as messages; DNS subdomain unless overridden.
    fn validate_name(name: &str, prefix: bool) -> Vec<String> {
        crate::meta::names::dns1123_subdomain(name, prefix)
    }
    /// Selectable fields beyond `metadata.name` and `metadata.namespace`, with their values; always the same fields.
    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// CEL expressions the caller must compile before it accepts the object; what does not compile is a field error.
    /// Those an update leaves alone and that need no second look are not among them.
    fn expressions(&self, _old: Option<&Self>) -> Vec<Expression> {
        Vec::new()
    }
    /// Cells of the table row, one per column.
    fn cells(&self, _now: Timestamp) -> Vec<Value> {
        crate::meta::table::name_and_created(self.meta())
    }
    /// Graceful deletion: decides the grace period and marks the object; `None` deletes at once.
    /// Pods answer with the seconds to wait. See `rest.RESTGracefulDeleteStrategy`.
    fn graceful_delete_seconds(&self, _options: &DeleteOptions) -> Option<i64> {
        None
    }
    /// Field paths (as in managedFields, e.g. `status`, `spec`) that a write to the main resource does not own (`status`)
    /// or that a write to the status subresource does not own (`spec`, ...): (main, status).
    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[], &[])
    }
    /// What the read path leaves out of a response (service account secrets and the like never need it); identity here.
    fn desired_replicas(&self) -> Option<i32> {
        None
    }
}

/// The two columns of a kind without a printer.
pub const NAME_AND_CREATED: &[Column] = &[crate::meta::table::NAME, crate::meta::table::CREATED_AT];

/// An object of any kind, owned by the generic registry. Downcast with [`Object::as_any`] or [`downcast`].
pub trait Object: Any + Send + Sync {
    /// Object metadata.
    fn meta(&self) -> &ObjectMeta;
    /// Object metadata, mutable.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// Encodes as JSON text.
    fn to_json(&self) -> Vec<u8>;
    /// Encodes as a JSON tree.
    fn to_value(&self) -> Value;
    /// A deep copy.
    fn boxed_clone(&self) -> Box<dyn Object>;
    /// For downcasting.
    fn as_any(&self) -> &dyn Any;
    /// For downcasting.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// Only what it is called: text of every field of every kind would be a large part of the binary, and objects hold
/// secrets.
impl Debug for dyn Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ObjectMeta { namespace, name, .. } = self.meta();
        f.debug_struct("Object").field("namespace", namespace).field("name", name).finish_non_exhaustive()
    }
}

impl<T: Kind> Object for T {
    fn meta(&self) -> &ObjectMeta {
        Kind::meta(self)
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        Kind::meta_mut(self)
    }
    fn to_json(&self) -> Vec<u8> {
        Kind::to_json(self)
    }
    fn to_value(&self) -> Value {
        Kind::to_value(self)
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

/// The object as kind `T`, or None where it is of another kind.
#[must_use]
pub fn downcast<T: Kind>(object: &dyn Object) -> Option<&T> {
    object.as_any().downcast_ref::<T>()
}

/// The object as kind `T`, mutable, or None where it is of another kind.
#[must_use]
pub fn downcast_mut<T: Kind>(object: &mut dyn Object) -> Option<&mut T> {
    object.as_any_mut().downcast_mut::<T>()
}

/// A kind as the generic registry sees it: [`Kind`] with the type erased. Custom resources implement this directly.
///
/// Every method that takes objects expects those this resource decoded; another kind is a programming error and panics.
#[allow(missing_docs)]
pub trait Resource: Send + Sync {
    fn info(&self) -> &ResourceInfo;
    fn columns(&self) -> &'static [Column];
    fn decode(&self, bytes: &[u8]) -> Result<Box<dyn Object>, serde_json::Error>;
    fn decode_value(&self, value: Value) -> Result<Box<dyn Object>, serde_json::Error>;
    /// Copies `from` over `object`.
    fn assign(&self, object: &mut dyn Object, from: &dyn Object);
    fn set_defaults(&self, object: &mut dyn Object);
    fn prepare_for_create(&self, object: &mut dyn Object, cx: &Context<'_>);
    fn validate(&self, object: &dyn Object) -> ErrorList;
    fn warnings(&self, object: &dyn Object, old: Option<&dyn Object>) -> Vec<String>;
    fn prepare_for_update(&self, object: &mut dyn Object, old: &dyn Object, cx: &Context<'_>);
    fn validate_update(&self, object: &dyn Object, old: &dyn Object) -> ErrorList;
    fn prepare_for_status_update(&self, object: &mut dyn Object, old: &dyn Object, cx: &Context<'_>);
    fn validate_status_update(&self, object: &dyn Object, old: &dyn Object) -> ErrorList;
    fn prepare_for_subresource_update(
        &self,
        subresource: &str,
        object: &mut dyn Object,
        old: &dyn Object,
        cx: &Context<'_>,
    );
    fn validate_subresource_update(&self, subresource: &str, object: &dyn Object, old: &dyn Object) -> ErrorList;
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String>;
    fn selectable_fields(&self, object: &dyn Object) -> Vec<(&'static str, String)>;
    fn expressions(&self, _object: &dyn Object, _old: Option<&dyn Object>) -> Vec<Expression> {
        Vec::new()
    }
    fn cells(&self, object: &dyn Object, now: Timestamp) -> Vec<Value>;
    fn graceful_delete_seconds(&self, object: &dyn Object, options: &DeleteOptions) -> Option<i64>;
    #[allow(clippy::type_complexity)]
    fn reset_fields(&self) -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]);
    fn desired_replicas(&self, object: &dyn Object) -> Option<i32>;
    /// The object as it is stored, which for a kind of several versions may be in another than this one.
    fn to_stored(&self, object: &dyn Object) -> Vec<u8> {
        object.to_json()
    }
    /// The resource behind this view, where the server learned it while it ran. What is stored of such a resource need not
    /// be what is shown.
    fn learned(&self) -> Option<&dyn Any> {
        None
    }
}

/// The erasure of a [`Kind`].
pub struct Erased<T>(std::marker::PhantomData<fn() -> T>);

impl<T> Erased<T> {
    /// The one value of this type.
    #[must_use]
    pub const fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<T> Default for Erased<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn of<T: Kind>(object: &dyn Object) -> &T {
    downcast(object).unwrap_or_else(|| of_another_kind(T::INFO.kind))
}

fn of_mut<T: Kind>(object: &mut dyn Object) -> &mut T {
    downcast_mut(object).unwrap_or_else(|| of_another_kind(T::INFO.kind))
}

#[cold]
#[inline(never)]
fn of_another_kind(kind: &str) -> ! {
    panic!("object is not a {kind}")
}

impl<T: Kind> Resource for Erased<T> {
    fn info(&self) -> &ResourceInfo {
        const { &T::INFO }
    }
    fn columns(&self) -> &'static [Column] {
        T::COLUMNS
    }
    fn decode(&self, bytes: &[u8]) -> Result<Box<dyn Object>, serde_json::Error> {
        Ok(Box::new(T::from_json(bytes)?))
    }
    fn decode_value(&self, value: Value) -> Result<Box<dyn Object>, serde_json::Error> {
        Ok(Box::new(T::from_value(value)?))
    }
    fn assign(&self, object: &mut dyn Object, from: &dyn Object) {
        of_mut::<T>(object).clone_from(of::<T>(from));
    }
    fn set_defaults(&self, object: &mut dyn Object) {
        of_mut::<T>(object).set_defaults();
    }
    fn prepare_for_create(&self, object: &mut dyn Object, cx: &Context<'_>) {
        of_mut::<T>(object).prepare_for_create(cx);
    }
    fn validate(&self, object: &dyn Object) -> ErrorList {
        of::<T>(object).validate()
    }
    fn warnings(&self, object: &dyn Object, old: Option<&dyn Object>) -> Vec<String> {
        of::<T>(object).warnings(old.map(of::<T>))
    }
    fn prepare_for_update(&self, object: &mut dyn Object, old: &dyn Object, cx: &Context<'_>) {
        of_mut::<T>(object).prepare_for_update(of::<T>(old), cx);
    }
    fn validate_update(&self, object: &dyn Object, old: &dyn Object) -> ErrorList {
        of::<T>(object).validate_update(of::<T>(old))
    }
    fn prepare_for_status_update(&self, object: &mut dyn Object, old: &dyn Object, cx: &Context<'_>) {
        of_mut::<T>(object).prepare_for_status_update(of::<T>(old), cx);
    }
    fn validate_status_update(&self, object: &dyn Object, old: &dyn Object) -> ErrorList {
        of::<T>(object).validate_status_update(of::<T>(old))
    }
    fn prepare_for_subresource_update(
        &self,
        subresource: &str,
        object: &mut dyn Object,
        old: &dyn Object,
        cx: &Context<'_>,
    ) {
        of_mut::<T>(object).prepare_for_subresource_update(subresource, of::<T>(old), cx);
    }
    fn validate_subresource_update(&self, subresource: &str, object: &dyn Object, old: &dyn Object) -> ErrorList {
        of::<T>(object).validate_subresource_update(subresource, of::<T>(old))
    }
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        T::validate_name(name, prefix)
    }
    fn selectable_fields(&self, object: &dyn Object) -> Vec<(&'static str, String)> {
        of::<T>(object).selectable_fields()
    }
    fn expressions(&self, object: &dyn Object, old: Option<&dyn Object>) -> Vec<Expression> {
        of::<T>(object).expressions(old.map(of::<T>))
    }
    fn cells(&self, object: &dyn Object, now: Timestamp) -> Vec<Value> {
        of::<T>(object).cells(now)
    }
    fn graceful_delete_seconds(&self, object: &dyn Object, options: &DeleteOptions) -> Option<i64> {
        of::<T>(object).graceful_delete_seconds(options)
    }
    fn reset_fields(&self) -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        T::reset_fields()
    }
    fn desired_replicas(&self, object: &dyn Object) -> Option<i32> {
        of::<T>(object).desired_replicas()
    }
}

/// The part of [`Kind`] that is the same for every `k8s-openapi` type; expands inside its `impl Kind for T` block.
///
/// `kind_codec!(canonical: f)` passes what was decoded through `f: fn(&mut T) -> Result<(), String>`, which puts
/// quantities in canonical form and refuses what is none.
#[macro_export]
macro_rules! kind_codec {
    () => {
        $crate::kind_codec!(canonical: |_: &mut Self| Ok::<(), String>(()));
    };
    (canonical: $canonical:expr) => {
        fn meta(&self) -> &$crate::ObjectMeta {
            &self.metadata
        }
        fn meta_mut(&mut self) -> &mut $crate::ObjectMeta {
            &mut self.metadata
        }
        fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
            let mut object: Self = serde_json::from_slice(bytes)?;
            ($canonical)(&mut object).map_err(<serde_json::Error as serde::de::Error>::custom)?;
            Ok(object)
        }
        fn from_value(value: serde_json::Value) -> Result<Self, serde_json::Error> {
            let mut object: Self = serde_json::from_value(value)?;
            ($canonical)(&mut object).map_err(<serde_json::Error as serde::de::Error>::custom)?;
            Ok(object)
        }
        fn to_json(&self) -> Vec<u8> {
            serde_json::to_vec(self).expect("API types have string keys only")
        }
        fn to_value(&self) -> serde_json::Value {
            serde_json::to_value(self).expect("API types have string keys only")
        }
    };
}
