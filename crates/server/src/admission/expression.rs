//! CEL expressions about requests: what they may refer to, how they are compiled, and how they are evaluated within
//! their budget (`k8s.io/apiserver/pkg/admission/plugin/cel`).

use super::request::Request;
use super::{Attributes, request};
use crate::authn::UserInfo;
use crate::authz;
use futures::FutureExt;
use gantry_api::k8s_openapi::api::admissionregistration::v1::MatchCondition;
use gantry_api::meta::expression::Role;
use gantry_cel::{
    Authorizer, Decision, Environment, EvalError, Expected, Issue, Library, Limits, Map, MapView, Outcome, Program,
    Schema, SchemaProvider, Subject, Type, TypeProvider, Value, Variables,
};
use parking_lot::Mutex;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

/// What the expressions of one policy, or of one webhook's conditions, may cost together.
pub const BUDGET: u64 = gantry_cel::RUNTIME_COST_BUDGET;
/// What match conditions may cost together.
pub const MATCH_CONDITIONS_BUDGET: u64 = BUDGET / 4;

/// What is said where the expressions of one object, policy or webhook cost too much together.
pub(crate) const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";
const VARIABLES_TYPE: &str = "kubernetes.variables";
const REQUEST: &str = "kubernetes.AdmissionRequest";
const GROUP_VERSION_KIND: &str = "kubernetes.GroupVersionKind";
const GROUP_VERSION_RESOURCE: &str = "kubernetes.GroupVersionResource";
const USER_INFO: &str = "kubernetes.UserInfo";
const NAMESPACE: &str = "kubernetes.Namespace";
const NAMESPACE_METADATA: &str = "kubernetes.NamespaceMetadata";
const NAMESPACE_SPEC: &str = "kubernetes.NamespaceSpec";
const NAMESPACE_STATUS: &str = "kubernetes.NamespaceStatus";
const NAMESPACE_CONDITION: &str = "kubernetes.NamespaceCondition";

/// The types of `request` and `namespaceObject`.
struct Types;

impl TypeProvider for Types {
    fn find_type(&self, name: &str) -> Option<Type> {
        let known = [
            REQUEST,
            GROUP_VERSION_KIND,
            GROUP_VERSION_RESOURCE,
            USER_INFO,
            NAMESPACE,
            NAMESPACE_METADATA,
            NAMESPACE_SPEC,
            NAMESPACE_STATUS,
            NAMESPACE_CONDITION,
        ];
        known.contains(&name).then(|| Type::object(name))
    }

    fn find_field(&self, type_name: &str, field: &str) -> Option<Type> {
        let strings = || Type::list(Type::String);
        let labels = || Type::map(Type::String, Type::String);
        Some(match (type_name, field) {
            (REQUEST, "kind" | "requestKind") => Type::object(GROUP_VERSION_KIND),
            (REQUEST, "resource" | "requestResource") => Type::object(GROUP_VERSION_RESOURCE),
            (REQUEST, "subResource" | "requestSubResource" | "name" | "namespace" | "operation")
            | (GROUP_VERSION_KIND, "group" | "version" | "kind")
            | (GROUP_VERSION_RESOURCE, "group" | "version" | "resource")
            | (USER_INFO, "username" | "uid")
            | (NAMESPACE_STATUS, "phase")
            | (NAMESPACE_CONDITION, "status" | "type" | "message" | "reason")
            | (NAMESPACE_METADATA, "name" | "generateName" | "namespace" | "UID" | "resourceVersion") => Type::String,
            (REQUEST, "userInfo") => Type::object(USER_INFO),
            (REQUEST, "dryRun") => Type::Bool,
            (REQUEST, "options") => Type::Dyn,
            (USER_INFO, "groups") | (NAMESPACE_SPEC | NAMESPACE_METADATA, "finalizers") => strings(),
            (USER_INFO, "extra") => Type::map(Type::String, strings()),
            (NAMESPACE, "metadata") => Type::object(NAMESPACE_METADATA),
            (NAMESPACE, "spec") => Type::object(NAMESPACE_SPEC),
            (NAMESPACE, "status") => Type::object(NAMESPACE_STATUS),
            (NAMESPACE_STATUS, "conditions") => Type::list(Type::object(NAMESPACE_CONDITION)),
            (NAMESPACE_CONDITION, "lastTransitionTime")
            | (NAMESPACE_METADATA, "creationTimestamp" | "deletionTimestamp") => Type::Timestamp,
            (NAMESPACE_METADATA, "labels" | "annotations") => labels(),
            (NAMESPACE_METADATA, "deletionGracePeriodSeconds" | "generation") => Type::Int,
            _ => return None,
        })
    }
}

/// The types of `variables`, in the order they are declared.
struct VariableTypes(BTreeMap<String, Type>);

impl TypeProvider for VariableTypes {
    fn find_type(&self, name: &str) -> Option<Type> {
        (name == VARIABLES_TYPE).then(|| Type::object(name))
    }

    fn find_field(&self, type_name: &str, field: &str) -> Option<Type> {
        if type_name == VARIABLES_TYPE { self.0.get(field).cloned() } else { None }
    }
}

/// Which of the variables that not every expression has are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// `params`.
    pub params: bool,
    /// `authorizer` and `authorizer.requestResource`.
    pub authorizer: bool,
    /// `JSONPatch{}` and `Object{}`.
    pub patches: bool,
}

/// What expressions about requests may refer to, `variables` aside.
fn environment(declared: Declared) -> Environment {
    static BASE: OnceLock<Environment> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        Environment::kubernetes()
            .provider(Arc::new(Types))
            .variable("object", Type::Dyn)
            .variable("oldObject", Type::Dyn)
            .variable("namespaceObject", Type::object(NAMESPACE))
            .variable("request", Type::object(REQUEST))
            .build()
    });
    let mut builder = base.extend();
    if declared.params {
        builder = builder.variable("params", Type::Dyn);
    }
    if declared.authorizer {
        builder = builder
            .variable("authorizer", Type::authorizer())
            .variable("authorizer.requestResource", Type::resource_check());
    }
    if declared.patches {
        builder = builder.library(Library::JsonPatch);
    }
    builder.build()
}

/// The types an expression may have, by what it is for; none for any type.
fn expected(role: &Role) -> Vec<Type> {
    match role {
        Role::MatchCondition | Role::Validation => vec![Type::Bool],
        Role::Message => vec![Type::String],
        Role::AuditAnnotation => vec![Type::String, Type::Null],
        Role::ApplyConfiguration => vec![Type::object("Object")],
        Role::JsonPatch => vec![Type::list(Type::object("JSONPatch"))],
        _ => Vec::new(),
    }
}

/// A compiled expression with its text.
pub struct Compiled {
    /// The text, trimmed.
    pub text: String,
    program: Result<Program, String>,
}

fn why(issues: &[Issue]) -> String {
    let all: Vec<String> = issues.iter().map(ToString::to_string).collect();
    format!("compilation failed: {}", all.join("\n"))
}

impl Compiled {
    /// What is wrong with the text, in upstream's words.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }
}

/// Compiles the expressions of one policy, its variables first.
#[derive(Default)]
pub struct Compiler {
    variables: BTreeMap<String, Type>,
}

impl Compiler {
    /// Compiles one expression. A variable is known to those compiled after it.
    pub fn compile(&mut self, text: &str, role: &Role, declared: Declared, with_variables: bool) -> Compiled {
        let mut env = environment(declared);
        if with_variables {
            let types = Arc::new(VariableTypes(self.variables.clone()));
            env = env.extend().provider(types).variable("variables", Type::object(VARIABLES_TYPE)).build();
        }
        let text = text.trim();
        let program = env.compile(text, Expected::Any).map_err(|issues| why(&issues));
        let program = program.and_then(|program| {
            let wanted = expected(role);
            let is = program.output_type();
            match wanted.as_slice() {
                [] => Ok(program),
                types if types.contains(is) => Ok(program),
                [one] => Err(format!("must evaluate to {one} but got {is}")),
                many => {
                    let many: Vec<String> = many.iter().map(ToString::to_string).collect();
                    Err(format!("must evaluate to one of [{}] but got {is}", many.join(" ")))
                }
            }
        });
        if let Role::Variable(name) = role {
            let of = program.as_ref().map_or(Type::Dyn, |p| p.output_type().clone());
            self.variables.insert(name.clone(), of);
        }
        Compiled { text: text.to_owned(), program }
    }
}

/// Checks expressions about objects of one kind, whose schema is known.
pub struct TypeChecker {
    environment: Environment,
    variables: BTreeMap<String, Type>,
}

impl TypeChecker {
    /// A checker that knows the schemas of objects and, where given, of parameters.
    #[must_use]
    pub fn new(object: &Arc<Schema>, params: Option<&Arc<Schema>>) -> Self {
        let mut schemas = SchemaProvider::new().with("object", object);
        if let Some(params) = params {
            schemas = schemas.with("params", params);
        }
        let declared = Declared { params: true, authorizer: true, patches: false };
        // What is declared later counts.
        let builder = environment(declared).extend().provider(Arc::new(schemas));
        let builder = builder.variable("object", object.cel_type()).variable("oldObject", object.cel_type());
        let params = params.map_or(Type::Dyn, |p| p.cel_type());
        Self { environment: builder.variable("params", params).build(), variables: BTreeMap::new() }
    }

    /// Makes a variable known to the expressions after it.
    pub fn declare(&mut self, name: &str, text: &str) {
        let of = self.compile(text).map_or(Type::Dyn, |program| program.output_type().clone());
        self.variables.insert(name.to_owned(), of);
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// What does not fit in it.
    pub fn compile(&self, text: &str) -> Result<Program, Vec<Issue>> {
        let types = Arc::new(VariableTypes(self.variables.clone()));
        let environment = self.environment.extend().provider(types);
        environment.variable("variables", Type::object(VARIABLES_TYPE)).build().compile(text, Expected::Any)
    }
}

/// The values of the variables of one request.
pub struct Input {
    object: Value,
    old_object: Value,
    request: Value,
    /// None where expressions may not ask.
    authorizer: Option<(Value, Value)>,
    /// `params`, null where there are none.
    params: Value,
    namespace: Value,
    variables: Option<Value>,
    costs: Arc<Mutex<u64>>,
}

fn document(json: &Json) -> Value {
    Value::from_json(Arc::new(json.clone()))
}

impl Input {
    /// The variables of a request.
    #[must_use]
    pub fn new(request: &Request) -> Self {
        Self {
            object: document(&request.object),
            old_object: document(&request.old_object),
            request: document(&request.head),
            authorizer: None,
            params: Value::Null,
            namespace: Value::Null,
            variables: None,
            costs: Arc::default(),
        }
    }

    /// With an authorizer to ask about the request's user.
    #[must_use]
    pub fn with_authorizer(mut self, a: &Attributes<'_>, authorizer: &Arc<dyn authz::Authorizer>) -> Self {
        let ask: Arc<dyn Authorizer> = Arc::new(Ask { user: a.user.clone(), authorizer: authorizer.clone() });
        let info = a.resource.info();
        let subject = Subject::Resource {
            group: info.group.to_owned(),
            resource: info.plural.to_owned(),
            subresource: a.subresource.to_owned(),
            namespace: request::namespace_of(a).to_owned(),
            name: a.name.to_owned(),
            field_selector: String::new(),
            label_selector: String::new(),
        };
        self.authorizer = Some((Value::authorizer(ask.clone()), Value::resource_check(ask, subject)));
        self
    }

    /// With the parameters of a policy.
    #[must_use]
    pub fn with_params(mut self, params: Option<&Json>) -> Self {
        self.params = params.map_or(Value::Null, document);
        self
    }

    /// With the namespace of the request, as far as expressions may see it.
    #[must_use]
    pub fn with_namespace(mut self, namespace: Option<&Json>) -> Self {
        self.namespace = namespace.map_or(Value::Null, |n| {
            let mut n = n.clone();
            if let Some(meta) = n.get_mut("metadata").and_then(Json::as_object_mut) {
                meta.retain(|k, _| !matches!(k.as_str(), "managedFields" | "ownerReferences" | "selfLink"));
            }
            Value::from_json(Arc::new(n))
        });
        self
    }

    /// With the variables of a policy, evaluated when first used.
    #[must_use]
    pub fn with_variables(self, variables: &Arc<Vec<(String, Compiled)>>) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Self>| {
            let view = LazyVariables { input: weak.clone(), variables: variables.clone(), known: Mutex::default() };
            Self { variables: Some(Value::Map(Map::View(Arc::new(view)))), ..self }
        })
    }

    /// Evaluates within `budget`, which it reduces. None is a budget that is used up: nothing more is evaluated.
    ///
    /// # Errors
    /// Outer: out of budget. Inner: the expression has no value.
    pub fn evaluate(&self, compiled: &Compiled, budget: &mut u64) -> Result<Result<Value, String>, String> {
        let program = match &compiled.program {
            Ok(program) => program,
            Err(why) => return Ok(Err(format!("compilation error: {why}"))),
        };
        let Outcome { result, cost } = program.run(self, Limits::PER_CALL);
        let spent = cost + std::mem::take(&mut *self.costs.lock());
        *budget = budget.checked_sub(spent).ok_or_else(|| OUT_OF_BUDGET.to_owned())?;
        Ok(result.map_err(|e| format!("expression '{}' resulted in error: {e}", compiled.text)))
    }
}

impl Variables for Input {
    fn resolve(&self, name: &str) -> Result<Option<Value>, EvalError> {
        Ok(match name {
            "object" => Some(self.object.clone()),
            "oldObject" => Some(self.old_object.clone()),
            "request" => Some(self.request.clone()),
            "params" => Some(self.params.clone()),
            "namespaceObject" => Some(self.namespace.clone()),
            "variables" => self.variables.clone(),
            "authorizer" => self.authorizer.as_ref().map(|(a, _)| a.clone()),
            "authorizer.requestResource" => self.authorizer.as_ref().map(|(_, r)| r.clone()),
            _ => None,
        })
    }
}

/// `variables`: evaluated when first used, once per request.
struct LazyVariables {
    input: Weak<Input>,
    variables: Arc<Vec<(String, Compiled)>>,
    known: Mutex<BTreeMap<String, Result<Value, EvalError>>>,
}

impl LazyVariables {
    fn compute(&self, name: &str, compiled: &Compiled) -> Result<Value, EvalError> {
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            EvalError::new(format!("composited variable {name:?} fails to {what}: {why}"))
        };
        let program = compiled.program.as_ref().map_err(|why| failed("compile", why))?;
        let input = self.input.upgrade().ok_or_else(|| EvalError::new("no such key: variables"))?;
        let Outcome { result, cost } = program.run(input.as_ref(), Limits::PER_CALL);
        *input.costs.lock() += cost;
        result.map_err(|e| failed("evaluate", &e))
    }
}

impl MapView for LazyVariables {
    fn len(&self) -> usize {
        self.variables.len()
    }

    fn get(&self, key: &gantry_cel::Key) -> Result<Option<Value>, EvalError> {
        let Some(name) = key.as_str() else { return Ok(None) };
        if let Some(known) = self.known.lock().get(name) {
            return known.clone().map(Some);
        }
        let Some((_, compiled)) = self.variables.iter().find(|(n, _)| n == name) else { return Ok(None) };
        let value = self.compute(name, compiled);
        self.known.lock().insert(name.to_owned(), value.clone());
        value.map(Some)
    }

    fn keys(&self) -> Vec<gantry_cel::Key> {
        self.variables.iter().map(|(n, _)| gantry_cel::Key::String(n.as_str().into())).collect()
    }
}

/// Asks the server's authorizers on behalf of expressions.
struct Ask {
    user: UserInfo,
    authorizer: Arc<dyn authz::Authorizer>,
}

impl Authorizer for Ask {
    fn check(&self, subject: &Subject, verb: &str) -> Decision {
        let base = authz::Attributes { user: self.user.clone(), verb: verb.to_owned(), ..Default::default() };
        let attributes = match subject {
            Subject::Path(path) => authz::Attributes { path: path.clone(), ..base },
            Subject::Resource { group, resource, subresource, namespace, name, field_selector, label_selector } => {
                let some = |s: &String| (!s.is_empty()).then(|| s.clone());
                authz::Attributes {
                    is_resource: true,
                    group: group.clone(),
                    version: "*".into(),
                    resource: resource.clone(),
                    subresource: subresource.clone(),
                    namespace: namespace.clone(),
                    name: name.clone(),
                    field_selector: some(field_selector),
                    label_selector: some(label_selector),
                    ..base
                }
            }
        };
        // Authorizers decide from caches and never wait; evaluation is not asynchronous.
        match self.authorizer.authorize(&attributes).now_or_never() {
            Some(authz::Decision::Failed { why, .. }) => {
                Decision { allowed: false, reason: String::new(), error: Some(why) }
            }
            Some(authz::Decision::Allow(reason)) => Decision { allowed: true, reason, error: None },
            Some(authz::Decision::Deny(reason) | authz::Decision::NoOpinion(reason)) => {
                Decision { allowed: false, reason, error: None }
            }
            None => {
                Decision { allowed: false, reason: String::new(), error: Some("the authorizers are not ready".into()) }
            }
        }
    }

    fn service_account(&self, namespace: &str, name: &str) -> Arc<dyn Authorizer> {
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let user = UserInfo::new(&format!("system:serviceaccount:{namespace}:{name}"), &groups);
        Arc::new(Self { user, authorizer: self.authorizer.clone() })
    }
}

/// Match conditions.
pub struct Conditions(Vec<Compiled>);

impl Conditions {
    /// Compiles conditions; `params` is whether they may refer to parameters.
    #[must_use]
    pub fn compile(conditions: &[MatchCondition], params: bool) -> Self {
        let declared = Declared { params, authorizer: true, patches: false };
        let one =
            |c: &MatchCondition| Compiler::default().compile(&c.expression, &Role::MatchCondition, declared, false);
        Self(conditions.iter().map(one).collect())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all conditions hold. One that does not hold decides whatever the others come to; where one fails and
    /// `ignore_failures`, the request is passed over.
    ///
    /// # Errors
    /// Why that cannot be said.
    pub fn hold(&self, input: &Input, ignore_failures: bool) -> Result<bool, String> {
        let mut budget = MATCH_CONDITIONS_BUDGET;
        let mut errors = Vec::new();
        for condition in &self.0 {
            match input.evaluate(condition, &mut budget) {
                Err(_) if ignore_failures => return Ok(false),
                Err(out_of_budget) => return Err(out_of_budget),
                Ok(Err(e)) => errors.push(e),
                Ok(Ok(value)) if value.as_bool() == Some(false) => return Ok(false),
                Ok(Ok(_)) => {}
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            _ if ignore_failures => Ok(false),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}
