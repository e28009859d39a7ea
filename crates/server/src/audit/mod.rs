//! Audit: a record of who asked for what, and what came of it, as a policy says (`k8s.io/apiserver/pkg/audit`).
//!
//! The record of a request goes with the task that answers it, so that whoever has something to note (authorization,
//! admission, the writers of answers) finds it without being handed it. Without a policy there is none, and nothing of
//! this costs anything.

pub mod batch;
mod event;
mod latency;
pub mod log;
pub mod modes;
mod origin;
pub mod policy;

pub use latency::{Part, go_duration};

use crate::authn::UserInfo;
use crate::authz::Attributes;
use crate::http::respond;
use crate::request::{RequestContext, Response};
use event::{Event, ObjectReference};
use gantry_api::clock::Clock;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use gantry_schema::strict;
use http::HeaderValue;
use latency::Times;
use parking_lot::Mutex;
use policy::{Level, Policy, Stage, Verdict};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Answers up to this size are looked at for whether they are a `Status`.
const STATUS_BYTES_MAX: usize = 16 << 10;

tokio::task_local! {
    static COURSE: Arc<Course>;
}

/// What became of an event.
pub enum Written {
    /// It is where it should be, or on its way there.
    Done,
    /// The request waits until it is there, or is not.
    Later(oneshot::Receiver<Result<(), String>>),
}

/// A back end.
pub trait Sink: Send + Sync {
    /// Name in messages.
    fn name(&self) -> &'static str;
    /// Whether a request that it cannot record is refused.
    fn is_strict(&self) -> bool {
        false
    }
    /// Takes an event, and its JSON without a type.
    ///
    /// # Errors
    /// Why it is lost.
    fn write(&self, event: &Event, json: &str) -> Result<Written, String>;
}

/// The policy and where events go.
pub struct Audit {
    policy: Policy,
    sinks: Vec<Box<dyn Sink>>,
    clock: Clock,
    events: AtomicU64,
    /// Requests by the level that the policy has for them, in the order of [`Level`].
    levels: [AtomicU64; Level::ALL.len()],
    /// Requests that were refused because they could not be recorded.
    unrecorded: AtomicU64,
}

/// Events that were lost, by who lost them. Of the process, as back ends work on after who handed them an event has gone.
static LOST: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Audit")
    }
}

/// A failure of a back end, which loses events.
pub(crate) fn report(plugin: &str, why: &str, events: usize) {
    tracing::error!("Error in audit plugin '{plugin}' affecting {events} audit events: {why}");
    *LOST.lock().entry(plugin.to_owned()).or_default() += events as u64;
}

impl Audit {
    /// Records what `policy` says, in all of `sinks`.
    #[must_use]
    pub fn new(policy: Policy, sinks: Vec<Box<dyn Sink>>, clock: Clock) -> Arc<Self> {
        let (events, unrecorded) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { policy, sinks, clock, events, levels: Default::default(), unrecorded })
    }

    /// Appends the measurements, without an end mark.
    ///
    /// # Errors
    /// None that a string can have.
    pub fn render(&self, out: &mut String) -> std::fmt::Result {
        let counter = |out: &mut String, name: &str, help: &str| {
            writeln!(out, "# HELP apiserver_audit_{name} {help}\n# TYPE apiserver_audit_{name} counter")
        };
        counter(out, "event", "Counter of audit events generated and sent to the audit backend.")?;
        writeln!(out, "apiserver_audit_event_total {}", self.events.load(Ordering::Relaxed))?;
        let help = "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by \
                    the error.";
        counter(out, "error", help)?;
        for (plugin, lost) in &*LOST.lock() {
            writeln!(out, "apiserver_audit_error_total{{plugin=\"{plugin}\"}} {lost}")?;
        }
        counter(out, "level", "Counter of policy levels for audit events (1 per request).")?;
        for (level, requests) in Level::ALL.iter().zip(&self.levels) {
            let requests = requests.load(Ordering::Relaxed);
            if requests > 0 {
                writeln!(out, "apiserver_audit_level_total{{level=\"{}\"}} {requests}", level.as_str())?;
            }
        }
        let help = "Counter of apiserver requests rejected due to an error in audit logging backend.";
        counter(out, "requests_rejected", help)?;
        writeln!(out, "apiserver_audit_requests_rejected_total {}", self.unrecorded.load(Ordering::Relaxed))
    }

    fn write(&self, event: &Event) -> Outcome {
        self.events.fetch_add(1, Ordering::Relaxed);
        let mut outcome = Outcome::default();
        let json = match event.item() {
            Ok(json) => json,
            Err(e) => {
                report("encoding", &e.to_string(), 1);
                return outcome;
            }
        };
        for sink in &self.sinks {
            match sink.write(event, &json) {
                Ok(Written::Done) => {}
                Ok(Written::Later(outcome_of)) => outcome.pending.push((sink.is_strict(), outcome_of)),
                Err(why) => {
                    report(sink.name(), &why, 1);
                    outcome.refused |= sink.is_strict();
                }
            }
        }
        outcome
    }
}

/// What became of an event in all back ends.
#[derive(Default)]
struct Outcome {
    /// One that is strict has not taken it.
    refused: bool,
    /// Those that are still at it, and whether they are strict.
    pending: Vec<(bool, oneshot::Receiver<Result<(), String>>)>,
}

impl Outcome {
    /// Waits for all; whether the request may go on.
    async fn settled(self) -> bool {
        let mut refused = self.refused;
        for (strict, pending) in self.pending {
            refused |= strict && !matches!(pending.await, Ok(Ok(())));
        }
        !refused
    }
}

/// A request could not be recorded, and a back end insists.
#[derive(Debug)]
pub struct Unrecorded;

/// The course of the request that a task answers: its record, once there is one. It is over when nobody holds it any more.
struct Course {
    record: OnceLock<Record>,
    long_running: bool,
    ended: AtomicBool,
    times: Times,
}

struct Record {
    audit: Arc<Audit>,
    verdict: Verdict,
    is_resource: bool,
    /// The request was turned away at the door: the one event of it is that of the answer's beginning.
    turned_away: bool,
    event: Mutex<Event>,
}

impl Record {
    fn emit(&self, stage: Stage) -> Outcome {
        if self.verdict.omit_stages.contains(&stage) {
            return Outcome::default();
        }
        let mut event = self.event.lock();
        event.stage = stage.as_str();
        event.stage_timestamp = match stage {
            Stage::RequestReceived => event.request_received_timestamp.clone(),
            _ => self.audit.clock.micro_time(),
        };
        self.audit.write(&event)
    }

    /// The last event of a request that came to its end.
    fn complete(&self, times: &Times) -> Outcome {
        for (key, value) in times.annotations() {
            self.event.lock().annotations.entry(key).or_insert(value);
        }
        self.emit(Stage::ResponseComplete)
    }

    fn object(&self, mut object: Value) -> Value {
        if self.verdict.omit_managed_fields {
            event::drop_managed_fields(&mut object);
        }
        object
    }
}

/// What is known of a request when it arrives.
pub struct Arrival {
    /// Its id.
    pub id: HeaderValue,
    /// When it came.
    pub received: MicroTime,
    /// Where from; None for this process.
    pub peer: Option<SocketAddr>,
}

/// Answers a request with a place for its record, and ends the record with the answer.
pub async fn trailed(long_running: bool, work: impl Future<Output = Response>) -> Response {
    let times = Times::new();
    let course = Arc::new(Course { record: OnceLock::new(), long_running, ended: AtomicBool::new(false), times });
    let mut response = COURSE.scope(course.clone(), work).await;
    let Some(record) = course.record.get().filter(|_| !course.ended.load(Ordering::Relaxed)) else { return response };
    record.event.lock().end_with_code(response.status().as_u16());
    if long_running || record.turned_away {
        record.emit(Stage::ResponseStarted).settled().await;
    }
    if record.turned_away {
        course.ended.store(true, Ordering::Relaxed);
    } else if long_running {
        response = response.map(|body| respond::holding(body, course));
    } else {
        // What is lost now has been reported; the answer is made.
        record.complete(&course.times).settled().await;
        course.ended.store(true, Ordering::Relaxed);
    }
    response
}

impl Drop for Course {
    fn drop(&mut self) {
        let Some(record) = self.record.get_mut().filter(|_| !*self.ended.get_mut()) else { return };
        // Nobody is left who could wait for what becomes of the events.
        if std::thread::panicking() {
            let status =
                json!({"status": "Failure", "reason": "InternalError", "message": "APIServer panic'd", "code": 500});
            record.event.get_mut().end_with(&status);
            record.emit(Stage::Panic);
            return;
        }
        if record.event.get_mut().response_status.is_none() {
            let status = json!({"status": "Success", "message": "Connection closed early", "code": 200});
            record.event.get_mut().end_with(&status);
            if self.long_running {
                record.emit(Stage::ResponseStarted);
            }
        }
        record.complete(&self.times);
    }
}

/// Keeps the request that this task answers from being over.
pub struct Held(#[allow(dead_code, reason = "held for its end")] Arc<Course>);

/// For those who go on with the request's connection after it was answered.
#[must_use]
pub fn hold() -> Option<Held> {
    COURSE.try_with(|course| Held(course.clone())).ok()
}

/// Begins the record of an authenticated request, where the policy wants one.
///
/// # Errors
/// Where the request is to be refused because it cannot be recorded.
pub async fn begin(audit: &Arc<Audit>, cx: &RequestContext, arrival: &Arrival) -> Result<(), Unrecorded> {
    start(audit, cx, arrival, false);
    let emitted = COURSE.try_with(|course| course.record.get().map(|record| record.emit(Stage::RequestReceived)));
    let Ok(Some(outcome)) = emitted else { return Ok(()) };
    if outcome.settled().await {
        return Ok(());
    }
    audit.unrecorded.fetch_add(1, Ordering::Relaxed);
    // Nothing more is recorded of it.
    let _ = COURSE.try_with(|course| course.ended.store(true, Ordering::Relaxed));
    Err(Unrecorded)
}

/// Begins the record of a request that is turned away because its credentials are not valid.
pub fn turn_away(audit: &Arc<Audit>, cx: &RequestContext, arrival: &Arrival) {
    start(audit, cx, arrival, true);
}

fn start(audit: &Arc<Audit>, cx: &RequestContext, arrival: &Arrival, turned_away: bool) {
    let attributes = Attributes::of_request(&cx.info, &cx.user, &cx.query);
    let verdict = audit.policy.judge(&attributes);
    audit.levels[verdict.level as usize].fetch_add(1, Ordering::Relaxed);
    if verdict.level == Level::None {
        return;
    }
    let info = &cx.info;
    let object_ref = info.is_resource.then(|| ObjectReference {
        resource: info.resource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        api_group: info.group.clone(),
        api_version: info.version.clone(),
        subresource: info.subresource.clone(),
        ..ObjectReference::default()
    });
    let event = Event {
        level: verdict.level.as_str(),
        audit_id: String::from_utf8_lossy(arrival.id.as_bytes()).into_owned(),
        stage: Stage::RequestReceived.as_str(),
        request_uri: cx.parts.uri.path_and_query().map_or_else(|| info.path.clone(), ToString::to_string),
        verb: info.verb.clone(),
        user: event::shown(&cx.user),
        impersonated_user: None,
        authentication_metadata: None,
        source_ips: origin::source_ips(&cx.parts.headers, arrival.peer),
        user_agent: origin::user_agent(&cx.parts.headers),
        object_ref,
        response_status: None,
        request_object: None,
        response_object: None,
        request_received_timestamp: arrival.received.clone(),
        stage_timestamp: arrival.received.clone(),
        annotations: BTreeMap::new(),
    };
    let is_resource = info.is_resource;
    let record = Record { audit: audit.clone(), verdict, is_resource, turned_away, event: Mutex::new(event) };
    // Outside of `trailed` nothing is recorded, and nothing runs there that calls this.
    let _ = COURSE.try_with(|course| drop(course.record.set(record)));
}

/// Does a part of the work for the request that this task answers, and notes how long it takes.
pub async fn timed<T>(part: Part, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let out = work.await;
    // Outside of a request nobody wants to know.
    let _ = COURSE.try_with(|course| course.times.took(part, began.elapsed()));
    out
}

/// Looks at the record of the request that this task answers, if there is one.
fn with<T>(look: impl FnOnce(&Record) -> T) -> Option<T> {
    COURSE.try_with(|course| course.record.get().map(look)).ok().flatten()
}

/// Notes something about the request this task answers. What was noted first under a key stays.
pub fn annotate(key: &str, value: &str) {
    annotate_at(Level::Metadata, key, value);
}

/// The same for what only records of at least this level show.
pub fn annotate_at(level: Level, key: &str, value: &str) {
    with(|record| {
        if record.verdict.level < level {
            return;
        }
        let mut event = record.event.lock();
        match event.annotations.get(key) {
            Some(present) if present != value => {
                let id = &event.audit_id;
                tracing::warn!(
                    "Failed to set annotations[{key:?}] to {value:?} for audit:{id:?}, it has already been set to {present:?}"
                );
            }
            Some(_) => {}
            None => drop(event.annotations.insert(key.to_owned(), value.to_owned())),
        }
    });
}

/// Notes whether the request may be made, and why.
pub fn authorized(allowed: bool, reason: &str) {
    annotate("authorization.k8s.io/decision", if allowed { "allow" } else { "forbid" });
    annotate("authorization.k8s.io/reason", reason);
}

/// Notes as whom the request acts, and which verb allows it for such requests alone, if one does.
pub fn impersonated(user: &UserInfo, constraint: &str) {
    with(|record| {
        let mut event = record.event.lock();
        event.impersonated_user = Some(event::shown(user));
        if !constraint.is_empty() {
            event.authentication_metadata = Some(json!({ "impersonationConstraint": constraint }));
        }
    });
}

/// Notes what was sent (JSON or YAML).
pub fn sent(cx: &RequestContext, body: &[u8]) {
    if body.is_empty() || !cx.info.is_resource {
        return;
    }
    with(|record| {
        let is_patch = cx.info.verb == "patch";
        let shown = record.verdict.level >= Level::Request;
        if is_patch && !shown
            || !matches!(cx.info.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
        {
            return;
        }
        // What cannot be read is refused with an error that says so.
        let Ok(object) =
            serde_json::from_slice::<Value>(body).or_else(|_| strict::decode_yaml(body, None).map(|d| d.value))
        else {
            return;
        };
        let mut event = record.event.lock();
        if !is_patch {
            event.refer_to(&object);
        }
        if shown {
            event.request_object = Some(if is_patch { object } else { record.object(object) });
        }
    });
}

/// Whether what is answered is recorded, so that it has to be there as a whole.
#[must_use]
pub fn wants_answer() -> bool {
    with(|record| record.is_resource && record.verdict.level >= Level::RequestResponse).unwrap_or(false)
}

/// Notes an object that is answered (JSON), before it is encoded.
pub fn answered(json: &[u8]) {
    with(|record| {
        let whole = record.is_resource && record.verdict.level >= Level::RequestResponse;
        let maybe_status = json.len() <= STATUS_BYTES_MAX && holds_status(json);
        if !whole && !maybe_status {
            return;
        }
        let Ok(object) = serde_json::from_slice::<Value>(json) else { return };
        let mut event = record.event.lock();
        if object["kind"] == "Status" && object["apiVersion"] == "v1" {
            event.end_with(&object);
        }
        if whole {
            event.response_object = Some(record.object(object));
        }
    });
}

fn holds_status(json: &[u8]) -> bool {
    const KIND: &[u8] = br#""kind":"Status""#;
    json.windows(KIND.len()).any(|w| w == KIND)
}

#[cfg(test)]
mod tests;
