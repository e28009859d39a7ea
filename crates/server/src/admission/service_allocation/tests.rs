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
    of_families(&["IPv4"])
}

fn of_families(families: &[&'static str]) -> ServiceAllocation {
    let pools = Pools { ports: PortPool::new((30000, 30003)), seeded: false };
    ServiceAllocation { pools: Mutex::new(pools), families: families.to_vec() }
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

fn dual() -> (Cluster, ServiceAllocation) {
    let (cluster, objects) = MemoryObjects::cluster();
    objects.put::<ServiceCIDR>(json!({"metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/24", "fd00:96::/112"]}}));
    (cluster, of_families(&["IPv4", "IPv6"]))
}

/// Policy, families and how many addresses, in the order of the families.
fn stack(s: &Service) -> (String, String, usize) {
    let spec = s.spec.clone().unwrap();
    let (ips, families) = (spec.cluster_ips.unwrap_or_default(), spec.ip_families.unwrap_or_default());
    if ips != ["None"] {
        assert_eq!(ips.first(), spec.cluster_ip.as_ref().filter(|ip| !ip.is_empty()));
        for (ip, family) in ips.iter().zip(&families) {
            assert_eq!(ip.contains(':'), family == "IPv6", "{ips:?} {families:?}");
        }
    }
    (spec.ip_family_policy.unwrap_or_default(), families.join(","), ips.len())
}

#[tokio::test]
async fn families_of_new_services() {
    let (cluster, a) = dual();
    let cases = [
        (json!({}), ("SingleStack", "IPv4", 1)),
        (json!({"ipFamilies": ["IPv6"]}), ("SingleStack", "IPv6", 1)),
        (json!({"clusterIP": "fd00:96::50"}), ("SingleStack", "IPv6", 1)),
        (json!({"ipFamilyPolicy": "PreferDualStack"}), ("PreferDualStack", "IPv4,IPv6", 2)),
        (json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}), ("RequireDualStack", "IPv6,IPv4", 2)),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "fd00:96::51", "clusterIPs": ["fd00:96::51"]}),
            ("RequireDualStack", "IPv6,IPv4", 2),
        ),
        (
            json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": "10.96.0.50",
                "clusterIPs": ["10.96.0.50", "fd00:96::52"]}),
            ("PreferDualStack", "IPv4,IPv6", 2),
        ),
        (json!({"clusterIP": "None"}), ("RequireDualStack", "IPv4,IPv6", 1)),
        (json!({"clusterIP": "None", "selector": {"a": "b"}}), ("SingleStack", "IPv4", 1)),
        (
            json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "PreferDualStack"}),
            ("PreferDualStack", "IPv4,IPv6", 1),
        ),
        (json!({"type": "ExternalName", "externalName": "x.y"}), ("", "", 0)),
    ];
    for (i, (spec, (policy, families, count))) in cases.into_iter().enumerate() {
        let got = write(&a, &cluster, service(&format!("s{i}"), spec.clone()), None).await.unwrap();
        assert_eq!(stack(&got), (policy.to_owned(), families.to_owned(), count), "{spec}");
    }
    assert_eq!(held(&cluster).await.len(), 11, "one for each address");
}

#[tokio::test]
async fn what_families_are_refused() {
    let (cluster, a) = dual();
    let cases = [
        (
            json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when \
             multiple IP families are specified",
        ),
        (
            json!({"clusterIP": "10.96.0.60", "clusterIPs": ["10.96.0.60", "fd00:96::60"]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when \
             multiple cluster IPs are specified",
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.96.0.60",
                "clusterIPs": ["10.96.0.60", "10.96.0.61"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.60\",\"10.96.0.61\"]: may specify no more than one IP for each IP \
             family",
        ),
        (
            json!({"ipFamilies": ["IPv6"], "clusterIP": "10.96.0.60"}),
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.60\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        // The first address is given back when the second cannot be had.
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.96.0.60",
                "clusterIPs": ["10.96.0.60", "fd00:97::1"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.60\",\"fd00:97::1\"]: failed to allocate IP fd00:97::1: the \
             provided network does not match the current range",
        ),
    ];
    for (spec, want) in cases {
        let told = write(&a, &cluster, service("s", spec), None).await.unwrap_err().message;
        assert_eq!(told, format!("Service \"s\" is invalid: {want}"));
    }
    let single = allocation();
    for (spec, want) in [
        (
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            json!({"clusterIP": "fd00:96::1"}),
            "spec.clusterIPs[0]: Invalid value: [\"fd00:96::1\"]: IPv6 is not configured on this cluster",
        ),
    ] {
        let told = write(&single, &cluster, service("s", spec), None).await.unwrap_err().message;
        assert_eq!(told, format!("Service \"s\" is invalid: {want}"));
    }
    let preferring = service("p", json!({"ipFamilyPolicy": "PreferDualStack"}));
    let got = write(&single, &cluster, preferring, None).await.unwrap();
    assert_eq!(stack(&got), ("PreferDualStack".into(), "IPv4".into(), 1));
    assert_eq!(held(&cluster).await, [ip(&got)]);
    // With the cluster, it does not change by itself; asked for both, it gets both.
    let mut labelled = got.clone();
    labelled.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    assert_eq!(stack(&write(&a, &cluster, labelled, Some(&got)).await.unwrap()).2, 1);
    let mut required = got.clone();
    required.spec.as_mut().unwrap().ip_family_policy = Some("RequireDualStack".into());
    assert_eq!(stack(&write(&a, &cluster, required, Some(&got)).await.unwrap()).2, 2);
}

#[tokio::test]
async fn second_addresses_come_and_go() {
    let (cluster, a) = dual();
    let first = write(&a, &cluster, service("s", json!({"ports": [{"port": 80}]})), None).await.unwrap();
    let change = |from: &Service, to: Value| {
        let mut next = from.clone();
        let mut value = json!(next.spec);
        for (key, v) in to.as_object().unwrap() {
            value[key] = v.clone();
        }
        next.spec = serde_json::from_value(value).unwrap();
        next
    };
    let both = change(&first, json!({"ipFamilyPolicy": "PreferDualStack"}));
    let both = write(&a, &cluster, both, Some(&first)).await.unwrap();
    assert_eq!(stack(&both), ("PreferDualStack".into(), "IPv4,IPv6".into(), 2));
    assert_eq!((ip(&both), held(&cluster).await.len()), (ip(&first), 2));
    // Without the policy neither address nor family may go.
    let fewer = change(&both, json!({"clusterIPs": [ip(&both)], "ipFamilies": ["IPv4"]}));
    assert_eq!(
        write(&a, &cluster, fewer, Some(&both)).await.unwrap_err().message,
        "Service \"s\" is invalid: [spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to \
         release the secondary cluster IP, spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be \
         'SingleStack' to release the secondary IP family]"
    );
    let single = change(&both, json!({"ipFamilyPolicy": "SingleStack"}));
    let single = write(&a, &cluster, single, Some(&both)).await.unwrap();
    assert_eq!(stack(&single), ("SingleStack".into(), "IPv4".into(), 1));
    assert_eq!(held(&cluster).await, [ip(&first)]);
    // A second address of one's choice; the old client that names only the first keeps it.
    let chosen = json!({"ipFamilyPolicy": "RequireDualStack", "clusterIPs": [ip(&first), "fd00:96::77"]});
    let chosen = write(&a, &cluster, change(&single, chosen), Some(&single)).await.unwrap();
    assert_eq!(chosen.spec.clone().unwrap().cluster_ips.unwrap()[1], "fd00:96::77");
    let old_client = service("s", json!({"clusterIP": ip(&first), "ports": [{"port": 81}]}));
    let kept = write(&a, &cluster, old_client, Some(&chosen)).await.unwrap();
    assert_eq!(stack(&kept), ("RequireDualStack".into(), "IPv4,IPv6".into(), 2));
    let away = change(&kept, json!({"type": "ExternalName", "externalName": "x.y"}));
    let away = write(&a, &cluster, away, Some(&kept)).await.unwrap();
    assert_eq!((stack(&away).2, held(&cluster).await.len()), (0, 0));
    let back = change(&away, json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"}));
    write(&a, &cluster, back, Some(&away)).await.unwrap();
    assert_eq!(held(&cluster).await.len(), 2);
}

#[tokio::test]
async fn node_ports_that_nobody_has_are_found_again() {
    let (cluster, objects) = cluster();
    let a = allocation();
    let wanted = |uid: &str| service(uid, json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]}));
    let mut lost = wanted("lost");
    lost.set_defaults();
    // Its client went away before it was stored or given up.
    a.before_validate(&mut lost, None, false, &cluster).await.unwrap();
    let told = write(&a, &cluster, wanted("next"), None).await.unwrap_err().message;
    assert!(told.ends_with("provided port is already allocated"), "{told}");
    a.pools.lock().await.ports.mark(30001, "2020-01-01T00:00:00Z".parse().unwrap());
    let next = write(&a, &cluster, wanted("next"), None).await.unwrap();
    // What a stored Service has, it has.
    objects.put::<Service>(json!({"metadata": {"name": "next", "namespace": "a"}, "spec": next.spec}));
    a.pools.lock().await.ports.mark(30001, "2020-01-01T00:00:00Z".parse().unwrap());
    assert!(write(&a, &cluster, wanted("another"), None).await.is_err());
}

#[tokio::test]
async fn a_write_that_is_not_stored_gives_back_what_it_took_and_no_more() {
    let (cluster, _) = cluster();
    let a = allocation();
    let balancer = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000,
        "allocateLoadBalancerNodePorts": false, "ports": [{"port": 1}]});
    let ours = write(&a, &cluster, service("ours", balancer), None).await.unwrap();
    let port = |uid: &str| service(uid, json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]}));
    let theirs = write(&a, &cluster, port("theirs"), None).await.unwrap();
    // Neither may be changed, which validation says, and both are another's.
    let mut wrong = ours.clone();
    let spec = wrong.spec.as_mut().unwrap();
    (spec.cluster_ip, spec.cluster_ips) = (Some(ip(&theirs)), Some(vec![ip(&theirs)]));
    spec.health_check_node_port = Some(30001);
    a.before_validate(&mut wrong, Some(&ours), false, &cluster).await.unwrap();
    a.abandoned(&wrong, Some(&ours), &cluster).await;
    assert!(held(&cluster).await.contains(&ip(&theirs)));
    assert!(write(&a, &cluster, port("more"), None).await.is_err());
    // Of the Service that this write read another write has given up the port meanwhile; this one must not take it for new.
    let mut late = theirs.clone();
    a.deleted(&theirs, &cluster).await;
    let more = |n: u16| serde_json::from_value(json!({"port": n, "protocol": "TCP"})).unwrap();
    late.spec.as_mut().unwrap().ports.as_mut().unwrap().extend([more(2), more(3)]);
    a.before_validate(&mut late, Some(&theirs), false, &cluster).await.unwrap();
    let mut got = node_ports(&late);
    got.sort_unstable();
    assert_eq!(got, [30001, 30002, 30003]);
    a.abandoned(&late, Some(&theirs), &cluster).await;
    let all = json!({"type": "NodePort", "ports": [{"port": 1}, {"port": 2}, {"port": 3}]});
    write(&a, &cluster, service("all", all), None).await.unwrap();
}
