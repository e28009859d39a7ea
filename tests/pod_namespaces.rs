//! Which namespaces a pod's containers share: among each other, with the host, and with the container one debugs.

mod cluster;

use cluster::Cluster;
use cluster::busybox::{BUSYBOX, import};

/// What a namespace of a container is, as its kernel names it.
fn namespace(cluster: &Cluster, pod: &str, container: &str, kind: &str) -> String {
    let link = format!("/proc/self/ns/{kind}");
    cluster.kubectl(&["exec", pod, "-c", container, "--", "readlink", &link]).trim().to_owned()
}

/// The node's own.
fn of_node(cluster: &Cluster, kind: &str) -> String {
    cluster::run(cluster.inside("readlink").arg(format!("/proc/self/ns/{kind}"))).trim().to_owned()
}

fn processes(cluster: &Cluster, pod: &str, container: &str) -> String {
    cluster.kubectl(&["exec", pod, "-c", container, "--", "ps", "-o", "pid,args"])
}

#[test]
fn shared_as_asked() {
    let cluster = Cluster::start();
    import(&cluster);
    let pod = |name: &str, settings: &str| {
        let container =
            |c: &str, seconds: &str| format!("{{name: {c}, image: '{BUSYBOX}', command: [sleep, '{seconds}']}}");
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, {settings}
               containers: [{}, {}]}}}}",
            container("a", "11111"),
            container("b", "22222")
        ));
    };
    pod("plain", "");
    pod("shared", "shareProcessNamespace: true,");
    pod("host-pid", "hostPID: true,");
    pod("host-ipc", "hostIPC: true,");
    pod("host-network", "hostNetwork: true,");
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod", "--all"]);

    // Network, names and messages belong to the pod, processes to the container.
    for kind in ["net", "ipc", "uts", "pid", "mnt"] {
        let (a, b) = (namespace(&cluster, "plain", "a", kind), namespace(&cluster, "plain", "b", kind));
        assert_ne!(a, of_node(&cluster, kind), "{kind}");
        assert_eq!(a == b, matches!(kind, "net" | "ipc" | "uts"), "{kind}");
    }
    let seen = processes(&cluster, "plain", "a");
    assert!(seen.contains(" 1 sleep 11111") && !seen.contains("22222"), "{seen}");

    // What keeps the processes beside pods small is not inherited by containers.
    let status = cluster.kubectl(&["exec", "plain", "-c", "a", "--", "cat", "/proc/1/status"]);
    assert!(status.contains("THP_enabled:\t1\n"), "{status}");

    let seen = processes(&cluster, "shared", "a");
    assert!(seen.contains("sleep 11111") && seen.contains("sleep 22222"), "{seen}");
    assert!(!seen.contains(" 1 sleep"), "process 1 is the sandbox':\n{seen}");
    // One container's processes may be signalled from another; the pod goes on.
    let kill = "kill -9 $(ps -o pid,args | awk '/sleep 2222[2]/ {print $1}')";
    cluster.kubectl(&["exec", "shared", "-c", "a", "--", "sh", "-c", kill]);
    cluster.wait_for("the other container is made anew", || {
        let restarts = cluster.jsonpath(&["pod", "shared"], "{.status.containerStatuses[?(@.name=='b')].restartCount}");
        (restarts == "1").then_some(())
    });
    assert_eq!(cluster.jsonpath(&["pod", "shared"], "{.status.containerStatuses[?(@.name=='a')].restartCount}"), "0");

    for (name, kind, others) in [
        ("host-pid", "pid", ["net", "ipc"]),
        ("host-ipc", "ipc", ["net", "pid"]),
        ("host-network", "net", ["ipc", "pid"]),
    ] {
        assert_eq!(namespace(&cluster, name, "a", kind), of_node(&cluster, kind), "{name}");
        for other in others {
            assert_ne!(namespace(&cluster, name, "a", other), of_node(&cluster, other), "{name} {other}");
        }
    }
    let node = cluster.jsonpath(&["pod", "host-network"], "{.status.hostIP}");
    assert_eq!(cluster.jsonpath(&["pod", "host-network"], "{.status.podIP}"), node);
    let first = std::fs::read_to_string("/proc/1/comm").unwrap();
    assert_eq!(cluster.kubectl(&["exec", "host-pid", "-c", "a", "--", "cat", "/proc/1/comm"]), first);

    // A debugging container sees its target's processes, and nobody else's.
    let debug = ["debug", "plain", "--image", BUSYBOX, "--target", "a", "-c", "debugger", "--", "sleep", "33333"];
    cluster.kubectl(&debug);
    cluster.wait_for("the debugger runs", || {
        let running = cluster.jsonpath(&["pod", "plain"], "{.status.ephemeralContainerStatuses[0].state.running}");
        (!running.is_empty()).then_some(())
    });
    let seen = processes(&cluster, "plain", "debugger");
    assert!(seen.contains(" 1 sleep 11111") && seen.contains("33333") && !seen.contains("22222"), "{seen}");
}
