//! logs, exec, attach, cp, port-forward with the newest kubectl (WebSocket) and 1.20 (SPDY).

mod cluster;

use cluster::{Cluster, newest_kubectl, old_kubectl};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: a, image: gantry.local/self, args: [loop, '1', tick]}
  - {name: b, image: example.org/busybox:1, command: [sh, -c, 'echo one; echo two; echo three; exec sleep 100000']}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers:
  - {name: c, image: gantry.local/self, args: [exit, '3']}
";

/// An image with a shell, from the machine's static busybox.
fn import_busybox(cluster: &Cluster) {
    let dir = cluster.data_dir().join("busybox-image");
    let script = "set -e; mkdir -p root/bin root/tmp; cp /bin/busybox root/bin/busybox
        for a in sh ls cat tar echo sleep stty seq wc true; do ln -s busybox root/bin/$a; done
        tar -C root -cf layer.tar .; D=$(sha256sum layer.tar | cut -d' ' -f1)
        printf '{\"architecture\":\"amd64\",\"os\":\"linux\",' >config.json
        printf '\"config\":{\"Env\":[\"PATH=/bin\"],\"Cmd\":[\"sh\"]},' >>config.json
        printf '\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:%s\"]}}' $D >>config.json
        printf '[{\"Config\":\"config.json\",\"RepoTags\":[\"example.org/busybox:1\"],\"Layers\":[\"layer.tar\"]}]' >manifest.json
        tar -cf image.tar manifest.json config.json layer.tar";
    std::fs::create_dir(&dir).unwrap();
    cluster::run(Command::new("sh").args(["-c", script]).current_dir(&dir));
    let archive = dir.join("image.tar");
    let mut import = cluster.inside(cluster::GANTRY);
    import.args(["image", "import", "--data-dir"]).arg(cluster.data_dir()).arg(archive);
    cluster::run(&mut import);
}

fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The command may answer while it still reads.
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn streams(cluster: &Cluster, kubectl: &str) {
    let run = |arguments: &[&str]| cluster.command_of(kubectl, arguments).output().unwrap();

    // exec: both outputs, exit codes, what is missing.
    let out = run(&["exec", "two", "-c", "b", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((out.status.code(), text(&out.stdout).as_str()), (Some(7), "out\n"), "{out:?}");
    assert_eq!(text(&out.stderr), "err\ncommand terminated with exit code 7\n");
    let out = run(&["exec", "nope", "--", "true"]);
    assert_eq!(text(&out.stderr), "Error from server (NotFound): pods \"nope\" not found\n");
    let out = run(&["exec", "two", "-c", "nope", "--", "true"]);
    assert_eq!(text(&out.stderr), "Error from server (BadRequest): container nope is not valid for pod two\n");

    // More on stdin than fits any buffer arrives whole, and its end ends the command.
    let input: Vec<u8> = (0..200_000u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let out = with_input(cluster.command_of(kubectl, &["exec", "-i", "two", "-c", "b", "--", "cat"]), &input);
    assert!(out.status.success() && out.stdout == input, "{} of {} bytes", out.stdout.len(), input.len());

    // cp there and back.
    let local = tempfile::tempdir().unwrap();
    std::fs::write(local.path().join("file"), &input).unwrap();
    let version = Path::new(kubectl).file_name().unwrap().to_str().unwrap();
    let there = format!("two:/tmp/{version}");
    let from = local.path().join("file");
    let out = run(&["cp", "-c", "b", from.to_str().unwrap(), &there]);
    assert!(out.status.success(), "{out:?}");
    let back = local.path().join("back");
    let out = run(&["cp", "-c", "b", &there, back.to_str().unwrap()]);
    assert!(out.status.success() && std::fs::read(&back).unwrap() == input, "{out:?}");

    // logs.
    let logs = |arguments: &[&str]| {
        let all: Vec<&str> = ["logs"].iter().chain(arguments).copied().collect();
        let out = run(&all);
        assert!(out.status.success(), "{out:?}");
        text(&out.stdout)
    };
    assert_eq!(logs(&["two", "-c", "b"]), "one\ntwo\nthree\n");
    assert_eq!(logs(&["two", "-c", "b", "--tail=2"]), "two\nthree\n");
    assert_eq!(logs(&["two", "-c", "b", "--limit-bytes=5"]), "one\nt");
    assert_eq!(logs(&["two", "-c", "b", "--since-time=2100-01-01T00:00:00Z"]), "");
    let stamped = logs(&["two", "-c", "b", "--timestamps", "--tail=1"]);
    assert!(stamped.ends_with("Z three\n") && stamped.starts_with("20"), "{stamped}");
    let out = run(&["logs", "two", "-c", "a", "--previous"]);
    assert_eq!(
        text(&out.stderr),
        "Error from server (BadRequest): previous terminated container \"a\" in pod \"two\" not found\n"
    );
}

#[test]
fn the_newest_kubectl_and_1_20_stream() {
    let cluster = Cluster::start();
    import_busybox(&cluster);
    cluster.apply(PODS);
    cluster.ready("two");
    for kubectl in [newest_kubectl(), old_kubectl()] {
        streams(&cluster, &kubectl);
    }
    // The earlier run of a container that was started again.
    cluster.wait_for("crash was started again", || {
        let count = cluster.jsonpath(&["pod", "crash"], "{.status.containerStatuses[0].restartCount}");
        (count.parse::<u32>().unwrap_or_default() > 0).then_some(())
    });
    cluster.kubectl(&["logs", "crash", "--previous"]);
}
