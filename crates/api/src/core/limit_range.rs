//! LimitRange: bounds and defaults of what single pods, containers and claims of a namespace ask for.

use crate::core::pod::validate::resources::{is_overcommit_allowed, validate_container_resource_name, validate_name};
use crate::kind::{Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use crate::meta::quantity::{Amount, ResourceList, canonicalize_list};
use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};
use std::collections::BTreeSet;

/// Above this, amounts are compared in whole units, below in thousandths, as upstream does.
const MAX_MILLI: i64 = i64::MAX / 1000;

fn canonicalize(l: &mut LimitRange) -> Result<(), String> {
    for item in l.spec.iter_mut().flat_map(|s| &mut s.limits) {
        for list in [
            &mut item.default,
            &mut item.default_request,
            &mut item.max,
            &mut item.max_limit_request_ratio,
            &mut item.min,
        ] {
            canonicalize_list(list.as_mut())?;
        }
    }
    Ok(())
}

impl Kind for LimitRange {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["limits"],
        create_on_update: true,
        ..ResourceInfo::new("", "v1", "LimitRange", "limitranges", "limitrange", true)
    };
    crate::kind_codec!(canonical: canonicalize);

    fn set_defaults(&mut self) {
        for item in self.spec.iter_mut().flat_map(|s| &mut s.limits).filter(|i| i.type_ == "Container") {
            default_item(item);
        }
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("spec").child("limits");
        let mut seen = BTreeSet::new();
        for (i, item) in self.spec.iter().flat_map(|s| &s.limits).enumerate() {
            let path = path.index(i);
            validate_type(&item.type_, &path.child("type"), &mut e);
            if !seen.insert(item.type_.as_str()) {
                e.duplicate(&path.child("type"), item.type_.as_str());
            }
            validate_item(item, &path, &mut e);
        }
        e
    }
}

/// What is not said follows from what is: the limit from the maximum, the request from the limit, then from the minimum.
fn default_item(item: &mut LimitRangeItem) {
    fn fill(list: &mut Option<ResourceList>, from: Option<&ResourceList>) {
        for (name, q) in from.into_iter().flatten() {
            list.get_or_insert_default().entry(name.clone()).or_insert_with(|| q.clone());
        }
    }
    fill(&mut item.default, item.max.as_ref());
    fill(&mut item.default_request, item.default.as_ref());
    fill(&mut item.default_request, item.min.as_ref());
}

fn validate_type(kind: &str, path: &Path, e: &mut ErrorList) {
    let bad = names::qualified_name(kind);
    names::push_invalid(e, path, kind, &bad);
    if bad.is_empty() && !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
        e.invalid(path, kind, "must be a standard limit type or fully qualified");
    }
}

fn validate_names(kind: &str, list: Option<&ResourceList>, path: &Path, e: &mut ErrorList) {
    for name in list.into_iter().flat_map(|l| l.keys()) {
        if matches!(kind, "Pod" | "Container") {
            validate_container_resource_name(name, &path.key(name), e);
        } else {
            validate_name(name, &path.key(name), e);
        }
    }
}

fn validate_item(item: &LimitRangeItem, path: &Path, e: &mut ErrorList) {
    let kind = item.type_.as_str();
    validate_names(kind, item.max.as_ref(), &path.child("max"), e);
    validate_names(kind, item.min.as_ref(), &path.child("min"), e);
    let defaults = [("default", &item.default), ("defaultRequest", &item.default_request)];
    for (name, list) in defaults {
        if kind != "Pod" {
            validate_names(kind, list.as_ref(), &path.child(name), e);
        } else if list.as_ref().is_some_and(|l| !l.is_empty()) {
            e.forbidden(&path.child(name), "may not be specified when `type` is 'Pod'");
        }
    }
    let bounds_storage = [&item.min, &item.max].iter().any(|l| l.as_ref().is_some_and(|l| l.contains_key("storage")));
    if kind == "PersistentVolumeClaim" && !bounds_storage {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        e.required(&path.child("limits"), detail);
    }
    validate_names(kind, item.max_limit_request_ratio.as_ref(), &path.child("maxLimitRequestRatio"), e);
    let lists = [&item.max, &item.min, &item.default, &item.default_request, &item.max_limit_request_ratio];
    let keys: BTreeSet<&String> = lists.into_iter().flatten().flat_map(|l| l.keys()).collect();
    for key in keys {
        validate_amounts(item, key, path, e);
    }
}

fn validate_amounts(item: &LimitRangeItem, key: &str, path: &Path, e: &mut ErrorList) {
    let get = |list: &Option<ResourceList>| -> Option<(Amount, String)> {
        let q = list.as_ref()?.get(key)?;
        Some((Amount::parse(&q.0).ok()?, q.0.clone()))
    };
    let of_pod = item.type_ == "Pod";
    let (min, max) = (get(&item.min), get(&item.max));
    let default = get(&item.default).filter(|_| !of_pod);
    let request = get(&item.default_request).filter(|_| !of_pod);
    let at = |field: &str| path.child(field).key(key);
    let mut ordered = |low: &Option<(Amount, String)>,
                       high: &Option<(Amount, String)>,
                       field: &str,
                       shown: &Option<(Amount, String)>,
                       words: [&str; 2]| {
        if let (Some(low), Some(high), Some(shown)) = (low, high, shown)
            && low.0 > high.0
        {
            let detail = format!("{} value {} is greater than {} value {}", words[0], low.1, words[1], high.1);
            e.invalid(&at(field), shown.1.as_str(), &detail);
        }
    };
    ordered(&min, &max, "min", &min, ["min", "max"]);
    ordered(&min, &request, "defaultRequest", &request, ["min", "default request"]);
    ordered(&request, &max, "defaultRequest", &request, ["default request", "max"]);
    ordered(&request, &default, "defaultRequest", &request, ["default request", "default limit"]);
    ordered(&min, &default, "default", &min, ["min", "default"]);
    ordered(&default, &max, "default", &max, ["default", "max"]);
    if let Some((ratio, shown)) = get(&item.max_limit_request_ratio) {
        if ratio < Amount::from_milli(1000) {
            e.invalid(&at("maxLimitRequestRatio"), shown.as_str(), &format!("ratio {shown} is less than 1"));
        }
        if let (Some((min, _)), Some((max, _))) = (&min, &max) {
            let limit = quotient(&ratio, min, max);
            if limit.0 > limit.1 {
                let detail = format!("ratio {shown} is greater than max/min = {:.6}", limit.1);
                e.invalid(&at("maxLimitRequestRatio"), shown.as_str(), &detail);
            }
        }
    }
    if let (Some((d, d_shown)), Some((r, r_shown))) = (&default, &request)
        && !is_overcommit_allowed(key)
        && d != r
    {
        let detail = format!("default value {d_shown} must equal to defaultRequest value {r_shown} in {key}");
        e.invalid(&at("defaultRequest"), r_shown.as_str(), &detail);
    }
}

/// The wanted ratio, and the largest that the bounds leave room for.
#[allow(clippy::cast_precision_loss)]
fn quotient(ratio: &Amount, min: &Amount, max: &Amount) -> (f64, f64) {
    if [ratio, min, max].iter().all(|a| a.value() < MAX_MILLI) {
        return (ratio.milli_value() as f64 / 1000.0, max.milli_value() as f64 / min.milli_value() as f64);
    }
    (ratio.value() as f64, max.value() as f64 / min.value() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn range(item: &Value) -> LimitRange {
        let mut l = <LimitRange as Kind>::from_value(
            json!({"metadata": {"name": "l", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"limits": [item]}}),
        )
        .unwrap();
        l.set_defaults();
        l
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_follow_from_one_another() {
        let l = range(&json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1024Ki"}}));
        assert_eq!(
            json!(l.spec.as_ref().unwrap().limits[0]),
            json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}, "default": {"cpu": "2"},
                "defaultRequest": {"cpu": "2", "memory": "1Mi"}})
        );
        assert!(l.validate().is_empty(), "{:?}", l.validate());
        let pod = range(&json!({"type": "Pod", "max": {"cpu": "2"}}));
        assert_eq!(json!(pod.spec.unwrap().limits[0]), json!({"type": "Pod", "max": {"cpu": "2"}}));
    }

    #[test]
    fn faults_have_upstreams_words() {
        let cases: [(Value, &[&str]); 9] = [
            (
                json!({"type": "x"}),
                &["spec.limits[0].type: Invalid value: \"x\": must be a standard limit type or fully qualified"],
            ),
            (
                json!({"type": "Pod", "default": {"cpu": "1"}}),
                &["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"],
            ),
            (
                json!({"type": "PersistentVolumeClaim"}),
                &[
                    "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
                ],
            ),
            (
                json!({"type": "Pod", "max": {"storage": "1"}}),
                &[
                    "spec.limits[0].max[storage]: Invalid value: \"storage\": must be a standard resource for containers",
                ],
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}),
                &["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"],
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}, "default": {"cpu": "2"}, "defaultRequest": {"cpu": "500m"}}),
                &["spec.limits[0].default[cpu]: Invalid value: \"1\": default value 2 is greater than max value 1"],
            ),
            (
                json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}}),
                &[
                    "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1",
                ],
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "3"}}),
                &[
                    "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000",
                ],
            ),
            (
                json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "500m"}}),
                &["spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1"],
            ),
        ];
        for (item, want) in cases {
            assert_eq!(texts(&range(&item).validate()), want);
        }
        let gpu = json!({"type": "Container", "default": {"a.b/gpu": "2"}, "defaultRequest": {"a.b/gpu": "1"}});
        assert_eq!(
            texts(&range(&gpu).validate()),
            [
                "spec.limits[0].defaultRequest[a.b/gpu]: Invalid value: \"1\": default value 2 must equal to defaultRequest value 1 in \
              a.b/gpu"
            ]
        );
    }

    #[test]
    fn table_row() {
        let l = range(&json!({"type": "Pod"}));
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        assert_eq!(l.cells(now), [json!("l"), json!("2026-01-01T00:00:00Z")]);
        assert_eq!(LimitRange::COLUMNS[1].name, "Created At");
    }
}
