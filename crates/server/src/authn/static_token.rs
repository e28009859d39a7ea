//! Static bearer tokens from the configuration.

use super::audience::good_for;
use super::{AUTHENTICATED, Authenticator, Peer, UserInfo};
use crate::config::ServerConfig;
use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use gantry_api::meta::status::ApiError;
use std::collections::HashMap;

/// Knows users by a fixed token. Tokens are compared by their digests, so that timing tells nothing of them.
pub struct StaticTokens {
    users: HashMap<Vec<u8>, UserInfo>,
    api_audiences: Vec<String>,
}

impl StaticTokens {
    /// The tokens of the configuration.
    #[must_use]
    pub fn new(config: &ServerConfig) -> Self {
        let users = config.static_tokens.iter().map(|(token, name, uid, groups)| {
            let mut groups = groups.clone();
            groups.push(AUTHENTICATED.into());
            let user = UserInfo { username: name.clone(), uid: uid.clone(), groups, ..Default::default() };
            (digest(&SHA256, token.as_bytes()).as_ref().to_vec(), user)
        });
        Self { users: users.collect(), api_audiences: config.api_audiences.clone() }
    }
}

#[async_trait]
impl Authenticator for StaticTokens {
    async fn authenticate(&self, _parts: &http::request::Parts, _peer: &Peer) -> Result<Option<UserInfo>, ApiError> {
        // Tokens reach this authenticator through `BearerToken`.
        Ok(None)
    }

    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, ApiError> {
        let Some(user) = self.users.get(digest(&SHA256, token.as_bytes()).as_ref()) else {
            return Ok(None);
        };
        Ok(good_for(&self.api_audiences, audiences).map(|good| (user.clone(), good)))
    }
}
