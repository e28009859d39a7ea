//! Conversions between types.

use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::number;
use crate::time::{Duration, Timestamp};
use crate::types::Type;
use crate::value::{EvalError, Value};

type Result = std::result::Result<Value, EvalError>;

const TWO_63: f64 = 9_223_372_036_854_775_808.0;
const TWO_64: f64 = TWO_63 * 2.0;

/// A conversion's overloads: their ids and what they convert from.
fn conversion(name: &str, result: &Type, from: &[(&str, Type)], convert: fn(&Value) -> Result) -> Function {
    let overloads = from
        .iter()
        .map(|(id, t)| {
            Overload::global(id, vec![t.clone()], result.clone(), move |args| match args {
                [value] => convert(value),
                _ => mismatch(),
            })
        })
        .collect();
    Function::new(name, overloads)
}

/// What the reference answers when a text cannot be read.
fn unreadable(value: &Value, to: &str) -> Result {
    fail(format!("type conversion error from '{}' to '{to}'", value.type_name()))
}

/// All conversions.
pub(crate) fn functions() -> Vec<Function> {
    use Type::{Bool, Bytes, Double, Int, String, Uint};
    let (duration, timestamp) = (Type::Duration, Type::Timestamp);
    let a = || Type::param("A");
    vec![
        conversion("bool", &Bool, &[("bool_to_bool", Bool), ("string_to_bool", String)], to_bool),
        conversion("bytes", &Bytes, &[("bytes_to_bytes", Bytes), ("string_to_bytes", String)], to_bytes),
        conversion(
            "double",
            &Double,
            &[
                ("double_to_double", Double),
                ("int64_to_double", Int),
                ("string_to_double", String),
                ("uint64_to_double", Uint),
            ],
            to_double,
        ),
        conversion(
            "duration",
            &duration,
            &[("duration_to_duration", duration.clone()), ("string_to_duration", String)],
            to_duration,
        ),
        conversion(
            "int",
            &Int,
            &[
                ("int64_to_int64", Int),
                ("double_to_int64", Double),
                ("duration_to_int64", duration.clone()),
                ("string_to_int64", String),
                ("timestamp_to_int64", timestamp.clone()),
                ("uint64_to_int64", Uint),
            ],
            to_int,
        ),
        conversion(
            "string",
            &String,
            &[
                ("string_to_string", String),
                ("bool_to_string", Bool),
                ("bytes_to_string", Bytes),
                ("double_to_string", Double),
                ("duration_to_string", duration.clone()),
                ("int64_to_string", Int),
                ("timestamp_to_string", timestamp.clone()),
                ("uint64_to_string", Uint),
            ],
            to_string,
        ),
        conversion(
            "timestamp",
            &timestamp,
            &[
                ("timestamp_to_timestamp", timestamp.clone()),
                ("int64_to_timestamp", Int),
                ("string_to_timestamp", String),
            ],
            to_timestamp,
        ),
        conversion(
            "uint",
            &Uint,
            &[
                ("uint64_to_uint64", Uint),
                ("double_to_uint64", Double),
                ("int64_to_uint64", Int),
                ("string_to_uint64", String),
            ],
            to_uint,
        ),
        Function::new("dyn", vec![Overload::global("to_dyn", vec![a()], Type::Dyn, |args| Ok(args[0].clone()))]),
        Function::new(
            "type",
            vec![Overload::global("type", vec![a()], Type::type_of(a()), |args| Ok(Value::Type(args[0].type_of())))],
        ),
    ]
}

fn to_bool(value: &Value) -> Result {
    match value {
        Value::Bool(_) => Ok(value.clone()),
        Value::String(s) => match &**s {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
            _ => unreadable(value, "bool"),
        },
        _ => mismatch(),
    }
}

fn to_bytes(value: &Value) -> Result {
    match value {
        Value::Bytes(_) => Ok(value.clone()),
        Value::String(s) => Ok(Value::Bytes(s.as_bytes().into())),
        _ => mismatch(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "the language rounds")]
fn to_double(value: &Value) -> Result {
    Ok(Value::Double(match value {
        Value::Double(d) => *d,
        Value::Int(i) => *i as f64,
        Value::Uint(u) => *u as f64,
        Value::String(s) => match number::parse(s) {
            Some(d) => d,
            None => return unreadable(value, "double"),
        },
        _ => return mismatch(),
    }))
}

fn to_duration(value: &Value) -> Result {
    match value {
        Value::Duration(_) => Ok(value.clone()),
        Value::String(s) => {
            Duration::parse(s).map_or_else(|| unreadable(value, "google.protobuf.Duration"), |d| Ok(Value::Duration(d)))
        }
        _ => mismatch(),
    }
}

/// Decimal digits with a sign, as Go reads integers.
fn decimal(text: &str, sign: bool) -> Option<&str> {
    let digits = if sign { text.strip_prefix(['+', '-']).unwrap_or(text) } else { text };
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

fn to_int(value: &Value) -> Result {
    let overflow = || fail("integer overflow");
    match value {
        Value::Int(_) => Ok(value.clone()),
        #[allow(clippy::cast_possible_truncation, reason = "the range was checked")]
        Value::Double(d) => {
            // The bounds themselves are refused, as the reference does.
            if d.is_nan() || *d <= -TWO_63 || *d >= TWO_63 { overflow() } else { Ok(Value::Int(*d as i64)) }
        }
        Value::Uint(u) => i64::try_from(*u).map_or_else(|_| overflow(), |i| Ok(Value::Int(i))),
        Value::Duration(d) => Ok(Value::Int(d.nanos())),
        Value::Timestamp(t) => Ok(Value::Int(t.seconds())),
        Value::String(s) => match decimal(s, true).and_then(|text| text.parse().ok()) {
            Some(i) => Ok(Value::Int(i)),
            None => unreadable(value, "int"),
        },
        _ => mismatch(),
    }
}

fn to_uint(value: &Value) -> Result {
    let overflow = || fail("unsigned integer overflow");
    match value {
        Value::Uint(_) => Ok(value.clone()),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
        Value::Double(d) => {
            if (0.0..TWO_64).contains(d) {
                Ok(Value::Uint(*d as u64))
            } else {
                overflow()
            }
        }
        Value::Int(i) => u64::try_from(*i).map_or_else(|_| overflow(), |u| Ok(Value::Uint(u))),
        Value::String(s) => match decimal(s, false).and_then(|text| text.parse().ok()) {
            Some(u) => Ok(Value::Uint(u)),
            None => unreadable(value, "uint"),
        },
        _ => mismatch(),
    }
}

fn to_timestamp(value: &Value) -> Result {
    match value {
        Value::Timestamp(_) => Ok(value.clone()),
        Value::Int(i) => Ok(Value::Timestamp(Timestamp::new(*i, 0)?)),
        Value::String(s) => match Timestamp::parse(s) {
            Some(t) => Ok(Value::Timestamp(t)),
            None => unreadable(value, "google.protobuf.Timestamp"),
        },
        _ => mismatch(),
    }
}

/// `string(value)`, which formatting uses as well.
pub(crate) fn to_string(value: &Value) -> Result {
    Ok(Value::from(match value {
        Value::String(_) => return Ok(value.clone()),
        Value::Bool(b) => b.to_string(),
        Value::Bytes(b) => match std::str::from_utf8(b) {
            Ok(text) => text.to_owned(),
            Err(_) => return fail("invalid UTF-8 in bytes, cannot convert to string"),
        },
        Value::Double(d) => number::shortest(*d),
        Value::Int(i) => i.to_string(),
        Value::Uint(u) => u.to_string(),
        Value::Duration(d) => d.to_string(),
        Value::Timestamp(t) => t.to_string(),
        Value::Type(t) => t.name().to_owned(),
        _ => return mismatch(),
    }))
}
