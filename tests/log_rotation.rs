//! Logs under load: rotated by size, bounded in number, and whole for who follows them.

mod cluster;

use cluster::Cluster;
use cluster::busybox::{BUSYBOX, import};
use std::path::{Path, PathBuf};
use std::process::Stdio;

const LINES: usize = 3000;

fn log_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().flat_map(|e| if e.path().is_dir() { log_files(&e.path()) } else { vec![e.path()] }).collect()
}

fn numbers(text: &str) -> Vec<usize> {
    text.lines().map(|l| l.split(' ').nth(1).unwrap_or_else(|| panic!("{l:?}")).parse().unwrap()).collect()
}

#[test]
fn followers_lose_nothing_and_the_disk_is_bounded() {
    let options = ["--container-log-max-size", "20Ki", "--container-log-max-files", "3"];
    let cluster = Cluster::start_with(&options);
    import(&cluster);
    // A hundred lines a second, for three rotations. Then the container ends, and begins again.
    let script = format!(
        "if [ -e /v/again ]; then echo second; sleep 100000; fi; touch /v/again; \
         i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; usleep 10000; done"
    );
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: writer}}, spec: {{terminationGracePeriodSeconds: 0,
           volumes: [{{name: v, emptyDir: {{}}}}], containers: [{{name: c, image: '{BUSYBOX}',
           command: [sh, -c, '{script}'], volumeMounts: [{{name: v, mountPath: /v}}]}}]}}}}"
    ));
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/writer"]);
    let follower =
        cluster.command(&["logs", "-f", "writer"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let logs = cluster.data_dir().join("node/kubelet/logs");
    let rotated = || log_files(&logs).into_iter().filter(|f| f.extension().is_some_and(|e| e != "log")).count();
    cluster.wait_for("a first rotation", || (rotated() >= 1).then_some(()));
    cluster.wait_for("a second rotation", || (rotated() >= 2).then_some(()));
    let output = follower.wait_with_output().unwrap();
    let followed = numbers(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(followed, (1..=LINES).collect::<Vec<_>>(), "{}", String::from_utf8_lossy(&output.stderr));

    // Whoever comes later reads what is kept, across the rotations and without a gap.
    cluster.wait_for("the second attempt", || (cluster.kubectl(&["logs", "writer"]) == "second\n").then_some(()));
    let kept = numbers(&cluster.kubectl(&["logs", "--previous", "writer"]));
    assert_eq!(kept, (LINES - kept.len() + 1..=LINES).collect::<Vec<_>>());
    let tail = numbers(&cluster.kubectl(&["logs", "--previous", "--tail=5", "writer"]));
    assert_eq!(tail, (LINES - 4..=LINES).collect::<Vec<_>>());
    let first: Vec<_> = log_files(&logs)
        .into_iter()
        .filter(|f| f.file_name().unwrap().to_string_lossy().starts_with("0.log"))
        .collect();
    assert!((2..=3).contains(&first.len()), "{first:?}");
    if first.len() == 3 {
        assert!(kept.len() < LINES, "the oldest are gone by now");
    }
}
