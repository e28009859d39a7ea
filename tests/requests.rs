//! What requests are answered that come to the wrong place or make an object by writing over it, what the server
//! measures meanwhile, and what it says of policies whose expressions do not fit.

mod cluster;

use cluster::Cluster;
use cluster::api::Api;
use cluster::measured::{Metric, tells};
use serde_json::{Value, json};

#[test]
fn requests() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let tokens = cluster.data_dir().join("tokens.csv");
    std::fs::write(&tokens, "agents-own-token,agent,1\n").unwrap();
    cluster.add_options(&["--token-auth-file", tokens.to_str().unwrap()]);
    cluster.up();
    let api = Api::new(&cluster);
    methods_and_places(&api);
    objects_made_by_an_update(&api);
    types_in_policies(&api);
    measurements(&api);
    acting_for_this_alone(&api);
}

/// KEP-5284: a user acts as another to list ConfigMaps, and to do nothing else.
fn acting_for_this_alone(api: &Api<'_>) {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let cluster = |name: &str, rules: Value| {
        api.create(&format!("{rbac}/clusterroles"), &json!({"metadata": {"name": name}, "rules": rules}));
    };
    let bind = |name: &str, user: &str| {
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
        let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]);
        let binding = json!({"metadata": {"name": name}, "roleRef": role, "subjects": subjects});
        api.create(&format!("{rbac}/clusterrolebindings"), &binding);
    };
    cluster(
        "acts-as-reader",
        json!([
            {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["reader"],
                "verbs": ["impersonate:user-info"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["impersonate-on:user-info:list"]},
        ]),
    );
    cluster("reads", json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]));
    bind("acts-as-reader", "agent");
    bind("reads", "reader");
    // The harness acts as the agent by headers already, so the agent brings a token of its own.
    let agent = api.with_token("agents-own-token").with_header("Impersonate-User: reader");
    api.cluster.wait_for("the roles", || (agent.try_get(MAPS).code == 200).then_some(()));
    let refused = agent.try_get(&format!("{MAPS}/m")).expect(403);
    assert_eq!(
        refused["message"],
        "configmaps \"m\" is forbidden: User \"agent\" cannot impersonate-on:user-info:get resource \"configmaps\" in API \
         group \"\" in the namespace \"default\""
    );
    let nameless = api.with_header("Impersonate-Group: g").try_get(MAPS).expect(400);
    assert!(nameless["message"].as_str().unwrap().ends_with(" without impersonating a user name"), "{nameless}");
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";

fn methods_and_places(api: &Api<'_>) {
    let map = json!({"metadata": {"name": "m"}});
    api.create(MAPS, &map);
    let item = format!("{MAPS}/m");
    let refused = [("POST", item.as_str()), ("PUT", MAPS), ("PATCH", MAPS), ("POST", "/api/v1/configmaps")];
    for (method, path) in refused {
        let status = api.send(method, path, &map).expect(405);
        assert_eq!(
            (&status["reason"], &status["details"]),
            (&json!("MethodNotAllowed"), &json!({})),
            "{method} {path}"
        );
        assert_eq!(status["message"], "the server does not allow this method on the requested resource");
    }
    // Bodies that are not to come would break off HTTP/2.
    for (path, code) in [(item.as_str(), 405), (MAPS, 405), ("/version", 405), ("/apis", 405), ("/readyz", 200)] {
        let head = api.over_http2().request("HEAD", path, None);
        assert_eq!((head.code, head.text.as_str()), (code, ""), "{path}: {}", head.head);
    }

    let why = "Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax";
    let wrong =
        |path: &str, code: u16| api.try_get(&format!("{path}resourceVersion=abc")).expect(code)["message"].clone();
    assert_eq!(wrong(&format!("{item}?"), 500), format!("resourceVersion: {why}"));
    assert_eq!(wrong(&format!("{MAPS}?"), 400), format!("invalid resource version: resourceVersion: {why}"));
    let watched = format!("{MAPS}?watch=1&");
    assert_eq!(wrong(&watched, 422), format!("configmaps \"\" is invalid: resourceVersion: {why}"));

    // A token for an account that is no more, though there is another of its name.
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let account = api.get("/api/v1/namespaces/default/serviceaccounts/default");
    let own = account["metadata"]["uid"].as_str().unwrap();
    let asked = |uid: &str| api.send("POST", token, &json!({"metadata": {"uid": uid}, "spec": {}}));
    asked(own).expect(201);
    assert_eq!(
        asked("gone").expect(409)["message"],
        format!(
            "Operation cannot be fulfilled on TokenRequest.authentication.k8s.io \"default\": the UID in the token \
             request (gone) does not match the UID of the service account ({own})"
        )
    );

    let shaped = |path: &str, shape: &str| {
        api.with_header(&format!("Accept: application/json;as={shape};g=meta.k8s.io;v=v1")).try_get(path)
    };
    let told = |path: &str, shape: &str| shaped(path, shape).expect(406)["message"].clone();
    assert_eq!(
        told(&item, "PartialObjectMetadataList"),
        "you requested PartialObjectMetadataList, but the requested object is not a list (*core.ConfigMap)"
    );
    assert_eq!(
        told(MAPS, "PartialObjectMetadata"),
        "you requested PartialObjectMetadata, but the requested object is a list (*core.ConfigMapList)"
    );
    assert_eq!(shaped(MAPS, "PartialObjectMetadataList").expect(200)["kind"], "PartialObjectMetadataList");
    assert_eq!(
        shaped(&format!("{MAPS}?includeObject=Some"), "Table").expect(400)["message"],
        "Unable to convert to Table as requested: includeObject: Invalid value: \"Some\": must be 'Metadata', \
         'Object', 'None', or empty"
    );

    let large = json!({"metadata": {"name": "large"}, "data": {"a": "x".repeat(1 << 20), "b": "y"}});
    let status = api.send("POST", MAPS, &large).expect(422);
    let told = "[]: Too long: may not be more than 1048576 bytes";
    assert_eq!(status["message"], format!("ConfigMap \"large\" is invalid: {told}"));
    assert_eq!(status["details"]["causes"][0]["field"], "[]");
}

fn objects_made_by_an_update(api: &Api<'_>) {
    let role = |verbs: &[&str]| {
        let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": verbs});
        json!({"metadata": {"name": "made"}, "rules": [rule]})
    };
    let bind = |group: &str| {
        json!({"metadata": {"name": "made"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "view"}, "subjects": [{"kind": "Group", "name": group, "apiGroup": "rbac.authorization.k8s.io"}]})
    };
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let made = [
        (ROLES.to_owned(), role(&["get"])),
        (format!("{rbac}/namespaces/default/rolebindings"), bind("a")),
        (format!("{rbac}/clusterroles"), role(&["get"])),
        (format!("{rbac}/clusterrolebindings"), bind("a")),
        ("/apis/node.k8s.io/v1/runtimeclasses".to_owned(), json!({"metadata": {"name": "made"}, "handler": "runc"})),
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases".to_owned(), json!({"metadata": {"name": "made"}})),
    ];
    for (collection, object) in &made {
        let path = format!("{collection}/made");
        assert_eq!(api.send("PUT", &path, object).code, 201, "{path}");
        // These are not changed by who does not say which version of them.
        let again = if path.contains("/leases/") || path.contains("/runtimeclasses/") { 422 } else { 200 };
        assert_eq!(api.send("PUT", &path, object).code, again, "{path}");
    }
    api.send("PUT", &format!("{MAPS}/made"), &json!({"metadata": {"name": "made"}})).expect(404);

    // Nobody gives more than they have, however they write it; and who may update only may not create.
    let rules =
        json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create", "update"]}]);
    api.create(&format!("{rbac}/clusterroles"), &json!({"metadata": {"name": "writer"}, "rules": rules}));
    let mut binding = bind("writers");
    binding["metadata"]["name"] = "writers".into();
    binding["roleRef"]["name"] = "writer".into();
    api.create(&format!("{rbac}/namespaces/default/rolebindings"), &binding);
    let writer = api.impersonate("w", &["writers"]);
    let other = |name: &str| format!("{ROLES}/{name}");
    let mut wanted = role(&["delete"]);
    wanted["metadata"]["name"] = "more".into();
    let told = writer.send("PUT", &other("more"), &wanted).expect(403)["message"].as_str().unwrap().to_owned();
    assert!(told.contains("is attempting to grant RBAC permissions not currently held"), "{told}");
    wanted["rules"] = json!([]);
    assert_eq!(writer.send("PUT", &other("more"), &wanted).code, 201);
    api.edit(&format!("{rbac}/clusterroles/writer"), |role| role["rules"][0]["verbs"] = json!(["update"]));
    wanted["metadata"]["name"] = "another".into();
    let told = writer.send("PUT", &other("another"), &wanted).expect(403)["message"].as_str().unwrap().to_owned();
    assert!(told.contains("cannot create resource \"roles\""), "{told}");
}

fn policy(name: &str, rule: &Value, expressions: &[&str]) -> Value {
    let validations: Vec<Value> = expressions.iter().map(|e| json!({"expression": e})).collect();
    let constraints = json!({"resourceRules": [rule]});
    json!({"metadata": {"name": name}, "spec": {"matchConstraints": constraints, "validations": validations}})
}

/// What upstream's tests of ValidatingAdmissionPolicy expect of type checking, of built-in kinds and of custom resources.
fn types_in_policies(api: &Api<'_>) {
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let rule = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": resources});
    let checked = |name: &str, generation: u64| {
        api.cluster.wait_for(&format!("the types of {name}"), || {
            let status = api.get(&format!("{policies}/{name}"))["status"].clone();
            (status["observedGeneration"] == generation).then_some(status["typeChecking"].clone())
        })
    };
    let expressions = ["object.spec.replicas > 1", "object.spec.replicas > '1'"];
    api.create(policies, &policy("typed", &rule("apps", &["deployments", "replicasets"]), &expressions));
    let warnings = checked("typed", 1)["expressionWarnings"].clone();
    assert_eq!(warnings.as_array().map(Vec::len), Some(1), "{warnings}");
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[1].expression");
    let told = warnings[0]["warning"].as_str().unwrap();
    for kind in ["Deployment", "ReplicaSet"] {
        let line =
            format!("apps/v1, Kind={kind}: ERROR: <input>:1:22: found no matching overload for '_>_' applied to");
        assert!(told.lines().any(|l| l.starts_with(&line)), "{told}");
    }
    // The next generation is looked at again.
    api.edit(&format!("{policies}/typed"), |policy| {
        policy["spec"]["validations"].as_array_mut().unwrap().pop();
    });
    assert_eq!(checked("typed", 2), json!({}));

    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size":
        {"type": "integer"}}}}});
    let group = "types.example.com";
    api.create(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &json!({"metadata": {"name": format!("things.{group}")}, "spec": {"group": group, "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": schema}}]}}),
    );
    api.cluster.wait_for("things to be served", || {
        (api.try_get(&format!("/apis/{group}/v1/things")).code == 200).then_some(())
    });
    let expressions = ["object.spec.size > 1 && object.metadata.labels.size() > 0", "object.spec.replicas > 1"];
    api.create(policies, &policy("custom", &rule(group, &["things"]), &expressions));
    let warnings = checked("custom", 1)["expressionWarnings"].clone();
    assert_eq!(warnings.as_array().map(Vec::len), Some(1), "{warnings}");
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[1].expression");
    let told = warnings[0]["warning"].as_str().unwrap();
    let wanted = format!("{group}/v1, Kind=Thing: ERROR: <input>:1:12: undefined field 'replicas'\n");
    assert!(told.starts_with(&wanted), "{told}");
}

/// Stable and beta metrics of upstream's API server that this one has: name, type, labels.
const MEASURED: &[Metric] = &[
    (
        "apiserver_admission_controller_admission_duration_seconds",
        "histogram",
        &["name", "operation", "rejected", "type"],
    ),
    ("apiserver_admission_step_admission_duration_seconds", "histogram", &["operation", "rejected", "type"]),
    ("apiserver_current_inflight_requests", "gauge", &["request_kind"]),
    ("apiserver_flowcontrol_current_executing_seats", "gauge", &["flow_schema", "priority_level"]),
    ("apiserver_flowcontrol_dispatched_requests_total", "counter", &["flow_schema", "priority_level"]),
    ("apiserver_flowcontrol_nominal_limit_seats", "gauge", &["priority_level"]),
    ("apiserver_flowcontrol_request_wait_duration_seconds", "histogram", &["execute", "flow_schema", "priority_level"]),
    (
        "apiserver_longrunning_requests",
        "gauge",
        &["component", "group", "resource", "scope", "subresource", "verb", "version"],
    ),
    (
        "apiserver_request_duration_seconds",
        "histogram",
        &["component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"],
    ),
    (
        "apiserver_request_total",
        "counter",
        &["code", "component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"],
    ),
    (
        "apiserver_requested_deprecated_apis",
        "gauge",
        &["group", "removed_release", "resource", "subresource", "version"],
    ),
    (
        "apiserver_response_sizes",
        "histogram",
        &["component", "group", "resource", "scope", "subresource", "verb", "version"],
    ),
    ("apiserver_storage_objects", "gauge", &["resource"]),
    ("apiserver_storage_size_bytes", "gauge", &["storage_cluster_id"]),
    (
        "apiserver_validating_admission_policy_check_duration_seconds",
        "histogram",
        &["enforcement_action", "error_type", "policy", "policy_binding"],
    ),
    (
        "apiserver_validating_admission_policy_check_total",
        "counter",
        &["enforcement_action", "error_type", "policy", "policy_binding"],
    ),
    ("process_cpu_seconds_total", "counter", &[]),
];

/// Metrics that upstream has not.
const OWN: &[Metric] = &[
    ("gantry_turns_duration_seconds_total", "counter", &["priority_level"]),
    ("gantry_turns_shares", "gauge", &["priority_level"]),
    ("gantry_turns_total", "counter", &["priority_level"]),
    ("gantry_turns_users", "gauge", &["priority_level"]),
    ("gantry_turns_waiting", "gauge", &["priority_level"]),
    ("gantry_watch_cache_bytes", "gauge", &["resource"]),
];

/// What `/metrics/slis` tells, in the same way.
const INDICATORS: &[Metric] = &[
    ("kubernetes_healthcheck", "gauge", &["name", "type"]),
    ("kubernetes_healthchecks_total", "counter", &["name", "status", "type"]),
];

fn measurements(api: &Api<'_>) {
    // Something of everything.
    let admission = "/apis/admissionregistration.k8s.io/v1";
    let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["secrets"]});
    api.create(&format!("{admission}/validatingadmissionpolicies"), &policy("measured", &rule, &["false"]));
    let binding =
        json!({"metadata": {"name": "measured"}, "spec": {"policyName": "measured", "validationActions": ["Deny"]}});
    api.create(&format!("{admission}/validatingadmissionpolicybindings"), &binding);
    let secret = json!({"metadata": {"name": "s"}});
    let status = api.send("POST", "/api/v1/namespaces/default/secrets", &secret).expect(422);
    assert!(status["message"].as_str().unwrap().contains("'measured'"), "{status}");
    api.send("POST", &format!("{MAPS}?dryRun=All"), &json!({"metadata": {"name": "dry"}})).expect(201);
    api.get("/api/v1/namespaces/default/endpoints");
    api.get(MAPS);
    assert_eq!(api.try_get("/readyz").text, "ok");

    let answer = api.try_get("/metrics");
    assert!(answer.head.contains("text/plain; version=0.0.4; charset=utf-8"), "{}", answer.head);
    let text = &answer.text;
    assert!(!text.contains("# EOF"));
    tells(text, MEASURED);
    tells(text, OWN);
    let indicators = api.try_get("/metrics/slis").text;
    tells(&indicators, INDICATORS);
    let well = "kubernetes_healthcheck{name=\"ping\",type=\"readyz\"} 1";
    assert!(indicators.lines().any(|l| l == well) && !text.contains("kubernetes_healthcheck"), "{indicators}");
    let has = |parts: &[&str]| text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    let dry =
        ["apiserver_request_total{", "dry_run=\"All\"", "verb=\"POST\"", "resource=\"configmaps\"", "code=\"201\""];
    assert!(has(&dry));
    assert!(has(&["apiserver_requested_deprecated_apis{", "resource=\"endpoints\"", "version=\"v1\"", "} 1"]));
    assert!(has(&["apiserver_response_sizes_count{", "resource=\"configmaps\"", "verb=\"LIST\""]));
    assert!(
        has(&["apiserver_request_total{", "group=\"types.example.com\"", "resource=\"things\""]),
        "also of learned ones"
    );
    let refused =
        ["name=\"ValidatingAdmissionPolicy\"", "rejected=\"true\"", "operation=\"CREATE\"", "type=\"validate\""];
    assert!(has(&refused));
    // Every series is described once.
    let mut described: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    let all = described.len();
    described.sort_unstable();
    described.dedup();
    assert_eq!(described.len(), all);
}
