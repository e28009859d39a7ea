//! Addresses and node ports of Services under many writers at once: at the end exactly those are held that are used.

mod harness;

use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_server::Server;
use gantry_server::authn::UserInfo;
use gantry_store::MemoryStore;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
/// Few enough that writers meet.
const PORTS: (u16, u16) = (30000, 30039);
const NAMES: u64 = 6;
const WRITERS: u64 = 6;
const WRITES: usize = 60;

async fn server() -> Arc<Server> {
    let (mut config, _) = harness::config();
    config.service_cidr = "10.96.0.0/26".parse().unwrap();
    config.secondary_service_cidr = Some("fd00:96::/120".parse().unwrap());
    config.node_port_range = PORTS;
    let clock = Clock::starting_at("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
    Server::new(config, Arc::new(MemoryStore::new()), clock, Entropy::seeded(7)).await.unwrap()
}

async fn call(server: &Arc<Server>, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
    let request = request.body(text.into()).unwrap();
    let response = server.call(request, UserInfo::new("admin", &["system:masters"])).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// Any Service there can be, and some there cannot be.
fn spec(dice: &Entropy) -> Value {
    let roll = |n: u64| dice.below(n);
    let mut port = json!({"name": "a", "port": 80});
    let mut other = json!({"name": "b", "port": 80, "protocol": "UDP"});
    if roll(3) == 0 {
        port["nodePort"] = json!(u64::from(PORTS.0) + roll(8));
    }
    if roll(5) == 0 {
        other["nodePort"] = json!(u64::from(PORTS.0) + roll(8));
    }
    let ports = if roll(2) == 0 { json!([port]) } else { json!([port, other]) };
    let mut spec = json!({"selector": {"app": "x"}, "ports": ports});
    match roll(6) {
        0 => spec["type"] = json!("ClusterIP"),
        1 | 2 => spec["type"] = json!("NodePort"),
        3 => spec["type"] = json!("LoadBalancer"),
        4 => {
            spec["type"] = json!("LoadBalancer");
            spec["externalTrafficPolicy"] = json!("Local");
            if roll(2) == 0 {
                spec["healthCheckNodePort"] = json!(u64::from(PORTS.0) + roll(8));
            }
        }
        _ => {
            spec["type"] = json!("ExternalName");
            spec["externalName"] = json!("example.com");
        }
    }
    if spec["type"] == "LoadBalancer" && roll(2) == 0 {
        spec["allocateLoadBalancerNodePorts"] = json!(false);
    }
    if spec["type"] != "ExternalName" {
        match roll(6) {
            0 => spec["ipFamilyPolicy"] = json!("PreferDualStack"),
            1 => spec["ipFamilyPolicy"] = json!("RequireDualStack"),
            2 => spec["ipFamilyPolicy"] = json!("SingleStack"),
            _ => {}
        }
        if roll(6) == 0 {
            spec["ipFamilies"] = json!(["IPv6"]);
        }
        if roll(4) == 0 {
            spec["clusterIP"] = json!(format!("10.96.0.{}", 20 + roll(4)));
        }
    }
    spec
}

/// One writer: creates, replaces, patches, deletes, dry runs, and clients that hang up.
async fn write(server: Arc<Server>, dice: Entropy) {
    for _ in 0..WRITES {
        let name = format!("s{}", dice.below(NAMES));
        let path = format!("{SERVICES}/{name}");
        let object = json!({"metadata": {"name": name}, "spec": spec(&dice)});
        match dice.below(8) {
            0 | 1 => drop(call(&server, "POST", SERVICES, &object).await),
            2 => drop(call(&server, "POST", &format!("{SERVICES}?dryRun=All"), &object).await),
            3 => drop(call(&server, "PUT", &path, &object).await),
            4 => drop(call(&server, "PATCH", &path, &json!({"spec": object["spec"]})).await),
            5 => {
                let policy = if dice.below(2) == 0 { "SingleStack" } else { "RequireDualStack" };
                call(&server, "PATCH", &path, &json!({"spec": {"ipFamilyPolicy": policy}})).await;
            }
            6 => {
                let patch = json!({"spec": {"type": "ClusterIP", "externalTrafficPolicy": null}});
                call(&server, "PATCH", &format!("{path}?dryRun=All"), &patch).await;
                call(&server, "PATCH", &path, &patch).await;
            }
            _ => drop(call(&server, "DELETE", &path, &Value::Null).await),
        }
        tokio::task::yield_now().await;
    }
}

async fn items(server: &Arc<Server>, path: &str) -> Vec<Value> {
    let (code, mut list) = call(server, "GET", path, &Value::Null).await;
    assert_eq!(code, 200, "{list}");
    serde_json::from_value(list["items"].take()).unwrap()
}

fn ports_of(service: &Value) -> BTreeSet<u64> {
    if service["spec"]["type"] == "ExternalName" {
        // What such a Service names is only text.
        return BTreeSet::new();
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(|p| &p["nodePort"]);
    ports.chain([&service["spec"]["healthCheckNodePort"]]).filter_map(Value::as_u64).filter(|p| *p != 0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exactly_what_is_used_is_held() {
    let server = server().await;
    let mut writers = Vec::new();
    for seed in 0..WRITERS {
        writers.push(tokio::spawn(write(server.clone(), Entropy::seeded(seed))));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let all = items(&server, "/api/v1/services").await;
    // What nobody has twice.
    let mut ips = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for service in &all {
        let own: Vec<&str> =
            service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let families = service["spec"]["ipFamilies"].as_array().map_or(0, Vec::len);
        assert_eq!(own.len(), families, "an address for each family: {service}");
        for ip in own {
            assert!(ips.insert(ip.to_owned()), "{ip} is held twice");
        }
        for port in ports_of(service) {
            assert!(ports.insert(port), "node port {port} is held twice");
        }
    }
    let held: BTreeSet<String> =
        items(&server, ADDRESSES).await.iter().map(|a| a["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(held, ips);
    // Every other port can be had, and none of these.
    for port in u64::from(PORTS.0)..=u64::from(PORTS.1) {
        let wanted = json!({"metadata": {"name": format!("p{port}")},
            "spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]}});
        let (code, answer) = call(&server, "POST", &format!("{SERVICES}?dryRun=All"), &wanted).await;
        let free = !ports.contains(&port);
        assert_eq!(code, if free { 201 } else { 422 }, "{port}: {answer}");
    }
}
