//! Which devices there are, and which container has which; the latter is kept in a file.

use super::messages::ContainerResponse;
use gantry_grpc::{Message, Target};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the devices of a plugin that is gone are still counted in the capacity.
const KEPT: Duration = Duration::from_secs(300);

/// A plugin that can be asked.
pub(crate) struct Plugin {
    pub channel: gantry_grpc::Channel,
    pub options: super::messages::Options,
}

impl Plugin {
    pub(crate) fn channel(socket: &Path) -> gantry_grpc::Channel {
        gantry_grpc::Channel::new(Target::Unix(socket.to_owned()))
    }
}

/// The devices of one resource.
#[derive(Default)]
pub(crate) struct Resource {
    pub plugin: Option<Arc<Plugin>>,
    /// Ids, and which of them are healthy.
    pub devices: BTreeMap<String, bool>,
    /// Since when the plugin is gone.
    pub gone: Option<Instant>,
}

/// The devices of a resource that a container has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allocation {
    pub devices: BTreeSet<String>,
    /// What the plugin said the container is given, encoded; None while it is asked.
    given: Option<Vec<u8>>,
}

impl Allocation {
    /// Devices that are being asked for.
    pub(crate) fn pending(devices: BTreeSet<String>) -> Self {
        Self { devices, given: None }
    }

    pub(crate) fn give(&mut self, response: &ContainerResponse) {
        self.given = Some(response.encode_to_vec());
    }

    pub(crate) fn given(&self) -> Option<ContainerResponse> {
        ContainerResponse::decode(self.given.as_deref()?).ok()
    }
}

/// By resource.
pub(crate) type OfContainer = BTreeMap<String, Allocation>;

#[derive(Serialize, Deserialize)]
struct Checkpoint {
    resources: BTreeSet<String>,
    pods: BTreeMap<String, BTreeMap<String, OfContainer>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub resources: BTreeMap<String, Resource>,
    /// By UID of the pod and name of the container.
    pub pods: BTreeMap<String, BTreeMap<String, OfContainer>>,
}

impl State {
    /// What an earlier run has left. Its resources have no devices until their plugins come back.
    pub(crate) fn open(file: &Path) -> io::Result<Self> {
        match std::fs::read(file) {
            Ok(text) => {
                let read: Checkpoint = serde_json::from_slice(&text)?;
                let resources = read.resources.into_iter().map(|r| (r, Resource::default())).collect();
                Ok(Self { resources, pods: read.pods })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Writes the file, durably and at once.
    pub(crate) fn save(&self, file: &Path) -> io::Result<()> {
        let checkpoint = Checkpoint { resources: self.resources.keys().cloned().collect(), pods: self.pods.clone() };
        let fresh = file.with_extension("new");
        let mut out = std::fs::File::create(&fresh)?;
        out.write_all(&serde_json::to_vec(&checkpoint)?)?;
        out.sync_all()?;
        std::fs::rename(&fresh, file)?;
        std::fs::File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    /// The devices of a resource that containers have.
    pub(crate) fn taken(&self, resource: &str) -> BTreeSet<&String> {
        let containers = self.pods.values().flat_map(BTreeMap::values);
        containers.filter_map(|c| c.get(resource)).flat_map(|a| &a.devices).collect()
    }

    /// All and healthy devices of each resource.
    pub(crate) fn counts(&mut self) -> BTreeMap<String, (usize, usize)> {
        for resource in self.resources.values_mut() {
            if resource.gone.is_some_and(|since| since.elapsed() >= KEPT) {
                resource.devices.clear();
            }
        }
        let count = |r: &Resource| (r.devices.len(), r.devices.values().filter(|healthy| **healthy).count());
        self.resources.iter().map(|(name, r)| (name.clone(), count(r))).collect()
    }

    /// Chooses devices for a container and notes that it has them. Returns None where nothing is to be asked for: it
    /// has them, or wants none. `preferred` are tried first, after those of init containers that have ended
    /// (`reusable`).
    ///
    /// # Errors
    /// Upstream's sentence for what there is not enough of.
    pub(crate) fn choose(
        &mut self,
        (pod, container, resource): (&str, &str, &str),
        wanted: usize,
        reusable: &BTreeSet<String>,
        preferred: &[String],
    ) -> Result<Option<BTreeSet<String>>, String> {
        let known = self.pods.get(pod).and_then(|p| p.get(container)?.get(resource)).map(|a| a.devices.clone());
        let needed = match &known {
            None => wanted,
            Some(known) if known.len() == wanted => 0,
            Some(known) => {
                return Err(format!(
                    "pod {pod:?} container {container:?} changed request for resource {resource:?} from {} to {wanted}",
                    known.len()
                ));
            }
        };
        let Some(of) = self.resources.get(resource) else {
            return Err(format!("cannot allocate unregistered device {resource}"));
        };
        let healthy: BTreeSet<&String> = of.devices.iter().filter(|(_, h)| **h).map(|(id, _)| id).collect();
        if healthy.is_empty() && wanted > 0 {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        if !known.iter().flatten().all(|id| healthy.contains(id)) {
            return Err(format!(
                "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
            ));
        }
        if needed == 0 {
            return Ok(None);
        }
        let mut chosen: BTreeSet<String> = reusable.iter().take(needed).cloned().collect();
        let taken = self.taken(resource);
        let free: Vec<&String> =
            healthy.into_iter().filter(|id| !taken.contains(id) && !chosen.contains(*id)).collect();
        if free.len() < needed - chosen.len() {
            let (missing, available) = (needed - chosen.len(), free.len());
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {missing}, Available: {available}"
            ));
        }
        let (first, rest): (Vec<&String>, Vec<&String>) = free.into_iter().partition(|id| preferred.contains(id));
        for id in first.into_iter().chain(rest) {
            if chosen.len() < needed {
                chosen.insert(id.clone());
            }
        }
        let of_container = self.pods.entry(pod.to_owned()).or_default().entry(container.to_owned()).or_default();
        of_container.insert(resource.to_owned(), Allocation::pending(chosen.clone()));
        Ok(Some(chosen))
    }
}
