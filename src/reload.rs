//! Configuration files that are read again when they change.

use crate::access_options::AccessOptions;
use crate::encryption_options::EncryptionOptions;
use anyhow::{Context, Result};
use gantry_kubelet::{DirectoryChanges, directory_changes};
use gantry_server::Server;
use gantry_server::reloads::Subject;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What could not be taken over is tried again so much later: it may need a service that is away. Upstream's period.
const RETRY: Duration = Duration::from_mins(1);

/// A file that is followed.
struct Followed {
    flag: &'static str,
    file: PathBuf,
    subject: Subject,
    server: Arc<Server>,
    /// What holds, or could not be read.
    known: Option<String>,
}

/// Follows the files that the options name until `cancel`.
///
/// # Errors
/// Names the directory that cannot be watched.
pub fn start(
    server: &Arc<Server>,
    access: &AccessOptions,
    encryption: &EncryptionOptions,
    cancel: &CancellationToken,
) -> Result<Vec<JoinHandle<()>>> {
    let encryption = encryption
        .encryption_provider_config
        .clone()
        .filter(|_| encryption.encryption_provider_config_automatic_reload);
    let files = [
        ("--authentication-config", access.authentication_config.clone(), Subject::Authentication),
        ("--authorization-config", access.authorization_config.clone(), Subject::Authorization),
        ("--encryption-provider-config", encryption, Subject::Encryption),
    ];
    let mut tasks = Vec::new();
    for (flag, file, subject) in files {
        let Some(file) = file else { continue };
        let directory = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let changes = directory_changes(directory).with_context(|| format!("cannot watch {}", directory.display()))?;
        let known = std::fs::read_to_string(&file).ok();
        if let Some(text) = &known {
            server.metrics.reloads.begun(subject, text.as_bytes());
        }
        let followed = Followed { flag, file, subject, server: server.clone(), known };
        let cancel = cancel.clone();
        tasks.push(tokio::spawn(async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = followed.run(&changes) => {}
            }
        }));
    }
    Ok(tasks)
}

impl Followed {
    async fn run(mut self, changes: &DirectoryChanges) {
        let mut failed = false;
        loop {
            tokio::select! {
                () = changes.changed() => {}
                () = tokio::time::sleep(RETRY), if failed => {}
            }
            failed = !self.look().await;
        }
    }

    /// Takes over what the file holds, if it is something else than before. Whether that could be done.
    async fn look(&mut self) -> bool {
        let (flag, file) = (self.flag, self.file.display());
        let outcome = match std::fs::read_to_string(&self.file) {
            Ok(text) if self.known.as_ref() == Some(&text) => return true,
            Ok(text) => self.apply(&text).await.map(|()| text),
            Err(error) => Err(format!("cannot read: {error}")),
        };
        let clock = self.server.services.cluster.clock;
        let reloads = &self.server.metrics.reloads;
        match outcome {
            Ok(text) => {
                tracing::info!(flag, %file, "configuration taken over");
                reloads.reloaded(self.subject, text.as_bytes(), true, &clock);
                self.known = Some(text);
                true
            }
            Err(why) => {
                tracing::error!(flag, %file, why, "not taken over; what was there before holds");
                reloads.reloaded(self.subject, &[], false, &clock);
                false
            }
        }
    }

    async fn apply(&self, text: &str) -> Result<(), String> {
        match self.subject {
            Subject::Authentication => self.server.authentication.replace(text),
            Subject::Authorization => self.server.authorization.replace(text),
            Subject::Encryption => self.server.replace_encryption(text).await,
        }
    }
}
