//! Custom resources as their users meet them: kubectl on a kind the cluster has just learned, what schemas and rules do
//! to objects, subresources, columns, selectors, names in conflict, and how definitions go.

mod cluster;

use cluster::Cluster;
use cluster::api::{APPLY, Api, JSON_PATCH, MERGE, STRATEGIC, condition, names};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

#[test]
fn custom_resources() {
    let cluster = Cluster::start();
    let all = scenarios![
        with_kubectl,
        schemas_prune_default_and_judge,
        kept_and_embedded_fields,
        rules_of_schemas,
        definitions_that_are_refused,
        costly_rules,
        status_and_scale,
        columns_and_selectable_fields,
        names_in_conflict,
        a_definition_takes_its_instances_along,
        applied_by_schema,
        versions_without_a_webhook,
        what_else_sees_them,
        who_may_what,
        other_encodings,
        approval_of_protected_groups,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// A definition with one version `v1` of this schema.
fn definition(group: &str, plural: &str, kind: &str, schema: &Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")}, "spec": {"group": group, "scope": "Namespaced",
        "names": {"plural": plural, "kind": kind},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

/// Creates a definition and waits until it is established.
#[track_caller]
fn define(api: &Api<'_>, definition: &Value) -> String {
    let made = api.create(DEFINITIONS, definition);
    let path = format!("{DEFINITIONS}/{}", cluster::api::name(&made));
    api.until(&path, "established", |d| condition(d, "Established") == "True");
    path
}

/// The message of a request that is refused with this code.
#[track_caller]
fn refused(api: &Api<'_>, method: &str, path: &str, body: &Value, code: u16) -> String {
    api.send(method, path, body).expect(code)["message"].as_str().unwrap().to_owned()
}

const CRON_TAB: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: crontabs.stable.example.com
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns:
    - {name: Spec, type: string, description: The cron spec, jsonPath: .spec.cronSpec}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    schema:
      openAPIV3Schema:
        type: object
        description: A table of jobs.
        properties:
          spec:
            type: object
            description: What is wanted.
            properties:
              cronSpec: {type: string, description: When to run.}
              image: {type: string}
              replicas: {type: integer, minimum: 0}
          status:
            type: object
            properties:
              replicas: {type: integer}
"#;

fn with_kubectl(api: &Api<'_>) {
    let cluster = api.cluster;
    assert_eq!(
        cluster.apply(CRON_TAB),
        "customresourcedefinition.apiextensions.k8s.io/crontabs.stable.example.com created\n"
    );
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=90s", "crd/crontabs.stable.example.com"]);
    let object = "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: mine}\nspec: {cronSpec: '* * * * */5', \
                  image: i, replicas: 1}\n";
    assert_eq!(cluster.apply(object), "crontab.stable.example.com/mine created\n");
    assert_eq!(cluster.apply(object), "crontab.stable.example.com/mine unchanged\n");
    for name in ["crontabs", "crontab", "ct", "crontabs.stable.example.com", "CronTab", "ct/mine"] {
        let table = cluster.kubectl(&["get", name]);
        let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["NAME", "SPEC", "REPLICAS"], "{table}");
        assert_eq!(rows[1], ["mine", "*", "*", "*", "*", "*/5", "1"], "{table}");
    }
    assert!(cluster.kubectl(&["get", "all"]).contains("crontab.stable.example.com/mine"));
    let resources = cluster.kubectl(&["api-resources", "--api-group=stable.example.com"]);
    assert!(resources.contains("crontabs   ct           stable.example.com/v1   true         CronTab"), "{resources}");
    let explained = cluster.kubectl(&["explain", "crontabs.spec"]);
    assert!(explained.contains("What is wanted.") && explained.contains("cronSpec\t<string>"), "{explained}");
    cluster.kubectl(&["patch", "ct", "mine", "--type=merge", "-p", r#"{"spec":{"image":"j"}}"#]);
    cluster.kubectl(&["scale", "ct", "mine", "--replicas=3"]);
    cluster.kubectl(&["label", "ct", "mine", "a=b"]);
    cluster.kubectl(&[
        "patch",
        "ct",
        "mine",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"replicas":2}}"#,
    ]);
    let got = cluster.get(&["ct", "mine"]);
    assert_eq!(got["spec"], json!({"cronSpec": "* * * * */5", "image": "j", "replicas": 3}));
    assert_eq!((&got["status"]["replicas"], &got["metadata"]["labels"]["a"]), (&json!(2), &json!("b")));
    // Created, patched and scaled: metadata and status make no generation.
    assert_eq!(got["metadata"]["generation"], 3);
    let edit =
        cluster.command(&["edit", "ct", "mine"]).env("EDITOR", "sed -i s/image:.j/image:\\ k/").output().unwrap();
    assert!(edit.status.success(), "{edit:?}");
    assert_eq!(cluster.jsonpath(&["ct", "mine"], "{.spec.image}"), "k");
    let described = cluster.kubectl(&["describe", "ct", "mine"]);
    assert!(
        described.contains("API Version:  stable.example.com/v1") && described.contains("Cron Spec:"),
        "{described}"
    );
    let wrong = object.replace("image", "imagee");
    let error = cluster.try_kubectl_with(&["apply", "-f", "-"], &wrong);
    let error = String::from_utf8_lossy(&error.stderr).into_owned();
    assert!(error.contains("strict decoding error: unknown field \"spec.imagee\""), "{error}");
    cluster.kubectl(&["delete", "ct", "mine"]);
    assert_eq!(cluster.get(&["ct"])["items"], json!([]));
    cluster.kubectl(&["delete", "crd", "crontabs.stable.example.com"]);
    let gone = cluster.kubectl_error(&["get", "crontabs"]);
    // Whichever it is: what kubectl has in its own cache.
    let unknown = ["the server doesn't have a resource type", "the server could not find the requested resource"];
    assert!(unknown.iter().any(|u| gone.contains(u)), "{gone}");
}

fn schemas_prune_default_and_judge(api: &Api<'_>) {
    let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object",
    "required": ["name"], "properties": {
        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
        "level": {"type": "integer", "default": 3, "maximum": 9},
        "port": {"x-kubernetes-int-or-string": true},
        "nothing": {"type": "string", "nullable": true},
        "id": {"type": "string", "format": "uuid"},
        "mood": {"type": "string", "enum": ["good", "bad"]},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"},
                "v": {"type": "integer", "default": 1}}}},
    }}}});
    define(api, &definition("schemas.example.com", "things", "Thing", &schema));
    let path = "/apis/schemas.example.com/v1/namespaces/default/things";
    let thing = |name: &str, spec: Value| {
        json!({"apiVersion": "schemas.example.com/v1", "kind": "Thing",
        "metadata": {"name": name}, "spec": spec})
    };
    let made = api.create(
        path,
        &thing("a", json!({"name": "abc", "unknown": 1, "nothing": null, "port": "http", "map": [{"k": "x"}]})),
    );
    assert_eq!(
        made["spec"],
        json!({"name": "abc", "level": 3, "nothing": null, "port": "http", "map": [{"k": "x", "v": 1}]})
    );
    assert_eq!(api.get(&format!("{path}/a"))["spec"], made["spec"]);
    let message = |spec: Value| {
        let text = refused(api, "POST", path, &thing("b", spec), 422);
        let head = "Thing.schemas.example.com \"b\" is invalid: ";
        text.strip_prefix(head).unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    for (spec, why) in [
        (json!({}), "spec.name: Required value"),
        (json!({"name": "ABC"}), "spec.name: Invalid value: \"ABC\": spec.name in body should match '^[a-z]+$'"),
        (json!({"name": "abcdef"}), "spec.name: Too long: may not be more than 5 bytes"),
        (
            json!({"name": "a", "level": 10}),
            "spec.level: Invalid value: 10: spec.level in body should be less than or equal to 9",
        ),
        (
            json!({"name": "a", "level": "1"}),
            "[spec.level: Invalid value: \"string\": spec.level in body must be of type integer: \"string\", <nil>: Invalid \
             value: \"null\": some validation rules were not checked because the object was invalid; correct the existing \
             errors to complete validation]",
        ),
        (
            json!({"name": "a", "mood": "so"}),
            "spec.mood: Unsupported value: \"so\": supported values: \"good\", \"bad\"",
        ),
        (json!({"name": "a", "id": "1"}), "spec.id: Invalid value: \"1\": spec.id in body must be of type uuid: \"1\""),
        (json!({"name": "a", "set": ["x", "x"]}), "spec.set[1]: Duplicate value: \"x\""),
        (json!({"name": "a", "map": [{"k": "x"}, {"k": "x"}]}), "spec.map[1]: Duplicate value: {\"k\":\"x\"}"),
    ] {
        let found = message(spec.clone());
        // Without rules in the schema nothing is said of rules that were not checked.
        let wanted = why.strip_prefix('[').and_then(|w| w.split(", <nil>").next()).unwrap_or(why);
        assert_eq!(found, wanted, "{spec}");
    }
    let strict =
        refused(api, "POST", &format!("{path}?fieldValidation=Strict"), &thing("b", json!({"name": "a", "x": 1})), 400);
    assert_eq!(
        strict,
        "Thing in version \"v1\" cannot be handled as a Thing: strict decoding error: unknown field \"spec.x\""
    );
    let warned = api.send("POST", &format!("{path}?fieldValidation=Warn"), &thing("c", json!({"name": "a", "x": 1})));
    assert!(warned.head.contains("unknown field \\\"spec.x\\\""), "{}", warned.head);
    // A default that comes later is seen in what is stored already, and what was wrong before may stay.
    let at = format!("{DEFINITIONS}/things.schemas.example.com");
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    api.patch(
        &at,
        JSON_PATCH,
        &json!([{"op": "add", "path": format!("{schema}/mood/default"), "value": "good"},
            {"op": "replace", "path": format!("{schema}/name/maxLength"), "value": 2}]),
    );
    api.until(&format!("{path}/a"), "defaulted", |t| t["spec"]["mood"] == "good");
    api.patch(&format!("{path}/a"), MERGE, &json!({"spec": {"level": 4}}));
    let longer = refused(api, "PATCH", &format!("{path}/a"), &json!({}), 415);
    assert!(longer.contains("the body of the request was in an unknown format"), "{longer}");
    let changed = api.request("PATCH", &format!("{path}/a"), Some((MERGE, r#"{"spec": {"name": "xyz"}}"#))).expect(422);
    assert!(
        changed["message"].as_str().unwrap().ends_with("spec.name: Too long: may not be more than 2 bytes"),
        "{changed}"
    );
    let strategic = api.request("PATCH", &format!("{path}/a"), Some((STRATEGIC, "{}"))).expect(415);
    assert_eq!(strategic["reason"], "UnsupportedMediaType");
}

fn kept_and_embedded_fields(api: &Api<'_>) {
    let schema = json!({"type": "object", "properties": {
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"strict": {"type": "object", "properties": {"a": {"type": "string"}}}}},
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true}}});
    define(api, &definition("kept.example.com", "boxes", "Box", &schema));
    let path = "/apis/kept.example.com/v1/namespaces/default/boxes";
    let of = |name: &str, free: Value, pod: Value| {
        json!({"apiVersion": "kept.example.com/v1", "kind": "Box",
        "metadata": {"name": name}, "free": free, "pod": pod})
    };
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"x": 1}});
    let made = api.create(path, &of("a", json!({"any": [1, {"b": null}], "strict": {"a": "1", "b": 2}}), pod.clone()));
    assert_eq!(made["free"], json!({"any": [1, {"b": null}], "strict": {"a": "1"}}));
    assert_eq!(made["pod"], pod);
    let no_kind = refused(api, "POST", path, &of("b", json!({}), json!({"metadata": {"name": "P P"}})), 422);
    for part in
        ["pod.apiVersion: Required value", "pod.kind: Required value", "pod.metadata.name: Invalid value: \"P P\""]
    {
        let fine = no_kind.contains(part) || part.starts_with("pod.metadata.name");
        assert!(fine, "{part} in {no_kind}");
    }
    let mut odd = pod;
    odd["metadata"]["odd"] = 1.into();
    let strict = refused(api, "POST", &format!("{path}?fieldValidation=Strict"), &of("c", json!({}), odd.clone()), 400);
    assert!(strict.ends_with("strict decoding error: unknown field \"pod.metadata.odd\""), "{strict}");
    assert!(api.create(path, &of("d", json!({}), odd))["pod"]["metadata"].get("odd").is_none());
}

fn rules_of_schemas(api: &Api<'_>) {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "messageExpression": "'min is above ' + 'max'",
                "fieldPath": ".min", "reason": "FieldValueForbidden"},
            {"rule": "self.name == oldSelf.name", "message": "name is immutable"},
            {"rule": "!has(self.grown) || !oldSelf.hasValue() || self.grown >= oldSelf.value().grown",
                "optionalOldSelf": true, "message": "only grows"}],
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"},
            "grown": {"type": "integer"},
            "list": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 9,
                "x-kubernetes-validations": [{"rule": "self.startsWith('a')"}]}}}}}});
    define(api, &definition("rules.example.com", "ranges", "Range", &schema));
    let path = "/apis/rules.example.com/v1/namespaces/default/ranges";
    let of = |name: &str, spec: Value| {
        json!({"apiVersion": "rules.example.com/v1", "kind": "Range",
        "metadata": {"name": name}, "spec": spec})
    };
    api.create(path, &of("a", json!({"min": 1, "max": 2, "name": "n", "grown": 1})));
    assert_eq!(
        refused(api, "POST", path, &of("b", json!({"min": 3, "max": 2, "name": "n", "list": ["a", "b"]})), 422),
        "Range.rules.example.com \"b\" is invalid: [spec.min: Forbidden: min is above max, spec.list[1]: Invalid value: \
         \"b\": failed rule: self.startsWith('a')]"
    );
    let patch = |body: Value| api.request("PATCH", &format!("{path}/a"), Some((MERGE, &body.to_string())));
    let why = |body: Value| patch(body).expect(422)["message"].as_str().unwrap().to_owned();
    assert!(why(json!({"spec": {"name": "m"}})).ends_with("spec: Invalid value: name is immutable"));
    assert!(why(json!({"spec": {"grown": 0}})).ends_with("spec: Invalid value: only grows"));
    patch(json!({"spec": {"grown": 5}})).expect(200);
    // A stricter rule lets be what is there, as long as it stays as it is.
    let rules = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations/-";
    api.patch(
        &format!("{DEFINITIONS}/ranges.rules.example.com"),
        JSON_PATCH,
        &json!([{"op": "add", "path": rules, "value": {"rule": "self.max > 10", "message": "too small"}}]),
    );
    api.cluster.wait_for("the new rule", || {
        (api.send("POST", path, &of("c", json!({"min": 1, "max": 2, "name": "n"}))).code == 422).then_some(())
    });
    patch(json!({"metadata": {"labels": {"a": "b"}}})).expect(200);
    assert!(why(json!({"spec": {"grown": 6}})).ends_with("spec: Invalid value: too small"));
}

fn definitions_that_are_refused(api: &Api<'_>) {
    let base = |schema: Value| definition("refused.example.com", "bads", "Bad", &schema);
    let why = |d: &Value| refused(api, "POST", DEFINITIONS, d, 422);
    let head = "CustomResourceDefinition.apiextensions.k8s.io \"bads.refused.example.com\" is invalid: ";
    let object = json!({"type": "object"});
    let mut misnamed = base(object.clone());
    misnamed["metadata"]["name"] = "x.refused.example.com".into();
    assert!(why(&misnamed).contains(
        "metadata.name: Invalid value: \"x.refused.example.com\": must be spec.names.plural+\".\"+spec.group"
    ));
    let mut two = base(object.clone());
    two["spec"]["versions"][0]["storage"] = false.into();
    assert!(why(&two).contains("must have exactly one version marked as storage version"));
    let unstructured = base(json!({"type": "object", "properties": {"a": {}, "b": {"type": "array"}}}));
    let at = "spec.validation.openAPIV3Schema.properties";
    assert_eq!(
        why(&unstructured),
        format!(
            "{head}[{at}[a].type: Required value: must not be empty for specified object fields, {at}[b].items: Required \
             value: must be specified]"
        )
    );
    let undefined = base(json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [{"rule": "self.z == 100"}], "properties": {"x": {"type": "integer"}}}}}));
    assert!(why(&undefined).contains("undefined field 'z'"), "{}", why(&undefined));
    let default = base(json!({"type": "object", "properties": {"n": {"type": "integer", "default": "x"}}}));
    assert!(why(&default).contains(&format!("{at}[n].default: Invalid value: \"string\"")), "{}", why(&default));
    let mut preserved = base(object);
    preserved["spec"]["preserveUnknownFields"] = true.into();
    let instead =
        "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
    let found = why(&preserved);
    assert!(found.contains(&format!("spec.preserveUnknownFields: Invalid value: true: {instead}")), "{found}");
    // What is there may not move.
    let path = define(api, &definition("refused.example.com", "fixed", "Fixed", &json!({"type": "object"})));
    let moved = api.request("PATCH", &path, Some((MERGE, r#"{"spec": {"scope": "Cluster"}}"#))).expect(422);
    assert!(
        moved["message"].as_str().unwrap().contains("spec.scope: Invalid value: \"Cluster\": field is immutable"),
        "{moved}"
    );
}

fn costly_rules(api: &Api<'_>) {
    let list = |bounds: Value| {
        let mut list = json!({"type": "array", "items": {"type": "string",
            "x-kubernetes-validations": [{"rule": "self.contains('x')"}]}});
        list.as_object_mut().unwrap().extend(bounds.as_object().unwrap().clone());
        json!({"type": "object", "properties": {"list": {"type": "array", "items": list}}})
    };
    let why =
        refused(api, "POST", DEFINITIONS, &definition("cost.example.com", "costs", "Cost", &list(json!({}))), 422);
    assert!(
        why.contains("estimated rule cost exceeds budget by factor of") && why.contains("try simplifying the rule"),
        "{why}"
    );
    // What one object may cost is bounded, too.
    let pairs = json!({"type": "object", "properties": {"list": {"type": "array", "maxItems": 1500,
        "x-kubernetes-validations": [{"rule": "self.all(x, self.exists_one(y, x == y))"}],
        "items": {"type": "integer"}}}});
    define(api, &definition("cost.example.com", "pairs", "Pair", &pairs));
    let path = "/apis/cost.example.com/v1/namespaces/default/pairs";
    let of = |name: &str, n: usize| json!({"metadata": {"name": name}, "list": (0..n).collect::<Vec<_>>()});
    api.create(path, &of("few", 10));
    let many = refused(api, "POST", path, &of("many", 1500), 422);
    assert!(many.contains("no further validation rules will be run due to call cost exceeds limit for rule"), "{many}");
}

fn status_and_scale(api: &Api<'_>) {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
        "status": {"type": "object", "properties": {
            "size": {"type": "integer", "maximum": 5}, "selector": {"type": "string"}}}}});
    let mut crd = definition("sub.example.com", "packs", "Pack", &schema);
    crd["spec"]["versions"][0]["subresources"] = json!({"status": {}, "scale": {"specReplicasPath": ".spec.size",
        "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.selector"}});
    define(api, &crd);
    let path = "/apis/sub.example.com/v1/namespaces/default/packs";
    let made = api.create(path, &json!({"metadata": {"name": "a"}, "spec": {"size": 2}, "status": {"size": 1}}));
    assert_eq!((&made["status"], &made["metadata"]["generation"]), (&Value::Null, &json!(1)));
    let a = format!("{path}/a");
    let status = format!("{a}/status");
    let patched = api.patch(
        &status,
        MERGE,
        &json!({"spec": {"size": 9}, "metadata": {"labels": {"x": "y"}}, "status": {"size": 1, "selector": "a=b"}}),
    );
    assert_eq!((&patched["spec"]["size"], &patched["status"]["size"]), (&json!(2), &json!(1)));
    assert_eq!((&patched["metadata"]["generation"], &patched["metadata"]["labels"]), (&json!(1), &Value::Null));
    let wrong = api.request("PATCH", &status, Some((MERGE, r#"{"status": {"size": 6}}"#))).expect(422);
    assert!(
        wrong["message"]
            .as_str()
            .unwrap()
            .contains("status.size: Invalid value: 6: size in body should be less than or equal to 5"),
        "{wrong}"
    );
    let changed = api.edit(&a, |o| {
        o["spec"]["size"] = 3.into();
        o["status"] = json!({"size": 4});
    });
    assert_eq!((&changed["status"]["size"], &changed["metadata"]["generation"]), (&json!(1), &json!(2)));
    let scale = api.get(&format!("{a}/scale"));
    assert_eq!((&scale["apiVersion"], &scale["kind"]), (&json!("autoscaling/v1"), &json!("Scale")));
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]), (&json!(3), &json!({"replicas": 1, "selector": "a=b"})));
    api.patch(&format!("{a}/scale"), MERGE, &json!({"spec": {"replicas": 7}}));
    assert_eq!(api.get(&a)["spec"]["size"], 7);
    let negative =
        api.request("PATCH", &format!("{a}/scale"), Some((MERGE, r#"{"spec": {"replicas": -1}}"#))).expect(422);
    assert!(negative["message"].as_str().unwrap().contains("must be greater than or equal to 0"), "{negative}");
    api.create(path, &json!({"metadata": {"name": "none"}}));
    let none = api.try_get(&format!("{path}/none/scale")).expect(500);
    assert!(
        none["message"].as_str().unwrap().contains("the spec replicas field \".spec.size\" does not exist"),
        "{none}"
    );
}

fn columns_and_selectable_fields(api: &Api<'_>) {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "color": {"type": "string"}, "size": {"type": "integer"}, "ok": {"type": "boolean"},
        "born": {"type": "string", "format": "date-time"}}}}});
    let mut crd = definition("fields.example.com", "shirts", "Shirt", &schema);
    let version = &mut crd["spec"]["versions"][0];
    version["additionalPrinterColumns"] = json!([{"name": "Color", "type": "string", "jsonPath": ".spec.color"},
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "OK", "type": "boolean", "jsonPath": ".spec.ok"},
        {"name": "Wide", "type": "string", "jsonPath": ".metadata.uid", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]);
    version["selectableFields"] = json!([{"jsonPath": ".spec.color"}, {"jsonPath": ".spec.size"}]);
    define(api, &crd);
    let path = "/apis/fields.example.com/v1/namespaces/default/shirts";
    for (name, color, size) in [("a", "red", 1), ("b", "blue", 2), ("c", "red", 2)] {
        api.create(path, &json!({"metadata": {"name": name}, "spec": {"color": color, "size": size, "ok": true}}));
    }
    assert_eq!(names(&api.list(&format!("{path}?fieldSelector=spec.color%3Dred"))), ["a", "c"]);
    assert_eq!(names(&api.list(&format!("{path}?fieldSelector=spec.color%3Dred,spec.size%3D2"))), ["c"]);
    assert_eq!(names(&api.list(&format!("{path}?fieldSelector=spec.color!%3Dred"))), ["b"]);
    let unknown = api.try_get(&format!("{path}?fieldSelector=spec.ok%3Dtrue")).expect(400);
    assert!(unknown["message"].as_str().unwrap().contains("field label not supported: spec.ok"), "{unknown}");
    let watch = api.watch(&format!("{path}?fieldSelector=spec.color%3Dblue"));
    watch.expect("ADDED", "b");
    api.patch(&format!("{path}/a"), MERGE, &json!({"spec": {"color": "blue"}}));
    watch.expect("ADDED", "a");
    api.patch(&format!("{path}/b"), MERGE, &json!({"spec": {"color": "red"}}));
    watch.expect("DELETED", "b");
    let published = api.get("/openapi/v3/apis/fields.example.com/v1");
    let shirt = &published["components"]["schemas"]["com.example.fields.v1.Shirt"];
    let selectable = json!([{"fieldPath": "spec.color"}, {"fieldPath": "spec.size"}]);
    assert_eq!(shirt["x-kubernetes-selectable-fields"], selectable);
    let table = api.cluster.kubectl(&["get", "shirts", "-o", "wide"]);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "COLOR", "SIZE", "OK", "WIDE", "AGE"]);
    let table = api.cluster.kubectl(&["get", "shirts"]);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["a", "blue", "1", "true"], "{table}");
}

fn names_in_conflict(api: &Api<'_>) {
    let object = json!({"type": "object"});
    let first = define(api, &definition("names.example.com", "cats", "Cat", &object));
    let mut other = definition("names.example.com", "dogs", "Cat", &object);
    other["spec"]["names"]["shortNames"] = json!(["cat"]);
    api.create(DEFINITIONS, &other);
    let second = format!("{DEFINITIONS}/dogs.names.example.com");
    let refused = api.until(&second, "judged", |d| condition(d, "NamesAccepted") == "False");
    assert_eq!(condition(&refused, "Established"), "False");
    let of = |kind: &str| {
        refused["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap().clone()
    };
    assert_eq!(
        (&of("NamesAccepted")["reason"], &of("NamesAccepted")["message"]),
        (&json!("ListKindConflict"), &json!("\"CatList\" is already in use"))
    );
    assert_eq!(
        (&of("Established")["reason"], &of("Established")["message"]),
        (&json!("NotAccepted"), &json!("not all names are accepted"))
    );
    assert_eq!(api.try_get("/apis/names.example.com/v1/namespaces/default/dogs").code, 404);
    // Names are free when their owner has gone.
    api.delete(&first);
    api.gone(&first);
    api.until(&second, "established", |d| condition(d, "Established") == "True");
    api.get("/apis/names.example.com/v1/namespaces/default/dogs");
}

fn a_definition_takes_its_instances_along(api: &Api<'_>) {
    let crd = define(api, &definition("going.example.com", "leaves", "Leaf", &json!({"type": "object"})));
    let path = "/apis/going.example.com/v1/namespaces/default/leaves";
    api.create(path, &json!({"metadata": {"name": "free"}}));
    api.create(path, &json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}));
    let watch = api.watch(path);
    api.delete(&crd);
    watch.find("DELETED", |o| o["metadata"]["name"] == "free");
    let going = api.until(&crd, "terminating", |d| condition(d, "Terminating") == "True");
    assert_eq!(going["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    api.cluster.wait_for("no new ones", || {
        (api.send("POST", path, &json!({"metadata": {"name": "late"}})).code != 201).then_some(())
    });
    let late = api.send("POST", path, &json!({"metadata": {"name": "late"}}));
    let why = "create not allowed while custom resource definition is terminating";
    assert_eq!(late.expect(403)["message"], format!("leaves.going.example.com \"late\" is forbidden: {why}"));
    api.patch(&format!("{path}/held"), MERGE, &json!({"metadata": {"finalizers": null}}));
    api.gone(&crd);
    assert_eq!(api.try_get(path).code, 404);
    // The same name again is another definition, with nothing of the old one's objects.
    define(api, &definition("going.example.com", "leaves", "Leaf", &json!({"type": "object"})));
    assert!(api.list(path).is_empty());
}

fn applied_by_schema(api: &Api<'_>) {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
            "items": {"type": "object", "required": ["port"], "properties": {
                "port": {"type": "integer"}, "name": {"type": "string"}}}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "whole": {"type": "array", "items": {"type": "string"}}}}}});
    define(api, &definition("ssa.example.com", "plans", "Plan", &schema));
    let path = "/apis/ssa.example.com/v1/namespaces/default/plans/a";
    let apply = |manager: &str, spec: Value| {
        let body = json!({"apiVersion": "ssa.example.com/v1", "kind": "Plan", "metadata": {"name": "a"}, "spec": spec});
        api.request("PATCH", &format!("{path}?fieldManager={manager}"), Some((APPLY, &body.to_string())))
    };
    apply("one", json!({"ports": [{"port": 1, "name": "x"}], "set": ["a"], "whole": ["1"]})).expect(201);
    let both = apply("two", json!({"ports": [{"port": 2}], "set": ["b"]})).expect(200);
    assert_eq!(both["spec"]["ports"], json!([{"port": 1, "name": "x"}, {"port": 2}]));
    assert_eq!(both["spec"]["set"], json!(["a", "b"]));
    let conflict = apply("two", json!({"whole": ["2"]})).expect(409);
    assert_eq!(conflict["message"], "Apply failed with 1 conflict: conflict with \"one\": .spec.whole");
    let less = apply("one", json!({"whole": ["1"]})).expect(200);
    assert_eq!((&less["spec"]["set"], less["spec"]["ports"].as_array().unwrap().len()), (&json!(["b"]), 1));
    let unknown = apply("one", json!({"nope": 1})).expect(500);
    assert!(unknown["message"].as_str().unwrap().contains(".spec.nope: field not declared in schema"), "{unknown}");
}

fn versions_without_a_webhook(api: &Api<'_>) {
    let mut crd = definition(
        "versions.example.com",
        "files",
        "File",
        &json!({"type": "object", "properties": {"a": {"type": "string"}}}),
    );
    let other = json!({"name": "v2beta1", "served": true, "storage": false, "deprecated": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "a": {"type": "string"}, "b": {"type": "string"}}}}});
    crd["spec"]["versions"].as_array_mut().unwrap().push(other);
    let at = define(api, &crd);
    assert_eq!(api.get(&at)["status"]["storedVersions"], json!(["v1"]));
    let group = api.get("/apis/versions.example.com");
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let of = |version: &str| format!("/apis/versions.example.com/{version}/namespaces/default/files");
    let made = api.send("POST", &of("v2beta1"), &json!({"metadata": {"name": "f"}, "a": "1", "b": "2"}));
    assert!(made.head.contains("versions.example.com/v2beta1 File is deprecated"), "{}", made.head);
    assert_eq!(made.expect(201)["apiVersion"], "versions.example.com/v2beta1");
    // Stored as v1, which knows no b.
    assert_eq!(api.get(&format!("{}/f", of("v2beta1"))).get("b"), None);
    let watch = api.watch(&of("v1"));
    assert_eq!(watch.expect("ADDED", "f")["apiVersion"], "versions.example.com/v1");
    api.edit(&at, |d| {
        d["spec"]["versions"][0]["storage"] = false.into();
        d["spec"]["versions"][1]["storage"] = true.into();
    });
    assert_eq!(api.get(&at)["status"]["storedVersions"], json!(["v1", "v2beta1"]));
    api.cluster.wait_for("b is kept", || {
        let kept = api.patch(&format!("{}/f", of("v2beta1")), MERGE, &json!({"b": "3"}));
        (kept["b"] == "3" && api.get(&format!("{}/f", of("v2beta1")))["b"] == "3").then_some(())
    });
    let lost = api.send("PUT", &at, &{
        let mut d = api.get(&at);
        d["spec"]["versions"].as_array_mut().unwrap().remove(0);
        d
    });
    assert!(
        lost.expect(422)["message"]
            .as_str()
            .unwrap()
            .contains("missing from spec.versions; v1 was previously a storage version")
    );
    // A version that is not served any more is not there; what was stored is.
    api.edit(&at, |d| d["spec"]["versions"][0]["served"] = false.into());
    api.cluster.wait_for("v1 gone", || (api.try_get(&of("v1")).code == 404).then_some(()));
    assert_eq!(names(&api.list(&of("v2beta1"))), ["f"]);
    let left = |group: &Value| group["versions"].as_array().unwrap().len() == 1;
    api.until("/apis/versions.example.com", "one version", left);
}

fn what_else_sees_them(api: &Api<'_>) {
    define(api, &definition("seen.example.com", "owners", "Owner", &json!({"type": "object"})));
    let namespace = api.namespace("seen");
    let path = format!("/apis/seen.example.com/v1/namespaces/{namespace}/owners");
    let owner = api.create(&path, &json!({"metadata": {"name": "o"}}));
    let reference =
        json!([{"apiVersion": "seen.example.com/v1", "kind": "Owner", "name": "o", "uid": owner["metadata"]["uid"]}]);
    let map = format!("/api/v1/namespaces/{namespace}/configmaps");
    api.create(&map, &json!({"metadata": {"name": "m", "ownerReferences": reference}}));
    let child = api.create(&path, &json!({"metadata": {"name": "child", "ownerReferences": reference}}));
    assert_eq!(child["metadata"]["ownerReferences"][0]["name"], "o");
    api.delete(&format!("{path}/o"));
    api.gone(&format!("{map}/m"));
    api.gone(&format!("{path}/child"));
    // A namespace takes them along.
    api.create(&path, &json!({"metadata": {"name": "last"}}));
    api.delete(&format!("/api/v1/namespaces/{namespace}"));
    api.gone(&format!("/api/v1/namespaces/{namespace}"));
    assert!(api.list("/apis/seen.example.com/v1/owners").is_empty());
}

fn who_may_what(api: &Api<'_>) {
    define(api, &definition("rbac.example.com", "secretsauces", "SecretSauce", &json!({"type": "object"})));
    let namespace = api.namespace("sauces");
    let path = format!("/apis/rbac.example.com/v1/namespaces/{namespace}/secretsauces");
    api.create(&path, &json!({"metadata": {"name": "s"}}));
    let jane = api.impersonate("jane", &["system:authenticated"]);
    let no = jane.try_get(&path).expect(403);
    assert_eq!(
        no["message"],
        format!(
            "secretsauces.rbac.example.com is forbidden: User \"jane\" cannot list resource \"secretsauces\" in API group \
             \"rbac.example.com\" in the namespace \"{namespace}\""
        )
    );
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
    api.create(
        &format!("{rbac}/roles"),
        &json!({"metadata": {"name": "r"}, "rules": [
        {"apiGroups": ["rbac.example.com"], "resources": ["secretsauces"], "verbs": ["get", "list"]}]}),
    );
    api.create(
        &format!("{rbac}/rolebindings"),
        &json!({"metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]}),
    );
    api.cluster.wait_for("jane may", || (jane.try_get(&path).code == 200).then_some(()));
    assert_eq!(jane.send("DELETE", &format!("{path}/s"), &json!({})).code, 403);
}

fn other_encodings(api: &Api<'_>) {
    define(
        api,
        &definition(
            "wire.example.com",
            "wires",
            "Wire",
            &json!({"type": "object", "properties": {"a": {"type": "string"}}}),
        ),
    );
    let path = "/apis/wire.example.com/v1/namespaces/default/wires";
    api.create(path, &json!({"metadata": {"name": "w"}, "a": "1"}));
    // A client that would rather have protobuf gets JSON; one that takes nothing else gets nothing.
    let rather = api.with_header("Accept: application/vnd.kubernetes.protobuf,application/json");
    let got = rather.try_get(&format!("{path}/w"));
    assert!(got.head.contains("application/json"), "{}", got.head);
    assert_eq!(got.expect(200)["a"], "1");
    assert_eq!(rather.list(path).len(), 1);
    let only = api.with_header("Accept: application/vnd.kubernetes.protobuf").try_get(path);
    assert_eq!(only.code, 406, "{}", only.text);
    let yaml = api.with_header("Accept: application/yaml").try_get(&format!("{path}/w"));
    assert!(yaml.text.contains("kind: Wire"), "{}", yaml.text);
    let meta = api.with_header("Accept: application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").get(path);
    assert_eq!(
        (&meta["kind"], &meta["items"][0]["metadata"]["name"]),
        (&json!("PartialObjectMetadataList"), &json!("w"))
    );
}

fn approval_of_protected_groups(api: &Api<'_>) {
    let mut crd = definition("things.k8s.io", "approveds", "Approved", &json!({"type": "object"}));
    let why = refused(api, "POST", DEFINITIONS, &crd, 422);
    assert!(
        why.contains(
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \
             \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"
        ),
        "{why}"
    );
    crd["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, for a test"});
    let path = define(api, &crd);
    let made = api.until(&path, "judged", |d| !condition(d, "KubernetesAPIApprovalPolicyConformant").is_empty());
    let all = made["status"]["conditions"].as_array().unwrap();
    let found = all.iter().find(|c| c["type"] == "KubernetesAPIApprovalPolicyConformant").unwrap();
    assert_eq!((&found["status"], &found["reason"]), (&json!("False"), &json!("UnapprovedAnnotation")));
}
