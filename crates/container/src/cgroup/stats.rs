//! Usage of a cgroup.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use super::Cgroup;
use crate::runtime::Stats;

impl Cgroup {
    /// What it uses now; files that a kernel does not have count as 0. The writable layer is not part of it.
    pub fn stats(&self) -> Stats {
        if self.is_v2() { self.stats_v2() } else { self.stats_v1() }
    }

    fn stats_v1(&self) -> Stats {
        let mut stats = empty();
        if let Some(dir) = self.directory("cpuacct") {
            stats.cpu_ns = number(&dir.join("cpuacct.usage"));
        }
        if let Some(dir) = self.directory("memory") {
            let details = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            stats.memory_usage = number(&dir.join("memory.usage_in_bytes"));
            stats.memory_working_set = stats.memory_usage.saturating_sub(field(&details, "total_inactive_file"));
            stats.memory_rss = field(&details, "total_rss");
            stats.page_faults = field(&details, "total_pgfault");
            stats.major_page_faults = field(&details, "total_pgmajfault");
            let limit = number(&dir.join("memory.limit_in_bytes"));
            // Unlimited shows as the largest page-aligned number.
            stats.memory_limit = (limit != 0 && limit < 1 << 62).then_some(limit);
        }
        if let Some(dir) = self.directory("pids") {
            stats.pids = number(&dir.join("pids.current"));
        }
        stats
    }

    fn stats_v2(&self) -> Stats {
        let mut stats = empty();
        let Some(dir) = self.directory("") else {
            return stats;
        };
        let cpu = fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
        stats.cpu_ns = field(&cpu, "usage_usec").saturating_mul(1000);
        let details = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        stats.memory_usage = number(&dir.join("memory.current"));
        stats.memory_working_set = stats.memory_usage.saturating_sub(field(&details, "inactive_file"));
        stats.memory_rss = field(&details, "anon");
        stats.page_faults = field(&details, "pgfault");
        stats.major_page_faults = field(&details, "pgmajfault");
        stats.memory_limit = fs::read_to_string(dir.join("memory.max")).ok().and_then(|t| t.trim().parse().ok());
        stats.pids = number(&dir.join("pids.current"));
        stats
    }
}

fn empty() -> Stats {
    Stats {
        at: SystemTime::now(),
        cpu_ns: 0,
        memory_usage: 0,
        memory_working_set: 0,
        memory_rss: 0,
        memory_limit: None,
        page_faults: 0,
        major_page_faults: 0,
        pids: 0,
        writable_layer_bytes: 0,
        writable_layer_inodes: 0,
    }
}

fn number(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|n| n.trim().parse().ok())
        .unwrap_or(0)
}
