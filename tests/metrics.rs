//! What the control plane measures, by upstream's list of stable and beta metrics; profiles of the process; and the ranges
//! of pod addresses that nodes are given.

mod cluster;

use cluster::Cluster;
use cluster::api::Api;
use cluster::measured::{Metric, tells, value};
use serde_json::{Value, json};

#[test]
fn a_control_plane_with_nodes_in_name_only() {
    let mut cluster = Cluster::prepare_role("server", &["--allocate-node-cidrs", "--pod-cidr", "10.244.0.0/22"]);
    cluster.up();
    let api = Api::new(&cluster);
    ranges_of_nodes(&cluster, &api);
    pods_and_jobs(&cluster, &api);
    measurements(&cluster, &api);
    pages(&api);
    profiles(&api);
}

#[test]
fn nobody_looks_into_a_process_that_does_not_let_them() {
    let mut cluster = Cluster::prepare_role("server", &["--profiling=false"]);
    cluster.up();
    let api = Api::new(&cluster);
    for path in ["/debug/pprof/", "/debug/pprof/profile?seconds=1", "/debug/flags/v"] {
        assert_eq!(api.try_get(path).code, 404, "{path}");
    }
}

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";

fn node(name: &str) -> Value {
    let amounts = json!({"cpu": "2", "memory": "4Gi", "pods": "10"});
    let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady"}]);
    json!({"metadata": {"name": name}, "status": {"capacity": amounts, "allocatable": amounts, "conditions": ready}})
}

/// The range of a node once it has one.
fn range(api: &Api<'_>, name: &str) -> String {
    let given = |node: &Value| node["spec"]["podCIDR"].is_string();
    let node = api.until(&format!("{NODES}/{name}"), "a range of pod addresses", given);
    assert_eq!(node["spec"]["podCIDRs"], json!([node["spec"]["podCIDR"]]));
    node["spec"]["podCIDR"].as_str().unwrap().to_owned()
}

/// `--allocate-node-cidrs`.
fn ranges_of_nodes(cluster: &Cluster, api: &Api<'_>) {
    let mut own = node("own");
    own["spec"] = json!({"podCIDR": "10.244.1.0/24"});
    api.create(NODES, &own);
    let mut given = Vec::new();
    for name in ["a", "b", "c"] {
        api.create(NODES, &node(name));
        given.push(range(api, name));
    }
    assert_eq!(given, ["10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"], "what a node brought is its own");
    api.create(NODES, &node("late"));
    let told = cluster.wait_for("the event that tells that no range is left", || {
        let events = api.list("/api/v1/events");
        events.into_iter().find(|e| e["reason"] == "CIDRNotAvailable")
    });
    assert_eq!(told["message"], "Node late status is now: CIDRNotAvailable");
    assert_eq!((&told["type"], &told["source"]["component"]), (&json!("Warning"), &json!("cidrAllocator")));
    api.delete(&format!("{NODES}/b"));
    assert_eq!(range(api, "late"), "10.244.2.0/24", "given back with the node that had it");
}

/// Pods that are placed, that are not, and that are evicted; Jobs that end.
fn pods_and_jobs(cluster: &Cluster, api: &Api<'_>) {
    let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "1500m"}}});
    let great = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "50"}}});
    let pod = |name: &str, container: &Value| json!({"metadata": {"name": name}, "spec": {"containers": [container]}});
    api.create(PODS, &pod("fits", &container));
    api.create(PODS, &pod("great", &great));
    let spec = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}});
    api.create(JOBS, &json!({"metadata": {"name": "once"}, "spec": spec}));
    let placed = |pod: &Value| pod["spec"]["nodeName"].is_string();
    let fits = api.until(&format!("{PODS}/fits"), "a node", placed);
    let refused = |pod: &Value| pod["status"]["conditions"][0]["reason"] == "Unschedulable";
    api.until(&format!("{PODS}/great"), "why it is not placed", refused);
    let of_job = cluster.wait_for("the Job's pod to be placed", || {
        let pods = api.list(&format!("{PODS}?labelSelector=job-name=once"));
        pods.into_iter().find(|pod| placed(pod))
    });
    let name = of_job["metadata"]["name"].as_str().unwrap();
    let ended = json!({"status": {"phase": "Succeeded"}});
    api.patch(&format!("{PODS}/{name}/status"), "application/merge-patch+json", &ended);
    let complete = |job: &Value| job["status"]["succeeded"] == 1 && job["status"]["completionTime"].is_string();
    api.until(&format!("{JOBS}/once"), "its end", complete);
    // Its node falls ill, and what is on it has to go.
    let node = format!("{NODES}/{}", fits["spec"]["nodeName"].as_str().unwrap());
    let ill = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady"}]}});
    api.patch(&format!("{node}/status"), "application/strategic-merge-patch+json", &ill);
    let tainted =
        |node: &Value| node["spec"]["taints"].as_array().is_some_and(|t| t.iter().any(|t| t["effect"] == "NoExecute"));
    api.until(&node, "the taint that evicts", tainted);
}

/// Of upstream's stable and beta metrics (`test/instrumentation/testdata/stable-metrics-list.yaml`) those of the API server
/// that `tests/requests.rs` does not see the labels of, of the scheduler and of the controllers. On `/metrics` of the agent
/// are those of nodes, containers and pods.
const MEASURED: &[Metric] = &[
    ("apiserver_flowcontrol_current_executing_requests", "gauge", &["flow_schema", "priority_level"]),
    ("apiserver_flowcontrol_current_executing_seats", "gauge", &["flow_schema", "priority_level"]),
    ("cronjob_controller_job_creation_skew_duration_seconds", "histogram", &[]),
    ("job_controller_job_pods_finished_total", "counter", &["completion_mode", "result"]),
    ("job_controller_job_sync_duration_seconds", "histogram", &["action", "completion_mode", "result"]),
    ("job_controller_job_syncs_total", "counter", &["action", "completion_mode", "result"]),
    ("job_controller_jobs_finished_total", "counter", &["completion_mode", "reason", "result"]),
    ("node_collector_evictions_total", "counter", &["zone"]),
    ("scheduler_framework_extension_point_duration_seconds", "histogram", &["extension_point", "profile", "status"]),
    ("scheduler_pending_pods", "gauge", &["queue"]),
    ("scheduler_pod_scheduling_attempts", "histogram", &[]),
    ("scheduler_pod_scheduling_sli_duration_seconds", "histogram", &["attempts"]),
    ("scheduler_preemption_attempts_total", "counter", &[]),
    ("scheduler_preemption_victims", "histogram", &[]),
    ("scheduler_queue_incoming_pods_total", "counter", &["event", "queue"]),
    ("scheduler_schedule_attempts_total", "counter", &["profile", "result"]),
    ("scheduler_scheduling_attempt_duration_seconds", "histogram", &["profile", "result"]),
    // Not stable upstream, and looked at all the same.
    ("scheduler_scheduler_cache_size", "gauge", &["type"]),
    ("scheduler_scheduling_algorithm_duration_seconds", "histogram", &[]),
    ("scheduler_unschedulable_pods", "gauge", &["plugin", "profile"]),
    ("workqueue_adds_total", "counter", &["name"]),
    ("workqueue_depth", "gauge", &["name"]),
    ("workqueue_longest_running_processor_seconds", "gauge", &["name"]),
    ("workqueue_queue_duration_seconds", "histogram", &["name"]),
    ("workqueue_retries_total", "counter", &["name"]),
    ("workqueue_unfinished_work_seconds", "gauge", &["name"]),
    ("workqueue_work_duration_seconds", "histogram", &["name"]),
];

/// The rest of the list: what has no meaning here, and why.
const ABSENT: &[(&str, &str)] = &[
    ("disabled_metrics_total", "no metric can be disabled"),
    ("hidden_metrics_total", "none is hidden"),
    ("registered_metrics_total", "metrics are not registered by stability"),
    ("kubernetes_feature_enabled", "there are no feature gates"),
    ("scheduler_pod_scheduling_duration_seconds", "deprecated in 1.29 and hidden upstream"),
    ("kube_pod_resource_limit", "at /metrics/resources of kube-scheduler's own port, which there is none of"),
    ("kube_pod_resource_request", "the same"),
];

fn measurements(cluster: &Cluster, api: &Api<'_>) {
    let text = cluster.wait_for("all that was done to be counted", || {
        let text = api.try_get("/metrics").text;
        let finished = "job_controller_jobs_finished_total{completion_mode=\"NonIndexed\",reason=\"CompletionsReached\",\
                        result=\"succeeded\"}";
        let evicted = "node_collector_evictions_total{zone=\"\"}";
        // A change of a node has the pod that fits nowhere tried again, after a while.
        let waits = "scheduler_pending_pods{queue=\"unschedulable\"}";
        [finished, evicted, waits].iter().all(|sample| value(&text, sample) == Some(1.0)).then_some(text)
    });
    tells(&text, MEASURED);
    for (name, why) in ABSENT {
        assert!(!text.contains(&format!("# TYPE {name} ")), "{name} is there, though {why}");
    }
    let profile = "profile=\"default-scheduler\"";
    let at_least = |sample: &str, least: f64| {
        let found = value(&text, sample);
        assert!(found.is_some_and(|v| v >= least), "{sample}: {found:?}");
    };
    at_least(&format!("scheduler_schedule_attempts_total{{{profile},result=\"scheduled\"}}"), 2.0);
    at_least(&format!("scheduler_schedule_attempts_total{{{profile},result=\"unschedulable\"}}"), 1.0);
    at_least("scheduler_pod_scheduling_attempts_count", 2.0);
    at_least("scheduler_pod_scheduling_attempts_bucket{le=\"1.0\"}", 1.0);
    at_least("scheduler_preemption_attempts_total", 1.0);
    at_least(&format!("scheduler_unschedulable_pods{{plugin=\"NodeResourcesFit\",{profile}}}"), 1.0);
    at_least("scheduler_scheduler_cache_size{type=\"nodes\"}", 4.0);
    at_least("scheduler_queue_incoming_pods_total{event=\"UnschedulablePodAdd\",queue=\"active\"}", 3.0);
    at_least("scheduler_queue_incoming_pods_total{event=\"ScheduleAttemptFailure\",queue=\"unschedulable\"}", 1.0);
    let pods = "job_controller_job_pods_finished_total{completion_mode=\"NonIndexed\",result=\"succeeded\"}";
    assert_eq!(value(&text, pods), Some(1.0));
    let made = "action=\"pods_created\",completion_mode=\"NonIndexed\",result=\"success\"";
    assert_eq!(value(&text, &format!("job_controller_job_syncs_total{{{made}}}")), Some(1.0));
    for queue in ["job", "deployment", "endpoint_slice", "garbage_collector_attempt_to_delete", "noexec_taint_pod"] {
        assert!(value(&text, &format!("workqueue_adds_total{{name=\"{queue}\"}}")).is_some(), "{queue}");
    }
    at_least("workqueue_adds_total{name=\"job\"}", 1.0);
    at_least("workqueue_work_duration_seconds_count{name=\"job\"}", 1.0);
}

fn pages(api: &Api<'_>) {
    let statusz = api.try_get("/statusz");
    assert!(statusz.code == 200 && statusz.text.starts_with("\napiserver statusz\nWarning: "), "{}", statusz.text);
    for line in ["Binary version: 1.37", "Paths: /flagz /healthz /livez /metrics /readyz /version"] {
        assert!(statusz.text.lines().any(|l| l == line), "{}", statusz.text);
    }
    let accepting = |page: &str, version: &str| {
        api.with_header(&format!("Accept: application/json;as={page};g=config.k8s.io;v={version}"))
    };
    let object = accepting("Statusz", "v1beta1").try_get("/statusz").expect(200);
    assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("Statusz"), &json!("config.k8s.io/v1beta1")));
    assert_eq!((&object["metadata"], &object["emulationVersion"]), (&json!({"name": "apiserver"}), &json!("1.37")));
    let old = accepting("Statusz", "v1alpha1").try_get("/statusz");
    let warning = "299 - \"This version of the statusz endpoint is deprecated. Please use a newer version.\"";
    assert!(old.code == 200 && old.head.contains(warning), "{}", old.head);
    let refused = api.with_header("Accept: application/json").try_get("/statusz").expect(406);
    assert_eq!(
        refused["message"],
        "only the following media types are accepted: application/json, application/yaml, text/plain"
    );
    let flagz = api.try_get("/flagz").text;
    for line in ["pod-cidr=10.244.0.0/22", "node-cidr-mask-size=", "service-cidr=10.96.0.0/16", "profiling=true"] {
        assert!(flagz.lines().any(|l| l == line), "{line}\n{flagz}");
    }
    let flags = accepting("Flagz", "v1beta1").try_get("/flagz").expect(200)["flags"].clone();
    assert_eq!((&flags["allocate-node-cidrs"], &flags["bind-address"]), (&json!("true"), &json!("127.0.0.1")));
    assert_eq!(api.impersonate("anna", &["system:monitoring"]).try_get("/flagz").code, 200);
    assert_eq!(api.impersonate("anna", &[]).try_get("/statusz").code, 403);
}

fn profiles(api: &Api<'_>) {
    let profile = api.try_get("/debug/pprof/profile?seconds=1");
    assert_eq!(profile.code, 200);
    assert!(profile.head.contains("application/octet-stream"), "{}", profile.head);
    assert!(profile.head.contains("attachment; filename=\"profile\""), "{}", profile.head);
    assert!(api.try_get("/debug/pprof/").text.contains("profile?seconds=30"));
    let to = api.try_get("/debug/pprof");
    assert!(to.code == 302 && to.head.to_ascii_lowercase().contains("location: /debug/pprof/"), "{}", to.head);
    for unknown in ["goroutine", "heap", "cmdline", "trace?seconds=1"] {
        let answer = api.try_get(&format!("/debug/pprof/{unknown}"));
        assert_eq!((answer.code, answer.text.as_str()), (404, "Unknown profile\n"), "{unknown}");
    }
    let refused = api.impersonate("anna", &[]).try_get("/debug/pprof/profile?seconds=1").expect(403);
    assert_eq!(
        refused["message"], "forbidden: User \"anna\" cannot get path \"/debug/pprof/profile\"",
        "a path is authorized as any other"
    );
    let verbosity = |text: &str| {
        let answer = api.request("PUT", "/debug/flags/v", Some(("text/plain", text)));
        (answer.code, answer.text)
    };
    assert_eq!(verbosity("4"), (200, "successfully set klog.logging.verbosity to 4".to_owned()));
    assert_eq!(verbosity("0"), (200, "successfully set klog.logging.verbosity to 0".to_owned()));
    let wrong = "failed set klog.logging.verbosity x: strconv.ParseInt: parsing \"x\": invalid syntax";
    assert_eq!(verbosity("x"), (400, wrong.to_owned()));
    assert_eq!(api.try_get("/debug/flags/v").code, 406);
    assert!(api.try_get("/debug/flags").text.contains("full flags configurable"));
}
