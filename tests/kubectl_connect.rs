//! What connects kubectl to a running container: port-forward, exec and attach with a terminal, run, proxy. With the newest
//! kubectl (WebSocket, and SPDY where it can be chosen) and with 1.20 (SPDY).

mod cluster;

use cluster::busybox::{self, BUSYBOX};
use cluster::{Cluster, PATIENCE, newest_kubectl, old_kubectl};
use nix::pty::openpty;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Two pods: a web and an echo server, and one with a container per way of attaching.
fn objects() -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: {BUSYBOX}
        command: [sh, -c, 'mkdir /tmp/w; echo hi >/tmp/w/index.html; seq 2000000 >/tmp/w/big;
          nc -ll -p 9090 -e cat & exec httpd -f -p 8080 -h /tmp/w']
        ports: [{{name: http, containerPort: 8080}}, {{name: echo, containerPort: 9090}}]
        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http}}, {{name: echo, port: 81, targetPort: echo}}, {{name: none, port: 82}}]
---
apiVersion: v1
kind: Service
metadata: {{name: plain}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: att}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: says, image: {BUSYBOX}, command: [sh, -c, 'while sleep 0.2; do echo said; done']}}
  - {{name: reads, image: {BUSYBOX}, stdin: true, command: [sh, -c, 'while read x; do echo got $x; done; echo end; sleep 100000']}}
  - {{name: term, image: {BUSYBOX}, stdin: true, tty: true, command: [sh]}}
  - {{name: once, image: {BUSYBOX}, stdin: true, stdinOnce: true, command: [sh, -c, 'cat; echo end']}}
"
    )
}

/// The kubectls that forward ports: program and further environment.
fn forwarders() -> Vec<(String, Option<(&'static str, &'static str)>)> {
    vec![
        (newest_kubectl(), None),
        (newest_kubectl(), Some(("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false"))),
        (old_kubectl(), None),
    ]
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

/// A kubectl that runs beside the test, ended with the value.
struct Beside {
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
}

fn collect(stream: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let all = Arc::new(Mutex::new(String::new()));
    let (to, mut stream) = (all.clone(), stream);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = stream.read(&mut buffer) {
            if n == 0 {
                return;
            }
            to.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    });
    all
}

impl Beside {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
        Self { child, out, err }
    }
    fn out(&self) -> String {
        self.out.lock().unwrap().clone()
    }
    fn err(&self) -> String {
        self.err.lock().unwrap().clone()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs `work` in the cluster's network, where kubectl listens.
fn inside<T: Send>(cluster: &Cluster, work: impl FnOnce() -> T + Send) -> T {
    let network = cluster.network();
    std::thread::scope(|scope| {
        let run = move || {
            cluster::enter(&network);
            work()
        };
        scope.spawn(run).join().unwrap()
    })
}

fn http_get(port: u16, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer with a head") + 4;
    all.split_off(end)
}

/// Sends `data` while it reads what comes back, until the other side ends.
fn echo(port: u16, data: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut sending = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            sending.write_all(data).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    })
}

/// The local port of `-> REMOTE` once all three forwardings are announced for both families.
fn local_port(cluster: &Cluster, forward: &Beside, remote: u16) -> u16 {
    cluster.wait_for("three ports are forwarded", || {
        let out = forward.out();
        let errors = forward.err();
        assert!(!errors.contains("error:"), "{errors}");
        let wanted = format!(" -> {remote}");
        let lines: Vec<&str> = out.lines().filter(|l| l.starts_with("Forwarding from 127.0.0.1:")).collect();
        let line = lines.iter().find(|l| l.ends_with(&wanted))?;
        let port = line.strip_prefix("Forwarding from 127.0.0.1:")?.strip_suffix(&wanted)?.parse().ok()?;
        (lines.len() == 3).then_some(port)
    })
}

#[test]
fn ports_are_forwarded() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(&objects());
    cluster.rolled_out("web");
    let pod = cluster.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.name}");
    let big: String = (1..=2_000_000).map(|n| format!("{n}\n")).collect();
    for (kubectl, environment) in forwarders() {
        let targets = [
            (format!("pod/{pod}"), [":8080", ":9090", ":7"]),
            ("deployment/web".to_owned(), [":8080", ":9090", ":7"]),
            ("service/web".to_owned(), [":80", ":echo", ":82"]),
        ];
        for (target, ports) in targets {
            let mut command = cluster.command_of(&kubectl, &["port-forward", &target, ports[0], ports[1], ports[2]]);
            command.envs(environment);
            let forward = Beside::start(command);
            let http = local_port(&cluster, &forward, 8080);
            let echoing = local_port(&cluster, &forward, 9090);
            let nobody = local_port(&cluster, &forward, if target.starts_with("service") { 82 } else { 7 });
            inside(&cluster, || {
                assert_eq!(http_get(http, "/index.html"), b"hi\n");
                assert!(http_get(http, "/big") == big.as_bytes(), "a large download arrives whole");
                assert!(echo(echoing, big.as_bytes()) == big.as_bytes(), "large both ways at once");
            });
            // Nobody listens: the client's connection ends, and kubectl says why.
            inside(&cluster, || {
                let mut stream = TcpStream::connect(("127.0.0.1", nobody)).unwrap();
                let mut got = Vec::new();
                // Whether as an end or as a reset is kubectl's affair.
                drop(stream.read_to_end(&mut got));
                assert!(got.is_empty());
            });
            cluster.wait_for("kubectl says why", || forward.err().contains("refused").then_some(()));
            let said = forward.err();
            let remote = if target.starts_with("service") { 82 } else { 7 };
            assert!(
                said.contains(&format!("error forwarding port {remote} to pod {pod}_default, uid "))
                    && said.contains(&format!("failed to connect to localhost:{remote} inside namespace "))
                    && said.contains(&format!("IPv4: dial tcp4 127.0.0.1:{remote}: connect: connection refused IPv6 "))
                    && said.contains(&format!("dial tcp6 [::1]:{remote}: connect: connection refused ")),
                "{said}"
            );
            // 1.20 goes on; newer ones end themselves after a failed connection.
            if kubectl == old_kubectl() {
                inside(&cluster, || assert_eq!(http_get(http, "/index.html"), b"hi\n"));
            }
        }
    }
    let error = |arguments: &[&str]| cluster.kubectl_error(arguments);
    assert_eq!(error(&["port-forward", "pod/nope", ":1"]), "Error from server (NotFound): pods \"nope\" not found\n");
    assert_eq!(error(&["port-forward", "service/web", ":7"]), "error: Service web does not have a service port 7\n");
}

/// kubectl on a terminal.
struct Terminal {
    child: Child,
    master: File,
    seen: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(cluster: &Cluster, kubectl: &str, arguments: &[&str], rows: u16, columns: u16) -> Self {
        let pty = openpty(None, None).unwrap();
        let slave = |of: &OwnedFd| Stdio::from(of.try_clone().unwrap());
        let command = cluster.command_of(kubectl, arguments);
        // kubectl hears of a new size by SIGWINCH, which goes to the terminal's session.
        let mut wrapped = Command::new("setsid");
        wrapped.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            wrapped.env(name, value.unwrap_or_default());
        }
        wrapped.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
        let master = File::from(pty.master);
        size(&master, rows, columns);
        let child = wrapped.spawn().unwrap();
        let seen = collect(master.try_clone().unwrap());
        Self { child, master, seen }
    }
    fn resize(&self, rows: u16, columns: u16) {
        size(&self.master, rows, columns);
    }
    fn enter(&mut self, line: &str) {
        self.master.write_all(line.as_bytes()).unwrap();
    }
    fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }
    fn wait_for(&self, cluster: &Cluster, what: &str) {
        cluster.wait_for(&format!("{what:?} on the terminal: {:?}", self.seen()), || {
            self.seen().contains(what).then_some(())
        });
    }
    fn exit_code(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "kubectl did not end: {}", self.seen());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

fn size(terminal: &File, rows: u16, columns: u16) {
    let size = nix::libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the argument is the struct this request reads.
    let done = unsafe { nix::libc::ioctl(terminal.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A shell on a terminal: its size, a new size, Ctrl-C, its end.
fn on_a_terminal(cluster: &Cluster, kubectl: &str, arguments: &[&str]) -> (String, Option<i32>) {
    let mut terminal = Terminal::start(cluster, kubectl, arguments, 31, 101);
    // A prompt from before the attachment is not repeated.
    cluster.wait_for("a prompt", || {
        terminal.enter("\r");
        std::thread::sleep(std::time::Duration::from_millis(100));
        terminal.seen().contains("# ").then_some(())
    });
    let asked = |terminal: &mut Terminal, wanted: &str| {
        // The size arrives beside what is typed: ask until it is there.
        cluster.wait_for(&format!("size {wanted}"), || {
            terminal.enter("stty size\r");
            std::thread::sleep(std::time::Duration::from_millis(100));
            terminal.seen().contains(wanted).then_some(())
        });
    };
    asked(&mut terminal, "31 101");
    terminal.resize(47, 133);
    asked(&mut terminal, "47 133");
    terminal.enter("trap 'echo interrupt''ed' INT; echo armed''; sleep 1000\r");
    terminal.wait_for(cluster, "\narmed");
    cluster.wait_for("Ctrl-C arrives", || {
        terminal.enter("\u{3}");
        std::thread::sleep(std::time::Duration::from_millis(100));
        terminal.seen().contains("interrupted").then_some(())
    });
    terminal.enter("exit 9\r");
    let seen = terminal.seen.clone();
    let code = terminal.exit_code();
    let seen = seen.lock().unwrap().clone();
    (seen, code)
}

#[test]
fn exec_and_attach() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(&objects());
    cluster.ready("att");
    for kubectl in [newest_kubectl(), old_kubectl()] {
        let of = |arguments: &[&str]| cluster.command_of(&kubectl, arguments);
        let (_, code) = on_a_terminal(&cluster, &kubectl, &["exec", "-it", "att", "-c", "reads", "--", "sh"]);
        assert_eq!(code, Some(9), "the shell's exit code is kubectl's");
        let input: Vec<u8> = (0..1_000_000u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        let out = with_input(of(&["exec", "-i", "att", "-c", "reads", "--", "sh", "-c", "wc -c; exit 3"]), &input);
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(3), format!("{}\n", input.len())), "{out:?}");
        // A command that does not read what it is sent.
        let out = with_input(of(&["exec", "-i", "att", "-c", "reads", "--", "true"]), &input);
        assert!(out.status.success(), "{out:?}");
        // A command that is not there.
        let out = of(&["exec", "att", "-c", "reads", "--", "nope"]).output().unwrap();
        assert!(!out.status.success() && text(&out.stderr).contains("nope"), "{out:?}");

        // attach: output from now on, of the first container where none is named.
        let attached = Beside::start(of(&["attach", "att"]));
        cluster.wait_for("output of an attached container", || attached.out().contains("said\n").then_some(()));
        drop(attached);
        // What is sent arrives; the end of it is not the end of a container that may be attached to again.
        for said in ["first", "second"] {
            let mut child = of(&["attach", "-i", "att", "-c", "reads"]);
            let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let out = collect(child.stdout.take().unwrap());
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(format!("{said}\n").as_bytes()).unwrap();
            drop(stdin);
            let wanted = format!("got {said}\n");
            cluster.wait_for("what was sent comes back", || out.lock().unwrap().contains(&wanted).then_some(()));
            assert!(!out.lock().unwrap().contains("end"));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let (seen, code) = on_a_terminal(&cluster, &kubectl, &["attach", "-it", "att", "-c", "term"]);
        assert_eq!(code, Some(0), "{seen}");
        assert!(seen.contains("Session ended, resume using 'kubectl attach att -c term -i -t'"), "{seen}");
        cluster.ready("att");
        // With stdinOnce the end of the first client's input is the container's.
        let out = with_input(of(&["attach", "-i", "att", "-c", "once"]), b"data\n");
        assert_eq!((out.status.code(), text(&out.stdout).as_str()), (Some(0), "data\nend\n"), "{out:?}");
        cluster.ready("att");
        let out = of(&["attach", "att", "-c", "nope"]).output().unwrap();
        let why =
            if kubectl == old_kubectl() { "container not found (nope)" } else { "container nope not found in pod att" };
        assert_eq!(text(&out.stderr), format!("error: cannot attach to the container: {why}\n"));
    }
}

/// Messages for streams that the client does not know yet would show on standard error.
#[test]
fn exec_says_nothing_of_its_own() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(&objects());
    cluster.ready("att");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let out = cluster.try_kubectl(&["exec", "att", "-c", "says", "--", "echo", "hi"]);
                    assert!(out.status.success(), "{out:?}");
                    assert_eq!((text(&out.stdout).as_str(), text(&out.stderr).as_str()), ("hi\n", ""));
                }
            });
        }
    });
}

#[test]
fn run_attaches_and_exits_with_the_code() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    let image = format!("--image={BUSYBOX}");
    for (kubectl, tag) in [(newest_kubectl(), "new"), (old_kubectl(), "old")] {
        let run = |name: &str, options: &[&str], script: &str, input: &[u8]| {
            let name = format!("{name}-{tag}");
            let mut all = vec!["run", &name, &image, "--restart=Never"];
            all.extend(options);
            all.extend(["--", "sh", "-c", script]);
            with_input(cluster.command_of(&kubectl, &all), input)
        };
        let gone = |name: &str| {
            let found = cluster.kubectl(&["get", "pod", &format!("{name}-{tag}"), "--ignore-not-found", "-o", "name"]);
            assert_eq!(found, "");
        };
        let out = run("fed", &["-i", "--rm"], "cat; echo done; exit 3", b"one\ntwo\n");
        assert_eq!(out.status.code(), Some(3), "{out:?}");
        assert!(text(&out.stdout).starts_with("one\ntwo\ndone\n"), "{out:?}");
        assert!(text(&out.stdout).contains(&format!("pod \"fed-{tag}\" deleted")), "{out:?}");
        gone("fed");
        // It speaks until it has been heard: what a container said before the attachment is not repeated.
        let name = format!("attached-{tag}");
        let script = "until test -e /tmp/heard; do echo out; sleep 0.2; done; exit 4";
        let arguments = ["run", &name, &image, "--restart=Never", "--attach", "--", "sh", "-c", script];
        let mut attached = Beside::start(cluster.command_of(&kubectl, &arguments));
        cluster.wait_for("output of what is run", || attached.out().contains("out\n").then_some(()));
        cluster.kubectl(&["exec", &name, "--", "touch", "/tmp/heard"]);
        assert_eq!(attached.child.wait().unwrap().code(), Some(4), "{}", attached.err());
        // What ends at once may have ended before the attachment.
        let out = run("quick", &["--attach", "--rm"], "exit 0", b"");
        assert_eq!(out.status.code(), Some(0), "{out:?}");
        gone("quick");
        // Not attached: kubectl is done when the pod is there.
        let out = run("alone", &[], "exit 5", b"");
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), format!("pod/alone-{tag} created\n")));
        assert_eq!(cluster.finished(&format!("alone-{tag}")), "Failed");
        // Attaching to what has ended.
        let pod = format!("alone-{tag}");
        let out = cluster.command_of(&kubectl, &["attach", &pod]).output().unwrap();
        assert_eq!(
            text(&out.stderr).lines().last().unwrap(),
            "error: cannot attach a container in a completed pod; current phase is Failed"
        );
        // On a terminal.
        let name = format!("term-{tag}");
        let arguments = ["run", &name, &image, "--restart=Never", "-it", "--rm", "--", "sh"];
        let (seen, code) = on_a_terminal(&cluster, &kubectl, &arguments);
        assert_eq!(code, Some(9), "{seen}");
        gone("term");
    }
}

/// An ephemeral container that targets another sees its processes; one that does not sees its own.
#[test]
fn debug_looks_into_a_container() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(&objects());
    cluster.ready("att");
    let image = format!("--image={BUSYBOX}");
    let debug = |name: &str, more: &[&str]| {
        let container = format!("--container={name}");
        let mut all = vec!["debug", "att", &image, &container, "--profile=general", "--attach=false"];
        all.extend(more);
        all.extend(["--", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"]);
        cluster.kubectl(&all);
        cluster.wait_for("the ephemeral container ended", || {
            let path =
                format!("{{.status.ephemeralContainerStatuses[?(@.name==\"{name}\")].state.terminated.exitCode}}");
            (cluster.jsonpath(&["pod", "att"], &path) == "0").then_some(())
        });
        cluster.kubectl(&["logs", "att", "-c", name])
    };
    assert!(debug("into", &["--target=says"]).contains("echo said"));
    assert!(debug("beside", &[]).contains("/proc/1/cmdline"));
    // The target goes on when the one that looked into it has ended.
    let restarts = cluster.jsonpath(&["pod", "att"], "{.status.containerStatuses[?(@.name==\"says\")].restartCount}");
    assert_eq!(restarts, "0");
    let error = cluster.kubectl_error(&["debug", "att", &image, "--target=nope", "--profile=general", "--", "true"]);
    assert!(error.contains("spec.ephemeralContainers[2].targetContainerName: Not found: \"nope\""), "{error}");
}

#[test]
fn proxy_passes_on() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(&objects());
    cluster.rolled_out("web");
    let pod = cluster.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.name}");
    let ip = cluster.jsonpath(&["pod", &pod], "{.status.podIP}");
    for kubectl in [newest_kubectl(), old_kubectl()] {
        let proxy = Beside::start(cluster.command_of(&kubectl, &["proxy", "--port=0"]));
        let port: u16 = cluster.wait_for("kubectl proxy serves", || {
            proxy.out().lines().next()?.strip_prefix("Starting to serve on 127.0.0.1:")?.parse().ok()
        });
        let core = "/api/v1/namespaces/default";
        let get = |path: &str| inside(&cluster, || text(&http_get(port, path)));
        let answer = |path: &str| serde_json::from_str::<serde_json::Value>(&get(path)).unwrap();
        assert_eq!(answer("/version")["gitVersion"].as_str().unwrap().split('+').next(), Some("v1.37.0"));
        assert_eq!(answer(&format!("{core}/pods/{pod}"))["metadata"]["name"], pod);
        for path in [
            format!("{core}/pods/{pod}/proxy/index.html"),
            format!("{core}/pods/{pod}:8080/proxy/index.html"),
            format!("{core}/pods/http:{pod}:8080/proxy/index.html"),
            format!("{core}/services/web:http/proxy/index.html"),
            format!("{core}/services/web:80/proxy/index.html"),
            format!("{core}/services/http:web:80/proxy/index.html"),
            format!("{core}/services/plain/proxy/index.html"),
        ] {
            assert_eq!(get(&path), "hi\n", "{path}");
        }
        assert_eq!(get(&format!("{core}/services/plain/proxy/big")).len(), 14_888_896);
        let refusals = [
            (format!("{core}/services/web/proxy/"), 503, "no endpoints available for service \"web\"".to_owned()),
            (format!("{core}/services/web:x/proxy/"), 503, "no endpoints available for service \"web:x\"".to_owned()),
            (format!("{core}/services/nope/proxy/"), 404, "services \"nope\" not found".to_owned()),
            (format!("{core}/pods/nope/proxy/"), 404, "pods \"nope\" not found".to_owned()),
            (
                format!("{core}/pods/{pod}:1/proxy/"),
                503,
                format!("error trying to reach service: dial tcp {ip}:1: connect: connection refused"),
            ),
        ];
        for (path, code, message) in refusals {
            let status = answer(&path);
            assert_eq!((status["code"].as_u64(), status["message"].as_str()), (Some(code), Some(&*message)), "{path}");
        }
        // What kubectl does not pass on unless told so.
        assert_eq!(get(&format!("{core}/pods/{pod}/exec")).trim(), "Forbidden");
        let server = format!("http://127.0.0.1:{port}");
        let through =
            cluster.command_of(&kubectl, &["-s", &server, "get", "pod", &pod, "-o", "name"]).output().unwrap();
        assert_eq!(text(&through.stdout), format!("pod/{pod}\n"));
        let raw = format!("{core}/services/plain/proxy/index.html");
        let raw = cluster.command_of(&kubectl, &["get", "--raw", &raw]).output().unwrap();
        assert_eq!(text(&raw.stdout), "hi\n");
    }
}
