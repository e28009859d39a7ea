//! Kubernetes' functions on regular expressions.

use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::types::Type;
use crate::value::{EvalError, Value};

type Result<T> = std::result::Result<T, EvalError>;

fn compiled(pattern: &str) -> Result<std::sync::Arc<regex::Regex>> {
    gantry_api::meta::regex::compile(pattern).or_else(|error| fail(format!("Illegal regex: {error}")))
}

fn find(args: &[Value]) -> Result<Value> {
    let [Value::String(text), Value::String(pattern)] = args else { return mismatch() };
    let found = compiled(pattern)?;
    Ok(Value::from(found.find(text).map_or("", |m| m.as_str())))
}

fn find_all(args: &[Value]) -> Result<Value> {
    let (text, pattern, limit) = match args {
        [Value::String(text), Value::String(pattern)] => (text, pattern, -1),
        [Value::String(text), Value::String(pattern), Value::Int(limit)] => (text, pattern, *limit),
        _ => return mismatch(),
    };
    // A negative number is no limit.
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let pattern = compiled(pattern)?;
    Ok(Value::strings(pattern.find_iter(text).take(limit).map(|m| m.as_str())))
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    use Type::{Int, String};
    let list = || Type::list(String);
    vec![
        Function::new("find", vec![Overload::member("string_find_string", vec![String, String], String, find)]),
        Function::new(
            "findAll",
            vec![
                Overload::member("string_find_all_string", vec![String, String], list(), find_all),
                Overload::member("string_find_all_string_int", vec![String, String, Int], list(), find_all),
            ],
        ),
    ]
}
