//! Calls webhooks (admission, conversion of custom resources): a POST of JSON over HTTPS to a URL or a Service, verified
//! against the CA bundle of the configuration. Failures read as those of Go's client, because clients are shown them.

use crate::cluster::Cluster;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::core::v1::Service;
use gantry_api::meta::status::ApiError;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Most TLS configurations kept; there is one per CA bundle.
const CONFIGURATIONS_MAX: usize = 200;
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Most bytes of an answer that failed which are shown to the client, as upstream.
const SHOWN_BYTES_MAX: usize = 2048;
/// Where the system keeps the authorities it trusts, in the order in which Go looks.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where a webhook is.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// An `https://` URL.
    Url(&'a str),
    /// A Service, reached at its ClusterIP; its certificate must be for `name.namespace.svc`.
    Service {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
        /// The path of the webhook.
        path: &'a str,
        /// The port of the Service.
        port: i32,
    },
}

impl Destination<'_> {
    /// The URL without parameters, as failures show it.
    fn url(&self) -> String {
        match self {
            Destination::Url(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
                let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                format!("{scheme}://{host}/{}", path.trim_matches('/'))
            }
            Destination::Service { namespace, name, path, port } => {
                format!("https://{name}.{namespace}.svc:{port}/{}", path.trim_matches('/'))
            }
        }
    }
}

/// A webhook could not be asked, or did not answer as it should.
#[derive(Debug)]
pub enum CallError {
    /// No answer: Go's sentence, with the URL.
    Transport(String),
    /// An answer that is a failure.
    Status(Box<ApiError>),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::Transport(why) => f.write_str(why),
            CallError::Status(e) => f.write_str(&e.message),
        }
    }
}

impl std::error::Error for CallError {}

/// Asks webhooks. Cheap to keep, one per server part that calls them.
#[derive(Default)]
pub struct WebhookClient {
    configurations: Mutex<HashMap<Vec<u8>, Arc<ClientConfig>>>,
}

impl WebhookClient {
    /// POSTs `body` (JSON) and returns the answer's body. An empty `ca_bundle` trusts what the system trusts. The
    /// webhook is told the time it has, rounded up to seconds.
    ///
    /// # Errors
    /// Where there is no answer in time, or one that is no success.
    pub async fn post(
        &self,
        cluster: &Cluster,
        to: Destination<'_>,
        ca_bundle: &[u8],
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let url = format!("{}?timeout={}", to.url(), go_seconds(seconds));
        let failed = |why: String| CallError::Transport(format!("Post {url:?}: {why}"));
        let attempt = async {
            let uri: Uri = url.parse().map_err(|e| format!("{e}"))?;
            self.exchange(cluster, to, &uri, ca_bundle, body).await
        };
        let (status, text, answer) = match tokio::time::timeout(timeout, attempt).await {
            Ok(result) => result.map_err(failed)?,
            Err(_) => return Err(failed("context deadline exceeded".into())),
        };
        if status.is_success() {
            return Ok(answer);
        }
        Err(CallError::Status(Box::new(failure(status, text, &answer))))
    }

    /// The answer's status, whether its body is text, and its body.
    async fn exchange(
        &self,
        cluster: &Cluster,
        to: Destination<'_>,
        uri: &Uri,
        ca_bundle: &[u8],
        body: Bytes,
    ) -> Result<(StatusCode, bool, Bytes), String> {
        let named = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let (host, port) = match to {
            Destination::Url(_) => (named.clone(), uri.port_u16().unwrap_or(443)),
            Destination::Service { namespace, name, port, .. } => resolve(cluster, namespace, name, port).await?,
        };
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| dial_failed(&host, port, &e))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let server_name = ServerName::try_from(named.clone()).map_err(|e| e.to_string())?;
        let config = self.configuration(ca_bundle)?;
        let stream =
            TlsConnector::from(config).connect(server_name, stream).await.map_err(|e| tls_failed(&e, &named))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "connection to a webhook broke");
            }
        });
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let request = Request::post(uri.path_and_query().map_or("/", |p| p.as_str()))
            .header(HOST, authority)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, */*")
            .header(USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body))
            .map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| http_failed(&e))?;
        let status = response.status();
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let text = content_type.is_empty() || content_type.starts_with("text/");
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
        Ok((status, text, answer.to_bytes()))
    }

    fn configuration(&self, ca_bundle: &[u8]) -> Result<Arc<ClientConfig>, String> {
        if let Some(known) = self.configurations.lock().get(ca_bundle) {
            return Ok(known.clone());
        }
        let roots = root_store(ca_bundle)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let mut kept = self.configurations.lock();
        if kept.len() >= CONFIGURATIONS_MAX {
            kept.clear();
        }
        kept.insert(ca_bundle.to_vec(), config.clone());
        Ok(config)
    }
}

/// The authorities of a CA bundle (PEM), or those the system trusts where it is empty.
///
/// # Errors
/// Go's sentence where the bundle holds no certificate.
pub(crate) fn root_store(ca_bundle: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if ca_bundle.is_empty() {
        let system = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&system).filter_map(Result::ok));
        return Ok(roots);
    }
    let bundle: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(ca_bundle).collect();
    let (added, _) = roots.add_parsable_certificates(bundle.unwrap_or_default());
    if added == 0 {
        return Err("unable to load root certificates: unable to parse bytes as PEM block".into());
    }
    Ok(roots)
}

/// A number of seconds as Go prints a duration.
fn go_seconds(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}

/// Address and port of a Service for a connection from this host.
pub(crate) async fn resolve(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    port: i32,
) -> Result<(String, u16), String> {
    let found = cluster.get::<Service>(namespace, name).await.map_err(|e| e.message)?;
    let spec = found.ok_or_else(|| format!("service {name:?} not found"))?.spec.unwrap_or_default();
    let as_port = |p: i32| u16::try_from(p).map_err(|_| format!("invalid port {p}"));
    let address = spec.cluster_ip.unwrap_or_default();
    match spec.type_.as_deref().unwrap_or("ClusterIP") {
        "ExternalName" => Ok((spec.external_name.unwrap_or_default(), as_port(port)?)),
        "ClusterIP" if address == "None" => Err("cannot route to service with ClusterIP \"None\"".into()),
        "ClusterIP" | "NodePort" | "LoadBalancer" => {
            let known = spec.ports.iter().flatten().any(|p| p.port == port);
            if known { Ok((address, as_port(port)?)) } else { Err(no_port(name, port)) }
        }
        other => Err(format!("unsupported service type {other:?}")),
    }
}

fn no_port(service: &str, port: i32) -> String {
    format!("no service port {port} found for service {service:?}")
}

/// A failed connection as Go words it.
pub(crate) fn dial_failed(host: &str, port: u16, error: &std::io::Error) -> String {
    use std::io::ErrorKind as K;
    let why = match error.kind() {
        K::ConnectionRefused => "connect: connection refused",
        K::HostUnreachable => "connect: no route to host",
        K::NetworkUnreachable => "connect: network is unreachable",
        K::TimedOut => "connect: connection timed out",
        // The resolver's failures have no kind of their own and no number of the system's.
        _ if error.raw_os_error().is_none() => return format!("dial tcp: lookup {host}: no such host"),
        _ => return format!("dial tcp {}: {error}", authority(host, port)),
    };
    format!("dial tcp {}: {why}", authority(host, port))
}

pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A failed handshake as Go words it.
pub(crate) fn tls_failed(error: &std::io::Error, wanted: &str) -> String {
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "EOF".into(),
            std::io::ErrorKind::ConnectionReset => "read: connection reset by peer".into(),
            _ => error.to_string(),
        };
    };
    let unverified = |why: String| format!("tls: failed to verify certificate: x509: {why}");
    match tls {
        rustls::Error::InvalidCertificate(why) => unverified(match why {
            CertificateError::UnknownIssuer => "certificate signed by unknown authority".into(),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "certificate has expired or is not yet valid".into()
            }
            CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                format!("certificate is valid for {}, not {wanted}", names(presented))
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("certificate is not valid for any names, but wanted to match {wanted}")
            }
            other => format!("{other}"),
        }),
        rustls::Error::InvalidMessage(_) => "http: server gave HTTP response to HTTPS client".into(),
        rustls::Error::AlertReceived(alert) => format!("remote error: tls: {alert:?}"),
        other => format!("tls: {other}"),
    }
}

/// The names a certificate is for, which rustls lists as `DnsName("a.b")`.
fn names(presented: &[String]) -> String {
    let bare = |n: &String| n.split('"').nth(1).map_or_else(|| n.clone(), str::to_owned);
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

fn http_failed(error: &hyper::Error) -> String {
    if error.is_incomplete_message() { "EOF".into() } else { error.to_string() }
}

/// What a client of Go's makes of an answer that is no success.
pub(crate) fn failure(status: StatusCode, text: bool, body: &[u8]) -> ApiError {
    let code = status.as_u16();
    if let Ok(given) = serde_json::from_slice::<serde_json::Value>(body)
        && given["kind"] == "Status"
        && given["status"] != "Success"
    {
        return ApiError::from_response(code, body);
    }
    let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES_MAX)]).trim().to_owned();
    let shown = if text { shown } else { "unknown".to_owned() };
    let (reason, message): (&'static str, String) = match code {
        400 => ("BadRequest", "the server rejected our request for an unknown reason".into()),
        401 => ("Unauthorized", "the server has asked for the client to provide credentials".into()),
        403 => ("Forbidden", shown),
        404 => ("NotFound", "the server could not find the requested resource".into()),
        405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource".into()),
        406 if shown.is_empty() || shown == "unknown" => {
            ("NotAcceptable", "the server was unable to respond with a content type that the client supports".into())
        }
        406 => ("NotAcceptable", shown),
        409 => ("AlreadyExists", "the server reported a conflict".into()),
        415 => ("UnsupportedMediaType", shown),
        422 => ("Invalid", "the server rejected our request due to an error in our request".into()),
        429 => {
            ("TooManyRequests", "the server has received too many requests and has asked us to try again later".into())
        }
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request".into()),
        504 => (
            "Timeout",
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .into(),
        ),
        500.. => {
            ("InternalError", format!("an error on the server ({shown:?}) has prevented the request from succeeding"))
        }
        _ => ("", format!("the server responded with the status code {code} but did not return more information")),
    };
    ApiError::new(code, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::memory_objects::MemoryObjects;
    use serde_json::json;
    use std::io;

    const MINUTE: Duration = Duration::from_secs(60);

    async fn ask(cluster: &Cluster, to: Destination<'_>, ca: &[u8]) -> String {
        WebhookClient::default().post(cluster, to, ca, Bytes::new(), MINUTE).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn services_that_cannot_be_reached() {
        let (cluster, objects) = MemoryObjects::cluster();
        let to = |port| Destination::Service { namespace: "a", name: "s", path: "/x/", port };
        assert_eq!(
            ask(&cluster, to(443), b"").await,
            "Post \"https://s.a.svc:443/x?timeout=1m0s\": service \"s\" not found"
        );
        objects.put::<Service>(json!({"metadata": {"name": "s", "namespace": "a"},
            "spec": {"type": "ClusterIP", "clusterIP": "None", "ports": [{"port": 443}]}}));
        assert!(ask(&cluster, to(443), b"").await.ends_with("cannot route to service with ClusterIP \"None\""));
        objects.put::<Service>(json!({"metadata": {"name": "s", "namespace": "a"},
            "spec": {"type": "ClusterIP", "clusterIP": "127.0.0.1", "ports": [{"port": 443}]}}));
        assert!(ask(&cluster, to(44), b"").await.ends_with("no service port 44 found for service \"s\""));
    }

    #[tokio::test]
    async fn urls_that_cannot_be_reached() {
        let (cluster, _) = MemoryObjects::cluster();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url = format!("https://127.0.0.1:{port}");
        assert_eq!(
            ask(&cluster, Destination::Url(&url), b"").await,
            format!("Post \"{url}/?timeout=1m0s\": dial tcp 127.0.0.1:{port}: connect: connection refused")
        );
    }

    #[tokio::test]
    async fn silence_is_a_deadline() {
        let (cluster, _) = MemoryObjects::cluster();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/x", listener.local_addr().unwrap());
        let client = WebhookClient::default();
        let to = Destination::Url(&url);
        let e = client.post(&cluster, to, b"", Bytes::new(), Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(e.to_string(), format!("Post \"{url}?timeout=1s\": context deadline exceeded"));
    }

    #[test]
    fn failures_read_as_go() {
        let e = |tls| tls_failed(&io::Error::other(rustls::Error::InvalidCertificate(tls)), "s.a.svc");
        let prefix = "tls: failed to verify certificate: x509: ";
        assert_eq!(e(CertificateError::UnknownIssuer), format!("{prefix}certificate signed by unknown authority"));
        let context = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("s.a.svc").unwrap(),
            presented: vec!["DnsName(\"a.b\")".into(), "DnsName(\"c\")".into()],
        };
        assert_eq!(e(context), format!("{prefix}certificate is valid for a.b, c, not s.a.svc"));
        let of = |code, text, body: &str| failure(StatusCode::from_u16(code).unwrap(), text, body.as_bytes()).message;
        assert_eq!(of(500, true, "no\n"), "an error on the server (\"no\") has prevented the request from succeeding");
        assert_eq!(
            of(500, false, "{}"),
            "an error on the server (\"unknown\") has prevented the request from succeeding"
        );
        assert_eq!(of(404, true, "x"), "the server could not find the requested resource");
        assert_eq!(of(503, false, r#"{"kind": "Status", "status": "Failure", "message": "m"}"#), "m");
        assert_eq!(
            of(302, true, ""),
            "the server responded with the status code 302 but did not return more information"
        );
    }
}
