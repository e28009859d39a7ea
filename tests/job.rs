//! Jobs with real pods: upstream's conformance behaviours (each stands by its name above the lines that show it), and
//! that no pod is lost or counted twice when the server is killed.

mod cluster;

use cluster::api::{Api, JSON_PATCH, MERGE, condition, name};
use cluster::busybox::BUSYBOX;
use cluster::{Cluster, busybox};
use serde_json::{Value, json};

#[test]
fn jobs() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let all = scenarios![
        indexed_pods_know_their_index,
        tasks_that_fail_are_restarted,
        pods_go_with_their_job,
        orphans_are_adopted_and_strangers_let_go,
        the_status_is_written,
        the_life_of_a_job,
        a_failure_policy_ends_a_job,
        kubectl_waits_for_jobs,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// A Job of pods that run `args` of the built-in image.
fn job(name: &str, args: &[&str], spec: &Value) -> Value {
    let mut all = json!({"template": {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "gantry.local/self", "args": args}]}}});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": {"job": name}}, "spec": all})
}

struct Paths {
    jobs: String,
    pods: String,
}

fn paths(api: &Api<'_>, namespace: &str) -> Paths {
    let namespace = api.namespace(namespace);
    Paths {
        jobs: format!("/apis/batch/v1/namespaces/{namespace}/jobs"),
        pods: format!("/api/v1/namespaces/{namespace}/pods"),
    }
}

fn is(kind: &'static str) -> impl Fn(&Value) -> bool {
    move |object| condition(object, kind) == "True"
}

fn running(count: usize) -> impl Fn(&Value) -> bool {
    move |list| {
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .filter(|p| p["status"]["phase"] == "Running" && p["metadata"]["deletionTimestamp"].is_null())
            .count()
            == count
    }
}

// Conformance: Ensure Pods of an Indexed Job get a unique index.
fn indexed_pods_know_their_index(api: &Api<'_>) {
    let p = paths(api, "indexed");
    let wanted = json!({"completions": 4, "parallelism": 2, "completionMode": "Indexed"});
    api.create(&p.jobs, &job("numbers", &["env"], &wanted));
    let done = api.until(&format!("{}/numbers", p.jobs), "complete", is("Complete"));
    assert_eq!((&done["status"]["succeeded"], &done["status"]["completedIndexes"]), (&json!(4), &json!("0-3")));
    let mut indexes = Vec::new();
    for pod in api.list(&p.pods) {
        let index = pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"].as_str().unwrap();
        assert_eq!(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"], index);
        let host = format!("numbers-{index}");
        assert_eq!(pod["spec"]["hostname"], json!(host));
        let log = api.try_get(&format!("{}/{}/log", p.pods, name(&pod))).text;
        assert!(log.contains(&format!("JOB_COMPLETION_INDEX={index}\n")), "{log}");
        assert!(log.contains(&format!("HOSTNAME={host}\n")), "{log}");
        indexes.push(index.to_owned());
    }
    indexes.sort();
    assert_eq!(indexes, ["0", "1", "2", "3"]);
}

// Conformance: Jobs, completion after task failure
fn tasks_that_fail_are_restarted(api: &Api<'_>) {
    let p = paths(api, "restarted");
    let script = "if [ -e /data/tried ]; then exit 0; else touch /data/tried; exit 1; fi";
    let template = json!({"spec": {"restartPolicy": "OnFailure", "volumes": [{"name": "data", "emptyDir": {}}],
        "containers": [{"name": "c", "image": BUSYBOX, "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}});
    let wanted = json!({"completions": 4, "parallelism": 2, "template": template});
    api.create(&p.jobs, &job("second-try", &[], &wanted));
    let done = api.until(&format!("{}/second-try", p.jobs), "complete", is("Complete"));
    assert_eq!((&done["status"]["succeeded"], &done["status"]["failed"]), (&json!(4), &Value::Null));
    let pods = api.list(&p.pods);
    assert_eq!(pods.len(), 4);
    assert!(pods.iter().all(|p| p["status"]["containerStatuses"][0]["restartCount"] == 1));
}

// Conformance: Jobs, active pods, graceful termination
fn pods_go_with_their_job(api: &Api<'_>) {
    let p = paths(api, "deleted");
    api.create(&p.jobs, &job("endless", &["sleep", "inf"], &json!({"parallelism": 2, "completions": 4})));
    api.until(&p.pods, "two run", running(2));
    let one = format!("{}/endless", p.jobs);
    api.until(&one, "two are active", |j| j["status"]["active"] == 2 && j["status"]["ready"] == 2);
    api.delete_with(&one, &json!({"propagationPolicy": "Foreground"}));
    api.gone(&one);
    assert!(api.list(&p.pods).is_empty(), "the pods go before their job");
}

// Conformance: Jobs, orphan pods, re-adoption
fn orphans_are_adopted_and_strangers_let_go(api: &Api<'_>) {
    let p = paths(api, "adopted");
    api.create(&p.jobs, &job("keeper", &["sleep", "inf"], &json!({"parallelism": 2, "completions": 4})));
    api.until(&p.pods, "two run", running(2));
    let one = format!("{}/{}", p.pods, name(&api.list(&p.pods)[0]));
    api.patch(&one, MERGE, &json!({"metadata": {"ownerReferences": null}}));
    let tracked = |p: &Value| p["metadata"]["finalizers"].as_array().is_some_and(|f| f.len() == 1);
    api.until(&one, "adopted", |p| p["metadata"]["ownerReferences"][0]["name"] == "keeper" && tracked(p));
    api.patch(&one, MERGE, &json!({"metadata": {"labels": null}}));
    api.until(&one, "let go", |p| p["metadata"]["ownerReferences"].is_null() && !tracked(p));
    api.until(&p.pods, "another in its place", running(3));
}

// Conformance: Jobs, apply changes to status
fn the_status_is_written(api: &Api<'_>) {
    let p = paths(api, "status");
    api.create(&p.jobs, &job("told", &["sleep", "inf"], &json!({"parallelism": 1, "suspend": true})));
    let one = format!("{}/told", p.jobs);
    // The controller has nothing more to say, so nobody else writes.
    api.until(&one, "suspended", is("Suspended"));
    let status = format!("{one}/status");
    let start = "2026-01-02T03:04:05Z";
    let told = json!({"metadata": {"annotations": {"patched": "yes"}}, "status": {"startTime": start}});
    let after = api.patch(&status, MERGE, &told);
    assert_eq!(
        (&after["metadata"]["annotations"]["patched"], &after["status"]["startTime"]),
        (&json!("yes"), &json!(start))
    );
    // A suspended Job has no start time: the controller takes it back.
    api.until(&one, "taken back", |j| j["status"]["startTime"].is_null());
    let later = "2026-01-02T03:04:06Z";
    let after = api.edit(&status, |j| j["status"]["startTime"] = json!(later));
    assert_eq!(after["status"]["startTime"], later);
    let read = api.get(&status);
    assert_eq!((&read["metadata"]["uid"], &read["kind"]), (&after["metadata"]["uid"], &json!("Job")));
}

// Conformance: Jobs, manage lifecycle
fn the_life_of_a_job(api: &Api<'_>) {
    let p = paths(api, "life");
    let one = format!("{}/life", p.jobs);
    let wanted = json!({"parallelism": 2, "completions": 2, "suspend": true});
    api.create(&p.jobs, &job("life", &["exit", "0"], &wanted));
    api.until(&one, "suspended", is("Suspended"));
    let after = api.patch(&one, MERGE, &json!({"metadata": {"labels": {"patched": "true"}}}));
    assert_eq!(after["metadata"]["labels"]["patched"], "true");
    let after = api.edit(&one, |j| j["metadata"]["annotations"] = json!({"updated": "true"}));
    assert_eq!(after["metadata"]["annotations"]["updated"], "true");
    let selected = api.list("/apis/batch/v1/jobs?labelSelector=patched%3Dtrue");
    assert_eq!(selected.len(), 1);
    assert!(api.list(&p.pods).is_empty(), "a suspended job has no pods");
    api.patch(&one, JSON_PATCH, &json!([{"op": "replace", "path": "/spec/suspend", "value": false}]));
    api.until(&one, "complete", is("Complete"));
    api.delete_with(&format!("{}?labelSelector=patched%3Dtrue", p.jobs), &json!({"propagationPolicy": "Foreground"}));
    api.gone(&one);
    assert!(api.list(&p.pods).is_empty());
}

fn a_failure_policy_ends_a_job(api: &Api<'_>) {
    let p = paths(api, "policy");
    let rule = json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}});
    api.create(&p.jobs, &job("strict", &["exit", "42"], &json!({"podFailurePolicy": {"rules": [rule]}})));
    let failed = api.until(&format!("{}/strict", p.jobs), "failed", is("Failed"));
    let last = failed["status"]["conditions"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["type"], &last["reason"]), (&json!("Failed"), &json!("PodFailurePolicy")));
    let pod = api.list(&p.pods).remove(0);
    let message =
        format!("Container c for pod policy/{} failed with exit code 42 matching FailJob rule at index 0", name(&pod));
    assert_eq!(last["message"], json!(message));
    assert!(pod["metadata"]["finalizers"].is_null());
}

fn kubectl_waits_for_jobs(api: &Api<'_>) {
    api.namespace("waits");
    let kubectl = |arguments: &[&str]| api.cluster.kubectl(&[&["-n", "waits"], arguments].concat());
    kubectl(&["create", "job", "hello", "--image=gantry.local/self", "--", "/gantry", "self", "echo", "hello"]);
    let waited = kubectl(&["wait", "--for=condition=complete", "job/hello", "--timeout=80s"]);
    assert_eq!(waited, "job.batch/hello condition met\n");
    assert_eq!(kubectl(&["logs", "job/hello"]), "hello\n");
    let row = kubectl(&["get", "job", "hello", "--no-headers"]);
    assert!(row.starts_with("hello   Complete   1/1 "), "{row}");
    kubectl(&["delete", "job", "hello"]);
}

#[test]
fn every_pod_is_counted_once_though_the_server_is_killed() {
    let mut cluster = Cluster::start();
    {
        let api = Api::new(&cluster);
        let p = paths(&api, "counted");
        api.create(&p.jobs, &job("many", &["sleep", "1"], &json!({"completions": 12, "parallelism": 3})));
        api.until(&format!("{}/many", p.jobs), "some succeeded", |j| j["status"]["succeeded"].as_i64() >= Some(3));
    }
    cluster.kill();
    cluster.up();
    let api = Api::new(&cluster);
    let done = api.until("/apis/batch/v1/namespaces/counted/jobs/many", "complete", is("Complete"));
    assert_eq!((&done["status"]["succeeded"], &done["status"]["uncountedTerminatedPods"]), (&json!(12), &json!({})));
    let pods = api.list("/api/v1/namespaces/counted/pods");
    let succeeded = pods.iter().filter(|p| p["status"]["phase"] == "Succeeded").count();
    assert_eq!(succeeded, 12, "{pods:?}");
    assert!(pods.iter().all(|p| p["metadata"]["finalizers"].is_null()));
}
