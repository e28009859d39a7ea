//! The OpenAPI documents: version 2 (one document) and version 3 (one per group and version), as JSON and as protobuf.
//!
//! They are made of three things: the embedded definitions of all built-in types with their descriptions, the schemas
//! of custom resources, and the list of resources served, from which the paths follow. A document is made on first
//! request and only its gzip form is kept; its hash is taken of what it is made from, so that the version 3 index can
//! name all hashes without making any document.
//!
//! ```
//! use gantry_schema::openapi::{Encoding, OpenApi, ServedResource};
//!
//! let resource = ServedResource::builtin("apps", "v1", "Deployment", "deployments", true);
//! let documents = OpenApi::new(vec![resource], "v1.37.0");
//! let index = documents.v3_index();
//! assert!(String::from_utf8(index.bytes()).unwrap().contains("\"/openapi/v3/apis/apps/v1?hash="));
//! let apps = documents.v3("apis/apps/v1", Encoding::Json).unwrap();
//! assert_eq!(apps.content_type, "application/json");
//! ```

mod definitions;
mod document;
mod foreign;
mod inline;
mod operation;
mod paths;
mod protobuf;
#[cfg(test)]
mod tests;
mod v2_protobuf;
mod v3;
mod v3_protobuf;

pub use foreign::{Foreign, ForeignV2};
pub use inline::{inlined, inlined_metadata};

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Map, json};
use sha2::{Digest as _, Sha256};

/// One resource the server serves.
#[derive(Debug, Clone, Default)]
pub struct ServedResource {
    /// API group; empty for the core group.
    pub group: String,
    /// `v1`
    pub version: String,
    /// `Deployment`
    pub kind: String,
    /// `DeploymentList`; empty for a kind without list.
    pub list_kind: String,
    /// `deployments`
    pub plural: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Discovery verbs: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verbs: Vec<String>,
    /// What is served below an object.
    pub subresources: Vec<ServedSubresource>,
    /// The `openAPIV3Schema` of a custom resource as JSON text; nothing for a built-in type.
    pub schema: Option<Arc<str>>,
}

/// One subresource.
#[derive(Debug, Clone, Default)]
pub struct ServedSubresource {
    /// `status`, `scale`, `exec`, …
    pub name: String,
    /// Group of the kind it takes and gives; that of `Scale` is `autoscaling`.
    pub group: String,
    /// Version of that kind.
    pub version: String,
    /// That kind.
    pub kind: String,
    /// Discovery verbs: `get`, `create`, `update`, `patch`.
    pub verbs: Vec<String>,
}

impl ServedResource {
    /// A built-in resource with every verb and no subresources.
    pub fn builtin(group: &str, version: &str, kind: &str, plural: &str, namespaced: bool) -> ServedResource {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        ServedResource {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            plural: plural.to_owned(),
            namespaced,
            verbs: verbs.map(str::to_owned).to_vec(),
            ..ServedResource::default()
        }
    }

    /// `api/v1` or `apis/apps/v1`.
    fn group_version_path(&self) -> String {
        match self.group.as_str() {
            "" => format!("api/{}", self.version),
            group => format!("apis/{group}/{}", self.version),
        }
    }
}

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    /// JSON.
    Json,
    /// The protobuf form of the gnostic project, which kubectl asks for.
    Protobuf,
}

/// Content type of the protobuf form of version 2, and the older spelling clients send.
pub const V2_PROTOBUF: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
];

/// Content type of the protobuf form of version 3, and the older spelling clients send.
pub const V3_PROTOBUF: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
];

/// A document ready to be sent with `Content-Encoding: gzip`.
#[derive(Debug, Clone)]
pub struct Document {
    /// The body, compressed.
    pub gzip: Arc<[u8]>,
    /// Hash in upper-case hexadecimal: the `hash` of the version 3 index.
    pub hash: String,
    /// `ETag` header, quotes included.
    pub etag: String,
    /// `Content-Type` header.
    pub content_type: &'static str,
}

impl Document {
    fn new(bytes: &[u8], hash: &str, content_type: &'static str) -> Document {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        // Writing to memory does not fail.
        let gzip = encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default();
        Document { gzip: gzip.into(), hash: hash.to_owned(), etag: format!("\"{hash}\""), content_type }
    }

    /// The body, for clients that do not accept gzip.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match GzDecoder::new(&*self.gzip).read_to_end(&mut bytes) {
            Ok(_) => bytes,
            // Only what was compressed above is read here.
            Err(_) => Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    V2(Encoding),
    V3(String, Encoding),
}

/// The documents for one list of served resources. When the list changes (a CustomResourceDefinition comes or goes),
/// make another.
#[derive(Debug)]
pub struct OpenApi {
    resources: Vec<ServedResource>,
    version: String,
    foreign: Foreign,
    made: Mutex<BTreeMap<Key, Document>>,
}

impl OpenApi {
    /// Documents for these resources, of a server of this version (`v1.37.0`). Nothing is made yet.
    pub fn new(mut resources: Vec<ServedResource>, version: &str) -> OpenApi {
        resources.sort_by(|a, b| (&a.group, &a.version, &a.plural).cmp(&(&b.group, &b.version, &b.plural)));
        let foreign = Foreign::default();
        OpenApi { resources, version: version.to_owned(), foreign, made: Mutex::new(BTreeMap::new()) }
    }

    /// Documents for these resources and those of other servers instead. Those made already are kept where nothing in
    /// them changes.
    pub fn with_resources(&self, resources: Vec<ServedResource>, foreign: Foreign) -> OpenApi {
        let new = OpenApi { foreign, ..OpenApi::new(resources, &self.version) };
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = made.iter().filter(|(key, document)| {
            let hash = match key {
                Key::V2(_) => new.hash("v2", &new.resources.iter().collect::<Vec<_>>()),
                Key::V3(path, _) => new.hash(path, &new.of(path)),
            };
            hash == document.hash
        });
        let kept = kept.map(|(key, document)| (key.clone(), document.clone())).collect();
        OpenApi { made: Mutex::new(kept), ..new }
    }

    /// `/openapi/v2`
    pub fn v2(&self, encoding: Encoding) -> Document {
        self.cached(Key::V2(encoding), || {
            let resources: Vec<&ServedResource> = self.resources.iter().collect();
            let document = self.foreign.merge(document::v2(&resources, &self.version));
            let hash = self.hash("v2", &resources);
            match encoding {
                Encoding::Json => Document::new(document.to_string().as_bytes(), &hash, "application/json"),
                Encoding::Protobuf => Document::new(&v2_protobuf::document(&document), &hash, V2_PROTOBUF[0]),
            }
        })
    }

    /// `/openapi/v3`: the paths of the documents below, with their hashes.
    pub fn v3_index(&self) -> Document {
        let mut paths = Map::new();
        for path in self.v3_paths() {
            let hash = self.hash(&path, &self.of(&path));
            paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
        }
        for (path, url) in &self.foreign.v3 {
            paths.insert(path.clone(), json!({ "serverRelativeURL": url }));
        }
        let index = json!({ "paths": paths });
        let hash = hex(&Sha256::digest(index.to_string().as_bytes()));
        Document::new(index.to_string().as_bytes(), &hash, "application/json")
    }

    /// `/openapi/v3/<path>`, where path is `api/v1`, `apis/apps/v1`, `apis/apps`, `api`, `apis` or `version`; nothing
    /// when nothing is served there.
    pub fn v3(&self, path: &str, encoding: Encoding) -> Option<Document> {
        let path = path.trim_matches('/');
        self.v3_paths().iter().any(|known| known == path).then(|| {
            self.cached(Key::V3(path.to_owned(), encoding), || {
                let resources = self.of(path);
                let document = document::v3(path, &resources, &self.version);
                let hash = self.hash(path, &resources);
                match encoding {
                    Encoding::Json => Document::new(document.to_string().as_bytes(), &hash, "application/json"),
                    Encoding::Protobuf => Document::new(&v3_protobuf::document(&document), &hash, V3_PROTOBUF[0]),
                }
            })
        })
    }

    fn v3_paths(&self) -> Vec<String> {
        let mut paths = vec!["api".to_owned(), "apis".to_owned(), "version".to_owned()];
        for resource in &self.resources {
            paths.push(resource.group_version_path());
            if !resource.group.is_empty() {
                paths.push(format!("apis/{}", resource.group));
            }
        }
        paths.sort();
        paths.dedup();
        paths
    }

    fn of(&self, path: &str) -> Vec<&ServedResource> {
        self.resources.iter().filter(|resource| resource.group_version_path() == path).collect()
    }

    fn hash(&self, document: &str, resources: &[&ServedResource]) -> String {
        let mut hasher = Sha256::new();
        for part in [document.as_bytes(), self.version.as_bytes(), definitions::fingerprint()] {
            hasher.update(part.len().to_le_bytes());
            hasher.update(part);
        }
        for resource in resources {
            // The debug form names every field.
            hasher.update(format!("{resource:?}"));
        }
        if document == "v2" {
            for part in &self.foreign.v2 {
                hasher.update(part.hash());
            }
        }
        hex(&hasher.finalize())
    }

    fn cached(&self, key: Key, make: impl FnOnce() -> Document) -> Document {
        // Two that ask at once wait for one making; a panic while making leaves the map as it was.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(key).or_insert_with(make).clone()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}
