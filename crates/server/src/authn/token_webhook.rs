//! Asks a webhook whose a bearer token is (`plugin/pkg/authenticator/token/webhook`).

use super::{AUTHENTICATED, Authenticator, Peer, UserInfo, invalid_credentials};
use crate::access::TokenWebhook;
use crate::review_hook::{Remembered, ReviewHook};
use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use gantry_api::clock::Clock;
use gantry_api::k8s_openapi::api::authentication::v1::TokenReviewStatus;
use gantry_api::meta::status::ApiError;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the webhook may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Answers that are remembered.
const REMEMBERED_MAX: usize = 4096;

type Answer = Option<(UserInfo, Vec<String>)>;

/// Knows users by what a webhook says of their tokens.
pub struct WebhookTokens {
    hook: ReviewHook,
    version: String,
    remembered: Remembered<Answer>,
    remember_for: Duration,
    api_audiences: Vec<String>,
}

impl WebhookTokens {
    /// Asks the webhook of `config`.
    ///
    /// # Errors
    /// Where its certificates cannot be used.
    pub fn new(config: &TokenWebhook, api_audiences: Vec<String>, clock: Clock) -> Result<Self, String> {
        Ok(Self {
            hook: ReviewHook::new(config.endpoint.clone())?,
            version: config.version.clone(),
            remembered: Remembered::new(clock, REMEMBERED_MAX),
            remember_for: config.remember_for,
            api_audiences,
        })
    }

    async fn ask(&self, token: &str, wanted: &[String]) -> Result<Answer, String> {
        let review = json!({
            "kind": "TokenReview", "apiVersion": format!("authentication.k8s.io/{}", self.version),
            "metadata": {}, "spec": { "token": token, "audiences": wanted },
            "status": { "user": {} },
        });
        let asked = self.hook.review(&review, ANSWER_WITHIN).await;
        let mut answer = asked.inspect_err(|why| {
            tracing::error!(why, "Failed to make webhook authenticator request");
        })?;
        let status = match answer.get_mut("status").map(Value::take) {
            None | Some(Value::Null) => TokenReviewStatus::default(),
            Some(status) => serde_json::from_value(status).map_err(|e| e.to_string())?,
        };
        if status.authenticated != Some(true) {
            let why = status.error.filter(|e| !e.is_empty());
            return why.map_or(Ok(None), Err);
        }
        // A webhook that knows nothing of audiences means the API server.
        let told = status.audiences.filter(|a| !a.is_empty()).unwrap_or_else(|| self.api_audiences.clone());
        let good: Vec<String> = wanted.iter().filter(|a| told.contains(a)).cloned().collect();
        if good.is_empty() {
            return Ok(None);
        }
        let told = status.user.unwrap_or_default();
        let mut groups = told.groups.unwrap_or_default();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        let user = UserInfo {
            username: told.username.unwrap_or_default(),
            uid: told.uid.unwrap_or_default(),
            groups,
            extra: told.extra.unwrap_or_default(),
        };
        Ok(Some((user, good)))
    }
}

#[async_trait]
impl Authenticator for WebhookTokens {
    async fn authenticate(&self, _: &http::request::Parts, _: &Peer) -> Result<Option<UserInfo>, ApiError> {
        // Tokens reach this authenticator through `BearerToken`.
        Ok(None)
    }

    async fn authenticate_token(&self, token: &str, audiences: &[String]) -> Result<Answer, ApiError> {
        let wanted = if audiences.is_empty() { self.api_audiences.as_slice() } else { audiences };
        let key = digest(&SHA256, json!([token, wanted]).to_string().as_bytes()).as_ref().to_vec();
        if let Some(known) = self.remembered.get(&key) {
            return Ok(known);
        }
        let answer = self.ask(token, wanted).await.map_err(invalid_credentials)?;
        if !self.remember_for.is_zero() {
            self.remembered.put(key, answer.clone(), self.remember_for);
        }
        Ok(answer)
    }
}
