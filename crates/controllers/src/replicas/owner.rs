//! What ReplicaSets and ReplicationControllers have in common.

use gantry_api::Time;
use gantry_api::kind::Kind;
use gantry_api::meta::labels::Selector;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};

/// Why pods could not be created or deleted, for the `ReplicaFailure` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whether pods were being deleted (created otherwise).
    pub deleting: bool,
    /// The first error.
    pub message: String,
}

/// A condition of either kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// `ReplicaFailure`.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// `FailedCreate` or `FailedDelete`.
    pub reason: Option<String>,
    /// The error.
    pub message: Option<String>,
    /// Since when.
    pub since: Option<Time>,
}

/// The status of either kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplicaStatus {
    /// Active pods.
    pub replicas: i32,
    /// Active pods with all labels of the template.
    pub fully_labeled: i32,
    /// Ready pods.
    pub ready: i32,
    /// Pods ready for long enough.
    pub available: i32,
    /// Pods being deleted (ReplicaSets only).
    pub terminating: i32,
    /// The generation this is of.
    pub observed_generation: i64,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// Something that keeps a number of equal pods.
pub trait ReplicaOwner: Kind {
    /// How many pods are asked for.
    fn replicas(&self) -> i32;
    /// How long a pod must be ready to count as available, seconds.
    fn min_ready_seconds(&self) -> i32;
    /// Which pods are its own.
    ///
    /// # Errors
    /// Where the selector is malformed.
    fn selector(&self) -> Result<Selector, String>;
    /// What new pods look like.
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// The status as it is.
    fn status(&self) -> ReplicaStatus;
    /// Sets the status.
    fn set_status(&mut self, status: &ReplicaStatus);
}

impl ReplicaOwner for ReplicaSet {
    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }
    fn selector(&self) -> Result<Selector, String> {
        Selector::from_label_selector(Some(&self.spec.selector))
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.template.as_ref()
    }
    fn status(&self) -> ReplicaStatus {
        let s = self.status.clone().unwrap_or_default();
        ReplicaStatus {
            replicas: s.replicas,
            fully_labeled: s.fully_labeled_replicas.unwrap_or(0),
            ready: s.ready_replicas.unwrap_or(0),
            available: s.available_replicas.unwrap_or(0),
            // Never written by an earlier version: unequal to any count, so that it is written now.
            terminating: s.terminating_replicas.unwrap_or(-1),
            observed_generation: s.observed_generation.unwrap_or(0),
            conditions: s
                .conditions
                .unwrap_or_default()
                .into_iter()
                .map(|c| Condition {
                    r#type: c.type_.unwrap_or_default(),
                    status: c.status.unwrap_or_default(),
                    reason: c.reason,
                    message: c.message,
                    since: c.last_transition_time,
                })
                .collect(),
        }
    }
    fn set_status(&mut self, s: &ReplicaStatus) {
        let conditions: Vec<_> = s
            .conditions
            .iter()
            .map(|c| ReplicaSetCondition {
                type_: Some(c.r#type.clone()),
                status: Some(c.status.clone()),
                reason: c.reason.clone(),
                message: c.message.clone(),
                last_transition_time: c.since.clone(),
            })
            .collect();
        self.status = Some(ReplicaSetStatus {
            replicas: s.replicas,
            fully_labeled_replicas: count(s.fully_labeled),
            ready_replicas: count(s.ready),
            available_replicas: count(s.available),
            terminating_replicas: Some(s.terminating),
            observed_generation: Some(s.observed_generation),
            conditions: (!conditions.is_empty()).then_some(conditions),
        });
    }
}

/// A count on the wire: 0 is left out.
fn count(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

impl ReplicaOwner for ReplicationController {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn selector(&self) -> Result<Selector, String> {
        let set = self.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
        Ok(set.map_or_else(Selector::nothing, Selector::from_set))
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn status(&self) -> ReplicaStatus {
        let s = self.status.clone().unwrap_or_default();
        ReplicaStatus {
            replicas: s.replicas,
            fully_labeled: s.fully_labeled_replicas.unwrap_or(0),
            ready: s.ready_replicas.unwrap_or(0),
            available: s.available_replicas.unwrap_or(0),
            terminating: 0,
            observed_generation: s.observed_generation.unwrap_or(0),
            conditions: s
                .conditions
                .unwrap_or_default()
                .into_iter()
                .map(|c| Condition {
                    r#type: c.type_,
                    status: c.status,
                    reason: c.reason,
                    message: c.message,
                    since: c.last_transition_time,
                })
                .collect(),
        }
    }
    fn set_status(&mut self, s: &ReplicaStatus) {
        let conditions: Vec<_> = s
            .conditions
            .iter()
            .map(|c| ReplicationControllerCondition {
                type_: c.r#type.clone(),
                status: c.status.clone(),
                reason: c.reason.clone(),
                message: c.message.clone(),
                last_transition_time: c.since.clone(),
            })
            .collect();
        self.status = Some(ReplicationControllerStatus {
            replicas: s.replicas,
            fully_labeled_replicas: count(s.fully_labeled),
            ready_replicas: count(s.ready),
            available_replicas: count(s.available),
            observed_generation: Some(s.observed_generation),
            conditions: (!conditions.is_empty()).then_some(conditions),
        });
    }
}

/// Whether the kind counts pods being deleted in its status.
pub(super) fn counts_terminating<O: ReplicaOwner>() -> bool {
    O::INFO.kind == "ReplicaSet"
}
