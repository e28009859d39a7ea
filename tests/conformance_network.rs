//! What upstream's conformance suite asks of Services: types, affinity, endpoints of both kinds. Each behaviour stands above
//! its scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, MERGE, condition, is_ready, name, names};
use cluster::busybox::{self, BUSYBOX};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn services() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let all = scenarios![
        types_change,
        a_node_port,
        affinity_of_a_cluster_ip,
        affinity_of_a_node_port,
        the_status_of_a_service,
        a_collection_of_services,
        the_api_s_own_service,
        endpoints_follow_pods,
        endpoints_of_two_ports,
        the_life_of_endpoints,
        endpoints_come_soon,
        slices_of_pods,
        slices_come_and_go,
        the_api_s_own_slices,
        slices_are_written,
        slices_of_one_s_own,
        endpoints_are_mirrored,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// A namespace with what these tests do in it.
struct Space<'a> {
    api: &'a Api<'a>,
    base: String,
    namespace: String,
}

impl<'a> Space<'a> {
    fn new(api: &'a Api<'a>, namespace: &str) -> Self {
        let namespace = api.namespace(namespace);
        Self { api, base: format!("/api/v1/namespaces/{namespace}"), namespace }
    }

    fn slices(&self) -> String {
        format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", self.namespace)
    }

    fn service(&self, name: &str, spec: &Value) -> Value {
        self.api.create(&format!("{}/services", self.base), &json!({"metadata": {"name": name}, "spec": spec}))
    }

    /// A web server with these ports, that answers with its name.
    fn pod(&self, name: &str, labels: &Value, ports: &[(&str, u16)]) {
        let containers: Vec<Value> = ports
            .iter()
            .enumerate()
            .map(|(at, (port, number))| {
                json!({"name": format!("c{at}"), "image": "gantry.local/self", "args": ["serve", "--port", number.to_string()],
                    "ports": [{"name": port, "containerPort": number}]})
            })
            .collect();
        let spec = json!({"terminationGracePeriodSeconds": 0, "containers": containers});
        self.api.create(
            &format!("{}/pods", self.base),
            &json!({"metadata": {"name": name, "labels": labels}, "spec": spec}),
        );
        self.api.ready(&self.namespace, name);
    }

    fn ip(&self, pod: &str) -> String {
        self.api.get(&format!("{}/pods/{pod}", self.base))["status"]["podIP"].as_str().unwrap().to_owned()
    }

    /// A pod with a shell that asks.
    fn client(&self) {
        let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": BUSYBOX, "command": ["sleep", "1000000"]}]});
        self.api.create(&format!("{}/pods", self.base), &json!({"metadata": {"name": "client"}, "spec": spec}));
        self.api.ready(&self.namespace, "client");
    }

    /// Three pods behind one label.
    fn backends(&self, app: &str) -> BTreeSet<String> {
        let labels = json!({"app": app});
        let template = json!({"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers":
            [{"name": "c", "image": "gantry.local/self", "args": ["serve", "--port", "9376"]}]}});
        let spec = json!({"replicas": 3, "selector": labels, "template": template});
        self.api.create(
            &format!("{}/replicationcontrollers", self.base),
            &json!({"metadata": {"name": app}, "spec": spec}),
        );
        let pods = format!("{}/pods?labelSelector=app%3D{app}", self.base);
        let list = self.api.until(&pods, "ready", |list| {
            let items = list["items"].as_array().unwrap();
            items.len() == 3 && items.iter().all(is_ready)
        });
        list["items"].as_array().unwrap().iter().map(|p| name(p).to_owned()).collect()
    }

    /// Who answers the client, asked so often.
    fn answers(&self, host: &str, times: usize) -> Vec<String> {
        let script = format!("for i in $(seq {times}); do timeout 5 wget -qO- http://{host}/hostname; done");
        let printed = self.api.exec(&self.namespace, "client", &["sh", "-c", &script]).unwrap_or_default();
        printed.lines().map(str::to_owned).collect()
    }

    /// Waits until each of these has answered.
    fn reached(&self, host: &str, wanted: &BTreeSet<String>) {
        let mut seen = BTreeSet::new();
        self.api.cluster.wait_for(&format!("{wanted:?} behind {host}"), || {
            seen.extend(self.answers(host, 8));
            (&seen == wanted).then_some(())
        });
    }

    /// Waits until one of these answers every time.
    fn sticks(&self, host: &str, among: &BTreeSet<String>) {
        self.api.cluster.wait_for(&format!("one answers for {host}"), || {
            let all = self.answers(host, 15);
            (all.len() == 15 && all.iter().all(|a| *a == all[0]) && among.contains(&all[0])).then_some(())
        });
    }
}

fn node_ip(api: &Api<'_>) -> String {
    let node = api.get("/api/v1/nodes/node-1");
    let addresses = node["status"]["addresses"].as_array().unwrap();
    addresses.iter().find(|a| a["type"] == "InternalIP").unwrap()["address"].as_str().unwrap().to_owned()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

// Conformance: Service, change type, ClusterIP to ExternalName
// Conformance: Service, change type, ExternalName to ClusterIP
// Conformance: Service, change type, ExternalName to NodePort
// Conformance: Service, change type, NodePort to ExternalName
fn types_change(api: &Api<'_>) {
    let space = Space::new(api, "svc-types");
    space.client();
    let pods = space.backends("externalsvc");
    let (selector, ports) =
        (json!({"app": "externalsvc"}), json!([{"port": 80, "targetPort": 9376, "protocol": "TCP"}]));
    // What the names point to.
    space.service("externalsvc", &json!({"selector": selector, "ports": [{"port": 80, "targetPort": 9376}]}));
    let external = json!("externalsvc.svc-types.svc.cluster.local");
    let path = |name: &str| format!("{}/services/{name}", space.base);
    let node = node_ip(api);

    for kind in ["ClusterIP", "NodePort"] {
        let name = format!("{}-service", kind.to_lowercase());
        let made = space.service(&name, &json!({"type": kind, "ports": ports, "selector": {"app": "nobody"}}));
        let address = text(&made["spec"]["clusterIP"]);
        let changed = api.edit(&path(&name), |s| {
            s["spec"]["type"] = json!("ExternalName");
            s["spec"]["externalName"] = external.clone();
        });
        assert_eq!((changed["spec"].get("clusterIP"), changed["spec"].get("clusterIPs")), (None, None), "{changed}");
        assert_eq!(changed["spec"]["ports"][0].get("nodePort"), None, "{changed}");
        space.reached(&name, &pods);
        // Both are free again.
        let mut other = json!({"type": kind, "ports": ports, "clusterIP": address});
        if kind == "NodePort" {
            other["ports"][0]["nodePort"] = made["spec"]["ports"][0]["nodePort"].clone();
        }
        space.service(&format!("{name}-again"), &other);
    }

    for kind in ["ClusterIP", "NodePort"] {
        let name = format!("to-{}", kind.to_lowercase());
        let made = space.service(&name, &json!({"type": "ExternalName", "externalName": "foo.example.com"}));
        assert_eq!(made["spec"].get("clusterIP"), None);
        let changed = api.edit(&path(&name), |s| {
            s["spec"]["type"] = json!(kind);
            s["spec"]["externalName"].take();
            s["spec"]["ports"] = ports.clone();
            s["spec"]["selector"] = selector.clone();
        });
        assert_eq!(changed["spec"].get("externalName"), None);
        space.reached(&name, &pods);
        space.reached(&text(&changed["spec"]["clusterIP"]), &pods);
        if kind == "NodePort" {
            let port = changed["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
            space.reached(&format!("{node}:{port}"), &pods);
        }
    }
}

// Conformance: Service, NodePort Service
fn a_node_port(api: &Api<'_>) {
    let space = Space::new(api, "svc-nodeport");
    space.client();
    let pods = space.backends("nodeport-test");
    let spec =
        json!({"type": "NodePort", "selector": {"app": "nodeport-test"}, "ports": [{"port": 80, "targetPort": 9376}]});
    let service = space.service("nodeport-test", &spec);
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30_000..32_768).contains(&port), "{port}");
    for host in ["nodeport-test".into(), text(&service["spec"]["clusterIP"]), format!("{}:{port}", node_ip(api))] {
        space.reached(&host, &pods);
    }
}

/// With affinity one pod answers a client, without it all do, and back; by every address.
fn affinity(api: &Api<'_>, kind: &str) {
    let space = Space::new(api, &format!("affinity-{}", kind.to_lowercase()));
    space.client();
    let pods = space.backends("affinity");
    let spec = json!({"type": kind, "selector": {"app": "affinity"}, "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "targetPort": 9376}]});
    let service = space.service("affinity", &spec);
    assert_eq!(service["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
    let mut hosts = vec!["affinity".to_owned(), text(&service["spec"]["clusterIP"])];
    if let Some(port) = service["spec"]["ports"][0]["nodePort"].as_u64() {
        hosts.push(format!("{}:{port}", node_ip(api)));
    }
    let path = format!("{}/services/affinity", space.base);
    for host in &hosts {
        space.sticks(host, &pods);
    }
    let none = api.edit(&path, |s| s["spec"]["sessionAffinity"] = json!("None"));
    assert_eq!(none["spec"].get("sessionAffinityConfig"), None);
    for host in &hosts {
        space.reached(host, &pods);
    }
    api.edit(&path, |s| s["spec"]["sessionAffinity"] = json!("ClientIP"));
    for host in &hosts {
        space.sticks(host, &pods);
    }
}

// Conformance: Service, ClusterIP type, session affinity to ClientIP
// Conformance: Service, ClusterIP type, session affinity to None
fn affinity_of_a_cluster_ip(api: &Api<'_>) {
    affinity(api, "ClusterIP");
}

// Conformance: Service, NodePort type, session affinity to ClientIP
// Conformance: Service, NodePort type, session affinity to None
fn affinity_of_a_node_port(api: &Api<'_>) {
    affinity(api, "NodePort");
}

// Conformance: Service, complete ServiceStatus lifecycle
fn the_status_of_a_service(api: &Api<'_>) {
    let space = Space::new(api, "svc-status");
    let (all, one) = (format!("{}/services", space.base), format!("{}/services/test-service", space.base));
    let watch = api.watch(&format!("{all}?labelSelector=test-service-static%3Dtrue"));
    let object = json!({"metadata": {"name": "test-service", "labels": {"test-service-static": "true"}}, "spec":
        {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80, "targetPort": 80}]}});
    api.create(&all, &object);
    watch.expect("ADDED", "test-service");
    let everywhere = api.list("/api/v1/services?labelSelector=test-service-static%3Dtrue");
    assert_eq!(names(&everywhere), ["test-service"]);
    let status = format!("{one}/status");
    assert_eq!(api.get(&status)["status"], json!({"loadBalancer": {}}));
    let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
    let patched = api.patch(&status, MERGE, &patch);
    assert_eq!(patched["metadata"]["annotations"]["patchedstatus"], "true");
    let seen = watch.find("MODIFIED", |s| s["metadata"]["annotations"]["patchedstatus"] == "true");
    let ingress = &seen["status"]["loadBalancer"]["ingress"][0];
    assert_eq!((&ingress["ip"], &ingress["ipMode"]), (&json!("203.0.113.1"), &json!("VIP")));
    let update = json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from e2e test",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    api.edit(&status, |s| s["status"]["conditions"] = json!([update]));
    watch.find("MODIFIED", |s| condition(s, "StatusUpdate") == "True");
    api.patch(&one, MERGE, &json!({"metadata": {"labels": {"test-service": "patched"}}}));
    let last = watch.find("MODIFIED", |s| s["metadata"]["labels"]["test-service"] == "patched");
    assert_eq!(condition(&last, "StatusUpdate"), "True");
    api.delete(&one);
    watch.find("DELETED", |s| name(s) == "test-service");
}

// Conformance: Service, deletes a collection of services
fn a_collection_of_services(api: &Api<'_>) {
    let space = Space::new(api, "svc-collection");
    let all = format!("{}/services", space.base);
    for (name, label, kind) in
        [("e2e-svc-a", "true", "ClusterIP"), ("e2e-svc-b", "true", "NodePort"), ("e2e-svc-c", "false", "NodePort")]
    {
        let spec = json!({"type": kind, "ports": [{"name": "http", "port": 8001, "protocol": "TCP"}]});
        api.create(&all, &json!({"metadata": {"name": name, "labels": {"svc-test": label}}, "spec": spec}));
    }
    assert_eq!(api.list(&all).len(), 3);
    api.delete(&format!("{all}?labelSelector=svc-test%3Dtrue"));
    assert_eq!(names(&api.list(&all)), ["e2e-svc-c"]);
}

// Conformance: Find Kubernetes Service in default Namespace
// Conformance: Kubernetes Service
fn the_api_s_own_service(api: &Api<'_>) {
    let all = api.list("/api/v1/services");
    let found = all.iter().find(|s| name(s) == "kubernetes" && s["metadata"]["namespace"] == "default");
    let service = found.unwrap_or_else(|| panic!("{:?}", names(&all)));
    assert_eq!(
        (&service["spec"]["ports"][0]["name"], &service["spec"]["ports"][0]["port"]),
        (&json!("https"), &json!(443))
    );
}

/// Waits until the Endpoints name exactly these pods with these ports, and the EndpointSlices too.
fn endpoints(space: &Space<'_>, service: &str, wanted: &[(&str, &[u16])]) {
    let wanted: BTreeSet<(String, u16)> =
        wanted.iter().flat_map(|(pod, ports)| ports.iter().map(|p| (space.ip(pod), *p))).collect();
    let number = |p: &Value| u16::try_from(p["port"].as_u64().unwrap()).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    space.api.until(&format!("{}/endpoints/{service}", space.base), &format!("{wanted:?}"), |e| {
        let mut got = BTreeSet::new();
        for subset in list(&e["subsets"]) {
            for address in list(&subset["addresses"]) {
                got.extend(list(&subset["ports"]).iter().map(|p| (text(&address["ip"]), number(p))));
            }
        }
        got == wanted
    });
    let chosen = format!("{}?labelSelector=kubernetes.io/service-name%3D{service}", space.slices());
    space.api.until(&chosen, &format!("{wanted:?}"), |slices| {
        let mut got = BTreeSet::new();
        for slice in list(&slices["items"]) {
            for endpoint in list(&slice["endpoints"]) {
                assert_eq!(endpoint["targetRef"]["kind"], "Pod");
                got.extend(list(&slice["ports"]).iter().map(|p| (text(&endpoint["addresses"][0]), number(p))));
            }
        }
        got == wanted
    });
}

// Conformance: Service, endpoints
fn endpoints_follow_pods(api: &Api<'_>) {
    let space = Space::new(api, "svc-endpoints");
    space.client();
    let labels = json!({"app": "endpoint-test2"});
    space.service("endpoint-test2", &json!({"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}));
    endpoints(&space, "endpoint-test2", &[]);
    space.pod("pod1", &labels, &[("web", 8080)]);
    endpoints(&space, "endpoint-test2", &[("pod1", &[8080])]);
    space.reached("endpoint-test2", &["pod1".to_owned()].into());
    space.pod("pod2", &labels, &[("web", 8080)]);
    endpoints(&space, "endpoint-test2", &[("pod1", &[8080]), ("pod2", &[8080])]);
    space.reached("endpoint-test2", &["pod1".to_owned(), "pod2".to_owned()].into());
    api.delete(&format!("{}/pods/pod1", space.base));
    endpoints(&space, "endpoint-test2", &[("pod2", &[8080])]);
    space.reached("endpoint-test2", &["pod2".to_owned()].into());
    api.delete(&format!("{}/pods/pod2", space.base));
    endpoints(&space, "endpoint-test2", &[]);
}

// Conformance: Service, endpoints with multiple ports
fn endpoints_of_two_ports(api: &Api<'_>) {
    let space = Space::new(api, "svc-multiport");
    space.client();
    let labels = json!({"app": "multi-endpoint-test"});
    let ports = json!([{"name": "portname1", "port": 80, "targetPort": "svc1"}, {"name": "portname2", "port": 81, "targetPort": "svc2"}]);
    space.service("multi-endpoint-test", &json!({"selector": labels, "ports": ports}));
    endpoints(&space, "multi-endpoint-test", &[]);
    space.pod("pod1", &labels, &[("svc1", 100)]);
    endpoints(&space, "multi-endpoint-test", &[("pod1", &[100])]);
    space.pod("pod2", &labels, &[("svc2", 101)]);
    endpoints(&space, "multi-endpoint-test", &[("pod1", &[100]), ("pod2", &[101])]);
    space.reached("multi-endpoint-test:80", &["pod1".to_owned()].into());
    space.reached("multi-endpoint-test:81", &["pod2".to_owned()].into());
    api.delete(&format!("{}/pods/pod1", space.base));
    endpoints(&space, "multi-endpoint-test", &[("pod2", &[101])]);
    api.delete(&format!("{}/pods/pod2", space.base));
    endpoints(&space, "multi-endpoint-test", &[]);
}

// Conformance: Endpoint resource lifecycle
fn the_life_of_endpoints(api: &Api<'_>) {
    let space = Space::new(api, "endpoints-life");
    let all = format!("{}/endpoints", space.base);
    let one = format!("{all}/testservice");
    let watch = api.watch(&format!("{all}?labelSelector=test-endpoint-static%3Dtrue"));
    let object = json!({"metadata": {"name": "testservice", "labels": {"test-endpoint-static": "true"}}, "subsets":
        [{"addresses": [{"ip": "10.0.0.24"}], "ports": [{"name": "http", "port": 80}]}]});
    api.create(&all, &object);
    watch.expect("ADDED", "testservice");
    let everywhere = api.list("/api/v1/endpoints?labelSelector=test-endpoint-static%3Dtrue");
    assert_eq!(names(&everywhere), ["testservice"]);
    api.edit(&one, |e| e["metadata"]["labels"]["test-service"] = json!("updated"));
    watch.find("MODIFIED", |e| e["metadata"]["labels"]["test-service"] == "updated");
    let patch = json!({"metadata": {"labels": {"test-service": "patched"}}, "subsets":
        [{"addresses": [{"ip": "10.0.0.25"}], "ports": [{"name": "http-test", "port": 8080}]}]});
    api.patch(&one, MERGE, &patch);
    let subset = api.get(&one)["subsets"][0].clone();
    assert_eq!((&subset["addresses"][0]["ip"], &subset["ports"][0]["port"]), (&json!("10.0.0.25"), &json!(8080)));
    watch.find("MODIFIED", |e| e["metadata"]["labels"]["test-service"] == "patched");
    api.delete(&format!("{all}?labelSelector=test-endpoint-static%3Dtrue"));
    watch.find("DELETED", |e| name(e) == "testservice");
}

// Conformance: Service endpoint latency, thresholds
fn endpoints_come_soon(api: &Api<'_>) {
    let space = Space::new(api, "svc-latency");
    let labels = json!({"app": "latency"});
    space.pod("latency", &labels, &[("web", 8080)]);
    let watch = api.watch(&format!("{}/endpoints", space.base));
    let mut times = Vec::new();
    for n in 0..20 {
        let from = std::time::Instant::now();
        let service = format!("latency-svc-{n}");
        space.service(&service, &json!({"selector": labels, "ports": [{"port": 80}]}));
        let has =
            |e: &Value| name(e) == service && e["subsets"][0]["addresses"].as_array().is_some_and(|a| a.len() == 1);
        let kinds = ["ADDED", "MODIFIED"];
        loop {
            let (kind, object) = watch.next();
            if kinds.contains(&kind.as_str()) && has(&object) {
                break;
            }
        }
        times.push(from.elapsed());
    }
    times.sort_unstable();
    // Upstream's limits.
    assert!(times[10].as_secs() < 20 && times[18].as_secs() < 50, "{times:?}");
}

fn discovered(api: &Api<'_>) {
    let groups = api.get("/apis");
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "discovery.k8s.io"));
    assert_eq!(api.get("/apis/discovery.k8s.io")["preferredVersion"]["groupVersion"], "discovery.k8s.io/v1");
    let list = api.get("/apis/discovery.k8s.io/v1");
    let found = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == "endpointslices").unwrap();
    assert_eq!(
        found["verbs"],
        json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"])
    );
}

// Conformance: EndpointSlice API (should create Endpoints and EndpointSlices for Pods matching a Service)
fn slices_of_pods(api: &Api<'_>) {
    discovered(api);
    let space = Space::new(api, "slices-pods");
    space.pod("pod1", &json!({"foo": "bar"}), &[("example-name", 3000)]);
    space.pod("pod2", &json!({"foo": "bar", "second": "yes"}), &[("example-name", 3001), ("other-port", 3002)]);
    let port = |target: Value| json!({"name": "example", "port": 80, "targetPort": target});
    space.service(
        "example-int-port",
        &json!({"selector": {"foo": "bar"}, "ports": [port(json!(3000))], "publishNotReadyAddresses": true}),
    );
    space.service("example-named-port", &json!({"selector": {"foo": "bar"}, "ports": [port(json!("example-name"))]}));
    space.service(
        "example-second",
        &json!({"selector": {"second": "yes"}, "ports":
        [port(json!("example-name")), {"name": "other", "port": 81, "targetPort": "other-port"}]}),
    );
    endpoints(&space, "example-int-port", &[("pod1", &[3000]), ("pod2", &[3000])]);
    endpoints(&space, "example-named-port", &[("pod1", &[3000]), ("pod2", &[3001])]);
    endpoints(&space, "example-second", &[("pod2", &[3001, 3002])]);
    // Pods that name different numbers are in different slices.
    let count = |service: &str| {
        api.list(&format!("{}?labelSelector=kubernetes.io/service-name%3D{service}", space.slices())).len()
    };
    assert_eq!((count("example-int-port"), count("example-named-port"), count("example-second")), (1, 2, 1));
    let slice = &api.list(&format!("{}?labelSelector=kubernetes.io/service-name%3Dexample-second", space.slices()))[0];
    assert_eq!(slice["endpoints"][0]["conditions"], json!({"ready": true, "serving": true, "terminating": false}));
    assert_eq!((&slice["endpoints"][0]["nodeName"], &slice["addressType"]), (&json!("node-1"), &json!("IPv4")));
    assert_eq!(
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
}

// Conformance: EndpointSlice API (should create and delete Endpoints and EndpointSlices for a Service with a selector specified)
fn slices_come_and_go(api: &Api<'_>) {
    discovered(api);
    let space = Space::new(api, "slices-go");
    space.service(
        "example-empty-selector",
        &json!({"selector": {"does-not-match-anything": "endpoints-slices-test"},
        "ports": [{"name": "example", "port": 80, "protocol": "TCP"}]}),
    );
    let one = format!("{}/endpoints/example-empty-selector", space.base);
    let chosen = format!("{}?labelSelector=kubernetes.io/service-name%3Dexample-empty-selector", space.slices());
    api.until(&one, "made", |_| true);
    api.until(&chosen, "one slice", |list| list["items"].as_array().unwrap().len() == 1);
    // It is named after its owner, and goes with it.
    let slice = &api.list(&chosen)[0];
    assert!(name(slice).starts_with("example-empty-selector-"));
    assert_eq!(slice["metadata"]["ownerReferences"][0]["name"], "example-empty-selector");
    api.delete(&format!("{}/services/example-empty-selector", space.base));
    api.gone(&one);
    api.until(&chosen, "none", |list| list["items"].as_array().unwrap().is_empty());
}

// Conformance: EndpointSlice API (should have Endpoints and EndpointSlices pointing to API Server)
fn the_api_s_own_slices(api: &Api<'_>) {
    discovered(api);
    let endpoints = api.get("/api/v1/namespaces/default/endpoints/kubernetes");
    assert_eq!(endpoints["subsets"].as_array().map(Vec::len), Some(1), "{endpoints}");
    let subset = &endpoints["subsets"][0];
    let slices = api.list("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Dkubernetes");
    assert_eq!(slices.len(), 1);
    let addresses: Vec<&Value> = subset["addresses"].as_array().unwrap().iter().map(|a| &a["ip"]).collect();
    let there: Vec<&Value> = slices[0]["endpoints"].as_array().unwrap().iter().map(|e| &e["addresses"][0]).collect();
    assert_eq!(addresses, there);
    assert_eq!(
        (&subset["ports"][0]["port"], &subset["ports"][0]["name"]),
        (&slices[0]["ports"][0]["port"], &json!("https"))
    );
}

// Conformance: EndpointSlice API (should support creating EndpointSlice API operations)
fn slices_are_written(api: &Api<'_>) {
    discovered(api);
    let space = Space::new(api, "slices-api");
    let all = space.slices();
    let slice = json!({"metadata": {"generateName": "e2e-example-ing", "labels": {"special-label": "slices"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["1.2.3.4", "5.6.7.8"]}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    let watch = api.watch(&format!("{all}?labelSelector=special-label%3Dslices"));
    let made: Vec<String> = (0..3).map(|_| name(&api.create(&all, &slice)).to_owned()).collect();
    let one = format!("{all}/{}", made[0]);
    assert_eq!(name(&api.get(&one)), made[0]);
    assert_eq!(api.list(&format!("{all}?labelSelector=special-label%3Dslices")).len(), 3);
    assert_eq!(api.list("/apis/discovery.k8s.io/v1/endpointslices?labelSelector=special-label%3Dslices").len(), 3);
    for name in &made {
        watch.expect("ADDED", name);
    }
    let patched = api.patch(&one, MERGE, &json!({"metadata": {"annotations": {"patched": "true"}}}));
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
    api.edit(&one, |s| s["metadata"]["annotations"]["updated"] = json!("true"));
    watch.expect("MODIFIED", &made[0]);
    assert_eq!(watch.expect("MODIFIED", &made[0])["metadata"]["annotations"]["updated"], "true");
    api.delete(&one);
    watch.expect("DELETED", &made[0]);
    assert_eq!(api.list(&format!("{all}?labelSelector=special-label%3Dslices")).len(), 2);
    api.delete(&format!("{all}?labelSelector=special-label%3Dslices"));
    assert!(api.list(&format!("{all}?labelSelector=special-label%3Dslices")).is_empty());
}

/// A Service without a selector sends to what its slices name, whoever wrote them: several addresses, several ports.
fn slices_of_one_s_own(api: &Api<'_>) {
    let space = Space::new(api, "slices-own");
    space.client();
    space.pod("pod1", &json!({}), &[("a", 3000), ("b", 3001)]);
    space.pod("pod2", &json!({}), &[("a", 3000)]);
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "TCP"});
    let ports =
        json!([{"name": "portname1", "port": 80, "targetPort": 1}, {"name": "portname2", "port": 81, "targetPort": 2}]);
    space.service("custom", &json!({"ports": ports}));
    let slice = |name: &str, pods: &[&str], ports: Value| {
        let endpoints: Vec<Value> = pods.iter().map(|p| json!({"addresses": [space.ip(p)]})).collect();
        let labels =
            json!({"kubernetes.io/service-name": "custom", "endpointslice.kubernetes.io/managed-by": "e2e-test"});
        let object = json!({"metadata": {"name": name, "labels": labels}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
        api.create(&space.slices(), &object);
    };
    slice("first", &["pod1", "pod2"], json!([port("portname1", 3000)]));
    slice("second", &["pod1"], json!([port("portname2", 3001)]));
    space.reached("custom:80", &["pod1".to_owned(), "pod2".to_owned()].into());
    space.reached("custom:81", &["pod1".to_owned()].into());
    // One slice less, some addresses less.
    api.delete(&format!("{}/first", space.slices()));
    slice("third", &["pod2"], json!([port("portname1", 3000)]));
    api.cluster.wait_for("only pod2 behind custom:80", || {
        let all = space.answers("custom:80", 8);
        (all.len() == 8 && all.iter().all(|a| a == "pod2")).then_some(())
    });
}

// Conformance: EndpointSlice Mirroring
fn endpoints_are_mirrored(api: &Api<'_>) {
    discovered(api);
    let space = Space::new(api, "slices-mirror");
    space.service("example-custom-endpoints", &json!({"ports": [{"name": "example", "port": 80, "protocol": "TCP"}]}));
    let all = format!("{}/endpoints", space.base);
    let one = format!("{all}/example-custom-endpoints");
    let object = json!({"metadata": {"name": "example-custom-endpoints"}, "subsets":
        [{"ports": [{"port": 80}], "addresses": [{"ip": "10.1.2.3"}]}]});
    api.create(&all, &object);
    let chosen = format!("{}?labelSelector=kubernetes.io/service-name%3Dexample-custom-endpoints", space.slices());
    let mirrored = |address: &str, port: u64| {
        let list = api.until(&chosen, &format!("{address}:{port}"), |list| {
            let items = list["items"].as_array().unwrap();
            items.len() == 1
                && items[0]["endpoints"][0]["addresses"] == json!([address])
                && items[0]["ports"][0]["port"] == port
        });
        list["items"][0].clone()
    };
    let slice = mirrored("10.1.2.3", 80);
    assert_eq!(
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"],
        "endpointslicemirroring-controller.k8s.io"
    );
    assert_eq!(slice["endpoints"].as_array().unwrap().len(), 1);
    api.edit(&one, |e| e["subsets"][0]["addresses"] = json!([{"ip": "10.2.3.4"}]));
    assert_eq!(name(&mirrored("10.2.3.4", 80)), name(&slice));
    api.edit(&one, |e| e["subsets"][0]["ports"][0]["port"] = json!(81));
    mirrored("10.2.3.4", 81);
    api.delete(&one);
    api.until(&chosen, "none", |list| list["items"].as_array().unwrap().is_empty());
}
