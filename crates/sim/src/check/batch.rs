//! What CronJobs, evictions and quotas may never come to.

use super::object::{
    amount, annotation, controlled, controller, is_finished, is_over, list, number, text, uid, within,
};
use super::rollout::Weather;
use super::rule::{Moment, Recent, Rule};
use crate::log::World;
use gantry_api::k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const JOBS: &str = "batch/jobs";
const CRON_JOBS: &str = "batch/cronjobs";
const PODS: &str = "core/pods";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

fn tell(m: &Moment<'_>, wrong: &mut Vec<String>, what: &str) {
    wrong.push(format!("r{} at {:?}: {} {}: {what}", m.revision, m.at, m.resource, m.path));
}

/// A CronJob of which all runs are wanted makes one Job for each time of its schedule; none makes two for one.
#[derive(Default)]
pub struct OnSchedule {
    weather: Weather,
    /// Times for which there was a Job, by the CronJob's UID.
    made: BTreeMap<String, BTreeSet<Timestamp>>,
    /// CronJobs that were ever suspended or changed their schedule.
    changed: BTreeSet<String>,
    now: Timestamp,
    begin: Timestamp,
}

impl OnSchedule {
    /// For a history in such weather that began at this time.
    #[must_use]
    pub fn new(weather: Weather, begin: Timestamp) -> Self {
        Self { weather, begin, now: begin, ..Self::default() }
    }
}

/// A Job may be this late.
const LATE: Duration = Duration::from_secs(40);

impl Rule for OnSchedule {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        self.now = self.begin.saturating_add(m.at).unwrap_or(self.begin);
        match (m.resource, m.before, m.after) {
            (CRON_JOBS, before, Some(cron)) => {
                let altered = before.is_some_and(|b| b["spec"]["schedule"] != cron["spec"]["schedule"]);
                if cron["spec"]["suspend"] == true || altered {
                    self.changed.insert(uid(cron).to_owned());
                }
            }
            (JOBS, None, Some(job)) if !annotation(job, SCHEDULED).is_empty() => {
                let of = controller(job);
                // In the CronJob's own zone.
                let Ok(at) = annotation(job, SCHEDULED).parse() else {
                    return tell(m, wrong, &format!("{:?} is no time", annotation(job, SCHEDULED)));
                };
                if !self.made.entry(of.to_owned()).or_default().insert(at) {
                    tell(m, wrong, &format!("is a second Job for {}", annotation(job, SCHEDULED)));
                }
                let cron = within(m.world, CRON_JOBS, m.namespace()).map(|(_, c)| c).find(|c| uid(c) == of);
                let alone = cron.is_some_and(|c| text(c, "/spec/concurrencyPolicy") == "Forbid");
                let jobs = controlled(m.world, JOBS, m.namespace(), of).filter(|j| !is_over(j)).count();
                if alone && jobs > 1 && !self.weather.stale {
                    tell(m, wrong, &format!("{jobs} Jobs run at once, and it is forbidden"));
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, world: &World, wrong: &mut Vec<String>) {
        for (name, cron) in world.all(CRON_JOBS) {
            let every = text(cron, "/spec/schedule").strip_prefix("*/").and_then(|s| s.split(' ').next()?.parse().ok());
            let Some(every) = every.map(|m: i64| m * 60) else { continue };
            let Ok(created) = text(cron, "/metadata/creationTimestamp").parse::<Timestamp>() else { continue };
            if self.changed.contains(uid(cron)) || text(cron, "/spec/concurrencyPolicy") != "Allow" {
                continue;
            }
            let made = self.made.get(uid(cron)).cloned().unwrap_or_default();
            let last = self.now.saturating_sub(LATE).map_or(0, Timestamp::as_second);
            let mut due = (created.as_second() / every + 1) * every;
            while due <= last {
                let at = Timestamp::from_second(due).unwrap_or(Timestamp::MAX);
                if !made.contains(&at) {
                    wrong.push(format!("cronjob {name} has missed {at}"));
                }
                due += every;
            }
        }
    }
}

/// No namespace uses more than its quotas allow, in pods and in CPU.
pub struct WithinQuota {
    hard: BTreeMap<(String, &'static str), Recent>,
    begin: Timestamp,
}

impl WithinQuota {
    /// For a history that began at this time.
    #[must_use]
    pub fn new(begin: Timestamp) -> Self {
        Self { hard: BTreeMap::new(), begin }
    }
}

/// Whether a pod counts for quotas: until it ends, and where its node does not let it go, until it was to be gone for as
/// long as it was given to end.
fn is_charged(pod: &Value, now: Timestamp) -> bool {
    let Ok(gone) = text(pod, "/metadata/deletionTimestamp").parse::<Timestamp>() else { return !is_finished(pod) };
    let grace = SignedDuration::from_secs(number(pod, "/metadata/deletionGracePeriodSeconds"));
    !is_finished(pod) && now <= gone.saturating_add(grace).unwrap_or(Timestamp::MAX)
}

impl Rule for WithinQuota {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        if m.resource == "core/resourcequotas"
            && let Some(quota) = m.after
        {
            for what in ["pods", "requests.cpu"] {
                let hard = amount(&quota["status"]["hard"][what]);
                if !quota["status"]["hard"][what].is_null() {
                    let milli = i64::try_from(hard.nano_value() / 1_000_000).unwrap_or(i64::MAX);
                    self.hard.entry((m.path.to_owned(), what)).or_default().set(m.at, milli);
                }
            }
        }
        if m.resource != PODS || !m.is_new() {
            return;
        }
        let now = self.begin.saturating_add(m.at).unwrap_or(self.begin);
        for ((quota, what), hard) in &mut self.hard {
            if quota.split_once('/').map(|(n, _)| n) != Some(m.namespace()) {
                continue;
            }
            let hard = hard.values(m.at).max().unwrap_or(i64::MAX);
            let pods = within(m.world, PODS, m.namespace()).map(|(_, p)| p).filter(|p| is_charged(p, now));
            let used: i128 = if *what == "pods" {
                pods.map(|_| 1000).sum()
            } else {
                let cpu = |c: &Value| amount(&c["resources"]["requests"]["cpu"]).nano_value() / 1_000_000;
                pods.flat_map(|p| list(p, "/spec/containers")).map(cpu).sum()
            };
            if used > i128::from(hard) {
                tell(m, wrong, &format!("{used} m of {what} are used, and {hard} m may be"));
            }
        }
    }
}

/// No eviction leaves a budget with fewer healthy pods than it wants.
#[derive(Default)]
pub struct WithinBudget {
    weather: Weather,
}

impl WithinBudget {
    /// For a history in such weather.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather }
    }
}

impl Rule for WithinBudget {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        let (PODS, true, Some(pod)) = (m.resource, m.is_going() && !self.weather.rough, m.before) else { return };
        let evicted = |p: &Value| {
            list(p, "/status/conditions")
                .any(|c| c["type"] == "DisruptionTarget" && c["reason"] == "EvictionByEvictionAPI")
        };
        if !(evicted(pod) || m.after.is_some_and(evicted)) || !super::object::serves(pod) {
            return;
        }
        for (name, budget) in within(m.world, "policy/poddisruptionbudgets", m.namespace()) {
            let selector = &budget["spec"]["selector"];
            if !super::object::selects(selector, pod) {
                continue;
            }
            let pods = within(m.world, PODS, m.namespace()).map(|(_, p)| p);
            let healthy = pods.filter(|p| super::object::selects(selector, p) && super::object::serves(p)).count();
            let wanted = number(budget, "/status/desiredHealthy");
            if i64::try_from(healthy).unwrap_or(i64::MAX) < wanted {
                tell(m, wrong, &format!("is evicted and budget {name} has {healthy} healthy pods of {wanted}"));
            }
        }
    }
}
