//! What the API server serves now, for controllers that work on every kind.

use gantry_client::{Client, Error, ResourceRef};
use http::Method;
use serde_json::Value;

/// A resource and the verbs it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// The resource.
    pub resource: ResourceRef,
    /// Its verbs.
    pub verbs: Vec<String>,
}

impl Discovered {
    /// Whether all of `verbs` are answered.
    #[must_use]
    pub fn answers(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|v| self.verbs.iter().any(|have| have == v))
    }
}

/// What was found, and the group versions that could not be read with the reason why.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    /// Every resource in its group's preferred version, without subresources.
    pub resources: Vec<Discovered>,
    /// Group versions that failed.
    pub failures: Vec<(String, String)>,
}

async fn get(client: &Client, path: &str) -> Result<Value, Error> {
    let bytes = client.call(Method::GET, path, None, bytes::Bytes::new()).await?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Decode { what: path.to_owned(), message: e.to_string() })
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

fn items(v: &Value) -> &[Value] {
    v.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Resources of one `APIResourceList`.
#[must_use]
pub fn read_list(group: &str, version: &str, list: &Value) -> Vec<Discovered> {
    items(&list["resources"])
        .iter()
        .filter(|r| !text(&r["name"]).contains('/'))
        .map(|r| Discovered {
            resource: ResourceRef {
                group: group.to_owned(),
                version: version.to_owned(),
                plural: text(&r["name"]),
                kind: text(&r["kind"]),
                namespaced: r["namespaced"].as_bool().unwrap_or(false),
            },
            verbs: items(&r["verbs"]).iter().map(text).collect(),
        })
        .collect()
}

/// Asks the server for all resources. A group that fails is noted and does not keep the others from being found.
///
/// # Errors
/// Where the list of groups itself cannot be read.
pub async fn discover(client: &Client) -> Result<Discovery, Error> {
    let groups = get(client, "/apis").await?;
    let mut versions = vec![(String::new(), "v1".to_owned())];
    for g in items(&groups["groups"]) {
        versions.push((text(&g["name"]), text(&g["preferredVersion"]["version"])));
    }
    let mut found = Discovery::default();
    for (group, version) in versions {
        let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        match get(client, &path).await {
            Ok(list) => found.resources.extend(read_list(&group, &version, &list)),
            Err(e) => {
                let name = path.trim_start_matches("/apis/").trim_start_matches("/api/").to_owned();
                found.failures.push((name, e.to_string()));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn subresources_are_left_out() {
        let list = json!({"resources": [
            {"name": "pods", "kind": "Pod", "namespaced": true, "verbs": ["list", "delete"]},
            {"name": "pods/log", "kind": "Pod", "namespaced": true, "verbs": ["get"]},
        ]});
        let found = read_list("", "v1", &list);
        assert_eq!(found.len(), 1);
        assert!(found[0].answers(&["delete", "list"]) && !found[0].answers(&["watch"]));
    }
}
