//! Programs in other languages that use a cluster through their language's own client. `.ci/packages` installs the clients.

use super::{Cluster, GANTRY, busybox};
use std::path::{Path, PathBuf};

/// A file of an installed client, which must be there.
fn installed(path: &str) -> PathBuf {
    let tools = std::env::var("GANTRY_TOOLS").unwrap_or_else(|_| "/var/cache/gantry-tools".into());
    let file = Path::new(&tools).join(path);
    assert!(file.exists(), "{} is missing; ./check installs it", file.display());
    file
}

/// A program of ours that runs scenarios and fails with the traces of those that failed. `GANTRY_ONLY` in the environment
/// picks those whose name contains it.
fn run(cluster: &Cluster, program: &Path, script: Option<&Path>) {
    busybox::import(cluster);
    let output = cluster
        .inside(&program.to_string_lossy())
        .args(script)
        .arg(std::env::var("GANTRY_ONLY").unwrap_or_default())
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("HOME", cluster.data_dir())
        .env("TMPDIR", cluster.data_dir())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {script:?}:\n{told}", program.display());
}

/// Runs a script of `tests/clients` with Python and its Kubernetes client.
pub fn python(cluster: &Cluster, script: &str) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    run(cluster, &installed("python-kubernetes/bin/python"), Some(&scripts.join(script)));
}

/// Runs a script of `tests/clients` with Node.js and its Kubernetes client.
pub fn javascript(cluster: &Cluster, script: &str) {
    // A module finds what it imports beside its own file only.
    let here = cluster.data_dir().join("javascript");
    std::fs::create_dir(&here).unwrap();
    std::os::unix::fs::symlink(installed("node-kubernetes/node_modules"), here.join("node_modules")).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    std::fs::copy(source, here.join(script)).unwrap();
    run(cluster, &installed("node-kubernetes/node_modules/.bin/node"), Some(&here.join(script)));
}

/// Runs the program of `tests/clients/kube`, which is built beside the binary under test.
pub fn kube(cluster: &Cluster) {
    let beside = Path::new(GANTRY).with_file_name("gantry-client-kube");
    let program = std::env::var_os("GANTRY_CLIENT_KUBE").map_or(beside, PathBuf::from);
    assert!(program.exists(), "{} is missing; ./check builds it", program.display());
    run(cluster, &program, None);
}
