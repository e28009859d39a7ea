//! VolumeAttachment: the wish to attach a volume to a node, and what became of it.

use crate::apps::workload;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{IMMUTABLE, Meta, reset_for_status, semantically_equal};
use crate::meta::{names, table, text};
use crate::storage::validate_driver_name;
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec, VolumeError};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Most bytes of the metadata an attacher keeps.
const METADATA_MAX_BYTES: usize = 256 << 10;
/// Longest message of an error.
const MESSAGE_MAX: usize = 1024;

fn validate_source(source: &VolumeAttachmentSource, path: &Path, errors: &mut ErrorList) {
    let one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (&source.inline_volume_spec, &source.persistent_volume_name) {
        (None, None) => errors.required(path, one),
        (Some(_), Some(_)) => errors.forbidden(path, one),
        (None, Some(name)) if name.is_empty() => {
            errors.required(&path.child("persistentVolumeName"), "must specify non empty persistentVolumeName");
        }
        (None, Some(_)) => {}
        (Some(spec), None) => {
            // Only volumes of CSI drivers can be migrated inline volumes.
            if spec.csi.is_none() {
                errors.required(&path.child("inlineVolumeSpec").child("csi"), "");
            }
        }
    }
}

fn validate_error(error: Option<&VolumeError>, path: &Path, errors: &mut ErrorList) {
    let Some(error) = error else { return };
    if text(&error.message).len() > MESSAGE_MAX {
        errors.too_long(&path.child("message"), METADATA_MAX_BYTES);
    }
    if let Some(code) = error.error_code.filter(|c| *c < 0) {
        let detail = names::inclusive_range_error(0, i64::from(i32::MAX));
        errors.invalid(&path.child("errorCode"), code, &detail);
    }
}

/// Rules of every stored attachment.
fn validate_stored(a: &VolumeAttachment) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    if a.spec.attacher.is_empty() {
        e.required(&path.child("attacher"), "");
    }
    validate_source(&a.spec.source, &path.child("source"), &mut e);
    let node = &a.spec.node_name;
    names::push_invalid(&mut e, &path.child("nodeName"), node, &names::dns1123_subdomain(node, false));
    if let Some(status) = &a.status {
        let path = Path::new("status");
        let size: usize = status.attachment_metadata.iter().flatten().map(|(k, v)| k.len() + v.len()).sum();
        if size > METADATA_MAX_BYTES {
            e.too_long(&path.child("attachmentMetadata"), METADATA_MAX_BYTES);
        }
        validate_error(status.attach_error.as_ref(), &path.child("attachError"), &mut e);
        validate_error(status.detach_error.as_ref(), &path.child("detachError"), &mut e);
    }
    e
}

/// The spec as field errors show it: upstream's own type, up to an inline volume.
fn shown(spec: &VolumeAttachmentSpec) -> String {
    let source = workload::shown_as(&[
        ("PersistentVolumeName", json!(spec.source.persistent_volume_name)),
        ("InlineVolumeSpec", json!(spec.source.inline_volume_spec)),
    ]);
    let (attacher, node) = (json!(spec.attacher), json!(spec.node_name));
    format!("{{\"Attacher\":{attacher},\"Source\":{source},\"NodeName\":{node}}}")
}

impl Kind for VolumeAttachment {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        unconditional_update: false,
        ..ResourceInfo::new("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", "volumeattachment", false)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        Column { format: "name", ..table::text_column("Attacher", "The driver that attaches.", 0) },
        table::text_column("PV", "The volume.", 0),
        table::text_column("Node", "The node it is attached to.", 0),
        table::column("Attached", "boolean", "Whether it is attached."),
        table::AGE,
    ];
    crate::kind_codec!();

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
    }

    fn validate(&self) -> ErrorList {
        let mut e = validate_stored(self);
        validate_driver_name(&self.spec.attacher, &Path::new("spec.attacher"), &mut e);
        if let Some(name) = &self.spec.source.persistent_volume_name {
            let path = Path::new("spec.source.persistentVolumeName");
            names::push_invalid(&mut e, &path, name, &names::dns1123_subdomain(name, false));
        }
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = validate_stored(self);
        if !semantically_equal(&self.spec, &old.spec) {
            workload::invalid_shown(&mut e, &Path::new("spec"), &shown(&self.spec), IMMUTABLE);
        }
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        self.validate_update(old)
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name().into(),
            self.spec.attacher.as_str().into(),
            text(&self.spec.source.persistent_volume_name).into(),
            self.spec.node_name.as_str().into(),
            self.status.as_ref().is_some_and(|s| s.attached).into(),
            table::age(&self.metadata, now).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["metadata"], &["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(spec: Value) -> VolumeAttachment {
        VolumeAttachment::from_value(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap()
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors() {
        let empty = texts(&attachment(json!({"attacher": "", "nodeName": "n", "source": {}})).validate());
        assert_eq!(
            empty[..3],
            [
                "spec.attacher: Required value",
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                "spec.attacher: Required value",
            ]
        );
        let bad = attachment(json!({"attacher": "d", "nodeName": "N", "source": {"persistentVolumeName": "P"}}));
        let found = texts(&bad.validate());
        assert!(found[0].starts_with("spec.nodeName: Invalid value: \"N\""), "{found:?}");
        assert!(found[1].starts_with("spec.source.persistentVolumeName: Invalid value: \"P\""), "{found:?}");
    }

    #[test]
    fn the_spec_is_immutable_and_status_has_its_own_door() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut old = attachment(json!({"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "p"}}));
        old.prepare_for_create(&cx);
        let mut new = old.clone();
        new.spec.node_name = "m".into();
        assert!(texts(&new.validate_update(&old))[0].ends_with("field is immutable"));
        new.status.as_mut().unwrap().attached = true;
        new.status.as_mut().unwrap().attach_error =
            Some(VolumeError { error_code: Some(-1), message: Some("x".repeat(1025)), time: None });
        new.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        new.prepare_for_status_update(&old, &cx);
        assert_eq!((new.spec.node_name.as_str(), new.metadata.labels.is_none()), ("n", true));
        assert_eq!(
            texts(&new.validate_status_update(&old)),
            [
                "status.attachError.message: Too long: may not be more than 262144 bytes",
                "status.attachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            ]
        );
        assert_eq!(json!(new.cells(cx.now)), json!(["a", "d", "p", "n", true, "<unknown>"]));
        new.prepare_for_update(&old, &cx);
        assert_eq!(new.status, old.status);
    }
}
