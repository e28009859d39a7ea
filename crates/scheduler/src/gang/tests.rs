use super::*;
use serde_json::{Value, json};

fn pod(name: &str, spec: Value, annotations: Value) -> Arc<PodInfo> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "annotations": annotations}, "spec": spec,
    }))
    .unwrap();
    Arc::new(PodInfo::new(Arc::new(pod)))
}

fn annotated(name: &str, min: &str) -> Arc<PodInfo> {
    pod(name, json!({"containers": []}), json!({ANNOTATION: "g", MIN_COUNT: min}))
}

fn member(name: &str, gated: bool) -> Arc<PodInfo> {
    let gates = if gated { json!([{"name": "hold"}]) } else { json!([]) };
    let spec = json!({"containers": [], "schedulingGroup": {"podGroupName": "g"}, "schedulingGates": gates});
    pod(name, spec, json!({}))
}

fn pod_group(spec: &Value) -> PodGroup {
    serde_json::from_value(json!({
        "apiVersion": "scheduling.k8s.io/v1beta1", "kind": "PodGroup",
        "metadata": {"name": "g", "namespace": "n"}, "spec": spec,
    }))
    .unwrap()
}

fn names(call: &Call) -> (&'static str, Vec<&str>) {
    let (what, pods) = match call {
        Call::Nothing => return ("nothing", Vec::new()),
        Call::Hold(pods) => ("hold", pods),
        Call::Apart(pods) => ("apart", pods),
        Call::Together(pods) => ("together", pods),
    };
    (what, pods.iter().map(|p| p.name()).collect())
}

fn wait(groups: &mut Groups, pod: &Arc<PodInfo>) -> String {
    let group = pod.group.clone().unwrap();
    groups.wait(&group, pod.clone());
    group.id
}

#[test]
fn annotations_make_a_group() {
    let mut groups = Groups::default();
    let (a, b) = (annotated("a", "2"), annotated("b", "2"));
    let id = wait(&mut groups, &a);
    assert_eq!(names(&groups.call(&id)), ("hold", vec!["a"]));
    wait(&mut groups, &b);
    assert_eq!(names(&groups.call(&id)), ("together", vec!["a", "b"]));
    // The greatest minimum counts.
    wait(&mut groups, &annotated("c", "4"));
    assert_eq!(names(&groups.call(&id)), ("hold", vec!["a", "b", "c"]));
    let message = groups.explain(&id).unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("to appear in scheduling queue: 3 of 4 are there"), "{message}");
    groups.forget(annotated("c", "4").group.as_ref().unwrap(), "c");
    groups.place(a.group.as_ref().unwrap(), a.occupant.clone());
    assert_eq!(names(&groups.call(&id)), ("together", vec!["b"]));
    groups.forget(a.group.as_ref().unwrap(), "a");
    assert_eq!(names(&groups.call(&id)), ("hold", vec!["b"]));
    groups.forget(b.group.as_ref().unwrap(), "b");
    assert_eq!(names(&groups.call(&id)), ("nothing", vec![]));
}

#[test]
fn what_is_wrong_with_an_annotation_is_told() {
    for (min, want) in [
        (json!({ANNOTATION: "g"}), "annotation gantry.io/pod-group-min-count must be set with gantry.io/pod-group"),
        (
            json!({ANNOTATION: "g", MIN_COUNT: "0"}),
            "annotation gantry.io/pod-group-min-count: \"0\" is not a positive number",
        ),
    ] {
        let mut groups = Groups::default();
        let id = wait(&mut groups, &pod("a", json!({"containers": []}), min));
        assert_eq!(groups.policy(&id).unwrap_err(), want);
        // An attempt tells it.
        assert_eq!(names(&groups.call(&id)).0, "together");
    }
    assert_eq!(pod("a", json!({"containers": []}), json!({MIN_COUNT: "2"})).group.clone(), None);
}

#[test]
fn pods_wait_for_their_pod_group() {
    let mut groups = Groups::default();
    let (a, b) = (member("a", false), member("b", true));
    let id = wait(&mut groups, &a);
    wait(&mut groups, &b);
    assert_eq!(names(&groups.call(&id)).0, "hold");
    assert_eq!(groups.policy(&id).unwrap_err(), "waiting for pods's pod group \"g\" to appear in scheduling queue");
    let basic = json!({"schedulingPolicy": {"basic": {}}});
    assert_eq!(groups.declare(&pod_group(&basic)), id);
    assert_eq!(names(&groups.call(&id)), ("apart", vec!["a", "b"]));
    // In one domain also pods of the basic policy are placed in one decision.
    let confined = json!({"schedulingPolicy": {"basic": {}}, "schedulingConstraints": {"topology": [{"key": "rack"}]}});
    groups.declare(&pod_group(&confined));
    assert_eq!(names(&groups.call(&id)), ("together", vec!["a"]));
    groups.declare(&pod_group(&json!({"schedulingPolicy": {"gang": {"minCount": 2}}})));
    assert_eq!(names(&groups.call(&id)).0, "hold");
    wait(&mut groups, &member("b", false));
    assert_eq!(names(&groups.call(&id)), ("together", vec!["a", "b"]));
    groups.withdraw(&pod_group(&basic));
    assert_eq!(names(&groups.call(&id)).0, "hold");
}

#[test]
fn a_group_is_disrupted_together_if_it_says_so() {
    let mut groups = Groups::default();
    let (a, b) = (member("a", false), member("b", false));
    for pod in [&a, &b] {
        groups.place(pod.group.as_ref().unwrap(), pod.occupant.clone());
    }
    let gang = json!({"gang": {"minCount": 2}});
    groups.declare(&pod_group(&json!({"schedulingPolicy": gang})));
    assert_eq!(groups.disrupted_with(&a.occupant).len(), 1);
    groups.declare(&pod_group(&json!({"schedulingPolicy": gang, "disruptionMode": {"all": {}}})));
    assert_eq!(groups.disrupted_with(&a.occupant).len(), 2);
}
