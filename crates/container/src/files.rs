//! Small files that must be whole or absent, whatever happens.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, IoContext, Result};

/// Replaces `path` atomically and durably.
pub(crate) fn write_atomic(path: &Path, data: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir).ctx("creating a file in", dir)?;
    file.write_all(data).ctx("writing", path)?;
    file.as_file().sync_all().ctx("syncing", path)?;
    file.persist(path).map_err(|e| Error::io("renaming to", path, e.error))?;
    sync_dir(dir)
}

/// Makes a directory nobody else may enter: below it are files of containers, with owners and set-uid bits of their own.
pub(crate) fn create_private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(dir).ctx("creating", dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).ctx("changing mode of", dir)
}

/// Makes entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).ctx("syncing", dir)
}

/// [`write_atomic`] of a value as JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let data = serde_json::to_vec(value).map_err(|e| Error::io("encoding", path, std::io::Error::other(e)))?;
    write_atomic(path, &data)
}

/// The same without syncing, for files that mean nothing after a power cut.
pub(crate) fn write_json_volatile(path: &Path, value: &impl Serialize) -> Result<()> {
    let data = serde_json::to_vec(value).map_err(|e| Error::io("encoding", path, std::io::Error::other(e)))?;
    fs::write(path, data).ctx("writing", path)
}

/// Replaces a file by JSON so that a reader sees the old or the new one, without syncing.
pub(crate) fn replace_json_volatile(path: &Path, value: &impl Serialize) -> Result<()> {
    let new = path.with_extension("new");
    write_json_volatile(&new, value)?;
    fs::rename(&new, path).ctx("renaming to", path)
}

/// Reads JSON.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let data = fs::read(path).ctx("reading", path)?;
    serde_json::from_slice(&data).map_err(|e| Error::io("parsing", path, std::io::Error::other(e)))
}
