//! Discovery: which groups, versions and resources are served, in the legacy and the aggregated form. Made once.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use gantry_api::kind::{Resource, ResourceInfo, Verb};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// The order in which groups are listed, upstream's priorities; others follow by name.
const GROUP_ORDER: &[&str] = &[
    "",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "metrics.k8s.io",
];

/// A discovery document.
pub enum Answer {
    /// A legacy document.
    Plain(Bytes),
    /// An aggregated document.
    Aggregated {
        /// The document.
        json: Bytes,
        /// Its entity tag, quoted.
        etag: String,
        /// Its media type with parameters.
        content_type: &'static str,
    },
}

/// All documents, by path.
pub struct Discovery {
    plain: HashMap<String, Bytes>,
    aggregated: HashMap<(String, &'static str), (Bytes, String)>,
}

/// Facts of a served resource as discovery needs them.
struct Listed {
    name: String,
    info: ResourceInfo,
    /// The version objects are stored in.
    storage_version: String,
}

impl Listed {
    fn of(resource: &dyn Resource) -> Self {
        let mut info = *resource.info();
        let mut storage_version = info.version.to_owned();
        if let Some(custom) = crate::crd::custom(resource) {
            let state = custom.state();
            if state.terminating {
                info.verbs = WHILE_TERMINATING;
            }
            if let Some((_, version)) = state.storage.split_once('/') {
                version.clone_into(&mut storage_version);
            }
        }
        Self { name: info.plural.to_owned(), info, storage_version }
    }
}

/// What can be done with objects whose definition is going.
const WHILE_TERMINATING: &[Verb] = &[Verb::Delete, Verb::DeleteCollection, Verb::Get, Verb::List, Verb::Watch];

impl Discovery {
    /// The documents of these resources.
    #[must_use]
    pub fn new(resources: &[&'static dyn Resource]) -> Self {
        let mut versions: Vec<(String, String, Vec<Listed>)> = Vec::new();
        let metrics = crate::metrics_api::RESOURCES.iter().map(|info| Listed {
            name: info.plural.to_owned(),
            info: *info,
            storage_version: info.version.to_owned(),
        });
        for listed in resources.iter().map(|r| Listed::of(*r)).chain(metrics) {
            let (group, version) = (listed.info.group, listed.info.version);
            let position = versions.iter().position(|(g, v, _)| g == group && v == version);
            let at = position.unwrap_or_else(|| {
                versions.push((group.to_owned(), version.to_owned(), Vec::new()));
                versions.len() - 1
            });
            versions[at].2.push(listed);
        }
        let rank = |group: &str| GROUP_ORDER.iter().position(|g| *g == group).unwrap_or(GROUP_ORDER.len());
        versions.sort_by(|a, b| rank(&a.0).cmp(&rank(&b.0)).then_with(|| a.0.cmp(&b.0)));
        for (_, _, list) in &mut versions {
            list.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let mut out = Self { plain: HashMap::new(), aggregated: HashMap::new() };
        out.add_plain(&versions);
        for version in ["v2", "v2beta1"] {
            for (path, core) in [("/api", true), ("/apis", false)] {
                let json = aggregated(&versions, core, version);
                let etag = format!("\"{}\"", hex(&Sha256::digest(&json)));
                out.aggregated.insert((path.to_owned(), version), (json.into(), etag));
            }
        }
        out
    }

    fn add_plain(&mut self, versions: &[(String, String, Vec<Listed>)]) {
        let mut groups: Vec<Value> = Vec::new();
        for (group, version, list) in versions {
            let api_version = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
            let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{api_version}") };
            let mut document =
                json!({ "kind": "APIResourceList", "groupVersion": api_version, "resources": resources(list) });
            if !group.is_empty() {
                document["apiVersion"] = "v1".into();
            }
            self.plain.insert(path, document.to_string().into());
            if group.is_empty() {
                continue;
            }
            let this = json!({ "groupVersion": api_version, "version": version });
            match groups.iter_mut().find(|g| g["name"] == group.as_str()) {
                Some(found) => {
                    if let Some(list) = found["versions"].as_array_mut() {
                        list.push(this);
                    }
                }
                None => groups.push(json!({ "name": group, "versions": [this.clone()], "preferredVersion": this })),
            }
        }
        for group in &groups {
            let mut document = group.clone();
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            self.plain
                .insert(format!("/apis/{}", group["name"].as_str().unwrap_or_default()), document.to_string().into());
        }
        let list = json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups });
        self.plain.insert("/apis".into(), list.to_string().into());
        let versions = json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] });
        self.plain.insert("/api".into(), versions.to_string().into());
    }

    /// All paths with a document.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.plain.keys().cloned().collect()
    }

    /// The document at a path; `aggregated` is the version of the aggregated form where the client accepts it.
    #[must_use]
    pub fn answer(&self, path: &str, aggregated: Option<&str>) -> Option<Answer> {
        let version = match aggregated {
            Some("v2") => Some("v2"),
            Some("v2beta1") => Some("v2beta1"),
            _ => None,
        };
        if let Some((json, etag)) = version.and_then(|v| self.aggregated.get(&(path.to_owned(), v))) {
            let content_type = match version {
                Some("v2") => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            };
            return Some(Answer::Aggregated { json: json.clone(), etag: etag.clone(), content_type });
        }
        self.plain.get(path).cloned().map(Answer::Plain)
    }
}

fn verbs(verbs: &[Verb]) -> Vec<&'static str> {
    let mut out: Vec<_> = verbs.iter().map(|v| v.as_str()).collect();
    out.sort_unstable();
    out
}

fn resources(list: &[Listed]) -> Value {
    let mut out: Vec<(String, Value)> = Vec::new();
    for Listed { name, info, storage_version } in list {
        let mut entry = json!({
            "name": name, "singularName": info.singular, "namespaced": info.namespaced, "kind": info.kind, "verbs": verbs(info.verbs),
        });
        if !info.short_names.is_empty() {
            entry["shortNames"] = json!(info.short_names);
        }
        if !info.categories.is_empty() {
            entry["categories"] = json!(info.categories);
        }
        if !info.virtual_only {
            entry["storageVersionHash"] = storage_version_hash(info, storage_version).into();
        }
        out.push((name.clone(), entry));
        for sub in info.subresources {
            let full = format!("{name}/{}", sub.name);
            let mut entry = json!({
                "name": full, "singularName": "", "namespaced": info.namespaced, "kind": info.kind, "verbs": verbs(sub.verbs),
            });
            if let Some((group, version, kind)) = sub.gvk {
                entry["kind"] = kind.into();
                if (group, version) != (info.group, info.version) {
                    entry["group"] = group.into();
                    entry["version"] = version.into();
                }
            }
            out.push((full, entry));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    Value::Array(out.into_iter().map(|(_, v)| v).collect())
}

fn aggregated(versions: &[(String, String, Vec<Listed>)], core: bool, document_version: &str) -> String {
    let mut items: Vec<Value> = Vec::new();
    for (group, version, list) in versions.iter().filter(|(g, _, _)| g.is_empty() == core) {
        let this = json!({ "version": version, "resources": aggregated_resources(list), "freshness": "Current" });
        let known = items.iter_mut().find(|i| i["metadata"]["name"].as_str().unwrap_or_default() == group);
        match known.and_then(|i| i["versions"].as_array_mut()) {
            Some(list) => list.push(this),
            None => {
                let metadata = if group.is_empty() {
                    json!({ "creationTimestamp": null })
                } else {
                    json!({ "name": group, "creationTimestamp": null })
                };
                items.push(json!({ "metadata": metadata, "versions": [this] }));
            }
        }
    }
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{document_version}"), "metadata": {}, "items": items,
    })
    .to_string()
}

fn aggregated_resources(list: &[Listed]) -> Value {
    let entries = list.iter().map(|Listed { name, info, .. }| {
        let kind = |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
        let mut entry = json!({
            "resource": name, "responseKind": kind(info.group, info.version, info.kind),
            "scope": if info.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": info.singular, "verbs": verbs(info.verbs),
        });
        if !info.short_names.is_empty() {
            entry["shortNames"] = json!(info.short_names);
        }
        if !info.categories.is_empty() {
            entry["categories"] = json!(info.categories);
        }
        if !info.subresources.is_empty() {
            let subs = info.subresources.iter().map(|s| {
                let (g, v, k) = s.gvk.unwrap_or((info.group, info.version, info.kind));
                json!({ "subresource": s.name, "responseKind": kind(g, v, k), "verbs": verbs(s.verbs) })
            });
            entry["subresources"] = subs.collect();
        }
        entry
    });
    entries.collect()
}

/// Tells clients whether two group-versions are stored alike (`discovery.StorageVersionHash`).
fn storage_version_hash(info: &ResourceInfo, version: &str) -> String {
    let text = format!("{}/{version}/{}", info.storage_group, info.kind);
    STANDARD.encode(&Sha256::digest(text.as_bytes())[..8])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_upstream() {
        let info = ResourceInfo::new("", "v1", "Pod", "pods", "pod", true);
        assert_eq!(storage_version_hash(&info, "v1"), "xPOwRZ+Yhw8=");
    }

    #[test]
    fn documents_name_what_is_served() {
        let discovery = Discovery::new(gantry_api::kinds::ALL);
        let Some(Answer::Plain(json)) = discovery.answer("/api/v1", None) else { panic!("no core document") };
        let document: Value = serde_json::from_slice(&json).unwrap();
        let names: Vec<_> =
            document["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"configmaps") && names.contains(&"namespaces/status"), "{names:?}");
        assert!(names.is_sorted());
        let Some(Answer::Aggregated { json, content_type, .. }) = discovery.answer("/api", Some("v2")) else {
            panic!("not aggregated")
        };
        assert!(content_type.contains("v=v2;"));
        let document: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(document["items"][0]["versions"][0]["version"], "v1");
        assert!(discovery.answer("/apis/none", None).is_none());
    }
}
