//! Every write of an object: create, update, the four patches, and subresource writes, in one order.

use super::options::{self, WriteOptions};
use super::{Registry, Stored, device_access, emptied, key_of, store_error, times};
use crate::admission::rounds::Rounds;
use crate::admission::{Attributes, Operation};
use crate::audit::{self, Part};
use crate::authn::UserInfo;
use crate::authz::{self, Authorizer, Decision};
use crate::registry::draft::Change;
use crate::watch_cache::dispatch::Announced;
use crate::watch_cache::{Selectable, fresh};
use bytes::Bytes;
use gantry_api::ObjectMeta;
use gantry_api::core::pod::drop_scheduling_group;
use gantry_api::kind::{Context, Object, Resource};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::object::{self, Meta};
use gantry_api::meta::status::ApiError;
use gantry_store::{Compare, KeyValue, Txn, TxnOutcome, Write};
use serde_json::{Value, json};
use tokio::time::Instant;

/// Longest base of a generated name, so that base and suffix fit in 63 characters.
const GENERATED_BASE_MAX: usize = 58;
/// Length of the random suffix.
const GENERATED_SUFFIX: usize = 5;
/// Names tried for one generateName.
const GENERATED_TRIES: usize = 8;
/// Races an update may lose before the client is told of the conflict; each lost race means that another write succeeded.
const RACES_MAX: usize = 64;

/// What is written and by whom.
#[derive(Clone)]
pub struct Target<'a> {
    /// The resource.
    pub resource: &'static dyn Resource,
    /// Namespace, empty at cluster scope.
    pub namespace: &'a str,
    /// Name; empty on create.
    pub name: &'a str,
    /// Subresource, empty for the object itself.
    pub subresource: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Parsed parameters.
    pub options: &'a WriteOptions,
    /// Asked whether the user may create where an update or apply creates; None skips the question.
    pub authorizer: Option<&'a dyn Authorizer>,
}

impl Target<'_> {
    /// Whether the write is of the object itself; `scale` is another way to write `spec.replicas`.
    fn writes_spec(&self) -> bool {
        matches!(self.subresource, "" | "scale")
    }

    pub(super) fn not_found(&self, name: &str) -> ApiError {
        let i = self.resource.info();
        ApiError::not_found(i.group, i.plural, name)
    }
}

/// A completed write.
pub struct Written {
    /// The object as it is now, resourceVersion included.
    pub object: Box<dyn Object>,
    /// The same as JSON.
    pub json: Bytes,
    /// Whether it was created by this write.
    pub created: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// What a write takes the place of, as far as it is compared.
#[derive(Clone, Copy)]
struct Before<'a> {
    kv: &'a KeyValue,
    meta: &'a ObjectMeta,
    /// See [`Stored`].
    stale: bool,
}

impl<'a> Before<'a> {
    fn of(stored: &'a Stored) -> Self {
        Self { kv: &stored.kv, meta: stored.object.meta(), stale: stored.stale }
    }
}

/// How a transaction went.
enum Committed {
    /// Stored (or found unchanged) at this revision.
    At(u64, Bytes),
    /// Another write came in between.
    Raced,
}

impl Registry {
    /// Performs a write. The calls stand in the order the design gives; on a lost race everything from the current object
    /// down runs again.
    ///
    /// # Errors
    /// Whatever refuses the write, as the client is to read it.
    pub async fn write(&self, target: &Target<'_>, change: &Change) -> Result<Written, ApiError> {
        let mut warnings = Vec::new();
        match self.write_warning(target, change, &mut warnings).await {
            Ok(written) => Ok(Written { warnings, ..written }),
            Err(refused) => Err(refused.after_warnings(warnings)),
        }
    }

    async fn write_warning(
        &self,
        target: &Target<'_>,
        change: &Change,
        warnings: &mut Vec<String>,
    ) -> Result<Written, ApiError> {
        let info = target.resource.info();
        for attempt in 0.. {
            warnings.clear();
            let stored = match change {
                Change::Create(_) => None,
                _ => self.stored(target.resource, target.namespace, target.name).await?,
            };
            let old = stored.as_ref().map(|s| s.object.as_ref());

            // decode (strict fields, warnings), defaults, managed fields
            let mut object = self.draft(target, change, old, warnings).await?;
            if old.is_none() && !matches!(change, Change::Create(_)) {
                self.may_create(target).await?;
            }
            check_versions(target, object.as_mut(), old)?;
            if old.is_none() && crate::crd::custom(target.resource).is_some_and(|c| c.state().terminating) {
                let why = "create not allowed while custom resource definition is terminating";
                let (info, name) = (target.resource.info(), object.meta().name.clone().unwrap_or_default());
                return Err(ApiError::forbidden(info.group, info.plural, &name, why));
            }

            // mutating admission
            let deadline = self.admit(target, object.as_mut(), old, warnings).await?;

            // prepare: names, system metadata, generation, status reset
            let generated = self.prepare(target, object.as_mut(), old)?;
            let hooked = target.subresource.is_empty();
            if hooked {
                self.run_hooks(target, object.as_mut(), old).await?;
            }

            // validate, validating admission, store
            let verb = if matches!(change, Change::Patch(..)) { "patch" } else { "update" };
            let access = device_access::errors(target, verb, object.as_ref(), old, &self.cluster()).await;
            let checked =
                self.check_and_store(target, object.as_mut(), stored.as_ref(), deadline, access, warnings).await;
            let outcome = match checked {
                Ok(Committed::At(revision, json)) => {
                    if hooked && !target.options.dry_run {
                        for hook in self.hooks_of(info) {
                            hook.stored(object.as_ref(), old, &self.cluster()).await;
                        }
                    }
                    return Ok(reply(target, object, json, revision, old.is_none()));
                }
                other => other,
            };
            if hooked && !target.options.dry_run {
                for hook in self.hooks_of(info) {
                    hook.abandoned(object.as_ref(), old, &self.cluster()).await;
                }
            }
            outcome.map_err(|e| emptied::shown(e, change))?;

            let name = object.meta().name();
            match change {
                Change::Create(_) if generated && attempt < GENERATED_TRIES => {}
                Change::Create(_) => {
                    let mut e = ApiError::already_exists(info.group, info.plural, name);
                    let existing = self.stored(target.resource, target.namespace, name).await?;
                    if existing.is_some_and(|s| s.object.meta().is_deleting()) {
                        e.message = format!("object is being deleted: {}", e.message);
                    }
                    return Err(e);
                }
                _ if attempt >= RACES_MAX => return Err(ApiError::modified(info.group, info.plural, name)),
                _ => {}
            }
        }
        unreachable!("the loop ends by returning")
    }

    async fn may_create(&self, target: &Target<'_>) -> Result<(), ApiError> {
        let Some(authorizer) = target.authorizer else { return Ok(()) };
        let info = target.resource.info();
        let attributes = authz::Attributes {
            user: target.user.clone(),
            verb: "create".into(),
            namespace: target.namespace.into(),
            group: info.group.into(),
            version: info.version.into(),
            resource: info.plural.into(),
            name: target.name.into(),
            is_resource: true,
            ..Default::default()
        };
        match authorizer.authorize(&attributes).await {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) | Decision::Failed { why: reason, .. } => {
                Err(attributes.forbidden(&reason))
            }
        }
    }

    /// Returns until when the request has to be decided.
    async fn admit(
        &self,
        target: &Target<'_>,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
        warnings: &mut Vec<String>,
    ) -> Result<Instant, ApiError> {
        let name = object.meta().name().to_owned();
        let mut attributes = attributes(target, &name, object, old);
        let admitted = self.admission().admit(&mut attributes, &self.cluster()).await;
        warnings.append(&mut attributes.warnings);
        admitted.map(|()| attributes.rounds.deadline)
    }

    /// Returns whether the name was generated.
    fn prepare(
        &self,
        target: &Target<'_>,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<bool, ApiError> {
        let cx = Context { now: self.clock.now(), username: &target.user.username };
        if !self.serves_pod_groups {
            drop_scheduling_group(object, old);
        }
        let Some(old) = old else {
            let generated = self.fill_system_metadata(target, object)?;
            target.resource.prepare_for_create(object, &cx);
            return Ok(generated);
        };
        let generation = old.meta().generation;
        carry_over(object.meta_mut(), old.meta());
        object.meta_mut().generation = generation;
        if target.writes_spec() {
            target.resource.prepare_for_update(object, old, &cx);
        } else {
            target.resource.prepare_for_subresource_update(target.subresource, object, old, &cx);
        }
        Ok(false)
    }

    fn fill_system_metadata(&self, target: &Target<'_>, object: &mut dyn Object) -> Result<bool, ApiError> {
        let info = target.resource.info();
        let meta = object.meta_mut();
        meta.creation_timestamp = Some(self.clock.time());
        meta.uid = Some(self.entropy.uuid());
        meta.deletion_timestamp = None;
        meta.deletion_grace_period_seconds = None;
        meta.self_link = None;
        meta.generation = None;
        let prefix = meta.generate_name.clone().unwrap_or_default();
        let generated = meta.name().is_empty() && !prefix.is_empty();
        if generated {
            let base: String = prefix.chars().take(GENERATED_BASE_MAX).collect();
            meta.name = Some(base + &self.entropy.suffix(GENERATED_SUFFIX));
        }
        if info.namespaced && meta.namespace().is_empty() {
            return Err(ApiError::internal("namespace was not set"));
        }
        Ok(generated)
    }

    async fn run_hooks(
        &self,
        target: &Target<'_>,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<(), ApiError> {
        for hook in self.hooks_of(target.resource.info()) {
            hook.before_validate(object, old, target.options.dry_run, &self.cluster()).await?;
        }
        Ok(())
    }

    async fn check_and_store(
        &self,
        target: &Target<'_>,
        object: &mut dyn Object,
        stored: Option<&Stored>,
        deadline: Instant,
        access: ErrorList,
        warnings: &mut Vec<String>,
    ) -> Result<Committed, ApiError> {
        let old = stored.map(|s| s.object.as_ref());
        validate(target.resource, if target.writes_spec() { "" } else { target.subresource }, object, old, access)?;
        warnings.extend(target.resource.warnings(object, old));
        let name = object.meta().name().to_owned();
        let mut attributes = attributes(target, &name, object, old);
        attributes.rounds = Rounds::until(deadline);
        let admission = self.admission();
        let admitted = admission.validate(&mut attributes, &self.cluster()).await;
        warnings.append(&mut attributes.warnings);
        admitted?;
        let held = std::mem::take(&mut attributes.held);
        let outcome = self.commit(target.resource, object, stored.map(Before::of), target.options.dry_run).await;
        if !matches!(outcome, Ok(Committed::At(..))) {
            let attributes = self::attributes(target, &name, object, old);
            for timed in &self.admission().validating {
                timed.plugin.abandoned(&attributes, &self.cluster()).await;
            }
        }
        drop(held);
        outcome
    }

    /// Stores an object in place of what was `before`, or for the first time.
    async fn commit(
        &self,
        resource: &dyn Resource,
        object: &mut dyn Object,
        before: Option<Before<'_>>,
        dry_run: bool,
    ) -> Result<Committed, ApiError> {
        object.meta_mut().resource_version = None;
        let mut json = Bytes::from(self.encode(resource, object).await?);
        let key = key_of(resource, object.meta().namespace(), object.meta().name());
        if let Some(s) = before.filter(|s| s.kv.value.len() == json.len() && s.kv.value != json)
            && let Some(fresh) = times::keep(object, s.meta)
        {
            let timed = std::mem::replace(&mut json, self.encode(resource, object).await?.into());
            if s.kv.value != json {
                (json, object.meta_mut().managed_fields) = (timed, Some(fresh));
            }
        }
        let unchanged =
            before.is_some_and(|s| !s.stale && (s.kv.value == json || shows_the_same(resource, s.kv, &json)));
        let deletes = before.is_some_and(|s| super::delete::finished_by_update(object, s.meta));
        if unchanged && !deletes {
            return Ok(Committed::At(before.map_or(0, |s| s.kv.mod_revision), json));
        }
        if dry_run {
            let exists =
                before.is_none() && self.store.get(key.as_bytes()).await.map_err(|e| store_error(&key, &e))?.is_some();
            let revision = before.map_or(0, |s| s.kv.mod_revision);
            return Ok(if exists { Committed::Raced } else { Committed::At(revision, json) });
        }
        let bytes = Bytes::from(key.clone());
        let compare = match before {
            Some(s) => Compare::ModRevision(bytes.clone(), s.kv.mod_revision),
            None => Compare::Absent(bytes.clone()),
        };
        let sealed = self.sealed(resource, &key, &json)?;
        let write = if deletes { Write::Delete(bytes) } else { Write::Put(bytes, sealed.clone()) };
        let txn = Txn { compares: vec![compare], writes: vec![write] };
        let announcement = (!deletes && resource.learned().is_none()).then(|| {
            let received = self.cache(resource).is_ok_and(|cache| cache.is_received());
            let fresh = received.then(|| fresh::as_read(object)).flatten();
            let announced = Announced { selectable: Selectable::of(resource, object), fresh };
            self.dispatcher.announce(&sealed, announced);
            Announcement { dispatcher: &self.dispatcher, value: &sealed, kept: false }
        });
        let stored = audit::timed(Part::Storage, self.store.txn(txn)).await;
        let outcome = stored.map_err(|e| store_error(&key, &e))?;
        if let (Some(mut announcement), TxnOutcome::Applied(_)) = (announcement, &outcome) {
            announcement.kept = true;
        }
        match outcome {
            TxnOutcome::Applied(revision) => {
                if deletes {
                    for hook in self.hooks_of(resource.info()) {
                        hook.deleted(object, &self.cluster()).await;
                    }
                }
                Ok(Committed::At(revision, json))
            }
            TxnOutcome::Failed(_) => Ok(Committed::Raced),
        }
    }

    /// As [`crate::cluster::ObjectSource::guaranteed_update`].
    ///
    /// # Errors
    /// What `change` or validation refuses, 404 where there is no object.
    #[allow(clippy::type_complexity)]
    pub async fn update_as_server(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        dry_run: bool,
        change: &mut (dyn for<'o> FnMut(&'o mut dyn Object) -> Result<(), ApiError> + Send),
    ) -> Result<Box<dyn Object>, ApiError> {
        let info = resource.info();
        for _ in 0..RACES_MAX {
            let stored = self.stored(resource, namespace, name).await?;
            let stored = stored.ok_or_else(|| ApiError::not_found(info.group, info.plural, name))?;
            let Stored { kv, mut object, stale } = stored;
            // Of what was before, nothing else is compared: a pod would take as long to copy as to write.
            let meta = object.meta().clone();
            change(object.as_mut())?;
            carry_over(object.meta_mut(), &meta);
            let mut errors = object::validate_update(object.meta(), &meta);
            errors.extend(unknown_finalizers(resource, object.meta()));
            invalid_unless_empty(resource, name, &errors)?;
            let before = Before { kv: &kv, meta: &meta, stale };
            if let Committed::At(revision, _) = self.commit(resource, object.as_mut(), Some(before), dry_run).await? {
                object.meta_mut().resource_version = Some(revision.to_string());
                return Ok(object);
            }
        }
        Err(ApiError::modified(info.group, info.plural, name))
    }

    /// Creates an object as the server itself: defaults, preparation and validation, but no admission.
    ///
    /// # Errors
    /// 409 where it exists, 422 where it is invalid.
    pub async fn create_as_server(
        &self,
        resource: &'static dyn Resource,
        mut object: Box<dyn Object>,
    ) -> Result<Box<dyn Object>, ApiError> {
        let info = resource.info();
        let options = WriteOptions::default();
        let user = UserInfo::new("system:apiserver", &["system:masters"]);
        let namespace = object.meta().namespace().to_owned();
        let target = Target {
            resource,
            namespace: &namespace,
            name: "",
            subresource: "",
            user: &user,
            options: &options,
            authorizer: None,
        };
        resource.set_defaults(object.as_mut());
        self.prepare(&target, object.as_mut(), None)?;
        self.run_hooks(&target, object.as_mut(), None).await?;
        let stored = match validate(resource, "", object.as_ref(), None, ErrorList::default()) {
            Ok(()) => self.commit(resource, object.as_mut(), None, false).await,
            Err(e) => Err(e),
        };
        match stored {
            Ok(Committed::At(revision, _)) => {
                for hook in self.hooks_of(info) {
                    hook.stored(object.as_ref(), None, &self.cluster()).await;
                }
                object.meta_mut().resource_version = Some(revision.to_string());
                Ok(object)
            }
            other => {
                for hook in self.hooks_of(info) {
                    hook.abandoned(object.as_ref(), None, &self.cluster()).await;
                }
                other?;
                Err(ApiError::already_exists(info.group, info.plural, object.meta().name()))
            }
        }
    }
}

/// Whether what was stored through another version of the resource is, in this one, what is to be stored now.
fn shows_the_same(resource: &dyn Resource, stored: &KeyValue, json: &[u8]) -> bool {
    let own = format!(r#"{{"apiVersion":"{}","#, resource.info().api_version());
    if resource.learned().is_some() || stored.value.starts_with(own.as_bytes()) {
        return false;
    }
    resource.decode(&stored.value).is_ok_and(|shown| resource.to_stored(shown.as_ref()) == json)
}

/// Takes an announcement back unless the value was written; also when the client went away in the middle.
struct Announcement<'a> {
    dispatcher: &'a crate::watch_cache::Dispatcher,
    value: &'a Bytes,
    kept: bool,
}

impl Drop for Announcement<'_> {
    fn drop(&mut self) {
        if !self.kept {
            drop(self.dispatcher.announced(self.value));
        }
    }
}

fn attributes<'a>(
    target: &'a Target<'_>,
    name: &'a str,
    object: &'a mut dyn Object,
    old: Option<&'a dyn Object>,
) -> Attributes<'a> {
    let mut options: Value = json!({ "fieldManager": target.options.field_manager });
    if target.options.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    Attributes {
        operation: if old.is_some() { Operation::Update } else { Operation::Create },
        resource: target.resource,
        subresource: target.subresource,
        namespace: target.namespace,
        name: if target.name.is_empty() { name } else { target.name },
        user: target.user,
        dry_run: target.options.dry_run,
        object: Some(object),
        old_object: old,
        options,
        warnings: Vec::new(),
        rounds: Rounds::default(),
        held: Vec::new(),
    }
}

/// Preconditions of an update: that the object exists, and that what the client saw is what there is.
fn check_versions(target: &Target<'_>, object: &mut dyn Object, old: Option<&dyn Object>) -> Result<(), ApiError> {
    let info = target.resource.info();
    let version = object.meta().resource_version().to_owned();
    let Some(old) = old else {
        // A creator may not name a version; upstream refuses rather than ignores it.
        if !version.is_empty() && version != "0" {
            return Err(if target.name.is_empty() {
                ApiError::bad_request("resourceVersion should not be set on objects to be created")
            } else {
                ApiError::conflict(
                    info.group,
                    info.plural,
                    target.name,
                    "StorageError: invalid object, Code: 4, Precondition failed: object does not exist",
                )
            });
        }
        return Ok(());
    };
    if !object.meta().uid().is_empty() && object.meta().uid() != old.meta().uid() {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            object.meta().uid(),
            old.meta().uid()
        );
        return Err(ApiError::conflict(info.group, info.plural, target.name, &why));
    }
    if version.is_empty() || version == "0" {
        if info.unconditional_update || !target.subresource.is_empty() {
            // Whatever is stored now is what gets replaced; validation wants its version to be there.
            object.meta_mut().resource_version.clone_from(&old.meta().resource_version);
            return Ok(());
        }
        let mut errors = ErrorList::default();
        errors.invalid(&Path::new("metadata").child("resourceVersion"), 0, "must be specified for an update");
        // As upstream: the resource where other errors of validation have the kind.
        return Err(ApiError::invalid(info.group, info.plural, target.name, &errors));
    }
    // Upstream has no reason for what its storage cannot read.
    options::version(&version).map_err(|why| ApiError::new(500, "", why))?;
    if version != old.meta().resource_version() {
        return Err(ApiError::modified(info.group, info.plural, target.name));
    }
    Ok(())
}

/// Metadata an updater may leave out or may not change.
fn carry_over(new: &mut gantry_api::ObjectMeta, old: &gantry_api::ObjectMeta) {
    if new.uid().is_empty() {
        new.uid.clone_from(&old.uid);
    }
    new.creation_timestamp.clone_from(&old.creation_timestamp);
    new.self_link = None;
    if new.namespace().is_empty() {
        new.namespace.clone_from(&old.namespace);
    }
    // Deletion, once begun, cannot be taken back; only deleting again may shorten it.
    if old.deletion_timestamp.is_some() {
        new.deletion_timestamp.clone_from(&old.deletion_timestamp);
        if new.deletion_grace_period_seconds.is_none() {
            new.deletion_grace_period_seconds = old.deletion_grace_period_seconds;
        }
    } else {
        new.deletion_timestamp = None;
        new.deletion_grace_period_seconds = None;
    }
}

/// Field errors of finalizers that no built-in kind may have.
fn unknown_finalizers(resource: &dyn Resource, meta: &gantry_api::ObjectMeta) -> ErrorList {
    if resource.learned().is_some() || resource.info().group == "apiextensions.k8s.io" {
        return ErrorList::default();
    }
    object::validate_known_finalizers(meta)
}

/// `access` are the errors of what its writer may not write, found beforehand.
fn validate(
    resource: &dyn Resource,
    subresource: &str,
    object: &dyn Object,
    old: Option<&dyn Object>,
    access: ErrorList,
) -> Result<(), ApiError> {
    let info = resource.info();
    let mut errors = match old {
        None => object::validate_create(object.meta(), info.namespaced, &|name, prefix| {
            resource.validate_name(name, prefix)
        }),
        Some(old) => object::validate_update(object.meta(), old.meta()),
    };
    errors.extend(unknown_finalizers(resource, object.meta()));
    errors.extend(access);
    errors.extend(match old {
        None => resource.validate(object),
        Some(old) if subresource.is_empty() => resource.validate_update(object, old),
        Some(old) => resource.validate_subresource_update(subresource, object, old),
    });
    if errors.is_empty() && subresource.is_empty() {
        errors.extend(crate::expressions::check(resource, object, old));
    }
    invalid_unless_empty(resource, object.meta().name(), &errors)
}

pub(super) fn invalid_unless_empty(resource: &dyn Resource, name: &str, errors: &ErrorList) -> Result<(), ApiError> {
    let info = resource.info();
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(info.group, info.kind, name, errors)) }
}

fn reply(target: &Target<'_>, mut object: Box<dyn Object>, json: Bytes, revision: u64, created: bool) -> Written {
    // A learned resource may be stored in another version than it is shown in.
    let json = if target.resource.learned().is_some() { Bytes::from(object.to_json()) } else { json };
    let json = if revision == 0 {
        json
    } else {
        object.meta_mut().resource_version = Some(revision.to_string());
        crate::watch_cache::with_version(&json, revision, target.resource)
    };
    Written { object, json, created, warnings: Vec::new() }
}
