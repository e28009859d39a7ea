use serde_json::{Value, json};

use super::*;

fn node() -> NodeView {
    NodeView { name: "here".into(), zone: Some("a".into()) }
}

fn service(spec: Value) -> Service {
    let mut full = json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "type": "ClusterIP",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    });
    for (key, value) in spec.as_object().expect("object") {
        full[key] = value.clone();
    }
    let status = full["status"].take();
    serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": full, "status": status}))
        .expect("service")
}

/// `"10.1.0.1 here ready"`, with `ready`, `serving` and `terminating` as true conditions and the rest false.
fn slice(endpoints: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|text| {
            let words: Vec<&str> = text.split(' ').collect();
            let has = |word: &str| words.contains(&word);
            let zone = words.iter().find_map(|w| w.strip_prefix("zone="));
            let hinted = words.iter().find_map(|w| w.strip_prefix("node="));
            json!({
                "addresses": [words[0]],
                "nodeName": words[1],
                "conditions": {
                    "ready": has("ready"), "serving": has("ready") || has("serving"), "terminating": has("terminating"),
                },
                "hints": {
                    "forZones": zone.map(|z| json!([{"name": z}])),
                    "forNodes": hinted.map(|n| json!([{"name": n}])),
                },
            })
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": "s-1", "namespace": "n"},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }))
    .expect("slice")
}

fn compiled(spec: Value, endpoints: &[&str]) -> ServiceRules {
    compile(&service(spec), &[&slice(endpoints)], Family::Ipv4, &node())
}

fn last_bytes(targets: &[Target]) -> Vec<u8> {
    targets
        .iter()
        .map(|t| match t.address {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => panic!("not IPv4"),
        })
        .collect()
}

/// Name, what the spec says more, endpoints; then the route, and the last bytes of near and local targets.
type Case<'a> = (&'a str, Value, &'a [&'a str], Route, &'a [u8], &'a [u8]);

#[test]
fn which_endpoints_are_used() {
    let cluster: &[&str] = &["10.1.0.1 here ready", "10.1.0.2 there ready"];
    let cases: [Case; 9] = [
        ("all ready ones", json!({}), cluster, Route::Near, &[1, 2], &[1]),
        ("no endpoints", json!({}), &[], Route::Refuse, &[], &[]),
        ("unready ones do not count", json!({}), &["10.1.0.1 here", "10.1.0.2 there serving"], Route::Refuse, &[], &[]),
        (
            "ready before terminating",
            json!({}),
            &["10.1.0.1 here ready", "10.1.0.2 here serving terminating"],
            Route::Near,
            &[1],
            &[1],
        ),
        (
            "terminating as a last resort",
            json!({}),
            &["10.1.0.1 there", "10.1.0.2 here serving terminating"],
            Route::Near,
            &[2],
            &[2],
        ),
        (
            "terminating ones that do not serve are of no use",
            json!({}),
            &["10.1.0.2 here terminating"],
            Route::Refuse,
            &[],
            &[],
        ),
        ("local policy", json!({"internalTrafficPolicy": "Local"}), cluster, Route::Local, &[1, 2], &[1]),
        (
            "local policy, none here",
            json!({"internalTrafficPolicy": "Local"}),
            &["10.1.0.2 there ready"],
            Route::Drop,
            &[2],
            &[],
        ),
        (
            "local policy, only a terminating one here",
            json!({"internalTrafficPolicy": "Local"}),
            &["10.1.0.1 here serving terminating", "10.1.0.2 there ready"],
            Route::Local,
            &[2],
            &[1],
        ),
    ];
    for (name, spec, endpoints, route, near, local) in cases {
        let rules = compiled(spec, endpoints);
        let port = &rules.ports[0];
        assert_eq!(port.frontends[0].route, route, "{name}");
        assert_eq!(last_bytes(&port.near), near, "{name}");
        assert_eq!(last_bytes(&port.local), local, "{name}");
        assert!(port.near.iter().all(|t| t.port == 8080), "{name}: the slice says the port");
    }
}

#[test]
fn hints_count_only_when_all_have_them() {
    let cases: [(&str, Value, &[&str], &[u8]); 5] = [
        ("own zone", json!({}), &["10.1.0.1 x ready zone=a", "10.1.0.2 x ready zone=b"], &[1]),
        ("one without a hint", json!({}), &["10.1.0.1 x ready zone=a", "10.1.0.2 x ready"], &[1, 2]),
        ("none for us", json!({}), &["10.1.0.1 x ready zone=b", "10.1.0.2 x ready zone=b"], &[1, 2]),
        ("own node", json!({}), &["10.1.0.1 x ready zone=a node=x", "10.1.0.2 here ready zone=a node=here"], &[2]),
        (
            "own zone where the node has none",
            json!({"trafficDistribution": "PreferSameNode"}),
            &["10.1.0.1 x ready zone=a node=x", "10.1.0.2 y ready zone=b node=y"],
            &[1],
        ),
    ];
    for (name, spec, endpoints, near) in cases {
        assert_eq!(last_bytes(&compiled(spec, endpoints).ports[0].near), near, "{name}");
    }
}

#[test]
fn frontends_of_every_type() {
    let spec = json!({
        "type": "LoadBalancer",
        "externalIPs": ["192.0.2.1"],
        "loadBalancerSourceRanges": ["198.51.100.0/24"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        "status": {"loadBalancer": {"ingress": [
            {"ip": "192.0.2.2", "ipMode": "VIP"}, {"ip": "192.0.2.3", "ipMode": "Proxy"}, {"hostname": "x.example"},
        ]}},
    });
    let rules = compiled(spec.clone(), &["10.1.0.1 there ready"]);
    let of = |rules: &ServiceRules| -> Vec<(String, u16, Route, Option<Route>, bool, usize)> {
        rules.ports[0]
            .frontends
            .iter()
            .map(|f| {
                let address = f.address.map_or("node".to_owned(), |a| a.to_string());
                (address, f.port, f.route, f.route_inside, f.masquerade, f.allowed.len())
            })
            .collect()
    };
    assert_eq!(
        of(&rules),
        [
            ("10.96.0.1".into(), 80, Route::Near, None, false, 0),
            ("192.0.2.1".into(), 80, Route::Near, None, true, 0),
            ("192.0.2.2".into(), 80, Route::Near, None, true, 1),
            ("node".into(), 30080, Route::Near, None, true, 0),
        ]
    );
    let mut local = spec;
    local["externalTrafficPolicy"] = json!("Local");
    let rules = compiled(local.clone(), &["10.1.0.1 there ready"]);
    assert_eq!(
        of(&rules)[3],
        ("node".into(), 30080, Route::Drop, Some(Route::Near), false, 0),
        "none here: dropped from outside, anywhere from inside"
    );
    let rules = compiled(local, &[]);
    assert_eq!(of(&rules)[3], ("node".into(), 30080, Route::Refuse, None, false, 0), "none at all: refused");
}

#[test]
fn services_that_are_not_proxied() {
    let endpoints: &[&str] = &["10.1.0.1 here ready"];
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"clusterIP": "", "clusterIPs": []}),
        json!({"type": "ExternalName", "externalName": "x.example"}),
        json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
    ] {
        assert_eq!(compiled(spec.clone(), endpoints), ServiceRules::default(), "{spec}");
    }
    let mut other = service(json!({}));
    other.metadata.labels = Some([(PROXY_NAME_LABEL.to_owned(), "other".to_owned())].into());
    assert_eq!(compile(&other, &[&slice(endpoints)], Family::Ipv4, &node()), ServiceRules::default());
}

#[test]
fn ports_affinity_and_duplicates() {
    let spec = json!({
        "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}},
    });
    let (one, two) = (slice(&["10.1.0.1 here ready"]), slice(&["10.1.0.1 here", "10.1.0.2 here ready"]));
    let rules = compile(&service(spec), &[&one, &two], Family::Ipv4, &node());
    assert_eq!(last_bytes(&rules.ports[0].near), [1, 2], "an endpoint in two slices counts once, ready if in either");
    assert_eq!(rules.ports[0].affinity, Some(Duration::from_secs(30)));
    assert_eq!((rules.ports[1].protocol, rules.ports[1].frontends[0].route), (Protocol::Udp, Route::Refuse));
    let default = compiled(json!({"sessionAffinity": "ClientIP"}), &[]);
    assert_eq!(default.ports[0].affinity, Some(Duration::from_secs(10_800)));
}

#[test]
fn health_checks_count_local_endpoints() {
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
    });
    let endpoints = slice(&["10.1.0.1 here ready", "10.1.0.2 there ready", "10.1.0.3 here"]);
    assert_eq!(
        health_check(&service(spec), &[&endpoints], &node()),
        Some(HealthCheck { port: 31000, local_endpoints: 1 })
    );
    assert_eq!(health_check(&service(json!({"healthCheckNodePort": 31000})), &[&endpoints], &node()), None);
}
