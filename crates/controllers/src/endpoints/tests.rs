use super::slice_plan::{Group, Wanted as SliceWanted};
use super::slices::groups;
use super::*;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

fn service(spec: Value) -> Service {
    let mut s = json!({
        "selector": {"a": "b"}, "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"],
        "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}],
    });
    for (k, v) in spec.as_object().unwrap() {
        s[k] = v.clone();
    }
    Service::from_value(json!({
        "metadata": {"name": "svc", "namespace": "n", "uid": "s", "labels": {"team": "x"}}, "spec": s,
    }))
    .unwrap()
}

fn pod(n: usize, ready: bool, port: i32) -> Pod {
    Pod::from_value(json!({
        "metadata": {"name": format!("p{n}"), "namespace": "n", "uid": format!("u{n}"), "labels": {"a": "b"}},
        "spec": {
            "nodeName": "node", "hostname": format!("h{n}"), "subdomain": "svc",
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port, "protocol": "TCP"}]}],
        },
        "status": {
            "phase": "Running", "podIP": format!("10.1.{}.{}", n / 250, n % 250 + 1),
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    }))
    .unwrap()
}

fn zone(node: &str) -> Option<String> {
    (node == "node").then(|| "z1".to_owned())
}

fn planned(service: &Service, pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]) -> SlicePlan {
    let (groups, lost) = groups(service, pods, "IPv4", &zone);
    assert!(lost.is_empty());
    wanted_plan(service, groups, existing)
}

fn wanted_plan(service: &Service, groups: Vec<Group>, existing: &[Arc<EndpointSlice>]) -> SlicePlan {
    let wanted = SliceWanted {
        service,
        address_type: "IPv4",
        groups,
        trigger: Some("t".into()),
        manager: slices::MANAGER,
        labels: service.metadata.labels_or_empty().clone(),
        annotations: BTreeMap::new(),
        keeps_hints: false,
    };
    plan(&wanted, existing)
}

fn arcs(pods: impl IntoIterator<Item = Pod>) -> Vec<Arc<Pod>> {
    pods.into_iter().map(Arc::new).collect()
}

/// What the API would hold after the plan.
fn stored(plan: &SlicePlan, prefix: &str) -> Vec<Arc<EndpointSlice>> {
    let named = plan.create.iter().enumerate().map(|(i, s)| {
        let mut s = s.clone();
        s.metadata.name = Some(format!("{prefix}{i}"));
        Arc::new(s)
    });
    named.chain(plan.update.iter().cloned().map(Arc::new)).collect()
}

#[test]
fn a_slice_tells_of_ready_unready_and_terminating_pods() {
    let mut going = pod(2, true, 8080);
    going.metadata.deletion_timestamp = Some(gantry_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
    let mut ended = pod(3, true, 8080);
    ended.status.as_mut().unwrap().phase = Some("Succeeded".into());
    let pods = arcs([pod(0, true, 8080), pod(1, false, 8080), going, ended]);
    let plan = planned(&service(json!({})), &pods, &[]);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (1, 0, 0));
    let slice = &plan.create[0];
    let port = &slice.ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
    let tell: Vec<_> = slice
        .endpoints
        .iter()
        .flatten()
        .map(|e| {
            let c = e.conditions.clone().unwrap();
            (e.addresses[0].as_str(), c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
        })
        .collect();
    assert_eq!(
        tell,
        [("10.1.0.1", true, true, false), ("10.1.0.2", false, false, false), ("10.1.0.3", false, true, true)]
    );
    let first = &slice.endpoints.as_ref().unwrap()[0];
    assert_eq!((first.hostname.as_deref(), first.zone.as_deref()), (Some("h0"), Some("z1")));
    let m = &slice.metadata;
    assert_eq!(m.generate_name.as_deref(), Some("svc-"));
    assert_eq!(
        (m.label(SERVICE_NAME), m.label(MANAGED_BY), m.label("team")),
        (Some("svc"), Some(slices::MANAGER), Some("x"))
    );
    assert_eq!(m.annotation(TRIGGER_TIME), Some("t"));
    assert_eq!(m.controller_of().unwrap().kind, "Service");
}

#[test]
fn nothing_is_written_where_nothing_changed_and_only_one_slice_where_one_endpoint_did() {
    let s = service(json!({}));
    let pods = arcs((0..250).map(|n| pod(n, true, 80)));
    let first = planned(&s, &pods, &[]);
    let sizes: Vec<usize> = first.create.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    let there = stored(&first, "s");
    assert_eq!(planned(&s, &pods, &there), SlicePlan::default());
    let mut changed = pods.clone();
    changed[120] = Arc::new(pod(120, false, 80));
    let second = planned(&s, &changed, &there);
    assert_eq!((second.create.len(), second.update.len(), second.delete.len()), (0, 1, 0));
    let more = arcs((0..260).map(|n| pod(n, true, 80)));
    let third = planned(&s, &more, &there);
    assert_eq!((third.create.len(), third.update.len()), (0, 1), "the slice with room takes them");
    assert_eq!(third.update[0].endpoints.as_ref().unwrap().len(), 60);
}

#[test]
fn a_service_without_pods_has_one_empty_slice() {
    let s = service(json!({}));
    let plan = planned(&s, &[], &[]);
    assert_eq!(plan.create.len(), 1);
    assert!(plan.create[0].endpoints.as_ref().unwrap().is_empty() && plan.create[0].ports.as_ref().unwrap().is_empty());
    let there = stored(&plan, "s");
    assert_eq!(planned(&s, &[], &there), SlicePlan::default());
    let next = planned(&s, &arcs([pod(0, true, 80)]), &there);
    assert_eq!((next.create.len(), next.delete.len()), (1, 1));
    let mut back = stored(&next, "t");
    let empty = planned(&s, &[], &back);
    assert_eq!((empty.create.len(), empty.delete.len()), (1, 1));
    std::sync::Arc::make_mut(&mut back[0]).metadata.owner_references = None;
    assert_eq!(planned(&s, &arcs([pod(0, true, 80)]), &back).delete.len(), 1, "of an earlier Service");
}

#[test]
fn pods_with_different_ports_go_into_different_slices() {
    let plan = planned(&service(json!({})), &arcs([pod(0, true, 80), pod(1, true, 81)]), &[]);
    let ports: Vec<_> = plan.create.iter().map(|s| s.ports.as_ref().unwrap()[0].port.unwrap()).collect();
    assert_eq!(ports, [80, 81]);
}

#[test]
fn publish_not_ready_and_headless() {
    let s = service(json!({"clusterIP": "None", "publishNotReadyAddresses": true, "ports": []}));
    let plan = planned(&s, &arcs([pod(0, false, 80)]), &[]);
    let slice = &plan.create[0];
    assert_eq!(slice.metadata.label(HEADLESS), Some(""));
    assert_eq!(slice.endpoints.as_ref().unwrap()[0].conditions.as_ref().unwrap().ready, Some(true));
    assert!(slice.ports.as_ref().unwrap().is_empty());
}

#[test]
fn a_pod_on_an_unknown_node_is_left_out_and_told() {
    let mut p = pod(0, true, 80);
    p.spec.as_mut().unwrap().node_name = Some("gone".into());
    let (g, lost) = groups(&service(json!({})), &arcs([p]), "IPv4", &zone);
    assert!(g.is_empty());
    assert_eq!(lost, ["n/p0"]);
}

#[test]
fn endpoints_group_by_ports_and_readiness() {
    let s = service(json!({}));
    let pods = arcs([pod(0, true, 80), pod(1, false, 80), pod(2, true, 81)]);
    let subsets = subsets(&s, &pods);
    assert_eq!(subsets.len(), 2);
    let ips = |l: &Option<Vec<k8s_openapi::api::core::v1::EndpointAddress>>| {
        l.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (ips(&subsets[0].addresses), ips(&subsets[0].not_ready_addresses)),
        (vec!["10.1.0.1".to_owned()], vec!["10.1.0.2".to_owned()])
    );
    assert_eq!(ips(&subsets[1].addresses), ["10.1.0.3"]);
    let Wanted::Create(e) = legacy_plan::plan(&s, &pods, None, None) else { panic!("a new object") };
    assert_eq!(e.metadata.label("endpoints.kubernetes.io/managed-by"), Some("endpoint-controller"));
    assert_eq!(legacy_plan::plan(&s, &pods, Some(&e), Some("t".into())), Wanted::Nothing);
    let many = arcs((0..1200).map(|n| pod(n, n % 2 == 0, 80)));
    let Wanted::Update(e) = legacy_plan::plan(&s, &many, Some(&e), None) else { panic!("a change") };
    let subset = &e.subsets.unwrap()[0];
    assert_eq!((ips(&subset.addresses).len(), ips(&subset.not_ready_addresses).len()), (600, 400));
}

#[test]
fn endpoints_written_by_hand_are_mirrored() {
    let s = service(json!({"selector": {}}));
    let e = Endpoints::from_value(json!({
        "metadata": {"name": "svc", "namespace": "n", "uid": "e", "labels": {"l": "m"}},
        "subsets": [{
            "addresses": [{"ip": "10.9.0.1"}], "notReadyAddresses": [{"ip": "10.9.0.2"}, {"ip": "fd00::1"}],
            "ports": [{"name": "x", "port": 99}],
        }],
    }))
    .unwrap();
    let plan = mirror::mirror_plan(&s, &e, "IPv4", &[]);
    let slice = &plan.create[0];
    assert_eq!(slice.endpoints.as_ref().unwrap().len(), 2);
    assert_eq!(slice.metadata.controller_of().unwrap().kind, "Endpoints");
    assert_eq!(slice.metadata.label("l"), Some("m"));
    let there = stored(&plan, "m");
    assert_eq!(mirror::mirror_plan(&s, &e, "IPv4", &there), SlicePlan::default());
    let mut bare = e.clone();
    bare.subsets = None;
    assert_eq!(mirror::mirror_plan(&s, &bare, "IPv4", &there).delete.len(), 1);
    assert_eq!(mirror::mirror_plan(&s, &bare, "IPv4", &[]), SlicePlan::default());
}

#[tokio::test(start_paused = true)]
async fn what_was_written_must_be_seen_before_the_next_step() {
    use gantry_reconcile::Store;
    let cache = Store::<EndpointSlice>::default();
    let w = tracker::Written::default();
    let mut slice = EndpointSlice::default();
    slice.metadata.name = Some("x".into());
    slice.metadata.namespace = Some("n".into());
    slice.metadata.resource_version = Some("7".into());
    assert!(w.is_seen("n/svc", &cache));
    w.wrote("n/svc", &slice);
    assert!(!w.is_seen("n/svc", &cache));
    cache.put(Arc::new(slice.clone()));
    assert!(w.is_seen("n/svc", &cache));
    w.deleted("n/svc", "x");
    assert!(!w.is_seen("n/svc", &cache));
    w.saw_deletion("n/svc", "x");
    assert!(w.is_seen("n/svc", &cache));
}
