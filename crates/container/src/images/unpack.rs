//! Unpacks a layer's tar stream into a directory that overlayfs can use as a lower layer.
//!
//! Nothing is ever written outside the directory, whatever the archive says: parents are resolved with
//! `openat2(RESOLVE_IN_ROOT)`, and the last component of a path is created without following links.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType};

use crate::error::{Error, Result};
use crate::init::open_in_root;

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Unpacks `reader` into `target`, an existing empty directory. `layer` names the layer in errors.
pub(crate) fn unpack(reader: impl Read, target: &Path, layer: &str) -> Result<()> {
    let root = File::open(target).map_err(|e| Error::io("opening", target, e))?.into();
    let mut unpacker =
        Unpacker { root, target: target.to_path_buf(), layer: layer.to_string(), directories: Vec::new() };
    let mut archive = Archive::new(reader);
    let entries = archive.entries().map_err(|e| Error::invalid_image(layer, e))?;
    for entry in entries {
        let mut entry = entry.map_err(|e| Error::invalid_image(layer, format!("corrupted archive: {e}")))?;
        unpacker.entry(&mut entry)?;
    }
    unpacker.finish()
}

struct Unpacker {
    root: OwnedFd,
    target: PathBuf,
    layer: String,
    /// Directories and their times, set last, since writing into a directory changes its time.
    directories: Vec<(PathBuf, i64)>,
}

struct Place {
    parent: OwnedFd,
    name: CString,
    path: PathBuf,
}

impl Place {
    /// A path to it that needs no resolution of what the archive wrote.
    fn direct(&self) -> PathBuf {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.parent.as_raw_fd()));
        path.push(std::ffi::OsStr::from_bytes(self.name.as_bytes()));
        path
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Unpacker {
    fn invalid(&self, path: &Path, reason: impl ToString) -> Error {
        Error::invalid_image(format!("{}: {}", self.layer, path.display()), reason)
    }

    fn os(&self, operation: &'static str, path: &Path, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::ENAMETOOLONG | libc::ELOOP | libc::EXDEV | libc::ENOTDIR | libc::EISDIR) => {
                self.invalid(path, format!("{operation}: {error}"))
            }
            _ => Error::io(operation, self.target.join(path), error),
        }
    }

    /// The path of an entry, relative and without `..`.
    fn normalize(&self, raw: &[u8]) -> Result<PathBuf> {
        let path = PathBuf::from(std::ffi::OsString::from_vec(raw.to_vec()));
        let mut clean = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => clean.push(name),
                Component::CurDir | Component::RootDir => {}
                _ => return Err(self.invalid(&path, "path leads out of the image")),
            }
        }
        if raw.contains(&0) {
            return Err(self.invalid(&path, "path contains a zero byte"));
        }
        Ok(clean)
    }

    /// Opens the parent of a path, with missing directories made.
    fn place(&self, path: &Path) -> Result<Place> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(self.invalid(path, "path names nothing"));
        };
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let parent_path = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent = match open_in_root(&self.root, parent_path, flags) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                let above = self.place(parent)?;
                // SAFETY: a valid C string below a resolved directory.
                match check(unsafe { libc::mkdirat(above.parent.as_raw_fd(), above.name.as_ptr(), 0o755) }) {
                    Err(e) if e.raw_os_error() != Some(libc::EEXIST) => return Err(self.os("creating", parent, e)),
                    _ => {}
                }
                open_in_root(&self.root, parent_path, flags).map_err(|e| self.os("opening", parent, e))?
            }
            Err(e) => return Err(self.os("opening", parent, e)),
        };
        let c_name = CString::new(name.as_bytes()).map_err(|e| self.invalid(path, e))?;
        Ok(Place { parent, name: c_name, path: path.to_path_buf() })
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        let path = self.normalize(&entry.path_bytes())?;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        if path.as_os_str().is_empty() {
            return self.set_root(entry);
        }
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&path, &name, hidden);
        }
        let place = self.place(&path)?;
        let header = |e: io::Error| Error::invalid_image(format!("{}: {}", self.layer, path.display()), e);
        let mode = entry.header().mode().map_err(header)? & 0o7777;
        match kind {
            EntryType::Directory => self.directory(&place, mode)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(&place, entry)?,
            EntryType::Link => {
                return self.hard_link(&place, entry.link_name_bytes().as_deref());
            }
            EntryType::Symlink => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| self.invalid(&path, "symbolic link without a target"))?;
                let target = CString::new(target.as_ref()).map_err(|e| self.invalid(&path, e))?;
                self.replace(&place)?;
                // SAFETY: valid C strings.
                check(unsafe { libc::symlinkat(target.as_ptr(), place.parent.as_raw_fd(), place.name.as_ptr()) })
                    .map_err(|e| self.os("linking", &path, e))?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let number = |n: io::Result<Option<u32>>| n.map(|n| n.unwrap_or(0));
                let (major, minor) = (
                    number(entry.header().device_major()).map_err(header)?,
                    number(entry.header().device_minor()).map_err(header)?,
                );
                let bits = match kind {
                    EntryType::Char => libc::S_IFCHR,
                    EntryType::Block => libc::S_IFBLK,
                    _ => libc::S_IFIFO,
                };
                if kind == EntryType::Char && (major, minor) == (0, 0) {
                    return Err(self.invalid(&path, "a character device 0:0 would hide files of other layers"));
                }
                self.replace(&place)?;
                let device = libc::makedev(major, minor);
                // SAFETY: a valid C string.
                check(unsafe { libc::mknodat(place.parent.as_raw_fd(), place.name.as_ptr(), bits | 0o600, device) })
                    .map_err(|e| self.os("creating device", &path, e))?;
            }
            other => return Err(self.invalid(&path, format!("unsupported entry type {:?}", other.as_byte() as char))),
        }
        self.attributes(&place, entry, kind, mode)
    }

    /// An entry for the root directory itself sets only its attributes.
    fn set_root<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let header = |e: io::Error| Error::invalid_image(format!("{}: /", self.layer), e);
        let mode = entry.header().mode().map_err(header)? & 0o7777;
        let (uid, gid) = (entry.header().uid().map_err(header)?, entry.header().gid().map_err(header)?);
        std::os::unix::fs::chown(&self.target, Some(uid as u32), Some(gid as u32))
            .and_then(|()| fs::set_permissions(&self.target, fs::Permissions::from_mode(mode)))
            .map_err(|e| Error::io("setting attributes of", &self.target, e))
    }

    fn whiteout(&self, path: &Path, name: &str, hidden: &str) -> Result<()> {
        let place = self.place(path)?;
        if name == OPAQUE {
            let parent = PathBuf::from(format!("/proc/self/fd/{}/.", place.parent.as_raw_fd()));
            return set_xattr(&parent, "trusted.overlay.opaque", b"y").map_err(|e| self.os("marking opaque", path, e));
        }
        if hidden.starts_with(WHITEOUT) {
            return Ok(()); // bookkeeping of another union file system
        }
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(self.invalid(path, "whiteout of nothing"));
        }
        let target = CString::new(hidden).map_err(|e| self.invalid(path, e))?;
        // SAFETY: a valid C string. A device 0:0 is overlayfs' whiteout.
        match check(unsafe { libc::mknodat(place.parent.as_raw_fd(), target.as_ptr(), libc::S_IFCHR, 0) }) {
            // The layer brings the file itself: it hides the lower one anyway.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            Err(e) => Err(self.os("creating whiteout", path, e)),
            Ok(_) => Ok(()),
        }
    }

    /// Removes what an earlier entry (or a whiteout) left at this path.
    fn replace(&self, place: &Place) -> Result<()> {
        let unlink = |flags| {
            // SAFETY: a valid C string.
            check(unsafe { libc::unlinkat(place.parent.as_raw_fd(), place.name.as_ptr(), flags) })
        };
        match unlink(0) {
            Ok(_) => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EISDIR | libc::EPERM)) => {
                fs::remove_dir_all(place.direct()).map_err(|e| self.os("replacing", &place.path, e))
            }
            Err(e) => Err(self.os("replacing", &place.path, e)),
        }
    }

    fn directory(&self, place: &Place, mode: u32) -> Result<()> {
        // SAFETY: a valid C string.
        let made = check(unsafe { libc::mkdirat(place.parent.as_raw_fd(), place.name.as_ptr(), mode) });
        match made {
            Ok(_) => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                let meta = fs::symlink_metadata(place.direct()).map_err(|e| self.os("stat", &place.path, e))?;
                if meta.is_dir() {
                    return Ok(());
                }
                self.replace(place)?;
                // SAFETY: a valid C string.
                check(unsafe { libc::mkdirat(place.parent.as_raw_fd(), place.name.as_ptr(), mode) })
                    .map(drop)
                    .map_err(|e| self.os("creating", &place.path, e))
            }
            Err(e) => Err(self.os("creating", &place.path, e)),
        }
    }

    fn file<R: Read>(&self, place: &Place, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        self.replace(place)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: a valid C string; the new descriptor is owned at once.
        let mut file = unsafe {
            let fd = check(libc::openat(place.parent.as_raw_fd(), place.name.as_ptr(), flags, 0o600))
                .map_err(|e| self.os("creating", &place.path, e))?;
            File::from_raw_fd(fd)
        };
        let mut buffer = vec![0; 64 * 1024];
        loop {
            // Reading errors are the archive's, writing errors the disk's.
            let n = match entry.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.invalid(&place.path, format!("corrupted archive: {e}"))),
            };
            file.write_all(&buffer[..n]).map_err(|e| self.os("writing", &place.path, e))?;
        }
        let wanted = entry.size();
        let got = file.metadata().map_err(|e| self.os("stat", &place.path, e))?.len();
        if got < wanted && entry.header().entry_type() != EntryType::GNUSparse {
            return Err(self.invalid(&place.path, format!("corrupted archive: {got} of {wanted} bytes")));
        }
        Ok(())
    }

    fn hard_link(&self, place: &Place, target: Option<&[u8]>) -> Result<()> {
        let Some(target) = target else { return Err(self.invalid(&place.path, "hard link without a target")) };
        let target_path = self.normalize(target)?;
        if target_path == place.path {
            return Ok(());
        }
        let source = self.place(&target_path)?;
        self.replace(place)?;
        // SAFETY: valid C strings; without AT_SYMLINK_FOLLOW a symbolic link is linked itself, never followed.
        check(unsafe {
            libc::linkat(
                source.parent.as_raw_fd(),
                source.name.as_ptr(),
                place.parent.as_raw_fd(),
                place.name.as_ptr(),
                0,
            )
        })
        .map(drop)
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::EPERM) => {
                self.invalid(&place.path, format!("hard link to {}: {e}", target_path.display()))
            }
            _ => self.os("linking", &place.path, e),
        })
    }

    fn attributes<R: Read>(
        &mut self,
        place: &Place,
        entry: &mut tar::Entry<'_, R>,
        kind: EntryType,
        mode: u32,
    ) -> Result<()> {
        let header = |e: io::Error| Error::invalid_image(format!("{}: {}", self.layer, place.path.display()), e);
        let uid = entry.header().uid().map_err(header)? as u32;
        let gid = entry.header().gid().map_err(header)? as u32;
        let time = entry.header().mtime().unwrap_or(0) as i64;
        let (dir, name) = (place.parent.as_raw_fd(), place.name.as_ptr());
        // SAFETY: valid C strings; links are not followed (and not chmod-ed).
        unsafe {
            check(libc::fchownat(dir, name, uid, gid, libc::AT_SYMLINK_NOFOLLOW))
                .map_err(|e| self.os("changing owner of", &place.path, e))?;
            if kind != EntryType::Symlink {
                check(libc::fchmodat(dir, name, mode, 0)).map_err(|e| self.os("changing mode of", &place.path, e))?;
            }
        }
        let direct = place.direct();
        let extensions = entry.pax_extensions().map_err(header)?;
        for extension in extensions.into_iter().flatten() {
            let extension = extension.map_err(header)?;
            let Ok(key) = extension.key() else { continue };
            let Some(attribute) = key.strip_prefix("SCHILY.xattr.") else { continue };
            // Attributes of overlayfs itself would let an image play tricks on the mount.
            if attribute.starts_with("trusted.") || attribute.starts_with("user.overlay.") {
                continue;
            }
            match set_xattr(&direct, attribute, extension.value_bytes()) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM)) => {}
                other => other.map_err(|e| self.os("setting attribute of", &place.path, e))?,
            }
        }
        if kind == EntryType::Directory {
            self.directories.push((place.path.clone(), time));
        } else {
            set_time(dir, &place.name, time);
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        for (path, time) in self.directories.iter().rev() {
            // A later entry may have replaced the directory.
            if let Ok(place) = self.place(path) {
                set_time(place.parent.as_raw_fd(), &place.name, *time);
            }
        }
        Ok(())
    }
}

fn set_time(dir: i32, name: &CString, seconds: i64) {
    let time = libc::timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = [time, time];
    // SAFETY: valid arguments. A time that cannot be set is not worth failing for.
    unsafe { libc::utimensat(dir, name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    // SAFETY: valid C strings and a valid value of the given length.
    check(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
