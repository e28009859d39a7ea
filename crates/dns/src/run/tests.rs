//! The whole server, from an API server of the tests' own to an answer.

use std::time::Duration;

use gantry_client::testing::Tables;
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use serde_json::json;
use tokio::net::UdpSocket;

use super::*;

fn api() -> Client {
    let service = json!({
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]},
    });
    let slice = json!({
        "metadata": {"name": "web-1", "namespace": "ns", "labels": {SERVICE_NAME_LABEL: "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.0.5"], "hostname": "web-0"}],
        "ports": [],
    });
    let tables = Tables::of([
        ("namespaces", vec![json!({"metadata": {"name": "ns"}})]),
        ("services", vec![service]),
        ("endpointslices", vec![slice]),
    ]);
    Client::new(Arc::new(tables), "test")
}

#[tokio::test]
async fn names_come_from_the_api() {
    let free = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let address = free.local_addr().expect("address");
    drop(free);
    let config = DnsConfig { bind: vec![address], cluster_domain: "cluster.local".into(), upstream: None };
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(run(api(), config.clone(), shutdown.clone()));
    let ask = async |name: &str, kind: RecordType| {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        socket.connect(address).await.expect("connect");
        let mut buffer = [0; 1500];
        // Until it listens and its caches are filled, clients try again.
        for _ in 0..200 {
            let _ = socket.send(&question.to_vec().expect("bytes")).await;
            if let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(50), socket.recv(&mut buffer)).await {
                let answer = Message::from_vec(&buffer[..length]).expect("message");
                if answer.metadata.response_code != hickory_proto::op::ResponseCode::ServFail {
                    return answer.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>();
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no answer");
    };
    assert_eq!(ask("web.ns.svc.cluster.local.", RecordType::A).await, ["10.244.0.5"]);
    assert_eq!(ask("web-0.web.ns.svc.cluster.local.", RecordType::A).await, ["10.244.0.5"]);
    assert_eq!(ask("1-2-3-4.ns.pod.cluster.local.", RecordType::A).await, ["1.2.3.4"]);

    let taken = run(api(), config, CancellationToken::new()).await;
    let error = taken.expect_err("taken").to_string();
    assert!(error.starts_with(&format!("serve DNS on {address}: ")), "{error}");
    shutdown.cancel();
    server.await.expect("task").expect("server");
}
