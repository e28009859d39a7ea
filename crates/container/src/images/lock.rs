//! What keeps processes that share a store apart: file locks, and noticing that the index was replaced.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, IoContext, Result};

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path).ctx("opening", path)
}

/// Waits for a lock others may hold too. It ends with the value, or with the process.
pub(super) fn shared(path: &Path) -> Result<File> {
    let file = open(path)?;
    file.lock_shared().ctx("locking", path)?;
    Ok(file)
}

/// Waits for a lock nobody else may hold.
pub(super) fn exclusive(path: &Path) -> Result<File> {
    let file = open(path)?;
    file.lock().ctx("locking", path)?;
    Ok(file)
}

/// The same without waiting: `None` where somebody holds it.
pub(super) fn try_exclusive(path: &Path) -> Result<Option<File>> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io("locking", path, e)),
    }
}

/// Which file the content in memory is from. The file is replaced, never rewritten; as long as it is open its inode number
/// cannot become another file's.
#[derive(Debug, Default)]
pub(super) struct Loaded(Option<File>);

impl Loaded {
    /// Whether `path` is still the file that was read.
    pub(super) fn is_current(&self, path: &Path) -> Result<bool> {
        let now = match fs::metadata(path) {
            Ok(meta) => Some((meta.dev(), meta.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io("reading", path, e)),
        };
        let read = match &self.0 {
            Some(file) => file.metadata().map(|m| Some((m.dev(), m.ino()))).ctx("reading", path)?,
            None => None,
        };
        Ok(now == read)
    }

    /// Reads the file as JSON, unless there is none.
    pub(super) fn read<T: DeserializeOwned>(&mut self, path: &Path) -> Result<Option<T>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("opening", path, e)),
        };
        let value = serde_json::from_reader(io::BufReader::new(&file))
            .map_err(|e| Error::io("parsing", path, io::Error::other(e)))?;
        self.0 = Some(file);
        Ok(Some(value))
    }

    /// Notes that the content in memory is that of the file there now.
    pub(super) fn reopen(&mut self, path: &Path) -> Result<()> {
        self.0 = Some(File::open(path).ctx("opening", path)?);
        Ok(())
    }
}
