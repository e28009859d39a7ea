//! Tests of the queue, by virtual time.

use super::*;
use gantry_api::k8s_openapi::api::core::v1::{Node, NodeStatus, Pod, PodSchedulingGate, PodSpec, PodStatus};
use gantry_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

fn pod(uid: &str, priority: i32, gated: bool) -> Arc<PodInfo> {
    let mut pod = Pod::default();
    pod.metadata.uid = Some(uid.into());
    pod.spec = Some(PodSpec {
        priority: Some(priority),
        scheduling_gates: gated.then(|| vec![PodSchedulingGate { name: "g".into() }]),
        ..Default::default()
    });
    Arc::new(PodInfo::new(Arc::new(pod)))
}

fn promised(uid: &str, node: &str) -> Arc<PodInfo> {
    let mut pod = (*pod(uid, 0, false).pod).clone();
    pod.status = Some(PodStatus { nominated_node_name: Some(node.into()), ..Default::default() });
    Arc::new(PodInfo::new(Arc::new(pod)))
}

fn nodes(names: &[&str]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for name in names {
        let allocatable = [("pods".to_owned(), Quantity("10".into()))].into();
        let status = NodeStatus { allocatable: Some(allocatable), ..Default::default() };
        let mut node = Node { status: Some(status), ..Default::default() };
        node.metadata.name = Some((*name).into());
        snapshot.set_node(&node);
    }
    snapshot
}

fn freed(q: &mut Queue, node: &str) {
    let profile = Profile::new("default-scheduler");
    q.freed(node, &nodes(&["n1", "n2"]), &|_| Some(&profile), Instant::now());
}

#[tokio::test(start_paused = true)]
async fn a_promise_that_is_not_taken_up_is_room_for_others() {
    for (node, helps) in [("n1", false), ("n2", true)] {
        let mut q = Queue::new(Duration::from_secs(1), Duration::from_secs(10));
        q.put(pod("waits", 0, false), false);
        assert_eq!(popped(&mut q).as_deref(), Some("waits"));
        q.unschedulable("waits", ["NodeResourcesFit"].into(), Instant::now());
        q.put(promised("lucky", "n1"), false);
        assert_eq!(popped(&mut q).as_deref(), Some("lucky"));
        tokio::time::advance(Duration::from_secs(5)).await;
        let released = q.bound("lucky", node);
        assert!(q.promises().is_empty());
        released.iter().for_each(|node| freed(&mut q, node));
        assert_eq!((released.as_deref(), popped(&mut q).is_some()), (helps.then_some("n1"), helps), "{node}");
    }
}

#[tokio::test(start_paused = true)]
async fn room_helps_who_was_promised_it_and_whom_it_suffices() {
    let mut q = Queue::new(Duration::from_secs(1), Duration::from_secs(10));
    let greedy = || {
        let mut greedy = (*promised("greedy", "n1").pod).clone();
        let requests = json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] });
        greedy.spec = serde_json::from_value(requests).unwrap();
        Arc::new(PodInfo::new(Arc::new(greedy)))
    };
    q.put(greedy(), false);
    q.put(pod("modest", 0, false), false);
    q.put_group("group", vec![pod("member", 0, false)], None, false, false);
    while let Some(id) = popped(&mut q) {
        q.unschedulable(&id, ["NodeResourcesFit", "TaintToleration"].into(), Instant::now());
    }
    assert_eq!(q.depths(), (0, 0, 3, 0));
    let woken = |q: &mut Queue| {
        let woken: BTreeSet<String> = std::iter::from_fn(|| popped(q)).collect();
        woken.iter().for_each(|id| q.unschedulable(id, ["NodeResourcesFit"].into(), Instant::now()));
        woken.into_iter().collect::<Vec<_>>()
    };
    freed(&mut q, "n1");
    assert_eq!(woken(&mut q), ["greedy", "group", "modest"]);
    freed(&mut q, "n2");
    assert_eq!(woken(&mut q), ["group", "modest"], "the node has no cpu for it, and it was promised the other");
    freed(&mut q, "none");
    assert_eq!(woken(&mut q), ["group"]);
    q.changed(ClusterChange::PodTerminating, Instant::now());
    assert!(woken(&mut q).is_empty(), "who is being deleted still takes room");
    q.remove("modest");
    q.remove("greedy");
    freed(&mut q, "n1");
    assert_eq!(woken(&mut q), ["group"]);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_tried_while_others_are_evicted_for_it() {
    let mut q = Queue::new(Duration::from_secs(1), Duration::from_secs(10));
    let change = |q: &mut Queue| q.changed(ClusterChange::NodeAdded, Instant::now());
    for meanwhile in [false, true] {
        q.put(pod("a", 0, false), true);
        popped(&mut q);
        q.unschedulable("a", ["NodeResourcesFit"].into(), Instant::now());
        q.evicting("a");
        if meanwhile {
            change(&mut q);
            q.put(pod("a", 0, false), true);
        }
        assert_eq!((popped(&mut q), q.depths()), (None, (0, 0, 1, 0)));
        q.evicted("a", Instant::now());
        assert_eq!(popped(&mut q).is_some(), meanwhile, "what happened is not lost");
        q.unschedulable("a", ["NodeResourcesFit"].into(), Instant::now());
        change(&mut q);
        assert_eq!(popped(&mut q).as_deref(), Some("a"), "afterwards it is like others");
    }
    // Something happened while it was decided on.
    change(&mut q);
    q.unschedulable("a", ["NodeResourcesFit"].into(), Instant::now());
    q.evicting("a");
    assert_eq!((popped(&mut q), q.depths()), (None, (0, 0, 1, 0)));
    q.evicted("a", Instant::now());
    assert_eq!(popped(&mut q).as_deref(), Some("a"));
    change(&mut q);
    q.deciding();
    q.unschedulable("a", ["NodeResourcesFit"].into(), Instant::now());
    assert_eq!(q.depths(), (0, 0, 1, 0), "the decision saw it");
    q.evicting("a");
    q.failed("a", Instant::now());
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(popped(&mut q).as_deref(), Some("a"));
    q.unschedulable("a", ["NodeResourcesFit"].into(), Instant::now());
    change(&mut q);
    assert_eq!(popped(&mut q).as_deref(), Some("a"), "evictions that could not be sent hold nothing up");
}

fn popped(q: &mut Queue) -> Option<String> {
    q.pop(Instant::now()).map(|w| w.id.to_string())
}

#[tokio::test(start_paused = true)]
async fn by_priority_then_arrival() {
    let mut q = Queue::new(Duration::from_secs(1), Duration::from_secs(10));
    q.put(pod("a", 0, false), false);
    q.put(pod("b", 5, false), false);
    q.put(pod("c", 0, false), false);
    q.put(pod("g", 9, true), false);
    assert_eq!(
        [popped(&mut q), popped(&mut q), popped(&mut q), popped(&mut q)],
        [Some("b".into()), Some("a".into()), Some("c".into()), None]
    );
    q.put(pod("g", 9, false), true);
    assert_eq!(popped(&mut q), Some("g".into()));
}

#[tokio::test(start_paused = true)]
async fn a_group_is_one_entry() {
    let mut q = Queue::new(Duration::from_secs(1), Duration::from_secs(10));
    let (a, b) = (pod("a", 3, false), pod("b", 1, false));
    q.put_group("g", vec![a.clone()], None, true, false);
    q.put(pod("c", 2, false), false);
    assert_eq!((popped(&mut q), q.depths()), (Some("c".into()), (1, 0, 0, 1)));
    q.put_group("g", vec![a.clone(), b.clone()], None, false, false);
    q.put(pod("d", 2, false), false);
    // It is as urgent as its least urgent pod.
    assert_eq!([popped(&mut q), popped(&mut q)], [Some("d".into()), Some("g".into())]);
    q.unschedulable("g", BTreeSet::new(), Instant::now());
    q.put_group("g", vec![a.clone(), b.clone()], None, false, false);
    assert_eq!(popped(&mut q), None);
    q.put_group("g", vec![a, b, pod("e", 1, false)], None, false, false);
    let group = q.pop(Instant::now()).unwrap();
    assert_eq!((group.pods.len(), group.together, group.attempts), (3, true, 1));
    q.remove("g");
    assert!(q.standing("g", Instant::now()).is_none());
}

#[tokio::test(start_paused = true)]
async fn unschedulable_pods_wait_for_what_helps() {
    let mut q = Queue::new(Duration::from_secs(1), Duration::from_secs(10));
    q.put(pod("a", 0, false), false);
    popped(&mut q);
    q.unschedulable("a", ["TaintToleration"].into(), Instant::now());
    q.changed(ClusterChange::PodGone, Instant::now());
    assert_eq!((popped(&mut q), q.depths()), (None, (0, 0, 1, 0)));
    q.changed(ClusterChange::NodeUpdated, Instant::now());
    assert_eq!((q.depths(), popped(&mut q)), ((0, 1, 0, 0), Some("a".into())));
    // A change while in flight is not lost.
    q.changed(ClusterChange::NodeAdded, Instant::now());
    q.unschedulable("a", ["TaintToleration"].into(), Instant::now());
    assert_eq!(q.depths(), (0, 1, 0, 0));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(popped(&mut q), Some("a".into()));
    q.unschedulable("a", ["TaintToleration"].into(), Instant::now());
    tokio::time::advance(Duration::from_secs(301)).await;
    assert_eq!(popped(&mut q), Some("a".into()));
}

#[tokio::test(start_paused = true)]
async fn a_back_off_ends_early_where_nothing_else_is_to_be_tried() {
    let mut q = Queue::new(Duration::from_secs(1), Duration::from_secs(10));
    for (uid, priority) in [("a", 0), ("b", 0), ("urgent", 9), ("unbound", 9)] {
        q.put(pod(uid, priority, false), false);
    }
    while popped(&mut q).is_some() {}
    for uid in ["a", "b", "urgent"] {
        q.unschedulable(uid, ["NodeResourcesFit"].into(), Instant::now());
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    q.failed("unbound", Instant::now());
    q.put(pod("other", 0, false), false);
    q.changed(ClusterChange::NodeAdded, Instant::now());
    assert_eq!(q.depths(), (1, 4, 0, 0));
    let order: Vec<_> = std::iter::from_fn(|| popped(&mut q)).collect();
    assert_eq!((order, q.depths().1), (["other", "urgent", "a", "b"].map(str::to_owned).to_vec(), 1));
    assert_eq!(q.incoming()[&("active", "PopFromBackoffQ")], 3);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(popped(&mut q), Some("unbound".into()), "what failed waits its time");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_long_is_found_again() {
    let known = Arc::new(parking_lot::Mutex::new(Some(pod("a", 0, false))));
    let there = known.clone();
    let queue = Queue::new(Duration::from_secs(1), Duration::from_secs(10));
    let mut q = queue.finding(move |_| there.lock().clone());
    q.put(known.lock().clone().unwrap(), false);
    popped(&mut q);
    q.unschedulable("a", ["NodeAffinity"].into(), Instant::now());
    assert_eq!(known.lock().as_ref().map(Arc::strong_count), Some(1));
    q.changed(ClusterChange::NodeUpdated, Instant::now());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(&*q.pop(Instant::now()).unwrap().pods[0].uid, "a");
    q.unschedulable("a", ["NodeAffinity"].into(), Instant::now());
    *known.lock() = None;
    q.changed(ClusterChange::NodeUpdated, Instant::now());
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!((popped(&mut q), q.depths()), (None, (0, 0, 0, 0)));
}
