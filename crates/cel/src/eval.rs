//! Runs plans and counts what that costs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::activation::Variables;
use crate::cost::runtime;
use crate::ops::{self, Found};
use crate::plan::{Attribute, Base, Call, Fold, Implementation, Message, Plan, Qualifier, Step};
use crate::program::{Limits, Outcome};
use crate::value::{EvalError, Key, Value};

type Result<T> = std::result::Result<T, EvalError>;

/// Reading a variable, and selecting from a value.
const SELECT: u64 = 1;
const MAKE_LIST: u64 = 10;
const MAKE_MAP: u64 = 30;
const MAKE_MESSAGE: u64 = 40;

struct Machine<'p> {
    variables: &'p dyn Variables,
    /// Local variables; an accumulator may hold a failure that later steps absorb.
    slots: Vec<Option<Result<Value>>>,
    /// How accumulators start, for those that were not read yet.
    inits: Vec<Option<&'p Step>>,
    cost: u64,
    limit: u64,
}

/// Runs a plan.
pub(crate) fn run(plan: &Plan, variables: &dyn Variables, limits: Limits) -> Outcome {
    let mut machine = Machine {
        variables,
        slots: vec![None; plan.slots],
        inits: vec![None; plan.slots],
        cost: 0,
        limit: limits.cost.unwrap_or(u64::MAX),
    };
    let result = machine.step(&plan.root);
    Outcome { result, cost: machine.cost }
}

/// Evaluates a call with arguments that are already there.
pub(crate) fn invoke(call: &Call, args: &[Value]) -> Result<Value> {
    match &call.implementation {
        Implementation::Owned(function) => function(args.to_vec()),
        Implementation::Shared(function) => function(args),
        Implementation::ByArguments => {
            for candidate in &call.candidates {
                let fits = candidate.params.len() == args.len()
                    && candidate.params.iter().zip(args).all(|(param, arg)| param.accepts(arg));
                if let (true, Some(function)) = (fits, &candidate.func) {
                    return function(args);
                }
            }
            let types: Vec<String> = args.iter().map(Value::type_name).collect();
            Err(EvalError::new(format!("no such overload: {}({})", call.function, types.join(", "))))
        }
    }
}

/// Keeps a failure, unless nothing may absorb it.
fn kept<T>(result: Result<T>) -> Result<Result<T>> {
    match result {
        Err(EvalError::CostLimit) => Err(EvalError::CostLimit),
        other => Ok(other),
    }
}

impl<'p> Machine<'p> {
    fn charge(&mut self, cost: u64) -> Result<()> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(EvalError::CostLimit) } else { Ok(()) }
    }

    fn step(&mut self, step: &'p Step) -> Result<Value> {
        match step {
            Step::Const(value) => Ok(value.clone()),
            Step::Attribute(attribute) => self.attribute(attribute, true),
            Step::And(terms) => self.logic(terms, false),
            Step::Or(terms) => self.logic(terms, true),
            Step::Equal(sides, negated) => {
                let a = kept(self.step(&sides[0]))?;
                let b = kept(self.step(&sides[1]))?;
                let (a, b) = match (a, b) {
                    (Ok(a), Ok(b)) => (a, b),
                    (a, b) => {
                        self.charge(1)?;
                        return Err(a.err().or(b.err()).unwrap_or_else(EvalError::no_such_overload));
                    }
                };
                let result = a.equals(&b);
                self.charge(runtime::equality(&a, &b, !negated))?;
                Ok(Value::Bool(result? != *negated))
            }
            Step::Call(call) => self.call(call),
            Step::OneOf(value, keys) => {
                let value = self.step(value)?;
                Ok(Value::Bool(Key::from_value(&value).is_some_and(|key| keys.contains(&key))))
            }
            Step::NotStrictlyFalse(inner) => {
                let value = kept(self.step(inner))?;
                self.charge(1)?;
                Ok(Value::Bool(!matches!(value, Ok(Value::Bool(false)))))
            }
            Step::List(elements) => self.list(elements),
            Step::Map(entries) => self.map(entries),
            Step::Message(message) => self.message(message),
            Step::Fold(fold) => self.fold(fold),
            Step::OptionalOr(sides, unwrap) => match self.step(&sides[0])? {
                Value::Optional(Some(value)) if *unwrap => Ok((*value).clone()),
                value @ Value::Optional(Some(_)) => Ok(value),
                Value::Optional(None) => self.step(&sides[1]),
                _ => Err(EvalError::no_such_overload()),
            },
        }
    }

    /// `||` when one true term decides, `&&` when one false term does. Failures count only when no term decides.
    fn logic(&mut self, terms: &'p [Step], decides: bool) -> Result<Value> {
        let mut failure = None;
        for term in terms {
            match kept(self.step(term))? {
                Ok(Value::Bool(b)) if b == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => {
                    failure.get_or_insert_with(EvalError::no_such_overload);
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn call(&mut self, call: &'p Call) -> Result<Value> {
        let mut args = Vec::with_capacity(call.args.len());
        let mut failure = None;
        for (i, arg) in call.args.iter().enumerate() {
            let value = match call.takes.filter(|_| i == 0) {
                Some(slot) => {
                    let value = self.local(slot);
                    self.charge(SELECT)?;
                    self.slots[slot] = None;
                    value
                }
                None => kept(self.step(arg))?,
            };
            match value {
                Ok(value) => args.push(value),
                // Calls with more arguments stop at the first failure and are not charged.
                Err(error) if call.args.len() > 2 => return Err(error),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        if let Some(error) = failure {
            self.charge(1)?;
            return Err(error);
        }
        if let Implementation::Owned(function) = call.implementation {
            let cost = runtime::call(&call.function, call.overload.as_deref(), &args, None);
            let result = function(args);
            self.charge(cost)?;
            return result;
        }
        let result = invoke(call, &args);
        self.charge(runtime::call(&call.function, call.overload.as_deref(), &args, result.as_ref().ok()))?;
        result
    }

    /// The value of a local variable. An accumulator gets its first value when it is first read.
    fn local(&mut self, slot: usize) -> Result<Value> {
        if self.slots[slot].is_none() {
            let Some(init) = self.inits[slot].take() else {
                return Err(EvalError::new("no such attribute(s): local variable"));
            };
            let value = self.step(init);
            self.slots[slot] = Some(value);
        }
        self.slots[slot].clone().unwrap_or_else(|| Err(EvalError::no_such_overload()))
    }

    /// Reads a variable with its selections. Whoever only passes the result on is not `charged` for reading.
    fn attribute(&mut self, attribute: &'p Attribute, charged: bool) -> Result<Value> {
        let result = kept(self.resolve(attribute))?;
        if charged && !attribute.test && !matches!(attribute.base, Base::Conditional(_)) {
            self.charge(SELECT)?;
        }
        result
    }

    fn resolve(&mut self, attribute: &'p Attribute) -> Result<Value> {
        let base = match &attribute.base {
            Base::Variable(name) => {
                self.variables.resolve(name)?.ok_or_else(|| EvalError::new(format!("no such attribute(s): {name}")))?
            }
            Base::Local(slot) => self.local(*slot)?,
            Base::Result(step) => self.step(step)?,
            Base::Conditional(branches) => {
                let branch = match self.step(&branches[0])? {
                    Value::Bool(true) => &branches[1],
                    Value::Bool(false) => &branches[2],
                    _ => return Err(EvalError::no_such_overload()),
                };
                match branch {
                    Step::Attribute(inner) => self.attribute(inner, false)?,
                    other => self.step(other)?,
                }
            }
        };
        if attribute.qualifiers.is_empty() { Ok(base) } else { self.qualify(base, attribute) }
    }

    fn qualify(&mut self, base: Value, attribute: &'p Attribute) -> Result<Value> {
        let (mut object, mut optional) = match base {
            Value::Optional(None) => {
                return Ok(if attribute.test { Value::Bool(false) } else { Value::Optional(None) });
            }
            Value::Optional(Some(inner)) => ((*inner).clone(), true),
            other => (other, false),
        };
        let last = attribute.qualifiers.len() - 1;
        for (i, qualifier) in attribute.qualifiers.iter().enumerate() {
            optional |= qualifier.optional;
            let key = self.key(qualifier)?;
            if attribute.test && i == last {
                let present = kept(ops::has(&object, &key))?;
                self.charge(SELECT)?;
                return Ok(Value::Bool(present?));
            }
            // Reading the key already charged for a key that is an attribute.
            let cost = if matches!(qualifier.key, Step::Attribute(_)) { 0 } else { SELECT };
            match kept(ops::select(&object, &key))? {
                Ok(Found::Value(value)) => {
                    self.charge(cost)?;
                    object = value;
                }
                Ok(Found::Missing(_)) if optional => {
                    return Ok(if attribute.test { Value::Bool(false) } else { Value::Optional(None) });
                }
                Ok(Found::Missing(message)) => {
                    self.charge(cost)?;
                    return Err(EvalError::Failed(message));
                }
                Err(error) => {
                    self.charge(cost)?;
                    return Err(error);
                }
            }
        }
        Ok(if optional { Value::some(object) } else { object })
    }

    fn key(&mut self, qualifier: &'p Qualifier) -> Result<Value> {
        self.step(&qualifier.key)
    }

    fn list(&mut self, elements: &'p [(Step, bool)]) -> Result<Value> {
        let mut values = Vec::with_capacity(elements.len());
        for (step, optional) in elements {
            let value = self.step(step)?;
            match (optional, value) {
                (false, value) => values.push(value),
                (true, Value::Optional(inner)) => values.extend(inner.map(|inner| (*inner).clone())),
                (true, value) => {
                    let message = format!("cannot initialize optional list element from non-optional value {value}");
                    return Err(EvalError::Failed(message));
                }
            }
        }
        self.charge(MAKE_LIST)?;
        Ok(Value::list(values))
    }

    fn map(&mut self, entries: &'p [(Step, Step, bool)]) -> Result<Value> {
        let mut values = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.step(key)?;
            let value = self.step(value)?;
            let value = match (optional, value) {
                (false, value) => Some(value),
                (true, Value::Optional(inner)) => inner.map(|inner| (*inner).clone()),
                (true, value) => return Err(not_optional(&key, &value)),
            };
            let Some(key) = Key::from_value(&key) else {
                return Err(EvalError::new(format!("unsupported key type: {}", key.type_name())));
            };
            match value {
                Some(value) => values.insert(key, value),
                None => values.remove(&key),
            };
        }
        self.charge(MAKE_MAP)?;
        Ok(Value::map(values))
    }

    fn message(&mut self, message: &'p Message) -> Result<Value> {
        let mut fields = Vec::new();
        for (name, step, optional) in &message.fields {
            let value = match (optional, self.step(step)?) {
                (false, value) => value,
                (true, Value::Optional(None)) => continue,
                (true, Value::Optional(Some(inner))) => (*inner).clone(),
                (true, value) => return Err(not_optional(&Value::String(name.clone()), &value)),
            };
            fields.push((Arc::clone(name), value));
        }
        let result = message.provider.new_value(&message.type_name, fields);
        self.charge(MAKE_MESSAGE)?;
        result
    }

    fn fold(&mut self, fold: &'p Fold) -> Result<Value> {
        let range = self.step(&fold.range)?;
        self.slots[fold.accu] = None;
        self.inits[fold.accu] = Some(&fold.init);
        match &range {
            Value::List(list) => {
                for i in 0..list.len() {
                    let item = list.get(i)?;
                    let index = Value::Int(i64::try_from(i).unwrap_or(i64::MAX));
                    let (first, second) = if fold.var2.is_some() { (index, Some(item)) } else { (item, None) };
                    if !self.turn(fold, first, second)? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let value = if fold.var2.is_some() { map.get(&key)? } else { None };
                    if !self.turn(fold, key.to_value(), value)? {
                        break;
                    }
                }
            }
            other => {
                return Err(EvalError::new(format!("got '{}', expected iterable type", other.type_name())));
            }
        }
        let result = self.step(&fold.result);
        self.slots[fold.accu] = None;
        self.inits[fold.accu] = None;
        result
    }

    /// One turn of a loop; false ends it.
    fn turn(&mut self, fold: &'p Fold, first: Value, second: Option<Value>) -> Result<bool> {
        self.slots[fold.var] = Some(Ok(first));
        if let Some(slot) = fold.var2 {
            self.slots[slot] = second.map(Ok);
        }
        if matches!(kept(self.step(&fold.condition))?, Ok(Value::Bool(false))) {
            return Ok(false);
        }
        let value = kept(self.step(&fold.step))?;
        self.slots[fold.accu] = Some(value);
        self.inits[fold.accu] = None;
        Ok(true)
    }
}

fn not_optional(key: &Value, value: &Value) -> EvalError {
    EvalError::new(format!("cannot initialize optional entry '{key}' from non-optional value {value}"))
}
