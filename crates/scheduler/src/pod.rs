//! A pod as the scheduler sees it: everything the plugins ask for, computed once.

use crate::gang::Membership;
use gantry_api::core::placement::{self, HostPort};
use gantry_api::k8s_openapi::api::core::v1 as core;
use gantry_api::meta::labels::{Labels, Selector};
use gantry_api::meta::quantity::amount_of;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// Requests counted for scoring where a container names none (`schedutil.DefaultMilliCPURequest`, `DefaultMemoryRequest`).
const DEFAULT_CPU_MILLI: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;
/// So many shared values are not looked through for those that nobody holds.
const SHARED_MIN: usize = 1 << 10;

/// What a pod occupies, or a node offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of local ephemeral storage.
    pub ephemeral: i64,
    /// Number of pods.
    pub pods: i64,
    /// Every other resource by name, in its own units.
    pub scalars: BTreeMap<String, i64>,
}

impl Amounts {
    /// From a resource list; `pods` is taken from it too (a node's).
    #[must_use]
    pub fn of_list(list: Option<&BTreeMap<String, core_quantity::Quantity>>) -> Self {
        let mut out = Self::default();
        for name in list.into_iter().flat_map(BTreeMap::keys) {
            let amount = amount_of(list, name);
            match name.as_str() {
                "cpu" => out.cpu_milli = amount.milli_value(),
                "memory" => out.memory = amount.value(),
                "ephemeral-storage" => out.ephemeral = amount.value(),
                "pods" => out.pods = amount.value(),
                other => {
                    out.scalars.insert(other.to_owned(), amount.value());
                }
            }
        }
        out
    }

    /// Adds (`sign` 1) or takes away (`sign` -1).
    pub fn add(&mut self, other: &Self, sign: i64) {
        self.cpu_milli += sign * other.cpu_milli;
        self.memory += sign * other.memory;
        self.ephemeral += sign * other.ephemeral;
        self.pods += sign * other.pods;
        for (name, n) in &other.scalars {
            *self.scalars.entry(name.clone()).or_default() += sign * n;
        }
    }
}

use gantry_api::k8s_openapi::apimachinery::pkg::api::resource as core_quantity;

/// A pod (anti-)affinity term, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AffinityTerm {
    /// Namespaces named.
    pub namespaces: BTreeSet<String>,
    /// Namespaces selected by their labels.
    pub namespace_selector: Option<Selector>,
    /// Pods selected; nothing where the term has no selector.
    pub selector: Selector,
    /// The node label that makes a domain.
    pub topology_key: String,
    /// 1–100 for preferred terms, 0 for required ones.
    pub weight: i64,
}

/// The most restrictive reading of a selector that cannot be compiled: it selects nothing. Validation refuses such
/// selectors when they are written.
fn compile(selector: Option<&gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>) -> Selector {
    Selector::from_label_selector(selector).unwrap_or_else(|_| Selector::nothing())
}

impl AffinityTerm {
    fn new(term: &core::PodAffinityTerm, pod_namespace: &str, weight: i64) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(pod_namespace.to_owned());
        }
        Self {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|s| compile(Some(s))),
            // matchLabelKeys and mismatchLabelKeys were merged into the selector when the pod was created.
            selector: compile(term.label_selector.as_ref()),
            topology_key: term.topology_key.clone(),
            weight,
        }
    }

    /// Whether `pod` is selected. `namespace_labels` are those of its namespace.
    #[must_use]
    pub fn matches(&self, pod: &Occupant, namespace_labels: Option<&Labels>) -> bool {
        let in_namespace = self.namespaces.contains(pod.namespace())
            || self.namespace_selector.as_ref().is_some_and(|s| s.matches_optional(namespace_labels));
        in_namespace && self.selector.matches(pod.labels())
    }
}

/// What pods of one template have in common for the decisions on other pods.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// What a pod occupies.
    pub requests: Amounts,
    /// CPU counted in scores, never 0.
    pub score_cpu_milli: i64,
    /// Memory counted in scores, never 0.
    pub score_memory: i64,
    /// Node ports it takes.
    pub host_ports: Vec<HostPort>,
    /// Required affinity.
    pub affinity: Vec<AffinityTerm>,
    /// Required anti-affinity.
    pub anti_affinity: Vec<AffinityTerm>,
    /// Preferred affinity; negative weights are preferred anti-affinity.
    pub preferred: Vec<AffinityTerm>,
    /// Priority.
    pub priority: i32,
}

impl Shape {
    fn new(spec: &core::PodSpec, namespace: &str) -> Self {
        let mut requests = Amounts { pods: 1, ..Amounts::default() };
        for (resource, amount) in gantry_api::core::pod::resources::pod_requests(spec) {
            match resource.as_str() {
                "cpu" => requests.cpu_milli = amount.milli_value(),
                "memory" => requests.memory = amount.value(),
                "ephemeral-storage" => requests.ephemeral = amount.value(),
                _ => {
                    requests.scalars.insert(resource.clone(), amount.value());
                }
            }
        }
        let (score_cpu_milli, score_memory) = score_requests(spec, &requests);
        let affinity = spec.affinity.as_ref();
        let (aff, anti) =
            (affinity.and_then(|a| a.pod_affinity.as_ref()), affinity.and_then(|a| a.pod_anti_affinity.as_ref()));
        let required = |terms: Option<&Vec<core::PodAffinityTerm>>| -> Vec<AffinityTerm> {
            terms.into_iter().flatten().map(|t| AffinityTerm::new(t, namespace, 0)).collect()
        };
        let weighted = |terms: Option<&Vec<core::WeightedPodAffinityTerm>>, sign: i64| -> Vec<AffinityTerm> {
            terms
                .into_iter()
                .flatten()
                .map(|t| AffinityTerm::new(&t.pod_affinity_term, namespace, sign * i64::from(t.weight)))
                .collect()
        };
        let mut preferred =
            weighted(aff.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()), 1);
        preferred
            .extend(weighted(anti.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()), -1));
        Self {
            requests,
            score_cpu_milli,
            score_memory,
            host_ports: placement::host_ports(spec),
            affinity: required(aff.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            anti_affinity: required(anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            preferred,
            priority: spec.priority.unwrap_or(0),
        }
    }
}

/// A pod as the decisions on other pods see it: what is kept of those that have their nodes, of which there are many.
#[derive(Clone, Debug)]
pub struct Occupant {
    /// `namespace/name`.
    pub key: Box<str>,
    /// UID.
    pub uid: Arc<str>,
    /// The group it is placed with.
    pub group: Option<Box<Membership>>,
    /// Keys `namespace/name` of the claims it uses.
    pub claims: Box<[String]>,
    shape: Arc<Shape>,
    labels: Arc<Labels>,
    started: i64,
    terminating: bool,
    giving_way: bool,
}

impl Occupant {
    fn new(pod: &core::Pod) -> Self {
        let (metadata, spec, status) = (&pod.metadata, spec_of(pod), pod.status.as_ref());
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        let claims = spec.volumes.iter().flatten();
        let claims = claims.filter_map(|v| gantry_api::storage::binding::claim_name(pod, v));
        let preempted = |c: &core::PodCondition| {
            c.type_ == "DisruptionTarget" && c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler")
        };
        let terminating = metadata.deletion_timestamp.is_some();
        Self {
            key: format!("{namespace}/{name}").into(),
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            group: Membership::of(pod).map(Box::new),
            claims: claims.map(|claim| format!("{namespace}/{claim}")).collect(),
            shape: Arc::new(Shape::new(spec, namespace)),
            labels: Arc::new(metadata.labels.clone().unwrap_or_default()),
            started: status.and_then(|s| s.start_time.as_ref()).map_or(i64::MAX, |t| t.0.as_second()),
            terminating,
            giving_way: terminating && status.iter().flat_map(|s| s.conditions.iter().flatten()).any(preempted),
        }
    }

    /// Namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or("", |(_, name)| name)
    }

    /// What it has in common with others of its template.
    #[must_use]
    pub fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    /// The pod's labels.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// When it started, in seconds; for ever where it did not.
    #[must_use]
    pub fn started(&self) -> i64 {
        self.started
    }

    /// Whether deletion has begun.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.terminating
    }

    /// Whether it is being deleted because it was preempted.
    #[must_use]
    pub fn is_giving_way(&self) -> bool {
        self.giving_way
    }

    /// Whether two states of one placed pod are the same to the decisions on other pods. What of its spec cannot change
    /// any more is not compared.
    #[must_use]
    pub fn weighs_as(&self, other: &Self) -> bool {
        self.requests == other.requests
            && (self.score_cpu_milli, self.score_memory) == (other.score_cpu_milli, other.score_memory)
            && (self.priority, self.terminating, self.started) == (other.priority, other.terminating, other.started)
            && self.labels == other.labels
    }
}

impl Deref for Occupant {
    type Target = Shape;

    fn deref(&self) -> &Shape {
        &self.shape
    }
}

/// What is equal in many placed pods, held once.
#[derive(Debug, Default)]
pub struct Shapes {
    shapes: Shared<Shape>,
    labels: Shared<Labels>,
}

impl Shapes {
    /// The same pod with what it has in common with others seen before.
    #[must_use]
    pub fn of(&mut self, pod: &Occupant) -> Occupant {
        let (shape, labels) = (self.shapes.of(&pod.shape), self.labels.of(&pod.labels));
        Occupant { shape, labels, ..pod.clone() }
    }
}

/// Values of which equal ones are held once, as long as somebody else holds them.
#[derive(Debug)]
struct Shared<T> {
    known: HashSet<Arc<T>>,
    /// How many there may be until those that nobody holds any more are looked for.
    enough: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), enough: SHARED_MIN }
    }
}

impl<T: Eq + Hash> Shared<T> {
    fn of(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(value) {
            return known.clone();
        }
        if self.known.len() >= self.enough {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.known.shrink_to(2 * self.known.len());
            self.enough = SHARED_MIN.max(2 * self.known.len());
        }
        self.known.insert(value.clone());
        value.clone()
    }
}

/// A pod that is to be placed, with what the plugins need.
#[derive(Debug)]
pub struct PodInfo {
    /// The pod.
    pub pod: Arc<core::Pod>,
    /// What decisions on other pods will see of it.
    pub occupant: Arc<Occupant>,
    class: OnceLock<String>,
}

impl Deref for PodInfo {
    type Target = Occupant;

    fn deref(&self) -> &Occupant {
        &self.occupant
    }
}

fn spec_of(pod: &core::Pod) -> &core::PodSpec {
    static NO_SPEC: std::sync::LazyLock<core::PodSpec> = std::sync::LazyLock::new(core::PodSpec::default);
    pod.spec.as_ref().unwrap_or(&NO_SPEC)
}

impl PodInfo {
    /// Computes everything once.
    #[must_use]
    pub fn new(pod: Arc<core::Pod>) -> Self {
        Self { occupant: Arc::new(Occupant::new(&pod)), pod, class: OnceLock::new() }
    }

    /// Names the class of pods like this one, as `key` does when it is asked first.
    pub fn class_key(&self, key: impl FnOnce(&Self) -> String) -> &str {
        self.class.get_or_init(|| key(self))
    }

    /// The pod's spec.
    #[must_use]
    pub fn spec(&self) -> &core::PodSpec {
        spec_of(&self.pod)
    }

    /// The node the pod is bound to, if any.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.spec().node_name.as_deref().filter(|n| !n.is_empty())
    }

    /// Name of the scheduler that is to place it.
    #[must_use]
    pub fn scheduler(&self) -> &str {
        self.spec().scheduler_name.as_deref().unwrap_or("default-scheduler")
    }

    /// The same pod as if it had no node and had been promised none.
    #[must_use]
    pub fn unbound(&self) -> Arc<Self> {
        let mut pod = self.pod.as_ref().clone();
        if let Some(spec) = &mut pod.spec {
            spec.node_name = None;
        }
        if let Some(status) = &mut pod.status {
            status.nominated_node_name = None;
        }
        Arc::new(Self::new(Arc::new(pod)))
    }

    /// Whether it has run to its end; such pods occupy nothing.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
    }

    /// The node nominated for it by preemption, if any.
    #[must_use]
    pub fn nominated_node(&self) -> Option<&str> {
        self.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref()).filter(|n| !n.is_empty())
    }
}

/// CPU and memory as scores count them: each container that names none counts the defaults.
fn score_requests(spec: &core::PodSpec, requests: &Amounts) -> (i64, i64) {
    let lacks = |resource: &str| {
        let missing = |c: &core::Container| {
            !c.resources.as_ref().and_then(|r| r.requests.as_ref()).is_some_and(|r| r.contains_key(resource))
        };
        i64::try_from(spec.containers.iter().filter(|c| missing(c)).count()).unwrap_or(i64::MAX)
    };
    let pod_level = |resource: &str| {
        spec.resources.as_ref().and_then(|r| r.requests.as_ref()).is_some_and(|r| r.contains_key(resource))
    };
    let cpu = if pod_level("cpu") { 0 } else { lacks("cpu") * DEFAULT_CPU_MILLI };
    let memory = if pod_level("memory") { 0 } else { lacks("memory") * DEFAULT_MEMORY_BYTES };
    (requests.cpu_milli + cpu, requests.memory + memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: usize, app: &str, cpu: &str) -> Arc<core::Pod> {
        let pod = serde_json::json!({
            "metadata": { "namespace": "ns", "name": format!("web-{number}"), "uid": format!("uid-{number}"), "labels": { "app": app } },
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }], "affinity": {
                "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
                    { "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": app } } },
                ] },
            } },
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn pods_of_one_template_share_what_they_have_in_common() {
        let mut shapes = Shapes::default();
        let mut occupant = |number, app, cpu| shapes.of(&PodInfo::new(pod(number, app, cpu)).occupant);
        let (a, b, c, d) = (occupant(1, "a", "1"), occupant(2, "a", "1"), occupant(3, "a", "2"), occupant(4, "b", "1"));
        assert_eq!((a.namespace(), a.name(), &*a.uid), ("ns", "web-1", "uid-1"));
        assert!(Arc::ptr_eq(&a.shape, &b.shape) && Arc::ptr_eq(&a.labels, &b.labels));
        assert_eq!((b.name(), b.requests.cpu_milli, c.requests.cpu_milli), ("web-2", 1000, 2000));
        assert!(!Arc::ptr_eq(&a.shape, &c.shape) && Arc::ptr_eq(&a.labels, &c.labels));
        assert!(!Arc::ptr_eq(&a.shape, &d.shape) && !Arc::ptr_eq(&a.labels, &d.labels));
        assert!(a.weighs_as(&b) && !a.weighs_as(&c) && !a.weighs_as(&d));
        assert!(a.anti_affinity[0].matches(&b, None) && !a.anti_affinity[0].matches(&d, None));
    }

    #[test]
    fn what_nobody_holds_any_more_is_forgotten() {
        let mut shared = Shared::<usize>::default();
        let held: Vec<Arc<usize>> = (0..10).map(|n| shared.of(&Arc::new(n))).collect();
        for n in 10..5 * SHARED_MIN {
            drop(shared.of(&Arc::new(n)));
        }
        assert!(shared.known.len() <= SHARED_MIN, "{}", shared.known.len());
        assert!(held.iter().all(|value| Arc::ptr_eq(value, &shared.of(&Arc::new(**value)))));
        // As many as are held are not looked through for each that comes.
        let held: Vec<Arc<usize>> = (0..5 * SHARED_MIN).map(|n| shared.of(&Arc::new(n))).collect();
        assert!(shared.known.len() == held.len() && shared.enough > held.len() / 2);
    }
}
