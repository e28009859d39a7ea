//! Aggregation: a small API server of the test's own, behind a Service, seen through the cluster's.

mod cluster;

use cluster::api::{Api, MERGE, base64};
use cluster::{Cluster, enter};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

const GROUP: &str = "wardle.example.com";
const ROOT: &str = "/apis/wardle.example.com/v1alpha1";
const REGISTRATIONS: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// A request as the sample server got it.
#[derive(Clone, Debug, Default)]
struct Seen {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Value,
}

impl Seen {
    fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }
}

#[derive(Default)]
struct State {
    flunders: Mutex<BTreeMap<String, Value>>,
    watchers: Mutex<Vec<Sender<Value>>>,
    seen: Mutex<Vec<Seen>>,
    revision: AtomicU64,
    broken: AtomicBool,
}

/// A server of flunders.
struct Sample {
    port: u16,
    ca: String,
    state: Arc<State>,
}

type Connection = BufReader<StreamOwned<ServerConnection, TcpStream>>;

impl Sample {
    /// Serves those whose certificate the front proxy's authority signed, under a certificate for `name`.
    fn start(cluster: &Cluster, name: &str, proxy_ca: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(proxy_ca.as_bytes()).unwrap()).unwrap();
        let proxies = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(proxies)
            .with_single_cert(chain, key)
            .unwrap();
        let (tls, network) = (Arc::new(tls), cluster.network());
        let listener = std::thread::spawn(move || {
            enter(&network);
            TcpListener::bind("0.0.0.0:0").unwrap()
        });
        let listener = listener.join().unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<State> = Arc::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (tls, state) = (tls.clone(), shared.clone());
                std::thread::spawn(move || {
                    // A client that goes away in the middle is its own affair.
                    stream.and_then(|stream| serve(stream, tls, &state)).ok();
                });
            }
        });
        Self { port, ca: base64(certificate.as_bytes()), state }
    }

    /// Requests to a path that came from users, not from the aggregator itself.
    fn seen(&self, path: &str) -> Vec<Seen> {
        let all = self.state.seen.lock().unwrap();
        let of_user = |s: &&Seen| s.path == path && s.all("x-remote-user") != ["system:kube-aggregator"];
        all.iter().filter(of_user).cloned().collect()
    }
}

fn read_request(stream: &mut Connection) -> std::io::Result<Option<Seen>> {
    let mut first = String::new();
    if stream.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut seen = Seen { method, path: path.to_owned(), query: query.to_owned(), ..Seen::default() };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        seen.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = seen.all("content-length").first().and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    seen.body = serde_json::from_slice(&body).unwrap_or_default();
    Ok(Some(seen))
}

fn respond(stream: &mut Connection, code: u16, body: &Value) -> std::io::Result<()> {
    let text = body.to_string();
    let head = format!("HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", text.len());
    let out = stream.get_mut();
    out.write_all(format!("{head}{text}").as_bytes())?;
    out.flush()
}

fn serve(stream: TcpStream, tls: Arc<ServerConfig>, state: &State) -> std::io::Result<()> {
    let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    while let Some(request) = read_request(&mut stream)? {
        state.seen.lock().unwrap().push(request.clone());
        if state.broken.load(Ordering::SeqCst) {
            respond(&mut stream, 500, &json!({}))?;
        } else if request.all("upgrade") == ["echo"] {
            return echo(&mut stream);
        } else if request.query.contains("watch=true") {
            return watch(&mut stream, state);
        } else {
            let (code, body) = answer(&request, state);
            respond(&mut stream, code, &body)?;
        }
    }
    Ok(())
}

fn echo(stream: &mut Connection) -> std::io::Result<()> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.get_mut().write_all(head.as_bytes())?;
    let mut line = String::new();
    while stream.read_line(&mut line)? > 0 {
        stream.get_mut().write_all(format!("echo {line}").as_bytes())?;
        stream.get_mut().flush()?;
        line.clear();
    }
    Ok(())
}

fn watch(stream: &mut Connection, state: &State) -> std::io::Result<()> {
    let (sender, events): (_, Receiver<Value>) = channel();
    state.watchers.lock().unwrap().push(sender);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.get_mut().write_all(head.as_bytes())?;
    stream.get_mut().flush()?;
    for event in events {
        let line = format!("{event}\n");
        stream.get_mut().write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())?;
        stream.get_mut().flush()?;
    }
    Ok(())
}

fn document(path: &str) -> Option<Value> {
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "watch"];
    Some(match path {
        ROOT => json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/v1alpha1"),
            "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                "shortNames": ["fl"], "verbs": verbs}]}),
        "/openapi/v2" => json!({"swagger": "2.0", "info": {"title": "Wardle", "version": "v0"},
            "paths": {format!("{ROOT}/flunders"): {"get": {"operationId": "listFlunders", "responses": {"200":
                {"description": "OK", "schema": {"$ref": "#/definitions/com.example.wardle.v1alpha1.Flunder"}}}}}},
            "definitions": {"com.example.wardle.v1alpha1.Flunder": {"type": "object", "description": "A flunder.",
                "properties": {"spec": {"type": "string"}},
                "x-kubernetes-group-version-kind": [{"group": GROUP, "version": "v1alpha1", "kind": "Flunder"}]}}}),
        "/openapi/v3" => json!({"paths": {ROOT.trim_start_matches('/'):
            {"serverRelativeURL": format!("/openapi/v3{ROOT}?hash=ABC")}}}),
        "/openapi/v3/apis/wardle.example.com/v1alpha1" => {
            json!({"openapi": "3.0.0", "info": {"title": "Wardle", "version": "v0"}, "paths": {}})
        }
        _ => return None,
    })
}

fn answer(request: &Seen, state: &State) -> (u16, Value) {
    if let Some(document) = document(&request.path) {
        return (200, document);
    }
    let missing = || {
        (
            404,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
        "reason": "NotFound", "message": "the flunder is not there"}),
        )
    };
    let Some(below) = request.path.strip_prefix(ROOT).and_then(|p| p.split_once("/flunders")) else { return missing() };
    let name = below.1.trim_start_matches('/');
    let mut flunders = state.flunders.lock().unwrap();
    match (request.method.as_str(), name) {
        ("GET", "") => (
            200,
            json!({"kind": "FlunderList", "apiVersion": format!("{GROUP}/v1alpha1"),
            "metadata": {"resourceVersion": "1"}, "items": flunders.values().collect::<Vec<_>>()}),
        ),
        ("GET", name) => flunders.get(name).map_or_else(missing, |f| (200, f.clone())),
        ("POST", _) => {
            let mut flunder = request.body.clone();
            let revision = state.revision.fetch_add(1, Ordering::SeqCst) + 1;
            flunder["metadata"]["resourceVersion"] = revision.to_string().into();
            flunder["metadata"]["namespace"] = below.0.trim_start_matches("/namespaces/").into();
            let name = flunder["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            flunders.insert(name, flunder.clone());
            for watcher in state.watchers.lock().unwrap().iter() {
                watcher.send(json!({"type": "ADDED", "object": flunder})).ok();
            }
            (201, flunder)
        }
        ("DELETE", "") => {
            flunders.clear();
            (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
        }
        ("DELETE", name) => flunders.remove(name).map_or_else(missing, |f| (200, f)),
        _ => missing(),
    }
}

/// A Service without pods that leads to the sample server, and the sample server.
fn behind_a_service(api: &Api<'_>, namespace: &str) -> Sample {
    api.namespace(namespace);
    let trust = api.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication");
    let proxy_ca = trust["data"]["requestheader-client-ca-file"].as_str().unwrap();
    assert_eq!(trust["data"]["requestheader-username-headers"], r#"["X-Remote-User"]"#);
    assert_eq!(trust["data"]["requestheader-allowed-names"], r#"["front-proxy-client"]"#);
    assert!(trust["data"]["client-ca-file"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let sample = Sample::start(api.cluster, &format!("sample-api.{namespace}.svc"), proxy_ca);
    let services = format!("/api/v1/namespaces/{namespace}/services");
    api.create(&services, &json!({"metadata": {"name": "sample-api"}, "spec": {"ports": [{"port": 7443}]}}));
    sample
}

fn endpoints(api: &Api<'_>, namespace: &str, port: u16) {
    let node = api.get("/api/v1/nodes/node-1");
    let addresses = node["status"]["addresses"].as_array().unwrap();
    let address = addresses.iter().find(|a| a["type"] == "InternalIP").unwrap()["address"].clone();
    let slice = json!({"metadata": {"name": "sample-api-1", "labels": {"kubernetes.io/service-name": "sample-api"}},
        "addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": [{"name": "", "port": port}]});
    api.create(&format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"), &slice);
}

fn registration(group: &str, version: &str, namespace: &str, ca: &str) -> Value {
    json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": format!("{version}.{group}"), "labels": {"sample": "yes"}},
        "spec": {"group": group, "version": version, "groupPriorityMinimum": 2000, "versionPriority": 200,
            "caBundle": ca, "service": {"namespace": namespace, "name": "sample-api", "port": 7443}}})
}

fn condition(service: &Value) -> (&str, &str, &str) {
    let condition = &service["status"]["conditions"][0];
    let text = |f: &str| condition[f].as_str().unwrap_or_default();
    (text("status"), text("reason"), text("message"))
}

fn until_reason(api: &Api<'_>, name: &str, reason: &str) -> String {
    let service = api.until(&format!("{REGISTRATIONS}/{name}"), reason, |s| condition(s).1 == reason);
    condition(&service).2.to_owned()
}

// aggregator-supports-the-sample-apiserver
#[test]
fn another_server_serves_a_group() {
    let cluster = Cluster::start();
    let api = Api::new(&cluster);
    registered_by_itself(&api);
    let sample = behind_a_service(&api, "wardle");
    let name = format!("v1alpha1.{GROUP}");
    let path = format!("{REGISTRATIONS}/{name}");

    // Each thing that is missing is named.
    let mut wanted = registration(GROUP, "v1alpha1", "wardle", &sample.ca);
    wanted["spec"]["service"]["name"] = "absent".into();
    api.create(REGISTRATIONS, &wanted);
    assert_eq!(until_reason(&api, &name, "ServiceNotFound"), r#"service/absent in "wardle" is not present"#);
    let refused = api.try_get(&format!("{ROOT}/flunders"));
    assert_eq!((refused.code, refused.text.as_str()), (503, "service unavailable\n"));
    api.patch(&path, MERGE, &json!({"spec": {"service": {"name": "sample-api", "port": 1}}}));
    assert_eq!(
        until_reason(&api, &name, "ServicePortError"),
        r#"service/sample-api in "wardle" is not listening on port 1"#
    );
    api.patch(&path, MERGE, &json!({"spec": {"service": {"port": 7443}}}));
    assert_eq!(
        until_reason(&api, &name, "EndpointsNotFound"),
        r#"cannot find endpointslices for service/sample-api in "wardle""#
    );
    endpoints(&api, "wardle", sample.port);
    assert_eq!(until_reason(&api, &name, "Passed"), "all checks passed");
    let shown = cluster.kubectl(&["get", "apiservice", &name, "--no-headers"]);
    assert_eq!(shown.split_whitespace().collect::<Vec<_>>()[..3], [name.as_str(), "wardle/sample-api", "True"]);

    discovered(&api);
    objects(&api, &sample);
    upgraded(&cluster);

    // A server that breaks is told, and only its own group suffers.
    sample.state.broken.store(true, Ordering::SeqCst);
    api.patch(&path, MERGE, &json!({"metadata": {"annotations": {"again": "1"}}, "spec": {"versionPriority": 400}}));
    let why = until_reason(&api, &name, "FailedDiscoveryCheck");
    assert!(why.starts_with("failing or missing response from https://"), "{why}");
    assert!(why.ends_with(&format!(":7443{ROOT}: 500")), "{why}");
    let output = cluster.try_kubectl(&["api-resources", "--api-group", "apps"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("deployments"), "{output:?}");
    let list = cluster.try_kubectl(&["get", "flunders"]);
    assert!(!list.status.success());
    sample.state.broken.store(false, Ordering::SeqCst);
    api.patch(&path, MERGE, &json!({"spec": {"versionPriority": 300}}));
    until_reason(&api, &name, "Passed");

    // One that names no Service any more is this server's own.
    api.patch(&path, MERGE, &json!({"spec": {"service": null, "caBundle": null}}));
    assert_eq!(until_reason(&api, &name, "Local"), "Local APIServices are always available");

    // Gone with its registration.
    let left = api.request("DELETE", &format!("{REGISTRATIONS}?labelSelector=sample%3Dyes"), None);
    assert_eq!(left.code, 200, "{}", left.text);
    api.gone(&path);
    cluster.wait_for("the group is gone", || (api.try_get(ROOT).code == 404).then_some(()));
    assert!(!api.get("/apis").to_string().contains(GROUP));
}

/// What this server has itself is registered, and custom resources as they come and go.
fn registered_by_itself(api: &Api<'_>) {
    let apps = api.get(&format!("{REGISTRATIONS}/v1.apps"));
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(
        apps["spec"],
        json!({"group": "apps", "version": "v1", "groupPriorityMinimum": 17800,
        "versionPriority": 15})
    );
    assert_eq!(condition(&apps), ("True", "Local", "Local APIServices are always available"));
    assert_eq!(api.get(&format!("{REGISTRATIONS}/v1."))["spec"]["version"], "v1");
    assert_eq!(condition(&api.get(&format!("{REGISTRATIONS}/v1beta1.metrics.k8s.io"))).1, "Local");
    let groups = api.get("/apis")["groups"].clone();
    assert_eq!(groups[0]["name"], "apiregistration.k8s.io");
    assert_eq!(groups[1]["name"], "apps");
    let definition = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com",
        "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing", "singular": "thing"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    api.create(definitions, &definition);
    let made = api.until(&format!("{REGISTRATIONS}/v1.example.com"), "registered", |_| true);
    assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!((&made["spec"]["groupPriorityMinimum"], &made["spec"]["versionPriority"]), (&json!(1000), &json!(100)));
    // It is kept.
    let uid = made["metadata"]["uid"].clone();
    api.delete(&format!("{REGISTRATIONS}/v1.example.com"));
    api.until(&format!("{REGISTRATIONS}/v1.example.com"), "back", |s| s["metadata"]["uid"] != uid);
    api.delete(&format!("{definitions}/things.example.com"));
    api.gone(&format!("{REGISTRATIONS}/v1.example.com"));
}

fn discovered(api: &Api<'_>) {
    let cluster = api.cluster;
    let accept = "Accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = api.with_header(accept);
    let entry = cluster.wait_for("aggregated discovery is current", || {
        let document = aggregated.get("/apis");
        let items = document["items"].as_array().unwrap();
        let version = items.iter().find(|i| i["metadata"]["name"] == GROUP)?["versions"][0].clone();
        (version["freshness"] == "Current").then_some(version)
    });
    assert_eq!(entry["resources"][0]["resource"], "flunders");
    assert_eq!(entry["resources"][0]["responseKind"]["kind"], "Flunder");
    assert_eq!(api.get(&format!("/apis/{GROUP}"))["preferredVersion"]["version"], "v1alpha1");
    assert_eq!(api.get(ROOT)["resources"][0]["name"], "flunders");
    let listed = cluster.kubectl(&["api-resources", "--api-group", GROUP, "--no-headers"]);
    assert_eq!(
        listed.split_whitespace().collect::<Vec<_>>(),
        ["flunders", "fl", "wardle.example.com/v1alpha1", "true", "Flunder"]
    );
    // Its documents are among ours.
    let v3 = api.get("/openapi/v3");
    let url = v3["paths"][ROOT.trim_start_matches('/')]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(api.get(url)["info"]["title"], "Wardle");
    let v2 = api.get("/openapi/v2");
    assert_eq!(v2["paths"][format!("{ROOT}/flunders")]["get"]["operationId"], "listFlunders");
    assert_eq!(v2["definitions"]["com.example.wardle.v1alpha1.Flunder"]["description"], "A flunder.");
    assert!(v2["definitions"].get("io.k8s.api.apps.v1.Deployment").is_some());
}

fn objects(api: &Api<'_>, sample: &Sample) {
    let cluster = api.cluster;
    let watch = api.watch(&format!("{ROOT}/flunders"));
    cluster.kubectl_with(
        &["create", "--validate=false", "-f", "-"],
        "{apiVersion: wardle.example.com/v1alpha1, kind: Flunder, metadata: {name: first}, spec: x}",
    );
    watch.expect("ADDED", "first");
    assert_eq!(cluster.jsonpath(&["flunder", "first"], "{.spec}"), "x");
    assert_eq!(api.list(&format!("{ROOT}/namespaces/default/flunders")).len(), 1);
    assert_eq!(api.try_get(&format!("{ROOT}/namespaces/default/flunders/none")).code, 404);

    // The server behind learns who asks, and nothing of their credentials.
    let path = format!("{ROOT}/namespaces/default/flunders/first");
    let refused = api.impersonate("eve", &["devs"]).try_get(&path);
    let why = "flunders.wardle.example.com \"first\" is forbidden: User \"eve\" cannot get resource \"flunders\" in API \
               group \"wardle.example.com\" in the namespace \"default\"";
    assert_eq!((refused.code, refused.json()["message"].as_str()), (403, Some(why)));
    cluster.kubectl(&["create", "clusterrole", "flunders", "--verb=get", "--resource=flunders.wardle.example.com"]);
    cluster.kubectl(&["create", "clusterrolebinding", "flunders", "--clusterrole=flunders", "--group=devs"]);
    let forged = api.with_header("X-Remote-User: root").with_header("X-Remote-Group: system:masters");
    let eve = forged.with_header("Impersonate-Extra-example.com%2fscope: read").impersonate("eve", &["devs"]);
    cluster.wait_for("eve may look", || (eve.try_get(&path).code == 200).then_some(()));
    let seen = sample.seen(&path);
    let last = seen.iter().rfind(|s| s.all("x-remote-user") == ["eve"]).unwrap();
    assert_eq!(last.all("x-remote-group"), ["devs", "system:authenticated"]);
    assert_eq!(last.all("x-remote-extra-example.com%2fscope"), ["read"]);
    assert!(!last.headers.iter().any(|(n, _)| n.starts_with("impersonate-") || n == "authorization"), "{last:?}");
    assert_eq!(last.all("x-forwarded-uri"), [path.as_str()]);
    assert_eq!(last.all("audit-id").len(), 1);

    cluster.kubectl(&["delete", "flunder", "first"]);
    assert!(api.list(&format!("{ROOT}/flunders")).is_empty());
}

/// A connection that is taken over goes through.
fn upgraded(cluster: &Cluster) {
    let file = |name: &str| cluster.data_dir().join(name).display().to_string();
    let server = cluster.kubectl(&["config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let address = server.trim_start_matches("https://").to_owned();
    let mut client = cluster
        .inside("openssl")
        .args(["s_client", "-quiet", "-verify_quiet", "-connect", &address, "-alpn", "http/1.1"])
        .args([
            "-CAfile",
            &file("test-ca.pem"),
            "-cert",
            &file("test-client.pem"),
            "-key",
            &file("test-client-key.pem"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut to = client.stdin.take().unwrap();
    let head = format!(
        "GET {ROOT}/namespaces/default/flunders/f/echo HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
         Upgrade: echo\r\n\r\n"
    );
    to.write_all(head.as_bytes()).unwrap();
    let mut from = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 101"), "{line}");
    while line.trim() != "" {
        line.clear();
        from.read_line(&mut line).unwrap();
    }
    to.write_all(b"hello\n").unwrap();
    line.clear();
    from.read_line(&mut line).unwrap();
    assert_eq!(line, "echo hello\n");
    drop(to);
    client.kill().unwrap();
    client.wait().unwrap();
}
