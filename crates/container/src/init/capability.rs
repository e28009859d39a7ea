//! Linux capabilities: names, the default set, and setting them on the calling thread.

use std::io;

const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Number of a capability, by name with or without `CAP_`, in any case.
pub fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == bare).map(|n| n as u32)
}

/// Name with `CAP_`, for a number.
pub fn name(number: u32) -> Option<String> {
    NAMES.get(number as usize).map(|n| format!("CAP_{n}"))
}

/// The mask of a single capability; 0 for an unknown name.
pub fn bit(name: &str) -> u64 {
    number(name).map_or(0, |n| 1 << n)
}

/// All capabilities this process may hand on (its own bounding set).
pub fn available() -> u64 {
    let mut mask = 0;
    for n in 0..64u32 {
        // SAFETY: prctl with these arguments only reads.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, n as libc::c_ulong, 0, 0, 0) } {
            1 => mask |= 1 << n,
            0 => {}
            _ => break,
        }
    }
    mask
}

/// Default set, minus `drop`, plus `add`, limited to `available`. `ALL` is understood in both. The error is the first
/// unknown name.
pub fn compute(add: &[String], drop: &[String], available: u64) -> Result<u64, String> {
    let mut mask: u64 = DEFAULT.iter().map(|n| bit(n)).sum();
    let is_all = |n: &String| n.eq_ignore_ascii_case("ALL") || n.eq_ignore_ascii_case("CAP_ALL");
    let one = |n: &String| number(n).map(|n| 1u64 << n).ok_or_else(|| n.clone());
    // "ALL" first, so that what is named beside it in the other list wins.
    if add.iter().any(is_all) {
        mask = u64::MAX;
    }
    if drop.iter().any(is_all) {
        mask = 0;
    }
    for name in add.iter().filter(|n| !is_all(n)) {
        mask |= one(name)?;
    }
    for name in drop.iter().filter(|n| !is_all(n)) {
        mask &= !one(name)?;
    }
    Ok(mask & available)
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets effective = permitted = `mask`, nothing inheritable.
pub(crate) fn set(mask: u64) -> io::Result<()> {
    let header = Header { version: 0x2008_0522, pid: 0 };
    let part = |shift: u32| {
        let bits = (mask >> shift) as u32;
        Data { effective: bits, permitted: bits, inheritable: 0 }
    };
    let data = [part(0), part(32)];
    // SAFETY: version 3 takes a header and two data elements.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Removes everything outside `mask` from the bounding set. Needs `CAP_SETPCAP`.
pub(crate) fn limit_bounding(mask: u64) -> io::Result<()> {
    let have = available();
    for n in 0..64u32 {
        if have & (1 << n) != 0 && mask & (1 << n) == 0 {
            // SAFETY: prctl with these arguments changes only the calling thread's bounding set.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, n as libc::c_ulong, 0, 0, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_and_drop() {
        let all = (1u64 << NAMES.len()) - 1;
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let cases: &[(&[&str], &[&str], u64)] = &[
            (&[], &["ALL"], 0),
            (&["NET_ADMIN"], &["ALL"], 1 << 12),
            (&["cap_net_bind_service"], &["all"], 1 << 10),
            (&["ALL"], &[], all),
            (&["ALL"], &["SYS_ADMIN"], all & !(1 << 21)),
        ];
        for (add, drop, want) in cases {
            assert_eq!(compute(&list(add), &list(drop), all), Ok(*want), "{add:?} {drop:?}");
        }
        assert_eq!(compute(&[], &[], all).map(u64::count_ones), Ok(14));
        assert_eq!(compute(&list(&["NO_SUCH"]), &[], all), Err("NO_SUCH".to_string()));
        assert_eq!(compute(&list(&["SYS_ADMIN"]), &list(&["ALL"]), all & !(1 << 21)), Ok(0));
    }
}
