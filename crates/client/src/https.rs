//! The HTTPS transport: HTTP/2 where the server speaks it, client certificate or bearer token, one CA bundle.

use crate::connection::{Stream, Unverified};
use crate::transport::{Body, Transport, TransportError};
use async_trait::async_trait;
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::{Mutex, RwLock};
use rustls::client::WantsClientCert;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where a bearer token comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// The token itself.
    Fixed(String),
    /// A file that is read again when it changes (projected ServiceAccount tokens rotate).
    File(PathBuf),
}

/// How the client proves who it is.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// Not at all.
    #[default]
    Anonymous,
    /// A bearer token.
    Token(TokenSource),
    /// A client certificate (chain) and its key, PEM.
    Certificate {
        /// Certificate chain, leaf first.
        certificate_pem: Vec<u8>,
        /// Private key.
        key_pem: Vec<u8>,
    },
}

/// How to reach an API server.
#[derive(Clone, Debug, Default)]
pub struct HttpsConfig {
    /// `https://host:port`, with an optional path prefix.
    pub server: String,
    /// CA certificates the server's certificate must chain to, PEM. Required unless `insecure_skip_tls_verify`.
    pub ca_pem: Vec<u8>,
    /// Identity.
    pub credentials: Credentials,
    /// Name expected in the server's certificate where it differs from the address.
    pub tls_server_name: Option<String>,
    /// Do not check the server's certificate.
    pub insecure_skip_tls_verify: bool,
}

/// What is wrong with an [`HttpsConfig`] or a kubeconfig.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {message}")]
pub struct ConfigError {
    /// Which setting or file.
    pub what: String,
    /// What is wrong with it.
    pub message: String,
}

impl ConfigError {
    pub(crate) fn new(what: impl Into<String>, message: impl ToString) -> Self {
        Self { what: what.into(), message: message.to_string() }
    }
}

/// A connection pool to one server under one identity.
pub struct Https {
    pool: RwLock<Pool<Connector, Full<Bytes>>>,
    scheme: Scheme,
    authority: Authority,
    prefix: String,
    token: Option<Token>,
}

struct Token {
    source: TokenSource,
    cached: Mutex<Option<(std::time::SystemTime, HeaderValue)>>,
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    let mut v = HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|e| e.to_string())?;
    v.set_sensitive(true);
    Ok(v)
}

impl Token {
    fn header(&self) -> Result<HeaderValue, String> {
        let path = match &self.source {
            TokenSource::Fixed(t) => return bearer(t),
            TokenSource::File(p) => p,
        };
        let named = |e: std::io::Error| format!("token file {}: {e}", path.display());
        let modified = std::fs::metadata(path).and_then(|m| m.modified()).map_err(named)?;
        let mut cached = self.cached.lock();
        if let Some((at, value)) = &*cached
            && *at == modified
        {
            return Ok(value.clone());
        }
        let value = bearer(&std::fs::read_to_string(path).map_err(named)?)?;
        *cached = Some((modified, value.clone()));
        Ok(value)
    }
}

impl Https {
    /// A transport as `config` says. Nothing is connected yet.
    ///
    /// # Errors
    /// Where the address, a certificate or a key cannot be read.
    pub fn new(config: &HttpsConfig) -> Result<Self, ConfigError> {
        let uri: Uri = config.server.parse().map_err(|e| ConfigError::new(format!("server {:?}", config.server), e))?;
        let scheme = uri.scheme().cloned().unwrap_or(Scheme::HTTPS);
        if scheme != Scheme::HTTPS && scheme != Scheme::HTTP {
            return Err(ConfigError::new(format!("server {:?}", config.server), "must begin with https:// or http://"));
        }
        let authority = uri
            .authority()
            .cloned()
            .ok_or_else(|| ConfigError::new(format!("server {:?}", config.server), "names no host"))?;
        let pool = RwLock::new(pool(&scheme, config)?);
        let token = match &config.credentials {
            Credentials::Token(source) => Some(Token { source: source.clone(), cached: Mutex::new(None) }),
            _ => None,
        };
        Ok(Self { pool, scheme, authority, prefix: uri.path().trim_end_matches('/').to_owned(), token })
    }

    /// Goes on under another certificate: requests sent from now on use new connections, made as `config` says. Answers
    /// that are still coming in (watches) end on the old ones. Address and token stay what they were.
    ///
    /// # Errors
    /// Where a certificate or key cannot be read; then nothing changes.
    pub fn renew(&self, config: &HttpsConfig) -> Result<(), ConfigError> {
        let fresh = pool(&self.scheme, config)?;
        *self.pool.write() = fresh;
        Ok(())
    }
}

fn pool(scheme: &Scheme, config: &HttpsConfig) -> Result<Pool<Connector, Full<Bytes>>, ConfigError> {
    let tls = if *scheme == Scheme::HTTPS { Some(Arc::new(tls_config(config)?)) } else { None };
    let server_name = config.tls_server_name.clone();
    Ok(Pool::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        // A peer that vanished without a word is noticed within 45 seconds, as client-go does.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(15))
        .http2_keep_alive_while_idle(true)
        // As client-go's. A stream nobody reads for a while, such as a watch, must not take the connection's whole window,
        // or all other requests on it stand still.
        .http2_initial_stream_window_size(4 << 20)
        .http2_initial_connection_window_size(1 << 30)
        .build(Connector { tls, server_name }))
}

#[async_trait]
impl Transport for Https {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let (mut parts, body) = request.into_parts();
        let context = format!("{} {}://{}{}", parts.method, self.scheme, self.authority, parts.uri.path());
        let failed = |message: String| TransportError { context: context.clone(), message };
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        parts.uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(format!("{}{path}", self.prefix))
            .build()
            .map_err(|e| failed(e.to_string()))?;
        if let Some(token) = &self.token {
            parts.headers.insert(header::AUTHORIZATION, token.header().map_err(&failed)?);
        }
        let request = Request::from_parts(parts, Full::new(body));
        let pool = self.pool.read().clone();
        let response = pool.request(request).await.map_err(|e| failed(chain(&e)))?;
        let read = context.clone();
        Ok(response
            .map(|b| BodyExt::boxed(b.map_err(move |e| TransportError { context: read.clone(), message: chain(&e) }))))
    }
}

/// An error with its causes in one line.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let next = s.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = s.source();
    }
    text
}

type Builder<State> = ConfigBuilder<ClientConfig, State>;

fn tls_builder() -> Result<(Builder<WantsVerifier>, Arc<CryptoProvider>), ConfigError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| ConfigError::new("TLS", e))?;
    Ok((builder, provider))
}

fn unverified() -> Result<Builder<WantsClientCert>, ConfigError> {
    let (builder, provider) = tls_builder()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider))))
}

/// TLS that does not ask who the server is, and does not say who the client is.
///
/// # Errors
/// Where the TLS library refuses its own defaults.
pub fn unverified_tls() -> Result<ClientConfig, ConfigError> {
    Ok(unverified()?.with_no_client_auth())
}

/// TLS as `config` says, for HTTP/2 and HTTP/1.1.
///
/// # Errors
/// Where a certificate or a key cannot be read.
pub fn tls_config(config: &HttpsConfig) -> Result<ClientConfig, ConfigError> {
    let builder = if config.insecure_skip_tls_verify {
        unverified()?
    } else {
        let (builder, _) = tls_builder()?;
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(&config.ca_pem) {
            let cert = cert.map_err(|e| ConfigError::new("certificate authority", e))?;
            roots.add(cert).map_err(|e| ConfigError::new("certificate authority", e))?;
        }
        if roots.is_empty() {
            return Err(ConfigError::new(
                "certificate authority",
                "no certificate given to check the server's against",
            ));
        }
        builder.with_root_certificates(roots)
    };
    let mut tls = match &config.credentials {
        Credentials::Certificate { certificate_pem, key_pem } => {
            let chain = CertificateDer::pem_slice_iter(certificate_pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| ConfigError::new("client certificate", e))?;
            let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|e| ConfigError::new("client key", e))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| ConfigError::new("client certificate", e))?
        }
        _ => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

#[derive(Clone)]
struct Connector {
    tls: Option<Arc<ClientConfig>>,
    server_name: Option<String>,
}

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIMEOUT, this.connect(uri))
                .await
                .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection within 30 seconds"))?
        })
    }
}

impl Connector {
    async fn connect(self, uri: Uri) -> std::io::Result<Stream> {
        let invalid = |m: String| std::io::Error::new(std::io::ErrorKind::InvalidInput, m);
        let host = uri.host().ok_or_else(|| invalid(format!("{uri} names no host")))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = self.tls else {
            return Ok(Stream::Plain(TokioIo::new(tcp)));
        };
        let name = self.server_name.unwrap_or(host);
        let name = ServerName::try_from(name).map_err(|e| invalid(e.to_string()))?;
        let stream = TlsConnector::from(tls).connect(name, tcp).await?;
        Ok(Stream::Tls(Box::new(TokioIo::new(stream))))
    }
}
