//! What every conformance test needs: a runtime of its own, an image, and a check that nothing is left.
#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gantry_container::image_service::ImageService;
use gantry_container::images::{ImageStore, ImageStoreConfig};
use gantry_container::native::{NativeRuntime, RuntimeConfig};
use gantry_container::runtime::*;
use sha2::{Digest, Sha256};

pub const IMAGE: &str = "test.local/busybox:1";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A runtime in a directory of its own.
pub struct Cell {
    pub dir: tempfile::TempDir,
    pub config: RuntimeConfig,
    pub images: ImageStore,
    pub runtime: NativeRuntime,
}

pub fn shim() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_gantry-shim-test"))
}

impl Cell {
    pub async fn new() -> Cell {
        // SAFETY: a plain getter.
        assert_eq!(unsafe { libc::geteuid() }, 0, "this suite needs root");
        let dir = tempfile::Builder::new().prefix("gantry-").tempdir().unwrap();
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let base = format!("/gantry-test-{}-{n}", std::process::id());
        let config = RuntimeConfig {
            state_dir: dir.path().join("state"),
            shim: shim(),
            shim_cgroup: format!("{base}/shims"),
            cgroup_base: base,
        };
        let images =
            ImageStore::open(ImageStoreConfig { dir: dir.path().join("images"), ..Default::default() }).unwrap();
        let archive = dir.path().join("busybox.tar");
        std::fs::write(&archive, docker_archive(&busybox_layer(), IMAGE, "{}")).unwrap();
        images.import(&archive, None).await.unwrap();
        let runtime = NativeRuntime::open(config.clone(), images.clone()).await.unwrap();
        Cell { dir, config, images, runtime }
    }

    /// As if the main process had ended and been started anew `later`. The old runtime lives on beside the new one in a
    /// test, which a shim does not mind: it has two subscribers.
    pub async fn reopen_after(mut self, later: Duration) -> Cell {
        let images = ImageStoreConfig { dir: self.dir.path().join("images"), ..Default::default() };
        tokio::time::sleep(later).await;
        self.images = ImageStore::open(images).unwrap();
        self.runtime = NativeRuntime::open(self.config.clone(), self.images.clone()).await.unwrap();
        self
    }

    pub fn sandbox_config(&self, id: &str) -> SandboxConfig {
        SandboxConfig {
            id: id.into(),
            hostname: format!("host-{id}"),
            log_dir: self.dir.path().join("logs"),
            resolv_conf: Some("nameserver 192.0.2.1\n".into()),
            cgroup_parent: format!("{}/pods/{id}", self.config.cgroup_base),
            ..SandboxConfig::default()
        }
    }

    pub async fn sandbox(&self, id: &str) -> SandboxStatus {
        self.runtime.run_sandbox(self.sandbox_config(id)).await.unwrap()
    }

    /// A container that runs a shell line.
    pub fn shell(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            image: IMAGE.into(),
            command: vec!["sh".into(), "-c".into(), script.into()],
            log_path: Some(self.dir.path().join(format!("logs/{name}.log"))),
            ..ContainerConfig::default()
        }
    }

    pub async fn start(&self, sandbox: &str, config: ContainerConfig) -> String {
        let id = self.runtime.create_container(sandbox, config).await.unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }

    /// Starts, waits for the end, and returns it with the log's text.
    pub async fn run(&self, sandbox: &str, config: ContainerConfig) -> (Exit, String) {
        let log = config.log_path.clone().unwrap();
        let id = self.start(sandbox, config).await;
        let exit = self.exit(&id).await;
        (exit, log_text(&log))
    }

    pub async fn exit(&self, id: &str) -> Exit {
        let mut events = self.runtime.events();
        let wait = async {
            loop {
                if let Some(exit) = self.runtime.container_status(id).await.unwrap().exit {
                    return exit;
                }
                let _ = events.recv().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the container does not end")
    }

    /// Removes everything and checks that the machine is as before.
    pub async fn close(self) {
        for sandbox in self.runtime.list_sandboxes().await.unwrap() {
            self.runtime.remove_sandbox(&sandbox.id).await.unwrap();
        }
        assert!(self.runtime.list_containers(ContainerFilter::default()).await.unwrap().is_empty());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> = mounts.lines().filter(|l| l.contains(self.dir.path().to_str().unwrap())).collect();
        assert!(left.is_empty(), "mounts left: {left:?}");
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let path = hierarchy.path().join(&self.config.cgroup_base[1..]);
            assert!(!path.exists(), "cgroup left: {}", path.display());
        }
        for name in ["sandboxes", "containers"] {
            assert_eq!(std::fs::read_dir(self.config.state_dir.join(name)).unwrap().count(), 0, "{name} left");
        }
    }
}

impl Drop for Cell {
    /// After a failed test: whatever it left goes, so that the next run starts clean.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Ok(base) = gantry_container::cgroup::Cgroup::at(&self.config.cgroup_base) else { return };
        let mut todo = base.directories();
        while let Some(dir) = todo.pop() {
            for pid in std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                // SAFETY: a process in a cgroup this test made.
                unsafe { libc::kill(pid.parse().unwrap(), libc::SIGKILL) };
            }
            let children = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            todo.extend(children.map(|e| e.path()).filter(|p| p.is_dir()));
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().filter_map(|l| l.split(' ').nth(4)) {
            if Path::new(point).starts_with(self.dir.path()) {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        let _ = base.remove();
    }
}

/// The messages of a CRI log, without time, stream and tag.
pub fn log_text(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|l| format!("{}\n", l.splitn(4, ' ').nth(3).unwrap_or("?"))).collect()
}

/// Waits until a condition on the log holds.
pub async fn wait_log(path: &Path, what: impl Fn(&str) -> bool) -> String {
    for _ in 0..500 {
        let text = log_text(path);
        if what(&text) {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("log {} never fits: {:?}", path.display(), log_text(path));
}

pub fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

pub struct Layer(pub tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }

    pub fn file(mut self, path: &str, data: &[u8], mode: u32) -> Layer {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(1);
        header.set_uid(0);
        header.set_gid(0);
        self.0.append_data(&mut header, path, data).unwrap();
        self
    }

    pub fn link(mut self, path: &str, target: &str) -> Layer {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn busybox_layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut layer = Layer::new()
        .file("bin/busybox", &busybox, 0o755)
        .file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:44:web:/srv:/bin/sh\n", 0o644)
        .file("etc/group", b"root:x:0:\nweb:x:44:\nstaff:x:50:web\n", 0o644)
        .file("tmp/.keep", b"", 0o644)
        .link("evil", "/../../../../../../not/there");
    for applet in [
        "sh", "cat", "echo", "sleep", "id", "ls", "stty", "mount", "env", "hostname", "kill", "touch", "ps", "dd",
        "unshare", "readlink", "mkdir", "head", "tail", "wc", "grep", "stat",
    ] {
        layer = layer.link(&format!("bin/{applet}"), "busybox");
    }
    layer.done()
}

pub fn image_config(layer: &[u8], execution: &str) -> Vec<u8> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    format!(
        r#"{{"architecture":"{arch}","os":"linux","config":{execution},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        digest(layer)
    )
    .into_bytes()
}

pub fn docker_archive(layer: &[u8], name: &str, execution: &str) -> Vec<u8> {
    let config = image_config(layer, execution);
    let config_name = format!("{}.json", digest(&config));
    let manifest = format!(r#"[{{"Config":"{config_name}","RepoTags":["{name}"],"Layers":["layer.tar"]}}]"#);
    Layer::new()
        .file("layer.tar", layer, 0o644)
        .file(&config_name, &config, 0o644)
        .file("manifest.json", manifest.as_bytes(), 0o644)
        .done()
}

/// Blobs by hex digest, and the manifest's digest, of an OCI image with a gzip layer.
pub fn oci_blobs(layer: &[u8], execution: &str) -> (BTreeMap<String, Vec<u8>>, String) {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(layer).unwrap();
    let blob = gzip.finish().unwrap();
    let config = image_config(layer, execution);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:{}","size":{}}}]}}"#,
        digest(&config),
        config.len(),
        digest(&blob),
        blob.len()
    )
    .into_bytes();
    let name = digest(&manifest);
    (BTreeMap::from([(digest(&blob), blob), (digest(&config), config), (name.clone(), manifest)]), name)
}
