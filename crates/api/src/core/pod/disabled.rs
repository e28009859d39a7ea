//! Fields of features that are off by default in this version: as on any cluster without them, they are dropped when an
//! object is written, rather than stored without effect.

use crate::kind::{Object, downcast_mut};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, PodSpec, PodTemplate, ReplicationController, Volume, VolumeMount,
};

/// The pod spec in an object, its own or that of its template.
fn pod_spec_of(object: &mut dyn Object) -> Option<&mut PodSpec> {
    // One at a time: a match on several would borrow the object for all of them.
    macro_rules! of {
        ($kind:ty, $o:ident => $template:expr) => {
            if object.as_any().is::<$kind>() {
                let $o = downcast_mut::<$kind>(object)?;
                return $template;
            }
        };
    }
    of!(Pod, o => o.spec.as_mut());
    of!(PodTemplate, o => o.template.as_mut()?.spec.as_mut());
    of!(ReplicationController, o => o.spec.as_mut()?.template.as_mut()?.spec.as_mut());
    of!(ReplicaSet, o => o.spec.template.as_mut()?.spec.as_mut());
    of!(Deployment, o => o.spec.template.spec.as_mut());
    of!(StatefulSet, o => o.spec.template.spec.as_mut());
    of!(DaemonSet, o => o.spec.template.spec.as_mut());
    of!(Job, o => o.spec.as_mut()?.template.spec.as_mut());
    of!(CronJob, o => o.spec.job_template.spec.as_mut()?.template.spec.as_mut());
    None
}

/// Drops the reference to a PodGroup, for servers that do not serve PodGroups; what is stored with one keeps it.
pub fn drop_scheduling_group(object: &mut dyn Object, old: Option<&dyn Object>) {
    let Some(spec) = pod_spec_of(object).filter(|s| s.scheduling_group.is_some()) else { return };
    let mut old = old.map(Object::boxed_clone);
    let kept = old.as_deref_mut().and_then(pod_spec_of).is_some_and(|s| s.scheduling_group.is_some());
    if !kept {
        spec.scheduling_group = None;
    }
}

/// Drops the fields of features that are off.
pub(super) fn drop_disabled_fields(spec: &mut PodSpec) {
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
    fn groups_are_dropped_from_pods_and_templates_unless_they_were_there() {
        let spec = || json!({"containers": [], "schedulingGroup": {"podGroupName": "g"}});
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec()})).unwrap();
        let deployment: Deployment =
            serde_json::from_value(json!({"metadata": {}, "spec": {"selector": {}, "template": {"spec": spec()}}}))
                .unwrap();
        let (mut new, mut same, mut template) = (pod.clone(), pod.clone(), deployment);
        drop_scheduling_group(&mut new, None);
        drop_scheduling_group(&mut same, Some(&pod));
        drop_scheduling_group(&mut template, None);
        assert!(new.spec.unwrap().scheduling_group.is_none());
        assert!(same.spec.unwrap().scheduling_group.is_some());
        assert!(template.spec.template.spec.unwrap().scheduling_group.is_none());
    }

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
