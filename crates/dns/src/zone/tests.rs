use serde_json::{Value, json};

use super::*;

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).expect("service")
}

fn slice(endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": "x"},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }))
    .expect("slice")
}

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local").expect("zone");
    zone.set_namespace("shop", true);
    zone.set_namespace("empty", true);
    let ports = json!([
        {"name": "http", "port": 80, "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"port": 99, "protocol": "TCP"},
    ]);
    let web = service("web", json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ports": ports}));
    let endpoints = json!([{"addresses": ["10.244.0.5"], "conditions": {"ready": true}}]);
    zone.set_service("shop/web", Some(&web), &[&slice(endpoints)]);

    let db =
        service("db", json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]}));
    let endpoints = json!([
        {"addresses": ["10.244.0.8"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.244.0.9"], "conditions": {}},
        {"addresses": ["10.244.0.10"], "hostname": "db-2", "conditions": {"ready": false}},
    ]);
    zone.set_service("shop/db", Some(&db), &[&slice(endpoints)]);
    zone.set_service("shop/none", Some(&service("none", json!({"clusterIP": "None"}))), &[]);
    let out = service("out", json!({"type": "ExternalName", "externalName": "www.example.com"}));
    zone.set_service("shop/out", Some(&out), &[]);
    let number = service("number", json!({"type": "ExternalName", "externalName": "192.0.2.1"}));
    zone.set_service("shop/number", Some(&number), &[]);
    let dns = service("kube-dns", json!({"clusterIP": "10.96.0.10"}));
    zone.set_service("kube-system/kube-dns", Some(&dns), &[]);
    zone
}

/// `records | beside them`, or the kind of "no".
fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    let name = Name::from_ascii(name).expect("name");
    let text = |records: &[Record]| {
        let mut lines: Vec<String> = records.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect();
        lines.sort();
        lines.join(", ")
    };
    match zone.answer(&name, kind) {
        Answer::Records { answers, additionals } => {
            assert!(answers.iter().chain(&additionals).all(|r| r.ttl == TTL));
            if additionals.is_empty() { text(&answers) } else { format!("{} | {}", text(&answers), text(&additionals)) }
        }
        Answer::Alias { record, target } => format!("{} -> {target}", text(&[*record])),
        Answer::NoData => "no data".into(),
        Answer::NoSuchName => "no such name".into(),
        Answer::NotOurs => "not ours".into(),
    }
}

#[test]
fn names_of_every_form() {
    use RecordType as T;
    let zone = zone();
    let cases = [
        // services
        ("web.shop.svc.cluster.local.", T::A, "A 10.96.0.7"),
        ("WEB.Shop.SVC.cluster.LOCAL.", T::A, "A 10.96.0.7"),
        ("web.shop.svc.cluster.local.", T::AAAA, "AAAA fd00::7"),
        ("web.shop.svc.cluster.local.", T::MX, "no data"),
        ("web.shop.svc.cluster.local.", T::ANY, "A 10.96.0.7, AAAA fd00::7"),
        ("absent.shop.svc.cluster.local.", T::A, "no such name"),
        ("web.empty.svc.cluster.local.", T::A, "no such name"),
        // headless
        ("db.shop.svc.cluster.local.", T::A, "A 10.244.0.8, A 10.244.0.9"),
        ("db.shop.svc.cluster.local.", T::AAAA, "no data"),
        ("none.shop.svc.cluster.local.", T::A, "no such name"),
        // endpoints
        ("db-0.db.shop.svc.cluster.local.", T::A, "A 10.244.0.8"),
        ("10-244-0-9.db.shop.svc.cluster.local.", T::A, "A 10.244.0.9"),
        ("db-2.db.shop.svc.cluster.local.", T::A, "no such name"),
        ("10-244-0-5.web.shop.svc.cluster.local.", T::A, "A 10.244.0.5"),
        ("x.db-0.db.shop.svc.cluster.local.", T::A, "no such name"),
        // ports
        (
            "_http._tcp.web.shop.svc.cluster.local.",
            T::SRV,
            "SRV 0 100 80 web.shop.svc.cluster.local. | A 10.96.0.7, AAAA fd00::7",
        ),
        ("_http._udp.web.shop.svc.cluster.local.", T::SRV, "no such name"),
        ("_http._tcp.web.shop.svc.cluster.local.", T::A, "no data"),
        ("_tcp.web.shop.svc.cluster.local.", T::A, "no data"),
        ("_sctp.web.shop.svc.cluster.local.", T::A, "no such name"),
        (
            "_http._tcp.db.shop.svc.cluster.local.",
            T::SRV,
            "SRV 0 50 8080 10-244-0-9.db.shop.svc.cluster.local., SRV 0 50 8080 db-0.db.shop.svc.cluster.local. | \
             A 10.244.0.8, A 10.244.0.9",
        ),
        // external names
        ("out.shop.svc.cluster.local.", T::A, "CNAME www.example.com. -> www.example.com."),
        ("out.shop.svc.cluster.local.", T::CNAME, "CNAME www.example.com."),
        ("number.shop.svc.cluster.local.", T::A, "no data"),
        // pods
        ("10-244-0-5.shop.pod.cluster.local.", T::A, "A 10.244.0.5"),
        ("10-244-0-5.shop.pod.cluster.local.", T::AAAA, "no data"),
        ("fd00--5.shop.pod.cluster.local.", T::AAAA, "AAAA fd00::5"),
        ("10-244-0-5.nowhere.pod.cluster.local.", T::A, "no such name"),
        ("10-244-0-500.shop.pod.cluster.local.", T::A, "no such name"),
        // in between
        ("shop.svc.cluster.local.", T::A, "no data"),
        ("nowhere.svc.cluster.local.", T::A, "no such name"),
        ("svc.cluster.local.", T::A, "no data"),
        ("cluster.local.", T::A, "no data"),
        ("cluster.local.", T::NS, "NS ns.dns.cluster.local. | A 10.96.0.10"),
        ("ns.dns.cluster.local.", T::A, "A 10.96.0.10"),
        ("dns-version.cluster.local.", T::TXT, "TXT 1.1.0"),
        ("example.com.shop.svc.cluster.local.", T::A, "no such name"),
        ("example.com.cluster.local.", T::A, "no such name"),
        // backwards
        ("7.0.96.10.in-addr.arpa.", T::PTR, "PTR web.shop.svc.cluster.local."),
        ("8.0.244.10.in-addr.arpa.", T::PTR, "PTR db-0.db.shop.svc.cluster.local."),
        ("9.0.244.10.in-addr.arpa.", T::PTR, "PTR 10-244-0-9.db.shop.svc.cluster.local."),
        ("5.0.244.10.in-addr.arpa.", T::PTR, "not ours"),
        (
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            T::PTR,
            "PTR web.shop.svc.cluster.local.",
        ),
        // others
        ("www.example.com.", T::A, "not ours"),
        ("local.", T::A, "not ours"),
        ("notcluster.local.", T::A, "not ours"),
    ];
    for (name, kind, want) in cases {
        assert_eq!(ask(&zone, name, kind), want, "{name} {kind}");
    }
}

#[test]
fn changes_leave_nothing_behind() {
    let mut zone = zone();
    let web = service("web", json!({"clusterIP": "10.96.0.8", "ports": []}));
    zone.set_service("shop/web", Some(&web), &[]);
    assert_eq!(ask(&zone, "web.shop.svc.cluster.local.", RecordType::A), "A 10.96.0.8");
    assert_eq!(ask(&zone, "7.0.96.10.in-addr.arpa.", RecordType::PTR), "not ours");
    for key in ["shop/web", "shop/db", "shop/none", "shop/out", "shop/number", "kube-system/kube-dns"] {
        zone.set_service(key, None, &[]);
    }
    zone.set_namespace("shop", false);
    assert!(zone.reverse.is_empty() && zone.services.is_empty());
    assert_eq!(ask(&zone, "shop.svc.cluster.local.", RecordType::A), "no such name");
}

#[test]
fn the_authority_moves_with_changes() {
    let mut zone = zone();
    let serial = |zone: &Zone| match zone.authority().data {
        RData::SOA(soa) => soa.serial,
        _ => panic!("not an authority"),
    };
    let before = serial(&zone);
    zone.set_namespace("new", true);
    assert!(serial(&zone) > before);
    assert!(Zone::new("bad..domain").is_err());
}
