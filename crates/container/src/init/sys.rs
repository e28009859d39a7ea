//! System calls that libc has no wrappers for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const AT_RECURSIVE: u32 = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const RESOLVE_IN_ROOT: u64 = 0x10;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;

/// `MOUNT_ATTR_RDONLY`.
pub(super) const ATTR_RDONLY: u64 = 1;
/// `MOUNT_ATTR_NOEXEC`.
pub(super) const ATTR_NOEXEC: u64 = 8;

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A path as a C string.
pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens `path` as if `root` were the root directory: neither `..` nor any symbolic link leads out.
///
/// While anything is mounted or renamed anywhere on the machine the kernel cannot be sure of a `..` and says EAGAIN, to be
/// asked again (openat2(2)).
pub(crate) fn open_in_root(root: impl AsFd, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let mut left = RESOLVE_TRIES;
    loop {
        match open_in_root_once(root.as_fd(), path, flags) {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && left > 0 => left -= 1,
            result => return result,
        }
    }
}

/// Each try is a few microseconds; other machines' worst burst of mounts is over long before the last.
const RESOLVE_TRIES: u32 = 10_000;

fn open_in_root_once(root: impl AsFd, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let how =
        OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: 0, resolve: RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
    let path = c_path(path)?;
    // SAFETY: pointers are valid for the call; the descriptor is new.
    unsafe {
        let fd = check(libc::syscall(
            libc::SYS_openat2,
            root.as_fd().as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            std::mem::size_of::<OpenHow>(),
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A detached copy of the mount at `path`, with everything mounted below it if `recursive`.
pub(super) fn clone_mount(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is valid for the call; the descriptor is new.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Sets attributes and (when not 0) the propagation type of a mount.
pub(super) fn set_mount_attributes(mount: impl AsFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    let attr = MountAttr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH as u32 | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: pointers are valid for the call.
    unsafe {
        check(libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            std::mem::size_of::<MountAttr>(),
        ))?;
    }
    Ok(())
}

/// Attaches a detached mount on the file or directory `target`.
pub(super) fn attach_mount(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    // SAFETY: the empty paths are valid C strings.
    unsafe {
        check(libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            target.as_fd().as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        ))?;
    }
    Ok(())
}

/// `mount(2)`.
pub(super) fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let source = CString::new(source).map_err(invalid)?;
    let kind = CString::new(kind).map_err(invalid)?;
    let data = CString::new(data).map_err(invalid)?;
    let target = c_path(target)?;
    // SAFETY: all strings are valid for the call.
    unsafe {
        check(libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()).into())?;
    }
    Ok(())
}
