//! One cached object: its encoded bytes, and what selectors look at in packed form.

use bytes::{Bytes, BytesMut};
use gantry_api::kind::{Object, Resource};
use gantry_api::meta::fields::FieldSelector;
use gantry_api::meta::labels::Selector;
use gantry_api::packed::Text;
use parking_lot::RwLock;
use std::borrow::Borrow;
use std::cmp;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

const TAIL: &[u8] = b"}\n";

/// What happened to an object, as a watch names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// It came into being or into view.
    Added,
    /// It changed.
    Modified,
    /// It went away or out of view.
    Deleted,
}

impl EventType {
    /// `ADDED`, `MODIFIED`, `DELETED`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
        }
    }

    const fn head(self) -> &'static [u8] {
        match self {
            EventType::Added => br#"{"type":"ADDED","object":"#,
            EventType::Modified => br#"{"type":"MODIFIED","object":"#,
            EventType::Deleted => br#"{"type":"DELETED","object":"#,
        }
    }
}

/// Appends a string behind its length: six bits of it in a character, those of least weight first, while there are more
/// with one more bit set. A quarter of the memory of a `Vec<String>`.
fn append(out: &mut String, string: &str) {
    let mut length = string.len();
    loop {
        // Of seven bits, so that the whole is text.
        let digit = u8::try_from(length & 0x3f).unwrap_or(0);
        length >>= 6;
        out.push(char::from(if length > 0 { digit | MORE } else { digit }));
        if length == 0 {
            break;
        }
    }
    out.push_str(string);
}

/// The strings that were appended one after the other.
fn appended(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (mut length, mut digits) = (0, 0);
        for digit in rest.bytes() {
            length |= usize::from(digit & 0x3f) << (6 * digits);
            digits += 1;
            if digit & MORE == 0 {
                break;
            }
        }
        let string = rest.get(digits..digits + length).filter(|_| digits > 0)?;
        rest = &rest[digits + length..];
        Some(string)
    })
}

/// Marks that another digit of a length follows.
const MORE: u8 = 0x40;

/// What selectors look at: labels, each behind its key, and selectable fields.
#[derive(Debug, Default)]
pub struct Selectable {
    labels: String,
    fields: String,
}

impl Selectable {
    /// Of an object of `resource`.
    #[must_use]
    pub fn of(resource: &dyn Resource, object: &dyn Object) -> Self {
        let mut out = Self::default();
        for (key, value) in object.meta().labels.iter().flatten() {
            append(&mut out.labels, key);
            append(&mut out.labels, value);
        }
        for (_, value) in resource.selectable_fields(object) {
            append(&mut out.fields, &value);
        }
        out
    }
}

/// One object at one revision. Shared by the cache, its recent events, lists under way and watchers.
#[derive(Debug)]
pub struct Entry {
    /// The whole watch event as it is sent: head, object, tail. The object is a slice of it, so that it is held once.
    /// Packed while nobody reads it.
    frame: RwLock<Text>,
    /// Path, labels and selectable fields, one after the other.
    strings: Box<str>,
    /// Revision of the write that made this state.
    pub revision: u64,
    /// The object in the version of its resource, where it was stored in another and a webhook has converted it.
    converted: OnceLock<Arc<Entry>>,
    /// Bytes of the frame as it is sent.
    length: u32,
    /// Where in `strings` the path and the labels end.
    path_end: u32,
    labels_end: u32,
    head: u8,
    /// Length of the `"apiVersion":…,"kind":…,` prefix that items of a list leave out.
    type_meta: u8,
    event: EventType,
    /// Whether the frame does not get smaller by being packed.
    unlike_others: AtomicBool,
}

/// A length or position in an object, of which none is anywhere near four gigabytes.
fn position(at: usize) -> u32 {
    u32::try_from(at).expect("no object is that large")
}

impl Entry {
    /// Encodes an object as written at `revision`. `json` is the stored form, which lacks the resourceVersion.
    #[must_use]
    pub fn new(
        path: &str,
        event: EventType,
        json: &[u8],
        revision: u64,
        resource: &dyn Resource,
        selectable: Selectable,
    ) -> Self {
        let (frame, head, type_meta) = encode(event, json, revision, resource);
        let Selectable { labels, fields } = selectable;
        let (path_end, labels_end) = (path.len(), path.len() + labels.len());
        Self {
            length: position(frame.len()),
            frame: RwLock::new(Text::Plain(frame)),
            strings: [path, &labels, &fields].concat().into(),
            revision,
            converted: OnceLock::new(),
            path_end: position(path_end),
            labels_end: position(labels_end),
            head,
            type_meta,
            event,
            unlike_others: AtomicBool::new(false),
        }
    }

    /// The last state of a deleted object, at the revision of its deletion.
    #[must_use]
    pub fn tombstone(&self, revision: u64) -> Self {
        let frame = self.reframed(EventType::Deleted, revision);
        Self {
            length: position(frame.len()),
            frame: RwLock::new(Text::Plain(frame)),
            strings: self.strings.clone(),
            revision,
            converted: OnceLock::new(),
            head: EventType::Deleted.head().len() as u8,
            event: EventType::Deleted,
            unlike_others: AtomicBool::new(false),
            ..*self
        }
    }

    /// Whether the object is in another version than its resource: a webhook has to convert it before it is shown.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.type_meta == 0
    }

    /// The object in the version of its resource, where [`Entry::keep_converted`] was told.
    #[must_use]
    pub fn converted(&self) -> Option<&Arc<Entry>> {
        self.converted.get()
    }

    /// Keeps the object in the version of its resource. The first one stays.
    pub fn keep_converted(&self, converted: Entry) {
        self.converted.get_or_init(|| Arc::new(converted));
    }

    /// The event this state came with.
    #[must_use]
    pub fn event(&self) -> EventType {
        self.event
    }

    /// The whole event as it goes over the wire.
    #[must_use]
    pub fn frame(&self) -> Bytes {
        self.frame.read().bytes()
    }

    /// The frame as it is held.
    #[must_use]
    pub(super) fn text(&self) -> Text {
        self.frame.read().clone()
    }

    /// Holds the frame in this form. It must be of the same bytes.
    pub(super) fn hold(&self, text: Text) {
        debug_assert_eq!(text.length(), self.length as usize);
        *self.frame.write() = text;
    }

    /// Whether it need not be tried to pack the frame.
    pub(super) fn is_unlike_others(&self) -> bool {
        self.unlike_others.load(Ordering::Relaxed)
    }

    /// The frame does not get smaller by being packed.
    pub(super) fn note_unlike_others(&self) {
        self.unlike_others.store(true, Ordering::Relaxed);
    }

    /// Holds the frame as it is sent, for it is asked for often.
    pub fn unpack(&self) {
        if self.frame.read().is_packed() {
            let frame = self.frame();
            self.hold(Text::Plain(frame));
        }
    }

    /// The same object in an event of another type and possibly a later revision.
    #[must_use]
    pub fn reframed(&self, event: EventType, revision: u64) -> Bytes {
        let json = self.json();
        let mut out = BytesMut::with_capacity(event.head().len() + json.len() + TAIL.len() + 8);
        out.extend_from_slice(event.head());
        if revision == self.revision {
            out.extend_from_slice(&json);
        } else {
            let old = format!("\"resourceVersion\":\"{}\"", self.revision);
            match metadata_at(&json).filter(|at| json[*at..].starts_with(old.as_bytes())) {
                Some(at) => {
                    out.extend_from_slice(&json[..at]);
                    out.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
                    out.extend_from_slice(&json[at + old.len()..]);
                }
                None => out.extend_from_slice(&json),
            }
        }
        out.extend_from_slice(TAIL);
        out.freeze()
    }

    /// The object as JSON.
    #[must_use]
    pub fn json(&self) -> Bytes {
        self.frame().slice(self.head as usize..self.length as usize - TAIL.len())
    }

    /// The object as an item of a list: JSON without `{` and without apiVersion and kind, as upstream leaves them out.
    #[must_use]
    pub fn item_tail(&self) -> Bytes {
        self.frame().slice(self.head as usize + 1 + self.type_meta as usize..self.length as usize - TAIL.len())
    }

    /// `namespace/name`, or `name` at cluster scope.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.strings[..self.path_end as usize]
    }

    /// The namespace, empty at cluster scope.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.path().split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path().rsplit_once('/').map_or(self.path(), |(_, name)| name)
    }

    /// Bytes this entry keeps in memory while it is not packed.
    #[must_use]
    pub fn size(&self) -> usize {
        self.length as usize + self.strings.len() + size_of::<Self>()
    }

    /// Bytes it keeps now.
    pub(super) fn held(&self) -> usize {
        self.frame.read().size() + self.strings.len() + size_of::<Self>()
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let mut strings = appended(&self.strings[self.path_end as usize..self.labels_end as usize]);
        while let (Some(k), Some(v)) = (strings.next(), strings.next()) {
            if k == key {
                return Some(v);
            }
        }
        None
    }

    /// The value of the selectable field at `index` of the resource's list.
    #[must_use]
    pub fn field(&self, index: usize) -> &str {
        appended(&self.strings[self.labels_end as usize..]).nth(index).unwrap_or("")
    }
}

/// Frames an object, adding its resourceVersion. Returns the frame, the head's length and that of the type prefix.
fn encode(event: EventType, json: &[u8], revision: u64, resource: &dyn Resource) -> (Bytes, u8, u8) {
    let head = event.head();
    let version = format!("\"resourceVersion\":\"{revision}\",");
    let mut out = BytesMut::with_capacity(head.len() + json.len() + version.len() + TAIL.len());
    out.extend_from_slice(head);
    match metadata_at(json) {
        Some(at) => {
            out.extend_from_slice(&json[..at]);
            let version = if json.get(at) == Some(&b'}') { version.trim_end_matches(',') } else { &version };
            out.extend_from_slice(version.as_bytes());
            out.extend_from_slice(&json[at..]);
        }
        None => out.extend_from_slice(json),
    }
    out.extend_from_slice(TAIL);
    let prefix = type_prefix(resource);
    let has_prefix = out[head.len()..].get(1..).is_some_and(|rest| rest.starts_with(prefix.as_bytes()));
    let type_meta = if has_prefix { prefix.len() } else { 0 };
    (out.freeze(), u8::try_from(head.len()).unwrap_or(0), u8::try_from(type_meta).unwrap_or(0))
}

/// `"apiVersion":"apps/v1","kind":"Deployment",`.
#[must_use]
pub fn type_prefix(resource: &dyn Resource) -> String {
    let info = resource.info();
    format!("\"apiVersion\":\"{}\",\"kind\":\"{}\",", info.api_version(), info.kind)
}

/// Where the fields of the object's own metadata begin. Not the first `metadata` in the text: a field before it in the
/// alphabet may have one inside, as the data of a ControllerRevision has.
fn metadata_at(json: &[u8]) -> Option<usize> {
    const METADATA: &[u8] = b"\"metadata\":{";
    let (mut depth, mut at) = (0_usize, 0);
    while at < json.len() {
        match json[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' if depth == 1 && json[at..].starts_with(METADATA) => return Some(at + METADATA.len()),
            b'"' => {
                at += 1;
                while at < json.len() && json[at] != b'"' {
                    at += if json[at] == b'\\' { 2 } else { 1 };
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// An entry ordered by its path.
#[derive(Clone, Debug)]
pub struct ByPath(pub Arc<Entry>);

impl Borrow<str> for ByPath {
    fn borrow(&self) -> &str {
        self.0.path()
    }
}
impl PartialEq for ByPath {
    fn eq(&self, other: &Self) -> bool {
        self.0.path() == other.0.path()
    }
}
impl Eq for ByPath {}
impl PartialOrd for ByPath {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ByPath {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.0.path().cmp(other.0.path())
    }
}

/// Which objects a list or watch is about.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Namespace, empty for all.
    pub namespace: String,
    /// One name, where the request is about one.
    pub name: Option<String>,
    /// Labels.
    pub labels: Selector,
    /// Fields, resolved against the resource: index, value, equal.
    pub fields: Vec<(usize, String, bool)>,
    /// Terms on the name that are no exact match (`metadata.name!=x`), and all terms on the namespace.
    pub meta: Vec<(MetaField, String, bool)>,
}

/// The two fields that every object can be selected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaField {
    /// `metadata.name`.
    Name,
    /// `metadata.namespace`.
    Namespace,
}

impl Selection {
    /// Resolves selectors for a resource whose selectable fields are `known`, in order.
    ///
    /// # Errors
    /// The first field that is not among them.
    pub fn new(
        namespace: &str,
        labels: Selector,
        fields: &FieldSelector,
        known: &[&'static str],
    ) -> Result<Self, String> {
        let mut out = Self { namespace: namespace.to_owned(), labels, ..Self::default() };
        for term in &fields.0 {
            match term.field.as_str() {
                "metadata.name" => {
                    if term.equal && out.name.is_none() {
                        out.name = Some(term.value.clone());
                    } else {
                        out.meta.push((MetaField::Name, term.value.clone(), term.equal));
                    }
                }
                "metadata.namespace" => out.meta.push((MetaField::Namespace, term.value.clone(), term.equal)),
                field => match known.iter().position(|k| *k == field) {
                    Some(index) => out.fields.push((index, term.value.clone(), term.equal)),
                    None => return Err(field.to_owned()),
                },
            }
        }
        Ok(out)
    }

    /// Whether every object of the namespace is meant.
    #[must_use]
    pub fn selects_all_of_namespace(&self) -> bool {
        self.name.is_none() && self.labels.is_empty() && self.fields.is_empty() && self.meta.is_empty()
    }

    /// Whether the object is meant.
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        (self.namespace.is_empty() || entry.namespace() == self.namespace)
            && self.name.as_ref().is_none_or(|n| entry.name() == n)
            && self.meta.iter().all(|(field, value, equal)| {
                let actual = match field {
                    MetaField::Name => entry.name(),
                    MetaField::Namespace => entry.namespace(),
                };
                (actual == value) == *equal
            })
            && self.fields.iter().all(|(index, value, equal)| (entry.field(*index) == value) == *equal)
            && !self.labels.selects_nothing()
            && self.labels.requirements().iter().all(|r| r.holds(entry.label(&r.key)))
    }
}

/// The stored form of an object with its resourceVersion added, as it is served.
#[must_use]
pub fn with_version(json: &[u8], revision: u64, resource: &dyn Resource) -> Bytes {
    let (frame, head, _) = encode(EventType::Added, json, revision, resource);
    frame.slice(head as usize..frame.len() - TAIL.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_any_length_are_found_again() {
        let strings = ["", "a", "ä\0€", &"x".repeat(63), &"y".repeat(64), "", &"z".repeat(70_000), "end"];
        let mut text = String::new();
        strings.iter().for_each(|string| append(&mut text, string));
        assert_eq!(appended(&text).collect::<Vec<_>>(), strings);
        // Two lengths take more than a digit.
        let plain: usize = strings.iter().map(|string| string.len()).sum();
        assert_eq!((appended("").count(), text.len()), (0, plain + strings.len() + 1 + 2));
    }
}
