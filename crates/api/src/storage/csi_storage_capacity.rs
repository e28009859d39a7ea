//! CSIStorageCapacity: how much storage of a class there is in a part of the cluster.

use crate::core::pod::deprecated_node_label;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{SelectorOptions, validate_label_selector};
use crate::meta::object::Meta;
use crate::meta::quantity::{self, Amount};
use crate::meta::{names, table};
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

impl Kind for CSIStorageCapacity {
    const INFO: ResourceInfo = ResourceInfo {
        unconditional_update: false,
        ..ResourceInfo::new(
            "storage.k8s.io",
            "v1",
            "CSIStorageCapacity",
            "csistoragecapacities",
            "csistoragecapacity",
            true,
        )
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("StorageClassName", "The class the capacity is of.", 0),
        table::text_column("Capacity", "How much there is.", 0),
    ];
    crate::kind_codec!(canonical: |c: &mut Self| {
        [&mut c.capacity, &mut c.maximum_volume_size].into_iter().flatten().try_for_each(quantity::canonicalize)
    });

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let topology = Path::new("nodeTopology");
        e.extend(validate_label_selector(self.node_topology.as_ref(), SelectorOptions::default(), &topology));
        let class = &self.storage_class_name;
        names::push_invalid(&mut e, &Path::new("storageClassName"), class, &names::dns1123_subdomain(class, false));
        if let Some(q) = &self.capacity
            && Amount::parse(&q.0).is_ok_and(|a| a.sign() < 0)
        {
            e.invalid(&Path::new("capacity"), q.0.as_str(), "must be greater than or equal to 0");
        }
        e
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let Some(selector) = &self.node_topology else { return Vec::new() };
        let mut out = Vec::new();
        for (i, r) in selector.match_expressions.iter().flatten().enumerate() {
            if let Some(text) = deprecated_node_label(&r.key) {
                out.push(format!("nodeTopology.matchExpressions[{i}].key: {} is {text}", r.key));
            }
        }
        for key in selector.match_labels.iter().flat_map(|m| m.keys()) {
            if let Some(text) = deprecated_node_label(key) {
                out.push(format!("nodeTopology.matchLabels.{key}: {text}"));
            }
        }
        out
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        if self.node_topology != old.node_topology {
            e.invalid(&Path::new("nodeTopology"), json!(self.node_topology), "field is immutable");
        }
        if self.storage_class_name != old.storage_class_name {
            e.invalid(&Path::new("storageClassName"), self.storage_class_name.as_str(), "field is immutable");
        }
        e
    }

    fn cells(&self, _: Timestamp) -> Vec<Value> {
        let capacity = self.capacity.as_ref().map_or_else(|| "<unset>".to_owned(), |q| q.0.clone());
        vec![self.metadata.name().into(), self.storage_class_name.as_str().into(), capacity.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(value: Value) -> CSIStorageCapacity {
        CSIStorageCapacity::from_value(value).unwrap()
    }

    #[test]
    fn field_errors_update_rules_and_row() {
        let c = capacity(json!({"metadata": {"name": "c"}, "storageClassName": "A", "capacity": "-1Gi",
            "nodeTopology": {"matchExpressions": [{"key": "k", "operator": "In"}]}}));
        let texts = |e: ErrorList| e.0.iter().map(ToString::to_string).collect::<Vec<_>>();
        let found = texts(c.validate());
        assert_eq!(
            found[0],
            "nodeTopology.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or \
             'NotIn'"
        );
        assert!(found[1].starts_with("storageClassName: Invalid value: \"A\": a lowercase RFC 1123 subdomain"));
        assert_eq!(found[2], "capacity: Invalid value: \"-1Gi\": must be greater than or equal to 0");
        let other = capacity(json!({"storageClassName": "b"}));
        assert_eq!(texts(other.validate_update(&c)).len(), 2);
        assert_eq!(json!(other.cells(Timestamp::UNIX_EPOCH)), json!(["", "b", "<unset>"]));
    }
}
