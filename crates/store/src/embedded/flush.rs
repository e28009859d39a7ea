//! The thread that moves what is recent into the tree, so that the log file which holds it is free again.

use super::table::{KV, META, encode, revision};
use super::writer::Flushed;
use super::{Handle, Recent};
use crate::{KeyValue, Revision, StoreError};
use bytes::Bytes;
use parking_lot::RwLock;
use redb::ReadableDatabase;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Between tries where the disk refuses; every write that comes meanwhile is in the log.
const RETRY: Duration = Duration::from_secs(1);

/// Changes up to a revision, which the tree gets at once.
pub(super) struct Flush {
    pub changes: Arc<BTreeMap<Bytes, Option<KeyValue>>>,
    pub revision: Revision,
}

/// Serves until the store is dropped. What is unfinished then is in the log.
pub(super) fn run(handle: &Handle, recent: &RwLock<Recent>, flushed: &Flushed, flushes: &Receiver<Flush>) {
    while let Ok(flush) = flushes.recv() {
        loop {
            match apply(handle, &flush) {
                Ok(()) => {
                    recent.write().flushing = None;
                    *flushed.error.lock() = None;
                    flushed.tried.notify_all();
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot write to the store; trying again");
                    *flushed.error.lock() = Some(error);
                    flushed.tried.notify_all();
                    // redb refuses everything after an IO error until it is opened anew.
                    if let Err(error) = handle.reopen() {
                        tracing::error!(%error, "store cannot be reopened; trying again");
                    }
                    // Nothing is sent while this is unfinished, so what ends the wait early is the end of the store.
                    if matches!(flushes.recv_timeout(RETRY), Err(RecvTimeoutError::Disconnected)) {
                        return;
                    }
                }
            }
        }
    }
}

/// Puts the changes into the tree, durably, unless it has them.
///
/// # Errors
/// [`StoreError::NoSpace`], [`StoreError::Backend`].
pub(super) fn apply(handle: &Handle, flush: &Flush) -> Result<(), StoreError> {
    let wrap = |e: redb::Error| handle.storage_error(e);
    let database = handle.get()?;
    // A commit that reported an error may have taken place.
    let transaction = database.begin_read().map_err(|e| wrap(e.into()))?;
    if revision(&transaction).map_err(wrap)? >= flush.revision {
        return Ok(());
    }
    drop(transaction);
    let mut transaction = database.begin_write().map_err(|e| wrap(e.into()))?;
    // Without this, opening after a crash walks the whole file (26 s for 1 GB, against 0.02 s).
    transaction.set_quick_repair(true);
    {
        let mut table = transaction.open_table(KV).map_err(|e| wrap(e.into()))?;
        for (key, value) in &*flush.changes {
            match value {
                Some(kv) => table.insert(key.as_ref(), encode(kv).as_slice()).map(drop),
                None => table.remove(key.as_ref()).map(drop),
            }
            .map_err(|e| wrap(e.into()))?;
        }
        let mut meta = transaction.open_table(META).map_err(|e| wrap(e.into()))?;
        meta.insert("revision", flush.revision).map_err(|e| wrap(e.into()))?;
    }
    transaction.commit().map_err(|e| wrap(e.into()))
}
