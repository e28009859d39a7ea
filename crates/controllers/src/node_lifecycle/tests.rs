use super::*;
use gantry_api::Time;
use gantry_api::kind::Kind;
use k8s_openapi::jiff::Timestamp;

fn node(name: &str, ready: Option<&str>, taints: serde_json::Value) -> Node {
    let conditions = match ready {
        Some(s) => json!([{"type": "Ready", "status": s}]),
        None => json!([]),
    };
    Node::from_value(json!({
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "z"}},
        "spec": {"taints": taints}, "status": {"conditions": conditions},
    }))
    .unwrap()
}

fn now() -> Time {
    Time(Timestamp::from_second(5).unwrap())
}

#[test]
fn a_silent_node_becomes_unknown_once() {
    let mut n = node("a", Some("True"), json!([]));
    n.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let changed = silenced(&n, &now()).unwrap();
    let ready = health::ready(&changed).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
    let never = health::condition(&changed, "DiskPressure").unwrap();
    assert_eq!(never.message.as_deref(), Some("Kubelet never posted node status."));
    assert_eq!(never.last_heartbeat_time, n.metadata.creation_timestamp);
    assert!(silenced(&changed, &now()).is_none());
}

#[test]
fn taints_follow_conditions_and_leave_others_alone() {
    let foreign = json!({"key": "mine", "effect": "NoExecute"});
    let n =
        node("a", Some("False"), json!([foreign, {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]));
    let want = desired_no_schedule(&n);
    assert_eq!(want, ["node.kubernetes.io/not-ready"]);
    assert_eq!(desired_no_execute(&n), Some("node.kubernetes.io/not-ready"));
    let taints = with_taints(&n, &want, desired_no_execute(&n), &now()).unwrap();
    let tell: Vec<_> = taints.iter().map(|t| (t.key.as_str(), t.effect.as_str())).collect();
    assert_eq!(
        tell,
        [
            ("mine", "NoExecute"),
            ("node.kubernetes.io/not-ready", "NoSchedule"),
            ("node.kubernetes.io/not-ready", "NoExecute")
        ]
    );
    assert_eq!(taints::to_json(&taints)[1]["timeAdded"], "1970-01-01T00:00:05Z");
    let mut settled = n.clone();
    settled.spec.as_mut().unwrap().taints = Some(taints);
    assert!(with_taints(&settled, &want, desired_no_execute(&n), &now()).is_none());
    let well = with_taints(&settled, &[], None, &now()).unwrap();
    assert_eq!(well.len(), 1);
    let mut cordoned = node("b", Some("True"), json!([]));
    cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
    assert_eq!(desired_no_schedule(&cordoned), ["node.kubernetes.io/unschedulable"]);
}

#[test]
fn zones() {
    for (ready, not_ready, want) in [
        (3, 0, ZoneState::Normal),
        (0, 1, ZoneState::Full),
        (1, 2, ZoneState::Normal),
        (2, 3, ZoneState::Partial),
        (0, 0, ZoneState::Normal),
    ] {
        assert_eq!(zone_state(ready, not_ready), want, "{ready} {not_ready}");
    }
    let alone = [Arc::new(node("a", Some("Unknown"), json!([])))];
    assert!(all_disrupted(&alone));
    let two = [alone[0].clone(), Arc::new(node("b", Some("True"), json!([])))];
    assert!(!all_disrupted(&two) && !all_disrupted(&[]));
}

#[tokio::test(start_paused = true)]
async fn evictions_take_turns() {
    let nodes = [
        Arc::new(node("a", Some("Unknown"), json!([]))),
        Arc::new(node("b", Some("Unknown"), json!([]))),
        Arc::new(node("c", Some("True"), json!([]))),
    ];
    let mut limits = Limits::default();
    let zone = zone_of(&nodes[0]);
    assert_eq!(limits.wait_turn(&zone, &nodes), None);
    assert_eq!(limits.wait_turn(&zone, &nodes), Some(Duration::from_secs(10)));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(limits.wait_turn(&zone, &nodes), None);
}
