//! Measurements of issuers and their tokens, under upstream's names.

use crate::encryption::hashed;
use gantry_api::clock::Clock;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Upstream's buckets of `jwt_authenticator_latency_seconds`.
const LATENCY: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verified {
    result: &'static str,
    jwt_issuer_hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fetched {
    result: &'static str,
    jwt_issuer_hash: String,
    apiserver_id_hash: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeySet {
    jwt_issuer_hash: String,
    apiserver_id_hash: &'static str,
    hash: String,
}

/// The measurements of all issuers. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Measured {
    latency: Family<Verified, Histogram, fn() -> Histogram>,
    fetched: Family<Fetched, Gauge<f64, AtomicU64>>,
    keys: Family<KeySet, Gauge>,
    /// The series in `keys` of each issuer, by its hash.
    shown: Arc<Mutex<HashMap<String, KeySet>>>,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            latency: Family::new_with_constructor(|| Histogram::new(LATENCY)),
            fetched: Family::default(),
            keys: Family::default(),
            shown: Arc::default(),
        }
    }
}

const fn result(succeeded: bool) -> &'static str {
    if succeeded { "success" } else { "failure" }
}

impl Measured {
    /// Has them exported.
    pub(super) fn register(&self, registry: &mut Registry) {
        let name = |name: &str| format!("apiserver_authentication_jwt_authenticator_{name}");
        let latency = "Latency of jwt authentication operations in seconds, of tokens that are not known already";
        registry.register(name("latency_seconds"), latency, self.latency.clone());
        let fetched = "Timestamp of the last successful or failed JWKS fetch split by result, api server identity and \
                       jwt issuer for the JWT authenticator";
        registry.register(name("jwks_fetch_last_timestamp_seconds"), fetched, self.fetched.clone());
        let keys = "Information about the last JWKS fetched by the JWT authenticator with hash as label, split by api \
                    server identity and jwt issuer";
        registry.register(name("jwks_fetch_last_key_set_info"), keys, self.keys.clone());
    }

    /// A token of an issuer was accepted or refused.
    pub(super) fn verified(&self, issuer: &str, accepted: bool, took: Duration) {
        let labels = Verified { result: result(accepted), jwt_issuer_hash: hashed(issuer) };
        self.latency.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The keys of an issuer were fetched, as this document, or were not.
    pub(super) fn fetched(&self, issuer: &str, document: Option<&str>, clock: &Clock) {
        let issuer = hashed(issuer);
        let mut shown = self.shown.lock();
        if let Some(document) = document {
            let now = KeySet { jwt_issuer_hash: issuer.clone(), apiserver_id_hash: "", hash: hashed(document) };
            self.keys.get_or_create(&now).set(1);
            if let Some(before) = shown.insert(issuer.clone(), now.clone()).filter(|before| *before != now) {
                self.keys.remove(&before);
            }
        }
        drop(shown);
        let labels = Fetched { result: result(document.is_some()), jwt_issuer_hash: issuer, apiserver_id_hash: "" };
        self.fetched.get_or_create(&labels).set(clock.now().as_duration().as_secs_f64());
    }

    /// An issuer is asked no more.
    pub(super) fn forget(&self, issuer: &str) {
        let issuer = hashed(issuer);
        if let Some(before) = self.shown.lock().remove(&issuer) {
            self.keys.remove(&before);
        }
        for result in [result(true), result(false)] {
            self.fetched.remove(&Fetched { result, jwt_issuer_hash: issuer.clone(), apiserver_id_hash: "" });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[tokio::test(start_paused = true)]
    async fn issuers_come_and_go() {
        let (measured, clock) =
            (Measured::default(), Clock::starting_at(gantry_api::k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        let mut registry = Registry::default();
        measured.register(&mut registry);
        let series = |name: &str| {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let of = |line: &&str| line.starts_with(&format!("apiserver_authentication_jwt_authenticator_{name}{{"));
            text.lines().filter(of).map(str::to_owned).collect::<Vec<_>>()
        };
        let (url, issuer) = ("https://a.example", hashed("https://a.example"));
        measured.verified(url, true, Duration::from_millis(3));
        measured.fetched(url, None, &clock);
        assert!(series("jwks_fetch_last_key_set_info").is_empty());
        for document in ["{}", r#"{"keys":[]}"#] {
            measured.fetched(url, Some(document), &clock);
            let hash = hashed(document);
            assert_eq!(
                series("jwks_fetch_last_key_set_info"),
                [format!(
                    "apiserver_authentication_jwt_authenticator_jwks_fetch_last_key_set_info\
                     {{jwt_issuer_hash=\"{issuer}\",apiserver_id_hash=\"\",hash=\"{hash}\"}} 1"
                )]
            );
        }
        assert_eq!(series("jwks_fetch_last_timestamp_seconds").len(), 2, "one of each result");
        assert_eq!(
            series("latency_seconds_count"),
            [format!(
                "apiserver_authentication_jwt_authenticator_latency_seconds_count\
                 {{result=\"success\",jwt_issuer_hash=\"{issuer}\"}} 1"
            )]
        );
        measured.forget(url);
        assert!(series("jwks_fetch_last_key_set_info").is_empty());
        assert!(series("jwks_fetch_last_timestamp_seconds").is_empty());
    }
}
