//! Secrets with ServiceAccount tokens: they go with their account, the account's references go with them, and those that nobody
//! has used for a year are first marked invalid and, after another year, deleted (KEP-2799).
//!
//! The token itself is written by the API server, which has the key, into every such Secret that is written without one.

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::ObjectMeta;
use gantry_api::core::pod::references;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, Patch, PatchParams, PostParams};
use gantry_reconcile::store::{key, key_of, split_key};
use gantry_reconcile::{Change, Controller, Error, Index, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use k8s_openapi::jiff::civil::Date;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Type of the Secrets.
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Label with the day of the last use, which the API server keeps.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Label with the day since which the API server refuses the token.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// The ConfigMap that says since when uses are noted.
const TRACKING: (&str, &str) = ("kube-system", "kube-apiserver-legacy-service-account-token-tracking");
const SINCE: &str = "since";
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
const WORKERS: usize = 5;

/// What the controller of tokens may do.
pub const TOKEN_RULES: &[Rule] = &[
    Rule::new(&[""], &["secrets"], &["delete", "get", "list", "update", "watch"]),
    Rule::new(&[""], &["serviceaccounts"], &["get", "list", "update", "watch"]),
    EVENTS,
];
/// What the cleaner may do.
pub const CLEANER_RULES: &[Rule] = &[
    Rule::new(&[""], &["configmaps"], &["create", "get", "update"]),
    Rule::new(&[""], &["pods", "serviceaccounts"], &["get", "list", "watch"]),
    Rule::new(&[""], &["secrets"], &["delete", "get", "list", "patch", "watch"]),
    EVENTS,
];

fn secrets_with_tokens(setup: &Setup) -> Informer<Secret> {
    setup.informers.get_filtered::<Secret>(Some(&format!("type={TYPE}")), None)
}

/// The account a Secret is for.
fn account_of(secret: &Secret) -> Option<&str> {
    secret.metadata.annotation(ACCOUNT_NAME).filter(|n| !n.is_empty())
}

/// Whether the account is the one that the Secret is for, and not a later one of its name.
fn is_its(account: &ServiceAccount, secret: &Secret) -> bool {
    let uid = secret.metadata.annotation(ACCOUNT_UID).unwrap_or_default();
    uid.is_empty() || uid == account.metadata.uid()
}

fn refers(account: &ServiceAccount, secret: &str) -> bool {
    account.secrets.iter().flatten().any(|r| r.name.as_deref() == Some(secret))
}

struct Tokens {
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    /// Accounts of Secrets that are gone, by the Secret's key, until they forgot them.
    gone: Arc<Mutex<BTreeMap<String, String>>>,
    setup: Setup,
}

/// Runs the controller of tokens.
pub async fn run_tokens(setup: Setup) {
    let secrets = secrets_with_tokens(&setup);
    let accounts = setup.informers.get::<ServiceAccount>();
    let by_account: Index<Secret> = secrets.index("service account", |secret| {
        account_of(secret).map(|name| key(secret.metadata.namespace(), name)).into_iter().collect()
    });
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    let gone = Arc::new(Mutex::new(BTreeMap::new()));
    let noted = gone.clone();
    secrets.on_change(move |change| {
        let secret = change.object();
        if let (Change::Deleted(_), Some(account)) = (change, account_of(secret)) {
            noted.lock().insert(key_of(&**secret), account.to_owned());
        }
        q.add(key_of(&**secret));
    });
    let q = queue.clone();
    accounts.on_change(move |change| {
        if let Change::Deleted(account) = change {
            by_account.get(&key_of(&**account)).iter().for_each(|s| q.add(key_of(&**s)));
        }
    });
    if !wait_synced(&[&secrets, &accounts], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(Tokens { secrets, accounts, gone, setup }), queue, WORKERS, cancel).await;
}

impl Tokens {
    /// The account of a Secret, asked of the server where the cache does not have it.
    async fn account(&self, secret: &Secret, name: &str) -> Result<bool, Error> {
        let namespace = secret.metadata.namespace();
        if self.accounts.get(namespace, name).is_some_and(|a| is_its(&a, secret)) {
            return Ok(true);
        }
        let api = Api::<ServiceAccount>::namespaced(self.setup.client.clone(), namespace);
        let live = api.get_opt(name).await;
        let live = live.map_err(|e| Error::api(format!("get serviceaccount {namespace}/{name}"), e))?;
        Ok(live.is_some_and(|a| is_its(&a, secret)))
    }

    /// Takes a Secret that is gone from its account's list.
    async fn forget(&self, key: &str) -> Result<(), Error> {
        let Some(account) = self.gone.lock().get(key).cloned() else { return Ok(()) };
        let (namespace, name) = split_key(key);
        let api = Api::<ServiceAccount>::namespaced(self.setup.client.clone(), namespace);
        let failed = |e| Error::api(format!("take secret {name} from serviceaccount {namespace}/{account}"), e);
        if let Some(mut account) = api.get_opt(&account).await.map_err(failed)?.filter(|a| refers(a, name)) {
            account.secrets.get_or_insert_default().retain(|r| r.name.as_deref() != Some(name));
            match api.update(&PostParams::default(), &account).await {
                Ok(_) => {}
                Err(e) if e.is("NotFound") => {}
                Err(e) => return Err(failed(e)),
            }
        }
        self.gone.lock().remove(key);
        Ok(())
    }
}

/// Whether the API server has yet to write something into the Secret.
fn is_incomplete(secret: &Secret, ca: &str) -> bool {
    let value = |k: &str| secret.data.as_ref().and_then(|d| d.get(k)).map_or(&[][..], |v| &v.0[..]);
    value("token").is_empty() || value("namespace").is_empty() || value("ca.crt") != ca.as_bytes()
}

#[async_trait]
impl Controller for Tokens {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let (namespace, name) = split_key(key);
        let Some(secret) = self.secrets.store().by_key(key) else {
            self.forget(key).await?;
            return Ok(Outcome::done());
        };
        let Some(account) = account_of(&secret) else { return Ok(Outcome::done()) };
        let api = Api::<Secret>::namespaced(self.setup.client.clone(), namespace);
        let (what, result) = if !self.account(&secret, account).await? {
            let params = DeleteParams { precondition_uid: secret.metadata.uid.clone(), ..Default::default() };
            ("delete", api.delete(name, &params).await.map(drop))
        } else if is_incomplete(&secret, &self.setup.config.ca_cert_pem) {
            ("complete", api.update(&PostParams::default(), &secret).await.map(drop))
        } else {
            return Ok(Outcome::done());
        };
        match result {
            Ok(()) => Ok(Outcome::done()),
            // Somebody else was faster; the Secret's own event brings the key back.
            Err(e) if e.is("NotFound") || e.is("Conflict") => Ok(Outcome::done()),
            Err(e) => Err(Error::api(format!("{what} secret {key}"), e)),
        }
    }
}

struct Cleaner {
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    pods: Informer<Pod>,
    setup: Setup,
}

/// Runs the cleaner.
pub async fn run_cleaner(setup: Setup) {
    let secrets = secrets_with_tokens(&setup);
    let accounts = setup.informers.get::<ServiceAccount>();
    let pods = setup.informers.get::<Pod>();
    if !wait_synced(&[&secrets, &accounts, &pods], &setup.cancel).await {
        return;
    }
    let queue = Queue::new(setup.name);
    queue.add(TRACKING.1.to_owned());
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(Cleaner { secrets, accounts, pods, setup }), queue, 1, cancel).await;
}

fn day(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}

fn date(text: Option<&str>) -> Option<Date> {
    text?.parse().ok()
}

/// What becomes of a Secret that its account lists.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Invalid,
    Deleted,
}

/// Decides on a Secret that no pod uses; `period` without use makes a token invalid, and the same once more deletes it.
fn fate(secret: &Secret, period: Duration, now: Timestamp) -> Fate {
    let before = now - SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX);
    let young = secret.metadata.creation_timestamp.as_ref().is_none_or(|t| t.0 >= before);
    let last_day = day(before);
    let last_used = secret.metadata.label(LAST_USED);
    // A day that cannot be read says nothing about the last use.
    let used = last_used.is_some_and(|text| date(Some(text)).is_none_or(|d| d >= last_day));
    if young || used || secret.metadata.is_deleting() {
        return Fate::Stays;
    }
    match date(secret.metadata.label(INVALID_SINCE)) {
        None => Fate::Invalid,
        Some(since) if since >= last_day => Fate::Stays,
        Some(_) => Fate::Deleted,
    }
}

impl Cleaner {
    /// The day since which uses are noted, noted itself where it is not.
    async fn tracked_since(&self, today: Date) -> Result<Date, Error> {
        let api = Api::<ConfigMap>::namespaced(self.setup.client.clone(), TRACKING.0);
        let failed = |e| Error::api(format!("configmap {}/{}", TRACKING.0, TRACKING.1), e);
        let data = Some([(SINCE.to_owned(), today.to_string())].into());
        let Some(mut map) = api.get_opt(TRACKING.1).await.map_err(failed)? else {
            let metadata = ObjectMeta {
                name: Some(TRACKING.1.to_owned()),
                namespace: Some(TRACKING.0.to_owned()),
                ..Default::default()
            };
            let map = ConfigMap { metadata, data, ..Default::default() };
            api.create(&PostParams::default(), &map).await.map_err(failed)?;
            return Ok(today);
        };
        if let Some(since) = date(map.data.as_ref().and_then(|d| d.get(SINCE)).map(String::as_str)) {
            return Ok(since);
        }
        map.data.get_or_insert_default().insert(SINCE.to_owned(), today.to_string());
        api.update(&PostParams::default(), &map).await.map_err(failed)?;
        Ok(today)
    }

    /// Whether the Secret is one that was made for its account (which then lists it) and that no pod uses.
    fn is_candidate(&self, secret: &Secret) -> bool {
        let (namespace, name) = (secret.metadata.namespace(), secret.metadata.name());
        let Some(account) = account_of(secret).and_then(|n| self.accounts.get(namespace, n)) else { return false };
        let used_by = |p: &Pod| p.spec.as_ref().is_some_and(|s| references(s, None, "secrets", name));
        let listed = is_its(&account, secret) && refers(&account, name);
        listed && !self.pods.store().list_in(namespace).iter().any(|p| used_by(p))
    }
}

#[async_trait]
impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, _: &str) -> Result<Outcome, Error> {
        let (now, period) = (self.setup.config.clock.now(), self.setup.config.legacy_token_period);
        let since = self.tracked_since(day(now)).await?;
        let known = now.duration_since(midnight_after(since));
        if known < SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX) {
            return Ok(Outcome::after(INTERVAL));
        }
        let mut errors = Vec::new();
        for secret in self.secrets.list() {
            let fate = fate(&secret, period, now);
            if fate == Fate::Stays || !self.is_candidate(&secret) {
                continue;
            }
            let api = Api::<Secret>::namespaced(self.setup.client.clone(), secret.metadata.namespace());
            let (name, uid) = (secret.metadata.name(), secret.metadata.uid());
            let result = if fate == Fate::Invalid {
                let labels = json!({INVALID_SINCE: day(now).to_string()});
                let patch = Patch::Merge(json!({"metadata": {"uid": uid, "labels": labels}}));
                api.patch(name, &PatchParams::default(), &patch).await.map(drop)
            } else {
                let version = secret.metadata.resource_version.clone();
                let params = DeleteParams { precondition_resource_version: version, ..Default::default() };
                api.delete(name, &params).await.map(drop)
            };
            if let Err(e) = result
                && !e.is("NotFound")
                && !e.is("Conflict")
            {
                errors.push(Error::api(format!("clean up secret {}", secret.metadata.key()), e));
            }
        }
        Error::collect(errors)?;
        Ok(Outcome::after(INTERVAL))
    }
}

/// The end of a day.
fn midnight_after(day: Date) -> Timestamp {
    let next = day.tomorrow().unwrap_or(day);
    next.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |z| z.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::Value;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn secret(created: &str, labels: Value) -> Secret {
        let meta = json!({"name": "t", "namespace": "n", "creationTimestamp": created, "labels": labels});
        Secret::from_value(json!({"metadata": meta, "type": TYPE})).unwrap()
    }

    #[test]
    fn unused_tokens_become_invalid_and_then_go() {
        let year = Duration::from_secs(365 * 24 * 3600);
        let now = at("2026-06-01T12:00:00Z");
        let told = |created: &str, labels: Value| fate(&secret(created, labels), year, now);
        let old = "2024-01-01T00:00:00Z";
        assert_eq!(told("2026-01-01T00:00:00Z", json!({})), Fate::Stays, "made within the year");
        assert_eq!(told(old, json!({})), Fate::Invalid);
        assert_eq!(told(old, json!({LAST_USED: "2025-05-31"})), Fate::Invalid);
        assert_eq!(told(old, json!({LAST_USED: "2025-06-01"})), Fate::Stays);
        assert_eq!(told(old, json!({LAST_USED: "some day"})), Fate::Stays);
        assert_eq!(told(old, json!({INVALID_SINCE: "2025-06-01"})), Fate::Stays);
        assert_eq!(told(old, json!({INVALID_SINCE: "2025-05-31"})), Fate::Deleted);
        assert_eq!(told(old, json!({INVALID_SINCE: "2025-05-31", LAST_USED: "2026-01-01"})), Fate::Stays);
        assert_eq!(told(old, json!({INVALID_SINCE: "x"})), Fate::Invalid);
    }

    #[test]
    fn a_secret_is_of_one_account_and_complete_or_not() {
        let account = ServiceAccount::from_value(json!({"metadata": {"name": "a", "uid": "u"},
            "secrets": [{"name": "t"}]}))
        .unwrap();
        let of = |annotations: Value, data: Value| {
            let meta = json!({"name": "t", "annotations": annotations});
            Secret::from_value(json!({"metadata": meta, "data": data})).unwrap()
        };
        assert!(is_its(&account, &of(json!({ACCOUNT_NAME: "a"}), json!({}))));
        assert!(!is_its(&account, &of(json!({ACCOUNT_NAME: "a", ACCOUNT_UID: "v"}), json!({}))));
        assert!(refers(&account, "t") && !refers(&account, "s"));
        let whole = json!({"token": "dA==", "namespace": "bg==", "ca.crt": "Y2E="});
        assert!(!is_incomplete(&of(json!({}), whole.clone()), "ca"));
        assert!(is_incomplete(&of(json!({}), whole), "other"));
        assert!(is_incomplete(&of(json!({}), json!({"namespace": "bg==", "ca.crt": "Y2E="})), "ca"));
        assert_eq!(midnight_after("2026-02-28".parse().unwrap()), at("2026-03-01T00:00:00Z"));
    }
}
