//! Why the node agent could not go on.

use std::path::PathBuf;

/// What stops the node agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine could not be looked at.
    #[error("cannot inspect the machine: {0}")]
    Machine(#[source] std::io::Error),
    /// A file or directory.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The container runtime.
    #[error("container runtime: {0}")]
    Runtime(#[from] gantry_container::Error),
    /// A certificate or TLS setting.
    #[error("{what}: {message}")]
    Tls {
        /// Which certificate or setting.
        what: String,
        /// What is wrong with it.
        message: String,
    },
    /// The server's address is not to be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Address and port.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}
