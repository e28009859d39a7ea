//! Control groups, version 1 (also hybrid) and version 2: make, limit, read, kill, remove.
//!
//! A cgroup is named by one path below the hierarchy root (`/gantry/pods/x`), whatever the version. With version 1 it
//! exists once in every mounted controller hierarchy.

pub(crate) mod devices;
mod stats;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Error, IoContext, Result};
use crate::runtime::Resources;

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 1: controller name (`memory`, `cpu`, …, `systemd`) and mount point.
    V1(Vec<(String, PathBuf)>),
    /// Version 2: the one mount point.
    V2(PathBuf),
}

impl Hierarchy {
    /// The hierarchy of this machine, read once from `/proc/self/mountinfo`.
    pub fn of_host() -> Result<&'static Hierarchy> {
        static HOST: OnceLock<Hierarchy> = OnceLock::new();
        if let Some(hierarchy) = HOST.get() {
            return Ok(hierarchy);
        }
        let text = fs::read_to_string("/proc/self/mountinfo").ctx("reading", "/proc/self/mountinfo")?;
        let found = Self::parse(&text).ok_or_else(|| Error::Io {
            operation: "finding cgroup controllers mounted under",
            path: PathBuf::from("/sys/fs/cgroup"),
            source: io::ErrorKind::NotFound.into(),
        })?;
        Ok(HOST.get_or_init(|| found))
    }

    fn parse(mountinfo: &str) -> Option<Hierarchy> {
        const CONTROLLERS: &[&str] = &[
            "cpu",
            "cpuacct",
            "cpuset",
            "memory",
            "pids",
            "devices",
            "freezer",
            "blkio",
            "hugetlb",
            "net_cls",
            "net_prio",
            "perf_event",
            "rdma",
            "misc",
        ];
        let mut v1: Vec<(String, PathBuf)> = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((front, back)) = line.split_once(" - ") else {
                continue;
            };
            let mut front = front.split(' ');
            let (root, point) = (front.nth(3), front.next());
            let (Some(root), Some(point)) = (root, point) else {
                continue;
            };
            // A bind mount of some inner cgroup is not a hierarchy root.
            if root != "/" && !root.starts_with("/..") {
                continue;
            }
            let mut back = back.split(' ');
            let (kind, options) = (back.next().unwrap_or(""), back.nth(1).unwrap_or(""));
            match kind {
                "cgroup2" => {
                    v2.get_or_insert_with(|| PathBuf::from(point));
                }
                "cgroup" => {
                    for option in options.split(',') {
                        let name = option.strip_prefix("name=").unwrap_or(option);
                        if (CONTROLLERS.contains(&option) || option.starts_with("name="))
                            && !v1.iter().any(|(have, _)| have == name)
                        {
                            v1.push((name.to_string(), PathBuf::from(point)));
                        }
                    }
                }
                _ => {}
            }
        }
        // Hybrid machines have an all but empty version 2 tree beside the version 1 controllers.
        if v1.iter().any(|(name, _)| name == "memory" || name == "cpu") {
            return Some(Hierarchy::V1(v1));
        }
        v2.map(Hierarchy::V2)
    }
}

/// One cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchy: &'static Hierarchy,
    path: String,
}

impl Cgroup {
    /// The cgroup at `path` below the root; it need not exist.
    pub fn at(path: &str) -> Result<Cgroup> {
        let trimmed = path.trim_matches('/');
        if trimmed.is_empty() || trimmed.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(Error::InvalidConfig {
                field: "cgroup path".into(),
                reason: format!("{path:?} is not a normalized path below the root"),
            });
        }
        Ok(Cgroup { hierarchy: Hierarchy::of_host()?, path: format!("/{trimmed}") })
    }

    /// Its path below the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A child.
    pub fn child(&self, name: &str) -> Result<Cgroup> {
        Cgroup::at(&format!("{}/{name}", self.path))
    }

    /// True on version 2.
    pub fn is_v2(&self) -> bool {
        matches!(self.hierarchy, Hierarchy::V2(_))
    }

    /// Its directories: one per mount point (version 1) or one.
    pub fn directories(&self) -> Vec<PathBuf> {
        let below = &self.path[1..];
        match self.hierarchy {
            Hierarchy::V2(root) => vec![root.join(below)],
            Hierarchy::V1(mounts) => {
                let mut list: Vec<PathBuf> = mounts.iter().map(|(_, point)| point.join(below)).collect();
                list.sort();
                list.dedup();
                list
            }
        }
    }

    /// Version 1: (controller, directory) of each controller. Version 2: none.
    pub fn controllers(&self) -> Vec<(String, PathBuf)> {
        match self.hierarchy {
            Hierarchy::V2(_) => Vec::new(),
            Hierarchy::V1(mounts) => {
                mounts.iter().map(|(name, point)| (name.clone(), point.join(&self.path[1..]))).collect()
            }
        }
    }

    /// Directory of a version 1 controller, or the directory on version 2.
    pub fn directory(&self, controller: &str) -> Option<PathBuf> {
        match self.hierarchy {
            Hierarchy::V2(root) => Some(root.join(&self.path[1..])),
            Hierarchy::V1(mounts) => {
                mounts.iter().find(|(name, _)| name == controller).map(|(_, point)| point.join(&self.path[1..]))
            }
        }
    }

    /// True when it exists in at least one hierarchy.
    pub fn exists(&self) -> bool {
        self.directories().iter().any(|dir| dir.is_dir())
    }

    /// Makes it and its missing ancestors. Nothing is an error when it exists.
    pub fn create(&self) -> Result<()> {
        match self.hierarchy {
            Hierarchy::V2(root) => {
                let mut dir = root.clone();
                let parts: Vec<&str> = self.path[1..].split('/').collect();
                for part in parts {
                    enable_controllers(&dir)?;
                    dir.push(part);
                    make(&dir)?;
                }
            }
            Hierarchy::V1(mounts) => {
                for (name, point) in mounts {
                    let mut dir = point.clone();
                    for part in self.path[1..].split('/') {
                        let parent = dir.clone();
                        dir.push(part);
                        make(&dir)?;
                        if name == "cpuset" {
                            inherit_cpuset(&parent, &dir)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets limits; fields that are `None` stay as they are.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        match self.hierarchy {
            Hierarchy::V1(_) => self.apply_v1(resources),
            Hierarchy::V2(_) => self.apply_v2(resources),
        }
    }

    fn apply_v1(&self, r: &Resources) -> Result<()> {
        if let Some(cpu) = self.directory("cpu") {
            if let Some(shares) = r.cpu_shares {
                write(&cpu.join("cpu.shares"), &shares.clamp(2, 262_144).to_string())?;
            }
            // The kernel checks quota/period against the parent at each write: when the ratio would pass through a
            // refused value, lifting the quota first always works.
            if r.cpu_quota.is_some() && r.cpu_period.is_some() {
                write(&cpu.join("cpu.cfs_quota_us"), "-1")?;
            }
            if let Some(period) = r.cpu_period {
                write(&cpu.join("cpu.cfs_period_us"), &period.to_string())?;
            }
            if let Some(quota) = r.cpu_quota {
                write(&cpu.join("cpu.cfs_quota_us"), &if quota <= 0 { -1 } else { quota.max(1000) }.to_string())?;
            }
        }
        if let (Some(memory), Some(limit)) = (self.directory("memory"), r.memory_limit) {
            let limit = if limit <= 0 { "-1".to_string() } else { limit.to_string() };
            let (plain, swap) = (memory.join("memory.limit_in_bytes"), memory.join("memory.memsw.limit_in_bytes"));
            // memsw must never be below the plain limit, so the order depends on the direction.
            if swap.exists() {
                if write(&plain, &limit).is_err() {
                    write(&swap, &limit)?;
                    write(&plain, &limit)?;
                } else {
                    write(&swap, &limit)?;
                }
            } else {
                write(&plain, &limit)?;
            }
        }
        if let (Some(pids), Some(limit)) = (self.directory("pids"), r.pids_limit) {
            write(&pids.join("pids.max"), &max_or(limit))?;
        }
        if let (Some(cpuset), Some(cpus)) = (self.directory("cpuset"), &r.cpuset_cpus) {
            write(&cpuset.join("cpuset.cpus"), cpus)?;
        }
        if let Some(hugetlb) = self.directory("hugetlb") {
            for (size, limit) in &r.hugepages {
                write(&hugetlb.join(format!("hugetlb.{size}.limit_in_bytes")), &limit.to_string())?;
            }
        }
        Ok(())
    }

    fn apply_v2(&self, r: &Resources) -> Result<()> {
        let Hierarchy::V2(root) = self.hierarchy else {
            return Ok(());
        };
        let dir = root.join(&self.path[1..]);
        if let Some(shares) = r.cpu_shares {
            write(&dir.join("cpu.weight"), &weight_of_shares(shares).to_string())?;
        }
        if r.cpu_quota.is_some() || r.cpu_period.is_some() {
            let period = r.cpu_period.unwrap_or(100_000);
            let quota = match r.cpu_quota {
                Some(quota) if quota > 0 => quota.max(1000).to_string(),
                _ => "max".to_string(),
            };
            write(&dir.join("cpu.max"), &format!("{quota} {period}"))?;
        }
        if let Some(limit) = r.memory_limit {
            write(&dir.join("memory.max"), &max_or(limit))?;
            let swap = dir.join("memory.swap.max");
            if swap.exists() {
                write(&swap, if limit > 0 { "0" } else { "max" })?;
            }
        }
        if let Some(limit) = r.pids_limit {
            write(&dir.join("pids.max"), &max_or(limit))?;
        }
        if let Some(cpus) = &r.cpuset_cpus {
            write(&dir.join("cpuset.cpus"), cpus)?;
        }
        for (size, limit) in &r.hugepages {
            let file = dir.join(format!("hugetlb.{size}.max"));
            if file.exists() {
                write(&file, &limit.to_string())?;
            }
        }
        Ok(())
    }

    /// Version 1: denies all devices but the given rules (`c 1:3 rwm`); `None` allows all. No effect on version 2, where
    /// the rule is a program (see `devices`).
    pub fn allow_devices_v1(&self, rules: Option<&[String]>) -> Result<()> {
        let Hierarchy::V1(_) = self.hierarchy else {
            return Ok(());
        };
        let (Some(dir), Some(rules)) = (self.directory("devices"), rules) else {
            return Ok(());
        };
        write(&dir.join("devices.deny"), "a")?;
        for rule in rules {
            write(&dir.join("devices.allow"), rule)?;
        }
        Ok(())
    }

    /// Process ids in it (not in its children).
    pub fn processes(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .directories()
            .iter()
            .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<i32>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends SIGKILL to every process in it. Returns how many there were.
    pub fn kill(&self) -> usize {
        if let Hierarchy::V2(root) = self.hierarchy {
            let file = root.join(&self.path[1..]).join("cgroup.kill");
            if fs::write(file, "1").is_ok() {
                return self.processes().len();
            }
        }
        let pids = self.processes();
        for pid in &pids {
            // SAFETY: kill has no memory effects. The ids come from our own cgroup just now; a process that ended in
            // between makes this ESRCH.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        pids.len()
    }

    /// Sends SIGKILL to every process in it and in its children. Returns how many there were.
    pub fn kill_tree(&self) -> usize {
        let mut directories = self.directories();
        let mut pids = std::collections::BTreeSet::new();
        while let Some(dir) = directories.pop() {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
            let children = fs::read_dir(&dir).into_iter().flatten().flatten();
            directories.extend(children.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
        for pid in &pids {
            // SAFETY: kill has no memory effects. The ids come from our own cgroups just now; a process that ended in
            // between makes this ESRCH.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        pids.len()
    }

    /// Removes its directories, and those of children. An absent one is fine; a busy one is reported.
    pub fn remove(&self) -> Result<()> {
        for dir in self.directories() {
            remove_tree(&dir).ctx("removing cgroup", &dir)?;
        }
        Ok(())
    }

    /// Removes it and its ancestors down to (and including) `base` as far as they are empty.
    pub fn remove_empty_upwards(&self, base: &str) {
        let base = format!("/{}", base.trim_matches('/'));
        let mut path = self.path.clone();
        while path.starts_with(&base) && path.len() > 1 {
            let Ok(cgroup) = Cgroup::at(&path) else {
                return;
            };
            // Whether it is still used is for the kernel to say: rmdir refuses a non-empty one.
            let mut gone = true;
            for dir in cgroup.directories() {
                match fs::remove_dir(&dir) {
                    Ok(()) => {}
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(_) => gone = false,
                }
            }
            if !gone || path == base {
                return;
            }
            path.truncate(path.rfind('/').unwrap_or(0));
        }
    }

    /// Count of processes the kernel killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let Some(dir) = self.directory("memory") else {
            return 0;
        };
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        oom_kill_counter(&dir.join(file))
    }
}

/// The `oom_kill` line of `memory.oom_control` or `memory.events`.
pub fn oom_kill_counter(file: &Path) -> u64 {
    fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|n| n.trim().parse().ok())
        .unwrap_or(0)
}

/// cgroup v1 shares (2–262144, default 1024) as a v2 weight (1–10000, default 100), by the container tools' formula.
pub fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144) as f64;
    let log = shares.log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

fn max_or(limit: i64) -> String {
    if limit <= 0 { "max".to_string() } else { limit.to_string() }
}

fn make(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::io("creating cgroup", dir, e)),
    }
}

fn write(file: &Path, value: &str) -> Result<()> {
    let mut f = fs::OpenOptions::new().write(true).open(file).ctx("opening", file)?;
    f.write_all(value.as_bytes()).map_err(|e| Error::Io {
        operation: "writing",
        path: file.to_path_buf(),
        source: io::Error::new(e.kind(), format!("{value:?}: {e}")),
    })
}

fn enable_controllers(dir: &Path) -> Result<()> {
    let available =
        fs::read_to_string(dir.join("cgroup.controllers")).ctx("reading", dir.join("cgroup.controllers"))?;
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    for name in available.split_whitespace() {
        if !enabled.split_whitespace().any(|have| have == name) {
            // One by one: a controller that cannot be delegated (a threaded sibling, real-time cpu) must not keep the
            // others away.
            if let Err(error) = write(&dir.join("cgroup.subtree_control"), &format!("+{name}"))
                && matches!(name, "memory" | "cpu" | "pids")
            {
                return Err(error);
            }
        }
    }
    Ok(())
}

fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let have = fs::read_to_string(dir.join(file)).ctx("reading", dir.join(file))?;
        if have.trim().is_empty() {
            let value = fs::read_to_string(parent.join(file)).ctx("reading", parent.join(file))?;
            write(&dir.join(file), value.trim())?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    // Processes killed a moment ago may not be reaped yet; the kernel has no event for "empty" on version 1.
    let mut wait = std::time::Duration::from_millis(1);
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && wait < std::time::Duration::from_millis(600) => {
                std::thread::sleep(wait);
                wait *= 2;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_is_version_1() {
        let text = "\
30 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:21 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 30 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
35 30 0:22 /docker/x /other rw - cgroup cgroup rw,memory
";
        let Some(Hierarchy::V1(mounts)) = Hierarchy::parse(text) else { panic!("not version 1") };
        let names: Vec<&str> = mounts.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["cpu", "cpuacct", "memory", "systemd"]);
        assert_eq!(mounts[2].1, PathBuf::from("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn unified_is_version_2() {
        let text = "31 30 0:21 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Hierarchy::parse(text), Some(Hierarchy::V2(PathBuf::from("/sys/fs/cgroup"))));
        assert_eq!(Hierarchy::parse("1 1 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn paths_cannot_escape() {
        for bad in ["", "/", "/a/../b", "a//b", "./a"] {
            assert!(Cgroup::at(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn shares_to_weight() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
