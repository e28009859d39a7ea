//! What has been written and not been seen in the cache yet, so that nothing is created twice.

use gantry_api::ObjectMeta;
use gantry_api::meta::object::Meta;
use gantry_reconcile::Store;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// What was written is given up on after this long, in case a watch lost it.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy)]
struct Write {
    /// The version written, None where deleted.
    version: Option<u64>,
    at: Instant,
}

/// Slices written, by key of their Service and by name.
#[derive(Default)]
pub(super) struct Written(Mutex<BTreeMap<String, BTreeMap<String, Write>>>);

fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version().parse().unwrap_or(0)
}

impl Written {
    pub(super) fn wrote(&self, key: &str, slice: &EndpointSlice) {
        self.note(key, slice.metadata.name(), Some(version(&slice.metadata)));
    }

    pub(super) fn deleted(&self, key: &str, name: &str) {
        self.note(key, name, None);
    }

    fn note(&self, key: &str, name: &str, version: Option<u64>) {
        self.0.lock().entry(key.to_owned()).or_default().insert(name.to_owned(), Write { version, at: Instant::now() });
    }

    /// A slice was seen to go, whoever deleted it.
    pub(super) fn saw_deletion(&self, key: &str, name: &str) {
        if let Some(slices) = self.0.lock().get_mut(key) {
            slices.remove(name);
        }
    }

    pub(super) fn forget(&self, key: &str) {
        self.0.lock().remove(key);
    }

    /// Whether the cache shows everything written for the Service.
    pub(super) fn is_seen(&self, key: &str, cache: &Store<EndpointSlice>) -> bool {
        let (namespace, _) = gantry_reconcile::store::split_key(key);
        let mut all = self.0.lock();
        let Some(slices) = all.get_mut(key) else { return true };
        slices.retain(|name, write| match (cache.get(namespace, name), write.version) {
            _ if write.at.elapsed() > TIMEOUT => false,
            (None, None) => false,
            (Some(seen), Some(written)) => version(&seen.metadata) < written,
            _ => true,
        });
        slices.is_empty()
    }
}
