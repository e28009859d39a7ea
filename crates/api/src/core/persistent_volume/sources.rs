//! What a PersistentVolume is made of: exactly one source. Most are those pods name directly, and share their rules.

use crate::core::pod::validate::{Sources, validate_no_backsteps, volume_sources as shared};
use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, text};
use k8s_openapi::api::core::v1::{
    self as v1, AzureFileVolumeSource, CSIPersistentVolumeSource, CephFSVolumeSource, CinderVolumeSource,
    FlexVolumeSource, GlusterfsVolumeSource, ISCSIVolumeSource, LocalObjectReference, PersistentVolumeSpec,
    RBDVolumeSource, ScaleIOVolumeSource, SecretReference, StorageOSVolumeSource,
};

fn fill(value: &mut Option<String>, default: &str) {
    let value = value.get_or_insert_default();
    if value.is_empty() {
        default.clone_into(value);
    }
}

/// Defaults of the sources.
pub(super) fn set_defaults(spec: &mut PersistentVolumeSpec) {
    if let Some(s) = &mut spec.host_path {
        s.type_.get_or_insert_default();
    }
    if let Some(s) = &mut spec.iscsi {
        fill(&mut s.iscsi_interface, "default");
    }
    if let Some(s) = &mut spec.rbd {
        fill(&mut s.pool, "rbd");
        fill(&mut s.user, "admin");
        fill(&mut s.keyring, "/etc/ceph/keyring");
    }
    if let Some(s) = &mut spec.azure_disk {
        fill(&mut s.caching_mode, "ReadWrite");
        fill(&mut s.kind, "Shared");
        fill(&mut s.fs_type, "ext4");
        s.read_only.get_or_insert(false);
    }
    if let Some(s) = &mut spec.scale_io {
        fill(&mut s.storage_mode, "ThinProvisioned");
        fill(&mut s.fs_type, "xfs");
    }
}

/// The reference as pods have it: without a namespace.
fn local(r: Option<&SecretReference>) -> Option<LocalObjectReference> {
    r.map(|r| LocalObjectReference { name: r.name.clone().unwrap_or_default() })
}

fn namespaced(r: Option<&SecretReference>, path: &Path, e: &mut ErrorList) {
    if r.is_some_and(|r| text(&r.namespace).is_empty()) {
        e.required(&path.child("secretRef").child("namespace"), "");
    }
}

/// Adds the errors of the sources of the volume called `name`.
pub(super) fn validate(spec: &PersistentVolumeSpec, name: &str, s: &mut Sources<'_>) {
    s.check("hostPath", spec.host_path.as_ref(), shared::host_path);
    s.check_as("gcePersistentDisk", "persistentDisk", spec.gce_persistent_disk.as_ref(), shared::gce_persistent_disk);
    s.check("awsElasticBlockStore", spec.aws_elastic_block_store.as_ref(), shared::aws_elastic_block_store);
    s.check("glusterfs", spec.glusterfs.as_ref(), |v, p, e| {
        let pod = GlusterfsVolumeSource { endpoints: v.endpoints.clone(), path: v.path.clone(), read_only: None };
        shared::glusterfs(&pod, p, e);
        if v.endpoints_namespace.as_ref().is_some_and(String::is_empty) {
            let detail = "if the endpointnamespace is set, it must be a valid namespace name";
            e.invalid(&p.child("endpointsNamespace"), "", detail);
        }
    });
    s.check("flocker", spec.flocker.as_ref(), shared::flocker);
    s.check("nfs", spec.nfs.as_ref(), shared::nfs);
    s.check("rbd", spec.rbd.as_ref(), |v, p, e| {
        let pod = RBDVolumeSource { monitors: v.monitors.clone(), image: v.image.clone(), ..Default::default() };
        shared::rbd(&pod, p, e);
    });
    s.check("quobyte", spec.quobyte.as_ref(), shared::quobyte);
    s.check_as("cephFS", "cephfs", spec.cephfs.as_ref(), |v, p, e| {
        shared::cephfs(&CephFSVolumeSource { monitors: v.monitors.clone(), ..Default::default() }, p, e);
    });
    s.check("iscsi", spec.iscsi.as_ref(), |v, p, e| validate_iscsi(v, name, p, e));
    s.check("cinder", spec.cinder.as_ref(), |v, p, e| {
        let secret_ref = local(v.secret_ref.as_ref());
        let pod = CinderVolumeSource { volume_id: v.volume_id.clone(), secret_ref, ..Default::default() };
        shared::cinder(&pod, p, e);
        namespaced(v.secret_ref.as_ref(), p, e);
    });
    s.check("fc", spec.fc.as_ref(), shared::fc);
    s.check("flexVolume", spec.flex_volume.as_ref(), |v, p, e| {
        let pod = FlexVolumeSource { driver: v.driver.clone(), options: v.options.clone(), ..Default::default() };
        shared::flex_volume(&pod, p, e);
    });
    s.check("azureFile", spec.azure_file.as_ref(), |v, p, e| {
        let (secret_name, share_name) = (v.secret_name.clone(), v.share_name.clone());
        shared::azure_file(&AzureFileVolumeSource { secret_name, share_name, read_only: None }, p, e);
        if v.secret_namespace.as_ref().is_some_and(String::is_empty) {
            e.required(&p.child("secretNamespace"), "");
        }
    });
    s.check("vsphereVolume", spec.vsphere_volume.as_ref(), |v, p, e| {
        shared::required(&v.volume_path, p, "volumePath", e);
    });
    s.check("photonPersistentDisk", spec.photon_persistent_disk.as_ref(), |v, p, e| {
        shared::required(&v.pd_id, p, "pdID", e);
    });
    s.check("portworxVolume", spec.portworx_volume.as_ref(), |v, p, e| {
        shared::required(&v.volume_id, p, "volumeID", e);
    });
    s.check("azureDisk", spec.azure_disk.as_ref(), shared::azure_disk);
    s.check("scaleIO", spec.scale_io.as_ref(), |v, p, e| {
        let pod = ScaleIOVolumeSource {
            gateway: v.gateway.clone(),
            system: v.system.clone(),
            volume_name: v.volume_name.clone(),
            ..Default::default()
        };
        shared::scale_io(&pod, p, e);
    });
    let affinity = s.path.child("nodeAffinity");
    let has_affinity = spec.node_affinity.is_some();
    s.check("local", spec.local.as_ref(), |v, p, e| {
        shared::required(&v.path, p, "path", e);
        validate_no_backsteps(&v.path, &p.child("path"), e);
        if !has_affinity {
            e.required(&affinity, "Local volume requires node affinity");
        }
    });
    s.check("storageos", spec.storageos.as_ref(), |v, p, e| {
        let secret = v.secret_ref.as_ref();
        let pod = StorageOSVolumeSource {
            volume_name: v.volume_name.clone(),
            volume_namespace: v.volume_namespace.clone(),
            secret_ref: secret.map(|r| LocalObjectReference { name: text(&r.name).to_owned() }),
            ..Default::default()
        };
        shared::storageos(&pod, p, e);
        if secret.is_some_and(|r| text(&r.namespace).is_empty()) {
            e.required(&p.child("secretRef").child("namespace"), "");
        }
    });
    s.check("csi", spec.csi.as_ref(), validate_csi);
}

fn validate_iscsi(v: &v1::ISCSIPersistentVolumeSource, name: &str, path: &Path, e: &mut ErrorList) {
    let pod = ISCSIVolumeSource {
        target_portal: v.target_portal.clone(),
        iqn: v.iqn.clone(),
        lun: v.lun,
        chap_auth_discovery: v.chap_auth_discovery,
        chap_auth_session: v.chap_auth_session,
        initiator_name: v.initiator_name.clone(),
        secret_ref: local(v.secret_ref.as_ref()),
        ..Default::default()
    };
    shared::iscsi(&pod, path, e);
    if v.secret_ref.as_ref().is_some_and(|s| text(&s.name).is_empty()) {
        e.required(&path.child("secretRef").child("name"), "");
    }
    if v.initiator_name.is_some() && name.len() + 1 + v.target_portal.len() > 64 {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                      iscsi.initiatorName is specified.";
        e.invalid(&path.child("targetportal"), v.target_portal.as_str(), detail);
    }
}

fn validate_csi(v: &CSIPersistentVolumeSource, path: &Path, e: &mut ErrorList) {
    let at = path.child("driver");
    if v.driver.is_empty() {
        e.required(&at, "");
    }
    if v.driver.len() > 63 {
        e.too_long(&at, 63);
    }
    names::push_invalid(e, &at, &v.driver, &names::dns1123_subdomain(&v.driver.to_lowercase(), false));
    shared::required(&v.volume_handle, path, "volumeHandle", e);
    for (field, secret) in [
        ("controllerPublishSecretRef", &v.controller_publish_secret_ref),
        ("controllerExpandSecretRef", &v.controller_expand_secret_ref),
        ("nodePublishSecretRef", &v.node_publish_secret_ref),
        ("nodeExpandSecretRef", &v.node_expand_secret_ref),
    ] {
        let Some(secret) = secret else { continue };
        let path = path.child(field);
        let (name, namespace) = (text(&secret.name), text(&secret.namespace));
        if name.is_empty() {
            e.required(&path.child("name"), "");
        } else {
            names::push_invalid(e, &path.child("name"), name, &names::dns1123_subdomain(name, false));
        }
        if namespace.is_empty() {
            e.required(&path.child("namespace"), "");
        } else {
            names::push_invalid(e, &path.child("namespace"), namespace, &names::dns1123_label(namespace, false));
        }
    }
}

/// Warnings about sources that no longer work.
pub(super) fn warnings(spec: &PersistentVolumeSpec, path: &Path) -> Vec<String> {
    let gone = [
        (
            "photonPersistentDisk",
            spec.photon_persistent_disk.is_some(),
            "deprecated in v1.11, non-functional in v1.16+",
        ),
        ("scaleIO", spec.scale_io.is_some(), "deprecated in v1.16, non-functional in v1.22+"),
        ("storageOS", spec.storageos.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", spec.glusterfs.is_some(), "deprecated in v1.25, non-functional in v1.26+"),
        ("rbd", spec.rbd.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
        ("cephfs", spec.cephfs.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
    ];
    gone.iter().filter(|g| g.1).map(|(field, _, why)| format!("{}: {why}", path.child(field))).collect()
}
