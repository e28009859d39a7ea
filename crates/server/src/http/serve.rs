//! Connections: TLS with optional client certificates, HTTP/1.1 and HTTP/2, upgrades, graceful shutdown.

use super::gather::{Streams, gathering};
use super::pipeline::{self, Caller, Connection, Incoming};
use crate::authn::Peer;
use crate::config::ServerConfig;
use crate::flow::turns::{Spawner, Turns};
use crate::server::{Server, StartError};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig as TlsConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How long a client may take for the TLS handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long requests under way may take after shutdown began; pods' and clients' own retries take over after that.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may stay without a request: longer than clients keep idle ones, so that they close first and no
/// request crosses the closing.
const IDLE_WITHIN: Duration = Duration::from_secs(180);
/// Bytes of an answer that wait for its reader: of each of up to a thousand answers of a connection that nobody reads.
const SENT_AHEAD_MAX: usize = 64 * 1024;
/// HTTP/2, as TLS names it.
const H2: &[u8] = b"h2";
/// How long to wait after the operating system refused a connection (no file descriptors left).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

impl Server {
    /// Serves on the listeners until `shutdown`; then watches end, requests under way finish, and this returns.
    ///
    /// # Errors
    /// Where the certificates cannot be used.
    pub async fn serve(
        self: &Arc<Self>,
        listeners: Vec<TcpListener>,
        shutdown: CancellationToken,
    ) -> Result<(), StartError> {
        let trust = Arc::new(ClientTrust::new(&self.config)?);
        let acceptor = TlsAcceptor::from(Arc::new(tls_config(self, &trust)?));
        let connections = Arc::new(GracefulShutdown::new());
        let turns = self.flow.turns().clone();
        turns.start();
        let accepting: Vec<_> = listeners
            .into_iter()
            .map(|listener| {
                let (acceptor, trust, connections) = (acceptor.clone(), trust.clone(), connections.clone());
                self.clone().accept(listener, acceptor, trust, connections, turns.clone(), shutdown.clone())
            })
            .collect();
        shutdown.cancelled().await;
        self.stop();
        for task in accepting {
            if let Err(e) = task.await {
                tracing::error!(error = %e, "listener ended abnormally");
            }
        }
        turns.close();
        if let Some(connections) = Arc::into_inner(connections)
            && tokio::time::timeout(DRAIN_WITHIN, connections.shutdown()).await.is_err()
        {
            tracing::warn!("connections were still busy when the server stopped");
        }
        Ok(())
    }

    /// Takes the connections of one listener until `shutdown`. Not in `serve`, of which whoever starts a server has a copy.
    fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        acceptor: TlsAcceptor,
        trust: Arc<ClientTrust>,
        connections: Arc<GracefulShutdown>,
        turns: Arc<Turns>,
        shutdown: CancellationToken,
    ) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = shutdown.cancelled() => break,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, address)) => {
                        let watcher = connections.watcher();
                        let (server, acceptor, trust) = (self.clone(), acceptor.clone(), trust.clone());
                        let spawner = turns.connection(address.ip());
                        spawner.spawn(connection(server, acceptor, trust, stream, address, watcher, spawner.clone()));
                    }
                    Err(e) => {
                        tracing::warn!(error = %e, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                }
            }
        })
    }
}

async fn connection(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    trust: Arc<ClientTrust>,
    stream: TcpStream,
    address: SocketAddr,
    watcher: hyper_util::server::graceful::Watcher,
    spawner: Spawner,
) {
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(%address, error = %e, "TCP_NODELAY");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            tracing::debug!(%address, error = %e, "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "TLS handshake took too long");
            return;
        }
    };
    let peer = trust.peer(address, stream.get_ref().1.peer_certificates().unwrap_or_default());
    let peer = Arc::new(Connection::new(peer, spawner.clone()));
    let open = Streams::default();
    let counting = open.clone();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (server, peer, open) = (server.clone(), peer.clone(), counting.clone());
        async move {
            // hyper leaves `OnUpgrade` in the extensions, where connect subresources find it.
            let (parts, body) = request.into_parts();
            let response = pipeline::handle(&server, parts, Incoming::Wire(body), Caller::Remote(peer)).await;
            Ok::<_, Infallible>(response.map(|body| open.count(body)))
        }
    });
    let mut builder = auto::Builder::new(spawner);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_WITHIN).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_header_list_size(64 * 1024)
        .max_send_buf_size(SENT_AHEAD_MAX)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let served = if stream.get_ref().1.alpn_protocol() == Some(H2) {
        // Its streams are never handed out, as those of an upgrade are, so nothing is written behind its back.
        let builder = builder.http2_only();
        gathering(stream, open, |s| watcher.watch(builder.serve_connection(TokioIo::new(s), service).into_owned()))
            .await
    } else {
        watcher.watch(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned()).await
    };
    if let Err(e) = served {
        tracing::debug!(%address, error = %e, "connection ended");
    }
}

/// Whose client certificates are accepted, and what they are good for.
struct ClientTrust {
    /// Asks for certificates of either authority.
    any: Arc<dyn ClientCertVerifier>,
    client: Arc<dyn ClientCertVerifier>,
    proxy: Option<Arc<dyn ClientCertVerifier>>,
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, StartError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| StartError::Tls { what, message: e.to_string() })
}

fn verifier(what: &'static str, authorities: &[&str]) -> Result<Arc<dyn ClientCertVerifier>, StartError> {
    let tls = |message: String| StartError::Tls { what, message };
    let mut roots = RootCertStore::empty();
    for pem in authorities {
        for ca in certificates(what, pem)? {
            roots.add(ca).map_err(|e| tls(e.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|e| tls(e.to_string()))
}

impl ClientTrust {
    fn new(config: &ServerConfig) -> Result<Self, StartError> {
        let client = config.client_ca_pem.as_str();
        let proxy = config.access.request_header.as_ref().map(|r| r.ca_pem.as_str());
        let both: Vec<&str> = std::iter::once(client).chain(proxy).collect();
        Ok(Self {
            any: verifier("client CA", &both)?,
            client: verifier("client CA", &[client])?,
            proxy: proxy.map(|pem| verifier("requestheader client CA", &[pem])).transpose()?,
        })
    }

    fn peer(&self, address: SocketAddr, chain: &[CertificateDer<'_>]) -> Peer {
        let verified = |by: &Arc<dyn ClientCertVerifier>| {
            chain.split_first().is_some_and(|(leaf, rest)| by.verify_client_cert(leaf, rest, UnixTime::now()).is_ok())
        };
        Peer {
            address: Some(address),
            is_client: verified(&self.client),
            is_proxy: self.proxy.as_ref().is_some_and(verified),
            certificates: chain.iter().map(|c| c.to_vec()).collect(),
        }
    }
}

fn tls_config(server: &Server, trust: &ClientTrust) -> Result<TlsConfig, StartError> {
    let config = &server.config;
    let tls = |what: &'static str, message: String| StartError::Tls { what, message };
    let chain = certificates("serving certificate", &config.serving_cert_pem)?;
    let key = PrivateKeyDer::from_pem_slice(config.serving_key_pem.as_bytes())
        .map_err(|e| tls("serving key", e.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut out = TlsConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| tls("TLS versions", e.to_string()))?
        .with_client_cert_verifier(trust.any.clone())
        .with_single_cert(chain, key)
        .map_err(|e| tls("serving certificate", e.to_string()))?;
    out.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    Ok(out)
}
