//! A request after routing: what is addressed, who asks, and the parsed options.

use crate::authn::UserInfo;
use bytes::Bytes;
use gantry_api::kind::Resource;
use gantry_api::meta::status::ApiError;
use http_body_util::combinators::BoxBody;

/// Body of an answer; streams for watches and proxies.
pub type ResponseBody = BoxBody<Bytes, std::io::Error>;
/// An answer.
pub type Response = ::http::Response<ResponseBody>;

/// What the path addresses (`apiserver/pkg/endpoints/request.RequestInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path addresses a resource (as opposed to `/version`, `/healthz`, …).
    pub is_resource: bool,
    /// Kubernetes verb (`get`, `list`, `watch`, `create`, …) or lower-case method.
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; for a Namespace object itself its own name, as upstream.
    pub namespace: String,
    /// Plural resource.
    pub resource: String,
    /// Subresource, may be empty.
    pub subresource: String,
    /// Object name, may be empty.
    pub name: String,
    /// Path segments after the subresource (proxy paths).
    pub tail: Vec<String>,
    /// The whole path.
    pub path: String,
}

/// Extension of a watch by a component of this process: objects can be handed to it as they are.
#[derive(Clone, Copy, Debug)]
pub struct FromThisProcess;

/// A routed request.
pub struct RequestContext {
    /// What is addressed.
    pub info: RequestInfo,
    /// Who asks.
    pub user: UserInfo,
    /// Head of the HTTP request; extensions carry `hyper::upgrade::OnUpgrade` for connect subresources.
    pub parts: ::http::request::Parts,
    /// The resource, for resource requests.
    pub resource: Option<&'static dyn Resource>,
    /// Query parameters, decoded, in order.
    pub query: Vec<(String, String)>,
}

impl RequestContext {
    /// The first value of a query parameter.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

/// Result of handling a request.
pub type HandlerResult = Result<Response, ApiError>;
