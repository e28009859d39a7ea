//! Kubernetes' functions on lists.

use std::cmp::Ordering;

use super::{fail, int, mismatch};
use crate::decls::{Function, Overload};
use crate::ops;
use crate::time::Duration;
use crate::types::Type;
use crate::value::{EvalError, Value};

type Result = std::result::Result<Value, EvalError>;

/// Types with an order, by the names their overloads have.
pub(super) const COMPARABLE: [(&str, Type); 8] = [
    ("int", Type::Int),
    ("uint", Type::Uint),
    ("double", Type::Double),
    ("bool", Type::Bool),
    ("duration", Type::Duration),
    ("timestamp", Type::Timestamp),
    ("string", Type::String),
    ("bytes", Type::Bytes),
];

fn is_sorted(args: &[Value]) -> Result {
    let [Value::List(list)] = args else { return mismatch() };
    let items = list.to_vec()?;
    for pair in items.windows(2) {
        if ops::compare(&pair[0], &pair[1])?.is_gt() {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum(args: &[Value], zero: &Value) -> Result {
    let [Value::List(list)] = args else { return mismatch() };
    let mut total = zero.clone();
    for item in list.iter() {
        total = ops::add(vec![total, item?])?;
    }
    Ok(total)
}

/// The element before which no other one goes in an order.
fn extreme(args: &[Value], name: &str, replaces: Ordering) -> Result {
    let [Value::List(list)] = args else { return mismatch() };
    let mut best: Option<Value> = None;
    for item in list.iter() {
        let item = item?;
        let better = match &best {
            None => true,
            Some(best) => ops::compare(&item, best)? == replaces,
        };
        if better {
            best = Some(item);
        }
    }
    best.map_or_else(|| fail(format!("{name} called on empty list")), Ok)
}

fn position(args: &[Value], last: bool) -> Result {
    let [Value::List(list), wanted] = args else { return mismatch() };
    let mut found = Value::Int(-1);
    for (i, item) in list.iter().enumerate() {
        if item?.equals(wanted)? {
            found = int(i);
            if !last {
                break;
            }
        }
    }
    Ok(found)
}

fn includes(args: &[Value]) -> Result {
    match args {
        [Value::List(list), wanted] => Ok(Value::Bool(list.contains(wanted)?)),
        [value, wanted] => Ok(Value::Bool(value.equals(wanted)?)),
        _ => mismatch(),
    }
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    let a = || Type::param("A");
    let templated = |make: &dyn Fn(&str, &Type) -> Overload| -> Vec<Overload> {
        COMPARABLE.iter().map(|(name, t)| make(name, t)).collect()
    };
    let zeros = [
        ("int", Value::Int(0)),
        ("uint", Value::Uint(0)),
        ("double", Value::Double(0.0)),
        ("duration", Value::Duration(Duration::from_nanos(0))),
    ];
    let sums = zeros
        .into_iter()
        .map(|(name, zero)| {
            let t = zero.type_of();
            Overload::member(&format!("list_{name}_sum_{name}"), vec![Type::list(t.clone())], t, move |args| {
                sum(args, &zero)
            })
        })
        .collect();
    vec![
        Function::new(
            "isSorted",
            templated(&|name, t| {
                Overload::member(
                    &format!("list_{name}_is_sorted_bool"),
                    vec![Type::list(t.clone())],
                    Type::Bool,
                    is_sorted,
                )
            }),
        ),
        Function::new("sum", sums),
        Function::new(
            "max",
            templated(&|name, t| {
                Overload::member(&format!("list_{name}_max_{name}"), vec![Type::list(t.clone())], t.clone(), |args| {
                    extreme(args, "max", Ordering::Greater)
                })
            }),
        ),
        Function::new(
            "min",
            templated(&|name, t| {
                Overload::member(&format!("list_{name}_min_{name}"), vec![Type::list(t.clone())], t.clone(), |args| {
                    extreme(args, "min", Ordering::Less)
                })
            }),
        ),
        Function::new(
            "indexOf",
            vec![Overload::member("list_a_index_of_int", vec![Type::list(a()), a()], Type::Int, |args| {
                position(args, false)
            })],
        ),
        Function::new(
            "lastIndexOf",
            vec![Overload::member("list_a_last_index_of_int", vec![Type::list(a()), a()], Type::Int, |args| {
                position(args, true)
            })],
        ),
        Function::new(
            "includes",
            vec![Overload::member("list_includes_dyn_dyn", vec![Type::Dyn, Type::Dyn], Type::Bool, includes)],
        ),
    ]
}
