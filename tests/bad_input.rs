//! Bad input of every kind gets a clear error that names what is wrong, exit code non-zero, and nothing is lost.

mod cluster;

use cluster::{Cluster, GANTRY};
use std::process::{Command, Output};

fn fails(command: &mut Command) -> String {
    let output: Output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} succeeded:\n{}", String::from_utf8_lossy(&output.stdout));
    text
}

#[test]
fn starting_in_the_wrong_way() {
    let mut cluster = Cluster::start();
    let up = |extra: &[&str]| {
        let mut command = cluster.inside(GANTRY);
        command.arg("up").args(extra);
        command
    };
    let data = cluster.data_dir().to_string_lossy().into_owned();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = elsewhere.path().join("data").to_string_lossy().into_owned();
    let kubeconfig = elsewhere.path().join("kubeconfig").to_string_lossy().into_owned();

    let error = fails(&mut up(&["--data-dir", &data, "--kubeconfig", &kubeconfig]));
    assert!(
        error.contains(&format!("data directory {data} is in use by another gantry process (pid {})", cluster.pid())),
        "{error}"
    );

    // A second cluster beside the first needs ranges of its own, and a port.
    let error = fails(&mut up(&["--data-dir", &other, "--kubeconfig", &kubeconfig]));
    assert!(
        error.contains("pod CIDR 10.244.0.0/24 overlaps 10.244.0.1, which another gantry on this machine"),
        "{error}"
    );
    assert!(error.contains("choose another range with --pod-cidr"), "{error}");
    let pods = ["--pod-cidr", "10.245.0.0/16"];
    let error = fails(&mut up(&[&["--data-dir", &other, "--kubeconfig", &kubeconfig][..], &pods].concat()));
    assert!(error.contains("service CIDR 10.96.0.0/16 overlaps 10.96.0.0/16"), "{error}");
    assert!(error.contains("choose another range with --service-cidr"), "{error}");
    let ranges = ["--data-dir", &other, "--kubeconfig", &kubeconfig, "--service-cidr", "10.97.0.0/16"];
    let error = fails(&mut up(&[&ranges[..], &pods].concat()));
    let left = cluster::run(Command::new("ip").args(["-n", &cluster.namespace(), "rule"]));
    assert!(!left.contains("10.97.0.0"), "a failed start left something behind:\n{left}");
    assert!(
        error.contains("cannot serve the API on 127.0.0.1:6443: the port is taken; choose another with --port"),
        "{error}"
    );

    let error = fails(&mut up(&["--data-dir", "/proc/nowhere", "--kubeconfig", &kubeconfig]));
    assert!(error.contains("cannot create the data directory /proc/nowhere"), "{error}");

    let error = fails(&mut up(&["--data-dir", &other, "--node-name", "Not_A_Name"]));
    assert!(error.contains("\"Not_A_Name\" is not a node name"), "{error}");

    let error = fails(&mut up(&["--service-cidr", "10.96.0.0/40"]));
    assert!(error.contains("--service-cidr"), "{error}");

    let error = fails(cluster.inside(GANTRY).args(["server", "--data-dir", &other, "--advertise-address", "fd00::1"]));
    assert!(
        error.contains("service IP family \"10.96.0.0/16\" must match public address family \"fd00::1\""),
        "{error}"
    );

    let nobody = format!("setpriv --reuid=65534 --regid=65534 --clear-groups {GANTRY} up --data-dir {other}");
    let error = fails(Command::new("sh").args(["-c", &nobody]));
    assert!(error.contains("needs root") || error.contains("Permission denied"), "{error}");

    // The running cluster took no harm; a directory of a newer version is refused and not touched.
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]);
    cluster.kill();
    std::fs::write(cluster.data_dir().join("format"), "99\n").unwrap();
    let error = fails(cluster.inside(GANTRY).args(["up", "--data-dir", &data, "--kubeconfig", &kubeconfig]));
    assert!(error.contains("was written by a newer version of gantry (format 99"), "{error}");
    std::fs::write(cluster.data_dir().join("format"), "1\n").unwrap();
    cluster.up();
    assert_eq!(cluster.jsonpath(&["configmap", "kept"], "{.data.a}"), "b");
}

#[test]
fn requests_that_are_wrong() {
    let cluster = Cluster::start();
    let refused = |yaml: &str| {
        let output = cluster.try_kubectl_with(&["apply", "--server-side", "-f", "-"], yaml);
        assert!(!output.status.success(), "accepted:\n{yaml}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_Valid}\n");
    assert!(
        error.contains("The ConfigMap \"Not_Valid\" is invalid: metadata.name: Invalid value: \"Not_Valid\": a lowercase RFC 1123 subdomain"),
        "{error}"
    );
    let error = cluster.kubectl_error(&["get", "nosuchthings"]);
    assert!(error.contains("the server doesn't have a resource type \"nosuchthings\""), "{error}");
    let error = cluster.kubectl_error(&["get", "pod", "absent"]);
    assert!(error.contains("pods \"absent\" not found"), "{error}");

    let post = |body: &[u8], kind: &str| -> (String, String) {
        let file = cluster.data_dir().join("body");
        std::fs::write(&file, body).unwrap();
        let config = cluster.kubectl(&["config", "view", "--raw", "-o", "json"]);
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let user = &config["users"][0]["user"];
        for (name, key) in [("c.crt", "client-certificate-data"), ("c.key", "client-key-data")] {
            let path = cluster.data_dir().join(name);
            let decode = format!("echo {} | base64 -d > {}", user[key].as_str().unwrap(), path.display());
            cluster::run(Command::new("sh").args(["-c", &decode]));
        }
        let directory = cluster.data_dir().to_string_lossy().into_owned();
        let output = cluster::run(cluster.inside("curl").args([
            "-sk",
            "-w",
            "\n%{http_code}",
            "--cert",
            &format!("{directory}/c.crt"),
            "--key",
            &format!("{directory}/c.key"),
            "-H",
            &format!("Content-Type: {kind}"),
            "--data-binary",
            &format!("@{directory}/body"),
            "https://127.0.0.1:6443/api/v1/namespaces/default/configmaps",
        ]));
        let (text, code) = output.rsplit_once('\n').unwrap();
        (code.to_owned(), text.to_owned())
    };
    for (body, kind, code, says) in [
        (&b"{\"a\": "[..], "application/json", "400", "unexpected end of JSON input"),
        (b"\xff\xfe", "application/json", "400", "invalid character"),
        (b"{\"apiVersion\":\"v1\",\"kind\":\"Secret\"}", "application/json", "400", "cannot be handled as a ConfigMap"),
        (
            b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"data\":[]}",
            "application/json",
            "400",
            "cannot unmarshal array",
        ),
        (b"{}", "text/plain", "415", "the body of the request was in an unknown format"),
    ] {
        let (got, text) = post(body, kind);
        assert_eq!(got, code, "{text}");
        assert!(text.contains(says), "{says}: {text}");
    }
    let (code, text) = post(&vec![b' '; 4 << 20], "application/json");
    assert_eq!(code, "413", "{text}");
    // Nothing was made, and nothing broke.
    assert_eq!(cluster.get(&["configmaps"])["items"].as_array().unwrap().len(), 1, "only kube-root-ca.crt");
}
