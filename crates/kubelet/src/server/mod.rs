//! The agent's HTTPS server: logs, exec, attach, port-forward, statistics, metrics.

mod auth;
mod certificate;
mod container_logs;
mod debug;
mod forward;
mod metrics;
mod request;
pub(crate) mod stats;
mod streaming;

use crate::agent::Agent;
use crate::error::Error;
use crate::pod::manager::Manager;
use auth::Identity;
use bytes::Bytes;
use gantry_reconcile::Informer;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Pod;
use request::Query;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Body of an answer.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// Connections served at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What handlers work with.
pub(crate) struct Server {
    pub agent: Arc<Agent>,
    pub manager: Arc<Manager>,
    pub pods: Informer<Pod>,
    pub samples: stats::Samples,
    pub auth: auth::Auth,
    pub shutdown: CancellationToken,
}

/// A failure, as the plain text answer it becomes.
#[derive(Debug)]
pub(crate) struct Failure {
    pub status: StatusCode,
    pub message: String,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

pub(crate) fn answer(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

impl Server {
    async fn route(self: &Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let path = request.uri().path().to_owned();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let method = request.method().clone();
        let streaming = matches!(method, Method::GET | Method::POST);
        match (&method, parts.as_slice()) {
            (&Method::GET, ["healthz"] | ["healthz", "ping"]) => {
                Ok(answer(StatusCode::OK, "text/plain; charset=utf-8", "ok"))
            }
            (&Method::GET, ["pods"]) => debug::pods(self),
            (&Method::GET, ["containerLogs", namespace, pod, container]) => {
                container_logs::serve(self, namespace, pod, container, &query).await
            }
            (_, ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container]) if streaming => {
                streaming::exec(self, namespace, pod, container, &query, request).await
            }
            (_, ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container]) if streaming => {
                streaming::attach(self, namespace, pod, container, &query, request).await
            }
            (_, ["portForward", namespace, pod] | ["portForward", namespace, pod, _]) if streaming => {
                forward::serve(self, namespace, pod, &query, request).await
            }
            (&Method::GET, ["stats", "summary"]) => stats::summary(self).await,
            (&Method::GET, ["metrics"]) => Ok(metrics::own(self)),
            (&Method::GET, ["metrics", "resource"]) => Ok(metrics::resource(self).await),
            (&Method::GET, ["logs", rest @ ..]) => debug::host_logs(rest).await,
            _ => Err(Failure::new(StatusCode::NOT_FOUND, "404 page not found")),
        }
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>, certificate: Option<Identity>) -> Response<Body> {
        let result = async {
            let identity = self.auth.identify(&self.agent.client, request.headers(), certificate).await?;
            self.auth.authorize(&self.agent, &identity, request.method(), request.uri().path()).await?;
            self.route(request).await
        };
        match result.await {
            Ok(response) => response,
            Err(failure) => {
                tracing::debug!(status = %failure.status, message = failure.message, "request refused");
                answer(failure.status, "text/plain; charset=utf-8", format!("{}\n", failure.message))
            }
        }
    }
}

/// Listens and serves until shutdown.
///
/// # Errors
/// Where the address is taken or the TLS setup is unusable.
pub(crate) async fn run(server: Arc<Server>) -> Result<(), Error> {
    let cfg = &server.agent.cfg;
    let address = SocketAddr::new(cfg.bind_address, cfg.port);
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let resolver = certificate::obtain(&server.agent, &server.shutdown)?;
    let tls = auth::tls(cfg, resolver)?;
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tracing::info!(%address, "node agent serves");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.shutdown.cancelled() => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Descriptors are short, or the peer left at once: the listener itself is fine.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!("too many connections, one was closed");
            continue;
        };
        let (acceptor, server) = (acceptor.clone(), server.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => return tracing::debug!("TLS handshake took too long"),
            };
            let certificate = auth::peer(stream.get_ref().1.peer_certificates());
            let shutdown = server.shutdown.clone();
            let service = hyper::service::service_fn(move |request| {
                let (server, certificate) = (server.clone(), certificate.clone());
                async move { Ok::<_, std::convert::Infallible>(server.handle(request, certificate).await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            tokio::select! {
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                },
                () = shutdown.cancelled() => {}
            }
        });
    }
}
