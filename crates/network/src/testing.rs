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
pub(crate) fn isolated(work: impl Future<Output = ()> + Send + 'static) {
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
pub(crate) struct Namespace {
    path: PathBuf,
    _alive: mpsc::Sender<()>,
}

impl Namespace {
    pub(crate) fn new() -> Namespace {
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

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs something inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path).expect("namespace");
        in_network_namespace(&file, || Ok(work())).expect("enter")
    }
}
