//! The small process beside every sandbox: it holds the namespaces and the containers' streams, and outlives the main
//! process.
//!
//! It is the program itself, executed as `shim DIRECTORY`; single-threaded, so it may fork, and without an async runtime,
//! so that its private memory stays well under 2 MB.

mod container;
pub(crate) mod cri_log;
mod exec;
mod memory;
pub mod protocol;
mod server;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use protocol::{SANDBOX_FILE, SOCKET_FILE, SandboxRecord};

use crate::files;
use crate::seqpacket;

/// Entry point of `shim`; `args` are what follows that word. Returns to its caller's process when the shim is ready
/// (status 0) or failed (status 1, the reason on stderr). Must be called before any thread is started.
pub fn shim_main(mut args: impl Iterator<Item = OsString>) -> ! {
    let (Some(directory), None) = (args.next(), args.next()) else {
        eprintln!("shim: usage: shim SANDBOX-DIRECTORY");
        std::process::exit(2);
    };
    drop(args);
    match start(Path::new(&directory)) {
        Ok(()) => std::process::exit(0),
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(1);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn start(directory: &Path) -> Result<(), String> {
    let (mut ready, mut tell) = io::pipe().map_err(|e| format!("pipe: {e}"))?;
    // SAFETY: single-threaded at this point.
    match check(unsafe { libc::fork() }).map_err(|e| format!("fork: {e}"))? {
        0 => {
            drop(ready);
            match set_up(directory) {
                Ok(server) => {
                    silence();
                    let _ = tell.write_all(b"ok");
                    drop(tell);
                    server.run()
                }
                Err(message) => {
                    let _ = tell.write_all(message.as_bytes());
                    std::process::exit(1)
                }
            }
        }
        _ => {
            drop(tell);
            let mut message = String::new();
            ready.read_to_string(&mut message).map_err(|e| format!("waiting for the shim: {e}"))?;
            match message.as_str() {
                "ok" => Ok(()),
                "" => Err("the shim ended while starting".into()),
                _ => Err(message),
            }
        }
    }
}

/// Standard streams to /dev/null: whoever started us may close theirs.
fn silence() {
    if let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        for fd in 0..3 {
            // SAFETY: both descriptors are open.
            unsafe { libc::dup2(null.as_raw_fd(), fd) };
        }
    }
}

fn set_up(directory: &Path) -> Result<server::Shim, String> {
    let record: SandboxRecord = files::read_json(&directory.join(SANDBOX_FILE)).map_err(|e| e.to_string())?;
    let exe = crate::init::mounts::read_only_self()
        .and_then(out_of_the_way)
        .map_err(|e| format!("copying the mount of the program: {e}"))?;
    std::env::set_current_dir("/").map_err(|e| format!("chdir /: {e}"))?;
    // SAFETY: plain calls with constant arguments in a single-threaded process.
    unsafe {
        check(libc::setsid()).map_err(|e| format!("setsid: {e}"))?;
        check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)).map_err(|e| format!("subreaper: {e}"))?;
        libc::prctl(libc::PR_SET_NAME, c"gantry-shim".as_ptr());
        libc::umask(0o022);
        check(libc::setgroups(0, std::ptr::null())).map_err(|e| format!("setgroups: {e}"))?;
    }
    for dir in &record.shim_cgroup_dirs {
        let file = dir.join("cgroup.procs");
        fs::write(&file, std::process::id().to_string()).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    crate::init::set_oom_score(-998);
    let pause = namespaces(&record)?;
    let socket = directory.join(SOCKET_FILE);
    let listener = seqpacket::listen(&socket).map_err(|e| format!("listen on {}: {e}", socket.display()))?;
    server::Shim::new(record, exe, listener, pause).map_err(|e| format!("signals: {e}"))
}

/// Moves a descriptor above those a helper is given.
fn out_of_the_way(fd: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the new descriptor is owned at once.
    unsafe {
        let moved = check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 16))?;
        Ok(OwnedFd::from_raw_fd(moved))
    }
}

/// Leaves the host's namespaces as far as wanted. The result is the first process of a shared PID namespace.
fn namespaces(record: &SandboxRecord) -> Result<Option<i32>, String> {
    let config = &record.config;
    let mut flags = 0;
    if !config.namespaces.host_network {
        flags |= libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    }
    if !config.namespaces.host_ipc {
        flags |= libc::CLONE_NEWIPC;
    }
    // SAFETY: constant flags; single-threaded.
    check(unsafe { libc::unshare(flags) }).map_err(|e| format!("new namespaces: {e}"))?;
    if !config.namespaces.host_network {
        let name = config.hostname.as_bytes();
        // SAFETY: the pointer is valid for the length.
        check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
            .map_err(|e| format!("sethostname {:?}: {e}", config.hostname))?;
        loopback_up().map_err(|e| format!("loopback interface: {e}"))?;
        // Ports and pings need no privilege in a network of one's own. Old kernels may not know; the configuration's own
        // sysctls below have the last word.
        let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    }
    if let Some(path) = &record.netns_path {
        pin(path).map_err(|e| format!("pin network namespace on {}: {e}", path.display()))?;
    }
    for (name, value) in &config.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(&path, value).map_err(|e| format!("sysctl {name}={value}: {e}"))?;
    }
    if config.namespaces.shared_pid && !config.namespaces.host_pid { pause().map(Some) } else { Ok(None) }
}

fn pin(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    nix::mount::mount(Some("/proc/self/ns/net"), path, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: `request` is a valid ifreq for both ioctls; the socket is closed by OwnedFd.
    unsafe {
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let socket = <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))?;
    }
    Ok(())
}

/// Starts process 1 of a PID namespace shared by all containers: it does nothing but reap orphans.
fn pause() -> Result<i32, String> {
    let own = fs::File::open("/proc/self/ns/pid").map_err(|e| format!("/proc/self/ns/pid: {e}"))?;
    // SAFETY: single-threaded; the child uses only async-signal-safe calls.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWPID)).map_err(|e| format!("new pid namespace: {e}"))?;
        let pid = check(libc::fork()).map_err(|e| format!("fork: {e}"))?;
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0);
            libc::prctl(libc::PR_SET_NAME, c"pause".as_ptr());
            libc::close_range(0, u32::MAX, 0);
            let mut children: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut children);
            libc::sigaddset(&mut children, libc::SIGCHLD);
            libc::sigprocmask(libc::SIG_BLOCK, &children, std::ptr::null_mut());
            loop {
                let mut signal = 0;
                libc::sigwait(&children, &mut signal);
                while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            }
        }
        // Later children of the shim itself stay in the host's namespace.
        check(libc::setns(own.as_raw_fd(), libc::CLONE_NEWPID)).map_err(|e| format!("leave pid namespace: {e}"))?;
        Ok(pid)
    }
}
