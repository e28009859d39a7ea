//! Network namespaces for tests.

use std::{
    fs::File,
    future::Future,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use nix::sched::{CloneFlags, unshare};

use crate::in_network_namespace;

/// Runs a future in a network namespace of its own, on a thread of its own.
///
/// # Panics
/// Where the future does, and without the right to make namespaces.
pub fn isolated(work: impl Future<Output = ()> + Send + 'static) {
    let done = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(work);
    })
    .join();
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

/// A network namespace held by a sleeping thread.
pub struct Namespace {
    path: PathBuf,
    _alive: mpsc::Sender<()>,
}

impl Namespace {
    /// One with nothing in it but a loopback interface that is down.
    ///
    /// # Panics
    /// Without the right to make namespaces.
    #[must_use]
    pub fn held() -> Namespace {
        let (alive, until) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
            tell.send(nix::unistd::gettid()).expect("tell");
            let _ = until.recv();
        });
        let tid = told.recv().expect("thread");
        let path = PathBuf::from(format!("/proc/{}/task/{tid}/ns/net", std::process::id()));
        Namespace { path, _alive: alive }
    }

    /// Where others find it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs something inside.
    ///
    /// # Panics
    /// Where the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path).expect("namespace");
        in_network_namespace(&file, || Ok(work())).expect("enter")
    }
}
