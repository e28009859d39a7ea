//! Checks through the `authorizer` variable. Who decides comes in through a trait.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use gantry_api::meta::names;

use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::types::Type;
use crate::value::{EvalError, Object, Value};

type Result<T> = std::result::Result<T, EvalError>;

/// Decides for a user.
pub trait Authorizer: Send + Sync {
    /// Whether the user may do this.
    fn check(&self, subject: &Subject, verb: &str) -> Decision;

    /// The same for a service account in place of the user.
    fn service_account(&self, namespace: &str, name: &str) -> Arc<dyn Authorizer>;
}

/// What is to be done something to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A path that is no resource.
    Path(String),
    /// A resource.
    Resource {
        /// The API group, empty for the core group.
        group: String,
        /// The resource's plural name.
        resource: String,
        /// The subresource, or empty.
        subresource: String,
        /// The namespace, or empty.
        namespace: String,
        /// The object's name, or empty.
        name: String,
        /// The text of a field selector, or empty.
        field_selector: String,
        /// The text of a label selector, or empty.
        label_selector: String,
    },
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// What went wrong while deciding.
    pub error: Option<String>,
}

impl Object for Decision {
    fn type_name(&self) -> &str {
        DECISION
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Decision>().is_some_and(|other| self == other)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
const PATH_CHECK: &str = "kubernetes.authorization.PathCheck";
const GROUP_CHECK: &str = "kubernetes.authorization.GroupCheck";
const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";
const DECISION: &str = "kubernetes.authorization.Decision";

/// The authorizer, or a check under construction.
#[derive(Clone)]
struct Check {
    authorizer: Arc<dyn Authorizer>,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Start,
    Group(String),
    Subject(Subject),
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stage.fmt(f)
    }
}

impl Object for Check {
    fn type_name(&self) -> &str {
        match self.stage {
            Stage::Start => AUTHORIZER,
            Stage::Group(_) => GROUP_CHECK,
            Stage::Subject(Subject::Path(_)) => PATH_CHECK,
            Stage::Subject(Subject::Resource { .. }) => RESOURCE_CHECK,
        }
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other
            .as_any()
            .downcast_ref::<Check>()
            .is_some_and(|other| self.stage == other.stage && Arc::ptr_eq(&self.authorizer, &other.authorizer))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Value {
    /// The value of the `authorizer` variable.
    #[must_use]
    pub fn authorizer(authorizer: Arc<dyn Authorizer>) -> Value {
        Value::object(Check { authorizer, stage: Stage::Start })
    }

    /// The value of the `authorizer.requestResource` variable.
    #[must_use]
    pub fn resource_check(authorizer: Arc<dyn Authorizer>, subject: Subject) -> Value {
        Value::object(Check { authorizer, stage: Stage::Subject(subject) })
    }
}

impl Type {
    /// The type of the `authorizer` variable.
    #[must_use]
    pub fn authorizer() -> Type {
        Type::object(AUTHORIZER)
    }

    /// The type of the `authorizer.requestResource` variable.
    #[must_use]
    pub fn resource_check() -> Type {
        Type::object(RESOURCE_CHECK)
    }
}

fn check_of(args: &[Value]) -> Result<&Check> {
    args.first().and_then(Value::downcast::<Check>).ok_or_else(EvalError::no_such_overload)
}

fn next(check: &Check, stage: Stage) -> Value {
    Value::object(Check { authorizer: check.authorizer.clone(), stage })
}

fn path(args: &[Value]) -> Result<Value> {
    let [_, Value::String(path)] = args else { return mismatch() };
    if path.trim().is_empty() {
        return fail("path must not be empty");
    }
    Ok(next(check_of(args)?, Stage::Subject(Subject::Path(path.to_string()))))
}

fn group(args: &[Value]) -> Result<Value> {
    let [_, Value::String(group)] = args else { return mismatch() };
    Ok(next(check_of(args)?, Stage::Group(group.to_string())))
}

fn service_account(args: &[Value]) -> Result<Value> {
    let [_, Value::String(namespace), Value::String(name)] = args else { return mismatch() };
    if !names::dns1123_subdomain(name, false).is_empty() {
        return fail("Invalid service account name");
    }
    if !names::dns1123_label(namespace, false).is_empty() {
        return fail("Invalid service account namespace");
    }
    let authorizer = check_of(args)?.authorizer.service_account(namespace, name);
    Ok(Value::object(Check { authorizer, stage: Stage::Start }))
}

fn resource(args: &[Value]) -> Result<Value> {
    let [_, Value::String(resource)] = args else { return mismatch() };
    let check = check_of(args)?;
    let Stage::Group(group) = &check.stage else { return mismatch() };
    if resource.trim().is_empty() {
        return fail("resource must not be empty");
    }
    let subject = Subject::Resource {
        group: group.clone(),
        resource: resource.to_string(),
        subresource: String::new(),
        namespace: String::new(),
        name: String::new(),
        field_selector: String::new(),
        label_selector: String::new(),
    };
    Ok(next(check, Stage::Subject(subject)))
}

/// A function that sets one attribute of a resource check.
fn setter(name: &str, id: &str, slot: fn(&mut Subject) -> Option<&mut String>) -> Function {
    let set = move |args: &[Value]| {
        let [_, Value::String(text)] = args else { return mismatch() };
        let mut check = check_of(args)?.clone();
        let Stage::Subject(subject) = &mut check.stage else { return mismatch() };
        *slot(subject).ok_or_else(EvalError::no_such_overload)? = text.to_string();
        Ok(Value::object(check))
    };
    Function::new(
        name,
        vec![Overload::member(id, vec![Type::resource_check(), Type::String], Type::resource_check(), set)],
    )
}

fn check(args: &[Value]) -> Result<Value> {
    let [_, Value::String(verb)] = args else { return mismatch() };
    let check = check_of(args)?;
    let Stage::Subject(subject) = &check.stage else { return mismatch() };
    Ok(Value::object(check.authorizer.check(subject, verb)))
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    use Type::{Bool, String};
    let decision = |name: &str, id: &str, result: Type, of: fn(&Decision) -> Value| {
        let overload = Overload::member(id, vec![Type::object(DECISION)], result, move |args| {
            args.first().and_then(Value::downcast::<Decision>).map(of).ok_or_else(EvalError::no_such_overload)
        });
        Function::new(name, vec![overload])
    };
    let single = |name: &str, id: &str, params: Vec<Type>, result: Type, of: fn(&[Value]) -> Result<Value>| {
        Function::new(name, vec![Overload::member(id, params, result, of)])
    };
    let from = |t: &str| vec![Type::object(t), String];
    vec![
        single("path", "authorizer_path", from(AUTHORIZER), Type::object(PATH_CHECK), path),
        single("group", "authorizer_group", from(AUTHORIZER), Type::object(GROUP_CHECK), group),
        single(
            "serviceAccount",
            "authorizer_serviceaccount",
            vec![Type::authorizer(), String, String],
            Type::authorizer(),
            service_account,
        ),
        single("resource", "groupcheck_resource", from(GROUP_CHECK), Type::resource_check(), resource),
        setter("subresource", "resourcecheck_subresource", |s| match s {
            Subject::Resource { subresource, .. } => Some(subresource),
            Subject::Path(_) => None,
        }),
        setter("namespace", "resourcecheck_namespace", |s| match s {
            Subject::Resource { namespace, .. } => Some(namespace),
            Subject::Path(_) => None,
        }),
        setter("name", "resourcecheck_name", |s| match s {
            Subject::Resource { name, .. } => Some(name),
            Subject::Path(_) => None,
        }),
        setter("fieldSelector", "authorizer_fieldselector", |s| match s {
            Subject::Resource { field_selector, .. } => Some(field_selector),
            Subject::Path(_) => None,
        }),
        setter("labelSelector", "authorizer_labelselector", |s| match s {
            Subject::Resource { label_selector, .. } => Some(label_selector),
            Subject::Path(_) => None,
        }),
        Function::new(
            "check",
            vec![
                Overload::member("pathcheck_check", from(PATH_CHECK), Type::object(DECISION), check),
                Overload::member("resourcecheck_check", from(RESOURCE_CHECK), Type::object(DECISION), check),
            ],
        ),
        decision("errored", "decision_errored", Bool, |d| Value::Bool(d.error.is_some())),
        decision("error", "decision_error", String, |d| Value::from(d.error.clone().unwrap_or_default())),
        decision("allowed", "decision_allowed", Bool, |d| Value::Bool(d.allowed)),
        decision("reason", "decision_reason", String, |d| Value::from(d.reason.as_str())),
    ]
}
