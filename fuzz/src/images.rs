//! The import of image archives, and the unpacking of layers.

use gantry_container::image_service::ImageService;
use gantry_container::images::{ImageStore, ImageStoreConfig};
use sha2::{Digest, Sha256};
use std::cell::LazyCell;
use std::path::PathBuf;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

pub(crate) const TAR: &[&str] = &[
    "../",
    "/",
    "./",
    "..",
    ".wh.",
    ".wh..wh..opq",
    "ustar\0",
    "ustar  \0",
    "\0\0\0\0\0\0\0\0",
    "0000644\0",
    "77777777777\0",
    "etc/passwd",
    "manifest.json",
    "index.json",
    "oci-layout",
    "blobs/sha256/",
    "\u{1f}\u{8b}",
    "path=",
    "27 path=../../../../escape\n",
    "1",
    "2",
    "5",
    "x",
    "g",
    "L",
    "K",
    "\"Layers\"",
    "\"Config\"",
    "layer.tar",
];

/// A store in a directory of its own, for all inputs of a thread.
struct Images {
    dir: TempDir,
    store: ImageStore,
    runtime: Runtime,
}

thread_local! {
    static IMAGES: LazyCell<Images> = LazyCell::new(|| {
        let dir = TempDir::with_prefix("gantry-fuzz-").expect("a temporary directory");
        let config = ImageStoreConfig { dir: dir.path().join("store"), ..Default::default() };
        let store = ImageStore::open(config).expect("an empty store opens");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Images { dir, store, runtime }
    });
}

impl Images {
    /// Imports; what was imported can be looked at and removed; nothing is left, and nothing appears outside the store.
    fn import(&self, archive: &[u8]) {
        let file: PathBuf = self.dir.path().join("archive.tar");
        std::fs::write(&file, archive).expect("the archive is written");
        self.runtime.block_on(async {
            if let Ok(images) = self.store.import(&file, Some("fuzz.test/image:1")).await {
                assert!(!images.is_empty(), "an import gives images or an error");
                for image in images {
                    self.store.config(&image.id).await.expect("what was imported has a configuration");
                    let _ = self.store.resolve_user(&image.id, "").await;
                    self.store.remove(&image.id).await.expect("what was imported can be removed");
                }
            }
            assert!(self.store.list().await.expect("the store can be read").is_empty());
        });
        let mut around: Vec<_> = std::fs::read_dir(self.dir.path())
            .expect("the directory can be read")
            .map(|e| e.expect("an entry").file_name())
            .collect();
        around.sort();
        assert_eq!(around, ["archive.tar", "store"], "the archive wrote outside the store");
        let layers = std::fs::read_dir(self.dir.path().join("store/layers")).expect("the store has its layers");
        assert_eq!(layers.count(), 0, "layers were left behind");
    }
}

/// An archive as it is given to `gantry image import`.
pub(crate) fn archive(data: &[u8]) {
    IMAGES.with(|images| images.import(data));
}

/// A layer, in an archive that is otherwise in order: digests are right, so that every byte reaches the unpacker.
pub(crate) fn layer(data: &[u8]) {
    IMAGES.with(|images| images.import(&docker_archive(data)));
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

fn file(tar: &mut tar::Builder<Vec<u8>>, path: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    tar.append_data(&mut header, path, data).expect("memory takes all");
}

fn link(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o777);
    header.set_size(0);
    tar.append_link(&mut header, path, target).expect("memory takes all");
}

fn directory(tar: &mut tar::Builder<Vec<u8>>, path: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    tar.append_data(&mut header, path, std::io::empty()).expect("memory takes all");
}

fn some_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    directory(&mut tar, "etc/");
    file(&mut tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    link(&mut tar, tar::EntryType::Symlink, "up", "../../../../..");
    link(&mut tar, tar::EntryType::Link, "etc/hard", "etc/passwd");
    file(&mut tar, "etc/.wh.gone", b"");
    file(&mut tar, &format!("long/{}", "x".repeat(150)), b"long name");
    tar.into_inner().expect("memory takes all")
}

fn docker_archive(layer: &[u8]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        digest(layer)
    );
    let name = format!("{}.json", digest(config.as_bytes()));
    let manifest = format!(r#"[{{"Config":"{name}","RepoTags":["a.test/b:1"],"Layers":["layer.tar"]}}]"#);
    let mut tar = tar::Builder::new(Vec::new());
    file(&mut tar, "layer.tar", layer);
    file(&mut tar, &name, config.as_bytes());
    file(&mut tar, "manifest.json", manifest.as_bytes());
    tar.into_inner().expect("memory takes all")
}

pub(crate) fn archive_seeds() -> Vec<Vec<u8>> {
    let mut layout = tar::Builder::new(Vec::new());
    file(&mut layout, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    file(&mut layout, "index.json", br#"{"schemaVersion":2,"manifests":[]}"#);
    vec![docker_archive(&some_layer()), layout.into_inner().expect("memory takes all")]
}

pub(crate) fn layer_seeds() -> Vec<Vec<u8>> {
    vec![some_layer()]
}
