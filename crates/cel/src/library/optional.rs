//! Optional values.

use super::{fail, mismatch};
use crate::ast::op;
use crate::decls::{Function, Overload};
use crate::types::Type;
use crate::value::{EvalError, Value};

fn planned(_: &[Value]) -> Result<Value, EvalError> {
    mismatch()
}

/// The list without the optionals that are none.
fn unwrap(args: &[Value]) -> Result<Value, EvalError> {
    let [Value::List(list)] = args else { return mismatch() };
    let mut values = Vec::new();
    for item in list.iter() {
        match item? {
            Value::Optional(inner) => values.extend(inner.map(|inner| (*inner).clone())),
            other => return fail(format!("value {other} is not optional")),
        }
    }
    Ok(Value::list(values))
}

/// The element that `pick` chooses by the length of the list.
fn end(args: &[Value], pick: fn(usize) -> usize) -> Result<Value, EvalError> {
    match args {
        [Value::List(list)] if list.is_empty() => Ok(Value::Optional(None)),
        [Value::List(list)] => Ok(Value::some(list.get(pick(list.len()))?)),
        _ => mismatch(),
    }
}

/// All functions of optional values.
pub(crate) fn functions() -> Vec<Function> {
    let (k, v) = (|| Type::param("K"), || Type::param("V"));
    let optional = || Type::optional(v());
    let (list, map) = (|| Type::list(v()), || Type::map(k(), v()));
    let optionals = || Type::list(optional());
    let opt_index = vec![
        Overload::declared("list_optindex_optional_int", false, vec![list(), Type::Int], optional()),
        Overload::declared(
            "optional_list_optindex_optional_int",
            false,
            vec![Type::optional(list()), Type::Int],
            optional(),
        ),
        Overload::declared("map_optindex_optional_value", false, vec![map(), k()], optional()),
        Overload::declared("optional_map_optindex_optional_value", false, vec![Type::optional(map()), k()], optional()),
    ];
    let index = vec![
        Overload::declared("optional_list_index_int", false, vec![Type::optional(list()), Type::Int], optional()),
        Overload::declared("optional_map_index_value", false, vec![Type::optional(map()), k()], optional()),
    ];
    vec![
        Function::new(
            "optional.of",
            vec![Overload::global("optional_of", vec![v()], optional(), |args| Ok(Value::some(args[0].clone())))],
        ),
        Function::new(
            "optional.ofNonZeroValue",
            vec![Overload::global("optional_ofNonZeroValue", vec![v()], optional(), |args| {
                Ok(if args[0].is_zero() { Value::Optional(None) } else { Value::some(args[0].clone()) })
            })],
        ),
        Function::new(
            "optional.none",
            vec![Overload::global("optional_none", Vec::new(), optional(), |_| Ok(Value::Optional(None)))],
        ),
        Function::new(
            "value",
            vec![Overload::member("optional_value", vec![optional()], v(), |args| match args {
                [Value::Optional(Some(inner))] => Ok((**inner).clone()),
                [Value::Optional(None)] => fail("optional.none() dereference"),
                _ => mismatch(),
            })],
        ),
        Function::new(
            "hasValue",
            vec![Overload::member("optional_hasValue", vec![optional()], Type::Bool, |args| match args {
                [Value::Optional(inner)] => Ok(Value::Bool(inner.is_some())),
                _ => mismatch(),
            })],
        ),
        Function::new(
            "or",
            vec![Overload::declared("optional_or_optional", true, vec![optional(), optional()], optional())],
        ),
        Function::new("orValue", vec![Overload::declared("optional_orValue_value", true, vec![optional(), v()], v())]),
        Function::single(
            op::OPT_SELECT,
            vec![Overload::declared("select_optional_field", false, vec![Type::Dyn, Type::String], optional())],
            planned,
        ),
        Function::single(op::OPT_INDEX, opt_index, planned),
        Function::single(op::INDEX, index, planned),
        Function::new(
            "last",
            vec![Overload::member("list_last", vec![list()], optional(), |args| end(args, |length| length - 1))],
        ),
        Function::new("first", vec![Overload::member("list_first", vec![list()], optional(), |args| end(args, |_| 0))]),
        Function::new("optional.unwrap", vec![Overload::global("optional_unwrap", vec![optionals()], list(), unwrap)]),
        Function::new("unwrapOpt", vec![Overload::member("optional_unwrapOpt", vec![optionals()], list(), unwrap)]),
    ]
}
