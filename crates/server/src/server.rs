//! The API server put together: registry, plugins, handlers, documents.

use crate::admission::Chain;
use crate::aggregate::{self, Aggregator};
use crate::authn::jwt::Jwt;
use crate::authn::{UserInfo, issuer_discovery};
use crate::authz::{Authorizer, Configured};
use crate::component_status::Components;
use crate::config::ServerConfig;
use crate::debug::Process;
use crate::discovery::Discovery;
use crate::encryption::Encryption;
use crate::flow::{self, Flow};
use crate::http::pipeline::{self, Caller, Incoming};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::registry::hooks::Hook;
use crate::request::Response;
use crate::subresource::kubelet::KubeletClient;
use crate::subresource::{ExplainSlot, Handler, Services};
use crate::watch_cache::Halted;
use arc_swap::ArcSwap;
use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Resource;
use gantry_store::{Store, StoreError};
use http::Request;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error("cannot read the store: {0}")]
    Store(#[from] StoreError),
    /// What was written cannot be read.
    #[error(transparent)]
    Halted(#[from] Halted),
    /// The ServiceAccount key cannot be read.
    #[error("ServiceAccount signing key: {0}")]
    Key(#[from] crate::authn::service_account::KeyError),
    /// A certificate or key cannot be used.
    #[error("{what}: {message}")]
    Tls {
        /// Which.
        what: &'static str,
        /// Why.
        message: String,
    },
    /// An object every cluster has could not be written.
    #[error("cannot write {object}: {message}")]
    Bootstrap {
        /// Which.
        object: String,
        /// Why.
        message: String,
    },
}

type Target = (String, String, String, String);

/// A running API server.
pub struct Server {
    /// Configuration.
    pub config: Arc<ServerConfig>,
    /// Objects.
    pub registry: Arc<Registry>,
    /// What handlers use.
    pub services: Services,
    /// Measurements.
    pub metrics: Metrics,
    /// The process, where clients may look into it (`--profiling`).
    pub debugging: OnceLock<Arc<dyn Process>>,
    /// What the process was told on its command line, by flag.
    pub flags: OnceLock<BTreeMap<String, String>>,
    pub(crate) started: Timestamp,
    /// What else of the control plane runs.
    pub components: Components,
    pub(crate) flow: Arc<Flow>,
    pub(crate) discovery: ArcSwap<Discovery>,
    pub(crate) openapi: crate::openapi::Documents,
    pub(crate) issuer: issuer_discovery::Documents,
    pub(crate) kubelet: Arc<KubeletClient>,
    pub(crate) aggregator: Arc<Aggregator>,
    /// Issuers of tokens; their configuration can be replaced.
    pub authentication: Jwt,
    /// Authorizers; their configuration can be replaced.
    pub authorization: Arc<Configured>,
    handlers: HashMap<Target, Box<dyn Handler>>,
    ready: AtomicBool,
    /// Cancelled when the server begins to stop.
    stop: CancellationToken,
    /// Cancelled when nobody uses the server any more: until then requests under way need the caches to follow the store.
    gone: CancellationToken,
}

/// Everything that is served.
fn served(registry: &Registry) -> Vec<&'static dyn Resource> {
    registry.built_in().iter().copied().chain(registry.learned()).collect()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.gone.cancel();
    }
}

impl Server {
    /// A server over `store` with its caches filled and the objects every cluster has written. It answers
    /// [`Server::call`] at once; [`Server::serve`] listens.
    ///
    /// # Errors
    /// Where the store, a key or a certificate cannot be used.
    pub async fn new(
        config: ServerConfig,
        store: Arc<dyn Store>,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Arc<Self>, StartError> {
        let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
        let config = Arc::new(config);
        let encryption = config.encryption.clone().unwrap_or_else(|| Encryption::none(entropy.clone()));
        for service in encryption.services() {
            service.prime().await;
        }
        let metrics = Metrics::new().with(|registry| encryption.register(registry));
        let registry = Registry::new(store, encryption, config.versions.served(), clock, entropy);
        registry.start(gone.clone()).await?;
        let mut definitions = crate::crd::Controller::default();
        let restored = definitions.restore(&registry).await;
        restored.map_err(|e| StartError::Bootstrap { object: "custom resources".into(), message: e.message })?;
        let served = served(&registry);
        let cluster = registry.cluster();
        let authorization = Configured::new(&cluster, &config.access);
        let authorization =
            Arc::new(authorization.map_err(|message| StartError::Tls { what: "authorization", message })?);
        let authorizer: Arc<dyn Authorizer> = authorization.clone();
        let (authenticator, authentication) = crate::authn::default_authenticator(&config, &cluster)?;
        let metrics = metrics.with(|registry| authentication.register(registry));
        let admission: Arc<Chain> = Arc::new(crate::admission::chain(authorizer.clone(), &config.admission));
        let hooks: Vec<Arc<dyn Hook>> = crate::admission::hooks(&config, &cluster).await;
        registry.plug(admission.clone(), hooks);
        let explain = ExplainSlot::default();
        let services = Services { cluster, admission, authorizer, authenticator, config: config.clone(), explain };
        let handlers: HashMap<Target, Box<dyn Handler>> = crate::subresource::list(&services)
            .into_iter()
            .map(|h| {
                let (g, v, r, s) = h.target();
                ((g.to_owned(), v.to_owned(), r.to_owned(), s.to_owned()), h)
            })
            .collect();
        let issuer = issuer_discovery::documents(&config)?;
        let kubelet = KubeletClient::new(&config)
            .map_err(|e| StartError::Tls { what: "kubelet client certificate", message: e.to_string() })?;
        let server = Arc::new(Self {
            registry,
            services,
            metrics,
            debugging: OnceLock::new(),
            flags: OnceLock::new(),
            started: clock.now(),
            components: Components::default(),
            flow: Flow::new(config.requests_at_once, clock),
            discovery: ArcSwap::from_pointee(Discovery::new(&served, Vec::new()).reached_at(config.advertise)),
            openapi: crate::openapi::Documents::new(&served),
            issuer,
            kubelet: Arc::new(kubelet),
            aggregator: Arc::default(),
            authentication,
            authorization,
            handlers,
            ready: AtomicBool::new(false),
            stop,
            gone,
            config,
        });
        crate::bootstrap::write(&server).await?;
        let registered = aggregate::registrations::write(&server).await;
        registered.map_err(|e| StartError::Bootstrap { object: "APIServices".into(), message: e.message })?;
        let object = "priority levels and flow schemas".to_owned();
        flow::keeper::sync(&server).await.map_err(|e| StartError::Bootstrap { object, message: e.message })?;
        // Nobody is asked who may do what before the policy just written is known.
        server.registry.caught_up().await?;
        crate::bootstrap::keep(&server);
        flow::keeper::keep(&server);
        crate::policy_status::keep(&server);
        aggregate::start(&server);
        tokio::spawn(definitions.run(Arc::downgrade(&server), server.stop.clone()));
        crate::encryption::keep(&server.registry, &server.gone);
        tokio::spawn(crate::registry::expire::run(server.registry.clone(), server.stop.clone()));
        server.ready.store(true, Ordering::Release);
        Ok(server)
    }

    /// Answers a request of a component in this process under its identity, through the same pipeline as over the network.
    /// The URI is path and query.
    pub async fn call(self: &Arc<Self>, request: Request<Bytes>, user: UserInfo) -> Response {
        let (parts, body) = request.into_parts();
        pipeline::handle(self, parts, Incoming::Memory(body), Caller::Component(user)).await
    }

    /// The handler of a subresource or virtual kind.
    pub(crate) fn handler(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        subresource: &str,
    ) -> Option<&dyn Handler> {
        let key = (group.to_owned(), version.to_owned(), resource.to_owned(), subresource.to_owned());
        self.handlers.get(&key).map(AsRef::as_ref)
    }

    /// Makes the documents that say what is served anew.
    pub(crate) fn republish(&self) {
        let served = served(&self.registry);
        let discovery = Discovery::new(&served, self.aggregator.discovered()).reached_at(self.config.advertise);
        self.discovery.store(Arc::new(discovery));
        self.openapi.replace(&served, self.aggregator.documented());
        self.aggregator.versions_changed();
    }

    /// Stores from now on as another `EncryptionConfiguration` says.
    ///
    /// # Errors
    /// What is wrong with it, or with which of its key management services; what was there before stays.
    pub async fn replace_encryption(&self, text: &str) -> Result<(), String> {
        let clock = self.services.cluster.clock;
        crate::encryption::replace(&self.registry, text.as_bytes(), clock, &self.gone).await
    }

    /// Whether the server has started and is not stopping.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.stop.is_cancelled()
    }

    /// Ends watches and background work, and says so on `/readyz`. Requests under way, and later ones from this process,
    /// are still answered.
    pub fn stop(&self) {
        self.stop.cancel();
        for cache in self.registry.caches() {
            cache.close_watchers();
        }
    }

    /// Cancelled when the server stops.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }
}
