//! What keeps a node usable whatever the pods do: log rotation, removal of unused images.

use super::images;
use crate::agent::Agent;
use crate::logs;
use gantry_container::runtime::{ContainerFilter, ContainerState};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often logs are looked at: the kernel does not report a file's size.
const PERIOD: Duration = Duration::from_secs(10);

/// Looks after the node for as long as it is polled.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut images_at = Instant::now();
    loop {
        if Instant::now() >= images_at {
            images_at = Instant::now() + images::PERIOD;
            images::collect(&agent).await;
        }
        tokio::time::sleep(PERIOD).await;
        rotate_logs(&agent).await;
    }
}

async fn rotate_logs(agent: &Agent) {
    let filter = ContainerFilter { sandbox_id: None, state: Some(ContainerState::Running) };
    let running = match agent.runtime.list_containers(filter).await {
        Ok(running) => running,
        Err(error) => return tracing::warn!(%error, "cannot list containers to rotate their logs"),
    };
    for c in running {
        let Some(path) = &c.log_path else { continue };
        let (size, files) = (agent.cfg.log_max_size, agent.cfg.log_max_files);
        let runtime = agent.runtime.as_ref();
        if let Err(error) = logs::rotate(path, &c.id, runtime, size, files, agent.clock.now()).await {
            tracing::warn!(path = %path.display(), %error, "cannot rotate a log");
        }
    }
}
