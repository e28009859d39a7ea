//! What upstream's conformance suite asks of the API server as a proxy to pods and Services, and of host ports. Each
//! behaviour stands above its scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::api::Api;
use cluster::busybox::{self, BUSYBOX};
use cluster::{Cluster, PATIENCE};
use serde_json::{Value, json};
use std::net::UdpSocket;

#[test]
fn proxies() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let all = scenarios![through_services_and_pods, methods, methods_with_a_path, the_same_port_at_several_addresses];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

fn create(api: &Api<'_>, namespace: &str, plural: &str, name: &str, labels: &Value, spec: &Value) {
    let object = json!({"metadata": {"name": name, "labels": labels}, "spec": spec});
    api.create(&format!("/api/v1/namespaces/{namespace}/{plural}"), &object);
}

fn serving(port: u16, name: &str) -> Value {
    json!({"name": name, "image": "gantry.local/self", "args": ["serve", "--port", port.to_string()],
        "env": [{"name": "WHO", "value": name}], "ports": [{"name": name, "containerPort": port}]})
}

/// Waits until an address answers so.
fn answers(api: &Api<'_>, path: &str, text: &str) {
    api.cluster.wait_for(&format!("{path}: {text}"), || {
        let answer = api.try_get(path);
        (answer.code == 200 && answer.text.contains(text)).then_some(())
    });
}

// Conformance: Proxy, logs service endpoint
fn through_services_and_pods(api: &Api<'_>) {
    let namespace = api.namespace("proxy");
    let labels = json!({"proxy-service-target": "true"});
    // A page at port 80, two servers, and one that speaks TLS: the API server itself, at the address of a pod on the
    // node's own network.
    let page = "mkdir /www; echo '<a href=\"/rewriteme\">test</a>' >/www/index.html; exec httpd -f -p 80 -h /www";
    let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [
        {"name": "page", "image": BUSYBOX, "command": ["sh", "-c", page], "ports": [{"containerPort": 80}]},
        serving(160, "dest1"), serving(162, "dest2")]});
    create(api, &namespace, "pods", "porter", &labels, &spec);
    let host = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": [
        {"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"], "ports": [{"name": "tlsdest1", "containerPort": 6443}]}]});
    create(api, &namespace, "pods", "tls", &json!({"proxy-tls": "true"}), &host);
    let ports = json!([{"name": "portname1", "port": 80, "targetPort": "dest1"}, {"name": "portname2", "port": 81, "targetPort": 162}]);
    create(api, &namespace, "services", "proxy-service", &json!({}), &json!({"selector": labels, "ports": ports}));
    let ports = json!([{"name": "tlsportname1", "port": 443, "targetPort": "tlsdest1"}]);
    create(
        api,
        &namespace,
        "services",
        "proxy-tls",
        &json!({}),
        &json!({"selector": {"proxy-tls": "true"}, "ports": ports}),
    );
    api.ready(&namespace, "porter");
    api.ready(&namespace, "tls");

    let base = format!("/api/v1/namespaces/{namespace}");
    for (of, path, text) in [
        ("services/proxy-service:portname1", "env", "WHO=dest1\n"),
        ("services/http:proxy-service:portname1", "env", "WHO=dest1\n"),
        ("services/proxy-service:80", "env", "WHO=dest1\n"),
        ("services/proxy-service:portname2", "env", "WHO=dest2\n"),
        ("services/http:proxy-service:portname2", "env", "WHO=dest2\n"),
        ("services/https:proxy-tls:tlsportname1", "version", "\"gitVersion\""),
        ("services/https:proxy-tls:443", "version", "\"gitVersion\""),
        ("pods/porter:160", "env", "WHO=dest1\n"),
        ("pods/http:porter:160", "env", "WHO=dest1\n"),
        ("pods/porter:162", "env", "WHO=dest2\n"),
        ("pods/http:porter:162", "env", "WHO=dest2\n"),
        ("pods/https:tls:6443", "version", "\"gitVersion\""),
    ] {
        answers(api, &format!("{base}/{of}/proxy/{path}"), text);
    }
    for of in ["pods/porter", "pods/porter:80", "pods/http:porter:80"] {
        let proxy = format!("{base}/{of}/proxy");
        let page = api.try_get(&format!("{proxy}/"));
        let link = format!("<a href=\"{proxy}/rewriteme\">test</a>");
        assert_eq!((page.code, page.text.trim()), (200, link.as_str()));
    }
    // The host's logs by way of the node.
    let logs = api.try_get("/api/v1/nodes/node-1/proxy/logs/");
    assert_eq!(logs.code, 200, "{logs:?}");
    let nobody = api.try_get(&format!("{base}/services/proxy-service:nothing/proxy/")).expect(503);
    assert_eq!(nobody["message"], "no endpoints available for service \"proxy-service:nothing\"");
}

/// A server at a pod and a Service with one port each.
fn server(api: &Api<'_>, namespace: &str) -> [String; 2] {
    api.namespace(namespace);
    let labels = json!({"test": namespace});
    let spec =
        json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [serving(8080, "agnhost")]});
    create(api, namespace, "pods", "agnhost", &labels, &spec);
    create(
        api,
        namespace,
        "services",
        "test-service",
        &labels,
        &json!({"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}),
    );
    api.ready(namespace, "agnhost");
    let base = format!("/api/v1/namespaces/{namespace}");
    let proxies = [format!("{base}/pods/agnhost/proxy"), format!("{base}/services/test-service/proxy")];
    for proxy in &proxies {
        answers(api, &format!("{proxy}/hostname"), "agnhost");
    }
    proxies
}

// Conformance: Proxy, validate Proxy responses
fn methods(api: &Api<'_>) {
    for proxy in server(api, "proxy-methods") {
        for method in ["DELETE", "OPTIONS", "PATCH", "POST", "PUT"] {
            let answer = api.request(method, &format!("{proxy}?method={method}"), None);
            assert!(answer.code == 200 && answer.text.starts_with("agnhost "), "{method} {proxy}: {answer:?}");
        }
        // What reads is sent to the same place with a slash, so that relative links work.
        for method in ["GET", "HEAD"] {
            let answer = api.request(method, &format!("{proxy}?method={method}"), None);
            assert_eq!(answer.code, 301, "{method} {proxy}: {answer:?}");
            let location = format!("{proxy}/?method={method}");
            let told = answer
                .head
                .lines()
                .find_map(|l| l.to_ascii_lowercase().strip_prefix("location: ").map(|_| l[10..].trim().to_owned()));
            assert_eq!(told.as_deref(), Some(location.as_str()), "{answer:?}");
        }
    }
}

// Conformance: Proxy, validate ProxyWithPath responses
fn methods_with_a_path(api: &Api<'_>) {
    for proxy in server(api, "proxy-paths") {
        for method in ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"] {
            let answer = api.request(method, &format!("{proxy}/headers?some={method}"), None);
            assert_eq!(answer.code, 200, "{method} {proxy}: {answer:?}");
            if method != "HEAD" {
                assert!(answer.text.starts_with(&format!("{method} /headers\n")), "{answer:?}");
                // The server's own credentials and the client's stay here.
                assert!(!answer.text.to_ascii_lowercase().contains("authorization"), "{answer:?}");
            }
        }
        let echoed = api.request("POST", &format!("{proxy}/echo"), Some(("text/plain", "foo")));
        assert_eq!((echoed.code, echoed.text.as_str()), (200, "foo"));
    }
}

// Conformance: Scheduling, HostPort matching and HostIP and Protocol not-matching
fn the_same_port_at_several_addresses(api: &Api<'_>) {
    let namespace = api.namespace("hostport");
    let node = api.get("/api/v1/nodes/node-1")["status"]["addresses"][0]["address"].as_str().unwrap().to_owned();
    let port = |ip: &str, protocol: &str| json!([{"containerPort": 8080, "hostPort": 54323, "hostIP": ip, "protocol": protocol}]);
    for (name, ports, command) in [
        ("pod1", port("127.0.0.1", "TCP"), json!(["serve", "--port", "8080"])),
        ("pod2", port(&node, "TCP"), json!(["serve", "--port", "8080"])),
        ("pod3", port(&node, "UDP"), json!(["tcp-echo", "8080"])),
    ] {
        let container = json!({"name": "c", "image": "gantry.local/self", "args": command, "ports": ports});
        create(
            api,
            &namespace,
            "pods",
            name,
            &json!({}),
            &json!({"terminationGracePeriodSeconds": 0, "containers": [container]}),
        );
    }
    for name in ["pod1", "pod2", "pod3"] {
        assert_eq!(api.ready(&namespace, name)["spec"]["nodeName"], "node-1");
    }
    for (ip, pod) in [("127.0.0.1", "pod1"), (node.as_str(), "pod2")] {
        let url = format!("http://{ip}:54323/hostname");
        api.cluster.wait_for(&format!("{pod} at {url}"), || {
            let output = api.cluster.inside("curl").args(["-sf", "--max-time", "5", &url]).output().unwrap();
            (output.stdout == format!("{pod}\n").as_bytes()).then_some(())
        });
    }
    let (network, address) = (api.cluster.network(), format!("{node}:54323"));
    let asking = std::thread::spawn(move || {
        cluster::enter(&network);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut buffer = [0; 100];
        loop {
            socket.send_to(b"hello", &address).unwrap();
            if let Ok((n, from)) = socket.recv_from(&mut buffer) {
                return (buffer[..n].to_vec(), from.to_string() == address);
            }
            assert!(std::time::Instant::now() < deadline, "no answer from {address}");
        }
    });
    assert_eq!(asking.join().unwrap(), (b"hello".to_vec(), true));
}
