//! Rules of the volume sources that name something outside the cluster.

use crate::core::pod::validate::volume::{validate_descending_path, validate_no_backsteps};
use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, text};
use k8s_openapi::api::core::v1;
use serde_json::json;

/// Adds `Required value` where `value` is empty.
pub(crate) fn required(value: &str, path: &Path, field: &str, errors: &mut ErrorList) {
    if value.is_empty() {
        errors.required(&path.child(field), "");
    }
}

fn secret_ref(reference: Option<&v1::LocalObjectReference>, path: &Path, errors: &mut ErrorList) {
    if let Some(r) = reference {
        required(&r.name, &path.child("secretRef"), "name", errors);
    }
}

pub(crate) fn host_path(v: &v1::HostPathVolumeSource, path: &Path, errors: &mut ErrorList) {
    const TYPES: &[&str] =
        &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    if v.path.is_empty() {
        return errors.required(&path.child("path"), "");
    }
    validate_no_backsteps(&v.path, &path.child("path"), errors);
    if let Some(t) = v.type_.as_deref().filter(|t| !TYPES.contains(t)) {
        errors.not_supported(&path.child("type"), t, TYPES);
    }
}

pub(crate) fn git_repo(v: &v1::GitRepoVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.repository, path, "repository", errors);
    validate_descending_path(text(&v.directory), &path.child("directory"), errors);
}

fn partition(number: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(n) = number.filter(|n| !(0..=255).contains(n)) {
        errors.invalid(&path.child("partition"), n, &names::inclusive_range_error(1, 255));
    }
}

pub(crate) fn gce_persistent_disk(v: &v1::GCEPersistentDiskVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.pd_name, path, "pdName", errors);
    partition(v.partition, path, errors);
}

pub(crate) fn aws_elastic_block_store(v: &v1::AWSElasticBlockStoreVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.volume_id, path, "volumeID", errors);
    partition(v.partition, path, errors);
}

pub(crate) fn nfs(v: &v1::NFSVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.server, path, "server", errors);
    required(&v.path, path, "path", errors);
    if !v.path.starts_with('/') {
        errors.invalid(&path.child("path"), v.path.as_str(), "must be an absolute path");
    }
}

fn iscsi_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let ok = match name.get(..3) {
        Some("iqn") => {
            // iqn.YYYY-MM.reversed.domain:identifier
            let date = name.get(3..12).map(str::as_bytes).unwrap_or_default();
            let digits = |r: std::ops::Range<usize>| date.get(r).is_some_and(|d| d.iter().all(u8::is_ascii_digit));
            let dated = date.len() == 9
                && date[0] == b'.'
                && digits(1..5)
                && date[5] == b'-'
                && digits(6..8)
                && date[8] == b'.';
            let rest = name.get(12..).unwrap_or_default();
            let parts = rest.split_once(':');
            dated
                && parts.is_some_and(|(domain, id)| {
                    !domain.is_empty()
                        && domain.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.".contains(&c))
                        && !id.is_empty()
                        && !id.contains(|c: char| ",;*&$|".contains(c) || c.is_whitespace())
                })
        }
        Some("eui") => name.len() == 20 && name.bytes().skip(4).all(|c| c.is_ascii_alphanumeric()),
        Some("naa") => name.len() == 36 && name.bytes().skip(4).all(|c| c.is_ascii_alphanumeric()),
        _ => return errors.invalid(path, name, "must be valid format starting with iqn, eui, or naa"),
    };
    if !ok {
        errors.invalid(path, name, "must be valid format");
    }
}

fn lun(number: i32, path: &Path, errors: &mut ErrorList) {
    if !(0..=255).contains(&number) {
        errors.invalid(&path.child("lun"), number, &names::inclusive_range_error(0, 255));
    }
}

pub(crate) fn iscsi(v: &v1::ISCSIVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.target_portal, path, "targetPortal", errors);
    if v.iqn.is_empty() {
        errors.required(&path.child("iqn"), "");
    } else {
        iscsi_name(&v.iqn, &path.child("iqn"), errors);
    }
    lun(v.lun, path, errors);
    if (v.chap_auth_discovery == Some(true) || v.chap_auth_session == Some(true)) && v.secret_ref.is_none() {
        errors.required(&path.child("secretRef"), "");
    }
    if let Some(name) = &v.initiator_name {
        iscsi_name(name, &path.child("initiatorname"), errors);
    }
}

pub(crate) fn glusterfs(v: &v1::GlusterfsVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.endpoints, path, "endpoints", errors);
    required(&v.path, path, "path", errors);
}

pub(crate) fn flocker(v: &v1::FlockerVolumeSource, path: &Path, errors: &mut ErrorList) {
    let (name, uuid) = (text(&v.dataset_name), text(&v.dataset_uuid));
    if name.is_empty() && uuid.is_empty() {
        errors.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        errors.invalid(&path.child("datasetName"), name, "must not contain '/'");
    }
}

pub(crate) fn rbd(v: &v1::RBDVolumeSource, path: &Path, errors: &mut ErrorList) {
    if v.monitors.is_empty() {
        errors.required(&path.child("monitors"), "");
    }
    required(&v.image, path, "image", errors);
}

pub(crate) fn cinder(v: &v1::CinderVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.volume_id, path, "volumeID", errors);
    secret_ref(v.secret_ref.as_ref(), path, errors);
}

pub(crate) fn cephfs(v: &v1::CephFSVolumeSource, path: &Path, errors: &mut ErrorList) {
    if v.monitors.is_empty() {
        errors.required(&path.child("monitors"), "");
    }
}

pub(crate) fn quobyte(v: &v1::QuobyteVolumeSource, path: &Path, errors: &mut ErrorList) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    if v.registry.is_empty() {
        errors.required(&path.child("registry"), PAIRS);
    } else if text(&v.tenant).len() >= 65 {
        errors.required(&path.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        for _ in v.registry.split(',').filter(|pair| !pair.contains(':')) {
            errors.invalid(&path.child("registry"), v.registry.as_str(), PAIRS);
        }
    }
    required(&v.volume, path, "volume", errors);
}

pub(crate) fn fc(v: &v1::FCVolumeSource, path: &Path, errors: &mut ErrorList) {
    let wwns = v.target_wwns.as_deref().unwrap_or_default();
    let wwids = v.wwids.as_deref().unwrap_or_default();
    let wwns_path = path.child("targetWWNs");
    if wwns.is_empty() && wwids.is_empty() {
        errors.required(&wwns_path, "must specify either targetWWNs or wwids, but not both");
    }
    if !wwns.is_empty() && !wwids.is_empty() {
        errors.invalid(&wwns_path, json!(wwns), "targetWWNs and wwids can not be specified simultaneously");
    }
    if !wwns.is_empty() {
        match v.lun {
            None => errors.required(&path.child("lun"), "lun is required if targetWWNs is specified"),
            Some(n) => lun(n, path, errors),
        }
    }
}

pub(crate) fn flex_volume(v: &v1::FlexVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.driver, path, "driver", errors);
    for key in v.options.iter().flatten().map(|(k, _)| k) {
        let namespace = format!(".{}", key.split('/').next().unwrap_or(key).to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid(&path.child("options").key(key), key.as_str(), detail);
        }
    }
}

pub(crate) fn azure_file(v: &v1::AzureFileVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.secret_name, path, "secretName", errors);
    required(&v.share_name, path, "shareName", errors);
}

pub(crate) fn azure_disk(v: &v1::AzureDiskVolumeSource, path: &Path, errors: &mut ErrorList) {
    const CACHING: &[&str] = &["None", "ReadOnly", "ReadWrite"];
    const KINDS: &[&str] = &["Dedicated", "Managed", "Shared"];
    required(&v.disk_name, path, "diskName", errors);
    required(&v.disk_uri, path, "diskURI", errors);
    if let Some(mode) = v.caching_mode.as_deref().filter(|m| !CACHING.contains(m)) {
        errors.not_supported(&path.child("cachingMode"), mode, CACHING);
    }
    let Some(kind) = v.kind.as_deref() else { return };
    if !KINDS.contains(&kind) {
        errors.not_supported(&path.child("kind"), kind, KINDS);
    }
    let (prefix, example) = if kind == "Managed" {
        (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        )
    } else {
        ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")
    };
    if !v.disk_uri.starts_with(prefix) {
        errors.not_supported(&path.child("diskURI"), &v.disk_uri, &[example]);
    }
}

pub(crate) fn storageos(v: &v1::StorageOSVolumeSource, path: &Path, errors: &mut ErrorList) {
    let (name, namespace) = (text(&v.volume_name), text(&v.volume_namespace));
    if name.is_empty() {
        errors.required(&path.child("volumeName"), "");
    } else {
        names::push_invalid(errors, &path.child("volumeName"), name, &names::dns1123_label(name, false));
    }
    if !namespace.is_empty() {
        names::push_invalid(errors, &path.child("volumeNamespace"), namespace, &names::dns1123_label(namespace, false));
    }
    secret_ref(v.secret_ref.as_ref(), path, errors);
}

pub(crate) fn scale_io(v: &v1::ScaleIOVolumeSource, path: &Path, errors: &mut ErrorList) {
    required(&v.gateway, path, "gateway", errors);
    required(&v.system, path, "system", errors);
    required(text(&v.volume_name), path, "volumeName", errors);
}

pub(crate) fn csi(v: &v1::CSIVolumeSource, path: &Path, errors: &mut ErrorList) {
    let driver_path = path.child("driver");
    required(&v.driver, path, "driver", errors);
    if v.driver.len() > 63 {
        errors.too_long(&driver_path, 63);
    }
    names::push_invalid(errors, &driver_path, &v.driver, &names::dns1123_subdomain(&v.driver.to_lowercase(), false));
    if let Some(r) = &v.node_publish_secret_ref {
        if r.name.is_empty() {
            errors.required(&path.child("nodePublishSecretRef").child("name"), "");
        } else {
            names::push_invalid(errors, &path.child("name"), &r.name, &names::dns1123_subdomain(&r.name, false));
        }
    }
}
