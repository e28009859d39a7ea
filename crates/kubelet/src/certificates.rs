//! A node's certificates: asked for by a CertificateSigningRequest, waited for by a watch, replaced before they end.

use futures::StreamExt;
use gantry_api::kind::Kind;
use gantry_client::{Api, Client, PostParams, WatchEvent, WatchParams};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use std::net::IpAddr;
use std::time::Duration;
use x509_parser::extensions::GeneralName;

/// A request that is not answered by then is given up (client-go's `certificateWaitTimeout`).
const WAIT: Duration = Duration::from_secs(900);
/// Pause before a watch that broke is begun anew.
const AGAIN: Duration = Duration::from_secs(1);
/// Certificates are not replaced more often than this, however short their lives.
const BREATH: Duration = Duration::from_secs(10);

/// What a certificate is for.
#[derive(Debug, Clone, Copy)]
pub enum Purpose<'a> {
    /// To be shown to the API server: signer `kubernetes.io/kube-apiserver-client-kubelet`.
    Client,
    /// To be shown to those who fetch logs and the like: signer `kubernetes.io/kubelet-serving`, for these addresses.
    Serving(&'a [IpAddr]),
}

/// A certificate chain and its key, PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Certificate chain.
    pub certificate_pem: String,
    /// Private key.
    pub key_pem: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Key or request could not be made.
    #[error("cannot make a certificate signing request: {0}")]
    Make(#[from] rcgen::Error),
    /// The API server refused the request or could not be reached.
    #[error("cannot create certificate signing request: {0}")]
    Create(#[source] gantry_client::Error),
    /// The API server refused to show what became of it.
    #[error("cannot watch on the certificate signing request: {0}")]
    Watch(#[source] gantry_client::Error),
    /// A person or a controller said no.
    #[error("certificate signing request {outcome}, reason: {reason}, message: {message}")]
    Refused {
        /// `is denied` or `failed`.
        outcome: &'static str,
        /// The condition's reason.
        reason: String,
        /// The condition's message.
        message: String,
    },
    /// Somebody removed the request.
    #[error("certificate signing request {0:?} was deleted")]
    Deleted(String),
    /// Nobody answered.
    #[error("certificate signing request {0:?} was not answered within 15 minutes")]
    Unanswered(String),
    /// What was issued is no certificate.
    #[error("the certificate issued for {0:?} is not PEM")]
    Malformed(String),
}

impl RequestError {
    /// The failure of a request to the API server, where it was one.
    #[must_use]
    pub fn api(&self) -> Option<&gantry_client::Error> {
        match self {
            Self::Create(error) | Self::Watch(error) => Some(error),
            _ => None,
        }
    }
}

/// When a certificate (PEM) ends; `None` where it cannot be read.
#[must_use]
pub fn expiry(certificate_pem: &str) -> Option<Timestamp> {
    validity(certificate_pem).map(|(_, to)| to)
}

/// When a certificate (PEM) should be replaced: after four fifths of its life.
#[must_use]
pub fn renewal(certificate_pem: &str) -> Option<Timestamp> {
    let (from, to) = validity(certificate_pem)?;
    Timestamp::from_second(from.as_second() + (to.as_second() - from.as_second()) / 5 * 4).ok()
}

fn validity(certificate_pem: &str) -> Option<(Timestamp, Timestamp)> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let at = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).ok();
    Some((at(certificate.validity().not_before)?, at(certificate.validity().not_after)?))
}

/// Whether a serving certificate (PEM) names all of `addresses`.
pub(crate) fn names_all(certificate_pem: &str, addresses: &[IpAddr]) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()) else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let octets = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    addresses.iter().map(octets).all(|wanted| {
        names.value.general_names.iter().any(|n| matches!(n, GeneralName::IPAddress(held) if *held == wanted))
    })
}

/// Waits until a certificate (PEM) should be replaced.
pub async fn until_renewal(certificate_pem: &str, clock: &gantry_api::clock::Clock) {
    let left = renewal(certificate_pem).map(|at| at.duration_since(clock.now()));
    let left = left.and_then(|d| Duration::try_from(d).ok()).unwrap_or_default();
    tokio::time::sleep(left.max(BREATH)).await;
}

/// Key and signing request, both PEM.
fn signing_request(node: &str, purpose: Purpose<'_>) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    if let Purpose::Serving(addresses) = purpose {
        params = CertificateParams::new(vec![node.to_owned()])?;
        params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    }
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    let request = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

/// Asks for a certificate of `node` with a new key, and waits for it.
///
/// # Errors
/// See [`RequestError`].
pub async fn request(client: &Client, node: &str, purpose: Purpose<'_>) -> Result<Issued, RequestError> {
    let (key_pem, request) = signing_request(node, purpose)?;
    let (prefix, signer, usage) = match purpose {
        Purpose::Client => ("node-csr-", "kubernetes.io/kube-apiserver-client-kubelet", "client auth"),
        Purpose::Serving(_) => ("csr-", "kubernetes.io/kubelet-serving", "server auth"),
    };
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some(prefix.into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    };
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let made = api.create(&PostParams::default(), &object).await.map_err(RequestError::Create)?;
    let name = made.metadata.name.unwrap_or_default();
    tracing::info!(name, signer, "requested a certificate");
    let selector = format!("metadata.name={name}");
    let waiting = tokio::time::timeout(WAIT, answer(&api, &name, &selector, outcome));
    let certificate = waiting.await.map_err(|_| RequestError::Unanswered(name.clone()))??;
    let certificate_pem = String::from_utf8(certificate).map_err(|_| RequestError::Malformed(name))?;
    Ok(Issued { certificate_pem, key_pem })
}

/// What `outcome` makes of the object, once it makes something of it.
///
/// # Errors
/// What `outcome` answers, or where the object is gone or cannot be watched.
pub(crate) async fn answer<K: Kind, T>(
    api: &Api<K>,
    name: &str,
    selector: &str,
    outcome: impl Fn(K) -> Result<Option<T>, RequestError>,
) -> Result<T, RequestError> {
    let params = WatchParams { field_selector: Some(selector.to_owned()), ..WatchParams::default() };
    loop {
        // Without a version to start after, a watch begins with the object as it is.
        match api.watch(&params).await {
            Ok(mut events) => {
                while let Some(event) = events.next().await {
                    match event {
                        Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                            if let Some(answer) = outcome(object)? {
                                return Ok(answer);
                            }
                        }
                        Ok(WatchEvent::Deleted(_)) => return Err(RequestError::Deleted(name.to_owned())),
                        Ok(WatchEvent::Bookmark { .. }) => {}
                        Err(error) => {
                            tracing::debug!(name, %error, "the watch on the certificate request ended");
                            break;
                        }
                    }
                }
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(name, %error, "cannot watch on the certificate request, trying again");
            }
            Err(error) => return Err(RequestError::Watch(error)),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn outcome(csr: CertificateSigningRequest) -> Result<Option<Vec<u8>>, RequestError> {
    let status = csr.status.unwrap_or_default();
    for condition in status.conditions.into_iter().flatten() {
        let outcome = match condition.type_.as_str() {
            "Denied" => "is denied",
            "Failed" => "failed",
            _ => continue,
        };
        let (reason, message) = (condition.reason.unwrap_or_default(), condition.message.unwrap_or_default());
        return Err(RequestError::Refused { outcome, reason, message });
    }
    Ok(status.certificate.map(|c| c.0).filter(|c| !c.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;
    use x509_parser::prelude::FromDer;

    #[test]
    fn requests_name_the_node_and_serving_ones_its_addresses() {
        for (purpose, names) in [(Purpose::Client, 0), (Purpose::Serving(&["192.0.2.1".parse().unwrap()]), 2)] {
            let (key, pem) = signing_request("n1", purpose).unwrap();
            assert!(key.contains("PRIVATE KEY") && pem.contains("CERTIFICATE REQUEST"));
            let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let (_, parsed) =
                x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents).unwrap();
            assert_eq!(parsed.certification_request_info.subject.to_string(), "O=system:nodes, CN=system:node:n1");
            let found: usize = parsed
                .requested_extensions()
                .into_iter()
                .flatten()
                .map(|e| match e {
                    x509_parser::extensions::ParsedExtension::SubjectAlternativeName(san) => san.general_names.len(),
                    _ => 0,
                })
                .sum();
            assert_eq!(found, names);
        }
    }

    #[test]
    fn renewal_is_at_four_fifths() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["n".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 11);
        let pem = params.self_signed(&key).unwrap().pem();
        assert_eq!(renewal(&pem), Some("2026-01-09T00:00:00Z".parse().unwrap()));
        assert_eq!(expiry(&pem), Some("2026-01-11T00:00:00Z".parse().unwrap()));
        assert_eq!(renewal("nothing"), None);
        let ips: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        params.subject_alt_names = ips.iter().map(|ip| SanType::IpAddress(*ip)).collect();
        let pem = params.self_signed(&key).unwrap().pem();
        assert!(names_all(&pem, &ips) && !names_all(&pem, &["192.0.2.2".parse().unwrap()]));
    }

    #[test]
    fn refusals_read_as_upstreams() {
        let csr = |status| CertificateSigningRequest::from_value(json!({"status": status})).unwrap();
        assert_eq!(outcome(csr(json!({}))).unwrap(), None);
        let denied =
            csr(json!({"conditions": [{"type": "Denied", "status": "True", "reason": "No", "message": "why"}]}));
        assert_eq!(
            outcome(denied).unwrap_err().to_string(),
            "certificate signing request is denied, reason: No, message: why"
        );
        assert_eq!(outcome(csr(json!({"certificate": "UEVN"}))).unwrap(), Some(b"PEM".to_vec()));
    }
}
