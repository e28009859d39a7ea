//! Building the binary under test.

use crate::repository;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The two programs a benchmark needs.
pub struct Programs {
    /// The binary under test.
    pub gantry: PathBuf,
    /// This program. Its clients share the machine with the server, so they must not be slower than they have to be.
    pub xtask: PathBuf,
}

/// Builds both as they ship and returns where they are.
///
/// # Errors
/// Where the build fails.
pub fn release() -> Result<Programs> {
    eprintln!("building the release binary and the clients …");
    let mut cargo = Command::new("cargo")
        .current_dir(repository::root())
        .args(["build", "--release", "--package", "gantry", "--package", "xtask", "--bins"])
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let (mut gantry, mut xtask) = (None, None);
    if let Some(output) = cargo.stdout.take() {
        for line in BufReader::new(output).lines() {
            let message: Value = serde_json::from_str(&line?).context("cargo printed something that is not JSON")?;
            let executable = message["executable"].as_str().map(PathBuf::from);
            match message["target"]["name"].as_str() {
                Some("gantry") if executable.is_some() => gantry = executable,
                Some("xtask") if executable.is_some() => xtask = executable,
                _ => {}
            }
        }
    }
    let status = cargo.wait()?;
    if !status.success() {
        bail!("cargo build failed ({status})");
    }
    Ok(Programs {
        gantry: gantry.context("cargo built no binary named gantry")?,
        xtask: xtask.context("cargo built no binary named xtask")?,
    })
}
