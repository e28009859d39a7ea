//! A store that dies after so many writes, as its process would: whatever was acknowledged is there, nothing more is
//! written, read or told. What it stood on lives, for the next one.

use async_trait::async_trait;
use bytes::Bytes;
use gantry_store::{KeyValue, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, Watch};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// One life of a store.
pub struct Mortal {
    under: Arc<dyn Store>,
    /// Writes that are left; None is for ever.
    left: Mutex<Option<u64>>,
    dead: CancellationToken,
}

impl Mortal {
    /// A life of `writes` writes over `under`; without end where it is None.
    #[must_use]
    pub fn new(under: Arc<dyn Store>, writes: Option<u64>) -> Self {
        let mortal = Self { under, left: Mutex::new(writes), dead: CancellationToken::new() };
        if writes == Some(0) {
            mortal.dead.cancel();
        }
        mortal
    }

    /// Cancelled with the last write.
    #[must_use]
    pub fn death(&self) -> &CancellationToken {
        &self.dead
    }

    fn alive(&self) -> Result<(), StoreError> {
        if self.dead.is_cancelled() { Err(StoreError::Closed) } else { Ok(()) }
    }
}

struct MortalWatch {
    under: Box<dyn Watch>,
    dead: CancellationToken,
}

#[async_trait]
impl Watch for MortalWatch {
    async fn next(&mut self) -> Result<gantry_store::WatchBatch, StoreError> {
        tokio::select! {
            biased;
            () = self.dead.cancelled() => Err(StoreError::Closed),
            batch = self.under.next() => batch,
        }
    }
}

#[async_trait]
impl Store for Mortal {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.alive()?;
        let before = self.under.revision();
        let outcome = self.under.txn(txn).await?;
        if matches!(outcome, TxnOutcome::Applied(revision) if revision > before)
            && let Some(left) = self.left.lock().as_mut()
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.dead.cancel();
            }
        }
        Ok(outcome)
    }

    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        self.alive()?;
        self.under.get(key).await
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        self.alive()?;
        self.under.range(range).await
    }

    async fn watch(&self, prefix: Bytes, from: Option<Revision>) -> Result<Box<dyn Watch>, StoreError> {
        self.alive()?;
        let under = self.under.watch(prefix, from).await?;
        Ok(Box::new(MortalWatch { under, dead: self.dead.clone() }))
    }

    fn revision(&self) -> Revision {
        self.under.revision()
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.alive()?;
        self.under.compact(revision).await
    }

    fn size_bytes(&self) -> u64 {
        self.under.size_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_store::{MemoryStore, Write};

    #[tokio::test]
    async fn the_last_write_is_kept_and_nothing_follows_it() {
        let under: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let put = |key: &'static str| Txn { compares: vec![], writes: vec![Write::Put(key.into(), "v".into())] };
        let first = Mortal::new(under.clone(), Some(2));
        let mut watch = first.watch(Bytes::new(), None).await.unwrap();
        first.txn(put("a")).await.unwrap();
        assert_eq!(watch.next().await.unwrap().revision, 1);
        assert!(!first.death().is_cancelled());
        first.txn(put("b")).await.unwrap();
        assert!(first.death().is_cancelled());
        assert!(matches!(first.txn(put("c")).await, Err(StoreError::Closed)));
        assert!(matches!(first.get(b"a").await, Err(StoreError::Closed)));
        assert!(matches!(watch.next().await, Err(StoreError::Closed)));
        let second = Mortal::new(under, None);
        assert!(second.get(b"b").await.unwrap().is_some() && second.get(b"c").await.unwrap().is_none());
    }
}
