//! Layers: from a (compressed) tar stream to a directory under its final name, or to nothing.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::unpack::unpack;
use crate::error::{Error, IoContext, Result};

/// A layer of an image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Digest of the uncompressed tar, `sha256:…`.
    pub(crate) diff_id: String,
    /// Bytes of the unpacked files.
    pub(crate) bytes: u64,
    /// Number of files and directories.
    pub(crate) inodes: u64,
}

/// Name of a layer's directory: short, since overlayfs takes all of them in one page of options.
pub(crate) fn directory_name(diff_id: &str) -> String {
    diff_id.trim_start_matches("sha256:").chars().take(24).collect()
}

/// `sha256:…` of some bytes.
pub(crate) fn digest_of(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        use std::fmt::Write;
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Computes the digest of what passes through.
pub(crate) struct HashingReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        HashingReader { inner, hash: Sha256::new() }
    }

    /// Reads to the end and returns the digest of everything.
    pub(crate) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// The plain content of a plain, gzip or zstd stream, recognized by its first bytes.
pub(crate) fn decompressed<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let start = reader.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

/// Unpacks a layer below `tmp` and moves it to its place below `layers`. `digest`, when given, is that of the stream as
/// it is; `diff_id` that of its plain content. On any error nothing is left.
pub(crate) fn add_layer(
    stream: impl Read,
    digest: Option<&str>,
    diff_id: &str,
    tmp: &Path,
    layers: &Path,
) -> Result<Layer> {
    let name = digest.unwrap_or(diff_id);
    let corrupted = |e: io::Error| Error::invalid_image(name, format!("corrupted layer: {e}"));
    let work = tempfile::Builder::new().prefix("layer-").tempdir_in(tmp).ctx("creating a directory in", tmp)?;
    let target = work.path().join("fs");
    fs::create_dir(&target).ctx("creating", &target)?;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).ctx("changing mode of", &target)?;

    let mut raw = HashingReader::new(stream);
    {
        let mut plain = HashingReader::new(decompressed(&mut raw).map_err(corrupted)?);
        unpack(&mut plain, &target, name)?;
        let actual = plain.finish().map_err(corrupted)?;
        if actual != diff_id {
            return Err(Error::invalid_image(name, format!("content has digest {actual}, the image says {diff_id}")));
        }
    }
    let actual = raw.finish().map_err(corrupted)?;
    if digest.is_some_and(|wanted| wanted != actual) {
        return Err(Error::invalid_image(name, format!("blob has digest {actual}")));
    }
    commit(work, &target, diff_id, layers)
}

/// Makes an unpacked directory durable and gives it its final name.
pub(crate) fn commit(work: tempfile::TempDir, target: &Path, diff_id: &str, layers: &Path) -> Result<Layer> {
    let (bytes, inodes) = usage(target);
    // One call for the whole tree: after a power cut a layer is whole or absent.
    let dir = fs::File::open(target).ctx("opening", target)?;
    // SAFETY: plain call on an open descriptor.
    if unsafe { libc::syncfs(dir.as_raw_fd()) } < 0 {
        return Err(Error::io("syncing", target, io::Error::last_os_error()));
    }
    let place = layers.join(directory_name(diff_id));
    match fs::rename(target, &place) {
        Ok(()) => {}
        // Another image brought the same layer meanwhile.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) && place.is_dir() => {}
        Err(e) => return Err(Error::io("renaming to", &place, e)),
    }
    crate::files::sync_dir(layers)?;
    drop(work);
    Ok(Layer { diff_id: diff_id.to_string(), bytes, inodes })
}

/// Disk blocks (in bytes) and number of entries below a directory, itself included; hard links count once.
pub(crate) fn usage(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let mut linked = std::collections::HashSet::new();
    let mut total = (0, 0);
    let mut todo = vec![dir.to_path_buf()];
    while let Some(path) = todo.pop() {
        // What disappears while we look does not count.
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.nlink() > 1 && !meta.is_dir() && !linked.insert((meta.dev(), meta.ino())) {
            continue;
        }
        total.0 += meta.blocks() * 512;
        total.1 += 1;
        if meta.is_dir()
            && let Ok(entries) = fs::read_dir(&path)
        {
            todo.extend(entries.flatten().map(|e| e.path()));
        }
    }
    total
}
