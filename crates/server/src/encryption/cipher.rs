//! The ciphers that values are encrypted with, each in the layout upstream stores it in.

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey,
    PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use crypto_secretbox::aead::{AeadInPlace, KeyInit};
use crypto_secretbox::{Tag, XSalsa20Poly1305};
use gantry_api::entropy::Entropy;

const CBC_IV: usize = 16;
const CBC_BLOCK: usize = 16;
const GCM_NONCE: usize = 12;
const SECRETBOX_NONCE: usize = 24;
const SECRETBOX_TAG: usize = 16;

const TOO_SHORT: &str = "the stored data was shorter than the required size";

/// A sort of cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// AES in CBC mode with PKCS#7 padding: the initialization vector, and then the ciphertext. Nothing tells whether it
    /// was tampered with.
    AesCbc,
    /// AES in GCM mode: the nonce, the ciphertext, the tag, which covers the place the value is stored at, too.
    AesGcm,
    /// `XSalsa20` and Poly1305: the nonce, the tag, the ciphertext.
    Secretbox,
}

impl Algorithm {
    /// The provider's name in configurations.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Algorithm::AesCbc => "aescbc",
            Algorithm::AesGcm => "aesgcm",
            Algorithm::Secretbox => "secretbox",
        }
    }

    /// What its values begin with.
    #[must_use]
    pub const fn prefix(self) -> &'static [u8] {
        match self {
            Algorithm::AesCbc => b"k8s:enc:aescbc:v1:",
            Algorithm::AesGcm => b"k8s:enc:aesgcm:v1:",
            Algorithm::Secretbox => b"k8s:enc:secretbox:v1:",
        }
    }

    /// Lengths a key may have in bytes.
    #[must_use]
    pub const fn key_lengths(self) -> &'static [usize] {
        match self {
            Algorithm::AesCbc | Algorithm::AesGcm => &[16, 24, 32],
            Algorithm::Secretbox => &[32],
        }
    }

    /// What is said of a value that names a key which is not there.
    #[must_use]
    pub const fn no_such_key(self) -> &'static str {
        match self {
            Algorithm::AesCbc | Algorithm::AesGcm => "no matching key was found for the provided AES transformer",
            Algorithm::Secretbox => "no matching key was found for the provided Secretbox transformer",
        }
    }
}

/// A cipher with its key.
pub enum Cipher {
    Cbc { encrypt: Box<PaddedBlockEncryptingKey>, decrypt: Box<PaddedBlockDecryptingKey> },
    Gcm(Box<LessSafeKey>),
    Secretbox(Box<XSalsa20Poly1305>),
}

impl Cipher {
    /// A cipher with this key; None where the key has not the right length.
    #[must_use]
    pub fn new(algorithm: Algorithm, key: &[u8]) -> Option<Self> {
        match algorithm {
            Algorithm::AesCbc => {
                let sort = match key.len() {
                    16 => &AES_128,
                    24 => &AES_192,
                    32 => &AES_256,
                    _ => return None,
                };
                let unbound = || UnboundCipherKey::new(sort, key).ok();
                let encrypt = Box::new(PaddedBlockEncryptingKey::cbc_pkcs7(unbound()?).ok()?);
                let decrypt = Box::new(PaddedBlockDecryptingKey::cbc_pkcs7(unbound()?).ok()?);
                Some(Cipher::Cbc { encrypt, decrypt })
            }
            Algorithm::AesGcm => {
                let sort = match key.len() {
                    16 => &AES_128_GCM,
                    24 => &AES_192_GCM,
                    32 => &AES_256_GCM,
                    _ => return None,
                };
                Some(Cipher::Gcm(Box::new(LessSafeKey::new(UnboundKey::new(sort, key).ok()?))))
            }
            Algorithm::Secretbox => Some(Cipher::Secretbox(Box::new(XSalsa20Poly1305::new_from_slice(key).ok()?))),
        }
    }

    /// Encrypts a value that will be stored at `place`.
    ///
    /// # Errors
    /// Where the library refuses.
    pub fn seal(&self, plain: &[u8], place: &[u8], entropy: &Entropy) -> Result<Vec<u8>, String> {
        match self {
            Cipher::Cbc { encrypt, .. } => {
                let mut iv = [0; CBC_IV];
                entropy.fill(&mut iv);
                let mut text = plain.to_vec();
                let context = EncryptionContext::Iv128(FixedLength::from(iv));
                encrypt.less_safe_encrypt(&mut text, context).map_err(|_| "AES-CBC failed".to_owned())?;
                Ok([&iv[..], &text[..]].concat())
            }
            Cipher::Gcm(key) => {
                let mut nonce = [0; GCM_NONCE];
                entropy.fill(&mut nonce);
                let mut text = plain.to_vec();
                key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut text)
                    .map_err(|_| "AES-GCM failed".to_owned())?;
                Ok([&nonce[..], &text[..]].concat())
            }
            Cipher::Secretbox(key) => {
                let mut nonce = [0; SECRETBOX_NONCE];
                entropy.fill(&mut nonce);
                let mut text = plain.to_vec();
                let tag = key
                    .encrypt_in_place_detached(&nonce.into(), b"", &mut text)
                    .map_err(|_| "secretbox failed".to_owned())?;
                Ok([&nonce[..], &tag[..], &text[..]].concat())
            }
        }
    }

    /// Decrypts a value that is stored at `place`.
    ///
    /// # Errors
    /// Upstream's sentence for a value that is not this key's, or was tampered with.
    pub fn open(&self, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
        let too_short = || TOO_SHORT.to_owned();
        match self {
            Cipher::Cbc { decrypt, .. } => {
                let (iv, text) = sealed.split_first_chunk::<CBC_IV>().ok_or_else(too_short)?;
                if text.is_empty() || text.len() % CBC_BLOCK != 0 {
                    return Err("the stored data is not a multiple of the block size".into());
                }
                let mut text = text.to_vec();
                let context = DecryptionContext::Iv128(FixedLength::from(*iv));
                let plain = decrypt.decrypt(&mut text, context);
                plain.map(|p| p.to_vec()).map_err(|_| "invalid padding on input".to_owned())
            }
            Cipher::Gcm(key) => {
                let (nonce, text) = sealed.split_first_chunk::<GCM_NONCE>().ok_or_else(too_short)?;
                let mut text = text.to_vec();
                let plain = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(place), &mut text);
                plain.map(|p| p.to_vec()).map_err(|_| "cipher: message authentication failed".to_owned())
            }
            Cipher::Secretbox(key) => {
                let (nonce, rest) = sealed.split_first_chunk::<SECRETBOX_NONCE>().ok_or_else(too_short)?;
                let (tag, text) = rest.split_first_chunk::<SECRETBOX_TAG>().ok_or_else(too_short)?;
                let mut text = text.to_vec();
                let opened = key.decrypt_in_place_detached(&(*nonce).into(), b"", &mut text, Tag::from_slice(tag));
                // Upstream says this, whatever is wrong.
                opened.map_err(|_| "output array was not large enough for encryption".to_owned())?;
                Ok(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn what_is_sealed_can_be_opened_with_the_same_key_only() {
        let entropy = Entropy::seeded(7);
        for algorithm in [Algorithm::AesCbc, Algorithm::AesGcm, Algorithm::Secretbox] {
            for length in algorithm.key_lengths() {
                let cipher = Cipher::new(algorithm, &vec![3; *length]).unwrap();
                let other = Cipher::new(algorithm, &vec![4; *length]).unwrap();
                for plain in [&b""[..], b"exactly 16 bytes", b"some text of another length"] {
                    let sealed = cipher.seal(plain, b"/a", &entropy).unwrap();
                    assert_ne!(sealed, cipher.seal(plain, b"/a", &entropy).unwrap(), "never twice the same");
                    assert_eq!(cipher.open(&sealed, b"/a").unwrap(), plain, "{algorithm:?} {length}");
                    assert_ne!(other.open(&sealed, b"/a").as_deref(), Ok(plain), "{algorithm:?} {length}");
                    assert!(cipher.open(&sealed[..10], b"/a").unwrap_err().contains("shorter"));
                }
            }
            assert!(Cipher::new(algorithm, &[1; 20]).is_none());
        }
        let gcm = Cipher::new(Algorithm::AesGcm, &[3; 32]).unwrap();
        let sealed = gcm.seal(b"x", b"/a", &entropy).unwrap();
        assert_eq!(gcm.open(&sealed, b"/b").unwrap_err(), "cipher: message authentication failed");
        let cbc = Cipher::new(Algorithm::AesCbc, &[3; 32]).unwrap();
        assert!(cbc.open(&[0; 40], b"").unwrap_err().contains("block size"));
    }

    /// The layouts are those of others: values made by independent implementations can be read.
    #[test]
    fn values_of_others() {
        // NIST SP 800-38A, F.2.5 (CBC-AES256), with a block of padding encrypted along.
        let key = bytes("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        let cbc = Cipher::new(Algorithm::AesCbc, &key).unwrap();
        let first = bytes("000102030405060708090a0b0c0d0e0ff58c4c04d6e5f1ba779eabfb5f7bfbd6");
        let plain = bytes("6bc1bee22e409f96e93d7e117393172a");
        let Cipher::Cbc { encrypt, .. } = &cbc else { panic!() };
        let mut text = plain.clone();
        let iv = EncryptionContext::Iv128(FixedLength::from(<[u8; 16]>::try_from(&first[..16]).unwrap()));
        encrypt.less_safe_encrypt(&mut text, iv).unwrap();
        assert_eq!(text[..16], first[16..]);
        // The AES-GCM specification, test case 16, without its first lines of authenticated data.
        let key = bytes("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
        let gcm = Cipher::new(Algorithm::AesGcm, &key).unwrap();
        let sealed = bytes(
            "cafebabefacedbaddecaf888522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3d\
             a7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
        );
        let place = bytes("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let plain = bytes(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5\
             aa0de657ba637b39",
        );
        assert_eq!(gcm.open(&sealed, &place).unwrap(), plain);
        // The example of NaCl's documentation.
        let key = bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let secretbox = Cipher::new(Algorithm::Secretbox, &key).unwrap();
        let sealed = bytes(
            "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba\
             32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738\
             b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622\
             a43d14a6599b1f654cb45a74e355a5",
        );
        let plain = secretbox.open(&sealed, b"").unwrap();
        assert_eq!((plain.len(), &plain[..4]), (131, &[0xbe, 0x07, 0x5f, 0xc5][..]));
    }
}
