//! Following shims: those just made, those of an earlier process, and those that died.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::link::Link;
use super::state::{Container, ContainerRecord, RECORD_FILE, Sandbox};
use super::{Inner, containers_dir, image_ids, read_progress};
use crate::cgroup::Cgroup;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::images::blocking;
use crate::runtime::{Exit, RuntimeEvent};
use crate::shim::protocol::{Reply, Request, SANDBOX_FILE, SandboxRecord};

/// Reads the state directory and connects to the shims that live.
pub(super) async fn adopt(inner: &Arc<Inner>) -> Result<()> {
    for dir in subdirectories(&inner.containers_dir())? {
        match files::read_json::<ContainerRecord>(&dir.join(RECORD_FILE)) {
            Ok(record) => {
                for id in image_ids(&record) {
                    inner.images.retain_id(id);
                }
                for path in &record.shared_mounts {
                    *inner.state.shared_mounts.lock().entry(path.clone()).or_default() += 1;
                }
                let progress = read_progress(&dir);
                let id = record.id.clone();
                inner.state.containers.write().insert(id, Container::new(record, dir, progress));
            }
            Err(error) => {
                // Interrupted before it was written: no process was made yet.
                tracing::warn!(path = %dir.display(), %error, "removing the rest of an unfinished container");
                fs::remove_dir_all(&dir).ctx("removing", &dir)?;
            }
        }
    }
    for dir in subdirectories(&inner.sandboxes_dir())? {
        let record: SandboxRecord = match files::read_json(&dir.join(SANDBOX_FILE)) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(path = %dir.display(), %error, "removing the rest of an unfinished sandbox");
                for name in ["netns", "shm"] {
                    // Not mounted is fine.
                    let _ = nix::mount::umount2(&dir.join(name), nix::mount::MntFlags::MNT_DETACH);
                }
                fs::remove_dir_all(&dir).ctx("removing", &dir)?;
                continue;
            }
        };
        let stopped = record.stopped;
        let id = record.config.id.clone();
        let sandbox = Arc::new(Sandbox {
            record: Mutex::new(record),
            dir,
            shim_pid: AtomicI32::new(0),
            ready: AtomicBool::new(!stopped),
            monitor: Mutex::new(None),
            turn: tokio::sync::Mutex::new(()),
        });
        inner.state.sandboxes.write().insert(id.clone(), sandbox.clone());
        if let Err(error) = follow(inner, &sandbox).await {
            tracing::info!(sandbox = id, %error, "the shim is gone");
            sandbox.ready.store(false, Ordering::Release);
            lost(inner, &sandbox).await?;
        }
    }
    // Containers whose sandbox is not there any more have nobody to end them.
    let orphans: Vec<Arc<Container>> = {
        let sandboxes = inner.state.sandboxes.read();
        let containers = inner.state.containers.read();
        containers.values().filter(|c| !sandboxes.contains_key(&c.record.sandbox_id)).cloned().collect()
    };
    for container in orphans {
        super::container::remove(inner, &container).await?;
    }
    Ok(())
}

fn subdirectories(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(dir).ctx("reading", dir)?;
    Ok(entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect())
}

/// Ids of the images that containers in a runtime's state directory are made from; none where the directory is missing.
/// For a process beside the one that runs them.
///
/// # Errors
/// Where the directory cannot be read.
pub fn images_in_use(state_dir: &Path) -> Result<HashSet<String>> {
    let dir = containers_dir(state_dir);
    if !dir.exists() {
        return Ok(HashSet::new());
    }
    let mut ids = HashSet::new();
    for dir in subdirectories(&dir)? {
        // One that is just being made or removed has no record.
        if let Ok(record) = files::read_json::<ContainerRecord>(&dir.join(RECORD_FILE)) {
            ids.extend(image_ids(&record).cloned());
        }
    }
    Ok(ids)
}

/// Subscribes to a shim's events and starts the task that passes them on.
pub(super) async fn follow(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let id = sandbox.id();
    let link = Link::connect(&sandbox.dir, &id)?;
    link.send(&Request::Subscribe, &[]).await?;
    let held = match link.expect("").await?.0 {
        Reply::Snapshot { pid, containers, .. } => {
            sandbox.shim_pid.store(pid, Ordering::Release);
            containers
        }
        other => return Err(Error::Shim { sandbox: id, reason: format!("unexpected reply {other:?}") }),
    };
    // What ended before we subscribed is on disk by now.
    for container in inner.state.containers_of(&id) {
        let progress = read_progress(&container.dir);
        match progress.exit {
            Some(exit) => {
                inner.state.ended(&container, exit);
            }
            None if !held.contains(&container.record.id) => {
                // Interrupted between its record and its process.
                end_lost(inner, &container).await?;
            }
            None => {}
        }
    }
    let (inner, followed) = (inner.clone(), sandbox.clone());
    let task = tokio::spawn(async move {
        loop {
            match link.receive().await {
                Ok(Some((reply, _))) => event(&inner, &followed, reply),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(sandbox = followed.id(), %error, "a shim's events cannot be read");
                    break;
                }
            }
        }
        // Nobody asked it to end.
        if followed.ready.swap(false, Ordering::AcqRel) {
            let id = followed.id();
            tracing::warn!(sandbox = id, "the shim died; killing its containers");
            if let Err(error) = lost(&inner, &followed).await {
                tracing::error!(sandbox = id, %error, "containers of a lost shim cannot be ended");
            }
            inner.state.emit(RuntimeEvent::SandboxExited { sandbox_id: id });
        }
    });
    *sandbox.monitor.lock() = Some(task);
    Ok(())
}

fn event(inner: &Inner, sandbox: &Sandbox, reply: Reply) {
    match reply {
        Reply::ContainerExited { container, exit } => {
            if let Ok(container) = inner.container(&container) {
                inner.state.ended(&container, exit);
            }
        }
        Reply::ContainerOom { container } => {
            inner.state.emit(RuntimeEvent::ContainerOom { sandbox_id: sandbox.id(), container_id: container });
        }
        _ => {}
    }
}

/// Ends all containers of a sandbox whose shim is gone.
pub(super) async fn lost(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>) -> Result<()> {
    for container in inner.state.containers_of(&sandbox.id()) {
        if container.progress.borrow().exit.is_none() {
            end_lost(inner, &container).await?;
        }
    }
    Ok(())
}

async fn end_lost(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<()> {
    let cgroup = Cgroup::at(&container.record.cgroup)?;
    let exit = match read_progress(&container.dir).exit {
        // It had ended; only the event was lost.
        Some(exit) => exit,
        None => {
            blocking(move || {
                // The kernel has no event for "empty" on version 1; killed processes are gone within milliseconds.
                for _ in 0..200 {
                    if cgroup.kill() == 0 {
                        break;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                Ok(())
            })
            .await?;
            Exit {
                code: 137,
                signal: libc::SIGKILL,
                oom_killed: false,
                reason: "ContainerStatusUnknown".into(),
                message: "The container could not be located when its shim was lost; it was killed.".into(),
                finished_at: SystemTime::now(),
            }
        }
    };
    let mut progress = container.progress.borrow().clone();
    progress.exit = Some(exit.clone());
    // The next process to open this directory must find the same end.
    if let Err(error) = files::write_json(&container.dir.join(crate::shim::protocol::PROGRESS_FILE), &progress) {
        tracing::warn!(container = container.record.id, %error, "the end of a container cannot be recorded");
    }
    inner.state.ended(container, exit);
    Ok(())
}
