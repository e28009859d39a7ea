//! The one thread that writes: group commit.

use super::log::Log;
use super::table::{KV, decode};
use super::{Flush, Handle, Recent};
use crate::history::{History, compared_key, events_of, holds};
use crate::{Event, KeyValue, Revision, StoreError, Txn, TxnOutcome};
use bytes::Bytes;
use parking_lot::{Condvar, RwLock};
use redb::{ReadOnlyTable, ReadableDatabase};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc as blocking;
use tokio::sync::{mpsc, oneshot};

/// Transactions committed with one fsync at most; bounds the latency of the first.
const GROUP_MAX: usize = 512;

/// Where as many transactions came together, more are on their way.
const CROWD: usize = 4;

/// The log may grow to this many times its usual size while the tree lags behind; then writes wait for it.
const LAG_MAX: u64 = 16;

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
    pub log: Log,
    pub log_bytes: u64,
    pub recent: Arc<RwLock<Recent>>,
    /// Told after each try to move what is recent into the tree.
    pub flushed: Arc<Flushed>,
    pub flushes: blocking::Sender<Flush>,
}

/// How the last try to move what is recent into the tree ended.
#[derive(Default)]
pub(super) struct Flushed {
    pub error: parking_lot::Mutex<Option<StoreError>>,
    pub tried: Condvar,
}

/// What a group did, in order.
#[derive(Default)]
struct Group {
    outcomes: Vec<TxnOutcome>,
    published: Vec<(Revision, Vec<Event>)>,
    /// The state after it of the keys it wrote.
    written: HashMap<Bytes, Option<KeyValue>>,
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
            let crowd = jobs.len() >= CROWD;
            self.commit(&mut jobs);
            if crowd {
                // Where the processors are busy with those who will write next, all of them are worth waiting for.
                std::thread::yield_now();
            }
        }
    }

    fn commit(&mut self, jobs: &mut Vec<Job>) {
        match self.apply(jobs) {
            Ok(group) => {
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

    fn apply(&mut self, jobs: &[Job]) -> Result<Group, StoreError> {
        self.make_room()?;
        let group = self.evaluate(jobs)?;
        if !group.published.is_empty() {
            self.log.append(&group.published).map_err(|e| self.handle.log_error(&e))?;
            let mut recent = self.recent.write();
            recent.revision += group.published.len() as u64;
            for event in group.published.iter().flat_map(|(_, events)| events) {
                recent.active.insert(event.key.clone(), event.value.clone());
            }
        }
        Ok(group)
    }

    fn evaluate(&self, jobs: &[Job]) -> Result<Group, StoreError> {
        let mut group = Group { outcomes: Vec::with_capacity(jobs.len()), ..Group::default() };
        let mut next = self.history.revision();
        // Only this thread adds to what is recent, and what leaves it is in the tree before.
        let reader = Reader::new(&self.handle, &self.recent);
        for job in jobs {
            let current = |written: &HashMap<Bytes, Option<KeyValue>>, key: &[u8]| match written.get(key) {
                Some(known) => Ok(known.clone()),
                None => reader.get(key),
            };
            let found: Result<Vec<_>, _> =
                job.txn.compares.iter().map(|c| current(&group.written, compared_key(c))).collect();
            let found = found?;
            if !job.txn.compares.iter().zip(&found).all(|(c, f)| holds(c, f.as_ref())) {
                group.outcomes.push(TxnOutcome::Failed(found));
                continue;
            }
            let events = events_of(&job.txn, next + 1, |key| current(&group.written, key))?;
            if events.is_empty() {
                group.outcomes.push(TxnOutcome::Applied(next));
                continue;
            }
            next += 1;
            for event in &events {
                group.written.insert(event.key.clone(), event.value.clone());
            }
            group.outcomes.push(TxnOutcome::Applied(next));
            group.published.push((next, events));
        }
        Ok(group)
    }

    /// Turns to the other log file where this one is full and the other is free.
    fn make_room(&mut self) -> Result<(), StoreError> {
        if self.log.len() < self.log_bytes {
            return Ok(());
        }
        if self.log.len() >= self.log_bytes * LAG_MAX {
            let mut error = self.flushed.error.lock();
            while self.recent.read().flushing.is_some() {
                if let Some(error) = &*error {
                    return Err(error.clone());
                }
                self.flushed.tried.wait(&mut error);
            }
        }
        let mut recent = self.recent.write();
        if recent.flushing.is_none() {
            let changes = Arc::new(std::mem::take(&mut recent.active));
            recent.flushing = Some(changes.clone());
            // The thread that takes it lives until this one ends.
            let _ = self.flushes.send(Flush { changes, revision: recent.revision });
            drop(recent);
            self.log.turn();
        }
        Ok(())
    }
}

/// The current state of keys, as of one moment.
struct Reader<'a> {
    handle: &'a Handle,
    recent: &'a RwLock<Recent>,
    flushing: Option<Arc<BTreeMap<Bytes, Option<KeyValue>>>>,
    table: std::cell::OnceCell<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

impl<'a> Reader<'a> {
    fn new(handle: &'a Handle, recent: &'a RwLock<Recent>) -> Self {
        let flushing = recent.read().flushing.clone();
        Self { handle, recent, flushing, table: std::cell::OnceCell::new() }
    }

    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        if let Some(known) = self.recent.read().active.get(key) {
            return Ok(known.clone());
        }
        if let Some(known) = self.flushing.as_ref().and_then(|f| f.get(key)) {
            return Ok(known.clone());
        }
        let wrap = |e: redb::Error| self.handle.storage_error(e);
        let table = match self.table.get() {
            Some(table) => table,
            None => {
                let transaction = self.handle.get()?.begin_read().map_err(|e| wrap(e.into()))?;
                let table = transaction.open_table(KV).map_err(|e| wrap(e.into()))?;
                self.table.get_or_init(|| table)
            }
        };
        let found = table.get(key).map_err(|e| wrap(e.into()))?;
        found.map(|v| decode(Bytes::copy_from_slice(key), v.value())).transpose()
    }
}
