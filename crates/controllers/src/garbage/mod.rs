//! Deletes what is owned only by what is gone, and carries out foreground deletion and orphaning.
//!
//! A graph of owners is kept from watches of the metadata of every kind that can be listed and deleted. The graph only
//! says where to look: before anything is changed, the object and its owners are read from the server.

mod decide;
mod graph;

pub use decide::{Owner, Verdict, drop_finalizer, keep_owners, unblocked, verdict};
pub use graph::{Graph, Identity, Node};

use crate::config::Setup;
use crate::discovery::discover;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::OwnerReference;
use gantry_api::meta::object::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN, Meta};
use gantry_client::{DeleteParams, Error as ClientError, MetadataApi, PartialObject, Patch, ResourceRef};
use gantry_reconcile::backoff::Backoff;
use gantry_reconcile::{Change, Controller, Error, EventRecorder, EventType, Informer, Outcome, Queue, Synced, runner};
use k8s_openapi::api::core::v1::ObjectReference;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

const WORKERS: usize = 20;
/// Owners of an unknown kind lead to a new discovery, but not more often than this.
const REDISCOVER: Duration = Duration::from_secs(30);
/// How long changes of what is served settle before it is discovered anew: many definitions may come at once.
const SETTLE: Duration = Duration::from_millis(500);
/// One kind that cannot be listed must not hold up the others for longer than this.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

/// What the controller may do.
pub const RULES: &[Rule] = &[Rule::new(&["*"], &["*"], &["delete", "get", "list", "patch", "update", "watch"]), EVENTS];

/// Kinds that own nothing, are owned by nothing that matters, and change all the time.
fn is_ignored(r: &ResourceRef) -> bool {
    r.plural == "events" && (r.group.is_empty() || r.group == "events.k8s.io")
}

/// What objects of these kinds are decides which kinds there are.
fn defines_kinds(r: &ResourceRef) -> bool {
    (r.group.as_str(), r.plural.as_str()) == ("apiextensions.k8s.io", "customresourcedefinitions")
        || (r.group.as_str(), r.plural.as_str()) == ("apiregistration.k8s.io", "apiservices")
}

struct Monitors {
    /// By group and kind.
    resources: BTreeMap<(String, String), ResourceRef>,
    informers: Vec<Informer<PartialObject>>,
    /// Resources and versions whose informers are listened to.
    registered: BTreeSet<(String, String)>,
    discovered: Option<Instant>,
}

struct Garbage {
    graph: Arc<Mutex<Graph>>,
    monitors: Mutex<Monitors>,
    /// Told when what is served may have changed.
    kinds_changed: Arc<Notify>,
    queue: Queue,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let (cancel, queue) = (setup.cancel.clone(), Queue::new(setup.name));
    let recorder = setup.recorder("garbage-collector-controller");
    let monitors = Mutex::new(Monitors {
        resources: BTreeMap::new(),
        informers: Vec::new(),
        registered: BTreeSet::new(),
        discovered: None,
    });
    let (graph, kinds_changed) = (Arc::default(), Arc::default());
    let garbage = Arc::new(Garbage { graph, monitors, kinds_changed, queue: queue.clone(), setup, recorder });
    tokio::select! {
            biased;
        () = cancel.cancelled() => return,
        () = garbage.begin() => {}
    }
    let followed = garbage.clone();
    tokio::select! {
        biased;
        () = runner::run(garbage, queue, WORKERS, cancel) => {}
        () = followed.follow_kinds() => {}
    }
}

fn group_of(api_version: &str) -> &str {
    gantry_api::meta::object::split_api_version(api_version).0
}

impl Garbage {
    /// Discovers what there is and waits until all of it is cached.
    async fn begin(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        while let Err(e) = self.rediscover().await {
            warn!(error = %e, "cannot discover resources");
            tokio::time::sleep(backoff.next_delay()).await;
        }
        let all = self.monitors.lock().informers.clone();
        let synced = async {
            for informer in all {
                informer.synced().await;
            }
        };
        if tokio::time::timeout(SYNC_TIMEOUT, synced).await.is_err() {
            // Safe, as everything is read from the server before it is touched; what is not seen is not collected yet.
            warn!("not every kind could be listed in time, starting without");
        }
    }

    /// Discovers anew whenever what is served may have changed; never ends.
    async fn follow_kinds(&self) {
        loop {
            self.kinds_changed.notified().await;
            tokio::time::sleep(SETTLE).await;
            if let Err(e) = self.rediscover().await {
                warn!(error = %e, "cannot discover resources");
                tokio::time::sleep(REDISCOVER).await;
                self.kinds_changed.notify_one();
            }
        }
    }

    /// Begins to watch kinds that are new, and forgets those that are gone.
    async fn rediscover(&self) -> Result<(), Error> {
        let found = discover(&self.setup.client).await.map_err(|e| Error::api("discover resources", e))?;
        for (group, e) in &found.failures {
            warn!(group = %group, error = %e, "cannot discover group");
        }
        let keys: BTreeSet<_> =
            found.resources.iter().map(|d| (d.resource.group.clone(), d.resource.kind.clone())).collect();
        if found.failures.is_empty() {
            self.monitors.lock().resources.retain(|key, _| keys.contains(key));
        }
        for d in found.resources {
            let key = (d.resource.group.clone(), d.resource.kind.clone());
            let watched = d.answers(&["delete", "list", "watch"]) && !is_ignored(&d.resource);
            if !watched || self.monitors.lock().resources.insert(key, d.resource.clone()).as_ref() == Some(&d.resource)
            {
                continue;
            }
            if !self.monitors.lock().registered.insert((d.resource.qualified(), d.resource.version.clone())) {
                // A kind that was gone is there again; its informer has never stopped.
                continue;
            }
            let informer = self.setup.informers.metadata(&d.resource);
            self.register(&informer, &d.resource);
            self.monitors.lock().informers.push(informer);
        }
        self.monitors.lock().discovered = Some(Instant::now());
        Ok(())
    }

    fn register(&self, informer: &Informer<PartialObject>, resource: &ResourceRef) {
        let (graph, queue) = (self.graph.clone(), self.queue.clone());
        let (api_version, kind) = (resource.api_version(), resource.kind.clone());
        let kinds_changed = defines_kinds(resource).then(|| self.kinds_changed.clone());
        informer.on_change(move |change| {
            if let Some(changed) = &kinds_changed {
                changed.notify_one();
            }
            let meta = &change.object().metadata;
            let mut graph = graph.lock();
            let mut look = BTreeSet::new();
            if let Some(old) = change.old()
                && old.metadata.uid != meta.uid
            {
                look.extend(graph.remove(old.metadata.uid()));
            }
            match change {
                Change::Deleted(_) => look.extend(graph.remove(meta.uid())),
                _ => look.extend(graph.observe(&api_version, &kind, meta)),
            }
            for uid in look {
                queue.add(uid);
            }
        });
    }

    /// Access to objects of a kind; None where no such kind is served.
    async fn api(&self, api_version: &str, kind: &str) -> Result<Option<MetadataApi>, Error> {
        let key = (group_of(api_version).to_owned(), kind.to_owned());
        for attempt in 0..2 {
            let (known, stale) = {
                let m = self.monitors.lock();
                (m.resources.get(&key).cloned(), m.discovered.is_none_or(|t| t.elapsed() > REDISCOVER))
            };
            if let Some(r) = known {
                return Ok(Some(MetadataApi::new(self.setup.client.clone(), r)));
            }
            if attempt == 0 && stale {
                self.rediscover().await?;
            } else {
                break;
            }
        }
        Ok(None)
    }

    fn enqueue(&self, uids: impl IntoIterator<Item = String>) {
        uids.into_iter().for_each(|u| self.queue.add(u));
    }

    fn forget(&self, uid: &str) {
        let look = self.graph.lock().remove(uid);
        self.enqueue(look);
    }

    /// What became of an owner. None where it cannot be told because a cluster-scoped object names a namespaced owner.
    async fn classify(&self, item: &Identity, owner: &OwnerReference) -> Result<Option<Owner>, Error> {
        if self.graph.lock().is_absent(&owner.uid) {
            return Ok(Some(Owner::Dangling));
        }
        let Some(api) = self.api(&owner.api_version, &owner.kind).await? else {
            return Err(Error::Other(format!(
                "owner of {item} is of unknown kind {}/{}",
                owner.api_version, owner.kind
            )));
        };
        if item.namespace.is_empty() && api.resource().namespaced {
            return Ok(None);
        }
        let found = api.get(&item.namespace, &owner.name).await;
        let found = match found {
            Ok(o) => Some(o),
            Err(e) if e.is("NotFound") => None,
            Err(e) => return Err(Error::api(format!("get owner {}/{} of {item}", owner.kind, owner.name), e)),
        };
        let Some(found) = found.filter(|o| o.metadata.uid() == owner.uid) else {
            // Absent in this namespace; the same UID may live in another, which is no owner either.
            let elsewhere = self.graph.lock().get(&owner.uid).is_some_and(|n| {
                n.observed && !n.identity.namespace.is_empty() && n.identity.namespace != item.namespace
            });
            if elsewhere {
                self.report_foreign_owner(item, owner);
            } else {
                self.graph.lock().note_absent(&owner.uid);
            }
            return Ok(Some(Owner::Dangling));
        };
        let waiting = found.metadata.is_deleting()
            && found.metadata.finalizers_or_empty().iter().any(|f| f == FINALIZER_FOREGROUND);
        Ok(Some(if waiting { Owner::Waiting } else { Owner::Solid }))
    }

    fn report_foreign_owner(&self, item: &Identity, owner: &OwnerReference) {
        let about = ObjectReference {
            api_version: Some(item.api_version.clone()),
            kind: Some(item.kind.clone()),
            namespace: Some(item.namespace.clone()).filter(|n| !n.is_empty()),
            name: Some(item.name.clone()),
            ..Default::default()
        };
        let message = format!(
            "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace \"{}\"",
            owner.api_version, owner.kind, item.namespace, owner.name, owner.uid, item.namespace
        );
        self.recorder.record(&about, EventType::Warning, "OwnerRefInvalidNamespace", &message);
    }

    /// Applies a patch; that the object is gone is as good.
    async fn patch(&self, api: &MetadataApi, item: &Identity, body: serde_json::Value) -> Result<(), Error> {
        match api.patch(&item.namespace, &item.name, &Patch::Merge(body)).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => Err(Error::api(format!("patch {item}"), e)),
        }
    }

    /// Lets go of all dependents, then of the object.
    async fn orphan(&self, uid: &str, node: &Node, api: &MetadataApi, live: &PartialObject) -> Result<(), Error> {
        let mut errors = Vec::new();
        for dependent in &node.dependents {
            let Some(identity) = self.graph.lock().get(dependent).map(|n| n.identity.clone()) else { continue };
            let result = self.release(&identity, dependent, uid).await;
            errors.extend(result.err());
        }
        Error::collect(errors)?;
        if let Some(body) = drop_finalizer(&live.metadata, FINALIZER_ORPHAN) {
            self.patch(api, &node.identity, body).await?;
        }
        Ok(())
    }

    async fn release(&self, identity: &Identity, uid: &str, owner: &str) -> Result<(), Error> {
        let Some(api) = self.api(&identity.api_version, &identity.kind).await? else { return Ok(()) };
        let live = match api.get(&identity.namespace, &identity.name).await {
            Ok(o) if o.metadata.uid() == uid => o,
            Ok(_) => return Ok(()),
            Err(e) if e.is("NotFound") => return Ok(()),
            Err(e) => return Err(Error::api(format!("get {identity}"), e)),
        };
        let have = live.metadata.owner_references.clone().unwrap_or_default();
        let rest: Vec<OwnerReference> = have.iter().filter(|o| o.uid != owner).cloned().collect();
        if rest.len() == have.len() {
            return Ok(());
        }
        self.patch(&api, identity, keep_owners(&live.metadata, &rest)).await
    }

    /// Lets go of an object that waits for its dependents once none of them holds it up. They have been told to be
    /// looked at when it began to wait, and whoever is the last of them brings it here again: so that there may be many
    /// of them, none of them is looked at here.
    async fn foreground(&self, uid: &str, node: &Node, api: &MetadataApi, live: &PartialObject) -> Result<(), Error> {
        if self.graph.lock().is_blocked(uid) {
            return Ok(());
        }
        if let Some(body) = drop_finalizer(&live.metadata, FINALIZER_FOREGROUND) {
            self.patch(api, &node.identity, body).await?;
        }
        Ok(())
    }

    async fn judge(&self, uid: &str, node: &Node, api: &MetadataApi, live: &PartialObject) -> Result<(), Error> {
        let item = &node.identity;
        let mut owners = Vec::new();
        for owner in live.metadata.owner_references.iter().flatten() {
            match self.classify(item, owner).await? {
                Some(state) => owners.push((owner.clone(), state)),
                None => {
                    // Cannot be resolved and will not be by trying again.
                    debug!(object = %item, owner = %owner.name, "a cluster-scoped object names a namespaced owner");
                    return Ok(());
                }
            }
        }
        if owners.is_empty() {
            return Ok(());
        }
        let circular = {
            let graph = self.graph.lock();
            node.dependents.iter().any(|d| graph.get(d).is_some_and(|n| n.foreground))
        };
        match verdict(&live.metadata, &owners, node, circular) {
            Verdict::Keep => Ok(()),
            Verdict::DropOwners(rest) => self.patch(api, item, keep_owners(&live.metadata, &rest)).await,
            Verdict::Delete { policy, unblock } => {
                let mut version = live.metadata.resource_version.clone();
                if unblock {
                    let refs: Vec<OwnerReference> = owners.into_iter().map(|(r, _)| r).collect();
                    let body = keep_owners(&live.metadata, &unblocked(&refs));
                    self.patch(api, item, body).await?;
                    version = None;
                }
                info!(object = %item, uid, policy, "deleting an object whose owners are gone or going");
                let params = DeleteParams {
                    propagation_policy: Some(policy.to_owned()),
                    precondition_uid: Some(uid.to_owned()),
                    // An owner added meanwhile must not be overlooked.
                    precondition_resource_version: version,
                    ..Default::default()
                };
                match api.delete(&item.namespace, &item.name, &params).await {
                    Ok(()) => Ok(()),
                    Err(e) if e.is("NotFound") => Ok(()),
                    Err(e) => Err(Error::api(format!("delete {item}"), e)),
                }
            }
        }
    }
}

#[async_trait]
impl Controller for Garbage {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, uid: &str) -> Result<Outcome, Error> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(Outcome::done()) };
        let waits = node.foreground || node.orphaning;
        if node.observed && !waits && (node.deleting || node.owners.is_empty()) {
            return Ok(Outcome::done());
        }
        let item = &node.identity;
        let Some(api) = self.api(&item.api_version, &item.kind).await? else {
            return Err(Error::Other(format!("{item} is of a kind that is not served")));
        };
        if !node.observed && item.namespace.is_empty() && api.resource().namespaced {
            return Ok(Outcome::done());
        }
        let live = match api.get(&item.namespace, &item.name).await {
            Ok(live) if live.metadata.uid() == uid => live,
            Ok(_) => {
                self.forget(uid);
                return Ok(Outcome::done());
            }
            Err(e) if gone(&e) => {
                self.forget(uid);
                return Ok(Outcome::done());
            }
            Err(e) => return Err(Error::api(format!("get {item}"), e)),
        };
        if !node.observed {
            // It exists; its own watch will show it.
            return Ok(Outcome::done());
        }
        if node.orphaning {
            self.orphan(uid, &node, &api, &live).await?;
        } else if node.foreground {
            self.foreground(uid, &node, &api, &live).await?;
        } else {
            self.judge(uid, &node, &api, &live).await?;
        }
        Ok(Outcome::done())
    }
}

fn gone(e: &ClientError) -> bool {
    e.is("NotFound")
}

#[cfg(test)]
mod tests;
