//! Keys and certificates drawn from the seed. The cluster's CA is published in ConfigMaps, so it must be the same in two
//! runs from one seed: all certificates are Ed25519, whose signatures are a function of key and message.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_api::entropy::Entropy;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;

/// PKCS#8 of an Ed25519 key up to its 32 secret bytes (RFC 8410).
const ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// PKCS#8 of a P-256 key without its public half (RFC 5915), up to its 32 secret bytes.
const P256: [u8; 35] = [
    0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27, 0x30, 0x25, 0x02, 0x01, 0x01, 0x04, 0x20,
];

/// A certificate and its key, PEM.
pub(crate) struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// What a control plane needs.
pub(crate) struct Keys {
    pub ca: Identity,
    pub serving: Identity,
    pub service_account_key_pem: String,
}

fn secret(entropy: &Entropy) -> [u8; 32] {
    let mut secret = [0; 32];
    entropy.fill(&mut secret);
    // Below the order of P-256, and not 0.
    secret[0] = secret[0] & 0x7f | 1;
    secret
}

fn ed25519(entropy: &Entropy) -> Result<KeyPair, rcgen::Error> {
    let der = [&ED25519[..], &secret(entropy)].concat();
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(der))
}

/// Draws all keys.
pub(crate) fn draw(entropy: &Entropy) -> Result<Keys, rcgen::Error> {
    let ca_key = ed25519(entropy)?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "kubernetes");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let key = ed25519(entropy)?;
    let params = CertificateParams::new(vec!["kubernetes".into()])?;
    let serving_pem = params.signed_by(&key, &Issuer::new(ca, &ca_key))?.pem();
    let token_key = STANDARD.encode([&P256[..], &secret(entropy)].concat());
    Ok(Keys {
        ca: Identity { certificate_pem: ca_pem, key_pem: ca_key.serialize_pem() },
        serving: Identity { certificate_pem: serving_pem, key_pem: key.serialize_pem() },
        service_account_key_pem: format!("-----BEGIN PRIVATE KEY-----\n{token_key}\n-----END PRIVATE KEY-----\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_every_byte() {
        let text = |seed| {
            let k = draw(&Entropy::seeded(seed)).unwrap();
            [k.ca.certificate_pem, k.ca.key_pem, k.serving.certificate_pem, k.service_account_key_pem].join("\n")
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
