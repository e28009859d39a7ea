//! The image store: blobs by digest, layers unpacked once, and an index of names.
//!
//! ```text
//! index.json          names and images; replaced atomically
//! blobs/sha256/HEX    manifests and configurations
//! layers/HEX24/       unpacked layers, as overlayfs takes them; shared by all images that have them
//! tmp/                unfinished work; emptied at start
//! growth.lock         held shared while layers are added that no image names yet, exclusively to remove unnamed ones
//! index.lock          held while the index changes
//! use.lock            held shared while a container is made from an image, exclusively while an image is removed
//! ```
//!
//! A layer's tar is not kept once it is unpacked. Several processes may have the store open, as the agent and
//! `gantry image` do: the index on disk is the truth, and the locks are file locks.

mod archive;
mod builtin;
mod layer;
mod lock;
mod manifest;
mod pull;
mod reference;
mod unpack;
mod user;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use builtin::SELF_IMAGE;
pub use reference::Reference;

pub(crate) use layer::usage as disk_usage;

use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::image_service::{FsUsage, Image, ImageConfig, ImageService, PullProgress, RegistryAuth, ResolvedUser};
use layer::{Layer, digest_of, directory_name};

const INDEX_VERSION: u32 = 1;

/// How to open a store.
#[derive(Debug, Clone, Default)]
pub struct ImageStoreConfig {
    /// Its directory; created when missing. Must be able to hold overlayfs lower layers (not itself an overlay's upper).
    pub dir: PathBuf,
    /// Registries (`host` or `host:port`) spoken to over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// State directory of the runtime whose containers use the images; for a process beside the one that runs them, which
    /// counts its own.
    pub users: Option<PathBuf>,
}

/// The image store. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: ImageStoreConfig,
    /// The index as it was read last; look at it through [`Inner::current`].
    index: RwLock<Index>,
    /// The file it was read from. Taken before `index`.
    loaded: Mutex<lock::Loaded>,
    /// Containers per image id.
    users: Mutex<HashMap<String, usize>>,
    /// Held shared while layers are added that no image names yet, exclusively while unnamed ones are removed.
    growth: tokio::sync::RwLock<()>,
    pulls: Mutex<HashMap<String, Arc<pull::Shared>>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Index {
    version: u32,
    images: Vec<Record>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    id: String,
    manifest: String,
    tags: Vec<String>,
    digests: Vec<String>,
    /// Bottom first.
    layers: Vec<Layer>,
    size: u64,
    user: String,
    pulled_at: SystemTime,
    last_used_at: Option<SystemTime>,
    pinned: bool,
}

impl Record {
    fn image(&self) -> Image {
        Image {
            id: self.id.clone(),
            tags: self.tags.clone(),
            digests: self.digests.clone(),
            size: self.size,
            user: self.user.clone(),
            pulled_at: self.pulled_at,
            last_used_at: self.last_used_at,
            pinned: self.pinned,
        }
    }
}

/// What a container is made from. Dropping it does not release the image; see [`ImageStore::release`].
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    pub(crate) id: String,
    pub(crate) config: ImageConfig,
    pub(crate) layers_dir: PathBuf,
    /// Topmost first.
    pub(crate) layers: Vec<String>,
}

/// See [`ImageStore::use_guard`].
pub(crate) struct UseGuard(#[expect(dead_code, reason = "held for its lock")] fs::File);

impl ImageStore {
    /// Opens the store, removing what an interrupted import or pull left.
    pub fn open(config: ImageStoreConfig) -> Result<ImageStore> {
        let inner = Inner {
            index: RwLock::new(Index { version: INDEX_VERSION, images: Vec::new() }),
            loaded: Mutex::default(),
            config,
            users: Mutex::default(),
            growth: tokio::sync::RwLock::new(()),
            pulls: Mutex::default(),
        };
        for dir in [inner.layers(), inner.blobs(), inner.tmp()] {
            files::create_private(&dir)?;
        }
        // Another process that is importing or pulling has its work in there.
        if let Some(_alone) = lock::try_exclusive(&inner.growth_lock())? {
            for entry in fs::read_dir(inner.tmp()).ctx("reading", inner.tmp())?.flatten() {
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.ctx("removing", &path)?;
            }
            inner.sweep()?;
        } else {
            drop(inner.current()?);
        }
        Ok(ImageStore { inner: Arc::new(inner) })
    }

    /// Keeps images from being removed while the value lives: by other processes too, which see a container's use by
    /// its record.
    pub(crate) fn use_guard(&self) -> Result<UseGuard> {
        lock::shared(&self.inner.use_lock()).map(UseGuard)
    }

    /// Finds an image for a new container and counts the use.
    pub(crate) fn retain(&self, reference: &str) -> Result<Unpacked> {
        let record = {
            drop(self.inner.current()?);
            let mut index = self.inner.index.write();
            let position = self.inner.position(&index, reference)?;
            let position = position.ok_or_else(|| Error::ImageNotFound { reference: reference.into() })?;
            index.images[position].last_used_at = Some(SystemTime::now());
            *self.inner.users.lock().entry(index.images[position].id.clone()).or_default() += 1;
            index.images[position].clone()
        };
        let config = self.inner.configuration(&record)?.to_image_config();
        Ok(Unpacked {
            id: record.id,
            config,
            layers_dir: self.inner.layers(),
            layers: record.layers.iter().rev().map(|l| directory_name(&l.diff_id)).collect(),
        })
    }

    /// Counts a container that existed before. `id` is the image's, `sha256:…`.
    pub(crate) fn retain_id(&self, id: &str) {
        *self.inner.users.lock().entry(id.to_string()).or_default() += 1;
    }

    /// A container of the image is gone.
    pub(crate) fn release(&self, id: &str) {
        let mut users = self.inner.users.lock();
        if let Some(count) = users.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                users.remove(id);
            }
        }
    }

    /// Makes the built-in image `gantry.local/self:latest` out of the program `exe` (normally `/proc/self/exe`), unless
    /// it is there already for this very file.
    pub async fn self_image(&self, exe: &Path) -> Result<Image> {
        let exe = exe.to_path_buf();
        self.growing(move |inner| builtin::make(inner, &exe)).await
    }

    /// Runs blocking work that adds layers.
    async fn growing<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = self.inner.clone();
        let _shared = self.inner.growth.read().await;
        blocking(move || {
            let _shared = lock::shared(&inner.growth_lock())?;
            work(&inner)
        })
        .await
    }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(e) => Err(Error::io("waiting for", "a worker thread", std::io::Error::other(e))),
    }
}

impl Inner {
    fn layers(&self) -> PathBuf {
        self.config.dir.join("layers")
    }

    fn blobs(&self) -> PathBuf {
        self.config.dir.join("blobs/sha256")
    }

    fn tmp(&self) -> PathBuf {
        self.config.dir.join("tmp")
    }

    fn index_file(&self) -> PathBuf {
        self.config.dir.join("index.json")
    }

    fn growth_lock(&self) -> PathBuf {
        self.config.dir.join("growth.lock")
    }

    fn use_lock(&self) -> PathBuf {
        self.config.dir.join("use.lock")
    }

    fn index_lock(&self) -> PathBuf {
        self.config.dir.join("index.lock")
    }

    /// The index as it is on disk now.
    fn current(&self) -> Result<RwLockReadGuard<'_, Index>> {
        self.refresh(&mut self.loaded.lock())?;
        Ok(self.index.read())
    }

    /// Reads the index again where another process replaced it.
    fn refresh(&self, loaded: &mut lock::Loaded) -> Result<()> {
        let path = self.index_file();
        if loaded.is_current(&path)? {
            return Ok(());
        }
        let Some(mut next) = loaded.read::<Index>(&path)? else { return Ok(()) };
        if next.version > INDEX_VERSION {
            return Err(Error::io(
                "reading",
                &path,
                std::io::Error::other(format!("version {} is newer than this program's", next.version)),
            ));
        }
        let mut index = self.index.write();
        // Uses are noted in memory first.
        for image in &mut next.images {
            let known = index.images.iter().find(|i| i.id == image.id).and_then(|i| i.last_used_at);
            image.last_used_at = image.last_used_at.max(known);
        }
        *index = next;
        Ok(())
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.blobs().join(digest.trim_start_matches("sha256:"))
    }

    fn configuration(&self, record: &Record) -> Result<manifest::Configuration> {
        let path = self.blob(&record.id);
        let data = fs::read(&path).ctx("reading", &path)?;
        manifest::parse(&data, &record.id)
    }

    fn position(&self, index: &Index, reference: &str) -> Result<Option<usize>> {
        let bare = reference.strip_prefix("sha256:").unwrap_or(reference);
        if bare.len() >= 12 && bare.bytes().all(|b| b.is_ascii_hexdigit()) {
            let mut found = index.images.iter().enumerate().filter(|(_, i)| i.id[7..].starts_with(bare));
            if let Some((position, _)) = found.next() {
                return match found.next() {
                    None => Ok(Some(position)),
                    Some(_) => Err(Error::InvalidReference {
                        reference: reference.into(),
                        reason: "more than one image id starts so".into(),
                    }),
                };
            }
            if reference.starts_with("sha256:") {
                return Ok(None);
            }
        }
        let name = Reference::parse(reference)?.canonical();
        Ok(index.images.iter().position(|i| i.tags.contains(&name) || i.digests.contains(&name)))
    }

    /// Stores an image's documents and names. The layers must be in place.
    fn record(
        &self,
        manifest: &[u8],
        config: &[u8],
        layers: Vec<Layer>,
        size: u64,
        names: &[Reference],
    ) -> Result<Image> {
        let id = digest_of(config);
        let manifest_digest = digest_of(manifest);
        for (digest, data) in [(&id, config), (&manifest_digest, manifest)] {
            let path = self.blob(digest);
            if !path.exists() {
                files::write_atomic(&path, data)?;
            }
        }
        let user = manifest::parse::<manifest::Configuration>(config, &id)?.to_image_config().user;
        self.change(|index| {
            let tags: Vec<String> = names.iter().filter_map(Reference::tagged).collect();
            let digests: Vec<String> = names.iter().map(|n| format!("{}@{manifest_digest}", n.name())).collect();
            for image in &mut index.images {
                image.tags.retain(|t| !tags.contains(t));
            }
            let now = SystemTime::now();
            let position = match index.images.iter().position(|i| i.id == id) {
                Some(position) => position,
                None => {
                    index.images.push(Record {
                        id: id.clone(),
                        manifest: manifest_digest.clone(),
                        tags: Vec::new(),
                        digests: Vec::new(),
                        layers,
                        size,
                        user,
                        pulled_at: now,
                        last_used_at: None,
                        pinned: false,
                    });
                    index.images.len() - 1
                }
            };
            let record = &mut index.images[position];
            record.pulled_at = now;
            record.tags.extend(tags);
            for digest in digests {
                if !record.digests.contains(&digest) {
                    record.digests.push(digest);
                }
            }
            Ok(record.image())
        })
    }

    /// Changes the index, on disk first.
    fn change<T>(&self, edit: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let _alone = lock::exclusive(&self.index_lock())?;
        let mut loaded = self.loaded.lock();
        self.refresh(&mut loaded)?;
        let mut index = self.index.write();
        let mut next = index.clone();
        let result = edit(&mut next)?;
        files::write_json(&self.index_file(), &next)?;
        *index = next;
        loaded.reopen(&self.index_file())?;
        Ok(result)
    }

    /// Removes blobs and layers no image names. The growth lock must be held exclusively.
    fn sweep(&self) -> Result<()> {
        let index = self.current()?;
        let layers: HashSet<String> =
            index.images.iter().flat_map(|i| &i.layers).map(|l| directory_name(&l.diff_id)).collect();
        let blobs: HashSet<String> =
            index.images.iter().flat_map(|i| [&i.id, &i.manifest]).map(|d| d[7..].to_string()).collect();
        let unnamed = |dir: PathBuf, keep: HashSet<String>| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.filter(move |e| !keep.contains(e.file_name().to_string_lossy().as_ref())).map(|e| e.path())
        };
        for path in unnamed(self.layers(), layers) {
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "an unused layer cannot be removed");
            }
        }
        for path in unnamed(self.blobs(), blobs) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an unused blob cannot be removed");
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ImageService for ImageStore {
    async fn pull(
        &self,
        reference: &str,
        auth: &RegistryAuth,
        progress: Option<watch::Sender<PullProgress>>,
    ) -> Result<Image> {
        let reference = Reference::parse(reference)?;
        if reference.registry == builtin::REGISTRY {
            // Served by no registry: what the node made itself is always the newest.
            let found = self.status(&reference.canonical()).await?;
            return found.ok_or_else(|| Error::ImageNotFound { reference: reference.canonical() });
        }
        let _shared = self.inner.growth.read().await;
        pull::pull(&self.inner, &reference, auth, progress).await
    }

    async fn import(&self, archive: &Path, name: Option<&str>) -> Result<Vec<Image>> {
        let (archive, name) = (archive.to_path_buf(), name.map(str::to_string));
        let result = self.growing(move |inner| archive::import(inner, &archive, name.as_deref())).await;
        if result.is_err() {
            // Layers that were fine belong to no image now.
            let inner = self.inner.clone();
            let _alone = self.inner.growth.write().await;
            blocking(move || {
                let _alone = lock::exclusive(&inner.growth_lock())?;
                inner.sweep()
            })
            .await?;
        }
        result
    }

    async fn list(&self) -> Result<Vec<Image>> {
        Ok(self.inner.current()?.images.iter().map(Record::image).collect())
    }

    async fn status(&self, reference: &str) -> Result<Option<Image>> {
        let index = self.inner.current()?;
        Ok(self.inner.position(&index, reference)?.map(|p| index.images[p].image()))
    }

    async fn config(&self, reference: &str) -> Result<ImageConfig> {
        let record = self.inner.find(reference)?;
        Ok(self.inner.configuration(&record)?.to_image_config())
    }

    async fn remove(&self, reference: &str) -> Result<()> {
        let reference = reference.to_string();
        let inner = self.inner.clone();
        let _alone = self.inner.growth.write().await;
        blocking(move || {
            let _alone = lock::exclusive(&inner.growth_lock())?;
            let unused = lock::exclusive(&inner.use_lock())?;
            let elsewhere = match &inner.config.users {
                Some(state) => crate::native::images_in_use(state)?,
                None => HashSet::new(),
            };
            inner.change(|index| {
                let not_found = || Error::ImageNotFound { reference: reference.clone() };
                let position = inner.position(index, &reference)?.ok_or_else(not_found)?;
                let record = &mut index.images[position];
                let by_name = Reference::parse(&reference).map(|r| r.canonical()).ok();
                let names = |r: &Record| r.tags.len() + r.digests.len();
                let before = names(record);
                record.tags.retain(|t| Some(t) != by_name.as_ref());
                record.digests.retain(|d| Some(d) != by_name.as_ref());
                // The digest under which an image came with a tag goes with the last tag.
                let unnamed = names(record) == before || record.tags.is_empty();
                if unnamed {
                    if elsewhere.contains(&record.id) || inner.users.lock().contains_key(&record.id) {
                        return Err(Error::State {
                            kind: "image",
                            id: record.id.clone(),
                            state: "used by a container".into(),
                            wanted: "unused",
                        });
                    }
                    index.images.remove(position);
                }
                Ok(())
            })?;
            drop(unused);
            inner.sweep()
        })
        .await
    }

    async fn resolve_user(&self, reference: &str, user: &str) -> Result<ResolvedUser> {
        let record = self.inner.find(reference)?;
        let inner = self.inner.clone();
        let user = if user.is_empty() { record.user.clone() } else { user.to_string() };
        blocking(move || {
            let layers = record.layers.iter().rev().map(|l| directory_name(&l.diff_id)).collect::<Vec<_>>();
            user::resolve(&inner.layers(), &layers, &record.id, &user)
        })
        .await
    }

    async fn fs_usage(&self) -> Result<FsUsage> {
        let (mut bytes, mut inodes, mut seen) = (0, 0, HashSet::new());
        for layer in self.inner.current()?.images.iter().flat_map(|i| &i.layers) {
            if seen.insert(layer.diff_id.clone()) {
                bytes += layer.bytes;
                inodes += layer.inodes;
            }
        }
        let stat = nix::sys::statvfs::statvfs(&self.inner.config.dir).ctx("statvfs", &self.inner.config.dir)?;
        Ok(FsUsage {
            used_bytes: bytes,
            used_inodes: inodes,
            capacity_bytes: stat.blocks() * stat.fragment_size(),
            available_bytes: stat.blocks_available() * stat.fragment_size(),
            capacity_inodes: stat.files(),
            available_inodes: stat.files_available(),
        })
    }

    async fn garbage_candidates(&self) -> Result<Vec<Image>> {
        // Index before users, as everywhere.
        let index = self.inner.current()?;
        let users = self.inner.users.lock();
        let mut list: Vec<Image> =
            index.images.iter().filter(|i| !i.pinned && !users.contains_key(&i.id)).map(Record::image).collect();
        list.sort_by_key(|i| i.last_used_at.unwrap_or(i.pulled_at));
        Ok(list)
    }
}

impl Inner {
    fn find(&self, reference: &str) -> Result<Record> {
        let index = self.current()?;
        let position = self.position(&index, reference)?;
        position.map(|p| index.images[p].clone()).ok_or_else(|| Error::ImageNotFound { reference: reference.into() })
    }
}

/// The user a container of the image runs as.
pub(crate) fn resolve_user(image: &Unpacked, user: &str) -> Result<ResolvedUser> {
    user::resolve(&image.layers_dir, &image.layers, &image.id, user)
}

/// Home directory and listed groups of a numeric user, for callers that replace the image's user.
pub(crate) fn user_by_id(image: &Unpacked, uid: u32) -> Result<ResolvedUser> {
    user::resolve(&image.layers_dir, &image.layers, &image.id, &uid.to_string())
}
