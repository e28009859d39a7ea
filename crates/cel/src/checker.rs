//! Names and types: which declaration each name means, which overloads a call may mean, what each node's type is.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ast::{Expr, Id, Kind, op};
use crate::decls::Function;
use crate::env::Environment;
use crate::issue::{Issues, Phase};
use crate::parser::Parsed;
use crate::types::Type;
use crate::unify::{Mapping, most_general};
use crate::value::Value;

/// What a name or a call means.
#[derive(Clone, Debug)]
pub(crate) enum Reference {
    /// A variable, or with a value a constant.
    Ident(Option<Value>),
    /// The overloads that may evaluate a call.
    Overloads(Vec<Arc<str>>),
}

/// A tree with what the checker found out about its nodes, by id.
pub(crate) struct Checked {
    pub(crate) root: Expr,
    pub(crate) offsets: Vec<u32>,
    pub(crate) types: Vec<Option<Type>>,
    pub(crate) references: Vec<Option<Reference>>,
}

impl Checked {
    pub(crate) fn type_of(&self, id: Id) -> &Type {
        self.types.get(id as usize).and_then(Option::as_ref).unwrap_or(&Type::Dyn)
    }

    pub(crate) fn overloads(&self, id: Id) -> &[Arc<str>] {
        match self.references.get(id as usize) {
            Some(Some(Reference::Overloads(ids))) => ids,
            _ => &[],
        }
    }
}

struct Checker<'a> {
    env: &'a Environment,
    issues: &'a mut Issues,
    offsets: Vec<u32>,
    types: Vec<Option<Type>>,
    references: Vec<Option<Reference>>,
    mapping: Mapping,
    scopes: Vec<HashMap<String, Type>>,
    variables: u32,
}

/// A name that was found.
struct Resolved {
    name: String,
    of: Type,
    value: Option<Value>,
}

/// Checks a tree. Problems go to `issues`.
pub(crate) fn check(parsed: Parsed, env: &Environment, issues: &mut Issues) -> Checked {
    let Parsed { mut root, offsets } = parsed;
    let count = offsets.len();
    let mut checker = Checker {
        env,
        issues,
        offsets,
        types: vec![None; count],
        references: vec![None; count],
        mapping: Mapping::default(),
        scopes: Vec::new(),
        variables: 0,
    };
    checker.check(&mut root);
    let Checker { offsets, mut types, references, mapping, .. } = checker;
    for t in types.iter_mut().flatten() {
        *t = mapping.substitute(t, true);
    }
    Checked { root, offsets, types, references }
}

impl Checker<'_> {
    fn error(&mut self, id: Id, message: impl Into<String>) {
        let offset = self.offsets.get(id as usize).copied();
        self.issues.report(Phase::Check, offset, message);
    }

    fn set_type(&mut self, id: Id, t: Type) {
        self.types[id as usize] = Some(t);
    }

    fn type_of(&self, expr: &Expr) -> Type {
        self.types[expr.id as usize].clone().unwrap_or(Type::Error)
    }

    fn undeclared(&mut self, id: Id, name: &str) {
        let container = &self.env.container;
        self.error(id, format!("undeclared reference to '{name}' (in container '{container}')"));
        self.set_type(id, Type::Error);
    }

    fn check(&mut self, e: &mut Expr) {
        match &mut e.kind {
            Kind::Unspecified => self.set_type(e.id, Type::Error),
            Kind::Literal(value) => {
                let t = value.type_of();
                self.set_type(e.id, t);
            }
            Kind::Ident(name) => match self.resolve(name) {
                Some(found) => self.refer(e, found),
                None => {
                    let name = name.clone();
                    self.undeclared(e.id, &name);
                }
            },
            Kind::Select { .. } => self.select(e),
            Kind::Call { .. } => self.call(e),
            Kind::List { .. } => self.list(e),
            Kind::Map { .. } => self.map(e),
            Kind::Struct { .. } => self.message(e),
            Kind::Comprehension(_) => self.comprehension(e),
        }
    }

    /// Makes the node the name it was found to be.
    fn refer(&mut self, e: &mut Expr, found: Resolved) {
        self.set_type(e.id, found.of);
        self.references[e.id as usize] = Some(Reference::Ident(found.value));
        e.kind = Kind::Ident(found.name);
    }

    fn local(&self, name: &str) -> Option<&Type> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name))
    }

    fn resolve(&self, name: &str) -> Option<Resolved> {
        let first = name.split('.').find(|part| !part.is_empty()).unwrap_or(name);
        let local = self.local(first);
        if let Some(of) = local.filter(|_| !name.starts_with('.')) {
            // A local variable hides everything else of its name, also as the start of a longer one.
            return (first == name).then(|| Resolved { name: name.to_owned(), of: of.clone(), value: None });
        }
        let hidden = local.is_some();
        self.env.candidates(name).into_iter().find_map(|candidate| {
            let (of, value) = self.env.global(&candidate)?;
            let name = if hidden { format!(".{candidate}") } else { candidate };
            Some(Resolved { name, of, value })
        })
    }

    fn select(&mut self, e: &mut Expr) {
        if let Some(found) = e.qualified_name().and_then(|name| self.resolve(&name)) {
            self.refer(e, found);
            return;
        }
        let Kind::Select { operand, field, test } = &mut e.kind else { return };
        let (field, test) = (field.clone(), *test);
        let result = self.field(e.id, operand, &field, false);
        self.set_type(e.id, if test { Type::Bool } else { result });
    }

    /// The type of `operand.field`.
    fn field(&mut self, id: Id, operand: &mut Expr, field: &str, optional: bool) -> Type {
        self.check(operand);
        let operand_type = self.mapping.substitute(&self.type_of(operand), false);
        let inner = operand_type.optional_inner().cloned();
        let optional = optional || inner.is_some();
        let target = inner.unwrap_or(operand_type);
        let result = match &target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(name) => self.object_field(id, name, field).unwrap_or(Type::Error),
            Type::Param(_) => {
                self.mapping.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            _ => {
                if !target.is_dyn_or_error() {
                    self.error(id, format!("type '{target}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        let result = if optional { Type::optional(result) } else { result };
        self.mapping.substitute(&result, false)
    }

    fn object_field(&mut self, id: Id, type_name: &str, field: &str) -> Option<Type> {
        if self.env.find_type(type_name).is_none() {
            self.error(id, format!("unexpected failed resolution of '{type_name}'"));
            return None;
        }
        let found = self.env.find_field(type_name, field);
        if found.is_none() {
            self.error(id, format!("undefined field '{field}'"));
        }
        found
    }

    fn call(&mut self, e: &mut Expr) {
        let id = e.id;
        let Kind::Call { target, function, args } = &mut e.kind else { return };
        if function == op::OPT_SELECT {
            self.optional_select(id, args);
            return;
        }
        for arg in args.iter_mut() {
            self.check(arg);
        }
        let env = self.env;
        let Some(receiver) = target else {
            match env.find_function(function) {
                Some(found) => {
                    *function = found.name.to_string();
                    self.resolve_call(id, found, None, args);
                }
                None => {
                    let name = function.clone();
                    self.undeclared(id, &name);
                }
            }
            return;
        };
        if let Some(found) =
            receiver.qualified_name().and_then(|prefix| env.find_function(&format!("{prefix}.{function}")))
        {
            *function = found.name.to_string();
            *target = None;
            self.resolve_call(id, found, None, args);
            return;
        }
        self.check(receiver);
        match env.find_function(function) {
            Some(found) => self.resolve_call(id, found, Some(receiver), args),
            None => {
                let name = function.clone();
                self.undeclared(id, &name);
            }
        }
    }

    fn optional_select(&mut self, id: Id, args: &mut [Expr]) {
        let [operand, field] = args else { return };
        let Kind::Literal(Value::String(name)) = &field.kind else {
            self.error(field.id, "unsupported optional field selection");
            return;
        };
        let (name, field_id) = (name.clone(), field.id);
        let result = self.field(id, operand, &name, true);
        self.set_type(id, result);
        self.set_type(field_id, Type::String);
        self.references[id as usize] = Some(Reference::Overloads(vec!["select_optional_field".into()]));
    }

    fn resolve_call(&mut self, id: Id, function: &Function, target: Option<&Expr>, args: &[Expr]) {
        let result = self.overload(id, function, target, args);
        self.set_type(id, result.unwrap_or(Type::Error));
    }

    fn overload(&mut self, id: Id, function: &Function, target: Option<&Expr>, args: &[Expr]) -> Option<Type> {
        let operands: Vec<&Expr> = target.into_iter().chain(args).collect();
        let given: Vec<Type> = operands.iter().map(|operand| self.type_of(operand)).collect();
        if [op::AND, op::OR].contains(&&*function.name) {
            let mut fits = true;
            for (operand, t) in operands.iter().zip(&given) {
                if !self.mapping.assignable(t, &Type::Bool) {
                    let shown = self.mapping.substitute(t, true);
                    self.error(operand.id, format!("expected type 'bool' but found '{shown}'"));
                    fits = false;
                }
            }
            self.references[id as usize] =
                Some(Reference::Overloads(function.overloads.iter().map(|o| o.id.clone()).collect()));
            return fits.then_some(Type::Bool);
        }
        let mut result: Option<Type> = None;
        let mut ids = Vec::new();
        for overload in function.overloads.iter().filter(|o| o.member == target.is_some()) {
            let mut fresh = Mapping::default();
            for parameter in type_parameters(overload.params.iter().chain([&overload.result])) {
                let variable = self.variable();
                fresh.add(&parameter, variable);
            }
            let params: Vec<Type> = overload.params.iter().map(|p| fresh.substitute(p, false)).collect();
            if !self.mapping.assignable_all(&given, &params) {
                continue;
            }
            ids.push(overload.id.clone());
            let this = self.mapping.substitute(&fresh.substitute(&overload.result, false), false);
            result = Some(match result {
                None => this,
                Some(previous) if previous.is_dyn() || previous == this => previous,
                Some(_) => Type::Dyn,
            });
        }
        if result.is_none() {
            let shown: Vec<String> = given.iter().map(|t| self.mapping.substitute(t, true).to_string()).collect();
            let signature = match (target, shown.split_first()) {
                (Some(_), Some((receiver, rest))) => format!("{receiver}.({})", rest.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            let name = &function.name;
            self.error(id, format!("found no matching overload for '{name}' applied to '{signature}'"));
            return None;
        }
        self.references[id as usize] = Some(Reference::Overloads(ids));
        result
    }

    fn variable(&mut self) -> Type {
        let variable = Type::param(&format!("_var{}", self.variables));
        self.variables += 1;
        variable
    }

    fn mismatch(&mut self, id: Id, expected: &Type, found: &Type) {
        self.error(id, format!("expected type '{expected}' but found '{found}'"));
    }

    /// The type of an optional element's value.
    fn unwrap_optional(&mut self, value: &Expr, t: Type) -> Type {
        if let Some(inner) = t.optional_inner() {
            return inner.clone();
        }
        if !t.is_dyn() {
            self.mismatch(value.id, &Type::optional(t.clone()), &t);
        }
        t
    }

    fn join(&mut self, id: Id, previous: Option<Type>, current: Type) -> Type {
        let Some(previous) = previous else { return current };
        if self.mapping.assignable(&previous, &current) {
            return most_general(&previous, &current).clone();
        }
        if !self.env.homogeneous_literals {
            return Type::Dyn;
        }
        self.mismatch(id, &previous, &current);
        Type::Error
    }

    fn list(&mut self, e: &mut Expr) {
        let Kind::List { elements } = &mut e.kind else { return };
        let mut joined = None;
        for element in elements {
            self.check(&mut element.value);
            let mut t = self.type_of(&element.value);
            if element.optional {
                t = self.unwrap_optional(&element.value, t);
            }
            joined = Some(self.join(element.value.id, joined, t));
        }
        let element = joined.unwrap_or_else(|| self.variable());
        self.set_type(e.id, Type::list(element));
    }

    fn map(&mut self, e: &mut Expr) {
        let Kind::Map { entries } = &mut e.kind else { return };
        let (mut keys, mut values) = (None, None);
        for entry in entries {
            self.check(&mut entry.key);
            let key = self.type_of(&entry.key);
            keys = Some(self.join(entry.key.id, keys, key));
            self.check(&mut entry.value);
            let mut value = self.type_of(&entry.value);
            if entry.optional {
                value = self.unwrap_optional(&entry.value, value);
            }
            values = Some(self.join(entry.value.id, values, value));
        }
        let key = keys.unwrap_or_else(|| self.variable());
        let value = values.unwrap_or_else(|| self.variable());
        self.set_type(e.id, Type::map(key, value));
    }

    fn message(&mut self, e: &mut Expr) {
        let id = e.id;
        let Kind::Struct { name, fields } = &mut e.kind else { return };
        let env = self.env;
        let resolved = env.candidates(name).into_iter().find_map(|candidate| {
            let (of, value) = env.global(&candidate).filter(|(of, _)| matches!(of, Type::Type(_)))?;
            Some((candidate, of, value))
        });
        let Some((candidate, of, _)) = resolved else {
            let name = name.clone();
            self.undeclared(id, &name);
            return;
        };
        *name = candidate;
        let result = match of {
            Type::Type(Some(inner)) if matches!(*inner, Type::Object(_)) => (*inner).clone(),
            Type::Type(Some(inner)) => {
                self.error(id, format!("'{}' is not a message type", inner.name()));
                Type::Error
            }
            other => {
                self.error(id, format!("'{}' is not a type", other.name()));
                Type::Error
            }
        };
        let type_name = result.name().to_owned();
        self.references[id as usize] = Some(Reference::Ident(None));
        self.set_type(id, result.clone());
        for field in fields {
            self.check(&mut field.value);
            let declared = match &result {
                Type::Error => Type::Error,
                _ => self.object_field(field.id, &type_name, &field.name).unwrap_or(Type::Error),
            };
            let mut given = self.type_of(&field.value);
            if field.optional {
                given = self.unwrap_optional(&field.value, given);
            }
            if !self.mapping.assignable(&declared, &given) {
                let name = &field.name;
                let message = format!("expected type of field '{name}' is '{declared}' but provided type is '{given}'");
                self.error(field.id, message);
            }
        }
    }

    fn comprehension(&mut self, e: &mut Expr) {
        let Kind::Comprehension(c) = &mut e.kind else { return };
        self.check(&mut c.range);
        self.check(&mut c.init);
        let range = self.mapping.substitute(&self.type_of(&c.range), false);
        let accu = self.type_of(&c.init);
        self.scopes.push(HashMap::from([(c.accu.clone(), accu.clone())]));
        let two = c.var2.is_some();
        let (var, var2) = match &range {
            Type::List(element) if two => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Error),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Any | Type::Error | Type::Param(_) => {
                self.mapping.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            _ => {
                let message = format!(
                    "expression of type '{range}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.error(c.range.id, message);
                (Type::Error, Type::Error)
            }
        };
        let mut scope = HashMap::from([(c.var.clone(), var)]);
        if let Some(name) = &c.var2 {
            scope.insert(name.clone(), var2);
        }
        self.scopes.push(scope);
        self.check(&mut c.condition);
        self.assert_type(&c.condition, &Type::Bool);
        self.check(&mut c.step);
        self.assert_type(&c.step, &accu);
        self.scopes.pop();
        self.check(&mut c.result);
        self.scopes.pop();
        let result = self.mapping.substitute(&self.type_of(&c.result), false);
        self.set_type(e.id, result);
    }

    fn assert_type(&mut self, e: &Expr, expected: &Type) {
        let found = self.type_of(e);
        if !self.mapping.assignable(expected, &found) {
            self.mismatch(e.id, expected, &found);
        }
    }
}

/// The type parameters that occur in a signature, each once.
fn type_parameters<'a>(types: impl Iterator<Item = &'a Type>) -> Vec<Type> {
    fn collect(t: &Type, into: &mut Vec<Type>) {
        if matches!(t, Type::Param(_)) {
            if !into.contains(t) {
                into.push(t.clone());
            }
            return;
        }
        t.parameters().iter().for_each(|parameter| collect(parameter, into));
    }
    let mut found = Vec::new();
    types.for_each(|t| collect(t, &mut found));
    found
}
