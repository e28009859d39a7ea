//! Notice of changes in directories of logs and manifests by inotify: one kernel instance for all, as instances are scarce.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Watcher {
    fd: AsyncFd<Fd>,
    readers: Mutex<HashMap<WatchDescriptor, Vec<Weak<Notify>>>>,
}

/// Told of every change in a directory until it is dropped.
pub struct Subscription {
    notify: Arc<Notify>,
}

impl Subscription {
    /// Waits for the next change. One that came before the call counts.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }
}

async fn pump(watcher: Arc<Watcher>) {
    loop {
        let Ok(mut ready) = watcher.fd.readable().await else { return };
        match watcher.fd.get_ref().0.read_events() {
            Ok(events) => {
                let mut readers = watcher.readers.lock();
                for event in events {
                    // The queue overflowed: everyone should look.
                    let overflow = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                    for (wd, list) in readers.iter_mut() {
                        if overflow || *wd == event.wd {
                            list.retain(|w| w.upgrade().map(|n| n.notify_one()).is_some());
                        }
                    }
                }
                let empty: Vec<WatchDescriptor> =
                    readers.iter().filter(|(_, l)| l.is_empty()).map(|(wd, _)| *wd).collect();
                for wd in empty {
                    readers.remove(&wd);
                    // The directory may be gone, and the watch with it.
                    let _ = watcher.fd.get_ref().0.rm_watch(wd);
                }
            }
            Err(nix::Error::EAGAIN) => ready.clear_ready(),
            Err(nix::Error::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "inotify failed: logs are no longer followed");
                return;
            }
        }
    }
}

/// Subscribes to changes in `directory`. Must be called inside a tokio runtime.
///
/// # Errors
/// Where the kernel cannot watch the directory.
pub fn subscribe(directory: &Path) -> io::Result<Subscription> {
    static WATCHER: OnceLock<Arc<Watcher>> = OnceLock::new();
    static START: Mutex<()> = Mutex::new(());
    let watcher = match WATCHER.get() {
        Some(w) => w.clone(),
        None => {
            let _one = START.lock();
            match WATCHER.get() {
                Some(w) => w.clone(),
                None => {
                    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
                    // SAFETY: `Fd` owns the descriptor, always returns the same one, and gives no access that closes it.
                    let fd = unsafe { AsyncFd::register(Fd(inotify)) }?;
                    let made = Arc::new(Watcher { fd, readers: Mutex::default() });
                    tokio::spawn(pump(made.clone()));
                    WATCHER.get_or_init(|| made).clone()
                }
            }
        }
    };
    let flags = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE;
    let notify = Arc::new(Notify::new());
    // The lock is held over both steps: a descriptor may otherwise be removed in between.
    let mut readers = watcher.readers.lock();
    let wd = watcher.fd.get_ref().0.add_watch(directory, flags)?;
    readers.entry(wd).or_default().push(Arc::downgrade(&notify));
    Ok(Subscription { notify })
}
