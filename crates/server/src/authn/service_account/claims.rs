//! What a ServiceAccount token says.

use super::{EXTENDED_SECONDS, WARN_AFTER_SECONDS};
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::rbac::service_account_username;
use serde::{Deserialize, Serialize};

/// Name and UID of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedObject {
    /// Name.
    pub name: String,
    /// UID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateClaims {
    /// Namespace of the ServiceAccount.
    pub namespace: String,
    /// The node the token is bound to, or of the pod it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NamedObject>,
    /// The pod the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<NamedObject>,
    /// The secret the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<NamedObject>,
    /// The ServiceAccount.
    pub serviceaccount: NamedObject,
    /// Use after this moment (Unix seconds) is logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// `aud` may be one string or a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    Many(Vec<String>),
    One(String),
}

/// All claims of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    aud: Audience,
    /// End of validity, Unix seconds.
    pub exp: i64,
    /// When it was issued, Unix seconds.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Unique id.
    #[serde(default)]
    pub jti: String,
    /// Kubernetes' own claims.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: PrivateClaims,
    /// Start of validity, Unix seconds.
    pub nbf: i64,
    /// The user name.
    pub sub: String,
}

/// What a token is bound to besides its ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// A pod.
    pub pod: Option<NamedObject>,
    /// A node, or the pod's node.
    pub node: Option<NamedObject>,
    /// A secret.
    pub secret: Option<NamedObject>,
}

impl Claims {
    /// Claims of a new token. `extend` lengthens the life of a token of [`WARN_AFTER_SECONDS`].
    #[must_use]
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        issuer: &str,
        namespace: &str,
        account: NamedObject,
        bound: Bound,
        audiences: Vec<String>,
        seconds: i64,
        extend: bool,
        now: Timestamp,
        entropy: &Entropy,
    ) -> Self {
        let now = now.as_second();
        let extended = extend && seconds == WARN_AFTER_SECONDS;
        Self {
            aud: Audience::Many(audiences),
            exp: now + if extended { EXTENDED_SECONDS } else { seconds },
            iat: now,
            iss: issuer.to_owned(),
            jti: entropy.uuid(),
            sub: service_account_username(namespace, &account.name),
            kubernetes: PrivateClaims {
                namespace: namespace.to_owned(),
                node: bound.node,
                pod: bound.pod,
                secret: bound.secret,
                serviceaccount: account,
                warnafter: extended.then_some(now + seconds),
            },
            nbf: now,
        }
    }

    /// Who the token is meant for.
    #[must_use]
    pub fn audiences(&self) -> &[String] {
        match &self.aud {
            Audience::Many(list) => list,
            Audience::One(one) => std::slice::from_ref(one),
        }
    }
}
