//! The durable store in one file (redb). Current objects and the revision are on disk, recent history in memory.
//!
//! One thread writes. It takes all transactions that wait, evaluates them one after another inside one redb
//! transaction, commits once with fsync, publishes them to watchers and only then answers: group commit.

mod table;
mod writer;

use crate::history::{History, Limits};
use crate::{KeyValue, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, Watch};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadableDatabase};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use table::KV;
use writer::{Job, Writer};

/// On-disk layout version written into new files. Bump when the layout changes.
pub(crate) const FORMAT: u64 = 1;

/// Transactions that may wait for the writer. Beyond this, callers wait to enqueue.
const QUEUE_MAX: usize = 4096;

/// How to open an embedded store.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Bytes of pages redb may keep in memory. Reads are served by the API server's watch caches, so this only needs
    /// to hold the tree's inner pages and what is being written.
    pub cache_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { cache_bytes: 8 << 20 }
    }
}

type Opener = Box<dyn Fn() -> Result<Database, StoreError> + Send + Sync>;

/// The database handle, replaced when a write error forces a reopen.
pub(crate) struct Handle {
    current: RwLock<Option<Arc<Database>>>,
    opener: Opener,
    path: PathBuf,
}

impl Handle {
    fn get(&self) -> Result<Arc<Database>, StoreError> {
        self.current.read().clone().ok_or(StoreError::Closed)
    }

    /// Drops the poisoned handle and opens the file anew; what was committed is there, what was not is not.
    fn reopen(&self) -> Result<(), StoreError> {
        let mut current = self.current.write();
        *current = None;
        *current = Some(Arc::new((self.opener)()?));
        Ok(())
    }

    fn storage_error(&self, error: redb::Error) -> StoreError {
        match error {
            redb::Error::Io(e) if e.kind() == std::io::ErrorKind::StorageFull => {
                StoreError::NoSpace { path: self.path.clone() }
            }
            other => StoreError::Backend(format!("{}: {other}", self.path.display())),
        }
    }
}

/// A durable store. Dropping it waits for the writer thread to finish what was enqueued.
pub struct EmbeddedStore {
    handle: Arc<Handle>,
    history: Arc<History>,
    jobs: Option<tokio::sync::mpsc::Sender<Job>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedStore {
    /// Opens or creates `DIR/store.redb`.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another process has it open, [`StoreError::NewerFormat`] where a newer version wrote
    /// it, [`StoreError::NoSpace`], [`StoreError::Backend`] naming the file for anything else.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<Self, StoreError> {
        let named = |e: std::io::Error| StoreError::Backend(format!("{}: {e}", dir.display()));
        std::fs::create_dir_all(dir).map_err(named)?;
        let path = dir.join("store.redb");
        if !path.exists() {
            // A file whose creation was cut short is no database. So it is made under another name, and gets its own once
            // it is whole and on disk; what an earlier try left is thrown away.
            let unfinished = dir.join("store.redb.new");
            match std::fs::remove_file(&unfinished) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(named(e)),
                _ => {}
            }
            let opener = Self::file_opener(unfinished.clone(), dir.to_owned(), options.cache_bytes);
            drop(Self::with_opener(unfinished.clone(), opener)?);
            std::fs::File::open(&unfinished).and_then(|f| f.sync_all()).map_err(named)?;
            std::fs::rename(&unfinished, &path).map_err(named)?;
            // The new file's directory entry must survive a power cut too.
            std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(named)?;
        }
        let opener = Self::file_opener(path.clone(), dir.to_owned(), options.cache_bytes);
        Self::with_opener(path, opener)
    }

    fn file_opener(file: PathBuf, directory: PathBuf, cache_bytes: usize) -> Opener {
        Box::new(move || {
            Database::builder().set_cache_size(cache_bytes).create(&file).map_err(|e| match e {
                redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: directory.clone() },
                redb::DatabaseError::Storage(redb::StorageError::Io(e))
                    if e.kind() == std::io::ErrorKind::StorageFull =>
                {
                    StoreError::NoSpace { path: file.clone() }
                }
                e => StoreError::Backend(format!("{}: {e}", file.display())),
            })
        })
    }

    /// Opens over a backend of the caller's, called again for every reopen; for fault injection.
    ///
    /// # Errors
    /// As [`EmbeddedStore::open`].
    pub fn open_with_backend<B: redb::StorageBackend>(
        backend: impl Fn() -> B + Send + Sync + 'static,
        options: EmbeddedOptions,
    ) -> Result<Self, StoreError> {
        let opener = move || {
            Database::builder()
                .set_cache_size(options.cache_bytes)
                .create_with_backend(backend())
                .map_err(|e| StoreError::Backend(e.to_string()))
        };
        Self::with_opener(PathBuf::from("store.redb"), Box::new(opener))
    }

    fn with_opener(path: PathBuf, opener: Opener) -> Result<Self, StoreError> {
        let database = Arc::new(opener()?);
        let handle = Arc::new(Handle { current: RwLock::new(Some(database.clone())), opener, path });
        let revision = table::initialise(&database, &handle)?;
        let history = History::new(revision, Limits::default());
        let (jobs, queue) = tokio::sync::mpsc::channel(QUEUE_MAX);
        let writer = Writer { handle: handle.clone(), history: history.clone(), queue };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|e| StoreError::Backend(format!("cannot start the store's writer thread: {e}")))?;
        Ok(Self { handle, history, jobs: Some(jobs), thread: Mutex::new(Some(thread)) })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.jobs = None;
        self.history.close();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let (reply, outcome) = tokio::sync::oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(Job { txn, reply }).await.map_err(|_| StoreError::Closed)?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let database = self.handle.get().map_err(|_| redb::Error::DatabaseClosed)?;
            let table = database.begin_read()?.open_table(KV)?;
            Ok(table.get(key)?.map(|v| table::decode(Bytes::copy_from_slice(key), v.value())))
        };
        read().map_err(|e| self.handle.storage_error(e))?.transpose()
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        let database = self.handle.get()?;
        let transaction = database.begin_read().map_err(|e| self.handle.storage_error(e.into()))?;
        let at = table::revision(&transaction).map_err(|e| self.handle.storage_error(e))?;
        // A commit becomes readable an instant before it is published; undoing needs it published.
        self.history.wait_for(at).await;
        let handle = self.handle.clone();
        let history = self.history.clone();
        tokio::task::spawn_blocking(move || table::range(&transaction, &handle, &history, &range, at))
            .await
            .map_err(|e| StoreError::Backend(format!("range read: {e}")))?
    }

    async fn watch(&self, prefix: Bytes, from: Option<Revision>) -> Result<Box<dyn Watch>, StoreError> {
        self.history.watch(prefix, from)
    }

    fn revision(&self) -> Revision {
        self.history.revision()
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.history.compact(revision)
    }

    fn size_bytes(&self) -> u64 {
        // A store over a caller's backend has no file to measure.
        std::fs::metadata(&self.handle.path).map_or(0, |m| m.len())
    }
}
