//! What Jobs may never do: each pod counts once, as what it ended as.

use super::object::{
    annotation, controlled, controller, is_active, is_finished, is_going, is_over, is_true, list, number, text, uid,
    within,
};
use super::rollout::Weather;
use super::rule::{BEHIND, Moment, Recent, Rule};
use crate::log::World;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const JOBS: &str = "batch/jobs";
const PODS: &str = "core/pods";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

fn tell(m: &Moment<'_>, wrong: &mut Vec<String>, what: &str) {
    wrong.push(format!("r{} at {:?}: {} {}: {what}", m.revision, m.at, m.resource, m.path));
}

fn is_tracked(pod: &Value) -> bool {
    list(pod, "/metadata/finalizers").any(|f| f == TRACKING)
}

/// Uids of the pods that are written down to be counted.
fn listed<'v>(job: &'v Value, how: &str) -> impl Iterator<Item = &'v str> {
    list(job, &format!("/status/uncountedTerminatedPods/{how}")).filter_map(Value::as_str)
}

/// How a pod came to its end.
struct End {
    /// When it ended, or began to be deleted.
    at: Duration,
    well: bool,
    index: String,
    /// It was being deleted before it ended. Upstream counts such a pod as failed as soon as it sees that, unless pods
    /// are to be replaced only when they have failed; some succeed all the same.
    left: bool,
    verdict: Verdict,
}

/// As what a pod counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As what it comes to yet.
    Open,
    /// As what it was when it was counted.
    Decided,
    /// It need not be counted. Upstream takes the finalizer from pods that are too many, without a look at what they
    /// have come to since its cache saw them run.
    Optional,
}

#[derive(Default)]
struct Ends {
    pods: BTreeMap<String, End>,
    /// Pods that were let go before they ended: those that were too many, or of a Job that was suspended. They count
    /// for nothing.
    released: BTreeSet<String>,
    /// Pods that were ever written down to be counted.
    listed: BTreeSet<String>,
}

impl Ends {
    /// How many pods ended so, or how many indexes: without those that need not be counted, and with them.
    fn count(&self, well: bool, by_index: bool) -> (i64, i64) {
        let of = |optional: bool| {
            let ends = self.pods.values().filter(|e| e.well == well && (optional || e.verdict != Verdict::Optional));
            let count = if by_index { ends.map(|e| &e.index).collect::<BTreeSet<_>>().len() } else { ends.count() };
            i64::try_from(count).unwrap_or(i64::MAX)
        };
        (of(false), of(true))
    }
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
        let before = m.before.filter(|b| uid(b) == uid(job));
        for how in ["succeeded", "failed"] {
            for pod in listed(job, how) {
                if before.is_some_and(|b| listed(b, how).any(|p| p == pod)) {
                    continue;
                }
                if !ends.listed.insert(pod.to_owned()) {
                    tell(m, wrong, &format!("pod {pod} is to be counted as {how} and was so before"));
                }
                let end = ends.pods.get_mut(pod);
                let fits = end.as_ref().is_some_and(|e| {
                    // When a Job fails, what is seen to run still counts as failed.
                    let given_up = is_true(job, "FailureTarget") && self.weather.stale;
                    if how == "succeeded" { e.well } else { !e.well || e.left || given_up }
                });
                if !fits {
                    tell(m, wrong, &format!("pod {pod} is to be counted as {how} and did not end so"));
                }
                if let Some(end) = end {
                    (end.well, end.verdict) = (how == "succeeded", Verdict::Decided);
                }
            }
            let (path, had) = (format!("/status/{how}"), |b: &Value| number(b, &format!("/status/{how}")));
            let (count, earlier) = (number(job, &path), before.map_or(0, had));
            if count < earlier {
                tell(m, wrong, &format!("{path} went from {earlier} to {count}"));
            }
            let seen = ends.count(how == "succeeded", false).1;
            if count > seen {
                tell(m, wrong, &format!("{path} is {count} and {seen} pods ended so"));
            }
        }
    }

    fn pod(&mut self, m: &Moment<'_>, wrong: &mut Vec<String>) {
        let Some(pod) = m.after.or(m.before) else { return };
        let of = controller(pod);
        let Some(ends) = self.jobs.get_mut(of) else { return };
        let well = text(pod, "/status/phase") == "Succeeded";
        let over = is_finished(pod) || is_going(pod) || m.after.is_none();
        let tracked = is_tracked(pod);
        if !over && !tracked {
            ends.released.insert(uid(pod).to_owned());
        }
        let job = within(m.world, JOBS, m.namespace()).map(|(_, job)| job).find(|job| uid(job) == of);
        // Neither do those count that still ran when a success policy was met.
        let met = || job.is_some_and(|job| is_true(job, "SuccessCriteriaMet"));
        if !tracked && !is_finished(pod) && m.after.is_some() && met() {
            ends.pods.remove(uid(pod));
            ends.released.insert(uid(pod).to_owned());
        }
        // Who is deleted before it ended has failed.
        if over && !ends.released.contains(uid(pod)) {
            let end = ends.pods.entry(uid(pod).to_owned()).or_insert_with(|| End {
                at: m.at,
                well,
                index: annotation(pod, INDEX).to_owned(),
                left: !is_finished(pod),
                verdict: Verdict::Open,
            });
            if end.verdict == Verdict::Open {
                end.well |= well;
            }
            // How it ends once it is counted is no more of the Job's concern; nor is that of one that a cache shows running
            // when a success policy is met, which is deleted and let go at once.
            if m.before.is_some_and(is_tracked) && (!tracked || m.after.is_none() && met()) {
                let seen = job.is_none_or(|job| is_counted(job, pod) || is_over(job) || is_going(job));
                let unseen = !seen && self.weather.stale && m.at.saturating_sub(end.at) < BEHIND;
                end.verdict = if unseen { Verdict::Optional } else { Verdict::Decided };
            }
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

/// Whether the Job has written down the pod, or its index.
fn is_counted(job: &Value, pod: &Value) -> bool {
    if ["succeeded", "failed"].iter().any(|how| listed(job, how).any(|p| p == uid(pod))) {
        return true;
    }
    let Ok(index) = annotation(pod, INDEX).parse::<i64>() else { return false };
    let within = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().is_ok_and(|first: i64| first <= index) && last.parse().is_ok_and(|last: i64| index <= last)
    };
    text(job, "/status/completedIndexes").split(',').any(within)
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
            if ["succeeded", "failed"].iter().any(|how| listed(job, how).next().is_some()) {
                wrong.push(format!("job {name} is over and has not counted all of its pods"));
            }
            let by_index = text(job, "/spec/completionMode") == "Indexed";
            for (how, well) in [("succeeded", true), ("failed", false)] {
                let count = number(job, &format!("/status/{how}"));
                let (least, most) = ends.count(well, by_index && well);
                if count < least || count > most {
                    wrong
                        .push(format!("job {name} counted {count} as {how}, and {least} to {most} of its pods are so"));
                }
            }
        }
        for (name, pod) in world.all(PODS) {
            let namespace = name.split_once('/').map_or("", |(n, _)| n);
            let of = within(world, JOBS, namespace).map(|(_, job)| job).find(|job| uid(job) == controller(pod));
            if is_tracked(pod) && of.is_some_and(is_over) {
                wrong.push(format!("pod {name} is still tracked though its job is over"));
            }
            // Those that are too many are deleted right after they were let go.
            let end = self.jobs.get(controller(pod)).and_then(|ends| ends.pods.get(uid(pod)));
            if end.is_some_and(|e| e.verdict == Verdict::Optional) && !is_going(pod) {
                wrong.push(format!("pod {name} was neither counted nor deleted"));
            }
        }
    }
}
