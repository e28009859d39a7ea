//! Single behaviours, as one sees them with kubectl.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::apply::*;
use crate::schema::{Definitions, Schema};

const T0: &str = "2026-01-01T00:00:00Z";
const T1: &str = "2026-01-01T00:00:01Z";
const T2: &str = "2026-01-01T00:00:02Z";

fn deployments() -> FieldManager<'static> {
    manager_of("apps/v1", "Deployment", "")
}

fn manager_of(api_version: &'static str, kind: &'static str, subresource: &'static str) -> FieldManager<'static> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    FieldManager {
        schema: Definitions::builtin().schema_for(group, version, kind).unwrap(),
        api_version,
        kind,
        subresource,
        reset_fields: None,
        versions: &SingleVersion,
    }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n"}, "spec": spec})
}

fn with_uid(mut object: Value) -> Value {
    object["metadata"]["uid"] = json!("u");
    object
}

/// The manager, operation, time and fields of each entry.
fn entries(object: &Value) -> Vec<(String, String, String, Value)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|entry| {
            assert_eq!(entry["fieldsType"], "FieldsV1");
            (text(&entry["manager"]), text(&entry["operation"]), text(&entry["time"]), entry["fieldsV1"].clone())
        })
        .collect()
}

#[test]
fn create_and_update_are_tracked() {
    let manager = deployments();
    let created = manager.update(None, deployment(json!({"replicas": 1})), "kubectl-create", T0);
    let own = json!({"f:spec": {"f:replicas": {}}});
    assert_eq!(entries(&created), [("kubectl-create".into(), "Update".into(), T0.into(), own.clone())]);
    let live = with_uid(created);
    // The entry survives clients that do not send it, and nothing changes when nothing does.
    let same = manager.update(Some(&live), with_uid(deployment(json!({"replicas": 1}))), "other", T1);
    assert_eq!(same, live);
    let scaled = manager.update(Some(&live), with_uid(deployment(json!({"replicas": 2}))), "other", T1);
    assert_eq!(entries(&scaled), [("other".into(), "Update".into(), T1.into(), own)]);
    // A second write by the same manager joins its entry.
    let paused = with_uid(deployment(json!({"replicas": 2, "paused": true})));
    let paused = manager.update(Some(&scaled), paused, "other", T2);
    let both = json!({"f:spec": {"f:paused": {}, "f:replicas": {}}});
    assert_eq!(entries(&paused), [("other".into(), "Update".into(), T2.into(), both)]);
    // Reset: nobody owns anything, until someone applies.
    let mut reset = paused.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    let reset = manager.update(Some(&paused), reset, "other", T2);
    assert_eq!(entries(&reset), []);
    let again = manager.update(Some(&reset), with_uid(deployment(json!({"replicas": 7}))), "other", T2);
    assert_eq!(entries(&again), []);
    let applied =
        manager.apply_anew(Some(again.clone()), &deployment(json!({"paused": true})), "one", false, T2).unwrap();
    let names: Vec<String> = entries(&applied).into_iter().map(|entry| entry.0).collect();
    assert_eq!(names, ["one", "before-first-apply"]);
}

#[test]
fn what_changes_nothing_is_told() {
    let manager = deployments();
    let config = deployment(json!({"replicas": 1}));
    let again = |live: &Value| manager.apply(Some(live.clone()), &config, "one", false, T2).unwrap();
    let live = with_uid(manager.apply_anew(None, &config, "one", false, T0).unwrap());
    assert_eq!(again(&live), None);
    let mut paused = live.clone();
    paused["spec"]["paused"] = json!(true);
    let live = manager.update(Some(&live), paused, "two", T1);
    assert_eq!(again(&live), None, "others may own what they like");
    // Entries that would be written otherwise are.
    let mut turned = live.clone();
    turned["metadata"]["managedFields"].as_array_mut().unwrap().reverse();
    assert_eq!(again(&turned), Some(live.clone()));
    let mut doubled = live.clone();
    let entries = doubled["metadata"]["managedFields"].as_array_mut().unwrap();
    entries.insert(1, entries[0].clone());
    assert_eq!(again(&doubled), Some(live.clone()));
    // Client-side apply looks for its annotation, always.
    let kubectl = with_uid(manager.apply_anew(None, &config, "kubectl", false, T0).unwrap());
    let same = manager.apply(Some(kubectl.clone()), &config, "kubectl", false, T2).unwrap();
    assert_eq!(same, Some(kubectl));
    let two = deployment(json!({"replicas": 2}));
    assert!(manager.apply(Some(live), &two, "one", false, T2).unwrap().is_some());
}

#[test]
fn conflicts_name_their_field() {
    let manager = deployments();
    let containers = |image: &str| json!({"containers": [{"name": "nginx", "image": image}]});
    let spec = |replicas: i32, image: &str| json!({"replicas": replicas, "template": {"spec": containers(image)}});
    let live = with_uid(manager.update(None, deployment(spec(1, "a")), "kubectl-client-side-apply", T0));
    let error =
        manager.apply_anew(Some(live.clone()), &deployment(json!({"replicas": 2})), "me", false, T1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let ApplyError::Conflict(conflicts) = error else { panic!() };
    assert_eq!(conflicts[0].message(), "conflict with \"kubectl-client-side-apply\" using apps/v1");
    assert_eq!(conflicts[0].field, ".spec.replicas");
    let error = manager.apply_anew(Some(live.clone()), &deployment(spec(2, "b")), "me", false, T1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n\
         - .spec.replicas\n- .spec.template.spec.containers[name=\"nginx\"].image"
    );
    let forced = manager.apply_anew(Some(live.clone()), &deployment(spec(2, "b")), "me", true, T1).unwrap();
    assert_eq!(forced["spec"], spec(2, "b"));
    // The other keeps what did not change, and what is there in every container.
    let left = json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {
        "k:{\"name\":\"nginx\"}": {".": {}, "f:name": {}, "f:resources": {}}}}}}});
    assert_eq!(entries(&forced)[1], ("kubectl-client-side-apply".into(), "Update".into(), T0.into(), left));
    let scale = FieldManager { subresource: "scale", ..manager };
    let scaled = scale.update(Some(&forced), with_uid(deployment(spec(5, "b"))), "autoscaler", T2);
    let error = manager.apply_anew(Some(scaled.clone()), &deployment(spec(2, "b")), "me", false, T2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"autoscaler\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn what_is_no_longer_applied_goes() {
    let manager = manager_of("v1", "Pod", "");
    let pod = |containers: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}});
    let ports = json!([{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]);
    let first = pod(json!([{"name": "a", "ports": ports}, {"name": "b", "env": [{"name": "x", "value": "1"}]}]));
    let live = manager.apply_anew(None, &first, "one", false, T0).unwrap();
    let owned = &entries(&live)[0].3["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"]["f:ports"];
    assert_eq!(
        *owned,
        json!({
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}},
            "k:{\"containerPort\":80,\"protocol\":\"UDP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}},
        })
    );
    // Defaults the server adds belong to nobody and do not keep an item alive.
    let mut defaulted = with_uid(live);
    defaulted["spec"]["containers"][0]["ports"][0]["protocol"] = json!("TCP");
    defaulted["spec"]["containers"][1]["terminationMessagePath"] = json!("/dev/log");
    let smaller = pod(json!([{"name": "a", "ports": [{"containerPort": 80, "protocol": "UDP"}]}]));
    let live = manager.apply_anew(Some(defaulted.clone()), &smaller, "one", false, T1).unwrap();
    assert_eq!(live["spec"], smaller["spec"]);
    // Another owner keeps the item.
    let live =
        manager.apply_anew(Some(with_uid(live)), &pod(json!([{"name": "a", "tty": true}])), "two", false, T1).unwrap();
    let live = manager.apply_anew(Some(live.clone()), &pod(json!([{"name": "z"}])), "one", false, T2).unwrap();
    assert_eq!(live["spec"]["containers"], json!([{"name": "a", "tty": true}, {"name": "z"}]));
    // Nothing applied any more: the entry goes with its fields.
    let nothing = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
    let live = manager.apply_anew(Some(live.clone()), &nothing, "one", false, T2).unwrap();
    assert_eq!(live["spec"]["containers"], json!([{"name": "a", "tty": true}]));
    assert_eq!(entries(&live).len(), 1);
}

#[test]
fn shared_values_need_no_force_and_time_stays() {
    let manager = deployments();
    let config = deployment(json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}}}));
    let live = with_uid(manager.apply_anew(None, &config, "one", false, T0).unwrap());
    assert_eq!(manager.apply_anew(Some(live.clone()), &config, "one", false, T1).unwrap(), live);
    let shared = manager.apply_anew(Some(live.clone()), &deployment(json!({"replicas": 1})), "two", false, T1).unwrap();
    assert_eq!(entries(&shared).len(), 2);
    // The selector is atomic: it is owned and replaced whole.
    assert_eq!(entries(&live)[0].3["f:spec"], json!({"f:replicas": {}, "f:selector": {}}));
    let alone =
        manager.apply_anew(Some(shared.clone()), &deployment(json!({"paused": true})), "one", false, T2).unwrap();
    assert_eq!(alone["spec"], json!({"paused": true, "replicas": 1}));
}

#[test]
fn wrong_requests() {
    let manager = deployments();
    let text = |config: &Value| manager.apply_anew(None, config, "one", false, T0).unwrap_err();
    let mut other = deployment(json!({}));
    other["apiVersion"] = json!("v1");
    assert_eq!(text(&other), ApplyError::BadRequest("invalid object type: /v1, Kind=Deployment".into()));
    let mut owned = deployment(json!({}));
    owned["metadata"]["managedFields"] = json!([]);
    assert_eq!(text(&owned), ApplyError::BadRequest("metadata.managedFields must be nil".into()));
    for (spec, expected) in [
        (json!({"foo": 1}), ".spec.foo: field not declared in schema"),
        (json!({"replicas": "1"}), ".spec.replicas: expected numeric (int or float), got string"),
        (
            json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}),
            ".spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (
            json!({"template": {"spec": {"containers": [{"image": "a"}]}}}),
            ".spec.template.spec.containers: element 0: associative list with keys has an element that omits all key \
             fields [\"name\"] (and doesn't have default values for any key fields)",
        ),
    ] {
        let prefix = "failed to create typed patch object (n/d; apps/v1, Kind=Deployment)";
        assert_eq!(text(&deployment(spec)), ApplyError::Unfit(format!("{prefix}: {expected}")));
    }
    let mut damaged = deployment(json!({}));
    for (entry, expected) in [
        (json!({"operation": "Grow"}), "operation must be `Apply` or `Update`"),
        (json!({"operation": "Apply"}), "apiVersion must not be empty"),
        (json!({"operation": "Apply", "apiVersion": "v1"}), "missing fieldsType in managed fields entry 0"),
        (
            json!({"operation": "Apply", "apiVersion": "v1", "fieldsType": "V2"}),
            "invalid fieldsType \"V2\" in managed fields entry 0",
        ),
    ] {
        damaged["metadata"]["managedFields"] = json!([entry]);
        let error = manager.apply_anew(Some(damaged.clone()), &deployment(json!({})), "one", false, T0).unwrap_err();
        assert_eq!(error.to_string(), format!("failed to decode managed fields: {expected}"));
    }
}

#[test]
fn status_is_not_owned_through_the_main_resource() {
    let reset = FieldSet::from_paths(&[&["status"]]);
    let manager = FieldManager { reset_fields: Some(&reset), ..deployments() };
    let mut config = deployment(json!({"replicas": 1}));
    config["status"] = json!({"replicas": 5});
    let live = manager.apply_anew(None, &config, "one", false, T0).unwrap();
    assert_eq!(entries(&live)[0].3, json!({"f:spec": {"f:replicas": {}}}));
    let updated = manager.update(None, config, "two", T0);
    assert_eq!(entries(&updated)[0].3, json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn from_client_side_to_server_side_apply() {
    let manager = deployments();
    let last = deployment(json!({"replicas": 1, "paused": true}));
    let mut created = last.clone();
    created["metadata"]["annotations"] = json!({LAST_APPLIED_ANNOTATION: format!("{last}\n")});
    let live = with_uid(manager.update(None, created, "kubectl-client-side-apply", T0));
    let config = deployment(json!({"replicas": 3, "paused": true}));
    assert!(matches!(manager.apply_anew(Some(live.clone()), &config, "me", false, T1), Err(ApplyError::Conflict(_))));
    let applied = manager.apply_anew(Some(live.clone()), &config, "kubectl", false, T1).unwrap();
    assert_eq!(applied["spec"]["replicas"], 3);
    assert_eq!(applied["metadata"]["annotations"][LAST_APPLIED_ANNOTATION], json!(format!("{config}\n")));
    // What others changed since is a conflict still.
    let scaled = manager.update(Some(&live), with_uid(deployment(json!({"replicas": 9, "paused": true}))), "hpa", T1);
    let mut scaled = scaled;
    scaled["metadata"]["annotations"] = live["metadata"]["annotations"].clone();
    let error = manager.apply_anew(Some(scaled.clone()), &config, "kubectl", false, T1).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"hpa\" using apps/v1: .spec.replicas");
}

#[test]
fn old_update_entries_are_merged() {
    let manager = manager_of("v1", "ConfigMap", "");
    let mut live = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "uid": "u"}});
    live = manager.update(None, live, "creator", T0);
    live["metadata"]["uid"] = json!("u");
    let mut data = serde_json::Map::new();
    for index in 0..30 {
        let key = format!("k{index:02}");
        data.insert(key, json!("v"));
        let mut next = live.clone();
        next["data"] = Value::Object(data.clone());
        let now = format!("2026-01-01T00:00:{index:02}Z");
        if index == 0 {
            live = manager.update(None, next, &format!("m{index:02}"), &now);
        } else {
            live = manager.update(Some(&live), next, &format!("m{index:02}"), &now);
        }
    }
    let list = entries(&live);
    assert_eq!(list.len(), UPDATE_MANAGERS_MAX);
    assert_eq!(list[0].0, "ancient-changes");
    let owned: usize = list.iter().map(|entry| FieldSet::from_fields_v1(&entry.3).unwrap().len()).sum();
    // Each key once, and the map itself by whom first wrote it.
    assert_eq!(owned, 30 + 1);
}

/// Two versions of one kind: in `v2` the field is called `size` and counts in tens.
struct TwoVersions(Definitions);

impl Versions for TwoVersions {
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        let mut object = object.clone();
        let spec = object.get_mut("spec").and_then(Value::as_object_mut);
        if let Some(spec) = spec {
            let amount = spec.remove("count").or_else(|| spec.remove("size"));
            if let Some(amount) = amount {
                spec.insert(if api_version == "g/v2" { "size" } else { "count" }.to_owned(), amount);
            }
        }
        object["apiVersion"] = json!(api_version);
        matches!(api_version, "g/v1" | "g/v2").then_some(object)
    }

    fn schema(&self, api_version: &str) -> Option<Schema<'_>> {
        (api_version == "g/v2").then(|| self.0.schema_for("g", "v2", "K").unwrap())
    }
}

#[test]
fn owners_of_another_version() {
    let type_with = |field: &str, version: &str| {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            field: {"type": "integer"}, "other": {"type": "string"}}}}});
        Definitions::for_custom_resource("g", version, "K", &schema).unwrap()
    };
    let one = type_with("count", "v1");
    let versions = TwoVersions(type_with("size", "v2"));
    let first = FieldManager {
        schema: one.schema_for("g", "v1", "K").unwrap(),
        api_version: "g/v1",
        kind: "K",
        subresource: "",
        reset_fields: None,
        versions: &versions,
    };
    let mut live = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"uid": "u"}, "spec": {"count": 1}});
    live["metadata"]["managedFields"] = json!([
        {"manager": "a", "operation": "Apply", "apiVersion": "g/v2", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:size": {}}}},
        {"manager": "b", "operation": "Update", "apiVersion": "g/v0", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:n": {}}}},
    ]);
    let config = |spec: Value| json!({"apiVersion": "g/v1", "kind": "K", "spec": spec});
    let error = first.apply_anew(Some(live.clone()), &config(json!({"count": 2})), "c", false, T0).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .spec.size");
    // The same manager in the older version: what it had as `size` goes, and the version not served is forgotten.
    let moved = first.apply_anew(Some(live.clone()), &config(json!({"other": "x"})), "a", false, T1).unwrap();
    assert_eq!(moved["spec"], json!({"other": "x"}));
    assert_eq!(entries(&moved).len(), 1);
    assert_eq!(moved["metadata"]["managedFields"][0]["apiVersion"], "g/v1");
}

#[test]
fn set_operations() {
    let set = |value: Value| FieldSet::from_fields_v1(&value).unwrap();
    let a =
        set(json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}, "k:{\"n\":1}": {}, "v:\"x\"": {}, "i:0": {}, "z:q": {}}));
    let b = set(json!({"f:b": {}, "v:\"x\"": {}}));
    assert_eq!(a.len(), 6);
    assert_eq!(a.intersection(&b), b);
    assert_eq!(a.union(&b), a);
    assert_eq!(a.difference(&b), set(json!({"f:a": {}, "f:b": {"f:c": {}}, "k:{\"n\":1}": {}, "i:0": {}})));
    assert_eq!(a.recursive_difference(&b), set(json!({"f:a": {}, "k:{\"n\":1}": {}, "i:0": {}})));
    assert_eq!(a.leaves().len(), 5);
    let shown: Vec<String> = a.paths().iter().map(|path| path.iter().map(ToString::to_string).collect()).collect();
    assert_eq!(shown, [".a", ".b", "[n=1]", "[=\"x\"]", "[0]", ".b.c"]);
    for bad in [json!({"f": {}}), json!({"fx": {}}), json!({"k:1": {}}), json!({"i:x": {}}), json!({"f:a": 1})] {
        assert!(FieldSet::from_fields_v1(&bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn fields_v1_never_panics(keys in proptest::collection::vec("(.{0,3}|[fkvi.]:.{0,6})", 0..5), inner in "[fkvi]:.{0,3}") {
        let map: serde_json::Map<String, Value> = keys.into_iter().map(|key| (key, json!({inner.clone(): {}}))).collect();
        if let Ok(set) = FieldSet::from_fields_v1(&Value::Object(map)) {
            prop_assert_eq!(FieldSet::from_fields_v1(&set.to_fields_v1()).unwrap(), set);
        }
    }
}
