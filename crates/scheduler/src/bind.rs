//! What follows a decision: bindings, and where there was no node the reasons told and room made.

use crate::diagnosis::Diagnosis;
use crate::extender::{self, Offer};
use crate::filter::volumes::Assignment;
use crate::gang::Membership;
use crate::measured::{Outcome, Point};
use crate::pod::{Occupant, PodInfo};
use crate::queue::ClusterChange;
use crate::run::Scheduler;
use gantry_api::k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod, PodCondition};
use gantry_api::k8s_openapi::api::scheduling::v1beta1::PodGroup;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, Error, Patch, PatchParams, PostParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Condition of a PodGroup whose minimum was placed once.
const POD_GROUP_SCHEDULED: &str = "PodGroupInitiallyScheduled";

/// Pods to evict for another.
pub(crate) struct Preemption {
    pub(crate) victims: Vec<Arc<Occupant>>,
    pub(crate) node: String,
    /// Pods of lower priority that were promised the node.
    pub(crate) losers: Vec<Arc<PodInfo>>,
    /// Victims whose disruption budget would be violated.
    pub(crate) budget_violations: usize,
}

/// A pod that no node took, and what is done about it.
pub(crate) struct Failure {
    pub(crate) diagnosis: Diagnosis,
    pub(crate) preemption: Option<Preemption>,
    /// Other evictions that would do, where extenders have a say in it.
    pub(crate) alternatives: Vec<Preemption>,
    /// Whether the node that was promised to the pod is so no longer.
    pub(crate) gives_up: bool,
}

impl Failure {
    /// What is counted of it.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.diagnosis.error.is_some() { Outcome::Error } else { Outcome::Unschedulable }
    }
}

/// Why a binding was not answered as it should.
struct Unbound {
    /// The pod is no more.
    gone: bool,
    /// It is certain that the binding was not done.
    refused: bool,
    message: String,
}

impl Scheduler {
    /// Binds the pod's claims, then the pod. Returns whether it is bound.
    pub(crate) async fn bind_all(&self, pod: &Arc<PodInfo>, node: &str, assignment: &Assignment) -> bool {
        if let Err(message) = self.bind_claims(pod, assignment, node).await {
            self.recorder.warning(pod.pod.as_ref(), "FailedScheduling", &message);
            self.take_back(pod, true);
            return false;
        }
        let bound = self.bind(pod, node).await;
        if !bound {
            self.release(assignment).await;
        }
        bound
    }

    /// Keeps what the pod's claims get from others.
    pub(crate) fn promise(&self, assignment: &Assignment) {
        self.volumes.promise(assignment);
        assignment.devices.iter().for_each(|d| self.devices.promise(d));
    }

    /// The opposite of [`Scheduler::promise`], before anything was written.
    pub(crate) fn forget(&self, assignment: &Assignment) {
        self.volumes.forget(assignment);
        assignment.devices.iter().for_each(|d| self.devices.forget(d));
    }

    /// Writes what was decided on the pod's claims, and waits until they are ready to be used. Where that fails, what was
    /// written is taken back.
    pub(crate) async fn bind_claims(&self, pod: &PodInfo, assignment: &Assignment, node: &str) -> Result<(), String> {
        let (began, mut bound) = (Instant::now(), Ok(()));
        if !assignment.awaited.is_empty() {
            let volumes = self.volumes.bind(assignment, node, self.bind_timeout(pod)).await;
            self.volumes.forget(assignment);
            bound = volumes.map_err(|e| format!("running PreBind plugin \"VolumeBinding\": {e}"));
        }
        if let (Ok(()), Some(devices)) = (&bound, &assignment.devices) {
            let devices = self.devices.bind(devices, node).await;
            bound = devices.map_err(|e| format!("running PreBind plugin {:?}: {e}", crate::devices::PLUGIN));
        }
        match bound {
            Ok(()) => self.measured.passed(Point::PreBind, pod.scheduler(), began.elapsed()),
            Err(_) => {
                self.measured.ended(Point::PreBind, "Error", pod.scheduler(), began.elapsed());
                self.release(assignment).await;
            }
        }
        bound
    }

    /// Takes back what was written to the claims of devices of a pod that is not bound after all.
    pub(crate) async fn release(&self, assignment: &Assignment) {
        let Some(devices) = &assignment.devices else { return };
        self.devices.release(devices).await;
        self.state.lock().queue.changed(ClusterChange::Devices, Instant::now());
        self.wake.notify_one();
    }

    /// How long the claims of a pod may take to be bound, by its profile.
    pub(crate) fn bind_timeout(&self, pod: &PodInfo) -> Duration {
        self.state.lock().deciders.get(pod.scheduler()).map_or(Duration::ZERO, |d| d.profile().bind_timeout)
    }

    /// Undoes a placement that was assumed; the pod is tried again later, or forgotten.
    pub(crate) fn take_back(&self, pod: &Arc<PodInfo>, again: bool) {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.assumed.remove(&pod.uid).is_some() {
            let left = state.snapshot.row_of_pod(&pod.uid).map(|row| state.snapshot.names[row].clone());
            state.snapshot.displace(&pod.uid);
            left.iter().for_each(|node| state.freed(node, now));
        }
        if let Some(group) = &pod.group {
            if again {
                state.groups.wait(group, pod.clone());
            } else {
                state.groups.forget(group, &pod.uid);
            }
            state.sync_group(&group.id, false);
            if again {
                state.queue.failed(&group.id, now);
            }
        }
        if again {
            state.queue.failed(&pod.uid, now);
        } else {
            state.queue.remove(&pod.uid);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Returns whether the pod is bound.
    pub(crate) async fn bind(&self, pod: &Arc<PodInfo>, node: &str) -> bool {
        let mut binding = Binding::default();
        binding.metadata.name = Some(pod.name().to_owned());
        binding.metadata.namespace = Some(pod.namespace().to_owned());
        binding.metadata.uid = Some(pod.uid.to_string());
        binding.target =
            ObjectReference { kind: Some("Node".into()), name: Some(node.to_owned()), ..Default::default() };
        let began = Instant::now();
        let binder = self.extenders.iter().find(|e| e.binds() && e.is_interested(&pod.pod));
        let bound = match binder {
            Some(extender) => {
                extender.bind(pod, node).await.map_err(|message| Unbound { gone: false, refused: false, message })
            }
            None => {
                // Where another scheduler may have taken the room meanwhile, the server compares.
                let told = self.state.lock().decided.of(&pod.uid);
                let api = Api::<Pod>::namespaced(self.client.clone(), pod.namespace());
                let params = PostParams { if_fits: Some(told), ..PostParams::default() };
                let posted = api.post_subresource(pod.name(), "binding", &params, &binding).await;
                posted.map_err(|e| Unbound {
                    gone: e.is("NotFound"),
                    refused: matches!(&e, Error::Api(said) if said.code < 500),
                    message: e.to_string(),
                })
            }
        };
        match bound {
            Ok(()) => {
                self.measured.passed(Point::Bind, pod.scheduler(), began.elapsed());
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.recorder.normal(pod.pod.as_ref(), "Scheduled", &message);
                // Where the informer showed the pod already, it is out of the queue; where not, nothing may take it again.
                self.state.lock().bound(&pod.uid, node, Instant::now());
                true
            }
            Err(Unbound { gone, refused, message: error }) => {
                self.measured.ended(Point::Bind, "Error", pod.scheduler(), began.elapsed());
                if gone {
                    debug!(pod = pod.key, "pod went away before it was bound");
                    self.take_back(pod, false);
                } else {
                    let message = format!(
                        "running Bind plugin {:?}: {error}",
                        binder.map_or("DefaultBinder", |_| extender::PLUGIN)
                    );
                    self.recorder.warning(pod.pod.as_ref(), "FailedScheduling", &message);
                    warn!(pod = pod.key, node, %error, "binding failed; will retry");
                    if !refused {
                        self.state.lock().decided.unanswered(&pod.uid);
                    }
                    self.take_back(pod, true);
                }
                false
            }
        }
    }

    /// Tells why a pod was not placed, and makes room where preemption can; then it may be tried again.
    pub(crate) async fn report(&self, pod: &Arc<PodInfo>, failure: Failure) {
        let evicts = failure.preemption.is_some();
        self.explain_and_evict(pod, failure).await;
        if evicts && pod.group.is_none() {
            self.state.lock().queue.evicted(&pod.uid, Instant::now());
            self.wake.notify_one();
        }
    }

    async fn explain_and_evict(&self, pod: &Arc<PodInfo>, mut failure: Failure) {
        let diagnosis = &mut failure.diagnosis;
        if let (Some(said), Some(devices)) = (&mut diagnosis.deallocation, &diagnosis.devices) {
            *said = self.devices.make_room(devices).await;
        }
        let reason = if diagnosis.error.is_some() { "SchedulerError" } else { "Unschedulable" };
        let message = failure.diagnosis.message();
        self.recorder.warning(pod.pod.as_ref(), "FailedScheduling", &message);
        if let Some(best) = failure.preemption.take() {
            let promised = best.node.clone();
            failure.preemption = self.agreed(pod, best, std::mem::take(&mut failure.alternatives)).await;
            let node = failure.preemption.as_ref().map(|p| p.node.as_str());
            if node != Some(&*promised) && pod.group.is_none() {
                self.state.lock().promise(pod, node, Instant::now());
            }
        }
        let nominated = match &failure.preemption {
            Some(preemption) => Some(preemption.node.as_str()),
            None => failure.gives_up.then_some(""),
        };
        let told = self.patch_unscheduled(pod, reason, &message, nominated).await;
        match failure.preemption {
            Some(preemption) if told => self.evict(pod, preemption).await,
            // Whoever waits would take the room that others had to leave.
            Some(_) => {
                let (id, now) = (pod.group.as_ref().map_or(&*pod.uid, |group| &*group.id), Instant::now());
                let mut state = self.state.lock();
                if pod.group.is_none() {
                    state.promise(pod, None, now);
                }
                state.queue.failed(id, now);
                drop(state);
                self.wake.notify_one();
            }
            None => {}
        }
    }

    /// The best of the evictions that extenders agree to.
    async fn agreed(&self, pod: &PodInfo, best: Preemption, others: Vec<Preemption>) -> Option<Preemption> {
        if !self.extenders.iter().any(|e| e.preempts() && e.is_interested(&pod.pod)) {
            return Some(best);
        }
        let all: Vec<Preemption> = std::iter::once(best).chain(others).collect();
        let offers = all.iter().map(|p| Offer {
            node: p.node.clone(),
            victims: p.victims.iter().filter_map(|victim| self.whole(victim)).collect(),
            budget_violations: p.budget_violations,
        });
        match extender::look_through(&self.extenders, &pod.pod, offers.collect()).await {
            Ok(left) => {
                let first = left.into_iter().next()?;
                let mut found = all.into_iter().find(|p| p.node == first.node)?;
                found.victims.retain(|victim| first.victims.iter().any(|v| v.metadata.uid() == &*victim.uid));
                Some(found)
            }
            Err(error) => {
                warn!(pod = pod.key, error, "an extender was not asked about evictions; there are none");
                None
            }
        }
    }

    /// All of a pod of which only what matters to others is kept; `None` where it is gone.
    fn whole(&self, pod: &Occupant) -> Option<Arc<Pod>> {
        self.pods.get(pod.namespace(), pod.name()).filter(|whole| whole.metadata.uid() == &*pod.uid)
    }

    /// `nominated` is the node promised to the pod from now on, empty for none, `None` where that stays as it is. Whether
    /// its status says so now.
    async fn patch_unscheduled(&self, pod: &PodInfo, reason: &str, message: &str, nominated: Option<&str>) -> bool {
        let current = |pod: &Pod| -> Option<PodCondition> {
            let conditions = pod.status.as_ref()?.conditions.as_ref()?;
            conditions.iter().find(|c| c.type_ == "PodScheduled").cloned()
        };
        let same = current(&pod.pod).is_some_and(|c| {
            c.status == "False" && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(message)
        });
        if same && nominated.is_none_or(|n| pod.nominated_node().unwrap_or_default() == n) {
            return true;
        }
        let since = current(&pod.pod).filter(|c| c.status == "False").and_then(|c| c.last_transition_time);
        let mut status = json!({
            "conditions": [{
                "type": "PodScheduled",
                "status": "False",
                "reason": reason,
                "message": message,
                "lastProbeTime": null,
                "lastTransitionTime": since.unwrap_or_else(|| self.clock.time()),
            }],
        });
        if let Some(node) = nominated {
            status["nominatedNodeName"] = if node.is_empty() { json!(null) } else { json!(node) };
        }
        self.patch_status(pod, json!({ "metadata": { "uid": &*pod.uid }, "status": status })).await
    }

    /// Writes the condition of a PodGroup: that it was scheduled, which stays so, or why it is not.
    pub(crate) async fn tell_group(&self, group: &Membership, namespace: &str, problem: Option<&str>) {
        // The groups of annotations have no object.
        let Some(known) = self.pod_groups.as_ref().filter(|_| group.min_count.is_none()) else { return };
        let Some(object) = known.get(namespace, &group.name) else { return };
        let conditions = object.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let present = conditions.iter().find(|c| c.type_ == POD_GROUP_SCHEDULED);
        let (status, reason) = if problem.is_none() { ("True", "Scheduled") } else { ("False", "Unschedulable") };
        let message = problem.unwrap_or("All required pods have been successfully scheduled");
        if present.is_some_and(|c| c.status == "True" || (c.status == status && c.message == message)) {
            return;
        }
        let since = present.filter(|c| c.status == status).map(|c| c.last_transition_time.clone());
        let patch = json!({ "metadata": { "uid": object.metadata.uid }, "status": { "conditions": [{
            "type": POD_GROUP_SCHEDULED, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since.unwrap_or_else(|| self.clock.time()),
        }]}});
        let api = Api::<PodGroup>::namespaced(self.client.clone(), namespace);
        let result = api.patch_status(&group.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = result
            && !error.is("NotFound")
            && !error.is("Conflict")
        {
            warn!(group = group.name, %error, "cannot patch status of pod group");
        }
    }

    /// Returns whether it is written.
    async fn patch_status(&self, pod: &Occupant, patch: serde_json::Value) -> bool {
        let api = Api::<Pod>::namespaced(self.client.clone(), pod.namespace());
        let result = api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = &result
            && !error.is("NotFound")
            && !error.is("Conflict")
        {
            warn!(pod = pod.key, %error, "cannot patch pod status");
        }
        result.is_ok()
    }

    async fn evict(&self, pod: &PodInfo, preemption: Preemption) {
        // Pods of lower priority that were promised this node must look elsewhere.
        for loser in &preemption.losers {
            let patch = json!({ "metadata": { "uid": &*loser.uid }, "status": { "nominatedNodeName": null } });
            self.patch_status(loser, patch).await;
        }
        self.measured.victims(preemption.victims.len());
        for victim in &preemption.victims {
            // One that is gone has made room already.
            let Some(whole) = self.whole(victim).filter(|_| !victim.is_terminating()) else { continue };
            let condition = json!({ "metadata": { "uid": &*victim.uid }, "status": { "conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "PreemptionByScheduler",
                "message": format!("{}: preempting to accommodate a higher priority pod", pod.scheduler()),
                "lastProbeTime": null,
                "lastTransitionTime": self.clock.time(),
            }]}});
            self.patch_status(victim, condition).await;
            let params = DeleteParams { precondition_uid: Some(victim.uid.to_string()), ..Default::default() };
            let api = Api::<Pod>::namespaced(self.client.clone(), victim.namespace());
            match api.delete(victim.name(), &params).await {
                Ok(_) => {
                    let message = format!("Preempted by pod {} on node {}", pod.uid, preemption.node);
                    self.recorder.normal(&*whole, "Preempted", &message);
                }
                Err(error) if error.is("NotFound") || error.is("Conflict") => {}
                Err(error) => warn!(victim = victim.key, %error, "cannot preempt"),
            }
        }
    }
}
