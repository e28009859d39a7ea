//! Signing with the cluster's authority.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::jiff::Timestamp;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::time::Duration;
use time::OffsetDateTime;

/// No certificate is shorter than this, whatever is asked for: twice as long as it is backdated.
const SHORTEST: Duration = Duration::from_secs(600);
/// A certificate that is at least this long ends earlier by as much as it is backdated.
const LONG: Duration = Duration::from_secs(8 * 3600);
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
    let length = asked.map_or(longest, |a| if a > longest { longest } else { a.max(SHORTEST) });
    let at = |t: Timestamp| {
        OffsetDateTime::from_unix_timestamp(t.as_second()).map_err(|e| SignError::Authority(e.to_string()))
    };
    let now = at(now)?;
    request.params.not_before = now - BACKDATE;
    let end = if length < LONG { now + length } else { now - BACKDATE + length };
    // What the authority signs does not outlive it.
    request.params.not_after = end.min(end_of(ca_cert_pem).map_err(SignError::Authority)?);
    request.params.is_ca = IsCa::NoCa;
    let usages: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    request.params.key_usages.clear();
    request.params.extended_key_usages.clear();
    for usage in usages {
        match (key_usage(usage), extended_usage(usage)) {
            (Some(usage), _) => request.params.key_usages.push(usage),
            (None, Some(usage)) => request.params.extended_key_usages.push(usage),
            (None, None) => return Err(malformed(format!("unrecognized usages: [{usage}]"))),
        }
    }
    request.params.key_usages.dedup();
    request.signed_by(&issuer).map(|c| c.pem()).map_err(|e| malformed(e.to_string()))
}

fn end_of(ca_cert_pem: &str) -> Result<OffsetDateTime, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(ca_cert_pem.as_bytes()).map_err(|e| e.to_string())?;
    let certificate = pem.parse_x509().map_err(|e| e.to_string())?;
    Ok(certificate.validity().not_after.to_datetime())
}

fn key_usage(usage: &str) -> Option<KeyUsagePurpose> {
    Some(match usage {
        "signing" | "digital signature" => KeyUsagePurpose::DigitalSignature,
        "content commitment" => KeyUsagePurpose::ContentCommitment,
        "key encipherment" => KeyUsagePurpose::KeyEncipherment,
        "data encipherment" => KeyUsagePurpose::DataEncipherment,
        "key agreement" => KeyUsagePurpose::KeyAgreement,
        "cert sign" => KeyUsagePurpose::KeyCertSign,
        "crl sign" => KeyUsagePurpose::CrlSign,
        "encipher only" => KeyUsagePurpose::EncipherOnly,
        "decipher only" => KeyUsagePurpose::DecipherOnly,
        _ => return None,
    })
}

fn extended_usage(usage: &str) -> Option<ExtendedKeyUsagePurpose> {
    Some(match usage {
        "any" => ExtendedKeyUsagePurpose::Any,
        "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
        "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
        "code signing" => ExtendedKeyUsagePurpose::CodeSigning,
        "email protection" | "s/mime" => ExtendedKeyUsagePurpose::EmailProtection,
        "timestamping" => ExtendedKeyUsagePurpose::TimeStamping,
        "ocsp signing" => ExtendedKeyUsagePurpose::OcspSigning,
        // RFC 2459 and the vendors' own.
        "ipsec end system" => ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 5]),
        "ipsec tunnel" => ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 6]),
        "ipsec user" => ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 7]),
        "microsoft sgc" => ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
        "netscape sgc" => ExtendedKeyUsagePurpose::Other(vec![2, 16, 840, 1, 113_730, 4, 1]),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{
        API_CLIENT_SIGNER, CLIENT_SIGNER, LEGACY_SIGNER, Recognised, SERVING_SIGNER, recognise, verify,
    };
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
    fn each_signer_has_its_own_rules() {
        let client = ["digital signature", "client auth"];
        let told = |signer: &str, usages: &[&str], addresses: &[&str]| verify(&request(signer, "x", usages, addresses));
        let refused = |why: &str| Some(Err(why.to_owned()));
        assert_eq!(told(API_CLIENT_SIGNER, &client, &["10.0.0.1"]), Some(Ok(())));
        assert_eq!(told(API_CLIENT_SIGNER, &["client auth"], &[]), Some(Ok(())));
        let why = "missing required usage for client certificate: client auth";
        assert_eq!(told(API_CLIENT_SIGNER, &["digital signature"], &[]), refused(why));
        let why = "invalid usage for client certificate: server auth";
        assert_eq!(told(API_CLIENT_SIGNER, &["server auth"], &[]), refused(why));
        assert_eq!(told(LEGACY_SIGNER, &["any"], &[]), Some(Ok(())));
        assert_eq!(told(CLIENT_SIGNER, &client, &["10.0.0.1"]), refused("IP subjectAltNames are not allowed"));
        let why = "usages did not match [client auth digital signature key encipherment]";
        assert_eq!(told(CLIENT_SIGNER, &["client auth"], &[]), refused(why));
        assert_eq!(told(SERVING_SIGNER, &client, &[]), refused("DNS or IP subjectAltName is required"));
        assert_eq!(told("example.com/x", &client, &[]), None);
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
        // Short ones are made as long as clocks differ, long ones end earlier by what they begin earlier.
        for (asked, length) in
            [(Some(1), 600), (Some(7 * 3600), 7 * 3600), (None, 86400 - 300), (Some(1 << 30), 86400 - 300)]
        {
            csr.spec.expiration_seconds = asked;
            let pem = sign(&csr, &ca_cert.pem(), &ca_key.serialize_pem(), now, day).unwrap();
            let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            assert_eq!(pem.parse_x509().unwrap().validity().not_after.timestamp(), 1_900_000_000 + length, "{asked:?}");
        }
        let end = end_of(&ca_cert.pem()).unwrap();
        let late = Timestamp::from_second(end.unix_timestamp() - 3600).unwrap();
        let pem = sign(&csr, &ca_cert.pem(), &ca_key.serialize_pem(), late, day).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        assert_eq!(pem.parse_x509().unwrap().validity().not_after.to_datetime(), end);
        csr.spec.request = ByteString(b"-----BEGIN".to_vec());
        assert!(sign(&csr, &ca_cert.pem(), &ca_key.serialize_pem(), now, day).is_err());
    }
}
