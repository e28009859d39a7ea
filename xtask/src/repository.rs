//! Where the repository is, and what git says about it.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// The root of the working tree this program was built from.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Output of git in the working tree.
///
/// # Errors
/// Where git is missing or fails.
pub fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
