//! CronJobs: upstream's conformance behaviours (each stands by its name above the lines that show it).

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, MERGE, condition, name};
use serde_json::{Value, json};

#[test]
fn cron_jobs() {
    let cluster = Cluster::start();
    let all = scenarios![schedules_are_kept, the_life_of_a_cron_job, kubectl_starts_one_at_once];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

fn cron_job(name: &str, args: &[&str], spec: &Value) -> Value {
    let mut all = json!({"schedule": "*/1 * * * ?", "jobTemplate": {"spec": {"template": {"spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "gantry.local/self", "args": args}]}}}}});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    let meta = json!({"name": name, "labels": {"cron": name}});
    json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": meta, "spec": all})
}

fn active(cron_job: &Value) -> Vec<String> {
    let list = cron_job["status"]["active"].as_array().into_iter().flatten();
    list.map(|r| r["name"].as_str().unwrap().to_owned()).collect()
}

/// All policies side by side, as each takes minutes.
fn schedules_are_kept(api: &Api<'_>) {
    let namespace = api.namespace("schedules");
    let path = format!("/apis/batch/v1/namespaces/{namespace}/cronjobs");
    let one = |name: &str| format!("{path}/{name}");
    let endless = &["sleep", "inf"];
    api.create(&path, &cron_job("allow", endless, &json!({"concurrencyPolicy": "Allow"})));
    api.create(&path, &cron_job("forbid", endless, &json!({"concurrencyPolicy": "Forbid"})));
    api.create(&path, &cron_job("replace", endless, &json!({"concurrencyPolicy": "Replace"})));
    api.create(&path, &cron_job("suspended", endless, &json!({"suspend": true})));
    let count = |n: usize| move |c: &Value| active(c).len() == n;
    api.until(&one("allow"), "one runs", count(1));
    let first = active(&api.until(&one("forbid"), "one runs", count(1)));
    let replaced = active(&api.until(&one("replace"), "one runs", count(1)));
    // Conformance: CronJob AllowConcurrent
    api.until(&one("allow"), "two run at once", count(2));
    // Conformance: CronJob ReplaceConcurrent
    api.until(&one("replace"), "another in its place", |c| active(c).len() == 1 && active(c) != replaced);
    api.gone(&format!("/apis/batch/v1/namespaces/{namespace}/jobs/{}", replaced[0]));
    // Conformance: CronJob ForbidConcurrent
    let events = format!("/api/v1/namespaces/{namespace}/events?fieldSelector=reason%3DJobAlreadyActive");
    api.until(&events, "one is told of", |l| !l["items"].as_array().unwrap().is_empty());
    assert_eq!(active(&api.get(&one("forbid"))), first);
    // Conformance: CronJob Suspend
    let jobs = api.list(&format!("/apis/batch/v1/namespaces/{namespace}/jobs"));
    assert!(jobs.iter().all(|j| !name(j).starts_with("suspended-")), "two minutes passed without one");
    assert!(api.get(&one("suspended"))["status"]["lastScheduleTime"].is_null());
    let made = jobs.iter().find(|j| name(j) == first[0]).unwrap();
    let stamp = made["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"].as_str().unwrap();
    assert!(stamp.ends_with(":00Z"), "{stamp}");
    api.delete(&path);
}

// Conformance: CronJob API Operations
fn the_life_of_a_cron_job(api: &Api<'_>) {
    let namespace = api.namespace("operations");
    let path = format!("/apis/batch/v1/namespaces/{namespace}/cronjobs");
    let watch = api.watch(&path);
    // A schedule that does not come while this runs.
    let template = |name: &str| cron_job(name, &["exit", "0"], &json!({"schedule": "0 0 29 2 *"}));
    api.create(&path, &template("one"));
    api.create(&path, &template("two"));
    let one = format!("{path}/one");
    assert_eq!(api.get(&one)["spec"]["schedule"], "0 0 29 2 *");
    assert_eq!(api.list(&path).len(), 2);
    assert_eq!(api.list("/apis/batch/v1/cronjobs?labelSelector=cron%3Done").len(), 1);
    watch.expect("ADDED", "one");
    let after = api.patch(&one, MERGE, &json!({"metadata": {"annotations": {"patched": "true"}}}));
    assert_eq!(after["metadata"]["annotations"]["patched"], "true");
    let after = api.edit(&one, |c| c["metadata"]["annotations"]["updated"] = json!("true"));
    assert_eq!(after["metadata"]["annotations"]["updated"], "true");
    watch.find("MODIFIED", |c| c["metadata"]["annotations"]["updated"] == "true");
    let (status, time) = (format!("{one}/status"), "2026-01-02T03:04:05Z");
    let told = json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"lastScheduleTime": time}});
    let after = api.patch(&status, MERGE, &told);
    assert_eq!(
        (&after["status"]["lastScheduleTime"], &after["metadata"]["annotations"]["patchedstatus"]),
        (&json!(time), &json!("true"))
    );
    let later = "2026-01-02T03:04:06Z";
    api.edit(&status, |c| c["status"]["lastScheduleTime"] = json!(later));
    assert_eq!(api.get(&status)["status"]["lastScheduleTime"], later);
    api.delete(&one);
    api.gone(&one);
    watch.find("DELETED", |c| name(c) == "one");
    api.delete(&path);
    api.until(&path, "none is left", |l| l["items"].as_array().unwrap().is_empty());
}

fn kubectl_starts_one_at_once(api: &Api<'_>) {
    let namespace = api.namespace("by-hand");
    let kubectl = |arguments: &[&str]| api.cluster.kubectl(&[&["-n", "by-hand"], arguments].concat());
    kubectl(&[
        "create",
        "cronjob",
        "yearly",
        "--image=gantry.local/self",
        "--schedule=0 0 1 1 *",
        "--",
        "/gantry",
        "self",
        "exit",
        "0",
    ]);
    assert_eq!(kubectl(&["create", "job", "now", "--from=cronjob/yearly"]), "job.batch/now created\n");
    let job = format!("/apis/batch/v1/namespaces/{namespace}/jobs/now");
    let done = api.until(&job, "complete", |j| condition(j, "Complete") == "True");
    assert_eq!(done["metadata"]["annotations"]["cronjob.kubernetes.io/instantiate"], "manual");
    let cron_job = format!("/apis/batch/v1/namespaces/{namespace}/cronjobs/yearly");
    api.until(&cron_job, "its success is told", |c| {
        c["status"]["lastSuccessfulTime"] == done["status"]["completionTime"]
    });
}
