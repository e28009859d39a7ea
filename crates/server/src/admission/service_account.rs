//! ServiceAccount: every pod runs as a ServiceAccount that exists, and finds its token, the cluster's CA and its namespace
//! in `/var/run/secrets/kubernetes.io/serviceaccount`.

use super::mirror_pod::is_mirror;
use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath, ObjectFieldSelector, Pod, PodSpec,
    ProjectedVolumeSource, ServiceAccount, ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use std::sync::Arc;
use std::time::Duration;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const ROOT_CA: &str = "kube-root-ca.crt";
/// Annotation of a ServiceAccount whose pods may use only the secrets it lists.
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
/// The default ServiceAccount of a new namespace is made by a controller; a pod created at once waits for it this long.
const DEFAULT_TRIES: usize = 10;
const DEFAULT_TRY_EVERY: Duration = Duration::from_millis(100);

pub(super) struct ServiceAccountPlugin;

async fn account_of(a: &Attributes<'_>, name: &str, cluster: &Cluster) -> Result<Arc<ServiceAccount>, ApiError> {
    let tries = if name == "default" { DEFAULT_TRIES } else { 1 };
    for attempt in 0..tries {
        if attempt > 0 {
            tokio::time::sleep(DEFAULT_TRY_EVERY).await;
        }
        if let Some(found) = cluster.shared::<ServiceAccount>(a.namespace, name).await? {
            return Ok(found);
        }
    }
    let missing = ApiError::not_found("", "serviceaccount", name);
    Err(a.forbidden(&format!("error looking up service account {}/{name}: {missing}", a.namespace)))
}

fn account_name(spec: &PodSpec) -> &str {
    spec.service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default")
}

/// The volume with token, CA and namespace.
fn access_volume(name: String) -> Volume {
    let token = ServiceAccountTokenProjection {
        path: "token".into(),
        expiration_seconds: Some(crate::authn::service_account::WARN_AFTER_SECONDS),
        ..Default::default()
    };
    let ca = ConfigMapProjection {
        name: ROOT_CA.into(),
        items: Some(vec![KeyToPath { key: "ca.crt".into(), path: "ca.crt".into(), ..Default::default() }]),
        optional: None,
    };
    let namespace = DownwardAPIVolumeFile {
        path: "namespace".into(),
        field_ref: Some(ObjectFieldSelector {
            api_version: Some("v1".into()),
            field_path: "metadata.namespace".into(),
        }),
        ..Default::default()
    };
    let sources = vec![
        VolumeProjection { service_account_token: Some(token), ..Default::default() },
        VolumeProjection { config_map: Some(ca), ..Default::default() },
        VolumeProjection {
            downward_api: Some(DownwardAPIProjection { items: Some(vec![namespace]) }),
            ..Default::default()
        },
    ];
    Volume {
        name,
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o644),
            sources: Some(sources),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Mounts the access volume into every container that has nothing at its path.
fn mount(spec: &mut PodSpec, new_name: impl FnOnce() -> String) {
    let existing = spec.volumes.iter().flatten().find(|v| v.name.starts_with(VOLUME_PREFIX)).map(|v| v.name.clone());
    let present = existing.is_some();
    let name = existing.unwrap_or_else(new_name);
    let mut needed = false;
    for c in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let mounts = c.volume_mounts.get_or_insert_default();
        if mounts.iter().any(|m| m.mount_path == MOUNT_PATH) {
            continue;
        }
        needed = true;
        mounts.push(VolumeMount {
            name: name.clone(),
            mount_path: MOUNT_PATH.into(),
            read_only: Some(true),
            ..Default::default()
        });
    }
    if needed && !present {
        spec.volumes.get_or_insert_default().push(access_volume(name));
    }
}

#[async_trait]
impl MutatingPlugin for ServiceAccountPlugin {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Create || !a.is("", "pods", "") {
            return Ok(());
        }
        let Some(pod) = a.object_as::<Pod>().filter(|p| !is_mirror(p)) else { return Ok(()) };
        let Some(name) = pod.spec.as_ref().map(|s| account_name(s).to_owned()) else { return Ok(()) };
        let account = account_of(a, &name, cluster).await?;
        let Some(spec) = a.object_as_mut::<Pod>().and_then(|p| p.spec.as_mut()) else { return Ok(()) };
        spec.service_account_name = Some(name.clone());
        spec.service_account = Some(name);
        let automount = spec.automount_service_account_token.or(account.automount_service_account_token);
        if automount.unwrap_or(true) {
            mount(spec, || format!("{VOLUME_PREFIX}{}", cluster.entropy.suffix(5)));
        }
        if spec.image_pull_secrets.as_ref().is_none_or(Vec::is_empty) {
            spec.image_pull_secrets = account.image_pull_secrets.clone().filter(|s| !s.is_empty());
        }
        Ok(())
    }
}

#[async_trait]
impl ValidatingPlugin for ServiceAccountPlugin {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let ephemeral = a.operation == Operation::Update && a.is("", "pods", "ephemeralcontainers");
        let create = a.operation == Operation::Create && a.is("", "pods", "");
        if !ephemeral && !create {
            return Ok(());
        }
        let Some(spec) = a.object_as::<Pod>().filter(|p| !is_mirror(p)).and_then(|p| p.spec.as_ref()) else {
            return Ok(());
        };
        let account = account_of(a, account_name(spec), cluster).await?;
        if account.metadata.annotation(ENFORCE_MOUNTABLE) != Some("true") {
            return Ok(());
        }
        let mountable: Vec<&str> = account.secrets.iter().flatten().filter_map(|s| s.name.as_deref()).collect();
        let name = account.metadata.name();
        for v in spec.volumes.iter().flatten() {
            if let Some(secret) = v.secret.as_ref().and_then(|s| s.secret_name.as_deref())
                && !mountable.contains(&secret)
            {
                let why = format!(
                    "volume with secret.secretName={secret:?} is not allowed because service account {name} does not reference that secret"
                );
                return Err(a.forbidden(&why));
            }
        }
        for c in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            for e in c.env.iter().flatten() {
                let Some(secret) = e.value_from.as_ref().and_then(|v| v.secret_key_ref.as_ref()) else { continue };
                if !mountable.contains(&secret.name.as_str()) {
                    let why = format!(
                        "container {} with envVar {} referencing secret.secretName={:?} is not allowed because service account {name} does not reference that secret",
                        c.name, e.name, secret.name
                    );
                    return Err(a.forbidden(&why));
                }
            }
        }
        Ok(())
    }
}
