//! Importing archives: OCI layout and docker-archive, plain, gzip or zstd.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::path::Path;

use super::Inner;
use super::layer::{add_layer, decompressed, digest_of, directory_name};
use super::manifest::{self, Descriptor, DockerManifest, Document, MAX_DOCUMENT};
use super::reference::{Reference, check_digest};
use crate::error::{Error, IoContext, Result};
use crate::image_service::Image;

enum Item {
    /// Offset and length in the file.
    Data(u64, u64),
    /// Another entry.
    Link(String),
}

/// A tar file whose entries can be read in any order.
struct Index {
    file: File,
    items: HashMap<String, Item>,
}

impl Index {
    fn of(mut file: File, archive: &str) -> Result<Index> {
        let corrupted = |e: io::Error| Error::invalid_image(archive, format!("corrupted archive: {e}"));
        file.seek(SeekFrom::Start(0)).map_err(corrupted)?;
        let mut items = HashMap::new();
        let length = file.metadata().map_err(corrupted)?.len();
        {
            let mut tar = tar::Archive::new(&file);
            for (number, entry) in tar.entries_with_seek().map_err(corrupted)?.enumerate() {
                let entry = match entry {
                    Ok(entry) => entry,
                    // The library quotes what it could not read, which is anything at all.
                    Err(_) if number == 0 => return Err(Error::invalid_image(archive, "not a tar archive")),
                    Err(error) => return Err(corrupted(error)),
                };
                let clean = |bytes: &[u8]| {
                    let text = String::from_utf8_lossy(bytes).into_owned();
                    text.trim_start_matches("./").trim_start_matches('/').to_string()
                };
                let path = clean(&entry.path_bytes());
                let kind = entry.header().entry_type();
                if kind.is_file() {
                    let (start, size) = (entry.raw_file_position(), entry.size());
                    if start.saturating_add(size) > length {
                        return Err(Error::invalid_image(path, "corrupted archive: entry is cut off"));
                    }
                    items.insert(path, Item::Data(start, size));
                } else if (kind.is_symlink() || kind.is_hard_link())
                    && let Some(target) = entry.link_name_bytes()
                {
                    let target = if kind.is_hard_link() { clean(&target) } else { relative(&path, &clean(&target)) };
                    items.insert(path, Item::Link(target));
                }
            }
        }
        Ok(Index { file, items })
    }

    fn has(&self, path: &str) -> bool {
        self.items.contains_key(path)
    }

    fn open(&self, path: &str) -> Result<Take<&File>> {
        let mut at = path.to_string();
        for _ in 0..8 {
            match self.items.get(&at) {
                Some(Item::Data(offset, size)) => {
                    let mut file = &self.file;
                    file.seek(SeekFrom::Start(*offset)).map_err(|e| Error::invalid_image(path, e))?;
                    return Ok(file.take(*size));
                }
                Some(Item::Link(target)) => at = target.clone(),
                None => return Err(Error::invalid_image(path, "missing in the archive")),
            }
        }
        Err(Error::invalid_image(path, "too many links"))
    }

    fn document(&self, path: &str) -> Result<Vec<u8>> {
        let reader = self.open(path)?;
        if reader.limit() > MAX_DOCUMENT {
            return Err(Error::invalid_image(path, format!("{} bytes is too much for a document", reader.limit())));
        }
        let mut data = Vec::new();
        let mut reader = reader;
        reader.read_to_end(&mut data).map_err(|e| Error::invalid_image(path, e))?;
        Ok(data)
    }

    /// A blob of an OCI layout, with its digest checked.
    fn blob_document(&self, digest: &str) -> Result<Vec<u8>> {
        let data = self.document(&blob_path(digest)?)?;
        let actual = digest_of(&data);
        if actual != digest {
            return Err(Error::invalid_image(digest, format!("blob has digest {actual}")));
        }
        Ok(data)
    }
}

fn blob_path(digest: &str) -> Result<String> {
    check_digest(digest).map_err(|reason| Error::invalid_image(digest, reason))?;
    Ok(format!("blobs/{}", digest.replacen(':', "/", 1)))
}

/// Target of a relative link, as a path from the archive's root.
fn relative(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Imports every image of an archive.
pub(super) fn import(store: &Inner, archive: &Path, name: Option<&str>) -> Result<Vec<Image>> {
    let label = archive.display().to_string();
    let file = File::open(archive).ctx("opening", archive)?;
    let mut start = [0; 4];
    let n = (&file).read(&mut start).ctx("reading", archive)?;
    (&file).seek(SeekFrom::Start(0)).ctx("reading", archive)?;
    let compressed = start[..n].starts_with(&[0x1f, 0x8b]) || start[..n].starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let file = if compressed { store.decompress(&file, &label)? } else { file };
    let index = Index::of(file, &label)?;
    let name = name.map(Reference::parse).transpose()?;
    if index.has("index.json") && index.has("oci-layout") {
        oci(store, &index, name.as_ref())
    } else if index.has("manifest.json") {
        docker(store, &index, name.as_ref())
    } else {
        Err(Error::invalid_image(label, "neither an OCI layout (index.json) nor a docker-archive (manifest.json)"))
    }
}

impl Inner {
    fn decompress(&self, file: &File, label: &str) -> Result<File> {
        let tmp = self.tmp();
        let mut plain = tempfile::tempfile_in(&tmp).ctx("creating a file in", &tmp)?;
        let corrupted = |e: io::Error| Error::invalid_image(label, format!("corrupted archive: {e}"));
        let mut reader = decompressed(file).map_err(corrupted)?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match reader.read(&mut buffer).map_err(corrupted)? {
                0 => return Ok(plain),
                n => io::Write::write_all(&mut plain, &buffer[..n]).ctx("writing", &tmp)?,
            }
        }
    }
}

fn oci(store: &Inner, archive: &Index, name: Option<&Reference>) -> Result<Vec<Image>> {
    let index: Document = manifest::parse(&archive.document("index.json")?, "index.json")?;
    let entries = index.manifests.unwrap_or_default();
    // Newer `docker save` writes both layouts; its names are only in the older one.
    let docker_names: Vec<String> = match archive.has("manifest.json") {
        true => manifest::parse::<Vec<DockerManifest>>(&archive.document("manifest.json")?, "manifest.json")?
            .into_iter()
            .flat_map(|m| m.repo_tags.unwrap_or_default())
            .collect(),
        false => Vec::new(),
    };
    if entries.is_empty() {
        return Err(Error::invalid_image("index.json", "lists no image"));
    }
    let alone = entries.len() == 1;
    let mut images = Vec::new();
    for entry in &entries {
        let names = oci_names(entry, alone, name, &docker_names)?;
        let (data, digest) = resolve_manifest(archive, entry)?;
        let document: Document = manifest::parse(&data, &digest)?;
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(Error::invalid_image(digest, "is neither a manifest nor an index"));
        };
        let config_data = archive.blob_document(&config.digest)?;
        let configuration: manifest::Configuration = manifest::parse(&config_data, &config.digest)?;
        let ids = &configuration.rootfs.diff_ids;
        if ids.len() != layers.len() {
            let reason = format!("{} layers, but {} diff ids", layers.len(), ids.len());
            return Err(Error::invalid_image(config.digest, reason));
        }
        let mut done = Vec::new();
        let mut size = (data.len() + config_data.len()) as u64;
        for (layer, diff_id) in layers.iter().zip(ids) {
            check_digest(diff_id).map_err(|reason| Error::invalid_image(&config.digest, reason))?;
            size += layer.size;
            done.push(match store.known_layer(diff_id)? {
                Some(layer) => layer,
                None => {
                    let blob = archive.open(&blob_path(&layer.digest)?)?;
                    add_layer(blob, Some(&layer.digest), diff_id, &store.tmp(), &store.layers())?
                }
            });
        }
        images.push(store.record(&data, &config_data, done, size, &names)?);
    }
    Ok(images)
}

fn oci_names(entry: &Descriptor, alone: bool, name: Option<&Reference>, docker: &[String]) -> Result<Vec<Reference>> {
    if let (Some(name), true) = (name, alone) {
        return Ok(vec![name.clone()]);
    }
    let annotation = |key: &str| entry.annotations.get(key).map(String::as_str);
    if let Some(full) = annotation("io.containerd.image.name") {
        return Ok(vec![Reference::parse(full)?]);
    }
    if let Some(short) = annotation("org.opencontainers.image.ref.name")
        && short.contains(['/', ':'])
    {
        return Ok(vec![Reference::parse(short)?]);
    }
    if alone {
        return docker.iter().map(|n| Reference::parse(n)).collect();
    }
    Ok(Vec::new())
}

/// Follows indexes down to the manifest for this machine.
fn resolve_manifest(archive: &Index, entry: &Descriptor) -> Result<(Vec<u8>, String)> {
    let mut digest = entry.digest.clone();
    for _ in 0..4 {
        let data = archive.blob_document(&digest)?;
        let document: Document = manifest::parse(&data, &digest)?;
        match document.manifests {
            Some(manifests) if document.layers.is_none() => {
                digest = manifest::select(&manifests, &digest)?.digest.clone();
            }
            _ => return Ok((data, digest)),
        }
    }
    Err(Error::invalid_image(digest, "indexes are nested too deeply"))
}

fn docker(store: &Inner, archive: &Index, name: Option<&Reference>) -> Result<Vec<Image>> {
    let manifests: Vec<DockerManifest> = manifest::parse(&archive.document("manifest.json")?, "manifest.json")?;
    if manifests.is_empty() {
        return Err(Error::invalid_image("manifest.json", "lists no image"));
    }
    let alone = manifests.len() == 1;
    let mut images = Vec::new();
    for entry in manifests {
        let names: Vec<Reference> = match (name, alone) {
            (Some(name), true) => vec![name.clone()],
            _ => entry.repo_tags.unwrap_or_default().iter().map(|n| Reference::parse(n)).collect::<Result<_>>()?,
        };
        let config_data = archive.document(&entry.config)?;
        let configuration: manifest::Configuration = manifest::parse(&config_data, &entry.config)?;
        // The file is named by its digest; a name that says another one means damage.
        let stem = entry.config.rsplit('/').next().unwrap_or("").trim_end_matches(".json");
        let actual = digest_of(&config_data);
        if check_digest(&format!("sha256:{stem}")).is_ok() && actual != format!("sha256:{stem}") {
            return Err(Error::invalid_image(entry.config, format!("has digest {actual}")));
        }
        let ids = &configuration.rootfs.diff_ids;
        if ids.len() != entry.layers.len() {
            let reason = format!("{} layers, but {} diff ids", entry.layers.len(), ids.len());
            return Err(Error::invalid_image(entry.config, reason));
        }
        let mut done = Vec::new();
        let mut descriptors = Vec::new();
        let mut size = config_data.len() as u64;
        for (path, diff_id) in entry.layers.iter().zip(ids) {
            check_digest(diff_id).map_err(|reason| Error::invalid_image(&entry.config, reason))?;
            let blob = archive.open(path)?;
            size += blob.limit();
            descriptors.push(descriptor("application/vnd.oci.image.layer.v1.tar", diff_id, blob.limit()));
            done.push(match store.known_layer(diff_id)? {
                Some(layer) => layer,
                None => add_layer(blob, None, diff_id, &store.tmp(), &store.layers()).map_err(|e| match e {
                    Error::InvalidImage { entry, reason } => Error::invalid_image(entry.replace(diff_id, path), reason),
                    other => other,
                })?,
            });
        }
        let manifest = written_manifest(&config_data, descriptors)?;
        images.push(store.record(&manifest, &config_data, done, size, &names)?);
    }
    Ok(images)
}

pub(super) fn descriptor(media_type: &str, digest: &str, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: digest.into(),
        size,
        platform: None,
        annotations: Default::default(),
    }
}

/// The manifest of an image that came without one.
pub(super) fn written_manifest(config: &[u8], layers: Vec<Descriptor>) -> Result<Vec<u8>> {
    let document = Document {
        schema_version: 2,
        media_type: Some(manifest::MANIFEST_TYPES[0].into()),
        config: Some(descriptor("application/vnd.oci.image.config.v1+json", &digest_of(config), config.len() as u64)),
        layers: Some(layers),
        manifests: None,
    };
    serde_json::to_vec(&document).map_err(|e| Error::invalid_image("manifest", e))
}

impl Inner {
    /// The layer, when it is unpacked already.
    pub(super) fn known_layer(&self, diff_id: &str) -> Result<Option<super::layer::Layer>> {
        let known = self.current()?.images.iter().flat_map(|i| &i.layers).find(|l| l.diff_id == diff_id).cloned();
        Ok(known.filter(|_| self.layers().join(directory_name(diff_id)).is_dir()))
    }
}
