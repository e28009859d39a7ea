//! Controllers whose cache of one kind stands still while another goes on.

mod cluster;

use cluster::Cluster;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{DeleteParams, Patch, PatchParams};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Creates an owner of pods, waits until its controller's cache shows it as `is_settled`, stops that cache, deletes the
/// owner and sees to it that its pods go and no other is ever made.
async fn owner_goes_unseen<K: Kind>(resource: &'static str, spec: Value, is_settled: fn(&K) -> bool) {
    for (policy, held) in [("Foreground", false), ("Foreground", true), ("Background", false)] {
        let c = Cluster::with_node().await;
        let made = Arc::new(Mutex::new(BTreeSet::new()));
        let note = made.clone();
        c.informers.get::<Pod>().on_change(move |change| {
            note.lock().insert(change.object().metadata.uid().to_owned());
        });
        let mut owner = json!({"metadata": {"name": "web"}, "spec": spec});
        if held {
            // What there was stays in sight.
            owner["spec"]["template"]["metadata"]["finalizers"] = json!(["example.com/wait"]);
        }
        c.create::<K>(owner).await;
        let cached = c.informers.get::<K>();
        c.until("the cache has it", || async { cached.get("n", "web").is_some_and(|o| is_settled(&o)) }).await;
        let pods = || async { c.list::<Pod>().await };
        let before = pods().await.len();
        assert!(before > 0 && made.lock().len() == before, "{resource}");
        c.stall.send(Some(resource)).unwrap();
        let params = DeleteParams { propagation_policy: Some(policy.into()), ..Default::default() };
        c.api::<K>().delete("web", &params).await.unwrap();
        let going = |p: &Pod| p.metadata.deletion_timestamp.is_some();
        c.until("its pods are going", || async { pods().await.iter().all(going) }).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(made.lock().len(), before, "{resource}, {policy}, {held}");
        c.stall.send(None).unwrap();
        for pod in pods().await.iter().filter(|_| held) {
            let freed = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            c.api::<Pod>().patch(pod.metadata.name(), &PatchParams::default(), &freed).await.unwrap();
        }
        c.until("all is gone", || async { pods().await.is_empty() && c.list::<K>().await.is_empty() }).await;
        let left = || async { c.list::<ReplicaSet>().await.len() + c.list::<ControllerRevision>().await.len() };
        c.until("what came between is gone", || async { left().await == 0 }).await;
        assert_eq!(made.lock().len(), before, "{resource}, {policy}, {held}");
    }
}

fn template(restarts: &str) -> Value {
    let spec = json!({"restartPolicy": restarts, "containers": [{"name": "c", "image": "i"}]});
    json!({"metadata": {"labels": {"app": "web"}}, "spec": spec})
}

fn selecting(mut more: Value) -> Value {
    more["selector"] = json!({"matchLabels": {"app": "web"}});
    more["template"] = template("Always");
    more
}

#[tokio::test(start_paused = true)]
async fn nothing_is_replaced_for_a_deployment_that_goes() {
    let settled = |d: &Deployment| d.status.as_ref().is_some_and(|s| s.ready_replicas == Some(2));
    owner_goes_unseen("/deployments", selecting(json!({"replicas": 2})), settled).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_replaced_for_a_replica_set_that_goes() {
    let settled = |s: &ReplicaSet| s.status.as_ref().is_some_and(|s| s.ready_replicas == Some(3));
    owner_goes_unseen("/replicasets", selecting(json!({"replicas": 3})), settled).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_replaced_for_a_replication_controller_that_goes() {
    let settled = |c: &ReplicationController| c.status.as_ref().is_some_and(|s| s.ready_replicas == Some(2));
    let spec = json!({"replicas": 2, "selector": {"app": "web"}, "template": template("Always")});
    owner_goes_unseen("/replicationcontrollers", spec, settled).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_replaced_for_a_stateful_set_that_goes() {
    let settled = |s: &StatefulSet| s.status.as_ref().is_some_and(|s| s.ready_replicas == Some(2));
    for management in ["OrderedReady", "Parallel"] {
        let spec = json!({"replicas": 2, "serviceName": "web", "podManagementPolicy": management});
        owner_goes_unseen("/statefulsets", selecting(spec), settled).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_replaced_for_a_daemon_set_that_goes() {
    let settled = |s: &DaemonSet| s.status.as_ref().is_some_and(|s| s.number_ready == 1);
    owner_goes_unseen("/daemonsets", selecting(json!({})), settled).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_replaced_for_a_job_that_goes() {
    let settled = |j: &Job| j.status.as_ref().is_some_and(|s| s.ready == Some(2));
    let spec = json!({"parallelism": 2, "completions": 5, "template": template("Never")});
    owner_goes_unseen("/jobs", spec, settled).await;
}

/// Lets a pod be ready, or not.
async fn set_ready(c: &Cluster, pod: &str, ready: &str) {
    let condition = json!({"type": "Ready", "status": ready});
    let status = Patch::Strategic(json!({"status": {"phase": "Running", "conditions": [condition]}}));
    c.api::<Pod>().patch_status(pod, &PatchParams::default(), &status).await.unwrap();
}

/// Names of the pods that are not being deleted.
async fn staying(c: &Cluster) -> Vec<String> {
    let pods = c.list::<Pod>().await;
    let staying = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
    staying.map(|p| p.metadata.name().to_owned()).collect()
}

/// Waits until the cache has so many pods, and all have their nodes. Nothing runs them.
async fn bound(c: &Cluster, count: usize) -> Vec<String> {
    let cached = c.informers.get::<Pod>();
    c.until("the pods have their nodes", || async {
        let pods = cached.list();
        pods.len() == count && pods.iter().all(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_some()))
    })
    .await;
    cached.list().iter().map(|p| p.metadata.name().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_become_ready_is_not_taken_for_one_that_has_not() {
    let c = Cluster::with_node().await;
    let mut spec = selecting(json!({"replicas": 2}));
    spec["template"]["spec"]["containers"][0]["image"] = json!("broken");
    c.create::<ReplicaSet>(json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let pods = bound(&c, 2).await;
    // Of two that are ready it is the one to go.
    let cheap = json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}});
    c.patch::<Pod>(&pods[0], cheap).await;
    set_ready(&c, &pods[0], "True").await;
    let cached = c.informers.get::<ReplicaSet>();
    let tells = |n| cached.get("n", "web").is_some_and(|s| s.status.as_ref().is_some_and(|s| s.ready_replicas == n));
    c.until("one is ready", || async { tells(Some(1)) }).await;
    c.stall.send(Some("/pods")).unwrap();
    set_ready(&c, &pods[1], "True").await;
    c.patch::<ReplicaSet>("web", json!({"spec": {"replicas": 1}})).await;
    let shrunk = || cached.get("n", "web").is_some_and(|s| s.spec.replicas == Some(1));
    c.until("the cache has the new size", || async { shrunk() }).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(staying(&c).await.len(), 2, "{} is not what it was chosen for", pods[1]);
    c.stall.send(None).unwrap();
    c.until("one is left", || async { staying(&c).await.len() == 1 }).await;
    assert_eq!(staying(&c).await, pods[1..]);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_has_become_ready_waits_for_its_turn() {
    let c = Cluster::with_node().await;
    let mut spec = selecting(json!({}));
    spec["template"]["spec"]["containers"][0]["image"] = json!("broken");
    c.create::<DaemonSet>(json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let pods = bound(&c, 1).await;
    c.stall.send(Some("/pods")).unwrap();
    set_ready(&c, &pods[0], "True").await;
    let changed = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "other"}]}}}});
    c.patch::<DaemonSet>("web", changed).await;
    let cached = c.informers.get::<DaemonSet>();
    let seen = |d: &DaemonSet| d.status.as_ref().is_some_and(|s| s.observed_generation == d.metadata.generation);
    c.until("the change is seen", || async { cached.get("n", "web").is_some_and(|d| seen(&d)) }).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(staying(&c).await, pods);
    c.stall.send(None).unwrap();
    c.until("it is replaced", || async {
        let staying = staying(&c).await;
        staying.len() == 1 && staying != pods
    })
    .await;
}
