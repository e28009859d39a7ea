//! API priority and fairness: the objects every cluster has, where requests belong, and what happens to those that find
//! no seat.

mod cluster;

use cluster::Cluster;
use cluster::api::{Answer, Api, MERGE, name, names};
use cluster::measured::value;
use cluster::webhook::Webhook;
use serde_json::{Value, json};
use std::sync::{Arc, Condvar, Mutex};

const API: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
/// The group of the users that scenarios make up; they may do everything, and belong to no schema of their own.
const GROUP: &str = "flow-testers";

#[test]
fn flow_control() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    cluster.up();
    let api = Api::new(&cluster);
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    api.create(
        bindings,
        &json!({"metadata": {"name": GROUP},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": GROUP}]}),
    );
    cluster::api::scenarios(
        &api,
        scenarios![
            objects_every_cluster_has,
            suggestions_can_be_declined,
            schemas_without_their_level,
            answers_say_where_they_belong,
            a_full_queue,
            a_level_that_rejects,
            a_flood_does_not_stop_others,
            watches_take_no_seats,
            levels_share_the_processors,
        ],
    );
}

/// A header of an answer.
fn header<'a>(answer: &'a Answer, wanted: &str) -> Option<&'a str> {
    let mut lines = answer.head.lines().filter_map(|l| l.split_once(':'));
    lines.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
}

/// A user of a scenario.
fn user<'a>(api: &Api<'a>, name: &str) -> Api<'a> {
    api.impersonate(name, &[GROUP])
}

/// A level, and a schema of the same name for users.
fn place(api: &Api<'_>, name: &str, users: &[&str], shares: i32, response: &Value) {
    let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": 0, "borrowingLimitPercent": 0,
        "limitResponse": response});
    api.create(LEVELS, &json!({"metadata": {"name": name}, "spec": {"type": "Limited", "limited": limited}}));
    let subjects: Vec<Value> = users.iter().map(|u| json!({"kind": "User", "user": {"name": u}})).collect();
    api.create(
        SCHEMAS,
        &json!({"metadata": {"name": name}, "spec": {"matchingPrecedence": 500,
        "priorityLevelConfiguration": {"name": name}, "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": subjects, "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
            "namespaces": ["*"], "clusterScope": true}]}]}}),
    );
    let uid = api.get(&format!("{SCHEMAS}/{name}"))["metadata"]["uid"].as_str().unwrap().to_owned();
    let told = || {
        let answer = user(api, users[0]).request("GET", "/apis/flowcontrol.apiserver.k8s.io", None);
        // A path that is no resource is none of the schema's, so that asking takes no seat of the level.
        assert_eq!(answer.code, 200, "{}", answer.text);
        dump(api, "dump_priority_levels").iter().any(|row| row[0] == name).then_some(())
    };
    api.cluster.wait_for(&format!("level {name} ({uid}) in use"), told);
}

/// The rows of a dump.
fn dump(api: &Api<'_>, what: &str) -> Vec<Vec<String>> {
    let answer = api.try_get(&format!("/debug/api_priority_and_fairness/{what}"));
    assert_eq!(answer.code, 200, "{}", answer.text);
    let cells = |l: &str| l.split(',').map(|c| c.trim().to_owned()).collect();
    answer.text.lines().skip(1).map(cells).collect()
}

/// How many requests of a level wait and run.
fn requests(api: &Api<'_>, level: &str) -> (usize, usize) {
    let rows = dump(api, "dump_priority_levels");
    let row = rows.iter().find(|r| r[0] == level).unwrap_or_else(|| panic!("no {level} in {rows:?}"));
    (row[4].parse().unwrap(), row[5].parse().unwrap())
}

fn until_requests(api: &Api<'_>, level: &str, waiting: usize, running: usize) {
    let wanted = (waiting, running);
    api.cluster.wait_for(&format!("{wanted:?} requests of {level}"), || (requests(api, level) == wanted).then_some(()));
}

/// Lets so many through, and holds whoever comes after.
#[derive(Default)]
struct Gate(Mutex<usize>, Condvar);

impl Gate {
    fn pass(&self) {
        let mut permits = self.1.wait_while(self.0.lock().unwrap(), |permits| *permits == 0).unwrap();
        *permits -= 1;
    }

    fn open(&self, permits: usize) {
        *self.0.lock().unwrap() += permits;
        self.1.notify_all();
    }
}

/// A namespace in which creating a ConfigMap takes until the gate lets it through.
fn slow_place(api: &Api<'_>, name: &str) -> (Arc<Gate>, Webhook, String) {
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let answer = move |_: &str, review: &Value| {
        held.pass();
        json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"],
            "response": {"uid": review["request"]["uid"], "allowed": true}})
    };
    let webhook = Webhook::start(api.cluster, &[], Arc::new(answer));
    api.namespace(name);
    api.until(&format!("/api/v1/namespaces/{name}/configmaps/kube-root-ca.crt"), "made", |_| true);
    api.create(
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        &json!({"metadata": {"name": name}, "webhooks": [{"name": format!("{name}.example.com"),
            "clientConfig": webhook.at("/"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 30, "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
                "operations": ["CREATE"]}]}]}),
    );
    (gate, webhook, format!("/api/v1/namespaces/{name}/configmaps"))
}

/// 429 as clients know it.
#[track_caller]
fn too_many(answer: &Answer) {
    assert_eq!((answer.code, answer.text.as_str()), (429, "Too many requests, please try again later.\n"));
    let seconds: u32 = header(answer, "Retry-After").and_then(|v| v.parse().ok()).expect("Retry-After");
    assert!((1..=32).contains(&seconds), "{}", answer.head);
    assert!(header(answer, "X-Kubernetes-PF-FlowSchema-UID").is_some_and(|v| !v.is_empty()), "{}", answer.head);
}

fn objects_every_cluster_has(api: &Api<'_>) {
    let group = api.get(API);
    assert!(group["resources"].as_array().unwrap().iter().any(|r| r["name"] == "flowschemas/status"));
    let schemas = api.list(SCHEMAS);
    for wanted in ["exempt", "catch-all", "probes", "system-nodes", "kube-scheduler", "service-accounts"] {
        let found = schemas.iter().find(|s| name(s) == wanted).unwrap_or_else(|| panic!("{:?}", names(&schemas)));
        assert_eq!(found["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"], "true", "{wanted}");
        assert_eq!(cluster::api::condition(found, "Dangling"), "False", "{wanted}");
    }
    let levels = api.list(LEVELS);
    for wanted in ["exempt", "catch-all", "system", "node-high", "leader-election", "workload-low", "global-default"] {
        assert!(names(&levels).contains(&wanted), "{wanted} in {:?}", names(&levels));
    }
    // What is mandatory comes back, whole.
    let path = format!("{LEVELS}/catch-all");
    let before = api.get(&path);
    api.delete(&path);
    api.until(&path, "made again", |l| {
        l["metadata"]["uid"] != before["metadata"]["uid"] && l["spec"] == before["spec"]
    });
    // Its spec is nobody's to change.
    let change = json!({"spec": {"matchingPrecedence": 7}}).to_string();
    let refused = api.request("PATCH", &format!("{SCHEMAS}/exempt"), Some((MERGE, &change))).expect(422);
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("spec of 'exempt' must equal the fixed value"), "{message}");
}

fn suggestions_can_be_declined(api: &Api<'_>) {
    let path = format!("{LEVELS}/workload-low");
    let shares = |l: &Value| l["spec"]["limited"]["nominalConcurrencyShares"].clone();
    let before = shares(&api.get(&path));
    let change = json!({"spec": {"limited": {"nominalConcurrencyShares": 33}}});
    api.patch(&path, MERGE, &change);
    api.until(&path, "kept at what is suggested", |l| shares(l) == before);
    let declined = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}}});
    api.patch(&path, MERGE, &declined);
    api.patch(&path, MERGE, &change);
    // The next change of any of the objects has them all looked at.
    let seen = format!("{LEVELS}/leader-election");
    api.delete(&seen);
    api.until(&seen, "made again", |_| true);
    assert_eq!(shares(&api.get(&path)), 33);
    let back = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}}});
    api.patch(&path, MERGE, &back);
    api.until(&path, "kept again", |l| shares(l) == before);
}

fn schemas_without_their_level(api: &Api<'_>) {
    let spec = json!({"matchingPrecedence": 9000, "priorityLevelConfiguration": {"name": "not-yet"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "nobody-here"}}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/nowhere"]}]}]});
    api.create(SCHEMAS, &json!({"metadata": {"name": "dangles"}, "spec": spec}));
    let path = format!("{SCHEMAS}/dangles");
    let told = |status: &'static str, reason: &'static str, message: &'static str| {
        api.until(&path, message, |s| {
            let all = s["status"]["conditions"].as_array();
            let found = all.and_then(|c| c.iter().find(|c| c["type"] == "Dangling"));
            found.is_some_and(|c| c["status"] == status && c["reason"] == reason && c["message"] == message)
        })
    };
    told(
        "True",
        "NotFound",
        "This FlowSchema references the PriorityLevelConfiguration object named \"not-yet\" but there is no such object",
    );
    let limited = json!({"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}});
    api.create(LEVELS, &json!({"metadata": {"name": "not-yet"}, "spec": {"type": "Limited", "limited": limited}}));
    told(
        "False",
        "Found",
        "This FlowSchema references the PriorityLevelConfiguration object named \"not-yet\" and it exists",
    );
    let refused = api.send(
        "POST",
        SCHEMAS,
        &json!({"metadata": {"name": "wrong"}, "spec": {"matchingPrecedence": 10001,
            "priorityLevelConfiguration": {"name": "exempt"}}}),
    );
    let message = refused.expect(422)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("spec.matchingPrecedence: "), "{message}");
}

fn answers_say_where_they_belong(api: &Api<'_>) {
    let pair = |answer: &Answer| {
        let uid = |name| header(answer, name).unwrap_or_else(|| panic!("{}", answer.head)).to_owned();
        (uid("X-Kubernetes-PF-FlowSchema-UID"), uid("X-Kubernetes-PF-PriorityLevel-UID"))
    };
    // The mandatory level and schema that the other scenario removes or changes are not among these.
    let uid = |path: &str, name: &str| {
        let object = api.get(&format!("{path}/{name}"));
        object["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let of = |schema: &str, level: &str| (uid(SCHEMAS, schema), uid(LEVELS, level));
    let nodes = "/api/v1/nodes";
    assert_eq!(pair(&api.try_get(nodes)), of("exempt", "exempt"));
    assert_eq!(pair(&user(api, "jane").try_get(nodes)), of("global-default", "global-default"));
    let account = "system:serviceaccount:kube-system:generic-garbage-collector";
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
    assert_eq!(
        pair(&api.impersonate(account, &groups).try_get(nodes)),
        of("kube-system-service-accounts", "workload-high")
    );
    // Whoever is refused is told, too.
    let refused = api.impersonate("nobody-special", &[]).try_get(nodes);
    assert_eq!((refused.code, pair(&refused)), (403, of("global-default", "global-default")));
}

fn a_full_queue(api: &Api<'_>) {
    let queuing = json!({"queues": 1, "handSize": 1, "queueLengthLimit": 1});
    place(api, "jail", &["prisoner"], 0, &json!({"type": "Queue", "queuing": queuing}));
    let prisoner = user(api, "prisoner");
    let nodes = "/api/v1/nodes";
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| prisoner.try_get(nodes));
        until_requests(api, "jail", 1, 0);
        let rows = dump(api, "dump_requests?includeRequestDetails=1");
        let row = rows.iter().find(|r| r[0] == "jail").unwrap_or_else(|| panic!("{rows:?}"));
        assert_eq!((&row[1][..], &row[4][..], &row[10][..], &row[11][..]), ("jail", "prisoner", "prisoner", "list"));
        too_many(&prisoner.try_get(nodes));
        assert_eq!(user(api, "free").try_get(nodes).code, 200, "others do not notice");
        assert_eq!(prisoner.try_get("/version").code, 200, "the schema is for resources");
        let metrics = api.try_get("/metrics").text;
        let counted = |name: &str, labels: &[&str]| {
            let found = |l: &&str| l.starts_with(name) && labels.iter().all(|label| l.contains(label));
            let line = metrics.lines().find(found).unwrap_or_else(|| panic!("{name} {labels:?} in {metrics}"));
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let here = ["priority_level=\"jail\"", "flow_schema=\"jail\""];
        let refused = [&here[..], &["reason=\"queue-full\""]].concat();
        assert_ne!(counted("apiserver_flowcontrol_rejected_requests_total", &refused), "0");
        assert_eq!(counted("apiserver_flowcontrol_current_inqueue_requests", &here), "1");
        assert_eq!(counted("apiserver_flowcontrol_nominal_limit_seats", &here[..1]), "0");
        // The level gets seats, and who waits gets one.
        api.patch(&format!("{LEVELS}/jail"), MERGE, &json!({"spec": {"limited": {"nominalConcurrencyShares": 10}}}));
        let answer = waiting.join().unwrap();
        assert_eq!(answer.code, 200, "{}", answer.text);
    });
}

fn a_level_that_rejects(api: &Api<'_>) {
    let (gate, _webhook, maps) = slow_place(api, "slow");
    place(api, "few", &["slow"], 1, &json!({"type": "Reject"}));
    let slow = user(api, "slow");
    let seats: usize = 3;
    std::thread::scope(|scope| {
        let create = |i: usize| slow.send("POST", &maps, &json!({"metadata": {"name": format!("m{i}")}}));
        let held: Vec<_> = (0..seats).map(|i| scope.spawn(move || create(i))).collect();
        until_requests(api, "few", 0, seats);
        too_many(&slow.try_get(&maps));
        too_many(&slow.try_get(&format!("{maps}?watch=1")));
        assert_eq!(user(api, "quick").try_get(&maps).code, 200);
        gate.open(seats);
        for request in held {
            assert_eq!(request.join().unwrap().code, 201);
        }
    });
    until_requests(api, "few", 0, 0);
    assert_eq!(slow.try_get(&maps).code, 200);
}

fn a_flood_does_not_stop_others(api: &Api<'_>) {
    let (gate, _webhook, maps) = slow_place(api, "flooded");
    let queuing = json!({"queues": 64, "handSize": 2, "queueLengthLimit": 50});
    place(api, "shared", &["greedy", "modest"], 1, &json!({"type": "Queue", "queuing": queuing}));
    let (greedy, modest) = (user(api, "greedy"), user(api, "modest"));
    let flood: usize = 12;
    let seats: usize = 3;
    std::thread::scope(|scope| {
        let create = |i: usize| greedy.send("POST", &maps, &json!({"metadata": {"name": format!("m{i}")}}));
        let held: Vec<_> = (0..flood).map(|i| scope.spawn(move || create(i))).collect();
        until_requests(api, "shared", flood - seats, seats);
        let other = scope.spawn(|| modest.try_get(&maps));
        until_requests(api, "shared", flood - seats + 1, seats);
        // Seats become free one after the other until the modest one has its turn: long before the flood is over.
        let waits = || dump(api, "dump_requests").iter().any(|r| r[4] == "modest" && r[2] != "-1");
        let mut opened = 0;
        while waits() {
            assert!(opened < flood - seats, "the modest one waits for the whole flood");
            gate.open(1);
            opened += 1;
            api.cluster.wait_for("a request less", || {
                let (waiting, running) = requests(api, "shared");
                (waiting + running <= flood + 1 - opened).then_some(())
            });
        }
        assert_eq!(other.join().unwrap().code, 200);
        gate.open(flood);
        for request in held {
            assert_eq!(request.join().unwrap().code, 201);
        }
    });
}

fn watches_take_no_seats(api: &Api<'_>) {
    place(api, "watchers", &["watcher"], 1, &json!({"type": "Reject"}));
    let watcher = user(api, "watcher");
    let path = "/api/v1/namespaces/default/serviceaccounts";
    let watches: Vec<_> = (0..6).map(|_| watcher.watch(path)).collect();
    for watch in &watches {
        watch.find("ADDED", |a| name(a) == "default");
    }
    until_requests(api, "watchers", 0, 0);
    assert_eq!(watcher.try_get(path).code, 200);
}

fn levels_share_the_processors(api: &Api<'_>) {
    place(api, "turns", &["turner"], 7, &json!({"type": "Reject"}));
    let told =
        |what: &str| value(&api.try_get("/metrics").text, &format!("gantry_turns_{what}{{priority_level=\"turns\"}}"));
    assert_eq!((told("shares"), told("total")), (Some(7.0), Some(0.0)));
    assert_eq!(user(api, "turner").try_get("/version").code, 200);
    assert_eq!(told("total"), Some(0.0), "only what asks for resources is of a level");
    assert_eq!(user(api, "turner").try_get("/api/v1/nodes").code, 200);
    let counted = || told("total").filter(|turns| *turns > 0.0 && told("duration_seconds_total") > Some(0.0));
    api.cluster.wait_for("the turns of a request to be counted", counted);
    api.patch(&format!("{LEVELS}/turns"), MERGE, &json!({"spec": {"limited": {"nominalConcurrencyShares": 9}}}));
    api.cluster.wait_for("the level's new shares", || (told("shares") == Some(9.0)).then_some(()));
}
