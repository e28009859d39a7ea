//! The durable store: a tree of current objects in one file (redb), and a [`log`] of what the tree does not have yet.
//! Recent history is in memory.
//!
//! One thread writes. It takes all transactions that wait, evaluates them one after another, appends them to the log with
//! one fsync, publishes them to watchers and only then answers: group commit. A second thread moves what a full log file
//! holds into the tree, in one transaction. A commit of the tree costs two syncs and a dozen pages; so the writer is several
//! times faster than if each group went there.

mod flush;
mod log;
mod table;
mod writer;

use crate::history::{History, Limits};
use crate::{KeyValue, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, Watch};
use async_trait::async_trait;
use bytes::Bytes;
use flush::Flush;
use log::Log;
use parking_lot::{Mutex, RwLock};
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, StorageBackend};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use table::KV;
use writer::{Flushed, Job, Writer};

/// On-disk layout version written into new files. Bump when the layout changes.
/// 1 had no log.
pub(crate) const FORMAT: u64 = 2;

/// Transactions that may wait for the writer. Beyond this, callers wait to enqueue.
const QUEUE_MAX: usize = 4096;

/// How to open an embedded store.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Bytes of pages redb may keep in memory. Reads are served by the API server's watch caches, so this only needs
    /// to hold the tree's inner pages and what is being written.
    pub cache_bytes: usize,
    /// Bytes of log after which what it holds is moved into the tree. As much may be in memory twice, and is read again
    /// after a crash.
    pub log_bytes: u64,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { cache_bytes: 4 << 20, log_bytes: 4 << 20 }
    }
}

/// A file of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFile {
    /// The tree.
    Tree,
    /// One of the two log files, 0 or 1.
    Log(usize),
}

/// What was written and may not be in the tree yet.
#[derive(Default)]
pub(crate) struct Recent {
    /// By key, since the log file was begun; None where deleted.
    active: BTreeMap<Bytes, Option<KeyValue>>,
    /// Before that, on its way into the tree.
    flushing: Option<Arc<BTreeMap<Bytes, Option<KeyValue>>>>,
    /// The last write.
    revision: Revision,
}

impl Recent {
    /// The state of a key; outer None where the tree has it.
    fn get(&self, key: &[u8]) -> Option<Option<KeyValue>> {
        self.active.get(key).or_else(|| self.flushing.as_ref()?.get(key)).cloned()
    }

    /// The state of the keys that begin with `prefix`.
    fn range(&self, prefix: &[u8]) -> BTreeMap<Bytes, Option<KeyValue>> {
        let maps = self.flushing.as_deref().into_iter().chain([&self.active]);
        let start = Bytes::copy_from_slice(prefix);
        let hits = maps.flat_map(|m| m.range(start.clone()..).take_while(|(k, _)| k.starts_with(prefix)));
        hits.map(|(k, v)| (k.clone(), v.clone())).collect()
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

    fn log_error(&self, error: &io::Error) -> StoreError {
        let path = self.path.with_extension("log");
        match error.kind() {
            io::ErrorKind::StorageFull => StoreError::NoSpace { path },
            _ => StoreError::Backend(format!("{}: {error}", path.display())),
        }
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
    recent: Arc<RwLock<Recent>>,
    jobs: Option<tokio::sync::mpsc::Sender<Job>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Where a store's log files are: beside the tree.
fn log_path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("store.log.{number}"))
}

impl EmbeddedStore {
    /// Opens or creates `DIR/store.redb` and the log files beside it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another process has it open, [`StoreError::NewerFormat`] where a newer version wrote
    /// it, [`StoreError::NoSpace`], [`StoreError::Backend`] naming the file for anything else.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<Self, StoreError> {
        let named = |e: io::Error| StoreError::Backend(format!("{}: {e}", dir.display()));
        std::fs::create_dir_all(dir).map_err(named)?;
        let path = dir.join("store.redb");
        if !path.exists() {
            // A file whose creation was cut short is no database. So it is made under another name, and gets its own once
            // it is whole and on disk; what an earlier try left is thrown away.
            let unfinished = dir.join("store.redb.new");
            for left in [unfinished.clone(), log_path(dir, 0), log_path(dir, 1)] {
                match std::fs::remove_file(&left) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(named(e)),
                    _ => {}
                }
            }
            let opener = Self::file_opener(unfinished.clone(), dir.to_owned(), options.cache_bytes);
            drop(Self::tree(unfinished.clone(), opener)?);
            std::fs::File::open(&unfinished).and_then(|f| f.sync_all()).map_err(named)?;
            Self::log_files(dir, true)?;
            std::fs::rename(&unfinished, &path).map_err(named)?;
            // The new files' directory entries must survive a power cut too.
            std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(named)?;
        }
        let opener = Self::file_opener(path.clone(), dir.to_owned(), options.cache_bytes);
        let tree = Self::tree(path, opener)?;
        let logs = Self::log_files(dir, tree.format < FORMAT)?;
        if tree.format < FORMAT {
            std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(named)?;
        }
        Self::start(tree, logs, &options)
    }

    /// The log files. One that is missing may have held acknowledged writes, so none is made unless told to.
    fn log_files(dir: &Path, create: bool) -> Result<[log::File; 2], StoreError> {
        let open = |number: usize| -> Result<log::File, StoreError> {
            let path = log_path(dir, number);
            let named = |e: io::Error| StoreError::Backend(format!("{}: {e}", path.display()));
            let mut options = std::fs::File::options();
            let file = options.read(true).write(true).create(create).truncate(false).open(&path).map_err(named)?;
            let file = FileBackend::new(file).map_err(|e| StoreError::Backend(format!("{}: {e}", path.display())))?;
            Ok(Box::new(file))
        };
        Ok([open(0)?, open(1)?])
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

    /// Opens over backends of the caller's, that of the tree called again for every reopen; for fault injection.
    ///
    /// # Errors
    /// As [`EmbeddedStore::open`].
    pub fn open_with_backend<B: StorageBackend>(
        backend: impl Fn(StoreFile) -> B + Send + Sync + 'static,
        options: EmbeddedOptions,
    ) -> Result<Self, StoreError> {
        let logs: [log::File; 2] = [Box::new(backend(StoreFile::Log(0))), Box::new(backend(StoreFile::Log(1)))];
        let cache = options.cache_bytes;
        let opener = move || {
            Database::builder()
                .set_cache_size(cache)
                .create_with_backend(backend(StoreFile::Tree))
                .map_err(|e| StoreError::Backend(e.to_string()))
        };
        Self::start(Self::tree(PathBuf::from("store.redb"), Box::new(opener))?, logs, &options)
    }

    fn tree(path: PathBuf, opener: Opener) -> Result<Tree, StoreError> {
        let database = Arc::new(opener()?);
        let handle = Arc::new(Handle { current: RwLock::new(Some(database.clone())), opener, path });
        let (format, revision) = table::initialise(&database, &handle)?;
        Ok(Tree { handle, format, revision })
    }

    fn start(tree: Tree, logs: [log::File; 2], options: &EmbeddedOptions) -> Result<Self, StoreError> {
        let Tree { handle, format, revision } = tree;
        let mut recent = Recent { revision, ..Recent::default() };
        let log = Log::open(logs, &mut recent).map_err(|e| handle.log_error(&e))?;
        if format < FORMAT {
            table::upgrade(&*handle.get()?, &handle)?;
        }
        // With what the logs held in the tree, both are free.
        let changes = Arc::new(std::mem::take(&mut recent.active));
        flush::apply(&handle, &Flush { changes, revision: recent.revision })?;

        let history = History::new(recent.revision, Limits::default());
        let recent = Arc::new(RwLock::new(recent));
        let (jobs, queue) = tokio::sync::mpsc::channel(QUEUE_MAX);
        let (flushes, to_flush) = std::sync::mpsc::channel();
        let flushed = Arc::new(Flushed::default());
        let writer = Writer {
            handle: handle.clone(),
            history: history.clone(),
            queue,
            log,
            log_bytes: options.log_bytes,
            recent: recent.clone(),
            flushed: flushed.clone(),
            flushes,
        };
        let thread = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            thread.map_err(|e| StoreError::Backend(format!("cannot start the thread {name}: {e}")))
        };
        let (tree, shared) = (handle.clone(), recent.clone());
        let threads = vec![
            thread("store-writer", Box::new(move || writer.run()))?,
            thread("store-flush", Box::new(move || flush::run(&tree, &shared, &flushed, &to_flush)))?,
        ];
        Ok(Self { handle, history, recent, jobs: Some(jobs), threads: Mutex::new(threads) })
    }
}

/// The tree, opened.
struct Tree {
    handle: Arc<Handle>,
    format: u64,
    revision: Revision,
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.jobs = None;
        self.history.close();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
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
        // Held while the tree is read: what leaves the recent is in the tree before.
        let recent = self.recent.read();
        if let Some(known) = recent.get(key) {
            return Ok(known);
        }
        let read = || -> Result<_, redb::Error> {
            let database = self.handle.get().map_err(|_| redb::Error::DatabaseClosed)?;
            let table = database.begin_read()?.open_table(KV)?;
            Ok(table.get(key)?.map(|v| table::decode(Bytes::copy_from_slice(key), v.value())))
        };
        read().map_err(|e| self.handle.storage_error(e))?.transpose()
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        let (transaction, recent, at) = {
            // Under the lock, so that the tree is not ahead of the revision read at.
            let recent = self.recent.read();
            let transaction = self.handle.get()?.begin_read().map_err(|e| self.handle.storage_error(e.into()))?;
            (transaction, recent.range(&range.prefix), recent.revision)
        };
        // A commit becomes readable an instant before it is published; undoing needs it published.
        self.history.wait_for(at).await;
        let handle = self.handle.clone();
        let history = self.history.clone();
        tokio::task::spawn_blocking(move || table::range(&transaction, recent, &handle, &history, &range, at))
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
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        let dir = self.handle.path.parent().unwrap_or(Path::new("."));
        size(&self.handle.path) + size(&log_path(dir, 0)) + size(&log_path(dir, 1))
    }
}
