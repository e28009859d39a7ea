//! ClusterTrustBundles and the certificates of pods: what pods see of them in projected volumes, who may vouch and sign
//! for whom, and what a node may ask for. The signer is played by the test.

mod cluster;

use cluster::Cluster;
use cluster::api::{APPLY, Api, JSON_PATCH, MERGE, STRATEGIC, base64, is_ready, name};
use k8s_openapi::ByteString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

const BUNDLES: &str = "/apis/certificates.k8s.io/v1/clustertrustbundles";
const SIGNER: &str = "example.com/tests";

#[test]
fn trust() {
    let cluster = Cluster::start();
    let all = scenarios![
        bundles_in_pods,
        the_bundle_of_the_server,
        who_may_vouch,
        certificates_in_pods,
        a_certificate_is_denied,
        what_a_node_may_ask_for,
        requests_of_pods,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// A certificate of an authority that is its own.
fn anchor() -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn bundle(name: &str, signer: Option<&str>, anchors: &[&String]) -> Value {
    let text: String = anchors.iter().map(|a| format!("an anchor\n{a}")).collect();
    json!({"metadata": {"name": name, "labels": {"e2e": "anchors"}},
        "spec": {"signerName": signer, "trustBundle": text}})
}

fn pod(name: &str, sources: &Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "projected": {"sources": sources}}]}})
}

fn read(api: &Api<'_>, namespace: &str, pod: &str, file: &str) -> Option<String> {
    api.exec(namespace, pod, &["/gantry", "self", "cat", &format!("/v/{file}")]).ok()
}

/// The certificates of a file, without regard to their order.
fn certificates(text: &str) -> Vec<String> {
    let mut out: Vec<String> = text.split_inclusive("-----END CERTIFICATE-----\n").map(ToOwned::to_owned).collect();
    out.sort();
    out
}

fn sorted(anchors: &[&String]) -> Vec<String> {
    let mut out: Vec<String> = anchors.iter().map(|a| a.replace('\r', "")).collect();
    out.sort();
    out
}

/// Waits for an event about a pod.
fn event(api: &Api<'_>, namespace: &str, pod: &str, reason: &str, text: &str) {
    let path = format!("/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3D{pod}");
    api.until(&path, &format!("{reason}: {text}"), |list| {
        let told = |e: &Value| e["reason"] == reason && e["message"].as_str().is_some_and(|m| m.contains(text));
        list["items"].as_array().is_some_and(|items| items.iter().any(told))
    });
}

fn bundles_in_pods(api: &Api<'_>) {
    let namespace = api.namespace("bundles");
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let (a, b, c) = (anchor(), anchor(), anchor());
    api.create(BUNDLES, &bundle("plain", None, &[&a, &b]));
    api.create(BUNDLES, &bundle("example.com:tests:one", Some(SIGNER), &[&a, &b]));
    api.create(BUNDLES, &bundle("example.com:tests:two", Some(SIGNER), &[&b, &c]));
    let signed = json!({"signerName": SIGNER, "labelSelector": {"matchLabels": {"e2e": "anchors"}}, "path": "signed"});
    let sources = json!([
        {"clusterTrustBundle": {"name": "plain", "path": "named"}},
        {"clusterTrustBundle": signed},
        {"clusterTrustBundle": {"name": "none", "path": "empty", "optional": true}},
    ]);
    api.create(&pods, &pod("reads", &sources));
    let waits = json!([{"clusterTrustBundle": {"name": "later", "path": "later"}}]);
    api.create(&pods, &pod("waits", &waits));
    let none = json!([{"clusterTrustBundle": {"signerName": "example.com/nobody", "labelSelector": {}, "path": "p"}}]);
    api.create(&pods, &pod("nobody", &none));
    api.ready(&namespace, "reads");
    let file = |file: &str| read(api, &namespace, "reads", file).unwrap();
    assert_eq!(certificates(&file("named")), sorted(&[&a, &b]));
    assert_eq!(certificates(&file("signed")), sorted(&[&a, &b, &c]), "each once");
    assert_eq!(file("empty"), "");

    // What changes is in the volume without a restart.
    api.edit(&format!("{BUNDLES}/plain"), |o| o["spec"]["trustBundle"] = json!(c));
    api.cluster.wait_for("the new anchor", || {
        (certificates(&read(api, &namespace, "reads", "named")?) == sorted(&[&c])).then_some(())
    });
    api.delete(&format!("{BUNDLES}/example.com:tests:two"));
    api.cluster.wait_for("one bundle less", || {
        (certificates(&read(api, &namespace, "reads", "signed")?) == sorted(&[&a, &b])).then_some(())
    });
    let status = &api.get(&format!("{pods}/reads"))["status"];
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);

    // What must be there is waited for.
    event(api, &namespace, "waits", "FailedMount", "clustertrustbundle.certificates.k8s.io \"later\" not found");
    let zero = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
    event(api, &namespace, "nobody", "FailedMount", zero);
    api.create(BUNDLES, &bundle("later", None, &[&a]));
    api.ready(&namespace, "waits");
    assert_eq!(read(api, &namespace, "waits", "later").map(|t| certificates(&t)), Some(sorted(&[&a])));
    api.delete(&format!("/api/v1/namespaces/{namespace}"));
}

/// A controller publishes the certificate that vouches for the server, and keeps it so.
fn the_bundle_of_the_server(api: &Api<'_>) {
    let all = format!("{BUNDLES}?fieldSelector=spec.signerName%3Dkubernetes.io%2Fkube-apiserver-serving");
    let one = |list: &Value| list["items"].as_array().is_some_and(|items| items.len() == 1);
    let first = api.until(&all, "published", one)["items"][0].clone();
    let root = api.until("/api/v1/namespaces/default/configmaps/kube-root-ca.crt", "published", |_| true);
    assert_eq!(first["spec"]["trustBundle"], root["data"]["ca.crt"]);
    assert!(name(&first).starts_with("kubernetes.io:kube-apiserver-serving:"), "{first}");
    api.delete(&format!("{BUNDLES}/{}", name(&first)));
    let again = api.until(&all, "published again", |list| {
        one(list) && list["items"][0]["metadata"]["uid"] != first["metadata"]["uid"]
    });
    assert_eq!(again["items"][0]["spec"], first["spec"]);
}

fn who_may_vouch(api: &Api<'_>) {
    let (role, to) = ("/apis/rbac.authorization.k8s.io/v1/clusterroles", "clusterrolebindings");
    let rule = |resource: &str, verb: &str| json!({"apiGroups": ["certificates.k8s.io"], "resources": [resource], "verbs": [verb]});
    api.create(role, &json!({"metadata": {"name": "vouching"}, "rules": [rule("clustertrustbundles", "create")]}));
    let binding = json!({"metadata": {"name": "vouching"}, "subjects": [{"kind": "User", "name": "vera"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "vouching"}});
    api.create(&role.replace("clusterroles", to), &binding);
    let vera = api.impersonate("vera", &[]);
    let a = anchor();
    let object = bundle("example.org:v:one", Some("example.org/v"), &[&a]);
    let told = api.cluster.wait_for("an answer of admission", || {
        let answer = vera.send("POST", BUNDLES, &object);
        (answer.code == 403 && answer.text.contains("attest")).then(|| answer.json())
    });
    assert_eq!(
        told["message"],
        "clustertrustbundles.certificates.k8s.io \"example.org:v:one\" is forbidden: user not permitted to attest for \
         signerName \"example.org/v\""
    );
    // What is nobody's needs no word for it.
    vera.create(BUNDLES, &bundle("of-nobody", None, &[&a]));
    api.edit(&format!("{role}/vouching"), |r| {
        let mut attest = rule("signers", "attest");
        attest["resourceNames"] = json!(["example.org/*"]);
        r["rules"].as_array_mut().unwrap().push(attest);
    });
    api.cluster
        .wait_for("the permission to attest", || (vera.send("POST", BUNDLES, &object).code == 201).then_some(()));
    // Every pod's account may read them.
    let account = "system:serviceaccount:default:default";
    let reads = api.impersonate(account, &["system:serviceaccounts", "system:authenticated"]);
    assert_eq!(reads.try_get(&format!("{BUNDLES}/of-nobody")).code, 200);
    assert_eq!(reads.send("DELETE", &format!("{BUNDLES}/of-nobody"), &json!({})).code, 403);
}

fn requests(namespace: &str) -> String {
    format!("/apis/certificates.k8s.io/v1/namespaces/{namespace}/podcertificaterequests")
}

/// The request for a pod's certificate, once it is made.
fn request_of(api: &Api<'_>, namespace: &str, pod: &str) -> Value {
    let path = format!("{}?fieldSelector=spec.podName%3D{pod}", requests(namespace));
    let made = |list: &Value| list["items"].as_array().is_some_and(|items| !items.is_empty());
    api.until(&path, "asked for", made)["items"][0].clone()
}

/// Now, in whole seconds.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

fn condition(kind: &str) -> Value {
    json!([{"type": kind, "status": "True", "reason": "Tested", "message": "by the test", "lastTransitionTime": now()}])
}

/// What a signer answers: a certificate for the request's key from `from` on, for an hour.
fn issued(request: &[u8], from: Timestamp) -> Value {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(authority, KeyPair::generate().unwrap());
    let mut params = CertificateSigningRequestParams::from_der(&request.to_vec().into()).unwrap();
    let (to, refresh) = (from + SignedDuration::from_hours(1), from + SignedDuration::from_mins(30));
    params.params.not_before = time::OffsetDateTime::from_unix_timestamp(from.as_second()).unwrap();
    params.params.not_after = time::OffsetDateTime::from_unix_timestamp(to.as_second()).unwrap();
    let chain = params.signed_by(&issuer).unwrap().pem();
    json!({"conditions": condition("Issued"), "certificateChain": chain, "notBefore": from, "notAfter": to,
        "beginRefreshAt": refresh})
}

fn der(request: &Value) -> Vec<u8> {
    let bytes: ByteString = serde_json::from_value(request["spec"]["stubPKCS10Request"].clone()).unwrap();
    bytes.0
}

fn certificates_in_pods(api: &Api<'_>) {
    let namespace = api.namespace("certificates");
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let source = json!({"signerName": SIGNER, "keyType": "ECDSAP384", "credentialBundlePath": "bundle.pem",
        "keyPath": "key.pem", "certificateChainPath": "chain.pem", "maxExpirationSeconds": 7200,
        "userAnnotations": {"example.com/hint": "h"}});
    let made = api.create(&pods, &pod("certified", &json!([{"podCertificate": source}])));
    let request = request_of(api, &namespace, "certified");
    let spec = &request["spec"];
    assert_eq!((&spec["podUID"], &spec["signerName"]), (&made["metadata"]["uid"], &json!(SIGNER)));
    assert_eq!((&spec["maxExpirationSeconds"], &spec["serviceAccountName"]), (&json!(7200), &json!("default")));
    assert_eq!(spec["unverifiedUserAnnotations"], json!({"example.com/hint": "h"}));
    assert_eq!(request["metadata"]["ownerReferences"][0]["uid"], made["metadata"]["uid"]);
    event(api, &namespace, "certified", "FailedMount", "credential bundle is not issued yet");

    // Only with the right to sign, only for the key, only from now on.
    let status = format!("{}/{}/status", requests(&namespace), name(&request));
    let answered = |answer: Value| json!({"status": answer});
    let told = |with: &Api<'_>, answer: Value| {
        let answer = with.request("PATCH", &status, Some((MERGE, &answered(answer).to_string())));
        answer.expect(422)["message"].as_str().unwrap().to_owned()
    };
    let (group, resource) = ("certificates.k8s.io", "podcertificaterequests/status");
    let rule = json!({"apiGroups": [group], "resources": [resource], "verbs": ["patch"]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    api.create(&format!("{rbac}/clusterroles"), &json!({"metadata": {"name": "answering"}, "rules": [rule]}));
    let binding = json!({"metadata": {"name": "answering"}, "subjects": [{"kind": "User", "name": "sina"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "answering"}});
    api.create(&format!("{rbac}/clusterrolebindings"), &binding);
    let good = issued(&der(&request), now());
    let sina = api.impersonate("sina", &[]);
    let body = answered(good.clone()).to_string();
    api.cluster.wait_for("the role to be known", || {
        (sina.request("PATCH", &status, Some((MERGE, &body))).code == 422).then_some(())
    });
    let refused =
        "spec.signerName: Forbidden: User \"sina\" is not permitted to \"sign\" for signer \"example.com/tests\"";
    assert!(told(&sina, good.clone()).ends_with(refused));
    let other = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let foreign = told(api, issued(other.der(), now()));
    assert!(foreign.ends_with("leaf certificate was not issued to the requested public key"), "{foreign}");
    let early = told(api, issued(&der(&request), now() - SignedDuration::from_mins(6)));
    assert!(early.ends_with("must be set to within 5 minutes of kube-apiserver's current time"), "{early}");
    api.patch(&status, MERGE, &answered(good.clone()));

    api.ready(&namespace, "certified");
    let file = |file: &str| read(api, &namespace, "certified", file).unwrap();
    let (key, chain) = (file("key.pem"), file("chain.pem"));
    assert_eq!(file("bundle.pem"), format!("{key}{chain}"));
    assert_eq!(chain, good["certificateChain"].as_str().unwrap().replace('\r', ""));
    let pair = KeyPair::from_pem(&key).unwrap();
    let (_, block) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
    let held = block.parse_x509().unwrap();
    assert_eq!(held.public_key().subject_public_key.data, pair.public_key_raw());
    let table = api.cluster.kubectl(&["get", "podcertificaterequests", "-n", &namespace]);
    assert!(table.starts_with("NAME") && table.contains("Issued"), "{table}");
    let changed = told(api, json!({"certificateChain": "other"}));
    assert!(changed.ends_with("immutable after PodCertificateRequest is issued, denied, or failed"), "{changed}");
    api.delete(&format!("/api/v1/namespaces/{namespace}"));
}

fn a_certificate_is_denied(api: &Api<'_>) {
    let namespace = api.namespace("denied");
    let source = json!({"signerName": SIGNER, "keyType": "ED25519", "credentialBundlePath": "bundle.pem"});
    let sources = json!([{"podCertificate": source}]);
    api.create(&format!("/api/v1/namespaces/{namespace}/pods"), &pod("unwanted", &sources));
    let request = request_of(api, &namespace, "unwanted");
    let status = format!("{}/{}/status", requests(&namespace), name(&request));
    api.patch(&status, MERGE, &json!({"status": {"conditions": condition("Denied")}}));
    let told = format!(
        "PodCertificateRequest {namespace}/{} was denied, reason=\"Tested\", message=\"by the test\"",
        name(&request)
    );
    event(api, &namespace, "unwanted", "Denied", &told);
    let why = "PodCertificateRequest was permanently denied: reason=\"Tested\" message=\"by the test\"";
    event(api, &namespace, "unwanted", "FailedMount", why);
    assert!(!is_ready(&api.get(&format!("/api/v1/namespaces/{namespace}/pods/unwanted"))));
    api.delete(&format!("/api/v1/namespaces/{namespace}"));
}

/// A node asks for its own pods only, as they are.
fn what_a_node_may_ask_for(api: &Api<'_>) {
    let namespace = api.namespace("asking");
    let source = json!({"signerName": SIGNER, "keyType": "ED25519", "credentialBundlePath": "bundle.pem"});
    let sources = json!([{"podCertificate": source}]);
    api.create(&format!("/api/v1/namespaces/{namespace}/pods"), &pod("asked", &sources));
    let request = request_of(api, &namespace, "asked");
    let node = request["spec"]["nodeName"].as_str().unwrap().to_owned();
    let groups = ["system:nodes", "system:authenticated"];
    let (own, other) =
        (api.impersonate(&format!("system:node:{node}"), &groups), api.impersonate("system:node:other", &groups));
    let all = requests(&namespace);
    let again = |change: &dyn Fn(&mut Value)| {
        let mut object = json!({"metadata": {"generateName": "again-"}, "spec": request["spec"]});
        change(&mut object["spec"]);
        object
    };
    own.create(&all, &again(&|_| {}));
    let told = |with: &Api<'_>, object: &Value, code: u16| {
        with.send("POST", &all, object).expect(code)["message"].as_str().unwrap().to_owned()
    };
    let mine = again(&|_| {});
    let not_mine = format!("PodCertificateRequest.Spec.NodeName={node:?}, which is not the requesting node \"other\"");
    assert!(told(&other, &mine, 403).ends_with(&not_mine));
    let signer = told(&own, &again(&|s| s["signerName"] = json!("example.com/another")), 403);
    assert!(signer.contains("\"example.com/another\""), "{signer}");
    let account = told(&own, &again(&|s| s["serviceAccountName"] = json!("admin")), 403);
    assert!(account.contains("that differs from running pod (\"default\")"), "{account}");
    let stale = told(&own, &again(&|s| s["podUID"] = json!("1")), 500);
    assert!(stale.contains("which differs from running pod"), "{stale}");
    // It sees its own requests, and changes none.
    let one = format!("{all}/{}", name(&request));
    assert_eq!(own.try_get(&one).code, 200);
    assert_eq!(other.try_get(&one).code, 403);
    assert_eq!(own.try_get(&all).code, 403);
    assert_eq!(own.try_get(&format!("{all}?fieldSelector=spec.nodeName%3D{node}")).code, 200);
    let denied = json!({"status": {"conditions": condition("Denied")}});
    assert_eq!(own.request("PATCH", &format!("{one}/status"), Some((MERGE, &denied.to_string()))).code, 403);
    assert_eq!(own.send("DELETE", &one, &json!({})).code, 403);
    api.delete(&format!("/api/v1/namespaces/{namespace}"));
}

// Conformance: PodCertificateRequest API operations
fn requests_of_pods(api: &Api<'_>) {
    let namespace = api.namespace("operations");
    let all = requests(&namespace);
    let list = api.get("/apis/certificates.k8s.io/v1");
    for (resource, verbs) in [
        ("podcertificaterequests", "create delete deletecollection get list patch update watch"),
        ("podcertificaterequests/status", "get patch update"),
        ("clustertrustbundles", "create delete deletecollection get list patch update watch"),
    ] {
        let found = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == resource);
        let found = found.unwrap_or_else(|| panic!("{resource} in {list}"));
        assert_eq!(found["verbs"], json!(verbs.split(' ').collect::<Vec<_>>()), "{resource}");
    }
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let object = json!({"metadata": {"generateName": "e2e-example-pcr-", "labels": {"e2e": "pcr"}}, "spec": {
        "signerName": "example.com/e2e", "podName": "test-pod", "podUID": "12345678-1234-1234-1234-123456789012",
        "serviceAccountName": "default", "serviceAccountUID": "12345678-1234-1234-1234-123456789013",
        "nodeName": "test-node", "nodeUID": "12345678-1234-1234-1234-123456789014", "maxExpirationSeconds": 86400,
        "stubPKCS10Request": base64(csr.der())}});
    let watch = api.watch(&format!("{all}?labelSelector=e2e%3Dpcr"));
    let first = api.create(&all, &object);
    watch.find("ADDED", |o| name(o) == name(&first));
    let one = format!("{all}/{}", name(&first));
    assert_eq!(api.get(&one)["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(api.list("/apis/certificates.k8s.io/v1/podcertificaterequests?labelSelector=e2e%3Dpcr").len(), 1);
    let key = "test.podcertificaterequest.example.com";
    for kind in [MERGE, STRATEGIC] {
        let patched = api.patch(&one, kind, &json!({"metadata": {"labels": {key: kind.len().to_string()}}}));
        assert_eq!(patched["metadata"]["labels"][key], kind.len().to_string());
    }
    let path = format!("/metadata/labels/{key}");
    let patched = api.patch(&one, JSON_PATCH, &json!([{"op": "add", "path": path, "value": "json"}]));
    assert_eq!(patched["metadata"]["labels"][key], "json");
    let kinds = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest"});
    let applied = |status: Value| {
        let mut body = kinds.clone();
        body["metadata"] = json!({"annotations": {"applied": "true"}});
        if !status.is_null() {
            body["status"] = status;
        }
        body
    };
    let patched = api.patch(&format!("{one}?fieldManager=e2e"), APPLY, &applied(Value::Null));
    assert_eq!(patched["metadata"]["annotations"]["applied"], "true");
    api.edit(&one, |o| o["metadata"]["labels"][key] = json!("updated"));
    watch.find("MODIFIED", |o| o["metadata"]["labels"][key] == "updated");

    // The status, by every way there is.
    let answer = issued(csr.der(), now() - SignedDuration::from_mins(1));
    let fresh = || format!("{all}/{}/status", name(&api.create(&all, &object)));
    assert_eq!(api.get(&fresh())["status"], json!({}));
    let updated = api.edit(&fresh(), |o| o["status"] = answer.clone());
    assert_eq!(updated["status"], answer);
    for kind in [MERGE, STRATEGIC] {
        assert_eq!(api.patch(&fresh(), kind, &json!({"status": answer}))["status"], answer, "{kind}");
    }
    let steps: Vec<Value> = answer
        .as_object()
        .unwrap()
        .iter()
        .map(|(field, value)| json!({"op": "add", "path": format!("/status/{field}"), "value": value}))
        .collect();
    assert_eq!(api.patch(&fresh(), JSON_PATCH, &json!(steps))["status"], answer);
    let mut body = applied(answer.clone());
    body["metadata"] = json!({});
    assert_eq!(api.patch(&format!("{}?fieldManager=e2e", fresh()), APPLY, &body)["status"], answer);

    api.delete(&one);
    watch.find("DELETED", |o| name(o) == name(&first));
    api.delete(&format!("{all}?labelSelector=e2e%3Dpcr"));
    assert!(api.list(&all).is_empty());
    api.delete(&format!("/api/v1/namespaces/{namespace}"));
}
