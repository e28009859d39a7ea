//! What is prepared, or may be: kept in a file, so that a later run gives back what it must.

use super::api;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A device a driver has made ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    pub pool: String,
    pub device: String,
    /// The requests it was allocated for; all when empty.
    requests: Vec<String>,
    pub cdi_device_ids: Vec<String>,
    share_id: Option<String>,
}

impl From<api::Device> for Device {
    fn from(device: api::Device) -> Self {
        Self {
            pool: device.pool_name,
            device: device.device_name,
            requests: device.request_names,
            cdi_device_ids: device.cdi_device_ids,
            share_id: device.share_id,
        }
    }
}

/// A claim that pods of this node use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClaimInfo {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// UIDs of the pods.
    pub pods: BTreeSet<String>,
    /// Its drivers, and what each has prepared.
    pub drivers: BTreeMap<String, Vec<Device>>,
    /// All drivers have prepared it in this run.
    #[serde(skip)]
    pub prepared: bool,
}

impl ClaimInfo {
    /// As drivers are told of it.
    pub(crate) fn as_request(&self) -> api::Claim {
        api::Claim { namespace: self.namespace.clone(), uid: self.uid.clone(), name: self.name.clone() }
    }

    /// The devices for a request, with their drivers; all where it is empty.
    pub(crate) fn devices<'a>(&'a self, request: &'a str) -> impl Iterator<Item = (&'a str, &'a Device)> {
        let all = self.drivers.iter().flat_map(|(driver, devices)| devices.iter().map(|d| (driver.as_str(), d)));
        all.filter(move |(_, d)| request.is_empty() || d.requests.is_empty() || d.requests.iter().any(|r| r == request))
    }

    /// CDI ids of the devices for a request.
    pub(crate) fn cdi_devices(&self, request: &str) -> Vec<String> {
        self.devices(request).flat_map(|(_, d)| d.cdi_device_ids.iter().cloned()).collect()
    }
}

/// Version of the file's form.
const VERSION: &str = "v1";

#[derive(Serialize, Deserialize)]
struct Checkpoint {
    version: String,
    claims: Vec<ClaimInfo>,
}

/// The claims, by namespace and name.
pub(crate) struct Claims {
    file: PathBuf,
    pub known: BTreeMap<(String, String), ClaimInfo>,
}

impl Claims {
    /// What an earlier run has left.
    ///
    /// # Errors
    /// Where the file cannot be read or understood; without it devices would stay taken.
    pub(crate) fn open(file: &Path) -> io::Result<Self> {
        let known = match std::fs::read(file) {
            Ok(text) => {
                let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
                let read: Checkpoint = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
                if read.version != VERSION {
                    return Err(invalid(format!("version {:?} is not known", read.version)));
                }
                read.claims.into_iter().map(|c| ((c.namespace.clone(), c.name.clone()), c)).collect()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { file: file.to_owned(), known })
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&ClaimInfo> {
        self.known.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub(crate) fn get_mut(&mut self, namespace: &str, name: &str) -> Option<&mut ClaimInfo> {
        self.known.get_mut(&(namespace.to_owned(), name.to_owned()))
    }

    /// Writes the file, durably and at once.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn save(&self) -> io::Result<()> {
        let checkpoint = Checkpoint { version: VERSION.into(), claims: self.known.values().cloned().collect() };
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        let fresh = self.file.with_extension("new");
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(&checkpoint)?)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.file)?;
        std::fs::File::open(directory)?.sync_all()
    }

    /// The pods that use a claim, with their claims' namespaces and names.
    pub(crate) fn users(&self) -> BTreeMap<String, Vec<(String, String)>> {
        let mut out: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for (key, claim) in &self.known {
            for pod in &claim.pods {
                out.entry(pod.clone()).or_default().push(key.clone());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_there_in_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("dra_manager_state");
        let mut claims = Claims::open(&file).unwrap();
        let device = |name: &str, requests: &[&str]| Device {
            pool: "p".into(),
            device: name.into(),
            requests: requests.iter().map(|r| (*r).to_owned()).collect(),
            cdi_device_ids: vec![format!("example.com/d={name}")],
            share_id: None,
        };
        let info = ClaimInfo {
            namespace: "default".into(),
            name: "c".into(),
            uid: "u".into(),
            pods: BTreeSet::from(["pod".into()]),
            drivers: BTreeMap::from([(
                "d".into(),
                vec![device("a", &["one"]), device("b", &["two"]), device("c", &[])],
            )]),
            prepared: true,
        };
        assert_eq!(info.cdi_devices("one"), ["example.com/d=a", "example.com/d=c"]);
        assert_eq!(info.cdi_devices("").len(), 3);
        claims.known.insert(("default".into(), "c".into()), info.clone());
        claims.save().unwrap();
        let again = Claims::open(&file).unwrap();
        assert_eq!(again.get("default", "c"), Some(&ClaimInfo { prepared: false, ..info }));
        assert_eq!(again.users()["pod"], [("default".to_owned(), "c".to_owned())]);
        std::fs::write(&file, "{").unwrap();
        assert!(Claims::open(&file).is_err());
    }
}
