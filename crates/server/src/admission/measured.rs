//! How long admission takes and what comes of it, under upstream's names (`k8s.io/apiserver/pkg/admission/metrics`).

use super::{Attributes, Operation};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Upstream's buckets for plugins and steps, in milliseconds.
const BUCKETS: [u64; 6] = [5, 25, 100, 500, 1000, 2500];
/// Upstream's buckets for webhooks, in seconds.
const WEBHOOK_BUCKETS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Upstream's buckets for policies, in seconds.
const POLICY_BUCKETS: &[f64] = &[0.000_000_5, 0.001, 0.01, 0.1, 1.0];
/// Beyond it, upstream counts codes of webhooks as one.
const CODE_MAX: u16 = 600;

/// The two steps of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Objects are changed.
    Admit,
    /// Objects are judged.
    Validate,
}

impl Step {
    const ALL: [Step; 2] = [Step::Admit, Step::Validate];

    const fn as_str(self) -> &'static str {
        match self {
            Step::Admit => "admit",
            Step::Validate => "validate",
        }
    }

    /// Upstream calls the second step otherwise where webhooks take it.
    const fn of_webhooks(self) -> &'static str {
        match self {
            Step::Admit => "admit",
            Step::Validate => "validating",
        }
    }
}

const OPERATIONS: [Operation; 4] = [Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];

/// A histogram that costs two additions per observation: every write passes some fifty.
#[derive(Default)]
struct Durations {
    /// Of each bucket alone; the last is what is longer than all.
    counts: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

impl Durations {
    fn observe(&self, took: Duration) {
        let bucket = BUCKETS.iter().position(|most| took <= Duration::from_millis(*most)).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) -> std::fmt::Result {
        let counts: Vec<u64> = self.counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return Ok(());
        }
        let sum = Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64();
        writeln!(out, "{name}_sum{{{labels}}} {sum}")?;
        writeln!(out, "{name}_count{{{labels}}} {total}")?;
        let mut below = 0;
        for (count, most) in counts.iter().zip(BUCKETS) {
            below += count;
            let most = Duration::from_millis(most).as_secs_f64();
            writeln!(out, "{name}_bucket{{{labels},le=\"{most}\"}} {below}")?;
        }
        writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}")
    }
}

/// By operation, and whether the request was refused.
#[derive(Default)]
pub struct Cells([[Durations; 2]; 4]);

impl Cells {
    fn observe(&self, operation: Operation, rejected: bool, took: Duration) {
        self.0[operation as usize][usize::from(rejected)].observe(took);
    }

    fn render(&self, out: &mut String, name: &str, plugin: Option<&str>, step: Step) -> std::fmt::Result {
        let plugin = plugin.map(|p| format!("name=\"{p}\",")).unwrap_or_default();
        for (operation, cells) in OPERATIONS.iter().zip(&self.0) {
            for (rejected, durations) in [false, true].into_iter().zip(cells) {
                let (operation, step) = (operation.as_str(), step.as_str());
                let labels = format!("{plugin}operation=\"{operation}\",rejected=\"{rejected}\",type=\"{step}\"");
                durations.render(out, name, &labels)?;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    name: String,
    operation: &'static str,
    rejected: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    code: u16,
    name: String,
    operation: &'static str,
    rejected: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejected {
    error_type: &'static str,
    name: String,
    operation: &'static str,
    rejection_code: u16,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailedOpen {
    name: String,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Checked {
    enforcement_action: &'static str,
    error_type: &'static str,
    policy: String,
    policy_binding: String,
}

/// What came of asking a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Consent.
    Allowed,
    /// A refusal with its status code.
    Refused(u16),
    /// None that counts; whether the request goes on without.
    Failed {
        /// The failure policy is `Ignore`.
        open: bool,
    },
    /// The server could not make anything of it.
    Unusable,
}

/// Upstream's status code of a webhook that could not be asked.
const NOT_ASKED: u16 = 503;

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The measurements of webhooks and policies.
pub struct Measured {
    registry: Registry,
    latency: Histograms<Called>,
    answers: Family<Answered, Counter>,
    rejections: Family<Rejected, Counter>,
    failed_open: Family<FailedOpen, Counter>,
    checks: Family<Checked, Counter>,
    check_latency: Histograms<Checked>,
    steps: [Cells; 2],
}

impl Default for Measured {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("apiserver");
        let latency: Histograms<Called> =
            Family::new_with_constructor(|| Histogram::new(WEBHOOK_BUCKETS.iter().copied()));
        let check_latency: Histograms<Checked> =
            Family::new_with_constructor(|| Histogram::new(POLICY_BUCKETS.iter().copied()));
        let (answers, rejections) = (Family::default(), Family::default());
        let (failed_open, checks) = (Family::default(), Family::default());
        registry.register(
            "admission_webhook_admission_duration_seconds",
            "Admission webhook latency histogram in seconds, by name, operation and type",
            latency.clone(),
        );
        let asked = "Admission webhook requests, by name, operation, type, status code and whether they were refused";
        registry.register("admission_webhook_request", asked, answers.clone());
        let refused = "Admission webhook refusals, by name, operation, type, kind of error and status code";
        registry.register("admission_webhook_rejection_count", refused, rejections.clone());
        let open = "Admission webhooks that failed and were passed over, by name and type";
        registry.register("admission_webhook_fail_open_count", open, failed_open.clone());
        registry.register(
            "validating_admission_policy_check",
            "Checks of validating admission policies, by policy, binding and what was done",
            checks.clone(),
        );
        registry.register(
            "validating_admission_policy_check_duration_seconds",
            "Latency of checks of validating admission policies in seconds, by policy, binding and what was done",
            check_latency.clone(),
        );
        let steps = Default::default();
        Self { registry, latency, answers, rejections, failed_open, checks, check_latency, steps }
    }
}

fn text(flag: bool) -> &'static str {
    if flag { "true" } else { "false" }
}

impl Measured {
    /// A webhook was asked.
    pub fn webhook(&self, name: &str, step: Step, a: &Attributes<'_>, answer: Answer, took: Duration) {
        let (operation, r#type) = (a.operation.as_str(), step.of_webhooks());
        let (code, rejection) = match answer {
            Answer::Allowed => (200, None),
            Answer::Refused(code) => (code.min(CODE_MAX), Some("no_error")),
            Answer::Failed { open } => (NOT_ASKED, (!open).then_some("calling_webhook_error")),
            Answer::Unusable => (0, Some("apiserver_internal_error")),
        };
        let rejected = text(rejection.is_some());
        let name = name.to_owned();
        if answer == (Answer::Failed { open: true }) {
            self.failed_open.get_or_create(&FailedOpen { name: name.clone(), r#type }).inc();
        }
        if let Some(error_type) = rejection {
            let labels = Rejected { error_type, name: name.clone(), operation, rejection_code: code, r#type };
            self.rejections.get_or_create(&labels).inc();
        }
        self.answers.get_or_create(&Answered { code, name: name.clone(), operation, rejected, r#type }).inc();
        self.latency.get_or_create(&Called { name, operation, rejected, r#type }).observe(took.as_secs_f64());
    }

    /// A validating policy did not accept a request; `action` is what was done.
    pub fn policy(&self, policy: &str, binding: &str, action: &'static str, error: &'static str, took: Duration) {
        let labels = Checked {
            enforcement_action: action,
            error_type: error,
            policy: policy.to_owned(),
            policy_binding: binding.to_owned(),
        };
        self.checks.get_or_create(&labels).inc();
        self.check_latency.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A step has ended.
    pub fn step(&self, step: Step, operation: Operation, rejected: bool, took: Duration) {
        self.steps[step as usize].observe(operation, rejected, took);
    }

    /// Appends the measurements, without an end mark; `plugins` are those of both steps, with theirs.
    ///
    /// # Errors
    /// None that a string can have.
    pub fn render<'p>(
        &self,
        out: &mut String,
        plugins: impl Iterator<Item = (&'p str, Step, &'p Cells)>,
    ) -> std::fmt::Result {
        let mut counted = String::new();
        encode(&mut counted, &self.registry)?;
        out.push_str(counted.trim_end().trim_end_matches("# EOF"));
        let name = "apiserver_admission_step_admission_duration_seconds";
        writeln!(out, "# HELP {name} Admission latency histogram in seconds, by operation and step.")?;
        writeln!(out, "# TYPE {name} histogram")?;
        for (step, cells) in Step::ALL.into_iter().zip(&self.steps) {
            cells.render(out, name, None, step)?;
        }
        let name = "apiserver_admission_controller_admission_duration_seconds";
        writeln!(out, "# HELP {name} Admission plugin latency histogram in seconds, by name, operation and step.")?;
        writeln!(out, "# TYPE {name} histogram")?;
        for (plugin, step, cells) in plugins {
            cells.render(out, name, Some(plugin), step)?;
        }
        Ok(())
    }
}

/// A plugin and how long it took.
pub struct Timed<P: ?Sized> {
    /// The plugin.
    pub plugin: Box<P>,
    pub(super) cells: Cells,
}

impl<P: ?Sized> Timed<P> {
    /// The plugin, never run yet.
    #[must_use]
    pub fn new(plugin: Box<P>) -> Self {
        Self { plugin, cells: Cells::default() }
    }

    /// It ran since `at`, which is moved to now.
    pub(super) fn observe(&self, operation: Operation, rejected: bool, at: &mut Instant) {
        let now = Instant::now();
        self.cells.observe(operation, rejected, now - *at);
        *at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_how_long() {
        let measured = Measured::default();
        measured.step(Step::Admit, Operation::Create, false, Duration::from_millis(5));
        measured.step(Step::Admit, Operation::Create, false, Duration::from_millis(30));
        measured.step(Step::Validate, Operation::Delete, true, Duration::from_secs(3));
        measured.policy("p", "b", "deny", "no_error", Duration::from_millis(2));
        let cells = Cells::default();
        cells.observe(Operation::Update, false, Duration::from_millis(600));
        let mut out = String::new();
        measured.render(&mut out, [("LimitRanger", Step::Validate, &cells)].into_iter()).unwrap();
        let has = |line: &str| assert!(out.lines().any(|l| l == format!("apiserver_{line}")), "{line}: {out}");
        let step = "admission_step_admission_duration_seconds";
        let create = "operation=\"CREATE\",rejected=\"false\",type=\"admit\"";
        has(&format!("{step}_count{{{create}}} 2"));
        has(&format!("{step}_sum{{{create}}} 0.035"));
        has(&format!("{step}_bucket{{{create},le=\"0.005\"}} 1"));
        has(&format!("{step}_bucket{{{create},le=\"0.1\"}} 2"));
        has(&format!("{step}_bucket{{{create},le=\"1\"}} 2"));
        let delete = "operation=\"DELETE\",rejected=\"true\",type=\"validate\"";
        has(&format!("{step}_bucket{{{delete},le=\"2.5\"}} 0"));
        has(&format!("{step}_bucket{{{delete},le=\"+Inf\"}} 1"));
        let plugin = "name=\"LimitRanger\",operation=\"UPDATE\",rejected=\"false\",type=\"validate\"";
        has(&format!("admission_controller_admission_duration_seconds_count{{{plugin}}} 1"));
        let policy = "enforcement_action=\"deny\",error_type=\"no_error\",policy=\"p\",policy_binding=\"b\"";
        has(&format!("validating_admission_policy_check_total{{{policy}}} 1"));
    }
}
