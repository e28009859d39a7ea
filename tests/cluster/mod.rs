//! A real cluster for one test: the binary under test in a network namespace and a data directory of its own, driven
//! by real kubectl. Everything it made is gone when the value is dropped.
//!
//! Tests run as root. A missing capability fails the test; nothing is skipped.

#![allow(dead_code, reason = "every test binary uses another part of this module")]

pub mod api;
pub mod busybox;
pub mod clients;
pub mod https;
pub mod measured;
pub mod pods;
pub mod socket;
pub mod webhook;

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long things may take on a loaded machine before a test gives up. Never a measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(90);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The binary under test.
pub const GANTRY: &str = env!("CARGO_BIN_EXE_gantry");

/// A running cluster.
pub struct Cluster {
    namespace: String,
    data: tempfile::TempDir,
    child: Option<Child>,
    log: Arc<Mutex<String>>,
    options: Vec<String>,
    role: &'static str,
}

/// The newest kubectl on the machine.
pub fn newest_kubectl() -> String {
    std::env::var("GANTRY_KUBECTL").unwrap_or_else(|_| "kubectl".into())
}

/// Debian's kubectl 1.20.
pub fn old_kubectl() -> String {
    std::env::var("GANTRY_KUBECTL_OLD")
        .unwrap_or_else(|_| "/var/cache/gantry-tools/kubectl-1.20/usr/bin/kubectl".into())
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed ({}):\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Moves the calling thread into a network namespace, for sockets of the test's own.
pub fn enter(network: &std::fs::File) {
    nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
}

impl Cluster {
    /// Starts a cluster and waits until its node is Ready.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further options of `gantry up`.
    pub fn start_with(options: &[&str]) -> Self {
        let mut cluster = Self::prepare(options);
        cluster.up();
        cluster
    }

    /// Namespace and data directory, without starting anything.
    pub fn prepare(options: &[&str]) -> Self {
        Self::prepare_role("up", options)
    }

    /// The same for a machine that runs one role: `server` or `agent` (which is given no kubeconfig).
    pub fn prepare_role(role: &'static str, options: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "behaviour tests make network namespaces, mounts and cgroups: run as root"
        );
        let namespace = format!("gt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &namespace]));
        run(Command::new("ip").args(["-n", &namespace, "link", "set", "lo", "up"]));
        Self {
            namespace,
            data: tempfile::Builder::new().prefix("gantry-test-").tempdir().unwrap(),
            child: None,
            log: Arc::default(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            role,
        }
    }

    /// Further options for the next start.
    pub fn add_options(&mut self, options: &[&str]) {
        self.options.extend(options.iter().map(|o| (*o).to_owned()));
    }

    /// Joins two machines by a cable: network interfaces `cable` with these addresses (of a /24).
    pub fn connect(&self, address: &str, other: &Self, other_address: &str) {
        let (near, far) = (&self.namespace, &other.namespace);
        let pair = ["netns", near, "type", "veth", "peer", "name", "cable", "netns", far];
        run(Command::new("ip").args(["link", "add", "cable"]).args(pair));
        for (namespace, address) in [(near, address), (far, other_address)] {
            run(Command::new("ip").args(["-n", namespace, "address", "add", &format!("{address}/24"), "dev", "cable"]));
            run(Command::new("ip").args(["-n", namespace, "link", "set", "cable", "up"]));
        }
    }

    /// Makes this machine a switch, on which it has an address (of a /24).
    pub fn switch(&self, address: &str) {
        let near = &self.namespace;
        run(Command::new("ip").args(["-n", near, "link", "add", "switch", "type", "bridge"]));
        run(Command::new("ip").args(["-n", near, "address", "add", &format!("{address}/24"), "dev", "switch"]));
        run(Command::new("ip").args(["-n", near, "link", "set", "switch", "up"]));
    }

    /// Plugs a machine into this one's switch, at `port`: its network interface `cable` has the address (of a /24).
    pub fn plug(&self, port: &str, other: &Self, address: &str) {
        let (near, far) = (&self.namespace, &other.namespace);
        let pair = ["netns", near, "type", "veth", "peer", "name", "cable", "netns", far];
        run(Command::new("ip").args(["link", "add", port]).args(pair));
        run(Command::new("ip").args(["-n", near, "link", "set", port, "master", "switch", "up"]));
        run(Command::new("ip").args(["-n", far, "address", "add", &format!("{address}/24"), "dev", "cable"]));
        run(Command::new("ip").args(["-n", far, "link", "set", "cable", "up"]));
    }

    /// Replaces the options of `gantry up`; the next start has them.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|o| (*o).to_owned()).collect();
    }

    /// Options for a machine whose disk may be nearly full, as those of people who build things are; a test's own win.
    fn roomy(&self) -> Vec<&'static str> {
        let lenient = [
            ["--eviction-hard", "memory.available<100Mi,nodefs.available<1%"],
            ["--image-gc-high-threshold", "99"],
            ["--image-gc-low-threshold", "98"],
        ];
        lenient.into_iter().filter(|[name, _]| !self.options.iter().any(|o| o == name)).flatten().collect()
    }

    /// Starts `gantry up` and waits until it says that the node is Ready.
    pub fn up(&mut self) {
        self.spawn();
        self.wait_for_log(match self.role {
            "server" => "join a node",
            "agent" => "joined",
            _ => "is Ready",
        });
    }

    /// Starts `gantry up` and returns at once.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the cluster is running already");
        self.log.lock().unwrap().clear();
        let mut child = self
            .inside(GANTRY)
            .arg(self.role)
            .args(["--data-dir".as_ref(), self.data.path().as_os_str()])
            .args((self.role != "agent").then(|| format!("--kubeconfig={}", self.kubeconfig().display())))
            .args(
                (self.role != "server" && !self.options.contains(&"--node-name".to_owned()))
                    .then_some("--node-name=node-1"),
            )
            .args(["--log", "info"])
            .args(if self.role == "server" { Vec::new() } else { self.roomy() })
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        for stream in
            [Box::new(child.stdout.take().unwrap()) as Box<dyn Read + Send>, Box::new(child.stderr.take().unwrap())]
        {
            let log = self.log.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                }
            });
        }
        self.child = Some(child);
    }

    /// Waits until the output of `gantry up` has `text`.
    pub fn wait_for_log(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.log().contains(text) {
                return;
            }
            let exited = self.child.as_mut().and_then(|c| c.try_wait().unwrap());
            assert!(
                exited.is_none() && Instant::now() < deadline,
                "gantry up did not say {text:?} (exit: {exited:?}):\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `gantry up` has printed and logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// The admin's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.path().join("kubeconfig")
    }

    /// Pid of `gantry up`.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the cluster is running").id()
    }

    /// `kill -9` of the main process; containers go on.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the cluster is running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ctrl-C, and waits for the end.
    pub fn interrupt(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("the cluster is running");
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        child.wait().unwrap()
    }

    /// Collects a main process that something else has stopped.
    pub fn forget_child(&mut self) {
        let mut child = self.child.take().expect("the cluster was running");
        child.wait().unwrap();
    }

    /// Name of the cluster's network namespace, for `ip -n`.
    pub fn namespace(&self) -> String {
        self.namespace.clone()
    }

    /// The cluster's network namespace, for [`enter`].
    pub fn network(&self) -> std::fs::File {
        std::fs::File::open(format!("/run/netns/{}", self.namespace)).unwrap()
    }

    /// A command inside the cluster's network namespace.
    pub fn inside(&self, program: &str) -> Command {
        // Not `ip netns exec`: it mounts a fresh /sys, which hides the cgroups.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(program);
        command
    }

    /// kubectl, newest version.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(&newest_kubectl(), arguments)
    }

    /// Any kubectl.
    pub fn command_of(&self, kubectl: &str, arguments: &[&str]) -> Command {
        let mut command = self.inside(kubectl);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.data.path()).args(arguments);
        command
    }

    /// Output of kubectl, which must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    /// Output of kubectl, whether it succeeds or not.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What kubectl prints to standard error when it fails, as it must.
    pub fn kubectl_error(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        assert!(
            !output.status.success(),
            "kubectl {arguments:?} succeeded:\n{}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// kubectl with a document on standard input, which must succeed.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.try_kubectl_with(arguments, input);
        assert!(
            output.status.success(),
            "kubectl {arguments:?} failed:\n{}\n{}\nwith:\n{input}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// kubectl with a document on standard input, whether it succeeds or not.
    pub fn try_kubectl_with(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, yaml: &str) -> String {
        self.kubectl_with(&["apply", "-f", "-"], yaml)
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get"];
        all.extend(arguments);
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.kubectl(&all)).unwrap()
    }

    /// `kubectl get … -o jsonpath=…`.
    pub fn jsonpath(&self, arguments: &[&str], path: &str) -> String {
        let path = format!("jsonpath={path}");
        let mut all = vec!["get"];
        all.extend(arguments);
        all.extend(["-o", &path]);
        self.kubectl(&all)
    }

    /// Waits until `check` gives a value; prints the state of the cluster where it never does.
    pub fn wait_for<T>(&self, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = check() {
                return value;
            }
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.describe());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a Deployment has rolled out.
    pub fn rolled_out(&self, deployment: &str) {
        let target = format!("deployment/{deployment}");
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let output = self.try_kubectl(&["rollout", "status", &target, &timeout]);
        assert!(
            output.status.success(),
            "{target} did not roll out: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.describe()
        );
    }

    /// Waits until a pod is Ready.
    pub fn ready(&self, pod: &str) {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let target = format!("pod/{pod}");
        let output = self.try_kubectl(&["wait", "--for=condition=Ready", &target, &timeout]);
        assert!(
            output.status.success(),
            "{target} is not Ready: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.describe()
        );
    }

    /// Waits until a pod has come to its end and returns its phase.
    pub fn finished(&self, pod: &str) -> String {
        self.wait_for(&format!("pod {pod} finished"), || {
            let phase = self.jsonpath(&["pod", pod], "{.status.phase}");
            matches!(phase.as_str(), "Succeeded" | "Failed").then_some(phase)
        })
    }

    fn describe(&self) -> String {
        let show = |arguments: &[&str]| {
            let output = self.try_kubectl(arguments);
            format!(
                "$ kubectl {}\n{}{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        };
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        format!(
            "{}{}{}log:\n{}",
            show(&["get", "all,endpointslices", "-A", "-o", "wide"]),
            show(&["describe", "pods"]),
            show(&["get", "events", "-A", "--sort-by=.lastTimestamp"]),
            tail.into_iter().rev().collect::<Vec<_>>().join("\n")
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of gantry up (last lines):");
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(80).collect();
            for line in tail.into_iter().rev() {
                eprintln!("  {line}");
            }
        }
        let down = self.inside(GANTRY).arg("down").args(["--data-dir".as_ref(), self.data.path().as_os_str()]).output();
        match down {
            Ok(output) if output.status.success() => {}
            other => eprintln!("gantry down failed: {other:?}"),
        }
        if let Some(mut child) = self.child.take() {
            // `down` stopped it by its pid; this only collects it.
            drop(child.kill());
            drop(child.wait());
        }
        drop(Command::new("ip").args(["netns", "del", &self.namespace]).output());
    }
}
