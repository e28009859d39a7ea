use super::*;
use gantry_api::kind::Kind;
use serde_json::json;

fn pod(spec: Value, status: Value) -> Pod {
    let meta = json!({"name": "p", "namespace": "ns", "uid": "u", "generation": 2});
    Pod::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
}

fn statuses(list: Value) -> Vec<ContainerStatus> {
    let list = list.as_array().unwrap().iter().map(|s| {
        let mut full = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0});
        full.as_object_mut().unwrap().extend(s.as_object().unwrap().clone());
        serde_json::from_value(full).unwrap()
    });
    list.collect()
}

#[test]
fn phases() {
    let done = |code: i32| json!({"state": {"terminated": {"exitCode": code}}});
    let running = json!({"state": {"running": {}}});
    let waiting = json!({"state": {"waiting": {"reason": "ContainerCreating"}}});
    let looping = json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1}}});
    let two = json!([{"name": "a"}, {"name": "b"}]);
    for (policy, mains, ended, want) in [
        ("Always", json!([waiting, waiting]), false, "Pending"),
        ("Always", json!([running, waiting]), false, "Pending"),
        ("Always", json!([running, running]), false, "Running"),
        ("Always", json!([running, looping]), false, "Running"),
        ("Always", json!([looping, looping]), false, "Running"),
        ("Always", json!([done(0), done(0)]), false, "Running"),
        ("Always", json!([done(0), done(0)]), true, "Succeeded"),
        ("Always", json!([done(137), done(0)]), true, "Failed"),
        ("OnFailure", json!([done(0), done(0)]), false, "Succeeded"),
        ("OnFailure", json!([done(0), done(1)]), false, "Running"),
        ("Never", json!([done(0), done(1)]), false, "Failed"),
        ("Never", json!([done(0), done(0)]), false, "Succeeded"),
        ("Never", json!([done(1), running]), false, "Running"),
    ] {
        let p = pod(json!({"restartPolicy": policy, "containers": two}), json!({}));
        assert_eq!(phase(&p, &[], &statuses(mains.clone()), ended), want, "{policy} {mains}");
    }
    let with_init = |policy: &str| {
        pod(
            json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}),
            json!({}),
        )
    };
    let main = statuses(json!([waiting]));
    assert_eq!(phase(&with_init("Never"), &statuses(json!([done(1)])), &main, false), "Failed");
    assert_eq!(phase(&with_init("Always"), &statuses(json!([done(1)])), &main, false), "Pending");
    assert_eq!(phase(&with_init("Never"), &statuses(json!([running])), &main, false), "Pending");
}

struct Empty {
    observed: Observed,
    health: HashMap<String, Health>,
    ready: HashSet<String>,
    waiting: BTreeMap<String, Waiting>,
    messages: HashMap<String, String>,
}

impl Empty {
    fn new() -> Self {
        Empty {
            observed: Observed::default(),
            health: HashMap::new(),
            ready: HashSet::new(),
            waiting: BTreeMap::new(),
            messages: HashMap::new(),
        }
    }
    fn status(&self, pod: &Pod, ended: bool, verdict: Option<&Verdict>) -> PodStatus {
        compute(&Inputs {
            pod,
            observed: &self.observed,
            health: &self.health,
            ready: &self.ready,
            waiting: &self.waiting,
            messages: &self.messages,
            pod_ips: &[],
            host_ips: &["192.0.2.1".parse().unwrap()],
            sandbox_ready: false,
            verdict,
            resize_pending: None,
            allocated: &HashMap::new(),
            ended,
            now: "2026-01-01T00:00:05.5Z".parse().unwrap(),
        })
    }
}

fn condition<'a>(s: &'a PodStatus, kind: &str) -> &'a PodCondition {
    s.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap()
}

#[test]
fn a_pod_that_is_being_set_up() {
    let p = pod(
        json!({"initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "a", "image": "y"}]}),
        json!({"conditions": [{"type": "example.com/gate", "status": "False"}]}),
    );
    let mut e = Empty::new();
    e.waiting.insert("i".into(), Waiting { reason: "ErrImagePull".into(), message: Some("no".into()) });
    let s = e.status(&p, false, None);
    assert_eq!(s.phase.as_deref(), Some("Pending"));
    assert_eq!(s.start_time.as_ref().unwrap().0.to_string(), "2026-01-01T00:00:05Z");
    let state = |s: &ContainerStatus| s.state.clone().unwrap().waiting.unwrap().reason.unwrap();
    assert_eq!(state(&s.init_container_statuses.as_ref().unwrap()[0]), "ErrImagePull");
    assert_eq!(state(&s.container_statuses.as_ref().unwrap()[0]), "PodInitializing");
    let initialized = condition(&s, "Initialized");
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [i]"));
    assert_eq!(condition(&s, "Ready").message.as_deref(), Some("containers with unready status: [a]"));
    assert_eq!(condition(&s, "example.com/gate").status, "False");
    assert_eq!(condition(&s, "Ready").observed_generation, Some(2));
}

#[test]
fn verdicts_and_final_phases_stay() {
    let p = pod(json!({"containers": [{"name": "a"}]}), json!({"phase": "Running"}));
    let v =
        Verdict { reason: "Evicted".into(), message: "The node was low on resource: memory.".into(), disruption: true };
    let s = Empty::new().status(&p, true, Some(&v));
    assert_eq!((s.phase.as_deref(), s.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    assert_eq!(condition(&s, "DisruptionTarget").reason.as_deref(), Some("TerminationByKubelet"));
    let again = Pod { status: Some(s), ..p };
    let s = Empty::new().status(&again, true, None);
    assert_eq!((s.phase.as_deref(), s.reason.as_deref()), (Some("Failed"), Some("Evicted")));
}

#[test]
fn a_running_container_the_runtime_lost() {
    let p = pod(
        json!({"containers": [{"name": "a"}]}),
        json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 1,
            "containerID": "gantry://x", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}),
    );
    let s = &Empty::new().status(&p, false, None).container_statuses.unwrap()[0];
    assert!(s.state.as_ref().unwrap().waiting.is_some());
    let last = s.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    let s = &Empty::new().status(&p, true, None).container_statuses.unwrap()[0];
    assert!(s.state.as_ref().unwrap().terminated.is_some());
}

#[test]
fn readiness_gates_hold_back_only_ready() {
    let p = pod(json!({"readinessGates": [{"conditionType": "x/y"}], "containers": []}), json!({}));
    let s = Empty::new().status(&p, false, None);
    assert_eq!(condition(&s, "ContainersReady").status, "True");
    let ready = condition(&s, "Ready");
    assert_eq!(ready.reason.as_deref(), Some("ReadinessGatesNotReady"));
    assert_eq!(ready.message.as_deref(), Some("corresponding condition of pod readiness gate \"x/y\" does not exist."));
}

#[test]
fn patches_carry_only_what_changed() {
    let old: PodStatus = serde_json::from_value(json!({"phase": "Pending", "reason": "Old", "podIPs": [{"ip": "10.0.0.1"}],
        "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}, {"type": "x", "status": "True"},
                       {"type": "PodResizePending", "status": "True"}]}))
    .unwrap();
    assert_eq!(patch("u", &old, &old), None);
    let new: PodStatus = serde_json::from_value(json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}],
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "x", "status": "True"}]}))
    .unwrap();
    assert_eq!(
        patch("u", &old, &new).unwrap(),
        json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "reason": null,
            "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null},
                           {"$patch": "delete", "type": "PodResizePending"}]}})
    );
}
