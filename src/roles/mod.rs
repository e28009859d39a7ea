//! The roles of the binary and how they are put together.

pub mod agent;
pub mod down;
pub mod explain;
mod given_range;
pub mod image;
pub mod join;
pub mod server;
pub mod up;

use anyhow::{Result, bail};

/// Fails unless this process is root.
///
/// # Errors
/// Names what needs it.
pub fn require_root(what: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("{what} needs root (it makes network interfaces, mounts and cgroups); run it with sudo")
}

/// Raises the limit on open files as far as this process may; the API server holds a descriptor per connection.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "cannot raise the limit on open files");
    }
}
