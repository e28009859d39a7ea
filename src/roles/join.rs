//! Joining a cluster: whom the node trusts (the cluster's CA), and its own client certificate, asked for with the joining
//! token the first time, kept, and renewed under its own identity ever after.

use super::agent::Identity;
use crate::bootstrap::{data_dir::write_private, pki::spki_hash};
use crate::cli::AgentCommand;
use anyhow::{Context, Result, anyhow, bail};
use gantry_api::clock::Clock;
use gantry_client::https::Https;
use gantry_client::{Api, Client, Credentials, HttpsConfig, Kubeconfig, TokenSource};
use gantry_kubelet::Serving;
use gantry_kubelet::certificates::{self, Issued, Purpose, RequestError};
use gantry_reconcile::backoff::Backoff;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use x509_parser::pem::Pem;

/// Pauses between tries while the server cannot be reached: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// Where clusters publish their CA for machines that join (kubeadm's convention).
pub const CLUSTER_INFO: (&str, &str) = ("kube-public", "cluster-info");

/// The node's identity: kept from an earlier start, or asked for with the joining token. A server that cannot be reached is
/// waited for.
///
/// # Errors
/// A file that cannot be read or written, a CA, token or node name that the cluster does not accept.
pub async fn join(command: &AgentCommand, data: &Path, node: &str) -> Result<Identity> {
    let pki = data.join("node").join("pki");
    std::fs::create_dir_all(&pki).with_context(|| format!("cannot create {}", pki.display()))?;
    let ca_pem = trust(command, &pki.join("ca.crt")).await?;
    let file = pki.join("client.pem");
    let issued = match kept(&file, node)? {
        Some(issued) => issued,
        None => {
            let issued = ask(command, &ca_pem, node).await?;
            // Only what the cluster was joined with is kept.
            write_private(&pki.join("ca.crt"), ca_pem.as_bytes())?;
            keep_in(&file, &issued)?;
            issued
        }
    };
    Ok(Identity {
        server_url: command.server_url.clone(),
        ca_pem,
        certificate_pem: issued.certificate_pem,
        key_pem: issued.key_pem,
        serving: Serving::Request,
        renewed_in: Some(file),
    })
}

/// Renews the client certificate in time, and goes over to it, for as long as it is polled.
pub async fn renew(https: Arc<Https>, mut config: HttpsConfig, file: PathBuf, node: &str, clock: Clock) {
    let client = Client::new(https.clone(), "kubelet");
    let mut retry = Backoff::new(RETRY.0, Duration::from_secs(300));
    loop {
        if let Credentials::Certificate { certificate_pem, .. } = &config.credentials {
            certificates::until_renewal(&String::from_utf8_lossy(certificate_pem), &clock).await;
        }
        let renewed = async {
            let issued = certificates::request(&client, node, Purpose::Client).await?;
            keep_in(&file, &issued)?;
            config.credentials = credentials(&issued);
            https.renew(&config)?;
            anyhow::Ok(())
        };
        match renewed.await {
            Ok(()) => {
                tracing::info!(node, "renewed the node's client certificate");
                retry.reset();
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(node, error, "cannot renew the node's client certificate, trying again");
                tokio::time::sleep(retry.next_delay()).await;
            }
        }
    }
}

/// How the holder of a certificate proves who it is.
#[must_use]
pub fn credentials(issued: &Issued) -> Credentials {
    Credentials::Certificate {
        certificate_pem: issued.certificate_pem.clone().into_bytes(),
        key_pem: issued.key_pem.clone().into_bytes(),
    }
}

/// The cluster's CA: from the file given, as kept, or as the server tells where it has the hash given.
async fn trust(command: &AgentCommand, kept: &Path) -> Result<String> {
    if let Some(file) = &command.ca_file {
        return text(file);
    }
    if kept.exists() {
        let ca_pem = text(kept)?;
        check_pinned(command, ca_pem.as_bytes())?;
        return Ok(ca_pem);
    }
    if command.discovery_token_ca_cert_hash.is_empty() {
        bail!(
            "this node does not know the cluster's CA yet; give its file with --ca-file or its hash with \
             --discovery-token-ca-cert-hash"
        );
    }
    let config =
        HttpsConfig { server: command.server_url.clone(), insecure_skip_tls_verify: true, ..HttpsConfig::default() };
    let client = Client::new(Arc::new(Https::new(&config)?), "gantry-agent");
    let (namespace, name) = CLUSTER_INFO;
    let info = patiently(&command.server_url, || {
        let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        async move { api.get(name).await }
    });
    let info = info.await.context("cannot read the cluster's CA from ConfigMap kube-public/cluster-info")?;
    let text = info.data.as_ref().and_then(|d| d.get("kubeconfig"));
    let text = text.context("ConfigMap kube-public/cluster-info has no kubeconfig")?;
    let told = Kubeconfig::parse(text).and_then(|k| k.https(None, Path::new("/")));
    let told = told.context("ConfigMap kube-public/cluster-info")?.ca_pem;
    check_pinned(command, &told)?;
    String::from_utf8(told).context("the cluster's CA is not PEM")
}

/// Fails where hashes are given and none is that of a key in these CA certificates.
fn check_pinned(command: &AgentCommand, ca_pem: &[u8]) -> Result<()> {
    let pinned = &command.discovery_token_ca_cert_hash;
    let found: Vec<String> = Pem::iter_from_buffer(ca_pem)
        .filter_map(|pem| pem.ok().and_then(|pem| pem.parse_x509().ok().map(|c| spki_hash(&c))))
        .collect();
    if pinned.is_empty() || found.iter().any(|hash| pinned.contains(hash)) {
        return Ok(());
    }
    bail!(
        "cluster CA found in cluster-info ConfigMap is invalid: none of the public keys \"{}\" are pinned; the hash given \
         with --discovery-token-ca-cert-hash is another cluster's, or this is not the server it came from",
        found.join(":")
    )
}

/// The certificate of an earlier start, where it still holds.
fn kept(file: &Path, node: &str) -> Result<Option<Issued>> {
    if !file.exists() {
        return Ok(None);
    }
    let both = text(file)?;
    let split = both.find("-----BEGIN CERTIFICATE-----").with_context(|| format!("{} is damaged", file.display()))?;
    let (key_pem, certificate_pem) = both.split_at(split);
    let named = || format!("{} does not hold a certificate", file.display());
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).with_context(named)?;
    let subject = pem.parse_x509().with_context(named)?.subject().to_string();
    let wanted = format!("CN=system:node:{node}");
    if !subject.split(", ").any(|part| part == wanted) {
        bail!(
            "{} is the certificate of {subject:?}: this data directory joined under another name than {node:?}; start with \
             --node-name as before, or with another --data-dir",
            file.display()
        );
    }
    if certificates::expiry(certificate_pem).is_none_or(|at| at <= Timestamp::now()) {
        tracing::warn!(file = %file.display(), "the node's client certificate has expired, joining anew");
        return Ok(None);
    }
    Ok(Some(Issued { certificate_pem: certificate_pem.to_owned(), key_pem: key_pem.to_owned() }))
}

/// Key and certificate in one file: no crash can leave the one without the other.
fn keep_in(file: &Path, issued: &Issued) -> Result<()> {
    write_private(file, format!("{}{}", issued.key_pem, issued.certificate_pem).as_bytes())
}

/// Asks for the first certificate, with the joining token.
async fn ask(command: &AgentCommand, ca_pem: &str, node: &str) -> Result<Issued> {
    let Some(token_file) = &command.token_file else {
        bail!("this node has not joined yet; give the server's joining token with --token-file");
    };
    let config = HttpsConfig {
        server: command.server_url.clone(),
        ca_pem: ca_pem.as_bytes().to_vec(),
        credentials: Credentials::Token(TokenSource::Fixed(text(token_file)?.trim().to_owned())),
        ..HttpsConfig::default()
    };
    let client = Client::new(Arc::new(Https::new(&config)?), "gantry-agent");
    let explain = |error: gantry_client::Error| {
        if error.is("Unauthorized") {
            return anyhow!(error)
                .context(format!("the server does not accept the joining token in {}", token_file.display()));
        }
        anyhow!(error).context("cannot join")
    };
    let nodes = Api::<Node>::all(client.clone());
    let there = patiently(&command.server_url, || nodes.get_opt(node)).await.map_err(explain)?;
    let ready = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    // Two machines under one name would fight over one Node object.
    if there.as_ref().is_some_and(ready) {
        bail!(
            "a Node with name {node:?} and status \"Ready\" already exists in the cluster. You must delete the existing Node \
             or change the name of this new joining Node"
        );
    }
    let mut retry = Backoff::new(RETRY.0, RETRY.1);
    loop {
        match certificates::request(&client, node, Purpose::Client).await {
            Ok(issued) => return Ok(issued),
            Err(RequestError::Create(error) | RequestError::Watch(error)) if !error.is_retryable() => {
                return Err(explain(error));
            }
            Err(error) if error.api().is_some() => {
                tracing::warn!(server = command.server_url, %error, "cannot get the node's certificate, trying again");
                tokio::time::sleep(retry.next_delay()).await;
            }
            Err(error) => return Err(anyhow!(error).context("cannot join")),
        }
    }
}

/// Does `work` until the server can be reached and does not ask to come back later. What trying again cannot cure is an
/// error at once: a refusal, or a server that is not the one expected.
pub(super) async fn patiently<T, F, W>(server: &str, mut work: W) -> Result<T, gantry_client::Error>
where
    F: Future<Output = Result<T, gantry_client::Error>>,
    W: FnMut() -> F,
{
    let mut retry = Backoff::new(RETRY.0, RETRY.1);
    loop {
        match work().await {
            Err(gantry_client::Error::Transport(error)) if error.message.contains("invalid peer certificate") => {
                let context = error.context;
                let message = format!(
                    "{}; this is not the server the CA belongs to, or the CA (--ca-file) is another cluster's",
                    error.message
                );
                return Err(gantry_client::TransportError { context, message }.into());
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(server, %error, "cannot reach the server, trying again");
                tokio::time::sleep(retry.next_delay()).await;
            }
            result => return result,
        }
    }
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn issued(name: &str, days: i64) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        Issued { certificate_pem: params.self_signed(&key).unwrap().pem(), key_pem: key.serialize_pem() }
    }

    #[test]
    fn the_certificate_is_kept_until_it_expires_and_under_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("client.pem");
        assert!(kept(&file, "n1").unwrap().is_none());
        let made = issued("system:node:n1", 1);
        keep_in(&file, &made).unwrap();
        let found = kept(&file, "n1").unwrap().unwrap();
        assert_eq!((found.certificate_pem, found.key_pem), (made.certificate_pem, made.key_pem));
        let error = kept(&file, "n").unwrap_err().to_string();
        assert!(error.contains("joined under another name than \"n\""), "{error}");
        keep_in(&file, &issued("system:node:n1", -1)).unwrap();
        assert!(kept(&file, "n1").unwrap().is_none());
        std::fs::write(&file, "half").unwrap();
        assert!(kept(&file, "n1").is_err());
    }
}
