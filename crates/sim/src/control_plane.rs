//! API server, controllers and scheduler, wired as the binary wires them, in one life or in several.

use crate::faults::{Dice, Faults, Faulty};
use crate::hollow::{HollowNode, HollowSpec, Pace};
use crate::keys::{self, Keys};
use crate::log::EventLog;
use crate::measured::Measured;
use crate::mortal::Mortal;
use async_trait::async_trait;
use bytes::Bytes;
use gantry::in_process::{self, Connect};
use gantry::wire::{self, Components};
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Kind;
use gantry_client::transport::{Body, Transport, TransportError};
use gantry_client::{Api, Client};
use gantry_server::authn::UserInfo;
use gantry_server::{Server, ServerConfig};
use gantry_store::{MemoryStore, Store, StoreError};
use http::{Request, Response};
use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The instant at which simulations begin that do not say when: 2027-01-15T08:00:00Z.
pub const BEGIN: Timestamp = Timestamp::constant(1_800_000_000, 0);

/// Why a control plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Keys could not be made.
    #[error("cannot make the cluster's keys: {0}")]
    Keys(#[from] rcgen::Error),
    /// The event log could not be begun.
    #[error("cannot watch the store: {0}")]
    Store(#[from] StoreError),
    /// The API server did not start.
    #[error(transparent)]
    Server(#[from] gantry_server::StartError),
}

/// What is to happen to a control plane. The default is nothing.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides everything that chance decides.
    pub seed: u64,
    /// The wall clock's first instant.
    pub begin: Timestamp,
    /// What goes wrong between components (controllers, scheduler, nodes) and the API server.
    pub faults: Faults,
    /// The whole control plane dies after so many writes, and after so many of its next life, and so on; its last life
    /// lasts.
    pub deaths: Vec<u64>,
    /// How long nothing is there after a death.
    pub downtime: Duration,
}

impl Plan {
    /// Nothing happens.
    #[must_use]
    pub fn calm(seed: u64) -> Self {
        Self { seed, begin: BEGIN, faults: Faults::default(), deaths: Vec::new(), downtime: Duration::from_secs(2) }
    }
}

/// The server of the present life.
#[derive(Default)]
struct Present {
    /// Number of the life, from 1.
    life: u64,
    server: Option<Arc<Server>>,
    /// Why the last life could not begin.
    failure: Option<StartError>,
}

/// Where the server of the present life is found.
#[derive(Default)]
struct Door {
    present: Mutex<Present>,
    changed: Notify,
}

impl Door {
    fn server(&self, life: Option<u64>) -> Option<(u64, Arc<Server>)> {
        let present = self.present.lock();
        let right = life.is_none_or(|l| l == present.life);
        present.server.clone().filter(|_| right).map(|s| (present.life, s))
    }
}

/// Requests of one identity to the server of the present life, or of one life only.
struct ThroughDoor {
    door: Arc<Door>,
    life: Option<u64>,
    user: UserInfo,
}

#[async_trait]
impl Transport for ThroughDoor {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let context = format!("{} {}", request.method(), request.uri());
        let refused = |message: &str| TransportError { context: context.clone(), message: message.into() };
        let Some((life, server)) = self.door.server(self.life) else { return Err(refused("connection refused")) };
        let client = in_process::client(&server, self.user.clone(), "");
        drop(server);
        let answer = client.transport().send(request).await;
        // The dead answer nobody, whatever they have done before.
        match self.door.server(Some(life)) {
            Some(_) => answer,
            None => Err(refused("connection reset by peer")),
        }
    }
}

/// A running control plane. Everything in it ends with [`ControlPlane::stop`] or with its runtime.
pub struct ControlPlane {
    /// Everything that was ever written.
    pub log: EventLog,
    /// Virtual time.
    pub clock: Clock,
    /// The one source of chance.
    pub entropy: Entropy,
    dice: Dice,
    door: Arc<Door>,
    cancel: CancellationToken,
}

/// What every life begins with.
struct Cradle {
    store: Arc<dyn Store>,
    keys: Keys,
    clock: Clock,
    entropy: Entropy,
    dice: Dice,
    door: Arc<Door>,
    log: EventLog,
    cancel: CancellationToken,
}

impl Cradle {
    /// One life, from its start to the last of its writes or to the end of everything.
    async fn live(&self, writes: Option<u64>) {
        let store = Arc::new(Mortal::new(self.store.clone(), writes));
        let death = store.death().clone();
        let life = {
            let mut present = self.door.present.lock();
            present.life += 1;
            present.life
        };
        let cancel = self.cancel.child_token();
        let start = Server::new(server_config(&self.keys), store, self.clock, self.entropy.clone());
        let started = tokio::select! {
            biased;
            () = death.cancelled() => None,
            started = start => Some(started),
        };
        match started {
            Some(Ok(server)) => {
                self.door.present.lock().server = Some(server.clone());
                self.door.changed.notify_waiters();
                let components = Components {
                    ca_cert_pem: self.keys.ca.certificate_pem.clone(),
                    ca_key_pem: self.keys.ca.key_pem.clone(),
                    clock: self.clock,
                    entropy: self.entropy.clone(),
                    signing_duration: None,
                    node_grace_period: None,
                    autoscaling_period: None,
                    cluster_dns: Vec::new(),
                    legacy_token_period: None,
                    node_ranges: None,
                    scheduling: Default::default(),
                };
                tokio::spawn(wire::run(server, self.connect(life), components, cancel.clone()));
            }
            // It died before it could answer.
            None => {}
            Some(Err(_)) if death.is_cancelled() => {}
            Some(Err(e)) => {
                self.door.present.lock().failure = Some(e.into());
                self.door.changed.notify_waiters();
                return;
            }
        }
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => {}
            () = death.cancelled() => {}
        }
        let last = self.door.present.lock().server.take();
        cancel.cancel();
        if let Some(server) = last {
            server.stop();
        }
    }

    fn connect(&self, life: u64) -> Connect {
        let (door, dice, log, clock) = (self.door.clone(), self.dice.clone(), self.log.clone(), self.clock);
        Arc::new(move |user, name| {
            let through = Arc::new(ThroughDoor { door: door.clone(), life: Some(life), user });
            let measured = Arc::new(Measured::new(through, log.clone(), clock));
            Client::new(Arc::new(Faulty::new(measured, dice.clone())), name)
        })
    }
}

impl ControlPlane {
    /// Starts everything from `seed`, and nothing goes wrong.
    ///
    /// # Errors
    /// Where a part does not start.
    pub async fn start(seed: u64) -> Result<Self, StartError> {
        Self::start_with(Plan::calm(seed)).await
    }

    /// Starts everything, and lets happen what is planned.
    ///
    /// # Errors
    /// Where a part does not start.
    pub async fn start_with(plan: Plan) -> Result<Self, StartError> {
        let clock = Clock::starting_at(plan.begin);
        let entropy = Entropy::seeded(plan.seed);
        let keys = keys::draw(&entropy)?;
        let cancel = CancellationToken::new();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let log = EventLog::follow(&*store).await?;
        let dice = Dice::new(plan.faults, plan.seed);
        let door = Arc::new(Door::default());
        let running = Self { log, clock, entropy, dice, door, cancel };
        let cradle = Cradle {
            store,
            keys,
            clock,
            entropy: running.entropy.clone(),
            dice: running.dice.clone(),
            door: running.door.clone(),
            log: running.log.clone(),
            cancel: running.cancel.clone(),
        };
        tokio::spawn(async move {
            for writes in plan.deaths.iter().copied().map(Some).chain([None]) {
                cradle.live(writes).await;
                if cradle.cancel.is_cancelled() || cradle.door.present.lock().failure.is_some() {
                    return;
                }
                tokio::time::sleep(plan.downtime).await;
            }
        });
        loop {
            let changed = running.door.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut present = running.door.present.lock();
                if let Some(failure) = present.failure.take() {
                    return Err(failure);
                }
                if present.server.is_some() {
                    break;
                }
            }
            changed.await;
        }
        Ok(running)
    }

    /// How many lives there have been.
    #[must_use]
    pub fn lives(&self) -> u64 {
        self.door.present.lock().life
    }

    /// The server of the present life; None while there is none.
    #[must_use]
    pub fn server(&self) -> Option<Arc<Server>> {
        self.door.server(None).map(|(_, server)| server)
    }

    fn transport(&self, user: &str, groups: &[&str]) -> Arc<dyn Transport> {
        let user = UserInfo::new(user, groups);
        Arc::new(ThroughDoor { door: self.door.clone(), life: None, user })
    }

    /// A client under any identity, to whom nothing happens but that nobody may be there to answer.
    #[must_use]
    pub fn client(&self, user: &str, groups: &[&str], name: &str) -> Client {
        Client::new(self.transport(user, groups), name)
    }

    /// The same to whom everything happens that is planned for components.
    #[must_use]
    pub fn component(&self, user: &str, groups: &[&str], name: &str) -> Client {
        Client::new(Arc::new(Faulty::new(self.transport(user, groups), self.dice.clone())), name)
    }

    /// A client that may do anything.
    #[must_use]
    pub fn admin(&self) -> Client {
        self.client("kubernetes-admin", &["system:masters"], "simulation")
    }

    /// The administrator's access to a kind, in a namespace or in all where it is empty.
    #[must_use]
    pub fn api<K: Kind>(&self, namespace: &str) -> Api<K> {
        if namespace.is_empty() { Api::all(self.admin()) } else { Api::namespaced(self.admin(), namespace) }
    }

    /// Starts a node that runs pods in name only, under its own identity. It outlives the lives of the control plane.
    #[must_use]
    pub fn node(&self, spec: HollowSpec, pace: Pace) -> HollowNode {
        let client = self.component(&format!("system:node:{}", spec.name), &["system:nodes"], "kubelet");
        HollowNode::start(spec, pace, client, self.clock, self.entropy.clone(), self.cancel.child_token())
    }

    /// Ends controllers, scheduler, nodes and server.
    pub fn stop(&self) {
        self.cancel.cancel();
        if let Some(server) = self.server() {
            server.stop();
        }
    }
}

fn server_config(keys: &Keys) -> ServerConfig {
    let (ca, serving) = (&keys.ca.certificate_pem, &keys.serving);
    ServerConfig {
        advertise: Some((IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1)), 6443)),
        component_roles: wire::component_roles(),
        ..ServerConfig::in_process(ca, &serving.certificate_pem, &serving.key_pem, &keys.service_account_key_pem)
    }
}
