//! Rules for how much of a device's capacity a claim may ask for.

use super::parts::{each, unique};
use crate::meta::field::{ErrorList, Path};
use crate::meta::quantity::{Amount, canonicalize};
use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, CapacityRequestPolicyRange, DeviceCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

const VALUES_MAX: usize = 10;
/// One, in billionths.
const UNIT: i128 = 1_000_000_000;
/// A thousandth, in billionths.
const MILLI: i128 = 1_000_000;

/// The amount; quantities are checked when they are decoded.
fn amount(q: &Quantity) -> Amount {
    Amount::parse(&q.0).unwrap_or_else(|_| Amount::from_milli(0))
}

/// Puts the quantities of a capacity in canonical form.
pub(super) fn canonicalize_capacity(c: &mut DeviceCapacity) -> Result<(), String> {
    canonicalize(&mut c.value)?;
    let Some(p) = &mut c.request_policy else { return Ok(()) };
    p.default.iter_mut().chain(p.valid_values.iter_mut().flatten()).try_for_each(canonicalize)?;
    let Some(r) = &mut p.valid_range else { return Ok(()) };
    r.max.iter_mut().chain(r.step.iter_mut()).try_for_each(canonicalize)?;
    // An absent minimum is an empty text, which validation asks for.
    if r.min.0.is_empty() { Ok(()) } else { canonicalize(&mut r.min) }
}

fn validate_values(default: &Quantity, max: &Quantity, values: &[Quantity], path: &Path, errors: &mut ErrorList) {
    for (i, pair) in values.windows(2).enumerate() {
        if amount(&pair[0]) > amount(&pair[1]) {
            errors.invalid(&path.index(i + 1), pair[1].0.as_str(), "values must be sorted in ascending order");
        }
    }
    let list = values.to_vec();
    each(Some(&list), VALUES_MAX, path, errors, |v, path, errors| {
        if amount(v) > amount(max) {
            errors.invalid(path, v.0.as_str(), &format!("option is larger than capacity value: {}", max.0));
        }
    });
    if values.len() <= VALUES_MAX {
        unique(Some(&list), |v| Value::from(v.0.as_str()), path, errors);
    }
    if !values.iter().any(|v| amount(v) == amount(default)) {
        errors.invalid(path, default.0.as_str(), "default value is not valid according to the requestPolicy");
    }
}

fn validate_range(
    default: &Quantity,
    capacity: &Quantity,
    r: &CapacityRequestPolicyRange,
    path: &Path,
    errors: &mut ErrorList,
) {
    if r.min.0.is_empty() {
        return errors.required(&path.child("min"), "required when validRange is defined");
    }
    let mut invalid =
        |field: &str, q: &Quantity, detail: String| errors.invalid(&path.child(field), q.0.as_str(), &detail);
    if amount(&r.min) > amount(capacity) {
        invalid("min", &r.min, format!("min is larger than capacity value: {}", capacity.0));
    }
    if amount(default) < amount(&r.min) {
        invalid("default", default, format!("default is less than min: {}", r.min.0));
    }
    if let Some(max) = &r.max {
        if amount(&r.min) > amount(max) {
            invalid("max", &r.min, format!("min is larger than max: {}", max.0));
        }
        if amount(max) > amount(capacity) {
            invalid("max", max, format!("max is larger than capacity value: {}", capacity.0));
        }
        if amount(default) > amount(max) {
            invalid("default", default, format!("default is more than max: {}", max.0));
        }
    }
    let named = [("default", Some(default)), ("min", Some(&r.min)), ("max", r.max.as_ref()), ("step", r.step.as_ref())];
    let named = || named.into_iter().filter_map(|(field, q)| Some((field, q?)));
    let fractional = named().any(|(_, q)| amount(q).nano_value() % UNIT != 0);
    let fine: Vec<_> = named().filter(|(_, q)| fractional && amount(q).nano_value() % MILLI != 0).collect();
    for (field, q) in &fine {
        invalid(field, q, "value cannot be represented as a milli value".to_owned());
    }
    let Some(step) = r.step.as_ref().filter(|_| fine.is_empty()) else { return };
    if amount(step).sign() <= 0 {
        return invalid("step", step, "must be greater than zero".to_owned());
    }
    let one = amount(&r.min).plus(&amount(step));
    if one > amount(capacity) {
        invalid("step", step, format!("one step {one} is larger than capacity value: {}", capacity.0));
    }
    let mut safe = true;
    for (field, q) in named().filter(|_| !fractional) {
        let why = match amount(q) {
            a if a.sign() < 0 => "must be greater than or equal to 0",
            a if a.nano_value() / UNIT > i128::from(i64::MAX) => "must not be larger than 9223372036854775807",
            _ => continue,
        };
        invalid(field, q, why.to_owned());
        safe = false;
    }
    if !safe {
        return;
    }
    let width = amount(step).nano_value();
    for value in std::iter::once(default).chain(r.max.as_ref()) {
        if amount(value).minus(&amount(&r.min)).nano_value() % width != 0 {
            let detail = format!("value is not a multiple of a given step ({}) from ({})", step.0, r.min.0);
            invalid("step", value, detail);
        }
    }
}

fn validate_policy(capacity: &Quantity, p: &CapacityRequestPolicy, path: &Path, errors: &mut ErrorList) {
    let values = p.valid_values.as_ref().filter(|v| !v.is_empty());
    let missing = |what: &str| format!("required when {what} is defined");
    match (values, &p.valid_range, &p.default) {
        (Some(_), Some(_), _) => {
            let detail = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at \
                the same \
                          time";
            errors.forbidden(path, detail);
        }
        (Some(_), None, None) => errors.required(&path.child("default"), &missing("validValues")),
        (None, Some(_), None) => errors.required(&path.child("default"), &missing("validRange")),
        (Some(values), None, Some(d)) => validate_values(d, capacity, values, &path.child("validValues"), errors),
        (None, Some(r), Some(d)) => validate_range(d, capacity, r, &path.child("validRange"), errors),
        (None, None, _) => {}
    }
}

/// Adds the errors of a capacity; only a device that several claims share has a policy.
pub(super) fn validate_capacity(c: &DeviceCapacity, shared: bool, path: &Path, errors: &mut ErrorList) {
    let Some(policy) = &c.request_policy else { return };
    let path = path.child("requestPolicy");
    if shared {
        validate_policy(&c.value, policy, &path, errors);
    } else {
        errors.forbidden(&path, "allowMultipleAllocations must be true");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(policy: Value) -> Vec<String> {
        let mut c: DeviceCapacity = serde_json::from_value(json!({"value": "10Gi", "requestPolicy": policy})).unwrap();
        canonicalize_capacity(&mut c).unwrap();
        let mut e = ErrorList::default();
        validate_capacity(&c, true, &Path::new("c"), &mut e);
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn policies() {
        assert!(found(json!({"default": "1Gi", "validValues": ["1Gi", "2Gi"]})).is_empty());
        assert!(found(json!({"default": "1Gi", "validRange": {"min": "1Gi", "max": "4Gi", "step": "1Gi"}})).is_empty());
        let fine = json!({"default": "1500u", "validRange": {"min": "1m", "step": "1m"}});
        assert_eq!(
            found(fine),
            ["c.requestPolicy.validRange.default: Invalid value: \"1500u\": value cannot be represented as a milli \
              value"]
        );
        assert_eq!(found(json!({"default": "1500m", "validRange": {"min": "500m", "step": "500m"}})), [""; 0]);
        let negative = json!({"default": "1", "validRange": {"min": "-1", "step": "1"}});
        let why = "c.requestPolicy.validRange.min: Invalid value: \"-1\": must be greater than or equal to 0";
        assert_eq!(found(negative), [why]);
        assert_eq!(
            found(json!({"validValues": ["1Gi"]})),
            ["c.requestPolicy.default: Required value: required when validValues is defined"]
        );
        assert_eq!(
            found(json!({"default": "3Gi", "validValues": ["2Gi", "1Gi", "20Gi"]})),
            [
                "c.requestPolicy.validValues[1]: Invalid value: \"1Gi\": values must be sorted in ascending order",
                "c.requestPolicy.validValues[2]: Invalid value: \"20Gi\": option is larger than capacity value: 10Gi",
                "c.requestPolicy.validValues: Invalid value: \"3Gi\": default value is not valid according to the \
                 requestPolicy",
            ]
        );
        assert_eq!(
            found(json!({"default": "1536Mi", "validRange": {"min": "1Gi", "max": "20Gi", "step": "1Gi"}})),
            [
                "c.requestPolicy.validRange.max: Invalid value: \"20Gi\": max is larger than capacity value: 10Gi",
                "c.requestPolicy.validRange.step: Invalid value: \"1536Mi\": value is not a multiple of a given step \
                 (1Gi) \
                 from (1Gi)",
            ]
        );
    }
}
