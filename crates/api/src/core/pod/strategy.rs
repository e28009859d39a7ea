//! What the registry resets, carries over and decides around writes of pods.

use crate::core::pod::qos::qos_class;
use crate::meta::object::semantically_equal;
use crate::meta::text;
use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, PodCondition, PodIP, PodSpec, PodStatus, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, LabelSelector, LabelSelectorRequirement, Time};
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, VecDeque};

/// The message of the PodScheduled condition of a gated pod.
pub const GATED_MESSAGE: &str = "Scheduling is blocked due to non-empty scheduling gates";

fn whole_seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// A new pod starts pending, with its QoS class; selectors with label keys take the pod's own values.
pub(super) fn prepare_for_create(pod: &mut Pod, now: Timestamp) {
    pod.metadata.generation = Some(1);
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let spec = pod.spec.get_or_insert_default();
    merge_label_keys(spec, &labels);
    let mut status = PodStatus {
        phase: Some("Pending".to_owned()),
        qos_class: Some(qos_class(spec).to_owned()),
        ..Default::default()
    };
    if spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()) {
        status.conditions = Some(vec![PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("SchedulingGated".to_owned()),
            message: Some(GATED_MESSAGE.to_owned()),
            last_transition_time: Some(whole_seconds(now)),
            ..Default::default()
        }]);
    }
    pod.status = Some(status);
}

/// `matchLabelKeys` and `mismatchLabelKeys` become requirements on the values the pod has when it is created.
fn merge_label_keys(spec: &mut PodSpec, labels: &BTreeMap<String, String>) {
    let affinity = spec.affinity.as_mut();
    let mut terms: Vec<&mut PodAffinityTerm> = Vec::new();
    if let Some(a) = affinity {
        if let Some(p) = &mut a.pod_affinity {
            terms.extend(p.required_during_scheduling_ignored_during_execution.iter_mut().flatten());
            let preferred = p.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
            terms.extend(preferred.map(|w| &mut w.pod_affinity_term));
        }
        if let Some(p) = &mut a.pod_anti_affinity {
            terms.extend(p.required_during_scheduling_ignored_during_execution.iter_mut().flatten());
            let preferred = p.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
            terms.extend(preferred.map(|w| &mut w.pod_affinity_term));
        }
    }
    for t in terms {
        require(&mut t.label_selector, t.match_label_keys.as_deref(), "In", labels);
        require(&mut t.label_selector, t.mismatch_label_keys.as_deref(), "NotIn", labels);
    }
    for c in spec.topology_spread_constraints.iter_mut().flatten() {
        let TopologySpreadConstraint { label_selector, match_label_keys, .. } = c;
        require(label_selector, match_label_keys.as_deref(), "In", labels);
    }
}

fn require(
    selector: &mut Option<LabelSelector>,
    keys: Option<&[String]>,
    operator: &str,
    labels: &BTreeMap<String, String>,
) {
    let Some(selector) = selector else { return };
    for key in keys.unwrap_or_default() {
        if let Some(value) = labels.get(key) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
}

/// Status is not for the main resource; a changed spec is a new generation.
pub(super) fn prepare_for_update(pod: &mut Pod, old: &Pod) {
    pod.status = old.status.clone();
    pod.metadata.generation = old.metadata.generation;
    bump_generation(pod, old);
}

/// Raises the generation where the spec differs; also after resizing and adding ephemeral containers.
pub(crate) fn bump_generation(pod: &mut Pod, old: &Pod) {
    let same = match (&pod.spec, &old.spec) {
        (Some(new), Some(old)) => semantically_equal(new, old),
        (new, old) => new == old,
    };
    if !same {
        pod.metadata.generation = Some(old.metadata.generation.unwrap_or(0) + 1);
    }
}

/// Spec and owners are not for the status subresource; the QoS class never changes.
pub(super) fn prepare_for_status_update(pod: &mut Pod, old: &Pod) {
    pod.spec = old.spec.clone();
    pod.metadata.generation = old.metadata.generation;
    pod.metadata.deletion_timestamp = old.metadata.deletion_timestamp.clone();
    pod.metadata.owner_references = old.metadata.owner_references.clone();
    let old_class = old.status.as_ref().and_then(|s| s.qos_class.clone());
    let status = pod.status.get_or_insert_default();
    if text(&status.qos_class).is_empty() {
        status.qos_class = old_class;
    }
    if let Some(old) = &old.status {
        keep_observed_generations(status, old);
    }
}

/// Clients that do not know `observedGeneration` do not take it away. Types may occur more than once, in order.
fn keep_observed_generations(status: &mut PodStatus, old: &PodStatus) {
    if status.observed_generation.unwrap_or(0) == 0 {
        status.observed_generation = old.observed_generation;
    }
    let mut before: BTreeMap<&str, VecDeque<Option<i64>>> = BTreeMap::new();
    for condition in old.conditions.iter().flatten() {
        before.entry(&condition.type_).or_default().push_back(condition.observed_generation);
    }
    for condition in status.conditions.iter_mut().flatten() {
        let observed = before.get_mut(condition.type_.as_str()).and_then(VecDeque::pop_front).flatten();
        if condition.observed_generation.unwrap_or(0) == 0 {
            condition.observed_generation = observed;
        }
    }
}

/// `podIP` is the first of `podIPs`; whichever is given sets the other.
pub(super) fn sync_pod_ips(status: &mut PodStatus) {
    let first = status.pod_ips.as_ref().and_then(|ips| ips.first()).map(|ip| ip.ip.clone());
    match (first, text(&status.pod_ip)) {
        (Some(first), _) => status.pod_ip = Some(first),
        (None, "") => {}
        (None, ip) => status.pod_ips = Some(vec![PodIP { ip: ip.to_owned() }]),
    }
}

/// Seconds a deleted pod may take; 0 where nothing runs (`podStrategy.CheckGracefulDelete`).
pub(super) fn graceful_delete_seconds(pod: &Pod, options: &DeleteOptions) -> i64 {
    let spec = pod.spec.as_ref();
    let wanted = options.grace_period_seconds.or(spec.and_then(|s| s.termination_grace_period_seconds)).unwrap_or(0);
    let unscheduled = spec.is_none_or(|s| text(&s.node_name).is_empty());
    let over = matches!(pod.status.as_ref().map(|s| text(&s.phase)), Some("Failed" | "Succeeded"));
    match wanted {
        _ if unscheduled || over => 0,
        w if w < 0 => 1,
        w => w,
    }
}

/// Fields a pod can be selected by.
pub(super) fn selectable_fields(pod: &Pod) -> Vec<(&'static str, String)> {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let of_spec = |f: fn(&PodSpec) -> &Option<String>| spec.map(|s| text(f(s)).to_owned()).unwrap_or_default();
    let of_status = |f: fn(&PodStatus) -> &Option<String>| status.map(|s| text(f(s)).to_owned()).unwrap_or_default();
    let ip = status.and_then(|s| s.pod_ips.as_ref()).and_then(|ips| ips.first()).map(|ip| ip.ip.clone());
    let ips: Vec<&str> = status.iter().flat_map(|s| s.pod_ips.iter().flatten()).map(|ip| ip.ip.as_str()).collect();
    vec![
        ("spec.nodeName", of_spec(|s| &s.node_name)),
        ("spec.restartPolicy", of_spec(|s| &s.restart_policy)),
        ("spec.schedulerName", of_spec(|s| &s.scheduler_name)),
        ("spec.serviceAccountName", of_spec(|s| &s.service_account_name)),
        ("spec.hostNetwork", spec.is_some_and(|s| s.host_network == Some(true)).to_string()),
        ("status.phase", of_status(|s| &s.phase)),
        ("status.podIP", ip.unwrap_or_else(|| of_status(|s| &s.pod_ip))),
        ("status.podIPs", ips.join(",")),
        ("status.nominatedNodeName", of_status(|s| &s.nominated_node_name)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        <Pod as Kind>::from_value(value).unwrap()
    }

    #[test]
    fn grace_periods() {
        let cases = [
            (json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}}), None, 30),
            (json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}}), Some(5), 5),
            (json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": -4}}), None, 1),
            (json!({"spec": {"terminationGracePeriodSeconds": 30}}), None, 0),
            (
                json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Failed"}}),
                Some(9),
                0,
            ),
        ];
        for (value, asked, want) in cases {
            let options = DeleteOptions { grace_period_seconds: asked, ..Default::default() };
            assert_eq!(graceful_delete_seconds(&pod(value.clone()), &options), want, "{value}");
        }
    }

    #[test]
    fn observed_generations_stay_with_clients_that_do_not_know_them() {
        let old = pod(json!({"status": {"observedGeneration": 3, "conditions": [
            {"type": "A", "status": "True", "observedGeneration": 2}, {"type": "B", "status": "True"}]}}));
        let mut new = pod(json!({"status": {"conditions": [
            {"type": "B", "status": "False", "observedGeneration": 4}, {"type": "A", "status": "False"}]}}));
        prepare_for_status_update(&mut new, &old);
        let status = new.status.unwrap();
        let of: Vec<_> = status.conditions.unwrap().iter().map(|c| c.observed_generation).collect();
        assert_eq!((status.observed_generation, of), (Some(3), vec![Some(4), Some(2)]));
    }

    #[test]
    fn creation_resets_status_and_merges_label_keys() {
        let mut p = pod(
            json!({"metadata": {"labels": {"v": "7"}}, "spec": {"containers": [], "schedulingGates": [{"name": "a"}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {}, "matchLabelKeys": ["v"]}]}, "status": {"phase": "Running"}}),
        );
        prepare_for_create(&mut p, Timestamp::UNIX_EPOCH);
        let status = p.status.clone().unwrap();
        assert_eq!((text(&status.phase), text(&status.qos_class)), ("Pending", "BestEffort"));
        assert_eq!(status.conditions.unwrap()[0].reason.as_deref(), Some("SchedulingGated"));
        let constraint = &p.spec.unwrap().topology_spread_constraints.unwrap()[0];
        let merged = &constraint.label_selector.as_ref().unwrap().match_expressions.as_ref().unwrap()[0];
        assert_eq!((merged.key.as_str(), merged.values.clone().unwrap()), ("v", vec!["7".to_owned()]));
    }
}
