//! Admission policies: CEL expressions that judge or change requests, as `ValidatingAdmissionPolicy`s and
//! `MutatingAdmissionPolicy`s with their bindings say (`k8s.io/apiserver/pkg/admission/plugin/policy`).

mod mutating;
mod params;
#[cfg(test)]
mod tests;
mod type_check;
mod validating;

pub use mutating::MutatingPolicies;
pub use type_check::{GroupVersionKind, check, kinds};
pub use validating::ValidatingPolicies;

use super::Attributes;
use super::expression::{Compiled, Compiler, Conditions, Declared};
use super::matching::{self, Criteria, Matched};
use super::request::namespace_of;
use crate::cluster::{Cluster, resource_of};
use gantry_api::k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, ParamKind, ParamRef, Variable,
};
use gantry_api::kind::Kind;
use gantry_api::meta::expression::Role;
use gantry_api::meta::status::ApiError;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;

/// A policy, compiled, with its bindings. `B` is what only its sort has.
struct Policy<B> {
    name: String,
    criteria: Criteria,
    /// Whether what cannot be decided counts as consent.
    ignore_failures: bool,
    param_kind: Option<ParamKind>,
    conditions: Conditions,
    variables: Arc<Vec<(String, Compiled)>>,
    body: B,
    bindings: Vec<Binding>,
}

/// Where a policy applies, and with what parameters.
#[derive(Clone)]
struct Binding {
    name: String,
    policy: String,
    criteria: Option<Criteria>,
    params: Option<ParamRef>,
    /// What comes of a failed validation; only of validating policies.
    actions: Vec<String>,
}

/// The fields policies of every sort have.
struct Common<'a> {
    failure_policy: Option<&'a str>,
    param_kind: Option<&'a ParamKind>,
    constraints: Option<&'a MatchResources>,
    conditions: &'a [MatchCondition],
    variables: &'a [Variable],
}

/// A sort of policies.
trait PolicyKind: Kind {
    type Binding: Kind;
    type Body: Send + Sync;
    fn compile(&self) -> Policy<Self::Body>;
    fn binding(binding: &Self::Binding) -> Binding;
}

impl<B> Policy<B> {
    /// Compiles the common part, then what `body` makes of a compiler that knows the variables.
    fn new(name: &str, common: &Common<'_>, body: impl FnOnce(&mut Compiler, bool) -> B) -> Self {
        let params = common.param_kind.is_some();
        let declared = Declared { params, authorizer: true, patches: false };
        let mut compiler = Compiler::default();
        let mut variables = Vec::new();
        for v in common.variables {
            let compiled = compiler.compile(&v.expression, &Role::Variable(v.name.clone()), declared, true);
            variables.push((v.name.clone(), compiled));
        }
        let everything = MatchResources::default();
        Self {
            name: name.to_owned(),
            criteria: Criteria::of_policy(common.constraints.unwrap_or(&everything)),
            ignore_failures: common.failure_policy == Some("Ignore"),
            param_kind: common.param_kind.cloned(),
            conditions: Conditions::compile(common.conditions, params),
            variables: Arc::new(variables),
            body: body(&mut compiler, params),
            bindings: Vec::new(),
        }
    }
}

/// Where a policy applies to a request: the request as it is looked at, and each binding that holds with its parameters
/// or with what is wrong with it.
type Applications<'p> = (Matched, Vec<(&'p Binding, Result<Vec<Option<Value>>, String>)>);

impl<B> Policy<B> {
    /// Where the policy applies; None where it does not look at the request.
    ///
    /// # Errors
    /// What is wrong with the policy.
    async fn applications(&self, a: &Attributes<'_>, cluster: &Cluster) -> Result<Option<Applications<'_>>, String> {
        let Some(matched) = self.criteria.matches(a, cluster).await.map_err(|e| e.message)? else { return Ok(None) };
        let resource = self.param_kind.as_ref().map(|k| params::resource_of_kind(k, cluster)).transpose()?;
        let mut found = Vec::new();
        for binding in &self.bindings {
            let holds = match &binding.criteria {
                None => Ok(true),
                Some(criteria) => criteria.matches(a, cluster).await.map(|m| m.is_some()).map_err(|e| e.message),
            };
            let params = match holds {
                Ok(false) => continue,
                Ok(true) => params::collect(binding, resource, namespace_of(a), cluster).await,
                Err(why) => Err(why),
            };
            found.push((binding, params));
        }
        Ok(Some((matched, found)))
    }
}

/// Policies that are known, and the generations of policies and bindings they were read from.
type Known<B> = Option<((u64, u64), Arc<Vec<Policy<B>>>)>;

/// The policies of a sort that have bindings, by name, compiled anew when a policy or binding changes.
struct Source<K: PolicyKind>(Mutex<Known<K::Body>>);

impl<K: PolicyKind> Default for Source<K> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<K: PolicyKind> Source<K> {
    async fn policies(&self, cluster: &Cluster) -> Result<Arc<Vec<Policy<K::Body>>>, ApiError> {
        let of = |resource| cluster.objects.generation(resource);
        let generations = (of(resource_of::<K>()), of(resource_of::<K::Binding>()));
        if let Some((_, known)) = self.0.lock().as_ref().filter(|(at, _)| *at == generations) {
            return Ok(known.clone());
        }
        let mut bindings: Vec<Binding> = cluster.list::<K::Binding>("").await?.iter().map(K::binding).collect();
        bindings.sort_by(|a, b| a.name.cmp(&b.name));
        let mut policies = Vec::new();
        for policy in cluster.list::<K>("").await? {
            let name = policy.meta().name.clone().unwrap_or_default();
            let own: Vec<Binding> = bindings.iter().filter(|b| b.policy == name).cloned().collect();
            if !own.is_empty() {
                policies.push(Policy { bindings: own, ..policy.compile() });
            }
        }
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let policies = Arc::new(policies);
        *self.0.lock() = Some((generations, policies.clone()));
        Ok(policies)
    }
}

/// The namespace of a request as JSON; None for what is in none, a Namespace itself among them.
async fn namespace_object(a: &Attributes<'_>, cluster: &Cluster) -> Result<Option<Value>, ApiError> {
    if a.namespace.is_empty() || a.is("", "namespaces", a.subresource) {
        return Ok(None);
    }
    Ok(Some(matching::namespace(cluster, a.namespace).await?.to_value()))
}
