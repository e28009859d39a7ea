use serde_json::json;

use super::*;

#[test]
fn the_table_is_small() {
    let definitions = load::builtin();
    assert!(definitions.names.len() > 850, "{definitions:?}");
    let bytes: usize = definitions.nodes.capacity() * size_of::<Node>()
        + definitions
            .nodes
            .iter()
            .map(|node| match node {
                Node::Object(object) => {
                    let fields = object.fields.iter().map(|field| size_of::<FieldNode>() + field.name.len() + 16);
                    size_of::<ObjectNode>() + fields.sum::<usize>()
                }
                Node::List(_) => size_of::<ListNode>() + 48,
                _ => 0,
            })
            .sum::<usize>();
    assert!(bytes < 1_000_000, "{bytes} bytes");
}

#[test]
fn markers_of_well_known_fields() {
    let pod = Definitions::builtin().schema_for("", "v1", "Pod").unwrap();
    let Shape::Object(spec) = pod.field("spec").unwrap().shape() else { panic!() };
    let containers = spec.field("containers").unwrap();
    assert!(containers.merge && containers.required);
    assert_eq!(containers.merge_key, Some("name"));
    let volumes = spec.field("volumes").unwrap();
    assert!(volumes.merge && volumes.retain_keys);
    let Shape::List(list) = containers.schema.shape() else { panic!() };
    let Shape::List(ports) = list.items.field("ports").unwrap().shape() else { panic!() };
    let ListKind::Map(keys) = ports.kind else { panic!() };
    assert_eq!(keys.iter().map(|key| &**key).collect::<Vec<_>>(), ["containerPort", "protocol"]);
    let Shape::Object(port) = ports.items.shape() else { panic!() };
    assert_eq!(port.field("protocol").unwrap().default, Some(&json!("TCP")));
    let Shape::Object(selector) = spec.field("nodeSelector").unwrap().schema.shape() else { panic!() };
    assert!(selector.atomic);
    let scalar = |schema: Schema<'_>| match schema.shape() {
        Shape::Scalar(scalar) => scalar,
        other => panic!("{other:?}"),
    };
    assert_eq!(scalar(pod.at(&["metadata", "creationTimestamp"]).unwrap()), Scalar::Time);
    let lease = Definitions::builtin().schema_for("coordination.k8s.io", "v1", "Lease").unwrap();
    assert_eq!(scalar(lease.at(&["spec", "renewTime"]).unwrap()), Scalar::MicroTime);
    assert_eq!(scalar(pod.at(&["spec", "containers", "resources", "limits", "cpu"]).unwrap()), Scalar::Quantity);
    let service = Definitions::builtin().schema_for("", "v1", "Service").unwrap();
    assert_eq!(scalar(service.at(&["spec", "ports", "targetPort"]).unwrap()), Scalar::IntOrString);
}

#[test]
fn the_version_served_is_there() {
    let builtin = Definitions::builtin();
    for (group, version, kind) in [
        ("certificates.k8s.io", "v1", "ClusterTrustBundle"),
        ("scheduling.k8s.io", "v1beta1", "PodGroup"),
        ("lifecycle.k8s.io", "v1alpha1", "EvictionRequest"),
        ("storagemigration.k8s.io", "v1", "StorageVersionMigration"),
        ("apps", "v1", "DeploymentList"),
        ("", "v1", "PodList"),
        ("", "v1", "DeleteOptions"),
        ("apps", "v1", "DeleteOptions"),
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    ] {
        assert!(builtin.schema_for(group, version, kind).is_some(), "{group}/{version} {kind}");
    }
    assert!(builtin.schema_for("networking.k8s.io", "v1beta1", "IPAddress").is_none());
}

#[test]
fn every_key_of_a_list_is_a_field_of_its_items() {
    let builtin = Definitions::builtin();
    for (name, node) in &builtin.names {
        let Shape::Object(object) = builtin.handle(*node).shape() else {
            continue;
        };
        for field in object.fields() {
            let Shape::List(list) = field.schema.shape() else {
                continue;
            };
            let Shape::Object(item) = list.items.shape() else {
                continue;
            };
            if let ListKind::Map(keys) = list.kind {
                for key in keys {
                    assert!(item.field(key).is_some(), "{name}.{} key {key}", field.name);
                }
            }
            if let Some(key) = field.merge_key {
                assert!(item.field(key).is_some(), "{name}.{} merge key {key}", field.name);
            }
        }
    }
}

#[test]
fn custom_resource_schema() {
    let table = Definitions::for_custom_resource(
        "stable.example.com",
        "v1",
        "CronTab",
        &json!({"type": "object", "properties": {
            "metadata": {"type": "object"},
            "spec": {"type": "object", "required": ["items"], "properties": {
                "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"],
                    "items": {"type": "object", "properties": {
                        "a": {"type": "string"}, "b": {"type": "integer", "default": 7}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "port": {"x-kubernetes-int-or-string": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-map-type": "atomic"},
            }},
        }}),
    )
    .unwrap();
    let root = table.schema_for("stable.example.com", "v1", "CronTab").unwrap();
    assert_eq!(root.name(), Some("com.example.stable.v1.CronTab"));
    assert!(root.at(&["metadata", "ownerReferences", "uid"]).is_some());
    let Shape::List(items) = root.at(&["spec", "items"]).unwrap().shape() else { panic!() };
    let Shape::Object(item) = items.items.shape() else { panic!() };
    assert_eq!(item.field("b").unwrap().default, Some(&json!(7)));
    let Shape::Object(labels) = root.at(&["spec", "labels"]).unwrap().shape() else { panic!() };
    assert!(labels.atomic && matches!(labels.rest(), Rest::Values(_)));
    let bad = json!({"type": "object", "properties": {"spec": {"type": "array", "x-kubernetes-list-type": "map"}}});
    let error = Definitions::for_custom_resource("g", "v1", "K", &bad).unwrap_err();
    assert_eq!(error.path, ".properties[spec]");
}
