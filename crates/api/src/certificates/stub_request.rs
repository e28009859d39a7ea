//! The PKCS#10 requests (RFC 2986) of pod certificates: their keys, and the proof that who asks holds the private half.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509CertificationRequest};
use x509_parser::public_key::PublicKey;

const RSA: &str = "1.2.840.113549.1.1.1";
const EC: &str = "1.2.840.10045.2.1";
const ED25519: &str = "1.3.101.112";
/// The curves that Go knows, with their names.
const CURVES: [(&str, &str); 4] =
    [("1.2.840.10045.3.1.7", "P-256"), ("1.3.132.0.34", "P-384"), ("1.3.132.0.35", "P-521"), ("1.3.132.0.33", "P-224")];

/// What is wrong with a request, with the value to tell besides where it is not the request itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The text is told with the request.
    Request(&'static str),
    /// The text is told with another value.
    Key(String, &'static str),
    /// The text is told alone.
    Proof(&'static str),
}

/// Checks the key and the signature of a request in DER.
pub(super) fn check(der: &[u8]) -> Result<(), Fault> {
    const MALFORMED: Fault = Fault::Request("must be a valid PKCS#10 CSR");
    let Ok(([], request)) = X509CertificationRequest::from_der(der) else { return Err(MALFORMED) };
    let key = &request.certification_request_info.subject_pki;
    let bits: &[u8] = &key.subject_public_key.data;
    let signed_with = request.signature_algorithm.algorithm.to_id_string();
    let algorithms: &[&'static dyn VerificationAlgorithm] = match key.algorithm.algorithm.to_id_string().as_str() {
        ED25519 => &[&signature::ED25519],
        EC => match (curve(key).ok_or(MALFORMED)?, signed_with.as_str()) {
            ("P-256", "1.2.840.10045.4.3.2") => &[&signature::ECDSA_P256_SHA256_ASN1],
            ("P-256", "1.2.840.10045.4.3.3") => &[&signature::ECDSA_P256_SHA384_ASN1],
            ("P-256", "1.2.840.10045.4.3.4") => &[&signature::ECDSA_P256_SHA512_ASN1],
            ("P-384", "1.2.840.10045.4.3.2") => &[&signature::ECDSA_P384_SHA256_ASN1],
            ("P-384", "1.2.840.10045.4.3.3") => &[&signature::ECDSA_P384_SHA384_ASN1],
            ("P-384", "1.2.840.10045.4.3.4") => &[&signature::ECDSA_P384_SHA512_ASN1],
            ("P-521", "1.2.840.10045.4.3.2") => &[&signature::ECDSA_P521_SHA256_ASN1],
            ("P-521", "1.2.840.10045.4.3.3") => &[&signature::ECDSA_P521_SHA384_ASN1],
            ("P-521", "1.2.840.10045.4.3.4") => &[&signature::ECDSA_P521_SHA512_ASN1],
            ("P-256" | "P-384" | "P-521", _) => &[],
            (other, _) => {
                let told = "elliptic public keys must use curve P256, P384, or P521";
                return Err(Fault::Key(format!("curve {other}"), told));
            }
        },
        RSA => {
            let Ok(PublicKey::RSA(parsed)) = key.parsed() else { return Err(MALFORMED) };
            let size = parsed.modulus.iter().skip_while(|b| **b == 0).count() * 8;
            if size != 3072 && size != 4096 {
                let told = "RSA keys must have modulus size 3072 or 4096";
                return Err(Fault::Key(format!("{size}-bit modulus"), told));
            }
            match signed_with.as_str() {
                "1.2.840.113549.1.1.11" => &[&signature::RSA_PKCS1_2048_8192_SHA256],
                "1.2.840.113549.1.1.12" => &[&signature::RSA_PKCS1_2048_8192_SHA384],
                "1.2.840.113549.1.1.13" => &[&signature::RSA_PKCS1_2048_8192_SHA512],
                // Which digest it is stands in parameters; a signature verifies with that one only.
                "1.2.840.113549.1.1.10" => &[
                    &signature::RSA_PSS_2048_8192_SHA256,
                    &signature::RSA_PSS_2048_8192_SHA384,
                    &signature::RSA_PSS_2048_8192_SHA512,
                ],
                _ => &[],
            }
        }
        _ => return Err(Fault::Request("unknown public key type; supported types are Ed25519, ECDSA, and RSA")),
    };
    let (message, proof): (&[u8], &[u8]) = (request.certification_request_info.raw, &request.signature_value.data);
    if algorithms.iter().any(|a| UnparsedPublicKey::new(*a, bits).verify(message, proof).is_ok()) {
        return Ok(());
    }
    Err(Fault::Proof("could not verify proof-of-possession signature"))
}

fn curve(key: &SubjectPublicKeyInfo<'_>) -> Option<&'static str> {
    let oid = key.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string();
    CURVES.iter().find(|(id, _)| *id == oid).map(|(_, name)| *name)
}

/// Whether a certificate was made for the key of the request; None where the request cannot be read.
pub(super) fn is_for(request: &[u8], certificate: &SubjectPublicKeyInfo<'_>) -> Option<bool> {
    let (_, request) = X509CertificationRequest::from_der(request).ok()?;
    let asked = &request.certification_request_info.subject_pki;
    Some(
        asked.algorithm.algorithm == certificate.algorithm.algorithm
            && curve(asked) == curve(certificate)
            && asked.subject_public_key.data == certificate.subject_public_key.data,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize, SignatureAlgorithm};

    fn request(key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn every_kind_of_key_that_pods_may_have_is_proved() {
        let algorithms: [&'static SignatureAlgorithm; 4] = [
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ECDSA_P521_SHA512,
        ];
        for algorithm in algorithms {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert_eq!(check(&request(&key)), Ok(()), "{algorithm:?}");
        }
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072).unwrap();
        assert_eq!(check(&request(&rsa)), Ok(()));
        let small = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let told = "RSA keys must have modulus size 3072 or 4096";
        assert_eq!(check(&request(&small)), Err(Fault::Key("2048-bit modulus".into(), told)));
    }

    #[test]
    fn a_request_signed_by_another_key_proves_nothing() {
        let (a, b) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (mine, other) = (request(&a), request(&b));
        // The signature is the tail; that of the other is over the other's key.
        let (_, parsed) = X509CertificationRequest::from_der(&mine).unwrap();
        let signature: &[u8] = &parsed.signature_value.data;
        let at = mine.windows(signature.len()).rposition(|w| w == signature).unwrap();
        let mut forged = mine.clone();
        forged[at + 10] ^= 1;
        assert_eq!(check(&forged), Err(Fault::Proof("could not verify proof-of-possession signature")));
        assert_eq!(check(&mine[1..]), Err(Fault::Request("must be a valid PKCS#10 CSR")));
        let (_, other) = X509CertificationRequest::from_der(&other).unwrap();
        assert_eq!(is_for(&mine, &other.certification_request_info.subject_pki), Some(false));
        assert_eq!(is_for(&mine, &parsed.certification_request_info.subject_pki), Some(true));
    }
}
