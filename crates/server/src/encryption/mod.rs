//! Encryption at rest: what is stored of chosen resources is encrypted on its way from the registry to the store and
//! decrypted on its way back, as an `EncryptionConfiguration` says (`k8s.io/apiserver/pkg/storage/value`).
//!
//! A stored value tells what made it, `k8s:enc:<provider>:v1:<key>:`. What tells nothing is not encrypted. Keys are
//! in the configuration or with a key management service ([`kms`]).

mod cipher;
mod config;
mod kms;

pub(crate) use kms::hashed;

use crate::registry::Registry;
use arc_swap::ArcSwap;
use bytes::Bytes;
use cipher::{Algorithm, Cipher};
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::kind::Resource;
use kms::Kms;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What every encrypted value begins with.
const ENCRYPTED: &[u8] = b"k8s:enc:";
/// Any group, any resource.
const ANY: &str = "*";
/// How long the key management services of a new configuration may take until they are well; upstream's shortest.
const WELL_WITHIN: Duration = Duration::from_secs(10);
/// How often they are looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

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

/// Ways to store values; the first is written with.
type Providers = Arc<Vec<Arc<Provider>>>;

/// How the values of a resource are stored, as the configuration says at the time. Cheap to clone.
#[derive(Clone)]
pub struct Transformer {
    rules: Arc<ArcSwap<Rules>>,
    /// The group they are stored under.
    group: &'static str,
    plural: &'static str,
    entropy: Entropy,
}

impl Transformer {
    /// None for what no configuration speaks of.
    fn providers(&self) -> Option<Providers> {
        self.rules.load().of(self.group, self.plural).cloned()
    }

    /// What is stored of a value. `place` is the key it is stored under.
    ///
    /// # Errors
    /// Where it cannot be encrypted.
    pub fn seal(&self, place: &[u8], plain: &Bytes) -> Result<Bytes, String> {
        match self.providers().as_ref().and_then(|p| p.first()).map(AsRef::as_ref) {
            None | Some(Provider::Identity) => Ok(plain.clone()),
            Some(provider) => Ok(provider.seal(place, plain, &self.entropy)?.into()),
        }
    }

    /// Has a key management service decrypt what this value needs, if it is not in memory. To be called before
    /// [`Transformer::open`], which tells what came of it.
    pub async fn prepare(&self, stored: &Bytes) {
        for provider in self.providers().iter().flat_map(|p| p.iter()) {
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
        let Some(providers) = self.providers() else {
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

/// A configuration.
#[derive(Default)]
struct Rules {
    /// By group, and in it by plural name; either may be [`ANY`].
    rules: HashMap<String, HashMap<String, Providers>>,
    /// The key management services, in the order of the configuration.
    services: Vec<Arc<Kms>>,
    /// Cancelled when another takes its place.
    replaced: CancellationToken,
}

impl Rules {
    fn of(&self, group: &str, plural: &str) -> Option<&Providers> {
        let own = self.rules.get(group).and_then(|rules| rules.get(plural).or_else(|| rules.get(ANY)));
        own.or_else(|| self.rules.get(ANY)?.get(ANY))
    }

    /// Whether the key management services are well; what `/healthz/kms-providers` says where they are not.
    async fn health(&self) -> Result<(), String> {
        let mut errors = Vec::new();
        for (i, service) in self.services.iter().enumerate() {
            errors.extend(service.check().await.err().map(|why| format!("kms-provider-{i}: {why}")));
        }
        if errors.is_empty() { Ok(()) } else { Err(joined(errors, "")) }
    }
}

/// How the values of each resource are stored. Clones share a configuration, which can be replaced.
#[derive(Clone)]
pub struct Encryption {
    rules: Arc<ArcSwap<Rules>>,
    /// Whether the configuration may be replaced by another.
    reloads: bool,
    measured: kms::metrics::Metrics,
    entropy: Entropy,
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys stay out of logs.
        let rules = self.rules.load();
        let mut named: Vec<_> =
            rules.rules.iter().flat_map(|(group, rules)| rules.keys().map(move |plural| (group, plural))).collect();
        named.sort();
        f.debug_tuple("Encryption").field(&named).finish()
    }
}

impl Encryption {
    /// Nothing is encrypted.
    #[must_use]
    pub fn none(entropy: Entropy) -> Self {
        let (rules, measured) = (Arc::default(), kms::metrics::Metrics::default());
        Self { rules, reloads: false, measured, entropy }
    }

    /// The same, told that the configuration may be replaced by another: its services then have one health check together.
    #[must_use]
    pub fn reloading(mut self, reloads: bool) -> Self {
        self.reloads = reloads;
        self
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// Names the field that is wrong, and how. Keys are not shown.
    pub fn parse(text: &[u8], clock: Clock, entropy: Entropy) -> Result<Self, String> {
        let none = Self::none(entropy);
        let rules = none.read(text, clock)?;
        none.rules.store(Arc::new(rules));
        Ok(none)
    }

    fn read(&self, text: &[u8], clock: Clock) -> Result<Rules, String> {
        Rules::parse(text, clock, self.entropy.clone(), self.measured.clone())
    }

    /// Stores from now on as another configuration says, once its key management services are well.
    ///
    /// # Errors
    /// What is wrong with the configuration or with which of its services; what was there before stays.
    async fn replace(&self, text: &[u8], clock: Clock) -> Result<(), String> {
        let new = self.read(text, clock)?;
        let until = tokio::time::Instant::now() + WELL_WITHIN;
        while let Err(why) = new.health().await {
            if tokio::time::Instant::now() >= until {
                let polling = "polling error context deadline exceeded";
                return Err(format!("health check for new transformers failed, {polling}: {why}"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.rules.swap(Arc::new(new)).replaced.cancel();
        Ok(())
    }

    /// The key management services, in the order of the configuration.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<Kms>> {
        self.rules.load().services.clone()
    }

    /// Has what is measured of key management services exported.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.measured.register(registry);
    }

    /// Whether the key management services are well, by the names of health checks: one of each service, or one of all
    /// where the configuration may be replaced, because checks are registered once.
    pub async fn checks(&self) -> Vec<(Cow<'static, str>, Result<(), String>)> {
        let rules = self.rules.load_full();
        if self.reloads {
            return vec![("kms-providers".into(), rules.health().await)];
        }
        let mut checks = Vec::new();
        for (i, service) in rules.services.iter().enumerate() {
            checks.push((format!("kms-provider-{i}").into(), service.check().await));
        }
        checks
    }

    /// How the values of a resource are stored.
    #[must_use]
    pub fn of(&self, resource: &dyn Resource) -> Transformer {
        let info = resource.info();
        let (rules, entropy) = (self.rules.clone(), self.entropy.clone());
        Transformer { rules, group: info.storage_group, plural: info.plural, entropy }
    }
}

/// Has the registry store as another configuration says. What could not be decrypted before, and can be now, is shown.
///
/// # Errors
/// What is wrong with the configuration, or with which of its key management services; what was there before stays.
pub async fn replace(
    registry: &Arc<Registry>,
    text: &[u8],
    clock: Clock,
    gone: &CancellationToken,
) -> Result<(), String> {
    registry.encryption().replace(text, clock).await?;
    keep(registry, gone);
    registry.reread().await.map_err(|e| format!("what could not be decrypted cannot be read again: {e}"))
}

/// Keeps the server's state of the key management services current until `gone` or until there is another
/// configuration.
pub fn keep(registry: &Arc<Registry>, gone: &CancellationToken) {
    let rules = registry.encryption().rules.load_full();
    for service in &rules.services {
        tokio::spawn(follow(registry.clone(), service.clone(), gone.clone(), rules.replaced.clone()));
    }
}

/// Asks a key management service how it is, and shows what could not be decrypted while it was away.
async fn follow(registry: Arc<Registry>, service: Arc<Kms>, gone: CancellationToken, replaced: CancellationToken) {
    loop {
        let well = tokio::select! {
            () = gone.cancelled() => return,
            () = replaced.cancelled() => return,
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
        let none = Encryption::none(Entropy::seeded(1)).of(gantry_api::kinds::find("", "v1", "secrets").unwrap());
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

    #[tokio::test]
    async fn another_configuration_takes_over_and_a_bad_one_does_not() {
        let text = |providers: &str| {
            format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
                 - resources: [secrets]\n  providers: {providers}\n"
            )
        };
        let first = text(&format!("[{}]", keys("aescbc", &[("a", KEY_1)])));
        let encryption = Encryption::parse(first.as_bytes(), clock(), Entropy::seeded(1)).unwrap();
        // Taken before, as caches have theirs.
        let secrets = encryption.of(gantry_api::kinds::find("", "v1", "secrets").unwrap());
        let plain = Bytes::from_static(b"{}");
        let sealed = secrets.seal(PLACE, &plain).unwrap();
        let replaced = encryption.rules.load().replaced.clone();

        let bad = encryption.replace(text("[]").as_bytes(), clock()).await.unwrap_err();
        assert!(bad.starts_with("resources[0].providers: Required value"), "{bad}");
        assert_eq!(secrets.open(PLACE, &sealed).unwrap(), (plain.clone(), false));
        assert!(!replaced.is_cancelled());

        let second = text(&format!("[{}]", keys("aescbc", &[("b", KEY_2), ("a", KEY_1)])));
        encryption.clone().replace(second.as_bytes(), clock()).await.unwrap();
        assert!(replaced.is_cancelled());
        assert_eq!(secrets.open(PLACE, &sealed).unwrap(), (plain.clone(), true));
        assert!(secrets.seal(PLACE, &plain).unwrap().starts_with(b"k8s:enc:aescbc:v1:b:"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_configuration_whose_service_is_away_is_not_taken_over() {
        let encryption = Encryption::none(Entropy::seeded(1));
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
                    - resources: [secrets]\n  providers: [{kms: {apiVersion: v2, name: k, timeout: 1s, \
                    endpoint: 'unix:///nonexistent/kms.sock'}}]\n";
        let why = encryption.replace(text.as_bytes(), clock()).await.unwrap_err();
        let wanted =
            "health check for new transformers failed, polling error context deadline exceeded: kms-provider-0: ";
        assert!(why.starts_with(wanted), "{why}");
        assert!(encryption.services().is_empty());
    }
}
