//! The elder Endpoints object of a Service.

use super::pods::{addresses, hostname, is_eligible, is_headless, publishes_not_ready, target_port};
use super::{HEADLESS, TRIGGER_TIME};
use crate::pod_state;
use gantry_api::ObjectMeta;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// No more addresses than this stand in one object.
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Label and value by which consumers know that an EndpointSlice exists as well.
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");

type PortKey = (String, i32, String, String);

/// A port as a key that orders.
fn port_key(p: &EndpointPort) -> PortKey {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    (text(&p.name), p.port, text(&p.protocol), text(&p.app_protocol))
}

fn port_of(k: &PortKey) -> EndpointPort {
    let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    EndpointPort { name: some(&k.0), port: k.1, protocol: some(&k.2), app_protocol: some(&k.3) }
}

/// Subsets of the addresses of `pods`, those with the same ports together, in a stable order.
#[must_use]
pub fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = publishes_not_ready(service);
    let v6 = match spec.ip_families.as_ref().and_then(|f| f.first()) {
        Some(f) => f == "IPv6",
        None => spec.cluster_ip.as_deref().is_some_and(|ip| ip.contains(':')),
    };
    let mut by_address: BTreeMap<(String, String), (EndpointAddress, bool, BTreeSet<PortKey>)> = BTreeMap::new();
    for pod in pods.iter().filter(|p| is_eligible(p, all)) {
        let Some(ip) = addresses(pod, v6).into_iter().next() else { continue };
        let ports: BTreeSet<PortKey> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|p| {
                let port = target_port(pod, p)?;
                Some(port_key(&EndpointPort {
                    name: p.name.clone(),
                    port,
                    protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
                    app_protocol: p.app_protocol.clone(),
                }))
            })
            .collect();
        let bare = spec.ports.as_ref().is_none_or(Vec::is_empty) && is_headless(spec);
        if ports.is_empty() && !bare {
            continue;
        }
        let address = EndpointAddress {
            ip: ip.clone(),
            hostname: hostname(pod, service),
            node_name: Some(pod_state::node_name(pod)).filter(|n| !n.is_empty()).map(str::to_owned),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".into()),
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..Default::default()
            }),
        };
        let ready = all || pod_state::is_ready(pod);
        by_address.insert((ip, pod.metadata.uid().to_owned()), (address, ready, ports));
    }
    let mut by_ports: BTreeMap<BTreeSet<PortKey>, EndpointSubset> = BTreeMap::new();
    for (address, ready, ports) in by_address.into_values() {
        let subset = by_ports.entry(ports.clone()).or_insert_with(|| EndpointSubset {
            ports: (!ports.is_empty()).then(|| ports.iter().map(port_of).collect()),
            ..Default::default()
        });
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    by_ports.into_values().collect()
}

/// Cuts to the capacity, ready addresses first; whether anything was cut.
fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let len = |l: &Option<Vec<EndpointAddress>>| l.as_ref().map_or(0, Vec::len);
    let total: usize = subsets.iter().map(|s| len(&s.addresses) + len(&s.not_ready_addresses)).sum();
    if total <= CAPACITY {
        return false;
    }
    let mut room = CAPACITY;
    for ready in [true, false] {
        for s in subsets.iter_mut() {
            let list = if ready { &mut s.addresses } else { &mut s.not_ready_addresses };
            if let Some(l) = list {
                l.truncate(room);
                room -= l.len();
                if l.is_empty() {
                    *list = None;
                }
            }
        }
    }
    subsets.retain(|s| s.addresses.is_some() || s.not_ready_addresses.is_some());
    true
}

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// The object is as it should be.
    Nothing,
    /// A new object.
    Create(Endpoints),
    /// A changed object.
    Update(Endpoints),
}

/// Compares the Endpoints of a Service with its pods. `trigger` is the value of the trigger annotation.
pub(super) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    current: Option<&Endpoints>,
    trigger: Option<String>,
) -> Wanted {
    let mut subsets = subsets(service, pods);
    let cut = truncate(&mut subsets);
    let mut labels = service.metadata.labels_or_empty().clone();
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(is_headless) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let labels = Some(labels);
    let subsets = (!subsets.is_empty()).then_some(subsets);
    if let Some(c) = current {
        let same_cut = cut == (c.metadata.annotation(OVER_CAPACITY) == Some("truncated"));
        let stored = c.subsets.as_ref().filter(|s| !s.is_empty());
        if stored == subsets.as_ref() && c.metadata.labels == labels && same_cut {
            return Wanted::Nothing;
        }
    }
    let mut next = current.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..Default::default()
        },
        subsets: None,
    });
    next.subsets = subsets;
    next.metadata.labels = labels;
    let annotations = next.metadata.annotations.get_or_insert_default();
    match trigger {
        Some(t) => annotations.insert(TRIGGER_TIME.to_owned(), t),
        None => annotations.remove(TRIGGER_TIME),
    };
    if cut {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        next.metadata.annotations = None;
    }
    if current.is_some() { Wanted::Update(next) } else { Wanted::Create(next) }
}
