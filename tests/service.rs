//! Services: their addresses, names, the endpoints behind them, and the API server as one of them.

mod cluster;

use cluster::Cluster;
use std::collections::BTreeSet;
use std::net::UdpSocket;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: gantry.local/self
        args: [serve, --port, "8080"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  hostname: me
  subdomain: group
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: gantry.local/self, args: [sleep, inf]}]
---
apiVersion: v1
kind: Service
metadata: {name: group}
spec: {clusterIP: None, selector: {app: client}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: somewhere.example}
"#;

/// Runs a command of the built-in program in a pod; `Err` with all it printed where it fails.
fn program(cluster: &Cluster, pod: &str, arguments: &[&str]) -> Result<String, String> {
    let mut all = vec!["exec", pod, "--", "/gantry", "self"];
    all.extend(arguments);
    let output = cluster.try_kubectl(&all);
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stdout) + &text(&output.stderr)) }
}

/// Addresses a name has inside a pod.
fn addresses(cluster: &Cluster, pod: &str, name: &str) -> BTreeSet<String> {
    let printed = program(cluster, pod, &["nslookup", name]).unwrap_or_else(|e| panic!("{name}: {e}"));
    printed.lines().filter_map(|l| l.strip_prefix("Address: ")).map(str::to_owned).collect()
}

fn one(address: &str) -> BTreeSet<String> {
    [address.to_owned()].into()
}

fn curl(cluster: &Cluster, url: &str) -> Option<String> {
    let output = cluster.inside("curl").args(["-sS", "--fail", "--max-time", "5", url]).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// A DNS server on `127.0.0.53` in the cluster's network that knows one name, `somewhere.example`.
fn resolver_outside(cluster: &Cluster) {
    let (network, bound) = (cluster.network(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        cluster::enter(&network);
        let socket = UdpSocket::bind("127.0.0.53:53").unwrap();
        bound.0.send(()).unwrap();
        answer(&socket);
    });
    bound.1.recv().unwrap();
}

fn answer(socket: &UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((n, from)) = socket.recv_from(&mut buffer) {
        let query = &buffer[..n];
        let Some(end) = query[12..].iter().position(|b| *b == 0).map(|p| 12 + p + 5) else { continue };
        let question = &query[12..end];
        let known = question.starts_with(b"\x09somewhere\x07example\x00");
        let a = question[question.len() - 4..] == [0, 1, 0, 1];
        let (code, answers) = if known { (0x80, u8::from(a)) } else { (0x83, 0) };
        let mut reply = query[..2].to_vec();
        reply.extend([0x81, code, 0, 1, 0, answers, 0, 0, 0, 0]);
        reply.extend(question);
        if answers == 1 {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 7]);
        }
        // Who asked may be gone.
        let _ = socket.send_to(&reply, from);
    }
}

#[test]
fn services() {
    let resolv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(resolv.path(), "nameserver 127.0.0.53\n").unwrap();
    let mut cluster = Cluster::prepare(&["--resolv-conf", resolv.path().to_str().unwrap()]);
    resolver_outside(&cluster);
    cluster.up();
    cluster.apply(WEB);
    cluster.rolled_out("web");
    cluster.ready("client");
    let pods: BTreeSet<String> = cluster
        .jsonpath(&["pods", "-l", "app=web"], "{.items[*].metadata.name}")
        .split(' ')
        .map(str::to_owned)
        .collect();
    let ips: BTreeSet<String> = cluster
        .jsonpath(&["pods", "-l", "app=web"], "{.items[*].status.podIP}")
        .split(' ')
        .map(str::to_owned)
        .collect();
    assert_eq!((pods.len(), ips.len()), (3, 3));

    // Names.
    let address = cluster.jsonpath(&["service", "web"], "{.spec.clusterIP}");
    for name in
        ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local", "web.default.svc.cluster.local."]
    {
        assert_eq!(addresses(&cluster, "client", name), one(&address), "{name}");
    }
    assert_eq!(addresses(&cluster, "client", "headless"), ips);
    let own = cluster.jsonpath(&["pod", "client"], "{.status.podIP}");
    assert_eq!(addresses(&cluster, "client", "me.group.default.svc.cluster.local"), one(&own));
    assert_eq!(addresses(&cluster, "client", "kubernetes.default"), one("10.96.0.1"));
    assert_eq!(addresses(&cluster, "client", "somewhere.example"), one("192.0.2.7"), "asked of the host's resolver");
    assert_eq!(addresses(&cluster, "client", "outside"), one("192.0.2.7"), "an ExternalName is followed");
    let unknown = program(&cluster, "client", &["nslookup", "no-such-service"]).unwrap_err();
    assert!(unknown.contains("no-such-service"), "{unknown}");
    let hosts = program(&cluster, "client", &["cat", "/etc/hosts"]).unwrap();
    assert!(hosts.contains(&format!("{own}\tme.group.default.svc.cluster.local\tme\n")), "{hosts}");

    // Every ready endpoint gets its share, by each address the Service has, from a pod and from the node.
    let node = cluster.jsonpath(&["node", "node-1"], "{.status.addresses[0].address}");
    for url in [
        "http://web/hostname".to_owned(),
        format!("http://{address}/hostname"),
        format!("http://{node}:30080/hostname"),
    ] {
        let mut seen = BTreeSet::new();
        cluster.wait_for(&format!("all pods behind {url}"), || {
            seen.insert(program(&cluster, "client", &["get", &url]).unwrap().trim().to_owned());
            (seen == pods).then_some(())
        });
    }
    for url in [
        format!("http://{address}/hostname"),
        format!("http://{node}:30080/hostname"),
        "http://127.0.0.1:30080/hostname".to_owned(),
    ] {
        let mut seen = BTreeSet::new();
        cluster.wait_for(&format!("all pods behind {url} from the node"), || {
            seen.insert(curl(&cluster, &url).unwrap_or_else(|| panic!("no answer from {url}")).trim().to_owned());
            (seen == pods).then_some(())
        });
    }
    for ip in &ips {
        assert!(curl(&cluster, &format!("http://{ip}:8080/hostname")).is_some(), "the node reaches {ip}");
    }
    // A pod reaches itself through the Service.
    let itself = pods.first().unwrap();
    cluster.wait_for("hairpin", || {
        let who = program(&cluster, itself, &["get", "http://web/hostname"]).unwrap();
        (who.trim() == itself).then_some(())
    });
    // Nobody behind it: refused at once, not lost.
    let refused = program(&cluster, "client", &["get", "http://nobody/"]).unwrap_err();
    assert!(refused.contains("refused"), "{refused}");

    // An endpoint that is not ready leaves; one that is, comes back.
    let unready = pods.last().unwrap();
    cluster.kubectl(&["label", "pod", unready, "app-"]);
    cluster.wait_for("the orphan's endpoint leaves", || {
        let ready = cluster.jsonpath(&["endpoints", "headless"], "{.subsets[*].addresses[*].targetRef.name}");
        (!ready.contains(unready.as_str()) && ready.split(' ').count() == 3).then_some(())
    });
    cluster.wait_for("the name follows", || {
        let now = addresses(&cluster, "client", "headless");
        let wanted = cluster.jsonpath(&["endpoints", "headless"], "{.subsets[*].addresses[*].ip}");
        (now == wanted.split(' ').map(str::to_owned).collect()).then_some(())
    });
    for _ in 0..20 {
        let who = program(&cluster, "client", &["get", "http://web/hostname"]).unwrap();
        assert_ne!(who.trim(), unready);
    }

    // Session affinity keeps a client with one pod.
    cluster.kubectl(&["patch", "service", "web", "-p", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#]);
    cluster.wait_for("affinity", || {
        let mut who = BTreeSet::new();
        for _ in 0..12 {
            who.insert(program(&cluster, "client", &["get", "http://web/hostname"]).unwrap());
        }
        (who.len() == 1).then_some(())
    });
    // A deleted Service's address answers no more.
    cluster.kubectl(&["delete", "service", "web"]);
    cluster
        .wait_for("the node port closes", || curl(&cluster, "http://127.0.0.1:30080/hostname").is_none().then_some(()));
    cluster.wait_for("the name is gone", || program(&cluster, "client", &["nslookup", "web"]).is_err().then_some(()));
}

#[test]
fn the_api_from_inside() {
    let cluster = Cluster::start();
    cluster.apply(
        r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: v1
kind: Pod
metadata: {name: inside}
spec:
  serviceAccountName: reader
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: gantry.local/self, args: [sleep, inf]}]
---
apiVersion: v1
kind: Pod
metadata: {name: without}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: gantry.local/self, args: [sleep, inf]}]
"#,
    );
    cluster.ready("inside");
    cluster.ready("without");
    const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let get = |path: &str| {
        let (ca, token) = (format!("{ACCOUNT}/ca.crt"), format!("{ACCOUNT}/token"));
        let url = format!("https://kubernetes.default.svc{path}");
        program(&cluster, "inside", &["get", "--ca", &ca, "--token", &token, &url])
    };
    assert_eq!(program(&cluster, "inside", &["cat", &format!("{ACCOUNT}/namespace")]).unwrap(), "default");
    let version: serde_json::Value = serde_json::from_str(&get("/version").unwrap()).unwrap();
    assert_eq!(version["major"], "1");
    let forbidden = get("/api/v1/namespaces/default/pods").unwrap_err();
    let message = "pods is forbidden: User \\\"system:serviceaccount:default:reader\\\" cannot list resource \\\"pods\\\" \
                   in API group \\\"\\\" in the namespace \\\"default\\\"";
    assert!(forbidden.contains("403") && forbidden.contains(message), "{forbidden}");
    cluster.kubectl(&["create", "rolebinding", "reader", "--clusterrole=view", "--serviceaccount=default:reader"]);
    let pods = cluster.wait_for("the binding takes effect", || get("/api/v1/namespaces/default/pods").ok());
    let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
    assert_eq!(pods["items"].as_array().unwrap().len(), 2);
    assert!(get("/api/v1/namespaces/default/secrets").unwrap_err().contains("403"));
    // No token, or another authority's certificate: no answer.
    let missing = program(&cluster, "without", &["ls", ACCOUNT]).unwrap_err();
    assert!(missing.contains("No such file"), "{missing}");
    let anonymous = program(
        &cluster,
        "inside",
        &["get", "--ca", &format!("{ACCOUNT}/ca.crt"), "https://kubernetes.default.svc/api/v1/namespaces/default/pods"],
    );
    assert!(anonymous.unwrap_err().contains("403"));
    // The token dies with its pod.
    let token = program(&cluster, "inside", &["cat", &format!("{ACCOUNT}/token")]).unwrap();
    let status = || {
        let server = cluster.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
        let header = format!("Authorization: Bearer {}", token.trim());
        let url = format!("{server}/api/v1/namespaces/default/pods");
        let mut curl = cluster.inside("curl");
        curl.args(["-sS", "-k", "-o", "/dev/null", "-w", "%{http_code}", "-H", &header, &url]);
        cluster::run(&mut curl)
    };
    assert_eq!(status(), "200");
    cluster.kubectl(&["delete", "pod", "inside"]);
    cluster.wait_for("the token is refused", || (status() == "401").then_some(()));
}
