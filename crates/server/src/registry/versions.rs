//! The versions of the built-in kinds that have several, for the owners of fields that wrote through another one.

use gantry_api::kind::Resource;
use gantry_api::kinds;
use gantry_api::meta::object::split_api_version;
use gantry_schema::apply::Versions;
use gantry_schema::{Definitions, Schema};
use serde_json::Value;

/// A built-in kind, in all the versions and groups that share its stored objects.
pub(super) struct BuiltIn<'a>(pub(super) &'a dyn Resource);

impl BuiltIn<'_> {
    fn other(&self, api_version: &str) -> Option<&'static dyn Resource> {
        let own = self.0.info();
        let (group, version) = split_api_version(api_version);
        kinds::find(group, version, own.plural).filter(|other| other.info().storage_group == own.storage_group)
    }
}

impl Versions for BuiltIn<'_> {
    /// Each version reads what the others write.
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        Some(self.other(api_version)?.decode_value(object.clone()).ok()?.to_value())
    }

    fn schema(&self, api_version: &str) -> Option<Schema<'_>> {
        let info = self.other(api_version)?.info();
        Definitions::builtin().schema_for(info.group, info.version, info.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_kind_is_read_in_each_of_its_versions_and_no_other() {
        let kind = |group, version, plural| kinds::find(group, version, plural).expect("a built-in kind");
        let scaler = BuiltIn(kind("autoscaling", "v1", "horizontalpodautoscalers"));
        let first = json!({
            "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "minReplicas": 1, "targetCPUUtilizationPercentage": 50,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}},
        });
        let second = scaler.convert(&first, "autoscaling/v2").unwrap();
        assert_eq!(second["apiVersion"], "autoscaling/v2");
        assert_eq!(second["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
        assert_eq!(scaler.convert(&second, "autoscaling/v1").unwrap(), first);
        assert!(scaler.schema("autoscaling/v2").is_some());
        for stranger in ["autoscaling/v3", "apps/v1", "v1"] {
            assert!(scaler.convert(&first, stranger).is_none() && scaler.schema(stranger).is_none(), "{stranger}");
        }
        let event = BuiltIn(kind("", "v1", "events"));
        assert!(event.schema("events.k8s.io/v1").is_some() && event.schema("v1").is_some());
    }
}
