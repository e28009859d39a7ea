//! The `storage.k8s.io` API group: one file per kind.

pub mod binding;
mod csi_driver;
mod csi_node;
mod csi_storage_capacity;
pub mod storage_class;
mod volume_attachment;
mod volume_attributes_class;

use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use std::collections::BTreeMap;

/// Longest name of a driver.
const DRIVER_NAME_MAX: usize = 63;
/// Most parameters of a class.
const PARAMETERS_MAX: usize = 512;
/// Most bytes of all parameters of a class together.
const PARAMETERS_MAX_BYTES: usize = 256 << 10;

/// Adds the errors of a CSI driver's name; drivers of dynamically allocated devices follow the same rule.
pub(crate) fn validate_driver_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path, "");
    }
    if name.len() > DRIVER_NAME_MAX {
        errors.too_long(path, DRIVER_NAME_MAX);
    }
    names::push_invalid(errors, path, name, &names::dns1123_subdomain(&name.to_lowercase(), false));
}

/// Adds the errors of the name of a class's provisioner, a qualified name that may have capitals.
fn validate_provisioner(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    let lower = name.to_lowercase();
    names::push_invalid(errors, path, &lower, &names::qualified_name(&lower));
}

/// Adds the errors of a class's parameters.
fn validate_parameters(
    parameters: Option<&BTreeMap<String, String>>,
    may_be_empty: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let count = parameters.map_or(0, BTreeMap::len);
    if count > PARAMETERS_MAX {
        return errors.too_long(path, PARAMETERS_MAX);
    }
    let mut size = 0;
    for (k, v) in parameters.into_iter().flatten() {
        if k.is_empty() {
            errors.invalid(path, "", "field can not be empty.");
        }
        size += k.len() + v.len();
    }
    if size > PARAMETERS_MAX_BYTES {
        errors.too_long(path, PARAMETERS_MAX_BYTES);
    }
    if !may_be_empty && count == 0 {
        errors.required(path, "must contain at least one key/value pair");
    }
}

/// Whether two optional maps say the same; absent and empty are one on the wire.
fn same_map(a: Option<&BTreeMap<String, String>>, b: Option<&BTreeMap<String, String>>) -> bool {
    let size = |m: Option<&BTreeMap<String, String>>| m.map_or(0, BTreeMap::len);
    a == b || (size(a) == 0 && size(b) == 0)
}
