//! Service account tokens bound to a pod, asked for once and again after 80 % of their life.

use gantry_client::{Api, Client, PostParams};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// No token is kept longer than this.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// What identifies a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenRequestKey {
    pub namespace: String,
    pub service_account: String,
    pub audience: Option<String>,
    pub seconds: i64,
    pub pod_name: String,
    pub pod_uid: String,
}

#[derive(Clone)]
struct Cached {
    token: String,
    refresh: Instant,
}

/// The tokens of this node's pods.
pub(crate) struct Tokens {
    client: Option<Client>,
    cache: Mutex<HashMap<TokenRequestKey, Cached>>,
}

/// When a token of this life is asked for anew.
pub(crate) fn refresh_after(life: Duration) -> Duration {
    life.mul_f64(0.8).min(MAX_AGE)
}

impl Tokens {
    pub(crate) fn new(client: Client) -> Self {
        Self { client: Some(client), cache: Mutex::default() }
    }

    /// Without an API server: every request fails.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { client: None, cache: Mutex::default() }
    }

    /// Forgets the tokens of a pod that is gone.
    pub(crate) fn forget(&self, pod_uid: &str) {
        self.cache.lock().retain(|k, _| k.pod_uid != pod_uid);
    }

    /// The token and when to ask again.
    pub(crate) async fn get(&self, key: &TokenRequestKey) -> Result<(String, Instant), String> {
        let now = Instant::now();
        let cached = self.cache.lock().get(key).cloned();
        if let Some(c) = cached.filter(|c| c.refresh > now) {
            return Ok((c.token, c.refresh));
        }
        let client = self.client.clone().ok_or("no API server")?;
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(key.audience.iter().cloned().collect()),
                expiration_seconds: Some(key.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(key.pod_name.clone()),
                    uid: Some(key.pod_uid.clone()),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let api = Api::<ServiceAccount>::namespaced(client, &key.namespace);
        let answer = api
            .create_subresource(&key.service_account, "token", &PostParams::default(), &request)
            .await
            .map_err(|e| e.to_string())?;
        let status = answer.status.ok_or("the answer has no status")?;
        // The server may grant another life than was asked for.
        let token = status.token.filter(|t| !t.is_empty()).ok_or("the answer has no token")?;
        let expires = status.expiration_timestamp.ok_or("the answer has no expiry")?;
        let left = expires.0.duration_since(k8s_openapi::jiff::Timestamp::now());
        let life = Duration::try_from(left).unwrap_or_default();
        let refresh = now + refresh_after(life);
        self.cache.lock().insert(key.clone(), Cached { token: token.clone(), refresh });
        Ok((token, refresh))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_four_fifths_and_at_least_daily() {
        assert_eq!(refresh_after(Duration::from_secs(3600)), Duration::from_secs(2880));
        assert_eq!(refresh_after(Duration::from_secs(365 * 24 * 3600)), MAX_AGE);
    }
}
