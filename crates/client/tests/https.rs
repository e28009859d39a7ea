//! The HTTPS transport against a TLS server that tells what it was sent.

use bytes::Bytes;
use gantry_client::{Client, Credentials, Https, HttpsConfig, TokenSource};
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::net::TcpListener;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

impl Authority {
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A server whose answers name protocol, path, authorization and whether a client certificate was shown.
async fn serve(ca: &Authority) -> String {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let (certificate, key) = ca.issue("server");
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let certified = stream.get_ref().1.peer_certificates().is_some();
                let answer = move |r: Request<Incoming>| async move {
                    let token = r.headers().get("authorization").map(|v| v.to_str().unwrap().to_owned());
                    let agent = r.headers()["user-agent"].to_str().unwrap().to_owned();
                    let text = format!(
                        "{:?} {} {} {} {certified}",
                        r.version(),
                        r.uri().path_and_query().unwrap(),
                        agent,
                        token.unwrap_or_default()
                    );
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                };
                let service = hyper::service::service_fn(answer);
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    format!("https://{address}")
}

async fn ask(config: &HttpsConfig) -> Result<String, gantry_client::Error> {
    ask_with(&Client::new(Arc::new(Https::new(config).unwrap()), "kubelet/1")).await
}

async fn ask_with(client: &Client) -> Result<String, gantry_client::Error> {
    let bytes = client.call(Method::GET, "/api/v1/pods?limit=1", None, Bytes::new()).await?;
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn speaks_http2_with_a_certificate_or_a_token_that_rotates() {
    let ca = authority();
    let server = serve(&ca).await;
    let config = |credentials| HttpsConfig {
        server: server.clone(),
        ca_pem: ca.pem.clone().into_bytes(),
        credentials,
        ..Default::default()
    };
    assert_eq!(ask(&config(Credentials::Anonymous)).await.unwrap(), "HTTP/2.0 /api/v1/pods?limit=1 kubelet/1  false");
    let (certificate, key) = ca.issue("system:node:a");
    let certificate = Credentials::Certificate { certificate_pem: certificate.into_bytes(), key_pem: key.into_bytes() };
    assert!(ask(&config(certificate)).await.unwrap().ends_with(" true"));

    let file = std::env::temp_dir().join(format!("gantry-client-token-{}", std::process::id()));
    std::fs::write(&file, "one\n").unwrap();
    let token = Credentials::Token(TokenSource::File(file.clone()));
    let client = Client::new(Arc::new(Https::new(&config(token)).unwrap()), "c");
    assert!(ask_with(&client).await.unwrap().contains("Bearer one"));
    let later = std::fs::metadata(&file).unwrap().modified().unwrap() + std::time::Duration::from_secs(5);
    std::fs::write(&file, "two\n").unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    assert!(ask_with(&client).await.unwrap().contains("Bearer two"));
    std::fs::remove_file(&file).unwrap();
    let missing = ask_with(&client).await.unwrap_err().to_string();
    assert!(missing.contains("token file"), "{missing}");
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused_unless_told_otherwise() {
    let (ca, other) = (authority(), authority());
    let server = serve(&ca).await;
    let mut config = HttpsConfig { server: server.clone(), ca_pem: other.pem.into_bytes(), ..Default::default() };
    let error = ask(&config).await.unwrap_err().to_string();
    assert!(error.contains(&server) && error.contains("certificate"), "{error}");
    config.insecure_skip_tls_verify = true;
    assert!(ask(&config).await.is_ok());
    config.insecure_skip_tls_verify = false;
    config.ca_pem.clear();
    let error = Https::new(&config).err().unwrap().to_string();
    assert!(error.starts_with("certificate authority: "), "{error}");
    config.server = "ftp://x".into();
    assert!(Https::new(&config).err().unwrap().to_string().contains("https://"));
}

#[tokio::test]
async fn nobody_listening_is_a_transport_error_that_names_the_address() {
    let ca = authority();
    let config =
        HttpsConfig { server: "https://127.0.0.1:1".into(), ca_pem: ca.pem.into_bytes(), ..Default::default() };
    let error = ask(&config).await.unwrap_err();
    assert!(matches!(error, gantry_client::Error::Transport(_)) && error.is_retryable());
    assert!(error.to_string().contains("https://127.0.0.1:1/api/v1/pods"), "{error}");
}
