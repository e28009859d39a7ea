//! Fetching images from registries.

use std::io::Write;
use std::sync::Arc;

use futures::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use tokio::sync::{Mutex, watch};

use super::layer::{Layer, add_layer, digest_of};
use super::manifest::{self, Descriptor, Document, MAX_DOCUMENT};
use super::reference::check_digest;
use super::{Inner, Reference, blocking, lock};
use crate::error::{Error, IoContext, Result};
use crate::image_service::{Image, PullProgress, RegistryAuth};

/// Layers fetched at the same time.
const PARALLEL: usize = 3;

/// A pull others may wait for: the result, once there is one.
pub(super) type Shared = Mutex<Option<Image>>;

/// Pulls, or waits for somebody else's pull of the same reference with the same credentials.
pub(super) async fn pull(
    store: &Arc<Inner>,
    reference: &Reference,
    auth: &RegistryAuth,
    progress: Option<watch::Sender<PullProgress>>,
) -> Result<Image> {
    let who = match auth {
        RegistryAuth::Anonymous => String::new(),
        RegistryAuth::Basic { username, password } => digest_of(format!("{username}:{password}").as_bytes()),
        RegistryAuth::Bearer(token) => digest_of(token.as_bytes()),
    };
    let key = format!("{} {who}", reference.canonical());
    let shared = store.pulls.lock().entry(key.clone()).or_default().clone();
    let mut turn = shared.lock().await;
    let result = match &*turn {
        // Somebody finished while we waited.
        Some(image) => Ok(image.clone()),
        None => fetch(store, reference, auth, progress).await,
    };
    if let Ok(image) = &result {
        *turn = Some(image.clone());
    }
    drop(turn);
    let mut pulls = store.pulls.lock();
    // The map and we: nobody waits.
    if Arc::strong_count(&shared) <= 2 {
        pulls.remove(&key);
    }
    result
}

struct Fetch<'a> {
    client: oci_client::Client,
    store: &'a Arc<Inner>,
    reference: &'a Reference,
    auth: oci_client::secrets::RegistryAuth,
    progress: Option<watch::Sender<PullProgress>>,
}

async fn fetch(
    store: &Arc<Inner>,
    reference: &Reference,
    auth: &RegistryAuth,
    progress: Option<watch::Sender<PullProgress>>,
) -> Result<Image> {
    let path = store.growth_lock();
    let _shared = blocking(move || lock::shared(&path)).await?;
    // A provider may have been installed already; either is the one we want.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = oci_client::Client::new(ClientConfig {
        protocol: ClientProtocol::HttpsExcept(store.config.insecure_registries.clone()),
        connect_timeout: Some(std::time::Duration::from_secs(30)),
        read_timeout: Some(std::time::Duration::from_secs(60)),
        ..ClientConfig::default()
    });
    let auth = match auth {
        RegistryAuth::Anonymous => oci_client::secrets::RegistryAuth::Anonymous,
        RegistryAuth::Basic { username, password } => {
            oci_client::secrets::RegistryAuth::Basic(username.clone(), password.clone())
        }
        RegistryAuth::Bearer(token) => oci_client::secrets::RegistryAuth::Bearer(token.clone()),
    };
    Fetch { client, store, reference, auth, progress }.run().await
}

impl Fetch<'_> {
    fn registry_error(&self, operation: &'static str, error: OciDistributionError) -> Error {
        use OciDistributionError::*;
        let not_found = match &error {
            ImageManifestNotFoundError(_) => true,
            ServerError { code, .. } => *code == 404,
            RegistryError { envelope, .. } => envelope.errors.iter().any(|e| {
                let code = format!("{:?}", e.code);
                code.contains("ManifestUnknown") || code.contains("NameUnknown") || code.contains("NotFound")
            }),
            _ => false,
        };
        if not_found {
            return Error::ImageNotFound { reference: self.reference.canonical() };
        }
        let unauthorized = match &error {
            UnauthorizedError { .. } | AuthenticationFailure(_) => true,
            ServerError { code, .. } => matches!(code, 401 | 403),
            RegistryError { envelope, .. } => envelope.errors.iter().any(|e| {
                let code = format!("{:?}", e.code);
                code.contains("Unauthorized") || code.contains("Denied")
            }),
            _ => false,
        };
        // A transport error's own text leaves out the part that tells anything.
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            let text = inner.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            source = inner.source();
        }
        Error::Registry {
            registry: self.reference.registry.clone(),
            operation,
            reference: self.reference.canonical(),
            reason,
            unauthorized,
        }
    }

    fn report(&self, change: impl FnOnce(&mut PullProgress)) {
        if let Some(progress) = &self.progress {
            progress.send_modify(change);
        }
    }

    fn target(&self, digest: Option<&str>) -> oci_client::Reference {
        let (registry, repository) = (self.reference.registry.clone(), self.reference.repository.clone());
        match (digest.or(self.reference.digest.as_deref()), &self.reference.tag) {
            (Some(digest), _) => oci_client::Reference::with_digest(registry, repository, digest.to_string()),
            (None, tag) => {
                oci_client::Reference::with_tag(registry, repository, tag.clone().unwrap_or_else(|| "latest".into()))
            }
        }
    }

    async fn manifest(&self, digest: Option<&str>) -> Result<(Vec<u8>, String)> {
        let target = self.target(digest);
        let (data, _) = self
            .client
            .pull_manifest_raw(&target, &self.auth, manifest::MANIFEST_TYPES)
            .await
            .map_err(|e| self.registry_error("fetching manifest of", e))?;
        let actual = digest_of(&data);
        if let Some(wanted) = digest.or(self.reference.digest.as_deref())
            && wanted != actual
        {
            return Err(Error::invalid_image(wanted, format!("the registry sent a manifest with digest {actual}")));
        }
        Ok((data.to_vec(), actual))
    }

    async fn run(&self) -> Result<Image> {
        let (mut data, mut digest) = self.manifest(None).await?;
        let top = digest.clone();
        let mut document: Document = manifest::parse(&data, &digest)?;
        if let (Some(manifests), None) = (&document.manifests, &document.layers) {
            let chosen = manifest::select(manifests, &digest)?.digest.clone();
            check_digest(&chosen).map_err(|reason| Error::invalid_image(&digest, reason))?;
            (data, digest) = self.manifest(Some(&chosen)).await?;
            document = manifest::parse(&data, &digest)?;
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(Error::invalid_image(digest, "is neither a manifest nor an index"));
        };
        let total = config.size + layers.iter().map(|l| l.size).sum::<u64>();
        self.report(|p| {
            p.total_bytes = total;
            p.total_layers = layers.len();
        });
        if config.size > MAX_DOCUMENT {
            return Err(Error::invalid_image(config.digest, "configuration is too large"));
        }
        let config_data = self.configuration(&config).await?;
        let configuration: manifest::Configuration = manifest::parse(&config_data, &config.digest)?;
        let ids = configuration.rootfs.diff_ids;
        if ids.len() != layers.len() {
            let reason = format!("{} layers, but {} diff ids", layers.len(), ids.len());
            return Err(Error::invalid_image(config.digest, reason));
        }
        for id in ids.iter().chain(layers.iter().map(|l| &l.digest)) {
            check_digest(id).map_err(|reason| Error::invalid_image(&digest, reason))?;
        }
        // In the manifest's order, whichever arrives first.
        let wanted: Vec<(Descriptor, String)> = layers.into_iter().zip(ids).collect();
        let mut fetched = futures::stream::iter(wanted)
            .map(|(layer, id)| async move { self.layer(&layer, &id).await })
            .buffered(PARALLEL);
        let mut done = Vec::new();
        while let Some(layer) = fetched.next().await {
            done.push(layer?);
        }
        drop(fetched);
        let store = self.store.clone();
        let size = total + data.len() as u64;
        let mut name = self.reference.clone();
        name.digest = None;
        let index_digest = (top != digest).then(|| format!("{}@{top}", self.reference.name()));
        let asked = self.reference.digest.as_ref().map(|_| self.reference.canonical());
        blocking(move || {
            let image = store.record(&data, &config_data, done, size, &[name])?;
            // The digest of an index, and one asked for, are names of the image too.
            let more: Vec<String> = index_digest.into_iter().chain(asked).collect();
            store.change(|index| match index.images.iter_mut().find(|i| i.id == image.id) {
                Some(record) => {
                    for digest in more {
                        if !record.digests.contains(&digest) {
                            record.digests.push(digest);
                        }
                    }
                    Ok(record.image())
                }
                None => Err(Error::ImageNotFound { reference: image.id.clone() }),
            })
        })
        .await
    }

    async fn configuration(&self, config: &Descriptor) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        let target = self.target(None);
        self.client
            .pull_blob(&target, &oci_descriptor(config), &mut data)
            .await
            .map_err(|e| self.registry_error("fetching configuration of", e))?;
        let actual = digest_of(&data);
        if actual != config.digest {
            return Err(Error::invalid_image(&config.digest, format!("the registry sent a blob with digest {actual}")));
        }
        self.report(|p| p.fetched_bytes += data.len() as u64);
        Ok(data)
    }

    async fn layer(&self, layer: &Descriptor, diff_id: &str) -> Result<Layer> {
        if let Some(known) = self.store.known_layer(diff_id)? {
            self.report(|p| {
                p.fetched_bytes += layer.size;
                p.unpacked_layers += 1;
            });
            return Ok(known);
        }
        let tmp = self.store.tmp();
        let mut file = tempfile::tempfile_in(&tmp).ctx("creating a file in", &tmp)?;
        let target = self.target(None);
        let mut blob = self
            .client
            .pull_blob_stream(&target, &oci_descriptor(layer))
            .await
            .map_err(|e| self.registry_error("fetching blob of", e))?;
        let mut got = 0u64;
        while let Some(chunk) = blob.stream.next().await {
            let chunk = chunk.map_err(|e| Error::Registry {
                registry: self.reference.registry.clone(),
                operation: "fetching blob of",
                reference: self.reference.canonical(),
                reason: format!("{}: {e}", layer.digest),
                unauthorized: false,
            })?;
            got += chunk.len() as u64;
            if layer.size > 0 && got > layer.size {
                return Err(Error::invalid_image(&layer.digest, format!("is longer than its {} bytes", layer.size)));
            }
            // Writes go to the page cache; the unpacking below is on a worker thread.
            file.write_all(&chunk).ctx("writing", &tmp)?;
            self.report(|p| p.fetched_bytes += chunk.len() as u64);
        }
        let (store, digest, diff_id) = (self.store.clone(), layer.digest.clone(), diff_id.to_string());
        let layer = blocking(move || {
            use std::io::Seek;
            file.rewind().ctx("reading", store.tmp())?;
            add_layer(file, Some(&digest), &diff_id, &store.tmp(), &store.layers())
        })
        .await?;
        self.report(|p| p.unpacked_layers += 1);
        Ok(layer)
    }
}

fn oci_descriptor(d: &Descriptor) -> OciDescriptor {
    OciDescriptor {
        media_type: d.media_type.clone(),
        digest: d.digest.clone(),
        size: d.size as i64,
        ..OciDescriptor::default()
    }
}
