//! Tables of Jobs and pods, and what is made of them.

use super::backoff::Record;
use super::plan::{Work, plan};
use super::pods::new_pod;
use super::survey::{Survey, survey};
use super::track::{Tracking, end, settle, track};
use super::*;
use gantry_api::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const NOW: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn job(spec: &Value, status: Value) -> Job {
    let mut all = json!({"parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
        "podReplacementPolicy": "TerminatingOrFailed",
        "template": {"metadata": {"labels": {"l": "v"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}});
    for (k, v) in spec.as_object().unwrap() {
        all[k] = v.clone();
    }
    let meta = json!({"name": "j", "namespace": "n", "uid": "job"});
    serde_json::from_value(json!({"metadata": meta, "spec": all, "status": status})).unwrap()
}

/// A pod that its finalizer holds; `x` may say more.
fn pod(name: &str, phase: &str, index: Option<i32>, x: Value) -> Arc<Pod> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "finalizers": [FINALIZER], "annotations": {},
            "creationTimestamp": at(-100)},
        "spec": {"nodeName": "node", "containers": []},
        "status": {"phase": phase},
    });
    if let Some(i) = index {
        value["metadata"]["annotations"][indexed::INDEX] = json!(i.to_string());
    }
    if phase == "Failed" {
        value["status"]["containerStatuses"] = json!([{"name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": at(0)}}}]);
    }
    merge(&mut value, x);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn merge(into: &mut Value, x: Value) {
    match (into, x) {
        (Value::Object(into), Value::Object(x)) => {
            for (k, v) in x {
                merge(into.entry(k).or_insert(Value::Null), v);
            }
        }
        (into, x) => *into = x,
    }
}

fn deleted() -> Value {
    json!({"metadata": {"deletionTimestamp": at(0), "deletionGracePeriodSeconds": 0}})
}

fn look(job: &Job, pods: &[Arc<Pod>]) -> Survey {
    survey(job, pods.to_vec(), BTreeSet::new(), Record::default(), at(0))
}

fn work(job: &Job, pods: &[Arc<Pod>], seconds: i64) -> Work {
    plan(job.spec.as_ref().unwrap(), &look(job, pods), at(seconds))
}

fn tracked(job: &mut Job, pods: &[Arc<Pod>]) -> Tracking {
    let seen = look(job, pods);
    track(job, &seen, &Time(at(0)))
}

fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
    pods.iter().map(|p| p.metadata.name()).collect()
}

fn deletes(work: Work) -> Vec<String> {
    let Work::Delete(pods) = work else { panic!("{work:?}") };
    names(&pods).into_iter().map(str::to_owned).collect()
}

fn finish(job: &Job, pods: &[Arc<Pod>]) -> Option<(String, String)> {
    look(job, pods).finish.map(|c| (c.type_, c.reason.unwrap_or_default()))
}

fn some(r#type: &str, reason: &str) -> Option<(String, String)> {
    Some((r#type.to_owned(), reason.to_owned()))
}

#[test]
fn as_many_pods_run_as_are_asked_for_and_needed() {
    let running =
        |n: usize| -> Vec<Arc<Pod>> { (0..n).map(|i| pod(&format!("r{i}"), "Running", None, json!({}))).collect() };
    let three = job(&json!({"parallelism": 3, "completions": 5}), json!({}));
    assert_eq!(work(&three, &[], 0), Work::Create(vec![None; 3]));
    assert_eq!(work(&three, &running(2), 0), Work::Create(vec![None]));
    assert_eq!(work(&three, &running(3), 0), Work::None);
    let nearly = job(&json!({"parallelism": 3, "completions": 5}), json!({"succeeded": 4}));
    assert_eq!(work(&nearly, &[], 0), Work::Create(vec![None]));
    assert_eq!(deletes(work(&nearly, &running(3), 0)).len(), 2);
    // A work queue: one success ends the making of pods, and the rest run on.
    let queue = job(&json!({"parallelism": 3}), json!({}));
    assert_eq!(work(&queue, &running(1), 0), Work::Create(vec![None; 2]));
    let done = job(&json!({"parallelism": 3}), json!({"succeeded": 1}));
    assert_eq!((work(&done, &running(2), 0), work(&done, &[], 0)), (Work::None, Work::None));
    let suspended = job(&json!({"parallelism": 3, "suspend": true}), json!({}));
    assert_eq!(deletes(work(&suspended, &running(2), 0)).len(), 2);
    assert_eq!(work(&suspended, &[], 0), Work::None);
}

#[test]
fn the_least_advanced_pods_go_first() {
    let one = job(&json!({"parallelism": 1}), json!({}));
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(-9)}]}});
    let pods = [
        pod("ready", "Running", None, ready),
        pod("running", "Running", None, json!({})),
        pod("pending", "Pending", None, json!({})),
        pod("unassigned", "Pending", None, json!({"spec": {"nodeName": null}})),
    ];
    assert_eq!(deletes(work(&one, &pods, 0)), ["unassigned", "pending", "running"]);
}

#[test]
fn indexes_are_given_out_in_order_and_once() {
    let spec = json!({"parallelism": 3, "completions": 6, "completionMode": "Indexed"});
    let j = job(&spec, json!({"succeeded": 2, "completedIndexes": "0,2"}));
    assert_eq!(work(&j, &[], 0), Work::Create(vec![Some(1), Some(3), Some(4)]));
    let pods = [pod("a", "Running", Some(1), json!({})), pod("b", "Succeeded", Some(3), json!({}))];
    assert_eq!(work(&j, &pods, 0), Work::Create(vec![Some(4), Some(5)]));
    let pods = [
        pod("twice", "Pending", Some(1), json!({})),
        pod("keeps", "Running", Some(1), json!({})),
        pod("beyond", "Running", Some(6), json!({})),
        pod("none", "Running", None, json!({})),
    ];
    let mut gone = deletes(work(&j, &pods, 0));
    gone.sort();
    assert_eq!(gone, ["beyond", "none", "twice"]);
    // Fewer completions now: what succeeded beyond is forgotten.
    let less = job(
        &json!({"parallelism": 2, "completions": 2, "completionMode": "Indexed"}),
        json!({"succeeded": 3, "completedIndexes": "0,2-3"}),
    );
    assert_eq!(look(&less, &[]).succeeded, 1);
}

#[test]
fn an_indexed_pod_knows_its_index() {
    let j = job(&json!({"completions": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 2}), json!({}));
    let failed = pod("f", "Failed", Some(2), json!({"metadata": {"annotations": {indexed::FAILURES: "1"}}}));
    let made = new_pod(&j, j.spec.as_ref().unwrap(), &look(&j, &[failed]), Some(2));
    let value = serde_json::to_value(&made).unwrap();
    assert_eq!(value["metadata"]["generateName"], "j-2-");
    assert_eq!(value["metadata"]["finalizers"], json!([FINALIZER]));
    assert_eq!(value["metadata"]["labels"], json!({"l": "v", indexed::INDEX: "2"}));
    assert_eq!(value["metadata"]["annotations"], json!({indexed::INDEX: "2", indexed::FAILURES: "2"}));
    assert_eq!(value["spec"]["hostname"], "j-2");
    let env = json!([{"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef":
        {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}}]);
    assert_eq!(value["spec"]["containers"][0]["env"], env);
    let mut long = j.clone();
    long.metadata.name = Some("x".repeat(60));
    let made = new_pod(&long, long.spec.as_ref().unwrap(), &look(&long, &[]), Some(12));
    assert_eq!(made.metadata.generate_name.unwrap(), format!("{}-12-", "x".repeat(54)));
}

#[test]
fn a_failed_pod_is_replaced_after_a_while() {
    let j = job(&json!({"completions": 1}), json!({}));
    let failed = [pod("f", "Failed", None, json!({}))];
    assert_eq!(work(&j, &failed, 4), Work::Wait(Duration::from_secs(6)));
    assert_eq!(work(&j, &failed, 10), Work::Create(vec![None]));
    // Each index waits for itself.
    let spec = json!({"parallelism": 2, "completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 3});
    let twice = json!({"metadata": {"annotations": {indexed::FAILURES: "1"}}});
    let pods = [pod("a", "Failed", Some(0), twice), pod("b", "Failed", Some(1), json!({}))];
    assert_eq!(work(&job(&spec, json!({})), &pods, 4), Work::Wait(Duration::from_secs(6)));
    assert_eq!(work(&job(&spec, json!({})), &pods, 12), Work::Create(vec![Some(1)]));
    assert_eq!(work(&job(&spec, json!({})), &pods, 20), Work::Create(vec![Some(0), Some(1)]));
}

#[test]
fn a_terminating_pod_is_replaced_at_once_or_when_it_has_ended() {
    let going = [pod("g", "Running", None, deleted())];
    let eager = job(&json!({"completions": 1}), json!({}));
    // It counts as failed, and so its replacement waits.
    assert_eq!(work(&eager, &going, 0), Work::Wait(Duration::from_secs(10)));
    assert_eq!(work(&eager, &going, 10), Work::Create(vec![None]));
    let patient = job(&json!({"completions": 1, "podReplacementPolicy": "Failed"}), json!({}));
    assert_eq!(work(&patient, &going, 10), Work::None);
    assert_eq!((look(&eager, &going).failed, look(&patient, &going).failed), (1, 0));
    assert_eq!(look(&patient, &going).terminating, 1);
}

#[test]
fn a_job_fails_for_its_limits() {
    let fails = |spec: Value, status: Value, pods: &[Arc<Pod>]| finish(&job(&spec, status), pods);
    let failed = |name: &str| pod(name, "Failed", None, json!({}));
    let target = |reason| some("FailureTarget", reason);
    let one = json!({"completions": 1, "backoffLimit": 1});
    assert_eq!(fails(one.clone(), json!({}), &[failed("a")]), None);
    assert_eq!(fails(one.clone(), json!({}), &[failed("a"), failed("b")]), target("BackoffLimitExceeded"));
    assert_eq!(fails(one, json!({"failed": 1}), &[failed("b")]), target("BackoffLimitExceeded"));
    let restarts = |n: i32| {
        let c = json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": n}]);
        pod("r", "Running", None, json!({"status": {"containerStatuses": c}}))
    };
    let template = json!({"spec": {"restartPolicy": "OnFailure", "containers": []}});
    let local = |limit: i32| json!({"backoffLimit": limit, "template": template});
    assert_eq!(fails(local(2), json!({}), &[restarts(1)]), None);
    assert_eq!(fails(local(2), json!({}), &[restarts(2)]), target("BackoffLimitExceeded"));
    assert_eq!(fails(local(0), json!({}), &[restarts(0)]), None);
    assert_eq!(fails(local(0), json!({}), &[restarts(1)]), target("BackoffLimitExceeded"));
    let deadline = json!({"activeDeadlineSeconds": 30});
    assert_eq!(fails(deadline.clone(), json!({"startTime": at(-29)}), &[]), None);
    assert_eq!(fails(deadline.clone(), json!({"startTime": at(-30)}), &[]), target("DeadlineExceeded"));
    let j = job(&deadline, json!({"startTime": at(-20)}));
    assert_eq!(look(&j, &[]).deadline, Some(Duration::from_secs(10)));
}

#[test]
fn a_job_ends_by_its_indexes_and_policies() {
    let spec = |x: Value| {
        let mut v = json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed"});
        merge(&mut v, x);
        v
    };
    let failed = |i: i32| pod(&format!("f{i}"), "Failed", Some(i), json!({}));
    let good = |i: i32| pod(&format!("g{i}"), "Succeeded", Some(i), json!({}));
    let per_index = job(&spec(json!({"backoffLimitPerIndex": 0})), json!({}));
    assert_eq!(finish(&per_index, &[failed(0)]), None);
    assert_eq!(finish(&per_index, &[failed(0), good(1), good(2)]), some("FailureTarget", "FailedIndexes"));
    let most = job(&spec(json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 1})), json!({"failedIndexes": "0"}));
    assert_eq!(finish(&most, &[]), None);
    assert_eq!(finish(&most, &[failed(2)]), some("FailureTarget", "MaxFailedIndexesExceeded"));
    let policy = spec(json!({"successPolicy": {"rules": [{"succeededIndexes": "0"}]}}));
    assert_eq!(finish(&job(&policy, json!({})), &[good(1)]), None);
    assert_eq!(finish(&job(&policy, json!({})), &[good(0)]), some("SuccessCriteriaMet", "SuccessPolicy"));
    let rule = |action: &str| {
        json!({"podFailurePolicy": {"rules": [
        {"action": action, "onExitCodes": {"operator": "In", "values": [1]}}]}})
    };
    assert_eq!(
        finish(&job(&spec(rule("FailJob")), json!({})), &[failed(0)]),
        some("FailureTarget", "PodFailurePolicy")
    );
    let ignoring = job(&spec(rule("Ignore")), json!({}));
    assert_eq!((look(&ignoring, &[failed(0)]).failed, finish(&ignoring, &[failed(0)])), (0, None));
    let mut by_index = rule("FailIndex");
    by_index["backoffLimitPerIndex"] = json!(5);
    let by_index = job(&spec(by_index), json!({}));
    assert_eq!(look(&by_index, &[failed(1)]).failed_indexes.unwrap().to_string(), "1");
}

#[test]
fn a_pod_is_counted_once_through_every_step() {
    let mut j = job(&json!({"completions": 3, "parallelism": 3}), json!({"succeeded": 1}));
    let pods = [
        pod("good", "Succeeded", None, json!({})),
        pod("bad", "Failed", None, json!({})),
        pod("r", "Running", None, json!({})),
    ];
    let mut t = tracked(&mut j, &pods);
    assert!(t.changed && !t.full && t.finish.is_none());
    let mut released = names(&t.release);
    released.sort_unstable();
    assert_eq!(released, ["bad", "good"]);
    let told = |j: &Job| serde_json::to_value(j.status.as_ref().unwrap()).unwrap();
    assert_eq!(
        told(&j),
        json!({"succeeded": 1, "uncountedTerminatedPods": {"succeeded": ["good"], "failed": ["bad"]}})
    );

    // The status is written and the process ends: nothing is counted anew, and all is released.
    let again = tracked(&mut j, &pods);
    assert!(!again.changed);
    assert_eq!(again.release.len(), 2);
    let seen = look(&j, &pods);
    assert_eq!((seen.succeeded, seen.failed), (2, 1));

    // One finalizer went, the other could not be removed.
    t.held.remove("good");
    assert!(settle(j.status.as_mut().unwrap(), &t.held));
    assert_eq!(told(&j), json!({"succeeded": 2, "uncountedTerminatedPods": {"failed": ["bad"]}}));
    // The cache still shows the finalizer, but it is known that it went.
    let stale = survey(&j, pods.to_vec(), BTreeSet::from(["good".to_owned()]), Record::default(), at(0));
    assert_eq!((stale.succeeded, stale.failed), (2, 1));
    assert_eq!(names(&track(&mut j, &stale, &Time(at(0))).release), ["bad"]);
    // The pod is gone for good.
    let t = tracked(&mut j, &pods[2..]);
    assert!(t.changed && t.release.is_empty());
    assert_eq!(told(&j), json!({"succeeded": 2, "failed": 1, "uncountedTerminatedPods": {}}));
}

#[test]
fn an_index_counts_once_and_a_failed_one_waits_for_its_replacement() {
    let spec = json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
    let mut j = job(&spec, json!({"succeeded": 1, "completedIndexes": "0"}));
    let pods = [
        pod("again", "Succeeded", Some(0), json!({})),
        pod("good", "Succeeded", Some(2), json!({})),
        pod("bad", "Failed", Some(1), json!({})),
    ];
    let t = tracked(&mut j, &pods);
    assert_eq!(names(&t.release), ["again", "good"], "the failed pod's annotation is still needed");
    let status = j.status.clone().unwrap();
    assert_eq!((status.succeeded, status.completed_indexes.as_deref()), (Some(2), Some("0,2")));
    assert_eq!(status.failed_indexes.as_deref(), Some(""));
    let mut with = pods.to_vec();
    with.push(pod("new", "Running", Some(1), json!({"metadata": {"annotations": {indexed::FAILURES: "1"}}})));
    assert_eq!(names(&tracked(&mut j, &with).release), ["again", "bad", "good"]);
}

#[test]
fn the_end_is_told_in_two_steps() {
    let mut j = job(&json!({"completions": 1, "backoffLimit": 0}), json!({"startTime": at(-9)}));
    let pods = [pod("bad", "Failed", None, json!({})), pod("r", "Running", None, deleted())];
    let t = tracked(&mut j, &pods);
    let status = j.status.as_mut().unwrap();
    assert!(condition::holds(status, condition::FAILURE_TARGET).is_some());
    assert_eq!(t.release.len(), 2, "what runs yet counts as failed");
    status.terminating = Some(1);
    assert!(!end(status, t.finish.as_ref()), "pods are still to be counted");
    settle(status, &BTreeSet::new());
    assert!(!end(status, t.finish.as_ref()), "a pod still ends");
    status.terminating = Some(0);
    assert!(end(status, t.finish.as_ref()));
    let types: Vec<&str> = status.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    assert_eq!((types, status.failed), (vec!["FailureTarget", "Failed"], Some(2)));
    assert!(status.completion_time.is_none());

    let mut j = job(&json!({"completions": 1}), json!({"startTime": at(-9), "succeeded": 1}));
    let mut seen = look(&j, &[]);
    seen.finish = Some(condition(SUCCESS_CRITERIA_MET, true, "CompletionsReached", "m", &Time(at(0))));
    let t = track(&mut j, &seen, &Time(at(0)));
    let status = j.status.as_mut().unwrap();
    assert!(t.changed && end(status, t.finish.as_ref()));
    assert_eq!(status.completion_time.as_ref().map(|t| t.0), Some(at(0)));
    let all: Vec<_> = status.conditions.iter().flatten().map(|c| (c.type_.as_str(), c.reason.as_deref())).collect();
    assert_eq!(all, [("SuccessCriteriaMet", Some("CompletionsReached")), ("Complete", Some("CompletionsReached"))]);
}

#[test]
fn surplus_and_suspended_conditions_change_only_what_changed() {
    let mut status = JobStatus::default();
    let told = |on: bool| condition("Suspended", on, "r", "m", &Time(at(0)));
    assert!(!condition::set(&mut status, told(false)), "nothing to take back");
    assert!(status.conditions.is_none());
    assert!(condition::set(&mut status, told(true)) && !condition::set(&mut status, told(true)));
    assert!(condition::set(&mut status, told(false)));
    assert_eq!(status.conditions.unwrap().len(), 1);
}

#[test]
fn a_job_that_is_older_than_what_we_wrote_is_not_acted_on() {
    let of = |version: &str| {
        let mut job = job(&json!({}), json!({}));
        job.metadata.resource_version = Some(version.to_owned());
        job
    };
    let written = Written::default();
    assert!(!written.is_newer_than(&of("9")), "nothing was written");
    written.note(&of("12"));
    assert!(written.is_newer_than(&of("9")) && !written.is_newer_than(&of("12")) && !written.is_newer_than(&of("100")));
    written.forget("n/j");
    assert!(!written.is_newer_than(&of("9")));
}
