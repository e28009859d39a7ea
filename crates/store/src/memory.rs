//! The store in memory, for simulation and tests. Not durable.

use crate::history::{History, Limits, compared_key, events_of, holds};
use crate::{KeyValue, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, Watch};
use async_trait::async_trait;
use bytes::Bytes;
use imbl::OrdMap;
use parking_lot::Mutex;
use std::sync::Arc;

/// A store that lives as long as its value.
pub struct MemoryStore {
    current: Mutex<OrdMap<Bytes, KeyValue>>,
    history: Arc<History>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store at revision 0.
    #[must_use]
    pub fn new() -> Self {
        Self { current: Mutex::new(OrdMap::new()), history: History::new(0, Limits::default()) }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let mut current = self.current.lock();
        let found: Vec<_> = txn.compares.iter().map(|c| current.get(compared_key(c)).cloned()).collect();
        if !txn.compares.iter().zip(&found).all(|(c, f)| holds(c, f.as_ref())) {
            return Ok(TxnOutcome::Failed(found));
        }
        let revision = self.history.revision() + 1;
        let events = events_of(&txn, revision, |k| Ok(current.get(k).cloned()))?;
        if events.is_empty() {
            return Ok(TxnOutcome::Applied(revision - 1));
        }
        for event in &events {
            match &event.value {
                Some(kv) => {
                    current.insert(event.key.clone(), kv.clone());
                }
                None => {
                    current.remove(&event.key);
                }
            }
        }
        self.history.publish(revision, events);
        Ok(TxnOutcome::Applied(revision))
    }

    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.current.lock().get(key).cloned())
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        let (mut map, at) = {
            let current = self.current.lock();
            (current.clone(), self.history.revision())
        };
        let revision = range.revision.unwrap_or(at);
        if revision != at {
            self.history.rewind(revision, at, |key, before| match before {
                Some(kv) => {
                    map.insert(key.clone(), kv.clone());
                }
                None => {
                    map.remove(key);
                }
            })?;
        }
        let start = range.start.as_ref().filter(|s| **s > range.prefix).unwrap_or(&range.prefix).clone();
        let mut items = Vec::new();
        let mut more = false;
        for (key, kv) in map.range(start..) {
            if !key.starts_with(&range.prefix) {
                break;
            }
            if range.limit != 0 && items.len() == range.limit {
                more = true;
                break;
            }
            items.push(kv.clone());
        }
        Ok(RangeResult { items, more, revision })
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
        self.current.lock().iter().map(|(k, v)| (k.len() + v.value.len()) as u64).sum()
    }
}
