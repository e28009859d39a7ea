//! A Kubernetes API client: [`Client`] over a [`Transport`] (HTTPS, or in-process into the server's own pipeline) and the
//! typed [`Api<K>`]. Components use nothing else to reach the API.

pub mod api;
pub mod connection;
mod frames;
pub mod https;
pub mod kubeconfig;
pub mod metadata;
mod path;
mod query;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;

pub use api::{
    Api, DeleteParams, Deleted, IfFits, ListParams, ObjectList, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams, WatchStream,
};
pub use frames::Item;
pub use gantry_api::meta::status::ApiError;
pub use https::{Credentials, Https, HttpsConfig, TokenSource};
pub use kubeconfig::Kubeconfig;
pub use metadata::{MetadataApi, PartialObject, ResourceRef};
pub use path::of as resource_path;
pub use query::Query;
pub use transport::{Body, Transport, TransportError};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt;
use std::sync::Arc;

/// What a call can fail with.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The server answered with a failure `Status`. Retryable or not by its reason.
    #[error("{0}")]
    Api(#[from] ApiError),
    /// The server could not be reached or the connection broke. Retryable.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The server's answer could not be read; names the object.
    #[error("cannot decode {what}: {message}")]
    Decode {
        /// What was being decoded.
        what: String,
        /// The decoder's message.
        message: String,
    },
}

impl Error {
    /// Whether the server's reason is `reason` (`NotFound`, `Conflict`, `AlreadyExists`, …).
    #[must_use]
    pub fn is(&self, reason: &str) -> bool {
        matches!(self, Error::Api(e) if e.is(reason))
    }

    /// Whether the version a watch or list asked for is no longer held, so that one must list anew.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        matches!(self, Error::Api(e) if e.code == 410 || e.is("Expired") || e.is("Gone"))
    }

    /// Whether trying again later may help: no connection, overload, a server fault or a conflict of timing.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Transport(_) => true,
            Error::Api(e) => e.code >= 500 || e.code == 429 || e.code == 409,
            Error::Decode { .. } => false,
        }
    }
}

/// A handle to one API server under one identity. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    user_agent: Arc<str>,
}

impl Client {
    /// A client over `transport`. `user_agent` names the component (`kube-scheduler`, `deployment-controller`); its part
    /// before the first `/` becomes the field manager of writes.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, user_agent: &str) -> Self {
        Self { transport, user_agent: user_agent.into() }
    }

    /// The same connection under another component name.
    #[must_use]
    pub fn named(&self, user_agent: &str) -> Self {
        Self { transport: self.transport.clone(), user_agent: user_agent.into() }
    }

    /// The component name sent as `User-Agent`.
    #[must_use]
    pub fn user_agent(&self) -> &str {
        &self.user_agent
    }

    /// The transport, for raw requests.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// The component name: the user agent before the first `/`.
    #[must_use]
    pub fn component(&self) -> &str {
        self.user_agent.split('/').next().unwrap_or_default()
    }

    /// Sends any request; the answer may be a failure, and its body is still streaming. `content_type` is None where
    /// there is no body; `accept` is JSON unless told otherwise.
    ///
    /// # Errors
    /// Where no answer came, or the path is no URI.
    pub async fn send(
        &self,
        method: Method,
        path_and_query: &str,
        content_type: Option<&str>,
        accept: Option<&str>,
        body: Bytes,
    ) -> Result<Response<Body>, Error> {
        let mut request = Request::new(body);
        let bad = |message: String| {
            Error::Transport(TransportError { context: format!("{method} {path_and_query}"), message })
        };
        *request.uri_mut() = path_and_query.parse().map_err(|e: http::uri::InvalidUri| bad(e.to_string()))?;
        let headers = request.headers_mut();
        let value = |s: &str| HeaderValue::from_str(s).map_err(|e| bad(e.to_string()));
        headers.insert(header::USER_AGENT, value(&self.user_agent)?);
        headers.insert(header::ACCEPT, value(accept.unwrap_or("application/json"))?);
        if let Some(c) = content_type {
            headers.insert(header::CONTENT_TYPE, value(c)?);
        }
        *request.method_mut() = method.clone();
        Ok(self.transport.send(request).await?)
    }

    /// Sends a request and reads the whole answer; a failure `Status` is an error.
    ///
    /// # Errors
    /// See [`Error`].
    // Boxed, as is `open`: every typed call goes through here, and each would carry a copy of the whole.
    pub fn call<'a>(
        &'a self,
        method: Method,
        path_and_query: &'a str,
        content_type: Option<&'a str>,
        body: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let response = self.send(method, path_and_query, content_type, None, body).await?;
            read(response).await
        })
    }

    /// Sends a request and hands out the answer's body as it streams; a failure `Status` is an error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stream(
        &self,
        method: Method,
        path_and_query: &str,
        accept: Option<&str>,
        body: Bytes,
    ) -> Result<Body, Error> {
        Ok(self.open(method, path_and_query, accept, body).await?.into_body())
    }

    /// [`Client::stream`] with the head of the answer.
    pub(crate) fn open<'a>(
        &'a self,
        method: Method,
        path_and_query: &'a str,
        accept: Option<&'a str>,
        body: Bytes,
    ) -> BoxFuture<'a, Result<Response<Body>, Error>> {
        Box::pin(async move {
            let response = self.send(method, path_and_query, None, accept, body).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            match read(response).await {
                Err(e) => Err(e),
                Ok(_) => {
                    Err(Error::Decode { what: path_and_query.to_owned(), message: "an answer without a body".into() })
                }
            }
        })
    }
}

/// The whole body of an answer, or the failure it tells of.
///
/// # Errors
/// See [`Error`].
pub async fn read(response: Response<Body>) -> Result<Bytes, Error> {
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    if status.is_success() { Ok(bytes) } else { Err(ApiError::from_response(status.as_u16(), &bytes).into()) }
}
