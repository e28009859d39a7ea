//! Images: archives into the node's store and out of it, beside the running agent; pulling from a registry.

mod cluster;

use cluster::busybox::{self, digest, tar};
use cluster::{Cluster, GANTRY, run};
use serde_json::{Value, json};
use std::process::{Child, Command, Output, Stdio};

fn image(cluster: &Cluster, verb: &str, arguments: &[&str]) -> Output {
    let mut command = cluster.inside(GANTRY);
    command.args(["image", verb, "--data-dir"]).arg(cluster.data_dir()).args(arguments);
    command.output().unwrap()
}

fn good(output: Output) -> String {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn bad(output: Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An OCI layout of the busybox image, and its manifest's digest.
fn oci_layout(name: &str, marker: &str) -> (Vec<u8>, String) {
    let layer = busybox::layer(marker);
    let config = busybox::config(&layer);
    let manifest = manifest(&config, &layer);
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", digest(&manifest)), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": name},
    }]})
    .to_string();
    let blob = |data: &[u8]| format!("blobs/sha256/{}", digest(data));
    let archive = tar(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.as_bytes()),
        (&blob(&manifest), &manifest),
        (&blob(&config), &config),
        (&blob(&layer), &layer),
    ]);
    (archive, digest(&manifest))
}

fn manifest(config: &[u8], layer: &[u8]) -> Vec<u8> {
    let of = |kind: &str, data: &[u8]| json!({"mediaType": kind, "digest": format!("sha256:{}", digest(data)), "size": data.len()});
    serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": of("application/vnd.oci.image.config.v1+json", config),
        "layers": [of("application/vnd.oci.image.layer.v1.tar", layer)],
    }))
    .unwrap()
}

fn pod(name: &str, image: &str, rest: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never, \
         terminationGracePeriodSeconds: 0, {rest} containers: [{{name: c, image: '{image}'}}]}}}}"
    )
}

#[test]
fn archives() {
    let cluster = Cluster::start();
    let file = |name: &str, data: &[u8]| {
        let path = cluster.data_dir().join(name);
        std::fs::write(&path, data).unwrap();
        path.to_str().unwrap().to_owned()
    };

    // docker save's format, while the agent runs.
    busybox::import(&cluster);
    cluster.apply(&pod("docker", busybox::BUSYBOX, ""));
    assert_eq!(cluster.finished("docker"), "Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "docker"]), "marker");
    // An OCI layout, with its own name and with another.
    let (layout, manifest) = oci_layout("test.local/oci:2", "from-oci");
    let layout_file = file("oci.tar", &layout);
    assert!(good(image(&cluster, "import", &[&layout_file])).contains("imported test.local/oci:2"));
    assert!(
        good(image(&cluster, "import", &[&layout_file, "--name", "test.local/renamed:3"]))
            .contains("test.local/renamed:3")
    );
    for (name, reference) in
        [("oci", "test.local/oci:2".to_owned()), ("digest", format!("test.local/oci@sha256:{manifest}"))]
    {
        cluster.apply(&pod(name, &reference, ""));
        assert_eq!(cluster.finished(name), "Succeeded");
        assert_eq!(cluster.kubectl(&["logs", name]), "from-oci");
    }
    let id = cluster.jsonpath(&["pod", "oci"], "{.status.containerStatuses[0].imageID}");
    assert!(id.contains("sha256:"), "{id}");

    // What is there.
    let list = good(image(&cluster, "ls", &[]));
    for name in ["gantry.local/self:latest", busybox::BUSYBOX, "test.local/oci:2", "test.local/renamed:3"] {
        assert!(list.lines().any(|l| l.starts_with(name)), "{name} in:\n{list}");
    }
    let shown: Value = serde_json::from_str(&good(image(&cluster, "inspect", &["test.local/oci:2"]))).unwrap();
    assert_eq!(shown["cmd"], json!(["cat", "/etc/marker"]));
    assert_eq!(shown["workingDir"], "/tmp");
    assert!(shown["env"].as_array().unwrap().contains(&json!("FROM_IMAGE=yes")), "{shown}");
    assert!(
        shown["digests"].as_array().unwrap().contains(&json!(format!("test.local/oci@sha256:{manifest}"))),
        "{shown}"
    );
    cluster.wait_for("the node names its images", || {
        cluster.jsonpath(&["node", "node-1"], "{.status.images[*].names[*]}").contains("test.local/oci:2").then_some(())
    });

    // Archives that are not what they should be; nothing of them stays.
    // A layer that is there already would not be read again, so this is another one.
    let archive = cluster.data_dir().join("other.tar");
    busybox::docker_archive(&archive, "test.local/corrupted:1", "other");
    let data = std::fs::read(&archive).unwrap();
    let mut flipped = data.clone();
    let somewhere = data.len() / 2;
    flipped[somewhere] ^= 0xff;
    let cases = [
        ("flipped.tar", flipped, "layer.tar"),
        ("cut.tar", data[..data.len() / 2].to_vec(), "corrupted archive"),
        ("text.tar", b"this is no archive".to_vec(), "archive"),
        (
            "empty.tar",
            tar(&[("hello", b"world")]),
            "neither an OCI layout (index.json) nor a docker-archive (manifest.json)",
        ),
        (
            "nolayer.tar",
            tar(&[("manifest.json", br#"[{"Config":"c.json","RepoTags":["a.b/c:1"],"Layers":["l.tar"]}]"#)]),
            "c.json",
        ),
        ("json.tar", tar(&[("manifest.json", b"[{")]), "manifest.json"),
    ];
    for (name, data, wanted) in cases {
        let path = file(name, &data);
        let error = bad(image(&cluster, "import", &[&path]));
        assert!(error.contains(wanted) && error.contains(&path), "{name}: {error}");
    }
    let missing = bad(image(&cluster, "import", &["/no/such/file.tar"]));
    assert!(missing.contains("/no/such/file.tar") && missing.contains("No such file"), "{missing}");
    assert_eq!(good(image(&cluster, "ls", &[])), list);

    // Removal: not under a container, only the name while there is another.
    cluster.apply("{apiVersion: v1, kind: Pod, metadata: {name: user}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: 'test.local/busybox:1', command: [sleep, '1000000']}]}}");
    cluster.ready("user");
    let used = bad(image(&cluster, "rm", &[busybox::BUSYBOX]));
    assert!(used.contains("used by a container"), "{used}");
    cluster.kubectl(&["delete", "pod", "--all"]);
    good(image(&cluster, "rm", &["test.local/oci:2"]));
    let list = good(image(&cluster, "ls", &[]));
    assert!(!list.contains("test.local/oci:2") && list.contains("test.local/renamed:3"), "{list}");
    cluster.wait_for("the image is free", || image(&cluster, "rm", &[busybox::BUSYBOX]).status.success().then_some(()));
    let gone = bad(image(&cluster, "inspect", &[busybox::BUSYBOX]));
    assert!(gone.contains("image test.local/busybox:1 is not on this node"), "{gone}");
    // The agent knows it too.
    cluster.apply("{apiVersion: v1, kind: Pod, metadata: {name: gone}, spec: {containers: [{name: c, image: 'test.local/busybox:1', imagePullPolicy: Never}]}}");
    cluster.wait_for("the removed image is missed", || {
        let reason = cluster.jsonpath(&["pod", "gone"], "{.status.containerStatuses[0].state.waiting.reason}");
        (reason == "ErrImageNeverPull").then_some(())
    });
}

/// Debian's `docker-registry` in the cluster's network.
struct Registry {
    process: Child,
    address: String,
    login: Option<&'static str>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; the test says why.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// `user:open-sesame`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2b$05$FRXplgTHSdRtGYoObAtT4eJBhH/S62PzoT78CmP7QOUZMj/9nsGZy\n";

impl Registry {
    fn start(cluster: &Cluster, port: u16, login: Option<&'static str>) -> Self {
        let directory = cluster.data_dir().join(format!("registry-{port}"));
        std::fs::create_dir(&directory).unwrap();
        let passwords = directory.join("htpasswd");
        std::fs::write(&passwords, HTPASSWD).unwrap();
        let auth = match login {
            Some(_) => format!("auth: {{htpasswd: {{realm: test, path: '{}'}}}}\n", passwords.display()),
            None => String::new(),
        };
        let config = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\nhttp: {{addr: '127.0.0.1:{port}', secret: x}}\n{auth}",
            directory.join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let process = cluster
            .inside("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("install docker-registry");
        let registry = Self { process, address: format!("127.0.0.1:{port}"), login };
        cluster.wait_for("the registry answers", || {
            registry.curl(cluster, &["-f", &registry.url("/v2/")]).output().unwrap().status.success().then_some(())
        });
        registry
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn curl(&self, cluster: &Cluster, arguments: &[&str]) -> Command {
        let mut command = cluster.inside("curl");
        command.args(["-sS", "--max-time", "60"]);
        if let Some(login) = self.login {
            command.args(["-u", login]);
        }
        command.args(arguments);
        command
    }

    /// Pushes the busybox image.
    fn push(&self, cluster: &Cluster, repository: &str, tag: &str, marker: &str) {
        let layer = busybox::layer(marker);
        let config = busybox::config(&layer);
        let upload = cluster.data_dir().join("upload");
        for blob in [&layer, &config] {
            std::fs::write(&upload, blob).unwrap();
            let begin = self.url(&format!("/v2/{repository}/blobs/uploads/"));
            let head = run(&mut self.curl(cluster, &["-f", "-X", "POST", "-D", "-", "-o", "/dev/null", &begin]));
            let location =
                head.lines().find_map(|l| l.strip_prefix("Location: ")).expect("where to upload").trim().to_owned();
            let location = if location.starts_with('/') { self.url(&location) } else { location };
            let and = if location.contains('?') { '&' } else { '?' };
            let target = format!("{location}{and}digest=sha256:{}", digest(blob));
            run(&mut self.curl(
                cluster,
                &["-f", "-T", upload.to_str().unwrap(), "-H", "Content-Type: application/octet-stream", &target],
            ));
        }
        std::fs::write(&upload, manifest(&config, &layer)).unwrap();
        let target = self.url(&format!("/v2/{repository}/manifests/{tag}"));
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        run(&mut self.curl(cluster, &["-f", "-T", upload.to_str().unwrap(), "-H", kind, &target]));
    }
}

#[test]
fn registries() {
    let cluster =
        Cluster::start_with(&["--insecure-registry", "127.0.0.1:5000", "--insecure-registry", "127.0.0.1:5001"]);
    let open = Registry::start(&cluster, 5000, None);
    open.push(&cluster, "team/box", "1", "from-registry");

    cluster.apply(&pod("pulled", "127.0.0.1:5000/team/box:1", ""));
    assert_eq!(cluster.finished("pulled"), "Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "pulled"]), "from-registry");
    let reasons = |pod: &str| {
        let selector = format!("--field-selector=involvedObject.name={pod}");
        cluster.jsonpath(&["events", &selector], "{range .items[*]}{.reason}: {.message}{\"\\n\"}{end}")
    };
    cluster.wait_for("the events of the pull", || {
        let said = reasons("pulled");
        let pulling = said.contains("Pulling: Pulling image \"127.0.0.1:5000/team/box:1\"");
        (pulling && said.contains("Pulled: Successfully pulled image \"127.0.0.1:5000/team/box:1\" in ")).then_some(())
    });
    // Present: not asked for again, unless the policy says so; then a moved tag is noticed.
    open.push(&cluster, "team/box", "1", "moved");
    cluster.apply(&pod("present", "127.0.0.1:5000/team/box:1", ""));
    assert_eq!(cluster.finished("present"), "Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "present"]), "from-registry");
    let always =
        pod("always", "127.0.0.1:5000/team/box:1", "").replace("{name: c,", "{name: c, imagePullPolicy: Always,");
    cluster.apply(&always);
    assert_eq!(cluster.finished("always"), "Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "always"]), "moved");
    // Unknown there.
    cluster.apply(&pod("unknown", "127.0.0.1:5000/team/other:1", ""));
    let message = cluster.wait_for("the pull fails", || {
        let reason = cluster.jsonpath(&["pod", "unknown"], "{.status.containerStatuses[0].state.waiting.reason}");
        let message = cluster.jsonpath(&["pod", "unknown"], "{.status.containerStatuses[0].state.waiting.message}");
        matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff").then_some(message)
    });
    assert!(message.contains("127.0.0.1:5000/team/other:1"), "{message}");

    // A registry that wants a password.
    let closed = Registry::start(&cluster, 5001, Some("user:open-sesame"));
    closed.push(&cluster, "team/secret", "1", "from-closed");
    cluster.apply(&pod("refused", "127.0.0.1:5001/team/secret:1", ""));
    cluster.wait_for("the pull is refused", || {
        let reason = cluster.jsonpath(&["pod", "refused"], "{.status.containerStatuses[0].state.waiting.reason}");
        matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff").then_some(())
    });
    let login = ["--docker-server=127.0.0.1:5001", "--docker-username=user"];
    for (name, password) in [("wrong", "--docker-password=sesame-open"), ("right", "--docker-password=open-sesame")] {
        cluster.kubectl(&[&["create", "secret", "docker-registry", name, password], &login[..]].concat());
    }
    cluster.apply(&pod("wrong", "127.0.0.1:5001/team/secret:1", "imagePullSecrets: [{name: wrong}],"));
    cluster.wait_for("the wrong password is refused", || {
        let reason = cluster.jsonpath(&["pod", "wrong"], "{.status.containerStatuses[0].state.waiting.reason}");
        matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff").then_some(())
    });
    cluster.apply(&pod("allowed", "127.0.0.1:5001/team/secret:1", "imagePullSecrets: [{name: wrong}, {name: right}],"));
    assert_eq!(cluster.finished("allowed"), "Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "allowed"]), "from-closed");
    // From the ServiceAccount as well.
    cluster.kubectl(&["patch", "serviceaccount", "default", "-p", r#"{"imagePullSecrets":[{"name":"right"}]}"#]);
    closed.push(&cluster, "team/secret", "2", "by-account");
    cluster.apply(&pod("account", "127.0.0.1:5001/team/secret:2", ""));
    assert_eq!(cluster.finished("account"), "Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "account"]), "by-account");

    // By hand, over plain HTTP only where that was allowed.
    let refused = bad(image(&cluster, "pull", &["127.0.0.1:5000/team/box:1"]));
    assert!(refused.contains("cannot pull 127.0.0.1:5000/team/box:1"), "{refused}");
    let pulled = good(image(
        &cluster,
        "pull",
        &["--insecure-registry", "127.0.0.1:5001", "--credentials", "user:open-sesame", "127.0.0.1:5001/team/secret:2"],
    ));
    assert!(pulled.contains("pulled 127.0.0.1:5001/team/secret:2"), "{pulled}");
}
