//! Measurements of flow control under upstream's names.

use super::Flow;
use super::queue_set::Request;
use super::turns::Figures;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Upstream's buckets of `apiserver_flowcontrol_request_wait_duration_seconds`.
const WAITS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Where {
    priority_level: String,
    flow_schema: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    priority_level: String,
    flow_schema: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Waited {
    priority_level: String,
    flow_schema: String,
    execute: &'static str,
}

/// What is counted as it happens.
pub struct FlowMetrics {
    registry: Registry,
    dispatched: Family<Where, Counter>,
    refused: Family<Why, Counter>,
    waited: Family<Waited, Histogram, fn() -> Histogram>,
}

impl Default for FlowMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("apiserver_flowcontrol");
        let dispatched: Family<Where, Counter> = Family::default();
        let refused: Family<Why, Counter> = Family::default();
        let waited: Family<Waited, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(WAITS.iter().copied()));
        registry.register(
            "dispatched_requests",
            "Number of requests executed by API Priority and Fairness subsystem",
            dispatched.clone(),
        );
        registry.register(
            "rejected_requests",
            "Number of requests rejected by API Priority and Fairness subsystem",
            refused.clone(),
        );
        registry.register(
            "request_wait_duration_seconds",
            "Length of time a request spent waiting in its queue",
            waited.clone(),
        );
        Self { registry, dispatched, refused, waited }
    }
}

impl FlowMetrics {
    pub(super) fn dispatched(&self, level: &str, schema: &str) {
        let labels = Where { priority_level: level.to_owned(), flow_schema: schema.to_owned() };
        self.dispatched.get_or_create(&labels).inc();
    }

    pub(super) fn refused(&self, level: &str, schema: &str, reason: &'static str) {
        let labels = Why { priority_level: level.to_owned(), flow_schema: schema.to_owned(), reason };
        self.refused.get_or_create(&labels).inc();
    }

    pub(super) fn waited(&self, level: &str, schema: &str, execute: bool, time: Duration) {
        let execute = if execute { "true" } else { "false" };
        let labels = Waited { priority_level: level.to_owned(), flow_schema: schema.to_owned(), execute };
        self.waited.get_or_create(&labels).observe(time.as_secs_f64());
    }
}

fn family(
    out: &mut String,
    (name, kind): (&str, &str),
    help: &str,
    samples: impl Iterator<Item = (String, String)>,
) -> std::fmt::Result {
    // OpenMetrics describes counters without what their samples end in.
    let described = name.strip_suffix("_total").unwrap_or(name);
    writeln!(out, "# HELP {described} {help}.\n# TYPE {described} {kind}")?;
    for (labels, value) in samples {
        writeln!(out, "{name}{{{labels}}} {value}")?;
    }
    Ok(())
}

fn gauge(
    out: &mut String,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (String, String)>,
) -> std::fmt::Result {
    family(out, (&format!("apiserver_flowcontrol_{name}"), "gauge"), help, samples)
}

/// Writes what was measured of turns, which are not upstream's.
fn turns(out: &mut String, figures: &[Figures]) -> std::fmt::Result {
    let of = |what: fn(&Figures) -> String| {
        figures.iter().map(move |figures| (format!("priority_level=\"{}\"", figures.level), what(figures)))
    };
    let told = "Turns that users had where all of them share the processors, by priority level; empty for those that have \
                asked for no resource yet";
    family(out, ("gantry_turns_total", "counter"), told, of(|f| f.turns.to_string()))?;
    let told = "How long turns lasted together";
    let lasted = of(|f| f.lasted.as_secs_f64().to_string());
    family(out, ("gantry_turns_duration_seconds_total", "counter"), told, lasted)?;
    let told = "Shares of the time that a priority level has where others want it";
    family(out, ("gantry_turns_shares", "gauge"), told, of(|f| f.shares.to_string()))?;
    let told = "Work that waits for its turn now";
    family(out, ("gantry_turns_waiting", "gauge"), told, of(|f| f.waiting.to_string()))?;
    let told = "Users, and addresses that have not said whose they are, with connections now";
    family(out, ("gantry_turns_users", "gauge"), told, of(|f| f.users.to_string()))
}

impl Flow {
    /// Appends the measurements, without an end mark.
    ///
    /// # Errors
    /// None that a string can have.
    pub fn render(&self, out: &mut String) -> std::fmt::Result {
        let mut counted = String::new();
        encode(&mut counted, &self.metrics.registry)?;
        out.push_str(counted.trim_end().trim_end_matches("# EOF"));

        turns(out, &self.turns.figures())?;
        let state = self.state.lock();
        let levels = || state.levels.iter().map(|(name, level)| (format!("priority_level=\"{name}\""), level));
        let seats = |what: fn(&super::Level) -> f64| levels().map(move |(l, level)| (l, what(level).to_string()));
        gauge(out, "nominal_limit_seats", "Nominal number of execution seats", seats(|l| f64::from(l.nominal)))?;
        gauge(out, "current_limit_seats", "Current number of execution seats", seats(|l| f64::from(l.current)))?;
        gauge(out, "lower_limit_seats", "Lower bound of execution seats", seats(|l| f64::from(l.least)))?;
        gauge(out, "upper_limit_seats", "Upper bound of execution seats", seats(|l| f64::from(l.most)))?;
        gauge(out, "demand_seats_smoothed", "Smoothed seat demand", seats(|l| l.set.demand.smoothed))?;
        let by_schema = |requests: &[(&str, &Request)], weight: fn(&Request) -> u32| {
            let mut counts: BTreeMap<String, u32> = BTreeMap::new();
            for (level, request) in requests {
                let labels = format!("flow_schema=\"{}\",priority_level=\"{level}\"", request.schema);
                *counts.entry(labels).or_default() += weight(request);
            }
            counts.into_iter().map(|(labels, n)| (labels, n.to_string()))
        };
        let mut waiting = Vec::new();
        let mut running = Vec::new();
        for (name, level) in &state.levels {
            running.extend(level.set.running().map(|r| (name.as_str(), r)));
            waiting.extend(level.set.queues().flat_map(|q| q.waiting).map(|r| (name.as_str(), r)));
        }
        let each = |_: &Request| 1;
        let seats = |r: &Request| r.width;
        let told = "Number of requests currently pending in queues";
        gauge(out, "current_inqueue_requests", told, by_schema(&waiting, each))?;
        let told = "Number of seats currently pending in queues";
        gauge(out, "current_inqueue_seats", told, by_schema(&waiting, seats))?;
        gauge(out, "current_executing_requests", "Number of requests currently executing", by_schema(&running, each))?;
        gauge(out, "current_executing_seats", "Seats occupied by executing requests", by_schema(&running, seats))
    }
}
