//! Who may ask, as the server's command line says it: the sources of identities, the authorizers in their order, and how
//! the server proves itself to servers it passes requests on to.

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

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub struct AccessConfig {
    /// Client certificate (chain) and key that aggregated API servers are shown, PEM.
    pub proxy_client: Option<(String, String)>,
    /// The proxies that are believed.
    pub request_header: Option<RequestHeader>,
    /// Whether aggregated API servers are reached at their endpoints instead of at their Service's address.
    pub aggregator_routing: bool,
}
