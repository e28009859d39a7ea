//! ConfigMaps and Secrets that own pods refer to: one watch per object, for as long as a pod refers to it.

use async_trait::async_trait;
use futures::StreamExt;
use gantry_api::kind::Kind;
use gantry_client::{Api, Client, ListParams, WatchEvent, WatchParams};
use gantry_reconcile::backoff::Backoff;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long a pod waits for the first answer about an object.
const FIRST_ANSWER: Duration = Duration::from_secs(20);

/// Why an object is not at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReferenceError {
    /// The API server says there is none.
    NotFound,
    /// The API server did not answer.
    Unavailable(String),
}

/// Finds an object by name.
#[async_trait]
pub(crate) trait Lookup<K> {
    /// The object as last seen.
    async fn get(&self, namespace: &str, name: &str) -> Result<Arc<K>, ReferenceError>;
}

enum Seen<K> {
    Nothing,
    Failed(String),
    Absent,
    Present(Arc<K>),
}

struct Entry<K> {
    seen: watch::Receiver<Seen<K>>,
    watching: Option<tokio::task::JoinHandle<()>>,
    interested: Mutex<Vec<Weak<Notify>>>,
}

impl<K> Drop for Entry<K> {
    fn drop(&mut self) {
        if let Some(task) = &self.watching {
            task.abort();
        }
    }
}

type Entries<K> = Mutex<HashMap<(String, String), Weak<Entry<K>>>>;

/// The watches of one kind.
pub(crate) struct References<K> {
    client: Option<Client>,
    entries: Entries<K>,
    /// Keeps the entries of [`References::fixed`] alive.
    #[cfg(test)]
    _held: Vec<Arc<Entry<K>>>,
}

/// Keeps an object watched; a pod holds one per object it refers to.
pub(crate) struct Held<K>(Arc<Entry<K>>);

impl<K: Kind> References<K> {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client: Some(client),
            entries: Mutex::default(),
            #[cfg(test)]
            _held: Vec::new(),
        }
    }

    /// A set that never changes and watches nothing.
    #[cfg(test)]
    pub(crate) fn fixed(objects: Vec<K>) -> Self {
        let mut held = Vec::new();
        let mut entries = HashMap::new();
        for object in objects {
            let key =
                (object.meta().namespace.clone().unwrap_or_default(), object.meta().name.clone().unwrap_or_default());
            let (_, seen) = watch::channel(Seen::Present(Arc::new(object)));
            let entry = Arc::new(Entry { seen, watching: None, interested: Mutex::default() });
            entries.insert(key, Arc::downgrade(&entry));
            held.push(entry);
        }
        Self { client: None, entries: Mutex::new(entries), _held: held }
    }

    /// Watches the object until the handle is dropped; `interested` is told of every change.
    pub(crate) fn hold(&self, namespace: &str, name: &str, interested: Option<&Arc<Notify>>) -> Held<K> {
        let mut entries = self.entries.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let entry = match entries.get(&key).and_then(Weak::upgrade) {
            Some(entry) => entry,
            None => {
                let (send, seen) = watch::channel(match self.client {
                    Some(_) => Seen::Nothing,
                    None => Seen::Absent,
                });
                let client = self.client.clone();
                let (namespace, name) = key.clone();
                let entry = Arc::new_cyclic(|weak: &Weak<Entry<K>>| {
                    let weak = weak.clone();
                    let watching = client.map(|client| tokio::spawn(follow(client, namespace, name, send, weak)));
                    Entry { seen, watching, interested: Mutex::default() }
                });
                entries.retain(|_, e| e.strong_count() > 0);
                entries.insert(key, Arc::downgrade(&entry));
                entry
            }
        };
        if let Some(notify) = interested {
            let mut list = entry.interested.lock();
            let weak = Arc::downgrade(notify);
            list.retain(|w| w.strong_count() > 0 && !w.ptr_eq(&weak));
            list.push(weak);
        }
        Held(entry)
    }
}

#[async_trait]
impl<K: Kind> Lookup<K> for References<K> {
    async fn get(&self, namespace: &str, name: &str) -> Result<Arc<K>, ReferenceError> {
        self.hold(namespace, name, None).get().await
    }
}

impl<K: Kind> Held<K> {
    /// The object, once the first answer is here.
    pub(crate) async fn get(&self) -> Result<Arc<K>, ReferenceError> {
        let mut seen = self.0.seen.clone();
        let first = tokio::time::timeout(FIRST_ANSWER, seen.wait_for(|s| !matches!(s, Seen::Nothing))).await;
        match first {
            Ok(Ok(state)) => match &*state {
                Seen::Present(object) => Ok(object.clone()),
                Seen::Absent => Err(ReferenceError::NotFound),
                Seen::Failed(why) => Err(ReferenceError::Unavailable(why.clone())),
                Seen::Nothing => Err(ReferenceError::Unavailable("no answer yet".into())),
            },
            // The task that watches has ended, or it has heard nothing in time.
            Ok(Err(_)) | Err(_) => Err(ReferenceError::Unavailable("timed out waiting for the first answer".into())),
        }
    }
}

async fn follow<K: Kind>(
    client: Client,
    namespace: String,
    name: String,
    seen: watch::Sender<Seen<K>>,
    entry: Weak<Entry<K>>,
) {
    let api = Api::<K>::namespaced(client, &namespace);
    let selector = format!("metadata.name={name}");
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let tell = |state: Seen<K>| {
        let version = |s: &Seen<K>| match s {
            Seen::Present(o) => Some(o.meta().resource_version.clone()),
            _ => None,
        };
        let same = match (&*seen.borrow(), &state) {
            (Seen::Absent, Seen::Absent) => true,
            (old @ Seen::Present(_), new @ Seen::Present(_)) => version(old) == version(new),
            _ => false,
        };
        if same {
            return;
        }
        seen.send_replace(state);
        if let Some(entry) = entry.upgrade() {
            for notify in entry.interested.lock().iter().filter_map(Weak::upgrade) {
                notify.notify_one();
            }
        }
    };
    loop {
        let list = ListParams { field_selector: Some(selector.clone()), ..ListParams::default() };
        let mut version = match api.list(&list).await {
            Ok(mut page) => {
                match page.items.pop() {
                    Some(object) => tell(Seen::Present(Arc::new(object))),
                    None => tell(Seen::Absent),
                }
                backoff.reset();
                page.resource_version
            }
            Err(error) => {
                tracing::debug!(resource = %K::INFO.qualified(), namespace, name, %error, "cannot list a referenced object");
                if matches!(*seen.borrow(), Seen::Nothing | Seen::Failed(_)) {
                    tell(Seen::Failed(error.to_string()));
                }
                tokio::time::sleep(backoff.next_delay()).await;
                continue;
            }
        };
        loop {
            let params = WatchParams {
                field_selector: Some(selector.clone()),
                resource_version: version.clone(),
                bookmarks: true,
                ..WatchParams::default()
            };
            let mut progress = false;
            let end = match api.watch(&params).await {
                Err(error) => Err(error),
                Ok(mut stream) => loop {
                    match stream.next().await {
                        None => break Ok(()),
                        Some(Err(error)) => break Err(error),
                        Some(Ok(WatchEvent::Added(o) | WatchEvent::Modified(o))) => {
                            version = o.meta().resource_version.clone().unwrap_or(version);
                            tell(Seen::Present(Arc::new(o)));
                        }
                        Some(Ok(WatchEvent::Deleted(o))) => {
                            version = o.meta().resource_version.clone().unwrap_or(version);
                            tell(Seen::Absent);
                        }
                        Some(Ok(WatchEvent::Bookmark { resource_version, .. })) => version = resource_version,
                    }
                    progress = true;
                },
            };
            if progress {
                backoff.reset();
            }
            match end {
                Ok(()) if progress => {}
                Ok(()) => tokio::time::sleep(backoff.next_delay()).await,
                Err(error) if error.is_expired() => break,
                Err(error) => {
                    tracing::debug!(resource = %K::INFO.qualified(), namespace, name, %error, "watch of a referenced object broke");
                    tokio::time::sleep(backoff.next_delay()).await;
                    break;
                }
            }
        }
    }
}
