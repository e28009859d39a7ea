//! The language's extended functions on lists, and what builds maps in macros.

use std::cmp::Ordering;

use super::lists::COMPARABLE;
use super::{fail, mismatch};
use crate::cost::PER_CALL_LIMIT;
use crate::decls::{Function, Overload};
use crate::macros::MAP_INSERT;
use crate::ops;
use crate::types::Type;
use crate::value::{EvalError, List, Value, occurs};

type Result<T> = std::result::Result<T, EvalError>;

fn slice(args: &[Value]) -> Result<Value> {
    let [Value::List(list), Value::Int(start), Value::Int(end)] = args else { return mismatch() };
    let (Ok(from), Ok(to)) = (usize::try_from(*start), usize::try_from(*end)) else {
        return fail(format!("cannot slice({start}, {end}), negative indexes not supported"));
    };
    if from > to {
        return fail(format!("cannot slice({start}, {end}), start index must be less than or equal to end index"));
    }
    if list.len() < to {
        return fail(format!("cannot slice({start}, {end}), list is length {}", list.len()));
    }
    let items: Result<Vec<Value>> = (from..to).map(|i| list.get(i)).collect();
    Ok(Value::list(items?))
}

fn flatten(list: &List, depth: i64, into: &mut Vec<Value>) -> Result<()> {
    if depth < 0 {
        return fail("level must be non-negative");
    }
    for item in list.iter() {
        match item? {
            Value::List(inner) if depth > 0 => flatten(&inner, depth - 1, into)?,
            other => into.push(other),
        }
    }
    Ok(())
}

fn flattened(args: &[Value]) -> Result<Value> {
    let (list, depth) = match args {
        [Value::List(list)] => (list, 1),
        [Value::List(list), Value::Int(depth)] => (list, *depth),
        _ => return mismatch(),
    };
    let mut items = Vec::new();
    flatten(list, depth, &mut items)?;
    Ok(Value::list(items))
}

/// The elements of the first list in the order of their keys in the second one.
fn sort_by_keys(args: &[Value]) -> Result<Value> {
    let (list, keys) = match args {
        [Value::List(list)] => (list, list),
        [Value::List(list), Value::List(keys)] => (list, keys),
        _ => return mismatch(),
    };
    if list.len() != keys.len() {
        return fail(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} \
             elements respectively",
            list.len(),
            keys.len()
        ));
    }
    let mut pairs: Vec<(Value, Value)> = keys.to_vec()?.into_iter().zip(list.to_vec()?).collect();
    let Some((first, _)) = pairs.first() else { return Ok(args[0].clone()) };
    let comparable = COMPARABLE.iter().any(|(_, t)| *t == first.type_of());
    if !comparable {
        return fail("list elements must be comparable");
    }
    if pairs.iter().any(|(key, _)| key.type_of() != first.type_of()) {
        return fail("list elements must have the same type");
    }
    pairs.sort_by(|(a, _), (b, _)| ops::compare(a, b).unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, item)| item).collect()))
}

fn distinct(args: &[Value]) -> Result<Value> {
    let [Value::List(list)] = args else { return mismatch() };
    let mut unique: Vec<Value> = Vec::new();
    for item in list.iter() {
        let item = item?;
        if !occurs(&unique, &item)? {
            unique.push(item);
        }
    }
    Ok(Value::list(unique))
}

fn reverse(args: &[Value]) -> Result<Value> {
    let [Value::List(list)] = args else { return mismatch() };
    let mut items = list.to_vec()?;
    items.reverse();
    Ok(Value::list(items))
}

fn range(args: &[Value]) -> Result<Value> {
    match args {
        // Each element costs a unit, so a longer list exceeds what any evaluation may cost; it is not made first.
        [Value::Int(n)] if u64::try_from(*n).is_ok_and(|n| n > PER_CALL_LIMIT) => Err(EvalError::CostLimit),
        [Value::Int(n)] => Ok(Value::list((0..*n).map(Value::Int).collect())),
        _ => mismatch(),
    }
}

/// All functions on lists.
pub(super) fn functions() -> Vec<Function> {
    let list = || Type::list(Type::param("T"));
    let sort = COMPARABLE
        .iter()
        .map(|(_, t)| {
            let id = format!("list_{}_sort", t.name());
            Overload::member(&id, vec![Type::list(t.clone())], Type::list(t.clone()), sort_by_keys)
        })
        .collect();
    let sort_by = COMPARABLE
        .iter()
        .map(|(_, t)| {
            let id = format!("list_{}_sortByAssociatedKeys", t.name());
            Overload::member(&id, vec![list(), Type::list(t.clone())], list(), sort_by_keys)
        })
        .collect();
    let dynamic = || Type::list(Type::Dyn);
    vec![
        Function::new("slice", vec![Overload::member("list_slice", vec![list(), Type::Int, Type::Int], list(), slice)]),
        Function::new(
            "flatten",
            vec![
                Overload::member("list_flatten", vec![Type::list(list())], list(), flattened),
                Overload::member("list_flatten_int", vec![dynamic(), Type::Int], dynamic(), flattened),
            ],
        ),
        Function::new("sort", sort),
        Function::new("@sortByAssociatedKeys", sort_by),
        Function::new(
            "lists.range",
            vec![Overload::global("lists_range", vec![Type::Int], Type::list(Type::Int), range)],
        ),
        Function::new("reverse", vec![Overload::member("list_reverse", vec![list()], list(), reverse)]),
        Function::new("distinct", vec![Overload::member("list_distinct", vec![list()], list(), distinct)]),
    ]
}

/// What macros over two variables build maps with.
pub(super) fn map_insert() -> Vec<Function> {
    let (k, v) = (|| Type::param("K"), || Type::param("V"));
    let map = || Type::map(k(), v());
    vec![Function::new(
        MAP_INSERT,
        vec![
            Overload::global("@mapInsert_map_key_value", vec![map(), k(), v()], map(), |args| {
                ops::map_insert(args.to_vec())
            }),
            Overload::global("@mapInsert_map_map", vec![map(), map()], map(), |args| ops::map_insert(args.to_vec())),
        ],
    )]
}
