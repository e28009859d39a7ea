//! The usual mistakes in each kind, and the exact `Status` they are answered with: `tests/golden/invalid`.
//!
//! The expected answers are written from upstream's validation, not from what is answered here. `metadata.yaml` is sent for
//! every kind of `kinds.yaml`; each other file has one kind's own mistakes. A case changes fields of a valid object (`set`,
//! by JSON pointer, null takes away) that is to be made, or of one that is there (`update`). It expects either `errors` of
//! validation, each `field: what is wrong` (from which message, details and causes follow), or the message of a
//! `bad_request`, or of one that is `forbidden`, or the rest of the `status`.

mod cluster;

use cluster::Cluster;
use cluster::api::Api;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many kinds are tried at the same time.
const SIDE_BY_SIDE: usize = 4;

/// A kind with an object that is valid.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {
    path: String,
    kind: String,
    version: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    finalizers: String,
    valid: Value,
}

/// One mistake.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    mistake: String,
    #[serde(default)]
    only: BTreeMap<String, Value>,
    #[serde(default)]
    set: BTreeMap<String, Value>,
    #[serde(default)]
    update: BTreeMap<String, Value>,
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default)]
    bad_request: String,
    #[serde(default)]
    forbidden: String,
    #[serde(default)]
    status: BTreeMap<String, Value>,
    #[serde(default)]
    taken: bool,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/invalid")
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> T {
    let text = std::fs::read_to_string(file).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Sets or takes away what a JSON pointer points at; objects on the way are made.
fn set(object: &mut Value, pointer: &str, value: &Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let mut here = object;
    for part in parent.split('/').skip(1) {
        here = match part.parse::<usize>() {
            Ok(index) if here.is_array() => &mut here[index],
            _ => &mut here[part],
        };
    }
    match last.parse::<usize>() {
        Ok(index) if here.is_array() && value.is_null() => drop(here.as_array_mut().unwrap().remove(index)),
        Ok(index) if here.is_array() => here[index] = value.clone(),
        _ if value.is_null() => drop(here.as_object_mut().unwrap().remove(last)),
        _ => here[last] = value.clone(),
    }
}

/// The machine's word for an error of validation.
fn cause(body: &str) -> &'static str {
    let kinds = [
        ("Required value", "FieldValueRequired"),
        ("Invalid value", "FieldValueInvalid"),
        ("Unsupported value", "FieldValueNotSupported"),
        ("Duplicate value", "FieldValueDuplicate"),
        ("Forbidden", "FieldValueForbidden"),
        ("Not found", "FieldValueNotFound"),
        ("Too long", "FieldValueTooLong"),
        ("Too many", "FieldValueTooMany"),
        ("Internal error", "InternalError"),
    ];
    kinds.iter().find(|(text, _)| body.starts_with(text)).unwrap_or_else(|| panic!("{body}")).1
}

impl Kind {
    fn group(&self) -> &str {
        self.path.strip_prefix("/apis/").and_then(|p| p.split('/').next()).unwrap_or_default()
    }

    fn plural(&self) -> &str {
        self.path.rsplit('/').next().unwrap()
    }

    fn object(&self) -> Value {
        let mut object = self.valid.clone();
        let group = self.group();
        let version = if group.is_empty() { self.version.clone() } else { format!("{group}/{}", self.version) };
        object["apiVersion"] = version.into();
        object["kind"] = self.kind.as_str().into();
        if object["metadata"]["name"].is_null() {
            object["metadata"]["name"] = "it".into();
        }
        object
    }

    fn has(&self, mark: &str, value: &Value) -> bool {
        match mark {
            "name" => value == self.name.as_str(),
            "finalizers" => value == self.finalizers.as_str(),
            "namespaced" => *value == self.path.contains("/namespaces/"),
            _ => panic!("no such mark: {mark}"),
        }
    }

    /// The `Status` the case must be answered with.
    fn status(&self, case: &Case, name: &str) -> Value {
        let full = |text: &str| {
            let text = text.replace("{Kind}", &self.kind).replace("{version}", &self.version);
            text.replace("{plural}", self.plural())
        };
        let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"});
        let dot =
            |kind: &str| if self.group().is_empty() { kind.to_owned() } else { format!("{kind}.{}", self.group()) };
        let details = |kind: &str| {
            let mut details = json!({"kind": kind});
            if !name.is_empty() {
                details["name"] = name.into();
            }
            if !self.group().is_empty() {
                details["group"] = self.group().into();
            }
            details
        };
        if !case.status.is_empty() {
            status.as_object_mut().unwrap().extend(case.status.clone());
        } else if case.taken {
            status["code"] = 409.into();
            status["reason"] = "AlreadyExists".into();
            status["message"] = format!("{} \"{name}\" already exists", dot(self.plural())).into();
            status["details"] = details(self.plural());
        } else if !case.bad_request.is_empty() {
            status["code"] = 400.into();
            status["reason"] = "BadRequest".into();
            status["message"] = full(&case.bad_request).into();
        } else if !case.forbidden.is_empty() {
            status["code"] = 403.into();
            status["reason"] = "Forbidden".into();
            let why = full(&case.forbidden);
            status["message"] = format!("{} \"{name}\" is forbidden: {why}", dot(self.plural())).into();
            status["details"] = details(self.plural());
        } else {
            assert!(!case.errors.is_empty(), "{}: {:?} expects nothing", self.kind, case.mistake);
            let errors: Vec<String> = case.errors.iter().map(|e| full(e)).collect();
            let mut told: Vec<&str> = Vec::new();
            for error in &errors {
                if !told.contains(&error.as_str()) {
                    told.push(error);
                }
            }
            let why = if let [one] = told[..] { one.to_owned() } else { format!("[{}]", told.join(", ")) };
            status["code"] = 422.into();
            status["reason"] = "Invalid".into();
            status["message"] = format!("{} \"{name}\" is invalid: {why}", dot(&self.kind)).into();
            status["details"] = details(&self.kind);
            let causes: Vec<Value> = errors
                .iter()
                .map(|e| {
                    let (field, body) = e.split_once(": ").unwrap();
                    json!({"reason": cause(body), "message": body, "field": field})
                })
                .collect();
            status["details"]["causes"] = causes.into();
        }
        status
    }

    /// Sends one mistake; what differs from what is expected.
    fn attempt(&self, api: &Api<'_>, case: &Case) -> Option<String> {
        let valid = self.object();
        let own = valid["metadata"]["name"].as_str().unwrap().to_owned();
        let strict = "?fieldValidation=Strict";
        let (answer, name, sent) = if case.update.is_empty() {
            let mut object = valid;
            for (pointer, value) in &case.set {
                set(&mut object, pointer, value);
            }
            if case.taken {
                let first = api.send("POST", &self.path, &object);
                assert!(matches!(first.code, 201 | 409), "{}: {}", self.kind, first.text);
            }
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            (api.send("POST", &format!("{}{strict}", self.path), &object), name, object)
        } else {
            let first = api.send("POST", &self.path, &valid);
            assert!(matches!(first.code, 201 | 409), "{}: {}", self.kind, first.text);
            let path = format!("{}/{own}", self.path);
            loop {
                let mut object = api.get(&path);
                for (pointer, value) in &case.update {
                    set(&mut object, pointer, value);
                }
                let answer = api.send("PUT", &format!("{path}{strict}"), &object);
                // A controller may have been faster.
                let stale = answer.code == 409 && answer.text.contains("the object has been modified");
                if !stale {
                    break (answer, own, object);
                }
            }
        };
        let wanted = self.status(case, &name);
        let got: Value = serde_json::from_str(&answer.text).unwrap_or_else(|_| answer.text.clone().into());
        (got != wanted).then(|| {
            let show = |v: &Value| format!("{} {} {}", v["code"], v["message"], v["details"]);
            format!(
                "{} {}: {}\n  sent   {sent}\n  got    {}\n  wanted {}",
                self.kind,
                self.version,
                case.mistake,
                if got["kind"] == "Status" { show(&got) } else { answer.text.chars().take(300).collect() },
                show(&wanted)
            )
        })
    }
}

/// The kinds that are served and can be made, and of which no mistakes are known.
fn missing(api: &Api<'_>, kinds: &[Kind]) -> Vec<String> {
    let own = own();
    let mut served = BTreeSet::new();
    let mut note = |base: &str| {
        for resource in api.get(base)["resources"].as_array().unwrap() {
            let plural = resource["name"].as_str().unwrap();
            let verbs = resource["verbs"].as_array().unwrap();
            if !plural.contains('/') && verbs.iter().any(|v| v == "create") && verbs.iter().any(|v| v == "update") {
                let scope = if resource["namespaced"] == true { "/namespaces/default" } else { "" };
                served.insert(format!("{base}{scope}/{plural}"));
            }
        }
    };
    note("/api/v1");
    for group in api.get("/apis")["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            note(&format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
        }
    }
    served
        .into_iter()
        .filter(|path| !kinds.iter().map(|k| &k.path).chain(own.iter().map(|(k, _)| &k.path)).any(|p| p == path))
        .collect()
}

/// The kinds that have files of their own, each with its cases.
fn own() -> Vec<(Kind, Vec<Case>)> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(golden().join("kinds")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let read = |file: PathBuf| {
        let mut all: BTreeMap<String, Value> = read(&file);
        let cases = all.remove("cases").unwrap_or_else(|| panic!("{} has no cases", file.display()));
        let cases: Vec<Case> = serde_json::from_value(cases).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let kind: Kind = serde_json::from_value(json!(all)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        (kind, cases)
    };
    files.into_iter().map(read).collect()
}

/// Every kind is tried with at least so many mistakes, those in its metadata among them.
const MISTAKES_MIN: usize = 10;

#[test]
fn every_kind_has_its_mistakes() {
    let kinds: Vec<Kind> = read(&golden().join("kinds.yaml"));
    let metadata: Vec<Case> = read(&golden().join("metadata.yaml"));
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for kind in &kinds {
        let of_kind = |c: &&Case| c.only.iter().all(|(mark, value)| kind.has(mark, value));
        counts.entry(kind.path.clone()).or_default().0 = metadata.iter().filter(of_kind).count();
    }
    for (kind, cases) in own() {
        counts.entry(kind.path).or_default().1 += cases.len();
    }
    for (path, (metadata, own)) in &counts {
        println!("{metadata:3} + {own:3}  {path}");
    }
    let few: Vec<&String> = counts.iter().filter(|(_, (a, b))| a + b < MISTAKES_MIN).map(|(path, _)| path).collect();
    assert!(few.is_empty(), "fewer than {MISTAKES_MIN} mistakes: {few:?}");
}

fn server() -> Cluster {
    let mut cluster = Cluster::prepare_role("server", &[]);
    cluster.up();
    cluster
}

/// `GANTRY_ONLY` in the environment picks the kinds whose name contains it.
fn wanted(kind: &str) -> bool {
    kind.contains(&std::env::var("GANTRY_ONLY").unwrap_or_default())
}

fn report(differences: &[String], of: usize) {
    assert!(of > 0, "no case was chosen");
    assert!(differences.is_empty(), "{} of {of} cases differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn metadata_of_every_kind() {
    let cluster = server();
    let api = Api::new(&cluster);
    let kinds: Vec<Kind> = read(&golden().join("kinds.yaml"));
    let cases: Vec<Case> = read(&golden().join("metadata.yaml"));
    let served = |kind: &Kind| api.try_get(&kind.path).code == 200;
    let mut differences: Vec<String> = missing(&api, &kinds).iter().map(|p| format!("{p} is in no list")).collect();
    let (next, count, found) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let chosen: Vec<&Kind> = kinds.iter().filter(|k| wanted(&k.kind) && served(k)).collect();
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some(kind) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for case in cases.iter().filter(|c| c.only.iter().all(|(mark, value)| kind.has(mark, value))) {
                        count.fetch_add(1, Ordering::Relaxed);
                        found.lock().unwrap().extend(kind.attempt(&api, case));
                    }
                }
            });
        }
    });
    differences.extend(found.into_inner().unwrap());
    report(&differences, count.into_inner());
}

#[test]
fn mistakes_of_each_kind() {
    let cluster = server();
    let api = Api::new(&cluster);
    let mut differences = Vec::new();
    let mut count = 0;
    for (kind, cases) in own() {
        if !wanted(&kind.kind) || api.try_get(&kind.path).code == 404 {
            continue;
        }
        for case in &cases {
            count += 1;
            differences.extend(kind.attempt(&api, case));
        }
    }
    report(&differences, count);
}

/// Paths that nothing serves: below what is registered as a whole a `Status`, elsewhere a line of text; and who may not ask
/// hears of that first.
#[test]
fn what_is_not_there() {
    let cluster = server();
    let api = Api::new(&cluster);
    let group = "not-there.example.com";
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = |plural: &str, kind: &str, scope: &str| {
        json!({"metadata": {"name": format!("{plural}.{group}")}, "spec": {"group": group, "scope": scope,
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
    };
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for made in [definition("things", "Thing", "Namespaced"), definition("wholes", "Whole", "Cluster")] {
        api.create(definitions, &made);
    }
    let custom = format!("/apis/{group}/v1");
    for path in [format!("{custom}/namespaces/default/things"), format!("{custom}/wholes")] {
        cluster.wait_for("the definitions served", || (api.try_get(&path).code == 200).then_some(()));
    }
    let thing = json!({"apiVersion": format!("{group}/v1"), "kind": "Thing", "metadata": {"name": "x"}});
    let texts = [
        ("GET", "/nowhere".to_owned()),
        ("POST", "/nowhere".to_owned()),
        ("GET", "/apis/nowhere.example.com".to_owned()),
        ("GET", "/apis/nowhere.example.com/v1".to_owned()),
        ("GET", "/apis/nowhere.example.com/v1/things".to_owned()),
        ("GET", format!("/apis/{group}/v9")),
        ("GET", format!("{custom}/others")),
        ("GET", format!("{custom}/things/x")),
        ("GET", format!("{custom}/namespaces/default/wholes")),
        ("POST", format!("{custom}/things")),
        ("GET", "/healthz/nothing".to_owned()),
        ("GET", "/openapi/v9".to_owned()),
    ];
    for (method, path) in texts {
        let answer = match method {
            "POST" => api.send(method, &path, &thing),
            _ => api.try_get(&path),
        };
        assert_eq!((answer.code, answer.text.as_str()), (404, "404 page not found\n"), "{method} {path}");
        let head = answer.head.to_lowercase();
        for header in ["content-type: text/plain; charset=utf-8", "x-content-type-options: nosniff"] {
            assert!(head.contains(header), "{method} {path}: {head}");
        }
    }
    let not_found = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
        "reason": "NotFound", "message": "the server could not find the requested resource", "details": {}});
    for path in [
        "/api/v9",
        "/api/v1/things",
        "/api/v1/namespaces/default/things/x",
        "/api/v1/pods/x",
        "/apis/apps/v9",
        "/apis/apps/v9/deployments",
        "/apis/apps/v1/things",
        "/apis/apiextensions.k8s.io/v1/things",
        "/version/things",
    ] {
        let answer = api.try_get(path);
        assert_eq!((answer.code, answer.json()), (404, not_found.clone()), "{path}");
    }
    let subresource = api.try_get(&format!("{custom}/namespaces/default/things/x/scale")).expect(404);
    assert_eq!(subresource["message"], format!("things.{group} \"x\" not found"));
    assert_eq!(api.try_get("/openapi/v3/nowhere").code, 404);
    assert_eq!(api.send("POST", "/apis", &json!({})).expect(405)["reason"], "MethodNotAllowed");
    assert_eq!(api.send("POST", "/healthz", &json!({})).text, "ok");
    let nobody = api.impersonate("nobody", &[]);
    assert_eq!(
        nobody.try_get("/nowhere").expect(403)["message"],
        "forbidden: User \"nobody\" cannot get path \"/nowhere\""
    );
    let told = nobody.try_get("/apis/nowhere.example.com/v1/things").expect(403);
    assert_eq!(
        told["message"],
        "things.nowhere.example.com is forbidden: User \"nobody\" cannot list resource \"things\" in API group \
         \"nowhere.example.com\" at the cluster scope"
    );
}
