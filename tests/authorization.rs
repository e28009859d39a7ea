//! Who may do what: authorization modes, policy files, a webhook, and structured configuration.

mod cluster;

use cluster::api::Api;
use cluster::https::Https;
use cluster::{Cluster, GANTRY};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const POLICIES: &str = r#"
# Auditors read everything; abby owns one namespace.
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"group": "auditors", "readonly": true, "namespace": "*", "resource": "*", "apiGroup": "*"}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "abby", "namespace": "hers", "resource": "*", "apiGroup": "*"}}
"#;

/// A webhook that lets `hanna` read ConfigMaps and forbids `harry` everything.
fn webhook(cluster: &Cluster) -> (Https, Arc<Mutex<Vec<Value>>>) {
    let asked = Arc::new(Mutex::new(Vec::<Value>::new()));
    let seen = asked.clone();
    let https = Https::start(cluster, |_| {
        Arc::new(move |_: &str, review: &Value| {
            seen.lock().unwrap().push(review.clone());
            let spec = &review["spec"];
            let status = match (spec["user"].as_str(), spec["resourceAttributes"]["resource"].as_str()) {
                (Some("hanna"), Some("configmaps")) => json!({"allowed": true, "reason": "hanna reads"}),
                (Some("harry"), _) => json!({"allowed": false, "denied": true, "reason": "not harry"}),
                _ => json!({"allowed": false, "reason": "no idea"}),
            };
            json!({"apiVersion": review["apiVersion"], "kind": "SubjectAccessReview", "status": status})
        })
    });
    (https, asked)
}

/// What a SubjectAccessReview says of a user's reading ConfigMaps in `default`.
fn may(api: &Api<'_>, user: &str, verb: &str, namespace: &str) -> Value {
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": user,
        "resourceAttributes": {"verb": verb, "resource": "configmaps", "namespace": namespace}}});
    api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review)["status"].take()
}

#[test]
fn modes_in_their_order() {
    let mut cluster = Cluster::prepare(&[]);
    let (hook, asked) = webhook(&cluster);
    let kubeconfig = hook.kubeconfig(&cluster, "authorize.kubeconfig", "/authorize");
    let policies = cluster.data_dir().join("policies.jsonl").display().to_string();
    std::fs::write(&policies, POLICIES).unwrap();
    cluster.add_options(&["--authorization-mode", "Node,RBAC,ABAC,Webhook", "--authorization-policy-file", &policies]);
    cluster.add_options(&["--authorization-webhook-config-file", &kubeconfig]);
    cluster.up();
    let api = Api::new(&cluster);
    let maps = "/api/v1/namespaces/default/configmaps";

    // By file.
    let auditor = api.impersonate("otto", &["auditors"]);
    assert_eq!(auditor.try_get(maps).code, 200);
    let map = json!({"metadata": {"name": "m"}});
    assert_eq!(auditor.send("POST", maps, &map).code, 403);
    api.namespace("hers");
    let abby = api.impersonate("abby", &[]);
    assert_eq!(abby.send("POST", "/api/v1/namespaces/hers/configmaps", &map).code, 201);
    assert_eq!(abby.send("POST", maps, &map).code, 403);

    // By webhook, whose answers are remembered.
    let hanna = api.impersonate("hanna", &[]);
    assert_eq!(hanna.try_get(maps).code, 200);
    assert_eq!(hanna.try_get(maps).code, 200);
    let about =
        |user: &str| asked.lock().unwrap().iter().filter(|r| r["spec"]["user"] == user).cloned().collect::<Vec<_>>();
    let questions = about("hanna");
    assert_eq!(questions.len(), 1, "{questions:?}");
    assert_eq!(questions[0]["apiVersion"], "authorization.k8s.io/v1beta1");
    assert_eq!(questions[0]["spec"]["group"], json!(["system:authenticated"]));
    assert_eq!(
        questions[0]["spec"]["resourceAttributes"],
        json!({"namespace": "default", "verb": "list", "version": "v1", "resource": "configmaps"})
    );
    assert_eq!(may(&api, "hanna", "get", "default"), json!({"allowed": true, "reason": "hanna reads"}));
    assert_eq!(may(&api, "harry", "get", "default"), json!({"allowed": false, "denied": true, "reason": "not harry"}));
    let refused = api.impersonate("nemo", &[]).try_get(maps).json()["message"].clone();
    let why = "configmaps is forbidden: User \"nemo\" cannot list resource \"configmaps\" in API group \"\" in the namespace \
               \"default\": No policy matched.\nno idea";
    assert_eq!(refused, why);
    // Those who decide before it do not ask it.
    assert!(about("kubernetes-admin").is_empty() && about("abby").iter().all(|r| r["spec"]["user"] == "abby"));
}

fn configuration(kubeconfig: &str, condition: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- {{type: Webhook, name: \
         first, webhook: {{timeout: 3s, subjectAccessReviewVersion: v1, matchConditionSubjectAccessReviewVersion: v1, \
         failurePolicy: Deny, connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {kubeconfig}}}, matchConditions: \
         [{{expression: \"{condition}\"}}]}}}}\n- {{type: Node, name: node}}\n- {{type: RBAC, name: rbac}}\n"
    )
}

#[test]
fn a_configuration_file_is_followed() {
    let mut cluster = Cluster::prepare(&[]);
    let (hook, asked) = webhook(&cluster);
    let kubeconfig = hook.kubeconfig(&cluster, "authorize.kubeconfig", "/authorize");
    let file = cluster.data_dir().join("authorization.yaml");
    std::fs::write(&file, configuration(&kubeconfig, "request.user.startsWith('h')")).unwrap();
    cluster.add_options(&["--authorization-config", &file.display().to_string()]);
    cluster.up();
    let api = Api::new(&cluster);
    assert_eq!(may(&api, "hanna", "get", "default")["allowed"], true);
    assert_eq!(may(&api, "harry", "get", "default")["denied"], true);
    // Only requests that the condition holds for are sent.
    assert_eq!(may(&api, "nemo", "get", "default")["allowed"], false);
    assert!(asked.lock().unwrap().iter().all(|r| r["spec"]["user"].as_str().unwrap().starts_with('h')));
    // Another file holds without a restart.
    std::fs::write(&file, configuration(&kubeconfig, "request.user == 'nobody'")).unwrap();
    cluster.wait_for("the new condition", || (may(&api, "harry", "get", "default")["denied"] != true).then_some(()));
    assert_eq!(may(&api, "hanna", "get", "default")["allowed"], false);
    // A webhook that cannot be reached denies, as its policy says.
    let gone = cluster.data_dir().join("gone.kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).unwrap().replace("https://127.0.0.1:", "https://127.0.0.1:1/?x=");
    std::fs::write(&gone, text).unwrap();
    std::fs::write(&file, configuration(&gone.display().to_string(), "request.user == 'hanna'")).unwrap();
    let status = cluster.wait_for("the webhook out of reach", || {
        Some(may(&api, "hanna", "get", "default")).filter(|s| s["denied"] == true)
    });
    assert!(status["evaluationError"].as_str().unwrap().contains("connection refused"), "{status}");
    let failed = api.impersonate("hanna", &[]).try_get("/api/v1/namespaces/default/configmaps");
    assert_eq!(failed.code, 500);
    assert!(
        failed.text.starts_with("Internal Server Error: \"/api/v1/namespaces/default/configmaps\": Post "),
        "{failed:?}"
    );
    assert_eq!(api.get("/api/v1/namespaces/default")["metadata"]["name"], "default");
}

#[test]
fn wrong_flags_are_named() {
    let refused = |options: &[&str], why: &str| {
        let cluster = Cluster::prepare(&[]);
        let directory = cluster.data_dir().display().to_string();
        let output = cluster.inside(GANTRY).args(["server", "--data-dir", &directory]).args(options).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && log.contains(why), "{options:?}: {log}");
    };
    refused(&["--authorization-mode", "RBAC,Sometimes"], "authorization-mode \"Sometimes\" is not a valid mode");
    refused(&["--authorization-mode", "ABAC"], "authorization-mode ABAC's authorization policy file not passed");
    refused(
        &["--oidc-issuer-url", "https://x"],
        "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set",
    );
    refused(
        &["--oidc-issuer-url", "http://x", "--oidc-client-id", "k"],
        "jwt[0].issuer.url: Invalid value: \"http://x\": URL scheme must be https",
    );
}
