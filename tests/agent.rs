//! Server and agent as processes of their own, on machines of their own: two network namespaces joined by a cable.

mod cluster;

use cluster::{Cluster, GANTRY};
use serde_json::Value;
use std::process::{Command, Stdio};

const SERVER: &str = "10.9.0.1";
const NODE: &str = "10.9.0.2";
const URL: &str = "https://10.9.0.1:6443";

/// The server's machine and a node's, with a cable between them; nothing runs yet.
fn machines(options: &[&str]) -> (Cluster, Cluster) {
    // No default route says which of its addresses others reach it by.
    let mut server = Cluster::prepare_role("server", &["--bind-address", "0.0.0.0", "--advertise-address", SERVER]);
    server.add_options(options);
    let agent = Cluster::prepare_role("agent", &["--server", URL, "--node-cidr", "10.244.1.0/24", "--node-ip", NODE]);
    server.connect(SERVER, &agent, NODE);
    (server, agent)
}

fn pki(server: &Cluster, file: &str) -> String {
    server.data_dir().join("pki").join(file).display().to_string()
}

/// The hash in the command that the server prints.
fn hash(server: &Cluster) -> String {
    let log = server.log();
    let words: Vec<&str> = log.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "--discovery-token-ca-cert-hash").unwrap();
    words[at + 1].to_owned()
}

fn node_ready(server: &Cluster, agent: &Cluster) {
    server.wait_for("node-1 Ready", || {
        let output = server.try_kubectl(&["wait", "--for=condition=Ready", "node/node-1", "--timeout=5s"]);
        output.status.success().then_some(())
    });
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

/// Signers of the requests that `who` made and that were signed.
fn signed_for(server: &Cluster, who: &str) -> Vec<String> {
    let all = server.get(&["certificatesigningrequests"]);
    let mine = all["items"].as_array().unwrap().iter().filter(|c| c["spec"]["username"] == who);
    let issued = mine.filter(|c| c["status"]["certificate"].as_str().is_some_and(|s| !s.is_empty()));
    issued.map(|c| c["spec"]["signerName"].as_str().unwrap().to_owned()).collect()
}

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: gantry.local/self
        imagePullPolicy: IfNotPresent
        args: [serve, --port, "8080"]
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

const ALONE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: alone}
spec:
  restartPolicy: Never
  containers:
  - name: alone
    image: gantry.local/self
    imagePullPolicy: IfNotPresent
    args: [write, /out/said, alone]
    volumeMounts: [{name: out, mountPath: /out}]
  volumes: [{name: out, hostPath: {path: OUT}}]
"#;

/// Container ids and restarts of the web pods, sorted.
fn containers(server: &Cluster) -> Vec<(String, i64)> {
    let pods = server.get(&["pods", "-l", "app=web"]);
    let status = |p: &Value| p["status"]["containerStatuses"][0].clone();
    let mut all: Vec<(String, i64)> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            (
                status(p)["containerID"].as_str().unwrap_or_default().to_owned(),
                status(p)["restartCount"].as_i64().unwrap(),
            )
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_node_of_its_own() {
    // Certificates live 120 s and are backdated by 300 s: four fifths of that are over 36 s after the signing.
    let (mut server, mut agent) = machines(&["--cluster-signing-duration", "2m0s"]);
    server.up();
    let token = pki(&server, "join-token");
    agent.add_options(&["--token-file", &token, "--discovery-token-ca-cert-hash", &hash(&server)]);
    let manifests = agent.data_dir().join("manifests");
    agent.add_options(&["--pod-manifest-path", &manifests.display().to_string()]);
    agent.up();
    node_ready(&server, &agent);

    // It joined by a request under the token's identity, and serves with a certificate of its own.
    assert_eq!(signed_for(&server, "system:bootstrap:join"), [CLIENT]);
    server.wait_for("a serving certificate", || {
        signed_for(&server, "system:node:node-1").contains(&SERVING.to_owned()).then_some(())
    });
    assert_eq!(server.jsonpath(&["node", "node-1"], "{.spec.podCIDR}"), "10.244.1.0/24");
    let role = server.get(&["clusterrole", "system:controller:certificate-controller"]);
    let rules = role["rules"].as_array().unwrap();
    // What people approve is signed, too.
    let all = ["kubernetes.io/legacy-unknown", "kubernetes.io/kube-apiserver-client", CLIENT, SERVING];
    for (verb, signers) in [("approve", &all[2..]), ("sign", &all[..])] {
        let rule = rules.iter().find(|r| r["verbs"] == serde_json::json!([verb])).unwrap();
        assert_eq!(rule["resources"], serde_json::json!(["signers"]), "{role}");
        assert_eq!(rule["resourceNames"], serde_json::json!(signers), "{role}");
    }

    // Pods run there, find each other by name, and are reached through the server.
    server.apply(WEB);
    server.rolled_out("web");
    let inside = |arguments: &[&str]| {
        let mut all = vec!["exec", "deployment/web", "--", "/gantry", "self"];
        all.extend(arguments);
        server.kubectl(&all)
    };
    server.wait_for("the Service's name", || {
        let output = server.try_kubectl(&["exec", "deployment/web", "--", "/gantry", "self", "nslookup", "web"]);
        String::from_utf8_lossy(&output.stdout).contains("Name: web.default.svc.cluster.local").then_some(())
    });
    assert!(inside(&["nslookup", "kubernetes.default"]).contains("10.96.0.1"));
    server.wait_for("the Service itself", || {
        let url = "http://web/hostname";
        let output = server.try_kubectl(&["exec", "deployment/web", "--", "/gantry", "self", "get", url]);
        String::from_utf8_lossy(&output.stdout).contains("web-").then_some(())
    });
    let endpoints = server.get(&["endpointslice", "kube-dns-node-1", "-n", "kube-system"]);
    assert_eq!(endpoints["endpoints"][0]["addresses"][0], "10.244.1.1");
    assert_eq!(endpoints["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert!(server.kubectl(&["logs", "deployment/web"]).contains("serving on port 8080"));
    port_forward(&server);
    server.wait_for("figures", || {
        let top = server.try_kubectl(&["top", "pods", "--no-headers"]);
        (top.status.success() && String::from_utf8_lossy(&top.stdout).lines().count() == 2).then_some(())
    });

    // The server goes and comes back; nothing happens to the pods, and then the node takes orders again.
    let before = containers(&server);
    assert!(server.interrupt().success());
    // Meanwhile the agent is killed too, and runs a static pod without asking anybody.
    agent.kill();
    let out = agent.data_dir().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(manifests.join("alone.yaml"), ALONE.replace("OUT", &out.display().to_string())).unwrap();
    agent.up();
    let deadline = std::time::Instant::now() + cluster::PATIENCE;
    while std::fs::read_to_string(out.join("said")).map_or(true, |said| said.trim() != "alone") {
        assert!(std::time::Instant::now() < deadline, "the static pod does not run:\n{}", agent.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    server.up();
    server.wait_for("the mirror of the static pod", || {
        let phase = server.jsonpath(&["pod", "alone-node-1", "--ignore-not-found"], "{.status.phase}");
        (phase == "Succeeded").then_some(())
    });
    server.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    server.rolled_out("web");
    let after = containers(&server);
    assert!(before.iter().all(|c| after.contains(c)), "{before:?} {after:?}");

    // The agent dies and comes back; it finds its containers.
    agent.kill();
    agent.up();
    node_ready(&server, &agent);
    server.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    server.rolled_out("web");
    let later = containers(&server);
    assert!(after.iter().all(|c| later.contains(c)), "{after:?} {later:?}");
    assert!(server.kubectl(&["exec", "deployment/web", "--", "/gantry", "self", "nslookup", "web"]).contains("10.96."));

    // Both certificates are renewed under the node's own name, and the new ones work.
    server.wait_for("renewed certificates", || {
        let signed = signed_for(&server, "system:node:node-1");
        let count = |signer: &str| signed.iter().filter(|s| *s == signer).count();
        (count(CLIENT) >= 1 && count(SERVING) >= 2).then_some(())
    });
    agent.wait_for_log("renewed the node's client certificate");
    server.kubectl(&["scale", "deployment/web", "--replicas=5"]);
    server.rolled_out("web");
    assert!(server.kubectl(&["logs", "deployment/web"]).contains("serving on port 8080"));
}

fn port_forward(server: &Cluster) {
    let mut forward =
        server.command(&["port-forward", "deployment/web", "18080:8080"]).stdout(Stdio::piped()).spawn().unwrap();
    let answer = server.wait_for("the forwarded port", || {
        let output = server.inside("curl").args(["-s", "http://127.0.0.1:18080/hostname"]).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert!(answer.contains("web-"), "{answer}");
    forward.kill().unwrap();
    forward.wait().unwrap();
}

#[test]
fn what_cannot_join_says_why() {
    let (mut server, mut agent) = machines(&[]);
    server.up();
    let (token, ca, hash) = (pki(&server, "join-token"), pki(&server, "ca.crt"), hash(&server));
    agent.add_options(&["--token-file", &token, "--ca-file", &ca]);
    let elsewhere = tempfile::tempdir().unwrap();
    let data = elsewhere.path().join("data").display().to_string();
    let fails = |arguments: &[&str]| {
        let mut command = agent.inside(GANTRY);
        command.args(["agent", "--data-dir", &data, "--server", URL, "--node-cidr", "10.244.2.0/24"]).args(arguments);
        let output = command.args(["--node-name", "other"]).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let bad_token = elsewhere.path().join("token").display().to_string();
    std::fs::write(&bad_token, "nonsense").unwrap();
    let error = fails(&["--token-file", &bad_token, "--ca-file", &ca]);
    assert!(
        error.contains("the server does not accept the joining token in") && error.contains("Unauthorized"),
        "{error}"
    );

    let error = fails(&["--token-file", &token]);
    assert!(error.contains("--ca-file") && error.contains("--discovery-token-ca-cert-hash"), "{error}");
    let error = fails(&["--ca-file", &ca]);
    assert!(
        error.contains("this node has not joined yet; give the server's joining token with --token-file"),
        "{error}"
    );

    let zeros = format!("sha256:{}", "0".repeat(64));
    let error = fails(&["--token-file", &token, "--discovery-token-ca-cert-hash", &zeros]);
    assert!(
        error.contains("cluster CA found in cluster-info ConfigMap is invalid") && error.contains(&hash),
        "{error}"
    );

    let other = elsewhere.path().join("other-ca.crt");
    let key = elsewhere.path().join("other-ca.key");
    let make =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=kubernetes"];
    cluster::run(Command::new("openssl").args(make).args([
        "-keyout".as_ref(),
        key.as_os_str(),
        "-out".as_ref(),
        other.as_os_str(),
    ]));
    let error = fails(&["--token-file", &token, "--ca-file", &other.display().to_string()]);
    assert!(error.contains("invalid peer certificate") && error.contains("--ca-file"), "{error}");

    // A server that is not there yet is waited for.
    server.interrupt();
    agent.spawn();
    agent.wait_for_log("cannot reach the server, trying again");
    server.up();
    agent.wait_for_log("joined");
    node_ready(&server, &agent);

    // One name, one machine.
    let mut second = agent.inside(GANTRY);
    second.args([
        "agent",
        "--data-dir",
        &data,
        "--server",
        URL,
        "--node-cidr",
        "10.244.2.0/24",
        "--node-name",
        "node-1",
    ]);
    let output = second.args(["--token-file", &token, "--ca-file", &ca]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("a Node with name \"node-1\" and status \"Ready\" already exists"),
        "{error}"
    );
    // And one machine, one name.
    agent.kill();
    let mut renamed = agent.inside(GANTRY);
    renamed.arg("agent").args(["--data-dir".as_ref(), agent.data_dir().as_os_str()]);
    let output =
        renamed.args(["--server", URL, "--ca-file", &ca, "--node-cidr", "10.244.1.0/24", "--node-name", "new"]);
    let output = output.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("this data directory joined under another name than \"new\""),
        "{error}"
    );
}
