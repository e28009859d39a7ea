//! Conformance: what liveness, readiness and startup probes do to a pod, and what they leave alone.

mod cluster;

use cluster::pods::{between, condition, container, container_of, create, event, pod, restarts, sh};
use cluster::{Cluster, busybox};
use serde_json::{Value, json};

/// Restarts that the slow test waits for. Each waits twice as long as the one before it.
const RESTARTS: i64 = 3;

#[test]
fn probes() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    create(&cluster, &[endless_failures(), living(), dying(), readiness(), later(), redirects()].concat());
    readiness_delay(&cluster);
    readiness_failure(&cluster);
    liveness_restarts(&cluster);
    liveness_rests(&cluster);
    startup(&cluster);
    redirected(&cluster);
    termination(&cluster);
    multiple_restarts(&cluster);
}

/// A web server of which `/healthz` fails after a while, while other paths go on.
fn failing_server(seconds: u32) -> Value {
    let script = format!(
        "mkdir /tmp/www; echo ok > /tmp/www/healthz; echo ok > /tmp/www/index.html; httpd -p 8080 -h /tmp/www; \
         trap 'exit 0' TERM; sleep {seconds}; rm /tmp/www/healthz; while :; do sleep 0.2; done"
    );
    json!(["sh", "-c", script])
}

fn http(path: &str) -> Value {
    json!({"path": path, "port": 8080})
}

/// A probe every second that fails at once.
fn every_second(handler: &str, what: Value) -> Value {
    json!({handler: what, "periodSeconds": 1, "failureThreshold": 1})
}

fn endless_failures() -> Vec<Value> {
    let live = every_second("httpGet", http("/healthz"));
    vec![pod("many-restarts", &json!({"command": failing_server(2), "livenessProbe": live}), &json!({}))]
}

fn living() -> Vec<Value> {
    // The servers need a moment to begin; after that not one probe may fail.
    let steady = |handler: &str, what: Value| json!({handler: what, "initialDelaySeconds": 5, "periodSeconds": 1, "failureThreshold": 1});
    let own = |args: Value, probe: Value| json!({"image": "gantry.local/self", "command": [], "args": args, "livenessProbe": probe});
    let health = json!({"command": ["cat", "/tmp/health"]});
    vec![
        pod("http-lives", &own(json!(["serve"]), steady("httpGet", http("/"))), &json!({})),
        pod("grpc-lives", &own(json!(["grpc-health", "5000"]), steady("grpc", json!({"port": 5000}))), &json!({})),
        pod(
            "file-lives",
            &json!({"command": ["sh", "-c", "echo ok > /tmp/health; exec sleep 1000000"], "livenessProbe": steady("exec", health)}),
            &json!({}),
        ),
        pod(
            "tcp-lives",
            &json!({"command": failing_server(1), "livenessProbe": steady("tcpSocket", json!({"port": 8080}))}),
            &json!({}),
        ),
    ]
}

fn dying() -> Vec<Value> {
    let forget = "echo ok > /tmp/health; trap 'exit 0' TERM; sleep 2; rm /tmp/health; while :; do sleep 0.2; done";
    let cat = json!({"command": ["cat", "/tmp/health"]});
    vec![
        pod(
            "file-dies",
            &json!({"command": ["sh", "-c", forget], "livenessProbe": {"exec": cat, "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 1}}),
            &json!({}),
        ),
        pod(
            "http-dies",
            &json!({"command": failing_server(2), "livenessProbe": {"httpGet": http("/healthz"), "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 1}}),
            &json!({}),
        ),
        pod(
            "grpc-dies",
            &json!({"image": "gantry.local/self", "command": [], "args": ["grpc-health", "5000"],
                "livenessProbe": {"grpc": {"port": 2333}, "periodSeconds": 1, "failureThreshold": 1}}),
            &json!({}),
        ),
        pod(
            "exec-times-out",
            &json!({"command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"],
                "livenessProbe": {"exec": {"command": ["sleep", "600"]}, "timeoutSeconds": 1, "periodSeconds": 1, "failureThreshold": 1}}),
            &json!({}),
        ),
        // The probe's own grace period, where the pod's would last for ever.
        pod(
            "own-grace",
            &json!({"command": ["sh", "-c", "trap '' TERM; while :; do sleep 0.2; done"],
                "livenessProbe": {"exec": {"command": ["false"]}, "terminationGracePeriodSeconds": 1, "periodSeconds": 1, "failureThreshold": 1}}),
            &json!({"terminationGracePeriodSeconds": 500}),
        ),
    ]
}

fn readiness() -> Vec<Value> {
    vec![
        pod(
            "ready-later",
            &json!({"readinessProbe": {"exec": {"command": ["true"]}, "initialDelaySeconds": 5, "periodSeconds": 1}}),
            &json!({}),
        ),
        pod(
            "never-ready",
            &json!({"readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1}}),
            &json!({}),
        ),
    ]
}

fn later() -> Vec<Value> {
    let sidecar = json!([{"name": "side", "image": busybox::BUSYBOX, "restartPolicy": "Always", "command": ["sleep", "1000000"],
        "startupProbe": {"exec": {"command": ["cat", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 1000},
        "readinessProbe": {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1}}]);
    vec![
        pod(
            "startup",
            &json!({"command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"],
                "startupProbe": {"exec": {"command": ["cat", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 1000},
                "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
                "livenessProbe": {"exec": {"command": ["cat", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 1}}),
            &json!({}),
        ),
        pod("sidecar", &json!({}), &json!({"initContainers": sidecar})),
        // Ready until it is told to end, then not, and gone only a while later.
        pod(
            "ends-slowly",
            &json!({"command": ["sh", "-c", "touch /tmp/ready; trap 'rm /tmp/ready; T=1' TERM; until [ -e /tmp/end ]; do sleep 0.1; done"],
                "readinessProbe": {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1},
                "livenessProbe": {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1}}),
            &json!({"terminationGracePeriodSeconds": 300}),
        ),
    ]
}

/// Servers that answer with redirects.
fn redirects() -> Vec<Value> {
    let server = |location: &str| {
        let answer = format!(
            "HTTP/1.1 302 Found\\r\\nLocation: {location}\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n"
        );
        let bad = "HTTP/1.1 500 Bad\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n";
        // Answers one connection: the redirect for /, an error for everything else.
        let each = format!("read m p v; case $p in /) printf '{answer}';; *) printf '{bad}';; esac");
        json!([
            "sh",
            "-c",
            format!("cat > /tmp/each <<'END'\n{each}\nEND\ntrap 'exit 0' TERM; nc -ll -p 8080 -e sh /tmp/each & wait")
        ])
    };
    let live = json!({"httpGet": http("/"), "initialDelaySeconds": 3, "periodSeconds": 1, "failureThreshold": 3});
    vec![
        pod("redirect-here", &json!({"command": server("/bad"), "livenessProbe": live}), &json!({})),
        pod("redirect-away", &json!({"command": server("http://192.0.2.1/"), "livenessProbe": live}), &json!({})),
    ]
}

fn readiness_delay(cluster: &Cluster) {
    // Pod readiness probe, with initial delay
    cluster.ready("ready-later");
    let pod = cluster.get(&["pod", "ready-later"]);
    let main = container_of(&pod, "main");
    let ready = &condition(&pod, "Ready").unwrap()["lastTransitionTime"];
    assert!(between(&main["state"]["running"]["startedAt"], ready) >= 5, "ready too early: {pod}");
    assert_eq!(main["restartCount"], 0);
}

fn readiness_failure(cluster: &Cluster) {
    // Pod readiness probe, failure
    let selector = "--field-selector=involvedObject.name=never-ready,reason=Unhealthy";
    cluster.wait_for("the probe has failed five times", || {
        let count = cluster.jsonpath(&["events", selector], "{.items[0].count}");
        (count.parse::<i64>().ok()? >= 5).then_some(())
    });
    let pod = cluster.get(&["pod", "never-ready"]);
    assert_eq!(condition(&pod, "Ready").unwrap()["status"], "False");
    assert_eq!(container_of(&pod, "main")["ready"], false);
    assert_eq!(container_of(&pod, "main")["restartCount"], 0);
}

fn restarted(cluster: &Cluster, pod: &str, times: i64) {
    cluster.wait_for(&format!("{pod} restarted {times} times"), || {
        (restarts(cluster, pod, "main") >= times).then_some(())
    });
}

fn liveness_restarts(cluster: &Cluster) {
    // Pod liveness probe, using local file, restart
    restarted(cluster, "file-dies", 1);
    // Pod liveness probe, using http endpoint, restart
    restarted(cluster, "http-dies", 1);
    event(cluster, "http-dies", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 404");
    event(cluster, "http-dies", "Killing", "Container main failed liveness probe, will be restarted");
    // Pod liveness probe, using grpc call, failure
    restarted(cluster, "grpc-dies", 1);
    // A probe that lasts longer than its timeout has failed.
    restarted(cluster, "exec-times-out", 1);
    event(
        cluster,
        "exec-times-out",
        "Unhealthy",
        "Liveness probe failed: command timed out: \"sleep 600\" timed out after 1s",
    );
    // The grace period of a probe wins over the pod's.
    restarted(cluster, "own-grace", 1);
    let last = container(cluster, "own-grace", "main")["lastState"]["terminated"].clone();
    assert_eq!(last["exitCode"], 137, "{last}");
}

fn liveness_rests(cluster: &Cluster) {
    // Pod liveness probe, using http endpoint, failure
    // Pod liveness probe, using grpc call, success
    // Pod liveness probe, using local file, no restart
    // Pod liveness probe, using tcp socket, no restart
    for name in ["http-lives", "grpc-lives", "file-lives", "tcp-lives"] {
        cluster.ready(name);
    }
    // By now the others, which began with them, have failed and come back.
    for name in ["http-lives", "grpc-lives", "file-lives", "tcp-lives"] {
        assert_eq!(restarts(cluster, name, "main"), 0, "{name}");
    }
}

fn startup(cluster: &Cluster) {
    // Neither readiness nor liveness counts before the startup probe has succeeded.
    event(cluster, "startup", "Unhealthy", "Startup probe failed: cat: can't open '/tmp/started'");
    let before = container(cluster, "startup", "main");
    assert_eq!(
        (&before["started"], &before["ready"], &before["restartCount"]),
        (&json!(false), &json!(false), &json!(0))
    );
    sh(cluster, "startup", "touch /tmp/alive /tmp/started");
    cluster.ready("startup");
    sh(cluster, "startup", "rm /tmp/alive");
    restarted(cluster, "startup", 1);

    // A sidecar's startup probe holds back what comes after it, its readiness probe counts for the pod.
    let states = || {
        let pod = cluster.get(&["pod", "sidecar"]);
        let side = container_of(&pod, "side");
        let main = container_of(&pod, "main")["state"]["running"].is_object();
        (side["started"] == true, side["ready"] == true, main, condition(&pod, "Ready").unwrap()["status"] == "True")
    };
    event(cluster, "sidecar", "Unhealthy", "Startup probe failed");
    assert_eq!(states(), (false, false, false, false));
    let side = |script: &str| cluster.kubectl(&["exec", "sidecar", "-c", "side", "--", "sh", "-c", script]);
    side("touch /tmp/started");
    cluster.wait_for("the main container starts", || (states() == (true, false, true, false)).then_some(()));
    side("touch /tmp/ready");
    cluster.ready("sidecar");
    assert_eq!(states(), (true, true, true, true));
}

fn redirected(cluster: &Cluster) {
    // A redirect on the same host is followed, and what is there counts.
    restarted(cluster, "redirect-here", 1);
    event(cluster, "redirect-here", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500");
    // One to another host is not followed, and is no failure.
    event(
        cluster,
        "redirect-away",
        "ProbeWarning",
        "Liveness probe warning: Probe terminated redirects, Response body: ",
    );
    assert_eq!(restarts(cluster, "redirect-away", "main"), 0);
}

fn termination(cluster: &Cluster) {
    // A pod that ends is still asked whether it is ready, and no longer whether it lives.
    cluster.ready("ends-slowly");
    cluster.kubectl(&["delete", "pod", "ends-slowly", "--wait=false"]);
    cluster.wait_for("no longer ready", || {
        let pod = cluster.get(&["pod", "ends-slowly"]);
        let main = container_of(&pod, "main");
        (main["ready"] == false && condition(&pod, "Ready")?["status"] == "False").then(|| {
            assert!(main["state"]["running"].is_object(), "{pod}");
            assert_eq!(main["restartCount"], 0);
        })
    });
    sh(cluster, "ends-slowly", "touch /tmp/end");
    cluster.kubectl(&["wait", "--for=delete", "pod/ends-slowly", "--timeout=60s"]);
}

fn multiple_restarts(cluster: &Cluster) {
    // Pod liveness probe, using http endpoint, multiple restarts (slow)
    let mut last = 0;
    cluster.wait_for("many restarts", || {
        let now = restarts(cluster, "many-restarts", "main");
        assert!(now >= last, "the count of restarts went from {last} to {now}");
        last = now;
        (now >= RESTARTS).then_some(())
    });
}
