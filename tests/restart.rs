//! The cluster outlives its processes: a killed main process, Ctrl-C, killed containers, pods and shims all lead back to
//! three ready replicas, and every acknowledged object is found again.

mod cluster;

use cluster::Cluster;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const HELLO: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 3
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: gantry.local/self
        imagePullPolicy: IfNotPresent
        args: [serve, --port, '8080']
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
";

/// Container ids and restart counts of the pods, in name order.
fn containers(cluster: &Cluster) -> Vec<(String, String, u64)> {
    let pods = cluster.get(&["pods", "-l", "app=hello"]);
    let mut found: Vec<_> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            let status = &p["status"]["containerStatuses"][0];
            (
                p["metadata"]["name"].as_str().unwrap().to_owned(),
                status["containerID"].as_str().unwrap_or_default().to_owned(),
                status["restartCount"].as_u64().unwrap_or(0),
            )
        })
        .collect();
    found.sort();
    found
}

fn three_ready(cluster: &Cluster) {
    cluster.wait_for("three ready replicas", || {
        let ready = cluster.jsonpath(&["deployment", "hello"], "{.status.readyReplicas}/{.status.replicas}");
        (ready == "3/3").then_some(())
    });
}

/// Pids of the processes of this cluster whose command line matches.
fn pids(cluster: &Cluster, matches: impl Fn(&[String]) -> bool) -> Vec<i32> {
    let data = cluster.data_dir().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(text) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<String> = text.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        // Containers are known by their mounts; everything in the host's mount namespace sees everybody's.
        let elsewhere =
            std::fs::read_link(entry.path().join("ns/mnt")).ok() != std::fs::read_link("/proc/self/ns/mnt").ok();
        let in_cluster = words.iter().any(|w| w.contains(&data))
            || elsewhere && std::fs::read_to_string(entry.path().join("mountinfo")).is_ok_and(|m| m.contains(&data));
        if in_cluster && matches(&words) {
            found.push(pid);
        }
    }
    found
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn containers_run_on_while_gantry_is_killed_and_started_again() {
    let mut cluster = Cluster::start();
    cluster.apply(HELLO);
    cluster.rolled_out("hello");
    cluster.kubectl(&["create", "configmap", "before", "--from-literal=answer=42"]);
    let before = containers(&cluster);

    cluster.kill();
    cluster.up();
    assert_eq!(cluster.jsonpath(&["configmap", "before"], "{.data.answer}"), "42");
    three_ready(&cluster);
    assert_eq!(containers(&cluster), before, "the containers are the same, not restarted");

    let status = cluster.interrupt();
    assert!(status.success(), "Ctrl-C ends it cleanly: {status}\n{}", cluster.log());
    cluster.up();
    three_ready(&cluster);
    assert_eq!(containers(&cluster), before, "the containers are the same, not restarted");
    assert_eq!(cluster.kubectl(&["logs", &before[0].0]).trim(), "serving on port 8080");

    // It works, and not only looks so.
    cluster.kubectl(&["scale", "deployment/hello", "--replicas=4"]);
    cluster.rolled_out("hello");
}

#[test]
fn killed_containers_pods_and_shims_come_back() {
    let cluster = Cluster::start();
    cluster.apply(HELLO);
    cluster.rolled_out("hello");

    let web = pids(&cluster, |w| w.iter().any(|x| x == "serve"));
    assert_eq!(web.len(), 3, "three containers run");
    kill(web[0]);
    cluster.wait_for("a restarted container", || {
        let restarts: u64 = containers(&cluster).iter().map(|(_, _, n)| n).sum();
        (restarts == 1).then_some(())
    });
    three_ready(&cluster);

    let victim = containers(&cluster)[0].0.clone();
    cluster.kubectl(&["delete", "pod", &victim]);
    three_ready(&cluster);
    assert!(containers(&cluster).iter().all(|(name, _, _)| *name != victim));

    let old = containers(&cluster);
    let shims = pids(&cluster, |w| w.get(1).is_some_and(|x| x == "shim"));
    assert_eq!(shims.len(), 3, "one shim per pod");
    kill(shims[0]);
    cluster.wait_for("the pod of the killed shim to be made anew", || (containers(&cluster) != old).then_some(()));
    three_ready(&cluster);
    assert_eq!(pids(&cluster, |w| w.iter().any(|x| x == "serve")).len(), 3, "no container is left behind");
}

#[test]
fn down_removes_what_up_made_and_nothing_else() {
    let mut cluster = Cluster::start();
    cluster.apply(HELLO);
    cluster.rolled_out("hello");
    let instance = std::fs::read_to_string(cluster.data_dir().join("instance")).unwrap().trim().to_owned();
    let cgroups = || -> Vec<PathBuf> {
        let mut found = Vec::new();
        for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let path = controller.path().join(format!("gantry-{instance}"));
            if path.exists() {
                found.push(path);
            }
        }
        let v2 = PathBuf::from(format!("/sys/fs/cgroup/gantry-{instance}"));
        found.extend(v2.exists().then_some(v2));
        found
    };
    let links =
        || -> Vec<Value> { serde_json::from_str(&cluster::run(cluster.inside("ip").args(["-j", "link"]))).unwrap() };
    let tables = || cluster::run(cluster.inside("nft").args(["list", "tables"]));
    assert!(!cgroups().is_empty() && links().len() == 4 && tables().contains("gantry"), "{:?}\n{}", links(), tables());
    cluster::run(cluster.inside("nft").args(["add", "table", "ip", "somebody-elses"]));

    let output = cluster::run(
        cluster.inside(cluster::GANTRY).arg("down").args(["--data-dir".as_ref(), cluster.data_dir().as_os_str()]),
    );
    assert!(output.contains("stopped 3 pods"), "{output}");
    assert_eq!(cgroups(), Vec::<PathBuf>::new());
    assert_eq!(links().len(), 1, "only lo is left: {:?}", links());
    assert_eq!(tables().trim(), "table ip somebody-elses");
    let data = cluster.data_dir().to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.lines().any(|l| l.contains(&data)), "mounts are left");
    assert!(pids(&cluster, |_| true).is_empty(), "processes are left");

    // The objects are still there, and the pods come back.
    cluster.forget_child();
    cluster.up();
    three_ready(&cluster);
}

#[test]
fn a_deleted_data_directory_is_no_dead_end() {
    let mut cluster = Cluster::start();
    let data = cluster.data_dir().to_string_lossy().into_owned();
    let delete = || {
        // Mounts of running pods are in the way of some directories, as they are for everybody.
        drop(Command::new("rm").args(["-rf", "--one-file-system", &data]).output().unwrap());
        assert!(!Path::new(&data).join("instance").exists());
    };
    let links = |c: &Cluster| -> Vec<Value> {
        serde_json::from_str(&cluster::run(c.inside("ip").args(["-j", "link"]))).unwrap()
    };
    cluster.apply(HELLO);
    cluster.rolled_out("hello");
    cluster.kill();
    delete();

    // Elsewhere it is told how to get rid of what is left.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = elsewhere.path().join("data").to_string_lossy().into_owned();
    let output = cluster
        .inside(cluster::GANTRY)
        .args(["up", "--data-dir", &other, "--kubeconfig", &format!("{other}/kubeconfig"), "--node-name", "node-1"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        error.contains(&format!("(gantry down --data-dir {data} removes what is left of {data}, which was deleted)")),
        "{error}"
    );
    let down = || cluster::run(cluster.inside(cluster::GANTRY).args(["down", "--data-dir", &data]));
    let printed = down();
    assert!(printed.contains("which was deleted") || printed.contains("stopped 0 pods"), "{printed}");
    assert!(pids(&cluster, |_| true).is_empty(), "processes are left");
    assert_eq!(links(&cluster).len(), 1, "{:?}", links(&cluster));
    assert_eq!(cluster::run(cluster.inside("nft").args(["list", "tables"])), "");
    assert!(!cluster::run(cluster.inside("ip").args(["address"])).contains("10.244.0.1"));
    assert!(!cluster::run(cluster.inside("ip").args(["rule"])).contains("10.96.0.0"));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.lines().any(|l| l.contains(&data)), "mounts are left");
    std::fs::remove_dir_all(&data).ok();
    assert_eq!(down(), format!("nothing to stop: {data} does not exist\n"));

    // In the same place a start clears up by itself.
    cluster.up();
    cluster.apply(HELLO);
    cluster.rolled_out("hello");
    cluster.kill();
    delete();
    cluster.up();
    assert_eq!(cluster.jsonpath(&["pods"], "{.items}"), "[]");
    assert!(pids(&cluster, |w| w.iter().any(|x| x == "serve")).is_empty(), "containers are left");
    assert_eq!(links(&cluster).len(), 1, "{:?}", links(&cluster));
    cluster.apply(HELLO);
    cluster.rolled_out("hello");
}
