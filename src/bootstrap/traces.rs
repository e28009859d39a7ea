//! Which data directory the interfaces, rules and cgroups of an instance belong to, told from outside of it.
//!
//! What Gantry makes in the kernel is named after the instance and outlives a data directory that somebody deletes. So
//! a file per instance below `/run`, which the machine forgets together with the kernel's objects, names the directory.
//! The process that runs the instance holds the file's lock.

use super::data_dir;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where the files are.
pub const DIRECTORY: &str = "/run/gantry";

/// Held as long as the instance runs.
#[derive(Debug)]
pub struct Trace {
    /// Held for its lock.
    _file: File,
}

/// An instance that nobody runs, and that nobody can run or stop any more: its data directory is gone, or became
/// another's.
#[derive(Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its id.
    pub instance: String,
    /// Where its data directory was.
    pub data_dir: PathBuf,
}

/// Says where the data directory of an instance is. To be called before anything is made in the kernel.
///
/// # Errors
/// Names the file that cannot be written.
pub fn announce(directory: &Path, instance: &str, data_dir: &Path) -> Result<Trace> {
    let path = directory.join(instance);
    let write = || -> std::io::Result<File> {
        std::fs::create_dir_all(directory)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        file.write_all(data_dir.as_os_str().as_bytes())?;
        // Waits for nobody but a reader in `orphan`.
        file.lock_shared()?;
        Ok(file)
    };
    let file = write().with_context(|| format!("cannot write and lock {}", path.display()))?;
    Ok(Trace { _file: file })
}

/// The instances whose data directory was deleted while something of theirs may still be there, in the order of their
/// ids.
///
/// # Errors
/// Names the directory that cannot be read.
pub fn orphans(directory: &Path) -> Result<Vec<Orphan>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", directory.display())),
    };
    let mut found: Vec<Orphan> = entries.flatten().filter_map(|entry| orphan(&entry.path())).collect();
    found.sort_by(|a, b| a.instance.cmp(&b.instance));
    Ok(found)
}

/// What a file says, where it tells of an orphan. One that is gone meanwhile does not.
fn orphan(file: &Path) -> Option<Orphan> {
    let instance = file.file_name()?.to_str()?.to_owned();
    let data_dir = PathBuf::from(std::ffi::OsString::from_vec(std::fs::read(file).ok()?));
    let runs = File::open(file).ok()?.try_lock().is_err();
    (data_dir.is_absolute() && !runs && !data_dir::is_of(&data_dir, &instance)).then_some(Orphan { instance, data_dir })
}

/// Forgets an instance of which nothing is left.
///
/// # Errors
/// Names the file that cannot be removed.
pub fn forget(directory: &Path, instance: &str) -> Result<()> {
    let path = directory.join(instance);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_instances_without_a_directory_and_a_process_are_orphans() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert_eq!(orphans(&run).unwrap(), []);
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let first = data_dir::instance(&data).unwrap();
        let trace = announce(&run, &first, &data).unwrap();
        drop(trace);
        assert_eq!(orphans(&run).unwrap(), [], "stopped, but its directory is there");

        let trace = announce(&run, &first, &data).unwrap();
        std::fs::remove_dir_all(&data).unwrap();
        assert_eq!(orphans(&run).unwrap(), [], "its directory is gone, but it runs");
        drop(trace);
        let orphan = Orphan { instance: first.clone(), data_dir: data.clone() };
        assert_eq!(orphans(&run).unwrap(), [orphan]);

        std::fs::create_dir(&data).unwrap();
        let second = data_dir::instance(&data).unwrap();
        let _trace = announce(&run, &second, &data).unwrap();
        let found = orphans(&run).unwrap();
        assert_eq!(found.iter().map(|o| &o.instance).collect::<Vec<_>>(), [&first], "the directory became another's");
        forget(&run, &first).unwrap();
        forget(&run, &first).unwrap();
        assert_eq!(orphans(&run).unwrap(), []);
    }
}
