//! Empty lists and maps of optional fields mean the same as absent ones: Go's `omitempty` never writes them.

use super::{Rest, Schema, Shape};
use serde_json::Value;

impl Schema<'_> {
    /// Removes the optional fields that hold an empty list or an empty map, at any depth. An empty object of declared
    /// fields says something (`emptyDir: {}`) and stays, and so does what the schema requires or does not know.
    pub fn drop_empty(self, value: &mut Value) {
        match (self.shape(), value) {
            (Shape::List(list), Value::Array(items)) => items.iter_mut().for_each(|item| list.items.drop_empty(item)),
            (Shape::Object(object), Value::Object(map)) => map.retain(|key, value| match object.field(key) {
                Some(field) => {
                    field.schema.drop_empty(value);
                    field.required || !field.schema.is_empty_collection(value)
                }
                None => {
                    if let Rest::Values(values) = object.rest() {
                        values.drop_empty(value);
                    }
                    true
                }
            }),
            _ => {}
        }
    }

    fn is_empty_collection(self, value: &Value) -> bool {
        match (self.shape(), value) {
            (Shape::List(_), Value::Array(items)) => items.is_empty(),
            (Shape::Object(object), Value::Object(map)) => {
                map.is_empty() && !object.has_fields() && matches!(object.rest(), Rest::Values(_))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::schema::Definitions;
    use serde_json::json;

    #[test]
    fn what_says_nothing_goes_and_what_says_something_stays() {
        let pod = Definitions::builtin().schema_for("", "v1", "Pod").unwrap();
        let mut value = json!({
            "metadata": {"name": "p", "labels": {}, "annotations": {"a": ""}, "finalizers": []},
            "spec": {
                "containers": [{"name": "c", "env": [], "resources": {"limits": {}, "requests": {"cpu": "1"}}}],
                "nodeSelector": {},
                "volumes": [{"name": "v", "emptyDir": {}}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
                "unknown": [],
            },
            "status": {},
        });
        pod.drop_empty(&mut value);
        let left = json!({
            "metadata": {"name": "p", "annotations": {"a": ""}},
            "spec": {
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
                "unknown": [],
            },
            "status": {},
        });
        assert_eq!(value, left);
        let mut list = json!({"metadata": {"name": "p"}, "spec": {"containers": []}});
        let before = list.clone();
        pod.drop_empty(&mut list);
        assert_eq!(list, before, "a required list stays");
    }
}
