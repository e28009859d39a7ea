//! Rotation: a log that is too large is renamed with the time, the shim opens a new one, the oldest go.

use gantry_container::runtime::Runtime;
use k8s_openapi::jiff::Timestamp;
use std::io;
use std::path::{Path, PathBuf};

/// All files of a log, oldest first, the current one (`path`) last. Missing files are left out.
pub(crate) fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        if file.starts_with(&prefix) {
            all.push(directory.join(file));
        }
    }
    // Their time sorts as text.
    all.sort();
    if path.exists() {
        all.push(path.to_path_buf());
    }
    Ok(all)
}

/// Removes a log with its rotated files.
pub(crate) async fn remove(path: &Path) {
    let path = path.to_path_buf();
    let removed = tokio::task::spawn_blocking(move || {
        for file in files(&path)? {
            std::fs::remove_file(file)?;
        }
        Ok::<_, io::Error>(())
    });
    match removed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot remove a log"),
        Err(error) => tracing::error!(%error, "removing a log ended abnormally"),
    }
}

/// Rotates the log at `path` when it is larger than `max_size`, keeping `max_files` in all.
pub(crate) async fn rotate(
    path: &Path,
    container: &str,
    runtime: &dyn Runtime,
    max_size: u64,
    max_files: usize,
    now: Timestamp,
) -> io::Result<bool> {
    match tokio::fs::metadata(path).await {
        Ok(meta) if meta.len() >= max_size => {}
        Ok(_) => return Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    }
    let stamp = now.strftime("%Y%m%d-%H%M%S%.3f").to_string();
    let mut rotated = path.as_os_str().to_owned();
    rotated.push(format!(".{stamp}"));
    tokio::fs::rename(path, &rotated).await?;
    if let Err(error) = runtime.reopen_log(container).await {
        // Nothing may be written to a file nobody looks at.
        tokio::fs::rename(&rotated, path).await?;
        return Err(io::Error::other(error));
    }
    let all = files(path)?;
    for old in &all[..all.len().saturating_sub(max_files)] {
        tokio::fs::remove_file(old).await?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for name in ["0.log", "0.log.20260102-000000.000", "0.log.20260101-000000.000", "1.log"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> =
            files(&path).unwrap().iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["0.log.20260101-000000.000", "0.log.20260102-000000.000", "0.log"]);
    }
}
