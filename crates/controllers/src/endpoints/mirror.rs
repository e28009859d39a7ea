//! EndpointSlices that mirror Endpoints written by hand, for Services without a selector.

use super::slice_plan::{Group, Wanted, plan};
use super::slices::{by_service, execute, watch_slices};
use super::tracker::Written;
use super::{SlicePlan, TRIGGER_TIME};
use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_reconcile::owner::controller_reference;
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Controller, Error, EventRecorder, Index, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Endpoints with this label are not mirrored.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that were an election's lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// No more addresses of one subset are mirrored.
const MAX_PER_SUBSET: usize = 1000;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["services", "endpoints"], &["get", "list", "watch"]),
    Rule::new(&[""], &["services/finalizers", "endpoints/finalizers"], &["update"]),
    Rule::new(&["discovery.k8s.io"], &["endpointslices"], &["create", "delete", "get", "list", "update", "watch"]),
    Rule::new(&["discovery.k8s.io"], &["endpointslices/restricted"], &["create"]),
    EVENTS,
];

struct Mirror {
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
    by_service: Index<EndpointSlice>,
    written: Arc<Written>,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let services = setup.informers.get::<Service>();
    let endpoints = setup.informers.get::<Endpoints>();
    let slices = setup.informers.get::<EndpointSlice>();
    let index = slices.index("manager and service", by_service);
    let queue = Queue::new(setup.name);
    let written = Arc::new(Written::default());
    let q = queue.clone();
    services.on_change(move |change| q.add(key_of(&**change.object())));
    let q = queue.clone();
    endpoints.on_change(move |change| q.add(key_of(&**change.object())));
    watch_slices(&slices, &queue, &written, MANAGER);
    if !wait_synced(&[&services, &endpoints, &slices], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("endpoint-slice-mirroring-controller"), setup.cancel.clone());
    let controller = Arc::new(Mirror { services, endpoints, slices, by_service: index, written, setup, recorder });
    runner::run(controller, queue, WORKERS, cancel).await;
}

/// Whether these Endpoints are to be mirrored at all.
fn is_mirrored(e: &Endpoints) -> bool {
    e.metadata.label(SKIP_MIRROR) != Some("true")
        && e.metadata.annotation(LEADER).is_none()
        && e.metadata.label("endpoints.kubernetes.io/managed-by") != Some("endpoint-controller")
}

#[async_trait]
impl Controller for Mirror {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        if !self.written.is_seen(key, self.slices.store()) {
            return Ok(Outcome::after(Duration::from_secs(1)));
        }
        let existing = self.by_service.get(&format!("{MANAGER}/{key}"));
        let (namespace, _) = gantry_reconcile::store::split_key(key);
        let endpoints = self.endpoints.store().by_key(key).filter(|e| is_mirrored(e));
        let service = self
            .services
            .store()
            .by_key(key)
            .filter(|s| s.spec.as_ref().is_some_and(|s| s.selector.as_ref().is_none_or(|s| s.is_empty())));
        let (Some(endpoints), Some(service)) = (endpoints, service) else {
            let plan = SlicePlan { delete: existing, ..Default::default() };
            execute(&self.setup.client, namespace, key, &plan, &self.written).await?;
            return Ok(Outcome::done());
        };
        for family in ["IPv4", "IPv6"] {
            let of_family: Vec<Arc<EndpointSlice>> =
                existing.iter().filter(|s| s.address_type == family).cloned().collect();
            let plan = mirror_plan(&service, &endpoints, family, &of_family);
            if let Err(e) = execute(&self.setup.client, namespace, key, &plan, &self.written).await {
                if !e.is_routine() {
                    let message = format!("Error updating mirrored EndpointSlices for Endpoints {key}: {e}");
                    self.recorder.warning(&*endpoints, "FailedToUpdateEndpointSlices", &message);
                }
                return Err(e);
            }
        }
        Ok(Outcome::done())
    }
}

/// The slices of one address family that mirror `endpoints`.
pub(super) fn mirror_plan(
    service: &Service,
    endpoints: &Endpoints,
    family: &str,
    existing: &[Arc<EndpointSlice>],
) -> SlicePlan {
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| EndpointPort {
                name: Some(p.name.clone().unwrap_or_default()),
                port: Some(p.port),
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: p.app_protocol.clone(),
            })
            .collect();
        let listed = |l: &Option<Vec<EndpointAddress>>, ready: bool| -> Vec<Endpoint> {
            l.iter()
                .flatten()
                .filter(|a| a.ip.contains(':') == (family == "IPv6"))
                .map(|a| mirrored(a, ready))
                .collect()
        };
        let mut all = listed(&subset.addresses, true);
        all.extend(listed(&subset.not_ready_addresses, false));
        all.truncate(MAX_PER_SUBSET);
        if all.is_empty() {
            continue;
        }
        match groups.iter_mut().find(|(p, _)| *p == ports) {
            Some((_, known)) => known.extend(all),
            None => groups.push((ports, all)),
        }
    }
    let nothing = groups.is_empty();
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    let trigger = annotations.remove(TRIGGER_TIME);
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let wanted = Wanted {
        service,
        address_type: family,
        groups,
        trigger,
        manager: MANAGER,
        labels: endpoints.metadata.labels.clone().unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>(),
        annotations,
        keeps_hints: false,
    };
    // Slices are owned by the Endpoints they mirror, not by the Service.
    let owner = controller_reference(endpoints);
    let borrowed: Vec<Arc<EndpointSlice>> = existing
        .iter()
        .map(|s| {
            let mut s = (**s).clone();
            if let Some(refs) = &mut s.metadata.owner_references {
                for r in refs.iter_mut().filter(|r| **r == owner) {
                    *r = controller_reference(service);
                }
            }
            Arc::new(s)
        })
        .collect();
    let mut plan = plan(&wanted, &borrowed);
    for slice in plan.create.iter_mut().chain(&mut plan.update) {
        slice.metadata.owner_references = Some(vec![owner.clone()]);
    }
    if nothing {
        // Without addresses there is nothing to mirror, not even a placeholder.
        plan.create.clear();
        plan.delete = existing.to_vec();
    }
    plan
}

fn mirrored(a: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![a.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: a.hostname.clone().filter(|h| !h.is_empty()),
        node_name: a.node_name.clone(),
        target_ref: a.target_ref.clone(),
        ..Default::default()
    }
}
