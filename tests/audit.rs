//! Audit: what is recorded of requests, as a policy says, in a log and at a webhook.

mod cluster;

use cluster::api::{Api, MERGE};
use cluster::webhook::Webhook;
use cluster::{Cluster, GANTRY};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- level: None
  users: [ignored]
- level: RequestResponse
  namespaces: [whole]
- level: Request
  namespaces: [asked]
  omitStages: [RequestReceived]
- level: Metadata
  namespaces: [noted]
- level: Metadata
  nonResourceURLs: [/version, /api*]
- level: Metadata
  users: [nobody-special]
";

/// The events of an audit log.
fn events(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l}"))).collect()
}

fn with_id(file: &Path, id: &str) -> Vec<Value> {
    events(file).into_iter().filter(|e| e["auditID"] == id).collect()
}

fn stages(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["stage"].as_str().unwrap()).collect()
}

/// The same client, whose requests have an id.
fn known<'a>(api: &Api<'a>, id: &str) -> Api<'a> {
    api.with_header(&format!("Audit-ID: {id}"))
}

#[test]
fn requests_are_recorded() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let policy = cluster.data_dir().join("policy.yaml");
    std::fs::write(&policy, POLICY).unwrap();
    let log = cluster.data_dir().join("logs/audit.log");
    let webhook = Webhook::start(&cluster, &[], Arc::new(|_: &str, _: &Value| json!({})));
    let receiver = cluster.data_dir().join("receiver.yaml");
    std::fs::write(
        &receiver,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: ''}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{}/events', certificate-authority-data: {}}}}}]\n",
            webhook.port(),
            webhook.ca
        ),
    )
    .unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    cluster.add_options(&[
        "--audit-policy-file",
        &text(&policy),
        "--audit-log-path",
        &text(&log),
        "--audit-webhook-config-file",
        &text(&receiver),
        "--audit-webhook-batch-max-wait",
        "1s",
        "--audit-webhook-initial-backoff",
        "1s",
    ]);
    cluster.up();
    let api = Api::new(&cluster);
    for namespace in ["whole", "asked", "noted"] {
        api.namespace(namespace);
    }
    levels(&api, &log);
    identities(&api, &log);
    watches(&api, &log);
    admission(&api, &log);

    // Everything comes to the webhook, too.
    let last = events(&log).last().unwrap()["auditID"].clone();
    cluster.wait_for("the last event at the webhook", || {
        let lists = webhook.seen("/events");
        let all = |list: &Value| (list["kind"] == "EventList").then(|| list["items"].as_array().unwrap().clone());
        let items: Vec<Value> = lists.iter().filter_map(all).flatten().collect();
        items.iter().any(|e| e["auditID"] == last && e.get("kind").is_none()).then_some(())
    });
    let metrics = api.try_get("/metrics").text;
    for sample in [
        "apiserver_audit_event_total ",
        "apiserver_audit_level_total{level=\"None\"} ",
        "apiserver_audit_level_total{level=\"RequestResponse\"} ",
        "apiserver_audit_requests_rejected_total 0",
    ] {
        assert!(metrics.lines().any(|l| l.starts_with(sample)), "{sample}\n{metrics}");
    }
}

fn levels(api: &Api<'_>, log: &Path) {
    let map =
        |name: &str| json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "1"}});
    let maps = |namespace: &str| format!("/api/v1/namespaces/{namespace}/configmaps");
    let answer = known(api, "whole-1").send("POST", &maps("whole"), &map("m"));
    assert_eq!(answer.code, 201);
    assert!(answer.head.to_lowercase().contains("audit-id: whole-1"), "{}", answer.head);
    let found = with_id(log, "whole-1");
    assert_eq!(stages(&found), ["RequestReceived", "ResponseComplete"]);
    let event = &found[1];
    assert_eq!((&event["kind"], &event["apiVersion"]), (&json!("Event"), &json!("audit.k8s.io/v1")));
    assert_eq!((&event["level"], &event["verb"]), (&json!("RequestResponse"), &json!("create")));
    assert_eq!(event["requestURI"], maps("whole"));
    assert_eq!(
        event["objectRef"],
        json!({"resource": "configmaps", "namespace": "whole", "name": "m", "apiVersion": "v1"})
    );
    assert_eq!(event["user"]["username"], "kubernetes-admin");
    assert_eq!(event["user"]["groups"], json!(["system:masters", "system:authenticated"]));
    assert_eq!(event["sourceIPs"], json!(["127.0.0.1"]));
    assert!(event["userAgent"].as_str().unwrap().starts_with("curl/"));
    assert_eq!(event["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(event["requestObject"], map("m"));
    assert_eq!(event["responseObject"]["data"], json!({"a": "1"}));
    assert_eq!(event["responseObject"]["metadata"].get("managedFields"), None, "{event}");
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");
    assert!(event["requestReceivedTimestamp"].as_str() <= event["stageTimestamp"].as_str());

    assert_eq!(known(api, "whole-2").try_get(&maps("whole")).code, 200);
    let listed = with_id(log, "whole-2")[1]["responseObject"].clone();
    assert_eq!(listed["kind"], "ConfigMapList");
    assert!(listed["items"].as_array().unwrap().iter().any(|m| m["metadata"]["name"] == "m"), "{listed}");
    let protobuf = known(api, "whole-3").with_header("Accept: application/vnd.kubernetes.protobuf");
    assert_eq!(protobuf.try_get(&maps("whole")).code, 200);
    assert_eq!(with_id(log, "whole-3")[1]["responseObject"]["kind"], "ConfigMapList", "whatever the client takes");

    let patch = json!({"data": {"b": "2"}});
    let asked = known(api, "asked-0").send("POST", &maps("asked"), &map("m"));
    assert_eq!(asked.code, 201);
    known(api, "asked-1").patch(&format!("{}/m", maps("asked")), MERGE, &patch);
    let found = with_id(log, "asked-1");
    assert_eq!(stages(&found), ["ResponseComplete"], "a stage may be left out");
    assert_eq!((&found[0]["requestObject"], found[0].get("responseObject")), (&patch, None));

    let absent = known(api, "noted-1").try_get(&format!("{}/absent", maps("noted")));
    assert_eq!(absent.code, 404);
    let found = with_id(log, "noted-1");
    assert_eq!((found[1].get("requestObject"), found[1].get("responseObject")), (None, None));
    let status = json!({"metadata": {}, "status": "Failure", "message": "configmaps \"absent\" not found",
        "reason": "NotFound", "details": {"name": "absent", "kind": "configmaps"}, "code": 404});
    assert_eq!(found[1]["responseStatus"], status);

    assert_eq!(known(api, "other-1").try_get("/api/v1/nodes").code, 200);
    assert_eq!(known(api, "path-1").try_get("/version").code, 200);
    assert_eq!(known(api, "path-2").try_get("/apis").code, 200);
    assert_eq!((with_id(log, "other-1").len(), with_id(log, "path-1").len()), (0, 2), "no rule is for nodes");
    let path = &with_id(log, "path-2")[1];
    assert_eq!((path.get("objectRef"), &path["verb"]), (None, &json!("get")));
    // Without an id of its own a request gets one.
    let answer = api.try_get("/version");
    let given = answer.head.lines().find_map(|l| l.to_lowercase().strip_prefix("audit-id: ").map(str::to_owned));
    assert_eq!(with_id(log, given.unwrap().trim()).len(), 2);
}

fn identities(api: &Api<'_>, log: &Path) {
    let maps = "/api/v1/namespaces/noted/configmaps";
    let refused = known(api, "as-1").impersonate("nobody-special", &["devs"]).try_get(maps);
    assert_eq!(refused.code, 403);
    let found = with_id(log, "as-1");
    let event = &found[1];
    assert_eq!(event["user"]["username"], "kubernetes-admin");
    assert_eq!(event["impersonatedUser"]["username"], "nobody-special");
    assert_eq!(event["impersonatedUser"]["groups"], json!(["devs", "system:authenticated"]));
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(
        (&event["responseStatus"]["reason"], &event["responseStatus"]["code"]),
        (&json!("Forbidden"), &json!(403))
    );

    let forged = known(&api.with_token("no.good.token"), "forged-1");
    assert_eq!(forged.with_header("X-Forwarded-For: 192.0.2.7").try_get("/version").code, 401);
    let found = with_id(log, "forged-1");
    assert_eq!(stages(&found), ["ResponseStarted"]);
    assert_eq!((&found[0]["responseStatus"]["code"], &found[0]["user"]), (&json!(401), &json!({})));
    assert_eq!(found[0]["sourceIPs"], json!(["192.0.2.7", "127.0.0.1"]));
}

fn watches(api: &Api<'_>, log: &Path) {
    let watch = known(api, "watch-1").watch("/api/v1/namespaces/noted/configmaps");
    api.cluster.wait_for("the beginning of a watch", || {
        (stages(&with_id(log, "watch-1")) == ["RequestReceived", "ResponseStarted"]).then_some(())
    });
    drop(watch);
    api.cluster.wait_for("the end of a watch", || {
        let found = with_id(log, "watch-1");
        (stages(&found) == ["RequestReceived", "ResponseStarted", "ResponseComplete"]).then_some(())
    });
}

/// What admission has to say stands in the annotations.
fn admission(api: &Api<'_>, log: &Path) {
    let answer = |path: &str, review: &Value| {
        let mut response = json!({"uid": review["request"]["uid"], "allowed": true,
            "auditAnnotations": {"seen": path}});
        if path == "/mutate" {
            response["patchType"] = "JSONPatch".into();
            let patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"mutated": "yes"}}]).to_string();
            response["patch"] = cluster::api::base64(patch.as_bytes()).into();
        }
        json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response})
    };
    let webhook = Webhook::start(api.cluster, &[], Arc::new(answer));
    let kinds = "/apis/admissionregistration.k8s.io/v1";
    let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": "asked"}});
    let hook = |name: &str, client: &Value, policy: &str| {
        json!({"name": name, "clientConfig": client, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "failurePolicy": policy, "namespaceSelector": selector,
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}]})
    };
    let nowhere = json!({"url": "https://127.0.0.1:1/"});
    api.create(
        &format!("{kinds}/mutatingwebhookconfigurations"),
        &json!({"metadata": {"name": "m"}, "webhooks": [hook("m.example.com", &webhook.at("/mutate"), "Fail")]}),
    );
    api.create(
        &format!("{kinds}/validatingwebhookconfigurations"),
        &json!({"metadata": {"name": "v"}, "webhooks": [hook("v.example.com", &webhook.at("/judge"), "Fail"),
            hook("gone.example.com", &nowhere, "Ignore")]}),
    );
    api.create(
        &format!("{kinds}/validatingadmissionpolicies"),
        &json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}]},
            "validations": [{"expression": "true"}, {"expression": "false", "message": "never"}],
            "auditAnnotations": [{"key": "name", "valueExpression": "string(object.metadata.name)"}]}}),
    );
    api.create(
        &format!("{kinds}/validatingadmissionpolicybindings"),
        &json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Audit"],
            "matchResources": {"namespaceSelector": selector}}}),
    );
    let attempt = std::cell::Cell::new(0);
    let annotations = api.cluster.wait_for("policies and webhooks in force", || {
        attempt.set(attempt.get() + 1);
        let id = format!("admission-{}", attempt.get());
        let map = json!({"metadata": {"name": id}});
        assert_eq!(known(api, &id).send("POST", "/api/v1/namespaces/asked/configmaps", &map).code, 201);
        let all = with_id(log, &id)[0]["annotations"].clone();
        let wanted = ["m.example.com/seen", "v.example.com/seen", "p/name"];
        wanted.iter().all(|key| all.get(key).is_some()).then_some(all)
    });
    let id = format!("admission-{}", attempt.get());
    assert_eq!((&annotations["m.example.com/seen"], &annotations["p/name"]), (&json!("/mutate"), &json!(id)));
    assert_eq!(annotations["failed-open.validating.webhook.admission.k8s.io/round_0_index_1"], "gone.example.com");
    let parsed =
        |key: &str| serde_json::from_str::<Value>(annotations[key].as_str().unwrap_or_else(|| panic!("{key}")));
    assert_eq!(
        parsed("mutation.webhook.admission.k8s.io/round_0_index_0").unwrap(),
        json!({"configuration": "m", "webhook": "m.example.com", "mutated": true})
    );
    let patch = parsed("patch.webhook.admission.k8s.io/round_0_index_0").unwrap();
    assert_eq!((&patch["patchType"], &patch["patch"][0]["op"]), (&json!("JSONPatch"), &json!("add")));
    assert_eq!(
        parsed("validation.policy.admission.k8s.io/validation_failure").unwrap(),
        json!([{"message": "never", "policy": "p", "binding": "b", "expressionIndex": 1,
            "validationActions": ["Audit"]}])
    );

    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/audit": "restricted"}}});
    api.patch("/api/v1/namespaces/noted", MERGE, &labels);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "gantry.local/self"}]}});
    let all = api.cluster.wait_for("the namespace's labels known to admission", || {
        let answer = known(api, "pod-1").send("POST", "/api/v1/namespaces/noted/pods?dryRun=All", &pod);
        assert_eq!(answer.code, 201, "{}", answer.text);
        let all = with_id(log, "pod-1").last().unwrap()["annotations"].clone();
        all.get("pod-security.kubernetes.io/audit-violations").is_some().then_some(all)
    });
    assert_eq!(all["pod-security.kubernetes.io/enforce-policy"], "privileged:latest");
    let violations = all["pod-security.kubernetes.io/audit-violations"].as_str().unwrap();
    assert!(violations.starts_with("would violate PodSecurity \"restricted:latest\": "), "{violations}");
}

/// What is wrong with a policy is said before anything is started, with the file and the field.
#[test]
fn bad_policies() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    let failure_with = |rules: &str, flags: &[&str]| {
        std::fs::write(&file, format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{rules}")).unwrap();
        let output = std::process::Command::new("unshare")
            .args(["--net", "--", GANTRY, "server", "--data-dir"])
            .arg(directory.path().join("data"))
            .arg("--kubeconfig")
            .arg(directory.path().join("kubeconfig"))
            .arg("--audit-policy-file")
            .arg(&file)
            .args(["--audit-log-path", "-"])
            .args(flags)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let failure = |rules: &str| failure_with(rules, &[]);
    let told = failure("- level: Everything\n");
    for wanted in ["loading audit policy file: rules[0].level: Unsupported value: \"Everything\"", "policy.yaml"] {
        assert!(told.contains(wanted), "{told}");
    }
    for (flags, wanted) in [
        (
            ["--audit-log-mode", "now"],
            "invalid audit log mode now, allowed modes are \"batch,blocking,blocking-strict\"",
        ),
        (
            ["--audit-log-truncate-max-event-size", "0"],
            "invalid audit truncate log max event size 0, must be a positive number",
        ),
        (
            ["--audit-log-truncate-max-batch-size", "1"],
            "invalid audit truncate log max batch size 1, must be greater than max event size (102400)",
        ),
    ] {
        let told = failure_with("- level: None\n", &flags);
        assert!(told.contains(wanted), "{told}");
    }
    let batches = ["--audit-log-mode", "batch", "--audit-log-batch-throttle-enable"];
    for (flags, wanted) in [
        (&["--audit-log-mode", "batch", "--audit-log-batch-max-size", "0"][..], "log max batch size 0"),
        (&["--audit-log-mode", "batch", "--audit-log-batch-buffer-size", "0"][..], "log buffer size 0"),
        (&batches[..], "log throttle QPS 0"),
        (&[&batches[..], &["--audit-log-batch-throttle-qps", "1"]].concat()[..], "log throttle burst 0"),
    ] {
        let told = failure_with("- level: None\n", flags);
        assert!(told.contains(&format!("invalid audit batch {wanted}, must be a positive number")), "{told}");
    }
    let told = failure("- {level: None, verbs: get}\n");
    assert!(told.contains("rules[0].verbs: expected a list, got a string"), "{told}");
}

const INSISTENT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: Request, namespaces: [insistent], resources: [{resources: [configmaps]}]}
";

fn file(cluster: &Cluster, name: &str, text: &str) -> String {
    let file = cluster.data_dir().join(name);
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Requests wait for a webhook that they are told to wait for, and say where their time went; large events lose objects.
#[test]
fn requests_wait_for_the_webhook() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let answer = |_: &str, list: &Value| {
        let event = &list["items"][0];
        if event["auditID"] == "slow" && event["stage"] == "RequestReceived" {
            std::thread::sleep(std::time::Duration::from_millis(600));
        }
        json!({})
    };
    let webhook = Webhook::start(&cluster, &[], Arc::new(answer));
    let receiver = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: ''}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{}/events', certificate-authority-data: {}}}}}]\n",
        webhook.port(),
        webhook.ca
    );
    let (policy, receiver) = (file(&cluster, "policy.yaml", INSISTENT), file(&cluster, "receiver.yaml", &receiver));
    cluster.add_options(&["--audit-policy-file", &policy, "--audit-webhook-config-file", &receiver]);
    cluster.add_options(&["--audit-webhook-mode", "blocking-strict", "--audit-webhook-truncate-enabled"]);
    cluster.add_options(&["--audit-webhook-truncate-max-event-size", "4000"]);
    cluster.up();
    let api = Api::new(&cluster);
    let maps = format!("/api/v1/namespaces/{}/configmaps", api.namespace("insistent"));
    let seen = |id: &str| -> Vec<Value> {
        let lists = webhook.seen("/events");
        let items = lists.iter().flat_map(|l| l["items"].as_array().unwrap().clone());
        items.filter(|e| e["auditID"] == id).collect()
    };
    let map = |name: &str, size: usize| json!({"metadata": {"name": name}, "data": {"a": "x".repeat(size)}});
    known(&api, "small").create(&maps, &map("small", 10));
    let found = seen("small");
    assert_eq!(stages(&found), ["RequestReceived", "ResponseComplete"], "both are there when the answer is");
    assert_eq!(found[1]["requestObject"]["data"]["a"], "xxxxxxxxxx");
    known(&api, "large").create(&maps, &map("large", 5000));
    let found = seen("large");
    assert_eq!(
        (found[1].get("requestObject"), &found[1]["annotations"]["audit.k8s.io/truncated"]),
        (None, &json!("true"))
    );
    assert_eq!(found[0]["annotations"].get("audit.k8s.io/truncated"), None);

    known(&api, "slow").create(&maps, &map("slow", 10));
    let annotations = seen("slow")[1]["annotations"].clone();
    for part in ["authentication", "authorization", "etcd", "total"] {
        let time = annotations[format!("apiserver.latency.k8s.io/{part}")].as_str();
        assert!(time.is_some_and(|t| t.ends_with('s')), "{part}: {annotations}");
    }
}

/// The log takes events in batches where it is told to, and what is left when the server stops.
#[test]
fn the_log_in_batches() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let policy = file(&cluster, "policy.yaml", INSISTENT);
    let log = cluster.data_dir().join("audit.log");
    cluster.add_options(&["--audit-policy-file", &policy, "--audit-log-path", log.to_str().unwrap()]);
    cluster.add_options(&["--audit-log-mode", "batch", "--audit-log-batch-max-size", "4"]);
    cluster.add_options(&["--audit-log-batch-max-wait", "10m", "--audit-log-batch-throttle-enable=true"]);
    cluster.add_options(&["--audit-log-batch-throttle-qps", "5", "--audit-log-batch-throttle-burst", "5"]);
    cluster.up();
    let api = Api::new(&cluster);
    let maps = format!("/api/v1/namespaces/{}/configmaps", api.namespace("insistent"));
    let write = |id: &str| {
        let name = json!({"metadata": {"name": id}});
        assert_eq!(known(&api, id).send("POST", &maps, &name).code, 201);
    };
    write("first");
    write("second");
    write("third");
    cluster.wait_for("a full batch", || (events(&log).len() >= 4).then_some(()));
    write("last");
    cluster.interrupt();
    for id in ["first", "second", "third", "last"] {
        assert_eq!(stages(&with_id(&log, id)), ["RequestReceived", "ResponseComplete"], "{id}");
    }
}

/// What the log cannot take is refused where it insists.
#[test]
fn requests_that_cannot_be_recorded() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let policy = file(&cluster, "policy.yaml", INSISTENT);
    cluster.add_options(&["--audit-policy-file", &policy, "--audit-log-path", "/dev/full"]);
    cluster.add_options(&["--audit-log-mode", "blocking-strict"]);
    cluster.up();
    let api = Api::new(&cluster);
    let maps = "/api/v1/namespaces/insistent/configmaps";
    let answer = api.send("POST", maps, &json!({"metadata": {"name": "m"}}));
    let wanted = format!("Internal Server Error: \"{maps}\": failed to store audit event\n");
    assert_eq!((answer.code, answer.text), (500, wanted));
    assert_eq!(api.try_get("/api/v1/namespaces/default/configmaps").code, 200, "nothing is recorded there");
}
