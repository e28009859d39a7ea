//! The server's own certificate: from files, or requested from the cluster and renewed before it expires.

use crate::agent::Agent;
use crate::config::Serving;
use crate::error::Error;
use gantry_client::{Api, PostParams};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use parking_lot::RwLock;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How often an unanswered request is looked at; signing is a person's or a controller's business.
const LOOK: Duration = Duration::from_secs(2);
/// A request that is not signed by then is made anew.
const GIVE_UP: Duration = Duration::from_secs(900);

/// Serves the certificate that is current.
#[derive(Debug)]
pub(crate) struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

fn tls_error(what: impl Into<String>, message: impl ToString) -> Error {
    Error::Tls { what: what.into(), message: message.to_string() }
}

fn certified(certificate_pem: &[u8], key_pem: &[u8], what: &str) -> Result<CertifiedKey, Error> {
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(certificate_pem).collect();
    let chain = chain.map_err(|e| tls_error(what, e))?;
    if chain.is_empty() {
        return Err(tls_error(what, "no certificate found"));
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|e| tls_error(what, e))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider()).map_err(|e| tls_error(what, e))
}

/// When a certificate should be replaced: after four fifths of its life.
fn renewal(certified: &CertifiedKey) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(certified.cert.first()?).ok()?;
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Timestamp::from_second(from + (to - from) / 5 * 4).ok()
}

/// The certificate to serve; `None` where shutdown came first.
pub(crate) async fn obtain(
    agent: &Arc<Agent>,
    shutdown: &CancellationToken,
) -> Result<Option<Arc<dyn ResolvesServerCert>>, Error> {
    if let Serving::Files { certificate, key } = &agent.cfg.serving {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| Error::Io { what: "read", path: path.to_path_buf(), source })
        };
        let what = certificate.display().to_string();
        let current = certified(&read(certificate)?, &read(key)?, &what)?;
        return Ok(Some(Arc::new(Current(RwLock::new(Arc::new(current))))));
    }
    let directory = agent.cfg.pki_directory();
    std::fs::create_dir_all(&directory).map_err(|source| Error::Io {
        what: "create",
        path: directory.clone(),
        source,
    })?;
    let (certificate_file, key_file) = (directory.join("kubelet.crt"), directory.join("kubelet.key"));
    let stored = match (std::fs::read(&certificate_file), std::fs::read(&key_file)) {
        (Ok(c), Ok(k)) => certified(&c, &k, "stored serving certificate").ok(),
        _ => None,
    };
    let fresh = stored.filter(|c| renewal(c).is_some_and(|at| at > agent.clock.now()));
    let current = match fresh {
        Some(c) => c,
        None => tokio::select! {
            made = request(agent, &directory) => made?,
            () = shutdown.cancelled() => return Ok(None),
        },
    };
    let resolver = Arc::new(Current(RwLock::new(Arc::new(current))));
    let (renewing, agent, stop) = (resolver.clone(), agent.clone(), shutdown.clone());
    tokio::spawn(async move {
        let work = async {
            loop {
                let at = renewal(&renewing.0.read().clone());
                let wait = at.map(|at| at.duration_since(agent.clock.now()));
                let wait = wait.and_then(|d| Duration::try_from(d).ok()).unwrap_or(Duration::from_secs(3600));
                tokio::time::sleep(wait.max(Duration::from_secs(60))).await;
                match request(&agent, &directory).await {
                    Ok(made) => *renewing.0.write() = Arc::new(made),
                    Err(error) => tracing::warn!(%error, "cannot renew the serving certificate"),
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    });
    Ok(Some(resolver))
}

/// Key and signing request (PEM) for a node.
fn signing_request(node: &str, ips: &[std::net::IpAddr]) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![node.to_owned()])?;
    params.subject_alt_names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    let request = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

async fn request(agent: &Agent, directory: &Path) -> Result<CertifiedKey, Error> {
    let api = Api::<CertificateSigningRequest>::all(agent.client.clone());
    loop {
        let (key, pem) = signing_request(&agent.cfg.node_name, &agent.cfg.node_ips)
            .map_err(|e| tls_error("serving certificate request", e))?;
        let object = CertificateSigningRequest {
            metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: "kubernetes.io/kubelet-serving".into(),
                usages: Some(vec!["digital signature".into(), "server auth".into()]),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        };
        let made = match api.create(&PostParams::default(), &object).await {
            Ok(made) => made,
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "cannot request a serving certificate");
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(source) => return Err(Error::Api { what: "request a serving certificate".into(), source }),
        };
        let name = made.metadata.name.unwrap_or_default();
        tracing::info!(name, "requested a serving certificate");
        let Some(certificate) = signed(&api, &name).await else { continue };
        let current = certified(&certificate, key.as_bytes(), "issued serving certificate")?;
        for (file, content) in [("kubelet.crt", certificate.as_slice()), ("kubelet.key", key.as_bytes())] {
            store(&directory.join(file), content).map_err(|source| Error::Io {
                what: "write",
                path: directory.join(file),
                source,
            })?;
        }
        return Ok(current);
    }
}

/// The certificate once it is issued; `None` where the request was denied, vanished or is forgotten.
async fn signed(api: &Api<CertificateSigningRequest>, name: &str) -> Option<Vec<u8>> {
    let began = tokio::time::Instant::now();
    while began.elapsed() < GIVE_UP {
        tokio::time::sleep(LOOK).await;
        match api.get(name).await {
            Ok(found) => {
                let status = found.status.unwrap_or_default();
                if let Some(certificate) = status.certificate.filter(|c| !c.0.is_empty()) {
                    return Some(certificate.0);
                }
                let refused =
                    status.conditions.iter().flatten().find(|c| matches!(c.type_.as_str(), "Denied" | "Failed"));
                if let Some(refused) = refused {
                    let message = refused.message.clone().unwrap_or_default();
                    tracing::warn!(name, kind = refused.type_, message, "the serving certificate was refused");
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    return None;
                }
            }
            Err(error) if error.is("NotFound") => return None,
            Err(error) => tracing::debug!(name, %error, "cannot read the certificate request"),
        }
    }
    None
}

fn store(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let fresh = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_carry_the_nodes_names() {
        let (key, pem) = signing_request("n1", &["192.0.2.1".parse().unwrap()]).unwrap();
        assert!(key.contains("PRIVATE KEY") && pem.contains("CERTIFICATE REQUEST"));
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, parsed) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents).unwrap();
        let subject = parsed.certification_request_info.subject.to_string();
        assert!(subject.contains("system:node:n1") && subject.contains("system:nodes"), "{subject}");
    }

    #[test]
    fn renewal_is_at_four_fifths() {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["n".to_owned()]).unwrap().self_signed(&key).unwrap();
        let c = certified(certificate.pem().as_bytes(), key.serialize_pem().as_bytes(), "test").unwrap();
        assert!(renewal(&c).is_some());
        assert!(certified(b"", key.serialize_pem().as_bytes(), "test").is_err());
    }
}
