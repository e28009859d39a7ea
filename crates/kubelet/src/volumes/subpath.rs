//! `subPath` mounts that cannot leave their volume, whatever links the pod puts into it.
//!
//! The path is opened beneath the volume by `openat2`, which resolves links inside it only, and the open file is what
//! gets bind-mounted to a place of the node agent's own; that place goes into the container.

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Checks what validation may not have seen: the result of expanding `subPathExpr`.
pub(crate) fn check(path: &str) -> Result<(), String> {
    if Path::new(path).is_absolute() {
        return Err(format!("subPath {path:?} must not be an absolute path"));
    }
    if Path::new(path).components().any(|c| c == Component::ParentDir) {
        return Err(format!("subPath {path:?} must not contain \"..\""));
    }
    Ok(())
}

fn open_beneath(volume: &Path, sub: &Path, directory: bool) -> nix::Result<OwnedFd> {
    let root = nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    if directory {
        flags |= OFlag::O_DIRECTORY;
    }
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(&root, sub, how)
}

/// Greatest file that [`read`] takes, in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// The text of a regular file in `volume`. Links are followed as if the volume were the root directory.
pub(crate) fn read(volume: &Path, file: &str) -> io::Result<String> {
    let root = nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    // Opening a pipe must not wait for its other end.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let file = fs::File::from(openat2(&root, file, OpenHow::new().flags(flags).resolve(resolve))?);
    let about = file.metadata()?;
    if !about.is_file() || about.len() > MAX_TEXT {
        return Err(io::Error::other("not a regular file of reasonable size"));
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_TEXT), &mut text)?;
    Ok(text)
}

/// Opens `sub` beneath `volume`, making directories that are missing.
fn open_or_create(volume: &Path, sub: &str, mode: u32) -> Result<OwnedFd, String> {
    let path = Path::new(sub);
    let explain = |e: nix::Error| match e {
        nix::Error::EXDEV | nix::Error::ELOOP => format!("subPath {sub:?} leads out of the volume"),
        e => format!("failed to prepare subPath {sub:?}: {e}"),
    };
    match open_beneath(volume, path, false) {
        Ok(fd) => return Ok(fd),
        Err(nix::Error::ENOENT) => {}
        Err(e) => return Err(explain(e)),
    }
    // Each part is made in the directory before it, held open: nothing can be exchanged under way.
    let mut done = PathBuf::new();
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        let parent_path = if done.as_os_str().is_empty() { Path::new(".") } else { &done };
        let parent = open_beneath(volume, parent_path, true).map_err(explain)?;
        match nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(mode)) {
            Ok(()) => {
                let made = open_beneath(volume, &done.join(name), true).map_err(explain)?;
                // The umask must not narrow it.
                let by_fd = PathBuf::from(format!("/proc/self/fd/{}", made.as_raw_fd()));
                fs::set_permissions(&by_fd, std::os::unix::fs::PermissionsExt::from_mode(mode))
                    .map_err(|e| format!("failed to prepare subPath {sub:?}: {e}"))?;
            }
            Err(nix::Error::EEXIST) => {}
            Err(e) => return Err(explain(e)),
        }
        done.push(name);
    }
    open_beneath(volume, path, false).map_err(explain)
}

/// Mounts `sub` of `volume` at `place` and returns `place`. A mount that is there already is replaced.
pub(crate) fn prepare(volume: &Path, sub: &str, mode: u32, place: &Path) -> Result<PathBuf, String> {
    check(sub)?;
    let fd = open_or_create(volume, sub, mode)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let io_error =
        |what: &str, e: io::Error| format!("failed to prepare subPath {sub:?}: {what} {}: {e}", place.display());
    let is_dir = fs::metadata(&source).map_err(|e| io_error("stat for", e))?.is_dir();
    clear(place).map_err(|e| io_error("clear", e))?;
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(|e| io_error("create parent of", e))?;
    }
    if is_dir {
        fs::create_dir(place).map_err(|e| io_error("create", e))?;
    } else {
        fs::File::create(place).map_err(|e| io_error("create", e))?;
    }
    mount(Some(&source), place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| io_error("mount", e.into()))?;
    Ok(place.to_path_buf())
}

/// Unmounts and removes a place; nothing there is no error.
pub(crate) fn clear(place: &Path) -> io::Result<()> {
    match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(e) => return Err(e.into()),
    }
    match fs::symlink_metadata(place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(meta) if meta.is_dir() => fs::remove_dir(place),
        Ok(_) => fs::remove_file(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_may_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("secret"));
        fs::create_dir_all(volume.join("real")).unwrap();
        fs::write(&outside, "x").unwrap();
        symlink("../secret", volume.join("up")).unwrap();
        symlink(&outside, volume.join("absolute")).unwrap();
        symlink("real", volume.join("inside")).unwrap();
        for bad in ["up", "absolute", "up/more"] {
            let e = open_or_create(&volume, bad, 0o755).unwrap_err();
            assert!(e.contains("leads out of the volume") || e.contains("Not a directory"), "{bad}: {e}");
        }
        open_or_create(&volume, "inside", 0o755).unwrap();
        open_or_create(&volume, "inside/new/deep", 0o750).unwrap();
        assert!(volume.join("real/new/deep").is_dir());
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(volume.join("real/new")).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o750);
        assert!(check("a/../b").is_err() && check("/a").is_err() && check("a/b").is_ok());
    }
}
