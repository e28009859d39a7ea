//! The objects an informer holds, by name and by index.

use bytes::Bytes;
use gantry_api::ObjectMeta;
use gantry_client::Item;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Weak};

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

/// An object with the text it was read from, where that may be kept instead.
pub struct Kept<T> {
    /// The object.
    pub object: T,
    /// Its text.
    pub json: Option<Bytes>,
}

impl<T> From<T> for Kept<T> {
    fn from(object: T) -> Self {
        Self { object, json: None }
    }
}

impl<T: Item> Item for Kept<T> {
    fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        T::read(bytes).map(Self::from)
    }
    fn read_kept(bytes: &[u8], keep: &dyn Fn() -> Bytes) -> Result<Self, serde_json::Error> {
        Ok(Self { object: T::read(bytes)?, json: Some(keep()) })
    }
    fn metadata(&self) -> &ObjectMeta {
        self.object.metadata()
    }
    fn slim(&mut self) {
        self.object.slim();
    }
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
            if let Some(bucket) = self.entries.get_mut(&value) {
                bucket.remove(key);
                if bucket.is_empty() {
                    self.entries.remove(&value);
                }
            }
        }
    }
}

/// One object: decoded, as text, or both.
struct Slot<T> {
    decoded: Option<Arc<T>>,
    /// Finds the decoded form while somebody else has it.
    elsewhere: Weak<T>,
    json: Option<Bytes>,
}

impl<T: Item> Slot<T> {
    fn known(&self) -> Option<Arc<T>> {
        self.decoded.clone().or_else(|| self.elsewhere.upgrade())
    }

    fn object(&self) -> Arc<T> {
        self.known().unwrap_or_else(|| decode(self.json.as_ref()))
    }
}

fn decode<T: Item>(json: Option<&Bytes>) -> Arc<T> {
    let json = json.expect("an object is decoded, or its text is kept");
    let mut object = T::read(json).expect("the text was decoded before");
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
        while self.decoded.len() > self.decoded_max
            && let Some(first) = self.decoded.pop_front()
        {
            if let Some(slot) = self.objects.get_mut(&first)
                && slot.json.is_some()
            {
                slot.decoded = None;
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
        let slot = Slot { elsewhere: Arc::downgrade(&object), decoded: Some(object.clone()), json };
        let old = self.objects.insert(key.clone(), slot).map(|slot| slot.object());
        for index in &mut self.indexes {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &object);
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
    json: Option<Bytes>,
}

/// A cache of objects in key order. Cheap to clone; all clones are one cache.
pub struct Store<T>(Arc<Mutex<State<T>>>);

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Item> Default for Store<T> {
    fn default() -> Self {
        let state =
            State { objects: BTreeMap::new(), indexes: Vec::new(), decoded: VecDeque::new(), decoded_max: DECODED_MIN };
        Self(Arc::new(Mutex::new(state)))
    }
}

fn found<'a, T: Item>(slots: impl Iterator<Item = (&'a Key, &'a Slot<T>)>) -> Vec<Found<T>> {
    let one = |(key, slot): (&Key, &Slot<T>)| match slot.known() {
        Some(object) => Found { key: key.clone(), object: Some(object), json: None },
        None => Found { key: key.clone(), object: None, json: slot.json.clone() },
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
        let found = found(self.0.lock().objects.get_key_value(key).into_iter());
        self.decode(found).pop()
    }

    /// All objects, in key order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<T>> {
        let found = found(self.0.lock().objects.iter());
        self.decode(found)
    }

    /// All objects of a namespace, in name order.
    #[must_use]
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<T>> {
        // '0' follows '/', so the range holds exactly the keys that begin with "namespace/".
        let (from, to) = (format!("{namespace}/"), format!("{namespace}0"));
        let range = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
        let found = found(self.0.lock().objects.range::<str, _>(range));
        self.decode(found)
    }

    /// Decodes what is not, and keeps it so unless it is more than is kept.
    fn decode(&self, found: Vec<Found<T>>) -> Vec<Arc<T>> {
        let undecoded = found.iter().filter(|f| f.object.is_none()).count();
        let mut kept = Vec::new();
        let mut out = Vec::with_capacity(found.len());
        for Found { key, object, json } in found {
            let object = object.unwrap_or_else(|| {
                let object = decode(json.as_ref());
                if undecoded <= DECODED_MAX {
                    kept.push((key, json, Arc::clone(&object)));
                }
                object
            });
            out.push(object);
        }
        if !kept.is_empty() {
            let state = &mut *self.0.lock();
            state.missed(kept.len());
            for (key, json, object) in kept {
                let same = |slot: &Slot<T>| slot.json.as_ref().map(|j| j.as_ptr()) == json.as_ref().map(|j| j.as_ptr());
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
        self.0.lock().objects.keys().map(|k| k.as_ref().to_owned()).collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().objects.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An index kept up to date with the cache: `of` gives the values under which an object is found. Asking again for the
    /// same name gives the same index.
    pub fn index(&self, name: &'static str, of: impl Fn(&T) -> Vec<String> + Send + Sync + 'static) -> Index<T> {
        let mut state = self.0.lock();
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
        self.0.lock().put(object, json)
    }

    /// Takes an object out.
    pub fn take(&self, key: &str) -> Option<Arc<T>> {
        let state = &mut *self.0.lock();
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
            let state = &*self.store.0.lock();
            let keys = state.indexes[self.slot].entries.get(value).into_iter().flatten();
            found(keys.filter_map(|k| state.objects.get_key_value(k)))
        };
        self.store.decode(found)
    }

    /// How many objects are under `value`.
    #[must_use]
    pub fn count(&self, value: &str) -> usize {
        self.store.0.lock().indexes[self.slot].entries.get(value).map_or(0, BTreeSet::len)
    }

    /// All values, in order.
    #[must_use]
    pub fn values(&self) -> Vec<String> {
        self.store.0.lock().indexes[self.slot].entries.keys().cloned().collect()
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
        let decoded = || s.0.lock().objects.values().filter(|o| o.decoded.is_some()).count();
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
        assert!(s.0.lock().objects["n/00000"].decoded.is_none());
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
        assert!(s.is_empty() && by_tag.values().is_empty() && s.0.lock().decoded.len() <= DECODED_MIN);
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
}
