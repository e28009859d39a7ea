//! Conformance: ConfigMap, Secret, downward API and image volumes, `subPath`.

mod cluster;

use cluster::pods::{becomes, config_map, container, create, event, once, pod, secret, sh, succeeded};
use cluster::{Cluster, busybox};
use serde_json::{Value, json};

#[test]
fn volumes() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.kubectl(&["create", "namespace", "other"]);
    create(&cluster, &sources());
    let mut same_name = secret("content", &json!({"data-1": "of-another-namespace"}));
    same_name["metadata"]["namespace"] = json!("other");
    create(&cluster, &[same_name]);
    let files = ["configMap", "secret"].map(file_pods).concat();
    create(
        &cluster,
        &[files, changing_pods(), downward_pods(), sub_path_pods(), image_pods(), wrapper_pods()].concat(),
    );
    for kind in ["configMap", "secret"] {
        file_modes(&cluster, kind);
    }
    binary_data(&cluster);
    updates(&cluster);
    immutability(&cluster);
    downward_values(&cluster);
    downward_updates(&cluster);
    sub_paths(&cluster);
    images(&cluster);
    wrappers(&cluster);
}

fn sources() -> Vec<Value> {
    let data = json!({"data-1": "value-1", "data-2": "value-2", "data-3": "value-3"});
    let mut binary = config_map("binary", &json!({"data-1": "value-1"}));
    binary["binaryData"] = json!({"dump.bin": "3q3A3g=="});
    vec![
        config_map("content", &data),
        secret("content", &data),
        binary,
        config_map("updated", &json!({"data-1": "value-1"})),
        secret("updated", &json!({"data-1": "value-1"})),
        config_map("deleted", &json!({"data-1": "value-1"})),
        secret("deleted", &json!({"data-1": "value-1"})),
    ]
}

/// The source of a volume of either kind.
fn volume(kind: &str, name: &str, source: &str, more: &Value) -> Value {
    let mut fields = more.clone();
    fields[if kind == "secret" { "secretName" } else { "name" }] = json!(source);
    json!({"name": name, kind: fields})
}

fn short(kind: &str) -> &'static str {
    if kind == "secret" { "secret" } else { "map" }
}

/// Pods that print the content and the mode of one file and end.
fn file_pods(kind: &str) -> Vec<Value> {
    let read = |name: &str, path: &str, source: Value, spec: Value| {
        let mut spec = spec;
        spec["volumes"] = json!([volume(kind, "v", "content", &source)]);
        let script = format!("cat /etc/v/{path}; stat -L -c ' %A' /etc/v/{path}");
        once(
            &format!("{}-{name}", short(kind)),
            &script,
            &json!({"volumeMounts": [{"name": "v", "mountPath": "/etc/v", "readOnly": true}]}),
            &spec,
        )
    };
    let mapped = json!({"items": [{"key": "data-2", "path": "path/to/data-2"}]});
    let mapped_mode = json!({"items": [{"key": "data-2", "path": "path/to/data-2", "mode": 0o400}]});
    let user = || json!({"securityContext": {"runAsUser": 1000}});
    let group = || json!({"securityContext": {"runAsUser": 1000, "fsGroup": 1001}});
    let mut twice = once(
        &format!("{}-twice", short(kind)),
        "cat /etc/v/data-1 /etc/w/data-1",
        &json!({"volumeMounts": [{"name": "v", "mountPath": "/etc/v", "readOnly": true}, {"name": "w", "mountPath": "/etc/w", "readOnly": true}]}),
        &json!({}),
    );
    twice["spec"]["volumes"] =
        json!([volume(kind, "v", "content", &json!({})), volume(kind, "w", "content", &json!({}))]);
    vec![
        read("default", "data-1", json!({}), json!({})),
        read("user", "data-1", json!({}), user()),
        read("group", "data-1", json!({"defaultMode": 0o440}), group()),
        read("mode", "data-1", json!({"defaultMode": 0o400}), json!({})),
        read("mapped", "path/to/data-2", mapped.clone(), json!({})),
        read("mapped-user", "path/to/data-2", mapped, user()),
        read("mapped-mode", "path/to/data-2", mapped_mode, json!({})),
        twice,
    ]
}

fn file_modes(cluster: &Cluster, kind: &str) {
    for (name, wanted) in [
        // ConfigMap Volume, without mapping
        // Secrets Volume, default
        // Secrets Volume, volume mode default, secret with same name in different namespace
        ("default", "value-1 -rw-r--r--\n"),
        // ConfigMap Volume, without mapping, non-root user
        ("user", "value-1 -rw-r--r--\n"),
        // Secrets Volume, volume mode 0440, fsGroup 1001 and uid 1000
        ("group", "value-1 -r--r-----\n"),
        // ConfigMap Volume, without mapping, volume mode set
        // Secrets Volume, volume mode 0400
        ("mode", "value-1 -r--------\n"),
        // ConfigMap Volume, with mapping
        // Secrets Volume, mapping
        ("mapped", "value-2 -rw-r--r--\n"),
        // ConfigMap Volume, with mapping, non-root user
        ("mapped-user", "value-2 -rw-r--r--\n"),
        // ConfigMap Volume, with mapping, volume mode set
        // Secrets Volume, mapping, volume mode 0400
        ("mapped-mode", "value-2 -r--------\n"),
        // ConfigMap Volume, multiple volume maps
        // Secrets Volume, mapping multiple volume paths
        ("twice", "value-1value-1"),
    ] {
        let pod = format!("{}-{name}", short(kind));
        assert_eq!(succeeded(cluster, &pod), wanted, "{pod}");
    }
}

/// Pods that run on while what they mount changes.
fn changing_pods() -> Vec<Value> {
    let changing = |kind: &str| {
        let optional = json!({"optional": true});
        let mounts = ["created", "updated", "deleted"].map(|n| json!({"name": n, "mountPath": format!("/etc/{n}")}));
        pod(
            &format!("{}-changes", short(kind)),
            &json!({"volumeMounts": mounts}),
            &json!({"volumes": [volume(kind, "created", "created", &optional), volume(kind, "updated", "updated", &optional),
                volume(kind, "deleted", "deleted", &optional)]}),
        )
    };
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/etc/v"}]});
    vec![
        changing("configMap"),
        changing("secret"),
        pod("map-binary", &mount, &json!({"volumes": [volume("configMap", "v", "binary", &json!({}))]})),
    ]
}

fn binary_data(cluster: &Cluster) {
    // ConfigMap Volume, text data, binary data
    cluster.ready("map-binary");
    assert_eq!(sh(cluster, "map-binary", "cat /etc/v/data-1; od -An -tx1 /etc/v/dump.bin"), "value-1 de ad c0 de\n");
}

fn updates(cluster: &Cluster) {
    // ConfigMap Volume, update
    // ConfigMap Volume, create, update and delete
    // Secrets Volume, create, update and delete
    for (pod, kind, value) in [("map-changes", "configmap", "value-2"), ("secret-changes", "secret", "dmFsdWUtMg==")] {
        cluster.ready(pod);
        let look = "cat /etc/created/data-1 /etc/updated/data-1 /etc/deleted/data-1 2>/dev/null; true";
        assert_eq!(sh(cluster, pod, look), "value-1value-1");
        let patch = json!({"data": {"data-1": value}}).to_string();
        cluster.kubectl(&["patch", kind, "updated", "-p", &patch]);
        cluster.kubectl(&["delete", kind, "deleted"]);
        let data = json!({"data-1": "value-new"});
        create(cluster, &[if kind == "secret" { secret("created", &data) } else { config_map("created", &data) }]);
        becomes(cluster, pod, look, "value-newvalue-2");
        becomes(cluster, pod, "ls /etc/deleted", "");
    }
}

fn immutability(cluster: &Cluster) {
    // ConfigMap Volume, immutability
    // Secrets Volume, immutability
    for (kind, named, wrong) in [("configmap", "ConfigMap", "new"), ("secret", "Secret", "bmV3")] {
        let data = json!({"key": "value"});
        create(cluster, &[if kind == "secret" { secret("fixed", &data) } else { config_map("fixed", &data) }]);
        let patch = |patch: Value| cluster.try_kubectl(&["patch", kind, "fixed", "-p", &patch.to_string()]);
        assert!(patch(json!({"data": {"key2": "dmFsdWU="}})).status.success());
        assert!(patch(json!({"immutable": true})).status.success());
        for (change, field) in [(json!({"data": {"key": wrong}}), "data"), (json!({"immutable": false}), "immutable")] {
            let output = patch(change);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let wanted = format!(
                "The {named} \"fixed\" is invalid: {field}: Forbidden: field is immutable when `immutable` is set"
            );
            assert!(!output.status.success() && error.contains(&wanted), "{error}");
        }
        assert!(patch(json!({"metadata": {"labels": {"label1": "value1"}}})).status.success());
        cluster.kubectl(&["delete", kind, "fixed"]);
    }
}

fn downward_pods() -> Vec<Value> {
    let spec = |items: Value, mode: Option<i32>| {
        let mut source = json!({"items": items});
        if let Some(mode) = mode {
            source["defaultMode"] = json!(mode);
        }
        json!({"volumes": [{"name": "info", "downwardAPI": source}]})
    };
    let mount = json!({"volumeMounts": [{"name": "info", "mountPath": "/etc/podinfo"}]});
    let resource = |path: &str, which: &str, divisor: &str| json!({"path": path, "resourceFieldRef": {"containerName": "main", "resource": which, "divisor": divisor}});
    let field = |path: &str, which: &str| json!({"path": path, "fieldRef": {"fieldPath": which}});
    let all = json!([
        resource("cpu_limit", "limits.cpu", "1"),
        resource("cpu_request", "requests.cpu", "1m"),
        resource("memory_limit", "limits.memory", "1"),
        resource("memory_request", "requests.memory", "1Mi")
    ]);
    let limits = json!({"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}});
    let print = "cd /etc/podinfo; for f in *; do echo $f=$(cat $f) $(stat -L -c %A $f); done";
    let mut with_limits = mount.clone();
    with_limits["resources"] = limits;
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
    let nobody = |mut spec: Value| {
        spec["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 1234});
        spec
    };
    vec![
        once("info-limits", print, &with_limits, &spec(all.clone(), None)),
        once("info-defaults", print, &mount, &spec(json!([all[0], all[2]]), None)),
        once("info-name", print, &mount, &spec(json!([name]), None)),
        once("info-default-mode", print, &mount, &spec(json!([name]), Some(0o400))),
        once("info-item-mode", print, &mount, &spec(json!([own_mode]), None)),
        once("info-group", print, &mount, &nobody(spec(json!([name]), Some(0o440)))),
        changing,
    ]
}

fn downward_values(cluster: &Cluster) {
    // DownwardAPI volume, CPU limits
    // DownwardAPI volume, CPU request
    // DownwardAPI volume, memory limits
    // DownwardAPI volume, memory request
    let limits = succeeded(cluster, "info-limits");
    assert_eq!(
        limits,
        "cpu_limit=2 -rw-r--r--\ncpu_request=250 -rw-r--r--\nmemory_limit=67108864 -rw-r--r--\nmemory_request=32 -rw-r--r--\n"
    );
    // DownwardAPI volume, CPU limit, default node allocatable
    // DownwardAPI volume, memory limit, default node allocatable
    let node = cluster.get(&["node", "node-1"])["status"]["allocatable"].clone();
    let memory = node["memory"].as_str().unwrap().strip_suffix("Ki").expect("memory in Ki").parse::<u64>().unwrap();
    assert_eq!(
        succeeded(cluster, "info-defaults"),
        format!("cpu_limit={} -rw-r--r--\nmemory_limit={} -rw-r--r--\n", node["cpu"].as_str().unwrap(), memory * 1024)
    );
    for (pod, mode) in [
        // DownwardAPI volume, pod name
        ("info-name", "-rw-r--r--"),
        // DownwardAPI volume, volume mode 0400
        ("info-default-mode", "-r--------"),
        // DownwardAPI volume, file mode 0400
        ("info-item-mode", "-r--------"),
        ("info-group", "-r--r-----"),
    ] {
        assert_eq!(succeeded(cluster, pod), format!("podname={pod} {mode}\n"));
    }
}

fn downward_updates(cluster: &Cluster) {
    // DownwardAPI volume, update label
    cluster.ready("info-changes");
    assert_eq!(sh(cluster, "info-changes", "cat /etc/podinfo/labels"), "key1=\"value1\"\nkey2=\"value2\"");
    cluster.kubectl(&["label", "pod", "info-changes", "key3=value3"]);
    becomes(cluster, "info-changes", "cat /etc/podinfo/labels", "key1=\"value1\"\nkey2=\"value2\"\nkey3=\"value3\"");
    // DownwardAPI volume, update annotations
    assert_eq!(sh(cluster, "info-changes", "cat /etc/podinfo/annotations"), "builder=\"bar\"");
    cluster.kubectl(&["annotate", "pod", "info-changes", "builder=foo", "--overwrite"]);
    becomes(cluster, "info-changes", "cat /etc/podinfo/annotations", "builder=\"foo\"");
}

fn sub_path_pods() -> Vec<Value> {
    let read = |name: &str, source: Value, sub: &str, path: &str| {
        once(
            name,
            &format!("cat {path}"),
            &json!({"volumeMounts": [{"name": "v", "mountPath": path, "subPath": sub}]}),
            &json!({"volumes": [source]}),
        )
    };
    let labels = json!({"items": [{"path": "downward/podname", "fieldRef": {"fieldPath": "metadata.name"}}]});
    let projected = json!({"sources": [{"configMap": {"name": "content", "items": [{"key": "data-1", "path": "projected/data-1"}]}}]});
    vec![
        read("sub-map", volume("configMap", "v", "content", &json!({})), "data-1", "/test-volume"),
        // The mount hides a file that the image has.
        read("sub-file", volume("configMap", "v", "content", &json!({})), "data-1", "/etc/passwd"),
        read("sub-secret", volume("secret", "v", "content", &json!({})), "data-1", "/test-volume"),
        read("sub-info", json!({"name": "v", "downwardAPI": labels}), "downward/podname", "/test-volume"),
        read("sub-projected", json!({"name": "v", "projected": projected}), "projected/data-1", "/test-volume"),
    ]
}

fn sub_paths(cluster: &Cluster) {
    // SubPath: Reading content from a configmap volume.
    assert_eq!(succeeded(cluster, "sub-map"), "value-1");
    // SubPath: Reading content from a configmap volume. (over an existing file)
    assert_eq!(succeeded(cluster, "sub-file"), "value-1");
    // SubPath: Reading content from a secret volume.
    assert_eq!(succeeded(cluster, "sub-secret"), "value-1");
    // SubPath: Reading content from a downwardAPI volume.
    assert_eq!(succeeded(cluster, "sub-info"), "sub-info");
    // SubPath: Reading content from a projected volume.
    assert_eq!(succeeded(cluster, "sub-projected"), "value-1");
}

fn image_pods() -> Vec<Value> {
    let image =
        |reference: &str, policy: &str| json!([{"name": "v", "image": {"reference": reference, "pullPolicy": policy}}]);
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/volume"}, {"name": "v", "mountPath": "/sub", "subPath": "etc"}]});
    let whole = json!({"volumeMounts": [{"name": "v", "mountPath": "/volume"}]});
    vec![
        pod("image", &mounts, &json!({"volumes": image(busybox::BUSYBOX, "IfNotPresent")})),
        pod("image-never", &whole, &json!({"volumes": image("nowhere.invalid/data:1", "Never")})),
        pod("image-fails", &whole, &json!({"volumes": image("127.0.0.1:1/data:1", "Always")})),
    ]
}

// Conformance: Image Volume
fn images(cluster: &Cluster) {
    // Image Volume
    cluster.ready("image");
    assert_eq!(
        sh(cluster, "image", "cat /volume/etc/marker /sub/marker; stat -c %F /volume/bin/ls"),
        "markermarkersymbolic link\n"
    );
    let error = cluster.kubectl_error(&["exec", "image", "--", "touch", "/volume/x"]);
    assert!(error.contains("Read-only file system"), "{error}");
    // One that cannot be had holds the container back.
    cluster.wait_for("the image of a volume is missing", || {
        (container(cluster, "image-never", "main")["state"]["waiting"]["reason"] == "ErrImageNeverPull").then_some(())
    });
    event(
        cluster,
        "image-never",
        "ErrImageNeverPull",
        "Container image \"nowhere.invalid/data:1\" is not present with pull policy of Never",
    );
    cluster.wait_for("the image of a volume is not pulled", || {
        let reason = container(cluster, "image-fails", "main")["state"]["waiting"]["reason"].clone();
        (reason == "ImagePullBackOff").then_some(())
    });
    event(cluster, "image-fails", "Failed", "Failed to pull image \"127.0.0.1:1/data:1\"");
    cluster.kubectl(&["delete", "pod", "image", "image-never", "image-fails"]);
}

fn wrapper_pods() -> Vec<Value> {
    let names: Vec<String> = (0..50).map(|i| format!("racey-{i}")).collect();
    let maps = names.iter().map(|n| config_map(n, &json!({"data-1": "value-1"})));
    let volumes: Vec<Value> = names
        .iter()
        .map(|n| volume("configMap", n, n, &json!({"items": [{"key": "data-1", "path": "data-1"}]})))
        .collect();
    let mounts: Vec<Value> = names.iter().map(|n| json!({"name": n, "mountPath": format!("/etc/{n}")})).collect();
    let replicas =
        (0..5).map(|i| pod(&format!("wrapped-{i}"), &json!({"volumeMounts": mounts}), &json!({"volumes": volumes})));
    let both = pod(
        "wrapped-both",
        &json!({"volumeMounts": [{"name": "s", "mountPath": "/etc/s"}, {"name": "c", "mountPath": "/etc/c"}]}),
        &json!({"volumes": [volume("secret", "s", "content", &json!({})), volume("configMap", "c", "content", &json!({}))]}),
    );
    maps.chain(replicas).chain([both]).collect()
}

fn wrappers(cluster: &Cluster) {
    // EmptyDir Wrapper Volume, Secret and ConfigMap volumes, no conflict
    cluster.ready("wrapped-both");
    // EmptyDir Wrapper Volume, ConfigMap volumes, no race
    for i in 0..5 {
        let name = format!("wrapped-{i}");
        cluster.ready(&name);
        assert_eq!(sh(cluster, &name, "cat /etc/racey-*/data-1 | wc -c"), "350\n");
    }
    let failed = "--field-selector=reason=FailedMount";
    assert_eq!(cluster.jsonpath(&["events", failed], "{.items[*].message}"), "");
}
