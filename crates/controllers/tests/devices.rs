//! Claims of devices from templates, what becomes of them, and taints of devices, with all controllers at work.

mod cluster;

use cluster::Cluster;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, Patch, PatchParams, PostParams};
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::resource::v1::{DeviceTaintRule, ResourceClaim, ResourceClaimTemplate};
use serde_json::{Value, json};
use std::time::Duration;

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

fn devices() -> Value {
    json!({"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpus"}}]}})
}

fn pod(name: &str, claims: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}], "resourceClaims": claims}})
}

async fn get<K: Kind>(c: &Cluster, name: &str) -> Option<K> {
    c.api::<K>().get_opt(name).await.unwrap()
}

/// Gives a claim its device, and the pod the claim, as the scheduler does.
async fn allocate(c: &Cluster, claim: &str, pod: &Pod, tolerations: Value) {
    c.patch::<ResourceClaim>(claim, json!({"metadata": {"finalizers": [FINALIZER]}})).await;
    let user = json!({"resource": "pods", "name": pod.metadata.name(), "uid": pod.metadata.uid()});
    let result = json!({"request": "gpu", "driver": "d.example.com", "pool": "p", "device": "x",
        "tolerations": tolerations});
    let status = json!({"status": {"allocation": {"devices": {"results": [result]}}, "reservedFor": [user]}});
    c.api::<ResourceClaim>().patch_status(claim, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn finish(c: &Cluster, pod: &str) {
    let status = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    c.api::<Pod>().patch_status(pod, &PatchParams::default(), &status).await.unwrap();
}

async fn events(c: &Cluster, reason: &str) -> Vec<String> {
    let all = c.list::<Event>().await;
    all.into_iter().filter(|e| e.reason.as_deref() == Some(reason)).filter_map(|e| e.message).collect()
}

#[tokio::test(start_paused = true)]
async fn a_claim_lives_as_long_as_its_pod_runs() {
    let c = Cluster::with_node().await;
    let claims = json!([{"name": "gpu", "resourceClaimTemplateName": "t"}]);
    c.create::<Pod>(pod("p", claims)).await;
    c.until("the missing template is told", async || !events(&c, "FailedResourceClaimCreation").await.is_empty()).await;
    assert_eq!(
        events(&c, "FailedResourceClaimCreation").await[0],
        "PodResourceClaim gpu: resource claim template \"t\": resourceclaimtemplate.resource.k8s.io \"t\" not found"
    );
    c.create::<ResourceClaimTemplate>(json!({"metadata": {"name": "t"},
        "spec": {"metadata": {"labels": {"l": "v"}}, "spec": devices()}}))
        .await;
    let noted = async || {
        let pod = get::<Pod>(&c, "p").await.unwrap();
        json!(pod.status.unwrap().resource_claim_statuses)[0]["resourceClaimName"].as_str().map(str::to_owned)
    };
    c.until("the claim is made and noted", async || noted().await.is_some()).await;
    let name = noted().await.unwrap();
    assert!(name.starts_with("p-gpu-"), "{name}");
    let claim = get::<ResourceClaim>(&c, &name).await.unwrap();
    assert_eq!(claim.metadata.annotation("resource.kubernetes.io/pod-claim-name"), Some("gpu"));
    assert_eq!(claim.metadata.label("l"), Some("v"));
    assert_eq!(claim.metadata.controller_of().map(|o| o.name.as_str()), Some("p"));

    c.api::<ResourceClaim>().delete(&name, &DeleteParams::default()).await.unwrap();
    c.until("another one is made", async || noted().await.is_some_and(|n| n != name)).await;
    let name = noted().await.unwrap();

    let owner = get::<Pod>(&c, "p").await.unwrap();
    allocate(&c, &name, &owner, json!([])).await;
    finish(&c, "p").await;
    c.until("the claim is gone", async || get::<ResourceClaim>(&c, &name).await.is_none()).await;
    assert!(c.list::<ResourceClaim>().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_shared_claim_gives_its_devices_back_with_its_last_user() {
    let c = Cluster::with_node().await;
    c.create::<ResourceClaim>(json!({"metadata": {"name": "shared"}, "spec": devices()})).await;
    let uses = json!([{"name": "gpu", "resourceClaimName": "shared"}]);
    for name in ["one", "two"] {
        c.create::<Pod>(pod(name, uses.clone())).await;
    }
    let one = get::<Pod>(&c, "one").await.unwrap();
    allocate(&c, "shared", &one, json!([])).await;
    let status = async || json!(get::<ResourceClaim>(&c, "shared").await.unwrap().status);
    let users = async || status().await["reservedFor"].as_array().map_or(0, Vec::len);
    c.until("the pod that no scheduler placed is among the users", async || users().await == 2).await;
    finish(&c, "one").await;
    c.until("one has ended", async || users().await == 1).await;
    assert!(status().await["allocation"].is_object());
    let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
    c.api::<Pod>().delete("two", &now).await.unwrap();
    c.until("the devices are free", async || status().await["allocation"].is_null()).await;
    c.until("nothing holds the claim", async || {
        get::<ResourceClaim>(&c, "shared").await.unwrap().metadata.finalizers_or_empty().is_empty()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pods_leave_tainted_devices() {
    let c = Cluster::with_node().await;
    for name in ["plain", "patient"] {
        c.create::<ResourceClaim>(json!({"metadata": {"name": name}, "spec": devices()})).await;
        c.create::<Pod>(pod(name, json!([{"name": "gpu", "resourceClaimName": name}]))).await;
        let made = get::<Pod>(&c, name).await.unwrap();
        let bears = json!([{"operator": "Exists", "tolerationSeconds": 60}]);
        allocate(&c, name, &made, if name == "patient" { bears } else { json!([]) }).await;
    }
    let runs = async |name: &str| {
        let status = get::<Pod>(&c, name).await.and_then(|p| p.status);
        status.is_some_and(|s| s.phase.as_deref() == Some("Running"))
    };
    c.until("both run", async || runs("plain").await && runs("patient").await).await;
    // The paused clock moves when everybody has done what there is to do: the caches know it by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rules = Api::<DeviceTaintRule>::all(c.admin.clone());
    let rule = json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": {"driver": "d.example.com"},
        "taint": {"key": "broken", "effect": "None"}}});
    rules.create(&PostParams::default(), &DeviceTaintRule::from_value(rule).unwrap()).await.unwrap();
    let told = async || {
        let status = json!(rules.get("r").await.unwrap().status);
        let condition = status["conditions"][0].clone();
        (condition["reason"].as_str().unwrap_or_default().to_owned(), condition["message"].clone())
    };
    c.until("what it would do is told", async || told().await.0 == "NoEffect").await;
    let text = told().await.1;
    assert!(
        text.as_str().unwrap().starts_with("0 published devices selected. 2 allocated devices selected. 2 pods would")
    );

    let execute = Patch::Merge(json!({"spec": {"taint": {"effect": "NoExecute"}}}));
    rules.patch("r", &PatchParams::default(), &execute).await.unwrap();
    let going = async |name: &str| get::<Pod>(&c, name).await.is_none_or(|p| p.metadata.is_deleting());
    c.until("the plain pod goes", async || going("plain").await).await;
    assert!(!going("patient").await);
    c.until("it is told", async || !events(&c, "DeviceTaintManagerEviction").await.is_empty()).await;
    assert_eq!(events(&c, "DeviceTaintManagerEviction").await[0], "Marking for deletion");
    c.until("one is left to go", async || told().await.0 == "PodsPendingEviction").await;
    c.until("the patient pod goes", async || going("patient").await).await;
    c.until("the rule has done its work", async || told().await.0 == "Completed").await;
    assert_eq!(told().await.1, "2 pods evicted since starting the controller.");
}
