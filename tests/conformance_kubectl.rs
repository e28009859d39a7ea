//! What upstream's conformance suite does with kubectl. Each behaviour stands above its scenario by upstream's name;
//! docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, condition, is_ready, name};
use cluster::busybox::{self, BUSYBOX};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn kubectl() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let all = scenarios![
        guestbook,
        what_the_server_is,
        descriptions,
        differences,
        exposing,
        labels,
        annotations_by_patch,
        replacement,
        running,
        dry_run,
        proxies,
        replicas,
        logs,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// kubectl in one namespace.
struct Kubectl<'a> {
    cluster: &'a Cluster,
    namespace: String,
}

impl<'a> Kubectl<'a> {
    fn new(api: &Api<'a>, namespace: &str) -> Self {
        Self { cluster: api.cluster, namespace: api.namespace(namespace) }
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(&[&["-n", &self.namespace], arguments].concat())
    }

    fn feed(&self, arguments: &[&str], object: &Value) -> String {
        self.cluster.kubectl_with(&[&["-n", &self.namespace], arguments, &["-f", "-"]].concat(), &object.to_string())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    fn ready(&self, what: &str) {
        self.run(&["wait", "--for=condition=Ready", "--timeout=90s", what]);
    }

    /// Waits until so many pods of a label are Ready and no other is left.
    fn pods(&self, selector: &str, count: usize) -> Vec<String> {
        self.cluster.wait_for(&format!("{count} pods {selector} in {}", self.namespace), || {
            let list = self.json(&["get", "pods", "-l", selector]);
            let items = list["items"].as_array().unwrap();
            (items.len() == count && items.iter().all(is_ready))
                .then(|| items.iter().map(|p| name(p).to_owned()).collect())
        })
    }
}

/// A replication controller of web servers.
fn controller(name: &str, replicas: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"replicas": replicas, "selector": {"app": name, "role": "primary"}, "template": {
            "metadata": {"labels": {"app": name, "role": "primary"}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "server", "image": "gantry.local/self", "args": ["serve", "--port", "6379"],
                    "ports": [{"name": "server", "containerPort": 6379}]}]}}}})
}

/// A Service in front of a Deployment of small web servers whose answers a script gives.
fn tier(name: &str, replicas: usize, script: &str) -> Value {
    let labels = json!({"app": "guestbook", "tier": name});
    let setup = format!(
        "mkdir -p /www/cgi-bin; printf '%s\\n' '#!/bin/sh' 'echo; {script}' >/www/cgi-bin/guestbook; \
         chmod +x /www/cgi-bin/guestbook; echo ok >/www/index.html; exec httpd -f -p 80 -h /www"
    );
    let container = json!({"name": "c", "image": BUSYBOX, "command": ["sh", "-c", setup],
        "readinessProbe": {"httpGet": {"path": "/index.html", "port": 80}, "periodSeconds": 1}});
    let template = json!({"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
            "spec": {"selector": labels, "ports": [{"port": 80}]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}}]})
}

// Conformance: Kubectl, guestbook application
fn guestbook(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "guestbook");
    // What is written goes to the primary, what is read comes from it by way of a replica.
    let primary =
        "case $QUERY_STRING in get) cat /tmp/entry 2>/dev/null;; *) echo ${QUERY_STRING#set=} >/tmp/entry;; esac";
    let replica = "wget -qO- http://primary/cgi-bin/guestbook?get";
    let frontend = "case $QUERY_STRING in get) wget -qO- http://replica/cgi-bin/guestbook?get;; \
                    *) wget -qO- http://primary/cgi-bin/guestbook?$QUERY_STRING;; esac";
    for (name, replicas, script) in [("primary", 1, primary), ("replica", 2, replica), ("frontend", 3, frontend)] {
        kubectl.feed(&["create"], &tier(name, replicas, script));
    }
    for name in ["primary", "replica", "frontend"] {
        kubectl.run(&["rollout", "status", &format!("deployment/{name}"), "--timeout=90s"]);
    }
    let url = |query: &str| format!("/api/v1/namespaces/guestbook/services/frontend/proxy/cgi-bin/guestbook?{query}");
    let ask = |query: &str| {
        let answer = api.try_get(&url(query));
        (answer.code == 200).then(|| answer.text.trim().to_owned())
    };
    api.cluster.wait_for("an empty guestbook", || ask("get").filter(String::is_empty));
    api.cluster.wait_for("an entry", || {
        ask("set=TestEntry")?;
        ask("get").filter(|text| text == "TestEntry")
    });
    kubectl.run(&["delete", "--grace-period=0", "--force", "service,deployment", "-l", "app=guestbook"]);
    api.cluster.wait_for("nothing left", || {
        kubectl.run(&["get", "all", "-l", "app=guestbook", "-o", "name"]).is_empty().then_some(())
    });
}

// Conformance: Kubectl, check version v1
// Conformance: Kubectl, cluster info
// Conformance: Kubectl, version
fn what_the_server_is(api: &Api<'_>) {
    let versions = api.cluster.kubectl(&["api-versions"]);
    assert!(versions.lines().any(|l| l == "v1"), "{versions}");
    let information = api.cluster.kubectl(&["cluster-info"]);
    assert!(information.contains("Kubernetes control plane") && information.contains("is running at"), "{information}");
    let version: Value = serde_json::from_str(&api.cluster.kubectl(&["version", "-o", "json"])).unwrap();
    for of in ["clientVersion", "serverVersion"] {
        for field in ["major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "compiler", "platform"]
        {
            assert!(version[of][field].as_str().is_some_and(|v| !v.is_empty()), "{of}.{field}: {version}");
        }
    }
}

// Conformance: Kubectl, describe pod or rc
fn descriptions(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "describe");
    kubectl.feed(&["create"], &controller("agnhost", 1));
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "agnhost", "labels": {"app": "agnhost", "role": "primary"}},
        "spec": {"selector": {"app": "agnhost", "role": "primary"}, "ports": [{"port": 6379, "targetPort": "server"}]}});
    kubectl.feed(&["create"], &service);
    let pod = kubectl.pods("app=agnhost", 1).remove(0);
    let node = kubectl.run(&["get", "pod", &pod, "-o", "jsonpath={.spec.nodeName}"]);
    let lines: [(&[&str], &[&[&str]]); 5] = [
        (
            &["pod", &pod],
            &[
                &["Name:", &pod],
                &["Namespace:", "describe"],
                &["Node:", &node],
                &["Labels:", "app=agnhost"],
                &["role=primary"],
                &["Annotations:"],
                &["Status:", "Running"],
                &["IP:"],
                &["Controlled By:", "ReplicationController/agnhost"],
                &["Image:", "gantry.local/self"],
                &["State:", "Running"],
                &["QoS Class:", "BestEffort"],
                &["Scheduled"],
                &["Started"],
            ],
        ),
        (
            &["rc", "agnhost"],
            &[
                &["Name:", "agnhost"],
                &["Namespace:", "describe"],
                &["Selector:", "app=agnhost,role=primary"],
                &["Labels:", "app=agnhost"],
                &["Annotations:"],
                &["Replicas:", "1 current", "1 desired"],
                &["Pods Status:", "1 Running", "0 Waiting", "0 Succeeded", "0 Failed"],
                &["Pod Template:"],
                &["Image:", "gantry.local/self"],
                &["Events:"],
                &["SuccessfulCreate", "Created pod: agnhost-"],
            ],
        ),
        (
            &["service", "agnhost"],
            &[
                &["Name:", "agnhost"],
                &["Namespace:", "describe"],
                &["Labels:", "app=agnhost"],
                &["role=primary"],
                &["Annotations:"],
                &["Selector:", "app=agnhost,role=primary"],
                &["Type:", "ClusterIP"],
                &["IP:"],
                &["Port:", "<unset>", "6379/TCP"],
                &["Endpoints:", ":6379"],
                &["Session Affinity:", "None"],
            ],
        ),
        (
            &["node", &node],
            &[
                &["Name:", &node],
                &["Labels:"],
                &["Annotations:"],
                &["CreationTimestamp:"],
                &["Conditions:"],
                &["Type", "Status", "LastHeartbeatTime", "LastTransitionTime", "Reason", "Message"],
                &["Addresses:"],
                &["Capacity:"],
                &["Kernel Version:"],
                &["OS Image:"],
                &["Container Runtime Version:"],
                &["Kubelet Version:", "v1.37"],
                &["Non-terminated Pods:"],
            ],
        ),
        (
            &["namespace", "describe"],
            &[&["Name:", "describe"], &["Labels:"], &["Annotations:"], &["Status:", "Active"]],
        ),
    ];
    for (what, wanted) in lines {
        let all: Vec<&str> = ["describe"].iter().chain(what).copied().collect();
        let found = |text: &str| {
            wanted.iter().find(|words| !text.lines().any(|l| words.iter().all(|w| l.contains(w)))).copied()
        };
        // Endpoints and events come a little later than what they are about.
        api.cluster.wait_for(&format!("{wanted:?} in the description of {what:?}"), || {
            found(&kubectl.run(&all)).is_none().then_some(())
        });
    }
}

// Conformance: Kubectl, diff Deployment
fn differences(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "diff");
    let deployment = |image: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "httpd"}, "spec":
        {"replicas": 1, "selector": {"matchLabels": {"app": "httpd"}}, "template": {"metadata": {"labels": {"app": "httpd"}},
            "spec": {"nodeSelector": {"no": "node"}, "containers": [{"name": "httpd", "image": image}]}}}})
    };
    kubectl.feed(&["create"], &deployment("registry.example/httpd:2.4"));
    let arguments = ["-n", "diff", "diff", "-f", "-"];
    let output = api.cluster.try_kubectl_with(&arguments, &deployment("registry.example/busybox:1").to_string());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for line in ["-      - image: registry.example/httpd:2.4", "+      - image: registry.example/busybox:1"] {
        assert!(text.lines().any(|l| l == line), "{text}");
    }
}

// Conformance: Kubectl, create service, replication controller
fn exposing(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "expose");
    kubectl.feed(&["create"], &controller("agnhost-primary", 1));
    kubectl.pods("app=agnhost-primary", 1);
    let check = |service: &str, port: u64| {
        let object = kubectl.json(&["get", "service", service]);
        let first = &object["spec"]["ports"][0];
        assert_eq!((&first["port"], &first["targetPort"]), (&json!(port), &json!(6379)), "{object}");
        api.cluster.wait_for(&format!("endpoints of {service}"), || {
            let endpoints = kubectl.json(&["get", "endpoints", service]);
            (endpoints["subsets"][0]["ports"][0]["port"] == 6379).then_some(())
        });
        let address = format!("http://{}:{port}/hostname", object["spec"]["clusterIP"].as_str().unwrap());
        api.cluster.wait_for(&address, || {
            let output = api.cluster.inside("curl").args(["-sf", "--max-time", "5", &address]).output().unwrap();
            output.status.success().then_some(())
        });
    };
    kubectl.run(&["expose", "rc", "agnhost-primary", "--name=rm2", "--port=1234", "--target-port=6379"]);
    check("rm2", 1234);
    kubectl.run(&["expose", "service", "rm2", "--name=rm3", "--port=2345", "--target-port=6379"]);
    check("rm3", 2345);
}

fn sleeper(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"name": name}}, "spec":
        {"terminationGracePeriodSeconds": 0, "containers": [{"name": name, "image": "gantry.local/self", "args": ["sleep", "inf"]}]}})
}

// Conformance: Kubectl, label update
fn labels(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "label");
    kubectl.feed(&["create"], &sleeper("pause"));
    kubectl.ready("pod/pause");
    kubectl.run(&["label", "pods", "pause", "testing-label=testing-label-value"]);
    let shown = || kubectl.run(&["get", "pod", "pause", "-L", "testing-label"]);
    assert!(shown().contains("testing-label-value"), "{}", shown());
    assert_eq!(kubectl.run(&["get", "pods", "-l", "testing-label", "-o", "name"]), "pod/pause\n");
    kubectl.run(&["label", "pods", "pause", "testing-label-"]);
    assert!(!shown().contains("testing-label-value"), "{}", shown());
    assert_eq!(kubectl.run(&["get", "pods", "-l", "testing-label", "-o", "name"]), "");
}

// Conformance: Kubectl, patch to annotate
fn annotations_by_patch(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "patch");
    kubectl.feed(&["create"], &controller("agnhost-primary", 2));
    for pod in kubectl.pods("app=agnhost-primary", 2) {
        kubectl.run(&["patch", "pod", &pod, "-p", r#"{"metadata":{"annotations":{"x":"y"}}}"#]);
    }
    let list = kubectl.json(&["get", "pods", "-l", "app=agnhost-primary"]);
    for pod in list["items"].as_array().unwrap() {
        assert_eq!(pod["metadata"]["annotations"]["x"], "y");
    }
}

// Conformance: Kubectl, replace
fn replacement(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "replace");
    kubectl.run(&[
        "run",
        "e2e-test-pod",
        "--image=gantry.local/self",
        "--image-pull-policy=IfNotPresent",
        "--pod-running-timeout=2m0s",
        "--labels=run=e2e-test-pod",
        "--",
        "sleep",
        "inf",
    ]);
    kubectl.ready("pod/e2e-test-pod");
    let mut pod = kubectl.json(&["get", "pod", "e2e-test-pod"]);
    pod["spec"]["containers"][0]["image"] = json!(BUSYBOX);
    kubectl.feed(&["replace"], &pod);
    assert_eq!(kubectl.json(&["get", "pod", "e2e-test-pod"])["spec"]["containers"][0]["image"], BUSYBOX);
    // By force it is another pod.
    let uid = pod["metadata"]["uid"].clone();
    let output = kubectl.feed(&["replace", "--force", "--grace-period=0"], &sleeper("e2e-test-pod"));
    assert!(output.contains("pod/e2e-test-pod replaced"), "{output}");
    assert_ne!(kubectl.json(&["get", "pod", "e2e-test-pod"])["metadata"]["uid"], uid);
}

// Conformance: Kubectl, run pod
fn running(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "run");
    kubectl.run(&[
        "run",
        "e2e-test-pod",
        "--restart=Never",
        "--image=gantry.local/self",
        "--image-pull-policy=IfNotPresent",
    ]);
    let pod = kubectl.json(&["get", "pod", "e2e-test-pod"]);
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&pod["spec"]["containers"][0]["image"], &pod["spec"]["restartPolicy"]),
        (&json!("gantry.local/self"), &json!("Never"))
    );
}

// Conformance: Kubectl, server-side dry-run Pod
fn dry_run(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "dry-run");
    kubectl.run(&["run", "e2e-test-pod", "--image=gantry.local/self", "--labels=run=e2e-test-pod"]);
    let patch = json!({"spec": {"containers": [{"name": "e2e-test-pod", "image": BUSYBOX}]}}).to_string();
    let patched = kubectl.json(&["patch", "pod", "e2e-test-pod", "-p", &patch, "--dry-run=server"]);
    assert_eq!(patched["spec"]["containers"][0]["image"], BUSYBOX);
    assert_eq!(kubectl.json(&["get", "pod", "e2e-test-pod"])["spec"]["containers"][0]["image"], "gantry.local/self");
}

// Conformance: Kubectl, proxy port zero
// Conformance: Kubectl, proxy socket
fn proxies(api: &Api<'_>) {
    let socket = api.cluster.data_dir().join("kubectl-proxy.sock");
    let by_socket = format!("--unix-socket={}", socket.display());
    for arguments in [["proxy", "--port=0", "--disable-filter"], ["proxy", &by_socket, "--disable-filter"]] {
        let mut proxy = api.cluster.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(proxy.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        // "Starting to serve on 127.0.0.1:41233", or on the socket.
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        let answer = if address.starts_with('/') {
            cluster::run(Command::new("curl").args(["-sS", "--unix-socket", &address, "http://localhost/api/"]))
        } else {
            cluster::run(api.cluster.inside("curl").args(["-sS", &format!("http://{address}/api/")]))
        };
        proxy.kill().unwrap();
        proxy.wait().unwrap();
        let versions: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((&versions["kind"], &versions["versions"]), (&json!("APIVersions"), &json!(["v1"])), "{line}");
    }
}

// Conformance: Kubectl, replication controller
// Conformance: Kubectl, scale replication controller
fn replicas(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "update-demo");
    kubectl.feed(&["create"], &controller("update-demo-nautilus", 2));
    let check = |count: usize| {
        for pod in kubectl.pods("app=update-demo-nautilus", count) {
            let template = "{{range .status.containerStatuses}}{{if exists . \"state\" \"running\"}}true{{end}}{{end}}";
            assert_eq!(
                kubectl.run(&["get", "pods", &pod, "-o", "template", &format!("--template={template}")]),
                "true"
            );
            let answer = api.try_get(&format!("/api/v1/namespaces/update-demo/pods/{pod}:6379/proxy/hostname"));
            assert_eq!((answer.code, answer.text.trim()), (200, pod.as_str()));
        }
    };
    check(2);
    kubectl.run(&["scale", "rc", "update-demo-nautilus", "--replicas=1", "--timeout=2m"]);
    check(1);
    kubectl.run(&["scale", "rc", "update-demo-nautilus", "--replicas=2", "--timeout=2m"]);
    check(2);
    kubectl.run(&["delete", "--grace-period=0", "--force", "rc", "update-demo-nautilus"]);
    kubectl.pods("app=update-demo-nautilus", 0);
}

// Conformance: Kubectl, logs
fn logs(api: &Api<'_>) {
    let kubectl = Kubectl::new(api, "logs");
    // Lines of long ago, as far as this test is concerned, and a line a second.
    let script = "for i in 1 2 3 4 5; do echo old $i; done; while sleep 1; do echo GET /new; done";
    kubectl.run(&["run", "logs-generator", &format!("--image={BUSYBOX}"), "--restart=Never", "--", "sh", "-c", script]);
    kubectl.ready("pod/logs-generator");
    let logs = |options: &[&str]| kubectl.run(&[&["logs", "logs-generator", "logs-generator"], options].concat());
    api.cluster.wait_for("some lines", || (logs(&[]).lines().count() > 8).then_some(()));
    assert!(logs(&[]).starts_with("old 1\nold 2\n"), "{}", logs(&[]));
    assert_eq!(logs(&["--tail=1"]).lines().count(), 1);
    assert_eq!(logs(&["--limit-bytes=1"]), "o");
    let stamped = logs(&["--tail=1", "--timestamps"]);
    let (time, line) = stamped.trim().split_once(' ').unwrap();
    assert_eq!(line, "GET /new");
    let parts: Vec<&str> = time.split(['T', '.']).collect();
    assert!(
        parts.len() == 3 && parts[0].len() == 10 && parts[1].len() == 8 && parts[2].ends_with('Z'),
        "{time} is RFC 3339"
    );
    let (recent, day) = (logs(&["--since=1s"]).lines().count(), logs(&["--since=24h"]).lines().count());
    assert!(recent < day && recent <= 4, "{recent} lines of a second, {day} of a day");
    assert_eq!(condition(&kubectl.json(&["get", "pod", "logs-generator"]), "Ready"), "True");
}
