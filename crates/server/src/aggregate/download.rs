//! What the server behind an APIService serves: its discovery and its OpenAPI documents.

use super::{Remote, availability, proxy};
use crate::outbound::{Answer, Outbound};
use crate::server::Server;
use crate::webhook_client::authority;
use gantry_schema::openapi::ForeignV2;
use http::header::{ACCEPT, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Discovery should come quickly; an OpenAPI document may take a server some time to make.
const DISCOVERY_WITHIN: Duration = Duration::from_secs(5);
const OPENAPI_WITHIN: Duration = Duration::from_secs(60);

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// What a server serves of one version.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// As `APIResourceDiscovery` of aggregated discovery.
    pub resources: Arc<Vec<Value>>,
    /// Its part of the OpenAPI version 2 document, if it has one.
    pub v2: Option<ForeignV2>,
    /// Its paths in the index of version 3, with where the documents are.
    pub v3: BTreeMap<String, String>,
}

/// Asks a server what it serves.
///
/// # Errors
/// Why its discovery cannot be had. Documents that cannot be had are left out.
pub(super) async fn ask(server: &Server, remote: &Remote) -> Result<Found, String> {
    let outbound = remote.outbound.as_ref().map_err(Clone::clone)?;
    let (host, port) = proxy::resolve(server, remote).await?;
    let asking = Asking { outbound, base: format!("https://{}", authority(&host, port)) };
    let resources = asking.resources(remote).await?;
    let (v2, v3) = tokio::join!(asking.v2(remote), asking.v3(remote));
    let told = |what: &str, why: String| tracing::debug!(name = remote.name, what, why, "no OpenAPI document");
    Ok(Found {
        resources: Arc::new(resources),
        v2: v2.unwrap_or_else(|why| {
            told("v2", why);
            None
        }),
        v3: v3.unwrap_or_else(|why| {
            told("v3", why);
            BTreeMap::new()
        }),
    })
}

struct Asking<'a> {
    outbound: &'a Outbound,
    base: String,
}

fn json_of(answer: &Answer) -> Result<Value, String> {
    serde_json::from_slice(&answer.body).map_err(|e| e.to_string())
}

/// The media type with its parameters says this is the aggregated form.
fn is_aggregated(content_type: &str) -> bool {
    let has = |p: &str| content_type.split(';').any(|part| part.trim() == p);
    has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
}

impl Asking<'_> {
    async fn get(&self, path: &str, accept: &'static str, within: Duration) -> Result<Answer, String> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        proxy::set_user(&mut headers, &availability::own_identity());
        self.outbound.get(&format!("{}{path}", self.base), headers, within).await
    }

    /// The resources of the version: from the aggregated document, else from the version's own.
    async fn resources(&self, remote: &Remote) -> Result<Vec<Value>, String> {
        let answer = self.get("/apis", AGGREGATED, DISCOVERY_WITHIN).await?;
        if answer.status.is_success() && is_aggregated(answer.header("content-type")) {
            let document = json_of(&answer)?;
            let mut found = of_aggregated(&document, &remote.group, &remote.version);
            for resource in &mut found {
                fill_response_kinds(resource);
            }
            return Ok(found);
        }
        let path = remote.root();
        let answer = self.get(&path, "application/json", DISCOVERY_WITHIN).await?;
        if !answer.status.is_success() {
            return Err(format!("failed to download legacy discovery for {path}: {}", answer.status.as_u16()));
        }
        Ok(of_list(&json_of(&answer)?))
    }

    async fn v2(&self, remote: &Remote) -> Result<Option<ForeignV2>, String> {
        let answer = self.get("/openapi/v2", "application/json", OPENAPI_WITHIN).await?;
        if !answer.status.is_success() {
            return Ok(None);
        }
        Ok(ForeignV2::new(&json_of(&answer)?, &format!("{}/", remote.root())))
    }

    async fn v3(&self, remote: &Remote) -> Result<BTreeMap<String, String>, String> {
        let answer = self.get("/openapi/v3", "application/json", OPENAPI_WITHIN).await?;
        if !answer.status.is_success() {
            return Ok(BTreeMap::new());
        }
        let index = json_of(&answer)?;
        let own = remote.root().trim_start_matches('/').to_owned();
        let found = index["paths"].get(&own).and_then(|p| p["serverRelativeURL"].as_str());
        Ok(found.map(|url| (own.clone(), url.to_owned())).into_iter().collect())
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn of_aggregated(document: &Value, group: &str, version: &str) -> Vec<Value> {
    let groups = items(&document["items"]).iter();
    let of_group = groups.filter(|g| g["metadata"]["name"].as_str().unwrap_or_default() == group);
    let mut versions = of_group.flat_map(|g| items(&g["versions"])).filter(|v| v["version"] == version);
    versions.next().map(|v| items(&v["resources"]).to_vec()).unwrap_or_default()
}

/// Some clients cannot read a resource without one.
fn fill_response_kinds(resource: &mut Value) {
    let empty = || json!({ "group": "", "version": "", "kind": "" });
    if resource["responseKind"].is_null() {
        resource["responseKind"] = empty();
    }
    for sub in resource.get_mut("subresources").and_then(Value::as_array_mut).into_iter().flatten() {
        if sub["responseKind"].is_null() {
            sub["responseKind"] = empty();
        }
    }
}

/// The resources of an `APIResourceList` in the aggregated form.
fn of_list(list: &Value) -> Vec<Value> {
    let text = |r: &Value, field: &str| r[field].as_str().unwrap_or_default().to_owned();
    let kind = |r: &Value| json!({ "group": text(r, "group"), "version": text(r, "version"), "kind": text(r, "kind") });
    let scope = |r: &Value| if r["namespaced"] == true { "Namespaced" } else { "Cluster" };
    let mut out: Vec<Value> = Vec::new();
    for r in items(&list["resources"]).iter().filter(|r| !text(r, "name").contains('/')) {
        let mut entry = json!({
            "resource": text(r, "name"), "responseKind": kind(r), "scope": scope(r),
            "singularResource": text(r, "singularName"), "verbs": r["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if let Some(value) = r.get(field).filter(|v| !v.is_null()) {
                entry[field] = value.clone();
            }
        }
        out.push(entry);
    }
    for r in items(&list["resources"]) {
        let name = text(r, "name");
        let Some((parent, sub)) = name.split_once('/') else { continue };
        let at = out.iter().position(|e| e["resource"] == parent).unwrap_or_else(|| {
            let kind = json!({ "group": "", "version": "", "kind": "" });
            out.push(json!({
                "resource": parent, "responseKind": kind, "scope": scope(r), "singularResource": "", "verbs": [],
            }));
            out.len() - 1
        });
        let entry = json!({ "subresource": sub, "responseKind": kind(r), "verbs": r["verbs"] });
        match out[at].get_mut("subresources").and_then(Value::as_array_mut) {
            Some(list) => list.push(entry),
            None => out[at]["subresources"] = json!([entry]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_discovery_is_understood() {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"],
                "shortNames": ["fl"]},
            {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["update"]},
            {"name": "lost/scale", "namespaced": false, "kind": "Scale", "group": "autoscaling", "version": "v1",
                "verbs": ["get"]},
        ]});
        let found = of_list(&list);
        assert_eq!(
            found[0],
            json!({"resource": "flunders", "responseKind": {"group": "", "version": "", "kind": "Flunder"},
                "scope": "Namespaced", "singularResource": "flunder", "verbs": ["get"], "shortNames": ["fl"],
                "subresources": [{"subresource": "status", "verbs": ["update"],
                    "responseKind": {"group": "", "version": "", "kind": "Flunder"}}]})
        );
        assert_eq!((&found[1]["resource"], &found[1]["scope"]), (&json!("lost"), &json!("Cluster")));
        assert_eq!(found[1]["subresources"][0]["responseKind"]["group"], "autoscaling");
    }

    #[test]
    fn aggregated_discovery_is_told_by_its_type() {
        assert!(is_aggregated("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"));
        assert!(!is_aggregated("application/json"));
        let document = json!({"items": [{"metadata": {"name": "a.b"}, "versions": [{"version": "v1",
            "resources": [{"resource": "x", "subresources": [{"subresource": "y"}]}]}]}]});
        let mut found = of_aggregated(&document, "a.b", "v1");
        fill_response_kinds(&mut found[0]);
        assert_eq!(found[0]["subresources"][0]["responseKind"]["kind"], "");
        assert!(of_aggregated(&document, "a.b", "v2").is_empty());
    }
}
