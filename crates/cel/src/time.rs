//! Points and spans of time as the language has them: years 1 to 9999, nanoseconds, Go's text formats.

use std::fmt;

use crate::value::EvalError;

/// Seconds of 0001-01-01T00:00:00Z.
const MIN_SECONDS: i64 = -62_135_596_800;
/// Seconds of 9999-12-31T23:59:59Z.
const MAX_SECONDS: i64 = 253_402_300_799;
const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// A point in time with nanoseconds, between the years 1 and 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    seconds: i64,
    nanos: u32,
}

/// A span of time in nanoseconds, about 292 years in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration {
    nanos: i64,
}

/// A date and a time of day, as some clock shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Civil {
    pub(crate) year: i64,
    pub(crate) month: i64,
    pub(crate) day: i64,
    pub(crate) hour: i64,
    pub(crate) minute: i64,
    pub(crate) second: i64,
    pub(crate) weekday: i64,
    /// Counted from zero.
    pub(crate) day_of_year: i64,
}

fn timestamp_overflow() -> EvalError {
    EvalError::new("timestamp overflow")
}

fn duration_overflow() -> EvalError {
    EvalError::new("duration overflow")
}

impl Timestamp {
    /// A point in time from seconds since 1970 and nanoseconds below one second.
    ///
    /// # Errors
    /// `timestamp overflow` outside of the years 1 to 9999.
    pub fn new(seconds: i64, nanos: u32) -> Result<Timestamp, EvalError> {
        if (MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
            Ok(Timestamp { seconds, nanos })
        } else {
            Err(timestamp_overflow())
        }
    }

    /// Reads RFC 3339. `None` when the text is none, or outside of the years 1 to 9999.
    #[must_use]
    pub fn parse(text: &str) -> Option<Timestamp> {
        let bytes = text.as_bytes();
        let number = |range: std::ops::Range<usize>| -> Option<i64> {
            let part = bytes.get(range)?;
            part.iter().all(u8::is_ascii_digit).then(|| part.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')))
        };
        let at = |index: usize, expected: u8| (bytes.get(index) == Some(&expected)).then_some(());
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        at(4, b'-')?;
        at(7, b'-')?;
        at(10, b'T')?;
        at(13, b':')?;
        at(16, b':')?;
        if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
            return None;
        }
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let mut index = 19;
        let mut nanos = 0u32;
        if matches!(bytes.get(index), Some(b'.' | b',')) {
            let start = index + 1;
            index = start;
            while bytes.get(index).is_some_and(u8::is_ascii_digit) {
                index += 1;
            }
            if index == start {
                return None;
            }
            let mut scale = 100_000_000;
            for digit in &bytes[start..index] {
                nanos += u32::from(digit - b'0') * scale;
                scale /= 10;
            }
        }
        let offset = match bytes.get(index)? {
            b'Z' => {
                index += 1;
                0
            }
            sign @ (b'+' | b'-') => {
                let (hours, minutes) = (number(index + 1..index + 3)?, number(index + 4..index + 6)?);
                at(index + 3, b':')?;
                if hours > 24 || minutes >= 60 {
                    return None;
                }
                index += 6;
                (hours * 60 + minutes) * if *sign == b'-' { -60 } else { 60 }
            }
            _ => return None,
        };
        if index != bytes.len() {
            return None;
        }
        let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
        Timestamp::new(seconds, nanos).ok()
    }

    /// Reads a date, `2006-01-02`, as its midnight.
    #[must_use]
    pub fn parse_date(text: &str) -> Option<Timestamp> {
        if text.len() == 10 { Timestamp::parse(&format!("{text}T00:00:00Z")) } else { None }
    }

    /// Whole seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds within the second.
    #[must_use]
    pub fn subsec_nanos(self) -> u32 {
        self.nanos
    }

    pub(crate) fn is_zero(self) -> bool {
        self.seconds == MIN_SECONDS && self.nanos == 0
    }

    fn total_nanos(self) -> i128 {
        i128::from(self.seconds) * i128::from(NANOS_PER_SECOND) + i128::from(self.nanos)
    }

    /// The point in time `duration` later.
    ///
    /// # Errors
    /// `timestamp overflow`.
    pub fn plus(self, duration: Duration) -> Result<Timestamp, EvalError> {
        self.shifted(i128::from(duration.nanos))
    }

    /// The point in time `duration` earlier.
    ///
    /// # Errors
    /// `timestamp overflow`.
    pub fn minus(self, duration: Duration) -> Result<Timestamp, EvalError> {
        self.shifted(-i128::from(duration.nanos))
    }

    fn shifted(self, by: i128) -> Result<Timestamp, EvalError> {
        let total = self.total_nanos() + by;
        let seconds = total.div_euclid(i128::from(NANOS_PER_SECOND));
        let nanos = total.rem_euclid(i128::from(NANOS_PER_SECOND));
        let seconds = i64::try_from(seconds).map_err(|_| timestamp_overflow())?;
        Timestamp::new(seconds, u32::try_from(nanos).unwrap_or(0))
    }

    /// The span from `other` to this.
    ///
    /// # Errors
    /// `duration overflow`, from about 292 years on.
    pub fn since(self, other: Timestamp) -> Result<Duration, EvalError> {
        let nanos = i64::try_from(self.total_nanos() - other.total_nanos()).map_err(|_| duration_overflow())?;
        Ok(Duration { nanos })
    }

    /// What a clock `offset` seconds east of Greenwich shows.
    pub(crate) fn civil(self, offset: i64) -> Civil {
        let local = self.seconds + offset;
        let days = local.div_euclid(86_400);
        let time = local.rem_euclid(86_400);
        let (year, month, day) = civil_from_days(days);
        Civil {
            year,
            month,
            day,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
            weekday: (days + 4).rem_euclid(7),
            day_of_year: days - days_from_civil(year, 1, 1),
        }
    }

    /// How far east of Greenwich the clocks of a zone are at this moment, in seconds. Zones are names of the tz
    /// database or offsets such as `-02:30`.
    ///
    /// # Errors
    /// As Go words them, for unknown names and offsets out of range.
    pub(crate) fn zone_offset(self, zone: &str) -> Result<i64, EvalError> {
        if let Some((hours, minutes)) = zone.split_once(':') {
            let hours_of = atoi(hours)?;
            let minutes_of = atoi(minutes)?;
            if !(0..=59).contains(&minutes_of) {
                return Err(EvalError::new(format!("timezone offset minutes out of range [0, 59]: {zone}")));
            }
            let minutes = if zone.starts_with('-') { hours_of * 60 - minutes_of } else { hours_of * 60 + minutes_of };
            return Ok(minutes * 60);
        }
        if matches!(zone, "" | "UTC" | "Local") {
            return Ok(0);
        }
        let zone_of = jiff::tz::TimeZone::get(zone).map_err(|_| EvalError::new(format!("unknown time zone {zone}")))?;
        let moment = jiff::Timestamp::from_second(self.seconds).unwrap_or(jiff::Timestamp::MAX);
        Ok(i64::from(zone_of.to_offset(moment).seconds()))
    }
}

/// `strconv.Atoi` for the few digits of an offset.
fn atoi(text: &str) -> Result<i64, EvalError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(EvalError::new(format!("strconv.Atoi: parsing {}: invalid syntax", crate::number::quote(text))));
    }
    if digits.len() > 9 {
        return Err(EvalError::new(format!(
            "strconv.Atoi: parsing {}: value out of range",
            crate::number::quote(text)
        )));
    }
    let value: i64 = digits.parse().unwrap_or(0);
    Ok(if text.starts_with('-') { -value } else { value })
}

fn is_leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970 of a date of the proleptic Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = self.civil(0);
        write!(f, "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}", c.year, c.month, c.day, c.hour, c.minute, c.second)?;
        if self.nanos > 0 {
            let fraction = format!("{:09}", self.nanos);
            write!(f, ".{}", fraction.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

impl Duration {
    /// A span of so many nanoseconds.
    #[must_use]
    pub fn from_nanos(nanos: i64) -> Duration {
        Duration { nanos }
    }

    /// The span in nanoseconds.
    #[must_use]
    pub fn nanos(self) -> i64 {
        self.nanos
    }

    /// Reads Go's durations, such as `1h30m` or `-1.5s`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Duration> {
        let (negative, mut rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Some(Duration { nanos: 0 });
        }
        if rest.is_empty() {
            return None;
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
            let whole: i128 = if whole_len == 0 { 0 } else { rest[..whole_len].parse().ok()? };
            rest = &rest[whole_len..];
            let mut fraction = "";
            if let Some(after) = rest.strip_prefix('.') {
                let length = after.bytes().take_while(u8::is_ascii_digit).count();
                fraction = &after[..length];
                rest = &after[length..];
            }
            if whole_len == 0 && fraction.is_empty() {
                return None;
            }
            let unit_len = rest.bytes().take_while(|b| *b != b'.' && !b.is_ascii_digit()).count();
            let unit: i128 = match &rest[..unit_len] {
                "ns" => 1,
                "us" | "µs" | "μs" => 1000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return None,
            };
            rest = &rest[unit_len..];
            total = total.checked_add(whole.checked_mul(unit)?)?;
            let mut scale = unit;
            for digit in fraction.bytes().take(18) {
                scale *= 10;
                total += i128::from(digit - b'0') * unit * unit / scale;
                if scale > i128::MAX / 10 / unit.max(1) {
                    break;
                }
            }
        }
        let nanos = i64::try_from(if negative { -total } else { total }).ok()?;
        Some(Duration { nanos })
    }

    /// Both spans together.
    ///
    /// # Errors
    /// `duration overflow`.
    pub fn plus(self, other: Duration) -> Result<Duration, EvalError> {
        Ok(Duration { nanos: self.nanos.checked_add(other.nanos).ok_or_else(duration_overflow)? })
    }

    /// The difference of both.
    ///
    /// # Errors
    /// `duration overflow`.
    pub fn minus(self, other: Duration) -> Result<Duration, EvalError> {
        Ok(Duration { nanos: self.nanos.checked_sub(other.nanos).ok_or_else(duration_overflow)? })
    }

    /// The same span backwards.
    ///
    /// # Errors
    /// `duration overflow`.
    pub fn negated(self) -> Result<Duration, EvalError> {
        Ok(Duration { nanos: self.nanos.checked_neg().ok_or_else(duration_overflow)? })
    }
}

/// Seconds with a fraction, as `string()` of the language shows a duration.
impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss, reason = "the reference prints a floating point number of seconds")]
        let seconds = (self.nanos / NANOS_PER_SECOND) as f64 + (self.nanos % NANOS_PER_SECOND) as f64 / 1e9;
        write!(f, "{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_read_back() {
        for text in ["2009-02-13T23:31:30Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"] {
            assert_eq!(Timestamp::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Timestamp::parse("2020-01-01T02:00:00+02:00").unwrap().to_string(), "2020-01-01T00:00:00Z");
        assert_eq!(Timestamp::parse("2021-02-29T00:00:00Z"), None);
        assert_eq!(Timestamp::parse("0000-01-01T00:00:00Z"), None);
    }

    #[test]
    fn durations_read_go_syntax() {
        for (text, nanos) in
            [("1h30m", 5_400_000_000_000), ("-1.5s", -1_500_000_000), ("0", 0), (".5ms", 500_000), ("1us2ns", 1002)]
        {
            assert_eq!(Duration::parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "1", "s", "1d", "-", "9223372037s"] {
            assert_eq!(Duration::parse(text), None, "{text}");
        }
    }

    #[test]
    fn zones_have_offsets() {
        let moment = Timestamp::parse("2009-02-13T23:31:30Z").unwrap();
        assert_eq!(moment.zone_offset("Australia/Sydney").unwrap(), 11 * 3600);
        assert_eq!(moment.zone_offset("-02:30").unwrap(), -9000);
        assert_eq!(moment.zone_offset("Nowhere").unwrap_err().to_string(), "unknown time zone Nowhere");
    }
}
