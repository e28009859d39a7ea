//! HorizontalPodAutoscalers under real load.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, condition};
use serde_json::{Value, json};

/// Uses what it may: a tenth of a processor, twice what it asks for.
fn workload(args: &[&str]) -> Value {
    json!({"metadata": {"name": "worker"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "worker"}},
        "template": {"metadata": {"labels": {"app": "worker"}}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "gantry.local/self", "args": args,
                "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "100m"}}}]}}}})
}

#[test]
fn autoscaling() {
    let cluster = Cluster::start_with(&["--horizontal-pod-autoscaler-sync-period", "2s"]);
    let all = scenarios![by_load, what_kubectl_says, what_cannot_be_measured, both_versions];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

fn autoscalers(namespace: &str) -> String {
    format!("/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers")
}

fn deployments(namespace: &str) -> String {
    format!("/apis/apps/v1/namespaces/{namespace}/deployments")
}

fn by_load(api: &Api<'_>) {
    let namespace = api.namespace("load");
    let worker = format!("{}/worker", deployments(&namespace));
    api.create(&deployments(&namespace), &workload(&["burn", "cpu", "inf"]));
    let spec = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "worker"},
        "minReplicas": 1, "maxReplicas": 3,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}});
    api.create(&autoscalers(&namespace), &json!({"metadata": {"name": "worker"}, "spec": spec}));
    let path = format!("{}/worker", autoscalers(&namespace));
    // Three pods that use all they may still want more than there may be.
    let grown = api.until(&path, "three replicas", |h| {
        h["status"]["currentReplicas"] == 3
            && condition(h, "ScalingLimited") == "True"
            && condition(h, "ScalingActive") == "True"
    });
    assert_eq!(grown["status"]["desiredReplicas"], 3);
    let measured = &grown["status"]["currentMetrics"][0]["resource"];
    assert_eq!(measured["name"], "cpu");
    assert!(measured["current"]["averageUtilization"].as_i64().unwrap() > 50, "{measured}");
    let limited =
        grown["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "ScalingLimited").cloned();
    assert_eq!(limited.unwrap()["reason"], "TooManyReplicas");
    assert!(grown["status"]["lastScaleTime"].is_string());
    assert_eq!(api.get(&worker)["spec"]["replicas"], 3);

    api.edit(&worker, |d| d["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["sleep", "inf"]));
    api.until(&path, "one replica", |h| h["status"]["desiredReplicas"] == 1 && h["status"]["currentReplicas"] == 1);
    assert_eq!(api.get(&worker)["spec"]["replicas"], 1);
    let events = api.list(&format!(
        "/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3Dworker,reason%3DSuccessfulRescale"
    ));
    let told: Vec<&str> = events.iter().map(|e| e["message"].as_str().unwrap()).collect();
    assert!(
        told.contains(&"New size: 3; reason: cpu resource utilization (percentage of request) above target"),
        "{told:?}"
    );
    assert!(told.iter().any(|t| t.ends_with("reason: All metrics below target")), "{told:?}");
    // Somebody who makes it larger than it may be is corrected.
    api.patch(&format!("{worker}/scale"), cluster::api::MERGE, &json!({"spec": {"replicas": 5}}));
    api.until(&worker, "few replicas again", |d| d["spec"]["replicas"] == 1);
}

fn what_kubectl_says(api: &Api<'_>) {
    let (cluster, namespace) = (api.cluster, api.namespace("kubectl-hpa"));
    let kubectl = |arguments: &[&str]| cluster.kubectl(&[&["-n", &namespace], arguments].concat());
    api.create(&deployments(&namespace), &workload(&["sleep", "inf"]));
    assert_eq!(
        kubectl(&["autoscale", "deployment", "worker", "--min=2", "--max=4", "--cpu-percent=60"]),
        "horizontalpodautoscaler.autoscaling/worker autoscaled\n"
    );
    let path = format!("{}/worker", autoscalers(&namespace));
    api.until(&path, "at least two", |h| h["status"]["currentReplicas"] == 2);
    let row = kubectl(&["get", "hpa", "worker", "--no-headers"]);
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((cells[0], cells[1], cells[2]), ("worker", "Deployment/worker", "cpu:"), "{row}");
    assert_eq!(cells[4..7], ["2", "4", "2"], "{row}");
    let described = kubectl(&["describe", "hpa", "worker"]);
    let wanted = [
        "Reference:",
        "Deployment/worker",
        "resource cpu on pods  (as a percentage of request):",
        "Min replicas:",
        "AbleToScale",
        "New size: 2; reason: Current number of replicas below Spec.MinReplicas",
    ];
    for text in wanted {
        assert!(described.contains(text), "{text:?} in\n{described}");
    }
    kubectl(&["scale", "deployment", "worker", "--replicas=0"]);
    let active = |h: &Value| {
        h["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "ScalingActive").cloned()
    };
    let off = api.until(&path, "turned off", |h| active(h).is_some_and(|c| c["reason"] == "ScalingDisabled"));
    let told = active(&off).unwrap();
    assert_eq!(told["status"], "False");
    assert_eq!(told["message"], "scaling is disabled since the replica count of the target is zero");
    assert_eq!(api.get(&format!("{}/worker", deployments(&namespace)))["spec"]["replicas"], 0);
}

fn what_cannot_be_measured(api: &Api<'_>) {
    let namespace = api.namespace("unmeasured");
    let spec = |target: &str, metric: Value| json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}, "maxReplicas": 3, "metrics": [metric]});
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
    api.create(&autoscalers(&namespace), &json!({"metadata": {"name": "nobody"}, "spec": spec("nobody", cpu.clone())}));
    let path = format!("{}/nobody", autoscalers(&namespace));
    let told = api.until(&path, "no scale", |h| condition(h, "AbleToScale") == "False");
    let told = told["status"]["conditions"][0].clone();
    assert_eq!(told["reason"], "FailedGetScale");
    let message =
        "the HPA controller was unable to get the target's current scale: deployments.apps \"nobody\" not found";
    assert_eq!(told["message"], message);

    let mut bare = workload(&["sleep", "inf"]);
    bare["spec"]["template"]["spec"]["containers"][0].as_object_mut().unwrap().remove("resources");
    api.create(&deployments(&namespace), &bare);
    let queue = json!({"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "5"}}});
    for (name, metric, reason, text) in [
        ("no-request", cpu, "FailedGetResourceMetric", "missing request for cpu in container c of Pod worker-"),
        ("external", queue, "FailedGetExternalMetric", "unable to get external metric unmeasured/queue/nil"),
    ] {
        let path = format!("{}/{name}", autoscalers(&namespace));
        api.create(&autoscalers(&namespace), &json!({"metadata": {"name": name}, "spec": spec("worker", metric)}));
        let told = api.until(&path, reason, |h| {
            let mut all = h["status"]["conditions"].as_array().into_iter().flatten();
            all.any(|c| {
                c["type"] == "ScalingActive" && c["reason"] == reason && c["message"].as_str().unwrap().contains(text)
            })
        });
        assert_eq!(condition(&told, "ScalingActive"), "False");
        api.delete(&path);
    }
}

fn both_versions(api: &Api<'_>) {
    let namespace = api.namespace("hpa-versions");
    let first = format!("/apis/autoscaling/v1/namespaces/{namespace}/horizontalpodautoscalers");
    let spec = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "maxReplicas": 3,
        "targetCPUUtilizationPercentage": 70});
    api.create(&first, &json!({"metadata": {"name": "h"}, "spec": spec}));
    let second = api.get(&format!("{}/h", autoscalers(&namespace)));
    assert_eq!(
        second["spec"]["metrics"][0]["resource"]["target"],
        json!({"type": "Utilization", "averageUtilization": 70})
    );
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Mi"}}});
    api.edit(&format!("{}/h", autoscalers(&namespace)), |h| {
        h["spec"]["metrics"].as_array_mut().unwrap().push(memory.clone())
    });
    let old = api.get(&format!("{first}/h"));
    assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 70);
    let kept: Value = serde_json::from_str(
        old["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"].as_str().unwrap(),
    )
    .unwrap();
    assert_eq!(kept[0]["resource"]["name"], "memory");
    let bad = json!({"metadata": {"name": "bad"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 5, "maxReplicas": 3}});
    let told = api.send("POST", &autoscalers(&namespace), &bad).expect(422)["message"].clone();
    assert!(
        told.as_str()
            .unwrap()
            .contains("spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"),
        "{told}"
    );
}
