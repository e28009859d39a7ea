//! Kubernetes' named formats.

use std::any::Any;

use base64::Engine;
use gantry_api::meta::names;

use super::{mismatch, url};
use crate::decls::{Function, Overload};
use crate::time::Timestamp;
use crate::types::Type;
use crate::value::{EvalError, Object, Value};

const NAME: &str = "kubernetes.NamedFormat";

/// A format: its name in expressions, what equality compares, how long its regular expression is for the purpose of
/// costs, and what it finds wrong with a text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    name: &'static str,
    title: &'static str,
    pub(crate) regex_size: u64,
    validate: fn(&str) -> Vec<String>,
}

impl Object for Format {
    fn type_name(&self) -> &str {
        NAME
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Format>().is_some_and(|other| self.title == other.title)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn unless(valid: bool, message: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![message.to_owned()] }
}

/// 8-4-4-4-12 hexadecimal digits; the dashes may be left out.
fn is_uuid(text: &str) -> bool {
    let mut rest = text;
    for (i, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        match rest.split_at_checked(length) {
            Some((digits, after)) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => rest = after,
            _ => return false,
        }
    }
    rest.is_empty()
}

/// RFC 3339 with the liberties that OpenAPI validation takes: lower case and a blank between date and time.
fn is_datetime(text: &str) -> bool {
    if text.len() < 20 || !text.is_ascii() {
        return false;
    }
    let mut text = text.to_ascii_uppercase();
    if text.as_bytes()[10] == b' ' {
        text.replace_range(10..11, "T");
    }
    Timestamp::parse(&text).is_some()
}

const FORMATS: [Format; 13] = [
    format("dns1123Label", "DNS1123Label", 30, |s| names::dns1123_label(s, false)),
    format("dns1123Subdomain", "DNS1123Subdomain", 60, |s| names::dns1123_subdomain(s, false)),
    format("dns1035Label", "DNS1035Label", 30, |s| names::dns1035_label(s, false)),
    format("qualifiedName", "QualifiedName", 60, names::qualified_name),
    format("dns1123LabelPrefix", "DNS1123LabelPrefix", 30, |s| names::dns1123_label(s, true)),
    format("dns1123SubdomainPrefix", "DNS1123SubdomainPrefix", 60, |s| names::dns1123_subdomain(s, true)),
    format("dns1035LabelPrefix", "DNS1035LabelPrefix", 30, |s| names::dns1035_label(s, true)),
    format("labelValue", "LabelValue", 40, names::label_value),
    format("uri", "URI", 1103, |s| url::is_request_uri(s).err().into_iter().collect()),
    format("uuid", "uuid", 70, |s| unless(is_uuid(s), "does not match the UUID format")),
    format("byte", "byte", 84, |s| {
        unless(base64::engine::general_purpose::STANDARD.decode(s).is_ok(), "invalid base64")
    }),
    format("date", "date", 71, |s| unless(Timestamp::parse_date(s).is_some(), "invalid date")),
    format("datetime", "datetime", 71, |s| unless(is_datetime(s), "invalid datetime")),
];

const fn format(name: &'static str, title: &'static str, regex_size: u64, validate: fn(&str) -> Vec<String>) -> Format {
    Format { name, title, regex_size, validate }
}

fn validate(args: &[Value]) -> Result<Value, EvalError> {
    let [format, Value::String(text)] = args else { return mismatch() };
    let format = format.downcast::<Format>().ok_or_else(EvalError::no_such_overload)?;
    let errors = (format.validate)(text);
    Ok(if errors.is_empty() { Value::Optional(None) } else { Value::some(Value::strings(errors)) })
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    let of = || Type::object(NAME);
    let mut functions = vec![
        Function::new(
            "validate",
            vec![Overload::member(
                "format-validate",
                vec![of(), Type::String],
                Type::optional(Type::list(Type::String)),
                validate,
            )],
        ),
        Function::new(
            "format.named",
            vec![Overload::global("format-named", vec![Type::String], Type::optional(of()), |args| match args {
                [Value::String(name)] => {
                    let found = FORMATS.iter().find(|format| format.name == &**name);
                    Ok(found.map_or(Value::Optional(None), |format| Value::some(Value::object(*format))))
                }
                _ => mismatch(),
            })],
        ),
    ];
    for format in FORMATS {
        let name = format!("format.{}", format.name);
        let overload = Overload::global(&name, Vec::new(), of(), move |_| Ok(Value::object(format)));
        functions.push(Function::new(&name, vec![overload]));
    }
    functions
}
