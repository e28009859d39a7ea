//! Paths that address no resource: discovery, OpenAPI, version, health, metrics, token issuer documents.

use super::negotiate::{Accepted, Media, accept, clauses};
use super::{dispatch::is_built_in, respond};
use crate::authn::issuer_discovery;
use crate::debug::{self, zpages};
use crate::discovery::Answer;
use crate::exposition;
use crate::request::{RequestContext, Response};
use crate::server::Server;
use gantry_api::meta::status::ApiError;
use gantry_schema::protobuf;
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderValue, Method, StatusCode};
use serde_json::json;
use std::borrow::Cow;

/// What is no API object is indented JSON, whatever the client accepts.
const PLAIN: Accepted = Accepted { pretty: true, ..Accepted::JSON };

/// What `/` lists besides discovery.
const PATHS: &[&str] = &[
    "/flagz",
    "/healthz",
    "/livez",
    "/metrics",
    "/metrics/slis",
    "/openapi/v2",
    "/openapi/v3",
    "/readyz",
    "/statusz",
    "/version",
];

/// Answers a non-resource request.
///
/// # Errors
/// 404 for paths nothing serves below what upstream registers as a whole, 405 for writes to documents.
pub async fn answer(server: &Server, cx: RequestContext, body: &[u8]) -> Result<Response, ApiError> {
    let reads = matches!(cx.parts.method, Method::GET | Method::HEAD);
    if cx.info.path.starts_with("/openapi/") {
        return if reads { crate::openapi::answer(server, cx).await } else { Err(ApiError::method_not_allowed()) };
    }
    let path = cx.info.path.trim_end_matches('/');
    if let Some(response) = measurements(server, &cx, path).await? {
        return Ok(response);
    }
    if let Some(process) = server.debugging.get()
        && let Some(response) = debug::answer(process.as_ref(), &cx, body).await
    {
        return Ok(response);
    }
    match document(server, &cx, path)? {
        // What upstream's router of resources answers has a route for GET alone; the index is not of it.
        Some(response) if reads && (path.is_empty() || cx.parts.method == Method::GET) => Ok(response),
        Some(_) => Err(ApiError::method_not_allowed()),
        None if is_registered(path) => Err(ApiError::no_such_path()),
        None => Ok(respond::page_not_found()),
    }
}

/// Whether what is not found at a path is told by a `Status`: the core group as a whole, the built-in groups, the version.
fn is_registered(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    match parts.next() {
        Some("api" | "version") => true,
        Some("apis") => parts.next().is_some_and(is_built_in),
        _ => false,
    }
}

/// How the server does; upstream answers whatever the method is.
async fn measurements(server: &Server, cx: &RequestContext, path: &str) -> Result<Option<Response>, ApiError> {
    let plain = |text: String| respond::with_type(200, "text/plain; charset=utf-8", text);
    Ok(match path {
        "/metrics" => Some(respond::with_type(
            200,
            exposition::CONTENT_TYPE,
            server.metrics.render(
                &server.registry,
                &server.flow,
                &server.services.admission,
                server.config.audit.as_deref(),
            ),
        )),
        "/metrics/slis" => Some(respond::with_type(200, exposition::CONTENT_TYPE, server.metrics.render_indicators())),
        "/statusz" => {
            let now = server.registry.clock.now();
            Some(zpages::statusz(cx, server.started, now, &listed(server))?)
        }
        "/flagz" => match server.flags.get() {
            Some(flags) => Some(zpages::flagz(cx, flags)?),
            None => None,
        },
        "/healthz" | "/livez" | "/readyz" => Some(health(server, path, cx).await?),
        _ if path.starts_with("/debug/api_priority_and_fairness/") => {
            let name = path.rsplit('/').next().unwrap_or_default();
            let details = cx.param("includeRequestDetails").is_some_and(|v| !v.is_empty());
            server.flow.dump(name, details).map(plain)
        }
        _ => {
            let check = ["/livez/", "/readyz/", "/healthz/"].iter().find_map(|p| path.strip_prefix(p));
            let Some(check) = check else { return Ok(None) };
            let found = checks(server, path).await.into_iter().find(|(name, _)| *name == check);
            found.map(|(_, outcome)| match outcome {
                Ok(()) => plain("ok".into()),
                Err(e) => respond::with_type(500, "text/plain; charset=utf-8", format!("internal server error: {e}")),
            })
        }
    })
}

/// All that is listed at `/`.
fn listed(server: &Server) -> Vec<String> {
    let mut paths = server.discovery.load().paths();
    paths.extend(PATHS.iter().map(|p| (*p).to_owned()));
    paths.sort();
    paths
}

fn document(server: &Server, cx: &RequestContext, path: &str) -> Result<Option<Response>, ApiError> {
    let headers = &cx.parts.headers;
    match path {
        "" => respond::document(200, json!({ "paths": listed(server) }).to_string().into(), &PLAIN, headers).map(Some),
        "/version" => respond::document(200, version().to_string().into(), &PLAIN, headers).map(Some),
        issuer_discovery::CONFIGURATION_PATH => {
            Ok(Some(respond::with_type(200, "application/json", server.issuer.configuration.clone())))
        }
        issuer_discovery::KEYS_PATH => {
            Ok(Some(respond::with_type(200, issuer_discovery::KEYS_MEDIA_TYPE, server.issuer.keys.clone())))
        }
        _ => discovery(server, cx, path),
    }
}

fn discovery(server: &Server, cx: &RequestContext, path: &str) -> Result<Option<Response>, ApiError> {
    let headers = &cx.parts.headers;
    let aggregated = clauses(headers).into_iter().find_map(|c| {
        let wants = c.param("as") == Some("APIGroupDiscoveryList") && c.param("g") == Some("apidiscovery.k8s.io");
        // v2beta1 is no more since 1.35.
        let wants = wants && c.param("v") == Some("v2");
        let media = match c.media.as_str() {
            "application/json" => Media::Json,
            protobuf::MEDIA_TYPE => Media::Protobuf,
            _ => return None,
        };
        wants.then_some(media)
    });
    let Some(answer) = server.discovery.load().answer(path, aggregated.is_some()) else { return Ok(None) };
    match answer {
        Answer::Plain(json) => respond::document(200, json, &accept(headers, &cx.query, false)?, headers).map(Some),
        Answer::Aggregated { json, etag, content_type } => {
            let media = aggregated.unwrap_or(Media::Json);
            let etag_value = HeaderValue::from_str(&etag).map_err(ApiError::internal)?;
            let same = headers.get(IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
            let mut response = if same {
                let mut r = respond::with_type(304, "application/json", "");
                *r.status_mut() = StatusCode::NOT_MODIFIED;
                r
            } else {
                respond::document(200, json, &Accepted { media, ..Accepted::JSON }, headers)?
            };
            let content_type = match media {
                Media::Protobuf => content_type.replace("application/json", protobuf::MEDIA_TYPE),
                _ => content_type.to_owned(),
            };
            let content_type = HeaderValue::from_str(&content_type).map_err(ApiError::internal)?;
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            response.headers_mut().insert(ETAG, etag_value);
            response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
            Ok(Some(response))
        }
    }
}

fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "37", "emulationMajor": "1", "emulationMinor": "37",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
        "gitVersion": "v1.37.0+gantry", "gitCommit": env!("CARGO_PKG_VERSION"), "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
    })
}

/// Endpoints of health checks.
const HEALTH: [&str; 3] = ["healthz", "livez", "readyz"];

type Check = (Cow<'static, str>, Result<(), String>);

async fn checks(server: &Server, path: &str) -> Vec<Check> {
    let store = match server.registry.is_following() {
        true => Ok(()),
        false => Err("watch caches do not follow the store".to_owned()),
    };
    let mut out: Vec<Check> = vec![("ping".into(), Ok(())), ("log".into(), Ok(())), ("etcd".into(), store)];
    out.extend(server.registry.encryption().checks().await);
    if path.starts_with("/readyz") {
        out.push((
            "informer-sync".into(),
            if server.registry.is_following() { Ok(()) } else { Err("caches are not filled".to_owned()) },
        ));
        let up = if server.is_ready() { Ok(()) } else { Err("process is starting or shutting down".to_owned()) };
        out.push(("shutdown".into(), up));
    }
    if !path.starts_with("/livez") {
        let done = if server.is_ready() { Ok(()) } else { Err("not finished".to_owned()) };
        out.push(("poststarthook/bootstrap-controller".into(), done.clone()));
        out.push(("poststarthook/rbac/bootstrap-roles".into(), done.clone()));
        out.push(("poststarthook/priority-and-fairness-config-producer".into(), done.clone()));
        out.push(("poststarthook/priority-and-fairness-config-consumer".into(), done));
    }
    out
}

async fn health(server: &Server, path: &str, cx: &RequestContext) -> Result<Response, ApiError> {
    let excluded: Vec<&str> = cx.query.iter().filter(|(k, _)| k == "exclude").map(|(_, v)| v.as_str()).collect();
    let checks = checks(server, path).await;
    let of = HEALTH.iter().find(|of| path.trim_start_matches('/') == **of).copied().unwrap_or_default();
    let excludes = |name: &str| excluded.contains(&name);
    for (name, outcome) in checks.iter().filter(|(name, _)| !excludes(name)) {
        server.metrics.checked(name.clone(), of, outcome.is_ok());
    }
    let failed = checks.iter().any(|(name, r)| r.is_err() && !excludes(name));
    if !failed && cx.param("verbose").is_none() {
        return Ok(respond::with_type(200, "text/plain; charset=utf-8", "ok"));
    }
    let mut text = String::new();
    let unknown: Vec<String> =
        excluded.iter().filter(|e| !checks.iter().any(|(name, _)| name == *e)).map(|e| format!("{e:?}")).collect();
    for (name, result) in checks {
        text += &match result {
            _ if excludes(&name) => format!("[+]{name} excluded: ok\n"),
            Ok(()) => format!("[+]{name} ok\n"),
            // The reason may tell more than an anonymous client should know; it is in the log.
            Err(_) => format!("[-]{name} failed: reason withheld\n"),
        };
    }
    if !unknown.is_empty() {
        text += &format!("warn: some health checks cannot be excluded: no matches for {}\n", unknown.join(", "));
    }
    text += &format!("{} check {}\n", path.trim_start_matches('/'), if failed { "failed" } else { "passed" });
    Ok(respond::with_type(if failed { 500 } else { 200 }, "text/plain; charset=utf-8", text))
}
