//! Times and durations between their text in JSON and their numbers on the wire.

use std::fmt::Write as _;

const DAY: i64 = 86_400;
/// Go's zero time, which stands for no time at all.
const ZERO_TIME: i64 = -62_135_596_800;

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is the last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date that is this many days after 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted - era * 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// Seconds since 1970 and nanoseconds of an RFC 3339 time.
pub(super) fn parse_time(text: &str) -> Option<(i64, i64)> {
    let number = |from: usize, to: usize| text.get(from..to).and_then(|t| t.parse::<i64>().ok());
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
        let digits = &fraction[..end.min(9)];
        nanos = digits.parse::<i64>().ok()? * 10i64.pow(9 - u32::try_from(digits.len()).ok()?);
        rest = &fraction[end..];
    }
    let offset = match rest {
        "Z" => 0,
        _ => {
            let sign = if rest.starts_with('-') { -1 } else { 1 };
            let part = |from: usize, to: usize| rest.get(from..to).and_then(|t| t.parse::<i64>().ok());
            sign * (part(1, 3)? * 3600 + part(4, 6)? * 60)
        }
    };
    Some((days(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset, nanos))
}

/// RFC 3339 of a time; nothing for the times that stand for none and those that RFC 3339 cannot say.
pub(super) fn time(seconds: i64, nanos: i64, micro: bool) -> Option<String> {
    if (seconds, nanos) == (0, 0) || seconds == ZERO_TIME || !(-62_167_219_200..=253_402_300_799).contains(&seconds) {
        return None;
    }
    let (year, month, day) = date(seconds.div_euclid(DAY));
    let of_day = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let mut out = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if micro {
        write!(out, ".{:06}", nanos.clamp(0, 999_999_999) / 1000).ok()?;
    }
    out.push('Z');
    Some(out)
}

const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Nanoseconds of a duration as Go writes it (`1h2m3.5s`).
pub(super) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number * UNITS.iter().find(|(unit, _)| *unit == &rest[..end])?.1;
        rest = &rest[end..];
    }
    let total = total.round() as i64;
    Some(if negative { -total } else { total })
}

/// A duration as Go writes it.
pub(super) fn duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let decimal = |whole: u64, fraction: u64, width: usize, unit: &str| {
        let fraction = format!("{fraction:0width$}");
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() { format!("{whole}{unit}") } else { format!("{whole}.{fraction}{unit}") }
    };
    let text = match n {
        0..1_000 => format!("{n}ns"),
        1_000..1_000_000 => decimal(n / 1_000, n % 1_000, 3, "µs"),
        1_000_000..1_000_000_000 => decimal(n / 1_000_000, n % 1_000_000, 6, "ms"),
        _ => {
            let (seconds, fraction) = (n / 1_000_000_000, n % 1_000_000_000);
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let hours_text = if hours > 0 { format!("{hours}h") } else { String::new() };
            let minutes_text = if hours > 0 || minutes > 0 { format!("{minutes}m") } else { String::new() };
            format!("{hours_text}{minutes_text}{}", decimal(seconds % 60, fraction, 9, "s"))
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back_as_written() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:01Z", 1, 0),
            ("2026-11-21T13:56:53Z", 1_795_269_413, 0),
            ("2024-02-29T23:59:59Z", 1_709_251_199, 0),
            ("0001-01-01T00:00:01Z", ZERO_TIME + 1, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
        ] {
            assert_eq!(parse_time(text), Some((seconds, nanos)), "{text}");
            assert_eq!(time(seconds, nanos, false).as_deref(), Some(text));
        }
        assert_eq!(parse_time("2026-01-02T03:04:05.678901Z"), Some((1_767_323_045, 678_901_000)));
        assert_eq!(time(1_767_323_045, 678_901_234, true).as_deref(), Some("2026-01-02T03:04:05.678901Z"));
        assert_eq!(parse_time("2026-01-02T03:04:05+01:30"), parse_time("2026-01-02T01:34:05Z"));
        for bad in ["", "2026", "2026-13-01T00:00:00Z", "2026-01-02T03:04:05", "äöüäöüäöüäöü"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
        assert_eq!((time(0, 0, false), time(ZERO_TIME, 0, true), time(i64::MAX, 0, false)), (None, None, None));
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (text, nanos) in [
            ("10s", 10_000_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("1h0m0s", 3_600_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5ms", 1_500_000),
            ("15µs", 15_000),
            ("7ns", 7),
            ("-2s", -2_000_000_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(nanos), text);
            assert_eq!(parse_duration(text), Some(nanos), "{text}");
        }
        for bad in ["", "-", "5", "5x", "s", "1..2s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
