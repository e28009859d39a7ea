//! Kubernetes' networks in CIDR notation.

use std::any::Any;
use std::net::IpAddr;

use super::ip::{self, Ip, ip_type};
use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::number::quote;
use crate::types::Type;
use crate::value::{EvalError, Object, Value};

type Result<T> = std::result::Result<T, EvalError>;

const NAME: &str = "net.CIDR";
const PARSE_ERROR: &str = "network address parse error during conversion from string";

/// An address, as written, and how many of its leading bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl Object for Cidr {
    fn type_name(&self) -> &str {
        NAME
    }

    fn cel_type(&self) -> Type {
        cidr_type()
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Cidr>().is_some_and(|other| self == other)
    }

    fn size(&self) -> Option<u64> {
        Some(u64::from(self.bits).div_ceil(8))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub(super) fn cidr_type() -> Type {
    Type::opaque(NAME)
}

/// The address as a number, with its width in bits.
fn number(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

impl Cidr {
    fn parse(text: &str) -> Result<Cidr> {
        let wrong = |message: &str| fail(format!("{PARSE_ERROR}: netip.ParsePrefix({}): {message}", quote(text)));
        let Some((address, bits)) = text.rsplit_once('/') else { return wrong("no '/'") };
        let address = match ip::parse_addr(address) {
            Ok(address) => address,
            Err(error) => return wrong(&error),
        };
        if text.contains('%') {
            return wrong("IPv6 zones cannot be present in a prefix");
        }
        let plain = bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
        let Some(bits) = bits.parse::<u32>().ok().filter(|_| plain) else {
            return wrong(&format!("bad bits after slash: {}", quote(bits)));
        };
        let bits = match u8::try_from(bits) {
            Ok(bits) if bits <= number(address).1 => bits,
            _ => return wrong("prefix length out of range"),
        };
        if ip::is_mapped(address) {
            return fail(format!("IPv4-mapped IPv6 address {} is not allowed", quote(text)));
        }
        Ok(Cidr { address, bits })
    }

    /// The bits that name the network.
    fn network(self) -> (u128, u8) {
        let (value, width) = number(self.address);
        (value.checked_shr(u32::from(width - self.bits)).unwrap_or(0), width)
    }

    fn contains(self, address: IpAddr) -> bool {
        Cidr { address, bits: self.bits.min(number(address).1) }.network() == self.network()
    }

    fn masked(self) -> Cidr {
        let (network, width) = self.network();
        let value = network.checked_shl(u32::from(width - self.bits)).unwrap_or(0);
        let address = match self.address {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(value).unwrap_or(0).into()),
            IpAddr::V6(_) => IpAddr::V6(value.into()),
        };
        Cidr { address, bits: self.bits }
    }
}

fn this(args: &[Value]) -> Result<Cidr> {
    args.first().and_then(Value::downcast::<Cidr>).copied().ok_or_else(EvalError::no_such_overload)
}

/// What the reference makes of a text that should have been a network.
fn convert(text: &str) -> Result<Cidr> {
    Cidr::parse(text).map_err(|error| EvalError::new(format!("{PARSE_ERROR}: {error}")))
}

fn contains_ip(args: &[Value]) -> Result<Value> {
    let other = match args {
        [_, Value::String(text)] => ip::parse(text)?,
        [_, other] => *other.downcast::<Ip>().ok_or_else(EvalError::no_such_overload)?,
        _ => return mismatch(),
    };
    Ok(Value::Bool(this(args)?.contains(other.0)))
}

fn contains_cidr(args: &[Value]) -> Result<Value> {
    let other = match args {
        [_, Value::String(text)] => convert(text)?,
        [_, other] => *other.downcast::<Cidr>().ok_or_else(EvalError::no_such_overload)?,
        _ => return mismatch(),
    };
    let cidr = this(args)?;
    Ok(Value::Bool(cidr.bits <= other.bits && cidr.contains(other.address)))
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    use Type::{Bool, Int, String};
    let cidr = cidr_type;
    vec![
        Function::new(
            "cidr",
            vec![Overload::global("string_to_cidr", vec![String], cidr(), |args| match args {
                [Value::String(text)] => convert(text).map(Value::object),
                _ => mismatch(),
            })],
        ),
        Function::new(
            "isCIDR",
            vec![Overload::global("is_cidr", vec![String], Bool, |args| match args {
                [Value::String(text)] => Ok(Value::Bool(Cidr::parse(text).is_ok())),
                _ => mismatch(),
            })],
        ),
        Function::new(
            "containsIP",
            vec![
                Overload::member("cidr_contains_ip_string", vec![cidr(), String], Bool, contains_ip),
                Overload::member("cidr_contains_ip_ip", vec![cidr(), ip_type()], Bool, contains_ip),
            ],
        ),
        Function::new(
            "containsCIDR",
            vec![
                Overload::member("cidr_contains_cidr_string", vec![cidr(), String], Bool, contains_cidr),
                Overload::member("cidr_contains_cidr", vec![cidr(), cidr()], Bool, contains_cidr),
            ],
        ),
        Function::new(
            "ip",
            vec![Overload::member("cidr_ip", vec![cidr()], ip_type(), |args| {
                Ok(Value::object(Ip(this(args)?.address)))
            })],
        ),
        Function::new(
            "prefixLength",
            vec![Overload::member("cidr_prefix_length", vec![cidr()], Int, |args| {
                Ok(Value::Int(this(args)?.bits.into()))
            })],
        ),
        Function::new(
            "masked",
            vec![Overload::member("cidr_masked", vec![cidr()], cidr(), |args| Ok(Value::object(this(args)?.masked())))],
        ),
        Function::new(
            "string",
            vec![Overload::global("cidr_to_string", vec![cidr()], String, |args| {
                let cidr = this(args)?;
                Ok(Value::from(format!("{}/{}", cidr.address, cidr.bits)))
            })],
        ),
    ]
}
