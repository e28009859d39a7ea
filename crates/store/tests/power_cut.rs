//! Power cuts under the embedded store: writes since the last sync are kept, lost or torn at random. Every acknowledged
//! transaction must be there afterwards, and no half one.

use bytes::Bytes;
use gantry_store::{EmbeddedOptions, EmbeddedStore, Range, Store, StoreError, StoreFile, Txn, TxnOutcome, Write};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::io;
use std::sync::Arc;

/// A disk with a write-back cache, and the store's three files on it.
#[derive(Debug, Default)]
struct Disk {
    files: [File; 3],
    /// Operations left until the power goes; afterwards all fail.
    fuse: Option<u64>,
    /// Whether the disk is full: growing fails.
    full: bool,
}

#[derive(Debug, Default)]
struct File {
    /// What would be read back while powered.
    live: Vec<u8>,
    /// What was synced.
    durable: Vec<u8>,
    /// Writes since the last sync: offset and data; `None` data is a change of length to offset.
    unsynced: Vec<(u64, Option<Vec<u8>>)>,
}

impl Disk {
    fn burn(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => Err(io::Error::other("power is off")),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn grow(&self, file: usize, to: u64) -> io::Result<()> {
        let grows = to > self.files[file].live.len() as u64;
        if self.full && grows { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// Power comes back.
    fn cut(&mut self, rng: &mut StdRng) {
        for file in &mut self.files {
            file.cut(rng);
        }
        self.fuse = None;
    }
}

impl File {
    fn sync(&mut self) {
        self.durable = self.live.clone();
        self.unsynced.clear();
    }

    fn apply(image: &mut Vec<u8>, offset: u64, data: Option<&[u8]>) {
        let offset = usize::try_from(offset).unwrap();
        match data {
            None => image.resize(offset, 0),
            Some(data) => {
                if image.len() < offset + data.len() {
                    image.resize(offset + data.len(), 0);
                }
                image[offset..offset + data.len()].copy_from_slice(data);
            }
        }
    }

    /// Each unsynced write was kept, lost, or torn at a sector boundary.
    fn cut(&mut self, rng: &mut StdRng) {
        let mut image = std::mem::take(&mut self.durable);
        for (offset, data) in self.unsynced.drain(..) {
            match (rng.random_range(0..3), &data) {
                (0, _) => {}
                (1, Some(d)) if d.len() > 512 => {
                    let sectors = rng.random_range(1..=d.len() / 512);
                    Self::apply(&mut image, offset, Some(&d[..(sectors * 512).min(d.len())]));
                }
                _ => Self::apply(&mut image, offset, data.as_deref()),
            }
        }
        self.live = image.clone();
        self.durable = image;
    }
}

#[derive(Debug, Clone)]
struct Backend(Arc<Mutex<Disk>>, usize);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().files[self.1].live.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock();
        let offset = usize::try_from(offset).unwrap();
        let from = disk.files[self.1].live.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.burn()?;
        disk.grow(self.1, len)?;
        let file = &mut disk.files[self.1];
        File::apply(&mut file.live, len, None);
        file.unsynced.push((len, None));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.burn()?;
        disk.files[self.1].sync();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.burn()?;
        disk.grow(self.1, offset + data.len() as u64)?;
        let file = &mut disk.files[self.1];
        File::apply(&mut file.live, offset, Some(data));
        file.unsynced.push((offset, Some(data.to_vec())));
        Ok(())
    }
}

/// A store whose log is full after a few dozen transactions.
fn open(disk: &Arc<Mutex<Disk>>) -> Result<EmbeddedStore, StoreError> {
    let disk = disk.clone();
    let backend = move |file| match file {
        StoreFile::Tree => Backend(disk.clone(), 0),
        StoreFile::Log(n) => Backend(disk.clone(), 1 + n),
    };
    EmbeddedStore::open_with_backend(backend, EmbeddedOptions { log_bytes: 64 << 10, ..EmbeddedOptions::default() })
}

fn pair(n: u64) -> Txn {
    let value = Bytes::from(format!("{n:0>900}"));
    let key = |side: &str| Bytes::from(format!("/{side}/{:04}", n % 50));
    Txn { compares: vec![], writes: vec![Write::Put(key("left"), value.clone()), Write::Put(key("right"), value)] }
}

async fn values(store: &EmbeddedStore, prefix: &str) -> Vec<(Bytes, u64)> {
    let range = Range { prefix: Bytes::from(prefix.to_owned()), ..Default::default() };
    let items = store.range(range).await.unwrap().items;
    let number = |v: &[u8]| std::str::from_utf8(v).unwrap().parse().unwrap();
    items.iter().map(|kv| (kv.key.slice(prefix.len()..), number(&kv.value))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_transactions_survive_power_cuts_whole() {
    let seed: u64 = std::env::var("GANTRY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_241);
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = Arc::new(Mutex::new(Disk::default()));
    drop(open(&disk).unwrap());
    disk.lock().files.iter_mut().for_each(File::sync);
    let (mut n, mut acknowledged) = (0u64, 0u64);
    for round in 0..120 {
        let store = open(&disk).unwrap_or_else(|e| panic!("round {round}: does not reopen: {e}"));
        let (left, right) = (values(&store, "/left/").await, values(&store, "/right/").await);
        assert_eq!(left, right, "round {round}: half a transaction");
        let newest = left.iter().map(|(_, v)| *v).max().unwrap_or(0);
        assert!(newest >= acknowledged, "round {round}: lost {acknowledged}, newest is {newest}");
        assert!(newest <= n, "round {round}: a write nobody made");
        n = newest;
        acknowledged = newest;
        disk.lock().fuse = Some(rng.random_range(1..400));
        loop {
            n += 1;
            match store.txn(pair(n)).await {
                Ok(TxnOutcome::Applied(_)) => acknowledged = n,
                Ok(other) => panic!("{other:?}"),
                Err(_) => break,
            }
        }
        drop(store);
        disk.lock().cut(&mut rng);
    }
    assert!(acknowledged > 100, "the test made progress: {acknowledged}");
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_recovers() {
    let disk = Arc::new(Mutex::new(Disk::default()));
    let store = open(&disk).unwrap();
    let mut acknowledged = 0;
    disk.lock().full = true;
    let big = |n: u64| Txn {
        compares: vec![],
        writes: vec![Write::Put(Bytes::from(format!("/big/{n:06}")), Bytes::from(vec![b'x'; 100_000]))],
    };
    let error = loop {
        match store.txn(big(acknowledged)).await {
            Ok(_) => acknowledged += 1,
            Err(e) => break e,
        }
        assert!(acknowledged < 100_000);
    };
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    let held = store.range(Range { prefix: Bytes::from_static(b"/big/"), ..Default::default() }).await.unwrap();
    assert_eq!(held.items.len() as u64, acknowledged);
    disk.lock().full = false;
    assert!(matches!(store.txn(big(acknowledged)).await.unwrap(), TxnOutcome::Applied(_)));
}
