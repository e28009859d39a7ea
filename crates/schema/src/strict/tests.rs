use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::Definitions;

fn schema(group: &str, kind: &str) -> Option<Schema<'static>> {
    Some(Definitions::builtin().schema_for(group, "v1", kind).unwrap())
}

#[test]
fn syntax_errors_in_upstream_words() {
    for (body, expected) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        (r#"{"a""#, "unexpected end of JSON input"),
        (r#"{"a" 1}"#, "invalid character '1' after object key"),
        (r#"{"a": 1 "b": 2}"#, "invalid character '\"' after object key:value pair"),
        (r#"{"a": 1,}"#, "invalid character '}' looking for beginning of object key string"),
        ("[1 2]", "invalid character '2' after array element"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("trux", "invalid character 'x' in literal true (expecting 'e')"),
        ("-x", "invalid character 'x' in numeric literal"),
        ("1.x", "invalid character 'x' after decimal point in numeric literal"),
        ("1ex", "invalid character 'x' in exponent of numeric literal"),
        ("\"\\x\"", "invalid character 'x' in string escape code"),
        ("\"\\u12g4\"", "invalid character 'g' in \\u hexadecimal character escape"),
        ("\"a\nb\"", "invalid character '\\n' in string literal"),
        ("01", "invalid character '1' after top-level value"),
    ] {
        assert_eq!(decode_json(body.as_bytes(), None).unwrap_err().to_string(), expected, "{body}");
    }
    let deep = "[".repeat(10_000);
    assert_eq!(decode_json(deep.as_bytes(), None).unwrap_err().to_string(), "exceeded max depth");
    assert!(decode_json(br#""\ud83d\ude00 \ud83d""#, None).unwrap().value == json!("\u{1f600} \u{fffd}"));
    assert_eq!(decode_json(b"\"\xff\"", None).unwrap().value, json!("\u{fffd}"));
}

#[test]
fn yaml_is_read_as_json_only_where_that_is_the_same() {
    let read = |text: &str| json::parse_as_yaml(text.as_bytes(), None, &mut Checker::new());
    assert_eq!(read(r#"{"a": [1, -2, "x\u003cy\n", true, null]} "#), Some(json!({"a": [1, -2, "x<y\n", true, null]})));
    for text in [
        "a: 1",
        "[1]",
        r#"{"a": 1, "a": 2}"#,
        r#"{"a": {"b": 1, "b": 2}}"#,
        r#"{"<<": {}}"#,
        r#"{"a": 1.0}"#,
        r#"{"a": 1e3}"#,
        r#"{"a": 9223372036854775808}"#,
        r#"{"a": "\/"}"#,
        r#"{"a": "\ud83d\ude00"}"#,
        "{\"a\": 1}\n---\n{}",
        "{\"a\": 1} # one",
        "{a: 1}",
    ] {
        assert_eq!(read(text), None, "{text}");
    }
    let twice = decode_yaml(br#"{"a": 1, "a": 2}"#, None).unwrap();
    assert_eq!(twice.value, json!({"a": 2}));
    assert_eq!(twice.strict_errors, ["yaml: unmarshal errors:\n  line 1: key \"a\" already set in map"]);
}

#[test]
fn type_errors_in_upstream_words() {
    let deployment = schema("apps", "Deployment");
    let pod = schema("", "Pod");
    let service = schema("", "Service");
    for (schema, body, expected) in [
        (
            deployment,
            json!({"spec": {"replicas": 1.5}}),
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            deployment,
            json!({"spec": {"replicas": 3_000_000_000_i64}}),
            "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            pod,
            json!({"metadata": {"labels": {"a": 1}}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            pod,
            json!({"spec": {"containers": [{"env": [{"name": "a", "value": 1}]}]}}),
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            pod,
            json!({"spec": {"containers": {}}}),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (pod, json!({"spec": "x"}), "json: cannot unmarshal string into Go struct field Pod.spec of type v1.PodSpec"),
        (
            service,
            json!({"spec": {"ports": [{"targetPort": true}]}}),
            "json: cannot unmarshal bool into Go struct field ServicePort.spec.ports.targetPort of type int32",
        ),
        (
            pod,
            json!({"metadata": {"creationTimestamp": "soon"}}),
            "parsing time \"soon\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"soon\" as \"2006\"",
        ),
        (pod, json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}), literal::QUANTITY_FORMAT),
        (schema("", "Secret"), json!({"data": {"a": "%"}}), "illegal base64 data at input byte 0"),
        (pod, json!([]), "json: cannot unmarshal array into Go value of type v1.Pod"),
    ] {
        let error = decode_json(body.to_string().as_bytes(), schema).unwrap_err();
        assert_eq!(error, DecodeError::Type(expected.to_owned()), "{body}");
        assert_eq!(check(&body, schema.unwrap()).unwrap_err(), error, "{body}");
    }
}

#[test]
fn unknown_and_duplicate_fields() {
    let body = br#"{"kind": "Pod", "Metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b", "nme": {"x": 1, "x": 2}}],
        "containers": []}, "metadata": {"labels": {"a": "1", "a": "2"}}, "metadata": null}"#;
    let decoded = decode_json(body, schema("", "Pod")).unwrap();
    assert_eq!(
        decoded.strict_errors,
        [
            "unknown field \"Metadata\"",
            "unknown field \"spec.containers[1].nme\"",
            "duplicate field \"spec.containers\"",
            "duplicate field \"metadata.labels.a\"",
            "duplicate field \"metadata\"",
        ]
    );
    assert_eq!(decoded.value["spec"]["containers"], json!([]));
    let untyped = decode_json(br#"{"a": {"b": 1, "b": 2}}"#, None).unwrap();
    assert_eq!(untyped.strict_errors, ["duplicate field \"a.b\""]);
    let raw = br#"{"data": {"b": 1, "b": 2}}"#;
    assert_eq!(decode_json(raw, schema("apps", "ControllerRevision")).unwrap().strict_errors, Vec::<String>::new());
    let mut value = json!({"spec": {"x": 1, "containers": [{"name": "a", "y": 2}]}, "z": 3});
    prune(&mut value, schema("", "Pod").unwrap());
    assert_eq!(value, json!({"spec": {"containers": [{"name": "a"}]}}));
}

#[test]
fn yaml_as_the_api_server_reads_it() {
    let body = b"apiVersion: v1\nkind: ConfigMap\ndata:\n  a: \"yes\"\n  b: |\n    line\nimmutable: yes\n";
    let decoded = decode_yaml(body, schema("", "ConfigMap")).unwrap();
    assert_eq!(decoded.value["immutable"], json!(true));
    assert_eq!(decoded.value["data"], json!({"a": "yes", "b": "line\n"}));
    let mode = decode_yaml(b"defaultMode: 0644\nempty:\n1: x\nf: 1e3\n", None).unwrap().value;
    assert_eq!(mode, json!({"defaultMode": 420, "empty": null, "1": "x", "f": 1000}));
    let wrong = decode_yaml(b"data:\n  a: 1\n", schema("", "ConfigMap")).unwrap_err();
    assert_eq!(wrong.to_string(), "json: cannot unmarshal number into Go struct field ConfigMap.data of type string");
    let duplicate = decode_yaml(b"data:\n  a: x\n  b: w\n  a: z\nfoo: 1\n", schema("", "ConfigMap")).unwrap();
    assert_eq!(duplicate.value["data"]["a"], "z");
    assert_eq!(
        duplicate.strict_errors,
        ["unknown field \"foo\"", "yaml: unmarshal errors:\n  line 4: key \"a\" already set in map"]
    );
    assert_eq!(decode_yaml(b"# nothing\n", None).unwrap().value, json!(null));
    for (text, expected) in [
        ("---\na: 1\n---\nb: 2\n", json!({"a": 1})),
        ("# c\n%YAML 1.1\n--- {a: 1}\n...\nb: 2\n", json!({"a": 1})),
        ("a: |\n  x\n  ---\n", json!({"a": "x\n---\n"})),
        ("---\n---\na: 1\n", json!(null)),
        ("on: [0x1F, 1_000, 2001-01-01, ~, 1:30, +1]", json!({"true": [31, 1000, "2001-01-01", null, "1:30", 1]})),
        ("x: &x {a: 1}\nz: {<<: *x, b: 2}\n", json!({"x": {"a": 1}, "z": {"a": 1, "b": 2}})),
    ] {
        assert_eq!(decode_yaml(text.as_bytes(), None).unwrap().value, expected, "{text}");
    }
    let error = decode_yaml(b"a: b: c\n", None).unwrap_err().to_string();
    assert_eq!(error, "error converting YAML to JSON: yaml: mapping values are not allowed in this context");
    let error = decode_yaml(b"a: 1\nb: c: d\n", None).unwrap_err().to_string();
    assert_eq!(error, "error converting YAML to JSON: yaml: line 2: mapping values are not allowed in this context");
    assert!(decode_yaml("[".repeat(10_000).as_bytes(), None).is_err());
}

#[test]
fn literals() {
    for good in ["2026-01-02T03:04:05Z", "2024-02-29T00:00:00.123456Z", "2026-01-02T03:04:05+01:00"] {
        assert_eq!(literal::check_time(good, false), Ok(()), "{good}");
    }
    for (bad, expected) in [
        ("2026-02-30T00:00:00Z", "parsing time \"2026-02-30T00:00:00Z\": day out of range"),
        ("2026-01-02T03:04:05Zx", "parsing time \"2026-01-02T03:04:05Zx\": extra text: \"x\""),
        ("2026-01-02", "parsing time \"2026-01-02\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"\" as \"T\""),
    ] {
        assert_eq!(literal::check_time(bad, false).unwrap_err(), expected);
    }
    for good in ["1", "-1.5", "100m", "1Gi", "1e3", "1E3", ".5", "5.", "+1k", "1E", "12E-3"] {
        assert_eq!(literal::check_quantity(good), Ok(()), "{good}");
    }
    for bad in ["", "m", "1 Gi", "1GiB", "--1", "1..2", "1mm", "0x10"] {
        assert!(literal::check_quantity(bad).is_err(), "{bad}");
    }
    for good in ["", "YQ==", "YWI=", "YWJj", "YWJj\nYQ=="] {
        assert_eq!(literal::base64_error(good), None, "{good}");
    }
    for bad in ["Y", "YQ", "YQ=", "YQ===", "=", "YQ==YQ==", "Y-=="] {
        assert!(literal::base64_error(bad).is_some(), "{bad}");
    }
}

#[test]
fn body_without_kind() {
    assert_eq!(
        unrecognized("Pod", "unexpected end of JSON input", b"{\"a\": \"0123456789012345678901234567890\""),
        "the object provided is unrecognized (must be of type Pod): unexpected end of JSON input \
         ({\"a\": \"01234567890123456789012 ...)"
    );
    assert!(unrecognized("Pod", "x", b"").ends_with("x (<empty>)"));
    assert!(unrecognized("Pod", "x", b"[1]").ends_with("x (5b315d)"));
    assert_eq!(type_meta(b"kind: Pod\napiVersion: v1\n", true).unwrap(), ("v1".into(), "Pod".into()));
    assert!(
        type_meta(b"[]", false).unwrap_err().to_string().starts_with("couldn't get version/kind; json parse error")
    );
}

proptest! {
    #[test]
    fn reads_whatever_serde_json_writes(value in json_value()) {
        let decoded = decode_json(value.to_string().as_bytes(), None).unwrap();
        prop_assert_eq!(decoded.value, value);
        prop_assert!(decoded.strict_errors.is_empty());
    }

    /// Printable characters only: what YAML makes of others inside of quotes is not what anybody means by them.
    #[test]
    fn json_is_read_as_yaml_would_be(value in json_value(), key in "[a-z]{0,3}") {
        let value = json!({"kind": "Pod", "metadata": {"labels": {key: value}}, "spec": {"replicas": 1}});
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let text: String = text.chars().map(|c| if matches!(c, ' '..='~' | '\n') { c } else { 'x' }).collect();
            for schema in [None, schema("", "Pod")] {
                let (mut fast, mut slow) = (Checker::new(), Checker::new());
                if let Some(read) = json::parse_as_yaml(text.as_bytes(), schema, &mut fast) {
                    let wanted = yaml::parse(text.as_bytes(), schema, &mut slow).and_then(|value| slow.finish(value));
                    prop_assert_eq!(fast.finish(read), wanted);
                }
            }
        }
    }

    #[test]
    fn never_panics_on_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let pod = schema("", "Pod");
        let _ = decode_json(&bytes, pod);
        let _ = decode_yaml(&bytes, pod);
        let _ = type_meta(&bytes, true);
    }

    #[test]
    fn never_panics_on_likely_text(text in r#"[-{}\[\]":,ab0-9 \n&*!|>#'\\.eE+]{0,60}"#) {
        let _ = decode_json(text.as_bytes(), schema("", "Pod"));
        let _ = decode_yaml(text.as_bytes(), None);
        let _ = literal::check_quantity(&text);
        let _ = literal::check_time(&text, true);
        let _ = literal::base64_error(&text);
    }
}

/// Any JSON value whose numbers survive the round trip.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(".{0,5}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
