use super::*;
use bytes::Bytes;
use gantry_client::{ApiError, Body, Transport, TransportError};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use k8s_openapi::api::core::v1::ConfigMap;
use std::collections::VecDeque;

/// A server that answers lists and watches from a script and then lets watches hang.
struct Script {
    lists: Mutex<VecDeque<Result<String, ApiError>>>,
    watches: Mutex<VecDeque<String>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Transport for Script {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let uri = request.uri().to_string();
        self.asked.lock().push(uri.clone());
        let whole = |code: u16, text: Vec<u8>| {
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
            Response::builder().status(code).body(BodyExt::boxed(body)).unwrap()
        };
        if !uri.contains("watch=true") {
            return Ok(match self.lists.lock().pop_front().expect("an unexpected list") {
                Ok(text) => whole(200, text.into_bytes()),
                Err(e) => whole(e.code, e.to_json()),
            });
        }
        let next = self.watches.lock().pop_front();
        Ok(match next {
            Some(text) => whole(200, text.into_bytes()),
            None => Response::new(BodyExt::boxed(StreamBody::new(futures::stream::pending()))),
        })
    }
}

fn object(name: &str, version: u64) -> String {
    format!(r#"{{"metadata":{{"namespace":"n","name":"{name}","resourceVersion":"{version}"}}}}"#)
}

fn list(version: u64, items: &[String]) -> Result<String, ApiError> {
    Ok(format!(r#"{{"metadata":{{"resourceVersion":"{version}"}},"items":[{}]}}"#, items.join(",")))
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn run(script: Script) -> (Arc<Script>, Informer<ConfigMap>, Arc<Mutex<Vec<String>>>) {
    let script = Arc::new(script);
    let informers = Informers::new(Client::new(script.clone(), "test"));
    let informer = informers.get::<ConfigMap>();
    let log = Arc::new(Mutex::new(Vec::new()));
    let sink = log.clone();
    informer.on_change(move |c| {
        let verb = match c {
            Change::Added(_) => "+",
            Change::Modified { .. } => "~",
            Change::Deleted(_) => "-",
        };
        sink.lock().push(format!("{verb}{}", c.object().metadata.name.as_deref().unwrap()));
    });
    informers.start(&CancellationToken::new());
    (script, informer, log)
}

#[tokio::test(start_paused = true)]
async fn lists_then_watches_and_goes_on_where_it_stopped() {
    let (script, informer, log) = run(Script {
        lists: Mutex::new([Err(ApiError::unavailable("starting")), list(5, &[object("a", 3), object("b", 4)])].into()),
        watches: Mutex::new([event("MODIFIED", &object("a", 6)) + &event("DELETED", &object("b", 7))].into()),
        asked: Mutex::default(),
    });
    informer.synced().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*log.lock(), ["+a", "+b", "~a", "-b"]);
    assert_eq!(informer.store().keys(), ["n/a"]);
    let watches: Vec<String> = script.asked.lock().iter().filter(|u| u.contains("watch=true")).cloned().collect();
    assert!(watches[0].contains("resourceVersion=5") && watches[1].contains("resourceVersion=7"), "{watches:?}");
    let late = Arc::new(Mutex::new(0));
    let count = late.clone();
    informer.on_change(move |_| *count.lock() += 1);
    assert_eq!(*late.lock(), 1, "a late handler is told of what is cached");
}

#[tokio::test(start_paused = true)]
async fn an_expired_version_is_listed_anew_and_the_difference_told() {
    let gone = r#"{"kind":"Status","status":"Failure","code":410,"reason":"Expired","message":"too old"}"#;
    let (script, informer, log) = run(Script {
        lists: Mutex::new(
            [list(5, &[object("a", 3), object("b", 4)]), list(9, &[object("a", 3), object("c", 8)])].into(),
        ),
        watches: Mutex::new([event("ERROR", gone)].into()),
        asked: Mutex::default(),
    });
    informer.synced().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*log.lock(), ["+a", "+b", "+c", "-b"]);
    assert!(script.asked.lock().last().unwrap().contains("resourceVersion=9"));
}

#[tokio::test(start_paused = true)]
async fn another_object_of_the_same_name_is_told_as_two_changes() {
    let gone = r#"{"kind":"Status","status":"Failure","code":410,"reason":"Expired","message":"too old"}"#;
    let with_uid =
        |uid: &str, version: u64| object("a", version).replace("\"name\"", &format!("\"uid\":\"{uid}\",\"name\""));
    let (_script, informer, log) = run(Script {
        lists: Mutex::new([list(5, &[with_uid("one", 3)]), list(9, &[with_uid("two", 8)])].into()),
        watches: Mutex::new([event("ERROR", gone)].into()),
        asked: Mutex::default(),
    });
    informer.synced().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*log.lock(), ["+a", "-a", "+a"]);
    assert_eq!(informer.get("n", "a").unwrap().metadata.uid.as_deref(), Some("two"));
}
