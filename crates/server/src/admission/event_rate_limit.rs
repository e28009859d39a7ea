//! EventRateLimit: how many events the server, a namespace, a user, or a source may write about an object
//! (`eventratelimit.admission.k8s.io`). Upstream's plugin knows events of the core group only, and so does this one.

use super::{Attributes, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::Event;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::status::ApiError;
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};

/// Buckets that a limit keeps where the configuration does not say.
const BUCKETS_DEFAULT: i32 = 4096;

/// What is counted together, in the order in which upstream lists them.
const TYPES: &[&str] = &["Namespace", "Server", "SourceAndObject", "User"];

/// `eventratelimit.admission.k8s.io/v1alpha1` Configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventLimits {
    /// Each is asked about every event.
    #[serde(default)]
    pub limits: Vec<EventLimit>,
}

/// A limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventLimit {
    /// `Server`, `Namespace`, `User` or `SourceAndObject`.
    pub r#type: String,
    /// Events per second.
    pub qps: i32,
    /// Events at once after a pause.
    pub burst: i32,
    /// For how many namespaces, users or sources counts are kept; those longest unseen start anew.
    #[serde(rename = "cacheSize")]
    pub cache_size: i32,
}

impl EventLimits {
    /// What is wrong with the configuration.
    ///
    /// # Errors
    /// Names the field.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut errors = ErrorList::default();
        let at = Path::new("limits");
        if self.limits.is_empty() {
            errors.invalid(&at, serde_json::Value::Null, "must not be empty");
        }
        for (i, limit) in self.limits.iter().enumerate() {
            let at = at.index(i);
            if !TYPES.contains(&limit.r#type.as_str()) {
                errors.not_supported(&at.child("type"), &limit.r#type, TYPES);
            }
            if limit.burst <= 0 {
                errors.invalid(&at.child("burst"), limit.burst, "must be positive");
            }
            if limit.qps <= 0 {
                errors.invalid(&at.child("qps"), limit.qps, "must be positive");
            }
            if limit.r#type != "Server" && limit.cache_size < 0 {
                errors.invalid(&at.child("cacheSize"), limit.cache_size, "must not be negative");
            }
        }
        let told: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        match told.len() {
            0 => Ok(()),
            1 => Err(told.concat()),
            _ => Err(format!("[{}]", told.join(", "))),
        }
    }
}

/// Tokens that come with time, each for one event.
struct Bucket {
    tokens: f64,
    since: Timestamp,
    /// When it was last asked for, in questions to the limit.
    seen: u64,
}

/// The buckets of a limit by key, and the keys by when they were last asked for.
#[derive(Default)]
struct Buckets {
    by_key: HashMap<String, Bucket>,
    by_age: BTreeMap<u64, String>,
    questions: u64,
}

struct Enforcer {
    limit: EventLimit,
    most: usize,
    buckets: Mutex<Buckets>,
}

impl Enforcer {
    fn new(limit: EventLimit) -> Self {
        let size = if limit.cache_size == 0 { BUCKETS_DEFAULT } else { limit.cache_size };
        Self { limit, most: usize::try_from(size).unwrap_or(1).max(1), buckets: Mutex::default() }
    }

    fn key(&self, a: &Attributes<'_>) -> String {
        match self.limit.r#type.as_str() {
            "Namespace" => a.namespace.to_owned(),
            "User" => a.user.username.clone(),
            "SourceAndObject" => a.object_as::<Event>().map(source_and_object).unwrap_or_default(),
            _ => String::new(),
        }
    }

    /// Takes a token for `key`; whether there was one.
    fn take(&self, key: &str, now: Timestamp) -> bool {
        let most = f64::from(self.limit.burst);
        let mut buckets = self.buckets.lock();
        buckets.questions += 1;
        let seen = buckets.questions;
        let mut bucket = match buckets.by_key.remove(key) {
            Some(known) => {
                buckets.by_age.remove(&known.seen);
                known
            }
            None => Bucket { tokens: most, since: now, seen },
        };
        if buckets.by_key.len() >= self.most
            && let Some((_, oldest)) = buckets.by_age.pop_first()
        {
            buckets.by_key.remove(&oldest);
        }
        let come = now.duration_since(bucket.since).as_secs_f64().max(0.0) * f64::from(self.limit.qps);
        bucket.tokens = (bucket.tokens + come).min(most);
        bucket.since = now;
        bucket.seen = seen;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        buckets.by_key.insert(key.to_owned(), bucket);
        buckets.by_age.insert(seen, key.to_owned());
        enough
    }
}

fn source_and_object(event: &Event) -> String {
    let source = event.source.clone().unwrap_or_default();
    let object = &event.involved_object;
    let parts = [
        &source.component,
        &source.host,
        &object.kind,
        &object.namespace,
        &object.name,
        &object.uid,
        &object.api_version,
    ];
    parts.into_iter().flatten().map(String::as_str).collect()
}

/// The plugin.
pub(super) struct EventRateLimit(Vec<Enforcer>);

impl EventRateLimit {
    pub(super) fn new(limits: &EventLimits) -> Self {
        Self(limits.limits.iter().cloned().map(Enforcer::new).collect())
    }
}

#[async_trait]
impl ValidatingPlugin for EventRateLimit {
    fn name(&self) -> &'static str {
        "EventRateLimit"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if !a.is("", "events", "") || !matches!(a.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let now = cluster.clock.now();
        let mut refusal = None;
        // Every limit counts the event, also those after one that refuses it; the last refusal is answered.
        for enforcer in &self.0 {
            let key = enforcer.key(a);
            if !enforcer.take(&key, now) {
                refusal = Some(format!("limit reached on type {} for key {key}", enforcer.limit.r#type));
            }
        }
        match refusal {
            Some(why) => Err(ApiError::new(429, "TooManyRequests", format!("Too many requests: {why}"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(r#type: &str, qps: i32, burst: i32, cache_size: i32) -> EventLimit {
        EventLimit { r#type: r#type.into(), qps, burst, cache_size }
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    #[test]
    fn tokens_come_with_time() {
        let enforcer = Enforcer::new(limit("User", 2, 3, 0));
        let taken: Vec<bool> = (0..4).map(|_| enforcer.take("a", at(0))).collect();
        assert_eq!(taken, [true, true, true, false]);
        assert!(enforcer.take("b", at(0)), "each key has its own");
        assert!(!enforcer.take("a", at(499)));
        assert!(enforcer.take("a", at(501)));
        let taken: Vec<bool> = (0..4).map(|_| enforcer.take("a", at(60_000))).collect();
        assert_eq!(taken, [true, true, true, false], "no more than the burst is saved up");
    }

    #[test]
    fn who_was_not_seen_for_longest_is_forgotten() {
        let enforcer = Enforcer::new(limit("Namespace", 1, 1, 2));
        for (key, want) in [("a", true), ("b", true), ("a", false), ("c", true), ("a", false), ("b", true)] {
            assert_eq!(enforcer.take(key, at(0)), want, "{key}");
        }
        assert_eq!(enforcer.buckets.lock().by_key.len(), 2);
    }

    #[test]
    fn mistakes_in_limits() {
        let check = |limits: Vec<EventLimit>| EventLimits { limits }.check();
        assert_eq!(check(vec![limit("Server", 1, 1, -1), limit("User", 1, 1, 0)]), Ok(()));
        assert_eq!(check(vec![]).unwrap_err(), "limits: Invalid value: null: must not be empty");
        let told = check(vec![limit("Pod", 0, -1, -2)]).unwrap_err();
        for want in [
            "limits[0].type: Unsupported value: \"Pod\": supported values: \"Namespace\", \"Server\"",
            "limits[0].burst: Invalid value: -1: must be positive",
            "limits[0].qps: Invalid value: 0: must be positive",
            "limits[0].cacheSize: Invalid value: -2: must not be negative",
        ] {
            assert!(told.contains(want), "{told}");
        }
    }
}
