//! Who may ask, as the server's command line says it: the sources of identities, the authorizers in their order, and how
//! the server proves itself to servers it passes requests on to.

pub use crate::authn::jwt::config::{
    Anonymous, AuthenticationConfiguration, ClaimMappings, ClaimValidationRule, Issuer, JwtAuthenticator,
    PrefixedClaim, check as check_authentication, parse as parse_authentication,
};
pub use crate::authn::jwt::{ALGORITHMS, Jwt};
pub use crate::authz::config::{
    AuthorizationConfiguration, AuthorizerConfiguration, TYPES as AUTHORIZERS, WebhookConfiguration,
    parse as parse_authorization, parse_duration,
};
pub use crate::authz::{Abac, WebhookAuthorizer};
pub use crate::review_hook::HookEndpoint;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The authenticating proxies that are believed (`--requestheader-*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Authorities of the proxies' client certificates, PEM.
    pub ca_pem: String,
    /// Common names of certificates that are believed; any where empty.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name; the first that is there counts.
    pub username_headers: Vec<String>,
    /// Headers with the user's UID.
    pub uid_headers: Vec<String>,
    /// Headers with the user's groups.
    pub group_headers: Vec<String>,
    /// Prefixes of headers with extra attributes.
    pub extra_header_prefixes: Vec<String>,
}

/// A webhook that knows whose a token is (`--authentication-token-webhook-*`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenWebhook {
    /// Where it is.
    pub endpoint: HookEndpoint,
    /// Version of the review it is sent: `v1` or `v1beta1`.
    pub version: String,
    /// How long its answers are remembered.
    pub remember_for: Duration,
}

type ReadEndpoint = dyn Fn(&str) -> Result<HookEndpoint, String> + Send + Sync;

/// Reads the kubeconfig at a path. The server itself reads no files.
#[derive(Clone)]
pub struct EndpointReader(pub Arc<ReadEndpoint>);

impl fmt::Debug for EndpointReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndpointReader")
    }
}

impl Default for EndpointReader {
    fn default() -> Self {
        Self(Arc::new(|path| Err(format!("{path}: no kubeconfig can be read"))))
    }
}

/// Who may ask.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// Client certificate (chain) and key that aggregated API servers are shown, PEM.
    pub proxy_client: Option<(String, String)>,
    /// The proxies that are believed.
    pub request_header: Option<RequestHeader>,
    /// Whether aggregated API servers are reached at their endpoints instead of at their Service's address.
    pub aggregator_routing: bool,
    /// Whether Secrets of type `bootstrap.kubernetes.io/token` are credentials.
    pub bootstrap_tokens: bool,
    /// Whether requests without credentials are let through, where `authentication` does not say.
    pub anonymous: Anonymous,
    /// Issuers whose tokens are accepted; checked.
    pub authentication: AuthenticationConfiguration,
    /// Algorithms these issuers may sign with.
    pub signing_algorithms: Vec<String>,
    /// A webhook that knows further tokens.
    pub token_webhook: Option<TokenWebhook>,
    /// The authorizers in their order; checked.
    pub authorization: AuthorizationConfiguration,
    /// The policies of the authorizer `ABAC`.
    pub abac: Abac,
    /// Reads the kubeconfigs that `authorization` names.
    pub endpoints: EndpointReader,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            proxy_client: None,
            request_header: None,
            aggregator_routing: false,
            bootstrap_tokens: true,
            anonymous: Anonymous::default(),
            authentication: AuthenticationConfiguration::default(),
            signing_algorithms: ALGORITHMS.map(str::to_owned).to_vec(),
            token_webhook: None,
            authorization: AuthorizationConfiguration::of_modes(&["Node", "RBAC"]),
            abac: Abac::default(),
            endpoints: EndpointReader::default(),
        }
    }
}
