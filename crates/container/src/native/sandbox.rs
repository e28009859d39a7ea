//! Making, stopping and removing sandboxes.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;

use super::link::{Link, call};
use super::state::Sandbox;
use super::{Inner, RECORD_VERSION, adopt, container};
use crate::cgroup::Cgroup;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::images::blocking;
use crate::runtime::{SandboxConfig, SandboxStatus};
use crate::shim::protocol::{Reply, Request, SANDBOX_FILE, SandboxRecord};

/// Size of a sandbox' `/dev/shm`.
const SHM_SIZE: &str = "mode=1777,size=65536k";
/// How long a shim may take to kill its containers before it is killed itself.
const SHUTDOWN: Duration = Duration::from_secs(10);

fn check_id(id: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if id.is_empty() || id.len() > 128 || !id.chars().all(good) || !id.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Err(Error::InvalidConfig { field: "sandbox id".into(), reason: format!("{id:?}") });
    }
    Ok(())
}

/// Makes a sandbox; nothing of it is left on failure.
pub(super) async fn run(inner: &Arc<Inner>, config: SandboxConfig) -> Result<SandboxStatus> {
    check_id(&config.id)?;
    let id = config.id.clone();
    let dir = inner.sandboxes_dir().join(&id);
    match fs::create_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::AlreadyExists { kind: "sandbox", id });
        }
        other => other.ctx("creating", &dir)?,
    }
    let result = start(inner, &dir, config.clone()).await;
    if result.is_err() {
        let (dir, base) = (dir.clone(), inner.config.cgroup_base.clone());
        blocking(move || {
            clean(&dir, &config.cgroup_parent, &base);
            Ok(())
        })
        .await?;
    }
    result
}

async fn start(inner: &Arc<Inner>, dir: &Path, config: SandboxConfig) -> Result<SandboxStatus> {
    let id = config.id.clone();
    let shim_cgroup = Cgroup::at(&inner.config.shim_cgroup)?;
    let record = SandboxRecord {
        version: RECORD_VERSION,
        created_at: SystemTime::now(),
        netns_path: (!config.namespaces.host_network).then(|| dir.join("netns")),
        containers_dir: inner.containers_dir(),
        shim_cgroup_dirs: shim_cgroup.directories(),
        stopped: false,
        config,
    };
    let (work_dir, work_record) = (dir.to_path_buf(), record.clone());
    blocking(move || prepare(&work_dir, &work_record, &shim_cgroup)).await?;
    let output = tokio::process::Command::new(&inner.config.shim)
        .arg("shim")
        .arg(dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .await
        .ctx("executing", &inner.config.shim)?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_string();
        return Err(Error::Shim { sandbox: id, reason });
    }
    let sandbox = Arc::new(Sandbox {
        record: Mutex::new(record),
        dir: dir.to_path_buf(),
        shim_pid: AtomicI32::new(0),
        ready: AtomicBool::new(true),
        monitor: Mutex::new(None),
        turn: tokio::sync::Mutex::new(()),
    });
    adopt::follow(inner, &sandbox).await?;
    inner.state.sandboxes.write().insert(id, sandbox.clone());
    Ok(sandbox.status())
}

fn prepare(dir: &Path, record: &SandboxRecord, shim_cgroup: &Cgroup) -> Result<()> {
    let config = &record.config;
    fs::create_dir_all(&config.log_dir).ctx("creating", &config.log_dir)?;
    let parent = Cgroup::at(&config.cgroup_parent)?;
    parent.create()?;
    parent.apply(&config.resources)?;
    shim_cgroup.create()?;
    let hostname = if config.namespaces.host_network {
        nix::unistd::gethostname().ctx("reading", "the hostname")?.to_string_lossy().into_owned()
    } else {
        config.hostname.clone()
    };
    fs::write(dir.join("hostname"), format!("{hostname}\n")).ctx("writing", dir.join("hostname"))?;
    if let Some(text) = &config.resolv_conf {
        fs::write(dir.join("resolv.conf"), text).ctx("writing", dir.join("resolv.conf"))?;
    }
    if !config.namespaces.host_ipc {
        let shm = dir.join("shm");
        fs::create_dir(&shm).ctx("creating", &shm)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM_SIZE)).ctx("mounting", &shm)?;
    }
    files::write_json(&dir.join(SANDBOX_FILE), record)
}

/// Removes what [`prepare`] and the shim made.
fn clean(dir: &Path, cgroup_parent: &str, base: &str) {
    unmount(dir);
    if let Err(error) = fs::remove_dir_all(dir) {
        tracing::warn!(path = %dir.display(), %error, "a sandbox' directory cannot be removed");
    }
    if let Ok(parent) = Cgroup::at(cgroup_parent) {
        if let Err(error) = parent.remove() {
            tracing::warn!(cgroup = cgroup_parent, %error, "a sandbox' cgroup cannot be removed");
        }
        parent.remove_empty_upwards(base);
    }
}

fn unmount(dir: &Path) {
    for name in ["netns", "shm"] {
        let path = dir.join(name);
        // EINVAL: not mounted.
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "unmounting failed"),
        }
    }
}

/// Kills everything in it and ends the shim.
pub(super) async fn stop(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let _turn = sandbox.turn.lock().await;
    let id = sandbox.id();
    let record = {
        let mut record = sandbox.record.lock();
        record.stopped = true;
        record.clone()
    };
    files::write_json(&sandbox.dir.join(SANDBOX_FILE), &record)?;
    let was_ready = sandbox.ready.swap(false, Ordering::AcqRel);
    // An earlier process may have noted the stop and not lived to carry it out.
    let followed = sandbox.monitor.lock().as_ref().is_some_and(|m| !m.is_finished());
    if was_ready || followed {
        let shutdown = async {
            let link = Link::connect(&sandbox.dir, &id)?;
            link.send(&Request::Shutdown, &[]).await?;
            link.expect("").await.map(drop)
        };
        match tokio::time::timeout(SHUTDOWN, shutdown).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(sandbox = id, %error, "the shim ended before it was told to"),
            Err(_) => {
                tracing::warn!(sandbox = id, "the shim does not end; killing it");
                let pid = sandbox.shim_pid.load(Ordering::Acquire);
                if pid > 0 {
                    // SAFETY: plain call. Its socket answered just now, so the id is still the shim's.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
            }
        }
    }
    // The monitor has passed on the last exits when it ends.
    let monitor = sandbox.monitor.lock().take();
    if let Some(monitor) = monitor
        && let Err(error) = monitor.await
    {
        tracing::error!(sandbox = id, %error, "following a shim failed");
    }
    adopt::lost(inner, sandbox).await?;
    let dir = sandbox.dir.clone();
    blocking(move || {
        unmount(&dir);
        Ok(())
    })
    .await
}

/// Removes a sandbox with all its containers.
pub(super) async fn remove(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>) -> Result<()> {
    stop(inner, sandbox).await?;
    let id = sandbox.id();
    for each in inner.state.containers_of(&id) {
        container::remove(inner, &each).await?;
    }
    let _turn = sandbox.turn.lock().await;
    let parent = sandbox.record.lock().config.cgroup_parent.clone();
    let shim_cgroup = inner.config.shim_cgroup.clone();
    let (dir, base) = (sandbox.dir.clone(), inner.config.cgroup_base.clone());
    blocking(move || {
        clean(&dir, &parent, &base);
        if let Ok(shims) = Cgroup::at(&shim_cgroup) {
            // Fails while another shim lives in it, as it should.
            shims.remove_empty_upwards(&base);
        }
        Ok(())
    })
    .await?;
    inner.state.sandboxes.write().remove(&id);
    Ok(())
}

/// Process id of the first process of a sandbox' shared PID namespace.
pub(super) async fn pause_pid(sandbox: &Sandbox) -> Result<i32> {
    match call(&sandbox.dir, &sandbox.id(), "", &Request::Subscribe).await? {
        Reply::Snapshot { pause, .. } => Ok(pause),
        other => Err(Error::Shim { sandbox: sandbox.id(), reason: format!("unexpected reply {other:?}") }),
    }
}
