//! The flag that says how pods are placed.

use anyhow::{Context, Result, anyhow};
use clap::Args;
use gantry_scheduler::config::Configuration;
use std::path::PathBuf;

/// How pods are placed.
#[derive(Args, Clone, Debug, Default)]
pub struct SchedulerOptions {
    /// File with a KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1): profiles, plugins, weights, arguments
    #[arg(long, value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
}

impl SchedulerOptions {
    /// Reads the file, where one is named.
    ///
    /// # Errors
    /// Where it cannot be read, or asks for what there is not.
    pub fn configuration(&self) -> Result<Configuration> {
        let Some(path) = &self.scheduler_config else { return Ok(Configuration::default()) };
        let named = || format!("--scheduler-config {}", path.display());
        let text = std::fs::read_to_string(path).with_context(named)?;
        let document = serde_saphyr::from_str(&text).with_context(named)?;
        Configuration::from_value(document).map_err(|e| anyhow!(e)).with_context(named)
    }
}
