//! Decoding of lists and watch streams, without building JSON trees.

use crate::api::{ObjectList, WatchEvent, WatchStream};
use crate::transport::{Body, SharedMemory};
use crate::{ApiError, Error};
use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use gantry_api::ObjectMeta;
use gantry_api::kind::{Kind, Object};
use http::Response;
use http_body::Body as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::any::Any;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// One line of a watch may be no longer than this: far above the largest object a server stores (some MiB).
const MAX_FRAME: usize = 64 << 20;
/// Annotation on the bookmark that ends the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

#[derive(Deserialize)]
struct ListFrame<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct EventFrame<'a> {
    r#type: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct KindOnly {
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct BookmarkFrame {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Something that can be read from one item of a list or one event of a watch: a [`Kind`] or a
/// [`PartialObject`](crate::PartialObject).
pub trait Item: Sized + Send + Sync + 'static {
    /// Decodes JSON text.
    ///
    /// # Errors
    /// Where it is not JSON or a field has the wrong type.
    fn read(bytes: &[u8]) -> Result<Self, serde_json::Error>;
    /// The same for what wants to keep the text: `keep` gives memory that holds it and little else.
    ///
    /// # Errors
    /// As [`Item::read`].
    fn read_kept(bytes: &[u8], keep: &dyn Fn() -> Bytes) -> Result<Self, serde_json::Error> {
        let _ = keep;
        Self::read(bytes)
    }
    /// The same of an object that its sender has decoded: what [`Item::read_kept`] and [`Item::slim`] would make of the
    /// text. None where nothing is gained, which is why it is read.
    fn received(object: Arc<dyn Object>, bytes: &[u8], keep: &dyn Fn() -> Bytes) -> Option<Self> {
        let _ = (object, bytes, keep);
        None
    }
    /// The object itself, slim, where it is of this type; `bytes` is its text.
    fn shared(object: Arc<dyn Object>, bytes: &[u8]) -> Option<Arc<Self>> {
        let _ = (object, bytes);
        None
    }
    /// Object metadata.
    fn metadata(&self) -> &ObjectMeta;
    /// Drops what caches need not hold. Managed fields are often half an object's weight, and a write that leaves them out
    /// keeps the server's.
    fn slim(&mut self);
}

impl<K: Kind> Item for K {
    fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        K::from_json(bytes)
    }
    fn shared(object: Arc<dyn Object>, bytes: &[u8]) -> Option<Arc<Self>> {
        let object: Arc<dyn Any + Send + Sync> = object;
        let object = object.downcast::<K>().ok()?;
        debug_assert!(is_read_from(&*object, bytes), "what was handed over is not what was written");
        Some(object)
    }
    fn metadata(&self) -> &ObjectMeta {
        self.meta()
    }
    fn slim(&mut self) {
        self.meta_mut().managed_fields = None;
        self.shrink();
    }
}

/// Whether an object is what its text says, without what is not kept.
fn is_read_from<T: Item + PartialEq>(object: &T, bytes: &[u8]) -> bool {
    T::read(bytes).is_ok_and(|mut read| {
        read.slim();
        read == *object
    })
}

fn undecodable(what: &str, e: &serde_json::Error) -> Error {
    Error::Decode { what: what.to_owned(), message: e.to_string() }
}

/// Whether an answer is a `Status` and not an object.
pub(crate) fn is_status(bytes: &[u8]) -> bool {
    serde_json::from_slice::<KindOnly>(bytes).is_ok_and(|k| k.kind == "Status")
}

/// Decodes a list answer.
pub(crate) fn list<T: Item>(bytes: &[u8], plural: &str) -> Result<ObjectList<T>, Error> {
    let frame = list_frame(bytes, plural)?;
    let raw = frame.items.unwrap_or_default();
    let mut items = Vec::with_capacity(raw.len());
    for (n, r) in raw.into_iter().enumerate() {
        let text = r.get().as_bytes();
        let item = T::read_kept(text, &|| Bytes::copy_from_slice(text));
        items.push(item.map_err(|e| undecodable(&format!("item {n} of the list of {plural}"), &e))?);
    }
    Ok(ObjectList {
        items,
        resource_version: frame.metadata.resource_version.unwrap_or_default(),
        continue_token: frame.metadata.continue_.unwrap_or_default(),
    })
}

fn list_frame<'a>(bytes: &'a [u8], plural: &str) -> Result<ListFrame<'a>, Error> {
    serde_json::from_slice(bytes).map_err(|e| undecodable(&format!("list of {plural}"), &e))
}

fn undecodable_event(plural: &str, e: &serde_json::Error) -> Error {
    undecodable(&format!("watch event of {plural}"), e)
}

/// Decodes one line of a watch. A `shared` line may be kept as it is, and its object may be there.
fn event<T: Item>(line: &Bytes, shared: Option<&SharedMemory>, plural: &str) -> Result<WatchEvent<T>, Error> {
    let mut handed_over = shared.and_then(|shared| (shared.decoded)(line));
    let mut item = |object: &[u8]| {
        let keep = || if shared.is_some() { line.slice_ref(object) } else { Bytes::copy_from_slice(object) };
        let received = handed_over.take().and_then(|decoded| T::received(decoded, object, &keep));
        received.map_or_else(|| T::read_kept(object, &keep).map_err(|e| undecodable_event(plural, &e)), Ok)
    };
    // Who shares its memory writes events just so, and nobody has to look for the object's end.
    let framed = shared.and_then(|_| framed(line));
    Ok(match framed.map_or_else(|| event_frame(line, plural), Ok)? {
        WatchEvent::Added(object) => WatchEvent::Added(item(object)?),
        WatchEvent::Modified(object) => WatchEvent::Modified(item(object)?),
        WatchEvent::Deleted(object) => WatchEvent::Deleted(item(object)?),
        WatchEvent::Bookmark { resource_version, initial_events_end } => {
            WatchEvent::Bookmark { resource_version, initial_events_end }
        }
    })
}

/// As [`event_frame`] of a line as the server in this process writes it, unless it tells of no object. Whether what it has
/// is an object is for whoever decodes that.
fn framed(line: &[u8]) -> Option<WatchEvent<&[u8]>> {
    let object = |head: &[u8]| line.strip_prefix(head)?.strip_suffix(b"}");
    let added = || object(br#"{"type":"ADDED","object":"#).map(WatchEvent::Added);
    let modified = || object(br#"{"type":"MODIFIED","object":"#).map(WatchEvent::Modified);
    let deleted = || object(br#"{"type":"DELETED","object":"#).map(WatchEvent::Deleted);
    added().or_else(modified).or_else(deleted)
}

/// What one line of a watch tells of, its object as text.
fn event_frame<'a>(line: &'a [u8], plural: &str) -> Result<WatchEvent<&'a [u8]>, Error> {
    let failed = |e| undecodable_event(plural, &e);
    let frame: EventFrame<'_> = serde_json::from_slice(line).map_err(failed)?;
    let object = frame.object.get().as_bytes();
    match frame.r#type.as_str() {
        "ADDED" => Ok(WatchEvent::Added(object)),
        "MODIFIED" => Ok(WatchEvent::Modified(object)),
        "DELETED" => Ok(WatchEvent::Deleted(object)),
        "BOOKMARK" => {
            let b: BookmarkFrame = serde_json::from_slice(object).map_err(failed)?;
            let end = b.metadata.annotations.is_some_and(|a| a.get(INITIAL_EVENTS_END).is_some_and(|v| v == "true"));
            Ok(WatchEvent::Bookmark { resource_version: b.metadata.resource_version, initial_events_end: end })
        }
        "ERROR" => {
            let status: Status = serde_json::from_slice(object).map_err(failed)?;
            Err(ApiError::from_status(500, status).into())
        }
        other => {
            let message = format!("unknown event type {other:?}");
            Err(Error::Decode { what: format!("watch event of {plural}"), message })
        }
    }
}

struct Lines {
    body: Body,
    /// What has not been looked at of the frame that came last.
    frame: Bytes,
    /// The beginning of a line whose end has not come.
    begun: BytesMut,
    ended: bool,
    /// Whether each frame is a line, so that nobody has to look for its end.
    whole: bool,
}

impl Lines {
    /// The next line without its end, None at the end of the stream. A line within one frame is a part of that frame.
    fn poll_next(&mut self, context: &mut Context<'_>, plural: &str) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            if self.whole && self.frame.last() == Some(&b'\n') {
                let mut line = std::mem::take(&mut self.frame);
                line.truncate(line.len() - 1);
                return Poll::Ready(Some(Ok(line)));
            }
            if let Some(at) = self.frame.iter().position(|b| *b == b'\n') {
                let rest = self.frame.split_to(at);
                self.frame.advance(1);
                let line = if self.begun.is_empty() {
                    rest
                } else {
                    self.begun.extend_from_slice(&rest);
                    self.begun.split().freeze()
                };
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Poll::Ready(Some(Ok(line)));
            }
            self.begun.extend_from_slice(&self.frame);
            self.frame.clear();
            if self.ended {
                // What follows the last line end is a frame cut off by a broken connection, never a whole event.
                return Poll::Ready(None);
            }
            if self.begun.len() > MAX_FRAME {
                self.ended = true;
                self.begun.clear();
                return Poll::Ready(Some(Err(Error::Decode {
                    what: format!("watch event of {plural}"),
                    message: format!("longer than {MAX_FRAME} bytes"),
                })));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => self.ended = true,
                Some(Err(e)) => {
                    self.ended = true;
                    self.begun.clear();
                    return Poll::Ready(Some(Err(e.into())));
                }
                Some(Ok(frame)) => self.frame = frame.into_data().unwrap_or_default(),
            }
        }
    }
}

struct Events<T> {
    /// None after the end and after a failure.
    lines: Option<Lines>,
    shared: Option<SharedMemory>,
    plural: String,
    item: PhantomData<fn() -> T>,
}

impl<T: Item> Stream for Events<T> {
    type Item = Result<WatchEvent<T>, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(lines) = &mut this.lines else { return Poll::Ready(None) };
        let line = ready!(lines.poll_next(context, &this.plural));
        let event = line.map(|line| event(&line?, this.shared.as_ref(), &this.plural));
        if !matches!(event, Some(Ok(_))) {
            this.lines = None;
        }
        Poll::Ready(event)
    }
}

/// The events of a watch's answer. Ends after the first failure.
pub(crate) fn watch<T: Item>(response: Response<Body>, plural: String) -> WatchStream<T> {
    let shared = response.extensions().get::<SharedMemory>().cloned();
    let whole = shared.is_some();
    let lines = Lines { body: response.into_body(), frame: Bytes::new(), begun: BytesMut::new(), ended: false, whole };
    Events { lines: Some(lines), shared, plural, item: PhantomData }.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Decoded;
    use crate::{PartialObject, TransportError};
    use futures::stream;
    use http_body_util::{BodyExt, StreamBody};
    use k8s_openapi::api::core::v1::ConfigMap;
    use std::sync::Mutex;

    fn body(chunks: Vec<Result<&'static str, TransportError>>) -> Body {
        let frames = chunks.into_iter().map(|c| c.map(|s| http_body::Frame::data(Bytes::from_static(s.as_bytes()))));
        BodyExt::boxed(StreamBody::new(stream::iter(frames)))
    }

    #[test]
    fn list_reads_items_without_type_meta() {
        let text = br#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"7","continue":"c"},
            "items":[{"metadata":{"name":"a"},"data":{"k":"v"}},{"metadata":{"name":"b"}}]}"#;
        let l: ObjectList<ConfigMap> = list(text, "configmaps").unwrap();
        assert_eq!(l.items.len(), 2);
        assert_eq!((l.resource_version.as_str(), l.continue_token.as_str()), ("7", "c"));
        let empty: ObjectList<ConfigMap> = list(br#"{"metadata":{},"items":null}"#, "configmaps").unwrap();
        assert!(empty.items.is_empty());
        assert!(
            list::<ConfigMap>(br#"{"items":[{"data":3}]}"#, "configmaps").unwrap_err().to_string().contains("item 0")
        );
    }

    #[test]
    fn shared_lines_are_read_as_others_are() {
        let object = r#"{"metadata":{"name":"a"},"data":{"k":"}"}}"#;
        for kind in ["ADDED", "MODIFIED", "DELETED"] {
            let line = format!(r#"{{"type":"{kind}","object":{object}}}"#);
            let (quick, slow) = (framed(line.as_bytes()).unwrap(), event_frame(line.as_bytes(), "configmaps").unwrap());
            assert_eq!(format!("{quick:?}"), format!("{slow:?}"));
            let line = Bytes::from(line);
            let memory = SharedMemory { decoded: Arc::new(|_| None) };
            let read = |shared| event::<ConfigMap>(&line, shared, "configmaps").unwrap();
            let events = [Some(&memory), None].map(read);
            assert_eq!(format!("{:?}", events[0]), format!("{:?}", events[1]));
        }
        let bookmark = br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#;
        assert!(framed(bookmark).is_none());
        let more = Bytes::from_static(br#"{"type":"ADDED","object":{"metadata":{}},"more":1}"#);
        let memory = SharedMemory { decoded: Arc::new(|_| None) };
        assert!(event::<ConfigMap>(&more, Some(&memory), "configmaps").is_err());
    }

    #[test]
    fn an_object_that_is_there_is_not_read() {
        let text = r#"{"metadata":{"name":"a","labels":{"k":"v"},"finalizers":["f"],"resourceVersion":"7"},"data":{}}"#;
        let object: Arc<dyn Object> = Arc::new(ConfigMap::from_json(text.as_bytes()).unwrap());
        let line = Bytes::from(format!(r#"{{"type":"ADDED","object":{text}}}"#));
        let handed = object.clone();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let frames = asked.clone();
        let decoded: Decoded = Arc::new(move |frame| {
            frames.lock().unwrap().push(frame.as_ptr().addr());
            Some(handed.clone())
        });
        let memory = SharedMemory { decoded };
        let Ok(WatchEvent::Added(received)) = event::<PartialObject>(&line, Some(&memory), "configmaps") else {
            panic!()
        };
        let Ok(WatchEvent::Added(mut read)) = event::<PartialObject>(&line, None, "configmaps") else { panic!() };
        read.slim();
        assert_eq!(received.metadata, read.metadata);
        assert_eq!(*asked.lock().unwrap(), [line.as_ptr().addr()]);
        let shared = ConfigMap::shared(object.clone(), text.as_bytes()).unwrap();
        assert_eq!(Arc::as_ptr(&shared).addr(), Arc::as_ptr(&object).cast::<()>().addr());
        assert!(k8s_openapi::api::core::v1::Secret::shared(object, text.as_bytes()).is_none());
    }

    #[tokio::test]
    async fn watch_joins_chunks_and_stops_at_an_error_event() {
        let chunks = vec![
            Ok("{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"na"),
            Ok(
                "me\":\"a\"}}}\n{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"9\",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n",
            ),
            Ok(
                "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"status\":\"Failure\",\"code\":410,\"reason\":\"Expired\",\"message\":\"too old\"}}\n{\"type\":\"ADDED\"}\n",
            ),
        ];
        let mut w = watch::<ConfigMap>(Response::new(body(chunks)), "configmaps".to_owned());
        assert!(matches!(w.next().await, Some(Ok(WatchEvent::Added(c))) if c.metadata.name.as_deref() == Some("a")));
        assert!(matches!(
            w.next().await,
            Some(Ok(WatchEvent::Bookmark { resource_version, initial_events_end: true })) if resource_version == "9"
        ));
        assert!(w.next().await.unwrap().unwrap_err().is_expired());
        assert!(w.next().await.is_none());
    }

    #[tokio::test]
    async fn a_cut_off_frame_is_no_event_and_a_broken_connection_is_an_error() {
        let mut w = watch::<ConfigMap>(Response::new(body(vec![Ok("{\"type\":\"ADDED\",")])), "configmaps".to_owned());
        assert!(w.next().await.is_none());
        let broken = TransportError { context: "read".into(), message: "reset".into() };
        let mut w = watch::<ConfigMap>(Response::new(body(vec![Err(broken)])), "configmaps".to_owned());
        assert!(matches!(w.next().await, Some(Err(Error::Transport(_)))));
        assert!(w.next().await.is_none());
    }
}
