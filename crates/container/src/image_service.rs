//! The interface of an image store, as plain data. [`crate::images::ImageStore`] implements it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::error::Result;

/// Credentials for a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum RegistryAuth {
    /// None.
    #[default]
    Anonymous,
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A bearer token sent as it is.
    Bearer(String),
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets must not reach a log.
        f.write_str(match self {
            RegistryAuth::Anonymous => "Anonymous",
            RegistryAuth::Basic { .. } => "Basic(…)",
            RegistryAuth::Bearer(_) => "Bearer(…)",
        })
    }
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes of blobs fetched.
    pub fetched_bytes: u64,
    /// Bytes of all blobs of the manifest, 0 until it is known.
    pub total_bytes: u64,
    /// Layers unpacked.
    pub unpacked_layers: usize,
    /// Layers of the image.
    pub total_layers: usize,
}

/// An image in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:…` of the image configuration.
    pub id: String,
    /// Names with a tag (`docker.io/library/busybox:1.36`).
    pub tags: Vec<String>,
    /// Names with a digest (`docker.io/library/busybox@sha256:…`).
    pub digests: Vec<String>,
    /// Bytes of its blobs as stored.
    pub size: u64,
    /// `USER` of the image configuration, empty when unset.
    pub user: String,
    /// When it was imported or pulled last.
    pub pulled_at: SystemTime,
    /// When a container was last made from it.
    pub last_used_at: Option<SystemTime>,
    /// Never offered for garbage collection (the built-in image).
    pub pinned: bool,
}

/// The parts of an image configuration the runtime uses.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env` as `KEY=value`.
    pub env: Vec<String>,
    /// `WorkingDir`, empty when unset.
    pub working_dir: String,
    /// `User`, empty when unset.
    pub user: String,
    /// `StopSignal`, empty when unset.
    pub stop_signal: String,
    /// `Volumes`.
    pub volumes: Vec<String>,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
    /// Architecture.
    pub architecture: String,
    /// Creation time as written in the configuration.
    pub created: Option<String>,
}

/// A user as a process needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Groups of the image's `/etc/group` that list the user.
    pub additional_gids: Vec<u32>,
    /// Home directory, `/` when unknown.
    pub home: PathBuf,
}

/// Disk usage of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsUsage {
    /// Bytes held by images.
    pub used_bytes: u64,
    /// Inodes held by images.
    pub used_inodes: u64,
    /// Size of the file system.
    pub capacity_bytes: u64,
    /// Free to unprivileged users.
    pub available_bytes: u64,
    /// Inodes of the file system.
    pub capacity_inodes: u64,
    /// Free inodes.
    pub available_inodes: u64,
}

/// An image store.
#[async_trait]
pub trait ImageService: Send + Sync {
    /// Fetches an image from its registry. Concurrent pulls of one reference share the work.
    /// [`crate::Error::Registry`] with `unauthorized` when credentials are missing or wrong,
    /// [`crate::Error::ImageNotFound`] when the registry does not have it.
    async fn pull(
        &self,
        reference: &str,
        auth: &RegistryAuth,
        progress: Option<watch::Sender<PullProgress>>,
    ) -> Result<Image>;
    /// Imports all images of an archive (OCI layout or docker-archive; plain, gzip or zstd). `name`, when given, takes the
    /// place of the names in an archive that holds exactly one image.
    async fn import(&self, archive: &Path, name: Option<&str>) -> Result<Vec<Image>>;
    /// All images.
    async fn list(&self) -> Result<Vec<Image>>;
    /// The image of a reference (`busybox`, `busybox:1`, `…@sha256:…`), an id (`sha256:…`) or a unique id prefix of at
    /// least 12 digits; `None` when the store does not have it.
    async fn status(&self, reference: &str) -> Result<Option<Image>>;
    /// The configuration of an image.
    async fn config(&self, reference: &str) -> Result<ImageConfig>;
    /// Removes a name; with the last name (or by id) the image and the blobs no other image uses.
    /// [`crate::Error::State`] when a container uses it.
    async fn remove(&self, reference: &str) -> Result<()>;
    /// Resolves `user` (`name`, `uid`, `name:group`, `uid:gid`; empty = the image's own) in the image's files.
    async fn resolve_user(&self, reference: &str, user: &str) -> Result<ResolvedUser>;
    /// Disk usage.
    async fn fs_usage(&self) -> Result<FsUsage>;
    /// Images no container uses and that are not pinned, least recently used first.
    async fn garbage_candidates(&self) -> Result<Vec<Image>>;
}
