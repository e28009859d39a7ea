use super::*;
use crate::testing::{World, world};
use gantry_container::runtime::Runtime;
use gantry_reconcile::Change;
use serde_json::{Value, json};

struct Node {
    world: World,
    manager: Arc<Manager>,
}

/// Waits for something that becomes true through the work of other tasks.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Drop for Node {
    /// A failed test shows what happened.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("calls: {:#?}", self.world.runtime.calls.lock());
            eprintln!("events: {:#?}", self.world.api.events.lock());
            eprintln!("pods: {:#}", json!(*self.world.api.pods.lock()));
        }
    }
}

impl Node {
    async fn new(world: World) -> Self {
        let sandboxes = world.runtime.list_sandboxes().await.unwrap();
        let manager = Manager::new(world.agent.clone(), sandboxes);
        let following = manager.clone();
        let events = world.runtime.events();
        tokio::spawn(async move { following.follow(events).await });
        Node { world, manager }
    }

    /// The world without this node's agent.
    fn hand_over(self) -> World {
        self.world.clone()
    }

    fn add(&self, pod: Value) {
        let pod = self.world.api.put(pod);
        self.manager.change(&Change::Added(Arc::new(pod)));
    }

    /// Changes the stored pod and tells the manager, as the watch would.
    fn modify(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.world.api.pods.lock().get(name).cloned().unwrap();
        change(&mut pod);
        let new = Arc::new(self.world.api.put(pod));
        self.manager.change(&Change::Modified { old: new.clone(), new });
    }

    fn phase(&self, name: &str) -> String {
        let pod = self.world.api.pod(name);
        pod.and_then(|p| p.status?.phase).unwrap_or_default()
    }

    fn waiting(&self, name: &str) -> String {
        let status = self.world.api.pod(name).and_then(|p| p.status).unwrap_or_default();
        let first = status.container_statuses.into_iter().flatten().next();
        first.and_then(|c| c.state?.waiting?.reason).unwrap_or_default()
    }

    fn ready(&self, name: &str) -> bool {
        let status = self.world.api.pod(name).and_then(|p| p.status).unwrap_or_default();
        status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    }

    fn running(&self) -> Vec<String> {
        self.world.runtime.running()
    }

    fn has_event(&self, reason: &str, text: &str) -> bool {
        self.world.api.events.lock().iter().any(|(r, m)| r == reason && m.contains(text))
    }
}

fn pod(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "generation": 1}, "spec": spec})
}

fn simple(restart: &str) -> Value {
    json!({"restartPolicy": restart, "nodeName": "n1", "terminationGracePeriodSeconds": 30,
        "containers": [{"name": "a", "image": "present:1"}]})
}

#[tokio::test]
async fn a_pod_comes_up_restarts_and_goes() {
    let node = Node::new(world()).await;
    node.add(pod("p", simple("Always")));
    eventually("running", || node.phase("p") == "Running" && node.ready("p")).await;
    let status = node.world.api.pod("p").unwrap().status.unwrap();
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.9"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    let config = node.world.runtime.configs.lock()[0].clone();
    let mounted: Vec<_> = config.mounts.iter().map(|m| m.destination.to_str().unwrap().to_owned()).collect();
    assert_eq!(mounted, ["/etc/hosts", "/dev/termination-log"]);
    assert!(config.env.contains(&("HOSTNAME".into(), "p".into())));

    node.world.runtime.exit("a", 1);
    eventually("restarted", || node.running() == ["a#1"]).await;
    eventually("reported", || {
        let status = node.world.api.pod("p").unwrap().status.unwrap();
        status.container_statuses.unwrap()[0].restart_count == 1
    })
    .await;
    let status = node.world.api.pod("p").unwrap().status.unwrap().container_statuses.unwrap().remove(0);
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 1);
    node.world.runtime.exit("a", 1);
    eventually("crash loop", || node.waiting("p") == "CrashLoopBackOff").await;
    eventually("told", || node.has_event("BackOff", "Back-off restarting failed container a in pod p_ns(uid-p)")).await;

    node.modify("p", |p| {
        p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        p["metadata"]["deletionGracePeriodSeconds"] = 30.into();
    });
    eventually("deleted", || node.world.api.pod("p").is_none()).await;
    let request = node.world.api.deleted.lock()[0].clone();
    assert_eq!(request["gracePeriodSeconds"], 0);
    assert_eq!(request["preconditions"]["uid"], "uid-p");
    assert!(node.world.runtime.sandboxes.lock().is_empty() && node.world.network.0.lock().is_empty());
    eventually("worker ended", || node.manager.list().is_empty()).await;
}

#[tokio::test]
async fn a_pod_that_completes_stays_readable_until_it_is_deleted() {
    let node = Node::new(world()).await;
    let mut spec = simple("Never");
    spec["initContainers"] = json!([{"name": "i", "image": "present:1"}]);
    node.add(pod("p", spec));
    eventually("init runs", || node.running() == ["i#0"]).await;
    node.world.runtime.exit("i", 0);
    eventually("main runs", || node.running() == ["a#0"]).await;
    node.world.runtime.exit("a", 0);
    eventually("succeeded", || node.phase("p") == "Succeeded").await;
    let status = node.world.api.pod("p").unwrap().status.unwrap();
    let reason = |kind: &str| {
        let c = status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap().clone();
        (c.status, c.reason.unwrap_or_default())
    };
    assert_eq!(reason("Ready"), ("False".into(), "PodCompleted".into()));
    assert_eq!(reason("Initialized"), ("True".into(), "PodCompleted".into()));
    eventually("network released", || node.world.network.0.lock().is_empty()).await;
    assert_eq!(node.world.runtime.containers.lock().len(), 2, "logs stay");
    node.modify("p", |p| p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
    eventually("deleted", || node.world.api.pod("p").is_none()).await;
}

#[tokio::test]
async fn images_are_pulled_or_the_reason_shown() {
    let node = Node::new(world()).await;
    for (name, image, policy, reason) in [
        ("pulled", "remote:1", "IfNotPresent", ""),
        ("missing", "none:1", "IfNotPresent", "ImagePullBackOff"),
        ("never", "none:1", "Never", "ErrImageNeverPull"),
        ("invalid", "b a d", "IfNotPresent", "InvalidImageName"),
    ] {
        let mut spec = simple("Always");
        spec["containers"][0]["image"] = image.into();
        spec["containers"][0]["imagePullPolicy"] = policy.into();
        node.add(pod(name, spec));
        if reason.is_empty() {
            eventually("running", || node.phase(name) == "Running").await;
        } else {
            eventually(reason, || node.waiting(name) == reason).await;
        }
    }
    eventually("events", || {
        node.has_event("Pulling", "Pulling image \"remote:1\"")
            && node.has_event("Pulled", "Successfully pulled image \"remote:1\" in ")
            && node.has_event("Failed", "Error: ErrImagePull")
            && node.has_event("Failed", "Error: ImagePullBackOff")
            && node.has_event("BackOff", "Back-off pulling image \"none:1\"")
            && node.has_event("ErrImageNeverPull", "is not present with pull policy of Never")
    })
    .await;
}

#[tokio::test]
async fn configuration_errors_are_shown_and_healed() {
    let node = Node::new(world()).await;
    let mut spec = simple("Always");
    spec["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "c"}}]);
    node.add(pod("p", spec));
    eventually("config error", || node.waiting("p") == "CreateContainerConfigError").await;
    let status = node.world.api.pod("p").unwrap().status.unwrap().container_statuses.unwrap().remove(0);
    assert_eq!(status.state.unwrap().waiting.unwrap().message.as_deref(), Some("configmap \"c\" not found"));
    let mut volume = simple("Always");
    volume["volumes"] = json!([{"name": "v", "configMap": {"name": "c"}}]);
    node.add(pod("q", volume));
    eventually("mount error", || {
        node.has_event("FailedMount", "MountVolume.SetUp failed for volume \"v\" : configmap \"c\" not found")
    })
    .await;
    assert!(node.running().is_empty());
}

#[tokio::test]
async fn a_grace_period_is_given_and_can_be_cut_short() {
    let node = Node::new(world()).await;
    node.world.runtime.stubborn.lock().insert("a".into());
    let mut spec = simple("Always");
    spec["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["bye"]}}, "postStart": {"exec": {"command": ["hi"]}}});
    node.add(pod("p", spec));
    eventually("running", || node.phase("p") == "Running").await;
    let delete = |seconds: i64| {
        node.modify("p", |p| {
            p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            p["metadata"]["deletionGracePeriodSeconds"] = seconds.into();
        });
    };
    delete(3600);
    eventually("signalled", || node.world.runtime.calls.lock().contains(&"signal 15 a".to_owned())).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(node.running(), ["a#0"]);
    delete(0);
    eventually("deleted", || node.world.api.pod("p").is_none()).await;
    let calls = node.world.runtime.calls.lock().clone();
    let order: Vec<&str> = calls.iter().map(String::as_str).filter(|c| !c.contains("sandbox")).collect();
    assert_eq!(order, ["start a#0", "exec a hi", "exec a bye", "signal 15 a", "kill a"]);
}

#[tokio::test]
async fn a_restarted_agent_takes_over_what_runs() {
    let first = Node::new(world()).await;
    first.add(pod("p", simple("Always")));
    eventually("running", || first.phase("p") == "Running").await;
    first.manager.stop();
    // A sandbox whose pod was deleted meanwhile.
    let mut stray = first.world.runtime.list_sandboxes().await.unwrap().remove(0);
    stray.id = "uid-gone_0".into();
    stray.labels.insert(names::POD_UID.into(), "uid-gone".into());
    first.world.runtime.sandboxes.lock().insert(stray.id.clone(), stray);

    let second = Node::new(first.hand_over()).await;
    let known = second.world.api.pod("p").unwrap();
    second.manager.change(&Change::Added(Arc::new(known)));
    second.manager.remove_orphans().await;
    let sandboxes: Vec<String> = second.world.runtime.sandboxes.lock().keys().cloned().collect();
    assert_eq!(sandboxes, ["uid-p_0"]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(second.running(), ["a#0"], "it was not restarted");
    second.world.runtime.exit("a", 1);
    eventually("restarted", || second.running() == ["a#1"]).await;
}

#[tokio::test]
async fn a_pod_that_comes_while_orphans_are_removed_keeps_its_directory() {
    let node = Node::new(world()).await;
    let orphan = node.world.agent.pod_directory("uid-gone");
    std::fs::create_dir_all(&orphan).unwrap();
    let directory = node.world.agent.pod_directory("uid-new");
    let (world, made) = (node.world.clone(), directory.clone());
    *world.network.1.lock() = Some(Box::new(move || std::fs::create_dir_all(made).unwrap()));
    node.manager.remove_orphans().await;
    assert!(world.network.1.lock().is_none(), "it came meanwhile");
    assert_eq!((orphan.exists(), directory.exists()), (false, true));
}

#[tokio::test]
async fn a_lost_sandbox_is_replaced() {
    let node = Node::new(world()).await;
    node.add(pod("p", simple("Always")));
    eventually("running", || node.phase("p") == "Running").await;
    node.world.runtime.stop_sandbox("uid-p_0").await.unwrap();
    node.world.runtime.exit("a", 137);
    eventually("again", || node.running() == ["a#1"]).await;
    assert!(node.world.runtime.calls.lock().contains(&"run_sandbox uid-p_1".to_owned()));
}

#[tokio::test]
async fn pods_that_do_not_fit_fail() {
    let node = Node::new(world()).await;
    let mut spec = simple("Always");
    spec["containers"][0]["resources"] = json!({"requests": {"cpu": "10000"}});
    node.add(pod("p", spec));
    eventually("failed", || node.phase("p") == "Failed").await;
    let status = node.world.api.pod("p").unwrap().status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert!(status.message.unwrap().starts_with("Pod was rejected: Node didn't have enough resource: cpu, "));
    assert_eq!(status.container_statuses, None);
}

#[tokio::test]
async fn probes_decide_about_readiness_and_restarts() {
    let node = Node::new(world()).await;
    let mut spec = simple("Always");
    let probe = |command: &str, failures: i32| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": failures});
    spec["containers"][0]["readinessProbe"] = probe("true", 1);
    spec["containers"][0]["livenessProbe"] = probe("false", 2);
    node.add(pod("p", spec));
    eventually("ready by its probe", || node.ready("p")).await;
    eventually("restarted by its probe", || node.running() == ["a#1"]).await;
    eventually("events", || {
        node.has_event("Unhealthy", "Liveness probe failed: ")
            && node.has_event("Killing", "Container a failed liveness probe, will be restarted")
    })
    .await;
}

#[tokio::test]
async fn evicted_pods_say_why() {
    let node = Node::new(world()).await;
    node.add(pod("p", simple("Always")));
    eventually("running", || node.phase("p") == "Running").await;
    let verdict = Verdict { reason: "Evicted".into(), message: "The node was low.".into(), disruption: true };
    node.manager.evict("uid-p", verdict, Duration::ZERO);
    eventually("failed", || node.phase("p") == "Failed").await;
    let status = node.world.api.pod("p").unwrap().status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert!(status.conditions.unwrap().iter().any(|c| c.type_ == "DisruptionTarget"));
    assert!(node.running().is_empty());
}

#[test]
fn sandbox_ids_name_their_pod() {
    assert_eq!(uid_of("b6f7-00_12"), "b6f7-00");
    assert_eq!(uid_of("plain"), "plain");
}
