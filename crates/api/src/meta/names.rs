//! Rules for names, keys, ports and addresses, with upstream's messages (`k8s.io/apimachinery/pkg/util/validation`).
//!
//! Every rule answers the list of what is wrong as sentences without the value; an empty list means the value is fine.

use crate::meta::field::{ErrorList, Path};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_MESSAGE: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// Longest DNS label.
pub const DNS_LABEL_MAX: usize = 63;
/// Longest DNS subdomain.
pub const DNS_SUBDOMAIN_MAX: usize = 253;

/// `must be no more than n bytes`.
#[must_use]
pub fn max_len_error(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

/// `must be between lo and hi, inclusive`.
#[must_use]
pub fn inclusive_range_error(lo: i64, hi: i64) -> String {
    format!("must be between {lo} and {hi}, inclusive")
}

/// A message followed by examples and the regular expression a value must match.
#[must_use]
pub fn regex_error(message: &str, format: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{format}')");
    }
    let mut text = format!("{message} (e.g. ");
    for (i, example) in examples.iter().enumerate() {
        if i > 0 {
            text.push_str(" or ");
        }
        text.push_str(&format!("'{example}', "));
    }
    text.push_str(&format!("regex used for validation is '{format}')"));
    text
}

/// A generateName prefix may end in a dash, which the generated suffix makes legal.
fn mask_trailing_dash(name: &str) -> String {
    match name.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => name.to_owned(),
    }
}

fn lower_or_digit(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// Whether `s` starts and ends with `edge` and has only `edge` or one of `inner` between.
fn shaped(s: &str, edge: fn(u8) -> bool, inner: &[u8]) -> bool {
    let b = s.as_bytes();
    match (b.first(), b.last()) {
        (Some(first), Some(last)) => edge(*first) && edge(*last) && b.iter().all(|c| edge(*c) || inner.contains(c)),
        _ => false,
    }
}

fn is_label(s: &str) -> bool {
    shaped(s, lower_or_digit, b"-")
}

fn is_subdomain(s: &str) -> bool {
    s.split('.').all(is_label)
}

fn is_qualified_part(s: &str) -> bool {
    shaped(s, |c| c.is_ascii_alphanumeric(), b"-_.")
}

/// Errors of a DNS-1123 subdomain; `prefix` checks a generateName prefix, whose end may be a dash.
#[must_use]
pub fn dns1123_subdomain(name: &str, prefix: bool) -> Vec<String> {
    let name = if prefix { mask_trailing_dash(name) } else { name.to_owned() };
    let mut errors = Vec::new();
    if name.len() > DNS_SUBDOMAIN_MAX {
        errors.push(max_len_error(DNS_SUBDOMAIN_MAX));
    }
    if !is_subdomain(&name) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
             and must start and end with an alphanumeric character",
            &format!("{LABEL_FMT}(\\.{LABEL_FMT})*"),
            &["example.com"],
        ));
    }
    errors
}

/// Errors of a DNS-1123 subdomain whose labels may contain underscores (DNS search paths).
#[must_use]
pub fn dns1123_subdomain_with_underscore(name: &str) -> Vec<String> {
    let part = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let label = |s: &str| shaped(s.strip_prefix('_').unwrap_or(s), lower_or_digit, b"-_");
    let mut errors = Vec::new();
    if name.len() > DNS_SUBDOMAIN_MAX {
        errors.push(max_len_error(DNS_SUBDOMAIN_MAX));
    }
    if !name.split('.').all(label) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
             and must start and end with an alphanumeric character",
            &format!("{part}(\\.{part})*"),
            &["example.com"],
        ));
    }
    errors
}

/// Errors of a DNS-1123 label; `prefix` checks a generateName prefix.
#[must_use]
pub fn dns1123_label(name: &str, prefix: bool) -> Vec<String> {
    let name = if prefix { mask_trailing_dash(name) } else { name.to_owned() };
    let mut errors = Vec::new();
    if name.len() > DNS_LABEL_MAX {
        errors.push(max_len_error(DNS_LABEL_MAX));
    }
    if !is_label(&name) {
        if is_subdomain(&name) {
            errors.push("must not contain dots".to_owned());
        } else {
            errors.push(regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                 and must start and end with an alphanumeric character",
                LABEL_FMT,
                &["my-name", "123-abc"],
            ));
        }
    }
    errors
}

/// Errors of a DNS-1035 label (starts with a letter); `prefix` checks a generateName prefix.
#[must_use]
pub fn dns1035_label(name: &str, prefix: bool) -> Vec<String> {
    let name = if prefix { mask_trailing_dash(name) } else { name.to_owned() };
    let mut errors = Vec::new();
    if name.len() > DNS_LABEL_MAX {
        errors.push(max_len_error(DNS_LABEL_MAX));
    }
    if !is_label(&name) || !name.as_bytes()[0].is_ascii_lowercase() {
        errors.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', \
             start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// Errors of a wildcard DNS-1123 subdomain such as `*.example.com`.
#[must_use]
pub fn wildcard_dns1123_subdomain(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > DNS_SUBDOMAIN_MAX {
        errors.push(max_len_error(DNS_SUBDOMAIN_MAX));
    }
    if !name.strip_prefix("*.").is_some_and(is_subdomain) {
        errors.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist \
             of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{LABEL_FMT}(\\.{LABEL_FMT})*"),
            &["*.example.com"],
        ));
    }
    errors
}

/// Errors of a qualified name: an optional DNS subdomain and `/`, then a name of at most 63 bytes (label keys).
#[must_use]
pub fn qualified_name(value: &str) -> Vec<String> {
    let examples = &["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(dns1123_subdomain(prefix, false).iter().map(|m| format!("prefix part {m}")));
            }
            *name
        }
        _ => {
            errors.push(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                regex_error(QUALIFIED_MESSAGE, QUALIFIED_FMT, examples)
            ));
            return errors;
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > DNS_LABEL_MAX {
        errors.push(format!("name part {}", max_len_error(DNS_LABEL_MAX)));
    }
    if !is_qualified_part(name) {
        errors.push(format!("name part {}", regex_error(QUALIFIED_MESSAGE, QUALIFIED_FMT, examples)));
    }
    errors
}

/// Errors of a label value.
#[must_use]
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_LABEL_MAX {
        errors.push(max_len_error(DNS_LABEL_MAX));
    }
    if !value.is_empty() && !is_qualified_part(value) {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
             and must start and end with an alphanumeric character",
            &format!("({QUALIFIED_FMT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// Errors of a path segment (RBAC names and the like): no `.`, `..`, `/`, `%`.
#[must_use]
pub fn path_segment(name: &str, prefix: bool) -> Vec<String> {
    if !prefix && (name == "." || name == "..") {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"].iter().filter(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// Errors of a port name (IANA service name).
#[must_use]
pub fn port_name(port: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if port.len() > 15 {
        errors.push(max_len_error(15));
    }
    if port.is_empty() || !port.bytes().all(|c| lower_or_digit(c) || c == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !port.bytes().any(|c| c.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if port.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if port.starts_with('-') || port.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// Errors of a port number.
#[must_use]
pub fn port_number(port: i32) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![inclusive_range_error(1, 65535)] }
}

/// Errors of a Unix user id.
#[must_use]
pub fn user_id(id: i64) -> Vec<String> {
    const MAX: i64 = i32::MAX as i64;
    if (0..=MAX).contains(&id) { Vec::new() } else { vec![inclusive_range_error(0, MAX)] }
}

/// Errors of a Unix group id.
#[must_use]
pub fn group_id(id: i64) -> Vec<String> {
    user_id(id)
}

/// Errors of a percentage such as `25%`.
#[must_use]
pub fn percent(value: &str) -> Vec<String> {
    let digits = value.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// Errors of an HTTP header name.
#[must_use]
pub fn http_header_name(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// Errors of an environment variable name: printable ASCII without `=`.
#[must_use]
pub fn env_var_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !value.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=') {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    errors
}

/// Errors of a C identifier.
#[must_use]
pub fn c_identifier(value: &str) -> Vec<String> {
    let ok =
        value.bytes().enumerate().all(|(i, c)| c.is_ascii_alphabetic() || c == b'_' || (i > 0 && c.is_ascii_digit()));
    if ok && !value.is_empty() {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
         characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// Errors of a key of a ConfigMap or Secret.
#[must_use]
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_SUBDOMAIN_MAX {
        errors.push(max_len_error(DNS_SUBDOMAIN_MAX));
    }
    if value.is_empty() || !value.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c)) {
        errors.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        v if v.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// Errors of a fully qualified domain name (at least two labels, an end dot is allowed), reported at `path`.
#[must_use]
pub fn fully_qualified_domain_name(path: &Path, name: &str) -> ErrorList {
    let mut errors = ErrorList::default();
    if name.is_empty() {
        errors.required(path, "");
        return errors;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let found = dns1123_subdomain(name, false);
    if !found.is_empty() {
        errors.invalid(path, name, &found.join(","));
        return errors;
    }
    if name.split('.').count() < 2 {
        errors.invalid(path, name, "should be a domain with at least two segments separated by dots");
        return errors;
    }
    for label in name.split('.') {
        let found = dns1123_label(label, false);
        if !found.is_empty() {
            errors.invalid(path, label, &found.join(","));
            return errors;
        }
    }
    errors
}

/// Errors of a domain-prefixed path such as `acme.io/foo`, reported at `path`.
#[must_use]
pub fn domain_prefixed_path(path: &Path, value: &str) -> ErrorList {
    let mut errors = ErrorList::default();
    if value.is_empty() {
        errors.required(path, "");
        return errors;
    }
    match value.split_once('/') {
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            for message in dns1123_subdomain(host, false) {
                errors.invalid(path, host, &message);
            }
            if !rest.bytes().all(|c| c.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&c)) {
                let format = "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+";
                errors.invalid(path, rest, &regex_error("Invalid path", format, &[]));
            }
        }
        _ => errors.invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
    errors
}

/// Parses an address as stored objects may have it: leading zeros in IPv4 parts are accepted, as Kubernetes always did.
#[must_use]
pub fn parse_ip(value: &str) -> Option<IpAddr> {
    if value.contains(':') {
        return value.parse::<Ipv6Addr>().ok().map(|v6| v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4));
    }
    let mut octets = [0u8; 4];
    let mut count = 0;
    for part in value.split('.') {
        if count == 4 || part.is_empty() || !part.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        octets[count] = part.parse().ok()?;
        count += 1;
    }
    (count == 4).then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Parses `address/length` into the address as written and the prefix length.
#[must_use]
pub fn parse_cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = value.split_once('/')?;
    let ip = parse_ip(address)?;
    if length.is_empty() || length.len() > 3 || !length.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let bits: u8 = length.parse().ok()?;
    // A mapped IPv4 address is written with an IPv6 length.
    let most = if address.contains(':') { 128 } else { 32 };
    (bits <= most).then_some((ip, bits))
}

/// Errors of an IP address.
#[must_use]
pub fn ip_address(value: &str) -> Vec<String> {
    match parse_ip(value) {
        Some(_) => Vec::new(),
        None => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// Errors of a CIDR.
#[must_use]
pub fn cidr(value: &str) -> Vec<String> {
    match parse_cidr(value) {
        Some(_) => Vec::new(),
        None => vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()],
    }
}

/// Warnings for an address that a stricter release would refuse or that is not in canonical form.
#[must_use]
pub fn ip_warnings(path: &Path, value: &str) -> Vec<String> {
    let Some(ip) = parse_ip(value) else { return Vec::new() };
    let strict = value.parse::<IpAddr>().ok();
    let mapped = matches!(strict, Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some());
    if strict.is_none() || mapped {
        return vec![format!(
            "{path}: non-standard IP address {value:?} will be considered invalid in a future Kubernetes release: use \"{ip}\""
        )];
    }
    if ip.is_ipv6() && ip.to_string() != value {
        return vec![format!("{path}: IPv6 address {value:?} should be in RFC 5952 canonical format (\"{ip}\")")];
    }
    Vec::new()
}

/// Adds an `Invalid` error with `value` for each message.
pub fn push_invalid(errors: &mut ErrorList, path: &Path, value: &str, messages: &[String]) {
    for message in messages {
        errors.invalid(path, value, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        let long = "a".repeat(64);
        let cases: &[(&str, Vec<String>, Vec<&str>)] = &[
            ("label", dns1123_label("my-name", false), vec![]),
            ("prefix", dns1123_label("my-name-", true), vec![]),
            ("dots", dns1123_label("a.b", false), vec!["must not contain dots"]),
            ("long", dns1123_label(&long, false), vec!["must be no more than 63 bytes"]),
            (
                "upper",
                dns1123_label("A", false),
                vec![
                    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
                 end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                "1035",
                dns1035_label("1a", false),
                vec![
                    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                 character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
                 validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                "subdomain",
                dns1123_subdomain("a..b", false),
                vec![
                    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
                 start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                ],
            ),
            ("qualified", qualified_name("/a"), vec!["prefix part must be non-empty"]),
            (
                "qualified empty",
                qualified_name("a/"),
                vec![
                    "name part must be non-empty",
                    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                ],
            ),
            (
                "port",
                port_name("-a--b-123456789012"),
                vec![
                    "must be no more than 15 bytes",
                    "must not contain consecutive hyphens",
                    "must not begin or end with a hyphen",
                ],
            ),
            ("segment", path_segment("a/b%", false), vec!["may not contain '/'", "may not contain '%'"]),
            ("key", config_map_key("..a"), vec!["must not start with '..'"]),
        ];
        for (what, got, want) in cases {
            assert_eq!(got, want, "{what}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_ip("010.0.0.1"), Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))));
        assert_eq!(parse_ip("1.2.3"), None);
        assert_eq!(parse_ip("::ffff:1.2.3.4"), Some(IpAddr::V4(Ipv4Addr::new(1, 2, 3, 4))));
        assert_eq!(parse_cidr("10.0.0.0/33"), None);
        assert_eq!(parse_cidr("fd00::/64").map(|c| c.1), Some(64));
        let p = Path::new("spec").child("clusterIP");
        assert_eq!(
            ip_warnings(&p, "fd00:0::1"),
            vec!["spec.clusterIP: IPv6 address \"fd00:0::1\" should be in RFC 5952 canonical format (\"fd00::1\")"]
        );
    }
}
