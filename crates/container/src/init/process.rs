//! The last steps of a container's process: identity, capabilities, seccomp, and the program itself.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::capability;
use super::spec::ProcessSpec;
use super::{Context, Outcome};

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Joins the cgroups and sets what is inherited: OOM score and limits. Done by the helper, before it clones.
pub(super) fn join(cgroup_dirs: &[std::path::PathBuf], process: &ProcessSpec) -> Outcome<()> {
    let pid = std::process::id().to_string();
    for dir in cgroup_dirs {
        fs::write(dir.join("cgroup.procs"), &pid).context(|| format!("join cgroup {}", dir.display()))?;
    }
    set_oom_score(process.oom_score_adj);
    set_open_files(process.open_files);
    Ok(())
}

/// Without CAP_SYS_RESOURCE the score cannot be lowered below where we are; as near as allowed is the best then.
pub(crate) fn set_oom_score(wanted: i32) {
    const FILE: &str = "/proc/self/oom_score_adj";
    let wanted = wanted.clamp(-1000, 1000);
    if fs::write(FILE, wanted.to_string()).is_err() {
        let now = fs::read_to_string(FILE).ok().and_then(|t| t.trim().parse::<i32>().ok()).unwrap_or(0);
        if wanted > now {
            let _ = fs::write(FILE, now.to_string());
        }
    }
}

fn set_open_files(wanted: u64) {
    let mut limit = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
    // SAFETY: `limit` is a valid rlimit for each call.
    unsafe {
        if wanted == 0 || libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0 {
            return;
        }
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Makes a terminal's slave end the controlling terminal and the standard streams.
pub(super) fn take_terminal(slave: &OwnedFd, uid: u32) -> Outcome<()> {
    // SAFETY: plain calls on an open descriptor; the process is a session leader without a terminal.
    unsafe {
        check(libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0)).context(|| "controlling terminal".into())?;
        for fd in 0..3 {
            check(libc::dup2(slave.as_raw_fd(), fd)).context(|| "standard streams".into())?;
        }
        // The group stays that of the devpts mount.
        check(libc::fchown(slave.as_raw_fd(), uid, u32::MAX)).context(|| "owner of the terminal".into())
    }
}

/// Becomes the user and executes the program. Returns only on failure.
pub(super) fn execute(process: &ProcessSpec) -> Outcome<std::convert::Infallible> {
    own_streams(process.uid);
    reset_signals();
    // SAFETY: constant arguments. This program goes without huge pages, which is inherited; kernels that do not know of
    // this have not set it either.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0) };
    let chdir = |path: &Path| std::env::set_current_dir(path);
    // As root first: the directory may be one only reachable for root, or only for the user (NFS).
    let early = chdir(&process.cwd);
    // SAFETY: `groups` is valid for its length; single-threaded.
    check(unsafe { libc::setgroups(process.groups.len(), process.groups.as_ptr()) }).context(|| "set groups".into())?;
    capability::limit_bounding(process.capabilities).context(|| "bounding capabilities".into())?;
    become_user(process)?;
    if let Err(e) = early {
        chdir(&process.cwd).map_err(|_| format!("chdir to cwd ({:?}): {e}", process.cwd.display().to_string()))?;
    }
    confine(process)?;
    // SAFETY: plain calls; everything from descriptor 3 on closes itself at execution.
    unsafe {
        libc::umask(0o022);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0);
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 4u32 /* CLOSE_RANGE_CLOEXEC */);
    }
    Err(run(process))
}

fn become_user(process: &ProcessSpec) -> Outcome<()> {
    // SAFETY: single-threaded, so the raw calls reach the whole process.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)).context(|| "keep capabilities".into())?;
        check(libc::syscall(libc::SYS_setresgid, process.gid, process.gid, process.gid) as libc::c_int)
            .context(|| format!("set group {}", process.gid))?;
        check(libc::syscall(libc::SYS_setresuid, process.uid, process.uid, process.uid) as libc::c_int)
            .context(|| format!("set user {}", process.uid))?;
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0)).context(|| "keep capabilities".into())
    }
}

fn confine(process: &ProcessSpec) -> Outcome<()> {
    let no_new_privileges = || {
        // SAFETY: constant arguments.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).context(|| "no_new_privs".into())
    };
    if process.no_new_privileges {
        capability::set(process.capabilities).context(|| "capabilities".into())?;
        no_new_privileges()?;
        return load_filters(&process.seccomp);
    }
    if !process.seccomp.is_empty() {
        // Without no_new_privs a filter takes CAP_SYS_ADMIN, which is given up right after.
        capability::set(process.capabilities | capability::bit("SYS_ADMIN")).context(|| "capabilities".into())?;
        load_filters(&process.seccomp)?;
    }
    capability::set(process.capabilities).context(|| "capabilities".into())
}

fn load_filters(filters: &[Vec<u64>]) -> Outcome<()> {
    for filter in filters {
        let program: Vec<libc::sock_filter> = filter
            .iter()
            .map(|word| libc::sock_filter {
                code: *word as u16,
                jt: (*word >> 16) as u8,
                jf: (*word >> 24) as u8,
                k: (*word >> 32) as u32,
            })
            .collect();
        let header = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: `header` describes `program`, alive during the call.
        check(unsafe {
            libc::syscall(libc::SYS_seccomp, 1 /* SET_MODE_FILTER */, 0, &raw const header) as libc::c_int
        })
        .context(|| "seccomp filter".into())?;
    }
    Ok(())
}

/// A pipe belongs to root; a program that opens `/dev/stdout` anew as another user needs it to be its own.
fn own_streams(uid: u32) {
    for fd in 0..3 {
        if fs::metadata(format!("/proc/self/fd/{fd}")).is_ok_and(|m| m.file_type().is_fifo()) {
            // SAFETY: plain call on an open descriptor.
            unsafe { libc::fchown(fd, uid, u32::MAX) };
        }
    }
}

/// Ignored signals and the signal mask survive execution; the program must start with neither.
pub(super) fn reset_signals() {
    // SAFETY: valid sets and constants.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn run(process: &ProcessSpec) -> String {
    let Some(program) = process.args.first() else {
        return "no command specified".into();
    };
    let c_strings = |list: &[String]| list.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(args), Ok(env)) = (c_strings(&process.args), c_strings(&process.env)) else {
        return format!("exec: {program:?}: an argument or variable contains a zero byte");
    };
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv, envp) = (pointers(&args), pointers(&env));
    let try_path = |path: &str| -> io::Error {
        let Ok(c_path) = CString::new(path) else {
            return io::ErrorKind::InvalidInput.into();
        };
        // SAFETY: both lists are null-terminated and their strings alive.
        unsafe { libc::execve(c_path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        io::Error::last_os_error()
    };
    if program.contains('/') {
        let error = try_path(program);
        return match error.raw_os_error() {
            Some(libc::ENOENT) if !Path::new(program).exists() => {
                format!("exec: {program:?}: stat {program}: no such file or directory")
            }
            Some(libc::ENOENT) => format!("exec {program}: no such file or directory"),
            Some(libc::EACCES) => format!("exec: {program:?}: permission denied"),
            Some(libc::ENOEXEC) => format!("exec {program}: exec format error"),
            _ => format!("exec: {program:?}: {error}"),
        };
    }
    let path = process
        .env
        .iter()
        .rev()
        .find_map(|v| v.strip_prefix("PATH="))
        .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut denied = false;
    for dir in path.split(':') {
        let candidate = if dir.is_empty() { format!("./{program}") } else { format!("{dir}/{program}") };
        let error = try_path(&candidate);
        match error.raw_os_error() {
            Some(libc::EACCES) => denied = Path::new(&candidate).is_file() || denied,
            Some(libc::ENOEXEC) => return format!("exec {candidate}: exec format error"),
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            _ => return format!("exec: {program:?}: {error}"),
        }
    }
    if denied {
        format!("exec: {program:?}: permission denied")
    } else {
        format!("exec: {program:?}: executable file not found in $PATH")
    }
}
