//! Fields of features that are off by default in this version: as on any cluster without them, they are dropped when an
//! object is written, rather than stored without effect.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, PodSpec, Volume, VolumeMount};

/// Drops the fields of features that are off.
pub(super) fn drop_disabled_fields(spec: &mut PodSpec) {
    spec.scheduling_group = None;
    spec.eviction_responders = None;
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        drop_mount_options(c.volume_mounts.as_deref_mut());
    }
    for c in spec.ephemeral_containers.iter_mut().flatten() {
        drop_mount_options(c.volume_mounts.as_deref_mut());
    }
    spec.volumes.iter_mut().flatten().for_each(drop_volume_fields);
}

fn drop_mount_options(mounts: Option<&mut [VolumeMount]>) {
    for m in mounts.into_iter().flatten() {
        m.bind_mount_options = None;
    }
}

fn drop_item_owners(items: Option<&mut [KeyToPath]>) {
    for i in items.into_iter().flatten() {
        i.user = None;
    }
}

fn drop_file_owners(items: Option<&mut [DownwardAPIVolumeFile]>) {
    for i in items.into_iter().flatten() {
        i.user = None;
    }
}

fn drop_volume_fields(v: &mut Volume) {
    if let Some(s) = &mut v.empty_dir {
        s.mode = None;
    }
    if let Some(s) = &mut v.secret {
        s.default_user = None;
        drop_item_owners(s.items.as_deref_mut());
    }
    if let Some(s) = &mut v.config_map {
        s.default_user = None;
        drop_item_owners(s.items.as_deref_mut());
    }
    if let Some(s) = &mut v.downward_api {
        s.default_user = None;
        drop_file_owners(s.items.as_deref_mut());
    }
    let Some(projected) = &mut v.projected else { return };
    projected.default_user = None;
    for s in projected.sources.iter_mut().flatten() {
        if let Some(p) = &mut s.secret {
            drop_item_owners(p.items.as_deref_mut());
        }
        if let Some(p) = &mut s.config_map {
            drop_item_owners(p.items.as_deref_mut());
        }
        if let Some(p) = &mut s.downward_api {
            drop_file_owners(p.items.as_deref_mut());
        }
        if let Some(p) = &mut s.service_account_token {
            p.user = None;
        }
        if let Some(p) = &mut s.cluster_trust_bundle {
            p.user = None;
        }
        if let Some(p) = &mut s.pod_certificate {
            p.user = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_off_goes() {
        let mut spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v", "bindMountOptions": ["noexec"]}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "s", "defaultUser": 1, "items": [{"key": "k", "path": "p", "user": 2}]}},
                {"name": "e", "emptyDir": {"medium": "Memory", "mode": 448}}],
        }))
        .unwrap();
        drop_disabled_fields(&mut spec);
        assert_eq!(
            json!(spec),
            json!({
                "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                "volumes": [{"name": "v", "secret": {"secretName": "s", "items": [{"key": "k", "path": "p"}]}},
                    {"name": "e", "emptyDir": {"medium": "Memory"}}],
            })
        );
    }
}
