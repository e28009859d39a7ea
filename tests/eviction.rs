//! Shortage on the node: of memory, of disk, and of what a pod may use of it.

mod cluster;

use cluster::Cluster;
use cluster::busybox::{BUSYBOX, import, import_as};
use serde_json::Value;

fn status(cluster: &Cluster, pod: &str) -> Value {
    cluster.get(&["pod", pod])["status"].clone()
}

/// Waits until a pod has failed, and returns its status.
fn failed(cluster: &Cluster, pod: &str) -> Value {
    cluster.wait_for(&format!("{pod} has failed"), || {
        let status = status(cluster, pod);
        (status["phase"] == "Failed").then_some(status)
    })
}

fn message(status: &Value) -> &str {
    assert_eq!(status["reason"], "Evicted", "{status}");
    status["message"].as_str().unwrap()
}

fn node_condition(cluster: &Cluster, kind: &str) -> String {
    cluster.jsonpath(&["node", "node-1"], &format!("{{.status.conditions[?(@.type=='{kind}')].status}}"))
}

/// Reasons and messages of the events about an object.
fn events(cluster: &Cluster, kind: &str, name: &str) -> Vec<String> {
    let selector = format!("involvedObject.kind={kind},involvedObject.name={name}");
    let list = cluster.get(&["events", "-A", "--field-selector", &selector]);
    let text = |e: &Value| format!("{}: {}", e["reason"].as_str().unwrap(), e["message"].as_str().unwrap());
    list["items"].as_array().unwrap().iter().map(text).collect()
}

#[test]
fn short_of_memory() {
    let mut cluster = Cluster::start_with(&["--eviction-hard", "memory.available<1Mi"]);
    cluster.apply(
        "
{apiVersion: v1, kind: Pod, metadata: {name: greedy}, spec: {terminationGracePeriodSeconds: 0, containers: [
  {name: c, image: gantry.local/self, args: [burn, memory, '64']}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: modest}, spec: {terminationGracePeriodSeconds: 0, containers: [
  {name: c, image: gantry.local/self, args: [sleep, inf], resources: {requests: {memory: 256Mi}}}]}}",
    );
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/greedy", "pod/modest"]);
    assert_eq!(node_condition(&cluster, "MemoryPressure"), "False");

    // The same pods on a machine that is short from now on, whatever else runs on it.
    cluster.interrupt();
    cluster.set_options(&["--eviction-hard", "memory.available<99.9%"]);
    cluster.up();
    let status = failed(&cluster, "greedy");
    let text = message(&status).to_owned();
    assert!(text.starts_with("The node was low on resource: memory. Threshold quantity: "), "{text}");
    assert!(text.contains(", available: ") && text.contains("Container c was using "), "{text}");
    assert!(text.ends_with(", request is 0, has larger consumption of memory. "), "{text}");
    let target = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((target["status"].as_str(), target["reason"].as_str()), (Some("True"), Some("TerminationByKubelet")));
    assert!(events(&cluster, "Pod", "greedy").contains(&format!("Evicted: {text}")));

    assert_eq!(node_condition(&cluster, "MemoryPressure"), "True");
    for event in [
        "EvictionThresholdMet: Attempting to reclaim memory",
        "NodeHasInsufficientMemory: Node node-1 status is now: NodeHasInsufficientMemory",
    ] {
        cluster.wait_for(event, || events(&cluster, "Node", "node-1").iter().any(|e| e == event).then_some(()));
    }
    cluster.wait_for("the taint", || {
        let taints = cluster.jsonpath(&["node", "node-1"], "{.spec.taints[*].key}");
        taints.contains("node.kubernetes.io/memory-pressure").then_some(())
    });
    // What the scheduler would no longer send here.
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: late}, spec: {nodeName: node-1, containers: [
           {name: c, image: gantry.local/self, args: [sleep, inf]}]}}",
    );
    let late = failed(&cluster, "late");
    assert_eq!(message(&late), "Pod was rejected: The node had condition: [MemoryPressure]. ");
}

/// A file system of its own for a cluster's data. Unmounted after the cluster, whose value must be made later.
struct Small(std::path::PathBuf);

impl Small {
    fn on(cluster: &Cluster, size: &str) -> Self {
        let path = cluster.data_dir().to_owned();
        cluster::run(std::process::Command::new("mount").args(["-t", "tmpfs", "-o", size, "small"]).arg(&path));
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn short_of_disk() {
    let program = std::fs::metadata(cluster::GANTRY).unwrap().len() >> 20;
    let mut cluster = Cluster::prepare(&["--eviction-hard", "nodefs.available<100Mi"]);
    // Made before the cluster starts, unmounted after it has ended.
    let small = Small::on(&cluster, &format!("size={}m", program + 400));
    cluster.up();
    import(&cluster);
    import_as(&cluster, "test.local/unused:1");
    let pod = |name: &str, script: &str, rest: &str| {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, {rest}
               containers: [{{name: c, image: '{BUSYBOX}', command: [sh, -c, '{script}; sleep 100000']}}]}}}}"
        ))
    };
    pod("small", "true", "");
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/small"]);
    pod("hog", "dd if=/dev/zero of=/big bs=1M count=350", "");
    let status = failed(&cluster, "hog");
    let text = message(&status);
    assert!(
        text.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: "),
        "{text}"
    );
    assert!(text.ends_with(", request is 0, has larger consumption of ephemeral-storage. "), "{text}");
    assert_eq!(node_condition(&cluster, "DiskPressure"), "True");
    // What it wrote is given back though its object stays, so nobody else has to go.
    cluster.wait_for("space again", || {
        let fs = nix::sys::statvfs::statvfs(cluster.data_dir()).unwrap();
        (fs.blocks_available() * fs.fragment_size() > 300 << 20).then_some(())
    });
    assert_eq!(status_phase(&cluster, "small"), "Running");
    // Images go before pods, but only those nobody uses.
    let images =
        cluster::run(cluster.inside(cluster::GANTRY).args(["image", "ls", "--data-dir"]).arg(cluster.data_dir()));
    assert!(images.contains(BUSYBOX) && images.contains("gantry.local/self"), "{images}");
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: late}}, spec: {{nodeName: node-1, containers: [
           {{name: c, image: '{BUSYBOX}', command: [sleep, '1']}}]}}}}"
    ));
    assert_eq!(message(&failed(&cluster, "late")), "Pod was rejected: The node had condition: [DiskPressure]. ");
    drop(cluster);
    drop(small);
}

fn status_phase(cluster: &Cluster, pod: &str) -> String {
    status(cluster, pod)["phase"].as_str().unwrap().to_owned()
}

#[test]
fn more_local_storage_than_allowed() {
    let cluster = Cluster::start_with(&["--eviction-hard", "memory.available<1Mi"]);
    import(&cluster);
    let fill = |file: &str| format!("[sh, -c, 'dd if=/dev/zero of={file} bs=1M count=4; sleep 100000']");
    let sleep = "[sleep, '100000']";
    let limit = |size: &str| format!("resources: {{limits: {{ephemeral-storage: {size}}}}}");
    for (name, containers) in [
        (
            "volume",
            format!(
                "{{name: c, image: '{BUSYBOX}', command: {}, volumeMounts: [{{name: v, mountPath: /v}}]}}",
                fill("/v/big")
            ),
        ),
        ("whole", format!("{{name: c, image: '{BUSYBOX}', command: {}, {}}}", fill("/big"), limit("2Mi"))),
        (
            "part",
            format!(
                "{{name: c, image: '{BUSYBOX}', command: {}, {}}}, {{name: d, image: '{BUSYBOX}', command: {sleep}, {}}}",
                fill("/big"),
                limit("2Mi"),
                limit("100Mi")
            ),
        ),
        ("within", format!("{{name: c, image: '{BUSYBOX}', command: {}, {}}}", fill("/big"), limit("100Mi"))),
    ] {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0,
               volumes: [{{name: v, emptyDir: {{sizeLimit: 2Mi}}}}], containers: [{containers}]}}}}"
        ));
    }
    for (name, want) in [
        ("volume", "Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\". "),
        ("whole", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
        ("part", "Container c exceeded its local ephemeral storage limit \"2Mi\". "),
    ] {
        let status = failed(&cluster, name);
        assert_eq!(message(&status), want);
        assert!(!status["conditions"].to_string().contains("DisruptionTarget"), "{status}");
        assert!(events(&cluster, "Pod", name).contains(&format!("Evicted: {want}")));
    }
    assert_eq!(status_phase(&cluster, "within"), "Running");
    assert_eq!(node_condition(&cluster, "DiskPressure"), "False");
}
