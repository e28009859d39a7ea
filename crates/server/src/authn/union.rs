//! The authenticators in their order: proxies, client certificate, bearer token, and nobody.

use super::service_account::{KeyError, TokenAuthenticator};
use super::{Authenticator, BearerToken, ClientCertificate, HeaderRequest, Peer, StaticTokens, UserInfo};
use crate::cluster::Cluster;
use crate::config::ServerConfig;
use async_trait::async_trait;
use gantry_api::meta::status::ApiError;
use std::sync::Arc;

/// Asks authenticators in order. A request that shows no credentials at all is anonymous; what an anonymous user may do
/// is for the authorizers to say.
pub struct Union {
    members: Vec<Box<dyn Authenticator>>,
}

impl Union {
    /// Asks `members` in order.
    #[must_use]
    pub fn new(members: Vec<Box<dyn Authenticator>>) -> Self {
        Self { members }
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
            None => Ok(Some(UserInfo::anonymous())),
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

/// All authenticators that the configuration asks for.
///
/// # Errors
/// Where the ServiceAccount key cannot be read.
pub fn default_authenticator(config: &ServerConfig, cluster: &Cluster) -> Result<Arc<dyn Authenticator>, KeyError> {
    let tokens: Vec<Box<dyn Authenticator>> =
        vec![Box::new(StaticTokens::new(config)), Box::new(TokenAuthenticator::new(config, cluster.clone())?)];
    let mut members: Vec<Box<dyn Authenticator>> = Vec::new();
    if let Some(proxies) = &config.access.request_header {
        members.push(Box::new(HeaderRequest::new(proxies.clone())));
    }
    members.push(Box::new(ClientCertificate::new(cluster.clock)));
    members.push(Box::new(BearerToken::new(tokens)));
    Ok(Arc::new(Union::new(members)))
}
