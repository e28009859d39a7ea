//! What an expression can cost, from the types and sizes of what it refers to.

use std::collections::HashMap;

use super::{CostRange, Node, SizeHints, SizeRange};
use crate::ast::{ACCUMULATOR, Comprehension, Expr, Id, Kind, OLD_ACCUMULATOR};
use crate::checker::Checked;
use crate::types::Type;
use crate::value::Value;

/// Sizes of the keys and values, or of the elements, of an aggregate.
#[derive(Clone, Copy)]
pub(super) struct Entries {
    is_list: bool,
    key: SizeRange,
    pub(super) value: SizeRange,
}

impl Entries {
    pub(super) fn union(self, other: Entries) -> Entries {
        Entries { is_list: self.is_list, key: self.key.union(other.key), value: self.value.union(other.value) }
    }
}

#[derive(Clone)]
struct Local {
    path: Vec<String>,
    size: Option<SizeRange>,
    entries: Option<Entries>,
}

/// An estimate in progress.
pub(super) struct Estimator<'a> {
    checked: &'a Checked,
    hints: &'a dyn SizeHints,
    paths: HashMap<Id, Vec<String>>,
    sizes: HashMap<Id, SizeRange>,
    entries: HashMap<Id, Entries>,
    locals: HashMap<String, Vec<Local>>,
}

/// Estimates an expression.
pub(crate) fn estimate(checked: &Checked, hints: &dyn SizeHints) -> CostRange {
    let mut estimator = Estimator {
        checked,
        hints,
        paths: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
        locals: HashMap::new(),
    };
    estimator.cost(&checked.root)
}

const FREE: CostRange = CostRange { min: 0, max: 0 };
const SELECT: CostRange = CostRange { min: 1, max: 1 };

impl<'a> Estimator<'a> {
    fn cost(&mut self, e: &'a Expr) -> CostRange {
        match &e.kind {
            Kind::Unspecified | Kind::Literal(_) => FREE,
            Kind::Ident(name) => {
                let path = self.local(name).map_or_else(|| vec![name.clone()], |local| local.path.clone());
                self.paths.insert(e.id, path);
                SELECT
            }
            Kind::Select { operand, test: true, .. } => self.cost(operand),
            Kind::Select { operand, field, .. } => {
                let mut sum = self.cost(operand);
                if matches!(self.type_of(operand), Type::Map(..) | Type::Object(_) | Type::Param(_)) {
                    sum = sum.plus(SELECT);
                }
                self.extend_path(e.id, operand, field);
                sum
            }
            Kind::Call { target, function, args } => self.call(e, target.as_deref(), function, args),
            Kind::List { elements } => {
                let mut sum = CostRange::exactly(10);
                let items = elements.iter().map(|element| &element.value).collect::<Vec<_>>();
                for item in &items {
                    sum = sum.plus(self.cost(item));
                }
                let value = self.union_of(&items);
                self.entries.insert(e.id, Entries { is_list: true, key: SizeRange::exactly(1), value });
                sum
            }
            Kind::Map { entries } => {
                let mut sum = CostRange::exactly(30);
                for entry in entries {
                    sum = sum.plus(self.cost(&entry.key)).plus(self.cost(&entry.value));
                }
                let key = self.union_of(&entries.iter().map(|entry| &entry.key).collect::<Vec<_>>());
                let value = self.union_of(&entries.iter().map(|entry| &entry.value).collect::<Vec<_>>());
                self.entries.insert(e.id, Entries { is_list: false, key, value });
                sum
            }
            Kind::Struct { fields, .. } => {
                let costs = fields.iter().map(|field| self.cost(&field.value)).collect::<Vec<_>>();
                costs.into_iter().fold(CostRange::exactly(40), CostRange::plus)
            }
            Kind::Comprehension(c) if is_bind(c) => self.bind(e, c),
            Kind::Comprehension(c) => self.comprehension(e, c),
        }
    }

    pub(super) fn type_of(&self, e: &Expr) -> &'a Type {
        self.checked.type_of(e.id)
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.get(name).and_then(|stack| stack.last())
    }

    fn path(&self, e: &Expr) -> Vec<String> {
        if let Kind::Ident(name) = &e.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&e.id).cloned().unwrap_or_default()
    }

    fn extend_path(&mut self, id: Id, from: &Expr, step: &str) {
        let mut path = self.path(from);
        path.push(step.to_owned());
        self.paths.insert(id, path);
    }

    /// The path of an operand of a call; what only a macro knows has none.
    pub(super) fn operand_path(&self, e: &Expr) -> Vec<String> {
        let path = self.path(e);
        match path.first() {
            Some(first) if [ACCUMULATOR, OLD_ACCUMULATOR].contains(&first.as_str()) => Vec::new(),
            _ => path,
        }
    }

    pub(super) fn hint(&self, path: &[String], of: &Type) -> Option<SizeRange> {
        self.hints.size(&Node { path, of })
    }

    pub(super) fn size(&mut self, e: &Expr) -> Option<SizeRange> {
        if let Some(size) = self.sizes.get(&e.id) {
            return Some(*size);
        }
        if let Some(size) = literal_size(e) {
            return Some(SizeRange::exactly(size));
        }
        if let Some(size) = self.hint(&self.path(e), self.type_of(e)) {
            self.sizes.insert(e.id, size);
            return Some(size);
        }
        if is_scalar(self.type_of(e)) {
            return Some(SizeRange::exactly(1));
        }
        match &e.kind {
            Kind::Ident(name) => self.local(name).and_then(|local| local.size),
            _ => None,
        }
    }

    pub(super) fn size_or_unknown(&mut self, e: &Expr) -> SizeRange {
        self.size(e).unwrap_or(SizeRange::UNKNOWN)
    }

    /// The size that any one of these has; none of them is nothing.
    fn union_of(&mut self, items: &[&Expr]) -> SizeRange {
        let start = SizeRange { min: if items.is_empty() { 0 } else { u64::MAX }, max: 0 };
        items.iter().fold(start, |size, item| size.union(self.size_or_unknown(item)))
    }

    pub(super) fn entries_of(&self, e: &Expr) -> Option<Entries> {
        if let Some(entries) = self.entries.get(&e.id) {
            return Some(*entries);
        }
        match &e.kind {
            Kind::Ident(name) => self.local(name).and_then(|local| local.entries),
            _ => None,
        }
    }

    pub(super) fn set_entries(&mut self, e: &Expr, entries: Option<Entries>) {
        if let Some(entries) = entries {
            self.entries.insert(e.id, entries);
        }
    }

    fn copy_sizes(&mut self, to: &Expr, from: &Expr) {
        if let Some(size) = self.size(from) {
            self.sizes.insert(to.id, size);
        }
        let entries = self.entries_of(from);
        self.set_entries(to, entries);
    }

    fn call(&mut self, e: &'a Expr, target: Option<&'a Expr>, function: &str, args: &'a [Expr]) -> CostRange {
        if let ("dyn", [arg]) = (function, args) {
            let cost = self.cost(arg);
            self.copy_sizes(e, arg);
            return cost.plus(CostRange::exactly(1));
        }
        let costs: Vec<CostRange> = args.iter().map(|arg| self.cost(arg)).collect();
        let checked = self.checked;
        let overloads = checked.overloads(e.id);
        if overloads.is_empty() {
            return FREE;
        }
        let target_cost = target.map_or(FREE, |target| self.cost(target));
        let mut total = CostRange { min: u64::MAX, max: 0 };
        let mut result: Option<SizeRange> = None;
        for overload in overloads {
            let (cost, size) = self.overload(e, function, overload, target, args, &costs);
            total = total.union(cost);
            result = match (result, size) {
                (Some(a), Some(b)) => Some(a.union(b)),
                (a, b) => a.or(b),
            };
            match (&**overload, args) {
                ("index_list", [aggregate, ..]) => {
                    result = self.entries_of(aggregate).map(|entries| entries.value);
                    self.extend_path(e.id, aggregate, "@items");
                }
                ("index_map", [aggregate, ..]) => {
                    result = self.entries_of(aggregate).map(|entries| entries.value);
                    self.extend_path(e.id, aggregate, "@values");
                }
                _ => {}
            }
            result = result.or_else(|| self.size(e));
        }
        if let Some(size) = result {
            self.sizes.insert(e.id, size);
        }
        target_cost.plus(total)
    }

    fn push(&mut self, name: &str, local: Local) {
        self.locals.entry(name.to_owned()).or_default().push(local);
    }

    fn pop(&mut self, name: &str) {
        if let Some(stack) = self.locals.get_mut(name) {
            stack.pop();
        }
    }

    /// Declares a variable with the value of `e`.
    fn push_value(&mut self, name: &str, e: &Expr) {
        let local = Local { path: self.path(e), size: self.size(e), entries: self.entries_of(e) };
        self.push(name, local);
    }

    /// Declares the variables of a loop.
    fn push_loop(&mut self, c: &Comprehension) {
        let entries = self.entries_of(&c.range);
        let is_list = entries.map_or_else(|| matches!(self.type_of(&c.range), Type::List(_)), |e| e.is_list);
        let path = self.path(&c.range);
        let local = |step: &str, size: Option<SizeRange>| {
            let mut path = path.clone();
            path.push(step.to_owned());
            Local { path, size, entries: None }
        };
        let (keys, values) = if is_list { ("@indices", "@items") } else { ("@keys", "@values") };
        let key = local(keys, entries.map(|e| e.key));
        let value = local(values, entries.map(|e| e.value));
        match &c.var2 {
            Some(var2) => {
                self.push(&c.var, key);
                self.push(var2, value);
            }
            None => self.push(&c.var, if is_list { value } else { key }),
        }
    }

    fn bind(&mut self, e: &Expr, c: &'a Comprehension) -> CostRange {
        let sum = self.cost(&c.range).plus(self.cost(&c.init));
        self.push_value(&c.accu, &c.init);
        let sum = sum.plus(self.cost(&c.result));
        self.pop(&c.accu);
        self.copy_sizes(e, &c.result);
        sum
    }

    fn comprehension(&mut self, e: &Expr, c: &'a Comprehension) -> CostRange {
        let sum = self.cost(&c.range).plus(self.cost(&c.init));
        self.push_value(&c.accu, &c.init);
        self.push_loop(c);
        let turn = self.cost(&c.condition).plus(self.cost(&c.step));
        self.pop(&c.var);
        if let Some(var2) = &c.var2 {
            self.pop(var2);
        }
        let sum = sum.plus(self.cost(&c.result));
        self.pop(&c.accu);
        let turns = self.size_or_unknown(&c.range);
        match &c.init.kind {
            Kind::Literal(_) => {
                if let Some(size) = self.size(&c.init) {
                    self.sizes.insert(e.id, size);
                }
            }
            Kind::List { .. } | Kind::Map { .. } => {
                self.sizes.insert(e.id, turns);
                let entries = self.entries_of(&c.step);
                self.set_entries(e, entries);
            }
            _ => {}
        }
        sum.plus(turns.each(turn))
    }
}

/// Whether a loop only gives a value a name.
fn is_bind(c: &Comprehension) -> bool {
    matches!(&c.range.kind, Kind::List { elements } if elements.is_empty())
        && matches!(c.condition.kind, Kind::Literal(Value::Bool(false)))
        && c.accu != OLD_ACCUMULATOR
}

fn literal_size(e: &Expr) -> Option<u64> {
    let count = match &e.kind {
        Kind::Literal(Value::String(s)) => s.chars().count(),
        Kind::Literal(Value::Bytes(b)) => b.len(),
        Kind::Literal(_) => 1,
        Kind::List { elements } => elements.len(),
        Kind::Map { entries } => entries.len(),
        _ => return None,
    };
    u64::try_from(count).ok()
}

fn is_scalar(t: &Type) -> bool {
    match t {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Wrapper(inner) => is_scalar(inner),
        _ => t.optional_inner().is_some_and(is_scalar),
    }
}
