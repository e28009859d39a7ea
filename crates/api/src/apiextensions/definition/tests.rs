//! Whole definitions: defaults, the usual mistakes, update rules.

use super::*;
use k8s_openapi::jiff::Timestamp;

fn version(name: &str, storage: bool) -> Value {
    json!({"name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties":
            {"size": {"type": "integer"}}}}}}})
}

fn value(versions: &[Value]) -> Value {
    json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"}, "versions": versions}})
}

fn crd(value: Value) -> CustomResourceDefinition {
    let mut c = CustomResourceDefinition::from_value(value).unwrap();
    c.set_defaults();
    c.prepare_for_create(&Context { now: Timestamp::UNIX_EPOCH, username: "" });
    c
}

fn texts(e: &ErrorList) -> Vec<String> {
    e.0.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults() {
    let c = crd(value(&[version("v1", true)]));
    assert!(c.validate().is_empty(), "{:?}", texts(&c.validate()));
    assert_eq!((text(&c.spec.names.singular), text(&c.spec.names.list_kind)), ("widget", "WidgetList"));
    assert_eq!(json!(c.spec.conversion), json!({"strategy": "None"}));
    assert_eq!(stored_versions(&c), ["v1"]);
}

#[test]
fn the_usual_mistakes() {
    let mut v = value(&[version("v1", false), version("v1", false)]);
    v["metadata"]["name"] = json!("widget.example.com");
    v["spec"]["group"] = json!("example");
    v["spec"]["scope"] = json!("namespaced");
    v["spec"]["names"] = json!({"plural": "Widgets", "kind": "W", "listKind": "W"});
    v["spec"]["preserveUnknownFields"] = json!(true);
    let c = crd(v);
    let found = texts(&c.validate());
    let told = |start: &str| assert!(found.iter().any(|t| t.starts_with(start)), "{start}: {found:#?}");
    told("metadata.name: Invalid value: \"widget.example.com\": must be spec.names.plural+\".\"+spec.group");
    told("spec.group: Invalid value: \"example\": should be a domain with at least one dot");
    told("spec.scope: Unsupported value: \"namespaced\": supported values: \"Cluster\", \"Namespaced\"");
    told("spec.versions: Invalid value: [");
    told("spec.names.plural: Invalid value: \"Widgets\": a DNS-1035 label");
    told("spec.names.listKind: Invalid value: \"W\": kind and listKind may not be the same");
    told("status.storedVersions: Invalid value: []: must have at least one stored version");
    told("spec.preserveUnknownFields: Invalid value: true: cannot set to true, set");
    assert!(found.iter().any(|t| t.ends_with("must contain unique version names")));
    assert!(found.iter().any(|t| t.ends_with("must have exactly one version marked as storage version")));
}

#[test]
fn what_versions_have_in_common_is_at_the_top() {
    let mut one = version("v1", true);
    one["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({"properties": {}});
    one["additionalPrinterColumns"] = json!([{"name": "", "type": "text", "jsonPath": "spec"}]);
    one["subresources"] = json!({"scale": {"specReplicasPath": ".status.x", "statusReplicasPath": ""}});
    one["selectableFields"] = json!([{"jsonPath": ".spec.none"}, {"jsonPath": ".spec['x']"}]);
    assert_eq!(
        texts(&crd(value(std::slice::from_ref(&one))).validate()),
        [
            "spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified \
             object \
             fields",
            "spec.subresources.scale.specReplicasPath: Invalid value: \".status.x\": should be a json path under .spec",
            "spec.subresources.scale.statusReplicasPath: Required value",
            "spec.additionalPrinterColumns[0].name: Required value",
            "spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of \
             boolean,date,integer,number,string",
            "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"spec\": must be a simple json path starting \
             with .",
            "spec.selectableFields[0].jsonPath: Invalid value: \".spec.none\": is an invalid path: does not refer to a \
             valid field",
            "spec.selectableFields[1].jsonPath: Invalid value: \".spec['x']\": is an invalid path: array notation is \
             not \
             allowed",
        ]
    );
    let mut other = version("v2", false);
    other["schema"] = json!({});
    other["deprecationWarning"] = json!("x");
    assert_eq!(
        texts(&crd(value(&[version("v1", true), other])).validate()),
        [
            "spec.versions[1].schema.openAPIV3Schema: Required value",
            "spec.versions[1].deprecationWarning: Invalid value: \"x\": can only be set for deprecated versions",
        ]
    );
}

#[test]
fn conversion() {
    let mut v = value(&[version("v1", true)]);
    v["spec"]["conversion"] = json!({"strategy": "Webhook"});
    assert_eq!(
        texts(&crd(v.clone()).validate()),
        [
            "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
            "spec.conversion.conversionReviewVersions: Required value",
        ]
    );
    v["spec"]["conversion"]["webhook"] =
        json!({"conversionReviewVersions": ["v9"], "clientConfig": {"service": {"name": "s", "namespace": "n"}}});
    assert_eq!(
        texts(&crd(v.clone()).validate()),
        ["spec.conversion.conversionReviewVersions: Invalid value: [\"v9\"]: must include at least one of v1, v1beta1"]
    );
    v["spec"]["conversion"]["strategy"] = json!("None");
    assert_eq!(texts(&crd(v).validate()).len(), 2);
}

#[test]
fn approval_of_community_groups() {
    let mut v = value(&[version("v1", true)]);
    v["metadata"]["name"] = json!("widgets.example.k8s.io");
    v["spec"]["group"] = json!("example.k8s.io");
    let missing = crd(v.clone());
    assert_eq!(
        texts(&missing.validate()),
        ["metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval \
             annotation \
          \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"]
    );
    assert!(missing.validate_update(&missing).is_empty());
    for (text, fine) in [("https://a.b/c", true), ("unapproved, test", true), ("yes", false)] {
        v["metadata"]["annotations"] = json!({APPROVAL: text});
        assert_eq!(crd(v.clone()).validate().is_empty(), fine, "{text}");
    }
}

#[test]
fn update_rules() {
    let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
    let mut old = crd(value(&[version("v1", true)]));
    old.status.as_mut().unwrap().conditions =
        Some(serde_json::from_value(json!([{"type": "Established", "status": "True"}])).unwrap());
    let mut new = crd(value(&[version("v2", true)]));
    new.spec.scope = "Cluster".into();
    new.prepare_for_update(&old, &cx);
    assert_eq!((new.metadata.generation, stored_versions(&new)), (Some(2), &["v1".to_owned(), "v2".to_owned()][..]));
    assert_eq!(
        texts(&new.validate_update(&old)),
        [
            "spec.scope: Invalid value: \"Cluster\": field is immutable",
            "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was previously a storage \
             version, and must remain in spec.versions until a storage migration ensures no data remains persisted in \
             v1 \
             and removes v1 from status.storedVersions",
        ]
    );
    new.prepare_for_status_update(&old, &cx);
    assert_eq!(new.spec, old.spec);
}

#[test]
fn warnings_and_default_values() {
    let mut v = version("v1", true);
    v["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({"type": "object", "properties": {
        "a": {"type": "string", "format": "odd", "default": "x"},
        "b": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object",
            "x-kubernetes-map-type": "atomic"}}}});
    let c = crd(value(&[v]));
    assert!(c.validate().is_empty(), "{:?}", texts(&c.validate()));
    assert_eq!(
        c.warnings(None),
        [
            "unrecognized format \"odd\"",
            "x-kubernetes-list-type: set for items of type \"object\" is not supported by server-side apply or CEL \
             validation rules",
        ]
    );
    assert!(c.warnings(Some(&c)).is_empty());
    let values = default_values(&c);
    assert_eq!(
        (values[0].0.as_str(), values[0].2),
        ("spec.validation.openAPIV3Schema.properties[spec].properties[a].default", &json!("x"))
    );
    assert_eq!(c.cells(Timestamp::UNIX_EPOCH)[0], "widgets.example.com");
}
