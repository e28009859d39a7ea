//! Configuration files that are read again when they change.

use crate::access_options::AccessOptions;
use anyhow::{Context, Result};
use gantry_kubelet::directory_changes;
use gantry_server::Server;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Takes over the content of a file.
type Apply = Box<dyn Fn(&str) -> Result<(), String> + Send>;

/// Follows the files that `options` name until `cancel`.
///
/// # Errors
/// Names the directory that cannot be watched.
pub fn start(server: &Arc<Server>, options: &AccessOptions, cancel: &CancellationToken) -> Result<Vec<JoinHandle<()>>> {
    let (authentication, authorization) = (server.authentication.clone(), server.authorization.clone());
    let files: [(&'static str, &Option<PathBuf>, Apply); 2] = [
        ("--authentication-config", &options.authentication_config, Box::new(move |text| authentication.replace(text))),
        ("--authorization-config", &options.authorization_config, Box::new(move |text| authorization.replace(text))),
    ];
    let mut tasks = Vec::new();
    for (flag, file, apply) in files {
        let Some(file) = file else { continue };
        let directory = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let changes = directory_changes(directory).with_context(|| format!("cannot watch {}", directory.display()))?;
        let (file, cancel) = (file.clone(), cancel.clone());
        let mut known = std::fs::read_to_string(&file).ok();
        tasks.push(tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    () = changes.changed() => {}
                }
                let text = match std::fs::read_to_string(&file) {
                    Ok(text) => text,
                    Err(error) => {
                        tracing::error!(flag, file = %file.display(), %error, "cannot read; what was there before holds");
                        continue;
                    }
                };
                if known.as_ref() == Some(&text) {
                    continue;
                }
                match apply(&text) {
                    Ok(()) => tracing::info!(flag, file = %file.display(), "configuration taken over"),
                    Err(why) => {
                        tracing::error!(flag, file = %file.display(), why, "not taken over; what was there before holds");
                    }
                }
                known = Some(text);
            }
        }));
    }
    Ok(tasks)
}
