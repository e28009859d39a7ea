//! Devices of dynamic resource allocation (KEP-4381): before a pod starts, the drivers of its claims make their
//! devices ready; after it has ended they take them back. What is ready reaches containers as CDI ids.

mod api;
mod cdi;
mod claims;
mod classic;
mod drivers;
mod health;
mod registration;

pub(crate) use cdi::inject;
pub(crate) use classic::Classic;
pub(crate) use registration::Registration;

use crate::pod::names;
use claims::{ClaimInfo, Claims};
use drivers::{Driver, Drivers};
use gantry_client::{Api, Client};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// File of what is prepared, below `kubelet/`.
const STATE: &str = "dra_manager_state";
/// What a pod that is gone has left is given back again after this long where that failed.
const RECONCILE: Duration = Duration::from_secs(60);

/// The devices of the node's pods.
pub(crate) struct Devices {
    client: Client,
    drivers: Arc<Drivers>,
    claims: Mutex<Claims>,
    cdi_directories: Vec<PathBuf>,
    /// Those of plugins without claims.
    pub classic: Arc<Classic>,
}

/// A claim of a pod, as it is to be prepared.
struct Wanted {
    info: ClaimInfo,
    /// By the driver's name.
    drivers: BTreeMap<String, Arc<Driver>>,
}

/// The name of a pod's claim and whether it was made for the pod; None where it needs none.
fn claim_name(pod: &Pod, name: &str) -> Result<Option<(String, bool)>, String> {
    let shown = || format!("pod \"{}/{}\"", names::namespace(pod), names::name(pod));
    let claims = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten());
    let Some(claim) = claims.into_iter().find(|c| c.name == name) else { return Ok(None) };
    if let Some(name) = &claim.resource_claim_name {
        return Ok(Some((name.clone(), false)));
    }
    if claim.resource_claim_template_name.is_none() {
        return Err(format!("{}, spec.resourceClaim {name:?}: none of the supported fields are set", shown()));
    }
    let statuses = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    match statuses.into_iter().find(|s| s.name == name) {
        Some(status) => Ok(status.resource_claim_name.clone().map(|name| (name, true))),
        None => Err(format!("{}: ResourceClaim not created yet", shown())),
    }
}

/// The names of all claims of a pod, and whether each was made for it.
fn claim_names(pod: &Pod) -> Result<Vec<(String, bool)>, String> {
    let mut out = Vec::new();
    for claim in pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten()) {
        out.extend(claim_name(pod, &claim.name)?);
    }
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    out.extend(extended.map(|e| (e.resource_claim_name.clone(), false)));
    Ok(out)
}

fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|o| o.controller == Some(true) && o.uid == uid)
}

/// The claim as it is noted; the error is upstream's sentence for what a pod may not use.
fn noted(pod: &Pod, claim: &ResourceClaim, made_for_it: bool) -> Result<ClaimInfo, String> {
    let (namespace, name) = (names::namespace(pod), claim.metadata.name.clone().unwrap_or_default());
    let (pod_name, pod_uid) = (names::name(pod), names::uid(pod));
    if made_for_it && !is_controlled_by(&claim.metadata, pod_uid) {
        return Err(format!(
            "ResourceClaim {namespace}/{name} was not created for Pod {namespace}/{pod_name} (Pod is not owner)"
        ));
    }
    let uid = claim.metadata.uid.clone().unwrap_or_default();
    let status = claim.status.as_ref();
    if !status.iter().flat_map(|s| s.reserved_for.iter().flatten()).any(|r| r.uid == pod_uid) {
        return Err(format!("pod {pod_name} ({pod_uid}) is not allowed to use ResourceClaim {name} ({uid})"));
    }
    let Some(allocation) = status.and_then(|s| s.allocation.as_ref()) else {
        return Err(format!("ResourceClaim {name}: not allocated"));
    };
    let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
    let drivers = results.map(|r| (r.driver.clone(), Vec::new())).collect();
    let namespace = namespace.to_owned();
    Ok(ClaimInfo { namespace, name, uid, pods: BTreeSet::new(), drivers, prepared: false })
}

fn checkpoint(claims: &Claims) -> Result<(), String> {
    claims.save().map_err(|e| format!("checkpoint ResourceClaim state: {e}"))
}

impl Devices {
    /// The devices, with what an earlier run has left below `directory`.
    ///
    /// # Errors
    /// Where that cannot be read.
    pub(crate) fn open(client: Client, node: &str, directory: &Path) -> io::Result<Self> {
        Ok(Self {
            drivers: Drivers::new(client.clone(), node),
            client,
            claims: Mutex::new(Claims::open(&directory.join(STATE))?),
            cdi_directories: cdi::DIRECTORIES.map(PathBuf::from).into(),
            classic: Classic::open(directory)?,
        })
    }

    /// The directory of plugins, whose drivers these devices have.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub(crate) fn registration(&self, directory: PathBuf) -> io::Result<Registration> {
        Registration::begin(directory, self.drivers.clone(), self.classic.clone())
    }

    /// Removes all slices of the node: no driver has registered yet, and one that never does leaves none behind.
    pub(crate) async fn forget_slices(&self) {
        self.drivers.wipe(None).await;
    }

    /// Stops what goes on by itself.
    pub(crate) fn stop(&self) {
        self.drivers.stop();
        self.classic.stop();
    }

    /// Where CDI files are.
    pub(crate) fn cdi_directories(&self) -> &[PathBuf] {
        &self.cdi_directories
    }

    /// Has the devices of a pod's claims made ready.
    ///
    /// # Errors
    /// Why not all of them are.
    pub(crate) async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        let names = claim_names(pod);
        if matches!(&names, Ok(names) if names.is_empty()) {
            return Ok(());
        }
        let prepared = async { self.prepare_claims(pod, names?).await };
        prepared.await.map_err(|e| format!("prepare dynamic resources: {e}"))
    }

    async fn prepare_claims(&self, pod: &Pod, names: Vec<(String, bool)>) -> Result<(), String> {
        // Nothing is noted before all is known to be possible: a pod that can never start can be deleted like any
        // other.
        let api = Api::<ResourceClaim>::namespaced(self.client.clone(), names::namespace(pod));
        let mut wanted = Vec::new();
        for (name, made_for_it) in names {
            let claim = api.get(&name).await.map_err(|e| format!("fetch ResourceClaim {name}: {e}"))?;
            let info = noted(pod, &claim, made_for_it)?;
            let mut drivers = BTreeMap::new();
            for driver in info.drivers.keys() {
                drivers.insert(driver.clone(), self.drivers.get(driver)?);
            }
            wanted.push(Wanted { info, drivers });
        }
        let batches = self.note(names::uid(pod), wanted)?;
        let mut done: BTreeSet<(String, String)> = BTreeSet::new();
        for (name, (driver, batch)) in batches {
            let request = api::Claims { claims: batch.iter().map(ClaimInfo::as_request).collect() };
            let response = driver.prepare(&request).await.map_err(|e| format!("NodePrepareResources: {e}"))?;
            let answered = response.claims.len();
            for (uid, result) in response.claims {
                let Some(claim) = batch.iter().find(|c| c.uid == uid) else {
                    return Err(format!("NodePrepareResources returned result for unknown claim UID {uid}"));
                };
                if !result.error.is_empty() {
                    let why = result.error;
                    return Err(format!("NodePrepareResources failed for ResourceClaim {}: {why}", claim.name));
                }
                let mut claims = self.claims.lock();
                let info = claims.get_mut(&claim.namespace, &claim.name).filter(|i| i.uid == uid);
                let info = info.ok_or_else(|| missing(&claim.namespace, &claim.name))?;
                info.drivers.insert(name.clone(), result.devices.into_iter().map(Into::into).collect());
                done.insert((claim.namespace.clone(), claim.name.clone()));
            }
            if answered < batch.len() {
                return Err(format!("NodePrepareResources skipped {} ResourceClaims", batch.len() - answered));
            }
        }
        let mut claims = self.claims.lock();
        for (namespace, name) in done {
            let info = claims.get_mut(&namespace, &name).ok_or_else(|| missing(&namespace, &name))?;
            info.prepared = true;
        }
        checkpoint(&claims)
    }

    /// Notes that the pod uses these claims. Returns those that are to be prepared, by driver.
    #[allow(clippy::type_complexity, reason = "a map used right here")]
    fn note(&self, pod: &str, wanted: Vec<Wanted>) -> Result<BTreeMap<String, (Arc<Driver>, Vec<ClaimInfo>)>, String> {
        let mut batches: BTreeMap<String, (Arc<Driver>, Vec<ClaimInfo>)> = BTreeMap::new();
        let mut claims = self.claims.lock();
        for Wanted { info, drivers } in wanted {
            let key = (info.namespace.clone(), info.name.clone());
            let uid = info.uid.clone();
            let known = claims.known.entry(key).or_insert(info);
            if known.uid != uid {
                return Err(format!(
                    "old ResourceClaim with same name {} and different UID {} still exists (previous pod \
                     force-deleted?!)",
                    known.name, known.uid
                ));
            }
            known.pods.insert(pod.to_owned());
            if known.prepared {
                continue;
            }
            for (name, driver) in drivers {
                batches.entry(name).or_insert_with(|| (driver, Vec::new())).1.push(known.clone());
            }
        }
        claims.save().map_err(|e| format!("checkpoint ResourceClaim cache: {e}"))?;
        Ok(batches)
    }

    /// Gives back the devices of a pod that has ended, as far as no other pod uses them.
    ///
    /// # Errors
    /// Why not all could be; to be tried again.
    pub(crate) async fn unprepare(&self, pod: &str) -> Result<(), String> {
        let names = self.claims.lock().users().remove(pod).unwrap_or_default();
        if names.is_empty() {
            return Ok(());
        }
        self.unprepare_claims(pod, names).await.map_err(|e| format!("unprepare dynamic resources: {e}"))
    }

    async fn unprepare_claims(&self, pod: &str, names: Vec<(String, String)>) -> Result<(), String> {
        let mut batches: BTreeMap<String, Vec<ClaimInfo>> = BTreeMap::new();
        let mut last = Vec::new();
        {
            let mut claims = self.claims.lock();
            for (namespace, name) in names {
                let Some(info) = claims.get_mut(&namespace, &name) else { continue };
                if info.pods.len() > 1 {
                    info.pods.remove(pod);
                    continue;
                }
                // A pod that comes meanwhile has it prepared anew.
                info.prepared = false;
                last.push((namespace, name));
                for driver in info.drivers.keys() {
                    batches.entry(driver.clone()).or_default().push(info.clone());
                }
            }
        }
        for (driver, batch) in batches {
            let request = api::Claims { claims: batch.iter().map(ClaimInfo::as_request).collect() };
            let response = self.drivers.get(&driver)?.unprepare(&request).await;
            let response = response.map_err(|e| format!("NodeUnprepareResources: {e}"))?;
            let answered = response.claims.len();
            for (uid, result) in response.claims {
                let Some(claim) = batch.iter().find(|c| c.uid == uid) else {
                    return Err(format!("NodeUnprepareResources returned result for unknown claim UID {uid}"));
                };
                if !result.error.is_empty() {
                    let why = result.error;
                    return Err(format!("NodeUnprepareResources failed for ResourceClaim {}: {why}", claim.name));
                }
            }
            if answered < batch.len() {
                return Err(format!("NodeUnprepareResources skipped {} ResourceClaims", batch.len() - answered));
            }
        }
        let mut claims = self.claims.lock();
        for key in last {
            let empty = claims.known.get_mut(&key).is_some_and(|info| {
                info.pods.remove(pod);
                info.pods.is_empty()
            });
            if empty {
                claims.known.remove(&key);
            }
        }
        checkpoint(&claims)
    }

    /// Gives back what pods have left that are not among the active any more, for as long as it is polled. To be
    /// called once the pods are known; looked at again when a driver comes, and after a while where that failed.
    pub(crate) async fn reconcile(&self, active: impl Fn() -> BTreeSet<String>) {
        let mut arrivals = self.drivers.arrivals();
        loop {
            let users = self.claims.lock().users();
            let active = active();
            self.classic.keep(&active);
            let mut failed = false;
            for pod in users.into_keys().filter(|pod| !active.contains(pod)) {
                if let Err(error) = self.unprepare(&pod).await {
                    tracing::info!(pod, error, "devices of a pod that is gone cannot be given back, will retry");
                    failed = true;
                }
            }
            let timer =
                async { if failed { tokio::time::sleep(RECONCILE).await } else { std::future::pending().await } };
            tokio::select! {
                changed = arrivals.changed() => if changed.is_err() { return },
                () = timer => {}
            }
        }
    }

    /// UIDs of the pods that have devices, whenever the health of a device has changed; for as long as it is polled.
    pub(crate) async fn health_changes(&self, tell: impl Fn(&str)) {
        let mut changes = self.drivers.health.changes();
        let mut classic = self.classic.changes();
        loop {
            let changed = tokio::select! {
                changed = changes.changed() => changed,
                changed = classic.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let mut users: BTreeSet<String> = self.claims.lock().users().into_keys().collect();
            users.extend(self.classic.users());
            users.iter().for_each(|pod| tell(pod));
        }
    }

    /// How the devices of a container are, as the status of its pod shows it; empty where none is prepared.
    pub(crate) fn health_of(&self, pod: &Pod, container: &Container) -> Vec<ResourceStatus> {
        let mut out = self.classic.health_of(pod, &container.name);
        let claims = self.claims.lock();
        for claim in container.resources.iter().flat_map(|r| r.claims.iter().flatten()) {
            let Ok(Some((name, _))) = claim_name(pod, &claim.name) else { continue };
            let Some(info) = claims.get(names::namespace(pod), &name) else { continue };
            let request = claim.request.as_deref().unwrap_or_default();
            let mut resources: Vec<ResourceHealth> = Vec::new();
            // A request for one of several sorts is known by its own name to drivers.
            for (driver, device) in info.devices(request.split('/').next().unwrap_or_default()) {
                let id = device.cdi_device_ids.first().cloned();
                let resource_id = id.unwrap_or_else(|| format!("{driver}/{}/{}", device.pool, device.device));
                if !resources.iter().any(|r| r.resource_id == resource_id) {
                    let health = Some(self.drivers.health.of(driver, &device.pool, &device.device).to_owned());
                    resources.push(ResourceHealth { resource_id, health, message: None });
                }
            }
            let shown = if request.is_empty() { claim.name.clone() } else { format!("{}/{request}", claim.name) };
            if !resources.is_empty() {
                out.push(ResourceStatus { name: format!("claim:{shown}"), resources: Some(resources) });
            }
        }
        out
    }

    /// CDI ids of the devices that a container is to have.
    ///
    /// # Errors
    /// Where a claim of it is not prepared.
    pub(crate) fn of_container(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let mut requests: Vec<(String, String)> = Vec::new();
        let resources = container.resources.as_ref();
        for claim in resources.iter().flat_map(|r| r.claims.iter().flatten()) {
            if let Some((name, _)) = claim_name(pod, &claim.name)? {
                requests.push((name, claim.request.clone().unwrap_or_default()));
            }
        }
        let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
        for mapping in extended.iter().flat_map(|e| &e.request_mappings) {
            let asked =
                resources.and_then(|r| r.requests.as_ref()).is_some_and(|r| r.contains_key(&mapping.resource_name));
            if mapping.container_name == container.name
                && asked
                && let Some(extended) = extended
            {
                requests.push((extended.resource_claim_name.clone(), mapping.request_name.clone()));
            }
        }
        let claims = self.claims.lock();
        let mut out: Vec<String> = Vec::new();
        for (name, request) in requests {
            let namespace = names::namespace(pod);
            let info = claims.get(namespace, &name).ok_or_else(|| missing(namespace, &name))?;
            for id in info.cdi_devices(&request) {
                if !out.contains(&id) {
                    out.push(id);
                }
            }
        }
        Ok(out)
    }
}

fn missing(namespace: &str, name: &str) -> String {
    format!("internal error: unable to get claim info for ResourceClaim {name} in namespace {namespace}")
}

#[cfg(test)]
mod tests;
