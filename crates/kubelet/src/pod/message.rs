//! Termination messages: what a container wrote before it ended.

use super::names;
use crate::logs;
use gantry_container::runtime::ContainerStatus;
use std::path::Path;
use tokio::io::AsyncReadExt;

/// Bytes of the message file that count.
const MAX_FILE: u64 = 4096;
/// Bytes and lines of the log that stand in for it.
const MAX_LOG: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// The message of a container that ended; empty where it left none.
pub(crate) async fn of(c: &ContainerStatus) -> String {
    let mut text = String::new();
    if let Some(path) = c.annotations.get(names::TERMINATION_FILE) {
        match read(Path::new(path)).await {
            Ok(found) => text = found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => text = format!("Error on reading termination log {path}: {error}"),
        }
    }
    let fallback = c.annotations.get(names::TERMINATION_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    let failed = c.exit.as_ref().is_some_and(|e| e.code != 0);
    if text.is_empty()
        && fallback
        && failed
        && let Some(path) = &c.log_path
    {
        match logs::last_lines(path, MAX_LOG_LINES, MAX_LOG).await {
            Ok(lines) => text = lines,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "cannot read the log of a container that ended")
            }
        }
    }
    text
}

async fn read(path: &Path) -> std::io::Result<String> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
