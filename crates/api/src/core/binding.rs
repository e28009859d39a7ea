//! Binding: the assignment of a pod to a node.

use crate::kind::{Kind, ResourceInfo, Verb};
use crate::meta::field::{ErrorList, Path};
use crate::meta::text;
use k8s_openapi::api::core::v1::Binding;

impl Kind for Binding {
    const INFO: ResourceInfo = ResourceInfo {
        verbs: &[Verb::Create],
        virtual_only: true,
        ..ResourceInfo::new("", "v1", "Binding", "bindings", "binding", true)
    };
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        let path = Path::new("target");
        if !matches!(text(&self.target.kind), "" | "Node") {
            errors.not_supported(&path.child("kind"), text(&self.target.kind), &["Node", "<empty>"]);
        }
        if text(&self.target.name).is_empty() {
            errors.required(&path.child("name"), "");
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_target_is_a_named_node() {
        let b = <Binding as Kind>::from_value(json!({"target": {"kind": "Pod"}})).unwrap();
        let texts: Vec<String> = b.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\"",
                "target.name: Required value",
            ]
        );
    }
}
