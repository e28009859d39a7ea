//! Policies at work: caches in, rules out, and pods held back until theirs are in place.

use crate::apply::{Applier, remove_tables};
use crate::compile::{endpoint, endpoint_at, policy};
use crate::model::{Local, Model};
use gantry_network::IpNet;
use gantry_network::nft::{Family, Nft, NftError};
use gantry_reconcile::store::split_key;
use gantry_reconcile::{Informer, Informers, wait_synced};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How long to wait after a failure at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How long a pod is held back for its policies. Then it starts closed, and is opened when they are known.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pods that can be peers.
const PEERS: &str = "spec.hostNetwork=false,status.phase!=Failed,status.phase!=Succeeded,status.podIP!=";
/// The annotation by which a mirror pod names the pod of the node that it shows.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// How policies are enforced on a node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The same short id that the node's network has.
    pub instance: String,
    /// The ranges of this node's pods, one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// The addresses of the pods that an earlier run of the node left, by `namespace/name/uid`.
    pub attached: BTreeMap<String, Vec<IpAddr>>,
}

/// Why policies cannot be enforced.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The packet rules.
    #[error("network policies: {0}")]
    Nft(#[from] NftError),
    /// The packet rules of one pod, as they were when it was to start.
    #[error("network policies of the pod: {0}")]
    Pod(String),
}

/// Removes the rules of an instance, as `gantry down` does.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(instance: &str) -> Result<(), PolicyError> {
    Ok(remove_tables(instance).await?)
}

/// A pod that came or went.
enum Message {
    Attach { key: Arc<str>, pod: Local, seen: Box<Pod>, done: oneshot::Sender<Result<(), String>> },
    Detach { key: Arc<str> },
}

#[derive(Default)]
struct Dirty {
    messages: Vec<Message>,
    policies: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    pods: BTreeSet<String>,
}

#[derive(Default)]
struct Shared {
    dirty: Mutex<Dirty>,
    wake: Notify,
}

impl Shared {
    fn note(&self, note: impl FnOnce(&mut Dirty)) {
        note(&mut self.dirty.lock());
        self.wake.notify_one();
    }
}

/// Enforces the policies of this node's pods. Cheap to clone.
#[derive(Clone)]
pub struct Enforcer {
    shared: Arc<Shared>,
    config: Arc<Config>,
    nft: Nft,
}

impl Enforcer {
    /// Closes this node's pods, unless the rules of an earlier run are still there: those go on until
    /// [`run`](Self::run) has learnt what is to be. To be called before pods start, in the node's network namespace.
    ///
    /// # Errors
    /// When the kernel's packet rules are out of reach.
    pub async fn open(config: Config) -> Result<Enforcer, PolicyError> {
        let enforcer = Enforcer { shared: Arc::default(), config: Arc::new(config), nft: Nft::open()? };
        for applier in enforcer.appliers() {
            applier.close().await?;
        }
        Ok(enforcer)
    }

    fn appliers(&self) -> Vec<Applier> {
        let cidrs = &self.config.pod_cidrs;
        let has = |v4: bool| cidrs.iter().any(|c| c.addr().is_ipv4() == v4);
        [(has(true), Family::Ipv4), (has(false), Family::Ipv6)]
            .into_iter()
            .filter(|(has, _)| *has)
            .map(|(_, family)| Applier::new(self.nft.clone(), family, &self.config.instance, cidrs.clone()))
            .collect()
    }

    /// Takes over that a pod has its addresses, and returns when the rules for it are in place. Nothing of it may run
    /// before. Where policies cannot be known, as without an API server, it returns after a while; the pod then reaches
    /// only its node until they are.
    ///
    /// # Errors
    /// When the kernel refuses the rules.
    pub async fn attached(&self, key: &str, pod: &Pod, addresses: &[IpAddr]) -> Result<(), PolicyError> {
        let local = Local {
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default().into(),
            addresses: addresses.to_vec(),
            labels: Some(pod.metadata.labels.clone().unwrap_or_default()),
        };
        let (done, told) = oneshot::channel();
        let message = Message::Attach { key: key.into(), pod: local, seen: Box::new(pod.clone()), done };
        self.shared.note(|dirty| dirty.messages.push(message));
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(text))) => Err(PolicyError::Pod(text)),
            Ok(Err(_)) | Err(_) => {
                warn!(pod = key, "the pod starts closed: its network policies are not known yet");
                Ok(())
            }
        }
    }

    /// Takes over that a pod has no network any more.
    pub fn detached(&self, key: &str) {
        self.shared.note(|dirty| dirty.messages.push(Message::Detach { key: key.into() }));
    }

    /// Keeps the rules up with the API until `shutdown`; they stay when it ends. Pods are watched only where there are
    /// policies. `informers` may be shared with others and are started by somebody else.
    pub async fn run(&self, informers: &Informers, shutdown: CancellationToken) {
        let policies = informers.get::<NetworkPolicy>();
        let namespaces = informers.get::<Namespace>();
        let shared = self.shared.clone();
        policies.on_change(move |change| {
            let key = gantry_reconcile::store::key_of(&**change.object());
            shared.note(|dirty| {
                dirty.policies.insert(key);
            });
        });
        let shared = self.shared.clone();
        namespaces.on_change(move |change| {
            let name = change.object().metadata.name.clone().unwrap_or_default();
            let same = change.old().is_some_and(|old| old.metadata.labels == change.object().metadata.labels);
            if !same {
                shared.note(|dirty| {
                    dirty.namespaces.insert(name);
                });
            }
        });
        let mut work = Work {
            enforcer: self.clone(),
            appliers: self.appliers(),
            model: Model::default(),
            informers: informers.clone(),
            policies,
            namespaces,
            pods: None,
            held: Vec::new(),
            in_kernel: false,
        };
        for (key, addresses) in &self.config.attached {
            let namespace = split_key(key).0.into();
            let local = Local { namespace, addresses: addresses.clone(), labels: None };
            work.model.attach(&key.as_str().into(), local);
        }
        tokio::select! {
            () = work.run(&shutdown) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

struct Work {
    enforcer: Enforcer,
    appliers: Vec<Applier>,
    model: Model,
    informers: Informers,
    policies: Informer<NetworkPolicy>,
    namespaces: Informer<Namespace>,
    /// Asked for with the first policy.
    pods: Option<Informer<Pod>>,
    /// Messages of the time in which nothing can be decided yet.
    held: Vec<Message>,
    /// Whether what the model says is in the kernel.
    in_kernel: bool,
}

impl Work {
    async fn run(&mut self, shutdown: &CancellationToken) {
        let (policies, namespaces) = (self.policies.clone(), self.namespaces.clone());
        let synced = async { wait_synced(&[&policies, &namespaces], shutdown).await };
        if !self.holding(synced).await {
            return;
        }
        info!(policies = self.policies.store().len(), "network policies are known");
        // The first round has to happen even where there is nothing: pods are closed until then.
        self.enforcer.shared.wake.notify_one();
        let mut delay = RETRY.0;
        loop {
            self.enforcer.shared.wake.notified().await;
            if self.pods.is_none() && !self.policies.store().is_empty() && !self.watch_pods(shutdown).await {
                return;
            }
            match self.sync().await {
                Ok(()) => delay = RETRY.0,
                Err(error) => {
                    warn!(%error, "cannot bring network policies into force");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY.1);
                    // What was to be applied is in the model; this makes it go to the kernel.
                    self.enforcer.shared.wake.notify_one();
                }
            }
        }
    }

    /// Waits, and meanwhile closes the addresses of pods that come: whoever had them before may have been let through.
    async fn holding(&mut self, what: impl Future<Output = bool>) -> bool {
        let mut what = std::pin::pin!(what);
        loop {
            tokio::select! {
                known = &mut what => return known,
                () = self.enforcer.shared.wake.notified() => {}
            }
            let messages = std::mem::take(&mut self.enforcer.shared.dirty.lock().messages);
            let addresses: Vec<IpAddr> = messages
                .iter()
                .filter_map(|m| match m {
                    Message::Attach { pod, .. } => Some(pod.addresses.clone()),
                    Message::Detach { .. } => None,
                })
                .flatten()
                .collect();
            self.held.extend(messages);
            if addresses.is_empty() {
                continue;
            }
            for applier in &self.appliers {
                if let Err(error) = applier.forget(&addresses).await {
                    warn!(%error, "cannot close the addresses of new pods");
                }
            }
        }
    }

    /// Begins to watch the pods that can be peers; false where the end came first.
    async fn watch_pods(&mut self, shutdown: &CancellationToken) -> bool {
        let pods = self.informers.get_filtered::<Pod>(Some(PEERS), None);
        let shared = self.enforcer.shared.clone();
        pods.on_change(move |change| {
            let key = gantry_reconcile::store::key_of(&**change.object());
            let same = change.old().is_some_and(|old| is_same(old, change.object()));
            if !same {
                shared.note(|dirty| {
                    dirty.pods.insert(key);
                });
            }
        });
        self.pods = Some(pods.clone());
        let known = self.holding(async { wait_synced(&[&pods], shutdown).await }).await;
        // It may have been woken for messages that were held since.
        self.enforcer.shared.wake.notify_one();
        known
    }

    /// Takes over what has changed, and applies what follows.
    async fn sync(&mut self) -> Result<(), NftError> {
        let dirty = std::mem::take(&mut *self.enforcer.shared.dirty.lock());
        for name in dirty.namespaces {
            let found = self.namespaces.get("", &name);
            let labels = found.map(|n| n.metadata.labels.clone().unwrap_or_default());
            self.model.set_namespace(&name.as_str().into(), labels);
        }
        for key in dirty.policies {
            let found = self.policies.store().by_key(&key);
            self.model.set_policy(&key.as_str().into(), found.map(|p| policy(&p)));
        }
        for key in dirty.pods {
            self.take_pod(&key);
        }
        let mut waiting = Vec::new();
        for message in std::mem::take(&mut self.held).into_iter().chain(dirty.messages) {
            match message {
                Message::Attach { key, pod, seen, done } => {
                    let addresses = pod.addresses.clone();
                    self.model.attach(&key, pod);
                    // As a peer of others it need not wait for the API to know its addresses.
                    self.model.set_endpoint(&key, endpoint_at(&seen, addresses));
                    waiting.push(done);
                }
                Message::Detach { key } => {
                    self.model.detach(&key);
                    self.model.set_endpoint(&key, None);
                }
            }
        }
        let result = self.apply().await;
        for done in waiting {
            // Who no longer listens has given up waiting.
            let _ = done.send(result.as_ref().copied().map_err(ToString::to_string));
        }
        result
    }

    fn take_pod(&mut self, key: &str) {
        let found = self.pods.as_ref().and_then(|pods| pods.store().by_key(key));
        self.model.set_endpoint(&key.into(), found.as_ref().and_then(|pod| endpoint(pod)));
        let Some(pod) = found else { return };
        let annotations = pod.metadata.annotations.as_ref();
        let mirrored = annotations.and_then(|a| a.get(MIRROR_ANNOTATION)).or(pod.metadata.uid.as_ref());
        let local: Arc<str> = format!("{key}/{}", mirrored.map_or("", String::as_str)).into();
        if let Some(addresses) = self.model.addresses_of(&local).map(<[IpAddr]>::to_vec) {
            self.model.set_labels(&local, Some(pod.metadata.labels.clone().unwrap_or_default()));
            self.model.set_endpoint(&local, endpoint_at(&pod, addresses));
        }
    }

    async fn apply(&mut self) -> Result<(), NftError> {
        let difference = self.model.take();
        if self.in_kernel && difference.is_empty() {
            return Ok(());
        }
        self.in_kernel = false;
        // Each family gets the changes before any failure ends this round: they are not told twice.
        let mut result = Ok(());
        for applier in &mut self.appliers {
            result = result.and(applier.apply(&difference, &self.model).await);
        }
        result?;
        self.in_kernel = true;
        let (policies, sets) = self.model.size();
        debug!(policies, sets, "network policies are in force");
        Ok(())
    }
}

/// Whether nothing that policies are about has changed.
fn is_same(old: &Pod, new: &Pod) -> bool {
    old.metadata.uid == new.metadata.uid && endpoint(old) == endpoint(new)
}

#[cfg(test)]
mod tests;
