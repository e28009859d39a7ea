//! Declarations: functions with their overloads, and where message types come from.

use std::sync::Arc;

use crate::types::Type;
use crate::value::{EvalError, Value};

/// What evaluates a call. The target of a member call is the first argument.
pub type Func = Arc<dyn Fn(&[Value]) -> Result<Value, EvalError> + Send + Sync>;

/// One signature of a function.
#[derive(Clone)]
pub struct Overload {
    /// Its name among all overloads; costs are kept by it.
    pub id: Arc<str>,
    /// Whether it is called as `target.f(args)`.
    pub member: bool,
    /// Types of the arguments; the first one is the target's in a member overload.
    pub params: Vec<Type>,
    /// What it results in.
    pub result: Type,
    /// What evaluates it; `None` where the evaluator or the function itself does.
    pub func: Option<Func>,
}

impl Overload {
    /// A signature of a function that is called as `f(args)`.
    pub fn global(
        id: &str,
        params: Vec<Type>,
        result: Type,
        func: impl Fn(&[Value]) -> Result<Value, EvalError> + Send + Sync + 'static,
    ) -> Overload {
        Overload { id: id.into(), member: false, params, result, func: Some(Arc::new(func)) }
    }

    /// A signature of a function that is called as `target.f(args)`.
    pub fn member(
        id: &str,
        params: Vec<Type>,
        result: Type,
        func: impl Fn(&[Value]) -> Result<Value, EvalError> + Send + Sync + 'static,
    ) -> Overload {
        Overload { id: id.into(), member: true, params, result, func: Some(Arc::new(func)) }
    }

    /// A signature whose calls something else evaluates.
    pub(crate) fn declared(id: &str, member: bool, params: Vec<Type>, result: Type) -> Overload {
        Overload { id: id.into(), member, params, result, func: None }
    }
}

/// A function.
#[derive(Clone)]
pub struct Function {
    /// Its name, with dots for functions in a namespace.
    pub name: Arc<str>,
    /// Its signatures.
    pub overloads: Vec<Arc<Overload>>,
    /// What evaluates every overload that has no evaluation of its own.
    pub func: Option<Func>,
}

impl Function {
    /// A function of these signatures.
    #[must_use]
    pub fn new(name: &str, overloads: Vec<Overload>) -> Function {
        Function { name: name.into(), overloads: overloads.into_iter().map(Arc::new).collect(), func: None }
    }

    /// A function that one implementation evaluates for all signatures.
    pub(crate) fn single(
        name: &str,
        overloads: Vec<Overload>,
        func: impl Fn(&[Value]) -> Result<Value, EvalError> + Send + Sync + 'static,
    ) -> Function {
        Function { func: Some(Arc::new(func)), ..Function::new(name, overloads) }
    }
}

/// Knows message types.
pub trait TypeProvider: Send + Sync {
    /// The type of this name, when it is a message type.
    fn find_type(&self, name: &str) -> Option<Type>;

    /// The type of a field, by the name expressions use.
    fn find_field(&self, type_name: &str, field: &str) -> Option<Type>;

    /// The value of an identifier that is no variable, such as an enumeration's member.
    fn find_constant(&self, name: &str) -> Option<Value> {
        let _ = name;
        None
    }

    /// Makes a message.
    ///
    /// # Errors
    /// When the type is not known or the values do not fit its fields.
    fn new_value(&self, type_name: &str, fields: Vec<(Arc<str>, Value)>) -> Result<Value, EvalError> {
        let _ = fields;
        Err(EvalError::new(format!("unknown type '{type_name}'")))
    }
}
