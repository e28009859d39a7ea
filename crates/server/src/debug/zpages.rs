//! `/statusz` and `/flagz` (KEP-4827, KEP-4828): since when the process runs and which flags it was given, as text for
//! people and, asked for by kind, as objects of `config.k8s.io`.

use crate::http::negotiate::{Accepted, Media, clauses};
use crate::http::respond;
use crate::request::{RequestContext, Response};
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::meta::status::ApiError;
use http::header::{ACCEPT, WARNING};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What both are served as.
const SERVED: &str = "application/json, application/yaml, text/plain";
const GROUP: &str = "config.k8s.io";
/// Of the versions the one that says it is old.
const DEPRECATED: &str = "v1alpha1";
/// The server's name in them.
const COMPONENT: &str = "apiserver";
/// The version of Kubernetes whose semantics these are.
const VERSION: &str = "1.37";
const CAUTION: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";
/// First parts of paths that are no pages for debugging, or this one.
const OTHER: [&str; 6] = ["/.well-known", "/api", "/apis", "/openapi", "/openid", "/statusz"];

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Text,
    Object(Media, &'static str),
}

/// What the client accepts: text, or an object by its whole name and no other.
fn choose(headers: &HeaderMap, kind: &str) -> Result<Choice, ApiError> {
    let blank = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.trim().is_empty());
    if headers.get_all(ACCEPT).iter().all(blank) {
        return Ok(Choice::Text);
    }
    for clause in clauses(headers) {
        let refused = ["sv", "stream"].iter().any(|name| clause.param(name).is_some_and(|v| !v.is_empty()));
        let named = ["as", "g", "v"].map(|name| clause.param(name));
        let version = match named {
            [Some(of), Some(GROUP), Some("v1beta1")] if of == kind => Some("v1beta1"),
            [Some(of), Some(GROUP), Some(DEPRECATED)] if of == kind => Some(DEPRECATED),
            _ => None,
        };
        let covers = |media: &str| {
            let whole = media.split_once('/').is_some_and(|(kind, _)| clause.media == format!("{kind}/*"));
            clause.media == media || clause.media == "*/*" || whole
        };
        if refused {
            continue;
        }
        for (name, media) in [("application/json", Media::Json), ("application/yaml", Media::Yaml)] {
            if let Some(version) = version.filter(|_| covers(name)) {
                return Ok(Choice::Object(media, version));
            }
        }
        if covers("text/plain") && named == [None; 3] {
            return Ok(Choice::Text);
        }
    }
    Err(ApiError::new(406, "NotAcceptable", format!("only the following media types are accepted: {SERVED}")))
}

fn answer(cx: &RequestContext, kind: &str, text: String, fields: &Value) -> Result<Response, ApiError> {
    let headers = &cx.parts.headers;
    let (media, version) = match choose(headers, kind)? {
        Choice::Text => return Ok(respond::with_type(200, "text/plain; charset=utf-8", text)),
        Choice::Object(media, version) => (media, version),
    };
    let mut object = json!({"kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": COMPONENT}});
    if let (Some(object), Some(fields)) = (object.as_object_mut(), fields.as_object()) {
        object.extend(fields.clone());
    }
    let accepted = Accepted { media, ..Accepted::JSON };
    let mut response = respond::document(200, object.to_string().into(), &accepted, headers)?;
    if version == DEPRECATED {
        let page = kind.to_lowercase();
        let text = format!("299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\"");
        response.headers_mut().insert(WARNING, HeaderValue::from_str(&text).map_err(ApiError::internal)?);
    }
    Ok(response)
}

/// `/statusz`: since when the server runs, and where else to look. `paths` is all that is listed at `/`.
///
/// # Errors
/// 406 where the client accepts nothing of it.
pub fn statusz(
    cx: &RequestContext,
    started: Timestamp,
    now: Timestamp,
    paths: &[String],
) -> Result<Response, ApiError> {
    let up = now.duration_since(started).as_secs().max(0);
    let paths = pages(paths);
    let mut text = format!("\n{COMPONENT} statusz\n{CAUTION}\n\n");
    let lines = [
        ("Started", started.strftime("%a %b %e %H:%M:%S UTC %Y").to_string()),
        ("Up", format!("{} hr {:02} min {:02} sec", up / 3600, up / 60 % 60, up % 60)),
        ("Go version", String::new()),
        ("Binary version", VERSION.to_owned()),
        ("Emulation version", VERSION.to_owned()),
        ("Paths", paths.join(" ")),
    ];
    for (name, value) in lines {
        writeln!(text, "{name}: {value}").map_err(ApiError::internal)?;
    }
    let fields = json!({
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), "uptimeSeconds": up, "goVersion": "",
        "binaryVersion": VERSION, "emulationVersion": VERSION, "paths": paths,
    });
    answer(cx, "Statusz", text, &fields)
}

/// `/flagz`: what the process was told at its start.
///
/// # Errors
/// 406 where the client accepts nothing of it.
pub fn flagz(cx: &RequestContext, flags: &BTreeMap<String, String>) -> Result<Response, ApiError> {
    let mut text = format!("\n{COMPONENT} flagz\n{CAUTION}\n");
    for (name, value) in flags {
        writeln!(text, "{name}={value}").map_err(ApiError::internal)?;
    }
    answer(cx, "Flagz", text, &json!({ "flags": flags }))
}

/// The first parts of the paths, without those of the API itself.
fn pages(paths: &[String]) -> Vec<String> {
    let first = |path: &String| path.split('/').nth(1).filter(|part| !part.is_empty()).map(|part| format!("/{part}"));
    let mut pages: Vec<String> = paths.iter().filter_map(first).filter(|p| !OTHER.contains(&p.as_str())).collect();
    pages.sort();
    pages.dedup();
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_had_by_their_whole_name_alone() {
        let chosen = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            choose(&headers, "Statusz").map_err(|e| e.code)
        };
        assert_eq!(choose(&HeaderMap::new(), "Statusz").unwrap(), Choice::Text);
        assert_eq!(
            [chosen("*/*"), chosen(" "), chosen("text/*")],
            [Ok(Choice::Text), Ok(Choice::Text), Ok(Choice::Text)]
        );
        let beta = "as=Statusz;g=config.k8s.io;v=v1beta1";
        assert_eq!(chosen(&format!("application/json;{beta}")), Ok(Choice::Object(Media::Json, "v1beta1")));
        assert_eq!(chosen(&format!("application/yaml;{beta}")), Ok(Choice::Object(Media::Yaml, "v1beta1")));
        assert_eq!(chosen(&format!("*/*;{beta}")), Ok(Choice::Object(Media::Json, "v1beta1")));
        let alpha = "application/json;as=Statusz;g=config.k8s.io;v=v1alpha1, text/plain;q=0.5";
        assert_eq!(chosen(alpha), Ok(Choice::Object(Media::Json, "v1alpha1")));
        assert_eq!(chosen("application/json, text/plain"), Ok(Choice::Text));
        for none in [
            "application/json",
            "application/xml",
            "application/json;as=Flagz;g=config.k8s.io;v=v1beta1",
            "application/json;as=Statusz;g=config.k8s.io;v=v1",
            "text/plain;as=Statusz;g=config.k8s.io;v=v1beta1",
            "text/plain;stream=watch",
        ] {
            assert_eq!(chosen(none), Err(406), "{none}");
        }
    }

    #[test]
    fn pages_are_the_first_parts_of_paths() {
        let paths = ["/", "/api", "/apis/apps/v1", "/livez/ping", "/livez", "/metrics/slis", "/openapi/v2"];
        assert_eq!(pages(&paths.map(str::to_owned)), ["/livez", "/metrics"]);
    }
}
