//! Conformance: what a container's command and environment are made from — variables, ConfigMaps, Secrets, the downward
//! API, files, the image — and `subPathExpr`.

mod cluster;

use cluster::pods::{
    becomes, condition, config_map, container, create, event, once, pod, refused, secret, sh, succeeded, waits,
};
use cluster::{Cluster, GANTRY, busybox, run};
use serde_json::{Value, json};

#[test]
fn environment_and_expansion() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    import_image_with_entrypoint(&cluster);
    create(&cluster, &sources());
    create(&cluster, &[variables(), image_programs(), downward(), sub_paths(), files()].concat());
    lifecycle_of_sources(&cluster);
    expansion(&cluster);
    environment_from_sources(&cluster);
    programs(&cluster);
    downward_environment(&cluster);
    environment_from_files(&cluster);
    sub_path_expressions(&cluster);
}

fn env_field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn env_resource(name: &str, resource: &str) -> Value {
    json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource}}})
}

fn sources() -> Vec<Value> {
    let data = json!({"data_1": "value-1", "data_2": "value-2", "data_3": "value-3"});
    vec![config_map("source", &data), secret("source", &data)]
}

fn variables() -> Vec<Value> {
    let test = json!([{"name": "TEST_VAR", "value": "test-value"}]);
    let script = "TEST_VAR=wrong echo \"$(TEST_VAR)\"";
    let reference = |kind: &str| json!([{"name": "DATA", "valueFrom": {kind: {"name": "source", "key": "data_1"}}}]);
    let all = |kind: &str| json!([{kind: {"name": "source"}}, {"prefix": "p_", kind: {"name": "source"}}]);
    let env = |name: &str, more: Value| {
        let mut fields = json!({"command": ["env"]});
        for (k, v) in more.as_object().unwrap() {
            fields[k] = v.clone();
        }
        once(name, "", &fields, &json!({}))
    };
    vec![
        env(
            "expands-env",
            json!({"env": [{"name": "FOO", "value": "foo-value"}, {"name": "BAR", "value": "bar-value"},
                {"name": "FOOBAR", "value": "$(FOO);;$(BAR)"}]}),
        ),
        once("expands-command", script, &json!({"env": test}), &json!({})),
        once("expands-args", "", &json!({"command": ["sh", "-c"], "args": [script], "env": test}), &json!({})),
        env("map-key", json!({"env": reference("configMapKeyRef")})),
        env("map-all", json!({"envFrom": all("configMapRef")})),
        env("secret-key", json!({"env": reference("secretKeyRef")})),
        env("secret-all", json!({"envFrom": all("secretRef")})),
    ]
}

fn expansion(cluster: &Cluster) {
    // Environment variables, expansion
    let env = succeeded(cluster, "expands-env");
    for line in ["FOO=foo-value", "BAR=bar-value", "FOOBAR=foo-value;;bar-value"] {
        assert!(env.lines().any(|l| l == line), "no {line} in:\n{env}");
    }
    // Environment variables, command expansion
    assert_eq!(succeeded(cluster, "expands-command"), "test-value\n");
    // Environment variables, command argument expansion
    assert_eq!(succeeded(cluster, "expands-args"), "test-value\n");
}

fn environment_from_sources(cluster: &Cluster) {
    // ConfigMap, from environment field
    // Secrets, pod environment field
    for pod in ["map-key", "secret-key"] {
        let env = succeeded(cluster, pod);
        assert!(env.lines().any(|l| l == "DATA=value-1"), "{pod}:\n{env}");
    }
    // ConfigMap, from environment variables
    // Secrets, pod environment from source
    for pod in ["map-all", "secret-all"] {
        let env = succeeded(cluster, pod);
        for n in 1..=3 {
            for prefix in ["", "p_"] {
                let line = format!("{prefix}data_{n}=value-{n}");
                assert!(env.lines().any(|l| l == line), "{pod} without {line}:\n{env}");
            }
        }
    }
}

fn lifecycle_of_sources(cluster: &Cluster) {
    // ConfigMap, with empty-key
    // Secrets, with empty-key
    for (kind, object) in [
        ("ConfigMap", config_map("emptykey", &json!({"": "value-1"}))),
        (
            "Secret",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "emptykey"}, "data": {"": "dmFs"}}),
        ),
    ] {
        let error = refused(cluster, &object);
        assert!(error.contains(&format!("The {kind} \"emptykey\" is invalid: data[]: Invalid value: \"\"")), "{error}");
    }
    // ConfigMap lifecycle
    // Secret patching
    for kind in ["configmap", "secret"] {
        let mut object = if kind == "secret" {
            secret("patched", &json!({"key": "value"}))
        } else {
            config_map("patched", &json!({"key": "value"}))
        };
        object["metadata"]["labels"] = json!({"test-static": "true", "test": "created"});
        create(cluster, &[object]);
        let data = if kind == "secret" { "cGF0Y2hlZA==" } else { "patched" };
        let patch = json!({"metadata": {"labels": {"test": "patched"}}, "data": {"key": data}}).to_string();
        cluster.kubectl(&["patch", kind, "patched", "-p", &patch]);
        let now = cluster.get(&[kind, "patched"]);
        assert_eq!((&now["data"]["key"], &now["metadata"]["labels"]["test"]), (&json!(data), &json!("patched")));
        let list = cluster.get(&[kind, "-A", "-l", "test-static=true"]);
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
        assert_eq!(list["items"][0]["data"]["key"], data);
        let path = format!("/api/v1/namespaces/default/{kind}s?labelSelector=test-static%3Dtrue");
        cluster.kubectl(&["delete", "--raw", &path]);
        assert_eq!(cluster.get(&[kind, "-A", "-l", "test-static=true"])["items"], json!([]));
    }
}

const ENTRY_IMAGE: &str = "test.local/entry:1";

/// An image with entrypoint and arguments of its own.
fn import_image_with_entrypoint(cluster: &Cluster) {
    let layer = busybox::layer("entry");
    let mut config: Value = serde_json::from_slice(&busybox::config(&layer)).unwrap();
    config["config"]["Entrypoint"] = json!(["/bin/echo", "entrypoint"]);
    config["config"]["Cmd"] = json!(["default", "arguments"]);
    let manifest = json!([{"Config": "config.json", "RepoTags": [ENTRY_IMAGE], "Layers": ["layer.tar"]}]).to_string();
    let config = config.to_string();
    let archive = busybox::tar(&[
        ("manifest.json", manifest.as_bytes()),
        ("config.json", config.as_bytes()),
        ("layer.tar", &layer),
    ]);
    let file = cluster.data_dir().join("entry.tar");
    std::fs::write(&file, archive).unwrap();
    run(cluster.inside(GANTRY).args(["image", "import", "--data-dir"]).arg(cluster.data_dir()).arg(&file));
}

fn image_programs() -> Vec<Value> {
    let of = |name: &str, command: &[&str], args: &[&str]| {
        once(name, "", &json!({"image": ENTRY_IMAGE, "command": command, "args": args}), &json!({}))
    };
    vec![
        of("program-default", &[], &[]),
        of("program-args", &[], &["override", "arguments"]),
        of("program-command", &["/bin/echo", "command"], &[]),
        of("program-both", &["/bin/echo", "command"], &["override", "arguments"]),
    ]
}

fn programs(cluster: &Cluster) {
    // Containers, without command and arguments
    assert_eq!(succeeded(cluster, "program-default"), "entrypoint default arguments\n");
    // Containers, with arguments
    assert_eq!(succeeded(cluster, "program-args"), "entrypoint override arguments\n");
    // Containers, with command
    assert_eq!(succeeded(cluster, "program-command"), "command\n");
    // Containers, with command and arguments
    assert_eq!(succeeded(cluster, "program-both"), "command override arguments\n");
}

fn downward() -> Vec<Value> {
    let resources = [
        env_resource("CPU_LIMIT", "limits.cpu"),
        env_resource("MEMORY_LIMIT", "limits.memory"),
        env_resource("CPU_REQUEST", "requests.cpu"),
        env_resource("MEMORY_REQUEST", "requests.memory"),
    ];
    let env = |more: Value| {
        let mut fields = json!({"command": ["env"]});
        for (k, v) in more.as_object().unwrap() {
            fields[k] = v.clone();
        }
        fields
    };
    let fields = [
        env_field("POD_NAME", "metadata.name"),
        env_field("POD_NAMESPACE", "metadata.namespace"),
        env_field("POD_IP", "status.podIP"),
        env_field("POD_IPS", "status.podIPs"),
        env_field("HOST_IP", "status.hostIP"),
        env_field("HOST_IPS", "status.hostIPs"),
        env_field("POD_UID", "metadata.uid"),
        env_field("NODE_NAME", "spec.nodeName"),
        env_field("ACCOUNT", "spec.serviceAccountName"),
    ];
    let limits = json!({"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}});
    vec![
        once("downward-fields", "", &env(json!({"env": fields})), &json!({})),
        once("downward-limits", "", &env(json!({"env": resources, "resources": limits})), &json!({})),
        once("downward-defaults", "", &env(json!({"env": resources[..2]})), &json!({})),
        once("downward-host", "", &env(json!({"env": fields})), &json!({"hostNetwork": true})),
    ]
}

fn value<'a>(env: &'a str, name: &str) -> &'a str {
    let line = env.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name} in:\n{env}"))
}

fn downward_environment(cluster: &Cluster) {
    // DownwardAPI, environment for name, namespace and ip
    // DownwardAPI, environment for host ip
    // DownwardAPI, environment for Pod UID
    for name in ["downward-fields", "downward-host"] {
        let env = succeeded(cluster, name);
        let pod = cluster.get(&["pod", name]);
        let status = |k: &str| pod["status"][k].as_str().unwrap().to_owned();
        assert_eq!(value(&env, "POD_NAME"), name);
        assert_eq!(value(&env, "POD_NAMESPACE"), "default");
        assert_eq!(value(&env, "POD_IP"), status("podIP"));
        assert_eq!(value(&env, "HOST_IP"), status("hostIP"));
        assert_eq!(value(&env, "POD_UID"), pod["metadata"]["uid"].as_str().unwrap());
        assert_eq!(value(&env, "NODE_NAME"), "node-1");
        assert_eq!(value(&env, "ACCOUNT"), "default");
        for (list, variable) in [("podIPs", "POD_IPS"), ("hostIPs", "HOST_IPS")] {
            let ips = pod["status"][list].as_array().unwrap().iter().map(|ip| ip["ip"].as_str().unwrap());
            assert_eq!(value(&env, variable), ips.collect::<Vec<_>>().join(","));
        }
        let same = value(&env, "POD_IP") == value(&env, "HOST_IP");
        assert_eq!(same, name == "downward-host", "{env}");
    }
    // DownwardAPI, environment for CPU and memory limits and requests
    let env = succeeded(cluster, "downward-limits");
    for (name, wanted) in
        [("CPU_LIMIT", "2"), ("CPU_REQUEST", "1"), ("MEMORY_LIMIT", "67108864"), ("MEMORY_REQUEST", "33554432")]
    {
        assert_eq!(value(&env, name), wanted, "{name}");
    }
    // DownwardAPI, environment for default CPU and memory limits and requests
    let env = succeeded(cluster, "downward-defaults");
    let node = cluster.get(&["node", "node-1"]);
    assert_eq!(value(&env, "CPU_LIMIT"), node["status"]["allocatable"]["cpu"].as_str().unwrap());
    let memory = node["status"]["allocatable"]["memory"].as_str().unwrap().strip_suffix("Ki").expect("memory in Ki");
    assert_eq!(value(&env, "MEMORY_LIMIT").parse::<u64>().unwrap(), memory.parse::<u64>().unwrap() * 1024);
}

/// Pods whose init container writes a file of variables.
fn files() -> Vec<Value> {
    let reference = |name: &str, key: &str, optional: bool| {
        let mut selector = json!({"volumeName": "config", "path": "config.env", "key": key});
        if optional {
            selector["optional"] = json!(true);
        }
        json!({"name": name, "valueFrom": {"fileKeyRef": selector}})
    };
    let spec = |text: &str| {
        json!({"restartPolicy": "Never", "volumes": [{"name": "config", "emptyDir": {}}], "initContainers": [{
            "name": "setup", "image": busybox::BUSYBOX, "command": ["sh", "-c", "printf %s \"$TEXT\" > /data/config.env"],
            "env": [{"name": "TEXT", "value": text}], "volumeMounts": [{"name": "config", "mountPath": "/data"}]}]})
    };
    let good = "# settings\nCONFIG_1='value1'\n\n  CONFIG_2='it has\ntwo lines' # of text\nCONFIG_3='$(CONFIG_1)'\n";
    let lifecycle = json!({"postStart": {"exec": {"command": ["sh", "-c", "echo \"post $ONE\" > /tmp/post"]}}});
    let wait = "until [ -e /tmp/post ]; do sleep 0.1; done; cat /tmp/post; echo \"$ONE|$TWO|$THREE|${MISSING-unset}\"";
    let env = json!([
        reference("ONE", "CONFIG_1", false),
        reference("TWO", "CONFIG_2", false),
        reference("THREE", "CONFIG_3", false),
        reference("MISSING", "NOT_THERE", true)
    ]);
    vec![
        once("file", wait, &json!({"env": env, "lifecycle": lifecycle}), &spec(good)),
        once("file-missing", "true", &json!({"env": [reference("X", "NOT_THERE", false)]}), &spec(good)),
        once("file-bad", "true", &json!({"env": [reference("X", "CONFIG_1", false)]}), &spec("CONFIG_1=bare\n")),
    ]
}

fn environment_from_files(cluster: &Cluster) {
    // FileKeyRef, basic functionality; optional key; lifecycle hooks
    assert_eq!(succeeded(cluster, "file"), "post value1\nvalue1|it has\ntwo lines|$(CONFIG_1)|unset\n");
    // FileKeyRef, key that is not there
    for pod in ["file-missing", "file-bad"] {
        waits(cluster, pod, "main", "CreateContainerConfigError");
    }
    event(cluster, "file-missing", "Failed", "Error: environment variable key \"NOT_THERE\" not found in file \"");
    event(cluster, "file-bad", "Failed", "Error: couldn't parse env file");
    // FileKeyRef, invalid volume name; non-emptyDir volume
    let bad = |volume: Value| {
        once(
            "file-refused",
            "true",
            &json!({"env": [{"name": "X", "valueFrom": {"fileKeyRef": {"volumeName": "config", "path": "f", "key": "K"}}}]}),
            &json!({"volumes": [volume]}),
        )
    };
    refused(cluster, &bad(json!({"name": "other", "emptyDir": {}})));
    refused(cluster, &bad(json!({"name": "config", "secret": {"secretName": "source"}})));
}

fn sub_paths() -> Vec<Value> {
    let work = json!({"volumes": [{"name": "work", "emptyDir": {}}]});
    let mut once_with = json!({"restartPolicy": "Never"});
    once_with["volumes"] = work["volumes"].clone();
    let mount = |path: &str, expression: &str| json!({"name": "work", "mountPath": path, "subPathExpr": expression});
    let whole = |path: &str| json!({"name": "work", "mountPath": path});
    let fixed = |text: &str| json!([{"name": "POD_NAME", "value": text}]);
    let annotated =
        json!([env_field("POD_NAME", "metadata.name"), env_field("ANNOTATION", "metadata.annotations['mysubpath']")]);
    let expression = "$(ANNOTATION)/$(POD_NAME)";
    let mut writes = pod(
        "subpath-writes",
        &json!({"env": annotated, "volumeMounts": [mount("/subpath_mount", expression), whole("/volume_mount")]}),
        &work,
    );
    writes["metadata"]["annotations"] = json!({"mysubpath": "mypath"});
    let mut late =
        pod("subpath-late", &json!({"env": annotated, "volumeMounts": [mount("/subpath_mount", expression)]}), &work);
    late["metadata"]["annotations"] = json!({"notmysubpath": "mypath"});
    let refused = |name: &str, text: &str| {
        pod(name, &json!({"env": fixed(text), "volumeMounts": [mount("/logscontainer", "$(POD_NAME)")]}), &once_with)
    };
    vec![
        once(
            "subpath-expands",
            "test -d /testcontainer/foo; echo $?",
            &json!({"env": fixed("foo"), "volumeMounts": [mount("/logscontainer", "$(POD_NAME)"), whole("/testcontainer")]}),
            &work,
        ),
        refused("subpath-absolute", "/tmp"),
        refused("subpath-dots", ".."),
        writes,
        late,
    ]
}

fn sub_path_expressions(cluster: &Cluster) {
    // VolumeSubpathEnvExpansion, subpath expansion
    assert_eq!(succeeded(cluster, "subpath-expands"), "0\n");
    // VolumeSubpathEnvExpansion, subpath with absolute path
    waits(cluster, "subpath-absolute", "main", "CreateContainerConfigError");
    // VolumeSubpathEnvExpansion, subpath with backticks
    waits(cluster, "subpath-dots", "main", "CreateContainerConfigError");
    // VolumeSubpathEnvExpansion, subpath ready from failed state
    waits(cluster, "subpath-late", "main", "CreateContainerConfigError");
    let pod = cluster.get(&["pod", "subpath-late"]);
    assert_eq!(condition(&pod, "Ready").unwrap()["status"], "False");
    cluster.kubectl(&["annotate", "pod", "subpath-late", "mysubpath=mypath"]);
    cluster.ready("subpath-late");
    // VolumeSubpathEnvExpansion, subpath test writes
    cluster.ready("subpath-writes");
    sh(cluster, "subpath-writes", "touch /volume_mount/mypath/subpath-writes/test.log");
    assert_eq!(sh(cluster, "subpath-writes", "ls /subpath_mount"), "test.log\n");
    cluster.kubectl(&["annotate", "pod", "subpath-writes", "mysubpath=mynewpath", "--overwrite"]);
    becomes(cluster, "subpath-writes", "ls /subpath_mount", "test.log\n");
    assert_eq!(container(cluster, "subpath-writes", "main")["restartCount"], 0);
    // What the expression is now does not matter for taking the volumes down.
    cluster.kubectl(&["delete", "pod", "subpath-writes", "subpath-late", "subpath-absolute"]);
}
