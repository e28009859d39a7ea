//! The watch cache: every object of a resource held once, as encoded bytes, in a persistent ordered map; recent changes in
//! a bounded ring; watchers found by index.
//!
//! One task reads the store's watch and feeds all caches, so that one number, the applied revision, says how far the
//! process has caught up: a read is linearizable once that number has reached the store's revision.

pub(crate) mod dispatch;
mod encoded;
mod entry;
pub(crate) mod fresh;
mod pack;
#[cfg(test)]
mod tests;
mod watcher;

pub use dispatch::{Applied, Dispatcher, Halted};
pub use encoded::Encoding;
pub use entry::{ByPath, Entry, EventType, MetaField, Selectable, Selection, type_prefix, with_version};
pub use fresh::Handover;
pub use watcher::{Closed, Next, Shown, Subscription};

use crate::encryption::Transformer;
use bytes::Bytes;
use encoded::Encodings;
use fresh::Fresh;
use gantry_api::kind::Resource;
use gantry_api::kinds;
use gantry_api::meta::fields::{FieldSelector, unsupported_field};
use gantry_api::meta::labels::Selector;
use gantry_api::meta::status::ApiError;
use gantry_api::packed::WORTH_IT;
use imbl::OrdSet;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use watcher::{Scope, Watchers};

/// Most events a ring holds: enough that a client which reconnects within seconds under heavy load can resume.
const RING_EVENTS_MAX: usize = 8192;
/// Most bytes of states that only the ring keeps alive.
const RING_BYTES_MAX: usize = 4 << 20;
/// Events kept however large they are.
const RING_EVENTS_MIN: usize = 128;
/// Snapshots kept for paged lists; further ones are rebuilt from the ring or expire.
const PINNED_MAX: usize = 8;
/// How long a page may be followed by the next: upstream's compaction interval.
const PINNED_FOR: Duration = Duration::from_secs(300);

/// One change.
#[derive(Debug)]
pub struct Event {
    /// State after; for a deletion the last state at the deletion's revision.
    pub entry: Arc<Entry>,
    /// State before.
    pub previous: Option<Arc<Entry>>,
    /// How watchers of some of the objects are told of it, where that is not as it is.
    reframed: Mutex<Vec<(Shown, Bytes)>>,
    /// The object in the state after, as it was written, while the change is one of the last.
    fresh: Mutex<Option<Fresh>>,
}

impl Event {
    /// A change to a state.
    #[must_use]
    pub fn new(entry: Arc<Entry>, previous: Option<Arc<Entry>>) -> Self {
        Self { entry, previous, reframed: Mutex::default(), fresh: Mutex::default() }
    }

    /// The object in the state after, as it was written, where that is still held.
    fn fresh(&self) -> Option<Fresh> {
        self.fresh.lock().clone()
    }

    /// Revision of the change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.entry.revision
    }

    /// The event as bytes, encoded at most once for all watchers that see it the same way.
    #[must_use]
    pub fn frame(&self, shown: Shown) -> Bytes {
        let (state, event) = match shown {
            Shown::AsIs => return self.entry.frame(),
            Shown::Added => (&self.entry, EventType::Added),
            Shown::Deleted => (self.previous.as_ref().unwrap_or(&self.entry), EventType::Deleted),
        };
        let mut reframed = self.reframed.lock();
        if let Some((_, bytes)) = reframed.iter().find(|(known, _)| *known == shown) {
            return bytes.clone();
        }
        let bytes = state.reframed(event, self.entry.revision);
        reframed.push((shown, bytes.clone()));
        bytes
    }

    /// Throws away what was encoded; who asks all the same has it encoded again.
    fn forget(&self) {
        *self.reframed.lock() = Vec::new();
        self.forget_fresh();
    }

    fn forget_fresh(&self) {
        let gone = self.fresh.lock().take();
        drop(gone);
    }

    /// How a watcher with this selection sees the change; None where it does not.
    #[must_use]
    pub fn shown_to(&self, selection: &Selection) -> Option<Shown> {
        match self.entry.event() {
            EventType::Deleted => selection.matches(&self.entry).then_some(Shown::AsIs),
            _ => {
                let before = self.previous.as_ref().is_some_and(|p| selection.matches(p));
                match (before, selection.matches(&self.entry)) {
                    (false, false) => None,
                    (false, true) if self.entry.event() == EventType::Added => Some(Shown::AsIs),
                    (false, true) => Some(Shown::Added),
                    (true, true) => Some(Shown::AsIs),
                    (true, false) => Some(Shown::Deleted),
                }
            }
        }
    }
}

/// The objects of a resource at one revision. Cloning is O(1).
#[derive(Clone, Debug)]
pub struct Snapshot {
    items: OrdSet<ByPath>,
    /// The revision.
    pub revision: u64,
}

impl Snapshot {
    /// These objects at a revision.
    #[must_use]
    pub fn of(entries: Vec<Arc<Entry>>, revision: u64) -> Self {
        Self { items: entries.into_iter().map(ByPath).collect(), revision }
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The object at `namespace/name` or `name`.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Arc<Entry>> {
        self.items.get(path).map(|e| &e.0)
    }

    /// Objects after `after` (exclusive, empty for the beginning) in a namespace (empty for all), in order.
    pub fn iter_after<'a>(&'a self, namespace: &'a str, after: &'a str) -> impl Iterator<Item = &'a Arc<Entry>> {
        let inside = move |e: &&ByPath| namespace.is_empty() || e.0.namespace() == namespace;
        // `ns/` sorts before every name of the namespace and after every namespace that is a prefix of it.
        let floor = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        let start = if after.is_empty() || after < floor.as_str() { floor } else { format!("{after}\0") };
        let items = self.items.range::<_, str>((Bound::Included(start.as_str()), Bound::Unbounded));
        items.take_while(inside).map(|e| &e.0)
    }
}

/// A change of one object that a cache takes in.
struct Applying {
    path: String,
    /// The state after, None where the object is gone.
    entry: Option<Entry>,
    /// The object in that state, as it was written, where somebody takes it so.
    fresh: Option<Fresh>,
}

struct State {
    items: OrdSet<ByPath>,
    /// Revision of the last change.
    last: u64,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// All changes after this revision are in the ring.
    oldest: u64,
    pinned: VecDeque<(Instant, Snapshot)>,
    watchers: Watchers,
}

/// A revision that is no longer held.
#[derive(Clone, Copy, Debug)]
pub struct TooOld {
    /// What was asked for.
    pub asked: u64,
    /// Oldest revision that can be served.
    pub oldest: u64,
}

/// Cache of one stored resource.
pub struct WatchCache {
    /// The resource.
    pub resource: &'static dyn Resource,
    /// Names of the selectable fields, in the order entries hold their values.
    pub field_names: Vec<&'static str>,
    prefix: String,
    type_prefix: String,
    applied: Arc<Applied>,
    transformer: Transformer,
    state: RwLock<State>,
    /// Objects that are stored but cannot be decrypted, by path, and why.
    unreadable: RwLock<BTreeMap<String, String>>,
    generation: AtomicU64,
    encodings: Encodings,
    rest: pack::Rest,
    /// Watches that take objects as they were written.
    receivers: AtomicUsize,
}

impl WatchCache {
    fn new(resource: &'static dyn Resource, prefix: String, applied: Arc<Applied>, transformer: Transformer) -> Self {
        let blank = resource.decode(b"{\"metadata\":{}}");
        let field_names = match blank {
            Ok(object) => resource.selectable_fields(object.as_ref()).into_iter().map(|(k, _)| k).collect(),
            Err(_) => Vec::new(),
        };
        let indexed = field_names.iter().position(|f| *f == "spec.nodeName");
        Self {
            resource,
            field_names,
            prefix,
            type_prefix: type_prefix(resource),
            applied,
            transformer,
            state: RwLock::new(State {
                items: OrdSet::new(),
                last: 0,
                ring: VecDeque::new(),
                ring_bytes: 0,
                oldest: 0,
                pinned: VecDeque::new(),
                watchers: Watchers::new(indexed),
            }),
            unreadable: RwLock::default(),
            generation: AtomicU64::new(0),
            encodings: Encodings::default(),
            rest: pack::Rest::default(),
            receivers: AtomicUsize::new(0),
        }
    }

    /// Resolves the selectors of a request.
    ///
    /// # Errors
    /// 400 with the sentence upstream has for a field that objects of this resource cannot be selected by: it depends on
    /// whether the kind has fields of its own.
    pub fn selection(&self, namespace: &str, labels: Selector, fields: &FieldSelector) -> Result<Selection, ApiError> {
        Selection::new(namespace, labels, fields, &self.field_names).map_err(|field| {
            let info = self.resource.info();
            let built_in = kinds::find(info.group, info.version, info.plural).is_some();
            ApiError::bad_request(match (info.group, info.kind) {
                ("batch", "Job") => format!("field label {field:?} not supported for batchv1.Job"),
                _ if built_in && self.field_names.is_empty() => {
                    format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
                }
                _ => unsupported_field(&field),
            })
        })
    }

    /// The prefix of the resource's keys in the store, `/registry/<group>/<plural>/`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// `"apiVersion":…,"kind":…,` as the resource's own objects begin.
    #[must_use]
    pub fn type_prefix(&self) -> &str {
        &self.type_prefix
    }

    /// Grows with every change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Number of objects, and of watchers.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let state = self.state.read();
        (state.items.len(), state.watchers.len())
    }

    /// The present objects. O(1).
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.read();
        Snapshot { items: state.items.clone(), revision: state.last.max(self.applied.get()) }
    }

    /// The present object at a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Arc<Entry>> {
        self.state.read().items.get(path).map(|e| e.0.clone())
    }

    /// The objects as of exactly `revision`, rebuilt by undoing later changes.
    ///
    /// # Errors
    /// Where those changes are no longer held.
    pub fn snapshot_at(&self, revision: u64) -> Result<Snapshot, TooOld> {
        let now = Instant::now();
        let state = self.state.read();
        let pinned = state.pinned.iter().find(|(since, s)| s.revision == revision && now - *since < PINNED_FOR);
        if let Some((_, snapshot)) = pinned {
            return Ok(snapshot.clone());
        }
        if revision < state.oldest {
            return Err(TooOld { asked: revision, oldest: state.oldest });
        }
        let mut items = state.items.clone();
        for event in state.ring.iter().rev().take_while(|e| e.revision() > revision) {
            match &event.previous {
                Some(previous) => {
                    items.insert(ByPath(previous.clone()));
                }
                None => {
                    items.remove(event.entry.path());
                }
            }
        }
        Ok(Snapshot { items, revision })
    }

    /// Keeps a snapshot for the following pages of a list.
    pub fn pin(&self, snapshot: &Snapshot) {
        let now = Instant::now();
        let mut state = self.state.write();
        state.pinned.retain(|(since, s)| now - *since < PINNED_FOR && s.revision != snapshot.revision);
        if state.pinned.len() == PINNED_MAX {
            state.pinned.pop_front();
        }
        state.pinned.push_back((now, snapshot.clone()));
    }

    /// Starts a watch. `after` None begins with the present objects (returned as a snapshot), Some with the changes after it.
    ///
    /// # Errors
    /// Where changes since `after` are no longer held.
    pub fn subscribe(
        self: &Arc<Self>,
        selection: Selection,
        after: Option<u64>,
    ) -> Result<(Option<Snapshot>, Subscription), TooOld> {
        let mut state = self.state.write();
        let mut backlog = Vec::new();
        let mut snapshot = None;
        match after {
            None => {
                snapshot = Some(Snapshot { items: state.items.clone(), revision: state.last.max(self.applied.get()) })
            }
            Some(after) if after < state.oldest => return Err(TooOld { asked: after, oldest: state.oldest }),
            Some(after) => {
                let start = state.ring.partition_point(|e| e.revision() <= after);
                for event in state.ring.range(start..) {
                    if let Some(shown) = event.shown_to(&selection) {
                        backlog.push((event.clone(), shown));
                    }
                }
            }
        }
        let scope = Scope::of(&selection, &state.watchers);
        let watcher = state.watchers.add(scope, selection, backlog);
        drop(state);
        Ok((snapshot, Subscription::new(self.clone(), watcher)))
    }

    fn unsubscribe(&self, id: u64) {
        self.state.write().watchers.remove(id);
    }

    /// Everything up to this revision has been handed to this cache's watchers.
    #[must_use]
    pub fn applied_revision(&self) -> u64 {
        self.applied.get()
    }

    /// Ends all watches of the resource, so that clients reconnect elsewhere.
    pub fn close_watchers(&self) {
        self.state.write().watchers.close_all(Closed::Shutdown);
    }

    /// Why the object at a path cannot be shown although it is stored.
    #[must_use]
    pub fn unreadable(&self, path: &str) -> Option<String> {
        self.unreadable.read().get(path).cloned()
    }

    /// The objects in a namespace (empty for all) that cannot be shown although they are stored: their keys, and why; no
    /// more than `max`.
    #[must_use]
    pub fn unreadable_in(&self, namespace: &str, max: usize) -> Vec<(String, String)> {
        let unreadable = self.unreadable.read();
        let inside =
            |path: &str| namespace.is_empty() || path.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/'));
        let found = unreadable.iter().filter(|(path, _)| inside(path)).take(max);
        found.map(|(path, why)| (format!("{}{path}", self.prefix), why.clone())).collect()
    }

    /// The paths of all objects that cannot be shown although they are stored.
    fn unreadable_paths(&self) -> Vec<String> {
        self.unreadable.read().keys().cloned().collect()
    }

    fn mark_unreadable(&self, path: String, why: String) {
        self.unreadable.write().insert(path, why);
    }

    fn load(&self, entries: Vec<Entry>, revision: u64) {
        let mut state = self.state.write();
        for entry in entries {
            state.items.insert(ByPath(Arc::new(entry)));
        }
        state.last = revision;
        state.oldest = revision;
        self.note_size(&state);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes in the changes of one transaction.
    fn apply(&self, revision: u64, changes: impl Iterator<Item = Applying>) {
        let mut state = self.state.write();
        if !state.pinned.is_empty() {
            // A snapshot nobody pages through any more would keep everything that changed since alive.
            let now = Instant::now();
            state.pinned.retain(|(since, _)| now - *since < PINNED_FOR);
        }
        for Applying { path, entry, fresh } in changes {
            self.unreadable.write().remove(&path);
            let previous = state.items.get(path.as_str()).map(|e| e.0.clone());
            let entry = match (entry, &previous) {
                (Some(entry), _) => Arc::new(entry),
                (None, Some(previous)) => Arc::new(previous.tombstone(revision)),
                (None, None) => continue,
            };
            if entry.event() == EventType::Deleted {
                state.items.remove(path.as_str());
            } else {
                state.items.insert(ByPath(entry.clone()));
            }
            let event = Event { fresh: Mutex::new(fresh), ..Event::new(entry, previous) };
            let event = Arc::new(event);
            state.watchers.deliver(&event);
            state.push(event);
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        state.last = revision;
        self.note_size(&state);
    }

    fn note_size(&self, state: &State) {
        if state.items.len() >= WORTH_IT {
            self.applied.note_much();
        }
    }
}

impl State {
    fn push(&mut self, event: Arc<Event>) {
        let cost = |e: &Event| {
            e.previous.as_ref().map_or(0, |p| p.size())
                + if e.entry.event() == EventType::Deleted { e.entry.size() } else { 0 }
        };
        self.ring_bytes += cost(&event);
        self.ring.push_back(event);
        if let Some(aged) = self.ring.len().checked_sub(fresh::FRESH_MAX + 1) {
            self.ring[aged].forget_fresh();
        }
        while self.ring.len() > RING_EVENTS_MAX
            || (self.ring_bytes > RING_BYTES_MAX && self.ring.len() > RING_EVENTS_MIN)
        {
            let Some(gone) = self.ring.pop_front() else { break };
            self.ring_bytes -= cost(&gone);
            self.oldest = gone.revision();
        }
    }
}
