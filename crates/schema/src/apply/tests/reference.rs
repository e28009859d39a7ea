//! Random sequences of applies and updates against a slow model that knows objects only as tables from leaf paths to
//! values, and ownership only as sets of leaf paths.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::apply::*;
use crate::schema::Definitions;

const NOW: &str = "2026-01-01T00:00:00Z";

fn definitions() -> Definitions {
    let item = json!({"type": "object", "properties": {
        "name": {"type": "string"},
        "proto": {"type": "string", "default": "TCP"},
        "x": {"type": "integer"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    }});
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "a": {"type": "integer"},
        "b": {"type": "string"},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "integer"}},
        "plain": {"type": "array", "items": {"type": "integer"}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "proto"], "items": item},
        "free": {"x-kubernetes-preserve-unknown-fields": true, "type": "object"},
    }}}});
    Definitions::for_custom_resource("g", "v1", "K", &schema).unwrap()
}

/// The leaves of an object of the type above. Written apart from the code under test: by hand for this one type.
fn leaves(object: &Value) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    let empty = Map::new();
    let spec = object["spec"].as_object().unwrap_or(&empty);
    for (name, value) in spec {
        let path = format!(".spec.{name}");
        match name.as_str() {
            "map" => {
                for (key, value) in value.as_object().unwrap() {
                    out.insert(format!("{path}.{key}"), value.clone());
                }
            }
            "set" => {
                for item in value.as_array().unwrap() {
                    out.insert(format!("{path}[={item}]"), item.clone());
                }
            }
            "list" => {
                for item in value.as_array().unwrap() {
                    let proto = item.get("proto").cloned().unwrap_or(json!("TCP"));
                    let path = format!("{path}[name={},proto={proto}]", item["name"]);
                    // An item is owned as such: who gives it up takes it away, with all that others put into it.
                    out.insert(path.clone(), Value::Null);
                    for (name, value) in item.as_object().unwrap() {
                        if name == "labels" {
                            for (key, value) in value.as_object().unwrap() {
                                out.insert(format!("{path}.labels.{key}"), value.clone());
                            }
                        } else {
                            out.insert(format!("{path}.{name}"), value.clone());
                        }
                    }
                }
            }
            "free" => {
                for (key, value) in value.as_object().unwrap() {
                    out.insert(format!("{path}.{key}"), value.clone());
                }
            }
            _ => {
                out.insert(path, value.clone());
            }
        }
    }
    out
}

/// Owned leaf paths per manager and operation, read from an object's entries.
fn owned(object: &Value) -> BTreeMap<(String, bool), BTreeSet<String>> {
    let mut out = BTreeMap::new();
    for entry in object["metadata"]["managedFields"].as_array().into_iter().flatten() {
        let set = FieldSet::from_fields_v1(&entry["fieldsV1"]).unwrap();
        let paths: Vec<String> =
            set.paths().iter().map(|path| path.iter().map(ToString::to_string).collect()).collect();
        let item = |path: &str| path.ends_with(']') && path.contains(".list[");
        let counted = |path: &&String| {
            item(path)
                || !paths
                    .iter()
                    .any(|other| other.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with(['.', '['])))
        };
        // Containers that came into being with their content are not in the model.
        let container = |path: &&String| {
            [".spec", ".spec.map", ".spec.set", ".spec.list", ".spec.free"].contains(&path.as_str())
                || path.ends_with(".labels")
        };
        let leaves: BTreeSet<String> = paths.iter().filter(counted).filter(|path| !container(path)).cloned().collect();
        if !leaves.is_empty() {
            let id = (entry["manager"].as_str().unwrap().to_owned(), entry["operation"] == "Apply");
            out.insert(id, leaves);
        }
    }
    out
}

#[derive(Debug, Clone)]
struct Step {
    manager: String,
    apply: bool,
    force: bool,
    spec: Value,
}

#[derive(Default)]
struct Model {
    values: BTreeMap<String, Value>,
    owned: BTreeMap<(String, bool), BTreeSet<String>>,
}

impl Model {
    /// Whether the step is accepted; a refused one changes nothing.
    fn step(&mut self, step: &Step, object: &Value) -> bool {
        let wanted = leaves(object);
        let id = (step.manager.clone(), step.apply);
        let others = |owned: &BTreeMap<(String, bool), BTreeSet<String>>, path: &str| {
            owned.iter().any(|(other, paths)| *other != id && paths.contains(path))
        };
        let mut next = if step.apply { self.values.clone() } else { BTreeMap::new() };
        if step.apply {
            let conflict = wanted.iter().any(|(path, value)| {
                self.values.get(path).is_some_and(|old| old != value) && others(&self.owned, path)
            });
            if conflict && !step.force {
                return false;
            }
            let last = self.owned.get(&id).cloned().unwrap_or_default();
            for path in last {
                if !wanted.contains_key(&path) && !others(&self.owned, &path) {
                    let below = format!("{path}.");
                    next.retain(|other, _| *other != path && !other.starts_with(&below));
                }
            }
        }
        next.extend(wanted.clone());
        let changed: BTreeSet<String> = next
            .iter()
            .filter(|(path, value)| self.values.get(*path) != Some(value))
            .map(|(path, _)| path.clone())
            .collect();
        for (other, paths) in &mut self.owned {
            if !step.apply || *other != id {
                paths.retain(|path| next.contains_key(path) && !changed.contains(path));
            }
        }
        let own = self.owned.entry(id).or_default();
        if step.apply {
            *own = wanted.into_keys().collect();
        } else {
            own.extend(changed);
        }
        self.owned.retain(|_, paths| !paths.is_empty());
        self.values = next;
        true
    }
}

/// A spec without empty containers; `keys` limits the names used.
fn spec() -> impl Strategy<Value = Value> {
    let names = || prop_oneof![Just("p"), Just("q"), Just("r")].prop_map(str::to_owned);
    let table = move || proptest::collection::btree_map(names(), 0..3i64, 1..3).prop_map(|map| json!(map));
    let labels = proptest::collection::btree_map(names(), "[xy]", 1..3).prop_map(|map| json!(map));
    let protos = prop_oneof![Just(None), Just(Some("TCP")), Just(Some("UDP"))];
    let item = (names(), protos, proptest::option::of(0..3i64), proptest::option::of(labels)).prop_map(
        |(name, proto, x, labels)| {
            let mut item = json!({"name": name});
            if let Some(proto) = proto {
                item["proto"] = json!(proto);
            }
            if let Some(x) = x {
                item["x"] = json!(x);
            }
            if let Some(labels) = labels {
                item["labels"] = labels;
            }
            item
        },
    );
    let list = proptest::collection::vec(item, 1..4).prop_map(|items| {
        let mut seen = BTreeSet::new();
        let unique: Vec<Value> = items
            .into_iter()
            .filter(|item| {
                seen.insert((item["name"].to_string(), item.get("proto").map_or("\"TCP\"".into(), Value::to_string)))
            })
            .collect();
        json!(unique)
    });
    let set = proptest::collection::btree_set("[uvw]", 1..3).prop_map(|items| json!(items));
    let number = || (0..3i64).prop_map(|number| json!(number));
    (
        proptest::option::of(number()),
        proptest::option::of("[mn]".prop_map(Value::from)),
        proptest::option::of(table()),
        proptest::option::of(table()),
        proptest::option::of(proptest::collection::vec(0..2i64, 1..3).prop_map(|items| json!(items))),
        proptest::option::of(set),
        proptest::option::of(list),
        proptest::option::of(table()),
    )
        .prop_map(|(a, b, map, whole, plain, set, list, free)| {
            let fields = [
                ("a", a),
                ("b", b),
                ("map", map),
                ("whole", whole),
                ("plain", plain),
                ("set", set),
                ("list", list),
                ("free", free),
            ];
            let spec: Map<String, Value> =
                fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
            Value::Object(spec)
        })
}

fn step() -> impl Strategy<Value = Step> {
    let manager = prop_oneof![Just("one"), Just("two"), Just("three")].prop_map(str::to_owned);
    (manager, proptest::bool::weighted(0.8), any::<bool>(), spec()).prop_map(|(manager, apply, force, spec)| Step {
        manager,
        apply,
        force,
        spec,
    })
}

fn object(spec: &Value) -> Value {
    let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "k"}});
    if spec.as_object().is_some_and(|spec| !spec.is_empty()) {
        object["spec"] = spec.clone();
    }
    object
}

fn with_manager<T>(run: impl FnOnce(FieldManager<'_>) -> T) -> T {
    thread_local!(static DEFINITIONS: Definitions = definitions());
    DEFINITIONS.with(|definitions| {
        run(FieldManager {
            schema: definitions.schema_for("g", "v1", "K").unwrap(),
            api_version: "g/v1",
            kind: "K",
            subresource: "",
            reset_fields: None,
            versions: &SingleVersion,
        })
    })
}

/// Sets what is not there, as defaults do: nobody comes to own it.
fn fill(value: &mut Value, defaults: &Value) {
    match (value, defaults) {
        (Value::Object(map), Value::Object(defaults)) => {
            for (name, default) in defaults {
                match map.get_mut(name) {
                    Some(inner) => fill(inner, default),
                    None => drop(map.insert(name.clone(), default.clone())),
                }
            }
        }
        (Value::Array(items), Value::Array(defaults)) => {
            items.iter_mut().zip(defaults).for_each(|(item, default)| fill(item, default));
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn agrees_with_the_model(steps in proptest::collection::vec(step(), 1..8)) {
        with_manager(|manager| -> Result<(), TestCaseError> {
            let mut model = Model::default();
            let mut live: Option<Value> = None;
            for step in &steps {
                let sent = object(&step.spec);
                // An object that exists and has lost all its owners is not tracked; the model always tracks.
                let untracked = live.as_ref().is_some_and(|live| live["metadata"].get("managedFields").is_none());
                if untracked {
                    break;
                }
                let accepted = model.step(step, &sent);
                let outcome = if step.apply {
                    manager.apply_anew(live.clone(), &sent, &step.manager, step.force, NOW)
                } else {
                    Ok(manager.update(live.as_ref(), sent, &step.manager, NOW))
                };
                match outcome {
                    Ok(mut object) => {
                        prop_assert!(accepted, "accepted, the model refuses: {:?}", step);
                        object["metadata"]["uid"] = json!("u");
                        prop_assert_eq!(leaves(&object), model.values.clone(), "values after {:?}", step);
                        prop_assert_eq!(owned(&object), model.owned.clone(), "owners after {:?}", step);
                        live = Some(object);
                    }
                    Err(ApplyError::Conflict(conflicts)) => {
                        prop_assert!(!accepted, "refused, the model accepts: {:?} {:?}", step, conflicts);
                    }
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn apply_is_idempotent(first in step(), second in step()) {
        with_manager(|manager| -> Result<(), TestCaseError> {
            let live = manager.apply_anew(None, &object(&first.spec), "one", true, NOW).unwrap();
            let live = manager.apply_anew(Some(live.clone()), &object(&second.spec), "two", true, NOW).unwrap();
            let again = manager.apply_anew(Some(live.clone()), &object(&second.spec), "two", false, "2027-01-01T00:00:00Z").unwrap();
            prop_assert_eq!(again, live);
            Ok(())
        })?;
    }

    /// What is told to be the same is the same.
    #[test]
    fn nothing_is_only_said_of_nothing(steps in proptest::collection::vec(step(), 1..5), last in step()) {
        const LATER: &str = "2027-01-01T00:00:00Z";
        with_manager(|manager| -> Result<(), TestCaseError> {
            let mut live = None;
            for step in &steps {
                live = Some(manager.apply_anew(live, &object(&step.spec), &step.manager, true, NOW).unwrap());
            }
            for step in steps.last().into_iter().chain([&last]) {
                let (config, name) = (object(&step.spec), &step.manager);
                let wanted = manager.apply_anew(live.clone(), &config, name, true, LATER).unwrap();
                let found = manager.apply(live.clone(), &config, name, true, LATER).unwrap();
                prop_assert_eq!(found.or_else(|| live.clone()), Some(wanted));
            }
            Ok(())
        })?;
    }

    /// The manager itself compares, in tests.
    #[test]
    fn short_ways_lead_where_long_ones_do(first in spec(), second in spec(), unowned in spec(), other in spec()) {
        with_manager(|manager| -> Result<(), TestCaseError> {
            let first = object(&first);
            let live = manager.apply_anew(None, &first, "one", true, NOW).unwrap();
            let mut live = manager.apply_anew(Some(live), &object(&other), "two", true, NOW).unwrap();
            fill(&mut live["spec"], &unowned);
            for config in [first, object(&second)] {
                for name in ["one", "two", "three"] {
                    let applied = manager.apply_anew(Some(live.clone()), &config, name, true, NOW).unwrap();
                    manager.apply_anew(Some(applied), &config, name, true, NOW).unwrap();
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn disjoint_managers_never_conflict(specs in proptest::collection::vec((spec(), spec()), 1..5)) {
        with_manager(|manager| -> Result<(), TestCaseError> {
            // One manager has fields a, map and list, the other the rest.
            let part = |spec: &Value, first: bool| {
                let own = |name: &str| matches!(name, "a" | "map" | "list") == first;
                let map: Map<String, Value> =
                    spec.as_object().unwrap().iter().filter(|(name, _)| own(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
                object(&Value::Object(map))
            };
            let mut live: Option<Value> = None;
            for (one, two) in &specs {
                let (one, two) = (part(one, true), part(two, false));
                let object = manager.apply_anew(live.clone(), &one, "one", false, NOW).unwrap();
                let object = manager.apply_anew(Some(object.clone()), &two, "two", false, NOW).unwrap();
                let mut expected = leaves(&one);
                expected.extend(leaves(&two));
                prop_assert_eq!(leaves(&object), expected);
                live = Some(object);
            }
            Ok(())
        })?;
    }

    #[test]
    fn comparison_agrees_with_the_leaves(old in spec(), new in spec()) {
        with_manager(|manager| -> Result<(), TestCaseError> {
            let (old, new) = (object(&old), object(&new));
            let comparison = compare(&old, &new, manager.schema);
            let (old, new) = (leaves(&old), leaves(&new));
            let shown = |set: &FieldSet| -> BTreeSet<String> {
                set.paths().iter().map(|path| path.iter().map(ToString::to_string).collect()).collect()
            };
            let modified: BTreeSet<String> =
                new.iter().filter(|(path, value)| old.get(*path).is_some_and(|old| old != *value)).map(|(path, _)| path.clone()).collect();
            prop_assert_eq!(shown(&comparison.modified), modified);
            for (path, _) in new.iter().filter(|(path, _)| !old.contains_key(*path)) {
                prop_assert!(shown(&comparison.added).contains(path), "{}", path);
            }
            for (path, _) in old.iter().filter(|(path, _)| !new.contains_key(*path)) {
                prop_assert!(shown(&comparison.removed).contains(path), "{}", path);
            }
            Ok(())
        })?;
    }

    #[test]
    fn applied_items_keep_their_order(live in spec(), config in spec()) {
        with_manager(|manager| -> Result<(), TestCaseError> {
            let live = manager.apply_anew(None, &object(&live), "one", true, NOW).unwrap();
            let config = object(&config);
            let merged = manager.apply_anew(Some(live.clone()), &config, "two", true, NOW).unwrap();
            let names = |object: &Value| -> Vec<(Value, Value)> {
                let items = object["spec"]["list"].as_array().cloned().unwrap_or_default();
                items.iter().map(|item| (item["name"].clone(), item.get("proto").cloned().unwrap_or(json!("TCP")))).collect()
            };
            let wanted = names(&config);
            let found: Vec<_> = names(&merged).into_iter().filter(|name| wanted.contains(name)).collect();
            prop_assert_eq!(found, wanted);
            Ok(())
        })?;
    }
}
