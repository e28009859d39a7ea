//! What the machine has: processors, memory (as far as the agent's own cgroup allows), disk, and who it is.

use crate::config::KubeletConfig;
use gantry_api::core::pod::resources::Amounts;
use gantry_api::meta::quantity::Amount;
use k8s_openapi::api::core::v1::NodeSystemInfo;
use std::fs;
use std::path::Path;

/// Kubernetes version this agent speaks.
pub(crate) const KUBELET_VERSION: &str = "v1.37.0";

/// The machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub cpu_milli: i64,
    pub memory: i64,
    pub storage: i64,
    pub max_pods: i64,
    pub pids: i64,
    pub info: NodeSystemInfo,
    reserved_cpu: i64,
    reserved_memory: i64,
    reserved_storage: i64,
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// `Key: <n> kB` of `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let number: u64 = line.trim().split(' ').next()?.parse().ok()?;
    Some(number * 1024)
}

/// The smallest memory limit on the way from a cgroup (as `/proc/self/cgroup` lists it) to the root.
fn cgroup_memory_limit() -> Option<i64> {
    let own = read("/proc/self/cgroup");
    let mut least: Option<i64> = None;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let mut at = Some(Path::new(path));
        while let Some(p) = at {
            let limit = read(Path::new(root).join(p.strip_prefix("/").unwrap_or(p)).join(file));
            // v1 says "no limit" by a number near 2^63.
            if let Some(bytes) = limit.parse::<i64>().ok().filter(|b| *b > 0 && *b < i64::MAX / 2) {
                least = Some(least.map_or(bytes, |l| l.min(bytes)));
            }
            at = p.parent();
        }
    }
    least
}

/// Size and fullness of a file system: bytes and inodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileSystem {
    pub capacity: u64,
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// The file system a path is on.
pub(crate) fn file_system(path: &Path) -> std::io::Result<FileSystem> {
    let s = nix::sys::statvfs::statvfs(path)?;
    Ok(FileSystem {
        capacity: s.blocks() * s.fragment_size(),
        available: s.blocks_available() * s.fragment_size(),
        inodes: s.files(),
        inodes_free: s.files_available(),
    })
}

/// Processes and threads on the machine.
pub(crate) fn running_tasks() -> Option<u64> {
    tasks(&read("/proc/loadavg"))
}

fn tasks(loadavg: &str) -> Option<u64> {
    loadavg.split(' ').nth(3)?.split('/').nth(1)?.parse().ok()
}

/// The most of them there can be.
fn most_tasks() -> i64 {
    let limit = |path: &str| read(path).parse::<i64>().ok();
    let limits = [limit("/proc/sys/kernel/pid_max"), limit("/proc/sys/kernel/threads-max")];
    limits.into_iter().flatten().min().unwrap_or(32768)
}

fn os_image() -> String {
    let text = read("/etc/os-release");
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |n| n.trim_matches('"').to_owned())
}

/// The architecture as Kubernetes names it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Machine {
    /// Looks at the machine.
    ///
    /// # Errors
    /// Where `/proc/meminfo` or the data directory's file system cannot be read.
    pub(crate) fn inspect(cfg: &KubeletConfig) -> std::io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let total = meminfo(&text, "MemTotal")
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "/proc/meminfo has no MemTotal"))?;
        let memory = i64::try_from(total).unwrap_or(i64::MAX);
        let memory = cgroup_memory_limit().map_or(memory, |limit| memory.min(limit));
        // Counts the processors this process may use and its cgroup's quota.
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        let storage = i64::try_from(file_system(&cfg.data_dir)?.capacity).unwrap_or(i64::MAX);
        let machine_id = [read("/etc/machine-id"), read("/var/lib/dbus/machine-id")];
        let boot_id = read("/proc/sys/kernel/random/boot_id");
        let uuid = read("/sys/class/dmi/id/product_uuid").to_lowercase();
        let machine_id = machine_id.into_iter().find(|m| !m.is_empty()).unwrap_or_else(|| boot_id.replace('-', ""));
        Ok(Machine {
            cpu_milli: i64::try_from(cpus).unwrap_or(1) * 1000,
            memory,
            storage,
            max_pods: cfg.max_pods.into(),
            pids: most_tasks(),
            info: NodeSystemInfo {
                architecture: architecture().into(),
                boot_id,
                container_runtime_version: format!("gantry://{}", env!("CARGO_PKG_VERSION")),
                kernel_version: read("/proc/sys/kernel/osrelease"),
                kube_proxy_version: String::new(),
                kubelet_version: KUBELET_VERSION.into(),
                system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
                machine_id,
                operating_system: "linux".into(),
                os_image: os_image(),
                ..NodeSystemInfo::default()
            },
            reserved_cpu: cfg.system_reserved_cpu_milli,
            reserved_memory: cfg.system_reserved_memory,
            reserved_storage: storage / 10,
        })
    }

    pub(crate) fn allocatable_cpu_milli(&self) -> i64 {
        (self.cpu_milli - self.reserved_cpu).max(0)
    }

    pub(crate) fn allocatable_memory(&self) -> i64 {
        (self.memory - self.reserved_memory).max(0)
    }

    pub(crate) fn allocatable_storage(&self) -> i64 {
        (self.storage - self.reserved_storage).max(0)
    }

    fn amounts(&self, cpu: i64, memory: i64, storage: i64) -> Amounts {
        let plain = |n: i64| Amount::from_milli(n.saturating_mul(1000));
        Amounts::from([
            ("cpu".into(), Amount::from_milli(cpu)),
            ("memory".into(), Amount::from_bytes(memory)),
            ("ephemeral-storage".into(), Amount::from_bytes(storage)),
            ("pods".into(), plain(self.max_pods)),
            ("hugepages-1Gi".into(), Amount::ZERO),
            ("hugepages-2Mi".into(), Amount::ZERO),
        ])
    }

    /// All there is.
    pub(crate) fn capacity(&self) -> Amounts {
        self.amounts(self.cpu_milli, self.memory, self.storage)
    }

    /// What pods may have.
    pub(crate) fn allocatable(&self) -> Amounts {
        self.amounts(self.allocatable_cpu_milli(), self.allocatable_memory(), self.allocatable_storage())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_lines() {
        let text = "MemTotal:       24000000 kB\nMemFree:         1 kB\nMemAvailable:   12 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24_000_000 * 1024));
        assert_eq!(meminfo(text, "MemAvailable"), Some(12 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
    }

    #[test]
    fn loadavg_counts_tasks() {
        assert_eq!(tasks("0.20 0.18 0.12 1/80 11206"), Some(80));
        assert!(running_tasks().unwrap() > 1);
    }

    #[test]
    fn this_machine_is_plausible() {
        let mut cfg = KubeletConfig::new("n", Vec::new(), "/".into());
        cfg.system_reserved_cpu_milli = 100;
        let m = Machine::inspect(&cfg).unwrap();
        assert!(m.memory > 64 << 20 && m.cpu_milli >= 1000 && m.storage > 0);
        assert_eq!(m.allocatable_cpu_milli(), m.cpu_milli - 100);
        assert_eq!(m.capacity()["pods"].value(), 110);
    }
}
