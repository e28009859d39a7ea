//! The `networking.k8s.io` API group: one file per kind.

mod addresses;
mod ingress;
mod ingress_class;
pub mod ip_address;
mod network_policy;
pub mod service_cidr;

use crate::meta::field::{ErrorList, Path};
use crate::meta::names;

/// Adds the errors of a reference to an object of any kind, which is not looked up.
fn validate_reference(group: Option<&str>, kind: &str, name: &str, path: &Path, errors: &mut ErrorList) {
    if let Some(group) = group {
        names::push_invalid(errors, &path.child("apiGroup"), group, &names::dns1123_subdomain(group, false));
    }
    for (field, value) in [("kind", kind), ("name", name)] {
        validate_segment(value, true, &path.child(field), errors);
    }
}

/// Adds the errors of a name that is a segment of a path.
fn validate_segment(value: &str, required: bool, path: &Path, errors: &mut ErrorList) {
    if !value.is_empty() {
        names::push_invalid(errors, path, value, &names::path_segment(value, false));
    } else if required {
        errors.required(path, "");
    }
}
