//! Reading and writing objects through the whole pipeline.

mod harness;

use harness::Harness;
use serde_json::{Value, json};
use std::time::Duration;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "a": "1" } })
}

fn reason(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["reason"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let h = Harness::start().await;
    let (code, made) = h.call("POST", CONFIG_MAPS, Some(config_map("x"))).await;
    assert_eq!(code, 201, "{made}");
    let meta = &made["metadata"];
    assert!(meta["uid"].is_string() && meta["resourceVersion"].is_string() && meta["creationTimestamp"].is_string());
    assert_eq!(meta["managedFields"][0]["manager"], "test");
    let again = h.call("POST", CONFIG_MAPS, Some(config_map("x"))).await;
    assert_eq!(reason(&again), (409, "AlreadyExists"));
    assert_eq!(again.1["message"], "configmaps \"x\" already exists");

    let path = format!("{CONFIG_MAPS}/x");
    let (_, read) = h.call("GET", &path, None).await;
    assert_eq!(read, made);
    let mut changed = read.clone();
    changed["data"]["a"] = "2".into();
    let (code, updated) = h.call("PUT", &path, Some(changed.clone())).await;
    assert_eq!((code, updated["data"]["a"].as_str()), (200, Some("2")));
    assert_ne!(updated["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    // The old version does not fit any more, and the same content again writes nothing.
    assert_eq!(reason(&h.call("PUT", &path, Some(changed)).await), (409, "Conflict"));
    let (_, same) = h.call("PUT", &path, Some(updated.clone())).await;
    assert_eq!(same["metadata"]["resourceVersion"], updated["metadata"]["resourceVersion"]);

    let (code, gone) = h.call("DELETE", &path, None).await;
    assert_eq!(
        (code, gone["status"].as_str(), gone["details"]["kind"].as_str()),
        (200, Some("Success"), Some("configmaps"))
    );
    let missing = h.call("GET", &path, None).await;
    assert_eq!(reason(&missing), (404, "NotFound"));
    assert_eq!(missing.1["message"], "configmaps \"x\" not found");
}

#[tokio::test]
async fn every_patch_type_changes_the_object() {
    let h = Harness::start().await;
    h.call("POST", CONFIG_MAPS, Some(config_map("x"))).await;
    let path = format!("{CONFIG_MAPS}/x");
    let patches = [
        ("application/merge-patch+json", r#"{"data":{"b":"merge"}}"#, "merge"),
        ("application/json-patch+json", r#"[{"op":"replace","path":"/data/b","value":"json"}]"#, "json"),
        ("application/strategic-merge-patch+json", r#"{"data":{"b":"strategic"}}"#, "strategic"),
    ];
    for (content_type, body, want) in patches {
        let (code, got) = h.call_with("PATCH", &path, &[("content-type", content_type)], body).await;
        assert_eq!((code, got["data"]["b"].as_str(), got["data"]["a"].as_str()), (200, Some(want), Some("1")), "{got}");
    }
    let apply = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"b":"applied"}}"#;
    let headers = [("content-type", "application/apply-patch+yaml")];
    let missing = h.call_with("PATCH", &path, &headers, apply).await;
    assert_eq!(reason(&missing), (422, "Invalid"), "a field manager is required");
    let conflict = h.call_with("PATCH", &format!("{path}?fieldManager=me"), &headers, apply).await;
    assert_eq!(reason(&conflict), (409, "Conflict"));
    assert_eq!(conflict.1["details"]["causes"][0]["field"], ".data.b");
    let (code, got) = h.call_with("PATCH", &format!("{path}?fieldManager=me&force=true"), &headers, apply).await;
    assert_eq!((code, got["data"]["b"].as_str()), (200, Some("applied")));
    let fresh = apply.replace("\"x\"", "\"new\"");
    let (code, _) = h.call_with("PATCH", &format!("{CONFIG_MAPS}/new?fieldManager=me"), &headers, fresh).await;
    assert_eq!(code, 201, "apply creates");
    let wrong = h.call_with("PATCH", &path, &[("content-type", "text/plain")], "x").await;
    assert_eq!(reason(&wrong), (415, "UnsupportedMediaType"));
}

#[tokio::test]
async fn bad_requests_are_named() {
    let h = Harness::start().await;
    let cases = [
        (
            "POST",
            CONFIG_MAPS,
            json!({ "kind": "Pod", "apiVersion": "v1" }),
            400,
            "Pod in version \"v1\" cannot be handled as a ConfigMap",
        ),
        (
            "POST",
            CONFIG_MAPS,
            json!({ "kind": "ConfigMap", "apiVersion": "v2" }),
            400,
            "ConfigMap in version \"v2\" cannot be handled as a ConfigMap: no kind \"ConfigMap\" is registered for version \"v2\" \
             in scheme",
        ),
        (
            "POST",
            CONFIG_MAPS,
            json!({ "metadata": { "name": "x", "namespace": "other" } }),
            400,
            "does not match the namespace sent on the request",
        ),
        ("POST", CONFIG_MAPS, json!({ "metadata": {} }), 422, "name or generateName is required"),
        ("POST", CONFIG_MAPS, json!({ "data": { "a": 1 } }), 400, "cannot unmarshal number"),
        ("POST", "/api/v1/configmaps", config_map("x"), 405, "does not allow this method"),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/y",
            config_map("x"),
            400,
            "does not match the name on the URL (y)",
        ),
        ("PUT", "/api/v1/namespaces/default/configmaps/x", config_map("x"), 404, "configmaps \"x\" not found"),
        ("GET", "/api/v1/namespaces/default/nothings", Value::Null, 404, "could not find the requested resource"),
        ("GET", "/api/v1/pods/x", Value::Null, 404, "could not find the requested resource"),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps/x/status",
            Value::Null,
            404,
            "could not find the requested resource",
        ),
        ("GET", "/api/v1/pods?labelSelector=a%20in%20b", Value::Null, 400, "unable to parse requirement"),
        (
            "GET",
            "/api/v1/pods?fieldSelector=spec.nothing%3Dx",
            Value::Null,
            400,
            "field label not supported: spec.nothing",
        ),
        (
            "GET",
            "/api/v1/configmaps?fieldSelector=spec.nothing%3Dx",
            Value::Null,
            400,
            "\"spec.nothing\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        (
            "GET",
            "/apis/batch/v1/jobs?fieldSelector=spec.nothing%3Dx",
            Value::Null,
            400,
            "field label \"spec.nothing\" not supported for batchv1.Job",
        ),
        ("GET", "/api/v1/pods?limit=x", Value::Null, 400, "strconv.ParseInt"),
        (
            "GET",
            "/api/v1/pods?continue=abc",
            Value::Null,
            400,
            "continue key is not valid: invalid character 'i' looking for beginning of value",
        ),
        (
            "GET",
            "/api/v1/pods?resourceVersionMatch=Exact",
            Value::Null,
            422,
            "forbidden unless resourceVersion is provided",
        ),
    ];
    for (method, uri, body, code, text) in cases {
        let got = h.call(method, uri, Some(body).filter(|b| !b.is_null())).await;
        let message = got.1["message"].as_str().unwrap_or_default();
        assert!(got.0 == code && message.contains(text), "{method} {uri}: {} {}", got.0, got.1);
    }
    // What is no JSON says neither what it is nor, unless it may be JSON, what it looks like.
    for (body, text) in [
        ("", "couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)"),
        ("[1]", "json: cannot unmarshal array into Go value of type struct"),
        ("x", "json parse error: invalid character 'x' looking for beginning of value (78)"),
        ("{\"apiVersion\":\"a/b/c\"}", "unexpected GroupVersion string: a/b/c ({"),
    ] {
        let (code, status) = h.call_with("POST", CONFIG_MAPS, &[], body).await;
        let message = status["message"].as_str().unwrap();
        assert!(code == 400 && message.contains(text), "{body}: {message}");
        assert!(message.starts_with("the object provided is unrecognized (must be of type ConfigMap): "), "{message}");
    }
    let huge = "x".repeat(4 << 20);
    assert_eq!(reason(&h.call_with("POST", CONFIG_MAPS, &[], huge).await), (413, "RequestEntityTooLarge"));
    let (code, status) = h.call_with("POST", CONFIG_MAPS, &[], "{").await;
    assert_eq!((code, status["reason"].as_str()), (400, Some("BadRequest")));
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_of_or_dropped() {
    let h = Harness::start().await;
    let body = |name: &str| json!({ "metadata": { "name": name }, "data": {}, "foo": 1 });
    let strict = h.call("POST", &format!("{CONFIG_MAPS}?fieldValidation=Strict"), Some(body("a"))).await;
    assert_eq!(reason(&strict), (400, "BadRequest"));
    assert!(strict.1["message"].as_str().unwrap().contains("strict decoding error: unknown field \"foo\""));
    for (mode, warned) in [("Warn", true), ("Ignore", false)] {
        let uri = format!("{CONFIG_MAPS}?fieldValidation={mode}");
        let response = h.raw("POST", &uri, &[], body(&mode.to_lowercase()).to_string()).await;
        assert_eq!(response.status(), 201);
        let warning = response.headers().get("warning").map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(warning.is_some_and(|w| w.contains("unknown field")), warned, "{mode}");
    }
    let bad = h.call("POST", &format!("{CONFIG_MAPS}?fieldValidation=Maybe"), Some(body("b"))).await;
    assert_eq!(reason(&bad), (422, "Invalid"));
}

/// The texts of `Warning` headers.
fn warnings<B>(response: &http::Response<B>) -> Vec<String> {
    response.headers().get_all("warning").iter().map(|v| v.to_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_there_was_to_warn_of_goes_with_a_failure() {
    let h = Harness::start().await;
    h.call("POST", CONFIG_MAPS, Some(config_map("x"))).await;
    let unknown = r#"299 - "unknown field \"foo\"""#;
    for (method, uri, content_type, body, code) in [
        ("POST", CONFIG_MAPS.to_owned(), "application/json", json!({"metadata": {"name": "A"}, "foo": 1}), 422),
        ("POST", CONFIG_MAPS.to_owned(), "application/json", json!({"metadata": {"name": "x"}, "foo": 1}), 409),
        ("PUT", format!("{CONFIG_MAPS}/y"), "application/json", json!({"metadata": {"name": "y"}, "foo": 1}), 404),
        (
            "PATCH",
            format!("{CONFIG_MAPS}/x"),
            "application/merge-patch+json",
            json!({"metadata": {"labels": {"a": "-"}}, "foo": 1}),
            422,
        ),
    ] {
        let response = h.raw(method, &uri, &[("content-type", content_type)], body.to_string()).await;
        assert_eq!(response.status(), code, "{method} {uri}");
        assert_eq!(warnings(&response), [unknown], "{method} {uri}");
    }
    let deprecated = r#"299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice""#;
    let endpoints = "/api/v1/namespaces/default/endpoints";
    let missing = h.raw("GET", &format!("{endpoints}/none"), &[], "").await;
    assert_eq!((missing.status().as_u16(), warnings(&missing)), (404, vec![deprecated.to_owned()]));
    let made = json!({"metadata": {"name": "e"}, "foo": 1}).to_string();
    let made = h.raw("POST", endpoints, &[("content-type", "application/json")], made).await;
    assert_eq!((made.status().as_u16(), warnings(&made)), (201, vec![deprecated.to_owned(), unknown.to_owned()]));
}

#[tokio::test]
async fn patches_that_make_no_object_are_shown_as_they_are_read() {
    let h = Harness::start().await;
    h.call("POST", CONFIG_MAPS, Some(config_map("x"))).await;
    let path = format!("{CONFIG_MAPS}/x?fieldManager=me");
    let strategic = "application/strategic-merge-patch+json";
    for (content_type, body, code, text) in [
        (
            strategic,
            r#"{"data":[]}"#,
            422,
            " \"\" is invalid: patch: Invalid value: \"map[data:[]]\": cannot restore map from slice",
        ),
        (
            strategic,
            r#"{"data":{"a":1}}"#,
            422,
            " \"\" is invalid: patch: Invalid value: \"map[data:map[a:1]]\": cannot convert int64 to string",
        ),
        ("application/merge-patch+json", r#"{"data":[]}"#, 422, "\\\"data\\\":[]"),
        (
            "application/merge-patch+json",
            r#"{"kind":"Secret"}"#,
            422,
            ": converting (v1.Secret) to (core.ConfigMap): unknown conversion",
        ),
        ("application/merge-patch+json", "{", 400, "invalid JSON patch"),
        ("application/json-patch+json", "[", 400, "invalid JSON patch"),
        (
            "application/merge-patch+json",
            "[]",
            400,
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (
            "application/apply-patch+yaml",
            "a: b: c",
            400,
            "error encoding patch: yaml: mapping values are not allowed in this context",
        ),
        (
            "application/apply-patch+yaml",
            "[]",
            400,
            "error decoding patch: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array",
        ),
        (
            "application/apply-patch+yaml",
            r#"{"apiVersion":"v2","kind":"ConfigMap","metadata":{"name":"x"}}"#,
            400,
            "invalid object type: /v2, Kind=ConfigMap",
        ),
    ] {
        let (got, status) = h.call_with("PATCH", &path, &[("content-type", content_type)], body).await;
        let message = status["message"].as_str().unwrap();
        assert!(got == code && message.contains(text), "{content_type} {body}: {got} {message}");
    }
    // A strategic merge patch changes no type.
    let other = r#"{"kind":"Secret","apiVersion":"v2","data":{"b":"2"}}"#;
    let (code, kept) = h.call_with("PATCH", &path, &[("content-type", strategic)], other).await;
    assert_eq!((code, &kept["kind"], &kept["data"]["b"]), (200, &json!("ConfigMap"), &json!("2")));
}

#[tokio::test]
async fn names_are_generated_and_dry_runs_leave_nothing() {
    let h = Harness::start().await;
    let body = json!({ "metadata": { "generateName": "gen-" } });
    let (code, made) = h.call("POST", CONFIG_MAPS, Some(body)).await;
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(code == 201 && name.starts_with("gen-") && name.len() == 9, "{name}");
    let (code, made) = h.call("POST", &format!("{CONFIG_MAPS}?dryRun=All"), Some(config_map("dry"))).await;
    assert_eq!((code, made["metadata"]["resourceVersion"].as_str()), (201, None));
    assert_eq!(h.call("GET", &format!("{CONFIG_MAPS}/dry"), None).await.0, 404);
    let name = format!("{CONFIG_MAPS}/{name}");
    assert_eq!(h.call("DELETE", &format!("{name}?dryRun=All"), None).await.0, 200);
    assert_eq!(h.call("GET", &name, None).await.0, 200);
    let wrong = h.call("POST", &format!("{CONFIG_MAPS}?dryRun=Some"), Some(config_map("dry"))).await;
    assert_eq!(reason(&wrong), (422, "Invalid"));
}

#[tokio::test]
async fn finalizers_and_propagation_hold_an_object() {
    let h = Harness::start().await;
    let mut body = config_map("held");
    body["metadata"]["finalizers"] = json!(["example.com/hold"]);
    h.call("POST", CONFIG_MAPS, Some(body)).await;
    let path = format!("{CONFIG_MAPS}/held");
    let options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground" });
    let (code, marked) = h.call("DELETE", &path, Some(options)).await;
    assert_eq!(code, 200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(marked["metadata"]["finalizers"], json!(["example.com/hold", "foregroundDeletion"]));
    let merge = [("content-type", "application/merge-patch+json")];
    let added = h.call_with("PATCH", &path, &merge, r#"{"metadata":{"finalizers":["new.example.com/x"]}}"#).await;
    assert_eq!(reason(&added), (422, "Invalid"), "no finalizers may be added while deleting");
    let (code, _) = h.call_with("PATCH", &path, &merge, r#"{"metadata":{"finalizers":null}}"#).await;
    assert_eq!(code, 200);
    assert_eq!(h.call("GET", &path, None).await.0, 404, "the last finalizer lets it go");

    h.call("POST", CONFIG_MAPS, Some(config_map("x"))).await;
    let uid = json!({ "preconditions": { "uid": "other" } });
    let refused = h.call("DELETE", &format!("{CONFIG_MAPS}/x"), Some(uid)).await;
    assert_eq!(reason(&refused), (409, "Conflict"));
    let wrong = h.call("DELETE", &format!("{CONFIG_MAPS}/x?propagationPolicy=Sideways"), None).await;
    assert_eq!(reason(&wrong), (422, "Invalid"));
    let (code, list) = h.call("DELETE", CONFIG_MAPS, None).await;
    assert_eq!((code, list["kind"].as_str()), (200, Some("ConfigMapList")));
    assert_eq!(h.call("GET", CONFIG_MAPS, None).await.1["items"], json!([]));
}

#[tokio::test]
async fn users_may_do_what_they_are_allowed_to() {
    let h = Harness::start().await;
    let nobody = gantry_server::authn::UserInfo::new("nobody", &[]);
    let request = http::Request::builder().uri("/api/v1/namespaces/default/pods").body(bytes::Bytes::new()).unwrap();
    let response = h.server.call(request, nobody).await;
    assert_eq!(response.status(), 403);
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        status["message"],
        "pods is forbidden: User \"nobody\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
}

#[tokio::test]
async fn pods_are_deleted_gracefully() {
    let h = Harness::start().await;
    h.call("POST", "/api/v1/namespaces/default/serviceaccounts", Some(json!({ "metadata": { "name": "default" } })))
        .await;
    let pod = |name: &str| json!({ "metadata": { "name": name }, "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "i" }] } });
    let (code, made) = h.call("POST", "/api/v1/namespaces/default/pods", Some(pod("p"))).await;
    assert_eq!(code, 201, "{made}");
    let path = "/api/v1/namespaces/default/pods/p";
    let (code, marked) = h.call("DELETE", path, None).await;
    assert_eq!((code, marked["metadata"]["deletionGracePeriodSeconds"].as_i64()), (200, Some(30)));
    // A longer period changes nothing, a shorter one does, zero removes.
    let (_, longer) = h.call("DELETE", &format!("{path}?gracePeriodSeconds=60"), None).await;
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 30);
    let (_, shorter) = h.call("DELETE", &format!("{path}?gracePeriodSeconds=5"), None).await;
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    assert_eq!(h.call("DELETE", &format!("{path}?gracePeriodSeconds=0"), None).await.0, 200);
    assert_eq!(h.call("GET", path, None).await.0, 404);
}

#[tokio::test]
async fn scale_is_a_view_of_replicas() {
    let h = Harness::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let spec = json!({ "replicas": 2, "selector": { "matchLabels": { "a": "b" } }, "template": template });
    let (code, made) = h.call("POST", deployments, Some(json!({ "metadata": { "name": "d" }, "spec": spec }))).await;
    assert_eq!(code, 201, "{made}");
    let path = format!("{deployments}/d/scale");
    let (_, scale) = h.call("GET", &path, None).await;
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!(2), &json!("a=b"))
    );
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    assert_eq!(h.call_with("GET", &path, &table, "").await.1["rows"][0]["cells"], json!(["d", 2, 0, "0s"]));
    let merge = [("content-type", "application/merge-patch+json")];
    let (code, scale) = h.call_with("PATCH", &path, &merge, r#"{"spec":{"replicas":5}}"#).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(5)), "{scale}");
    let (_, deployment) = h.call("GET", &format!("{deployments}/d"), None).await;
    assert_eq!((&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]), (&json!(5), &json!(2)));
    let negative = h.call_with("PATCH", &path, &merge, r#"{"spec":{"replicas":-1}}"#).await;
    assert_eq!(reason(&negative), (422, "Invalid"));
    let status = json!({ "metadata": { "name": "d" }, "spec": { "replicas": 9 }, "status": { "replicas": 1 } });
    let (code, got) = h.call_with("PATCH", &format!("{deployments}/d/status"), &merge, status.to_string()).await;
    assert_eq!((code, &got["status"]["replicas"], &got["spec"]["replicas"]), (200, &json!(1), &json!(5)), "{got}");
}

#[tokio::test]
async fn events_are_one_object_in_two_groups() {
    let h = Harness::start().await;
    let event = json!({
        "metadata": { "name": "e" }, "involvedObject": { "kind": "Pod", "name": "p", "namespace": "default" },
        "reason": "Testing", "message": "it works", "type": "Normal", "source": { "component": "test" },
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z", "count": 1,
    });
    let (code, made) = h.call("POST", "/api/v1/namespaces/default/events", Some(event)).await;
    assert_eq!(code, 201, "{made}");
    let (code, other) = h.call("GET", "/apis/events.k8s.io/v1/namespaces/default/events/e", None).await;
    assert_eq!((code, &other["apiVersion"]), (200, &json!("events.k8s.io/v1")), "{other}");
    assert_eq!((&other["regarding"]["name"], &other["note"]), (&json!("p"), &json!("it works")), "{other}");
    let selected = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp,reason%3DTesting";
    assert_eq!(h.call("GET", selected, None).await.1["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn owners_of_fields_stay_when_another_version_is_written() {
    let h = Harness::start().await;
    let path = |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let (first, second) = (path("v1"), path("v2"));
    let scaler = json!({
        "metadata": { "name": "a" },
        "spec": { "maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" } },
    });
    let (code, made) = h.call("POST", &format!("{first}?fieldManager=somebody"), Some(scaler)).await;
    assert_eq!(code, 201, "{made}");
    let (_, mut seen) = h.call("GET", &format!("{second}/a"), None).await;
    seen["status"] = json!({ "desiredReplicas": 1, "currentReplicas": 1, "conditions": [
        { "type": "AbleToScale", "status": "True", "reason": "Ready", "message": "m" }] });
    let (code, seen) = h.call("PUT", &format!("{second}/a/status?fieldManager=controller"), Some(seen)).await;
    let owners = |object: &Value| -> Vec<(String, String)> {
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
        let fields = object["metadata"]["managedFields"].as_array().unwrap();
        let mut owners: Vec<_> = fields.iter().map(|e| (text(e, "manager"), text(e, "apiVersion"))).collect();
        owners.sort();
        owners
    };
    let both = [("controller", "autoscaling/v2"), ("somebody", "autoscaling/v1")];
    let both = both.map(|(manager, version)| (manager.to_owned(), version.to_owned()));
    assert_eq!((code, owners(&seen)), (200, both.to_vec()), "{seen}");
    // Written back in the first version, where the conditions are an annotation, it is what it was.
    let (_, shown) = h.call("GET", &format!("{first}/a"), None).await;
    let (code, same) = h.call("PUT", &format!("{first}/a"), Some(shown.clone())).await;
    assert_eq!((code, &same), (200, &shown));
    assert_eq!(owners(&same), both);
    // What differs is written, from either side.
    let mut changed = same;
    changed["spec"]["maxReplicas"] = json!(4);
    let (code, changed) = h.call("PUT", &format!("{first}/a"), Some(changed)).await;
    assert_eq!((code, &changed["spec"]["maxReplicas"]), (200, &json!(4)));
    assert_ne!(changed["metadata"]["resourceVersion"], shown["metadata"]["resourceVersion"]);
    let (_, seen) = h.call("GET", &format!("{second}/a"), None).await;
    let (code, same) = h.call("PUT", &format!("{second}/a"), Some(seen.clone())).await;
    assert_eq!((code, same), (200, seen));
}

#[tokio::test]
async fn an_apply_that_changes_nothing_is_no_write() {
    let h = Harness::start().await;
    let headers = [("content-type", "application/apply-patch+yaml")];
    let apply = async |path: &str, config: &Value| {
        let (code, object) =
            h.call_with("PATCH", &format!("{path}?fieldManager=me"), &headers, config.to_string()).await;
        assert!(matches!(code, 200 | 201), "{object}");
        // Times are in whole seconds.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(5)).await;
        tokio::time::resume();
        object
    };
    let pod = json!({
        "metadata": { "labels": { "app": "a" }, "creationTimestamp": null },
        "spec": { "containers": [{ "name": "c", "image": "i", "args": ["x"], "resources": {} }] },
    });
    // What is said to be empty, and filled in by defaults, is written anew in the eyes of apply: its time alone does not
    // count, as upstream.
    let said = json!({ "selector": { "matchLabels": { "app": "a" } }, "template": pod.clone() });
    let empty =
        json!({ "selector": { "matchLabels": { "app": "a" } }, "strategy": {}, "template": pod, "replicas": 2 });
    for (name, spec) in [("said", said), ("empty", empty)] {
        let path = format!("/apis/apps/v1/namespaces/default/deployments/{name}");
        let config = json!({ "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": name, "labels": { "app": "a" } }, "spec": spec });
        let made = apply(&path, &config).await;
        assert_eq!(made["spec"]["strategy"]["type"], "RollingUpdate", "{made}");
        for _ in 0..2 {
            assert_eq!(apply(&path, &config).await, made);
        }
        let mut other = config.clone();
        other["metadata"]["labels"]["app"] = json!("b");
        let changed = apply(&path, &other).await;
        assert_eq!(changed["metadata"]["labels"]["app"], "b");
        assert_ne!(changed["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
        assert_ne!(changed["metadata"]["managedFields"][0]["time"], made["metadata"]["managedFields"][0]["time"]);
        assert_eq!(apply(&path, &other).await, changed);
    }
}

#[tokio::test]
async fn reviews_have_no_table() {
    let h = Harness::start().await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"), ("content-type", "application/json")];
    let review = json!({ "spec": { "resourceAttributes": { "verb": "list", "resource": "pods" } } }).to_string();
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(reason(&h.call_with("POST", uri, &table, review.clone()).await), (406, "NotAcceptable"));
    let (code, answer) = h.call_with("POST", uri, &table[1..], review).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(true)), "{answer}");
}

#[tokio::test]
async fn a_namespace_waits_for_its_finalizer() {
    let h = Harness::start().await;
    let (code, made) = h.call("POST", "/api/v1/namespaces", Some(json!({ "metadata": { "name": "n" } }))).await;
    assert_eq!(
        (code, &made["spec"]["finalizers"], &made["status"]["phase"]),
        (201, &json!(["kubernetes"]), &json!("Active"))
    );
    let (code, marked) = h.call("DELETE", "/api/v1/namespaces/n", None).await;
    assert_eq!((code, &marked["status"]["phase"]), (200, &json!("Terminating")));
    let (_, mut now) = h.call("GET", "/api/v1/namespaces/n", None).await;
    now["spec"]["finalizers"] = json!([]);
    let (code, _) = h.call("PUT", "/api/v1/namespaces/n", Some(now.clone())).await;
    assert_eq!(
        (code, h.call("GET", "/api/v1/namespaces/n", None).await.0),
        (200, 200),
        "only finalize takes finalizers away"
    );
    let (_, mut now) = h.call("GET", "/api/v1/namespaces/n", None).await;
    now["spec"]["finalizers"] = json!([]);
    let (code, answer) = h.call("PUT", "/api/v1/namespaces/n/finalize", Some(now)).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(h.call("GET", "/api/v1/namespaces/n", None).await.0, 404);
}

#[tokio::test]
async fn concurrent_patches_all_take_effect() {
    let h = Harness::start().await;
    h.call("POST", CONFIG_MAPS, Some(config_map("x"))).await;
    let path = format!("{CONFIG_MAPS}/x");
    let headers = [("content-type", "application/merge-patch+json")];
    let patches = (0..20).map(|i| h.call_with("PATCH", &path, &headers, format!(r#"{{"data":{{"k{i}":"v"}}}}"#)));
    for (code, answer) in futures::future::join_all(patches).await {
        assert_eq!(code, 200, "{answer}");
    }
    let (_, now) = h.call("GET", &path, None).await;
    assert_eq!(now["data"].as_object().unwrap().len(), 21);
}
