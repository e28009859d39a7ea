//! The documents of other servers, whose versions are shown among this server's own.

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const REFERENCE: &str = "#/definitions/";

/// What other servers document.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Foreign {
    /// Their parts of the version 2 document; earlier ones keep their names of definitions.
    pub v2: Vec<ForeignV2>,
    /// Paths of the version 3 index, with the URL their document is at.
    pub v3: BTreeMap<String, String>,
}

/// One server's part of a version 2 document.
#[derive(Debug, Clone)]
pub struct ForeignV2 {
    paths: Arc<Map<String, Value>>,
    definitions: Arc<Map<String, Value>>,
    hash: Vec<u8>,
}

impl PartialEq for ForeignV2 {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

/// The definitions a value refers to.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(REFERENCE)) {
                found.insert(name.to_owned());
            }
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(r)) = map.get_mut("$ref")
                && let Some(new) = r.strip_prefix(REFERENCE).and_then(|name| names.get(name))
            {
                *r = format!("{REFERENCE}{new}");
            }
            map.values_mut().for_each(|v| rename(v, names));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| rename(v, names)),
        _ => {}
    }
}

impl ForeignV2 {
    /// The paths of a document that begin with `prefix`, with the definitions they need; nothing where there are none.
    #[must_use]
    pub fn new(document: &Value, prefix: &str) -> Option<ForeignV2> {
        let all = document.get("paths")?.as_object()?;
        let chosen = all.iter().filter(|(path, _)| path.starts_with(prefix));
        let paths: Map<String, Value> = chosen.map(|(path, item)| (path.clone(), item.clone())).collect();
        if paths.is_empty() {
            return None;
        }
        let given = document.get("definitions").and_then(Value::as_object);
        let mut wanted = BTreeSet::new();
        paths.values().for_each(|item| references(item, &mut wanted));
        let mut definitions = Map::new();
        while let Some(name) = wanted.pop_first() {
            let Some(schema) = given.and_then(|g| g.get(&name)).filter(|_| !definitions.contains_key(&name)) else {
                continue;
            };
            references(schema, &mut wanted);
            definitions.insert(name, schema.clone());
        }
        let mut hasher = Sha256::new();
        hasher.update(serde_json::to_vec(&paths).unwrap_or_default());
        hasher.update(serde_json::to_vec(&definitions).unwrap_or_default());
        let hash = hasher.finalize().to_vec();
        Some(ForeignV2 { paths: Arc::new(paths), definitions: Arc::new(definitions), hash })
    }

    pub(super) fn hash(&self) -> &[u8] {
        &self.hash
    }
}

impl Foreign {
    /// Adds the foreign parts to a version 2 document. A path that is there stays; a definition whose name is taken by a
    /// different one gets a new name.
    pub(super) fn merge(&self, mut document: Value) -> Value {
        for part in &self.v2 {
            let mut names = BTreeMap::new();
            let Some(own) = document.get_mut("definitions").and_then(Value::as_object_mut) else { return document };
            for (name, schema) in part.definitions.iter() {
                if own.get(name).is_none_or(|present| present == schema) {
                    continue;
                }
                let taken = |n: &String| own.contains_key(n) || part.definitions.contains_key(n);
                let new = (2..).map(|i| format!("{name}_v{i}")).find(|n| !taken(n));
                names.insert(name.clone(), new.unwrap_or_else(|| name.clone()));
            }
            for (name, schema) in part.definitions.iter() {
                let mut schema = schema.clone();
                rename(&mut schema, &names);
                own.insert(names.get(name).unwrap_or(name).clone(), schema);
            }
            let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return document };
            for (path, item) in part.paths.iter().filter(|(path, _)| !paths.contains_key(*path)).collect::<Vec<_>>() {
                let mut item = item.clone();
                rename(&mut item, &names);
                paths.insert(path.clone(), item);
            }
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn foreign_parts_are_filtered_and_their_names_kept_apart() {
        let theirs = json!({
            "paths": {
                "/apis/w.io/v1/flunders": {"get": {"schema": {"$ref": "#/definitions/io.Flunder"}}},
                "/apis/other/v1/x": {"get": {"schema": {"$ref": "#/definitions/io.Other"}}},
            },
            "definitions": {
                "io.Flunder": {"properties": {"metadata": {"$ref": "#/definitions/io.Meta"}}},
                "io.Meta": {"type": "object", "description": "theirs"},
                "io.Other": {},
            },
        });
        let part = ForeignV2::new(&theirs, "/apis/w.io/v1/").unwrap();
        assert!(ForeignV2::new(&theirs, "/apis/none/v1/").is_none());
        let own = json!({
            "paths": {"/api/v1/pods": {}},
            "definitions": {"io.Meta": {"type": "object"}},
        });
        let merged = Foreign { v2: vec![part], ..Foreign::default() }.merge(own);
        let paths: Vec<&String> = merged["paths"].as_object().unwrap().keys().collect();
        assert_eq!(paths, ["/api/v1/pods", "/apis/w.io/v1/flunders"]);
        let definitions = &merged["definitions"];
        assert_eq!(definitions["io.Meta"], json!({"type": "object"}));
        assert_eq!(definitions["io.Meta_v2"]["description"], "theirs");
        assert_eq!(definitions["io.Flunder"]["properties"]["metadata"]["$ref"], "#/definitions/io.Meta_v2");
        assert!(definitions.get("io.Other").is_none());
    }
}
