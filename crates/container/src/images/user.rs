//! Users and groups as an image's `/etc/passwd` and `/etc/group` name them.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::image_service::ResolvedUser;
use crate::init::open_in_root;

/// Greatest passwd or group file read.
const MAX_FILE: u64 = 1 << 20;

/// Resolves `name`, `uid`, `name:group`, `uid:gid`, …; empty is root. A number needs no entry.
pub(super) fn resolve(dir: &Path, layers: &[String], image: &str, spec: &str) -> Result<ResolvedUser> {
    let passwd = read(dir, layers, "etc/passwd");
    let group = read(dir, layers, "etc/group");
    parse(&passwd, &group, spec).map_err(|user| Error::UnknownUser { user, image: image.to_string() })
}

fn parse(passwd: &str, group: &str, spec: &str) -> std::result::Result<ResolvedUser, String> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 4 && (f[0] == user || (number.is_some() && f[2].parse().ok() == number)));
    let (uid, gid, home, name) = match (&entry, number) {
        (Some(f), _) => (
            f[2].parse().map_err(|_| user.to_string())?,
            f[3].parse().unwrap_or(0),
            f.get(5).copied().filter(|h| !h.is_empty()).unwrap_or("/"),
            f[0],
        ),
        (None, Some(uid)) => (uid, 0, "/", ""),
        (None, None) => return Err(user.to_string()),
    };
    let groups: Vec<Vec<&str>> =
        group.lines().map(|l| l.split(':').collect()).filter(|f: &Vec<&str>| f.len() >= 3).collect();
    let gid = match wanted_group {
        None | Some("") => gid,
        Some(wanted) => match wanted.parse() {
            Ok(gid) => gid,
            Err(_) => groups
                .iter()
                .find(|f| f[0] == wanted)
                .and_then(|f| f[2].parse().ok())
                .ok_or_else(|| wanted.to_string())?,
        },
    };
    let listed = |f: &&Vec<&str>| !name.is_empty() && f.get(3).is_some_and(|m| m.split(',').any(|n| n.trim() == name));
    let mut additional: Vec<u32> = groups.iter().filter(listed).filter_map(|f| f[2].parse().ok()).collect();
    additional.sort_unstable();
    additional.dedup();
    Ok(ResolvedUser { uid, gid, additional_gids: additional, home: PathBuf::from(home) })
}

/// A file as the stacked layers show it; empty when there is none.
fn read(dir: &Path, layers: &[String], path: &str) -> String {
    for layer in layers {
        let Ok(root) = File::open(dir.join(layer)) else { continue };
        let root = OwnedFd::from(root);
        match open_in_root(&root, Path::new(path), libc::O_RDONLY | libc::O_NONBLOCK) {
            Ok(fd) => {
                let file = File::from(fd);
                let is_file = file.metadata().is_ok_and(|m| m.is_file());
                let mut text = Vec::new();
                if is_file && file.take(MAX_FILE).read_to_end(&mut text).is_ok() {
                    return String::from_utf8_lossy(&text).into_owned();
                }
                return String::new();
            }
            Err(_) => {
                // A whiteout, or a directory that hides the lower ones, ends the search.
                let full = dir.join(layer).join(path);
                let hidden = std::fs::symlink_metadata(&full).is_ok_and(|m| m.file_type().is_char_device());
                if hidden || full.parent().is_some_and(is_opaque) {
                    return String::new();
                }
            }
        }
    }
    String::new()
}

fn is_opaque(dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(dir.as_os_str().as_bytes()) else { return false };
    let mut value = [0u8; 1];
    // SAFETY: valid C strings and a buffer of the given length.
    let n = unsafe { libc::lgetxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), 1) };
    n == 1 && value[0] == b'y'
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:44:web:/srv:/bin/false\nodd:x\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,web\nstaff:x:50:web\nweb:x:44:\n";

    #[test]
    fn names_and_numbers() {
        let user = |uid, gid, more: &[u32], home: &str| ResolvedUser {
            uid,
            gid,
            additional_gids: more.to_vec(),
            home: home.into(),
        };
        let cases = [
            ("", Ok(user(0, 0, &[10], "/root"))),
            ("web", Ok(user(33, 44, &[10, 50], "/srv"))),
            ("33", Ok(user(33, 44, &[10, 50], "/srv"))),
            ("web:staff", Ok(user(33, 50, &[10, 50], "/srv"))),
            ("web:7", Ok(user(33, 7, &[10, 50], "/srv"))),
            ("1000", Ok(user(1000, 0, &[], "/"))),
            ("1000:1001", Ok(user(1000, 1001, &[], "/"))),
            (":50", Ok(user(0, 50, &[10], "/root"))),
            ("nobody", Err("nobody".to_string())),
            ("web:nogroup", Err("nogroup".to_string())),
        ];
        for (spec, want) in cases {
            assert_eq!(parse(PASSWD, GROUP, spec), want, "{spec:?}");
        }
    }
}
