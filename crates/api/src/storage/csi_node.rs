//! CSINode: which storage drivers run on a node.

use crate::apps::workload::nonnegative;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, immutable};
use crate::meta::{names, table};
use crate::storage::validate_driver_name;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Longest name a driver may have for a node.
const NODE_ID_MAX: usize = 256;

fn validate_driver(d: &CSINodeDriver, path: &Path, errors: &mut ErrorList) {
    validate_driver_name(&d.name, &path.child("name"), errors);
    let id = path.child("nodeID");
    if d.node_id.is_empty() {
        errors.required(&id, "");
    }
    if d.node_id.len() > NODE_ID_MAX {
        errors.invalid(&id, d.node_id.as_str(), &format!("must be {NODE_ID_MAX} characters or less"));
    }
    if let Some(count) = d.allocatable.as_ref().and_then(|a| a.count) {
        nonnegative(errors, &path.child("allocatable").child("count"), i64::from(count));
    }
}

fn validate_topology_keys(keys: &[String], path: &Path, errors: &mut ErrorList) {
    for (i, key) in keys.iter().enumerate() {
        if key.is_empty() {
            errors.required(path, "");
        }
        if keys[..i].contains(key) {
            errors.duplicate(path, key.as_str());
        }
        names::push_invalid(errors, path, key, &names::qualified_name(key));
    }
}

impl Kind for CSINode {
    const INFO: ResourceInfo = ResourceInfo {
        unconditional_update: false,
        ..ResourceInfo::new("storage.k8s.io", "v1", "CSINode", "csinodes", "csinode", false)
    };
    const COLUMNS: &'static [Column] =
        &[table::NAME, table::column("Drivers", "integer", "How many storage drivers run on the node."), table::AGE];
    crate::kind_codec!();

    // The health of storage is an alpha feature: what a writer says of it is dropped.
    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = None;
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("spec").child("drivers");
        for (i, d) in self.spec.drivers.iter().enumerate() {
            let path = path.index(i);
            validate_driver(d, &path, &mut e);
            if self.spec.drivers[..i].iter().any(|o| o.name == d.name) {
                e.duplicate(&path.child("name"), d.name.as_str());
            }
            validate_topology_keys(d.topology_keys.as_deref().unwrap_or_default(), &path, &mut e);
        }
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        // A driver that stays may change only how many volumes it can attach.
        let fixed = |d: &CSINodeDriver| json!(CSINodeDriver { allocatable: None, ..d.clone() });
        for before in &old.spec.drivers {
            for after in self.spec.drivers.iter().filter(|d| d.name == before.name) {
                immutable(&mut e, &Path::new("spec").child("drivers"), &fixed(after), &fixed(before));
            }
        }
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![self.metadata.name().into(), self.spec.drivers.len().into(), table::age(&self.metadata, now).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(drivers: Value) -> CSINode {
        CSINode::from_value(json!({"metadata": {"name": "n"}, "spec": {"drivers": drivers}})).unwrap()
    }

    #[test]
    fn field_errors_and_row() {
        let n = node(json!([{"name": "a", "nodeID": "", "allocatable": {"count": -1}},
            {"name": "a", "nodeID": "x", "topologyKeys": ["k", "k"]}]));
        let texts: Vec<String> = n.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.drivers[0].nodeID: Required value",
                "spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0",
                "spec.drivers[1].name: Duplicate value: \"a\"",
                "spec.drivers[1]: Duplicate value: \"k\"",
            ]
        );
        assert_eq!(json!(n.cells(Timestamp::UNIX_EPOCH)), json!(["n", 2, "<unknown>"]));
    }

    #[test]
    fn only_the_allocatable_count_of_a_driver_changes() {
        let old = node(json!([{"name": "a", "nodeID": "x", "allocatable": {"count": 1}}]));
        let counted = node(json!([{"name": "a", "nodeID": "x", "allocatable": {"count": 2}}]));
        assert!(counted.validate_update(&old).is_empty());
        let renamed = node(json!([{"name": "a", "nodeID": "y"}]));
        assert!(renamed.validate_update(&old).0[0].to_string().starts_with("spec.drivers: Invalid value: "));
        assert!(node(json!([])).validate_update(&old).is_empty());
    }
}
