//! What every store must do, run on each implementation.

use bytes::Bytes;
use gantry_store::{
    Compare, EmbeddedOptions, EmbeddedStore, MemoryStore, Range, Store, StoreError, Txn, TxnOutcome, Write,
};
use std::sync::Arc;

fn b(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

fn put(k: &str, v: &str) -> Txn {
    Txn { compares: vec![], writes: vec![Write::Put(b(k), b(v))] }
}

fn delete(k: &str) -> Txn {
    Txn { compares: vec![], writes: vec![Write::Delete(b(k))] }
}

async fn applied(store: &dyn Store, txn: Txn) -> u64 {
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Applied(r) => r,
        other => panic!("expected to be applied: {other:?}"),
    }
}

async fn keys_at(store: &dyn Store, prefix: &str, revision: Option<u64>) -> Vec<(String, String)> {
    let r = store.range(Range { prefix: b(prefix), revision, ..Default::default() }).await.unwrap();
    let text = |x: &Bytes| String::from_utf8(x.to_vec()).unwrap();
    r.items.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

fn pairs(p: &[(&str, &str)]) -> Vec<(String, String)> {
    p.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

async fn counters(store: Arc<dyn Store>) {
    let start = store.revision();
    let r1 = applied(&*store, put("/a", "1")).await;
    let r2 = applied(&*store, put("/a", "2")).await;
    assert_eq!((r1, r2), (start + 1, start + 2));
    let kv = store.get(b"/a").await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, &kv.value[..]), (r1, r2, 2, &b"2"[..]));
    let r3 = applied(&*store, delete("/a")).await;
    assert_eq!(r3, r2 + 1);
    assert_eq!(store.get(b"/a").await.unwrap(), None);
    // Deleting what is not there writes nothing and takes no revision.
    assert_eq!(applied(&*store, delete("/a")).await, r3);
    assert_eq!(store.revision(), r3);
    let r4 = applied(&*store, put("/a", "3")).await;
    let kv = store.get(b"/a").await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.version), (r4, 1));
}

async fn transactions(store: Arc<dyn Store>) {
    let create = |v: &str| Txn {
        compares: vec![Compare::Absent(b("/t/x"))],
        writes: vec![Write::Put(b("/t/x"), b(v)), Write::Put(b("/t/y"), b(v))],
    };
    let r = applied(&*store, create("1")).await;
    match store.txn(create("2")).await.unwrap() {
        TxnOutcome::Failed(found) => assert_eq!(found[0].as_ref().unwrap().mod_revision, r),
        other => panic!("{other:?}"),
    }
    assert_eq!(keys_at(&*store, "/t/", None).await, pairs(&[("/t/x", "1"), ("/t/y", "1")]));
    let update = |at: u64| Txn {
        compares: vec![Compare::ModRevision(b("/t/x"), at)],
        writes: vec![Write::Put(b("/t/x"), b("3")), Write::Delete(b("/t/y"))],
    };
    assert!(matches!(store.txn(update(r + 7)).await.unwrap(), TxnOutcome::Failed(_)));
    applied(&*store, update(r)).await;
    assert_eq!(keys_at(&*store, "/t/", None).await, pairs(&[("/t/x", "3")]));
    let missing = Txn { compares: vec![Compare::ModRevision(b("/t/none"), 1)], writes: vec![] };
    assert_eq!(store.txn(missing).await.unwrap(), TxnOutcome::Failed(vec![None]));
}

async fn paging_and_past_revisions(store: Arc<dyn Store>) {
    for k in ["/p/a", "/p/b", "/p/c", "/p/d", "/q/a"] {
        applied(&*store, put(k, "1")).await;
    }
    let then = store.revision();
    applied(&*store, put("/p/b", "2")).await;
    applied(&*store, delete("/p/c")).await;
    applied(&*store, put("/p/bb", "new")).await;
    let page = store.range(Range { prefix: b("/p/"), start: None, limit: 2, revision: Some(then) }).await.unwrap();
    assert_eq!((page.items.len(), page.more, page.revision), (2, true, then));
    assert_eq!(&page.items[1].value[..], b"1");
    let rest = store
        .range(Range { prefix: b("/p/"), start: Some(b("/p/b\0")), limit: 2, revision: Some(then) })
        .await
        .unwrap();
    let rest: Vec<_> = rest.items.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(rest, vec![b("/p/c"), b("/p/d")]);
    assert_eq!(
        keys_at(&*store, "/p/", None).await,
        pairs(&[("/p/a", "1"), ("/p/b", "2"), ("/p/bb", "new"), ("/p/d", "1")])
    );
    let future = store.range(Range { prefix: b("/p/"), revision: Some(then + 100), ..Default::default() }).await;
    assert!(matches!(future, Err(StoreError::FutureRevision { .. })));
    store.compact(store.revision()).await.unwrap();
    let gone = store.range(Range { prefix: b("/p/"), revision: Some(then), ..Default::default() }).await;
    assert!(matches!(gone, Err(StoreError::Compacted { .. })), "{gone:?}");
    assert!(matches!(store.compact(u64::MAX).await, Err(StoreError::FutureRevision { .. })));
}

async fn watches(store: Arc<dyn Store>) {
    let r1 = applied(&*store, put("/w/a", "1")).await;
    applied(&*store, put("/other", "1")).await;
    let mut from_past = store.watch(b("/w/"), Some(r1)).await.unwrap();
    let mut from_now = store.watch(b("/w/"), None).await.unwrap();
    applied(&*store, put("/w/a", "2")).await;
    let r4 = applied(&*store, delete("/w/a")).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let batch = from_past.next().await.unwrap();
        for e in batch.events.iter() {
            let text = |kv: &Option<gantry_store::KeyValue>| {
                kv.as_ref().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
            };
            assert_eq!(e.revision, batch.revision);
            seen.push((text(&e.previous), text(&e.value)));
        }
    }
    let some = |s: &str| Some(s.to_owned());
    assert_eq!(seen, vec![(None, some("1")), (some("1"), some("2")), (some("2"), None)]);
    assert_eq!(from_now.next().await.unwrap().events.len(), 1);
    assert_eq!(from_now.next().await.unwrap().revision, r4);
    store.compact(store.revision()).await.unwrap();
    assert!(matches!(store.watch(b("/w/"), Some(r1)).await, Err(StoreError::Compacted { .. })));
}

async fn slow_watcher_is_closed(store: Arc<dyn Store>) {
    let mut watch = store.watch(b("/s/"), None).await.unwrap();
    for i in 0..5000 {
        applied(&*store, put("/s/x", &i.to_string())).await;
    }
    let mut received = 0;
    let end = loop {
        match watch.next().await {
            Ok(batch) => {
                assert_eq!(&batch.events[0].value.as_ref().unwrap().value[..], received.to_string().as_bytes());
                received += 1;
            }
            Err(e) => break e,
        }
    };
    assert!(matches!(end, StoreError::WatcherTooSlow), "{end:?}");
    assert!(received > 0);
}

async fn concurrent_writers(store: Arc<dyn Store>) {
    let mut watch = store.watch(b("/c/"), None).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|t| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    loop {
                        let now = store.get(b"/c/counter").await.unwrap();
                        let (n, compare) = match &now {
                            None => (0, Compare::Absent(b("/c/counter"))),
                            Some(kv) => (
                                std::str::from_utf8(&kv.value).unwrap().parse::<u64>().unwrap(),
                                Compare::ModRevision(b("/c/counter"), kv.mod_revision),
                            ),
                        };
                        let txn = Txn {
                            compares: vec![compare],
                            writes: vec![Write::Put(b("/c/counter"), b(&(n + 1).to_string()))],
                        };
                        if matches!(store.txn(txn).await.unwrap(), TxnOutcome::Applied(_)) {
                            break;
                        }
                    }
                }
                t
            })
        })
        .collect();
    for t in tasks {
        t.await.unwrap();
    }
    assert_eq!(&store.get(b"/c/counter").await.unwrap().unwrap().value[..], b"400");
    for n in 1..=400u64 {
        let batch = watch.next().await.unwrap();
        assert_eq!(&batch.events[0].value.as_ref().unwrap().value[..], n.to_string().as_bytes());
    }
}

macro_rules! suite {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn conforms() {
                let (_keep, store): (Box<dyn std::any::Any>, Arc<dyn Store>) = $make;
                counters(store.clone()).await;
                transactions(store.clone()).await;
                paging_and_past_revisions(store.clone()).await;
                watches(store.clone()).await;
                concurrent_writers(store.clone()).await;
                slow_watcher_is_closed(store.clone()).await;
            }
        }
    };
}

suite!(memory, (Box::new(()), Arc::new(MemoryStore::new())));
suite!(embedded, {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(dir.path(), EmbeddedOptions::default()).unwrap());
    (Box::new(dir), store)
});

#[tokio::test]
async fn embedded_reopens_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let open = || EmbeddedStore::open(dir.path(), EmbeddedOptions::default());
    let store = open().unwrap();
    applied(&store, put("/a", "1")).await;
    let revision = applied(&store, put("/b", "2")).await;
    let in_use = open().err().unwrap();
    assert!(matches!(in_use, StoreError::InUse { .. }), "{in_use:?}");
    drop(store);
    let store = open().unwrap();
    assert_eq!(store.revision(), revision);
    assert_eq!(keys_at(&store, "/", None).await, pairs(&[("/a", "1"), ("/b", "2")]));
    // History does not survive, and says so.
    assert!(matches!(store.watch(b("/"), Some(1)).await, Err(StoreError::Compacted { .. })));
    assert!(store.watch(b("/"), Some(revision + 1)).await.is_ok());
}

#[tokio::test]
async fn embedded_is_one_store_while_its_log_turns() {
    let dir = tempfile::tempdir().unwrap();
    let open = || EmbeddedStore::open(dir.path(), EmbeddedOptions { log_bytes: 2000, ..Default::default() }).unwrap();
    let mut expected = std::collections::BTreeMap::new();
    for round in 0..3 {
        let store = open();
        for n in 0..400u32 {
            let key = format!("/turn/{:03}", n * 7 % 101);
            if n % 5 == 4 {
                applied(&store, delete(&key)).await;
                expected.remove(&key);
            } else {
                let value = format!("{round} {n}");
                applied(&store, put(&key, &value)).await;
                expected.insert(key.clone(), value);
            }
            let held = store.get(key.as_bytes()).await.unwrap().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap());
            assert_eq!(held.as_ref(), expected.get(&key));
            if n % 50 == 0 {
                let all: Vec<_> = expected.clone().into_iter().collect();
                assert_eq!(keys_at(&store, "/turn/", None).await, all);
            }
        }
        assert!(std::fs::metadata(dir.path().join("store.log.1")).unwrap().len() > 0, "the log has turned");
    }
    std::fs::remove_file(dir.path().join("store.log.0")).unwrap();
    let error = EmbeddedStore::open(dir.path(), EmbeddedOptions::default()).err().unwrap();
    assert!(error.to_string().contains("store.log.0"), "{error}");
}

#[tokio::test]
async fn embedded_refuses_a_newer_format() {
    let dir = tempfile::tempdir().unwrap();
    drop(EmbeddedStore::open(dir.path(), EmbeddedOptions::default()).unwrap());
    let db = redb::Database::create(dir.path().join("store.redb")).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 99).unwrap();
    txn.commit().unwrap();
    drop(db);
    let error = EmbeddedStore::open(dir.path(), EmbeddedOptions::default()).err().unwrap();
    assert!(matches!(error, StoreError::NewerFormat { found: 99, .. }), "{error:?}");
    assert!(error.to_string().contains("newer version"), "{error}");
}

#[tokio::test]
async fn embedded_refuses_a_file_that_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("store.redb"), vec![7u8; 8192]).unwrap();
    let error = EmbeddedStore::open(dir.path(), EmbeddedOptions::default()).err().unwrap();
    assert!(error.to_string().contains("store.redb"), "names the file: {error}");
}
