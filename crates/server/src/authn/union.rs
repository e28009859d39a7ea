//! The authenticators in their order: proxies, client certificate, bearer token, and nobody.

use super::jwt::Jwt;
use super::service_account::TokenAuthenticator;
use super::{
    Authenticator, BearerToken, BootstrapTokens, ClientCertificate, HeaderRequest, Peer, StaticTokens, UserInfo,
    WebhookTokens,
};
use crate::cluster::Cluster;
use crate::config::ServerConfig;
use crate::server::StartError;
use async_trait::async_trait;
use gantry_api::meta::status::ApiError;
use std::sync::Arc;

/// Asks authenticators in order. A request that shows no credentials at all is anonymous; what an anonymous user may do
/// is for the authorizers to say.
pub struct Union {
    members: Vec<Box<dyn Authenticator>>,
    anonymous: Jwt,
}

impl Union {
    /// Asks `members` in order; `anonymous` says which requests may come without credentials.
    #[must_use]
    pub fn new(members: Vec<Box<dyn Authenticator>>, anonymous: Jwt) -> Self {
        Self { members, anonymous }
    }
}

#[async_trait]
impl Authenticator for Union {
    async fn authenticate(&self, parts: &http::request::Parts, peer: &Peer) -> Result<Option<UserInfo>, ApiError> {
        let mut refused = None;
        for member in &self.members {
            match member.authenticate(parts, peer).await {
                Ok(Some(user)) => return Ok(Some(user)),
                Ok(None) => {}
                Err(e) => refused = Some(e),
            }
        }
        match refused {
            Some(e) => {
                tracing::debug!(path = parts.uri.path(), peer = ?peer.address, error = %e, "unable to authenticate the request");
                Err(ApiError::unauthorized())
            }
            None => Ok(self.anonymous.allows_anonymous(parts.uri.path()).then(UserInfo::anonymous)),
        }
    }

    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, ApiError> {
        for member in &self.members {
            if let Some(found) = member.authenticate_token(token, audiences).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// All authenticators that the configuration asks for, and the one among them whose configuration can be replaced.
///
/// # Errors
/// Where a key or certificate cannot be used.
pub fn default_authenticator(
    config: &ServerConfig,
    cluster: &Cluster,
) -> Result<(Arc<dyn Authenticator>, Jwt), StartError> {
    let access = &config.access;
    let failed = |message: String| StartError::Tls { what: "authentication", message };
    let audiences = || config.api_audiences.clone();
    let jwt = Jwt::new(
        &access.authentication,
        access.signing_algorithms.clone(),
        access.anonymous.clone(),
        &config.service_account_issuer,
        audiences(),
        cluster.clock,
    );
    let jwt = jwt.map_err(failed)?;
    let mut tokens: Vec<Box<dyn Authenticator>> =
        vec![Box::new(StaticTokens::new(config)), Box::new(TokenAuthenticator::new(config, cluster.clone())?)];
    if access.bootstrap_tokens {
        tokens.push(Box::new(BootstrapTokens::new(cluster.clone(), audiences())));
    }
    tokens.push(Box::new(jwt.clone()));
    if let Some(webhook) = &access.token_webhook {
        tokens.push(Box::new(WebhookTokens::new(webhook, audiences(), cluster.clock).map_err(failed)?));
    }
    let mut members: Vec<Box<dyn Authenticator>> = Vec::new();
    if let Some(proxies) = &access.request_header {
        members.push(Box::new(HeaderRequest::new(proxies.clone())));
    }
    members.push(Box::new(ClientCertificate::new(cluster.clock)));
    members.push(Box::new(BearerToken::new(tokens)));
    Ok((Arc::new(Union::new(members, jwt.clone())), jwt))
}
