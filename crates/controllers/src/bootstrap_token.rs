//! Bootstrap tokens: expired ones are deleted, and with the others the ConfigMap `kube-public/cluster-info` is signed, so
//! that a machine which knows a token can tell the cluster's own ConfigMap from a forged one.
//!
//! Source: `k8s.io/kubernetes/pkg/controller/bootstrap`; signatures are detached JSON Web Signatures (RFC 7515, appendix F)
//! by HS256.

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams};
use gantry_reconcile::{
    Action, Controller, Error, EventRecorder, Informer, Outcome, Plan, Queue, plan, runner, wait_synced,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Type of the Secrets that hold tokens.
const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAMESPACE: &str = "kube-system";
/// The ConfigMap that is signed.
const CLUSTER_INFO: (&str, &str) = ("kube-public", "cluster-info");
/// The part of it that is signed.
const KUBECONFIG: &str = "kubeconfig";
/// Where signatures are, by the token's id.
const SIGNATURE: &str = "jws-kubeconfig-";

/// What the controllers may do beyond their roles in `kube-system` and `kube-public`.
pub const RULES: &[Rule] = &[EVENTS];

fn text(secret: &Secret, key: &str) -> Option<String> {
    let found = secret.data.as_ref()?.get(key)?;
    String::from_utf8(found.0.clone()).ok().filter(|t| !t.is_empty())
}

/// How long a token is good yet; None where it does not say or says it in no way that is understood.
fn left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let until: Timestamp = text(secret, "expiration")?.parse().ok()?;
    Some(Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO))
}

fn tokens(setup: &Setup) -> Informer<Secret> {
    setup.informers.get_filtered::<Secret>(Some(&format!("type={TYPE}")), None)
}

struct Cleaner {
    secrets: Informer<Secret>,
    setup: Setup,
}

/// Deletes expired tokens.
pub async fn run_cleaner(setup: Setup) {
    let secrets = tokens(&setup);
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    secrets.on_change(move |change| {
        let meta = &change.object().metadata;
        if meta.namespace() == NAMESPACE {
            q.add(meta.name().to_owned());
        }
    });
    if !wait_synced(&[&secrets], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(Cleaner { secrets, setup }), queue, 1, cancel).await;
}

#[async_trait]
impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(secret) = self.secrets.get(NAMESPACE, key) else { return Ok(Outcome::done()) };
        match left(&secret, self.setup.config.clock.now()) {
            None => return Ok(Outcome::done()),
            Some(wait) if !wait.is_zero() => return Ok(Outcome::after(wait)),
            Some(_) => {}
        }
        let params = DeleteParams { precondition_uid: secret.metadata.uid.clone(), ..DeleteParams::default() };
        let api = Api::<Secret>::namespaced(self.setup.client.clone(), NAMESPACE);
        match api.delete(key, &params).await {
            Err(e) if !e.is("NotFound") && !e.is("Conflict") => Err(Error::api(format!("delete secret {key}"), e)),
            _ => Ok(Outcome::done()),
        }
    }
}

/// `(ID, SECRET)` of a token that may sign.
fn signer(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    let id = text(secret, "token-id")?;
    let named = secret.metadata.name().strip_prefix("bootstrap-token-") == Some(id.as_str());
    let is_good = left(secret, now).is_none_or(|left| !left.is_zero()) && !secret.metadata.is_deleting();
    let may = text(secret, "usage-bootstrap-signing").as_deref() == Some("true");
    (named && is_good && may).then_some((id, text(secret, "token-secret")?))
}

/// What the ConfigMap should be; None where it is that already.
fn signed(map: &ConfigMap, tokens: &BTreeMap<String, String>) -> Option<ConfigMap> {
    let data = map.data.as_ref()?;
    let content = data.get(KUBECONFIG)?;
    let mut wanted: BTreeMap<String, String> =
        data.iter().filter(|(key, _)| !key.starts_with(SIGNATURE)).map(|(k, v)| (k.clone(), v.clone())).collect();
    wanted.extend(tokens.iter().map(|(id, secret)| (format!("{SIGNATURE}{id}"), sign(content, id, secret))));
    (wanted != *data).then(|| ConfigMap { data: Some(wanted), ..map.clone() })
}

/// A detached signature of `content`: the payload's part is left empty.
fn sign(content: &str, id: &str, secret: &str) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let payload = URL_SAFE_NO_PAD.encode(content);
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, format!("{header}.{payload}").as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

struct Signer {
    secrets: Informer<Secret>,
    maps: Informer<ConfigMap>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Signs `kube-public/cluster-info`.
pub async fn run_signer(setup: Setup) {
    let secrets = tokens(&setup);
    let maps = setup.informers.get_filtered::<ConfigMap>(Some(&format!("metadata.name={}", CLUSTER_INFO.1)), None);
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    secrets.on_change(move |_| q.add(CLUSTER_INFO.1.to_owned()));
    let q = queue.clone();
    maps.on_change(move |change| {
        if change.object().metadata.namespace() == CLUSTER_INFO.0 {
            q.add(CLUSTER_INFO.1.to_owned());
        }
    });
    if !wait_synced(&[&secrets], &setup.cancel).await || !wait_synced(&[&maps], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("bootstrap-signer"), setup.cancel.clone());
    runner::run(Arc::new(Signer { secrets, maps, recorder, setup }), queue, 1, cancel).await;
}

#[async_trait]
impl Controller for Signer {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, _key: &str) -> Result<Outcome, Error> {
        let Some(map) = self.maps.get(CLUSTER_INFO.0, CLUSTER_INFO.1) else { return Ok(Outcome::done()) };
        let now = self.setup.config.clock.now();
        let all = self.secrets.list();
        let own = all.iter().filter(|s| s.metadata.namespace() == NAMESPACE);
        let tokens: BTreeMap<String, String> = own.clone().filter_map(|s| signer(s, now)).collect();
        if let Some(wanted) = signed(&map, &tokens) {
            let mut steps = Plan::default();
            steps.push(Action::update(&wanted));
            plan::execute(&self.setup.client, &self.recorder, &steps).await?;
        }
        // The next token to expire takes its signature with it.
        let next = own.filter_map(|s| left(s, now)).filter(|left| !left.is_zero()).min();
        Ok(next.map_or_else(Outcome::done, Outcome::after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn token(extra: Value) -> Secret {
        let mut data = json!({"token-id": "YWJjZGVm", "token-secret": "MDEyMzQ1Njc4OWFiY2RlZg==",
            "usage-bootstrap-signing": "dHJ1ZQ=="});
        for (key, value) in extra.as_object().unwrap() {
            data[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "bootstrap-token-abcdef"}, "data": data})).unwrap()
    }

    #[test]
    fn tokens_sign_until_they_expire() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let pair = Some(("abcdef".to_owned(), "0123456789abcdef".to_owned()));
        assert_eq!(signer(&token(json!({})), now), pair);
        // 2026-01-01T00:00:09Z
        let late = token(json!({"expiration": "MjAyNi0wMS0wMVQwMDowMDowOVo="}));
        assert_eq!((signer(&late, now), left(&late, now)), (pair, Some(Duration::from_secs(9))));
        // 2025-01-01T00:00:00Z
        let gone = token(json!({"expiration": "MjAyNS0wMS0wMVQwMDowMDowMFo="}));
        assert_eq!((signer(&gone, now), left(&gone, now)), (None, Some(Duration::ZERO)));
        assert_eq!(signer(&token(json!({"usage-bootstrap-signing": "ZmFsc2U="})), now), None);
    }

    #[test]
    fn signatures_come_and_go() {
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "cluster-info"},
            "data": {"kubeconfig": "Hello", "jws-kubeconfig-oldold": "x"}}))
        .unwrap();
        let tokens = BTreeMap::from([("abcdef".to_owned(), "0123456789abcdef".to_owned())]);
        let wanted = signed(&map, &tokens).unwrap();
        let data = wanted.data.clone().unwrap();
        assert_eq!(data.keys().collect::<Vec<_>>(), ["jws-kubeconfig-abcdef", "kubeconfig"]);
        let parts: Vec<&str> = data["jws-kubeconfig-abcdef"].split('.').collect();
        // {"alg":"HS256","kid":"abcdef"}
        assert_eq!(parts[..2], ["eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9", ""]);
        assert_eq!(parts[2].len(), 43);
        assert!(signed(&wanted, &tokens).is_none());
        assert_ne!(sign("Hello", "abcdef", "0123456789abcdef"), sign("Hello!", "abcdef", "0123456789abcdef"));
    }
}
