//! The short-lived, single-threaded helper that turns itself into a container's process.
//!
//! A shim runs it as `container-init create SPEC` or `container-init exec PID SPEC` with a socket to itself as
//! descriptor 3 and the container's standard streams as 0–2. The helper joins cgroups and namespaces and clones the
//! actual process as the shim's own child ([`spec::InitMessage`] is what they tell each other).

pub mod capability;
pub mod mounts;
mod process;
pub mod seccomp;
pub mod spec;
mod sys;
mod syscalls;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use spec::{ExecSpec, InitMessage, InitSpec, PidNamespace, ProcessSpec};

use crate::seqpacket;

pub(crate) use process::set_oom_score;
pub(crate) use sys::open_in_root;

/// Errors in here are sentences for a status message: nobody can act on their parts any more.
type Outcome<T> = Result<T, String>;

trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|e| format!("{}: {e}", what()))
    }
}

const SOCKET: i32 = 3;

/// Entry point of `container-init`; `args` are what follows that word. Must be called before any thread is started.
pub fn container_init_main(args: impl Iterator<Item = OsString>) -> ! {
    // SAFETY: the shim hands us the socket as descriptor 3.
    let socket = unsafe { OwnedFd::from_raw_fd(SOCKET) };
    let args: Vec<OsString> = args.collect();
    let word = |i: usize| args.get(i).and_then(|a| a.to_str());
    let result = match (word(0), args.get(1), args.get(2)) {
        (Some("create"), Some(spec), None) => create(Path::new(spec), &socket),
        (Some("exec"), Some(pid), Some(spec)) => exec(&pid.to_string_lossy(), Path::new(spec), &socket),
        _ => Err("container-init: usage: create SPEC | exec PID SPEC".to_string()),
    };
    match result {
        Ok(()) => std::process::exit(0),
        Err(message) => fail(&socket, message),
    }
}

fn fail(socket: &OwnedFd, message: String) -> ! {
    let _ = tell(socket, &InitMessage::Failed(message), None);
    // Not exit(): as a clone of the helper this process must not run its exit handlers.
    // SAFETY: _exit never returns and runs nothing.
    unsafe { libc::_exit(127) }
}

fn tell(socket: &OwnedFd, message: &InitMessage, fd: Option<&OwnedFd>) -> Outcome<()> {
    let text = serde_json::to_vec(message).map_err(|e| e.to_string())?;
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    seqpacket::send(socket, &text, &fds).context(|| "shim".into())
}

fn load<T: serde::de::DeserializeOwned>(path: &Path) -> Outcome<T> {
    let text = std::fs::read(path).context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("parse {}: {e}", path.display()))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// From here on, nothing in a namespace we join may look into this process.
fn hide() {
    // SAFETY: constant arguments.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

fn create(spec: &Path, socket: &OwnedFd) -> Outcome<()> {
    let spec: InitSpec = load(spec)?;
    process::join(&spec.cgroup_dirs, &spec.process)?;
    hide();
    let sources = mounts::open_sources(&spec.mounts)?;
    // SAFETY: constant flags; single-threaded.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }).context(|| "new cgroup namespace".into())?;
    match spec.pid_namespace {
        PidNamespace::Host => {}
        PidNamespace::Own => {
            // SAFETY: as above; takes effect for the next child.
            check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).context(|| "new pid namespace".into())?;
        }
        PidNamespace::Of(pid) => enter(pid, "pid")?,
    }
    match clone_sibling()? {
        0 => fail(socket, first_process(&spec, sources, socket).unwrap_or_else(|e| e)),
        pid => tell(socket, &InitMessage::Pid(pid), None),
    }
}

/// Runs in the container's first process; comes back only with what went wrong.
fn first_process(spec: &InitSpec, sources: Vec<Option<OwnedFd>>, socket: &OwnedFd) -> Outcome<String> {
    // SAFETY: plain calls in a single-threaded process.
    unsafe {
        check(libc::setsid()).context(|| "new session".into())?;
        libc::umask(0);
    }
    if let Some((master, slave)) = mounts::enter_root(spec, sources)? {
        process::take_terminal(&slave, spec.process.uid)?;
        tell(socket, &InitMessage::Terminal, Some(&master))?;
    }
    tell(socket, &InitMessage::Ready, None)?;
    let mut buffer = [0; 256];
    let start = seqpacket::receive(socket, &mut buffer).context(|| "shim".into())?;
    let Some((length, _)) = start else {
        return Err("the shim is gone".into());
    };
    if !matches!(serde_json::from_slice(&buffer[..length]), Ok(InitMessage::Start)) {
        return Err("unexpected message from the shim".into());
    }
    finish(&spec.process)
}

fn finish(process: &ProcessSpec) -> Outcome<String> {
    match process::execute(process) {
        Err(message) => Ok(format!("unable to start container process: {message}")),
        Ok(never) => match never {},
    }
}

fn exec(pid: &str, spec: &Path, socket: &OwnedFd) -> Outcome<()> {
    let pid: i32 = pid.parse().map_err(|_| format!("{pid:?} is not a process id"))?;
    let spec: ExecSpec = load(spec)?;
    process::join(&spec.cgroup_dirs, &spec.process)?;
    hide();
    let mount_namespace = open_namespace(pid, "mnt")?;
    enter(pid, "cgroup")?;
    enter(pid, "pid")?;
    match clone_sibling()? {
        0 => fail(socket, exec_process(&spec.process, &mount_namespace, socket).unwrap_or_else(|e| e)),
        pid => tell(socket, &InitMessage::Pid(pid), None),
    }
}

fn exec_process(process: &ProcessSpec, mount_namespace: &OwnedFd, socket: &OwnedFd) -> Outcome<String> {
    // SAFETY: plain calls in a single-threaded process.
    unsafe {
        check(libc::setsid()).context(|| "new session".into())?;
        check(libc::setns(mount_namespace.as_raw_fd(), libc::CLONE_NEWNS)).context(|| "join mount namespace".into())?;
    }
    if process.tty {
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            &mut options,
            libc::O_NOCTTY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC,
        );
        let ptmx = options.read(true).write(true).open("/dev/pts/ptmx").context(|| "open /dev/pts/ptmx".into())?;
        let (master, slave) = mounts::terminal_pair(ptmx.into())?;
        process::take_terminal(&slave, process.uid)?;
        tell(socket, &InitMessage::Terminal, Some(&master))?;
    }
    tell(socket, &InitMessage::Ready, None)?;
    finish(process)
}

fn open_namespace(pid: i32, kind: &str) -> Outcome<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{kind}");
    std::fs::File::open(&path).map(OwnedFd::from).context(|| path)
}

fn enter(pid: i32, kind: &str) -> Outcome<()> {
    let fd = open_namespace(pid, kind)?;
    // SAFETY: plain call on an open namespace descriptor.
    check(unsafe { libc::setns(fd.as_raw_fd(), 0) }).context(|| format!("join {kind} namespace"))?;
    Ok(())
}

/// Forks a child whose parent is our own parent, the shim. Returns 0 in the child.
fn clone_sibling() -> Outcome<i32> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: with no new stack and no shared memory this is fork(); the process has a single thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0usize, 0usize, 0usize, 0usize) };
    check(pid as libc::c_int).context(|| "clone".into())
}
