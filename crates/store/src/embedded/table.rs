//! Layout of the redb file: table `kv` (key → 24-byte header and value), table `meta` (`format`, `revision`).

use super::{FORMAT, Handle};
use crate::history::History;
use crate::{KeyValue, Range, RangeResult, Revision, StoreError};
use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase, TableDefinition};
use std::collections::BTreeMap;

/// Current objects: create revision, mod revision and version (u64 little endian each), then the value.
pub(super) const KV: TableDefinition<&[u8], &[u8]> = TableDefinition::new("kv");
/// `format` and `revision`.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

const HEADER: usize = 24;

/// Encodes header and value.
pub(super) fn encode(kv: &KeyValue) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + kv.value.len());
    for n in [kv.create_revision, kv.mod_revision, kv.version] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(&kv.value);
    out
}

/// Decodes what [`encode`] wrote.
pub(super) fn decode(key: Bytes, stored: &[u8]) -> Result<KeyValue, StoreError> {
    let number = |i: usize| stored.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    match (number(0), number(1), number(2)) {
        (Some(create_revision), Some(mod_revision), Some(version)) => Ok(KeyValue {
            key,
            value: Bytes::copy_from_slice(&stored[HEADER..]),
            create_revision,
            mod_revision,
            version,
        }),
        _ => Err(StoreError::Backend(format!(
            "record {:?} is shorter than its header ({} bytes)",
            String::from_utf8_lossy(&key),
            stored.len()
        ))),
    }
}

/// Creates the tables where absent, checks the format, and returns it and the revision.
pub(super) fn initialise(database: &Database, handle: &Handle) -> Result<(u64, Revision), StoreError> {
    let run = || -> Result<(u64, Revision), redb::Error> {
        let transaction = database.begin_read()?;
        match transaction.open_table(META) {
            Ok(meta) => {
                let read = |k: &str| -> Result<Option<u64>, redb::Error> { Ok(meta.get(k)?.map(|v| v.value())) };
                return Ok((read("format")?.unwrap_or(FORMAT), read("revision")?.unwrap_or(0)));
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(e) => return Err(e.into()),
        }
        drop(transaction);
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("format", FORMAT)?;
            meta.insert("revision", 0)?;
            transaction.open_table(KV)?;
        }
        transaction.commit()?;
        Ok((FORMAT, 0))
    };
    let (format, revision) = run().map_err(|e| handle.storage_error(e))?;
    if format > FORMAT {
        let path = handle.path.parent().unwrap_or(&handle.path).to_owned();
        return Err(StoreError::NewerFormat { path, found: format, known: FORMAT });
    }
    Ok((format, revision))
}

/// Notes that the file is of the present format, in which the newest writes may be in the log alone.
pub(super) fn upgrade(database: &Database, handle: &Handle) -> Result<(), StoreError> {
    let run = || -> Result<(), redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        transaction.open_table(META)?.insert("format", FORMAT)?;
        transaction.commit()?;
        Ok(())
    };
    run().map_err(|e| handle.storage_error(e))
}

/// The revision a read transaction sees.
pub(super) fn revision(transaction: &ReadTransaction) -> Result<Revision, redb::Error> {
    let meta = transaction.open_table(META)?;
    Ok(meta.get("revision")?.map_or(0, |v| v.value()))
}

/// Reads a range at revision `at` out of a transaction and what the tree did not have yet when it began.
pub(super) fn range(
    transaction: &ReadTransaction,
    recent: BTreeMap<Bytes, Option<KeyValue>>,
    handle: &Handle,
    history: &History,
    range: &Range,
    at: Revision,
) -> Result<RangeResult, StoreError> {
    let revision = range.revision.unwrap_or(at);
    // Keys whose state is another than the tree's: recent ones, and those changed after the revision asked for.
    let mut undone = recent;
    if revision != at {
        history.rewind(revision, at, |key, before| {
            if key.starts_with(&range.prefix) {
                undone.insert(key.clone(), before.cloned());
            }
        })?;
    }
    let start = range.start.as_ref().filter(|s| **s > range.prefix).unwrap_or(&range.prefix);
    undone.retain(|k, _| k >= start);
    let mut undone = undone.into_iter().peekable();
    let mut items: Vec<KeyValue> = Vec::new();
    let full = |items: &Vec<KeyValue>| range.limit != 0 && items.len() > range.limit;
    let wrap = |e: redb::Error| handle.storage_error(e);

    let table = transaction.open_table(KV).map_err(|e| wrap(e.into()))?;
    for entry in table.range(start.as_ref()..).map_err(|e| wrap(e.into()))? {
        let (key, value) = entry.map_err(|e| wrap(e.into()))?;
        let key = key.value();
        if !key.starts_with(&range.prefix) {
            break;
        }
        while let Some((_, before)) = undone.next_if(|(k, _)| k.as_ref() < key) {
            items.extend(before);
        }
        match undone.next_if(|(k, _)| k.as_ref() == key) {
            Some((_, before)) => items.extend(before),
            None => items.push(decode(Bytes::copy_from_slice(key), value.value())?),
        }
        if full(&items) {
            break;
        }
    }
    for (_, before) in undone {
        if full(&items) {
            break;
        }
        items.extend(before);
    }
    let more = full(&items);
    if more {
        items.truncate(range.limit);
    }
    Ok(RangeResult { items, more, revision })
}
