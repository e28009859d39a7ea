//! Everything that was ever written to the store, in order, and the state it adds up to.

use bytes::Bytes;
use gantry_store::{Store, StoreError};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Virtual time since the log began.
    pub at: Duration,
    /// The store's revision.
    pub revision: u64,
    /// The key: `/registry/<group>/<plural>/[<namespace>/]<name>`.
    pub key: String,
    /// The bytes written; None where the key was deleted.
    pub value: Option<Bytes>,
}

impl std::fmt::Display for Change {
    /// One line that holds all there is; bytes that are no text are written as hexadecimal digits.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:010}ms r{} ", self.at.as_millis(), self.revision)?;
        let Some(value) = &self.value else { return write!(f, "DELETE {}", self.key) };
        write!(f, "PUT {} ", self.key)?;
        match std::str::from_utf8(value) {
            Ok(text) if !text.contains('\n') => f.write_str(text),
            _ => value.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// The objects that are stored at one moment, by key.
#[derive(Clone, Debug, Default)]
pub struct World(BTreeMap<String, Arc<Value>>);

impl World {
    /// Takes a change in.
    pub fn apply(&mut self, change: &Change) {
        match &change.value {
            Some(bytes) => {
                let object = serde_json::from_slice(bytes).unwrap_or(Value::Null);
                self.0.insert(change.key.clone(), Arc::new(object));
            }
            None => drop(self.0.remove(&change.key)),
        }
    }

    /// The object of this key.
    #[must_use]
    pub fn key(&self, key: &str) -> Option<&Arc<Value>> {
        self.0.get(key)
    }

    /// All objects of a resource (`core/pods`, `apps/deployments`) by `<namespace>/<name>` or `<name>`, in order.
    pub fn all<'w>(&'w self, resource: &str) -> impl Iterator<Item = (&'w str, &'w Arc<Value>)> + use<'w> {
        let prefix = format!("/registry/{resource}/");
        let skip = prefix.len();
        let range = self.0.range(prefix.clone()..);
        range.take_while(move |(k, _)| k.starts_with(&prefix)).map(move |(k, v)| (&k[skip..], v))
    }

    /// All objects by key, in order.
    pub fn objects(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(k, v)| (k.as_str(), &**v))
    }

    /// All objects of a namespace by key, in order.
    pub fn objects_within(&self, namespace: &str) -> impl Iterator<Item = (&str, &Value)> {
        let inside = format!("/{namespace}/");
        self.objects().filter(move |(key, _)| {
            // `/registry/<group>/<plural>/<namespace>/<name>`
            let nth = key.match_indices('/').nth(3).map(|(at, _)| at);
            nth.is_some_and(|at| key[at..].starts_with(&inside))
        })
    }

    /// The keys of all objects of a namespace, in order.
    pub fn keys_within(&self, namespace: &str) -> impl Iterator<Item = &str> {
        self.objects_within(namespace).map(|(key, _)| key)
    }

    /// The object of this resource and path (`<namespace>/<name>` or `<name>`).
    #[must_use]
    pub fn get(&self, resource: &str, path: &str) -> Option<&Arc<Value>> {
        self.key(&format!("/registry/{resource}/{path}"))
    }
}

#[derive(Default)]
struct Inner {
    changes: Vec<Change>,
    world: World,
    broken: Option<StoreError>,
}

struct Shared {
    inner: Mutex<Inner>,
    grown: Notify,
}

/// What was waited for did not come.
#[derive(Debug, thiserror::Error)]
#[error("after {limit:?} of virtual time it is still not so that {what}\n{state}")]
pub struct Stuck {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub limit: Duration,
    /// Nodes, workloads and pods as they are.
    pub state: String,
}

/// A growing log of a store. Cheap to clone; all clones are one log. It holds everything for as long as it lives: its size
/// is bounded by the length of the simulation.
#[derive(Clone)]
pub struct EventLog(Arc<Shared>);

impl EventLog {
    /// Follows an empty store from its first write on, in a task of its own.
    ///
    /// # Errors
    /// Where the store cannot be watched.
    pub async fn follow(store: &dyn Store) -> Result<Self, StoreError> {
        let mut watch = store.watch(Bytes::new(), Some(1)).await?;
        let log = Self(Arc::new(Shared { inner: Mutex::default(), grown: Notify::new() }));
        let (shared, begin) = (log.0.clone(), Instant::now());
        tokio::spawn(async move {
            loop {
                let next = watch.next().await;
                let mut inner = shared.inner.lock();
                match next {
                    Ok(batch) => {
                        for event in batch.events.iter() {
                            let change = Change {
                                at: begin.elapsed(),
                                revision: batch.revision,
                                key: String::from_utf8_lossy(&event.key).into_owned(),
                                value: event.value.as_ref().map(|v| v.value.clone()),
                            };
                            inner.world.apply(&change);
                            inner.changes.push(change);
                        }
                    }
                    Err(e) => inner.broken = Some(e),
                }
                let ended = inner.broken.is_some();
                drop(inner);
                shared.grown.notify_waiters();
                if ended {
                    return;
                }
            }
        });
        Ok(log)
    }

    /// All changes so far.
    ///
    /// # Panics
    /// Where the log lost the store: a log with a hole is none.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let inner = self.0.inner.lock();
        if let Some(e) = &inner.broken {
            panic!("the event log lost the store: {e}");
        }
        inner.changes.clone()
    }

    /// The whole log as text, a line for each change.
    #[must_use]
    pub fn text(&self) -> String {
        self.changes().iter().fold(String::new(), |mut text, change| {
            let _ = writeln!(text, "{change}");
            text
        })
    }

    /// Looks at the present state.
    pub fn look<T>(&self, see: impl FnOnce(&World) -> T) -> T {
        see(&self.0.inner.lock().world)
    }

    /// Waits until `holds`, looking after each write, for at most `limit` of virtual time.
    ///
    /// # Errors
    /// Where it never held; the error tells the state.
    pub async fn until(&self, what: &str, limit: Duration, mut holds: impl FnMut(&World) -> bool) -> Result<(), Stuck> {
        let wait = async {
            loop {
                let grown = self.0.grown.notified();
                tokio::pin!(grown);
                grown.as_mut().enable();
                if self.look(&mut holds) {
                    return;
                }
                grown.await;
            }
        };
        let waited = tokio::time::timeout(limit, wait).await;
        waited.map_err(|_| Stuck { what: what.to_owned(), limit, state: self.look(summary) })
    }
}

/// Nodes, workloads and pods in a line each.
fn summary(world: &World) -> String {
    let mut text = String::new();
    for (name, n) in world.all("core/nodes") {
        let _ = writeln!(text, "node {name}: {} {}", n["spec"], conditions(n));
    }
    for resource in ["apps/deployments", "apps/replicasets", "policy/poddisruptionbudgets"] {
        for (name, o) in world.all(resource) {
            let _ = writeln!(text, "{resource} {name}: wants {} has {}", o["spec"]["replicas"], o["status"]);
        }
    }
    for (name, p) in world.all("core/pods") {
        let (node, phase) = (&p["spec"]["nodeName"], &p["status"]["phase"]);
        let going = if p["metadata"]["deletionTimestamp"].is_null() { "" } else { " terminating" };
        let _ = writeln!(text, "pod {name}: on {node} {phase}{going} {}", conditions(p));
    }
    text
}

fn conditions(object: &Value) -> String {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.map(|c| format!("{}={} {}", c["type"], c["status"], c["message"])).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_store::{MemoryStore, Txn, Write};

    #[tokio::test(start_paused = true)]
    async fn the_log_holds_every_byte_and_the_state_it_adds_up_to() {
        let store = MemoryStore::new();
        let log = EventLog::follow(&store).await.unwrap();
        let write = |w| store.txn(Txn { compares: vec![], writes: vec![w] });
        write(Write::Put("/registry/core/pods/n/a".into(), r#"{"a":1}"#.into())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        write(Write::Put("/registry/core/podsx/b".into(), Bytes::from_static(b"\xff\n"))).await.unwrap();
        let until = |n| log.until("there", Duration::from_secs(1), move |w| w.all("core/pods").count() == n);
        until(1).await.unwrap();
        assert!(until(2).await.unwrap_err().to_string().contains("pod n/a"));
        write(Write::Delete("/registry/core/pods/n/a".into())).await.unwrap();
        until(0).await.unwrap();
        let expected = [
            r#"0000000000ms r1 PUT /registry/core/pods/n/a {"a":1}"#,
            "0000001500ms r2 PUT /registry/core/podsx/b ff0a",
            "0000002500ms r3 DELETE /registry/core/pods/n/a",
        ];
        assert_eq!(log.text(), expected.join("\n") + "\n");
    }
}
