//! What a failed pod means by the Job's failure policy, and which indexes make the Job a success.

use super::intervals::Intervals;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// What the first rule that matches a failed pod makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts towards the back-off limit. So does one that no rule matches.
    Count,
    /// It does not count.
    Ignore,
    /// Its index has failed.
    FailIndex,
    /// The Job has failed; the condition's message.
    FailJob(String),
}

impl Verdict {
    /// Whether the pod counts as a failure.
    #[must_use]
    pub fn counts(&self) -> bool {
        *self != Verdict::Ignore
    }
}

/// Judges a failed pod.
#[must_use]
pub fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    for (i, rule) in policy.iter().flat_map(|p| &p.rules).enumerate() {
        let (namespace, name) = (pod.metadata.namespace(), pod.metadata.name());
        let matched = if let Some(codes) = &rule.on_exit_codes {
            exit_code(pod, codes).map(|(container, code)| {
                format!(
                    "Container {container} for pod {namespace}/{name} failed with exit code {code} matching {} rule at \
                     index {i}",
                    rule.action
                )
            })
        } else {
            let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            let mut hits = conditions.filter(|c| {
                patterns.iter().any(|p| p.type_ == c.type_ && p.status.as_deref() == Some(c.status.as_str()))
            });
            hits.next().map(|c| {
                format!("Pod {namespace}/{name} has condition {} matching {} rule at index {i}", c.type_, rule.action)
            })
        };
        let Some(message) = matched else { continue };
        match rule.action.as_str() {
            "Ignore" => return Verdict::Ignore,
            "Count" => return Verdict::Count,
            "FailIndex" => return Verdict::FailIndex,
            "FailJob" => return Verdict::FailJob(message),
            // An action of a later version: as if the rule were not there.
            _ => {}
        }
    }
    Verdict::Count
}

/// The first container, and then init container, that ended with a code the requirement means.
fn exit_code<'a>(pod: &'a Pod, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let first = |all: &'a Option<Vec<ContainerStatus>>| {
        all.iter().flatten().find_map(|c| {
            let code = c.state.as_ref()?.terminated.as_ref()?.exit_code;
            let named = wanted.container_name.as_ref().is_none_or(|n| *n == c.name);
            let listed = wanted.values.contains(&code);
            let meant = match wanted.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            };
            (named && code != 0 && meant).then_some((c.name.as_str(), code))
        })
    };
    first(&status.container_statuses).or_else(|| first(&status.init_container_statuses))
}

/// The message of the condition where the succeeded indexes are enough.
#[must_use]
pub fn success(policy: Option<&SuccessPolicy>, completions: i32, succeeded: &Intervals) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let at = policy?.rules.iter().position(|rule| {
        let enough = |n: i32| rule.succeeded_count.is_some_and(|wanted| n >= wanted);
        match &rule.succeeded_indexes {
            Some(list) => {
                let wanted = Intervals::parse(list, completions);
                let have = wanted.overlap(succeeded);
                !wanted.is_empty() && (have == wanted.total() || enough(have))
            }
            None => enough(succeeded.total()),
        }
    })?;
    Some(format!("Matched rules at index {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "p"}, "status": status})).unwrap()
    }

    fn policy(rules: Value) -> PodFailurePolicy {
        serde_json::from_value(json!({ "rules": rules })).unwrap()
    }

    fn ended(name: &str, code: i32) -> Value {
        json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code}}})
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let p = policy(json!([
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [3]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [4]}},
            {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [5]}},
        ]));
        let judged = |status: Value| judge(Some(&p), &pod(status));
        let evicted = json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}],
            "containerStatuses": [ended("main", 3)]});
        assert_eq!(judged(evicted), Verdict::Ignore);
        assert_eq!(
            judged(json!({"containerStatuses": [ended("side", 0), ended("main", 3)]})),
            Verdict::FailJob(
                "Container main for pod n/p failed with exit code 3 matching FailJob rule at index 1".into()
            )
        );
        assert_eq!(judged(json!({"containerStatuses": [ended("side", 3)]})), Verdict::Count);
        assert_eq!(judged(json!({"initContainerStatuses": [ended("init", 4)]})), Verdict::FailIndex);
        assert_eq!(judged(json!({"containerStatuses": [ended("main", 5)]})), Verdict::Count);
        let p = policy(json!([{"action": "FailJob", "onPodConditions": [{"type": "X", "status": "True"}]}]));
        assert_eq!(
            judge(Some(&p), &pod(json!({"conditions": [{"type": "X", "status": "True"}]}))),
            Verdict::FailJob("Pod n/p has condition X matching FailJob rule at index 0".into())
        );
        assert_eq!(judge(None, &pod(json!({}))), Verdict::Count);
    }

    #[test]
    fn a_success_policy_asks_for_indexes_or_a_count() {
        let p: SuccessPolicy = serde_json::from_value(json!({"rules": [
            {"succeededIndexes": "0,5-6"}, {"succeededIndexes": "1-4", "succeededCount": 2}, {"succeededCount": 5}]}))
        .unwrap();
        let met = |list: &str| success(Some(&p), 10, &Intervals::parse(list, 10));
        assert_eq!(met(""), None);
        assert_eq!(met("0,5,1"), None);
        assert_eq!(met("0,5-6").as_deref(), Some("Matched rules at index 0"));
        assert_eq!(met("1,3").as_deref(), Some("Matched rules at index 1"));
        assert_eq!(met("0,1,7-9").as_deref(), Some("Matched rules at index 2"));
        assert_eq!(success(None, 10, &Intervals::parse("0-9", 10)), None);
    }
}
