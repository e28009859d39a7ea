//! The objects an informer holds, by name and by index.

use bytes::Bytes;
use gantry_api::ObjectMeta;
use gantry_api::kind::Object;
use gantry_api::packed::{Packing, Text, WORTH_IT};
use gantry_client::Item;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// `namespace/name`, or `name` where there is no namespace: how caches and queues name objects.
#[must_use]
pub fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// The key of an object.
#[must_use]
pub fn key_of<T: Item>(object: &T) -> String {
    let m = object.metadata();
    key(m.namespace.as_deref().unwrap_or_default(), m.name.as_deref().unwrap_or_default())
}

/// Namespace (empty where there is none) and name of a key.
#[must_use]
pub fn split_key(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// Objects whose decoded form is always kept beside their text; a decoded Pod is twice its text.
const DECODED_MIN: usize = 1 << 10;
/// The same where somebody reads that many. Who reads all objects of a kind at each change must not decode them each time.
const DECODED_MAX: usize = 16 << 10;
/// The same where nobody reads and nothing changes.
const DECODED_AT_REST: usize = 128;

/// An object with the text it was read from, where that may be kept instead.
pub struct Kept<T> {
    /// The object, slim.
    pub object: Arc<T>,
    /// Its text.
    pub json: Option<Bytes>,
}

impl<T: Item> Kept<T> {
    fn new(mut object: T, json: Option<Bytes>) -> Self {
        object.slim();
        Self { object: Arc::new(object), json }
    }
}

impl<T: Item> Item for Kept<T> {
    fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self::new(T::read(bytes)?, None))
    }
    fn read_kept(bytes: &[u8], keep: &dyn Fn() -> Bytes) -> Result<Self, serde_json::Error> {
        Ok(Self::new(T::read(bytes)?, Some(keep())))
    }
    fn received(object: Arc<dyn Object>, bytes: &[u8], keep: &dyn Fn() -> Bytes) -> Option<Self> {
        Some(Self { object: T::shared(object, bytes)?, json: Some(keep()) })
    }
    fn metadata(&self) -> &ObjectMeta {
        self.object.metadata()
    }
    fn slim(&mut self) {}
}

type IndexFn<T> = Box<dyn Fn(&T) -> Vec<String> + Send + Sync>;
type Key = Arc<str>;

struct IndexData<T> {
    name: &'static str,
    of: IndexFn<T>,
    entries: BTreeMap<String, BTreeSet<Key>>,
}

impl<T> IndexData<T> {
    fn insert(&mut self, key: &Key, object: &T) {
        for value in (self.of)(object) {
            self.entries.entry(value).or_default().insert(key.clone());
        }
    }
    fn remove(&mut self, key: &str, object: &T) {
        for value in (self.of)(object) {
            self.remove_from(&value, key);
        }
    }
    fn remove_from(&mut self, value: &str, key: &str) {
        if let Some(bucket) = self.entries.get_mut(value) {
            bucket.remove(key);
            if bucket.is_empty() {
                self.entries.remove(value);
            }
        }
    }
    /// The object changed. Most changes are none to most indexes.
    fn replace(&mut self, key: &Key, old: &T, new: &T) {
        let (before, after) = ((self.of)(old), (self.of)(new));
        for value in before.iter().filter(|v| !after.contains(v)) {
            self.remove_from(value, key);
        }
        for value in after {
            if !before.contains(&value) {
                self.entries.entry(value).or_default().insert(key.clone());
            }
        }
    }
}

/// One object: decoded, as text, or both.
struct Slot<T> {
    decoded: Option<Arc<T>>,
    /// Finds the decoded form while somebody else has it.
    elsewhere: Weak<T>,
    text: Option<Text>,
    /// Came since what rests was packed the last time.
    fresh: bool,
    /// The text does not get smaller by being packed.
    unlike_others: bool,
}

impl<T: Item> Slot<T> {
    fn known(&self) -> Option<Arc<T>> {
        self.decoded.clone().or_else(|| self.elsewhere.upgrade())
    }

    /// Gives back the memory of a decoded form that nobody has any more.
    fn forget(&mut self) {
        if self.elsewhere.strong_count() == 0 {
            self.elsewhere = Weak::new();
        }
    }

    fn object(&self) -> Arc<T> {
        self.known().unwrap_or_else(|| decode(self.text.as_ref()))
    }
}

fn decode<T: Item>(text: Option<&Text>) -> Arc<T> {
    let text = text.expect("an object is decoded, or its text is kept");
    let mut object = T::read(&text.bytes()).expect("the text was decoded before");
    object.slim();
    Arc::new(object)
}

struct State<T> {
    objects: BTreeMap<Key, Slot<T>>,
    indexes: Vec<IndexData<T>>,
    /// Keys of objects that are decoded and have a text, in the order they came to be. May name some that are no more.
    decoded: VecDeque<Key>,
    /// How many of those there may be: one more for each that a reader found undecoded, one less for each change.
    decoded_max: usize,
}

impl<T: Item> State<T> {
    /// Notes that the object at `key` is decoded, and lets go of those that were first.
    fn decoded(&mut self, key: Key) {
        self.decoded.push_back(key);
        self.let_go();
    }

    fn let_go(&mut self) {
        while self.decoded.len() > self.decoded_max
            && let Some(first) = self.decoded.pop_front()
        {
            if let Some(slot) = self.objects.get_mut(&first)
                && slot.text.is_some()
            {
                slot.decoded = None;
                slot.forget();
            }
        }
    }

    /// A reader found so many objects undecoded.
    fn missed(&mut self, count: usize) {
        self.decoded_max = (self.decoded_max + count).min(DECODED_MAX);
    }

    fn put(&mut self, object: Arc<T>, json: Option<Bytes>) -> Option<Arc<T>> {
        let name = key_of(&*object);
        let known = self.objects.get_key_value(name.as_str()).map(|(k, slot)| (k.clone(), slot.decoded.is_some()));
        let (key, noted) = known.unwrap_or_else(|| (name.into(), false));
        let has_text = json.is_some();
        let text = json.map(Text::Plain);
        let slot = Slot {
            elsewhere: Arc::downgrade(&object),
            decoded: Some(object.clone()),
            text,
            fresh: true,
            unlike_others: false,
        };
        let old = self.objects.insert(key.clone(), slot).map(|slot| slot.object());
        for index in &mut self.indexes {
            match &old {
                Some(old) => index.replace(&key, old, &object),
                None => index.insert(&key, &object),
            }
        }
        self.decoded_max = (self.decoded_max - 1).max(DECODED_MIN);
        if has_text && !noted {
            self.decoded(key);
        }
        old
    }
}

/// What was found, its decoding left to do outside of the lock.
struct Found<T> {
    key: Key,
    object: Option<Arc<T>>,
    text: Option<Text>,
}

struct Inner<T> {
    state: Mutex<State<T>>,
    /// Many objects are held, and there was a change.
    much: Notify,
    /// Objects that were read since what rests was packed the last time.
    reads: AtomicUsize,
    packing: Mutex<Packing>,
}

/// A cache of objects in key order. Cheap to clone; all clones are one cache.
pub struct Store<T>(Arc<Inner<T>>);

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Item> Default for Store<T> {
    fn default() -> Self {
        let state =
            State { objects: BTreeMap::new(), indexes: Vec::new(), decoded: VecDeque::new(), decoded_max: DECODED_MIN };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            much: Notify::new(),
            reads: AtomicUsize::new(0),
            packing: Mutex::default(),
        }))
    }
}

fn found<'a, T: Item>(slots: impl Iterator<Item = (&'a Key, &'a Slot<T>)>) -> Vec<Found<T>> {
    let one = |(key, slot): (&Key, &Slot<T>)| match slot.known() {
        Some(object) => Found { key: key.clone(), object: Some(object), text: None },
        None => Found { key: key.clone(), object: None, text: slot.text.clone() },
    };
    slots.map(one).collect()
}

impl<T: Item> Store<T> {
    /// The object of this name. `namespace` is empty for cluster-scoped kinds.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.by_key(&key(namespace, name))
    }

    /// The object of this key.
    #[must_use]
    pub fn by_key(&self, key: &str) -> Option<Arc<T>> {
        let found = found(self.0.state.lock().objects.get_key_value(key).into_iter());
        self.decode(found).pop()
    }

    /// Whether there is an object of this key.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.0.state.lock().objects.contains_key(key)
    }

    /// All objects, in key order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<T>> {
        let found = found(self.0.state.lock().objects.iter());
        self.decode(found)
    }

    /// All objects of a namespace, in name order.
    #[must_use]
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<T>> {
        // '0' follows '/', so the range holds exactly the keys that begin with "namespace/".
        let (from, to) = (format!("{namespace}/"), format!("{namespace}0"));
        let range = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
        let found = found(self.0.state.lock().objects.range::<str, _>(range));
        self.decode(found)
    }

    /// Decodes what is not, and keeps it so unless it is more than is kept.
    fn decode(&self, found: Vec<Found<T>>) -> Vec<Arc<T>> {
        self.0.reads.fetch_add(found.len(), Ordering::Relaxed);
        let undecoded = found.iter().filter(|f| f.object.is_none()).count();
        let mut kept = Vec::new();
        let mut out = Vec::with_capacity(found.len());
        for Found { key, object, text } in found {
            let object = object.unwrap_or_else(|| {
                let object = decode(text.as_ref());
                if undecoded <= DECODED_MAX {
                    kept.push((key, text, Arc::clone(&object)));
                }
                object
            });
            out.push(object);
        }
        if !kept.is_empty() {
            let state = &mut *self.0.state.lock();
            state.missed(kept.len());
            for (key, text, object) in kept {
                // Packed in the meantime it is decoded once more, the next time.
                let same = |slot: &Slot<T>| slot.text.as_ref().zip(text.as_ref()).is_some_and(|(a, b)| a.is_same(b));
                if let Some(slot) = state.objects.get_mut(&key)
                    && slot.decoded.is_none()
                    && same(slot)
                {
                    slot.elsewhere = Arc::downgrade(&object);
                    slot.decoded = Some(object);
                    state.decoded(key);
                }
            }
        }
        out
    }

    /// All keys, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.0.state.lock().objects.keys().map(|k| k.as_ref().to_owned()).collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.state.lock().objects.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An index kept up to date with the cache: `of` gives the values under which an object is found. Asking again for the
    /// same name gives the same index.
    pub fn index(&self, name: &'static str, of: impl Fn(&T) -> Vec<String> + Send + Sync + 'static) -> Index<T> {
        let mut state = self.0.state.lock();
        let slot = state.indexes.iter().position(|i| i.name == name).unwrap_or_else(|| {
            let mut data = IndexData { name, of: Box::new(of), entries: BTreeMap::new() };
            for (key, slot) in &state.objects {
                data.insert(key, &slot.object());
            }
            state.indexes.push(data);
            state.indexes.len() - 1
        });
        Index { store: self.clone(), slot }
    }

    /// Puts an object in, returning what it replaces.
    pub fn put(&self, object: Arc<T>) -> Option<Arc<T>> {
        self.put_with(object, None)
    }

    /// The same with the text the object was read from, which may be kept instead of it.
    pub(crate) fn put_with(&self, object: Arc<T>, json: Option<Bytes>) -> Option<Arc<T>> {
        let mut state = self.0.state.lock();
        let old = state.put(object, json);
        if state.objects.len() >= WORTH_IT {
            self.0.much.notify_one();
        }
        old
    }

    /// Resolves once there has been a change while many objects are held.
    pub(crate) async fn changed_much(&self) {
        self.0.much.notified().await;
    }

    /// Packs the texts of what has not changed since the last time. False where nothing is left to do.
    pub(crate) async fn pack(&self) -> bool {
        let (mut more, mut after) = (self.rest(), None::<Key>);
        let mut packing = std::mem::take(&mut *self.0.packing.lock());
        let next = |most| self.resting(most, &mut after, &mut more);
        packing.pack(next, |tried| self.hold(tried)).await;
        *self.0.packing.lock() = packing;
        more
    }

    /// Holds texts smaller, where they get so and have not changed.
    fn hold(&self, tried: Vec<((Key, Text), Option<Text>)>) {
        let state = &mut *self.0.state.lock();
        for ((key, before), smaller) in tried {
            if let Some(slot) = state.objects.get_mut(&key)
                && slot.text.as_ref().is_some_and(|t| t.is_same(&before))
            {
                slot.unlike_others = smaller.is_none();
                slot.text = smaller.or(Some(before));
            }
        }
    }

    /// Keeps an eighth of the decoded objects so where fewer were read. False where no fewer can be kept.
    fn rest(&self) -> bool {
        let reads = self.0.reads.swap(0, Ordering::Relaxed);
        let state = &mut *self.0.state.lock();
        let held = state.decoded.len();
        if state.objects.len() < WORTH_IT || held <= DECODED_AT_REST {
            return false;
        }
        if reads < held {
            state.decoded_max = (held / 8).max(DECODED_AT_REST);
            state.let_go();
        }
        true
    }

    /// The first so many texts that rest of what comes after a key, in key order. `more` becomes true where something does
    /// not rest yet.
    fn resting(&self, most: usize, after: &mut Option<Key>, more: &mut bool) -> Vec<((Key, Text), Text)> {
        let (mut out, state) = (Vec::new(), &mut *self.0.state.lock());
        if state.objects.len() < WORTH_IT {
            return out;
        }
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let rest = state.objects.range_mut::<str, _>((from, Bound::Unbounded));
        for (key, slot) in rest {
            let fresh = std::mem::take(&mut slot.fresh);
            slot.forget();
            let plain = |text: &&Text| !text.is_packed() && !slot.unlike_others;
            let Some(text) = slot.text.as_ref().filter(plain) else { continue };
            if fresh {
                *more = true;
                continue;
            }
            out.push(((key.clone(), text.clone()), text.clone()));
            if out.len() == most {
                *after = Some(key.clone());
                break;
            }
        }
        out
    }

    /// Takes an object out.
    pub fn take(&self, key: &str) -> Option<Arc<T>> {
        let state = &mut *self.0.state.lock();
        let old = state.objects.remove(key)?.object();
        for index in &mut state.indexes {
            index.remove(key, &old);
        }
        Some(old)
    }
}

/// Finds objects of a [`Store`] by a value. Cheap to clone.
pub struct Index<T> {
    store: Store<T>,
    slot: usize,
}

impl<T> Clone for Index<T> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), slot: self.slot }
    }
}

impl<T: Item> Index<T> {
    /// The objects under `value`, in key order.
    #[must_use]
    pub fn get(&self, value: &str) -> Vec<Arc<T>> {
        let found = {
            let state = &*self.store.0.state.lock();
            let keys = state.indexes[self.slot].entries.get(value).into_iter().flatten();
            found(keys.filter_map(|k| state.objects.get_key_value(k)))
        };
        self.store.decode(found)
    }

    /// How many objects are under `value`.
    #[must_use]
    pub fn count(&self, value: &str) -> usize {
        self.store.0.state.lock().indexes[self.slot].entries.get(value).map_or(0, BTreeSet::len)
    }

    /// All values, in order.
    #[must_use]
    pub fn values(&self) -> Vec<String> {
        self.store.0.state.lock().indexes[self.slot].entries.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn cm(ns: &str, name: &str, tag: &str) -> Arc<ConfigMap> {
        let mut c = ConfigMap::default();
        c.metadata.namespace = Some(ns.into());
        c.metadata.name = Some(name.into());
        c.data = Some([("tag".to_owned(), tag.to_owned())].into());
        Arc::new(c)
    }

    #[test]
    fn namespaces_do_not_run_into_each_other() {
        let s = Store::default();
        for (ns, n) in [("a", "x"), ("a-b", "x"), ("a", "y"), ("ab", "x"), ("a0", "x")] {
            s.put(cm(ns, n, ""));
        }
        let names: Vec<_> = s.list_in("a").iter().map(|c| key_of(&**c)).collect();
        assert_eq!(names, ["a/x", "a/y"]);
        assert_eq!(s.len(), 5);
        assert!(s.contains("a-b/x") && !s.contains("b/x"));
        assert_eq!(split_key("a/x"), ("a", "x"));
        assert_eq!(split_key("node"), ("", "node"));
    }

    #[test]
    fn more_objects_than_are_kept_decoded_are_read_again_from_their_text() {
        let s = Store::default();
        let by_tag = s.index("tag", |c: &ConfigMap| c.data.iter().flat_map(|d| d.values().cloned()).collect());
        let put = |n: usize, tag: &str| {
            let object = cm("n", &format!("{n:05}"), tag);
            let json = serde_json::to_vec(&*object).unwrap();
            s.put_with(object, Some(json.into()))
        };
        let decoded = || s.0.state.lock().objects.values().filter(|o| o.decoded.is_some()).count();
        let count = DECODED_MIN * 2;
        for n in 0..count {
            put(n, "red");
        }
        assert_eq!(decoded(), DECODED_MIN);
        // What goes out of use is read again; while it is in use there is one of it.
        let first = s.get("n", "00000").unwrap();
        assert!(Arc::ptr_eq(&first, &s.get("n", "00000").unwrap()));
        for n in 1..count {
            assert_eq!(put(n, "blue").unwrap().data.as_ref().unwrap()["tag"], "red");
        }
        assert!(s.0.state.lock().objects["n/00000"].decoded.is_none());
        assert!(Arc::ptr_eq(&first, &s.get("n", "00000").unwrap()));
        assert_eq!((by_tag.count("red"), by_tag.get("blue").len(), s.list().len()), (1, count - 1, count));
        // Somebody reads all: so many are kept decoded, until changes come without such readers. (The first one was in use.)
        assert_eq!(decoded(), count - 1);
        assert_eq!(put(0, "blue").as_deref(), Some(&*first));
        for n in 0..count {
            put(count + n, "green");
        }
        assert_eq!(decoded(), DECODED_MIN);
        for n in 0..count {
            assert!(s.take(&format!("n/{:05}", count + n)).is_some());
        }
        for n in 0..count {
            assert!(s.take(&format!("n/{n:05}")).is_some());
        }
        assert!(s.is_empty() && by_tag.values().is_empty() && s.0.state.lock().decoded.len() <= DECODED_MIN);
    }

    #[tokio::test]
    async fn what_rests_is_packed_and_reads_the_same() {
        let s = Store::default();
        let count = WORTH_IT * 2 + 100;
        let put = |n: usize, tag: &str| {
            let object = cm("n", &format!("{n:05}"), &format!("{} {tag}", "what all have in common; ".repeat(20)));
            let json = serde_json::to_vec(&*object).unwrap();
            s.put_with(object, Some(json.into()));
        };
        let packed =
            || s.0.state.lock().objects.values().filter(|o| o.text.as_ref().is_some_and(Text::is_packed)).count();
        for n in 0..WORTH_IT - 1 {
            put(n, "first");
        }
        assert!(!s.pack().await && !s.pack().await);
        assert_eq!(packed(), 0);
        for n in 0..count {
            put(n, "second");
        }
        tokio::time::timeout(std::time::Duration::ZERO, s.changed_much()).await.unwrap();
        // What came since the last time does not rest yet.
        assert!(s.pack().await);
        assert_eq!(packed(), 0);
        let decoded = || s.0.state.lock().objects.values().filter(|o| o.decoded.is_some()).count();
        assert_eq!(decoded(), DECODED_MIN / 8);
        put(0, "third");
        assert!(s.pack().await);
        assert_eq!(packed(), count - 1);
        while s.pack().await {}
        assert_eq!((packed(), decoded()), (count, DECODED_AT_REST));
        // Read again, from the packed text.
        let tag = |n: usize| s.get("n", &format!("{n:05}")).unwrap().data.as_ref().unwrap()["tag"].clone();
        assert!(tag(0).ends_with(" third") && (1..count).all(|n| tag(n).ends_with(" second")));
        put(5, "fourth");
        assert!(tag(5).ends_with(" fourth") && packed() == count - 1);
        assert_eq!(s.list().len(), count);
    }

    #[test]
    fn indexes_follow_changes_and_deletions() {
        let s = Store::default();
        s.put(cm("n", "a", "red"));
        let by_tag = s.index("tag", |c: &ConfigMap| c.data.iter().flat_map(|d| d.values().cloned()).collect());
        s.put(cm("n", "b", "red"));
        assert_eq!(by_tag.count("red"), 2);
        s.put(cm("n", "a", "blue"));
        assert_eq!((by_tag.count("red"), by_tag.count("blue")), (1, 1));
        assert_eq!(by_tag.get("blue")[0].metadata.name.as_deref(), Some("a"));
        s.take("n/b");
        assert_eq!(by_tag.values(), ["blue"]);
    }

    #[tokio::test(start_paused = true)]
    async fn passes_follow_a_change_until_nothing_is_left() {
        use gantry_api::packed::{REST, rest};
        let (changes, passes) = (Notify::new(), AtomicUsize::new(0));
        let pass = || async { (passes.fetch_add(1, Ordering::Relaxed) + 1) % 3 != 0 };
        let forever = rest(|| changes.notified(), pass);
        tokio::pin!(forever);
        for expected in [0, 3, 6] {
            assert!(tokio::time::timeout(10 * REST, &mut forever).await.is_err(), "it ends");
            assert_eq!(passes.load(Ordering::Relaxed), expected);
            changes.notify_one();
        }
    }
}
