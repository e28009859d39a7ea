//! What upstream's conformance suite asks of the cluster's names. Each behaviour stands above its scenario by upstream's
//! name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::Api;
use cluster::busybox::{self, BUSYBOX};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::UdpSocket;

#[test]
fn names() {
    let resolv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(resolv.path(), "nameserver 127.0.0.53\n").unwrap();
    let mut cluster = Cluster::prepare(&["--resolv-conf", resolv.path().to_str().unwrap()]);
    resolver_outside(&cluster);
    cluster.up();
    busybox::import(&cluster);
    let all = scenarios![
        the_cluster,
        services,
        partial_names,
        hostname_and_subdomain,
        external_names,
        a_configuration_of_its_own
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// A DNS server on `127.0.0.53` in the cluster's network: every name under `example.com` has the address 192.0.2.7.
fn resolver_outside(cluster: &Cluster) {
    let (network, bound) = (cluster.network(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        cluster::enter(&network);
        let socket = UdpSocket::bind("127.0.0.53:53").unwrap();
        bound.0.send(()).unwrap();
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..n];
            let Some(end) = query[12..].iter().position(|b| *b == 0).map(|p| 12 + p + 5) else { continue };
            let question = &query[12..end];
            let known = question.windows(13).any(|w| w == b"\x07example\x03com\x00");
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
    });
    bound.1.recv().unwrap();
}

/// A namespace with a pod that asks; it has both programs.
struct Querier<'a> {
    api: &'a Api<'a>,
    namespace: String,
}

impl<'a> Querier<'a> {
    fn new(api: &'a Api<'a>, namespace: &str, hostname: &str, subdomain: &str) -> Self {
        let namespace = api.namespace(namespace);
        let mut pod = json!({"metadata": {"name": "dns-test", "labels": {"dns-test": "true"}}, "spec":
            {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "querier", "image": "gantry.local/self", "args": ["sleep", "inf"]},
                {"name": "shell", "image": BUSYBOX, "command": ["sleep", "1000000"]}]}});
        if !hostname.is_empty() {
            pod["spec"]["hostname"] = json!(hostname);
            pod["spec"]["subdomain"] = json!(subdomain);
        }
        api.create(&format!("/api/v1/namespaces/{namespace}/pods"), &pod);
        api.ready(&namespace, "dns-test");
        Self { api, namespace }
    }

    fn service(&self, name: &str, spec: &Value) -> Value {
        let path = format!("/api/v1/namespaces/{}/services", self.namespace);
        self.api.create(&path, &json!({"metadata": {"name": name}, "spec": spec}))
    }

    fn ip(&self) -> String {
        let pod = self.api.get(&format!("/api/v1/namespaces/{}/pods/dns-test", self.namespace));
        pod["status"]["podIP"].as_str().unwrap().to_owned()
    }

    fn run(&self, container: &str, command: &[&str]) -> Result<String, String> {
        let all = [&["exec", "-n", &self.namespace, "dns-test", "-c", container, "--"], command].concat();
        let output = self.api.cluster.try_kubectl(&all);
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stdout) + &text(&output.stderr))
        }
    }

    /// Waits until a name has these addresses, as programs resolve it.
    fn resolves(&self, name: &str, wanted: &[&str]) {
        let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
        self.api.cluster.wait_for(&format!("{name} is {wanted:?} in {}", self.namespace), || {
            let printed = self.run("querier", &["/gantry", "self", "nslookup", name]).ok()?;
            let got: BTreeSet<&str> = printed.lines().filter_map(|l| l.strip_prefix("Address: ")).collect();
            (got == wanted).then_some(())
        });
    }

    /// Waits until the full name has a record that says so.
    fn record(&self, kind: &str, name: &str, wanted: &str) {
        let kind = format!("-type={kind}");
        // Only without a type it turns an address round into a name.
        let reverse = ["nslookup", name];
        let forward = ["nslookup", &kind, name];
        let command: &[&str] = if kind.ends_with("ptr") { &reverse } else { &forward };
        self.api.cluster.wait_for(&format!("{kind} {name} is {wanted}"), || {
            let printed = self.run("shell", command).ok()?;
            printed.lines().any(|l| l.ends_with(wanted)).then_some(())
        });
    }
}

// Conformance: DNS, cluster (should provide DNS for the cluster)
// Conformance: DNS, cluster (should provide /etc/hosts entries for the cluster)
fn the_cluster(api: &Api<'_>) {
    let querier = Querier::new(api, "dns-cluster", "dns-querier-1", "dns-test-service");
    querier.service(
        "dns-test-service",
        &json!({"clusterIP": "None", "selector": {"dns-test": "true"}, "ports": [{"port": 80}]}),
    );
    for name in ["kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"] {
        querier.resolves(name, &["10.96.0.1"]);
    }
    assert!(
        querier.run("querier", &["/gantry", "self", "nslookup", "kubernetes"]).is_err(),
        "that is another namespace's"
    );
    querier.record("ptr", "10.96.0.1", "name = kubernetes.default.svc.cluster.local");
    querier.record(
        "srv",
        "_https._tcp.kubernetes.default.svc.cluster.local",
        "443 kubernetes.default.svc.cluster.local",
    );
    let hosts = querier.run("shell", &["cat", "/etc/hosts"]).unwrap();
    let line = format!("{}\tdns-querier-1.dns-test-service.dns-cluster.svc.cluster.local\tdns-querier-1", querier.ip());
    assert!(hosts.lines().any(|l| l == line), "{hosts}");
    assert!(hosts.lines().any(|l| l == "127.0.0.1\tlocalhost"), "{hosts}");
}

// Conformance: DNS, services
fn services(api: &Api<'_>) {
    let querier = Querier::new(api, "dns-services", "", "");
    let selector = json!({"dns-test": "true"});
    let ports = json!([{"port": 80, "name": "http", "protocol": "TCP"}]);
    querier.service("dns-test-service", &json!({"clusterIP": "None", "selector": selector, "ports": ports}));
    let regular = querier.service("test-service-2", &json!({"selector": selector, "ports": ports}));
    let (pod, service) = (querier.ip(), regular["spec"]["clusterIP"].as_str().unwrap().to_owned());
    for (name, ip) in [("dns-test-service", &pod), ("test-service-2", &service)] {
        for form in
            [name.to_owned(), format!("{name}.dns-services.svc"), format!("{name}.dns-services.svc.cluster.local.")]
        {
            querier.resolves(&form, &[ip]);
        }
    }
    let full = "test-service-2.dns-services.svc.cluster.local";
    querier.record("srv", &format!("_http._tcp.{full}"), &format!("80 {full}"));
    querier.record("ptr", &service, &format!("name = {full}"));
    let member = format!("{}.dns-test-service.dns-services.svc.cluster.local", pod.replace('.', "-"));
    querier.record("srv", "_http._tcp.dns-test-service.dns-services.svc.cluster.local", &format!("80 {member}"));
    querier.record("ptr", &pod, &format!("name = {member}"));
}

// Conformance: DNS, PQDN for services
fn partial_names(api: &Api<'_>) {
    let querier = Querier::new(api, "dns-partial", "", "");
    let selector = json!({"dns-test": "true"});
    let ports = json!([{"port": 80, "name": "http", "protocol": "TCP"}]);
    querier.service("dns-test-service", &json!({"clusterIP": "None", "selector": selector, "ports": ports}));
    let regular = querier.service("test-service-2", &json!({"selector": selector, "ports": ports}));
    let (pod, service) = (querier.ip(), regular["spec"]["clusterIP"].as_str().unwrap().to_owned());
    let configuration = querier.run("shell", &["cat", "/etc/resolv.conf"]).unwrap();
    let search = configuration.lines().find_map(|l| l.strip_prefix("search ")).unwrap().to_owned();
    assert!(search.starts_with("dns-partial.svc.cluster.local svc.cluster.local cluster.local"), "{configuration}");
    assert!(configuration.lines().any(|l| l.starts_with("options ") && l.contains("ndots:5")), "{configuration}");
    for (name, ip) in [("dns-test-service", &pod), ("test-service-2", &service)] {
        for (depth, form) in
            [name.to_owned(), format!("{name}.dns-partial"), format!("{name}.dns-partial.svc")].iter().enumerate()
        {
            querier.resolves(form, &[ip]);
            // What a resolver makes of it with the search list.
            let full = format!("_http._tcp.{form}.{}", search.split(' ').nth(depth).unwrap());
            querier.record("srv", &full, &format!("{name}.dns-partial.svc.cluster.local"));
        }
    }
}

// Conformance: DNS, resolve the hostname
// Conformance: DNS, resolve the subdomain
fn hostname_and_subdomain(api: &Api<'_>) {
    let querier = Querier::new(api, "dns-hostname", "dns-querier-2", "dns-test-service-2");
    let spec = json!({"clusterIP": "None", "selector": {"dns-test": "true"}, "ports": [{"name": "http", "port": 80}]});
    querier.service("dns-test-service-2", &spec);
    let ip = querier.ip();
    for name in [
        "dns-querier-2",
        "dns-querier-2.dns-test-service-2",
        "dns-querier-2.dns-test-service-2.dns-hostname.svc.cluster.local",
        "dns-test-service-2.dns-hostname.svc.cluster.local",
    ] {
        querier.resolves(name, &[&ip]);
    }
    assert_eq!(
        querier.run("shell", &["hostname", "-f"]).unwrap().trim(),
        "dns-querier-2.dns-test-service-2.dns-hostname.svc.cluster.local"
    );
}

// Conformance: DNS, for ExternalName Services
fn external_names(api: &Api<'_>) {
    let querier = Querier::new(api, "dns-external", "", "");
    querier.service("dns-test-service-3", &json!({"type": "ExternalName", "externalName": "foo.example.com"}));
    let (path, name) = (
        "/api/v1/namespaces/dns-external/services/dns-test-service-3",
        "dns-test-service-3.dns-external.svc.cluster.local",
    );
    querier.record("cname", name, "canonical name = foo.example.com");
    querier.resolves("dns-test-service-3", &["192.0.2.7"]);
    api.edit(path, |s| s["spec"]["externalName"] = json!("bar.example.com"));
    querier.record("cname", name, "canonical name = bar.example.com");
    let service = api.edit(path, |s| {
        s["spec"]["type"] = json!("ClusterIP");
        s["spec"]["externalName"].take();
        s["spec"]["ports"] = json!([{"port": 80, "name": "http", "protocol": "TCP"}]);
    });
    querier.resolves("dns-test-service-3", &[service["spec"]["clusterIP"].as_str().unwrap()]);
}

// Conformance: DNS, custom dnsConfig
fn a_configuration_of_its_own(api: &Api<'_>) {
    let namespace = api.namespace("dns-config");
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let pod = json!({"metadata": {"name": "test-dns-nameservers"}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": BUSYBOX, "command": ["sleep", "1000000"]}],
        "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["resolv.conf.local"]}}});
    api.create(&pods, &pod);
    api.ready(&namespace, "test-dns-nameservers");
    let file = api.exec(&namespace, "test-dns-nameservers", &["cat", "/etc/resolv.conf"]).unwrap();
    assert_eq!(file, "search resolv.conf.local\nnameserver 1.1.1.1\n");
}
