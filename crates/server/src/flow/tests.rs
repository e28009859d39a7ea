use super::*;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Kind;
use serde_json::{Value, json};

fn flow(seats: u32, schemas: Vec<Value>, levels: Vec<Value>) -> Arc<Flow> {
    let flow = Flow::with(seats, Duration::from_secs(15), Clock::starting_at(Timestamp::UNIX_EPOCH));
    let schemas = schemas.into_iter().map(|s| FlowSchema::from_value(s).unwrap()).collect();
    flow.digest(schemas, levels.into_iter().map(|l| PriorityLevelConfiguration::from_value(l).unwrap()).collect());
    flow
}

fn level(name: &str, shares: i32, lendable: i32, response: Value) -> Value {
    json!({"metadata": {"name": name, "uid": format!("level-{name}")}, "spec": {"type": "Limited", "limited": {
        "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response}}})
}

fn schema(name: &str, level: &str, user: &str) -> Value {
    json!({"metadata": {"name": name, "uid": format!("schema-{name}")}, "spec": {"matchingPrecedence": 50,
        "priorityLevelConfiguration": {"name": level}, "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": user}}], "resourceRules": [{"verbs": ["*"],
            "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]}]}})
}

fn queue(queues: usize, length: usize) -> Value {
    json!({"type": "Queue", "queuing": {"queues": queues, "handSize": 1, "queueLengthLimit": length}})
}

fn get() -> RequestInfo {
    RequestInfo { is_resource: true, verb: "get".into(), resource: "nodes".into(), ..Default::default() }
}

async fn admit(flow: &Arc<Flow>, info: &RequestInfo, user: &str) -> Result<Option<Seats>, Refused> {
    flow.admit(info, &UserInfo::new(user, &[]), || 0, |_| {}).await
}

#[tokio::test(start_paused = true)]
async fn a_level_that_rejects_refuses_and_others_do_not_notice() {
    let levels = vec![level("small", 1, 0, json!({"type": "Reject"}))];
    let flow = flow(6, vec![schema("jane", "small", "jane")], levels);
    let held = admit(&flow, &get(), "jane").await.unwrap().unwrap();
    assert_eq!((held.class.schema.as_bytes(), held.class.level.as_bytes()), (&b"schema-jane"[..], &b"level-small"[..]));
    let refused = admit(&flow, &get(), "jane").await.err().unwrap();
    assert_eq!(refused.retry_after, 1);
    let mut headers = HeaderMap::new();
    refused.class.mark(&mut headers);
    assert_eq!(headers["X-Kubernetes-PF-FlowSchema-UID"], "schema-jane");
    assert_eq!(headers["X-Kubernetes-PF-PriorityLevel-UID"], "level-small");
    assert!(admit(&flow, &get(), "joe").await.unwrap().is_some(), "the catch-all level has seats of its own");
    let exec = RequestInfo { subresource: "exec".into(), ..get() };
    assert!(admit(&flow, &exec, "jane").await.unwrap().is_none(), "streams take no seats");
    assert!(flow.admit(&get(), &UserInfo::new("x", &["system:masters"]), || 0, |_| {}).await.unwrap().is_some());
    drop(held);
    assert!(admit(&flow, &get(), "jane").await.is_ok());
    let mut text = String::new();
    flow.render(&mut text).unwrap();
    let line = "apiserver_flowcontrol_rejected_requests_total{priority_level=\"small\",flow_schema=\"jane\",reason=\"concurrency-limit\"} 1";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"small\"} 1"), "{text}");
    assert!(!text.contains("EOF"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_refused_and_who_goes_leaves_the_queue() {
    let flow = flow(6, vec![schema("jane", "small", "jane")], vec![level("small", 1, 0, queue(1, 1))]);
    let held = admit(&flow, &get(), "jane").await.unwrap();
    let refused = admit(&flow, &get(), "jane").await.err().unwrap();
    assert_eq!(refused.retry_after, 1);
    {
        let info = get();
        let gone = admit(&flow, &info, "jane");
        tokio::select! { _ = gone => panic!("there is no seat"), () = tokio::time::sleep(Duration::from_secs(1)) => {} }
    }
    let waiting = tokio::spawn({
        let flow = flow.clone();
        async move { admit(&flow, &get(), "jane").await.map(|s| s.is_some()) }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let dump = flow.dump("dump_priority_levels", false).unwrap();
    let row = dump.lines().find(|l| l.starts_with("small")).unwrap();
    let cells: Vec<&str> = row.split(',').map(str::trim).collect();
    assert_eq!(cells, ["small", "1", "false", "false", "1", "1", "1", "2", "1", "1"]);
    let dump = flow.dump("dump_requests", true).unwrap();
    let rows: Vec<Vec<&str>> = dump.lines().skip(1).map(|l| l.split(',').map(str::trim).collect()).collect();
    assert_eq!(rows.len(), 2, "{dump}");
    assert_eq!((&rows[0][..4], &rows[1][..4]), (&["small", "jane", "-1", "-1"][..], &["small", "jane", "0", "0"][..]));
    assert_eq!((rows[1][4], rows[1][9], rows[1][10]), ("jane", "0001-01-01T00:00:00Z", "jane"));
    assert!(flow.dump("dump_queues", false).unwrap().lines().any(|l| l.starts_with("small, ")));
    assert!(flow.dump("dump", false).is_none());
    drop(held);
    assert_eq!(waiting.await.unwrap().ok(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn seats_are_lent_to_who_wants_them_and_come_back() {
    let levels = vec![level("busy", 10, 0, queue(4, 50)), level("idle", 10, 50, queue(4, 50))];
    let flow = flow(100, vec![schema("busy", "busy", "b"), schema("idle", "idle", "i")], levels);
    let seats = |name: &str| flow.state.lock().levels[name].current;
    assert_eq!((seats("busy"), seats("idle")), (40, 40));
    let mut waiting = Vec::new();
    for _ in 0..60 {
        let flow = flow.clone();
        waiting.push(tokio::spawn(async move { admit(&flow, &get(), "b").await.ok().flatten() }));
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(admit(&flow, &get(), "i").await.unwrap().is_some());
    // The idle level keeps its twenty; the catch-all, which lends nothing, its twenty.
    assert!(seats("busy") >= 58 && seats("idle") >= 20 && seats("idle") < 40, "{} {}", seats("busy"), seats("idle"));
    assert!(seats("busy") + seats("idle") <= 81);
    for wait in waiting {
        wait.abort();
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let wanted: Vec<_> = (0..60)
        .map(|_| {
            let flow = flow.clone();
            tokio::spawn(async move { admit(&flow, &get(), "i").await.ok().flatten() })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(11)).await;
    drop(admit(&flow, &get(), "b").await);
    assert_eq!(seats("idle"), 40, "its own are its own when it wants them");
    wanted.into_iter().for_each(|w| w.abort());
}

#[tokio::test(start_paused = true)]
async fn turns_are_taken_in_the_level_of_requests_for_resources() {
    let levels = vec![level("small", 7, 0, queue(1, 1)), level("large", 70, 0, queue(1, 1))];
    let flow = flow(100, vec![schema("jane", "small", "jane"), schema("joe", "large", "joe")], levels);
    let told = async |info: &RequestInfo, user: UserInfo| {
        let told = std::cell::Cell::new(None);
        let seats = flow.admit(info, &user, || 0, |level| told.set(Some(level))).await;
        (told.take(), seats.ok().flatten().is_some())
    };
    let user = |name: &str| UserInfo::new(name, &[]);
    let (jane, seated) = told(&get(), user("jane")).await;
    assert!(jane.is_some() && seated);
    let exec = RequestInfo { subresource: "exec".into(), ..get() };
    assert_eq!(told(&exec, user("jane")).await, (jane, false), "streams take turns, though no seats");
    let (joe, _) = told(&get(), user("joe")).await;
    assert!(joe.is_some() && joe != jane);
    let administrator = || UserInfo::new("x", &["system:masters"]);
    assert_ne!(told(&get(), administrator()).await.0, None);
    let path = RequestInfo { verb: "get".into(), path: "/livez".into(), ..Default::default() };
    assert_eq!(told(&path, administrator()).await, (None, true), "a path makes nobody's work urgent");

    let shares = |flow: &Flow| -> Vec<_> { flow.turns().figures().into_iter().map(|f| (f.level, f.shares)).collect() };
    let of = |name: &str, shares: u32| (name.to_owned(), shares);
    // What is exempt counts as much as the greatest of the others.
    let mut now = shares(&flow);
    now.sort();
    assert_eq!(now, [of("", 20), of("catch-all", 5), of("exempt", 70), of("large", 70), of("small", 7)]);
    flow.digest(vec![], vec![]);
    let mut now = shares(&flow);
    now.sort();
    assert_eq!(now, [of("", 20), of("catch-all", 5), of("exempt", 5)]);
    let mut text = String::new();
    flow.render(&mut text).unwrap();
    assert!(
        text.contains("# TYPE gantry_turns counter")
            && text.contains("gantry_turns_total{priority_level=\"exempt\"} 0")
    );
}

#[tokio::test(start_paused = true)]
async fn a_level_that_is_no_more_stays_until_it_is_idle() {
    let flow = flow(100, vec![schema("s", "old", "jane")], vec![level("old", 10, 0, queue(4, 50))]);
    let held = admit(&flow, &get(), "jane").await.unwrap().unwrap();
    flow.digest(vec![FlowSchema::from_value(schema("s", "old", "jane")).unwrap()], vec![]);
    assert!(flow.dump("dump_priority_levels", false).unwrap().contains("old"));
    let other = admit(&flow, &get(), "jane").await.unwrap().unwrap();
    assert_eq!(other.level, "catch-all", "a schema without its level matches nothing");
    drop(held);
    assert!(!flow.dump("dump_priority_levels", false).unwrap().contains("old"));
}

#[test]
fn wide_lists_take_more_seats_and_repeated_refusals_longer_pauses() {
    let now = Instant::now();
    let mut wide = Level::new(PriorityLevelConfiguration::from_value(level("l", 1, 0, queue(1, 1))).unwrap(), now);
    wide.nominal = 100;
    assert_eq!([0, 1, 100, 101, 5000].map(|n| wide.width(n)), [1, 1, 1, 2, 10]);
    wide.nominal = 13;
    assert_eq!(wide.width(5000), 2, "at most 15 % of the level");

    let mut refusals = Refusals { seconds: VecDeque::new(), retry_after: 1, raised: 0 };
    let mut told = Vec::new();
    for second in 100..110 {
        for _ in 0..10 {
            refusals.note(second);
        }
        told.push(refusals.retry_after);
    }
    assert_eq!(told, [1, 2, 2, 4, 4, 4, 4, 8, 8, 8]);
    for second in 200..230 {
        refusals.note(second * 40);
    }
    assert_eq!(refusals.retry_after, 1);
}
