//! Lists as sets.

use super::mismatch;
use crate::decls::{Function, Overload};
use crate::types::Type;
use crate::value::{EvalError, List, Value};

type Result<T> = std::result::Result<T, EvalError>;

fn contains(list: &List, part: &List) -> Result<bool> {
    for item in part.iter() {
        if !list.contains(&item?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn intersects(a: &List, b: &List) -> Result<bool> {
    for item in a.iter() {
        if b.contains(&item?)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn equivalent(a: &List, b: &List) -> Result<bool> {
    Ok(contains(a, b)? && contains(b, a)?)
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    let list = || Type::list(Type::param("T"));
    let set = |name: &str, id: &str, test: fn(&List, &List) -> Result<bool>| {
        let overload = Overload::global(id, vec![list(), list()], Type::Bool, move |args| match args {
            [Value::List(a), Value::List(b)] => Ok(Value::Bool(test(a, b)?)),
            _ => mismatch(),
        });
        Function::new(name, vec![overload])
    };
    vec![
        set("sets.contains", "list_sets_contains_list", contains),
        set("sets.equivalent", "list_sets_equivalent_list", equivalent),
        set("sets.intersects", "list_sets_intersects_list", intersects),
    ]
}
