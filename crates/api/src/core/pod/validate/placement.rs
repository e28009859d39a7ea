//! Where a pod may run: affinity, tolerations, topology spread, gates.

use crate::apps::workload::shown_as;
use crate::meta::field::{ErrorList, ErrorType, FieldError, Path};
use crate::meta::labels::{SelectorOptions, validate_label_key, validate_label_selector};
use crate::meta::{names, text};
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSpec, Taint, Toleration,
    TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;
use std::collections::BTreeSet;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Adds the errors of `affinity`.
pub(super) fn validate_affinity(affinity: &Affinity, path: &Path, errors: &mut ErrorList) {
    if let Some(a) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        if let Some(selector) = &a.required_during_scheduling_ignored_during_execution {
            validate_node_selector(selector, &path.child(REQUIRED), errors);
        }
        for (i, term) in a.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate() {
            let path = path.child(PREFERRED).index(i);
            validate_weight(term.weight, &path, errors);
            validate_node_selector_term(&term.preference, true, &path.child("preference"), errors);
        }
    }
    if let Some(a) = &affinity.pod_affinity {
        let (required, preferred) = (
            a.required_during_scheduling_ignored_during_execution.as_deref(),
            a.preferred_during_scheduling_ignored_during_execution.as_deref(),
        );
        validate_pod_terms(required, preferred, &path.child("podAffinity"), errors);
    }
    if let Some(a) = &affinity.pod_anti_affinity {
        let (required, preferred) = (
            a.required_during_scheduling_ignored_during_execution.as_deref(),
            a.preferred_during_scheduling_ignored_during_execution.as_deref(),
        );
        validate_pod_terms(required, preferred, &path.child("podAntiAffinity"), errors);
    }
}

fn validate_weight(weight: i32, path: &Path, errors: &mut ErrorList) {
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

/// Adds the errors of a node selector.
pub fn validate_node_selector(selector: &NodeSelector, path: &Path, errors: &mut ErrorList) {
    let path = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (i, term) in selector.node_selector_terms.iter().enumerate() {
        validate_node_selector_term(term, false, &path.index(i), errors);
    }
}

fn validate_node_selector_term(term: &NodeSelectorTerm, any_value: bool, path: &Path, errors: &mut ErrorList) {
    for (i, r) in term.match_expressions.iter().flatten().enumerate() {
        validate_node_expression(r, any_value, &path.child("matchExpressions").index(i), errors);
    }
    for (i, r) in term.match_fields.iter().flatten().enumerate() {
        validate_node_field(r, &path.child("matchFields").index(i), errors);
    }
}

fn validate_node_expression(r: &NodeSelectorRequirement, any_value: bool, path: &Path, errors: &mut ErrorList) {
    let values = r.values.as_deref().unwrap_or_default();
    let values_path = path.child("values");
    match r.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(&values_path, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.forbidden(&values_path, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.required(&values_path, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    validate_label_key(&r.key, &path.child("key"), errors);
    if !any_value {
        for (i, v) in values.iter().enumerate() {
            names::push_invalid(errors, &values_path.index(i), v, &names::label_value(v));
        }
    }
}

fn validate_node_field(r: &NodeSelectorRequirement, path: &Path, errors: &mut ErrorList) {
    let values = r.values.as_deref().unwrap_or_default();
    match r.operator.as_str() {
        "In" | "NotIn" if values.len() != 1 => errors.required(
            &path.child("values"),
            "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
        ),
        "In" | "NotIn" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    if r.key != "metadata.name" {
        errors.invalid(&path.child("key"), r.key.as_str(), "not a valid field selector key");
        return;
    }
    for (i, v) in values.iter().enumerate() {
        names::push_invalid(errors, &path.child("values").index(i), v, &names::dns1123_subdomain(v, false));
    }
}

fn validate_pod_terms(
    required: Option<&[PodAffinityTerm]>,
    preferred: Option<&[WeightedPodAffinityTerm]>,
    path: &Path,
    errors: &mut ErrorList,
) {
    for (i, term) in required.unwrap_or_default().iter().enumerate() {
        validate_pod_term(term, &path.child(REQUIRED).index(i), errors);
    }
    for (i, weighted) in preferred.unwrap_or_default().iter().enumerate() {
        let path = path.child(PREFERRED).index(i);
        validate_weight(weighted.weight, &path, errors);
        validate_pod_term(&weighted.pod_affinity_term, &path.child("podAffinityTerm"), errors);
    }
}

fn validate_pod_term(term: &PodAffinityTerm, path: &Path, errors: &mut ErrorList) {
    let options = SelectorOptions::default();
    errors.extend(validate_label_selector(term.label_selector.as_ref(), options, &path.child("labelSelector")));
    errors.extend(validate_label_selector(term.namespace_selector.as_ref(), options, &path.child("namespaceSelector")));
    for namespace in term.namespaces.iter().flatten() {
        names::push_invalid(errors, &path.child("namespace"), namespace, &names::dns1123_label(namespace, false));
    }
    validate_term_label_keys(term, path, errors);
    let topology = path.child("topologyKey");
    if term.topology_key.is_empty() {
        errors.required(&topology, "can not be empty");
    }
    validate_label_key(&term.topology_key, &topology, errors);
}

fn validate_term_label_keys(term: &PodAffinityTerm, path: &Path, errors: &mut ErrorList) {
    let matching = term.match_label_keys.as_deref().unwrap_or_default();
    let mismatching = term.mismatch_label_keys.as_deref().unwrap_or_default();
    for (field, keys) in [("matchLabelKeys", matching), ("mismatchLabelKeys", mismatching)] {
        let path = path.child(field);
        if !keys.is_empty() && term.label_selector.is_none() {
            errors.forbidden(&path, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in keys.iter().enumerate() {
            validate_label_key(key, &path.index(i), errors);
        }
    }
    if let Some(selector) = &term.label_selector {
        // Each key of matchLabelKeys has been merged once into the expressions; a second one was the author's.
        let mut seen: BTreeSet<&str> = selector.match_labels.iter().flatten().map(|(k, _)| k.as_str()).collect();
        for e in selector.match_expressions.iter().flatten() {
            if let Some(i) = matching.iter().position(|k| *k == e.key)
                && seen.contains(e.key.as_str())
            {
                errors.invalid(&path.index(i), e.key.as_str(), "exists in both matchLabelKeys and labelSelector");
            }
            seen.insert(&e.key);
        }
    }
    for (i, key) in matching.iter().enumerate().filter(|(_, k)| mismatching.contains(k)) {
        errors.invalid(
            &path.child("matchLabelKeys").index(i),
            key.as_str(),
            "exists in both matchLabelKeys and mismatchLabelKeys",
        );
    }
}

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Adds the errors of `tolerations`.
pub(crate) fn validate_tolerations(tolerations: &[Toleration], path: &Path, errors: &mut ErrorList) {
    for (i, t) in tolerations.iter().enumerate() {
        let path = path.index(i);
        let (key, operator, value, effect) = (text(&t.key), text(&t.operator), text(&t.value), text(&t.effect));
        let operator_path = path.child("operator");
        if !key.is_empty() {
            validate_label_key(key, &path.child("key"), errors);
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&operator_path, operator, detail);
        }
        if t.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.child("effect"), effect, detail);
        }
        match operator {
            "Equal" | "" => {
                let bad = names::label_value(value);
                if !bad.is_empty() {
                    errors.invalid(&operator_path, value, &bad.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                errors.invalid(&operator_path, value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            other => errors.not_supported(&operator_path, other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.not_supported(&path.child("effect"), effect, EFFECTS);
        }
    }
}

/// Adds the errors of a node's taints.
pub(crate) fn validate_taints(taints: &[Taint], path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, t) in taints.iter().enumerate() {
        let path = path.index(i);
        validate_label_key(&t.key, &path.child("key"), errors);
        let bad = names::label_value(text(&t.value));
        if !bad.is_empty() {
            errors.invalid(&path.child("value"), text(&t.value), &bad.join(";"));
        }
        if t.effect.is_empty() {
            errors.required(&path.child("effect"), "");
        } else if !EFFECTS.contains(&t.effect.as_str()) {
            errors.not_supported(&path.child("effect"), &t.effect, EFFECTS);
        }
        if !seen.insert((t.key.as_str(), t.effect.as_str())) {
            let shown = shown_as(&[
                ("Key", json!(t.key)),
                ("Value", json!(text(&t.value))),
                ("Effect", json!(t.effect)),
                ("TimeAdded", json!(t.time_added)),
            ]);
            errors.0.push(FieldError {
                r#type: ErrorType::Duplicate,
                field: path.as_str().to_owned(),
                body: format!("Duplicate value: {shown}: taints must be unique by key and effect pair"),
            });
        }
    }
}

/// Adds the errors of `topologySpreadConstraints`.
pub(super) fn validate_topology_spread(constraints: &[TopologySpreadConstraint], path: &Path, errors: &mut ErrorList) {
    for (i, c) in constraints.iter().enumerate() {
        let path = path.index(i);
        if c.max_skew <= 0 {
            errors.invalid(&path.child("maxSkew"), c.max_skew, "must be greater than zero");
        }
        if c.topology_key.is_empty() {
            errors.required(&path.child("topologyKey"), "can not be empty");
        }
        let action = c.when_unsatisfiable.as_str();
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            errors.not_supported(&path.child("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        let same = |o: &&TopologySpreadConstraint| {
            o.topology_key == c.topology_key && o.when_unsatisfiable == c.when_unsatisfiable
        };
        if constraints[i + 1..].iter().any(|o| same(&o)) {
            errors.duplicate(
                &path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{}, {action}}}", c.topology_key),
            );
        }
        if let Some(min) = c.min_domains {
            let path = path.child("minDomains");
            if min <= 0 {
                errors.invalid(&path, min, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(&path, min, &detail);
            }
        }
        for (field, policy) in
            [("nodeAffinityPolicy", &c.node_affinity_policy), ("nodeTaintsPolicy", &c.node_taints_policy)]
        {
            if let Some(p) = policy.as_deref().filter(|p| !matches!(*p, "Honor" | "Ignore")) {
                errors.not_supported(&path.child(field), p, &["Honor", "Ignore"]);
            }
        }
        validate_spread_label_keys(c, &path.child("matchLabelKeys"), errors);
        let options = SelectorOptions::default();
        errors.extend(validate_label_selector(c.label_selector.as_ref(), options, &path.child("labelSelector")));
    }
}

fn selector_keys(selector: &LabelSelector) -> Vec<&str> {
    let labels = selector.match_labels.iter().flatten().map(|(k, _)| k.as_str());
    labels.chain(selector.match_expressions.iter().flatten().map(|e| e.key.as_str())).collect()
}

fn validate_spread_label_keys(c: &TopologySpreadConstraint, path: &Path, errors: &mut ErrorList) {
    let keys = c.match_label_keys.as_deref().unwrap_or_default();
    if keys.is_empty() {
        return;
    }
    if c.label_selector.is_none() {
        errors.forbidden(path, "must not be specified when labelSelector is not set");
    }
    let selected = c.label_selector.as_ref().map(selector_keys).unwrap_or_default();
    for (i, key) in keys.iter().enumerate() {
        validate_label_key(key, &path.index(i), errors);
        // The registry itself adds each key once, when the pod is created.
        if selected.iter().filter(|k| *k == key).count() > 1 {
            errors.invalid(&path.index(i), key.as_str(), "exists in both matchLabelKeys and labelSelector");
        }
    }
}

/// Adds the errors of readiness and scheduling gates.
pub(super) fn validate_gates(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    for (i, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let path = path.child("readinessGates").index(i).child("conditionType");
        names::push_invalid(errors, &path, &gate.condition_type, &names::qualified_name(&gate.condition_type));
    }
    let mut seen = BTreeSet::new();
    for (i, gate) in spec.scheduling_gates.iter().flatten().enumerate() {
        let path = path.child("schedulingGates").index(i);
        names::push_invalid(errors, &path, &gate.name, &names::qualified_name(&gate.name));
        if !seen.insert(gate.name.as_str()) {
            errors.duplicate(&path, gate.name.as_str());
        }
    }
}
