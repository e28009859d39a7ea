//! From method, path and query to [`RequestInfo`], exactly as upstream's `RequestInfoFactory`.

use crate::request::RequestInfo;
use gantry_api::meta::fields::FieldSelector;
use gantry_api::meta::status::ApiError;
use http::Method;

/// Subresources of namespaces; any other segment after a namespace's name is a resource in it.
const NAMESPACE_SUBRESOURCES: &[&str] = &["status", "finalize"];

/// Decodes a query string into pairs.
#[must_use]
pub fn parse_query(query: Option<&str>) -> Vec<(String, String)> {
    let pairs = query.unwrap_or_default().split('&').filter(|p| !p.is_empty());
    pairs
        .map(|pair| {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(k, true), percent_decode(v, true))
        })
        .collect()
}

fn percent_decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = text.get(i + 1..i + 3).filter(|_| bytes[i] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[i], hex) {
            (_, Some(value)) => {
                out.push(value);
                i += 2;
            }
            (b'+', None) if plus_is_space => out.push(b' '),
            (b, None) => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Parses a request.
///
/// # Errors
/// 400 where a special verb addresses nothing.
pub fn request_info(method: &Method, path: &str, query: &[(String, String)]) -> Result<RequestInfo, ApiError> {
    let mut info =
        RequestInfo { path: path.to_owned(), verb: method.as_str().to_ascii_lowercase(), ..Default::default() };
    let decoded: Vec<String> = path.trim_matches('/').split('/').map(|s| percent_decode(s, false)).collect();
    let mut parts: &[String] = &decoded;
    if parts.len() < 3 || !matches!(parts[0].as_str(), "api" | "apis") {
        return Ok(info);
    }
    info.api_prefix.clone_from(&parts[0]);
    parts = &parts[1..];
    if info.api_prefix == "apis" {
        if parts.len() < 3 {
            return Ok(info);
        }
        info.group.clone_from(&parts[0]);
        parts = &parts[1..];
    }
    info.is_resource = true;
    info.version.clone_from(&parts[0]);
    parts = &parts[1..];
    let special = matches!(parts[0].as_str(), "proxy" | "watch");
    if special {
        if parts.len() < 2 {
            return Err(ApiError::bad_request(format!("unable to determine kind and namespace from url, {path}")));
        }
        info.verb.clone_from(&parts[0]);
        parts = &parts[1..];
    } else {
        match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .clone_into(&mut info.verb);
    }
    if parts[0] == "namespaces" && parts.len() > 1 {
        info.namespace.clone_from(&parts[1]);
        if parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[2].as_str()) {
            parts = &parts[2..];
        }
    }
    if let Some(resource) = parts.first() {
        info.resource.clone_from(resource);
    }
    if let Some(name) = parts.get(1) {
        info.name.clone_from(name);
    }
    if parts.len() >= 3 && info.verb != "proxy" {
        info.subresource.clone_from(&parts[2]);
        info.tail = parts[3..].to_vec();
    }
    let param = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
    if info.name.is_empty() && info.verb == "get" {
        let watch = param("watch").is_some_and(|v| !matches!(v, "" | "0" | "false"));
        info.verb = if watch { "watch" } else { "list" }.to_owned();
    }
    if info.name.is_empty() && info.verb == "delete" {
        "deletecollection".clone_into(&mut info.verb);
    }
    if info.name.is_empty() && matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
        // A selector that names one object makes this a request for that object, which authorizers look at.
        let selector = param("fieldSelector").and_then(|s| FieldSelector::parse(s).ok());
        let is_segment = |n: &&str| !n.is_empty() && !n.contains(['/', '%']) && !matches!(*n, "." | "..");
        let name = selector.as_ref().and_then(|s| s.requires_exact_match("metadata.name"));
        if let Some(name) = name.filter(is_segment) {
            name.clone_into(&mut info.name);
        }
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_what_upstream_addresses() {
        // method, path, query, verb, group, namespace, resource, subresource, name
        let cases = [
            ("GET", "/api/v1/namespaces", "", "list", "", "", "namespaces", "", ""),
            ("GET", "/api/v1/namespaces/other", "", "get", "", "other", "namespaces", "", "other"),
            ("PUT", "/api/v1/namespaces/other/finalize", "", "update", "", "other", "namespaces", "finalize", "other"),
            ("GET", "/api/v1/namespaces/other/pods", "", "list", "", "other", "pods", "", ""),
            ("GET", "/api/v1/namespaces/other/pods", "watch=true", "watch", "", "other", "pods", "", ""),
            ("GET", "/api/v1/watch/namespaces/other/pods", "", "watch", "", "other", "pods", "", ""),
            ("GET", "/api/v1/namespaces/other/pods/foo/log", "", "get", "", "other", "pods", "log", "foo"),
            (
                "POST",
                "/apis/apps/v1/namespaces/other/deployments",
                "",
                "create",
                "apps",
                "other",
                "deployments",
                "",
                "",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/o/deployments/d/scale",
                "",
                "patch",
                "apps",
                "o",
                "deployments",
                "scale",
                "d",
            ),
            ("DELETE", "/api/v1/nodes", "", "deletecollection", "", "", "nodes", "", ""),
            ("GET", "/api/v1/pods", "fieldSelector=metadata.name%3Dx", "list", "", "", "pods", "", "x"),
        ];
        for (method, path, query, verb, group, namespace, resource, subresource, name) in cases {
            let i = request_info(&method.parse().unwrap(), path, &parse_query(Some(query))).unwrap();
            assert!(i.is_resource, "{path}");
            let got = (
                i.verb.as_str(),
                i.group.as_str(),
                i.namespace.as_str(),
                i.resource.as_str(),
                i.subresource.as_str(),
                i.name.as_str(),
            );
            assert_eq!(got, (verb, group, namespace, resource, subresource, name), "{method} {path}");
        }
        for path in ["/", "/api", "/api/v1", "/apis/apps/v1", "/healthz", "/openapi/v2"] {
            assert!(!request_info(&Method::GET, path, &[]).unwrap().is_resource, "{path}");
        }
        assert_eq!(parse_query(Some("a=b%20c+d&e")), [("a".into(), "b c d".into()), ("e".into(), String::new())]);
    }
}
