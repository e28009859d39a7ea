//! Webhooks that answer reviews for the server: whose a token is (`TokenReview`), whether somebody may do something
//! (`SubjectAccessReview`), whether images may run (`ImageReview`). Failures read as those of Go's client.

use crate::outbound::{Outbound, Trust};
use crate::webhook_client::failure;
use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::k8s_openapi::jiff::{SignedDuration, Timestamp};
use http::Request;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http_body_util::Full;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;

/// Attempts at a server that fails in a way that may pass, and the usual first pause between them; each pause is half as
/// long again.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Where a webhook is, as a kubeconfig says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookEndpoint {
    /// Its URL.
    pub url: String,
    /// Whom to believe, and as whom to appear.
    pub ca_pem: Vec<u8>,
    /// Whether any certificate will do.
    pub insecure: bool,
    /// The name in its certificate, where it is not the URL's host.
    pub server_name: Option<String>,
    /// Client certificate and key, PEM.
    pub client: Option<(String, String)>,
    /// Bearer token.
    pub token: Option<String>,
}

/// A webhook.
pub struct ReviewHook {
    endpoint: HookEndpoint,
    outbound: Outbound,
    first_pause: Duration,
}

impl ReviewHook {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// Where a certificate or key cannot be used.
    pub fn new(endpoint: HookEndpoint) -> Result<Self, String> {
        let trust = Trust {
            ca_pem: endpoint.ca_pem.clone(),
            insecure: endpoint.insecure,
            server_name: endpoint.server_name.clone(),
            client: endpoint.client.clone(),
        };
        Ok(Self { outbound: Outbound::new(&trust)?, endpoint, first_pause: FIRST_PAUSE })
    }

    /// Another first pause between attempts.
    #[must_use]
    pub fn first_pause(self, first_pause: Duration) -> Self {
        Self { first_pause, ..self }
    }

    /// POSTs a review and returns it as it came back. What may pass is tried again, all within `timeout`.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn review(&self, review: &Value, timeout: Duration) -> Result<Value, String> {
        let body = Bytes::from(review.to_string());
        let deadline = tokio::time::Instant::now() + timeout;
        let mut pause = self.first_pause;
        let mut tried = 0;
        loop {
            tried += 1;
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let (why, may_pass) = match self.once(body.clone(), left).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if !may_pass || tried == ATTEMPTS || tokio::time::Instant::now() + pause >= deadline {
                return Err(why);
            }
            tokio::time::sleep(pause).await;
            pause = pause * 3 / 2;
        }
    }

    async fn once(&self, body: Bytes, timeout: Duration) -> Result<Value, (String, bool)> {
        let mut request = Request::post(&self.endpoint.url)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, */*");
        if let Some(token) = &self.endpoint.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|e| (e.to_string(), false))?;
        let answer = self.outbound.fetch(request, timeout).await.map_err(|why| {
            let may_pass = why.ends_with("connection reset by peer");
            (why, may_pass)
        })?;
        if answer.status.is_success() {
            return serde_json::from_slice(&answer.body).map_err(|e| (e.to_string(), false));
        }
        let kind = answer.header("content-type");
        let text = kind.is_empty() || kind.starts_with("text/");
        let may_pass = matches!(answer.status.as_u16(), 429 | 500 | 504);
        Err((failure(answer.status, text, &answer.body).message, may_pass))
    }
}

/// Values that are remembered for some time.
pub struct Remembered<V> {
    clock: Clock,
    most: usize,
    kept: Mutex<HashMap<Vec<u8>, (Timestamp, V)>>,
}

impl<V: Clone> Remembered<V> {
    /// Remembers up to `most` values, by `clock`.
    #[must_use]
    pub fn new(clock: Clock, most: usize) -> Self {
        Self { clock, most, kept: Mutex::default() }
    }

    /// The value, if it is remembered yet.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<V> {
        let now = self.clock.now();
        let mut kept = self.kept.lock();
        match kept.get(key) {
            Some((until, value)) if *until > now => Some(value.clone()),
            Some(_) => {
                kept.remove(key);
                None
            }
            None => None,
        }
    }

    /// Remembers a value.
    pub fn put(&self, key: Vec<u8>, value: V, time: Duration) {
        let now = self.clock.now();
        let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
        let until = now.saturating_add(time).unwrap_or(Timestamp::MAX);
        let mut kept = self.kept.lock();
        if kept.len() >= self.most {
            kept.retain(|_, (until, _)| *until > now);
        }
        if kept.len() >= self.most {
            kept.clear();
        }
        kept.insert(key, (until, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn values_are_forgotten_in_time() {
        let cache = Remembered::new(Clock::starting_at(Timestamp::UNIX_EPOCH), 2);
        cache.put(b"a".to_vec(), 1, Duration::from_secs(10));
        assert_eq!((cache.get(b"a"), cache.get(b"b")), (Some(1), None));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(cache.get(b"a"), None);
        for key in [b"a", b"b", b"c"] {
            cache.put(key.to_vec(), 2, Duration::from_secs(10));
        }
        assert_eq!(cache.get(b"c"), Some(2));
    }
}
