//! Rules for addresses and ranges in fields that never accepted sloppy ones, and warnings for those that did.
//!
//! Source: `k8s.io/apimachinery/pkg/util/validation` (`IsValidIP`, `IsValidCIDR`, `GetWarningsForCIDR`), KEP-4858.

use crate::meta::field::Path;
use crate::meta::names;
use std::net::IpAddr;

/// Whether the address part is written as its parser of today would have it, and is no IPv4 address in IPv6 clothing.
enum Form {
    Strict,
    LeadingZeros,
    Mapped,
}

fn form(address: &str) -> Form {
    match address.parse::<IpAddr>() {
        Err(_) => Form::LeadingZeros,
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => Form::Mapped,
        Ok(_) => Form::Strict,
    }
}

/// The range's first address.
fn network(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        // A mapped address keeps the length of its IPv6 form.
        IpAddr::V4(v4) => {
            let bits = if bits > 32 { bits.saturating_sub(96) } else { bits };
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

/// Errors of an address that must be in canonical form.
pub(super) fn strict_ip(value: &str) -> Vec<String> {
    let Some(ip) = names::parse_ip(value) else { return names::ip_address(value) };
    let text = match form(value) {
        Form::LeadingZeros => "must not have leading 0s".to_owned(),
        Form::Mapped => "must not be an IPv4-mapped IPv6 address".to_owned(),
        Form::Strict if ip.to_string() != value => format!("must be in canonical form (\"{ip}\")"),
        Form::Strict => return Vec::new(),
    };
    vec![text]
}

/// Errors of a range that must be in canonical form.
pub(super) fn strict_cidr(value: &str) -> Vec<String> {
    let (Some((ip, bits)), Some((address, length))) = (names::parse_cidr(value), value.split_once('/')) else {
        return names::cidr(value);
    };
    let first = network(ip, bits);
    let text = match form(address) {
        Form::Mapped => "must not have an IPv4-mapped IPv6 address".to_owned(),
        Form::LeadingZeros => "must not have leading 0s in IP or prefix length".to_owned(),
        Form::Strict if length.len() > 1 && length.starts_with('0') => {
            "must not have leading 0s in IP or prefix length".to_owned()
        }
        Form::Strict if first != ip => "must not have bits set beyond the prefix length".to_owned(),
        Form::Strict if format!("{first}/{bits}") != value => {
            format!("must be in canonical form (\"{first}/{bits}\")")
        }
        Form::Strict => return Vec::new(),
    };
    vec![text]
}

/// Warnings for a range that is ambiguous, that a stricter release would refuse, or that is not in canonical form.
pub(super) fn cidr_warnings(path: &Path, value: &str) -> Vec<String> {
    let (Some((ip, bits)), Some((address, length))) = (names::parse_cidr(value), value.split_once('/')) else {
        return Vec::new();
    };
    let first = network(ip, bits);
    let mut out = Vec::new();
    if first != ip {
        let most = if ip.is_ipv6() { 128 } else { 32 };
        out.push(format!(
            "{path}: CIDR value {value:?} is ambiguous in this context (should be \"{first}/{bits}\" or \
             \"{ip}/{most}\"?)"
        ));
    }
    let zeros = length.len() > 1 && length.starts_with('0');
    if zeros || !matches!(form(address), Form::Strict) {
        out.push(format!(
            "{path}: non-standard CIDR value {value:?} will be considered invalid in a future Kubernetes release: \
             use \"{first}/{bits}\""
        ));
    } else if out.is_empty() && ip.is_ipv6() && format!("{ip}/{bits}") != value {
        out.push(format!("{path}: IPv6 CIDR value {value:?} should be in RFC 5952 canonical format (\"{ip}/{bits}\")"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_canonical_form() {
        for (value, want) in [
            ("10.0.0.1", ""),
            ("2001:db8::1", ""),
            ("10.0.00.1", "must not have leading 0s"),
            ("::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
            ("2001:DB8::1", "must be in canonical form (\"2001:db8::1\")"),
            ("x", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        ] {
            assert_eq!(strict_ip(value).concat(), want, "{value}");
        }
    }

    #[test]
    fn ranges_in_canonical_form() {
        for (value, want) in [
            ("10.0.0.0/8", ""),
            ("0.0.0.0/0", ""),
            ("2001:db8::/64", ""),
            ("::/0", ""),
            ("10.0.0.1/8", "must not have bits set beyond the prefix length"),
            ("10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
            ("010.0.0.0/8", "must not have leading 0s in IP or prefix length"),
            ("::ffff:10.0.0.0/104", "must not have an IPv4-mapped IPv6 address"),
            ("2001:DB8::/64", "must be in canonical form (\"2001:db8::/64\")"),
            ("10.0.0.0", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        ] {
            assert_eq!(strict_cidr(value).concat(), want, "{value}");
        }
    }

    #[test]
    fn warnings_of_ranges() {
        let path = Path::new("p");
        assert_eq!(
            cidr_warnings(&path, "192.12.2.8/24"),
            ["p: CIDR value \"192.12.2.8/24\" is ambiguous in this context (should be \"192.12.2.0/24\" or \
              \"192.12.2.8/32\"?)"]
        );
        assert_eq!(
            cidr_warnings(&path, "192.12.2.0/024"),
            ["p: non-standard CIDR value \"192.12.2.0/024\" will be considered invalid in a future Kubernetes \
                 release: \
              use \"192.12.2.0/24\""]
        );
        assert_eq!(
            cidr_warnings(&path, "2001:db8:0:0::/64"),
            ["p: IPv6 CIDR value \"2001:db8:0:0::/64\" should be in RFC 5952 canonical format (\"2001:db8::/64\")"]
        );
        assert!(cidr_warnings(&path, "10.0.0.0/8").is_empty());
    }
}
