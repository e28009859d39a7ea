//! What to do next for a pod, decided purely: from its spec and what the runtime shows to kills, starts and a time to
//! look again.

use super::backoff::{Backoffs, go_duration};
use super::names;
use gantry_api::core::pod::resources::is_sidecar;
use gantry_container::runtime::{ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// The pod's containers as the runtime shows them, by name, oldest attempt first.
#[derive(Debug, Default, Clone)]
pub(crate) struct Observed(pub BTreeMap<String, Vec<ContainerStatus>>);

impl Observed {
    pub(crate) fn new(all: Vec<ContainerStatus>) -> Self {
        let mut by_name: BTreeMap<String, Vec<ContainerStatus>> = BTreeMap::new();
        for c in all {
            by_name.entry(c.name.clone()).or_default().push(c);
        }
        for list in by_name.values_mut() {
            list.sort_by_key(|c| c.attempt);
        }
        Self(by_name)
    }

    /// The newest attempt.
    pub(crate) fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.0.get(name)?.last()
    }

    /// The newest attempt that ended before the newest.
    pub(crate) fn previous(&self, name: &str) -> Option<&ContainerStatus> {
        self.0.get(name)?.iter().rev().skip(1).find(|c| c.state == ContainerState::Exited)
    }

    /// All attempts.
    pub(crate) fn all(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.0.values().flatten()
    }

    /// Those that run or are about to.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.all().filter(|c| c.state != ContainerState::Exited)
    }
}

/// What probes have found out about a running container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// Its startup probe has succeeded, or it has none.
    pub started: bool,
    /// Its liveness probe has failed often enough.
    pub liveness_failed: bool,
    /// Its startup probe has failed often enough.
    pub startup_failed: bool,
}

/// What a plan is made from.
pub(crate) struct Inputs<'a> {
    pub pod: &'a Pod,
    /// The sandbox that is ready, if any.
    pub sandbox: Option<&'a str>,
    pub observed: &'a Observed,
    /// By container id.
    pub health: &'a HashMap<String, Health>,
    pub backoffs: &'a Backoffs,
    /// Containers whose image or configuration failed: not to be tried before.
    pub not_before: &'a HashMap<String, Instant>,
    /// Ids whose `postStart` hook failed.
    pub hook_failed: &'a HashMap<String, String>,
    pub now: Instant,
    pub wall: SystemTime,
}

/// The role a container plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Init,
    Sidecar,
    Main,
    Ephemeral,
}

/// A container to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub name: String,
    pub class: Class,
    pub attempt: u32,
    /// When the attempt before it failed; its back-off grows.
    pub after_failure: Option<Instant>,
}

/// A container to kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    /// Of the probe that failed, where it sets one.
    pub grace_seconds: Option<i64>,
}

/// What to do next.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub create_sandbox: bool,
    pub kill: Vec<Kill>,
    pub start: Vec<Start>,
    /// When to look again, though nothing happens.
    pub wake: Option<Instant>,
    /// Messages of containers in CrashLoopBackOff, by name.
    pub crash_looping: BTreeMap<String, String>,
    /// All work is done and none will follow.
    pub finished: bool,
}

impl Plan {
    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}

struct Ended {
    code: i32,
    attempt: u32,
    finished: SystemTime,
    in_sandbox: bool,
}

enum State<'a> {
    Never,
    Alive(&'a ContainerStatus),
    Ended(Ended),
}

impl Inputs<'_> {
    fn policy(&self) -> &str {
        self.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
    }

    fn state(&self, name: &str) -> State<'_> {
        if let Some(c) = self.observed.latest(name) {
            if c.state != ContainerState::Exited {
                return State::Alive(c);
            }
            let exit = c.exit.as_ref();
            return State::Ended(Ended {
                code: exit.map_or(137, |e| e.code),
                attempt: c.attempt,
                finished: exit.map_or(c.created_at, |e| e.finished_at),
                in_sandbox: Some(c.sandbox_id.as_str()) == self.sandbox,
            });
        }
        // The runtime forgot it, but the status tells how it ended.
        let recorded = recorded_status(self.pod, name);
        match recorded.and_then(|s| s.state.as_ref()).and_then(|s| s.terminated.as_ref()) {
            Some(t) => State::Ended(Ended {
                code: t.exit_code,
                attempt: recorded.and_then(|s| u32::try_from(s.restart_count).ok()).unwrap_or_default(),
                finished: t.finished_at.as_ref().map_or(SystemTime::UNIX_EPOCH, |t| SystemTime::from(t.0)),
                in_sandbox: false,
            }),
            None => State::Never,
        }
    }

    fn next_attempt(&self, name: &str) -> u32 {
        if let Some(c) = self.observed.latest(name) {
            return c.attempt + 1;
        }
        let ran = |s: &&k8s_openapi::api::core::v1::ContainerStatus| {
            s.container_id.is_some() || s.last_state.as_ref().is_some_and(|l| l.terminated.is_some())
        };
        let recorded = recorded_status(self.pod, name).filter(ran);
        recorded.and_then(|s| u32::try_from(s.restart_count).ok()).map_or(0, |n| n + 1)
    }

    fn instant_of(&self, at: SystemTime) -> Instant {
        let age = self.wall.duration_since(at).unwrap_or_default();
        self.now.checked_sub(age).unwrap_or(self.now)
    }
}

/// The status the API server holds for a container of any class.
pub(crate) fn recorded_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a k8s_openapi::api::core::v1::ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|s| s.name == name)
}

fn rule_matches(rules: Option<&Vec<ContainerRestartRule>>, code: i32) -> bool {
    rules.into_iter().flatten().any(|rule| {
        rule.action == "Restart"
            && rule.exit_codes.as_ref().is_some_and(|e| {
                let listed = e.values.as_ref().is_some_and(|v| v.contains(&code));
                match e.operator.as_str() {
                    "In" => listed,
                    "NotIn" => !listed,
                    _ => false,
                }
            })
    })
}

/// Whether a container that ended with `code` runs again.
pub(crate) fn restarts(container: &Container, class: Class, pod_policy: &str, code: i32) -> bool {
    if class == Class::Ephemeral {
        return false;
    }
    if rule_matches(container.restart_policy_rules.as_ref(), code) {
        return true;
    }
    match (container.restart_policy.as_deref().unwrap_or(pod_policy), class) {
        ("Always", Class::Init) | ("OnFailure", _) => code != 0,
        ("Always", _) => true,
        _ => false,
    }
}

/// The decision.
pub(crate) fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = inputs.pod.spec.as_ref() else { return plan };
    let inits = spec.init_containers.as_deref().unwrap_or_default();

    let main_left = spec.containers.iter().any(|c| match inputs.state(&c.name) {
        State::Ended(e) => restarts(c, Class::Main, inputs.policy(), e.code),
        _ => true,
    });
    let init_failed = inits.iter().filter(|c| !is_sidecar(c)).any(|c| match inputs.state(&c.name) {
        State::Ended(e) => e.code != 0 && !restarts(c, Class::Init, inputs.policy(), e.code),
        _ => false,
    });
    let main_alive = spec.containers.iter().any(|c| matches!(inputs.state(&c.name), State::Alive(_)));
    if !main_left || (init_failed && !main_alive) {
        plan.finished = true;
        return plan;
    }
    let Some(sandbox) = inputs.sandbox else {
        plan.create_sandbox = true;
        return plan;
    };

    let here = |name: &str| inputs.observed.0.get(name).is_some_and(|l| l.iter().any(|c| c.sandbox_id == sandbox));
    // Once a main container was made in this sandbox its init containers are done, even where the runtime forgot them.
    let initialized = spec.containers.iter().any(|c| here(&c.name));
    let mut blocked = false;
    for c in inits {
        let class = if is_sidecar(c) { Class::Sidecar } else { Class::Init };
        if class == Class::Init && initialized {
            continue;
        }
        if blocked {
            break;
        }
        blocked = match inputs.state(&c.name) {
            State::Alive(running) => {
                check_running(inputs, c, class, running, &mut plan);
                let health = inputs.health.get(&running.id).copied().unwrap_or_default();
                class == Class::Init || !health.started
            }
            State::Ended(e) if class == Class::Init && e.code == 0 && e.in_sandbox => false,
            state => {
                start(inputs, c, class, &state, &mut plan);
                true
            }
        } && !initialized;
    }
    for e in spec.ephemeral_containers.iter().flatten() {
        if matches!(inputs.state(&e.name), State::Never) && recorded_status(inputs.pod, &e.name).is_none_or(never_ran) {
            start(inputs, &names::as_container(e), Class::Ephemeral, &State::Never, &mut plan);
        }
    }
    if blocked && !initialized {
        return plan;
    }
    for c in &spec.containers {
        match inputs.state(&c.name) {
            State::Alive(running) => check_running(inputs, c, Class::Main, running, &mut plan),
            State::Ended(e) if !restarts(c, Class::Main, inputs.policy(), e.code) => {}
            state => start(inputs, c, Class::Main, &state, &mut plan),
        }
    }
    plan
}

fn never_ran(status: &k8s_openapi::api::core::v1::ContainerStatus) -> bool {
    status.container_id.is_none()
}

fn check_running(inputs: &Inputs<'_>, c: &Container, class: Class, running: &ContainerStatus, plan: &mut Plan) {
    let health = inputs.health.get(&running.id).copied().unwrap_or_default();
    let grace =
        |p: &Option<k8s_openapi::api::core::v1::Probe>| p.as_ref().and_then(|p| p.termination_grace_period_seconds);
    let mut kill = |message: String, grace_seconds| {
        plan.kill.push(Kill { id: running.id.clone(), name: c.name.clone(), message, grace_seconds });
    };
    let restart = if restarts(c, class, inputs.policy(), 137) { ", will be restarted" } else { "" };
    if running.annotations.get(names::HASH).is_some_and(|h| *h != names::hash(c)) {
        kill(format!("Container {} definition changed, will be restarted", c.name), None);
    } else if let Some(why) = inputs.hook_failed.get(&running.id) {
        kill(format!("FailedPostStartHook: {why}"), None);
    } else if health.startup_failed {
        kill(format!("Container {} failed startup probe{restart}", c.name), grace(&c.startup_probe));
    } else if health.liveness_failed {
        kill(format!("Container {} failed liveness probe{restart}", c.name), grace(&c.liveness_probe));
    }
}

fn start(inputs: &Inputs<'_>, c: &Container, class: Class, state: &State<'_>, plan: &mut Plan) {
    let failed = match state {
        State::Ended(e) => Some(inputs.instant_of(e.finished)),
        _ => None,
    };
    if let Some(failed) = failed
        && let Some(due) = inputs.backoffs.until(&c.name, failed, inputs.now)
    {
        let delay = go_duration(inputs.backoffs.delay(&c.name));
        let message = format!(
            "back-off {delay} restarting failed container={} pod={}",
            c.name,
            names::pod_description(inputs.pod)
        );
        plan.crash_looping.insert(c.name.clone(), message);
        plan.wake_at(due);
        return;
    }
    if let Some(due) = inputs.not_before.get(&c.name).filter(|d| **d > inputs.now) {
        plan.wake_at(*due);
        return;
    }
    let attempt = match state {
        State::Ended(e) => (e.attempt + 1).max(inputs.next_attempt(&c.name)),
        _ => inputs.next_attempt(&c.name),
    };
    plan.start.push(Start { name: c.name.clone(), class, attempt, after_failure: failed });
}

/// How long until a pod's `activeDeadlineSeconds` is over; `None` without one or before it started.
pub(crate) fn until_deadline(pod: &Pod, wall: SystemTime) -> Option<Duration> {
    let seconds = u64::try_from(pod.spec.as_ref()?.active_deadline_seconds?).ok()?;
    let started = SystemTime::from(pod.status.as_ref()?.start_time.as_ref()?.0);
    let end = started + Duration::from_secs(seconds);
    Some(end.duration_since(wall).unwrap_or_default())
}

#[cfg(test)]
mod tests;
