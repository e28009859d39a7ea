//! Devices and the scheduler: pods wait for the devices they claim, get them with their node, and give them back. The
//! devices are those of slices written by hand; no driver prepares them, so the pods are bound and do not run.

mod cluster;

use cluster::Cluster;
use cluster::pods::{create, event};
use serde_json::{Value, json};

#[test]
fn devices() {
    let cluster = Cluster::start();
    create(&cluster, &[class("gpu", "device.driver == 'gpu.example.com'", &json!({}))]);
    claims_of_templates(&cluster);
    in_use(&cluster);
    missing(&cluster);
    broken(&cluster);
    elsewhere(&cluster);
    held_back(&cluster);
    extended(&cluster);
}

fn class(name: &str, expression: &str, more: &Value) -> Value {
    let mut spec = json!({"selectors": [{"cel": {"expression": expression}}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": name}, "spec": spec})
}

/// A slice that is all of its pool.
fn slice(name: &str, driver: &str, devices: &Value) -> Value {
    let pool = json!({"name": name, "generation": 1, "resourceSliceCount": 1});
    let spec = json!({"driver": driver, "pool": pool, "nodeName": "node-1", "devices": devices});
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name}, "spec": spec})
}

fn devices_of(claim: &str, devices: &Value) -> Value {
    let spec = json!({"devices": devices});
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": claim}, "spec": spec})
}

/// A pod that names a claim or a template by `claim`.
fn pod(name: &str, claim: &Value, resources: &Value) -> Value {
    let container =
        json!({"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"], "resources": resources});
    let mut spec = json!({"containers": [container], "terminationGracePeriodSeconds": 0});
    if !claim.is_null() {
        let mut entry = json!({"name": "gpu"});
        entry.as_object_mut().unwrap().extend(claim.as_object().unwrap().clone());
        spec["resourceClaims"] = json!([entry]);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn bound(cluster: &Cluster, name: &str) {
    cluster.wait_for(&format!("{name} is bound"), || {
        (cluster.jsonpath(&["pod", name], "{.spec.nodeName}") == "node-1").then_some(())
    });
}

/// What a claim was allocated: `request=device` for each.
fn allocated(claim: &Value) -> Vec<String> {
    let results = claim["status"]["allocation"]["devices"]["results"].as_array().cloned().unwrap_or_default();
    results.iter().map(|r| format!("{}={}", r["request"].as_str().unwrap(), r["device"].as_str().unwrap())).collect()
}

fn explain(cluster: &Cluster, pod: &str) -> Value {
    let path = format!("/api/v1/namespaces/default/pods/{pod}/explain");
    serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path])).unwrap()
}

const HELPLESS: &str = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";

/// There is nothing to be had at first; the slice comes, and the pod gets its devices and its node.
fn claims_of_templates(cluster: &Cluster) {
    let request = json!({"name": "big", "exactly": {"deviceClassName": "gpu", "count": 2,
        "selectors": [{"cel": {"expression": "device.capacity['gpu.example.com'].memory.compareTo(quantity('20Gi')) > 0"}}]}});
    let spec = json!({"devices": {"requests": [request], "constraints": [{"matchAttribute": "gpu.example.com/model"}],
        "config": [{"opaque": {"driver": "gpu.example.com", "parameters": {"mode": "fast"}}}]}});
    let template = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": {"name": "two"}, "spec": {"spec": spec}});
    create(cluster, &[template, pod("two", &json!({"resourceClaimTemplateName": "two"}), &json!({}))]);
    let none = format!("0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, {HELPLESS}");
    event(cluster, "two", "FailedScheduling", &none);

    let gpu = |name: &str, model: &str, memory: &str| json!({"name": name, "attributes": {"model": {"string": model}}, "capacity": {"memory": {"value": memory}}});
    let devices =
        json!([gpu("g0", "a", "40Gi"), gpu("g1", "b", "40Gi"), gpu("g2", "a", "10Gi"), gpu("g3", "a", "40Gi")]);
    create(cluster, &[slice("gpus", "gpu.example.com", &devices)]);
    bound(cluster, "two");
    let name = cluster.jsonpath(&["pod", "two"], "{.status.resourceClaimStatuses[0].resourceClaimName}");
    let claim = cluster.get(&["resourceclaim", &name]);
    assert_eq!(allocated(&claim), ["big=g0", "big=g3"]);
    assert_eq!(claim["metadata"]["finalizers"], json!(["resource.kubernetes.io/delete-protection"]));
    let status = &claim["status"];
    assert_eq!(status["reservedFor"][0]["name"], "two", "{status}");
    let allocation = &status["allocation"];
    assert!(allocation["allocationTimestamp"].is_string(), "{status}");
    let only = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}]);
    assert_eq!(allocation["nodeSelector"]["nodeSelectorTerms"], only);
    let config = json!([{"source": "FromClaim",
        "opaque": {"driver": "gpu.example.com", "parameters": {"mode": "fast"}}}]);
    assert_eq!(allocation["devices"]["config"], config);
    event(cluster, "two", "Scheduled", "Successfully assigned default/two to node-1");
}

/// Nobody gets a device that somebody has; it is free again when that pod is gone. Pods share a claim.
fn in_use(cluster: &Cluster) {
    let selectors = json!([{"cel": {"expression": "device.attributes['gpu.example.com'].model == 'a'"}}]);
    let one = |count: i64| {
        let exactly = json!({"deviceClassName": "gpu", "count": count, "selectors": selectors});
        json!({"requests": [{"name": "r", "exactly": exactly}]})
    };
    create(
        cluster,
        &[
            devices_of("shared", &one(1)),
            pod("first", &json!({"resourceClaimName": "shared"}), &json!({})),
            pod("second", &json!({"resourceClaimName": "shared"}), &json!({})),
        ],
    );
    bound(cluster, "first");
    bound(cluster, "second");
    let claim = cluster.get(&["resourceclaim", "shared"]);
    assert_eq!(allocated(&claim), ["r=g2"]);
    assert_eq!(claim["status"]["reservedFor"].as_array().unwrap().len(), 2);
    create(cluster, &[devices_of("late", &one(2)), pod("late", &json!({"resourceClaimName": "late"}), &json!({}))]);
    let message = "0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, ";
    event(cluster, "late", "FailedScheduling", message);
    // The explanation names the devices.
    let told = explain(cluster, "late");
    let problem = &told["nodes"][0]["problems"][0];
    assert_eq!(problem["plugin"], "DynamicResources", "{told:#}");
    let detail = problem["detail"].as_str().unwrap();
    for part in [
        "late, request r: wants 2 of class gpu, 0 free",
        "gpu.example.com/gpus/g0 is allocated",
        "gpu.example.com/gpus/g1 is not selected by device.attributes['gpu.example.com'].model == 'a'",
    ] {
        assert!(detail.contains(part), "{detail}");
    }
    cluster.kubectl(&["delete", "pod", "two", "--force", "--grace-period=0"]);
    bound(cluster, "late");
    assert_eq!(allocated(&cluster.get(&["resourceclaim", "late"])), ["r=g0", "r=g3"]);
    cluster.kubectl(&["delete", "pod", "first", "second", "late", "--force", "--grace-period=0"]);
    cluster.kubectl(&["delete", "resourceclaim", "shared", "late"]);
}

/// A pod whose claim is not there is not tried; one of a class that is not there is, once the class comes.
fn missing(cluster: &Cluster) {
    create(cluster, &[pod("early", &json!({"resourceClaimName": "nowhere"}), &json!({}))]);
    let told =
        cluster.wait_for("early is held", || Some(explain(cluster, "early")).filter(|told| told["state"] == "Gated"));
    assert_eq!(told["inTheWay"][0]["message"], "could not find ResourceClaim \"default/nowhere\"", "{told:#}");
    let request = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "later"}}]});
    create(cluster, &[devices_of("nowhere", &request)]);
    let message = "0/1 nodes are available: request r: device class later does not exist. \
                   no new claims to deallocate, preemption: ";
    event(cluster, "early", "FailedScheduling", message);
    create(cluster, &[class("later", "device.attributes['gpu.example.com'].model == 'b'", &json!({}))]);
    bound(cluster, "early");
    assert_eq!(allocated(&cluster.get(&["resourceclaim", "nowhere"])), ["r=g1"]);
    cluster.kubectl(&["delete", "pod", "early", "--force", "--grace-period=0"]);
    cluster.kubectl(&["delete", "resourceclaim", "nowhere"]);
}

/// A selector that fails is told of, and is an error rather than a reason.
fn broken(cluster: &Cluster) {
    let selectors = json!([{"cel": {"expression": "device.attributes['gpu.example.com'].size > 3"}}]);
    let request = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu", "selectors": selectors}}]});
    create(
        cluster,
        &[devices_of("broken", &request), pod("broken", &json!({"resourceClaimName": "broken"}), &json!({}))],
    );
    let message = "running \"DynamicResources\" filter plugin: claim default/broken: selector #0 on device \
                   gpu.example.com/gpus/g0: CEL runtime error: no such key: size. consider using CEL optional chaining";
    event(cluster, "broken", "FailedScheduling", message);
    cluster.wait_for("the condition says so", || {
        let path = "{.status.conditions[?(@.type==\"PodScheduled\")].reason}";
        (cluster.jsonpath(&["pod", "broken"], path) == "SchedulerError").then_some(())
    });
    cluster.kubectl(&["delete", "pod", "broken", "--force", "--grace-period=0"]);
}

/// A claim that has devices where the pod cannot be loses them, where nobody else uses it.
fn elsewhere(cluster: &Cluster) {
    let request = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]});
    create(cluster, &[devices_of("moved", &request)]);
    let result = json!({"request": "r", "driver": "gpu.example.com", "pool": "far", "device": "x"});
    let far = json!({"nodeSelectorTerms": [{"matchFields":
        [{"key": "metadata.name", "operator": "In", "values": ["far"]}]}]});
    let status = json!({"status": {"allocation": {"devices": {"results": [result]}, "nodeSelector": far}}});
    cluster.kubectl(&[
        "patch",
        "resourceclaim",
        "moved",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ]);
    create(cluster, &[pod("moved", &json!({"resourceClaimName": "moved"}), &json!({}))]);
    let message = "0/1 nodes are available: 1 resourceclaim not available on the node. \
                   deallocation of ResourceClaim completed, preemption: ";
    event(cluster, "moved", "FailedScheduling", message);
    bound(cluster, "moved");
    assert_eq!(allocated(&cluster.get(&["resourceclaim", "moved"])), ["r=g0"]);
}

/// A pod is bound once its device is ready; where it will not be, the claim gets another. A taint keeps a device from pods.
fn held_back(cluster: &Cluster) {
    let mut fabric = slice(
        "fabric",
        "fab.example.com",
        &json!([{"name": "f0", "bindingConditions": ["Ready"], "bindingFailureConditions": ["Failed"]}]),
    );
    fabric["spec"].as_object_mut().unwrap().remove("nodeName");
    fabric["spec"]["allNodes"] = json!(true);
    let rule = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule", "metadata": {"name": "broken"},
        "spec": {"deviceSelector": {"driver": "fab.example.com"}, "taint": {"key": "k", "effect": "NoSchedule"}}});
    let request = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "fab"}}]});
    create(
        cluster,
        &[
            rule,
            class("fab", "device.driver == 'fab.example.com'", &json!({})),
            devices_of("fab", &request),
            pod("fab", &json!({"resourceClaimName": "fab"}), &json!({})),
        ],
    );
    event(cluster, "fab", "FailedScheduling", "0/1 nodes are available: 1 cannot allocate all claims.");
    // By now the scheduler knows the rule.
    create(cluster, &[fabric]);
    cluster.wait_for("the taint keeps the device", || {
        explain(cluster, "fab").to_string().contains("fab.example.com/fabric/f0 has the taint k").then_some(())
    });
    cluster.kubectl(&["delete", "devicetaintrule", "broken"]);
    event(cluster, "fab", "BindingConditionsPending", "waiting for binding conditions for device on node node-1");
    let tell = |name: &str| {
        let condition = json!({"type": name, "status": "True", "reason": "R", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let device = json!({"driver": "fab.example.com", "pool": "fabric", "device": "f0", "conditions": [condition]});
        let status = json!({"status": {"devices": [device]}}).to_string();
        cluster.kubectl(&["patch", "resourceclaim", "fab", "--subresource=status", "--type=merge", "-p", &status]);
    };
    tell("Failed");
    let failed = "running PreBind plugin \"DynamicResources\": claim fab binding failed: reason=R, message=\"m\"";
    event(cluster, "fab", "FailedScheduling", failed);
    event(cluster, "fab", "FailedScheduling", "deallocation of ResourceClaim completed");
    let allocated_anew = || {
        let status = cluster.get(&["resourceclaim", "fab"])["status"].clone();
        (status["allocation"].is_object() && status["devices"].is_null()).then_some(())
    };
    cluster.wait_for("the claim has devices again", allocated_anew);
    assert_eq!(cluster.jsonpath(&["pod", "fab"], "{.spec.nodeName}"), "");
    tell("Ready");
    bound(cluster, "fab");
}

/// What a container requests as an extended resource is a device of the class that stands for it.
fn extended(cluster: &Cluster) {
    let selector = "device.driver == 'nic.example.com'";
    let resources = json!({"requests": {"example.com/nic": "2"}, "limits": {"example.com/nic": "2"}});
    create(cluster, &[pod("nics", &Value::Null, &resources)]);
    let message = "0/1 nodes are available: 1 Insufficient example.com/nic. no new claims to deallocate, preemption: ";
    event(cluster, "nics", "FailedScheduling", message);
    let devices = json!([{"name": "n0"}, {"name": "n1"}, {"name": "n2"}]);
    create(
        cluster,
        &[
            slice("nics", "nic.example.com", &devices),
            class("nic", selector, &json!({"extendedResourceName": "example.com/nic"})),
        ],
    );
    bound(cluster, "nics");
    let made = cluster.get(&["pod", "nics"])["status"]["extendedResourceClaimStatus"].clone();
    let mapping =
        json!([{"containerName": "c", "resourceName": "example.com/nic", "requestName": "container-0-request-0"}]);
    assert_eq!(made["requestMappings"], mapping, "{made}");
    let claim = cluster.get(&["resourceclaim", made["resourceClaimName"].as_str().unwrap()]);
    assert_eq!(allocated(&claim), ["container-0-request-0=n0", "container-0-request-0=n1"]);
    assert_eq!(claim["metadata"]["annotations"]["resource.kubernetes.io/extended-resource-claim"], "true");
}
