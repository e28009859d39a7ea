//! The Service `kube-dns`, behind which every node answers for itself: each agent serves the cluster's names on the
//! first address of each of its pod ranges, and `internalTrafficPolicy: Local` leads every query to the node it comes from.
//!
//! Nodes may not write EndpointSlices (one could take over the names of all), so they are written here, one per node
//! and family and owned by the Node object, whose garbage they become. A Service `kube-dns` with a selector is somebody's own DNS and is
//! left alone, and so are endpoints then.

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_api::{ObjectMeta, OwnerReference};
use gantry_reconcile::{
    Action, Controller, Error, EventRecorder, Informer, Outcome, Plan, Queue, plan, runner, wait_synced,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::IpAddr;
use std::sync::Arc;

/// Namespace of the Service, where clients of other distributions expect it.
const NAMESPACE: &str = "kube-system";
/// Its name, likewise.
const NAME: &str = "kube-dns";
/// What the names of a node's slices start with: that of its primary pod range, and of its other one. No node's name makes
/// one look like the other.
const SLICES: [&str; 2] = ["kube-dns-", "kube-dns2-"];
/// Name and protocol of its ports, both 53.
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];
const PORT: i32 = 53;
/// The queue's key for the Service; no Node has an empty name.
const SERVICE: &str = "";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["nodes", "services"], &["get", "list", "watch"]),
    Rule::new(&[""], &["services"], &["create"]),
    Rule { groups: &[""], resources: &["services"], verbs: &["update"], names: &[NAME] },
    Rule::new(&["discovery.k8s.io"], &["endpointslices"], &["create", "get", "list", "update", "watch"]),
    EVENTS,
];

struct ClusterDns {
    addresses: Vec<IpAddr>,
    nodes: Informer<Node>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let addresses = setup.config.cluster_dns.clone();
    if addresses.is_empty() {
        return setup.cancel.cancelled().await;
    }
    let nodes = setup.informers.get::<Node>();
    let services = setup.informers.get::<Service>();
    let slices = setup.informers.get::<EndpointSlice>();
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    nodes.on_change(move |change| keys.add(change.object().metadata.name().to_owned()));
    let (keys, all) = (queue.clone(), nodes.clone());
    services.on_change(move |change| {
        let meta = &change.object().metadata;
        if meta.namespace() == NAMESPACE && meta.name() == NAME {
            keys.add(SERVICE.to_owned());
            for node in all.list() {
                keys.add(node.metadata.name().to_owned());
            }
        }
    });
    let keys = queue.clone();
    slices.on_change(move |change| {
        let meta = &change.object().metadata;
        let node = SLICES.iter().find_map(|prefix| meta.name().strip_prefix(prefix));
        if let Some(node) = node.filter(|_| meta.namespace() == NAMESPACE) {
            keys.add(node.to_owned());
        }
    });
    if !wait_synced(&[&nodes, &services, &slices], &setup.cancel).await {
        return;
    }
    queue.add(SERVICE.to_owned());
    let (recorder, cancel) = (setup.recorder(setup.name), setup.cancel.clone());
    runner::run(Arc::new(ClusterDns { addresses, nodes, services, slices, recorder, setup }), queue, 1, cancel).await;
}

/// Gives the Service these addresses and their families.
fn set_addresses(spec: &mut ServiceSpec, addresses: &[IpAddr]) {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    spec.cluster_ip = texts.first().cloned();
    spec.cluster_ips = Some(texts);
    spec.ip_families = Some(addresses.iter().map(|ip| family(*ip).to_owned()).collect());
    spec.ip_family_policy = Some(if addresses.len() > 1 { "PreferDualStack" } else { "SingleStack" }.to_owned());
}

fn service(addresses: &[IpAddr]) -> Service {
    let mut made = template();
    set_addresses(made.spec.get_or_insert_default(), addresses);
    made
}

fn template() -> Service {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Service {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(NAMESPACE.into()),
            labels: Some(
                [
                    label("k8s-app", NAME),
                    label("kubernetes.io/cluster-service", "true"),
                    label("kubernetes.io/name", "CoreDNS"),
                ]
                .into(),
            ),
            ..Default::default()
        },
        spec: Some(ServiceSpec {
            internal_traffic_policy: Some("Local".into()),
            ports: Some(
                PORTS
                    .map(|(name, protocol)| ServicePort {
                        name: Some(name.into()),
                        protocol: Some(protocol.into()),
                        port: PORT,
                        target_port: Some(IntOrString::Int(PORT)),
                        ..Default::default()
                    })
                    .into(),
            ),
            ..Default::default()
        }),
        status: None,
    }
}

fn is_foreign(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty())
}

/// What to do about the Service.
#[must_use]
pub fn decide_service(addresses: &[IpAddr], current: Option<&Service>) -> Plan {
    let mut plan = Plan::default();
    match current {
        None => plan.push(Action::ensure(&service(addresses))),
        Some(found) if is_foreign(found) => {}
        Some(found) => {
            let mut changed = found.clone();
            let spec = changed.spec.get_or_insert_default();
            spec.internal_traffic_policy = Some("Local".into());
            // The cluster was of one family when the Service was made.
            if let ([first, _], [only]) = (addresses, spec.cluster_ips.as_deref().unwrap_or_default())
                && *only == first.to_string()
            {
                set_addresses(spec, addresses);
            }
            if changed.spec != found.spec {
                plan.push(Action::update(&changed));
            }
        }
    }
    plan
}

/// Where a node serves DNS: the first address of each of its pod ranges.
fn addresses_of(node: &Node) -> Vec<IpAddr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let ranges = spec.pod_cidrs.as_deref().unwrap_or_default().iter().filter_map(|range| range.parse().ok());
    ranges.filter_map(|range| first_of(&range)).collect()
}

fn first_of(range: &IpNet) -> Option<IpAddr> {
    Some(match range.network() {
        IpAddr::V4(a) => std::net::Ipv4Addr::from_bits(a.to_bits().checked_add(1)?).into(),
        IpAddr::V6(a) => std::net::Ipv6Addr::from_bits(a.to_bits().checked_add(1)?).into(),
    })
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// What to do about a node's endpoints in one of its pod ranges.
#[must_use]
pub fn decide_slice(node: &Node, index: usize, current: Option<&EndpointSlice>) -> Plan {
    let mut plan = Plan::default();
    let (Some(address), Some(prefix)) = (addresses_of(node).get(index).copied(), SLICES.get(index)) else {
        return plan;
    };
    let name = node.metadata.name();
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid: node.metadata.uid().to_owned(),
        ..Default::default()
    };
    let endpoint = Endpoint {
        addresses: vec![address.to_string()],
        // Not the node's own condition: the only ones led here are on the node itself.
        conditions: Some(EndpointConditions { ready: Some(true), ..Default::default() }),
        node_name: Some(name.to_owned()),
        ..Default::default()
    };
    let mut wanted = current.cloned().unwrap_or_default();
    wanted.metadata.name = Some(format!("{prefix}{name}"));
    wanted.metadata.namespace = Some(NAMESPACE.into());
    wanted.metadata.owner_references = Some(vec![owner]);
    let labels = wanted.metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/service-name".into(), NAME.into());
    labels.insert("endpointslice.kubernetes.io/managed-by".into(), "gantry.local".into());
    wanted.address_type = family(address).into();
    wanted.endpoints = Some(vec![endpoint]);
    wanted.ports = Some(
        PORTS
            .map(|(name, protocol)| EndpointPort {
                name: Some(name.into()),
                protocol: Some(protocol.into()),
                port: Some(PORT),
                app_protocol: None,
            })
            .into(),
    );
    match current {
        None => plan.push(Action::ensure(&wanted)),
        Some(found) if *found == wanted => {}
        Some(_) => plan.push(Action::update(&wanted)),
    }
    plan
}

#[async_trait]
impl Controller for ClusterDns {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let current = self.services.get(NAMESPACE, NAME);
        if key == SERVICE {
            let steps = decide_service(&self.addresses, current.as_deref());
            plan::execute(&self.setup.client, &self.recorder, &steps).await?;
        } else if let Some(node) = self.nodes.get("", key).filter(|_| !current.is_some_and(|s| is_foreign(&s))) {
            for (index, prefix) in SLICES.iter().enumerate() {
                let slice = self.slices.get(NAMESPACE, &format!("{prefix}{key}"));
                let steps = decide_slice(&node, index, slice.as_deref());
                plan::execute(&self.setup.client, &self.recorder, &steps).await?;
            }
        }
        Ok(Outcome::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn the_service_is_made_and_kept_local() {
        let address: IpAddr = "10.96.0.10".parse().unwrap();
        let first = decide_service(&[address], None);
        let [Action::Ensure(target, body)] = first.actions.as_slice() else { panic!("{first:?}") };
        assert_eq!(target.to_string(), "services kube-system/kube-dns");
        let there = Service::from_value(body.clone()).unwrap();
        assert!(decide_service(&[address], Some(&there)).is_empty());
        // The second family comes later.
        let both = [address, "fd00:96::a".parse().unwrap()];
        let [Action::Update(_, body)] = &decide_service(&both, Some(&there)).actions[..] else { panic!() };
        assert_eq!(body["spec"]["clusterIPs"], json!(["10.96.0.10", "fd00:96::a"]));
        assert_eq!(body["spec"]["ipFamilyPolicy"], "PreferDualStack");
        assert!(decide_service(&both, Some(&Service::from_value(body.clone()).unwrap())).is_empty());
        let mut everywhere = there.clone();
        everywhere.spec.as_mut().unwrap().internal_traffic_policy = Some("Cluster".into());
        let [Action::Update(_, body)] = &decide_service(&[address], Some(&everywhere)).actions[..] else { panic!() };
        assert_eq!(body["spec"]["internalTrafficPolicy"], "Local");
        everywhere.spec.as_mut().unwrap().selector = Some([("k8s-app".to_owned(), "coredns".to_owned())].into());
        assert!(decide_service(&[address], Some(&everywhere)).is_empty());
    }

    #[test]
    fn every_node_answers_on_its_first_pod_address() {
        let node = |spec| Node::from_value(json!({"metadata": {"name": "n2", "uid": "u"}, "spec": spec})).unwrap();
        assert!(decide_slice(&node(json!({})), 0, None).is_empty());
        let two = node(json!({"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]}));
        let first = decide_slice(&two, 0, None);
        assert!(decide_slice(&two, 1, None).is_empty());
        let [Action::Ensure(target, body)] = first.actions.as_slice() else { panic!("{first:?}") };
        assert_eq!(target.to_string(), "endpointslices.discovery.k8s.io kube-system/kube-dns-n2");
        assert_eq!(body["endpoints"][0]["addresses"], json!(["10.244.2.1"]));
        assert_eq!(body["endpoints"][0]["nodeName"], "n2");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u");
        let mut there = EndpointSlice::from_value(body.clone()).unwrap();
        assert!(decide_slice(&two, 0, Some(&there)).is_empty());
        there.endpoints.as_mut().unwrap()[0].addresses = vec!["10.244.9.1".into()];
        assert_eq!(decide_slice(&two, 0, Some(&there)).actions.len(), 1);
        let dual = node(json!({"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24", "fd00:2::/64"]}));
        let second = decide_slice(&dual, 1, None);
        let [Action::Ensure(target, body)] = second.actions.as_slice() else { panic!("{second:?}") };
        assert_eq!(target.to_string(), "endpointslices.discovery.k8s.io kube-system/kube-dns2-n2");
        assert_eq!(
            (&body["addressType"], &body["endpoints"][0]["addresses"][0]),
            (&json!("IPv6"), &json!("fd00:2::1"))
        );
    }
}
