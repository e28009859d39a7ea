//! What upstream's conformance suite asks of PodDisruptionBudgets and evictions. Each behaviour stands above its scenario by
//! upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Answer, Api, MERGE, is_ready, name, names};
use serde_json::{Value, json};

#[test]
fn budgets() {
    let cluster = Cluster::start();
    let all =
        scenarios![the_life_of_a_budget, collections_of_budgets, what_a_budget_allows, a_budget_s_status_is_written];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

fn budgets_of(namespace: &str) -> String {
    format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets")
}

fn budget(name: &str, min_available: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": {"special": name}},
        "spec": {"minAvailable": min_available, "selector": {"matchLabels": {"foo": "bar"}}}})
}

/// Running pods under the budget.
fn pods(api: &Api<'_>, namespace: &str, count: usize) -> String {
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    for n in 0..count {
        let pod = json!({"metadata": {"name": format!("pod-{n}"), "labels": {"foo": "bar"}}, "spec":
            {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"]}]}});
        api.create(&pods, &pod);
    }
    api.until(&pods, "ready", |list| list["items"].as_array().unwrap().iter().all(is_ready));
    pods
}

/// Waits until the controller has seen the budget as it is now.
fn processed(api: &Api<'_>, path: &str) -> Value {
    api.until(path, "processed", |b| b["status"]["observedGeneration"] == b["metadata"]["generation"])
}

// Conformance: PodDisruptionBudget: create, update, patch, and delete object
fn the_life_of_a_budget(api: &Api<'_>) {
    let all = budgets_of(&api.namespace("pdb-life"));
    let one = format!("{all}/foo");
    api.create(&all, &budget("foo", &json!("1%")));
    assert_eq!(processed(api, &one)["spec"]["minAvailable"], "1%");
    assert_eq!(api.edit(&one, |b| b["spec"]["minAvailable"] = json!("2%"))["metadata"]["generation"], 2);
    processed(api, &one);
    let patched = api.patch(&one, MERGE, &json!({"spec": {"minAvailable": "3%"}}));
    assert_eq!(patched["spec"]["minAvailable"], "3%");
    processed(api, &one);
    api.delete(&one);
    api.gone(&one);
}

// Conformance: PodDisruptionBudget: list and delete collection
fn collections_of_budgets(api: &Api<'_>) {
    let (here, there) = (budgets_of(&api.namespace("pdb-here")), budgets_of(&api.namespace("pdb-there")));
    api.create(&here, &budget("one", &json!(1)));
    api.create(&here, &budget("two", &json!("1%")));
    api.create(&there, &budget("three", &json!(2)));
    let everywhere = api.list("/apis/policy/v1/poddisruptionbudgets?labelSelector=special%20in%20(one,two,three)");
    assert_eq!(names(&everywhere), ["one", "three", "two"]);
    assert_eq!(names(&api.list(&here)), ["one", "two"]);
    api.delete(&format!("{here}?labelSelector=special%3Dtwo"));
    api.gone(&format!("{here}/two"));
    assert_eq!(names(&api.list(&here)), ["one"]);
    api.delete(&here);
    api.until(&here, "empty", |list| list["items"].as_array().unwrap().is_empty());
    assert_eq!(names(&api.list(&there)), ["three"]);
}

fn evict(api: &Api<'_>, pods: &str, pod: &str) -> Answer {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
    api.send("POST", &format!("{pods}/{pod}/eviction"), &eviction)
}

// Conformance: PodDisruptionBudget: Status updates
// Conformance: PodDisruptionBudget: block an eviction until the PDB is updated to allow it
fn what_a_budget_allows(api: &Api<'_>) {
    let namespace = api.namespace("pdb-evictions");
    let all = budgets_of(&namespace);
    let one = format!("{all}/foo");
    api.create(&all, &budget("foo", &json!(1)));
    let pods = pods(api, &namespace, 3);
    let status = api.until(&one, "allows two", |b| b["status"]["disruptionsAllowed"] == 2)["status"].clone();
    assert_eq!(
        (&status["currentHealthy"], &status["desiredHealthy"], &status["expectedPods"]),
        (&json!(3), &json!(1), &json!(3))
    );
    assert_eq!(
        (&status["conditions"][0]["type"], &status["conditions"][0]["reason"]),
        (&json!("DisruptionAllowed"), &json!("SufficientPods"))
    );

    let at_least = |count: u32| {
        api.patch(&one, MERGE, &json!({"spec": {"minAvailable": count}}));
        processed(api, &one);
    };
    let denied = |pod: &str| {
        let status = evict(api, &pods, pod).expect(429);
        assert_eq!(status["reason"], "TooManyRequests");
        assert_eq!(status["message"], "Cannot evict pod as it would violate the pod's disruption budget.");
        assert_eq!(status["details"]["causes"][0]["reason"], "DisruptionBudget");
        assert_eq!(
            status["details"]["causes"][0]["message"],
            "The disruption budget foo needs 3 healthy pods and has 3 currently"
        );
    };
    at_least(3);
    denied("pod-0");
    at_least(2);
    evict(api, &pods, "pod-0").expect(201);
    api.gone(&format!("{pods}/pod-0"));
    // Two are left and two are needed; then the budget goes.
    api.until(&one, "sees two", |b| b["status"]["currentHealthy"] == 2 && b["status"]["disruptionsAllowed"] == 0);
    let status = evict(api, &pods, "pod-1").expect(429);
    assert_eq!(
        status["details"]["causes"][0]["message"],
        "The disruption budget foo needs 2 healthy pods and has 2 currently"
    );
    api.delete(&one);
    api.gone(&one);
    evict(api, &pods, "pod-1").expect(201);
    api.gone(&format!("{pods}/pod-1"));
    assert_eq!(names(&api.list(&pods)), ["pod-2"]);
    assert_eq!(evict(api, &pods, "pod-1").code, 404);
}

// Conformance: PodDisruptionBudget: update and patch status
fn a_budget_s_status_is_written(api: &Api<'_>) {
    let namespace = api.namespace("pdb-status");
    let all = budgets_of(&namespace);
    let one = format!("{all}/foo");
    api.create(&all, &budget("foo", &json!(1)));
    let pods = pods(api, &namespace, 1);
    api.until(&one, "sees the pod", |b| b["status"]["currentHealthy"] == 1);
    let pod = name(&api.list(&pods)[0]).to_owned();
    let now = api.get(&format!("{pods}/{pod}"))["metadata"]["creationTimestamp"].clone();
    let status = format!("{one}/status");
    // Of a time in the future, so that the controller takes it for a disruption that is still under way.
    let soon = now.as_str().unwrap().replacen("20", "21", 1);
    let updated = api.edit(&status, |b| b["status"]["disruptedPods"] = json!({&pod: soon}));
    assert_eq!(updated["status"]["disruptedPods"][&pod], soon);
    assert_eq!(api.get(&one)["status"]["disruptedPods"][&pod], soon);
    let patched = api.patch(&status, MERGE, &json!({"status": {"disruptedPods": {&pod: null}}}));
    assert_eq!(patched["status"].get("disruptedPods"), None);
    let metadata = api.patch(&status, MERGE, &json!({"spec": {"minAvailable": 7}}));
    assert_eq!(metadata["spec"]["minAvailable"], 1, "the spec is not written by way of the status");
}
