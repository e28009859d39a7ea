//! What upstream's conformance suite asks of kinds that are data to the API server, and what kubectl makes of them. Each
//! behaviour stands above its scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, MERGE, name, names};
use serde_json::{Value, json};

#[test]
fn kinds_that_are_data() {
    let cluster = Cluster::start();
    let all = scenarios![
        ingresses,
        ingress_classes,
        ingresses_by_kubectl,
        runtime_classes,
        pods_of_runtime_classes,
        the_life_of_a_template,
        templates_are_replaced_and_deleted_together,
        ranges_of_services,
        addresses,
        flow_schemas,
        priority_levels,
        policies_that_judge,
        bindings_of_policies_that_judge,
        policies_that_change,
        bindings_of_policies_that_change,
        components,
        classes_of_devices,
        claims_of_devices,
        templates_of_claims,
        slices_of_devices,
        rules_that_taint_devices,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// Goes with a resource of a group through everything that the API offers. `make` gives an object of a name, `of` is the
/// collection's path. Returns the path of an object that is there at the end.
fn operations(api: &Api<'_>, group: &str, version: &str, of: &str, make: &dyn Fn(&str) -> Value) {
    let plural = of.rsplit('/').next().unwrap();
    let groups = api.get("/apis");
    let found = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == group).cloned();
    let versions = found.unwrap_or_else(|| panic!("{group} in {groups}"))["versions"].clone();
    assert!(versions.as_array().unwrap().iter().any(|v| v["version"] == version), "{versions}");
    let listed = api.get(&format!("/apis/{group}"))["versions"].clone();
    assert!(listed.as_array().unwrap().iter().any(|v| v["version"] == version), "{listed}");
    let resources = api.get(&format!("/apis/{group}/{version}"));
    let found = resources["resources"].as_array().unwrap().iter().find(|r| r["name"] == plural).cloned();
    let found = found.unwrap_or_else(|| panic!("{plural} in {resources}"));
    for verb in ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"] {
        assert!(found["verbs"].as_array().unwrap().contains(&json!(verb)), "{verb} in {found}");
    }

    let special = format!("{of}?labelSelector=special%3D{plural}");
    let watch = api.watch(&special);
    let with_label = |name: &str| {
        let mut object = make(name);
        object["metadata"]["labels"]["special"] = json!(plural);
        object
    };
    let created: Vec<Value> =
        ["a", "b", "c"].iter().map(|n| api.create(of, &with_label(&format!("{plural}-{n}")))).collect();
    // Controllers may have written the status of one before the next was made.
    for object in &created {
        watch.find("ADDED", |o| name(o) == name(object));
    }
    let one = format!("{of}/{}", name(&created[0]));
    assert_eq!(api.get(&one)["metadata"]["uid"], created[0]["metadata"]["uid"]);
    assert_eq!(api.list(&special).len(), 3);
    let patched = api.patch(&one, MERGE, &json!({"metadata": {"annotations": {"patched": "true"}}}));
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
    watch.find("MODIFIED", |o| o["metadata"]["annotations"]["patched"] == "true");
    let updated = api.edit(&one, |o| o["metadata"]["annotations"]["updated"] = json!("true"));
    assert_eq!(updated["metadata"]["annotations"]["updated"], "true");
    watch.find("MODIFIED", |o| o["metadata"]["annotations"]["updated"] == "true");
    api.delete(&one);
    watch.find("DELETED", |o| name(o) == name(&created[0]));
    api.gone(&one);
    assert_eq!(api.list(&special).len(), 2);
    api.delete(&special);
    api.until(&special, "empty", |l| l["items"].as_array().unwrap().is_empty());
}

fn ingresses_of(namespace: &str) -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses")
}

// Conformance: Ingress API
fn ingresses(api: &Api<'_>) {
    let namespace = api.namespace("ingresses");
    let backend = json!({"service": {"name": "default-backend", "port": {"name": "", "number": 8080}}});
    let make = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"defaultBackend": backend, "rules": [
            {"host": "foo.bar.com", "http": {"paths": [{"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "test-backend", "port": {"number": 8080}}}}]}}]}})
    };
    operations(api, "networking.k8s.io", "v1", &ingresses_of(&namespace), &make);
    api.create(&ingresses_of(&namespace), &make("status"));
    assert_eq!(
        names(&api.list("/apis/networking.k8s.io/v1/ingresses?fieldSelector=metadata.name%3Dstatus")),
        ["status"]
    );
    let status = format!("{}/status/status", ingresses_of(&namespace));
    let balancer = |ip: &str| json!({"ingress": [{"ip": ip}]});
    let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"loadBalancer": balancer("169.1.1.1")}});
    let patched = api.patch(&status, MERGE, &patch);
    assert_eq!(patched["status"]["loadBalancer"], balancer("169.1.1.1"));
    assert_eq!(patched["metadata"]["annotations"]["patchedstatus"], "true");
    let updated = api.edit(&status, |i| {
        i["status"]["loadBalancer"] = json!({"ingress": [{"ip": "169.1.1.2"}, {"ip": "169.1.1.3"}]})
    });
    assert_eq!(updated["status"]["loadBalancer"]["ingress"][1]["ip"], "169.1.1.3");
    assert_eq!(api.get(&status)["status"], updated["status"]);
    // The status of an Ingress leaves what it asks for alone.
    let spec = api.get(&status)["spec"].clone();
    assert_eq!(api.edit(&status, |i| i["spec"]["rules"] = json!([]))["spec"], spec);
}

// Conformance: IngressClass API
fn ingress_classes(api: &Api<'_>) {
    let classes = "/apis/networking.k8s.io/v1/ingressclasses";
    let make = |name: &str| json!({"metadata": {"name": name}, "spec": {"controller": "example.com/controller"}});
    operations(api, "networking.k8s.io", "v1", classes, &make);
}

fn ingresses_by_kubectl(api: &Api<'_>) {
    let (cluster, namespace) = (api.cluster, api.namespace("kubectl-ingress"));
    let ns = ["-n", &namespace];
    let kubectl = |arguments: &[&str]| cluster.kubectl(&[&ns[..], arguments].concat());
    let rule = "--rule=foo.com/bar*=web:8080,tls=cert";
    assert_eq!(
        kubectl(&["create", "ingress", "simple", "--class=public", rule, "--default-backend=other:http"]),
        "ingress.networking.k8s.io/simple created\n"
    );
    let row = kubectl(&["get", "ingress", "simple", "--no-headers"]);
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..4], ["simple", "public", "foo.com", "80,"], "{row}");
    let described = kubectl(&["describe", "ingress", "simple"]);
    for wanted in
        ["Ingress Class:    public", "Default backend:  other:http", "cert terminates foo.com", "/bar   web:8080"]
    {
        assert!(described.contains(wanted), "{wanted:?} in\n{described}");
    }
    // A class that is the default is given to those that name none.
    let class = json!({"metadata": {"name": "house", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": "example.com/house", "parameters": {"apiGroup": "k8s.example.com", "kind": "Settings",
            "name": "s", "scope": "Cluster"}}});
    api.create("/apis/networking.k8s.io/v1/ingressclasses", &class);
    api.until("/apis/networking.k8s.io/v1/ingressclasses/house", "there", |_| true);
    kubectl(&["create", "ingress", "plain", "--rule=/=web:80"]);
    assert_eq!(api.get(&format!("{}/plain", ingresses_of(&namespace)))["spec"]["ingressClassName"], "house");
    let row = cluster.kubectl(&["get", "ingressclass", "house", "--no-headers"]);
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..3], ["house", "example.com/house", "Settings.k8s.example.com/s"], "{row}");
    assert!(cluster.kubectl(&["describe", "ingressclass", "house"]).contains("Controller:   example.com/house"));
    let told = cluster.kubectl_error(&[&ns[..], &["create", "ingress", "bad", "--rule=foo.com/=UP:80"]].concat());
    assert!(told.contains("spec.rules[0].http.paths[0].backend.service.name: Invalid value: \"UP\""), "{told}");
    api.delete("/apis/networking.k8s.io/v1/ingressclasses/house");
}

const CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";

// Conformance: RuntimeClass API
fn runtime_classes(api: &Api<'_>) {
    operations(api, "node.k8s.io", "v1", CLASSES, &|name| json!({"metadata": {"name": name}, "handler": "gantry"}));
    let told = api.send("POST", CLASSES, &json!({"metadata": {"name": "bad"}, "handler": "No_Label"})).expect(422);
    assert!(told["message"].as_str().unwrap().contains("handler: Invalid value: \"No_Label\""), "{told}");
}

// Conformance: Can schedule a pod requesting existing RuntimeClass.
// Conformance: Pod with the deleted RuntimeClass is rejected.
// Conformance: Pod with the non-existing RuntimeClass is rejected.
// Conformance: RuntimeClass Overhead field must be respected.
fn pods_of_runtime_classes(api: &Api<'_>) {
    let namespace = api.namespace("runtime-class");
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let pod = |name: &str, class: &str| {
        json!({"metadata": {"name": name}, "spec": {"runtimeClassName": class, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"]}]}})
    };
    let refused = |name: &str, class: &str| {
        let told = api.send("POST", &pods, &pod(name, class)).expect(403)["message"].clone();
        assert_eq!(told, format!("pods \"{name}\" is forbidden: pod rejected: RuntimeClass \"{class}\" not found"));
    };
    refused("p", "nowhere");
    api.create(CLASSES, &json!({"metadata": {"name": "plain"}, "handler": "gantry"}));
    api.create(&pods, &pod("plain", "plain"));
    assert_eq!(api.ready(&namespace, "plain")["spec"]["overhead"], Value::Null);

    let overhead = json!({"cpu": "10m", "memory": "1Mi"});
    let scheduling = json!({"nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [
        {"key": "foo", "operator": "Equal", "value": "bar", "effect": "NoSchedule"}]});
    let class = json!({"metadata": {"name": "heavy"}, "handler": "gantry", "overhead": {"podFixed": overhead}, "scheduling": scheduling});
    api.create(CLASSES, &class);
    let made = api.create(&pods, &pod("heavy", "heavy"));
    assert_eq!(made["spec"]["overhead"], overhead);
    assert_eq!(made["spec"]["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    assert!(made["spec"]["tolerations"].as_array().unwrap().contains(&scheduling["tolerations"][0]), "{made}");
    api.ready(&namespace, "heavy");
    let described = api.cluster.kubectl(&["describe", "node", "node-1"]);
    let row = described.lines().find(|l| l.contains(" heavy ")).unwrap_or_else(|| panic!("{described}"));
    assert!(row.contains("10m ("), "the overhead counts on the node: {row}");

    api.delete(&format!("{CLASSES}/plain"));
    api.gone(&format!("{CLASSES}/plain"));
    refused("q", "plain");
    // A runtime that the node does not have.
    api.create(CLASSES, &json!({"metadata": {"name": "other"}, "handler": "kata"}));
    api.create(&pods, &pod("other", "other"));
    let events = format!("/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3Dother");
    let told = api.until(&events, "why it does not start", |l| {
        l["items"].as_array().unwrap().iter().any(|e| e["reason"] == "FailedCreatePodSandBox")
    });
    assert!(told.to_string().contains("no runtime for \\\"kata\\\" is configured"), "{told}");
}

fn templates_of(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/podtemplates")
}

fn template(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"podtemplate-static": "true"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "nginx", "image": "nginx"}]}}})
}

// Conformance: PodTemplate lifecycle
fn the_life_of_a_template(api: &Api<'_>) {
    let all = templates_of(&api.namespace("template-life"));
    api.create(&all, &template("one"));
    let one = format!("{all}/one");
    let patch = json!({"metadata": {"labels": {"podtemplate": "patched"}}});
    api.patch(&one, MERGE, &patch);
    assert_eq!(api.get(&one)["metadata"]["labels"]["podtemplate"], "patched");
    let everywhere = "/api/v1/podtemplates?labelSelector=podtemplate%3Dpatched";
    assert_eq!(names(&api.list(everywhere)), ["one"]);
    api.delete(&one);
    api.gone(&one);
    assert!(api.list(everywhere).is_empty());
}

// Conformance: PodTemplate, replace
// Conformance: PodTemplate, delete a collection
fn templates_are_replaced_and_deleted_together(api: &Api<'_>) {
    let all = templates_of(&api.namespace("templates"));
    for name in ["one", "two", "three"] {
        api.create(&all, &template(name));
    }
    let replaced =
        api.edit(&format!("{all}/one"), |t| t["metadata"]["annotations"] = json!({"updated": "podtemplates"}));
    assert_eq!(replaced["metadata"]["annotations"]["updated"], "podtemplates");
    let selected = format!("{all}?labelSelector=podtemplate-static%3Dtrue");
    assert_eq!(api.list(&selected).len(), 3);
    api.delete(&selected);
    assert!(api.list(&selected).is_empty());
}

// Conformance: ServiceCIDR API
fn ranges_of_services(api: &Api<'_>) {
    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    let default = api.get(&format!("{ranges}/kubernetes"));
    assert_eq!(default["spec"]["cidrs"], json!(["10.96.0.0/16"]));
    let status = api.get(&format!("{ranges}/kubernetes/status"));
    assert_eq!((&status["kind"], &status["metadata"]["uid"]), (&json!("ServiceCIDR"), &default["metadata"]["uid"]));
    let resources = api.get("/apis/networking.k8s.io/v1").to_string();
    assert!(resources.contains("servicecidrs/status"), "{resources}");
    let row = api.cluster.kubectl(&["get", "servicecidr", "kubernetes", "--no-headers"]);
    assert!(row.starts_with("kubernetes   10.96.0.0/16   "), "{row}");
}

// Conformance: IPAddress API
fn addresses(api: &Api<'_>) {
    let all = "/apis/networking.k8s.io/v1/ipaddresses";
    let address = |name: &str, kind: &str| {
        json!({"metadata": {"name": name, "labels": {"type": kind}}, "spec": {"parentRef":
            {"group": "mygroup", "resource": "myresources", "namespace": "foo", "name": "bar"}}})
    };
    let one = format!("{all}/255.255.255.255");
    api.create(all, &address("255.255.255.255", "broadcast"));
    api.create(all, &address("fe80::42:1dff:fe84:f9e2", "link-local"));
    let patched = api.patch(&one, MERGE, &json!({"metadata": {"annotations": {"patched": "true"}}}));
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
    api.edit(&one, |a| a["metadata"]["annotations"]["updated"] = json!("true"));
    let mut moved = api.get(&one);
    moved["spec"]["parentRef"]["name"] = json!("other");
    api.send("PUT", &one, &moved).expect(422);
    assert_eq!(names(&api.list(&format!("{all}?labelSelector=type%3Dbroadcast"))), ["255.255.255.255"]);
    let row = api.cluster.kubectl(&["get", "ip", "255.255.255.255", "--no-headers"]);
    assert!(row.starts_with("255.255.255.255   myresources.mygroup/foo/bar"), "{row}");
    api.delete(&one);
    api.delete(&format!("{all}?labelSelector=type%3Dlink-local"));
    assert!(api.list(&format!("{all}?labelSelector=type%3Dlink-local")).is_empty());
    let told = api.send("POST", all, &address("10.0.0.01", "bad")).expect(422)["message"].clone();
    assert!(told.as_str().unwrap().contains("must not have leading 0s"), "{told}");
}

/// The status of an object can be read and changed by itself.
fn has_status(api: &Api<'_>, of: &str, object: &Value, status: &Value) {
    let path = format!("{of}/{}/status", name(&api.create(of, object)));
    assert_eq!(api.get(&path)["metadata"]["name"], object["metadata"]["name"]);
    let patched = api.patch(&path, MERGE, &json!({"status": status}));
    assert_eq!(patched["status"]["conditions"], status["conditions"]);
    api.delete(path.trim_end_matches("/status"));
}

const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";

fn told(kind: &str) -> Value {
    json!({"conditions": [{"type": kind, "status": "False", "reason": "Told", "message": "m",
        "lastTransitionTime": "2026-01-02T03:04:05Z"}]})
}

// Conformance: Priority and Fairness FlowSchema API
fn flow_schemas(api: &Api<'_>) {
    let of = format!("/apis/{FLOW}/v1/flowschemas");
    let make = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"matchingPrecedence": 10000,
            "priorityLevelConfiguration": {"name": "global-default"}, "distinguisherMethod": {"type": "ByUser"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": "example-e2e-non-existent-user"}}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}})
    };
    operations(api, FLOW, "v1", &of, &make);
    has_status(api, &of, &make("with-status"), &told("Example"));
}

// Conformance: Priority and Fairness PriorityLevelConfiguration API
fn priority_levels(api: &Api<'_>) {
    let of = format!("/apis/{FLOW}/v1/prioritylevelconfigurations");
    let make = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 2,
            "limitResponse": {"type": "Reject"}}}})
    };
    operations(api, FLOW, "v1", &of, &make);
    has_status(api, &of, &make("with-status"), &told("Example"));
}

/// What a policy that looks at nothing looks at.
fn nothing() -> Value {
    json!({"resourceRules": [{"apiGroups": ["nowhere.example.com"], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["nothings"]}]})
}

// Conformance: ValidatingAdmissionPolicy API
fn policies_that_judge(api: &Api<'_>) {
    let of = format!("/apis/{ADMISSION}/v1/validatingadmissionpolicies");
    let make = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"matchConstraints": nothing(),
            "validations": [{"expression": "true"}]}})
    };
    operations(api, ADMISSION, "v1", &of, &make);
    has_status(api, &of, &make("with-status"), &told("Example"));
}

// Conformance: ValidatingAdmissionPolicyBinding API
fn bindings_of_policies_that_judge(api: &Api<'_>) {
    let of = format!("/apis/{ADMISSION}/v1/validatingadmissionpolicybindings");
    operations(
        api,
        ADMISSION,
        "v1",
        &of,
        &|name| json!({"metadata": {"name": name}, "spec": {"policyName": "absent", "validationActions": ["Deny"]}}),
    );
}

// Conformance: MutatingAdmissionPolicy API
fn policies_that_change(api: &Api<'_>) {
    let of = format!("/apis/{ADMISSION}/v1/mutatingadmissionpolicies");
    operations(api, ADMISSION, "v1", &of, &|name| {
        json!({"metadata": {"name": name}, "spec": {"matchConstraints": nothing(), "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch":
                {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'a': 'b'}}]"}}]}})
    });
}

// Conformance: MutatingAdmissionPolicyBinding API
fn bindings_of_policies_that_change(api: &Api<'_>) {
    let of = format!("/apis/{ADMISSION}/v1/mutatingadmissionpolicybindings");
    operations(
        api,
        ADMISSION,
        "v1",
        &of,
        &|name| json!({"metadata": {"name": name}, "spec": {"policyName": "absent"}}),
    );
}

fn components(api: &Api<'_>) {
    let cluster = api.cluster;
    let healthy = || {
        let rows = cluster.kubectl(&["get", "cs", "--no-headers"]);
        let cells: Vec<Vec<&str>> = rows.lines().map(|l| l.split_whitespace().collect()).collect();
        cells == [["scheduler", "Healthy", "ok"], ["controller-manager", "Healthy", "ok"], ["etcd-0", "Healthy", "ok"]]
    };
    cluster.wait_for("all components healthy", || healthy().then_some(()));
    let one = api.try_get("/api/v1/componentstatuses/scheduler");
    assert_eq!(one.expect(200)["conditions"][0]["type"], "Healthy");
    assert!(one.head.contains("v1 ComponentStatus is deprecated in v1.19+"), "{}", one.head);
    let told = api.try_get("/api/v1/componentstatuses/nobody").expect(500)["message"].clone();
    assert_eq!(told, "Component not found: nobody");
}

const DEVICES: &str = "resource.k8s.io";

fn devices() -> Value {
    json!({"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "class"}}]}})
}

// Conformance: CRUD Tests resource.k8s.io/v1 DeviceClass
fn classes_of_devices(api: &Api<'_>) {
    let of = format!("/apis/{DEVICES}/v1/deviceclasses");
    operations(api, DEVICES, "v1", &of, &|name| json!({"metadata": {"name": name}, "spec": {}}));
}

// Conformance: CRUD Tests resource.k8s.io/v1 ResourceClaim
fn claims_of_devices(api: &Api<'_>) {
    let namespace = api.namespace("device-claims");
    let of = format!("/apis/{DEVICES}/v1/namespaces/{namespace}/resourceclaims");
    let make = |name: &str| json!({"metadata": {"name": name}, "spec": devices()});
    operations(api, DEVICES, "v1", &of, &make);
    api.create(&of, &make("with-status"));
    let all = api.list(&format!("/apis/{DEVICES}/v1/resourceclaims?fieldSelector=metadata.name%3Dwith-status"));
    assert_eq!(names(&all), ["with-status"]);
    let result = json!({"request": "one", "driver": "driver.example.com", "pool": "pool", "device": "device"});
    let allocated = json!({"allocation": {"devices": {"results": [result]}}});
    let status = format!("{of}/with-status/status");
    assert_eq!(api.patch(&status, MERGE, &json!({"status": allocated}))["status"], allocated);
    assert_eq!(api.get(&status)["status"], allocated);
    let told = json!([{"driver": "driver.example.com", "pool": "pool", "device": "device", "data": {"a": 1}}]);
    assert_eq!(api.edit(&status, |c| c["status"]["devices"] = told.clone())["status"]["devices"], told);
}

// Conformance: CRUD Tests resource.k8s.io/v1 ResourceClaimTemplate
fn templates_of_claims(api: &Api<'_>) {
    let namespace = api.namespace("device-templates");
    let of = format!("/apis/{DEVICES}/v1/namespaces/{namespace}/resourceclaimtemplates");
    let make = |name: &str| json!({"metadata": {"name": name}, "spec": {"spec": devices()}});
    operations(api, DEVICES, "v1", &of, &make);
    api.create(&of, &make("everywhere"));
    let all = api.list(&format!("/apis/{DEVICES}/v1/resourceclaimtemplates?fieldSelector=metadata.name%3Deverywhere"));
    assert_eq!(names(&all), ["everywhere"]);
}

// Conformance: CRUD Tests resource.k8s.io/v1 ResourceSlice
fn slices_of_devices(api: &Api<'_>) {
    let of = format!("/apis/{DEVICES}/v1/resourceslices");
    let make = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"driver": "driver.example.com", "allNodes": true,
            "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "device", "attributes": {"model": {"string": "a"}}}]}})
    };
    operations(api, DEVICES, "v1", &of, &make);
}

// Conformance: CRUD Tests resource.k8s.io/v1 DeviceTaintRule
fn rules_that_taint_devices(api: &Api<'_>) {
    let of = format!("/apis/{DEVICES}/v1/devicetaintrules");
    // Its controller has nothing to say of a rule with this effect but once.
    let make = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"deviceSelector": {"driver": "driver.example.com"},
            "taint": {"key": "example.com/broken", "effect": "NoSchedule"}}})
    };
    operations(api, DEVICES, "v1", &of, &make);
    api.create(&of, &make("with-status"));
    let status = format!("{of}/with-status/status");
    let told = |s: &Value| s["status"]["conditions"][0]["type"] == "EvictionInProgress";
    api.until(&status, "what the controller says", told);
    let mine = json!({"type": "Mine", "status": "True", "reason": "Test", "message": "told by hand",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let edited = api.edit(&status, |r| r["status"]["conditions"].as_array_mut().unwrap().push(mine.clone()));
    assert!(edited["status"]["conditions"].as_array().unwrap().contains(&mine), "{edited}");
    assert_eq!(api.get(&status)["status"], edited["status"]);
}
