//! Discovery: which groups, versions and resources are served, in the legacy and the aggregated form. Made anew
//! whenever that changes.

use crate::aggregate::registrations::{Priority, priority};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use gantry_api::kind::{Resource, ResourceInfo, Verb};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

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
    aggregated: HashMap<&'static str, (Bytes, String)>,
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

/// A version of a group that another server serves.
#[derive(Clone, Debug, Default)]
pub struct Foreign {
    /// Group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Where the group stands: greater ones first.
    pub group_priority: i32,
    /// Where the version stands in its group.
    pub version_priority: i32,
    /// Whether `resources` is what the server serves now.
    pub current: bool,
    /// Its resources in the aggregated form.
    pub resources: Arc<Vec<Value>>,
}

enum Content {
    /// Served here.
    Own(Vec<Listed>),
    /// Served by another server, which answers for the version's own document.
    Foreign(Foreign),
}

/// A version of a group with what it has.
struct GroupVersion {
    group: String,
    version: String,
    priority: Priority,
    content: Content,
}

/// In the order in which clients are told of them: groups by priority, then versions.
fn sort(versions: &mut [GroupVersion]) {
    let mut of_group: HashMap<String, i32> = HashMap::new();
    for v in versions.iter() {
        let best = of_group.entry(v.group.clone()).or_insert(v.priority.group);
        *best = v.priority.group.max(*best);
    }
    versions.sort_by_cached_key(|v| {
        let group = (Reverse(of_group.get(&v.group).copied().unwrap_or_default()), v.group.clone());
        (group, Reverse(v.priority.version), crate::crd::version_order(&v.version))
    });
}

/// What can be done with objects whose definition is going.
const WHILE_TERMINATING: &[Verb] = &[Verb::Delete, Verb::DeleteCollection, Verb::Get, Verb::List, Verb::Watch];

impl Discovery {
    /// The documents of these resources, and of the versions that other servers serve.
    #[must_use]
    pub fn new(resources: &[&'static dyn Resource], foreign: Vec<Foreign>) -> Self {
        let mut versions: Vec<GroupVersion> = Vec::new();
        let metrics = crate::metrics_api::RESOURCES.iter().map(|info| Listed {
            name: info.plural.to_owned(),
            info: *info,
            storage_version: info.version.to_owned(),
        });
        for listed in resources.iter().map(|r| Listed::of(*r)).chain(metrics) {
            let (group, version) = (listed.info.group, listed.info.version);
            let known = versions.iter_mut().find(|v| v.group == group && v.version == version);
            match known.map(|v| &mut v.content) {
                Some(Content::Own(list)) => list.push(listed),
                _ => versions.push(GroupVersion {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    priority: priority(group, version),
                    content: Content::Own(vec![listed]),
                }),
            }
        }
        // Whoever registered a version has it, also where this server could serve it.
        versions.retain(|v| !foreign.iter().any(|f| f.group == v.group && f.version == v.version));
        versions.extend(foreign.into_iter().map(|f| GroupVersion {
            group: f.group.clone(),
            version: f.version.clone(),
            priority: Priority { group: f.group_priority, version: f.version_priority },
            content: Content::Foreign(f),
        }));
        sort(&mut versions);
        for version in &mut versions {
            if let Content::Own(list) = &mut version.content {
                list.sort_by(|a, b| a.name.cmp(&b.name));
            }
        }
        let mut out = Self { plain: HashMap::new(), aggregated: HashMap::new() };
        out.add_plain(&versions);
        for (path, core) in [("/api", true), ("/apis", false)] {
            let json = aggregated(&versions, core);
            let etag = format!("\"{}\"", hex(&Sha256::digest(&json)));
            out.aggregated.insert(path, (json.into(), etag));
        }
        out
    }

    /// The same, saying by which address clients reach this server, where it knows one.
    #[must_use]
    pub fn reached_at(mut self, address: Option<(IpAddr, u16)>) -> Self {
        if let Some((ip, port)) = address {
            let anybody = json!({ "clientCIDR": "0.0.0.0/0", "serverAddress": SocketAddr::new(ip, port).to_string() });
            let versions =
                json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [anybody] });
            self.plain.insert("/api".into(), versions.to_string().into());
        }
        self
    }

    fn add_plain(&mut self, versions: &[GroupVersion]) {
        let mut groups: Vec<Value> = Vec::new();
        for GroupVersion { group, version, content, .. } in versions {
            let api_version = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
            let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{api_version}") };
            if let Content::Own(list) = content {
                let mut document =
                    json!({ "kind": "APIResourceList", "groupVersion": api_version, "resources": resources(list) });
                if !group.is_empty() {
                    document["apiVersion"] = "v1".into();
                }
                self.plain.insert(path, document.to_string().into());
            }
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

    /// The document at a path, in the aggregated form where the client accepts it.
    #[must_use]
    pub fn answer(&self, path: &str, aggregated: bool) -> Option<Answer> {
        if let Some((json, etag)) = self.aggregated.get(path).filter(|_| aggregated) {
            let content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
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

fn aggregated(versions: &[GroupVersion], core: bool) -> String {
    let mut items: Vec<Value> = Vec::new();
    for GroupVersion { group, version, content, .. } in versions.iter().filter(|v| v.group.is_empty() == core) {
        let this = match content {
            Content::Own(list) => {
                json!({ "version": version, "resources": aggregated_resources(list), "freshness": "Current" })
            }
            Content::Foreign(f) if f.current => {
                json!({ "version": version, "resources": *f.resources, "freshness": "Current" })
            }
            Content::Foreign(_) => json!({ "version": version, "freshness": "Stale" }),
        };
        let known = items.iter_mut().find(|i| i["metadata"]["name"].as_str().unwrap_or_default() == group);
        match known.and_then(|i| i["versions"].as_array_mut()) {
            Some(list) => list.push(this),
            None => {
                let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
                items.push(json!({ "metadata": metadata, "versions": [this] }));
            }
        }
    }
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
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
        let discovery = Discovery::new(gantry_api::kinds::ALL, Vec::new());
        let Some(Answer::Plain(json)) = discovery.answer("/api/v1", false) else { panic!("no core document") };
        let document: Value = serde_json::from_slice(&json).unwrap();
        let reached = Discovery::new(&[], Vec::new()).reached_at(Some(([192, 0, 2, 1].into(), 6443)));
        let Some(Answer::Plain(json)) = reached.answer("/api", false) else { panic!("no versions") };
        let versions: Value = serde_json::from_slice(&json).unwrap();
        let anybody = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": "192.0.2.1:6443"}]);
        assert_eq!(versions["serverAddressByClientCIDRs"], anybody);
        let names: Vec<_> =
            document["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"configmaps") && names.contains(&"namespaces/status"), "{names:?}");
        assert!(names.is_sorted());
        let Some(Answer::Aggregated { json, content_type, .. }) = discovery.answer("/api", true) else {
            panic!("not aggregated")
        };
        assert!(content_type.contains("v=v2;"));
        let document: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(document["items"][0]["versions"][0]["version"], "v1");
        assert!(discovery.answer("/apis/none", false).is_none());
    }

    #[test]
    fn versions_of_other_servers_stand_by_their_priority() {
        let foreign = |group: &str, version: &str, group_priority, current| Foreign {
            group: group.into(),
            version: version.into(),
            group_priority,
            version_priority: 10,
            current,
            resources: Arc::new(vec![json!({ "resource": "flunders" })]),
        };
        let all = vec![foreign("late.io", "v1", 10, true), foreign("early.io", "v1beta1", 19_000, false)];
        let discovery = Discovery::new(gantry_api::kinds::ALL, all);
        let Some(Answer::Plain(json)) = discovery.answer("/apis", false) else { panic!("no groups") };
        let document: Value = serde_json::from_slice(&json).unwrap();
        let names: Vec<_> =
            document["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
        assert_eq!(names[..2], ["apiregistration.k8s.io", "early.io"], "{names:?}");
        assert_eq!(names.last(), Some(&"late.io"));
        assert!(
            discovery.answer("/apis/late.io", false).is_some() && discovery.answer("/apis/late.io/v1", false).is_none()
        );
        let Some(Answer::Aggregated { json, .. }) = discovery.answer("/apis", true) else { panic!("not aggregated") };
        let document: Value = serde_json::from_slice(&json).unwrap();
        let of = |name: &str| {
            let items = document["items"].as_array().unwrap();
            items.iter().find(|i| i["metadata"]["name"] == name).unwrap()["versions"][0].clone()
        };
        assert_eq!(of("early.io"), json!({ "version": "v1beta1", "freshness": "Stale" }));
        assert_eq!(of("late.io")["resources"][0]["resource"], "flunders");
    }
}
