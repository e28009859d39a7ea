//! JSON as expressions see it, with and without a schema, and what libraries get from the embedder.

use std::sync::{Arc, Mutex};

use gantry_cel::{
    Activation, Authorizer, Constructed, Decision, Environment, Expected, JsonPatch, JsonView, Library, Limits, Schema,
    SchemaProvider, Subject, Type, Value,
};
use serde_json::json;

fn schema() -> Arc<Schema> {
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "replicas": {"type": "integer"},
                    "ratio": {"type": "number"},
                    "namespace": {"type": "string"},
                    "my-name": {"type": "string"},
                    "port": {"x-kubernetes-int-or-string": true},
                    "start": {"type": "string", "format": "date-time"},
                    "timeout": {"type": "string", "format": "duration"},
                    "data": {"type": "string", "format": "byte"},
                    "none": {"type": "string", "nullable": true},
                    "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                    "map": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["k"],
                        "items": {
                            "type": "object",
                            "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}
                        }
                    },
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}}
                }
            }
        }
    });
    Arc::new(Schema::from_openapi(&schema, "selfType", true).unwrap())
}

fn environment(schema: &Arc<Schema>) -> Environment {
    Environment::kubernetes()
        .variable("self", schema.cel_type())
        .variable("oldSelf", schema.cel_type())
        .provider(Arc::new(SchemaProvider::new().with("self", schema)))
        .build()
}

#[test]
fn fields_have_their_types_and_names() {
    let schema = schema();
    let env = environment(&schema);
    let data = |set: [&str; 2], order: [i64; 2]| {
        json!({
            "kind": "Thing",
            "metadata": {"name": "thing", "labels": {"hidden": "x"}},
            "spec": {
                "replicas": 3, "ratio": 2, "namespace": "ns", "my-name": "n", "port": "http", "none": null,
                "start": "2020-01-02T03:04:05Z", "timeout": "90s", "data": "aGk=", "set": set, "unknown": 1,
                "map": [{"k": "a", "v": order[0]}, {"k": "b", "v": order[1]}],
                "labels": {"app.kubernetes.io/name": "x"}
            }
        })
    };
    let view = |json| schema.value(JsonView::new(Arc::new(json))).unwrap();
    let mut activation = Activation::new();
    activation.set("self", view(data(["a", "b"], [1, 2])));
    let mut swapped = data(["b", "a"], [1, 2]);
    swapped["spec"]["map"].as_array_mut().unwrap().reverse();
    activation.set("oldSelf", view(swapped));
    for text in [
        "self.spec.replicas == 3 && type(self.spec.ratio) == double && self.spec.ratio == 2.0",
        "self.spec.__namespace__ == 'ns' && self.spec.my__dash__name == 'n' && self.spec.port == 'http'",
        "self.spec.start.getHours() == 3 && self.spec.timeout == duration('1m30s') && self.spec.data == b'hi'",
        "!has(self.spec.none) && !has(self.apiVersion) && has(self.kind) && self.metadata.name == 'thing'",
        "self.spec.set == oldSelf.spec.set && self.spec.map == oldSelf.spec.map",
        "self.spec.set + ['b', 'c'] == ['a', 'b', 'c']",
        "(self.spec.map + oldSelf.spec.map).size() == 2",
        "self.spec.labels['app.kubernetes.io/name'] == 'x' && self.spec.labels.all(k, k.contains('/'))",
        "self.spec.?none.orValue('default') == 'default' && self.spec.map.exists(e, e.k == 'b' && e.v == 2)",
    ] {
        let program = env.compile(text, Type::Bool).unwrap_or_else(|issues| panic!("{text}\n{}", issues[0]));
        let (value, _) = program.eval(&activation, Limits::PER_CALL).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(value.as_bool(), Some(true), "{text}");
    }
    for (text, message) in [
        ("self.spec.missing", "undefined field 'missing'"),
        ("self.spec.unknown", "undefined field 'unknown'"),
        ("self.metadata.labels", "undefined field 'labels'"),
        ("self.spec.replicas == 'a'", "found no matching overload for '_==_' applied to '(int, string)'"),
    ] {
        let issues = env.compile(text, Expected::Any).err().unwrap();
        assert_eq!(issues[0].message, message, "{text}");
    }
    let program = env.compile("self.apiVersion == 'v1'", Type::Bool).ok().unwrap();
    let error = program.eval(&activation, Limits::PER_CALL).unwrap_err();
    assert_eq!(error.to_string(), "no such key: apiVersion");
}

#[test]
fn json_without_a_schema_is_dynamic() {
    let env = Environment::kubernetes().variable("object", Type::Dyn).build();
    let object = Value::from_json(Arc::new(json!({"a": [1, 2.5, "x", null, {"b": true}], "n": -1})));
    let activation = Activation::new().with("object", object);
    for text in [
        "object.a[0] == 1 && object.a[1] == 2.5 && object.a[2] == 'x' && object.a[3] == null && object.a[4].b",
        "object.n < 0 && object.n < 0.5 && size(object.a) == 5 && 'a' in object && !has(object.b)",
        "object.a.exists(e, e == 'x') && object.all(k, k in ['a', 'n'])",
    ] {
        let program = env.compile(text, Type::Bool).unwrap_or_else(|issues| panic!("{text}\n{}", issues[0]));
        assert_eq!(program.eval(&activation, Limits::PER_CALL).unwrap().0.as_bool(), Some(true), "{text}");
    }
}

/// Remembers what it was asked.
#[derive(Default)]
struct Recorder {
    asked: Arc<Mutex<Vec<(Subject, String)>>>,
    who: String,
}

impl Authorizer for Recorder {
    fn check(&self, subject: &Subject, verb: &str) -> Decision {
        self.asked.lock().unwrap().push((subject.clone(), verb.to_owned()));
        Decision { allowed: self.who.is_empty(), reason: self.who.clone(), error: Some("broken".into()) }
    }

    fn service_account(&self, namespace: &str, name: &str) -> Arc<dyn Authorizer> {
        Arc::new(Recorder { asked: self.asked.clone(), who: format!("{namespace}/{name}") })
    }
}

#[test]
fn the_authorizer_is_asked() {
    let env = Environment::kubernetes().variable("authorizer", Type::authorizer()).build();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let recorder = Recorder { asked: asked.clone(), who: String::new() };
    let activation = Activation::new().with("authorizer", Value::authorizer(Arc::new(recorder)));
    let run = |text: &str| {
        let program = env.compile(text, Expected::Any).unwrap_or_else(|issues| panic!("{text}\n{}", issues[0]));
        program.eval(&activation, Limits::default()).map(|(value, _)| value.to_string()).map_err(|e| e.to_string())
    };
    let check = "authorizer.group('apps').resource('deployments').subresource('scale').namespace('ns').name('n')\
                 .fieldSelector('a=b').labelSelector('c=d').check('get')";
    assert_eq!(run(&format!("{check}.allowed() && {check}.errored() && {check}.error() == 'broken'")).unwrap(), "true");
    let expected = Subject::Resource {
        group: "apps".into(),
        resource: "deployments".into(),
        subresource: "scale".into(),
        namespace: "ns".into(),
        name: "n".into(),
        field_selector: "a=b".into(),
        label_selector: "c=d".into(),
    };
    assert_eq!(asked.lock().unwrap()[0], (expected, "get".to_owned()));
    assert_eq!(run("authorizer.serviceAccount('ns', 'sa').path('/x').check('get').reason()").unwrap(), "ns/sa");
    assert_eq!(run("authorizer.path(' ').check('get').allowed()").unwrap_err(), "path must not be empty");
    assert_eq!(
        run("authorizer.group('').resource('').check('get').allowed()").unwrap_err(),
        "resource must not be empty"
    );
    assert_eq!(run("authorizer.serviceAccount('ns', '_').path('/')").unwrap_err(), "Invalid service account name");
    assert_eq!(run("authorizer.serviceAccount('N', 'a').path('/')").unwrap_err(), "Invalid service account namespace");
}

#[test]
fn mutations_are_constructed() {
    let env = Environment::kubernetes().library(Library::JsonPatch).build();
    let run = |text: &str| {
        let program = env.compile(text, Expected::Any).unwrap_or_else(|issues| panic!("{text}\n{}", issues[0]));
        program.eval(&Activation::new(), Limits::default()).unwrap().0
    };
    let patches = run("[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b~c'), value: 'x'}]");
    let Value::List(list) = patches else { panic!("no list") };
    let first = list.get(0).unwrap();
    let patch = first.downcast::<JsonPatch>().unwrap();
    assert_eq!((patch.op.as_str(), patch.path.as_str()), ("add", "/metadata/labels/a~1b~0c"));
    assert_eq!(patch.value.as_ref().unwrap().to_json().unwrap(), json!("x"));

    let object = run("Object{spec: Object.spec{replicas: 3, list: [Object.spec.list{a: 'b'}], map: {'k': 1}}}");
    let object = object.downcast::<Constructed>().unwrap();
    assert_eq!(object.to_json().unwrap(), json!({"spec": {"replicas": 3, "list": [{"a": "b"}], "map": {"k": 1}}}));
    assert!(object.check_type_names().is_ok());
    let wrong = run("Object{spec: Object.status{replicas: 3}}");
    let error = wrong.downcast::<Constructed>().unwrap().check_type_names().unwrap_err().to_string();
    assert!(error.starts_with("unexpected type name \"Object.status\", expected \"Object.spec\""), "{error}");
    let issues = env.compile("JSONPatch{operation: 'add'}", Expected::Any).err().unwrap();
    assert_eq!(issues[0].message, "undefined field 'operation'");
    let issues = env.compile("JSONPatch{op: 1}", Expected::Any).err().unwrap();
    assert_eq!(issues[0].message, "expected type of field 'op' is 'string' but provided type is 'int'");
}
