use super::*;
use gantry_api::Time;
use gantry_api::kind::Kind;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const NOW: i64 = 1_000_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn replica_set(replicas: i32) -> ReplicaSet {
    ReplicaSet::from_value(json!({
        "metadata": {"name": "web", "namespace": "n", "uid": "rs", "generation": 3},
        "spec": {
            "replicas": replicas, "minReadySeconds": 10, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b", "c": "d"}}, "spec": {"containers": []}},
        },
    }))
    .unwrap()
}

struct P {
    name: &'static str,
    node: &'static str,
    phase: &'static str,
    ready_for: Option<i64>,
    restarts: i32,
    age: i64,
    cost: Option<&'static str>,
}

const PLAIN: P = P { name: "p", node: "n1", phase: "Running", ready_for: Some(100), restarts: 0, age: 200, cost: None };

fn pod(p: &P) -> Arc<Pod> {
    let conditions = match p.ready_for {
        Some(s) => json!([{"type": "Ready", "status": "True", "lastTransitionTime": at(NOW - s).to_string()}]),
        None => json!([]),
    };
    let annotations = p.cost.map_or(Value::Null, |c| json!({DELETION: c}));
    Arc::new(
        Pod::from_value(json!({
            "metadata": {
                "name": p.name, "namespace": "n", "uid": p.name, "labels": {"a": "b"}, "annotations": annotations,
                "creationTimestamp": at(NOW - p.age).to_string(),
            },
            "spec": {"nodeName": p.node, "containers": []},
            "status": {
                "phase": p.phase, "conditions": conditions,
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": p.restarts}],
            },
        }))
        .unwrap(),
    )
}

const DELETION: &str = "controller.kubernetes.io/pod-deletion-cost";

#[test]
fn too_few_pods_are_created_up_to_the_burst() {
    let pods = [pod(&PLAIN)];
    for (want, create) in [(1, 0), (3, 2), (2000, 500)] {
        let d = decide(&replica_set(want), &pods, &BTreeMap::new(), at(NOW), 500);
        assert_eq!((d.create, d.delete.len()), (create, 0), "{want}");
    }
}

#[test]
fn surplus_pods_go_in_upstreams_order() {
    let related: BTreeMap<String, usize> = [("n1".to_owned(), 1), ("crowded".to_owned(), 5)].into();
    let order = [
        P { name: "unassigned", node: "", phase: "Pending", ready_for: None, ..PLAIN },
        P { name: "pending", phase: "Pending", ready_for: None, ..PLAIN },
        P { name: "unready", ready_for: None, ..PLAIN },
        P { name: "cheap", cost: Some("-5"), ..PLAIN },
        P { name: "crowd", node: "crowded", ..PLAIN },
        P { name: "fresh", ready_for: Some(1), ..PLAIN },
        P { name: "flappy", restarts: 4, ..PLAIN },
        P { name: "young", age: 2, ..PLAIN },
        P { name: "plain", ..PLAIN },
        P { name: "dear", cost: Some("7"), ..PLAIN },
    ];
    let mut pods: Vec<Arc<Pod>> = order.iter().map(pod).collect();
    pods.reverse();
    let d = decide(&replica_set(1), &pods, &related, at(NOW), 500);
    let names: Vec<&str> = d.delete.iter().map(|p| p.metadata.name()).collect();
    let want: Vec<&str> = order[..9].iter().map(|p| p.name).collect();
    assert_eq!(names, want);
}

#[test]
fn status_counts_and_conditions() {
    let mut rs = replica_set(3);
    let pods = [
        pod(&PLAIN),
        pod(&P { name: "q", ready_for: Some(3), ..PLAIN }),
        pod(&P { name: "r", ready_for: None, ..PLAIN }),
    ];
    let failure = Failure { deleting: false, message: "quota".into() };
    let s = status(&rs, &pods, 1, Some(failure), Time(at(NOW)));
    assert_eq!((s.replicas, s.fully_labeled, s.ready, s.available, s.terminating), (3, 0, 2, 1, 1));
    assert_eq!(s.observed_generation, 3);
    assert_eq!(s.conditions[0].reason.as_deref(), Some("FailedCreate"));
    rs.set_status(&s);
    assert_eq!(rs.status(), s, "what is written reads back equal");
    assert!(status(&rs, &pods, 0, None, Time(at(NOW))).conditions.is_empty());
}

#[test]
fn new_pods_follow_the_template_and_name_their_owner() {
    let pod = pod_from_template(&replica_set(1)).unwrap();
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
    assert_eq!(pod.metadata.label("c"), Some("d"));
    let r = pod.metadata.controller_of().unwrap();
    assert_eq!((r.kind.as_str(), r.api_version.as_str(), r.uid.as_str()), ("ReplicaSet", "apps/v1", "rs"));
    assert_eq!(r.block_owner_deletion, Some(true));
}

#[tokio::test(start_paused = true)]
async fn changes_of_pods_reach_their_owners() {
    use gantry_client::{Client, Transport, TransportError};
    use gantry_reconcile::Informers;

    struct Nowhere;
    #[async_trait]
    impl Transport for Nowhere {
        async fn send(
            &self,
            _: http::Request<bytes::Bytes>,
        ) -> Result<http::Response<gantry_client::Body>, TransportError> {
            Err(TransportError { context: "test".into(), message: "no server".into() })
        }
    }
    let informers = Informers::new(Client::new(Arc::new(Nowhere), "test"));
    let (owners, pods) = (informers.get::<ReplicaSet>(), informers.get::<Pod>());
    owners.store().put(Arc::new(replica_set(1)));
    pods.store().put(pod(&PLAIN));
    let mut owned = (*pod(&P { name: "owned", ..PLAIN })).clone();
    owned.metadata.labels = None;
    owned.metadata.owner_references = Some(vec![controller_reference(&replica_set(1))]);
    let (queue, expectations) = (Queue::new("t"), Arc::new(Expectations::default()));
    expectations.set("n/web", 1, []);
    watch::register(&owners, &pods, &queue, &expectations, ReplicaOwner::selector);
    assert_eq!(queue.get().await.as_deref(), Some("n/web"), "an orphan that matches");
    queue.done(&"n/web".to_owned());
    assert!(!expectations.satisfied("n/web"), "an orphan is no creation of ours");
    pods.store().put(Arc::new(owned));
    let again = Queue::new("t");
    watch::register(&owners, &pods, &again, &expectations, ReplicaOwner::selector);
    assert!(expectations.satisfied("n/web"));
}
