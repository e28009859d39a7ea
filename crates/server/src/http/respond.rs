//! Answers: statuses, objects, streamed lists and watches, compression.

use super::negotiate::{Accepted, Form, Media};
use crate::audit;
use crate::flow::Refused;
use crate::registry::read::ListStream;
use crate::request::{Response, ResponseBody};
use crate::table;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Resource;
use gantry_api::meta::status::ApiError;
use gantry_schema::protobuf::{self, ProtobufError};
use http::header::X_CONTENT_TYPE_OPTIONS;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, VARY, WARNING};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Answers beyond this are compressed where the client accepts it, as upstream.
const COMPRESS_BEYOND: usize = 128 * 1024;
/// Upstream's level: most of the gain at a fraction of the time.
const COMPRESSION: Compression = Compression::new(1);
/// Bytes of a list in protobuf that are kept while its length is found out.
const COUNTED_MAX: usize = 4 << 20;

/// A body that is complete.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into()).map_err(|e| match e {}).boxed()
}

/// A complete answer.
#[must_use]
pub fn with_type(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let bytes = bytes.into();
    let mut response = Response::new(full(bytes.clone()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    response
}

/// A failure as the client reads it.
#[must_use]
pub fn error(e: &ApiError, accepted: &Accepted) -> Response {
    let json = Bytes::from(e.to_json());
    audit::answered(&json);
    let mut response = match encode(json.clone(), accepted) {
        Ok(bytes) => with_type(e.code, accepted.content_type(), bytes),
        Err(_) => with_type(e.code, "application/json", json),
    };
    if let Some(seconds) = e.details.as_ref().and_then(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    add_warnings(&mut response, &e.warnings);
    response
}

/// The answer where nothing is served: plain text, as upstream's last handler gives it. Paths below what upstream registers
/// as a whole (`/api`, the built-in groups) are answered with a `Status` instead.
#[must_use]
pub fn page_not_found() -> Response {
    let mut response = with_type(404, "text/plain; charset=utf-8", "404 page not found\n");
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer where the way to an answer is broken: plain text, as upstream's.
#[must_use]
pub fn server_error(uri: &Uri, why: &str) -> Response {
    let uri = uri.path_and_query().map_or("/", |p| p.as_str());
    let text = format!("Internal Server Error: {uri:?}: {why}\n");
    let mut response = with_type(500, "text/plain; charset=utf-8", text);
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer to a request that found no place: plain text, as upstream's.
#[must_use]
pub fn too_many_requests(refused: &Refused) -> Response {
    let text = "Too many requests, please try again later.\n";
    let mut response = with_type(429, "text/plain; charset=utf-8", text);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(refused.retry_after));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    refused.class.mark(response.headers_mut());
    response
}

/// A body that keeps something until it is written or given up.
#[must_use]
pub fn holding<T: Send + Sync + 'static>(body: ResponseBody, kept: T) -> ResponseBody {
    body.map_frame(move |frame| {
        let _ = &kept;
        frame
    })
    .boxed()
}

/// The head of an answer alone. What is asked with HEAD says how long the body would be, and HTTP/2 breaks off where
/// one comes along.
#[must_use]
pub fn without_body(mut response: Response) -> Response {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    response.map(|_| full(Bytes::new()))
}

/// Adds `Warning: 299 - "text"` headers.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    let mut seen: Vec<&String> = Vec::new();
    for text in warnings {
        if seen.contains(&text) {
            continue;
        }
        seen.push(text);
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// Adds such a header before those that are there.
pub fn lead_with_warning(response: &mut Response, warning: String) {
    let others: Vec<HeaderValue> = response.headers().get_all(WARNING).iter().cloned().collect();
    response.headers_mut().remove(WARNING);
    add_warnings(response, &[warning]);
    for other in others {
        response.headers_mut().append(WARNING, other);
    }
}

/// JSON in the encoding the client accepts.
///
/// # Errors
/// Where the JSON cannot be re-encoded.
pub fn encode(json: Bytes, accepted: &Accepted) -> Result<Bytes, ApiError> {
    match accepted.media {
        Media::Protobuf => Ok(protobuf::encode(&json).map_err(not_marshalable)?.into()),
        Media::Yaml => {
            let value: Value = serde_json::from_slice(&json).map_err(ApiError::internal)?;
            Ok(serde_saphyr::to_string(&value).map_err(ApiError::internal)?.into())
        }
        Media::Json if accepted.pretty => {
            let value: Value = serde_json::from_slice(&json).map_err(ApiError::internal)?;
            let mut text = serde_json::to_vec_pretty(&value).map_err(ApiError::internal)?;
            text.push(b'\n');
            Ok(text.into())
        }
        Media::Json => Ok(json),
    }
}

/// What the client is told where an answer cannot be had in protobuf.
#[must_use]
pub fn not_marshalable(e: ProtobufError) -> ApiError {
    match e {
        ProtobufError::NotMarshalable(_) => ApiError::new(406, "NotAcceptable", e.to_string()),
        e => ApiError::internal(e),
    }
}

/// Any JSON document as an answer.
///
/// # Errors
/// Where it cannot be encoded.
pub fn document(code: u16, json: Bytes, accepted: &Accepted, headers: &HeaderMap) -> Result<Response, ApiError> {
    audit::answered(&json);
    let bytes = encode(json, accepted)?;
    let size = bytes.len();
    Ok(compressed(with_type(code, accepted.content_type(), bytes), size, headers, accepted))
}

fn compressed(response: Response, size: usize, headers: &HeaderMap, accepted: &Accepted) -> Response {
    if size <= COMPRESS_BEYOND || !accepts_gzip(headers) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let stream = ListBody { ready: VecDeque::new(), source: Source::Body(body), gzip: Some(encoder()), ended: false };
    let mut response = Response::from_parts(parts, stream.boxed());
    response.headers_mut().remove(CONTENT_LENGTH);
    mark_compressed(&mut response);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(accepted.content_type()));
    response
}

fn mark_compressed(response: &mut Response) {
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
}

fn encoder() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), COMPRESSION)
}

/// An object in the shape and encoding the client accepts.
///
/// # Errors
/// Where it cannot be encoded.
pub fn object(
    code: u16,
    json: Bytes,
    resource: &dyn Resource,
    resource_version: &str,
    accepted: &Accepted,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Response, ApiError> {
    let shaped = table::shaped(resource, &json, resource_version, accepted.form, now)?;
    document(code, shaped.map_or(json, Bytes::from), accepted, headers)
}

/// Whether the client takes gzip.
#[must_use]
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|e| {
        let mut parts = e.split(';').map(str::trim);
        matches!(parts.next(), Some("gzip" | "*")) && parts.all(|p| p != "q=0")
    })
}

/// A list: whole where small, streamed where large.
///
/// # Errors
/// Where an object cannot be shown.
pub fn list(mut items: ListStream, accepted: &Accepted, headers: &HeaderMap) -> Result<Response, ApiError> {
    let recorded = audit::wants_answer();
    if accepted.media == Media::Protobuf {
        if recorded {
            audit::answered(&whole_json(items.clone())?);
        }
        return protobuf_list(items, accepted, headers);
    }
    let mut ready = VecDeque::new();
    let mut size = 0;
    // YAML, pretty printing and the audit log need the whole.
    let whole = accepted.media == Media::Yaml || accepted.pretty || recorded;
    while whole || size <= COMPRESS_BEYOND {
        let Some(chunk) = items.next_chunk()? else {
            let json = join(ready, size);
            return document(200, json, &Accepted { form: Form::Object, ..*accepted }, headers);
        };
        size += chunk.len();
        ready.push_back(chunk);
    }
    streamed(items, ready, accepted, accepts_gzip(headers))
}

fn whole_json(mut items: ListStream) -> Result<Bytes, ApiError> {
    let (mut chunks, mut size) = (VecDeque::new(), 0);
    while let Some(chunk) = items.next_chunk()? {
        size += chunk.len();
        chunks.push_back(chunk);
    }
    Ok(join(chunks, size))
}

/// The envelope says how long the list is, so it is counted before the first byte goes out. What fits into
/// [`COUNTED_MAX`] is kept meanwhile; the items behind that are written twice, so that no list is held whole.
fn protobuf_list(items: ListStream, accepted: &Accepted, headers: &HeaderMap) -> Result<Response, ApiError> {
    let mut items = items.into_protobuf()?;
    let (mut ready, mut size) = (VecDeque::new(), 0);
    while size <= COUNTED_MAX {
        let Some(chunk) = items.next_chunk()? else { break };
        size += chunk.len();
        ready.push_back(chunk);
    }
    let mut ahead = items.clone();
    let mut length = size;
    while let Some(chunk) = ahead.next_chunk()? {
        length += chunk.len();
    }
    let (api_version, kind) = items.list_type();
    // The end of the envelope is part of the stream.
    ready.push_front(protobuf::envelope(&api_version, &kind, length - protobuf::ENVELOPE_END.len()).into());
    streamed(items, ready, accepted, length > COMPRESS_BEYOND && accepts_gzip(headers))
}

fn streamed(
    items: ListStream,
    ready: VecDeque<Bytes>,
    accepted: &Accepted,
    compressed: bool,
) -> Result<Response, ApiError> {
    let gzip = compressed.then(encoder);
    let mut body = ListBody { ready: VecDeque::new(), source: Source::Items(Box::new(items)), gzip, ended: false };
    for chunk in ready {
        body.push(&chunk).map_err(ApiError::internal)?;
    }
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(accepted.content_type()));
    if compressed {
        mark_compressed(&mut response);
    }
    Ok(response)
}

fn join(chunks: VecDeque<Bytes>, size: usize) -> Bytes {
    if chunks.len() == 1 {
        return chunks.into_iter().next().unwrap_or_default();
    }
    let mut out = Vec::with_capacity(size);
    for chunk in chunks {
        out.extend_from_slice(&chunk);
    }
    out.into()
}

enum Source {
    Items(Box<ListStream>),
    Body(ResponseBody),
}

struct ListBody {
    ready: VecDeque<Bytes>,
    source: Source,
    gzip: Option<GzEncoder<Vec<u8>>>,
    ended: bool,
}

impl ListBody {
    fn push(&mut self, chunk: &Bytes) -> std::io::Result<()> {
        match &mut self.gzip {
            None => self.ready.push_back(chunk.clone()),
            Some(gzip) => {
                gzip.write_all(chunk)?;
                let out = std::mem::take(gzip.get_mut());
                if !out.is_empty() {
                    self.ready.push_back(out.into());
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> std::io::Result<()> {
        self.ended = true;
        if let Some(gzip) = self.gzip.take() {
            let out = gzip.finish()?;
            if !out.is_empty() {
                self.ready.push_back(out.into());
            }
        }
        Ok(())
    }
}

impl Body for ListBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let next = match &mut this.source {
                Source::Items(items) => items.next_chunk().map_err(|e| std::io::Error::other(e.message)),
                Source::Body(body) => match Pin::new(body).poll_frame(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => Ok(None),
                    Poll::Ready(Some(frame)) => frame.map(|f| Some(f.into_data().unwrap_or_default())),
                },
            };
            let done = match next {
                Ok(Some(chunk)) => this.push(&chunk),
                Ok(None) => this.finish(),
                // The head is out already: breaking the connection is the only way to say that the list is not whole.
                Err(e) => Err(e),
            };
            if let Err(e) = done {
                this.ended = true;
                tracing::error!(error = %e, "list broken off");
                return Poll::Ready(Some(Err(e)));
            }
        }
    }
}
