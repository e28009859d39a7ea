//! HorizontalPodAutoscalers: every few seconds what is measured of a workload decides how many replicas it has.

mod behavior;
mod compute;
mod metrics;
mod replicas;
pub(crate) mod target;

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use behavior::{History, Told, Wanted};
use compute::Input;
use gantry_api::Time;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::Amount;
use gantry_client::{Api, PostParams};
use gantry_reconcile::store::{key_of, split_key};
use gantry_reconcile::{Change, Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
    MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use metrics::Metrics;
use parking_lot::Mutex;
use replicas::{Pods, Tolerances};
use std::collections::BTreeMap;
use std::sync::Arc;
use target::Targets;

const WORKERS: usize = 5;
/// How far off the target is near enough (`--horizontal-pod-autoscaler-tolerance`).
const TOLERANCE: f64 = 0.1;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["autoscaling"], &["horizontalpodautoscalers"], &["get", "list", "watch"]),
    Rule::new(&["autoscaling"], &["horizontalpodautoscalers/status"], &["update"]),
    Rule::new(&["*"], &["*/scale"], &["get", "update"]),
    Rule::new(&[""], &["pods"], &["list"]),
    Rule::new(&["metrics.k8s.io"], &["pods"], &["list"]),
    Rule::new(&["custom.metrics.k8s.io"], &["*"], &["get", "list"]),
    Rule::new(&["external.metrics.k8s.io"], &["*"], &["get", "list"]),
    EVENTS,
];

struct Autoscalers {
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    metrics: Metrics,
    targets: Targets,
    histories: Arc<Mutex<BTreeMap<String, History>>>,
    /// What each autoscaler's target selects, to find pods that two of them would scale.
    selectors: Arc<Mutex<BTreeMap<String, Selector>>>,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let autoscalers = setup.informers.get::<HorizontalPodAutoscaler>();
    let pods = setup.informers.get::<Pod>();
    let queue = Queue::new(setup.name);
    let histories: Arc<Mutex<BTreeMap<String, History>>> = Arc::default();
    let selectors: Arc<Mutex<BTreeMap<String, Selector>>> = Arc::default();
    let (keys, past, known) = (queue.clone(), histories.clone(), selectors.clone());
    autoscalers.on_change(move |change| {
        let key = key_of(change.object().as_ref());
        if matches!(change, Change::Deleted(_)) {
            past.lock().remove(&key);
            known.lock().remove(&key);
        } else if change.old().is_none_or(|old| old.spec != change.object().spec) {
            keys.add(key);
        }
    });
    if !wait_synced(&[&autoscalers, &pods], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("horizontal-pod-autoscaler"), setup.cancel.clone());
    let (metrics, targets) = (Metrics::new(setup.client.clone()), Targets::new(setup.client.clone()));
    let controller = Autoscalers { autoscalers, pods, metrics, targets, histories, selectors, setup, recorder };
    runner::run(Arc::new(controller), queue, WORKERS, cancel).await;
}

/// Sets a condition; its time is that of the last change of its status.
fn set_condition(hpa: &mut HorizontalPodAutoscaler, now: &Time, kind: &str, told: (bool, &str, &str)) {
    let (holds, reason, message) = told;
    let conditions = hpa.status.get_or_insert_default().conditions.get_or_insert_default();
    let status = if holds { "True" } else { "False" };
    let at = conditions.iter().position(|c| c.type_ == kind).unwrap_or_else(|| {
        conditions.push(HorizontalPodAutoscalerCondition { type_: kind.to_owned(), ..Default::default() });
        conditions.len() - 1
    });
    let condition = &mut conditions[at];
    if condition.status != status {
        status.clone_into(&mut condition.status);
        condition.last_transition_time = Some(now.clone());
    }
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message.to_owned());
}

fn tolerances(hpa: &HorizontalPodAutoscaler) -> Tolerances {
    let behavior = hpa.spec.behavior.as_ref();
    let of = |rules: Option<&HPAScalingRules>| {
        let own = rules.and_then(|r| r.tolerance.as_ref()).and_then(|q| Amount::parse(&q.0).ok());
        own.map_or(TOLERANCE, |a| a.as_f64())
    };
    Tolerances {
        down: of(behavior.and_then(|b| b.scale_down.as_ref())),
        up: of(behavior.and_then(|b| b.scale_up.as_ref())),
    }
}

/// What the metrics ask for together.
struct Demand {
    replicas: i32,
    /// The metric that asks for most.
    metric: String,
    statuses: Vec<MetricStatus>,
}

/// A round over one autoscaler.
struct Round<'a> {
    of: &'a Autoscalers,
    key: &'a str,
    /// As stored.
    before: &'a HorizontalPodAutoscaler,
    /// With the conditions of this round.
    hpa: HorizontalPodAutoscaler,
    now: Time,
}

impl Round<'_> {
    fn condition(&mut self, kind: &str, holds: bool, reason: &str, message: &str) {
        set_condition(&mut self.hpa, &self.now, kind, (holds, reason, message));
    }

    fn told(&mut self, kind: &str, told: Told) {
        set_condition(&mut self.hpa, &self.now, kind, told);
    }

    fn warn(&self, reason: &str, message: &str) {
        self.of.recorder.warning(self.before, reason, message);
    }

    /// Writes the status, where it changed.
    async fn finish(&mut self) -> Result<(), Error> {
        if self.hpa.status == self.before.status {
            return Ok(());
        }
        let namespace = self.before.metadata.namespace();
        let api = Api::<HorizontalPodAutoscaler>::namespaced(self.of.setup.client.clone(), namespace);
        match api.update_status(&PostParams::default(), &self.hpa).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => {
                self.warn("FailedUpdateStatus", &e.to_string());
                Err(Error::api(format!("update status of horizontal pod autoscaler {}", self.key), e))
            }
        }
    }

    fn set_status(&mut self, current: i32, desired: i32, statuses: Vec<MetricStatus>, rescaled: bool) {
        let old = self.hpa.status.take().unwrap_or_default();
        self.hpa.status = Some(HorizontalPodAutoscalerStatus {
            current_replicas: Some(current).filter(|n| *n != 0),
            desired_replicas: desired,
            current_metrics: Some(statuses).filter(|s| !s.is_empty()),
            last_scale_time: if rescaled { Some(self.now.clone()) } else { old.last_scale_time },
            observed_generation: self.before.metadata.generation.or(old.observed_generation),
            conditions: old.conditions,
        });
    }

    /// Nothing can be done for want of the scale.
    async fn without_scale(&mut self, why: &str) -> Result<(), Error> {
        self.warn("FailedGetScale", why);
        let message = format!("the HPA controller was unable to get the target's current scale: {why}");
        self.condition("AbleToScale", false, "FailedGetScale", &message);
        self.finish().await
    }

    async fn run(&mut self) -> Result<(), Error> {
        let target = self.hpa.spec.scale_target_ref.clone();
        let namespace = self.before.metadata.namespace();
        let api_version = target.api_version.as_deref().unwrap_or_default();
        let resource = match self.of.targets.resolve(api_version, &target.kind).await {
            Ok(resource) => resource,
            Err(e) => return self.without_scale(&e).await,
        };
        let scale = match self.of.targets.scale(&resource, namespace, &target.name).await {
            Ok(scale) => scale,
            Err(e) => return self.without_scale(&e.to_string()).await,
        };
        let message = "the HPA controller was able to get the target's current scale";
        self.condition("AbleToScale", true, "SucceededGetScale", message);
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let now = self.of.setup.config.clock.now();
        self.of.histories.lock().entry(self.key.to_owned()).or_default().begin(current, now);
        let (min, max) = (self.hpa.spec.min_replicas.unwrap_or(1), self.hpa.spec.max_replicas);
        let (mut statuses, mut reason, mut desired) = (Vec::new(), String::new(), current);
        if current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.condition("ScalingActive", false, "ScalingDisabled", message);
        } else if current > max {
            "Current number of replicas above Spec.MaxReplicas".clone_into(&mut reason);
            desired = max;
        } else if current < min {
            "Current number of replicas below Spec.MinReplicas".clone_into(&mut reason);
            desired = min;
        } else {
            let demand = match self.demand(&scale, current).await {
                Ok(demand) => demand,
                Err((failed, e)) => {
                    let wanted = self.hpa.status.as_ref().map_or(0, |s| s.desired_replicas);
                    self.set_status(current, wanted, failed, false);
                    let written = self.finish().await;
                    self.warn("FailedComputeMetricsReplicas", &e);
                    return written;
                }
            };
            if demand.replicas > current {
                reason = format!("{} above target", demand.metric);
            } else if demand.replicas < current {
                "All metrics below target".clone_into(&mut reason);
            }
            statuses = demand.statuses;
            let wanted = Wanted { current, desired: demand.replicas, min, max, now };
            let behavior = self.hpa.spec.behavior.clone();
            let normalized = {
                let mut histories = self.of.histories.lock();
                histories.entry(self.key.to_owned()).or_default().normalize(&wanted, behavior.as_ref())
            };
            self.told("AbleToScale", normalized.able);
            self.told("ScalingLimited", normalized.limited);
            desired = normalized.replicas;
        }
        let rescale = desired != current;
        if rescale {
            if let Err(e) = self.of.targets.set(&resource, namespace, scale, desired).await {
                let message = format!("New size: {desired}; reason: {reason}; error: {e}");
                self.warn("FailedRescale", &message);
                let message = format!("the HPA controller was unable to update the target scale: {e}");
                self.condition("AbleToScale", false, "FailedUpdateScale", &message);
                let wanted = self.hpa.status.as_ref().map_or(0, |s| s.desired_replicas);
                self.set_status(current, wanted, statuses, false);
                return self.finish().await;
            }
            let message = format!("the HPA controller was able to update the target scale to {desired}");
            self.condition("AbleToScale", true, "SucceededRescale", &message);
            let message = format!("New size: {desired}; reason: {reason}");
            self.of.recorder.normal(self.before, "SuccessfulRescale", &message);
            let behavior = self.hpa.spec.behavior.as_ref();
            if let Some(history) = self.of.histories.lock().get_mut(self.key) {
                history.scaled(behavior, current, desired, now);
            }
        }
        self.set_status(current, desired, statuses, rescale);
        self.finish().await
    }

    /// The selector of the target's pods.
    fn selector(&mut self, text: &str) -> Result<(Selector, Vec<Arc<Pod>>), String> {
        if text.is_empty() {
            self.warn("SelectorRequired", "selector is required");
            let message = "the HPA target's scale is missing a selector";
            self.condition("ScalingActive", false, "InvalidSelector", message);
            return Err("selector is required".to_owned());
        }
        let selector = Selector::parse(text).map_err(|e| {
            let message = format!("couldn't convert selector into a corresponding internal selector object: {e}");
            self.warn("InvalidSelector", &message);
            self.condition("ScalingActive", false, "InvalidSelector", &message);
            message
        })?;
        let namespace = self.before.metadata.namespace();
        let mut pods = self.of.pods.store().list_in(namespace);
        pods.retain(|p| selector.matches_optional(p.metadata.labels.as_ref()));
        let others: Vec<String> = {
            let mut known = self.of.selectors.lock();
            known.insert(self.key.to_owned(), selector.clone());
            let selects = |s: &Selector| pods.iter().any(|p| s.matches_optional(p.metadata.labels.as_ref()));
            let here = known.iter().filter(|(k, s)| split_key(k).0 == namespace && selects(s));
            here.map(|(k, _)| k.clone()).take(2).collect()
        };
        if others.len() > 1 {
            let others = others.join(" ");
            let message = format!("pods by selector {text} are controlled by more than one HPA (e.g. [{others}])");
            self.warn("AmbiguousSelector", &message);
            self.condition("ScalingActive", false, "AmbiguousSelector", &message);
            return Err(message);
        }
        Ok((selector, pods))
    }

    /// What the metrics ask for: of those that can be had the one that asks for most. Where some cannot, the target does not
    /// shrink.
    async fn demand(&mut self, scale: &Scale, current: i32) -> Result<Demand, (Vec<MetricStatus>, String)> {
        let text = scale.status.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
        let (_, pods) = self.selector(&text).map_err(|e| (Vec::new(), e))?;
        let hpa = self.hpa.clone();
        let specs = hpa.spec.metrics.clone().unwrap_or_default();
        let input = Input {
            hpa: &hpa,
            pods: Pods { pods: &pods, current, tolerances: tolerances(&hpa), now: self.of.setup.config.clock.now() },
            selector: &text,
            reported: scale.status.as_ref().map_or(0, |s| s.replicas),
            metrics: &self.of.metrics,
            targets: &self.of.targets,
        };
        let mut demand = Demand { replicas: 0, metric: String::new(), statuses: Vec::new() };
        let (mut failures, mut first) = (0, None);
        for spec in &specs {
            match input.compute(spec).await {
                Ok(outcome) => {
                    demand.statuses.push(outcome.status);
                    if demand.replicas == 0 || outcome.replicas > demand.replicas {
                        demand.replicas = outcome.replicas;
                        demand.metric = outcome.name;
                    }
                }
                Err(failure) => {
                    self.warn(failure.reason, &failure.message);
                    demand.statuses.push(MetricStatus::default());
                    failures += 1;
                    first.get_or_insert(failure);
                }
            }
        }
        if let Some(failure) = first {
            let all = specs.len();
            let error = format!("invalid metrics ({failures} invalid out of {all}), first error is: {}", failure.error);
            if failures >= all || demand.replicas < current {
                let message = format!("the HPA was unable to compute the replica count: {}", failure.message);
                self.condition("ScalingActive", false, failure.reason, &message);
                return Err((demand.statuses, error));
            }
            tracing::warn!(autoscaler = self.key, %error, "scaling by the metrics that there are");
        }
        let message = format!("the HPA was able to successfully calculate a replica count from {}", demand.metric);
        self.condition("ScalingActive", true, "ValidMetricFound", &message);
        Ok(demand)
    }
}

#[async_trait]
impl Controller for Autoscalers {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(before) = self.autoscalers.store().by_key(key) else { return Ok(Outcome::done()) };
        let mut round =
            Round { of: self, key, before: &before, hpa: (*before).clone(), now: self.setup.config.clock.time() };
        // The next round is the next try.
        if let Err(e) = round.run().await {
            if e.is_routine() {
                tracing::debug!(autoscaler = key, error = %e, "trying again with the next round");
            } else {
                tracing::warn!(autoscaler = key, error = %e, "trying again with the next round");
            }
        }
        Ok(Outcome::after(self.setup.config.autoscaling_period))
    }
}
