//! One task per container with probes. It first runs the startup probe, then liveness and readiness side by side, and
//! tells the pod's worker whenever a verdict changes.

use super::{Verdict, ask};
use crate::pod::names;
use crate::pod::plan::Health;
use gantry_container::runtime::Runtime;
use gantry_reconcile::{EventRecorder, EventType};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// What probes found out, by container id.
#[derive(Debug, Default, Clone)]
pub(crate) struct Results {
    pub health: HashMap<String, Health>,
    pub ready: HashSet<String>,
}

/// The probe tasks of one pod. Dropping it ends them.
#[derive(Default)]
pub(crate) struct Probers {
    results: Arc<Mutex<Results>>,
    tasks: HashMap<String, JoinHandle<()>>,
    /// The pod ends: only readiness still matters.
    ending: watch::Sender<bool>,
}

impl Drop for Probers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a probe task needs to know.
pub(crate) struct Subject {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub id: String,
    pub address: IpAddr,
    pub started: SystemTime,
    pub runtime: Arc<dyn Runtime>,
    pub recorder: EventRecorder,
    pub wake: Arc<Notify>,
}

impl Probers {
    /// The verdicts so far.
    pub(crate) fn results(&self) -> Results {
        self.results.lock().clone()
    }

    /// Ends all tasks; verdicts stay.
    pub(crate) fn stop(&mut self) {
        for task in self.tasks.drain() {
            task.1.abort();
        }
    }

    /// Ends liveness and startup probes: whoever is to end anyway is not restarted. Whether it is ready is still asked.
    pub(crate) fn pod_ends(&mut self) {
        self.ending.send_replace(true);
    }

    /// Forgets containers that no longer run.
    pub(crate) fn keep(&mut self, running: &HashSet<String>) {
        self.tasks.retain(|id, task| {
            let keep = running.contains(id);
            if !keep {
                task.abort();
            }
            keep
        });
        let mut results = self.results.lock();
        results.health.retain(|id, _| running.contains(id));
        results.ready.retain(|id| running.contains(id));
    }

    /// Whether a container is looked after already.
    pub(crate) fn knows(&self, id: &str) -> bool {
        self.results.lock().health.contains_key(id)
    }

    /// Looks after a running container. `known` are verdicts from before a restart of the node agent: they hold until the
    /// probes say otherwise.
    pub(crate) fn watch(&mut self, subject: Subject, known: Option<(bool, bool)>) {
        let c = &subject.container;
        let (was_started, was_ready) = known.unwrap_or((false, false));
        let health = Health { started: c.startup_probe.is_none() || was_started, ..Health::default() };
        {
            let mut results = self.results.lock();
            results.health.insert(subject.id.clone(), health);
            if (health.started && c.readiness_probe.is_none()) || (c.readiness_probe.is_some() && was_ready) {
                results.ready.insert(subject.id.clone());
            }
        }
        if c.startup_probe.is_none() && c.liveness_probe.is_none() && c.readiness_probe.is_none() {
            return;
        }
        let id = subject.id.clone();
        let ending = self.ending.subscribe();
        self.tasks.insert(id, tokio::spawn(run(subject, self.results.clone(), was_started, ending)));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

async fn run(subject: Subject, results: Arc<Mutex<Results>>, was_started: bool, mut ending: watch::Receiver<bool>) {
    // The sender lives as long as the task may.
    let mut ended = async || drop(ending.wait_for(|e| *e).await);
    if let Some(probe) = subject.container.startup_probe.clone()
        && !was_started
    {
        tokio::select! {
            () = repeat(&subject, &probe, Kind::Startup, &results) => {}
            () = ended() => return,
        }
        let failed = results.lock().health.get(&subject.id).is_none_or(|h| !h.started);
        if failed {
            return;
        }
    }
    let liveness = async {
        if let Some(probe) = &subject.container.liveness_probe {
            tokio::select! {
                () = repeat(&subject, probe, Kind::Liveness, &results) => {}
                () = ended() => {}
            }
        }
    };
    let readiness = async {
        match &subject.container.readiness_probe {
            Some(probe) => repeat(&subject, probe, Kind::Readiness, &results).await,
            None => {
                if results.lock().ready.insert(subject.id.clone()) {
                    subject.wake.notify_one();
                }
            }
        }
    };
    tokio::join!(liveness, readiness);
}

/// Runs one probe until its verdict is final (startup: either; liveness: failure) or the task is ended.
async fn repeat(subject: &Subject, probe: &Probe, kind: Kind, results: &Mutex<Results>) {
    let seconds = |v: Option<i32>, default: u64| v.and_then(|v| u64::try_from(v).ok()).unwrap_or(default);
    let threshold = |v: Option<i32>, default: u32| v.and_then(|v| u32::try_from(v).ok()).unwrap_or(default).max(1);
    let delay = Duration::from_secs(seconds(probe.initial_delay_seconds, 0));
    let age = SystemTime::now().duration_since(subject.started).unwrap_or_default();
    tokio::time::sleep(delay.saturating_sub(age)).await;
    let period = Duration::from_secs(seconds(probe.period_seconds, 10).max(1));
    let (needed, allowed) = (threshold(probe.success_threshold, 1), threshold(probe.failure_threshold, 3));
    let (mut successes, mut failures) = (0u32, 0u32);
    let about = names::container_reference(&subject.pod, &subject.container.name);
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let verdict = ask(probe, &subject.container, &subject.id, subject.address, subject.runtime.as_ref()).await;
        match verdict {
            Verdict::Success | Verdict::Warning(_) => {
                if let Verdict::Warning(output) = &verdict {
                    let message = format!("{} probe warning: {output}", kind.name());
                    subject.recorder.record(&about, EventType::Warning, "ProbeWarning", &message);
                }
                successes += 1;
                failures = 0;
                if successes >= needed && settle(subject, kind, true, results) {
                    return;
                }
            }
            Verdict::Failure(output) => {
                failures += 1;
                successes = 0;
                let message = format!("{} probe failed: {output}", kind.name());
                subject.recorder.record(&about, EventType::Warning, "Unhealthy", &message);
                if failures >= allowed && settle(subject, kind, false, results) {
                    return;
                }
            }
            Verdict::Error(error) => {
                let message = format!("{} probe errored and resulted in unknown state: {error}", kind.name());
                subject.recorder.record(&about, EventType::Warning, "Unhealthy", &message);
            }
        }
    }
}

/// Records a verdict; true where the probe has nothing more to say about this container.
fn settle(subject: &Subject, kind: Kind, ok: bool, results: &Mutex<Results>) -> bool {
    let mut results = results.lock();
    let id = &subject.id;
    let changed;
    let mut last = false;
    match kind {
        Kind::Readiness => {
            changed = if ok { results.ready.insert(id.clone()) } else { results.ready.remove(id) };
        }
        Kind::Liveness => {
            let Some(health) = results.health.get_mut(id) else { return true };
            last = !ok;
            changed = !ok && !std::mem::replace(&mut health.liveness_failed, true);
        }
        Kind::Startup => {
            let Some(health) = results.health.get_mut(id) else { return true };
            last = true;
            changed = true;
            if ok {
                health.started = true;
            } else {
                health.startup_failed = true;
            }
        }
    }
    drop(results);
    if changed {
        subject.wake.notify_one();
    }
    last
}
