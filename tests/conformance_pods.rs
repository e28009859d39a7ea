//! Conformance: pods as API objects on a node — creation to deletion, status, logs, exec, hosts files, leases, sysctls,
//! changes of resources in place.

mod cluster;

use cluster::pods::{condition, container, container_of, create, event, once, pod, refused, restarts, sh, succeeded};
use cluster::{Cluster, busybox, enter};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

#[test]
fn pods() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    assigned_host_ip(&cluster);
    lifecycle(&cluster);
    update(&cluster);
    active_deadline(&cluster);
    service_environment(&cluster);
    delete_collection(&cluster);
    patch_status(&cluster);
    whole_life(&cluster);
    websockets(&cluster);
}

#[test]
fn node_agent() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    logs_and_ends(&cluster);
    host_aliases(&cluster);
    hosts_files(&cluster);
    leases(&cluster);
    sysctls(&cluster);
    conditions_and_generations(&cluster);
    resizes(&cluster);
    pod_level_resources(&cluster);
    deferred_resize(&cluster);
}

fn assigned_host_ip(cluster: &Cluster) {
    // Pods, assigned hostip
    create(cluster, &[pod("hostip", &json!({}), &json!({}))]);
    cluster.ready("hostip");
    let status = cluster.get(&["pod", "hostip"])["status"].clone();
    let node = cluster.get(&["node", "node-1"])["status"]["addresses"].clone();
    let ip = status["hostIP"].as_str().unwrap();
    assert!(ip.parse::<std::net::IpAddr>().is_ok(), "{ip}");
    assert!(node.as_array().unwrap().iter().any(|a| a["address"] == ip), "{node}");
    assert_eq!(status["hostIPs"][0]["ip"], ip);
}

/// kubectl with its output as it comes.
fn follow(cluster: &Cluster, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = cluster.command(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn lifecycle(cluster: &Cluster) {
    // Pods, lifecycle
    let labels = json!({"name": "foo", "time": "now"});
    let select = ["pods", "-l", "time=now"];
    assert_eq!(cluster.get(&select)["items"], json!([]));
    let path = "/api/v1/namespaces/default/pods?labelSelector=time%3Dnow&watch=true&timeoutSeconds=120";
    let (mut watch, mut events) = follow(cluster, &["get", "--raw", path]);
    let mut next = || {
        let mut line = String::new();
        events.read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        (event["type"].as_str().unwrap().to_owned(), event["object"].clone())
    };
    let mut submitted = pod("submitted", &json!({}), &json!({}));
    submitted["metadata"]["labels"] = labels;
    // The watch may begin after the creation: then this is what it begins with.
    create(cluster, &[submitted]);
    let (kind, first) = next();
    assert_eq!((kind.as_str(), &first["metadata"]["name"]), ("ADDED", &json!("submitted")));
    cluster.ready("submitted");
    cluster.kubectl(&["delete", "pod", "submitted", "--wait=false", "--grace-period=30"]);
    let (mut terminating, mut running) = (false, false);
    loop {
        let (kind, object) = next();
        terminating |= object["metadata"]["deletionTimestamp"].is_string();
        running |= object["status"]["phase"] == "Running";
        if kind == "DELETED" {
            assert_eq!(object["spec"]["containers"][0]["name"], "main");
            break;
        }
        assert_eq!(kind, "MODIFIED");
    }
    assert!(terminating && running);
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(cluster.get(&select)["items"], json!([]));
}

fn update(cluster: &Cluster) {
    // Pods, update
    let mut object = pod("updated", &json!({}), &json!({}));
    object["metadata"]["labels"] = json!({"time": "created"});
    create(cluster, &[object]);
    cluster.ready("updated");
    let mut now = cluster.get(&["pods", "-l", "time=created"])["items"][0].clone();
    now["metadata"]["labels"]["time"] = json!("updated");
    cluster.kubectl_with(&["replace", "-f", "-"], &now.to_string());
    assert_eq!(cluster.get(&["pods", "-l", "time=updated"])["items"][0]["metadata"]["name"], "updated");
    assert_eq!(cluster.get(&["pods", "-l", "time=created"])["items"], json!([]));
}

fn active_deadline(cluster: &Cluster) {
    // Pods, ActiveDeadlineSeconds
    create(cluster, &[pod("deadline", &json!({}), &json!({}))]);
    cluster.ready("deadline");
    cluster.kubectl(&["patch", "pod", "deadline", "-p", r#"{"spec":{"activeDeadlineSeconds":2}}"#]);
    assert_eq!(cluster.finished("deadline"), "Failed");
    let status = cluster.get(&["pod", "deadline"])["status"].clone();
    assert_eq!(status["reason"], "DeadlineExceeded");
    assert_eq!(status["message"], "Pod was active on the node longer than the specified deadline");
}

fn service_environment(cluster: &Cluster) {
    // Pods, service environment variables
    let mut server = pod(
        "server",
        &json!({"image": "gantry.local/self", "command": [], "args": ["serve", "--port", "8080"]}),
        &json!({}),
    );
    server["metadata"]["labels"] = json!({"app": "server"});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "fooservice"},
        "spec": {"ports": [{"port": 8765, "targetPort": 8080}], "selector": {"app": "server"}}});
    create(cluster, &[server, service]);
    let ip = cluster.jsonpath(&["service", "fooservice"], "{.spec.clusterIP}");
    // The node may hear of the pod before it hears of the Service: ask with new pods until both are known.
    let mut n = 0;
    let env = cluster.wait_for("the Service in a pod's environment", || {
        n += 1;
        let name = format!("client-env-{n}");
        create(cluster, &[once(&name, "", &json!({"command": ["env"]}), &json!({}))]);
        let env = succeeded(cluster, &name);
        env.contains("FOOSERVICE_SERVICE_HOST").then_some(env)
    });
    for line in [
        format!("FOOSERVICE_SERVICE_HOST={ip}"),
        "FOOSERVICE_SERVICE_PORT=8765".into(),
        format!("FOOSERVICE_PORT=tcp://{ip}:8765"),
        "FOOSERVICE_PORT_8765_TCP_PORT=8765".into(),
        "FOOSERVICE_PORT_8765_TCP_PROTO=tcp".into(),
        format!("FOOSERVICE_PORT_8765_TCP=tcp://{ip}:8765"),
        format!("FOOSERVICE_PORT_8765_TCP_ADDR={ip}"),
    ] {
        assert!(env.lines().any(|l| l == line), "no {line} in:\n{env}");
    }
}

fn delete_collection(cluster: &Cluster) {
    // Pods, delete a collection
    let set: Vec<Value> = (1..=3)
        .map(|i| {
            let mut pod = pod(&format!("test-pod-{i}"), &json!({}), &json!({}));
            pod["metadata"]["labels"] = json!({"type": "Testing"});
            pod
        })
        .collect();
    create(cluster, &set);
    assert_eq!(cluster.get(&["pods", "-l", "type=Testing"])["items"].as_array().unwrap().len(), 3);
    cluster.kubectl(&["delete", "--raw", "/api/v1/namespaces/default/pods?labelSelector=type%3DTesting"]);
    cluster.wait_for("all pods are gone", || {
        cluster.get(&["pods", "-l", "type=Testing"])["items"].as_array().unwrap().is_empty().then_some(())
    });
}

fn patch_status(cluster: &Cluster) {
    // Pods, patching status
    let mut object = pod("patched", &json!({}), &json!({"readinessGates": [{"conditionType": "test.local/gate"}]}));
    object["metadata"]["labels"] = json!({"test-pod-static": "true"});
    create(cluster, &[object]);
    cluster.wait_for("it runs", || container(cluster, "patched", "main")["ready"].as_bool()?.then_some(()));
    let before = cluster.get(&["pod", "patched"]);
    assert_eq!(condition(&before, "Ready").unwrap()["reason"], "ReadinessGatesNotReady");
    let patch = json!({"status": {"message": "Patched by the test", "reason": "E2E"}}).to_string();
    let answer = cluster.kubectl(&["patch", "pod", "patched", "--subresource=status", "-p", &patch, "-o", "json"]);
    let status = serde_json::from_str::<Value>(&answer).unwrap()["status"].take();
    // Of the answer: the node's agent owns these fields, and may say otherwise right after.
    assert_eq!((&status["message"], &status["reason"]), (&json!("Patched by the test"), &json!("E2E")), "{status}");
    let status = cluster.get(&["pod", "patched"])["status"].clone();
    assert!(status["phase"] == "Running", "{status}");
    // A condition of another writer is kept, and a gate opens by it.
    let gate = json!({"status": {"conditions": [{"type": "test.local/gate", "status": "True"}]}}).to_string();
    cluster.kubectl(&["patch", "pod", "patched", "--subresource=status", "-p", &gate]);
    cluster.ready("patched");
    let after = cluster.get(&["pod", "patched"]);
    assert_eq!(condition(&after, "test.local/gate").unwrap()["status"], "True");
}

fn whole_life(cluster: &Cluster) {
    // Pods, completes the lifecycle of a Pod and the PodStatus
    let mut object = pod("whole", &json!({}), &json!({}));
    object["metadata"]["labels"] = json!({"test-pod-static": "yes"});
    create(cluster, &[object]);
    cluster.ready("whole");
    // The image's name may change; the container is made anew.
    let patch = json!({"metadata": {"labels": {"test-pod": "patched"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "gantry.local/self"}]}});
    let error = cluster.kubectl_error(&[
        "patch",
        "pod",
        "whole",
        "-p",
        r#"{"spec":{"containers":[{"name":"main","command":["x"]}]}}"#,
    ]);
    assert!(error.contains("pod updates may not change fields other than `spec.containers[*].image`"), "{error}");
    cluster.kubectl(&["patch", "pod", "whole", "-p", &patch.to_string()]);
    let now = cluster.get(&["pod", "whole"]);
    assert_eq!(
        (&now["metadata"]["labels"]["test-pod"], &now["spec"]["containers"][0]["image"]),
        (&json!("patched"), &json!("gantry.local/self"))
    );
    event(cluster, "whole", "Killing", "Container main definition changed, will be restarted");
    // The status is replaced as a whole by its own path; the node puts right what is not so.
    let mut replaced = cluster.get(&["pod", "whole"]);
    let conditions = replaced["status"]["conditions"].as_array_mut().unwrap();
    conditions.iter_mut().find(|c| c["type"] == "Ready").unwrap()["status"] = json!("False");
    replaced["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let answer = cluster.kubectl_with(
        &["replace", "--raw", "/api/v1/namespaces/default/pods/whole/status", "-f", "-"],
        &replaced.to_string(),
    );
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(condition(&answer, "Ready").unwrap()["status"], "False");
    cluster.kubectl(&["delete", "--raw", "/api/v1/namespaces/default/pods?labelSelector=test-pod-static%3Dyes"]);
    cluster.kubectl(&["wait", "--for=delete", "pod/whole", "--timeout=60s"]);
}

/// A WebSocket connection through `kubectl proxy`, which speaks plain HTTP.
struct Socket(TcpStream);

impl Socket {
    fn open(port: u16, path: &str, protocol: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(cluster::PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap();
        if !head.starts_with("HTTP/1.1 101 ") {
            let mut rest = [0; 1000];
            let length = stream.read(&mut rest).unwrap();
            panic!("{head}{}", String::from_utf8_lossy(&rest[..length]));
        }
        assert!(head.to_lowercase().contains(&format!("sec-websocket-protocol: {protocol}")), "{head}");
        Socket(stream)
    }

    /// The next message with data, or `None` at the end.
    fn message(&mut self) -> Option<Vec<u8>> {
        loop {
            let mut head = [0; 2];
            self.0.read_exact(&mut head).ok()?;
            let mut length = u64::from(head[1] & 0x7f);
            let wide = match length {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            if wide > 0 {
                let mut bytes = [0; 8];
                self.0.read_exact(&mut bytes[8 - wide..]).unwrap();
                length = u64::from_be_bytes(bytes);
            }
            let mut data = vec![0; usize::try_from(length).unwrap()];
            self.0.read_exact(&mut data).unwrap();
            match head[0] & 0xf {
                1 | 2 => return Some(data),
                8 => return None,
                _ => {}
            }
        }
    }

    /// All that a channel said until it has `wanted`.
    fn until(&mut self, channel: Option<u8>, wanted: &str) -> String {
        let mut all = String::new();
        while let Some(message) = self.message() {
            let data = match channel {
                None => &message[..],
                Some(c) if message.first() == Some(&c) => &message[1..],
                Some(_) => continue,
            };
            all.push_str(&String::from_utf8_lossy(data));
            if all.contains(wanted) {
                return all;
            }
        }
        panic!("the connection ended before {wanted:?}: {all:?}");
    }
}

fn websockets(cluster: &Cluster) {
    create(
        cluster,
        &[pod("socket", &json!({"command": ["sh", "-c", "echo container is alive; exec sleep 1000000"]}), &json!({}))],
    );
    cluster.ready("socket");
    let (mut proxy, mut output) = follow(cluster, &["proxy", "--port=0", "--disable-filter=true"]);
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let port: u16 = line.trim().rsplit(':').next().unwrap().parse().unwrap_or_else(|e| panic!("{e}: {line}"));
    let network = cluster.network();
    let heard = std::thread::spawn(move || {
        enter(&network);
        let base = "/api/v1/namespaces/default/pods/socket";
        let command = "command=cat&command=/etc/marker&stdout=1&stderr=1&container=main";
        let exec = Socket::open(port, &format!("{base}/exec?{command}"), "v4.channel.k8s.io").until(Some(1), "marker");
        let log = Socket::open(port, &format!("{base}/log?container=main"), "binary.k8s.io").until(None, "alive\n");
        (exec, log)
    });
    let (exec, log) = heard.join().unwrap();
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    // Pods, remote command execution over websocket
    assert_eq!(exec, "marker");
    // Pods, logs from websockets
    assert_eq!(log, "container is alive\n");
}

fn logs_and_ends(cluster: &Cluster) {
    create(
        cluster,
        &[
            once("logs", "echo Hello World; echo to stderr >&2", &json!({}), &json!({})),
            once("bin-false", "", &json!({"command": ["false"]}), &json!({})),
            once("bin-false-always", "", &json!({"command": ["false"]}), &json!({"restartPolicy": "Always"})),
            once(
                "readonly",
                "echo test > /file; sleep 240",
                &json!({"securityContext": {"readOnlyRootFilesystem": true}}),
                &json!({}),
            ),
        ],
    );
    // Kubelet, log output, default
    assert_eq!(cluster.finished("logs"), "Succeeded");
    let log = cluster.wait_for("both streams", || {
        let log = cluster.kubectl(&["logs", "logs"]);
        (log.lines().count() == 2).then_some(log)
    });
    assert!(log.contains("Hello World\n") && log.contains("to stderr\n"), "{log}");
    // Kubelet, failed pod, terminated reason
    assert_eq!(cluster.finished("bin-false"), "Failed");
    let end = container(cluster, "bin-false", "main")["state"]["terminated"].clone();
    assert_eq!((&end["reason"], &end["exitCode"]), (&json!("Error"), &json!(1)));
    // Kubelet, failed pod, delete
    cluster.kubectl(&["delete", "pod", "bin-false", "bin-false-always", "--timeout=60s"]);
    // Kubelet, pod with read only root file system
    cluster.wait_for("the write fails", || {
        let log = cluster.kubectl(&["logs", "readonly"]);
        log.contains("can't create /file: Read-only file system").then_some(())
    });
}

fn host_aliases(cluster: &Cluster) {
    // Kubelet, hostAliases
    let aliases = json!([{"ip": "123.45.67.89", "hostnames": ["foo", "bar"]}]);
    create(cluster, &[once("aliases", "cat /etc/hosts", &json!({}), &json!({"hostAliases": aliases}))]);
    let hosts = succeeded(cluster, "aliases");
    assert!(hosts.contains("# Entries added by HostAliases.\n123.45.67.89\tfoo\tbar\n"), "{hosts}");
}

fn hosts_files(cluster: &Cluster) {
    // Kubelet, managed etc hosts
    let host_file = cluster.data_dir().join("hosts");
    std::fs::write(&host_file, "127.0.0.1 of-the-host\n").unwrap();
    let mount = json!({"name": "hosts", "hostPath": {"path": host_file, "type": "File"}});
    let plain = |name: &str| json!({"name": name, "image": busybox::BUSYBOX, "command": ["sleep", "1000000"]});
    let mut mounting = plain("mounting");
    mounting["volumeMounts"] = json!([{"name": "hosts", "mountPath": "/etc/hosts"}]);
    let three = json!([plain("main"), plain("second"), mounting]);
    create(
        cluster,
        &[
            pod("hosts", &json!({}), &json!({"containers": three, "volumes": [mount]})),
            pod(
                "hosts-host",
                &json!({}),
                &json!({"hostNetwork": true, "containers": [plain("main"), plain("second")]}),
            ),
        ],
    );
    cluster.ready("hosts");
    cluster.ready("hosts-host");
    let read = |pod: &str, container: &str| cluster.kubectl(&["exec", pod, "-c", container, "--", "cat", "/etc/hosts"]);
    let managed = "# Kubernetes-managed hosts file.\n";
    let ip = cluster.jsonpath(&["pod", "hosts"], "{.status.podIP}");
    for name in ["main", "second"] {
        let text = read("hosts", name);
        assert!(text.starts_with(managed) && text.contains(&format!("{ip}\thosts\n")), "{text}");
    }
    assert_eq!(read("hosts", "mounting"), "127.0.0.1 of-the-host\n");
    // With the host's network it is a copy of the host's own.
    let host = std::fs::read_to_string("/etc/hosts").unwrap();
    for name in ["main", "second"] {
        let text = read("hosts-host", name);
        assert!(!text.starts_with(managed), "{text}");
        assert!(text.contains(&host), "{text}");
    }
}

fn leases(cluster: &Cluster) {
    // lease API should be available
    let lease = |name: &str, spec: Value| json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec});
    let spec = json!({"holderIdentity": "holder", "leaseDurationSeconds": 30, "acquireTime": "2026-01-02T03:04:05.123456Z",
        "renewTime": "2026-01-02T03:04:10.000000Z", "leaseTransitions": 0});
    create(cluster, &[lease("lease", spec.clone())]);
    let get = || cluster.get(&["lease", "lease"])["spec"].clone();
    assert_eq!(get(), spec);
    let other = json!({"holderIdentity": "holder2", "leaseDurationSeconds": 60, "acquireTime": "2026-01-02T03:05:05.000001Z",
        "renewTime": "2026-01-02T03:05:10.000000Z", "leaseTransitions": 1});
    cluster.kubectl_with(&["replace", "-f", "-"], &lease("lease", other.clone()).to_string());
    assert_eq!(get(), other);
    cluster.kubectl(&[
        "patch",
        "lease",
        "lease",
        "--type=merge",
        "-p",
        r#"{"spec":{"leaseDurationSeconds":90,"leaseTransitions":null}}"#,
    ]);
    let mut patched = other;
    patched["leaseDurationSeconds"] = json!(90);
    patched.as_object_mut().unwrap().remove("leaseTransitions");
    assert_eq!(get(), patched);
    let mut second = lease("lease2", json!({"holderIdentity": "x"}));
    second["metadata"]["labels"] = json!({"deletecollection": "true"});
    create(cluster, &[second]);
    let names = || cluster.jsonpath(&["leases"], "{.items[*].metadata.name}");
    assert_eq!(names(), "lease lease2");
    let path = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    cluster.kubectl(&["delete", "--raw", &format!("{path}?labelSelector=deletecollection%3Dtrue")]);
    assert_eq!(names(), "lease");
    cluster.kubectl(&["delete", "lease", "lease"]);
    assert!(
        cluster.kubectl_error(&["get", "lease", "lease"]).contains("leases.coordination.k8s.io \"lease\" not found")
    );
}

fn sysctls(cluster: &Cluster) {
    let with = |name: &str, list: Value| {
        once(
            name,
            "sysctl kernel.shm_rmid_forced net.ipv4.ip_unprivileged_port_start",
            &json!({}),
            &json!({"securityContext": {"sysctls": list}}),
        )
    };
    // Sysctl, test sysctls
    create(
        cluster,
        &[
            with(
                "sysctl",
                json!([{"name": "kernel.shm_rmid_forced", "value": "1"}, {"name": "net/ipv4/ip_unprivileged_port_start", "value": "7"}]),
            ),
            // One that is not safe, and that the node was not told to allow.
            with("sysctl-unsafe", json!([{"name": "kernel.msgmax", "value": "10000000000"}])),
        ],
    );
    assert_eq!(succeeded(cluster, "sysctl"), "kernel.shm_rmid_forced = 1\nnet.ipv4.ip_unprivileged_port_start = 7\n");
    assert_eq!(cluster.finished("sysctl-unsafe"), "Failed");
    let status = cluster.get(&["pod", "sysctl-unsafe"])["status"].clone();
    assert_eq!(status["reason"], "SysctlForbidden");
    assert_eq!(status["message"], "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted");
    event(cluster, "sysctl-unsafe", "SysctlForbidden", "forbidden sysctl: \"kernel.msgmax\" not allowlisted");
    // Sysctls, reject invalid sysctls
    let error = refused(
        cluster,
        &with(
            "sysctl-bad",
            json!([{"name": "foo-", "value": "bar"}, {"name": "kernel.shmmax", "value": "100000000"},
                {"name": "safe-and-unsafe", "value": "100000000"}, {"name": "bar..", "value": "42"}]),
        ),
    );
    for (index, name) in [(0, "foo-"), (3, "bar..")] {
        let wanted = format!("spec.securityContext.sysctls[{index}].name: Invalid value: \"{name}\"");
        assert!(error.contains(&wanted), "{error}");
    }
    assert!(!error.contains("kernel.shmmax"), "{error}");
}

// Conformance: Pods Generation, updates
fn conditions_and_generations(cluster: &Cluster) {
    // PodReadyToStartContainers says when sandbox and network are there, before any container.
    create(
        cluster,
        &[
            pod(
                "held",
                &json!({}),
                &json!({"initContainers": [{"name": "hold", "image": busybox::BUSYBOX, "command": ["sleep", "1000000"]}]}),
            ),
            pod(
                "no-volume",
                &json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
                &json!({"volumes": [{"name": "v", "configMap": {"name": "not-there"}}]}),
            ),
        ],
    );
    let state = |name: &str, kind: &str| {
        let pod = cluster.get(&["pod", name]);
        condition(&pod, kind).map(|c| c["status"].as_str().unwrap().to_owned())
    };
    cluster.wait_for("sandbox and network", || {
        (state("held", "PodReadyToStartContainers").as_deref() == Some("True")).then_some(())
    });
    assert_eq!(state("held", "Initialized").as_deref(), Some("False"));
    event(
        cluster,
        "no-volume",
        "FailedMount",
        "MountVolume.SetUp failed for volume \"v\" : configmap \"not-there\" not found",
    );
    assert_eq!(state("no-volume", "PodReadyToStartContainers").as_deref(), Some("False"));
    // The generation counts changes of the spec, and the status and its conditions say which one they are about.
    let generation = || {
        let pod = cluster.get(&["pod", "held"]);
        (pod["metadata"]["generation"].as_i64(), pod["status"]["observedGeneration"].as_i64(), pod)
    };
    cluster.wait_for("the first generation is seen", || (generation().1 == Some(1)).then_some(()));
    cluster.kubectl(&["label", "pod", "held", "a=b"]);
    assert_eq!(generation().0, Some(1));
    cluster.kubectl(&["patch", "pod", "held", "-p", r#"{"spec":{"activeDeadlineSeconds":50000}}"#]);
    assert_eq!(generation().0, Some(2));
    cluster.wait_for("the second generation is seen", || {
        let (_, seen, pod) = generation();
        (seen == Some(2) && condition(&pod, "Ready")?["observedGeneration"] == 2).then_some(())
    });
    cluster.kubectl(&["delete", "pod", "no-volume", "held", "--timeout=60s"]);
}

/// A cgroup file of the container it is read in, for version 2 or 1.
fn cgroup(cluster: &Cluster, pod: &str, v2: &str, v1: &str) -> String {
    let path = if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { v2 } else { v1 };
    sh(cluster, pod, &format!("cat /sys/fs/cgroup/{path}")).trim().to_owned()
}

// Conformance: In-place Pod Resize, read and replace endpoints
fn resizes(cluster: &Cluster) {
    let resources = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
    let restart = json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}, {"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let term = json!(["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]);
    create(
        cluster,
        &[
            pod("resized", &json!({"resources": resources("100m", "64Mi"), "command": term}), &json!({})),
            pod(
                "resized-anew",
                &json!({"resources": resources("100m", "64Mi"), "resizePolicy": restart, "command": term}),
                &json!({}),
            ),
        ],
    );
    let resize = |pod: &str, cpu: &str, memory: &str| {
        let patch =
            json!({"spec": {"containers": [{"name": "main", "resources": resources(cpu, memory)}]}}).to_string();
        cluster.try_kubectl(&["patch", "pod", pod, "--subresource=resize", "-p", &patch])
    };
    let in_force = |pod: &str, cpu: &str, memory: &str| {
        cluster.wait_for(&format!("{pod} has {cpu} and {memory}"), || {
            let main = container(cluster, pod, "main");
            let wanted = resources(cpu, memory);
            let fits = main["resources"]["limits"] == wanted["limits"]
                && main["resources"]["requests"] == wanted["requests"]
                && main["allocatedResources"] == wanted["requests"];
            fits.then_some(())
        });
    };
    for pod in ["resized", "resized-anew"] {
        cluster.ready(pod);
        in_force(pod, "100m", "64Mi");
        assert!(resize(pod, "200m", "96Mi").status.success());
        in_force(pod, "200m", "96Mi");
        assert_eq!(cgroup(cluster, pod, "memory.max", "memory/memory.limit_in_bytes"), (96 << 20).to_string());
        let quota = cgroup(cluster, pod, "cpu.max", "cpu/cpu.cfs_quota_us");
        assert_eq!(quota.split(' ').next(), Some("20000"));
    }
    assert_eq!(restarts(cluster, "resized", "main"), 0);
    assert_eq!(restarts(cluster, "resized-anew", "main"), 1);
    // What the node can never give is said to be infeasible, and what is in force stays in the status.
    assert!(resize("resized", "5000", "96Mi").status.success());
    cluster.wait_for("the change is infeasible", || {
        let pod = cluster.get(&["pod", "resized"]);
        let pending = condition(&pod, "PodResizePending")?;
        (pending["reason"] == "Infeasible").then(|| {
            assert_eq!(pending["status"], "True");
            assert!(
                pending["message"]
                    .as_str()
                    .unwrap()
                    .starts_with("Node didn't have enough capacity: cpu, requested: 5000000, capacity: "),
                "{pending}"
            );
            let main = container_of(&pod, "main");
            assert_eq!(main["resources"]["limits"]["cpu"], "200m");
            assert_eq!(main["allocatedResources"]["cpu"], "200m");
        })
    });
    // It can be taken back.
    assert!(resize("resized", "100m", "96Mi").status.success());
    in_force("resized", "100m", "96Mi");
    cluster.wait_for("nothing is pending", || {
        let pod = cluster.get(&["pod", "resized"]);
        (condition(&pod, "PodResizePending").is_none() && condition(&pod, "PodResizeInProgress").is_none())
            .then_some(())
    });
    // The class may not change.
    let output = cluster.try_kubectl(&[
        "patch",
        "pod",
        "resized",
        "--subresource=resize",
        "-p",
        r#"{"spec":{"containers":[{"name":"main","resources":{"limits":{"cpu":"300m"}}}]}}"#,
    ]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("Pod QOS Class may not change as a result of resizing"), "{error}");
}

/// A change for which there is no room now is made when there is.
fn deferred_resize(cluster: &Cluster) {
    cluster.kubectl(&["delete", "pods", "--all", "--timeout=80s"]);
    let cores = cluster.jsonpath(&["node", "node-1"], "{.status.allocatable.cpu}").parse::<u32>().expect("whole cores");
    let cpu = |milli: u32| json!({"resources": {"requests": {"cpu": format!("{milli}m")}}});
    create(cluster, &[pod("big", &cpu(cores * 1000 - 300), &json!({})), pod("growing", &cpu(100), &json!({}))]);
    cluster.ready("big");
    cluster.ready("growing");
    let patch =
        json!({"spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "400m"}}}]}}).to_string();
    cluster.kubectl(&["patch", "pod", "growing", "--subresource=resize", "-p", &patch]);
    cluster.wait_for("the change waits", || {
        let pod = cluster.get(&["pod", "growing"]);
        let pending = condition(&pod, "PodResizePending")?;
        (pending["reason"] == "Deferred").then(|| {
            assert_eq!(container_of(&pod, "main")["allocatedResources"]["cpu"], "100m");
        })
    });
    cluster.kubectl(&["delete", "pod", "big"]);
    cluster.wait_for("the change is made", || {
        let pod = cluster.get(&["pod", "growing"]);
        let main = container_of(&pod, "main");
        (main["allocatedResources"]["cpu"] == "400m" && condition(&pod, "PodResizePending").is_none()).then(|| {
            assert_eq!(main["restartCount"], 0);
        })
    });
}

fn pod_level_resources(cluster: &Cluster) {
    let resources =
        json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "200m", "memory": "128Mi"}});
    create(cluster, &[pod("pod-level", &json!({}), &json!({"resources": resources}))]);
    cluster.ready("pod-level");
    let status = cluster.get(&["pod", "pod-level"])["status"].clone();
    assert_eq!(status["qosClass"], "Burstable");
}
