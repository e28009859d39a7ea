//! LimitRanger: containers get the requests and limits their namespace has as defaults, and containers, pods and claims
//! keep within its bounds.

use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::core::pod::resources::{
    Amounts, aggregate_container_limits, aggregate_container_requests, amounts, is_pod_level_resource,
};
use gantry_api::k8s_openapi::api::core::v1::{
    Container, LimitRange, LimitRangeItem, PersistentVolumeClaim, Pod, PodSpec,
};
use gantry_api::meta::quantity::{Amount, ResourceList};
use gantry_api::meta::status::ApiError;

/// Annotation that tells what was set.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Above this, amounts are compared in whole units, below in thousandths.
const MAX_MILLI: i64 = i64::MAX / 1000;

pub(super) struct LimitRanger;

fn items<'a>(range: &'a LimitRange, kind: &'a str) -> impl Iterator<Item = &'a LimitRangeItem> {
    range.spec.iter().flat_map(|s| &s.limits).filter(move |i| i.type_ == kind)
}

/// Fills in what `list` does not have; the names of what was filled in.
fn fill(list: &mut Option<ResourceList>, defaults: &ResourceList) -> Vec<String> {
    let mut set = Vec::new();
    for (name, quantity) in defaults {
        let list = list.get_or_insert_default();
        if !list.contains_key(name) {
            list.insert(name.clone(), quantity.clone());
            set.push(name.clone());
        }
    }
    set
}

fn set_defaults(pod: &mut Pod, range: &LimitRange) {
    let (mut requests, mut limits) = (ResourceList::new(), ResourceList::new());
    for item in items(range, "Container") {
        requests.extend(item.default_request.clone().unwrap_or_default());
        limits.extend(item.default.clone().unwrap_or_default());
    }
    if requests.is_empty() && limits.is_empty() {
        return;
    }
    let mut told = Vec::new();
    let mut apply = |container: &mut Container, kind: &str| {
        let resources = container.resources.get_or_insert_default();
        let limits = fill(&mut resources.limits, &limits);
        let requests = fill(&mut resources.requests, &requests);
        for (names, what) in [(requests, "request"), (limits, "limit")] {
            if !names.is_empty() {
                told.push(format!("{} {what} for {kind} {}", names.join(", "), container.name));
            }
        }
    };
    let spec = pod.spec.get_or_insert_default();
    spec.containers.iter_mut().for_each(|c| apply(c, "container"));
    spec.init_containers.iter_mut().flatten().for_each(|c| apply(c, "init container"));
    if !told.is_empty() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        pod.metadata.annotations.get_or_insert_default().insert(ANNOTATION.into(), text);
    }
}

/// Both as numbers of one precision.
fn comparable(a: &Amount, b: &Amount) -> (i64, i64) {
    if a.value() <= MAX_MILLI && b.value() <= MAX_MILLI {
        (a.milli_value(), b.milli_value())
    } else {
        (a.value(), b.value())
    }
}

fn is_less(a: &Amount, b: &Amount) -> bool {
    let (a, b) = comparable(a, b);
    a < b
}

fn below_min(kind: &str, name: &str, min: &Amount, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let told = format!("minimum {name} usage per {kind} is {min}");
    let Some(request) = requests.get(name) else { return Some(format!("{told}.  No request is specified")) };
    if is_less(request, min) {
        return Some(format!("{told}, but request is {request}"));
    }
    let limit = limits.get(name).filter(|l| is_less(l, min))?;
    Some(format!("{told}, but limit is {limit}"))
}

fn above_max(kind: &str, name: &str, max: &Amount, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let told = format!("maximum {name} usage per {kind} is {max}");
    let Some(limit) = limits.get(name) else { return Some(format!("{told}.  No limit is specified")) };
    if is_less(max, limit) {
        return Some(format!("{told}, but limit is {limit}"));
    }
    let request = requests.get(name).filter(|r| is_less(max, r))?;
    Some(format!("{told}, but request is {request}"))
}

/// The same for claims, which have no limits.
fn claim_above_max(kind: &str, name: &str, max: &Amount, requests: &Amounts) -> Option<String> {
    let told = format!("maximum {name} usage per {kind} is {max}");
    let Some(request) = requests.get(name) else { return Some(format!("{told}.  No request is specified")) };
    is_less(max, request).then(|| format!("{told}, but request is {request}"))
}

#[allow(clippy::cast_precision_loss)]
fn above_ratio(kind: &str, name: &str, ratio: &Amount, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let told = format!("{name} max limit to request ratio per {kind} is {ratio}");
    let Some(request) = requests.get(name).filter(|r| !r.is_zero()) else {
        return Some(format!("{told}, but no request is specified or request is 0"));
    };
    let Some(limit) = limits.get(name).filter(|l| !l.is_zero()) else {
        return Some(format!("{told}, but no limit is specified or limit is 0"));
    };
    let (limit, request) = comparable(limit, request);
    let observed = limit as f64 / request as f64;
    (observed > ratio.as_f64()).then(|| format!("{told}, but provided ratio is {observed:.6}"))
}

/// Everything that is wrong by one item.
fn check(item: &LimitRangeItem, requests: &Amounts, limits: &Amounts, faults: &mut Vec<String>) {
    let kind = item.type_.as_str();
    for (name, min) in amounts(item.min.as_ref()) {
        faults.extend(below_min(kind, &name, &min, requests, limits));
    }
    for (name, max) in amounts(item.max.as_ref()) {
        faults.extend(above_max(kind, &name, &max, requests, limits));
    }
    for (name, ratio) in amounts(item.max_limit_request_ratio.as_ref()) {
        faults.extend(above_ratio(kind, &name, &ratio, requests, limits));
    }
}

/// The sum over the containers, or what the pod says for itself as a whole.
fn whole(sum: Amounts, own: Option<&ResourceList>) -> Amounts {
    let mut sum = sum;
    sum.extend(amounts(own).into_iter().filter(|(name, _)| is_pod_level_resource(name)));
    sum
}

fn pod_faults(spec: &PodSpec, range: &LimitRange, faults: &mut Vec<String>) {
    for item in range.spec.iter().flat_map(|s| &s.limits) {
        match item.type_.as_str() {
            "Container" => {
                for c in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
                    let of = c.resources.as_ref();
                    let requests = amounts(of.and_then(|r| r.requests.as_ref()));
                    check(item, &requests, &amounts(of.and_then(|r| r.limits.as_ref())), faults);
                }
            }
            "Pod" => {
                let own = spec.resources.as_ref();
                let requests = whole(aggregate_container_requests(spec), own.and_then(|r| r.requests.as_ref()));
                let limits = whole(aggregate_container_limits(spec), own.and_then(|r| r.limits.as_ref()));
                check(item, &requests, &limits, faults);
            }
            _ => {}
        }
    }
}

fn claim_faults(claim: &PersistentVolumeClaim, range: &LimitRange, faults: &mut Vec<String>) {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let requests = amounts(requests);
    for item in items(range, "PersistentVolumeClaim") {
        for (name, min) in amounts(item.min.as_ref()) {
            faults.extend(below_min(&item.type_, &name, &min, &requests, &Amounts::new()));
        }
        for (name, max) in amounts(item.max.as_ref()) {
            faults.extend(claim_above_max(&item.type_, &name, &max, &requests));
        }
    }
}

#[async_trait]
impl MutatingPlugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        // The resources of a pod that is there are changed through `resize`, by what the client says alone.
        if a.operation != Operation::Create || !a.is("", "pods", "") {
            return Ok(());
        }
        for range in cluster.list_shared::<LimitRange>(a.namespace).await? {
            if let Some(pod) = a.object_as_mut::<Pod>() {
                set_defaults(pod, &range);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ValidatingPlugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let pod = (a.operation == Operation::Create && a.is("", "pods", ""))
            || (a.operation == Operation::Update && a.is("", "pods", "resize"));
        let claim =
            matches!(a.operation, Operation::Create | Operation::Update) && a.is("", "persistentvolumeclaims", "");
        if !pod && !claim {
            return Ok(());
        }
        for range in cluster.list_shared::<LimitRange>(a.namespace).await? {
            let mut faults = Vec::new();
            if let Some(spec) = a.object_as::<Pod>().and_then(|p| p.spec.as_ref()) {
                pod_faults(spec, &range, &mut faults);
            }
            if let Some(claim) = a.object_as::<PersistentVolumeClaim>() {
                claim_faults(claim, &range, &mut faults);
            }
            let mut told = Vec::new();
            faults.into_iter().for_each(|f| {
                if !told.contains(&f) {
                    told.push(f);
                }
            });
            match told.as_slice() {
                [] => {}
                [one] => return Err(a.forbidden(one)),
                many => return Err(a.forbidden(&format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}
