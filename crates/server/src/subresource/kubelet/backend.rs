//! Connections to kubelets and pods.

use super::tls::{self, TlsError};
use super::tunnel;
use crate::cluster::Cluster;
use crate::config::ServerConfig;
use crate::request::Response;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::core::v1::Node;
use gantry_api::meta::status::ApiError;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Time in which a connection, TLS included, must stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which a node must have answered with its statistics.
const STATS_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a node's statistics; a node with 110 pods sends some 300 KB.
const STATS_BYTES_MAX: usize = 16 << 20;
/// The kubelet's port where the node does not say.
const KUBELET_PORT: i32 = 10250;

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Address or host name, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How to speak.
    pub security: Security,
}

/// How to speak to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// HTTP.
    Plain,
    /// HTTPS to whatever is there.
    AnyCertificate,
    /// HTTPS to a kubelet.
    Kubelet,
}

impl Endpoint {
    /// `host:port`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// A failed connection as clients know it from Go.
fn in_go_words(error: &std::io::Error) -> String {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::ConnectionRefused => "connect: connection refused".to_owned(),
        K::HostUnreachable => "connect: no route to host".to_owned(),
        K::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        K::TimedOut => "connect: connection timed out".to_owned(),
        _ => error.to_string(),
    }
}

/// A node's statistics could not be had.
#[derive(Debug, thiserror::Error)]
#[error("statistics of node {node}: {why}")]
pub struct StatsError {
    /// The node.
    pub node: String,
    /// Why.
    pub why: String,
}

/// Speaks to kubelets with the server's client certificate, and to pods.
pub struct KubeletClient {
    kubelet: Arc<ClientConfig>,
    pod: Arc<ClientConfig>,
}

impl KubeletClient {
    /// A client with the certificates of the configuration.
    ///
    /// # Errors
    /// Where they cannot be used.
    pub fn new(config: &ServerConfig) -> Result<Self, TlsError> {
        Ok(Self { kubelet: tls::to_kubelets(config)?, pod: tls::to_pods()? })
    }

    /// Sends a request on a connection of its own. `head`'s URI is path and query.
    pub(super) async fn send(
        &self,
        to: &Endpoint,
        head: Request<()>,
        body: Bytes,
    ) -> Result<http::Response<Incoming>, String> {
        let authority = to.authority();
        let dial = |e: &dyn std::fmt::Display| format!("dial tcp {authority}: {e}");
        let connect = async {
            let stream = TcpStream::connect((to.host.as_str(), to.port)).await.map_err(|e| dial(&in_go_words(&e)))?;
            stream.set_nodelay(true).map_err(|e| dial(&e))?;
            let config = match to.security {
                Security::Plain => return Ok::<_, String>(Connected::Plain(stream)),
                Security::AnyCertificate => self.pod.clone(),
                Security::Kubelet => self.kubelet.clone(),
            };
            let name = ServerName::try_from(to.host.clone()).map_err(|e| dial(&e))?;
            let stream = TlsConnector::from(config).connect(name, stream).await;
            Ok::<_, String>(Connected::Tls(Box::new(stream.map_err(|e| format!("tls: {authority}: {e}"))?)))
        };
        let connected = timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| dial(&"i/o timeout"))??;
        let (mut parts, ()) = head.into_parts();
        if !parts.headers.contains_key(http::header::HOST) {
            let host = http::HeaderValue::from_str(&authority).map_err(|e| e.to_string())?;
            parts.headers.insert(http::header::HOST, host);
        }
        let request = Request::from_parts(parts, Full::new(body));
        match connected {
            Connected::Plain(stream) => exchange(stream, request).await,
            Connected::Tls(stream) => exchange(*stream, request).await,
        }
    }

    /// Sends a request and passes the answer on: streamed, or tunnelled where it upgrades the client's connection.
    pub(super) async fn pass_on(
        &self,
        to: &Endpoint,
        head: Request<()>,
        body: Bytes,
        client: Option<OnUpgrade>,
    ) -> Result<Response, String> {
        Ok(tunnel::answer(self.send(to, head, body).await?, client))
    }

    /// `/stats/summary` of a node: what it, its pods and its containers use now.
    ///
    /// # Errors
    /// Where the node is unknown, cannot be reached or does not answer as it should; names the node.
    pub async fn fetch_node_stats(&self, cluster: &Cluster, node: &str) -> Result<serde_json::Value, StatsError> {
        let failed = |why: String| StatsError { node: node.to_owned(), why };
        let to = kubelet_of(cluster, node).await.map_err(|e| failed(e.message))?;
        let get = async {
            let head = Request::get("/stats/summary").body(()).map_err(|e| e.to_string())?;
            let response = self.send(&to, head, Bytes::new()).await?;
            let status = response.status();
            let body =
                Limited::new(response.into_body(), STATS_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
            let body = body.to_bytes();
            if !status.is_success() {
                return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
            }
            serde_json::from_slice(&body).map_err(|e| e.to_string())
        };
        match timeout(STATS_TIMEOUT, get).await {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(failed("no answer in time".into())),
        }
    }
}

enum Connected {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<http::Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!(error = %e, "connection to a backend broke");
        }
    });
    sender.send_request(request).await.map_err(|e| e.to_string())
}

/// The kubelet of a node.
///
/// # Errors
/// 404 for an unknown node, 500 for one without an address.
pub(super) async fn kubelet_of(cluster: &Cluster, name: &str) -> Result<Endpoint, ApiError> {
    let mut found = cluster.get::<Node>("", name).await?;
    if found.is_none() {
        found = cluster.get_latest::<Node>("", name).await?;
    }
    let node = found.ok_or_else(|| ApiError::not_found("", "nodes", name))?;
    let status = node.status.unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    // The order in which upstream prefers them by default, with the address that needs no name resolution first.
    let host = ["InternalIP", "Hostname", "InternalDNS", "ExternalDNS", "ExternalIP"]
        .iter()
        .find_map(|t| addresses.iter().find(|a| a.type_ == *t))
        .map(|a| a.address.clone())
        .ok_or_else(|| ApiError::internal("no preferred addresses found; known addresses: []"))?;
    let port = status.daemon_endpoints.and_then(|d| d.kubelet_endpoint).map_or(0, |e| e.port);
    let port = if port == 0 { KUBELET_PORT } else { port };
    let port = u16::try_from(port).map_err(|_| ApiError::internal(format!("node {name} has kubelet port {port}")))?;
    Ok(Endpoint { host, port, security: Security::Kubelet })
}
