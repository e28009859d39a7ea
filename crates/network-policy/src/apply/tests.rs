//! The rules against the real kernel, in both address families.

use super::*;
use crate::compile::{self, Endpoint, Labels};
use crate::model::Local;
use crate::testing::{POD_CIDRS, Pod, answers, connect, node, reaches};
use gantry_network::testing::isolated;
use gantry_network::{NodeNetwork, Protocol};
use serde_json::{Value, json};
use std::process::Command;

/// A model, and the tables that follow it.
struct Node {
    model: Model,
    appliers: Vec<Applier>,
}

fn appliers() -> Vec<Applier> {
    let nft = Nft::open().expect("nft");
    let cidrs: Vec<IpNet> = POD_CIDRS.iter().map(|c| c.parse().expect("cidr")).collect();
    [Family::Ipv4, Family::Ipv6].map(|family| Applier::new(nft.clone(), family, "t2", cidrs.clone())).into()
}

impl Node {
    async fn new() -> Node {
        let appliers = appliers();
        for applier in &appliers {
            applier.close().await.expect("close");
        }
        Node { model: Model::default(), appliers }
    }

    async fn apply(&mut self) {
        let difference = self.model.take();
        for applier in &mut self.appliers {
            applier.apply(&difference, &self.model).await.expect("apply");
        }
        let listed = Command::new("nft").args(["list", "ruleset"]).output().expect("nft");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    }

    async fn policy(&mut self, name: &str, spec: Option<Value>) {
        let object = spec.map(|s| json!({"metadata": {"name": name, "namespace": "ns"}, "spec": s}));
        let policy = object.map(|o| compile::policy(&serde_json::from_value(o).expect("policy")));
        self.model.set_policy(&name.into(), policy);
        self.apply().await;
    }

    /// A pod that is known by its name as a label.
    async fn pod(&mut self, network: &NodeNetwork, name: &str) -> Pod {
        let pod = Pod::new(network, name).await;
        let labels = Labels::from([("app".to_owned(), name.to_owned())]);
        let local = Local { namespace: "ns".into(), addresses: pod.addresses.clone(), labels: Some(labels.clone()) };
        self.model.attach(&name.into(), local);
        let endpoint = Endpoint {
            namespace: "ns".into(),
            labels,
            addresses: pod.addresses.clone(),
            ports: vec![("web".into(), Protocol::Tcp, 80)],
        };
        self.model.set_endpoint(&name.into(), Some(endpoint));
        pod.serve(80);
        pod.serve(81);
        pod
    }
}

#[test]
fn policies_hold_between_pods() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = node(dir.path()).await;
        let mut node = Node::new().await;
        let (a, b, c) = (node.pod(&network, "a").await, node.pod(&network, "b").await, node.pod(&network, "c").await);
        assert!(!a.reaches(&b, 80), "what is not known yet is closed");
        assert!(b.addresses.iter().all(|ip| reaches(*ip, 80)), "but not to the node itself");
        node.apply().await;
        assert!(a.reaches(&b, 80) && b.reaches(&a, 80), "open without policies");

        let for_b = |rest: Value| {
            let mut spec = json!({"podSelector": {"matchLabels": {"app": "b"}}});
            spec.as_object_mut().expect("map").extend(rest.as_object().cloned().unwrap_or_default());
            Some(spec)
        };
        let from_a = json!([{"podSelector": {"matchLabels": {"app": "a"}}}]);
        let mut before = c.run(|| connect(b.addresses[0], 80)).expect("a connection");
        assert!(answers(&mut before));
        node.policy("p", for_b(json!({"policyTypes": ["Ingress"], "ingress": [{"from": from_a}]}))).await;
        assert!(a.reaches(&b, 80) && a.reaches(&b, 81) && !c.reaches(&b, 80));
        assert!(b.reaches(&c, 80), "the other direction is not spoken of");
        assert!(b.addresses.iter().all(|ip| reaches(*ip, 80)), "the node reaches its pods");
        assert!(answers(&mut before), "what was let through once goes on");

        // Policies add up; ports by number, range and name.
        node.policy("q", for_b(json!({"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": "web"}]}]}))).await;
        assert!(c.reaches(&b, 80) && !c.reaches(&b, 81) && a.reaches(&b, 81));
        let range = json!([{"ports": [{"port": 81, "endPort": 90}]}]);
        node.policy("q", for_b(json!({"policyTypes": ["Ingress"], "ingress": range}))).await;
        assert!(!c.reaches(&b, 80) && c.reaches(&b, 81));
        let block = |ip: &str| {
            json!([{"from": [{"ipBlock": {"cidr": "10.203.0.0/16", "except": [format!("{ip}/32")]}},
            {"ipBlock": {"cidr": "fd00:203::/64", "except": [format!("{}/128", c.addresses[1])]}}]}])
        };
        let but_c = block(&c.addresses[0].to_string());
        node.policy("p", None).await;
        node.policy("q", for_b(json!({"policyTypes": ["Ingress"], "ingress": but_c}))).await;
        assert!(a.reaches(&b, 80) && !c.reaches(&b, 80));

        // A table that is there is not replaced until it is known by what.
        let again = appliers();
        for applier in &again {
            applier.close().await.expect("close");
        }
        assert!(a.reaches(&b, 80) && !c.reaches(&b, 80));
        node.appliers = again;
        node.apply().await;
        assert!(a.reaches(&b, 80) && !c.reaches(&b, 80), "nor afterwards is anything lost");

        // Out.
        node.policy("q", None).await;
        node.policy("out", for_b(json!({"policyTypes": ["Egress"]}))).await;
        assert!(!b.reaches(&a, 80) && a.reaches(&b, 80));
        let to_c = json!([{"to": [{"podSelector": {"matchLabels": {"app": "c"}}}], "ports": [{"port": 80}]}]);
        node.policy("out", for_b(json!({"policyTypes": ["Egress"], "egress": to_c}))).await;
        assert!(!b.reaches(&a, 80) && b.reaches(&c, 80) && !b.reaches(&c, 81));
        node.policy("in", Some(json!({"podSelector": {}, "policyTypes": ["Ingress"]}))).await;
        assert!(!b.reaches(&c, 80), "both ends must let it through");

        // A pod that goes leaves nothing behind for who gets its address.
        node.policy("in", None).await;
        node.model.detach(&"c".into());
        node.model.set_endpoint(&"c".into(), None);
        node.apply().await;
        assert!(!a.reaches(&c, 80) && !b.reaches(&c, 80));
        assert_eq!(node.model.size(), (1, 1));
        for applier in &node.appliers {
            applier.forget(&a.addresses).await.expect("forget");
        }
        assert!(!a.reaches(&b, 80), "closed again");

        remove_tables("t2").await.expect("remove");
        assert!(a.reaches(&b, 80) && b.reaches(&a, 80));
        let left = Command::new("nft").args(["list", "tables"]).output().expect("nft");
        assert!(!String::from_utf8_lossy(&left.stdout).contains("gantry-policy"));
    });
}

#[test]
fn a_large_cluster_goes_in_at_once() {
    isolated(async {
        let mut model = crate::model::tests::large();
        let mut appliers = appliers();
        let started = std::time::Instant::now();
        let difference = model.take();
        println!("1,000 policies, 1,000 pods, 100 of them here: decided in {:?}", started.elapsed());
        for applier in &mut appliers {
            applier.apply(&difference, &model).await.expect("apply");
        }
        println!("and in both tables after {:?}", started.elapsed());
        let started = std::time::Instant::now();
        model.set_policy(&"policy-10".into(), Some(crate::model::tests::large_policy(10, 81)));
        let difference = model.take();
        for applier in &mut appliers {
            applier.apply(&difference, &model).await.expect("apply");
        }
        println!("one policy more: {:?}", started.elapsed());
        // The kernel has what the model has.
        let nft = Nft::open().expect("nft");
        let table = Table { family: Family::Ipv4, name: table_name("t2") };
        assert_eq!(nft.elements_blocking(&table, "ingress").expect("elements").len(), 100);
    });
}
