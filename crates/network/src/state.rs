//! What the node's network remembers across restarts: which pod holds which address, interface and host ports.
//!
//! One small JSON file, replaced atomically (written aside, synced, renamed, directory synced) before the kernel is
//! told anything, so that after a crash no address can be given out twice.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{HostPort, NetworkError};

const VERSION: u32 = 1;

/// One pod's part of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// Its addresses, primary first.
    pub ips: Vec<IpAddr>,
    /// The host's end of its veth pair.
    pub interface: String,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// The whole state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// The instance that wrote it, from which interface and table names follow.
    pub instance: String,
    /// By pod key.
    pub attachments: BTreeMap<String, Attachment>,
    /// The address given out last in each pod CIDR (keyed by the CIDR), for the round-robin.
    pub last: BTreeMap<String, IpAddr>,
    /// The node's own addresses on `lo`.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// The networks fallback routes were made for.
    #[serde(default)]
    pub service_cidrs: Vec<IpNet>,
    /// The only such network, as the first version wrote it.
    #[serde(default, skip_serializing)]
    pub service_cidr: Option<IpNet>,
    /// Routes to other nodes' pods: their pod CIDRs, and the addresses these are reached over.
    #[serde(default)]
    pub node_routes: BTreeMap<IpNet, IpAddr>,
    /// Settings of the kernel that were changed, with the value they had.
    #[serde(default)]
    pub changed_sysctls: BTreeMap<String, String>,
}

impl State {
    /// An empty state.
    pub(crate) fn new(instance: &str) -> State {
        State {
            version: VERSION,
            instance: instance.to_owned(),
            attachments: BTreeMap::new(),
            last: BTreeMap::new(),
            gateways: Vec::new(),
            service_cidrs: Vec::new(),
            service_cidr: None,
            node_routes: BTreeMap::new(),
            changed_sysctls: BTreeMap::new(),
        }
    }

    /// Every address in use.
    pub(crate) fn used(&self) -> HashSet<IpAddr> {
        self.attachments.values().flat_map(|a| a.ips.iter().copied()).collect()
    }

    /// Reads the state, or `None` when there is no file yet.
    pub(crate) fn load(path: &Path) -> Result<Option<State>, NetworkError> {
        let bad = |reason: String| NetworkError::State { path: path.to_owned(), reason };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(bad(error.to_string())),
        };
        let state: State = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if state.version != VERSION {
            return Err(bad(format!("written in format {}, this program reads format {VERSION}", state.version)));
        }
        let mut seen = HashSet::new();
        for (pod, attachment) in &state.attachments {
            for ip in &attachment.ips {
                if !seen.insert(*ip) {
                    return Err(NetworkError::Address {
                        address: *ip,
                        pod: pod.clone(),
                        reason: "recorded for another pod as well".into(),
                    });
                }
            }
        }
        Ok(Some(state))
    }

    /// Replaces the file; when this returns, the state survives a power cut.
    pub(crate) fn save(&self, path: &Path) -> Result<(), NetworkError> {
        let bytes = serde_json::to_vec(self)
            .map_err(|error| NetworkError::State { path: path.to_owned(), reason: error.to_string() })?;
        replace_file(path, &bytes).map_err(NetworkError::io(format!("write network state {}", path.display())))
    }
}

fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let aside: PathBuf = path.with_extension("new");
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_disk_and_rejects_what_it_cannot_use() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("pods.json");
        assert_eq!(State::load(&path).expect("absent"), None);
        let mut state = State::new("a1");
        state.attachments.insert(
            "ns/a".into(),
            Attachment { ips: vec!["10.0.0.2".parse().expect("ip")], interface: "gta1".into(), host_ports: vec![] },
        );
        state.save(&path).expect("save");
        assert_eq!(State::load(&path).expect("load"), Some(state.clone()));

        state.attachments.insert("ns/b".into(), state.attachments["ns/a"].clone());
        state.save(&path).expect("save");
        assert!(State::load(&path).expect_err("twice").to_string().contains("another pod"));

        fs::write(&path, b"{\"version\":1").expect("write");
        assert!(matches!(State::load(&path), Err(NetworkError::State { .. })));
        fs::write(&path, br#"{"version":9,"instance":"","attachments":{},"last":{}}"#).expect("write");
        assert!(State::load(&path).expect_err("format").to_string().contains("format 9"));
    }
}
