//! Conformance: projected volumes — ConfigMaps, Secrets, the downward API, and all of them in one.

mod cluster;

use cluster::pods::{becomes, config_map, create, once, pod, secret, sh, succeeded};
use cluster::{Cluster, busybox};
use serde_json::{Value, json};

#[test]
fn projected_volumes() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let data = json!({"data-1": "value-1", "data-2": "value-2"});
    let changing = json!({"data-1": "value-1"});
    create(
        &cluster,
        &[
            config_map("content", &data),
            secret("content", &data),
            config_map("updated", &changing),
            secret("updated", &changing),
            config_map("deleted", &changing),
            secret("deleted", &changing),
        ],
    );
    let files = ["configMap", "secret"].map(file_pods).concat();
    create(&cluster, &[files, changing_pods(), downward_pods(), vec![combined_pod()]].concat());
    for kind in ["configMap", "secret"] {
        file_modes(&cluster, kind);
    }
    updates(&cluster);
    downward_values(&cluster);
    downward_updates(&cluster);
    combined(&cluster);
}

fn short(kind: &str) -> &'static str {
    if kind == "secret" { "secret" } else { "map" }
}

/// A projected volume of one source.
fn volume(name: &str, kind: &str, source: &Value, mode: Option<i32>) -> Value {
    let mut projected = json!({"sources": [{kind: source}]});
    if let Some(mode) = mode {
        projected["defaultMode"] = json!(mode);
    }
    json!({"name": name, "projected": projected})
}

/// Pods that print the content and the mode of one file and end.
fn file_pods(kind: &str) -> Vec<Value> {
    let read = |name: &str, path: &str, volume: Value, mut spec: Value| {
        spec["volumes"] = json!([volume]);
        let script = format!("cat /etc/v/{path}; stat -L -c ' %A' /etc/v/{path}");
        once(
            &format!("{}-{name}", short(kind)),
            &script,
            &json!({"volumeMounts": [{"name": "v", "mountPath": "/etc/v", "readOnly": true}]}),
            &spec,
        )
    };
    let plain = json!({"name": "content"});
    let mapped = json!({"name": "content", "items": [{"key": "data-2", "path": "path/to/data-2"}]});
    let mapped_mode = json!({"name": "content", "items": [{"key": "data-2", "path": "path/to/data-2", "mode": 0o400}]});
    let user = || json!({"securityContext": {"runAsUser": 1000}});
    let group = json!({"securityContext": {"runAsUser": 1000, "fsGroup": 1001}});
    let twice = once(
        &format!("{}-twice", short(kind)),
        "cat /etc/v/data-1 /etc/w/data-1",
        &json!({"volumeMounts": [{"name": "v", "mountPath": "/etc/v", "readOnly": true}, {"name": "w", "mountPath": "/etc/w", "readOnly": true}]}),
        &json!({"volumes": [volume("v", kind, &plain, None), volume("w", kind, &plain, None)]}),
    );
    vec![
        read("default", "data-1", volume("v", kind, &plain, None), json!({})),
        read("user", "data-1", volume("v", kind, &plain, None), user()),
        read("group", "data-1", volume("v", kind, &plain, Some(0o440)), group),
        read("mode", "data-1", volume("v", kind, &plain, Some(0o400)), json!({})),
        read("mapped", "path/to/data-2", volume("v", kind, &mapped, None), json!({})),
        read("mapped-user", "path/to/data-2", volume("v", kind, &mapped, None), user()),
        read("mapped-mode", "path/to/data-2", volume("v", kind, &mapped_mode, None), json!({})),
        twice,
    ]
}

fn file_modes(cluster: &Cluster, kind: &str) {
    for (name, wanted) in [
        // Projected Volume, ConfigMap, volume mode default
        // Projected Volume, Secrets, volume mode default
        ("default", "value-1 -rw-r--r--\n"),
        // Projected Volume, ConfigMap, non-root user
        ("user", "value-1 -rw-r--r--\n"),
        // Project Volume, Secrets, non-root, custom fsGroup
        ("group", "value-1 -r--r-----\n"),
        // Projected Volume, ConfigMap, volume mode 0400
        // Projected Volume, Secrets, volume mode 0400
        ("mode", "value-1 -r--------\n"),
        // Projected Volume, ConfigMap, mapped
        // Projected Volume, Secrets, mapped
        ("mapped", "value-2 -rw-r--r--\n"),
        // Projected Volume, ConfigMap, mapped, non-root user
        ("mapped-user", "value-2 -rw-r--r--\n"),
        // Projected Volume, ConfigMap, mapped, volume mode 0400
        // Projected Volume, Secrets, mapped, volume mode 0400
        ("mapped-mode", "value-2 -r--------\n"),
        // Projected Volume, ConfigMap, multiple volume paths
        // Projected Volume, Secrets, mapped, multiple paths
        ("twice", "value-1value-1"),
    ] {
        let pod = format!("{}-{name}", short(kind));
        assert_eq!(succeeded(cluster, &pod), wanted, "{pod}");
    }
}

/// Pods that run on while what they mount changes.
fn changing_pods() -> Vec<Value> {
    let names = ["created", "updated", "deleted"];
    let of = |kind: &str| {
        let mounts = names.map(|n| json!({"name": n, "mountPath": format!("/etc/{n}")}));
        let volumes = names.map(|n| volume(n, kind, &json!({"name": n, "optional": true}), None));
        pod(&format!("{}-changes", short(kind)), &json!({"volumeMounts": mounts}), &json!({"volumes": volumes}))
    };
    vec![of("configMap"), of("secret")]
}

fn updates(cluster: &Cluster) {
    // Projected Volume, ConfigMap, update
    // Projected Volume, ConfigMap, create, update and delete
    // Projected Volume, Secrets, create, update delete
    for (pod, kind, value) in [("map-changes", "configmap", "value-2"), ("secret-changes", "secret", "dmFsdWUtMg==")] {
        cluster.ready(pod);
        let look = "cat /etc/created/data-1 /etc/updated/data-1 /etc/deleted/data-1 2>/dev/null; true";
        assert_eq!(sh(cluster, pod, look), "value-1value-1");
        cluster.kubectl(&["patch", kind, "updated", "-p", &json!({"data": {"data-1": value}}).to_string()]);
        cluster.kubectl(&["delete", kind, "deleted"]);
        let data = json!({"data-1": "value-new"});
        create(cluster, &[if kind == "secret" { secret("created", &data) } else { config_map("created", &data) }]);
        becomes(cluster, pod, look, "value-newvalue-2");
        becomes(cluster, pod, "ls /etc/deleted", "");
    }
}

fn downward_pods() -> Vec<Value> {
    let spec = |items: Value, mode: Option<i32>| json!({"volumes": [volume("info", "downwardAPI", &json!({"items": items}), mode)]});
    let mount = json!({"volumeMounts": [{"name": "info", "mountPath": "/etc/podinfo"}]});
    let resource = |path: &str, which: &str, divisor: &str| json!({"path": path, "resourceFieldRef": {"containerName": "main", "resource": which, "divisor": divisor}});
    let field = |path: &str, which: &str| json!({"path": path, "fieldRef": {"fieldPath": which}});
    let all = json!([
        resource("cpu_limit", "limits.cpu", "1m"),
        resource("cpu_request", "requests.cpu", "1"),
        resource("memory_limit", "limits.memory", "1Mi"),
        resource("memory_request", "requests.memory", "1")
    ]);
    let print = "cd /etc/podinfo; for f in *; do echo $f=$(cat $f) $(stat -L -c %A $f); done";
    let mut with_limits = mount.clone();
    with_limits["resources"] =
        json!({"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}});
    let mut changing = pod(
        "info-changes",
        &mount,
        &spec(json!([field("labels", "metadata.labels"), field("annotations", "metadata.annotations")]), None),
    );
    changing["metadata"]["labels"] = json!({"key1": "value1", "key2": "value2"});
    changing["metadata"]["annotations"] = json!({"builder": "bar"});
    let name = field("podname", "metadata.name");
    let mut own_mode = name.clone();
    own_mode["mode"] = json!(0o400);
    vec![
        once("info-limits", print, &with_limits, &spec(all.clone(), None)),
        once("info-defaults", print, &mount, &spec(json!([all[0], all[2]]), None)),
        once("info-name", print, &mount, &spec(json!([name]), None)),
        once("info-default-mode", print, &mount, &spec(json!([name]), Some(0o400))),
        once("info-item-mode", print, &mount, &spec(json!([own_mode]), None)),
        changing,
    ]
}

fn downward_values(cluster: &Cluster) {
    // Projected Volume, DownwardAPI, CPU limits
    // Projected Volume, DownwardAPI, CPU request
    // Projected Volume, DownwardAPI, memory limits
    // Projected Volume, DownwardAPI, memory request
    assert_eq!(
        succeeded(cluster, "info-limits"),
        "cpu_limit=1250 -rw-r--r--\ncpu_request=1 -rw-r--r--\nmemory_limit=64 -rw-r--r--\nmemory_request=33554432 -rw-r--r--\n"
    );
    // Projected Volume, DownwardAPI, CPU limit, node allocatable
    // Projected Volume, DownwardAPI, memory limit, node allocatable
    let node = cluster.get(&["node", "node-1"])["status"]["allocatable"].clone();
    let cpu = node["cpu"].as_str().unwrap().parse::<u64>().expect("whole cores");
    let memory = node["memory"].as_str().unwrap().strip_suffix("Ki").expect("memory in Ki").parse::<u64>().unwrap();
    assert_eq!(
        succeeded(cluster, "info-defaults"),
        format!("cpu_limit={} -rw-r--r--\nmemory_limit={} -rw-r--r--\n", cpu * 1000, memory.div_ceil(1024))
    );
    for (pod, mode) in [
        // Projected Volume, DownwardAPI, pod name
        ("info-name", "-rw-r--r--"),
        // Projected Volume, DownwardAPI, volume mode 0400
        ("info-default-mode", "-r--------"),
        // Projected Volume, DownwardAPI, volume mode 0400
        ("info-item-mode", "-r--------"),
    ] {
        assert_eq!(succeeded(cluster, pod), format!("podname={pod} {mode}\n"));
    }
}

fn downward_updates(cluster: &Cluster) {
    // Projected Volume, DownwardAPI, update labels
    cluster.ready("info-changes");
    assert_eq!(sh(cluster, "info-changes", "cat /etc/podinfo/labels"), "key1=\"value1\"\nkey2=\"value2\"");
    cluster.kubectl(&["label", "pod", "info-changes", "key3=value3"]);
    let wanted = "key1=\"value1\"\nkey2=\"value2\"\nkey3=\"value3\"";
    becomes(cluster, "info-changes", "cat /etc/podinfo/labels", wanted);
    // Projected Volume, DownwardAPI, update annotation
    assert_eq!(sh(cluster, "info-changes", "cat /etc/podinfo/annotations"), "builder=\"bar\"");
    cluster.kubectl(&["annotate", "pod", "info-changes", "builder=foo", "--overwrite"]);
    becomes(cluster, "info-changes", "cat /etc/podinfo/annotations", "builder=\"foo\"");
}

fn combined_pod() -> Value {
    let field = |path: &str, which: &str| json!({"path": path, "fieldRef": {"fieldPath": which}});
    let resource = |path: &str, which: &str| json!({"path": path, "resourceFieldRef": {"containerName": "main", "resource": which}});
    let sources = json!([
        {"downwardAPI": {"items": [field("podname", "metadata.name"), resource("cpu_limit", "limits.cpu"), resource("memory_request", "requests.memory")]}},
        {"secret": {"name": "content", "items": [{"key": "data-1", "path": "secret-data"}]}},
        {"configMap": {"name": "content", "items": [{"key": "data-2", "path": "configmap-data"}]}},
    ]);
    once(
        "all-in-one",
        "cd /all; cat podname; echo; cat cpu_limit; echo; cat memory_request; echo; cat secret-data configmap-data",
        &json!({"volumeMounts": [{"name": "all", "mountPath": "/all"}],
            "resources": {"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}}}),
        &json!({"volumes": [{"name": "all", "projected": {"sources": sources}}]}),
    )
}

fn combined(cluster: &Cluster) {
    // Projected Volume, multiple projections
    assert_eq!(succeeded(cluster, "all-in-one"), "all-in-one\n2\n33554432\nvalue-1value-2");
}
