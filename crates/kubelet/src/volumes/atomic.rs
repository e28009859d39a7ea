//! Writes a set of files into a volume so that readers see either all old or all new ones.
//!
//! Layout: the files live in a time-stamped directory `..2026_01_02_15_04_05.N`; `..data` links to it and is exchanged
//! by rename; each user-visible name links to `..data/<name>`.

use nix::unistd::{Gid, Uid, fchown};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// A file to project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, root where absent.
    pub uid: Option<u32>,
}

/// Files by their path in the volume.
pub(crate) type Payload = BTreeMap<String, File>;

/// A path must be relative, must not climb and must not begin with `..`.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("invalid path: must not be empty".into());
    }
    if path.starts_with('/') {
        return Err(format!("invalid path: must be relative path: {path}"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("invalid path: must not contain '..': {path}"));
    }
    if path.starts_with("..") {
        return Err(format!("invalid path: must not start with '..': {path}"));
    }
    if path.len() > 4096 || path.split('/').any(|part| part.len() > 255) {
        return Err(format!("invalid path: must be less than or equal to 255 characters per part: {path}"));
    }
    Ok(())
}

fn at(what: &str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let context = format!("{what} {}", path.display());
    move |e| io::Error::new(e.kind(), format!("{context}: {e}"))
}

fn first_part(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

fn matches(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        for entry in fs::read_dir(dir.join(&relative))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else {
                found.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    if !found.iter().eq(payload.keys()) {
        return Ok(false);
    }
    for (path, file) in payload {
        let full = dir.join(path);
        let meta = fs::metadata(&full)?;
        if meta.permissions().mode() & 0o7777 != file.mode & 0o7777 || meta.len() != file.content.len() as u64 {
            return Ok(false);
        }
        let mut content = Vec::new();
        fs::File::open(&full)?.read_to_end(&mut content)?;
        if content != file.content {
            return Ok(false);
        }
    }
    Ok(true)
}

fn write_files(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    for (path, file) in payload {
        let full = dir.join(path);
        if let Some(parent) = full.parent() {
            fs::create_dir_all(parent).map_err(at("create", parent))?;
        }
        let mut out =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full).map_err(at("create", &full))?;
        out.write_all(&file.content).map_err(at("write", &full))?;
        if file.uid.is_some() || group.is_some() {
            fchown(&out, file.uid.map(Uid::from_raw), group.map(Gid::from_raw))
                .map_err(|e| at("chown", &full)(e.into()))?;
        }
        // After chown, which clears special bits; not subject to the umask.
        out.set_permissions(fs::Permissions::from_mode(file.mode)).map_err(at("chmod", &full))?;
    }
    let mut directories = vec![dir.to_path_buf()];
    while let Some(d) = directories.pop() {
        fs::set_permissions(&d, fs::Permissions::from_mode(0o755)).map_err(at("chmod", &d))?;
        give(&d, group)?;
        for entry in fs::read_dir(&d).map_err(at("read", &d))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Gives a directory to the volume's group, which may enter and read it, and whose files are the group's too
/// (`SetVolumeOwnership` for volumes that are read-only).
fn give(directory: &Path, group: Option<u32>) -> io::Result<()> {
    let Some(group) = group else { return Ok(()) };
    std::os::unix::fs::chown(directory, None, Some(group)).map_err(at("chown", directory))?;
    let mode = fs::metadata(directory).map_err(at("stat", directory))?.permissions().mode() | 0o2550;
    fs::set_permissions(directory, fs::Permissions::from_mode(mode)).map_err(at("chmod", directory))
}

/// Makes the volume at `target` (which exists) show exactly `payload`; true where anything changed. `stamp` names the
/// time-stamped directory and must differ from call to call.
pub(crate) fn write(target: &Path, payload: &Payload, group: Option<u32>, stamp: &str) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    }
    let readable: Payload;
    let payload = match group {
        // The volume's group can always read.
        Some(_) => {
            readable = payload.iter().map(|(k, f)| (k.clone(), File { mode: f.mode | 0o440, ..f.clone() })).collect();
            &readable
        }
        None => payload,
    };
    let data = target.join(DATA);
    let old = match fs::read_link(&data) {
        Ok(link) if link.components().all(|c| matches!(c, Component::Normal(_))) => Some(target.join(link)),
        Ok(link) => {
            let message = format!("{} links to {}", data.display(), link.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(at("read link", &data)(e)),
    };
    // A half-written directory of an earlier attempt is simply not the same.
    if let Some(old) = &old
        && matches(old, payload).unwrap_or(false)
    {
        link_names(target, payload)?;
        return Ok(false);
    }
    let directory = format!("..{stamp}");
    let fresh = target.join(&directory);
    fs::create_dir(&fresh).map_err(at("create", &fresh))?;
    write_files(&fresh, payload, group)?;
    give(target, group)?;
    let new_data = target.join(NEW_DATA);
    match fs::remove_file(&new_data) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at("remove", &new_data)(e)),
        _ => {}
    }
    symlink(&directory, &new_data).map_err(at("link", &new_data))?;
    fs::rename(&new_data, &data).map_err(at("rename", &new_data))?;
    link_names(target, payload)?;
    for entry in fs::read_dir(target).map_err(at("read", target))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if name.starts_with("..") {
            // Directories of former generations.
            if name != DATA && name != directory {
                let removed =
                    if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(at("remove", &path))?;
            }
        } else if !payload.keys().any(|k| first_part(k) == name) && entry.file_type()?.is_symlink() {
            fs::remove_file(&path).map_err(at("remove", &path))?;
        }
    }
    Ok(true)
}

fn link_names(target: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.keys().map(|k| first_part(k)).collect();
    for name in names {
        let link = target.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link).map_err(at("link", &link))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        File { content: text.into(), mode: 0o644, uid: None }
    }

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(n, t)| ((*n).to_owned(), file(t))).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_exchange_and_remove() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        assert!(write(target, &payload(&[("a", "1"), ("d/e", "2")]), None, "t1").unwrap());
        assert_eq!(names(target), ["..data", "..t1", "a", "d"]);
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(target.join("d/e")).unwrap(), "2");
        assert_eq!(fs::read_link(target.join("a")).unwrap(), Path::new("..data/a"));

        assert!(!write(target, &payload(&[("a", "1"), ("d/e", "2")]), None, "t2").unwrap(), "nothing changed");
        assert_eq!(names(target), ["..data", "..t1", "a", "d"]);

        let mut changed = payload(&[("a", "9"), ("b", "")]);
        changed.get_mut("a").unwrap().mode = 0o400;
        assert!(write(target, &changed, None, "t3").unwrap());
        assert_eq!(names(target), ["..data", "..t3", "a", "b"]);
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "9");
        assert_eq!(fs::metadata(target.join("a")).unwrap().permissions().mode() & 0o777, 0o400);
        // A change of mode alone is a change.
        changed.get_mut("a").unwrap().mode = 0o444;
        assert!(write(target, &changed, None, "t4").unwrap());
        assert!(write(target, &Payload::new(), None, "t5").unwrap());
        assert_eq!(names(target), ["..data", "..t5"]);
    }

    #[test]
    fn the_group_reads_and_enters() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        fs::set_permissions(target, fs::Permissions::from_mode(0o777)).unwrap();
        let mut files = payload(&[("a", "1"), ("d/e", "2")]);
        files.get_mut("a").unwrap().mode = 0o400;
        write(target, &files, Some(4321), "t1").unwrap();
        use std::os::unix::fs::MetadataExt;
        for (path, mode) in [("", 0o2777), ("..t1", 0o2755), ("..t1/d", 0o2755), ("a", 0o440), ("d/e", 0o644)] {
            let meta = fs::metadata(target.join(path)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.gid()), (mode, 4321), "{path:?}");
        }
    }

    #[test]
    fn survives_an_interrupted_write() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        write(target, &payload(&[("a", "1")]), None, "t1").unwrap();
        fs::create_dir(target.join("..t2")).unwrap();
        symlink("..t2", target.join(NEW_DATA)).unwrap();
        assert!(write(target, &payload(&[("a", "2")]), None, "t3").unwrap());
        assert_eq!(names(target), ["..data", "..t3", "a"]);
    }

    #[test]
    fn paths_may_not_escape() {
        for bad in ["", "/a", "../a", "a/../b", "..x", "a/.."] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
        for good in ["a", ".hidden", "a..b", "a/b/c", "..a/b".trim_start_matches("..")] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &payload(&[("../x", "")]), None, "t").is_err());
    }
}
