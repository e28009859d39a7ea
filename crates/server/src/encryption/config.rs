//! The configuration of encryption at rest (`apiserver.config.k8s.io/v1` `EncryptionConfiguration`).

use super::cipher::{Algorithm, Cipher};
use super::kms::metrics::Metrics;
use super::kms::{self, Kms};
use super::{ANY, Encryption, Provider, Rules};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_schema::strict;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// Length of a generated key in bytes.
const KEY_BYTES: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Configuration {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default, deserialize_with = "or_none")]
    resources: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default, deserialize_with = "or_none")]
    resources: Vec<String>,
    #[serde(default, deserialize_with = "or_none")]
    providers: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderConfig {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<Empty>,
    kms: Option<kms::Config>,
}

/// `{}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default, deserialize_with = "or_none")]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

/// A list that may be given as nothing.
fn or_none<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Reads a part of the configuration, and says where it is wrong.
fn part<T: DeserializeOwned>(value: &Value, place: &Path) -> Result<T, String> {
    T::deserialize(value).map_err(|e| format!("{place}: {e}"))
}

/// `resource.group`; what has no dot is in the core group.
fn group_resource(text: &str) -> (String, String) {
    let (resource, group) = text.split_once('.').unwrap_or((text, ""));
    (group.to_owned(), resource.to_owned())
}

/// The other way round, as messages show it.
fn shown((group, resource): &(String, String)) -> String {
    match (group.as_str(), resource.as_str()) {
        ("", ANY) => "*.".to_owned(),
        ("", resource) => resource.to_owned(),
        (group, resource) => format!("{resource}.{group}"),
    }
}

impl Rules {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Names the field that is wrong, and how. Keys are not shown.
    pub(super) fn parse(text: &[u8], clock: Clock, entropy: Entropy, measured: Metrics) -> Result<Self, String> {
        let decoded = strict::decode_yaml(text, None).map_err(|e| e.to_string())?;
        if !decoded.strict_errors.is_empty() {
            return Err(strict::strict_error_message(&decoded.strict_errors));
        }
        let config: Configuration = serde_json::from_value(decoded.value).map_err(|e| e.to_string())?;
        if (config.api_version.as_str(), config.kind.as_str())
            != ("apiserver.config.k8s.io/v1", "EncryptionConfiguration")
        {
            let (version, kind) = (&config.api_version, &config.kind);
            return Err(format!("no kind {kind:?} is registered for version {version:?}"));
        }
        let mut errors = ErrorList::default();
        let mut rules: HashMap<(String, String), Vec<Arc<Provider>>> = HashMap::new();
        let root = Path::new("resources");
        let mut reader = Reader { clock, entropy, measured, services: Vec::new(), names: Vec::new() };
        if config.resources.is_empty() {
            errors.required(&root, "at least one resources is required");
        }
        for (i, rule) in config.resources.iter().enumerate() {
            let place = root.index(i);
            let rule: Rule = part(rule, &place)?;
            check_resources(&rule.resources, &place.child("resources"), &mut errors);
            let providers = reader.providers(&rule.providers, &place.child("providers"), &mut errors)?;
            for resource in &rule.resources {
                let resource = group_resource(resource);
                for earlier in [(resource.0.clone(), ANY.to_owned()), (ANY.to_owned(), ANY.to_owned())] {
                    if rules.contains_key(&earlier) && errors.is_empty() {
                        let (masked, by) = (shown(&resource), shown(&earlier));
                        return Err(format!("resource {masked:?} is masked by earlier rule {by:?}"));
                    }
                }
                rules.entry(resource).or_default().extend(providers.iter().cloned());
            }
        }
        let mut errors: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        match errors.len() {
            0 => {
                let mut out = Rules { services: reader.services, ..Rules::default() };
                for ((group, plural), providers) in rules {
                    out.rules.entry(group).or_default().insert(plural, Arc::new(providers));
                }
                Ok(out)
            }
            1 => Err(errors.remove(0)),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }
}

impl Encryption {
    /// A configuration that encrypts Secrets with a new key, and reads those that are not encrypted.
    #[must_use]
    pub fn generate(entropy: &Entropy) -> String {
        let mut key = [0; KEY_BYTES];
        entropy.fill(&mut key);
        // A name of its own: what was written with a key that is lost is not mistaken for what this one wrote.
        let name = format!("key-{}", entropy.suffix(8));
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources:\n  - secrets\n  \
             providers:\n  - secretbox:\n      keys:\n      - name: {name}\n        secret: {}\n  - identity: {{}}\n",
            STANDARD.encode(key)
        )
    }
}

fn check_resources(resources: &[String], path: &Path, errors: &mut ErrorList) {
    if resources.is_empty() {
        errors.required(path, &format!("at least one {path} is required"));
    }
    let parsed: Vec<(String, String)> = resources.iter().map(|r| group_resource(r)).collect();
    let pairs = || parsed.iter().enumerate().flat_map(|(i, a)| parsed[i + 1..].iter().map(move |b| (a, b)));
    if pairs().any(|(a, b)| a == b) {
        errors.invalid(path, json!(resources), "the same resource cannot be specified multiple times");
    }
    let is_all = |r: &(String, String)| r.0 == ANY && r.1 == ANY;
    let overlap = |(a, b): (&(String, String), &(String, String))| {
        a != b && (is_all(a) || is_all(b) || a.0 == b.0 && (a.1 == ANY || b.1 == ANY))
    };
    if pairs().any(overlap) {
        let why = "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as \
                   they will be masked";
        errors.invalid(path, json!(resources), why);
    }
    for (i, (resource, (group, plural))) in resources.iter().zip(&parsed).enumerate() {
        let why = if resource.to_lowercase() != *resource {
            "resource name should not contain capital letters"
        } else if resource == ANY {
            "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
        } else if matches!(resource.as_str(), "apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations")
        {
            "resources which do not have REST API/s cannot be encrypted"
        } else if group == "events.k8s.io" {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the \
             config file"
        } else if group == "extensions" {
            "'extensions' group has been removed and cannot be used for encryption"
        } else if group == ANY && plural != ANY {
            "encrypting the same resource across groups is not supported"
        } else {
            continue;
        };
        errors.invalid(&path.index(i), resource.as_str(), why);
    }
}

/// What is gathered on the way through the providers.
struct Reader {
    clock: Clock,
    entropy: Entropy,
    measured: Metrics,
    services: Vec<Arc<Kms>>,
    /// Names of the key management services.
    names: Vec<String>,
}

impl Reader {
    fn service(&mut self, config: &kms::Config) -> Result<Arc<Kms>, String> {
        if config.is_v1() {
            return Err(
                "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  \
                        Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature."
                    .into(),
            );
        }
        let timeout = config.timeout().unwrap_or_default();
        let (measured, entropy) = (self.measured.clone(), self.entropy.clone());
        let service = Kms::new(&config.name, config.socket(), timeout, measured, self.clock, entropy);
        let service = Arc::new(service);
        self.services.push(service.clone());
        Ok(service)
    }

    fn providers(
        &mut self,
        configs: &[Value],
        path: &Path,
        errors: &mut ErrorList,
    ) -> Result<Vec<Arc<Provider>>, String> {
        if configs.is_empty() {
            errors.required(path, &format!("at least one {path} is required"));
        }
        let mut out = Vec::new();
        for (i, config) in configs.iter().enumerate() {
            let path = path.index(i);
            let config: ProviderConfig = part(config, &path)?;
            let keyed = [
                (Algorithm::AesGcm, &config.aesgcm),
                (Algorithm::AesCbc, &config.aescbc),
                (Algorithm::Secretbox, &config.secretbox),
            ];
            let given = keyed.iter().filter(|(_, keys)| keys.is_some()).count()
                + usize::from(config.identity.is_some())
                + usize::from(config.kms.is_some());
            if given != 1 {
                let why = match given {
                    0 => {
                        "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"
                    }
                    _ => {
                        "more than one provider specified in a single element, should split into different list elements"
                    }
                };
                errors.invalid_unshown(&path, why);
            }
            if let Some(config) = &config.kms {
                kms::check(config, &path.child("kms"), &self.names, errors);
                self.names.push(config.name.clone());
                if errors.is_empty() {
                    out.push(Arc::new(Provider::Kms(self.service(config)?)));
                }
            }
            if config.identity.is_some() {
                out.push(Arc::new(Provider::Identity));
            }
            for (algorithm, config) in keyed {
                if let Some(config) = config {
                    let path = path.child(algorithm.field()).child("keys");
                    out.push(Arc::new(Provider::Keys(algorithm, keys(algorithm, &config.keys, &path, errors))));
                }
            }
        }
        Ok(out)
    }
}

fn keys(algorithm: Algorithm, configs: &[Key], path: &Path, errors: &mut ErrorList) -> Vec<(Vec<u8>, Cipher)> {
    if configs.is_empty() {
        errors.required(path, "at least one keys is required");
    }
    let mut out = Vec::new();
    for (i, key) in configs.iter().enumerate() {
        let path = path.index(i);
        if key.name.is_empty() {
            errors.required(&path.child("name"), "name is a mandatory field for a key");
        }
        if key.secret.is_empty() {
            errors.required(&path.child("secret"), "secret is a mandatory field for a key");
            continue;
        }
        let place = path.child("secret");
        let Ok(secret) = STANDARD.decode(key.secret.trim()) else {
            errors.invalid(&place, "REDACTED", "secrets must be base64 encoded");
            continue;
        };
        match Cipher::new(algorithm, &secret) {
            Some(cipher) => out.push((format!("{}:", key.name).into_bytes(), cipher)),
            None => {
                let lengths: Vec<String> = algorithm.key_lengths().iter().map(ToString::to_string).collect();
                let why = format!(
                    "secret is not of the expected length, got {}, expected one of [{}]",
                    secret.len(),
                    lengths.join(" ")
                );
                errors.invalid(&place, "REDACTED", &why);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn clock() -> Clock {
        Clock::starting_at(Timestamp::UNIX_EPOCH)
    }

    fn failure(resources: &str) -> String {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
        let text = format!("{head}resources:\n{resources}");
        Encryption::parse(text.as_bytes(), clock(), Entropy::seeded(1)).unwrap_err()
    }

    #[test]
    fn failures_name_the_field_and_show_no_key() {
        assert_eq!(failure(""), "resources: Required value: at least one resources is required");
        assert_eq!(
            failure("- resources: []\n"),
            "[resources[0].resources: Required value: at least one resources[0].resources is required, \
             resources[0].providers: Required value: at least one resources[0].providers is required]"
        );
        let with = |resources: &str| failure(&format!("- resources: {resources}\n  providers: [{{identity: {{}}}}]\n"));
        assert!(with("[secrets, secrets]").contains("cannot be specified multiple times"));
        assert!(with("['*.', secrets]").contains("using overlapping resources"));
        assert!(with("['*.*', deployments.apps]").contains("using overlapping resources"));
        assert!(with("['*']").starts_with("resources[0].resources[0]: Invalid value: \"*\": use '*.'"));
        assert!(with("[Secrets]").ends_with("resource name should not contain capital letters"));
        assert!(with("['secrets.*']").ends_with("encrypting the same resource across groups is not supported"));
        assert!(with("[events.events.k8s.io]").contains("Use 'events' instead"));
        let by = |provider: &str| failure(&format!("- resources: [secrets]\n  providers: [{provider}]\n"));
        let place = "resources[0].providers[0]";
        assert!(by("{}").starts_with(&format!("{place}: Invalid value: provider does not contain any")));
        assert!(by("{identity: {}, aescbc: {keys: []}}").contains("more than one provider specified"));
        assert_eq!(
            by("{aesgcm: {keys: [{name: a, secret: c2VjcmV0}]}}"),
            format!(
                "{place}.aesgcm.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 6, \
                 expected one of [16 24 32]"
            )
        );
        assert!(by("{aescbc: {keys: [{secret: '%'}]}}").contains("keys[0].name: Required value"));
        assert!(by("{aescbc: {keys: [{name: a, secret: '%'}]}}").ends_with("secrets must be base64 encoded"));
        assert!(by("{aescbc: {keyz: []}}").starts_with(&format!("{place}: unknown field `keyz`")));
        assert!(failure("- resources: secrets\n").starts_with("resources[0]: invalid type: string"));
        let masked = "- resources: ['*.apps']\n  providers: [{identity: {}}]\n\
                      - resources: [deployments.apps]\n  providers: [{identity: {}}]\n";
        assert_eq!(failure(masked), "resource \"deployments.apps\" is masked by earlier rule \"*.apps\"");
        let other = Encryption::parse(b"apiVersion: v1\nkind: Secret\n", clock(), Entropy::seeded(1)).unwrap_err();
        assert!(other.starts_with("no kind \"Secret\""), "{other}");
    }

    #[test]
    fn key_management_services_are_checked_as_upstream_does() {
        let with = |kms: &str| failure(&format!("- resources: [secrets]\n  providers: [{{kms: {{{kms}}}}}]\n"));
        let place = "resources[0].providers[0].kms";
        assert_eq!(
            with("apiVersion: v2, name: 'a:b', timeout: -1s, cachesize: 3"),
            format!(
                "[{place}.name: Invalid value: \"a:b\": invalid KMS provider name a:b, must not contain ':', \
                 {place}.timeout: Invalid value: \"-1s\": timeout should be a positive value, \
                 {place}.endpoint: Invalid value: \"\": endpoint is a mandatory field for a kms, \
                 {place}.cachesize: Invalid value: 3: cachesize is not supported in v2]"
            )
        );
        assert_eq!(
            with("apiVersion: v2, endpoint: 'unix:///x'"),
            format!("{place}.name: Required value: name is a mandatory field for a provider")
        );
        let endpoint = |endpoint: &str| with(&format!("apiVersion: v2, name: k, endpoint: '{endpoint}'"));
        let refused = |endpoint: &str, scheme: &str| {
            format!(
                "{place}.endpoint: Invalid value: {endpoint:?}: unsupported scheme {scheme:?} for KMS provider, only \
                 unix is supported"
            )
        };
        for (given, scheme) in [("http://x", "http"), ("/run/kms.sock", ""), ("1x://y", "")] {
            assert_eq!(endpoint(given), refused(given, scheme));
        }
        assert!(endpoint(":x").ends_with("error: parse \":x\": missing protocol scheme"));
        let version = with("apiVersion: v3, name: k, endpoint: 'unix:///x'");
        assert_eq!(
            version,
            format!(
                "{place}.apiVersion: Invalid value: \"v3\": unsupported apiVersion apiVersion for KMS provider, only v1 \
                 and v2 are supported"
            )
        );
        assert!(with("name: k, endpoint: 'unix:///x'").starts_with("KMSv1 is deprecated"));
        let twice = "- resources: [secrets]\n  providers: [{kms: {apiVersion: v2, name: k, endpoint: 'unix:///x'}}]\n\
                     - resources: [pods]\n  providers: [{kms: {apiVersion: v2, name: k, endpoint: 'unix:///y'}}]\n";
        assert_eq!(
            failure(twice),
            "resources[1].providers[0].kms.name: Invalid value: \"k\": duplicate KMS provider name k, names must be unique"
        );
        assert!(with("apiVersion: v2, endpont: x").contains("unknown field `endpont`"));
    }

    #[test]
    fn wildcards_reach_what_is_not_named() {
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
                    - resources: [configmaps]\n  providers: [{identity: {}}]\n\
                    - resources: ['*.apps', '*.']\n  providers: [{secretbox: {keys: [{name: a, secret: \
                    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}]}}]\n\
                    - resources: ['*.*']\n  providers: [{aesgcm: {keys: [{name: b, secret: \
                    AAAAAAAAAAAAAAAAAAAAAA==}]}}]\n";
        let encryption = Encryption::parse(text.as_bytes(), clock(), Entropy::seeded(1)).unwrap();
        let begins = |group: &str, plural: &str| {
            let transformer = encryption.of(gantry_api::kinds::find(group, "v1", plural).unwrap());
            let sealed = transformer.seal(b"/x", &bytes::Bytes::from_static(b"{}")).unwrap();
            String::from_utf8_lossy(&sealed[..sealed.len().min(10)]).into_owned()
        };
        assert_eq!(begins("", "configmaps"), "{}");
        assert_eq!(begins("", "secrets"), "k8s:enc:se");
        assert_eq!(begins("apps", "deployments"), "k8s:enc:se");
        assert_eq!(begins("batch", "jobs"), "k8s:enc:ae");
    }
}
