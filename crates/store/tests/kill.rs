//! `kill -9` at random points under write load, a hundred times: every acknowledged write is found, and no half one.

#![allow(clippy::disallowed_methods, reason = "the kill must come at a moment of real time")]

use bytes::Bytes;
use gantry_store::{EmbeddedOptions, EmbeddedStore, Range, Store, Txn, Write};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const DIR: &str = "GANTRY_TEST_KILL_DIR";

/// Body of the child process: four writers, each acknowledged write printed.
fn write_forever(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(EmbeddedStore::open(dir, EmbeddedOptions::default()).unwrap());
        let first = store.revision();
        let writers: Vec<_> = (0..4)
            .map(|w| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0u64.. {
                        let value = Bytes::from(format!("{:0>1000}", first * 1000 + n));
                        let key = |side: &str| Bytes::from(format!("/{side}/{w}/{:03}", n % 100));
                        let writes = vec![Write::Put(key("l"), value.clone()), Write::Put(key("r"), value)];
                        store.txn(Txn { compares: vec![], writes }).await.unwrap();
                        let line = format!("{w} {:03} {}\n", n % 100, first * 1000 + n);
                        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                    }
                })
            })
            .collect();
        for w in writers {
            w.await.unwrap();
        }
    });
}

#[test]
fn every_acknowledged_write_survives_a_hundred_kills() {
    if let Some(dir) = std::env::var_os(DIR) {
        write_forever(Path::new(&dir));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = std::collections::BTreeMap::<String, u64>::new();
    let mut writes = 0usize;
    for round in 0u64..100 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_acknowledged_write_survives_a_hundred_kills", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
        // Spread over opening, first writes and steady load.
        std::thread::sleep(Duration::from_millis(3 + (round * 37) % 120));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let parts: Vec<_> = line.split(' ').collect();
            // Lines of the test runner itself, and a last line cut short by the kill, are not acknowledgements.
            if let [w, slot, n] = parts[..]
                && w.len() == 1
                && slot.len() == 3
                && let Ok(n) = n.parse()
            {
                acknowledged.insert(format!("{w}/{slot}"), n);
                writes += 1;
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(async {
            let store = EmbeddedStore::open(dir.path(), EmbeddedOptions::default()).unwrap();
            store.range(Range { prefix: Bytes::from_static(b"/"), ..Default::default() }).await.unwrap().items
        });
        let side = |side: &str| -> std::collections::BTreeMap<String, u64> {
            found
                .iter()
                .filter_map(|kv| {
                    let key = std::str::from_utf8(&kv.key).unwrap().strip_prefix(side)?.to_owned();
                    Some((key, std::str::from_utf8(&kv.value).unwrap().parse().unwrap()))
                })
                .collect()
        };
        let (left, right) = (side("/l/"), side("/r/"));
        assert_eq!(left, right, "round {round}: half a transaction");
        for (key, n) in &acknowledged {
            let held = left.get(key).copied();
            assert!(held >= Some(*n), "round {round}: {key}: acknowledged {n}, found {held:?}");
        }
    }
    assert!(writes > 1000, "the children made progress: {writes}");
}
