//! Spreads endpoints over slices, changing as few slices as possible.

use super::{HEADLESS, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME};
use gantry_api::ObjectMeta;
use gantry_api::meta::object::Meta;
use gantry_reconcile::owner::controller_reference;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Endpoints in one slice, at most.
pub const MAX_PER_SLICE: usize = 100;

/// Which slices to write.
#[derive(Debug, Default, PartialEq)]
pub struct SlicePlan {
    /// New slices, named by the server.
    pub create: Vec<EndpointSlice>,
    /// Changed slices.
    pub update: Vec<EndpointSlice>,
    /// Slices no longer needed.
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// Endpoints of one set of ports.
pub type Group = (Vec<EndpointPort>, Vec<Endpoint>);

/// What the slices of a Service and address family are to hold.
pub struct Wanted<'a> {
    /// The Service.
    pub service: &'a Service,
    /// `IPv4` or `IPv6`.
    pub address_type: &'a str,
    /// Endpoints by ports; no two groups have the same ports.
    pub groups: Vec<Group>,
    /// Value of the trigger annotation, where something changed.
    pub trigger: Option<String>,
    /// Who manages the slices.
    pub manager: &'a str,
    /// Labels that slices take over, usually the Service's.
    pub labels: BTreeMap<String, String>,
    /// Annotations that slices take over.
    pub annotations: BTreeMap<String, String>,
    /// Whether hints that stand in slices are no difference: somebody else decides on them afterwards.
    pub keeps_hints: bool,
}

/// Who an endpoint is, whatever its conditions.
fn identity(e: &Endpoint) -> (Option<String>, Vec<String>, Option<String>) {
    let target = e.target_ref.as_ref().and_then(|t| t.uid.clone());
    let mut addresses = e.addresses.clone();
    addresses.sort();
    (target, addresses, e.hostname.clone())
}

/// Ports in an order that does not depend on where they come from.
fn port_key(ports: &[EndpointPort]) -> Vec<(String, i32, String, String)> {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let mut key: Vec<_> =
        ports.iter().map(|p| (text(&p.name), p.port.unwrap_or(0), text(&p.protocol), text(&p.app_protocol))).collect();
    key.sort();
    key
}

/// The labels a slice of the Service has.
fn labels(wanted: &Wanted<'_>) -> BTreeMap<String, String> {
    let mut labels = wanted.labels.clone();
    labels.remove(HEADLESS);
    if wanted.service.spec.as_ref().is_some_and(super::pods::is_headless) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), wanted.service.metadata.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), wanted.manager.to_owned());
    labels
}

fn new_slice(wanted: &Wanted<'_>, owner: &gantry_api::OwnerReference, ports: &[EndpointPort]) -> EndpointSlice {
    let mut annotations = wanted.annotations.clone();
    if let Some(t) = &wanted.trigger {
        annotations.insert(TRIGGER_TIME.to_owned(), t.clone());
    }
    EndpointSlice {
        address_type: wanted.address_type.to_owned(),
        endpoints: Some(Vec::new()),
        ports: Some(ports.to_vec()),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", wanted.service.metadata.name())),
            namespace: wanted.service.metadata.namespace.clone(),
            labels: Some(labels(wanted)),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![owner.clone()]),
            ..Default::default()
        },
    }
}

fn count(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

/// A slice in the plan, with whether it differs from what is stored.
struct Draft {
    slice: EndpointSlice,
    changed: bool,
}

/// Compares what is wanted with the existing slices of the Service, manager and address type.
#[must_use]
pub fn plan(wanted: &Wanted<'_>, existing: &[Arc<EndpointSlice>]) -> SlicePlan {
    let mut out = SlicePlan::default();
    let owner = controller_reference(wanted.service);
    let mut by_ports: BTreeMap<_, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing.iter().filter(|s| s.address_type == wanted.address_type) {
        let ours = slice.metadata.owner_references.as_ref().is_some_and(|r| r.contains(&owner));
        if slice.metadata.deletion_timestamp.is_some() {
            continue;
        }
        if ours {
            let key = port_key(slice.ports.as_deref().unwrap_or_default());
            by_ports.entry(key).or_default().push(slice.clone());
        } else {
            // Left over from a Service of the same name.
            out.delete.push(slice.clone());
        }
    }
    let mut kept = 0;
    for (ports, endpoints) in &wanted.groups {
        let slices = by_ports.remove(&port_key(ports)).unwrap_or_default();
        kept += group(wanted, &owner, ports, endpoints, slices, &mut out);
    }
    let stale: Vec<Arc<EndpointSlice>> = by_ports.into_values().flatten().collect();
    if kept + out.create.len() == 0 {
        // There is always at least one slice, so that "no endpoints" can be told from "not looked at yet".
        let placeholder = new_slice(wanted, &owner, &[]);
        let same = |s: &EndpointSlice| {
            count(s) == 0
                && s.ports.as_ref().is_none_or(Vec::is_empty)
                && s.metadata.labels == placeholder.metadata.labels
        };
        let keep = stale.iter().chain(&out.delete).find(|s| same(s)).map(|s| s.metadata.name().to_owned());
        out.delete.extend(stale);
        match keep {
            Some(name) => out.delete.retain(|s| s.metadata.name() != name),
            None => out.create.push(placeholder),
        }
    } else {
        out.delete.extend(stale);
    }
    out
}

/// Plans the slices of one set of ports; how many existing ones stay.
fn group(
    wanted: &Wanted<'_>,
    owner: &gantry_api::OwnerReference,
    ports: &[EndpointPort],
    endpoints: &[Endpoint],
    slices: Vec<Arc<EndpointSlice>>,
    out: &mut SlicePlan,
) -> usize {
    let want_labels = Some(labels(wanted));
    let mut open: BTreeMap<_, &Endpoint> = endpoints.iter().map(|e| (identity(e), e)).collect();
    let mut drafts = Vec::new();
    for stored in slices {
        let mut draft = Draft { slice: (*stored).clone(), changed: false };
        let mut held = Vec::new();
        for e in stored.endpoints.iter().flatten() {
            match open.remove(&identity(e)) {
                Some(fresh) => {
                    let mut fresh = fresh.clone();
                    if wanted.keeps_hints {
                        fresh.hints.clone_from(&e.hints);
                    }
                    draft.changed |= fresh != *e;
                    held.push(fresh);
                }
                None => draft.changed = true,
            }
        }
        draft.slice.endpoints = Some(held);
        if draft.slice.metadata.labels != want_labels {
            draft.slice.metadata.labels.clone_from(&want_labels);
            draft.changed = true;
        }
        let stored = draft.slice.metadata.annotations.clone().unwrap_or_default();
        if wanted.annotations.iter().any(|(k, v)| stored.get(k) != Some(v)) {
            draft.slice.metadata.annotations.get_or_insert_default().extend(wanted.annotations.clone());
            draft.changed = true;
        }
        drafts.push(draft);
    }
    let mut new: Vec<Endpoint> = open.into_values().cloned().collect();
    // Slices that are written anyway are filled first, the fullest first; then those with room enough for the rest.
    drafts.sort_by_key(|d| (!d.changed, Reverse(count(&d.slice))));
    for draft in drafts.iter_mut().filter(|d| d.changed) {
        fill(draft, &mut new);
    }
    while new.len() >= MAX_PER_SLICE {
        let rest = new.split_off(MAX_PER_SLICE);
        let mut slice = new_slice(wanted, owner, ports);
        slice.endpoints = Some(std::mem::replace(&mut new, rest));
        out.create.push(slice);
    }
    if !new.is_empty() {
        let fitting = drafts
            .iter_mut()
            .filter(|d| !d.changed && count(&d.slice) + new.len() <= MAX_PER_SLICE)
            .max_by_key(|d| count(&d.slice));
        match fitting {
            Some(draft) => fill(draft, &mut new),
            None => {
                let mut slice = new_slice(wanted, owner, ports);
                slice.endpoints = Some(std::mem::take(&mut new));
                out.create.push(slice);
            }
        }
    }
    let mut kept = 0;
    for mut draft in drafts {
        if count(&draft.slice) == 0 {
            out.delete.push(Arc::new(draft.slice));
            continue;
        }
        kept += 1;
        if draft.changed {
            let annotations = draft.slice.metadata.annotations.get_or_insert_default();
            match &wanted.trigger {
                Some(t) => {
                    annotations.insert(TRIGGER_TIME.to_owned(), t.clone());
                }
                None => {
                    annotations.remove(TRIGGER_TIME);
                }
            }
            out.update.push(draft.slice);
        }
    }
    kept
}

fn fill(draft: &mut Draft, new: &mut Vec<Endpoint>) {
    let room = MAX_PER_SLICE.saturating_sub(count(&draft.slice)).min(new.len());
    if room > 0 {
        draft.slice.endpoints.get_or_insert_default().extend(new.drain(..room));
        draft.changed = true;
    }
}
