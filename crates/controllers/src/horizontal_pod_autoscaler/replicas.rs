//! From what was measured to the number of replicas that would bring it to its target, pure.

use crate::pod_state;
use gantry_api::core::pod::resources::{amounts, is_sidecar, pod_requests};
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::amount_of;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// After its start a pod's CPU usage counts only from when it became ready
/// (`--horizontal-pod-autoscaler-cpu-initialization-period`).
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// A pod that turned unready this soon after its start has never been ready
/// (`--horizontal-pod-autoscaler-initial-readiness-delay`).
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What was measured of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodMetric {
    /// When.
    pub at: Timestamp,
    /// Over which span.
    pub window: SignedDuration,
    /// In thousandths.
    pub value: i64,
}

/// What was measured, by pod.
pub type PodMetrics = BTreeMap<String, PodMetric>;

/// How far off the target is near enough, as shares of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    /// Below.
    pub down: f64,
    /// Above.
    pub up: f64,
}

impl Tolerances {
    fn within(&self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

/// Everything a calculation is from besides the measurements.
pub struct Pods<'a> {
    /// The pods that the target selects.
    pub pods: &'a [Arc<Pod>],
    /// Replicas asked for now.
    pub current: i32,
    /// What is near enough.
    pub tolerances: Tolerances,
    /// Now.
    pub now: Timestamp,
}

/// The replicas to have, and what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// How many.
    pub replicas: i32,
    /// Share of the requests in use, in percent; of calculations by utilization.
    pub utilization: Option<i32>,
    /// Mean per pod, or the whole, in thousandths.
    pub value: i64,
}

#[derive(Default)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

/// Whether a CPU measurement says nothing of the pod's work yet.
fn is_unready(pod: &Pod, metric: &PodMetric, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let (Some(ready), Some(started)) = (pod_state::condition(pod, "Ready"), started) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let later = |t: Timestamp, by: SignedDuration| t.saturating_add(by).unwrap_or(Timestamp::MAX);
    let unready = ready.status == "False";
    if later(started.0, CPU_INITIALIZATION) > now {
        return unready || metric.at < later(changed, metric.window);
    }
    unready && later(started.0, INITIAL_READINESS) > changed
}

fn group(pods: &Pods<'_>, metrics: &PodMetrics, resource: &str) -> Groups {
    let mut groups = Groups::default();
    for pod in pods.pods {
        let name = pod.metadata.name().to_owned();
        if pod.metadata.is_deleting() || pod_state::is_finished(pod) {
            groups.ignored.insert(name);
        } else if pod_state::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else {
            match metrics.get(&name) {
                None => drop(groups.missing.insert(name)),
                Some(m) if resource == "cpu" && is_unready(pod, m, pods.now) => drop(groups.unready.insert(name)),
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

/// What each pod, or its container, asks for of the resource, in thousandths.
fn requests(pods: &Pods<'_>, container: &str, resource: &str) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods.pods {
        let name = pod.metadata.name();
        let Some(spec) = &pod.spec else { continue };
        let own = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).is_some_and(|r| !r.is_empty());
        let request = if own && container.is_empty() {
            let whole = pod_requests(spec);
            let amount = whole.get(resource);
            amount.ok_or_else(|| format!("missing pod-level request for {resource} in Pod {name}"))?.milli_value()
        } else {
            let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
            let mut counted =
                spec.containers.iter().chain(sidecars).filter(|c| container.is_empty() || c.name == container);
            let mut sum = 0;
            let mut any = false;
            counted.try_for_each(|c| {
                let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
                if !amounts(requests).contains_key(resource) {
                    return Err(format!("missing request for {resource} in container {} of Pod {name}", c.name));
                }
                any = true;
                sum += amount_of(requests, resource).milli_value();
                Ok(())
            })?;
            if !container.is_empty() && !any {
                return Err(format!("container {container} not found in Pod {name}"));
            }
            sum
        };
        all.insert(name.to_owned(), request);
    }
    Ok(all)
}

#[allow(clippy::cast_precision_loss)]
fn share(part: i64, whole: i64) -> f64 {
    part as f64 / whole as f64
}

/// Rounded up, within what a number of replicas can be.
#[allow(clippy::cast_possible_truncation)]
fn ceil(replicas: f64) -> i32 {
    replicas.ceil().clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}

struct Ratio {
    /// Of what is used to what is aimed at.
    ratio: f64,
    utilization: Option<i32>,
    value: i64,
}

/// A way to compare measurements with a target, and what a pod without a measurement is taken to use when shrinking.
trait Measure {
    fn ratio(&self, metrics: &PodMetrics) -> Result<Ratio, String>;
    fn assumed(&self, pod: &str) -> i64;
}

struct ByUtilization {
    requests: BTreeMap<String, i64>,
    target: i32,
}

impl Measure for ByUtilization {
    fn ratio(&self, metrics: &PodMetrics) -> Result<Ratio, String> {
        let (mut used, mut asked, mut n) = (0i64, 0i64, 0i64);
        for (pod, metric) in metrics {
            if let Some(request) = self.requests.get(pod) {
                used = used.saturating_add(metric.value);
                asked = asked.saturating_add(*request);
                n += 1;
            }
        }
        if asked == 0 {
            return Err("no metrics returned matched known pods".to_owned());
        }
        let percent = i32::try_from(used.saturating_mul(100) / asked).unwrap_or(i32::MAX);
        let ratio = f64::from(percent) / f64::from(self.target);
        Ok(Ratio { ratio, utilization: Some(percent), value: used / n })
    }

    fn assumed(&self, pod: &str) -> i64 {
        let request = self.requests.get(pod).copied().unwrap_or(0);
        request.saturating_mul(i64::from(self.target.max(100))) / 100
    }
}

struct ByValue {
    target: i64,
}

impl Measure for ByValue {
    fn ratio(&self, metrics: &PodMetrics) -> Result<Ratio, String> {
        let sum = metrics.values().fold(0i64, |sum, m| sum.saturating_add(m.value));
        let mean = sum / i64::try_from(metrics.len()).unwrap_or(i64::MAX).max(1);
        Ok(Ratio { ratio: share(mean, self.target), utilization: None, value: mean })
    }

    fn assumed(&self, _pod: &str) -> i64 {
        self.target
    }
}

fn none_returned(pods: &Pods<'_>) -> Result<(), String> {
    if pods.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    Ok(())
}

fn propose(
    pods: &Pods<'_>,
    mut metrics: PodMetrics,
    resource: &str,
    measure: impl FnOnce() -> Result<Box<dyn Measure>, String>,
) -> Result<Proposal, String> {
    none_returned(pods)?;
    let groups = group(pods, &metrics, resource);
    metrics.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if metrics.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let measure = measure()?;
    let first = measure.ratio(&metrics)?;
    let proposal = |replicas| Proposal { replicas, utilization: first.utilization, value: first.value };
    let grows_with_unready = !groups.unready.is_empty() && first.ratio > 1.0;
    if !grows_with_unready && groups.missing.is_empty() {
        let near = pods.tolerances.within(first.ratio);
        return Ok(proposal(if near { pods.current } else { ceil(first.ratio * count(groups.ready)) }));
    }
    let assume = |value| PodMetric { at: pods.now, window: SignedDuration::ZERO, value };
    // What is not known must not drive the decision: when growing, nothing is used there, when shrinking, all of it.
    for pod in &groups.missing {
        if first.ratio < 1.0 {
            metrics.insert(pod.clone(), assume(measure.assumed(pod)));
        } else if first.ratio > 1.0 {
            metrics.insert(pod.clone(), assume(0));
        }
    }
    if grows_with_unready {
        metrics.extend(groups.unready.iter().map(|pod| (pod.clone(), assume(0))));
    }
    let again = measure.ratio(&metrics)?.ratio;
    let turned = (first.ratio < 1.0 && again > 1.0) || (first.ratio > 1.0 && again < 1.0);
    if pods.tolerances.within(again) || turned {
        return Ok(proposal(pods.current));
    }
    let replicas = ceil(again * count(metrics.len()));
    if (again < 1.0 && replicas > pods.current) || (again > 1.0 && replicas < pods.current) {
        return Ok(proposal(pods.current));
    }
    Ok(proposal(replicas))
}

/// By the share of what is requested that is used, in percent.
///
/// # Errors
/// Why there is no answer, in upstream's words.
pub fn by_utilization(
    pods: &Pods<'_>,
    metrics: PodMetrics,
    target: i32,
    resource: &str,
    container: &str,
) -> Result<Proposal, String> {
    propose(pods, metrics, resource, || {
        Ok(Box::new(ByUtilization { requests: requests(pods, container, resource)?, target }))
    })
}

/// By the mean per pod in thousandths. `resource` is empty for metrics of pods that are no resources.
///
/// # Errors
/// As [`by_utilization`].
pub fn by_mean(pods: &Pods<'_>, metrics: PodMetrics, target: i64, resource: &str) -> Result<Proposal, String> {
    propose(pods, metrics, resource, || Ok(Box::new(ByValue { target })))
}

/// By one value of something else, in thousandths, that is shared by all ready pods.
///
/// # Errors
/// As [`by_utilization`].
pub fn by_whole(pods: &Pods<'_>, value: i64, target: i64) -> Result<Proposal, String> {
    let ratio = share(value, target);
    let proposal = |replicas| Ok(Proposal { replicas, utilization: None, value });
    if pods.current == 0 {
        return proposal(ceil(ratio));
    }
    if pods.tolerances.within(ratio) {
        return proposal(pods.current);
    }
    none_returned(pods).map_err(|e| format!("unable to calculate ready pods: {e}"))?;
    let ready = pods.pods.iter().filter(|p| pod_state::phase(p) == "Running" && pod_state::is_ready(p)).count();
    proposal(ceil(ratio * count(ready)))
}

/// By one value of something else, in thousandths, of which each of `replicas` pods should have its share.
#[must_use]
pub fn by_share(replicas: i32, tolerances: Tolerances, value: i64, target: i64) -> Proposal {
    let ratio = share(value, target) / f64::from(replicas);
    let wanted = if tolerances.within(ratio) { replicas } else { ceil(share(value, target)) };
    let per_pod = i64::from(replicas);
    let value = if per_pod == 0 { 0 } else { value / per_pod + i64::from(value % per_pod > 0) };
    Proposal { replicas: wanted, utilization: None, value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn pod(name: &str, phase: &str, ready: bool) -> Arc<Pod> {
        let pod = <Pod as Kind>::from_value(json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": phase, "startTime": at(-1000).to_string(), "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(-990).to_string()}]},
        }));
        Arc::new(pod.unwrap())
    }

    fn metrics(values: &[(&str, i64)]) -> PodMetrics {
        let metric = |value| PodMetric { at: at(0), window: SignedDuration::from_secs(10), value };
        values.iter().map(|(n, v)| ((*n).to_owned(), metric(*v))).collect()
    }

    fn decide(pods: &[Arc<Pod>], values: &[(&str, i64)], target: i32) -> Result<Proposal, String> {
        let current = i32::try_from(pods.len()).unwrap();
        let pods = Pods { pods, current, tolerances: Tolerances { down: 0.1, up: 0.1 }, now: at(0) };
        by_utilization(&pods, metrics(values), target, "cpu", "")
    }

    #[test]
    fn utilization() {
        let two = [pod("a", "Running", true), pod("b", "Running", true)];
        type Usage<'a> = &'a [(&'a str, i64)];
        let cases: [(Usage<'_>, i32, i32); 5] = [
            (&[("a", 500), ("b", 500)], 50, 2),
            (&[("a", 540), ("b", 550)], 50, 2),
            (&[("a", 1000), ("b", 1000)], 50, 4),
            (&[("a", 100), ("b", 100)], 50, 1),
            (&[("a", 600), ("b", 700)], 50, 3),
        ];
        for (values, target, want) in cases {
            let got = decide(&two, values, target).unwrap();
            assert_eq!(got.replicas, want, "{values:?}");
            assert!(got.utilization.is_some());
        }
    }

    #[test]
    fn pods_without_measurements_hold_back() {
        let three = [pod("a", "Running", true), pod("b", "Running", true), pod("c", "Running", true)];
        // Growing: c counts as idle. Shrinking: c counts as busy.
        assert_eq!(decide(&three, &[("a", 900), ("b", 900)], 50).unwrap().replicas, 4);
        assert_eq!(decide(&three, &[("a", 10), ("b", 10)], 50).unwrap().replicas, 3);
        let starting = [pod("a", "Running", true), pod("b", "Pending", false)];
        assert_eq!(decide(&starting, &[("a", 900)], 50).unwrap().replicas, 2, "the pending pod is to help");
        assert_eq!(
            decide(&[pod("a", "Pending", false)], &[], 50).unwrap_err(),
            "did not receive metrics for targeted pods (pods might be unready)"
        );
        assert_eq!(decide(&[], &[], 50).unwrap_err(), "no pods returned by selector while calculating replica count");
    }

    #[test]
    fn what_is_not_requested_has_no_utilization() {
        let mut bare = (*pod("a", "Running", true)).clone();
        bare.spec.as_mut().unwrap().containers[0].resources = None;
        let e = decide(&[Arc::new(bare)], &[("a", 1)], 50).unwrap_err();
        assert_eq!(e, "missing request for cpu in container c of Pod a");
    }

    #[test]
    fn values_of_other_things() {
        let two = [pod("a", "Running", true), pod("b", "Running", true)];
        let tolerances = Tolerances { down: 0.1, up: 0.1 };
        let pods = Pods { pods: &two, current: 2, tolerances, now: at(0) };
        assert_eq!(by_whole(&pods, 30_000, 10_000).unwrap().replicas, 6);
        assert_eq!(by_whole(&pods, 10_500, 10_000).unwrap().replicas, 2);
        assert_eq!(by_share(2, tolerances, 30_000, 10_000), Proposal { replicas: 3, utilization: None, value: 15_000 });
        assert_eq!(by_mean(&pods, metrics(&[("a", 20), ("b", 40)]), 10, "").unwrap().replicas, 6);
    }
}
