//! The built-in image, made of the running program itself.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use super::archive::{descriptor, written_manifest};
use super::layer::{commit, digest_of, directory_name};
use super::manifest::{Configuration, DiffIds, Execution, host_architecture};
use super::{Inner, Reference};
use crate::error::{Error, IoContext, Result};
use crate::image_service::Image;

/// Name of the built-in image.
pub const SELF_IMAGE: &str = "gantry.local/self:latest";

/// What its name has in place of a registry.
pub(super) const REGISTRY: &str = "gantry.local";

const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnobody:x:65534:\n";

/// Makes (or finds) the image of the program `exe`.
pub(super) fn make(store: &Inner, exe: &Path) -> Result<Image> {
    let meta = fs::metadata(exe).ctx("reading", exe)?;
    // The layer is known by which file it was made of, not by content: hashing the program would cost more than the rest
    // of the start. A rebuilt program is another file or has another time.
    let identity = format!(
        "built-in 1 dev={} ino={} size={} mtime={}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    let diff_id = digest_of(identity.as_bytes());
    let config = serde_json::to_vec(&configuration(&diff_id)).map_err(|e| Error::invalid_image(SELF_IMAGE, e))?;
    let id = digest_of(&config);
    let name = Reference::parse(SELF_IMAGE)?;
    let there = {
        let index = store.current()?;
        let record = index.images.iter().find(|i| i.id == id && i.tags.iter().any(|t| t == SELF_IMAGE));
        record.map(|r| r.image())
    };
    if let Some(image) = there
        && store.layers().join(directory_name(&diff_id)).join("gantry").exists()
    {
        return Ok(image);
    }
    let layer = build(store, exe, &diff_id)?;
    let manifest =
        written_manifest(&config, vec![descriptor("application/vnd.oci.image.layer.v1.tar", &diff_id, meta.len())])?;
    store.record(&manifest, &config, vec![layer], meta.len(), &[name])?;
    // Earlier programs' images go unless a container still runs from one.
    let image = store.change(|index| {
        let users = store.users.lock();
        index.images.retain(|i| i.id == id || !i.pinned || users.contains_key(&i.id));
        match index.images.iter_mut().find(|i| i.id == id) {
            Some(record) => {
                record.pinned = true;
                Ok(record.image())
            }
            None => Err(Error::ImageNotFound { reference: SELF_IMAGE.into() }),
        }
    })?;
    Ok(image)
}

fn build(store: &Inner, exe: &Path, diff_id: &str) -> Result<super::layer::Layer> {
    let tmp = store.tmp();
    let work = tempfile::Builder::new().prefix("layer-").tempdir_in(&tmp).ctx("creating a directory in", &tmp)?;
    let root = work.path().join("fs");
    let directories: &[(&str, u32)] =
        &[("", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("var", 0o755), ("var/tmp", 0o1777)];
    for (name, mode) in directories {
        let dir = root.join(name);
        fs::create_dir(&dir).ctx("creating", &dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(*mode)).ctx("changing mode of", &dir)?;
    }
    for (name, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
        fs::write(root.join(name), text).ctx("writing", root.join(name))?;
    }
    let target = root.join("gantry");
    // A hard link costs nothing and no container can write through it: the layer is a lower one. It must be executable
    // for all, so a program with tighter rights is copied.
    let source = fs::canonicalize(exe).ctx("resolving", exe)?;
    let open_to_all = fs::metadata(&source).ctx("reading", &source)?.mode() & 0o555 == 0o555;
    if !open_to_all || fs::hard_link(&source, &target).is_err() {
        fs::copy(exe, &target).ctx("copying the program to", &target)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).ctx("changing mode of", &target)?;
        chown(&target, Some(0), Some(0)).ctx("changing owner of", &target)?;
    }
    commit(work, &root, diff_id, &store.layers())
}

fn configuration(diff_id: &str) -> Configuration {
    Configuration {
        architecture: host_architecture().into(),
        os: "linux".into(),
        created: None,
        config: Some(Execution {
            env: Some(vec!["PATH=/".into()]),
            entrypoint: Some(vec!["/gantry".into(), "self".into()]),
            cmd: Some(vec!["serve".into()]),
            working_dir: Some("/".into()),
            ..Execution::default()
        }),
        rootfs: DiffIds { kind: "layers".into(), diff_ids: vec![diff_id.into()] },
    }
}
