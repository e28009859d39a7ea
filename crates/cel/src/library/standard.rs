//! The standard library: operators, sizes, conversions, strings, times.

use std::cmp::Ordering;

use super::{convert, fail, mismatch, time};
use crate::ast::op;
use crate::decls::{Func, Function, Overload};
use crate::ops;
use crate::types::Type;
use crate::value::{EvalError, Value};

type Result<T> = std::result::Result<T, EvalError>;

fn a() -> Type {
    Type::param("A")
}

fn list_a() -> Type {
    Type::list(a())
}

fn map_ab() -> Type {
    Type::map(a(), Type::param("B"))
}

fn global(id: &str, params: &[Type], result: Type) -> Overload {
    Overload::declared(id, false, params.to_vec(), result)
}

fn member(id: &str, params: &[Type], result: Type) -> Overload {
    Overload::declared(id, true, params.to_vec(), result)
}

/// What stands for operators that plans evaluate themselves.
fn planned(_: &[Value]) -> Result<Value> {
    mismatch()
}

/// All functions of the standard library.
pub(crate) fn standard() -> Vec<Function> {
    let mut functions = operators();
    functions.extend(comparisons());
    functions.extend(collections());
    functions.extend(convert::functions());
    functions.extend(strings());
    functions.extend(time::functions());
    functions
}

fn operators() -> Vec<Function> {
    use Type::{Bool, Bytes, Double, Duration, Int, String, Timestamp, Uint};
    let same = |id: &str, t: Type| global(id, &[t.clone(), t.clone()], t);
    let add = vec![
        same("add_bytes", Bytes),
        same("add_double", Double),
        same("add_duration_duration", Duration),
        global("add_duration_timestamp", &[Duration, Timestamp], Timestamp),
        global("add_timestamp_duration", &[Timestamp, Duration], Timestamp),
        same("add_int64", Int),
        same("add_list", list_a()),
        same("add_string", String),
        same("add_uint64", Uint),
    ];
    let subtract = vec![
        same("subtract_double", Double),
        same("subtract_duration_duration", Duration),
        same("subtract_int64", Int),
        global("subtract_timestamp_duration", &[Timestamp, Duration], Timestamp),
        global("subtract_timestamp_timestamp", &[Timestamp, Timestamp], Duration),
        same("subtract_uint64", Uint),
    ];
    let numbers = |verb: &str| {
        vec![
            same(&format!("{verb}_double"), Double),
            same(&format!("{verb}_int64"), Int),
            same(&format!("{verb}_uint64"), Uint),
        ]
    };
    vec![
        Function::single(op::CONDITIONAL, vec![global("conditional", &[Bool, a(), a()], a())], planned),
        Function::single(op::AND, vec![global("logical_and", &[Bool, Bool], Bool)], planned),
        Function::single(op::OR, vec![global("logical_or", &[Bool, Bool], Bool)], planned),
        Function::single(op::NOT, vec![global("logical_not", &[Bool], Bool)], ops::not),
        Function::single(op::NOT_STRICTLY_FALSE, vec![global("not_strictly_false", &[Bool], Bool)], planned),
        Function::single(op::EQUALS, vec![global("equals", &[a(), a()], Bool)], planned),
        Function::single(op::NOT_EQUALS, vec![global("not_equals", &[a(), a()], Bool)], planned),
        Function::single(op::ADD, add, |args| ops::add(args.to_vec())),
        Function::single(op::SUBTRACT, subtract, ops::subtract),
        Function::single(op::MULTIPLY, numbers("multiply"), ops::multiply),
        Function::single(op::DIVIDE, numbers("divide"), ops::divide),
        Function::single(op::MODULO, vec![same("modulo_int64", Int), same("modulo_uint64", Uint)], ops::modulo),
        Function::single(
            op::NEGATE,
            vec![global("negate_double", &[Double], Double), global("negate_int64", &[Int], Int)],
            ops::negate,
        ),
    ]
}

fn comparisons() -> Vec<Function> {
    use Type::{Bool, Bytes, Double, Duration, Int, String, Timestamp, Uint};
    let overloads = |verb: &str| -> Vec<Overload> {
        [
            ("bool", Bool, Bool),
            ("int64", Int, Int),
            ("int64_double", Int, Double),
            ("int64_uint64", Int, Uint),
            ("uint64", Uint, Uint),
            ("uint64_double", Uint, Double),
            ("uint64_int64", Uint, Int),
            ("double", Double, Double),
            ("double_int64", Double, Int),
            ("double_uint64", Double, Uint),
            ("string", String, String),
            ("bytes", Bytes, Bytes),
            ("timestamp", Timestamp, Timestamp),
            ("duration", Duration, Duration),
        ]
        .into_iter()
        .map(|(kinds, left, right)| global(&format!("{verb}_{kinds}"), &[left, right], Bool))
        .collect()
    };
    let comparison = |name: &str, verb: &str, holds: fn(Ordering) -> bool| {
        Function::single(name, overloads(verb), move |args| ops::ordered(args, holds))
    };
    vec![
        comparison(op::LESS, "less", Ordering::is_lt),
        comparison(op::LESS_EQUALS, "less_equals", Ordering::is_le),
        comparison(op::GREATER, "greater", Ordering::is_gt),
        comparison(op::GREATER_EQUALS, "greater_equals", Ordering::is_ge),
    ]
}

fn collections() -> Vec<Function> {
    let b = || Type::param("B");
    let mut sizes = Vec::new();
    for (name, t) in [("bytes", Type::Bytes), ("list", list_a()), ("map", map_ab()), ("string", Type::String)] {
        sizes.push(global(&format!("size_{name}"), std::slice::from_ref(&t), Type::Int));
        sizes.push(member(&format!("{name}_size"), &[t], Type::Int));
    }
    vec![
        Function::single(
            op::INDEX,
            vec![global("index_list", &[list_a(), Type::Int], a()), global("index_map", &[map_ab(), a()], b())],
            planned,
        ),
        Function::single(
            op::IN,
            vec![global("in_list", &[a(), list_a()], Type::Bool), global("in_map", &[a(), map_ab()], Type::Bool)],
            ops::contains,
        ),
        Function::single("size", sizes, ops::size),
    ]
}

fn strings() -> Vec<Function> {
    let pair = [Type::String, Type::String];
    let on_text = |test: fn(&str, &str) -> bool| -> Func {
        std::sync::Arc::new(move |args: &[Value]| match args {
            [Value::String(a), Value::String(b)] => Ok(Value::Bool(test(a, b))),
            _ => mismatch(),
        })
    };
    let text = |name: &str, id: &str, test: fn(&str, &str) -> bool| {
        let mut function = Function::new(name, vec![member(id, &pair, Type::Bool)]);
        function.func = Some(on_text(test));
        function
    };
    vec![
        text("contains", "contains_string", |a, b| a.contains(b)),
        text("startsWith", "starts_with_string", |a, b| a.starts_with(b)),
        text("endsWith", "ends_with_string", |a, b| a.ends_with(b)),
        Function::single(
            "matches",
            vec![global("matches", &pair, Type::Bool), member("matches_string", &pair, Type::Bool)],
            |args| match args {
                [Value::String(text), Value::String(pattern)] => {
                    let compiled = gantry_api::meta::regex::compile(pattern).map_err(EvalError::new)?;
                    Ok(Value::Bool(compiled.is_match(text)))
                }
                _ => fail("no such overload"),
            },
        ),
    ]
}
