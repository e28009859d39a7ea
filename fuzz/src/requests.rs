//! Requests, all the way through the API server: what is accepted can be read back, and nothing is the server's fault.

use crate::api::{Answer, Api, JSON, collection, segment, with_api};
use gantry_api::kind::Resource;
use gantry_api::kinds;
use gantry_api::meta::object::split_api_version;
use gantry_schema::{protobuf, strict};
use serde_json::{Value, json};
use std::path::Path;

/// Kinds to whose objects the server itself writes once they are there.
const TENDED: &[&str] = &[
    "APIService",
    "CustomResourceDefinition",
    "FlowSchema",
    "PriorityLevelConfiguration",
    "ValidatingAdmissionPolicy",
];
const VALID: &str = include_str!("../../tests/golden/invalid/kinds.yaml");

pub(crate) const OBJECTS: &[&str] = &[
    "null",
    "{}",
    "[]",
    "\"\"",
    "0",
    "-1",
    "true",
    "9223372036854775807",
    "-9223372036854775808",
    "1e3",
    "\"1Gi\"",
    "\"-1\"",
    "\"é\"",
    "\"2026-01-01T00:00:00Z\"",
    "\"0000-00-00T00:00:00Z\"",
    "\"100%\"",
    "\"::1\"",
    "\"10.0.0.0/8\"",
    "\"metadata\":{",
    "\"name\":\"x\",",
    "\"generateName\":\"x\",",
    "\"labels\":{\"a\":\"b\"},",
    "\"finalizers\":[\"a.test/b\"],",
    "\"ownerReferences\":[{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"name\":\"x\",\"uid\":\"1\"}],",
    "\"spec\":{",
    "\"status\":{",
    "\"selector\":{\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"In\",\"values\":[\"b\"]}]},",
    "\"type\":\"LoadBalancer\",",
    "\"clusterIP\":\"None\",",
    "\"ipFamilyPolicy\":\"PreferDualStack\",",
    "\"replicas\":1,",
    "\"strategy\":{\"type\":\"Recreate\"},",
    "\"resources\":{\"limits\":{\"cpu\":\"1\"}},",
];
pub(crate) const QUERIES: &[&str] = &[
    "?",
    "&",
    "=",
    "/",
    "%2F",
    "%00",
    "%zz",
    "limit=1",
    "continue=",
    "resourceVersion=0",
    "resourceVersion=1",
    "resourceVersion=18446744073709551616",
    "resourceVersionMatch=Exact",
    "resourceVersionMatch=NotOlderThan",
    "labelSelector=",
    "fieldSelector=metadata.name%3Da",
    "watch=true",
    "sendInitialEvents=true",
    "allowWatchBookmarks=true",
    "timeoutSeconds=1",
    "pretty=true",
    "includeObject=Object",
    "/api/v1/pods",
    "/namespaces/default/",
    "/status",
    "/scale",
    "/log",
    "\napplication/json;as=Table;v=v1;g=meta.k8s.io",
    "\napplication/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    "\napplication/vnd.kubernetes.protobuf",
    "\napplication/yaml",
    "\napplication/cbor",
    ";q=0.1,",
];
pub(crate) const PATCHES: &[&str] = &[
    "j\n",
    "m\n",
    "s\n",
    "a\n",
    "{\"op\":\"add\",\"path\":\"/spec/template/spec/containers/-\",\"value\":{\"name\":\"c\",\"image\":\"z\"}}",
    "\"$patch\":\"delete\"",
    "\"$setElementOrder/containers\":[{\"name\":\"b\"}]",
    "\"metadata\":{\"managedFields\":[{}]}",
    "\"metadata\":{\"resourceVersion\":\"1\"}",
    "\"metadata\":{\"uid\":\"x\"}",
    "\"finalizers\":[\"a.test/b\"]",
    "\"replicas\":null",
    "\"containers\":",
    "\"name\":\"a\"",
    "\"ports\":[{\"containerPort\":80}]",
    "{",
    "}",
    "[",
    "]",
    ",",
    "null",
];
pub(crate) const TOKENS: &[&str] =
    &["\"v\":", "\"meta.k8s.io/v1\"", "\"rv\":", "\"start\":", "\\u0000", "-1", "0", "18446744073709551615", "/", ".."];

/// Nothing anybody sends is an internal error. Upstream answers 500 without a reason to some patches that do not fit their
/// type, and so does this server.
fn no_fault(answer: &Answer) {
    let unfit = answer.code == 500 && answer.is_json && answer.json()["reason"].is_null();
    assert!(unfit || !matches!(answer.code, 500..=502), "{}: {}", answer.code, answer.text());
}

/// Leaves out what has no value, which protobuf does not tell from what is not there.
fn without_nothing(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(k, v)| (k.clone(), without_nothing(v)));
            Value::Object(fields.filter(|(_, v)| !is_nothing(v)).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nothing).collect()),
        other => other.clone(),
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

/// The built-in resource of an object.
fn resource_of(json: &[u8]) -> Option<&'static dyn Resource> {
    let (api_version, kind) = strict::type_meta(json, false).ok()?;
    let (group, version) = split_api_version(&api_version);
    let is_it = |r: &&&dyn Resource| {
        let info = r.info();
        info.group == group && info.version == version && info.kind == kind
    };
    kinds::ALL.iter().find(is_it).copied()
}

/// An object in JSON or protobuf: what is accepted is read back the same in both, and replacing it by itself changes
/// nothing.
pub(crate) fn objects(data: &[u8]) {
    let in_protobuf = data.starts_with(b"k8s\0");
    let decoded = if in_protobuf { protobuf::decode(data).ok() } else { None };
    let Some(resource) = resource_of(decoded.as_deref().unwrap_or(data)) else { return };
    let path = collection(resource.info());
    let media = if in_protobuf { protobuf::MEDIA_TYPE } else { JSON };
    with_api(|api| {
        let Some(made) = api.call("POST", &path, JSON, media, data) else { return true };
        no_fault(&made);
        if made.code != 201 || resource.info().virtual_only {
            return true;
        }
        let made = made.json();
        let name = made["metadata"]["name"].as_str().expect("what is stored has a name");
        let path = format!("{path}/{}", segment(name));
        read_back(api, resource, &path, &made);
        api.delete(&path)
    });
}

fn read_back(api: &Api, resource: &dyn Resource, path: &str, made: &Value) {
    let info = resource.info();
    let read = api.json("GET", path, b"");
    assert_eq!(read.code, 200, "{}", read.text());
    if !TENDED.contains(&info.kind) {
        assert_eq!(read.json(), *made);
    }
    let read = read.json();
    let object = resource.decode_value(read.clone()).unwrap_or_else(|e| panic!("{e}: {read}"));
    assert_eq!(object.to_value(), read);
    if protobuf::speaks(info.group, info.version) {
        let bytes = api.call("GET", path, protobuf::MEDIA_TYPE, JSON, b"").expect("the address was one before");
        let json = protobuf::decode(&bytes.body).unwrap_or_else(|e| panic!("{e}: {read}"));
        let same = resource.decode(&json).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&json)));
        assert_eq!(without_nothing(&same.to_value()), without_nothing(&read));
    }
    let replaced = api.json("PUT", path, read.to_string().as_bytes());
    no_fault(&replaced);
    if TENDED.contains(&info.kind) {
        return;
    }
    match replaced.code {
        200 => assert_eq!(replaced.json(), read),
        405 => {}
        code => panic!("{code}: {} of {read}", replaced.text()),
    }
}

/// Path and query of a reading request in the first line, what is accepted in the second.
pub(crate) fn requests(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (uri, accept) = text.split_once('\n').unwrap_or((text, JSON));
    with_api(|api| {
        let Some(answer) = api.call("GET", uri, accept, JSON, b"") else { return true };
        no_fault(&answer);
        if answer.is_json && answer.whole && !uri.contains("watch") {
            answer.json();
        }
        true
    });
}

/// What a `continue` token says before it is encoded.
pub(crate) fn continue_token(data: &[u8]) {
    use base64::Engine;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(data);
    with_api(|api| {
        let uri = format!("/apis/rbac.authorization.k8s.io/v1/clusterroles?limit=2&continue={token}");
        let answer = api.json("GET", &uri, b"");
        let list = answer.json();
        match answer.code {
            200 => assert!(list["items"].as_array().is_some_and(|items| items.len() <= 2), "{list}"),
            410 => assert!(list["metadata"]["continue"].is_string(), "{list}"),
            code => assert!(matches!(code, 400 | 504), "{list}"),
        }
        true
    });
}

fn web() -> Value {
    json!({
        "metadata": {"name": "web", "labels": {"a": "b"}, "finalizers": ["a.test/x"]},
        "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "containers": [
                    {"name": "a", "image": "x", "args": ["x", "y"], "ports": [{"containerPort": 80, "protocol": "TCP"}]},
                    {"name": "b", "image": "y", "resources": {"requests": {"cpu": "100m"}}},
                ],
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}],
            }},
        },
    })
}

/// A patch of an object that is there; its kind is the letter in the first line. What comes of it is what is stored, and
/// what says how something shall be is the same when it is said again.
pub(crate) fn patches(data: &[u8]) {
    let Some((kind, patch)) = data.split_first_chunk::<2>() else { return };
    let (media, again) = match kind {
        b"j\n" => ("application/json-patch+json", false),
        b"m\n" => ("application/merge-patch+json", true),
        b"s\n" => ("application/strategic-merge-patch+json", false),
        b"a\n" => ("application/apply-patch+yaml", true),
        _ => return,
    };
    with_api(|api| {
        let path = "/apis/apps/v1/namespaces/default/deployments";
        let made = api.json("POST", path, web().to_string().as_bytes());
        assert_eq!(made.code, 201, "{}", made.text());
        let path = format!("{path}/web");
        let uri = format!("{path}?fieldManager=somebody{}", if kind == b"a\n" { "&force=true" } else { "" });
        let patched = api.call("PATCH", &uri, JSON, media, patch).expect("the address is one");
        no_fault(&patched);
        if patched.code == 200 {
            assert_eq!(api.json("GET", &path, b"").json(), patched.json());
            if again {
                let repeated = api.call("PATCH", &uri, JSON, media, patch).expect("the address is one");
                // What named the version it was for has been done.
                if repeated.code != 409 {
                    assert_eq!(repeated.json(), patched.json());
                }
            }
        }
        api.delete(&path)
    });
}

/// The smallest valid object of every kind, the examples of the documentation, and a few of what neither has, in JSON and
/// protobuf.
pub(crate) fn objects_seeds() -> Vec<Vec<u8>> {
    let mut objects = Vec::new();
    let valid = strict::decode_yaml(VALID.as_bytes(), None).expect("the file is YAML").value;
    for kind in valid.as_array().expect("the file is a list") {
        let (path, version) = (kind["path"].as_str().expect("a path"), kind["version"].as_str().expect("a version"));
        let mut object = kind["valid"].clone();
        object["kind"] = kind["kind"].clone();
        let group = path.strip_prefix("/apis/").and_then(|p| p.split('/').next());
        object["apiVersion"] = group.map_or(version.to_owned(), |g| format!("{g}/{version}")).into();
        if object["metadata"]["name"].is_null() {
            object["metadata"]["name"] = "x".into();
        }
        objects.push(object);
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/documentation");
    let files = std::fs::read_dir(&examples).expect("the examples are there");
    let mut files: Vec<_> = files.map(|f| f.expect("the examples can be listed").path()).collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("the examples can be read");
        for document in text.split("\n---\n") {
            objects.push(strict::decode_yaml(document.as_bytes(), None).expect("the examples are YAML").value);
        }
    }
    objects.extend(others());
    let mut seeds = Vec::new();
    // The examples have custom resources, too.
    let built_in = |text: &Vec<u8>| resource_of(text).is_some();
    for text in objects.iter().map(|o| o.to_string().into_bytes()).filter(built_in) {
        seeds.extend(protobuf::encode(&text));
        seeds.push(text);
    }
    seeds
}

fn others() -> Vec<Value> {
    let names = json!({"plural": "things", "singular": "thing", "kind": "Thing"});
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": [{"rule": "self.a > 1"}],
        "properties": {"a": {"type": "integer", "default": 2}}}}});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"});
    vec![
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.a.test"},
            "spec": {"group": "a.test", "scope": "Namespaced", "names": names, "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}]}}),
        json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.b.test"},
            "spec": {"group": "b.test", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
                "insecureSkipTLSVerify": true, "service": {"name": "x", "namespace": "default"}}}),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R", "message": "m", "type": "Normal",
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}}),
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "f"}, "reason": "R", "action": "A",
            "type": "Normal", "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "a.test/c",
            "reportingInstance": "i", "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "192.0.2.7"},
            "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "x"}}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
            "spec": {"cidrs": ["192.0.2.0/24"]}}),
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "c"},
            "spec": {"request": "YQ==", "signerName": "a.test/b", "usages": ["client auth"]}}),
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": "u", "groups": ["g"], "resourceAttributes": {"verb": "get", "resource": "pods",
                "fieldSelector": {"rawSelector": "a=b"}}}}),
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}}),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "a.b.c"}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
            "roleRef": role, "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]}),
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}),
    ]
}

pub(crate) fn requests_seeds() -> Vec<Vec<u8>> {
    [
        "/",
        "/api/v1/namespaces/default/configmaps?limit=1&resourceVersion=0",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles?limit=2&labelSelector=a%20in%20(b,c)&fieldSelector=metadata.name%21%3Dx",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles?limit=2&resourceVersion=1&resourceVersionMatch=Exact",
        "/api/v1/watch/namespaces/default/services/kubernetes?resourceVersion=1",
        "/api/v1/services?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1",
        "/api/v1/namespaces/default/services/kubernetes\napplication/json;as=Table;v=v1;g=meta.k8s.io,application/json;q=0.5",
        "/api/v1/services?includeObject=Object\napplication/json;as=Table;v=v1beta1;g=meta.k8s.io",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles\napplication/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin?pretty=true\napplication/yaml",
        "/api/v1/namespaces/default/pods/p/log?container=c&tailLines=1&sinceSeconds=1&limitBytes=1&follow=true",
        "/api/v1/nodes/n/proxy/healthz",
        "/api/v1/namespaces/default/services/https:kubernetes:443/proxy/a/b?c",
        "/apis/apps/v1/namespaces/default/deployments/d/scale",
        "/apis\napplication/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
        "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods?labelSelector=a",
        "/openapi/v2\napplication/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        "/openapi/v3/apis/apps/v1?hash=0",
        "/readyz/ping?verbose=1&exclude=etcd",
        "/livez?verbose",
        "/openid/v1/jwks",
        "/.well-known/openid-configuration",
        "/debug/api_priority_and_fairness/dump_queues",
        "/version",
    ]
    .map(|s| s.into())
    .into()
}

pub(crate) fn continue_token_seeds() -> Vec<Vec<u8>> {
    [r#"{"v":"meta.k8s.io/v1","rv":1,"start":"admin\u0000"}"#, r#"{"v":"meta.k8s.io/v1","rv":-1,"start":"edit\u0000"}"#]
        .map(|s| s.into())
        .into()
}

pub(crate) fn patches_seeds() -> Vec<Vec<u8>> {
    let json_patch = json!([
        {"op": "test", "path": "/spec/replicas", "value": 3},
        {"op": "copy", "from": "/spec/template/spec/containers/0/args", "path": "/spec/template/spec/containers/1/args"},
        {"op": "move", "from": "/spec/template/spec/containers/0", "path": "/spec/template/spec/containers/1"},
        {"op": "remove", "path": "/metadata/finalizers/0"},
    ]);
    let merge = json!({"metadata": {"labels": {"a": null, "c": "d"}}, "spec": {"replicas": 5, "paused": true}});
    let strategic = json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
        "containers": [{"name": "b", "image": "z", "ports": [{"containerPort": 81}]}, {"name": "a", "$patch": "delete"}],
        "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}],
    }}}});
    let apply = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "annotations": {"x": "y"}},
        "spec": {"replicas": 4, "template": {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 81}]}, {"name": "c", "image": "q"}]}}}});
    let take = |letter: &str, patch: &Value| format!("{letter}\n{patch}").into_bytes();
    vec![take("j", &json_patch), take("m", &merge), take("s", &strategic), take("a", &apply)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_stored_kind_is_among_the_seeds_and_is_accepted() {
        let seeds = objects_seeds();
        let mut accepted = BTreeSet::new();
        for seed in seeds.iter().filter(|s| !s.starts_with(b"k8s\0")) {
            let resource = resource_of(seed).expect("seeds are of built-in kinds");
            with_api(|api| {
                let made = api.json("POST", &collection(resource.info()), seed);
                if made.code != 201 {
                    return true;
                }
                accepted.insert((resource.info().group, resource.info().version, resource.info().kind));
                let name = made.json()["metadata"]["name"].as_str().map(segment);
                resource.info().virtual_only
                    || name.is_some_and(|n| api.delete(&format!("{}/{n}", collection(resource.info()))))
            });
        }
        let stored = kinds::ALL.iter().map(|r| r.info()).filter(|i| !i.virtual_only);
        let stored = stored.map(|i| (i.group, i.version, i.kind));
        let missing: Vec<_> = stored.filter(|kind| !accepted.contains(kind)).collect();
        // A request for a certificate needs one that is signed; its rules are fuzzed, its way into the store is not.
        assert_eq!(missing, [("certificates.k8s.io", "v1", "CertificateSigningRequest")]);
    }
}
