//! What upstream's conformance suite asks of ServiceAccounts, certificates and access reviews. Each behaviour stands above
//! its scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, MERGE, base64, name, names};
use serde_json::{Value, json};

#[test]
fn identities() {
    let cluster = Cluster::start();
    let all = scenarios![
        requests_for_certificates,
        tokens_in_pods,
        pods_without_tokens,
        projected_tokens,
        the_issuer_is_discovered,
        the_root_certificate_in_every_namespace,
        the_life_of_a_service_account,
        a_service_account_is_updated,
        access_is_reviewed,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"]}]}})
}

/// A resource of a group is in discovery, with these verbs.
fn discovered(api: &Api<'_>, group: &str, resource: &str, verbs: &[&str]) {
    let groups = api.get("/apis");
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == group), "{groups}");
    assert_eq!(api.get(&format!("/apis/{group}"))["preferredVersion"]["version"], "v1");
    let list = api.get(&format!("/apis/{group}/v1"));
    let found = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == resource);
    let found = found.unwrap_or_else(|| panic!("{resource} in {list}"));
    for verb in verbs {
        assert!(found["verbs"].as_array().unwrap().contains(&json!(verb)), "{verb} in {found}");
    }
}

// Conformance: CertificateSigningRequest API
fn requests_for_certificates(api: &Api<'_>) {
    let group = "certificates.k8s.io";
    let all_verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    discovered(api, group, "certificatesigningrequests", &all_verbs);
    discovered(api, group, "certificatesigningrequests/approval", &["get", "patch", "update"]);
    discovered(api, group, "certificatesigningrequests/status", &["get", "patch", "update"]);

    let key = rcgen::KeyPair::generate().unwrap();
    let subject = rcgen::CertificateParams::new(vec!["e2e.example.com".into()]).unwrap();
    let request = subject.serialize_request(&key).unwrap().pem().unwrap();
    // Nobody signs for this signer, so nobody else writes to the request.
    let csr = json!({"metadata": {"generateName": "e2e-example-csr-", "labels": {"e2e": "csr"}}, "spec":
        {"request": base64(request.as_bytes()), "signerName": "example.com/e2e", "expirationSeconds": 3600,
            "usages": ["digital signature", "key encipherment", "server auth"]}});
    let all = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let watch = api.watch(&format!("{all}?labelSelector=e2e%3Dcsr"));
    let first = api.create(all, &csr);
    api.create(all, &csr);
    api.create(all, &csr);
    assert_eq!(first["spec"]["username"], "kubernetes-admin");
    let one = format!("{all}/{}", name(&first));
    assert_eq!(api.get(&one)["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(api.list(&format!("{all}?labelSelector=e2e%3Dcsr")).len(), 3);
    for _ in 0..3 {
        assert_eq!(watch.next().0, "ADDED");
    }
    let patched = api.patch(&one, MERGE, &json!({"metadata": {"annotations": {"patched": "true"}}}));
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
    watch.find("MODIFIED", |c| c["metadata"]["annotations"]["patched"] == "true");
    api.edit(&one, |c| c["metadata"]["annotations"]["updated"] = json!("true"));
    watch.find("MODIFIED", |c| c["metadata"]["annotations"]["updated"] == "true");

    // /approval: where Approved is set.
    let approval = format!("{one}/approval");
    assert_eq!(api.get(&approval)["metadata"]["uid"], first["metadata"]["uid"]);
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "reason": "E2E", "message": "Set from an e2e test"});
    let patch = json!({"metadata": {"annotations": {"patchedapproval": "true"}}, "status": {"conditions": [condition("ApprovalPatch")]}});
    let patched = api.patch(&approval, MERGE, &patch);
    assert_eq!(patched["status"]["conditions"][0]["type"], "ApprovalPatch");
    assert_eq!(patched["metadata"]["annotations"]["patchedapproval"], "true");
    let approved =
        api.edit(&approval, |c| c["status"]["conditions"].as_array_mut().unwrap().push(condition("Approved")));
    assert_eq!(approved["status"]["conditions"].as_array().unwrap().len(), 2);
    watch.find("MODIFIED", |c| c["status"]["conditions"][1]["type"] == "Approved");

    // /status: the certificate, and conditions that do not approve.
    let status = format!("{one}/status");
    assert_eq!(api.get(&status)["metadata"]["uid"], first["metadata"]["uid"]);
    let certificate = base64(subject.self_signed(&key).unwrap().pem().as_bytes());
    let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"certificate": certificate}});
    let patched = api.patch(&status, MERGE, &patch);
    assert_eq!(patched["status"]["certificate"], certificate.as_str());
    assert_eq!(patched["metadata"]["annotations"]["patchedstatus"], "true");
    let updated =
        api.edit(&status, |c| c["status"]["conditions"].as_array_mut().unwrap().push(condition("StatusUpdate")));
    assert_eq!(updated["status"]["conditions"][2]["type"], "StatusUpdate");
    watch.find("MODIFIED", |c| c["status"]["conditions"][2]["type"] == "StatusUpdate");

    api.delete(&one);
    watch.find("DELETED", |c| name(c) == name(&first));
    api.delete(&format!("{all}?labelSelector=e2e%3Dcsr"));
    assert!(api.list(&format!("{all}?labelSelector=e2e%3Dcsr")).is_empty());
}

// Conformance: Service Account Tokens Must AutoMount
fn tokens_in_pods(api: &Api<'_>) {
    let namespace = api.namespace("sa-mount");
    let base = format!("/api/v1/namespaces/{namespace}");
    api.create(&format!("{base}/serviceaccounts"), &json!({"metadata": {"name": "mount-test"}}));
    let mut object = pod("reads");
    object["spec"]["serviceAccountName"] = json!("mount-test");
    let made = api.create(&format!("{base}/pods"), &object);
    api.ready(&namespace, "reads");
    let read =
        |file: &str| api.exec(&namespace, "reads", &["/gantry", "self", "cat", &format!("{ACCOUNT}/{file}")]).unwrap();
    assert_eq!(read("namespace"), namespace);
    let root = api.get(&format!("{base}/configmaps/kube-root-ca.crt"))["data"]["ca.crt"].clone();
    assert_eq!(root, read("ca.crt"));
    let token = read("token");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let status = api.create("/apis/authentication.k8s.io/v1/tokenreviews", &review)["status"].clone();
    assert_eq!(
        (&status["authenticated"], &status["user"]["username"]),
        (&json!(true), &json!(format!("system:serviceaccount:{namespace}:mount-test")))
    );
    let groups =
        json!(["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"]);
    assert_eq!(status["user"]["groups"], groups);
    let extra = &status["user"]["extra"];
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], json!(["reads"]));
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], json!([made["metadata"]["uid"]]));
    assert_eq!(extra["authentication.kubernetes.io/node-name"], json!(["node-1"]));
}

// Conformance: Service account tokens auto mount optionally
fn pods_without_tokens(api: &Api<'_>) {
    let namespace = api.namespace("sa-opt-out");
    let base = format!("/api/v1/namespaces/{namespace}");
    for (account, automount) in [("default-sa", Value::Null), ("mount-sa", json!(true)), ("nomount-sa", json!(false))] {
        let object = json!({"metadata": {"name": account}, "automountServiceAccountToken": automount});
        api.create(&format!("{base}/serviceaccounts"), &object);
        for (asks, own) in [("", Value::Null), ("-mountspec", json!(true)), ("-nomountspec", json!(false))] {
            let mut object = pod(&format!("pod-{account}{asks}"));
            object["spec"]["serviceAccountName"] = json!(account);
            object["spec"]["automountServiceAccountToken"] = own.clone();
            let made = api.create(&format!("{base}/pods"), &object);
            let mounts = made["spec"]["containers"][0]["volumeMounts"].as_array().cloned().unwrap_or_default();
            // The pod's own word goes before the account's.
            let expected = own.as_bool().or(automount.as_bool()).unwrap_or(true);
            assert_eq!(mounts.iter().any(|m| m["mountPath"] == ACCOUNT), expected, "{made}");
        }
    }
    api.delete(&format!("{base}/pods"));
}

// Conformance: TokenRequestProjection should mount a projected volume with token using TokenRequest API.
fn projected_tokens(api: &Api<'_>) {
    let namespace = api.namespace("sa-projected");
    let mut object = pod("projected");
    object["spec"]["volumes"] = json!([{"name": "t", "projected": {"sources":
        [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600, "audience": "somebody-else"}}]}}]);
    object["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "t", "mountPath": "/test_volume", "readOnly": true}]);
    api.create(&format!("/api/v1/namespaces/{namespace}/pods"), &object);
    api.ready(&namespace, "projected");
    let token = api.exec(&namespace, "projected", &["/gantry", "self", "cat", "/test_volume/token"]).unwrap();
    let review = |audiences: Value| {
        let spec = json!({"token": token, "audiences": audiences});
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec});
        api.create("/apis/authentication.k8s.io/v1/tokenreviews", &review)["status"].clone()
    };
    let status = review(json!(["somebody-else"]));
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["somebody-else"])));
    assert_eq!(status["user"]["username"], format!("system:serviceaccount:{namespace}:default"));
    // It is not for the API server.
    assert_ne!(review(Value::Null)["authenticated"], true);
    assert_eq!(api.with_token(&token).try_get("/api").code, 401);
}

// Conformance: OIDC Discovery (ServiceAccountIssuerDiscovery)
fn the_issuer_is_discovered(api: &Api<'_>) {
    let namespace = api.namespace("sa-issuer");
    api.create(&format!("/api/v1/namespaces/{namespace}/pods"), &pod("inside"));
    api.ready(&namespace, "inside");
    let run = |command: &[&str]| api.exec(&namespace, "inside", &[&["/gantry", "self"], command].concat()).unwrap();
    // A pod asks with its own token, which every account may.
    let (ca, token) = (format!("{ACCOUNT}/ca.crt"), format!("{ACCOUNT}/token"));
    let get = |path: &str| -> Value {
        let url = format!("https://kubernetes.default.svc{path}");
        serde_json::from_str(&run(&["get", "--ca", &ca, "--token", &token, &url])).unwrap()
    };
    let configuration = get("/.well-known/openid-configuration");
    let token = run(&["cat", &token]);
    let part = |n: usize| -> Value {
        let text = token.split('.').nth(n).unwrap().replace('-', "+").replace('_', "/");
        let padded = format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4));
        let mut decode = std::process::Command::new("sh");
        serde_json::from_str(&cluster::run(decode.args(["-c", &format!("printf %s {padded} | base64 -d")]))).unwrap()
    };
    let (header, claims) = (part(0), part(1));
    assert_eq!(configuration["issuer"], claims["iss"]);
    assert_eq!(configuration["response_types_supported"], json!(["id_token"]));
    assert_eq!(configuration["subject_types_supported"], json!(["public"]));
    assert!(configuration["id_token_signing_alg_values_supported"].as_array().unwrap().contains(&header["alg"]));
    assert!(configuration["jwks_uri"].as_str().unwrap().ends_with("/openid/v1/jwks"), "{configuration}");
    let keys = get("/openid/v1/jwks")["keys"].as_array().unwrap().clone();
    let key = keys.iter().find(|k| k["kid"] == header["kid"]).unwrap_or_else(|| panic!("{header} in {keys:?}"));
    assert_eq!((&key["use"], &key["alg"]), (&json!("sig"), &header["alg"]));
    // Who is nobody may not.
    let nobody = api.impersonate("nobody", &[]).try_get("/.well-known/openid-configuration");
    assert_eq!(nobody.code, 403, "{nobody:?}");
}

// Conformance: RootCA ConfigMap test
fn the_root_certificate_in_every_namespace(api: &Api<'_>) {
    let namespace = api.namespace("root-ca");
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt");
    let whole = |m: &Value| m["data"]["ca.crt"].as_str().is_some_and(|c| c.starts_with("-----BEGIN CERTIFICATE-----"));
    let map = api.until(&path, "made", whole);
    let text = std::fs::read_to_string(api.ca()).unwrap();
    assert_eq!(map["data"]["ca.crt"], text.as_str());
    api.delete(&path);
    api.until(&path, "made again", |m| whole(m) && m["metadata"]["uid"] != map["metadata"]["uid"]);
    api.patch(&path, MERGE, &json!({"data": {"ca.crt": ""}}));
    let mended = api.until(&path, "mended", whole);
    assert_eq!(mended["data"]["ca.crt"], text.as_str());
}

// Conformance: ServiceAccount lifecycle test
fn the_life_of_a_service_account(api: &Api<'_>) {
    let all = format!("/api/v1/namespaces/{}/serviceaccounts", api.namespace("sa-life"));
    let one = format!("{all}/testserviceaccount");
    let watch = api.watch(&format!("{all}?labelSelector=test-serviceaccount-static%3Dtrue"));
    api.create(
        &all,
        &json!({"metadata": {"name": "testserviceaccount", "labels": {"test-serviceaccount-static": "true"}}}),
    );
    watch.expect("ADDED", "testserviceaccount");
    let patched = api.patch(&one, MERGE, &json!({"automountServiceAccountToken": false}));
    assert_eq!(patched["automountServiceAccountToken"], false);
    watch.expect("MODIFIED", "testserviceaccount");
    let everywhere = api.list("/api/v1/serviceaccounts?labelSelector=test-serviceaccount-static%3Dtrue");
    assert_eq!(
        (names(&everywhere), &everywhere[0]["automountServiceAccountToken"]),
        (vec!["testserviceaccount"], &json!(false))
    );
    api.delete(&format!("{all}?fieldSelector=metadata.name%3Dtestserviceaccount"));
    watch.expect("DELETED", "testserviceaccount");
}

// Conformance: ServiceAccount, update a ServiceAccount
fn a_service_account_is_updated(api: &Api<'_>) {
    let all = format!("/api/v1/namespaces/{}/serviceaccounts", api.namespace("sa-update"));
    api.create(&all, &json!({"metadata": {"name": "e2e"}, "automountServiceAccountToken": true}));
    let updated = api.edit(&format!("{all}/e2e"), |a| a["automountServiceAccountToken"] = json!(false));
    assert_eq!(updated["automountServiceAccountToken"], false);
}

// Conformance: SubjectReview, API Operations
fn access_is_reviewed(api: &Api<'_>) {
    let namespace = api.namespace("subject-review");
    let base = format!("/api/v1/namespaces/{namespace}");
    api.create(&format!("{base}/serviceaccounts"), &json!({"metadata": {"name": "e2e"}}));
    let user = format!("system:serviceaccount:{namespace}:e2e");
    let groups = ["system:authenticated", "system:serviceaccounts"];
    let account = api.impersonate(&user, &groups);
    let spec = json!({"user": user, "groups": groups, "resourceAttributes":
        {"verb": "list", "resource": "configmaps", "namespace": namespace, "version": "v1"}});
    let group = "/apis/authorization.k8s.io/v1";
    let check = |allowed: bool| {
        let code = account.try_get(&format!("{base}/configmaps")).code;
        assert_eq!(code == 200, allowed, "{code}");
        let review = |kind: &str, metadata: Value| json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec});
        let anywhere = api.create(&format!("{group}/subjectaccessreviews"), &review("SubjectAccessReview", json!({})));
        assert_eq!(anywhere["status"]["allowed"], allowed, "{anywhere}");
        let local = review("LocalSubjectAccessReview", json!({"namespace": namespace}));
        let local = api.create(&format!("{group}/namespaces/{namespace}/localsubjectaccessreviews"), &local);
        assert_eq!(local["status"]["allowed"], allowed, "{local}");
        let own = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": spec["resourceAttributes"]}});
        let own = account.create(&format!("{group}/selfsubjectaccessreviews"), &own);
        assert_eq!(own["status"]["allowed"], allowed, "{own}");
    };
    check(false);
    let binding = json!({"metadata": {"name": "view"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "e2e", "namespace": namespace}]});
    let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings");
    api.create(&roles, &binding);
    api.cluster.wait_for("the binding takes effect", || {
        (account.try_get(&format!("{base}/configmaps")).code == 200).then_some(())
    });
    check(true);
}
