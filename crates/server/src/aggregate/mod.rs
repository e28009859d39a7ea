//! Aggregation: versions of groups that other API servers serve, told by `APIService` objects
//! (`k8s.io/kube-aggregator`).
//!
//! [`registrations`] keeps an object for every version this server has itself. For each one that names a Service,
//! [`Aggregator`] holds a [`Remote`], and a task of its own asks whether that server answers ([`availability`]) and what it
//! serves ([`download`]), so that a broken one never holds up the others. [`proxy`] passes requests on.

mod availability;
mod download;
mod proxy;
pub mod registrations;

pub use proxy::{PeerAddress, pass_on};

use crate::cluster::resource_of;
use crate::config::ServerConfig;
use crate::discovery::Foreign;
use crate::outbound::{Outbound, Trust};
use crate::server::Server;
use crate::watch_cache::{Entry, EventType, Next, Selection, Subscription};
use arc_swap::{ArcSwap, ArcSwapOption};
use download::Found;
use gantry_api::k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use gantry_schema::openapi;
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The type of the one condition an APIService has.
const AVAILABLE: &str = "Available";

/// A version of a group that another server serves.
pub struct Remote {
    /// Name of the APIService.
    pub name: String,
    /// Group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    group_priority: i32,
    version_priority: i32,
    namespace: String,
    service: String,
    port: i32,
    /// How to connect, or why that cannot be.
    outbound: Result<Outbound, String>,
    /// The condition of the APIService.
    available: AtomicBool,
    /// What it serves, as last asked; None while it cannot be asked.
    found: ArcSwapOption<Found>,
}

impl Remote {
    /// The remote of an APIService that names a Service.
    fn of(service: &APIService, config: &ServerConfig) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let to = spec.service.as_ref()?;
        let (namespace, name) = (to.namespace.clone()?, to.name.clone()?);
        let trust = Trust {
            ca_pem: spec.ca_bundle.as_ref().map(|b| b.0.clone()).unwrap_or_default(),
            insecure: spec.insecure_skip_tls_verify == Some(true),
            server_name: Some(format!("{name}.{namespace}.svc")),
            client: config.access.proxy_client.clone(),
        };
        Some(Self {
            name: service.metadata.name.clone().unwrap_or_default(),
            group: spec.group.clone().unwrap_or_default(),
            version: spec.version.clone().unwrap_or_default(),
            group_priority: spec.group_priority_minimum,
            version_priority: spec.version_priority,
            namespace,
            service: name,
            port: to.port.unwrap_or(443),
            outbound: Outbound::new(&trust),
            available: AtomicBool::new(is_available(service)),
            found: ArcSwapOption::empty(),
        })
    }

    /// Where its version begins: `/apis/GROUP/VERSION`.
    fn root(&self) -> String {
        match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }

    fn is_available(&self) -> bool {
        self.available.load(Ordering::Acquire)
    }
}

fn is_available(service: &APIService) -> bool {
    let conditions = service.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == AVAILABLE && c.status == "True")
}

type Table = HashMap<(String, String), Arc<Remote>>;

/// The versions that other servers serve.
#[derive(Default)]
pub struct Aggregator {
    table: ArcSwap<Table>,
    /// Set off when the versions this server has itself may have changed.
    changed: Notify,
}

impl Aggregator {
    /// The server of a version, where it is another one.
    #[must_use]
    pub fn find(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let table = self.table.load();
        if table.is_empty() {
            return None;
        }
        table.get(&(group.to_owned(), version.to_owned())).cloned()
    }

    /// The server that a request is for, by its path: below `/apis/GROUP/VERSION`, or that path itself.
    #[must_use]
    pub fn route(&self, path: &str) -> Option<Arc<Remote>> {
        if self.table.load().is_empty() {
            return None;
        }
        let mut segments = path.trim_start_matches('/').split('/');
        match segments.next()? {
            "api" => self.find("", segments.next()?),
            "apis" => self.find(segments.next()?, segments.next()?),
            _ => None,
        }
    }

    /// What discovery is to say of these versions.
    #[must_use]
    pub fn discovered(&self) -> Vec<Foreign> {
        let table = self.table.load();
        let mut out: Vec<Foreign> = table
            .values()
            .map(|remote| {
                let found = remote.found.load_full();
                Foreign {
                    group: remote.group.clone(),
                    version: remote.version.clone(),
                    group_priority: remote.group_priority,
                    version_priority: remote.version_priority,
                    current: found.is_some(),
                    resources: found.map(|f| f.resources.clone()).unwrap_or_default(),
                }
            })
            .collect();
        out.sort_by(|a, b| (&a.group, &a.version).cmp(&(&b.group, &b.version)));
        out
    }

    /// What the OpenAPI documents are to say of these versions.
    #[must_use]
    pub fn documented(&self) -> openapi::Foreign {
        let table = self.table.load();
        let mut all: Vec<&Arc<Remote>> = table.values().collect();
        // Where two documents define the same name, that of the more important group keeps it.
        all.sort_by_key(|r| (std::cmp::Reverse(r.group_priority), r.name.clone()));
        let mut out = openapi::Foreign::default();
        for found in all.iter().filter_map(|r| r.found.load_full()) {
            out.v2.extend(found.v2.clone());
            out.v3.extend(found.v3.clone());
        }
        out
    }

    /// Tells the registrations that the versions this server has itself may have changed.
    pub fn versions_changed(&self) {
        self.changed.notify_one();
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = Table::clone(&self.table.load());
        change(&mut table);
        self.table.store(Arc::new(table));
    }
}

/// A remote that is asked regularly.
struct Kept {
    remote: Arc<Remote>,
    /// What of the object decides where and how the remote is reached.
    facts: String,
    end: CancellationToken,
}

/// Follows the APIServices.
struct Controller {
    kept: BTreeMap<String, Kept>,
}

fn decode(entry: &Entry) -> Option<APIService> {
    match serde_json::from_slice(&entry.json()) {
        Ok(service) => Some(service),
        Err(e) => {
            tracing::error!(name = entry.name(), error = %e, "APIService cannot be decoded");
            None
        }
    }
}

/// Knows the remotes that are stored, and follows changes until the server stops. Returns once requests find their way.
pub fn start(server: &Arc<Server>) {
    let subscribed = server.registry.cache(resource_of::<APIService>()).ok().and_then(|cache| {
        let (snapshot, changes) = cache.subscribe(Selection::default(), None).ok()?;
        Some((snapshot?, changes))
    });
    let Some((snapshot, changes)) = subscribed else { return };
    let mut controller = Controller { kept: BTreeMap::new() };
    for entry in snapshot.iter_after("", "") {
        controller.take(server, entry);
    }
    tokio::spawn(run(controller, changes, Arc::downgrade(server), server.stopping().clone()));
}

enum Step {
    Entry(Arc<Entry>),
    Versions,
    End,
}

async fn run(mut controller: Controller, changes: Subscription, server: Weak<Server>, stop: CancellationToken) {
    let Some(aggregator) = server.upgrade().map(|s| s.aggregator.clone()) else { return };
    loop {
        // In order: an unordered choice draws lots, and two runs from one seed would end differently.
        let step = tokio::select! {
            biased;
            () = stop.cancelled() => Step::End,
            () = aggregator.changed.notified() => Step::Versions,
            next = poll_fn(|cx| changes.poll_next(cx)) => match next {
                Next::Event(event, _) => Step::Entry(event.entry.clone()),
                Next::Closed(_) => Step::End,
            },
        };
        let Some(server) = server.upgrade() else { break };
        match step {
            Step::End => break,
            Step::Versions => registrations::keep(&server, None).await,
            Step::Entry(entry) => {
                let name = entry.name().to_owned();
                controller.take(&server, &entry);
                registrations::keep(&server, Some(&name)).await;
                if entry.event() != EventType::Deleted && !controller.kept.contains_key(&name) {
                    availability::local(&server, &name).await;
                }
            }
        }
    }
    for kept in controller.kept.values() {
        kept.end.cancel();
    }
}

impl Controller {
    fn take(&mut self, server: &Arc<Server>, entry: &Entry) {
        let name = entry.name().to_owned();
        let service = if entry.event() == EventType::Deleted { None } else { decode(entry) };
        let service = service.filter(|s| s.spec.as_ref().is_some_and(|s| s.service.is_some()));
        let Some(service) = service else {
            if let Some(gone) = self.kept.remove(&name) {
                gone.end.cancel();
                let key = (gone.remote.group.clone(), gone.remote.version.clone());
                server.aggregator.change(|table| drop(table.remove(&key)));
                server.republish();
            }
            return;
        };
        let facts = serde_json::json!([service.metadata.uid, service.spec]).to_string();
        if let Some(kept) = self.kept.get(&name).filter(|k| k.facts == facts) {
            kept.remote.available.store(is_available(&service), Ordering::Release);
            return;
        }
        let Some(remote) = Remote::of(&service, &server.config) else { return };
        let remote = Arc::new(remote);
        let end = server.stopping().child_token();
        let key = (remote.group.clone(), remote.version.clone());
        let old = self.kept.insert(name, Kept { remote: remote.clone(), facts, end: end.clone() });
        if let Some(old) = old {
            old.end.cancel();
        }
        server.aggregator.change(|table| drop(table.insert(key, remote.clone())));
        server.republish();
        tokio::spawn(availability::keep(Arc::downgrade(server), remote, end));
    }
}
