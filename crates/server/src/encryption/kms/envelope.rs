//! What is stored of a value: its ciphertext, and what the key it was made with is derived from, itself encrypted by
//! the key management service (KEP-3299). The layout is upstream's, so that stores can be moved.

use crate::encryption::cipher::{Algorithm, Cipher};
use crate::encryption::joined;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use gantry_api::entropy::Entropy;
use gantry_api::meta::field::Path;
use gantry_api::meta::names;
use gantry_grpc::Message;
use std::collections::BTreeMap;

/// The source is the key itself.
const KEY: i32 = 0;
/// The source is a seed; the first bytes of each ciphertext say what key is derived from it.
pub const SEED: i32 = 1;

/// Length of a seed, of a derived key and of what it is derived with, in bytes.
pub const SEED_BYTES: usize = 32;

const SOURCE_MAX: usize = 1024;
const KEY_ID_MAX: usize = 1024;
const ANNOTATIONS_MAX: usize = 32 * 1024;

/// A stored value, behind the provider's prefix.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// The encrypted source of the key.
    #[prost(bytes = "vec", tag = "3")]
    pub source: Vec<u8>,
    /// What the service said when it encrypted the source, and wants to be told when it decrypts it.
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub source_type: i32,
}

/// Whether a key's id can be one; else a short name of what is wrong, and the sentence.
pub fn check_key_id(id: &str) -> Result<(), (&'static str, String)> {
    match id.len() {
        0 => Err(("empty", "keyID is empty".into())),
        1..=KEY_ID_MAX => Ok(()),
        n => Err(("too_long", format!("keyID is {n} bytes, which exceeds the max size of {KEY_ID_MAX}"))),
    }
}

fn check_annotations(annotations: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    let path = Path::new("annotations");
    let mut errors: Vec<String> = Vec::new();
    for key in annotations.keys() {
        errors.extend(names::fully_qualified_domain_name(&path, key).0.iter().map(ToString::to_string));
    }
    let size: usize = annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if size > ANNOTATIONS_MAX {
        errors.push(format!("total size of annotations is {size}, which exceeds the max size of {ANNOTATIONS_MAX}"));
    }
    if errors.is_empty() { Ok(()) } else { Err(joined(errors, "")) }
}

impl Envelope {
    /// Reads a stored value.
    ///
    /// # Errors
    /// What of it is wrong.
    pub fn read(stored: &[u8]) -> Result<Self, String> {
        let envelope = Self::decode(stored).map_err(|e| format!("proto: {e}"))?;
        if envelope.data.is_empty() {
            return Err("encrypted data is empty".into());
        }
        envelope.check()?;
        Ok(envelope)
    }

    /// Whether all but the data can be stored.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if !matches!(self.source_type, KEY | SEED) {
            return Err(format!("unknown encryptedDEKSourceType: {}", self.source_type));
        }
        let source = match self.source.len() {
            0 => Err("encrypted DEK source is empty".to_owned()),
            1..=SOURCE_MAX => Ok(()),
            n => Err(format!("encrypted DEK source is {n} bytes, which exceeds the max size of {SOURCE_MAX}")),
        };
        source.map_err(|why| format!("failed to validate encrypted DEK source: {why}"))?;
        check_key_id(&self.key_id).map_err(|(_, why)| format!("failed to validate key id: {why}"))?;
        check_annotations(&self.annotations).map_err(|why| format!("failed to validate annotations: {why}"))
    }

    /// What the source is known by: everything but the data, which is taken out.
    pub fn take_data(&mut self) -> (Vec<u8>, Vec<u8>) {
        let data = std::mem::take(&mut self.data);
        (data, self.encode_to_vec())
    }
}

/// A decrypted source.
pub enum Source {
    /// The key itself.
    Key(Cipher),
    /// What keys are derived from, each used once.
    Seed(Vec<u8>),
}

impl Source {
    /// The source a service has decrypted.
    ///
    /// # Errors
    /// Where it has the wrong length.
    pub fn new(source_type: i32, plain: Vec<u8>) -> Result<Self, String> {
        match source_type {
            SEED if plain.len() < SEED_BYTES => {
                Err(format!("invalid seed length {} used for key generation", plain.len()))
            }
            SEED => Ok(Self::Seed(plain)),
            _ => {
                let cipher = Cipher::new(Algorithm::AesGcm, &plain);
                cipher.map(Self::Key).ok_or_else(|| format!("crypto/aes: invalid key size {}", plain.len()))
            }
        }
    }

    /// Encrypts a value that will be stored at `place`.
    ///
    /// # Errors
    /// Where the library refuses.
    pub fn seal(&self, plain: &[u8], place: &[u8], entropy: &Entropy) -> Result<Vec<u8>, String> {
        match self {
            Source::Key(cipher) => cipher.seal(plain, place, entropy),
            Source::Seed(seed) => {
                let mut info = [0; SEED_BYTES];
                entropy.fill(&mut info);
                let sealed = derived(seed, &info)
                    .map_err(|e| format!("failed to derive write key from KDF: {e}"))?
                    .seal(plain, place, entropy)?;
                Ok([&info[..], &sealed[..]].concat())
            }
        }
    }

    /// Decrypts a value that is stored at `place`.
    ///
    /// # Errors
    /// Upstream's sentence for what was tampered with or made with another key.
    pub fn open(&self, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Source::Key(cipher) => cipher.open(sealed, place),
            Source::Seed(seed) => {
                let (info, sealed) = sealed
                    .split_first_chunk::<SEED_BYTES>()
                    .ok_or("the stored data was shorter than the required size")?;
                let cipher = derived(seed, info).map_err(|e| format!("failed to derive read key from KDF: {e}"))?;
                cipher.open(sealed, place)
            }
        }
    }
}

/// The key that HKDF expands from a seed.
fn derived(seed: &[u8], info: &[u8; SEED_BYTES]) -> Result<Cipher, String> {
    let failed = |_| "failed to KDF expand seed with info".to_owned();
    let mut key = [0; SEED_BYTES];
    let prk = Prk::new_less_safe(HKDF_SHA256, seed);
    prk.expand(&[info], HKDF_SHA256).map_err(failed)?.fill(&mut key).map_err(failed)?;
    Cipher::new(Algorithm::AesGcm, &key).ok_or_else(|| "a derived key has the wrong length".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            data: vec![1],
            key_id: "k".into(),
            source: vec![2],
            annotations: BTreeMap::from([("version.example.com".into(), vec![3])]),
            source_type: SEED,
        }
    }

    /// The bytes are those upstream's generated code writes for the same fields.
    #[test]
    fn the_layout_is_upstreams() {
        let bytes = envelope().encode_to_vec();
        assert_eq!(bytes[..9], [0x0a, 1, 1, 0x12, 1, b'k', 0x1a, 1, 2]);
        assert_eq!(bytes[9..13], [0x22, 24, 0x0a, 19]);
        assert_eq!(bytes[bytes.len() - 5..], [0x12, 1, 3, 0x28, 1]);
        assert_eq!(Envelope::read(&bytes).unwrap(), envelope());
        let (data, key) = Envelope { data: vec![9, 9], ..envelope() }.take_data();
        assert_eq!((data, key), (vec![9, 9], envelope().take_data().1));
    }

    #[test]
    fn what_cannot_be_stored_is_refused_with_upstreams_sentences() {
        let failure = |change: fn(&mut Envelope)| {
            let mut e = envelope();
            change(&mut e);
            Envelope::read(&e.encode_to_vec()).unwrap_err()
        };
        assert_eq!(failure(|e| e.data.clear()), "encrypted data is empty");
        assert_eq!(failure(|e| e.source_type = 7), "unknown encryptedDEKSourceType: 7");
        let source = "failed to validate encrypted DEK source: encrypted DEK source is";
        assert_eq!(failure(|e| e.source.clear()), format!("{source} empty"));
        let long = failure(|e| e.source = vec![0; 1025]);
        assert_eq!(long, format!("{source} 1025 bytes, which exceeds the max size of 1024"));
        assert_eq!(failure(|e| e.key_id.clear()), "failed to validate key id: keyID is empty");
        let long = failure(|e| e.key_id = "k".repeat(1025));
        assert!(long.ends_with("keyID is 1025 bytes, which exceeds the max size of 1024"), "{long}");
        let name = failure(|e| drop(e.annotations.insert("plain".into(), Vec::new())));
        assert!(name.starts_with("failed to validate annotations: annotations: Invalid value: \"plain\""), "{name}");
        let large = failure(|e| drop(e.annotations.insert("a.b".into(), vec![0; 32 * 1024])));
        assert!(large.contains("which exceeds the max size of 32768"), "{large}");
        assert!(Envelope::read(&[0xff, 0xff]).unwrap_err().starts_with("proto: "));
    }

    #[test]
    fn keys_are_derived_anew_for_every_value() {
        let entropy = Entropy::seeded(5);
        let source = Source::new(SEED, vec![7; SEED_BYTES]).unwrap();
        let sealed = source.seal(b"plain", b"/a", &entropy).unwrap();
        assert_ne!(sealed[..SEED_BYTES], source.seal(b"plain", b"/a", &entropy).unwrap()[..SEED_BYTES]);
        assert_eq!(source.open(&sealed, b"/a").unwrap(), b"plain");
        assert_eq!(source.open(&sealed, b"/b").unwrap_err(), "cipher: message authentication failed");
        let short = "the stored data was shorter than the required size";
        assert_eq!(source.open(&sealed[..20], b"/a").unwrap_err(), short);
        let other = Source::new(SEED, vec![8; SEED_BYTES]).unwrap();
        assert_eq!(other.open(&sealed, b"/a").unwrap_err(), "cipher: message authentication failed");
        assert!(Source::new(SEED, vec![1; 31]).is_err());
        assert!(Source::new(KEY, vec![1; 31]).is_err());
        let direct = Source::new(KEY, vec![1; 32]).unwrap();
        let sealed = direct.seal(b"plain", b"/a", &entropy).unwrap();
        assert_eq!(direct.open(&sealed, b"/a").unwrap(), b"plain");
        // RFC 5869, test case 1: what HKDF-Expand makes of that pseudorandom key.
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
        };
        let prk = hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
        let mut out = [0; 32];
        let expander = Prk::new_less_safe(HKDF_SHA256, &prk);
        expander.expand(&[&hex("f0f1f2f3f4f5f6f7f8f9")], HKDF_SHA256).unwrap().fill(&mut out).unwrap();
        assert_eq!(out[..], hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"));
    }
}
