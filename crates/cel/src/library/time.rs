//! Parts of points and spans of time.

use super::mismatch;
use crate::decls::{Function, Overload};
use crate::time::Civil;
use crate::types::Type;
use crate::value::Value;

/// A part of a point in time, without and with a time zone.
fn part(id: &str, of: fn(&Civil, i64) -> i64) -> Vec<Overload> {
    let take = move |args: &[Value]| {
        let (moment, zone) = match args {
            [Value::Timestamp(moment)] => (*moment, "UTC"),
            [Value::Timestamp(moment), Value::String(zone)] => (*moment, &**zone),
            _ => return mismatch(),
        };
        let civil = moment.civil(moment.zone_offset(zone)?);
        Ok(Value::Int(of(&civil, i64::from(moment.subsec_nanos()))))
    };
    vec![
        Overload::member(id, vec![Type::Timestamp], Type::Int, take),
        Overload::member(&format!("{id}_with_tz"), vec![Type::Timestamp, Type::String], Type::Int, take),
    ]
}

/// A span counted in whole units of so many nanoseconds.
fn span(id: &str, unit: i64) -> Overload {
    Overload::member(id, vec![Type::Duration], Type::Int, move |args| match args {
        [Value::Duration(d)] => Ok(Value::Int(d.nanos() / unit)),
        _ => mismatch(),
    })
}

/// All accessors.
pub(crate) fn functions() -> Vec<Function> {
    let of = |name: &str, id: &str, take: fn(&Civil, i64) -> i64| Function::new(name, part(id, take));
    let with = |name: &str, id: &str, take: fn(&Civil, i64) -> i64, span_id: &str, unit: i64| {
        let mut overloads = part(id, take);
        overloads.push(span(span_id, unit));
        Function::new(name, overloads)
    };
    vec![
        of("getFullYear", "timestamp_to_year", |c, _| c.year),
        of("getMonth", "timestamp_to_month", |c, _| c.month - 1),
        of("getDayOfYear", "timestamp_to_day_of_year", |c, _| c.day_of_year),
        of("getDayOfMonth", "timestamp_to_day_of_month", |c, _| c.day - 1),
        of("getDate", "timestamp_to_day_of_month_1_based", |c, _| c.day),
        of("getDayOfWeek", "timestamp_to_day_of_week", |c, _| c.weekday),
        with("getHours", "timestamp_to_hours", |c, _| c.hour, "duration_to_hours", 3_600_000_000_000),
        with("getMinutes", "timestamp_to_minutes", |c, _| c.minute, "duration_to_minutes", 60_000_000_000),
        with("getSeconds", "timestamp_to_seconds", |c, _| c.second, "duration_to_seconds", 1_000_000_000),
        with(
            "getMilliseconds",
            "timestamp_to_milliseconds",
            |_, nanos| nanos / 1_000_000,
            "duration_to_milliseconds",
            1_000_000,
        ),
    ]
}
