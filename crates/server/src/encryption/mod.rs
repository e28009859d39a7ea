//! Encryption at rest: what is stored of chosen resources is encrypted on its way from the registry to the store and
//! decrypted on its way back, as an `EncryptionConfiguration` says (`k8s.io/apiserver/pkg/storage/value`).
//!
//! A stored value tells what made it, `k8s:enc:<provider>:v1:<key>:`. What tells nothing is not encrypted. Keys are
//! in the configuration or with a key management service ([`kms`]).

mod cipher;
mod config;
mod kms;

use bytes::Bytes;
use cipher::{Algorithm, Cipher};
use gantry_api::entropy::Entropy;
use gantry_api::kind::Resource;
use kms::Kms;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What every encrypted value begins with.
const ENCRYPTED: &[u8] = b"k8s:enc:";
/// Any group, any resource.
const ANY: &str = "*";

/// One way to store values.
enum Provider {
    /// As they are.
    Identity,
    /// Encrypted; the first key is written with. A key is known by what comes before the ciphertext, `name:`.
    Keys(Algorithm, Vec<(Vec<u8>, Cipher)>),
    /// Encrypted with keys that a key management service keeps.
    Kms(Arc<Kms>),
}

/// Upstream's list of what went wrong.
fn joined(mut errors: Vec<String>, otherwise: &str) -> String {
    errors.dedup();
    match errors.len() {
        0 => otherwise.to_owned(),
        1 => errors.remove(0),
        _ => format!("[{}]", errors.join(", ")),
    }
}

impl Provider {
    fn prefix(&self) -> &[u8] {
        match self {
            Provider::Identity => b"",
            Provider::Keys(algorithm, _) => algorithm.prefix(),
            Provider::Kms(kms) => kms.prefix(),
        }
    }

    fn seal(&self, place: &[u8], plain: &[u8], entropy: &Entropy) -> Result<Vec<u8>, String> {
        match self {
            Provider::Identity => Ok(plain.to_vec()),
            Provider::Keys(algorithm, keys) => {
                let (name, cipher) = keys.first().ok_or(algorithm.no_such_key())?;
                let sealed = cipher.seal(plain, place, entropy)?;
                Ok([algorithm.prefix(), &name[..], &sealed[..]].concat())
            }
            Provider::Kms(kms) => Ok([kms.prefix(), &kms.seal(plain, place)?].concat()),
        }
    }

    /// The value, and whether another key than the first was needed.
    fn open(&self, place: &[u8], sealed: &[u8]) -> Result<(Vec<u8>, bool), String> {
        let (algorithm, keys) = match self {
            Provider::Keys(algorithm, keys) => (algorithm, keys),
            Provider::Kms(kms) => return kms.open(sealed, place),
            Provider::Identity if sealed.starts_with(ENCRYPTED) => {
                return Err("identity transformer tried to read encrypted data".to_owned());
            }
            Provider::Identity => return Ok((sealed.to_vec(), false)),
        };
        let mut errors = Vec::new();
        for (i, (name, cipher)) in keys.iter().enumerate() {
            let Some(rest) = sealed.strip_prefix(&name[..]) else { continue };
            match cipher.open(rest, place) {
                Ok(plain) => return Ok((plain, i != 0)),
                Err(why) => errors.push(why),
            }
        }
        Err(joined(errors, algorithm.no_such_key()))
    }
}

/// How the values of a resource are stored. Cheap to clone.
#[derive(Clone)]
pub struct Transformer {
    /// The first is written with; None for what no configuration speaks of.
    providers: Option<Arc<Vec<Arc<Provider>>>>,
    entropy: Entropy,
}

impl Transformer {
    /// What is stored of a value. `place` is the key it is stored under.
    ///
    /// # Errors
    /// Where it cannot be encrypted.
    pub fn seal(&self, place: &[u8], plain: &Bytes) -> Result<Bytes, String> {
        match self.providers.as_ref().and_then(|p| p.first()).map(AsRef::as_ref) {
            None | Some(Provider::Identity) => Ok(plain.clone()),
            Some(provider) => Ok(provider.seal(place, plain, &self.entropy)?.into()),
        }
    }

    /// Has a key management service decrypt what this value needs, if it is not in memory. To be called before
    /// [`Transformer::open`], which tells what came of it.
    pub async fn prepare(&self, stored: &Bytes) {
        for provider in self.providers.iter().flat_map(|p| p.iter()) {
            if let Provider::Kms(kms) = &**provider
                && let Some(stored) = stored.strip_prefix(kms.prefix())
            {
                kms.prepare(stored).await;
            }
        }
    }

    /// The value that is stored, and whether it would be stored differently now.
    ///
    /// # Errors
    /// Upstream's sentence for a value that none of the keys opens.
    pub fn open(&self, place: &[u8], stored: &Bytes) -> Result<(Bytes, bool), String> {
        // Most is not encrypted, and is not copied.
        let plain = !stored.starts_with(ENCRYPTED);
        let Some(providers) = &self.providers else {
            return if plain { Ok((stored.clone(), false)) } else { Provider::Identity.open(place, stored).map(own) };
        };
        let mut errors = Vec::new();
        for (i, provider) in providers.iter().enumerate() {
            if plain && matches!(**provider, Provider::Identity) {
                return Ok((stored.clone(), i != 0));
            }
            let Some(rest) = stored.strip_prefix(provider.prefix()) else { continue };
            match provider.open(place, rest) {
                Ok((value, stale)) => return Ok((value.into(), stale || i != 0)),
                // That it is encrypted is no failure while another provider may know it.
                Err(_) if provider.prefix().is_empty() => {}
                Err(why) => errors.push(why),
            }
        }
        Err(joined(errors, "no matching prefix found"))
    }
}

fn own((value, stale): (Vec<u8>, bool)) -> (Bytes, bool) {
    (value.into(), stale)
}

/// How the values of each resource are stored.
#[derive(Clone)]
pub struct Encryption {
    /// By group and plural name, either of which may be [`ANY`].
    rules: HashMap<(String, String), Arc<Vec<Arc<Provider>>>>,
    /// The key management services, in the order of the configuration.
    services: Vec<Arc<Kms>>,
    measured: kms::metrics::Metrics,
    entropy: Entropy,
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys stay out of logs.
        f.debug_tuple("Encryption").field(&self.rules.keys()).finish()
    }
}

impl Encryption {
    /// Nothing is encrypted.
    #[must_use]
    pub fn none(entropy: Entropy) -> Self {
        Self { rules: HashMap::new(), services: Vec::new(), measured: kms::metrics::Metrics::default(), entropy }
    }

    /// The key management services, in the order of the configuration.
    #[must_use]
    pub fn services(&self) -> &[Arc<Kms>] {
        &self.services
    }

    /// Has what is measured of key management services exported, if there are any.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        if !self.services.is_empty() {
            self.measured.register(registry);
        }
    }

    /// Whether the key management services are well; what `/healthz/kms-providers` says where they are not.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub async fn health(&self) -> Result<(), String> {
        let mut errors = Vec::new();
        for (i, service) in self.services.iter().enumerate() {
            errors.extend(service.check().await.err().map(|why| format!("kms-provider-{i}: {why}")));
        }
        if errors.is_empty() { Ok(()) } else { Err(joined(errors, "")) }
    }

    /// How the values of a resource are stored. The group is the one they are stored under.
    #[must_use]
    pub fn of(&self, resource: &dyn Resource) -> Transformer {
        let info = resource.info();
        let rule = |group: &str, plural: &str| self.rules.get(&(group.to_owned(), plural.to_owned()));
        let found = rule(info.storage_group, info.plural).or_else(|| rule(info.storage_group, ANY));
        let providers = found.or_else(|| rule(ANY, ANY)).cloned();
        Transformer { providers, entropy: self.entropy.clone() }
    }
}

/// Keeps the server's state of the key management service with this number current until `stop`, and shows what could
/// not be decrypted while it was away.
pub async fn keep(registry: Arc<crate::registry::Registry>, number: usize, stop: CancellationToken) {
    let Some(service) = registry.encryption().services().get(number).cloned() else { return };
    loop {
        let well = tokio::select! {
            () = stop.cancelled() => return,
            well = service.watch() => well,
        };
        if well && let Err(error) = registry.reread().await {
            tracing::warn!(%error, "what could not be decrypted cannot be read again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::clock::Clock;
    use k8s_openapi::jiff::Timestamp;

    fn clock() -> Clock {
        Clock::starting_at(Timestamp::UNIX_EPOCH)
    }

    const KEY_1: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const KEY_2: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn transformer(providers: &str) -> Transformer {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [secrets]\n  providers: {providers}\n"
        );
        let encryption = Encryption::parse(text.as_bytes(), clock(), Entropy::seeded(1)).unwrap();
        encryption.of(gantry_api::kinds::find("", "v1", "secrets").unwrap())
    }

    fn keys(provider: &str, keys: &[(&str, &str)]) -> String {
        let keys: Vec<_> = keys.iter().map(|(name, key)| format!("{{name: {name}, secret: {key}}}")).collect();
        format!("{{{provider}: {{keys: [{}]}}}}", keys.join(", "))
    }

    const PLACE: &[u8] = b"/registry/core/secrets/default/s";

    #[test]
    fn keys_are_rotated_and_what_was_written_before_stays_readable() {
        let plain = Bytes::from_static(b"{\"kind\":\"Secret\"}");
        let old = transformer(&format!("[{}, {{identity: {{}}}}]", keys("aescbc", &[("a", KEY_1)])));
        let sealed = old.seal(PLACE, &plain).unwrap();
        assert!(sealed.starts_with(b"k8s:enc:aescbc:v1:a:"), "{sealed:?}");
        assert_eq!(old.open(PLACE, &sealed).unwrap(), (plain.clone(), false));
        assert_eq!(old.open(PLACE, &plain).unwrap(), (plain.clone(), true), "not encrypted yet");

        let both = transformer(&format!("[{}]", keys("aescbc", &[("b", KEY_2), ("a", KEY_1)])));
        assert_eq!(both.open(PLACE, &sealed).unwrap(), (plain.clone(), true));
        assert!(both.seal(PLACE, &plain).unwrap().starts_with(b"k8s:enc:aescbc:v1:b:"));
        let other =
            transformer(&format!("[{}, {}]", keys("secretbox", &[("s", KEY_2)]), keys("aescbc", &[("a", KEY_1)])));
        assert_eq!(other.open(PLACE, &sealed).unwrap(), (plain.clone(), true));
        let twice = transformer(&format!("[{}, {}]", keys("aescbc", &[("b", KEY_2)]), keys("aescbc", &[("a", KEY_1)])));
        assert_eq!(twice.open(PLACE, &sealed).unwrap(), (plain.clone(), true));
        let back = transformer(&format!("[{{identity: {{}}}}, {}]", keys("aescbc", &[("a", KEY_1)])));
        assert_eq!(back.open(PLACE, &sealed).unwrap(), (plain.clone(), true));
        assert_eq!(back.seal(PLACE, &plain).unwrap(), plain);
        assert_eq!(back.open(PLACE, &plain).unwrap(), (plain, false));
    }

    #[test]
    fn failures_read_as_upstream() {
        let plain = Bytes::from_static(b"{}");
        let failure = |providers: &str, sealed: &Bytes| transformer(providers).open(PLACE, sealed).unwrap_err();
        let cbc = transformer(&format!("[{}]", keys("aescbc", &[("a", KEY_1)]))).seal(PLACE, &plain).unwrap();
        let boxed = transformer(&format!("[{}]", keys("secretbox", &[("a", KEY_1)]))).seal(PLACE, &plain).unwrap();
        let no_key = "no matching key was found for the provided AES transformer";
        assert_eq!(failure(&format!("[{}]", keys("aescbc", &[("b", KEY_1)])), &cbc), no_key);
        let no_key = "no matching key was found for the provided Secretbox transformer";
        assert_eq!(failure(&format!("[{}]", keys("secretbox", &[("b", KEY_1)])), &boxed), no_key);
        let wrong = "output array was not large enough for encryption";
        assert_eq!(failure(&format!("[{}]", keys("secretbox", &[("a", KEY_2)])), &boxed), wrong);
        assert_eq!(failure("[{identity: {}}]", &cbc), "no matching prefix found");
        assert_eq!(failure(&format!("[{}]", keys("aescbc", &[("a", KEY_1)])), &plain), "no matching prefix found");
        let none = Transformer { providers: None, entropy: Entropy::seeded(1) };
        assert_eq!(none.open(PLACE, &cbc).unwrap_err(), "identity transformer tried to read encrypted data");
        assert_eq!(none.open(PLACE, &plain).unwrap(), (plain, false));
    }

    #[test]
    fn the_generated_configuration_can_be_read() {
        let entropy = Entropy::seeded(3);
        let text = Encryption::generate(&entropy);
        let encryption = Encryption::parse(text.as_bytes(), clock(), entropy.clone()).unwrap();
        let of = |group, plural| encryption.of(gantry_api::kinds::find(group, "v1", plural).unwrap());
        let plain = Bytes::from_static(b"{}");
        assert!(of("", "secrets").seal(PLACE, &plain).unwrap().starts_with(b"k8s:enc:secretbox:v1:key-"));
        assert_eq!(of("", "secrets").open(PLACE, &plain).unwrap(), (plain.clone(), true));
        assert_eq!(of("", "configmaps").seal(PLACE, &plain).unwrap(), plain);
        assert_ne!(text, Encryption::generate(&entropy));
        assert_eq!(format!("{encryption:?}"), "Encryption([(\"\", \"secrets\")])");
    }
}
