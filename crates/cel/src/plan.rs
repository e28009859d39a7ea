//! Checked trees to plans: what the evaluator does, step by step, with constants already worked out.
//!
//! The shape of a plan also decides what an evaluation costs. As in the reference, chains of selections are one step,
//! the branches of a conditional are not charged for reading a variable, and literals of constants are free.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ast::{Comprehension, Expr, Kind, op};
use crate::checker::{Checked, Reference};
use crate::decls::{Func, Overload, TypeProvider};
use crate::env::Environment;
use crate::macros::MAP_INSERT;
use crate::ops;
use crate::value::{EvalError, Key, List, Value};

/// A planned expression.
pub(crate) struct Plan {
    pub(crate) root: Step,
    /// How many local variables there are.
    pub(crate) slots: usize,
}

/// Something to evaluate.
pub(crate) enum Step {
    Const(Value),
    Attribute(Box<Attribute>),
    And(Vec<Step>),
    Or(Vec<Step>),
    /// `==`, or with `true` `!=`.
    Equal(Box<[Step; 2]>, bool),
    Call(Box<Call>),
    /// Whether the value is one of these constants.
    OneOf(Box<Step>, Arc<BTreeSet<Key>>),
    NotStrictlyFalse(Box<Step>),
    List(Vec<(Step, bool)>),
    Map(Vec<(Step, Step, bool)>),
    Message(Box<Message>),
    Fold(Box<Fold>),
    /// `or` and, with `true`, `orValue`.
    OptionalOr(Box<[Step; 2]>, bool),
}

/// A variable, or the result of something, and selections from it.
pub(crate) struct Attribute {
    pub(crate) base: Base,
    pub(crate) qualifiers: Vec<Qualifier>,
    /// Whether it asks for the presence of what the last qualifier selects.
    pub(crate) test: bool,
}

/// Where selections start.
pub(crate) enum Base {
    Variable(Arc<str>),
    Local(usize),
    Result(Step),
    Conditional(Box<[Step; 3]>),
}

/// A selection.
pub(crate) struct Qualifier {
    pub(crate) key: Step,
    pub(crate) optional: bool,
}

/// A call.
pub(crate) struct Call {
    pub(crate) function: Arc<str>,
    /// The only overload it can be.
    pub(crate) overload: Option<Arc<str>>,
    pub(crate) candidates: Vec<Arc<Overload>>,
    pub(crate) implementation: Implementation,
    pub(crate) args: Vec<Step>,
    /// The accumulator that the first argument is. It is moved out, so that it can grow in place.
    pub(crate) takes: Option<usize>,
}

/// What evaluates a call.
pub(crate) enum Implementation {
    /// Something that takes the arguments over.
    Owned(fn(Vec<Value>) -> Result<Value, EvalError>),
    /// One function for all overloads.
    Shared(Func),
    /// Whichever candidate accepts the arguments.
    ByArguments,
}

/// A message literal.
pub(crate) struct Message {
    pub(crate) type_name: String,
    pub(crate) provider: Arc<dyn TypeProvider>,
    pub(crate) fields: Vec<(Arc<str>, Step, bool)>,
}

/// A loop.
pub(crate) struct Fold {
    pub(crate) range: Step,
    pub(crate) var: usize,
    pub(crate) var2: Option<usize>,
    pub(crate) accu: usize,
    pub(crate) init: Step,
    pub(crate) condition: Step,
    pub(crate) step: Step,
    pub(crate) result: Step,
}

struct Planner<'a> {
    checked: &'a Checked,
    env: &'a Environment,
    locals: Vec<(String, usize)>,
    slots: usize,
}

/// Plans a checked tree.
///
/// # Errors
/// When working out a constant fails.
pub(crate) fn plan(checked: &Checked, env: &Environment) -> Result<Plan, EvalError> {
    let mut planner = Planner { checked, env, locals: Vec::new(), slots: 0 };
    let root = planner.step(&checked.root)?;
    Ok(Plan { root, slots: planner.slots })
}

/// Functions that only convert; their results for constants are constants.
const CONVERSIONS: [&str; 10] =
    ["bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "type", "uint"];

fn attribute(base: Base) -> Step {
    Step::Attribute(Box::new(Attribute { base, qualifiers: Vec::new(), test: false }))
}

impl Planner<'_> {
    fn step(&mut self, e: &Expr) -> Result<Step, EvalError> {
        match &e.kind {
            Kind::Unspecified => Err(EvalError::new("unsupported expression")),
            Kind::Literal(value) => Ok(Step::Const(value.clone())),
            Kind::Ident(name) => Ok(self.ident(e, name)),
            Kind::Select { operand, field, test } => {
                let key = Step::Const(Value::from(field.as_str()));
                let operand = self.step(operand)?;
                Ok(qualified(operand, Qualifier { key, optional: false }, *test))
            }
            Kind::Call { target, function, args } => {
                let mut steps = Vec::new();
                for arg in target.iter().map(|t| &**t).chain(args) {
                    steps.push(self.step(arg)?);
                }
                self.call(e, function, steps)
            }
            Kind::List { elements } => {
                let mut steps = Vec::new();
                for element in elements {
                    steps.push((self.step(&element.value)?, element.optional));
                }
                Ok(list_literal(steps))
            }
            Kind::Map { entries } => {
                let mut steps = Vec::new();
                for entry in entries {
                    steps.push((self.step(&entry.key)?, self.step(&entry.value)?, entry.optional));
                }
                map_literal(steps)
            }
            Kind::Struct { name, fields } => {
                let type_name = self.checked.type_of(e.id).name().to_owned();
                let provider =
                    self.env.provider_of(&type_name).ok_or_else(|| EvalError::new(format!("unknown type: {name}")))?;
                let mut steps = Vec::new();
                for field in fields {
                    steps.push((Arc::from(field.name.as_str()), self.step(&field.value)?, field.optional));
                }
                Ok(Step::Message(Box::new(Message { type_name, provider, fields: steps })))
            }
            Kind::Comprehension(c) => self.fold(c),
        }
    }

    fn ident(&mut self, e: &Expr, name: &str) -> Step {
        if let Some(Some(Reference::Ident(Some(value)))) = self.checked.references.get(e.id as usize) {
            return Step::Const(value.clone());
        }
        if let Some((_, slot)) = self.locals.iter().rev().find(|(local, _)| local == name) {
            return attribute(Base::Local(*slot));
        }
        attribute(Base::Variable(name.trim_start_matches('.').into()))
    }

    fn local(&mut self, name: &str) -> usize {
        self.slots += 1;
        self.locals.push((name.to_owned(), self.slots - 1));
        self.slots - 1
    }

    fn fold(&mut self, c: &Comprehension) -> Result<Step, EvalError> {
        let init = self.step(&c.init)?;
        let range = self.step(&c.range)?;
        let depth = self.locals.len();
        let accu = self.local(&c.accu);
        let var = self.local(&c.var);
        let var2 = c.var2.as_ref().map(|name| self.local(name));
        let condition = self.step(&c.condition)?;
        let mut step = self.step(&c.step)?;
        self.locals.truncate(depth + 1);
        let result = self.step(&c.result)?;
        self.locals.truncate(depth);
        take_accumulator(&mut step, accu);
        Ok(Step::Fold(Box::new(Fold { range, var, var2, accu, init, condition, step, result })))
    }

    fn call(&mut self, e: &Expr, function: &str, mut args: Vec<Step>) -> Result<Step, EvalError> {
        let ids = self.checked.overloads(e.id);
        let is = |id: &str| ids.len() == 1 && &*ids[0] == id;
        match (function, args.len()) {
            (op::AND, 2) => return Ok(Step::And(flat(args, true))),
            (op::OR, 2) => return Ok(Step::Or(flat(args, false))),
            _ => {}
        }
        match (function, &mut args[..]) {
            (op::EQUALS | op::NOT_EQUALS, [_, _]) => {
                return Ok(Step::Equal(pair(args)?, function == op::NOT_EQUALS));
            }
            (op::CONDITIONAL, [_, _, _]) => {
                let branches: [Step; 3] = args.try_into().map_err(|_| EvalError::no_such_overload())?;
                return Ok(attribute(Base::Conditional(Box::new(branches))));
            }
            (op::INDEX | op::OPT_INDEX | op::OPT_SELECT, [_, _]) => {
                let [operand, key] = *pair(args)?;
                return Ok(qualified(operand, Qualifier { key, optional: function != op::INDEX }, false));
            }
            (op::NOT_STRICTLY_FALSE, [_]) => {
                return Ok(Step::NotStrictlyFalse(Box::new(args.remove(0))));
            }
            ("or", [_, _]) if is("optional_or_optional") => return Ok(Step::OptionalOr(pair(args)?, false)),
            ("orValue", [_, _]) if is("optional_orValue_value") => return Ok(Step::OptionalOr(pair(args)?, true)),
            (op::IN, [_, Step::Const(Value::List(list))]) if is("in_list") => {
                if let Some(keys) = constants(list) {
                    if keys.is_empty() {
                        return Ok(Step::Const(Value::Bool(false)));
                    }
                    return Ok(Step::OneOf(Box::new(args.remove(0)), Arc::new(keys)));
                }
            }
            ("matches" | "find" | "findAll", [_, Step::Const(Value::String(pattern)), ..]) => {
                gantry_api::meta::regex::compile(pattern).map_err(EvalError::new)?;
            }
            _ => {}
        }
        let found =
            self.env.find_function(function).ok_or_else(|| EvalError::new(format!("no such overload: {function}")))?;
        let mut candidates: Vec<Arc<Overload>> =
            found.overloads.iter().filter(|o| ids.contains(&o.id)).cloned().collect();
        let implementation = match (function, &found.func) {
            (op::ADD, _) => Implementation::Owned(ops::add),
            (MAP_INSERT, _) => Implementation::Owned(ops::map_insert),
            (_, Some(func)) if candidates.iter().all(|o| o.func.is_none()) => Implementation::Shared(func.clone()),
            _ => Implementation::ByArguments,
        };
        let single = match (&mut candidates[..], &found.func) {
            ([only], func) => {
                if only.func.is_none()
                    && let Some(func) = func
                {
                    let mut own = (**only).clone();
                    own.func = Some(func.clone());
                    *only = Arc::new(own);
                }
                Some(only.id.clone())
            }
            _ => None,
        };
        let call = Call { function: function.into(), overload: single, candidates, implementation, args, takes: None };
        if let ([Step::Const(value)], true) = (&call.args[..], CONVERSIONS.contains(&function)) {
            return Ok(Step::Const(crate::eval::invoke(&call, std::slice::from_ref(value))?));
        }
        Ok(Step::Call(Box::new(call)))
    }
}

fn pair(args: Vec<Step>) -> Result<Box<[Step; 2]>, EvalError> {
    args.try_into().map(Box::new).map_err(|_| EvalError::no_such_overload())
}

/// Terms of the same operator within terms, side by side.
fn flat(args: Vec<Step>, and: bool) -> Vec<Step> {
    let mut terms = Vec::new();
    for arg in args {
        match arg {
            Step::And(inner) if and => terms.extend(inner),
            Step::Or(inner) if !and => terms.extend(inner),
            other => terms.push(other),
        }
    }
    terms
}

fn qualified(operand: Step, qualifier: Qualifier, test: bool) -> Step {
    let mut attribute = match operand {
        Step::Attribute(attribute) if !attribute.test => attribute,
        other => Box::new(Attribute { base: Base::Result(other), qualifiers: Vec::new(), test: false }),
    };
    attribute.qualifiers.push(qualifier);
    attribute.test = test;
    Step::Attribute(attribute)
}

fn list_literal(steps: Vec<(Step, bool)>) -> Step {
    let mut values = Vec::new();
    for (step, optional) in &steps {
        match step {
            Step::Const(value) if !optional => values.push(value.clone()),
            _ => return Step::List(steps),
        }
    }
    Step::Const(Value::list(values))
}

fn map_literal(steps: Vec<(Step, Step, bool)>) -> Result<Step, EvalError> {
    let mut entries = std::collections::BTreeMap::new();
    for (key, value, optional) in &steps {
        match (key, value) {
            (Step::Const(key), Step::Const(value)) if !optional => {
                let Some(key) = Key::from_value(key) else {
                    return Err(EvalError::new(format!("unsupported key type: {}", key.type_name())));
                };
                // Of entries with the same key the last one stays.
                entries.insert(key, value.clone());
            }
            _ => return Ok(Step::Map(steps)),
        }
    }
    Ok(Step::Const(Value::map(entries)))
}

/// The elements as keys, when all of them can be.
fn constants(list: &List) -> Option<BTreeSet<Key>> {
    list.iter()
        .map(|item| match item {
            Ok(value @ (Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::String(_))) => Key::from_value(&value),
            _ => None,
        })
        .collect()
}

/// Lets a step that appends to the accumulator take it over instead of copying it.
fn take_accumulator(step: &mut Step, accu: usize) {
    let is_accu = |step: &Step| match step {
        Step::Attribute(a) => matches!(a.base, Base::Local(slot) if slot == accu) && a.qualifiers.is_empty(),
        _ => false,
    };
    match step {
        Step::Call(call)
            if matches!(call.implementation, Implementation::Owned(_)) && call.args.first().is_some_and(is_accu) =>
        {
            call.takes = Some(accu);
        }
        Step::Attribute(attribute) if attribute.qualifiers.is_empty() => {
            if let Base::Conditional(branches) = &mut attribute.base {
                take_accumulator(&mut branches[1], accu);
            }
        }
        _ => {}
    }
}
