//! Who asks: authenticators are tried in order; the first that recognises the request's credentials decides.

mod audience;
mod bearer;
mod bootstrap_token;
mod header_request;
pub mod impersonation;
pub mod issuer_discovery;
pub mod jwt;
pub mod service_account;
mod static_token;
mod token_webhook;
mod union;
mod x509;

pub use bearer::BearerToken;
pub use bootstrap_token::BootstrapTokens;
pub use header_request::HeaderRequest;
pub use static_token::StaticTokens;
pub use token_webhook::WebhookTokens;
pub use union::{Union, default_authenticator};
pub use x509::ClientCertificate;

use async_trait::async_trait;
use gantry_api::k8s_openapi::api::authentication::v1 as authentication;
use gantry_api::meta::status::ApiError;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Group of every user who showed credentials.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of every user who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Group whose members may do everything.
pub const MASTERS: &str = "system:masters";
/// Name of the user without credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// Extra attribute that identifies the credential used (`JTI=…`, `X509SHA256=…`).
pub const EXTRA_CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// Extra attribute: the pod a token is bound to.
pub const EXTRA_POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// Extra attribute: UID of the pod a token is bound to.
pub const EXTRA_POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Extra attribute: the node a token is bound to.
pub const EXTRA_NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Extra attribute: UID of the node a token is bound to.
pub const EXTRA_NODE_UID: &str = "authentication.kubernetes.io/node-uid";

/// An authenticated identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// User name, e.g. `system:serviceaccount:default:default`.
    pub username: String,
    /// Stable id, may be empty.
    pub uid: String,
    /// Groups, with `system:authenticated` or `system:unauthenticated` added.
    pub groups: Vec<String>,
    /// Extra attributes, e.g. `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user in `groups` plus `system:authenticated`.
    #[must_use]
    pub fn new(username: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push("system:authenticated".into());
        Self { username: username.into(), groups, ..Default::default() }
    }
    /// The identity of requests without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            username: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Default::default()
        }
    }
    /// The first value of an extra attribute.
    #[must_use]
    pub fn extra_value(&self, key: &str) -> Option<&str> {
        self.extra.get(key).and_then(|v| v.first()).map(String::as_str)
    }
    /// The name of the node whose identity this is (`system:node:NAME` in `system:nodes`).
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        if !self.in_group("system:nodes") {
            return None;
        }
        self.username.strip_prefix("system:node:").filter(|n| !n.is_empty())
    }
    /// The identity as reviews carry it.
    #[must_use]
    pub fn to_review(&self) -> authentication::UserInfo {
        authentication::UserInfo {
            username: Some(self.username.clone()),
            uid: (!self.uid.is_empty()).then(|| self.uid.clone()),
            groups: (!self.groups.is_empty()).then(|| self.groups.clone()),
            extra: (!self.extra.is_empty()).then(|| self.extra.clone()),
        }
    }
    /// Whether the user is in `group`.
    #[must_use]
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// The connection a request came over.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Remote address; None in process.
    pub address: Option<SocketAddr>,
    /// Client certificate chain (DER), leaf first.
    pub certificates: Vec<Vec<u8>>,
    /// Whether the chain leads to the client CA: the certificate speaks for its own subject.
    pub is_client: bool,
    /// Whether the chain leads to the CA of authenticating proxies: the certificate may speak for others.
    pub is_proxy: bool,
}

/// Recognises one sort of credentials.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// `Ok(None)`: not this authenticator's sort of credentials.
    ///
    /// # Errors
    /// Credentials of this sort that are not valid; the request is answered 401.
    async fn authenticate(&self, parts: &::http::request::Parts, peer: &Peer) -> Result<Option<UserInfo>, ApiError>;

    /// Recognises a bearer token meant for one of `audiences` (the API server's own where empty): the user and those of
    /// the audiences the token is good for.
    ///
    /// # Errors
    /// A token of this sort that is not valid; the message says why.
    async fn authenticate_token(
        &self,
        _token: &str,
        _audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, ApiError> {
        Ok(None)
    }
}

/// Credentials that were shown and are not valid: 401 to the client, with the reason for the log and for token reviews.
fn invalid_credentials(why: impl std::fmt::Display) -> ApiError {
    ApiError::new(401, "Unauthorized", why.to_string())
}
