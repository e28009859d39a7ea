use super::*;
use gantry_api::kind::Kind;
use gantry_container::runtime::{Exit, Resources};
use serde_json::{Value, json};

fn container(name: &str, attempt: u32, state: ContainerState, code: i32) -> ContainerStatus {
    ContainerStatus {
        id: format!("{name}-{attempt}"),
        sandbox_id: "s".into(),
        name: name.into(),
        attempt,
        state,
        created_at: SystemTime::UNIX_EPOCH,
        started_at: None,
        exit: (state == ContainerState::Exited).then(|| Exit {
            code,
            signal: 0,
            oom_killed: false,
            reason: String::new(),
            message: String::new(),
            finished_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
        }),
        pid: 0,
        image: String::new(),
        image_id: String::new(),
        log_path: None,
        mounts: Vec::new(),
        resources: Resources::default(),
        uid: 0,
        gid: 0,
        supplementary_groups: Vec::new(),
        stop_signal: 15,
        stdin: false,
        tty: false,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

use ContainerState::{Exited, Running};

struct Case {
    pod: Pod,
    observed: Vec<ContainerStatus>,
    health: HashMap<String, Health>,
    backoffs: Backoffs,
    sandbox: Option<&'static str>,
    not_before: HashMap<String, Instant>,
}

fn case(spec: Value, observed: Vec<ContainerStatus>) -> Case {
    let pod = Pod::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec})).unwrap();
    let started = Health { started: true, ..Health::default() };
    let health = observed.iter().map(|c| (c.id.clone(), started)).collect();
    Case { pod, observed, health, backoffs: Backoffs::default(), sandbox: Some("s"), not_before: HashMap::new() }
}

impl Case {
    fn run(&self) -> Plan {
        plan(&Inputs {
            pod: &self.pod,
            sandbox: self.sandbox,
            observed: &Observed::new(self.observed.clone()),
            health: &self.health,
            backoffs: &self.backoffs,
            not_before: &self.not_before,
            hook_failed: &HashMap::new(),
            now: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1001),
        })
    }
    fn starts(&self) -> Vec<String> {
        self.run().start.iter().map(|s| format!("{}#{}", s.name, s.attempt)).collect()
    }
}

fn two_inits() -> Value {
    json!({"initContainers": [{"name": "i1"}, {"name": "side", "restartPolicy": "Always"}, {"name": "i2"}],
           "containers": [{"name": "a"}, {"name": "b"}]})
}

#[tokio::test(start_paused = true)]
async fn without_a_sandbox_one_is_made_first() {
    let mut c = case(two_inits(), vec![]);
    c.sandbox = None;
    assert!(c.run().create_sandbox);
    assert!(c.starts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_sidecars_gate_by_their_start() {
    let steps: &[(Vec<ContainerStatus>, &[&str])] = &[
        (vec![], &["i1#0"]),
        (vec![container("i1", 0, Running, 0)], &[]),
        (vec![container("i1", 0, Exited, 0)], &["side#0"]),
        (vec![container("i1", 0, Exited, 0), container("side", 0, Running, 0)], &["i2#0"]),
        (
            vec![container("i1", 0, Exited, 0), container("side", 0, Running, 0), container("i2", 0, Exited, 0)],
            &["a#0", "b#0"],
        ),
        // A failed init container is tried again under the policy Always.
        (vec![container("i1", 0, Exited, 1)], &["i1#1"]),
        // The runtime forgot the init containers of a pod whose containers exist; its sidecar died.
        (vec![container("a", 0, Running, 0), container("side", 0, Exited, 1)], &["side#1", "b#0"]),
    ];
    for (observed, want) in steps {
        assert_eq!(case(two_inits(), observed.clone()).starts(), *want);
    }
    let mut c = case(two_inits(), vec![container("i1", 0, Exited, 0), container("side", 0, Running, 0)]);
    c.health.clear();
    assert!(c.starts().is_empty(), "the sidecar's startup probe has not succeeded");
}

#[tokio::test(start_paused = true)]
async fn restart_policies() {
    for (policy, code, again) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ] {
        let c = case(
            json!({"restartPolicy": policy, "containers": [{"name": "a"}]}),
            vec![container("a", 2, Exited, code)],
        );
        let plan = c.run();
        assert_eq!(plan.finished, !again, "{policy} {code}");
        assert_eq!(c.starts(), if again { vec!["a#3"] } else { vec![] }, "{policy} {code}");
    }
}

#[tokio::test(start_paused = true)]
async fn container_rules_override_the_pods_policy() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
    assert_eq!(case(spec.clone(), vec![container("a", 0, Exited, 42)]).starts(), ["a#1"]);
    assert!(case(spec, vec![container("a", 0, Exited, 1)]).run().finished);
}

#[tokio::test(start_paused = true)]
async fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    assert!(case(spec.clone(), vec![container("i", 0, Exited, 1)]).run().finished);
    assert_eq!(case(spec, vec![container("i", 0, Exited, 0)]).starts(), ["a#0"]);
}

#[tokio::test(start_paused = true)]
async fn crash_loops_wait() {
    let mut c = case(json!({"containers": [{"name": "a"}]}), vec![container("a", 3, Exited, 1)]);
    tokio::time::advance(Duration::from_secs(60)).await;
    let now = Instant::now();
    c.backoffs.advance("a", now, now);
    let plan = c.run();
    assert!(plan.start.is_empty());
    // It ended a second ago.
    assert_eq!(plan.wake, Some(now + Duration::from_secs(9)));
    assert_eq!(plan.crash_looping["a"], "back-off 10s restarting failed container=a pod=p_ns(u)");
}

#[tokio::test(start_paused = true)]
async fn failed_probes_and_changed_images_kill() {
    let spec = json!({"containers": [{"name": "a", "image": "x",
        "livenessProbe": {"terminationGracePeriodSeconds": 3}}]});
    let mut c = case(spec.clone(), vec![container("a", 0, Running, 0)]);
    assert!(c.run().kill.is_empty());
    c.health.insert("a-0".into(), Health { started: true, liveness_failed: true, startup_failed: false });
    let kill = &c.run().kill[0];
    assert_eq!(kill.message, "Container a failed liveness probe, will be restarted");
    assert_eq!(kill.grace_seconds, Some(3));
    let mut old = container("a", 0, Running, 0);
    old.annotations.insert(names::HASH.into(), "other".into());
    assert_eq!(case(spec, vec![old]).run().kill[0].message, "Container a definition changed, will be restarted");
}

#[tokio::test(start_paused = true)]
async fn a_new_sandbox_runs_everything_again_but_what_is_done() {
    let mut gone = container("a", 0, Exited, 137);
    gone.sandbox_id = "old".into();
    let mut init = container("i", 0, Exited, 0);
    init.sandbox_id = "old".into();
    let spec = json!({"restartPolicy": "OnFailure", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    assert_eq!(case(spec, vec![gone, init]).starts(), ["i#1"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_forgot_is_not_run_again() {
    let mut c = case(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}), vec![]);
    c.pod.status = serde_json::from_value(json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "",
        "ready": false, "restartCount": 0, "containerID": "gantry://x", "state": {"terminated": {"exitCode": 0}}}]}))
    .unwrap();
    assert!(c.run().finished);
}

#[tokio::test(start_paused = true)]
async fn ephemeral_containers_start_once() {
    let spec = json!({"containers": [{"name": "a"}], "ephemeralContainers": [{"name": "debug"}]});
    let a = container("a", 0, Running, 0);
    assert_eq!(case(spec.clone(), vec![a.clone()]).starts(), ["debug#0"]);
    assert!(case(spec, vec![a, container("debug", 0, Exited, 1)]).starts().is_empty());
}
