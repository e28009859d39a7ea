//! RuntimeClass: a named way of the node's container runtime to run pods.

use crate::apps::workload;
use crate::core::pod::deprecated_node_label;
use crate::core::pod::validate::placement::validate_tolerations;
use crate::core::pod::validate::resources::validate_container;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::validate_labels;
use crate::meta::object::{Meta, immutable};
use crate::meta::quantity::canonicalize_list;
use crate::meta::{names, table};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::api::node::v1::{RuntimeClass, Scheduling};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;

impl Kind for RuntimeClass {
    const INFO: ResourceInfo = ResourceInfo {
        create_on_update: true,
        unconditional_update: false,
        ..ResourceInfo::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "runtimeclass", false)
    };
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Handler", "string", "How the container runtime knows the way."),
        workload::AGE,
    ];
    crate::kind_codec!(canonical: |r: &mut Self| {
        canonicalize_list(r.overhead.as_mut().and_then(|o| o.pod_fixed.as_mut()))
    });

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let at = Path::new("handler");
        names::push_invalid(&mut e, &at, &self.handler, &names::dns1123_label(&self.handler, false));
        if let Some(o) = &self.overhead {
            // Checked as the limits of a container, and reported as such.
            let limits = ResourceRequirements { limits: o.pod_fixed.clone(), ..Default::default() };
            validate_container(&limits, &BTreeSet::new(), &Path::new("overhead"), &mut e);
        }
        if let Some(s) = &self.scheduling {
            validate_scheduling(s, &mut e);
        }
        e
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let labels = self.scheduling.iter().flat_map(|s| s.node_selector.iter().flatten());
        let path = Path::new("scheduling").child("nodeSelector");
        labels.filter_map(|(k, _)| Some(format!("{}: {}", path.key(k), deprecated_node_label(k)?))).collect()
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        immutable(&mut e, &Path::new("handler"), &json!(self.handler), &json!(old.handler));
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![self.metadata.name().into(), self.handler.as_str().into(), table::age(&self.metadata, now).into()]
    }
}

fn validate_scheduling(s: &Scheduling, e: &mut ErrorList) {
    let path = Path::new("scheduling");
    e.extend(validate_labels(s.node_selector.as_ref(), &path.child("nodeSelector")));
    let tolerations = s.tolerations.as_deref().unwrap_or_default();
    let at = path.child("tolerations");
    validate_tolerations(tolerations, &at, e);
    for (i, t) in tolerations.iter().enumerate() {
        if tolerations[..i].contains(t) {
            e.duplicate(&at.index(i), json!(t));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(value: Value) -> RuntimeClass {
        <RuntimeClass as Kind>::from_value(value).unwrap()
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_have_upstreams_words() {
        let good = class(
            json!({"metadata": {"name": "r"}, "handler": "runc", "overhead": {"podFixed": {"memory": "1024Ki"}}}),
        );
        assert!(good.validate().is_empty(), "{:?}", good.validate());
        assert_eq!(json!(good.overhead), json!({"podFixed": {"memory": "1Mi"}}));
        assert_eq!(&good.cells(Timestamp::UNIX_EPOCH)[..2], &[json!("r"), json!("runc")]);
        let t = json!({"key": "k", "operator": "Exists"});
        let bad = class(json!({"handler": "a.b", "overhead": {"podFixed": {"cpu": "-1"}},
            "scheduling": {"tolerations": [t, t]}}));
        assert_eq!(
            texts(&bad.validate()),
            [
                "handler: Invalid value: \"a.b\": must not contain dots",
                "overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
                "scheduling.tolerations[1]: Duplicate value: {\"key\":\"k\",\"operator\":\"Exists\"}",
            ]
        );
        let other = class(json!({"handler": "kata"}));
        assert_eq!(texts(&other.validate_update(&good)), ["handler: Invalid value: \"kata\": field is immutable"]);
    }
}
