//! Flags of admission, with kube-apiserver's names.

use crate::access_options::endpoint;
use anyhow::{Context, Result};
use clap::Args;
use gantry_server::admission::{AdmissionConfig, Files};
use std::path::{Path, PathBuf};

/// Which admission plugins run and how.
#[derive(Args, Clone, Debug)]
pub struct AdmissionOptions {
    /// Admission plugins to turn on besides those that are on by default, separated by commas
    #[arg(long, value_name = "PLUGINS", value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins to turn off, separated by commas
    #[arg(long, value_name = "PLUGINS", value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    /// File with an AdmissionConfiguration: settings of single plugins
    #[arg(long, value_name = "FILE")]
    pub admission_control_config_file: Option<PathBuf>,
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

impl AdmissionOptions {
    /// The settings that flags and file make together.
    ///
    /// # Errors
    /// Names the flag or the file, the plugin and the field.
    pub fn config(&self) -> Result<AdmissionConfig> {
        let mut config = AdmissionConfig {
            enable: self.enable_admission_plugins.clone(),
            disable: self.disable_admission_plugins.clone(),
            ..AdmissionConfig::default()
        };
        config.check().map_err(anyhow::Error::msg)?;
        if let Some(file) = &self.admission_control_config_file {
            // What the file names lies beside it.
            let beside = |path: &str| {
                let path = file.parent().unwrap_or(Path::new(".")).join(path);
                read(&path).map_err(|e| format!("{e:#}"))
            };
            let webhook = |path: &str| endpoint(Path::new(path)).map_err(|e| format!("{e:#}"));
            let files = Files { text: &beside, endpoint: &webhook };
            let what = format!("--admission-control-config-file {}", file.display());
            config.configure(&read(file)?, &files).map_err(anyhow::Error::msg).context(what)?;
        }
        config.check_whole().map_err(anyhow::Error::msg)?;
        Ok(config)
    }
}
