//! Images nobody uses go when the disk fills up; those in use and the built-in one stay.

mod cluster;

use cluster::Cluster;
use cluster::busybox::{BUSYBOX, import, import_as};

fn images(cluster: &Cluster) -> String {
    cluster::run(cluster.inside(cluster::GANTRY).args(["image", "ls", "--data-dir"]).arg(cluster.data_dir()))
}

#[test]
fn unused_images_are_removed_above_the_high_threshold() {
    let off = ["--eviction-hard", "memory.available<1Mi"];
    let mut cluster = Cluster::start_with(&off);
    import(&cluster);
    import_as(&cluster, "test.local/ended:1");
    import_as(&cluster, "test.local/unused:1");
    cluster.apply(&format!(
        "
{{apiVersion: v1, kind: Pod, metadata: {{name: user}}, spec: {{terminationGracePeriodSeconds: 0, containers: [
  {{name: c, image: '{BUSYBOX}', command: [sleep, '100000']}}]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: ended}}, spec: {{restartPolicy: Never, containers: [
  {{name: c, image: 'test.local/ended:1', command: [sh, -c, 'echo said']}}]}}}}"
    ));
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/user"]);
    cluster.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=90s", "pod/ended"]);

    // The node looks when it starts. Every disk is fuller than one percent, and none can be freed down to nothing.
    cluster.interrupt();
    let marks =
        ["--image-gc-high-threshold", "1", "--image-gc-low-threshold", "0", "--minimum-image-ttl-duration", "0s"];
    cluster.set_options(&[&off[..], &marks[..]].concat());
    cluster.up();
    cluster.wait_for("the unused image is gone", || (!images(&cluster).contains("unused")).then_some(()));
    let left = images(&cluster);
    for kept in [BUSYBOX, "test.local/ended:1", "gantry.local/self"] {
        assert!(left.contains(kept), "{kept} is gone:\n{left}");
    }
    cluster.wait_for("the event", || {
        let events = cluster.jsonpath(&["events", "-A"], "{range .items[*]}{.reason}: {.message}{\"\\n\"}{end}");
        let told = events.lines().any(|e| {
            e.starts_with(
                "FreeDiskSpaceFailed: Failed to garbage collect required amount of images. Attempted to free ",
            ) && e.contains(" bytes, but only found ")
                && e.ends_with(" bytes eligible to free.")
        });
        told.then_some(())
    });
    // Layers that images share are still there for who uses them.
    assert_eq!(cluster.kubectl(&["exec", "user", "--", "sh", "-c", "echo works"]), "works\n");
    assert_eq!(cluster.kubectl(&["logs", "ended"]), "said\n");
    let layers = std::fs::read_dir(cluster.data_dir().join("node/images/tmp")).unwrap().count();
    assert_eq!(layers, 0, "unfinished work is left");
}
