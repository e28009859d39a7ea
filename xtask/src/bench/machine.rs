//! What the figures were measured on and of.

use crate::repository;
use serde_json::{Value, json};
use std::path::Path;

/// Facts of the machine, the source and the run.
pub fn facts(binary: &Path, quick: bool) -> Value {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |path: &str, name: &str| {
        let content = text(path);
        let line = content.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let changed = repository::git(&["status", "--porcelain"]).map(|s| !s.is_empty()).ok();
    json!({
        "date": jiff::Timestamp::now().to_string(),
        "commit": repository::git(&["rev-parse", "HEAD"]).map(|s| s.trim().to_owned()).ok(),
        "uncommitted_changes": changed,
        "cores": std::thread::available_parallelism().map(std::num::NonZero::get).ok(),
        "cpu": field("/proc/cpuinfo", "model name"),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": text("/proc/sys/kernel/osrelease").trim(),
        "load_before": text("/proc/loadavg").split(' ').next(),
        "binary": binary.display().to_string(),
        "clients": if cfg!(debug_assertions) { "unoptimized" } else { "optimized" },
        "quick": quick,
    })
}
