//! Field errors of a Job's spec, also inside a CronJob's template.

use super::indexes;
use crate::apps::workload::nonnegative;
use crate::core::pod::validate_pod_template_spec;
use crate::meta::conditions;
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{Selector, SelectorOptions, validate_label_selector};
use crate::meta::{names, text};
use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
    SuccessPolicy, SuccessPolicyRule,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const MAX_INDEXED_PARALLELISM: i32 = 100_000;
const MAX_FAILED_INDEXES: i32 = 100_000;
const COMPLETIONS_SOFT_LIMIT: i32 = 100_000;
const PARALLELISM_LIMIT_ABOVE: i32 = 10_000;
const MAX_FAILED_INDEXES_ABOVE: i32 = 10_000;
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_CONDITION_PATTERNS: usize = 20;
const MAX_MANAGED_BY: usize = 63;
const MAX_SUCCEEDED_INDEXES: usize = 64 * 1024;

const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: &[&str] = &["In", "NotIn"];

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    text(&spec.completion_mode) == "Indexed"
}

/// `valid values: ["a" "b"]`.
fn valid_values(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
    format!("valid values: [{}]", quoted.join(" "))
}

fn choice(value: &str, values: &[&str], path: &Path, e: &mut ErrorList) {
    match value {
        "" => e.required(path, &valid_values(values)),
        v if !values.contains(&v) => e.not_supported(path, v, values),
        _ => {}
    }
}

/// Adds the errors of a Job's own spec, which has a selector (`ValidateJobSpec`).
pub(super) fn validate(spec: &JobSpec, path: &Path, e: &mut ErrorList) {
    validate_template(spec, path, e);
    let at = path.child("selector");
    match &spec.selector {
        None => e.required(&at, ""),
        Some(s) => e.extend(validate_label_selector(Some(s), SelectorOptions::default(), &at)),
    }
    if let Ok(selector) = Selector::from_label_selector(spec.selector.as_ref()) {
        let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
        if !selector.matches_optional(labels) {
            let shown = labels.map_or(Value::Null, |l| json!(l));
            let at = path.child("template").child("metadata").child("labels");
            e.invalid(&at, shown, "`selector` does not match template `labels`");
        }
    }
}

/// Adds the errors that a Job's spec and one inside a CronJob share.
pub(super) fn validate_template(spec: &JobSpec, path: &Path, e: &mut ErrorList) {
    for (name, value) in [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        ("ttlSecondsAfterFinished", spec.ttl_seconds_after_finished.map(i64::from)),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.map(i64::from)),
        ("maxFailedIndexes", spec.max_failed_indexes.map(i64::from)),
    ] {
        nonnegative(e, &path.child(name), value.unwrap_or(0));
    }
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        e.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = &spec.managed_by {
        let at = path.child("managedBy");
        e.extend(names::domain_prefixed_path(&at, manager));
        if manager.len() > MAX_MANAGED_BY {
            e.too_long(&at, MAX_MANAGED_BY);
        }
    }
    validate_completion_mode(spec, path, e);
    if let Some(policy) = &spec.pod_failure_policy {
        let at = path.child("podFailurePolicy").child("rules");
        if policy.rules.len() > MAX_RULES {
            e.too_many(&at, policy.rules.len(), MAX_RULES);
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            validate_failure_rule(spec, rule, &at.index(i), e);
        }
    }
    if let Some(policy) = &spec.success_policy {
        let at = path.child("successPolicy");
        if is_indexed(spec) {
            validate_success_policy(spec, policy, &at, e);
        } else {
            e.invalid(&at, json!(policy), "requires indexed completion mode");
        }
    }
    if let Some(policy) = &spec.pod_replacement_policy {
        let known: &[&str] =
            if spec.pod_failure_policy.is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        if !known.contains(&policy.as_str()) {
            e.not_supported(&path.child("podReplacementPolicy"), policy, known);
        }
    }
    e.extend(validate_pod_template_spec(&spec.template, &path.child("template")));
    let at = path.child("template").child("spec").child("restartPolicy");
    match spec.template.spec.as_ref().map_or("", |s| text(&s.restart_policy)) {
        "" | "Always" => e.required(&at, "valid values: \"OnFailure\", \"Never\""),
        "Never" => {}
        "OnFailure" if spec.pod_failure_policy.is_some() => {
            e.invalid(&at, "OnFailure", "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "OnFailure" => {}
        other => e.not_supported(&at, other, &["OnFailure", "Never"]),
    }
}

fn validate_completion_mode(spec: &JobSpec, path: &Path, e: &mut ErrorList) {
    match spec.completion_mode.as_deref() {
        None | Some("NonIndexed") => {
            for (name, value) in
                [("backoffLimitPerIndex", spec.backoff_limit_per_index), ("maxFailedIndexes", spec.max_failed_indexes)]
            {
                if let Some(v) = value {
                    e.invalid(&path.child(name), v, "requires indexed completion mode");
                }
            }
        }
        Some("Indexed") => validate_indexed(spec, path, e),
        Some(other) => e.not_supported(&path.child("completionMode"), other, &["NonIndexed", "Indexed"]),
    }
}

fn validate_indexed(spec: &JobSpec, path: &Path, e: &mut ErrorList) {
    let (parallelism, failed) = (path.child("parallelism"), path.child("maxFailedIndexes"));
    if spec.completions.is_none() {
        e.required(&path.child("completions"), "when completion mode is Indexed");
    }
    if let Some(n) = spec.parallelism.filter(|n| *n > MAX_INDEXED_PARALLELISM) {
        let detail = format!("must be less than or equal to {MAX_INDEXED_PARALLELISM} when completion mode is Indexed");
        e.invalid(&parallelism, n, &detail);
    }
    if let (Some(completions), Some(n)) = (spec.completions, spec.max_failed_indexes)
        && n > completions
    {
        e.invalid(&failed, n, "must be less than or equal to completions");
    }
    if let Some(n) = spec.max_failed_indexes.filter(|n| *n > MAX_FAILED_INDEXES) {
        e.invalid(&failed, n, &format!("must be less than or equal to {MAX_FAILED_INDEXES}"));
    }
    let many = spec.completions.is_some_and(|n| n > COMPLETIONS_SOFT_LIMIT);
    if !many || spec.backoff_limit_per_index.is_none() {
        return;
    }
    if spec.max_failed_indexes.is_none() {
        e.required(&failed, &format!("must be specified when completions is above {COMPLETIONS_SOFT_LIMIT}"));
    }
    let limit = |most: i32| {
        format!(
            "must be less than or equal to {most} when completions are above {COMPLETIONS_SOFT_LIMIT} and used with \
             backoff limit per index"
        )
    };
    if let Some(n) = spec.parallelism.filter(|n| *n > PARALLELISM_LIMIT_ABOVE) {
        e.invalid(&parallelism, n, &limit(PARALLELISM_LIMIT_ABOVE));
    }
    if let Some(n) = spec.max_failed_indexes.filter(|n| *n > MAX_FAILED_INDEXES_ABOVE) {
        e.invalid(&failed, n, &limit(MAX_FAILED_INDEXES_ABOVE));
    }
}

fn validate_failure_rule(spec: &JobSpec, rule: &PodFailurePolicyRule, path: &Path, e: &mut ErrorList) {
    let at = path.child("action");
    if rule.action == "FailIndex" {
        if spec.backoff_limit_per_index.is_none() {
            e.invalid(&at, "FailIndex", "requires the backoffLimitPerIndex to be set");
        }
    } else {
        choice(&rule.action, ACTIONS, &at, e);
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        validate_exit_codes(spec, codes, &path.child("onExitCodes"), e);
    }
    validate_patterns(patterns, &path.child("onPodConditions"), e);
    match (rule.on_exit_codes.is_some(), patterns.is_empty()) {
        (true, false) => {
            e.invalid_unshown(path, "specifying both OnExitCodes and OnPodConditions is not supported");
        }
        (false, true) => {
            e.invalid_unshown(path, "specifying one of OnExitCodes and OnPodConditions is required");
        }
        _ => {}
    }
}

fn validate_patterns(patterns: &[PodFailurePolicyOnPodConditionsPattern], path: &Path, e: &mut ErrorList) {
    if patterns.len() > MAX_CONDITION_PATTERNS {
        e.too_many(path, patterns.len(), MAX_CONDITION_PATTERNS);
    }
    for (i, p) in patterns.iter().enumerate() {
        let path = path.index(i);
        names::push_invalid(e, &path.child("type"), &p.type_, &names::qualified_name(&p.type_));
        choice(text(&p.status), conditions::STATUSES, &path.child("status"), e);
    }
}

fn validate_exit_codes(spec: &JobSpec, codes: &PodFailurePolicyOnExitCodesRequirement, path: &Path, e: &mut ErrorList) {
    choice(&codes.operator, OPERATORS, &path.child("operator"), e);
    if let Some(name) = &codes.container_name {
        let pod = spec.template.spec.clone().unwrap_or_default();
        let known = pod.containers.iter().chain(pod.init_containers.iter().flatten()).any(|c| c.name == *name);
        if !known {
            let detail = "must be one of the container or initContainer names in the pod template";
            e.invalid(&path.child("containerName"), name.as_str(), detail);
        }
    }
    let at = path.child("values");
    if codes.values.is_empty() {
        e.invalid(&at, json!(codes.values), "at least one value is required");
    } else if codes.values.len() > MAX_EXIT_CODES {
        e.too_many(&at, codes.values.len(), MAX_EXIT_CODES);
    }
    let mut seen = BTreeSet::new();
    for (i, code) in codes.values.iter().enumerate() {
        if codes.operator == "In" && *code == 0 {
            e.invalid(&at.index(i), 0, "must not be 0 for the In operator");
        }
        if !seen.insert(code) {
            e.duplicate(&at.index(i), *code);
        }
    }
    if !codes.values.is_sorted() {
        e.invalid(&at, json!(codes.values), "must be ordered");
    }
}

fn validate_success_policy(spec: &JobSpec, policy: &SuccessPolicy, path: &Path, e: &mut ErrorList) {
    let at = path.child("rules");
    if policy.rules.is_empty() {
        e.required(&at, "at least one rules must be specified when the successPolicy is specified");
    }
    if policy.rules.len() > MAX_RULES {
        e.too_many(&at, policy.rules.len(), MAX_RULES);
    }
    for (i, rule) in policy.rules.iter().enumerate() {
        validate_success_rule(spec.completions.unwrap_or(0), rule, &at.index(i), e);
    }
}

fn validate_success_rule(completions: i32, rule: &SuccessPolicyRule, path: &Path, e: &mut ErrorList) {
    if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
        e.required(path, "at least one of succeededCount or succeededIndexes must be specified");
    }
    let mut total = 0;
    if let Some(list) = &rule.succeeded_indexes {
        let at = path.child("succeededIndexes");
        if list.len() > MAX_SUCCEEDED_INDEXES {
            e.too_long(&at, MAX_SUCCEEDED_INDEXES);
        }
        match indexes::parse(list, completions) {
            Ok(intervals) => total = indexes::count(&intervals),
            Err(why) => e.invalid(&at, list.as_str(), &format!("error parsing succeededIndexes: {why}")),
        }
    }
    let Some(count) = rule.succeeded_count else { return };
    let at = path.child("succeededCount");
    nonnegative(e, &at, i64::from(count));
    if count > completions {
        let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
        e.invalid(&at, count, &detail);
    }
    if rule.succeeded_indexes.is_some() && count > total {
        let detail = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        e.invalid(&at, count, &detail);
    }
}
