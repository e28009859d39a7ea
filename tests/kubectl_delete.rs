//! delete, wait and watch, with the newest kubectl and with 1.20, each in a namespace of its own.

mod cluster;

use cluster::busybox::{self, BUSYBOX};
use cluster::{Cluster, newest_kubectl, old_kubectl};
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

/// One kubectl with a namespace.
struct User<'a> {
    cluster: &'a Cluster,
    kubectl: String,
    namespace: &'static str,
}

impl<'a> User<'a> {
    fn all(cluster: &'a Cluster) -> Vec<Self> {
        let one = |(kubectl, namespace): (String, &'static str)| {
            cluster.kubectl(&["create", "namespace", namespace]);
            User { cluster, kubectl, namespace }
        };
        [(newest_kubectl(), "new"), (old_kubectl(), "old")].into_iter().map(one).collect()
    }
    fn is_old(&self) -> bool {
        self.kubectl == old_kubectl()
    }
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.command_of(&self.kubectl, &["-n", self.namespace]);
        command.args(arguments);
        command
    }
    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
    fn run(&self, arguments: &[&str]) -> String {
        cluster::run(&mut self.command(arguments))
    }
    fn apply(&self, yaml: &str) {
        let mut child =
            self.command(&["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
    fn error(&self, arguments: &[&str]) -> String {
        let out = self.output(arguments);
        assert!(!out.status.success(), "{} {arguments:?}: {}", self.kubectl, String::from_utf8_lossy(&out.stdout));
        String::from_utf8_lossy(&out.stderr).into_owned()
    }
    fn said(&self, arguments: &[&str], expected: &str) {
        assert_eq!(self.run(arguments), format!("{expected}\n"), "{} {arguments:?}", self.kubectl);
    }
    fn names(&self, what: &str) -> String {
        self.run(&["get", what, "-o", "name"])
    }
    fn jsonpath(&self, what: &[&str], path: &str) -> String {
        let path = format!("jsonpath={path}");
        self.run(&[&["get"], what, &["-o", &path]].concat())
    }
    fn rolled_out(&self) {
        self.run(&["rollout", "status", "deploy/app", "--timeout=90s"]);
    }
    fn ready(&self, pod: &str) {
        self.run(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=90s"]);
    }
    fn not_found(&self, pod: &str) -> String {
        let error = self.error(&["get", "pod", pod]);
        assert_eq!(error, format!("Error from server (NotFound): pods \"{pod}\" not found\n"));
        error
    }
}

/// A watching kubectl, ended with the value.
struct Watch {
    child: Child,
    seen: Arc<Mutex<String>>,
}

impl Watch {
    fn start(user: &User<'_>, arguments: &[&str]) -> Self {
        let mut command = user.command(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let seen = Arc::<Mutex<String>>::default();
        let (to, mut from) = (seen.clone(), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                to.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { child, seen }
    }
    fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }
    /// Waits for lines that begin with these words, in this order; others may be between them.
    fn wait_for(&self, user: &User<'_>, lines: &[&[&str]]) {
        user.cluster.wait_for(&format!("{lines:?} in {:?}", self.seen()), || {
            let seen = self.seen();
            let mut wanted = lines.iter();
            let mut next = wanted.next();
            for line in seen.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                if next.is_some_and(|wanted| words.starts_with(wanted)) {
                    next = wanted.next();
                }
            }
            next.is_none().then_some(())
        });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn deployment() -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: app}}
spec:
  selector: {{matchLabels: {{app: app}}}}
  template:
    metadata: {{labels: {{app: app}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '100000']}}]
"
    )
}

/// A pod that does not go by itself before its 100 s.
fn stubborn() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: slow}}
spec:
  terminationGracePeriodSeconds: 100
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '100000']}}]
"
    )
}

fn cascades(user: &User<'_>) {
    // In the foreground: kubectl returns when everything is gone.
    user.apply(&deployment());
    user.rolled_out();
    user.said(&["delete", "deploy", "app", "--cascade=foreground"], "deployment.apps \"app\" deleted");
    assert_eq!(user.names("rs,pods"), "");
    // In the background, which is the default: the rest follows.
    for option in ["--cascade=background", "--wait=true"] {
        user.apply(&deployment());
        user.rolled_out();
        user.said(&["delete", "deploy/app", option], "deployment.apps \"app\" deleted");
        user.cluster.wait_for("dependents are gone", || user.names("rs,pods").is_empty().then_some(()));
    }
    // Orphans stay, without owner.
    user.apply(&deployment());
    user.rolled_out();
    user.said(&["delete", "deploy", "app", "--cascade=orphan"], "deployment.apps \"app\" deleted");
    assert_eq!(user.jsonpath(&["rs"], "{.items[*].metadata.ownerReferences}"), "");
    assert_eq!(user.names("pods").lines().count(), 1);
    let set = user.names("rs");
    let set = set.trim().split_once('/').unwrap().1;
    user.said(&["delete", "rs", set, "--cascade=orphan"], &format!("replicaset.apps \"{set}\" deleted"));
    assert_eq!(user.jsonpath(&["pods"], "{.items[*].metadata.ownerReferences}"), "");
    let pod = user.names("pods");
    let pod = pod.trim().split_once('/').unwrap().1;
    user.said(&["delete", "pods", "--all"], &format!("pod \"{pod}\" deleted"));
}

fn graces(user: &User<'_>) {
    let again = || {
        user.apply(&stubborn());
        user.ready("slow");
    };
    let deleted = "pod \"slow\" deleted";
    // Without waiting; a shorter time takes the place of a longer one.
    again();
    user.said(&["delete", "pod", "slow", "--wait=false"], deleted);
    assert!(user.run(&["get", "pod", "slow"]).contains("Terminating"));
    assert_eq!(user.jsonpath(&["pod", "slow"], "{.metadata.deletionGracePeriodSeconds}"), "100");
    user.said(&["delete", "pod", "slow", "--grace-period=1"], deleted);
    user.not_found("slow");
    again();
    user.said(&["delete", "pod", "slow", "--now"], deleted);
    user.not_found("slow");
    // By force: gone at once, with a warning.
    again();
    let out = user.output(&["delete", "pod", "slow", "--force", "--grace-period=0"]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "pod \"slow\" force deleted\n");
    let warning = "arning: Immediate deletion does not wait for confirmation that the running resource has been terminated. \
                   The resource may continue to run on the cluster indefinitely.\n";
    assert_eq!(&String::from_utf8_lossy(&out.stderr)[1..], warning);
    user.not_found("slow");
    assert_eq!(user.error(&["delete", "pod", "slow"]), "Error from server (NotFound): pods \"slow\" not found\n");
    assert_eq!(user.run(&["delete", "pod", "slow", "--ignore-not-found"]), "");
    // kubectl's patience is not the pod's.
    again();
    let error = user.error(&["delete", "pod", "slow", "--timeout=1s"]);
    assert_eq!(error, "error: timed out waiting for the condition on pods/slow\n");
    user.run(&["delete", "pod", "slow", "--now"]);
}

fn selections(user: &User<'_>) {
    let make = |names: &[&str]| names.iter().for_each(|n| drop(user.run(&["create", "cm", n])));
    let left =
        || user.names("cm").replace("configmap/kube-root-ca.crt\n", "").replace("configmap/", "").replace('\n', " ");
    make(&["a", "b", "c", "d"]);
    user.run(&["label", "cm", "a", "b", "x=y"]);
    let dry = user.run(&["delete", "cm", "-l", "x=y", "--dry-run=server"]);
    assert_eq!(dry, "configmap \"a\" deleted (server dry run)\nconfigmap \"b\" deleted (server dry run)\n");
    assert_eq!(left(), "a b c d ");
    assert_eq!(user.run(&["delete", "cm", "-l", "x=y"]), "configmap \"a\" deleted\nconfigmap \"b\" deleted\n");
    user.said(&["delete", "cm", "--field-selector", "metadata.name=c"], "configmap \"c\" deleted");
    assert_eq!(left(), "d ");
    user.said(&["delete", "cm/d", "-o", "name"], "configmap/d");
    make(&["e", "f"]);
    let error = user.error(&["delete", "cm", "e", "nope", "f"]);
    assert_eq!(error, "Error from server (NotFound): configmaps \"nope\" not found\n");
    assert_eq!(left(), "");
    assert!(user.error(&["delete", "cm"]).starts_with("error: resource(s) were provided, but no name"));
    // All of them; the CA's is made again.
    make(&["g"]);
    assert!(user.run(&["delete", "cm", "--all"]).contains("configmap \"g\" deleted\n"));
    user.cluster
        .wait_for("the CA is there again", || (user.names("cm") == "configmap/kube-root-ca.crt\n").then_some(()));
    user.said(&["delete", "pods", "--all"], "No resources found");
    let raw = format!("/api/v1/namespaces/{}/configmaps/zz", user.namespace);
    assert_eq!(user.error(&["delete", "--raw", &raw]), "Error from server (NotFound): configmaps \"zz\" not found\n");
}

fn waits(user: &User<'_>) {
    let missing = user.error(&["wait", "--for=condition=Ready", "pod/nope", "--timeout=1s"]);
    assert_eq!(missing, "Error from server (NotFound): pods \"nope\" not found\n");
    user.apply(&deployment());
    let met = "deployment.apps/app condition met";
    user.said(&["wait", "--for=condition=Available", "deploy/app", "--timeout=90s"], met);
    user.said(&["wait", "--for=condition=Available=True", "deploy", "--all", "--timeout=90s"], met);
    for condition in ["Nope", "Available=False"] {
        assert_eq!(
            user.error(&["wait", &format!("--for=condition={condition}"), "deploy/app", "--timeout=1s"]),
            "error: timed out waiting for the condition on deployments/app\n"
        );
    }
    let pods = ["pod", "-l", "app=app", "--timeout=90s"];
    assert!(user.run(&[&["wait", "--for=condition=Ready"], &pods[..]].concat()).ends_with(" condition met\n"));
    if !user.is_old() {
        user.said(&["wait", "--for=jsonpath={.status.readyReplicas}=1", "deploy/app", "--timeout=90s"], met);
        user.said(&["wait", "--for=jsonpath={.status.conditions}", "deploy/app", "--timeout=90s"], met);
        assert_eq!(user.run(&["wait", "--for=delete", "pod/gone"]), "");
        user.said(&["wait", "--for=create", "deploy/app"], met);
        // What does not exist yet.
        let created = Watch::start(user, &["wait", "--for=create", "cm/late", "--timeout=90s"]);
        user.run(&["create", "cm", "late"]);
        created.wait_for(user, &[&["configmap/late", "condition", "met"]]);
        user.run(&["delete", "cm", "late"]);
    }
    // For the end, which a finalizer puts off.
    user.run(&["create", "cm", "held"]);
    let finalizers = |list: &str| {
        let patch = format!("{{\"metadata\":{{\"finalizers\":{list}}}}}");
        user.run(&["patch", "cm", "held", "--type=merge", "-p", &patch]);
    };
    finalizers("[\"example.org/held\"]");
    user.said(&["delete", "cm", "held", "--wait=false"], "configmap \"held\" deleted");
    let error = user.error(&["wait", "--for=delete", "cm/held", "--timeout=1s"]);
    assert_eq!(error, "error: timed out waiting for the condition on configmaps/held\n");
    let mut deleting = user.command(&["delete", "cm", "held"]);
    let deleting = deleting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    finalizers("null");
    let out = deleting.wait_with_output().unwrap();
    let gone = String::from_utf8_lossy(&out.stderr).contains("NotFound");
    assert!(out.status.success() || gone, "{out:?}");
    assert_eq!(user.run(&["get", "cm", "held", "--ignore-not-found"]), "");
    user.run(&["delete", "deploy", "app"]);
    user.cluster.wait_for("the pod is gone", || user.names("pods").is_empty().then_some(()));
}

fn watches(user: &User<'_>) {
    let pods = Watch::start(user, &["get", "pods", "-w"]);
    let only = Watch::start(
        user,
        &["get", "pods", "--watch-only", "-o", "jsonpath={.metadata.name} {.status.phase}{\"\\n\"}"],
    );
    let events = Watch::start(user, &["get", "pods", "-w", "--output-watch-events"]);
    let deployments = Watch::start(user, &["get", "deploy", "-w"]);
    let services = Watch::start(user, &["get", "svc", "-w", "-o", "name"]);
    // A watch that began is one that says something: make objects until each of them has.
    user.cluster.wait_for("all watches run", || {
        user.run(&["create", "svc", "clusterip", "probe", "--tcp=80"]);
        user.run(&["run", "probe", &format!("--image={BUSYBOX}"), "--restart=Never", "--", "true"]);
        user.run(&["create", "deploy", "probe", &format!("--image={BUSYBOX}"), "--replicas=0"]);
        user.run(&["delete", "svc/probe", "pod/probe", "deploy/probe", "--now"]);
        let all = [&pods, &only, &events, &deployments, &services];
        all.iter().all(|w| w.seen().contains("probe")).then_some(())
    });
    user.apply(&stubborn());
    user.ready("slow");
    user.run(&["delete", "pod", "slow", "--now"]);
    pods.wait_for(
        user,
        &[
            &["slow", "0/1", "Pending"],
            &["slow", "0/1", "ContainerCreating"],
            &["slow", "1/1", "Running"],
            &["slow", "1/1", "Terminating"],
            &["slow", "0/1", "Error"],
        ],
    );
    only.wait_for(user, &[&["slow", "Pending"], &["slow", "Running"], &["slow", "Failed"]]);
    events.wait_for(
        user,
        &[
            &["ADDED", "slow", "0/1", "Pending"],
            &["MODIFIED", "slow", "1/1", "Running"],
            &["MODIFIED", "slow", "1/1", "Terminating"],
            &["DELETED", "slow", "0/1", "Error"],
        ],
    );
    user.apply(&deployment());
    user.rolled_out();
    user.run(&["scale", "deploy/app", "--replicas=0"]);
    deployments.wait_for(
        user,
        &[&["app", "0/1", "0", "0"], &["app", "0/1", "1", "0"], &["app", "1/1", "1", "1"], &["app", "0/0", "0", "0"]],
    );
    user.run(&["create", "svc", "clusterip", "seen", "--tcp=80"]);
    user.run(&["delete", "svc", "seen"]);
    services.wait_for(user, &[&["service/seen"], &["service/seen"]]);
    user.run(&["delete", "deploy", "app"]);
}

fn all(cluster: &Cluster, what: impl Fn(&User<'_>) + Sync) {
    std::thread::scope(|scope| {
        for user in User::all(cluster) {
            let what = &what;
            scope.spawn(move || what(&user));
        }
    });
}

#[test]
fn dependents_follow_or_stay() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    all(&cluster, cascades);
}

#[test]
fn pods_go_in_the_time_given() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    all(&cluster, graces);
}

#[test]
fn what_is_selected_is_deleted() {
    let cluster = Cluster::start();
    all(&cluster, selections);
}

#[test]
fn wait_and_watch() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    all(&cluster, |user| {
        waits(user);
        watches(user);
    });
}
