//! What the kernel says about a process.

use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// CPU time used by a process since it began, its threads included, those of its children not.
///
/// # Errors
/// Where it is gone.
pub fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = ticks(&text).with_context(|| format!("{path} reads {text:?}"))?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// CPU time used by the calling thread since it began.
///
/// # Errors
/// Where the kernel does not tell.
pub fn own_thread() -> Result<Duration> {
    let path = "/proc/thread-self/schedstat";
    // The kernel brings the figure up to date when the thread is scheduled, or else with its next tick.
    std::thread::yield_now();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let nanoseconds = text.split_ascii_whitespace().next().and_then(|n| n.parse().ok());
    nanoseconds.map(Duration::from_nanos).with_context(|| format!("{path} reads {text:?}"))
}

/// User and system time. The name before them may hold blanks and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// A size in bytes from a file of `Name: N kB` lines under `/proc/PID`.
///
/// # Errors
/// Where the process is gone or the file has no such line.
pub fn size(pid: u32, file: &str, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    kilobytes(&text, name).map(|k| k * 1024).with_context(|| format!("{path} has no {name}"))
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Resident set size in bytes.
///
/// # Errors
/// Where the process is gone.
pub fn resident(pid: u32) -> Result<u64> {
    size(pid, "smaps_rollup", "Rss")
}

/// Proportional set size in bytes: pages shared with others count in part.
///
/// # Errors
/// Where the process is gone.
pub fn proportional(pid: u32) -> Result<u64> {
    size(pid, "smaps_rollup", "Pss")
}

/// Forgets the highest resident set size so far.
///
/// # Errors
/// Where the process is gone or not ours.
pub fn reset_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    // 5: see proc_pid_clear_refs(5).
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

/// The highest resident set size since [`reset_peak`], in bytes.
///
/// # Errors
/// Where the process is gone.
pub fn peak(pid: u32) -> Result<u64> {
    size(pid, "status", "VmHWM")
}

/// What the files below a directory take of the disk, in bytes.
///
/// # Errors
/// Where the directory cannot be read.
pub fn disk(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        // A file may go between the two looks.
        let Ok(metadata) = entry.metadata() else { continue };
        sum += if metadata.is_dir() { disk(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(sum)
}

/// Processes whose arguments after the program's name are accepted by `accept`.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn find(accept: impl Fn(&[&str]) -> bool) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        // A process may end between the two looks.
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cmdline")) else { continue };
        let arguments: Vec<&str> = text.split_terminator('\0').skip(1).collect();
        if accept(&arguments) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_nasty_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 2 0 0 0 123 45 6 7 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(168));
        assert_eq!(ticks("42 (a) S 1"), None);
    }

    #[test]
    fn sizes() {
        let text = "Rss:                1234 kB\nPss:  77 kB\nPss_Dirty: 5 kB\n";
        assert_eq!(kilobytes(text, "Rss"), Some(1234));
        assert_eq!(kilobytes(text, "Pss"), Some(77));
        assert_eq!(kilobytes(text, "Swap"), None);
    }

    #[test]
    fn own_process() {
        let own = std::process::id();
        assert!(resident(own).unwrap() > 100_000);
        assert!(proportional(own).unwrap() > 10_000);
        cpu(own).unwrap();
        assert!(own_thread().unwrap() > Duration::ZERO);
        assert!(find(|arguments| arguments.is_empty()).is_ok());
    }
}
