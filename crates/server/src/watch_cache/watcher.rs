//! Watchers: an index that finds who is interested in a change, and a bounded queue for each.

use super::{Event, Selection, WatchCache};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};

/// Events a watcher may lag behind before it is closed.
const QUEUE_MAX: usize = 4096;
/// Bytes of objects it may lag behind: where nobody else holds them any more, they are kept for it alone.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Events it may lag behind however large they are.
const QUEUE_MIN: usize = 64;

/// How a watcher sees a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// As the change it is.
    AsIs,
    /// As ADDED: the object came into the selection.
    Added,
    /// As DELETED: the object left the selection; its state before is shown.
    Deleted,
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It did not keep up.
    TooSlow,
    /// The server stops.
    Shutdown,
}

/// What the queue gives next.
#[derive(Debug)]
pub enum Next {
    /// A change.
    Event(Arc<Event>, Shown),
    /// The watch ended.
    Closed(Closed),
}

struct Queued {
    event: Arc<Event>,
    shown: Shown,
}

impl Queued {
    fn size(&self) -> usize {
        self.event.entry.size()
    }
}

struct Queue {
    events: VecDeque<Queued>,
    /// Size of the objects in `events`.
    bytes: usize,
    closed: Option<Closed>,
}

impl Queue {
    fn takes(&self, queued: &Queued) -> bool {
        let large = self.bytes + queued.size() > QUEUE_BYTES_MAX;
        self.events.len() < if large { QUEUE_MIN } else { QUEUE_MAX }
    }

    fn push(&mut self, queued: Queued) {
        self.bytes += queued.size();
        self.events.push_back(queued);
    }

    fn pop(&mut self) -> Option<Queued> {
        let queued = self.events.pop_front()?;
        self.bytes -= queued.size();
        Some(queued)
    }
}

pub(super) struct Watcher {
    id: u64,
    scope: Scope,
    selection: Selection,
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

impl Watcher {
    fn offer(&self, event: &Arc<Event>) {
        let Some(shown) = event.shown_to(&self.selection) else { return };
        {
            let mut queue = self.queue.lock();
            if queue.closed.is_some() {
                return;
            }
            let queued = Queued { event: event.clone(), shown };
            if queue.takes(&queued) {
                queue.push(queued);
            } else {
                queue.events = VecDeque::new();
                queue.bytes = 0;
                queue.closed = Some(Closed::TooSlow);
            }
        }
        self.waker.wake();
    }

    fn close(&self, why: Closed) {
        self.queue.lock().closed.get_or_insert(why);
        self.waker.wake();
    }
}

/// The narrowest index slot that holds everything a watcher can be interested in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    All,
    Namespace(String),
    Path(String),
    /// Value of the indexed field (`spec.nodeName`).
    Field(String),
}

impl Scope {
    pub(super) fn of(selection: &Selection, watchers: &Watchers) -> Self {
        let indexed = watchers.indexed.and_then(|index| {
            selection.fields.iter().find(|(i, value, equal)| *i == index && *equal && !value.is_empty())
        });
        match (&selection.name, indexed) {
            (Some(name), _) if !selection.namespace.is_empty() => {
                Scope::Path(format!("{}/{name}", selection.namespace))
            }
            (_, Some((_, value, _))) => Scope::Field(value.clone()),
            _ if !selection.namespace.is_empty() => Scope::Namespace(selection.namespace.clone()),
            _ => Scope::All,
        }
    }
}

/// All watchers of a resource.
pub(super) struct Watchers {
    /// Position of the field that is indexed.
    indexed: Option<usize>,
    by_scope: HashMap<Scope, Vec<Arc<Watcher>>>,
    scopes: HashMap<u64, Scope>,
    next_id: u64,
    /// Set once no watches are to run any more.
    closed: Option<Closed>,
}

impl Watchers {
    pub(super) fn new(indexed: Option<usize>) -> Self {
        Self { indexed, by_scope: HashMap::new(), scopes: HashMap::new(), next_id: 0, closed: None }
    }

    pub(super) fn len(&self) -> usize {
        self.scopes.len()
    }

    pub(super) fn add(
        &mut self,
        scope: Scope,
        selection: Selection,
        backlog: Vec<(Arc<Event>, Shown)>,
    ) -> Arc<Watcher> {
        self.next_id += 1;
        let events: VecDeque<Queued> = backlog.into_iter().map(|(event, shown)| Queued { event, shown }).collect();
        let bytes = events.iter().map(Queued::size).sum();
        let watcher = Arc::new(Watcher {
            id: self.next_id,
            scope: scope.clone(),
            selection,
            queue: Mutex::new(Queue { events, bytes, closed: self.closed }),
            waker: AtomicWaker::new(),
        });
        self.scopes.insert(watcher.id, scope.clone());
        self.by_scope.entry(scope).or_default().push(watcher.clone());
        watcher
    }

    pub(super) fn remove(&mut self, id: u64) {
        let Some(scope) = self.scopes.remove(&id) else { return };
        if let Some(list) = self.by_scope.get_mut(&scope) {
            list.retain(|w| w.id != id);
            if list.is_empty() {
                self.by_scope.remove(&scope);
            }
        }
    }

    fn offer(&self, scope: &Scope, event: &Arc<Event>) {
        for watcher in self.by_scope.get(scope).into_iter().flatten() {
            watcher.offer(event);
        }
    }

    pub(super) fn deliver(&self, event: &Arc<Event>) {
        if self.scopes.is_empty() {
            return;
        }
        let entry = &event.entry;
        self.offer(&Scope::All, event);
        if !entry.namespace().is_empty() {
            self.offer(&Scope::Namespace(entry.namespace().to_owned()), event);
            self.offer(&Scope::Path(entry.path().to_owned()), event);
        }
        if let Some(index) = self.indexed {
            let now = entry.field(index);
            let before = event.previous.as_ref().map_or("", |p| p.field(index));
            if !now.is_empty() {
                self.offer(&Scope::Field(now.to_owned()), event);
            }
            if !before.is_empty() && before != now {
                self.offer(&Scope::Field(before.to_owned()), event);
            }
        }
    }

    pub(super) fn close_all(&mut self, why: Closed) {
        self.closed = Some(why);
        // In the order in which they came, so that two simulations from one seed end them alike.
        let mut watchers: Vec<&Arc<Watcher>> = self.by_scope.values().flatten().collect();
        watchers.sort_by_key(|w| w.id);
        watchers.into_iter().for_each(|w| w.close(why));
    }
}

/// A running watch. Dropping it ends it.
pub struct Subscription {
    cache: Arc<WatchCache>,
    watcher: Arc<Watcher>,
}

impl Subscription {
    pub(super) fn new(cache: Arc<WatchCache>, watcher: Arc<Watcher>) -> Self {
        Self { cache, watcher }
    }

    /// The cache watched.
    #[must_use]
    pub fn cache(&self) -> &Arc<WatchCache> {
        &self.cache
    }

    /// What is watched.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.watcher.selection
    }

    /// The next change.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(next) = self.try_next() {
            return Poll::Ready(next);
        }
        self.watcher.waker.register(cx.waker());
        self.try_next().map_or(Poll::Pending, Poll::Ready)
    }

    /// The next change, where one is there.
    #[must_use]
    pub fn try_next(&self) -> Option<Next> {
        let mut queue = self.watcher.queue.lock();
        match queue.pop() {
            Some(Queued { event, shown }) => Some(Next::Event(event, shown)),
            None => {
                if queue.events.capacity() > 64 {
                    queue.events.shrink_to(0);
                }
                queue.closed.map(Next::Closed)
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        tracing::trace!(scope = ?self.watcher.scope, "watch ended");
        self.cache.unsubscribe(self.watcher.id);
    }
}
