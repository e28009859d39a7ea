//! From a container's configuration to what its init is told.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::cgroup::Cgroup;
use crate::error::{Error, IoContext, Result};
use crate::image_service::ResolvedUser;
use crate::images::{self, Unpacked};
use crate::init::spec::{
    CgroupView, DeviceNode, InitMount, InitMountSource, InitSpec, PidNamespace, ProcessSpec, RootFs,
};
use crate::init::{capability, seccomp};
use crate::runtime::{ContainerConfig, MountSource, Propagation, Seccomp};

const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Soft and hard limit of open files.
const OPEN_FILES: u64 = 1_048_576;

/// Version 1 rules for devices every container may use.
const DEVICE_RULES: &[&str] = &[
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

fn invalid(field: impl Into<String>, reason: impl ToString) -> Error {
    Error::InvalidConfig { field: field.into(), reason: reason.to_string() }
}

/// What a container is put together from.
pub(super) struct Parts<'a> {
    pub(super) config: &'a ContainerConfig,
    pub(super) image: &'a Unpacked,
    /// Images mounted as volumes, by reference.
    pub(super) volumes: &'a BTreeMap<String, Unpacked>,
    pub(super) user: &'a ResolvedUser,
    pub(super) cgroup: &'a Cgroup,
    pub(super) pid_namespace: PidNamespace,
    pub(super) hostname: &'a str,
    pub(super) sandbox_dir: &'a Path,
    pub(super) dir: &'a Path,
    pub(super) shm: PathBuf,
    pub(super) has_resolv_conf: bool,
}

/// The user a container runs as: the configuration's, the image's, or root.
pub(super) fn user_of(config: &ContainerConfig, image: &Unpacked) -> Result<ResolvedUser> {
    let security = &config.security;
    let mut user = match (security.uid, &security.user_name) {
        (Some(uid), _) => images::user_by_id(image, uid)?,
        (None, Some(name)) => images::resolve_user(image, name)?,
        (None, None) => images::resolve_user(image, &image.config.user)?,
    };
    if let Some(gid) = security.gid {
        user.gid = gid;
    }
    if security.strict_supplementary_groups {
        user.additional_gids.clear();
    }
    user.additional_gids.extend(&security.supplementary_groups);
    user.additional_gids.push(user.gid);
    user.additional_gids.sort_unstable();
    user.additional_gids.dedup();
    Ok(user)
}

/// Number of a signal by name (`SIGTERM`, `TERM`, `SIGRTMIN+3`) or number.
pub(super) fn signal_number(name: &str) -> Result<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(invalid("stop signal", format!("{name:?}"))) };
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(offset) = full.strip_prefix("SIGRTMIN") {
        let offset: i32 = if offset.is_empty() { Ok(0) } else { offset.trim_start_matches('+').parse() }
            .map_err(|_| invalid("stop signal", format!("{name:?}")))?;
        return if (0..=30).contains(&offset) {
            Ok(34 + offset)
        } else {
            Err(invalid("stop signal", format!("{name:?}")))
        };
    }
    full.parse::<nix::sys::signal::Signal>()
        .map(|s| s as i32)
        .map_err(|_| invalid("stop signal", format!("unknown signal {name:?}")))
}

/// Everything container init needs.
pub(super) fn build(parts: &Parts<'_>) -> Result<InitSpec> {
    let config = parts.config;
    let privileged = config.security.privileged;
    let unmasked = privileged || config.security.unmasked_proc;
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(PathBuf::from).collect() };
    Ok(InitSpec {
        cgroup_dirs: parts.cgroup.directories(),
        cgroup_view: if parts.cgroup.is_v2() { CgroupView::V2 } else { CgroupView::V1(parts.cgroup.controllers()) },
        pid_namespace: parts.pid_namespace,
        root: RootFs {
            layers_dir: parts.image.layers_dir.clone(),
            layers: parts.image.layers.clone(),
            upper: parts.dir.join("upper"),
            work: parts.dir.join("work"),
            target: parts.dir.join("rootfs"),
        },
        read_only_root: config.security.read_only_root,
        mounts: mounts(parts)?,
        shm: parts.shm.clone(),
        devices: if privileged { all_devices(config)? } else { devices(config)?.0 },
        writable_sys: privileged,
        masked_paths: paths(MASKED),
        read_only_paths: paths(READ_ONLY),
        process: process(parts)?,
    })
}

fn mounts(parts: &Parts<'_>) -> Result<Vec<InitMount>> {
    let mut list = Vec::new();
    let given = |path: &str| parts.config.mounts.iter().any(|m| m.destination == Path::new(path));
    let mut own = |file: &str, destination: &str| {
        list.push(InitMount {
            source: InitMountSource::Bind(parts.sandbox_dir.join(file)),
            destination: PathBuf::from(destination),
            read_only: parts.config.security.read_only_root,
            recursive_read_only: false,
            propagation: Propagation::Private,
        });
    };
    if !given("/etc/hostname") {
        own("hostname", "/etc/hostname");
    }
    if parts.has_resolv_conf && !given("/etc/resolv.conf") {
        own("resolv.conf", "/etc/resolv.conf");
    }
    for mount in &parts.config.mounts {
        if !mount.destination.is_absolute() {
            return Err(invalid("mount destination", format!("{} is not absolute", mount.destination.display())));
        }
        let source = match &mount.source {
            MountSource::Bind(path) => {
                fs::metadata(path).ctx("mount source", path)?;
                InitMountSource::Bind(path.clone())
            }
            MountSource::Tmpfs { size } => InitMountSource::Tmpfs { size: *size },
            MountSource::Image { reference, sub_path } => {
                let image = parts
                    .volumes
                    .get(reference)
                    .ok_or_else(|| Error::ImageNotFound { reference: reference.clone() })?;
                InitMountSource::Layers {
                    dir: image.layers_dir.clone(),
                    layers: image.layers.clone(),
                    sub_path: sub_path.clone(),
                }
            }
        };
        list.push(InitMount {
            source,
            destination: mount.destination.clone(),
            read_only: mount.read_only,
            recursive_read_only: mount.recursive_read_only,
            propagation: mount.propagation,
        });
    }
    Ok(list)
}

fn process(parts: &Parts<'_>) -> Result<ProcessSpec> {
    let (config, image) = (parts.config, &parts.image.config);
    let args = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => [config.command.clone(), config.args.clone()].concat(),
        (true, false) => [image.entrypoint.clone(), config.args.clone()].concat(),
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    };
    if args.is_empty() {
        return Err(invalid("command", "no command specified"));
    }
    let security = &config.security;
    let available = capability::available();
    let capabilities = if security.privileged {
        available
    } else {
        capability::compute(&security.capabilities_add, &security.capabilities_drop, available)
            .map_err(|name| invalid("capabilities", format!("unknown capability {name:?}")))?
    };
    let filters = match &security.seccomp {
        _ if security.privileged => Vec::new(),
        Seccomp::Unconfined => Vec::new(),
        Seccomp::RuntimeDefault => seccomp::default_profile(capabilities)?,
        Seccomp::Localhost(path) => seccomp::file_profile(path, capabilities)?,
    };
    let cwd = match &config.working_dir {
        Some(dir) if !dir.as_os_str().is_empty() => dir.clone(),
        _ if image.working_dir.is_empty() => PathBuf::from("/"),
        _ => PathBuf::from(&image.working_dir),
    };
    if !cwd.is_absolute() {
        return Err(invalid("working directory", format!("{} is not absolute", cwd.display())));
    }
    Ok(ProcessSpec {
        args,
        env: environment(parts),
        cwd,
        uid: parts.user.uid,
        gid: parts.user.gid,
        groups: parts.user.additional_gids.clone(),
        capabilities,
        no_new_privileges: security.no_new_privileges,
        seccomp: filters,
        oom_score_adj: config.oom_score_adj,
        tty: config.tty,
        open_files: OPEN_FILES,
    })
}

fn environment(parts: &Parts<'_>) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: &str, replace: bool| {
        if !values.contains_key(name) {
            order.push(name.to_string());
        } else if !replace {
            return;
        }
        values.insert(name.to_string(), value.to_string());
    };
    for entry in &parts.image.config.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        set(name, value, true);
    }
    set("HOSTNAME", parts.hostname, true);
    for (name, value) in &parts.config.env {
        set(name, value, true);
    }
    set("PATH", DEFAULT_PATH, false);
    set("HOME", &parts.user.home.to_string_lossy(), false);
    if parts.config.tty {
        set("TERM", "xterm", false);
    }
    order.iter().map(|name| format!("{name}={}", values[name])).collect()
}

fn node(host: &Path, container: PathBuf) -> Result<DeviceNode> {
    let meta = fs::metadata(host).ctx("device", host)?;
    let kind = meta.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Err(invalid("device", format!("{} is no device", host.display())));
    }
    Ok(DeviceNode { path: container, mode: meta.mode(), rdev: meta.rdev(), uid: meta.uid(), gid: meta.gid() })
}

/// Nodes and version 1 rules of the devices asked for.
fn devices(config: &ContainerConfig) -> Result<(Vec<DeviceNode>, Vec<String>)> {
    let mut rules: Vec<String> = DEVICE_RULES.iter().map(|r| r.to_string()).collect();
    let mut nodes = Vec::new();
    for device in &config.devices {
        let mut made = node(&device.host_path, device.container_path.clone())?;
        if let Some(mode) = device.mode {
            made.mode = made.mode & libc::S_IFMT | mode & 0o7777;
        }
        made.uid = device.uid.unwrap_or(made.uid);
        made.gid = device.gid.unwrap_or(made.gid);
        if device.permissions.is_empty() || !device.permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(invalid("device permissions", format!("{:?}", device.permissions)));
        }
        let kind = if made.mode & libc::S_IFMT == libc::S_IFBLK { 'b' } else { 'c' };
        let (major, minor) = (libc::major(made.rdev), libc::minor(made.rdev));
        rules.push(format!("{kind} {major}:{minor} {}", device.permissions));
        nodes.push(made);
    }
    Ok((nodes, rules))
}

/// Rules of the device cgroup; `None` allows all.
pub(super) fn device_rules(config: &ContainerConfig) -> Result<Option<Vec<String>>> {
    if config.security.privileged { Ok(None) } else { devices(config).map(|(_, rules)| Some(rules)) }
}

/// What a privileged container gets: the devices asked for, and of the host's those that lie elsewhere.
fn all_devices(config: &ContainerConfig) -> Result<Vec<DeviceNode>> {
    let mut nodes = devices(config)?.0;
    let taken: Vec<PathBuf> = nodes.iter().map(|n| n.path.clone()).collect();
    nodes.extend(host_devices()?.into_iter().filter(|n| !taken.contains(&n.path)));
    Ok(nodes)
}

/// All devices of the host, for privileged containers, without terminals and what each container has of its own.
fn host_devices() -> Result<Vec<DeviceNode>> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/dev")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).ctx("reading", &dir)?.flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let kind = meta.file_type();
            if kind.is_dir() {
                if !["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts"].iter().any(|n| path.ends_with(n)) {
                    todo.push(path);
                }
            } else if (kind.is_char_device() || kind.is_block_device())
                && path != Path::new("/dev/console")
                && path != Path::new("/dev/ptmx")
            {
                found.push(node(&path, path.clone())?);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (name, number) in
            [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGUSR1", 10), ("SIGRTMIN+3", 37), ("RTMIN", 34)]
        {
            assert_eq!(signal_number(name).unwrap(), number, "{name}");
        }
        for bad in ["", "SIG", "0", "65", "NOPE", "SIGRTMIN+99"] {
            assert!(signal_number(bad).is_err(), "{bad}");
        }
    }
}
