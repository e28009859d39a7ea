//! Kubernetes' URLs, read as Go's `net/url` reads them.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::number::quote;
use crate::types::Type;
use crate::value::{EvalError, Key, Object, Value};

const NAME: &str = "kubernetes.URL";

/// A URL in parts.
#[derive(Clone, Debug)]
struct Url {
    /// As it was written, which is what equality compares.
    text: String,
    scheme: String,
    host: String,
    /// Still escaped.
    path: String,
    query: String,
}

impl Object for Url {
    fn type_name(&self) -> &str {
        NAME
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Url>().is_some_and(|other| self.text == other.text)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The octets of an escaped text. `plus` is a space in queries.
fn unescape(text: &str, plus: bool) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'%' => {
                let digits = text.get(i + 1..i + 3).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
                let Some(value) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
                    let end = (i + 3).min(bytes.len());
                    return Err(format!("invalid URL escape {}", quote(&String::from_utf8_lossy(&bytes[i..end]))));
                };
                out.push(value);
                i += 3;
            }
            b'+' if plus => {
                out.push(b' ');
                i += 1;
            }
            byte => {
                out.push(byte);
                i += 1;
            }
        }
    }
    Ok(out)
}

/// The scheme, if there is one, and what follows.
fn split_scheme(text: &str) -> Result<(&str, &str), String> {
    for (i, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            ':' if i == 0 => return Err("missing protocol scheme".into()),
            ':' => return Ok((&text[..i], &text[i + 1..])),
            _ => return Ok(("", text)),
        }
    }
    Ok(("", text))
}

fn valid_port(port: &str) -> bool {
    port.is_empty() || port.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Checks the part between `//` and the path, and returns its host with the port.
fn authority(text: &str) -> Result<String, String> {
    let (user, host) = text.rsplit_once('@').map_or((None, text), |(user, host)| (Some(user), host));
    if let Some(user) = user {
        if !user.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b)) {
            return Err("net/url: invalid userinfo".into());
        }
        unescape(user, false)?;
    }
    let port = if host.starts_with('[') {
        let Some(close) = host.rfind(']') else { return Err("missing ']' in host".into()) };
        &host[close + 1..]
    } else {
        host.rfind(':').map_or("", |colon| &host[colon..])
    };
    if !valid_port(port) {
        return Err(format!("invalid port {} after host", quote(port)));
    }
    if let Some(wrong) = host.chars().find(|c| c.is_ascii() && !host_char(*c)) {
        return Err(format!("invalid character {} in host name", quote(&wrong.to_string())));
    }
    if let Some(at) = host.find('%').filter(|_| !host.starts_with('[')) {
        // Only octets outside of ASCII may be escaped in a host.
        let escaped = host.get(at + 1..at + 3).unwrap_or_default();
        if u8::from_str_radix(escaped, 16).is_ok_and(|byte| byte < 0x80) {
            return Err(format!("invalid URL escape {}", quote(&format!("%{escaped}"))));
        }
    }
    Ok(String::from_utf8_lossy(&unescape(host, false)?).into_owned())
}

fn host_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"%".contains(c)
}

/// Whether a path may stay as it is written.
fn path_char(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@/[]%".contains(&b)
}

fn path_escape(path: &[u8]) -> String {
    let mut out = String::new();
    for &b in path {
        if b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// Reads a URL. In a `request` there is no fragment, and it is absolute or starts with a slash.
fn read(text: &str, request: bool) -> Result<Url, String> {
    let (body, fragment) =
        if request { (text, None) } else { text.split_once('#').map_or((text, None), |(b, f)| (b, Some(f))) };
    if let Some(fragment) = fragment {
        unescape(fragment, false)?;
    }
    if body.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err("net/url: invalid control character in URL".into());
    }
    if body.is_empty() && request {
        return Err("empty url".into());
    }
    let mut url = Url {
        text: text.to_owned(),
        scheme: String::new(),
        host: String::new(),
        path: String::new(),
        query: String::new(),
    };
    if body == "*" {
        "*".clone_into(&mut url.path);
        return Ok(url);
    }
    let (scheme, rest) = split_scheme(body)?;
    url.scheme = scheme.to_ascii_lowercase();
    let (mut rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    query.clone_into(&mut url.query);
    if !rest.starts_with('/') {
        if !scheme.is_empty() {
            return Ok(url);
        }
        if request {
            return Err("invalid URI for request".into());
        }
        if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
            return Err("first path segment in URL cannot contain colon".into());
        }
    }
    if (!scheme.is_empty() || (!request && !rest.starts_with("///"))) && rest.starts_with("//") {
        let end = rest[2..].find('/').map_or(rest.len(), |slash| slash + 2);
        url.host = authority(&rest[2..end])?;
        rest = &rest[end..];
    }
    let path = unescape(rest, false)?;
    url.path = if rest.bytes().all(path_char) { rest.to_owned() } else { path_escape(&path) };
    Ok(url)
}

fn parse(text: &str) -> Result<Url, String> {
    let wrong = |message: String| format!("parse {}: {message}", quote(text));
    read(text, true).and_then(|_| read(text, false)).map_err(wrong)
}

impl Url {
    fn port(&self) -> &str {
        let after = if self.host.starts_with('[') { self.host.rfind(']').unwrap_or(0) } else { 0 };
        self.host[after..].rfind(':').map_or("", |colon| &self.host[after + colon + 1..])
    }

    fn hostname(&self) -> &str {
        if let Some(inner) = self.host.strip_prefix('[') {
            return inner.rfind(']').map_or(inner, |close| &inner[..close]);
        }
        self.host.rfind(':').map_or(&self.host, |colon| &self.host[..colon])
    }

    fn query_values(&self) -> Value {
        let mut values: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // What cannot be read is left out.
            if let (Ok(name), Ok(value)) = (unescape(name, true), unescape(value, true)) {
                let text = |bytes: &[u8]| -> Arc<str> { String::from_utf8_lossy(bytes).into() };
                values.entry(Key::String(text(&name))).or_default().push(Value::String(text(&value)));
            }
        }
        Value::map(values.into_iter().map(|(name, list)| (name, Value::list(list))).collect())
    }
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    use Type::{Bool, String};
    let url = || Type::object(NAME);
    let part = |name: &str, id: &str, result: Type, of: fn(&Url) -> Value| {
        let overload = Overload::member(id, vec![url()], result, move |args| {
            args.first().and_then(Value::downcast::<Url>).map(of).ok_or_else(EvalError::no_such_overload)
        });
        Function::new(name, vec![overload])
    };
    vec![
        Function::new(
            "url",
            vec![Overload::global("string_to_url", vec![String], url(), |args| match args {
                [Value::String(text)] => match parse(text) {
                    Ok(url) => Ok(Value::object(url)),
                    Err(error) => fail(format!("URL parse error during conversion from string: {error}")),
                },
                _ => mismatch(),
            })],
        ),
        Function::new(
            "isURL",
            vec![Overload::global("is_url_string", vec![String], Bool, |args| match args {
                [Value::String(text)] => Ok(Value::Bool(is_request_uri(text).is_ok())),
                _ => mismatch(),
            })],
        ),
        part("getScheme", "url_get_scheme", String, |url| Value::from(url.scheme.as_str())),
        part("getHost", "url_get_host", String, |url| Value::from(url.host.as_str())),
        part("getHostname", "url_get_hostname", String, |url| Value::from(url.hostname())),
        part("getPort", "url_get_port", String, |url| Value::from(url.port())),
        part("getEscapedPath", "url_get_escaped_path", String, |url| Value::from(url.path.as_str())),
        part("getQuery", "url_get_query", Type::map(String, Type::list(String)), Url::query_values),
    ]
}

/// Whether a text is a URI as requests carry it.
///
/// # Errors
/// `parse "...": ` and what is wrong, as Go words it.
pub(super) fn is_request_uri(text: &str) -> Result<(), String> {
    read(text, true).map(|_| ()).map_err(|message| format!("parse {}: {message}", quote(text)))
}
