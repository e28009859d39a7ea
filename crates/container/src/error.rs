//! The one error type of this crate. Each variant names the object or path it is about.

use std::path::{Path, PathBuf};

/// What can go wrong in the image store, the runtime or a shim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such image in the local store (and, for a pull, not in the registry either).
    #[error("image {reference:?} not found")]
    ImageNotFound {
        /// The reference or image id as asked for.
        reference: String,
    },
    /// An image reference that cannot be parsed.
    #[error("invalid reference format: {reference:?}: {reason}")]
    InvalidReference {
        /// The text given.
        reference: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// An image (archive, manifest, layer) whose content is not what it must be.
    #[error("invalid image: {entry}: {reason}")]
    InvalidImage {
        /// The archive entry, blob digest or manifest the error is in.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A user or group that the image's `/etc/passwd` or `/etc/group` does not know.
    #[error("unable to find user {user}: no matching entries in passwd file of image {image}")]
    UnknownUser {
        /// The user or group as written in the image or the security context.
        user: String,
        /// The image id.
        image: String,
    },
    /// The file system is full (or over quota); what had been written was removed again.
    #[error("no space left on device: {}", path.display())]
    NoSpace {
        /// The file being written.
        path: PathBuf,
    },
    /// No such sandbox, container or session.
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// `sandbox`, `container` or `exec session`.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The id or name is taken.
    #[error("{kind} {id:?} already exists")]
    AlreadyExists {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The object is not in a state that allows the operation.
    #[error("{kind} {id:?} is {state}, must be {wanted}")]
    State {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// Its id.
        id: String,
        /// The state it is in.
        state: String,
        /// The state the operation needs.
        wanted: &'static str,
    },
    /// A configuration value that cannot be honoured; nothing was created.
    #[error("invalid {field}: {reason}")]
    InvalidConfig {
        /// Which field of the configuration.
        field: String,
        /// Why it is refused.
        reason: String,
    },
    /// A container or an exec could not be set up or its program not be executed.
    ///
    /// `message` is what the step inside the container reported, fit for a container status message.
    #[error("{message}")]
    Start {
        /// The reason as reported by the failing step.
        message: String,
    },
    /// An exec did not finish in time and was killed.
    #[error("command timed out after {seconds}s: {command:?}")]
    Timeout {
        /// The limit in seconds.
        seconds: f64,
        /// The command line.
        command: Vec<String>,
    },
    /// The shim of a sandbox does not answer (any more).
    #[error("shim of sandbox {sandbox}: {reason}")]
    Shim {
        /// The sandbox id.
        sandbox: String,
        /// What happened on its socket.
        reason: String,
    },
    /// A registry refused or could not be reached.
    #[error("registry {registry}: {operation} {reference}: {reason}")]
    Registry {
        /// Host and port.
        registry: String,
        /// `fetching manifest of`, `fetching blob of`, ….
        operation: &'static str,
        /// The image.
        reference: String,
        /// What the registry or the transport said.
        reason: String,
        /// The registry asked for credentials or refused those given.
        unauthorized: bool,
    },
    /// A system call on a path failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`], or [`Error::NoSpace`] when the disk is full.
    pub fn io(operation: &'static str, path: impl AsRef<Path>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let path = path.as_ref().to_path_buf();
        match source.raw_os_error() {
            Some(libc::ENOSPC) | Some(libc::EDQUOT) => Error::NoSpace { path },
            _ => Error::Io { operation, path, source },
        }
    }

    /// An [`Error::InvalidImage`]. Both texts may repeat what the image says, so control characters are written out: no
    /// archive speaks to the terminal of who imports it.
    pub fn invalid_image(entry: impl Into<String>, reason: impl ToString) -> Self {
        Error::InvalidImage { entry: printable(&entry.into()), reason: printable(&reason.to_string()) }
    }

    /// True for [`Error::NotFound`] and [`Error::ImageNotFound`].
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. } | Error::ImageNotFound { .. })
    }
}

/// `text` with its control characters as escapes.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Adds operation and path to an `io::Result`.
pub(crate) trait IoContext<T> {
    /// Turns an OS error into [`Error::Io`] or [`Error::NoSpace`].
    fn ctx(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn ctx(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::io(operation, path, e))
    }
}

impl<T> IoContext<T> for nix::Result<T> {
    fn ctx(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::io(operation, path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn an_image_does_not_speak_to_the_terminal() {
        let error = Error::invalid_image("etc/\u{1b}[2Jé", "not\na name");
        assert!(error.to_string().ends_with("etc/\\u{1b}[2Jé: not\\na name"), "{error}");
    }
}
