//! Bootstrap tokens: `ID.SECRET`, kept in Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`, good for
//! machines that join (`plugin/pkg/auth/authenticator/token/bootstrap`).

use super::audience::good_for;
use super::{AUTHENTICATED, Authenticator, Peer, UserInfo};
use crate::cluster::Cluster;
use async_trait::async_trait;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use gantry_api::k8s_openapi::api::core::v1::Secret;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;

/// Type of the Secrets.
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Group of everybody who shows such a token.
const GROUP: &str = "system:bootstrappers";
const USER_PREFIX: &str = "system:bootstrap:";
/// Longest part of a further group after its prefix.
const GROUP_TAIL_MAX: usize = 256;

/// Knows machines that join by the Secrets with their tokens.
pub struct BootstrapTokens {
    cluster: Cluster,
    api_audiences: Vec<String>,
}

/// `(ID, SECRET)` of a token of this sort.
fn parse(token: &str) -> Option<(&str, &str)> {
    let is = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
    };
    token.split_once('.').filter(|(id, secret)| is(id, 6) && is(secret, 16))
}

/// Whether the name is one that a token may bring.
fn is_group(name: &str) -> bool {
    let Some(tail) = name.strip_prefix(GROUP).and_then(|t| t.strip_prefix(':')) else { return false };
    let letter = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let inner = |b: u8| letter(b) || matches!(b, b':' | b'-');
    tail.len() <= GROUP_TAIL_MAX && tail.bytes().all(inner) && tail.bytes().last().is_some_and(letter)
}

/// The user of a token whose Secret this is; `Err` says why it is none.
fn user_of(id: &str, secret: &str, object: &Secret, now: Timestamp) -> Result<UserInfo, &'static str> {
    let text = |key: &str| {
        let found = object.data.as_ref().and_then(|d| d.get(key));
        found.map_or(String::new(), |v| String::from_utf8_lossy(&v.0).into_owned())
    };
    if object.metadata.is_deleting() {
        return Err("the secret is being deleted");
    }
    if object.type_.as_deref() != Some(TYPE) || object.data.is_none() {
        return Err("the secret has an invalid type or no data");
    }
    if verify_slices_are_equal(text("token-secret").as_bytes(), secret.as_bytes()).is_err() {
        return Err("the secret has an invalid value for token-secret");
    }
    if text("token-id") != id {
        return Err("the secret has an invalid value for token-id");
    }
    let expiration = text("expiration");
    if !expiration.is_empty() {
        let until: Timestamp = expiration.parse().map_err(|_| "the secret has an unparseable expiration")?;
        if until < now {
            return Err("the token has expired");
        }
    }
    if text("usage-bootstrap-authentication") != "true" {
        return Err("the secret is not marked usage-bootstrap-authentication=true");
    }
    let further = text("auth-extra-groups");
    let mut groups = vec![GROUP.to_owned()];
    for group in further.split(',').filter(|_| !further.is_empty()) {
        if !is_group(group) {
            return Err("the secret has an invalid value for auth-extra-groups");
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    groups.push(AUTHENTICATED.into());
    Ok(UserInfo { username: format!("{USER_PREFIX}{id}"), groups, ..UserInfo::default() })
}

impl BootstrapTokens {
    /// Looks the tokens up in `cluster`.
    #[must_use]
    pub fn new(cluster: Cluster, api_audiences: Vec<String>) -> Self {
        Self { cluster, api_audiences }
    }
}

#[async_trait]
impl Authenticator for BootstrapTokens {
    async fn authenticate(&self, _: &http::request::Parts, _: &Peer) -> Result<Option<UserInfo>, ApiError> {
        // Tokens reach this authenticator through `BearerToken`.
        Ok(None)
    }

    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, ApiError> {
        let Some((id, secret)) = parse(token) else { return Ok(None) };
        let name = format!("bootstrap-token-{id}");
        let Some(object) = self.cluster.get::<Secret>("kube-system", &name).await? else { return Ok(None) };
        match user_of(id, secret, &object, self.cluster.clock.now()) {
            Ok(user) => Ok(good_for(&self.api_audiences, audiences).map(|good| (user, good))),
            Err(why) => {
                tracing::debug!(secret = name, why, "bootstrap token is not accepted");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn found(change: Value) -> Result<UserInfo, &'static str> {
        let encoded = |text: &str| {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.encode(text)
        };
        let mut data = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true"});
        for (key, value) in change.as_object().unwrap() {
            data[key] = value.clone();
        }
        let data: serde_json::Map<String, Value> =
            data.as_object().unwrap().iter().map(|(k, v)| (k.clone(), encoded(v.as_str().unwrap()).into())).collect();
        let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": TYPE, "data": data});
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        user_of("abcdef", "0123456789abcdef", &serde_json::from_value(secret).unwrap(), now)
    }

    #[test]
    fn tokens_are_as_good_as_their_secret_says() {
        assert_eq!(parse("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        assert_eq!((parse("abcdef.0123456789abcde"), parse("ABCDEF.0123456789abcdef"), parse("x")), (None, None, None));
        let user = found(json!({"auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"})).unwrap();
        assert_eq!(user.username, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"]
        );
        assert!(found(json!({"expiration": "2026-01-02T00:00:00Z"})).is_ok());
        for (key, value) in [
            ("expiration", "2025-12-31T00:00:00Z"),
            ("expiration", "soon"),
            ("token-secret", "0123456789abcdeX"),
            ("token-id", "abcdeg"),
            ("usage-bootstrap-authentication", "false"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:a,"),
        ] {
            assert!(found(json!({ (key): value })).is_err(), "{key}: {value}");
        }
    }
}
