//! OpenAPI v2 and v3, made by the schema crate from the list of served resources when first asked for.

use crate::http::negotiate::{clauses, not_acceptable};
use crate::http::respond;
use crate::request::{RequestContext, Response};
use crate::server::Server;
use arc_swap::ArcSwap;
use bytes::Bytes;
use gantry_api::kind::Resource;
use gantry_api::meta::status::ApiError;
use gantry_schema::openapi::{
    Document, Encoding, Foreign, OpenApi, ServedResource, ServedSubresource, V2_PROTOBUF, V3_PROTOBUF,
};
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, ETAG, IF_NONE_MATCH, LAST_MODIFIED, LOCATION, VARY};
use http::{HeaderMap, HeaderValue};
use std::sync::Arc;

/// A document addressed by its hash never changes.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, immutable");

/// The documents of the served resources.
pub struct Documents(ArcSwap<OpenApi>);

impl Documents {
    /// Documents of these resources; nothing is made yet.
    #[must_use]
    pub fn new(resources: &[&'static dyn Resource]) -> Self {
        Self(ArcSwap::from_pointee(OpenApi::new(served(resources), VERSION)))
    }

    /// From now on these resources are documented, and what other servers say of theirs. Documents that stay the same are
    /// kept.
    pub fn replace(&self, resources: &[&'static dyn Resource], foreign: Foreign) {
        self.0.store(Arc::new(self.0.load().with_resources(served(resources), foreign)));
    }
}

/// The server's version in the documents.
const VERSION: &str = "v1.37.0";

fn served(resources: &[&'static dyn Resource]) -> Vec<ServedResource> {
    let schema = |r: &&'static dyn Resource| crate::crd::custom(*r).map(|c| c.state().own.open_api.clone());
    let infos = resources.iter().map(|r| (r.info(), schema(r)));
    infos
        .chain(crate::metrics_api::RESOURCES.iter().map(|info| (info, None)))
        .map(|(info, schema)| {
            let listed = info.verbs.iter().any(|v| v.as_str() == "list");
            ServedResource {
                group: info.group.into(),
                version: info.version.into(),
                kind: info.kind.into(),
                list_kind: if listed { info.list_kind() } else { String::new() },
                plural: info.plural.into(),
                namespaced: info.namespaced,
                verbs: info.verbs.iter().map(|v| v.as_str().into()).collect(),
                subresources: info
                    .subresources
                    .iter()
                    .map(|s| {
                        let (group, version, kind) = s.gvk.unwrap_or((info.group, info.version, info.kind));
                        ServedSubresource {
                            name: s.name.into(),
                            group: group.into(),
                            version: version.into(),
                            kind: kind.into(),
                            verbs: s.verbs.iter().map(|v| v.as_str().into()).collect(),
                        }
                    })
                    .collect(),
                schema,
            }
        })
        .collect()
}

/// The encoding the client prefers.
fn encoding(headers: &HeaderMap, protobuf: [&str; 2]) -> Result<Encoding, ApiError> {
    let clauses = clauses(headers);
    if clauses.is_empty() {
        return Ok(Encoding::Json);
    }
    let known = clauses.iter().find_map(|c| match c.media.as_str() {
        "application/json" | "application/*" | "*/*" => Some(Encoding::Json),
        media if protobuf.iter().any(|p| p.eq_ignore_ascii_case(media)) => Some(Encoding::Protobuf),
        _ => None,
    });
    known.ok_or_else(not_acceptable)
}

/// Answers a path below `/openapi/`.
///
/// # Errors
/// 406 for encodings that are not served.
pub async fn answer(server: &Server, cx: RequestContext) -> Result<Response, ApiError> {
    let path = cx.info.path.trim_end_matches('/');
    // The document of a version that another server serves is there.
    if let Some(remote) = path.strip_prefix("/openapi/v3").and_then(|below| server.aggregator.route(below)) {
        return crate::aggregate::pass_on(server, &remote, cx, Bytes::new()).await;
    }
    let headers = &cx.parts.headers;
    let made = server.openapi.0.load_full();
    let below = path.strip_prefix("/openapi/").unwrap_or_default().to_owned();
    let encoding = encoding(headers, if below == "v2" { V2_PROTOBUF } else { V3_PROTOBUF })?;
    // Making a document takes a good part of a second once; that is no work for a task that others wait behind.
    let document = tokio::task::spawn_blocking(move || match below.as_str() {
        "v2" => Some(made.v2(encoding)),
        "v3" => Some(made.v3_index()),
        _ => made.v3(below.strip_prefix("v3/")?, encoding),
    })
    .await
    .map_err(ApiError::internal)?;
    let Some(document) = document else {
        // Upstream's two handlers differ: that of v3 answers for all below it, with nothing to read.
        return Ok(match path.starts_with("/openapi/v3/") {
            true => respond::with_type(404, "text/plain; charset=utf-8", ""),
            false => respond::page_not_found(),
        });
    };
    let hash = cx.param("hash").filter(|h| !h.is_empty());
    if hash.is_some_and(|h| h != document.hash) {
        // The client holds an old index: send it to the present document.
        let mut response = respond::with_type(301, "text/plain; charset=utf-8", "");
        let location = format!("{path}?hash={}", document.hash);
        response.headers_mut().insert(LOCATION, HeaderValue::from_str(&location).map_err(ApiError::internal)?);
        return Ok(response);
    }
    send(&document, headers, hash.is_some())
}

fn send(document: &Document, headers: &HeaderMap, immutable: bool) -> Result<Response, ApiError> {
    let etag = HeaderValue::from_str(&document.etag).map_err(ApiError::internal)?;
    let unchanged = headers.get(IF_NONE_MATCH).is_some_and(|v| *v == etag);
    let mut response = if unchanged {
        respond::with_type(304, document.content_type, "")
    } else if respond::accepts_gzip(headers) {
        let mut response = respond::with_type(200, document.content_type, Bytes::copy_from_slice(&document.gzip));
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        respond::with_type(200, document.content_type, document.bytes())
    };
    let out = response.headers_mut();
    out.insert(ETAG, etag);
    out.insert(VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    out.remove(LAST_MODIFIED);
    if immutable {
        out.insert(CACHE_CONTROL, IMMUTABLE);
    }
    Ok(response)
}
