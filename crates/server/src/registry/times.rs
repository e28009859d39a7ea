//! When its owners are said to have written an object: no write of its own.

use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use gantry_api::kind::Object;

/// Gives an object the entries of the stored one where the times in them are all that differs, as upstream's
/// `IgnoreManagedFieldsTimestampsTransformer`. Returns those it had.
pub(super) fn keep(object: &mut dyn Object, stored: &ObjectMeta) -> Option<Vec<ManagedFieldsEntry>> {
    let old = stored.managed_fields.as_deref()?;
    let new = object.meta().managed_fields.as_deref()?;
    let same = |a: &ManagedFieldsEntry, b: &ManagedFieldsEntry| {
        (&a.manager, &a.operation, &a.api_version, &a.subresource, &a.fields_type, &a.fields_v1)
            == (&b.manager, &b.operation, &b.api_version, &b.subresource, &b.fields_type, &b.fields_v1)
    };
    if old.len() != new.len() || old == new || !new.iter().all(|new| old.iter().any(|old| same(old, new))) {
        return None;
    }
    object.meta_mut().managed_fields.replace(old.to_vec())
}
