//! HTTPS from the server to servers that its configuration or its objects name: aggregated API servers, webhooks that
//! authenticate or authorize, token issuers. Connections are kept and shared; failures read as those of Go's client,
//! because clients are shown them.

use crate::webhook_client::{dial_failed, root_store, tls_failed};
use bytes::Bytes;
use gantry_client::connection::{Stream, Unverified};
use http::header::HeaderMap;
use http::uri::Scheme;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Time in which a connection, TLS included, must stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of an answer that is read whole.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Whom to believe, and as whom to appear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Authorities of the server's certificate, PEM; those of the system where empty.
    pub ca_pem: Vec<u8>,
    /// Whether any certificate will do.
    pub insecure: bool,
    /// The name the certificate must be for, where it is not the host of the URL.
    pub server_name: Option<String>,
    /// Client certificate (chain) and key, PEM.
    pub client: Option<(String, String)>,
}

/// A pool of connections under one [`Trust`].
pub struct Outbound {
    pool: Pool<Connector, Full<Bytes>>,
    /// For connections that are taken over: these have to be HTTP/1.1.
    single: Connector,
}

impl Outbound {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// Where a certificate or key cannot be used; Go's words for a CA bundle.
    pub fn new(trust: &Trust) -> Result<Self, String> {
        let config = tls_config(trust)?;
        let mut single = config.clone();
        single.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector =
            |tls: ClientConfig| Connector { tls: Arc::new(tls), server_name: trust.server_name.clone().map(Arc::from) };
        let pool = Pool::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(90))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .http2_keep_alive_timeout(Duration::from_secs(15))
            .http2_adaptive_window(true)
            .build(connector(config));
        Ok(Self { pool, single: connector(single) })
    }

    /// Sends a request to its absolute URI; the answer streams.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        self.pool.request(request).await.map_err(|e| innermost(&e))
    }

    /// Sends a request on a connection of its own, which the answer may switch to another protocol.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send_alone(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let uri = request.uri().clone();
        let stream = self.single.clone().connected(uri.clone()).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) = http1::handshake(stream).await.map_err(|e| innermost(&e))?;
        tokio::spawn(async move {
            if let Err(e) = connection.with_upgrades().await {
                tracing::debug!(error = %e, "connection to a backend broke");
            }
        });
        let (mut parts, body) = request.into_parts();
        if let Some(authority) = uri.authority()
            && !parts.headers.contains_key(http::header::HOST)
        {
            let host = http::HeaderValue::from_str(authority.as_str()).map_err(|e| e.to_string())?;
            parts.headers.insert(http::header::HOST, host);
        }
        parts.uri = uri.path_and_query().map_or("/", |p| p.as_str()).parse().map_err(|e| format!("{e}"))?;
        sender.send_request(Request::from_parts(parts, body)).await.map_err(|e| innermost(&e))
    }

    /// Sends a request and reads the whole answer within `timeout`.
    ///
    /// # Errors
    /// Go's sentence with method and URL.
    pub async fn fetch(&self, request: Request<Full<Bytes>>, timeout: Duration) -> Result<Answer, String> {
        let method = capitalized(request.method().as_str());
        let url = request.uri().to_string();
        let exchange = async {
            let response = self.send(request).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
            Ok::<_, String>(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes() })
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(result) => result.map_err(|why| format!("{method} {url:?}: {why}")),
            Err(_) => Err(format!(
                "{method} {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )),
        }
    }

    /// GETs a URL.
    ///
    /// # Errors
    /// Go's sentence with method and URL.
    pub async fn get(&self, url: &str, headers: HeaderMap, timeout: Duration) -> Result<Answer, String> {
        let mut request = Request::get(url).body(Full::default()).map_err(|e| format!("Get {url:?}: {e}"))?;
        *request.headers_mut() = headers;
        self.fetch(request, timeout).await
    }
}

/// An answer read whole.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// A header as text, empty where there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

/// `GET` as Go writes it in errors: `Get`.
fn capitalized(method: &str) -> String {
    let mut chars = method.chars();
    chars.next().map_or_else(String::new, |first| format!("{first}{}", chars.as_str().to_ascii_lowercase()))
}

/// The cause that says what happened; what is around it only says that sending failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn tls_config(trust: &Trust) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = if trust.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    } else {
        builder.with_root_certificates(root_store(&trust.ca_pem)?)
    };
    let mut config = match &trust.client {
        Some((certificate, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
            let chain = chain.map_err(|e| format!("client certificate: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| format!("client key: {e}"))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| format!("client certificate: {e}"))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[derive(Clone)]
struct Connector {
    tls: Arc<ClientConfig>,
    server_name: Option<Arc<str>>,
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connected(uri))
    }
}

impl Connector {
    async fn connected(self, uri: Uri) -> std::io::Result<Stream> {
        let timed_out = || std::io::Error::other(format!("dial tcp {}: i/o timeout", authority(&uri)));
        tokio::time::timeout(CONNECT_TIMEOUT, self.connect(&uri)).await.map_err(|_| timed_out())?
    }

    async fn connect(self, uri: &Uri) -> std::io::Result<Stream> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let plain = uri.scheme() == Some(&Scheme::HTTP);
        let port = uri.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let dial = TcpStream::connect((host.as_str(), port)).await;
        let tcp = dial.map_err(|e| std::io::Error::other(dial_failed(&host, port, &e)))?;
        tcp.set_nodelay(true)?;
        if plain {
            return Ok(Stream::Plain(TokioIo::new(tcp)));
        }
        let name = self.server_name.map_or_else(|| host.clone(), |n| n.to_string());
        let server_name = ServerName::try_from(name.clone()).map_err(std::io::Error::other)?;
        let stream = TlsConnector::from(self.tls).connect(server_name, tcp).await;
        let stream = stream.map_err(|e| std::io::Error::other(tls_failed(&e, &name)))?;
        Ok(Stream::Tls(Box::new(TokioIo::new(stream))))
    }
}

fn authority(uri: &Uri) -> String {
    uri.authority().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failures_read_as_those_of_go() {
        let outbound = Outbound::new(&Trust { insecure: true, ..Trust::default() }).unwrap();
        // Nothing listens on the port of a socket that has been closed.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("https://127.0.0.1:{port}/apis");
        let why = outbound.get(&url, HeaderMap::new(), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(why, format!("Get \"{url}\": dial tcp 127.0.0.1:{port}: connect: connection refused"));
        let nonsense = Outbound::new(&Trust { ca_pem: b"nonsense".to_vec(), ..Trust::default() });
        assert_eq!(
            nonsense.err().as_deref(),
            Some("unable to load root certificates: unable to parse bytes as PEM block")
        );
    }
}
