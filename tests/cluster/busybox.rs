//! An image with a shell: the machine's static busybox (Debian's `busybox-static`) in a docker-archive.

use super::{Cluster, GANTRY, run};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the image.
pub const BUSYBOX: &str = "test.local/busybox:1";

/// Hexadecimal SHA-256.
pub fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// A tar of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (path, data) in files {
        out.append_data(&mut header(tar::EntryType::Regular, 0o644, data.len()), path, *data).unwrap();
    }
    out.into_inner().unwrap()
}

/// The file system: busybox under all its names, two users, `/etc/marker` with `marker`.
pub fn layer(marker: &str) -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").expect("install busybox-static");
    let applets = run(Command::new("/bin/busybox").arg("--list"));
    let mut out = tar::Builder::new(Vec::new());
    let mut file = |path: &str, mode: u32, data: &[u8]| {
        out.append_data(&mut header(tar::EntryType::Regular, mode, data.len()), path, data).unwrap();
    };
    file("bin/busybox", 0o755, &program);
    file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:1234:2345::/home/app:/bin/sh\n");
    file("etc/group", 0o644, b"root:x:0:\napp:x:2345:\nextra:x:777:app\n");
    file("etc/marker", 0o644, marker.as_bytes());
    for applet in applets.lines().filter(|a| *a != "busybox") {
        out.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), format!("bin/{applet}"), "busybox").unwrap();
    }
    out.append_data(&mut header(tar::EntryType::Directory, 0o1777, 0), "tmp", std::io::empty()).unwrap();
    out.into_inner().unwrap()
}

/// The image's configuration.
pub fn config(layer: &[u8]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    serde_json::to_vec(&serde_json::json!({
        "architecture": architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["cat", "/etc/marker"], "WorkingDir": "/tmp"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(layer))]},
    }))
    .unwrap()
}

/// Writes `docker save`'s format.
pub fn docker_archive(file: &Path, name: &str, marker: &str) {
    let layer = layer(marker);
    let config = config(&layer);
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    let data = tar(&[("manifest.json", manifest.as_bytes()), ("config.json", &config), ("layer.tar", &layer)]);
    std::fs::write(file, data).unwrap();
}

/// Makes the image [`BUSYBOX`] known to the cluster's node; returns the archive it came from.
pub fn import(cluster: &Cluster) -> PathBuf {
    import_as(cluster, BUSYBOX)
}

/// The same under another name, and with content of its own.
pub fn import_as(cluster: &Cluster, name: &str) -> PathBuf {
    let file = cluster.data_dir().join("busybox.tar");
    docker_archive(&file, name, if name == BUSYBOX { "marker" } else { name });
    run(cluster.inside(GANTRY).args(["image", "import", "--data-dir"]).arg(cluster.data_dir()).arg(&file));
    file
}
