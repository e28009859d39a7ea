//! Recording of Events: repeated ones are counted, similar ones combined, floods cut off, as client-go's correlator does.

use gantry_api::clock::Clock;
use gantry_api::kind::Kind;
use gantry_client::{Client, Error, Patch, resource_path};
use http::Method;
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

mod correlate;
use correlate::{Correlator, Decision};

/// Events wait in a queue of this length; what does not fit is dropped, never buffered without bound.
const QUEUE: usize = 1000;
/// Records under way at once: each waits for the disk, and many can wait together.
const UNDER_WAY: usize = 4;
/// A record is tried this often while the server cannot be reached…
const TRIES: u32 = 12;
/// …with this long in between.
const RETRY: Duration = Duration::from_secs(10);

/// Whether an event is ordinary or a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    /// The value of the event's `type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// The reference by which events name `object`.
#[must_use]
pub fn reference<K: Kind>(object: &K) -> ObjectReference {
    let m = object.meta();
    ObjectReference {
        api_version: Some(K::INFO.api_version()),
        kind: Some(K::INFO.kind.to_owned()),
        namespace: m.namespace.clone(),
        name: m.name.clone(),
        uid: m.uid.clone(),
        resource_version: m.resource_version.clone(),
        field_path: None,
    }
}

/// An occurrence as it was recorded.
#[derive(Clone, Debug)]
pub(crate) struct Occurrence {
    pub(crate) about: ObjectReference,
    pub(crate) r#type: EventType,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) at: k8s_openapi::jiff::Timestamp,
    pub(crate) annotations: Vec<(String, String)>,
}

struct Shared {
    queue: mpsc::Sender<Occurrence>,
    clock: Clock,
    dropped: AtomicU64,
}

/// Records events of one component. Recording never waits and never fails; cheap to clone.
#[derive(Clone)]
pub struct EventRecorder(Arc<Shared>);

impl EventRecorder {
    /// A recorder for `component` (`deployment-controller`) on `host` (empty but for node agents). Its task ends when the
    /// last clone is dropped. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(client: Client, clock: Clock, component: &str, host: &str) -> Self {
        let (queue, rx) = mpsc::channel(QUEUE);
        let sink = Sink { client, component: component.to_owned(), host: host.to_owned() };
        tokio::spawn(Arc::new(sink).run(rx));
        Self(Arc::new(Shared { queue, clock, dropped: AtomicU64::new(0) }))
    }

    /// Records that `reason` happened to `about`.
    pub fn record(&self, about: &ObjectReference, r#type: EventType, reason: &str, message: &str) {
        self.record_annotated(about, r#type, reason, message, Vec::new());
    }

    /// [`EventRecorder::record`] with annotations on the event.
    pub fn record_annotated(
        &self,
        about: &ObjectReference,
        r#type: EventType,
        reason: &str,
        message: &str,
        annotations: Vec<(String, String)>,
    ) {
        let occurrence = Occurrence {
            about: about.clone(),
            r#type,
            reason: reason.to_owned(),
            message: message.to_owned(),
            at: self.0.clock.now(),
            annotations,
        };
        if self.0.queue.try_send(occurrence).is_err() {
            let n = self.0.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if n.is_power_of_two() {
                warn!(dropped = n, %reason, "event queue full, events dropped");
            }
        }
    }

    /// Records an event about `object`.
    pub fn event<K: Kind>(&self, object: &K, r#type: EventType, reason: &str, message: &str) {
        self.record(&reference(object), r#type, reason, message);
    }

    /// A `Normal` event about `object`.
    pub fn normal<K: Kind>(&self, object: &K, reason: &str, message: &str) {
        self.event(object, EventType::Normal, reason, message);
    }

    /// A `Warning` event about `object`.
    pub fn warning<K: Kind>(&self, object: &K, reason: &str, message: &str) {
        self.event(object, EventType::Warning, reason, message);
    }
}

struct Sink {
    client: Client,
    component: String,
    host: String,
}

impl Sink {
    /// Records what comes until nothing can come any more. Records of one event follow each other.
    async fn run(self: Arc<Self>, mut queue: mpsc::Receiver<Occurrence>) {
        let mut correlator = Correlator::default();
        let mut under_way = JoinSet::new();
        let mut names = HashSet::new();
        while let Some(o) = queue.recv().await {
            let Some(decision) = correlator.decide(&o, &self.component, Instant::now()) else { continue };
            while names.len() >= UNDER_WAY || names.contains(&decision.name) {
                match under_way.join_next().await {
                    Some(Ok(name)) => names.remove::<String>(&name),
                    // Nothing ends them but the end of the process.
                    Some(Err(_)) | None => return,
                };
            }
            names.insert(decision.name.clone());
            let sink = self.clone();
            under_way.spawn(async move {
                sink.record(&o, &decision).await;
                decision.name
            });
        }
        while under_way.join_next().await.is_some() {}
    }

    async fn record(&self, o: &Occurrence, decision: &Decision) {
        for attempt in 1..=TRIES {
            match self.write(o, decision).await {
                Ok(()) => break,
                Err(Error::Transport(e)) if attempt < TRIES => {
                    debug!(error = %e, "cannot record event, trying again");
                    tokio::time::sleep(RETRY).await;
                }
                Err(e) if e.is("Forbidden") || e.is("NotFound") => {
                    // A namespace on its way out takes no more events: ordinary.
                    debug!(reason = %o.reason, error = %e, "event not recorded");
                    break;
                }
                Err(e) => {
                    warn!(reason = %o.reason, message = %o.message, error = %e, "event not recorded");
                    break;
                }
            }
        }
    }

    async fn write(&self, o: &Occurrence, d: &Decision) -> Result<(), Error> {
        let namespace = o.about.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
        if d.count > 1 {
            let path = resource_path("", "v1", "events", Some(namespace), Some(&d.name), None);
            let patch = Patch::Strategic(json!({
                "count": d.count, "lastTimestamp": timestamp(o.at), "message": d.message,
            }));
            let (media, document) = patch.parts();
            match self.client.call(Method::PATCH, &path, Some(media), document.to_string().into()).await {
                Err(e) if e.is("NotFound") => {}
                other => return other.map(drop),
            }
        }
        let path = resource_path("", "v1", "events", Some(namespace), None, None);
        let body = self.body(o, d, namespace).to_string().into();
        match self.client.call(Method::POST, &path, Some("application/json"), body).await {
            // A repeated attempt whose first answer was lost.
            Err(e) if e.is("AlreadyExists") => Ok(()),
            other => other.map(drop),
        }
    }

    fn body(&self, o: &Occurrence, d: &Decision, namespace: &str) -> Value {
        let mut about = json!({});
        let fields = [
            ("apiVersion", &o.about.api_version),
            ("kind", &o.about.kind),
            ("namespace", &o.about.namespace),
            ("name", &o.about.name),
            ("uid", &o.about.uid),
            ("resourceVersion", &o.about.resource_version),
            ("fieldPath", &o.about.field_path),
        ];
        for (name, value) in fields {
            if let Some(v) = value {
                about[name] = v.as_str().into();
            }
        }
        let mut source = json!({ "component": self.component });
        if !self.host.is_empty() {
            source["host"] = self.host.as_str().into();
        }
        let mut body = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": d.name, "namespace": namespace },
            "involvedObject": about,
            "type": o.r#type.as_str(),
            "reason": o.reason,
            "message": d.message,
            "source": source,
            "reportingComponent": self.component,
            "reportingInstance": self.host,
            "firstTimestamp": timestamp(d.first),
            "lastTimestamp": timestamp(o.at),
            "count": d.count,
        });
        for (k, v) in &o.annotations {
            body["metadata"]["annotations"][k] = v.as_str().into();
        }
        body
    }
}

/// Whole seconds, as `metav1.Time` carries them.
fn timestamp(at: k8s_openapi::jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
