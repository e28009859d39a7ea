//! Pods as the conformance tests make them and look at them.

use super::Cluster;
use super::busybox::BUSYBOX;
use serde_json::{Value, json};

/// Puts the fields of `more` over those of `base`.
fn over(base: &mut Value, more: &Value) {
    for (key, value) in more.as_object().expect("fields come as an object") {
        base[key] = value.clone();
    }
}

/// A pod with the container `main`. `container` and `spec` say what differs from an endless busybox.
pub fn pod(name: &str, container: &Value, spec: &Value) -> Value {
    let mut main = json!({"name": "main", "image": BUSYBOX, "command": ["sleep", "1000000"]});
    over(&mut main, container);
    let mut all = json!({"terminationGracePeriodSeconds": 1, "containers": [main]});
    over(&mut all, spec);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": all})
}

/// A pod whose container runs a script once.
pub fn once(name: &str, script: &str, container: &Value, spec: &Value) -> Value {
    let mut fields = json!({"command": ["sh", "-c", script]});
    over(&mut fields, container);
    let mut all = json!({"restartPolicy": "Never"});
    over(&mut all, spec);
    pod(name, &fields, &all)
}

/// `kubectl create` of many objects at once.
pub fn create(cluster: &Cluster, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    cluster.kubectl_with(&["create", "-f", "-"], &list.to_string());
}

/// What the API server answers to an object that it must refuse.
pub fn refused(cluster: &Cluster, object: &Value) -> String {
    let output = cluster.try_kubectl_with(&["create", "-f", "-"], &object.to_string());
    assert!(!output.status.success(), "was taken: {object}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A ConfigMap.
pub fn config_map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A Secret of plain texts.
pub fn secret(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

/// The status of a container of any kind; `null` where there is none yet.
pub fn container(cluster: &Cluster, pod: &str, name: &str) -> Value {
    container_of(&cluster.get(&["pod", pod]), name)
}

/// The same in a pod that was read before.
pub fn container_of(pod: &Value, name: &str) -> Value {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.iter().flat_map(|k| pod["status"][k].as_array().into_iter().flatten());
    all.find(|c| c["name"] == name).cloned().unwrap_or_default()
}

/// How often a container was restarted.
pub fn restarts(cluster: &Cluster, pod: &str, name: &str) -> i64 {
    container(cluster, pod, name)["restartCount"].as_i64().unwrap_or_default()
}

/// A condition of a pod that was read before.
pub fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// Waits until a pod has ended well and returns the log of `main`.
pub fn succeeded(cluster: &Cluster, pod: &str) -> String {
    let phase = cluster.finished(pod);
    let log = cluster.kubectl(&["logs", pod, "-c", "main"]);
    assert_eq!(phase, "Succeeded", "{pod}, which said:\n{log}");
    log
}

/// Runs a script in `main` of a running pod.
pub fn sh(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.kubectl(&["exec", pod, "-c", "main", "--", "sh", "-c", script])
}

/// Waits until a script in `main` prints `wanted`.
pub fn becomes(cluster: &Cluster, pod: &str, script: &str, wanted: &str) {
    cluster.wait_for(&format!("{script:?} in {pod} prints {wanted:?}"), || {
        let output = cluster.try_kubectl(&["exec", pod, "-c", "main", "--", "sh", "-c", script]);
        (String::from_utf8_lossy(&output.stdout) == wanted).then_some(())
    });
}

/// Waits for an event about a pod whose message contains `message`.
pub fn event(cluster: &Cluster, pod: &str, reason: &str, message: &str) {
    let selector = format!("--field-selector=involvedObject.name={pod},reason={reason}");
    cluster.wait_for(&format!("event {reason} of {pod}: {message}"), || {
        let events = cluster.jsonpath(&["events", &selector], "{range .items[*]}{.message}{\"\\n\"}{end}");
        events.contains(message).then_some(())
    });
}

/// Waits until a container waits for `reason`, and returns the message that goes with it.
pub fn waits(cluster: &Cluster, pod: &str, name: &str, reason: &str) -> String {
    cluster.wait_for(&format!("{pod} waits for {reason}"), || {
        let waiting = &container(cluster, pod, name)["state"]["waiting"];
        (waiting["reason"] == reason).then(|| waiting["message"].as_str().unwrap_or_default().to_owned())
    })
}

/// Seconds from one time to a later one of the same day (or the next).
pub fn between(earlier: &Value, later: &Value) -> i64 {
    let clock = |time: &Value| {
        let text = time.as_str().unwrap_or_else(|| panic!("{time} is no time")).trim_end_matches('Z');
        let (_, clock) = text.split_once('T').expect("date and time");
        clock.split(':').fold(0, |sum, part| sum * 60 + part.parse::<i64>().unwrap())
    };
    (clock(later) - clock(earlier)).rem_euclid(86_400)
}
