//! The Service `kube-dns`, behind which every node answers for itself: each agent serves the cluster's names on the
//! first address of its pod range, and `internalTrafficPolicy: Local` leads every query to the node it comes from.
//!
//! Nodes may not write EndpointSlices (one could take over the names of all), so they are written here, one per node
//! and owned by the Node object, whose garbage they become. A Service `kube-dns` with a selector is somebody's own DNS and is
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
    address: IpAddr,
    nodes: Informer<Node>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let Some(address) = setup.config.cluster_dns else { return setup.cancel.cancelled().await };
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
        if let Some(node) = meta.name().strip_prefix("kube-dns-").filter(|_| meta.namespace() == NAMESPACE) {
            keys.add(node.to_owned());
        }
    });
    if !wait_synced(&[&nodes, &services, &slices], &setup.cancel).await {
        return;
    }
    queue.add(SERVICE.to_owned());
    let (recorder, cancel) = (setup.recorder(setup.name), setup.cancel.clone());
    runner::run(Arc::new(ClusterDns { address, nodes, services, slices, recorder, setup }), queue, 1, cancel).await;
}

fn service(address: IpAddr) -> Service {
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
            cluster_ip: Some(address.to_string()),
            cluster_ips: Some(vec![address.to_string()]),
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
pub fn decide_service(address: IpAddr, current: Option<&Service>) -> Plan {
    let mut plan = Plan::default();
    match current {
        None => plan.push(Action::ensure(&service(address))),
        Some(found) if is_foreign(found) => {}
        Some(found) => {
            let mut changed = found.clone();
            let spec = changed.spec.get_or_insert_default();
            spec.internal_traffic_policy = Some("Local".into());
            if changed.spec != found.spec {
                plan.push(Action::update(&changed));
            }
        }
    }
    plan
}

/// Where a node serves DNS: the first address of its primary pod range.
fn address_of(node: &Node) -> Option<IpAddr> {
    let range: IpNet = node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()?;
    Some(match range.network() {
        IpAddr::V4(a) => std::net::Ipv4Addr::from_bits(a.to_bits().checked_add(1)?).into(),
        IpAddr::V6(a) => std::net::Ipv6Addr::from_bits(a.to_bits().checked_add(1)?).into(),
    })
}

/// What to do about a node's endpoints.
#[must_use]
pub fn decide_slice(node: &Node, current: Option<&EndpointSlice>) -> Plan {
    let mut plan = Plan::default();
    let Some(address) = address_of(node) else { return plan };
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
    wanted.metadata.name = Some(format!("{NAME}-{name}"));
    wanted.metadata.namespace = Some(NAMESPACE.into());
    wanted.metadata.owner_references = Some(vec![owner]);
    let labels = wanted.metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/service-name".into(), NAME.into());
    labels.insert("endpointslice.kubernetes.io/managed-by".into(), "gantry.local".into());
    wanted.address_type = if address.is_ipv4() { "IPv4".into() } else { "IPv6".into() };
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
        let steps = if key == SERVICE {
            decide_service(self.address, current.as_deref())
        } else if let Some(node) = self.nodes.get("", key).filter(|_| !current.is_some_and(|s| is_foreign(&s))) {
            decide_slice(&node, self.slices.get(NAMESPACE, &format!("{NAME}-{key}")).as_deref())
        } else {
            Plan::default()
        };
        plan::execute(&self.setup.client, &self.recorder, &steps).await?;
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
        let first = decide_service(address, None);
        let [Action::Ensure(target, body)] = first.actions.as_slice() else { panic!("{first:?}") };
        assert_eq!(target.to_string(), "services kube-system/kube-dns");
        let there = Service::from_value(body.clone()).unwrap();
        assert!(decide_service(address, Some(&there)).is_empty());
        let mut everywhere = there.clone();
        everywhere.spec.as_mut().unwrap().internal_traffic_policy = Some("Cluster".into());
        let [Action::Update(_, body)] = &decide_service(address, Some(&everywhere)).actions[..] else { panic!() };
        assert_eq!(body["spec"]["internalTrafficPolicy"], "Local");
        everywhere.spec.as_mut().unwrap().selector = Some([("k8s-app".to_owned(), "coredns".to_owned())].into());
        assert!(decide_service(address, Some(&everywhere)).is_empty());
    }

    #[test]
    fn every_node_answers_on_its_first_pod_address() {
        let node = |spec| Node::from_value(json!({"metadata": {"name": "n2", "uid": "u"}, "spec": spec})).unwrap();
        assert!(decide_slice(&node(json!({})), None).is_empty());
        let two = node(json!({"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]}));
        let first = decide_slice(&two, None);
        let [Action::Ensure(target, body)] = first.actions.as_slice() else { panic!("{first:?}") };
        assert_eq!(target.to_string(), "endpointslices.discovery.k8s.io kube-system/kube-dns-n2");
        assert_eq!(body["endpoints"][0]["addresses"], json!(["10.244.2.1"]));
        assert_eq!(body["endpoints"][0]["nodeName"], "n2");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u");
        let mut there = EndpointSlice::from_value(body.clone()).unwrap();
        assert!(decide_slice(&two, Some(&there)).is_empty());
        there.endpoints.as_mut().unwrap()[0].addresses = vec!["10.244.9.1".into()];
        assert_eq!(decide_slice(&two, Some(&there)).actions.len(), 1);
    }
}
