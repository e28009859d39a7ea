//! Ownership of `spec.replicas`, seen from the `scale` subresource: a manager of the field in the scalable object is a
//! manager of the field in its Scale, and the other way round.

use serde_json::Value;

use super::managed::{self, Managed, ManagerId, Owned};
use super::manager::ApplyError;
use super::path::PathElement;
use super::set::FieldSet;

/// The version a Scale has.
pub const SCALE_API_VERSION: &str = "autoscaling/v1";

fn owners_of(object: &Value) -> Result<Managed, ApplyError> {
    let entries = managed::entries(object).cloned();
    managed::decode(entries, false)
        .map_err(|error| ApplyError::Unfit(format!("failed to decode managed fields: {error}")))
}

fn replicas_of_scale() -> Vec<PathElement> {
    vec![PathElement::field("spec"), PathElement::field("replicas")]
}

fn only(path: &[PathElement]) -> FieldSet {
    let mut set = FieldSet::new();
    set.insert(path);
    set
}

/// The same manager in another version. Who applies is the same in every version.
fn in_version(id: &ManagerId, api_version: &str) -> ManagerId {
    ManagerId::new(&id.manager, id.applied, api_version, &id.subresource)
}

/// Sets `metadata.managedFields` of a Scale to the owners of `replicas` in the object it stands for.
///
/// # Errors
/// [`ApplyError::Unfit`] where the object's entries are malformed.
pub fn owners_to_scale(object: &Value, scale: &mut Value, replicas: &[PathElement]) -> Result<(), ApplyError> {
    let owners = owners_of(object)?.into_iter().filter(|(_, owned)| owned.set.has(replicas)).map(|(id, owned)| {
        let set = only(&replicas_of_scale());
        (in_version(&id, SCALE_API_VERSION), Owned::new(SCALE_API_VERSION, set, owned.time))
    });
    managed::encode(scale, owners.collect());
    Ok(())
}

/// Brings the owners of a written Scale back into the object: who lost `replicas` loses it there, who won it has an
/// entry of `api_version`. As upstream's, such an entry has no time.
///
/// # Errors
/// [`ApplyError::Unfit`] where entries are malformed.
pub fn owners_from_scale(
    scale: &Value,
    object: &mut Value,
    api_version: &str,
    replicas: &[PathElement],
) -> Result<(), ApplyError> {
    let mut of_scale = owners_of(scale)?;
    of_scale.retain(|_, owned| owned.set.has(&replicas_of_scale()));
    let mut owners = owners_of(object)?;
    let path = only(replicas);
    owners.retain(|id, owned| {
        if owned.set.has(replicas) && of_scale.remove(&in_version(id, SCALE_API_VERSION)).is_none() {
            owned.set = owned.set.difference(&path);
        }
        !owned.set.is_empty()
    });
    for id in of_scale.into_keys() {
        let id = in_version(&id, api_version);
        owners.insert(id, Owned::new(api_version, path.clone(), None));
    }
    managed::encode(object, owners);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replicas() -> [PathElement; 2] {
        ["spec", "replicas"].map(PathElement::field)
    }

    fn entry(manager: &str, operation: &str, api_version: &str, fields: &Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": api_version, "fieldsType": "FieldsV1",
            "fieldsV1": fields, "time": "2026-01-02T03:04:05Z"})
    }

    fn deployment() -> Value {
        json!({"metadata": {"managedFields": [
            entry("applier", "Apply", "apps/v1", &json!({"f:spec": {"f:replicas": {}, "f:paused": {}}})),
            entry("other", "Update", "apps/v1", &json!({"f:spec": {"f:paused": {}}})),
            entry("updater", "Update", "apps/v1", &json!({"f:spec": {"f:replicas": {}}})),
        ]}})
    }

    fn summary(object: &Value) -> Vec<String> {
        let one = |e: &Value| format!("{} {} {}", e["manager"], e["apiVersion"], e["fieldsV1"]).replace('"', "");
        object["metadata"]["managedFields"].as_array().into_iter().flatten().map(one).collect()
    }

    #[test]
    fn owners_of_replicas_own_them_in_the_scale() {
        let mut scale = json!({});
        owners_to_scale(&deployment(), &mut scale, &replicas()).unwrap();
        let fields = "{f:spec:{f:replicas:{}}}";
        let want = ["applier", "updater"].map(|manager| format!("{manager} autoscaling/v1 {fields}"));
        assert_eq!(summary(&scale), want);
        // And back, where nothing changed, everything is as it was.
        let mut object = deployment();
        owners_from_scale(&scale, &mut object, "apps/v1", &replicas()).unwrap();
        assert_eq!(object, deployment());
    }

    #[test]
    fn who_wins_them_takes_them_from_the_others() {
        let mut entry = entry("winner", "Apply", SCALE_API_VERSION, &json!({"f:spec": {"f:replicas": {}}}));
        entry["subresource"] = "scale".into();
        let scale = json!({"metadata": {"managedFields": [entry]}});
        let mut object = deployment();
        owners_from_scale(&scale, &mut object, "apps/v1", &replicas()).unwrap();
        let mut got = summary(&object);
        got.sort();
        let want = [
            "applier apps/v1 {f:spec:{f:paused:{}}}",
            "other apps/v1 {f:spec:{f:paused:{}}}",
            "winner apps/v1 {f:spec:{f:replicas:{}}}",
        ];
        assert_eq!(got, want);
        let won = object["metadata"]["managedFields"].as_array().unwrap().iter().find(|e| e["manager"] == "winner");
        assert_eq!((won.unwrap().get("time"), &won.unwrap()["subresource"]), (None, &json!("scale")));
    }
}
