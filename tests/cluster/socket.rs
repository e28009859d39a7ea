//! A gRPC server of the test's own on a socket file, as plugins are.

use gantry_grpc::{Service, serve};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A server that is there until it is dropped.
pub struct Socket {
    path: PathBuf,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Socket {
    /// Has a service answer on this socket, which is made with its directory.
    pub fn listen(path: &Path, service: Arc<dyn Service>) -> Self {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let stop = CancellationToken::new();
        let (stopped, file) = (stop.clone(), path.to_owned());
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::bind(file).unwrap();
                ready.send(()).unwrap();
                serve(listener, service, stopped).await;
            });
        });
        listening.recv().unwrap();
        Self { path: path.to_owned(), stop, thread: Some(thread) }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        drop(std::fs::remove_file(&self.path));
    }
}
