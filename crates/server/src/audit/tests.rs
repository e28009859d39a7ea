use super::*;
use crate::request::RequestInfo;
use gantry_api::k8s_openapi::jiff::Timestamp;
use http::Request;

/// Keeps events.
#[derive(Default)]
struct Kept(Arc<Mutex<Vec<Value>>>);

impl Sink for Kept {
    fn name(&self) -> &'static str {
        "kept"
    }

    fn write(&self, _event: &Event, json: &str) -> Result<Written, String> {
        self.0.lock().push(serde_json::from_str(json).map_err(|e| e.to_string())?);
        Ok(Written::Done)
    }
}

type Events = Arc<Mutex<Vec<Value>>>;

/// Takes nothing.
struct Broken;

impl Sink for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn write(&self, _event: &Event, _json: &str) -> Result<Written, String> {
        Err("no more room".into())
    }
}

fn audit(rule: &str) -> (Arc<Audit>, Events) {
    let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitManagedFields: true\nrules:\n- {rule}\n");
    let (kept, clock) = (Kept::default(), Clock::starting_at(Timestamp::UNIX_EPOCH));
    let events = kept.0.clone();
    (Audit::new(Policy::parse(text.as_bytes()).unwrap(), vec![Box::new(kept)], clock), events)
}

fn context(verb: &str) -> RequestContext {
    let (parts, ()) = Request::post("/api/v1/namespaces/n/pods?x=1").body(()).unwrap().into_parts();
    RequestContext {
        info: RequestInfo {
            is_resource: true,
            verb: verb.into(),
            version: "v1".into(),
            namespace: "n".into(),
            resource: "pods".into(),
            ..RequestInfo::default()
        },
        user: UserInfo::new("jane", &[]),
        parts,
        resource: None,
        query: Vec::new(),
    }
}

fn arrival(audit: &Audit) -> Arrival {
    Arrival { id: HeaderValue::from_static("id-1"), received: audit.clock.micro_time(), peer: None }
}

fn stages(events: &Events) -> Vec<String> {
    events.lock().iter().map(|e| e["stage"].as_str().unwrap().to_owned()).collect()
}

fn ok() -> Response {
    respond::with_type(201, "application/json", "{}")
}

#[tokio::test]
async fn a_write_with_everything() {
    let (audit, events) = audit("level: RequestResponse");
    let cx = context("create");
    let object = br#"{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "managedFields": []}}"#;
    let work = async {
        begin(&audit, &cx, &arrival(&audit)).await.unwrap();
        impersonated(&UserInfo::new("joe", &[]), "impersonate:user-info");
        annotate("a", "1");
        annotate("a", "2");
        sent(&cx, object);
        assert!(wants_answer());
        answered(object);
        ok()
    };
    trailed(false, work).await;
    assert_eq!(stages(&events), ["RequestReceived", "ResponseComplete"]);
    let event = events.lock()[1].clone();
    assert_eq!(event["annotations"], json!({"a": "1"}));
    assert_eq!((&event["user"]["username"], &event["impersonatedUser"]["username"]), (&json!("jane"), &json!("joe")));
    assert_eq!(event["authenticationMetadata"], json!({"impersonationConstraint": "impersonate:user-info"}));
    let shown = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}});
    assert_eq!((&event["requestObject"], &event["responseObject"]), (&shown, &shown));
    assert_eq!(event["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(event["objectRef"]["name"], "p");
    assert_eq!((&event["requestURI"], &event["auditID"]), (&json!("/api/v1/namespaces/n/pods?x=1"), &json!("id-1")));
}

#[tokio::test]
async fn levels_say_how_much() {
    let object = br#"{"metadata": {"name": "p"}}"#;
    for (level, sends, answers) in [("Metadata", false, false), ("Request", true, false), ("None", false, false)] {
        let (audit, events) = audit(&format!("{{level: {level}, omitStages: [RequestReceived]}}"));
        let cx = context("create");
        let work = async {
            begin(&audit, &cx, &arrival(&audit)).await.unwrap();
            sent(&cx, object);
            answered(object);
            annotate_at(Level::Request, "patch", "x");
            ok()
        };
        trailed(false, work).await;
        let events = events.lock();
        assert_eq!(events.len(), usize::from(level != "None"), "{level}");
        if let Some(event) = events.first() {
            assert_eq!((event.get("requestObject").is_some(), event.get("responseObject").is_some()), (sends, answers));
            assert_eq!(event["annotations"]["patch"] == "x", sends, "{level}");
            assert_eq!(event["objectRef"]["name"], "p");
        }
    }
}

#[tokio::test]
async fn failures_are_told_at_every_level() {
    let (audit, events) = audit("level: Metadata");
    let cx = context("get");
    let work = async {
        begin(&audit, &cx, &arrival(&audit)).await.unwrap();
        answered(
            br#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","message":"m","code":404}"#,
        );
        respond::with_type(404, "application/json", "{}")
    };
    trailed(false, work).await;
    let wanted = json!({"metadata": {}, "status": "Failure", "reason": "NotFound", "message": "m", "code": 404});
    assert_eq!(events.lock()[1]["responseStatus"], wanted);
}

#[tokio::test]
async fn what_lasts_has_a_beginning_and_an_end() {
    let (audit, events) = audit("level: Metadata");
    let cx = context("watch");
    let work = async {
        begin(&audit, &cx, &arrival(&audit)).await.unwrap();
        respond::with_type(200, "application/json", "{}")
    };
    let response = trailed(true, work).await;
    assert_eq!(stages(&events), ["RequestReceived", "ResponseStarted"]);
    drop(response);
    assert_eq!(stages(&events), ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
}

#[tokio::test]
async fn a_connection_that_is_taken_over_ends_with_who_took_it() {
    let (audit, events) = audit("{level: Metadata, omitStages: [RequestReceived]}");
    let cx = context("create");
    let mut held = None;
    let work = async {
        begin(&audit, &cx, &arrival(&audit)).await.unwrap();
        held = hold();
        respond::with_type(101, "application/json", "")
    };
    drop(trailed(true, work).await);
    assert_eq!(stages(&events), ["ResponseStarted"]);
    drop(held);
    assert_eq!(stages(&events), ["ResponseStarted", "ResponseComplete"]);
    assert_eq!(events.lock()[1]["responseStatus"]["code"], 101);
}

#[tokio::test]
async fn clients_that_go_and_credentials_that_are_not_valid() {
    let (audit, events) = audit("level: Metadata");
    let cx = context("get");
    let work = async {
        begin(&audit, &cx, &arrival(&audit)).await.unwrap();
        std::future::pending::<()>().await;
        ok()
    };
    let gone = tokio::time::timeout(std::time::Duration::from_millis(1), trailed(false, work)).await;
    assert!(gone.is_err());
    assert_eq!(stages(&events), ["RequestReceived", "ResponseComplete"]);
    assert_eq!(events.lock()[1]["responseStatus"]["message"], "Connection closed early");

    events.lock().clear();
    let work = async {
        turn_away(&audit, &cx, &arrival(&audit));
        respond::with_type(401, "application/json", "{}")
    };
    trailed(false, work).await;
    assert_eq!(stages(&events), ["ResponseStarted"]);
    assert_eq!(events.lock()[0]["responseStatus"]["code"], 401);
}

#[tokio::test]
async fn only_strict_back_ends_refuse_requests() {
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n";
    for strict in [false, true] {
        let sink: Box<dyn Sink> = if strict { Box::new(modes::Strict(Box::new(Broken))) } else { Box::new(Broken) };
        let kept = Kept::default();
        let events = kept.0.clone();
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        let audit = Audit::new(Policy::parse(policy.as_bytes()).unwrap(), vec![sink, Box::new(kept)], clock);
        let cx = context("create");
        let work = async {
            assert_eq!(begin(&audit, &cx, &arrival(&audit)).await.is_err(), strict);
            ok()
        };
        trailed(false, work).await;
        let wanted: &[&str] = if strict { &["RequestReceived"] } else { &["RequestReceived", "ResponseComplete"] };
        assert_eq!(stages(&events), wanted);
    }
}

#[test]
fn large_events_lose_their_objects() {
    let kept = Kept::default();
    let events = kept.0.clone();
    let sink = modes::Truncated::new(Box::new(kept), 700);
    let write = |level: &'static str, object: usize, agent: usize| {
        let mut event = event::tests::event();
        event.level = level;
        event.request_object = Some("x".repeat(object).into());
        event.user_agent = "a".repeat(agent);
        sink.write(&event, &event.item().unwrap()).map(drop).unwrap();
        events.lock().pop()
    };
    let whole = write("Request", 10, 10).unwrap();
    assert_eq!((&whole["requestObject"], &whole["annotations"]), (&json!("xxxxxxxxxx"), &Value::Null));
    let short = write("Request", 1000, 10).unwrap();
    assert_eq!(
        (&short["requestObject"], &short["annotations"]["audit.k8s.io/truncated"]),
        (&Value::Null, &json!("true"))
    );
    assert_eq!(write("Request", 10, 1000), None);
    assert_eq!(write("Metadata", 1000, 10), None);
}
