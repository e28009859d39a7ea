//! Over TLS: who may connect, what is answered, how the server stops.

mod harness;

use bytes::Bytes;
use gantry_store::{MemoryStore, Store};
use harness::{ADMIN_TOKEN, Harness};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsConnector;

/// Connects, with a client certificate where one is given.
async fn connect(h: &Harness, client: Option<(String, String)>) -> SendRequest<Full<Bytes>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(h.ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    let stream = tokio::net::TcpStream::connect(h.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn get(sender: &mut SendRequest<Full<Bytes>>, path: &str, token: Option<&str>) -> (u16, Value) {
    let mut request = hyper::Request::get(path).header("host", "localhost");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    send(sender, request.body(Full::default()).unwrap()).await
}

async fn send(sender: &mut SendRequest<Full<Bytes>>, request: hyper::Request<Full<Bytes>>) -> (u16, Value) {
    let response = sender.send_request(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (
        code,
        serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())),
    )
}

#[tokio::test]
async fn callers_are_told_apart() {
    let h = Harness::start().await;
    let mut plain = connect(&h, None).await;
    assert_eq!(get(&mut plain, "/healthz", None).await, (200, json!("ok")), "anonymous may ask for health");
    let (code, status) = get(&mut plain, "/api/v1/nodes", None).await;
    assert_eq!((code, status["reason"].as_str()), (403, Some("Forbidden")));
    assert!(status["message"].as_str().unwrap().contains("User \"system:anonymous\" cannot list resource \"nodes\""));
    let (code, status) = get(&mut plain, "/api/v1/nodes", Some("wrong")).await;
    assert_eq!((code, status["message"].as_str()), (401, Some("Unauthorized")));
    assert_eq!(get(&mut plain, "/api/v1/nodes", Some("nobody-token")).await.0, 403);
    assert_eq!(get(&mut plain, "/api/v1/nodes", Some(ADMIN_TOKEN)).await.0, 200);
    let mut admin = connect(&h, Some(h.client_certificate("root", "system:masters"))).await;
    for _ in 0..2 {
        assert_eq!(get(&mut admin, "/api/v1/nodes", None).await.0, 200);
    }
    assert_eq!(
        get(&mut admin, "/api/v1/nodes", Some("wrong")).await.0,
        200,
        "the certificate is asked first, as upstream"
    );
}

#[tokio::test]
async fn protobuf_bodies_are_understood() {
    let h = Harness::start().await;
    let mut sender = connect(&h, None).await;
    let body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01x\x12\x01y";
    let request = |body: Bytes| {
        hyper::Request::post("/api/v1/namespaces/default/configmaps")
            .header("host", "localhost")
            .header("authorization", format!("Bearer {ADMIN_TOKEN}"))
            .header("content-type", "application/vnd.kubernetes.protobuf")
            .header("accept", "application/json")
            .body(Full::new(body))
            .unwrap()
    };
    let (code, made) = send(&mut sender, request(Bytes::from_static(body))).await;
    assert_eq!((code, &made["data"]["x"]), (201, &json!("y")), "{made}");
    let (code, status) = send(&mut sender, request(Bytes::from_static(b"{}"))).await;
    assert_eq!((code, status["reason"].as_str()), (400, Some("BadRequest")));
}

#[tokio::test]
async fn health_discovery_and_metrics_are_served() {
    let h = Harness::start().await;
    let (code, text) = h.call("GET", "/readyz?verbose", None).await;
    assert!(code == 200 && text.as_str().unwrap().contains("[+]etcd ok\n"), "{text}");
    assert_eq!(h.call("GET", "/livez/ping", None).await, (200, json!("ok")));
    assert_eq!(h.call("GET", "/livez/nothing", None).await.0, 404);
    let (_, version) = h.call("GET", "/version", None).await;
    assert_eq!(
        (&version["major"], &version["minor"], &version["gitVersion"]),
        (&json!("1"), &json!("37"), &json!("v1.37.0+gantry"))
    );
    let (_, groups) = h.call("GET", "/apis", None).await;
    assert_eq!(groups["kind"], "APIGroupList");
    let (_, group) = h.call("GET", "/apis/apps", None).await;
    assert_eq!(group["preferredVersion"]["groupVersion"], "apps/v1");
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")];
    let response = h.raw("GET", "/apis", &accept, "").await;
    let etag = response.headers()["etag"].to_str().unwrap().to_owned();
    assert!(response.headers()["content-type"].to_str().unwrap().ends_with("as=APIGroupDiscoveryList"));
    let response = h.raw("GET", "/apis", &[accept[0], ("if-none-match", &etag)], "").await;
    assert_eq!(response.status(), 304);
    let (_, text) = h.call("GET", "/metrics", None).await;
    for name in [
        "apiserver_request_total{",
        "apiserver_request_duration_seconds_bucket{",
        "apiserver_storage_objects{resource=\"namespaces\"} 4",
        "process_resident_memory_bytes",
    ] {
        assert!(text.as_str().unwrap().contains(name), "{name}: {text}");
    }
    let (code, document) = h.call("GET", "/openapi/v3/api/v1", None).await;
    assert_eq!((code, document["info"]["version"].as_str()), (200, Some("v1.37.0")));
    assert_eq!(h.call("GET", "/openapi/v3/apis/none/v1", None).await.0, 404);
    assert_eq!(h.call("GET", "/apis/metrics.k8s.io/v1beta1/nodes", None).await.1["items"], json!([]));
    assert_eq!(h.call("POST", "/version", None).await.0, 405);
}

#[tokio::test]
async fn what_every_cluster_has_is_there_from_the_start() {
    let h = Harness::start().await;
    for path in [
        "/api/v1/namespaces/kube-node-lease",
        "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/cluster-admin",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
    ] {
        assert_eq!(h.call("GET", path, None).await.0, 200, "{path}");
    }
    let (_, service) = h.call("GET", "/api/v1/namespaces/default/services/kubernetes", None).await;
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    // Deleted, it comes back.
    let path = "/api/v1/namespaces/default/services/kubernetes";
    let watch = h
        .raw("GET", "/api/v1/namespaces/default/services?watch=true&fieldSelector=metadata.name%3Dkubernetes", &[], "")
        .await;
    let mut watch = watch.into_body();
    assert_eq!(h.call("DELETE", path, None).await.0, 200);
    for want in ["ADDED", "DELETED", "ADDED"] {
        let frame =
            tokio::time::timeout(Duration::from_secs(5), watch.frame()).await.expect("in time").unwrap().unwrap();
        let event: Value = serde_json::from_slice(&frame.into_data().unwrap()).unwrap();
        assert_eq!((event["type"].as_str(), &event["object"]["spec"]["clusterIP"]), (Some(want), &json!("10.96.0.1")));
    }
}

#[tokio::test]
async fn a_second_start_finds_everything_and_writes_nothing() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let first = Harness::start_over(store.clone()).await;
    let body = json!({ "metadata": { "name": "kept" } });
    let (code, made) = first.call("POST", "/api/v1/namespaces/default/configmaps", Some(body)).await;
    assert_eq!(code, 201);
    first.shutdown.cancel();
    // Who is still being served sees what is written while the server stops.
    let (_, late) = first
        .call("POST", "/api/v1/namespaces/default/configmaps", Some(json!({ "metadata": { "name": "late" } })))
        .await;
    assert_eq!(first.call("GET", "/api/v1/namespaces/default/configmaps/late", None).await.1, late);
    let revision = store.revision();
    let second = Harness::start_over(store.clone()).await;
    let range = gantry_store::Range { prefix: "/registry/".into(), ..Default::default() };
    let items = store.range(range).await.unwrap().items;
    // The harness makes a client CA for every start, and this tells which it is.
    let told: &[u8] = b"/registry/core/configmaps/kube-system/extension-apiserver-authentication";
    let late = items.iter().filter(|kv| kv.mod_revision > revision && kv.key != told);
    let written: Vec<_> = late.map(|kv| &kv.key).collect();
    assert!(written.is_empty(), "{written:?}");
    let (_, read) = second.call("GET", "/api/v1/namespaces/default/configmaps/kept", None).await;
    assert_eq!(read, made);
    let (_, watch) = second.call("GET", "/api/v1/configmaps?watch=true&resourceVersion=1", None).await;
    assert_eq!(watch["object"]["code"], 410, "what happened before the start is not held");
}

#[tokio::test]
async fn stopping_lets_requests_finish_and_closes_connections() {
    let h = Harness::start().await;
    let mut sender = connect(&h, None).await;
    let request = hyper::Request::get("/api/v1/configmaps?watch=true")
        .header("host", "localhost")
        .header("authorization", format!("Bearer {ADMIN_TOKEN}"))
        .body(Full::default())
        .unwrap();
    let watch = sender.send_request(request).await.unwrap();
    h.shutdown.cancel();
    let ended =
        tokio::time::timeout(Duration::from_secs(5), watch.into_body().collect()).await.expect("the watch ends");
    ended.expect("with its last chunk, not by a broken connection");
    tokio::time::timeout(Duration::from_secs(5), async {
        while tokio::net::TcpStream::connect(h.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("nobody listens any more");
}
