//! Defaults and rules of what claims ask for; claims and templates of claims have the same spec.

use super::parts::{
    each, selector_expressions, unique, validate_class, validate_config, validate_full_name, validate_label,
    validate_selectors, validate_toleration,
};
use crate::meta::expression::Expression;
use crate::meta::field::{ErrorList, Path};
use crate::meta::quantity::canonicalize;
use crate::meta::text;
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClaim, DeviceConstraint, DeviceDerivedAttribute, DeviceRequest, DeviceSelector,
    DeviceToleration, ResourceClaimSpec,
};
use serde_json::Value;

const REQUESTS_MAX: usize = 32;
const FIRST_AVAILABLE_MAX: usize = 8;
const MODES: &[&str] = &["All", "ExactCount"];
const UNKNOWN_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

fn default_part(mode: &mut Option<String>, count: &mut Option<i64>, tolerations: Option<&mut Vec<DeviceToleration>>) {
    if text(mode).is_empty() {
        *mode = Some("ExactCount".to_owned());
    }
    if text(mode) == "ExactCount" && count.unwrap_or(0) == 0 {
        *count = Some(1);
    }
    for t in tolerations.into_iter().flatten().filter(|t| text(&t.operator).is_empty()) {
        t.operator = Some("Equal".to_owned());
    }
}

/// Fills in what a claim does not say.
pub(super) fn set_defaults(spec: &mut ResourceClaimSpec) {
    for r in spec.devices.iter_mut().flat_map(|d| d.requests.iter_mut().flatten()) {
        if let Some(x) = &mut r.exactly {
            default_part(&mut x.allocation_mode, &mut x.count, x.tolerations.as_mut());
        }
        for s in r.first_available.iter_mut().flatten() {
            default_part(&mut s.allocation_mode, &mut s.count, s.tolerations.as_mut());
        }
    }
}

/// Puts quantities in canonical form.
pub(super) fn canonicalize_spec(spec: &mut ResourceClaimSpec) -> Result<(), String> {
    let amounts = |c: &mut CapacityRequirements| c.requests.iter_mut().flatten().try_for_each(|(_, q)| canonicalize(q));
    for r in spec.devices.iter_mut().flat_map(|d| d.requests.iter_mut().flatten()) {
        r.exactly.iter_mut().filter_map(|x| x.capacity.as_mut()).try_for_each(amounts)?;
        r.first_available.iter_mut().flatten().filter_map(|s| s.capacity.as_mut()).try_for_each(amounts)?;
    }
    Ok(())
}

/// Whether the claim has this request: `request` or `request/subrequest`.
fn has_request(claim: &DeviceClaim, name: &str) -> bool {
    let (request, sub) = name.split_once('/').map_or((name, None), |(r, s)| (r, Some(s)));
    claim
        .requests
        .iter()
        .flatten()
        .any(|r| r.name == request && sub.is_none_or(|s| r.first_available.iter().flatten().any(|f| f.name == s)))
}

/// Adds the errors of a reference to a request of the claim.
pub(super) fn validate_request_ref(claim: &DeviceClaim, name: &str, path: &Path, errors: &mut ErrorList) {
    if name.split('/').count() > 2 {
        return errors.invalid(path, name, UNKNOWN_REQUEST);
    }
    for segment in name.split('/') {
        validate_label(segment, path, errors);
    }
    if !has_request(claim, name) {
        errors.invalid(path, name, UNKNOWN_REQUEST);
    }
}

/// Adds the errors of a list of references to requests.
pub(super) fn validate_request_refs(
    claim: &DeviceClaim,
    names: Option<&Vec<String>>,
    path: &Path,
    errors: &mut ErrorList,
) {
    each(names, REQUESTS_MAX, path, errors, |n, path, errors| validate_request_ref(claim, n, path, errors));
    unique(names, |n| Value::from(n.as_str()), path, errors);
}

/// What a request and its alternatives have in common.
struct Part<'a> {
    /// `request` or `request/subrequest`.
    name: String,
    class: &'a str,
    selectors: Option<&'a Vec<DeviceSelector>>,
    derived: Option<&'a Vec<DeviceDerivedAttribute>>,
    mode: &'a str,
    count: i64,
    tolerations: Option<&'a Vec<DeviceToleration>>,
}

/// Whether a constraint speaks of the attribute for this request.
fn is_constrained(claim: &DeviceClaim, attribute: &str, request: &str) -> bool {
    let of = |c: &DeviceConstraint| c.match_attribute.clone().or_else(|| c.distinct_attribute.clone());
    let parent = request.split('/').next().unwrap_or_default();
    claim.constraints.iter().flatten().filter(|c| of(c).as_deref() == Some(attribute)).any(|c| {
        let names = c.requests.as_deref().unwrap_or_default();
        names.is_empty() || names.iter().any(|n| n == request || n == parent)
    })
}

fn validate_part(claim: &DeviceClaim, p: &Part<'_>, path: &Path, errors: &mut ErrorList) {
    validate_class(p.class, &path.child("deviceClassName"), errors);
    validate_selectors(p.selectors, false, &path.child("selectors"), errors);
    let at = path.child("derivedAttributes");
    for (i, a) in p.derived.into_iter().flatten().enumerate() {
        if !a.name.is_empty() && !is_constrained(claim, &a.name, &p.name) {
            let detail = "must be referenced by at least one matchAttribute or distinctAttribute constraint \
                targeting this \
                          request";
            errors.invalid(&at.index(i).child("name"), a.name.as_str(), detail);
        }
    }
    unique(p.derived, |a| Value::from(a.name.as_str()), &at, errors);
    let at = path.child("count");
    match p.mode {
        "All" if p.count != 0 => {
            errors.invalid(&at, p.count, "must not be specified when allocationMode is 'All'");
        }
        "ExactCount" if p.count <= 0 => errors.invalid(&at, p.count, "must be greater than zero"),
        "All" | "ExactCount" => {}
        other => errors.not_supported(&path.child("allocationMode"), other, MODES),
    }
    for (i, t) in p.tolerations.into_iter().flatten().enumerate() {
        validate_toleration(t, &path.child("tolerations").index(i), errors);
    }
}

fn validate_request(claim: &DeviceClaim, r: &DeviceRequest, path: &Path, errors: &mut ErrorList) {
    validate_label(&r.name, &path.child("name"), errors);
    let alternatives = r.first_available.as_ref().filter(|f| !f.is_empty());
    let one = "exactly one of `exactly` or `firstAvailable` is required";
    match (&r.exactly, alternatives) {
        (None, None) => errors.required(path, one),
        (Some(_), Some(_)) => errors.invalid(path, "null", &format!("{one}, but multiple fields are set")),
        (Some(x), None) => {
            let part = Part {
                name: r.name.clone(),
                class: &x.device_class_name,
                selectors: x.selectors.as_ref(),
                derived: x.derived_attributes.as_ref(),
                mode: text(&x.allocation_mode),
                count: x.count.unwrap_or(0),
                tolerations: x.tolerations.as_ref(),
            };
            validate_part(claim, &part, &path.child("exactly"), errors);
        }
        (None, Some(list)) => {
            let path = path.child("firstAvailable");
            each(Some(list), FIRST_AVAILABLE_MAX, &path, errors, |s, path, errors| {
                validate_label(&s.name, &path.child("name"), errors);
                let part = Part {
                    name: format!("{}/{}", r.name, s.name),
                    class: &s.device_class_name,
                    selectors: s.selectors.as_ref(),
                    derived: s.derived_attributes.as_ref(),
                    mode: text(&s.allocation_mode),
                    count: s.count.unwrap_or(0),
                    tolerations: s.tolerations.as_ref(),
                };
                validate_part(claim, &part, path, errors);
            });
            unique(Some(list), |s| Value::from(s.name.as_str()), &path, errors);
        }
    }
}

fn validate_constraint(claim: &DeviceClaim, c: &DeviceConstraint, path: &Path, errors: &mut ErrorList) {
    validate_request_refs(claim, c.requests.as_ref(), &path.child("requests"), errors);
    match (&c.match_attribute, &c.distinct_attribute) {
        (Some(a), _) => validate_full_name(a, &path.child("matchAttribute"), errors),
        (None, Some(a)) => validate_full_name(a, &path.child("distinctAttribute"), errors),
        (None, None) => {
            let detail =
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
            errors.required(path, detail);
        }
    }
}

/// Field errors of a new claim's spec.
pub(super) fn validate_spec(spec: &ResourceClaimSpec, path: &Path) -> ErrorList {
    let mut e = ErrorList::default();
    let claim = spec.devices.clone().unwrap_or_default();
    let path = path.child("devices");
    let at = path.child("requests");
    each(claim.requests.as_ref(), REQUESTS_MAX, &at, &mut e, |r, path, e| validate_request(&claim, r, path, e));
    unique(claim.requests.as_ref(), |r| Value::from(r.name.as_str()), &at, &mut e);
    let at = path.child("constraints");
    each(claim.constraints.as_ref(), REQUESTS_MAX, &at, &mut e, |c, path, e| validate_constraint(&claim, c, path, e));
    each(claim.config.as_ref(), REQUESTS_MAX, &path.child("config"), &mut e, |c, path, e| {
        validate_request_refs(&claim, c.requests.as_ref(), &path.child("requests"), e);
        validate_config(c.opaque.as_ref(), false, path, e);
    });
    e
}

/// The expressions of a new claim's spec.
pub(super) fn expressions(spec: &ResourceClaimSpec, path: &Path) -> Vec<Expression> {
    let mut out = Vec::new();
    let requests = spec.devices.as_ref().and_then(|d| d.requests.as_ref());
    for (i, r) in requests.into_iter().flatten().enumerate() {
        let path = path.child("devices").child("requests").index(i);
        if let Some(x) = &r.exactly {
            selector_expressions(x.selectors.as_ref(), &path.child("exactly").child("selectors"), &mut out);
        }
        for (j, s) in r.first_available.iter().flatten().enumerate() {
            let path = path.child("firstAvailable").index(j).child("selectors");
            selector_expressions(s.selectors.as_ref(), &path, &mut out);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: Value) -> ResourceClaimSpec {
        let mut s: ResourceClaimSpec = serde_json::from_value(value).unwrap();
        set_defaults(&mut s);
        s
    }

    fn found(value: Value) -> Vec<String> {
        validate_spec(&spec(value), &Path::new("spec")).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults() {
        let s = spec(json!({"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "c",
            "tolerations": [{"key": "k"}]}}, {"name": "b", "exactly": {"deviceClassName": "c",
            "allocationMode": "All"}}]}}));
        assert_eq!(
            json!(s.devices.unwrap().requests),
            json!([{"name": "a", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1,
                "tolerations": [{"key": "k", "operator": "Equal"}]}},
                {"name": "b", "exactly": {"deviceClassName": "c", "allocationMode": "All"}}])
        );
    }

    #[test]
    fn field_errors() {
        let one = "exactly one of `exactly` or `firstAvailable` is required";
        assert_eq!(
            found(json!({"devices": {
                "requests": [{"name": "a"}, {"name": "a", "exactly": {"deviceClassName": "", "allocationMode": "Some",
                    "selectors": [{}]}}, {"name": "c", "exactly": {"deviceClassName": "c", "allocationMode": "All",
                    "count": 2}}, {"name": "d",
                    "firstAvailable": [{"name": "x", "deviceClassName": "c", "count": -1}]}],
                "constraints": [{"requests": ["d/x", "z"], "matchAttribute": "model"}, {}],
                "config": [{}, {"opaque": {"driver": "d", "parameters": [1]}}]}})),
            [
                format!("spec.devices.requests[0]: Required value: {one}"),
                "spec.devices.requests[1].exactly.deviceClassName: Required value".to_owned(),
                "spec.devices.requests[1].exactly.selectors[0].cel: Required value".to_owned(),
                "spec.devices.requests[1].exactly.allocationMode: Unsupported value: \"Some\": supported values: \
                 \"All\", \
                 \"ExactCount\""
                    .to_owned(),
                "spec.devices.requests[2].exactly.count: Invalid value: 2: must not be specified when allocationMode \
                 is 'All'"
                    .to_owned(),
                "spec.devices.requests[3].firstAvailable[0].count: Invalid value: -1: must be greater than \
                 zero"
                    .to_owned(),
                "spec.devices.requests[1]: Duplicate value: \"a\"".to_owned(),
                format!("spec.devices.constraints[0].requests[1]: Invalid value: \"z\": {UNKNOWN_REQUEST}"),
                "spec.devices.constraints[0].matchAttribute: Invalid value: \"model\": a fully qualified name must \
                 be a \
                 domain and a name separated by a slash"
                    .to_owned(),
                "spec.devices.constraints[1]: Required value: exactly one of \"matchAttribute\" or \
                 \"distinctAttribute\" is \
                 required, but multiple fields are set"
                    .to_owned(),
                "spec.devices.config[0].opaque: Required value".to_owned(),
                "spec.devices.config[1].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON \
                 object"
                    .to_owned(),
            ]
        );
    }

    #[test]
    fn expressions_to_compile() {
        let s = spec(json!({"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "c",
            "selectors": [{"cel": {"expression": "true"}}]}}]}}));
        let found = expressions(&s, &Path::new("spec"));
        assert_eq!(found[0].path.as_str(), "spec.devices.requests[0].exactly.selectors[0].cel.expression");
    }
}
