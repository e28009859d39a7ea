//! Macros: calls that the parser replaces by what they stand for.

use crate::ast::{ACCUMULATOR, Comprehension, Element, Entry, Expr, Field, Id, Kind, OLD_ACCUMULATOR, op};
use crate::parser::Nodes;
use crate::value::Value;

/// A call that the parser expands.
#[derive(Clone, Copy)]
pub(crate) struct Macro {
    pub(crate) name: &'static str,
    /// How many arguments it takes; `None` is any number.
    pub(crate) args: Option<usize>,
    pub(crate) receiver: bool,
    pub(crate) expand: Expand,
}

/// Makes the expansion; `None` leaves the call as it is.
pub(crate) type Expand = fn(&mut Builder<'_>, Option<&Expr>, &[Expr]) -> Result<Option<Expr>, MacroError>;

/// Why a macro cannot be expanded, and at which node.
pub(crate) struct MacroError {
    pub(crate) id: Id,
    pub(crate) message: String,
}

/// Makes nodes at the place of a macro call.
pub(crate) struct Builder<'a> {
    pub(crate) nodes: &'a mut Nodes,
    pub(crate) at: u32,
}

/// The macro for a call of this shape. Those with a fixed number of arguments go first.
pub(crate) fn find(macros: &[Macro], name: &str, args: usize, receiver: bool) -> Option<Macro> {
    let shape = |m: &&Macro| m.name == name && m.receiver == receiver;
    let exact = macros.iter().filter(shape).find(|m| m.args == Some(args));
    exact.or_else(|| macros.iter().filter(shape).find(|m| m.args.is_none())).copied()
}

const fn receiver(name: &'static str, args: usize, expand: Expand) -> Macro {
    Macro { name, args: Some(args), receiver: true, expand }
}

/// The macros of the language itself.
pub(crate) const STANDARD: &[Macro] = &[
    Macro { name: "has", args: Some(1), receiver: false, expand: has },
    receiver("all", 2, all),
    receiver("exists", 2, exists),
    receiver("exists_one", 2, exists_one),
    receiver("existsOne", 2, exists_one),
    receiver("map", 2, map),
    receiver("map", 3, map),
    receiver("filter", 2, filter),
];

/// Macros over two variables.
pub(crate) const TWO_VARIABLES: &[Macro] = &[
    receiver("all", 3, all),
    receiver("exists", 3, exists),
    receiver("existsOne", 3, exists_one),
    receiver("exists_one", 3, exists_one),
    receiver("transformList", 3, transform_list),
    receiver("transformList", 4, transform_list),
    receiver("transformMap", 3, transform_map),
    receiver("transformMap", 4, transform_map),
    receiver("transformMapEntry", 3, transform_map_entry),
    receiver("transformMapEntry", 4, transform_map_entry),
];

/// Macros of optional values.
pub(crate) const OPTIONAL: &[Macro] = &[receiver("optMap", 2, opt_map), receiver("optFlatMap", 2, opt_flat_map)];

/// `cel.bind`.
pub(crate) const BINDINGS: &[Macro] = &[receiver("bind", 3, bind)];

/// `sortBy`.
pub(crate) const LISTS: &[Macro] = &[receiver("sortBy", 2, sort_by)];

/// `math.least` and `math.greatest`.
pub(crate) const MATH: &[Macro] = &[
    Macro { name: "least", args: None, receiver: true, expand: least },
    Macro { name: "greatest", args: None, receiver: true, expand: greatest },
];

type Expansion = Result<Option<Expr>, MacroError>;

fn fail<T>(at: &Expr, message: impl Into<String>) -> Result<T, MacroError> {
    Err(MacroError { id: at.id, message: message.into() })
}

impl Builder<'_> {
    fn node(&mut self, kind: Kind) -> Expr {
        self.nodes.expr(self.at, kind)
    }

    fn literal(&mut self, value: Value) -> Expr {
        self.node(Kind::Literal(value))
    }

    fn ident(&mut self, name: &str) -> Expr {
        self.node(Kind::Ident(name.to_owned()))
    }

    fn accu(&mut self) -> Expr {
        self.ident(ACCUMULATOR)
    }

    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        self.node(Kind::Call { target: None, function: function.to_owned(), args })
    }

    fn member(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Expr {
        self.node(Kind::Call { target: Some(Box::new(target)), function: function.to_owned(), args })
    }

    fn list(&mut self, items: Vec<Expr>) -> Expr {
        let elements = items.into_iter().map(|value| Element { value, optional: false }).collect();
        self.node(Kind::List { elements })
    }

    /// The same tree with ids of its own.
    fn copy(&mut self, expr: &Expr) -> Expr {
        let offset = self.nodes.offset(expr.id);
        let id = self.nodes.id(offset);
        let kind = match &expr.kind {
            Kind::Unspecified => Kind::Unspecified,
            Kind::Literal(value) => Kind::Literal(value.clone()),
            Kind::Ident(name) => Kind::Ident(name.clone()),
            Kind::Select { operand, field, test } => {
                Kind::Select { operand: Box::new(self.copy(operand)), field: field.clone(), test: *test }
            }
            Kind::Call { target, function, args } => Kind::Call {
                target: target.as_ref().map(|t| Box::new(self.copy(t))),
                function: function.clone(),
                args: args.iter().map(|a| self.copy(a)).collect(),
            },
            Kind::List { elements } => Kind::List {
                elements: elements
                    .iter()
                    .map(|e| Element { value: self.copy(&e.value), optional: e.optional })
                    .collect(),
            },
            Kind::Map { entries } => Kind::Map { entries: entries.iter().map(|e| self.copy_entry(e)).collect() },
            Kind::Struct { name, fields } => {
                Kind::Struct { name: name.clone(), fields: fields.iter().map(|f| self.copy_field(f)).collect() }
            }
            Kind::Comprehension(c) => Kind::Comprehension(Box::new(Comprehension {
                range: self.copy(&c.range),
                var: c.var.clone(),
                var2: c.var2.clone(),
                accu: c.accu.clone(),
                init: self.copy(&c.init),
                condition: self.copy(&c.condition),
                step: self.copy(&c.step),
                result: self.copy(&c.result),
            })),
        };
        Expr { id, kind }
    }

    fn copy_entry(&mut self, entry: &Entry) -> Entry {
        let offset = self.nodes.offset(entry.id);
        let id = self.nodes.id(offset);
        Entry { id, key: self.copy(&entry.key), value: self.copy(&entry.value), optional: entry.optional }
    }

    fn copy_field(&mut self, field: &Field) -> Field {
        let offset = self.nodes.offset(field.id);
        let id = self.nodes.id(offset);
        Field { id, name: field.name.clone(), value: self.copy(&field.value), optional: field.optional }
    }
}

fn variable(arg: &Expr) -> Option<&str> {
    match &arg.kind {
        Kind::Ident(name) => Some(name),
        _ => None,
    }
}

/// Loop variables: all arguments but the last `bodies`.
fn variables<'a>(args: &'a [Expr], bodies: usize, wrong: &str) -> Result<(&'a str, Option<&'a str>), MacroError> {
    let mut names = Vec::new();
    for arg in &args[..args.len() - bodies] {
        let Some(name) = variable(arg) else { return fail(arg, wrong) };
        names.push((arg, name));
    }
    if let [(_, first), (second_arg, second)] = names[..]
        && first == second
    {
        return fail(second_arg, format!("duplicate variable name: {first}"));
    }
    for (arg, name) in &names {
        if [ACCUMULATOR, OLD_ACCUMULATOR].contains(name) {
            return fail(arg, "iteration variable overwrites accumulator variable");
        }
    }
    Ok((names[0].1, names.get(1).map(|(_, name)| *name)))
}

const SIMPLE_NAME: &str = "argument must be a simple name";
const NO_IDENTIFIER: &str = "argument is not an identifier";

fn has(b: &mut Builder<'_>, _: Option<&Expr>, args: &[Expr]) -> Expansion {
    match &args[0].kind {
        Kind::Select { operand, field, .. } => {
            Ok(Some(b.node(Kind::Select { operand: operand.clone(), field: field.clone(), test: true })))
        }
        _ => fail(&args[0], "invalid argument to has() macro"),
    }
}

/// What a loop does besides going over its range.
struct Loop {
    init: Expr,
    condition: Expr,
    step: Expr,
    result: Expr,
}

fn comprehension(
    b: &mut Builder<'_>,
    range: &Expr,
    (var, var2): (&str, Option<&str>),
    Loop { init, condition, step, result }: Loop,
) -> Expansion {
    Ok(Some(b.node(Kind::Comprehension(Box::new(Comprehension {
        range: range.clone(),
        var: var.to_owned(),
        var2: var2.map(str::to_owned),
        accu: ACCUMULATOR.to_owned(),
        init,
        condition,
        step,
        result,
    })))))
}

fn all(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    let Some(range) = target else { return Ok(None) };
    let names = variables(args, 1, SIMPLE_NAME)?;
    let accu = b.accu();
    let condition = b.call(op::NOT_STRICTLY_FALSE, vec![accu]);
    let accu = b.accu();
    let step = b.call(op::AND, vec![accu, args[args.len() - 1].clone()]);
    let body = Loop { init: b.literal(Value::Bool(true)), condition, step, result: b.accu() };
    comprehension(b, range, names, body)
}

fn exists(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    let Some(range) = target else { return Ok(None) };
    let names = variables(args, 1, SIMPLE_NAME)?;
    let accu = b.accu();
    let not = b.call(op::NOT, vec![accu]);
    let condition = b.call(op::NOT_STRICTLY_FALSE, vec![not]);
    let accu = b.accu();
    let step = b.call(op::OR, vec![accu, args[args.len() - 1].clone()]);
    let body = Loop { init: b.literal(Value::Bool(false)), condition, step, result: b.accu() };
    comprehension(b, range, names, body)
}

fn exists_one(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    let Some(range) = target else { return Ok(None) };
    let names = variables(args, 1, SIMPLE_NAME)?;
    let (accu, one) = (b.accu(), b.literal(Value::Int(1)));
    let more = b.call(op::ADD, vec![accu, one]);
    let accu = b.accu();
    let step = b.call(op::CONDITIONAL, vec![args[args.len() - 1].clone(), more, accu]);
    let (accu, one) = (b.accu(), b.literal(Value::Int(1)));
    let result = b.call(op::EQUALS, vec![accu, one]);
    let body = Loop { init: b.literal(Value::Int(0)), condition: b.literal(Value::Bool(true)), step, result };
    comprehension(b, range, names, body)
}

/// `step`, done only where `filter` holds.
fn filtered(b: &mut Builder<'_>, filter: Option<&Expr>, step: Expr) -> Expr {
    match filter {
        Some(filter) => {
            let accu = b.accu();
            b.call(op::CONDITIONAL, vec![filter.clone(), step, accu])
        }
        None => step,
    }
}

/// A loop that appends `transform` to a list.
fn collect(
    b: &mut Builder<'_>,
    range: &Expr,
    names: (&str, Option<&str>),
    filter: Option<&Expr>,
    transform: &Expr,
) -> Expansion {
    let accu = b.accu();
    let item = b.list(vec![transform.clone()]);
    let step = b.call(op::ADD, vec![accu, item]);
    let step = filtered(b, filter, step);
    let body = Loop { init: b.list(Vec::new()), condition: b.literal(Value::Bool(true)), step, result: b.accu() };
    comprehension(b, range, names, body)
}

fn map(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    let Some(range) = target else { return Ok(None) };
    let names = variables(args, args.len() - 1, NO_IDENTIFIER)?;
    let filter = (args.len() == 3).then(|| &args[1]);
    collect(b, range, names, filter, &args[args.len() - 1])
}

fn filter(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    let Some(range) = target else { return Ok(None) };
    let names = variables(args, 1, NO_IDENTIFIER)?;
    collect(b, range, names, Some(&args[1]), &args[0])
}

fn transform_list(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    let Some(range) = target else { return Ok(None) };
    let names = variables(args, args.len() - 2, SIMPLE_NAME)?;
    let filter = (args.len() == 4).then(|| &args[2]);
    collect(b, range, names, filter, &args[args.len() - 1])
}

/// The function that adds entries to a map under construction.
pub(crate) const MAP_INSERT: &str = "cel.@mapInsert";

fn insert(b: &mut Builder<'_>, range: &Expr, args: &[Expr], keyed: bool) -> Expansion {
    let names = variables(args, args.len() - 2, SIMPLE_NAME)?;
    let filter = (args.len() == 4).then(|| &args[2]);
    let mut inserted = vec![b.accu()];
    if keyed {
        inserted.push(b.ident(names.0));
    }
    inserted.push(args[args.len() - 1].clone());
    let step = b.call(MAP_INSERT, inserted);
    let step = filtered(b, filter, step);
    let init = b.node(Kind::Map { entries: Vec::new() });
    let body = Loop { init, condition: b.literal(Value::Bool(true)), step, result: b.accu() };
    comprehension(b, range, names, body)
}

fn transform_map(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    let Some(range) = target else { return Ok(None) };
    insert(b, range, args, true)
}

fn transform_map_entry(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    let Some(range) = target else { return Ok(None) };
    insert(b, range, args, false)
}

/// A loop over nothing, whose accumulator is a variable for its result.
fn bound(b: &mut Builder<'_>, name: &str, value: Expr, body: &Expr) -> Expr {
    let range = b.list(Vec::new());
    let condition = b.literal(Value::Bool(false));
    let step = b.ident(name);
    b.node(Kind::Comprehension(Box::new(Comprehension {
        range,
        var: "#unused".into(),
        var2: None,
        accu: name.to_owned(),
        init: value,
        condition,
        step,
        result: body.clone(),
    })))
}

fn is_namespace(target: Option<&Expr>, name: &str) -> bool {
    target.and_then(variable) == Some(name)
}

fn bind(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    if !is_namespace(target, "cel") {
        return Ok(None);
    }
    match variable(&args[0]) {
        Some(name) => Ok(Some(bound(b, name, args[1].clone(), &args[2]))),
        None => fail(&args[0], "cel.bind() variable names must be simple identifiers"),
    }
}

fn opt(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr], flat: bool) -> Expansion {
    let Some(target) = target else { return Ok(None) };
    let Some(name) = variable(&args[0]) else {
        let function = if flat { "optFlatMap" } else { "optMap" };
        return fail(&args[0], format!("{function}() variable name must be a simple identifier"));
    };
    let present = b.member("hasValue", target.clone(), Vec::new());
    let copy = b.copy(target);
    let value = b.member("value", copy, Vec::new());
    let mut mapped = bound(b, name, value, &args[1]);
    if !flat {
        mapped = b.call("optional.of", vec![mapped]);
    }
    let none = b.call("optional.none", Vec::new());
    Ok(Some(b.call(op::CONDITIONAL, vec![present, mapped, none])))
}

fn opt_map(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    opt(b, target, args, false)
}

fn opt_flat_map(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    opt(b, target, args, true)
}

fn sort_by(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    const INPUT: &str = "@__sortBy_input__";
    let Some(target) = target else { return Ok(None) };
    if matches!(target.kind, Kind::Literal(_) | Kind::Map { .. } | Kind::Struct { .. } | Kind::Unspecified) {
        let message = "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
        return fail(target, message);
    }
    let input = b.ident(INPUT);
    let Some(keys) = map(b, Some(&input), args)? else { return Ok(None) };
    let input = b.ident(INPUT);
    let sorted = b.member("@sortByAssociatedKeys", input, vec![keys]);
    Ok(Some(bound(b, INPUT, target.clone(), &sorted)))
}

fn may_be_number(arg: &Expr) -> bool {
    match &arg.kind {
        Kind::Literal(value) => matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_)),
        Kind::List { .. } | Kind::Map { .. } | Kind::Struct { .. } => false,
        _ => true,
    }
}

fn extreme(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr], name: &str, function: &str) -> Expansion {
    let Some(target) = target.filter(|t| is_namespace(Some(t), "math")) else { return Ok(None) };
    match args {
        [] => fail(target, format!("math.{name}() requires at least one argument")),
        [single] => {
            let numbers = matches!(&single.kind, Kind::List { elements }
                if !elements.is_empty() && elements.iter().all(|e| may_be_number(&e.value)));
            if numbers || may_be_number(single) {
                return Ok(Some(b.call(function, vec![single.clone()])));
            }
            fail(single, format!("math.{name}() invalid single argument value"))
        }
        _ => {
            if let Some(wrong) = args.iter().find(|arg| !may_be_number(arg)) {
                return fail(wrong, format!("math.{name}() simple literal arguments must be numeric"));
            }
            if args.len() == 2 {
                return Ok(Some(b.call(function, args.to_vec())));
            }
            let list = b.list(args.to_vec());
            Ok(Some(b.call(function, vec![list])))
        }
    }
}

fn least(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    extreme(b, target, args, "least", "math.@min")
}

fn greatest(b: &mut Builder<'_>, target: Option<&Expr>, args: &[Expr]) -> Expansion {
    extreme(b, target, args, "greatest", "math.@max")
}
