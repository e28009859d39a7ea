//! Seccomp filters: the default profile and profiles from files, compiled to BPF by the main process.
//!
//! A profile becomes a stack of filters, of which the kernel takes the most restrictive verdict, and among equally
//! restrictive ones that of the filter installed last.

use std::collections::BTreeMap;
use std::path::Path;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::Deserialize;

use super::capability;
use super::syscalls;
use crate::error::{Error, IoContext, Result};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;
#[cfg(target_arch = "riscv64")]
const ARCH: TargetArch = TargetArch::riscv64;

/// Calls that only concern the caller itself, its files and its sockets.
const ALLOWED: &str = "accept accept4 access adjtimex alarm arch_prctl bind brk capget capset chdir chmod chown \
clock_adjtime clock_getres clock_gettime clock_nanosleep clone close close_range connect copy_file_range creat dup dup2 \
dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit \
exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl \
fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_waitv \
futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer \
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid \
getsockname getsockopt gettid gettimeofday getuid getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
io_cancel io_destroy io_getevents io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule \
landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr llistxattr lremovexattr \
lseek lsetxattr lstat madvise membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 \
mlockall mmap modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal \
msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 \
pause personality pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 \
preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 \
read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr rename renameat \
renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam \
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto \
set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority \
setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr shmat shmctl shmdt shmget shutdown \
sigaltstack signalfd signalfd4 socket socketpair splice stat statfs statx symlink symlinkat sync sync_file_range syncfs \
sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create \
timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork vmsplice \
wait4 waitid write writev";

/// Calls that come with a capability.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree \
perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module init_module finit_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_TIME", "settimeofday clock_settime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// Known calls nobody gets by default. They answer EPERM; a call not known here answers ENOSYS, so that programs fall
/// back. (`clone3` is left out: its flags are behind a pointer, so programs must fall back to `clone`.)
const REFUSED: &str = "add_key io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl \
nfsservctl pivot_root request_key swapoff swapon userfaultfd ustat";

const NAMESPACE_FLAGS: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

fn failure(error: impl ToString) -> Error {
    Error::InvalidConfig { field: "seccomp profile".into(), reason: error.to_string() }
}

/// The default profile for a process with these capabilities.
pub fn default_profile(capabilities: u64) -> Result<Vec<Vec<u64>>> {
    let mut allow: Rules = Rules::new();
    let mut refuse: Rules = Rules::new();
    let words = |text: &'static str| text.split_whitespace().filter_map(syscalls::number);
    for number in words(ALLOWED) {
        allow.insert(number, Vec::new());
    }
    for (name, calls) in WITH_CAPABILITY {
        let has = capabilities & capability::bit(name) != 0;
        for number in words(calls) {
            if has {
                allow.insert(number, Vec::new());
                refuse.remove(&number);
            } else if !allow.contains_key(&number) && Some(number) != syscalls::number("clone3") {
                refuse.insert(number, Vec::new());
            }
        }
    }
    for number in words(REFUSED) {
        refuse.insert(number, Vec::new());
    }
    let condition =
        |index, op, value| SeccompCondition::new(index, SeccompCmpArgLen::Qword, op, value).map_err(failure);
    if capabilities & capability::bit("SYS_ADMIN") == 0
        && let Some(clone) = syscalls::number("clone")
    {
        let rules = NAMESPACE_FLAGS
            .iter()
            .map(|flag| {
                let flag = *flag as u32 as u64;
                SeccompRule::new(vec![condition(0, SeccompCmpOp::MaskedEq(flag), flag)?]).map_err(failure)
            })
            .collect::<Result<Vec<_>>>()?;
        refuse.insert(clone, rules);
    }
    if let Some(personality) = syscalls::number("personality") {
        let conditions = [0u64, 8, 0x20000, 0x20008, 0xffff_ffff]
            .into_iter()
            .map(|v| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, v).map_err(failure))
            .collect::<Result<Vec<_>>>()?;
        refuse.insert(personality, vec![SeccompRule::new(conditions).map_err(failure)?]);
    }
    if let Some(socket) = syscalls::number("socket") {
        let vsock = condition(0, SeccompCmpOp::Eq, libc::AF_VSOCK as u64)?;
        refuse.insert(socket, vec![SeccompRule::new(vec![vsock]).map_err(failure)?]);
    }
    Ok(vec![
        compile(allow, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow)?,
        compile(refuse, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32))?,
    ])
}

fn compile(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> Result<Vec<u64>> {
    let filter = SeccompFilter::new(rules, otherwise, matching, ARCH).map_err(failure)?;
    let program: BpfProgram = filter.try_into().map_err(failure)?;
    Ok(program
        .iter()
        .map(|i| u64::from(i.code) | u64::from(i.jt) << 16 | u64::from(i.jf) << 24 | u64::from(i.k) << 32)
        .collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Deserialize, Default)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// The profile in a file (OCI and Docker JSON) for a process with these capabilities.
pub fn file_profile(path: &Path, capabilities: u64) -> Result<Vec<Vec<u64>>> {
    let text = std::fs::read(path).ctx("reading seccomp profile", path)?;
    parse_profile(&text, capabilities).map_err(|e| match e {
        Error::InvalidConfig { field, reason } => {
            Error::InvalidConfig { field: format!("{field} {}", path.display()), reason }
        }
        other => other,
    })
}

fn parse_profile(text: &[u8], capabilities: u64) -> Result<Vec<Vec<u64>>> {
    let profile: Profile = serde_json::from_slice(text).map_err(failure)?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut named: Rules = Rules::new();
    let mut groups: Vec<(SeccompAction, Rules)> = Vec::new();
    for group in &profile.syscalls {
        let all = |c: &Condition| c.caps.iter().all(|n| capabilities & capability::bit(n) != 0);
        let any = |c: &Condition| c.caps.iter().any(|n| capabilities & capability::bit(n) != 0);
        let arch = |c: &Condition| {
            c.arches.iter().any(|a| {
                a == std::env::consts::ARCH
                    || (a == "amd64" && cfg!(target_arch = "x86_64"))
                    || (a == "arm64" && cfg!(target_arch = "aarch64"))
            })
        };
        if !all(&group.includes)
            || any(&group.excludes)
            || (!group.includes.arches.is_empty() && !arch(&group.includes))
            || arch(&group.excludes)
        {
            continue;
        }
        let verdict = action(&group.action, group.errno_ret)?;
        let rule = rule(group.args.as_deref().unwrap_or_default())?;
        let position = match groups.iter().position(|(have, _)| *have == verdict) {
            Some(position) => position,
            None => {
                groups.push((verdict, Rules::new()));
                groups.len() - 1
            }
        };
        // A name this architecture does not have cannot be called, so nothing is lost by passing it over.
        for number in group.names.iter().chain(&group.name).filter_map(|n| syscalls::number(n)) {
            for rules in [&mut named, &mut groups[position].1] {
                match (&rule, rules.get_mut(&number)) {
                    (None, _) => {
                        rules.insert(number, Vec::new());
                    }
                    (Some(_), Some(have)) if have.is_empty() => {} // unconditional already
                    (Some(rule), Some(have)) => have.push(rule.clone()),
                    (Some(rule), None) => {
                        rules.insert(number, vec![rule.clone()]);
                    }
                }
            }
        }
    }
    let mut filters = Vec::new();
    if default != SeccompAction::Allow {
        filters.push(compile(named, default, SeccompAction::Allow)?);
    }
    for (verdict, rules) in groups {
        if verdict != SeccompAction::Allow {
            filters.push(compile(rules, SeccompAction::Allow, verdict)?);
        }
    }
    Ok(filters)
}

fn rule(arguments: &[Argument]) -> Result<Option<SeccompRule>> {
    if arguments.is_empty() {
        return Ok(None);
    }
    let conditions = arguments
        .iter()
        .map(|a| {
            let (op, value) = match a.op.as_str() {
                "SCMP_CMP_NE" => (SeccompCmpOp::Ne, a.value),
                "SCMP_CMP_LT" => (SeccompCmpOp::Lt, a.value),
                "SCMP_CMP_LE" => (SeccompCmpOp::Le, a.value),
                "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, a.value),
                "SCMP_CMP_GE" => (SeccompCmpOp::Ge, a.value),
                "SCMP_CMP_GT" => (SeccompCmpOp::Gt, a.value),
                "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(a.value), a.value_two),
                other => return Err(failure(format!("unknown comparison {other:?}"))),
            };
            SeccompCondition::new(a.index, SeccompCmpArgLen::Qword, op, value).map_err(failure)
        })
        .collect::<Result<Vec<_>>>()?;
    SeccompRule::new(conditions).map(Some).map_err(failure)
}

fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno.unwrap_or(libc::EPERM as u32)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(errno.unwrap_or(libc::EPERM as u32)),
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        other => return Err(failure(format!("unknown action {other:?}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_compiles_with_and_without_rights() {
        for capabilities in [0, u64::MAX] {
            let filters = default_profile(capabilities).unwrap();
            assert_eq!(filters.len(), 2);
            assert!(filters.iter().all(|f| !f.is_empty() && f.len() < 4096));
        }
    }

    #[test]
    fn every_name_in_the_default_profile_is_known() {
        let known = |name: &str| {
            // Some calls exist on one architecture only; the longer list is x86-64's.
            !cfg!(target_arch = "x86_64") || syscalls::number(name).is_some()
        };
        let lists = [ALLOWED, REFUSED].into_iter().chain(WITH_CAPABILITY.iter().map(|(_, calls)| *calls));
        for name in lists.flat_map(str::split_whitespace) {
            assert!(known(name), "{name}");
        }
        for (name, _) in WITH_CAPABILITY {
            assert!(capability::number(name).is_some(), "{name}");
        }
    }

    #[test]
    fn profiles_from_files() {
        let text = br#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["read","write","no_such_call"],"action":"SCMP_ACT_ALLOW"},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["personality"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#;
        let with = parse_profile(text, u64::MAX).unwrap();
        let without = parse_profile(text, 0).unwrap();
        assert_eq!((with.len(), without.len()), (2, 2));
        assert!(with[0].len() > without[0].len());
        assert_eq!(parse_profile(br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#, 0).unwrap().len(), 0);
        for bad in [&b"{"[..], br#"{"defaultAction":"SCMP_ACT_NO"}"#] {
            assert!(matches!(parse_profile(bad, 0), Err(Error::InvalidConfig { .. })));
        }
    }
}
