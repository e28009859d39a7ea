//! Policies from an API server of the tests' own to connections between pods.

use super::*;
use crate::testing::{POD_CIDRS, node};
use gantry_client::Client;
use gantry_client::testing::Tables;
use gantry_network::testing::isolated;
use serde_json::{Value, json};

fn object(name: &str, app: &str, rest: &Value) -> Value {
    let mut object = json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": "2", "uid": name,
        "labels": {"app": app}}});
    object.as_object_mut().expect("map").extend(rest.as_object().cloned().unwrap_or_default());
    object
}

fn pod(name: &str, app: &str) -> Pod {
    serde_json::from_value(object(name, app, &json!({"spec": {"containers": []}}))).expect("pod")
}

fn isolate_b() -> Value {
    let spec = json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}]});
    object("p", "p", &json!({"spec": spec}))
}

async fn enforcer(attached: BTreeMap<String, Vec<IpAddr>>) -> Enforcer {
    let pod_cidrs = POD_CIDRS.iter().map(|c| c.parse().expect("cidr")).collect();
    Enforcer::open(Config { instance: "t2".into(), pod_cidrs, attached }).await.expect("open")
}

fn start(enforcer: &Enforcer, api: &Arc<Tables>) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let informers = Informers::new(Client::new(api.clone(), "test"));
    let shutdown = CancellationToken::new();
    let (running, stop) = (enforcer.clone(), shutdown.clone());
    let task = tokio::spawn(async move {
        informers.start(&stop);
        running.run(&informers, stop).await;
    });
    (shutdown, task)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..400 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not in time: {what}");
}

#[test]
fn a_pod_starts_behind_its_policies_and_they_outlive_the_agent() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = node(dir.path()).await;
        let api = Arc::new(Tables::default());
        let enforcer_1 = enforcer(BTreeMap::new()).await;
        let (shutdown, task) = start(&enforcer_1, &api);
        let a = crate::testing::Pod::new(&network, "ns/a/a").await;
        let b = crate::testing::Pod::new(&network, "ns/b/b").await;
        let c = crate::testing::Pod::new(&network, "ns/c/c").await;
        b.serve(80);
        for (pod_, name) in [(&a, "a"), (&b, "b")] {
            enforcer_1.attached(&format!("ns/{name}/{name}"), &pod(name, name), &pod_.addresses).await.expect("rules");
        }
        until("open", || a.reaches(&b, 80)).await;
        assert!(!c.reaches(&b, 80), "a pod that was not attached is closed");
        assert!(!api.asked.lock().contains("pods"), "without policies nobody asks for pods");

        api.tell("networkpolicies", "ADDED", isolate_b()).await;
        until("pods are asked for", || api.asked.lock().contains("pods")).await;
        // Held back until its rules are in place: no waiting is needed here.
        enforcer_1.attached("ns/c/c", &pod("c", "c"), &c.addresses).await.expect("rules");
        assert!(!c.reaches(&b, 80) && a.reaches(&b, 80));

        // The agent ends; the next one finds pods running, and an API server that is slow.
        shutdown.cancel();
        task.await.expect("task");
        api.watches.lock().clear();
        assert!(!c.reaches(&b, 80) && a.reaches(&b, 80), "rules outlive the agent");
        let attached = network.addresses().await.into_iter().map(|(key, pod)| (key, pod.ips)).collect();
        *api.down.lock() = true;
        let up = |name: &str, app: &str, pod: &crate::testing::Pod| {
            let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
            object(name, app, &json!({"spec": {"containers": []}, "status": {"phase": "Running", "podIPs": ips}}))
        };
        let pods = vec![up("a", "a", &a), up("b", "b", &b), up("c", "c", &c)];
        *api.lists.lock() = BTreeMap::from([("networkpolicies", vec![isolate_b()]), ("pods", pods)]);
        let enforcer_2 = enforcer(attached).await;
        let (shutdown, task) = start(&enforcer_2, &api);
        assert!(!c.reaches(&b, 80) && a.reaches(&b, 80), "as before until it is known what is to be");
        *api.down.lock() = false;
        // A change of labels shows that the second agent is at work.
        let mut relabelled = up("c", "a", &c);
        relabelled["metadata"]["resourceVersion"] = "3".into();
        api.tell("pods", "MODIFIED", relabelled).await;
        until("the pod's new labels", || c.reaches(&b, 80)).await;
        assert!(a.reaches(&b, 80));

        api.tell("networkpolicies", "DELETED", isolate_b()).await;
        enforcer_2.detached("ns/a/a");
        until("the end of the pod", || !a.reaches(&b, 80)).await;
        shutdown.cancel();
        task.await.expect("task");
        remove("t2").await.expect("remove");
        assert!(a.reaches(&b, 80));
    });
}

#[test]
fn without_an_api_server_new_pods_start_closed() {
    isolated(async {
        let dir = tempfile::tempdir().expect("directory");
        let network = node(dir.path()).await;
        let api = Arc::new(Tables::default());
        *api.down.lock() = true;
        let enforcer = enforcer(BTreeMap::new()).await;
        let (_shutdown, _task) = start(&enforcer, &api);
        let a = crate::testing::Pod::new(&network, "ns/a/a").await;
        let b = crate::testing::Pod::new(&network, "ns/b/b").await;
        b.serve(80);
        for (pod_, name) in [(&a, "a"), (&b, "b")] {
            enforcer.attached(&format!("ns/{name}/{name}"), &pod(name, name), &pod_.addresses).await.expect("in time");
        }
        assert!(!a.reaches(&b, 80));
        *api.down.lock() = false;
        until("the API server's answer", || a.reaches(&b, 80)).await;
    });
}
