use super::{Pools, PortPool, ServiceAllocation, repair};
use crate::admission::memory_objects::MemoryObjects;
use crate::cluster::Cluster;
use crate::registry::hooks::Hook;
use gantry_api::k8s_openapi::api::core::v1::Service;
use gantry_api::k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use gantry_api::kind::{Context, Kind};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Mutex;

fn allocation() -> ServiceAllocation {
    let pools = Pools { ports: PortPool::new((30000, 30003)), seeded: false };
    ServiceAllocation { pools: Mutex::new(pools), family: "IPv4" }
}

fn range(objects: &MemoryObjects, name: &str, cidr: &str) {
    objects.put::<ServiceCIDR>(json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}}));
}

/// With one range of 254 addresses.
fn cluster() -> (Cluster, Arc<MemoryObjects>) {
    let (cluster, objects) = MemoryObjects::cluster();
    range(&objects, "kubernetes", "10.96.0.0/24");
    (cluster, objects)
}

async fn held(cluster: &Cluster) -> Vec<String> {
    let mut names = Vec::new();
    for address in cluster.list::<IPAddress>("").await.unwrap() {
        names.push(address.metadata.name().to_owned());
    }
    names
}

fn service(uid: &str, spec: Value) -> Service {
    Service::from_value(json!({"metadata": {"name": uid, "namespace": "a", "uid": uid}, "spec": spec})).unwrap()
}

/// As it comes to the hook on create.
fn prepared(uid: &str, spec: Value) -> Service {
    let mut s = service(uid, spec);
    s.set_defaults();
    s.prepare_for_create(&Context { now: "2026-01-01T00:00:00Z".parse().unwrap(), username: "u" });
    s
}

async fn write(
    a: &ServiceAllocation,
    cluster: &Cluster,
    mut new: Service,
    old: Option<&Service>,
) -> Result<Service, ApiError> {
    // As the registry does before its hooks.
    let cx = Context { now: cluster.clock.now(), username: "u" };
    new.set_defaults();
    match old {
        Some(old) => new.prepare_for_update(old, &cx),
        None => new.prepare_for_create(&cx),
    }
    let old = old.map(|o| o as &dyn gantry_api::kind::Object);
    a.before_validate(&mut new, old, false, cluster).await?;
    a.stored(&new, old, cluster).await;
    Ok(new)
}

fn ip(s: &Service) -> String {
    s.spec.clone().unwrap().cluster_ip.unwrap_or_default()
}

fn node_ports(s: &Service) -> Vec<i32> {
    s.spec.clone().unwrap().ports.unwrap_or_default().iter().filter_map(|p| p.node_port).collect()
}

#[tokio::test]
async fn addresses_are_unique_and_kept() {
    let (cluster, objects) = cluster();
    objects.put::<Service>(json!({"metadata": {"name": "kubernetes", "namespace": "default", "uid": "k"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}}));
    repair(&cluster).await.unwrap();
    let a = allocation();
    let taken = write(&a, &cluster, service("x", json!({"clusterIP": "10.96.0.1"})), None).await.unwrap_err();
    assert_eq!(
        taken.message,
        "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.1\"]: failed to allocate IP 10.96.0.1: \
         provided IP is already allocated"
    );
    let outside = write(&a, &cluster, service("x", json!({"clusterIP": "10.97.0.1"})), None).await.unwrap_err();
    assert!(outside.message.ends_with("the provided network does not match the current range"), "{}", outside.message);
    let first = write(&a, &cluster, service("1", json!({})), None).await.unwrap();
    let spec = first.spec.clone().unwrap();
    assert_eq!(spec.cluster_ips, Some(vec![ip(&first)]));
    assert_eq!((spec.ip_families, spec.ip_family_policy), (Some(vec!["IPv4".into()]), Some("SingleStack".into())));
    let again = write(&a, &cluster, service("1", json!({"selector": {"a": "b"}})), Some(&first)).await.unwrap();
    assert_eq!(ip(&again), ip(&first), "an update that names no address keeps it");
    // 254 usable addresses, two of them taken.
    for i in 0..252 {
        let got = write(&a, &cluster, service(&format!("s{i}"), json!({})), None).await.unwrap();
        assert_ne!(ip(&got), ip(&first));
    }
    let full = write(&a, &cluster, service("more", json!({})), None).await.unwrap_err();
    assert!(full.message.contains("failed to allocate a serviceIP: range is full"), "{}", full.message);
    a.deleted(&again, &cluster).await;
    assert_eq!(ip(&write(&a, &cluster, service("more", json!({})), None).await.unwrap()), ip(&first));
}

#[tokio::test]
async fn refused_writes_and_dry_runs_keep_nothing() {
    let (cluster, _) = cluster();
    let a = allocation();
    let mut dry =
        prepared("d", json!({"clusterIP": "10.96.0.9", "type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]}));
    a.before_validate(&mut dry, None, true, &cluster).await.unwrap();
    let mut refused = prepared("e", dry.spec.clone().map(|s| json!(s)).unwrap());
    a.before_validate(&mut refused, None, false, &cluster).await.unwrap();
    let mut second = prepared("f", json!({"clusterIP": "10.96.0.9"}));
    assert!(a.before_validate(&mut second, None, false, &cluster).await.is_err());
    // A port that cannot be had gives the address back that was.
    let clash = json!({"clusterIP": "10.96.0.10", "type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]});
    assert!(a.before_validate(&mut prepared("g", clash), None, false, &cluster).await.is_err());
    assert_eq!(held(&cluster).await, ["10.96.0.9"]);
    a.abandoned(&refused, None, &cluster).await;
    assert!(write(&a, &cluster, service("h", json!({"clusterIP": "10.96.0.9"})), None).await.is_ok());
}

#[tokio::test]
async fn node_ports_follow_the_type() {
    let (cluster, _) = cluster();
    let a = allocation();
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30002},
        {"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]});
    let first = write(&a, &cluster, service("1", spec), None).await.unwrap();
    let ports = node_ports(&first);
    assert_eq!((ports[0], ports[1] == ports[2], ports.len()), (30002, true, 3));
    let clash = service("2", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30002}]}));
    let e = write(&a, &cluster, clash.clone(), None).await.unwrap_err();
    assert!(e.message.ends_with("spec.ports[0].nodePort: Invalid value: 30002: provided port is already allocated"));
    let outside = service("2", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}));
    let e = write(&a, &cluster, outside, None).await.unwrap_err();
    assert!(e.message.ends_with("provided port is not in the valid range. The range of valid ports is 30000-30003"));
    let mut inner = first.clone();
    inner.spec.as_mut().unwrap().type_ = Some("ClusterIP".into());
    let inner = write(&a, &cluster, inner, Some(&first)).await.unwrap();
    assert_eq!((node_ports(&inner), ip(&inner)), (vec![], ip(&first)));
    assert!(write(&a, &cluster, clash, None).await.is_ok(), "the port is free again");
}

#[tokio::test]
async fn headless_and_external_services_have_no_address() {
    let (cluster, _) = cluster();
    let a = allocation();
    let cases = [
        (json!({"clusterIP": "None", "selector": {"a": "b"}}), "None", Some(vec!["IPv4"])),
        (json!({"clusterIP": "None"}), "None", Some(vec!["IPv4", "IPv6"])),
        (json!({"type": "ExternalName", "externalName": "x.y"}), "", None),
    ];
    for (spec, want, families) in cases {
        let got = write(&a, &cluster, service("s", spec), None).await.unwrap();
        assert_eq!(ip(&got), want);
        let have = got.spec.unwrap().ip_families;
        assert_eq!(have, families.map(|f| f.into_iter().map(ToOwned::to_owned).collect::<Vec<_>>()));
    }
    let dual = write(&a, &cluster, service("t", json!({"ipFamilyPolicy": "RequireDualStack"})), None).await;
    assert!(dual.unwrap_err().message.ends_with("this cluster is not configured for dual-stack services"));
}

#[tokio::test]
async fn addresses_come_from_ranges_that_are_ready() {
    let (cluster, objects) = MemoryObjects::cluster();
    let a = allocation();
    let told = write(&a, &cluster, service("1", json!({})), None).await.unwrap_err().message;
    assert!(told.contains("failed to allocate a serviceIP: range is full"), "{told}");
    range(&objects, "kubernetes", "10.96.0.0/30");
    for name in ["1", "2"] {
        write(&a, &cluster, service(name, json!({})), None).await.unwrap();
    }
    assert!(write(&a, &cluster, service("3", json!({})), None).await.is_err());
    range(&objects, "more", "10.99.0.0/28");
    assert!(ip(&write(&a, &cluster, service("3", json!({})), None).await.unwrap()).starts_with("10.99.0."));
    // One that is going gives nothing.
    objects.put::<ServiceCIDR>(json!({"metadata": {"name": "more", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"cidrs": ["10.99.0.0/28"]}}));
    assert!(write(&a, &cluster, service("4", json!({})), None).await.is_err());
    assert!(write(&a, &cluster, service("4", json!({"clusterIP": "10.99.0.3"})), None).await.is_err());
}

#[tokio::test]
async fn a_crash_leaves_no_address_behind() {
    let (cluster, objects) = cluster();
    let a = allocation();
    let one = write(&a, &cluster, service("1", json!({"clusterIP": "10.96.0.5"})), None).await.unwrap();
    objects.put::<Service>(json!({"metadata": {"name": "1", "namespace": "a"}, "spec": one.spec}));
    write(&a, &cluster, service("lost", json!({"clusterIP": "10.96.0.6"})), None).await.unwrap();
    objects.put::<IPAddress>(json!({"metadata": {"name": "10.96.0.7"},
        "spec": {"parentRef": {"group": "example.com", "resource": "gateways", "name": "g"}}}));
    repair(&cluster).await.unwrap();
    assert_eq!(held(&cluster).await, ["10.96.0.5", "10.96.0.7"], "others' addresses are theirs");
}
