//! Ranges of addresses for Services: more of them, the addresses that Services hold, and what keeps both right.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, condition, names};
use serde_json::{Value, json};

const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

#[test]
fn ranges_and_addresses() {
    let mut cluster = Cluster::start();
    let all = scenarios![
        a_service_holds_its_address,
        addresses_are_told_apart,
        a_range_that_is_needed_stays,
        the_default_range_comes_back,
        what_is_taken_apart_is_repaired,
        a_service_of_another_range_serves,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
    survives_a_restart(&mut cluster);
}

fn services(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/services")
}

fn service(name: &str, ip: &str) -> Value {
    let mut spec = json!({"ports": [{"port": 80}], "selector": {"app": name}});
    if !ip.is_empty() {
        spec["clusterIP"] = json!(ip);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn range(api: &Api<'_>, name: &str, cidr: &str) -> String {
    api.create(RANGES, &json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}}));
    let path = format!("{RANGES}/{name}");
    let ready = api.until(&path, "ready and held", |r| {
        condition(r, "Ready") == "True"
            && r["metadata"]["finalizers"] == json!(["networking.k8s.io/service-cidr-finalizer"])
    });
    assert_eq!(ready["status"]["conditions"][0]["message"], "Kubernetes Service CIDR is ready");
    path
}

fn refused(api: &Api<'_>, path: &str, object: &Value) -> String {
    api.send("POST", path, object).expect(422)["message"].as_str().unwrap().to_owned()
}

fn a_service_holds_its_address(api: &Api<'_>) {
    let namespace = api.namespace("held");
    let made = api.create(&services(&namespace), &service("web", ""));
    let path = format!("{ADDRESSES}/{}", made["spec"]["clusterIP"].as_str().unwrap());
    let held = api.get(&path);
    assert_eq!(
        held["spec"]["parentRef"],
        json!({"group": "", "resource": "services", "namespace": namespace, "name": "web"})
    );
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    assert_eq!(held["metadata"]["labels"], labels);
    // A dry run and a refused write hold nothing.
    let dry = api.send("POST", &format!("{}?dryRun=All", services(&namespace)), &service("dry", "10.96.77.1"));
    assert_eq!(dry.expect(201)["spec"]["clusterIP"], "10.96.77.1");
    assert_eq!(api.try_get(&format!("{ADDRESSES}/10.96.77.1")).code, 404);
    assert_eq!(api.send("POST", &services(&namespace), &service("web", "10.96.77.2")).code, 409);
    api.gone(&format!("{ADDRESSES}/10.96.77.2"));
    // With the type the address goes and comes.
    api.edit(&format!("{}/web", services(&namespace)), |s| {
        s["spec"] = json!({"type": "ExternalName", "externalName": "example.com"});
    });
    api.gone(&path);
    let again = api
        .edit(&format!("{}/web", services(&namespace)), |s| s["spec"] = service("web", "10.96.77.3")["spec"].clone());
    assert_eq!(again["spec"]["clusterIP"], "10.96.77.3");
    assert_eq!(api.get(&format!("{ADDRESSES}/10.96.77.3"))["spec"]["parentRef"]["name"], "web");
    api.delete(&format!("{}/web", services(&namespace)));
    api.gone(&format!("{ADDRESSES}/10.96.77.3"));
}

fn addresses_are_told_apart(api: &Api<'_>) {
    let namespace = api.namespace("apart");
    let all = services(&namespace);
    api.create(&all, &service("one", "10.96.78.1"));
    let told = refused(api, &all, &service("two", "10.96.78.1"));
    assert!(told.contains("spec.clusterIPs: Invalid value: [\"10.96.78.1\"]: failed to allocate IP 10.96.78.1: provided IP is already allocated"), "{told}");
    let told = refused(api, &all, &service("two", "192.0.2.1"));
    assert!(
        told.contains("failed to allocate IP 192.0.2.1: the provided network does not match the current range"),
        "{told}"
    );
    // Somebody else's address is taken, too.
    let parent = json!({"group": "example.com", "resource": "gateways", "name": "edge"});
    api.create(ADDRESSES, &json!({"metadata": {"name": "10.96.78.2"}, "spec": {"parentRef": parent}}));
    let told = refused(api, &all, &service("two", "10.96.78.2"));
    assert!(told.contains("provided IP is already allocated"), "{told}");
    // Many at once get an address each.
    let ips: Vec<String> = std::thread::scope(|scope| {
        let send = |i: usize| {
            let (api, all) = (api.clone(), all.clone());
            scope.spawn(move || {
                api.create(&all, &service(&format!("many-{i}"), ""))["spec"]["clusterIP"].as_str().unwrap().to_owned()
            })
        };
        let threads: Vec<_> = (0..8).map(send).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let distinct: std::collections::BTreeSet<&String> = ips.iter().collect();
    assert_eq!(distinct.len(), 8, "{ips:?}");
}

fn a_range_that_is_needed_stays(api: &Api<'_>) {
    let namespace = api.namespace("ranges");
    let path = range(api, "small", "10.99.0.0/28");
    let mut moved = api.get(&path);
    moved["spec"]["cidrs"] = json!(["10.98.0.0/28"]);
    api.send("PUT", &path, &moved).expect(422);
    api.create(&services(&namespace), &service("web", "10.99.0.5"));
    api.delete(&path);
    let kept = api.until(&path, "kept", |r| condition(r, "Ready") == "False");
    let told = &kept["status"]["conditions"][0];
    assert_eq!(told["reason"], "Terminating");
    let message =
        "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
    assert_eq!(told["message"], message);
    // Nothing more comes out of it.
    let told = refused(api, &services(&namespace), &service("late", "10.99.0.6"));
    assert!(told.contains("the provided network does not match the current range"), "{told}");
    // A wider range takes its addresses over.
    range(api, "wide", "10.99.0.0/24");
    api.gone(&path);
    assert_eq!(api.get(&format!("{}/web", services(&namespace)))["spec"]["clusterIP"], "10.99.0.5");
    api.delete(&format!("{}/web", services(&namespace)));
    api.delete(&format!("{RANGES}/wide"));
    api.gone(&format!("{RANGES}/wide"));
}

fn the_default_range_comes_back(api: &Api<'_>) {
    let path = format!("{RANGES}/kubernetes");
    let default = api.until(&path, "held", |r| r["metadata"]["finalizers"][0].is_string());
    assert_eq!(default["status"]["conditions"][0]["message"], "Kubernetes default Service CIDR is ready");
    let described = api.cluster.kubectl(&["describe", "servicecidr", "kubernetes"]);
    assert!(
        described.contains("10.96.0.0/16") && described.contains("Kubernetes default Service CIDR is ready"),
        "{described}"
    );
}

fn what_is_taken_apart_is_repaired(api: &Api<'_>) {
    let namespace = api.namespace("repair");
    let made = api.create(&services(&namespace), &service("web", ""));
    let ip = made["spec"]["clusterIP"].as_str().unwrap();
    let path = format!("{ADDRESSES}/{ip}");
    let before = api.get(&path)["metadata"]["uid"].clone();
    api.delete(&path);
    let again = api.until(&path, "there again", |a| a["metadata"]["uid"] != before);
    assert_eq!(again["spec"]["parentRef"]["name"], "web");
    let events = format!("/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3Dweb");
    let told = format!("Cluster IP [IPv4]: {ip} is not allocated; repairing");
    api.until(&events, "told", |l| {
        let mut all = l["items"].as_array().unwrap().iter();
        all.any(|e| e["reason"] == "ClusterIPNotAllocated" && e["message"] == told.as_str())
    });
}

fn a_service_of_another_range_serves(api: &Api<'_>) {
    let namespace = api.namespace("other-range");
    range(api, "documentation", "203.0.113.0/24");
    let pod = |name: &str, args: &[&str]| {
        json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "gantry.local/self", "args": args}]}})
    };
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    api.create(&pods, &pod("web", &["serve", "--port", "80"]));
    api.create(&pods, &pod("client", &["sleep", "inf"]));
    let made = api.create(&services(&namespace), &service("web", "203.0.113.10"));
    assert_eq!(made["spec"]["clusterIP"], "203.0.113.10");
    api.ready(&namespace, "web");
    api.ready(&namespace, "client");
    api.cluster.wait_for("an answer from 203.0.113.10", || {
        api.exec(&namespace, "client", &["/gantry", "self", "get", "http://203.0.113.10/hostname"])
            .ok()
            .filter(|t| t.contains("web"))
    });
}

/// The addresses are there again after a crash, and nobody gets one twice.
fn survives_a_restart(cluster: &mut Cluster) {
    let before = names_of(&Api::new(cluster));
    cluster.kill();
    cluster.up();
    let api = Api::new(cluster);
    assert_eq!(names_of(&api), before);
    let told = refused(&api, &services("default"), &service("late", "10.96.0.10"));
    assert!(told.contains("provided IP is already allocated"), "{told}");
}

fn names_of(api: &Api<'_>) -> Vec<String> {
    names(&api.list(ADDRESSES)).into_iter().map(ToOwned::to_owned).collect()
}
