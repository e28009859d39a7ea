//! What Jobs and CronJobs may never do.

use super::object::{amount, controlled, controller, is_active, is_going, is_true, list, number, text, uid, within};
use super::rollout::Weather;
use super::rule::{Moment, Recent, Rule};
use crate::log::World;
use gantry_api::k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const JOBS: &str = "batch/jobs";
const CRON_JOBS: &str = "batch/cronjobs";
const PODS: &str = "core/pods";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

fn annotation<'v>(object: &'v Value, name: &str) -> &'v str {
    object["metadata"]["annotations"][name].as_str().unwrap_or_default()
}

fn tell(m: &Moment<'_>, wrong: &mut Vec<String>, what: &str) {
    wrong.push(format!("r{} at {:?}: {} {}: {what}", m.revision, m.at, m.resource, m.path));
}

/// Whether a Job has come to its end.
pub(crate) fn is_over(job: &Value) -> bool {
    is_true(job, "Complete") || is_true(job, "Failed")
}

#[derive(Default)]
struct Ends {
    /// Whether each pod that ended succeeded, with its index.
    pods: BTreeMap<String, (bool, String)>,
    /// Pods that were let go before they ended: those that were too many, or of a Job that was suspended. They count for
    /// nothing.
    released: BTreeSet<String>,
}

/// Each pod of a Job counts once, whatever happens; no Job runs more at once than it may.
#[derive(Default)]
pub struct CountedOnce {
    weather: Weather,
    parallelism: BTreeMap<String, Recent>,
    jobs: BTreeMap<String, Ends>,
}

impl CountedOnce {
    /// For a history in such weather.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather, ..Self::default() }
    }

    fn job(&mut self, m: &Moment<'_>, job: &Value, wrong: &mut Vec<String>) {
        let suspended = job["spec"]["suspend"] == true;
        let at_once = if suspended { 0 } else { number(job, "/spec/parallelism") };
        self.parallelism.entry(uid(job).to_owned()).or_default().set(m.at, at_once);
        let ends = self.jobs.entry(uid(job).to_owned()).or_default();
        let before = |field: &str| m.before.filter(|b| uid(b) == uid(job)).map_or(0, |b| number(b, field));
        for count in ["/status/succeeded", "/status/failed"] {
            if number(job, count) < before(count) {
                tell(m, wrong, &format!("{count} went from {} to {}", before(count), number(job, count)));
            }
        }
        let succeeded = ends.pods.values().filter(|(well, _)| *well).count();
        let failed = ends.pods.len() - succeeded;
        for (count, seen) in [("/status/succeeded", succeeded), ("/status/failed", failed)] {
            if number(job, count) > i64::try_from(seen).unwrap_or(i64::MAX) {
                tell(m, wrong, &format!("{count} is {} and {seen} pods ended so", number(job, count)));
            }
        }
    }

    fn pod(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        let Some(pod) = m.after.or(m.before) else { return };
        let of = controller(pod);
        let Some(ends) = self.jobs.get_mut(of) else { return };
        let well = text(pod, "/status/phase") == "Succeeded";
        let over = well || text(pod, "/status/phase") == "Failed" || is_going(pod) || m.after.is_none();
        let tracked = list(pod, "/metadata/finalizers").any(|f| f == TRACKING);
        if !over && !tracked {
            ends.released.insert(uid(pod).to_owned());
        }
        // Neither do those count that still ran when a success policy was met.
        let ended = well || text(pod, "/status/phase") == "Failed";
        let met = |(_, job): (&str, &Value)| uid(job) == of && is_true(job, "SuccessCriteriaMet");
        if !tracked && !ended && m.after.is_some() && within(m.world, JOBS, m.namespace()).any(met) {
            ends.pods.remove(uid(pod));
            ends.released.insert(uid(pod).to_owned());
        }
        // Who is deleted before it ended has failed.
        if over && !ends.released.contains(uid(pod)) {
            let entry = ends.pods.entry(uid(pod).to_owned());
            let ended = entry.or_insert((well, annotation(pod, INDEX).to_owned()));
            // One that was on its way out may succeed all the same.
            ended.0 |= well;
        }
        if m.is_new() && !self.weather.unanswered {
            let most = self.parallelism.get_mut(of).and_then(|p| p.values(m.at).max()).unwrap_or(i64::MAX);
            let running = controlled(m.world, PODS, m.namespace(), of).filter(|p| is_active(p)).count();
            if i64::try_from(running).unwrap_or(i64::MAX) > most {
                tell(m, wrong, &format!("{running} pods of its Job run, of {most} that may"));
            }
        }
    }
}

impl Rule for CountedOnce {
    fn see(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        match (m.resource, m.after) {
            (JOBS, Some(job)) => self.job(m, job, wrong),
            (PODS, _) => self.pod(m, wrong),
            _ => {}
        }
    }

    fn end(&mut self, world: &World, wrong: &mut Vec<String>) {
        for (name, job) in world.all(JOBS) {
            let Some(ends) = self.jobs.get(uid(job)).filter(|_| is_over(job)) else { continue };
            if job["status"]["uncountedTerminatedPods"]["succeeded"].is_array()
                || job["status"]["uncountedTerminatedPods"]["failed"].is_array()
            {
                wrong.push(format!("job {name} is over and has not counted all of its pods"));
            }
            let well = ends.pods.values().filter(|(well, _)| *well);
            let indexed = text(job, "/spec/completionMode") == "Indexed";
            let succeeded =
                if indexed { well.map(|(_, index)| index).collect::<BTreeSet<_>>().len() } else { well.count() };
            let failed = ends.pods.values().filter(|(well, _)| !*well).count();
            let is = |count: &str, seen: usize| number(job, count) == i64::try_from(seen).unwrap_or(-1);
            if !is("/status/succeeded", succeeded) || !is("/status/failed", failed) {
                wrong.push(format!(
                    "job {name} counted {} and {}; {succeeded} of its pods succeeded and {failed} failed",
                    job["status"]["succeeded"], job["status"]["failed"],
                ));
            }
        }
        for (name, pod) in world.all(PODS) {
            let over = |(_, job): (&str, &Value)| uid(job) == controller(pod) && is_over(job);
            let namespace = name.split_once('/').map_or("", |(n, _)| n);
            let tracked = list(pod, "/metadata/finalizers").any(|f| f == TRACKING);
            if tracked && within(world, JOBS, namespace).any(over) {
                wrong.push(format!("pod {name} is still tracked though its job is over"));
            }
        }
    }
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
#[derive(Default)]
pub struct WithinQuota {
    hard: BTreeMap<(String, &'static str), Recent>,
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
        for ((quota, what), hard) in &mut self.hard {
            if quota.split_once('/').map(|(n, _)| n) != Some(m.namespace()) {
                continue;
            }
            let hard = hard.values(m.at).max().unwrap_or(i64::MAX);
            let pods = within(m.world, PODS, m.namespace()).map(|(_, p)| p).filter(|p| !super::object::is_finished(p));
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
