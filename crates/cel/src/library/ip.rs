//! Kubernetes' IP addresses.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr};

use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::number::quote;
use crate::types::Type;
use crate::value::{EvalError, Object, Value};

type Result<T> = std::result::Result<T, EvalError>;

const NAME: &str = "net.IP";

/// An address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip(pub(super) IpAddr);

impl Object for Ip {
    fn type_name(&self) -> &str {
        NAME
    }

    fn cel_type(&self) -> Type {
        ip_type()
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Ip>().is_some_and(|other| self.0 == other.0)
    }

    fn size(&self) -> Option<u64> {
        Some(if self.0.is_ipv4() { 4 } else { 16 })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub(super) fn ip_type() -> Type {
    Type::opaque(NAME)
}

/// Reads an address as Go's `netip` does, with its words for what is wrong.
pub(super) fn parse_addr(text: &str) -> std::result::Result<IpAddr, String> {
    let wrong = |message: &str| format!("ParseAddr({}): {message}", quote(text));
    match text.chars().find(|c| matches!(c, '.' | ':' | '%')) {
        Some('.') => parse_v4(text).map(IpAddr::V4).map_err(|message| wrong(&message)),
        Some(':') => {
            let (address, zone) = text.split_once('%').map_or((text, None), |(a, z)| (a, Some(z)));
            if zone == Some("") {
                return Err(wrong("zone must be a non-empty string"));
            }
            address.parse().map(IpAddr::V6).map_err(|_| wrong(&v6_problem(address)))
        }
        Some(_) => Err(wrong("missing IPv6 address")),
        None => Err(wrong("unable to parse IP")),
    }
}

/// What is wrong with an IPv6 address that cannot be read.
fn v6_problem(address: &str) -> String {
    let at = |message: &str, rest: &str| format!("{message} (at {})", quote(rest));
    let (mut rest, mut ellipsis) = address.strip_prefix("::").map_or((address, false), |rest| (rest, true));
    let mut octets = 0;
    while octets < 16 {
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits > 4 {
            return at("each group must have 4 or less digits", rest);
        }
        if digits == 0 {
            return at("each colon-separated field must have at least one digit", rest);
        }
        if rest[digits..].starts_with('.') {
            if !ellipsis && octets != 12 {
                return at("embedded IPv4 address must replace the final 2 fields of the address", rest);
            }
            if octets > 12 {
                return at("too many hex fields to fit an embedded IPv4 at the end of the address", rest);
            }
            if let Err(problem) = parse_v4(rest) {
                return problem;
            }
            (rest, octets) = ("", octets + 4);
            break;
        }
        octets += 2;
        rest = &rest[digits..];
        if rest.is_empty() {
            break;
        }
        let Some(after) = rest.strip_prefix(':') else { return at("unexpected character, want colon", rest) };
        if after.is_empty() {
            return at("colon must be followed by more characters", rest);
        }
        rest = after;
        if let Some(after) = rest.strip_prefix(':') {
            if ellipsis {
                return at("multiple :: in address", rest);
            }
            ellipsis = true;
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
    }
    if !rest.is_empty() {
        return at("trailing garbage after address", rest);
    }
    if octets < 16 {
        return "address string too short".into();
    }
    "the :: must expand to at least one field of zeros".into()
}

fn parse_v4(text: &str) -> std::result::Result<Ipv4Addr, String> {
    let mut fields = [0u8; 4];
    let mut count = 0;
    let mut value = 0u32;
    let mut digits = 0;
    for (i, c) in text.char_indices() {
        let rest = || quote(&text[i..]);
        if let Some(digit) = c.to_digit(10) {
            if digits == 1 && value == 0 {
                return Err("IPv4 field has octet with leading zero".into());
            }
            value = value * 10 + digit;
            digits += 1;
            if value > 255 {
                return Err("IPv4 field has value >255".into());
            }
        } else if c == '.' {
            if i == 0 || i == text.len() - 1 || digits == 0 {
                return Err(format!("IPv4 field must have at least one digit (at {})", rest()));
            }
            if count == 3 {
                return Err("IPv4 address too long".into());
            }
            fields[count] = u8::try_from(value).unwrap_or(u8::MAX);
            count += 1;
            value = 0;
            digits = 0;
        } else {
            return Err(format!("unexpected character (at {})", rest()));
        }
    }
    if count < 3 {
        return Err("IPv4 address too short".into());
    }
    fields[3] = u8::try_from(value).unwrap_or(u8::MAX);
    Ok(Ipv4Addr::from(fields))
}

pub(super) fn parse(text: &str) -> Result<Ip> {
    let address = parse_addr(text).map_err(|error| {
        EvalError::new(format!("IP Address {} parse error during conversion from string: {error}", quote(text)))
    })?;
    if text.contains('%') {
        return fail(format!("IP address {} with zone value is not allowed", quote(text)));
    }
    if is_mapped(address) {
        return fail(format!("IPv4-mapped IPv6 address {} is not allowed", quote(text)));
    }
    Ok(Ip(address))
}

/// Whether it is an IPv4 address in the clothes of an IPv6 one.
pub(super) fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

fn is_link_local_unicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_link_local_multicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_global_unicast(address: &IpAddr) -> bool {
    !address.is_unspecified()
        && *address != IpAddr::V4(Ipv4Addr::BROADCAST)
        && !address.is_loopback()
        && !address.is_multicast()
        && !is_link_local_unicast(address)
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    use Type::{Bool, Int, String};
    let test = |name: &str, id: &str, of: fn(&IpAddr) -> bool| {
        let overload = Overload::member(id, vec![ip_type()], Bool, move |args| {
            let ip = args.first().and_then(Value::downcast::<Ip>).ok_or_else(EvalError::no_such_overload)?;
            Ok(Value::Bool(of(&ip.0)))
        });
        Function::new(name, vec![overload])
    };
    let text = |name: &str, id: &str, result: Type, of: fn(&str) -> Result<Value>| {
        let overload = Overload::global(id, vec![String], result, move |args| match args {
            [Value::String(text)] => of(text),
            _ => mismatch(),
        });
        Function::new(name, vec![overload])
    };
    let of_ip = |id: &str, result: Type, member: bool, of: fn(&Ip) -> Value| {
        let function = move |args: &[Value]| {
            args.first().and_then(Value::downcast::<Ip>).map(of).ok_or_else(EvalError::no_such_overload)
        };
        if member {
            Overload::member(id, vec![ip_type()], result, function)
        } else {
            Overload::global(id, vec![ip_type()], result, function)
        }
    };
    vec![
        text("ip", "string_to_ip", ip_type(), |text| parse(text).map(Value::object)),
        text("isIP", "is_ip", Bool, |text| Ok(Value::Bool(parse(text).is_ok()))),
        text("ip.isCanonical", "ip_is_canonical", Bool, |text| {
            parse(text).map(|ip| Value::Bool(ip.0.to_string() == text))
        }),
        Function::new(
            "family",
            vec![of_ip("ip_family", Int, true, |ip| Value::Int(if ip.0.is_ipv4() { 4 } else { 6 }))],
        ),
        Function::new("string", vec![of_ip("ip_to_string", String, false, |ip| Value::from(ip.0.to_string()))]),
        test("isUnspecified", "ip_is_unspecified", IpAddr::is_unspecified),
        test("isLoopback", "ip_is_loopback", IpAddr::is_loopback),
        test("isLinkLocalMulticast", "ip_is_link_local_multicast", is_link_local_multicast),
        test("isLinkLocalUnicast", "ip_is_link_local_unicast", is_link_local_unicast),
        test("isGlobalUnicast", "ip_is_global_unicast", is_global_unicast),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_as_go_says_it() {
        for (text, message) in [
            ("2001:db8:::68", "each colon-separated field must have at least one digit (at \":68\")"),
            ("1::2::3", "multiple :: in address (at \":3\")"),
            ("12345::", "each group must have 4 or less digits (at \"12345::\")"),
            ("1:2", "address string too short"),
            ("1:2:3:4:5:6:7:8:9", "trailing garbage after address (at \"9\")"),
            ("1:2:3:4::5:6:7:8", "the :: must expand to at least one field of zeros"),
            ("1.2.3", "IPv4 address too short"),
            ("1.2.3.4.5", "IPv4 address too long"),
            ("1.2.03.4", "IPv4 field has octet with leading zero"),
            ("1..2.3", "IPv4 field must have at least one digit (at \".2.3\")"),
            ("1.2.3.x", "unexpected character (at \"x\")"),
            ("x", "unable to parse IP"),
        ] {
            assert_eq!(parse_addr(text).unwrap_err(), format!("ParseAddr(\"{text}\"): {message}"));
        }
    }
}
