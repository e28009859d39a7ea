//! The other side of a remote command: the streams of the process it runs.

use crate::{BoxRead, BoxWrite};
use async_trait::async_trait;
use std::sync::Arc;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A process that runs, or a container that is attached to.
pub struct Process {
    /// Writes to its stdin; shutting it down closes that.
    pub stdin: Option<BoxWrite>,
    /// Its stdout, until its end.
    pub stdout: Option<BoxRead>,
    /// Its stderr, until its end.
    pub stderr: Option<BoxRead>,
    /// Resize and wait.
    pub control: Arc<dyn Control>,
}

/// Out-of-band control of a [`Process`].
#[async_trait]
pub trait Control: Send + Sync {
    /// Sets the terminal's size; without one nothing happens.
    async fn resize(&self, size: TerminalSize);
    /// Waits for its end and gives its exit code, or why that is not known.
    async fn wait(&self) -> Result<i32, String>;
}
