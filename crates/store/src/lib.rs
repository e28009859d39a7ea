//! A durable, ordered key-value store with etcd's semantics: one global revision, per-key create/mod revisions and
//! versions, compare-and-write transactions, reads at a past revision, ordered watches from a revision, compaction.
//! Knows nothing of Kubernetes.
//!
//! What users may rely on:
//! - A [`Store::txn`] that returned `Ok` is durable (for durable backends) before it returns.
//! - Revisions grow by one per successful writing transaction. All changes of one transaction share its revision.
//! - A watch from revision `r` delivers every change with revision `>= r`, in order, each once, or ends with
//!   [`StoreError::Compacted`]; a watcher that falls too far behind ends with [`StoreError::WatcherTooSlow`].

mod embedded;
mod history;
mod memory;

pub use embedded::{EmbeddedOptions, EmbeddedStore, StoreFile};
pub use memory::MemoryStore;

use async_trait::async_trait;
use bytes::Bytes;
use std::path::PathBuf;

/// A point in the store's history; 0 is before the first write.
pub type Revision = u64;

/// A stored key with its value and history counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value. Shared, never copied on read.
    pub value: Bytes,
    /// Revision of the write that created the key (since it was last deleted).
    pub create_revision: Revision,
    /// Revision of the last write.
    pub mod_revision: Revision,
    /// Number of writes since creation, from 1.
    pub version: u64,
}

/// A condition on one key that a transaction requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(Bytes),
    /// The key's mod revision is this.
    ModRevision(Bytes, Revision),
}

/// A write in a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Bytes, Bytes),
    /// Removes a key; no effect where it does not exist.
    Delete(Bytes),
}

impl Write {
    /// The key written.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Write::Put(k, _) | Write::Delete(k) => k,
        }
    }
}

/// Compares and writes that happen together or not at all. At most one write per key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Applied where all compares hold.
    pub writes: Vec<Write>,
}

/// Outcome of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Applied and durable, at this revision.
    Applied(Revision),
    /// A compare failed; for each compare, the key as it is now.
    Failed(Vec<Option<KeyValue>>),
}

/// Which keys to read.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// Only keys that start with this.
    pub prefix: Bytes,
    /// Only keys `>=` this (for continuing a paged read).
    pub start: Option<Bytes>,
    /// At most this many, 0 for all.
    pub limit: usize,
    /// As of this revision; `None` is now.
    pub revision: Option<Revision>,
}

/// Answer of a range read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResult {
    /// In key order.
    pub items: Vec<KeyValue>,
    /// Whether keys beyond `limit` exist.
    pub more: bool,
    /// The revision the read is of.
    pub revision: Revision,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key changed.
    pub key: Bytes,
    /// Revision of the change.
    pub revision: Revision,
    /// State after; `None` where deleted.
    pub value: Option<KeyValue>,
    /// State before; `None` where it did not exist.
    pub previous: Option<KeyValue>,
}

/// All changes of one transaction, or a progress mark (no events) that says all changes up to `revision` were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// Revision of the batch.
    pub revision: Revision,
    /// Changes, in the transaction's order.
    pub events: std::sync::Arc<[Event]>,
}

/// A running watch. Dropping it ends it.
#[async_trait]
pub trait Watch: Send {
    /// The next batch; waits until there is one.
    ///
    /// # Errors
    /// [`StoreError::WatcherTooSlow`] and [`StoreError::Closed`] end the watch.
    async fn next(&mut self) -> Result<WatchBatch, StoreError>;
}

/// The store interface. All methods may be called concurrently.
#[async_trait]
pub trait Store: Send + Sync {
    /// Compares and writes.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::Closed`], [`StoreError::Backend`]. After an error nothing of the transaction is visible.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;
    /// Reads one key as it is now.
    ///
    /// # Errors
    /// [`StoreError::Closed`], [`StoreError::Backend`].
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, StoreError>;
    /// Reads many keys.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] and [`StoreError::FutureRevision`] for an unavailable revision.
    async fn range(&self, range: Range) -> Result<RangeResult, StoreError>;
    /// Watches keys that start with `prefix`, from `from` on (inclusive); `None` watches from the next write.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] where history since `from` is gone.
    async fn watch(&self, prefix: Bytes, from: Option<Revision>) -> Result<Box<dyn Watch>, StoreError>;
    /// The revision of the last write.
    fn revision(&self) -> Revision;
    /// Forgets history before `revision`.
    ///
    /// # Errors
    /// [`StoreError::FutureRevision`].
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
    /// Bytes on disk (or in memory for the memory store).
    fn size_bytes(&self) -> u64;
}

/// What can go wrong.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// History before this revision is gone. Not retryable; read anew.
    #[error("required revision has been compacted (oldest held: {oldest})")]
    Compacted {
        /// Oldest revision still readable.
        oldest: Revision,
    },
    /// The revision asked for has not happened.
    #[error("required revision {asked} is a future revision (current: {current})")]
    FutureRevision {
        /// What was asked for.
        asked: Revision,
        /// The present revision.
        current: Revision,
    },
    /// The watcher did not keep up and was closed. Retryable.
    #[error("watcher did not keep up and was closed")]
    WatcherTooSlow,
    /// The disk is full. Retryable once there is room.
    #[error("no space left on device: {path}")]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Another process holds the directory.
    #[error("data directory {path} is in use by another process")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Written by a newer version.
    #[error("data directory {path} was written by a newer version (format {found}, this binary knows up to {known})")]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Format found.
        found: u64,
        /// Newest format known.
        known: u64,
    },
    /// The store was shut down.
    #[error("store is closed")]
    Closed,
    /// Anything else the backend reports.
    #[error("store backend: {0}")]
    Backend(String),
}
