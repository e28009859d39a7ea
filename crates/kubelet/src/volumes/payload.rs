//! The files of ConfigMap, Secret, downward API and projected volumes.

use super::atomic::{File, Payload, check_path};
use super::claim::Claims;
use super::pod_certificate::{Place, PodCertificates};
use super::token::{TokenRequestKey, Tokens};
use super::trust_bundle::TrustBundles;
use crate::pod::env::container_named;
use crate::pod::fields::{self, FieldContext};
use crate::references::{Lookup, ReferenceError, References};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume, VolumeProjection,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Mode of files where nothing else is said.
pub(crate) const DEFAULT_MODE: i32 = 0o644;

/// Where the content comes from.
pub(crate) struct Sources<'a> {
    pub config_maps: &'a References<ConfigMap>,
    pub secrets: &'a References<Secret>,
    pub tokens: &'a Tokens,
    pub trust_bundles: &'a TrustBundles,
    pub pod_certificates: &'a PodCertificates,
    /// Is told when there is something new of the two.
    pub wake: &'a Arc<Notify>,
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
        place: Place,
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
            let (mode, uid) = credential_mode(pod, mode, t.user, user);
            out.payload.insert(t.path.clone(), File { content: token.into_bytes(), mode, uid });
        } else if let Some(bundle) = &source.cluster_trust_bundle {
            check_path(&bundle.path)?;
            let content = self.trust_bundles.get(bundle, self.wake).await?;
            let (mode, uid) = credential_mode(pod, mode, bundle.user, user);
            out.payload.insert(bundle.path.clone(), File { content, mode, uid });
        } else if let Some(certificate) = &source.pod_certificate {
            let found = self.pod_certificates.get(pod, &place, certificate, self.wake)?;
            let (mode, uid) = credential_mode(pod, mode, certificate.user, user);
            for (path, content) in [
                (&certificate.credential_bundle_path, format!("{}{}", found.key, found.chain)),
                (&certificate.key_path, found.key),
                (&certificate.certificate_chain_path, found.chain),
            ] {
                let Some(path) = path.as_ref().filter(|p| !p.is_empty()) else { continue };
                check_path(path)?;
                out.payload.insert(path.clone(), File { content: content.into_bytes(), mode, uid });
            }
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
            for (i, source) in p.sources.iter().flatten().enumerate() {
                let pod_uid = pod.metadata.uid.clone().unwrap_or_default();
                let place = Place { pod_uid, volume: volume.name.clone(), source: i };
                self.projection(pod, place, source, p, &mut out).await?;
            }
        } else {
            return Ok(None);
        }
        Ok(Some(out))
    }
}

/// Mode and owner of a file that identifies the pod: it is for its owner alone where the containers share a user or the
/// volume has a group.
fn credential_mode(pod: &Pod, mode: i32, own: Option<i64>, default: Option<i64>) -> (u32, Option<u32>) {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let grouped = context.is_some_and(|c| c.fs_group.is_some());
    let shared = shared_user(pod);
    let mode = if shared.is_some() || grouped { 0o600 } else { mode_of(None, mode) };
    (mode, user_of(own, default).or(shared))
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
        let (bundles, certificates, wake) = (TrustBundles::none(), PodCertificates::none(), Arc::default());
        let sources = Sources {
            config_maps: &maps,
            secrets: &secrets,
            tokens: &tokens,
            trust_bundles: &bundles,
            pod_certificates: &certificates,
            wake: &wake,
            claims: &claims,
            fields: &cx,
        };
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
