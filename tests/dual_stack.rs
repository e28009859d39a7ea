//! A cluster of two address families: what Services of each policy get, that both addresses lead to the pods, names of
//! both families, and changing from one family to two and back. Then clusters of IPv6 alone, and with IPv6 first.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const DUAL: [&str; 4] = ["--pod-cidr", "10.244.0.0/16,fd00:244::/56", "--service-cidr", "10.96.0.0/16,fd00:96::/112"];
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

#[test]
fn both_families() {
    let cluster = Cluster::start_with(&DUAL);
    let api = Api::new(&cluster);
    the_cluster_has_both(&api);
    let namespace = api.namespace("dual");
    pods(&api, &namespace);
    let all = scenarios![
        policies_decide_the_addresses,
        both_addresses_lead_to_the_pods,
        names_have_both_families,
        the_second_family_comes_and_goes,
        types_change_with_both_families,
        a_pod_knows_its_addresses,
    ];
    cluster::api::scenarios(&api, all);
}

fn services(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/services")
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn pod(name: &str, args: &[&str]) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "gantry.local/self", "args": args, "env": [
            {"name": "POD_IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
            {"name": "HOST_IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIPs"}}}]}]}})
}

fn pods(api: &Api<'_>, namespace: &str) {
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    api.create(&path, &pod("web", &["serve", "--port", "8080"]));
    api.create(&path, &pod("client", &["sleep", "inf"]));
    api.ready(namespace, "web");
    api.ready(namespace, "client");
}

/// What the program in the client's pod prints.
fn program(api: &Api<'_>, arguments: &[&str]) -> Result<String, String> {
    api.exec("dual", "client", &[&["/gantry", "self"][..], arguments].concat())
}

fn answers(api: &Api<'_>, url: &str) {
    api.cluster
        .wait_for(&format!("an answer from {url}"), || program(api, &["get", url]).ok().filter(|t| t.trim() == "web"));
}

fn answers_the_node(api: &Api<'_>, url: &str) {
    api.cluster.wait_for(&format!("an answer from {url} on the node"), || {
        let output = api.cluster.inside("curl").args(["-g", "-sS", "--fail", "--max-time", "5", url]).output().unwrap();
        (output.status.success() && String::from_utf8_lossy(&output.stdout).trim() == "web").then_some(())
    });
}

/// Name and addresses that a name has in the client's pod.
fn addresses(api: &Api<'_>, name: &str) -> BTreeSet<String> {
    let printed = program(api, &["nslookup", name]).unwrap_or_default();
    printed.lines().filter_map(|l| l.strip_prefix("Address: ")).map(str::to_owned).collect()
}

fn web(name: &str, spec: &Value) -> Value {
    let mut all = json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": all})
}

fn the_cluster_has_both(api: &Api<'_>) {
    let range = api.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes");
    assert_eq!(range["spec"]["cidrs"], json!(["10.96.0.0/16", "fd00:96::/112"]));
    let node = api.get("/api/v1/nodes/node-1");
    assert_eq!(node["spec"]["podCIDR"], "10.244.0.0/24");
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.244.0.0/24", "fd00:244::/64"]));
    let internal: Vec<&str> = node["status"]["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|a| a["type"] == "InternalIP")
        .filter_map(|a| a["address"].as_str())
        .collect();
    assert_eq!(internal, ["10.244.0.1", "fd00:244::1"]);
    // The API server's Service is of the default family only, as everywhere.
    let kubernetes = api.get("/api/v1/namespaces/default/services/kubernetes");
    assert_eq!(kubernetes["spec"]["clusterIPs"], json!(["10.96.0.1"]));
    let dns = api.until("/api/v1/namespaces/kube-system/services/kube-dns", "made", |_| true);
    assert_eq!(dns["spec"]["clusterIPs"], json!(["10.96.0.10", "fd00:96::a"]));
}

fn policies_decide_the_addresses(api: &Api<'_>) {
    let path = services("dual");
    let cases = [
        (json!({}), "SingleStack", vec!["IPv4"], 1),
        (json!({"ipFamilies": ["IPv6"]}), "SingleStack", vec!["IPv6"], 1),
        (json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack", vec!["IPv4", "IPv6"], 2),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
            "RequireDualStack",
            vec!["IPv6", "IPv4"],
            2,
        ),
        (json!({"clusterIP": "None"}), "SingleStack", vec!["IPv4"], 1),
        (json!({"clusterIP": "None", "selector": null}), "RequireDualStack", vec!["IPv4", "IPv6"], 1),
    ];
    for (i, (spec, policy, families, count)) in cases.into_iter().enumerate() {
        let made = api.create(&path, &web(&format!("policy-{i}"), &spec))["spec"].take();
        assert_eq!((made["ipFamilyPolicy"].as_str(), strings(&made["ipFamilies"])), (Some(policy), families), "{spec}");
        let ips = strings(&made["clusterIPs"]);
        assert_eq!(ips.len(), count, "{made}");
        for ip in ips.iter().filter(|ip| **ip != "None") {
            let held = api.get(&format!("{ADDRESSES}/{ip}"));
            let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
            assert_eq!(held["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"], family);
        }
    }
    let wide = api.cluster.kubectl(&["get", "services", "-n", "dual", "policy-1", "-o", "wide"]);
    assert!(wide.contains("fd00:96::"), "{wide}");
    let refused = web("two", &json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}));
    let told = api.send("POST", &path, &refused).expect(422);
    let message = "Service \"two\" is invalid: spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be \
                   'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
    assert_eq!(told["message"], message);
}

fn both_addresses_lead_to_the_pods(api: &Api<'_>) {
    let spec = json!({"type": "NodePort", "ipFamilyPolicy": "RequireDualStack",
        "externalIPs": ["192.0.2.80", "2001:db8::80"]});
    let made = api.create(&services("dual"), &web("both", &spec));
    let (v4, v6) = (made["spec"]["clusterIPs"][0].as_str().unwrap(), made["spec"]["clusterIPs"][1].as_str().unwrap());
    let port = &made["spec"]["ports"][0]["nodePort"];
    // A slice for each family, with the pod's address of it.
    let slices =
        "/apis/discovery.k8s.io/v1/namespaces/dual/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dboth";
    let pod = api.get("/api/v1/namespaces/dual/pods/web");
    for (i, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let ip = &pod["status"]["podIPs"][i]["ip"];
        api.until(slices, family, |list| {
            let mut found = list["items"].as_array().unwrap().iter().filter(|s| s["addressType"] == family);
            found.any(|s| s["endpoints"][0]["addresses"] == json!([ip]))
        });
        let ip = ip.as_str().unwrap();
        let url = if family == "IPv6" {
            format!("http://[{ip}]:8080/hostname")
        } else {
            format!("http://{ip}:8080/hostname")
        };
        answers(api, &url);
    }
    for url in [
        format!("http://{v4}/hostname"),
        format!("http://[{v6}]/hostname"),
        format!("http://10.244.0.1:{port}/hostname"),
        format!("http://[fd00:244::1]:{port}/hostname"),
        "http://192.0.2.80/hostname".to_owned(),
        "http://[2001:db8::80]/hostname".to_owned(),
    ] {
        answers(api, &url);
    }
    for url in [
        format!("http://{v4}/hostname"),
        format!("http://[{v6}]/hostname"),
        format!("http://127.0.0.1:{port}/hostname"),
        format!("http://[fd00:244::1]:{port}/hostname"),
    ] {
        answers_the_node(api, &url);
    }
    // A pod reaches itself through both.
    for url in [format!("http://{v4}/hostname"), format!("http://[{v6}]/hostname")] {
        api.cluster.wait_for(&format!("hairpin by {url}"), || {
            api.exec("dual", "web", &["/gantry", "self", "get", &url]).ok().filter(|t| t.trim() == "web")
        });
    }
    // A client sticks to its endpoint, and nobody there is refused at once, in both families.
    let sticky = json!({"spec": {"sessionAffinity": "ClientIP"}});
    api.patch(&format!("{}/both", services("dual")), "application/merge-patch+json", &sticky);
    for url in [format!("http://{v4}/hostname"), format!("http://[{v6}]/hostname")] {
        answers(api, &url);
    }
    let nobody = json!({"selector": {"app": "nobody"}, "ipFamilyPolicy": "RequireDualStack"});
    let nobody = api.create(&services("dual"), &web("nobody", &nobody));
    for ip in strings(&nobody["spec"]["clusterIPs"]) {
        let url = if ip.contains(':') { format!("http://[{ip}]/") } else { format!("http://{ip}/") };
        api.cluster.wait_for(&format!("{url} refuses"), || {
            program(api, &["get", &url]).err().filter(|e| e.contains("refused")).map(drop)
        });
    }
}

fn names_have_both_families(api: &Api<'_>) {
    let made = api.create(&services("dual"), &web("named", &json!({"ipFamilyPolicy": "PreferDualStack"})));
    let wanted: BTreeSet<String> = strings(&made["spec"]["clusterIPs"]).into_iter().map(str::to_owned).collect();
    assert_eq!(wanted.len(), 2);
    api.cluster.wait_for("A and AAAA of a Service", || (addresses(api, "named.dual") == wanted).then_some(()));
    let headless = json!({"clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"});
    api.create(&services("dual"), &web("endpoints", &headless));
    let pod = api.get("/api/v1/namespaces/dual/pods/web");
    let ips = pod["status"]["podIPs"].as_array().unwrap();
    let wanted: BTreeSet<String> = ips.iter().map(|ip| ip["ip"].as_str().unwrap().to_owned()).collect();
    api.cluster.wait_for("A and AAAA of endpoints", || (addresses(api, "endpoints.dual") == wanted).then_some(()));
    let single = api.create(&services("dual"), &web("only-six", &json!({"ipFamilies": ["IPv6"]})));
    let only: BTreeSet<String> = [single["spec"]["clusterIP"].as_str().unwrap().to_owned()].into();
    api.cluster.wait_for("AAAA alone", || (addresses(api, "only-six.dual") == only).then_some(()));
    answers(api, "http://only-six.dual/hostname");
    // The cluster's DNS answers by its IPv6 address, too.
    let spec = json!({"dnsPolicy": "None", "terminationGracePeriodSeconds": 0,
        "dnsConfig": {"nameservers": ["fd00:96::a"], "searches": ["svc.cluster.local"],
            "options": [{"name": "ndots", "value": "5"}]},
        "containers": [{"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"]}]});
    api.create("/api/v1/namespaces/dual/pods", &json!({"metadata": {"name": "asks-six"}, "spec": spec}));
    api.ready("dual", "asks-six");
    api.cluster.wait_for("DNS over IPv6", || {
        let printed = api.exec("dual", "asks-six", &["/gantry", "self", "nslookup", "only-six.dual"]).ok()?;
        only.iter().all(|ip| printed.contains(ip.as_str())).then_some(())
    });
}

fn the_second_family_comes_and_goes(api: &Api<'_>) {
    let path = format!("{}/changes", services("dual"));
    let made = api.create(&services("dual"), &web("changes", &json!({})));
    let v4 = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let policy = |p: &str| {
        let patch = json!({"spec": {"ipFamilyPolicy": p}});
        api.patch(&path, "application/merge-patch+json", &patch)["spec"].take()
    };
    let both = policy("PreferDualStack");
    let v6 = both["clusterIPs"][1].as_str().unwrap().to_owned();
    assert_eq!((&both["clusterIP"], strings(&both["ipFamilies"])), (&json!(v4), vec!["IPv4", "IPv6"]));
    assert_eq!(api.get(&format!("{ADDRESSES}/{v6}"))["spec"]["parentRef"]["name"], "changes");
    answers(api, &format!("http://[{v6}]/hostname"));
    // Not by taking the address out alone.
    let mut fewer = api.get(&path);
    fewer["spec"]["clusterIPs"] = json!([v4]);
    let told = api.send("PUT", &path, &fewer).expect(422);
    let message = "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the \
                   secondary cluster IP";
    assert!(told["message"].as_str().unwrap().contains(message), "{told}");
    let mut moved = api.get(&path);
    moved["spec"]["ipFamilies"] = json!(["IPv6", "IPv4"]);
    moved["spec"]["clusterIPs"] = json!([v6, v4]);
    moved["spec"]["clusterIP"] = json!(v6);
    let told = api.send("PUT", &path, &moved).expect(422);
    assert!(told["message"].as_str().unwrap().contains("may not change once set"), "{told}");
    let single = policy("SingleStack");
    assert_eq!((strings(&single["clusterIPs"]), strings(&single["ipFamilies"])), (vec![v4.as_str()], vec!["IPv4"]));
    api.gone(&format!("{ADDRESSES}/{v6}"));
    answers(api, &format!("http://{v4}/hostname"));
    api.cluster.wait_for("the second address is silent", || {
        program(api, &["get", &format!("http://[{v6}]/hostname")]).is_err().then_some(())
    });
}

fn types_change_with_both_families(api: &Api<'_>) {
    let path = format!("{}/types", services("dual"));
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "RequireDualStack"});
    let made = api.create(&services("dual"), &web("types", &spec))["spec"].take();
    let ips: Vec<String> = strings(&made["clusterIPs"]).into_iter().map(str::to_owned).collect();
    let check = made["healthCheckNodePort"].as_u64().unwrap();
    // One pod, whatever the number of its addresses.
    api.cluster.wait_for("the health check", || {
        let url = format!("http://127.0.0.1:{check}/healthz");
        let output = api.cluster.inside("curl").args(["-sS", "--max-time", "5", &url]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("\"localEndpoints\": 1").then_some(())
    });
    // A balancer's addresses are honoured on the node, and forgotten with the type.
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}, {"ip": "2001:db8::7"}]}}});
    api.patch(&format!("{path}/status"), "application/merge-patch+json", &ingress);
    answers(api, "http://198.51.100.7/hostname");
    answers(api, "http://[2001:db8::7]/hostname");
    // Asking for no more node ports gives none back.
    let kept = json!({"spec": {"allocateLoadBalancerNodePorts": false}});
    let kept = api.patch(&path, "application/merge-patch+json", &kept)["spec"].take();
    assert_eq!(kept["ports"][0]["nodePort"], made["ports"][0]["nodePort"]);
    let inner = json!({"spec": {"type": "ClusterIP"}});
    let inner = api.patch(&path, "application/merge-patch+json", &inner);
    assert!(
        inner["spec"]["ports"][0]["nodePort"].is_null() && inner["spec"]["healthCheckNodePort"].is_null(),
        "{inner}"
    );
    assert_eq!(inner["status"], json!({"loadBalancer": {}}));
    assert_eq!(strings(&inner["spec"]["clusterIPs"]), ips);
    let away = json!({"spec": {"type": "ExternalName", "externalName": "example.com"}});
    let away = api.patch(&path, "application/merge-patch+json", &away)["spec"].take();
    assert!(away["clusterIPs"].is_null() && away["ipFamilies"].is_null() && away["ipFamilyPolicy"].is_null(), "{away}");
    for ip in &ips {
        api.gone(&format!("{ADDRESSES}/{ip}"));
    }
    let back = json!({"spec": {"type": "ClusterIP", "externalName": null, "ipFamilyPolicy": "PreferDualStack"}});
    let back = api.patch(&path, "application/merge-patch+json", &back)["spec"].take();
    assert_eq!(strings(&back["clusterIPs"]).len(), 2, "{back}");
    api.delete(&path);
    for ip in strings(&back["clusterIPs"]) {
        api.gone(&format!("{ADDRESSES}/{ip}"));
    }
}

fn a_pod_knows_its_addresses(api: &Api<'_>) {
    let pod = api.get("/api/v1/namespaces/dual/pods/client");
    let ips: Vec<&str> =
        pod["status"]["podIPs"].as_array().unwrap().iter().filter_map(|ip| ip["ip"].as_str()).collect();
    assert!(ips.len() == 2 && ips[0].starts_with("10.244.0.") && ips[1].starts_with("fd00:244::"), "{ips:?}");
    assert_eq!(pod["status"]["podIP"], ips[0]);
    assert_eq!(pod["status"]["hostIPs"], json!([{"ip": "10.244.0.1"}, {"ip": "fd00:244::1"}]));
    let environment = api.exec("dual", "client", &["/gantry", "self", "cat", "/proc/1/environ"]).unwrap();
    assert!(environment.contains(&format!("POD_IPS={}\0", ips.join(","))), "{environment:?}");
    assert!(environment.contains("HOST_IPS=10.244.0.1,fd00:244::1\0"), "{environment:?}");
    let hosts = api.exec("dual", "client", &["/gantry", "self", "cat", "/etc/hosts"]).unwrap();
    for ip in ips {
        assert!(hosts.contains(&format!("{ip}\tclient\n")), "{hosts}");
    }
}

/// A cluster that began with one family gets its second with the next start, but Services that prefer two only when they
/// are asked.
#[test]
fn other_families() {
    let mut cluster = Cluster::start_with(&["--pod-cidr", "fd00:245::/56", "--service-cidr", "fd00:97::/112"]);
    {
        let api = Api::new(&cluster);
        let kubernetes = api.get("/api/v1/namespaces/default/services/kubernetes");
        assert_eq!(kubernetes["spec"]["clusterIPs"], json!(["fd00:97::1"]));
        assert_eq!(kubernetes["spec"]["ipFamilies"], json!(["IPv6"]));
        api.namespace("dual");
        pods(&api, "dual");
        let made = api.create(&services("dual"), &web("six", &json!({"ipFamilyPolicy": "PreferDualStack"})));
        assert_eq!(made["spec"]["ipFamilies"], json!(["IPv6"]));
        answers(&api, "http://six.dual/hostname");
        let told = api.send("POST", &services("dual"), &web("four", &json!({"ipFamilies": ["IPv4"]}))).expect(422);
        let message =
            "Service \"four\" is invalid: spec.ipFamilies[0]: Invalid value: \"IPv4\": not configured on this cluster";
        assert_eq!(told["message"], message);
        // The API server from inside, over IPv6: forbidden, so it has answered.
        let url = "https://kubernetes.default.svc/api/v1/namespaces/default/secrets";
        let ca = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
        let told = program(&api, &["get", "--ca", ca, url]).unwrap_err();
        assert!(told.contains("403"), "{told}");
        api.delete("/api/v1/namespaces/dual/pods/web");
        api.delete("/api/v1/namespaces/dual/pods/client");
        api.gone("/api/v1/namespaces/dual/pods/web");
        api.gone("/api/v1/namespaces/dual/pods/client");
        // The ranges of a node never change: with others it is another node.
        api.delete("/api/v1/nodes/node-1");
    }
    cluster.interrupt();
    let both = ["--pod-cidr", "fd00:245::/56,10.245.0.0/16", "--service-cidr", "fd00:97::/112,10.97.0.0/16"];
    cluster.set_options(&both);
    cluster.up();
    let api = Api::new(&cluster);
    let range = api.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes");
    assert_eq!(range["spec"]["cidrs"], json!(["fd00:97::/112", "10.97.0.0/16"]));
    let path = format!("{}/six", services("dual"));
    let patch = |spec: Value| api.patch(&path, "application/merge-patch+json", &json!({"spec": spec}))["spec"].take();
    let same = patch(json!({"publishNotReadyAddresses": true}));
    assert_eq!(strings(&same["ipFamilies"]), ["IPv6"], "it does not follow the cluster by itself");
    let both = patch(json!({"ipFamilyPolicy": "RequireDualStack"}));
    assert_eq!(strings(&both["ipFamilies"]), ["IPv6", "IPv4"]);
    pods(&api, "dual");
    let pod = api.get("/api/v1/namespaces/dual/pods/web");
    let first = pod["status"]["podIP"].as_str().unwrap();
    assert!(first.starts_with("fd00:245::"), "IPv6 comes first: {first}");
    for ip in strings(&both["clusterIPs"]) {
        let url = if ip.contains(':') { format!("http://[{ip}]/hostname") } else { format!("http://{ip}/hostname") };
        answers(&api, &url);
    }
    let dns = "/api/v1/namespaces/kube-system/services/kube-dns";
    api.until(dns, "of both families", |s| s["spec"]["clusterIPs"] == json!(["fd00:97::a", "10.97.0.10"]));
    let held = api.list(ADDRESSES);
    assert!(names(&held).contains(&"10.97.0.10"), "{:?}", names(&held));
}
