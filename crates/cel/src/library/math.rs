//! Mathematics.

use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::ops;
use crate::types::Type;
use crate::value::{EvalError, Value};

type Result = std::result::Result<Value, EvalError>;

/// The lesser, or with `greatest` the greater, of numbers of any kinds.
fn extreme(args: &[Value], greatest: bool) -> Result {
    let name = if greatest { "math.@max" } else { "math.@min" };
    let values = match args {
        [Value::List(list)] if list.is_empty() => return fail(format!("{name}(list) argument must not be empty")),
        [Value::List(list)] => list.to_vec()?,
        _ => args.to_vec(),
    };
    let mut best: Option<Value> = None;
    for value in values {
        if !matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_)) {
            return fail(format!("no such overload: {name}"));
        }
        best = Some(match best {
            None => value,
            Some(best) => {
                let order = ops::compare(&best, &value).map_err(|error| EvalError::new(format!("{error}: {name}")))?;
                if if greatest { order.is_lt() } else { order.is_gt() } { value } else { best }
            }
        });
    }
    best.map_or_else(mismatch, Ok)
}

fn extremes(name: &str, prefix: &str, greatest: bool) -> Function {
    let numbers = [("double", Type::Double), ("int", Type::Int), ("uint", Type::Uint)];
    let mut overloads = Vec::new();
    let mut add = |id: String, params: Vec<Type>, result: Type| {
        overloads.push(Overload::global(&id, params, result, move |args| extreme(args, greatest)));
    };
    for (a, t) in &numbers {
        add(format!("{prefix}_{a}"), vec![t.clone()], t.clone());
        add(format!("{prefix}_list_{a}"), vec![Type::list(t.clone())], t.clone());
        for (b, u) in &numbers {
            let result = if a == b { t.clone() } else { Type::Dyn };
            add(format!("{prefix}_{a}_{b}"), vec![t.clone(), u.clone()], result);
        }
    }
    Function::new(name, overloads)
}

fn on_double(name: &str, id: &str, of: fn(f64) -> f64) -> Function {
    let overload = Overload::global(id, vec![Type::Double], Type::Double, move |args| match args {
        [Value::Double(d)] => Ok(Value::Double(of(*d))),
        _ => mismatch(),
    });
    Function::new(name, vec![overload])
}

fn test_double(name: &str, id: &str, of: fn(f64) -> bool) -> Function {
    let overload = Overload::global(id, vec![Type::Double], Type::Bool, move |args| match args {
        [Value::Double(d)] => Ok(Value::Bool(of(*d))),
        _ => mismatch(),
    });
    Function::new(name, vec![overload])
}

fn abs(args: &[Value]) -> Result {
    match args {
        [Value::Double(d)] => Ok(Value::Double(d.abs())),
        [Value::Int(i)] => i.checked_abs().map_or_else(|| fail("integer overflow"), |i| Ok(Value::Int(i))),
        [Value::Uint(u)] => Ok(Value::Uint(*u)),
        _ => mismatch(),
    }
}

fn sign(args: &[Value]) -> Result {
    match args {
        [Value::Double(d)] if d.is_nan() => Ok(Value::Double(*d)),
        [Value::Double(d)] => Ok(Value::Double(if *d > 0.0 {
            1.0
        } else if *d < 0.0 {
            -1.0
        } else {
            0.0
        })),
        [Value::Int(i)] => Ok(Value::Int(i.signum())),
        [Value::Uint(u)] => Ok(Value::Uint(u64::from(*u > 0))),
        _ => mismatch(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "roots are floating point numbers")]
fn sqrt(args: &[Value]) -> Result {
    match args {
        [Value::Double(d)] => Ok(Value::Double(d.sqrt())),
        [Value::Int(i)] => Ok(Value::Double((*i as f64).sqrt())),
        [Value::Uint(u)] => Ok(Value::Double((*u as f64).sqrt())),
        _ => fail("no such overload: sqrt"),
    }
}

/// An operation on the bits of two numbers of one kind.
fn bits(name: &str, id: &str, of: fn(u64, u64) -> u64) -> Function {
    use Type::{Int, Uint};
    let operate = move |args: &[Value]| match args {
        [Value::Int(a), Value::Int(b)] => Ok(Value::Int(of(a.cast_unsigned(), b.cast_unsigned()).cast_signed())),
        [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(of(*a, *b))),
        _ => mismatch(),
    };
    Function::new(
        name,
        vec![
            Overload::global(&format!("{id}_int_int"), vec![Int, Int], Int, operate),
            Overload::global(&format!("{id}_uint_uint"), vec![Uint, Uint], Uint, operate),
        ],
    )
}

fn bit_not(args: &[Value]) -> Result {
    match args {
        [Value::Int(i)] => Ok(Value::Int(!i)),
        [Value::Uint(u)] => Ok(Value::Uint(!u)),
        _ => mismatch(),
    }
}

fn shift(name: &str, id: &str, of: fn(u64, u32) -> u64) -> Function {
    use Type::{Int, Uint};
    let shown = name.to_owned();
    let operate = std::sync::Arc::new(move |args: &[Value]| {
        let ([_, Value::Int(by)], Some(value)) = (args, args.first()) else { return mismatch() };
        let Ok(by) = u32::try_from(*by) else {
            return if *by < 0 { fail(format!("{shown}() negative offset: {by}")) } else { Ok(zero(value)) };
        };
        // Shifting by the width or more leaves nothing.
        let of = |bits: u64| if by >= u64::BITS { 0 } else { of(bits, by) };
        match value {
            Value::Int(i) => Ok(Value::Int(of(i.cast_unsigned()).cast_signed())),
            Value::Uint(u) => Ok(Value::Uint(of(*u))),
            _ => mismatch(),
        }
    });
    let (first, second) = (operate.clone(), operate);
    Function::new(
        name,
        vec![
            Overload::global(&format!("{id}_int_int"), vec![Int, Int], Int, move |args| first(args)),
            Overload::global(&format!("{id}_uint_int"), vec![Uint, Int], Uint, move |args| second(args)),
        ],
    )
}

fn zero(of: &Value) -> Value {
    if matches!(of, Value::Uint(_)) { Value::Uint(0) } else { Value::Int(0) }
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    use Type::{Double, Int, Uint};
    let three = |name: &str, id: &str, of: fn(&[Value]) -> Result| {
        let overload = |kind: &str, t: Type| Overload::global(&format!("{id}_{kind}"), vec![t.clone()], t, of);
        Function::new(name, vec![overload("double", Double), overload("int", Int), overload("uint", Uint)])
    };
    let root = |kind: &str, t: Type| Overload::global(&format!("math_sqrt_{kind}"), vec![t], Double, sqrt);
    vec![
        extremes("math.@min", "math_@min", false),
        extremes("math.@max", "math_@max", true),
        on_double("math.ceil", "math_ceil_double", f64::ceil),
        on_double("math.floor", "math_floor_double", f64::floor),
        on_double("math.round", "math_round_double", f64::round),
        on_double("math.trunc", "math_trunc_double", f64::trunc),
        test_double("math.isInf", "math_isInf_double", f64::is_infinite),
        test_double("math.isNaN", "math_isNaN_double", f64::is_nan),
        test_double("math.isFinite", "math_isFinite_double", f64::is_finite),
        three("math.abs", "math_abs", abs),
        three("math.sign", "math_sign", sign),
        bits("math.bitAnd", "math_bitAnd", |a, b| a & b),
        bits("math.bitOr", "math_bitOr", |a, b| a | b),
        bits("math.bitXor", "math_bitXor", |a, b| a ^ b),
        Function::new(
            "math.bitNot",
            vec![
                Overload::global("math_bitNot_int_int", vec![Int], Int, bit_not),
                Overload::global("math_bitNot_uint_uint", vec![Uint], Uint, bit_not),
            ],
        ),
        shift("math.bitShiftLeft", "math_bitShiftLeft", |bits, by| bits << by),
        shift("math.bitShiftRight", "math_bitShiftRight", |bits, by| bits >> by),
        Function::new("math.sqrt", vec![root("double", Double), root("int", Int), root("uint", Uint)]),
    ]
}
