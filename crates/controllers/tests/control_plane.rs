//! The controllers against the real API server, under paused time.

mod cluster;

use cluster::Cluster;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, Patch, PatchParams, PostParams};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Node, Pod, ReplicationController, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn deployment(replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

async fn ready(c: &Cluster, replicas: i32) {
    c.until("the deployment is complete", || async {
        let d = c.api::<Deployment>().get("web").await.unwrap();
        let s = d.status.clone().unwrap_or_default();
        let complete = s.conditions.iter().flatten().any(|c| {
            c.type_.as_deref() == Some("Progressing") && c.reason.as_deref() == Some("NewReplicaSetAvailable")
        });
        let n = Some(replicas).filter(|n| *n > 0);
        s.observed_generation == d.metadata.generation
            && s.available_replicas == n
            && s.updated_replicas == n
            && s.replicas == n
            && complete
    })
    .await;
}

/// A cluster with a node that has not reported yet.
async fn begin_silent() -> Cluster {
    let c = Cluster::furnished().await;
    c.node("node").await;
    c
}

#[tokio::test(start_paused = true)]
async fn a_deployment_rolls_out_updates_scales_and_is_found_behind_its_service() {
    let c = Cluster::with_node().await;
    let ca = c.api::<ConfigMap>().get("kube-root-ca.crt").await.unwrap();
    assert_eq!(ca.data.unwrap()["ca.crt"], "CA");
    c.create::<Service>(json!({
        "metadata": {"name": "svc"},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "p", "port": 80, "targetPort": "http"}]},
    }))
    .await;
    c.create::<Deployment>(deployment(3, "one")).await;
    ready(&c, 3).await;
    assert_eq!(c.list::<Pod>().await.len(), 3);
    let addresses = || async {
        let mut all: Vec<String> = Vec::new();
        for slice in c.list::<EndpointSlice>().await {
            assert_eq!(slice.metadata.label("kubernetes.io/service-name"), Some("svc"));
            for e in slice.endpoints.iter().flatten() {
                if e.conditions.as_ref().and_then(|c| c.ready) == Some(true) {
                    all.extend(e.addresses.clone());
                }
            }
        }
        all.len()
    };
    c.until("three ready endpoints", || async { addresses().await == 3 }).await;
    c.until("legacy endpoints", || async {
        let e = c.api::<Endpoints>().get("svc").await.ok();
        let subset = e.and_then(|e| e.subsets).and_then(|s| s.into_iter().next());
        subset.is_some_and(|s| s.addresses.map_or(0, |a| a.len()) == 3 && s.ports.unwrap()[0].port == 8080)
    })
    .await;

    c.patch::<Deployment>(
        "web",
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}}),
    )
    .await;
    ready(&c, 3).await;
    let sets = c.list::<ReplicaSet>().await;
    assert_eq!(sets.len(), 2);
    c.until("only new pods", || async {
        let pods = c.list::<Pod>().await;
        pods.len() == 3 && pods.iter().all(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("two"))
    })
    .await;
    c.patch::<Deployment>("web", json!({"spec": {"replicas": 8}})).await;
    ready(&c, 8).await;
    c.patch::<Deployment>("web", json!({"spec": {"replicas": 1}})).await;
    ready(&c, 1).await;
    c.until("one pod left", || async { c.list::<Pod>().await.len() == 1 }).await;
    let events = c.list::<Event>().await;
    let has = |reason: &str, text: &str| {
        events
            .iter()
            .any(|e| e.reason.as_deref() == Some(reason) && e.message.as_deref().is_some_and(|m| m.contains(text)))
    };
    assert!(has("ScalingReplicaSet", "from 0 to 3") && has("SuccessfulCreate", "Created pod: web-"), "{events:?}");
    assert!(has("SuccessfulDelete", "Deleted pod: web-"));
}

#[tokio::test(start_paused = true)]
async fn a_broken_update_stops_and_tells_of_its_deadline() {
    let c = Cluster::with_node().await;
    c.create::<Deployment>(deployment(4, "one")).await;
    ready(&c, 4).await;
    c.patch::<Deployment>("web", json!({"spec": {"progressDeadlineSeconds": 60, "template": {"spec": {"containers": [{"name": "c", "image": "broken"}]}}}}))
        .await;
    c.until("the deadline passes", || async {
        let s = c.api::<Deployment>().get("web").await.unwrap().status.unwrap();
        s.conditions.iter().flatten().any(|c| c.reason.as_deref() == Some("ProgressDeadlineExceeded"))
    })
    .await;
    let s = c.api::<Deployment>().get("web").await.unwrap().status.unwrap();
    assert_eq!((s.available_replicas, s.updated_replicas), (Some(3), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn deletion_background_foreground_and_orphan() {
    let c = Cluster::with_node().await;
    for policy in ["Background", "Foreground", "Orphan"] {
        c.create::<Deployment>(deployment(2, "one")).await;
        ready(&c, 2).await;
        let params = DeleteParams { propagation_policy: Some(policy.into()), ..Default::default() };
        c.api::<Deployment>().delete("web", &params).await.unwrap();
        c.until("the deployment is gone", || async { c.api::<Deployment>().get("web").await.is_err() }).await;
        if policy == "Orphan" {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let sets = c.list::<ReplicaSet>().await;
            assert_eq!((sets.len(), c.list::<Pod>().await.len()), (1, 2));
            assert!(sets[0].metadata.owner_references.as_ref().is_none_or(Vec::is_empty));
        } else {
            if policy == "Foreground" {
                assert!(c.list::<ReplicaSet>().await.is_empty(), "dependents go first");
            }
            c.until("all is collected", || async {
                c.list::<ReplicaSet>().await.is_empty() && c.list::<Pod>().await.is_empty()
            })
            .await;
        }
    }
    // A new Deployment of the same template takes the orphans over.
    c.create::<Deployment>(deployment(2, "one")).await;
    ready(&c, 2).await;
    assert_eq!((c.list::<ReplicaSet>().await.len(), c.list::<Pod>().await.len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn lost_pods_are_replaced_and_a_replication_controller_adopts() {
    let c = Cluster::with_node().await;
    c.create::<Pod>(json!({
        "metadata": {"name": "lonely", "labels": {"app": "rc"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }))
    .await;
    c.create::<ReplicationController>(json!({
        "metadata": {"name": "rc"},
        "spec": {"replicas": 2, "template": {
            "metadata": {"labels": {"app": "rc"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }},
    }))
    .await;
    let settled = || async {
        let rc = c.api::<ReplicationController>().get("rc").await.unwrap();
        rc.status.is_some_and(|s| s.ready_replicas == Some(2)) && c.list::<Pod>().await.len() == 2
    };
    c.until("two pods", settled).await;
    let lonely = c.api::<Pod>().get("lonely").await.unwrap();
    assert_eq!(lonely.metadata.controller_of().unwrap().name, "rc");
    c.api::<Pod>().delete("lonely", &DeleteParams::default()).await.unwrap();
    c.until("lonely is gone", || async { c.api::<Pod>().get("lonely").await.is_err() }).await;
    c.until("two pods again", settled).await;
    let pod = c.list::<Pod>().await.remove(0);
    c.patch::<Pod>(pod.metadata.name(), json!({"metadata": {"labels": {"app": "other"}}})).await;
    c.until("the relabeled pod is let go and replaced", || async {
        let pods = c.list::<Pod>().await;
        let free = pods.iter().find(|p| p.metadata.name() == pod.metadata.name()).unwrap();
        pods.len() == 3 && free.metadata.controller_of().is_none()
    })
    .await;
}

/// Of a DaemonSet on so many nodes each look goes over all of them: what changes one after the other is seen together.
#[tokio::test(start_paused = true)]
async fn many_daemons_that_turn_ready_are_few_looks() {
    const NODES: usize = 300;
    let c = Cluster::furnished().await;
    let nodes = Api::<Node>::all(c.admin.clone());
    for n in 0..NODES {
        let node = Node::from_value(json!({"metadata": {"name": format!("n{n}")}})).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
        nodes.patch_status(&format!("n{n}"), &PatchParams::default(), &Patch::Strategic(ready)).await.unwrap();
    }
    c.create::<DaemonSet>(json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }}))
    .await;
    let sets = c.informers.get::<DaemonSet>();
    let told = || sets.get("n", "web").and_then(|d| d.status.clone()).unwrap_or_default();
    let all = i32::try_from(NODES).unwrap();
    c.until("a pod for each node", || async { told().current_number_scheduled == all }).await;
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = looks.clone();
    sets.on_change(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let before = looks.load(Ordering::Relaxed);
    for pod in c.list::<Pod>().await {
        let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let ready = Patch::Strategic(ready);
        c.api::<Pod>().patch_status(pod.metadata.name(), &PatchParams::default(), &ready).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    c.until("all are ready", || async { told().number_ready == all }).await;
    let looks = looks.load(Ordering::Relaxed) - before;
    // One in 15 ms, for 50 µs of each node.
    assert!((2..=NODES / 8).contains(&looks), "{looks}");
}

#[tokio::test(start_paused = true)]
async fn a_budget_counts_healthy_pods() {
    let c = Cluster::with_node().await;
    c.create::<PodDisruptionBudget>(json!({
        "metadata": {"name": "pdb"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}},
    }))
    .await;
    c.create::<Deployment>(deployment(3, "one")).await;
    c.until("one disruption is allowed", || async {
        let p = c.api::<PodDisruptionBudget>().get("pdb").await.unwrap();
        p.status.is_some_and(|s| s.disruptions_allowed == Some(1) && s.current_healthy == Some(3))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let c = Cluster::with_node().await;
    c.create::<Deployment>(deployment(2, "one")).await;
    c.create::<ConfigMap>(json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}})).await;
    ready(&c, 2).await;
    let namespaces = Api::<Namespace>::all(c.admin.clone());
    namespaces.delete("n", &DeleteParams::default()).await.unwrap();
    c.until("pods are gone and the rest is told of", || async {
        let ns = namespaces.get("n").await.unwrap();
        let conditions = ns.status.and_then(|s| s.conditions).unwrap_or_default();
        c.list::<Pod>().await.is_empty()
            && conditions.iter().any(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True")
    })
    .await;
    c.patch::<ConfigMap>("held", json!({"metadata": {"finalizers": null}})).await;
    c.until("the namespace is gone", || async { namespaces.get("n").await.is_err() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_tainted_and_its_pods_leave_and_those_of_a_deleted_node_are_collected() {
    let c = begin_silent().await;
    c.create::<Deployment>(deployment(1, "one")).await;
    ready(&c, 1).await;
    let nodes = Api::<Node>::all(c.admin.clone());
    c.until("the node is unknown and tainted", || async {
        let n = nodes.get("node").await.unwrap();
        let unknown =
            n.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| {
                c.type_ == "Ready" && c.status == "Unknown" && c.reason.as_deref() == Some("NodeStatusUnknown")
            });
        let taints = n.spec.and_then(|s| s.taints).unwrap_or_default();
        unknown && taints.iter().any(|t| t.key == "node.kubernetes.io/unreachable" && t.effect == "NoSchedule")
    })
    .await;
    c.until("its pods are not ready", || async {
        c.list::<Pod>().await.iter().all(|p| {
            let conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "False")
        })
    })
    .await;
    let taints = nodes.get("node").await.unwrap().spec.and_then(|s| s.taints).unwrap_or_default();
    assert!(taints.iter().all(|t| t.effect != "NoExecute"), "with no node ready nobody is evicted");
    let before = c.list::<Pod>().await.remove(0);
    nodes.delete("node", &DeleteParams::default()).await.unwrap();
    c.until("the orphaned pod is collected", || async {
        c.list::<Pod>().await.iter().all(|p| p.metadata.uid != before.metadata.uid)
    })
    .await;
}

/// Everything in the namespace and all events, as text.
async fn trace() -> String {
    let c = Cluster::with_node().await;
    c.create::<Deployment>(deployment(5, "one")).await;
    ready(&c, 5).await;
    c.patch::<Deployment>(
        "web",
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}}),
    )
    .await;
    ready(&c, 5).await;
    c.api::<Deployment>().delete("web", &DeleteParams::default()).await.unwrap();
    c.until("all is collected", || async { c.list::<Pod>().await.is_empty() }).await;
    let mut text = Vec::new();
    // Of the ConfigMaps only these: another one keeps the certificate authority of aggregation, made anew at each start.
    let maps = "/api/v1/configmaps?fieldSelector=metadata.name%3Dkube-root-ca.crt";
    for path in ["/api/v1/events", "/api/v1/serviceaccounts", maps, "/apis/apps/v1/replicasets"] {
        let answer = c.admin.call(http::Method::GET, path, None, bytes::Bytes::new()).await.unwrap();
        text.push(String::from_utf8(answer.to_vec()).unwrap());
    }
    text.join("\n")
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(trace())
    };
    let (one, two) = (run(), run());
    assert!(one.contains("Scaled up replica set"));
    let differing = one.split('{').zip(two.split('{')).find(|(a, b)| a != b);
    assert!(one == two, "first difference: {differing:?}");
}
