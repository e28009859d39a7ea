//! Tokens of OpenID Connect issuers: `AuthenticationConfiguration` and the older `--oidc-` flags. The configuration can be
//! replaced while the server runs.

pub mod config;
mod issuer;
mod mapping;
mod measured;

use super::audience::good_for;
use super::{Authenticator, Peer, UserInfo, invalid_credentials};
use crate::outbound::{Outbound, Trust};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use config::{Anonymous, AuthenticationConfiguration, JwtAuthenticator};
use gantry_api::clock::Clock;
use gantry_api::meta::status::ApiError;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
pub(super) use issuer::untrusted_issuer;
use issuer::{Claims, Issuer};
use mapping::Mapping;
use measured::Measured;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long until an issuer whose discovery failed is asked again.
const RETRY: Duration = Duration::from_secs(10);
/// Algorithms that issuers may sign with.
pub const ALGORITHMS: [&str; 8] = ["ES256", "ES384", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"];

/// Recognises the tokens of one issuer.
struct JwtIssuer {
    url: String,
    issuer: Arc<Issuer>,
    mapping: Mapping,
    distributed: Distributed,
    /// Ends the attempts to reach the issuer when this configuration is replaced.
    _end: DropGuard,
}

/// Claims that an issuer keeps elsewhere (OpenID Connect Core 1.0, 5.6.2).
struct Distributed {
    audiences: Vec<String>,
    algorithms: Vec<String>,
    outbound: Arc<Outbound>,
    clock: Clock,
    issuers: Mutex<HashMap<String, Arc<Issuer>>>,
}

impl Distributed {
    /// Fetches a claim that is kept elsewhere, where it is.
    async fn expand(&self, claim: &str, claims: &mut Claims) -> Result<(), String> {
        if claims.contains_key(claim) {
            return Ok(());
        }
        let Some(names) = claims.get("_claim_names") else { return Ok(()) };
        let Some(source) = names[claim].as_str() else { return Ok(()) };
        let sources = claims.get("_claim_sources").ok_or("oidc: no claim sources")?;
        let missing = || format!("id token _claim_names contained a source {source} missing in _claims_sources");
        let found = sources.get(source).ok_or_else(missing)?;
        let Some(url) = found["endpoint"].as_str().filter(|u| !u.is_empty()) else { return Ok(()) };
        let getting = |why: String| format!("while getting distributed claim {claim:?}: {why}");
        let mut headers = HeaderMap::new();
        if let Some(token) = found["access_token"].as_str().filter(|t| !t.is_empty()) {
            let value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| getting(e.to_string()))?;
            headers.insert(AUTHORIZATION, value);
        }
        let answer = self.outbound.get(url, headers, Duration::from_secs(30)).await.map_err(getting)?;
        if !answer.status.is_success() {
            return Err(getting(format!("error while getting distributed claim JWT: {}", answer.status)));
        }
        let token = String::from_utf8_lossy(&answer.body).into_owned();
        let from = untrusted_issuer(&token).ok_or_else(|| {
            format!("getting untrusted issuer from endpoint {url} failed for claim {claim:?}: malformed token")
        })?;
        let issuer = self.issuer(&from).await;
        if !issuer.is_known() {
            let verifying = |why: String| format!("verifying untrusted issuer {from} failed: {why}");
            issuer.discover().await.map_err(verifying)?;
        }
        let verified = issuer.verify(&token).await;
        let more = verified.map_err(|why| format!("verify distributed claim token: {why}"))?;
        let none = || format!("jwt returned by distributed claim endpoint {url:?} did not contain claim: {claim}");
        let value: Value = more.get(claim).cloned().ok_or_else(none)?;
        claims.insert(claim.to_owned(), value);
        Ok(())
    }

    async fn issuer(&self, url: &str) -> Arc<Issuer> {
        let make = || {
            let outbound = self.outbound.clone();
            // Upstream measures those that are configured.
            Arc::new(Issuer::new(url, None, &self.audiences, &self.algorithms, outbound, self.clock, None))
        };
        self.issuers.lock().await.entry(url.to_owned()).or_insert_with(make).clone()
    }
}

impl JwtIssuer {
    fn new(
        config: &JwtAuthenticator,
        algorithms: &[String],
        clock: Clock,
        measured: &Measured,
    ) -> Result<Self, String> {
        let ca_pem = config.issuer.certificate_authority.clone().into_bytes();
        let outbound = Arc::new(Outbound::new(&Trust { ca_pem, ..Trust::default() })?);
        let audiences = config.issuer.audiences.clone();
        let discovery = config.issuer.discovery_url.as_deref().filter(|u| !u.is_empty());
        let url = config.issuer.url.clone();
        let measured = Some(measured.clone());
        let issuer = Issuer::new(&url, discovery, &audiences, algorithms, outbound.clone(), clock, measured);
        let issuer = Arc::new(issuer);
        let end = CancellationToken::new();
        tokio::spawn(reach(issuer.clone(), url.clone(), end.clone()));
        let algorithms = algorithms.to_vec();
        let distributed = Distributed { audiences, algorithms, outbound, clock, issuers: Mutex::default() };
        Ok(Self { url, issuer, mapping: Mapping::new(config)?, distributed, _end: end.drop_guard() })
    }

    async fn user(&self, token: &str) -> Result<UserInfo, String> {
        if !self.issuer.is_known() {
            return Err("oidc: authenticator not initialized".into());
        }
        let verified = self.issuer.verify(token).await;
        let mut claims = verified.map_err(|why| format!("oidc: verify token: {why}"))?;
        if let Some(claim) = self.mapping.groups_claim() {
            let expanded = self.distributed.expand(claim, &mut claims).await;
            expanded.map_err(|why| format!("oidc: could not expand distributed claims: {why}"))?;
        }
        self.mapping.user(&claims)
    }
}

/// Reads an issuer's discovery document, trying again until it can.
async fn reach(issuer: Arc<Issuer>, url: String, end: CancellationToken) {
    loop {
        let tried = tokio::select! {
            biased;
            () = end.cancelled() => return,
            tried = issuer.discover() => tried,
        };
        let Err(why) = tried else { return };
        tracing::error!(issuer = url, why, "oidc authenticator: initializing plugin");
        tokio::select! {
            biased;
            () = end.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// What is accepted now.
struct State {
    issuers: Vec<JwtIssuer>,
    anonymous: Anonymous,
}

/// Recognises the tokens of the configured issuers, and says which requests may come without any. Cheap to clone; all
/// clones are one.
#[derive(Clone)]
pub struct Jwt {
    state: Arc<ArcSwap<State>>,
    api_audiences: Arc<Vec<String>>,
    algorithms: Arc<Vec<String>>,
    own_issuer: Arc<str>,
    anonymous: Arc<Anonymous>,
    clock: Clock,
    measured: Measured,
}

impl Jwt {
    /// Accepts what `config` says, which has been checked. `anonymous` holds where it says nothing of requests without
    /// credentials; `own_issuer` is that of ServiceAccount tokens.
    ///
    /// # Errors
    /// Names what cannot be used.
    pub fn new(
        config: &AuthenticationConfiguration,
        algorithms: Vec<String>,
        anonymous: Anonymous,
        own_issuer: &str,
        api_audiences: Vec<String>,
        clock: Clock,
    ) -> Result<Self, String> {
        let state = State { issuers: Vec::new(), anonymous: anonymous.clone() };
        let this = Self {
            state: Arc::new(ArcSwap::from_pointee(state)),
            api_audiences: Arc::new(api_audiences),
            algorithms: Arc::new(algorithms),
            own_issuer: own_issuer.into(),
            anonymous: Arc::new(anonymous),
            clock,
            measured: Measured::default(),
        };
        this.apply(config)?;
        Ok(this)
    }

    fn apply(&self, config: &AuthenticationConfiguration) -> Result<(), String> {
        let issuers = config.jwt.iter().map(|c| JwtIssuer::new(c, &self.algorithms, self.clock, &self.measured));
        let issuers = issuers.collect::<Result<Vec<_>, _>>()?;
        let anonymous = config.anonymous.clone().unwrap_or_else(|| Anonymous::clone(&self.anonymous));
        let now = Arc::new(State { issuers, anonymous });
        let before = self.state.swap(now.clone());
        for gone in before.issuers.iter().filter(|b| now.issuers.iter().all(|n| n.url != b.url)) {
            gone.issuer.stop_measuring();
            self.measured.forget(&gone.url);
        }
        Ok(())
    }

    /// Has the measurements exported.
    pub(crate) fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.measured.register(registry);
    }

    /// Accepts what another document says from now on.
    ///
    /// # Errors
    /// What is wrong with it; then everything stays as it was.
    pub fn replace(&self, text: &str) -> Result<(), String> {
        let config = config::parse(text, &self.own_issuer)?;
        self.apply(&config)
    }

    /// Whether a request to `path` may come without credentials.
    #[must_use]
    pub fn allows_anonymous(&self, path: &str) -> bool {
        self.state.load().anonymous.allows(path)
    }
}

#[async_trait]
impl Authenticator for Jwt {
    async fn authenticate(&self, _: &http::request::Parts, _: &Peer) -> Result<Option<UserInfo>, ApiError> {
        // Tokens reach this authenticator through `BearerToken`.
        Ok(None)
    }

    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, ApiError> {
        let state = self.state.load_full();
        if state.issuers.is_empty() {
            return Ok(None);
        }
        let Some(url) = untrusted_issuer(token) else { return Ok(None) };
        let Some(issuer) = state.issuers.iter().find(|i| i.url == url) else { return Ok(None) };
        let began = Instant::now();
        let user = issuer.user(token).await;
        self.measured.verified(&url, user.is_ok(), began.elapsed());
        let user = user.map_err(invalid_credentials)?;
        Ok(good_for(&self.api_audiences, audiences).map(|good| (user, good)))
    }
}
