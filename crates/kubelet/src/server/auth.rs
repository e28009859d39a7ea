//! Who asks (client certificate, or bearer token by TokenReview) and whether they may (the API server's own identity
//! always, others by SubjectAccessReview).

use super::Failure;
use crate::agent::Agent;
use crate::config::KubeletConfig;
use crate::error::Error;
use gantry_client::{Api, Client, PostParams};
use http::{HeaderMap, Method, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long an answer of the API server about a token or a right is relied on.
const KEEP: Duration = Duration::from_secs(60);
/// Answers kept.
const MAX_KEPT: usize = 1024;

/// A user and their groups.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

/// Users that may do everything here: the API server's side of exec, logs and the like.
const TRUSTED_USERS: &[&str] =
    &["system:kube-apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:apiserver"];
const TRUSTED_GROUP: &str = "system:masters";

/// A short memory of answers.
struct Memory<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: std::hash::Hash + Eq, V: Clone> Memory<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock();
        kept.get(key).filter(|(_, at)| at.elapsed() < KEEP).map(|(v, _)| v.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut kept = self.0.lock();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (_, at)| at.elapsed() < KEEP);
            if kept.len() >= MAX_KEPT {
                kept.clear();
            }
        }
        kept.insert(key, (value, Instant::now()));
    }
}

/// Authentication and authorization of requests.
#[derive(Default)]
pub(crate) struct Auth {
    tokens: Memory<String, Option<Identity>>,
    rights: Memory<(Identity, &'static str, &'static str), bool>,
}

/// The server's TLS: client certificates are asked for, not demanded (tokens are the other way).
pub(crate) fn tls(cfg: &KubeletConfig, resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let failed = |what: &str, message: String| Error::Tls { what: what.to_owned(), message };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| failed("TLS versions", e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&cfg.client_ca_pem) {
        let certificate = certificate.map_err(|e| failed("client CA", e.to_string()))?;
        roots.add(certificate).map_err(|e| failed("client CA", e.to_string()))?;
    }
    let builder = if roots.is_empty() {
        builder.with_no_client_auth()
    } else {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|e| failed("client CA", e.to_string()))?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut config = builder.with_cert_resolver(resolver);
    // Upgrades (exec and the like) exist in HTTP/1.1 only; HTTP/2 clients speak it for everything else.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The identity in a verified client certificate: common name and organizations.
pub(crate) fn peer(chain: Option<&[CertificateDer<'_>]>) -> Option<Identity> {
    let (_, certificate) = X509Certificate::from_der(chain?.first()?).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(Identity { user, groups })
}

/// Verb and subresource of `nodes` that a request stands for.
pub(crate) fn attributes(method: &Method, path: &str) -> (&'static str, &'static str) {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let first = path.split('/').find(|p| !p.is_empty()).unwrap_or_default();
    let subresource = match first {
        "stats" => "stats",
        "metrics" => "metrics",
        "logs" => "log",
        "healthz" => "healthz",
        "pods" => "pods",
        _ => "proxy",
    };
    (verb, subresource)
}

impl Auth {
    /// Who asks.
    pub(crate) async fn identify(
        &self,
        client: &Client,
        headers: &HeaderMap,
        certificate: Option<Identity>,
    ) -> Result<Identity, Failure> {
        if let Some(identity) = certificate {
            return Ok(identity);
        }
        let unauthorized = || Failure::new(StatusCode::UNAUTHORIZED, "Unauthorized");
        let value = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).ok_or_else(unauthorized)?;
        let (scheme, token) = value.split_once(' ').ok_or_else(unauthorized)?;
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return Err(unauthorized());
        }
        if let Some(known) = self.tokens.get(&token.to_owned()) {
            return known.ok_or_else(unauthorized);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let review = Api::<TokenReview>::all(client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("token review: {e}")))?;
        let status = review.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        let identity = user.and_then(|u| Some(Identity { user: u.username?, groups: u.groups.unwrap_or_default() }));
        self.tokens.put(token.to_owned(), identity.clone());
        identity.ok_or_else(unauthorized)
    }

    /// Whether they may.
    pub(crate) async fn authorize(
        &self,
        agent: &Agent,
        identity: &Identity,
        method: &Method,
        path: &str,
    ) -> Result<(), Failure> {
        if TRUSTED_USERS.contains(&identity.user.as_str()) || identity.groups.iter().any(|g| g == TRUSTED_GROUP) {
            return Ok(());
        }
        let (verb, subresource) = attributes(method, path);
        let name = &agent.cfg.node_name;
        let forbidden = || {
            let message = format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])",
                identity.user
            );
            Failure::new(StatusCode::FORBIDDEN, message)
        };
        let key = (identity.clone(), verb, subresource);
        if let Some(known) = self.rights.get(&key) {
            return if known { Ok(()) } else { Err(forbidden()) };
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(identity.user.clone()),
                groups: Some(identity.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(name.clone()),
                    verb: Some(verb.into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let review = Api::<SubjectAccessReview>::all(agent.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("authorization: {e}")))?;
        let allowed = review.status.is_some_and(|s| s.allowed);
        self.rights.put(key, allowed);
        if allowed { Ok(()) } else { Err(forbidden()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_map_to_node_subresources() {
        for (method, path, want) in [
            (Method::GET, "/stats/summary", ("get", "stats")),
            (Method::GET, "/metrics/resource", ("get", "metrics")),
            (Method::GET, "/logs/", ("get", "log")),
            (Method::GET, "/containerLogs/a/b/c", ("get", "proxy")),
            (Method::POST, "/exec/a/b/c", ("create", "proxy")),
            (Method::GET, "/pods", ("get", "pods")),
        ] {
            assert_eq!(attributes(&method, path), want, "{path}");
        }
    }

    #[test]
    fn certificates_name_user_and_groups() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "alice");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        let identity = peer(Some(&[der])).unwrap();
        assert_eq!(identity, Identity { user: "alice".into(), groups: vec!["system:masters".into()] });
        assert_eq!(peer(None), None);
        assert_eq!(peer(Some(&[CertificateDer::from(vec![1, 2, 3])])), None);
    }
}
