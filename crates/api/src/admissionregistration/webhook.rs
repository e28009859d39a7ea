//! MutatingWebhookConfiguration and ValidatingWebhookConfiguration: who outside judges which requests. The two differ
//! in the reinvocation policy only.

use super::match_rules::{
    FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, condition_expressions, default_scope, validate_choice,
    validate_conditions, validate_rules,
};
use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::expression::Expression;
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{SelectorOptions, validate_label_selector};
use crate::meta::object::{Meta, semantically_equal};
use crate::meta::{names, table, webhook};
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhook,
    ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];
const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun", "Some", "Unknown"];
const NO_SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];
const COLUMNS: &[Column] =
    &[table::NAME, table::column("Webhooks", "integer", "How many webhooks the configuration has."), table::AGE];

/// A webhook of either sort.
struct Hook<'a> {
    name: &'a str,
    rules: &'a [RuleWithOperations],
    failure_policy: Option<&'a str>,
    match_policy: Option<&'a str>,
    reinvocation_policy: Option<&'a str>,
    side_effects: &'a str,
    timeout_seconds: Option<i32>,
    namespace_selector: Option<&'a LabelSelector>,
    object_selector: Option<&'a LabelSelector>,
    client: &'a WebhookClientConfig,
    conditions: &'a [MatchCondition],
    review_versions: &'a [String],
}

macro_rules! hook {
    ($h:expr, $reinvocation:expr) => {
        Hook {
            name: &$h.name,
            rules: $h.rules.as_deref().unwrap_or_default(),
            failure_policy: $h.failure_policy.as_deref(),
            match_policy: $h.match_policy.as_deref(),
            reinvocation_policy: $reinvocation,
            side_effects: &$h.side_effects,
            timeout_seconds: $h.timeout_seconds,
            namespace_selector: $h.namespace_selector.as_ref(),
            object_selector: $h.object_selector.as_ref(),
            client: &$h.client_config,
            conditions: $h.match_conditions.as_deref().unwrap_or_default(),
            review_versions: &$h.admission_review_versions,
        }
    };
}

fn mutating(c: &MutatingWebhookConfiguration) -> Vec<Hook<'_>> {
    c.webhooks.iter().flatten().map(|h| hook!(h, h.reinvocation_policy.as_deref())).collect()
}

fn validating(c: &ValidatingWebhookConfiguration) -> Vec<Hook<'_>> {
    c.webhooks.iter().flatten().map(|h| hook!(h, None)).collect()
}

/// What is asked of hooks; a changed configuration may keep faults of the stored one.
#[derive(Clone, Copy)]
struct Rules {
    conditions: bool,
    no_side_effects: bool,
    known_review_version: bool,
    unique_names: bool,
    selector: SelectorOptions,
}

const STRICT: Rules = Rules {
    conditions: true,
    no_side_effects: true,
    known_review_version: true,
    unique_names: true,
    selector: SelectorOptions { allow_invalid_values: false },
};

fn knows_review_version(versions: &[String]) -> bool {
    versions.iter().any(|v| REVIEW_VERSIONS.contains(&v.as_str()))
}

fn selector_errors(h: &Hook<'_>, options: SelectorOptions, path: &Path) -> ErrorList {
    let mut e = validate_label_selector(h.namespace_selector, options, &path.child("namespaceSelector"));
    e.extend(validate_label_selector(h.object_selector, options, &path.child("objectSelector")));
    e
}

impl Rules {
    fn of(new: &[Hook<'_>], old: &[Hook<'_>]) -> Self {
        let same = new.len() == old.len() && new.iter().zip(old).all(|(n, o)| n.conditions == o.conditions);
        let strict = SelectorOptions::default();
        let bad_selector = old.iter().any(|h| !selector_errors(h, strict, &Path::new("")).is_empty());
        Self {
            conditions: !same,
            no_side_effects: old.iter().all(|h| NO_SIDE_EFFECTS.contains(&h.side_effects)),
            known_review_version: old
                .iter()
                .all(|h| h.review_versions.is_empty() || knows_review_version(h.review_versions)),
            unique_names: old.iter().enumerate().all(|(i, h)| old[..i].iter().all(|o| o.name != h.name)),
            selector: SelectorOptions { allow_invalid_values: bad_selector },
        }
    }
}

/// Adds the errors of a name that must have a host's form with at least three parts.
fn validate_hook_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    let found = names::dns1123_subdomain(name, false);
    if !found.is_empty() {
        errors.invalid(path, name, &found.join(","));
    } else if name.split('.').count() < 3 {
        errors.invalid(path, name, "should be a domain with at least three segments separated by dots");
    }
}

fn validate_review_versions(versions: &[String], rules: Rules, path: &Path, errors: &mut ErrorList) {
    let known = REVIEW_VERSIONS.join(", ");
    if versions.is_empty() {
        return errors.required(path, &format!("must specify one of {known}"));
    }
    for (i, v) in versions.iter().enumerate() {
        let path = path.index(i);
        if versions[..i].contains(v) {
            errors.invalid(&path, v.as_str(), "duplicate version");
            continue;
        }
        names::push_invalid(errors, &path, v, &names::dns1035_label(v, false));
    }
    if rules.known_review_version && !knows_review_version(versions) {
        errors.invalid(path, json!(versions), &format!("must include at least one of {known}"));
    }
}

fn validate_client(c: &WebhookClientConfig, path: &Path, errors: &mut ErrorList) {
    match (&c.url, &c.service) {
        (Some(url), None) => webhook::validate_url(url, &path.child("url"), errors),
        (None, Some(s)) => {
            let port = s.port.unwrap_or(443);
            webhook::validate_service(&s.name, &s.namespace, s.path.as_deref(), port, &path.child("service"), errors);
        }
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

fn validate_hook(h: &Hook<'_>, rules: Rules, path: &Path, errors: &mut ErrorList) {
    validate_hook_name(h.name, &path.child("name"), errors);
    validate_rules(h.rules, &path.child("rules"), errors);
    validate_choice(h.failure_policy, FAILURE_POLICIES, false, &path.child("failurePolicy"), errors);
    validate_choice(h.match_policy, MATCH_POLICIES, false, &path.child("matchPolicy"), errors);
    let allowed = if rules.no_side_effects { NO_SIDE_EFFECTS } else { SIDE_EFFECTS };
    let at = path.child("sideEffects");
    if h.side_effects.is_empty() {
        errors.required(&at, &format!("must specify one of {}", allowed.join(", ")));
    } else if !allowed.contains(&h.side_effects) {
        errors.not_supported(&at, h.side_effects, allowed);
    }
    if let Some(seconds) = h.timeout_seconds.filter(|s| !(1..=30).contains(s)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&path.child("timeoutSeconds"), seconds, detail);
    }
    errors.extend(selector_errors(h, rules.selector, path));
    let at = path.child("reinvocationPolicy");
    validate_choice(h.reinvocation_policy, REINVOCATION_POLICIES, false, &at, errors);
    validate_client(h.client, &path.child("clientConfig"), errors);
    if rules.conditions {
        validate_conditions(h.conditions, &path.child("matchConditions"), errors);
    }
}

fn validate_hooks(hooks: &[Hook<'_>], rules: Rules) -> ErrorList {
    let mut e = ErrorList::default();
    for (i, h) in hooks.iter().enumerate() {
        let path = Path::new("webhooks").index(i);
        validate_hook(h, rules, &path, &mut e);
        validate_review_versions(h.review_versions, rules, &path.child("admissionReviewVersions"), &mut e);
        if rules.unique_names && !h.name.is_empty() && hooks[..i].iter().any(|o| o.name == h.name) {
            e.duplicate(&path.child("name"), h.name);
        }
    }
    e
}

fn expressions(new: &[Hook<'_>], old: Option<&[Hook<'_>]>) -> Vec<Expression> {
    if old.is_some_and(|old| !Rules::of(new, old).conditions) {
        return Vec::new();
    }
    let before: Vec<MatchCondition> = old.into_iter().flatten().flat_map(|h| h.conditions.iter().cloned()).collect();
    let of = |(i, h): (usize, &Hook<'_>)| {
        condition_expressions(h.conditions, &before, false, &Path::new("webhooks").index(i).child("matchConditions"))
    };
    new.iter().enumerate().flat_map(of).collect()
}

macro_rules! set_defaults {
    ($h:expr) => {
        $h.failure_policy.get_or_insert_with(|| "Fail".to_owned());
        $h.match_policy.get_or_insert_with(|| "Equivalent".to_owned());
        $h.namespace_selector.get_or_insert_default();
        $h.object_selector.get_or_insert_default();
        $h.timeout_seconds.get_or_insert(10);
        if let Some(s) = &mut $h.client_config.service {
            s.port.get_or_insert(443);
        }
        for r in $h.rules.iter_mut().flatten() {
            default_scope(&mut r.scope);
        }
    };
}

fn default_mutating(h: &mut MutatingWebhook) {
    set_defaults!(h);
    h.reinvocation_policy.get_or_insert_with(|| "Never".to_owned());
}

fn default_validating(h: &mut ValidatingWebhook) {
    set_defaults!(h);
}

const fn info(kind: &'static str, plural: &'static str, singular: &'static str) -> ResourceInfo {
    ResourceInfo {
        categories: &["api-extensions"],
        unconditional_update: false,
        ..ResourceInfo::new("admissionregistration.k8s.io", "v1", kind, plural, singular, false)
    }
}

macro_rules! configuration {
    ($t:ty, $info:expr, $hooks:ident, $default:ident) => {
        impl Kind for $t {
            const INFO: ResourceInfo = $info;
            const COLUMNS: &'static [Column] = COLUMNS;
            crate::kind_codec!();

            fn set_defaults(&mut self) {
                self.webhooks.iter_mut().flatten().for_each($default);
            }

            fn prepare_for_create(&mut self, _: &Context<'_>) {
                self.metadata.generation = Some(1);
            }

            fn validate(&self) -> ErrorList {
                validate_hooks(&$hooks(self), STRICT)
            }

            fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
                let changed = !semantically_equal(&self.webhooks, &old.webhooks);
                bump_generation(&mut self.metadata, &old.metadata, changed);
            }

            fn validate_update(&self, old: &Self) -> ErrorList {
                let (new, old) = ($hooks(self), $hooks(old));
                validate_hooks(&new, Rules::of(&new, &old))
            }

            fn expressions(&self, old: Option<&Self>) -> Vec<Expression> {
                expressions(&$hooks(self), old.map($hooks).as_deref())
            }

            fn cells(&self, now: Timestamp) -> Vec<Value> {
                vec![
                    self.metadata.name().into(),
                    self.webhooks.as_ref().map_or(0, Vec::len).into(),
                    table::age(&self.metadata, now).into(),
                ]
            }
        }
    };
}

configuration!(
    MutatingWebhookConfiguration,
    info("MutatingWebhookConfiguration", "mutatingwebhookconfigurations", "mutatingwebhookconfiguration"),
    mutating,
    default_mutating
);
configuration!(
    ValidatingWebhookConfiguration,
    info("ValidatingWebhookConfiguration", "validatingwebhookconfigurations", "validatingwebhookconfiguration"),
    validating,
    default_validating
);

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(hooks: Value) -> MutatingWebhookConfiguration {
        let value = json!({"metadata": {"name": "c"}, "webhooks": hooks});
        let mut c = MutatingWebhookConfiguration::from_value(value).unwrap();
        c.set_defaults();
        c
    }

    fn hook(name: &str) -> Value {
        json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"service": {"name": "s", "namespace": "n"}}, "rules": [{"operations": ["CREATE"],
            "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]})
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_and_row() {
        let c = configuration(json!([hook("a.b.c")]));
        assert!(c.validate().is_empty(), "{:?}", c.validate());
        let h = json!(c.webhooks.as_ref().unwrap()[0]);
        assert_eq!(
            (&h["failurePolicy"], &h["matchPolicy"], &h["timeoutSeconds"], &h["reinvocationPolicy"]),
            (&json!("Fail"), &json!("Equivalent"), &json!(10), &json!("Never"))
        );
        assert_eq!((&h["clientConfig"]["service"]["port"], &h["rules"][0]["scope"]), (&json!(443), &json!("*")));
        assert_eq!((&h["namespaceSelector"], &h["objectSelector"]), (&json!({}), &json!({})));
        assert_eq!(json!(c.cells(Timestamp::UNIX_EPOCH)), json!(["c", 1, "<unknown>"]));
    }

    #[test]
    fn field_errors() {
        let mut bad = hook("a.b");
        for (field, value) in [
            ("failurePolicy", json!("x")),
            ("matchPolicy", json!("x")),
            ("reinvocationPolicy", json!("x")),
            ("sideEffects", json!("Some")),
            ("timeoutSeconds", json!(31)),
            ("clientConfig", json!({})),
            ("admissionReviewVersions", json!(["v2", "v2"])),
        ] {
            bad[field] = value;
        }
        let mut empty = hook("a.b.c");
        empty["admissionReviewVersions"] = json!([]);
        empty["sideEffects"] = json!("");
        let c = configuration(json!([bad, empty, hook("a.b.c")]));
        assert_eq!(
            texts(&c.validate()),
            [
                "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated \
                 by dots",
                "webhooks[0].failurePolicy: Unsupported value: \"x\": supported values: \"Fail\", \"Ignore\"",
                "webhooks[0].matchPolicy: Unsupported value: \"x\": supported values: \"Equivalent\", \"Exact\"",
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
                "webhooks[0].reinvocationPolicy: Unsupported value: \"x\": supported values: \"IfNeeded\", \"Never\"",
                "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
                "webhooks[0].admissionReviewVersions[1]: Invalid value: \"v2\": duplicate version",
                "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\",\"v2\"]: must include at least one of \
                 v1, v1beta1",
                "webhooks[1].sideEffects: Required value: must specify one of None, NoneOnDryRun",
                "webhooks[1].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
                "webhooks[2].name: Duplicate value: \"a.b.c\"",
            ]
        );
    }

    #[test]
    fn stored_faults_may_stay_and_changes_count() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut h = hook("a.b.c");
        h["sideEffects"] = json!("Some");
        h["matchConditions"] = json!([{"name": "x", "expression": "true"}]);
        let mut old = configuration(json!([h]));
        old.prepare_for_create(&cx);
        let mut new = old.clone();
        assert_eq!(texts(&new.validate()).len(), 1);
        assert!(new.validate_update(&old).is_empty());
        assert!(new.expressions(Some(&old)).is_empty());
        assert_eq!(new.expressions(None).len(), 1);
        new.webhooks = None;
        new.prepare_for_update(&old, &cx);
        assert_eq!(new.metadata.generation, Some(2));
    }
}
