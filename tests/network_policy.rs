//! NetworkPolicies: who reaches whom, probed between pods of three namespaces.

mod cluster;

use cluster::api::Api;
use cluster::busybox;
use cluster::pods::{create, once};
use cluster::{Cluster, GANTRY, PATIENCE, enter};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 2] = ["a", "b"];
/// How long an answer may take. One that comes later is taken for none, and the probe is repeated.
const SILENCE: Duration = Duration::from_millis(500);
const GROUP: &str = "/apis/networking.k8s.io/v1";
const MERGE: &str = "application/merge-patch+json";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tcp(u16),
    Udp(u16),
}

/// Whether `to` answers where the calling thread is.
fn answers(to: IpAddr, way: Way) -> bool {
    let mut got = [0; 2];
    match way {
        Way::Tcp(port) => {
            let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::new(to, port), SILENCE) else { return false };
            stream.set_read_timeout(Some(SILENCE)).unwrap();
            stream.write_all(b"hi").is_ok() && stream.read_exact(&mut got).is_ok()
        }
        Way::Udp(port) => {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            socket.connect(SocketAddr::new(to, port)).unwrap();
            socket.send(b"hi").is_ok() && socket.recv(&mut got).is_ok()
        }
    }
}

/// The network namespace of a pod that runs.
fn network_of(cluster: &Cluster, uid: &str) -> File {
    let host = std::fs::read_link(format!("/proc/{}/ns/net", cluster.pid())).unwrap();
    let mut processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found = processes.find(|process| {
        let groups = std::fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        groups.contains(uid) && std::fs::read_link(process.join("ns/net")).is_ok_and(|net| net != host)
    });
    File::open(found.expect("a process of the pod").join("ns/net")).unwrap()
}

/// The pods, by `namespace/name`.
struct Pods {
    networks: BTreeMap<String, File>,
    addresses: BTreeMap<String, IpAddr>,
}

/// Who reaches whom; `node` is the node itself.
type Reached = BTreeSet<(String, String)>;

impl Pods {
    fn start(cluster: &Cluster, api: &Api<'_>) -> Pods {
        for namespace in NAMESPACES {
            api.namespace(namespace);
            let labels = json!({"metadata": {"labels": {"ns": namespace}}});
            api.patch(&format!("/api/v1/namespaces/{namespace}"), MERGE, &labels);
        }
        let serve = |port: u16| {
            json!({"name": format!("c{port}"), "image": "gantry.local/self", "imagePullPolicy": "IfNotPresent",
                "args": ["tcp-echo", port.to_string()],
                "ports": [{"name": format!("serve-{port}-tcp"), "containerPort": port},
                    {"name": format!("serve-{port}-udp"), "containerPort": port, "protocol": "UDP"}],
                "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1}})
        };
        let all: Vec<(&str, &str)> = NAMESPACES.iter().flat_map(|n| PODS.iter().map(move |p| (*n, *p))).collect();
        let pod = |(namespace, name): &(&str, &str)| {
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": {"pod": name}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [serve(80), serve(81)]}})
        };
        let objects: Vec<Value> = all.iter().map(pod).collect();
        create(cluster, &objects);
        let mut pods = Pods { networks: BTreeMap::new(), addresses: BTreeMap::new() };
        for (namespace, name) in all {
            let pod = api.ready(namespace, name);
            let key = format!("{namespace}/{name}");
            pods.networks.insert(key.clone(), network_of(cluster, pod["metadata"]["uid"].as_str().unwrap()));
            pods.addresses.insert(key, pod["status"]["podIP"].as_str().unwrap().parse().unwrap());
        }
        pods.networks.insert("node".into(), cluster.network());
        pods
    }

    /// Tries everything at the same time.
    fn probe(&self, way: Way) -> Reached {
        std::thread::scope(|scope| {
            let sources: Vec<_> = self
                .networks
                .iter()
                .map(|(from, network)| {
                    scope.spawn(move || {
                        enter(network);
                        // Threads are where the one is that makes them.
                        std::thread::scope(|scope| {
                            let each =
                                self.addresses.iter().map(|(to, ip)| (to, scope.spawn(move || answers(*ip, way))));
                            let each: Vec<_> = each.collect();
                            let reached = each.into_iter().filter_map(|(to, done)| done.join().unwrap().then_some(to));
                            reached.map(|to| (from.clone(), to.clone())).collect::<Vec<_>>()
                        })
                    })
                })
                .collect();
            sources.into_iter().flat_map(|source| source.join().unwrap()).collect()
        })
    }

    /// Waits until exactly those reach each other that should.
    fn becomes(&self, what: &str, way: Way, should: &dyn Fn(&str, &str) -> bool) {
        let pairs = self.networks.keys().flat_map(|from| self.addresses.keys().map(move |to| (from, to)));
        // The node and a pod itself cannot be shut out.
        let allowed = |from: &str, to: &str| from == "node" || from == to || should(from, to);
        let wanted: Reached =
            pairs.filter(|(from, to)| allowed(from, to)).map(|(from, to)| (from.clone(), to.clone())).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let got = self.probe(way);
            if got == wanted {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what}, {way:?}\n  missing {:?}\n  too many {:?}",
                wanted.difference(&got).collect::<Vec<_>>(),
                got.difference(&wanted).collect::<Vec<_>>()
            );
        }
    }

    fn from(&self, pod: &str, to: IpAddr, way: Way) -> bool {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                enter(&self.networks[pod]);
                answers(to, way)
            });
            there.join().unwrap()
        })
    }
}

fn namespace(pod: &str) -> &str {
    pod.split('/').next().unwrap()
}

/// Policies under names of their own; they go at the end.
struct Policies<'a> {
    api: Api<'a>,
    made: Vec<String>,
}

impl<'a> Policies<'a> {
    fn of(api: &Api<'a>, policies: &[(&str, Value)]) -> Self {
        let mut all = Policies { api: api.clone(), made: Vec::new() };
        for (namespace, spec) in policies {
            all.add(namespace, spec);
        }
        all
    }

    /// Makes one; answers its path.
    fn add(&mut self, namespace: &str, spec: &Value) -> String {
        let name = format!("p{}", self.made.len());
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
            "spec": spec});
        let path = format!("{GROUP}/namespaces/{namespace}/networkpolicies");
        self.api.create(&path, &object);
        self.made.push(format!("{path}/{name}"));
        format!("{path}/{name}")
    }

    fn end(self) {
        for path in &self.made {
            self.api.delete(path);
        }
    }
}

/// For pod `a`.
fn for_a(rest: Value) -> Value {
    let mut spec = rest;
    spec["podSelector"] = json!({"matchLabels": {"pod": "a"}});
    spec
}

fn only(peers: Value) -> Value {
    for_a(json!({"ingress": [{"from": peers}]}))
}

fn out_to(peers: Value) -> Value {
    for_a(json!({"policyTypes": ["Egress"], "egress": [{"to": peers}]}))
}

fn in_namespaces(names: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": names}]})
}

const HTTP: Way = Way::Tcp(80);
const OTHER: Way = Way::Tcp(81);

type Should<'a> = &'a dyn Fn(&str, &str) -> bool;

#[test]
fn policies_decide_who_reaches_whom() {
    let mut cluster = Cluster::start();
    busybox::import(&cluster);
    let api = Api::new(&cluster);
    let pods = Pods::start(&cluster, &api);
    pods.becomes("no policies", HTTP, &|_, _| true);
    ingress(&api, &pods);
    egress(&api, &pods);
    changes(&api, &pods);
    services(&cluster, &api, &pods);
    as_shown(&cluster, &api);
    new_pods(&cluster, &api, &pods);
    drop(api);
    restart(&mut cluster, &pods);
    down(&mut cluster);
}

/// With these policies, those reach each other over these ways.
fn case(api: &Api<'_>, pods: &Pods, name: &str, policies: &[(&str, Value)], expected: &[(Way, Should<'_>)]) {
    let policies = Policies::of(api, policies);
    for (way, should) in expected {
        pods.becomes(name, *way, should);
    }
    policies.end();
}

fn ingress(api: &Api<'_>, pods: &Pods) {
    let everything: Should<'_> = &|_, _| true;
    let to_xa = |to: &str| to == "x/a";
    let not_to_xa: Should<'_> = &|_, to| to != "x/a";
    let x_is_shut: Should<'_> = &|_, to| namespace(to) != "x";
    let deny = || json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    let block = |pod: &str| format!("{}/32", pods.addresses[pod]);
    let ns = |name: &str| json!({"namespaceSelector": {"matchLabels": {"ns": name}}});

    case(api, pods, "default deny", &[("x", deny())], &[(HTTP, x_is_shut), (Way::Udp(80), x_is_shut)]);
    case(
        api,
        pods,
        "the own namespace only",
        &[("x", only(json!([{"podSelector": {}}])))],
        &[(HTTP, &|from, to| !to_xa(to) || namespace(from) == "x")],
    );
    case(
        api,
        pods,
        "a namespace",
        &[("x", only(json!([ns("y")])))],
        &[(HTTP, &|from, to| !to_xa(to) || namespace(from) == "y")],
    );
    case(
        api,
        pods,
        "certain pods in certain namespaces",
        &[(
            "x",
            only(json!([{"namespaceSelector": in_namespaces(&["y", "z"]),
                "podSelector": {"matchLabels": {"pod": "b"}}}])),
        )],
        &[(HTTP, &|from, to| !to_xa(to) || ["y/b", "z/b"].contains(&from))],
    );
    case(
        api,
        pods,
        "one or the other",
        &[("x", only(json!([ns("y"), {"podSelector": {}}])))],
        &[(HTTP, &|from, to| !to_xa(to) || namespace(from) != "z")],
    );
    case(
        api,
        pods,
        "expressions",
        &[(
            "x",
            only(json!([{
                "namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["x"]}]},
                "podSelector": {"matchExpressions": [{"key": "pod", "operator": "Exists"}]}}])),
        )],
        &[(HTTP, &|from, to| !to_xa(to) || namespace(from) != "x")],
    );
    let ports = |ports: Value| [("x", for_a(json!({"ingress": [{"ports": ports}]})))];
    let is_81 = ports(json!([{"port": 81}]));
    case(api, pods, "a port", &is_81, &[(OTHER, everything), (HTTP, not_to_xa), (Way::Udp(81), not_to_xa)]);
    let udp = ports(json!([{"protocol": "UDP"}]));
    case(api, pods, "a protocol", &udp, &[(Way::Udp(80), everything), (HTTP, not_to_xa)]);
    let sctp = ports(json!([{"port": 80, "protocol": "SCTP"}]));
    case(api, pods, "SCTP is not TCP", &sctp, &[(HTTP, not_to_xa), (Way::Udp(80), not_to_xa)]);
    let named = ports(json!([{"port": "serve-81-tcp"}]));
    case(api, pods, "a named port", &named, &[(OTHER, everything), (HTTP, not_to_xa)]);
    let range = ports(json!([{"port": 81, "endPort": 90}]));
    case(api, pods, "a range of ports", &range, &[(OTHER, everything), (HTTP, not_to_xa)]);
    case(
        api,
        pods,
        "peers and ports of one rule belong together",
        &[(
            "x",
            for_a(json!({"ingress": [{"from": [ns("y")], "ports": [{"port": 80}]},
                {"from": [ns("z")], "ports": [{"port": 81}]}]})),
        )],
        &[
            (HTTP, &|from, to| !to_xa(to) || namespace(from) == "y"),
            (OTHER, &|from, to| !to_xa(to) || namespace(from) == "z"),
        ],
    );
    case(
        api,
        pods,
        "a block",
        &[("x", only(json!([{"ipBlock": {"cidr": block("y/b")}}])))],
        &[(HTTP, &|from, to| !to_xa(to) || from == "y/b")],
    );
    case(
        api,
        pods,
        "a block with an exception",
        &[("x", only(json!([{"ipBlock": {"cidr": "10.244.0.0/16", "except": [block("y/b")]}}])))],
        &[(HTTP, &|from, to| !to_xa(to) || from != "y/b")],
    );
    case(
        api,
        pods,
        "what one policy excepts, another lets in",
        &[
            ("x", only(json!([{"ipBlock": {"cidr": "10.244.0.0/16", "except": [block("y/b"), block("z/b")]}}]))),
            ("x", only(json!([{"ipBlock": {"cidr": block("y/b")}}]))),
        ],
        &[(HTTP, &|from, to| !to_xa(to) || from != "z/b")],
    );
    case(
        api,
        pods,
        "policies add up",
        &[("x", deny()), ("x", only(json!([ns("y")]))), ("x", only(json!([ns("z")])))],
        &[(HTTP, &|from, to| namespace(to) != "x" || (to_xa(to) && namespace(from) != "x"))],
    );
    let all = json!({"podSelector": {}, "ingress": [{}]});
    case(api, pods, "letting all in wins", &[("x", deny()), ("x", all)], &[(HTTP, everything)]);
}

fn egress(api: &Api<'_>, pods: &Pods) {
    let everything: Should<'_> = &|_, _| true;
    let not_from_xa: Should<'_> = &|from, _| from != "x/a";
    let x_is_shut: Should<'_> = &|from, _| namespace(from) != "x";
    let of_xa = |from: &str| from == "x/a";
    let deny = || json!({"podSelector": {}, "policyTypes": ["Egress"]});
    let block = |pod: &str| format!("{}/32", pods.addresses[pod]);
    let ns = |name: &str| json!({"namespaceSelector": {"matchLabels": {"ns": name}}});

    case(api, pods, "deny all out", &[("x", deny())], &[(HTTP, x_is_shut), (Way::Udp(80), x_is_shut)]);
    case(
        api,
        pods,
        "out to a pod elsewhere",
        &[(
            "x",
            out_to(json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}},
                "podSelector": {"matchLabels": {"pod": "a"}}}])),
        )],
        &[(HTTP, &|from, to| !of_xa(from) || to == "y/a")],
    );
    let named = for_a(json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "serve-81-tcp"}]}]}));
    case(api, pods, "out to a named port", &[("x", named)], &[(OTHER, everything), (HTTP, not_from_xa)]);
    case(
        api,
        pods,
        "out to a block with an exception",
        &[("x", out_to(json!([{"ipBlock": {"cidr": "10.244.0.0/16", "except": [block("z/a")]}}])))],
        &[(HTTP, &|from, to| !of_xa(from) || to != "z/a")],
    );
    let all = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]});
    case(api, pods, "letting all out wins", &[("x", deny()), ("x", all)], &[(HTTP, everything)]);
    case(
        api,
        pods,
        "in and out",
        &[(
            "x",
            for_a(json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [ns("y")]}],
                "egress": [{"to": [ns("z")]}]})),
        )],
        &[(HTTP, &|from, to| (to != "x/a" || namespace(from) == "y") && (!of_xa(from) || namespace(to) == "z"))],
    );
    let b_is_shut = json!({"podSelector": {"matchLabels": {"pod": "b"}}});
    case(
        api,
        pods,
        "both ends have a say",
        &[("x", out_to(json!([ns("y")]))), ("y", b_is_shut)],
        &[(HTTP, &|from, to| to != "y/b" && (!of_xa(from) || namespace(to) == "y"))],
    );
}

/// Policies, labels of pods and of namespaces change; connections that are there go on.
fn changes(api: &Api<'_>, pods: &Pods) {
    let shut_to = |who: &'static str| move |from: &str, to: &str| to != "x/a" || from == who;
    let mut stream = std::thread::scope(|scope| {
        let open = || {
            enter(&pods.networks["z/b"]);
            TcpStream::connect((pods.addresses["x/a"], 80)).unwrap()
        };
        scope.spawn(open).join().unwrap()
    });
    let mut still = || {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"hi").unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
    };
    still();
    let mut policies = Policies::of(api, &[]);
    let path = policies.add("x", &only(json!([{"podSelector": {"matchLabels": {"pod": "b"}}}])));
    pods.becomes("before the change", HTTP, &shut_to("x/b"));
    still();
    assert_eq!(api.get(&path)["metadata"]["generation"], 1);
    api.edit(&path, |policy| {
        policy["spec"] = only(json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}},
            "podSelector": {"matchLabels": {"pod": "b"}}}]));
    });
    pods.becomes("a changed policy", HTTP, &shut_to("y/b"));
    assert_eq!(api.get(&path)["metadata"]["generation"], 2);

    let label = |path: &str, labels: Value| {
        api.patch(path, MERGE, &json!({"metadata": {"labels": labels}}));
    };
    label("/api/v1/namespaces/y/pods/a", json!({"pod": "b"}));
    label("/api/v1/namespaces/y/pods/b", json!({"pod": "x"}));
    pods.becomes("labels of peers", HTTP, &shut_to("y/a"));
    label("/api/v1/namespaces/y", json!({"ns": "other"}));
    label("/api/v1/namespaces/z", json!({"ns": "y"}));
    pods.becomes("labels of namespaces", HTTP, &shut_to("z/b"));
    label("/api/v1/namespaces/y", json!({"ns": "y"}));
    label("/api/v1/namespaces/z", json!({"ns": "z"}));
    label("/api/v1/namespaces/y/pods/a", json!({"pod": "a"}));
    label("/api/v1/namespaces/y/pods/b", json!({"pod": "b"}));
    pods.becomes("labels as before", HTTP, &shut_to("y/b"));
    label("/api/v1/namespaces/x/pods/a", json!({"pod": "free"}));
    pods.becomes("a pod that is no longer selected", HTTP, &|_, _| true);
    label("/api/v1/namespaces/x/pods/a", json!({"pod": "a"}));
    pods.becomes("a pod that is selected again", HTTP, &shut_to("y/b"));
    still();
    policies.end();
    pods.becomes("no policies any more", HTTP, &|_, _| true);
    still();
}

/// A Service's address is no peer: the pod behind it is.
fn services(cluster: &Cluster, api: &Api<'_>, pods: &Pods) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"pod": "b"}, "ports": [{"port": 8000, "targetPort": 80}]}});
    let service = api.create("/api/v1/namespaces/y/services", &service);
    let address: IpAddr = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    let through = Way::Tcp(8000);
    cluster.wait_for("the Service", || pods.from("x/a", address, through).then_some(()));
    let deny = Policies::of(api, &[("x", out_to(json!([{"ipBlock": {"cidr": format!("{address}/32")}}])))]);
    pods.becomes("the Service's own address", HTTP, &|from, _| from != "x/a");
    assert!(!pods.from("x/a", address, through));
    deny.end();
    let to_b =
        json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}, "podSelector": {"matchLabels": {"pod": "b"}}}]);
    let allow = Policies::of(api, &[("x", out_to(to_b))]);
    pods.becomes("the pod behind the Service", HTTP, &|from, to| from != "x/a" || to == "y/b");
    cluster.wait_for("the Service, where the pod is let through", || pods.from("x/a", address, through).then_some(()));
    allow.end();
    // A pod reaches itself, even so.
    let closed = Policies::of(api, &[("y", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))]);
    pods.becomes("a closed namespace", HTTP, &|from, to| namespace(from) != "y" && namespace(to) != "y");
    cluster.wait_for("a pod's own Service", || pods.from("y/b", address, through).then_some(()));
    closed.end();
    api.delete("/api/v1/namespaces/y/services/web");
}

/// What people see of a policy.
fn as_shown(cluster: &Cluster, api: &Api<'_>) {
    let policies = Policies::of(api, &[("x", only(json!([{"podSelector": {"matchLabels": {"pod": "b"}}}])))]);
    let table = cluster.kubectl(&["get", "netpol", "-n", "x"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "POD-SELECTOR", "AGE"]);
    assert_eq!(rows[1][..2], ["p0", "pod=a"]);
    let described = cluster.kubectl(&["describe", "networkpolicy", "p0", "-n", "x"]);
    for line in [
        "PodSelector:     pod=a",
        "PodSelector: pod=b",
        "To Port: <any> (traffic allowed to all ports)",
        "Policy Types: Ingress",
    ] {
        assert!(described.contains(line), "{line:?} is not in\n{described}");
    }
    assert_eq!(cluster.jsonpath(&["netpol", "p0", "-n", "x"], "{.spec.policyTypes}"), r#"["Ingress"]"#);
    policies.end();
}

/// A pod has its policies before its first process runs.
fn new_pods(cluster: &Cluster, api: &Api<'_>, pods: &Pods) {
    let mut policies = Policies::of(api, &[]);
    policies.add("default", &json!({"podSelector": {"matchLabels": {"isolated": "yes"}}, "policyTypes": ["Egress"]}));
    // Once the node has it, every new pod is behind it; a later policy shows that.
    policies.add("y", &json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    pods.becomes("a later policy", HTTP, &|_, to| namespace(to) != "y");
    let script = format!("echo reached | nc -w 3 {} 80 2>/dev/null; echo done", pods.addresses["x/a"]);
    let attempt = |name: &str, isolated: &str| {
        let mut pod = once(name, &script, &json!({}), &json!({}));
        pod["metadata"]["labels"] = json!({"isolated": isolated});
        pod
    };
    let first: Vec<Value> = vec![attempt("free", "no"), attempt("shut", "yes")];
    create(cluster, &first);
    let said = |name: &str| {
        assert_eq!(cluster.finished(name), "Succeeded");
        cluster.kubectl(&["logs", name])
    };
    assert_eq!((said("free").as_str(), said("shut").as_str()), ("reached\ndone\n", "done\n"));
    let names: Vec<String> = (0..6).map(|n| format!("shut-{n}")).collect();
    create(cluster, &names.iter().map(|name| attempt(name, "yes")).collect::<Vec<_>>());
    for name in &names {
        assert_eq!(said(name), "done\n", "{name} was open");
    }
    policies.end();
}

/// Ends what goes on beside a test, also where the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// While the agent is away and comes back, nothing opens and nothing closes.
fn restart(cluster: &mut Cluster, pods: &Pods) {
    let deny = for_a(json!({"policyTypes": ["Ingress"]}));
    Policies::of(&Api::new(cluster), &[("x", deny)]);
    pods.becomes("before the restart", HTTP, &|_, to| to != "x/a");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = End(&over);
        let tries = scope.spawn(|| {
            enter(&pods.networks["x/b"]);
            let mut tries = 0;
            while !over.load(Ordering::Relaxed) {
                assert!(!answers(pods.addresses["x/a"], HTTP), "open for a moment");
                tries += 1;
            }
            tries
        });
        let lasting = scope.spawn(|| {
            enter(&pods.networks["x/b"]);
            let mut refused = 0;
            while !over.load(Ordering::Relaxed) {
                // New connections; a slow machine may make one of them late, a closed pod all.
                refused = if answers(pods.addresses["y/a"], HTTP) { 0 } else { refused + 1 };
                assert!(refused < 5, "closed for a while");
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        cluster.kill();
        cluster.up();
        pods.becomes("after the restart", HTTP, &|_, to| to != "x/a");
        drop(end);
        assert!(tries.join().unwrap() > 0);
        lasting.join().unwrap();
    });
    let api = Api::new(cluster);
    api.delete(&format!("{GROUP}/namespaces/x/networkpolicies/p0"));
    pods.becomes("after the restart, without the policy", HTTP, &|_, _| true);
}

/// `gantry down` leaves no rules.
fn down(cluster: &mut Cluster) {
    let tables = |cluster: &Cluster| cluster::run(cluster.inside("nft").args(["list", "tables"]));
    assert!(tables(cluster).contains("gantry-policy-"));
    let mut stop: Command = cluster.inside(GANTRY);
    cluster::run(stop.arg("down").arg("--data-dir").arg(cluster.data_dir()));
    cluster.forget_child();
    assert!(!tables(cluster).contains("gantry-"), "{}", tables(cluster));
}
