use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::paths::query_of;
use super::*;
use crate::schema::Definitions;

/// The parameter of the published document that is not served: that of sharded lists.
const QUERY_NOT_SERVED: &str = "shardSelector";

fn subresource(name: &str, group: &str, version: &str, kind: &str, verbs: &[&str]) -> ServedSubresource {
    ServedSubresource {
        name: name.into(),
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
    }
}

/// A resource with subresources, `name:group/version/Kind:verbs`.
fn served(group: &str, kind: &str, plural: &str, namespaced: bool, subresources: &[&str]) -> ServedResource {
    let mut resource = ServedResource::builtin(group, "v1", kind, plural, namespaced);
    for text in subresources {
        let parts: Vec<&str> = text.split(':').collect();
        let gvk: Vec<&str> = parts[1].split('/').collect();
        let verbs: Vec<&str> = parts[2].split(',').collect();
        resource.subresources.push(subresource(parts[0], gvk[0], gvk[1], gvk[2], &verbs));
    }
    resource
}

fn only(mut resource: ServedResource, verbs: &[&str]) -> ServedResource {
    resource.verbs.retain(|verb| verbs.contains(&verb.as_str()));
    resource
}

fn resources() -> Vec<ServedResource> {
    let without_collection = ["create", "delete", "get", "list", "patch", "update", "watch"];
    vec![
        served(
            "",
            "Pod",
            "pods",
            true,
            &[
                "status:/v1/Pod:get,patch,update",
                "ephemeralcontainers:/v1/Pod:get,patch,update",
                "resize:/v1/Pod:get,patch,update",
                "log:/v1/Pod:get",
                "exec:/v1/PodExecOptions:create,get",
                "attach:/v1/PodAttachOptions:create,get",
                "portforward:/v1/PodPortForwardOptions:create,get",
                "proxy:/v1/PodProxyOptions:create,get",
                "binding:/v1/Binding:create",
                "eviction:policy/v1/Eviction:create",
            ],
        ),
        only(
            served(
                "",
                "Namespace",
                "namespaces",
                false,
                &["status:/v1/Namespace:get,patch,update", "finalize:/v1/Namespace:update"],
            ),
            &without_collection,
        ),
        served(
            "",
            "Node",
            "nodes",
            false,
            &["status:/v1/Node:get,patch,update", "proxy:/v1/NodeProxyOptions:create,get"],
        ),
        served(
            "",
            "Service",
            "services",
            true,
            &["status:/v1/Service:get,patch,update", "proxy:/v1/ServiceProxyOptions:create,get"],
        ),
        served("", "ServiceAccount", "serviceaccounts", true, &["token:authentication.k8s.io/v1/TokenRequest:create"]),
        only(served("", "Binding", "bindings", true, &[]), &["create"]),
        served(
            "",
            "ReplicationController",
            "replicationcontrollers",
            true,
            &["status:/v1/ReplicationController:get,patch,update", "scale:autoscaling/v1/Scale:get,patch,update"],
        ),
        served(
            "apps",
            "Deployment",
            "deployments",
            true,
            &["status:apps/v1/Deployment:get,patch,update", "scale:autoscaling/v1/Scale:get,patch,update"],
        ),
        served(
            "apps",
            "ReplicaSet",
            "replicasets",
            true,
            &["status:apps/v1/ReplicaSet:get,patch,update", "scale:autoscaling/v1/Scale:get,patch,update"],
        ),
        served(
            "policy",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            true,
            &["status:policy/v1/PodDisruptionBudget:get,patch,update"],
        ),
        served("rbac.authorization.k8s.io", "ClusterRole", "clusterroles", false, &[]),
        served("rbac.authorization.k8s.io", "Role", "roles", true, &[]),
        only(served("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", false, &[]), &["create"]),
        only(
            served("authorization.k8s.io", "LocalSubjectAccessReview", "localsubjectaccessreviews", true, &[]),
            &["create"],
        ),
        served(
            "certificates.k8s.io",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            false,
            &[
                "status:certificates.k8s.io/v1/CertificateSigningRequest:get,patch,update",
                "approval:certificates.k8s.io/v1/CertificateSigningRequest:get,patch,update",
            ],
        ),
        served("storage.k8s.io", "StorageClass", "storageclasses", false, &[]),
    ]
}

fn parse(document: &Document) -> Value {
    serde_json::from_slice(&document.bytes()).unwrap()
}

#[test]
fn paths_are_the_published_ones() {
    let document = parse(&OpenApi::new(resources(), "v1.37.0").v2(Encoding::Json));
    let paths = document["paths"].as_object().unwrap();
    let mut ours: BTreeSet<(String, String)> = BTreeSet::new();
    for (path, item) in paths {
        let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
        ours.extend(methods.map(|method| (path.clone(), method.clone())));
    }
    let mut missing = Vec::new();
    for line in include_str!("../../facts/paths.tsv").lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [path, method, action, gvk, id, answer, query] = columns[..] else { panic!("{line}") };
        let Some(item) = paths.get(path).filter(|item| item.get(method).is_some()) else {
            missing.push(line);
            continue;
        };
        ours.remove(&(path.to_owned(), method.to_owned()));
        let operation = &item[method];
        assert_eq!(operation["operationId"], id, "{path} {method}");
        let own = operation.get("x-kubernetes-action").and_then(Value::as_str).unwrap_or("-");
        assert_eq!(own, action, "{path} {method}");
        if action != "-" {
            let part = |name: &str| operation["x-kubernetes-group-version-kind"][name].as_str().unwrap();
            assert_eq!(format!("{}/{}/{}", part("group"), part("version"), part("kind")), gvk, "{path} {method}");
        }
        let schema = &operation["responses"]["200"]["schema"];
        let own = schema["$ref"].as_str().map_or("string", |target| target.strip_prefix("#/definitions/").unwrap());
        assert_eq!(own, answer, "{path} {method}");
        let wanted: BTreeSet<String> =
            query.split(',').filter(|name| !name.is_empty() && *name != QUERY_NOT_SERVED).map(str::to_owned).collect();
        assert_eq!(query_of(item, method), wanted, "{path} {method}");
    }
    assert_eq!(missing, Vec::<&str>::new());
    // The group documents of the groups the facts have no line for.
    ours.retain(|(path, _)| path.matches('/').count() != 3);
    assert_eq!(ours, BTreeSet::new());
}

/// All references of a document and all definitions it has.
fn references(document: &Value, out: &mut BTreeSet<String>) {
    match document {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref") {
                out.insert(target.clone());
            }
            map.values().for_each(|value| references(value, out));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, out)),
        _ => {}
    }
}

#[test]
fn every_reference_is_defined() {
    let documents = OpenApi::new(resources(), "v1.37.0");
    let mut all = vec![(parse(&documents.v2(Encoding::Json)), "/definitions", "#/definitions/")];
    for path in documents.v3_paths() {
        let document = parse(&documents.v3(&path, Encoding::Json).unwrap());
        all.push((document, "/components/schemas", "#/components/schemas/"));
    }
    for (document, place, prefix) in all {
        let defined = document.pointer(place).unwrap().as_object().unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in found {
            let name = target.strip_prefix(prefix).unwrap_or_else(|| panic!("{target}"));
            assert!(defined.contains_key(name), "{name}");
        }
    }
}

#[test]
fn every_served_kind_has_a_definition() {
    let document = parse(&OpenApi::new(resources(), "v1.37.0").v2(Encoding::Json));
    let kinds: BTreeSet<String> = document["definitions"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|definition| definition["x-kubernetes-group-version-kind"].as_array().cloned().unwrap_or_default())
        .map(|gvk| format!("{}/{}/{}", gvk["group"], gvk["version"], gvk["kind"]).replace('"', ""))
        .collect();
    for resource in resources() {
        assert!(kinds.contains(&format!("{}/{}/{}", resource.group, resource.version, resource.kind)), "{resource:?}");
    }
    let pod = &document["definitions"]["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(pod["properties"]["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert!(pod["properties"]["containers"]["description"].as_str().unwrap().len() > 20);
}

#[test]
fn version_three_of_a_group() {
    let documents = OpenApi::new(resources(), "v1.37.0");
    let apps = parse(&documents.v3("/apis/apps/v1", Encoding::Json).unwrap());
    let schemas = &apps["components"]["schemas"];
    let spec = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"];
    assert_eq!(spec["template"]["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PodTemplateSpec");
    assert_eq!(
        schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["oneOf"],
        json!([{"type": "integer"}, {"type": "string"}])
    );
    assert!(schemas.get("io.k8s.api.core.v1.Node").is_none(), "only what the group needs");
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let names: BTreeSet<&str> =
        patch["parameters"].as_array().unwrap().iter().map(|parameter| parameter["name"].as_str().unwrap()).collect();
    assert!(names.contains("fieldValidation") && names.contains("dryRun"));
    assert_eq!(
        patch["requestBody"]["content"]["application/apply-patch+yaml"]["schema"]["$ref"],
        "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.Patch"
    );
    let index = parse(&documents.v3_index());
    let document = documents.v3("apis/apps/v1", Encoding::Protobuf).unwrap();
    let url = format!("/openapi/v3/apis/apps/v1?hash={}", document.hash);
    assert_eq!(index["paths"]["apis/apps/v1"]["serverRelativeURL"], url);
    assert_eq!(document.etag, format!("\"{}\"", document.hash));
    assert!(documents.v3("apis/apps/v2", Encoding::Json).is_none());
    assert!(documents.v3("apis/apps", Encoding::Json).is_some());
    // Another version of the server or another resource is another hash.
    let other = OpenApi::new(resources(), "v1.38.0").v3("apis/apps/v1", Encoding::Json).unwrap();
    assert_ne!(other.hash, document.hash);
}

#[test]
fn custom_resources_are_described() {
    let mut resource = ServedResource::builtin("stable.example.com", "v1", "CronTab", "crontabs", true);
    resource.schema = Some(
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
        }}}})
        .to_string()
        .into(),
    );
    let documents = OpenApi::new(vec![resource], "v1.37.0");
    let two = parse(&documents.v2(Encoding::Json));
    let spec = &two["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"];
    assert_eq!(spec["port"], json!({"type": "string", "format": "int-or-string", "x-kubernetes-int-or-string": true}));
    assert!(spec["free"].get("properties").is_none());
    assert_eq!(spec["pod"]["required"], json!(["apiVersion", "kind"]));
    let three = parse(&documents.v3("apis/stable.example.com/v1", Encoding::Json).unwrap());
    let own = &three["components"]["schemas"]["com.example.stable.v1.CronTab"]["properties"];
    assert!(own["apiVersion"]["description"].as_str().unwrap().starts_with("APIVersion defines"), "{own}");
    assert!(own["metadata"]["description"].as_str().unwrap().starts_with("Standard object's metadata."), "{own}");
    assert!(three["components"]["schemas"]["com.example.stable.v1.CronTabList"].is_object());
    let list = &three["paths"]["/apis/stable.example.com/v1/crontabs"]["get"]["operationId"];
    assert_eq!(list, "listStableExampleComV1CronTabForAllNamespaces");
    // By this kubectl knows what it may patch with.
    let one = &three["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"];
    let patches: Vec<&String> = one["patch"]["requestBody"]["content"].as_object().unwrap().keys().collect();
    let merges = ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
    assert_eq!(patches, merges);
}

/// Reads protobuf far enough to see fields: number to values, each a varint or bytes.
fn fields(bytes: &[u8]) -> BTreeMap<u64, Vec<Vec<u8>>> {
    let mut at = 0;
    let varint = |at: &mut usize| {
        let (mut number, mut shift) = (0u64, 0);
        loop {
            let byte = bytes[*at];
            *at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return number;
            }
        }
    };
    let mut out: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    while at < bytes.len() {
        let key = varint(&mut at);
        let length = match key & 7 {
            0 => {
                let number = varint(&mut at);
                out.entry(key >> 3).or_default().push(number.to_string().into_bytes());
                continue;
            }
            1 => 8,
            2 => varint(&mut at) as usize,
            other => panic!("wire type {other}"),
        };
        out.entry(key >> 3).or_default().push(bytes[at..at + length].to_vec());
        at += length;
    }
    out
}

/// The value of a named entry in a list of entries.
fn entry(entries: &[Vec<u8>], name: &str) -> Vec<u8> {
    let found = entries.iter().map(|bytes| fields(bytes)).find(|entry| entry[&1][0] == name.as_bytes());
    found.unwrap_or_else(|| panic!("{name}"))[&2][0].clone()
}

#[test]
fn protobuf_of_version_two() {
    let document = OpenApi::new(resources(), "v1.37.0").v2(Encoding::Protobuf);
    assert_eq!(document.content_type, V2_PROTOBUF[0]);
    let top = fields(&document.bytes());
    assert_eq!(top[&1][0], b"2.0");
    let path = entry(&fields(&top[&8][0])[&2], "/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
    let patch = fields(&fields(&path)[&8][0]);
    assert_eq!(patch[&5][0], b"patchAppsV1NamespacedDeployment");
    // kubectl looks for the parameter inside: item, parameter, non-body parameter, query parameter, name.
    let names: Vec<String> = patch[&8]
        .iter()
        .filter_map(|item| {
            let parameter = fields(&fields(item)[&1][0]);
            let query = fields(parameter.get(&2)?.first()?);
            Some(String::from_utf8(fields(query.get(&3)?.first()?)[&4][0].clone()).unwrap())
        })
        .collect();
    assert!(names.contains(&"dryRun".to_owned()) && names.contains(&"fieldValidation".to_owned()), "{names:?}");
    let gvk = fields(&entry(&patch[&13], "x-kubernetes-group-version-kind"))[&2][0].clone();
    assert_eq!(serde_json::from_slice::<Value>(&gvk).unwrap()["kind"], "Deployment");
    let definitions = fields(&top[&9][0]);
    assert!(definitions[&1].len() > 100);
    let spec = fields(&entry(&definitions[&1], "io.k8s.api.apps.v1.DeploymentSpec"));
    let replicas = fields(&entry(&fields(&spec[&25][0])[&1], "replicas"));
    assert_eq!(fields(&replicas[&22][0])[&1][0], b"integer");
    assert_eq!(replicas[&2][0], b"int32");
    assert_eq!(spec[&19], [b"selector".to_vec(), b"template".to_vec()]);
}

#[test]
fn protobuf_of_version_three() {
    let document = OpenApi::new(resources(), "v1.37.0").v3("apis/apps/v1", Encoding::Protobuf).unwrap();
    let top = fields(&document.bytes());
    assert_eq!(top[&1][0], b"3.0.0");
    let path = entry(&fields(&top[&4][0])[&1], "/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
    let patch = fields(&fields(&path)[&10][0]);
    let names: Vec<Vec<u8>> = patch[&6].iter().map(|item| fields(&fields(item)[&1][0])[&1][0].clone()).collect();
    assert!(names.contains(&b"fieldValidation".to_vec()));
    let schemas = fields(&fields(&top[&5][0])[&1][0]);
    let spec = fields(&fields(&entry(&schemas[&1], "io.k8s.api.apps.v1.DeploymentSpec"))[&1][0]);
    let template = fields(&fields(&entry(&fields(&spec[&31][0])[&1], "template"))[&1][0]);
    let reference = fields(&fields(&template[&26][0])[&2][0]);
    assert_eq!(reference[&1][0], b"#/components/schemas/io.k8s.api.core.v1.PodTemplateSpec");
}

#[test]
fn all_built_in_kinds_have_descriptions() {
    let builtin = Definitions::builtin();
    let all =
        definitions::closure(["io.k8s.api.core.v1.PodList".to_owned(), "io.k8s.api.apps.v1.Deployment".to_owned()]);
    assert!(all.len() > 140, "{}", all.len());
    for (name, definition) in all {
        assert!(builtin.definition(&name).is_some() || definition.get("properties").is_none(), "{name}");
        assert!(definition["description"].as_str().is_some_and(|text| !text.is_empty()), "{name}");
    }
}
