//! EndpointSlices of Services with a selector.

use super::pods::{
    self, TriggerTimes, addresses, hostname, is_eligible, is_headless, publishes_not_ready, target_port,
};
use super::slice_plan::{Group, Wanted, plan};
use super::topology::{self, ByZone, Shares, ZONE};
use super::tracker::Written;
use super::{MANAGED_BY, SERVICE_NAME, SlicePlan};
use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, Client, DeleteParams, PostParams};
use gantry_reconcile::store::{key, key_of};
use gantry_reconcile::{
    Change, Controller, Error, EventRecorder, Index, Informer, Outcome, Queue, runner, wait_synced,
};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;
/// Value of the label that names who manages a slice.
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The key that stands for the nodes: no Service has a name without a namespace.
const NODES: &str = "nodes";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["services", "pods", "nodes"], &["get", "list", "watch"]),
    Rule::new(&[""], &["services/finalizers"], &["update"]),
    Rule::new(&["discovery.k8s.io"], &["endpointslices"], &["create", "delete", "get", "list", "update", "watch"]),
    EVENTS,
];

/// Finds slices by manager and Service.
pub(super) fn by_service(slice: &EndpointSlice) -> Vec<String> {
    match (slice.metadata.label(MANAGED_BY), slice.metadata.label(SERVICE_NAME)) {
        (Some(manager), Some(service)) => {
            vec![format!("{manager}/{}", key(slice.metadata.namespace(), service))]
        }
        _ => Vec::new(),
    }
}

struct Slices {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    by_service: Index<EndpointSlice>,
    triggers: TriggerTimes,
    written: Arc<Written>,
    /// What hints by zones were given, by Service and family.
    hinted: Arc<Hinted>,
    queue: Queue,
    setup: Setup,
    recorder: EventRecorder,
}

/// Hints that were given, by Service and family.
type Hinted = Mutex<BTreeMap<String, BTreeMap<&'static str, ByZone>>>;

/// Runs the controller.
pub async fn run(setup: Setup) {
    let services = setup.informers.get::<Service>();
    let all_pods = setup.informers.get::<Pod>();
    let nodes = setup.informers.get::<Node>();
    let slices = setup.informers.get::<EndpointSlice>();
    let index = slices.index("manager and service", by_service);
    let queue = Queue::new(setup.name);
    let written = Arc::new(Written::default());
    pods::watch_services(&services, &all_pods, &queue);
    watch_slices(&slices, &queue, &written, MANAGER);
    let hinted = Arc::new(Hinted::default());
    let (q, given) = (queue.clone(), hinted.clone());
    nodes.on_change(move |change| {
        // Few clusters ask for such hints; in all others nodes report for nobody here.
        let asked = !given.lock().is_empty();
        let same = |old: &Arc<Node>| topology::facts(old) == topology::facts(change.object());
        if asked && !change.old().is_some_and(same) {
            q.add(NODES.to_owned());
        }
    });
    if !wait_synced(&[&services, &all_pods, &nodes, &slices], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("endpoint-slice-controller"), setup.cancel.clone());
    let controller = Arc::new(Slices {
        services,
        pods: all_pods,
        nodes,
        slices,
        by_service: index,
        triggers: TriggerTimes::default(),
        written,
        hinted,
        queue: queue.clone(),
        setup,
        recorder,
    });
    runner::run(controller, queue, WORKERS, cancel).await;
}

impl Slices {
    /// Has the Services looked at again whose hints would overload a zone, now that the nodes are these.
    fn nodes_changed(&self) {
        let shares = self.shares();
        for (service, families) in self.hinted.lock().iter() {
            if families.values().any(|given| topology::is_overloaded(shares.as_ref(), given)) {
                self.queue.add(service.clone());
            }
        }
    }

    fn shares(&self) -> Option<Shares> {
        Shares::of(self.nodes.list().iter().map(AsRef::as_ref))
    }

    /// Puts hints by the zones' processors into a plan, and tells when they come and why they cannot.
    fn hint(
        &self,
        key: &str,
        service: &Service,
        family: &'static str,
        plan: &mut SlicePlan,
        now: &[Arc<EndpointSlice>],
    ) {
        let named = |s: &EndpointSlice, list: &[EndpointSlice]| list.iter().any(|o| o.metadata.name == s.metadata.name);
        let goes = |s: &EndpointSlice| plan.delete.iter().any(|o| o.metadata.name == s.metadata.name);
        let stays = |s: &&Arc<EndpointSlice>| !s.metadata.is_deleting() && !named(s, &plan.update) && !goes(s);
        let unchanged: Vec<Arc<EndpointSlice>> = now.iter().filter(stays).cloned().collect();
        match topology::spread(self.shares().as_ref(), plan, unchanged) {
            Ok(given) => {
                let mut all = self.hinted.lock();
                let new = !all.contains_key(key);
                all.entry(key.to_owned()).or_default().insert(family, given);
                drop(all);
                if new {
                    let message = format!("Topology Aware Hints has been enabled, addressType: {family}");
                    self.recorder.normal(service, "TopologyAwareHintsEnabled", &message);
                }
            }
            Err(why) => {
                self.forget_hints(key, Some(family));
                let message = format!("{why}, addressType: {family}");
                self.recorder.warning(service, "TopologyAwareHintsDisabled", &message);
            }
        }
    }

    /// Whether there were any hints of the Service; those of one family, or all.
    fn forget_hints(&self, key: &str, family: Option<&str>) -> bool {
        let mut all = self.hinted.lock();
        let Some(families) = all.get_mut(key) else { return false };
        families.retain(|f, _| family.is_some_and(|gone| gone != *f));
        if families.is_empty() {
            all.remove(key);
        }
        true
    }
}

/// Puts the Service's key into `queue` when a slice of `manager` changes.
pub(super) fn watch_slices(
    slices: &Informer<EndpointSlice>,
    queue: &Queue,
    written: &Arc<Written>,
    manager: &'static str,
) {
    let (q, written) = (queue.clone(), written.clone());
    slices.on_change(move |change| {
        let mut seen = vec![change.object()];
        seen.extend(change.old());
        for slice in seen {
            let Some(service) = slice.metadata.label(SERVICE_NAME) else { continue };
            if slice.metadata.label(MANAGED_BY) != Some(manager) {
                continue;
            }
            let key = key(slice.metadata.namespace(), service);
            if matches!(change, Change::Deleted(_)) {
                written.saw_deletion(&key, slice.metadata.name());
            }
            q.add(key);
        }
    });
}

/// Writes a plan's slices and notes what was written.
pub(super) async fn execute(
    client: &Client,
    namespace: &str,
    key: &str,
    plan: &SlicePlan,
    written: &Written,
) -> Result<(), Error> {
    let api = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    let params = PostParams::default();
    for slice in &plan.create {
        match api.create(&params, slice).await {
            Ok(created) => written.wrote(key, &created),
            // Nothing comes into being any more in a namespace that is going.
            Err(e) if crate::replicas::is_namespace_terminating(&e) => return Ok(()),
            Err(e) => return Err(Error::api(format!("create EndpointSlice for Service {key}"), e)),
        }
    }
    for slice in &plan.update {
        match api.update(&params, slice).await {
            Ok(updated) => written.wrote(key, &updated),
            Err(e) => return Err(Error::api(format!("update EndpointSlice {}", slice.metadata.key()), e)),
        }
    }
    for slice in &plan.delete {
        let delete = DeleteParams { precondition_uid: slice.metadata.uid.clone(), ..Default::default() };
        match api.delete(slice.metadata.name(), &delete).await {
            Ok(_) => written.deleted(key, slice.metadata.name()),
            Err(e) if e.is("NotFound") || e.is("Conflict") => {}
            Err(e) => return Err(Error::api(format!("delete EndpointSlice {}", slice.metadata.key()), e)),
        }
    }
    Ok(())
}

#[async_trait]
impl Controller for Slices {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        if key == NODES {
            self.nodes_changed();
            return Ok(Outcome::done());
        }
        let Some(service) = self.services.store().by_key(key) else {
            // The garbage collector deletes the slices, which the Service owns.
            self.triggers.forget(key);
            self.written.forget(key);
            self.forget_hints(key, None);
            return Ok(Outcome::done());
        };
        let Some(selector) = pods::selector(&service) else { return Ok(Outcome::done()) };
        let measured = &self.setup.config.measured;
        if !self.written.is_seen(key, self.slices.store()) {
            measured.slices_synced("stale");
            // Each slice's own event brings the key back; this only guards against one that was lost.
            return Ok(Outcome::after(Duration::from_secs(1)));
        }
        let selected: Vec<Arc<Pod>> = self
            .pods
            .store()
            .list_in(service.metadata.namespace())
            .into_iter()
            .filter(|p| selector.matches_optional(p.metadata.labels.as_ref()))
            .collect();
        let existing = self.by_service.get(&format!("{MANAGER}/{key}"));
        let trigger = self.triggers.next(key, &service, &selected).map(pods::trigger_text);
        let mut lost = Vec::new();
        let mut result = Ok(());
        let families = address_types(&service);
        let by_zones = topology::is_auto(&service);
        if !by_zones && self.forget_hints(key, None) {
            let family = families.first().copied().unwrap_or("IPv4");
            let message = format!("Topology Aware Hints has been disabled, addressType: {family}");
            self.recorder.warning(&*service, "TopologyAwareHintsDisabled", &message);
        }
        for family in ["IPv4", "IPv6"] {
            let of_family: Vec<Arc<EndpointSlice>> =
                existing.iter().filter(|s| s.address_type == family).cloned().collect();
            let plan = if families.contains(&family) {
                let zone = |node: &str| {
                    self.nodes.get("", node).map(|n| n.metadata.label(ZONE).unwrap_or_default().to_owned())
                };
                let (groups, missing) = groups(&service, &selected, family, &zone);
                lost.extend(missing);
                let wanted = Wanted {
                    service: &service,
                    address_type: family,
                    groups,
                    trigger: trigger.clone(),
                    manager: MANAGER,
                    labels: service.metadata.labels_or_empty().clone(),
                    annotations: BTreeMap::new(),
                    keeps_hints: by_zones,
                };
                let mut plan = plan(&wanted, &of_family);
                if by_zones {
                    self.hint(key, &service, family, &mut plan, &of_family);
                }
                plan
            } else {
                self.forget_hints(key, Some(family));
                SlicePlan { delete: of_family, ..Default::default() }
            };
            let namespace = service.metadata.namespace();
            result = execute(&self.setup.client, namespace, key, &plan, &self.written).await;
            if result.is_err() {
                break;
            }
            measured.slices_changed("create", plan.create.len());
            measured.slices_changed("update", plan.update.len());
            measured.slices_changed("delete", plan.delete.len());
        }
        if let Err(e) = &result
            && !e.is_routine()
        {
            let message = format!("Error updating Endpoint Slices for Service {key}: {e}");
            self.recorder.warning(&*service, "FailedToUpdateEndpointSlices", &message);
        }
        measured.slices_synced(if result.is_ok() { "success" } else { "error" });
        result?;
        if lost.is_empty() {
            return Ok(Outcome::done());
        }
        Err(Error::Other(format!("pods on nodes that do not exist: {}", lost.join(", "))))
    }
}

/// Address families of the Service.
fn address_types(service: &Service) -> Vec<&'static str> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let mut types = Vec::new();
    for family in spec.ip_families.iter().flatten() {
        types.push(if family == "IPv6" { "IPv6" } else { "IPv4" });
    }
    if types.is_empty() {
        let v6 = spec.cluster_ip.as_deref().is_some_and(|ip| ip.contains(':'));
        types.push(if v6 { "IPv6" } else { "IPv4" });
    }
    types
}

/// Endpoints of the pods by the ports they serve, and the keys of pods whose node is not known.
pub(super) fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    family: &str,
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> (Vec<Group>, Vec<String>) {
    let mut by_ports: Vec<Group> = Vec::new();
    let mut lost = Vec::new();
    for pod in pods.iter().filter(|p| is_eligible(p, true)) {
        let ips = addresses(pod, family == "IPv6");
        if ips.is_empty() {
            continue;
        }
        let node = pod_state::node_name(pod);
        let zone = zone_of(node);
        if zone.is_none() && !publishes_not_ready(service) {
            lost.push(key_of(&**pod));
            continue;
        }
        let ports = ports(service, pod);
        let endpoint = endpoint(service, pod, ips, zone.filter(|z| !z.is_empty()));
        match by_ports.iter_mut().find(|(p, _)| *p == ports) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => by_ports.push((ports, vec![endpoint])),
        }
    }
    (by_ports, lost)
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.ports.as_deref().unwrap_or_default();
    if all.is_empty() && is_headless(spec) {
        return Vec::new();
    }
    all.iter()
        .filter_map(|p| {
            Some(EndpointPort {
                name: Some(p.name.clone().unwrap_or_default()),
                port: Some(target_port(pod, p)?),
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: p.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(service: &Service, pod: &Pod, addresses: Vec<String>, zone: Option<String>) -> Endpoint {
    let serving = pod_state::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let node = Some(pod_state::node_name(pod)).filter(|n| !n.is_empty()).map(str::to_owned);
    // The annotation that asks for hints by zones' processors goes before the field.
    let spec = service.spec.as_ref().filter(|_| !topology::is_auto(service));
    let distribution = spec.and_then(|s| s.traffic_distribution.as_deref());
    let zones = zone.clone().map(|name| vec![ForZone { name }]);
    let hints = match distribution.filter(|_| ready) {
        Some("PreferClose" | "PreferSameZone") if zones.is_some() => {
            Some(EndpointHints { for_zones: zones, ..Default::default() })
        }
        Some("PreferSameNode") if node.is_some() => {
            Some(EndpointHints { for_zones: zones, for_nodes: node.clone().map(|name| vec![ForNode { name }]) })
        }
        _ => None,
    };
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service),
        node_name: node,
        zone,
        hints,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
        deprecated_topology: None,
    }
}
