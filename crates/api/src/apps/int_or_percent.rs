//! Fields that hold a number or a percentage (`maxSurge`, `minAvailable`, …).

use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

fn value(v: &IntOrString) -> Value {
    match v {
        IntOrString::Int(n) => (*n).into(),
        IntOrString::String(s) => s.as_str().into(),
    }
}

/// The number before the `%` of a well-formed percentage.
fn percentage(v: &IntOrString) -> Option<i64> {
    match v {
        IntOrString::String(s) => {
            let digits = s.strip_suffix('%')?;
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse().ok())?
        }
        IntOrString::Int(_) => None,
    }
}

/// The absolute number `v` means out of `total`; percentages are rounded up or down.
///
/// # Errors
/// Where it is neither a number nor a percentage.
pub fn scaled(v: &IntOrString, total: i32, round_up: bool) -> Result<i32, String> {
    match v {
        IntOrString::Int(n) => Ok(*n),
        IntOrString::String(s) => {
            let Some(p) = percentage(v) else {
                return Err(format!("invalid value for IntOrString: invalid type: string is not a percentage: {s:?}"));
            };
            let product = p.saturating_mul(i64::from(total));
            let n = if round_up { product.saturating_add(99) / 100 } else { product / 100 };
            Ok(i32::try_from(n).unwrap_or(i32::MAX))
        }
    }
}

/// Errors of a value that must be a number not below 0 or a percentage.
pub fn validate(errors: &mut ErrorList, path: &Path, v: &IntOrString) {
    match v {
        IntOrString::Int(n) => {
            crate::apps::workload::nonnegative(errors, path, i64::from(*n));
        }
        IntOrString::String(s) => names::push_invalid(errors, path, s, &names::percent(s)),
    }
}

/// Errors of a percentage above 100.
pub fn validate_at_most_100(errors: &mut ErrorList, path: &Path, v: &IntOrString) {
    if percentage(v).is_some_and(|p| p > 100) {
        errors.invalid(path, value(v), "must not be greater than 100%");
    }
}

/// The value as a field error shows it.
#[must_use]
pub fn shown(v: &IntOrString) -> Value {
    value(v)
}

/// Whether the value is 0 or 0%.
#[must_use]
pub fn is_zero(v: &IntOrString) -> bool {
    match v {
        IntOrString::Int(n) => *n == 0,
        IntOrString::String(_) => percentage(v) == Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_scale_and_round() {
        let p = |s: &str| IntOrString::String(s.into());
        for (v, total, up, want) in [
            (p("25%"), 10, true, 3),
            (p("25%"), 10, false, 2),
            (p("100%"), 7, false, 7),
            (IntOrString::Int(4), 1, true, 4),
            (p("0%"), 9, true, 0),
        ] {
            assert_eq!(scaled(&v, total, up), Ok(want), "{v:?} of {total}");
        }
        assert!(scaled(&p("x"), 1, true).is_err());
    }

    #[test]
    fn faults_have_upstreams_words() {
        let mut e = ErrorList::default();
        let path = Path::new("m");
        validate(&mut e, &path, &IntOrString::Int(-1));
        validate(&mut e, &path, &IntOrString::String("5".into()));
        validate_at_most_100(&mut e, &path, &IntOrString::String("101%".into()));
        let texts: Vec<String> = e.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts[0], "m: Invalid value: -1: must be greater than or equal to 0");
        assert!(texts[1].starts_with("m: Invalid value: \"5\": a valid percent string must be"), "{}", texts[1]);
        assert_eq!(texts[2], "m: Invalid value: \"101%\": must not be greater than 100%");
    }
}
