//! From the first probe to the last signal: probes, init containers and sidecars, restarts, termination, image pulls.

mod cluster;

use cluster::Cluster;
use cluster::busybox;
use serde_json::Value;

fn container(cluster: &Cluster, pod: &str, name: &str) -> Value {
    let pod = cluster.get(&["pod", pod]);
    let all = ["containerStatuses", "initContainerStatuses"];
    let all = all.iter().flat_map(|k| pod["status"][k].as_array().cloned().unwrap_or_default());
    all.into_iter().find(|c| c["name"] == name).unwrap_or_default()
}

/// Waits for an event about a pod.
fn event(cluster: &Cluster, pod: &str, reason: &str, message: &str) {
    let selector = format!("--field-selector=involvedObject.name={pod},reason={reason}");
    cluster.wait_for(&format!("event {reason} of {pod}: {message}"), || {
        let events = cluster.jsonpath(&["events", &selector], "{range .items[*]}{.message}{\"\\n\"}{end}");
        events.contains(message).then_some(())
    });
}

fn sh(cluster: &Cluster, pod: &str, container: &str, script: &str) -> String {
    cluster.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", script])
}

#[test]
fn probes() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: ready}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: http
    image: gantry.local/self
    args: [serve, --port, "8080"]
    ports: [{name: web, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /readyz, port: web, httpHeaders: [{name: X-Probe, value: "yes"}]}, periodSeconds: 1}
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
  - {name: tcp, image: gantry.local/self, args: [tcp-echo, "9000"], ports: [{name: echo, containerPort: 9000}], readinessProbe: {tcpSocket: {port: echo}, periodSeconds: 1}}
  - name: exec
    image: test.local/busybox:1
    command: [sleep, "1000000"]
    readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, successThreshold: 2}
  - {name: grpc, image: gantry.local/self, args: [grpc-health, "9001"], readinessProbe: {grpc: {port: 9001}, periodSeconds: 1}, livenessProbe: {grpc: {port: 9001, service: ""}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: unready}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: http, image: gantry.local/self, args: [serve, --port, "8080"], readinessProbe: {httpGet: {path: /nope, port: 8080}, periodSeconds: 1}}
  - {name: tcp, image: gantry.local/self, args: [serve, --port, "8081"], readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}}
  - {name: grpc, image: gantry.local/self, args: [grpc-health, --not-serving, "9001"], readinessProbe: {grpc: {port: 9001}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: live}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: exec
    image: test.local/busybox:1
    command: [sh, -c, "trap 'exit 0' TERM; touch /tmp/ok; while :; do sleep 0.1; done"]
    livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}
  - name: startup
    image: test.local/busybox:1
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [cat, /tmp/started]}, periodSeconds: 1, failureThreshold: 1000}
    livenessProbe: {exec: {command: [cat, /tmp/live]}, periodSeconds: 1, failureThreshold: 1}
"#,
    );
    // All but one are ready; the pod is when that one is.
    cluster.wait_for("three of four ready", || {
        let ready = |n: &str| container(&cluster, "ready", n)["ready"] == true;
        (ready("http") && ready("tcp") && ready("grpc")).then_some(())
    });
    assert_eq!(container(&cluster, "ready", "exec")["ready"], false);
    let condition = cluster.jsonpath(&["pod", "ready"], "{.status.conditions[?(@.type=='Ready')].message}");
    assert_eq!(condition, "containers with unready status: [exec]");
    event(
        &cluster,
        "ready",
        "Unhealthy",
        "Readiness probe failed: cat: can't open '/tmp/ok': No such file or directory",
    );
    sh(&cluster, "ready", "exec", "touch /tmp/ok");
    cluster.ready("ready");
    sh(&cluster, "ready", "exec", "rm /tmp/ok");
    cluster.wait_for("unready again", || (container(&cluster, "ready", "exec")["ready"] == false).then_some(()));

    event(&cluster, "unready", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404");
    let ip = cluster.jsonpath(&["pod", "unready"], "{.status.podIP}");
    event(
        &cluster,
        "unready",
        "Unhealthy",
        &format!("Readiness probe failed: dial tcp {ip}:9000: connect: connection refused"),
    );
    event(
        &cluster,
        "unready",
        "Unhealthy",
        "Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")",
    );

    // Liveness: the container is replaced, its neighbour is not.
    let first = container(&cluster, "live", "exec")["containerID"].clone();
    cluster.wait_for("the container runs", || {
        container(&cluster, "live", "exec")["state"]["running"].is_object().then_some(())
    });
    sh(&cluster, "live", "exec", "rm /tmp/ok");
    cluster.wait_for("the restart", || {
        let now = container(&cluster, "live", "exec");
        (now["restartCount"] == 1 && now["state"]["running"].is_object() && now["containerID"] != first).then_some(())
    });
    event(&cluster, "live", "Unhealthy", "Liveness probe failed: cat: can't open '/tmp/ok': No such file or directory");
    event(&cluster, "live", "Killing", "Container exec failed liveness probe, will be restarted");
    // A startup probe keeps the liveness probe from running until it has succeeded once.
    event(
        &cluster,
        "live",
        "Unhealthy",
        "Startup probe failed: cat: can't open '/tmp/started': No such file or directory",
    );
    let startup = container(&cluster, "live", "startup");
    assert_eq!((&startup["restartCount"], &startup["started"]), (&Value::from(0), &Value::from(false)));
    sh(&cluster, "live", "startup", "touch /tmp/live /tmp/started");
    cluster.wait_for("started", || (container(&cluster, "live", "startup")["started"] == true).then_some(()));
    sh(&cluster, "live", "startup", "rm /tmp/live");
    cluster.wait_for("restarted", || (container(&cluster, "live", "startup")["restartCount"] == 1).then_some(()));
}

#[test]
fn starts_and_restarts() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: c, image: gantry.local/self, args: [exit, "4"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  restartPolicy: OnFailure
  containers:
  - {name: c, image: test.local/busybox:1, command: [sh, -c, "if [ -e /d/x ]; then exit 0; fi; touch /d/x; echo first; exit 1"], volumeMounts: [{name: d, mountPath: /d}]}
  volumes: [{name: d, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers: [{name: c, image: gantry.local/self, args: [exit, "4"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: order}
spec:
  restartPolicy: Never
  initContainers:
  - {name: a, image: test.local/busybox:1, command: [sh, -c, "echo a >> /d/log"], volumeMounts: [{name: d, mountPath: /d}]}
  - name: side
    image: test.local/busybox:1
    restartPolicy: Always
    command: [sh, -c, "trap 'echo side-ends; exit 0' TERM; echo side >> /d/log; touch /d/up; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [cat, /d/up]}, periodSeconds: 1}
    volumeMounts: [{name: d, mountPath: /d}]
  - {name: b, image: test.local/busybox:1, command: [sh, -c, "echo b >> /d/log"], volumeMounts: [{name: d, mountPath: /d}]}
  containers:
  - {name: c, image: test.local/busybox:1, command: [sh, -c, "cat /d/log"], volumeMounts: [{name: d, mountPath: /d}]}
  volumes: [{name: d, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: initfails}
spec:
  restartPolicy: Never
  initContainers: [{name: a, image: gantry.local/self, args: [exit, "5"]}]
  containers: [{name: c, image: gantry.local/self, args: [exit, "0"]}]
"#,
    );
    // Back-off, with what happened before.
    let uid = cluster.jsonpath(&["pod", "crash"], "{.metadata.uid}");
    cluster.wait_for("the back-off", || {
        let c = container(&cluster, "crash", "c");
        let waiting = &c["state"]["waiting"];
        (waiting["reason"] == "CrashLoopBackOff").then(|| {
            let wanted = format!("restarting failed container=c pod=crash_default({uid})");
            let message = waiting["message"].as_str().unwrap();
            assert!(message.starts_with("back-off ") && message.ends_with(&wanted), "{message}");
            assert_eq!(c["lastState"]["terminated"]["exitCode"], 4);
            assert_eq!(c["lastState"]["terminated"]["reason"], "Error");
            assert!(c["restartCount"].as_i64().unwrap() >= 1, "{c}");
        })
    });
    event(&cluster, "crash", "BackOff", &format!("Back-off restarting failed container c in pod crash_default({uid})"));
    assert_eq!(cluster.jsonpath(&["pod", "crash"], "{.status.phase}"), "Running");
    cluster.wait_for("a second restart", || {
        (container(&cluster, "crash", "c")["restartCount"].as_i64()? >= 2).then_some(())
    });

    assert_eq!(cluster.finished("again"), "Succeeded");
    let again = container(&cluster, "again", "c");
    assert_eq!((&again["restartCount"], &again["state"]["terminated"]["exitCode"]), (&Value::from(1), &Value::from(0)));
    assert_eq!(cluster.kubectl(&["logs", "again", "--previous"]), "first\n");
    assert_eq!(cluster.finished("once"), "Failed");
    assert_eq!(container(&cluster, "once", "c")["restartCount"], 0);

    // One after the other, the sidecar beside the rest, and it ends with them.
    assert_eq!(cluster.finished("order"), "Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "order", "-c", "c"]), "a\nside\nb\n");
    cluster.wait_for("the sidecar's end", || {
        (cluster.kubectl(&["logs", "order", "-c", "side"]) == "side-ends\n").then_some(())
    });
    assert_eq!(cluster.finished("initfails"), "Failed");
    let skipped = container(&cluster, "initfails", "c");
    assert_eq!(skipped["state"]["waiting"]["reason"], "PodInitializing", "{skipped}");
    let initialized = cluster.jsonpath(&["pod", "initfails"], "{.status.conditions[?(@.type=='Initialized')].status}");
    assert_eq!(initialized, "False");
    let shown = cluster.kubectl(&["get", "pods", "--no-headers"]);
    let status = |pod: &str| {
        let line = shown.lines().find(|l| l.starts_with(&format!("{pod} "))).unwrap();
        line.split_whitespace().nth(2).unwrap().to_owned()
    };
    assert_eq!([status("initfails"), status("order"), status("once")], ["Init:Error", "Completed", "Error"]);

    // Images that do not come.
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: images}
spec:
  containers:
  - {name: never, image: "nowhere.invalid/x:1", imagePullPolicy: Never}
  - {name: unreachable, image: "127.0.0.1:1/x:1"}
"#,
    );
    let waits = |name: &str, reasons: &[&str], message: &str| {
        cluster.wait_for(&format!("{name}: {reasons:?} {message}"), || {
            let c = container(&cluster, "images", name);
            let waiting = &c["state"]["waiting"];
            let fits = reasons.contains(&waiting["reason"].as_str()?) && waiting["message"].as_str()?.contains(message);
            fits.then_some(())
        });
    };
    waits(
        "never",
        &["ErrImageNeverPull"],
        "Container image \"nowhere.invalid/x:1\" is not present with pull policy of Never",
    );
    waits("unreachable", &["ImagePullBackOff"], "Back-off pulling image \"127.0.0.1:1/x:1\"");
    event(&cluster, "images", "Failed", "Failed to pull image \"127.0.0.1:1/x:1\"");
    event(&cluster, "images", "BackOff", "Back-off pulling image \"127.0.0.1:1/x:1\"");
    cluster.apply("{apiVersion: v1, kind: Pod, metadata: {name: misnamed}, spec: {containers: [{name: c, image: \"UPPER/Bad:1\"}]}}");
    cluster.wait_for("the name is refused", || {
        (container(&cluster, "misnamed", "c")["state"]["waiting"]["reason"] == "InvalidImageName").then_some(())
    });
}

#[test]
fn termination() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let host = cluster.data_dir().join("order");
    std::fs::create_dir(&host).unwrap();
    cluster.apply(
        &r#"
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec:
  terminationGracePeriodSeconds: 60
  containers:
  - name: c
    image: test.local/busybox:1
    command: [sh, -c, "trap 'echo term >> /host/polite; exit 0' TERM; echo start >> /host/polite; while :; do sleep 0.1; done"]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo post >> /host/post"]}}
      preStop: {exec: {command: [sh, -c, "echo pre >> /host/polite"]}}
    volumeMounts: [{name: h, mountPath: /host}]
  volumes: [{name: h, hostPath: {path: HOST}}]
---
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: c
    image: test.local/busybox:1
    command: [sh, -c, "trap 'echo term >> /host/stubborn' TERM; echo start >> /host/stubborn; while :; do sleep 0.1; done"]
    volumeMounts: [{name: h, mountPath: /host}]
  volumes: [{name: h, hostPath: {path: HOST}}]
---
apiVersion: v1
kind: Pod
metadata: {name: hookless}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: test.local/busybox:1
    command: [sleep, "1000000"]
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo broken; exit 1"]}}}
"#
        .replace("HOST", host.to_str().unwrap()),
    );
    cluster.ready("polite");
    cluster.ready("stubborn");
    let read = |file: &str| std::fs::read_to_string(host.join(file)).unwrap_or_default();
    cluster.wait_for("both started", || (read("polite") == "start\n" && read("stubborn") == "start\n").then_some(()));
    assert_eq!(read("post"), "post\n");
    event(&cluster, "hookless", "FailedPostStartHook", "PostStartHook failed");

    // A finalizer keeps the object, so that its last status can be read.
    for pod in ["polite", "stubborn"] {
        cluster.kubectl(&["patch", "pod", pod, "-p", r#"{"metadata":{"finalizers":["test.local/look"]}}"#]);
        cluster.kubectl(&["delete", "pod", pod, "--wait=false"]);
    }
    let end = |pod: &str| {
        cluster.wait_for(&format!("the end of {pod}"), || {
            let end = container(&cluster, pod, "c")["state"]["terminated"].clone();
            end.is_object().then_some(end)
        })
    };
    // preStop, then SIGTERM, and what handles it ends by itself.
    let polite = end("polite");
    assert_eq!((&polite["exitCode"], &polite["reason"]), (&Value::from(0), &Value::from("Completed")));
    assert_eq!(read("polite"), "start\npre\nterm\n");
    // What does not end is killed.
    let stubborn = end("stubborn");
    assert_eq!((&stubborn["exitCode"], &stubborn["reason"]), (&Value::from(137), &Value::from("Error")));
    assert_eq!(read("stubborn"), "start\nterm\n");
    event(&cluster, "polite", "Killing", "Stopping container c");
    for pod in ["polite", "stubborn"] {
        cluster.kubectl(&["patch", "pod", pod, "-p", r#"{"metadata":{"finalizers":null}}"#]);
        cluster.wait_for(&format!("{pod} is gone"), || {
            (!cluster.try_kubectl(&["get", "pod", pod]).status.success()).then_some(())
        });
    }
    // --force does not wait for the node.
    cluster.kubectl(&["delete", "pod", "hookless", "--force", "--grace-period=0"]);
    assert!(cluster.kubectl_error(&["get", "pod", "hookless"]).contains("pods \"hookless\" not found"));
}
