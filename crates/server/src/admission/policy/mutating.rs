//! Mutating policies: change the object before the mutating webhooks see it, one after the other.

use super::{Binding, Common, Policy, PolicyKind, Source, namespace_object};
use crate::admission::expression::{BUDGET, Compiled, Declared, Input};
use crate::admission::matching::{Criteria, Matched};
use crate::admission::request::{Request, take_back};
use crate::admission::webhook::is_exempt;
use crate::admission::{Attributes, MutatingPlugin};
use crate::authz::Authorizer;
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, Mutation,
};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use gantry_api::kind::Object;
use gantry_api::meta::expression::Role;
use gantry_api::meta::object::{Meta, split_api_version};
use gantry_api::meta::status::ApiError;
use gantry_cel::{Constructed, JsonPatch, List, Value as CelValue};
use gantry_schema::apply::{FieldManager, SingleVersion};
use gantry_schema::patch::{self, PatchError};
use gantry_schema::schema::{ListKind, Shape};
use gantry_schema::{Definitions, Schema};
use serde_json::{Value, json};
use std::sync::Arc;

/// Who applies the configurations of policies, for the merge alone: what policies set is nobody's.
const MANAGER: &str = "admission";

/// What only mutating policies have.
pub struct Mutations {
    /// In order, each with whether it is a configuration to apply rather than a JSON patch.
    all: Vec<(bool, Compiled)>,
    again_if_needed: bool,
}

impl PolicyKind for MutatingAdmissionPolicy {
    type Binding = MutatingAdmissionPolicyBinding;
    type Body = Mutations;

    fn compile(&self) -> Policy<Mutations> {
        let spec = self.spec.clone().unwrap_or_default();
        let common = Common {
            failure_policy: spec.failure_policy.as_deref(),
            param_kind: spec.param_kind.as_ref(),
            constraints: spec.match_constraints.as_ref(),
            conditions: spec.match_conditions.as_deref().unwrap_or_default(),
            variables: spec.variables.as_deref().unwrap_or_default(),
        };
        Policy::new(self.metadata.name(), &common, |compiler, params| {
            let declared = Declared { params, authorizer: true, patches: true };
            let mut one = |m: &Mutation| {
                let apply = m.patch_type == "ApplyConfiguration";
                let (text, role) = if apply {
                    (m.apply_configuration.as_ref()?.expression.as_deref(), Role::ApplyConfiguration)
                } else {
                    (m.json_patch.as_ref()?.expression.as_deref(), Role::JsonPatch)
                };
                Some((apply, compiler.compile(text.unwrap_or_default(), &role, declared, true)))
            };
            Mutations {
                all: spec.mutations.iter().flatten().filter_map(&mut one).collect(),
                again_if_needed: spec.reinvocation_policy.as_deref() == Some("IfNeeded"),
            }
        })
    }

    fn binding(binding: &MutatingAdmissionPolicyBinding) -> Binding {
        let spec = binding.spec.clone().unwrap_or_default();
        Binding {
            name: binding.metadata.name().to_owned(),
            policy: spec.policy_name.unwrap_or_default(),
            criteria: spec.match_resources.as_ref().map(Criteria::of_policy),
            params: spec.param_ref,
            actions: Vec::new(),
        }
    }
}

/// Why a policy could not be carried out.
struct Fault {
    message: String,
    /// Whether the object or the policy's expressions are at fault, rather than how it is configured.
    invalid: bool,
}

/// A mutation that could not be carried out.
enum Failure {
    /// The failure policy decides.
    Policy(String),
    /// The request is refused whatever the policy.
    Request(ApiError),
}

impl From<ApiError> for Failure {
    fn from(e: ApiError) -> Self {
        Failure::Request(e)
    }
}

/// One policy with one binding and one parameter.
struct Invocation<'p> {
    policy: &'p Policy<Mutations>,
    binding: &'p Binding,
    matched: Matched,
    params: Option<Value>,
    /// Tells it from others.
    id: String,
}

/// The places in a configuration that are replaced as a whole, which a policy may not do.
fn atomics(value: &Value, schema: Option<Schema<'_>>, path: &str, found: &mut Vec<String>) {
    match (schema.map(Schema::shape), value) {
        (Some(Shape::Object(object)), Value::Object(map)) => {
            if object.atomic {
                found.push(path.to_owned());
            }
            for (name, value) in map {
                atomics(value, object.child(name), &format!("{path}.{name}"), found);
            }
        }
        (Some(Shape::List(list)), Value::Array(items)) => {
            if matches!(list.kind, ListKind::Atomic) {
                found.push(path.to_owned());
            }
            for (i, item) in items.iter().enumerate() {
                atomics(item, Some(list.items), &format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}

/// The object with a configuration merged into it.
fn apply(object: &Value, value: &CelValue) -> Result<Value, Failure> {
    let fault = |why: &dyn std::fmt::Display| Failure::Policy(why.to_string());
    let Some(constructed) = value.downcast::<Constructed>() else {
        let given = value.type_name();
        return Err(fault(&format!("unsupported return type from ApplyConfiguration expression: {given}")));
    };
    constructed.check_type_names().map_err(|e| fault(&format!("type mismatch: {e}")))?;
    let mut config = constructed.to_json().map_err(|e| fault(&e))?;
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = split_api_version(api_version);
    let schema = Definitions::builtin().schema_for(group, version, kind).ok_or_else(|| {
        let why =
            "There can be a delay between when CustomResourceDefinitions are created and when they are available.";
        ApiError::unavailable(format!("Resource kind {group}/{version}, Kind={kind} not found. {why}"))
    })?;
    config["apiVersion"] = api_version.into();
    config["kind"] = kind.into();
    let failed = |what: &str, why: &dyn std::fmt::Display| fault(&format!("error applying patch: {what}: {why}"));
    let mut found = Vec::new();
    atomics(&config, Some(schema), "", &mut found);
    if !found.is_empty() {
        let why = format!("may not mutate atomic arrays, maps or structs: {}", found.join(", "));
        return Err(failed("invalid ApplyConfiguration", &why));
    }
    let manager =
        FieldManager { schema, api_version, kind, subresource: "", reset_fields: None, versions: &SingleVersion };
    let mut live = object.clone();
    let managed = live["metadata"].as_object_mut().and_then(|m| m.remove("managedFields"));
    let merged = manager.apply(Some(live), &config, MANAGER, true, "1970-01-01T00:00:00Z");
    let Some(mut merged) = merged.map_err(|e| failed("failed to merge patch", &e))? else { return Ok(object.clone()) };
    if let Some(meta) = merged["metadata"].as_object_mut() {
        meta.remove("managedFields");
        meta.extend(managed.map(|m| ("managedFields".to_owned(), m)));
    }
    Ok(merged)
}

/// The operations of a patch as JSON.
fn operations(value: &CelValue) -> Result<Vec<Value>, String> {
    let CelValue::List(list) = value else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".into());
    };
    let one = |item: CelValue| {
        let Some(p) = item.downcast::<JsonPatch>() else {
            let given = item.type_name();
            let why = "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of";
            return Err(format!("{why} {given}"));
        };
        let mut operation = json!({"op": p.op, "path": p.path});
        if !p.from.is_empty() {
            operation["from"] = p.from.as_str().into();
        }
        if let Some(value) = &p.value {
            if let Some(constructed) = value.downcast::<Constructed>() {
                constructed.check_type_names().map_err(|e| format!("type mismatch: {e}"))?;
            }
            let why = "JSONPath valueExpression evaluated to a type that could not marshal to JSON";
            operation["value"] = value.to_json().map_err(|e| format!("{why}: {e}"))?;
        }
        Ok(operation)
    };
    List::iter(list).map(|item| one(item.map_err(|e| e.to_string())?)).collect()
}

/// The object after a JSON patch; None where a `test` of the patch fails, which leaves the object as it is.
fn patched(object: &Value, value: &CelValue) -> Result<Option<Value>, Failure> {
    let operations = Value::Array(operations(value).map_err(Failure::Policy)?).to_string();
    match patch::json_patch(object, operations.as_bytes()) {
        Ok(patched) => Ok(Some(patched.value)),
        Err(PatchError::Rejected { why }) if why.contains("test failed") => Ok(None),
        Err(PatchError::Rejected { why }) => Err(Failure::Policy(format!("JSON Patch: {why}"))),
        Err(e) => Err(Failure::Policy(format!("JSON Patch: {e}"))),
    }
}

/// The plugin.
pub struct MutatingPolicies {
    source: Source<MutatingAdmissionPolicy>,
    authorizer: Arc<dyn Authorizer>,
}

impl MutatingPolicies {
    /// The plugin; expressions may ask `authorizer`.
    #[must_use]
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        Self { source: Source::default(), authorizer }
    }

    fn input(&self, i: &Invocation<'_>, a: &Attributes<'_>, request: &Request, namespace: Option<&Value>) -> Input {
        Input::new(request)
            .with_authorizer(a, &self.authorizer)
            .with_params(i.params.as_ref())
            .with_namespace(namespace)
    }

    /// Carries out one mutation. Whether it changed the object.
    async fn mutate(
        &self,
        i: &Invocation<'_>,
        mutation: &(bool, Compiled),
        a: &mut Attributes<'_>,
        namespace: Option<&Value>,
        cluster: &Cluster,
    ) -> Result<bool, Failure> {
        let request = Request::of(a, i.matched.equivalent, cluster).await?;
        let changed = {
            let input = self.input(i, a, &request, namespace).with_variables(&i.policy.variables);
            let mut budget = BUDGET;
            let value = input.evaluate(&mutation.1, &mut budget).and_then(|v| v).map_err(Failure::Policy)?;
            if mutation.0 { Some(apply(&request.object, &value)?) } else { patched(&request.object, &value)? }
        };
        Ok(match changed {
            Some(changed) => take_back(a, i.matched.equivalent, changed, cluster).await?,
            None => false,
        })
    }
}

/// What the client is told: the first fault, and all of them as causes.
fn refusal(a: &Attributes<'_>, faults: Vec<Fault>) -> Result<(), ApiError> {
    let Some(first) = faults.first() else { return Ok(()) };
    let mut e = a.forbidden("admission request denied by policy");
    e.message.clone_from(&first.message);
    if first.invalid {
        e.reason = "Invalid";
    }
    let causes = faults.into_iter().map(|f| StatusCause { message: Some(f.message), ..Default::default() });
    e.details.get_or_insert_default().causes.get_or_insert_default().extend(causes);
    Err(e)
}

fn denied(policy: &str, binding: Option<&str>, why: &str) -> String {
    match binding {
        Some(binding) => format!("policy '{policy}' with binding '{binding}' denied request: {why}"),
        None => format!("policy {policy:?} denied request: {why}"),
    }
}

#[async_trait]
impl MutatingPlugin for MutatingPolicies {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let policies = self.source.policies(cluster).await?;
        if policies.is_empty() || is_exempt(a) {
            return Ok(());
        }
        let mut faults = Vec::new();
        let mut blame = |policy: &Policy<Mutations>, binding: Option<&str>, why: &str, invalid: bool| {
            if !policy.ignore_failures {
                faults.push(Fault { message: denied(&policy.name, binding, why), invalid });
            }
        };
        let mut invocations = Vec::new();
        for policy in policies.iter() {
            let (matched, applications) = match policy.applications(a, cluster).await {
                Ok(None) => continue,
                Ok(Some(found)) => found,
                Err(why) => {
                    blame(policy, None, &format!("failed to configure policy: {why}"), false);
                    continue;
                }
            };
            for (binding, params) in applications {
                match params {
                    Ok(all) => invocations.extend(all.into_iter().map(|params| {
                        let of = |p: &Value| format!("{}/{}", p["metadata"]["namespace"], p["metadata"]["name"]);
                        let param = params.as_ref().map(of).unwrap_or_default();
                        let id = format!("{}/{}/{param}", policy.name, binding.name);
                        Invocation { policy, binding, matched, params, id }
                    })),
                    Err(why) => {
                        let why = format!("failed to configure binding: {why}");
                        blame(policy, Some(&binding.name), &why, false);
                    }
                }
            }
        }
        if !invocations.is_empty() {
            let object = |a: &Attributes<'_>| a.object.as_deref().map(Object::to_value).unwrap_or_default();
            if a.rounds.again {
                let now = object(a);
                a.rounds.policies.begin_again(&now);
            }
            let namespace = namespace_object(a, cluster).await?;
            for i in &invocations {
                let request = Request::of(a, i.matched.equivalent, cluster).await?;
                let held = {
                    let input = self.input(i, a, &request, namespace.as_ref());
                    i.policy.conditions.hold(&input, i.policy.ignore_failures)
                };
                match held {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(why) => {
                        blame(i.policy, Some(&i.binding.name), &why, true);
                        continue;
                    }
                }
                if a.rounds.again && !a.rounds.policies.is_due(&i.id) {
                    continue;
                }
                let mut changed = false;
                for mutation in &i.policy.body.all {
                    // What is deleted or connected to cannot be changed.
                    if a.object.is_none() {
                        break;
                    }
                    match self.mutate(i, mutation, a, namespace.as_ref(), cluster).await {
                        Ok(now) => changed |= now,
                        Err(Failure::Request(e)) => return Err(e),
                        Err(Failure::Policy(why)) => blame(i.policy, Some(&i.binding.name), &why, true),
                    }
                }
                if changed {
                    a.rounds.policies.changed();
                    a.rounds.wanted = true;
                }
                if i.policy.body.again_if_needed {
                    a.rounds.policies.called(&i.id);
                }
            }
            let now = object(a);
            a.rounds.policies.end(now);
        }
        refusal(a, faults)
    }
}
