//! What runs beside the workloads: hints of zones, Secrets with tokens, annotations of nodes, classes of attributes,
//! budgets, quotas of devices.

mod cluster;

use cluster::Cluster;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, Patch, PatchParams, PostParams};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota, Secret, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn all<K: Kind>(c: &Cluster) -> Api<K> {
    Api::all(c.admin.clone())
}

async fn make<K: Kind>(c: &Cluster, value: Value) {
    all::<K>(c).create(&PostParams::default(), &K::from_value(value).unwrap()).await.unwrap();
}

/// Waits for an event of this reason about an object.
async fn told(c: &Cluster, about: &str, reason: &str, message: &str) {
    c.until(&format!("{about} is told {reason}"), || async {
        let is_it = |e: &Event| e.involved_object.name.as_deref() == Some(about) && e.reason.as_deref() == Some(reason);
        c.list::<Event>().await.iter().any(|e| is_it(e) && e.message.as_deref() == Some(message))
    })
    .await;
}

/// Gives a node its processors, and its zone.
async fn size(c: &Cluster, node: &str, zone: &str, cpu: &str) {
    let (api, params) = (all::<Node>(c), PatchParams::default());
    let labels = Patch::Merge(json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}));
    api.patch(node, &params, &labels).await.unwrap();
    let status = Patch::Strategic(json!({"status": {"allocatable": {"cpu": cpu}, "capacity": {"cpu": cpu},
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}}));
    api.patch_status(node, &params, &status).await.unwrap();
}

/// How many endpoints each zone has; those without a hint count for the empty name.
async fn hints(c: &Cluster) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for e in c.list::<EndpointSlice>().await.iter().flat_map(|s| s.endpoints.iter().flatten()) {
        let zones = e.hints.as_ref().and_then(|h| h.for_zones.as_ref());
        *out.entry(zones.map_or(String::new(), |z| z[0].name.clone())).or_default() += 1;
    }
    out
}

async fn hinted(c: &Cluster, wanted: &[(&str, usize)]) {
    let wanted: BTreeMap<String, usize> = wanted.iter().map(|(z, n)| ((*z).to_owned(), *n)).collect();
    c.until(&format!("hints are {wanted:?}"), || async { hints(c).await == wanted }).await;
}

#[tokio::test(start_paused = true)]
async fn hints_of_zones_follow_the_processors_of_their_nodes() {
    let c = Cluster::furnished().await;
    c.node("node").await;
    make::<Node>(&c, json!({"metadata": {"name": "far"}})).await;
    c.heartbeat("node");
    c.heartbeat("far");
    size(&c, "node", "a", "2").await;
    size(&c, "far", "b", "2").await;
    for (name, node) in [("p0", "node"), ("p1", "node"), ("p2", "node"), ("p3", "far")] {
        let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i"}]});
        c.create::<Pod>(json!({"metadata": {"name": name, "labels": {"app": "x"}}, "spec": spec})).await;
    }
    let mode = |mode: Value| json!({"metadata": {"annotations": {"service.kubernetes.io/topology-mode": mode}}});
    let mut service = mode(json!("Auto"));
    service["metadata"]["name"] = json!("svc");
    service["spec"] = json!({"selector": {"app": "x"}, "ports": [{"port": 80}]});
    c.create::<Service>(service).await;
    hinted(&c, &[("a", 2), ("b", 2)]).await;
    told(&c, "svc", "TopologyAwareHintsEnabled", "Topology Aware Hints has been enabled, addressType: IPv4").await;
    // A node that grows gets more of the traffic.
    size(&c, "far", "b", "18").await;
    hinted(&c, &[("a", 1), ("b", 3)]).await;
    c.patch::<Service>("svc", mode(Value::Null)).await;
    hinted(&c, &[("", 4)]).await;
    told(&c, "svc", "TopologyAwareHintsDisabled", "Topology Aware Hints has been disabled, addressType: IPv4").await;
    // A node without a zone: nothing can be said of the shares.
    make::<Node>(&c, json!({"metadata": {"name": "nowhere"}})).await;
    c.heartbeat("nowhere");
    size(&c, "nowhere", "", "1").await;
    c.patch::<Service>("svc", mode(json!("auto"))).await;
    let why = "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes, \
               addressType: IPv4";
    told(&c, "svc", "TopologyAwareHintsDisabled", why).await;
    hinted(&c, &[("", 4)]).await;
    // Every node is told how long it may keep what it read.
    c.until("nodes are annotated", || async {
        let nodes = all::<Node>(&c).list(&gantry_client::ListParams::default()).await.unwrap().items;
        nodes.len() == 3 && nodes.iter().all(|n| n.metadata.annotation("node.alpha.kubernetes.io/ttl") == Some("0"))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn secrets_with_tokens_and_their_accounts_let_go_of_each_other() {
    let c = Cluster::furnished().await;
    c.create::<ServiceAccount>(json!({"metadata": {"name": "robot"}})).await;
    let secret = |name: &str, account: &str| {
        json!({"metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
            "type": "kubernetes.io/service-account-token"})
    };
    for name in ["one", "two"] {
        let made = c.create::<Secret>(secret(name, "robot")).await;
        assert!(made.data.unwrap().contains_key("token"), "{name}");
    }
    c.patch::<ServiceAccount>("robot", json!({"secrets": [{"name": "one"}, {"name": "other"}]})).await;
    c.api::<Secret>().delete("one", &DeleteParams::default()).await.unwrap();
    c.until("the account lists what is left", || async {
        let account = c.api::<ServiceAccount>().get("robot").await.unwrap();
        let names: Vec<_> = account.secrets.iter().flatten().filter_map(|s| s.name.as_deref()).collect();
        names == ["other"]
    })
    .await;
    c.create::<Secret>(secret("stray", "nobody")).await;
    c.until("a token for nobody is gone", || async { c.api::<Secret>().get("stray").await.is_err() }).await;
    assert!(c.api::<Secret>().get("two").await.is_ok());
    c.api::<ServiceAccount>().delete("robot", &DeleteParams::default()).await.unwrap();
    c.until("the token went with its account", || async { c.api::<Secret>().get("two").await.is_err() }).await;
    let name = "kube-apiserver-legacy-service-account-token-tracking";
    c.until("uses are tracked", || async {
        let api = Api::<ConfigMap>::namespaced(c.admin.clone(), "kube-system");
        let since = api.get(name).await.ok().and_then(|m| m.data?.get("since").cloned());
        since.as_deref() == Some("2027-01-15")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_class_of_attributes_stays_while_a_claim_names_it() {
    let c = Cluster::furnished().await;
    make::<VolumeAttributesClass>(
        &c,
        json!({"metadata": {"name": "fast"}, "driverName": "example.com/disk",
        "parameters": {"iops": "500"}}),
    )
    .await;
    let api = all::<VolumeAttributesClass>(&c);
    assert_eq!(api.get("fast").await.unwrap().metadata.finalizers_or_empty(), ["kubernetes.io/vac-protection"]);
    let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeAttributesClassName": "fast",
        "resources": {"requests": {"storage": "1Gi"}}});
    c.create::<PersistentVolumeClaim>(json!({"metadata": {"name": "data"}, "spec": spec})).await;
    api.delete("fast", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(api.get("fast").await.unwrap().metadata.is_deleting());
    c.api::<PersistentVolumeClaim>().delete("data", &DeleteParams::default()).await.unwrap();
    c.until("the class is gone", || async { api.get("fast").await.is_err() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_grows_is_told_who_is_waited_for() {
    let c = Cluster::furnished().await;
    let class = json!({"metadata": {"name": "grows"}, "provisioner": "example.com/disk", "allowVolumeExpansion": true});
    make::<StorageClass>(&c, class).await;
    let size = |size: &str| json!({"storage": size});
    let volume = json!({"capacity": size("1Gi"), "accessModes": ["ReadWriteOnce"], "storageClassName": "grows",
        "csi": {"driver": "example.com", "volumeHandle": "h"}});
    make::<PersistentVolume>(&c, json!({"metadata": {"name": "disk"}, "spec": volume})).await;
    let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "grows", "volumeName": "disk",
        "resources": {"requests": size("1Gi")}});
    c.create::<PersistentVolumeClaim>(json!({"metadata": {"name": "data"}, "spec": spec})).await;
    c.until("the claim is bound", || async {
        let claim = c.api::<PersistentVolumeClaim>().get("data").await.unwrap();
        claim.status.and_then(|s| s.phase).as_deref() == Some("Bound")
    })
    .await;
    let more = Patch::Merge(json!({"spec": {"resources": {"requests": size("2Gi")}}}));
    c.api::<PersistentVolumeClaim>().patch("data", &PatchParams::default(), &more).await.unwrap();
    told(&c, "data", "ExternalExpanding", "waiting for an external controller to expand this PVC").await;
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_measured_by_the_scale_of_whatever_controls_its_pods() {
    let c = Cluster::with_node().await;
    let template =
        json!({"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "db"}});
    let spec = json!({"replicas": 3, "serviceName": "db", "selector": selector, "template": template});
    c.create::<StatefulSet>(json!({"metadata": {"name": "db"}, "spec": spec})).await;
    let budget = |name: &str, selector: &Value| json!({"metadata": {"name": name}, "spec": {"maxUnavailable": 1, "selector": selector}});
    c.create::<PodDisruptionBudget>(budget("db", &selector)).await;
    let status = |name: &'static str| {
        let c = &c;
        async move { c.api::<PodDisruptionBudget>().get(name).await.unwrap().status.unwrap_or_default() }
    };
    c.until("one of three may go", || async {
        let s = status("db").await;
        (s.expected_pods, s.desired_healthy, s.disruptions_allowed) == (Some(3), Some(2), Some(1))
    })
    .await;
    // Nobody can say how many pods there ought to be: none may go.
    let job = json!({"parallelism": 2, "completions": 2, "template": {"metadata": {"labels": {"app": "batch"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}});
    c.create::<Job>(json!({"metadata": {"name": "batch"}, "spec": job})).await;
    c.create::<PodDisruptionBudget>(budget("batch", &json!({"matchLabels": {"app": "batch"}}))).await;
    let why = "jobs.batch does not implement the scale subresource";
    c.until("the budget allows nothing and says why", || async {
        let s = status("batch").await;
        let failed = |c: &Condition| c.reason == "SyncFailed" && c.status == "False" && c.message == why;
        s.disruptions_allowed == Some(0) && s.conditions.iter().flatten().any(failed)
    })
    .await;
    let message = format!("Failed to calculate the number of expected pods: {why}");
    told(&c, "batch", "CalculateExpectedPodCountFailed", &message).await;
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_an_extended_resource_bounds_claims_of_its_class_too() {
    const NAME: &str = "requests.example.com/gpu";
    let c = Cluster::furnished().await;
    let spec = json!({"extendedResourceName": "example.com/gpu"});
    make::<DeviceClass>(&c, json!({"metadata": {"name": "gpu"}, "spec": spec})).await;
    c.create::<ResourceQuota>(json!({"metadata": {"name": "q"}, "spec": {"hard": {NAME: "3"}}})).await;
    let used = |wanted: &'static str| {
        let c = &c;
        async move {
            c.until(&format!("{wanted} are used"), || async {
                let status = c.api::<ResourceQuota>().get("q").await.unwrap().status.unwrap_or_default();
                status.used.is_some_and(|u| u.get(NAME).is_some_and(|q| q.0 == wanted))
            })
            .await;
        }
    };
    used("0").await;
    let claim = |name: &str| {
        let exactly = json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2});
        json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [{"name": "g", "exactly": exactly}]}}})
    };
    c.create::<ResourceClaim>(claim("first")).await;
    used("2").await;
    let second = ResourceClaim::from_value(claim("second")).unwrap();
    let refused = c.api::<ResourceClaim>().create(&PostParams::default(), &second).await.unwrap_err().to_string();
    let why = format!("exceeded quota: q, requested: {NAME}=2, used: {NAME}=2, limited: {NAME}=3");
    assert!(refused.contains(&why), "{refused}");
    let resources = json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}});
    let container = json!({"name": "c", "image": "i", "resources": resources});
    c.create::<Pod>(json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}})).await;
    used("3").await;
    c.api::<ResourceClaim>().delete("first", &DeleteParams::default()).await.unwrap();
    used("1").await;
}

/// Makes a pod that a finalizer holds, on this node or on none.
async fn held_pod(c: &Cluster, name: &str, node: Option<&str>) {
    let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i"}],
        "schedulerName": "nobody", "terminationGracePeriodSeconds": 30});
    c.create::<Pod>(json!({"metadata": {"name": name, "finalizers": ["example.com/held"]}, "spec": spec})).await;
}

/// Waits until nothing but its finalizer holds a pod, and lets go of it.
async fn collected(c: &Cluster, name: &str, because: Option<&str>) {
    c.until(&format!("{name} is failed and deleted"), || async {
        let pod = c.api::<Pod>().get(name).await.unwrap();
        let status = pod.status.unwrap_or_default();
        let told = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget");
        assert!(told.is_none() || told.and_then(|t| t.reason.as_deref()) == because, "{name}: {told:?}");
        status.phase.as_deref() == Some("Failed")
            && pod.metadata.deletion_grace_period_seconds == Some(0)
            && told.is_some() == because.is_some()
    })
    .await;
    c.patch::<Pod>(name, json!({"metadata": {"finalizers": null}})).await;
    c.until(&format!("{name} is gone"), || async { c.api::<Pod>().get(name).await.is_err() }).await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_nobody_else_would_delete_are_collected() {
    let c = Cluster::furnished().await;
    for node in ["kept", "lost", "broken"] {
        make::<Node>(&c, json!({"metadata": {"name": node}})).await;
    }
    held_pod(&c, "on-kept", Some("kept")).await;
    held_pod(&c, "on-lost", Some("lost")).await;
    held_pod(&c, "on-broken", Some("broken")).await;
    held_pod(&c, "nowhere", None).await;
    held_pod(&c, "never", Some("unheard-of")).await;
    // One that is to go before it has a node.
    c.api::<Pod>().delete("nowhere", &DeleteParams::default()).await.unwrap();
    collected(&c, "nowhere", None).await;
    // Of a node that there never was, and of one that goes.
    collected(&c, "never", Some("DeletionByPodGC")).await;
    all::<Node>(&c).delete("lost", &DeleteParams::default()).await.unwrap();
    collected(&c, "on-lost", Some("DeletionByPodGC")).await;
    // One that is to go while its node is not there to stop it: from when that is said.
    c.api::<Pod>().delete("on-broken", &DeleteParams::default()).await.unwrap();
    let taint = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoSchedule"}]}});
    all::<Node>(&c).patch("broken", &PatchParams::default(), &Patch::Strategic(taint)).await.unwrap();
    collected(&c, "on-broken", None).await;
    // And the next there at once.
    held_pod(&c, "late", Some("broken")).await;
    c.api::<Pod>().delete("late", &DeleteParams::default()).await.unwrap();
    collected(&c, "late", None).await;
    let kept = c.api::<Pod>().get("on-kept").await.unwrap();
    assert!(!kept.metadata.is_deleting(), "{:?}", kept.metadata);
}
