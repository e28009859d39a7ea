//! Making, stopping and removing containers.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::link::call;
use super::spec::{self, Parts};
use super::state::{Container, ContainerRecord, RECORD_FILE, Sandbox};
use super::{Inner, RECORD_VERSION, Volumes, image_ids, read_progress, sandbox};
use crate::cgroup::Cgroup;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::images::{Unpacked, blocking};
use crate::init::mounts::ensure_shared;
use crate::init::spec::{PidNamespace, SPEC_FILE};
use crate::runtime::{ContainerConfig, ContainerState, MountSource, Namespaces, Propagation};
use crate::shim::protocol::{CONTAINER_FILE, Reply, Request, ShimContainer};

fn new_id() -> Result<String> {
    let mut random = [0u8; 32];
    fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut random)).ctx("reading", "/dev/urandom")?;
    Ok(random.iter().map(|b| format!("{b:02x}")).collect())
}

/// Makes a container; nothing of it is left on failure.
pub(super) async fn create(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>, config: ContainerConfig) -> Result<String> {
    let sandbox_id = sandbox.id();
    if !sandbox.ready.load(Ordering::Acquire) {
        return Err(Error::State { kind: "sandbox", id: sandbox_id, state: "NotReady".into(), wanted: "Ready" });
    }
    let _turn = sandbox.turn.lock().await;
    let same = |c: &Arc<Container>| c.record.config.name == config.name && c.record.config.attempt == config.attempt;
    if inner.state.containers_of(&sandbox_id).iter().any(same) {
        let id = format!("{}/{} attempt {}", sandbox_id, config.name, config.attempt);
        return Err(Error::AlreadyExists { kind: "container", id });
    }
    let namespaces = sandbox.record.lock().config.namespaces;
    let pid_namespace = match (&config.joins, namespaces) {
        (_, Namespaces { host_pid: true, .. }) => PidNamespace::Host,
        (_, Namespaces { shared_pid: true, .. }) => PidNamespace::Of(sandbox::pause_pid(sandbox).await?),
        (Some(target), _) => PidNamespace::Of(running_pid(inner, &sandbox_id, target)?),
        (None, _) => PidNamespace::Own,
    };
    let id = new_id()?;
    let dir = inner.containers_dir().join(&id);
    let mut images = Images { inner: inner.clone(), ids: Vec::new(), keep: false };
    let work = Work {
        inner: inner.clone(),
        sandbox: sandbox.clone(),
        config,
        id: id.clone(),
        dir: dir.clone(),
        pid_namespace,
    };
    let prepared = blocking(move || {
        let result = work.prepare(&mut images);
        if result.is_err() {
            let cgroup = format!("{}/{}", work.sandbox.record.lock().config.cgroup_parent, work.id);
            clean(&work.dir, &cgroup);
        }
        result.map(|record| (record, images))
    })
    .await;
    let (record, mut images) = prepared?;
    let request = Request::Create { container: id.clone() };
    match call(&sandbox.dir, &sandbox_id, &id, &request).await {
        Ok(Reply::Created { .. }) => {}
        other => {
            let (dir, cgroup) = (dir.clone(), record.cgroup.clone());
            let (shared, inner) = (record.shared_mounts.clone(), inner.clone());
            blocking(move || {
                unshare(&inner, &shared);
                clean(&dir, &cgroup);
                Ok(())
            })
            .await?;
            return Err(match other {
                Err(e) => e,
                Ok(reply) => Error::Shim { sandbox: sandbox_id, reason: format!("unexpected reply {reply:?}") },
            });
        }
    }
    images.keep = true;
    let progress = read_progress(&dir);
    inner.state.containers.write().insert(id.clone(), Container::new(record, dir, progress));
    Ok(id)
}

/// Images counted as used, released unless the container came to be.
struct Images {
    inner: Arc<Inner>,
    ids: Vec<String>,
    keep: bool,
}

impl Images {
    fn retain(&mut self, reference: &str) -> Result<Unpacked> {
        let image = self.inner.images.retain(reference)?;
        self.ids.push(image.id.clone());
        Ok(image)
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if !self.keep {
            for id in &self.ids {
                self.inner.images.release(id);
            }
        }
    }
}

struct Work {
    inner: Arc<Inner>,
    sandbox: Arc<Sandbox>,
    config: ContainerConfig,
    id: String,
    dir: PathBuf,
    pid_namespace: PidNamespace,
}

/// Process id of a container that runs in the sandbox.
fn running_pid(inner: &Inner, sandbox: &str, id: &str) -> Result<i32> {
    let target = inner.state.containers_of(sandbox).into_iter().find(|c| c.record.id == id);
    let target = target.ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })?;
    match target.status() {
        status if status.state == ContainerState::Running && status.pid > 0 => Ok(status.pid),
        status => {
            let state = format!("{:?}", status.state);
            Err(Error::State { kind: "container", id: id.to_owned(), state, wanted: "Running" })
        }
    }
}

impl Work {
    /// Everything up to the process: image, user, directories, cgroup, files.
    fn prepare(&self, images: &mut Images) -> Result<ContainerRecord> {
        let config = &self.config;
        // Until the record is written, which tells of the use.
        let _use = self.inner.images.use_guard()?;
        let image = images.retain(&config.image)?;
        let mut volumes = Volumes::new();
        for mount in &config.mounts {
            if let MountSource::Image { reference, .. } = &mount.source
                && !volumes.contains_key(reference)
            {
                volumes.insert(reference.clone(), images.retain(reference)?);
            }
        }
        let user = spec::user_of(config, &image)?;
        let stop_signal = match (&config.stop_signal, image.config.stop_signal.as_str()) {
            (Some(signal), _) => spec::signal_number(signal)?,
            (None, "") => libc::SIGTERM,
            (None, signal) => spec::signal_number(signal)?,
        };
        let sandbox = self.sandbox.record.lock().config.clone();
        let cgroup = Cgroup::at(&sandbox.cgroup_parent)?.child(&self.id)?;
        fs::create_dir(&self.dir).ctx("creating", &self.dir)?;
        directories(&self.dir, &image)?;
        let hostname = fs::read_to_string(self.sandbox.dir.join("hostname")).unwrap_or_default();
        let init = spec::build(&Parts {
            config,
            image: &image,
            volumes: &volumes,
            user: &user,
            cgroup: &cgroup,
            pid_namespace: self.pid_namespace,
            hostname: hostname.trim(),
            sandbox_dir: &self.sandbox.dir,
            dir: &self.dir,
            shm: if sandbox.namespaces.host_ipc { "/dev/shm".into() } else { self.sandbox.dir.join("shm") },
            has_resolv_conf: sandbox.resolv_conf.is_some(),
        })?;
        cgroup.create()?;
        cgroup.apply(&config.resources)?;
        let rules = spec::device_rules(config)?;
        cgroup.allow_devices_v1(rules.as_deref())?;
        crate::cgroup::devices::attach_v2(&cgroup, rules.as_deref())?;
        let mut shared_mounts = Vec::new();
        for mount in &config.mounts {
            if let (MountSource::Bind(path), true) = (&mount.source, mount.propagation != Propagation::Private) {
                shared_mounts.extend(share(&self.inner, path)?);
            }
        }
        let record = ContainerRecord {
            version: RECORD_VERSION,
            id: self.id.clone(),
            sandbox_id: sandbox.id.clone(),
            config: config.clone(),
            image_id: image.id.clone(),
            volume_image_ids: volumes.values().map(|v| v.id.clone()).collect(),
            created_at: SystemTime::now(),
            uid: user.uid,
            gid: user.gid,
            groups: user.additional_gids.clone(),
            stop_signal,
            cgroup: cgroup.path().to_string(),
            shared_mounts,
        };
        let shim = ShimContainer {
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            log_path: config.log_path.clone(),
            cgroup: cgroup.path().to_string(),
            // The kernel ends what is left only with the first process of a namespace.
            kill_rest: !matches!(self.pid_namespace, PidNamespace::Own),
        };
        // Only the record must survive a power cut, so that what is left can be cleaned up by it.
        let written = files::write_json_volatile(&self.dir.join(SPEC_FILE), &init)
            .and_then(|()| files::write_json_volatile(&self.dir.join(CONTAINER_FILE), &shim))
            .and_then(|()| files::write_json(&self.dir.join(RECORD_FILE), &record));
        if written.is_err() {
            unshare(&self.inner, &record.shared_mounts);
        }
        written.map(|()| record)
    }
}

/// Overlay directories. The root takes the upper directory's attributes, so that must look like the image's root.
fn directories(dir: &Path, image: &Unpacked) -> Result<()> {
    for name in ["upper", "work", "rootfs"] {
        fs::create_dir(dir.join(name)).ctx("creating", dir.join(name))?;
    }
    let upper = dir.join("upper");
    let top = image.layers.first().map(|name| image.layers_dir.join(name));
    let (mode, uid, gid) = match top {
        Some(layer) => {
            let meta = fs::metadata(&layer).ctx("reading", &layer)?;
            (meta.mode() & 0o7777, meta.uid(), meta.gid())
        }
        None => (0o755, 0, 0),
    };
    fs::set_permissions(&upper, fs::Permissions::from_mode(mode)).ctx("changing mode of", &upper)?;
    chown(&upper, Some(uid), Some(gid)).ctx("changing owner of", &upper)
}

/// Removes a container's directory and cgroup.
fn clean(dir: &Path, cgroup: &str) {
    if let Ok(cgroup) = Cgroup::at(cgroup) {
        cgroup.kill();
        if let Err(error) = cgroup.remove() {
            tracing::warn!(cgroup = cgroup.path(), %error, "a container's cgroup cannot be removed");
        }
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %dir.display(), %error, "a container's directory cannot be removed");
        }
        _ => {}
    }
}

/// Makes `path` shared if it is not. The result is the path to give back to [`unshare`], if we mounted it.
fn share(inner: &Inner, path: &Path) -> Result<Option<PathBuf>> {
    // Under the lock, so that nobody unmounts what we find shared.
    let mut shared = inner.state.shared_mounts.lock();
    let made = ensure_shared(path).ctx("sharing mounts below", path)?;
    let real = fs::canonicalize(path).ctx("resolving", path)?;
    if !made && !shared.contains_key(&real) {
        return Ok(None); // shared by somebody else
    }
    *shared.entry(real.clone()).or_default() += 1;
    Ok(Some(real))
}

/// Unmounts what no container needs any more.
fn unshare(inner: &Inner, paths: &[PathBuf]) {
    let mut shared = inner.state.shared_mounts.lock();
    for path in paths {
        match shared.get_mut(path) {
            Some(count) if *count > 1 => {
                *count -= 1;
                continue;
            }
            _ => shared.remove(path),
        };
        match nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "unmounting failed"),
        }
    }
}

/// Ends a container: the stop signal, then SIGKILL after `grace`.
pub(super) async fn stop(inner: &Arc<Inner>, container: &Arc<Container>, grace: Duration) -> Result<()> {
    let id = container.record.id.clone();
    if container.state() == ContainerState::Exited {
        return Ok(());
    }
    let sandbox = inner.sandbox(&container.record.sandbox_id)?;
    let signal = |signal, all| {
        let request = Request::Signal { container: id.clone(), signal, all };
        let (inner, sandbox, id) = (inner.clone(), sandbox.clone(), id.clone());
        async move { inner.call(&sandbox, &id, request).await }
    };
    // A container that was never started has nothing to be graceful with.
    if !grace.is_zero() && container.state() == ContainerState::Running {
        match signal(container.record.stop_signal, false).await {
            Ok(()) => {
                if tokio::time::timeout(grace, container.ended()).await.is_ok() {
                    return Ok(());
                }
            }
            Err(Error::Shim { .. } | Error::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    match signal(libc::SIGKILL, true).await {
        Ok(()) | Err(Error::Shim { .. } | Error::NotFound { .. }) => {}
        Err(e) => return Err(e),
    }
    // The end comes as an event, or by the loss of the shim; only a process stuck in the kernel keeps it away.
    tokio::time::timeout(Duration::from_secs(30), container.ended()).await.map_err(|_| Error::State {
        kind: "container",
        id,
        state: "not ending after SIGKILL".into(),
        wanted: "Exited",
    })
}

/// Removes an ended container.
pub(super) async fn remove(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<()> {
    let record = container.record.clone();
    if let Ok(sandbox) = inner.sandbox(&record.sandbox_id)
        && sandbox.ready.load(Ordering::Acquire)
    {
        let request = Request::Forget { container: record.id.clone() };
        match inner.call(&sandbox, &record.id, request).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => tracing::debug!(container = record.id, %error, "the shim is not there to forget it"),
        }
    }
    // Only who takes it out of the table gives back what it held: two removals may run at once.
    let last = inner.state.containers.write().remove(&record.id).is_some();
    let (dir, cgroup) = (container.dir.clone(), record.cgroup.clone());
    let (work, shared) = (inner.clone(), record.shared_mounts.clone());
    blocking(move || {
        if last {
            unshare(&work, &shared);
        }
        clean(&dir, &cgroup);
        Ok(())
    })
    .await?;
    if last {
        for id in image_ids(&record) {
            inner.images.release(id);
        }
    }
    Ok(())
}
