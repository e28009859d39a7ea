//! Jobs and CronJobs against the real API server, under paused time.

mod cluster;

use cluster::Cluster;
use gantry_api::meta::object::Meta;
use gantry_client::{DeleteParams, Patch, PatchParams};
use k8s_openapi::api::batch::v1::{CronJob, Job, JobStatus};
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

fn spec(image: &str, x: Value) -> Value {
    let mut spec =
        json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": image}]}}});
    spec.as_object_mut().unwrap().extend(x.as_object().unwrap().clone());
    spec
}

fn job(image: &str, x: Value) -> Value {
    json!({"metadata": {"name": "j"}, "spec": spec(image, x)})
}

async fn status(c: &Cluster) -> JobStatus {
    c.api::<Job>().get("j").await.unwrap().status.unwrap_or_default()
}

/// Conditions that are true, with their reasons.
fn conditions(s: &JobStatus) -> Vec<(&str, &str)> {
    let all = s.conditions.iter().flatten().filter(|c| c.status == "True");
    all.map(|c| (c.type_.as_str(), c.reason.as_deref().unwrap_or_default())).collect()
}

async fn ended(c: &Cluster, how: &str) -> JobStatus {
    c.until(how, || async { conditions(&status(c).await).iter().any(|(t, _)| *t == how) }).await;
    status(c).await
}

async fn told(c: &Cluster, reason: &str, message: &str) -> usize {
    let events = c.list::<Event>().await;
    let one =
        |e: &Event| e.reason.as_deref() == Some(reason) && e.message.as_deref().is_some_and(|m| m.starts_with(message));
    events.iter().filter(|e| one(e)).map(|e| usize::try_from(e.count.unwrap_or(1)).unwrap()).sum()
}

async fn no_finalizers(c: &Cluster) {
    for pod in c.list::<Pod>().await {
        assert!(pod.metadata.finalizers.is_none(), "{:?}", pod.metadata);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_completes_and_goes_when_its_time_is_up() {
    let c = Cluster::with_node().await;
    let wanted = json!({"completions": 5, "parallelism": 2, "ttlSecondsAfterFinished": 100});
    c.create::<Job>(job("exit-0", wanted)).await;
    let s = ended(&c, "Complete").await;
    assert_eq!((s.succeeded, s.failed, s.active, s.ready, s.terminating), (Some(5), None, None, Some(0), Some(0)));
    assert_eq!(conditions(&s), [("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")]);
    assert!(s.start_time.is_some() && s.completion_time.is_some());
    assert_eq!(serde_json::to_value(&s.uncounted_terminated_pods).unwrap(), json!({}));
    assert_eq!(c.list::<Pod>().await.len(), 5);
    no_finalizers(&c).await;
    c.until("events", || async { told(&c, "Completed", "Job completed").await == 1 }).await;
    assert_eq!(told(&c, "SuccessfulCreate", "Created pod: j-").await, 5);
    c.until("the job is gone", || async { c.api::<Job>().get("j").await.is_err() }).await;
    assert!(c.list::<Pod>().await.is_empty(), "the pods went first");
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_and_waited_for() {
    let c = Cluster::with_node().await;
    c.create::<Job>(job("exit-7", json!({"backoffLimit": 3}))).await;
    let s = ended(&c, "Failed").await;
    assert_eq!((s.succeeded, s.failed), (None, Some(4)));
    assert_eq!(conditions(&s), [("FailureTarget", "BackoffLimitExceeded"), ("Failed", "BackoffLimitExceeded")]);
    let mut made: Vec<i64> =
        c.list::<Pod>().await.iter().map(|p| p.metadata.creation_timestamp.as_ref().unwrap().0.as_second()).collect();
    made.sort_unstable();
    let waits: Vec<i64> = made.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(waits.iter().zip([10, 20, 40]).all(|(w, least)| (least..least + 8).contains(w)), "{waits:?}");
    no_finalizers(&c).await;
    c.until("event", || async {
        told(&c, "BackoffLimitExceeded", "Job has reached the specified backoff limit").await == 1
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_indexed_job_gives_each_pod_its_index_and_grows() {
    let c = Cluster::with_node().await;
    let wanted = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"});
    c.create::<Job>(job("runs", wanted)).await;
    c.until("three ready", || async { status(&c).await.ready == Some(3) }).await;
    let annotation = |p: &Pod| p.metadata.annotation("batch.kubernetes.io/job-completion-index").map(str::to_owned);
    let indexes: BTreeSet<_> = c.list::<Pod>().await.iter().filter_map(annotation).collect();
    assert_eq!(indexes, ["0", "1", "2"].map(str::to_owned).into());
    for pod in c.list::<Pod>().await {
        assert_eq!(
            pod.spec.unwrap().hostname.unwrap(),
            format!("j-{}", annotation(&c.api().get(pod.metadata.name()).await.unwrap()).unwrap())
        );
    }
    c.patch::<Job>("j", json!({"spec": {"completions": 5, "parallelism": 5}})).await;
    c.until("five ready", || async { status(&c).await.ready == Some(5) }).await;
    c.patch::<Job>("j", json!({"spec": {"completions": 2, "parallelism": 2}})).await;
    c.until("two are left", || async { status(&c).await.active == Some(2) && c.list::<Pod>().await.len() == 2 }).await;
    assert_eq!(status(&c).await.failed, None, "what was too much did not fail");
    for pod in c.list::<Pod>().await {
        let done = Patch::Strategic(json!({"status": {"phase": "Succeeded"}}));
        c.api::<Pod>().patch_status(pod.metadata.name(), &PatchParams::default(), &done).await.unwrap();
    }
    let s = ended(&c, "Complete").await;
    assert_eq!((s.succeeded, s.completed_indexes.as_deref()), (Some(2), Some("0,1")));
}

#[tokio::test(start_paused = true)]
async fn indexes_fail_by_themselves() {
    let c = Cluster::with_node().await;
    let wanted = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
    c.create::<Job>(job("exit-1", wanted)).await;
    let s = ended(&c, "Failed").await;
    assert_eq!(conditions(&s), [("FailureTarget", "FailedIndexes"), ("Failed", "FailedIndexes")]);
    assert_eq!((s.failed, s.failed_indexes.as_deref()), (Some(4), Some("0,1")));
    let counts: Vec<_> = c
        .list::<Pod>()
        .await
        .iter()
        .map(|p| p.metadata.annotation("batch.kubernetes.io/job-index-failure-count").unwrap().to_owned())
        .collect();
    assert_eq!(counts.iter().filter(|n| *n == "1").count(), 2, "{counts:?}");
    no_finalizers(&c).await;
}

#[tokio::test(start_paused = true)]
async fn policies_end_a_job_early() {
    let c = Cluster::with_node().await;
    let rule = json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}});
    c.create::<Job>(job("exit-42", json!({"podFailurePolicy": {"rules": [rule]}}))).await;
    let s = ended(&c, "Failed").await;
    assert_eq!(conditions(&s), [("FailureTarget", "PodFailurePolicy"), ("Failed", "PodFailurePolicy")]);
    let message = s.conditions.unwrap().pop().unwrap().message.unwrap();
    assert!(message.starts_with("Container c for pod n/j-"), "{message}");
    assert!(message.ends_with("failed with exit code 42 matching FailJob rule at index 0"), "{message}");

    // Without a policy its pods would stay: a Job orphans them, as the first versions of its kind did.
    let all = DeleteParams { propagation_policy: Some("Background".into()), ..Default::default() };
    c.api::<Job>().delete("j", &all).await.unwrap();
    c.until("gone", || async { c.list::<Job>().await.is_empty() && c.list::<Pod>().await.is_empty() }).await;
    let wanted = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "1"}]}});
    c.create::<Job>(job("runs", wanted)).await;
    c.until("three ready", || async { status(&c).await.ready == Some(3) }).await;
    let second = c.list::<Pod>().await.into_iter().find(|p| p.metadata.name().starts_with("j-1-")).unwrap();
    let done = Patch::Strategic(json!({"status": {"phase": "Succeeded"}}));
    c.api::<Pod>().patch_status(second.metadata.name(), &PatchParams::default(), &done).await.unwrap();
    let s = ended(&c, "Complete").await;
    assert_eq!(conditions(&s), [("SuccessCriteriaMet", "SuccessPolicy"), ("Complete", "SuccessPolicy")]);
    assert_eq!((s.succeeded, s.failed, s.completed_indexes.as_deref()), (Some(1), None, Some("1")));
    c.until("the others are gone", || async { c.list::<Pod>().await.len() == 1 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_job_and_suspension_stops_it() {
    let c = Cluster::with_node().await;
    c.create::<Job>(job("runs", json!({"parallelism": 2, "activeDeadlineSeconds": 60}))).await;
    c.until("two ready", || async { status(&c).await.ready == Some(2) }).await;
    c.patch::<Job>("j", json!({"spec": {"suspend": true}})).await;
    c.until("no pods", || async { c.list::<Pod>().await.is_empty() && status(&c).await.active.is_none() }).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let s = status(&c).await;
    assert_eq!((conditions(&s), s.failed, s.start_time.clone()), (vec![("Suspended", "JobSuspended")], None, None));
    assert_eq!(told(&c, "Suspended", "Job suspended").await, 1);
    c.patch::<Job>("j", json!({"spec": {"suspend": false}})).await;
    c.until("two ready again", || async { status(&c).await.ready == Some(2) }).await;
    assert_eq!(told(&c, "Resumed", "Job resumed").await, 1);
    let s = ended(&c, "Failed").await;
    assert_eq!(conditions(&s), [("FailureTarget", "DeadlineExceeded"), ("Failed", "DeadlineExceeded")]);
    assert_eq!((s.failed, s.active, s.terminating), (Some(2), None, Some(0)));
    c.until("no pods", || async { c.list::<Pod>().await.is_empty() }).await;
}

#[tokio::test(start_paused = true)]
async fn pods_are_adopted_let_go_and_replaced() {
    let c = Cluster::with_node().await;
    c.create::<Job>(job("runs", json!({"parallelism": 2, "completions": 2, "backoffLimit": 9}))).await;
    c.until("two ready", || async { status(&c).await.ready == Some(2) }).await;
    let pods = c.list::<Pod>().await;
    let (one, two) = (pods[0].metadata.name(), pods[1].metadata.name());
    c.patch::<Pod>(one, json!({"metadata": {"ownerReferences": null}})).await;
    c.until("it is taken back", || async {
        let p = c.api::<Pod>().get(one).await.unwrap();
        p.metadata.controller_of().is_some() && p.metadata.finalizers.is_some()
    })
    .await;
    c.patch::<Pod>(two, json!({"metadata": {"labels": null}})).await;
    c.until("it is let go", || async {
        let p = c.api::<Pod>().get(two).await.unwrap();
        p.metadata.controller_of().is_none() && p.metadata.finalizers.is_none()
    })
    .await;
    c.until("another in its place", || async { c.list::<Pod>().await.len() == 3 }).await;
    // A pod that somebody deletes has failed.
    c.api::<Pod>().delete(one, &DeleteParams::default()).await.unwrap();
    c.until("counted", || async { status(&c).await.failed == Some(1) }).await;
    c.until("replaced", || async { status(&c).await.ready == Some(2) }).await;
    assert!(c.api::<Pod>().get(one).await.is_err());

    for policy in ["Orphan", "Foreground", "Background"] {
        if policy != "Orphan" {
            c.create::<Job>(job("runs", json!({"parallelism": 2}))).await;
            c.until("two ready", || async { status(&c).await.ready == Some(2) }).await;
        }
        let params = DeleteParams { propagation_policy: Some(policy.into()), ..Default::default() };
        c.api::<Job>().delete("j", &params).await.unwrap();
        c.until("the job is gone", || async { c.list::<Job>().await.is_empty() }).await;
        if policy == "Orphan" {
            c.until("nothing holds the orphans", || async {
                c.list::<Pod>().await.iter().all(|p| p.metadata.finalizers.is_none())
            })
            .await;
            for pod in c.list::<Pod>().await {
                c.api::<Pod>().delete(pod.metadata.name(), &DeleteParams::default()).await.unwrap();
            }
        }
        c.until("the pods are gone", || async { c.list::<Pod>().await.is_empty() }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn another_manages_his_own_jobs() {
    let c = Cluster::with_node().await;
    c.create::<Job>(job("exit-0", json!({"managedBy": "example.com/mine"}))).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(c.list::<Pod>().await.is_empty());
    assert_eq!(status(&c).await, JobStatus::default());
}

fn cron_job(image: &str, x: Value) -> Value {
    let mut spec = json!({"schedule": "*/1 * * * ?", "jobTemplate": {"metadata": {"labels": {"made": "by-cron"}},
        "spec": spec(image, json!({}))}});
    spec.as_object_mut().unwrap().extend(x.as_object().unwrap().clone());
    json!({"metadata": {"name": "tick"}, "spec": spec})
}

async fn active(c: &Cluster) -> Vec<String> {
    let s = c.api::<CronJob>().get("tick").await.unwrap().status.unwrap_or_default();
    s.active.unwrap_or_default().into_iter().filter_map(|r| r.name).collect()
}

#[tokio::test(start_paused = true)]
async fn a_cron_job_makes_jobs_in_time_and_keeps_the_latest() {
    let c = Cluster::with_node().await;
    c.create::<CronJob>(cron_job("exit-0", json!({"successfulJobsHistoryLimit": 2}))).await;
    c.until("four jobs were made", || async { told(&c, "SuccessfulCreate", "Created job tick-").await == 4 }).await;
    c.until("two are kept", || async {
        let jobs = c.list::<Job>().await;
        jobs.len() == 2 && jobs.iter().all(|j| j.status.as_ref().unwrap().completion_time.is_some())
    })
    .await;
    let jobs = c.list::<Job>().await;
    let last = &jobs[1].metadata;
    let cron_job = c.api::<CronJob>().get("tick").await.unwrap();
    let s = cron_job.status.unwrap();
    let time = s.last_schedule_time.unwrap().0;
    assert_eq!(last.name(), format!("tick-{}", time.as_second() / 60));
    let stamp = last.annotation("batch.kubernetes.io/cronjob-scheduled-timestamp");
    assert_eq!(stamp, Some(time.to_string().as_str()));
    assert_eq!((last.label("made"), last.controller_of().unwrap().name.as_str()), (Some("by-cron"), "tick"));
    assert_eq!(
        s.last_successful_time.as_ref().map(|t| t.0),
        jobs[1].status.clone().unwrap().completion_time.map(|t| t.0)
    );
    let late = last.creation_timestamp.as_ref().unwrap().0.as_second() - time.as_second();
    assert!((0..5).contains(&late), "{late}");
    assert!(told(&c, "SawCompletedJob", "Saw completed job: tick-").await >= 3);
    assert!(told(&c, "SuccessfulDelete", "Deleted job tick-").await >= 1);

    c.patch::<CronJob>("tick", json!({"spec": {"suspend": true}})).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = told(&c, "SuccessfulCreate", "Created job tick-").await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(told(&c, "SuccessfulCreate", "Created job tick-").await, before);
    c.api::<CronJob>().delete("tick", &DeleteParams::default()).await.unwrap();
    c.until("all is collected", || async { c.list::<Job>().await.is_empty() && c.list::<Pod>().await.is_empty() })
        .await;
}

#[tokio::test(start_paused = true)]
async fn concurrent_jobs_are_allowed_forbidden_or_replaced() {
    let c = Cluster::with_node().await;
    c.create::<CronJob>(cron_job("runs", json!({"concurrencyPolicy": "Allow"}))).await;
    c.until("two at once", || async { active(&c).await.len() == 2 }).await;
    c.patch::<CronJob>("tick", json!({"spec": {"concurrencyPolicy": "Forbid"}})).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let running = active(&c).await;
    tokio::time::sleep(Duration::from_secs(180)).await;
    assert_eq!(active(&c).await, running);
    assert!(told(&c, "JobAlreadyActive", "Not starting job because prior execution is running").await > 0);
    c.patch::<CronJob>("tick", json!({"spec": {"concurrencyPolicy": "Replace"}})).await;
    c.until("one in place of both", || async {
        let now = active(&c).await;
        now.len() == 1 && !running.contains(&now[0])
    })
    .await;
    let one = active(&c).await;
    c.until("another in its place", || async {
        let now = active(&c).await;
        now.len() == 1 && now != one && c.list::<Job>().await.len() == 1
    })
    .await;
    // A Job that somebody deletes is missed and forgotten.
    c.patch::<CronJob>("tick", json!({"spec": {"suspend": true}})).await;
    for name in active(&c).await {
        c.api::<Job>().delete(&name, &DeleteParams::default()).await.unwrap();
    }
    c.until("none runs", || async { active(&c).await.is_empty() }).await;
    c.until("event", || async { told(&c, "MissingJob", "Active job went missing: tick-").await > 0 }).await;
}
