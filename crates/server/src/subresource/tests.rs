//! Through the whole server over a store in memory.

use crate::admission::memory_objects::config;
use crate::authn::UserInfo;
use crate::server::Server;
use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_store::MemoryStore;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::Arc;

async fn server() -> Arc<Server> {
    let clock = Clock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
    Server::new(config().clone(), Arc::new(MemoryStore::new()), clock, Entropy::seeded(7)).await.unwrap()
}

fn root() -> UserInfo {
    UserInfo::new("root", &["system:masters"])
}

async fn call(server: &Arc<Server>, user: UserInfo, method: &str, path: &str, body: Value) -> (u16, Value) {
    let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json").body(bytes);
    let response = server.call(request.unwrap(), user).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn post(server: &Arc<Server>, path: &str, body: Value) -> (u16, Value) {
    call(server, root(), "POST", path, body).await
}

/// A namespace `a` with its default account.
async fn namespace(server: &Arc<Server>) {
    assert_eq!(post(server, "/api/v1/namespaces", json!({"metadata": {"name": "a"}})).await.0, 201);
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(post(server, "/api/v1/namespaces/a/serviceaccounts", account).await.0, 201);
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn a_pod_is_bound_once_and_evicted() {
    let server = server().await;
    namespace(&server).await;
    let (code, created) = post(&server, "/api/v1/namespaces/a/pods", pod("p")).await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(created["spec"]["serviceAccountName"], "default");
    assert_eq!(created["spec"]["tolerations"].as_array().unwrap().len(), 2);
    let bind = |node: &str| json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    let path = "/api/v1/namespaces/a/pods/p/binding";
    assert_eq!(post(&server, &format!("{path}?dryRun=All"), bind("n0")).await.0, 201);
    let (code, status) = post(&server, path, bind("n1")).await;
    assert_eq!((code, &status["status"]), (201, &json!("Success")), "{status}");
    let (code, status) = post(&server, path, bind("n2")).await;
    assert_eq!(code, 409);
    assert_eq!(
        status["message"],
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
    );
    let (code, status) = post(&server, path, json!({"metadata": {"name": "p"}, "target": {}})).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{status}");
    let (_, bound) = call(&server, root(), "GET", "/api/v1/namespaces/a/pods/p", Value::Null).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p", "namespace": "a"}});
    let (code, status) = post(&server, "/api/v1/namespaces/a/pods/p/eviction", eviction).await;
    assert_eq!(code, 201, "{status}");
    let (_, gone) = call(&server, root(), "GET", "/api/v1/namespaces/a/pods/p", Value::Null).await;
    assert!(gone["metadata"]["deletionTimestamp"].is_string(), "{gone}");
    let conditions = gone["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["reason"] == "EvictionByEvictionAPI"));
}

#[tokio::test]
async fn tokens_are_issued_bound_and_reviewed() {
    let server = server().await;
    namespace(&server).await;
    assert_eq!(post(&server, "/api/v1/namespaces/a/pods", pod("p")).await.0, 201);
    let path = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let bound = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}}});
    let (code, answer) = post(&server, path, bound).await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(answer["status"]["expirationTimestamp"], "2026-01-01T01:00:00Z");
    let token = answer["status"]["token"].as_str().unwrap();
    let review = json!({"spec": {"token": token}});
    let (_, answer) = post(&server, "/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    assert_eq!(answer["status"]["authenticated"], true, "{answer}");
    assert_eq!(answer["status"]["user"]["username"], "system:serviceaccount:a:default");
    assert_eq!(answer["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    let review = json!({"spec": {"token": "nonsense"}});
    let (_, answer) = post(&server, "/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    assert_eq!(answer["status"]["authenticated"], Value::Null);
    let (code, answer) = post(&server, path, json!({"spec": {"expirationSeconds": 5}})).await;
    assert_eq!(code, 422);
    assert_eq!(
        answer["message"],
        "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes"
    );
    // A node takes tokens for pods of its own only.
    let node = UserInfo::new("system:node:n1", &["system:nodes"]);
    let (code, answer) = call(&server, node, "POST", path, json!({"spec": {}})).await;
    assert_eq!(code, 403);
    assert!(
        answer["message"].as_str().unwrap().contains("no relationship found between node 'n1' and this object"),
        "{answer}"
    );
}

#[tokio::test]
async fn access_is_reviewed_by_the_bootstrap_policy() {
    let server = server().await;
    namespace(&server).await;
    let binding = json!({"metadata": {"name": "v"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}]});
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings";
    let (code, answer) = post(&server, path, binding).await;
    assert_eq!(code, 201, "{answer}");
    let bob = || UserInfo::new("bob", &[]);
    for (verb, resource, namespace, want) in [
        ("get", "pods", "a", true),
        ("delete", "pods", "a", false),
        ("get", "pods", "default", false),
        ("get", "secrets", "a", false),
    ] {
        let attributes = json!({"verb": verb, "resource": resource, "namespace": namespace});
        let review = json!({"spec": {"resourceAttributes": attributes}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let (code, answer) = call(&server, bob(), "POST", path, review).await;
        assert_eq!(
            (code, &answer["status"]["allowed"]),
            (201, &json!(want)),
            "{verb} {resource} {namespace}: {answer}"
        );
    }
    let rules = json!({"spec": {"namespace": "a"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (code, answer) = call(&server, bob(), "POST", path, rules).await;
    assert_eq!(code, 201, "{answer}");
    assert!(answer["status"]["resourceRules"].as_array().unwrap().len() > 5);
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (_, answer) = call(&server, bob(), "POST", path, json!({})).await;
    assert_eq!(answer["status"]["userInfo"]["username"], "bob");
    let (code, answer) = call(&server, bob(), "DELETE", "/api/v1/namespaces/a/pods/p", Value::Null).await;
    assert_eq!(code, 403);
    assert_eq!(
        answer["message"],
        "pods \"p\" is forbidden: User \"bob\" cannot delete resource \"pods\" in API group \"\" in the namespace \"a\""
    );
    // A role labelled into `view` is in it at once.
    let part = json!({"metadata": {"name": "part", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["x.io"], "resources": ["things"], "verbs": ["get"]}]});
    assert_eq!(post(&server, "/apis/rbac.authorization.k8s.io/v1/clusterroles", part).await.0, 201);
    for role in ["view", "edit", "admin"] {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}");
        let (_, sum) = call(&server, root(), "GET", &path, Value::Null).await;
        let found = sum["rules"].as_array().unwrap().iter().any(|r| r["apiGroups"] == json!(["x.io"]));
        assert!(found, "{role}: {sum}");
    }
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "group": "x.io", "resource": "things", "namespace": "a"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(call(&server, bob(), "POST", path, review).await.1["status"]["allowed"], true);
}

#[tokio::test]
async fn services_get_addresses_through_the_registry() {
    let server = server().await;
    namespace(&server).await;
    let path = "/api/v1/namespaces/a/services";
    let service = |name: &str, ip: Value| {
        json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "type": "NodePort",
        "selector": {"a": "b"}, "ports": [{"port": 80}]}})
    };
    let (code, first) = post(&server, path, service("one", Value::Null)).await;
    assert_eq!(code, 201, "{first}");
    let (ip, port) = (first["spec"]["clusterIP"].clone(), first["spec"]["ports"][0]["nodePort"].as_i64().unwrap());
    assert!(ip.as_str().unwrap().starts_with("10.96.") && (30000..=32767).contains(&port), "{first}");
    let (code, taken) = post(&server, path, service("two", ip.clone())).await;
    assert_eq!(code, 422);
    assert!(taken["message"].as_str().unwrap().ends_with("provided IP is already allocated"), "{taken}");
    // A second Service of the name is refused and takes nothing from the first.
    assert_eq!(post(&server, path, service("one", Value::Null)).await.0, 409);
    let (code, _) = call(&server, root(), "DELETE", &format!("{path}/one"), Value::Null).await;
    assert_eq!(code, 200);
    let (code, again) = post(&server, path, service("two", ip.clone())).await;
    assert_eq!((code, &again["spec"]["clusterIP"]), (201, &ip), "{again}");
}

#[tokio::test]
async fn certificate_requests_are_approved_by_subresource_only() {
    let server = server().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let request = gantry_api::k8s_openapi::ByteString(pem.into_bytes());
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let csr = json!({"metadata": {"name": "c"}, "spec": {"request": request,
        "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
    let (code, mut stored) = post(&server, path, csr).await;
    assert_eq!((code, &stored["spec"]["username"]), (201, &json!("root")), "{stored}");
    stored["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]});
    let put = |sub: &str, body: Value| {
        let (server, path) = (server.clone(), format!("{path}/c/{sub}"));
        async move { call(&server, root(), "PUT", &path, body).await }
    };
    let (code, refused) = put("status", stored.clone()).await;
    assert_eq!(code, 422, "{refused}");
    let (code, approved) = put("approval", stored).await;
    assert_eq!(code, 200, "{approved}");
    assert!(approved["status"]["conditions"][0]["lastUpdateTime"].is_string());
}

#[tokio::test]
async fn connections_are_refused_with_upstreams_words() {
    let server = server().await;
    namespace(&server).await;
    let mut two = pod("p");
    two["spec"]["containers"] = json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]);
    assert_eq!(post(&server, "/api/v1/namespaces/a/pods", two).await.0, 201);
    let cases = [
        ("pods/p/log", 400, "a container name must be specified for pod p, choose one of: [a b]"),
        ("pods/p/log?container=x", 400, "container x is not valid for pod p"),
        ("pods/x/log", 404, "pods \"x\" not found"),
        ("pods/p/exec?container=a&command=sh&stdout=1", 400, "pod p does not have a host assigned"),
        ("pods/p/proxy/", 400, "address not allowed"),
        ("services/s:80/proxy/", 404, "services \"s\" not found"),
    ];
    for (path, code, message) in cases {
        let got = call(&server, root(), "GET", &format!("/api/v1/namespaces/a/{path}"), Value::Null).await;
        assert_eq!((got.0, &got.1["message"]), (code, &json!(message)), "{path}");
    }
    // A pod that runs nowhere has logged nothing.
    let got = call(&server, root(), "GET", "/api/v1/namespaces/a/pods/p/log?container=a", Value::Null).await;
    assert_eq!(got.0, 200);
}

#[tokio::test]
async fn token_secrets_are_filled_and_count_while_they_live() {
    let server = server().await;
    namespace(&server).await;
    let secret = json!({"metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token"});
    let (code, stored) = post(&server, "/api/v1/namespaces/a/secrets", secret).await;
    assert_eq!(code, 201, "{stored}");
    assert!(
        stored["data"]["ca.crt"].is_string()
            && stored["metadata"]["annotations"]["kubernetes.io/service-account.uid"].is_string()
    );
    let token = serde_json::from_value::<gantry_api::k8s_openapi::ByteString>(stored["data"]["token"].clone()).unwrap();
    let token = String::from_utf8(token.0).unwrap();
    let user = server.services.authenticator.authenticate_token(&token, &[]).await.unwrap().unwrap().0;
    assert_eq!(user.username, "system:serviceaccount:a:default");
    assert_eq!(call(&server, root(), "DELETE", "/api/v1/namespaces/a/secrets/t", Value::Null).await.0, 200);
    let e = loop {
        // The cache follows the deletion a moment later.
        match server.services.authenticator.authenticate_token(&token, &[]).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(e) => break e,
        }
    };
    assert!(e.message.contains("invalidated"), "{}", e.message);
}
