//! What upstream's conformance suite asks of the scheduler. Each behaviour stands above its scenario by upstream's name;
//! docs/conformance.md lists them all.

mod cluster;

use cluster::api::{Api, JSON_PATCH, MERGE, condition, name, names};
use cluster::{Cluster, PATIENCE};
use serde_json::{Value, json};

const NODE: &str = "/api/v1/nodes/node-1";

#[test]
fn scheduling() {
    let cluster = Cluster::start();
    let all = scenarios![
        more_than_a_node_has,
        a_selector_that_matches,
        a_selector_that_matches_nothing,
        a_host_port_on_every_address,
        a_higher_priority_preempts,
        a_critical_pod_preempts,
        replica_sets_preempt,
        priority_classes,
        quality_of_service,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// Taints on the only node: alone in a cluster.
#[test]
fn taints() {
    let cluster = Cluster::start();
    let api = Api::new(&cluster);
    the_end_of_a_toleration(&api);
    a_taint_that_goes_in_time(&api);
}

fn pods(api: &Api<'_>, namespace: &str) -> String {
    format!("/api/v1/namespaces/{}/pods", api.namespace(namespace))
}

/// A pod that sleeps, with further fields of its spec.
fn pod(name: &str, spec: &Value) -> Value {
    let mut pod = json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"]}]}});
    for (key, value) in spec.as_object().unwrap() {
        match key.as_str() {
            "resources" | "ports" => pod["spec"]["containers"][0][key] = value.clone(),
            _ => pod["spec"][key] = value.clone(),
        }
    }
    pod
}

fn scheduled(pod: &Value) -> bool {
    condition(pod, "PodScheduled") == "True" && pod["status"]["phase"] == "Running"
}

/// Why a pod waits, from its condition; the same is told by an event.
fn unschedulable(api: &Api<'_>, pods: &str, pod: &str) -> String {
    let object = api.until(&format!("{pods}/{pod}"), "unschedulable", |p| condition(p, "PodScheduled") == "False");
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|c| c["type"] == "PodScheduled").unwrap();
    assert_eq!(told["reason"], "Unschedulable");
    assert_eq!(object["status"]["phase"], "Pending");
    let events = pods.replace("/pods", "/events");
    let chosen = format!("{events}?fieldSelector=reason%3DFailedScheduling,involvedObject.name%3D{pod}");
    let list = api.until(&chosen, "an event", |list| !list["items"].as_array().unwrap().is_empty());
    assert_eq!(list["items"][0]["message"], told["message"]);
    told["message"].as_str().unwrap().to_owned()
}

// Conformance: Scheduler, resource limits
fn more_than_a_node_has(api: &Api<'_>) {
    let pods = pods(api, "sched-limits");
    let cpu = api.get(NODE)["status"]["allocatable"]["cpu"].as_str().unwrap().to_owned();
    let millis = cpu.strip_suffix('m').map_or_else(|| cpu.parse::<u64>().unwrap() * 1000, |m| m.parse().unwrap());
    // The kernel shares by requests, so others still get their turn.
    let asks = |millis: u64| json!({"resources": {"requests": {"cpu": format!("{millis}m")}, "limits": {"cpu": format!("{millis}m")}}});
    api.create(&pods, &pod("filler-pod", &asks(millis * 7 / 10)));
    api.until(&format!("{pods}/filler-pod"), "scheduled", scheduled);
    api.create(&pods, &pod("additional-pod", &asks(millis / 2)));
    let why = unschedulable(api, &pods, "additional-pod");
    let start = "0/1 nodes are available: 1 Insufficient cpu. ";
    assert!(why.starts_with(start) && why.ends_with("1 No preemption victims found for incoming pod."), "{why}");
    // What waits is scheduled as soon as there is room.
    api.delete(&format!("{pods}/filler-pod"));
    api.until(&format!("{pods}/additional-pod"), "scheduled", scheduled);
    api.delete(&format!("{pods}/additional-pod"));
}

// Conformance: Scheduler, node selector matching
fn a_selector_that_matches(api: &Api<'_>) {
    let pods = pods(api, "sched-selector");
    api.patch(NODE, MERGE, &json!({"metadata": {"labels": {"kubernetes.io/e2e-42": "42"}}}));
    api.create(&pods, &pod("with-labels", &json!({"nodeSelector": {"kubernetes.io/e2e-42": "42"}})));
    let placed = api.until(&format!("{pods}/with-labels"), "scheduled", scheduled);
    assert_eq!(placed["spec"]["nodeName"], "node-1");
    // What runs stays when the label goes.
    api.patch(NODE, MERGE, &json!({"metadata": {"labels": {"kubernetes.io/e2e-42": null}}}));
    assert!(api.get(&format!("{pods}/with-labels"))["metadata"].get("deletionTimestamp").is_none());
}

// Conformance: Scheduler, node selector not matching
fn a_selector_that_matches_nothing(api: &Api<'_>) {
    let pods = pods(api, "sched-no-match");
    api.create(&pods, &pod("restricted-pod", &json!({"nodeSelector": {"label": "nonempty"}})));
    let why = unschedulable(api, &pods, "restricted-pod");
    let start = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. ";
    assert!(why.starts_with(start) && why.ends_with("1 Preemption is not helpful for scheduling."), "{why}");
}

// Conformance: Scheduling, HostPort and Protocol match, HostIPs different but one is default HostIP (0.0.0.0)
fn a_host_port_on_every_address(api: &Api<'_>) {
    let pods = pods(api, "sched-hostport");
    let ports =
        |ip: &str| json!({"ports": [{"containerPort": 8080, "hostPort": 54322, "protocol": "TCP", "hostIP": ip}]});
    api.create(&pods, &pod("pod4", &ports("0.0.0.0")));
    api.until(&format!("{pods}/pod4"), "scheduled", scheduled);
    api.create(&pods, &pod("pod5", &ports("127.0.0.1")));
    let why = unschedulable(api, &pods, "pod5");
    assert!(
        why.starts_with("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. "),
        "{why}"
    );
    api.delete(&pods);
}

/// Gives the node so many of a resource that nothing else asks for. Who keeps the node's status takes it over into what
/// pods may have.
fn extended_resource(api: &Api<'_>, resource: &str, count: &str) {
    let path = format!("/status/capacity/example.com~1{resource}");
    let patch = json!([{"op": "add", "path": path, "value": count}]);
    api.patch(&format!("{NODE}/status"), JSON_PATCH, &patch);
    let resource = format!("example.com/{resource}");
    api.until(NODE, &resource, |n| {
        let of = |list: &str| n["status"][list][&resource].as_str().map(str::to_owned);
        of("allocatable").is_some() && of("allocatable") == of("capacity")
    });
}

/// Limits on such a resource.
fn of(resource: &str, count: &str) -> Value {
    let resource = format!("example.com/{resource}");
    json!({"requests": {&resource: count}, "limits": {&resource: count}})
}

fn class(api: &Api<'_>, name: &str, value: i64) {
    let class = json!({"metadata": {"name": name}, "value": value});
    api.create("/apis/scheduling.k8s.io/v1/priorityclasses", &class);
}

/// Two pods fill the node; one more of a higher class takes the place of the lower one.
// Conformance: Verify the DisruptionTarget condition is added to the preempted pod
fn preempt(api: &Api<'_>, resource: &str, preemptor_in: &str, preemptor_class: &str) {
    let pods = pods(api, resource);
    extended_resource(api, resource, "5");
    let classes = [format!("{resource}-low"), format!("{resource}-medium")];
    class(api, &classes[0], 1);
    class(api, &classes[1], 100);
    for (at, class) in classes.iter().enumerate() {
        let spec = json!({"priorityClassName": class, "resources": of(resource, "2")});
        api.create(&pods, &pod(&format!("pod{at}"), &spec));
    }
    for at in 0..2 {
        api.until(&format!("{pods}/pod{at}"), "scheduled", scheduled);
    }
    let victim = api.get(&format!("{pods}/pod0"));
    let watch = api.watch(&format!("{pods}?fieldSelector=metadata.name%3Dpod0"));
    let spec = json!({"priorityClassName": preemptor_class, "resources": of(resource, "2")});
    let theirs = format!("/api/v1/namespaces/{preemptor_in}/pods");
    let preemptor = format!("{resource}-preemptor");
    api.create(&theirs, &pod(&preemptor, &spec));
    let placed = api.until(&format!("{theirs}/{preemptor}"), "scheduled", scheduled);
    assert_eq!(placed["spec"]["nodeName"], "node-1");
    // It says why before it goes.
    let last = watch.find("DELETED", |_| true);
    assert_eq!(last["metadata"]["uid"], victim["metadata"]["uid"]);
    let conditions = last["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap_or_else(|| panic!("{last}"));
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("PreemptionByScheduler")));
    assert_eq!(target["message"], "default-scheduler: preempting to accommodate a higher priority pod");
    let other = api.get(&format!("{pods}/pod1"));
    assert!(other["metadata"].get("deletionTimestamp").is_none() && scheduled(&other));
    api.delete(&format!("{theirs}/{preemptor}"));
}

// Conformance: Scheduler, Basic Preemption
fn a_higher_priority_preempts(api: &Api<'_>) {
    class(api, "basic-high", 1000);
    api.namespace("basic-preemptor");
    preempt(api, "basic", "basic-preemptor", "basic-high");
}

// Conformance: Scheduler, Preemption for critical pod
fn a_critical_pod_preempts(api: &Api<'_>) {
    preempt(api, "critical", "kube-system", "system-cluster-critical");
}

// Conformance: Pod preemption verification
fn replica_sets_preempt(api: &Api<'_>) {
    let pods = pods(api, "fakecpu");
    extended_resource(api, "fakecpu", "1000");
    let sets = "/apis/apps/v1/namespaces/fakecpu/replicasets";
    let set = |priority: i64, amount: &str| {
        let labels = json!({"priority": format!("p{priority}")});
        let spec = json!({"priorityClassName": format!("fakecpu-p{priority}"), "resources": of("fakecpu", amount)});
        let mut template = pod("", &spec);
        template["metadata"] = json!({"labels": labels});
        let spec = json!({"replicas": 1, "selector": {"matchLabels": labels}, "template": template});
        api.create(sets, &json!({"metadata": {"name": format!("rs-pod{priority}")}, "spec": spec}));
    };
    for priority in 1..=4 {
        class(api, &format!("fakecpu-p{priority}"), priority);
    }
    let watch = api.watch(&pods);
    for (priority, amount) in [(1, "200"), (2, "300"), (3, "450")] {
        set(priority, amount);
    }
    let running = |priority: i64| {
        let chosen = format!("{pods}?labelSelector=priority%3Dp{priority}");
        api.until(&chosen, "runs", |list| {
            list["items"].as_array().unwrap().iter().filter(|p| scheduled(p)).count() == 1
        });
    };
    (1..=3).for_each(running);
    // The third fits beside it, the first and the second do not.
    set(4, "500");
    running(4);
    let waiting = |priority: i64| {
        let chosen = format!("{pods}?labelSelector=priority%3Dp{priority}");
        let waits =
            |p: &Value| condition(p, "PodScheduled") == "False" && p["metadata"].get("deletionTimestamp").is_none();
        api.until(&chosen, "waits", |list| list["items"].as_array().unwrap().iter().any(waits));
    };
    waiting(1);
    waiting(2);
    running(3);
    let (mut made, mut course) = ([0; 5], Vec::new());
    for event in watch.rest() {
        let pod = &event["object"];
        if event["type"] == "ADDED" {
            let priority = pod["metadata"]["labels"]["priority"].as_str().unwrap();
            made[priority[1..].parse::<usize>().unwrap()] += 1;
        }
        let (name, status, promised) = (name(pod), &pod["status"], &pod["status"]["nominatedNodeName"]);
        let (node, reason) = (&pod["spec"]["nodeName"], &status["reason"]);
        let (kind, phase) = (&event["type"], &status["phase"]);
        course.push(format!("{kind} {name} on {node}, promised {promised}: {phase} {reason}"));
    }
    assert_eq!(made[1..], [2, 2, 1, 1], "{}", course.join("\n"));
    api.delete(sets);
}

// Conformance: Scheduler, Verify PriorityClass endpoints
fn priority_classes(api: &Api<'_>) {
    let all = "/apis/scheduling.k8s.io/v1/priorityclasses";
    for (name, value) in [("e2e-p1", 1), ("e2e-p2", 2)] {
        let class = json!({"metadata": {"name": name, "labels": {"e2e": "endpoints"}}, "value": value});
        let made = api.create(all, &class);
        assert_eq!(made["preemptionPolicy"], "PreemptLowerPriority");
        let one = format!("{all}/{name}");
        // The value stays; what describes it does not.
        let mut other = api.get(&one);
        other["value"] = json!(value * 10);
        for answer in [
            api.send("PUT", &one, &other),
            api.request("PATCH", &one, Some((MERGE, &json!({"value": value * 10}).to_string()))),
        ] {
            let status = answer.expect(422);
            let message = format!(
                "PriorityClass.scheduling.k8s.io \"{name}\" is invalid: value: Forbidden: may not be changed in an update."
            );
            assert_eq!((&status["reason"], &status["message"]), (&json!("Invalid"), &json!(message)));
        }
        assert_eq!(api.edit(&one, |c| c["description"] = json!("updated"))["description"], "updated");
        let patched =
            api.patch(&one, MERGE, &json!({"description": "patched", "metadata": {"annotations": {"a": "b"}}}));
        assert_eq!((&patched["description"], &patched["value"]), (&json!("patched"), &json!(value)));
    }
    let chosen = format!("{all}?labelSelector=e2e%3Dendpoints");
    assert_eq!(names(&api.list(&chosen)), ["e2e-p1", "e2e-p2"]);
    api.delete(&format!("{all}/e2e-p1"));
    api.delete(&chosen);
    assert!(api.list(&chosen).is_empty());
    let two = ["system-cluster-critical", "system-node-critical"];
    assert!(names(&api.list(all)).iter().filter(|n| two.contains(n)).count() == 2);
}

// Conformance: Pods, QOS
fn quality_of_service(api: &Api<'_>) {
    let pods = pods(api, "qos");
    let cases = [
        (
            "guaranteed",
            json!({"requests": {"cpu": "10m", "memory": "10Mi"}, "limits": {"cpu": "10m", "memory": "10Mi"}}),
            "Guaranteed",
        ),
        ("limits", json!({"limits": {"cpu": "10m", "memory": "10Mi"}}), "Guaranteed"),
        ("burstable", json!({"requests": {"cpu": "10m"}}), "Burstable"),
        ("best-effort", json!({}), "BestEffort"),
    ];
    for (name, resources, class) in cases {
        api.create(&pods, &pod(name, &json!({"nodeSelector": {"no": "node"}, "resources": resources})));
        assert_eq!(api.get(&format!("{pods}/{name}"))["status"]["qosClass"], class, "{name}");
    }
}

const TAINT: &str = "kubernetes.io/e2e-evict-taint-key";

fn taint(api: &Api<'_>, there: bool) {
    let taints =
        if there { json!([{"key": TAINT, "value": "evictTaintVal", "effect": "NoExecute"}]) } else { Value::Null };
    api.patch(NODE, MERGE, &json!({"spec": {"taints": taints}}));
}

fn tolerant(seconds: u64) -> Value {
    json!({"tolerations": [{"key": TAINT, "value": "evictTaintVal", "effect": "NoExecute", "tolerationSeconds": seconds}]})
}

// Conformance: Pod Eviction, Toleration limits
fn the_end_of_a_toleration(api: &Api<'_>) {
    let pods = pods(api, "taint-limits");
    for (name, seconds) in [("taint-eviction-b1", 2), ("taint-eviction-b2", 5)] {
        api.create(&pods, &pod(name, &tolerant(seconds)));
        api.until(&format!("{pods}/{name}"), "runs", scheduled);
    }
    api.create(&pods, &pod("intolerant", &json!({})));
    api.until(&format!("{pods}/intolerant"), "runs", scheduled);
    let watch = api.watch(&pods);
    let tainted = std::time::Instant::now();
    taint(api, true);
    let mut deleted = Vec::new();
    while deleted.len() < 3 {
        let last = watch.find("DELETED", |_| true);
        deleted.push((name(&last).to_owned(), tainted.elapsed()));
    }
    taint(api, false);
    let order: Vec<&str> = deleted.iter().map(|d| d.0.as_str()).collect();
    assert_eq!(order, ["intolerant", "taint-eviction-b1", "taint-eviction-b2"]);
    assert!(deleted[1].1.as_secs() >= 2 && deleted[2].1.as_secs() >= 5 && deleted[2].1 < PATIENCE, "{deleted:?}");
}

// Conformance: Taint, Pod Eviction on taint removal
fn a_taint_that_goes_in_time(api: &Api<'_>) {
    let pods = pods(api, "taint-removed");
    api.create(&pods, &pod("taint-eviction-4", &tolerant(6)));
    api.until(&format!("{pods}/taint-eviction-4"), "runs", scheduled);
    taint(api, true);
    // It was marked for eviction, and then it was not.
    let marked = format!("{}?fieldSelector=reason%3DTaintManagerEviction", pods.replace("/pods", "/events"));
    let has = |text: &'static str| {
        move |list: &Value| {
            list["items"].as_array().unwrap().iter().any(|e| e["message"].as_str().unwrap().contains(text))
        }
    };
    api.patch(&format!("{pods}/taint-eviction-4"), MERGE, &json!({"metadata": {"labels": {"seen": "true"}}}));
    taint(api, false);
    api.until(&marked, "the eviction is called off", has("Cancelling deletion of Pod taint-removed/taint-eviction-4"));
    // Past the moment at which it would have gone, it is still there.
    std::thread::sleep(std::time::Duration::from_secs(8));
    let pod = api.get(&format!("{pods}/taint-eviction-4"));
    assert!(pod["metadata"].get("deletionTimestamp").is_none() && scheduled(&pod), "{pod}");
}
