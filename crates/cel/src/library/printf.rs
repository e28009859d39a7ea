//! `format` of strings: the clauses, and what each makes of a value.

use super::{check_length, convert, fail};
use crate::number;
use crate::types::Type;
use crate::value::{EvalError, List, Value};

type Result<T> = std::result::Result<T, EvalError>;

/// Two generations of the function differ in how they print numbers with a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// As a person who reads English expects: digits in groups, powers of ten written out. Kubernetes has this one.
    Localized,
    /// As programs expect.
    Plain,
}

/// What a clause does with its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    String,
    Decimal,
    Fixed(usize),
    Scientific(usize),
    Binary,
    Hex { upper: bool },
    Octal,
}

/// A format string in pieces.
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Clause(Clause),
}

const DEFAULT_PRECISION: usize = 6;
/// The newest version refuses more digits.
const MAX_PRECISION: usize = 100;

/// The pieces of a format string, each of which `emit` gets. `emit` answers whether a clause has an argument.
///
/// # Errors
/// What is wrong with the format, or what `emit` fails with.
pub(crate) fn pieces(format: &str, style: Style, mut emit: impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        emit(Piece::Text(&rest[..start]))?;
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            emit(Piece::Text("%"))?;
            rest = after;
            continue;
        }
        if rest.is_empty() {
            return fail("unexpected end of string");
        }
        let (clause, after) = clause(rest, style)
            .map_err(|message| EvalError::new(format!("could not parse formatting clause: {message}")))?;
        emit(Piece::Clause(clause))?;
        rest = after;
    }
    emit(Piece::Text(rest))
}

fn clause(text: &str, style: Style) -> std::result::Result<(Clause, &str), String> {
    let precision_error = |message: &str| format!("error while parsing precision: {message}");
    let (precision, rest) = match text.strip_prefix('.') {
        None => (DEFAULT_PRECISION, text),
        Some(after) => {
            let length = after.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, rest) = after.split_at(length);
            if rest.is_empty() {
                return Err(precision_error("could not find end of precision specifier"));
            }
            let parsed: std::result::Result<usize, _> = digits.parse();
            let Ok(precision) = parsed else {
                return Err(precision_error(&format!(
                    "error while converting precision to integer: strconv.Atoi: parsing {}: invalid syntax",
                    number::quote(digits)
                )));
            };
            if precision > MAX_PRECISION && style == Style::Plain {
                return Err(precision_error(&format!(
                    "precision {precision} exceeds maximum allowed precision {MAX_PRECISION}"
                )));
            }
            (precision, rest)
        }
    };
    let mut chars = rest.chars();
    let clause = match chars.next() {
        Some('s') => Clause::String,
        Some('d') => Clause::Decimal,
        Some('f') => Clause::Fixed(precision),
        Some('e') => Clause::Scientific(precision),
        Some('b') => Clause::Binary,
        Some(x @ ('x' | 'X')) => Clause::Hex { upper: x == 'X' },
        Some('o') => Clause::Octal,
        other => return Err(format!("unrecognized formatting clause \"{}\"", other.unwrap_or_default())),
    };
    Ok((clause, chars.as_str()))
}

/// Fills in a format string.
///
/// # Errors
/// What is wrong with the format, or which argument does not fit its clause.
pub(crate) fn format(format: &str, args: &List, style: Style) -> Result<String> {
    let mut out = String::new();
    let mut next = 0;
    pieces(format, style, |piece| {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Clause(clause) => {
                if next >= args.len() {
                    return fail(format!("index {next} out of range"));
                }
                let arg = args.get(next)?;
                next += 1;
                let text = clause
                    .print(&arg, style)
                    .map_err(|error| EvalError::new(format!("error during formatting: {error}")))?;
                check_length(out.len() + text.len())?;
                out.push_str(&text);
            }
        }
        Ok(())
    })?;
    Ok(out)
}

impl Clause {
    /// The message for an argument of a type that the clause is not for.
    pub(crate) fn refusal(self, type_name: &str) -> String {
        let what = match self {
            Clause::String => {
                "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, \
                 durations, and timestamps"
            }
            Clause::Decimal => "decimal clause can only be used on integers",
            Clause::Fixed(_) => "fixed-point clause can only be used on doubles",
            Clause::Scientific(_) => "scientific clause can only be used on doubles",
            Clause::Binary => "only integers and bools can be formatted as binary",
            Clause::Hex { .. } => "only integers, byte buffers, and strings can be formatted as hex",
            Clause::Octal => "octal clause can only be used on integers",
        };
        format!("{what}, was given {type_name}")
    }

    /// Whether values of a type can fit the clause.
    pub(crate) fn may_take(self, t: &Type) -> bool {
        match self {
            _ if t.is_dyn() => true,
            Clause::String => !matches!(t, Type::Object(_) | Type::Opaque(..) | Type::Error),
            Clause::Decimal | Clause::Octal => matches!(t, Type::Int | Type::Uint),
            Clause::Fixed(_) | Clause::Scientific(_) => matches!(t, Type::Double | Type::String),
            Clause::Binary => matches!(t, Type::Int | Type::Uint | Type::Bool),
            Clause::Hex { .. } => matches!(t, Type::Int | Type::Uint | Type::String | Type::Bytes),
        }
    }

    fn print(self, arg: &Value, style: Style) -> Result<String> {
        let refuse = || fail(self.refusal(&arg.type_name()));
        match self {
            Clause::String => string(arg, style).unwrap_or_else(refuse),
            Clause::Decimal => match arg {
                Value::Int(_) | Value::Uint(_) => Ok(arg.to_string()),
                Value::Double(d) if style == Style::Plain => Ok(plain_double(*d)),
                _ => refuse(),
            },
            Clause::Fixed(precision) => match double(arg, style) {
                Some(d) => Ok(fixed(d, precision, style)),
                None => refuse(),
            },
            Clause::Scientific(precision) => match double(arg, style) {
                Some(d) => Ok(scientific(d, precision, style)),
                None => refuse(),
            },
            Clause::Binary => match arg {
                Value::Int(i) => Ok(signed(*i, format!("{:b}", i.unsigned_abs()))),
                Value::Uint(u) => Ok(format!("{u:b}")),
                Value::Bool(b) => Ok(if *b { "1".into() } else { "0".into() }),
                _ => refuse(),
            },
            Clause::Hex { upper } => {
                let text = match arg {
                    Value::Int(i) => signed(*i, format!("{:x}", i.unsigned_abs())),
                    Value::Uint(u) => format!("{u:x}"),
                    Value::String(s) => s.bytes().map(|b| format!("{b:02x}")).collect(),
                    Value::Bytes(b) => b.iter().map(|b| format!("{b:02x}")).collect(),
                    _ => return refuse(),
                };
                Ok(if upper { text.to_ascii_uppercase() } else { text })
            }
            Clause::Octal => match arg {
                Value::Int(i) => Ok(signed(*i, format!("{:o}", i.unsigned_abs()))),
                Value::Uint(u) => Ok(format!("{u:o}")),
                _ => refuse(),
            },
        }
    }
}

fn signed(i: i64, magnitude: String) -> String {
    if i < 0 { format!("-{magnitude}") } else { magnitude }
}

/// The number that a clause for numbers with a fraction prints.
fn double(arg: &Value, style: Style) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, reason = "the reference converts as well")]
    match arg {
        Value::Double(d) => Some(*d),
        Value::Int(i) if style == Style::Plain => Some(*i as f64),
        Value::Uint(u) if style == Style::Plain => Some(*u as f64),
        Value::String(s) if style == Style::Localized => match &**s {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// What is no number, as each style spells it.
fn special(d: f64, style: Style) -> String {
    let sign = if d < 0.0 { "-" } else { "" };
    match style {
        _ if d.is_nan() => "NaN".into(),
        Style::Localized => format!("{sign}∞"),
        Style::Plain => format!("{sign}Infinity"),
    }
}

fn plain_double(d: f64) -> String {
    if d.is_finite() { format!("{d}") } else { special(d, Style::Plain) }
}

fn fixed(d: f64, precision: usize, style: Style) -> String {
    if !d.is_finite() {
        return special(d, style);
    }
    let text = format!("{d:.precision$}");
    if style == Style::Plain {
        return text;
    }
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').map_or((digits, String::new()), |(w, f)| (w, format!(".{f}")));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

fn scientific(d: f64, precision: usize, style: Style) -> String {
    if !d.is_finite() {
        return special(d, style);
    }
    let text = number::exponent(d, precision);
    let (Style::Localized, Some((mantissa, exponent))) = (style, text.split_once('e')) else { return text };
    let superscript: String = exponent
        .trim_start_matches('+')
        .chars()
        .map(|c| match c {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            digit => char::from_u32(0x2070 + digit.to_digit(10).unwrap_or(0)).unwrap_or('⁰'),
        })
        .collect();
    format!("{mantissa}\u{202f}×\u{202f}10{superscript}")
}

/// `%s`; `None` for values that have no text.
fn string(arg: &Value, style: Style) -> Option<Result<String>> {
    let text = match arg {
        Value::List(_) | Value::Map(_) => return aggregate(arg, style),
        Value::Null => "null".to_owned(),
        Value::Double(d) if style == Style::Plain => plain_double(*d),
        Value::Bytes(b) if style == Style::Plain => String::from_utf8_lossy(b).into_owned(),
        Value::Object(_) | Value::Optional(_) => return None,
        other => match convert::to_string(other) {
            Ok(value) => value.to_string(),
            Err(error) => return Some(Err(error)),
        },
    };
    Some(Ok(text))
}

fn aggregate(arg: &Value, style: Style) -> Option<Result<String>> {
    match arg {
        Value::List(list) => {
            let mut items = Vec::new();
            for item in list.iter() {
                match item.and_then(|item| element(&item, style)) {
                    Ok(text) => items.push(text),
                    Err(error) => return Some(Err(error)),
                }
            }
            Some(Ok(format!("[{}]", items.join(", "))))
        }
        Value::Map(map) => {
            let mut entries = Vec::new();
            for key in map.keys() {
                let text = map.get(&key).and_then(|value| {
                    let value = value.unwrap_or(Value::Null);
                    Ok((element(&key.to_value(), style)?, element(&value, style)?))
                });
                match text {
                    Ok(entry) => entries.push(entry),
                    Err(error) => return Some(Err(error)),
                }
            }
            entries.sort();
            let separator = if style == Style::Plain { ": " } else { ":" };
            let entries: Vec<String> = entries.into_iter().map(|(k, v)| format!("{k}{separator}{v}")).collect();
            Some(Ok(format!("{{{}}}", entries.join(", "))))
        }
        _ => None,
    }
}

/// A value within a list or a map.
fn element(value: &Value, style: Style) -> Result<String> {
    let localized = style == Style::Localized;
    match value {
        Value::String(s) if localized => Ok(number::quote(s)),
        Value::Bytes(b) if localized => Ok(format!("b{}", number::quote(&String::from_utf8_lossy(b)))),
        Value::Double(d) if localized => {
            Ok(if d.is_finite() { format!("{d:.6}") } else { number::quote(&number::special(*d)) })
        }
        Value::Timestamp(t) if localized => Ok(format!("timestamp({})", number::quote(&t.to_string()))),
        Value::Duration(d) if localized => Ok(format!("duration({})", number::quote(&d.to_string()))),
        _ => string(value, style).unwrap_or_else(|| fail(format!("no formatting function for {}", value.type_name()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format_: &str, args: Vec<Value>) -> String {
        let Value::List(list) = Value::list(args) else { unreachable!() };
        format(format_, &list, Style::Localized).unwrap()
    }

    #[test]
    fn localized_numbers_are_for_people() {
        assert_eq!(printed("%.6e", vec![Value::Double(1_052.032_911_275)]), "1.052033\u{202f}×\u{202f}10⁰³");
        assert_eq!(printed("%.1f", vec![Value::Double(1_234_567.25)]), "1,234,567.2");
        assert_eq!(printed("%f", vec![Value::from("Infinity")]), "∞");
        assert_eq!(printed("%s", vec![Value::list(vec![Value::Double(2.71)])]), "[2.710000]");
        assert_eq!(printed("%s", vec![Value::Double(0.000_000_002)]), "2e-09");
    }

    #[test]
    fn clauses_refuse_other_types() {
        let Value::List(list) = Value::list(vec![Value::from("a")]) else { unreachable!() };
        let error = |text: &str| format(text, &list, Style::Localized).unwrap_err().to_string();
        assert_eq!(
            error("%d"),
            "error during formatting: decimal clause can only be used on integers, was given string"
        );
        assert_eq!(error("%s%s"), "index 1 out of range");
        assert_eq!(error("%q"), "could not parse formatting clause: unrecognized formatting clause \"q\"");
    }
}
