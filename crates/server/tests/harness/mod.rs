//! A server on a free port of the loopback interface, with certificates made for the test, and a client for it.
#![allow(dead_code)]

use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_server::authn::UserInfo;
use gantry_server::{Server, ServerConfig};
use gantry_store::{MemoryStore, Store};
use http_body_util::BodyExt;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The static token of the cluster's administrator.
pub const ADMIN_TOKEN: &str = "admin-token";

/// A running server.
pub struct Harness {
    pub server: Arc<Server>,
    pub address: SocketAddr,
    pub ca_pem: String,
    ca_key_pem: String,
    pub shutdown: CancellationToken,
}

/// Certificates: CA and its key, serving certificate and key.
fn certificates() -> (String, String, String, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "test-ca");
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, &ca_key);
    let key = KeyPair::generate().unwrap();
    let mut serving = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = serving.signed_by(&key, &issuer).unwrap();
    (ca_certificate.pem(), ca_key.serialize_pem(), certificate.pem(), key.serialize_pem())
}

/// The configuration of a test server, and its CA's key.
pub fn config() -> (ServerConfig, String) {
    let (ca, ca_key, certificate, key) = certificates();
    let signing_key = KeyPair::generate().unwrap().serialize_pem();
    let config = ServerConfig {
        static_tokens: vec![
            (ADMIN_TOKEN.into(), "admin".into(), "1".into(), vec!["system:masters".into()]),
            ("nobody-token".into(), "nobody".into(), "2".into(), vec![]),
        ],
        advertise: Some((Ipv4Addr::new(192, 0, 2, 1).into(), 6443)),
        ..ServerConfig::in_process(&ca, &certificate, &key, &signing_key)
    };
    (config, ca_key)
}

impl Harness {
    /// Starts a server over an empty memory store.
    pub async fn start() -> Self {
        Self::start_over(Arc::new(MemoryStore::new())).await
    }

    /// Starts a server over what is stored.
    pub async fn start_over(store: Arc<dyn Store>) -> Self {
        let (config, ca_key_pem) = config();
        let ca_pem = config.cluster_ca_pem.clone();
        let clock = Clock::starting_at("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
        let server = Server::new(config, store, clock, Entropy::seeded(7)).await.unwrap();
        let port = std::env::var("GANTRY_TEST_PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(0);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (serving, until) = (server.clone(), shutdown.clone());
        tokio::spawn(async move { serving.serve(vec![listener], until).await.unwrap() });
        Self { server, address, ca_pem, ca_key_pem, shutdown }
    }

    /// A client certificate and its key.
    pub fn client_certificate(&self, name: &str, organization: &str) -> (String, String) {
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem, KeyPair::from_pem(&self.ca_key_pem).unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Calls the server in process as the administrator. The body, where there is one, is JSON.
    pub async fn call(&self, method: &str, uri: &str, body: Option<Value>) -> (u16, Value) {
        self.call_with(
            method,
            uri,
            &[("content-type", "application/json")],
            body.map(|b| b.to_string()).unwrap_or_default(),
        )
        .await
    }

    /// Calls with headers and a body of any sort.
    pub async fn call_with(
        &self,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, Value) {
        let response = self.raw(method, uri, headers, body).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        (code, value)
    }

    /// The answer with its body still streaming.
    pub async fn raw(
        &self,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> gantry_server::request::Response {
        let mut request = http::Request::builder().method(method).uri(uri).header("user-agent", "test/1");
        for (k, v) in headers {
            request = request.header(*k, *v);
        }
        let admin = UserInfo::new("admin", &["system:masters"]);
        self.server.call(request.body(body.into()).unwrap(), admin).await
    }
}
