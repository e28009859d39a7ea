//! Transactions: everything in a batch happens, or nothing does.

use super::{
    rule::{Rule, write_verdict},
    table::{BaseChain, Element, ElementData, MapData, Set, Table, kind_and_length},
    wire::{ACK, APPEND, CREATE, EXCL, Writer},
};

/// The netfilter subsystem of nf_tables, as the high byte of message types.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`.
const BATCH_BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`.
const BATCH_END: u16 = 0x11;
/// A message's element list is kept below this many bytes: its length field has 16 bits.
const ELEMENTS_PER_MESSAGE: usize = 48 * 1024;

pub(crate) const NEW_TABLE: u16 = 0;
pub(crate) const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
pub(crate) const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;

/// The message type on the wire.
pub(crate) const fn message_type(kind: u16) -> u16 {
    SUBSYSTEM << 8 | kind
}

/// What a message of a batch was about, for errors.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub action: &'static str,
    pub name: String,
}

/// A transaction being written.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    subjects: Vec<Subject>,
    last_message: usize,
    set_ids: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty transaction.
    pub fn new() -> Batch {
        let mut writer = Writer::default();
        writer.begin(BATCH_BEGIN, 0, 0, 0, SUBSYSTEM);
        writer.end();
        Batch { writer, subjects: Vec::new(), last_message: 0, set_ids: 0 }
    }

    /// Whether nothing was put in.
    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    /// How many messages it has.
    pub fn len(&self) -> usize {
        self.subjects.len()
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        self.writer.len()
    }

    /// Sequence numbers of messages start at 1 and index the subjects.
    fn begin(&mut self, kind: u16, flags: u16, table: &Table, action: &'static str, name: &str) {
        self.last_message = self.writer.len();
        let sequence = self.subjects.len() as u32 + 1;
        self.subjects.push(Subject { action, name: format!("{}/{name}", table.name) });
        self.writer.begin(message_type(kind), flags, sequence, table.family.number(), 0);
    }

    /// Makes a table unless it is there.
    pub fn add_table(&mut self, table: &Table) {
        self.begin(NEW_TABLE, CREATE, table, "add table", "");
        self.writer.string(1, &table.name);
        self.writer.end();
    }

    /// Removes a table with all it holds, whether it is there or not.
    pub fn remove_table(&mut self, table: &Table) {
        // Deleting what is not there fails, and "destroy" is too new for some kernels.
        self.add_table(table);
        self.begin(DELETE_TABLE, 0, table, "delete table", "");
        self.writer.string(1, &table.name);
        self.writer.end();
    }

    /// Makes a chain that others jump to.
    pub fn add_chain(&mut self, table: &Table, chain: &str) {
        self.begin(NEW_CHAIN, CREATE, table, "add chain", chain);
        self.writer.string(1, &table.name);
        self.writer.string(3, chain);
        self.writer.end();
    }

    /// Makes a chain that packets enter at a hook.
    pub fn add_base_chain(&mut self, table: &Table, chain: &str, base: BaseChain) {
        self.begin(NEW_CHAIN, CREATE, table, "add chain", chain);
        let w = &mut self.writer;
        w.string(1, &table.name);
        w.string(3, chain);
        let hook = w.open(4);
        w.u32(1, base.hook.number());
        w.attribute(2, &base.priority.to_be_bytes());
        w.close(hook);
        w.u32(5, libc::NF_ACCEPT as u32);
        w.string(7, base.kind.name());
        w.end();
    }

    /// Removes a chain, which must be empty and unused.
    pub fn delete_chain(&mut self, table: &Table, chain: &str) {
        self.begin(DELETE_CHAIN, 0, table, "delete chain", chain);
        self.writer.string(1, &table.name);
        self.writer.string(3, chain);
        self.writer.end();
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        self.begin(NEW_RULE, CREATE | APPEND, table, "add rule to chain", chain);
        let w = &mut self.writer;
        w.string(1, &table.name);
        w.string(2, chain);
        let list = w.open(4);
        w.raw(rule.encoded());
        w.close(list);
        w.end();
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) {
        self.begin(DELETE_RULE, 0, table, "flush chain", chain);
        self.writer.string(1, &table.name);
        self.writer.string(2, chain);
        self.writer.end();
    }

    /// Makes a set or map.
    pub fn add_set(&mut self, table: &Table, set: &Set) {
        self.set_ids += 1;
        let id = self.set_ids;
        self.begin(NEW_SET, CREATE, table, "add set", &set.name);
        let (kind, length) = kind_and_length(&set.key);
        let mut flags = 0;
        if set.interval {
            flags |= 0x4;
        }
        if set.data.is_some() {
            flags |= 0x8;
        }
        if set.dynamic.is_some() {
            flags |= 0x10 | 0x20;
        }
        let w = &mut self.writer;
        w.string(1, &table.name);
        w.string(2, &set.name);
        w.u32(3, flags);
        w.u32(4, kind);
        w.u32(5, length);
        match &set.data {
            Some(MapData::Verdict) => {
                w.u32(6, 0xffff_ff00);
                w.u32(7, 16);
            }
            Some(MapData::Fields(fields)) => {
                let (kind, length) = kind_and_length(fields);
                w.u32(6, kind);
                w.u32(7, length);
            }
            None => {}
        }
        if let Some(size) = set.dynamic {
            let description = w.open(9);
            w.u32(1, size);
            w.close(description);
        }
        w.u32(10, id);
        w.end();
    }

    /// Removes a set, which must be unused.
    pub fn delete_set(&mut self, table: &Table, set: &str) {
        self.begin(DELETE_SET, 0, table, "delete set", set);
        self.writer.string(1, &table.name);
        self.writer.string(2, set);
        self.writer.end();
    }

    /// Adds elements. One that is there with the same data is left alone; with other data it is an error.
    pub fn add_elements<'a>(&mut self, table: &Table, set: &str, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(NEW_ELEMENT, CREATE, table, "add elements to", set, elements);
    }

    /// Adds elements that must not be there yet.
    pub fn create_elements<'a>(&mut self, table: &Table, set: &str, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(NEW_ELEMENT, CREATE | EXCL, table, "create elements in", set, elements);
    }

    /// Removes elements, which must be there; only their keys count.
    pub fn delete_elements<'a>(&mut self, table: &Table, set: &str, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(DELETE_ELEMENT, 0, table, "delete elements from", set, elements);
    }

    /// Removes all elements of a set.
    pub fn flush_set(&mut self, table: &Table, set: &str) {
        self.begin(DELETE_ELEMENT, 0, table, "flush set", set);
        self.writer.string(1, &table.name);
        self.writer.string(2, set);
        self.writer.end();
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        table: &Table,
        action: &'static str,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.begin(kind, flags, table, action, set);
            let w = &mut self.writer;
            w.string(1, &table.name);
            w.string(2, set);
            let list = w.open(3);
            while w.length_of(&list) < ELEMENTS_PER_MESSAGE {
                let Some(element) = elements.next() else {
                    break;
                };
                write_element(w, element, kind == NEW_ELEMENT);
            }
            w.close(list);
            w.end();
        }
    }

    /// Closes the transaction. Asks for an acknowledgement of its last message: the kernel answers after the commit.
    pub(crate) fn finish(mut self) -> (Writer, Vec<Subject>) {
        if !self.subjects.is_empty() {
            let at = self.last_message + 6;
            let bytes = self.writer.bytes_mut();
            let flags = u16::from_ne_bytes([bytes[at], bytes[at + 1]]) | ACK;
            bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        self.writer.begin(BATCH_END, 0, 0, 0, SUBSYSTEM);
        self.writer.end();
        (self.writer, self.subjects)
    }
}

fn write_element(w: &mut Writer, element: &Element, with_data: bool) {
    let nest = w.open(1);
    let key = w.open(1);
    w.attribute(1, element.key.as_bytes());
    w.close(key);
    if with_data {
        match &element.data {
            ElementData::None => {}
            ElementData::Value(value) => {
                let data = w.open(2);
                w.attribute(1, value.as_bytes());
                w.close(data);
            }
            ElementData::Verdict(verdict) => {
                let data = w.open(2);
                write_verdict(w, verdict);
                w.close(data);
            }
        }
    }
    if element.range_end {
        w.u32(3, 1);
    }
    if let (true, Some(timeout)) = (with_data, element.timeout) {
        w.u64(4, timeout.as_millis() as u64);
    }
    w.close(nest);
}
