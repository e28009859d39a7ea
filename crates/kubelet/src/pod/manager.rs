//! Which pods have a worker: fed by the watch of own pods, and by what an earlier run of the agent left behind.

use super::names;
use super::status::Verdict;
use super::worker::{Desired, Worker};
use crate::agent::Agent;
use gantry_container::runtime::{RuntimeEvent, SandboxStatus};
use gantry_reconcile::Change;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::AbortHandle;

struct Handle {
    desired: watch::Sender<Desired>,
    wake: Arc<Notify>,
    task: AbortHandle,
}

#[derive(Default)]
struct Pods {
    workers: HashMap<String, Handle>,
    /// Workers that are done while the object still exists (finalizers).
    done: HashSet<String>,
    /// Sandboxes of an earlier run that no pod has claimed yet.
    found: HashMap<String, Vec<SandboxStatus>>,
}

/// The workers of this node.
pub(crate) struct Manager {
    agent: Arc<Agent>,
    pods: Arc<Mutex<Pods>>,
    /// Told when a worker has ended.
    ended: Arc<Notify>,
}

/// The pod a sandbox id (`<uid>_<attempt>`) belongs to.
fn uid_of(sandbox: &str) -> &str {
    sandbox.rsplit_once('_').map_or(sandbox, |(uid, _)| uid)
}

impl Manager {
    /// A manager that knows the sandboxes of an earlier run.
    pub(crate) fn new(agent: Arc<Agent>, sandboxes: Vec<SandboxStatus>) -> Arc<Self> {
        let mut pods = Pods::default();
        for s in sandboxes {
            let uid = s.labels.get(names::POD_UID).map_or_else(|| uid_of(&s.id).to_owned(), Clone::clone);
            pods.found.entry(uid).or_default().push(s);
        }
        Arc::new(Self { agent, pods: Arc::new(Mutex::new(pods)), ended: Arc::default() })
    }

    /// Takes note of a change of one of the node's pods. Mirror pods stand for what runs anyway. Must be called inside a
    /// tokio runtime.
    pub(crate) fn change(&self, change: &Change<Pod>) {
        match change {
            change if names::is_mirror(change.object()) => {}
            Change::Added(pod) => self.update(pod),
            Change::Modified { old, new } => {
                // Deleted and made anew under the same name.
                if old.metadata.uid != new.metadata.uid {
                    self.remove(old);
                }
                self.update(new);
            }
            Change::Deleted(pod) => self.remove(pod),
        }
    }

    /// Starts a worker for a pod, or tells the one it has.
    pub(crate) fn update(&self, pod: &Arc<Pod>) {
        let uid = names::uid(pod).to_owned();
        let mut pods = self.pods.lock();
        if let Some(handle) = pods.workers.get(&uid) {
            handle.desired.send_modify(|d| d.pod = pod.clone());
            return;
        }
        if pods.done.contains(&uid) {
            return;
        }
        let (sender, desired) = watch::channel(Desired { pod: pod.clone(), removed: false, evict: None, mirror: None });
        let wake = Arc::new(Notify::new());
        let found = pods.found.remove(&uid).unwrap_or_default();
        let worker = Worker::new(self.agent.clone(), desired, wake.clone());
        let (all, key, ended) = (self.pods.clone(), uid.clone(), self.ended.clone());
        let task = tokio::spawn(async move {
            worker.run(found).await;
            let mut pods = all.lock();
            if let Some(handle) = pods.workers.remove(&key)
                && !handle.desired.borrow().removed
            {
                pods.done.insert(key);
            }
            drop(pods);
            ended.notify_one();
        });
        pods.workers.insert(uid, Handle { desired: sender, wake, task: task.abort_handle() });
    }

    /// Has the worker of a pod that is gone end it.
    pub(crate) fn remove(&self, pod: &Arc<Pod>) {
        let uid = names::uid(pod);
        let mut pods = self.pods.lock();
        pods.done.remove(uid);
        // The scheduler has given its room away already: a pod that comes now must not be refused for what still ends.
        self.agent.admissions.release(uid);
        if let Some(handle) = pods.workers.get(uid) {
            handle.desired.send_modify(|d| {
                d.pod = pod.clone();
                d.removed = true;
            });
        }
    }

    /// Has the node end a pod; its status will say why.
    pub(crate) fn evict(&self, uid: &str, verdict: Verdict, grace: Duration) {
        if let Some(handle) = self.pods.lock().workers.get(uid) {
            handle.desired.send_modify(|d| d.evict = Some((verdict, grace)));
        }
    }

    /// Tells the worker of a static pod which mirror to report to.
    pub(crate) fn show(&self, uid: &str, mirror: &Arc<Pod>) {
        if let Some(handle) = self.pods.lock().workers.get(uid) {
            handle.desired.send_if_modified(|d| {
                let new = d.mirror.as_ref().is_none_or(|m| m.metadata.uid != mirror.metadata.uid);
                if new {
                    d.mirror = Some(mirror.clone());
                }
                new
            });
        }
    }

    /// Waits until a worker has ended. One that did before the call counts.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// The static pods that have a worker.
    pub(crate) fn static_pods(&self) -> Vec<Arc<Pod>> {
        self.list().into_iter().filter(|p| names::is_static(p)).collect()
    }

    /// The pods that have a worker.
    pub(crate) fn list(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().workers.values().map(|h| h.desired.borrow().pod.clone()).collect()
    }

    /// Has the worker of a pod look again.
    pub(crate) fn wake(&self, uid: &str) {
        if let Some(handle) = self.pods.lock().workers.get(uid) {
            handle.wake.notify_one();
        }
    }

    /// UIDs of the pods that have a worker.
    pub(crate) fn uids(&self) -> BTreeSet<String> {
        self.pods.lock().workers.keys().cloned().collect()
    }

    /// The pods that run or may come to run: neither ended nor being evicted.
    pub(crate) fn active(&self) -> Vec<Arc<Pod>> {
        let pods = self.pods.lock();
        let desired = pods.workers.values().map(|h| h.desired.borrow());
        desired.filter(|d| d.evict.is_none() && !super::worker::is_final(&d.pod)).map(|d| d.pod.clone()).collect()
    }

    /// Ends all workers; containers keep running.
    pub(crate) fn stop(&self) {
        for handle in self.pods.lock().workers.values() {
            handle.task.abort();
        }
    }

    /// Wakes workers on what the runtime reports, until it ends.
    pub(crate) async fn follow(&self, mut events: broadcast::Receiver<RuntimeEvent>) {
        loop {
            let event = events.recv().await;
            let pods = self.pods.lock();
            match event {
                Ok(
                    RuntimeEvent::ContainerExited { sandbox_id, .. }
                    | RuntimeEvent::ContainerOom { sandbox_id, .. }
                    | RuntimeEvent::SandboxExited { sandbox_id },
                ) => {
                    if let Some(handle) = pods.workers.get(uid_of(&sandbox_id)) {
                        handle.wake.notify_one();
                    }
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "runtime events were missed, looking at every pod");
                    for handle in pods.workers.values() {
                        handle.wake.notify_one();
                    }
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Removes what belongs to no pod: sandboxes, network attachments, directories. To be called once the first list of
    /// pods is here.
    pub(crate) async fn remove_orphans(&self) {
        let found: Vec<SandboxStatus> = self.pods.lock().found.drain().flat_map(|(_, s)| s).collect();
        for sandbox in found {
            tracing::info!(sandbox = sandbox.id, "removing the sandbox of a pod that no longer exists");
            if let Err(error) = self.agent.runtime.remove_sandbox(&sandbox.id).await {
                tracing::warn!(sandbox = sandbox.id, %error, "cannot remove an orphaned sandbox");
            }
        }
        // Looked at before it is asked which pods there are: what a pod that comes meanwhile makes is not among them.
        let directory = self.agent.cfg.pods_directory();
        let found = on_disk(move || -> Vec<PathBuf> {
            std::fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        });
        let found = found.await.unwrap_or_default();
        let (keys, uids): (HashSet<String>, HashSet<String>) = {
            let pods = self.pods.lock();
            let live = pods.workers.values().map(|h| h.desired.borrow().pod.clone());
            live.map(|p| (names::network_key(&p), names::uid(&p).to_owned())).unzip()
        };
        if let Err(error) = self.agent.network.reconcile(&keys).await {
            tracing::warn!(%error, "cannot remove orphaned network attachments");
        }
        let is_live = move |path: &Path| path.file_name().is_some_and(|uid| uids.contains(&*uid.to_string_lossy()));
        let removed = on_disk(move || {
            for path in found.iter().filter(|path| !is_live(path)) {
                if let Err(error) = crate::volumes::remove_pod_directory(path) {
                    let path = path.display();
                    tracing::warn!(%path, error, "cannot remove the directory of a pod that no longer exists");
                }
            }
        });
        removed.await;
    }
}

/// Works with files off the runtime's threads; None where that ended abnormally.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) => {
            tracing::error!(%error, "removing orphaned directories ended abnormally");
            None
        }
    }
}

#[cfg(test)]
mod tests;
