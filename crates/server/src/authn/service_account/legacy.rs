//! Tokens kept in Secrets of type `kubernetes.io/service-account-token`: without end, good as long as the Secret holds them.

use super::UserInfo;
use super::groups;
use crate::authn::AUTHENTICATED;
use gantry_api::rbac::service_account_username;
use serde::{Deserialize, Serialize};

/// Issuer of such tokens.
pub const ISSUER: &str = "kubernetes/serviceaccount";
/// Type of a Secret that holds one.
pub const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
/// Annotation of the Secret: the ServiceAccount's name.
pub const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
/// Annotation of the Secret: the ServiceAccount's UID.
pub const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Label of the Secret: the day its token was last used.
pub const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Label of the Secret: since which day its token is refused.
pub const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// What such a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyClaims {
    /// Always [`ISSUER`].
    pub iss: String,
    /// Namespace of the ServiceAccount and the Secret.
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    /// The Secret.
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    /// The ServiceAccount's name.
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    /// The ServiceAccount's UID.
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub account_uid: String,
    /// The user name.
    pub sub: String,
}

impl LegacyClaims {
    /// Claims of the token in `secret`.
    #[must_use]
    pub fn new(namespace: &str, secret: &str, account: &str, account_uid: &str) -> Self {
        Self {
            iss: ISSUER.into(),
            namespace: namespace.into(),
            secret: secret.into(),
            account: account.into(),
            account_uid: account_uid.into(),
            sub: service_account_username(namespace, account),
        }
    }

    pub(super) fn user(&self) -> UserInfo {
        let mut groups = groups(&self.namespace);
        groups.push(AUTHENTICATED.into());
        UserInfo { username: self.sub.clone(), uid: self.account_uid.clone(), groups, ..UserInfo::default() }
    }
}
