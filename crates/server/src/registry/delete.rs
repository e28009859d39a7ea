//! Deletion: preconditions, grace periods, finalizers, propagation, collections.

use super::options::{ListOptions, is_dry_run};
use super::unreadable::{self, Unreadable};
use super::{Registry, Stored, key_of, store_error};
use crate::admission::rounds::Rounds;
use crate::admission::{Attributes, Operation};
use crate::authn::UserInfo;
use bytes::Bytes;
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::api::core::v1::Namespace;
use gantry_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Time};
use gantry_api::k8s_openapi::jiff::SignedDuration;
use gantry_api::kind::{Object, Resource, downcast, downcast_mut};
use gantry_api::meta::object::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN, Meta};
use gantry_api::meta::status::ApiError;
use gantry_store::{Compare, Txn, TxnOutcome, Write};

/// Races a deletion may lose before the client is told.
const RACES_MAX: usize = 64;

/// Resources whose delete verb answers with the deleted object instead of a `Status`, as upstream's do.
const RETURN_DELETED_OBJECT: &[(&str, &str)] = &[
    ("", "pods"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("", "persistentvolumes"),
    ("", "persistentvolumeclaims"),
];

/// What a deletion came to.
pub struct Deleted {
    /// The object: its last state where removed, else as marked.
    pub object: Box<dyn Object>,
    /// Whether it is gone.
    pub removed: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

impl Deleted {
    /// Whether the answer is the object rather than a `Status`.
    #[must_use]
    pub fn answers_with_object(&self, resource: &dyn Resource) -> bool {
        let i = resource.info();
        !self.removed || RETURN_DELETED_OBJECT.contains(&(i.group, i.plural))
    }
}

/// What the deletion comes to, decided from the present object alone.
enum Verdict {
    /// Nothing to do: it is already being deleted.
    Pending,
    /// Keep it, marked.
    Mark(Box<dyn Object>),
    /// Remove it now.
    Remove,
}

impl Registry {
    /// Deletes one object. `user` None is the server itself: no admission.
    ///
    /// # Errors
    /// 404, a failed precondition (409), or what admission refuses.
    pub async fn delete(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        dry_run: bool,
        user: Option<&UserInfo>,
    ) -> Result<Deleted, ApiError> {
        let info = resource.info();
        let dry_run = dry_run || is_dry_run(options);
        for _ in 0..RACES_MAX {
            let key = key_of(resource, namespace, name);
            let stored = match self.look_up(resource, &key).await? {
                None => return Err(ApiError::not_found(info.group, info.plural, name)),
                Some(Err(Unreadable { why, .. })) => return Err(unreadable::of_object(&key, &why)),
                Some(Ok(stored)) => self.shown_in_own_version(resource, stored).await?,
            };
            check_preconditions(resource, name, options, stored.object.as_ref())?;
            let warnings = match user {
                Some(user) => {
                    let old = stored.object.as_ref();
                    self.admit_deletion(resource, namespace, name, options, dry_run, user, old).await?
                }
                None => Vec::new(),
            };
            match self.decide(resource, stored.object.as_ref(), options) {
                Verdict::Pending => return Ok(Deleted { object: stored.object, removed: false, warnings }),
                Verdict::Mark(mut object) => {
                    if dry_run {
                        return Ok(Deleted { object, removed: false, warnings });
                    }
                    object.meta_mut().resource_version = None;
                    let json = self.encode(resource, object.as_ref()).await?;
                    let sealed = self.sealed(resource, &key, &json.into())?;
                    let put = |key| Write::Put(key, sealed);
                    if let Some(revision) = self.replace(resource, &stored, put).await? {
                        object.meta_mut().resource_version = Some(revision.to_string());
                        return Ok(Deleted { object, removed: false, warnings });
                    }
                }
                Verdict::Remove => {
                    if dry_run {
                        return Ok(Deleted { object: stored.object, removed: true, warnings });
                    }
                    if let Some(revision) = self.replace(resource, &stored, Write::Delete).await? {
                        let mut object = stored.object;
                        object.meta_mut().resource_version = Some(revision.to_string());
                        for hook in self.hooks_of(info) {
                            hook.deleted(object.as_ref(), &self.cluster()).await;
                        }
                        return Ok(Deleted { object, removed: true, warnings });
                    }
                }
            }
        }
        Err(ApiError::modified(info.group, info.plural, name))
    }

    /// Deletes every selected object, one after the other; those already gone count as deleted.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn delete_collection(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        list: &ListOptions,
        options: &DeleteOptions,
        user: &UserInfo,
    ) -> Result<Vec<Deleted>, ApiError> {
        self.caught_up().await?;
        let cache = self.cache(resource)?;
        let selection = cache.selection(namespace, list.labels.clone(), &list.fields)?;
        self.check_readable(resource, namespace)?;
        let snapshot = self.shown_snapshot(resource, cache.snapshot()).await?;
        let mut deleted = Vec::new();
        let paths: Vec<(String, String)> = snapshot
            .iter_after(namespace, "")
            .filter(|e| selection.matches(e))
            .map(|e| (e.namespace().to_owned(), e.name().to_owned()))
            .collect();
        drop(snapshot);
        for (namespace, name) in paths {
            match self.delete(resource, &namespace, &name, options, false, Some(user)).await {
                Ok(one) => deleted.push(one),
                Err(e) if e.is("NotFound") => {}
                Err(e) => return Err(e),
            }
        }
        Ok(deleted)
    }

    /// Some(revision) where written, None where another write came in between.
    async fn replace(
        &self,
        resource: &dyn Resource,
        stored: &Stored,
        write: impl FnOnce(Bytes) -> Write,
    ) -> Result<Option<u64>, ApiError> {
        let meta = stored.object.meta();
        let key = key_of(resource, meta.namespace(), meta.name());
        let bytes = Bytes::from(key.clone());
        let compares = vec![Compare::ModRevision(bytes.clone(), stored.kv.mod_revision)];
        let txn = Txn { compares, writes: vec![write(bytes)] };
        match self.store.txn(txn).await.map_err(|e| store_error(&key, &e))? {
            TxnOutcome::Applied(revision) => Ok(Some(revision)),
            TxnOutcome::Failed(_) => Ok(None),
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn admit_deletion(
        &self,
        resource: &dyn Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        dry_run: bool,
        user: &UserInfo,
        old: &dyn Object,
    ) -> Result<Vec<String>, ApiError> {
        let mut attributes = Attributes {
            operation: Operation::Delete,
            resource,
            subresource: "",
            namespace,
            name,
            user,
            dry_run,
            object: None,
            old_object: Some(old),
            options: serde_json::to_value(options).map_err(ApiError::internal)?,
            warnings: Vec::new(),
            rounds: Rounds::default(),
            held: Vec::new(),
        };
        match self.admission().run(&mut attributes, &self.cluster()).await {
            Ok(()) => Ok(attributes.warnings),
            Err(refused) => Err(refused.after_warnings(attributes.warnings)),
        }
    }

    fn decide(&self, resource: &dyn Resource, present: &dyn Object, options: &DeleteOptions) -> Verdict {
        let mut object = present.boxed_clone();
        let grace = match self.begin_grace(resource, object.as_mut(), options) {
            Grace::Pending => return Verdict::Pending,
            Grace::Seconds(n) => Some(n),
            Grace::None => None,
        };
        let finalizers = wanted_finalizers(resource, present, options);
        object.meta_mut().finalizers = (!finalizers.is_empty()).then_some(finalizers);
        if let Some(namespace) = downcast_mut::<Namespace>(object.as_mut()) {
            if namespace_is_finalized(namespace) && namespace.metadata.finalizers_or_empty().is_empty() {
                return Verdict::Remove;
            }
            namespace.status.get_or_insert_default().phase = Some("Terminating".into());
            self.mark_deleting(object.as_mut());
            return if unchanged(object.as_ref(), present) { Verdict::Pending } else { Verdict::Mark(object) };
        }
        if let Some(crd) = downcast_mut::<CustomResourceDefinition>(object.as_mut())
            && crd.metadata.deletion_timestamp.is_none()
        {
            crate::crd::mark_for_deletion(crd, &self.clock.time());
            self.mark_deleting(object.as_mut());
            return Verdict::Mark(object);
        }
        let pending = !object.meta().finalizers_or_empty().is_empty();
        match grace {
            Some(0) if !pending => Verdict::Remove,
            Some(_) => Verdict::Mark(object),
            None if pending => {
                self.mark_deleting(object.as_mut());
                if unchanged(object.as_ref(), present) { Verdict::Pending } else { Verdict::Mark(object) }
            }
            None => Verdict::Remove,
        }
    }

    /// `rest.BeforeDelete`: marks the object where its kind is deleted gracefully.
    fn begin_grace(&self, resource: &dyn Resource, object: &mut dyn Object, options: &DeleteOptions) -> Grace {
        let Some(seconds) = resource.graceful_delete_seconds(object, options) else { return Grace::None };
        let now = self.clock.time();
        let meta = object.meta_mut();
        let Some(deletion) = meta.deletion_timestamp.clone() else {
            meta.deletion_timestamp = Some(Time(now.0 + SignedDuration::from_secs(seconds)));
            meta.deletion_grace_period_seconds = Some(seconds);
            if let Some(generation) = meta.generation.as_mut().filter(|g| **g > 0) {
                *generation += 1;
            }
            return Grace::Seconds(seconds);
        };
        // Being deleted already: the period may only be shortened.
        let Some(present) = meta.deletion_grace_period_seconds else { return Grace::None };
        match options.grace_period_seconds {
            Some(wanted) if wanted.max(0) < present => {
                let wanted = wanted.max(0);
                meta.deletion_timestamp = Some(Time(deletion.0 - SignedDuration::from_secs(present - wanted)));
                meta.deletion_grace_period_seconds = Some(wanted);
                Grace::Seconds(wanted)
            }
            _ if present == 0 && meta.finalizers_or_empty().is_empty() => Grace::Seconds(0),
            _ => Grace::Pending,
        }
    }

    fn mark_deleting(&self, object: &mut dyn Object) {
        let meta = object.meta_mut();
        if meta.deletion_timestamp.is_none() {
            meta.deletion_timestamp = Some(self.clock.time());
            if let Some(generation) = meta.generation.as_mut().filter(|g| **g > 0) {
                *generation += 1;
            }
        }
        meta.deletion_grace_period_seconds = Some(0);
    }
}

enum Grace {
    /// The kind (or this object) is not deleted gracefully.
    None,
    /// Nothing to change.
    Pending,
    /// Marked with this period.
    Seconds(i64),
}

fn unchanged(new: &dyn Object, old: &dyn Object) -> bool {
    new.to_json() == old.to_json()
}

fn namespace_is_finalized(namespace: &Namespace) -> bool {
    namespace.spec.as_ref().and_then(|s| s.finalizers.as_ref()).is_none_or(Vec::is_empty)
}

/// Whether an update that left no finalizers completes a deletion that had been waiting for them.
pub(super) fn finished_by_update(new: &dyn Object, old: &ObjectMeta) -> bool {
    let waiting = new.meta().deletion_timestamp.is_some() && old.deletion_grace_period_seconds == Some(0);
    let namespace_done = downcast::<Namespace>(new).is_none_or(namespace_is_finalized);
    waiting && new.meta().finalizers_or_empty().is_empty() && namespace_done
}

/// Upstream names the kind here where other conflicts name the resource.
fn check_preconditions(
    resource: &dyn Resource,
    name: &str,
    options: &DeleteOptions,
    object: &dyn Object,
) -> Result<(), ApiError> {
    let Some(p) = &options.preconditions else { return Ok(()) };
    let info = resource.info();
    let differs = |wanted: &Option<String>, actual: &str| wanted.as_deref().filter(|w| *w != actual).map(str::to_owned);
    if let Some(uid) = differs(&p.uid, object.meta().uid()) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been \
             deleted and then recreated",
            object.meta().uid()
        );
        return Err(ApiError::conflict(info.group, info.kind, name, &why));
    }
    if let Some(version) = differs(&p.resource_version, object.meta().resource_version()) {
        let why = format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The \
             object might have been modified",
            object.meta().resource_version()
        );
        return Err(ApiError::conflict(info.group, info.kind, name, &why));
    }
    Ok(())
}

/// The finalizers the object keeps, with those that the propagation policy asks for.
fn wanted_finalizers(resource: &dyn Resource, object: &dyn Object, options: &DeleteOptions) -> Vec<String> {
    let present = object.meta().finalizers_or_empty();
    let has = |f: &str| present.iter().any(|p| p == f);
    let info = resource.info();
    // ReplicationControllers and batch/v1 Jobs orphan by default, for clients older than propagation policies.
    let orphans_by_default = matches!((info.group, info.plural), ("", "replicationcontrollers") | ("batch", "jobs"));
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation_policy.as_deref()) {
        (Some(orphan), _) => (orphan, false),
        (None, Some("Orphan")) => (true, false),
        (None, Some("Foreground")) => (false, true),
        (None, Some(p)) if !p.is_empty() => (false, false),
        _ if has(FINALIZER_ORPHAN) => (true, false),
        _ if has(FINALIZER_FOREGROUND) => (false, true),
        _ => (orphans_by_default, false),
    };
    let mut out: Vec<String> =
        present.iter().filter(|f| *f != FINALIZER_ORPHAN && *f != FINALIZER_FOREGROUND).cloned().collect();
    if orphan {
        out.push(FINALIZER_ORPHAN.into());
    }
    if foreground {
        out.push(FINALIZER_FOREGROUND.into());
    }
    out
}
