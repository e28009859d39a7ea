//! Recent history in memory: the ring of committed batches, and the watchers fed from it. Shared by all backends.

use crate::{Event, KeyValue, Revision, StoreError, Watch, WatchBatch};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Batches a watcher may lag behind before it is closed. One batch is one transaction; at 10,000 writes a second this
/// forgives a stall of about 400 ms, after which reading anew is cheaper than catching up.
const WATCHER_LAG_MAX: usize = 4096;

/// How much history to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most batches held.
    pub batches_max: usize,
    /// Most bytes of keys and values held.
    pub bytes_max: usize,
}

impl Default for Limits {
    /// The API server's watch caches keep their own, longer rings; this one only bridges restarts of a watch.
    fn default() -> Self {
        Self { batches_max: 8192, bytes_max: 4 << 20 }
    }
}

struct Watcher {
    prefix: Bytes,
    sender: mpsc::Sender<WatchBatch>,
}

struct Inner {
    revision: Revision,
    /// Changes with a revision greater than this are held.
    compacted: Revision,
    batches: VecDeque<WatchBatch>,
    bytes: usize,
    watchers: Vec<Watcher>,
    closed: bool,
}

/// History and fan-out. All methods are short and lock one mutex.
pub(crate) struct History {
    inner: Mutex<Inner>,
    limits: Limits,
    published: tokio::sync::watch::Sender<Revision>,
}

fn weight(batch: &WatchBatch) -> usize {
    batch
        .events
        .iter()
        .map(|e| {
            e.key.len()
                + e.value.as_ref().map_or(0, |v| v.value.len())
                + e.previous.as_ref().map_or(0, |v| v.value.len())
        })
        .sum()
}

fn select(batch: &WatchBatch, prefix: &[u8]) -> Option<WatchBatch> {
    let hits = batch.events.iter().filter(|e| e.key.starts_with(prefix)).count();
    if hits == 0 {
        return None;
    }
    if hits == batch.events.len() {
        return Some(batch.clone());
    }
    let events = batch.events.iter().filter(|e| e.key.starts_with(prefix)).cloned().collect();
    Some(WatchBatch { revision: batch.revision, events })
}

impl History {
    /// Empty history that starts after `revision`.
    pub fn new(revision: Revision, limits: Limits) -> Arc<Self> {
        let inner = Inner {
            revision,
            compacted: revision,
            batches: VecDeque::new(),
            bytes: 0,
            watchers: Vec::new(),
            closed: false,
        };
        Arc::new(Self { inner: Mutex::new(inner), limits, published: tokio::sync::watch::Sender::new(revision) })
    }

    /// The last published revision.
    pub fn revision(&self) -> Revision {
        self.inner.lock().revision
    }

    /// Waits until `revision` is published.
    pub async fn wait_for(&self, revision: Revision) {
        let mut receiver = self.published.subscribe();
        // The sender lives in self, so this can only end by reaching the revision.
        let _ = receiver.wait_for(|r| *r >= revision).await;
    }

    /// Appends a committed batch and hands it to the watchers. Revisions must come in order without gaps.
    pub fn publish(&self, revision: Revision, events: Vec<Event>) {
        let batch = WatchBatch { revision, events: events.into() };
        let mut inner = self.inner.lock();
        assert_eq!(revision, inner.revision + 1, "batches are published in order, without gaps");
        inner.revision = revision;
        inner.bytes += weight(&batch);
        inner.watchers.retain(|w| match select(&batch, &w.prefix) {
            // A full or closed queue drops the sender, which the watcher sees as its end.
            Some(b) => w.sender.try_send(b).is_ok(),
            None => !w.sender.is_closed(),
        });
        inner.batches.push_back(batch);
        while inner.batches.len() > self.limits.batches_max || inner.bytes > self.limits.bytes_max {
            let Some(old) = inner.batches.pop_front() else {
                break;
            };
            inner.bytes -= weight(&old);
            inner.compacted = old.revision;
        }
        drop(inner);
        self.published.send_replace(revision);
    }

    /// Forgets batches before `revision`.
    pub fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        if revision > inner.revision {
            return Err(StoreError::FutureRevision { asked: revision, current: inner.revision });
        }
        while inner.batches.front().is_some_and(|b| b.revision < revision) {
            if let Some(old) = inner.batches.pop_front() {
                inner.bytes -= weight(&old);
            }
        }
        inner.compacted = inner.compacted.max(revision.saturating_sub(1));
        Ok(())
    }

    /// The oldest revision that can still be read.
    fn oldest(inner: &Inner) -> Revision {
        inner.compacted
    }

    /// Turns a consistent view at `at` (published already) into the view at `asked` by undoing what came between.
    /// `undo` is called newest change first with the key and the state before it.
    pub fn rewind(
        &self,
        asked: Revision,
        at: Revision,
        mut undo: impl FnMut(&Bytes, Option<&KeyValue>),
    ) -> Result<(), StoreError> {
        let inner = self.inner.lock();
        if asked > inner.revision {
            return Err(StoreError::FutureRevision { asked, current: inner.revision });
        }
        if asked < Self::oldest(&inner) {
            return Err(StoreError::Compacted { oldest: Self::oldest(&inner) });
        }
        for batch in inner.batches.iter().rev().skip_while(|b| b.revision > at).take_while(|b| b.revision > asked) {
            for event in batch.events.iter().rev() {
                undo(&event.key, event.previous.as_ref());
            }
        }
        Ok(())
    }

    /// Starts a watch.
    pub fn watch(self: &Arc<Self>, prefix: Bytes, from: Option<Revision>) -> Result<Box<dyn Watch>, StoreError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(StoreError::Closed);
        }
        let from = from.unwrap_or(inner.revision + 1);
        if from <= inner.compacted && from <= inner.revision {
            return Err(StoreError::Compacted { oldest: Self::oldest(&inner) });
        }
        let backlog: VecDeque<WatchBatch> =
            inner.batches.iter().filter(|b| b.revision >= from).filter_map(|b| select(b, &prefix)).collect();
        let (sender, receiver) = mpsc::channel(WATCHER_LAG_MAX);
        inner.watchers.push(Watcher { prefix, sender });
        Ok(Box::new(HistoryWatch { history: self.clone(), backlog, receiver, from }))
    }

    /// Ends all watches and refuses new ones.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.watchers.clear();
    }
}

struct HistoryWatch {
    history: Arc<History>,
    backlog: VecDeque<WatchBatch>,
    receiver: mpsc::Receiver<WatchBatch>,
    from: Revision,
}

#[async_trait]
impl Watch for HistoryWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        if let Some(batch) = self.backlog.pop_front() {
            return Ok(batch);
        }
        loop {
            match self.receiver.recv().await {
                // A watch may start at a future revision; what comes before it is not its business.
                Some(batch) if batch.revision < self.from => {}
                Some(batch) => return Ok(batch),
                None if self.history.inner.lock().closed => return Err(StoreError::Closed),
                None => return Err(StoreError::WatcherTooSlow),
            }
        }
    }
}

/// The successful outcome of evaluating a transaction: what each write does.
pub(crate) fn events_of(
    txn: &crate::Txn,
    revision: Revision,
    mut current: impl FnMut(&[u8]) -> Result<Option<KeyValue>, StoreError>,
) -> Result<Vec<Event>, StoreError> {
    let mut events = Vec::with_capacity(txn.writes.len());
    for write in &txn.writes {
        let previous = current(write.key())?;
        match write {
            crate::Write::Put(key, value) => {
                let (create_revision, version) =
                    previous.as_ref().map_or((revision, 1), |p| (p.create_revision, p.version + 1));
                let next = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision,
                    mod_revision: revision,
                    version,
                };
                events.push(Event { key: key.clone(), revision, value: Some(next), previous });
            }
            crate::Write::Delete(key) => {
                if previous.is_some() {
                    events.push(Event { key: key.clone(), revision, value: None, previous });
                }
            }
        }
    }
    Ok(events)
}

/// Whether `found` satisfies `compare`.
pub(crate) fn holds(compare: &crate::Compare, found: Option<&KeyValue>) -> bool {
    match compare {
        crate::Compare::Absent(_) => found.is_none(),
        crate::Compare::ModRevision(_, revision) => found.is_some_and(|kv| kv.mod_revision == *revision),
    }
}

/// The key a compare looks at.
pub(crate) fn compared_key(compare: &crate::Compare) -> &Bytes {
    match compare {
        crate::Compare::Absent(k) | crate::Compare::ModRevision(k, _) => k,
    }
}
