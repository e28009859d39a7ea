//! The whole proxy, from an API server of the tests' own to connections between pods.

use gantry_client::testing::Tables;
use gantry_network::testing::isolated;
use serde_json::{Value, json};

use super::*;
use crate::apply::tests::{Pod, ask, node};

fn slice(version: u32, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1", "namespace": "ns", "resourceVersion": version.to_string(),
            "labels": {SERVICE_NAME_LABEL: "web"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    })
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..400 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not in time: {what}");
}

#[test]
fn rules_follow_the_api() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (network, _) = node(dir.path()).await;
        let (a, b) = (Pod::new(&network, "a").await, Pod::new(&network, "b").await);
        a.serve("a");
        b.serve("b");
        let service = json!({
            "metadata": {"name": "web", "namespace": "ns", "resourceVersion": "1"},
            "spec": {
                "clusterIP": "10.202.0.80", "clusterIPs": ["10.202.0.80"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            },
        });
        let api = Arc::new(Tables::of([
            ("services", vec![service.clone()]),
            ("endpointslices", vec![slice(1, &["10.201.0.2"])]),
        ]));
        let shutdown = CancellationToken::new();
        let config = ProxyConfig {
            node_name: "n".into(),
            instance: "t1".into(),
            node_ips: vec![],
            cluster_cidrs: vec!["10.201.0.0/16".parse().expect("cidr")],
        };
        let client = Client::new(api.clone(), "test");
        let proxy = tokio::spawn(run(client, config, shutdown.clone()));
        let reached = || ask("10.202.0.80:80").map(|s| s.0).unwrap_or_default();
        until("the first endpoint", || reached() == "a").await;
        api.tell("endpointslices", "MODIFIED", slice(2, &["10.201.0.3"])).await;
        until("the next endpoint", || reached() == "b").await;

        shutdown.cancel();
        proxy.await.expect("task").expect("proxy");
        assert_eq!(reached(), "b", "services outlive the proxy");
        remove("t1").await.expect("remove");
        assert_ne!(reached(), "b");
    });
}

#[test]
fn a_deleted_service_is_gone() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let (network, _) = node(dir.path()).await;
        let a = Pod::new(&network, "a").await;
        a.serve("a");
        let service = json!({
            "metadata": {"name": "web", "namespace": "ns", "resourceVersion": "1"},
            "spec": {"clusterIP": "10.202.0.80", "ports": [{"name": "http", "port": 80}]},
        });
        let api = Arc::new(Tables::of([("endpointslices", vec![slice(1, &["10.201.0.2"])])]));
        let config = ProxyConfig {
            node_name: "n".into(),
            instance: "t1".into(),
            node_ips: vec![],
            cluster_cidrs: vec!["10.201.0.0/16".parse().expect("cidr")],
        };
        let shutdown = CancellationToken::new();
        tokio::spawn(run(Client::new(api.clone(), "test"), config, shutdown.clone()));
        let reached = || ask("10.202.0.80:80").is_ok();
        api.tell("services", "ADDED", service.clone()).await;
        until("the service", reached).await;
        api.tell("services", "DELETED", service).await;
        until("its end", || !reached()).await;
    });
}
