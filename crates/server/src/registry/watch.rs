//! Watch: a stream of changes from any version still held.

use super::Registry;
use super::conversion::{is_converted, of_any_version};
use super::options::ListOptions;
use crate::http::negotiate::Form;
use crate::http::respond::not_marshalable;
use crate::table;
use crate::watch_cache::fresh::Receiver;
use crate::watch_cache::{
    Encoding, Entry, Event, EventType, Handover, Next, Selection, Shown, Snapshot, Subscription, WatchCache,
};
use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::kind::Resource;
use gantry_api::meta::status::ApiError;
use gantry_schema::protobuf;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Upstream sends a bookmark about once a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Watches without `timeoutSeconds` end after half an hour to an hour, so that load spreads over servers again.
const TIMEOUT_MIN: u64 = 1800;

impl Registry {
    /// Starts a watch.
    ///
    /// # Errors
    /// Bad selectors. A version that is no longer held is an event of the stream, as upstream.
    pub async fn watch(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        options: &ListOptions,
        form: Form,
    ) -> Result<WatchBody, ApiError> {
        let cache = self.cache(resource)?;
        let selection = cache.selection(namespace, options.labels.clone(), &options.fields)?;
        let version = options.resource_version;
        let initial = match (options.send_initial_events, version) {
            (Some(initial), _) => initial,
            (None, version) => version.unwrap_or(0) == 0,
        };
        // A list-and-watch is as fresh as a list; a watch from a version starts there at once.
        if initial {
            self.check_readable(resource, namespace)?;
        }
        let current = if initial || version.is_none() {
            self.fresh(version).await?;
            cache.applied_revision()
        } else {
            0
        };
        let after = match (initial, version) {
            (true, _) => None,
            (false, Some(v)) if v > 0 => Some(v),
            (false, _) => Some(current),
        };
        let timeout =
            options.timeout_seconds.filter(|s| *s > 0).unwrap_or_else(|| TIMEOUT_MIN + self.entropy.below(TIMEOUT_MIN));
        let end = Instant::now() + Duration::from_secs(timeout);
        let conversion = is_converted(resource).then(|| Conversion {
            registry: self.me.clone(),
            selection: selection.clone(),
            pending: Mutex::default(),
        });
        let subscribed = if conversion.is_some() { of_any_version(&selection) } else { selection };
        let state = match cache.subscribe(subscribed, after) {
            Ok((snapshot, subscription)) => {
                let initial = match snapshot {
                    Some(snapshot) => {
                        let snapshot = self.shown_snapshot(resource, snapshot).await?;
                        Some(Initial { snapshot, after: String::new() })
                    }
                    None => None,
                };
                State::Running { initial, subscription }
            }
            Err(e) => {
                let e = ApiError::expired(format!("too old resource version: {} ({})", e.asked, e.oldest));
                State::Failed(e)
            }
        };
        let bookmark_at = options.bookmarks.then(|| Instant::now() + BOOKMARK_EVERY);
        Ok(WatchBody {
            resource,
            form,
            protobuf: false,
            clock: self.clock,
            conversion,
            receiver: None,
            state,
            floor: after.unwrap_or(0),
            columns_sent: false,
            mark_initial_end: options.bookmarks && options.send_initial_events == Some(true),
            bookmark_at,
            end,
            timer: Box::pin(tokio::time::sleep_until(bookmark_at.unwrap_or(end).min(end))),
        })
    }
}

struct Initial {
    snapshot: Snapshot,
    after: String,
}

enum State {
    Running { initial: Option<Initial>, subscription: Subscription },
    Failed(ApiError),
    Ended,
}

/// The stream of a watch: one frame per event.
pub struct WatchBody {
    resource: &'static dyn Resource,
    form: Form,
    protobuf: bool,
    clock: Clock,
    conversion: Option<Conversion>,
    /// Who takes objects as they were written.
    receiver: Option<Receiver>,
    state: State,
    /// Events up to this version are not for this watch.
    floor: u64,
    columns_sent: bool,
    mark_initial_end: bool,
    bookmark_at: Option<Instant>,
    end: Instant,
    timer: Pin<Box<Sleep>>,
}

type Making = Pin<Box<dyn Future<Output = Result<Arc<Event>, ApiError>> + Send>>;

/// A watch of objects that a webhook may have to convert, one change after the other.
struct Conversion {
    registry: Weak<Registry>,
    /// What the watch is about; what is subscribed to is wider, for labels and fields may differ between versions.
    selection: Selection,
    /// The change under way. Behind a lock only because bodies are shared between threads, which this is not.
    pending: Mutex<Option<Making>>,
}

enum Step {
    /// A line of JSON, which the watch may have in another encoding.
    Send(Bytes),
    /// What is in the encoding of the watch.
    SendAsIs(Bytes),
    Wait,
    /// Until the webhook has answered.
    Convert,
    End,
}

enum Converted {
    Next(Result<Poll<Next>, ApiError>),
    UnderWay,
}

impl Conversion {
    /// The next change that the watch is about, in its version.
    fn poll_next(
        &mut self,
        subscription: &Subscription,
        resource: &'static dyn Resource,
        floor: u64,
        cx: &mut Context<'_>,
    ) -> Converted {
        loop {
            if let Some(pending) = self.pending.get_mut() {
                let Poll::Ready(made) = pending.as_mut().poll(cx) else { return Converted::UnderWay };
                *self.pending.get_mut() = None;
                match made {
                    Err(e) => return Converted::Next(Err(e)),
                    Ok(event) => {
                        if let Some(shown) = event.shown_to(&self.selection) {
                            return Converted::Next(Ok(Poll::Ready(Next::Event(event, shown))));
                        }
                    }
                }
            }
            match subscription.poll_next(cx) {
                Poll::Ready(Next::Event(event, _)) if event.revision() <= floor => {}
                Poll::Ready(Next::Event(event, _)) => {
                    let Some(registry) = self.registry.upgrade() else { return Converted::Next(Ok(Poll::Pending)) };
                    let made = async move { registry.shown_event(resource, &event).await };
                    *self.pending.get_mut() = Some(Box::pin(made));
                }
                other => return Converted::Next(Ok(other)),
            }
        }
    }
}

impl WatchBody {
    /// The same watch with its events in protobuf.
    #[must_use]
    pub fn into_protobuf(mut self) -> Self {
        self.protobuf = true;
        self
    }

    /// From now on objects are handed over beside the frames that tell of them: where they are left. None where frames do not
    /// tell of whole objects as they are stored.
    pub fn hand_over(&mut self) -> Option<Arc<Handover>> {
        let State::Running { subscription, .. } = &self.state else { return None };
        let whole =
            matches!(self.form, Form::Object | Form::Metadata(_)) && !self.protobuf && self.conversion.is_none();
        let receiver = whole.then(|| Receiver::new(subscription.cache().clone()))?;
        Some(self.receiver.insert(receiver).handover())
    }

    /// An event, made as a line of JSON, in the encoding of the watch.
    fn framed(&self, line: Bytes) -> Result<Bytes, ApiError> {
        if self.protobuf { Ok(protobuf_frame(&line)?.into()) } else { Ok(line) }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Result<Step, ApiError> {
        let (initial, subscription) = match &mut self.state {
            State::Ended => return Ok(Step::End),
            State::Failed(e) => {
                let event = error_event(e);
                self.state = State::Ended;
                return Ok(Step::Send(event));
            }
            State::Running { initial, subscription } => (initial, subscription),
        };
        if let Some(position) = initial {
            let selection = self.conversion.as_ref().map_or(subscription.selection(), |c| &c.selection);
            let found = position
                .snapshot
                .iter_after(&selection.namespace, &position.after)
                .find(|e| selection.matches(e))
                .cloned();
            if let Some(entry) = found {
                entry.path().clone_into(&mut position.after);
                let frame = if entry.event() == EventType::Added {
                    entry.frame()
                } else {
                    entry.reframed(EventType::Added, entry.revision)
                };
                return self.shaped(EventType::Added, &entry, frame).map(Step::Send);
            }
            let revision = position.snapshot.revision;
            self.floor = revision;
            *initial = None;
            if std::mem::take(&mut self.mark_initial_end) {
                return Ok(Step::Send(self.bookmark(revision, true)));
            }
            return self.step(cx);
        }
        // Read before the queue is: all events up to here have been queued.
        let applied = subscription.cache().applied_revision();
        loop {
            let next = match &mut self.conversion {
                None => subscription.poll_next(cx),
                Some(conversion) => match conversion.poll_next(subscription, self.resource, self.floor, cx) {
                    Converted::Next(next) => next?,
                    Converted::UnderWay => return Ok(Step::Convert),
                },
            };
            match next {
                Poll::Ready(Next::Event(event, _)) if event.revision() <= self.floor => {}
                Poll::Ready(Next::Event(event, shown)) => {
                    let cache = subscription.cache().clone();
                    return self.change(&cache, &event, shown).map(Step::SendAsIs);
                }
                Poll::Ready(Next::Closed(why)) => {
                    tracing::debug!(resource = self.resource.info().plural, ?why, "watch closed by the server");
                    self.state = State::Ended;
                    return Ok(Step::End);
                }
                Poll::Pending => break,
            }
        }
        let now = Instant::now();
        if now >= self.end {
            self.state = State::Ended;
            let last = self.bookmark_at.is_some().then(|| self.bookmark(applied.max(self.floor), false));
            return Ok(last.map_or(Step::End, Step::Send));
        }
        if self.bookmark_at.is_some_and(|at| now >= at) {
            let next = now + BOOKMARK_EVERY;
            self.bookmark_at = Some(next);
            self.timer.as_mut().reset(next.min(self.end));
            return Ok(Step::Send(self.bookmark(applied.max(self.floor), false)));
        }
        Ok(Step::Wait)
    }

    /// A change in the form and the encoding of the watch.
    fn change(&mut self, cache: &WatchCache, event: &Arc<Event>, shown: Shown) -> Result<Bytes, ApiError> {
        // Who gets the object itself has no use for another form of its text.
        if let Some(frame) = self.receiver.as_ref().and_then(|receiver| receiver.send(event, shown)) {
            return Ok(frame);
        }
        let kind = match shown {
            Shown::AsIs => event.entry.event(),
            Shown::Added => EventType::Added,
            Shown::Deleted => EventType::Deleted,
        };
        let encoding = match self.form {
            // It was converted for this watch alone.
            _ if self.conversion.is_some() => None,
            // Rows tell ages, and only the first one brings the columns.
            Form::Table(..) => None,
            Form::Object if !self.protobuf => None,
            Form::Object => Some(Encoding { protobuf: true, metadata: None }),
            Form::Metadata(version) => Some(Encoding { protobuf: self.protobuf, metadata: Some(version) }),
        };
        let mut make = || {
            let line = self.shaped(kind, &event.entry, event.frame(shown))?;
            self.framed(line)
        };
        match encoding {
            Some(encoding) => cache.encoded(event, shown, encoding, make),
            None => make(),
        }
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        let info = self.resource.info();
        let (api_version, kind) = match self.form {
            Form::Metadata(v) => (format!("meta.k8s.io/{v}"), "PartialObjectMetadata"),
            Form::Table(..) | Form::Object => (info.api_version(), info.kind),
        };
        let annotations = if initial_end { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
        let object = format!(
            r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{revision}"{annotations}}}}}"#
        );
        let object = match self.form {
            Form::Table(v, _) => format!(
                r#"{{"kind":"Table","apiVersion":"meta.k8s.io/{v}","metadata":{{"resourceVersion":"{revision}"}},"columnDefinitions":[],"rows":[{{"cells":[],"object":{object}}}]}}"#
            ),
            _ => object,
        };
        Bytes::from(format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n"))
    }

    fn shaped(&mut self, kind: EventType, entry: &Arc<Entry>, frame: Bytes) -> Result<Bytes, ApiError> {
        let object = &frame[event_head(kind)..frame.len() - 2];
        let shape = match self.form {
            Form::Object => return Ok(frame),
            Form::Metadata(version) => table::partial(object, version)?,
            Form::Table(version, include) => {
                let first = !std::mem::replace(&mut self.columns_sent, true);
                table::of_one(
                    self.resource,
                    object,
                    &entry.revision.to_string(),
                    version,
                    include,
                    first,
                    self.clock.now(),
                )?
            }
        };
        let mut out = frame[..event_head(kind)].to_vec();
        out.extend_from_slice(&shape);
        out.extend_from_slice(b"}\n");
        Ok(out.into())
    }
}

/// Length of `{"type":"…","object":`.
fn event_head(kind: EventType) -> usize {
    r#"{"type":"","object":"#.len() + kind.as_str().len()
}

fn error_event(e: &ApiError) -> Bytes {
    let mut out = br#"{"type":"ERROR","object":"#.to_vec();
    out.extend_from_slice(&e.to_json());
    out.extend_from_slice(b"}\n");
    out.into()
}

/// An event in protobuf from its line of JSON.
fn protobuf_frame(line: &[u8]) -> Result<Vec<u8>, ApiError> {
    let broken = || ApiError::internal("no watch event");
    // `{"type":"…","object":…}` and a line break, as this server writes it.
    let rest = line.strip_prefix(br#"{"type":""#).ok_or_else(broken)?;
    let end = rest.iter().position(|b| *b == b'"').ok_or_else(broken)?;
    let (event, rest) = rest.split_at(end);
    let object = rest.strip_prefix(br#"","object":"#).and_then(|r| r.strip_suffix(b"}\n")).ok_or_else(broken)?;
    let event = std::str::from_utf8(event).map_err(ApiError::internal)?;
    let object = protobuf::encode(object).map_err(not_marshalable)?;
    Ok(protobuf::watch_frame(event, &object))
}

impl Body for WatchBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = self.get_mut();
        loop {
            let step = this.step(cx).and_then(|step| match step {
                Step::Send(line) => this.framed(line).map(Step::SendAsIs),
                step => Ok(step),
            });
            match step {
                Ok(Step::Send(bytes) | Step::SendAsIs(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Ok(Step::End) => return Poll::Ready(None),
                Ok(Step::Convert) => return Poll::Pending,
                Ok(Step::Wait) => match this.timer.as_mut().poll(cx) {
                    Poll::Ready(()) => {
                        let next = this.bookmark_at.unwrap_or(this.end).min(this.end);
                        this.timer.as_mut().reset(next);
                    }
                    Poll::Pending => return Poll::Pending,
                },
                Err(e) => {
                    this.state = State::Ended;
                    let event = this.framed(error_event(&e)).map_err(|e| std::io::Error::other(e.message));
                    return Poll::Ready(Some(event.map(Frame::data)));
                }
            }
        }
    }
}
