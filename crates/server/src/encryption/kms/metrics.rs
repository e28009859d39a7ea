//! Measurements of key management services, under upstream's names.

use gantry_api::clock::Clock;
use gantry_grpc::{Code, Status};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use sha2::{Digest, Sha256};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Seconds with their fraction.
type Seconds = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    provider_name: String,
    method_name: String,
    grpc_status_code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Use {
    transformation_type: &'static str,
    provider_name: String,
    key_id_hash: String,
    apiserver_id_hash: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Told {
    provider_name: String,
    key_id_hash: String,
    apiserver_id_hash: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    provider_name: String,
    error: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Provider {
    provider_name: String,
}

/// `sha256:` and the hash of what is not shown itself; nothing for nothing.
pub fn hashed(id: &str) -> String {
    use std::fmt::Write;
    if id.is_empty() {
        return String::new();
    }
    let mut out = "sha256:".to_owned();
    for byte in Sha256::digest(id.as_bytes()) {
        write!(out, "{byte:02x}").expect("a String takes any text");
    }
    out
}

/// The measurements of all providers.
#[derive(Clone)]
pub struct Metrics {
    operations: Family<Operation, Histogram, fn() -> Histogram>,
    uses: Family<Use, Counter>,
    last_use: Family<Use, Seconds>,
    last_status: Family<Told, Seconds>,
    refused: Family<Refused, Counter>,
    sources: Family<Provider, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            operations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0001, 2.0, 20))),
            uses: Family::default(),
            last_use: Family::default(),
            last_status: Family::default(),
            refused: Family::default(),
            sources: Family::default(),
        }
    }
}

/// How often and when a key was used in one direction.
#[derive(Clone)]
pub struct KeyUse {
    uses: Counter,
    last: Seconds,
}

fn seconds(clock: &Clock) -> f64 {
    clock.now().as_duration().as_secs_f64()
}

impl KeyUse {
    /// Counts one use.
    pub fn count(&self, clock: &Clock) {
        self.uses.inc();
        self.last.set(seconds(clock));
    }
}

impl Metrics {
    /// Has them exported.
    pub fn register(&self, registry: &mut Registry) {
        let name = |name: &str| format!("apiserver_envelope_encryption_{name}");
        let operations = "KMS operation duration with gRPC error code status total";
        registry.register(name("kms_operations_latency_seconds"), operations, self.operations.clone());
        let uses = "Number of times a keyID is used split by transformation type, provider, and apiserver identity";
        registry.register(name("key_id_hash"), uses, self.uses.clone());
        let last = "The last time in seconds when a keyID was used";
        registry.register(name("key_id_hash_last_timestamp_seconds"), last, self.last_use.clone());
        let told = "The last time in seconds when a keyID was returned by the Status RPC call";
        registry.register(name("key_id_hash_status_last_timestamp_seconds"), told, self.last_status.clone());
        let refused = "Number of times an invalid keyID is returned by the Status RPC call split by error";
        registry.register(name("invalid_key_id_from_status"), refused, self.refused.clone());
        let sources = "Number of records in data encryption key (DEK) source cache";
        registry.register(name("dek_source_cache_size"), sources, self.sources.clone());
    }

    /// A call that ended.
    pub fn operation(&self, provider: &str, method: &str, took: Duration, error: Option<&Status>) {
        let labels = Operation {
            provider_name: provider.to_owned(),
            method_name: method.to_owned(),
            grpc_status_code: error.map_or(Code::OK, |e| e.code).to_string(),
        };
        self.operations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The series of a key in a direction, `from_storage` or `to_storage`.
    pub fn key(&self, direction: &'static str, provider: &str, key_id: &str) -> KeyUse {
        let labels = Use {
            transformation_type: direction,
            provider_name: provider.to_owned(),
            key_id_hash: hashed(key_id),
            apiserver_id_hash: "",
        };
        KeyUse { uses: self.uses.get_or_create_owned(&labels), last: self.last_use.get_or_create_owned(&labels) }
    }

    /// The service told which key it encrypts with.
    pub fn status(&self, provider: &str, key_id: &str, clock: &Clock) {
        let labels = Told { provider_name: provider.to_owned(), key_id_hash: hashed(key_id), apiserver_id_hash: "" };
        self.last_status.get_or_create(&labels).set(seconds(clock));
    }

    /// The service told a key that cannot be one.
    pub fn refused(&self, provider: &str, error: &'static str) {
        self.refused.get_or_create(&Refused { provider_name: provider.to_owned(), error }).inc();
    }

    /// How many keys of a provider are in memory.
    pub fn sources(&self, provider: &str, count: usize) {
        let gauge = self.sources.get_or_create_owned(&Provider { provider_name: provider.to_owned() });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
