//! When a CronJob's next Job is due.

use gantry_api::batch::schedule::{Schedule, time_zone};
use gantry_api::meta::object::Meta;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Jobs are made this much after their time, so that clocks that differ a little do not make one too early.
const MARGIN: SignedDuration = SignedDuration::from_millis(100);
/// More missed times than this are told of: rather something is wrong with a clock.
const MANY: i64 = 100;

/// A schedule and the clocks it is read on.
#[derive(Clone, Debug)]
pub struct Timing {
    schedule: Schedule,
    zone: TimeZone,
}

/// The latest time that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Latest {
    /// Times before this do not matter.
    earliest: Timestamp,
    at: Option<Timestamp>,
    /// How many times were missed, roughly.
    missed: i64,
}

impl Timing {
    /// Reads the schedule. A zone within the schedule goes before that of `spec.timeZone`.
    ///
    /// # Errors
    /// What is wrong with the schedule.
    pub fn of(cron_job: &CronJob) -> Result<Self, String> {
        let schedule = Schedule::parse(&cron_job.spec.schedule)?;
        let zone = cron_job.spec.time_zone.as_deref().map_or(Ok(TimeZone::UTC), time_zone)?;
        Ok(Self { schedule, zone })
    }

    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next_after(after, &self.zone)
    }

    /// The latest time at which a Job should have been made and was not, and whether too many were missed before it.
    ///
    /// # Errors
    /// Where the schedule never comes (31 February).
    pub fn due(&self, cron_job: &CronJob, now: Timestamp) -> Result<Option<(Timestamp, bool)>, String> {
        let latest = self.latest(cron_job, now, true)?;
        Ok(latest.at.filter(|t| *t <= now).map(|t| (t, latest.missed > MANY)))
    }

    /// How long until the next time; None where there is none.
    #[must_use]
    pub fn wait(&self, cron_job: &CronJob, now: Timestamp) -> Option<Duration> {
        let from = match self.latest(cron_job, now, false) {
            Ok(Latest { at: Some(at), .. }) => at,
            Ok(Latest { earliest, missed: 0, .. }) => earliest,
            _ => now,
        };
        let next = self.next(from)?.checked_add(MARGIN).ok()?;
        Some(Duration::try_from(next.duration_since(now)).unwrap_or(Duration::ZERO))
    }

    fn latest(&self, cron_job: &CronJob, now: Timestamp, with_deadline: bool) -> Result<Latest, String> {
        let last = cron_job.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
        let mut earliest =
            last.or(cron_job.metadata.creation_timestamp.as_ref()).map_or(Timestamp::UNIX_EPOCH, |t| t.0);
        if let Some(seconds) = cron_job.spec.starting_deadline_seconds.filter(|_| with_deadline) {
            let deadline = now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
            earliest = earliest.max(deadline);
        }
        let never = || "time difference between two schedules is less than 1 second".to_owned();
        let first = self.next(earliest).ok_or_else(never)?;
        if now < first {
            return Ok(Latest { earliest, at: None, missed: 0 });
        }
        let second = self.next(first).ok_or_else(never)?;
        if now < second {
            return Ok(Latest { earliest, at: Some(first), missed: 0 });
        }
        let between = second.duration_since(first).as_secs();
        if between < 1 {
            return Err(never());
        }
        // Roughly: schedules need not be regular.
        let missed = now.duration_since(first).as_secs() / between + 1;
        let jump = SignedDuration::from_secs((missed - 2).saturating_mul(between));
        let mut at = None;
        let mut next = first.checked_add(jump).ok().and_then(|t| self.next(t));
        while let Some(t) = next.filter(|t| *t <= now) {
            at = Some(t);
            next = self.next(t);
        }
        Ok(Latest { earliest, at, missed })
    }
}

/// The name of the Job for a time: the same time never makes two.
#[must_use]
pub fn job_name(cron_job: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron_job.metadata.name(), at.as_second().div_euclid(60))
}

/// A time in RFC 3339, in the CronJob's time zone.
///
/// # Errors
/// Where the zone is not known.
pub fn stamp(cron_job: &CronJob, at: Timestamp) -> Result<String, String> {
    let zone = time_zone(cron_job.spec.time_zone.as_deref().unwrap_or_default())?;
    let text = at.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    Ok(text.strip_suffix("+00:00").map(|t| format!("{t}Z")).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(text: &str) -> Timestamp {
        format!("2026-03-{text}Z").parse().unwrap()
    }

    fn cron_job(schedule: &str, spec: &Value, last: Option<&str>) -> CronJob {
        let mut all = json!({"schedule": schedule, "jobTemplate": {}});
        for (k, v) in spec.as_object().unwrap() {
            all[k] = v.clone();
        }
        serde_json::from_value(json!({
            "metadata": {"name": "tick", "creationTimestamp": at("01T10:00:00")}, "spec": all,
            "status": {"lastScheduleTime": last.map(at)},
        }))
        .unwrap()
    }

    fn due(c: &CronJob, now: &str) -> Result<Option<(Timestamp, bool)>, String> {
        Timing::of(c).unwrap().due(c, at(now))
    }

    fn wait(c: &CronJob, now: &str) -> Option<f64> {
        Timing::of(c).unwrap().wait(c, at(now)).map(|d| d.as_secs_f64())
    }

    #[test]
    fn the_latest_time_is_due_once() {
        let c = cron_job("0 * * * *", &json!({}), None);
        assert_eq!(due(&c, "01T10:00:30"), Ok(None));
        assert_eq!(wait(&c, "01T10:00:30"), Some(3570.1));
        assert_eq!(due(&c, "01T11:01:00"), Ok(Some((at("01T11:00:00"), false))));
        assert_eq!(due(&c, "01T15:01:00"), Ok(Some((at("01T15:00:00"), false))));
        assert_eq!(due(&c, "07T15:01:00"), Ok(Some((at("07T15:00:00"), true))), "more than a hundred were missed");
        assert_eq!(wait(&c, "01T15:01:00"), Some(3540.1));
        let c = cron_job("0 * * * *", &json!({}), Some("01T15:00:00"));
        assert_eq!(due(&c, "01T15:59:00"), Ok(None));
        let c = cron_job("30 6-16/4 * * 1-5", &json!({}), None);
        assert_eq!(due(&c, "09T09:00:00"), Ok(Some((at("09T06:30:00"), false))));
    }

    #[test]
    fn a_starting_deadline_forgets_what_is_too_old() {
        let c = cron_job("0 * * * *", &json!({"startingDeadlineSeconds": 600}), None);
        assert_eq!(due(&c, "07T15:05:00"), Ok(Some((at("07T15:00:00"), false))));
        assert_eq!(due(&c, "07T15:11:00"), Ok(None));
        assert_eq!(wait(&c, "07T15:11:00"), Some(2940.1));
    }

    #[test]
    fn a_schedule_that_never_comes_is_told() {
        let c = cron_job("59 23 31 2 *", &json!({}), None);
        let never = "time difference between two schedules is less than 1 second";
        assert_eq!(due(&c, "02T00:00:00"), Err(never.to_owned()));
        assert_eq!(wait(&c, "02T00:00:00"), None);
    }

    #[test]
    fn times_are_read_and_told_on_the_zones_clocks() {
        let c = cron_job("0 9 * * *", &json!({"timeZone": "America/New_York"}), None);
        // On 8 March clocks go forward.
        let (time, _) = due(&c, "07T20:00:00").unwrap().unwrap();
        assert_eq!((time, stamp(&c, time).unwrap().as_str()), (at("07T14:00:00"), "2026-03-07T09:00:00-05:00"));
        let (time, _) = due(&c, "08T20:00:00").unwrap().unwrap();
        assert_eq!((time, stamp(&c, time).unwrap().as_str()), (at("08T13:00:00"), "2026-03-08T09:00:00-04:00"));
        let utc = cron_job("0 9 * * *", &json!({}), None);
        assert_eq!(stamp(&utc, time).unwrap(), "2026-03-08T13:00:00Z");
        assert_eq!(job_name(&utc, at("01T10:00:00")), "tick-29539320");
        assert!(Timing::of(&cron_job("x", &json!({}), None)).is_err());
    }
}
