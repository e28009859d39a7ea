//! Services through their life.

use super::*;
use crate::meta::field::ErrorList;
use serde_json::json;

fn service(spec: Value) -> Service {
    let mut s = <Service as Kind>::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap();
    s.set_defaults();
    s
}

fn created(spec: Value) -> Service {
    let mut s = service(spec);
    s.prepare_for_create(&Context { now: Timestamp::UNIX_EPOCH, username: "" });
    s
}

fn texts(errors: &ErrorList) -> Vec<String> {
    errors.0.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_by_type() {
    let cases = [
        (
            json!({"ports": [{"port": 80}]}),
            json!({"internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
                "sessionAffinity": "None", "type": "ClusterIP"}),
        ),
        (
            json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 80, "targetPort": "web"}]}),
            json!({"allocateLoadBalancerNodePorts": true, "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": "web"}], "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "type": "LoadBalancer"}),
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b"}),
            json!({"externalName": "a.b", "sessionAffinity": "None", "type": "ExternalName"}),
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(Kind::to_value(&service(spec))["spec"], want);
    }
}

#[test]
fn field_errors() {
    let cases: Vec<(Value, Vec<&str>)> = vec![
        (json!({}), vec!["spec.ports: Required value"]),
        (json!({"clusterIP": "None"}), vec![]),
        (
            json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]}),
            vec!["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"],
        ),
        (
            json!({"ports": [{"port": 0}, {"port": 1, "name": "a", "nodePort": 5}, {"port": 1, "name": "a", "targetPort": "-"}]}),
            vec![
                "spec.ports[0].name: Required value",
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[2].name: Duplicate value: \"a\"",
                "spec.ports[2].targetPort: Invalid value: \"-\": must contain at least one letter (a-z)",
                "spec.ports[2].targetPort: Invalid value: \"-\": must not begin or end with a hyphen",
                "spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
                "spec.ports[2]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":1,\"TargetPort\":0,\"NodePort\":0}",
            ],
        ),
        (json!({"type": "ExternalName"}), vec!["spec.externalName: Required value"]),
        (
            json!({"type": "Magic", "ports": [{"port": 1}]}),
            vec![
                "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ],
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv6"], "ports": [{"port": 1}]}),
            vec![
                "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
            ],
        ),
        (
            json!({"externalIPs": ["127.0.0.1"], "ports": [{"port": 1}]}),
            vec![
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ],
        ),
        (
            json!({"externalTrafficPolicy": "Local", "ports": [{"port": 1}]}),
            vec![
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
            ],
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90000}}, "ports": [{"port": 1}]}),
            vec![
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 90000: must be greater than 0 and less than 86400",
            ],
        ),
        (
            json!({"loadBalancerSourceRanges": ["x"], "ports": [{"port": 1}]}),
            vec![
                "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
                "spec.LoadBalancerSourceRanges[0]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ],
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(texts(&created(spec.clone()).validate()), want, "{spec}");
    }
}

#[test]
fn an_update_keeps_what_was_allocated() {
    let old = service(
        json!({"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "nodePort": 30000, "name": "a"}]}),
    );
    let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
    let mut same = service(json!({"type": "NodePort", "ports": [{"port": 81, "name": "a"}], "ipFamilies": ["IPv4"]}));
    same.prepare_for_update(&old, &cx);
    assert_eq!(texts(&same.validate_update(&old)), Vec::<String>::new());
    let spec = same.spec.unwrap();
    assert_eq!((text(&spec.cluster_ip), spec.ports.unwrap()[0].node_port), ("10.0.0.1", Some(30000)));

    let mut smaller = old.clone();
    smaller.spec.as_mut().unwrap().type_ = Some("ClusterIP".to_owned());
    smaller.prepare_for_update(&old, &cx);
    assert_eq!(texts(&smaller.validate_update(&old)), Vec::<String>::new());
    assert_eq!(smaller.spec.unwrap().ports.unwrap()[0].node_port, None);

    let mut elsewhere = old.clone();
    elsewhere.spec.as_mut().unwrap().cluster_ip = Some("10.0.0.2".to_owned());
    elsewhere.prepare_for_update(&old, &cx);
    assert_eq!(
        texts(&elsewhere.validate_update(&old)),
        ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]
    );

    let mut named = service(
        json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}),
    );
    named.prepare_for_update(&old, &cx);
    assert_eq!(texts(&named.validate_update(&old)), Vec::<String>::new());
    assert_eq!(named.spec.unwrap().cluster_ip, None);
}

#[test]
fn node_ports_stay_until_the_type_or_their_author_drops_them() {
    let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
    let mut old = service(json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "ports": [{"port": 80, "nodePort": 30000, "name": "a"}, {"port": 81, "nodePort": 30001, "name": "b"}]}));
    old.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}})).unwrap();
    let ports = |s: &Service| -> Vec<Option<i32>> {
        s.spec.as_ref().unwrap().ports.iter().flatten().map(|p| p.node_port).collect()
    };
    let mut asks_no_more = old.clone();
    asks_no_more.spec.as_mut().unwrap().allocate_load_balancer_node_ports = Some(false);
    asks_no_more.prepare_for_update(&old, &cx);
    assert_eq!(ports(&asks_no_more), [Some(30000), Some(30001)]);
    assert!(asks_no_more.status.unwrap().load_balancer.unwrap().ingress.is_some());
    // One port less is no new one.
    let mut inner = old.clone();
    let spec = inner.spec.as_mut().unwrap();
    spec.type_ = Some("ClusterIP".to_owned());
    spec.ports.as_mut().unwrap().pop();
    inner.prepare_for_update(&old, &cx);
    assert_eq!((ports(&inner), texts(&inner.validate_update(&old))), (vec![None], Vec::<String>::new()));
    assert_eq!(inner.status.unwrap().load_balancer.unwrap().ingress, None, "nobody balances it any more");
    let mut new_port = old.clone();
    let spec = new_port.spec.as_mut().unwrap();
    spec.type_ = Some("ClusterIP".to_owned());
    spec.ports.as_mut().unwrap()[0].node_port = Some(30009);
    new_port.prepare_for_update(&old, &cx);
    assert_eq!(texts(&new_port.validate_update(&old)).len(), 2, "they are refused");
}

#[test]
fn rows() {
    let cases = [
        (json!({"clusterIP": "None"}), json!(["s", "ClusterIP", "None", "<none>", "<none>", "<unknown>", "<none>"])),
        (
            json!({"type": "NodePort", "clusterIP": "10.0.0.1", "selector": {"a": "b"}, "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]}),
            json!(["s", "NodePort", "10.0.0.1", "<none>", "80:30080/TCP,53/UDP", "<unknown>", "a=b"]),
        ),
        (
            json!({"type": "LoadBalancer"}),
            json!(["s", "LoadBalancer", "<none>", "<pending>", "<none>", "<unknown>", "<none>"]),
        ),
        (
            json!({"type": "ExternalName", "externalName": "x.y"}),
            json!(["s", "ExternalName", "<none>", "x.y", "<none>", "<unknown>", "<none>"]),
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(json!(service(spec).cells(Timestamp::UNIX_EPOCH)), want);
    }
}

#[test]
fn warnings_name_what_is_ignored() {
    let s = created(
        json!({"clusterIP": "None", "externalIPs": ["1.2.3.4"], "externalName": "x", "sessionAffinity": "ClientIP"}),
    );
    assert_eq!(
        s.warnings(None),
        [
            "spec.externalIPs is ignored for headless services",
            "spec.SessionAffinity is ignored for headless services",
            "spec.externalName is ignored when spec.type is not \"ExternalName\"",
        ]
    );
}
