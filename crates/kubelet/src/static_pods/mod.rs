//! Static pods: manifests in a directory of the node, run whether there is an API server or not, and shown in the API
//! by mirror pods. A mirror that somebody deletes comes back; only the manifest decides whether the pod runs.

mod manifest;

use crate::agent::Agent;
use crate::error::Error;
use crate::logs;
use crate::pod::manager::Manager;
use crate::pod::names;
use gantry_api::core::pod::MIRROR_ANNOTATION;
use gantry_client::{Api, DeleteParams, PostParams};
use gantry_reconcile::backoff::Backoff;
use gantry_reconcile::{Informer, Synced};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A manifest is read when nobody has written in the directory for this long, so that none is read half-written.
const QUIET: Duration = Duration::from_millis(100);
/// What failed towards the API is tried again after this long, and after longer each time.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// `namespace/name`.
type Key = (String, String);

/// The static pods of a node.
pub(crate) struct StaticPods {
    agent: Arc<Agent>,
    manager: Arc<Manager>,
    /// The API's pods of this node, mirrors among them.
    pods: Informer<Pod>,
    path: PathBuf,
    changes: logs::Subscription,
    wanted: BTreeMap<Key, Arc<Pod>>,
    /// What was said about a file, so that it is said once.
    complaints: HashMap<PathBuf, String>,
}

fn key(pod: &Pod) -> Key {
    (names::namespace(pod).to_owned(), names::name(pod).to_owned())
}

impl StaticPods {
    /// Reads the manifests in `path` (a directory, made where there is none; or one file) and starts what they ask for.
    ///
    /// # Errors
    /// Where the directory can be neither made nor watched.
    pub(crate) fn begin(
        agent: Arc<Agent>,
        manager: Arc<Manager>,
        pods: Informer<Pod>,
        path: PathBuf,
    ) -> Result<Self, Error> {
        let failed = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| Error::Io { what, path, source }
        };
        let directory = if path.is_file() { path.parent().unwrap_or(Path::new("/")) } else { &path };
        std::fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let changes = logs::subscribe(directory).map_err(failed("watch", directory))?;
        let mut this =
            Self { agent, manager, pods, path, changes, wanted: BTreeMap::new(), complaints: HashMap::new() };
        this.read();
        this.start_and_stop();
        Ok(this)
    }

    /// Follows the directory and the mirrors, for as long as it is polled.
    pub(crate) async fn run(mut self) {
        let (mut mirrors, mut nodes) = (self.pods.changes(), self.agent.node.changes());
        let (pods, mut synced) = (self.pods.clone(), false);
        let (mut retry, mut again) = (Backoff::new(RETRY.0, RETRY.1), None);
        loop {
            let timer = async {
                match again {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changes.changed() => {
                    while tokio::time::timeout(QUIET, self.changes.changed()).await.is_ok() {}
                    self.read();
                }
                () = self.manager.ended() => {}
                Ok(()) = mirrors.changed() => {}
                // Mirrors are owned by the Node object, which may come last.
                Ok(()) = nodes.changed() => {}
                () = pods.synced(), if !synced => synced = true,
                () = timer => {}
            }
            self.start_and_stop();
            again = match self.sync_mirrors().await {
                Ok(()) => {
                    retry.reset();
                    None
                }
                Err(error) => {
                    tracing::warn!(error, "cannot bring mirror pods up to date, trying again");
                    Some(retry.next_delay())
                }
            };
        }
    }

    /// Reads all manifests anew.
    fn read(&mut self) {
        let mut complaints = HashMap::new();
        let mut wanted: BTreeMap<Key, Arc<Pod>> = BTreeMap::new();
        let files = files(&self.path).unwrap_or_else(|error| {
            complaints.insert(self.path.clone(), error.to_string());
            Vec::new()
        });
        for file in files {
            let pod = std::fs::read_to_string(&file)
                .map_err(|e| e.to_string())
                .and_then(|text| manifest::decode(&text, &file, &self.agent.cfg.node_name, &self.agent.clock));
            match pod {
                Ok(pod) => {
                    let key = key(&pod);
                    // The moment it was first seen stays.
                    let same = self.wanted.get(&key).filter(|p| names::uid(p) == names::uid(&pod)).cloned();
                    if let Some(twin) = wanted.get(&key).filter(|p| names::uid(p) != names::uid(&pod)) {
                        let error = format!("a pod {} is described by another manifest", names::name(twin));
                        complaints.insert(file, error);
                        continue;
                    }
                    wanted.insert(key, same.unwrap_or_else(|| Arc::new(pod)));
                }
                Err(error) => {
                    complaints.insert(file, error);
                }
            }
        }
        for (path, error) in &complaints {
            if self.complaints.get(path) != Some(error) {
                tracing::error!(path = %path.display(), error, "Could not process manifest file");
            }
        }
        self.complaints = complaints;
        self.wanted = wanted;
    }

    /// Ends what is no longer wanted, and starts what is once nothing runs under its name any more.
    fn start_and_stop(&self) {
        let running: HashMap<Key, Arc<Pod>> = self.manager.static_pods().into_iter().map(|p| (key(&p), p)).collect();
        for (key, pod) in &running {
            if self.wanted.get(key).is_none_or(|w| names::uid(w) != names::uid(pod)) {
                self.manager.remove(pod);
            }
        }
        for (key, pod) in &self.wanted {
            if !running.contains_key(key) {
                self.manager.update(pod);
            }
        }
    }

    /// Makes the API show exactly the pods that are wanted or still ending.
    async fn sync_mirrors(&self) -> Result<(), String> {
        let Some(node) = self.agent.node.get("", &self.agent.cfg.node_name) else { return Ok(()) };
        if !self.pods.has_synced() {
            return Ok(());
        }
        let running: HashMap<Key, Arc<Pod>> = self.manager.static_pods().into_iter().map(|p| (key(&p), p)).collect();
        let mut shown = HashMap::new();
        for mirror in self.pods.list().into_iter().filter(|p| names::is_mirror(p)) {
            let of = mirror.metadata.annotations.as_ref().and_then(|a| a.get(MIRROR_ANNOTATION));
            let pod = running.get(&key(&mirror)).filter(|p| Some(names::uid(p)) == of.map(String::as_str));
            match pod {
                Some(pod) if mirror.metadata.deletion_timestamp.is_none() => {
                    self.manager.show(names::uid(pod), &mirror);
                    shown.insert(key(&mirror), ());
                }
                _ => self.delete(&mirror).await?,
            }
        }
        for (key, pod) in &running {
            let wanted = self.wanted.get(key).is_some_and(|w| names::uid(w) == names::uid(pod));
            if wanted && !shown.contains_key(key) {
                let api = Api::<Pod>::namespaced(self.agent.client.clone(), &key.0);
                match api.create(&PostParams::default(), &manifest::mirror(pod, &node)).await {
                    // One that is on its way out, or was just made: the watch will tell.
                    Ok(_) => {}
                    Err(error) if error.is("AlreadyExists") => {}
                    Err(error) => return Err(format!("create mirror pod {}/{}: {error}", key.0, key.1)),
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, mirror: &Pod) -> Result<(), String> {
        let api = Api::<Pod>::namespaced(self.agent.client.clone(), names::namespace(mirror));
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            precondition_uid: mirror.metadata.uid.clone(),
            ..DeleteParams::default()
        };
        match api.delete(names::name(mirror), &params).await {
            Ok(_) => Ok(()),
            Err(error) if error.is("NotFound") || error.is("Conflict") => Ok(()),
            Err(error) => {
                Err(format!("delete mirror pod {}/{}: {error}", names::namespace(mirror), names::name(mirror)))
            }
        }
    }
}

/// The manifests: all files of a directory but hidden ones, in order; or the one file.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
