//! Signing with the cluster's authority.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::jiff::Timestamp;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::time::Duration;
use time::OffsetDateTime;

/// Clocks of other machines may lag (upstream backdates by the same).
const BACKDATE: Duration = Duration::from_secs(300);

/// Why a request was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is malformed.
    #[error("unable to parse csr {name:?}: {message}")]
    Request {
        /// Name of the object.
        name: String,
        /// Why.
        message: String,
    },
    /// The authority cannot be used.
    #[error("cluster CA: {0}")]
    Authority(String),
}

/// Signs an approved request: PEM certificate with the subject, names and key asked for, the usages of the spec, valid for
/// `longest` or the shorter time asked for.
///
/// # Errors
/// A malformed request or an unusable authority.
pub fn sign(
    csr: &CertificateSigningRequest,
    ca_cert_pem: &str,
    ca_key_pem: &str,
    now: Timestamp,
    longest: Duration,
) -> Result<String, SignError> {
    let malformed =
        |message: String| SignError::Request { name: csr.metadata.name.clone().unwrap_or_default(), message };
    let text = std::str::from_utf8(&csr.spec.request.0).map_err(|e| malformed(e.to_string()))?;
    let mut request = CertificateSigningRequestParams::from_pem(text).map_err(|e| malformed(e.to_string()))?;
    let authority = |e: rcgen::Error| SignError::Authority(e.to_string());
    let key = KeyPair::from_pem(ca_key_pem).map_err(authority)?;
    let issuer = Issuer::from_ca_cert_pem(ca_cert_pem, &key).map_err(authority)?;
    let asked = csr.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    let length = asked.map_or(longest, |a| a.min(longest));
    let at = |t: Timestamp| {
        OffsetDateTime::from_unix_timestamp(t.as_second()).map_err(|e| SignError::Authority(e.to_string()))
    };
    let now = at(now)?;
    request.params.not_before = now - BACKDATE;
    request.params.not_after = now + length;
    request.params.is_ca = IsCa::NoCa;
    let usages: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    request.params.key_usages = usages
        .iter()
        .filter_map(|u| match *u {
            "digital signature" => Some(KeyUsagePurpose::DigitalSignature),
            "key encipherment" => Some(KeyUsagePurpose::KeyEncipherment),
            _ => None,
        })
        .collect();
    request.params.extended_key_usages = usages
        .iter()
        .filter_map(|u| match *u {
            "client auth" => Some(ExtendedKeyUsagePurpose::ClientAuth),
            "server auth" => Some(ExtendedKeyUsagePurpose::ServerAuth),
            _ => None,
        })
        .collect();
    request.signed_by(&issuer).map(|c| c.pem()).map_err(|e| malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::{CLIENT_SIGNER, Recognised, SERVING_SIGNER, recognise};
    use super::*;
    use k8s_openapi::ByteString;
    use rcgen::{BasicConstraints, CertificateParams, DnType, SanType};

    fn request(signer: &str, username: &str, usages: &[&str], addresses: &[&str]) -> CertificateSigningRequest {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        params.subject_alt_names = addresses.iter().map(|a| SanType::IpAddress(a.parse().unwrap())).collect();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let mut csr = CertificateSigningRequest::default();
        csr.spec.request = ByteString(pem.into_bytes());
        csr.spec.signer_name = signer.into();
        csr.spec.username = Some(username.into());
        csr.spec.usages = Some(usages.iter().map(|u| (*u).to_owned()).collect());
        csr
    }

    #[test]
    fn recognises_only_nodes_own_requests() {
        let client = ["digital signature", "client auth"];
        let serving = ["digital signature", "key encipherment", "server auth"];
        for (csr, expected) in [
            (request(CLIENT_SIGNER, "system:bootstrap:x", &client, &[]), Some(Recognised::NodeClient { own: false })),
            (request(CLIENT_SIGNER, "system:node:n1", &client, &[]), Some(Recognised::NodeClient { own: true })),
            (request(CLIENT_SIGNER, "system:node:n1", &serving, &[]), None),
            (request(CLIENT_SIGNER, "x", &["client auth", "digital signature", "any"], &[]), None),
            (request(CLIENT_SIGNER, "x", &client, &["10.0.0.1"]), None),
            (request(SERVING_SIGNER, "system:node:n2", &serving, &["10.0.0.1"]), None),
            (
                request(SERVING_SIGNER, "system:node:n1", &serving, &["10.0.0.1"]),
                Some(Recognised::NodeServing { node: "n1".into(), names: vec!["10.0.0.1".into()] }),
            ),
            (request("example.com/x", "system:node:n1", &client, &[]), None),
        ] {
            assert_eq!(recognise(&csr), expected, "{:?}", csr.spec.signer_name);
        }
        let mut garbage = request(CLIENT_SIGNER, "x", &client, &[]);
        garbage.spec.request = ByteString(b"hello".to_vec());
        assert_eq!(recognise(&garbage), None);
    }

    #[test]
    fn signs_what_was_asked_for() {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_cert = ca.self_signed(&ca_key).unwrap();
        let mut csr = request(SERVING_SIGNER, "system:node:n1", &["digital signature", "server auth"], &["10.0.0.1"]);
        csr.spec.expiration_seconds = Some(3600);
        let now = Timestamp::from_second(1_900_000_000).unwrap();
        let day = Duration::from_secs(86400);
        let pem = sign(&csr, &ca_cert.pem(), &ca_key.serialize_pem(), now, day).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        assert_eq!(cert.subject().to_string(), "O=system:nodes, CN=system:node:n1");
        assert_eq!(cert.validity().not_after.timestamp(), 1_900_003_600);
        assert!(!cert.is_ca());
        assert!(cert.extended_key_usage().unwrap().unwrap().value.server_auth);
        csr.spec.request = ByteString(b"-----BEGIN".to_vec());
        assert!(sign(&csr, &ca_cert.pem(), &ca_key.serialize_pem(), now, day).is_err());
    }
}
