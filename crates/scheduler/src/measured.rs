//! What the scheduler measures, as `scheduler_*`: attempts and how long they take, its queue, its snapshot.
//!
//! Extension points are told apart as far as the decision has such parts: scoring is told from filtering where nodes are
//! ranked at all; what takes no time of its own here (PreScore, Permit, PostBind) has no series. Plugins are evaluated
//! together, for all nodes of a class at once, so that there is nothing to measure of one alone.

use crate::run::{Explainer, Scheduler};
use gantry_reconcile::measured::{Histograms, number, tell, tell_gauges};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// From here on attempts are not told apart.
const MANY_ATTEMPTS: u32 = 15;

/// A part of a decision, as upstream's framework has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    PreFilter,
    Filter,
    PostFilter,
    Score,
    Reserve,
    PreBind,
    Bind,
}

impl Point {
    const ALL: [Point; 7] =
        [Point::PreFilter, Point::Filter, Point::PostFilter, Point::Score, Point::Reserve, Point::PreBind, Point::Bind];

    const fn name(self) -> &'static str {
        match self {
            Point::PreFilter => "PreFilter",
            Point::Filter => "Filter",
            Point::PostFilter => "PostFilter",
            Point::Score => "Score",
            Point::Reserve => "Reserve",
            Point::PreBind => "PreBind",
            Point::Bind => "Bind",
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Scheduled,
    Unschedulable,
    Error,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Outcome::Scheduled => "scheduled",
            Outcome::Unschedulable => "unschedulable",
            Outcome::Error => "error",
        }
    }
}

/// An attempt under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// When it began.
    pub(crate) began: Instant,
    /// When the first attempt at the same pod did.
    pub(crate) first: Instant,
    /// Which it is, from 1.
    pub(crate) number: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    profile: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempts {
    attempts: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Extension {
    extension_point: &'static str,
    profile: String,
    status: &'static str,
}

/// What nearly every attempt counts, looked up beforehand.
struct Usual {
    scheduled: Counter,
    took: Histogram,
    points: [Histogram; Point::ALL.len()],
}

/// All of it.
pub(crate) struct Measured {
    attempts: Family<Result, Counter>,
    took: Histograms<Result>,
    algorithm: Histogram,
    since_first: Histograms<Attempts>,
    tries: Histogram,
    points: Histograms<Extension>,
    preemptions: Counter,
    victims: Histogram,
    usual: HashMap<String, Usual>,
}

fn milliseconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Measured {
    /// Of these profiles.
    pub(crate) fn new<'a>(profiles: impl IntoIterator<Item = &'a str>) -> Self {
        let (attempts, took) = (Family::default(), Histograms::new_with_constructor(milliseconds as fn() -> Histogram));
        let since_first: fn() -> Histogram = || Histogram::new(exponential_buckets(0.01, 2.0, 20));
        let of_point: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 12));
        let points = Histograms::new_with_constructor(of_point);
        let usual = |profile: &str| {
            let result = Result { profile: profile.to_owned(), result: Outcome::Scheduled.name() };
            let point = |point: Point| points.get_or_create_owned(&extension(point, "Success", profile));
            let usual = Usual {
                scheduled: attempts.get_or_create_owned(&result),
                took: took.get_or_create_owned(&result),
                points: Point::ALL.map(point),
            };
            (profile.to_owned(), usual)
        };
        Self {
            usual: profiles.into_iter().map(usual).collect(),
            attempts,
            took,
            algorithm: milliseconds(),
            since_first: Histograms::new_with_constructor(since_first),
            tries: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
            points,
            preemptions: Counter::default(),
            victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
        }
    }

    /// A pod was bound.
    pub(crate) fn scheduled(&self, profile: &str, attempt: Attempt) {
        if let Some(usual) = self.usual.get(profile) {
            usual.scheduled.inc();
            usual.took.observe(attempt.began.elapsed().as_secs_f64());
        }
        self.tries.observe(f64::from(attempt.number));
        let attempts = match attempt.number {
            MANY_ATTEMPTS.. => format!("{MANY_ATTEMPTS}+"),
            number => number.to_string(),
        };
        let since = attempt.first.elapsed().as_secs_f64();
        self.since_first.get_or_create(&Attempts { attempts }).observe(since);
    }

    /// A pod was not bound.
    pub(crate) fn failed(&self, profile: &str, outcome: Outcome, attempt: Attempt) {
        let labels = Result { profile: profile.to_owned(), result: outcome.name() };
        self.attempts.get_or_create(&labels).inc();
        self.took.get_or_create(&labels).observe(attempt.began.elapsed().as_secs_f64());
    }

    /// A node was found.
    pub(crate) fn decided(&self, took: Duration) {
        self.algorithm.observe(took.as_secs_f64());
    }

    /// A part of a decision went well.
    pub(crate) fn passed(&self, point: Point, profile: &str, took: Duration) {
        if let Some(usual) = self.usual.get(profile) {
            usual.points[point as usize].observe(took.as_secs_f64());
        }
    }

    /// A part of a decision ended otherwise; `status` is upstream's code of it.
    pub(crate) fn ended(&self, point: Point, status: &'static str, profile: &str, took: Duration) {
        self.points.get_or_create(&extension(point, status, profile)).observe(took.as_secs_f64());
    }

    /// Room was looked for by evicting others.
    pub(crate) fn preemption(&self) {
        self.preemptions.inc();
    }

    /// So many are evicted for one pod.
    pub(crate) fn victims(&self, victims: usize) {
        self.victims.observe(number(victims));
    }
}

fn extension(point: Point, status: &'static str, profile: &str) -> Extension {
    Extension { extension_point: point.name(), profile: profile.to_owned(), status }
}

impl fmt::Debug for Explainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Explainer")
    }
}

/// What the scheduler that is asked through it measures; nothing before one runs.
impl Collector for Explainer {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::result::Result<(), fmt::Error> {
        let Some(scheduler) = self.scheduler() else { return Ok(()) };
        scheduler.measured.tell(&mut encoder)?;
        scheduler.tell(&mut encoder)
    }
}

impl Measured {
    fn tell(&self, to: &mut DescriptorEncoder<'_>) -> std::result::Result<(), fmt::Error> {
        let told = "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, \
                    while 'error' means an internal scheduler problem.";
        tell(to, "scheduler_schedule_attempts", told, &self.attempts)?;
        let told = "Scheduling attempt latency in seconds (scheduling algorithm + binding)";
        tell(to, "scheduler_scheduling_attempt_duration_seconds", told, &self.took)?;
        let told = "Scheduling algorithm latency in seconds";
        tell(to, "scheduler_scheduling_algorithm_duration_seconds", told, &self.algorithm)?;
        let told = "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might \
                    involve multiple scheduling attempts.";
        tell(to, "scheduler_pod_scheduling_sli_duration_seconds", told, &self.since_first)?;
        let told = "Number of attempts to successfully schedule a pod.";
        tell(to, "scheduler_pod_scheduling_attempts", told, &self.tries)?;
        let told = "Latency for running all plugins of a specific extension point.";
        tell(to, "scheduler_framework_extension_point_duration_seconds", told, &self.points)?;
        let told = "Total preemption attempts in the cluster till now";
        tell(to, "scheduler_preemption_attempts", told, &self.preemptions)?;
        tell(to, "scheduler_preemption_victims", "Number of selected preemption victims", &self.victims)
    }
}

impl Scheduler {
    /// What is read off the queue and the snapshot.
    fn tell(&self, to: &mut DescriptorEncoder<'_>) -> std::result::Result<(), fmt::Error> {
        let (depths, incoming, rejected, sizes, profile) = {
            let state = self.state.lock();
            let profile = match state.deciders.len() {
                1 => state.deciders.keys().next().cloned(),
                // Whose profile a pod is of is not kept of those that wait for long.
                _ => None,
            };
            let sizes = [
                ("assumed_pods", state.assumed.len()),
                ("nodes", state.snapshot.node_count()),
                ("pods", state.snapshot.pod_count()),
            ];
            let queue = &state.queue;
            (queue.depths(), queue.incoming(), queue.rejected_by_plugin(), sizes, profile.unwrap_or_default())
        };
        let (active, backoff, unschedulable, gated) = depths;
        let depths = [("active", active), ("backoff", backoff), ("gated", gated), ("unschedulable", unschedulable)];
        let told = "Number of pending pods, by the queue type. 'active' means number of pods in activeQ; 'backoff' means \
                    number of pods in backoffQ; 'unschedulable' means number of pods in unschedulablePods that the \
                    scheduler attempted to schedule and failed; 'gated' is the number of unschedulable pods that the \
                    scheduler never attempted to schedule because they are gated.";
        let gauges = depths.map(|(queue, n)| ([("queue", queue)], number(n)));
        tell_gauges(to, "scheduler_pending_pods", told, gauges)?;
        let told = "Number of nodes, pods, and assumed (bound) pods in the scheduler cache.";
        let gauges = sizes.map(|(kind, n)| ([("type", kind)], number(n)));
        tell_gauges(to, "scheduler_scheduler_cache_size", told, gauges)?;
        let told = "The number of unschedulable pods broken down by plugin name. A pod will increment the gauge for all \
                    plugins that caused it to not schedule and so this metric have meaning only when broken down by plugin.";
        let gauges = rejected.into_iter().map(|(plugin, n)| ([("plugin", plugin), ("profile", profile.as_str())], n));
        let gauges = gauges.map(|(labels, n)| (labels, number(n)));
        tell_gauges(to, "scheduler_unschedulable_pods", told, gauges)?;
        let told = "Number of pods added to scheduling queues by event and queue type.";
        let mut family = to.encode_descriptor("scheduler_queue_incoming_pods", told, None, MetricType::Counter)?;
        for ((queue, event), count) in incoming {
            ConstCounter::new(count).encode(family.encode_family(&[("event", event), ("queue", queue)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[derive(Debug)]
    struct Told(Measured);

    impl fmt::Debug for Measured {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Measured")
        }
    }

    impl Collector for Told {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::result::Result<(), fmt::Error> {
            self.0.tell(&mut encoder)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_told_by_result_and_number() {
        let measured = Measured::new(["default-scheduler"]);
        let first = Instant::now();
        tokio::time::advance(Duration::from_secs(4)).await;
        let attempt = |number| Attempt { began: Instant::now(), first, number };
        let again = attempt(2);
        tokio::time::advance(Duration::from_secs(1)).await;
        measured.scheduled("default-scheduler", again);
        measured.scheduled("default-scheduler", attempt(40));
        measured.failed("default-scheduler", Outcome::Unschedulable, attempt(1));
        measured.passed(Point::Bind, "default-scheduler", Duration::from_millis(500));
        measured.ended(Point::PostFilter, "Unschedulable", "default-scheduler", Duration::from_millis(250));
        measured.preemption();
        measured.victims(3);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Told(measured)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let by = "profile=\"default-scheduler\"";
        for line in [
            format!("schedule_attempts_total{{{by},result=\"scheduled\"}} 2"),
            format!("schedule_attempts_total{{{by},result=\"unschedulable\"}} 1"),
            format!("scheduling_attempt_duration_seconds_sum{{{by},result=\"scheduled\"}} 1.0"),
            "pod_scheduling_sli_duration_seconds_sum{attempts=\"2\"} 5.0".to_owned(),
            "pod_scheduling_sli_duration_seconds_sum{attempts=\"15+\"} 5.0".to_owned(),
            "pod_scheduling_attempts_sum 42.0".to_owned(),
            format!(
                "framework_extension_point_duration_seconds_sum{{extension_point=\"Bind\",{by},status=\"Success\"}} 0.5"
            ),
            format!(
                "framework_extension_point_duration_seconds_sum{{extension_point=\"PostFilter\",{by},\
                 status=\"Unschedulable\"}} 0.25"
            ),
            "preemption_attempts_total 1".to_owned(),
            "preemption_victims_sum 3.0".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == format!("scheduler_{line}")), "{line}\n{text}");
        }
    }
}
