//! Work inside another network namespace.
//!
//! A namespace belongs to a thread, and an async worker thread must never change its own: whatever runs on it next
//! would find itself in the wrong network. So a thread is made for the purpose and ends with it.

use std::{fs::File, io, os::fd::AsFd, thread};

use nix::sched::{CloneFlags, setns};

/// Runs `work` in the network namespace `namespace` on a thread of its own and returns what it returned.
///
/// Blocks the caller for as long as `work` runs; meant for what is quick, such as opening a socket (which then
/// belongs to that namespace and may be used from anywhere) or writing a sysctl.
///
/// # Errors
/// When the thread cannot be made or the namespace cannot be entered, and whatever `work` answers.
pub fn in_network_namespace<T, F>(namespace: &File, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".into())
            .stack_size(128 * 1024)
            .spawn_scoped(scope, || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                work()
            })?
            .join()
            .map_err(|_| io::Error::other("thread in the network namespace panicked"))?
    })
}
