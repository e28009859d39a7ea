//! Tests of policies against objects in memory.

use super::{MutatingPolicies, ValidatingPolicies};
use crate::admission::memory_objects::MemoryObjects;
use crate::admission::rounds::Rounds;
use crate::admission::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::authn::UserInfo;
use crate::authz::default_authorizer;
use crate::cluster::resource_of;
use gantry_api::k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, ValidatingAdmissionPolicy,
    ValidatingAdmissionPolicyBinding,
};
use gantry_api::k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use gantry_api::kind::Kind;
use gantry_api::meta::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;

/// What one policy with one binding makes of a new ConfigMap `a/m` with this data: warnings, or the refusal.
async fn judge(spec: Value, binding: Value, data: Value) -> Result<Vec<String>, ApiError> {
    let (cluster, objects) = MemoryObjects::cluster();
    objects.put::<Namespace>(json!({"metadata": {"name": "a", "labels": {"team": "x"}}}));
    for (name, label) in [("one", "p"), ("two", "p"), ("three", "q")] {
        objects.put::<ConfigMap>(json!({"metadata": {"name": name, "namespace": "a", "labels": {"l": label}},
            "data": {"max": name}}));
    }
    let mut whole = json!({"matchConstraints": {"resourceRules": [{"operations": ["*"], "apiGroups": [""],
        "apiVersions": ["v1"], "resources": ["configmaps"]}]}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    objects.put::<ValidatingAdmissionPolicy>(json!({"metadata": {"name": "p"}, "spec": whole}));
    let mut whole = json!({"policyName": "p", "validationActions": ["Deny"]});
    whole.as_object_mut().unwrap().extend(binding.as_object().unwrap().clone());
    objects.put::<ValidatingAdmissionPolicyBinding>(json!({"metadata": {"name": "b"}, "spec": whole}));
    let user = UserInfo::new("alice", &["system:masters"]);
    let mut map = ConfigMap::from_value(json!({"metadata": {"name": "m", "namespace": "a"}, "data": data})).unwrap();
    let mut attributes = Attributes {
        operation: Operation::Create,
        resource: resource_of::<ConfigMap>(),
        subresource: "",
        namespace: "a",
        name: "m",
        user: &user,
        dry_run: false,
        object: Some(&mut map),
        old_object: None,
        options: Value::Null,
        warnings: Vec::new(),
        rounds: Rounds::default(),
        held: Vec::new(),
    };
    let plugin = ValidatingPolicies::new(default_authorizer(&cluster), Arc::default());
    plugin.validate(&mut attributes, &cluster).await.map(|()| attributes.warnings)
}

async fn refusal(spec: Value, binding: Value) -> String {
    judge(spec, binding, json!({"k": "v"})).await.unwrap_err().message
}

const PREFIX: &str = "configmaps \"m\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ";

#[tokio::test]
async fn refusals_and_their_messages() {
    let e = judge(json!({"validations": [{"expression": "object.data.k == 'w'"}]}), json!({}), json!({"k": "v"}))
        .await
        .unwrap_err();
    let message = format!("{PREFIX}failed expression: object.data.k == 'w'");
    assert_eq!((e.code, e.reason, &e.message), (422, "Invalid", &message));
    let causes = e.details.unwrap().causes.unwrap();
    assert!(message.ends_with(causes[0].message.as_deref().unwrap()));
    let with = |extra: Value| {
        let mut v = json!({"expression": "false"});
        v.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"validations": [v]})
    };
    for (extra, want) in [
        (json!({"message": " said "}), "said"),
        (json!({"message": "said", "messageExpression": "'not ' + object.data.k"}), "not v"),
        (json!({"message": "said", "messageExpression": "object.nothing"}), "said"),
        (json!({"message": "said", "messageExpression": "'a\\nb'"}), "said"),
        (json!({"messageExpression": "' '"}), "failed expression: false"),
    ] {
        assert_eq!(refusal(with(extra.clone()), json!({})).await, format!("{PREFIX}{want}"), "{extra}");
    }
    let e = judge(with(json!({"reason": "Forbidden"})), json!({}), json!({})).await.unwrap_err();
    assert_eq!((e.code, e.reason), (403, "Forbidden"));
}

#[tokio::test]
async fn actions() {
    let spec = || json!({"validations": [{"expression": "false", "message": "no"}]});
    let warned = judge(spec(), json!({"validationActions": ["Warn", "Audit"]}), json!({})).await.unwrap();
    assert_eq!(warned, ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': no"]);
    assert!(judge(spec(), json!({"validationActions": ["Audit"]}), json!({})).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_expressions_see() {
    for expression in [
        "oldObject == null && object.metadata.name == 'm'",
        "request.operation == 'CREATE' && request.kind.kind == 'ConfigMap' && request.namespace == 'a'",
        "namespaceObject.metadata.labels.team == 'x' && namespaceObject.metadata.name == 'a'",
        "request.userInfo.groups.exists(g, g == 'system:masters')",
        "authorizer.requestResource.check('create').allowed()",
        "variables.twice == 'vv' && variables.twice.size() == 2",
    ] {
        let variables = json!([{"name": "once", "expression": "object.data.k"},
            {"name": "twice", "expression": "variables.once + variables.once"}]);
        let spec = json!({"variables": variables, "validations": [{"expression": expression}]});
        assert!(judge(spec, json!({}), json!({"k": "v"})).await.is_ok(), "{expression}");
    }
}

#[tokio::test]
async fn failures() {
    let broken =
        |policy: &str| json!({"failurePolicy": policy, "validations": [{"expression": "object.data.x == '1'"}]});
    assert_eq!(
        refusal(broken("Fail"), json!({})).await,
        format!("{PREFIX}expression 'object.data.x == '1'' resulted in error: no such key: x")
    );
    assert!(judge(broken("Ignore"), json!({}), json!({"k": "v"})).await.is_ok());
    let variable = json!({"variables": [{"name": "v", "expression": "object.data.x"}],
        "validations": [{"expression": "variables.v == 1"}]});
    assert_eq!(
        refusal(variable, json!({})).await,
        format!(
            "{PREFIX}expression 'variables.v == 1' resulted in error: composited variable \"v\" fails to evaluate: no \
             such key: x"
        )
    );
    let skipped = json!({"matchConditions": [{"name": "c", "expression": "has(object.data.x)"}],
        "validations": [{"expression": "false"}]});
    assert!(judge(skipped, json!({}), json!({"k": "v"})).await.is_ok());
    let annotation = json!({"auditAnnotations": [{"key": "k", "valueExpression": "string(object.data.x)"}]});
    assert!(refusal(annotation, json!({"validationActions": ["Audit"]})).await.ends_with("no such key: x"));
}

#[tokio::test]
async fn parameters() {
    let spec = || {
        json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "validations": [{"expression": "params == null || params.data.max == 'one'",
                "messageExpression": "'by ' + params.data.max"}]})
    };
    let by = |r: Value| json!({"paramRef": r});
    let deny = |mut r: Value, action: &str| {
        r["parameterNotFoundAction"] = action.into();
        by(r)
    };
    assert!(judge(spec(), json!({}), json!({})).await.is_ok());
    assert!(judge(spec(), by(json!({"name": "one"})), json!({})).await.is_ok());
    assert_eq!(refusal(spec(), by(json!({"name": "two", "namespace": "a"}))).await, format!("{PREFIX}by two"));
    assert_eq!(refusal(spec(), by(json!({"selector": {"matchLabels": {"l": "p"}}}))).await, format!("{PREFIX}by two"));
    let none = json!({"name": "nothing"});
    assert!(judge(spec(), deny(none.clone(), "Allow"), json!({})).await.is_ok());
    assert_eq!(
        refusal(spec(), deny(none, "Deny")).await,
        format!(
            "{PREFIX}failed to configure binding: no params found for policy binding with `Deny` \
             parameterNotFoundAction"
        )
    );
    let unknown =
        json!({"paramKind": {"apiVersion": "x.io/v1", "kind": "Rule"}, "validations": [{"expression": "true"}]});
    assert_eq!(
        refusal(unknown, json!({})).await,
        "configmaps \"m\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: failed to configure policy: \
         failed to find resource referenced by paramKind: 'x.io/v1, Kind=Rule'"
    );
}

#[tokio::test]
async fn bindings_narrow_policies() {
    let spec = || json!({"validations": [{"expression": "false"}]});
    for (matches, refused) in [
        (json!({}), true),
        (json!({"namespaceSelector": {"matchLabels": {"team": "x"}}}), true),
        (json!({"namespaceSelector": {"matchLabels": {"team": "y"}}}), false),
        (
            json!({"excludeResourceRules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["*"],
            "resources": ["configmaps"]}]}),
            false,
        ),
        (
            json!({"resourceRules": [{"resourceNames": ["other"], "operations": ["*"], "apiGroups": [""],
            "apiVersions": ["*"], "resources": ["configmaps"]}]}),
            false,
        ),
    ] {
        let outcome = judge(spec(), json!({"matchResources": matches}), json!({})).await;
        assert_eq!(outcome.is_err(), refused, "{matches}");
    }
}

/// What a policy with these mutations makes of a new Pod `a/m` with one container; or the refusal.
async fn mutate(mutations: Value, failure_policy: &str) -> Result<Value, ApiError> {
    let (cluster, objects) = MemoryObjects::cluster();
    objects.put::<Namespace>(json!({"metadata": {"name": "a"}}));
    objects.put::<MutatingAdmissionPolicy>(json!({"metadata": {"name": "p"}, "spec": {
        "reinvocationPolicy": "Never", "failurePolicy": failure_policy, "mutations": mutations,
        "variables": [{"name": "who", "expression": "request.userInfo.username"}],
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
            "resources": ["pods"]}]}}}));
    objects.put::<MutatingAdmissionPolicyBinding>(json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}}));
    let user = UserInfo::new("alice", &[]);
    let mut pod = Pod::from_value(json!({"metadata": {"name": "m", "namespace": "a", "labels": {"l": "1"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}))
    .unwrap();
    pod.set_defaults();
    let mut attributes = Attributes {
        operation: Operation::Create,
        resource: resource_of::<Pod>(),
        subresource: "",
        namespace: "a",
        name: "m",
        user: &user,
        dry_run: false,
        object: Some(&mut pod),
        old_object: None,
        options: Value::Null,
        warnings: Vec::new(),
        rounds: Rounds::default(),
        held: Vec::new(),
    };
    MutatingPolicies::new(default_authorizer(&cluster)).admit(&mut attributes, &cluster).await?;
    Ok(Kind::to_value(&pod))
}

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

#[tokio::test]
async fn mutations() {
    let added = "Object{metadata: Object.metadata{labels: {'by': variables.who}}, spec: Object.spec{initContainers: [ \
                 Object.spec.initContainers{name: 'added', image: 'j'}]}}";
    let removed = "[JSONPatch{op: 'test', path: '/metadata/labels/by', value: 'alice'}, \
                   JSONPatch{op: 'remove', path: '/metadata/labels/l'}, \
                   JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}]";
    let pod = mutate(json!([apply(added), patch(removed)]), "Fail").await.unwrap();
    assert_eq!(pod["metadata"]["labels"], json!({"by": "alice", "a/b": "c"}));
    let init = &pod["spec"]["initContainers"][0];
    assert_eq!((&init["name"], &init["terminationMessagePolicy"]), (&json!("added"), &json!("File")));
    assert_eq!(pod["spec"]["containers"][0]["name"], "c");
    // A test that fails leaves the object as it is.
    let tested = "[JSONPatch{op: 'test', path: '/metadata/labels/l', value: '2'}, \
                  JSONPatch{op: 'remove', path: '/metadata/labels/l'}]";
    assert_eq!(mutate(json!([patch(tested)]), "Fail").await.unwrap()["metadata"]["labels"], json!({"l": "1"}));
}

#[tokio::test]
async fn mutations_that_fail() {
    let atomic = "Object{spec: Object.spec{containers: [Object.spec.containers{name: 'c', command: ['x']}]}}";
    for (mutation, why) in [
        (
            apply(atomic),
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: \
             .spec.containers[0].command",
        ),
        (
            apply("Object{spec: Object.wrong{}}"),
            "type mismatch: unexpected type name \"Object.wrong\", expected \"Object.spec\", which matches field name \
             path from root Object type",
        ),
        (
            apply("Object{metadata: Object.metadata{labels: {'a': object.nothing}}}"),
            "expression 'Object{metadata: Object.metadata{labels: {'a': object.nothing}}}' resulted in error: no such \
             key: nothing",
        ),
    ] {
        let e = mutate(json!([mutation]), "Fail").await.unwrap_err();
        assert_eq!(e.message, format!("policy 'p' with binding 'b' denied request: {why}"));
        assert_eq!((e.code, e.reason), (403, "Invalid"));
        assert!(mutate(json!([mutation]), "Ignore").await.is_ok());
    }
}
