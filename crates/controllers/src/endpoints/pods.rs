//! Pods seen from a Service: which it selects, which of its ports they serve, and when that changed.

use crate::pod_state;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Informer, Queue, Store};
use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The Service's selector, where it has one and takes endpoints.
pub(super) fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|s| !s.is_empty()).map(Selector::from_set)
}

/// Whether the Service has no cluster IP of its own.
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

pub(super) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

/// Addresses of a pod, IPv6 or IPv4.
pub(super) fn addresses(pod: &Pod, v6: bool) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let mut all: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.as_deref().filter(|ip| !ip.is_empty()));
    }
    all.into_iter().filter(|ip| ip.contains(':') == v6).map(str::to_owned).collect()
}

/// Whether a pod stands behind its Services at all.
pub(super) fn is_eligible(pod: &Pod, include_terminating: bool) -> bool {
    let has_ip = pod.status.as_ref().is_some_and(|s| {
        s.pod_ip.as_deref().is_some_and(|ip| !ip.is_empty()) || s.pod_ips.as_ref().is_some_and(|ips| !ips.is_empty())
    });
    has_ip && !pod_state::is_finished(pod) && (include_terminating || pod.metadata.deletion_timestamp.is_none())
}

/// The pod's hostname where the Service gives it a DNS name.
pub(super) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let host = spec.hostname.as_ref().filter(|h| !h.is_empty())?;
    (spec.subdomain.as_deref() == Some(service.metadata.name()) && pod.metadata.namespace == service.metadata.namespace)
        .then(|| host.clone())
}

/// The port of the pod behind a port of the Service; None where the pod has no port of that name.
pub(super) fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(n)) => return Some(*n),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = |p: Option<&String>| p.map_or("TCP", String::as_str).to_owned();
    let wanted = protocol(port.protocol.as_ref());
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers: Vec<&Container> = spec.containers.iter().chain(sidecars).collect();
    containers
        .iter()
        .flat_map(|c| c.ports.iter().flatten())
        .find(|p| p.name.as_ref() == Some(name) && protocol(p.protocol.as_ref()) == wanted)
        .map(|p| p.container_port)
}

/// Puts the keys of Services into `queue` when they change or a pod they select does.
pub(super) fn watch_services(services: &Informer<Service>, pods: &Informer<Pod>, queue: &Queue) {
    let q = queue.clone();
    services.on_change(move |change| q.add(key_of(&**change.object())));
    let (q, all) = (queue.clone(), services.store().clone());
    pods.on_change(move |change| match change {
        Change::Modified { old, new } => {
            if !concerns(old, new) {
                return;
            }
            enqueue_selecting(&all, new, &q);
            if old.metadata.labels != new.metadata.labels {
                enqueue_selecting(&all, old, &q);
            }
        }
        other => enqueue_selecting(&all, other.object(), &q),
    });
}

/// Whether a change of a pod can change any endpoint.
fn concerns(old: &Pod, new: &Pod) -> bool {
    let ips = |p: &Pod| p.status.as_ref().map(|s| (s.pod_ip.clone(), s.pod_ips.clone()));
    let place = |p: &Pod| p.spec.as_ref().map(|s| (s.node_name.clone(), s.hostname.clone(), s.subdomain.clone()));
    old.metadata.labels != new.metadata.labels
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
        || pod_state::is_ready(old) != pod_state::is_ready(new)
        || pod_state::is_finished(old) != pod_state::is_finished(new)
        || ips(old) != ips(new)
        || place(old) != place(new)
}

fn enqueue_selecting(services: &Store<Service>, pod: &Pod, queue: &Queue) {
    for service in services.list_in(pod.metadata.namespace()) {
        if selector(&service).is_some_and(|s| s.matches_optional(pod.metadata.labels.as_ref())) {
            queue.add(key_of(&*service));
        }
    }
}

#[derive(Default)]
struct Triggers {
    service: Option<Timestamp>,
    pods: BTreeMap<String, Timestamp>,
}

/// Remembers what has been seen, to tell when the earliest change since then happened.
#[derive(Default)]
pub(super) struct TriggerTimes(Mutex<BTreeMap<String, Triggers>>);

impl TriggerTimes {
    /// The time of the earliest change of the Service or its pods since the last call.
    pub(super) fn next(&self, key: &str, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let mut all = self.0.lock();
        let known = all.entry(key.to_owned()).or_default();
        let created = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let mut earliest = created.filter(|t| known.service.is_none_or(|k| *t > k));
        let mut seen = BTreeMap::new();
        for pod in pods {
            let changed = pod_state::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
            let Some(changed) = changed else { continue };
            if known.pods.get(pod.metadata.name()).is_none_or(|k| changed > *k) {
                earliest = Some(earliest.map_or(changed, |e| e.min(changed)));
            }
            seen.insert(pod.metadata.name().to_owned(), changed);
        }
        known.service = created;
        known.pods = seen;
        earliest
    }

    pub(super) fn forget(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

/// The value of the trigger annotation.
pub(super) fn trigger_text(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
