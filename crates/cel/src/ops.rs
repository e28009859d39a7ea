//! Operators on values.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::value::{EvalError, Key, List, ListKind, Map, Value, compare_numbers, lossless_int, occurs, same_keys};

type Result<T> = std::result::Result<T, EvalError>;

fn int_overflow() -> EvalError {
    EvalError::new("integer overflow")
}

fn uint_overflow() -> EvalError {
    EvalError::new("unsigned integer overflow")
}

/// `a + b`. The arguments are taken, so that a list that nobody else holds grows in place.
pub(crate) fn add(mut args: Vec<Value>) -> Result<Value> {
    let (Some(b), Some(a)) = (args.pop(), args.pop()) else { return Err(EvalError::no_such_overload()) };
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_add(b).ok_or_else(uint_overflow)?),
        (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
        (Value::String(a), Value::String(b)) => Value::from([&*a, &*b].concat()),
        (Value::Bytes(a), Value::Bytes(b)) => Value::Bytes([&*a, &*b].concat().into()),
        (Value::Duration(a), Value::Duration(b)) => Value::Duration(a.plus(b)?),
        (Value::Duration(a), Value::Timestamp(b)) => Value::Timestamp(b.plus(a)?),
        (Value::Timestamp(a), Value::Duration(b)) => Value::Timestamp(a.plus(b)?),
        (Value::List(a), Value::List(b)) => Value::List(concat(a, &b)?),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn concat(a: List, b: &List) -> Result<List> {
    let kind = a.kind();
    let mut items = match a {
        List::Items(items) => items,
        List::View(view) => Arc::new(List::View(view).to_vec()?),
    };
    let own = Arc::make_mut(&mut items);
    match kind {
        ListKind::Atomic => {
            for item in b.iter() {
                own.push(item?);
            }
        }
        // What is there already stays where it is.
        ListKind::Set => {
            for item in b.iter() {
                let item = item?;
                if !occurs(own, &item)? {
                    own.push(item);
                }
            }
        }
        // Entries of the right side replace those with the same keys.
        ListKind::Map(keys) => {
            for item in b.iter() {
                let item = item?;
                let mut place = None;
                for (i, existing) in own.iter().enumerate() {
                    if same_keys(existing, &item, &keys)? {
                        place = Some(i);
                        break;
                    }
                }
                match place {
                    Some(i) => own[i] = item,
                    None => own.push(item),
                }
            }
        }
    }
    Ok(List::Items(items))
}

/// `a - b`.
pub(crate) fn subtract(args: &[Value]) -> Result<Value> {
    Ok(match args {
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_sub(*b).ok_or_else(int_overflow)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a.checked_sub(*b).ok_or_else(uint_overflow)?),
        [Value::Double(a), Value::Double(b)] => Value::Double(a - b),
        [Value::Duration(a), Value::Duration(b)] => Value::Duration(a.minus(*b)?),
        [Value::Timestamp(a), Value::Duration(b)] => Value::Timestamp(a.minus(*b)?),
        [Value::Timestamp(a), Value::Timestamp(b)] => Value::Duration(a.since(*b)?),
        _ => return Err(EvalError::no_such_overload()),
    })
}

/// `a * b`.
pub(crate) fn multiply(args: &[Value]) -> Result<Value> {
    Ok(match args {
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_mul(*b).ok_or_else(int_overflow)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a.checked_mul(*b).ok_or_else(uint_overflow)?),
        [Value::Double(a), Value::Double(b)] => Value::Double(a * b),
        _ => return Err(EvalError::no_such_overload()),
    })
}

/// `a / b`.
pub(crate) fn divide(args: &[Value]) -> Result<Value> {
    Ok(match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(EvalError::new("division by zero"));
        }
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_div(*b).ok_or_else(int_overflow)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a / b),
        [Value::Double(a), Value::Double(b)] => Value::Double(a / b),
        _ => return Err(EvalError::no_such_overload()),
    })
}

/// `a % b`.
pub(crate) fn modulo(args: &[Value]) -> Result<Value> {
    Ok(match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(EvalError::new("modulus by zero"));
        }
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_rem(*b).ok_or_else(int_overflow)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a % b),
        _ => return Err(EvalError::no_such_overload()),
    })
}

/// `-a`.
pub(crate) fn negate(args: &[Value]) -> Result<Value> {
    Ok(match args {
        [Value::Int(a)] => Value::Int(a.checked_neg().ok_or_else(int_overflow)?),
        [Value::Double(a)] => Value::Double(-a),
        [Value::Duration(a)] => Value::Duration(a.negated()?),
        _ => return Err(EvalError::no_such_overload()),
    })
}

/// `!a`.
pub(crate) fn not(args: &[Value]) -> Result<Value> {
    match args {
        [Value::Bool(b)] => Ok(Value::Bool(!b)),
        _ => Err(EvalError::no_such_overload()),
    }
}

/// The order of two values of one type, or of two numbers.
pub(crate) fn compare(a: &Value, b: &Value) -> Result<Ordering> {
    Ok(match (a, b) {
        (Value::Int(_) | Value::Uint(_) | Value::Double(_), Value::Int(_) | Value::Uint(_) | Value::Double(_)) => {
            compare_numbers(a, b).ok_or_else(|| EvalError::new("NaN values cannot be ordered"))?
        }
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
        (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
        _ => return Err(EvalError::no_such_overload()),
    })
}

/// A comparison that holds for the orders `holds` accepts.
pub(crate) fn ordered(args: &[Value], holds: fn(Ordering) -> bool) -> Result<Value> {
    match args {
        [a, b] => Ok(Value::Bool(holds(compare(a, b)?))),
        _ => Err(EvalError::no_such_overload()),
    }
}

/// `a in b`.
pub(crate) fn contains(args: &[Value]) -> Result<Value> {
    match args {
        [value, Value::List(list)] => Ok(Value::Bool(list.contains(value)?)),
        [key, Value::Map(map)] => Ok(Value::Bool(map.contains(key)?)),
        _ => Err(EvalError::no_such_overload()),
    }
}

/// `size(a)`.
pub(crate) fn size(args: &[Value]) -> Result<Value> {
    let size = match args {
        [Value::String(s)] => s.chars().count(),
        [Value::Bytes(b)] => b.len(),
        [Value::List(list)] => list.len(),
        [Value::Map(map)] => map.len(),
        [Value::Object(object)] => {
            usize::try_from(object.size().ok_or_else(EvalError::no_such_overload)?).unwrap_or(usize::MAX)
        }
        _ => return Err(EvalError::no_such_overload()),
    };
    Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX)))
}

/// What a selection finds.
pub(crate) enum Found {
    Value(Value),
    /// Nothing, and how that is worded when it must be there.
    Missing(String),
}

/// `object[key]` and `object.key`.
pub(crate) fn select(object: &Value, key: &Value) -> Result<Found> {
    let missing = || Found::Missing(format!("no such key: {key}"));
    Ok(match object {
        Value::Map(map) => map.find(key)?.map_or_else(missing, Found::Value),
        Value::List(list) => {
            let index = list_index(key)?;
            match usize::try_from(index).ok().filter(|i| *i < list.len()) {
                Some(index) => Found::Value(list.get(index)?),
                None => Found::Missing(format!("index out of bounds: {key}")),
            }
        }
        Value::Object(inner) => match key {
            Value::String(field) => match inner.get(field)? {
                Some(value) => Found::Value(value),
                None => Found::Missing(format!("no such field '{field}'")),
            },
            _ => return Err(EvalError::no_such_overload()),
        },
        _ => missing(),
    })
}

fn list_index(key: &Value) -> Result<i64> {
    let unsupported = || EvalError::new(format!("unsupported index value {key} in list"));
    match key {
        Value::Int(i) => Ok(*i),
        Value::Double(d) => lossless_int(*d).ok_or_else(unsupported),
        Value::Uint(u) => i64::try_from(*u).map_err(|_| unsupported()),
        _ => Err(EvalError::new(format!("unsupported index type '{}' in list", key.type_name()))),
    }
}

/// Whether `object.key` is there.
pub(crate) fn has(object: &Value, key: &Value) -> Result<bool> {
    match object {
        Value::Map(map) => map.contains(key),
        _ => Ok(matches!(select(object, key)?, Found::Value(_))),
    }
}

/// Adds an entry, or all entries of a map, to a map. Keys must be new.
pub(crate) fn map_insert(args: Vec<Value>) -> Result<Value> {
    let mut args = args.into_iter();
    let Some(Value::Map(map)) = args.next() else { return Err(EvalError::no_such_overload()) };
    let mut entries = match map {
        Map::Entries(entries) => entries,
        Map::View(view) => {
            let map = Map::View(view);
            let mut copied = std::collections::BTreeMap::new();
            for key in map.keys() {
                if let Some(value) = map.get(&key)? {
                    copied.insert(key, value);
                }
            }
            Arc::new(copied)
        }
    };
    let own = Arc::make_mut(&mut entries);
    let mut insert = |key: Key, value: Value| {
        if own.contains_key(&key) {
            return Err(EvalError::new(format!("insert failed: key {} already exists", key.to_value())));
        }
        own.insert(key, value);
        Ok(())
    };
    match (args.next(), args.next()) {
        (Some(key), Some(value)) => {
            let key = Key::from_value(&key)
                .ok_or_else(|| EvalError::new(format!("unsupported key type: {}", key.type_name())))?;
            insert(key, value)?;
        }
        (Some(Value::Map(more)), None) => {
            for key in more.keys() {
                if let Some(value) = more.get(&key)? {
                    insert(key, value)?;
                }
            }
        }
        _ => return Err(EvalError::no_such_overload()),
    }
    Ok(Value::Map(Map::Entries(entries)))
}
