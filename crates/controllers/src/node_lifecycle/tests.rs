use super::*;
use gantry_api::Time;
use gantry_api::entropy::Entropy;
use gantry_api::kind::Kind;
use gantry_reconcile::Store;
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
}

/// A node in a zone, or in none.
fn placed(name: &str, ready: bool, zone: &str) -> Arc<Node> {
    let mut node = node(name, Some(if ready { "True" } else { "Unknown" }), json!([]));
    let labels = (!zone.is_empty()).then(|| [("topology.kubernetes.io/zone".to_owned(), zone.to_owned())].into());
    node.metadata.labels = labels;
    Arc::new(node)
}

#[test]
fn the_tally_of_zones_is_what_a_count_of_all_nodes_gives() {
    let (nodes, entropy) = (Store::<Node>::default(), Entropy::seeded(5));
    let tally = Tally::new(&nodes);
    let zones = ["", "a", "b"];
    let (mut disrupted, mut not_disrupted) = (0, 0);
    for step in 0..2_000_u64 {
        let name = format!("n{}", entropy.below(7));
        // Now most fall silent, now most come back; now and then all go.
        let ready = entropy.below(10) < if step % 200 < 100 { 1 } else { 8 };
        match entropy.below(10) {
            0 => drop(nodes.take(&name)),
            1 if step.is_multiple_of(50) => nodes.keys().iter().for_each(|name| drop(nodes.take(name))),
            _ => drop(nodes.put(placed(&name, ready, zones[usize::try_from(entropy.below(3)).unwrap()]))),
        }
        let all = nodes.list();
        for zone in zones {
            let there = |node: &&Arc<Node>| zone_of(node) == zone_of(&placed("any", true, zone));
            let (ready, down): (Vec<_>, Vec<_>) = all.iter().filter(there).partition(|n| health::is_ready(n));
            let counted = (ready.len(), down.len());
            assert_eq!(tally.counts(&zone_of(&placed("any", true, zone))), counted, "step {step}, zone {zone:?}");
        }
        let none_is_ready = !all.is_empty() && !all.iter().any(|n| health::is_ready(n));
        assert_eq!(tally.all_disrupted(), none_is_ready, "step {step}");
        if none_is_ready { disrupted += 1 } else { not_disrupted += 1 }
    }
    assert!(disrupted > 100 && not_disrupted > 100, "{disrupted} {not_disrupted}");
}

#[tokio::test(start_paused = true)]
async fn evictions_take_turns() {
    let second = Duration::from_secs;
    let queue = Queue::new("test");
    let mut limits = Limits::new(queue.clone());
    let turn = |limits: &mut Limits, node: &str| limits.turn(node, "z", (10, 4));
    assert_eq!(turn(&mut limits, "a"), Turn::Now);
    assert_eq!(turn(&mut limits, "b"), Turn::After(second(10)));
    assert_eq!([turn(&mut limits, "c"), turn(&mut limits, "d")], [Turn::Behind; 2]);
    assert_eq!(limits.turn("e", "y", (10, 4)), Turn::Now, "each zone has its own");
    tokio::time::advance(second(4)).await;
    // The first comes back to life: the next takes its place, and is told when it is due.
    limits.leave("b");
    assert_eq!(turn(&mut limits, "d"), Turn::Behind);
    assert_eq!(queue.get().await.as_deref(), Some("c"));
    queue.done(&"c".to_owned());
    assert_eq!(turn(&mut limits, "c"), Turn::Now);
    assert_eq!(turn(&mut limits, "b"), Turn::Behind, "who comes back stands at the end");
    // It moves to another zone, where nobody waits but the turn is taken.
    assert_eq!(limits.turn("d", "y", (10, 4)), Turn::Now, "ten seconds after that zone's first");
    assert_eq!(queue.get().await.as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_is_partly_down_is_evicted_slowly_or_not_at_all() {
    let mut limits = Limits::new(Queue::new("test"));
    assert_eq!(limits.turn("a", "large", (20, 40)), Turn::Now);
    assert_eq!(limits.turn("b", "large", (20, 40)), Turn::After(Duration::from_secs(100)));
    assert_eq!(limits.turn("c", "small", (2, 5)), Turn::After(Duration::from_secs(10)));
    assert_eq!(limits.turn("d", "small", (2, 5)), Turn::After(Duration::from_secs(10)), "nobody stands in line");
    assert_eq!(limits.turn("d", "small", (5, 2)), Turn::Now);
    assert_eq!(limits.turn("e", "gone", (0, 60)), Turn::Now);
    assert_eq!(limits.turn("f", "gone", (0, 60)), Turn::After(Duration::from_secs(10)));
}
