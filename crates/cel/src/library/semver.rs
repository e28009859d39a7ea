//! Kubernetes' semantic versions (semver.org, 2.0.0).

use std::any::Any;
use std::cmp::Ordering;

use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::number::quote;
use crate::types::Type;
use crate::value::{EvalError, Object, Value};

const NAME: &str = "kubernetes.Semver";

/// A part of a pre-release; numbers go before words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

/// A version. Builds do not take part in comparisons and are not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    numbers: [u64; 3],
    pre: Vec<Part>,
}

impl Object for Version {
    fn type_name(&self) -> &str {
        NAME
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Version>().is_some_and(|other| self == other)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn numeric(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

fn leading_zero(text: &str) -> bool {
    text.len() > 1 && text.starts_with('0')
}

fn identifier(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl Version {
    fn parse(text: &str) -> Result<Version, String> {
        if text.is_empty() {
            return Err("Version string empty".into());
        }
        let parts: Vec<&str> = text.splitn(3, '.').collect();
        let [major, minor, rest] = parts[..] else { return Err("No Major.Minor.Patch elements found".into()) };
        let (rest, build) = rest.split_once('+').map_or((rest, None), |(rest, build)| (rest, Some(build)));
        let (patch, pre) = rest.split_once('-').map_or((rest, None), |(patch, pre)| (patch, Some(pre)));
        let mut numbers = [0; 3];
        for (i, (name, number)) in [("Major", major), ("Minor", minor), ("Patch", patch)].into_iter().enumerate() {
            if !numeric(number) {
                let name = name.to_lowercase();
                return Err(format!("Invalid character(s) found in {name} number {}", quote(number)));
            }
            if leading_zero(number) {
                return Err(format!("{name} number must not contain leading zeroes {}", quote(number)));
            }
            numbers[i] = number.parse().map_err(|_| {
                format!("strconv.ParseUint: parsing {}: {}", quote(number), {
                    if number.is_empty() { "invalid syntax" } else { "value out of range" }
                })
            })?;
        }
        let mut parts = Vec::new();
        for part in pre.into_iter().flat_map(|pre| pre.split('.')) {
            if part.is_empty() {
                return Err("Prerelease is empty".into());
            }
            if numeric(part) {
                if leading_zero(part) {
                    return Err(format!("Numeric PreRelease version must not contain leading zeroes {}", quote(part)));
                }
                parts.push(Part::Number(
                    part.parse()
                        .map_err(|_| format!("strconv.ParseUint: parsing {}: value out of range", quote(part)))?,
                ));
            } else if identifier(part) {
                parts.push(Part::Word(part.to_owned()));
            } else {
                return Err(format!("Invalid character(s) found in prerelease {}", quote(part)));
            }
        }
        for part in build.into_iter().flat_map(|build| build.split('.')) {
            if part.is_empty() {
                return Err("Build meta data is empty".into());
            }
            if !identifier(part) {
                return Err(format!("Invalid character(s) found in build meta data {}", quote(part)));
            }
        }
        Ok(Version { numbers, pre: parts })
    }

    /// Also reads `v1.2` and numbers with leading zeros.
    fn parse_tolerant(text: &str) -> Result<Version, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text
            .splitn(3, '.')
            .map(|part| {
                if part.len() <= 1 {
                    return part.to_owned();
                }
                let trimmed = part.trim_start_matches('0');
                if trimmed.starts_with(|c: char| c.is_ascii_digit()) {
                    trimmed.to_owned()
                } else {
                    format!("0{trimmed}")
                }
            })
            .collect();
        if parts.len() < 3 {
            if parts.last().is_some_and(|last| last.contains(['+', '-'])) {
                return Err("short version cannot contain PreRelease/Build meta data".into());
            }
            parts.resize(3, "0".to_owned());
        }
        Version::parse(&parts.join("."))
    }

    fn compare(&self, other: &Version) -> Ordering {
        // A version without a pre-release goes after all of its pre-releases.
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => self.pre.cmp(&other.pre),
        })
    }
}

fn parse(args: &[Value]) -> Result<Result<Version, String>, EvalError> {
    match args {
        [Value::String(text)] | [Value::String(text), Value::Bool(false)] => Ok(Version::parse(text)),
        [Value::String(text), Value::Bool(true)] => Ok(Version::parse_tolerant(text)),
        _ => mismatch(),
    }
}

fn make(args: &[Value]) -> Result<Value, EvalError> {
    parse(args)?.map_or_else(fail, |version| Ok(Value::object(version)))
}

fn is(args: &[Value]) -> Result<Value, EvalError> {
    Ok(Value::Bool(parse(args)?.is_ok()))
}

fn compared(args: &[Value]) -> Result<Ordering, EvalError> {
    match args {
        [a, b] => match (a.downcast::<Version>(), b.downcast::<Version>()) {
            (Some(a), Some(b)) => Ok(a.compare(b)),
            _ => mismatch(),
        },
        _ => mismatch(),
    }
}

/// A version as a value.
pub(crate) fn value(text: &str) -> Result<Value, String> {
    Version::parse(text).map(Value::object)
}

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    use Type::{Bool, Int, String};
    let semver = || Type::object(NAME);
    let pair = || vec![semver(), semver()];
    let number = |name: &str, index: usize| {
        let overload = Overload::member(&format!("semver_{name}"), vec![semver()], Int, move |args| {
            let version = args.first().and_then(Value::downcast::<Version>).ok_or_else(EvalError::no_such_overload)?;
            Ok(Value::Int(version.numbers[index].cast_signed()))
        });
        Function::new(name, vec![overload])
    };
    vec![
        Function::new(
            "semver",
            vec![
                Overload::global("string_to_semver", vec![String], semver(), make),
                Overload::global("string_bool_to_semver", vec![String, Bool], semver(), make),
            ],
        ),
        Function::new(
            "isSemver",
            vec![
                Overload::global("is_semver_string", vec![String], Bool, is),
                Overload::global("is_semver_string_bool", vec![String, Bool], Bool, is),
            ],
        ),
        Function::new(
            "isGreaterThan",
            vec![Overload::member("semver_is_greater_than", pair(), Bool, |args| {
                compared(args).map(|order| Value::Bool(order.is_gt()))
            })],
        ),
        Function::new(
            "isLessThan",
            vec![Overload::member("semver_is_less_than", pair(), Bool, |args| {
                compared(args).map(|order| Value::Bool(order.is_lt()))
            })],
        ),
        Function::new(
            "compareTo",
            vec![Overload::member("semver_compare_to", pair(), Int, |args| {
                compared(args).map(|order| Value::Int(order as i64))
            })],
        ),
        number("major", 0),
        number("minor", 1),
        number("patch", 2),
    ]
}
