//! `gantry down`: stop the pods and remove what Gantry made on this machine, and only that.

use super::agent;
use crate::bootstrap::{DataDir, traces};
use crate::cli::DownOptions;
use anyhow::{Context, Result, bail};
use gantry_container::cgroup::Cgroup;
use gantry_container::runtime::{ContainerFilter, ContainerState, Runtime};
use gantry_network::NodeNetwork;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the main process may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// Grace for containers: long enough to say goodbye, short enough for a person who waits.
const GRACE: Duration = Duration::from_secs(5);

/// Stops the main process, then the pods, then removes interfaces, rules, mounts and cgroups.
///
/// # Errors
/// Names what could not be stopped or removed.
pub async fn run(options: DownOptions) -> Result<()> {
    super::require_root("gantry down")?;
    let path = &options.data.data_dir;
    if !path.exists() {
        // As the path was kept: a directory that is gone has no canonical name.
        let path = std::path::absolute(path).with_context(|| format!("data directory {}", path.display()))?;
        if remove_orphans_of(&path).await? == 0 {
            println!("nothing to stop: {} does not exist", path.display());
        } else {
            println!("removed what was left of {}, which was deleted", path.display());
        }
        return Ok(());
    }
    if let Some(pid) = DataDir::holder(path)? {
        stop_process(path, pid).await?;
    }
    let data = DataDir::open(path)?;
    remove_orphans_of(data.path()).await?;
    let instance = data.instance()?;
    let runtime = agent::open_runtime(data.path(), &instance, &[]).await?;
    let stopped = stop_pods(&runtime).await?;
    gantry_proxy::remove(&instance).await.context("cannot remove the service rules")?;
    gantry_network_policy::remove(&instance).await.context("cannot remove the rules of network policies")?;
    NodeNetwork::teardown_leftovers(data.path()).await.context("cannot remove the pod network")?;
    let cgroup = Cgroup::at(&agent::cgroup(&instance)).context("cannot find the cgroups")?;
    // A pod that was being stopped when the main process ended may have left something the runtime no longer knows.
    if cgroup.kill_tree() > 0 {
        tracing::warn!("killed processes that outlived their pods");
    }
    cgroup.remove().context("cannot remove the cgroups")?;
    unmount_below(data.path())?;
    traces::forget(Path::new(traces::DIRECTORY), &instance)?;
    println!("stopped {stopped} pods");
    if options.purge {
        let path = data.path().to_owned();
        drop(data);
        std::fs::remove_dir_all(&path).with_context(|| format!("cannot delete {}", path.display()))?;
        println!("deleted {}", path.display());
    }
    Ok(())
}

/// Kills and removes what instances left whose data directory was at `path` and was deleted: nothing else can stop it
/// any more. Answers how many there were.
///
/// # Errors
/// Names what could not be removed.
pub async fn remove_orphans_of(path: &Path) -> Result<usize> {
    let traces = Path::new(traces::DIRECTORY);
    let orphans: Vec<_> = traces::orphans(traces)?.into_iter().filter(|o| o.data_dir == path).collect();
    for orphan in &orphans {
        let instance = &orphan.instance;
        let cgroup = Cgroup::at(&agent::cgroup(instance)).context("cannot find the cgroups")?;
        let killed = cgroup.kill_tree();
        tracing::warn!(directory = %path.display(), killed, "removing what is left of a deleted data directory");
        gantry_proxy::remove(instance).await.context("cannot remove the service rules")?;
        gantry_network_policy::remove(instance).await.context("cannot remove the rules of network policies")?;
        NodeNetwork::teardown_instance(instance).await.context("cannot remove the pod network")?;
        cgroup.remove().context("cannot remove the cgroups")?;
        unmount_below(path)?;
        traces::forget(traces, instance)?;
    }
    Ok(orphans.len())
}

async fn stop_process(path: &Path, pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("cannot stop process {pid}"))?;
    let deadline = tokio::time::Instant::now() + STOP_WITHIN;
    // The lock on the directory is what tells that the process has ended; locks cannot be waited for with a time limit.
    while DataDir::holder(path)?.is_some() {
        if tokio::time::Instant::now() > deadline {
            bail!("process {pid} did not stop within {} s", STOP_WITHIN.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn stop_pods(runtime: &dyn Runtime) -> Result<usize> {
    let containers = runtime.list_containers(ContainerFilter::default()).await?;
    let running = containers.iter().filter(|c| c.state == ContainerState::Running);
    futures::future::try_join_all(running.map(|c| runtime.stop_container(&c.id, GRACE)))
        .await
        .context("cannot stop a container")?;
    let sandboxes = runtime.list_sandboxes().await?;
    futures::future::try_join_all(sandboxes.iter().map(|s| async move {
        runtime.stop_sandbox(&s.id).await?;
        runtime.remove_sandbox(&s.id).await
    }))
    .await
    .context("cannot remove a pod")?;
    Ok(sandboxes.len())
}

/// Unmounts volumes and whatever else is still mounted below the data directory, innermost first.
fn unmount_below(path: &Path) -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|p| PathBuf::from(p.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")))
        .filter(|p| p.starts_with(path) && p != path)
        .collect();
    points.sort();
    for point in points.iter().rev() {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}
