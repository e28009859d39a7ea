//! Kernel settings under `/proc/sys/net` that routing pods needs.
//!
//! `/proc/sys/net` shows the network namespace of the thread that opens a file, so these are plain blocking calls of
//! the calling thread. Each is a write of a few bytes to memory of the kernel.

use std::{fs, io};

use crate::NetworkError;

fn path(key: &str) -> String {
    format!("/proc/sys/{key}")
}

/// Reads a setting.
pub(crate) fn read(key: &str) -> Result<String, NetworkError> {
    let path = path(key);
    fs::read_to_string(&path)
        .map(|text| text.trim().to_owned())
        .map_err(NetworkError::io(format!("read sysctl {path}")))
}

/// Writes a setting unless it already has the value. Answers the value it had, if it was changed.
pub(crate) fn set(key: &str, value: &str) -> Result<Option<String>, NetworkError> {
    let old = read(key)?;
    if old == value {
        return Ok(None);
    }
    let path = path(key);
    fs::write(&path, value).map_err(NetworkError::io(format!("set sysctl {path} to {value}")))?;
    Ok(Some(old))
}

/// Writes a setting that the kernel may not have (a family that is not built in): absence is no error.
pub(crate) fn set_if_present(key: &str, value: &str) -> Result<(), NetworkError> {
    let path = path(key);
    match fs::write(&path, value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::Io { what: format!("set sysctl {path} to {value}"), source: error })
        }
        _ => Ok(()),
    }
}
