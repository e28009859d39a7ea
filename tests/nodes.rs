//! Two nodes and a server, on machines of their own: three network namespaces on one switch.

mod cluster;

use cluster::Cluster;
use serde_json::{Value, json};

const SERVER: &str = "10.9.1.1";
const URL: &str = "https://10.9.1.1:6443";
/// The second brings no range of pod addresses, and is given one.
const NODES: [(&str, &str, Option<&str>); 2] =
    [("node-1", "10.9.1.2", Some("10.244.1.0/24")), ("node-2", "10.9.1.3", None)];
const TOKEN: &str = "abcdef.0123456789abcdef";

const WEB: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
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

/// The agents' machines, joined with a bootstrap token.
fn join(server: &Cluster) -> Vec<Cluster> {
    let (id, secret) = TOKEN.split_once('.').unwrap();
    let fields = [
        format!("--from-literal=token-id={id}"),
        format!("--from-literal=token-secret={secret}"),
        "--from-literal=usage-bootstrap-authentication=true".into(),
        "--from-literal=auth-extra-groups=system:bootstrappers:kubeadm:default-node-token".into(),
    ];
    let name = format!("bootstrap-token-{id}");
    let mut create =
        vec!["create", "secret", "generic", "-n", "kube-system", name.as_str(), "--type=bootstrap.kubernetes.io/token"];
    create.extend(fields.iter().map(String::as_str));
    server.kubectl(&create);
    let ca = server.data_dir().join("pki/ca.crt").display().to_string();
    let agents = NODES.iter().map(|(name, address, range)| {
        let own = ["--node-ip", *address, "--node-name", *name];
        let mut options = [&["--server", URL, "--ca-file", ca.as_str()][..], &own[..]].concat();
        options.extend(range.iter().flat_map(|range| ["--node-cidr", *range]));
        let mut agent = Cluster::prepare_role("agent", &options);
        server.plug(name, &agent, address);
        let token = agent.data_dir().join("token").display().to_string();
        std::fs::write(&token, TOKEN).unwrap();
        agent.add_options(&["--token-file", &token]);
        agent.up();
        agent
    });
    agents.collect()
}

/// The pods of the DaemonSet, by node.
fn pods(server: &Cluster) -> Vec<Value> {
    let mut pods = server.get(&["pods", "-l", "app=web"])["items"].as_array().unwrap().clone();
    pods.sort_by_key(|p| p["spec"]["nodeName"].as_str().unwrap().to_owned());
    pods
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap()
}

/// What a pod gets from a URL.
fn get(server: &Cluster, pod: &Value, url: &str) -> Option<String> {
    let command = ["/gantry", "self", "get", "--timeout", "2", url];
    let output = server.try_kubectl(&[&["exec", name(pod), "--"][..], &command[..]].concat());
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn routes(agent: &Cluster) -> String {
    cluster::run(agent.inside("ip").args(["route", "show", "proto", "104"]))
}

#[test]
fn two_nodes() {
    let mut server = Cluster::prepare_role("server", &["--bind-address", SERVER, "--allocate-node-cidrs"]);
    server.switch(SERVER);
    server.up();
    let mut agents = join(&server);

    // Conformance tests minimum number of nodes.
    server.wait_for("two nodes that take pods", || {
        let nodes = server.get(&["nodes"]);
        let ready = |node: &Value| {
            let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|c| c["type"] == "Ready" && c["status"] == "True") && node["spec"]["taints"].is_null()
        };
        (nodes["items"].as_array().unwrap().iter().filter(|n| ready(n)).count() == 2).then_some(())
    });
    server.apply(WEB);
    server.kubectl(&["rollout", "status", "daemonset/web", "--timeout=90s"]);
    let pods = pods(&server);
    let [first, second] = pods.as_slice() else { panic!("a pod for each node: {pods:?}") };
    assert_eq!([&first["spec"]["nodeName"], &second["spec"]["nodeName"]], ["node-1", "node-2"]);

    // Pods reach each other over the nodes' routes, under their own addresses.
    for (from, to) in [(first, second), (second, first)] {
        let url = format!("http://{}:8080/hostname", to["status"]["podIP"].as_str().unwrap());
        server.wait_for("the other node's pod", || get(&server, from, &url).filter(|said| said.trim() == name(to)));
    }
    assert_eq!(routes(&agents[0]).trim(), "10.244.0.0/24 via 10.9.1.3 dev cable");
    for (agent, pod) in agents.iter().zip([second, first]) {
        let url = format!("http://{}:8080/hostname", pod["status"]["podIP"].as_str().unwrap());
        let said = cluster::run(agent.inside("curl").args(["-s", "--max-time", "10", &url]));
        assert_eq!(said.trim(), name(pod), "from a node to the other's pod");
    }
    // A Service leads to both, wherever it is asked.
    for pod in &pods {
        let mut seen = std::collections::BTreeSet::new();
        server.wait_for("both endpoints of the Service", || {
            seen.extend(get(&server, pod, "http://web/hostname").map(|said| said.trim().to_owned()));
            (seen.len() == 2).then_some(())
        });
    }
    policies(&server, first, second);

    // A node that leaves takes its routes along.
    agents[1].kill();
    server.kubectl(&["delete", "node", "node-2"]);
    server.wait_for("the end of the route", || routes(&agents[0]).trim().is_empty().then_some(()));
}

/// A policy on one node lets in by labels of pods on the other.
fn policies(server: &Cluster, first: &Value, second: &Value) {
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}]}});
    server.apply(&policy.to_string());
    let url = |pod: &Value| format!("http://{}:8080/hostname", pod["status"]["podIP"].as_str().unwrap());
    let reaches = |from: &Value, to: &Value| get(server, from, &url(to)).is_some();
    server.wait_for("the policy", || (!reaches(first, second) && !reaches(second, first)).then_some(()));
    server.kubectl(&["label", "pod", name(first), "friend=yes"]);
    server.wait_for("the label", || reaches(first, second).then_some(()));
    assert!(!reaches(second, first));
    server.kubectl(&["delete", "networkpolicy", "web"]);
    server.wait_for("the policy's end", || reaches(second, first).then_some(()));
}
