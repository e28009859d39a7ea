//! Validating policies: judge the object as it will be stored, before the webhooks that judge it.

use super::{Binding, Common, Policy, PolicyKind, Source, namespace_object};
use crate::admission::expression::{BUDGET, Compiled, Declared, Input};
use crate::admission::matching::Criteria;
use crate::admission::measured::Measured;
use crate::admission::request::Request;
use crate::admission::webhook::is_exempt;
use crate::admission::{Attributes, ValidatingPlugin};
use crate::audit;
use crate::authz::Authorizer;
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, Validation,
};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use gantry_api::meta::expression::Role;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use gantry_cel::Value;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// Longest message of a `messageExpression` in bytes; a longer one is passed over.
const MESSAGE_BYTES_MAX: usize = 5 << 10;
/// Longest value of an audit annotation in bytes; a longer one is cut.
const ANNOTATION_BYTES_MAX: usize = 10 << 10;

/// Most refusals that are noted of one request.
const AUDITED_MAX: usize = 50;

/// Actions of bindings, and how measurements call them.
const ENFORCED: [(&str, &str); 3] = [("Deny", "deny"), ("Warn", "warn"), ("Audit", "audit")];

/// What only validating policies have.
pub struct Judgement {
    validations: Vec<Rule>,
    /// Values of audit annotations by key.
    annotations: Vec<(String, Compiled)>,
}

struct Rule {
    expression: Compiled,
    message: String,
    message_expression: Option<Compiled>,
    reason: &'static str,
}

/// A refusal.
struct Denial {
    message: String,
    reason: &'static str,
    /// Which of the policy's validations it comes from.
    index: usize,
    /// What measurements call the error behind it.
    error: &'static str,
}

impl Denial {
    fn error(message: String) -> Self {
        // Of all that can go wrong these two are told apart, by what they say.
        let error = match message.as_str() {
            m if m.starts_with("compilation error") => "compile_error",
            m if m.contains("running out of cost budget") => "out_of_budget",
            _ => "invalid_error",
        };
        Self { message, reason: "Invalid", index: 0, error }
    }
}

/// What a policy makes of a request with one parameter.
#[derive(Default)]
struct Verdict {
    denials: Vec<Denial>,
    /// Refused whatever the actions of the binding are.
    annotation_errors: Vec<String>,
    annotations: Vec<(String, String)>,
}

/// The reason of a refusal and its status code.
const REASONS: &[(&str, u16)] =
    &[("Invalid", 422), ("Forbidden", 403), ("Unauthorized", 401), ("RequestEntityTooLarge", 413)];

fn reason(given: Option<&str>) -> &'static str {
    REASONS.iter().find(|(r, _)| Some(*r) == given).map_or("Invalid", |(r, _)| r)
}

fn code(reason: &str) -> u16 {
    REASONS.iter().find(|(r, _)| *r == reason).map_or(422, |(_, code)| *code)
}

impl PolicyKind for ValidatingAdmissionPolicy {
    type Binding = ValidatingAdmissionPolicyBinding;
    type Body = Judgement;

    fn compile(&self) -> Policy<Judgement> {
        let spec = self.spec.clone().unwrap_or_default();
        let common = Common {
            failure_policy: spec.failure_policy.as_deref(),
            param_kind: spec.param_kind.as_ref(),
            constraints: spec.match_constraints.as_ref(),
            conditions: spec.match_conditions.as_deref().unwrap_or_default(),
            variables: spec.variables.as_deref().unwrap_or_default(),
        };
        Policy::new(self.metadata.name(), &common, |compiler, params| {
            let full = Declared { params, authorizer: true, patches: false };
            let of_messages = Declared { authorizer: false, ..full };
            let mut rule = |v: &Validation| Rule {
                expression: compiler.compile(&v.expression, &Role::Validation, full, true),
                message: v.message.as_deref().unwrap_or_default().trim().to_owned(),
                message_expression: v
                    .message_expression
                    .as_deref()
                    .filter(|m| !m.is_empty())
                    .map(|m| compiler.compile(m, &Role::Message, of_messages, true)),
                reason: reason(v.reason.as_deref()),
            };
            let validations = spec.validations.iter().flatten().map(&mut rule).collect();
            let mut annotations = Vec::new();
            for a in spec.audit_annotations.iter().flatten() {
                let value = compiler.compile(&a.value_expression, &Role::AuditAnnotation, full, true);
                annotations.push((a.key.clone(), value));
            }
            Judgement { validations, annotations }
        })
    }

    fn binding(binding: &ValidatingAdmissionPolicyBinding) -> Binding {
        let spec = binding.spec.clone();
        Binding {
            name: binding.metadata.name().to_owned(),
            policy: spec.policy_name,
            criteria: spec.match_resources.as_ref().map(Criteria::of_policy),
            params: spec.param_ref,
            actions: spec.validation_actions,
        }
    }
}

/// The message of a failed validation.
fn message(rule: &Rule, input: &Input, budget: &mut u64) -> Result<String, String> {
    let mut found = String::new();
    if let Some(expression) = &rule.message_expression {
        let value = input.evaluate(expression, budget).map_err(|why| format!("failed messageExpression: {why}"))?;
        match value {
            Ok(value) => value.as_str().unwrap_or_default().trim().clone_into(&mut found),
            Err(why) => tracing::debug!(why, "messageExpression failed"),
        }
        if found.len() > MESSAGE_BYTES_MAX || found.contains('\n') {
            found.clear();
        }
    }
    if found.is_empty() {
        found.clone_from(&rule.message);
    }
    Ok(if found.is_empty() { format!("failed expression: {}", rule.expression.text) } else { found })
}

impl Policy<Judgement> {
    /// What cannot be decided, by the failure policy.
    fn undecided(&self, mut verdict: Verdict, why: String) -> Verdict {
        if !self.ignore_failures {
            verdict.denials.push(Denial::error(why));
        }
        verdict
    }

    /// Judges a request with one parameter.
    fn judge(&self, base: Input) -> Verdict {
        let mut verdict = Verdict::default();
        match self.conditions.hold(&base, self.ignore_failures) {
            Ok(true) => {}
            Ok(false) => return verdict,
            Err(why) => return self.undecided(verdict, why),
        }
        let input = base.with_variables(&self.variables);
        let mut budget = BUDGET;
        let mut results = Vec::new();
        for rule in &self.body.validations {
            match input.evaluate(&rule.expression, &mut budget) {
                Ok(result) => results.push((rule, result)),
                Err(out_of_budget) => return self.undecided(verdict, out_of_budget),
            }
        }
        for (index, (rule, result)) in results.into_iter().enumerate() {
            let before = verdict.denials.len();
            match result {
                Err(why) => verdict = self.undecided(verdict, why),
                Ok(Value::Bool(true)) => {}
                Ok(_) => match message(rule, &input, &mut budget) {
                    Ok(message) => {
                        verdict.denials.push(Denial { message, reason: rule.reason, index, error: "no_error" })
                    }
                    Err(why) => verdict = self.undecided(verdict, why),
                },
            }
            verdict.denials[before..].iter_mut().for_each(|d| d.index = index);
        }
        let mut budget = BUDGET;
        for (key, expression) in &self.body.annotations {
            match input.evaluate(expression, &mut budget) {
                Ok(Ok(value)) => {
                    let mut text = value.as_str().unwrap_or_default().trim().to_owned();
                    text.truncate(text.floor_char_boundary(ANNOTATION_BYTES_MAX));
                    if !text.is_empty() {
                        verdict.annotations.push((key.clone(), text));
                    }
                }
                Ok(Err(why)) if !self.ignore_failures => verdict.annotation_errors.push(why),
                Ok(Err(_)) => {}
                // Nothing of what was found counts then.
                Err(out_of_budget) => return self.undecided(Verdict::default(), out_of_budget),
            }
        }
        verdict
    }
}

/// What has come together over all policies.
#[derive(Default)]
struct Outcome {
    /// The first refusal: its sentence and reason.
    denied: Option<(String, &'static str)>,
    /// Refusals that are to be noted in the audit log.
    audited: Vec<serde_json::Value>,
}

impl Outcome {
    fn deny(&mut self, policy: &str, binding: Option<&str>, denial: &Denial) {
        let by = match binding {
            Some(binding) => format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}'"),
            None => format!("ValidatingAdmissionPolicy '{policy}'"),
        };
        self.denied.get_or_insert_with(|| (format!("{by} denied request: {}", denial.message), denial.reason));
    }

    /// A policy or binding that cannot be applied.
    fn misconfigured(&mut self, policy: &Policy<Judgement>, binding: Option<&str>, why: &str) {
        if policy.ignore_failures {
            return;
        }
        let what = if binding.is_some() { "binding" } else { "policy" };
        self.deny(&policy.name, binding, &Denial::error(format!("failed to configure {what}: {why}")));
    }
}

/// The plugin.
pub struct ValidatingPolicies {
    source: Source<ValidatingAdmissionPolicy>,
    authorizer: Arc<dyn Authorizer>,
    measured: Arc<Measured>,
}

impl ValidatingPolicies {
    /// The plugin; expressions may ask `authorizer`.
    #[must_use]
    pub fn new(authorizer: Arc<dyn Authorizer>, measured: Arc<Measured>) -> Self {
        Self { source: Source::default(), authorizer, measured }
    }

    async fn apply(
        &self,
        policy: &Policy<Judgement>,
        a: &mut Attributes<'_>,
        cluster: &Cluster,
        outcome: &mut Outcome,
    ) -> Result<(), ApiError> {
        let (matched, applications) = match policy.applications(a, cluster).await {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => found,
            Err(why) => {
                outcome.misconfigured(policy, None, &why);
                return Ok(());
            }
        };
        let request = Request::of(a, matched.equivalent, cluster).await?;
        let mut annotations = BTreeMap::<String, Vec<String>>::new();
        for (binding, params) in applications {
            let params = match params {
                Ok(params) => params,
                Err(why) => {
                    outcome.misconfigured(policy, Some(&binding.name), &why);
                    continue;
                }
            };
            let namespace = namespace_object(a, cluster).await?;
            for param in params {
                let input = Input::new(&request)
                    .with_authorizer(a, &self.authorizer)
                    .with_params(param.as_ref())
                    .with_namespace(namespace.as_ref());
                let began = Instant::now();
                let verdict = policy.judge(input);
                let took = began.elapsed();
                for (denial, action) in verdict.denials.iter().flat_map(|d| binding.actions.iter().map(move |a| (d, a)))
                {
                    let action = ENFORCED.iter().find(|(name, _)| name == action).map_or("audit", |(_, shown)| *shown);
                    self.measured.policy(&policy.name, &binding.name, action, denial.error, took);
                }
                settle(policy, binding, &verdict, a, outcome);
                for (key, value) in verdict.annotations {
                    let values = annotations.entry(key).or_default();
                    if !values.contains(&value) {
                        values.push(value);
                    }
                }
            }
        }
        for (key, values) in annotations {
            let (annotation, value) = (format!("{}/{key}", policy.name), values.join(", "));
            audit::annotate(&annotation, &value);
        }
        Ok(())
    }
}

/// Does what the binding says should come of refusals.
fn settle(
    policy: &Policy<Judgement>,
    binding: &Binding,
    verdict: &Verdict,
    a: &mut Attributes<'_>,
    outcome: &mut Outcome,
) {
    for denial in &verdict.denials {
        for action in &binding.actions {
            match action.as_str() {
                "Deny" => outcome.deny(&policy.name, Some(&binding.name), denial),
                "Warn" => a.warnings.push(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                    policy.name, binding.name, denial.message
                )),
                _ => outcome.audited.push(json!({
                    "message": denial.message,
                    "policy": policy.name,
                    "binding": binding.name,
                    "expressionIndex": denial.index,
                    "validationActions": binding.actions,
                })),
            }
        }
    }
    for why in &verdict.annotation_errors {
        outcome.deny(&policy.name, Some(&binding.name), &Denial::error(why.clone()));
    }
}

#[async_trait]
impl ValidatingPlugin for ValidatingPolicies {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let policies = self.source.policies(cluster).await?;
        if policies.is_empty() || is_exempt(a) {
            return Ok(());
        }
        let mut outcome = Outcome::default();
        for policy in policies.iter() {
            self.apply(policy, a, cluster, &mut outcome).await?;
        }
        if !outcome.audited.is_empty() {
            outcome.audited.truncate(AUDITED_MAX);
            let failures = serde_json::Value::Array(outcome.audited);
            audit::annotate("validation.policy.admission.k8s.io/validation_failure", &failures.to_string());
        }
        let Some((message, reason)) = outcome.denied else { return Ok(()) };
        let mut refusal = ApiError { code: code(reason), reason, ..a.forbidden(&message) };
        let details = refusal.details.get_or_insert_default();
        let cause = StatusCause { message: Some(message), ..Default::default() };
        details.causes.get_or_insert_default().push(cause);
        Err(refusal)
    }
}
