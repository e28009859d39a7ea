//! Conformance: emptyDir volumes — media, modes, users, sharing.

mod cluster;

use cluster::pods::{create, once, pod, sh, succeeded};
use cluster::{Cluster, busybox};
use serde_json::{Value, json};

const MODES: [(&str, &str); 3] = [("0644", "-rw-r--r--"), ("0666", "-rw-rw-rw-"), ("0777", "-rwxrwxrwx")];

#[test]
fn empty_dirs() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let mut all = vec![shared_pod(), limited_pod()];
    for medium in ["Memory", ""] {
        all.extend(mode_pods(medium));
    }
    create(&cluster, &all);
    for medium in ["Memory", ""] {
        modes(&cluster, medium);
    }
    shared(&cluster);
    limited(&cluster);
}

fn short(medium: &str) -> &'static str {
    if medium == "Memory" { "memory" } else { "disk" }
}

/// For each mode and user a pod that writes a file, gives it the mode and shows it; and one that shows the volume itself.
fn mode_pods(medium: &str) -> Vec<Value> {
    let mount = json!([{"name": "v", "mountPath": "/test-volume"}]);
    let spec = || json!({"volumes": [{"name": "v", "emptyDir": {"medium": medium}}]});
    let mut out = vec![once(
        &format!("{}-itself", short(medium)),
        "stat -c %A /test-volume; stat -f -c %T /test-volume",
        &json!({"volumeMounts": mount}),
        &spec(),
    )];
    for (mode, _) in MODES {
        for user in [0, 1001] {
            let script = format!(
                "umask 0; echo mount-tester > /test-volume/test-file; chmod {mode} /test-volume/test-file; \
                 stat -c '%A %u' /test-volume/test-file; cat /test-volume/test-file; stat -f -c %T /test-volume"
            );
            out.push(once(
                &format!("{}-{mode}-{user}", short(medium)),
                &script,
                &json!({"volumeMounts": mount, "securityContext": {"runAsUser": user}}),
                &spec(),
            ));
        }
    }
    out
}

fn modes(cluster: &Cluster, medium: &str) {
    // EmptyDir, medium default, volume mode default
    // EmptyDir, medium memory, volume mode default
    let itself = succeeded(cluster, &format!("{}-itself", short(medium)));
    let (mode, kind) = itself.trim_end().split_once('\n').expect("two lines");
    assert_eq!(mode, "drwxrwxrwx");
    assert_eq!(kind == "tmpfs", medium == "Memory", "{kind}");
    // EmptyDir, medium default, volume mode 0644
    // EmptyDir, medium default, volume mode 0666
    // EmptyDir, medium default, volume mode 0777
    // EmptyDir, medium memory, volume mode 0644
    // EmptyDir, medium memory, volume mode 0644, non-root user
    // EmptyDir, medium memory, volume mode 0666
    // EmptyDir, medium memory, volume mode 0666,, non-root user
    // EmptyDir, medium memory, volume mode 0777
    // EmptyDir, medium memory, volume mode 0777, non-root user
    for (mode, shown) in MODES {
        for user in [0, 1001] {
            let name = format!("{}-{mode}-{user}", short(medium));
            assert_eq!(succeeded(cluster, &name), format!("{shown} {user}\nmount-tester\n{kind}\n"), "{name}");
        }
    }
}

fn shared_pod() -> Value {
    let mount = json!([{"name": "shared", "mountPath": "/usr/share/volumeshare"}]);
    let mut pod =
        pod("shared", &json!({"volumeMounts": mount}), &json!({"volumes": [{"name": "shared", "emptyDir": {}}]}));
    let sub = json!({"name": "sub", "image": busybox::BUSYBOX, "volumeMounts": mount, "command":
        ["sh", "-c", "echo Hello from the busy-box sub-container > /usr/share/volumeshare/shareddata.txt; exec sleep 1000000"]});
    pod["spec"]["containers"].as_array_mut().unwrap().push(sub);
    pod
}

fn shared(cluster: &Cluster) {
    // EmptyDir, Shared volumes between containers
    cluster.ready("shared");
    cluster.wait_for("what the neighbour wrote", || {
        let text = sh(cluster, "shared", "cat /usr/share/volumeshare/shareddata.txt 2>/dev/null; true");
        (text == "Hello from the busy-box sub-container\n").then_some(())
    });
}

fn limited_pod() -> Value {
    // A memory volume takes no more than its limit, and no more than the pod's memory.
    once(
        "limited",
        "for v in small own; do df -k /$v | tail -n1 | awk '{print $2}'; done",
        &json!({"resources": {"limits": {"memory": "32Mi"}},
            "volumeMounts": [{"name": "small", "mountPath": "/small"}, {"name": "own", "mountPath": "/own"}]}),
        &json!({"volumes": [{"name": "small", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}},
            {"name": "own", "emptyDir": {"medium": "Memory"}}]}),
    )
}

fn limited(cluster: &Cluster) {
    assert_eq!(succeeded(cluster, "limited"), "4096\n32768\n");
}
