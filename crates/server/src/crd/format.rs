//! Formats of strings in schemas, as go-openapi's `strfmt` knows them.

use gantry_api::apiextensions::STRING_FORMATS;
use gantry_api::k8s_openapi::jiff::civil::Date;
use regex::Regex;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// Known formats as schemas usually spell them.
const DASHED: &[&str] = &["date-time", "k8s-short-name", "k8s-long-name"];

fn normalized(format: &str) -> String {
    format.replace('-', "")
}

/// The format as errors name it, where strings are held against it; others are names only.
#[must_use]
pub fn known(format: &str) -> Option<&'static str> {
    let plain = normalized(format);
    let spelled = DASHED.iter().find(|d| **d == format).copied();
    spelled.or_else(|| STRING_FORMATS.iter().find(|k| **k == plain).copied())
}

fn matches(pattern: &'static LazyLock<Regex>, value: &str) -> bool {
    pattern.is_match(value)
}

macro_rules! pattern {
    ($name:ident, $text:expr) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($text).expect("the pattern is valid"));
    };
}

pattern!(OBJECT_ID, "^[0-9a-fA-F]{24}$");
pattern!(UUID, "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$");
pattern!(UUID3, "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$");
pattern!(UUID4, "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$");
pattern!(UUID5, "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$");
pattern!(
    CREDIT_CARD,
    r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$"
);
pattern!(SSN, r"^\d{3}[- ]?\d{2}[- ]?\d{4}$");
pattern!(HEX_COLOR, "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$");
pattern!(RGB_COLOR, r"^rgb\(\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)$");
pattern!(
    MAC,
    "(?i)^([0-9a-f]{2}(([:-][0-9a-f]{2}){5}|([:-][0-9a-f]{2}){7}|([:-][0-9a-f]{2}){19})|[0-9a-f]{4}((\\.[0-9a-f]{4}){2}|(\\.[0-9a-f]{4}){3}|(\\.[0-9a-f]{4}){9}))$"
);
pattern!(BASE64, "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})?$");
pattern!(
    HOST,
    r"(?i)^([a-z0-9\x{00a1}-\x{ffff}]([a-z0-9\x{00a1}-\x{ffff}_-]{0,62})?)(\.[a-z0-9\x{00a1}-\x{ffff}]([a-z0-9\x{00a1}-\x{ffff}_-]{0,62})?)*\.?$"
);
pattern!(DATE_TIME, r"^(\d{4}-\d{2}-\d{2})([Tt ])(\d{2}):(\d{2}):(\d{2})([.]\d+)?([Zz]|([+-])(\d{2}):(\d{2}))$");
pattern!(GO_DURATION, r"^[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))*$");
pattern!(
    WORD_DURATION,
    r"(?i)^\s*-?\d+(\.\d+)?\s*(ns|nano|nanosecond|us|µs|micro|microsecond|ms|milli|millisecond|s|sec|second|m|min|minute|h|hr|hour|d|day|w|wk|week)s?(\s*-?\d+(\.\d+)?\s*(ns|nano|nanosecond|us|µs|micro|microsecond|ms|milli|millisecond|s|sec|second|m|min|minute|h|hr|hour|d|day|w|wk|week)s?)*\s*$"
);
pattern!(EMAIL, r"^[^\s@<>(),;:\\]+@[^\s@<>(),;:\\]+$");

fn isbn10(value: &str) -> bool {
    let digits: Vec<char> = value.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    if digits.len() != 10 {
        return false;
    }
    let mut sum = 0;
    for (i, c) in digits.iter().enumerate() {
        let digit = match c.to_digit(10) {
            Some(d) => d,
            None if i == 9 && *c == 'X' => 10,
            None => return false,
        };
        sum += (u32::try_from(i).unwrap_or(0) + 1) * digit;
    }
    sum % 11 == 0
}

fn isbn13(value: &str) -> bool {
    let digits: Option<Vec<u32>> = value.chars().filter(|c| !matches!(c, '-' | ' ')).map(|c| c.to_digit(10)).collect();
    let Some(digits) = digits.filter(|d| d.len() == 13) else { return false };
    digits.iter().enumerate().map(|(i, d)| if i % 2 == 0 { *d } else { 3 * d }).sum::<u32>() % 10 == 0
}

fn uri(value: &str) -> bool {
    // Either a scheme and what follows, or an absolute path.
    let clean = !value.is_empty() && !value.chars().any(|c| c.is_control() || c == ' ');
    let scheme = value.split_once(':').is_some_and(|(scheme, rest)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
            && !rest.is_empty()
    });
    clean && (value.starts_with('/') || scheme)
}

fn cidr(value: &str) -> bool {
    let Some((ip, length)) = value.split_once('/') else { return false };
    let plain = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let (Ok(ip), Ok(length)) = (ip.parse::<IpAddr>(), length.parse::<u8>()) else { return false };
    plain && length <= if ip.is_ipv4() { 32 } else { 128 }
}

fn date_time(value: &str) -> bool {
    let Some(parts) = DATE_TIME.captures(value) else { return false };
    let two = |i: usize| parts.get(i).and_then(|m| m.as_str().parse::<u8>().ok()).unwrap_or(0);
    parts[1].parse::<Date>().is_ok() && two(3) <= 23 && two(4) <= 59 && two(5) <= 60 && two(9) <= 23 && two(10) <= 59
}

/// Whether a string has a format. Unknown formats are had by everything.
#[must_use]
pub fn fits(format: &str, value: &str) -> bool {
    match normalized(format).as_str() {
        "bsonobjectid" => matches(&OBJECT_ID, value),
        "uri" => uri(value),
        "email" => matches(&EMAIL, value),
        "hostname" => value.len() <= 255 && matches(&HOST, value) && value.parse::<IpAddr>().is_err(),
        "ipv4" => value.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => value.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(value),
        "mac" => matches(&MAC, value),
        "uuid" => matches(&UUID, value),
        "uuid3" => matches(&UUID3, value),
        "uuid4" => matches(&UUID4, value),
        "uuid5" => matches(&UUID5, value),
        "isbn" => isbn10(value) || isbn13(value),
        "isbn10" => isbn10(value),
        "isbn13" => isbn13(value),
        "creditcard" => {
            let digits: String = value.chars().filter(char::is_ascii_digit).collect();
            matches(&CREDIT_CARD, &digits)
        }
        "ssn" => matches(&SSN, value),
        "hexcolor" => matches(&HEX_COLOR, value),
        "rgbcolor" => {
            let parts = RGB_COLOR.captures(value);
            parts.is_some_and(|p| (1..=3).all(|i| p[i].parse::<u16>().is_ok_and(|n| n <= 255)))
        }
        "byte" => matches(&BASE64, value),
        "date" => value.len() == 10 && value.parse::<Date>().is_ok(),
        "duration" => matches(&GO_DURATION, value) || matches(&WORD_DURATION, value) || value == "0",
        "datetime" => date_time(value),
        "k8sshortname" => gantry_api::meta::names::dns1123_label(value, false).is_empty(),
        "k8slongname" => gantry_api::meta::names::dns1123_subdomain(value, false).is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_hold_what_they_say() {
        for (format, good, bad) in [
            ("uuid", "2f5c9d4e-7a3b-4c1d-8e2f-0a1b2c3d4e5f", "2f5c9d4e"),
            ("date-time", "2014-12-15T19:30:20.000Z", "2014-12-15T25:30:20Z"),
            ("date", "2014-12-15", "2014-13-15"),
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "01:02:03:04:05:ab", "01:02"),
            ("byte", "aGVsbG8=", "a"),
            ("duration", "1h30m", "soon"),
            ("duration", "2 days", "two days"),
            ("hexcolor", "#FFFFFF", "#GG"),
            ("rgbcolor", "rgb(1, 2, 255)", "rgb(1,2,256)"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("isbn10", "0321751043", "0321751044"),
            ("uri", "https://example.com/x", "no uri"),
            ("email", "a@b.example", "a"),
            ("hostname", "a.example", "-a"),
            ("k8s-short-name", "my-name", "My-Name"),
            ("creditcard", "4111 1111 1111 1111", "1234"),
        ] {
            assert!(known(format).is_some(), "{format}");
            assert!(fits(format, good), "{format}: {good}");
            assert!(!fits(format, bad), "{format}: {bad}");
        }
        assert!(known("int32").is_none() && fits("whatever", "x"));
    }
}
