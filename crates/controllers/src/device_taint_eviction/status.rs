//! What a rule's condition says of its work.

use k8s_openapi::api::resource::v1::DeviceTaintRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use std::collections::BTreeSet;

/// The condition's type.
pub(super) const EVICTION_IN_PROGRESS: &str = "EvictionInProgress";

/// What was counted for a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Devices in slices that it selects.
    pub(super) published: usize,
    /// Devices of claims that it selects.
    pub(super) allocated: usize,
    /// Pods that have to go, or would.
    pub(super) pods: usize,
    /// Their namespaces.
    pub(super) namespaces: usize,
    /// Pods that it drove away since the controller started.
    pub(super) evicted: u64,
}

impl Counts {
    pub(super) fn of_pods(namespaces: &[&str]) -> Self {
        let different: BTreeSet<&&str> = namespaces.iter().collect();
        Self { pods: namespaces.len(), namespaces: different.len(), ..Self::default() }
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// The rule's condition of this type.
pub(super) fn present(rule: &DeviceTaintRule) -> Option<&Condition> {
    let conditions = rule.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == EVICTION_IN_PROGRESS)
}

/// The condition for these counts, in upstream's words.
pub(super) fn condition(rule: &DeviceTaintRule, counts: &Counts, now: Time) -> Condition {
    let (mut status, mut message) = ("False", String::new());
    let namespaces = counted(counts.namespaces, "namespace", "different namespaces");
    let reason = match rule.spec.taint.effect.as_str() {
        "NoExecute" if counts.pods > 0 => {
            status = "True";
            let pods = counted(counts.pods, "pod needs", "pods need");
            message = format!("{pods} to be evicted in {namespaces}.");
            "PodsPendingEviction"
        }
        "NoExecute" if counts.evicted > 0 => "Completed",
        "NoExecute" => "NotStarted",
        "None" => {
            let published = counted(counts.published, "published device", "published devices");
            let allocated = counted(counts.allocated, "allocated device", "allocated devices");
            let pods = counted(counts.pods, "pod", "pods");
            message = format!(
                "{published} selected. {allocated} selected. {pods} would be evicted in {namespaces} if the effect was \
                 NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an \
                 update."
            );
            "NoEffect"
        }
        _ => {
            "Eviction only happens for the NoExecute effect.".clone_into(&mut message);
            "OtherEffect"
        }
    };
    if counts.evicted > 0 {
        let gap = if message.is_empty() { "" } else { " " };
        let pods = if counts.evicted == 1 { "pod" } else { "pods" };
        message = format!("{message}{gap}{} {pods} evicted since starting the controller.", counts.evicted);
    }
    Condition {
        type_: EVICTION_IN_PROGRESS.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: rule.metadata.generation,
        last_transition_time: now,
    }
}

/// Whether the condition says something new, apart from when.
pub(super) fn differs(new: &Condition, old: Option<&Condition>) -> bool {
    old.is_none_or(|old| Condition { last_transition_time: old.last_transition_time.clone(), ..new.clone() } != *old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    fn told(effect: &str, counts: &Counts) -> (String, String, String) {
        let rule = json!({"metadata": {"name": "r", "generation": 3},
            "spec": {"taint": {"key": "k", "effect": effect}}});
        let rule = DeviceTaintRule::from_value(rule).unwrap();
        let c = condition(&rule, counts, Time(Timestamp::UNIX_EPOCH));
        assert_eq!(c.observed_generation, Some(3));
        assert!(differs(&c, None) && !differs(&c, Some(&c)));
        (c.status, c.reason, c.message)
    }

    #[test]
    fn words() {
        let text = |s: &str, r: &str, m: &str| (s.to_owned(), r.to_owned(), m.to_owned());
        let pending = Counts { evicted: 1, ..Counts::of_pods(&["a", "b", "a"]) };
        assert_eq!(
            told("NoExecute", &pending),
            text(
                "True",
                "PodsPendingEviction",
                "3 pods need to be evicted in 2 different namespaces. 1 pod evicted since starting the controller."
            )
        );
        let one = Counts::of_pods(&["a"]);
        let message = "1 pod needs to be evicted in 1 namespace.";
        assert_eq!(told("NoExecute", &one), text("True", "PodsPendingEviction", message));
        let done = Counts { evicted: 2, ..Counts::default() };
        let message = "2 pods evicted since starting the controller.";
        assert_eq!(told("NoExecute", &done), text("False", "Completed", message));
        assert_eq!(told("NoExecute", &Counts::default()), text("False", "NotStarted", ""));
        let message = "Eviction only happens for the NoExecute effect.";
        assert_eq!(told("NoSchedule", &Counts::default()), text("False", "OtherEffect", message));
        let tried = Counts { published: 1, allocated: 2, ..Counts::default() };
        let message = "1 published device selected. 2 allocated devices selected. 0 pods would be evicted in 0 \
                       different namespaces if the effect was NoExecute. This information will not be updated again. Recreate \
                       the DeviceTaintRule to trigger an update.";
        assert_eq!(told("None", &tried), text("False", "NoEffect", message));
    }
}
