use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::{Definitions, Schema};

fn pod() -> Schema<'static> {
    Definitions::builtin().schema_for("", "v1", "Pod").unwrap()
}

fn deployment() -> Schema<'static> {
    Definitions::builtin().schema_for("apps", "v1", "Deployment").unwrap()
}

#[test]
fn json_patch_operations() {
    let document = json!({"a": {"b": [1, 2, 3]}, "m~n/o": 1});
    for (patch, expected) in [
        (json!([{"op": "add", "path": "/a/b/1", "value": 9}]), json!({"a": {"b": [1, 9, 2, 3]}, "m~n/o": 1})),
        (json!([{"op": "add", "path": "/a/b/-", "value": 9}]), json!({"a": {"b": [1, 2, 3, 9]}, "m~n/o": 1})),
        (json!([{"op": "remove", "path": "/a/b/-1"}]), json!({"a": {"b": [1, 2]}, "m~n/o": 1})),
        (json!([{"op": "remove", "path": "/m~0n~1o"}]), json!({"a": {"b": [1, 2, 3]}})),
        (json!([{"op": "replace", "path": "/a", "value": null}]), json!({"a": null, "m~n/o": 1})),
        (json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": [1, 2, 3], "m~n/o": 1})),
        (json!([{"op": "copy", "from": "/a/b/0", "path": "/c"}]), json!({"a": {"b": [1, 2, 3]}, "c": 1, "m~n/o": 1})),
        (
            json!([{"op": "test", "path": "/a/b/0", "value": 1}, {"op": "test", "path": "/x", "value": null}]),
            document.clone(),
        ),
    ] {
        assert_eq!(json_patch(&document, patch.to_string().as_bytes()).unwrap().value, expected, "{patch}");
    }
    for (patch, expected) in [
        (
            json!([{"op": "replace", "path": "/x", "value": 1}]),
            "replace operation does not apply: doc is missing key: /x: missing value",
        ),
        (
            json!([{"op": "replace", "path": "/x/y", "value": 1}]),
            "replace operation does not apply: doc is missing path: /x/y: missing value",
        ),
        (
            json!([{"op": "remove", "path": "/x"}]),
            "error in remove for path: '/x': Unable to remove nonexistent key: x: missing value",
        ),
        (json!([{"op": "test", "path": "/a/b/0", "value": 2}]), "testing value /a/b/0 failed: test failed"),
        (
            json!([{"op": "add", "path": "/a/b/7", "value": 2}]),
            "error in add for path: '/a/b/7': Unable to access invalid index: 7: invalid index referenced",
        ),
        (json!([{"op": "grow", "path": "/a"}]), "Unexpected kind: grow"),
        (json!([{"op": "add", "value": 1}]), "add operation failed to decode path: missing value"),
    ] {
        let error = json_patch(&document, patch.to_string().as_bytes()).unwrap_err();
        assert_eq!(error, PatchError::Rejected { why: expected.to_owned() });
    }
    let many = vec![json!({"op": "test", "path": "/x", "value": null}); OPERATIONS_MAX + 1];
    assert_eq!(
        json_patch(&document, Value::from(many).to_string().as_bytes()).unwrap_err(),
        PatchError::TooLarge("The allowed maximum operations in a JSON patch is 10000, got 10001".to_owned())
    );
    let growing = json!([{"op": "add", "path": "/s", "value": "x".repeat(1 << 20)},
        {"op": "copy", "from": "/s", "path": "/t"}, {"op": "copy", "from": "/s", "path": "/u"}, {"op": "copy", "from": "/s", "path": "/v"}]);
    assert!(matches!(json_patch(&document, growing.to_string().as_bytes()), Err(PatchError::Rejected { .. })));
    // Nesting by many small additions, and by replacing the innermost again and again.
    for op in ["add", "replace"] {
        let mut path = "/a".to_owned();
        let mut nesting = vec![json!({"op": "add", "path": path, "value": {"a": {}}})];
        for _ in 0..1_000 {
            path.push_str("/a");
            nesting.push(json!({"op": op, "path": path, "value": {"a": {}}}));
        }
        let error = json_patch(&document, Value::from(nesting).to_string().as_bytes()).unwrap_err();
        let PatchError::Rejected { why } = error else { panic!() };
        assert!(why.ends_with("exceeded max depth"), "{why}");
    }
    let odd = br#"[{"op": "test", "op": "test", "path": "/x", "foo": 1}]"#;
    assert_eq!(
        json_patch(&document, odd).unwrap().strict_errors,
        ["json patch duplicate field \"[0].op\"", "json patch unknown field \"[0].foo\""]
    );
    assert!(matches!(json_patch(&document, b"{}"), Err(PatchError::BadRequest(_))));
}

#[test]
fn merge_patch_objects() {
    let document = json!({"a": {"b": 1, "c": [1]}, "d": 2});
    let patched =
        merge_patch(&document, br#"{"a": {"b": null, "c": [2], "e": {"f": null, "g": 1}}, "d": {"x": 1}}"#).unwrap();
    assert_eq!(patched.value, json!({"a": {"c": [2], "e": {"g": 1}}, "d": {"x": 1}}));
    for (patch, message) in [
        ("null", "Invalid JSON Patch"),
        ("[]", "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"),
        ("{", "invalid JSON patch"),
    ] {
        assert_eq!(merge_patch(&document, patch.as_bytes()).unwrap_err(), PatchError::BadRequest(message.into()));
    }
}

/// Applies a strategic patch and compares.
fn check(schema: Schema<'_>, live: Value, change: Value, expected: Value) {
    let patched = strategic_merge_patch(&live, change.to_string().as_bytes(), schema).unwrap();
    assert_eq!(patched.value, expected, "{live} with {change}");
}

#[test]
fn strategic_lists() {
    let containers = |list: Value| json!({"spec": {"containers": list}});
    let live = containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}]));
    for (change, expected) in [
        (
            json!([{"name": "b", "image": "9"}]),
            json!([{"name": "a", "image": "1"}, {"name": "b", "image": "9"}, {"name": "c"}]),
        ),
        (
            json!([{"name": "d"}]),
            json!([{"name": "d"}, {"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}]),
        ),
        (json!([{"name": "b", "$patch": "delete"}]), json!([{"name": "a", "image": "1"}, {"name": "c"}])),
        (json!([{"$patch": "replace"}, {"name": "z"}]), json!([{"name": "z"}])),
        (json!([{"name": "b", "image": null}]), json!([{"name": "a", "image": "1"}, {"name": "b"}, {"name": "c"}])),
        (json!([{"name": "b", "$patch": "replace", "tty": true}]), json!([{"name": "b", "tty": true}])),
    ] {
        if change[0].get("$patch") == Some(&json!("replace")) && change[0].get("name").is_some() {
            // In a list, a replace item is a directive for the list and not an item of it.
            check(pod(), live.clone(), containers(change), containers(json!([])));
        } else {
            check(pod(), live.clone(), containers(change), containers(expected));
        }
    }
    // Scalars with the merge strategy, and their deletion.
    let finalizers = |list: Value| json!({"metadata": {"finalizers": list}});
    check(pod(), finalizers(json!(["a", "b"])), finalizers(json!(["b", "c"])), finalizers(json!(["a", "b", "c"])));
    check(
        pod(),
        finalizers(json!(["a", "b"])),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
        finalizers(json!(["b"])),
    );
    // Lists without a strategy are replaced.
    let args = |list: Value| containers(json!([{"name": "a", "args": list}]));
    check(pod(), args(json!(["1", "2"])), args(json!(["3"])), args(json!(["3"])));
    // Two levels down, with another merge key.
    let ports = |list: Value| containers(json!([{"name": "a", "ports": list}]));
    check(
        pod(),
        ports(json!([{"containerPort": 80}, {"containerPort": 81}])),
        ports(json!([{"containerPort": 81, "name": "x"}])),
        ports(json!([{"containerPort": 80}, {"containerPort": 81, "name": "x"}])),
    );
}

#[test]
fn strategic_element_order() {
    let live = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "s"}, {"name": "c"}]}});
    check(
        pod(),
        live.clone(),
        json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"name": "s"}, {"name": "c"}, {"name": "a"}, {"name": "b"}]}}),
    );
    check(
        pod(),
        live,
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}],
            "containers": [{"name": "n", "image": "x"}, {"name": "c", "$patch": "delete"}]}}),
        json!({"spec": {"containers": [{"name": "b"}, {"name": "n", "image": "x"}, {"name": "a"}, {"name": "s"}]}}),
    );
    check(
        pod(),
        json!({"metadata": {"finalizers": ["x", "y"]}}),
        json!({"metadata": {"$setElementOrder/finalizers": ["z", "x"], "finalizers": ["z"],
            "$deleteFromPrimitiveList/finalizers": ["y"]}}),
        json!({"metadata": {"finalizers": ["z", "x"]}}),
    );
    let wrong = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "n"}]}});
    let error = strategic_merge_patch(&json!({"spec": {}}), wrong.to_string().as_bytes(), pod()).unwrap_err();
    assert!(error.to_string().starts_with("The order in patch list:\n[map[name:n]]\n doesn't match"), "{error}");
}

#[test]
fn strategic_objects() {
    let live = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    check(
        deployment(),
        live.clone(),
        json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
        json!({"spec": {"strategy": {"type": "Recreate"}}}),
    );
    check(
        deployment(),
        live.clone(),
        json!({"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}}),
        json!({"spec": {"strategy": {"type": "Recreate"}}}),
    );
    check(
        deployment(),
        live.clone(),
        json!({"spec": {"strategy": {"$patch": "delete"}}}),
        json!({"spec": {"strategy": {}}}),
    );
    check(
        deployment(),
        json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
        json!({"metadata": {"labels": {"a": null, "c": "3"}, "annotations": {"x": null, "y": "1"}}}),
        json!({"metadata": {"labels": {"b": "2", "c": "3"}, "annotations": {"y": "1"}}}),
    );
    // What is new is taken without its directives.
    check(
        deployment(),
        json!({}),
        json!({"spec": {"$setElementOrder/x": [], "template": {"spec": {"containers": [{"name": "a"}, {"name": "b", "$patch": "delete"}]}}}}),
        json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}}),
    );
    // A selector is replaced whole.
    let budget = Definitions::builtin().schema_for("policy", "v1", "PodDisruptionBudget").unwrap();
    check(
        budget,
        json!({"spec": {"selector": {"matchLabels": {"a": "1"}}}}),
        json!({"spec": {"selector": {"matchLabels": {"b": "2"}}}}),
        json!({"spec": {"selector": {"matchLabels": {"b": "2"}}}}),
    );
    for (change, expected) in [
        (
            json!({"spec": {"strategy": {"$retainKeys": ["x"], "type": "Recreate"}}}),
            "invalid patch format of retainKeys",
        ),
        (json!({"spec": {"strategy": {"$patch": "grow"}}}), "unknown patch type: grow in map: map[$patch:grow]"),
    ] {
        let error = strategic_merge_patch(&live, change.to_string().as_bytes(), deployment()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let unnamed = json!({"spec": {"containers": [{"image": "x"}]}});
    let live = json!({"spec": {"containers": [{"name": "a"}]}});
    assert_eq!(
        strategic_merge_patch(&live, unnamed.to_string().as_bytes(), pod()).unwrap_err().to_string(),
        "map: map[image:x] does not contain declared merge key: name"
    );
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let document = json!({"spec": {"containers": [{"name": "a"}]}});
        let _ = json_patch(&document, &bytes);
        let _ = merge_patch(&document, &bytes);
        let _ = strategic_merge_patch(&document, &bytes, pod());
    }

    #[test]
    fn strategic_patch_of_likely_shapes_never_panics(live in pod_like(), change in pod_like()) {
        let _ = strategic_merge_patch(&live, change.to_string().as_bytes(), pod());
    }

    #[test]
    fn empty_patch_changes_nothing(live in pod_like()) {
        prop_assert_eq!(strategic_merge_patch(&live, b"{}", pod()).unwrap().value, live.clone());
        prop_assert_eq!(merge_patch(&live, b"{}").unwrap().value, live);
    }
}

/// Objects that look somewhat like pods and patches of them, with directives in likely and unlikely places.
fn pod_like() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        Just("metadata"),
        Just("spec"),
        Just("containers"),
        Just("name"),
        Just("finalizers"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$setElementOrder/containers"),
        Just("$deleteFromPrimitiveList/finalizers"),
        Just("ports"),
        Just("volumes"),
        Just("nodeSelector"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!("delete")),
        Just(json!("replace")),
        Just(json!("a")),
        Just(json!(1)),
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
    .prop_map(|value| match value {
        Value::Object(_) => value,
        other => json!({"spec": other}),
    })
}
