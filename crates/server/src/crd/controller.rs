//! Follows the definitions: accepts their names, serves their versions, and takes the instances down with a definition
//! that is deleted.
//!
//! Source: `k8s.io/apiextensions-apiserver/pkg/controller` (status, establish, apiapproval, finalizer).

use super::conversion::Converter;
use super::resource::intern;
use super::version::{State, version_schemas};
use crate::cluster::resource_of;
use crate::registry::Registry;
use crate::server::Server;
use crate::watch_cache::{Entry, EventType, Next, Selection, Subscription};
use gantry_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionCondition, CustomResourceDefinitionNames,
    CustomResourceDefinitionStatus,
};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Time};
use gantry_api::kind::{Object, Resource, downcast, downcast_mut};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Keeps a definition until its instances are gone.
const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// After this the deletion of instances is tried again when it failed.
const RETRY: Duration = Duration::from_secs(5);
/// Says who approved a kind of a group that is the community's.
const APPROVAL: &str = "api-approved.kubernetes.io";

/// What is kept of a definition: all of it is in the cache.
struct Known {
    uid: String,
    group: String,
    plural: String,
    /// The names it was given.
    names: CustomResourceDefinitionNames,
    /// Whether those are the names it asks for.
    accepted: bool,
    /// Whether it is served as one that is going.
    terminating: bool,
    /// A digest of what its versions are served by; None where they are not.
    served: Option<Vec<u8>>,
}

/// The definitions and what is served of them.
#[derive(Default)]
pub struct Controller {
    known: BTreeMap<String, Known>,
    /// Uids of definitions whose instances are being deleted.
    finalizing: HashSet<String>,
    /// Whether what is served has changed since it was last told.
    changed: bool,
    /// Definitions whose status has yet to be written, with what was taken when it was decided.
    unwritten: Vec<(String, Taken)>,
}

fn definitions() -> &'static dyn Resource {
    resource_of::<CustomResourceDefinition>()
}

fn decode(entry: &Entry) -> Option<Arc<CustomResourceDefinition>> {
    match serde_json::from_slice(&entry.json()) {
        Ok(crd) => Some(Arc::new(crd)),
        Err(e) => {
            tracing::error!(name = entry.name(), error = %e, "definition cannot be decoded");
            None
        }
    }
}

fn condition<'c>(crd: &'c CustomResourceDefinition, kind: &str) -> Option<&'c CustomResourceDefinitionCondition> {
    crd.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == kind)
}

fn holds(crd: &CustomResourceDefinition, kind: &str) -> bool {
    condition(crd, kind).is_some_and(|c| c.status == "True")
}

fn set_condition(
    crd: &mut CustomResourceDefinition,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &Time,
) {
    let conditions = crd.status.get_or_insert_default().conditions.get_or_insert_default();
    let new = CustomResourceDefinitionCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(now.clone()),
        ..Default::default()
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        None => conditions.push(new),
        Some(old) => {
            let since = if old.status == new.status { old.last_transition_time.clone() } else { None };
            *old = CustomResourceDefinitionCondition {
                last_transition_time: since.or(new.last_transition_time.clone()),
                ..new
            };
        }
    }
}

/// Marks a definition whose deletion begins: it stays until its instances are gone.
pub fn mark_for_deletion(crd: &mut CustomResourceDefinition, now: &Time) {
    let finalizers = crd.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == CLEANUP) {
        finalizers.push(CLEANUP.into());
    }
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    set_condition(crd, "Terminating", "True", "InstanceDeletionPending", message, now);
}

/// Names that the definitions of a group have.
#[derive(Default)]
struct Taken {
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

fn is_free(requested: &str, accepted: &str, taken: &HashSet<String>) -> Result<(), String> {
    if requested == accepted || !taken.contains(requested) {
        Ok(())
    } else {
        Err(format!("{requested:?} is already in use"))
    }
}

/// Accepts what names are free; says which are not.
fn accept_names(
    wanted: &CustomResourceDefinitionNames,
    accepted: &CustomResourceDefinitionNames,
    taken: &Taken,
) -> (CustomResourceDefinitionNames, Option<(&'static str, String)>) {
    let mut names = accepted.clone();
    let mut conflict = None;
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    match is_free(&wanted.plural, &accepted.plural, &taken.resources) {
        Ok(()) => names.plural.clone_from(&wanted.plural),
        Err(why) => conflict = Some(("PluralConflict", why)),
    }
    match is_free(&text(&wanted.singular), &text(&accepted.singular), &taken.resources) {
        Ok(()) => names.singular.clone_from(&wanted.singular),
        Err(why) => conflict = Some(("SingularConflict", why)),
    }
    let own: Vec<&String> = accepted.short_names.iter().flatten().collect();
    let short = wanted.short_names.iter().flatten().filter(|s| !own.contains(s));
    let wrong: Vec<String> = short.filter_map(|s| is_free(s, "", &taken.resources).err()).collect();
    if wrong.is_empty() {
        names.short_names.clone_from(&wanted.short_names);
    } else {
        let all = if wrong.len() == 1 { wrong[0].clone() } else { format!("[{}]", wrong.join(", ")) };
        conflict = Some(("ShortNamesConflict", all));
    }
    match is_free(&wanted.kind, &accepted.kind, &taken.kinds) {
        Ok(()) => names.kind.clone_from(&wanted.kind),
        Err(why) => conflict = Some(("KindConflict", why)),
    }
    match is_free(&text(&wanted.list_kind), &text(&accepted.list_kind), &taken.kinds) {
        Ok(()) => names.list_kind.clone_from(&wanted.list_kind),
        Err(why) => conflict = Some(("ListKindConflict", why)),
    }
    names.categories.clone_from(&wanted.categories);
    (names, conflict)
}

/// Brings the status of a definition to what it must be. Nothing changes where it is that already.
fn bring_up(crd: &mut CustomResourceDefinition, taken: &Taken, now: &Time) {
    let accepted = crd.status.as_ref().and_then(|s| s.accepted_names.clone()).unwrap_or_default();
    if crd.spec.names != accepted || condition(crd, "NamesAccepted").is_none() {
        let (names, conflict) = accept_names(&crd.spec.names, &accepted, taken);
        crd.status.get_or_insert_with(CustomResourceDefinitionStatus::default).accepted_names = Some(names);
        match conflict {
            None => set_condition(crd, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now),
            Some((reason, message)) => set_condition(crd, "NamesAccepted", "False", reason, &message, now),
        }
    }
    if holds(crd, "NamesAccepted") && !holds(crd, "Established") {
        let message = "the initial names have been accepted";
        set_condition(crd, "Established", "True", "InitialNamesAccepted", message, now);
    } else if condition(crd, "Established").is_none() {
        set_condition(crd, "Established", "False", "NotAccepted", "not all names are accepted", now);
    }
    let group = crd.spec.group.as_str();
    let protected = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    if protected("k8s.io") || protected("kubernetes.io") {
        let kind = "KubernetesAPIApprovalPolicyConformant";
        match crd.metadata.annotation(APPROVAL).unwrap_or_default().to_owned() {
            text if text.is_empty() => {
                let message = format!(
                    "protected groups must have approval annotation {APPROVAL:?}, see \
                     https://github.com/kubernetes/enhancements/pull/1111"
                );
                set_condition(crd, kind, "False", "MissingAnnotation", &message, now);
            }
            text if text.starts_with("unapproved") => {
                set_condition(crd, kind, "False", "UnapprovedAnnotation", &format!("not approved: {text:?}"), now);
            }
            text => set_condition(crd, kind, "True", "ApprovedAnnotation", &format!("approved in {text}"), now),
        }
    }
}

/// What of a definition decides what is served and how.
fn facts(crd: &CustomResourceDefinition) -> Vec<u8> {
    let names = crd.status.as_ref().and_then(|s| s.accepted_names.as_ref());
    let facts = serde_json::json!([crd.metadata.uid, crd.spec, names]);
    Sha256::digest(facts.to_string()).to_vec()
}

fn is_terminating(crd: &CustomResourceDefinition) -> bool {
    crd.metadata.deletion_timestamp.is_some() || holds(crd, "Terminating")
}

/// The versions to serve: those that are served, and the one objects are stored in.
fn resources(crd: &CustomResourceDefinition) -> Vec<&'static dyn Resource> {
    let group = &crd.spec.group;
    let versions = version_schemas(crd);
    let storage =
        crd.spec.versions.iter().find(|v| v.storage).map_or_else(String::new, |v| format!("{group}/{}", v.name));
    let served: HashSet<String> =
        crd.spec.versions.iter().filter(|v| v.served).map(|v| format!("{group}/{}", v.name)).collect();
    let converter = Converter::of(crd).map(Arc::new);
    let mut out: Vec<&'static dyn Resource> = Vec::new();
    for v in crd.spec.versions.iter().filter(|v| v.served || v.storage) {
        let Some(own) = versions.get(&format!("{group}/{}", v.name)) else { continue };
        let state = State {
            own: own.clone(),
            storage: storage.clone(),
            versions: versions.clone(),
            served: served.clone(),
            converter: converter.clone(),
            terminating: is_terminating(crd),
        };
        out.push(intern(crd, v, state));
    }
    out
}

impl Controller {
    /// Serves what is stored already: called once, before the server answers.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn restore(&mut self, registry: &Registry) -> Result<(), ApiError> {
        let cache = registry.cache(definitions())?;
        for entry in cache.snapshot().iter_after("", "") {
            let Some(crd) = decode(entry) else { continue };
            self.note(&crd);
            self.serve(registry, &crd).await?;
        }
        Ok(())
    }

    /// Follows the definitions until the server stops.
    pub async fn run(mut self, server: Weak<Server>, stop: CancellationToken) {
        let Some(changes) = server.upgrade().and_then(|s| {
            let cache = s.registry.cache(definitions()).ok()?;
            let (snapshot, changes) = cache.subscribe(Selection::default(), None).ok()?;
            Some((snapshot, changes))
        }) else {
            return;
        };
        let (snapshot, changes) = changes;
        let mut entries: Vec<Arc<Entry>> = snapshot.iter().flat_map(|s| s.iter_after("", "").cloned()).collect();
        loop {
            let Some(me) = server.upgrade() else { return };
            for entry in &entries {
                self.take(&me, entry).await;
            }
            self.tell(&me).await;
            drop(me);
            let Some(entry) = next(&changes, &stop).await else { return };
            entries = vec![entry];
            // Many definitions come at once; what is served is told once for all that are there.
            while let Some(Next::Event(event, _)) = changes.try_next() {
                entries.push(event.entry.clone());
            }
        }
    }

    /// Says what is served, and then which definitions are: whoever reads that one is established may use it.
    async fn tell(&mut self, server: &Arc<Server>) {
        if std::mem::take(&mut self.changed) {
            server.republish();
        }
        for (name, taken) in std::mem::take(&mut self.unwritten) {
            match self.write_status(server, &name, &taken).await {
                Ok(()) => {}
                Err(e) if e.is("NotFound") => {}
                Err(e) => tracing::error!(name, error = %e.message, "definition could not be established"),
            }
        }
    }

    fn note(&mut self, crd: &CustomResourceDefinition) {
        let before = self.known.get(crd.metadata.name());
        let known = Known {
            uid: crd.metadata.uid().to_owned(),
            group: crd.spec.group.clone(),
            plural: crd.spec.names.plural.clone(),
            names: crd.status.as_ref().and_then(|s| s.accepted_names.clone()).unwrap_or_default(),
            accepted: holds(crd, "NamesAccepted"),
            terminating: before.is_some_and(|k| k.terminating),
            served: before.and_then(|k| k.served.clone()),
        };
        self.known.insert(crd.metadata.name().to_owned(), known);
    }

    async fn take(&mut self, server: &Arc<Server>, entry: &Entry) {
        if entry.event() == EventType::Deleted {
            self.forget(server, entry.name()).await;
            return;
        }
        let Some(crd) = decode(entry) else { return };
        self.note(&crd);
        if crd.metadata.deletion_timestamp.is_some() {
            self.terminate(server, &crd).await;
        } else {
            self.establish(server, &crd).await;
        }
    }

    async fn terminate(&mut self, server: &Arc<Server>, crd: &Arc<CustomResourceDefinition>) {
        if let Err(e) = self.serve(&server.registry, crd).await {
            tracing::error!(name = crd.metadata.name(), error = %e.message, "custom resource is not served");
        }
        let ours = crd.metadata.finalizers.iter().flatten().any(|f| f == CLEANUP);
        if ours && self.finalizing.insert(crd.metadata.uid().to_owned()) {
            tokio::spawn(finalize(Arc::downgrade(server), crd.clone(), server.stopping().clone()));
        }
    }

    /// Accepts the names of a definition and serves it.
    async fn establish(&mut self, server: &Arc<Server>, present: &CustomResourceDefinition) {
        let name = present.metadata.name();
        let taken = self.taken(&present.spec.group, name);
        let mut wanted = CustomResourceDefinition::clone(present);
        bring_up(&mut wanted, &taken, &server.registry.clock.time());
        self.note(&wanted);
        if let Err(e) = self.serve(&server.registry, &wanted).await {
            tracing::error!(name, error = %e.message, "definition could not be served");
            return;
        }
        if wanted.status != present.status {
            self.unwritten.push((name.to_owned(), taken));
        }
    }

    async fn write_status(&mut self, server: &Arc<Server>, name: &str, taken: &Taken) -> Result<(), ApiError> {
        let now = server.registry.clock.time();
        let mut change = |object: &mut dyn Object| {
            let crd = downcast_mut::<CustomResourceDefinition>(object);
            let Some(crd) = crd.filter(|c| c.metadata.deletion_timestamp.is_none()) else { return Ok(()) };
            bring_up(crd, taken, &now);
            Ok(())
        };
        let stored = server.registry.update_as_server(definitions(), "", name, false, &mut change).await?;
        if let Some(crd) = downcast::<CustomResourceDefinition>(stored.as_ref()) {
            self.note(crd);
        }
        Ok(())
    }

    /// The names that others of the group have.
    fn taken(&self, group: &str, except: &str) -> Taken {
        let mut taken = Taken::default();
        for (_, known) in self.known.iter().filter(|(name, k)| k.group == group && *name != except) {
            let names = &known.names;
            let resources = [Some(&names.plural), names.singular.as_ref()].into_iter().flatten();
            taken.resources.extend(resources.chain(names.short_names.iter().flatten()).cloned());
            taken.kinds.extend([Some(&names.kind), names.list_kind.as_ref()].into_iter().flatten().cloned());
        }
        taken.resources.remove("");
        taken.kinds.remove("");
        taken
    }

    /// Serves a definition as it is now.
    async fn serve(&mut self, registry: &Registry, crd: &CustomResourceDefinition) -> Result<(), ApiError> {
        let Some(known) = self.known.get_mut(crd.metadata.name()) else { return Ok(()) };
        let (group, plural) = (&crd.spec.group, &crd.spec.names.plural);
        let built_in = registry.built_in().iter().any(|r| r.info().group == group && r.info().plural == plural);
        if built_in || !(holds(crd, "NamesAccepted") || holds(crd, "Established")) {
            return Ok(());
        }
        let facts = facts(crd);
        if known.served.as_ref() != Some(&facts) {
            registry.serve(group, plural, resources(crd)).await.map_err(ApiError::internal)?;
            known.served = Some(facts);
            self.changed = true;
        } else if is_terminating(crd) && !known.terminating {
            // The same resources, of which no more objects are made. Watches go on, and see the objects go.
            drop(resources(crd));
            self.changed = true;
        }
        known.terminating = is_terminating(crd);
        Ok(())
    }

    async fn forget(&mut self, server: &Arc<Server>, name: &str) {
        let Some(known) = self.known.remove(name) else { return };
        self.finalizing.remove(&known.uid);
        if known.served.is_some() {
            if let Err(e) = server.registry.serve(&known.group, &known.plural, Vec::new()).await {
                tracing::error!(name, error = %e, "custom resource is still served");
            }
            self.changed = true;
        }
        // Names may have become free.
        let same_group = self.known.iter().filter(|(_, k)| k.group == known.group && !k.accepted);
        let waiting: Vec<String> = same_group.map(|(name, _)| name.clone()).collect();
        let Ok(cache) = server.registry.cache(definitions()) else { return };
        for name in waiting {
            if let Some(crd) = cache.get(&name).and_then(|e| decode(&e)) {
                self.establish(server, &crd).await;
            }
        }
    }
}

async fn next(changes: &Subscription, stop: &CancellationToken) -> Option<Arc<Entry>> {
    // In order: an unordered choice draws lots, and two runs from one seed would end differently.
    let next = tokio::select! {
        biased;
        () = stop.cancelled() => return None,
        next = poll_fn(|cx| changes.poll_next(cx)) => next,
    };
    match next {
        Next::Event(event, _) => Some(event.entry.clone()),
        Next::Closed(_) => None,
    }
}

/// Deletes the instances of a definition, waits until they are gone, and lets the definition go.
async fn finalize(server: Weak<Server>, crd: Arc<CustomResourceDefinition>, stop: CancellationToken) {
    let name = crd.metadata.name();
    while !stop.is_cancelled() {
        let e = match take_down(&server, &crd, &stop).await {
            Ok(()) => return,
            Err(e) if e.is("NotFound") => return,
            Err(e) => e,
        };
        tracing::error!(name, error = %e.message, "instances could not be deleted");
        let message = format!("could not issue all deletes: {}", e.message);
        let Some(me) = server.upgrade() else { return };
        if let Err(e) = terminating(&me, &crd, "True", "InstanceDeletionFailed", &message, false).await {
            tracing::error!(name, error = %e.message, "status could not be written");
        }
        drop(me);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Writes the Terminating condition, and takes the finalizer off where `done`.
async fn terminating(
    server: &Arc<Server>,
    crd: &CustomResourceDefinition,
    status: &str,
    reason: &str,
    message: &str,
    done: bool,
) -> Result<(), ApiError> {
    let now = server.registry.clock.time();
    let mut change = |object: &mut dyn Object| {
        let Some(present) = downcast_mut::<CustomResourceDefinition>(object) else { return Ok(()) };
        // Another one of the same name is not ours.
        if present.metadata.uid != crd.metadata.uid {
            return Err(ApiError::not_found("apiextensions.k8s.io", "customresourcedefinitions", crd.metadata.name()));
        }
        set_condition(present, "Terminating", status, reason, message, &now);
        if done {
            let left = present.metadata.finalizers.take().unwrap_or_default();
            let left: Vec<String> = left.into_iter().filter(|f| f != CLEANUP).collect();
            present.metadata.finalizers = (!left.is_empty()).then_some(left);
        }
        Ok(())
    };
    server.registry.update_as_server(definitions(), "", crd.metadata.name(), false, &mut change).await.map(drop)
}

async fn take_down(
    server: &Weak<Server>,
    crd: &CustomResourceDefinition,
    stop: &CancellationToken,
) -> Result<(), ApiError> {
    let gone = || ApiError::unavailable("the server is stopping");
    let me = server.upgrade().ok_or_else(gone)?;
    let message = "CustomResource deletion is in progress";
    terminating(&me, crd, "True", "InstanceDeletionInProgress", message, false).await?;
    if !holds(crd, "Established") {
        let message = "resource was never established";
        return terminating(&me, crd, "False", "NeverEstablished", message, true).await;
    }
    let storage = crd.spec.versions.iter().find(|v| v.storage).map(|v| v.name.as_str()).unwrap_or_default();
    let cache = me.registry.cache_of(&crd.spec.group, storage, &crd.spec.names.plural);
    if let Some(cache) = cache {
        let (snapshot, changes) =
            cache.subscribe(Selection::default(), None).map_err(|e| ApiError::internal(format!("{e:?}")))?;
        let instances: Vec<(String, String)> = snapshot
            .iter()
            .flat_map(|s| s.iter_after("", ""))
            .map(|e| (e.namespace().to_owned(), e.name().to_owned()))
            .collect();
        for (namespace, name) in instances {
            match me.registry.delete(cache.resource, &namespace, &name, &DeleteOptions::default(), false, None).await {
                Ok(_) => {}
                Err(e) if e.is("NotFound") => {}
                Err(e) => return Err(e),
            }
        }
        me.registry.caught_up().await?;
        drop(me);
        // Some may have finalizers that others have to take off.
        while !cache.snapshot().is_empty() {
            next(&changes, stop).await.ok_or_else(gone)?;
        }
    }
    let me = server.upgrade().ok_or_else(gone)?;
    terminating(&me, crd, "False", "InstanceDeletionCompleted", "removed all instances", true).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(plural: &str, kind: &str, short: &[&str]) -> CustomResourceDefinitionNames {
        CustomResourceDefinitionNames {
            plural: plural.into(),
            singular: Some(kind.to_lowercase()),
            kind: kind.into(),
            list_kind: Some(format!("{kind}List")),
            short_names: Some(short.iter().map(|s| (*s).to_owned()).collect()),
            ..Default::default()
        }
    }

    #[test]
    fn names_in_use_are_not_accepted() {
        let taken = Taken {
            resources: HashSet::from(["foos".to_owned(), "foo".to_owned(), "f".to_owned()]),
            kinds: HashSet::from(["Foo".to_owned()]),
        };
        let (accepted, conflict) = accept_names(&names("bars", "Bar", &["b"]), &Default::default(), &taken);
        assert_eq!((accepted.plural.as_str(), conflict), ("bars", None));
        let (accepted, conflict) = accept_names(&names("bars", "Foo", &["f"]), &Default::default(), &taken);
        assert_eq!(accepted.kind, "");
        assert_eq!(accepted.plural, "bars");
        assert_eq!(conflict, Some(("KindConflict", "\"Foo\" is already in use".to_owned())));
        // What is ours already is no conflict.
        let own = names("foos", "Foo", &["f"]);
        assert_eq!(accept_names(&own, &own, &taken).1, None);
    }

    #[test]
    fn a_definition_becomes_established_once() {
        let now = Time(gantry_api::k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let mut crd = CustomResourceDefinition::default();
        crd.spec.group = "example.com".into();
        crd.spec.names = names("foos", "Foo", &[]);
        bring_up(&mut crd, &Taken::default(), &now);
        assert!(holds(&crd, "NamesAccepted") && holds(&crd, "Established"));
        let before = crd.clone();
        bring_up(&mut crd, &Taken::default(), &now);
        assert_eq!(crd, before);
    }
}
