//! Conformance: from init containers over hooks to the end of a container, and what its status says about it.

mod cluster;

use cluster::pods::{
    between, condition, container, container_of, create, event, once, pod, restarts, sh, succeeded, waits,
};
use cluster::{Cluster, busybox};
use serde_json::{Value, json};

#[test]
fn hooks() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    // A web server whose log tells what was asked of it, and when it was ready to be asked.
    let server = json!({"command": ["httpd", "-f", "-vv", "-p", "8080", "-h", "/tmp"],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}});
    create(&cluster, &[pod("server", &server, &json!({}))]);
    cluster.ready("server");
    let ip = cluster.jsonpath(&["pod", "server"], "{.status.podIP}");
    hook_handlers(&cluster, &ip);
    pre_stop(&cluster, &ip);
    sleep_actions(&cluster);
}

fn asked(cluster: &Cluster, path: &str) -> bool {
    cluster.kubectl(&["logs", "server"]).contains(&format!("url:{path}"))
}

fn hook_handlers(cluster: &Cluster, ip: &str) {
    let http = |path: &str| json!({"httpGet": {"host": ip, "path": path, "port": 8080}});
    let exec =
        |path: &str| json!({"exec": {"command": ["sh", "-c", format!("wget -q -O - http://{ip}:8080{path}; true")]}});
    let with = |name: &str, when: &str, handler: Value| {
        pod(name, &json!({"lifecycle": {when: handler}}), &json!({"terminationGracePeriodSeconds": 15}))
    };
    create(
        cluster,
        &[
            with("post-exec", "postStart", exec("/post-exec")),
            with("post-http", "postStart", http("/post-http")),
            with("pre-exec", "preStop", exec("/pre-exec")),
            with("pre-http", "preStop", http("/pre-http")),
        ],
    );
    let pods = ["post-exec", "post-http", "pre-exec", "pre-http"];
    for pod in pods {
        cluster.ready(pod);
    }
    // Pod Lifecycle, post start exec hook
    // Pod Lifecycle, post start http hook
    assert!(asked(cluster, "/post-exec") && asked(cluster, "/post-http"));
    assert!(!asked(cluster, "/pre-exec") && !asked(cluster, "/pre-http"));
    // Pod Lifecycle, prestop exec hook
    // Pod Lifecycle, prestop http hook
    cluster.kubectl(&["delete", "pod", "post-exec", "post-http", "pre-exec", "pre-http", "--wait=false"]);
    cluster
        .wait_for("both preStop hooks", || (asked(cluster, "/pre-exec") && asked(cluster, "/pre-http")).then_some(()));
}

fn pre_stop(cluster: &Cluster, ip: &str) {
    // Pods, prestop hook
    let ask = format!("wget -q -O - http://{ip}:8080/write; true");
    let stop = json!({"lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", ask]}}}});
    let stop_long = json!({"lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "touch /tmp/begun; until [ -e /tmp/go ]; do sleep 0.1; done"]}}},
        "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]});
    let forever = json!({"terminationGracePeriodSeconds": 300});
    create(cluster, &[pod("prestop", &stop, &json!({})), pod("prestop-waits", &stop_long, &forever)]);
    cluster.ready("prestop");
    cluster.ready("prestop-waits");
    assert!(!asked(cluster, "/write"));
    cluster.kubectl(&["delete", "pod", "prestop", "--timeout=60s"]);
    assert!(asked(cluster, "/write"));
    // A pod that ends gracefully waits until its hook is done.
    cluster.kubectl(&["delete", "pod", "prestop-waits", "--wait=false"]);
    let look = ["exec", "prestop-waits", "--", "test", "-e", "/tmp/begun"];
    cluster.wait_for("the hook runs", || cluster.try_kubectl(&look).status.success().then_some(()));
    let now = cluster.get(&["pod", "prestop-waits"]);
    assert!(now["metadata"]["deletionTimestamp"].is_string(), "{now}");
    assert!(container_of(&now, "main")["state"]["running"].is_object(), "{now}");
    sh(cluster, "prestop-waits", "touch /tmp/go");
    cluster.kubectl(&["wait", "--for=delete", "pod/prestop-waits", "--timeout=60s"]);
}

fn sleep_actions(cluster: &Cluster) {
    let sleep = |when: &str, seconds: u32| json!({"lifecycle": {when: {"sleep": {"seconds": seconds}}}});
    let term = json!(["sh", "-c", "trap 'exit 0' TERM; date +%s > /tmp/started; while :; do sleep 0.1; done"]);
    let with = |mut fields: Value| {
        fields["command"] = term.clone();
        fields
    };
    create(
        cluster,
        &[
            pod("sleep-pre", &with(sleep("preStop", 3)), &json!({"terminationGracePeriodSeconds": 60})),
            pod("sleep-none", &with(sleep("preStop", 0)), &json!({"terminationGracePeriodSeconds": 60})),
            pod("sleep-short", &with(sleep("preStop", 50)), &json!({"terminationGracePeriodSeconds": 60})),
            pod(
                "sleep-ends",
                &json!({"command": ["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.1; done"],
                "lifecycle": {"preStop": {"sleep": {"seconds": 200}}}}),
                &json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 300}),
            ),
            pod("sleep-post", &sleep("postStart", 2), &json!({"terminationGracePeriodSeconds": 30})),
        ],
    );
    // The container counts as running only after its postStart hook, even where that only sleeps.
    cluster.ready("sleep-post");
    for pod in ["sleep-pre", "sleep-none", "sleep-short", "sleep-ends"] {
        cluster.ready(pod);
        cluster.kubectl(&["patch", "pod", pod, "-p", r#"{"metadata":{"finalizers":["test.local/look"]}}"#]);
    }
    let ended = |pod: &str| {
        cluster.wait_for(&format!("the end of {pod}"), || {
            let end = container(cluster, pod, "main")["state"]["terminated"].clone();
            end.is_object().then_some(end)
        })
    };
    // The deletion's time is when the grace period will be over.
    let lasted = |pod: &str, end: &Value| {
        let meta = cluster.get(&["pod", pod])["metadata"].clone();
        let due = between(&end["finishedAt"], &meta["deletionTimestamp"]);
        let grace = meta["deletionGracePeriodSeconds"].as_i64().unwrap();
        // Modulo a day, for an end after it was due.
        (grace - due).rem_euclid(86_400)
    };
    for pod in ["sleep-pre", "sleep-none", "sleep-ends"] {
        cluster.kubectl(&["delete", "pod", pod, "--wait=false"]);
    }
    cluster.kubectl(&["delete", "pod", "sleep-short", "--grace-period=1", "--wait=false"]);
    // The hook sleeps before the signal comes.
    let end = ended("sleep-pre");
    assert!(lasted("sleep-pre", &end) >= 3, "{end}");
    assert_eq!(end["exitCode"], 0);
    // No seconds are none.
    assert_eq!(ended("sleep-none")["exitCode"], 0);
    // A grace period that is shorter than the sleep ends it.
    let end = ended("sleep-short");
    assert!(lasted("sleep-short", &end) < 45, "{end}");
    // A container that ends while its hook sleeps is not waited for.
    sh(cluster, "sleep-ends", "touch /tmp/go");
    let end = ended("sleep-ends");
    assert_eq!(end["exitCode"], 0);
    assert!(lasted("sleep-ends", &end) < 150, "{end}");
    for pod in ["sleep-pre", "sleep-none", "sleep-short", "sleep-ends"] {
        cluster.kubectl(&["patch", "pod", pod, "-p", r#"{"metadata":{"finalizers":null}}"#]);
    }
}

#[test]
fn containers() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    create(
        &cluster,
        &[inits(), policies(), messages(), sidecars(), vec![pod("host", &json!({}), &json!({}))]].concat(),
    );
    init_containers(&cluster);
    termination_messages(&cluster);
    restart_policies(&cluster);
    sidecar_containers(&cluster);
    ephemeral_containers(&cluster);
}

fn inits() -> Vec<Value> {
    let init = |name: &str, command: &str| json!({"name": name, "image": busybox::BUSYBOX, "command": [command]});
    let two = |second: &str| json!([init("init1", "true"), init("init2", second)]);
    vec![
        once("init-never", "true", &json!({}), &json!({"initContainers": two("true")})),
        pod("init-always", &json!({}), &json!({"initContainers": two("true")})),
        once("init-fails-never", "true", &json!({}), &json!({"initContainers": two("false")})),
        pod(
            "init-fails-always",
            &json!({}),
            &json!({"initContainers": [init("init1", "false"), init("init2", "true")]}),
        ),
    ]
}

fn init_containers(cluster: &Cluster) {
    let exit = |pod: &Value, name: &str| container_of(pod, name)["state"]["terminated"]["exitCode"].clone();
    // init-container-starts-app-restartnever-pod
    assert_eq!(succeeded(cluster, "init-never"), "");
    let pod = cluster.get(&["pod", "init-never"]);
    assert_eq!(condition(&pod, "Initialized").unwrap()["status"], "True");
    for name in ["init1", "init2"] {
        assert_eq!((exit(&pod, name), container_of(&pod, name)["ready"].clone()), (json!(0), json!(true)));
    }
    assert_eq!(exit(&pod, "main"), 0);
    // init-container-starts-app-restartalways-pod
    cluster.ready("init-always");
    let pod = cluster.get(&["pod", "init-always"]);
    assert_eq!(condition(&pod, "Initialized").unwrap()["status"], "True");
    assert_eq!((exit(&pod, "init1"), exit(&pod, "init2")), (json!(0), json!(0)));
    assert!(container_of(&pod, "main")["state"]["running"].is_object());
    // init-container-fails-stops-app-restartnever-pod
    assert_eq!(cluster.finished("init-fails-never"), "Failed");
    let pod = cluster.get(&["pod", "init-fails-never"]);
    assert_eq!(condition(&pod, "Initialized").unwrap()["status"], "False");
    assert_eq!(condition(&pod, "Initialized").unwrap()["reason"], "ContainersNotInitialized");
    assert_eq!(condition(&pod, "Initialized").unwrap()["message"], "containers with incomplete status: [init2]");
    assert_eq!((exit(&pod, "init1"), exit(&pod, "init2")), (json!(0), json!(1)));
    assert!(container_of(&pod, "main")["state"]["waiting"].is_object(), "{pod}");
    // init-container-fails-stops-app-restartalways-pod
    cluster.wait_for("three restarts", || (restarts(cluster, "init-fails-always", "init1") >= 3).then_some(()));
    let pod = cluster.get(&["pod", "init-fails-always"]);
    assert_eq!(pod["status"]["phase"], "Pending");
    assert_eq!(condition(&pod, "Initialized").unwrap()["message"], "containers with incomplete status: [init1 init2]");
    for name in ["init2", "main"] {
        assert_eq!(container_of(&pod, name)["state"]["waiting"]["reason"], "PodInitializing", "{pod}");
        assert_eq!(container_of(&pod, name)["restartCount"], 0);
    }
}

/// Upstream's command: restarts once or not at all, and then runs or ends as told.
fn policies() -> Vec<Value> {
    // A file counts the starts: the first ends with 1, the second runs on, ends with 0, or is never there.
    let script = |then: &str| {
        format!(
            "f=/restart-count/restartCount; count=$(grep -c hello $f 2>/dev/null); echo hello >> $f; sync; \
             if [ \"${{count:-0}}\" -eq 0 ]; then exit 1; fi; {then}"
        )
    };
    let with = |name: &str, policy: &str, then: &str| {
        let mount = json!([{"name": "restart-count", "mountPath": "/restart-count"}]);
        once(
            name,
            &script(then),
            &json!({"volumeMounts": mount}),
            &json!({"restartPolicy": policy, "volumes": [{"name": "restart-count", "emptyDir": {"medium": "Memory"}}]}),
        )
    };
    vec![
        with("terminate-cmd-rpa", "Always", "exec sleep 1000000"),
        with("terminate-cmd-rpof", "OnFailure", "exit 0"),
        with("terminate-cmd-rpn", "Never", "exit 0"),
    ]
}

fn restart_policies(cluster: &Cluster) {
    // Container Runtime, Restart Policy, Pod Phases
    for (name, phase, count, state, ready) in [
        ("terminate-cmd-rpa", "Running", 1, "running", "True"),
        ("terminate-cmd-rpof", "Succeeded", 1, "terminated", "False"),
        ("terminate-cmd-rpn", "Failed", 0, "terminated", "False"),
    ] {
        cluster.wait_for(&format!("{name} is {phase} after {count} restarts"), || {
            let pod = cluster.get(&["pod", name]);
            let main = container_of(&pod, "main");
            let fits = pod["status"]["phase"] == phase
                && main["restartCount"] == count
                && main["state"][state].is_object()
                && condition(&pod, "Ready")?["status"] == ready;
            fits.then_some(())
        });
        cluster.kubectl(&["delete", "pod", name]);
    }
}

fn messages() -> Vec<Value> {
    let user = json!({"runAsUser": 1000});
    vec![
        once(
            "message-path",
            "echo -n DONE > /dev/termination-custom-log",
            &json!({"terminationMessagePath": "/dev/termination-custom-log", "securityContext": user}),
            &json!({}),
        ),
        once(
            "message-log",
            "echo -n DONE; exit 1",
            &json!({"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "FallbackToLogsOnError"}),
            &json!({}),
        ),
        once(
            "message-silent",
            "echo DONE",
            &json!({"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "FallbackToLogsOnError"}),
            &json!({}),
        ),
        once(
            "message-file",
            "echo -n OK > /dev/termination-log; echo DONE",
            &json!({"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "FallbackToLogsOnError"}),
            &json!({}),
        ),
    ]
}

fn termination_messages(cluster: &Cluster) {
    for (pod, phase, message) in [
        // Container Runtime, TerminationMessagePath, non-root user and non-default path
        ("message-path", "Succeeded", json!("DONE")),
        // Container Runtime, TerminationMessage, from container's log output of failing container
        ("message-log", "Failed", json!("DONE")),
        // Container Runtime, TerminationMessage, from log output of succeeding container
        ("message-silent", "Succeeded", Value::Null),
        // Container Runtime, TerminationMessage, from file of succeeding container
        ("message-file", "Succeeded", json!("OK")),
    ] {
        assert_eq!(cluster.finished(pod), phase, "{pod}");
        assert_eq!(container(cluster, pod, "main")["state"]["terminated"]["message"], message, "{pod}");
    }
}

fn sidecars() -> Vec<Value> {
    let shared = json!([{"name": "d", "mountPath": "/d"}]);
    let note = |name: &str| {
        format!(
            "echo {name} >> /d/order; trap 'echo {name} ends >> /d/order; exit 0' TERM; touch /tmp/up; while :; do sleep 0.1; done"
        )
    };
    let side = |name: &str| {
        json!({"name": name, "image": busybox::BUSYBOX, "restartPolicy": "Always", "command": ["sh", "-c", note(name)],
            "startupProbe": {"exec": {"command": ["cat", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 100}, "volumeMounts": shared})
    };
    let init = json!({"name": "init", "image": busybox::BUSYBOX, "command": ["sh", "-c", "echo init >> /d/order"], "volumeMounts": shared});
    let crashing = json!([{"name": "side", "image": busybox::BUSYBOX, "restartPolicy": "Always", "command": ["sh", "-c", "exit 3"]}]);
    vec![
        once(
            "sidecars",
            "echo main >> /d/order",
            &json!({"volumeMounts": shared}),
            &json!({"initContainers": [side("first"), init, side("second")], "terminationGracePeriodSeconds": 30,
                "volumes": [{"name": "d", "hostPath": {"path": "/tmp", "type": "Directory"}}]}),
        ),
        // A sidecar is restarted whatever the pod's policy, and does not decide how the pod ends.
        once(
            "sidecar-crashes",
            "until [ -e /tmp/go ]; do sleep 0.1; done",
            &json!({}),
            &json!({"initContainers": crashing}),
        ),
    ]
    .into_iter()
    .map(|mut pod| {
        // An emptyDir cannot be read once the pod has ended: a directory of the host's /tmp can.
        if let Some(path) = pod.pointer_mut("/spec/volumes/0/hostPath/path") {
            *path = json!(order_directory());
        }
        pod
    })
    .collect()
}

fn order_directory() -> String {
    let directory = std::env::temp_dir().join(format!("gantry-sidecars-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory.to_str().unwrap().to_owned()
}

fn sidecar_containers(cluster: &Cluster) {
    let order = std::path::PathBuf::from(order_directory()).join("order");
    assert_eq!(cluster.finished("sidecars"), "Succeeded");
    let lines = cluster.wait_for("the sidecars' ends", || {
        let text = std::fs::read_to_string(&order).unwrap_or_default();
        (text.lines().count() >= 6).then_some(text)
    });
    // They end after the main containers, the last one first.
    assert_eq!(lines, "first\ninit\nsecond\nmain\nsecond ends\nfirst ends\n");
    std::fs::remove_dir_all(order.parent().unwrap()).unwrap();

    cluster.wait_for("the sidecar comes back", || (restarts(cluster, "sidecar-crashes", "side") >= 2).then_some(()));
    assert_eq!(cluster.jsonpath(&["pod", "sidecar-crashes"], "{.status.phase}"), "Running");
    sh(cluster, "sidecar-crashes", "touch /tmp/go");
    assert_eq!(cluster.finished("sidecar-crashes"), "Succeeded");
}

fn ephemeral_containers(cluster: &Cluster) {
    cluster.ready("host");
    let add = |name: &str| {
        let one = json!({"name": name, "image": busybox::BUSYBOX, "command": ["sh", "-c", "echo polo; exec sleep 1000000"], "stdin": true, "tty": true});
        let patch = json!({"spec": {"ephemeralContainers": [one]}}).to_string();
        cluster.kubectl(&["patch", "pod", "host", "--subresource=ephemeralcontainers", "-p", &patch]);
        cluster.wait_for(&format!("{name} runs"), || {
            container(cluster, "host", name)["state"]["running"].is_object().then_some(())
        });
        cluster.wait_for(&format!("{name} speaks"), || {
            cluster.kubectl(&["logs", "host", "-c", name]).contains("polo").then_some(())
        });
        cluster.get(&["pod", "host"])["spec"]["ephemeralContainers"].as_array().unwrap().len()
    };
    // Ephemeral Container Creation
    assert_eq!(add("debugger"), 1);
    // Ephemeral Container, update ephemeral containers
    assert_eq!(add("debugger2"), 2);
    let host = cluster.get(&["pod", "host"]);
    assert_eq!(host["status"]["ephemeralContainerStatuses"].as_array().unwrap().len(), 2);
    assert_eq!(container_of(&host, "main")["restartCount"], 0);
    // One that is there stays as it is.
    let patch = r#"{"spec":{"ephemeralContainers":[{"name":"debugger","image":"other"}]}}"#;
    let error = cluster.kubectl_error(&["patch", "pod", "host", "--subresource=ephemeralcontainers", "-p", patch]);
    assert!(error.contains("existing ephemeral containers \"debugger\" may not be changed"), "{error}");
}

#[test]
fn restart_rules() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    // Rules of a container win over its policy, and that over the pod's.
    let rule = |operator: &str, codes: &[i32]| json!([{"action": "Restart", "exitCodes": {"operator": operator, "values": codes}}]);
    let once_more = "if [ -e /d/x ]; then exit 0; fi; touch /d/x; exit 42";
    let shared = json!([{"name": "d", "mountPath": "/d"}]);
    let volumes = json!({"volumes": [{"name": "d", "emptyDir": {}}]});
    create(
        &cluster,
        &[
            once(
                "by-rule",
                once_more,
                &json!({"restartPolicy": "Never", "restartPolicyRules": rule("In", &[42]), "volumeMounts": shared}),
                &volumes,
            ),
            once(
                "by-other-rule",
                "exit 42",
                &json!({"restartPolicy": "Never", "restartPolicyRules": rule("NotIn", &[42])}),
                &json!({}),
            ),
            once("by-container", once_more, &json!({"restartPolicy": "OnFailure", "volumeMounts": shared}), &volumes),
            pod("pull", &json!({"image": "nowhere.invalid/x:1", "imagePullPolicy": "Never"}), &json!({})),
        ],
    );
    for (pod, phase, count) in
        [("by-rule", "Succeeded", 1), ("by-other-rule", "Failed", 0), ("by-container", "Succeeded", 1)]
    {
        assert_eq!(cluster.finished(pod), phase, "{pod}");
        assert_eq!(restarts(&cluster, pod, "main"), count, "{pod}");
    }
    waits(&cluster, "pull", "main", "ErrImageNeverPull");
    event(&cluster, "pull", "Failed", "Error: ErrImageNeverPull");
}
