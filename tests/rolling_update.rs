//! A Deployment changes under load, and nobody who uses it notices.

mod cluster;

use cluster::Cluster;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: c
        image: gantry.local/self
        args: [serve, --port, "8080"]
        env: [{name: VERSION, value: one}]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 2}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
"#;

/// One request on a connection of its own; the body of a 200 answer.
fn request(address: SocketAddr, path: &str) -> Result<String, String> {
    let mut stream =
        TcpStream::connect_timeout(&address, Duration::from_secs(10)).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(|e| e.to_string())?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        .map_err(|e| format!("send: {e}"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| format!("receive: {e}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {answer:?}"))?;
    if head.starts_with("HTTP/1.1 200") { Ok(body.to_owned()) } else { Err(head.to_owned()) }
}

/// Clients that ask until they are told to stop, each from a thread in the cluster's network.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<std::thread::JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    fn start(cluster: &Cluster, address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..2).map(|_| {
            let (stop, network) = (stop.clone(), cluster.network());
            std::thread::spawn(move || {
                cluster::enter(&network);
                let (mut good, mut bad) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match request(address, "/hostname") {
                        Ok(_) => good += 1,
                        Err(e) => bad.push(e),
                    }
                    // A steady client, not a benchmark.
                    std::thread::sleep(Duration::from_millis(5));
                }
                (good, bad)
            })
        });
        Self { clients: clients.collect(), stop }
    }

    /// Number of answers; panics with what went wrong.
    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.clients
            .into_iter()
            .map(|c| {
                let (good, bad) = c.join().unwrap();
                assert!(
                    bad.is_empty(),
                    "{} of {} requests failed: {:?}",
                    bad.len(),
                    good + bad.len(),
                    &bad[..bad.len().min(5)]
                );
                good
            })
            .sum()
    }
}

#[test]
fn updates_undo_and_scale() {
    let cluster = Cluster::start();
    cluster.apply(WEB);
    cluster.rolled_out("web");
    let ip = cluster.jsonpath(&["service", "web"], "{.spec.clusterIP}");
    let address: SocketAddr = format!("{ip}:80").parse().unwrap();
    cluster.wait_for("the Service answers", || {
        let output = cluster.inside("curl").args(["-sf", &format!("http://{ip}/hostname")]).output().unwrap();
        output.status.success().then_some(())
    });
    let versions = || {
        let path = "{range .items[*]}{.spec.containers[0].env[0].value}{end}";
        cluster.jsonpath(&["pods", "-l", "app=web", "--field-selector=status.phase=Running"], path)
    };
    let settled = |wanted: &str| {
        cluster.wait_for(&format!("versions {wanted}"), || (versions() == wanted).then_some(()));
    };

    // The update, and back.
    let load = Load::start(&cluster, address);
    cluster.kubectl(&["set", "env", "deployment/web", "VERSION=two"]);
    cluster.rolled_out("web");
    settled("twotwotwo");
    cluster.kubectl(&["annotate", "deployment/web", "kubernetes.io/change-cause=second"]);
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    cluster.rolled_out("web");
    settled("oneoneone");
    // Up and down under the same load.
    cluster.kubectl(&["scale", "deployment/web", "--replicas=30"]);
    cluster.rolled_out("web");
    assert_eq!(cluster.jsonpath(&["deployment", "web"], "{.status.readyReplicas}"), "30");
    cluster.wait_for("30 endpoints", || {
        let path = "{.items[*].endpoints[*].targetRef.name}";
        let names = cluster.jsonpath(&["endpointslices", "-l", "kubernetes.io/service-name=web"], path);
        (names.split(' ').count() == 30).then_some(())
    });
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    settled("oneoneone");
    assert!(load.finish() > 0, "somebody asked");

    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]);
    let revisions: Vec<&str> =
        history.lines().filter_map(|l| l.split_whitespace().next()?.parse::<u32>().ok().map(|_| l)).collect();
    assert_eq!(revisions.len(), 2, "revision 1 became 3: {history}");
    assert!(revisions[0].starts_with('2') && revisions[1].starts_with('3'), "{history}");
    let sets = cluster.get(&["replicasets", "-l", "app=web"]);
    let mut sizes: Vec<i64> =
        sets["items"].as_array().unwrap().iter().map(|r| r["spec"]["replicas"].as_i64().unwrap()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [0, 3]);

    // An update that cannot work leaves the old pods alone.
    cluster.kubectl(&["set", "image", "deployment/web", "c=127.0.0.1:1/nothing:1"]);
    cluster.wait_for("the new pod fails", || {
        let reasons = cluster
            .jsonpath(&["pods", "-l", "app=web"], "{.items[*].status.containerStatuses[0].state.waiting.reason}");
        matches!(reasons.as_str(), "ErrImagePull" | "ImagePullBackOff").then_some(())
    });
    assert_eq!(cluster.jsonpath(&["deployment", "web"], "{.status.readyReplicas}"), "3");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    cluster.rolled_out("web");
    settled("oneoneone");
}
