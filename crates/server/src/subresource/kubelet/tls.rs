//! TLS towards kubelets and towards pods that are proxied to over HTTPS.

use crate::config::ServerConfig;
use gantry_client::connection::Unverified;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

/// The certificates for connections to kubelets cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct TlsError {
    /// Which of the configuration's values.
    what: &'static str,
    /// Why it cannot be used.
    why: String,
}

fn failed(what: &'static str) -> impl Fn(String) -> TlsError {
    move |why| TlsError { what, why }
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|e| failed(what)(e.to_string()))?;
    if all.is_empty() { Err(failed(what)("no certificate in it".into())) } else { Ok(all) }
}

/// TLS to kubelets: they must show a certificate of the cluster's CA, and are shown the server's client certificate.
pub(super) fn to_kubelets(config: &ServerConfig) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for ca in certificates(&config.cluster_ca_pem, "cluster CA")? {
        roots.add(ca).map_err(|e| failed("cluster CA")(e.to_string()))?;
    }
    let chain = certificates(&config.kubelet_client_cert_pem, "kubelet client certificate")?;
    let key = PrivateKeyDer::from_pem_slice(config.kubelet_client_key_pem.as_bytes())
        .map_err(|e| failed("kubelet client key")(e.to_string()))?;
    let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| failed("TLS versions")(e.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|e| failed("kubelet client certificate")(e.to_string()))?;
    // Upgrades need HTTP/1.1.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// TLS to pods and Services: their certificates are their own affair and nobody here could check them, as upstream.
pub(super) fn to_pods() -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| failed("TLS versions")(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}
