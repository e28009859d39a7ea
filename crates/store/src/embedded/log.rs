//! The write-ahead log: where a transaction is made durable, by one append and one sync, before the tree has it.
//!
//! Two files take turns. While one is written, what the other holds is moved into the tree; only when the tree has that on
//! disk is the other begun anew. A file begins with a mark and its generation; then come records, one per transaction:
//! length, checksum, revision, changes. The checksum of a record covers that of the one before, and of the first the
//! generation, so that nothing an earlier generation or a failed append left behind can pass for a record.

use super::Recent;
use crate::{Event, KeyValue, Revision};
use bytes::{Buf, BufMut, Bytes};
use redb::StorageBackend;
use std::io;

const MARK: &[u8; 8] = b"gantrylg";
const HEADER: u64 = 16;
/// Length and checksum.
const FRAME: usize = 8;
/// An emptied file keeps this much of its size, for overwriting is faster than growing.
const KEEP_MAX: u64 = 16 << 20;

/// Where the bytes of a log file are.
pub(super) type File = Box<dyn StorageBackend>;

/// Both files, one of which is written.
pub(super) struct Log {
    files: [File; 2],
    active: usize,
    generation: u64,
    /// Where the next record goes. At 0 the file has not been begun.
    tail: u64,
    checksum: u32,
}

/// The keys that a transaction changed, with their state after it.
type Changes = Vec<(Bytes, Option<KeyValue>)>;

/// The records of one file, in order.
struct Records {
    generation: u64,
    records: Vec<(Revision, Changes)>,
}

impl Log {
    /// Opens both files and puts what they hold beyond the revision of `recent` there, moving it along. The first append
    /// begins one of them anew: before, the tree must have all that.
    ///
    /// # Errors
    /// IO errors; a gap in the revisions, which only damage to the files can make.
    pub fn open(files: [File; 2], recent: &mut Recent) -> io::Result<Self> {
        let mut found = [read(&*files[0])?, read(&*files[1])?];
        let generation = found.iter().map(|f| f.generation).max().unwrap_or(0);
        found.sort_by_key(|f| f.generation);
        for (revision, changes) in found.into_iter().flat_map(|f| f.records) {
            if revision <= recent.revision {
                continue;
            }
            if revision != recent.revision + 1 {
                let message = format!("the log goes from revision {} to {revision}: it is damaged", recent.revision);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            recent.revision = revision;
            recent.active.extend(changes);
        }
        Ok(Self { files, active: 0, generation, tail: 0, checksum: 0 })
    }

    /// Bytes in the file that is written.
    pub fn len(&self) -> u64 {
        self.tail
    }

    /// Begins the other file. The caller knows that the tree holds what was in it.
    pub fn turn(&mut self) {
        self.active = 1 - self.active;
        self.tail = 0;
    }

    /// Appends transactions and syncs them. After an error none of them was appended, and the next append takes their place.
    ///
    /// # Errors
    /// IO errors, a full disk among them.
    pub fn append(&mut self, group: &[(Revision, Vec<Event>)]) -> io::Result<()> {
        let file = &*self.files[self.active];
        let begins = self.tail == 0;
        let generation = if begins { self.generation + 1 } else { self.generation };
        let mut checksum = if begins { first_checksum(generation) } else { self.checksum };
        let mut out = Vec::with_capacity(4096);
        if begins {
            if file.len()? > KEEP_MAX {
                file.set_len(KEEP_MAX)?;
            }
            out.put_slice(MARK);
            out.put_u64_le(generation);
        }
        for (revision, events) in group {
            let at = out.len();
            out.put_bytes(0, FRAME);
            encode(*revision, events, &mut out);
            checksum = next_checksum(checksum, &out[at + FRAME..]);
            let length = u32::try_from(out.len() - at - FRAME).map_err(|_| io::ErrorKind::FileTooLarge)?;
            out[at..at + 4].copy_from_slice(&length.to_le_bytes());
            out[at + 4..at + FRAME].copy_from_slice(&checksum.to_le_bytes());
        }
        file.write(self.tail, &out)?;
        file.sync_data()?;
        self.tail += out.len() as u64;
        self.generation = generation;
        self.checksum = checksum;
        Ok(())
    }
}

fn first_checksum(generation: u64) -> u32 {
    crc32fast::hash(&generation.to_le_bytes())
}

fn next_checksum(before: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn encode(revision: Revision, events: &[Event], out: &mut Vec<u8>) {
    // Lengths fit: a request is a few MiB.
    let length = |bytes: &Bytes| bytes.len() as u32;
    out.put_u64_le(revision);
    out.put_u32_le(events.len() as u32);
    for event in events {
        out.put_u8(u8::from(event.value.is_some()));
        out.put_u32_le(length(&event.key));
        out.put_slice(&event.key);
        if let Some(kv) = &event.value {
            out.put_u64_le(kv.create_revision);
            out.put_u64_le(kv.version);
            out.put_u32_le(length(&kv.value));
            out.put_slice(&kv.value);
        }
    }
}

fn bytes(from: &mut &[u8]) -> Option<Bytes> {
    let length = from.try_get_u32_le().ok()? as usize;
    let (head, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(Bytes::copy_from_slice(head))
}

fn decode(mut from: &[u8]) -> Option<(Revision, Changes)> {
    let from = &mut from;
    let revision = from.try_get_u64_le().ok()?;
    let mut changes = Vec::new();
    for _ in 0..from.try_get_u32_le().ok()? {
        let is_put = from.try_get_u8().ok()? == 1;
        let key = bytes(from)?;
        let value = if is_put {
            let create_revision = from.try_get_u64_le().ok()?;
            let version = from.try_get_u64_le().ok()?;
            let value = bytes(from)?;
            Some(KeyValue { key: key.clone(), value, create_revision, mod_revision: revision, version })
        } else {
            None
        };
        changes.push((key, value));
    }
    Some((revision, changes))
}

/// Reads a file up to where its records end: at what was never written, or what a power cut left half written.
fn read(file: &dyn StorageBackend) -> io::Result<Records> {
    let mut all = vec![0; usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?];
    file.read(0, &mut all)?;
    let mut rest = all.as_slice();
    let mut out = Records { generation: 0, records: Vec::new() };
    if rest.len() < HEADER as usize || &rest[..MARK.len()] != MARK {
        return Ok(out);
    }
    rest.advance(MARK.len());
    out.generation = rest.get_u64_le();
    let mut checksum = first_checksum(out.generation);
    while rest.len() >= FRAME {
        let (length, expected) = (rest.get_u32_le() as usize, rest.get_u32_le());
        let Some((payload, after)) = rest.split_at_checked(length) else { break };
        checksum = next_checksum(checksum, payload);
        if checksum != expected {
            break;
        }
        let Some(record) = decode(payload) else { break };
        out.records.push(record);
        rest = after;
    }
    Ok(out)
}
