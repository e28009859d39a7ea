//! The one thread that writes: group commit.

use super::Handle;
use super::table::{KV, META, decode, encode, revision};
use crate::history::{History, compared_key, events_of, holds};
use crate::{Event, KeyValue, Revision, StoreError, Txn, TxnOutcome};
use bytes::Bytes;
use redb::{ReadableDatabase, ReadableTable};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Transactions committed with one fsync at most; bounds the latency of the first.
const GROUP_MAX: usize = 512;

/// A transaction waiting for its turn.
pub(super) struct Job {
    pub txn: Txn,
    pub reply: oneshot::Sender<Result<TxnOutcome, StoreError>>,
}

/// State of the writer thread.
pub(super) struct Writer {
    pub handle: Arc<Handle>,
    pub history: Arc<History>,
    pub queue: mpsc::Receiver<Job>,
}

/// What a group did, in order.
struct Group {
    outcomes: Vec<TxnOutcome>,
    published: Vec<(Revision, Vec<Event>)>,
}

impl Writer {
    /// Serves jobs until the store is dropped.
    pub fn run(mut self) {
        let mut jobs = Vec::with_capacity(GROUP_MAX);
        while let Some(first) = self.queue.blocking_recv() {
            jobs.push(first);
            while jobs.len() < GROUP_MAX {
                match self.queue.try_recv() {
                    Ok(job) => jobs.push(job),
                    Err(_) => break,
                }
            }
            self.commit(&mut jobs);
        }
    }

    fn commit(&self, jobs: &mut Vec<Job>) {
        let mut group = Group { outcomes: Vec::with_capacity(jobs.len()), published: Vec::new() };
        let result = self.apply(jobs, &mut group).or_else(|error| self.recover(error, &group));
        match result {
            Ok(()) => {
                for (revision, events) in group.published {
                    self.history.publish(revision, events);
                }
                for (job, outcome) in jobs.drain(..).zip(group.outcomes) {
                    // A caller that went away has its write all the same.
                    let _ = job.reply.send(Ok(outcome));
                }
            }
            Err(error) => {
                for job in jobs.drain(..) {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// redb refuses everything after an IO error until reopened. The file then tells whether the commit that reported
    /// the error took place after all; if so it is a success.
    fn recover(&self, error: StoreError, group: &Group) -> Result<(), StoreError> {
        tracing::error!(%error, "store transaction failed; reopening the store");
        let found = self.handle.reopen().and_then(|()| {
            let transaction = self.handle.get()?.begin_read().map_err(|e| self.handle.storage_error(e.into()))?;
            revision(&transaction).map_err(|e| self.handle.storage_error(e))
        });
        match found {
            Ok(found) if group.published.last().is_some_and(|(last, _)| *last == found) => Ok(()),
            Ok(_) => Err(error),
            Err(reopening) => {
                // Without knowing what is on disk nothing more may be written; the next write tries to reopen again.
                tracing::error!(error = %reopening, "store cannot be reopened");
                *self.handle.current.write() = None;
                Err(error)
            }
        }
    }

    fn apply(&self, jobs: &[Job], group: &mut Group) -> Result<(), StoreError> {
        let database = match self.handle.get() {
            Ok(database) => database,
            Err(_) => {
                self.handle.reopen()?;
                let database = self.handle.get()?;
                let transaction = database.begin_read().map_err(|e| self.handle.storage_error(e.into()))?;
                let found = revision(&transaction).map_err(|e| self.handle.storage_error(e))?;
                if found != self.history.revision() {
                    // A write reported as failed took place. Watchers never saw it: only a restart makes caches right again.
                    *self.handle.current.write() = None;
                    return Err(StoreError::Backend(format!(
                        "the store holds revision {found} but {} was acknowledged last; restart to recover",
                        self.history.revision()
                    )));
                }
                database
            }
        };
        let wrap = |e: redb::Error| self.handle.storage_error(e);
        let mut transaction = database.begin_write().map_err(|e| wrap(e.into()))?;
        // Without this, opening after a crash walks the whole file (26 s for 1 GB, against 0.02 s).
        transaction.set_quick_repair(true);
        let mut next = self.history.revision();
        {
            let mut table = transaction.open_table(KV).map_err(|e| wrap(e.into()))?;
            for job in jobs {
                let current = |key: &[u8]| -> Result<Option<KeyValue>, StoreError> {
                    let found = table.get(key).map_err(|e| wrap(e.into()))?;
                    found.map(|v| decode(Bytes::copy_from_slice(key), v.value())).transpose()
                };
                let found = job.txn.compares.iter().map(|c| current(compared_key(c))).collect::<Result<Vec<_>, _>>()?;
                if !job.txn.compares.iter().zip(&found).all(|(c, f)| holds(c, f.as_ref())) {
                    group.outcomes.push(TxnOutcome::Failed(found));
                    continue;
                }
                let events = events_of(&job.txn, next + 1, current)?;
                if events.is_empty() {
                    group.outcomes.push(TxnOutcome::Applied(next));
                    continue;
                }
                next += 1;
                for event in &events {
                    match &event.value {
                        Some(kv) => {
                            table.insert(event.key.as_ref(), encode(kv).as_slice()).map_err(|e| wrap(e.into()))?;
                        }
                        None => {
                            table.remove(event.key.as_ref()).map_err(|e| wrap(e.into()))?;
                        }
                    }
                }
                group.outcomes.push(TxnOutcome::Applied(next));
                group.published.push((next, events));
            }
        }
        if group.published.is_empty() {
            transaction.abort().map_err(|e| wrap(e.into()))?;
            return Ok(());
        }
        transaction
            .open_table(META)
            .and_then(|mut meta| meta.insert("revision", next).map(|_| ()).map_err(Into::into))
            .map_err(|e| wrap(e.into()))?;
        transaction.commit().map_err(|e| wrap(e.into()))?;
        Ok(())
    }
}
