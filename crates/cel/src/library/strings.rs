//! Extended strings. Positions are counted in code points.

use super::{check_length, fail, int, mismatch, printf};
use crate::decls::{Function, Overload};
use crate::types::Type;
use crate::value::{EvalError, Value};

type Result<T> = std::result::Result<T, EvalError>;

fn out_of_range<T>(index: i64) -> Result<T> {
    fail(format!("index out of range: {index}"))
}

/// The position as an index, when there is such a character or it is the end.
fn position(index: i64, length: usize) -> Result<usize> {
    match usize::try_from(index) {
        Ok(i) if i <= length => Ok(i),
        _ => out_of_range(index),
    }
}

fn char_at(args: &[Value]) -> Result<Value> {
    let [Value::String(text), Value::Int(index)] = args else { return mismatch() };
    let chars: Vec<char> = text.chars().collect();
    let index = position(*index, chars.len())?;
    Ok(Value::from(chars.get(index).map(char::to_string).unwrap_or_default()))
}

fn index_of(args: &[Value]) -> Result<Value> {
    let (text, part, from) = match args {
        [Value::String(text), Value::String(part)] => (text, part, 0),
        [Value::String(text), Value::String(part), Value::Int(from)] => (text, part, *from),
        _ => return mismatch(),
    };
    let (chars, part): (Vec<char>, Vec<char>) = (text.chars().collect(), part.chars().collect());
    let Ok(start) = usize::try_from(from) else { return out_of_range(from) };
    if part.is_empty() {
        return Ok(int(start.min(chars.len())));
    }
    let found = (start..chars.len()).find(|i| chars[*i..].starts_with(&part));
    Ok(found.map_or(Value::Int(-1), int))
}

fn last_index_of(args: &[Value]) -> Result<Value> {
    let (text, part, from) = match args {
        [Value::String(text), Value::String(part)] => (text, part, None),
        [Value::String(text), Value::String(part), Value::Int(from)] => (text, part, Some(*from)),
        _ => return mismatch(),
    };
    let (chars, part): (Vec<char>, Vec<char>) = (text.chars().collect(), part.chars().collect());
    let start = match from.map(usize::try_from) {
        None => chars.len(),
        Some(Ok(start)) => start,
        Some(Err(_)) => return out_of_range(from.unwrap_or_default()),
    };
    if part.is_empty() {
        return Ok(int(start.min(chars.len())));
    }
    if (from.is_some() && start >= chars.len()) || part.len() > chars.len() {
        return Ok(Value::Int(-1));
    }
    let found = (0..=start.min(chars.len() - part.len())).rev().find(|i| chars[*i..].starts_with(&part));
    Ok(found.map_or(Value::Int(-1), int))
}

fn substring(args: &[Value]) -> Result<Value> {
    let (text, start, end) = match args {
        [Value::String(text), Value::Int(start)] => (text, *start, None),
        [Value::String(text), Value::Int(start), Value::Int(end)] => (text, *start, Some(*end)),
        _ => return mismatch(),
    };
    let chars: Vec<char> = text.chars().collect();
    if let Some(end) = end.filter(|end| start > *end) {
        return fail(format!("invalid substring range. start: {start}, end: {end}"));
    }
    let start = position(start, chars.len())?;
    let end = end.map_or(Ok(chars.len()), |end| position(end, chars.len()))?;
    Ok(Value::from(chars[start..end].iter().collect::<String>()))
}

fn replace(args: &[Value]) -> Result<Value> {
    if let [Value::String(text), Value::String(old), Value::String(new), ..] = args {
        let most = text.matches(&**old).count();
        check_length(text.len().saturating_add(most.saturating_mul(new.len())))?;
    }
    match args {
        [Value::String(text), Value::String(old), Value::String(new)] => Ok(Value::from(text.replace(&**old, new))),
        [Value::String(text), Value::String(old), Value::String(new), Value::Int(count)] => {
            Ok(Value::from(match usize::try_from(*count) {
                Ok(count) => text.replacen(&**old, new, count),
                // A negative number is no limit.
                Err(_) => text.replace(&**old, new),
            }))
        }
        _ => mismatch(),
    }
}

fn split(args: &[Value]) -> Result<Value> {
    let (text, separator, limit) = match args {
        [Value::String(text), Value::String(separator)] => (text, separator, -1),
        [Value::String(text), Value::String(separator), Value::Int(limit)] => (text, separator, *limit),
        _ => return mismatch(),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if limit == 0 {
        return Ok(Value::list(Vec::new()));
    }
    if separator.is_empty() {
        let mut parts = Vec::new();
        let mut rest = &**text;
        while let Some(c) = rest.chars().next() {
            if parts.len() + 1 == limit {
                parts.push(rest);
                break;
            }
            parts.push(&rest[..c.len_utf8()]);
            rest = &rest[c.len_utf8()..];
        }
        return Ok(Value::strings(parts));
    }
    Ok(Value::strings(text.splitn(limit, &**separator)))
}

fn join(args: &[Value]) -> Result<Value> {
    let (list, separator) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(separator)] => (list, &**separator),
        _ => return mismatch(),
    };
    let mut out = String::new();
    for (i, item) in list.iter().enumerate() {
        if i > 0 {
            out.push_str(separator);
        }
        match item? {
            Value::String(text) => {
                check_length(out.len() + text.len())?;
                out.push_str(&text);
            }
            other => return fail(format!("join: invalid input: {other}")),
        }
    }
    Ok(Value::from(out))
}

/// A function from text to text.
fn mapped(id: &str, of: fn(&str) -> String) -> Overload {
    Overload::member(id, vec![Type::String], Type::String, text(of))
}

fn text(of: fn(&str) -> String) -> impl Fn(&[Value]) -> Result<Value> + Send + Sync + 'static {
    move |args: &[Value]| match args {
        [Value::String(text)] => Ok(Value::from(of(text))),
        _ => mismatch(),
    }
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// All functions; `latest` is the newest version of the library instead of the one of Kubernetes.
pub(super) fn functions(latest: bool) -> Vec<Function> {
    use Type::{Int, String};
    let list = || Type::list(String);
    let style = if latest { printf::Style::Plain } else { printf::Style::Localized };
    let mut functions = vec![
        Function::new("charAt", vec![Overload::member("string_char_at_int", vec![String, Int], String, char_at)]),
        Function::new(
            "indexOf",
            vec![
                Overload::member("string_index_of_string", vec![String, String], Int, index_of),
                Overload::member("string_index_of_string_int", vec![String, String, Int], Int, index_of),
            ],
        ),
        Function::new(
            "lastIndexOf",
            vec![
                Overload::member("string_last_index_of_string", vec![String, String], Int, last_index_of),
                Overload::member("string_last_index_of_string_int", vec![String, String, Int], Int, last_index_of),
            ],
        ),
        Function::new("lowerAscii", vec![mapped("string_lower_ascii", |s| s.to_ascii_lowercase())]),
        Function::new("upperAscii", vec![mapped("string_upper_ascii", |s| s.to_ascii_uppercase())]),
        Function::new("trim", vec![mapped("string_trim", |s| s.trim().to_owned())]),
        Function::new(
            "replace",
            vec![
                Overload::member("string_replace_string_string", vec![String, String, String], String, replace),
                Overload::member(
                    "string_replace_string_string_int",
                    vec![String, String, String, Int],
                    String,
                    replace,
                ),
            ],
        ),
        Function::new(
            "split",
            vec![
                Overload::member("string_split_string", vec![String, String], list(), split),
                Overload::member("string_split_string_int", vec![String, String, Int], list(), split),
            ],
        ),
        Function::new(
            "substring",
            vec![
                Overload::member("string_substring_int", vec![String, Int], String, substring),
                Overload::member("string_substring_int_int", vec![String, Int, Int], String, substring),
            ],
        ),
        Function::new(
            "join",
            vec![
                Overload::member("list_join", vec![list()], String, join),
                Overload::member("list_join_string", vec![list(), String], String, join),
            ],
        ),
        Function::new(
            "format",
            vec![Overload::member(
                "string_format",
                vec![String, Type::list(Type::Dyn)],
                String,
                move |args| match args {
                    [Value::String(format), Value::List(list)] => Ok(Value::from(printf::format(format, list, style)?)),
                    _ => mismatch(),
                },
            )],
        ),
        Function::new("strings.quote", vec![Overload::global("strings_quote", vec![String], String, text(quote))]),
    ];
    if latest {
        functions.push(Function::new("reverse", vec![mapped("string_reverse", |s| s.chars().rev().collect())]));
    }
    functions
}
