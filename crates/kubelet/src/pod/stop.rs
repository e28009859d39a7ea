//! Stopping containers: `preStop`, the stop signal, the grace period, SIGKILL.

use super::plan::Kill;
use super::worker::Worker;
use super::{hooks, names};
use crate::agent::Agent;
use gantry_api::core::pod::resources::is_sidecar;
use gantry_container::runtime::{ContainerState, ContainerStatus, RuntimeEvent};
use gantry_reconcile::EventType;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

/// What a container still gets after its `preStop` hook used up the grace period.
const MINIMUM_GRACE: Duration = Duration::from_secs(2);

struct Stop {
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    container: Option<Container>,
    status: ContainerStatus,
    message: String,
    address: Option<IpAddr>,
    /// When SIGKILL is due; may move nearer.
    deadline: watch::Receiver<Instant>,
}

/// Waits until `deadline`, which may move.
async fn passed(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = deadline.changed() => {
                if changed.is_err() {
                    return tokio::time::sleep_until(at).await;
                }
            }
        }
    }
}

impl Stop {
    async fn ended(&self, events: &mut broadcast::Receiver<RuntimeEvent>) {
        let runtime = &self.agent.runtime;
        loop {
            match runtime.container_status(&self.status.id).await {
                Ok(c) if c.state != ContainerState::Exited => {}
                Ok(_) => return,
                Err(error) if error.is_not_found() => return,
                Err(error) => tracing::warn!(container = self.status.id, %error, "cannot read a container's status"),
            }
            loop {
                match events.recv().await {
                    Ok(RuntimeEvent::ContainerExited { container_id, .. }) if container_id == self.status.id => return,
                    Ok(RuntimeEvent::SandboxExited { sandbox_id }) if sandbox_id == self.status.sandbox_id => return,
                    Ok(_) => {}
                    // Events were missed: look for oneself.
                    Err(broadcast::error::RecvError::Lagged(_)) => break,
                    Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
                }
            }
        }
    }

    async fn run(mut self) {
        let (name, id) = (self.status.name.clone(), self.status.id.clone());
        let about = names::container_reference(&self.pod, &name);
        self.agent.recorder.record(&about, EventType::Normal, "Killing", &self.message);
        // Subscribed before the signal, so that no exit is missed.
        let mut events = self.agent.runtime.events();
        let hook = self.container.as_ref().and_then(|c| c.lifecycle.as_ref()?.pre_stop.clone());
        let grace = *self.deadline.borrow() > Instant::now();
        let mut deadline = self.deadline.clone();
        if let (Some(hook), Some(container), true) = (hook, self.container.clone(), grace)
            && self.status.state == ContainerState::Running
        {
            let runtime = self.agent.runtime.clone();
            let running = hooks::run(&hook, &container, &id, self.address, runtime.as_ref());
            tokio::select! {
                result = running => if let Err(message) = result {
                    tracing::info!(pod = %names::pod_description(&self.pod), container = name, message, "preStop hook failed");
                    self.agent.recorder.record(&about, EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
                },
                () = passed(&mut deadline) => {
                    tracing::info!(pod = %names::pod_description(&self.pod), container = name, "preStop hook did not complete in grace period");
                }
                () = self.ended(&mut events) => {}
            }
            let least = Instant::now() + MINIMUM_GRACE;
            if *self.deadline.borrow() < least {
                let (_, moved) = watch::channel(least);
                self.deadline = moved;
            }
        }
        if grace {
            if let Err(error) = self.agent.runtime.kill_container(&id, self.status.stop_signal).await
                && !error.is_not_found()
            {
                tracing::debug!(container = id, %error, "cannot send the stop signal");
            }
            let mut deadline = self.deadline.clone();
            tokio::select! {
                () = self.ended(&mut events) => {}
                () = passed(&mut deadline) => {}
            }
        }
        // Ends what is left: the container itself, or processes it left behind.
        if let Err(error) = self.agent.runtime.stop_container(&id, Duration::ZERO).await
            && !error.is_not_found()
        {
            tracing::warn!(container = id, %error, "cannot kill a container");
        }
    }
}

impl Worker {
    fn stop_of(&self, status: &ContainerStatus, message: String, deadline: watch::Receiver<Instant>) -> Stop {
        Stop {
            agent: self.agent.clone(),
            pod: self.pod.clone(),
            container: self.pod.spec.as_ref().and_then(|s| names::container(s, &status.name)),
            status: status.clone(),
            message,
            address: self.sandbox.as_ref().and_then(|s| s.ips.first().copied()),
            deadline,
        }
    }

    /// Seconds the pod's containers get when it ends for good.
    pub(crate) fn grace(&self) -> Duration {
        if let Some(seconds) = self.grace_override {
            return seconds;
        }
        let seconds = self.pod.metadata.deletion_grace_period_seconds;
        let seconds = seconds.or_else(|| self.pod.spec.as_ref()?.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Ends containers that the plan wants ended, for a restart.
    pub(crate) async fn kill(&mut self, kills: &[Kill]) {
        let observed = self.observe().await;
        let mut stops = Vec::new();
        for kill in kills {
            let Some(status) = observed.alive().find(|c| c.id == kill.id) else { continue };
            let default = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
            let seconds = u64::try_from(kill.grace_seconds.unwrap_or(default)).unwrap_or(0);
            let (send, deadline) = watch::channel(Instant::now() + Duration::from_secs(seconds));
            stops.push((send, self.stop_of(status, kill.message.clone(), deadline)));
        }
        let (senders, stops): (Vec<_>, Vec<_>) = stops.into_iter().unzip();
        let all = futures::future::join_all(stops.into_iter().map(Stop::run));
        tokio::pin!(all);
        tokio::select! {
            _ = &mut all => return,
            () = self.to_terminate() => {}
        }
        // The pod's own end may come sooner than the restart would have waited.
        let limit = Instant::now() + self.grace();
        for sender in &senders {
            sender.send_if_modified(|d| {
                *d > limit && {
                    *d = limit;
                    true
                }
            });
        }
        all.await;
    }

    /// Ends all containers: ordinary ones at once, then sidecars in reverse order, all within one grace period. A
    /// grace period that is shortened under way is obeyed.
    pub(crate) async fn stop_all(&mut self) {
        let begun = Instant::now();
        let (sender, deadline) = watch::channel(begun + self.grace());
        let observed = self.observe().await;
        let sidecars: Vec<String> = self
            .pod
            .spec
            .iter()
            .flat_map(|s| s.init_containers.iter().flatten())
            .filter(|c| is_sidecar(c))
            .map(|c| c.name.clone())
            .collect();
        let message = |c: &ContainerStatus| format!("Stopping container {}", c.name);
        let (beside, ordinary): (Vec<_>, Vec<_>) = observed.alive().partition(|c| sidecars.contains(&c.name));
        let first: Vec<Stop> = ordinary.into_iter().map(|c| self.stop_of(c, message(c), deadline.clone())).collect();
        let later: Vec<Stop> = sidecars
            .iter()
            .rev()
            .filter_map(|name| beside.iter().find(|c| c.name == *name))
            .map(|c| self.stop_of(c, message(c), deadline.clone()))
            .collect();
        let work = async move {
            futures::future::join_all(first.into_iter().map(Stop::run)).await;
            for stop in later {
                stop.run().await;
            }
        };
        tokio::pin!(work);
        let wake = self.wake.clone();
        loop {
            tokio::select! {
                biased;
                () = &mut work => return,
                // Containers that go on may become unready, and those that ended say how.
                () = wake.notified() => {
                    let observed = self.observe().await;
                    if observed.alive().next().is_some() {
                        self.look_after_running(&observed).await;
                        self.report(&observed, false).await;
                    }
                }
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return work.await;
                    }
                    self.take_desired();
                    let limit = begun + self.grace();
                    sender.send_if_modified(|d| *d > limit && { *d = limit; true });
                }
            }
        }
    }
}
