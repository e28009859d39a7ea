//! What a pod is given: environment and volumes from ConfigMaps, Secrets, its own fields and the node; kept up to date.

mod cluster;

use cluster::Cluster;
use cluster::busybox;
use std::os::unix::fs::MetadataExt;

/// Runs a shell command in a container and returns what it printed.
fn sh(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.kubectl(&["exec", pod, "-c", "main", "--", "sh", "-c", script])
}

fn fails(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.kubectl_error(&["exec", pod, "-c", "main", "--", "sh", "-c", script])
}

const SOURCES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {color: blue, size.txt: "large\n", not-a-name: x, shape: round}
binaryData: {raw: AAEC}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {user: admin, password: "s3cret"}
"#;

#[test]
fn environment() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(SOURCES);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: env, labels: {tier: test}, annotations: {note: hello}}
spec:
  restartPolicy: Never
  hostname: confhost
  subdomain: sub
  containers:
  - name: main
    image: test.local/busybox:1
    command: [sh, -c, "echo $(GREETING) '$$(GREETING)'; echo arg $0"]
    args: ["$(COLOR)-$(NOBODY)"]
    resources: {requests: {cpu: 100m, memory: 32Mi, ephemeral-storage: 1Mi}, limits: {cpu: 1500m, memory: 64Mi}}
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: conf, key: color}}}
    - {name: shape, value: mine}
    - {name: MISSING, valueFrom: {configMapKeyRef: {name: conf, key: nope, optional: true}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: sec, key: password}}}
    - {name: GREETING, value: "'hi $(COLOR) $$(COLOR) $(LATER)'"}
    - {name: LATER, value: later}
  - name: show
    image: test.local/busybox:1
    command: [env]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 1500m, memory: 64Mi}}
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: conf, key: color}}}
    - {name: shape, value: mine}
    - {name: MISSING, valueFrom: {configMapKeyRef: {name: conf, key: nope, optional: true}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: sec, key: password}}}
    - {name: GREETING, value: "hi $(COLOR) $$(COLOR) $(LATER)"}
    - {name: LATER, value: later}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: POD_NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: CPU_LIMIT, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    - {name: CPU_LIMIT_WHOLE, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: CPU_REQUEST, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MEMORY_LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: MEMORY_MI, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    envFrom:
    - {configMapRef: {name: conf}}
    - {prefix: SEC_, secretRef: {name: sec}}
    - {configMapRef: {name: absent, optional: true}}
"#,
    );
    assert_eq!(cluster.finished("env"), "Succeeded");
    assert_eq!(
        cluster.kubectl(&["logs", "env", "-c", "main"]),
        "hi blue $(COLOR) $(LATER) $(GREETING)\narg blue-$(NOBODY)\n"
    );
    let printed = cluster.kubectl(&["logs", "env", "-c", "show"]);
    let seen: Vec<&str> = printed.lines().collect();
    let pod = cluster.get(&["pod", "env"]);
    let field = |path: &str| pod.pointer(path).and_then(|v| v.as_str()).unwrap_or_else(|| panic!("{path}")).to_owned();
    for wanted in [
        "PATH=/bin".to_owned(),
        "FROM_IMAGE=yes".to_owned(),
        "HOSTNAME=confhost".to_owned(),
        "HOME=/root".to_owned(),
        "COLOR=blue".to_owned(),
        "color=blue".to_owned(),
        "shape=mine".to_owned(),
        "not-a-name=x".to_owned(),
        "size.txt=large".to_owned(),
        "SEC_user=admin".to_owned(),
        "SEC_password=s3cret".to_owned(),
        "PASSWORD=s3cret".to_owned(),
        "GREETING=hi blue $(COLOR) $(LATER)".to_owned(),
        "POD_NAME=env".to_owned(),
        "POD_NS=default".to_owned(),
        "NODE=node-1".to_owned(),
        "ACCOUNT=default".to_owned(),
        "TIER=test".to_owned(),
        "NOTE=hello".to_owned(),
        "CPU_LIMIT=1500".to_owned(),
        "CPU_LIMIT_WHOLE=2".to_owned(),
        "CPU_REQUEST=100".to_owned(),
        "MEMORY_LIMIT=67108864".to_owned(),
        "MEMORY_MI=64".to_owned(),
        "KUBERNETES_SERVICE_HOST=10.96.0.1".to_owned(),
        "KUBERNETES_SERVICE_PORT_HTTPS=443".to_owned(),
        format!("POD_UID={}", field("/metadata/uid")),
        format!("POD_IP={}", field("/status/podIP")),
        format!("HOST_IP={}", field("/status/hostIP")),
    ] {
        assert!(seen.contains(&wanted.as_str()), "no {wanted} in:\n{printed}");
    }
    for unwanted in ["MISSING=", "raw="] {
        assert!(!seen.iter().any(|l| l.starts_with(unwanted)), "{unwanted} in:\n{printed}");
    }

    // Without what it refers to a container waits and says for what; it starts once that is there.
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: test.local/busybox:1
    command: [sh, -c, "echo $V"]
    env: [{name: V, valueFrom: {configMapKeyRef: {name: late, key: v}}}]
"#,
    );
    let waiting = |wanted: &str| {
        cluster.wait_for(wanted, || {
            let path = "{.status.containerStatuses[0].state.waiting.reason}: \
                        {.status.containerStatuses[0].state.waiting.message}";
            (cluster.jsonpath(&["pod", "waits"], path) == wanted).then_some(())
        });
    };
    waiting("CreateContainerConfigError: configmap \"late\" not found");
    cluster.kubectl(&["create", "configmap", "late", "--from-literal=other=x"]);
    waiting("CreateContainerConfigError: couldn't find key v in ConfigMap default/late");
    cluster.kubectl(&["patch", "configmap", "late", "-p", r#"{"data":{"v":"here"}}"#]);
    assert_eq!(cluster.finished("waits"), "Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "waits"]), "here\n");
}

#[test]
fn volumes() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(SOURCES);
    let host = cluster.data_dir().join("host-path");
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: vols, labels: {app: vols, tier: test}, annotations: {note: hello}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: prepare
    image: test.local/busybox:1
    command: [sh, -c, "echo from-init > /disk/init.txt; mkdir /disk/sub; echo in-sub > /disk/sub/f; ln -s /etc /disk/evil"]
    volumeMounts: [{name: disk, mountPath: /disk}]
  containers:
  - name: main
    image: test.local/busybox:1
    command: [sleep, "1000000"]
    resources: {limits: {memory: 64Mi}}
    env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: items, mountPath: /items}
    - {name: sec, mountPath: /sec}
    - {name: disk, mountPath: /disk}
    - {name: disk, mountPath: /sub, subPath: sub}
    - {name: disk, mountPath: /expr, subPathExpr: "dir-$(POD_NAME)"}
    - {name: disk, mountPath: /disk-ro, readOnly: true}
    - {name: conf, mountPath: /etc/size.txt, subPath: size.txt}
    - {name: mem, mountPath: /mem}
    - {name: host, mountPath: /host}
    - {name: down, mountPath: /down}
    - {name: all, mountPath: /all}
    - {name: absent, mountPath: /absent}
  volumes:
  - {name: conf, configMap: {name: conf}}
  - name: items
    configMap:
      name: conf
      defaultMode: 0400
      items: [{key: color, path: a/b/color, mode: 0640}, {key: raw, path: raw}]
  - {name: sec, secret: {secretName: sec, defaultMode: 0440}}
  - {name: disk, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: host, hostPath: {path: HOST, type: DirectoryOrCreate}}
  - name: down
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}
      - {path: mem, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}}
  - name: all
    projected:
      defaultMode: 0444
      sources:
      - {configMap: {name: conf, items: [{key: color, path: c}]}}
      - {secret: {name: sec, items: [{key: user, path: deep/u, mode: 0400}]}}
      - {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
      - {serviceAccountToken: {path: token, audience: vault, expirationSeconds: 600}}
  - {name: absent, configMap: {name: absent, optional: true}}
"#
    .replace("HOST", host.to_str().unwrap());
    cluster.apply(&pod);
    cluster.ready("vols");
    let sh = |script: &str| sh(&cluster, "vols", script);
    let mode = |path: &str| sh(&format!("stat -L -c %a {path}")).trim().to_owned();

    // ConfigMap and Secret.
    assert_eq!(
        sh("ls /conf; cat /conf/color /conf/size.txt; od -An -tx1 /conf/raw"),
        "color\nnot-a-name\nraw\nshape\nsize.txt\nbluelarge\n 00 01 02\n"
    );
    assert_eq!(sh("find /items/ -follow -type f -not -path '*/..*'"), "/items/raw\n/items/a/b/color\n");
    assert_eq!([mode("/conf/color"), mode("/items/a/b/color"), mode("/items/raw")], ["644", "640", "400"]);
    assert_eq!(sh("cat /sec/user /sec/password; ls /absent"), "admins3cret");
    assert_eq!(mode("/sec/user"), "440");
    assert_eq!(sh("stat -f -c %T /sec /all /down /var/run/secrets/kubernetes.io/serviceaccount"), "tmpfs\n".repeat(4));
    assert!(fails(&cluster, "vols", "echo x > /conf/x").contains("Read-only file system"));
    assert!(fails(&cluster, "vols", "echo x > /sec/x").contains("Read-only file system"));

    // emptyDir, shared with the init container; subPath.
    assert_eq!(
        sh("cat /disk/init.txt /disk-ro/init.txt /sub/f /etc/size.txt"),
        "from-init\nfrom-init\nin-sub\nlarge\n"
    );
    assert_eq!(sh("echo y > /expr/f; cat /disk/dir-vols/f; stat -c %a /disk"), "y\n777\n");
    assert!(fails(&cluster, "vols", "echo x > /disk-ro/x").contains("Read-only file system"));
    assert_eq!(sh("stat -f -c %T /mem; df -k /mem | tail -n1 | awk '{print $2}'"), "tmpfs\n8192\n");
    assert!(fails(&cluster, "vols", "dd if=/dev/zero of=/mem/big bs=1M count=10").contains("No space left on device"));

    // hostPath.
    sh("echo from-pod > /host/f");
    assert_eq!(std::fs::read_to_string(host.join("f")).unwrap(), "from-pod\n");
    assert_eq!(std::fs::metadata(&host).unwrap().mode() & 0o7777, 0o755);

    // downwardAPI and projected.
    assert_eq!(
        sh("cat /down/labels; echo; cat /down/note; echo; cat /down/mem"),
        "app=\"vols\"\ntier=\"test\"\nhello\n64"
    );
    assert_eq!(sh("cat /all/c /all/deep/u /all/name"), "blueadminvols");
    assert_eq!([mode("/all/c"), mode("/all/deep/u"), mode("/all/token")], ["444", "400", "444"]);
    let token = sh("cat /all/token");
    let claims = token.split('.').nth(1).expect("a JWT has three parts");
    let claims = run_with_input(&["base64", "-d"], &padded(claims));
    let claims: serde_json::Value = serde_json::from_str(&claims).unwrap();
    assert_eq!(claims["aud"], serde_json::json!(["vault"]));
    assert_eq!(claims["sub"], "system:serviceaccount:default:default");
    assert_eq!(claims["kubernetes.io"]["pod"]["name"], "vols");
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);

    // Changes arrive without a restart, all files of a volume at once; a subPath keeps what it was.
    cluster.kubectl(&[
        "patch",
        "configmap",
        "conf",
        "-p",
        r#"{"data":{"color":"red","size.txt":"small\n","shape":null,"fresh":"new"}}"#,
    ]);
    cluster.kubectl(&["patch", "secret", "sec", "-p", r#"{"stringData":{"password":"changed"}}"#]);
    cluster.kubectl(&["label", "pod", "vols", "tier=other", "--overwrite"]);
    cluster.wait_for("updated volumes", || {
        let now = sh("cat /conf/color /all/c /items/a/b/color /sec/password; ls /conf; tail -n1 /down/labels");
        (now == "redredredchangedcolor\nfresh\nnot-a-name\nraw\nsize.txt\ntier=\"other\"").then_some(())
    });
    assert_eq!(sh("cat /etc/size.txt /conf/size.txt"), "large\nsmall\n");
    // One that was absent appears.
    cluster.kubectl(&["create", "configmap", "absent", "--from-literal=k=v"]);
    cluster.wait_for("the optional ConfigMap", || (sh("cat /absent/k 2>&1 || true") == "v").then_some(()));
    assert_eq!(cluster.jsonpath(&["pod", "vols"], "{.status.containerStatuses[0].restartCount}"), "0");

    // A subPath cannot leave its volume.
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: escape}
spec:
  restartPolicy: Never
  initContainers:
  - {name: a, image: test.local/busybox:1, command: [ln, -s, /etc, /disk/evil], volumeMounts: [{name: disk, mountPath: /disk}]}
  containers:
  - {name: main, image: test.local/busybox:1, command: [ls, /out], volumeMounts: [{name: disk, mountPath: /out, subPath: evil}]}
  volumes: [{name: disk, emptyDir: {}}]
"#,
    );
    let reason = cluster.wait_for("the escape is refused", || {
        let reason = cluster.jsonpath(&["pod", "escape"], "{.status.containerStatuses[0].state.waiting.reason}");
        (!matches!(reason.as_str(), "" | "PodInitializing" | "ContainerCreating")).then_some(reason)
    });
    assert_eq!(reason, "CreateContainerConfigError");

    // What the pod had is gone with it, what it shared with the host stays.
    let uid = cluster.jsonpath(&["pod", "vols"], "{.metadata.uid}");
    let directory = cluster.data_dir().join("node/kubelet/pods").join(&uid);
    assert!(directory.exists());
    cluster.kubectl(&["delete", "pod", "vols", "escape"]);
    cluster.wait_for("the pod's directory is removed", || (!directory.exists()).then_some(()));
    assert!(host.join("f").exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&uid), "mounts are left:\n{mounts}");
}

#[test]
fn groups_paths_and_messages() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    cluster.apply(SOURCES);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: fsgroup}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 4321}
  containers:
  - name: main
    image: test.local/busybox:1
    command: [sleep, "1000000"]
    volumeMounts:
    - {name: sec, mountPath: /sec}
    - {name: disk, mountPath: /disk}
    - {name: mem, mountPath: /mem}
  volumes:
  - {name: sec, secret: {secretName: sec, defaultMode: 0400}}
  - {name: disk, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory}}
"#,
    );
    cluster.ready("fsgroup");
    let sh = |script: &str| sh(&cluster, "fsgroup", script);
    // The supplementary groups are those of the image's /etc/group and the volumes'.
    assert_eq!(sh("id -u; id -g; id -G | tr ' ' '\\n' | sort -n"), "1234\n2345\n777\n2345\n4321\n");
    assert_eq!(sh("stat -L -c '%a %u %g' /sec/user /disk /mem"), "440 0 4321\n2777 0 4321\n2777 0 4321\n");
    assert_eq!(
        sh("cat /sec/user; touch /disk/f /mem/f; stat -c '%u %g' /disk/f /mem/f"),
        "admin1234 4321\n1234 4321\n"
    );
    // The token is readable for a user that is not root.
    assert_eq!(sh("test -r /var/run/secrets/kubernetes.io/serviceaccount/token && echo yes"), "yes\n");

    // hostPath is checked for its type.
    let missing = cluster.data_dir().join("missing");
    cluster.apply(
        &r#"
apiVersion: v1
kind: Pod
metadata: {name: hostless}
spec:
  containers:
  - {name: main, image: test.local/busybox:1, command: [sleep, "1000000"], volumeMounts: [{name: h, mountPath: /h}]}
  volumes: [{name: h, hostPath: {path: MISSING, type: Directory}}]
"#
        .replace("MISSING", missing.to_str().unwrap()),
    );
    let wanted = format!(
        "MountVolume.SetUp failed for volume \"h\" : hostPath type check failed: {} is not a directory",
        missing.display()
    );
    cluster.wait_for(&wanted, || {
        let selector = "--field-selector=involvedObject.name=hostless,reason=FailedMount";
        cluster.jsonpath(&["events", selector], "{.items[*].message}").contains(&wanted).then_some(())
    });

    // How containers end, and what they say about it.
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers:
  - {name: ok, image: test.local/busybox:1, command: ["true"]}
  - {name: bad, image: test.local/busybox:1, command: [sh, -c, "exit 3"]}
  - {name: msg, image: test.local/busybox:1, command: [sh, -c, "echo -n why > /dev/termination-log; exit 1"]}
  - {name: custom, image: test.local/busybox:1, command: [sh, -c, "echo -n there > /tmp/m"], terminationMessagePath: /tmp/m}
  - {name: log, image: test.local/busybox:1, command: [sh, -c, "echo one; echo two; exit 1"], terminationMessagePolicy: FallbackToLogsOnError}
  - {name: logok, image: test.local/busybox:1, command: [sh, -c, "echo one"], terminationMessagePolicy: FallbackToLogsOnError}
  - {name: long, image: test.local/busybox:1, command: [sh, -c, "yes | head -c 9000 > /dev/termination-log"]}
  - {name: nothing, image: test.local/busybox:1, command: [/no/such/file]}
"#,
    );
    assert_eq!(cluster.finished("ends"), "Failed");
    let ends = cluster.get(&["pod", "ends"]);
    let end = |name: &str| {
        let list = ends["status"]["containerStatuses"].as_array().unwrap();
        let state = &list.iter().find(|c| c["name"] == name).unwrap()["state"]["terminated"];
        let text = |k: &str| state[k].as_str().unwrap_or_default().to_owned();
        (state["exitCode"].as_i64().unwrap(), text("reason"), text("message"))
    };
    let is = |name: &str, code: i64, reason: &str, message: &str| {
        assert_eq!(end(name), (code, reason.to_owned(), message.to_owned()), "{name}");
    };
    is("ok", 0, "Completed", "");
    is("bad", 3, "Error", "");
    is("msg", 1, "Error", "why");
    is("custom", 0, "Completed", "there");
    is("log", 1, "Error", "one\ntwo\n");
    is("logok", 0, "Completed", "");
    assert_eq!(end("long").2.len(), 4096);
    let nothing = end("nothing");
    assert_eq!((nothing.0, nothing.1.as_str()), (128, "StartError"));
    assert!(
        nothing.2.contains("exec: \"/no/such/file\": stat /no/such/file: no such file or directory"),
        "{nothing:?}"
    );
}

fn padded(text: &str) -> String {
    let text = text.replace('-', "+").replace('_', "/");
    let missing = (4 - text.len() % 4) % 4;
    text + &"=".repeat(missing)
}

fn run_with_input(command: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut child = std::process::Command::new(command[0])
        .args(&command[1..])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}
