//! Cached objects that the server's own parts read again and again (the namespace of every write, its service account, its
//! quotas), decoded once per state.

use crate::watch_cache::Entry;
use gantry_api::kind::Object;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Objects of each generation.
const GENERATION: usize = 128;
/// Lists up to this length are remembered; of longer ones each object would push out another.
pub(super) const LIST_MAX: usize = 16;

/// By address of the entry, which is kept alive so that no other can have the same.
type Generation = HashMap<usize, (Arc<Entry>, Arc<dyn Object>)>;

/// What was read lately. What is not read while a generation fills up is forgotten with the next.
#[derive(Default)]
pub(super) struct Decoded {
    generations: Mutex<[Generation; 2]>,
}

fn address(entry: &Arc<Entry>) -> usize {
    Arc::as_ptr(entry).addr()
}

impl Decoded {
    /// The object of an entry, if it was decoded lately.
    pub(super) fn get(&self, entry: &Arc<Entry>) -> Option<Arc<dyn Object>> {
        let [young, old] = &mut *self.generations.lock();
        let at = address(entry);
        if let Some((_, object)) = young.get(&at) {
            return Some(object.clone());
        }
        let (entry, object) = old.remove(&at)?;
        young.insert(at, (entry, object.clone()));
        Some(object)
    }

    /// Remembers the object of an entry.
    pub(super) fn put(&self, entry: &Arc<Entry>, object: &Arc<dyn Object>) {
        let mut forgotten = Generation::new();
        let mut generations = self.generations.lock();
        let [young, old] = &mut *generations;
        if young.len() >= GENERATION {
            forgotten = std::mem::replace(old, std::mem::take(young));
        }
        young.insert(address(entry), (entry.clone(), object.clone()));
        drop(generations);
        // Not under the lock: these may be many large objects.
        drop(forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch_cache::{EventType, Selectable};
    use gantry_api::kinds;
    use serde_json::json;

    #[test]
    fn what_is_read_again_stays_and_the_rest_goes() {
        let resource = kinds::find("", "v1", "configmaps").expect("a built-in kind");
        let entry = |name: String| {
            let text = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}).to_string();
            let object: Arc<dyn Object> = resource.decode(text.as_bytes()).unwrap().into();
            let selectable = Selectable::of(resource, object.as_ref());
            (Arc::new(Entry::new(&name, EventType::Added, text.as_bytes(), 1, resource, selectable)), object)
        };
        let decoded = Decoded::default();
        let (kept, object) = entry("kept".to_owned());
        assert!(decoded.get(&kept).is_none());
        decoded.put(&kept, &object);
        let (first, object) = entry("first".to_owned());
        decoded.put(&first, &object);
        for n in 0..3 * GENERATION {
            let (other, object) = entry(format!("n{n}"));
            decoded.put(&other, &object);
            assert_eq!(decoded.get(&kept).unwrap().meta().name.as_deref(), Some("kept"));
        }
        assert!(decoded.get(&first).is_none());
        let held: usize = decoded.generations.lock().iter().map(HashMap::len).sum();
        assert!(held <= 2 * GENERATION + 1, "{held}");
    }
}
