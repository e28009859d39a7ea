//! Conformance: what security contexts of pods and containers mean for the processes in them.

mod cluster;

use cluster::pods::{container, create, once, pod, sh, succeeded};
use cluster::{Cluster, busybox};
use serde_json::{Value, json};

#[test]
fn security_contexts() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    create(&cluster, &[users(), privileges(), roots(), newer()].concat());
    run_as(&cluster);
    privilege(&cluster);
    root_file_system(&cluster);
    supplemental_groups(&cluster);
    proc_mounts(&cluster);
    recursive_read_only(&cluster);
    host_users(&cluster);
}

fn users() -> Vec<Value> {
    let of_container =
        |name: &str, context: Value| once(name, "id -u; id -g", &json!({"securityContext": context}), &json!({}));
    let of_pod =
        |name: &str, context: Value| once(name, "id -u; id -g", &json!({}), &json!({"securityContext": context}));
    vec![
        of_container("user-65534", json!({"runAsUser": 65534})),
        of_container("user-0", json!({"runAsUser": 0})),
        of_pod("group-pod", json!({"runAsUser": 1001, "runAsGroup": 2002})),
        of_container("group-container", json!({"runAsUser": 1001, "runAsGroup": 2002})),
        once(
            "group-both",
            "id -u; id -g",
            &json!({"securityContext": {"runAsUser": 1001, "runAsGroup": 2002}}),
            &json!({"securityContext": {"runAsUser": 5, "runAsGroup": 6}}),
        ),
        of_container("non-root", json!({"runAsNonRoot": true, "runAsUser": 1000})),
        of_container("non-root-0", json!({"runAsNonRoot": true, "runAsUser": 0})),
        of_container("non-root-unsaid", json!({"runAsNonRoot": true})),
    ]
}

fn run_as(cluster: &Cluster) {
    for (pod, wanted) in [
        // Security Context, runAsUser=65534
        ("user-65534", "65534\n0\n"),
        ("user-0", "0\n0\n"),
        // Security Context, test RunAsGroup at pod level
        ("group-pod", "1001\n2002\n"),
        // Security Context, test RunAsGroup at container level
        ("group-container", "1001\n2002\n"),
        ("group-both", "1001\n2002\n"),
        ("non-root", "1000\n0\n"),
    ] {
        assert_eq!(succeeded(cluster, pod), wanted, "{pod}");
    }
    for (pod, why) in [
        ("non-root-0", "container's runAsUser breaks non-root policy"),
        ("non-root-unsaid", "container has runAsNonRoot and image will run as root"),
    ] {
        cluster.wait_for(&format!("{pod} is held back"), || {
            let waiting = &container(cluster, pod, "main")["state"]["waiting"];
            (waiting["reason"] == "CreateContainerConfigError" && waiting["message"].as_str()?.starts_with(why))
                .then_some(())
        });
    }
}

fn privileges() -> Vec<Value> {
    let link = "ip link add dummy0 type veth peer name dummy1 2>&1; ip link show dummy0 >/dev/null 2>&1 && echo made || echo refused";
    let escalation = |name: &str, context: Value| {
        once(name, "grep NoNewPrivs /proc/self/status; id -u", &json!({"securityContext": context}), &json!({}))
    };
    vec![
        once("privileged", link, &json!({"securityContext": {"privileged": true}}), &json!({})),
        once("unprivileged", link, &json!({"securityContext": {"privileged": false}}), &json!({})),
        escalation("escalation-unsaid", json!({"runAsUser": 1000})),
        escalation("escalation-false", json!({"allowPrivilegeEscalation": false, "runAsUser": 1000})),
        escalation("escalation-true", json!({"allowPrivilegeEscalation": true, "runAsUser": 1000})),
        once(
            "seccomp-unconfined",
            "grep ^Seccomp: /proc/self/status",
            &json!({}),
            &json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
        ),
        once(
            "seccomp-default",
            "grep ^Seccomp: /proc/self/status",
            &json!({}),
            &json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
        ),
        once("seccomp-unsaid", "grep ^Seccomp: /proc/self/status", &json!({}), &json!({})),
    ]
}

fn privilege(cluster: &Cluster) {
    // Security Context, privileged=false.
    let log = succeeded(cluster, "unprivileged");
    assert_eq!(log, "ip: RTNETLINK answers: Operation not permitted\nrefused\n");
    assert_eq!(succeeded(cluster, "privileged"), "made\n");
    // Security Context, allowPrivilegeEscalation=false.
    assert_eq!(succeeded(cluster, "escalation-false"), "NoNewPrivs:\t1\n1000\n");
    assert_eq!(succeeded(cluster, "escalation-unsaid"), "NoNewPrivs:\t0\n1000\n");
    assert_eq!(succeeded(cluster, "escalation-true"), "NoNewPrivs:\t0\n1000\n");
    assert_eq!(succeeded(cluster, "seccomp-unconfined"), "Seccomp:\t0\n");
    assert_eq!(succeeded(cluster, "seccomp-unsaid"), "Seccomp:\t0\n");
    assert_eq!(succeeded(cluster, "seccomp-default"), "Seccomp:\t2\n");
}

fn roots() -> Vec<Value> {
    [false, true]
        .map(|read_only| {
            once(
                &format!("root-{read_only}"),
                "touch /checkfile 2>&1; echo $?",
                &json!({"securityContext": {"readOnlyRootFilesystem": read_only}}),
                &json!({}),
            )
        })
        .to_vec()
}

fn root_file_system(cluster: &Cluster) {
    // Security Context, readOnlyRootFilesystem=false.
    assert_eq!(succeeded(cluster, "root-false"), "0\n");
    assert_eq!(succeeded(cluster, "root-true"), "touch: /checkfile: Read-only file system\n1\n");
}

fn newer() -> Vec<Value> {
    // The image's /etc/group has user 1234 in group 777.
    let groups = |name: &str, policy: Value| {
        let mut context = json!({"runAsUser": 1234, "runAsGroup": 2345, "supplementalGroups": [60000]});
        if !policy.is_null() {
            context["supplementalGroupsPolicy"] = policy;
        }
        pod(
            name,
            &json!({"command": ["sh", "-c", "id -G | tr ' ' '\\n' | sort -n > /tmp/groups; exec sleep 1000000"]}),
            &json!({"securityContext": context}),
        )
    };
    let nested = |name: &str, mode: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/v", "readOnly": true});
        if !mode.is_null() {
            mount["recursiveReadOnly"] = mode;
        }
        pod(name, &json!({"volumeMounts": [mount]}), &json!({"volumes": [{"name": "v", "hostPath": {"path": "/dev"}}]}))
    };
    vec![
        groups("groups-unsaid", Value::Null),
        groups("groups-merge", json!("Merge")),
        groups("groups-strict", json!("Strict")),
        once("proc-default", "grep -c ' /proc/' /proc/self/mountinfo", &json!({}), &json!({})),
        nested("mount-plain", Value::Null),
        nested("mount-recursive", json!("Enabled")),
    ]
}

fn supplemental_groups(cluster: &Cluster) {
    for (name, wanted) in [
        ("groups-unsaid", "777\n2345\n60000\n"),
        ("groups-merge", "777\n2345\n60000\n"),
        ("groups-strict", "2345\n60000\n"),
    ] {
        cluster.ready(name);
        assert_eq!(sh(cluster, name, "cat /tmp/groups"), wanted, "{name}");
        // The status tells what the first process got.
        let user = container(cluster, name, "main")["user"]["linux"].clone();
        assert_eq!((&user["uid"], &user["gid"]), (&json!(1234), &json!(2345)), "{name}");
        let mut groups: Vec<i64> =
            user["supplementalGroups"].as_array().unwrap().iter().map(|g| g.as_i64().unwrap()).collect();
        groups.sort_unstable();
        let wanted: Vec<i64> = wanted.lines().map(|l| l.parse().unwrap()).collect();
        assert_eq!(groups, wanted, "{name}");
    }
    let node = cluster.get(&["node", "node-1"]);
    assert_eq!(node["status"]["features"]["supplementalGroupsPolicy"], true);
}

fn proc_mounts(cluster: &Cluster) {
    let masked: u32 = succeeded(cluster, "proc-default").trim().parse().unwrap();
    assert!(masked > 5, "{masked} paths of /proc are masked");
    // Without masks only in a user namespace of its own.
    let unmasked = once("proc-unmasked", "true", &json!({"securityContext": {"procMount": "Unmasked"}}), &json!({}));
    let error = cluster::pods::refused(cluster, &unmasked);
    assert!(error.contains("spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`"), "{error}");
}

fn recursive_read_only(cluster: &Cluster) {
    for (name, shown, shm) in [("mount-plain", "Disabled", 0), ("mount-recursive", "Enabled", 1)] {
        cluster.ready(name);
        let status = container(cluster, name, "main")["volumeMounts"][0].clone();
        assert_eq!(
            (&status["name"], &status["mountPath"], &status["readOnly"]),
            (&json!("v"), &json!("/v"), &json!(true))
        );
        assert_eq!(status["recursiveReadOnly"], shown, "{name}");
        // What is mounted below the host's directory keeps its own flags, or does not.
        let script = "awk '$5 ~ \"^/v/\" {print ($6 ~ \"^ro\")}' /proc/self/mountinfo | sort -u";
        let flags = sh(cluster, name, script);
        if !flags.is_empty() {
            assert_eq!(flags.contains('0'), shm == 0, "{name}: {flags}");
        }
    }
    let handlers = cluster.get(&["node", "node-1"])["status"]["runtimeHandlers"].clone();
    assert_eq!(handlers[0]["features"]["recursiveReadOnlyMounts"], true, "{handlers}");
}

fn host_users(cluster: &Cluster) {
    // This node has no user namespaces to give, and says so: a pod that demands one does not run without it.
    let handlers = cluster.get(&["node", "node-1"])["status"]["runtimeHandlers"].clone();
    assert_eq!(handlers[0]["features"]["userNamespaces"], false, "{handlers}");
    create(cluster, &[pod("user-namespace", &json!({}), &json!({"hostUsers": false}))]);
    cluster::pods::event(
        cluster,
        "user-namespace",
        "FailedCreatePodSandBox",
        "runtime does not support user namespaces",
    );
    assert_eq!(cluster.jsonpath(&["pod", "user-namespace"], "{.status.phase}"), "Pending");
}
