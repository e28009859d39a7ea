//! Flags of encryption at rest, with kube-apiserver's names.

use crate::bootstrap::DataDir;
use crate::bootstrap::data_dir::write_private;
use anyhow::{Context, Result};
use clap::Args;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_server::encryption::Encryption;
use std::path::PathBuf;

/// File in the data directory with the configuration that is used where none is given.
const GENERATED: &str = "encryption.yaml";

/// How what is stored is encrypted.
#[derive(Args, Clone, Debug)]
pub struct EncryptionOptions {
    /// File with an EncryptionConfiguration; without it Secrets are encrypted with a key kept in the data directory
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Read that file again when it changes
    #[arg(long)]
    pub encryption_provider_config_automatic_reload: bool,
}

impl EncryptionOptions {
    /// Reads the configuration, or the one in the data directory, which is made where there is none.
    ///
    /// # Errors
    /// Names the file, and in it the field.
    pub fn open(&self, data: &DataDir, clock: Clock, entropy: &Entropy) -> Result<Encryption> {
        if self.encryption_provider_config_automatic_reload && self.encryption_provider_config.is_none() {
            anyhow::bail!(
                "--encryption-provider-config-automatic-reload must be set with --encryption-provider-config"
            );
        }
        let file = match &self.encryption_provider_config {
            Some(file) => file.clone(),
            None => {
                let file = data.path().join(GENERATED);
                if !file.exists() {
                    write_private(&file, Encryption::generate(entropy).as_bytes())?;
                }
                file
            }
        };
        let named = |what: &str| format!("{what} encryption provider configuration file {:?}", file.display());
        let text = std::fs::read(&file).with_context(|| named("error reading"))?;
        if text.is_empty() {
            anyhow::bail!("encryption provider configuration file {:?} is empty", file.display());
        }
        let read = Encryption::parse(&text, clock, entropy.clone()).map_err(anyhow::Error::msg);
        let read = read.with_context(|| named("error in"))?;
        Ok(read.reloading(self.encryption_provider_config_automatic_reload))
    }
}
