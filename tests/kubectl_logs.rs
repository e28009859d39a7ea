//! logs: followed over the end of a container, of several containers and pods, selected by time and size.
//! With the newest kubectl and with 1.20.

mod cluster;

use cluster::busybox::{self, BUSYBOX};
use cluster::{Cluster, newest_kubectl, old_kubectl};
use std::process::Output;

fn pods(tag: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: ends-{tag}, labels: {{ends: {tag}}}}}
spec:
  restartPolicy: Never
  initContainers:
  - {{name: first, image: {BUSYBOX}, command: [echo, before]}}
  containers:
  - {{name: x, image: {BUSYBOX}, command: [sh, -c, 'for i in 1 2 3; do echo x$i; sleep 0.5; done; printf unended']}}
  - {{name: z, image: {BUSYBOX}, command: [sh, -c, 'for i in 1 2 3; do echo z$i; sleep 0.5; done']}}
---
apiVersion: v1
kind: Pod
metadata: {{name: again-{tag}}}
spec:
  containers:
  - {{name: c, image: {BUSYBOX}, command: [sh, -c, 'echo run; sleep 1; exit 1']}}
---
apiVersion: v1
kind: Pod
metadata: {{name: never-{tag}}}
spec:
  containers:
  - {{name: c, image: test.local/missing:1}}
"
    )
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn logs(cluster: &Cluster, kubectl: &str, tag: &str) {
    cluster.apply(&pods(tag));
    let (pod, again, never) = (format!("ends-{tag}"), format!("again-{tag}"), format!("never-{tag}"));
    let output = |arguments: &[&str]| cluster.command_of(kubectl, &[&["logs"], arguments].concat()).output().unwrap();
    let log = |arguments: &[&str]| {
        let out: Output = output(arguments);
        assert!(out.status.success(), "{kubectl} logs {arguments:?}: {out:?}");
        text(&out.stdout)
    };
    let error = |arguments: &[&str]| {
        let out: Output = output(arguments);
        assert!(!out.status.success(), "{kubectl} logs {arguments:?}: {out:?}");
        text(&out.stderr)
    };
    cluster.wait_for("the containers run", || {
        let state = cluster.jsonpath(&["pod", &pod], "{.status.containerStatuses[?(@.name==\"x\")].state}");
        (state.contains("running") || state.contains("terminated")).then_some(())
    });
    // Followed to its end, with what came before and an unended last line.
    assert_eq!(log(&["-f", &pod, "-c", "x"]), "x1\nx2\nx3\nunended");
    let all = ["[pod/P/x] x1", "[pod/P/x] x2", "[pod/P/x] x3", "[pod/P/z] z1", "[pod/P/z] z2", "[pod/P/z] z3"];
    let all: Vec<String> = all.iter().map(|l| l.replace('P', &pod)).collect();
    let prefixed = log(&["-f", &pod, "--all-containers", "--prefix"]).replace("unended", "unended\n");
    let before = format!("[pod/{pod}/first] before");
    for line in &all {
        // The unended line may stand before another container's.
        assert!(prefixed.contains(line.trim_start_matches("[pod/")), "{line} in {prefixed}");
    }
    assert!(prefixed.contains(&before), "{prefixed}");
    assert_eq!(cluster.finished(&pod), "Succeeded");
    // After the end.
    let selector = format!("ends={tag}");
    let selected = log(&["-l", &selector, "-c", "z", "--prefix"]);
    let of_z: Vec<&str> = all[3..].iter().map(String::as_str).collect();
    assert_eq!(sorted(&selected), of_z);
    assert_eq!(log(&["-f", "-l", &selector, "-c", "z", "--tail=2"]), "z2\nz3\n");
    let many = error(&["-f", "-l", &selector, "--all-containers", "--max-log-requests=1"]);
    assert_eq!(
        many,
        "error: you are attempting to follow 3 log streams, but maximum allowed concurrency is 1, use --max-log-requests to \
         increase the limit\n"
    );
    assert_eq!(log(&[&pod, "-c", "first"]), "before\n");
    // Sizes and times.
    assert_eq!(log(&[&pod, "-c", "x", "--tail=0"]), "");
    assert_eq!(log(&[&pod, "-c", "x", "--tail=2"]), "x3\nunended");
    assert_eq!(log(&[&pod, "-c", "x", "--limit-bytes=4"]), "x1\nx");
    let stamped = log(&[&pod, "-c", "z", "--timestamps"]);
    let stamps: Vec<&str> = stamped.lines().map(|l| l.split(' ').next().unwrap()).collect();
    assert!(stamps.len() == 3 && stamps.is_sorted() && stamps.iter().all(|s| s.ends_with('Z')), "{stamped}");
    // From the second line's time on; kubectl sends whole seconds, so that earlier lines of that second come too.
    let since = log(&[&pod, "-c", "z", &format!("--since-time={}", stamps[1])]);
    assert!(since.ends_with("z2\nz3\n"), "{since}");
    assert_eq!(log(&[&pod, "-c", "z", "--since-time=2100-01-01T00:00:00Z"]), "");
    assert_eq!(log(&[&pod, "-c", "z", "--since=1h"]), "z1\nz2\nz3\n");
    // Without a container's name.
    if kubectl == old_kubectl() {
        let which = format!(
            "error: a container name must be specified for pod {pod}, choose one of: [x z] or one of the \
                             init containers: [first]\n"
        );
        assert_eq!(error(&[&pod]), which);
    } else {
        let out = output(&[&pod]);
        let which = "Defaulted container \"x\" out of: x, z, first (init)\n";
        assert_eq!((&*text(&out.stdout), &*text(&out.stderr)), ("x1\nx2\nx3\nunended", which));
    }
    let raw = format!("/api/v1/namespaces/default/pods/{pod}/log");
    let raw = cluster.command_of(kubectl, &["get", "--raw", &raw]).output().unwrap();
    assert_eq!(
        text(&raw.stderr),
        format!(
            "Error from server (BadRequest): a container name must be specified for pod {pod}, choose one of: [first x z]\n"
        )
    );
    assert_eq!(error(&[&pod, "-c", "nope"]), format!("error: container nope is not valid for pod {pod}\n"));
    let missing = error(&["nope"]);
    assert!(missing.contains("rror from server (NotFound): pods \"nope\" not found"), "{missing}");

    // The run before.
    cluster.wait_for("the container was started again", || {
        let count = cluster.jsonpath(&["pod", &again], "{.status.containerStatuses[0].restartCount}");
        (count.parse::<u32>().unwrap_or_default() > 0).then_some(())
    });
    assert_eq!(log(&["--previous", &again]), "run\n");
    assert_eq!(log(&["-f", &again]), "run\n");
    assert_eq!(
        error(&["--previous", &pod, "-c", "x"]),
        format!("Error from server (BadRequest): previous terminated container \"x\" in pod \"{pod}\" not found\n")
    );
    cluster.wait_for("the image cannot be had", || {
        let reason = cluster.jsonpath(&["pod", &never], "{.status.containerStatuses[0].state.waiting.reason}");
        matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff").then_some(())
    });
    assert_eq!(
        error(&[&never]),
        format!(
            "Error from server (BadRequest): container \"c\" in pod \"{never}\" is waiting to start: trying and failing to \
             pull image\n"
        )
    );
    cluster.kubectl(&["delete", "pod", &pod, &again, &never, "--now"]);
}

#[test]
fn logs_of_what_ended_and_what_goes_on() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    for (kubectl, tag) in [(newest_kubectl(), "new"), (old_kubectl(), "old")] {
        logs(&cluster, &kubectl, tag);
    }
}
