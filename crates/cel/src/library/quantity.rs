//! Kubernetes' quantities.

use std::any::Any;

use gantry_api::meta::quantity::{Amount, Format};

use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::types::Type;
use crate::value::{EvalError, Object, Value};

type Result = std::result::Result<Value, EvalError>;

const NAME: &str = "kubernetes.Quantity";

/// A quantity. Besides its amount it keeps the power of ten in which the text counted: only what counts in whole units
/// is an integer, so `1000m` is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quantity {
    amount: Amount,
    scale: i32,
}

impl Object for Quantity {
    fn type_name(&self) -> &str {
        NAME
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Quantity>().is_some_and(|other| self.amount == other.amount)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Quantity {
    fn parse(text: &str) -> std::result::Result<Quantity, String> {
        let amount = Amount::parse(text)?;
        let unsigned = text.trim_start_matches(['+', '-']);
        let suffix_at = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (digits, suffix) = unsigned.split_at(suffix_at);
        let fraction = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len());
        let power = match suffix {
            "n" => -9,
            "u" => -6,
            "m" => -3,
            _ => suffix.strip_prefix(['e', 'E']).and_then(|exponent| exponent.parse().ok()).unwrap_or(0),
        };
        Ok(Quantity { amount, scale: power - i32::try_from(fraction).unwrap_or(i32::MAX) })
    }

    fn of_units(units: i64) -> Quantity {
        Quantity { amount: Amount::from_units(units, Format::DecimalExponent), scale: 0 }
    }

    fn as_integer(self) -> Option<i64> {
        let exact = self.scale >= 0 && self.amount.is_integer();
        let units = self.amount.nano_value() / 1_000_000_000;
        i64::try_from(units).ok().filter(|_| exact)
    }

    fn combined(self, other: Quantity, amount: Amount) -> Value {
        let scale = match (self.amount.is_zero(), other.amount.is_zero()) {
            (_, true) => self.scale,
            (true, false) => other.scale,
            (false, false) => self.scale.min(other.scale),
        };
        Value::object(Quantity { amount, scale })
    }
}

fn one(args: &[Value]) -> std::result::Result<Quantity, EvalError> {
    args.first().and_then(Value::downcast::<Quantity>).copied().ok_or_else(EvalError::no_such_overload)
}

/// The receiver and the argument, which may be a whole number.
fn two(args: &[Value]) -> std::result::Result<(Quantity, Quantity), EvalError> {
    let other = match args {
        [_, Value::Int(units)] => Quantity::of_units(*units),
        [_, other] => *other.downcast::<Quantity>().ok_or_else(EvalError::no_such_overload)?,
        _ => return Err(EvalError::no_such_overload()),
    };
    Ok((one(args)?, other))
}

fn add(args: &[Value]) -> Result {
    let (a, b) = two(args)?;
    Ok(a.combined(b, a.amount.plus(&b.amount)))
}

fn sub(args: &[Value]) -> Result {
    let (a, b) = two(args)?;
    Ok(a.combined(b, a.amount.minus(&b.amount)))
}

/// A quantity as a value.
pub(crate) fn value(text: &str) -> std::result::Result<Value, String> {
    Quantity::parse(text).map(Value::object)
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    let quantity = || Type::object(NAME);
    let pair = || vec![quantity(), quantity()];
    let with_int = || vec![quantity(), Type::Int];
    vec![
        Function::new(
            "quantity",
            vec![Overload::global("string_to_quantity", vec![Type::String], quantity(), |args| match args {
                [Value::String(text)] => Quantity::parse(text).map_or_else(fail, |q| Ok(Value::object(q))),
                _ => mismatch(),
            })],
        ),
        Function::new(
            "isQuantity",
            vec![Overload::global("is_quantity_string", vec![Type::String], Type::Bool, |args| match args {
                [Value::String(text)] => Ok(Value::Bool(Quantity::parse(text).is_ok())),
                _ => mismatch(),
            })],
        ),
        // Declared as a function although it reads like a method; upstream's declaration is kept.
        Function::new(
            "sign",
            vec![Overload::global("quantity_sign", vec![quantity()], Type::Int, |args| {
                Ok(Value::Int(i64::from(one(args)?.amount.sign())))
            })],
        ),
        Function::new(
            "isGreaterThan",
            vec![Overload::member("quantity_is_greater_than", pair(), Type::Bool, |args| {
                two(args).map(|(a, b)| Value::Bool(a.amount > b.amount))
            })],
        ),
        Function::new(
            "isLessThan",
            vec![Overload::member("quantity_is_less_than", pair(), Type::Bool, |args| {
                two(args).map(|(a, b)| Value::Bool(a.amount < b.amount))
            })],
        ),
        Function::new(
            "compareTo",
            vec![Overload::member("quantity_compare_to", pair(), Type::Int, |args| {
                two(args).map(|(a, b)| Value::Int(a.amount.cmp(&b.amount) as i64))
            })],
        ),
        Function::new(
            "asApproximateFloat",
            vec![Overload::member("quantity_get_float", vec![quantity()], Type::Double, |args| {
                Ok(Value::Double(one(args)?.amount.as_f64()))
            })],
        ),
        Function::new(
            "asInteger",
            vec![Overload::member("quantity_get_int", vec![quantity()], Type::Int, |args| {
                one(args)?.as_integer().map_or_else(|| fail("cannot convert value to integer"), |i| Ok(Value::Int(i)))
            })],
        ),
        Function::new(
            "isInteger",
            vec![Overload::member("quantity_is_integer", vec![quantity()], Type::Bool, |args| {
                Ok(Value::Bool(one(args)?.as_integer().is_some()))
            })],
        ),
        Function::new(
            "add",
            vec![
                Overload::member("quantity_add", pair(), quantity(), add),
                Overload::member("quantity_add_int", with_int(), quantity(), add),
            ],
        ),
        Function::new(
            "sub",
            vec![
                Overload::member("quantity_sub", pair(), quantity(), sub),
                Overload::member("quantity_sub_int", with_int(), quantity(), sub),
            ],
        ),
    ]
}
