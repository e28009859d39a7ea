//! The server's own certificate: from files, or requested from the cluster and renewed before it expires.

use crate::agent::Agent;
use crate::certificates::{self, Issued, Purpose};
use crate::config::Serving;
use crate::error::Error;
use gantry_reconcile::backoff::Backoff;
use parking_lot::RwLock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A request that failed is made anew after this long, and after longer each time.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// Serves the certificate that is current; handshakes fail while there is none yet.
#[derive(Debug, Default)]
pub(crate) struct Current(RwLock<Option<Arc<CertifiedKey>>>);

impl Current {
    fn set(&self, certified: CertifiedKey) {
        *self.0.write() = Some(Arc::new(certified));
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().clone();
        if current.is_none() {
            tracing::warn!("no serving certificate available for the node agent yet");
        }
        current
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

/// What resolves the certificate to serve. One that is to be requested comes when the cluster has signed it.
pub(crate) fn obtain(agent: &Arc<Agent>, shutdown: &CancellationToken) -> Result<Arc<dyn ResolvesServerCert>, Error> {
    let current = Arc::new(Current::default());
    if let Serving::Files { certificate, key } = &agent.cfg.serving {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| Error::Io { what: "read", path: path.to_path_buf(), source })
        };
        let what = certificate.display().to_string();
        current.set(certified(&read(certificate)?, &read(key)?, &what)?);
        return Ok(current);
    }
    let directory = agent.cfg.pki_directory();
    std::fs::create_dir_all(&directory).map_err(|source| Error::Io {
        what: "create",
        path: directory.clone(),
        source,
    })?;
    let (keeping, agent, stop) = (current.clone(), agent.clone(), shutdown.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = keep(&agent, &directory, &keeping) => {}
            () = stop.cancelled() => {}
        }
    });
    Ok(current)
}

/// Takes over the stored certificate, requests what is missing and replaces it in time, for as long as it is polled.
async fn keep(agent: &Agent, directory: &Path, current: &Current) {
    let mut held = stored(directory, agent).map(|(pem, certified)| {
        current.set(certified);
        pem
    });
    let mut retry = Backoff::new(RETRY.0, RETRY.1);
    loop {
        if let Some(pem) = &held {
            certificates::until_renewal(pem, &agent.clock).await;
        }
        let addresses = Purpose::Serving(&agent.cfg.node_ips);
        let made = certificates::request(&agent.client, &agent.cfg.node_name, addresses).await;
        let made = made.map_err(|e| tls_error("serving certificate", e)).and_then(|issued| {
            let (pem, key) = (issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes());
            current.set(certified(pem, key, "issued serving certificate")?);
            Ok(issued)
        });
        match made {
            Ok(issued) => {
                if let Err(error) = store(directory, &issued) {
                    tracing::warn!(%error, "cannot keep the serving certificate; a restart will request another");
                }
                tracing::info!("got a serving certificate");
                held = Some(issued.certificate_pem);
                retry.reset();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot get a serving certificate, trying again");
                tokio::time::sleep(retry.next_delay()).await;
            }
        }
    }
}

/// The certificate of an earlier run, where it still holds and the node still has the addresses it is for.
fn stored(directory: &Path, agent: &Agent) -> Option<(String, CertifiedKey)> {
    let pem = std::fs::read_to_string(directory.join("kubelet.crt")).ok()?;
    let key = std::fs::read(directory.join("kubelet.key")).ok()?;
    let certified = certified(pem.as_bytes(), &key, "stored serving certificate").ok()?;
    let holds = certificates::expiry(&pem).is_some_and(|at| at > agent.clock.now())
        && certificates::names_all(&pem, &agent.cfg.node_ips);
    holds.then_some((pem, certified))
}

fn store(directory: &Path, issued: &Issued) -> Result<(), Error> {
    for (file, content) in [("kubelet.crt", &issued.certificate_pem), ("kubelet.key", &issued.key_pem)] {
        let path = directory.join(file);
        replace(&path, content.as_bytes()).map_err(|source| Error::Io { what: "write", path, source })?;
    }
    Ok(())
}

fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
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
    use rcgen::{CertificateParams, KeyPair};

    #[test]
    fn a_certificate_needs_its_key() {
        let (key, other) = (KeyPair::generate().unwrap().serialize_pem(), KeyPair::generate().unwrap());
        let own = KeyPair::from_pem(&key).unwrap();
        let pem = CertificateParams::new(vec!["n".to_owned()]).unwrap().self_signed(&own).unwrap().pem();
        assert!(certified(pem.as_bytes(), key.as_bytes(), "test").is_ok());
        assert!(certified(b"", key.as_bytes(), "test").is_err());
        assert!(certified(pem.as_bytes(), other.serialize_pem().as_bytes(), "test").is_err());
    }
}
