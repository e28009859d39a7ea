//! Tests of what does not need a webhook to be there; `tests/admission_webhook.rs` has those that do.

use super::review::{self, Malformed, Version};
use super::{Configuration, Source};
use crate::admission::memory_objects::MemoryObjects;
use crate::admission::request::{Request, take_back};
use crate::admission::rounds::Rounds;
use crate::admission::{Attributes, Operation};
use crate::authn::UserInfo;
use crate::authz::default_authorizer;
use crate::cluster::resource_of;
use gantry_api::k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use gantry_api::k8s_openapi::api::apps::v1::Deployment;
use gantry_api::k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use gantry_api::kind::{Kind, Object, Resource};
use serde_json::{Value, json};

struct Asked<'a> {
    resource: &'a dyn Resource,
    subresource: &'a str,
    namespace: &'a str,
    operation: Operation,
}

fn attributes<'a>(
    asked: &Asked<'a>,
    user: &'a UserInfo,
    object: Option<&'a mut dyn Object>,
    old: Option<&'a dyn Object>,
) -> Attributes<'a> {
    Attributes {
        operation: asked.operation,
        resource: asked.resource,
        subresource: asked.subresource,
        namespace: asked.namespace,
        name: "m",
        user,
        dry_run: false,
        object,
        old_object: old,
        options: json!({"fieldManager": "me"}),
        warnings: Vec::new(),
        rounds: Rounds::default(),
        held: Vec::new(),
    }
}

fn on<K: Kind>(namespace: &str, operation: Operation) -> Asked<'_> {
    Asked { resource: resource_of::<K>(), subresource: "", namespace, operation }
}

fn webhook(extra: Value) -> Value {
    let mut hook = json!({"name": "a.b.c", "clientConfig": {"url": "https://x"}, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
        "resources": ["*"]}]});
    for (k, v) in extra.as_object().unwrap() {
        hook[k] = v.clone();
    }
    hook
}

/// Whether a webhook wants to see a request.
async fn wanted(hook: Value, asked: &Asked<'_>, mut object: impl Kind) -> Result<bool, String> {
    let (cluster, objects) = MemoryObjects::cluster();
    objects.put::<Namespace>(json!({"metadata": {"name": "a", "labels": {"team": "x"}}}));
    let configuration = json!({"metadata": {"name": "c"}, "webhooks": [webhook(hook)]});
    let mut configuration = ValidatingWebhookConfiguration::from_value(configuration).unwrap();
    configuration.set_defaults();
    let user = UserInfo::new("alice", &["system:masters"]);
    let attributes = attributes(asked, &user, Some(&mut object), None);
    let hooks = configuration.hooks();
    let found = hooks[0].wants(&attributes, &cluster, &default_authorizer(&cluster)).await;
    found.map(|f| f.is_some()).map_err(|e| e.message)
}

#[tokio::test]
async fn rules_and_selectors() {
    let create = on::<ConfigMap>("a", Operation::Create);
    let map = || ConfigMap::from_value(json!({"metadata": {"name": "m", "labels": {"l": "1"}}})).unwrap();
    let rule = |operations: &str, group: &str, version: &str, resource: &str, scope: &str| {
        json!({"rules": [{"operations": [operations], "apiGroups": [group], "apiVersions": [version],
            "resources": [resource], "scope": scope}]})
    };
    for (hook, want) in [
        (rule("CREATE", "", "v1", "configmaps", "*"), true),
        (rule("*", "*", "*", "*", "Namespaced"), true),
        (rule("*", "*", "*", "*", "Cluster"), false),
        (rule("UPDATE", "", "v1", "configmaps", "*"), false),
        (rule("CREATE", "apps", "v1", "configmaps", "*"), false),
        (rule("CREATE", "", "v2", "configmaps", "*"), false),
        (rule("CREATE", "", "v1", "pods", "*"), false),
        (rule("CREATE", "", "v1", "configmaps/status", "*"), false),
        (rule("CREATE", "", "v1", "*/*", "*"), true),
        (json!({"namespaceSelector": {"matchLabels": {"team": "x"}}}), true),
        (json!({"namespaceSelector": {"matchLabels": {"team": "y"}}}), false),
        (json!({"objectSelector": {"matchLabels": {"l": "1"}}}), true),
        (json!({"objectSelector": {"matchExpressions": [{"key": "l", "operator": "DoesNotExist"}]}}), false),
    ] {
        assert_eq!(wanted(hook.clone(), &create, map()).await, Ok(want), "{hook}");
    }
    let elsewhere = on::<ConfigMap>("nowhere", Operation::Create);
    let hook = json!({"namespaceSelector": {"matchLabels": {"team": "x"}}});
    assert_eq!(wanted(hook, &elsewhere, map()).await, Err("namespaces \"nowhere\" not found".into()));
    let sub = Asked { subresource: "status", ..on::<Pod>("a", Operation::Update) };
    for (resource, want) in [("pods", false), ("pods/*", true), ("pods/status", true), ("*/status", true), ("*", false)]
    {
        assert_eq!(wanted(rule("*", "*", "*", resource, "*"), &sub, Pod::default()).await, Ok(want), "{resource}");
    }
    let events = on::<Event>("a", Operation::Create);
    let other_view = rule("CREATE", "events.k8s.io", "v1", "events", "*");
    assert_eq!(wanted(other_view.clone(), &events, Event::default()).await, Ok(true));
    let mut exact = other_view;
    exact["matchPolicy"] = "Exact".into();
    assert_eq!(wanted(exact, &events, Event::default()).await, Ok(false));
}

#[tokio::test]
async fn conditions() {
    let create = on::<ConfigMap>("a", Operation::Create);
    let map = || ConfigMap::from_value(json!({"metadata": {"name": "m"}, "data": {"k": "v"}})).unwrap();
    let hook = |expression: &str, policy: &str| {
        let conditions = json!([{"name": "c", "expression": expression}]);
        json!({"matchConditions": conditions, "failurePolicy": policy})
    };
    for (expression, want) in [
        ("object.data.k == 'v'", true),
        ("object.data.k == 'w'", false),
        ("request.operation == 'CREATE' && request.namespace == 'a' && request.userInfo.username == 'alice'", true),
        ("oldObject == null && request.name == 'm' && request.resource.resource == 'configmaps'", true),
        ("has(request.subResource)", false),
        ("authorizer.group('').resource('pods').namespace('a').check('get').allowed()", true),
        ("authorizer.requestResource.check('create').allowed()", true),
        ("authorizer.serviceAccount('a', 'b').path('/x').check('get').allowed()", false),
    ] {
        assert_eq!(wanted(hook(expression, "Fail"), &create, map()).await, Ok(want), "{expression}");
    }
    assert_eq!(
        wanted(hook("object.nothing == 1", "Fail"), &create, map()).await,
        Err("configmaps \"m\" is forbidden: expression 'object.nothing == 1' resulted in error: no such key: nothing"
            .into())
    );
    assert_eq!(wanted(hook("object.nothing == 1", "Ignore"), &create, map()).await, Ok(false));
}

#[tokio::test]
async fn what_is_sent() {
    let (cluster, _) = MemoryObjects::cluster();
    let user = UserInfo::new("alice", &["devs"]);
    let mut map = ConfigMap::from_value(json!({"metadata": {"name": "m"}})).unwrap();
    let asked = on::<ConfigMap>("a", Operation::Update);
    let old = map.clone();
    let request = Request::of(&attributes(&asked, &user, Some(&mut map), Some(&old)), None, &cluster).await.unwrap();
    let kind = json!({"group": "", "version": "v1", "kind": "ConfigMap"});
    let resource = json!({"group": "", "version": "v1", "resource": "configmaps"});
    assert_eq!(
        request.head,
        json!({"kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
            "name": "m", "namespace": "a", "operation": "UPDATE", "dryRun": false,
            "userInfo": {"username": "alice", "groups": ["devs", "system:authenticated"]},
            "options": {"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "me"}})
    );
    assert_eq!((&request.object, &request.object), (&request.old_object, &Kind::to_value(&map)));
}

#[tokio::test]
async fn connections_show_their_options() {
    let (cluster, _) = MemoryObjects::cluster();
    let user = UserInfo::new("alice", &[]);
    let asked =
        Asked { resource: resource_of::<Pod>(), subresource: "exec", namespace: "a", operation: Operation::Connect };
    let mut a = attributes(&asked, &user, None, None);
    a.options = json!({"stdin": ["true"], "tty": ["false"], "command": ["a", "b"], "container": ["c"]});
    let request = Request::of(&a, None, &cluster).await.unwrap();
    assert_eq!(
        request.object,
        json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdin": true, "tty": false, "command": ["a", "b"],
            "container": "c"})
    );
    assert_eq!(request.head["kind"]["kind"], "PodExecOptions");
    assert_eq!((&request.head["options"], &request.head["subResource"]), (&Value::Null, &json!("exec")));
}

#[tokio::test]
async fn a_scale_is_shown_and_taken_back() {
    let (cluster, _) = MemoryObjects::cluster();
    let user = UserInfo::new("alice", &[]);
    let asked = Asked { subresource: "scale", ..on::<Deployment>("a", Operation::Update) };
    let mut deployment = Deployment::from_value(json!({"metadata": {"name": "m", "labels": {"l": "1"}},
        "spec": {"replicas": 2, "selector": {}, "template": {}}}))
    .unwrap();
    deployment.set_defaults();
    let mut a = attributes(&asked, &user, Some(&mut deployment), None);
    let mut scale = Request::of(&a, None, &cluster).await.unwrap().object;
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    assert!(!take_back(&mut a, None, scale.clone(), &cluster).await.unwrap());
    scale["spec"]["replicas"] = 5.into();
    assert!(take_back(&mut a, None, scale, &cluster).await.unwrap());
    assert_eq!(deployment.spec.replicas, Some(5));
}

#[tokio::test]
async fn configurations_by_name_and_read_anew() {
    let (cluster, objects) = MemoryObjects::cluster();
    let source = Source::default();
    let put = |name: &str, hooks: &[&str]| {
        let hooks: Vec<Value> = hooks.iter().map(|h| webhook(json!({"name": h}))).collect();
        objects.put::<MutatingWebhookConfiguration>(json!({"metadata": {"name": name}, "webhooks": hooks}));
    };
    put("z", &["a"]);
    let ids = async || {
        let hooks = source.hooks::<MutatingWebhookConfiguration>(&cluster).await.unwrap();
        hooks.iter().map(|h| h.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids().await, ["z/a/0"]);
    put("b", &["x", "y", "x"]);
    assert_eq!(ids().await, ["b/x/0", "b/y/0", "b/x/1", "z/a/0"]);
}

fn read(mutating: bool, review: &Value) -> String {
    let answer = review::answer(Version::V1, "u", mutating, review.to_string().as_bytes());
    match answer {
        Ok(answer) => format!("{} {:?}", answer.allowed, answer.patch.map(|p| p.bytes.len())),
        Err(Malformed::Undecodable(why)) => format!("undecodable: {why}"),
        Err(Malformed::Invalid(why)) => why,
    }
}

#[test]
fn answers_are_looked_at() {
    let with =
        |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    let patch = |extra: Value| {
        let mut r = json!({"uid": "u", "allowed": true});
        r.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        with(r)
    };
    for (mutating, review, want) in [
        (true, with(json!({"uid": "u", "allowed": true})), "true None"),
        (true, with(json!({"uid": "u"})), "false None"),
        (true, json!({"apiVersion": "v1"}), "webhook response was absent"),
        (true, with(json!({"uid": "v"})), "expected response.uid=\"u\", got \"v\""),
        (
            true,
            json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {"uid": "u"}}),
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1beta1, \
             Kind=AdmissionReview",
        ),
        (true, patch(json!({"patch": "W10=", "patchType": "JSONPatch"})), "true Some(2)"),
        (true, patch(json!({"patch": "W10="})), "webhook returned response.patch but not response.patchType"),
        (true, patch(json!({"patchType": "x"})), "webhook returned response.patchType but not response.patch"),
        (false, patch(json!({"patch": "W10="})), "validating webhook may not return response.patch"),
        (false, patch(json!({"patchType": "x"})), "validating webhook may not return response.patchType"),
    ] {
        assert_eq!(read(mutating, &review), want, "{review}");
    }
    assert!(read(true, &json!([1])).starts_with("undecodable: "));
    let lax = json!({"response": {"allowed": true, "patch": "W10="}}).to_string();
    let lax = review::answer(Version::V1Beta1, "u", true, lax.as_bytes()).unwrap();
    assert_eq!(lax.patch.unwrap().kind, "JSONPatch");
}

#[test]
fn refusals_name_the_webhook() {
    let of = |status: Value| review::refusal("w", Some(serde_json::from_value::<Status>(status).unwrap()));
    let e = of(json!({"message": "no", "code": 403, "reason": "Forbidden"}));
    assert_eq!((e.code, e.message.as_str()), (403, "admission webhook \"w\" denied the request: no"));
    let e = of(json!({"reason": "the reason is ours", "code": 200}));
    assert_eq!((e.code, e.reason), (400, "the reason is ours"));
    assert_eq!(e.message, "admission webhook \"w\" denied the request: the reason is ours");
    assert_eq!(review::refusal("w", None).message, "admission webhook \"w\" denied the request without explanation");
}
