//! Bearer tokens: where a request carries one, and the authenticator that asks the token authenticators about it.

use super::{Authenticator, Peer, UserInfo, invalid_credentials};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gantry_api::meta::status::ApiError;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::request::Parts;

/// Browsers cannot set `Authorization` on a WebSocket; they send the token as this sub-protocol instead.
const WEBSOCKET_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Authenticates the request's bearer token with the first of several token authenticators that knows it.
pub struct BearerToken {
    sources: Vec<Box<dyn Authenticator>>,
}

impl BearerToken {
    /// Asks `sources` in order.
    #[must_use]
    pub fn new(sources: Vec<Box<dyn Authenticator>>) -> Self {
        Self { sources }
    }
}

/// The token in the `Authorization` header or, for a WebSocket, in the sub-protocols.
fn token_of(parts: &Parts) -> Option<String> {
    if let Some(header) = parts.headers.get(AUTHORIZATION).and_then(|h| h.to_str().ok()) {
        let (scheme, token) = header.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    let offered = parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|h| h.to_str().ok());
    let encoded = offered.flat_map(|h| h.split(',')).find_map(|p| p.trim().strip_prefix(WEBSOCKET_PREFIX))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok().filter(|t| !t.is_empty())
}

#[async_trait]
impl Authenticator for BearerToken {
    async fn authenticate(&self, parts: &Parts, _peer: &Peer) -> Result<Option<UserInfo>, ApiError> {
        let Some(token) = token_of(parts) else {
            return Ok(None);
        };
        match self.authenticate_token(&token, &[]).await? {
            Some((user, _)) => Ok(Some(user)),
            None => Err(invalid_credentials("invalid bearer token")),
        }
    }

    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, ApiError> {
        let mut refused = Vec::new();
        for source in &self.sources {
            match source.authenticate_token(token, audiences).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                // One that knows the token's sort but not the token does not keep the others from knowing it.
                Err(e) => refused.push(e),
            }
        }
        match refused.len() {
            0 => Ok(None),
            1 => Err(refused.remove(0)),
            _ => {
                let all: Vec<String> = refused.into_iter().map(|e| e.message).collect();
                Err(invalid_credentials(format!("[{}]", all.join(", "))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_in_both_places() {
        let cases = [
            ("authorization", "Bearer abc", Some("abc")),
            ("authorization", "bearer  abc ", Some("abc")),
            ("authorization", "Basic abc", None),
            ("authorization", "Bearer", None),
            ("sec-websocket-protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj", Some("abc")),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.***", None),
        ];
        for (name, value, want) in cases {
            let (parts, ()) = http::Request::builder().header(name, value).body(()).unwrap().into_parts();
            assert_eq!(token_of(&parts).as_deref(), want, "{name}: {value}");
        }
    }
}
