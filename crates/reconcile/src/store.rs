//! The objects an informer holds, by name and by index.

use gantry_client::Item;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;

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

type IndexFn<T> = Box<dyn Fn(&T) -> Vec<String> + Send + Sync>;
type Objects<T> = BTreeMap<String, Arc<T>>;

struct IndexData<T> {
    name: &'static str,
    of: IndexFn<T>,
    entries: BTreeMap<String, Objects<T>>,
}

impl<T> IndexData<T> {
    fn insert(&mut self, key: &str, object: &Arc<T>) {
        for value in (self.of)(object) {
            self.entries.entry(value).or_default().insert(key.to_owned(), object.clone());
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

struct State<T> {
    objects: Objects<T>,
    indexes: Vec<IndexData<T>>,
}

/// A cache of objects in key order. Cheap to clone; all clones are one cache.
pub struct Store<T>(Arc<RwLock<State<T>>>);

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Item> Default for Store<T> {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(State { objects: BTreeMap::new(), indexes: Vec::new() })))
    }
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
        self.0.read().objects.get(key).cloned()
    }

    /// All objects, in key order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<T>> {
        self.0.read().objects.values().cloned().collect()
    }

    /// All objects of a namespace, in name order.
    #[must_use]
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<T>> {
        // '0' follows '/', so the range holds exactly the keys that begin with "namespace/".
        let (from, to) = (format!("{namespace}/"), format!("{namespace}0"));
        self.0.read().objects.range(from..to).map(|(_, o)| o.clone()).collect()
    }

    /// All keys, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.0.read().objects.keys().cloned().collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.read().objects.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An index kept up to date with the cache: `of` gives the values under which an object is found. Asking again for the
    /// same name gives the same index.
    pub fn index(&self, name: &'static str, of: impl Fn(&T) -> Vec<String> + Send + Sync + 'static) -> Index<T> {
        let mut state = self.0.write();
        let slot = state.indexes.iter().position(|i| i.name == name).unwrap_or_else(|| {
            let mut data = IndexData { name, of: Box::new(of), entries: BTreeMap::new() };
            for (k, o) in &state.objects {
                data.insert(k, o);
            }
            state.indexes.push(data);
            state.indexes.len() - 1
        });
        Index { store: self.clone(), slot }
    }

    /// Puts an object in, returning what it replaces. Informers do this; so do tests.
    pub fn put(&self, object: Arc<T>) -> Option<Arc<T>> {
        let key = key_of(&*object);
        let state = &mut *self.0.write();
        let old = state.objects.insert(key.clone(), object.clone());
        for index in &mut state.indexes {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &object);
        }
        old
    }

    /// Takes an object out.
    pub fn take(&self, key: &str) -> Option<Arc<T>> {
        let state = &mut *self.0.write();
        let old = state.objects.remove(key)?;
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
        let state = self.store.0.read();
        state.indexes[self.slot].entries.get(value).map(|b| b.values().cloned().collect()).unwrap_or_default()
    }

    /// How many objects are under `value`.
    #[must_use]
    pub fn count(&self, value: &str) -> usize {
        self.store.0.read().indexes[self.slot].entries.get(value).map_or(0, BTreeMap::len)
    }

    /// All values, in order.
    #[must_use]
    pub fn values(&self) -> Vec<String> {
        self.store.0.read().indexes[self.slot].entries.keys().cloned().collect()
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
