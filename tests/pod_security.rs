//! What security contexts and limits do to the processes of a container, seen from inside.

mod cluster;

use cluster::Cluster;
use cluster::busybox;
use serde_json::Value;

/// How one container of a pod ended or stands: `.state` of its status.
fn state(cluster: &Cluster, pod: &str, container: &str) -> Value {
    let pod = cluster.get(&["pod", pod]);
    let list = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    list.iter().find(|c| c["name"] == container).map(|c| c["state"].clone()).unwrap_or_default()
}

fn log(cluster: &Cluster, pod: &str, container: &str) -> String {
    cluster.kubectl(&["logs", pod, "-c", container])
}

/// A line of `/proc/self/status`, as a number in hexadecimal.
fn status(log: &str, field: &str) -> u64 {
    let line = log.lines().find_map(|l| l.strip_prefix(&format!("{field}:")));
    u64::from_str_radix(line.unwrap_or_else(|| panic!("no {field} in:\n{log}")).trim(), 16).unwrap()
}

/// Capabilities containers have by default, as containerd and Docker give them.
const DEFAULT: u64 = 0xa80425fb;
const CHOWN: u64 = 1 << 0;
const NET_ADMIN: u64 = 1 << 12;
const SYS_TIME: u64 = 1 << 25;
const NET_BIND_SERVICE: u64 = 1 << 10;

#[test]
fn contexts() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: users}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1234, runAsGroup: 3000, supplementalGroups: [5555]}
  containers:
  - {name: pod, image: test.local/busybox:1, command: [sh, -c, "id -u; id -g; id -G | tr ' ' '\\n' | sort -n; touch /x 2>&1; cat /proc/self/status"]}
  - {name: own, image: test.local/busybox:1, command: [sh, -c, "id -u; id -g"], securityContext: {runAsUser: 7, runAsGroup: 8}}
  - {name: home, image: test.local/busybox:1, command: [sh, -c, "echo $HOME; pwd"], workingDir: /etc}
---
apiVersion: v1
kind: Pod
metadata: {name: strict}
spec:
  restartPolicy: Never
  securityContext: {supplementalGroups: [5555], supplementalGroupsPolicy: Strict, runAsUser: 1234}
  containers:
  - {name: c, image: test.local/busybox:1, command: [sh, -c, "id -G | tr ' ' '\\n' | sort -n"]}
---
apiVersion: v1
kind: Pod
metadata: {name: contexts}
spec:
  restartPolicy: Never
  containers:
  - {name: plain, image: test.local/busybox:1, command: [sh, -c, "cat /proc/self/status; mount -t tmpfs t /tmp; echo $?; test -e /proc/kcore; echo $?; echo 1 > /proc/sys/kernel/panic; echo $?; ls -A /sys/firmware | wc -l; mknod /tmp/d b 7 0 && dd if=/tmp/d of=/dev/null count=1; echo $?"]}
  - name: capabilities
    image: test.local/busybox:1
    command: [sh, -c, "cat /proc/self/status; ip link add d0 type veth peer name d1; echo $?; chown 1:1 /tmp; echo $?"]
    securityContext: {capabilities: {add: [NET_ADMIN, SYS_TIME], drop: [CHOWN]}}
  - name: none
    image: test.local/busybox:1
    command: [cat, /proc/self/status]
    securityContext: {runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}
  - {name: readonly, image: test.local/busybox:1, command: [sh, -c, "touch /x 2>&1; echo $?; touch /dev/shm/x; echo $?"], securityContext: {readOnlyRootFilesystem: true}}
  - name: privileged
    image: test.local/busybox:1
    command: [sh, -c, "cat /proc/self/status; mount -t tmpfs t /tmp; echo $?; test -b $(ls -d /dev/vda /dev/sda /dev/nvme0n1 /dev/loop0 2>/dev/null | head -n1); echo $?"]
    securityContext: {privileged: true}
  - {name: seccomp, image: test.local/busybox:1, command: [sh, -c, "cat /proc/self/status; unshare -U true; echo $?"], securityContext: {seccompProfile: {type: RuntimeDefault}}}
  - {name: unconfined, image: test.local/busybox:1, command: [sh, -c, "cat /proc/self/status; unshare -U true; echo $?"], securityContext: {seccompProfile: {type: Unconfined}}}
"#,
    );
    for pod in ["users", "strict", "contexts"] {
        cluster.finished(pod);
    }

    let pod = log(&cluster, "users", "pod");
    assert!(pod.starts_with("1234\n3000\n777\n3000\n5555\ntouch: /x: Permission denied\n"), "{pod}");
    assert_eq!(status(&pod, "CapEff"), 0, "another user than root has no capabilities");
    assert_eq!(log(&cluster, "users", "own"), "7\n8\n");
    assert_eq!(log(&cluster, "users", "home"), "/home/app\n/etc\n");
    assert_eq!(log(&cluster, "strict", "c"), "2345\n5555\n");

    let plain = log(&cluster, "contexts", "plain");
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(status(&plain, set), DEFAULT, "{set}");
    }
    assert_eq!([status(&plain, "CapInh"), status(&plain, "CapAmb"), status(&plain, "NoNewPrivs")], [0, 0, 0]);
    let after = |log: &str| -> Vec<String> {
        let lines = log.lines().skip_while(|l| !l.starts_with("nonvoluntary_ctxt_switches")).skip(1);
        lines.filter(|l| l.parse::<i64>().is_ok()).map(str::to_owned).collect()
    };
    // No mount, no kernel memory, no sysctl, no firmware, no device but the usual ones.
    let plain_results = after(&plain);
    assert_ne!(plain_results[0], "0", "{plain}");
    assert_ne!(plain_results[2], "0", "{plain}");
    assert_eq!(plain_results[3], "0", "{plain}");
    assert_ne!(plain_results[4], "0", "{plain}");
    assert!(plain.contains("Read-only file system"), "{plain}");

    let capabilities = log(&cluster, "contexts", "capabilities");
    assert_eq!(status(&capabilities, "CapEff"), (DEFAULT | NET_ADMIN | SYS_TIME) & !CHOWN);
    assert_eq!(after(&capabilities), ["0", "1"], "{capabilities}");

    let none = log(&cluster, "contexts", "none");
    assert_eq!(status(&none, "CapBnd"), NET_BIND_SERVICE);
    assert_eq!([status(&none, "CapEff"), status(&none, "NoNewPrivs")], [0, 1]);

    assert_eq!(
        log(&cluster, "contexts", "readonly"),
        "touch: /x: Read-only file system\n1\n0\n",
        "the root is read-only, /dev/shm is not"
    );

    let privileged = log(&cluster, "contexts", "privileged");
    assert_eq!(after(&privileged), ["0", "0"], "{privileged}");
    assert_eq!(status(&privileged, "CapEff"), status(&privileged, "CapBnd"));
    assert_eq!(status(&privileged, "CapEff") & DEFAULT, DEFAULT);
    assert_eq!(status(&privileged, "Seccomp"), 0);

    let seccomp = log(&cluster, "contexts", "seccomp");
    assert_eq!(status(&seccomp, "Seccomp"), 2);
    assert_eq!(after(&seccomp), ["1"], "{seccomp}");
    let unconfined = log(&cluster, "contexts", "unconfined");
    assert_eq!(status(&unconfined, "Seccomp"), 0);
    assert_eq!(after(&unconfined), ["0"], "{unconfined}");

    // The checks that need the image: root by its configuration, or by a name.
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: nonroot}
spec:
  containers:
  - {name: image, image: test.local/busybox:1, command: [sleep, "100"], securityContext: {runAsNonRoot: true}}
  - {name: zero, image: test.local/busybox:1, command: [sleep, "100"], securityContext: {runAsNonRoot: true, runAsUser: 0}}
"#,
    );
    let uid = cluster.jsonpath(&["pod", "nonroot"], "{.metadata.uid}");
    for (container, why) in [
        ("image", "container has runAsNonRoot and image will run as root"),
        ("zero", "container's runAsUser breaks non-root policy"),
    ] {
        let wanted = format!("{why} (pod: \"nonroot_default({uid})\", container: {container})");
        cluster.wait_for(&wanted, || {
            let waiting = &state(&cluster, "nonroot", container)["waiting"];
            (waiting["reason"] == "CreateContainerConfigError" && waiting["message"] == wanted.as_str()).then_some(())
        });
    }
}

#[test]
fn limits() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: oom}
spec:
  restartPolicy: Never
  containers:
  - {name: greedy, image: gantry.local/self, args: [burn, memory, "200"], resources: {limits: {memory: 48Mi}}}
  - {name: modest, image: test.local/busybox:1, command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"], resources: {limits: {memory: 48Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: cpu}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: burn, image: gantry.local/self, args: [burn, cpu, inf], resources: {limits: {cpu: 100m, memory: 64Mi}, requests: {cpu: 50m}}}
"#,
    );
    cluster.wait_for("the OOM kill", || {
        let end = &state(&cluster, "oom", "greedy")["terminated"];
        end.is_object().then(|| {
            assert_eq!(end["reason"], "OOMKilled", "{end}");
            assert_eq!(end["exitCode"], 137, "{end}");
        })
    });
    assert!(state(&cluster, "oom", "modest")["running"].is_object(), "the neighbour goes on");

    // The quota is in force: the kernel says that it has throttled the container.
    cluster.ready("cpu");
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let file = |v2_name: &str, v1_name: &str| {
        let path = format!("/sys/fs/cgroup/{}", if v2 { v2_name } else { v1_name });
        cluster.kubectl(&["exec", "cpu", "--", "/gantry", "self", "cat", &path]).trim().to_owned()
    };
    if v2 {
        assert_eq!(file("cpu.max", ""), "10000 100000");
    } else {
        assert_eq!(file("", "cpu/cpu.cfs_quota_us"), "10000");
        assert_eq!(file("", "cpu/cpu.cfs_period_us"), "100000");
        assert_eq!(file("", "cpu/cpu.shares"), "51");
    }
    cluster.wait_for("throttling", || {
        let stat = file("cpu.stat", "cpu/cpu.stat");
        let n = stat.lines().find_map(|l| l.strip_prefix("nr_throttled ")?.parse::<u64>().ok());
        (n.expect("cpu.stat has nr_throttled") > 0).then_some(())
    });
    assert_eq!(file("memory.max", "memory/memory.limit_in_bytes"), "67108864");
}
