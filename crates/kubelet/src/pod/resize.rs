//! In-place changes of resources: what the spec asks for now against what was applied.

use super::plan::{Kill, Observed};
use super::worker::Worker;
use super::{names, resources};
use gantry_api::meta::quantity::Amount;
use gantry_container::runtime::{ContainerState, ContainerStatus, Resources};
use k8s_openapi::api::core::v1::Container;

/// Why a change waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    /// `Deferred` (may fit later) or `Infeasible` (never will).
    pub reason: &'static str,
    pub message: String,
}

/// Which of the values a pod can change in place differ. A value that is not asked for stays as it is.
fn changed(have: &Resources, want: &Resources) -> (bool, bool) {
    let differs = |have: Option<i64>, want: Option<i64>| want.is_some() && have != want;
    let shares = |r: &Resources| r.cpu_shares.and_then(|s| i64::try_from(s).ok());
    let cpu = differs(shares(have), shares(want)) || differs(have.cpu_quota, want.cpu_quota);
    (cpu, differs(have.memory_limit, want.memory_limit))
}

/// The greater of each limit; none is the greatest.
fn wider(a: &Resources, b: &Resources) -> Resources {
    let greater = |a: Option<i64>, b: Option<i64>| a.zip(b).map(|(a, b)| a.max(b));
    let cpu_quota = greater(a.cpu_quota, b.cpu_quota);
    Resources {
        cpu_quota,
        cpu_period: cpu_quota.and(b.cpu_period),
        memory_limit: greater(a.memory_limit, b.memory_limit),
        ..b.clone()
    }
}

/// Whether the container's policy demands a restart for these changes.
fn needs_restart(container: &Container, cpu: bool, memory: bool) -> bool {
    container.resize_policy.iter().flatten().any(|p| {
        p.restart_policy == "RestartContainer"
            && ((cpu && p.resource_name == "cpu") || (memory && p.resource_name == "memory"))
    })
}

impl Worker {
    fn resizes(&self, observed: &Observed) -> Vec<(ContainerStatus, Container, Resources, bool)> {
        let running = observed.alive().filter(|c| c.state == ContainerState::Running);
        let spec = self.pod.spec.as_ref();
        let of = running.filter_map(|c| {
            let container = names::container(spec?, &c.name)?;
            // Another image means another container, which is made with the new values anyway.
            if c.annotations.get(names::HASH).is_some_and(|h| *h != names::hash(&container)) {
                return None;
            }
            let want = resources::of_container(&container);
            let have = self.applied.get(&c.id).unwrap_or(&c.resources);
            let (cpu, memory) = changed(have, &want);
            let restart = needs_restart(&container, cpu, memory);
            (cpu || memory).then(|| (c.clone(), container, want, restart))
        });
        of.collect()
    }

    /// Notes what a container gets that is about to be made. A change that waits does not count yet.
    pub(crate) fn allocate(&mut self, container: &mut Container) {
        let given = self.allocated.get(&container.name).filter(|_| self.resize_pending.is_some());
        match given {
            Some(given) => container.resources = Some(given.clone()),
            None => self.note_allocation(&container.clone()),
        }
    }

    fn note_allocation(&mut self, container: &Container) {
        self.allocated.insert(container.name.clone(), container.resources.clone().unwrap_or_default());
    }

    /// Takes over what an earlier run of the agent gave, as the status tells.
    pub(crate) fn adopt_allocations(&mut self) {
        let Some(status) = &self.pod.status else { return };
        let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        self.allocated.extend(all.filter_map(|s| Some((s.name.clone(), s.resources.clone()?))));
    }

    /// Why the node will never have what the pod asks for.
    fn infeasible(&self) -> Option<String> {
        let wanted = self.pod.spec.as_ref().map(gantry_api::core::pod::resources::pod_requests)?;
        let capacity = self.agent.machine.allocatable();
        let too_much = |name: &str| {
            let (wanted, there) = (wanted.get(name)?, capacity.get(name).copied().unwrap_or_default());
            let shown = |a: &Amount| if name == "cpu" { a.milli_value() } else { a.value() };
            (*wanted > there).then(|| {
                let (wanted, there) = (shown(wanted), shown(&there));
                format!("Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {there}")
            })
        };
        too_much("memory").or_else(|| too_much("cpu"))
    }

    /// Applies changed resources. Returns containers that have to be restarted for it.
    pub(crate) async fn resize(&mut self, observed: &Observed) -> Vec<Kill> {
        let due = self.resizes(observed);
        let spec = self.pod.spec.clone().unwrap_or_default();
        let every = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let differs = every().any(|c| {
            let wanted = c.resources.clone().unwrap_or_default();
            self.allocated.get(&c.name).is_some_and(|given| *given != wanted)
        });
        let whole = resources::of_pod(&spec, self.agent.cfg.pod_pids_limit);
        if due.is_empty() && !differs {
            self.resize_pending = None;
            // What was left wide for containers that had to end first.
            if self.pod_resources.as_ref().is_some_and(|now| *now != whole) {
                self.resize_pod(whole).await;
            }
            return Vec::new();
        }
        if let Some(message) = self.infeasible() {
            self.resize_pending = Some(Pending { reason: "Infeasible", message });
            return Vec::new();
        }
        let agent = self.agent.clone();
        // What is given back from here on is worth another try.
        self.room.mark_unchanged();
        if let Err(refusal) = agent.admissions.admit(&self.pod, None, &agent.machine.allocatable()) {
            self.resize_pending = Some(Pending { reason: "Deferred", message: refusal.message });
            return Vec::new();
        }
        let before = self.pod_resources.clone().unwrap_or_else(|| {
            let mut given = spec.clone();
            for c in given.containers.iter_mut().chain(given.init_containers.iter_mut().flatten()) {
                if let Some(resources) = self.allocated.get(&c.name) {
                    c.resources = Some(resources.clone());
                }
            }
            resources::of_pod(&given, agent.cfg.pod_pids_limit)
        });
        let known: Vec<Container> = every().filter(|c| self.allocated.contains_key(&c.name)).cloned().collect();
        known.iter().for_each(|c| self.note_allocation(c));
        self.resize_pending = None;
        // No container may have more than the pod at any time: the pod grows before them and shrinks after them.
        let widest = wider(&before, &whole);
        if !self.resize_pod(widest).await {
            return Vec::new();
        }
        let mut kills = Vec::new();
        for (status, container, want, restart) in due {
            if restart {
                let message = format!("Container {} resize requires restart", container.name);
                kills.push(Kill { id: status.id, name: container.name, message, grace_seconds: None });
                continue;
            }
            match agent.runtime.update_resources(&status.id, want.clone()).await {
                Ok(()) => {
                    tracing::info!(pod = %names::pod_description(&self.pod), container = container.name, "resized");
                    self.applied.insert(status.id, want);
                }
                Err(error) => self.resize_failed(&error.to_string()),
            }
        }
        if kills.is_empty() && self.resize_pending.is_none() {
            self.resize_pod(whole).await;
        }
        kills
    }

    /// Sets the limits of the pod as a whole; false where that failed.
    async fn resize_pod(&mut self, wanted: Resources) -> bool {
        let Some(sandbox) = &self.sandbox else { return true };
        match self.agent.runtime.update_sandbox_resources(&sandbox.id, wanted.clone()).await {
            Ok(()) => {
                self.pod_resources = Some(wanted);
                true
            }
            Err(error) => {
                self.resize_failed(&error.to_string());
                false
            }
        }
    }

    fn resize_failed(&mut self, error: &str) {
        let message = format!("Error resizing the pod: {error}");
        self.agent.recorder.warning(&*self.pod, "ResizeError", &message);
        self.resize_pending = Some(Pending { reason: "Error", message: error.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_asked_for_counts_as_a_change() {
        let r = |shares, quota, memory| Resources {
            cpu_shares: shares,
            cpu_quota: quota,
            memory_limit: memory,
            ..Resources::default()
        };
        let have = r(Some(2), Some(1000), Some(64));
        for (want, expected) in [
            (have.clone(), (false, false)),
            (r(None, None, None), (false, false)),
            (r(Some(4), None, None), (true, false)),
            (r(Some(2), Some(2000), Some(64)), (true, false)),
            (r(Some(2), Some(1000), Some(32)), (false, true)),
        ] {
            assert_eq!(changed(&have, &want), expected, "{want:?}");
        }
    }

    #[test]
    fn a_pod_is_as_wide_as_before_or_after() {
        let r = |quota, memory| Resources {
            cpu_quota: quota,
            cpu_period: Some(100_000),
            memory_limit: memory,
            ..Resources::default()
        };
        let widest = wider(&r(Some(1000), Some(64)), &r(Some(2000), Some(32)));
        assert_eq!((widest.cpu_quota, widest.memory_limit), (Some(2000), Some(64)));
        let open = wider(&r(None, Some(64)), &r(Some(2000), None));
        assert_eq!((open.cpu_quota, open.cpu_period, open.memory_limit), (None, None, None));
    }

    #[test]
    fn policies_are_per_resource() {
        let c: Container = serde_json::from_value(json!({"name": "a", "resizePolicy": [
            {"resourceName": "memory", "restartPolicy": "RestartContainer"},
            {"resourceName": "cpu", "restartPolicy": "NotRequired"}]}))
        .unwrap();
        assert!(needs_restart(&c, false, true) && !needs_restart(&c, true, false));
    }
}
