//! An issuer's keys, fetched from where its discovery document says, and the verification of its tokens
//! (OpenID Connect Core and Discovery 1.0, RFC 7517, RFC 7519).

use super::measured::Measured;
use crate::outbound::Outbound;
use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use gantry_api::clock::Clock;
use http::HeaderMap;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// What an issuer may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How far a clock may be behind that of the issuer.
const NOT_BEFORE_LEEWAY_SECONDS: i64 = 300;
/// Most bytes of a token; greater ones are refused before anything is decoded.
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// Claims of a token.
pub(super) type Claims = Map<String, Value>;

/// Fetches an issuer's keys and verifies its tokens.
pub(super) struct Issuer {
    url: String,
    /// Where its discovery document is.
    discovery: String,
    audiences: Vec<String>,
    algorithms: Vec<String>,
    outbound: Arc<Outbound>,
    clock: Clock,
    /// Where its keys are; None until discovery has succeeded.
    keys_at: ArcSwapOption<String>,
    keys: ArcSwapOption<JwkSet>,
    /// One fetches at a time.
    fetching: Mutex<()>,
    /// Told of the keys that are fetched, as long as the issuer is one of the configured.
    measured: ArcSwapOption<Measured>,
}

/// The `iss` claim of a token that nobody has verified.
pub(in crate::authn) fn untrusted_issuer(token: &str) -> Option<String> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    claims["iss"].as_str().map(str::to_owned)
}

impl Issuer {
    pub(super) fn new(
        url: &str,
        discovery: Option<&str>,
        audiences: &[String],
        algorithms: &[String],
        outbound: Arc<Outbound>,
        clock: Clock,
        measured: Option<Measured>,
    ) -> Self {
        let well_known = || format!("{}/.well-known/openid-configuration", url.trim_end_matches('/'));
        Self {
            url: url.to_owned(),
            discovery: discovery.map_or_else(well_known, str::to_owned),
            audiences: audiences.to_vec(),
            algorithms: algorithms.to_vec(),
            outbound,
            clock,
            keys_at: ArcSwapOption::empty(),
            keys: ArcSwapOption::empty(),
            fetching: Mutex::default(),
            measured: ArcSwapOption::from_pointee(measured),
        }
    }

    /// The issuer is not among the configured any more, though somebody may still be fetching its keys.
    pub(super) fn stop_measuring(&self) {
        self.measured.store(None);
    }

    /// Whether discovery has succeeded.
    pub(super) fn is_known(&self) -> bool {
        self.keys_at.load().is_some()
    }

    /// What is at a URL, and its text.
    async fn json(&self, url: &str) -> Result<(Value, Bytes), String> {
        let answer = self.outbound.get(url, HeaderMap::new(), ANSWER_WITHIN).await?;
        if answer.status != http::StatusCode::OK {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            return Err(format!("{}: {text}", answer.status));
        }
        let value = serde_json::from_slice(&answer.body).map_err(|e| {
            format!("expected Content-Type = application/json, got {:?}: {e}", answer.header("content-type"))
        })?;
        Ok((value, answer.body))
    }

    /// Reads the discovery document.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) async fn discover(&self) -> Result<(), String> {
        let (document, _) = self.json(&self.discovery).await?;
        let issuer = document["issuer"].as_str().unwrap_or_default();
        if issuer != self.url {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {issuer:?}",
                self.url
            ));
        }
        let keys = document["jwks_uri"].as_str().filter(|u| !u.is_empty());
        let keys = keys.ok_or("provider did not return JWKS URL")?;
        self.keys_at.store(Some(Arc::new(keys.to_owned())));
        Ok(())
    }

    /// The claims of a token of this issuer for one of its audiences that is good now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) async fn verify(&self, token: &str) -> Result<Claims, String> {
        // Claims of a token that is not verified yet; nothing is done with them but refusing it early.
        let payload = token.split('.').nth(1).unwrap_or_default();
        let decoded = URL_SAFE_NO_PAD.decode(payload).map_err(|e| format!("oidc: malformed jwt: {e}"))?;
        let claims: Claims =
            serde_json::from_slice(&decoded).map_err(|e| format!("oidc: failed to unmarshal claims: {e}"))?;
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        if issuer != self.url {
            return Err(format!(
                "oidc: id token issued by a different provider, expected {:?} got {issuer:?}",
                self.url
            ));
        }
        self.check_audience(&claims)?;
        self.check_times(&claims)?;
        let header = jsonwebtoken::decode_header(token).map_err(|e| format!("oidc: malformed jwt: {e}"))?;
        let algorithm = serde_json::to_value(header.alg).ok().and_then(|v| v.as_str().map(str::to_owned));
        let algorithm = algorithm.unwrap_or_default();
        if !self.algorithms.contains(&algorithm) {
            return Err(format!(
                "oidc: malformed jwt: unexpected signature algorithm {algorithm:?}; expected {:?}",
                self.algorithms
            ));
        }
        self.check_signature(token, header.alg, header.kid.as_deref()).await?;
        Ok(claims)
    }

    fn check_audience(&self, claims: &Claims) -> Result<(), String> {
        let given: Vec<&str> = match claims.get("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if self.audiences.iter().any(|a| given.contains(&a.as_str())) {
            return Ok(());
        }
        match self.audiences.as_slice() {
            [one] => Err(format!("oidc: expected audience {one:?} got {given:?}")),
            many => Err(format!("oidc: expected audience in {many:?} got {given:?}")),
        }
    }

    fn check_times(&self, claims: &Claims) -> Result<(), String> {
        // A number of seconds, which need not be whole.
        #[allow(clippy::cast_possible_truncation, reason = "seconds of any date fit")]
        let seconds = |claim: &str| claims.get(claim).and_then(Value::as_f64).map(|s| s as i64);
        let now = self.clock.now();
        let at = |s: i64| gantry_api::k8s_openapi::jiff::Timestamp::from_second(s).unwrap_or_default();
        let expiry = seconds("exp").unwrap_or(0);
        if now.as_second() > expiry {
            return Err(format!("oidc: token is expired (Token Expiry: {})", at(expiry)));
        }
        if let Some(from) = seconds("nbf")
            && now.as_second() + NOT_BEFORE_LEEWAY_SECONDS < from
        {
            return Err(format!("oidc: current time {now} before the nbf (not before) time: {}", at(from)));
        }
        Ok(())
    }

    async fn check_signature(&self, token: &str, algorithm: Algorithm, kid: Option<&str>) -> Result<(), String> {
        let known = self.keys.load_full();
        if known.is_some_and(|keys| is_signed(token, algorithm, kid, &keys)) {
            return Ok(());
        }
        // The issuer may have changed its keys.
        let fresh = self.fetch().await.map_err(|why| format!("failed to verify signature: fetching keys {why}"))?;
        if is_signed(token, algorithm, kid, &fresh) {
            return Ok(());
        }
        Err("failed to verify signature: failed to verify id token signature".into())
    }

    /// The keys as they are now. Of many who ask at once one fetches for all.
    async fn fetch(&self) -> Result<Arc<JwkSet>, String> {
        let before = self.keys.load_full();
        let _one = self.fetching.lock().await;
        let now = self.keys.load_full();
        let changed = match (&before, &now) {
            (Some(before), Some(now)) => !Arc::ptr_eq(before, now),
            (None, Some(_)) => true,
            _ => false,
        };
        if let Some(now) = now.filter(|_| changed) {
            return Ok(now);
        }
        let url = self.keys_at.load_full().ok_or("oidc: authenticator not initialized")?;
        let document = self.json(&url).await;
        if let Some(measured) = self.measured.load_full() {
            let text = document.as_ref().ok().map(|(_, text)| String::from_utf8_lossy(text));
            measured.fetched(&self.url, text.as_deref(), &self.clock);
        }
        let (document, _) = document?;
        // Keys of sorts that are not known are no reason to refuse the others.
        let all = document["keys"].as_array().cloned().unwrap_or_default();
        let keys: Vec<Jwk> = all.into_iter().filter_map(|k| serde_json::from_value(k).ok()).collect();
        let keys = Arc::new(JwkSet { keys });
        self.keys.store(Some(keys.clone()));
        Ok(keys)
    }
}

fn is_signed(token: &str, algorithm: Algorithm, kid: Option<&str>, keys: &JwkSet) -> bool {
    let mut validation = Validation::new(algorithm);
    // Times and audience are checked by this server's clock and configuration.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let candidates = keys.keys.iter().filter(|k| {
        let named = kid.is_none_or(|kid| k.common.key_id.as_deref() == Some(kid));
        named && !matches!(k.common.public_key_use, Some(PublicKeyUse::Encryption))
    });
    let verified = |key: &Jwk| {
        let key = DecodingKey::from_jwk(key).ok()?;
        jsonwebtoken::decode::<Claims>(token, &key, &validation).ok()
    };
    candidates.filter_map(verified).next().is_some()
}
