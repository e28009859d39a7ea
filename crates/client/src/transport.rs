//! How requests reach an API server.

use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::kind::Object;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use std::sync::Arc;

/// A streamed answer body.
pub type Body = BoxBody<Bytes, TransportError>;

/// Finds the object that a frame tells of, where the sender has it decoded.
pub type Decoded = Arc<dyn Fn(&[u8]) -> Option<Arc<dyn Object>> + Send + Sync>;

/// Extension of an answer whose body hands out memory that the sender keeps anyway, one watch event per frame: whoever
/// keeps an event may keep the frame instead of a copy.
#[derive(Clone)]
pub struct SharedMemory {
    /// Asked for the frame that came last, gives its object as reading it would; managed fields may be missing. Where there
    /// is one, the frame may tell of the whole object though only its metadata was asked for.
    pub decoded: Decoded,
}

/// The connection failed or broke; always retryable.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{context}: {message}")]
pub struct TransportError {
    /// What was being done, with the address.
    pub context: String,
    /// Why it failed.
    pub message: String,
}

/// Sends one request and returns its answer with the body still streaming. The request's URI is path and query only;
/// the transport adds scheme, authority and credentials.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends `request`.
    ///
    /// # Errors
    /// Where no answer was received. An answer with a failure code is `Ok` here.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError>;
}
