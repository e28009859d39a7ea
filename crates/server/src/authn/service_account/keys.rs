//! The key that signs ServiceAccount tokens, and its public half as others see it.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// DER of the start of a SubjectPublicKeyInfo for an uncompressed P-256 point.
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The ServiceAccount key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the ServiceAccount signing key is not an ECDSA P-256 key in PKCS#8 PEM: {0}")]
pub struct KeyError(String);

/// The signing key and its public half.
pub struct Keys {
    signing: EncodingKey,
    verifying: DecodingKey,
    /// Key id: digest of the public key, as tokens and the key set name it.
    pub id: String,
    x: String,
    y: String,
}

impl Keys {
    /// Reads a PKCS#8 PEM private key.
    ///
    /// # Errors
    /// Where it is not an ECDSA P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| KeyError(e.to_string()))?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
            .map_err(|e| KeyError(e.to_string()))?;
        let point = pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..65]));
        let id = URL_SAFE_NO_PAD.encode(digest(&SHA256, &[&SPKI_P256[..], point].concat()));
        Ok(Self {
            signing: EncodingKey::from_ec_der(der.secret_pkcs8_der()),
            verifying: DecodingKey::from_ec_components(&x, &y).map_err(|e| KeyError(e.to_string()))?,
            id,
            x,
            y,
        })
    }

    /// Signs claims into a compact token.
    ///
    /// # Errors
    /// Where the key refuses.
    pub fn sign<T: Serialize>(&self, claims: &T) -> Result<String, jsonwebtoken::errors::Error> {
        let header = Header { alg: Algorithm::ES256, kid: Some(self.id.clone()), typ: None, ..Header::default() };
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    /// The claims of a token whose signature is ours. Validity in time, issuer and audiences are for the caller to check.
    ///
    /// # Errors
    /// Where the signature or the form is wrong.
    pub fn open<T: DeserializeOwned>(&self, token: &str) -> Result<T, jsonwebtoken::errors::Error> {
        // Time comes from the server's clock, not from the library's.
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Ok(jsonwebtoken::decode::<T>(token, &self.verifying, &validation)?.claims)
    }

    /// The public key as a JSON Web Key.
    #[must_use]
    pub fn jwk(&self) -> Value {
        json!({"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256", "x": self.x, "y": self.y})
    }
}
