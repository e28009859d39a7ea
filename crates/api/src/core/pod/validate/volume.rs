//! Volumes: that exactly one source is given, and each source's own rules.

use crate::certificates::certificate_signing_request::validate_signer_name;
use crate::certificates::cluster_trust_bundle::name_errors;
use crate::certificates::pod_certificate_request::{expirations, validate_user_annotations};
use crate::core::persistent_volume_claim::validate_spec;
use crate::core::pod::validate::Options;
use crate::core::pod::validate::env::{validate_field_ref, validate_resource_field_ref};
use crate::core::pod::validate::volume_sources as other;
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{SelectorOptions, validate_label_selector};
use crate::meta::object::{Meta, validate_annotations};
use crate::meta::{labels, names, text};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, EphemeralVolumeSource, KeyToPath, PodCertificateProjection, ProjectedVolumeSource, Volume,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const CONFLICT: &str = "conflicting duplicate paths";

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Valid volumes by name, for the containers that mount them.
pub(super) type Volumes<'a> = BTreeMap<&'a str, &'a Volume>;

/// Adds the errors of `volumes` and answers those without.
pub(super) fn validate_volumes<'a>(
    volumes: &'a [Volume],
    pod: Option<&ObjectMeta>,
    path: &Path,
    options: Options,
    errors: &mut ErrorList,
) -> Volumes<'a> {
    let pod_name = pod.map(Meta::name).unwrap_or_default();
    let claim_of = |v: &Volume| format!("{pod_name}-{}", v.name);
    let created: BTreeSet<String> = match pod_name {
        "" => BTreeSet::new(),
        _ => volumes.iter().filter(|v| v.ephemeral.is_some()).map(claim_of).collect(),
    };
    let mut good = Volumes::new();
    for (i, v) in volumes.iter().enumerate() {
        let path = path.index(i);
        let name_path = path.child("name");
        let mut own = ErrorList::default();
        validate_source(v, pod_name, &path, options, &mut own);
        if v.name.is_empty() {
            own.required(&name_path, "");
        } else {
            names::push_invalid(&mut own, &name_path, &v.name, &names::dns1123_label(&v.name, false));
        }
        if good.contains_key(v.name.as_str()) {
            own.duplicate(&name_path, v.name.as_str());
        }
        if own.is_empty() {
            good.insert(&v.name, v);
        }
        errors.extend(own);
        if let Some(claim) = v.persistent_volume_claim.as_ref().filter(|c| created.contains(&c.claim_name)) {
            let detail = "must not reference a PVC that gets created for an ephemeral volume";
            errors.invalid(&path.child("persistentVolumeClaim").child("claimName"), claim.claim_name.as_str(), detail);
        }
    }
    good
}

/// Counts the sources of a volume; only the first is looked into.
pub(crate) struct Sources<'e> {
    /// Where the sources are.
    pub(crate) path: Path,
    /// Whether there was one.
    pub(crate) found: bool,
    errors: &'e mut ErrorList,
}

impl<'e> Sources<'e> {
    /// None found yet.
    pub(crate) fn new(path: &Path, errors: &'e mut ErrorList) -> Self {
        Self { path: path.clone(), found: false, errors }
    }

    /// Adds the errors of a source, if it is there.
    pub(crate) fn check<T>(&mut self, name: &str, source: Option<&T>, rule: impl FnOnce(&T, &Path, &mut ErrorList)) {
        self.check_as(name, name, source, rule);
    }

    /// For sources whose errors upstream reports under another name than their own.
    pub(crate) fn check_as<T>(
        &mut self,
        twice: &str,
        name: &str,
        source: Option<&T>,
        rule: impl FnOnce(&T, &Path, &mut ErrorList),
    ) {
        let Some(source) = source else { return };
        if self.found {
            self.errors.forbidden(&self.path.child(twice), "may not specify more than 1 volume type");
        } else {
            self.found = true;
            rule(source, &self.path.child(name), self.errors);
        }
    }
}

fn validate_source(v: &Volume, pod_name: &str, path: &Path, options: Options, errors: &mut ErrorList) {
    let mut s = Sources::new(path, errors);
    s.check("emptyDir", v.empty_dir.as_ref(), |e, p, errors| {
        let negative = e.size_limit.as_ref().is_some_and(|q| q.0.starts_with('-'));
        if negative {
            errors.forbidden(&p.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
        }
    });
    s.check("hostPath", v.host_path.as_ref(), other::host_path);
    s.check("gitRepo", v.git_repo.as_ref(), other::git_repo);
    s.check_as("gcePersistentDisk", "persistentDisk", v.gce_persistent_disk.as_ref(), other::gce_persistent_disk);
    s.check("awsElasticBlockStore", v.aws_elastic_block_store.as_ref(), other::aws_elastic_block_store);
    s.check("secret", v.secret.as_ref(), |secret, p, errors| {
        if text(&secret.secret_name).is_empty() {
            errors.required(&p.child("secretName"), "");
        }
        validate_mode(secret.default_mode, &p.child("defaultMode"), errors);
        validate_items(secret.items.as_deref(), p, errors);
    });
    s.check("nfs", v.nfs.as_ref(), other::nfs);
    s.check("iscsi", v.iscsi.as_ref(), |iscsi, p, errors| {
        other::iscsi(iscsi, p, errors);
        if iscsi.initiator_name.is_some() && v.name.len() + 1 + iscsi.target_portal.len() > 64 {
            let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                          iscsi.initiatorName is specified.";
            errors.invalid(&path.child("name"), v.name.as_str(), detail);
        }
    });
    s.check("glusterfs", v.glusterfs.as_ref(), other::glusterfs);
    s.check("flocker", v.flocker.as_ref(), other::flocker);
    s.check("persistentVolumeClaim", v.persistent_volume_claim.as_ref(), |claim, p, errors| {
        if claim.claim_name.is_empty() {
            errors.required(&p.child("claimName"), "");
        }
    });
    s.check("rbd", v.rbd.as_ref(), other::rbd);
    s.check("cinder", v.cinder.as_ref(), other::cinder);
    s.check_as("cephFS", "cephfs", v.cephfs.as_ref(), other::cephfs);
    s.check("quobyte", v.quobyte.as_ref(), other::quobyte);
    s.check_as("downwarAPI", "downwardAPI", v.downward_api.as_ref(), |d, p, errors| {
        validate_mode(d.default_mode, &p.child("defaultMode"), errors);
        for file in d.items.iter().flatten() {
            validate_downward_file(file, p, errors);
        }
    });
    s.check("fc", v.fc.as_ref(), other::fc);
    s.check("flexVolume", v.flex_volume.as_ref(), other::flex_volume);
    s.check("configMap", v.config_map.as_ref(), |map, p, errors| {
        if map.name.is_empty() {
            errors.required(&p.child("name"), "");
        }
        validate_mode(map.default_mode, &p.child("defaultMode"), errors);
        validate_items(map.items.as_deref(), p, errors);
    });
    s.check("azureFile", v.azure_file.as_ref(), other::azure_file);
    s.check("vsphereVolume", v.vsphere_volume.as_ref(), |d, p, errors| {
        other::required(&d.volume_path, p, "volumePath", errors)
    });
    s.check("photonPersistentDisk", v.photon_persistent_disk.as_ref(), |d, p, errors| {
        other::required(&d.pd_id, p, "pdID", errors);
    });
    s.check("portworxVolume", v.portworx_volume.as_ref(), |d, p, errors| {
        other::required(&d.volume_id, p, "volumeID", errors)
    });
    s.check("azureDisk", v.azure_disk.as_ref(), other::azure_disk);
    s.check("storageos", v.storageos.as_ref(), other::storageos);
    s.check("projected", v.projected.as_ref(), validate_projected);
    s.check("scaleIO", v.scale_io.as_ref(), other::scale_io);
    s.check("csi", v.csi.as_ref(), other::csi);
    s.check("ephemeral", v.ephemeral.as_ref(), |e, p, errors| {
        validate_ephemeral(e, p, errors);
        if !pod_name.is_empty() && !v.name.is_empty() {
            let claim = format!("{pod_name}-{}", v.name);
            for message in names::dns1123_subdomain(&claim, false) {
                errors.invalid(&path.child("name"), v.name.as_str(), &format!("PVC name {claim:?}: {message}"));
            }
        }
    });
    s.check("image", v.image.as_ref(), |image, p, errors| {
        if options.is_pod && text(&image.reference).is_empty() {
            errors.required(&p.child("reference"), "");
        }
        validate_pull_policy(text(&image.pull_policy), &p.child("pullPolicy"), errors);
    });
    if !s.found {
        errors.required(path, "must specify a volume type");
    }
}

/// Adds the errors of an image pull policy.
pub(super) fn validate_pull_policy(policy: &str, path: &Path, errors: &mut ErrorList) {
    match policy {
        "Always" | "IfNotPresent" | "Never" => {}
        "" => errors.required(path, ""),
        other => errors.not_supported(path, other, &["Always", "IfNotPresent", "Never"]),
    }
}

fn validate_mode(mode: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(mode) = mode.filter(|m| !(0..=0o777).contains(m)) {
        errors.invalid(path, mode, FILE_MODE);
    }
}

fn validate_items(items: Option<&[KeyToPath]>, path: &Path, errors: &mut ErrorList) {
    for (i, item) in items.unwrap_or_default().iter().enumerate() {
        validate_key_to_path(item, &path.child("items").index(i), errors);
    }
}

fn validate_key_to_path(item: &KeyToPath, path: &Path, errors: &mut ErrorList) {
    other::required(&item.key, path, "key", errors);
    other::required(&item.path, path, "path", errors);
    validate_local_path(&item.path, &path.child("path"), errors);
    validate_mode(item.mode, &path.child("mode"), errors);
}

/// Adds `must not contain '..'`.
pub(crate) fn validate_no_backsteps(target: &str, path: &Path, errors: &mut ErrorList) {
    if target.split('/').any(|part| part == "..") {
        errors.invalid(path, target, "must not contain '..'");
    }
}

/// Adds the errors of a path that must stay below where it starts.
pub(super) fn validate_descending_path(target: &str, path: &Path, errors: &mut ErrorList) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    validate_no_backsteps(target, path, errors);
}

fn validate_local_path(target: &str, path: &Path, errors: &mut ErrorList) {
    validate_descending_path(target, path, errors);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.invalid(path, target, "must not start with '..'");
    }
}

fn validate_downward_file(file: &DownwardAPIVolumeFile, path: &Path, errors: &mut ErrorList) {
    other::required(&file.path, path, "path", errors);
    validate_local_path(&file.path, &path.child("path"), errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), resource) => {
            validate_field_ref(field, VOLUME_FIELDS, &path.child("fieldRef"), errors);
            if resource.is_some() {
                errors.invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
            }
        }
        (None, Some(resource)) => validate_resource_field_ref(resource, true, &path.child("resourceFieldRef"), errors),
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    validate_mode(file.mode, &path.child("mode"), errors);
}

fn validate_projected(projected: &ProjectedVolumeSource, path: &Path, errors: &mut ErrorList) {
    validate_mode(projected.default_mode, &path.child("defaultMode"), errors);
    let mut taken = BTreeSet::new();
    for (i, source) in projected.sources.iter().flatten().enumerate() {
        validate_projection(source, &path.child("sources").index(i), path, &mut taken, errors);
    }
}

fn validate_projection<'a>(
    source: &'a VolumeProjection,
    path: &Path,
    volume_path: &Path,
    taken: &mut BTreeSet<&'a str>,
    errors: &mut ErrorList,
) {
    let mut count = 0;
    let keyed = [
        ("secret", source.secret.as_ref().map(|s| (&s.name, s.items.as_deref()))),
        ("configMap", source.config_map.as_ref().map(|s| (&s.name, s.items.as_deref()))),
    ];
    for (field, projection) in keyed {
        let Some((name, items)) = projection else { continue };
        count += 1;
        let path = path.child(field);
        other::required(name, &path, "name", errors);
        for (i, item) in items.unwrap_or_default().iter().enumerate() {
            validate_key_to_path(item, &path.child("items").index(i), errors);
            if !item.path.is_empty() && !taken.insert(&item.path) {
                errors.invalid(volume_path, name.as_str(), CONFLICT);
            }
        }
    }
    if let Some(downward) = &source.downward_api {
        count += 1;
        for file in downward.items.iter().flatten() {
            validate_downward_file(file, &path.child("downwardAPI"), errors);
            if !file.path.is_empty() && !taken.insert(&file.path) {
                errors.invalid(volume_path, file.path.as_str(), CONFLICT);
            }
        }
    }
    if let Some(token) = &source.service_account_token {
        count += 1;
        let expiration_path = path.child("serviceAccountToken").child("expirationSeconds");
        let expiration = token.expiration_seconds.unwrap_or(0);
        if expiration < 600 {
            errors.invalid(&expiration_path, expiration, "may not specify a duration less than 10 minutes");
        }
        if expiration > 1 << 32 {
            errors.invalid(&expiration_path, expiration, "may not specify a duration larger than 2^32 seconds");
        }
        if token.path.is_empty() {
            errors.required(&volume_path.child("path"), "");
        } else {
            validate_local_path(&token.path, &volume_path.child("path"), errors);
        }
    }
    if let Some(bundle) = &source.cluster_trust_bundle {
        count += 1;
        let path = path.child("clusterTrustBundle");
        match (&bundle.name, &bundle.signer_name) {
            (Some(_), Some(_)) => errors.invalid(&path, json!(bundle), "only one of name and signerName may be used"),
            (Some(name), None) => {
                if name.is_empty() {
                    errors.required(&path.child("name"), "must be a valid object name");
                }
                let signer = name.rsplit_once(':').map(|(signer, _)| signer.replace(':', "/")).unwrap_or_default();
                for message in name_errors(&signer, name, false) {
                    errors.invalid(
                        &path.child("name"),
                        name.as_str(),
                        &format!("not a valid clustertrustbundlename: {message}"),
                    );
                }
                if bundle.label_selector.is_some() {
                    let detail = "labelSelector must be unset if name is specified";
                    errors.invalid(&path.child("labelSelector"), json!(bundle.label_selector), detail);
                }
            }
            (None, Some(signer)) => {
                if signer.is_empty() {
                    errors.required(&path.child("signerName"), "must be a valid signer name");
                }
                let selector_path = path.child("labelSelector");
                errors.extend(validate_label_selector(
                    bundle.label_selector.as_ref(),
                    SelectorOptions::default(),
                    &selector_path,
                ));
            }
            (None, None) => errors.required(&path, "either name or signerName must be specified"),
        }
        other::required(&bundle.path, &path, "path", errors);
        validate_local_path(&bundle.path, &path.child("path"), errors);
        if !taken.insert(&bundle.path) {
            errors.invalid(volume_path, bundle.path.as_str(), CONFLICT);
        }
    }
    if let Some(certificate) = &source.pod_certificate {
        count += 1;
        validate_pod_certificate(certificate, &path.child("podCertificate"), volume_path, taken, errors);
    }
    if count > 1 {
        errors.forbidden(path, "may not specify more than 1 volume type per source");
    }
}

/// Keys that a kubelet makes.
const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

fn validate_pod_certificate<'a>(
    certificate: &'a PodCertificateProjection,
    path: &Path,
    volume_path: &Path,
    taken: &mut BTreeSet<&'a str>,
    errors: &mut ErrorList,
) {
    validate_signer_name(&certificate.signer_name, &path.child("signerName"), errors);
    if !KEY_TYPES.contains(&certificate.key_type.as_str()) {
        errors.not_supported(&path.child("keyType"), &certificate.key_type, KEY_TYPES);
    }
    if let Some(seconds) = certificate.max_expiration_seconds {
        let (path, range) = (path.child("maxExpirationSeconds"), expirations(&certificate.signer_name));
        if seconds < *range.start() {
            let told = format!("if provided, maxExpirationSeconds must be >= {}", range.start());
            errors.invalid(&path, seconds, &told);
        }
        if seconds > *range.end() {
            errors.invalid(&path, seconds, &format!("if provided, maxExpirationSeconds must be <= {}", range.end()));
        }
    }
    let mut any = false;
    for (field, file) in [
        ("credentialBundlePath", &certificate.credential_bundle_path),
        ("keyPath", &certificate.key_path),
        ("certificateChainPath", &certificate.certificate_chain_path),
    ] {
        let Some(file) = file.as_deref().filter(|f| !f.is_empty()) else { continue };
        any = true;
        validate_local_path(file, &path.child(field), errors);
        if !taken.insert(file) {
            errors.invalid(volume_path, file, CONFLICT);
        }
    }
    if !any {
        errors.required(path, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath");
    }
    if let Some(annotations) = &certificate.user_annotations {
        validate_user_annotations(annotations, &path.child("userAnnotations"), errors);
    }
}

fn validate_ephemeral(e: &EphemeralVolumeSource, path: &Path, errors: &mut ErrorList) {
    let path = path.child("volumeClaimTemplate");
    let Some(template) = &e.volume_claim_template else { return errors.required(&path, "") };
    if let Some(meta) = &template.metadata {
        let path = path.child("metadata");
        errors.extend(validate_annotations(meta.annotations.as_ref(), &path.child("annotations")));
        errors.extend(labels::validate_labels(meta.labels.as_ref(), &path.child("labels")));
        if let serde_json::Value::Object(fields) = json!(meta) {
            for field in fields.keys().filter(|f| !matches!(f.as_str(), "labels" | "annotations")) {
                errors.forbidden(&path.child(field), "cannot be set");
            }
        }
    }
    validate_spec(&template.spec, false, &path.child("spec"), errors);
}
