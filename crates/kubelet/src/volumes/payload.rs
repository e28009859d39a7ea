//! The files of ConfigMap, Secret, downward API and projected volumes.

use super::atomic::{File, Payload, check_path};
use super::claim::Claims;
use super::token::{TokenRequestKey, Tokens};
use crate::pod::env::container_named;
use crate::pod::fields::{self, FieldContext};
use crate::references::{Lookup, ReferenceError, References};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume, VolumeProjection,
};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// Mode of files where nothing else is said.
pub(crate) const DEFAULT_MODE: i32 = 0o644;

/// Where the content comes from.
pub(crate) struct Sources<'a> {
    pub config_maps: &'a References<ConfigMap>,
    pub secrets: &'a References<Secret>,
    pub tokens: &'a Tokens,
    pub claims: &'a Claims,
    pub fields: &'a FieldContext,
}

/// Files and when they must be made anew (tokens expire).
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub payload: Payload,
    pub refresh: Option<Instant>,
}

impl Content {
    fn refresh_by(&mut self, at: Instant) {
        self.refresh = Some(self.refresh.map_or(at, |r| r.min(at)));
    }
}

fn mode_of(own: Option<i32>, default: i32) -> u32 {
    u32::try_from(own.unwrap_or(default)).unwrap_or(0) & 0o7777
}

fn user_of(own: Option<i64>, default: Option<i64>) -> Option<u32> {
    own.or(default).and_then(|u| u32::try_from(u).ok())
}

/// Picks keys by `items`, or all of them.
fn select(
    out: &mut Payload,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    default_mode: i32,
    default_user: Option<i64>,
    optional: bool,
    what: &str,
) -> Result<(), String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        for (key, content) in data {
            let file =
                File { content: content.clone(), mode: mode_of(None, default_mode), uid: user_of(None, default_user) };
            out.insert(key.clone(), file);
        }
        return Ok(());
    };
    for item in items {
        let Some(content) = data.get(&item.key) else {
            if optional {
                continue;
            }
            return Err(format!("{what} references non-existent {what} key: {}", item.key));
        };
        check_path(&item.path)?;
        let file = File {
            content: content.clone(),
            mode: mode_of(item.mode, default_mode),
            uid: user_of(item.user, default_user),
        };
        out.insert(item.path.clone(), file);
    }
    Ok(())
}

impl Sources<'_> {
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        optional: bool,
    ) -> Result<BTreeMap<String, Vec<u8>>, String> {
        match self.config_maps.get(namespace, name).await {
            Ok(map) => {
                let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
                let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
                Ok(text.chain(binary).collect())
            }
            Err(ReferenceError::NotFound) if optional => Ok(BTreeMap::new()),
            Err(ReferenceError::NotFound) => Err(format!("configmap {name:?} not found")),
            Err(ReferenceError::Unavailable(why)) => Err(format!("couldn't get configmap {namespace}/{name}: {why}")),
        }
    }

    async fn secret(&self, namespace: &str, name: &str, optional: bool) -> Result<BTreeMap<String, Vec<u8>>, String> {
        match self.secrets.get(namespace, name).await {
            Ok(secret) => {
                let bytes = |v: &ByteString| v.0.clone();
                Ok(secret.data.iter().flatten().map(|(k, v)| (k.clone(), bytes(v))).collect())
            }
            Err(ReferenceError::NotFound) if optional => Ok(BTreeMap::new()),
            Err(ReferenceError::NotFound) => Err(format!("secret {name:?} not found")),
            Err(ReferenceError::Unavailable(why)) => Err(format!("couldn't get secret {namespace}/{name}: {why}")),
        }
    }

    fn downward(
        &self,
        pod: &Pod,
        items: &[DownwardAPIVolumeFile],
        mode: i32,
        user: Option<i64>,
        out: &mut Payload,
    ) -> Result<(), String> {
        for item in items {
            check_path(&item.path)?;
            let value = if let Some(f) = &item.field_ref {
                fields::field(pod, &f.field_path, self.fields)?
            } else if let Some(r) = &item.resource_field_ref {
                let name = r.container_name.as_deref().unwrap_or_default();
                let container = container_named(pod, name).ok_or_else(|| format!("container {name} not found"))?;
                fields::resource(container, r, self.fields)?
            } else {
                continue;
            };
            let file =
                File { content: value.into_bytes(), mode: mode_of(item.mode, mode), uid: user_of(item.user, user) };
            out.insert(item.path.clone(), file);
        }
        Ok(())
    }

    async fn projection(
        &self,
        pod: &Pod,
        source: &VolumeProjection,
        whole: &ProjectedVolumeSource,
        out: &mut Content,
    ) -> Result<(), String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mode = whole.default_mode.unwrap_or(DEFAULT_MODE);
        let user = whole.default_user;
        if let Some(c) = &source.config_map {
            let optional = c.optional == Some(true);
            let data = self.config_map(namespace, &c.name, optional).await?;
            select(&mut out.payload, &data, c.items.as_ref(), mode, user, optional, "configmap")?;
        } else if let Some(s) = &source.secret {
            let optional = s.optional == Some(true);
            let data = self.secret(namespace, &s.name, optional).await?;
            select(&mut out.payload, &data, s.items.as_ref(), mode, user, optional, "secret")?;
        } else if let Some(d) = &source.downward_api {
            self.downward(pod, d.items.as_deref().unwrap_or_default(), mode, user, &mut out.payload)?;
        } else if let Some(t) = &source.service_account_token {
            check_path(&t.path)?;
            let spec = pod.spec.as_ref();
            let account =
                spec.and_then(|s| s.service_account_name.as_deref()).filter(|s| !s.is_empty()).unwrap_or("default");
            let key = TokenRequestKey {
                namespace: namespace.to_owned(),
                service_account: account.to_owned(),
                audience: t.audience.clone().filter(|a| !a.is_empty()),
                seconds: t.expiration_seconds.unwrap_or(3600),
                pod_name: pod.metadata.name.clone().unwrap_or_default(),
                pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            };
            let (token, refresh) = self.tokens.get(&key).await.map_err(|e| format!("failed to fetch token: {e}"))?;
            out.refresh_by(refresh);
            // A token is for its owner alone where the containers share a user or the volume has a group.
            let grouped = spec.and_then(|s| s.security_context.as_ref()).is_some_and(|c| c.fs_group.is_some());
            let shared = shared_user(pod);
            let mode = if shared.is_some() || grouped { 0o600 } else { mode_of(None, mode) };
            let uid = user_of(t.user, user).or(shared);
            out.payload.insert(t.path.clone(), File { content: token.into_bytes(), mode, uid });
        } else if source.cluster_trust_bundle.is_some() {
            return Err("clusterTrustBundle projections are not supported by this node".into());
        } else if source.pod_certificate.is_some() {
            return Err("podCertificate projections are not supported by this node".into());
        }
        Ok(())
    }

    /// The files of a volume; `None` for volumes that are not made of files.
    pub(crate) async fn content(&self, pod: &Pod, volume: &Volume) -> Result<Option<Content>, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut out = Content::default();
        if let Some(c) = &volume.config_map {
            let optional = c.optional == Some(true);
            let data = self.config_map(namespace, &c.name, optional).await?;
            let mode = c.default_mode.unwrap_or(DEFAULT_MODE);
            select(&mut out.payload, &data, c.items.as_ref(), mode, c.default_user, optional, "configmap")?;
        } else if let Some(s) = &volume.secret {
            let optional = s.optional == Some(true);
            let name = s.secret_name.as_deref().unwrap_or_default();
            let data = self.secret(namespace, name, optional).await?;
            let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
            select(&mut out.payload, &data, s.items.as_ref(), mode, s.default_user, optional, "secret")?;
        } else if let Some(d) = &volume.downward_api {
            let mode = d.default_mode.unwrap_or(DEFAULT_MODE);
            self.downward(pod, d.items.as_deref().unwrap_or_default(), mode, None, &mut out.payload)?;
        } else if let Some(p) = &volume.projected {
            for source in p.sources.iter().flatten() {
                self.projection(pod, source, p, &mut out).await?;
            }
        } else {
            return Ok(None);
        }
        Ok(Some(out))
    }
}

/// The user all containers run as, where that is one and the same.
fn shared_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let outer = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(outer));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then_some(())?;
    u32::try_from(first).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[tokio::test]
    async fn config_maps_secrets_and_downward_fields() {
        let maps = References::fixed(vec![
            ConfigMap::from_value(json!({"metadata": {"name": "c", "namespace": "ns"}, "data": {"k": "v", "l": "w"},
                "binaryData": {"b": "AAE="}}))
            .unwrap(),
        ]);
        let secrets = References::fixed(vec![
            Secret::from_value(json!({"metadata": {"name": "s", "namespace": "ns"}, "data": {"p": "cHc="}})).unwrap(),
        ]);
        let cx = FieldContext::default();
        let tokens = Tokens::none();
        let claims = Claims::none();
        let sources = Sources { config_maps: &maps, secrets: &secrets, tokens: &tokens, claims: &claims, fields: &cx };
        let pod = Pod::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "labels": {"a": "b"}},
            "spec": {"containers": []}}))
        .unwrap();
        let content = async |v| {
            let volume: Volume = serde_json::from_value(v).unwrap();
            sources.content(&pod, &volume).await.map(|c| c.unwrap().payload)
        };
        let all = content(json!({"name": "v", "configMap": {"name": "c", "defaultMode": 0o400}})).await.unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["b", "k", "l"]);
        assert_eq!((all["b"].content.as_slice(), all["b"].mode), (&[0u8, 1][..], 0o400));
        let items = json!([{"key": "k", "path": "x/y", "mode": 0o777}]);
        let some = content(json!({"name": "v", "configMap": {"name": "c", "items": items}})).await.unwrap();
        assert_eq!(some.keys().collect::<Vec<_>>(), ["x/y"]);
        assert_eq!(some["x/y"].mode, 0o777);
        let projected = content(json!({"name": "v", "projected": {"sources": [
            {"secret": {"name": "s"}}, {"configMap": {"name": "c", "items": [{"key": "k", "path": "k2"}]}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"configMap": {"name": "none", "optional": true}}]}}))
        .await
        .unwrap();
        assert_eq!(projected.keys().collect::<Vec<_>>(), ["k2", "labels", "p"]);
        assert_eq!(projected["labels"].content, b"a=\"b\"");
        for (bad, message) in [
            (json!({"name": "v", "configMap": {"name": "none"}}), "configmap \"none\" not found"),
            (json!({"name": "v", "secret": {"secretName": "none"}}), "secret \"none\" not found"),
            (
                json!({"name": "v", "configMap": {"name": "c", "items": [{"key": "no", "path": "x"}]}}),
                "configmap references non-existent configmap key: no",
            ),
        ] {
            assert_eq!(content(bad).await.unwrap_err(), message);
        }
        assert!(sources.content(&pod, &Volume::default()).await.unwrap().is_none());
    }
}
