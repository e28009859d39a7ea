//! Admission webhooks, with one of the test's own behind them. What upstream's conformance suite asks stands above its
//! scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{APPLY, Api, JSON_PATCH, MERGE, base64};
use cluster::webhook::Webhook;
use serde_json::{Value, json};
use std::sync::Arc;

const KINDS: &str = "/apis/admissionregistration.k8s.io/v1";

#[test]
fn webhooks() {
    let cluster = Cluster::start();
    let all = scenarios![
        discovery,
        deny_creation,
        deny_attachment,
        fail_closed,
        one_after_the_other,
        again_if_needed,
        defaults_after_a_mutation,
        configurations_are_exempt,
        timeouts,
        changed_configurations,
        many_configurations,
        what_is_reviewed,
        dry_runs,
        through_a_service,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// The webhook of all scenarios: the path says what it does.
fn answer(path: &str, review: &Value) -> Value {
    let request = &review["request"];
    let data = |key: &str| request["object"]["data"][key].as_str().unwrap_or_default();
    let mut response = json!({"uid": request["uid"], "allowed": true});
    let mut patch = |operations: Value| {
        response["patch"] = base64(operations.to_string().as_bytes()).into();
        response["patchType"] = "JSONPatch".into();
    };
    match path {
        "/deny" => {
            response["allowed"] = false.into();
            response["status"] = json!({"message": "this webhook denies all requests", "code": 403});
        }
        "/no-offence" if data("offence") == "yes" => {
            response["allowed"] = false.into();
            response["status"] = json!({"reason": "the configmap contains unwanted key and value"});
        }
        "/no-attach" => {
            let object = &request["object"];
            response["allowed"] = (object["kind"] != "PodAttachOptions" || object["stdin"] != true).into();
            response["status"] = json!({"message": "attaching is not allowed"});
        }
        "/add/1" if data("start") == "yes" => patch(json!([{"op": "add", "path": "/data/stage-1", "value": "yes"}])),
        "/add/2" if data("stage-1") == "yes" => patch(json!([{"op": "add", "path": "/data/stage-2", "value": "yes"}])),
        "/init" => patch(json!([{"op": "add", "path": "/spec/initContainers", "value": [
            {"name": "added", "image": "gantry.local/self", "args": ["true"]}]}])),
        "/label" => patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"mutated": "yes"}}])),
        "/slow" => std::thread::sleep(std::time::Duration::from_secs(5)),
        "/warn" => response["warnings"] = json!(["mind the gap"]),
        "/nonsense" => response["uid"] = "other".into(),
        _ => {}
    }
    json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response})
}

fn start(api: &Api<'_>, names: &[&str]) -> Webhook {
    Webhook::start(api.cluster, names, Arc::new(answer))
}

/// A webhook for the configmaps of one namespace.
fn hook(name: &str, client: &Value, namespace: &str) -> Value {
    json!({"name": format!("{name}.example.com"), "clientConfig": client, "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
            "operations": ["CREATE", "UPDATE"]}]})
}

fn configure(api: &Api<'_>, sort: &str, name: &str, hooks: &[Value]) -> String {
    let path = format!("{KINDS}/{sort}webhookconfigurations");
    api.create(&path, &json!({"metadata": {"name": name, "labels": {"of": name}}, "webhooks": hooks}));
    format!("{path}/{name}")
}

/// A new namespace that has the ConfigMap every namespace gets: no webhook will see it made.
fn place(api: &Api<'_>, name: &str) -> String {
    let namespace = api.namespace(name);
    api.until(&format!("{}/kube-root-ca.crt", maps(&namespace)), "made", |_| true);
    namespace
}

fn maps(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

fn map(name: &str, data: &Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

/// The message of a request that is refused with this code.
#[track_caller]
fn refused(api: &Api<'_>, method: &str, path: &str, body: &Value, code: u16) -> String {
    api.send(method, path, body).expect(code)["message"].as_str().unwrap().to_owned()
}

// Conformance: Admission webhook, discovery document
fn discovery(api: &Api<'_>) {
    let groups = api.get("/apis");
    let group = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "admissionregistration.k8s.io");
    assert!(group.unwrap()["versions"].as_array().unwrap().iter().any(|v| v["version"] == "v1"));
    assert_eq!(api.get("/apis/admissionregistration.k8s.io")["name"], "admissionregistration.k8s.io");
    let resources = api.get(KINDS);
    for name in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        assert!(resources["resources"].as_array().unwrap().iter().any(|r| r["name"] == name), "{name}");
    }
}

// Conformance: Admission webhook, deny create
fn deny_creation(api: &Api<'_>) {
    let namespace = place(api, "deny");
    let webhook = start(api, &[]);
    let mut pods = hook("pods", &webhook.at("/deny"), &namespace);
    pods["rules"] =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]);
    configure(api, "validating", "deny-create", &[pods, hook("maps", &webhook.at("/no-offence"), &namespace)]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    assert_eq!(
        refused(api, "POST", &format!("/api/v1/namespaces/{namespace}/pods"), &pod, 403),
        "admission webhook \"pods.example.com\" denied the request: this webhook denies all requests"
    );
    let bad = json!({"offence": "yes"});
    let status = api.send("POST", &maps(&namespace), &map("bad", &bad)).expect(400);
    let why = "the configmap contains unwanted key and value";
    assert_eq!(status["reason"], why);
    assert_eq!(status["message"], format!("admission webhook \"maps.example.com\" denied the request: {why}"));
    api.create(&maps(&namespace), &map("good", &json!({})));
    let good = format!("{}/good", maps(&namespace));
    let text = json!({"data": bad}).to_string();
    assert_eq!(api.request("PATCH", &good, Some((MERGE, &text))).expect(400)["reason"], why);
    let add = json!([{"op": "add", "path": "/data", "value": bad}]).to_string();
    assert_eq!(api.request("PATCH", &good, Some((JSON_PATCH, &add))).expect(400)["reason"], why);
    let apply = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "good"}, "data": bad}).to_string();
    let by = format!("{good}?fieldManager=me");
    assert_eq!(api.request("PATCH", &by, Some((APPLY, &apply))).expect(400)["reason"], why);
    // A namespace that the selector leaves out.
    let other = place(api, "deny-not");
    api.create(&maps(&other), &map("bad", &bad));
}

// Conformance: Admission webhook, deny attach
fn deny_attachment(api: &Api<'_>) {
    let namespace = place(api, "attach");
    let webhook = start(api, &[]);
    let mut attach = hook("attach", &webhook.at("/no-attach"), &namespace);
    attach["rules"] =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/attach"], "operations": ["CONNECT"]}]);
    configure(api, "validating", "deny-attach", &[attach]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
        {"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"], "stdin": true}]}});
    api.create(&format!("/api/v1/namespaces/{namespace}/pods"), &pod);
    api.ready(&namespace, "p");
    let why = api.cluster.kubectl_error(&["attach", "-n", &namespace, "p", "-i", "-c", "c"]);
    assert!(why.contains("attaching is not allowed"), "{why}");
    let request = &webhook.seen("/no-attach")[0]["request"];
    assert_eq!((&request["operation"], &request["subResource"]), (&json!("CONNECT"), &json!("attach")));
    assert_eq!(request["object"]["container"], "c");
}

// Conformance: Admission webhook, fail closed
fn fail_closed(api: &Api<'_>) {
    let namespace = place(api, "closed");
    let webhook = start(api, &[]);
    let mut client = webhook.at("/x");
    client["caBundle"] = Value::Null;
    configure(api, "validating", "fail-closed", &[hook("closed", &client, &namespace)]);
    let url = format!("{}?timeout=10s", client["url"].as_str().unwrap());
    assert_eq!(
        refused(api, "POST", &maps(&namespace), &map("m", &json!({})), 500),
        format!(
            "Internal error occurred: failed calling webhook \"closed.example.com\": failed to call webhook: Post \
             \"{url}\": tls: failed to verify certificate: x509: certificate signed by unknown authority"
        )
    );
    let nonsense = place(api, "nonsense");
    configure(api, "validating", "nonsense", &[hook("bad", &webhook.at("/nonsense"), &nonsense)]);
    let why = refused(api, "POST", &maps(&nonsense), &map("m", &json!({})), 500);
    let start = "Internal error occurred: failed calling webhook \"bad.example.com\": received invalid webhook \
                 response: \
                 expected response.uid=\"";
    assert!(why.starts_with(start) && why.ends_with("\", got \"other\""), "{why}");
}

// Conformance: Admission webhook, ordered mutation
fn one_after_the_other(api: &Api<'_>) {
    let namespace = place(api, "ordered");
    let webhook = start(api, &[]);
    let hooks = ["1", "2"].map(|n| hook(&format!("add{n}"), &webhook.at(&format!("/add/{n}")), &namespace));
    configure(api, "mutating", "ordered", &hooks);
    let made = api.create(&maps(&namespace), &map("m", &json!({"start": "yes"})));
    assert_eq!(made["data"], json!({"start": "yes", "stage-1": "yes", "stage-2": "yes"}));
    let apply = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n"}, "data": {"start": "yes"}});
    let path = format!("{}/n?fieldManager=me", maps(&namespace));
    let made = api.request("PATCH", &path, Some((APPLY, &apply.to_string()))).expect(201);
    assert_eq!(made["data"]["stage-2"], "yes");
}

fn again_if_needed(api: &Api<'_>) {
    let namespace = place(api, "again");
    let webhook = start(api, &[]);
    // The second runs first, and sees what the first did only when it is called again.
    let mut second = hook("add2", &webhook.at("/add/2"), &namespace);
    let first = hook("add1", &webhook.at("/add/1"), &namespace);
    let path = configure(api, "mutating", "again", &[second.clone(), first.clone()]);
    let made = api.create(&maps(&namespace), &map("never", &json!({"start": "yes"})));
    assert_eq!(made["data"].get("stage-2"), None);
    assert_eq!((webhook.seen("/add/1").len(), webhook.seen("/add/2").len()), (1, 1));
    second["reinvocationPolicy"] = "IfNeeded".into();
    api.edit(&path, |c| c["webhooks"] = json!([second, first]));
    let made = api.create(&maps(&namespace), &map("needed", &json!({"start": "yes"})));
    assert_eq!(made["data"]["stage-2"], "yes");
    assert_eq!((webhook.seen("/add/1").len(), webhook.seen("/add/2").len()), (2, 3));
}

// Conformance: Admission webhook, mutation with defaulting
fn defaults_after_a_mutation(api: &Api<'_>) {
    let namespace = place(api, "defaults");
    let webhook = start(api, &[]);
    let mut init = hook("init", &webhook.at("/init"), &namespace);
    init["rules"] =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]);
    configure(api, "mutating", "init", &[init]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let made = api.create(&format!("/api/v1/namespaces/{namespace}/pods"), &pod);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!((&added["name"], &added["terminationMessagePolicy"]), (&json!("added"), &json!("File")));
}

// Conformance: Admission webhook, admission control not allowed on webhook configuration objects
fn configurations_are_exempt(api: &Api<'_>) {
    let webhook = start(api, &[]);
    let of = |name: &str, path: &str, operation: &str| {
        let mut hook = hook(name, &webhook.at(path), "");
        hook["namespaceSelector"] = json!({});
        hook["rules"] = json!([{"apiGroups": ["admissionregistration.k8s.io"], "apiVersions": ["*"],
            "resources": ["validatingwebhookconfigurations", "mutatingwebhookconfigurations"],
            "operations": [operation]}]);
        hook
    };
    configure(api, "validating", "no-deletion", &[of("no-deletion", "/deny", "DELETE")]);
    configure(api, "mutating", "no-creation", &[of("no-creation", "/label", "CREATE")]);
    for sort in ["validating", "mutating"] {
        let name = format!("dummy-{sort}");
        let path = configure(api, sort, &name, &[]);
        assert_eq!(api.get(&path)["metadata"]["labels"], json!({"of": name}));
        api.delete(&path);
    }
    assert!(webhook.seen("/deny").is_empty() && webhook.seen("/label").is_empty());
}

// Conformance: Admission webhook, honor timeout
fn timeouts(api: &Api<'_>) {
    let webhook = start(api, &[]);
    let namespace = place(api, "timeout");
    let mut slow = hook("slow", &webhook.at("/slow"), &namespace);
    slow["timeoutSeconds"] = 1.into();
    let path = configure(api, "validating", "timeout", std::slice::from_ref(&slow));
    let why = refused(api, "POST", &maps(&namespace), &map("closed", &json!({})), 500);
    assert!(why.ends_with("/slow?timeout=1s\": context deadline exceeded"), "{why}");
    slow["failurePolicy"] = "Ignore".into();
    api.edit(&path, |c| c["webhooks"] = json!([slow]));
    api.create(&maps(&namespace), &map("open", &json!({})));
    slow["timeoutSeconds"] = 30.into();
    slow["failurePolicy"] = "Fail".into();
    api.edit(&path, |c| c["webhooks"] = json!([slow]));
    api.create(&maps(&namespace), &map("patient", &json!({})));
    slow.as_object_mut().unwrap().remove("timeoutSeconds");
    api.edit(&path, |c| c["webhooks"] = json!([slow]));
    assert_eq!(api.get(&path)["webhooks"][0]["timeoutSeconds"], 10);
    api.create(&maps(&namespace), &map("default", &json!({})));
}

// Conformance: Admission webhook, update validating webhook
// Conformance: Admission webhook, update mutating webhook
fn changed_configurations(api: &Api<'_>) {
    let webhook = start(api, &[]);
    for (sort, path) in [("validating", "/no-offence"), ("mutating", "/add/1")] {
        let namespace = place(api, &format!("change-{sort}"));
        let configuration =
            configure(api, sort, &format!("change-{sort}"), &[hook(sort, &webhook.at(path), &namespace)]);
        let acts = |name: &str| {
            let made = api.send("POST", &maps(&namespace), &map(name, &json!({"offence": "yes", "start": "yes"})));
            made.code == 400 || made.json()["data"]["stage-1"] == "yes"
        };
        assert!(acts("a"), "{sort}");
        api.edit(&configuration, |c| c["webhooks"][0]["rules"][0]["operations"] = json!(["UPDATE"]));
        assert!(!acts("b"), "{sort}");
        let patch = json!([{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": ["CREATE"]}]);
        api.patch(&configuration, JSON_PATCH, &patch);
        assert!(acts("c"), "{sort}");
    }
}

// Conformance: Admission webhook, list validating webhooks
// Conformance: Admission webhook, list mutating webhooks
fn many_configurations(api: &Api<'_>) {
    let webhook = start(api, &[]);
    for (sort, path) in [("validating", "/no-offence"), ("mutating", "/add/1")] {
        let namespace = place(api, &format!("many-{sort}"));
        let all = format!("{KINDS}/{sort}webhookconfigurations");
        for n in 0..10 {
            let hooks = [hook(sort, &webhook.at(path), &namespace)];
            let object =
                json!({"metadata": {"name": format!("many-{n}"), "labels": {"many": sort}}, "webhooks": hooks});
            api.create(&all, &object);
        }
        let selected = format!("{all}?labelSelector=many%3D{sort}");
        assert_eq!(api.list(&selected).len(), 10);
        let acts = |name: &str| {
            let made = api.send("POST", &maps(&namespace), &map(name, &json!({"offence": "yes", "start": "yes"})));
            made.code == 400 || made.json()["data"]["stage-1"] == "yes"
        };
        assert!(acts("a"), "{sort}");
        api.delete(&selected);
        assert!(api.list(&selected).is_empty());
        assert!(!acts("b"), "{sort}");
    }
}

fn what_is_reviewed(api: &Api<'_>) {
    let namespace = place(api, "reviewed");
    let webhook = start(api, &[]);
    let mut warn = hook("warn", &webhook.at("/warn"), &namespace);
    warn["rules"][0]["operations"] = json!(["*"]);
    warn["matchConditions"] =
        json!([{"name": "me", "expression": "request.name == 'm' && request.userInfo.username != 'bob'"}]);
    configure(api, "validating", "reviewed", &[warn]);
    let path = maps(&namespace);
    let made = api.send("POST", &path, &map("m", &json!({"k": "v"})));
    made.expect(201);
    assert!(made.head.to_lowercase().contains("warning: 299 - \"mind the gap\""), "{}", made.head);
    api.create(&path, &map("n", &json!({})));
    let one = format!("{path}/m");
    api.patch(&one, MERGE, &json!({"data": {"k": "w"}}));
    let gone = api.request("DELETE", &one, None);
    gone.expect(200);
    assert!(gone.head.to_lowercase().contains("mind the gap"), "{}", gone.head);
    let seen = webhook.seen("/warn");
    let operations: Vec<&str> = seen.iter().map(|r| r["request"]["operation"].as_str().unwrap()).collect();
    assert_eq!(operations, ["CREATE", "UPDATE", "DELETE"]);
    let [create, update, delete] = [0, 1, 2].map(|i| &seen[i]["request"]);
    assert_eq!((&create["oldObject"], &delete["object"]), (&Value::Null, &Value::Null));
    assert_eq!((&update["oldObject"]["data"]["k"], &update["object"]["data"]["k"]), (&json!("v"), &json!("w")));
    assert_eq!(delete["oldObject"]["data"]["k"], "w");
    assert!(create["object"]["metadata"]["uid"].is_string());
    assert_eq!(
        (&delete["options"]["kind"], &create["options"]["kind"]),
        (&json!("DeleteOptions"), &json!("CreateOptions"))
    );
}

fn dry_runs(api: &Api<'_>) {
    let namespace = place(api, "dry");
    let webhook = start(api, &[]);
    configure(api, "validating", "dry", &[hook("dry", &webhook.at("/x"), &namespace)]);
    api.create(&format!("{}?dryRun=All", maps(&namespace)), &map("m", &json!({})));
    let request = &webhook.seen("/x")[0]["request"];
    assert_eq!((&request["dryRun"], &request["options"]["dryRun"]), (&json!(true), &json!(["All"])));
    assert_eq!(api.try_get(&format!("{}/m", maps(&namespace))).code, 404);
}

fn through_a_service(api: &Api<'_>) {
    let namespace = place(api, "service");
    let name = format!("hook.{namespace}.svc");
    let webhook = start(api, &[&name]);
    let services = format!("/api/v1/namespaces/{namespace}/services");
    let made = api.create(&services, &json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"port": 8443}]}}));
    // Endpoints by hand: the webhook is no pod.
    let node = api.get("/api/v1/nodes/node-1");
    let addresses = node["status"]["addresses"].as_array().unwrap();
    let address = addresses.iter().find(|a| a["type"] == "InternalIP").unwrap()["address"].clone();
    let slice = json!({"metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
        "addressType": "IPv4", "endpoints": [{"addresses": [address]}],
        "ports": [{"name": "", "port": webhook.port()}]});
    api.create(&format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"), &slice);
    assert!(made["spec"]["clusterIP"].is_string());
    let client = json!({"service": {"namespace": namespace, "name": "hook", "path": "/label", "port": 8443},
        "caBundle": webhook.ca});
    configure(api, "mutating", "through-service", &[hook("label", &client, &namespace)]);
    api.cluster.wait_for("the Service is reached", || {
        let made = api.send("POST", &maps(&namespace), &json!({"metadata": {"generateName": "m-"}}));
        (made.code == 201).then(|| assert_eq!(made.json()["metadata"]["labels"]["mutated"], "yes"))
    });
    let mut other = client;
    other["service"]["name"] = "nothing".into();
    let elsewhere = place(api, "no-service");
    configure(api, "validating", "no-service", &[hook("label", &other, &elsewhere)]);
    let why = refused(api, "POST", &maps(&elsewhere), &map("m", &json!({})), 500);
    assert!(why.ends_with("/label?timeout=10s\": service \"nothing\" not found"), "{why}");
}
