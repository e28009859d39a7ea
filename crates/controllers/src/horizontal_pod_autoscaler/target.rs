//! What is scaled: any kind with a `scale` subresource, found by what the server serves.

use crate::discovery::discover;
use gantry_api::meta::object::split_api_version;
use gantry_client::{Client, Error as ClientError, ResourceRef, resource_path};
use k8s_openapi::api::autoscaling::v1::Scale;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// What is served is asked at most this often.
const REDISCOVER: Duration = Duration::from_secs(30);

/// Resolves and scales targets.
pub struct Targets {
    client: Client,
    known: Mutex<(Option<Instant>, Vec<ResourceRef>)>,
}

impl Targets {
    /// Works through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    /// The resource of a kind.
    ///
    /// # Errors
    /// Where no such kind is served, in upstream's words.
    pub async fn resolve(&self, api_version: &str, kind: &str) -> Result<ResourceRef, String> {
        let (group, _) = split_api_version(api_version);
        let find = |all: &[ResourceRef]| all.iter().find(|r| r.group == group && r.kind == kind).cloned();
        let stale = {
            let known = self.known.lock();
            if let Some(found) = find(&known.1) {
                return Ok(found);
            }
            known.0.is_none_or(|t| t.elapsed() > REDISCOVER)
        };
        if stale {
            let found = discover(&self.client).await.map_err(|e| e.to_string())?;
            let resources: Vec<ResourceRef> = found.resources.into_iter().map(|d| d.resource).collect();
            let answer = find(&resources);
            *self.known.lock() = (Some(Instant::now()), resources);
            if let Some(found) = answer {
                return Ok(found);
            }
        }
        Err(format!("no matches for kind {kind:?} in group {group:?}"))
    }

    fn path(of: &ResourceRef, namespace: &str, name: &str) -> String {
        resource_path(&of.group, &of.version, &of.plural, Some(namespace), Some(name), Some("scale"))
    }

    /// Reads the target's scale.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn scale(&self, of: &ResourceRef, namespace: &str, name: &str) -> Result<Scale, ClientError> {
        let path = Self::path(of, namespace, name);
        let bytes = self.client.call(http::Method::GET, &path, None, bytes::Bytes::new()).await?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Decode { what: path, message: e.to_string() })
    }

    /// Whether objects of the resource can be scaled at all.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn has_scale(&self, of: &ResourceRef) -> Result<bool, ClientError> {
        let path = match of.group.as_str() {
            "" => format!("/api/{}", of.version),
            group => format!("/apis/{group}/{}", of.version),
        };
        let bytes = self.client.call(http::Method::GET, &path, None, bytes::Bytes::new()).await?;
        let list: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| ClientError::Decode { what: path, message: e.to_string() })?;
        let name = format!("{}/scale", of.plural);
        Ok(list["resources"].as_array().into_iter().flatten().any(|r| r["name"] == name && r["kind"] == "Scale"))
    }

    /// Sets the target's size; a conflict is answered by reading the scale again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set(
        &self,
        of: &ResourceRef,
        namespace: &str,
        mut scale: Scale,
        replicas: i32,
    ) -> Result<(), ClientError> {
        let name = scale.metadata.name.clone().unwrap_or_default();
        let path = Self::path(of, namespace, &name);
        // As many tries as client-go's `retry.DefaultRetry` has.
        for last in [false, false, false, false, true] {
            scale.spec.get_or_insert_default().replicas = Some(replicas);
            let body = serde_json::to_vec(&scale)
                .map_err(|e| ClientError::Decode { what: path.clone(), message: e.to_string() })?;
            match self.client.call(http::Method::PUT, &path, Some("application/json"), body.into()).await {
                Ok(_) => return Ok(()),
                Err(e) if e.is("Conflict") && !last => scale = self.scale(of, namespace, &name).await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
