//! Size of the binary without symbols.

use super::budgets::MB;
use super::{Bench, Measurement};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::process::Command;

/// Strips a copy, so that a build with symbols is measured as it would ship.
pub async fn run(bench: &Bench) -> Result<Vec<Measurement>> {
    let length = |path: &std::path::Path| {
        std::fs::metadata(path).map(|m| m.len()).with_context(|| format!("cannot read {}", path.display()))
    };
    let stripped = tempfile::NamedTempFile::new_in(&bench.directory)?;
    let output = Command::new("strip").arg("-o").arg(stripped.path()).arg(&bench.binary).output();
    let output = output.context("cannot run strip (package binutils)")?;
    ensure!(output.status.success(), "strip failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let value = length(stripped.path())? as f64 / MB;
    let detail = json!({ "as_built_bytes": length(&bench.binary)? });
    Ok(vec![Measurement { id: "binary_size", value, detail }])
}
