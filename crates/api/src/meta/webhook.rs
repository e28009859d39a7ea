//! Rules for how a webhook is reached (`k8s.io/apiserver/pkg/util/webhook`).

use crate::meta::field::{ErrorList, Path};
use crate::meta::names;

const FORM: &str = "; desired format: https://host[/path]";

/// The parts of a URL that rules look at.
#[derive(Debug, Default, PartialEq)]
struct Url<'a> {
    scheme: String,
    user: Option<&'a str>,
    host: &'a str,
    query: &'a str,
    fragment: &'a str,
}

/// The first malformed percent escape.
fn bad_escape(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    (0..bytes.len()).filter(|i| bytes[*i] == b'%').find_map(|i| {
        let fine = bytes.get(i + 1..i + 3).is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit));
        (!fine).then(|| text.get(i..(i + 3).min(text.len())).unwrap_or("%"))
    })
}

fn check_host(host: &str) -> Result<(), String> {
    let port = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(|| "missing ']' in host".to_owned())?.1,
        None => host.rfind(':').map_or("", |i| &host[i..]),
    };
    let digits = port.strip_prefix(':');
    if !port.is_empty() && !digits.is_some_and(|d| d.bytes().all(|c| c.is_ascii_digit())) {
        return Err(format!("invalid port {port:?} after host"));
    }
    if let Some(escape) = bad_escape(host) {
        return Err(format!("invalid URL escape {escape:?}"));
    }
    match host.chars().find(|c| c.is_ascii() && !(c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:[]<>\"%".contains(*c)))
    {
        Some(c) => Err(format!("invalid character {:?} in host name", c.to_string())),
        None => Ok(()),
    }
}

/// Parses as Go's `net/url` does; the error is its sentence without the URL.
fn parse(text: &str) -> Result<Url<'_>, String> {
    if text.bytes().any(|c| c < b' ' || c == 0x7f) {
        return Err("net/url: invalid control character in URL".to_owned());
    }
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let scheme_end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
    let starts_alphabetic = rest.starts_with(|c: char| c.is_ascii_alphabetic());
    let (scheme, rest) = match scheme_end {
        Some(0) if rest.starts_with(':') => return Err("missing protocol scheme".to_owned()),
        Some(i) if rest[i..].starts_with(':') && starts_alphabetic => (rest[..i].to_lowercase(), &rest[i + 1..]),
        Some(i) if rest[i..].starts_with(':') => {
            return Err("first path segment in URL cannot contain colon".to_owned());
        }
        _ => (String::new(), rest),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut url = Url { scheme, query, fragment, ..Url::default() };
    let path = match rest.strip_prefix("//") {
        Some(rest) => {
            let (authority, path) = rest.find('/').map_or((rest, ""), |i| rest.split_at(i));
            let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
            check_host(host)?;
            (url.user, url.host) = (user, host);
            path
        }
        None => rest,
    };
    match [path, fragment].into_iter().find_map(bad_escape) {
        Some(escape) => Err(format!("invalid URL escape {escape:?}")),
        None => Ok(url),
    }
}

/// Adds the errors of a webhook's URL, which must be HTTPS.
pub(crate) fn validate_url(text: &str, path: &Path, errors: &mut ErrorList) {
    let url = match parse(text) {
        Ok(url) => url,
        Err(why) => {
            return errors.required(path, &format!("url must be a valid URL: parse {text:?}: {why}{FORM}"));
        }
    };
    if url.scheme != "https" {
        errors.invalid(path, url.scheme.as_str(), &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if url.host.is_empty() {
        errors.invalid(path, "", &format!("host must be specified{FORM}"));
    }
    if let Some(user) = url.user {
        errors.invalid(path, user, "user information is not permitted in the URL");
    }
    if !url.fragment.is_empty() {
        errors.invalid(path, url.fragment, "fragments are not permitted in the URL");
    }
    if !url.query.is_empty() {
        errors.invalid(path, url.query, "query parameters are not permitted in the URL");
    }
}

/// Adds the errors of a webhook's Service.
pub(crate) fn validate_service(
    namespace: &str,
    name: &str,
    url_path: Option<&str>,
    port: i32,
    path: &Path,
    errors: &mut ErrorList,
) {
    // Upstream's callers pass name and namespace the other way around, so it asks for them in this order and way.
    for (missing, field) in [(namespace.is_empty(), "name"), (name.is_empty(), "namespace")] {
        if missing {
            errors.required(&path.child(field), "");
        }
    }
    let found = names::port_number(port);
    if !found.is_empty() {
        errors.invalid(&path.child("port"), port, &format!("port is not valid: {}", found.join(", ")));
    }
    let Some(text) = url_path.filter(|p| !p.is_empty() && *p != "/") else { return };
    let path = path.child("path");
    if text == "//" {
        return errors.invalid(&path, text, "segment[0] may not be empty");
    }
    if !text.starts_with('/') {
        errors.invalid(&path, text, "must start with a '/'");
    }
    // Upstream drops the first byte whatever it is.
    let mut rest = text.chars();
    rest.next();
    let rest = rest.as_str();
    for (i, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&path, text, &format!("segment[{i}] may not be empty"));
            continue;
        }
        for message in names::dns1123_subdomain(step, false) {
            errors.invalid(&path, text, &format!("segment[{i}]: {message}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let cases: &[(&str, &[&str])] = &[
            ("https://a.b/c", &[]),
            ("https://[::1]:8443/c", &[]),
            (
                "http://a",
                &["u: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: \
                https://host[/path]"],
            ),
            ("https:///p", &["u: Invalid value: \"\": host must be specified; desired format: https://host[/path]"]),
            (
                "https://me:pw@a/#f",
                &[
                    "u: Invalid value: \"me:pw\": user information is not permitted in the URL",
                    "u: Invalid value: \"f\": fragments are not permitted in the URL",
                ],
            ),
            ("https://a?x=y", &["u: Invalid value: \"x=y\": query parameters are not permitted in the URL"]),
            (
                "https://a:b",
                &["u: Required value: url must be a valid URL: parse \"https://a:b\": invalid port \":b\" \
                after host; desired format: https://host[/path]"],
            ),
            (
                "https://a/%zz",
                &["u: Required value: url must be a valid URL: parse \"https://a/%zz\": invalid URL escape \
                \"%zz\"; desired format: https://host[/path]"],
            ),
            (
                ":a",
                &["u: Required value: url must be a valid URL: parse \":a\": missing protocol scheme; desired \
                     format: \
                https://host[/path]"],
            ),
        ];
        for (text, want) in cases {
            let mut e = ErrorList::default();
            validate_url(text, &Path::new("u"), &mut e);
            assert_eq!(e.0.iter().map(ToString::to_string).collect::<Vec<_>>(), *want, "{text}");
        }
    }

    #[test]
    fn services() {
        let check = |namespace: &str, name: &str, path: Option<&str>, port: i32| {
            let mut e = ErrorList::default();
            validate_service(namespace, name, path, port, &Path::new("s"), &mut e);
            e.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(check("n", "s", Some("/a/b/"), 443).is_empty());
        assert_eq!(
            check("", "", Some("a//b"), 0),
            [
                "s.name: Required value",
                "s.namespace: Required value",
                "s.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive",
                "s.path: Invalid value: \"a//b\": must start with a '/'",
                "s.path: Invalid value: \"a//b\": segment[0] may not be empty",
                "s.path: Invalid value: \"a//b\": segment[1] may not be empty",
            ]
        );
    }
}
