//! The data directory: everything Gantry keeps is under it, and one process at a time uses it.

use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Layout version of the directory. A directory written by a newer binary is refused, never touched.
const FORMAT: u64 = 1;

/// How often, and how long apart, to look for the pid of a process that has just taken the lock.
const PID_READS: u32 = 50;
const PID_READ_PAUSE: Duration = Duration::from_millis(10);

/// A data directory that this process holds the lock of, until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl DataDir {
    /// Creates the directory if need be, checks its format and takes its lock.
    ///
    /// # Errors
    /// Names the directory and the reason: in use (with the pid of the holder), from a newer version, not writable.
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot create the data directory {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("data directory {}", path.display()))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = read_text(&mut lock).unwrap_or_default();
                bail!(
                    "data directory {} is in use by another gantry process{}",
                    path.display(),
                    if holder.trim().is_empty() { String::new() } else { format!(" (pid {})", holder.trim()) }
                );
            }
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        }
        check_format(&path)?;
        lock.set_len(0)?;
        lock.rewind()?;
        write!(lock, "{}", std::process::id())?;
        lock.sync_all().with_context(|| format!("cannot write {}", lock_path.display()))?;
        Ok(Self { path, _lock: lock })
    }

    /// The pid of the process that holds the directory, if one does. A pid in a file that nobody has locked is stale.
    ///
    /// # Errors
    /// Where the lock file cannot be read, or its holder does not say who it is.
    pub fn holder(path: &Path) -> Result<Option<i32>> {
        let lock_path = path.join("lock");
        let mut lock = match File::open(&lock_path) {
            Ok(f) => f,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", lock_path.display())),
        };
        // A lock that is had is released when the file is closed.
        match lock.try_lock_shared() {
            Ok(()) => return Ok(None),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        }
        // The holder writes its pid right after it has taken the lock.
        for _ in 0..PID_READS {
            lock.rewind()?;
            if let Ok(pid) = read_text(&mut lock)?.trim().parse() {
                return Ok(Some(pid));
            }
            std::thread::sleep(PID_READ_PAUSE);
        }
        bail!("data directory {} is in use by a process that does not say its pid", path.display())
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A short id of this directory, used in the names of interfaces, tables and cgroups so that two clusters on one
    /// machine never touch each other's. Made once and kept.
    ///
    /// # Errors
    /// Where it cannot be read or written.
    pub fn instance(&self) -> Result<String> {
        instance(&self.path)
    }
}

/// The short id of the data directory at `path`; see [`DataDir::instance`].
///
/// # Errors
/// Where it cannot be read or written.
pub fn instance(path: &Path) -> Result<String> {
    let file = path.join("instance");
    match std::fs::read_to_string(&file) {
        Ok(text) if text.trim().len() == 6 => return Ok(text.trim().to_owned()),
        Ok(text) => bail!("{} does not hold a six-letter id but {text:?}", file.display()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
    }
    let id = gantry_api::entropy::Entropy::from_seed_bytes(seed()?).suffix(6);
    write_private(&file, id.as_bytes())?;
    Ok(id)
}

/// Whether the directory at `path` is that of an instance.
#[must_use]
pub fn is_of(path: &Path, instance: &str) -> bool {
    std::fs::read_to_string(path.join("instance")).is_ok_and(|text| text.trim() == instance)
}

/// 256 bits of the operating system's randomness.
///
/// # Errors
/// Where the system has none to give.
pub fn seed() -> Result<[u8; 32]> {
    let mut seed = [0u8; 32];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut seed)).context("cannot read /dev/urandom")?;
    Ok(seed)
}

fn check_format(path: &Path) -> Result<()> {
    let file = path.join("format");
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse::<u64>() {
            Ok(found) if found > FORMAT => bail!(
                "data directory {} was written by a newer version of gantry (format {found}; this one knows up to {FORMAT})",
                path.display()
            ),
            Ok(_) => Ok(()),
            Err(_) => bail!("{} does not hold a number but {text:?}", file.display()),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write_private(&file, format!("{FORMAT}\n").as_bytes()),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Writes a file that only root may read, whole or not at all, durably.
///
/// # Errors
/// Names the file.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = dir.join(format!(
        ".{}.{}",
        path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        std::process::id()
    ));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn read_text(file: &mut File) -> Result<String> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        assert_eq!(DataDir::holder(dir.path()).unwrap(), Some(std::process::id().cast_signed()));
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is in use by another gantry process (pid"), "{error}");
        let id = held.instance().unwrap();
        drop(held);
        assert_eq!(DataDir::holder(dir.path()).unwrap(), None);
        assert_eq!(DataDir::open(dir.path()).unwrap().instance().unwrap(), id);
    }

    #[test]
    fn a_newer_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path()).unwrap());
        std::fs::write(dir.path().join("format"), "7\n").unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("newer version") && error.contains("format 7"), "{error}");
    }
}
